use std::fs;
use std::path::Path;

use jiff::SignedDuration;
use nix::libc;
use nodewhy_clock::{Clock, Mover};

use super::*;
use crate::host::Places;

struct Node {
    root: tempfile::TempDir,
    host: Host,
    mover: Mover,
    source: Source,
}

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

impl Node {
    fn new() -> Node {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "proc/sys/kernel/random/boot_id", "6a1c\n");
        let (clock, mover) = Clock::skippable();
        let host = Host::new(root.path(), clock, Places::default());
        Node { root, host, mover, source: Source::default() }
    }

    fn process(&self, pid: u32, name: &str) {
        // The form of host/process.rs' recordings.
        let stat = format!("{pid} ({name}) S 1 {pid} {pid} 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 3600\n");
        write(self.root.path(), &format!("proc/{pid}/stat"), &stat);
    }

    /// Ten seconds later, the real-time clock so far ahead of the wall clock.
    fn tick(&mut self, rtc_ahead: Option<i64>) -> (Reading, Vec<Abnormal>) {
        self.mover.skip(Duration::from_secs(10));
        if let Some(ahead) = rtc_ahead {
            let rtc = self.host.clock().now().as_second() + ahead;
            write(self.root.path(), "sys/class/rtc/rtc0/since_epoch", &format!("{rtc}\n"));
        }
        let reading = read(&mut self.source, &self.host).unwrap();
        let states = self.found(&reading);
        (reading, states)
    }

    fn found(&self, reading: &Reading) -> Vec<Abnormal> {
        let mut noticed = Noticed::default();
        let at = self.host.clock().stamp();
        detect(Pair { before: None, now: reading, at }, &Thresholds::default(), &mut noticed);
        noticed.states
    }
}

/// What adjtimex(2) said on this machine (Linux 6.18.44, nobody synchronises).
const UNSYNCHRONISED: KernelClock = KernelClock {
    status: libc::STA_UNSYNC,
    offset_nanoseconds: 0,
    frequency_scaled_ppm: 0,
    max_error_microseconds: 16_000_000,
    estimated_error_microseconds: 16_000_000,
    tai_offset_seconds: 0,
    state: libc::TIME_ERROR,
};

#[test]
fn a_machine_that_was_frozen_is_told_for_a_while() {
    let mut node = Node::new();
    for ahead in [0, 1, 0] {
        assert_eq!(node.tick(Some(ahead)).1, []);
    }
    // The hypervisor kept it for a minute: its own clock went on, the others did not.
    let (reading, states) = node.tick(Some(60));
    assert_eq!(reading.rtc_ahead_seconds, Some(60));
    let seconds = reading.freeze.unwrap().for_seconds;
    assert!((58.0..=62.0).contains(&seconds), "{seconds}");
    assert_eq!((states.len(), states[0].finding), (1, "machine_was_frozen"));
    assert!(states[0].since.unwrap() < node.host.clock().now());
    // It stays behind; that is no second freeze.
    for _ in 0..28 {
        assert_eq!(node.tick(Some(60)).1.len(), 1);
    }
    for _ in 0..4 {
        node.tick(Some(60));
    }
    assert_eq!(node.tick(Some(60)).1, [], "five minutes later it is history");
}

#[test]
fn a_clock_that_is_set_is_no_freeze() {
    let mut node = Node::new();
    node.tick(Some(0));
    // The wall clock is stepped back by an hour, and the real-time clock is not.
    node.mover.step_wall(SignedDuration::from_hours(-1));
    assert_eq!(node.tick(Some(3600)).1, []);
    // The kernel writes the wall clock into the real-time clock; or somebody does, in local time.
    assert_eq!(node.tick(Some(0)).1, []);
    assert_eq!(node.tick(Some(7200)).1, []);
    assert_eq!(node.tick(Some(-18_000)).1, []);
    // A real-time clock that was minutes behind is put right.
    let mut node = Node::new();
    node.tick(Some(-137));
    assert_eq!(node.tick(Some(0)).1, []);
    // Without one nothing is known.
    let mut node = Node::new();
    let (reading, states) = node.tick(None);
    assert_eq!((reading.rtc_ahead_seconds, states), (None, vec![]));
}

