//! The kubelet's tree of pods, under either driver.
//!
//! At every tick each pod's memory and each container's freezer are looked at, and who came or went; a twelfth of the
//! pods is read in full, and every pod that gives cause. So the cost is level, and a full round takes a minute.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::group::{Group, Reader};
use super::lately::{Lately, lately};
use super::parse::{self, Max, MemoryEvents};
use crate::host::cgroup::place::below;
use crate::host::cgroup::{Folder, Hierarchies};
use crate::host::{Host, ReadError};
use crate::whose::place;

/// Ticks of a full round.
const ROUND: usize = 12;
/// A pod's full reading costs about 0.2 ms: a node with a thousand pods is learned over some ticks.
const MOST_DETAILS: usize = 100;
/// Where kubepods may stand but at the root: kind's nodes have it below the kubelet's own.
const NESTS: &[&str] = &["/kubelet.slice", "/kubelet"];
/// Where it does not stand.
const SYSTEMS: &[&str] = &["system.slice", "user.slice", "machine.slice", "init.scope"];

/// A pod's class of service, by where its cgroup stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Qos {
    /// Directly below kubepods: this class has no cgroup of its own.
    Guaranteed,
    /// Below kubepods' burstable.
    Burstable,
    /// Below kubepods' besteffort.
    Besteffort,
}

impl Qos {
    /// As in JSON and in labels.
    pub fn name(self) -> &'static str {
        match self {
            Qos::Guaranteed => "guaranteed",
            Qos::Burstable => "burstable",
            Qos::Besteffort => "besteffort",
        }
    }
}

/// A pod in full.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Detail {
    /// When it was read.
    pub read_at: Timestamp,
    #[serde(skip)]
    boot: Duration,
    /// Its cgroup.
    pub cgroup: Group,
    /// What it did between the full reading before and this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lately: Option<Lately>,
    /// Its containers, the sandbox too where it has a cgroup.
    pub containers: Vec<Container>,
}

/// A container.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Container {
    /// Its id, where the cgroup's name has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Its name, where the runtime told it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// It is the pod's sandbox (the pause container), which is read once.
    pub is_sandbox: bool,
    /// As [`Detail::lately`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lately: Option<Lately>,
    /// Its cgroup.
    pub cgroup: Group,
}

#[derive(Debug)]
pub(super) struct Pod {
    pub(super) uid: String,
    pub(super) qos: Qos,
    pub(super) memory_bytes: Option<u64>,
    pub(super) pids: Option<u64>,
    pub(super) detail: Option<Arc<Detail>>,
    /// Names of the containers' folders; whether it was frozen when it was looked at.
    containers: BTreeMap<String, Option<bool>>,
    links: u64,
    events: Option<MemoryEvents>,
    is_due: bool,
}

impl Pod {
    /// Containers, the sandbox too.
    pub(super) fn containers(&self) -> usize {
        self.containers.len()
    }
}

