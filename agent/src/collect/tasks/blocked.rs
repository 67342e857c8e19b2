//! Tasks in D, with the time since which each waits.
//!
//! The kernel does not say when a wait began. It does count how often a task was switched: as long as that stands still,
//! the task has not run, and the wait is the same. So the age is a lower bound, from the first look that saw it.

use std::collections::BTreeMap;
use std::time::Duration;

use nodewhy_clock::Stamp;
use serde::Serialize;

use super::describe::Described;
use super::look::Kept;
use crate::host::Host;
use crate::host::known::Pods;
use crate::whose;

/// To which part of the node a process belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// The kubelet.
    Kubelet,
    /// The container runtime.
    Runtime,
    /// The process beside a sandbox or container: containerd's shim, CRI-O's conmon.
    Shim,
    /// An OCI runtime's call: `runc create`, `runc delete`.
    Runc,
    /// A network plugin's call.
    Cni,
    /// A process of a pod.
    Pod,
    /// A thread of the kernel's.
    Kernel,
    /// Any other process of the node.
    Other,
}

impl Group {
    /// As in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Group::Kubelet => "kubelet",
            Group::Runtime => "runtime",
            Group::Shim => "shim",
            Group::Runc => "runc",
            Group::Cni => "cni",
            Group::Pod => "pod",
            Group::Kernel => "kernel",
            Group::Other => "other",
        }
    }

    /// Whether the kubelet's relist waits for it.
    pub fn is_in_the_way_of_pleg(self) -> bool {
        matches!(self, Group::Kubelet | Group::Runtime | Group::Shim | Group::Runc | Group::Cni)
    }
}

/// A thread in D.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Blocked {
    /// Its process.
    pub pid: u32,
    /// Itself.
    pub tid: u32,
    /// Its name.
    pub name: String,
    /// Its process's name.
    pub process: String,
    /// To which part of the node it belongs.
    pub group: Group,
    /// The pod, as `namespace/name`, or its UID.
    pub pod: Option<String>,
    /// Since when at least it waits.
    pub since: jiff::Timestamp,
    /// The same, as time since boot.
    #[serde(skip)]
    pub since_boot: Duration,
    /// The kernel's function that it waits in; none where the kernel does not say.
    pub wchan: Option<String>,
    /// What was looked up of it once it had waited for a while.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub described: Option<Described>,
    /// Its cgroup, as the reader's own cgroup namespace sees it.
    pub cgroup: Option<String>,
    #[serde(skip)]
    pub(super) start_ticks: Option<u64>,
    #[serde(skip)]
    pub(super) switches: Option<u64>,
}

impl Blocked {
    /// How long at least.
    pub fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.since_boot)
    }

    /// Whether it is frozen (cgroup v1; on v2 it would not be in D): somebody paused it, and it waits for nothing. That
    /// its cgroup is frozen is told of the cgroup.
    pub fn is_frozen(&self) -> bool {
        self.wchan.as_deref() == Some("__refrigerator")
    }

    /// `runc[4711]`, or `grpc-worker[4713] of containerd[4711]`.
    pub fn who(&self) -> String {
        if self.pid == self.tid {
            format!("{}[{}]", self.name, self.pid)
        } else {
            format!("thread {} of {}[{}]", self.tid, self.process, self.pid)
        }
    }

    /// Where it waits, in words.
    pub fn place(&self) -> String {
        let mut text = String::new();
        if let Some(wchan) = &self.wchan {
            text.push_str(&format!(" in {wchan}"));
        }
        let described = self.described.as_ref();
        if let Some(syscall) = described.and_then(|described| described.syscall.as_ref()) {
            text.push_str(&format!(", system call {syscall}"));
        }
        if let Some(file) = described.and_then(|described| described.file.as_ref()) {
            text.push_str(&format!(" on {file}"));
        }
        if let Some(mount) = described.and_then(|described| described.mount.as_ref()) {
            text.push_str(&format!(", mount {mount}"));
        }
        if let Some(pod) = &self.pod {
            text.push_str(&format!(", pod {pod}"));
        }
        text
    }
}