#[test]
fn unsynchronised_counts_only_where_somebody_should_keep_the_clock() {
    let mut node = Node::new();
    let unsynchronised = |node: &mut Node, seconds: u64| {
        let start = node.host.clock().stamp();
        node.source.follow_synchronisation(Some(&UNSYNCHRONISED), start);
        node.mover.skip(Duration::from_secs(seconds));
        node.source.find_daemon(&node.host, node.host.clock().stamp());
        let since = node.source.unsynchronised;
        let (mut reading, _) = node.tick(None);
        // A made root has no kernel to ask: what it would have said.
        reading.kernel = Some(Kernel::of(&UNSYNCHRONISED));
        reading.unsynchronised_since = since.map(|since| since.wall);
        reading.unsynchronised_for = since.map(|since| node.host.clock().since_boot() - since.boot);
        let states = node.found(&reading);
        (reading, states)
    };
    let (reading, states) = unsynchronised(&mut node, 1000);
    assert_eq!(states, [], "nobody keeps it");
    assert!(reading.time_daemon_missing.unwrap().contains("process 1 is not in /proc"));
    node.process(700, "chronyd");
    let (_, states) = unsynchronised(&mut node, 300);
    assert_eq!(states, [], "not for long enough");
    let (reading, states) = unsynchronised(&mut node, 700);
    assert_eq!((states.len(), states[0].finding), (1, "clock_unsynchronised"));
    assert_eq!((states[0].severity, reading.time_daemon.as_deref()), (Severity::Info, Some("chronyd")));
    assert_eq!(summary(&reading), "not synchronised by chronyd");
    // It ends: still expected.
    fs::remove_dir_all(node.root.path().join("proc/700")).unwrap();
    let (_, states) = unsynchronised(&mut node, 700);
    assert!(states[0].summary.contains("the time daemon has ended"), "{}", states[0].summary);
    // phc2sys never clears the mark.
    let mut node = Node::new();
    node.process(700, "chronyd");
    node.process(701, "phc2sys");
    assert_eq!(unsynchronised(&mut node, 1000).1, []);
    // chronyd without `rtcsync` keeps the clock, and tells the kernel so by the largest error alone.
    let kept = KernelClock { max_error_microseconds: 8_000, ..UNSYNCHRONISED };
    let mut node = Node::new();
    node.source.follow_synchronisation(Some(&kept), node.host.clock().stamp());
    assert_eq!(node.source.unsynchronised, None);
    // Once it is synchronised, it starts anew.
    let synchronised = KernelClock { status: libc::STA_PLL, state: libc::TIME_OK, ..UNSYNCHRONISED };
    node.source.follow_synchronisation(Some(&synchronised), node.host.clock().stamp());
    assert_eq!(node.source.unsynchronised, None);
}

#[test]
fn this_machine_is_read_and_what_it_does_not_tell_is_in_no_metric() {
    let host = Host::new("/", Clock::system(), Places::default());
    let reading = read(&mut Source::default(), &host).unwrap();
    assert!(reading.kernel.is_some() && reading.clocksource.is_some(), "{reading:?}");
    assert!(reading.clocksources.contains(reading.clocksource.as_ref().unwrap()));
    let mut sink = Sink::default();
    metrics(&reading, &mut sink);
    let text = sink.encode();
    assert!(text.contains("\nnodewhy_clock_synchronised "), "{text}");
    assert_eq!(text.contains("rtc_ahead"), reading.rtc_ahead_seconds.is_some(), "{text}");
    assert!(!text.contains("frozen"), "{text}");
    let mut node = Node::new();
    let mut sink = Sink::default();
    metrics(&node.tick(None).0, &mut sink);
    let text = sink.encode();
    assert!(!text.contains("synchronised") && text.contains("nodewhy_uptime_seconds"), "{text}");
}

#[test]
fn a_host_without_any_clock_is_absent() {
    let root = tempfile::tempdir().unwrap();
    let host = Host::new(root.path(), Clock::system(), Places::default());
    let error = read(&mut Source::default(), &host).unwrap_err();
    assert!(matches!(error, ReadError::Absent { .. }), "{error}");
}

#[test]
fn the_cost_of_a_tick() {
    // Told, not held against: `cargo nextest run the_cost --no-capture`.
    let host = Host::new("/", Clock::system(), Places::default());
    let mut source = Source::default();
    read(&mut source, &host).unwrap();
    let cpu = || {
        let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap();
        time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9
    };
    let started = cpu();
    for _ in 0..200 {
        read(&mut source, &host).unwrap();
    }
    eprintln!("clock: {:.1} us a tick", (cpu() - started) / 200.0 * 1e6);
}
