//! A whole node as a confined agent reads it: what is found, and which files are opened for it.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nodewhy_clock::{Clock, Mover};

use super::super::process::made;
use super::super::{Host, Places};
use super::is_guarded;
use crate::collect::{changes, control_plane, kubelet, runtime, systemd, tasks};
use crate::collector::Collector;

// Recorded on Linux 6.18.44, shortened; one task waits for I/O.
const STAT: &str = "cpu  1888167 213838 390831 2446277 27171 0 3977 4305 2 0\ncpu0 931311 105270 176433 1263378 8392 0 283 2214 0 0\ncpu1 956855 108568 214397 1182898 18778 0 3693 2091 1 0\nctxt 69674240\nprocesses 748218\nprocs_running 5\nprocs_blocked 1\n";

/// Processes that some collector keeps by their identity.
const OF_NOTE: &[(u32, &str, char)] =
    &[(344, "kubelet", 'S'), (345, "etcd", 'S'), (346, "kube-apiserver", 'S'), (349, "containerd-shim", 'T')];

/// Processes that none does.
const OTHERS: &[(u32, &str, char)] = &[
    (1, "systemd", 'S'),
    (2, "kthreadd", 'S'),
    (400, "bash", 'S'),
    (401, "postgres", 'D'),
    (402, "dead", 'Z'),
];

struct Node {
    root: tempfile::TempDir,
    host: Host,
    mover: Mover,
    _runtime: UnixListener,
    runtime: u32,
}

impl Node {
    fn new() -> Node {
        let root = tempfile::tempdir().unwrap();
        let runtime = std::process::id();
        for (pid, name, state) in OF_NOTE.iter().chain(OTHERS).chain(&[(runtime, "containerd", 'S')]) {
            made::process(root.path(), *pid, name, *state);
            fs::write(root.path().join(format!("proc/{pid}/cmdline")), format!("{name}\0")).unwrap();
            fs::write(root.path().join(format!("proc/{pid}/limits")), "").unwrap();
        }
        let node = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        node("proc/loadavg", "0.20 0.18 0.12 1/80 11206\n");
        node("proc/stat", STAT);
        node("etc/os-release", "ID=debian\n");
        // In the form of Documentation/scheduler/sched-stats.rst, with made-up numbers.
        node("proc/1/schedstat", "1532104017 88130571 4711\n");
        // A thread of the kubelet's that waits in D.
        let status = |pid: u32| fs::read_to_string(root.path().join(format!("proc/{pid}/status"))).unwrap();
        let many = status(344).replace("Threads:\t1", "Threads:\t2");
        node("proc/344/status", &many);
        node("proc/344/task/344/status", &many);
        let waits = many.replace("Pid:\t344", "Pid:\t360").replace("State:\tS", "State:\tD");
        node(
            "proc/344/task/360/status",
            &format!("{waits}voluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t3\n"),
        );
        node(
            "proc/401/task/401/status",
            &format!("{}voluntary_ctxt_switches:\t2\nnonvoluntary_ctxt_switches:\t3\n", status(401)),
        );
        node("proc/402/status", &status(402).replace("PPid:\t9151", "PPid:\t400"));
        let socket = root.path().join("cri.sock");
        let listener = UnixListener::bind(socket).unwrap();
        let (clock, mover) = Clock::skippable();
        mover.skip(Duration::from_secs(100_000));
        let places = Places {
            runtime_socket: Some("/cri.sock".into()),
            kubelet_healthz: Some(SocketAddr::from(([127, 0, 0, 1], 1))),
            ..Places::default()
        };
        let host = Host::new(root.path(), clock, places).confined(true);
        let node = Node { root, host, mover, _runtime: listener, runtime };
        OTHERS.iter().for_each(|(pid, ..)| node.bar(*pid));
        node
    }

    /// Makes `stat` and the like of a process and its threads what nobody can read.
    fn bar(&self, pid: u32) {
        let folder = self.root.path().join(format!("proc/{pid}"));
        let tasks = fs::read_dir(folder.join("task")).into_iter().flatten().map(|task| task.unwrap().path());
        for place in tasks.chain([folder.clone()]).collect::<Vec<_>>() {
            fs::remove_file(place.join("stat")).ok();
            for file in ["stat", "wchan", "exe", "fdinfo", "environ", "root", "ns", "stack", "syscall", "io"]
            {
                fs::create_dir_all(place.join(file)).unwrap();
            }
        }
    }

    /// Watches for opens in each process's folder.
    fn opens(&self) -> Opens<'_> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).unwrap();
        let mut folders = Vec::new();
        for pid in self.host.pids().unwrap() {
            let folder = Path::new("/proc").join(pid.to_string());
            let threads = self.host.list(folder.join("task")).unwrap_or_default();
            let threads = threads.into_iter().map(|tid| folder.join("task").join(tid));
            for folder in threads.chain([folder.clone()]).collect::<Vec<_>>() {
                let watch = inotify.add_watch(&self.host.path(&folder), AddWatchFlags::IN_OPEN).unwrap();
                folders.push((watch, folder));
            }
        }
        Opens { inotify, folders, _node: self }
    }
}

