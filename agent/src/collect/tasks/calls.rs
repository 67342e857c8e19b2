//! Programs that the runtime starts and waits for: runc, network plugins; and the shims that stay.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nodewhy_clock::Stamp;
use serde::Serialize;

use super::blocked::{Group, cgroup};
use super::look::{Kept, is_runc};
use crate::host::Host;
use crate::host::known::Pods;
use crate::host::process::Process;
use crate::whose;

/// A read of a command line takes longer only when the process's memory map is locked.
const CMDLINE_LIMIT: Duration = Duration::from_millis(100);
/// A node's first look has all shims to ask; each look asks so many.
const MOST_ASKED: usize = 64;
/// A shim is there before its sandbox is listed: younger ones are not held against the list.
const YOUNG: Duration = Duration::from_secs(60);
/// How deep plugins call each other: `multus` → `calico` → `calico-ipam`.
const DEEPEST: usize = 4;

/// Plugins of networks, beside what stands in the node's own folders of them. The kernel cuts names at 15 bytes.
const PLUGINS: &[&str] = &[
    "bridge",
    "host-local",
    "loopback",
    "portmap",
    "bandwidth",
    "firewall",
    "tuning",
    "ptp",
    "macvlan",
    "ipvlan",
    "vlan",
    "dhcp",
    "static",
    "host-device",
    "sbr",
    "vrf",
    "calico",
    "calico-ipam",
    "cilium-cni",
    "aws-cni",
    "egress-cni",
    "flannel",
    "multus",
    "multus-shim",
    "azure-vnet",
    "azure-vnet-ipam",
    "ovn-k8s-cni-ove",
    "antrea",
    "whereabouts",
    "weave-net",
    "weave-ipam",
    "istio-cni",
    "linkerd-cni",
    "kube-ovn",
];

/// Whether a process of this name may be a network plugin's call.
pub(super) fn may_be_plugin(name: &str, in_folders: &[String]) -> bool {
    PLUGINS.contains(&name) || in_folders.iter().any(|known| known == name)
}

/// The names in the node's folders of plugins, as the kernel would cut them.
pub(super) fn plugins_in_folders(host: &Host) -> Vec<String> {
    let folders = host.places().cni_bin_dirs.iter();
    let names = folders.filter_map(|folder| host.list(folder).ok()).flatten();
    names.map(|name| name.get(..15).map(str::to_owned).unwrap_or(name)).collect()
}

/// A call that the runtime waits for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Call {
    /// Its process.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// `runc` or `cni`.
    pub group: Group,
    /// `R`, `S`, `D`, `T`, …
    pub state: char,
    /// Who started it, as `name[pid]`.
    pub parent: String,
    /// When it was started.
    pub since: Timestamp,
    /// The same, as time since boot.
    #[serde(skip)]
    pub since_boot: Duration,
    /// The kernel's function that it waits in; none where the kernel does not say.
    pub wchan: Option<String>,
}

impl Call {
    /// How old.
    pub fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.since_boot)
    }

    /// `runc[4711]`.
    pub fn who(&self) -> String {
        format!("{}[{}]", self.name, self.pid)
    }
}

/// The calls among what a look found by name, oldest first. A program of that name is a call only if the runtime or a
/// shim started it, or another plugin that they started; and a plugin only outside of containers: a container's own
/// program may have a plugin's name (the daemon of `dhcp`), and is a child of its shim as well.
pub(super) fn calls(host: &Host, found: &[Kept], at: Stamp) -> Vec<Call> {
    let by_pid: BTreeMap<u32, &Kept> = found.iter().map(|task| (task.pid, task)).collect();
    let mut parents = BTreeMap::new();
    let mut calls: Vec<Call> = found
        .iter()
        .filter_map(|task| {
            let parent = caller(host, task, &by_pid, &mut parents)?;
            if !is_runc(&task.name) && is_in_container(host, task.pid) {
                return None;
            }
            let since_boot = began(&(*task).clone().started(host).ok().flatten()?)?;
            Some(Call {
                pid: task.pid,
                group: if is_runc(&task.name) { Group::Runc } else { Group::Cni },
                name: task.name.clone(),
                state: task.state,
                parent,
                since: wall(at, since_boot),
                since_boot,
                wchan: host.task_wait_channel(task.pid, task.pid),
            })
        })
        .collect();
    calls.sort_by_key(|call| (call.since_boot, call.pid));
    calls
}

