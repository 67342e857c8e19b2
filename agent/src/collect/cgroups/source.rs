//! What is kept between readings, and a reading's way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use nodewhy_proto::CgroupMode;

use super::group::{Group, Reader};
use super::lately::Samples;
use super::parse::{self, MemoryEvents, MemoryStat};
use super::psi::Pressure;
use super::reading::{
    AtLimit, Churn, Count, Dying, Kills, Level, PodEntry, Program, Ranked, Reading, Service, TOP,
};
use super::tree::{self, Grown, Tree, is_full};
use super::{COLLECTOR, names::Names};
use crate::host::cgroup::place::{NamespaceRoot, below};
use crate::host::cgroup::{FileWatch, Hierarchies};
use crate::host::known::Pods;
use crate::host::process::Process;
use crate::host::{Host, ReadError};

/// `memory.stat` of a group of the system is read every so many ticks: of a parent it is the costliest file of all.
const STAT_EVERY: u64 = 12;
/// Something that grew is told for so long.
const TOLD: Duration = Duration::from_secs(60);
/// Looks between two ticks because `memory.events` changed. A pod that lives at its limit changes it a hundred times a
/// second; a storm of kills would make a full reading of each.
const WAKES: u32 = 20;
const WAKES_IN_FULL: u32 = 2;
/// Kills that are kept.
const MOST_KILLS: usize = 16;
/// The search for living cgroups of a v1 hierarchy gives up after so many.
const MOST_FOLDERS: usize = 20_000;

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
    churn: VecDeque<(Duration, u64, u64)>,
    kubepods: Option<(Option<MemoryEvents>, Option<MemoryEvents>)>,
    kubepods_hit: Option<(Duration, Timestamp)>,
    dying: Option<Dying>,
}

