//! Answers of the kernel over netlink, and tables of legacy iptables.

#![no_main]

use nodewhy_fuzz as _;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    nodewhy_agent::host::netlink::fuzz(bytes);
    nodewhy_agent::host::rtnetlink::fuzz(bytes);
    nodewhy_agent::host::sock_diag::fuzz(bytes);
    nodewhy_agent::host::xtables::fuzz(bytes);
    nodewhy_agent::collect::conntrack::fuzz(bytes);
    nodewhy_agent::collect::netfilter::fuzz(bytes);
});
