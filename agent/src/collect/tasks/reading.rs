//! The shape of a reading of tasks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use nodewhy_clock::Stamp;
use serde::Serialize;

use super::blocked::Blocked;
use super::calls::{Call, Shims};
use super::limits::Limits;
use super::parse::Load;

/// One reading.
#[derive(Clone, Debug, Serialize)]
pub struct Reading {
    /// Load, and how many tasks there are.
    pub load: Load,
    /// CPUs that are online.
    pub cores: usize,
    /// Tasks that run or wait for a CPU.
    pub running: u64,
    /// Tasks that wait for block I/O: only a part of those in D.
    pub blocked_on_io: u64,
    /// Forks since boot.
    pub forks: u64,
    /// Context switches since boot.
    pub context_switches: u64,
    /// CPU seconds since boot by mode, all CPUs together.
    pub cpu_seconds: BTreeMap<&'static str, f64>,
    /// How CPU time went lately; none until a while has passed.
    pub cpu: Option<Shares>,
    /// Limits of process ids, files, inotify.
    pub limits: Limits,
    /// The newest look at every thread.
    pub sweep: Sweep,
    /// What holds up the kubelet's relist (PLEG), in one line: the oldest wait or call among the kubelet, the runtime, its
    /// shims, runc, and network plugins.
    pub blocks_pleg: Option<String>,
    /// Threads in D.
    pub blocked: BlockedSummary,
    /// Calls of runc and network plugins that run, oldest first.
    pub calls: Vec<Call>,
    /// Shims against sandboxes.
    pub shims: Option<Shims>,
    /// Dead processes that their parents do not reap.
    pub zombies: Option<Zombies>,
    /// The whole lists.
    #[serde(skip)]
    pub swept: Option<Arc<Swept>>,
    /// All threads in D, oldest first.
    #[serde(skip)]
    pub(super) all_blocked: Arc<Vec<Blocked>>,
    /// All calls, oldest first.
    #[serde(skip)]
    pub(super) all_calls: Vec<Call>,
    /// When it was taken, since boot: ages are counted from here.
    #[serde(skip)]
    pub(super) boot: Duration,
}

/// Shares of the CPUs' time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Shares {
    /// The span that they are of.
    pub over_seconds: f64,
    /// Taken by the hypervisor.
    pub steal_percent: f64,
    /// Idle, or idle with block I/O in flight.
    pub idle_percent: f64,
}

/// How the looks at every thread go.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Sweep {
    /// Whether looks follow each other closely now.
    pub gate_is_open: bool,
    /// The one that is under way: processes and threads seen so far.
    pub so_far: Option<(u64, u64)>,
    /// Age of what the newest complete one found; none before the first.
    pub age_seconds: Option<f64>,
    /// Its processes.
    pub processes: Option<u64>,
    /// Its threads.
    pub threads: Option<u64>,
    /// In how many ticks it was done.
    pub ticks: Option<u32>,
    /// Threads by state.
    pub states: BTreeMap<char, u64>,
    /// Threads that could not be read.
    pub unread: Option<u64>,
    /// Why there is none, or what of it is not to be believed.
    pub error: Option<String>,
}

/// Threads in D, in short.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BlockedSummary {
    /// How many; none before the first look.
    pub count: Option<u64>,
    /// By part of the node, of those that are kept by name.
    pub by_group: BTreeMap<&'static str, u64>,
    /// By the kernel's function that they wait in, most first.
    pub by_wchan: Vec<(String, u64)>,
    /// The oldest.
    pub oldest: Vec<Blocked>,
}

/// Zombies.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Zombies {
    /// How many.
    pub count: u64,
    /// The parents with the most.
    pub parents: Vec<Parent>,
}

/// A parent of zombies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Parent {
    /// Its process.
    pub pid: u32,
    /// Its name; none when it is gone by now.
    pub name: Option<String>,
    /// How many of its children it has not reaped.
    pub zombies: u64,
}

/// What a complete look came to.
#[derive(Clone, Debug)]
pub struct Swept {
    pub(super) at: Stamp,
    pub(super) processes: u64,
    pub(super) threads: u64,
    pub(super) ticks: u32,
    pub(super) states: BTreeMap<char, u64>,
    pub(super) unread: u64,
    pub(super) blocked: u64,
    pub(super) shims: Shims,
    pub(super) parents: Vec<Parent>,
    pub(super) zombies: u64,
}
