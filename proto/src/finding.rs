use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How bad a finding is for the node, apart from how sure it is.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth knowing; the node is well.
    Info,
    /// The node is not well, or soon will not be.
    Warning,
    /// The node cannot do its work, or is about to leave Ready.
    Critical,
    /// A severity that this reader does not know.
    #[serde(other)]
    Unknown,
}

/// What kind of thing a subject is.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubjectKind {
    /// The node as a whole.
    Node,
    /// The kubelet.
    Kubelet,
    /// The container runtime.
    Runtime,
    /// The network plugin: its configuration, its programs.
    Cni,
    /// A pod, by `namespace/name`, or by UID where no name is known.
    Pod,
    /// A container, by its id.
    Container,
    /// A process, by `name[pid]`.
    Process,
    /// A cgroup, by its absolute path.
    Cgroup,
    /// The API server, as seen from where the evidence was taken.
    ApiServer,
    /// The whole cluster.
    Cluster,
    /// A source of the agent's, by its collector's name: reading it hangs.
    Source,
    /// A block device, by the kernel's name.
    Device,
    /// A mounted file system, by its mount point.
    Filesystem,
    /// A network interface, by its name.
    Interface,
    /// A unit of systemd's, by its name.
    Unit,
    /// A program of the control plane on this node: `etcd`, `kube-apiserver`.
    ControlPlane,
    /// A kind that this reader does not know.
    #[serde(other)]
    Unknown,
}

/// What a finding, an event or a cause is about.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Subject {
    /// What kind of thing.
    pub kind: SubjectKind,
    /// Which one. Empty for the node itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
}

impl Subject {
    /// A subject of this kind and name.
    pub fn new(kind: SubjectKind, name: impl Into<String>) -> Subject {
        Subject { kind, name: name.into() }
    }

    /// The node as a whole.
    pub fn node() -> Subject {
        Subject { kind: SubjectKind::Node, name: String::new() }
    }
}

/// Where a threshold comes from. A heuristic is ours, is marked as such, and can be set.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Read from the kubelet's configuration file or command line.
    KubeletConfig,
    /// The documented default of the kubelet or the kernel.
    DocumentedDefault,
    /// nodewhy's own judgement.
    Heuristic,
    /// Set in nodewhy's configuration.
    Setting,
    /// An origin that this reader does not know.
    #[serde(other)]
    Unknown,
}

/// The limit that a value was held against.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Threshold {
    /// In the evidence's unit.
    pub value: f64,
    /// Where it comes from.
    pub origin: Origin,
}

/// One fact that a person may check: what was seen, where, when.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// For people, with figures and units: `memory.available 82.1 MiB, below 100 MiB`.
    pub text: String,
    /// Where it was read: `/dev/kmsg 48213`, `CRI Status on /run/containerd/containerd.sock`, `Lease worker-7`.
    pub source: String,
    /// When it was so, by the corrected clock of the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    /// The figure itself, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// The figure's unit: `bytes`, `seconds`, `ratio`, `percent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// What the figure was held against.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<Threshold>,
}

impl Evidence {
    /// Text and source; the rest is added with the `with_` functions.
    pub fn new(text: impl Into<String>, source: impl Into<String>) -> Evidence {
        Evidence {
            text: text.into(),
            source: source.into(),
            at: None,
            value: None,
            unit: None,
            threshold: None,
        }
    }

    /// Adds when it was so.
    #[must_use]
    pub fn with_time(mut self, at: Timestamp) -> Evidence {
        self.at = Some(at);
        self
    }

    /// Adds the figure and its unit.
    #[must_use]
    pub fn with_value(mut self, value: f64, unit: &str) -> Evidence {
        self.value = Some(value);
        self.unit = Some(unit.to_owned());
        self
    }

    /// Adds what the figure was held against.
    #[must_use]
    pub fn with_threshold(mut self, value: f64, origin: Origin) -> Evidence {
        self.threshold = Some(Threshold { value, origin });
        self
    }
}

/// A named abnormal state of a subject, with a beginning, perhaps an end, and evidence.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// This one's identity, stable over its life: `runtime_hung/runtime:/run/containerd/containerd.sock@17…`.
    pub id: String,
    /// Which abnormal state: `runtime_hung`. A stable name, part of the API.
    pub finding: String,
    /// Which collector says so.
    pub collector: String,
    /// What it is about.
    pub subject: Subject,
    /// How bad.
    pub severity: Severity,
    /// When the state began, by the fault's own clock where the kernel or the runtime tells it.
    pub began: Timestamp,
    /// When nodewhy knew: `began` and what it took to be sure.
    pub noticed: Timestamp,
    /// When the state ended. `None` while it holds, or while its source can't be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
    /// One line for people.
    pub summary: String,
    /// Why it may be believed.
    pub evidence: Vec<Evidence>,
}

impl Finding {
    /// Whether the state holds still, as far as is known.
    pub fn is_active(&self) -> bool {
        self.ended.is_none()
    }

    /// Whether it held at some instant of `from..=to`.
    pub fn held_within(&self, from: Timestamp, to: Timestamp) -> bool {
        self.began <= to && self.ended.is_none_or(|ended| ended >= from)
    }
}