struct Opens<'a> {
    inotify: Inotify,
    folders: Vec<(nix::sys::inotify::WatchDescriptor, std::path::PathBuf)>,
    _node: &'a Node,
}

impl Opens<'_> {
    /// What was opened since the last call.
    fn take(&self) -> BTreeSet<std::path::PathBuf> {
        let mut opened = BTreeSet::new();
        while let Ok(events) = self.inotify.read_events() {
            for event in events {
                let folder = self.folders.iter().find(|(watch, _)| *watch == event.wd);
                opened.extend(folder.zip(event.name).map(|((_, folder), name)| folder.join(name)));
            }
        }
        opened
    }
}

fn read<S, R>(collector: &Collector<S, R>, source: &mut S, host: &Host) -> R {
    (collector.read)(source, host).unwrap_or_else(|error| panic!("{}: {error}", collector.name))
}

#[test]
fn everybody_is_found_and_no_guarded_file_is_opened_in_steady_state() {
    let node = Node::new();
    let host = &node.host;
    let opens = node.opens();
    let mut the_runtime = (runtime::COLLECTOR.open)(host).unwrap();
    let mut the_kubelet = (kubelet::COLLECTOR.open)(host).unwrap();
    let mut the_systemd = (systemd::COLLECTOR.open)(host).unwrap();
    let mut the_tasks = (tasks::COLLECTOR.open)(host).unwrap();
    let mut the_control_plane = (control_plane::COLLECTOR.open)(host).unwrap();
    let mut the_changes = (changes::COLLECTOR.open)(host).unwrap();
    for turn in 0..3 {
        // Its thread connects when it comes to it.
        let runtime = (0..500).find_map(|_| {
            std::thread::sleep(Duration::from_millis(10));
            Some(read(&runtime::COLLECTOR, &mut the_runtime, host)).filter(|reading| reading.pid.is_some())
        });
        let runtime = runtime.unwrap();
        assert_eq!((runtime.pid, runtime.process_state), (Some(node.runtime), Some('S')));
        let kubelet = read(&kubelet::COLLECTOR, &mut the_kubelet, host);
        assert_eq!(kubelet.process.unwrap().pid, 344);
        let systemd = read(&systemd::COLLECTOR, &mut the_systemd, host);
        assert_eq!((systemd.pid1_state, systemd.pid1_cpu_seconds), ('S', Some(1.532_104_017)));
        let control_plane = read(&control_plane::COLLECTOR, &mut the_control_plane, host);
        assert_eq!((control_plane.etcd.unwrap().pid, control_plane.apiserver.unwrap().pid), (Some(345), 346));
        let changes = read(&changes::COLLECTOR, &mut the_changes, host);
        let told = changes.missing.iter().filter(|why| why.contains("appArmorProfile")).count();
        assert_eq!((changes.processes.len(), told), (2, 2), "{:?}", changes.missing);
        let tasks = (0..500).find_map(|_| {
            let reading = read(&tasks::COLLECTOR, &mut the_tasks, host);
            assert_eq!(reading.sweep.error, None);
            Some(reading).filter(|reading| reading.zombies.is_some())
        });
        let tasks = tasks.unwrap();
        assert_eq!((tasks.sweep.unread, tasks.blocked.count), (Some(0), Some(2)), "{:?}", tasks.sweep);
        let names: BTreeSet<&str> = tasks.blocked.oldest.iter().map(|task| task.process.as_str()).collect();
        assert_eq!(names, BTreeSet::from(["kubelet", "postgres"]));
        let zombies = tasks.zombies.unwrap();
        assert_eq!((zombies.count, zombies.parents[0].pid), (1, 400));
        let shims = tasks.shims.unwrap();
        assert_eq!((shims.count, shims.stopped.len()), (1, 1));
        let opened = opens.take();
        assert!(opened.iter().any(|path| path.ends_with("344/status")), "the watch works: {opened:?}");
        let guarded: Vec<_> = opened.iter().filter(|path| is_guarded(path)).collect();
        if turn == 0 {
            let only_of_note = |path: &&std::path::PathBuf| {
                let pids = OF_NOTE.iter().map(|(pid, ..)| *pid).chain([node.runtime]);
                pids.map(|pid| format!("/proc/{pid}/stat")).any(|stat| path.ends_with(&stat))
            };
            assert!(guarded.iter().all(only_of_note), "{guarded:?}");
            OF_NOTE.iter().for_each(|(pid, ..)| node.bar(*pid));
            node.bar(node.runtime);
            opens.take();
        } else {
            assert!(guarded.is_empty(), "{guarded:?}");
        }
        // Past each search that is done seldom.
        node.mover.skip(Duration::from_secs(3600));
    }
}
