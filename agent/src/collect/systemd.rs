//! systemd: whether PID 1 answers, how busy it is, and the units of the kubelet and of the runtime.
//!
//! containerd and CRI-O with the systemd cgroup driver ask PID 1 for each container, the kubelet for each mount: one that
//! does not answer stops them all, while the runtime itself looks well. A ping each ten seconds tells. Units are asked for
//! each minute; nothing that is asked loads one.

mod asking;
mod detect;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use serde::Serialize;

use self::asking::{Asking, Board};
pub use self::asking::{Known, UnitState};
use crate::collector::{Collector, never_woken};
use crate::host::bounded::Bounded;
use crate::host::process::Process;
use crate::host::{Host, ReadError};
use crate::metrics::{Family, Sink};

/// Whether systemd answers, and the units that matter, every five seconds.
pub static COLLECTOR: Collector<Source, Reading> = Collector {
    name: "systemd",
    every: Duration::from_secs(5),
    deadline: Duration::from_secs(5),
    remembers: true,
    open,
    read,
    wake: never_woken,
    summary,
    families: FAMILIES,
    metrics,
    limits: detect::LIMITS,
    detect: detect::detect,
    pages: &[],
    asks: &[],
};

/// A full minute of a core is what a busy PID 1 is held to.
const WINDOW: Duration = Duration::from_secs(60);

/// A list of 1,000 mounts takes a millisecond.
const MOUNTS_LIMIT: Duration = Duration::from_millis(500);

/// What is kept between reads.
#[derive(Debug)]
pub struct Source {
    asking: Asking,
    cpu: VecDeque<(Duration, f64)>,
    units: BTreeSet<String>,
    apart: Bounded,
    mounts: Option<u64>,
    mounts_read: Option<Duration>,
}

/// One reading.
#[derive(Clone, Debug, Serialize)]
pub struct Reading {
    /// PID 1's state: `S`, `R`, `D`.
    pub pid1_state: char,
    /// CPU seconds of PID 1 since boot; none where they cannot be read.
    pub pid1_cpu_seconds: Option<f64>,
    /// Its share of one core over the last minute, in percent; none until a minute has passed.
    pub pid1_core_percent: Option<f64>,
    /// The socket that it was asked over.
    pub socket: Option<&'static str>,
    /// How long the newest ping took.
    pub ping_seconds: Option<f64>,
    /// When it was answered.
    pub answered: Option<jiff::Timestamp>,
    /// Since when there is no answer; none: there is.
    pub unanswered_since: Option<jiff::Timestamp>,
    /// How long that is.
    pub unanswered_seconds: Option<f64>,
    /// Why the newest ping has no answer.
    pub error: Option<String>,
    /// What systemd says of itself and its units, each minute.
    pub known: Option<Known>,
    /// Why that is not newer.
    pub known_error: Option<String>,
    /// Control groups below the root, to hold scopes against (cgroup v2).
    pub cgroups: Option<u64>,
    /// Mounts of the host, to hold mount units against.
    pub mounts: Option<u64>,
    /// Tasks of the kubelet's and the runtime's units against their limits.
    pub unit_tasks: Vec<UnitTasks>,
}

/// Tasks of a unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnitTasks {
    /// The unit.
    pub unit: String,
    /// `kubelet` or `runtime`.
    pub role: &'static str,
    /// Its tasks (`pids.current`).
    pub current: u64,
    /// `pids.max`; none: no limit.
    pub max: Option<u64>,
    /// How often a fork was refused for it (`pids.events max`).
    pub refused: Option<u64>,
}

fn open(host: &Host) -> Result<Source, ReadError> {
    is_systemd(host)?;
    let asking = Asking::start(host)
        .map_err(|error| ReadError::Other(format!("cannot start the thread that asks systemd: {error}")))?;
    let mut apart = Bounded::new("mounts");
    apart.start()?;
    let (cpu, units) = (VecDeque::new(), BTreeSet::new());
    Ok(Source { asking, cpu, units, apart, mounts: None, mounts_read: None })
}

