use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nodewhy_clock::{Clock, Mover, Stamp};
use nodewhy_proto::{CgroupMode, Severity, SubjectKind};

use super::*;
use crate::collector::{Abnormal, Noticed, Pair};
use crate::host::known::{PodName, Pods};
use crate::host::{Host, Places, ReadError};
use crate::metrics::Sink;
use crate::thresholds::Thresholds;

// The recorded node's names (fixtures: kubelet 1.32.6, cgroup-tree.txt: systemd's driver, containerd 1.6.20).
const UID: &str = "d8c40446-2452-455f-917f-a0fb0b1e3d2c";
const POD: &str = "kubepods-burstable.slice/kubepods-burstable-podd8c40446_2452_455f_917f_a0fb0b1e3d2c.slice";
const APP: &str = "8c012d92731022e1089127a8656318870625f0382e7f5f0644d5ac82e75a85e1";
const SANDBOX: &str = "90f660a5efe1c8f4c9b6fe58421f2232c1eb8744b5e1ec7151ecadb833fbc751";
const V2: &str = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
// Recorded on Linux 6.1.192, Debian 12.
const PRESSURE: &str = include_str!("../../../fixtures/pressure/linux-6.1.192-memory.txt");

/// A folder that is a node with cgroup v2.
struct Node {
    root: tempfile::TempDir,
    host: Host,
    mover: Mover,
}

impl Node {
    fn new() -> Node {
        let root = tempfile::tempdir().unwrap();
        let (clock, mover) = Clock::skippable();
        let host = Host::new(root.path(), clock, Places::default());
        let node = Node { root, host, mover };
        node.write("proc/1/mountinfo", V2);
        node.write("sys/fs/cgroup/cgroup.stat", "nr_descendants 40\nnr_dying_descendants 3\n");
        node.group("kubepods.slice", &[("memory.max", "838860800\n")]);
        node.group("kubepods.slice/kubepods-burstable.slice", &[]);
        node.pod();
        node
    }

    fn path(&self, group: &str) -> PathBuf {
        self.root.path().join("sys/fs/cgroup").join(group)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn set(&self, group: &str, file: &str, text: &str) {
        self.write(&format!("sys/fs/cgroup/{group}/{file}"), text);
    }

    /// A quiet group with every file that the collector reads, but for these.
    fn group(&self, group: &str, but: &[(&str, &str)]) {
        let events = "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n";
        for (file, text) in [
            ("memory.current", "52428800\n"),
            ("memory.max", "max\n"),
            ("memory.high", "max\n"),
            ("memory.low", "0\n"),
            ("memory.swap.current", "0\n"),
            ("memory.events", events),
            ("memory.events.local", events),
            ("memory.stat", "anon 20971520\nfile 20971520\ninactive_file 10485760\nactive_file 10485760\n"),
            ("cpu.stat", "usage_usec 1000000\nnr_periods 0\nnr_throttled 0\nthrottled_usec 0\n"),
            ("cpu.max", "max 100000\n"),
            ("pids.current", "4\n"),
            ("pids.max", "max\n"),
            ("pids.events", "max 0\n"),
            ("io.stat", "8:0 rbytes=1 wbytes=2 rios=1 wios=1 dbytes=0 dios=0\n"),
            ("cgroup.type", "domain\n"),
            ("cgroup.events", "populated 1\nfrozen 0\n"),
            ("cgroup.stat", "nr_descendants 1\nnr_dying_descendants 0\n"),
            ("cpu.pressure", PRESSURE),
            ("memory.pressure", PRESSURE),
            ("io.pressure", PRESSURE),
        ] {
            let but = but.iter().find(|(name, _)| *name == file);
            self.set(group, file, but.map_or(text, |(_, text)| text));
        }
    }

    fn pod(&self) {
        self.group(&pod(""), &[]);
        self.group(&pod(&scope(SANDBOX)), &[]);
        self.group(&pod(&scope(APP)), &[]);
    }

    /// The kubelet's process in its unit.
    fn kubelet(&self, but: &[(&str, &str)]) {
        self.group("system.slice", &[]);
        self.group("system.slice/kubelet.service", but);
        self.set("system.slice/kubelet.service", "cgroup.procs", "344\n");
        crate::host::process::made::process(self.root.path(), 344, "kubelet", 'S');
        self.host.learn_kubelet_process(self.host.process(344).unwrap());
    }

    fn source(&self) -> Source {
        source::open(&self.host).unwrap()
    }

    fn tick(&self, source: &mut Source) -> Reading {
        self.mover.skip(Duration::from_secs(5));
        source::read(source, &self.host).unwrap()
    }
}

fn scope(id: &str) -> String {
    format!("/cri-containerd-{id}.scope")
}

fn pod(below: &str) -> String {
    format!("kubepods.slice/{POD}{below}")
}

fn states(reading: &Reading) -> Vec<Abnormal> {
    let clock = Clock::system();
    let at: Stamp = clock.stamp();
    let mut noticed = Noticed::default();
    detect::detect(Pair { before: None, now: reading, at }, &Thresholds::default(), &mut noticed);
    noticed.states
}

fn names(reading: &Reading) -> Vec<&'static str> {
    states(reading).iter().map(|state| state.finding).collect()
}

