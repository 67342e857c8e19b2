//! What is abnormal of cgroups. A container at its own limit is its owner's business; told are limits that stop the
//! node's programs, and states that look like something else.

use std::time::Duration;

use nodewhy_proto::{Evidence, Severity, Subject, SubjectKind};

use super::group::Group;
use super::parse::Max;
use super::psi::Pressure;
use super::reading::{AtLimit, Level, Program, Reading};
use crate::collector::{Abnormal, Noticed, Pair};
use crate::thresholds::{Heuristic, Limit, Thresholds};

static THROTTLED: Heuristic = Heuristic {
    name: "program_throttled_percent",
    about: "share of the CPU quota's periods in which the kubelet or the runtime had used it up",
    value: 25.0,
};
static KUBEPODS: Heuristic = Heuristic {
    name: "kubepods_memory_percent",
    about: "share of its memory limit at which kubepods is at it",
    value: 98.0,
};
static UNRECLAIMABLE: Heuristic = Heuristic {
    name: "kubepods_unreclaimable_percent",
    about: "share of kubepods' memory limit that is no page cache, above which being at the limit is abnormal",
    value: 90.0,
};
static DYING: Heuristic = Heuristic {
    name: "cgroups_dying",
    about: "number of cgroups that were removed and still hold memory, above which they are a leak",
    value: 5000.0,
};
static DYING_RATIO: Heuristic = Heuristic {
    name: "cgroups_dying_ratio",
    about: "dying cgroups for each living one, above which they are a leak",
    value: 10.0,
};

pub(super) static LIMITS: &[&Heuristic] = &[&THROTTLED, &KUBEPODS, &UNRECLAIMABLE, &DYING, &DYING_RATIO];

/// A program that wants to run for less than this in half a minute is not held up by its quota for long.
const LEAST_BUSY: Duration = Duration::from_secs(10);

pub(super) fn detect(pair: Pair<'_, Reading>, thresholds: &Thresholds, noticed: &mut Noticed) {
    let (now, states) = (pair.now, &mut noticed.states);
    for program in &now.programs {
        states.extend(throttled(program, thresholds));
    }
    states.extend(now.frozen.iter().map(|path| frozen(path)));
    states.extend(now.pids_at_limit.iter().map(|at| pids_limit(at, &now.programs)));
    states.extend(kubepods(now, thresholds));
    states.extend(dying(now, thresholds));
    for state in states {
        for evidence in &mut state.evidence {
            evidence.at.get_or_insert(pair.at.wall);
        }
    }
}

fn throttled(program: &Program, thresholds: &Thresholds) -> Option<Abnormal> {
    let limit = thresholds.limit(&THROTTLED);
    // As the collectors of the two name them.
    let (finding, subject) = match program.role {
        "kubelet" => ("kubelet_cpu_throttled", Subject::new(SubjectKind::Kubelet, "")),
        _ => ("runtime_cpu_throttled", Subject::new(SubjectKind::Runtime, &program.name)),
    };
    let worst =
        |level: &&Level| level.throttled.is_some_and(|share| share.percent > limit.value && is_busy(level));
    let level = program.levels.iter().filter(worst).max_by(|a, b| percent(a).total_cmp(&percent(b)))?;
    let share = level.throttled?;
    let seconds = level.throttled_for_seconds?;
    let text = format!(
        "{} of {} periods throttled in {seconds:.0} s ({:.0} %), above {} %; {:.1} s held up",
        share.throttled_periods, share.periods, share.percent, limit.value, share.throttled_seconds
    );
    let mut evidence = vec![
        Evidence::new(text, format!("cpu.stat of {}", level.path))
            .with_value(share.percent, "percent")
            .with_threshold(limit.value, limit.origin),
    ];
    if let Some(quota) = level.group.cpu_quota {
        let text = format!("its quota is {:.2} of a processor", quota.cpus);
        evidence
            .push(Evidence::new(text, format!("cpu.max of {}", level.path)).with_value(quota.cpus, "cpus"));
    }
    let own = program.levels.first().map(|own| own.group.as_ref());
    let pressure = own.and_then(|group| group.pressure.as_ref()).and_then(Pressure::cpu);
    if let (Some(some), Some(own)) = (pressure.and_then(|cpu| cpu.some), own) {
        let text = format!("its own CPU pressure: some avg60 {:.2} %", some.avg60);
        evidence.push(
            Evidence::new(text, format!("cpu.pressure of {}", own.path)).with_value(some.avg60, "percent"),
        );
    }
    Some(Abnormal {
        finding,
        subject,
        severity: Severity::Warning,
        summary: format!("the {} is held up by the CPU quota of {}", program.role, level.path),
        evidence,
        since: None,
        hold: Duration::ZERO,
        clear_after: Duration::from_secs(30),
    })
}

fn percent(level: &Level) -> f64 {
    level.throttled.map_or(0.0, |share| share.percent)
}

/// It wanted to run for long enough. Without the quota's period nothing can be said: then it is the kernel's default.
fn is_busy(level: &Level) -> bool {
    let period = level.group.cpu_quota.map_or(0.1, |quota| quota.period_seconds);
    level.throttled.is_some_and(|share| share.periods as f64 * period >= LEAST_BUSY.as_secs_f64())
}

fn frozen(path: &str) -> Abnormal {
    Abnormal {
        finding: "cgroup_frozen",
        subject: Subject::new(SubjectKind::Cgroup, path),
        severity: Severity::Warning,
        summary: format!("{path} is frozen: its processes do not run, and are in no state that says so"),
        evidence: vec![Evidence::new("frozen", format!("cgroup.events or freezer.state of {path}"))],
        since: None,
        // runc freezes a container for a moment to change its devices; a checkpoint takes longer.
        hold: Duration::from_secs(30),
        clear_after: Duration::ZERO,
    }
}