/// What changed between two full readings of a cgroup.
#[derive(Debug)]
pub(super) struct Grown {
    pub(super) pod: String,
    pub(super) container: Option<String>,
    pub(super) oom_kills: u64,
    pub(super) refused_forks: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Tree {
    /// kubepods itself, in the host's tree.
    pub(super) root: String,
    /// The cgroups of classes, by class.
    pub(super) classes: BTreeMap<Qos, String>,
    /// By path below `root`.
    pub(super) pods: BTreeMap<String, Pod>,
    /// Containers that came and went since the start.
    pub(super) created: u64,
    pub(super) removed: u64,
    is_known: bool,
    next: String,
    inode: u64,
}

/// Finds kubepods in the host's tree. `None`: there is none.
pub(super) fn find(host: &Host, hierarchies: &Hierarchies) -> Result<Option<Tree>, ReadError> {
    let Some((_, mount)) = hierarchies.main() else { return Ok(None) };
    let mut nests = vec![String::new()];
    nests.extend(NESTS.iter().map(|nest| (*nest).to_owned()));
    // The kubelet's --cgroup-root may be any.
    let others = host.cgroup_children(below(mount, "")).unwrap_or_default();
    let is_other = |name: &String| !SYSTEMS.contains(&name.as_str());
    nests.extend(others.into_iter().map(|child| child.name).filter(is_other).map(|name| format!("/{name}")));
    for nest in nests {
        let children = match host.cgroup_children(below(mount, &nest)) {
            Err(ReadError::NotFound { .. }) if !nest.is_empty() => continue,
            Err(ReadError::NotFound { path }) => {
                return Err(ReadError::Other(format!(
                    "{} is in the node's mount table and not here: mount the host's /sys/fs/cgroup below --host-root",
                    path.display()
                )));
            }
            children => children?,
        };
        if let Some(child) = children.into_iter().find(|child| child.name.contains("kubepods")) {
            return Ok(Some(Tree {
                root: format!("{nest}/{}", child.name),
                classes: BTreeMap::new(),
                pods: BTreeMap::new(),
                created: 0,
                removed: 0,
                is_known: false,
                next: String::new(),
                inode: child.inode,
            }));
        }
    }
    Ok(None)
}

impl Tree {
    /// Whether kubepods is still the same cgroup.
    pub(super) fn is_still(&self, host: &Host, hierarchies: &Hierarchies) -> bool {
        let Some((_, mount)) = hierarchies.main() else { return false };
        let identity = host.cgroup_identity(below(mount, &self.root));
        identity.is_ok_and(|(_, inode, _)| inode == self.inode)
    }

    /// Looks at everything; `oom`: somebody below was killed since the last time.
    ///
    /// # Errors
    /// kubepods is gone, or may not be listed.
    pub(super) fn look(
        &mut self,
        reader: &mut Reader<'_>,
        boot: Duration,
        oom: bool,
    ) -> Result<Vec<Grown>, ReadError> {
        let Some((controller, mount)) = reader.hierarchies.main() else {
            return Err(ReadError::Other("no hierarchy of cgroups has pods".to_owned()));
        };
        let is_v1 = !controller.is_empty();
        let mount = mount.to_owned();
        let folder = reader.host.cgroup(below(&mount, &self.root))?;
        self.list(reader.host, &folder)?;
        for (path, pod) in &mut self.pods {
            let (created, removed) = look_at(pod, path, reader, &folder, is_v1, oom);
            if self.is_known {
                self.created += created;
                self.removed += removed;
            }
        }
        self.is_known = true;
        Ok(self.read_details(reader, boot))
    }

    /// Cgroups that were frozen when they were looked at, as paths of the host's tree.
    pub(super) fn frozen(&self) -> Vec<String> {
        let mut frozen = Vec::new();
        for (path, pod) in &self.pods {
            let is_whole = pod.detail.as_ref().is_some_and(|detail| detail.cgroup.frozen == Some(true));
            if is_whole {
                frozen.push(format!("{}/{path}", self.root));
                continue;
            }
            let containers = pod.containers.iter().filter(|(_, frozen)| **frozen == Some(true));
            frozen.extend(containers.map(|(name, _)| format!("{}/{path}/{name}", self.root)));
        }
        frozen
    }

