//! Which logs are followed: units of the journal, and files. A container's file is taken by the container's name and by
//! its namespace, since anybody may call a container `etcd`.

use std::path::{Path, PathBuf};

use super::pattern::Programs;
use crate::host::{Host, ReadError};

/// The folder with a folder for each pod (kubelet: `--pod-log-dir` is new in 1.32 and rare).
pub(super) const POD_LOGS: &str = "/var/log/pods";
/// So many files are followed.
const FILES: usize = 48;

/// Units whose lines are read, by what runs in them. One process is all of Kubernetes on k3s, k0s and microk8s.
const UNITS: &[(&str, Programs)] = &[
    ("kubelet.service", Programs::KUBELET),
    ("containerd.service", Programs::RUNTIME),
    ("crio.service", Programs::RUNTIME),
    ("cri-o.service", Programs::RUNTIME),
    ("docker.service", Programs::RUNTIME),
    ("cri-docker.service", Programs::RUNTIME),
    ("cri-dockerd.service", Programs::RUNTIME),
    ("kube-proxy.service", Programs::KUBE_PROXY),
    ("kube-apiserver.service", Programs::API_SERVER),
    ("etcd.service", Programs::ETCD),
    ("flanneld.service", Programs::CNI),
    ("calico-node.service", Programs::CNI),
    ("k3s.service", Programs::ONE_PROCESS),
    ("k3s-agent.service", Programs::ONE_PROCESS),
    ("rke2-server.service", Programs::ONE_PROCESS),
    ("rke2-agent.service", Programs::ONE_PROCESS),
    ("k0scontroller.service", Programs::ONE_PROCESS),
    ("k0sworker.service", Programs::ONE_PROCESS),
    ("snap.microk8s.daemon-kubelite.service", Programs::ONE_PROCESS),
    ("snap.microk8s.daemon-containerd.service", Programs::RUNTIME),
    ("snap.microk8s.daemon-k8s-dqlite.service", Programs::ETCD),
];

/// Containers whose logs are read, by their names in the projects' own manifests.
const CONTAINERS: &[(&str, Programs)] = &[
    ("kube-proxy", Programs::KUBE_PROXY),
    ("etcd", Programs::ETCD),
    ("kube-apiserver", Programs::API_SERVER),
    ("kube-flannel", Programs::CNI),
    ("calico-node", Programs::CNI),
    ("install-cni", Programs::CNI),
    ("cilium-agent", Programs::CNI),
    ("aws-node", Programs::CNI),
    ("aws-eks-nodeagent", Programs::CNI),
    ("antrea-agent", Programs::CNI),
    ("kube-router", Programs::CNI),
    ("kindnet-cni", Programs::CNI),
    ("weave", Programs::CNI),
    ("azure-cns", Programs::CNI),
    ("kube-multus", Programs::CNI),
    ("ovnkube-node", Programs::CNI),
    ("ovnkube-controller", Programs::CNI),
];

/// Where those are the node's own, and not somebody's application.
const NAMESPACES: &[&str] = &[
    "kube-system",
    "kube-flannel",
    "calico-system",
    "cilium",
    "antrea",
    "weave",
    "openshift-etcd",
    "openshift-kube-apiserver",
    "openshift-ovn-kubernetes",
    "openshift-multus",
];

/// Files of programs that write them themselves.
const FILES_OF_PROGRAMS: &[(&str, Programs)] = &[
    ("/var/log/aws-routed-eni/ipamd.log", Programs::CNI),
    ("/var/log/aws-routed-eni/plugin.log", Programs::CNI),
    ("/var/log/calico/cni/cni.log", Programs::CNI),
    ("/var/lib/rancher/rke2/agent/logs/kubelet.log", Programs::KUBELET),
    ("/var/lib/rancher/rke2/agent/containerd/containerd.log", Programs::RUNTIME),
    ("/var/lib/rancher/k3s/agent/containerd/containerd.log", Programs::RUNTIME),
    ("/var/log/kube-proxy.log", Programs::KUBE_PROXY),
    ("/var/log/kubelet.log", Programs::KUBELET),
];

/// A log file that is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LogPlace {
    /// The host's path.
    pub(super) path: PathBuf,
    /// For people: `kube-system/kube-proxy-7xk2p/kube-proxy`, or the path.
    pub(super) unit: String,
    pub(super) programs: Programs,
    /// The runtime writes a prefix before each line.
    pub(super) of_container: bool,
}

/// What runs in this unit of the journal.
pub(super) fn programs_of_unit(unit: &str) -> Option<Programs> {
    UNITS.iter().find(|(name, _)| *name == unit).map(|(_, programs)| *programs)
}

