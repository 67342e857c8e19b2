//! The API server as it is reached from this node: a dial of our own every ten seconds (name, TCP, TLS, `GET /livez`),
//! and the kubelet's own connections to it. Together they tell a network that is cut from a server that is down, and
//! both from one connection that is dead and does not know it.
//!
//! No credentials: 401 and 403 are answers. The look runs on a thread of its own; the collector only takes what is there.

mod address;
mod connections;
mod detect;
mod families;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use serde::Serialize;

use crate::collector::{Collector, Page};
use crate::host::dial::{self, Dialled};
use crate::host::dns;
use crate::host::netlink::NetworkNamespace;
use crate::host::process::Process;
use crate::host::{Apart, Host, ReadError};
use address::Found;
use connections::{Connections, Owner, Watch};

/// The dial and the connections, every ten seconds.
pub static COLLECTOR: Collector<Source, Reading> = Collector {
    name: "api_server",
    every: EVERY,
    deadline: Duration::from_secs(12),
    remembers: true,
    open,
    read,
    wake,
    summary,
    families: families::FAMILIES,
    metrics: families::metrics,
    limits: detect::LIMITS,
    detect: detect::detect,
    pages: &[Page {
        path: "/api/v1/api-server",
        about: "the newest dial of the API server, step by step, its certificate, and the node's connections to it",
        json: page,
    }],
    asks: &[],
};

const EVERY: Duration = Duration::from_secs(10);
/// For the whole dial: it has ended before the next one is due.
const LIMIT: Duration = Duration::from_secs(9);
/// A tick may come a little early.
const SLACK: Duration = Duration::from_secs(1);
/// Addresses that are kept of a name that gives new ones each time.
const MOST_KNOWN: usize = 64;

/// What is kept.
#[derive(Debug)]
pub struct Source {
    look: Apart<Look>,
    began: Option<Duration>,
    newest: Option<Look>,
    last: Option<Found>,
    watch: Watch,
    connections: Option<Connections>,
    known: BTreeSet<IpAddr>,
    failed_in_row: u32,
    failing_since: Option<nodewhy_clock::Stamp>,
}

/// One look: where it is, how it answers, who is connected.
#[derive(Debug)]
struct Look {
    found: Result<Found, ReadError>,
    from_hosts_network: bool,
    dialled: Option<Dialled>,
    connections: Option<Result<connections::Found, ReadError>>,
    owner: Owner,
    ended: Duration,
}

/// One reading.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reading {
    /// Where it is, and who says so.
    #[serde(flatten)]
    pub found: Found,
    /// Whether it is dialled from the node's own network namespace; else what stops a pod stops the dial too.
    pub from_hosts_network: bool,
    /// The newest dial.
    pub dial: Dialled,
    /// Dials that failed one after another, the newest included.
    pub failed_in_row: u32,
    /// For how long they have.
    pub failing_seconds: Option<f64>,
    #[serde(skip)]
    pub(super) failing_since: Option<jiff::Timestamp>,
    /// Our clock less the server's, by `Date`; positive: ours is ahead.
    pub clock_offset_seconds: Option<f64>,
    /// The offset may be off by so much: `Date` has whole seconds, and the answer was on its way.
    pub clock_offset_error_seconds: Option<f64>,
    /// Connections to it.
    pub connections: Option<Connections>,
    /// Why they could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_error: Option<String>,
    /// How long the look that is under way has taken.
    pub running_seconds: Option<f64>,
}

/// The API server's name, where it has one.
pub(super) fn name(host: &Host) -> Option<String> {
    address::name(host)
}

fn open(_: &Host) -> Result<Source, ReadError> {
    Ok(Source {
        look: Apart::start("api-server")?,
        began: None,
        newest: None,
        last: None,
        watch: Watch::default(),
        connections: None,
        known: BTreeSet::new(),
        failed_in_row: 0,
        failing_since: None,
    })
}

fn wake(source: &Source) -> Option<BorrowedFd<'_>> {
    // The end of a dial is news at once, not at the next tick.
    Some(source.look.as_fd())
}

fn read(source: &mut Source, host: &Host) -> Result<Reading, ReadError> {
    let now = host.clock().since_boot();
    let due = source.began.is_none_or(|began| now.saturating_sub(began) >= EVERY.saturating_sub(SLACK));
    let ended = source.look.take(Duration::ZERO)?;
    if due {
        let (asking, last) = (host.clone(), source.last.clone());
        if source.look.begin(now, move || look(&asking, last)) {
            source.began = Some(now);
        }
    }
    let ended = match ended {
        None if source.newest.is_none() => source.look.take(LIMIT + SLACK)?,
        ended => ended,
    };
    if let Some(look) = ended {
        note(source, look);
    }
    let Some(look) = &source.newest else {
        return Err(ReadError::Other(
            "the API server's address is not found out yet: reading this node's files takes long".to_owned(),
        ));
    };
    let (found, dialled) = match (&look.found, &look.dialled) {
        (Ok(found), Some(dialled)) => (found.clone(), dialled.clone()),
        (Err(ReadError::Absent { why }), _) => return Err(ReadError::absent(why.clone())),
        (Err(error), _) => return Err(ReadError::Other(error.to_string())),
        (Ok(_), None) => return Err(ReadError::Other("the API server was not dialled".to_owned())),
    };
    let offset = clock_offset(&dialled);
    let connections_error = match &look.connections {
        Some(Err(error)) => Some(error.to_string()),
        _ => None,
    };
    Ok(Reading {
        found,
        from_hosts_network: look.from_hosts_network,
        failed_in_row: source.failed_in_row,
        failing_seconds: source
            .failing_since
            .map(|since| dialled.ended.boot.saturating_sub(since.boot).as_secs_f64()),
        failing_since: source.failing_since.map(|since| since.wall),
        clock_offset_seconds: offset.map(|(offset, _)| offset),
        clock_offset_error_seconds: offset.map(|(_, error)| error),
        dial: dialled,
        connections: source.connections.clone(),
        connections_error,
        running_seconds: source.look.began().map(|began| now.saturating_sub(began).as_secs_f64()),
    })
}

