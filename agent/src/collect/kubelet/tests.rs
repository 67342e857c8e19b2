#![expect(clippy::disallowed_methods, reason = "a test may start a process: the kubelet's stand-in")]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nodewhy_clock::{Clock, Mover};
use nodewhy_proto::{EventBody, Outcome, Severity, SubjectKind};

use super::*;
use crate::collector::{Abnormal, Collect, Noticed, Pair};
use crate::host::Places;
use crate::metrics::Sink;
use crate::thresholds::Thresholds;

// The whole response, recorded from kubelet 1.32.6.
const OK: &[u8] = include_bytes!("../../../fixtures/kubelet/kubelet-1.32.6-healthz-http.txt");

/// A node of which /proc holds, beside what every reader needs, only the processes that the test shows it: links into
/// the machine's own /proc. So kubelets of other tests, or the machine's own, are not seen.
struct Node {
    root: tempfile::TempDir,
    host: Host,
    mover: Mover,
    children: Vec<Child>,
}

impl Drop for Node {
    fn drop(&mut self) {
        for child in &mut self.children {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

impl Node {
    fn new(healthz: SocketAddr) -> Node {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc")).unwrap();
        for name in ["self", "1", "2"] {
            if Path::new("/proc").join(name).exists() {
                symlink(Path::new("/proc").join(name), root.path().join("proc").join(name)).unwrap();
            }
        }
        let (clock, mover) = Clock::skippable();
        let places = Places { kubelet_healthz: Some(healthz), ..Places::default() };
        let host = Host::new(root.path(), clock, places);
        Node { root, host, mover, children: Vec::new() }
    }

    /// A copy of `sleep` by the kubelet's name: the kernel knows a process by its file's name.
    fn start_kubelet(&mut self) -> u32 {
        let program = self.root.path().join("kubelet");
        if !program.exists() {
            fs::copy("/bin/sleep", &program).unwrap();
        }
        let child = Command::new(&program).arg("600").spawn().unwrap();
        let pid = child.id();
        self.children.push(child);
        symlink(format!("/proc/{pid}"), self.root.path().join(format!("proc/{pid}"))).unwrap();
        pid
    }

    fn read(&self, source: &mut Source) -> Reading {
        self.mover.skip(Duration::from_secs(1));
        super::read(source, &self.host).unwrap()
    }
}

/// An address where nobody listens.
fn nowhere() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn noticed(reading: &Reading) -> Noticed {
    let mut noticed = Noticed::default();
    let at = Clock::system().stamp();
    detect::detect(Pair { before: None, now: reading, at }, &Thresholds::default(), &mut noticed);
    noticed
}

fn states(reading: &Reading) -> Vec<Abnormal> {
    noticed(reading).states
}

fn names(reading: &Reading) -> Vec<&'static str> {
    states(reading).iter().map(|state| state.finding).collect()
}

fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(5);
    while !done() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Only root may have a kubelet. As another user the tests prove that: the stand-in is not believed.
fn is_root(node: &mut Node) -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    node.start_kubelet();
    let step = COLLECTOR.start().step(&node.host, &Thresholds::default());
    let Outcome::Absent { why } = step.outcome else { panic!("{:?}", step.outcome) };
    assert!(why.contains("runs as user") || why.contains("hostPID"), "{why}");
    false
}

#[test]
fn a_kubelet_is_seen_stopped_killed_and_started_again() {
    let mut node = Node::new(nowhere());
    if !is_root(&mut node) {
        return;
    }
    let pid = node.start_kubelet();
    let mut source = open(&node.host).unwrap();
    wait_for("it is seen asleep", || {
        super::read(&mut source, &node.host).is_ok_and(|it| it.process.is_some_and(|it| it.state == 'S'))
    });
    let reading = node.read(&mut source);
    let process = reading.process.as_ref().unwrap();
    assert_eq!((process.pid, process.name.as_str(), process.state), (pid, "kubelet", 'S'));
    assert!(process.rss_bytes.unwrap() > 0 && process.threads == Some(1));
    assert!(names(&reading).is_empty(), "{:?}", states(&reading));
    assert_eq!((reading.starts_total, reading.starts_within_10_min.len()), (1, 1));

    send(pid, Signal::SIGSTOP);
    wait_for("it is stopped", || names(&node.read(&mut source)) == ["kubelet_stopped"]);
    send(pid, Signal::SIGCONT);
    wait_for("it goes on", || names(&node.read(&mut source)).is_empty());

    // Its end wakes the collector at once.
    let killed = Instant::now();
    send(pid, Signal::SIGKILL);
    let fd = wake(&source).unwrap();
    let ready = poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::from(5000u16)).unwrap();
    let took = killed.elapsed();
    assert!(ready == 1 && took < Duration::from_millis(100), "{took:?}");
    let reading = super::read(&mut source, &node.host).unwrap();
    let exit = reading.exit.clone().unwrap();
    assert!(exit.by_pidfd && exit.pid == pid && reading.process.is_none());
    let noticed = noticed(&reading);
    let [state] = noticed.states.as_slice() else { panic!("{:?}", noticed.states) };
    assert_eq!((state.finding, state.since), ("kubelet_absent", Some(exit.at)));
    assert_eq!(state.subject.kind, SubjectKind::Kubelet);
    assert_eq!((state.hold, state.clear_after), (Duration::from_secs(2), Duration::from_secs(5)));
    let [happening] = noticed.happenings.as_slice() else { panic!("{:?}", noticed.happenings) };
    assert!(matches!(&happening.body, EventBody::ProcessExited(change) if change.pid == pid));
    assert_eq!(happening.at.unwrap().wall, exit.at);
    // It was told once, and does not wake again.
    let fd = wake(&source).unwrap();
    assert_eq!(poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO).unwrap(), 0);
    let reading = node.read(&mut source);
    assert!(super::tests::noticed(&reading).happenings.is_empty());
    assert_eq!(names(&reading), ["kubelet_absent"]);

    let mut starts = Vec::new();
    for _ in 0..2 {
        let next = node.start_kubelet();
        wait_for("the next one is seen", || {
            let reading = node.read(&mut source);
            starts.extend(super::tests::noticed(&reading).happenings);
            reading.process.is_some_and(|process| process.pid == next)
        });
        if starts.len() < 3 {
            send(next, Signal::SIGKILL);
            wait_for("it is gone", || {
                let reading = node.read(&mut source);
                starts.extend(super::tests::noticed(&reading).happenings);
                reading.process.is_none()
            });
        }
    }
    assert!(matches!(&starts[0].body, EventBody::ProcessStarted(_)));
    assert!(matches!(&starts[1].body, EventBody::ProcessExited(_)));
    let reading = node.read(&mut source);
    assert_eq!(reading.starts_total, 3);
    let state = states(&reading).into_iter().find(|state| state.finding == "kubelet_restarting").unwrap();
    assert!(state.summary.contains("3 times"), "{}", state.summary);
    assert_eq!(state.clear_after, Duration::from_secs(600));
    // Ten minutes later they no longer count.
    node.mover.skip(Duration::from_secs(601));
    assert!(!names(&node.read(&mut source)).contains(&"kubelet_restarting"));
}

