//! TCP connections over sock_diag(7): state, queues, and `struct tcp_info`, filtered in the kernel by the far port.
//!
//! Asking loads the module tcp_diag (with inet_diag), so it is asked for only where it is there already.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::{AF_INET, AF_INET6, IPPROTO_TCP};

use super::netlink::{Attributes, Netlink, NetlinkError, Protocol};
use super::{Host, ReadError};

/// SOCK_DIAG_BY_FAMILY.
const BY_FAMILY: u16 = 20;
/// `struct inet_diag_msg`.
const MESSAGE_BYTES: usize = 72;
const INET_DIAG_INFO: u16 = 2;
const INET_DIAG_CGROUP_ID: u16 = 21;
/// All states but TIME_WAIT (6), CLOSE (7) and LISTEN (10): those have nothing to send.
const STATES: u32 = 0xffe & !(1 << 6 | 1 << 7 | 1 << 10);
/// No more connections to one port are taken.
const MOST: usize = 4096;

/// No more descriptors of a process are looked at.
const MOST_DESCRIPTORS: usize = 16 * 1024;

/// One connection.
#[derive(Clone, Debug, PartialEq)]
pub struct Connection {
    /// `ESTABLISHED`, `SYN_SENT`, …
    pub state: &'static str,
    /// Our end.
    pub local: SocketAddr,
    /// The far end.
    pub remote: SocketAddr,
    /// The socket's inode, which `/proc/PID/fd` shows too. 0: no process has it any more.
    pub inode: u32,
    /// The cgroup of who made the socket: the inode of its folder (Linux 5.9 and later).
    pub cgroup: Option<u64>,
    /// The kernel's own number of it, never given twice.
    pub cookie: u64,
    /// Bytes that were written and are not acknowledged: on their way, or unsent.
    pub unacknowledged_bytes: u32,
    /// `None`: the kernel does not say it of such a state.
    pub info: Option<Info>,
}

/// What of `struct tcp_info` (include/uapi/linux/tcp.h) matters here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Info {
    /// Timeouts one after another of what is not acknowledged; 0 once anything is.
    pub retransmits: u8,
    /// The timeout as it is now, doubled by each retransmission.
    pub timeout: Duration,
    /// Segments on their way.
    pub unacknowledged_segments: u32,
    /// Segments that were sent again, over the connection's whole life.
    pub total_retransmits: u32,
    /// Time since an acknowledgement came.
    pub last_acknowledged: Duration,
    /// Time since data came.
    pub last_received: Duration,
    /// Bytes acknowledged in its life (Linux 4.1 and later).
    pub acknowledged_bytes: Option<u64>,
    /// Bytes that came in its life.
    pub received_bytes: Option<u64>,
    /// Bytes that were not even sent (Linux 4.6 and later).
    pub unsent_bytes: Option<u32>,
    /// The smoothed round trip.
    pub round_trip: Duration,
}

impl Info {
    /// For how long the oldest byte has waited for its acknowledgement, at least: what the timeouts so far add up to.
    /// After n of them the timeout has doubled n times (up to 120 s), and each was waited for.
    pub fn waited_at_least(&self) -> Duration {
        if self.unacknowledged_segments == 0 || self.retransmits == 0 {
            return Duration::ZERO;
        }
        let doubled = 1u32.checked_shl(u32::from(self.retransmits)).unwrap_or(u32::MAX);
        self.timeout.saturating_sub(self.timeout / doubled).min(self.last_acknowledged)
    }
}

impl Host {
    /// The inodes of a process's sockets: what `/proc/PID/fd` leads to. A container may be refused (AppArmor).
    ///
    /// # Errors
    /// The folder cannot be listed, or AppArmor confines the agent.
    pub fn socket_inodes(&self, pid: u32) -> Result<BTreeSet<u64>, ReadError> {
        let folder = format!("/proc/{pid}/fd");
        self.allowed(Path::new(&folder).join("0").as_path())?;
        let names = self.list(&folder)?;
        let inode = |name: &String| {
            // A descriptor may be closed meanwhile.
            let link = std::fs::read_link(self.path(format!("{folder}/{name}"))).ok()?;
            link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
        };
        Ok(names.iter().take(MOST_DESCRIPTORS).filter_map(inode).collect())
    }
}

