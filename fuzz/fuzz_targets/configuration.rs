//! Configurations and states that programs of Kubernetes write.

#![no_main]

use nodewhy_fuzz as _;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    nodewhy_agent::thresholds::fuzz(bytes);
    nodewhy_agent::settings::fuzz(bytes);
    nodewhy_agent::distribution::fuzz(bytes);
    nodewhy_agent::collect::cni::fuzz(bytes);
    nodewhy_agent::collect::runtime::fuzz(bytes);
    nodewhy_agent::collect::kubelet::fuzz(bytes);
    nodewhy_agent::collect::api_server::fuzz(bytes);
    nodewhy_agent::collect::conntrack::fuzz(bytes);
});
