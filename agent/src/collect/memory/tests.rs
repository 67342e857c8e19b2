use std::fs;
use std::path::Path;

use nodewhy_clock::Clock;
use nodewhy_proto::{Origin, Outcome};
use serde_json::Value;

use super::*;
use crate::collector::Collect;
use crate::host::Places;
use crate::thresholds::Limit;

// Recorded on Linux 6.18.44, with cgroup v1.
const MEMINFO: &str = include_str!("../../../fixtures/memory/linux-6.18.44-meminfo.txt");
const VMSTAT_TEXT: &str = include_str!("../../../fixtures/memory/linux-6.18.44-vmstat.txt");
const V1_STAT: &str = include_str!("../../../fixtures/memory/linux-6.18.44-cgroup-v1-memory.stat.txt");
const V1_USAGE: &str =
    include_str!("../../../fixtures/memory/linux-6.18.44-cgroup-v1-memory.usage_in_bytes.txt");

/// Of kubelet 1.32.6 (Linux 6.1.192, Debian 12) and 1.36.2 (Linux 7.2.13, Debian sid): the node's memory as
/// /stats/summary tells it, cAdvisor's metrics of the root cgroup at that moment, and MemTotal in KiB.
const KUBELETS: [(&str, &str, u64); 2] = [
    (
        include_str!("../../../fixtures/memory/kubelet-1.32.6-stats-summary-node.json"),
        include_str!("../../../fixtures/memory/kubelet-1.32.6-metrics-cadvisor-root.txt"),
        1_509_904,
    ),
    (
        include_str!("../../../fixtures/memory/kubelet-1.36.2-stats-summary-node.json"),
        include_str!("../../../fixtures/memory/kubelet-1.36.2-metrics-cadvisor-root.txt"),
        1_500_756,
    ),
];

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn node() -> (tempfile::TempDir, Host) {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "proc/meminfo", MEMINFO);
    write(root.path(), "proc/vmstat", VMSTAT_TEXT);
    let host = Host::new(root.path(), Clock::system(), Places::default());
    (root, host)
}

fn once(host: &Host) -> Reading {
    read(&mut open(host).unwrap(), host).unwrap()
}

fn found(reading: &Reading, thresholds: &Thresholds) -> Vec<Abnormal> {
    let mut noticed = Noticed::default();
    let at = Clock::system().stamp();
    detect(Pair { before: None, now: reading, at }, thresholds, &mut noticed);
    noticed.states
}

