//! The kubelet's and the runtime's cgroups, up to the root.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Source;
use super::told::tell_limit;
use crate::collect::cgroups::group::{Group, Reader};
use crate::collect::cgroups::lately::Samples;
use crate::collect::cgroups::parse::Max;
use crate::collect::cgroups::reading::{Level, Program};
use crate::collect::cgroups::tree::is_full;
use crate::host::ReadError;
use crate::host::process::Process;

#[derive(Debug)]
pub(super) struct Followed {
    role: &'static str,
    process: Process,
    path: String,
    samples: BTreeMap<String, Samples>,
}

/// The cgroups of a program, its own and those above it.
pub(super) fn follow(
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
    let max = group.pids.max.and_then(Max::at);
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
