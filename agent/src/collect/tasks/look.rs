//! One look at every thread of the node: what of it is kept.

use std::collections::BTreeMap;
use std::time::Duration;

use nodewhy_clock::Clock;

use crate::host::task::{Advance, Task, TaskSweep};
use crate::host::{Host, ReadError};

/// No more tasks in D are kept by name; the others are counted.
pub(super) const MOST_BLOCKED: usize = 1024;
/// No more processes of each other kind are kept; the others are counted.
const MOST_KEPT: usize = 4096;

/// A process or thread that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) pid: u32,
    pub(super) tid: u32,
    pub(super) name: String,
    /// The name of its process's leader.
    pub(super) process: String,
    pub(super) state: char,
    pub(super) parent: u32,
    pub(super) is_kernel: bool,
    /// `None` where the look does not tell it; see [`Kept::started`].
    pub(super) start_ticks: Option<u64>,
}

impl Kept {
    /// A process with its start: where the look does not tell it, the process itself is asked. `None`: it is gone.
    pub(super) fn started(mut self, host: &Host) -> Result<Option<Kept>, ReadError> {
        if self.start_ticks.is_none() {
            let Some(now) = host.process_if(self.pid, |name| name == self.name)? else { return Ok(None) };
            self.start_ticks = Some(now.start_ticks);
        }
        Ok(Some(self))
    }
}

/// Those that are there still, with their starts. One that cannot be read is counted as unread.
pub(super) fn started(host: &Host, found: Vec<Kept>, unread: &mut u64) -> Vec<Kept> {
    let mut started = Vec::with_capacity(found.len());
    for task in found {
        match task.started(host) {
            Ok(task) => started.extend(task),
            Err(_) => *unread += 1,
        }
    }
    started
}

/// What a look found.
#[derive(Clone, Debug, Default)]
pub(super) struct Looked {
    pub(super) processes: u64,
    pub(super) threads: u64,
    /// Threads by state.
    pub(super) states: BTreeMap<char, u64>,
    /// In D, at most [`MOST_BLOCKED`].
    pub(super) blocked: Vec<Kept>,
    /// Dead processes that nobody reaped, by parent.
    pub(super) zombies: BTreeMap<u32, u64>,
    pub(super) zombies_in_all: u64,
    /// Shims and monitors, by name.
    pub(super) shims: Vec<Kept>,
    /// What may be a runc or a network plugin, by name.
    pub(super) calls: Vec<Kept>,
    pub(super) unread: u64,
}

/// A look that goes on.
#[derive(Debug)]
pub(super) struct Look {
    sweep: TaskSweep,
    looked: Looked,
    leader: Option<(u32, String)>,
    /// In how many ticks it was worked on.
    pub(super) ticks: u32,
}

/// How far it is, for the reading.
pub(super) fn progress(look: &Look) -> (u64, u64) {
    (look.looked.processes, look.looked.threads)
}

impl Look {
    pub(super) fn begin(host: &Host) -> Result<Look, ReadError> {
        Ok(Look { sweep: host.sweep_tasks()?, looked: Looked::default(), leader: None, ticks: 0 })
    }

    /// Goes on for this long at most; the result when it is done.
    pub(super) fn advance(
        &mut self,
        clock: &Clock,
        budget: Duration,
        is_call: impl Fn(&str) -> bool,
    ) -> Result<Option<Looked>, ReadError> {
        self.ticks += 1;
        let until = clock.since_boot() + budget;
        let (looked, leader) = (&mut self.looked, &mut self.leader);
        let advance =
            self.sweep.advance(|| clock.since_boot() >= until, |task| looked.take(task, leader, &is_call))?;
        match advance {
            Advance::Paused => Ok(None),
            Advance::Done => {
                self.looked.unread = self.sweep.unread;
                Ok(Some(std::mem::take(&mut self.looked)))
            }
        }
    }
}

impl Looked {
    fn take(&mut self, task: &Task<'_>, leader: &mut Option<(u32, String)>, is_call: impl Fn(&str) -> bool) {
        self.threads += 1;
        *self.states.entry(task.state).or_default() += 1;
        let is_leader = task.pid == task.tid;
        if is_leader {
            self.processes += 1;
            // Only a process with more threads is asked for its name again.
            *leader =
                (task.threads > 1).then(|| (task.pid, String::from_utf8_lossy(&task.name).into_owned()));
        }
        let keep = || {
            let name = String::from_utf8_lossy(&task.name).into_owned();
            let process = leader.as_ref().filter(|(pid, _)| *pid == task.pid).map(|(_, name)| name.clone());
            Kept {
                pid: task.pid,
                tid: task.tid,
                process: process.unwrap_or_else(|| name.clone()),
                name,
                state: task.state,
                parent: task.parent,
                is_kernel: task.is_kernel,
                start_ticks: task.start_ticks,
            }
        };
        if task.state == 'D' && self.blocked.len() < MOST_BLOCKED {
            self.blocked.push(keep());
        }
        if !is_leader || task.is_kernel {
            return;
        }
        // A leader that has ended while other threads go on is in Z too, and waits for them, not for its parent.
        if task.state == 'Z' && task.threads <= 1 {
            self.zombies_in_all += 1;
            if self.zombies.len() < MOST_KEPT || self.zombies.contains_key(&task.parent) {
                *self.zombies.entry(task.parent).or_default() += 1;
            }
            return;
        }
        let Ok(name) = std::str::from_utf8(&task.name) else { return };
        if is_shim(name) {
            if self.shims.len() < MOST_KEPT {
                self.shims.push(keep());
            }
        } else if (is_runc(name) || is_call(name)) && self.calls.len() < MOST_KEPT {
            self.calls.push(keep());
        }
    }
}

/// The process that stays beside a sandbox or container. The kernel cuts `containerd-shim-runc-v2`.
pub(super) fn is_shim(name: &str) -> bool {
    name.starts_with("containerd-shim") || name == "conmon"
}

/// An OCI runtime's program, and what it becomes inside of the container before that starts (`runc:[2:INIT]`).
pub(super) fn is_runc(name: &str) -> bool {
    matches!(name, "runc" | "crun" | "youki" | "nvidia-containe") || name.starts_with("runc:[")
}
