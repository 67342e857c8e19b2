//! Lines of Kubernetes' programs, and logs of packages and boots.

#![no_main]

use nodewhy_fuzz as _;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    nodewhy_agent::collect::logs::fuzz(bytes);
    nodewhy_agent::collect::changes::fuzz(bytes);
});