/// What cannot be read is not known to be in one.
fn is_in_container(host: &Host, pid: u32) -> bool {
    cgroup(host, pid).is_some_and(|path| whose::place(&path).in_container)
}

/// When a process began, since boot; `None` where that is not known.
fn began(task: &Kept) -> Option<Duration> {
    let start_ticks = task.start_ticks?;
    let process = Process { pid: task.pid, name: String::new(), state: task.state, start_ticks };
    Some(process.start_since_boot())
}

/// The wall time of an instant since boot.
pub(super) fn wall(at: Stamp, since_boot: Duration) -> Timestamp {
    let ago = SignedDuration::try_from(at.boot.saturating_sub(since_boot)).unwrap_or_default();
    at.wall.checked_sub(ago).unwrap_or(at.wall)
}

/// Its parent, if that is the runtime, a shim, or a call of theirs.
fn caller(
    host: &Host,
    task: &Kept,
    found: &BTreeMap<u32, &Kept>,
    parents: &mut BTreeMap<u32, Option<String>>,
) -> Option<String> {
    let mut pid = task.parent;
    let first = found.get(&pid).map(|parent| format!("{}[{pid}]", parent.name));
    for _ in 0..DEEPEST {
        if let Some(parent) = found.get(&pid) {
            pid = parent.parent;
            continue;
        }
        let name = parents.entry(pid).or_insert_with(|| runtime_name(host, pid)).clone()?;
        // dockerd has containerd start its containers. What it starts itself are the steps of a build, which take as
        // long as they take, and hold up nobody.
        if name == "dockerd" && is_runc(&task.name) {
            return None;
        }
        return Some(first.unwrap_or_else(|| format!("{name}[{pid}]")));
    }
    None
}

/// The process's name if it is the runtime's: by its name and its place outside of any container.
fn runtime_name(host: &Host, pid: u32) -> Option<String> {
    let name = host.process_name(pid).ok().flatten()?;
    let place = cgroup(host, pid).map(|path| whose::place(&path))?;
    let uid = host.process_status(pid).ok().flatten().and_then(|status| status.uids).map(|(uid, _)| uid);
    let role = whose::role(&name, Some(&place), None, uid);
    (role == nodewhy_proto::Role::Runtime).then_some(name)
}

/// The shims, held against the runtime's sandboxes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Shims {
    /// Shims and monitors that run.
    pub count: usize,
    /// Sandboxes that the runtime knows; none where it was never asked.
    pub sandboxes: Option<usize>,
    /// Shims that are stopped (`T`): each call that needs one waits for ever.
    pub stopped: Vec<Shim>,
    /// containerd's shims for Kubernetes whose sandbox the runtime does not know, a minute old at least. None where
    /// sandboxes or command lines could not be read.
    pub orphans: Option<usize>,
    /// The oldest of them.
    pub oldest_orphans: Vec<Shim>,
    /// Shims whose command line could not be read yet.
    pub unasked: usize,
}

/// A shim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shim {
    /// Its process.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// The sandbox (or container) that it was started for.
    pub id: Option<String>,
    /// When it was started.
    pub since: Timestamp,
}

/// What is remembered of shims between looks: command lines do not change.
#[derive(Debug, Default)]
pub(super) struct ShimsSeen {
    asked: BTreeMap<(u32, Option<u64>), Option<Asked>>,
    pods: Option<(Arc<Pods>, Duration)>,
}

#[derive(Clone, Debug)]
struct Asked {
    id: Option<String>,
    is_kubernetes: bool,
}

