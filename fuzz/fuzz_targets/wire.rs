//! Answers of peers: DNS, HTTP, D-Bus, the CRI, certificates.

#![no_main]

use nodewhy_fuzz as _;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    nodewhy_agent::host::dns::fuzz(bytes);
    nodewhy_agent::host::get::fuzz(bytes);
    nodewhy_agent::host::dial::fuzz(bytes);
    nodewhy_agent::host::dbus::fuzz(bytes);
    nodewhy_agent::collect::runtime::fuzz(bytes);
    nodewhy_agent::collect::changes::fuzz(bytes);
});
