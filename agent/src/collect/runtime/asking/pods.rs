//! The runtime's two lists, sorted: the pods' names for all collectors, and whom to ask one by one.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cri::{Container, PodSandbox};
use crate::host::known::{PodName, Pods};

/// `SANDBOX_READY`.
const READY: i32 = 0;
/// `CONTAINER_RUNNING`.
const RUNNING: i32 = 1;

/// One that is asked for its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::collect::runtime) struct Target {
    /// Whether it is a sandbox; else a container.
    pub(super) is_sandbox: bool,
    pub(super) id: String,
    /// `namespace/name`, or the pod's UID.
    pub(super) pod: String,
    pub(super) container: Option<String>,
}

/// All of them, shared: a board is copied often.
pub(in crate::collect::runtime) type Targets = Arc<Vec<Target>>;

/// Sorts what was listed. Names come from the kubelet's labels; from the metadata where another client made the pod.
pub(super) fn sorted(sandboxes: &[PodSandbox], containers: &[Container]) -> (Pods, Targets) {
    let mut pods = Pods::default();
    let mut targets = Vec::new();
    let mut shown = BTreeMap::new();
    for sandbox in sandboxes {
        let label = |name: &str| sandbox.labels.get(name).filter(|value| !value.is_empty()).cloned();
        let of = sandbox.metadata.clone().unwrap_or_default();
        let told = |text: String| Some(text).filter(|text| !text.is_empty());
        let Some(uid) = label("io.kubernetes.pod.uid").or_else(|| told(of.uid)) else { continue };
        let name = label("io.kubernetes.pod.name").or_else(|| told(of.name));
        let namespace = label("io.kubernetes.pod.namespace").or_else(|| told(of.namespace));
        let is_ready = sandbox.state == READY;
        let pod = match (&namespace, &name) {
            (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
            _ => uid.clone(),
        };
        if let (Some(namespace), Some(name)) = (namespace, name) {
            pods.names.insert(uid.clone(), PodName { namespace, name });
        }
        if is_ready {
            let id = sandbox.id.clone();
            targets.push(Target { is_sandbox: true, id, pod: pod.clone(), container: None });
        }
        shown.insert(sandbox.id.as_str(), (uid.clone(), pod));
        pods.sandboxes.insert(sandbox.id.clone(), (uid, is_ready));
    }
    for container in containers {
        let label = |name: &str| container.labels.get(name).filter(|value| !value.is_empty()).cloned();
        let sandbox = shown.get(container.pod_sandbox_id.as_str());
        let uid = label("io.kubernetes.pod.uid").or_else(|| sandbox.map(|(uid, _)| uid.clone()));
        let named = || container.metadata.as_ref().map(|of| of.name.clone()).filter(|name| !name.is_empty());
        let name = label("io.kubernetes.container.name").or_else(named);
        if container.state == RUNNING && !container.id.is_empty() {
            let pod = sandbox.map(|(_, pod)| pod.clone()).or_else(|| uid.clone());
            targets.push(Target {
                is_sandbox: false,
                id: container.id.clone(),
                pod: pod.unwrap_or_else(|| container.pod_sandbox_id.clone()),
                container: name.clone(),
            });
        }
        if let (Some(uid), Some(name)) = (uid, name) {
            pods.containers.insert(container.id.clone(), (name, uid));
        }
    }
    (pods, Arc::new(targets))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::cri::{ContainerMetadata, PodSandboxMetadata};

    // The labels as `crictl pods -o json` shows them of a kubelet's pod (kubelet 1.32.6, containerd 1.6.20).
    fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn names_come_from_labels_and_else_from_the_metadata() {
        let kubelets = PodSandbox {
            id: "s1".to_owned(),
            state: 0,
            labels: labels(&[
                ("io.kubernetes.pod.name", "web-1"),
                ("io.kubernetes.pod.namespace", "default"),
                ("io.kubernetes.pod.uid", "d8c40446-2452-455f-917f-a0fb0b1e3d2c"),
            ]),
            ..Default::default()
        };
        let others = PodSandbox {
            id: "s2".to_owned(),
            state: 1,
            metadata: Some(PodSandboxMetadata {
                name: "n".to_owned(),
                uid: "u2".to_owned(),
                namespace: String::new(),
            }),
            ..Default::default()
        };
        let container = |id: &str, sandbox: &str, state| Container {
            id: id.to_owned(),
            pod_sandbox_id: sandbox.to_owned(),
            metadata: Some(ContainerMetadata { name: "c".to_owned() }),
            state,
            labels: HashMap::new(),
        };
        let containers = [container("c1", "s1", 1), container("c2", "s2", 2), container("c3", "gone", 1)];
        let (pods, targets) = sorted(&[kubelets, others, PodSandbox::default()], &containers);
        let uid = "d8c40446-2452-455f-917f-a0fb0b1e3d2c";
        assert_eq!(pods.names.len(), 1, "a name without a namespace is none");
        assert_eq!(pods.names[uid].name, "web-1");
        assert_eq!(pods.containers["c1"], ("c".to_owned(), uid.to_owned()));
        assert_eq!(pods.containers["c2"].1, "u2");
        assert!(!pods.containers.contains_key("c3"), "nobody knows whose it is");
        assert_eq!(pods.sandboxes["s2"], ("u2".to_owned(), false));
        let asked: Vec<_> = targets.iter().map(|target| (target.id.as_str(), target.pod.as_str())).collect();
        assert_eq!(asked, [("s1", "default/web-1"), ("c1", "default/web-1"), ("c3", "gone")]);
    }
}
