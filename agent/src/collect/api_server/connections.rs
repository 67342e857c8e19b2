//! The TCP connections to the API server, and for how long what was sent on them has not been acknowledged.
//!
//! Over sock_diag where the kernel has it already; else /proc/1/net/tcp, which knows of queues and retransmissions and
//! of no times: those are then what the agent itself has seen.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use serde::Serialize;

use crate::host::sock_diag;
use crate::host::{Host, ReadError};

const LIMIT: Duration = Duration::from_secs(2);
/// In the page; those that wait for an acknowledgement first.
const MOST_LISTED: usize = 200;

/// One connection.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Connection {
    /// `ESTABLISHED`, `SYN_SENT`, …
    pub state: &'static str,
    /// Our end.
    pub local: SocketAddr,
    /// The far end.
    pub remote: SocketAddr,
    /// Whether it is the kubelet's; `None`: that cannot be told.
    pub of_kubelet: Option<bool>,
    /// Bytes that were written and are not acknowledged.
    pub unacknowledged_bytes: u64,
    /// Timeouts one after another of what is not acknowledged.
    pub retransmits: u64,
    /// Segments that were sent again in its life.
    pub total_retransmits: Option<u32>,
    /// For how long the oldest byte has waited, at least. 0: nothing waits, or for no timeout yet.
    pub waited_seconds: f64,
    /// Time since an acknowledgement came.
    pub last_acknowledged_seconds: Option<f64>,
    /// Time since data came.
    pub last_received_seconds: Option<f64>,
    /// Bytes acknowledged in its life.
    pub acknowledged_bytes: Option<u64>,
    /// Bytes that came in its life.
    pub received_bytes: Option<u64>,
    /// The smoothed round trip.
    pub round_trip_seconds: Option<f64>,
    /// The socket's inode.
    pub inode: u64,
    #[serde(skip)]
    pub(super) cgroup: Option<u64>,
    /// Never given twice, where the kernel has one; else the inode.
    #[serde(skip)]
    pub(super) identity: u64,
}

/// Those of one port.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Found {
    pub(super) connections: Vec<Connection>,
    /// `sock_diag`, or `/proc/1/net/tcp`.
    pub(super) source: &'static str,
    /// Why it is not sock_diag.
    pub(super) why_not: Option<String>,
}

/// What tells one process's sockets: the cgroup that they were made in, or its descriptors. Each may be unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) cgroup: Option<u64>,
    pub(super) sockets: Option<BTreeSet<u64>>,
}

impl Owner {
    /// `None`: it cannot be told.
    pub(super) fn has(&self, connection: &Connection) -> Option<bool> {
        let by_cgroup = self.cgroup.zip(connection.cgroup).map(|(mine, its)| mine == its);
        let by_descriptor = self.sockets.as_ref().map(|sockets| sockets.contains(&connection.inode));
        match (by_cgroup, by_descriptor) {
            (Some(true), _) | (_, Some(true)) => Some(true),
            (None, None) => None,
            _ => Some(false),
        }
    }
}

/// The connections to this port of others.
pub(super) fn read(host: &Host, port: u16) -> Result<Found, ReadError> {
    let refused = match host.network_is_hosts().needed_for("TCP connections over sock_diag") {
        Err(error) => Some(error.to_string()),
        Ok(()) => sock_diag::refused(host),
    };
    let why_not = match refused {
        Some(why) => why,
        None => match by_sock_diag(host, port) {
            Ok(connections) => return Ok(Found { connections, source: "sock_diag", why_not: None }),
            Err(error) => error.to_string(),
        },
    };
    let mut connections = Vec::new();
    connections.extend(table(&host.read("/proc/1/net/tcp")?, port));
    // Not there: no IPv6.
    if let Ok(text) = host.read("/proc/1/net/tcp6") {
        connections.extend(table(&text, port));
    }
    Ok(Found { connections, source: "/proc/1/net/tcp", why_not: Some(why_not) })
}

fn by_sock_diag(host: &Host, port: u16) -> Result<Vec<Connection>, ReadError> {
    let mut netlink = sock_diag::open(host)?;
    let mut connections = Vec::new();
    for ipv6 in [false, true] {
        let found = sock_diag::connections(&mut netlink, ipv6, port, LIMIT)?;
        connections.extend(found.into_iter().map(Connection::from));
    }
    Ok(connections)
}