#[test]
fn without_a_pidfd_the_end_is_noticed_at_the_next_look() {
    let mut node = Node::new(nowhere());
    if !is_root(&mut node) {
        return;
    }
    // As in a container of which the pid namespace is another: the numbers may not be used.
    fs::remove_file(node.root.path().join("proc/self")).unwrap();
    fs::create_dir_all(node.root.path().join("proc/self")).unwrap();
    fs::write(node.root.path().join("proc/self/status"), "NSpid:\t7131\t1\n").unwrap();
    let pid = node.start_kubelet();
    let mut source = open(&node.host).unwrap();
    wait_for("it is seen", || super::read(&mut source, &node.host).is_ok_and(|it| it.process.is_some()));
    let reading = node.read(&mut source);
    assert!(reading.notes.iter().any(|note| note.contains("hostPID")), "{:?}", reading.notes);
    send(pid, Signal::SIGKILL);
    wait_for("its end is seen", || node.read(&mut source).exit.is_some_and(|exit| !exit.by_pidfd));
}

#[test]
fn a_machine_without_a_kubelet_is_absent_and_is_not_even_asked() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let node = Node::new(listener.local_addr().unwrap());
    // This machine's own processes 1 and 2, or, in a container, what is in its way.
    let step = COLLECTOR.start().step(&node.host, &Thresholds::default());
    let Outcome::Absent { why } = step.outcome else { panic!("{:?}", step.outcome) };
    assert!(why.contains("no kubelet on this machine") || why.contains("hostPID"), "{why}");
    assert!(step.noticed.is_none());
    if why.contains("no kubelet on this machine") {
        assert!(why.contains("/var/lib/kubelet") && why.contains("config.yaml"), "{why}");
        assert!(listener.accept().is_err());
    }
}

