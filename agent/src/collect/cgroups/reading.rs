//! What the collector says: totals and the first few in `/api/v1/state`, all pods in `/api/v1/pods`.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use nodewhy_proto::CgroupMode;
use serde::{Serialize, Serializer};

use super::group::Group;
use super::lately::Share;
use super::parse::Max;
use super::tree::{Detail, Qos};
use crate::host::known::PodName;

/// So many of each list stand in `/api/v1/state`.
pub(super) const TOP: usize = 5;

/// One reading.
#[derive(Clone, Debug, Serialize)]
pub struct Reading {
    /// Which hierarchies the node has.
    pub mode: CgroupMode,
    /// The kubelet's cgroup for pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubepods: Option<String>,
    /// What is not known, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// The groups that matter, by what they are: `kubepods`, `burstable`, `besteffort`, `system.slice`, `user.slice`,
    /// `kubelet`, `runtime`, `agent`. Guaranteed pods have no group of their own.
    #[serde(serialize_with = "each_shared")]
    pub groups: BTreeMap<String, Arc<Group>>,
    /// The kubelet and the runtime: each of their cgroups up to the root, since a limit may stand at any.
    pub programs: Vec<Program>,
    /// Pods and containers by class.
    pub qos: BTreeMap<&'static str, Count>,
    /// Pods whose cgroup has no memory limit, those that use most first.
    pub without_memory_limit: Ranked,
    /// Pods that were throttled most of the time that they wanted to run.
    pub throttled: Vec<Listed>,
    /// Pods that wait most for memory or I/O.
    pub stalled: Vec<Listed>,
    /// Pods that use most memory.
    pub most_memory: Vec<Listed>,
    /// Units below system.slice that use most memory.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub units: Vec<Unit>,
    /// Cgroups that are frozen.
    pub frozen: Vec<String>,
    /// Cgroups that refused a fork within the last minute, or are at their limit of processes.
    pub pids_at_limit: Vec<AtLimit>,
    /// Kills below kubepods for want of memory, newest last.
    pub oom_kills: Vec<Kills>,
    /// When kubepods' own limit was last found to have run out of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubepods_limit_hit: Option<Timestamp>,
    /// Whether it was hit within the last minute.
    #[serde(skip)]
    pub(super) is_kubepods_hit: bool,
    /// Whether kubepods' `max` events grew since the reading before.
    #[serde(skip)]
    pub(super) is_kubepods_pushed: bool,
    /// Containers that came and went.
    pub churn: Churn,
    /// Cgroups that were removed and still hold memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dying: Option<Dying>,
    /// Cgroups by controller, dying ones included (/proc/cgroups).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub controllers: BTreeMap<String, u64>,
    /// Whether each pod is in the metrics too.
    #[serde(skip)]
    pub(super) is_per_pod: bool,
    /// Every pod.
    #[serde(skip)]
    pub pods: Vec<PodEntry>,
}

/// A pod on the page.
#[derive(Clone, Debug, Serialize)]
pub struct PodEntry {
    /// Its name, where the runtime or its logs' folder told it.
    #[serde(flatten)]
    pub name: Option<PodName>,
    /// Its UID; of a static pod the hash of its file.
    pub uid: String,
    /// Its class.
    pub qos: Qos,
    /// Memory in use now, page cache included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Processes and threads now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// In full; a pod that just came may have none yet.
    #[serde(flatten, serialize_with = "shared")]
    pub detail: Option<Arc<Detail>>,
}

impl PodEntry {
    /// `namespace/name`, or the UID.
    pub fn label(&self) -> String {
        self.name
            .as_ref()
            .map_or_else(|| self.uid.clone(), |name| format!("{}/{}", name.namespace, name.name))
    }

    /// Whether its cgroup has a memory limit; `None`: not known yet.
    pub fn has_memory_limit(&self) -> Option<bool> {
        Some(self.detail.as_ref()?.cgroup.memory.max_bytes? != Max::Unlimited)
    }
}

/// Pods of a class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Count {
    /// Pods.
    pub pods: u64,
    /// Containers, sandboxes too.
    pub containers: u64,
    /// Their memory, of those pods whose memory could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

