//! Pressure stall information of the whole node: `/proc/pressure/{cpu,memory,io,irq}` (Documentation/accounting/psi.rst).
//!
//! `some` is the share of time in which at least one task waited for the resource, `full` the share in which all
//! tasks that had something to do did. A kernel without PSI, or with it switched off, is `Absent` with the reason and
//! the way to switch it on; it is never a pressure of zero.
//!
//! The pressure of single cgroups (kubepods, each QoS class, each pod, the kubelet's, the runtime's, system.slice) is read
//! by [`super::cgroups`], which walks their tree anyhow; a pod's throttled time stands beside it there.

mod off;
mod parse;

pub(crate) use parse::{Wanted, stalls};

use std::time::Duration;

use nodewhy_proto::{Evidence, Severity, Subject};
use serde::Serialize;

use crate::collector::{Abnormal, Collector, Noticed, Pair, never_woken};
use crate::host::{Host, Kept, ReadError};
use crate::metrics::{Family, Sink};
use crate::thresholds::{Heuristic, Thresholds};

/// Pressure of the whole node, every second.
pub static COLLECTOR: Collector<Source, Reading> = Collector {
    name: "pressure",
    every: Duration::from_secs(1),
    deadline: Duration::from_secs(2),
    remembers: false,
    open,
    read,
    wake: never_woken,
    summary,
    families: &[&STALLED, &RATIO],
    metrics,
    limits: &[&MEMORY_FULL, &CPU_SOME, &IO_FULL],
    detect,
    pages: &[],
    asks: &[],
};

/// The open files.
#[derive(Debug)]
pub struct Source {
    cpu: Kept,
    memory: Kept,
    io: Kept,
    irq: Option<Kept>,
}

/// One reading of all four.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reading {
    /// CPU. `full` is `None` up to Linux 5.10; from 5.13 on it is there but always 0 for the whole node, since some
    /// task always runs when others wait for the CPU.
    pub cpu: Stalls,
    /// Memory: waiting for reclaim, refaults, swap-in.
    pub memory: Stalls,
    /// Block I/O.
    pub io: Stalls,
    /// Interrupts; `full` alone. `None` before Linux 6.1 and without CONFIG_IRQ_TIME_ACCOUNTING.
    pub irq: Option<Stalls>,
    /// Why irq, though it is there, could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub irq_error: Option<String>,
}

/// One file.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Stalls {
    /// Some task waited.
    pub some: Option<Stall>,
    /// All tasks waited.
    pub full: Option<Stall>,
}

/// One line.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Stall {
    /// Percent of the last 10 seconds, decaying.
    pub avg10: f64,
    /// Percent of the last 60 seconds.
    pub avg60: f64,
    /// Percent of the last 300 seconds.
    pub avg300: f64,
    /// Seconds since boot; the kernel counts microseconds.
    pub total_seconds: f64,
}

fn open(host: &Host) -> Result<Source, ReadError> {
    let keep = |path| host.keep(path).map_err(|error| off::explain(error, host));
    Ok(Source {
        cpu: keep("/proc/pressure/cpu")?,
        memory: keep("/proc/pressure/memory")?,
        io: keep("/proc/pressure/io")?,
        irq: host.keep("/proc/pressure/irq").ok(),
    })
}

fn read(source: &mut Source, host: &Host) -> Result<Reading, ReadError> {
    let stalls = |file: &mut Kept, wanted| {
        let text = file.read().map(str::to_owned).map_err(|error| off::explain(error, host))?;
        parse::stalls(&text, wanted).map_err(|what| ReadError::malformed(file.path(), what))
    };
    let cpu = stalls(&mut source.cpu, parse::Wanted::Some)?;
    let memory = stalls(&mut source.memory, parse::Wanted::Both)?;
    let io = stalls(&mut source.io, parse::Wanted::Both)?;
    // What cannot be known of interrupts costs only itself. With irqtime accounting off the read says EOPNOTSUPP.
    let (irq, irq_error) = match source.irq.as_mut().map(|file| stalls(file, parse::Wanted::Full)) {
        None | Some(Err(ReadError::Absent { .. })) => (None, None),
        Some(Ok(irq)) => (Some(irq), None),
        Some(Err(error)) => (None, Some(error.to_string())),
    };
    Ok(Reading { cpu, memory, io, irq, irq_error })
}

