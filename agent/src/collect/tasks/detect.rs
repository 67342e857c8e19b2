//! What is abnormal of the tasks.

use std::time::Duration;

use nodewhy_proto::{Evidence, Origin, Severity, Subject, SubjectKind};

use super::Reading;
use super::blocked::{Blocked, Group};
use super::calls::{Call, Shims};
use crate::collector::{Abnormal, Noticed, Pair};
use crate::host::inotify::Probe;
use crate::thresholds::{Heuristic, Limit, Thresholds};

/// No more findings of a kind at once: on a node with 450 tasks in D the oldest tell.
const MOST: usize = 5;
/// A wait that names what holds up PLEG.
const IN_THE_WAY: Duration = Duration::from_secs(5);
/// Looks are 30 s apart while the gate is closed; what a look has not seen again is gone.
const CLEAR_AFTER: Duration = Duration::from_secs(2);

pub(super) const LIMITS: &[&Heuristic] =
    &[&TASKS, &ZOMBIES, &STUCK, &CALL_STUCK, &FILES, &STOLEN, &LOAD, &ORPHANS];

static TASKS: Heuristic = Heuristic {
    name: "tasks_percent",
    about: "share of min(kernel.pid_max, kernel.threads-max) above which the node runs out of process ids",
    value: 90.0,
};
static ZOMBIES: Heuristic = Heuristic {
    name: "zombies_of_one_parent",
    about: "dead children that one process has not reaped",
    value: 20.0,
};
static STUCK: Heuristic = Heuristic {
    name: "task_stuck_seconds",
    about: "a task in D this long is stuck, as for the kernel's own hung-task watch",
    value: 120.0,
};
static CALL_STUCK: Heuristic = Heuristic {
    name: "runtime_call_stuck_seconds",
    about: "a process of runc or of a network plugin this old does not come back",
    value: 60.0,
};
static FILES: Heuristic = Heuristic {
    name: "file_handles_percent",
    about: "share of fs.file-max, or of RLIMIT_NOFILE of the kubelet or the runtime, above which files run out",
    value: 90.0,
};
static STOLEN: Heuristic = Heuristic {
    name: "cpu_steal_percent",
    about: "share of a minute's CPU time that the hypervisor takes",
    value: 50.0,
};
static LOAD: Heuristic = Heuristic {
    name: "blocked_load_per_core",
    about: "load a core of a node whose CPUs are mostly idle, above which blocked tasks are told to be the load",
    value: 2.0,
};
static ORPHANS: Heuristic =
    Heuristic { name: "orphan_shims", about: "shims whose sandbox the runtime does not know", value: 5.0 };

pub(super) fn detect(pair: Pair<'_, Reading>, thresholds: &Thresholds, noticed: &mut Noticed) {
    let reading = pair.now;
    let states = &mut noticed.states;
    states.extend(tasks_exhausted(reading, thresholds.limit(&TASKS)));
    states.extend(files_exhausted(reading, thresholds.limit(&FILES)));
    states.extend(inotify_exhausted(reading));
    states.extend(stolen(reading, thresholds.limit(&STOLEN)));
    states.extend(blocked_load(reading, thresholds.limit(&LOAD)));
    states.extend(stuck(reading, thresholds.limit(&STUCK)));
    states.extend(calls_stuck(reading, thresholds.limit(&CALL_STUCK)));
    states.extend(shims_stopped(reading));
    states.extend(orphans(reading, thresholds.limit(&ORPHANS)));
    states.extend(zombies(reading, thresholds.limit(&ZOMBIES)));
    for evidence in states.iter_mut().flat_map(|state| &mut state.evidence) {
        evidence.at.get_or_insert(pair.at.wall);
    }
}

/// The oldest wait, call or stopped shim on the way of a relist, in a line.
pub(super) fn blocks_pleg(
    blocked: &[Blocked],
    calls: &[Call],
    shims: Option<&Shims>,
    now: Duration,
) -> Option<String> {
    // Both lists are oldest first.
    let task = blocked
        .iter()
        .find(|task| task.group.is_in_the_way_of_pleg() && task.age(now) >= IN_THE_WAY)
        .map(|task| {
            let seconds = task.age(now).as_secs();
            (task.since_boot, format!("{} waits in D for {seconds} s at least{}", task.who(), task.place()))
        });
    let call =
        calls.iter().find(|call| call.age(now) >= Duration::from_secs_f64(CALL_STUCK.value)).map(|call| {
            let place = call.wchan.as_ref().map(|wchan| format!(", it waits in {wchan}")).unwrap_or_default();
            let (seconds, parent) = (call.age(now).as_secs(), &call.parent);
            let text =
                format!("{}, started by {parent}, has not come back for {seconds} s{place}", call.who());
            (call.since_boot, text)
        });
    let shim = shims.and_then(|shims| shims.stopped.first()).map(|shim| {
        let id = shim.id.as_ref().map(|id| format!(" of {id}")).unwrap_or_default();
        format!("{}[{}]{id} is stopped: each call that needs it waits", shim.name, shim.pid)
    });
    let oldest = [task, call].into_iter().flatten().min_by_key(|(since, _)| *since);
    oldest.map(|(_, text)| text).or(shim)
}