/// As sd_booted(3): this folder is there if and only if systemd is PID 1.
fn is_systemd(host: &Host) -> Result<(), ReadError> {
    let name = match host.process_name(1)? {
        Some(name) => name,
        None => return Err(ReadError::Other("process 1 is not in /proc: mount the host's /proc".to_owned())),
    };
    if host.exists("/run/systemd/system")? {
        return Ok(());
    }
    // A container need not have the host's /run: asking will tell.
    if name == "systemd" {
        return Ok(());
    }
    Err(ReadError::absent(format!("process 1 is `{name}`, not systemd: this node has none")))
}

fn read(source: &mut Source, host: &Host) -> Result<Reading, ReadError> {
    is_systemd(host)?;
    let (state, cpu_seconds) = first(host)?;
    let at = host.clock().stamp();
    source.cpu.extend(cpu_seconds.map(|seconds| (at.boot, seconds)));
    while source.cpu.get(1).is_some_and(|(then, _)| *then + WINDOW <= at.boot) {
        source.cpu.pop_front();
    }
    let before = source.cpu.front().filter(|(then, _)| *then + WINDOW <= at.boot);
    let core = cpu_seconds.zip(before).map(|(seconds, (then, before))| {
        (seconds - before) * 100.0 / at.boot.saturating_sub(*then).as_secs_f64()
    });
    let board: Board = source.asking.board();
    let mut unit_tasks = Vec::new();
    for (role, process) in [("kubelet", host.kubelet_process()), ("runtime", host.runtime_process())] {
        let Some((path, unit)) = process.and_then(|process| unit_of(host, &process)) else { continue };
        unit_tasks.extend(tasks(host, &path, &unit, role));
        // It stays of note when its process is gone.
        source.units.insert(unit);
    }
    source.asking.of_note(&source.units);
    let silent = board.unanswered;
    Ok(Reading {
        pid1_state: state,
        pid1_cpu_seconds: cpu_seconds,
        pid1_core_percent: core.filter(|core| *core >= 0.0),
        socket: board.socket,
        ping_seconds: board.answered.map(|(_, took)| took.as_secs_f64()),
        answered: board.answered.map(|(at, _)| at.wall),
        unanswered_since: silent.map(|since| since.wall),
        unanswered_seconds: silent.map(|since| at.boot.saturating_sub(since.boot).as_secs_f64()),
        error: board.error.map(|error| needs(error, board.is_denied)),
        known: board.known,
        known_error: board.known_error,
        cgroups: host.read("/sys/fs/cgroup/cgroup.stat").ok().and_then(|text| descendants(&text)),
        mounts: source.mounts(host, at.boot),
        unit_tasks,
    })
}

impl Source {
    /// The host's mounts, each minute. The list is behind a lock that a mount in progress holds.
    fn mounts(&mut self, host: &Host, now: Duration) -> Option<u64> {
        if self.mounts_read.is_none_or(|read| read + WINDOW <= now) {
            self.mounts_read = Some(now);
            let host = host.clone();
            let read = self.apart.run(MOUNTS_LIMIT, move || host.read_bytes("/proc/1/mounts"));
            let text = read.ok().and_then(Result::ok);
            self.mounts = text.map(|text| text.iter().filter(|byte| **byte == b'\n').count() as u64);
        }
        self.mounts
    }
}

fn needs(error: String, is_denied: bool) -> String {
    if !is_denied {
        return error;
    }
    format!(
        "{error}; it takes root for {}, or the system bus' socket {}, and in a container no AppArmor profile that denies it",
        asking::PRIVATE,
        asking::SYSTEM_BUS
    )
}