#[test]
fn a_quiet_node_is_read_in_full_and_has_no_findings() {
    let node = Node::new();
    node.write(&format!("var/log/pods/default_lab-pod-1_{UID}/x"), "");
    node.kubelet(&[]);
    let mut source = node.source();
    let mut reading = node.tick(&mut source);
    // The logs' folder is listed beside the readings.
    for _ in 0..500 {
        if reading.pods[0].name.is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
        reading = node.tick(&mut source);
    }
    assert_eq!((reading.mode, reading.kubepods.as_deref()), (CgroupMode::V2, Some("/kubepods.slice")));
    let page = reading::pods(&reading).unwrap();
    assert_eq!(page[0]["namespace"], "default");
    assert_eq!(page[0]["name"], "lab-pod-1");
    assert_eq!(page[0]["qos"], "burstable");
    assert_eq!(page[0]["uid"], UID);
    assert_eq!(page[0]["cgroup"]["memory"]["max_bytes"], "max");
    assert_eq!(page[0]["containers"][0]["id"], APP);
    assert_eq!(page[0]["containers"][0]["cgroup"]["pressure"]["memory"]["full"]["avg60"], 0.23);
    assert_eq!(page[0]["containers"].as_array().unwrap().len(), 2);
    assert_eq!(reading.qos["burstable"], Count { pods: 1, containers: 2, memory_bytes: Some(52_428_800) });
    assert_eq!(reading.without_memory_limit.top[0].pod, "default/lab-pod-1");
    assert_eq!(reading.groups["kubelet"].path, "/system.slice/kubelet.service");
    assert_eq!(reading.programs[0].levels.len(), 2, "its unit and the slice above it");
    assert_eq!(reading.dying.as_ref().unwrap().dying, 3);
    assert_eq!(names(&reading), [] as [&str; 0]);
    let state = serde_json::to_string(&reading).unwrap();
    assert!(!state.contains(APP) && state.len() < 20_000, "{} bytes", state.len());
}

#[test]
fn names_and_sandboxes_come_from_the_runtime_where_it_answers() {
    let node = Node::new();
    node.host.learn_pods(Pods {
        names: [(UID.to_owned(), PodName { namespace: "shop".to_owned(), name: "cart".to_owned() })].into(),
        containers: [(APP.to_owned(), ("app".to_owned(), UID.to_owned()))].into(),
        sandboxes: [(SANDBOX.to_owned(), (UID.to_owned(), true))].into(),
    });
    let reading = node.tick(&mut node.source());
    let containers = &reading.pods[0].detail.as_ref().unwrap().containers;
    assert_eq!(reading.pods[0].label(), "shop/cart");
    assert_eq!((containers[0].name.as_deref(), containers[0].is_sandbox), (Some("app"), false));
    assert_eq!((containers[1].name.as_deref(), containers[1].is_sandbox), (None, true));
}

