//! In which cgroup processes were seen: the kernel drops the report of a kill when kills come back to back, and a
//! victim's own cgroup can't be asked for any more.
//!
//! A process is read once, when it is new; all of /proc is only listed. So it costs little however many there are, and
//! what lived shorter than the time between two looks is not known.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::host::Host;

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// A process that is gone is forgotten no sooner.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);
/// New processes a look; the rest has its turn in the next. A node's first looks take some time.
const NEW_A_LOOK: usize = 500;
/// So many are remembered.
const MOST: usize = 20_000;

/// Where processes were seen.
#[derive(Debug, Default)]
pub(super) struct Cgroups {
    seen: BTreeMap<u32, Seen>,
    looked: Option<Duration>,
}

#[derive(Clone, Debug)]
struct Seen {
    name: String,
    cgroup: Arc<str>,
    /// Since boot.
    at: Duration,
    /// It was not there any more: who has its id now is another.
    gone: bool,
}

impl Cgroups {
    /// The cgroup of the process that had this id and name at that time since boot. One that was seen later only is
    /// another of the same id.
    pub(super) fn of(&self, pid: u32, name: &str, killed: Duration) -> Option<Arc<str>> {
        let seen = self.seen.get(&pid).filter(|seen| seen.name == name && seen.at <= killed)?;
        Some(seen.cgroup.clone())
    }

    /// Looks for new processes, if it is time to; those that are gone are forgotten one look after.
    pub(super) fn look(&mut self, host: &Host, now: Duration) {
        if self.looked.is_some_and(|looked| now.saturating_sub(looked) < LOOK_EVERY) {
            return;
        }
        self.looked = Some(now);
        // Not to be listed: then nothing is known, and a kill without its report stays so.
        let Ok(pids) = host.pids() else { return };
        self.seen.retain(|pid, seen| {
            let had_gone = seen.gone;
            seen.gone |= pids.binary_search(pid).is_err();
            // It may have been killed since the last look, and its line is not read yet.
            !had_gone || now.saturating_sub(seen.at) <= FORGOTTEN_AFTER
        });
        let mut taken = 0;
        for pid in pids {
            if taken == NEW_A_LOOK || self.seen.len() >= MOST {
                break;
            }
            if self.seen.get(&pid).is_some_and(|seen| !seen.gone) {
                continue;
            }
            taken += 1;
            if let Some(seen) = read(host, pid, now) {
                self.seen.insert(pid, seen);
            }
        }
    }

    /// Takes a process as seen.
    #[cfg(test)]
    pub(super) fn saw(&mut self, pid: u32, name: &str, cgroup: &str, at: Duration) {
        self.seen.insert(pid, Seen { name: name.to_owned(), cgroup: cgroup.into(), at, gone: false });
    }
}

fn read(host: &Host, pid: u32, now: Duration) -> Option<Seen> {
    let name = host.process_name(pid).ok()??;
    // Of v1's many hierarchies the memory's can't be told here: they have the same path for a pod.
    let cgroups = host.process_cgroups(pid).ok()??;
    let cgroup = cgroups.iter().find(|path| path.contains("kubepods")).or(cgroups.last())?;
    // Beside the agent's own cgroup namespace a path begins with `/..`.
    let mut cgroup = cgroup.as_str();
    while let Some(rest) = cgroup.strip_prefix("/..") {
        cgroup = rest;
    }
    (!cgroup.is_empty()).then(|| Seen { name, cgroup: cgroup.into(), at: now, gone: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Places;
    use nodewhy_clock::Clock;

    #[test]
    fn this_machines_own_processes_are_seen_and_one_of_the_same_id_later_is_another() {
        let host = Host::new("/", Clock::system(), Places::default());
        let mut cgroups = Cgroups::default();
        cgroups.look(&host, Duration::from_secs(1000));
        let own = std::process::id();
        let name = host.process(own).unwrap().unwrap().name;
        // A machine with more than fits into the first looks takes some.
        for look in 1..20 {
            cgroups.look(&host, Duration::from_secs(1000 + 10 * look));
        }
        let later = Duration::from_secs(9000);
        assert!(cgroups.of(own, &name, later).is_some());
        assert_eq!(cgroups.of(own, "other", later), None);
        assert_eq!(cgroups.of(own, &name, Duration::from_secs(999)), None);
        assert_eq!(cgroups.of(u32::MAX, &name, later), None);
    }

    #[test]
    fn paths_beside_the_agents_own_namespace_are_cut_and_the_gone_are_forgotten_in_time() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("proc/42");
        std::fs::create_dir_all(&folder).unwrap();
        let stat = "42 (app) S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 100 1000 10 18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0\n";
        std::fs::write(folder.join("stat"), stat).unwrap();
        std::fs::write(folder.join("cgroup"), "0::/../../kubepods/burstable/podx/y\n").unwrap();
        let host = Host::new(root.path(), Clock::system(), Places::default());
        let mut cgroups = Cgroups::default();
        let second = Duration::from_secs;
        cgroups.look(&host, second(10));
        assert_eq!(cgroups.of(42, "app", second(10)).as_deref(), Some("/kubepods/burstable/podx/y"));
        std::fs::remove_dir_all(&folder).unwrap();
        cgroups.look(&host, second(30));
        assert!(cgroups.of(42, "app", second(30)).is_some(), "its kill may not be read yet");
        cgroups.look(&host, second(100));
        assert_eq!(cgroups.of(42, "app", second(100)), None);
        // Another one of the same id and name is read anew, also when the first was not forgotten yet.
        for (cgroup, at) in [("/a", 110), ("/b", 130)] {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("stat"), stat).unwrap();
            std::fs::write(folder.join("cgroup"), format!("0::{cgroup}\n")).unwrap();
            cgroups.look(&host, second(at));
            assert_eq!(cgroups.of(42, "app", second(at)).as_deref(), Some(cgroup));
            std::fs::remove_dir_all(&folder).unwrap();
            cgroups.look(&host, second(at + 10));
        }
    }
}