fn state(finding: &'static str, subject: Subject, severity: Severity, summary: String) -> Abnormal {
    Abnormal {
        finding,
        subject,
        severity,
        summary,
        evidence: Vec::new(),
        since: None,
        hold: Duration::ZERO,
        clear_after: CLEAR_AFTER,
    }
}

fn percent(used: u64, most: u64) -> Option<f64> {
    (most > 0).then(|| used as f64 * 100.0 / most as f64)
}

fn tasks_exhausted(reading: &Reading, limit: Limit) -> Option<Abnormal> {
    let (used, most) = (reading.load.tasks, reading.limits.most_tasks()?);
    let share = percent(used, most).filter(|share| *share >= limit.value)?;
    let limits = &reading.limits;
    let which = if limits.pid_max == Some(most) { "kernel.pid_max" } else { "kernel.threads-max" };
    let summary = format!("{used} of {most} tasks ({which}): soon nothing can be started");
    let text = format!("{used} tasks, {share:.0} % of {which} {most}");
    Some(Abnormal {
        evidence: vec![
            Evidence::new(text, "/proc/loadavg")
                .with_value(share, "percent")
                .with_threshold(limit.value, limit.origin),
        ],
        hold: Duration::from_secs(2),
        clear_after: Duration::from_secs(10),
        ..state("node_tasks_exhausted", Subject::node(), Severity::Critical, summary)
    })
}

fn files_exhausted(reading: &Reading, limit: Limit) -> Vec<Abnormal> {
    let limits = &reading.limits;
    let node = limits.file_handles.zip(limits.file_max).map(|(used, most)| {
        (
            Subject::node(),
            "file handles of the node",
            "fs.file-max",
            "/proc/sys/fs/file-nr".to_owned(),
            used,
            most,
        )
    });
    let processes = limits.files.iter().map(|files| {
        let kind = if files.role == "kubelet" { SubjectKind::Kubelet } else { SubjectKind::Runtime };
        let what =
            if files.role == "kubelet" { "open files of the kubelet" } else { "open files of the runtime" };
        let source = format!("/proc/{}/fd", files.pid);
        (Subject::new(kind, &files.name), what, "RLIMIT_NOFILE", source, files.open, files.limit)
    });
    let mut states = Vec::new();
    for (subject, what, name, source, used, most) in node.into_iter().chain(processes) {
        let Some(share) = percent(used, most).filter(|share| *share >= limit.value) else { continue };
        let summary = format!("{used} of {most} {what} ({name})");
        let text = format!("{used} open, {share:.0} % of {name} {most}");
        states.push(Abnormal {
            evidence: vec![
                Evidence::new(text, source)
                    .with_value(share, "percent")
                    .with_threshold(limit.value, limit.origin),
            ],
            clear_after: Duration::from_secs(10),
            ..state("file_handles_exhausted", subject, Severity::Warning, summary)
        });
    }
    states
}

fn inotify_exhausted(reading: &Reading) -> Option<Abnormal> {
    let limits = &reading.limits;
    let (what, name, most) = match limits.inotify? {
        Probe::Free => return None,
        Probe::InstancesExhausted => {
            ("instance", "fs.inotify.max_user_instances", limits.inotify_max_user_instances)
        }
        Probe::WatchesExhausted => ("watch", "fs.inotify.max_user_watches", limits.inotify_max_user_watches),
    };
    let most = most.map(|most| format!(" {most}")).unwrap_or_default();
    let summary = format!(
        "no inotify {what} is left for the agent's user ({name}{most}): logs and configurations are not followed"
    );
    let evidence = Evidence::new(format!("one more inotify {what} was refused"), name);
    Some(Abnormal {
        evidence: vec![evidence],
        ..state("inotify_exhausted", Subject::node(), Severity::Warning, summary)
    })
}

