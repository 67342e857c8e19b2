//! The processes that write rules: kube-proxy, Cilium's agent, and running iptables, ip6tables and nft.

use std::time::Duration;

use serde::Serialize;

use crate::host::process::Process;
use crate::host::{Host, ReadError};

/// What one look at all processes gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// kube-proxy, the oldest one.
    pub(super) kube_proxy: Option<Process>,
    /// A program that has kube-proxy within it: k3s, microk8s' kubelite.
    pub(super) embedding: Option<Process>,
    /// Cilium's agent.
    pub(super) cilium: Option<Process>,
    /// Running tools.
    pub(super) writers: Vec<Process>,
}

/// A running tool.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Writer {
    /// Its id.
    pub pid: u32,
    /// The kernel's name for it, 15 bytes: `iptables-restor`.
    pub name: String,
    /// Seconds since it began.
    pub age_seconds: f64,
}

/// More of them at once are a storm; the reading tells the oldest.
const MOST_WRITERS: usize = 16;

/// Looks at every process. A millisecond or more on a busy node: not at each tick.
pub(super) fn look(host: &Host) -> Result<Seen, ReadError> {
    let mut seen = Seen::default();
    for pid in host.pids()? {
        // It has ended meanwhile, or is hidden from us.
        let Ok(Some(process)) = host.process_if(pid, is_of_note) else { continue };
        if !process.is_alive() {
            continue;
        }
        let place = match process.name.as_str() {
            "kube-proxy" => &mut seen.kube_proxy,
            "kubelite" | "k3s" | "k3s-server" | "k3s-agent" => &mut seen.embedding,
            "cilium-agent" => &mut seen.cilium,
            name if is_writer(name) => {
                seen.writers.push(process);
                continue;
            }
            _ => continue,
        };
        if place.as_ref().is_none_or(|known| process.start_ticks < known.start_ticks) {
            *place = Some(process);
        }
    }
    seen.writers.sort_by_key(|process| process.start_ticks);
    seen.writers.truncate(MOST_WRITERS);
    Ok(seen)
}

fn is_of_note(name: &str) -> bool {
    is_writer(name)
        || matches!(name, "kube-proxy" | "kubelite" | "k3s" | "k3s-server" | "k3s-agent" | "cilium-agent")
}

fn is_writer(name: &str) -> bool {
    name == "nft" || ["iptables", "ip6tables", "xtables-"].iter().any(|start| name.starts_with(start))
}

/// With its age.
pub(super) fn writer(process: &Process, now: Duration) -> Writer {
    Writer {
        pid: process.pid,
        name: process.name.clone(),
        age_seconds: now.saturating_sub(process.start_since_boot()).as_secs_f64(),
    }
}

/// Whether this very process lives still.
pub(super) fn lives(host: &Host, process: &Process) -> bool {
    matches!(host.process(process.pid), Ok(Some(now)) if now.start_ticks == process.start_ticks && now.is_alive())
}