#[test]
fn the_cgroupfs_driver_and_every_class() {
    let node = Node::new();
    fs::remove_dir_all(node.path("kubepods.slice")).unwrap();
    for (path, _) in [("", 0), ("/besteffort", 0), ("/burstable", 0)] {
        node.group(&format!("kubepods{path}"), &[]);
    }
    for (class, n) in [("", 1), ("/besteffort", 2), ("/burstable", 3)] {
        let uid = UID.replace("d8c4", &format!("d8c{n}"));
        node.group(&format!("kubepods{class}/pod{uid}"), &[("memory.max", "1048576\n")]);
        node.group(&format!("kubepods{class}/pod{uid}/{APP}"), &[]);
    }
    let mut source = node.source();
    let reading = node.tick(&mut source);
    let of = |qos: &str| reading.qos[qos].containers;
    assert_eq!((of("guaranteed"), of("besteffort"), of("burstable")), (1, 1, 1));
    assert_eq!(reading.without_memory_limit.count, 0);
    assert_eq!(reading.groups["besteffort"].path, "/kubepods/besteffort");
    // The kubelet makes its cgroups anew under the other driver: found again, not failed.
    fs::remove_dir_all(node.path("kubepods")).unwrap();
    let gone = node.tick(&mut source);
    assert!(gone.kubepods.is_none() && gone.missing.iter().any(|why| why.contains("no kubepods")));
    node.group("kubepods.slice", &[]);
    assert_eq!(node.tick(&mut source).kubepods.as_deref(), Some("/kubepods.slice"));
}

#[test]
fn containers_come_and_go() {
    let node = Node::new();
    let mut source = node.source();
    assert_eq!(node.tick(&mut source).churn, Churn::default(), "those that were there did not come");
    let next = APP.replace('8', "9");
    fs::remove_dir_all(node.path(&pod(&scope(APP)))).unwrap();
    node.group(&pod(&scope(&next)), &[]);
    let reading = node.tick(&mut source);
    assert_eq!((reading.churn.created, reading.churn.removed), (1, 1), "a restart within a tick");
    assert_eq!((reading.churn.created_last_minute, reading.churn.removed_last_minute), (1, 1));
    assert_eq!(reading.pods[0].detail.as_ref().unwrap().containers.len(), 2);
    fs::remove_dir_all(node.path(&pod(""))).unwrap();
    let reading = node.tick(&mut source);
    assert_eq!((reading.churn.removed, reading.pods.len()), (3, 0));
    for _ in 0..13 {
        node.tick(&mut source);
    }
    let churn = node.tick(&mut source).churn;
    assert_eq!((churn.removed, churn.removed_last_minute), (3, 0));
}

#[test]
fn a_kubelet_at_its_quota_is_told_with_its_own_pressure() {
    let node = Node::new();
    let quota = ("cpu.max", "10000 100000\n");
    node.kubelet(&[quota]);
    let mut source = node.source();
    let mut found = Vec::new();
    for tick in 1..=10u64 {
        // CAUSES: 722 of 726 periods. From the third tick on: 50 periods a tick, all throttled.
        let periods = tick.saturating_sub(2) * 50;
        let stat = format!(
            "usage_usec 1000000\nnr_periods {}\nnr_throttled {periods}\nthrottled_usec {}\n",
            periods + 4,
            periods * 90_000
        );
        node.set("system.slice/kubelet.service", "cpu.stat", &stat);
        let reading = node.tick(&mut source);
        found.push(names(&reading).contains(&"kubelet_cpu_throttled"));
    }
    // A window of 30 s is there with the 7th look; the quota bound it for 25 s by then.
    assert_eq!(found, [false, false, false, false, false, false, true, true, true, true]);
    let reading = node.tick(&mut source);
    let state = states(&reading).into_iter().find(|state| state.finding == "kubelet_cpu_throttled").unwrap();
    assert_eq!((state.subject.kind, state.severity), (SubjectKind::Kubelet, Severity::Warning));
    let text: Vec<_> = state.evidence.iter().map(|one| one.text.as_str()).collect();
    assert!(text[0].contains("250 of 250 periods throttled in 30 s (100 %)"), "{text:?}");
    assert_eq!(text[1], "its quota is 0.10 of a processor");
    assert_eq!(text[2], "its own CPU pressure: some avg60 0.29 %");
}

