//! The agent of the network plugin that is configured: its process, its files and sockets, its health port. Each is
//! looked at only where the configuration that the runtime takes calls that plugin.

use std::net::SocketAddr;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::host::get::{Get, Progress};
use crate::host::{Host, ReadError};

/// A well agent answers within milliseconds; one that does not is asked again.
const PATIENCE: Duration = Duration::from_millis(200);

/// What a plugin's agent leaves on the node (the plugin fails without it).
struct Kind {
    name: &'static str,
    /// The plugins' `type`.
    plugins: &'static [&'static str],
    /// Files that the plugin reads.
    files: &'static [&'static str],
    /// Sockets that it calls.
    sockets: &'static [&'static str],
    /// The agent's process.
    processes: &'static [&'static str],
    /// Its health port on loopback.
    health: Option<(u16, &'static str)>,
}

static KINDS: &[Kind] = &[
    Kind {
        name: "calico",
        plugins: &["calico"],
        files: &["/var/lib/calico/nodename"],
        sockets: &[],
        processes: &["calico-node", "calico-felix"],
        // Off unless HealthEnabled: that it refuses says nothing until it has answered once.
        health: Some((9099, "/liveness")),
    },
    Kind {
        name: "cilium",
        plugins: &["cilium-cni"],
        files: &[],
        sockets: &["/var/run/cilium/cilium.sock"],
        processes: &["cilium-agent"],
        health: Some((9879, "/healthz")),
    },
    Kind {
        name: "aws-vpc-cni",
        plugins: &["aws-cni"],
        files: &["/var/run/aws-node/ipam.json"],
        sockets: &[],
        processes: &["aws-k8s-agent"],
        health: Some((61679, "/v1/enis")),
    },
    Kind {
        name: "flannel",
        plugins: &["flannel"],
        files: &["/run/flannel/subnet.env"],
        sockets: &[],
        processes: &["flanneld"],
        health: None,
    },
];

/// How a thing of the agent's is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Thing {
    /// The path.
    pub path: String,
    /// `there`, `missing`, `refused` (a socket that nobody listens on), `cannot_tell`.
    pub state: &'static str,
    /// Why it cannot be told.
    pub why: Option<String>,
}

/// The agent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Agent {
    /// `calico`, `cilium`, `aws-vpc-cni`, `flannel`.
    pub name: &'static str,
    /// Its files and sockets.
    pub things: Vec<Thing>,
    /// Its process: pid and name.
    pub process: Option<(u32, String)>,
    /// Whether such a process was ever seen.
    pub process_was_seen: bool,
    /// What its health port says: `ok`, `status 503`, `refused`, `no answer`, or the kernel's word.
    pub health: Option<String>,
    /// When that was `ok` last.
    pub health_was_ok: Option<Timestamp>,
}

/// What is remembered between looks.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    name: &'static str,
    process_was_seen: bool,
    health_was_ok: Option<Timestamp>,
}

/// The agent of these plugins; `None`: none of them has one that is known here.
pub(super) fn look(plugins: &[String], memory: &mut Memory, host: &Host) -> Option<Agent> {
    let kind =
        KINDS.iter().find(|kind| plugins.iter().any(|plugin| kind.plugins.contains(&plugin.as_str())))?;
    if memory.name != kind.name {
        *memory = Memory { name: kind.name, ..Memory::default() };
    }
    let files = kind.files.iter().map(|path| file(path, host));
    let sockets = kind.sockets.iter().map(|path| socket(path, host));
    let things = files.chain(sockets).collect();
    let process = process(kind, host);
    memory.process_was_seen |= process.is_some();
    let health = kind.health.map(|(port, path)| health(port, path, host));
    if health.as_deref() == Some("ok") {
        memory.health_was_ok = Some(host.clock().now());
    }
    Some(Agent {
        name: kind.name,
        things,
        process,
        process_was_seen: memory.process_was_seen,
        health,
        health_was_ok: memory.health_was_ok,
    })
}

/// /var/run is a link to /run on most nodes, an absolute one: under another root it leads out of that root.
fn direct(path: &str) -> String {
    path.strip_prefix("/var/run/").map_or_else(|| path.to_owned(), |rest| format!("/run/{rest}"))
}

fn file(path: &str, host: &Host) -> Thing {
    let (state, why) = match host.stat(path).or_else(|_| host.stat(direct(path))) {
        Ok(_) => ("there", None),
        Err(ReadError::NotFound { .. }) => ("missing", None),
        Err(error) => ("cannot_tell", Some(error.to_string())),
    };
    Thing { path: path.to_owned(), state, why }
}

fn socket(path: &str, host: &Host) -> Thing {
    let connected = host.connect_unix(path).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => host.connect_unix(direct(path)),
        _ => Err(error),
    });
    let (state, why) = match connected {
        Ok(_) => ("there", None),
        Err(error) => match error.kind() {
            std::io::ErrorKind::NotFound => ("missing", None),
            std::io::ErrorKind::ConnectionRefused => ("refused", None),
            // Nobody accepts for the moment: it is there.
            std::io::ErrorKind::WouldBlock => ("there", None),
            _ => ("cannot_tell", Some(error.to_string())),
        },
    };
    Thing { path: path.to_owned(), state, why }
}

fn process(kind: &Kind, host: &Host) -> Option<(u32, String)> {
    let pids = host.pids().ok()?;
    pids.into_iter().find_map(|pid| {
        let process = host.process_if(pid, |name| kind.processes.contains(&name)).ok().flatten()?;
        process.is_alive().then_some((pid, process.name))
    })
}

fn health(port: u16, path: &str, host: &Host) -> String {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    if let Err(error) = host.reaches(address.ip(), "the health of the network's agent") {
        return error.to_string();
    }
    let progress = match Get::begin(address, path) {
        Ok(mut get) => get.advance(host.clock(), PATIENCE),
        Err(ended) => ended,
    };
    match progress {
        Progress::Answered { code, .. } if code < 400 => "ok".to_owned(),
        Progress::Answered { code, .. } => format!("status {code}"),
        Progress::Waiting { .. } => format!("no answer within {} ms", PATIENCE.as_millis()),
        Progress::Refused => "refused".to_owned(),
        Progress::NotHttp { what } => what,
        Progress::Failed { error } => error,
    }
}