fn stolen(reading: &Reading, limit: Limit) -> Option<Abnormal> {
    // A share of a few seconds is none of a minute.
    let shares = reading.cpu.filter(|shares| shares.over_seconds >= 55.0)?;
    let steal = shares.steal_percent;
    if steal <= limit.value {
        return None;
    }
    let summary = format!("the hypervisor took {steal:.0} % of the CPU time of the last minute");
    let text = format!("steal {steal:.0} % of {:.0} s, above {} %", shares.over_seconds, limit.value);
    Some(Abnormal {
        evidence: vec![
            Evidence::new(text, "/proc/stat")
                .with_value(steal, "percent")
                .with_threshold(limit.value, limit.origin),
        ],
        clear_after: Duration::from_secs(30),
        ..state("cpu_stolen", Subject::node(), Severity::Warning, summary)
    })
}

fn blocked_load(reading: &Reading, limit: Limit) -> Option<Abnormal> {
    let (load, cores) = (reading.load.one, reading.cores as f64);
    let (shares, blocked) = (reading.cpu?, reading.blocked.count?);
    // The CPUs are idle, and those in D make up most of the load.
    if load <= limit.value * cores || shares.idle_percent < 50.0 || (blocked as f64) < load / 2.0 {
        return None;
    }
    let summary = format!(
        "load {load:.0} is {blocked} tasks in D, not CPU: the CPUs are {:.0} % idle",
        shares.idle_percent
    );
    let mut evidence = vec![
        Evidence::new(format!("load {load:.2} on {} CPUs", reading.cores), "/proc/loadavg")
            .with_value(load / cores, "ratio")
            .with_threshold(limit.value, limit.origin),
        Evidence::new(format!("{blocked} tasks in D"), "/proc/PID/task/TID/stat")
            .with_value(blocked as f64, "tasks"),
    ];
    let places = reading.blocked.by_wchan.iter().map(|(place, count)| format!("{count} in {place}"));
    let places: Vec<String> = places.collect();
    if !places.is_empty() {
        evidence.push(Evidence::new(places.join(", "), "/proc/PID/task/TID/wchan"));
    }
    Some(Abnormal {
        evidence,
        hold: Duration::from_secs(10),
        clear_after: Duration::from_secs(60),
        ..state("load_from_blocked_tasks", Subject::node(), Severity::Info, summary)
    })
}

fn stuck(reading: &Reading, limit: Limit) -> Vec<Abnormal> {
    let now = reading.boot;
    let is_ours = |task: &&Blocked| matches!(task.group, Group::Kubelet | Group::Runtime);
    let is_old = |task: &&Blocked| task.age(now).as_secs_f64() > limit.value && !task.is_frozen();
    let stuck = || reading.all_blocked.iter().filter(is_old);
    // One finding a process: its threads often wait for one and the same.
    let mut seen = std::collections::BTreeSet::new();
    let first = stuck().filter(is_ours).chain(stuck().filter(|task| !is_ours(task)));
    let all = stuck().count();
    let chosen = first.filter(|task| seen.insert(task.pid)).take(MOST);
    chosen
        .map(|task| {
            let severity = if is_ours(&task) { Severity::Critical } else { Severity::Warning };
            let seconds = task.age(now).as_secs();
            let summary = format!("{} waits in D for {seconds} s at least{}", task.who(), task.place());
            let text = format!("in D since {} without having run once", task.since);
            let source = format!("/proc/{}/task/{}", task.pid, task.tid);
            let mut evidence = vec![
                Evidence::new(text, &source)
                    .with_value(task.age(now).as_secs_f64(), "seconds")
                    .with_threshold(limit.value, documented(limit)),
            ];
            let stack = task.described.as_ref().map(|described| described.stack.join(" < "));
            if let Some(stack) = stack.filter(|stack| !stack.is_empty()) {
                evidence.push(Evidence::new(stack, format!("{source}/stack")));
            }
            if all > 1 {
                evidence.push(Evidence::new(format!("{all} tasks have been in D for so long"), "/proc"));
            }
            Abnormal {
                evidence,
                since: Some(task.since),
                ..state("task_stuck", process(&task.process, task.pid), severity, summary)
            }
        })
        .collect()
}

/// 120 s is `kernel.hung_task_timeout_secs`' own default.
fn documented(limit: Limit) -> Origin {
    if limit.origin == Origin::Heuristic { Origin::DocumentedDefault } else { limit.origin }
}