/// Takes a look that ended into what is kept.
fn note(source: &mut Source, look: Look) {
    if let Some(dialled) = &look.dialled {
        if dialled.error.is_some() {
            source.failed_in_row = source.failed_in_row.saturating_add(1);
            source.failing_since.get_or_insert(dialled.began);
        } else {
            source.failed_in_row = 0;
            source.failing_since = None;
        }
        let addresses = dialled.addresses.iter().copied().chain(dialled.address.map(|it| it.ip()));
        if source.known.len() > MOST_KNOWN {
            source.known.clear();
        }
        source.known.extend(addresses.map(|address| address.to_canonical()));
    }
    source.connections = match &look.connections {
        Some(Ok(found)) => Some(source.watch.take(found.clone(), &look.owner, &source.known, look.ended)),
        _ => None,
    };
    source.last = look.found.as_ref().ok().cloned().or(source.last.take());
    source.newest = Some(look);
}

/// `last`: where it was at the look before. A connection that told it may be gone, the very thing that is to be seen.
fn look(host: &Host, last: Option<Found>) -> Look {
    let namespace = host.network_is_hosts();
    let found = match (address::find(host), last) {
        (Err(ReadError::Absent { .. }), Some(last)) => Ok(last),
        (found, _) => found,
    };
    let found = found.and_then(|found| {
        // Another namespace has another loopback device: nobody listening there is no news of the node.
        let host = found.target.host.as_str();
        let is_loopback = host.parse::<IpAddr>().map_or(host == "localhost", |address| address.is_loopback());
        if is_loopback {
            namespace.needed_for("the API server (it is dialled over the node's loopback device)")?;
        }
        Ok(found)
    });
    let dialled = found.as_ref().ok().map(|found| dial::dial(host, &found.target, LIMIT));
    let unresolved = dialled.as_ref().and_then(|dialled| dialled.error.as_ref());
    let found = match unresolved.filter(|error| error.step == dial::Step::Resolve) {
        Some(_) => found.and_then(|found| nameservers_are_reached(host).map(|()| found)),
        None => found,
    };
    let connections = found.as_ref().ok().map(|found| connections::read(host, found.target.port));
    let kubelet = host.kubelet_process().filter(Process::is_alive);
    let owner = kubelet.map(|kubelet| Owner::of(host, &kubelet)).unwrap_or_default();
    let from_hosts_network = namespace == NetworkNamespace::Hosts;
    Look { found, from_hosts_network, dialled, connections, owner, ended: host.clock().since_boot() }
}

/// A nameserver on the node's loopback device (systemd-resolved's stub) is another one, or none, in a namespace of our
/// own: that a name has no address there is no news of the node.
fn nameservers_are_reached(host: &Host) -> Result<(), ReadError> {
    let Ok(text) = host.read("/etc/resolv.conf") else { return Ok(()) };
    dns::resolv_conf(&text).nameservers.into_iter().try_for_each(|server| {
        host.reaches(server, &format!("what the nameserver {server} says (it is on the loopback device)"))
    })
}

/// Our clock less the server's, and by how much that may be off. `Date` is cut to whole seconds: its middle is taken.
fn clock_offset(dialled: &Dialled) -> Option<(f64, f64)> {
    let answer = dialled.answer.as_ref()?;
    let ours = answer.middle.duration_since(answer.date?).as_secs_f64();
    Some((ours - 0.5, 0.5 + dialled.answer_seconds? / 2.0))
}

fn summary(reading: &Reading) -> String {
    let target = &reading.dial.target;
    match (&reading.dial.error, &reading.dial.answer) {
        (Some(error), _) => format!("{target}: {}: {}", error.why.word(), error.error),
        (None, Some(answer)) => {
            format!("{target} answers {} in {:.0} ms", answer.status, reading.dial.total_seconds * 1000.0)
        }
        (None, None) => format!("{target}: not dialled"),
    }
}

#[derive(Serialize)]
struct Whole<'a> {
    #[serde(flatten)]
    reading: &'a Reading,
    connections_listed: &'a [connections::Connection],
}

fn page(reading: &Reading) -> Result<serde_json::Value, serde_json::Error> {
    let listed = reading.connections.as_ref().map_or(&[][..], |connections| &connections.listed);
    serde_json::to_value(Whole { reading, connections_listed: listed })
}

/// Every parser of this collector, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    address::fuzz(bytes);
    connections::fuzz(bytes);
}

#[cfg(test)]
mod tests;
