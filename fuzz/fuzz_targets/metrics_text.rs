//! Prometheus' text, as kubelet, kube-proxy, Cilium and etcd give it.

#![no_main]

use nodewhy_fuzz as _;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    nodewhy_agent::promtext::fuzz(bytes);
    nodewhy_agent::collect::kubelet::fuzz(bytes);
    nodewhy_agent::collect::control_plane::fuzz(bytes);
    nodewhy_agent::collect::netfilter::fuzz(bytes);
});