/// The unit of a process, by its cgroup: `/system.slice/kubelet.service`.
pub(super) fn unit_of_cgroup(cgroup: &str) -> Option<&str> {
    cgroup.rsplit('/').find(|part| part.ends_with(".service"))
}

/// The files that are there now, and why the pods' can't be looked for.
pub(super) fn files(host: &Host) -> (Vec<LogPlace>, Option<ReadError>) {
    let mut places: Vec<LogPlace> = FILES_OF_PROGRAMS
        .iter()
        .filter(|(path, _)| host.stat(path).is_ok_and(|stat| stat.is_file))
        .map(|(path, programs)| LogPlace {
            path: path.into(),
            unit: (*path).to_owned(),
            programs: *programs,
            of_container: false,
        })
        .collect();
    let pods = match host.list(POD_LOGS) {
        Ok(pods) => pods,
        Err(error) => return (places, Some(error)),
    };
    let mut refused = None;
    for pod in pods {
        let Some((namespace, name)) =
            pod_of_folder(&pod).filter(|(namespace, _)| NAMESPACES.contains(namespace))
        else {
            continue;
        };
        let folder = Path::new(POD_LOGS).join(&pod);
        // A pod that went in between has none.
        for container in host.list(&folder).unwrap_or_else(|_| Vec::new()) {
            let Some((_, programs)) = CONTAINERS.iter().find(|(known, _)| *known == container) else {
                continue;
            };
            let folder = folder.join(&container);
            let Some(path) = newest_log(host, &folder) else { continue };
            if host.is_dangling_link(&path) {
                let what = "it is a link that leads nowhere from here: mount the folder that it leads to \
                            (/var/lib/docker/containers) at the same path for the agent";
                refused = Some(ReadError::malformed(&path, what));
                continue;
            }
            if places.len() < FILES {
                let unit = format!("{namespace}/{name}/{container}");
                places.push(LogPlace { path, unit, programs: *programs, of_container: true });
            }
        }
    }
    (places, refused)
}

/// `NAMESPACE_NAME_UID` (kubelet, `BuildPodLogsDirectory`): neither of the first two can hold `_`.
pub(super) fn pod_of_folder(folder: &str) -> Option<(&str, &str)> {
    let (namespace, rest) = folder.split_once('_')?;
    let (name, _uid) = rest.split_once('_')?;
    Some((namespace, name))
}

/// `3.log` of a container that was restarted three times; rotated ones are `3.log.20261121-080102`.
fn newest_log(host: &Host, folder: &Path) -> Option<PathBuf> {
    let names = host.list(folder).ok()?;
    let number = |name: &String| name.strip_suffix(".log")?.parse::<u32>().ok();
    let newest = names.iter().filter_map(number).max()?;
    Some(folder.join(format!("{newest}.log")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Places;
    use nodewhy_clock::Clock;

    #[test]
    fn a_pods_folder_is_taken_apart() {
        let folder = "kube-system_etcd-node-1_f5f41fb4cabbb63e12dc36a7aa8a3e4b";
        assert_eq!(pod_of_folder(folder), Some(("kube-system", "etcd-node-1")));
        assert_eq!(pod_of_folder("kube-system"), None);
        assert_eq!(unit_of_cgroup("/../../system.slice/kubelet.service"), Some("kubelet.service"));
        assert_eq!(unit_of_cgroup("/kubepods.slice/x.scope"), None);
    }

    #[test]
    fn only_the_nodes_own_containers_are_read_and_of_each_the_newest_file() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), Clock::system(), Places::default());
        assert!(matches!(files(&host), (places, Some(ReadError::NotFound { .. })) if places.is_empty()));
        let put = |path: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        };
        put("var/log/pods/kube-system_kube-proxy-x_1/kube-proxy/0.log");
        put("var/log/pods/kube-system_kube-proxy-x_1/kube-proxy/2.log");
        put("var/log/pods/kube-system_kube-proxy-x_1/kube-proxy/2.log.20261121-080102");
        put("var/log/pods/default_app_2/etcd/0.log");
        put("var/log/pods/kube-system_coredns_3/coredns/0.log");
        put("var/log/aws-routed-eni/ipamd.log");
        let (places, error) = files(&host);
        assert!(error.is_none());
        let seen: Vec<_> =
            places.iter().map(|place| (place.unit.as_str(), place.path.to_str().unwrap())).collect();
        assert_eq!(
            seen,
            [
                ("/var/log/aws-routed-eni/ipamd.log", "/var/log/aws-routed-eni/ipamd.log"),
                (
                    "kube-system/kube-proxy-x/kube-proxy",
                    "/var/log/pods/kube-system_kube-proxy-x_1/kube-proxy/2.log"
                ),
            ]
        );
    }
}