#[test]
fn a_short_burst_at_the_quota_is_no_finding() {
    let node = Node::new();
    node.kubelet(&[("cpu.max", "50000 100000\n")]);
    let mut source = node.source();
    for tick in 1..=12u64 {
        let periods = if tick < 8 { 0 } else { 40 };
        let stat = format!("usage_usec 1\nnr_periods {periods}\nnr_throttled {periods}\nthrottled_usec 9\n");
        node.set("system.slice/kubelet.service", "cpu.stat", &stat);
        assert_eq!(names(&node.tick(&mut source)), [] as [&str; 0], "tick {tick}: 4 s of 30");
    }
}

#[test]
fn a_frozen_container_is_told_after_a_while_and_a_thawed_one_is_not() {
    let node = Node::new();
    let mut source = node.source();
    node.tick(&mut source);
    node.set(&pod(&scope(APP)), "cgroup.events", "populated 1\nfrozen 1\n");
    let reading = node.tick(&mut source);
    let frozen = states(&reading);
    assert_eq!((frozen[0].finding, frozen[0].hold), ("cgroup_frozen", Duration::from_secs(30)));
    assert_eq!(frozen[0].subject.name, format!("/{}", pod(&scope(APP))));
    node.set(&pod(&scope(APP)), "cgroup.events", "populated 1\nfrozen 0\n");
    assert_eq!(names(&node.tick(&mut source)), [] as [&str; 0]);
}

#[test]
fn a_sandbox_that_was_frozen_when_it_was_read_thaws_with_its_pod() {
    let node = Node::new();
    node.host.learn_pods(Pods {
        sandboxes: [(SANDBOX.to_owned(), (UID.to_owned(), true))].into(),
        ..Pods::default()
    });
    let freeze = |is: bool| {
        for group in [pod(""), pod(&scope(SANDBOX)), pod(&scope(APP))] {
            node.set(&group, "cgroup.events", &format!("populated 1\nfrozen {}\n", u8::from(is)));
        }
    };
    freeze(true);
    let mut source = node.source();
    assert_eq!(names(&node.tick(&mut source)), ["cgroup_frozen"]);
    freeze(false);
    let reading = node.tick(&mut source);
    let containers = &reading.pods[0].detail.as_ref().unwrap().containers;
    assert!(containers.iter().all(|one| one.cgroup.frozen == Some(false)), "{containers:?}");
}

#[test]
fn a_frozen_unit_is_told_and_the_largest_is_listed() {
    let node = Node::new();
    node.group("system.slice", &[]);
    node.group("system.slice/ssh.service", &[("cgroup.events", "populated 1\nfrozen 1\n")]);
    node.group("system.slice/hog.service", &[("memory.current", "900000000\n")]);
    let reading = node.tick(&mut node.source());
    assert_eq!(reading.frozen, ["/system.slice/ssh.service"]);
    let hog = Unit { name: "hog.service".to_owned(), memory_bytes: 900_000_000 };
    assert_eq!((reading.units.first(), reading.units.len()), (Some(&hog), 2));
}

#[test]
fn kubepods_below_a_cgroup_root_of_the_kubelets() {
    for nest in ["kubelet.slice/kubelet-kubepods.slice", "some/kubepods"] {
        let node = Node::new();
        fs::create_dir_all(node.path(nest).parent().unwrap()).unwrap();
        fs::rename(node.path("kubepods.slice"), node.path(nest)).unwrap();
        let reading = node.tick(&mut node.source());
        assert_eq!(reading.kubepods, Some(format!("/{nest}")));
        assert_eq!(reading.pods[0].uid, UID);
    }
}

#[test]
fn a_pods_limit_of_processes_is_the_pods_though_the_container_was_refused() {
    // The proving ground's pids-exhausted-pod on Linux 6.1: the limit is the slice's, the event the container's.
    let node = Node::new();
    node.set(&pod(""), "pids.max", "40\n");
    let mut source = node.source();
    assert_eq!(names(&node.tick(&mut source)), [] as [&str; 0]);
    node.set(&pod(""), "pids.current", "40\n");
    node.set(&pod(&scope(APP)), "pids.current", "39\n");
    node.set(&pod(&scope(APP)), "pids.events", "max 1\n");
    let reading = node.tick(&mut source);
    let found = states(&reading);
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].finding, found[0].subject.kind), ("pids_limit_reached", SubjectKind::Cgroup));
    assert_eq!(found[0].subject.name, format!("/{}", pod("")));
    assert_eq!(found[0].evidence[0].text, "40 of 40 processes and threads");
    assert_eq!(found[0].evidence[1].text, "1 forks refused");
    node.set(&pod(""), "pids.current", "4\n");
    for _ in 0..13 {
        node.tick(&mut source);
    }
    assert_eq!(names(&node.tick(&mut source)), [] as [&str; 0]);
}