/// Why sock_diag may not be asked; `None`: it may.
pub fn refused(host: &Host) -> Option<String> {
    // A kernel without modules can load none: what it does not have it refuses.
    let modules = match host.read("/proc/modules") {
        Ok(modules) => modules,
        Err(ReadError::NotFound { .. }) => return None,
        Err(error) => return Some(error.to_string()),
    };
    if modules.lines().any(|line| line.starts_with("tcp_diag ")) {
        return None;
    }
    let release = host.read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let built_in = ["/lib/modules", "/usr/lib/modules"].iter().any(|folder| {
        let list = host.read(format!("{folder}/{}/modules.builtin", release.trim())).unwrap_or_default();
        list.lines().any(|line| line.ends_with("/tcp_diag.ko"))
    });
    (!built_in).then(|| {
        "the module tcp_diag is not loaded, and asking would load it; `modprobe tcp_diag` on the node gives ages and \
         retransmits of connections"
            .to_owned()
    })
}

/// The TCP connections to this port of others, in the agent's own network namespace. See [`refused`] first.
///
/// # Errors
/// The kernel refuses, is late, or says what makes no sense.
pub fn connections(
    netlink: &mut Netlink,
    ipv6: bool,
    port: u16,
    limit: Duration,
) -> Result<Vec<Connection>, ReadError> {
    let mut found = Vec::new();
    let request = request(ipv6, port);
    let dumped = netlink.dump(BY_FAMILY, &request, limit, |_, payload| {
        found.extend(connection(payload)?);
        Ok(if found.len() < MOST { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    });
    match dumped {
        Ok(_) => Ok(found),
        Err(NetlinkError::Refused(Errno::ENOENT)) => {
            Err(ReadError::absent("this kernel has no sock_diag for TCP (CONFIG_INET_TCP_DIAG)"))
        }
        Err(error) => Err(error.asking("TCP connections (sock_diag)")),
    }
}

/// A socket for [`connections`].
///
/// # Errors
/// The kernel gives none.
pub fn open(host: &Host) -> Result<Netlink, ReadError> {
    Netlink::open(host, Protocol::SockDiag).map_err(|error| error.asking("TCP connections (sock_diag)"))
}

/// `struct inet_diag_req_v2` and its filter: the far port is at least and at most this one.
fn request(ipv6: bool, port: u16) -> Vec<u8> {
    let family = u8::try_from(if ipv6 { AF_INET6 } else { AF_INET }).unwrap_or_default();
    let protocol = u8::try_from(IPPROTO_TCP).unwrap_or_default();
    let mut bytes = vec![family, protocol, 1 << (INET_DIAG_INFO - 1), 0];
    bytes.extend(STATES.to_ne_bytes());
    bytes.resize(56, 0);
    // INET_DIAG_REQ_BYTECODE: two operations of eight bytes (code, yes, no; then the port). `no` leads past the end by
    // four, which means that the socket is not wanted (net/ipv4/inet_diag.c, inet_diag_bc_run).
    bytes.extend(20u16.to_ne_bytes());
    bytes.extend(1u16.to_ne_bytes());
    for (code, no) in [(4u8, 20u16), (5, 12)] {
        bytes.extend([code, 8]);
        bytes.extend(no.to_ne_bytes());
        bytes.extend([0, 0]);
        bytes.extend(port.to_ne_bytes());
    }
    bytes
}

/// `struct inet_diag_msg`. `None`: a state that has nothing to send.
fn connection(payload: &[u8]) -> Result<Option<Connection>, NetlinkError> {
    let cut = || NetlinkError::Malformed("a socket is shorter than inet_diag_msg".to_owned());
    let head: &[u8; MESSAGE_BYTES] = payload.first_chunk().ok_or_else(cut)?;
    let word = |at: usize| head.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let port = |at: usize| head.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes);
    let ip = |at: usize| -> Option<IpAddr> {
        if i32::from(*head.first()?) == AF_INET {
            <[u8; 4]>::try_from(head.get(at..at + 4)?).ok().map(IpAddr::from)
        } else {
            <[u8; 16]>::try_from(head.get(at..at + 16)?).ok().map(IpAddr::from)
        }
    };
    let read = || {
        let cookie = u64::from(word(44)?) | u64::from(word(48)?) << 32;
        Some(Connection {
            state: state(*head.get(1)?)?,
            local: SocketAddr::new(ip(8)?, port(4)?),
            remote: SocketAddr::new(ip(24)?, port(6)?),
            inode: word(68)?,
            cgroup: None,
            cookie,
            unacknowledged_bytes: word(60)?,
            info: None,
        })
    };
    let Some(mut connection) = read() else { return Ok(None) };
    for attribute in Attributes::behind(MESSAGE_BYTES, payload)? {
        let attribute = attribute?;
        match attribute.kind {
            INET_DIAG_INFO => connection.info = info(attribute.payload),
            INET_DIAG_CGROUP_ID => connection.cgroup = Some(attribute.u64()?),
            _ => {}
        }
    }
    Ok(Some(connection))
}

/// include/net/tcp_states.h.
pub(crate) fn state(number: u8) -> Option<&'static str> {
    Some(match number {
        1 => "ESTABLISHED",
        2 => "SYN_SENT",
        3 => "SYN_RECV",
        4 => "FIN_WAIT1",
        5 => "FIN_WAIT2",
        8 => "CLOSE_WAIT",
        9 => "LAST_ACK",
        11 => "CLOSING",
        _ => return None,
    })
}

