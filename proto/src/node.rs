use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Who a node is. Names and addresses come back: another UID or machine id under an old name is another node.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NodeId {
    /// The Node object's name, or the host's name where there is no cluster.
    pub name: String,
    /// The Node object's UID. Only the API server knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// `/etc/machine-id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// `/proc/sys/kernel/random/boot_id`: another one means that the node was restarted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
}

/// How cgroups are mounted, which decides what can be read of pods.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CgroupMode {
    /// cgroup2 at the root, with every controller.
    V2,
    /// v1 controllers, with cgroup2 mounted beside them.
    Hybrid,
    /// v1 controllers only.
    V1,
    /// A mode that this reader does not know.
    #[serde(other)]
    Unknown,
}

/// The agent's program, as it runs.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentInfo {
    /// The agent's version.
    pub version: String,
    /// When this agent was started.
    pub started: Timestamp,
    /// The folder that it reads the host from (`/`, or `/host` in a container).
    pub host_root: String,
    /// Whether its own pages stay in memory while the node thrashes; absent where that was not tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_locked: Option<MemoryLock>,
}

/// Whether a program's memory is locked (`mlockall`).
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryLock {
    /// How much of it.
    pub locked: Locked,
    /// Why not all of it, and which right is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// How much of a program's memory is locked.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Locked {
    /// All of it, and what it will yet get.
    All,
    /// What was there at its start: its code and data. Stacks and heap are not, which matters on a node with swap.
    Program,
    /// Nothing.
    No,
    /// A word that this reader does not know.
    #[serde(other)]
    Unknown,
}

/// `/api/v1/node`: which node this is, and what runs on it. A field is absent when it could not be read.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Name, machine id, boot id.
    pub id: NodeId,
    /// The node's wall clock when this was written, for the reader to measure the offset.
    pub now: Timestamp,
    /// Seconds since boot, suspended time included (CLOCK_BOOTTIME).
    pub uptime_seconds: f64,
    /// The kernel's release (`uname -r`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// `PRETTY_NAME` of `/etc/os-release`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// How cgroups are mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroups: Option<CgroupMode>,
    /// Logical processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// `MemTotal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_total_bytes: Option<u64>,
    /// What the runtime says that it is: `containerd 1.6.20`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// What is known of the kubelet: its process, or that there is none here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubelet: Option<String>,
    /// Which distribution of Kubernetes this node is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distribution: Option<NodeDistribution>,
    /// Whether the node is a container (kind): what the kernel says is then of all nodes that share it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_kernel: Option<bool>,
    /// By which way the kernel log is read: `/dev/kmsg`, `handed descriptor`, `syslog(2)`, `journal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_log: Option<String>,
    /// The agent itself.
    pub agent: AgentInfo,
}

/// A distribution of Kubernetes.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDistribution {
    /// `kubeadm`, `k3s`, `eks`, …
    pub name: String,
    /// Which rule found it.
    pub found_by: String,
}
