//! What is kept between readings, and a reading's way.

mod dying;
mod follow;
mod lists;
mod services;
mod told;

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use nodewhy_proto::CgroupMode;

use super::COLLECTOR;
use super::group::{Group, Reader};
use super::names::Names;
use super::parse::{self, MemoryEvents, MemoryStat};
use super::reading::{AtLimit, Dying, Kills, PodEntry, Reading, TOP};
use super::tree::{self, Grown, Tree};
use crate::host::cgroup::place::{NamespaceRoot, below};
use crate::host::cgroup::{FileWatch, Hierarchies};
use crate::host::known::Pods;
use crate::host::{Host, ReadError};
use dying::dying;
use follow::{Followed, follow};
use lists::{count, ranked, stalled, throttled, without_limit};
use services::services;
use told::{churn, pushed, tell_growth};

/// `memory.stat` of a group of the system is read every so many ticks: of a parent it is the costliest file of all.
const STAT_EVERY: u64 = 12;
/// Something that grew is told for so long.
const TOLD: Duration = Duration::from_secs(60);
/// Looks between two ticks because `memory.events` changed. A pod that lives at its limit changes it a hundred times a
/// second; a storm of kills would make a full reading of each.
const WAKES: u32 = 20;
const WAKES_IN_FULL: u32 = 2;

/// What is kept.
#[derive(Debug)]
pub struct Source {
    hierarchies: Hierarchies,
    root: NamespaceRoot,
    tree: Option<Tree>,
    names: Names,
    followed: Vec<Followed>,
    watch: Option<FileWatch>,
    watch_error: Option<String>,
    wakes: u32,
    wakes_in_full: u32,
    ticks: u64,
    due: Duration,
    last: Option<Reading>,
    stats: BTreeMap<String, (MemoryStat, Option<Timestamp>)>,
    kills: VecDeque<Kills>,
    refused: BTreeMap<String, (Duration, AtLimit)>,
    forks: BTreeMap<String, u64>,
    services: Vec<String>,
    churn: VecDeque<(Duration, u64, u64)>,
    kubepods: Option<(Option<MemoryEvents>, Option<MemoryEvents>)>,
    kubepods_hit: Option<(Duration, Timestamp)>,
    dying: Option<Dying>,
}

pub(super) fn open(host: &Host) -> Result<Source, ReadError> {
    let hierarchies = host.cgroup_hierarchies()?;
    let root = host.cgroup_namespace_root(&hierarchies);
    Ok(Source {
        hierarchies,
        root,
        tree: None,
        names: Names::default(),
        followed: Vec::new(),
        watch: None,
        watch_error: None,
        wakes: 0,
        wakes_in_full: 0,
        ticks: 0,
        due: Duration::ZERO,
        last: None,
        stats: BTreeMap::new(),
        kills: VecDeque::new(),
        refused: BTreeMap::new(),
        forks: BTreeMap::new(),
        services: Vec::new(),
        churn: VecDeque::new(),
        kubepods: None,
        kubepods_hit: None,
        dying: None,
    })
}

/// `None` until the next tick when there was too much: it comes soon.
pub(super) fn wake(source: &Source) -> Option<BorrowedFd<'_>> {
    let is_calm = source.wakes < WAKES && source.wakes_in_full < WAKES_IN_FULL;
    source.watch.as_ref().filter(|_| is_calm).map(AsFd::as_fd)
}

pub(super) fn read(source: &mut Source, host: &Host) -> Result<Reading, ReadError> {
    let stamp = host.clock().stamp();
    let changed = source.watch.as_ref().is_some_and(FileWatch::take);
    let mut reader =
        Reader { host, hierarchies: &source.hierarchies.clone(), buffer: Vec::new(), now: stamp.wall };
    let is_tick = stamp.boot >= source.due;
    let oom = kubepods_killed(source, &mut reader);
    if !is_tick
        && changed
        && let Some(last) = &source.last
    {
        source.wakes += 1;
        if !oom {
            return Ok(last.clone());
        }
        source.wakes_in_full += 1;
    }
    if is_tick {
        (source.wakes, source.wakes_in_full) = (0, 0);
        // A tick comes a little early or late.
        source.due = stamp.boot + COLLECTOR.every - COLLECTOR.every / 10;
        source.ticks += 1;
    }
    let reading = whole(source, &mut reader, stamp.boot, oom)?;
    source.last = Some(reading.clone());
    Ok(reading)
}

