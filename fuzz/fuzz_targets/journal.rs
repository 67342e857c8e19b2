//! Files of systemd's journal.

#![no_main]

use nodewhy_fuzz as _;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    nodewhy_agent::host::journal::file::fuzz(bytes);
});