#[test]
fn a_units_limit_of_tasks() {
    let node = Node::new();
    node.kubelet(&[("pids.max", "30\n")]);
    let mut source = node.source();
    assert_eq!(names(&node.tick(&mut source)), [] as [&str; 0]);
    node.set("system.slice/kubelet.service", "pids.events", "max 5\n");
    let reading = node.tick(&mut source);
    let found = states(&reading);
    assert_eq!((found[0].finding, found[0].subject.kind), ("unit_tasks_limit_reached", SubjectKind::Unit));
    assert_eq!(found[0].subject.name, "kubelet.service");
    assert_eq!(found[0].evidence[1].text, "5 forks refused");
}

const OOM: &str = "low 0\nhigh 0\nmax 9\noom 1\noom_kill 2\noom_group_kill 1\n";

#[test]
fn a_kill_wakes_and_is_told_once_with_its_container() {
    let node = Node::new();
    let mut source = node.source();
    node.tick(&mut source);
    let wake = source::wake(&source).unwrap();
    let mut fds = [nix::poll::PollFd::new(wake, nix::poll::PollFlags::POLLIN)];
    assert_eq!(nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO).unwrap(), 0);
    for group in ["kubepods.slice".to_owned(), pod(""), pod(&scope(APP))] {
        node.set(&group, "memory.events", OOM);
    }
    let wake = source::wake(&source).unwrap();
    let mut fds = [nix::poll::PollFd::new(wake, nix::poll::PollFlags::POLLIN)];
    assert_eq!(nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO).unwrap(), 1);
    let reading = source::read(&mut source, &node.host).unwrap();
    assert_eq!(reading.oom_kills.len(), 1);
    let kill = &reading.oom_kills[0];
    assert_eq!((kill.pod.as_str(), kill.processes), (UID, 2));
    assert_eq!(kill.container.as_deref(), Some(format!("/{}", pod(&scope(APP))).as_str()));
    assert_eq!(names(&reading), [] as [&str; 0], "the container's own limit is its owner's business");
    assert_eq!(node.tick(&mut source).oom_kills.len(), 1);
}

#[test]
fn wakes_without_a_kill_are_cheap_and_end_when_there_are_too_many() {
    let node = Node::new();
    let mut source = node.source();
    let first = node.tick(&mut source);
    for count in 0..100 {
        let events = format!("low 0\nhigh 0\nmax {count}\noom 0\noom_kill 0\n");
        node.set("kubepods.slice", "memory.events", &events);
        let reading = source::read(&mut source, &node.host).unwrap();
        if source::wake(&source).is_none() {
            assert_eq!(count, 19);
            break;
        }
        assert_eq!(
            reading.pods[0].detail.as_ref().unwrap().read_at,
            first.pods[0].detail.as_ref().unwrap().read_at
        );
    }
    assert!(source::wake(&source).is_none());
    node.tick(&mut source);
    assert!(source::wake(&source).is_some());
}