/// Whether `memory.events` of kubepods has more kills than when it was last read in full.
fn kubepods_killed(source: &Source, reader: &mut Reader<'_>) -> bool {
    let (Some(tree), Some((Some(before), _))) = (&source.tree, &source.kubepods) else { return false };
    let Some((_, mount)) = source.hierarchies.main() else { return false };
    let Ok(folder) = reader.host.cgroup(below(mount, &tree.root)) else { return false };
    let events = folder.read("memory.events", &mut reader.buffer).ok();
    events.and_then(|text| parse::memory_events(text).ok()).is_some_and(|now| now.oom_kill != before.oom_kill)
}

fn whole(
    source: &mut Source,
    reader: &mut Reader<'_>,
    boot: Duration,
    oom: bool,
) -> Result<Reading, ReadError> {
    let host = reader.host;
    let mut missing = notes(source);
    let grown = look_at_pods(source, reader, boot, oom, &mut missing)?;
    let known = host.pods();
    let mut groups = BTreeMap::new();
    let mut programs = Vec::new();
    let agent = host.cgroup_of_agent(&source.hierarchies, &source.root);
    let mut wanted: Vec<(String, String)> = Vec::new();
    if let Some(tree) = &source.tree {
        wanted.push(("kubepods".to_owned(), tree.root.clone()));
        wanted.extend(tree.classes.iter().map(|(qos, path)| (qos.name().to_owned(), path.clone())));
    }
    wanted.extend(["system.slice", "user.slice"].map(|slice| (slice.to_owned(), format!("/{slice}"))));
    match agent {
        Ok(Some(path)) => wanted.push(("agent".to_owned(), path)),
        Ok(None) => {}
        Err(error) => missing.push(format!("the agent's own cgroup: {error}")),
    }
    for (name, path) in wanted {
        if let Some(group) = system_group(source, reader, &path) {
            groups.insert(name, Arc::new(group));
        }
    }
    for (role, process) in [("kubelet", host.kubelet_process()), ("runtime", host.runtime_process())] {
        match follow(source, reader, role, process, boot) {
            Ok(Some(program)) => {
                if let Some(level) = program.levels.first() {
                    groups.insert(role.to_owned(), level.group.clone());
                }
                programs.push(program);
            }
            Ok(None) => {}
            Err(error) => missing.push(format!("the {role}'s cgroup: {error}")),
        }
    }
    let kubepods = groups.get("kubepods").map(|group| (group.memory.events, group.memory.events_local));
    let is_kubepods_pushed = pushed(source, kubepods, boot, reader.now);
    let pods = entries(source, host, known.as_deref(), boot);
    if pods.iter().any(|pod| pod.name.is_none()) {
        missing.extend(source.names.take(boot));
    }
    tell_growth(source, grown, &pods, boot, reader.now);
    let controllers = match host.read("/proc/cgroups").map(|text| parse::controllers(&text)) {
        Ok(Ok(controllers)) => controllers,
        Ok(Err(what)) => {
            missing.push(ReadError::malformed("/proc/cgroups", what).to_string());
            BTreeMap::new()
        }
        // CONFIG_CGROUPS has it always; a host's root of a test may not.
        Err(_) => BTreeMap::new(),
    };
    let (units, frozen_units) = services(source, reader);
    let dying = dying(source, reader, &controllers);
    let mut frozen = source.tree.as_ref().map(Tree::frozen).unwrap_or_default();
    let others = groups
        .values()
        .cloned()
        .chain(programs.iter().flat_map(|it| it.levels.iter().map(|at| at.group.clone())));
    frozen.extend(others.filter(|group| group.frozen == Some(true)).map(|group| group.path.clone()));
    frozen.extend(frozen_units);
    frozen.sort();
    frozen.dedup();
    Ok(Reading {
        mode: source.hierarchies.mode,
        kubepods: source.tree.as_ref().map(|tree| tree.root.clone()),
        missing,
        groups,
        programs,
        qos: count(source.tree.as_ref()),
        without_memory_limit: without_limit(&pods),
        throttled: throttled(&pods),
        stalled: stalled(&pods),
        most_memory: ranked(pods.iter(), TOP),
        units,
        frozen,
        pids_at_limit: source.refused.values().map(|(_, at)| at.clone()).collect(),
        oom_kills: source.kills.iter().cloned().collect(),
        kubepods_limit_hit: source.kubepods_hit.map(|(_, at)| at),
        is_kubepods_hit: source.kubepods_hit.is_some_and(|(at, _)| boot.saturating_sub(at) <= TOLD),
        is_kubepods_pushed,
        churn: churn(source, boot),
        dying,
        controllers,
        is_per_pod: host.places().per_pod_metrics,
        pods,
    })
}

