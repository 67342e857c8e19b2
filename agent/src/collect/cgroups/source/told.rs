//! What grew between readings, told for a while.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;

use super::{Source, TOLD};
use crate::collect::cgroups::group::Group;
use crate::collect::cgroups::parse::{Max, MemoryEvents};
use crate::collect::cgroups::reading::{AtLimit, Churn, Kills, PodEntry};
use crate::collect::cgroups::tree::{Grown, is_full};

/// Kills that are kept.
const MOST_KILLS: usize = 16;

/// Whether kubepods was pushed against its own limit since the reading before; keeps when it ran out of memory.
pub(super) fn pushed(
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
pub(super) fn tell_growth(
    source: &mut Source,
    grown: Vec<Grown>,
    pods: &[PodEntry],
    boot: Duration,
    wall: Timestamp,
) {
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

pub(super) fn tell_limit(
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
        max: group.pids.max.and_then(Max::at),
        refused: told + grew,
    };
    source.refused.insert(group.path.clone(), (boot, at));
}

/// Containers that came and went.
pub(super) fn churn(source: &mut Source, boot: Duration) -> Churn {
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
