use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Finding, Outcome};

/// What a process is to the node. On one-process distributions (`k3s`, `kubelite`) the kubelet is that process.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The kubelet.
    Kubelet,
    /// containerd, CRI-O, or a shim of theirs.
    Runtime,
    /// A network plugin or its agent.
    Cni,
    /// kube-proxy.
    KubeProxy,
    /// A process of a pod.
    Pod,
    /// Any other process of the node.
    Other,
    /// A role that this reader does not know.
    #[serde(other)]
    Unknown,
}

/// Whose memory had run out.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OomScope {
    /// The whole node's.
    Global,
    /// A cgroup's, at its limit.
    Memcg,
    /// The report was lost (kills came back to back): only the "Killed process" line is there.
    #[serde(other)]
    Unknown,
}

/// A row of the kernel's task table at an OOM kill.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OomTask {
    /// Process id.
    pub pid: u32,
    /// The kernel's name for it, cut at 15 bytes.
    pub name: String,
    /// Resident memory.
    pub rss_bytes: u64,
    /// −1000 means that the kernel may never choose it.
    pub oom_score_adj: i32,
}

/// One OOM kill, joined from the kernel's several lines.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OomKill {
    /// Whose memory had run out.
    pub scope: OomScope,
    /// The kernel's own word: `CONSTRAINT_MEMCG`, `CONSTRAINT_NONE`, …; absent when the report was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constraint: Option<String>,
    /// The cgroup whose limit was hit (`oom_memcg`). It is not the victim's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_cgroup: Option<String>,
    /// The victim's cgroup (`task_memcg`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub victim_cgroup: Option<String>,
    /// The victim.
    pub pid: u32,
    /// The victim's name, cut at 15 bytes by the kernel.
    pub name: String,
    /// What the victim is to the node.
    pub role: Role,
    /// The pod's UID, from the victim's cgroup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// The container's id, from the victim's cgroup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
    /// The victim's resident memory (anonymous, file and shared) by the "Killed process" line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rss_bytes: Option<u64>,
    /// The victim's `oom_score_adj`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// Whose allocation asked for the kill. Not the victim, and not necessarily the biggest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger: Option<String>,
    /// The other processes that died with it (`memory.oom.group`): one kill, not several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub group: Vec<OomTask>,
    /// The biggest processes in the kernel's task table, biggest first. The culprit can be in no kill line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub biggest: Vec<OomTask>,
    /// The kernel's own figures of memory at that moment, in bytes: of the node (`free`, `active_anon`, `shmem`, …) where
    /// the node's ran out, of the cgroup (`memory_usage`, `memory_limit`, `swap_usage`) where a limit was hit.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub memory_bytes: BTreeMap<String, u64>,
    /// Whether `oom_reaper` got the victim's memory back; absent until it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reaped: Option<bool>,
    /// Where `victim_cgroup` comes from if not from the kernel's report, and what is missing for being sure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attributed_by: Option<String>,
    /// The kernel log's sequence number of the deciding line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kmsg_seq: Option<u64>,
}

/// A kernel message that matters, by its pattern.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelMessage {
    /// Which pattern: `hung_task`, `conntrack_table_full`, `fs_remounted_readonly`, …
    pub pattern: String,
    /// What the pattern names: `task`, `pid`, `device`, `seconds`, …
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, String>,
    /// The line itself.
    pub line: String,
    /// The kernel log's sequence number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kmsg_seq: Option<u64>,
    /// How many alike lines this one stands for: a storm is counted, not repeated.
    #[serde(default = "one")]
    pub count: u64,
}

fn one() -> u64 {
    1
}

/// A line of a program's log that matters, by its pattern.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogLine {
    /// Which pattern: `pleg_not_healthy`, `runtime_call_deadline`, `cni_plugin_not_found`, …
    pub pattern: String,
    /// Whose log: the systemd unit (`kubelet.service`), or `namespace/pod/container`, or the file.
    pub unit: String,
    /// What the pattern names: `seconds`, `socket`, `error`, …
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, String>,
    /// The message, as far as it matters.
    pub line: String,
    /// How many alike lines this one stands for: a storm is counted, not repeated.
    #[serde(default = "one")]
    pub count: u64,
}

/// Something of the node was changed: onset against a change decides more cases than any metric.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// What kind of thing: `kernel`, `package`, `binary`, `configuration`, `certificate`.
    pub what: String,
    /// Which: the package's name, the file's path, the kernel's release.
    pub name: String,
    /// What it was before; absent where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// What it is now; absent where it was removed or has no version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// A process that matters began or ended.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessChange {
    /// What it is to the node.
    pub role: Role,
    /// Its name.
    pub name: String,
    /// Its id.
    pub pid: u32,
    /// For people: how it ended or what is known of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// A hole in a stream: what was asked for is no longer kept.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    /// The cursor that was asked for.
    pub from: String,
    /// The cursor of the first event that follows.
    pub to: String,
    /// How many events are missing; `None` when nobody can know (the agent was restarted).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

/// What happened.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EventBody {
    /// The kernel killed for want of memory.
    OomKill(OomKill),
    /// The kernel said something that matters.
    KernelMessage(KernelMessage),
    /// A program's log said something that matters.
    LogLine(LogLine),
    /// Something of the node was changed.
    Changed(Change),
    /// A process that matters began.
    ProcessStarted(ProcessChange),
    /// A process that matters ended.
    ProcessExited(ProcessChange),
    /// A finding began (its hold is over).
    FindingBegan {
        /// As it is now.
        finding: Finding,
    },
    /// A finding changed: severity, summary or evidence.
    FindingChanged {
        /// As it is now.
        finding: Finding,
    },
    /// A finding ended.
    FindingEnded {
        /// As it was at its end.
        finding: Finding,
    },
    /// A collector's outcome changed.
    OutcomeChanged {
        /// Which collector.
        collector: String,
        /// Its outcome from now on.
        result: Outcome,
    },
    /// The wall clock was stepped.
    ClockStepped {
        /// How far, in seconds; backwards is negative.
        seconds: f64,
    },
    /// Events are missing here.
    Gap(Gap),
    /// A kind that this reader does not know.
    #[serde(other)]
    Unknown,
}

/// Something that happened at an instant.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The same happening has the same id however often it is told: `BOOT/kmsg/48213`. Readers drop repeats.
    pub id: String,
    /// Where the stream can be taken up again; opaque. The server-sent event's `id:`.
    pub cursor: String,
    /// When, by the node's wall clock; a kernel line's own time.
    pub at: Timestamp,
    /// Seconds since boot (CLOCK_BOOTTIME), which no clock step moves.
    pub boot_seconds: f64,
    /// Which boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// Which collector, or `agent`.
    pub source: String,
    /// What.
    #[serde(flatten)]
    pub body: EventBody,
}
