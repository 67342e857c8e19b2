//! Names of pods: by the runtime, else by the folders of their logs, so that a dead runtime takes no name away.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::host::Host;
use crate::host::known::{PodName, Pods};

const LOGS: &str = "/var/log/pods";
/// A pod without a folder is not looked for at every tick.
const EVERY: Duration = Duration::from_secs(30);

/// What the folders said.
#[derive(Debug, Default)]
pub(super) struct Names {
    folders: BTreeMap<String, PodName>,
    listed: Option<Duration>,
}

impl Names {
    pub(super) fn name(
        &mut self,
        host: &Host,
        known: Option<&Pods>,
        uid: &str,
        now: Duration,
    ) -> Option<PodName> {
        if let Some(name) = known.and_then(|known| known.names.get(uid)) {
            return Some(name.clone());
        }
        if !self.folders.contains_key(uid)
            && self.listed.is_none_or(|listed| now.saturating_sub(listed) >= EVERY)
        {
            self.listed = Some(now);
            // Without the folder there are no names, and pods go by their UIDs.
            self.folders = host.list(LOGS).map(|names| folders(&names)).unwrap_or_default();
        }
        self.folders.get(uid).cloned()
    }
}

/// kubelet (pkg/kubelet/kuberuntime/helpers.go, BuildPodLogsDirectory): `NAMESPACE_NAME_UID`. No name of Kubernetes has
/// an underscore.
fn folders(names: &[String]) -> BTreeMap<String, PodName> {
    let parts = |folder: &String| {
        let mut parts = folder.split('_');
        let parts = (parts.next()?, parts.next()?, parts.next()?, parts.next());
        match parts {
            (namespace, name, uid, None) if !uid.is_empty() && !name.is_empty() => {
                Some((uid.to_owned(), PodName { namespace: namespace.to_owned(), name: name.to_owned() }))
            }
            _ => None,
        }
    };
    names.iter().filter_map(parts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_name_their_pods_and_other_folders_nobody() {
        // The log path of the recorded pod (kubelet 1.32.6, its pods.json) and two that are none.
        let names = [
            "default_lab-pod-1_d8c40446-2452-455f-917f-a0fb0b1e3d2c".to_owned(),
            "lost+found".to_owned(),
            "a_b_c_d".to_owned(),
        ];
        let folders = folders(&names);
        assert_eq!(folders.len(), 1);
        let name = &folders["d8c40446-2452-455f-917f-a0fb0b1e3d2c"];
        assert_eq!((name.namespace.as_str(), name.name.as_str()), ("default", "lab-pod-1"));
    }

    #[test]
    fn the_runtimes_word_goes_before_the_folders() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("var/log/pods/default_old_u1")).unwrap();
        let host = Host::new(root.path(), nodewhy_clock::Clock::system(), crate::host::Places::default());
        let mut names = Names::default();
        let now = Duration::from_secs(1000);
        assert_eq!(names.name(&host, None, "u1", now).unwrap().name, "old");
        let name = PodName { namespace: "x".to_owned(), name: "new".to_owned() };
        let known = Pods { names: [("u1".to_owned(), name)].into(), ..Pods::default() };
        assert_eq!(names.name(&host, Some(&known), "u1", now).unwrap().name, "new");
        std::fs::create_dir_all(root.path().join("var/log/pods/default_late_u2")).unwrap();
        assert_eq!(names.name(&host, None, "u2", now), None, "listed just now");
        assert_eq!(names.name(&host, None, "u2", now + EVERY).unwrap().name, "late");
    }
}
