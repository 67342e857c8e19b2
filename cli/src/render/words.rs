//! The contract's words as people say them.

use nodewhy_proto::{Origin, Subject, SubjectKind};

/// `the node`, `the container runtime /run/containerd/containerd.sock`.
pub fn subject(subject: &Subject) -> String {
    let kind = match subject.kind {
        SubjectKind::Node => "the node",
        SubjectKind::Kubelet => "the kubelet",
        SubjectKind::Runtime => "the container runtime",
        SubjectKind::Cni => "the network plugin",
        SubjectKind::Pod => "pod",
        SubjectKind::Container => "container",
        SubjectKind::Process => "process",
        SubjectKind::Cgroup => "cgroup",
        SubjectKind::ApiServer => "the API server",
        SubjectKind::Cluster => "the cluster",
        SubjectKind::Device => "device",
        SubjectKind::Filesystem => "file system",
        SubjectKind::Interface => "network interface",
        SubjectKind::Unit => "unit",
        SubjectKind::ControlPlane => "this node's",
        SubjectKind::Source => "nodewhy's own source",
        SubjectKind::Unknown => "something that this version does not know",
    };
    if subject.name.is_empty() { kind.to_owned() } else { format!("{kind} {}", subject.name) }
}

/// Whose limit it is.
pub fn origin(origin: Origin) -> &'static str {
    match origin {
        Origin::KubeletConfig => "the kubelet's configuration",
        Origin::DocumentedDefault => "a documented default",
        Origin::Heuristic => "nodewhy's own judgement",
        Origin::Setting => "nodewhy's configuration",
        Origin::Unknown => "of an origin that this version does not know",
    }
}