    /// Who is there. Pods that are gone are forgotten.
    fn list(&mut self, host: &Host, folder: &Folder) -> Result<(), ReadError> {
        let mut seen = BTreeSet::new();
        let mut classes = vec![(Qos::Guaranteed, String::new())];
        while let Some((qos, class)) = classes.pop() {
            let children = match host.cgroup_children(folder.path().join(&class)) {
                Err(ReadError::NotFound { .. }) if !class.is_empty() => continue,
                children => children?,
            };
            for child in children {
                let path =
                    if class.is_empty() { child.name.clone() } else { format!("{class}/{}", child.name) };
                match place(&format!("{}/{path}", self.root)).pod_uid {
                    Some(uid) => {
                        let pod = self.pods.entry(path.clone()).or_insert_with(|| Pod {
                            uid,
                            qos,
                            memory_bytes: None,
                            pids: None,
                            detail: None,
                            containers: BTreeMap::new(),
                            links: 0,
                            events: None,
                            is_due: true,
                        });
                        pod.qos = qos;
                        seen.insert(path);
                    }
                    None if class.is_empty() => {
                        let name = child.name.strip_suffix(".slice").unwrap_or(&child.name);
                        let qos = [Qos::Burstable, Qos::Besteffort]
                            .into_iter()
                            .find(|qos| name.ends_with(qos.name()));
                        if let Some(qos) = qos {
                            self.classes.insert(qos, format!("{}/{path}", self.root));
                            classes.push((qos, path));
                        }
                    }
                    None => {}
                }
            }
        }
        self.pods.retain(|path, pod| {
            let is_there = seen.contains(path);
            if !is_there && self.is_known {
                self.removed += pod.containers.len() as u64;
            }
            is_there
        });
        Ok(())
    }

