//! How much is left of what every process needs: process ids, open files, inotify.

use std::time::Duration;

use serde::Serialize;

use super::parse;
use crate::host::Host;
use crate::host::inotify::Probe;
use crate::host::own;
use crate::host::process::Process;

/// The limits change seldom.
const EVERY: Duration = Duration::from_secs(5);
/// What of them costs more.
const SLOWLY_EVERY: Duration = Duration::from_secs(10);

/// Limits, each with what is used of it; none where it cannot be read.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Limits {
    /// `kernel.pid_max`.
    pub pid_max: Option<u64>,
    /// `kernel.threads-max`.
    pub threads_max: Option<u64>,
    /// File handles in use on the whole node.
    pub file_handles: Option<u64>,
    /// `fs.file-max`.
    pub file_max: Option<u64>,
    /// `fs.inotify.max_user_instances`, for each user.
    pub inotify_max_user_instances: Option<u64>,
    /// `fs.inotify.max_user_watches`, for each user.
    pub inotify_max_user_watches: Option<u64>,
    /// Whether the agent's own user can still have an instance and a watch: both were made and given back.
    pub inotify: Option<Probe>,
    /// Open files of the kubelet and of the runtime against their own limits.
    pub files: Vec<Files>,
    /// What could not be read, and why.
    pub missing: Vec<String>,
}

/// Open files of a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Files {
    /// `kubelet` or `runtime`.
    pub role: &'static str,
    /// Its process.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// Open descriptors.
    pub open: u64,
    /// RLIMIT_NOFILE, the soft limit.
    pub limit: u64,
}

impl Limits {
    /// What the kubelet takes for the most tasks that there can be: the smaller one.
    pub fn most_tasks(&self) -> Option<u64> {
        // One alone is no limit: the other may be smaller.
        self.pid_max.zip(self.threads_max).map(|(ids, threads)| ids.min(threads))
    }
}

/// Reads them now and then.
#[derive(Debug, Default)]
pub(super) struct Reader {
    limits: Limits,
    read: Option<Duration>,
    slowly: Option<Duration>,
}

impl Reader {
    pub(super) fn read(&mut self, host: &Host, now: Duration) -> Limits {
        let is_due = |last: Option<Duration>, every: Duration| last.is_none_or(|last| last + every <= now);
        if is_due(self.read, EVERY) {
            self.read = Some(now);
            let slow = (self.limits.inotify.take(), std::mem::take(&mut self.limits.files));
            self.limits = read(host);
            (self.limits.inotify, self.limits.files) = slow;
            if is_due(self.slowly, SLOWLY_EVERY) {
                self.slowly = Some(now);
                self.limits.inotify = host.probe_inotify();
                self.limits.files =
                    [("kubelet", host.kubelet_process()), ("runtime", host.runtime_process())]
                        .into_iter()
                        .filter_map(|(role, process)| files(host, role, &process?))
                        .collect();
            }
        }
        self.limits.clone()
    }
}

fn read(host: &Host) -> Limits {
    let mut missing = Vec::new();
    let mut number = |path: &str| {
        let read = host.read(path).map_err(|error| error.to_string());
        let number =
            read.and_then(|text| parse::number(&text).ok_or_else(|| format!("cannot understand {path}")));
        number.map_err(|why| missing.push(why)).ok()
    };
    let pid_max = number("/proc/sys/kernel/pid_max");
    let threads_max = number("/proc/sys/kernel/threads-max");
    let instances = number("/proc/sys/fs/inotify/max_user_instances");
    let watches = number("/proc/sys/fs/inotify/max_user_watches");
    let files = match host.read("/proc/sys/fs/file-nr") {
        Ok(text) => parse::file_handles(&text),
        Err(error) => {
            missing.push(error.to_string());
            None
        }
    };
    if own::standing().uid.is_some_and(|uid| uid != 0) {
        missing.push(
            "inotify: it is tried as the agent's own user, and the kubelet's is root: run as root".to_owned(),
        );
    }
    Limits {
        pid_max,
        threads_max,
        file_handles: files.map(|(used, _)| used),
        file_max: files.map(|(_, most)| most),
        inotify_max_user_instances: instances,
        inotify_max_user_watches: watches,
        inotify: None,
        files: Vec::new(),
        missing,
    }
}

fn files(host: &Host, role: &'static str, process: &Process) -> Option<Files> {
    // The number may be another process's by now.
    let now = host.process(process.pid).ok().flatten()?;
    if now.start_ticks != process.start_ticks {
        return None;
    }
    let limits = host.read(format!("/proc/{}/limits", process.pid)).ok()?;
    let limit = parse::open_files_limit(&limits)?;
    let open = host.process_open_files(process.pid).ok()?;
    Some(Files { role, pid: process.pid, name: now.name, open, limit })
}
