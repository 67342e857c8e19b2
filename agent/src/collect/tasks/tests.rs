use std::ffi::CString;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::fcntl::OFlag;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, posix_spawn};
use nix::sys::stat::Mode;
use nodewhy_clock::{Clock, Mover};
use nodewhy_proto::{Severity, SubjectKind};

use super::*;
use crate::collector::{Abnormal, Noticed, Pair};
use crate::host::Places;
use crate::host::inotify::Probe;
use crate::host::known::{PodName, Pods};
use crate::host::process::made;
use crate::metrics::Sink;
use crate::thresholds::Thresholds;

fn machine() -> Host {
    Host::new("/", Clock::system(), Places::default())
}

fn states(reading: &Reading) -> Vec<Abnormal> {
    let mut noticed = Noticed::default();
    let at = Clock::system().stamp();
    detect::detect(Pair { before: None, now: reading, at }, &Thresholds::default(), &mut noticed);
    noticed.states
}

fn names(reading: &Reading) -> Vec<&'static str> {
    states(reading).into_iter().map(|state| state.finding).collect()
}

/// Reads until a look that began after now is complete.
fn look(source: &mut Source, host: &Host) -> Reading {
    source.looked = None;
    source.look = None;
    let before = source.swept.as_ref().map(|swept| swept.at);
    for _ in 0..2000 {
        let reading = read(source, host).unwrap();
        assert_eq!(reading.sweep.error, None);
        if source.swept.as_ref().map(|swept| swept.at) != before {
            return reading;
        }
    }
    panic!("no end of a look");
}

/// A made-up /proc whose boot was long ago enough for any age.
fn made_up() -> (tempfile::TempDir, Host, Mover) {
    let root = tempfile::tempdir().unwrap();
    let (clock, mover) = Clock::skippable();
    mover.skip(Duration::from_secs(100_000));
    made::process(root.path(), 1, "systemd", 'S');
    made::process(root.path(), 2, "kthreadd", 'S');
    fs::write(root.path().join("proc/loadavg"), "0.20 0.18 0.12 1/80 11206\n").unwrap();
    fs::write(root.path().join("proc/stat"), STAT).unwrap();
    let host = Host::new(root.path(), clock, Places::default());
    (root, host, mover)
}

// Recorded on Linux 6.18.44, shortened.
const STAT: &str = "cpu  1888167 213838 390831 2446277 27171 0 3977 4305 2 0\ncpu0 931311 105270 176433 1263378 8392 0 283 2214 0 0\ncpu1 956855 108568 214397 1182898 18778 0 3693 2091 1 0\nctxt 69674240\nprocesses 748218\nprocs_running 5\nprocs_blocked 0\n";

/// A process of this parent that began so long ago, in this cgroup.
fn process(
    root: &Path,
    host: &Host,
    pid: u32,
    (name, state): (&str, char),
    parent: u32,
    age: u64,
    cgroup: &str,
) {
    made::process(root, pid, name, state);
    let folder = root.join("proc").join(pid.to_string());
    let stat = host.read(format!("/proc/{pid}/stat")).unwrap();
    let (before, behind) = stat.rsplit_once(") ").unwrap();
    let mut fields: Vec<String> = behind.trim_end().split(' ').map(str::to_owned).collect();
    fields[1] = parent.to_string();
    fields[19] = ((host.clock().since_boot().as_secs() - age) * 100).to_string();
    fs::write(folder.join("stat"), format!("{before}) {}\n", fields.join(" "))).unwrap();
    fs::write(folder.join("cgroup"), format!("0::{cgroup}\n")).unwrap();
}

const SYSTEM: &str = "/system.slice/containerd.service";
const POD: &str = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podc12ef941_6a22_4f38_8101_61b41df7a6b6.slice";
const SCOPE: &str = "cri-containerd-b0b795bead51d415fc6af03eca6d9322f073f00f26866ef237845e33f0784586.scope";