fn pids_limit(at: &AtLimit, programs: &[Program]) -> Abnormal {
    let unit = at.path.rsplit('/').find(|part| part.ends_with(".service") || part.ends_with(".scope"));
    let is_programs =
        at.role.is_some() || programs.iter().any(|it| it.levels.iter().any(|one| one.path == at.path));
    let (finding, subject) = match unit {
        _ if !is_programs => ("pids_limit_reached", Subject::new(SubjectKind::Cgroup, &at.path)),
        Some(unit) => ("unit_tasks_limit_reached", Subject::new(SubjectKind::Unit, unit)),
        None => ("unit_tasks_limit_reached", Subject::new(SubjectKind::Cgroup, &at.path)),
    };
    let of = match (&at.pod, at.role) {
        (Some(pod), _) => format!(" of pod {pod}"),
        (None, Some(role)) => format!(" of the {role}"),
        (None, None) => String::new(),
    };
    let figures = match (at.current, at.max) {
        (Some(current), Some(max)) => format!("{current} of {max} processes and threads"),
        (Some(current), None) => {
            format!("{current} processes and threads; the limit is that of a cgroup above it")
        }
        _ => "its processes could not be counted".to_owned(),
    };
    let mut first = Evidence::new(figures, format!("pids.current and pids.max of {}", at.path));
    first.value = at.current.map(|current| current as f64);
    let mut evidence = vec![first];
    if at.refused > 0 {
        let text = format!("{} forks refused", at.refused);
        evidence.push(
            Evidence::new(text, format!("pids.events of {}", at.path)).with_value(at.refused as f64, "forks"),
        );
    }
    Abnormal {
        finding,
        subject,
        severity: Severity::Warning,
        summary: format!("the limit of processes{of} is reached: forks fail with EAGAIN"),
        evidence,
        since: None,
        hold: Duration::ZERO,
        clear_after: Duration::from_secs(30),
    }
}

/// Page cache fills a limit on a healthy node: so either the kernel found nothing to reclaim (`oom` of kubepods' own
/// limit), or the limit is pushed against and what fills it is no page cache.
fn kubepods(now: &Reading, thresholds: &Thresholds) -> Option<Abnormal> {
    let group = now.groups.get("kubepods")?;
    let (current, max) = (group.memory.current_bytes?, group.memory.max_bytes.and_then(Max::at)?);
    let at = thresholds.limit(&KUBEPODS);
    let percent = |bytes: u64| bytes as f64 * 100.0 / max as f64;
    let source = |file: &str| format!("{file} of {}", group.path);
    let mib = |bytes: u64| bytes / (1024 * 1024);
    let usage = format!("{} of {} MiB", mib(current), mib(max));
    let mut evidence = vec![
        Evidence::new(usage, source("memory.current and memory.max"))
            .with_value(percent(current), "percent")
            .with_threshold(at.value, at.origin),
    ];
    if now.is_kubepods_hit {
        let mut hit =
            Evidence::new("`oom` grew: nothing more could be reclaimed", source("memory.events.local"));
        hit.at = now.kubepods_limit_hit;
        evidence.push(hit);
    } else {
        let cannot = now.is_kubepods_pushed.then(|| unreclaimable(group)).flatten()?;
        let limit: Limit = thresholds.limit(&UNRECLAIMABLE);
        if percent(current) < at.value || percent(cannot) <= limit.value {
            return None;
        }
        evidence.push(Evidence::new("`max` grows", source("memory.events.local")));
        evidence.push(
            Evidence::new(format!("{} MiB are no page cache", mib(cannot)), source("memory.stat"))
                .with_value(percent(cannot), "percent")
                .with_threshold(limit.value, limit.origin),
        );
    }
    Some(Abnormal {
        finding: "kubepods_memory_at_limit",
        subject: Subject::new(SubjectKind::Cgroup, &group.path),
        severity: Severity::Warning,
        summary: "all pods together are at the memory limit of kubepods: the kernel kills among them"
            .to_owned(),
        evidence,
        since: None,
        hold: Duration::ZERO,
        clear_after: Duration::from_secs(30),
    })
}

/// What no reclaim gives back without swap. `None`: the file was not read.
fn unreclaimable(group: &Group) -> Option<u64> {
    let (current, stat) = (group.memory.current_bytes?, group.memory.stat?);
    let cache =
        stat.active_file.checked_add(stat.inactive_file)?.checked_add(stat.slab_reclaimable.unwrap_or(0))?;
    Some(current.saturating_sub(cache))
}

fn dying(now: &Reading, thresholds: &Thresholds) -> Option<Abnormal> {
    let dying = now.dying.as_ref()?;
    let (count, ratio) = (thresholds.limit(&DYING), thresholds.limit(&DYING_RATIO));
    let per_living = dying.dying as f64 / dying.living.max(1) as f64;
    if dying.dying as f64 <= count.value || per_living <= ratio.value {
        return None;
    }
    let text = format!("{} dying, {} living", dying.dying, dying.living);
    Some(Abnormal {
        finding: "cgroups_dying",
        subject: Subject::node(),
        severity: Severity::Warning,
        summary: format!(
            "{} cgroups were removed and still hold memory: making one may fail with ENOSPC, and the kernel's memory grows",
            dying.dying
        ),
        evidence: vec![
            Evidence::new(text, dying.from)
                .with_value(dying.dying as f64, "cgroups")
                .with_threshold(count.value, count.origin),
        ],
        since: None,
        hold: Duration::from_secs(60),
        clear_after: Duration::from_secs(60),
    })
}
