//! Whose process listens on a port of this node.

use std::net::{IpAddr, SocketAddr};

use crate::host::Host;

/// That only root's processes listen on this port.
///
/// # Errors
/// Why that cannot be said, in words.
pub(super) fn is_roots(host: &Host, address: SocketAddr) -> Result<(), String> {
    host.reaches(address.ip(), "the kubelet's API").map_err(|error| error.to_string())?;
    if !address.ip().is_loopback() && !is_the_nodes(host, address.ip()) {
        let ip = address.ip();
        return Err(format!(
            "{ip} is not an address of this node, or that cannot be told: who listens there is not known"
        ));
    }
    let files = match address.ip() {
        IpAddr::V4(_) => ["/proc/1/net/tcp", "/proc/1/net/tcp6"],
        IpAddr::V6(_) => ["/proc/1/net/tcp6", "/proc/1/net/tcp"],
    };
    let mut owners = Vec::new();
    let mut unread = None;
    for file in files {
        match host.read(file) {
            Ok(text) => owners.extend(listeners(&text, address.port())),
            // Without IPv6 there is no tcp6.
            Err(error) => {
                unread.get_or_insert(error);
            }
        }
    }
    match (owners.iter().find(|uid| **uid != 0), owners.is_empty(), unread) {
        (Some(uid), ..) => Err(format!("a process of user {uid} listens on port {}", address.port())),
        (None, false, _) => Ok(()),
        (None, true, Some(error)) => Err(format!("whose process listens there cannot be told: {error}")),
        (None, true, None) => Err(format!("nobody on this node listens on port {}", address.port())),
    }
}

/// Whether the address is one of the node's own interfaces. What cannot be read has none.
fn is_the_nodes(host: &Host, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let leaf = format!("|-- {address}");
            let text = host.read("/proc/1/net/fib_trie").unwrap_or_default();
            // Below each leaf stand what it is for: `/32 host LOCAL` is an address of an interface.
            let mut is_below = false;
            text.lines().map(str::trim).any(|line| {
                if line.starts_with("|--") || line.starts_with("+--") {
                    is_below = line == leaf;
                }
                is_below && line == "/32 host LOCAL"
            })
        }
        IpAddr::V6(address) => {
            let hex = format!("{:032x}", u128::from(address));
            let text = host.read("/proc/1/net/if_inet6").unwrap_or_default();
            text.lines().any(|line| line.split_ascii_whitespace().next() == Some(&*hex))
        }
    }
}

/// The user ids of the sockets that listen on this port (proc_net_tcp: state 0A; the port is in hex).
fn listeners(text: &str, port: u16) -> Vec<u32> {
    let of = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let local = fields.nth(1)?;
        let state = fields.nth(1)?;
        let uid = fields.nth(3)?;
        let its = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
        (its == port && state == "0A").then(|| uid.parse().ok())?
    };
    text.lines().skip(1).filter_map(of).collect()
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    crate::fuzz::done(listeners(&crate::fuzz::text(bytes), 10250));
}

#[cfg(test)]
mod tests {
    use super::*;

    // /proc/1/net/tcp on Linux 6.18.44.
    const TEXT: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode                                                     \n   0: 0100007F:4D41 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1760116 1 00000000bafe2d72 100 0 0 10 0                   \n   1: 0100007F:4D42 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1760117 1 0000000093b7bc7b 100 0 0 10 0                   \n";

    #[test]
    fn only_listeners_of_the_port_count() {
        assert_eq!(listeners(TEXT, 0x4d41), [0]);
        assert_eq!(listeners(TEXT, 10250), [0; 0]);
        assert_eq!(listeners(&TEXT.replace(" 0A ", " 01 "), 0x4d41), [0; 0]);
        assert_eq!(
            listeners(&TEXT.replace("     0        0 1760116", "  1000        0 1760116"), 0x4d41),
            [1000]
        );
    }

    #[test]
    fn a_cut_or_garbled_line_is_no_listener_of_roots() {
        for cut in 0..TEXT.len() {
            let owners = listeners(&TEXT[..cut], 0x4d42);
            assert!(owners.is_empty() || owners == [0]);
        }
        assert!(listeners("x\n0: 0100007F:280A 0 0A 0 0 0 x\n", 10250).is_empty());
    }

    #[test]
    fn nobody_and_somebody_else_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), nodewhy_clock::Clock::system(), crate::host::Places::default());
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        assert!(is_roots(&host, at(1)).unwrap_err().contains("cannot be told"));
        std::fs::create_dir_all(root.path().join("proc/1/net")).unwrap();
        std::fs::write(root.path().join("proc/1/net/tcp"), TEXT).unwrap();
        std::fs::write(root.path().join("proc/1/net/tcp6"), "").unwrap();
        assert_eq!(is_roots(&host, at(0x4d41)), Ok(()));
        assert!(is_roots(&host, at(2)).unwrap_err().contains("nobody"));
        let text = TEXT.replace("     0        0 1760116", "  1000        0 1760116");
        std::fs::write(root.path().join("proc/1/net/tcp"), text).unwrap();
        assert!(is_roots(&host, at(0x4d41)).unwrap_err().contains("user 1000"));
    }

    #[test]
    fn who_listens_on_this_node_says_nothing_of_another_machine() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), nodewhy_clock::Clock::system(), crate::host::Places::default());
        std::fs::create_dir_all(root.path().join("proc/1/net")).unwrap();
        std::fs::write(root.path().join("proc/1/net/tcp"), TEXT).unwrap();
        std::fs::write(root.path().join("proc/1/net/tcp6"), "").unwrap();
        // Of Linux 6.18.44 in a namespace with one veth: 10.88.0.5.
        let trie = include_str!("../../../../fixtures/cni/linux-6.18.44-netns-fib_trie.txt");
        std::fs::write(root.path().join("proc/1/net/fib_trie"), trie).unwrap();
        let at = |ip: &str| is_roots(&host, SocketAddr::new(ip.parse().unwrap(), 0x4d41));
        assert_eq!(at("10.88.0.5"), Ok(()));
        assert!(at("10.88.0.9").unwrap_err().contains("not an address of this node"));
        assert!(at("2001:db8::1").unwrap_err().contains("not an address of this node"));
    }

    #[test]
    fn the_loopback_device_of_another_namespace_is_not_the_kubelets() {
        let root = tempfile::tempdir().unwrap();
        crate::host::process::made::other_network(root.path());
        std::fs::write(root.path().join("proc/1/net/tcp"), TEXT).unwrap();
        let host = Host::new(root.path(), nodewhy_clock::Clock::system(), crate::host::Places::default());
        let error = is_roots(&host, SocketAddr::from(([127, 0, 0, 1], 0x4d41))).unwrap_err();
        assert!(error.contains("hostNetwork"), "{error}");
    }
}