/// A list of which the first few are shown.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Ranked {
    /// How many there are.
    pub count: u64,
    /// Of how many that are known.
    pub of: u64,
    /// The first few.
    pub top: Vec<Listed>,
}

/// A pod in a list.
#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    /// `namespace/name`, or its UID.
    pub pod: String,
    /// Memory in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Its container that was throttled most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Periods in which its quota was used up, of those in which it wanted to run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttled_percent: Option<f64>,
    /// Its CPU pressure (`some avg60`), which a limit makes on an idle node too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_some_avg60: Option<f64>,
    /// Its memory pressure (`full avg60`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_full_avg60: Option<f64>,
    /// Its I/O pressure (`full avg60`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_full_avg60: Option<f64>,
}

/// A unit of systemd's, or what else has a cgroup in its slice.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Unit {
    /// `containerd.service`.
    pub name: String,
    /// Memory in use, page cache included.
    pub memory_bytes: u64,
}

/// The kubelet or the runtime.
#[derive(Clone, Debug, Serialize)]
pub struct Program {
    /// `kubelet`, `runtime`.
    pub role: &'static str,
    /// Its process' name, as the kernel has it.
    pub name: String,
    /// Its process.
    pub pid: u32,
    /// Its cgroup first, then those above it; without the root.
    pub levels: Vec<Level>,
}

/// A cgroup of a program, or one above it.
#[derive(Clone, Debug, Serialize)]
pub struct Level {
    /// The cgroup.
    pub path: String,
    /// Throttling over the last half minute or more; absent without a quota.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttled: Option<Share>,
    /// Over how long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttled_for_seconds: Option<f64>,
    /// The cgroup's figures.
    #[serde(skip)]
    pub(super) group: Arc<Group>,
}

/// A cgroup whose limit of processes is reached.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AtLimit {
    /// The cgroup whose limit it is.
    pub path: String,
    /// The pod, where it is one's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The program, where it is its unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// Processes and threads in it.
    pub current: Option<u64>,
    /// Its limit.
    pub max: Option<u64>,
    /// Forks refused since the agent looks.
    pub refused: u64,
}

/// Processes killed for want of memory.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Kills {
    /// When it was seen.
    pub at: Timestamp,
    /// `namespace/name`, or the pod's UID.
    pub pod: String,
    /// The container's cgroup, where it was still there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// How many.
    pub processes: u64,
}

/// Containers that came and went, sandboxes too. One that lives for less than a tick may be missed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Churn {
    /// Since the agent looks.
    pub created: u64,
    /// Since the agent looks.
    pub removed: u64,
    /// Within the last minute, or since the agent looks.
    pub created_last_minute: u64,
    /// The same.
    pub removed_last_minute: u64,
}

/// Cgroups that were removed and still hold memory.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Dying {
    /// Living cgroups.
    pub living: u64,
    /// Dying ones.
    pub dying: u64,
    /// Which file says so.
    pub from: &'static str,
}

fn shared<T: Serialize, S: Serializer>(value: &Option<Arc<T>>, serializer: S) -> Result<S::Ok, S::Error> {
    value.as_deref().serialize(serializer)
}

fn each_shared<T: Serialize, S: Serializer>(
    values: &BTreeMap<String, Arc<T>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(values.iter().map(|(name, value)| (name, value.as_ref())))
}

pub(super) fn summary(reading: &Reading) -> String {
    let mode = match reading.mode {
        CgroupMode::V2 => "v2",
        CgroupMode::Hybrid => "v1 and v2 (hybrid)",
        CgroupMode::V1 => "v1",
        CgroupMode::Unknown => "unknown",
    };
    let containers: u64 = reading.qos.values().map(|count| count.containers).sum();
    let mut text = match &reading.kubepods {
        Some(_) => format!("cgroup {mode}, {} pods, {containers} containers", reading.pods.len()),
        None => format!("cgroup {mode}, no kubepods"),
    };
    if reading.without_memory_limit.count > 0 {
        text += &format!(", {} without a memory limit", reading.without_memory_limit.count);
    }
    if !reading.frozen.is_empty() {
        text += &format!(", {} frozen", reading.frozen.len());
    }
    text
}

pub(super) fn pods(reading: &Reading) -> Result<serde_json::Value, serde_json::Error> {
    serde_json::to_value(&reading.pods)
}