/// A node that shows no process but those two that prove that /proc is the machine's: process 1 and kthreadd.
fn machine(healthz: SocketAddr) -> Node {
    let node = Node::new(healthz);
    for (pid, name) in [(1, "systemd"), (2, "kthreadd")] {
        let folder = node.root.path().join(format!("proc/{pid}"));
        fs::remove_file(&folder).ok();
        fs::create_dir_all(&folder).unwrap();
        // The line recorded in host/process.rs, cut after field 22.
        let stat =
            format!("{pid} ({name}) S 0 {pid} {pid} 0 -1 4194560 5320 71390 0 60 0 3 48 12 20 0 1 0 2\n");
        fs::write(folder.join("stat"), stat).unwrap();
    }
    node
}

fn traced(node: &Node) -> PathBuf {
    let folder = node.root.path().join("var/lib/kubelet");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("config.yaml"), "kind: KubeletConfiguration\n").unwrap();
    folder
}

#[test]
fn traces_without_a_process_are_a_kubelet_that_is_missing() {
    let node = machine(nowhere());
    traced(&node);
    let reading = node.read(&mut open(&node.host).unwrap());
    assert_eq!(reading.expected_because, "/var/lib/kubelet/config.yaml is there");
    assert_eq!(reading.healthz, Healthz::Refused);
    let states = states(&reading);
    assert_eq!((states.len(), states[0].finding, states[0].since), (1, "kubelet_absent", None));
    let mut sink = Sink::default();
    detect::metrics(&reading, &mut sink);
    assert!(sink.encode().contains("\nnodewhy_kubelet_up 0\n"));
}

#[test]
fn a_proc_that_shows_nobody_says_what_is_missing_and_finds_nothing() {
    let node = machine(nowhere());
    traced(&node);
    // hidepid, or a container's own /proc.
    fs::remove_dir_all(node.root.path().join("proc/1")).unwrap();
    let step = COLLECTOR.start().step(&node.host, &Thresholds::default());
    let Outcome::Absent { why } = step.outcome else { panic!("{:?}", step.outcome) };
    assert!(why.contains("hidepid"), "{why}");
}

fn answering(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
            stream.write_all(answer).unwrap();
        }
    });
    address
}

#[test]
fn a_ping_that_answers_belies_no_process() {
    let node = machine(answering(OK));
    traced(&node);
    let reading = node.read(&mut open(&node.host).unwrap());
    assert!(reading.process_unseen.as_ref().unwrap().contains("answers"));
    assert!(states(&reading).is_empty());
    let mut sink = Sink::default();
    detect::metrics(&reading, &mut sink);
    let text = sink.encode();
    assert!(
        !text.contains("nodewhy_kubelet_up") && text.contains("\nnodewhy_kubelet_healthz_ok 1\n"),
        "{text}"
    );
}

/// Without a token.
fn api() -> Api {
    api::told(None, &Host::new("/", Clock::system(), Places::default()))
}

/// What its metrics say, and what they said before.
fn said(change: impl FnOnce(&mut Gathered)) -> Reading {
    let mut metrics = Gathered { pleg_age_seconds: Some(1.0), ..Gathered::default() };
    change(&mut metrics);
    let api = Api { missing: None, metrics: Some(metrics), failing_checks: Some(Vec::new()), ..api() };
    Reading { api, ..well() }
}