#[test]
fn kubepods_at_its_limit_is_told_page_cache_is_not() {
    let node = Node::new();
    let mut source = node.source();
    node.tick(&mut source);
    let full = |max: u64, cache: u64| {
        node.set("kubepods.slice", "memory.current", "838860000\n");
        let events = format!("low 0\nhigh 0\nmax {max}\noom 0\noom_kill 0\n");
        node.set("kubepods.slice", "memory.events.local", &events);
        let stat = format!("anon 1\nfile {cache}\ninactive_file {cache}\nactive_file 0\n");
        node.set("kubepods.slice", "memory.stat", &stat);
    };
    full(2685, 600_000_000);
    assert_eq!(names(&node.tick(&mut source)), [] as [&str; 0], "page cache fills a limit on a healthy node");
    full(9000, 40_000_000);
    let found = states(&node.tick(&mut source));
    assert_eq!((found[0].finding, found[0].severity), ("kubepods_memory_at_limit", Severity::Warning));
    assert_eq!(found[0].evidence[0].text, "799 of 800 MiB");
    assert_eq!(names(&node.tick(&mut source)), [] as [&str; 0], "not pushed any more");
    node.set("kubepods.slice", "memory.current", "1\n");
    node.set("kubepods.slice", "memory.events.local", OOM);
    let found = states(&node.tick(&mut source));
    assert_eq!(found[0].finding, "kubepods_memory_at_limit");
    assert!(found[0].evidence[1].text.contains("nothing more could be reclaimed"));
    for _ in 0..13 {
        node.tick(&mut source);
    }
    assert_eq!(names(&node.tick(&mut source)), [] as [&str; 0]);
}

#[test]
fn dying_cgroups_are_a_leak_when_they_are_many_and_far_more_than_the_living() {
    let node = Node::new();
    for (living, dying, leaks) in [(40, 3, false), (40, 4000, false), (4000, 20_000, false), (40, 5001, true)]
    {
        let stat = format!("nr_descendants {living}\nnr_dying_descendants {dying}\n");
        node.write("sys/fs/cgroup/cgroup.stat", &stat);
        let reading = node.tick(&mut node.source());
        assert_eq!(names(&reading).contains(&"cgroups_dying"), leaks, "{living} {dying}");
    }
}

#[test]
fn what_is_off_is_no_zero() {
    let node = Node::new();
    let app = pod(&scope(APP));
    for file in
        ["cpu.pressure", "memory.pressure", "io.pressure", "memory.current", "pids.current", "io.stat"]
    {
        fs::remove_file(node.path(&app).join(file)).unwrap();
    }
    node.set(&app, "cgroup.pressure", "0\n");
    node.set(&app, "memory.events", "low x\n");
    node.set(&app, "cpu.stat", "usage_usec 5\n");
    let some = PRESSURE.split_inclusive('\n').next().unwrap();
    node.set(&pod(&scope(SANDBOX)), "cpu.pressure", some);
    let reading = node.tick(&mut node.source());
    let page = reading::pods(&reading).unwrap();
    let cgroup = &page[0]["containers"][0]["cgroup"];
    assert!(cgroup["pressure"]["off"].as_str().unwrap().contains("cgroup.pressure is 0"), "{cgroup}");
    assert!(cgroup["memory"].as_object().unwrap().is_empty(), "{cgroup}");
    assert!(
        cgroup["missing"][0].as_str().unwrap().starts_with("memory: the controller is not enabled"),
        "{cgroup}"
    );
    assert!(
        cgroup["cpu"]["periods"].is_null()
            && cgroup["io"].is_null()
            && cgroup["pids"].as_object().unwrap().is_empty()
    );
    let cpu = &page[0]["containers"][1]["cgroup"]["pressure"]["cpu"];
    assert!(cpu["some"]["avg10"].is_number() && cpu["full"].is_null(), "a kernel up to 5.12: {cpu}");
    // A file that is there and makes no sense is told, and costs only itself.
    node.set(&pod(""), "memory.events", "low x\n");
    let reading = node.tick(&mut node.source());
    let cgroup = &reading.pods[0].detail.as_ref().unwrap().cgroup;
    assert!(cgroup.missing[0].contains("memory.events") && cgroup.memory.current_bytes.is_some());
}

