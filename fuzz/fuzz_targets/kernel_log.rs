//! The kernel log, as /dev/kmsg and syslog(2) give it, and what a crash leaves.

#![no_main]

use nodewhy_fuzz as _;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    nodewhy_agent::host::kmsg::fuzz(bytes);
    nodewhy_agent::collect::oom::fuzz(bytes);
});
