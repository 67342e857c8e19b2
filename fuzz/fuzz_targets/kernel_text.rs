//! Text files of /proc and /sys.

#![no_main]

use nodewhy_fuzz as _;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    nodewhy_agent::host::process::fuzz(bytes);
    nodewhy_agent::host::task::fuzz(bytes);
    nodewhy_agent::host::cgroup::fuzz(bytes);
    nodewhy_agent::host::own::fuzz(bytes);
    nodewhy_agent::host::module::fuzz(bytes);
    nodewhy_agent::collect::pressure::fuzz(bytes);
    nodewhy_agent::collect::memory::fuzz(bytes);
    nodewhy_agent::collect::cgroups::fuzz(bytes);
    nodewhy_agent::collect::disk::fuzz(bytes);
    nodewhy_agent::collect::network::fuzz(bytes);
    nodewhy_agent::collect::tasks::fuzz(bytes);
    nodewhy_agent::collect::conntrack::fuzz(bytes);
    nodewhy_agent::collect::systemd::fuzz(bytes);
    nodewhy_agent::node::fuzz(bytes);
});