#[test]
fn what_the_kubelets_own_metrics_show() {
    assert_eq!(names(&said(|_| {})), [""; 0]);
    assert_eq!(names(&said(|metrics| metrics.pleg_age_seconds = Some(60.0))), [""; 0], "60 is not above 60");
    for (age, severity) in [(61.0, Severity::Warning), (181.0, Severity::Critical)] {
        let states = states(&said(|metrics| metrics.pleg_age_seconds = Some(age)));
        assert_eq!((states[0].finding, states[0].severity), ("pleg_unhealthy", severity));
        assert_eq!(states[0].evidence[0].value, Some(age));
    }
    let relists = |count| {
        move |metrics: &mut Gathered| {
            metrics.pleg_age_seconds = Some(3600.0);
            metrics.interval = Some(Interval { relists: Some(count), ..Interval::default() });
        }
    };
    assert_eq!(names(&said(relists(0.0))), ["pleg_unhealthy"]);
    assert_eq!(names(&said(relists(14.0))), [""; 0], "relists end: the clock was stepped");
    for (ttl, expected) in
        [(7200.0, None), (1800.0, Some(Severity::Warning)), (-1.0, Some(Severity::Critical))]
    {
        let states = states(&said(|metrics| metrics.certificate_ttl_seconds = Some(ttl)));
        assert_eq!(states.first().map(|state| state.severity), expected);
        assert!(states.iter().all(|state| state.finding == "kubelet_certificate_expiring"));
    }
    let evicted = [("memory.available".to_owned(), 2.0)].into();
    let states = states(&said(|metrics| {
        metrics.interval = Some(Interval { seconds: 15.0, evictions: evicted, ..Interval::default() });
    }));
    assert_eq!((states[0].finding, states[0].severity), ("kubelet_evicting", Severity::Info));
    assert_eq!(states[0].evidence[0].text, "2 evictions by memory.available within 15 s");
    let mut reading = said(|_| {});
    reading.api.failing_checks = Some(vec!["log".to_owned()]);
    assert_eq!(names(&reading), [""; 0]);
    reading.api.failing_checks = Some(vec!["syncloop".to_owned()]);
    assert_eq!(names(&reading), ["kubelet_syncloop_stuck"]);
    let mut sink = Sink::default();
    detect::metrics(&reading, &mut sink);
    let text = sink.encode();
    assert!(
        text.contains("\nnodewhy_kubelet_api_up 1\n")
            && text.contains("nodewhy_kubelet_pleg_age_seconds 1\n"),
        "{text}"
    );
    assert!(!text.contains("certificate_ttl"), "{text}");
}

/// A reading of a well kubelet, to be made ill.
fn well() -> Reading {
    let now = Clock::system().now();
    Reading {
        expected_because: "its process is running".to_owned(),
        process: Some(KubeletProcess {
            pid: 344,
            name: "kubelet".to_owned(),
            state: 'S',
            started: now,
            uptime_seconds: 31.0,
            rss_bytes: Some(87_642_112),
            threads: Some(12),
            cgroup: Some("/system.slice/kubelet.service".to_owned()),
        }),
        process_unseen: None,
        exit: None,
        starts_within_10_min: vec![now, now],
        starts_total: 2,
        healthz: Healthz::Ok { took_seconds: 0.001 },
        healthz_answered: Some(now),
        api: api(),
        notes: Vec::new(),
        changes: Vec::new(),
    }
}

