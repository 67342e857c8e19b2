//! The number of series that a node has does not grow with its pods.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test makes its folders, and stops at what it did not expect"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::Request;
use nodewhy_agent::Agent;
use nodewhy_agent::serve::Door;
use nodewhy_agent::settings::Settings;
use nodewhy_clock::Clock;

/// The files of a cgroup, in the shape of Documentation/admin-guide/cgroup-v2.rst.
const FILES: &[(&str, &str)] = &[
    ("cgroup.controllers", "cpuset cpu io memory hugetlb pids\n"),
    ("cgroup.events", "populated 1\nfrozen 0\n"),
    ("cgroup.procs", ""),
    ("cgroup.stat", "nr_descendants 3\nnr_dying_descendants 1\n"),
    (
        "cpu.stat",
        "usage_usec 5000\nuser_usec 3000\nsystem_usec 2000\nnr_periods 7\nnr_throttled 3\nthrottled_usec 900\n",
    ),
    ("cpu.pressure", PRESSURE),
    ("memory.pressure", PRESSURE),
    ("io.pressure", PRESSURE),
    ("memory.current", "52428800\n"),
    ("memory.max", "max\n"),
    ("memory.high", "max\n"),
    ("memory.low", "0\n"),
    ("memory.swap.current", "0\n"),
    ("memory.events", "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n"),
    ("memory.events.local", "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n"),
    (
        "memory.stat",
        "anon 41943040\nfile 8388608\nkernel 2097152\nslab 1048576\nsock 0\nshmem 0\nfile_mapped 0\nfile_dirty 0\n\
         file_writeback 0\ninactive_anon 0\nactive_anon 41943040\ninactive_file 4194304\nactive_file 4194304\n\
         unevictable 0\nworkingset_refault_anon 0\nworkingset_refault_file 12\npgmajfault 3\n",
    ),
    ("pids.current", "9\n"),
    ("pids.max", "max\n"),
    ("pids.events", "max 0\n"),
    ("io.stat", "259:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n"),
];

const PRESSURE: &str = "some avg10=0.00 avg60=0.00 avg300=0.00 total=1200\n\
                        full avg10=0.00 avg60=0.00 avg300=0.00 total=700\n";

fn cgroup(path: &Path) {
    fs::create_dir_all(path).unwrap();
    for (name, text) in FILES {
        fs::write(path.join(name), text).unwrap();
    }
}

/// A node with so many pods, in the three classes, of the systemd driver and containerd.
fn node(pods: usize) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/hosts/linux-6.18");
    copy(&source, root.path());
    let cgroups = root.path().join("sys/fs/cgroup");
    cgroup(&cgroups);
    cgroup(&cgroups.join("system.slice"));
    let kubepods = cgroups.join("kubepods.slice");
    cgroup(&kubepods);
    for index in 0..pods {
        let uid = format!("{index:08x}_1111_2222_3333_444444444444");
        let class = ["", "burstable", "besteffort"][index % 3];
        let (parent, prefix) = match class {
            "" => (kubepods.clone(), "kubepods".to_owned()),
            class => (kubepods.join(format!("kubepods-{class}.slice")), format!("kubepods-{class}")),
        };
        cgroup(&parent);
        let pod = parent.join(format!("{prefix}-pod{uid}.slice"));
        cgroup(&pod);
        cgroup(&pod.join(format!("cri-containerd-{index:064x}.scope")));
        let logs = format!("var/log/pods/shop_web-{index}_{}", uid.replace('_', "-"));
        fs::create_dir_all(root.path().join(logs).join("web")).unwrap();
    }
    root
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir_all(&to).unwrap();
            copy(&from, &to);
        } else {
            fs::copy(&from, &to).unwrap();
        }
    }
}

/// Name and labels of every series, and the state.
fn series(root: &Path) -> (BTreeSet<String>, String) {
    let settings = Settings { host_root: root.to_owned(), ..Settings::default() };
    let agent = Agent::start(&settings, Clock::system()).unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while !agent.board().is_ready() {
        assert!(Instant::now() < end, "the collectors did not read: {:?}", agent.board().accounts());
        std::thread::sleep(Duration::from_millis(50));
    }
    // What needs two readings has them, of the sources that are read each second.
    std::thread::sleep(Duration::from_secs(3));
    let api = agent.api().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ask = |path: &str| {
        let request = Request::get(path).body(String::new()).unwrap();
        let response = runtime.block_on(api.answer(&request, &Door::Socket));
        let body = runtime.block_on(response.into_body().collect()).unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    };
    let text = ask("/metrics");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let series = lines.map(|line| line.rsplit_once(' ').unwrap().0.to_owned());
    // A finding is a series while it holds, and a held-up machine has another one.
    let series = series.filter(|series| !series.starts_with("nodewhy_finding_active")).collect();
    (series, ask("/api/v1/state"))
}

#[test]
fn a_node_with_250_pods_has_the_series_of_one_with_10_and_its_state_stays_small() {
    let (few, many) = (node(10), node(250));
    let ((of_few, _), (of_many, state)) = (series(few.path()), series(many.path()));
    let differ: Vec<_> = of_few.symmetric_difference(&of_many).collect();
    assert!(differ.is_empty(), "{differ:#?}");
    assert!(of_few.len() > 100, "{}", of_few.len());
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    for (name, collector) in state["collectors"].as_object().unwrap() {
        let bytes = collector["reading"].to_string().len();
        assert!(bytes <= 24 * 1024, "{name}: its reading in /api/v1/state has {bytes} bytes with 250 pods");
        // The tree that this test makes is one that they read.
        if name == "cgroups" {
            assert_eq!(collector["outcome"], "read", "{collector}");
        }
    }
}