fn notes(source: &Source) -> Vec<String> {
    let mut missing = Vec::new();
    match source.hierarchies.mode {
        CgroupMode::V1 | CgroupMode::Hybrid => missing.push(
            "this node has cgroup v1 controllers: no memory.events, no memory.high; pressure of a cgroup only where \
             cgroup2 is mounted beside them. Kubelets from 1.35 on refuse cgroup v1 by default"
                .to_owned(),
        ),
        _ => {}
    }
    missing.extend(source.watch_error.clone());
    missing
}

/// Finds kubepods where it is not known, and looks at every pod in it.
fn look_at_pods(
    source: &mut Source,
    reader: &mut Reader<'_>,
    boot: Duration,
    oom: bool,
    missing: &mut Vec<String>,
) -> Result<Vec<Grown>, ReadError> {
    // Removed and made anew under the same name it is another cgroup: counters begin anew, and the watch is of the old.
    let is_other = source.tree.as_ref().is_some_and(|tree| !tree.is_still(reader.host, &source.hierarchies));
    if is_other {
        (source.tree, source.watch, source.kubepods) = (None, None, None);
    }
    if source.tree.is_none() {
        source.tree = tree::find(reader.host, &source.hierarchies)?;
        source.kubepods = None;
    }
    let Some(tree) = &mut source.tree else {
        missing.push("no kubepods cgroup: the kubelet has made no cgroup for pods on this node".to_owned());
        return Ok(Vec::new());
    };
    if source.watch.is_none()
        && source.hierarchies.mode == CgroupMode::V2
        && let Some((_, mount)) = source.hierarchies.main()
    {
        match reader.host.watch_cgroup_file(below(mount, &tree.root).join("memory.events")) {
            Ok(watch) => (source.watch, source.watch_error) = (Some(watch), None),
            Err(error) => {
                source.watch_error = Some(format!("{error}: a kill in a pod is seen at the next tick only"));
            }
        }
    }
    match tree.look(reader, boot, oom) {
        Ok(grown) => Ok(grown),
        Err(ReadError::NotFound { .. }) => {
            missing.push(format!("{} is gone", tree.root));
            (source.tree, source.watch, source.kubepods) = (None, None, None);
            Ok(Vec::new())
        }
        // Then nothing is known of the pods, and no finding of theirs may end for that.
        Err(error) => Err(error),
    }
}

/// A group of the system; `memory.stat` now and then, or when the group is nearly full. `None`: it is not there.
fn system_group(source: &mut Source, reader: &mut Reader<'_>, path: &str) -> Option<Group> {
    let is_turn = source.ticks % STAT_EVERY == 1 || !source.stats.contains_key(path);
    let mut group = match reader.group(path, is_turn) {
        Ok(group) => group,
        Err(ReadError::NotFound { .. }) => return None,
        Err(error) => Group { path: path.to_owned(), missing: vec![error.to_string()], ..Group::default() },
    };
    let memory = &group.memory;
    let is_tight = memory
        .current_bytes
        .zip(memory.max_bytes.and_then(parse::Max::at))
        .is_some_and(|(current, max)| current / 9 >= max / 10);
    if !is_turn
        && is_tight
        && let Ok(now) = reader.group(path, true)
    {
        group = now;
    }
    match group.memory.stat {
        Some(stat) => drop(source.stats.insert(path.to_owned(), (stat, group.memory.stat_read_at))),
        None => {
            if let Some((stat, at)) = source.stats.get(path) {
                (group.memory.stat, group.memory.stat_read_at) = (Some(*stat), *at);
            }
        }
    }
    Some(group)
}

fn entries(source: &mut Source, host: &Host, known: Option<&Pods>, boot: Duration) -> Vec<PodEntry> {
    let Source { tree, names, .. } = source;
    let pods = tree.iter().flat_map(|tree| tree.pods.values());
    pods.map(|pod| PodEntry {
        name: names.name(host, known, &pod.uid, boot),
        uid: pod.uid.clone(),
        qos: pod.qos,
        memory_bytes: pod.memory_bytes,
        pids: pod.pids,
        detail: pod.detail.clone(),
    })
    .collect()
}
