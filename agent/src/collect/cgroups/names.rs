//! Names of pods: by the runtime, else by the folders of their logs, so that a dead runtime takes no name away.
//!
//! The folder of logs is on a disk, which may hang: it is listed on a thread of its own, one listing at a time, and a
//! name that it gives comes one tick later.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use crate::host::known::{PodName, Pods};
use crate::host::{Host, ReadError};

const LOGS: &str = "/var/log/pods";
/// A pod without a folder is not looked for at every tick.
const EVERY: Duration = Duration::from_secs(30);
/// A listing that takes longer hangs.
const HANGS: Duration = Duration::from_secs(10);
/// A listing needs no more.
const STACK_BYTES: usize = 128 * 1024;

type Listing = Result<Vec<String>, ReadError>;

/// What the folders said.
#[derive(Debug, Default)]
pub(super) struct Names {
    folders: BTreeMap<String, PodName>,
    lister: Option<(Sender<()>, Receiver<Listing>)>,
    asked: Option<Duration>,
    in_flight: bool,
    error: Option<String>,
}

impl Names {
    /// A pod's name. One that nobody knows makes the folder be listed for the next time.
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
        let name = self.folders.get(uid).cloned();
        let is_due = self.asked.is_none_or(|asked| now.saturating_sub(asked) >= EVERY);
        if name.is_none() && is_due && !self.in_flight {
            self.asked = Some(now);
            self.in_flight = self.ask(host);
        }
        name
    }

    /// Takes a listing over that is ready. Says why names may be missing.
    pub(super) fn take(&mut self, now: Duration) -> Option<String> {
        if let Some((_, listings)) = &self.lister
            && let Ok(listing) = listings.try_recv()
        {
            self.in_flight = false;
            match listing {
                Ok(names) => (self.folders, self.error) = (folders(&names), None),
                // Names that are known stay.
                Err(error) => self.error = Some(format!("names of pods: {error}")),
            }
        }
        let since = self.asked.filter(|_| self.in_flight).map(|asked| now.saturating_sub(asked));
        match since {
            Some(since) if since >= HANGS => {
                Some(format!("names of pods: listing {LOGS} hangs for {} s", since.as_secs()))
            }
            _ => self.error.clone(),
        }
    }

    /// Whether a listing is under way. The thread ends with the collector.
    fn ask(&mut self, host: &Host) -> bool {
        if self.lister.is_none() {
            let (ask, asks) = mpsc::channel::<()>();
            let (give, listings) = mpsc::channel();
            let host = host.clone();
            let started =
                std::thread::Builder::new().name("pod-logs".to_owned()).stack_size(STACK_BYTES).spawn(
                    move || asks.iter().take_while(|()| give.send(host.list(LOGS)).is_ok()).for_each(drop),
                );
            match started {
                Ok(_) => self.lister = Some((ask, listings)),
                Err(error) => self.error = Some(format!("names of pods: no thread to list {LOGS}: {error}")),
            }
        }
        self.lister.as_ref().is_some_and(|(ask, _)| ask.send(()).is_ok())
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

    /// Asks until the listing is there.
    fn name(names: &mut Names, host: &Host, uid: &str, now: Duration) -> Option<PodName> {
        names.name(host, None, uid, now);
        for _ in 0..500 {
            if !names.in_flight {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
            names.take(now);
        }
        names.name(host, None, uid, now)
    }

    #[test]
    fn folders_name_their_pods_and_other_folders_nobody() {
        // The kubelet's form, with the recorded pod's UID (kubelet 1.32.6), and two that are none.
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
        assert_eq!(name(&mut names, &host, "u1", now).unwrap().name, "old");
        let known = PodName { namespace: "x".to_owned(), name: "new".to_owned() };
        let known = Pods { names: [("u1".to_owned(), known)].into(), ..Pods::default() };
        assert_eq!(names.name(&host, Some(&known), "u1", now).unwrap().name, "new");
        std::fs::create_dir_all(root.path().join("var/log/pods/default_late_u2")).unwrap();
        assert_eq!(name(&mut names, &host, "u2", now), None, "listed just now");
        assert_eq!(name(&mut names, &host, "u2", now + EVERY).unwrap().name, "late");
        // Without the folder what is known stays, and why nothing new comes is told.
        std::fs::remove_dir_all(root.path().join("var/log/pods")).unwrap();
        assert_eq!(name(&mut names, &host, "u3", now + EVERY * 2), None);
        assert!(names.take(now + EVERY * 2).unwrap().contains("/var/log/pods does not exist"));
        assert_eq!(name(&mut names, &host, "u2", now + EVERY * 3).unwrap().name, "late");
    }

    #[test]
    fn a_listing_that_hangs_is_told_and_is_the_only_one() {
        let mut names = Names { asked: Some(Duration::ZERO), in_flight: true, ..Names::default() };
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), nodewhy_clock::Clock::system(), crate::host::Places::default());
        assert_eq!(names.name(&host, None, "u1", Duration::from_secs(95)), None);
        assert!(names.lister.is_none(), "no second one was begun");
        assert_eq!(names.take(Duration::from_secs(9)), None);
        assert!(names.take(Duration::from_secs(95)).unwrap().ends_with("hangs for 95 s"));
    }
}