fn summary(reading: &Reading) -> String {
    let some = |name: &str, stalls: &Stalls| {
        stalls.some.map_or_else(|| format!("{name} unknown"), |some| format!("{name} {:.0} %", some.avg10))
    };
    let (cpu, memory, io) =
        (some("cpu", &reading.cpu), some("memory", &reading.memory), some("io", &reading.io));
    format!("some avg10: {cpu}, {memory}, {io}")
}

static STALLED: Family = Family::counter(
    "nodewhy_pressure_stalled_seconds_total",
    "Time in which some or all tasks waited for the resource.",
)
.by(&["resource", "kind"]);
static RATIO: Family = Family::gauge(
    "nodewhy_pressure_ratio",
    "The kernel's decaying average of the share of time in which tasks waited for the resource.",
)
.by(&["resource", "kind", "window"]);

fn metrics(reading: &Reading, sink: &mut Sink) {
    let none = Stalls { some: None, full: None };
    // `full` of the CPU is no measurement of the whole node (see `Reading::cpu`): a zero here would be a false one.
    let cpu = Stalls { full: None, ..reading.cpu };
    for (resource, stalls) in
        [("cpu", cpu), ("memory", reading.memory), ("io", reading.io), ("irq", reading.irq.unwrap_or(none))]
    {
        for (kind, stall) in [("some", stalls.some), ("full", stalls.full)] {
            let Some(stall) = stall else { continue };
            sink.put(&STALLED, &[resource, kind], stall.total_seconds);
            for (window, percent) in [("10s", stall.avg10), ("60s", stall.avg60), ("300s", stall.avg300)] {
                sink.put(&RATIO, &[resource, kind, window], percent / 100.0);
            }
        }
    }
}

fn detect(pair: Pair<'_, Reading>, thresholds: &Thresholds, noticed: &mut Noticed) {
    for rule in RULES {
        noticed.states.extend(rule.check(&pair, thresholds));
    }
}

/// When which average is too high. The averages decay, so each rule also waits before it believes one.
struct Rule {
    finding: &'static str,
    /// What is held up, in words.
    what: &'static str,
    file: &'static str,
    line: &'static str,
    stall: fn(&Reading) -> Option<Stall>,
    average: fn(Stall) -> f64,
    limit: &'static Heuristic,
    severity: Severity,
    hold: Duration,
    clear_after: Duration,
}

static MEMORY_FULL: Heuristic = Heuristic {
    name: "memory_full_percent",
    about: "PSI `full avg10` of memory above which the node thrashes",
    value: 20.0,
};
static CPU_SOME: Heuristic = Heuristic {
    name: "cpu_some_percent",
    about: "PSI `some avg60` of CPU above which the node is saturated",
    value: 60.0,
};
static IO_FULL: Heuristic = Heuristic {
    name: "io_full_percent",
    about: "PSI `full avg10` of I/O above which the disk holds the node up",
    value: 20.0,
};

static RULES: &[Rule] = &[
    Rule {
        finding: "memory_thrash",
        what: "all tasks wait for memory",
        file: "/proc/pressure/memory",
        line: "full avg10",
        stall: |reading| reading.memory.full,
        average: |stall| stall.avg10,
        limit: &MEMORY_FULL,
        severity: Severity::Critical,
        hold: Duration::from_secs(10),
        clear_after: Duration::from_secs(30),
    },
    Rule {
        finding: "cpu_saturated",
        what: "some task waits for a CPU",
        file: "/proc/pressure/cpu",
        line: "some avg60",
        stall: |reading| reading.cpu.some,
        average: |stall| stall.avg60,
        limit: &CPU_SOME,
        severity: Severity::Warning,
        hold: Duration::from_secs(60),
        clear_after: Duration::from_secs(60),
    },
    Rule {
        finding: "io_stalled",
        what: "all tasks wait for I/O",
        file: "/proc/pressure/io",
        line: "full avg10",
        stall: |reading| reading.io.full,
        average: |stall| stall.avg10,
        limit: &IO_FULL,
        severity: Severity::Warning,
        hold: Duration::from_secs(10),
        clear_after: Duration::from_secs(30),
    },
];