#[derive(Debug)]
struct Followed {
    role: &'static str,
    process: Process,
    path: String,
    samples: BTreeMap<String, Samples>,
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
    let dying = dying(source, reader, &controllers);
    let mut frozen = source.tree.as_ref().map(Tree::frozen).unwrap_or_default();
    let others = groups
        .values()
        .cloned()
        .chain(programs.iter().flat_map(|it| it.levels.iter().map(|at| at.group.clone())));
    frozen.extend(others.filter(|group| group.frozen == Some(true)).map(|group| group.path.clone()));
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
        most_memory: ranked(pods.iter(), TOP),
        frozen,
        pids_at_limit: source.refused.values().map(|(_, at)| at.clone()).collect(),
        oom_kills: source.kills.iter().cloned().collect(),
        kubepods_limit_hit: source.kubepods_hit.map(|(_, at)| at),
        is_kubepods_hit: source.kubepods_hit.is_some_and(|(at, _)| boot.saturating_sub(at) <= TOLD),
        is_kubepods_pushed,
        churn: churn(source, boot),
        dying,
        controllers,
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

/// The cgroups of a program, its own and those above it.
fn follow(
    source: &mut Source,
    reader: &mut Reader<'_>,
    role: &'static str,
    process: Option<Process>,
    boot: Duration,
) -> Result<Option<Program>, ReadError> {
    let place = source.followed.iter().position(|one| one.role == role);
    let mut before = place.map(|at| source.followed.swap_remove(at));
    let Some(process) = process else { return Ok(None) };
    let Some(path) = reader.host.cgroup_of_process(&source.hierarchies, &source.root, process.pid)? else {
        return Ok(None);
    };
    if before.as_ref().is_some_and(|one| one.path != path || one.process.start_ticks != process.start_ticks) {
        // The counters are the cgroup's, not the process's: a restart in the same cgroup keeps them, another cgroup
        // has its own.
        before = before.filter(|one| one.path == path);
    }
    let mut one = before.unwrap_or_else(|| Followed {
        role,
        process: process.clone(),
        path: path.clone(),
        samples: BTreeMap::new(),
    });
    one.process = process;
    let mut levels = Vec::new();
    for level in levels_of(&path) {
        let group = match reader.group(level, false) {
            Ok(group) => group,
            Err(ReadError::NotFound { .. }) => continue,
            Err(error) => return Err(error),
        };
        let throttled =
            group.cpu.and_then(|cpu| one.samples.entry(level.to_owned()).or_default().take(boot, cpu));
        let grew = group.pids.refused.map_or(0, |refused| {
            // The two programs may have a slice in common: its growth is told once.
            let before = source.forks.insert(level.to_owned(), refused);
            before.map_or(0, |before| refused.saturating_sub(before))
        });
        let is_full = is_full(group.pids.current, group.pids.max);
        if is_full || grew > 0 && (level == path || is_tight(&group)) {
            tell_limit(source, &group, None, Some(role), grew, boot);
        }
        levels.push(Level {
            path: level.to_owned(),
            throttled: throttled.map(|(_, share)| share),
            throttled_for_seconds: throttled.map(|(passed, _)| passed.as_secs_f64()),
            group: Arc::new(group),
        });
    }
    let program = Program { role, name: one.process.name.clone(), pid: one.process.pid, levels };
    source.followed.push(one);
    Ok(Some(program))
}

/// Nearly out of process ids by its own limit. Since Linux 6.11 a slice's events are also those of every unit in it.
fn is_tight(group: &Group) -> bool {
    let max = group.pids.max.and_then(parse::Max::at);
    group.pids.current.zip(max).is_some_and(|(current, max)| current >= max - max / 10)
}

/// `/a/b/c`, `/a/b`, `/a`. The root has no limits.
fn levels_of(path: &str) -> Vec<&str> {
    let mut levels = Vec::new();
    let mut rest = path;
    while rest.len() > 1 {
        levels.push(rest);
        rest = rest.rsplit_once('/').map_or("", |(above, _)| above);
    }
    levels
}

/// Whether kubepods was pushed against its own limit since the reading before; keeps when it ran out of memory.
fn pushed(
    source: &mut Source,
    now: Option<(Option<MemoryEvents>, Option<MemoryEvents>)>,
    boot: Duration,
    wall: Timestamp,
) -> bool {
    let before = std::mem::replace(&mut source.kubepods, now);
    // Events of its own limit alone: since Linux 5.2. Without them a pod's kill would be taken for kubepods'.
    let (Some((_, Some(before))), Some((_, Some(now)))) = (before, now) else { return false };
    let grew =
        |before: Option<u64>, now: Option<u64>| before.zip(now).is_some_and(|(before, now)| now > before);
    if grew(before.oom, now.oom) {
        source.kubepods_hit = Some((boot, wall));
    }
    grew(before.max, now.max)
}

/// Kills and refused forks of pods, each once: a pod's counters have its containers' in them.
fn tell_growth(source: &mut Source, grown: Vec<Grown>, pods: &[PodEntry], boot: Duration, wall: Timestamp) {
    let Some(tree) = &source.tree else { return };
    let root = tree.root.clone();
    let in_container = |pick: fn(&Grown) -> u64| -> BTreeSet<String> {
        grown
            .iter()
            .filter(|one| one.container.is_some() && pick(one) > 0)
            .map(|one| one.pod.clone())
            .collect()
    };
    let (killed, refused) = (in_container(|one| one.oom_kills), in_container(|one| one.refused_forks));
    for one in &grown {
        let path = format!("{root}/{}", one.pod);
        let entry = pods.iter().find(|pod| pod.detail.as_ref().is_some_and(|it| it.cgroup.path == path));
        let Some((entry, detail)) = entry.and_then(|entry| Some((entry, entry.detail.as_ref()?))) else {
            continue;
        };
        let is_pod = one.container.is_none();
        if one.oom_kills > 0 && !(is_pod && killed.contains(&one.pod)) {
            source.kills.push_back(Kills {
                at: wall,
                pod: entry.label(),
                container: one.container.as_ref().map(|name| format!("{path}/{name}")),
                processes: one.oom_kills,
            });
        }
        if one.refused_forks > 0 && !(is_pod && refused.contains(&one.pod)) {
            let own = one.container.as_ref().map(|name| format!("{path}/{name}"));
            let own = own.and_then(|own| detail.containers.iter().find(|one| one.cgroup.path == own));
            let group = tightest(own.map(|own| &own.cgroup), &detail.cgroup).clone();
            tell_limit(source, &group, Some(entry.label()), None, one.refused_forks, boot);
        }
    }
    while source.kills.len() > MOST_KILLS {
        source.kills.pop_front();
    }
    for pod in pods {
        let Some(detail) = &pod.detail else { continue };
        let groups = std::iter::once(&detail.cgroup).chain(detail.containers.iter().map(|one| &one.cgroup));
        for group in groups.filter(|group| is_full(group.pids.current, group.pids.max)) {
            // A pod that was full a minute ago is read at every tick, so this is of now.
            tell_limit(source, group, Some(pod.label()), None, 0, boot);
        }
    }
    source.refused.retain(|_, (at, _)| boot.saturating_sub(*at) <= TOLD);
}

/// Before Linux 6.11 the refusal is counted in the container that forked, whosever the limit is: it is that of the
/// cgroup that has least room.
fn tightest<'a>(container: Option<&'a Group>, pod: &'a Group) -> &'a Group {
    let room = |group: &Group| Some(group.pids.max?.at()?.saturating_sub(group.pids.current?));
    match container {
        Some(container) => match (room(container), room(pod)) {
            (Some(own), Some(pods)) if pods < own => pod,
            (None, Some(_)) => pod,
            _ => container,
        },
        None => pod,
    }
}

fn tell_limit(
    source: &mut Source,
    group: &Group,
    pod: Option<String>,
    role: Option<&'static str>,
    grew: u64,
    boot: Duration,
) {
    let told = source.refused.get(&group.path).map_or(0, |(_, at)| at.refused);
    let at = AtLimit {
        path: group.path.clone(),
        pod,
        role,
        current: group.pids.current,
        max: group.pids.max.and_then(parse::Max::at),
        refused: told + grew,
    };
    source.refused.insert(group.path.clone(), (boot, at));
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

fn count(tree: Option<&Tree>) -> BTreeMap<&'static str, Count> {
    let mut counts = BTreeMap::new();
    for pod in tree.iter().flat_map(|tree| tree.pods.values()) {
        let count: &mut Count = counts.entry(pod.qos.name()).or_default();
        count.pods += 1;
        count.containers += pod.containers() as u64;
        if let Some(bytes) = pod.memory_bytes {
            *count.memory_bytes.get_or_insert(0) += bytes;
        }
    }
    counts
}

fn listed(pod: &PodEntry) -> Service {
    Service {
        pod: pod.label(),
        memory_bytes: pod.memory_bytes,
        container: None,
        throttled_percent: None,
        cpu_some_avg60: None,
    }
}

fn ranked<'a>(pods: impl Iterator<Item = &'a PodEntry>, most: usize) -> Vec<Service> {
    let mut pods: Vec<&PodEntry> = pods.collect();
    pods.sort_by_key(|pod| std::cmp::Reverse(pod.memory_bytes));
    pods.into_iter().take(most).map(listed).collect()
}