#[test]
fn a_node_with_v1_controllers_says_so_and_is_read() {
    let node = Node::new();
    node.write("proc/1/mountinfo", include_str!("../../../fixtures/hosts/linux-6.18/proc/1/mountinfo"));
    // Both texts recorded on Linux 6.18.44, cgroup v1.
    let stat = include_str!("../../../fixtures/memory/linux-6.18.44-cgroup-v1-memory.stat.txt");
    let usage = include_str!("../../../fixtures/memory/linux-6.18.44-cgroup-v1-memory.usage_in_bytes.txt");
    let of_pod = |controller: &str, file: &str, text: &str| {
        let uid = UID;
        for below in [format!("pod{uid}"), format!("pod{uid}/{APP}")] {
            node.write(&format!("sys/fs/cgroup/{controller}/kubepods/burstable/{below}/{file}"), text);
        }
        node.write(&format!("sys/fs/cgroup/{controller}/kubepods/{file}"), text);
    };
    of_pod("memory", "memory.usage_in_bytes", usage);
    of_pod("memory", "memory.limit_in_bytes", "9223372036854771712\n");
    of_pod("memory", "memory.failcnt", "0\n");
    of_pod("memory", "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n");
    of_pod("memory", "memory.stat", stat);
    of_pod("cpu", "cpu.stat", "nr_periods 100\nnr_throttled 5\nthrottled_time 2500000000\n");
    of_pod("cpu", "cpu.cfs_quota_us", "150000\n");
    of_pod("cpu", "cpu.cfs_period_us", "100000\n");
    of_pod("cpuacct", "cpuacct.usage", "26234857056116\n");
    of_pod("pids", "pids.current", "7\n");
    of_pod("pids", "pids.max", "max\n");
    of_pod("freezer", "freezer.state", "FROZEN\n");
    let mut source = node.source();
    let reading = node.tick(&mut source);
    assert_eq!((reading.mode, reading.kubepods.as_deref()), (CgroupMode::Hybrid, Some("/kubepods")));
    assert!(reading.missing[0].starts_with("this node has cgroup v1 controllers"), "{:?}", reading.missing);
    let pod = &reading.pods[0];
    assert_eq!(pod.memory_bytes, Some(usage.trim().parse().unwrap()));
    assert_eq!(pod.has_memory_limit(), Some(false));
    let cgroup = &pod.detail.as_ref().unwrap().containers[0].cgroup;
    let cpu = cgroup.cpu.unwrap();
    assert_eq!((cpu.throttled_periods, cpu.throttled_seconds), (Some(5), Some(2.5)));
    assert_eq!((cpu.usage_seconds, cgroup.cpu_quota.unwrap().cpus), (Some(26_234.857_056_116), 1.5));
    assert!(cgroup.memory.stat.unwrap().anon > 0 && cgroup.memory.events_local.is_none());
    assert_eq!((cgroup.pids.current, cgroup.pids.refused, cgroup.io), (Some(7), None, None));
    assert!(source::wake(&source).is_none(), "v1 has no memory.events to wait for");
    let frozen = node.tick(&mut source).frozen;
    assert_eq!(frozen, ["/kubepods".to_owned(), format!("/kubepods/burstable/pod{UID}")]);
}

#[test]
fn a_node_without_kubepods_or_without_cgroups() {
    let node = Node::new();
    fs::remove_dir_all(node.path("kubepods.slice")).unwrap();
    let reading = node.tick(&mut node.source());
    assert!(reading.missing.iter().any(|why| why.contains("no kubepods")), "{:?}", reading.missing);
    assert_eq!(names(&reading), [] as [&str; 0]);
    let mut sink = Sink::default();
    metrics::metrics(&reading, &mut sink);
    assert!(!sink.encode().contains("nodewhy_pods"), "no zero pods");
    node.write("proc/1/mountinfo", "22 21 0:20 / /proc rw - proc proc rw\n");
    assert!(matches!(source::open(&node.host), Err(ReadError::Absent { .. })));
}

#[test]
fn series_are_as_many_with_one_pod_as_with_fifty() {
    let count = |pods: usize| {
        let node = Node::new();
        for n in 1..pods {
            let uid = format!("{n:08x}_2452_455f_917f_a0fb0b1e3d2c");
            let path = format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid}.slice");
            node.group(&path, &[]);
            node.group(&format!("{path}{}", scope(APP)), &[]);
        }
        let reading = node.tick(&mut node.source());
        assert_eq!(reading.pods.len(), pods);
        let mut sink = Sink::default();
        metrics::metrics(&reading, &mut sink);
        let text = sink.encode();
        assert!(!text.contains(UID));
        let size = serde_json::to_string(&reading).unwrap().len();
        assert!(size < 20_000, "{size} bytes");
        text.lines().filter(|line| !line.starts_with('#')).count()
    };
    assert_eq!(count(1), count(50));
}