#[test]
fn the_ping_as_findings() {
    let now = Clock::system().now();
    assert!(states(&well()).is_empty(), "two starts are a start and a restart");
    let with = |healthz: Healthz| Reading { healthz, ..well() };
    let body = "syncloop failed".to_owned();
    assert_eq!(
        names(&with(Healthz::Status { code: 500, body, took_seconds: 0.1 })),
        ["kubelet_healthz_failing"]
    );
    assert_eq!(names(&with(Healthz::NotHttp { what: "TLS".to_owned() })), ["kubelet_healthz_failing"]);
    assert!(states(&with(Healthz::Failed { error: "no route".to_owned() })).is_empty());
    assert!(states(&with(Healthz::Never)).is_empty());

    let pending = |age_seconds| with(Healthz::Pending { since: now, age_seconds, connected: true });
    assert!(states(&pending(4.9)).is_empty());
    let hung = states(&pending(5.0));
    assert_eq!((hung[0].finding, hung[0].since), ("kubelet_healthz_hung", Some(now)));

    assert_eq!(names(&with(Healthz::Refused)), ["kubelet_healthz_refused"]);
    let never = Reading { healthz_answered: None, ..with(Healthz::Refused) };
    assert!(states(&never).is_empty(), "it may listen elsewhere");
    let mut young = with(Healthz::Refused);
    young.process.as_mut().unwrap().uptime_seconds = 30.0;
    assert!(states(&young).is_empty(), "it may not listen yet");
    let gone = Reading { process: None, ..with(Healthz::NotHttp { what: "TLS".to_owned() }) };
    assert_eq!(names(&gone), ["kubelet_absent"], "who answers there is somebody else");
}

#[test]
fn what_was_not_learned_is_in_no_metric() {
    let metrics = |reading: &Reading| {
        let mut sink = Sink::default();
        detect::metrics(reading, &mut sink);
        sink.encode()
    };
    let text = metrics(&well());
    assert!(text.contains("\nnodewhy_kubelet_up 1\n") && text.contains("\nnodewhy_kubelet_starts_total 2\n"));
    assert!(text.contains("\nnodewhy_kubelet_resident_memory_bytes 87642112\n"));
    let text = metrics(&Reading { healthz: Healthz::Never, ..well() });
    assert!(!text.contains("healthz"), "{text}");
    let text = metrics(&Reading {
        healthz: Healthz::Pending { since: Timestamp::UNIX_EPOCH, age_seconds: 1.0, connected: true },
        ..well()
    });
    assert!(text.contains("pending_seconds 1\n") && !text.contains("healthz_ok"), "{text}");
}

#[test]
fn an_empty_host_root_is_a_failure_and_garbage_is_no_kubelet() {
    let empty = tempfile::tempdir().unwrap();
    let host = Host::new(empty.path(), Clock::system(), Places::default());
    let step = COLLECTOR.start().step(&host, &Thresholds::default());
    let Outcome::Failed { error } = step.outcome else { panic!("{:?}", step.outcome) };
    assert!(error.contains("/proc"), "{error}");
    let node = machine(nowhere());
    for file in ["stat", "status", "cgroup", "cmdline"] {
        let folder = node.root.path().join("proc/77");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(file), b"77 (kubelet) \xff\0\n").unwrap();
    }
    let step = COLLECTOR.start().step(&node.host, &Thresholds::default());
    assert!(matches!(step.outcome, Outcome::Absent { .. }), "{:?}", step.outcome);
}

#[test]
fn a_read_that_failed_forgets_no_kubelet() {
    let root = tempfile::tempdir().unwrap();
    let places = Places { kubelet_healthz: Some(nowhere()), ..Places::default() };
    let host = Host::new(root.path(), Clock::system(), places);
    crate::host::process::made::process(root.path(), 734, "kubelet", 'S');
    let mut running = COLLECTOR.start();
    let thresholds = Thresholds::default();
    assert_eq!(running.step(&host, &thresholds).outcome, Outcome::Read);
    // A node that starves: no memory, no descriptor for this read. Then the kubelet is killed.
    fs::write(root.path().join("proc/734/stat"), "garbage").unwrap();
    assert!(matches!(running.step(&host, &thresholds).outcome, Outcome::Failed { .. }));
    fs::remove_dir_all(root.path().join("proc")).unwrap();
    assert!(matches!(running.step(&host, &thresholds).outcome, Outcome::Failed { .. }));
    fs::create_dir(root.path().join("proc")).unwrap();
    let step = running.step(&host, &thresholds);
    assert_eq!(step.outcome, Outcome::Read, "it was seen: that it is gone is no absence");
    let noticed = step.noticed.unwrap();
    let absent: Vec<_> = noticed.states.iter().map(|state| (state.finding, state.since.is_some())).collect();
    assert_eq!(absent, [("kubelet_absent", true)]);
    assert!(matches!(noticed.happenings[0].body, EventBody::ProcessExited(_)));
}