/// cAdvisor publishes what it read of the root's memory.stat: `anon` as rss, `file` as cache, `inactive_file`.
fn cadvisor(metrics: &str, name: &str) -> u64 {
    let line = metrics.lines().find(|line| line.split('{').next() == Some(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() as u64
}

#[test]
fn the_recorded_kubelets_reckon_as_we_do_on_cgroup_v2() {
    for (summary, metrics, total_kib) in KUBELETS {
        let (root, host) = node();
        // MemFree as a recorded node's (Linux 6.1.192) had it another time.
        let free = MEMINFO.lines().find(|line| line.starts_with("MemFree")).unwrap();
        let meminfo = MEMINFO
            .replace("24684092 kB", &format!("{total_kib} kB"))
            .replace(free, "MemFree:         1133092 kB");
        write(root.path(), "proc/meminfo", &meminfo);
        write(root.path(), "sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n");
        // The three lines of the root's memory.stat, from what the kubelet published of it.
        let stat = format!(
            "anon {}\nfile {}\ninactive_file {}\n",
            cadvisor(metrics, "container_memory_rss"),
            cadvisor(metrics, "container_memory_cache"),
            cadvisor(metrics, "container_memory_total_inactive_file_bytes"),
        );
        write(root.path(), "sys/fs/cgroup/memory.stat", &stat);
        let summary: Value = serde_json::from_str(summary).unwrap();
        let reading = once(&host);
        assert_eq!(reading.kubelet_available_bytes, summary["node"]["memory"]["availableBytes"].as_u64());
        assert_eq!(reading.kubelet_available_missing, None);
        // An older kubelet counts all that is not free, but for the page cache that is not used.
        let inactive_file = cadvisor(metrics, "container_memory_total_inactive_file_bytes");
        let older = reading.meminfo.free_bytes + inactive_file;
        assert_eq!(reading.kubelet_available_older_bytes, Some(older));
        let json = serde_json::to_value(&reading).unwrap();
        assert_eq!(json["total_bytes"], total_kib * 1024);
        assert_eq!(json["swap_total_bytes"], 0);
    }
}

#[test]
fn cgroup_v1_is_reckoned_by_its_own_files() {
    let (root, host) = node();
    write(root.path(), "sys/fs/cgroup/memory/memory.stat", V1_STAT);
    write(root.path(), "sys/fs/cgroup/memory/memory.usage_in_bytes", V1_USAGE);
    write(root.path(), "sys/fs/cgroup/memory/release_agent", "\n");
    let inactive = V1_STAT.lines().find_map(|line| line.strip_prefix("total_inactive_file ")).unwrap();
    let working_set = V1_USAGE.trim().parse::<u64>().unwrap() - inactive.parse::<u64>().unwrap();
    assert_eq!(once(&host).kubelet_available_bytes, Some(24_684_092 * 1024 - working_set));
}

#[test]
fn where_it_cannot_be_reckoned_it_is_none_with_the_reason_and_no_finding() {
    let strict = Thresholds {
        memory_available_bytes: Some(Limit { value: f64::MAX, origin: Origin::KubeletConfig }),
        ..Thresholds::default()
    };
    let missing = |files: &[(&str, &str)]| {
        let (root, host) = node();
        for (path, text) in files {
            write(root.path(), &format!("sys/fs/cgroup/{path}"), text);
        }
        let reading = once(&host);
        assert_eq!(reading.kubelet_available_bytes, None);
        assert!(found(&reading, &strict).is_empty());
        let mut sink = Sink::default();
        metrics(&reading, &mut sink);
        assert!(!sink.encode().contains("kubelet_available"));
        reading.kubelet_available_missing.unwrap()
    };
    assert!(missing(&[]).contains("no memory controller"));
    let v2 = ("cgroup.controllers", "memory\n");
    assert!(missing(&[v2]).contains("memory.stat"));
    assert!(missing(&[v2, ("cgroup.type", "domain\n")]).contains("container's own cgroup"));
    assert!(missing(&[v2, ("memory.stat", "anon 1\nfile 2\n")]).contains("inactive_file"));
    assert!(missing(&[v2, ("memory.stat", "anon 1\nfile 2\ninactive_file 3")]).contains("cut"));
    assert!(missing(&[v2, ("memory.stat", "garbage\n")]).contains("memory.stat"));
    assert!(missing(&[("memory/memory.usage_in_bytes", "1\n")]).contains("container's own cgroup"));
    let v1 = ("memory/release_agent", "\n");
    assert!(missing(&[v1, ("memory/memory.usage_in_bytes", "-1\n")]).contains("no number"));
}

#[test]
fn low_is_below_the_threshold_and_says_whose_it_is() {
    let (_root, host) = node();
    let mut reading = once(&host);
    reading.kubelet_available_bytes = Some(100 * 1024 * 1024);
    reading.kubelet_available_from = Some("cgroup");
    assert!(found(&reading, &Thresholds::default()).is_empty(), "100 MiB is not below 100 MiB");
    reading.kubelet_available_bytes = Some(86_083_174);
    let states = found(&reading, &Thresholds::default());
    assert_eq!(states.len(), 1);
    assert_eq!((states[0].finding, states[0].hold), ("memory_available_low", Duration::ZERO));
    assert_eq!(states[0].evidence[0].text, "memory.available 82.1 MiB, below 100.0 MiB");
    assert_eq!(states[0].evidence[0].threshold.as_ref().unwrap().origin, Origin::DocumentedDefault);
    let off = Thresholds { memory_available_bytes: None, ..Thresholds::default() };
    assert!(found(&reading, &off).is_empty(), "eviction on memory is switched off");
}

#[test]
fn a_counter_that_the_kernel_lacks_is_in_no_metric() {
    let (root, host) = node();
    let old: String =
        VMSTAT_TEXT.split_inclusive('\n').filter(|line| !line.starts_with("oom_kill")).collect();
    write(root.path(), "proc/vmstat", &old);
    let mut sink = Sink::default();
    metrics(&once(&host), &mut sink);
    let text = sink.encode();
    assert!(!text.contains("oom_kill"), "{text}");
    assert!(text.contains("\nnodewhy_vmstat_pgmajfault_total "), "{text}");
    assert!(text.contains("\nnodewhy_memory_total_bytes 25276510208\n"), "{text}");
}

#[test]
fn the_distance_to_the_kubelets_threshold_is_a_metric_where_both_are_known() {
    let (_root, host) = node();
    let text = |reading: &Reading| {
        let mut sink = Sink::default();
        metrics(reading, &mut sink);
        sink.encode()
    };
    let mut reading = once(&host);
    assert_eq!(reading.eviction_bytes, None);
    assert!(!text(&reading).contains("eviction"));
    host.learn_thresholds(Thresholds::default());
    reading = once(&host);
    assert_eq!(reading.eviction_bytes, Some(104_857_600.0));
    assert!(text(&reading).contains("\nnodewhy_memory_eviction_threshold_bytes 104857600\n"));
    assert!(!text(&reading).contains("distance"), "memory.available is not known here");
    reading.kubelet_available_bytes = Some(86_083_174);
    assert!(
        text(&reading).contains("\nnodewhy_memory_eviction_distance_bytes -18774426\n"),
        "{}",
        text(&reading)
    );
}

#[test]
fn garbage_and_nothing_are_failures_that_name_the_file() {
    let (root, host) = node();
    write(root.path(), "proc/meminfo", "garbage");
    let step = COLLECTOR.start().step(&host, &Thresholds::default());
    assert!(matches!(&step.outcome, Outcome::Failed { error } if error.contains("/proc/meminfo")));
    let (root, host) = node();
    write(root.path(), "proc/vmstat", "\u{0}\n");
    let step = COLLECTOR.start().step(&host, &Thresholds::default());
    assert!(matches!(&step.outcome, Outcome::Failed { error } if error.contains("/proc/vmstat")));
    let empty = tempfile::tempdir().unwrap();
    let host = Host::new(empty.path(), Clock::system(), Places::default());
    let step = COLLECTOR.start().step(&host, &Thresholds::default());
    assert!(matches!(&step.outcome, Outcome::Failed { error } if error.contains("does not exist")));
}

#[test]
fn this_machine_is_read() {
    let host = Host::new("/", Clock::system(), Places::default());
    let reading = once(&host);
    assert!(reading.meminfo.free_bytes <= reading.meminfo.total_bytes);
    assert!(reading.kubelet_available_bytes.is_some() != reading.kubelet_available_missing.is_some());
}