impl From<sock_diag::Connection> for Connection {
    fn from(it: sock_diag::Connection) -> Connection {
        let info = it.info.as_ref();
        let waits = info.is_some_and(|info| info.unacknowledged_segments > 0);
        Connection {
            state: it.state,
            local: it.local,
            remote: unmapped(it.remote),
            of_kubelet: None,
            unacknowledged_bytes: it.unacknowledged_bytes.into(),
            // With nothing on its way these are probes of a closed window, which are answered.
            retransmits: info.filter(|_| waits).map_or(0, |info| info.retransmits.into()),
            total_retransmits: info.map(|info| info.total_retransmits),
            waited_seconds: info.map_or(0.0, |info| info.waited_at_least().as_secs_f64()),
            last_acknowledged_seconds: info.map(|info| info.last_acknowledged.as_secs_f64()),
            last_received_seconds: info.map(|info| info.last_received.as_secs_f64()),
            acknowledged_bytes: info.and_then(|info| info.acknowledged_bytes),
            received_bytes: info.and_then(|info| info.received_bytes),
            round_trip_seconds: info.map(|info| info.round_trip.as_secs_f64()),
            inode: it.inode.into(),
            cgroup: it.cgroup,
            identity: it.cookie,
        }
    }
}

/// A socket of IPv6 that speaks IPv4 has `::ffff:192.0.2.7`.
fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// `/proc/net/tcp` and `tcp6`. A line that makes no sense is left out: it may be the last, and cut.
fn table(text: &str, port: u16) -> Vec<Connection> {
    let lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    lines.skip(1).filter_map(line).filter(|connection| connection.remote.port() == port).collect()
}

fn line(line: &str) -> Option<Connection> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let state = sock_diag::state(u8::from_str_radix(words.get(3)?, 16).ok()?)?;
    let (sent, _) = words.get(4)?.split_once(':')?;
    let (timer, _) = words.get(5)?.split_once(':')?;
    let inode = words.get(9)?.parse().ok()?;
    // 1 is retransmission; 4 is a probe of a closed window, which is answered.
    let retransmits = if timer == "01" { hex(words.get(6)?)? } else { 0 };
    Some(Connection {
        state,
        local: address(words.get(1)?)?,
        remote: unmapped(address(words.get(2)?)?),
        of_kubelet: None,
        unacknowledged_bytes: hex(sent)?,
        retransmits,
        total_retransmits: None,
        waited_seconds: 0.0,
        last_acknowledged_seconds: None,
        last_received_seconds: None,
        acknowledged_bytes: None,
        received_bytes: None,
        round_trip_seconds: None,
        inode,
        cgroup: None,
        identity: inode,
    })
}

/// `0100007F:1F90`: words of 32 bits in the machine's byte order, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let word = |at: usize| Some(u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (part, at) in bytes.chunks_mut(4).zip([0, 8, 16, 24]) {
                part.copy_from_slice(&word(at)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// The connections as told in a reading.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Connections {
    /// `sock_diag`, or `/proc/1/net/tcp`.
    pub source: &'static str,
    /// Why it is not sock_diag, and what is lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why_not_sock_diag: Option<String>,
    /// Whether the kubelet's are told from others'.
    pub owner_known: bool,
    /// The kubelet's to the API server, by state; all of the node's where its own cannot be told.
    pub by_state: BTreeMap<&'static str, u64>,
    /// Bytes of them that are not acknowledged.
    pub unacknowledged_bytes: u64,
    /// The most timeouts one after another of any of them.
    pub retransmits: u64,
    /// The longest that anything on them has waited for its acknowledgement, at least.
    pub waited_seconds: f64,
    /// The longest that one of them has been seen by the agent.
    pub oldest_seen_seconds: f64,
    /// All to the API server, those of other programs too; 200 at most.
    #[serde(skip)]
    pub listed: Vec<Connection>,
}

/// When a connection was first seen, and since when nothing of it has been acknowledged.
#[derive(Clone, Debug, Default)]
pub(super) struct Watch(BTreeMap<u64, Since>);

#[derive(Clone, Copy, Debug)]
struct Since {
    first: Duration,
    /// The bytes that were acknowledged then, and since when that many.
    unmoved: Option<(Option<u64>, Duration)>,
}