impl ShimsSeen {
    /// Holds the shims that a look found against the runtime's sandboxes.
    pub(super) fn judge(&mut self, host: &Host, found: &[Kept], at: Stamp) -> Shims {
        self.ask(host, found);
        let pods = self.newest_pods(host, at.boot);
        let mut stopped = Vec::new();
        let (mut orphans, mut unasked) = (Vec::new(), 0);
        for task in found {
            if matches!(task.state, 'T' | 't') && stopped.len() < 8 {
                stopped.push(self.shim(task, at));
            }
            let Some(known) = self.known(task) else {
                unasked += 1;
                continue;
            };
            let (Some((pods, learned)), Some(id), true) = (&pods, &known.id, known.is_kubernetes) else {
                continue;
            };
            let is_old = began(task).is_some_and(|began| began + YOUNG <= *learned);
            if is_old && !pods.sandboxes.contains_key(id) && !pods.containers.contains_key(id) {
                orphans.push(self.shim(task, at));
            }
        }
        orphans.sort_by_key(|shim| (shim.since, shim.pid));
        let count = orphans.len();
        orphans.truncate(8);
        Shims {
            count: found.len(),
            sandboxes: pods.as_ref().map(|(pods, _)| pods.sandboxes.len()),
            stopped,
            orphans: (pods.is_some() && unasked == 0).then_some(count),
            oldest_orphans: orphans,
            unasked,
        }
    }

    fn known(&self, task: &Kept) -> Option<&Asked> {
        self.asked.get(&(task.pid, task.start_ticks)).and_then(Option::as_ref)
    }

    /// A shim, as far as it is known.
    pub(super) fn shim(&self, task: &Kept, at: Stamp) -> Shim {
        // Shims whose start is not known are not held: see [`super::look::started`].
        let since = began(task).map_or(at.wall, |began| wall(at, began));
        let id = self.known(task).and_then(|known| known.id.clone());
        Shim { pid: task.pid, name: task.name.clone(), id, since }
    }

    fn ask(&mut self, host: &Host, found: &[Kept]) {
        self.asked.retain(|key, _| found.iter().any(|task| (task.pid, task.start_ticks) == *key));
        let mut left = MOST_ASKED;
        for task in found {
            let key = (task.pid, task.start_ticks);
            if left == 0 || self.asked.get(&key).is_some_and(Option::is_some) {
                continue;
            }
            left -= 1;
            let read = host.process_cmdline(task.pid, CMDLINE_LIMIT);
            // One that hangs delays all: the others wait for the next look.
            if matches!(read, Err(crate::host::ReadError::Other(_))) {
                left = 0;
            }
            let arguments = read.ok().filter(|arguments| !arguments.is_empty());
            self.asked.insert(key, arguments.map(|arguments| asked(&arguments)));
        }
    }

    /// The runtime's newest list, and when it was first seen here: a shim that is younger cannot be in it.
    fn newest_pods(&mut self, host: &Host, now: Duration) -> Option<(Arc<Pods>, Duration)> {
        let pods = host.pods()?;
        match &self.pods {
            Some((known, _)) if Arc::ptr_eq(known, &pods) => {}
            _ => self.pods = Some((pods, now)),
        }
        self.pods.clone()
    }
}

/// `containerd-shim-runc-v2 -namespace k8s.io -id SANDBOX -address …`.
fn asked(arguments: &[String]) -> Asked {
    let value = |flag: &str| {
        let behind = arguments.iter().skip_while(|argument| argument.trim_start_matches('-') != flag).nth(1);
        behind.cloned()
    };
    let is_containerds = arguments.first().is_some_and(|name| name.contains("containerd-shim"));
    Asked {
        id: value("id"),
        is_kubernetes: is_containerds && value("namespace").as_deref() == Some("k8s.io"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shims_arguments() {
        // containerd 2.1 (pkg/shim, `-namespace`, `-id`, `-address`), as `ps` shows it on a node.
        let line = "/usr/bin/containerd-shim-runc-v2 -namespace k8s.io -id b0b795bead51 -address /run/containerd/containerd.sock";
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let known = asked(&arguments);
        assert_eq!((known.id.as_deref(), known.is_kubernetes), (Some("b0b795bead51"), true));
        let moby: Vec<String> = line.replace("k8s.io", "moby").split(' ').map(str::to_owned).collect();
        assert!(!asked(&moby).is_kubernetes);
        assert!(!asked(&["conmon".to_owned(), "-c".to_owned()]).is_kubernetes);
    }
}