/// State and CPU seconds of process 1 (fields 3, 14, 15 of `stat`). systemd has one thread, but for moments: where `stat`
/// is left alone that thread's own time is nearly all.
fn first(host: &Host) -> Result<(char, Option<f64>), ReadError> {
    if host.is_confined() {
        let gone = || ReadError::NotFound { path: "/proc/1/status".into() };
        let state = host.state_by_status(1)?.ok_or_else(gone)?;
        return Ok((state, host.first_thread_cpu_seconds(1).ok().flatten()));
    }
    let text = host.read("/proc/1/stat")?;
    parse_first(&text)
        .map(|(state, seconds)| (state, Some(seconds)))
        .ok_or_else(|| ReadError::malformed("/proc/1/stat", "expected `1 (NAME) STATE …`"))
}

fn parse_first(text: &str) -> Option<(char, f64)> {
    let (_, rest) = text.strip_suffix('\n')?.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    let user: u64 = fields.nth(14 - 4)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    // Behind them is more: a cut number is another number.
    fields.next()?;
    Some((state, user.checked_add(system)? as f64 / 100.0))
}

/// The cgroup of a process and the unit that it is: the first service or scope in its path.
fn unit_of(host: &Host, process: &Process) -> Option<(String, String)> {
    let paths = host.process_cgroups(process.pid).ok().flatten()?;
    paths.iter().rev().find_map(|path| unit_in(path))
}

fn unit_in(path: &str) -> Option<(String, String)> {
    let mut taken = String::new();
    // From another cgroup namespace the path begins with `/..`: what follows counts from the host's root.
    for part in path.split('/').filter(|part| !part.is_empty() && *part != "..") {
        taken.push('/');
        taken.push_str(part);
        if part.ends_with(".service") {
            return Some((taken, part.to_owned()));
        }
    }
    None
}

fn tasks(host: &Host, path: &str, unit: &str, role: &'static str) -> Option<UnitTasks> {
    let number = |text: String| text.trim_end().parse::<u64>().ok();
    // The unified hierarchy, then the one of v1.
    ["/sys/fs/cgroup", "/sys/fs/cgroup/pids"].into_iter().find_map(|root| {
        let file = |name: &str| host.read(format!("{root}{path}/{name}")).ok();
        Some(UnitTasks {
            unit: unit.to_owned(),
            role,
            current: file("pids.current").and_then(number)?,
            max: file("pids.max").and_then(number),
            refused: file("pids.events")
                .and_then(|text| text.lines().find_map(|line| line.strip_prefix("max ")?.parse().ok())),
        })
    })
}

/// `nr_descendants 123` of the root's cgroup.stat.
fn descendants(text: &str) -> Option<u64> {
    text.split_inclusive('\n')
        .find_map(|line| line.strip_suffix('\n')?.strip_prefix("nr_descendants ")?.parse().ok())
}

/// Whether a unit is one that runs a kubelet or a runtime, by its usual names. Docker's is not: one that failed long ago on
/// a node that runs containerd is no fault of the node's.
fn is_of_note(unit: &str) -> bool {
    const UNITS: &[&str] = &[
        "kubelet",
        "containerd",
        "crio",
        "k3s",
        "k3s-agent",
        "rke2-server",
        "rke2-agent",
        "k0scontroller",
        "k0sworker",
        "snap.microk8s.daemon-kubelite",
        "snap.microk8s.daemon-containerd",
        "snap.kubelet-eks.daemon",
    ];
    unit.strip_suffix(".service").is_some_and(|name| UNITS.contains(&name))
}

fn summary(reading: &Reading) -> String {
    let version = reading.known.as_ref().and_then(|known| known.version.as_deref()).unwrap_or("");
    match (reading.unanswered_seconds, reading.ping_seconds) {
        (Some(seconds), _) if seconds > 1.0 => {
            format!("systemd {version} has not answered for {seconds:.0} s")
        }
        (_, Some(took)) => format!("systemd {version} answers in {:.1} ms", took * 1000.0),
        _ => reading.error.clone().unwrap_or_else(|| "systemd was not asked yet".to_owned()),
    }
}

