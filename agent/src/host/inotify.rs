//! Whether inotify is still to be had. No file of the kernel tells how many instances and watches a user has: only asking
//! for one does. It is given back at once.

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde::Serialize;

use super::Host;

/// What became of the question for one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// There was one more of each.
    Free,
    /// EMFILE: `fs.inotify.max_user_instances` is reached for the agent's user.
    InstancesExhausted,
    /// ENOSPC: `fs.inotify.max_user_watches` is reached for the agent's user.
    WatchesExhausted,
}

impl Host {
    /// Asks for one more instance and watch. `None`: the answer says nothing of inotify (the agent itself has no
    /// descriptor left, say).
    pub fn probe_inotify(&self) -> Option<Probe> {
        match Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC) {
            Ok(instance) => match instance.add_watch(self.root(), AddWatchFlags::IN_DELETE_SELF) {
                Ok(_) => Some(Probe::Free),
                Err(Errno::ENOSPC) => Some(Probe::WatchesExhausted),
                Err(_) => None,
            },
            // The same word for a process that has no descriptor left: another kind of descriptor tells them apart.
            Err(Errno::EMFILE) => {
                EventFd::from_flags(EfdFlags::EFD_CLOEXEC).ok().map(|_| Probe::InstancesExhausted)
            }
            Err(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_one_left_and_it_is_given_back() {
        let host = Host::new("/", nodewhy_clock::Clock::system(), super::super::Places::default());
        let open = || std::fs::read_dir("/proc/self/fd").map(Iterator::count).unwrap();
        let before = open();
        for _ in 0..200 {
            // Asked more often than a user may have instances.
            assert_eq!(host.probe_inotify(), Some(Probe::Free));
        }
        assert!(open() < before + 50);
    }
}
