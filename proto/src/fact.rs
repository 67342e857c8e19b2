use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A condition's status. `Unknown` is written by the controller-manager, `False` by the kubelet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ConditionStatus {
    /// Holds.
    True,
    /// Does not hold.
    False,
    /// Nobody has said for too long.
    #[serde(other)]
    Unknown,
}

/// A Node's condition, as the API server has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// `Ready`, `MemoryPressure`, `DiskPressure`, `PIDPressure`, `NetworkUnavailable`, or another's own.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its status.
    pub status: ConditionStatus,
    /// `KubeletNotReady`, `NodeStatusUnknown`, …
    #[serde(default)]
    pub reason: String,
    /// For people; match substrings, never split at commas.
    #[serde(default)]
    pub message: String,
    /// When the status changed, by the writer's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition: Option<Timestamp>,
}

/// A node's Lease in kube-node-lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// `spec.renewTime`, by the node's clock.
    pub renew_time: Timestamp,
    /// `spec.leaseDurationSeconds`.
    pub duration_seconds: u32,
}

/// What the API server said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum FactBody {
    /// A condition is new, or its status, reason or message changed.
    Condition(Condition),
    /// The Lease was renewed; only the newest is kept in a case.
    Lease(Lease),
    /// The Node object was deleted.
    NodeDeleted,
    /// The Node object is there; told once, with what it says of itself.
    NodeSeen {
        /// The Node's UID.
        uid: String,
        /// `status.nodeInfo.bootID`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        boot_id: Option<String>,
        /// `status.nodeInfo.kubeletVersion`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        kubelet_version: Option<String>,
    },
    /// An Event on the node.
    Event {
        /// `SystemOOM`, `NodeNotReady`, `Rebooted`, …
        reason: String,
        /// Its message.
        message: String,
        /// Who wrote it: `kubelet`, `node-controller`, …
        reporter: String,
        /// How often.
        count: u32,
    },
    /// A kind that this reader does not know.
    #[serde(other)]
    Unknown,
}

/// One thing that the API server said of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// When the aggregator heard it, by the aggregator's clock.
    pub observed: Timestamp,
    /// Where it stands: `Node worker-7`, `Lease worker-7`, `Event worker-7.18ea…`.
    pub source: String,
    /// What.
    #[serde(flatten)]
    pub body: FactBody,
}