impl Rule {
    fn check(&self, pair: &Pair<'_, Reading>, thresholds: &Thresholds) -> Option<Abnormal> {
        let stall = (self.stall)(pair.now)?;
        let (percent, limit) = ((self.average)(stall), thresholds.limit(self.limit));
        if percent <= limit.value {
            return None;
        }
        let text = format!("{} {percent:.2} %, above {} %", self.line, limit.value);
        let mut evidence = vec![
            Evidence::new(text, self.file)
                .with_time(pair.at.wall)
                .with_value(percent, "percent")
                .with_threshold(limit.value, limit.origin),
        ];
        // The averages lag behind; the totals say how it is right now.
        let before = pair.before.and_then(|(reading, at)| Some(((self.stall)(reading)?, at)));
        if let Some((before, at)) = before {
            let stalled = stall.total_seconds - before.total_seconds;
            let passed = pair.at.boot.saturating_sub(at.boot).as_secs_f64();
            if stalled >= 0.0 && passed > 0.0 {
                let text = format!("{stalled:.2} s of the last {passed:.2} s");
                evidence.push(
                    Evidence::new(text, self.file).with_time(pair.at.wall).with_value(stalled, "seconds"),
                );
            }
        }
        Some(Abnormal {
            finding: self.finding,
            subject: Subject::node(),
            severity: self.severity,
            summary: format!("{} for {percent:.0} % of the time", self.what),
            evidence,
            since: None,
            hold: self.hold,
            clear_after: self.clear_after,
        })
    }
}