fn process(name: &str, pid: u32) -> Subject {
    Subject::new(SubjectKind::Process, format!("{name}[{pid}]"))
}

fn calls_stuck(reading: &Reading, limit: Limit) -> Vec<Abnormal> {
    let now = reading.boot;
    let old = reading.calls.iter().filter(|call| call.age(now).as_secs_f64() > limit.value);
    old.take(MOST)
        .map(|call| {
            let seconds = call.age(now).as_secs();
            let place = call.wchan.as_ref().map(|wchan| format!(" in {wchan}")).unwrap_or_default();
            let what = if call.group == Group::Cni {
                "a network plugin's call"
            } else {
                "a call of the OCI runtime"
            };
            let summary = format!(
                "{} has not come back for {seconds} s: {what}, started by {}, in state {}{place}",
                call.who(),
                call.parent,
                call.state
            );
            let text = format!("started at {}, runs still", call.since);
            Abnormal {
                evidence: vec![
                    Evidence::new(text, format!("/proc/{}/stat", call.pid))
                        .with_value(call.age(now).as_secs_f64(), "seconds")
                        .with_threshold(limit.value, limit.origin),
                ],
                since: Some(call.since),
                ..state("runtime_call_stuck", process(&call.name, call.pid), Severity::Warning, summary)
            }
        })
        .collect()
}

fn shims_stopped(reading: &Reading) -> Vec<Abnormal> {
    let stopped = reading.shims.iter().flat_map(|shims| &shims.stopped).take(MOST);
    stopped
        .map(|shim| {
            let id = shim.id.as_ref().map(|id| format!(" of {id}")).unwrap_or_default();
            let summary = format!(
                "{}[{}]{id} is stopped: each call of the runtime that needs it waits",
                shim.name, shim.pid
            );
            Abnormal {
                evidence: vec![Evidence::new("state T (stopped)", format!("/proc/{}/stat", shim.pid))],
                ..state("shim_stopped", process(&shim.name, shim.pid), Severity::Warning, summary)
            }
        })
        .collect()
}

fn orphans(reading: &Reading, limit: Limit) -> Option<Abnormal> {
    let shims = reading.shims.as_ref()?;
    let orphans = shims.orphans.filter(|count| *count as f64 > limit.value)?;
    let summary = format!("{orphans} shims run whose sandbox the runtime does not know");
    let sandboxes = shims.sandboxes.map(|count| count.to_string()).unwrap_or_else(|| "unknown".to_owned());
    let text = format!("{} shims, {sandboxes} sandboxes, {orphans} shims without one", shims.count);
    let oldest = shims.oldest_orphans.iter().map(|shim| format!("{} (since {})", shim.pid, shim.since));
    let oldest: Vec<String> = oldest.collect();
    Some(Abnormal {
        evidence: vec![
            Evidence::new(text, "/proc, CRI ListPodSandbox")
                .with_value(orphans as f64, "shims")
                .with_threshold(limit.value, limit.origin),
            Evidence::new(format!("the oldest: {}", oldest.join(", ")), "/proc/PID/cmdline"),
        ],
        hold: Duration::from_secs(60),
        ..state("orphan_shims", Subject::node(), Severity::Info, summary)
    })
}

fn zombies(reading: &Reading, limit: Limit) -> Vec<Abnormal> {
    let parents = reading.zombies.iter().flat_map(|zombies| &zombies.parents);
    let many = parents.filter(|parent| parent.zombies as f64 >= limit.value).take(MOST);
    many.map(|parent| {
        let name = parent.name.as_deref().unwrap_or("?");
        let (pid, count) = (parent.pid, parent.zombies);
        // A tenth of all ids is on the way to having none.
        let is_bad = reading.limits.most_tasks().is_some_and(|most| count.saturating_mul(10) >= most);
        let severity = if is_bad { Severity::Warning } else { Severity::Info };
        let summary = format!("{name}[{pid}] has not reaped {count} dead children");
        Abnormal {
            evidence: vec![
                Evidence::new(format!("{count} processes in state Z with parent {pid}"), "/proc/PID/stat")
                    .with_value(count as f64, "processes")
                    .with_threshold(limit.value, limit.origin),
            ],
            // Two looks at least: a shell's children of an instant are nobody's fault.
            hold: Duration::from_secs(8),
            ..state("zombies_many", process(name, pid), severity, summary)
        }
    })
    .collect()
}