impl Watch {
    /// What a look gives with the looks before it. `known`: addresses of the API server.
    pub(super) fn take(
        &mut self,
        found: Found,
        owner: &Owner,
        known: &BTreeSet<IpAddr>,
        now: Duration,
    ) -> Connections {
        let mut watched = BTreeMap::new();
        let mut told = Connections {
            source: found.source,
            why_not_sock_diag: found.why_not,
            owner_known: owner.cgroup.is_some() || owner.sockets.is_some(),
            by_state: BTreeMap::new(),
            unacknowledged_bytes: 0,
            retransmits: 0,
            waited_seconds: 0.0,
            oldest_seen_seconds: 0.0,
            listed: Vec::new(),
        };
        for mut connection in found.connections {
            connection.of_kubelet = owner.has(&connection);
            let before = self.0.get(&connection.identity).copied();
            let mut since = before.unwrap_or(Since { first: now, unmoved: None });
            let waits = connection.unacknowledged_bytes > 0 && connection.retransmits > 0;
            since.unmoved = match since.unmoved {
                _ if !waits => None,
                Some((acknowledged, at)) if acknowledged == connection.acknowledged_bytes => {
                    Some((acknowledged, at))
                }
                _ => Some((connection.acknowledged_bytes, now)),
            };
            if let Some((_, at)) = since.unmoved {
                let seen = now.saturating_sub(at).as_secs_f64();
                connection.waited_seconds = connection.waited_seconds.max(seen);
            }
            watched.insert(connection.identity, since);
            let age = now.saturating_sub(since.first).as_secs_f64();
            // At the API server's port there may also be pods that the kubelet probes: those connections do not last.
            let is_api = known.contains(&connection.remote.ip())
                || (connection.of_kubelet == Some(true) && age >= 60.0);
            if !is_api {
                continue;
            }
            if connection.of_kubelet != Some(false) {
                *told.by_state.entry(connection.state).or_default() += 1;
                told.unacknowledged_bytes += connection.unacknowledged_bytes;
                told.retransmits = told.retransmits.max(connection.retransmits);
                told.waited_seconds = told.waited_seconds.max(connection.waited_seconds);
                told.oldest_seen_seconds = told.oldest_seen_seconds.max(age);
            }
            told.listed.push(connection);
        }
        self.0 = watched;
        told.listed.sort_by(|one, other| other.waited_seconds.total_cmp(&one.waited_seconds));
        told.listed.truncate(MOST_LISTED);
        told
    }
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    crate::fuzz::done(table(&crate::fuzz::text(bytes), 6443));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // Recorded on Linux 6.18.44 in a network namespace: a connection whose peer was cut off, three timeouts later.
    const TABLE: &str = include_str!("../../../fixtures/network/linux-6.18.44-tcp-cut-off.txt");

    #[test]
    fn the_recorded_connection() {
        let found = table(TABLE, 6443);
        assert_eq!(found.len(), 1, "{found:?}");
        let one = &found[0];
        assert_eq!((one.state, one.remote), ("ESTABLISHED", "10.99.0.1:6443".parse().unwrap()));
        assert!(one.unacknowledged_bytes > 0 && one.retransmits > 0, "{one:?}");
        assert!(table(TABLE, 6444).is_empty());
    }

    #[test]
    fn what_stays_unacknowledged_is_dated_by_the_looks() {
        let known = BTreeSet::from(["10.99.0.1".parse().unwrap()]);
        let found = || Found { connections: table(TABLE, 6443), source: "/proc/1/net/tcp", why_not: None };
        let owner = Owner::default();
        let mut watch = Watch::default();
        let at = Duration::from_secs;
        let first = watch.take(found(), &owner, &known, at(100));
        assert_eq!((first.waited_seconds, first.owner_known), (0.0, false));
        let second = watch.take(found(), &owner, &known, at(120));
        assert_eq!((second.waited_seconds, second.oldest_seen_seconds), (20.0, 20.0));
        assert_eq!(second.by_state, BTreeMap::from([("ESTABLISHED", 1)]));
        // Acknowledged, and waiting anew.
        let mut acknowledged = found();
        acknowledged.connections[0].retransmits = 0;
        assert_eq!(watch.take(acknowledged, &owner, &known, at(130)).waited_seconds, 0.0);
        assert_eq!(watch.take(found(), &owner, &known, at(140)).waited_seconds, 0.0);
        // Another one's.
        let others = Owner { cgroup: None, sockets: Some(BTreeSet::new()) };
        assert!(watch.take(found(), &others, &known, at(150)).by_state.is_empty());
    }

    proptest! {
        #[test]
        fn a_cut_table_has_the_recorded_connection_or_none(cut in 0..TABLE.len()) {
            let whole = table(TABLE, 6443);
            prop_assert!(table(&TABLE[..cut], 6443).iter().all(|it| whole.contains(it)));
        }

        #[test]
        fn a_flipped_byte_never_panics(at in 0..TABLE.len(), byte: u8) {
            let mut bytes = TABLE.as_bytes().to_vec();
            bytes[at] = byte;
            table(&String::from_utf8_lossy(&bytes), 6443);
        }
    }
}