#[test]
fn a_thread_that_waits_in_d_is_found_with_its_place_and_ends_when_it_does() {
    // A vfork's parent waits in D until its child has begun its program; this child waits at a pipe before that.
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    nix::unistd::mkfifo(&pipe, Mode::S_IRWXU).unwrap();
    let opened = CString::new(pipe.to_str().unwrap()).unwrap();
    let spawner = std::thread::Builder::new()
        .name("waits-in-d".to_owned())
        .spawn(move || {
            let mut actions = PosixSpawnFileActions::init().unwrap();
            actions.add_open(0, opened.as_c_str(), OFlag::O_RDONLY, Mode::empty()).unwrap();
            let attributes = PosixSpawnAttr::init().unwrap();
            let program = CString::new("/bin/true").unwrap();
            let nothing: [CString; 0] = [];
            let child = posix_spawn(
                program.as_c_str(),
                &actions,
                &attributes,
                std::slice::from_ref(&program),
                &nothing,
            );
            nix::sys::wait::waitpid(child.unwrap(), None).unwrap();
        })
        .unwrap();
    let host = machine();
    let mut source = open(&host).unwrap();
    let ours = |reading: &Reading| reading.all_blocked.iter().find(|task| task.name == "waits-in-d").cloned();
    let first = loop {
        if let Some(task) = ours(&look(&mut source, &host)) {
            break task;
        }
    };
    assert_eq!(first.pid, std::process::id());
    assert_ne!(first.tid, first.pid, "the leader is not in D");
    // `_do_fork` before Linux 5.10.
    assert!(matches!(first.wchan.as_deref(), Some("kernel_clone" | "_do_fork")), "{first:?}");
    assert_eq!(first.group, Group::Other);

    // Another look, and looks between looks, keep its beginning.
    std::thread::sleep(Duration::from_millis(30));
    let again = ours(&look(&mut source, &host)).unwrap();
    assert_eq!(again.since_boot, first.since_boot);

    let told = describe::describe(&host, first.pid, first.tid);
    assert_eq!(told.untold, [""; 0]);
    assert!(told.stack.iter().any(|frame| Some(frame) == first.wchan.as_ref()), "{told:?}");
    assert!(matches!(told.syscall.as_deref(), Some("clone" | "clone3" | "vfork")), "{told:?}");

    drop(fs::OpenOptions::new().write(true).open(&pipe).unwrap());
    spawner.join().unwrap();
    let after = read(&mut source, &host).unwrap();
    assert_eq!(ours(&after), None, "no look is needed to see the end of a wait");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the test's own children are the zombies")]
fn zombies_are_counted_with_their_parent() {
    let children: Vec<_> =
        (0..25).map(|_| Command::new("/bin/true").stdout(Stdio::null()).spawn().unwrap()).collect();
    let host = machine();
    let mut source = open(&host).unwrap();
    let parent = loop {
        let reading = look(&mut source, &host);
        let ours = |parent: &&Parent| parent.pid == std::process::id();
        let parent = reading.zombies.as_ref().unwrap().parents.iter().find(ours).cloned();
        if parent.as_ref().is_some_and(|parent| parent.zombies >= 25) {
            let found = states(&reading);
            let found = found.iter().find(|state| state.finding == "zombies_many").unwrap();
            assert_eq!(found.severity, Severity::Info);
            assert_eq!(found.subject.kind, SubjectKind::Process);
            break parent.unwrap();
        }
    };
    assert!(parent.name.is_some());
    children.into_iter().for_each(|mut child| assert!(child.wait().unwrap().success()));
    let reading = look(&mut source, &host);
    assert!(reading.zombies.unwrap().parents.iter().all(|parent| parent.pid != std::process::id()));
}

#[test]
fn this_machine_is_read_and_is_not_abnormal() {
    let host = machine();
    let mut source = open(&host).unwrap();
    let reading = look(&mut source, &host);
    assert!(reading.cores >= 1 && reading.load.tasks > 1);
    assert!(reading.sweep.threads.unwrap() >= reading.sweep.processes.unwrap());
    assert!(reading.limits.most_tasks().unwrap() > 100);
    assert_eq!(reading.limits.missing, [""; 0]);
    assert_eq!(reading.limits.inotify, Some(Probe::Free));
    let mut quiet = reading.clone();
    // Other tests leave zombies and hang for an instant.
    quiet.zombies = None;
    assert_eq!(names(&quiet), [""; 0]);
    let mut sink = Sink::default();
    metrics::metrics(&reading, &mut sink);
    let text = sink.encode();
    for family in metrics::FAMILIES.iter().filter(|family| !family.name.starts_with("nodewhy_open_files")) {
        let is_there = text.contains(family.name) || family.name == "nodewhy_shims_without_sandbox";
        assert!(is_there, "{}", family.name);
    }
    assert!(serde_json::to_string(&reading).unwrap().len() < 8 * 1024);
    page(&reading).unwrap();
}

#[test]
fn the_same_wait_keeps_its_time_and_a_task_that_ran_begins_anew() {
    let (root, host, mover) = made_up();
    let folder = root.path().join("proc/700/task/700");
    fs::create_dir_all(&folder).unwrap();
    process(root.path(), &host, 700, ("containerd", 'D'), 1, 500, SYSTEM);
    fs::copy(root.path().join("proc/700/stat"), folder.join("stat")).unwrap();
    let status = |switches: u32| {
        let text = format!(
            "Uid:\t0\t0\t0\t0\nvoluntary_ctxt_switches:\t{switches}\nnonvoluntary_ctxt_switches:\t1\n"
        );
        fs::write(folder.join("status"), text).unwrap();
    };
    status(5);
    // What AppArmor leaves of wchan.
    fs::write(folder.join("wchan"), "0").unwrap();
    let mut source = open(&host).unwrap();
    let first = look(&mut source, &host).all_blocked[0].clone();
    assert_eq!((first.group, first.wchan.clone()), (Group::Runtime, None));
    assert_eq!(names(&look(&mut source, &host)), [""; 0]);

    mover.skip(Duration::from_secs(121));
    let reading = look(&mut source, &host);
    assert_eq!(reading.all_blocked[0].since_boot, first.since_boot);
    let found = states(&reading);
    assert_eq!((found[0].finding, found[0].severity), ("task_stuck", Severity::Critical));
    assert_eq!(found[0].subject.name, "containerd[700]");
    assert_eq!(found[0].since, Some(first.since));
    let line = reading.blocks_pleg.unwrap();
    assert!(line.starts_with("containerd[700] waits in D for 121 s at least"), "{line}");

    status(6);
    let reading = look(&mut source, &host);
    assert!(reading.all_blocked[0].since_boot > first.since_boot, "it has run in between");
    assert_eq!(names(&reading), [""; 0]);
    fs::remove_file(folder.join("status")).unwrap();
    assert!(look(&mut source, &host).all_blocked.is_empty());
}

#[test]
fn calls_are_those_that_the_runtime_started() {
    let (root, host, mover) = made_up();
    let make = |pid, name, state, parent, age, cgroup: &str| {
        process(root.path(), &host, pid, (name, state), parent, age, cgroup);
    };
    make(10, "containerd", 'S', 1, 9000, SYSTEM);
    make(20, "containerd-shim", 'S', 1, 8000, SYSTEM);
    make(30, "runc", 'S', 20, 61, SYSTEM);
    make(31, "calico", 'S', 10, 90, SYSTEM);
    make(32, "calico-ipam", 'S', 31, 89, SYSTEM);
    make(33, "bridge", 'S', 10, 2, SYSTEM);
    // Neither is a call of the runtime's: a user's, and one of a container that runs containers.
    make(40, "runc", 'S', 1, 5000, "/user.slice/user-1000.slice/session-3.scope");
    make(50, "containerd-shim", 'S', 1, 7000, &format!("{POD}/{SCOPE}"));
    make(51, "runc", 'S', 50, 5000, &format!("{POD}/{SCOPE}"));
    let mut source = open(&host).unwrap();
    let reading = look(&mut source, &host);
    let calls: Vec<_> =
        reading.calls.iter().map(|call| (call.pid, call.group, call.parent.as_str())).collect();
    assert_eq!(
        calls,
        [
            (31, Group::Cni, "containerd[10]"),
            (32, Group::Cni, "calico[31]"),
            (30, Group::Runc, "containerd-shim[20]"),
            (33, Group::Cni, "containerd[10]"),
        ]
    );
    let found = states(&reading);
    let stuck: Vec<_> = found.iter().map(|state| (state.finding, state.subject.name.as_str())).collect();
    let stuck_call = "runtime_call_stuck";
    assert_eq!(
        stuck,
        [(stuck_call, "calico[31]"), (stuck_call, "calico-ipam[32]"), (stuck_call, "runc[30]")]
    );
    let line = reading.blocks_pleg.unwrap();
    assert!(line.starts_with("calico[31], started by containerd[10], has not come back for 90 s"), "{line}");

    // They come back between two looks: none of them may grow old on paper.
    for pid in [30, 31, 32, 33] {
        fs::remove_dir_all(root.path().join(format!("proc/{pid}"))).unwrap();
    }
    mover.skip(Duration::from_secs(20));
    source.looked = Some(host.clock().since_boot());
    assert_eq!(read(&mut source, &host).unwrap().calls, []);
}

#[test]
fn shims_are_held_against_the_sandboxes_that_the_runtime_knows() {
    let (root, host, mover) = made_up();
    for pid in 100..110 {
        process(root.path(), &host, pid, ("containerd-shim", 'S'), 1, 600, SYSTEM);
        let line = format!("/usr/bin/containerd-shim-runc-v2\0-namespace\0k8s.io\0-id\0sandbox{pid}\0");
        fs::write(root.path().join(format!("proc/{pid}/cmdline")), line).unwrap();
    }
    let mut source = open(&host).unwrap();
    let reading = look(&mut source, &host);
    let shims = reading.shims.unwrap();
    assert_eq!(
        (shims.count, shims.sandboxes, shims.orphans),
        (10, None, None),
        "nothing to hold them against"
    );

    let mut pods = Pods::default();
    for pid in 100..103 {
        pods.sandboxes.insert(format!("sandbox{pid}"), ("uid".to_owned(), true));
    }
    host.learn_pods(pods.clone());
    let reading = look(&mut source, &host);
    let shims = reading.shims.clone().unwrap();
    assert_eq!((shims.sandboxes, shims.orphans), (Some(3), Some(7)));
    assert_eq!(names(&reading), ["orphan_shims"]);

    // A shim that began after the runtime's last answer is no orphan, however long the runtime has been silent.
    process(root.path(), &host, 110, ("containerd-shim", 'T'), 1, 0, SYSTEM);
    let line = "/usr/bin/containerd-shim-runc-v2\0-namespace\0k8s.io\0-id\0young\0";
    fs::write(root.path().join("proc/110/cmdline"), line).unwrap();
    mover.skip(Duration::from_secs(3600));
    let reading = look(&mut source, &host);
    assert_eq!(reading.shims.as_ref().unwrap().orphans, Some(7));
    let found = states(&reading);
    let stopped = found.iter().find(|state| state.finding == "shim_stopped").unwrap();
    assert!(stopped.summary.contains("of young is stopped"), "{}", stopped.summary);
    assert!(reading.blocks_pleg.unwrap().contains("of young is stopped"));

    // Between two looks, too, within ten ticks.
    process(root.path(), &host, 105, ("containerd-shim", 'T'), 1, 4200, SYSTEM);
    fs::copy(root.path().join("proc/100/stat"), root.path().join("proc/110/stat")).unwrap();
    source.known_shims.0.iter_mut().find(|task| task.pid == 105).unwrap().start_ticks =
        Some(host.process(105).unwrap().unwrap().start_ticks);
    let mut reading = None;
    for _ in 0..10 {
        source.looked = Some(host.clock().since_boot());
        reading = Some(read(&mut source, &host).unwrap());
    }
    let stopped: Vec<u32> = reading.unwrap().shims.unwrap().stopped.iter().map(|shim| shim.pid).collect();
    assert_eq!(stopped, [105], "and 110 goes on");
}

#[test]
fn a_pods_task_in_d_has_its_pods_name_and_is_a_warning() {
    let (root, host, mover) = made_up();
    let folder = root.path().join("proc/800/task/800");
    fs::create_dir_all(&folder).unwrap();
    process(root.path(), &host, 800, ("postgres", 'D'), 1, 500, &format!("{POD}/{SCOPE}"));
    fs::copy(root.path().join("proc/800/stat"), folder.join("stat")).unwrap();
    fs::write(
        folder.join("status"),
        "Uid:\t0\t0\t0\t0\nvoluntary_ctxt_switches:\t5\nnonvoluntary_ctxt_switches:\t1\n",
    )
    .unwrap();
    fs::write(folder.join("wchan"), "rpc_wait_bit_killable").unwrap();
    let mut pods = Pods::default();
    let name = PodName { namespace: "shop".to_owned(), name: "db-0".to_owned() };
    pods.names.insert("c12ef941-6a22-4f38-8101-61b41df7a6b6".to_owned(), name);
    host.learn_pods(pods);
    let mut source = open(&host).unwrap();
    look(&mut source, &host);
    mover.skip(Duration::from_secs(200));
    let reading = look(&mut source, &host);
    assert_eq!(reading.all_blocked[0].pod.as_deref(), Some("shop/db-0"));
    assert_eq!(reading.blocked.by_wchan, [("rpc_wait_bit_killable".to_owned(), 1)]);
    assert_eq!(reading.blocks_pleg, None);
    let found = states(&reading);
    assert_eq!((found[0].finding, found[0].severity), ("task_stuck", Severity::Warning));
    assert!(found[0].summary.contains("rpc_wait_bit_killable"), "{}", found[0].summary);
    assert!(found[0].summary.contains("pod shop/db-0"), "{}", found[0].summary);

    // A container that is paused on cgroup v1 waits in D too, and for nothing.
    fs::write(folder.join("wchan"), "__refrigerator").unwrap();
    let mut source = open(&host).unwrap();
    look(&mut source, &host);
    mover.skip(Duration::from_secs(200));
    let reading = look(&mut source, &host);
    assert_eq!((reading.all_blocked.len(), names(&reading)), (1, vec![]));
}

#[test]
fn limits_that_are_nearly_reached() {
    let (_root, host, _) = made_up();
    let mut source = open(&host).unwrap();
    let mut reading = look(&mut source, &host);
    assert_eq!(reading.limits.pid_max, None, "there is no such file, and no value");
    assert_eq!(reading.limits.missing.len(), 5);
    assert_eq!(names(&reading), [""; 0]);
    reading.limits.pid_max = Some(600);
    reading.load.tasks = 590;
    assert_eq!(names(&reading), [""; 0], "the other limit may be smaller");
    reading.limits.threads_max = Some(30_000);
    assert_eq!(names(&reading), ["node_tasks_exhausted"]);
    reading.load.tasks = 539;
    assert_eq!(names(&reading), [""; 0]);
    (reading.limits.file_handles, reading.limits.file_max) = (Some(990), Some(1000));
    reading.limits.inotify = Some(Probe::WatchesExhausted);
    let runtime = Files { role: "runtime", pid: 10, name: "containerd".to_owned(), open: 1024, limit: 1024 };
    reading.limits.files = vec![runtime];
    assert_eq!(names(&reading), ["file_handles_exhausted", "file_handles_exhausted", "inotify_exhausted"]);
    assert_eq!(states(&reading)[1].subject.kind, SubjectKind::Runtime);
}

#[test]
fn stolen_time_and_load_that_is_no_cpu() {
    let (_root, host, _) = made_up();
    let mut source = open(&host).unwrap();
    let mut reading = look(&mut source, &host);
    assert_eq!(reading.cpu, None, "one look tells no share");
    let before = Cpu { ticks: [100, 0, 100, 1000, 0, 0, 0, 100] };
    let now = Cpu { ticks: [200, 0, 200, 1400, 0, 0, 0, 1500] };
    let whole = shares(before, now, Duration::from_secs(60)).unwrap();
    assert_eq!((whole.steal_percent, whole.idle_percent), (70.0, 20.0));
    assert_eq!(shares(now, before, Duration::from_secs(60)), None, "a counter that went back");
    assert_eq!(shares(now, now, Duration::ZERO), None);
    reading.cpu = Some(Shares { over_seconds: 10.0, ..whole });
    assert_eq!(names(&reading), [""; 0], "ten seconds are no minute");
    reading.cpu = Some(whole);
    assert_eq!(names(&reading), ["cpu_stolen"]);

    reading.cpu = Some(Shares { over_seconds: 60.0, steal_percent: 0.0, idle_percent: 97.0 });
    reading.load.one = 448.0;
    assert_eq!(names(&reading), [""; 0], "a load alone says nothing of D");
    reading.blocked.count = Some(450);
    assert_eq!(names(&reading), ["load_from_blocked_tasks"]);
    reading.cpu = Some(Shares { over_seconds: 60.0, steal_percent: 0.0, idle_percent: 3.0 });
    assert_eq!(names(&reading), [""; 0]);
}

#[test]
fn a_proc_of_the_agents_own_container_is_said_to_be_that() {
    let root = tempfile::tempdir().unwrap();
    made::process(root.path(), 1, "nodewhy-agent", 'S');
    fs::write(root.path().join("proc/loadavg"), "0.20 0.18 0.12 1/80 11206\n").unwrap();
    fs::write(root.path().join("proc/stat"), STAT).unwrap();
    let host = Host::new(root.path(), Clock::system(), Places::default());
    let mut source = open(&host).unwrap();
    let reading = read(&mut source, &host).unwrap();
    assert!(reading.sweep.error.as_ref().unwrap().contains("hostPID"), "{:?}", reading.sweep);
    assert_eq!((reading.blocked.count, reading.zombies), (None, None));
    assert_eq!(reading.load.tasks, 80);
}

#[test]
fn idle_time_that_goes_back_is_no_counter_that_began_anew() {
    let (root, host, _) = made_up();
    let mut source = open(&host).unwrap();
    let before = look(&mut source, &host).cpu_seconds;
    // proc_stat(5): iowait is not reliable, and may decrease.
    let back = STAT.replace(" 2446277 27171 ", " 2446300 27100 ");
    fs::write(root.path().join("proc/stat"), back).unwrap();
    let now = read(&mut source, &host).unwrap().cpu_seconds;
    assert_eq!((before["iowait"], now["iowait"]), (271.71, 271.71));
    assert_eq!((before["idle"], now["idle"]), (24_462.77, 24_463.0));
}

#[test]
fn a_container_that_bears_a_plugins_name_is_no_call() {
    let (root, host, _) = made_up();
    let make = |pid, name, parent, age, cgroup: &str| {
        process(root.path(), &host, pid, (name, 'S'), parent, age, cgroup);
    };
    make(20, "containerd-shim", 1, 8000, SYSTEM);
    // The daemon of the plugin dhcp as a DaemonSet runs it (`/opt/cni/bin/dhcp daemon`): it stays.
    make(30, "dhcp", 20, 7000, &format!("{POD}/{SCOPE}"));
    // What runc leaves behind in the container is in its cgroup already, and is a call until it starts the program.
    make(40, "runc:[2:INIT]", 20, 70, &format!("{POD}/{SCOPE}"));
    let mut source = open(&host).unwrap();
    let reading = look(&mut source, &host);
    assert_eq!(reading.calls.iter().map(|call| call.pid).collect::<Vec<_>>(), [40]);
    assert_eq!(names(&reading), ["runtime_call_stuck"]);
}

#[test]
fn a_step_of_a_docker_build_is_no_call_that_hangs() {
    let (root, host, _) = made_up();
    let make = |pid, name, parent, age, cgroup: &str| {
        process(root.path(), &host, pid, (name, 'S'), parent, age, cgroup);
    };
    make(10, "dockerd", 1, 9000, "/system.slice/docker.service");
    make(11, "runc", 10, 900, "/system.slice/docker.service");
    make(20, "containerd-shim", 1, 8000, SYSTEM);
    make(21, "runc", 20, 61, SYSTEM);
    let reading = look(&mut open(&host).unwrap(), &host);
    assert_eq!(reading.calls.iter().map(|call| call.pid).collect::<Vec<_>>(), [21]);
}