/// Every parser of this collector, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    use crate::fuzz::{done, text};
    let text = text(bytes);
    for wanted in [Wanted::Some, Wanted::Both, Wanted::Full] {
        done(parse::stalls(&text, wanted));
    }
    off::fuzz(bytes);
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nodewhy_clock::Clock;
    use nodewhy_proto::{Origin, Outcome};

    use super::*;
    use crate::collector::Collect;
    use crate::host::Places;

    // Recorded on Linux 6.1.192, Debian 12, in a node under memory pressure.
    const NODE: [(&str, &str); 3] = [
        ("cpu", include_str!("../../fixtures/pressure/linux-6.1.192-cpu.txt")),
        ("memory", include_str!("../../fixtures/pressure/linux-6.1.192-memory.txt")),
        ("io", include_str!("../../fixtures/pressure/linux-6.1.192-io.txt")),
    ];

    fn node(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc/pressure")).unwrap();
        for (name, text) in files {
            fs::write(root.path().join("proc/pressure").join(name), text).unwrap();
        }
        let host = Host::new(root.path(), Clock::system(), Places::default());
        (root, host)
    }

    fn noticed(now: &Reading, before: Option<&Reading>) -> Noticed {
        let mut noticed = Noticed::default();
        let clock = Clock::system();
        let at = clock.stamp();
        let earlier =
            nodewhy_clock::Stamp { wall: at.wall, boot: at.boot.saturating_sub(Duration::from_secs(1)) };
        let pair = Pair { before: before.map(|reading| (reading, earlier)), now, at };
        detect(pair, &Thresholds::default(), &mut noticed);
        noticed
    }

    #[test]
    fn the_recorded_node_is_read_and_is_not_abnormal() {
        let (_root, host) = node(&NODE);
        let reading = read(&mut open(&host).unwrap(), &host).unwrap();
        assert_eq!(reading.cpu.some.unwrap().total_seconds, 454.957_756);
        assert_eq!(reading.memory.full.unwrap().avg60, 0.23);
        assert_eq!(reading.irq, None);
        assert!(noticed(&reading, None).states.is_empty());
        let json = serde_json::to_value(&reading).unwrap();
        assert_eq!(json["memory"]["some"]["avg10"], 0.07);
        assert!(json["irq"].is_null());
    }

    #[test]
    fn thresholds_are_strict_and_the_evidence_has_figures() {
        let (_root, host) = node(&NODE);
        let before = read(&mut open(&host).unwrap(), &host).unwrap();
        let mut now = before.clone();
        now.memory.full = Some(Stall { avg10: 20.0, ..before.memory.full.unwrap() });
        assert!(noticed(&now, None).states.is_empty(), "20 is not above 20");
        now.memory.full = Some(Stall { avg10: 37.25, total_seconds: 1.75, ..before.memory.full.unwrap() });
        let found = noticed(&now, Some(&before)).states;
        assert_eq!(found.len(), 1);
        let thrash = &found[0];
        assert_eq!((thrash.finding, thrash.severity), ("memory_thrash", Severity::Critical));
        assert_eq!((thrash.hold, thrash.clear_after), (Duration::from_secs(10), Duration::from_secs(30)));
        assert_eq!(thrash.evidence[0].text, "full avg10 37.25 %, above 20 %");
        assert_eq!(thrash.evidence[0].threshold.as_ref().unwrap().origin, Origin::Heuristic);
        assert_eq!(thrash.evidence[1].text, "0.75 s of the last 1.00 s");
        now.cpu.some = Some(Stall { avg60: 61.0, ..before.cpu.some.unwrap() });
        now.io.full = Some(Stall { avg10: 21.0, ..before.io.full.unwrap() });
        let names: Vec<_> = noticed(&now, None).states.iter().map(|state| state.finding).collect();
        assert_eq!(names, ["memory_thrash", "cpu_saturated", "io_stalled"]);
    }

    #[test]
    fn a_busy_machine_is_a_warning_after_a_minute_and_nothing_critical() {
        // A compiler on every CPU: tasks always wait for one, and for nothing else.
        let (_root, host) = node(&NODE);
        let mut now = read(&mut open(&host).unwrap(), &host).unwrap();
        now.cpu.some = Some(Stall { avg10: 99.0, avg60: 97.0, avg300: 80.0, total_seconds: 455.9 });
        let mut findings = crate::findings::Findings::default();
        let start = host.clock().stamp();
        let mut at = |seconds| {
            let at = nodewhy_clock::Stamp { boot: start.boot + Duration::from_secs(seconds), ..start };
            findings.observe("pressure", noticed(&now, None).states, at);
            let names: Vec<_> = findings.active().map(|it| (it.finding.clone(), it.severity)).collect();
            names
        };
        assert_eq!(at(0), []);
        assert_eq!(at(59), []);
        assert_eq!(at(60), [("cpu_saturated".to_owned(), Severity::Warning)]);
    }

    #[test]
    fn what_is_missing_is_in_no_metric() {
        let (_root, host) = node(&NODE);
        let reading = read(&mut open(&host).unwrap(), &host).unwrap();
        let mut sink = Sink::default();
        metrics(&reading, &mut sink);
        let text = sink.encode();
        let total = "nodewhy_pressure_stalled_seconds_total{resource=\"memory\",kind=\"full\"} 1.001962";
        assert!(text.contains(total), "{text}");
        let ratio = "nodewhy_pressure_ratio{resource=\"memory\",kind=\"some\",window=\"60s\"} 0.0029";
        assert!(text.contains(ratio), "{text}");
        assert!(!text.contains("irq"), "{text}");
        assert!(!text.contains("resource=\"cpu\",kind=\"full\""), "{text}");
    }

    #[test]
    fn irq_is_read_where_it_is() {
        // The shape of kernel/sched/psi.c since 6.1, `full` alone; the figures are those of the io file above.
        let full = NODE[2].1.lines().nth(1).unwrap();
        let irq = format!("{full}\n");
        let (_root, host) = node(&[NODE[0], NODE[1], NODE[2], ("irq", &irq)]);
        let reading = read(&mut open(&host).unwrap(), &host).unwrap();
        let irq = reading.irq.unwrap();
        assert_eq!((irq.some, irq.full.unwrap().total_seconds), (None, 2.110778));
    }

    #[test]
    fn garbage_is_a_failure_and_garbage_in_irq_costs_only_irq() {
        let (_root, host) = node(&[NODE[0], ("memory", "garbage\n"), NODE[2]]);
        let step = COLLECTOR.start().step(&host, &Thresholds::default());
        let Outcome::Failed { error } = step.outcome else { panic!("{:?}", step.outcome) };
        assert!(error.contains("/proc/pressure/memory"), "{error}");

        let (_root, host) = node(&[NODE[0], NODE[1], NODE[2], ("irq", "\0\0\0")]);
        let reading = read(&mut open(&host).unwrap(), &host).unwrap();
        assert_eq!(reading.irq, None);
        assert!(reading.irq_error.unwrap().contains("/proc/pressure/irq"));
    }

    #[test]
    fn an_empty_host_root_is_a_failure_that_names_the_path() {
        let empty = tempfile::tempdir().unwrap();
        let host = Host::new(empty.path(), Clock::system(), Places::default());
        let step = COLLECTOR.start().step(&host, &Thresholds::default());
        let Outcome::Failed { error } = step.outcome else { panic!("{:?}", step.outcome) };
        assert!(error.contains("/proc/pressure/cpu"), "{error}");
    }

    #[test]
    fn this_machine_is_read_or_says_why_not() {
        let host = Host::new("/", Clock::system(), Places::default());
        match open(&host).and_then(|mut source| read(&mut source, &host)) {
            Ok(reading) => assert!(reading.memory.some.is_some()),
            Err(ReadError::Absent { why }) => assert!(why.contains("psi"), "{why}"),
            Err(error) => panic!("{error}"),
        }
    }
}