    /// The pods that give cause, and the next ones of the round.
    fn read_details(&mut self, reader: &mut Reader<'_>, boot: Duration) -> Vec<Grown> {
        let turn = self.pods.len().div_ceil(ROUND).min(MOST_DETAILS);
        let mut due: Vec<String> = self
            .pods
            .iter()
            .filter(|(_, pod)| pod.is_due)
            .map(|(path, _)| path.clone())
            .take(MOST_DETAILS)
            .collect();
        let after = self.pods.range(self.next.clone()..).map(|(path, _)| path);
        let round: Vec<String> = after.chain(self.pods.keys()).take(turn).cloned().collect();
        self.next = round.last().map(|path| format!("{path}\0")).unwrap_or_default();
        due.extend(round);
        due.sort();
        due.dedup();
        let known = reader.host.pods();
        let mut grown = Vec::new();
        for path in due {
            let Some(pod) = self.pods.get_mut(&path) else { continue };
            // One that is gone by now is seen to be gone at the next tick.
            let Ok(cgroup) = reader.group(&format!("{}/{path}", self.root), true) else { continue };
            let before = pod.detail.take();
            let mut detail = Detail {
                read_at: reader.now,
                boot,
                lately: before
                    .as_ref()
                    .and_then(|old| lately(&old.cgroup, &cgroup, boot.checked_sub(old.boot)?)),
                cgroup,
                containers: Vec::new(),
            };
            grown.extend(growth(before.as_ref().map(|old| &old.cgroup), &detail.cgroup, &path, None));
            for name in pod.containers.keys() {
                let full = format!("{}/{path}/{name}", self.root);
                let old = before.as_ref().and_then(|old| {
                    let old_one = old.containers.iter().find(|one| one.cgroup.path == full)?;
                    Some((old_one, old.boot))
                });
                // A sandbox only sleeps: a third of the cost for nothing. One that was frozen may be thawed by now.
                if let Some((old, _)) = old
                    && old.is_sandbox
                    && old.cgroup.frozen != Some(true)
                {
                    detail.containers.push(old.clone());
                    continue;
                }
                let Ok(cgroup) = reader.group(&full, true) else { continue };
                grown.extend(growth(old.map(|(old, _)| &old.cgroup), &cgroup, &path, Some(name)));
                let id = place(&full).container_id;
                let named = |id: &String| Some(known.as_ref()?.containers.get(id)?.0.clone());
                let is_sandbox =
                    |id: &String| known.as_ref().is_some_and(|known| known.sandboxes.contains_key(id));
                detail.containers.push(Container {
                    name: id.as_ref().and_then(named),
                    is_sandbox: id.as_ref().is_some_and(is_sandbox),
                    id,
                    lately: old.and_then(|(old, at)| lately(&old.cgroup, &cgroup, boot.checked_sub(at)?)),
                    cgroup,
                });
            }
            pod.events = detail.cgroup.memory.events;
            // What is frozen, or full, is looked at until it is not.
            let pids = &detail.cgroup.pids;
            let is_frozen = |group: &Group| group.frozen == Some(true);
            pod.is_due = is_full(pids.current, pids.max)
                || is_frozen(&detail.cgroup)
                || detail.containers.iter().any(|one| is_frozen(&one.cgroup));
            pod.detail = Some(Arc::new(detail));
        }
        grown
    }
}

/// A pod's cheap files; containers that came and went.
fn look_at(
    pod: &mut Pod,
    path: &str,
    reader: &mut Reader<'_>,
    folder: &Folder,
    is_v1: bool,
    oom: bool,
) -> (u64, u64) {
    let mut get =
        |name: &str| folder.read(&format!("{path}/{name}"), &mut reader.buffer).ok().map(str::to_owned);
    let number = |text: Option<String>| text.and_then(|text| parse::number(&text).ok());
    pod.memory_bytes = number(get(if is_v1 { "memory.usage_in_bytes" } else { "memory.current" }));
    if !is_v1 {
        pod.pids = number(get("pids.current"));
        let max = pod.detail.as_ref().and_then(|detail| detail.cgroup.pids.max);
        pod.is_due |= is_full(pod.pids, max);
    }
    if oom {
        let events = get(if is_v1 { "memory.oom_control" } else { "memory.events" });
        let events = events.and_then(|text| parse::memory_events(&text).ok());
        pod.is_due |= events.map(|events| events.oom_kill) != pod.events.map(|events| events.oom_kill);
    }
    let mut is_gone = false;
    if !is_v1 {
        for (name, frozen) in &mut pod.containers {
            match folder.read(&format!("{path}/{name}/cgroup.events"), &mut reader.buffer) {
                Ok(text) => *frozen = parse::cgroup_events(text).ok().and_then(|(_, frozen)| frozen),
                Err(ReadError::NotFound { .. }) => is_gone = true,
                Err(_) => *frozen = None,
            }
        }
    } else if let Some(detail) = &pod.detail {
        for container in &detail.containers {
            let name = container.cgroup.path.rsplit('/').next().unwrap_or_default();
            if let Some(frozen) = pod.containers.get_mut(name) {
                *frozen = container.cgroup.frozen;
            }
        }
    }
    // The kernel counts a folder's children as its links.
    let full = folder.path().join(path);
    let Ok((_, _, links)) = reader.host.cgroup_identity(&full) else { return (0, 0) };
    if !is_gone && links == pod.links {
        return (0, 0);
    }
    let Ok(children) = reader.host.cgroup_children(&full) else { return (0, 0) };
    pod.links = links;
    pod.is_due = true;
    let is_container = |name: &str| !name.contains("conmon");
    let names: BTreeSet<String> =
        children.into_iter().map(|child| child.name).filter(|name| is_container(name)).collect();
    let before = pod.containers.len();
    pod.containers.retain(|name, _| names.contains(name));
    let removed = before - pod.containers.len();
    let created = names.len() - pod.containers.len();
    for name in names {
        pod.containers.entry(name).or_insert(None);
    }
    (created as u64, removed as u64)
}

/// At its limit.
pub(super) fn is_full(current: Option<u64>, max: Option<Max>) -> bool {
    current.zip(max.and_then(Max::at)).is_some_and(|(current, max)| current >= max)
}

/// What grew from one reading of a cgroup to the next. A container that came meanwhile grew from nothing, but not a pod
/// that is seen for the first time: its history is not ours.
fn growth(before: Option<&Group>, now: &Group, pod: &str, container: Option<&str>) -> Option<Grown> {
    let before = before?;
    let kills = |group: &Group| group.memory.events.map(|events| events.oom_kill);
    let grew = |before: Option<u64>, now: Option<u64>| {
        before.zip(now).map_or(0, |(before, now)| now.saturating_sub(before))
    };
    let grown = Grown {
        pod: pod.to_owned(),
        container: container.map(str::to_owned),
        oom_kills: grew(kills(before), kills(now)),
        refused_forks: grew(before.pids.refused, now.pids.refused),
    };
    (grown.oom_kills > 0 || grown.refused_forks > 0).then_some(grown)
}
