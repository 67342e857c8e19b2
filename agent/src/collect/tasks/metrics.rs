//! The metric families of tasks.

use super::Reading;
use super::limits::Limits;
use crate::metrics::{Family, Sink};

pub(super) const FAMILIES: &[&Family] = &[
    &LOAD,
    &CPU,
    &CORES,
    &RUNNING,
    &BLOCKED_IO,
    &FORKS,
    &SWITCHES,
    &TASKS,
    &TASKS_LIMIT,
    &STATES,
    &BLOCKED,
    &OLDEST,
    &CALLS,
    &OLDEST_CALL,
    &SHIMS,
    &ORPHANS,
    &ZOMBIES,
    &FILES,
    &FILE_MAX,
    &OPEN,
    &OPEN_LIMIT,
    &SWEEP_AGE,
];

static LOAD: Family =
    Family::gauge("nodewhy_load", "Load average: tasks that run, wait for a CPU, or wait in D.")
        .by(&["minutes"]);
static CPU: Family =
    Family::counter("nodewhy_cpu_seconds_total", "CPU time of the node, all CPUs together.").by(&["mode"]);
static CORES: Family = Family::gauge("nodewhy_cpus", "CPUs that are online.");
static RUNNING: Family = Family::gauge("nodewhy_tasks_runnable", "Tasks that run or wait for a CPU.");
static BLOCKED_IO: Family = Family::gauge(
    "nodewhy_tasks_waiting_for_io",
    "Tasks that wait for block I/O (procs_blocked): only a part of those in D.",
);
static FORKS: Family = Family::counter("nodewhy_forks_total", "Forks since boot.");
static SWITCHES: Family = Family::counter("nodewhy_context_switches_total", "Context switches since boot.");
static TASKS: Family = Family::gauge("nodewhy_tasks", "Tasks (threads) of the node.");
static TASKS_LIMIT: Family = Family::gauge(
    "nodewhy_tasks_limit",
    "The most tasks: the smaller of kernel.pid_max and kernel.threads-max.",
);
static STATES: Family = Family::gauge(
    "nodewhy_tasks_by_state",
    "Tasks by the kernel's letter of their state, at the newest look.",
)
.by(&["state"]);
static BLOCKED: Family = Family::gauge(
    "nodewhy_tasks_uninterruptible",
    "Tasks in D, by the part of the node that they belong to.",
)
.by(&["group"]);
static OLDEST: Family = Family::gauge(
    "nodewhy_tasks_uninterruptible_oldest_seconds",
    "How long at least the oldest task in D has waited, by the part of the node; 0 with none in D.",
)
.by(&["group"]);
static CALLS: Family = Family::gauge(
    "nodewhy_runtime_calls",
    "Processes of runc and of network plugins that the runtime waits for.",
)
.by(&["group"]);
static OLDEST_CALL: Family = Family::gauge(
    "nodewhy_runtime_calls_oldest_seconds",
    "Age of the oldest process of runc and of network plugins; 0 with none.",
)
.by(&["group"]);
static SHIMS: Family = Family::gauge("nodewhy_shims", "Shims (containerd) and monitors (CRI-O).");
static ORPHANS: Family = Family::gauge(
    "nodewhy_shims_without_sandbox",
    "Shims of Kubernetes whose sandbox the runtime does not know.",
);
static ZOMBIES: Family = Family::gauge("nodewhy_zombies", "Dead processes that their parents do not reap.");
static FILES: Family = Family::gauge("nodewhy_file_handles", "File handles in use on the node.");
static FILE_MAX: Family = Family::gauge("nodewhy_file_handles_limit", "fs.file-max.");
static OPEN: Family = Family::gauge("nodewhy_open_files", "Open descriptors of a process.").by(&["process"]);
static OPEN_LIMIT: Family =
    Family::gauge("nodewhy_open_files_limit", "RLIMIT_NOFILE of a process, the soft limit.").by(&["process"]);
static SWEEP_AGE: Family =
    Family::gauge("nodewhy_tasks_look_age_seconds", "Age of the newest complete look at every thread.");

/// Every group has its series, so that their number does not change: what a look has not found is zero, before the
/// first look there is none.
const GROUPS: [&str; 8] = ["kubelet", "runtime", "shim", "runc", "cni", "pod", "kernel", "other"];

pub(super) fn metrics(reading: &Reading, sink: &mut Sink) {
    for (minutes, load) in [("1", reading.load.one), ("5", reading.load.five), ("15", reading.load.fifteen)] {
        sink.put(&LOAD, &[minutes], load);
    }
    for (mode, seconds) in &reading.cpu_seconds {
        sink.put(&CPU, &[mode], *seconds);
    }
    sink.put(&CORES, &[], reading.cores as f64);
    sink.put(&RUNNING, &[], reading.running as f64);
    sink.put(&BLOCKED_IO, &[], reading.blocked_on_io as f64);
    sink.put(&FORKS, &[], reading.forks as f64);
    sink.put(&SWITCHES, &[], reading.context_switches as f64);
    sink.put(&TASKS, &[], reading.load.tasks as f64);
    limits(&reading.limits, sink);
    if reading.swept.is_none() {
        return;
    }
    sink.put_some(&SWEEP_AGE, &[], reading.sweep.age_seconds);
    for state in ["R", "S", "D", "T", "t", "Z", "I"] {
        let count = state.chars().next().and_then(|state| reading.sweep.states.get(&state));
        sink.put(&STATES, &[state], count.copied().unwrap_or(0) as f64);
    }
    for group in GROUPS {
        let count = reading.blocked.by_group.get(group).copied().unwrap_or(0);
        sink.put(&BLOCKED, &[group], count as f64);
        let oldest = reading.all_blocked.iter().find(|task| task.group.word() == group);
        let age = oldest.map(|task| task.age(reading.boot).as_secs_f64());
        sink.put(&OLDEST, &[group], age.unwrap_or(0.0));
    }
    for group in ["runc", "cni"] {
        let mut calls = reading.all_calls.iter().filter(|call| call.group.word() == group);
        let oldest = calls.next();
        sink.put(&CALLS, &[group], (calls.count() + usize::from(oldest.is_some())) as f64);
        sink.put(&OLDEST_CALL, &[group], oldest.map_or(0.0, |call| call.age(reading.boot).as_secs_f64()));
    }
    let shims = reading.shims.as_ref();
    sink.put_some(&SHIMS, &[], shims.map(|shims| shims.count as f64));
    sink.put_some(&ORPHANS, &[], shims.and_then(|shims| shims.orphans).map(|count| count as f64));
    sink.put_some(&ZOMBIES, &[], reading.zombies.as_ref().map(|zombies| zombies.count as f64));
}

fn limits(limits: &Limits, sink: &mut Sink) {
    sink.put_some(&TASKS_LIMIT, &[], limits.most_tasks().map(|most| most as f64));
    sink.put_some(&FILES, &[], limits.file_handles.map(|used| used as f64));
    sink.put_some(&FILE_MAX, &[], limits.file_max.map(|most| most as f64));
    for files in &limits.files {
        sink.put(&OPEN, &[files.role], files.open as f64);
        sink.put(&OPEN_LIMIT, &[files.role], files.limit as f64);
    }
}