fn without_limit(pods: &[PodEntry]) -> Ranked {
    let without = || pods.iter().filter(|pod| pod.has_memory_limit() == Some(false));
    Ranked {
        count: without().count() as u64,
        of: pods.iter().filter(|pod| pod.has_memory_limit().is_some()).count() as u64,
        top: ranked(without(), TOP),
    }
}

/// Pods with a group that was throttled, by the group that was most.
fn throttled(pods: &[PodEntry]) -> Vec<Service> {
    let mut found = Vec::new();
    for pod in pods {
        let Some(detail) = &pod.detail else { continue };
        let own = (detail.lately, None, &detail.cgroup);
        let containers = detail.containers.iter().map(|one| (one.lately, Some(one), &one.cgroup));
        let most = std::iter::once(own)
            .chain(containers)
            .filter_map(|(lately, one, group)| Some((lately?.throttled_percent?, one, group)))
            .filter(|(percent, ..)| *percent > 0.0)
            .max_by(|a, b| a.0.total_cmp(&b.0));
        let Some((percent, container, group)) = most else { continue };
        let cpu = group.pressure.as_ref().and_then(Pressure::cpu);
        found.push(Service {
            container: container.map(|one| one.name.clone().or_else(|| one.id.clone()).unwrap_or_default()),
            throttled_percent: Some(percent),
            cpu_some_avg60: cpu.and_then(|cpu| cpu.some).map(|some| some.avg60),
            ..listed(pod)
        });
    }
    found.sort_by(|a, b| {
        b.throttled_percent.partial_cmp(&a.throttled_percent).unwrap_or(std::cmp::Ordering::Equal)
    });
    found.truncate(TOP);
    found
}

fn churn(source: &mut Source, boot: Duration) -> Churn {
    let (created, removed) = source.tree.as_ref().map_or((0, 0), |tree| (tree.created, tree.removed));
    // The newest that is a minute old stays: from it the minute is counted.
    while source.churn.get(1).is_some_and(|(at, ..)| boot.saturating_sub(*at) >= TOLD) {
        source.churn.pop_front();
    }
    source.churn.push_back((boot, created, removed));
    let (_, created_before, removed_before) = source.churn.front().copied().unwrap_or((boot, 0, 0));
    Churn {
        created,
        removed,
        created_last_minute: created.saturating_sub(created_before),
        removed_last_minute: removed.saturating_sub(removed_before),
    }
}

/// Of v2 the root's own count; of v1 the controller's count less the cgroups that are there, once a minute.
fn dying(source: &mut Source, reader: &mut Reader<'_>, controllers: &BTreeMap<String, u64>) -> Option<Dying> {
    if source.hierarchies.mode == CgroupMode::V2 {
        let mount = source.hierarchies.unified.as_deref()?;
        let folder = reader.host.cgroup(mount).ok()?;
        let text = folder.read("cgroup.stat", &mut reader.buffer).ok()?;
        let (living, dying) = parse::cgroup_stat(text).ok()?;
        return Some(Dying { living, dying, from: "cgroup.stat of the root" });
    }
    if source.ticks % STAT_EVERY == 1 || source.dying.is_none() {
        let mount = source.hierarchies.v1("memory")?;
        let living = folders(reader.host, mount)?;
        // Read before the search, so that a cgroup that was made meanwhile is counted as living at most.
        let dying = controllers.get("memory")?.saturating_sub(living);
        source.dying =
            Some(Dying { living, dying, from: "/proc/cgroups less the folders of the memory controller" });
    }
    source.dying.clone()
}

fn folders(host: &Host, mount: &std::path::Path) -> Option<u64> {
    let mut waiting = vec![mount.to_owned()];
    let mut count = 0;
    while let Some(path) = waiting.pop() {
        count += 1;
        if count > MOST_FOLDERS {
            return None;
        }
        let children = host.cgroup_children(&path).unwrap_or_default();
        waiting.extend(children.into_iter().map(|child| path.join(child.name)));
    }
    Some(count as u64)
}
