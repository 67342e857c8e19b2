//! What one reading holds.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;

use super::interfaces::{Kind, Link, Listed, Totals};
use super::paths::Paths;
use super::resolver::Resolver;
use crate::host::rtnetlink::Family;

/// What could not be read, and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Missing {
    /// What.
    pub what: &'static str,
    /// Why.
    pub why: String,
}

/// One reading. Counters are the kernel's, since boot, unless said otherwise.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reading {
    /// `hosts`, `own` (a pod without hostNetwork: rules, sysctls and nameservers on loopback are not seen), `unknown`.
    pub namespace: &'static str,
    /// By kind. Counters: since the agent began, those that are gone included.
    pub interfaces: BTreeMap<Kind, Totals>,
    /// The physical ones; 16 at most.
    pub links: Vec<Link>,
    /// Packets that softirqs took from the network cards; since the agent began.
    pub softnet: Option<Softnet>,
    /// Softirqs.
    pub softirq: Softirq,
    /// TCP, of the host's namespace.
    pub tcp: Tcp,
    /// UDP over IPv4.
    pub udp: Udp,
    /// UDP over IPv6; up to 30 s old.
    pub udp6: Udp,
    /// IPv4's and IPv6's table.
    pub neighbours: BTreeMap<&'static str, Neighbours>,
    /// The ways out; up to 10 s old. `None`: the kernel has not answered yet.
    pub paths: Option<Paths>,
    /// How long the look at the ways out that is under way has taken; it waits for a lock of the kernel's.
    pub paths_running_seconds: Option<f64>,
    /// What went over the instance's allowance, a second, lately.
    pub allowances_exceeded_per_second: BTreeMap<String, f64>,
    /// Families that had a default route at some time of the agent's life.
    pub had_default: Vec<Family>,
    /// Gateways that answered at some time of the agent's life.
    #[serde(skip)]
    pub had_answer: Vec<IpAddr>,
    /// The nameservers; up to 30 s old.
    pub resolver: Option<Resolver>,
    /// What could not be read, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<Missing>,
    /// Carriers of physical interfaces that came or went, those of interfaces that are gone included.
    #[serde(skip)]
    pub carrier_changes: Option<u64>,
    /// For `/api/v1/network`.
    #[serde(skip)]
    pub listed: Vec<Listed>,
}

/// `/proc/net/softnet_stat`, all processors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Softnet {
    /// Packets taken.
    pub processed: u64,
    /// Packets dropped: the queue `net.core.netdev_max_backlog` was full.
    pub dropped: u64,
    /// Times that a softirq had to stop with work left.
    pub time_squeeze: u64,
}

/// What softirqs do.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Softirq {
    /// NET_RX softirqs, of all processors.
    pub net_rx: Option<u64>,
    /// Processor time in softirqs of all kinds.
    pub cpu_seconds: Option<f64>,
    /// The kernel's threads that take what softirqs could not.
    pub ksoftirqd: Option<Ksoftirqd>,
}

/// The threads ksoftirqd; up to 30 s old while nothing is squeezed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ksoftirqd {
    /// Processor time of all of them.
    pub cpu_seconds: f64,
    /// The one that worked most between the two newest looks.
    pub busiest_cpu: Option<u32>,
    /// Its share of its processor.
    pub busiest_percent: Option<f64>,
}

/// TCP; see Documentation/networking/snmp_counter.rst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tcp {
    /// Segments sent.
    pub sent_segments: Option<u64>,
    /// Segments sent again.
    pub retransmitted_segments: Option<u64>,
    /// Timeouts.
    pub timeouts: Option<u64>,
    /// Connections that came while a listener's queue was full.
    pub listen_overflows: Option<u64>,
    /// Connections that were dropped at a listener, for that or another reason.
    pub listen_drops: Option<u64>,
    /// Connections given up for want of memory.
    pub aborted_on_memory: Option<u64>,
    /// Open connections.
    pub in_use: Option<u64>,
    /// Connections that no process has any more.
    pub orphans: Option<u64>,
    /// Connections in TIME_WAIT.
    pub time_wait: Option<u64>,
    /// Memory of all TCP's buffers, of all namespaces, in pages.
    pub memory_pages: Option<u64>,
    /// Its limit (`net.ipv4.tcp_mem`, the third).
    pub memory_limit_pages: Option<u64>,
}

/// UDP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Udp {
    /// Datagrams that were dropped since their socket's buffer was full.
    pub receive_buffer_errors: Option<u64>,
    /// Datagrams that could not be sent for want of a buffer.
    pub send_buffer_errors: Option<u64>,
}

/// A neighbour table: one for all namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Neighbours {
    /// Entries.
    pub entries: u64,
    /// Below it nothing is thrown out.
    pub gc_thresh1: Option<u64>,
    /// Above it entries older than 5 s are thrown out.
    pub gc_thresh2: Option<u64>,
    /// More there cannot be.
    pub gc_thresh3: Option<u64>,
    /// Entries that were refused since the table was full.
    pub table_fulls: Option<u64>,
    /// Times that entries had to be thrown out at once.
    pub forced_gc_runs: Option<u64>,
    /// Addresses that nobody answered for.
    pub resolution_failures: Option<u64>,
}