/// What a look's tasks in D come to: those that were in the same wait before keep their time. Oldest first.
pub(super) fn follow(
    host: &Host,
    before: &[Blocked],
    found: &[Kept],
    calls: &BTreeMap<u32, Group>,
    at: Stamp,
) -> Vec<Blocked> {
    let pods = host.pods();
    let known: BTreeMap<u32, &Blocked> = before.iter().map(|blocked| (blocked.tid, blocked)).collect();
    let mut blocked: Vec<Blocked> = found
        .iter()
        .filter_map(|task| {
            // Gone, or unreadable: then nothing tells this wait from another one.
            let status = host.task_switches(task.pid, task.tid).ok().flatten()?;
            let same = known.get(&task.tid).filter(|known| {
                known.start_ticks == task.start_ticks
                    && status.count.is_some()
                    && known.switches == status.count
            });
            if let Some(known) = same {
                return Some((*known).clone());
            }
            let cgroup = cgroup(host, task.pid);
            let (group, pod) = belongs(task, cgroup.as_deref(), status.uid, calls, pods.as_deref());
            Some(Blocked {
                pid: task.pid,
                tid: task.tid,
                name: task.name.clone(),
                process: task.process.clone(),
                group,
                pod,
                since: at.wall,
                since_boot: at.boot,
                wchan: host.task_wait_channel(task.pid, task.tid),
                described: None,
                cgroup,
                start_ticks: task.start_ticks,
                switches: status.count,
            })
        })
        .collect();
    blocked.sort_by_key(|task| (task.since_boot, task.pid, task.tid));
    blocked
}

/// Whether it is in the same wait still. What cannot be read is not known to have ended.
pub(super) fn is_same(host: &Host, task: &Blocked) -> bool {
    match host.task_state(task.pid, task.tid) {
        Ok(None) => return false,
        Ok(Some((state, start))) if state != 'D' || start != task.start_ticks => return false,
        Ok(Some(_)) | Err(_) => {}
    }
    match host.task_switches(task.pid, task.tid) {
        Ok(None) => false,
        Ok(Some(status)) => status.count == task.switches,
        Err(_) => true,
    }
}

/// The process's cgroup: the unified hierarchy's where it has a path, else the first one that tells more than the root.
pub(super) fn cgroup(host: &Host, pid: u32) -> Option<String> {
    let paths = host.process_cgroups(pid).ok().flatten()?;
    let telling = |path: &&String| path.as_str() != "/";
    paths.iter().rev().find(telling).or(paths.last()).cloned()
}

fn belongs(
    task: &Kept,
    cgroup: Option<&str>,
    uid: Option<u32>,
    calls: &BTreeMap<u32, Group>,
    pods: Option<&Pods>,
) -> (Group, Option<String>) {
    if task.is_kernel {
        return (Group::Kernel, None);
    }
    let place = cgroup.map(whose::place);
    let pod = place.as_ref().and_then(|place| place.pod_uid.as_ref()).map(|uid| {
        let name = pods.and_then(|pods| pods.names.get(uid));
        name.map_or_else(|| uid.clone(), |pod| format!("{}/{}", pod.namespace, pod.name))
    });
    if let Some(group) = calls.get(&task.pid) {
        return (*group, pod);
    }
    let group = match whose::role(&task.process, place.as_ref(), None, uid) {
        nodewhy_proto::Role::Kubelet => Group::Kubelet,
        nodewhy_proto::Role::Runtime if super::look::is_shim(&task.process) => Group::Shim,
        nodewhy_proto::Role::Runtime => Group::Runtime,
        nodewhy_proto::Role::Pod => Group::Pod,
        _ if pod.is_some() => Group::Pod,
        _ => Group::Other,
    };
    (group, pod)
}