#[test]
fn pods_are_in_the_metrics_only_behind_the_switch() {
    let node = Node::new();
    for (per_pod_metrics, wanted) in [(false, false), (true, true)] {
        let places = Places { per_pod_metrics, ..Places::default() };
        let host = Host::new(node.root.path(), node.host.clock().clone(), places);
        let mut sink = Sink::default();
        metrics::metrics(&source::read(&mut node.source(), &host).unwrap(), &mut sink);
        let text = sink.encode();
        let series = format!("nodewhy_pod_memory_bytes{{namespace=\"\",pod=\"\",uid=\"{UID}\"}} 52428800");
        assert_eq!(text.contains(&series), wanted, "{text}");
    }
}

#[test]
fn pods_that_wait_for_memory_or_io_are_listed() {
    let node = Node::new();
    assert!(node.tick(&mut node.source()).stalled.is_empty());
    node.set(&pod(""), "memory.pressure", &PRESSURE.replace("avg60=0.23", "avg60=37.50"));
    let stalled = node.tick(&mut node.source()).stalled;
    assert_eq!((stalled[0].pod.as_str(), stalled[0].memory_full_avg60), (UID, Some(37.5)));
}

#[test]
fn this_machine_is_read_whatever_it_has() {
    let host = Host::new("/", Clock::system(), Places::default());
    let mut source = match source::open(&host) {
        Ok(source) => source,
        Err(error) => return assert!(matches!(error, ReadError::Absent { .. }), "{error}"),
    };
    let reading = source::read(&mut source, &host).unwrap();
    let agent = &reading.groups["agent"];
    assert!(agent.memory.current_bytes.is_none_or(|bytes| bytes > 0), "{agent:?}");
    if reading.mode != CgroupMode::V2 {
        assert!(reading.missing[0].contains("cgroup v1"), "{:?}", reading.missing);
        assert!(agent.memory.current_bytes.is_some() && agent.memory.stat.unwrap().anon > 0, "{agent:?}");
        assert!(reading.dying.as_ref().unwrap().living > 0);
    }
    assert!(reading.controllers["memory"] > 0);
    assert_eq!(states(&reading).len(), 0, "{:?}", states(&reading));
}

/// The cost of a tick with 250 pods of two containers and a sandbox, in `/dev/shm`: run it with
/// `cargo nextest run -p nodewhy-agent --run-ignored only cost`.
#[test]
#[ignore = "a measurement"]
fn cost_of_a_tick_with_250_pods() {
    let node = Node { root: tempfile::tempdir_in("/dev/shm").unwrap(), ..Node::new() };
    let (clock, mover) = Clock::skippable();
    let host = Host::new(node.root.path(), clock, Places::default());
    let node = Node { host, mover, ..node };
    node.write("proc/1/mountinfo", V2);
    node.write("sys/fs/cgroup/cgroup.stat", "nr_descendants 40\nnr_dying_descendants 3\n");
    node.group("kubepods.slice", &[]);
    node.group("kubepods.slice/kubepods-burstable.slice", &[]);
    for n in 0..250 {
        let uid = format!("{n:08x}_2452_455f_917f_a0fb0b1e3d2c");
        let path = format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid}.slice");
        node.group(&path, &[]);
        for id in [APP, SANDBOX, &APP.replace('8', "7")] {
            node.group(&format!("{path}{}", scope(id)), &[]);
        }
    }
    node.kubelet(&[]);
    node.host.learn_pods(Pods {
        sandboxes: [(SANDBOX.to_owned(), (UID.to_owned(), true))].into(),
        ..Pods::default()
    });
    let mut source = node.source();
    let used = || {
        let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
        Duration::from(time)
    };
    for round in 0..30 {
        let before = used();
        let reading = node.tick(&mut source);
        println!("tick {round}: {:?}, {} pods", used() - before, reading.pods.len());
    }
    let before = used();
    for _ in 0..10 {
        node.set("kubepods.slice", "memory.events", "low 0\nhigh 0\nmax 1\noom 0\noom_kill 0\n");
        source::read(&mut source, &node.host).unwrap();
    }
    println!("a wake without a kill: {:?}", (used() - before) / 10);
    assert!(Path::new("/dev/shm").exists());
}