const FAMILIES: &[&Family] = &[
    &ANSWER,
    &UNANSWERED,
    &CPU,
    &FAILED,
    &JOBS,
    &SCOPES,
    &RUN_SCOPES,
    &MOUNT_UNITS,
    &MOUNTS,
    &RESTARTS,
    &TASKS,
    &TASKS_MAX,
    &REFUSED,
];
static ANSWER: Family =
    Family::gauge("nodewhy_systemd_ping_seconds", "How long systemd's newest answer took.");
static UNANSWERED: Family = Family::gauge(
    "nodewhy_systemd_unanswered_seconds",
    "How long a question has waited for systemd; 0: none does.",
);
static CPU: Family = Family::counter("nodewhy_systemd_cpu_seconds_total", "CPU time of PID 1.");
static FAILED: Family = Family::gauge("nodewhy_systemd_failed_units", "Units that failed.");
static JOBS: Family = Family::gauge("nodewhy_systemd_jobs", "Jobs that wait or run.");
static SCOPES: Family = Family::gauge("nodewhy_systemd_scopes", "Scopes in systemd's memory.");
static RUN_SCOPES: Family =
    Family::gauge("nodewhy_systemd_run_scopes", "Scopes of systemd-run: those that stay are leaked.");
static MOUNT_UNITS: Family = Family::gauge("nodewhy_systemd_mount_units", "Mount units in systemd's memory.");
static MOUNTS: Family = Family::gauge("nodewhy_mounts", "Mounts of the host.");
static RESTARTS: Family =
    Family::gauge("nodewhy_unit_restarts", "How often systemd restarted the unit by itself (NRestarts).")
        .by(&["role"]);
static TASKS: Family = Family::gauge("nodewhy_unit_tasks", "Tasks of the unit (pids.current).").by(&["role"]);
static TASKS_MAX: Family =
    Family::gauge("nodewhy_unit_tasks_limit", "The unit's TasksMax (pids.max).").by(&["role"]);
static REFUSED: Family =
    Family::counter("nodewhy_unit_forks_refused_total", "Forks that the unit's TasksMax refused.")
        .by(&["role"]);

fn metrics(reading: &Reading, sink: &mut Sink) {
    let float = |count: Option<u64>| count.map(|count| count as f64);
    if let Some(seconds) = reading.pid1_cpu_seconds {
        sink.put(&CPU, &[], seconds);
    }
    sink.put_some(&ANSWER, &[], reading.ping_seconds);
    if reading.answered.is_some() || reading.unanswered_seconds.is_some() {
        sink.put(&UNANSWERED, &[], reading.unanswered_seconds.unwrap_or(0.0));
    }
    sink.put_some(&MOUNTS, &[], float(reading.mounts));
    for tasks in &reading.unit_tasks {
        sink.put(&TASKS, &[tasks.role], tasks.current as f64);
        sink.put_some(&TASKS_MAX, &[tasks.role], float(tasks.max));
        sink.put_some(&REFUSED, &[tasks.role], float(tasks.refused));
    }
    let Some(known) = &reading.known else { return };
    sink.put_some(&FAILED, &[], known.failed_count.map(f64::from));
    sink.put_some(&JOBS, &[], known.jobs.map(f64::from));
    sink.put_some(&SCOPES, &[], float(known.scopes));
    sink.put_some(&RUN_SCOPES, &[], float(known.run_scopes));
    sink.put_some(&MOUNT_UNITS, &[], float(known.mount_units));
    for tasks in &reading.unit_tasks {
        let restarts = known.of_note.get(&tasks.unit).and_then(|unit| unit.restarts);
        sink.put_some(&RESTARTS, &[tasks.role], restarts.map(f64::from));
    }
}

/// Every parser of this collector, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    use crate::fuzz::{done, text};
    let text = text(bytes);
    done((parse_first(&text), unit_in(&text), descendants(&text)));
}

#[cfg(test)]
mod tests;