/// The structure grows at its end with the kernel; what an old one does not have is `None`.
fn info(bytes: &[u8]) -> Option<Info> {
    let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let long = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes);
    let millis = |at: usize| word(at).map(|millis| Duration::from_millis(millis.into()));
    let micros = |at: usize| word(at).map(|micros| Duration::from_micros(micros.into()));
    Some(Info {
        retransmits: *bytes.get(2)?,
        timeout: micros(8)?,
        unacknowledged_segments: word(24)?,
        last_received: millis(52)?,
        last_acknowledged: millis(56)?,
        round_trip: micros(68)?,
        total_retransmits: word(100)?,
        acknowledged_bytes: long(120),
        received_bytes: long(128),
        unsent_bytes: word(144),
    })
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    crate::fuzz::done(connection(bytes));
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use nodewhy_clock::Clock;
    use proptest::prelude::*;

    use super::*;
    use crate::host::Places;

    const LIMIT: Duration = Duration::from_secs(5);

    #[test]
    fn a_real_connection_is_found_by_its_port_and_no_other_one() {
        let host = Host::new("/", Clock::system(), Places::default());
        if let Some(why) = refused(&host) {
            eprintln!("not asked: {why}");
            return;
        }
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(any) else { continue };
            let to = listener.local_addr().unwrap();
            let mut stream = TcpStream::connect(to).unwrap();
            let accepted = listener.accept().unwrap();
            stream.write_all(b"hello").unwrap();
            let mut netlink = open(&host).unwrap();
            let found = connections(&mut netlink, to.is_ipv6(), to.port(), LIMIT).unwrap();
            assert_eq!(found.len(), 1, "{found:?}");
            let one = &found[0];
            assert_eq!((one.local, one.remote), (stream.local_addr().unwrap(), to));
            assert_eq!(one.state, "ESTABLISHED");
            assert_ne!(one.inode, 0);
            let info = one.info.unwrap();
            assert!(info.last_acknowledged < LIMIT && info.retransmits == 0);
            assert_eq!(info.waited_at_least(), Duration::ZERO);
            drop(accepted);
        }
    }

    #[test]
    fn timeouts_that_doubled_add_up() {
        let info = Info {
            retransmits: 6,
            timeout: Duration::from_millis(200 * 64),
            unacknowledged_segments: 1,
            total_retransmits: 6,
            last_acknowledged: Duration::from_secs(40),
            last_received: Duration::from_secs(40),
            acknowledged_bytes: None,
            received_bytes: None,
            unsent_bytes: None,
            round_trip: Duration::from_millis(1),
        };
        // 0.2 + 0.4 + 0.8 + 1.6 + 3.2 + 6.4
        assert_eq!(info.waited_at_least(), Duration::from_millis(12_600));
        // A connection that was idle for long, and has just sent something.
        let fresh = Info { retransmits: 0, ..info };
        assert_eq!(fresh.waited_at_least(), Duration::ZERO);
    }

    #[test]
    fn a_module_that_is_not_loaded_is_not_asked_for() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let host = Host::new(root.path(), Clock::system(), Places::default());
        assert_eq!(refused(&host), None, "a kernel without modules loads none");
        write("proc/modules", "veth 45056 0 - Live 0x0000000000000000\n");
        write("proc/sys/kernel/osrelease", "6.1.0-42-cloud-amd64\n");
        assert!(refused(&host).unwrap().contains("tcp_diag is not loaded"));
        write("lib/modules/6.1.0-42-cloud-amd64/modules.builtin", "kernel/net/ipv4/tcp_diag.ko\n");
        assert_eq!(refused(&host), None);
        write("lib/modules/6.1.0-42-cloud-amd64/modules.builtin", "kernel/net/ipv4/tcp_bic.ko\n");
        write("proc/modules", "tcp_diag 16384 0 - Live 0x0\ninet_diag 24576 1 tcp_diag, Live 0x0\n");
        assert_eq!(refused(&host), None);
    }

    proptest! {
        #[test]
        fn any_message_is_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            connection(&bytes).ok();
            info(&bytes);
        }
    }
}
