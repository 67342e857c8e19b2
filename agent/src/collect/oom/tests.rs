//! The recorded logs of real kernels, whole; then the collector on a pipe and on this machine's own log.
//! What the recordings are stands in fixtures/kmsg/README.md.

use std::io::Write;
use std::path::Path;

use nix::poll::{PollFd, PollFlags, poll};
use nodewhy_clock::{Clock, Stamp};
use nodewhy_proto::{EventBody, KernelMessage, OomKill, OomTask};
use proptest::prelude::*;

use super::*;
use crate::host::Places;

const PAGE: u64 = 4096;

fn at(seconds: f64) -> Now {
    let monotonic = Duration::from_secs_f64(seconds);
    let wall = jiff::Timestamp::from_second(1_800_000_000).unwrap();
    Now { stamp: Stamp { wall, boot: monotonic }, monotonic }
}

macro_rules! fixture {
    ($path:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/kmsg/", $path))
    };
}

mod syslog;

/// Splits a recording into records.
fn records(recording: &str) -> Vec<String> {
    let mut records: Vec<String> = Vec::new();
    for line in recording.lines() {
        match records.last_mut() {
            Some(record) if line.starts_with(' ') => *record += &format!("{line}\n"),
            _ => records.push(format!("{line}\n")),
        }
    }
    records
}

fn follow<'a>(records: impl IntoIterator<Item = &'a str>) -> Log {
    let mut log = Log::new(PAGE, KernelClock::new(true));
    for record in records {
        log.record(record.as_bytes(), at(100_000.0), false);
    }
    log.quiet();
    log.passed(at(100_000.0));
    log
}

fn read_whole(recording: &str) -> Log {
    follow(records(recording).iter().map(String::as_str))
}

fn kills(log: &Log) -> Vec<(u64, OomKill)> {
    let kill = |happened: &Happened| match &happened.body {
        // The figures of memory have a test of their own.
        EventBody::OomKill(kill) => {
            let kill = OomKill { memory_bytes: Default::default(), ..kill.clone() };
            Some((happened.id.seq().unwrap(), kill))
        }
        _ => None,
    };
    log.happened.iter().filter_map(kill).collect()
}

fn messages(log: &Log) -> Vec<KernelMessage> {
    let message = |happened: &Happened| match &happened.body {
        EventBody::KernelMessage(message) => Some(message.clone()),
        _ => None,
    };
    log.happened.iter().filter_map(message).collect()
}

fn task(pid: u32, name: &str, pages: u64, oom_score_adj: i32) -> OomTask {
    OomTask { pid, name: name.into(), rss_bytes: pages * PAGE, oom_score_adj }
}

fn unit_kill(pid: u32, seq: u64, rss_kib: u64, biggest: Vec<OomTask>) -> OomKill {
    OomKill {
        scope: OomScope::Memcg,
        constraint: Some("CONSTRAINT_MEMCG".into()),
        limit_cgroup: Some("/system.slice/eater2.service".into()),
        victim_cgroup: Some("/system.slice/eater2.service".into()),
        pid,
        name: "tail".into(),
        role: Role::Other,
        pod_uid: None,
        container_id: None,
        rss_bytes: Some(rss_kib * 1024),
        oom_score_adj: Some(0),
        trigger: Some("tail".into()),
        group: Vec::new(),
        biggest,
        memory_bytes: Default::default(),
        reaped: None,
        attributed_by: None,
        kmsg_seq: Some(seq),
    }
}

#[test]
fn a_unit_at_its_limit() {
    let log = read_whole(fixture!("linux-6.1.192/oom-memcg-v2.txt"));
    let biggest = vec![task(584, "tail", 12_524, 0), task(547, "sh", 235, 0)];
    assert_eq!(kills(&log), [(558, unit_kill(584, 558, 48_568 + 1528, biggest))]);
    assert_eq!((log.records_total, log.lost_total, log.malformed_total), (56, 0, 0));
    let log = read_whole(fixture!("linux-7.2.13/oom-memcg-v2.txt"));
    let biggest = vec![task(1612, "tail", 12_606, 0), task(1610, "sh", 479, 0)];
    assert_eq!(kills(&log), [(633, unit_kill(1612, 633, 48_744 + 1680, biggest))]);
}

fn newest(log: &Log) -> OomKill {
    log.newest_kills.back().unwrap().kill.clone()
}

#[test]
fn the_kernels_figures_of_memory_are_kept() {
    let kill = newest(&read_whole(fixture!("linux-6.1.192/episode-system-oom.txt")));
    assert_eq!(kill.memory_bytes["inactive_anon"], 350_799 * PAGE);
    assert_eq!(
        (kill.memory_bytes["active_file"], kill.memory_bytes["slab_unreclaimable"]),
        (17 * PAGE, 4596 * PAGE)
    );
    assert!(kill.memory_bytes["free"] > 0 && kill.memory_bytes.len() >= 12, "{:?}", kill.memory_bytes);
    assert_eq!(kill.reaped, None, "nobody said so");
    let kill = newest(&read_whole(fixture!("linux-6.1.192/oom-memcg-v2.txt")));
    let limit = 49_152 * 1024;
    assert_eq!((kill.memory_bytes["memory_usage"], kill.memory_bytes["memory_limit"]), (limit, limit));
    assert_eq!((kill.memory_bytes["swap_usage"], kill.memory_bytes.len()), (0, 4));
}

#[test]
fn a_kernel_of_2019_and_its_reaper() {
    let log = read_whole(fixture!("linux-4.15.0/oom-memcg-v1-pod-limit.txt"));
    let kill = newest(&log);
    assert_eq!(log.newest_kills.len(), 1);
    assert_eq!((kill.scope, kill.pid, kill.name.as_str()), (OomScope::Memcg, 32_308, "stress"));
    assert_eq!(
        kill.limit_cgroup.as_deref(),
        Some("/kubepods/burstable/podbc001ffa-68fc-11e9-92d7-5ef9efd9374c")
    );
    assert_eq!(kill.pod_uid.as_deref(), Some("bc001ffa-68fc-11e9-92d7-5ef9efd9374c"));
    assert_eq!(kill.role, Role::Pod);
    assert_eq!(kill.rss_bytes, Some((99_620 + 192) * 1024));
    assert_eq!(kill.biggest[0], task(32_308, "stress", 24_953, 939));
    assert_eq!(kill.memory_bytes["memory_limit"], 125_952 * 1024);
    assert!(!kill.memory_bytes.contains_key("memory_and_swap_limit"), "it has none");
    assert_eq!((kill.reaped, kill.trigger.as_deref()), (Some(true), Some("stress")));
}

#[test]
fn the_reaper_is_heard_after_the_kill_was_told_and_its_failure_is_told() {
    let recording = fixture!("linux-6.1.192/oom-memcg-v2.txt");
    let mut log = read_whole(recording);
    assert_eq!(newest(&log).reaped, None);
    log.record(b"6,900,9000000000,-;oom_reaper: unable to reap pid:584 (tail)\n", at(100_000.0), true);
    assert_eq!(newest(&log).reaped, Some(false));
    let failed = messages(&log).into_iter().find(|message| message.pattern == "oom_reap_failed").unwrap();
    assert_eq!((failed.fields["pid"].as_str(), failed.fields["name"].as_str()), ("584", "tail"));
    log.record(b"6,901,9000000001,-;oom_reaper: reaped process 584 (tail), now anon-rss:0kB, file-rss:0kB, shmem-rss:0kB\n", at(100_000.0), true);
    assert_eq!(newest(&log).reaped, Some(true));
}

#[test]
fn a_kill_without_its_report_is_attributed_to_where_its_process_was_seen() {
    // The recorded line alone: the kernel writes no more than ten reports in 5 s.
    let recording = fixture!("linux-7.2.13/episode-pod-oom.txt");
    let line = records(recording).into_iter().find(|record| record.contains("Killed process")).unwrap();
    let whole = newest(&read_whole(recording));
    let lost = |cgroups: &[(&str, f64)]| {
        let mut log = Log::new(PAGE, KernelClock::new(true));
        for (cgroup, seen) in cgroups {
            let pid = kills(&follow([line.as_str()]))[0].1.pid;
            log.cgroups.saw(
                pid,
                &kills(&follow([line.as_str()]))[0].1.name,
                cgroup,
                Duration::from_secs_f64(*seen),
            );
        }
        log.record(line.as_bytes(), at(100_000.0), false);
        log.quiet();
        newest(&log)
    };
    let cgroup = whole.victim_cgroup.clone().unwrap();
    assert_eq!(lost(&[]).victim_cgroup, None);
    let known = lost(&[(&cgroup, 0.0)]);
    assert_eq!((known.victim_cgroup.as_ref(), known.role), (Some(&cgroup), Role::Pod));
    assert_eq!((&known.pod_uid, &known.container_id), (&whole.pod_uid, &whole.container_id));
    assert_eq!(
        (known.scope, known.limit_cgroup),
        (OomScope::Unknown, None),
        "whose limit it was is not guessed"
    );
    assert!(known.attributed_by.unwrap().contains("memory.events"));
    // Seen after the kill: another process of the same id.
    assert_eq!(lost(&[(&cgroup, 99_999.0)]).victim_cgroup, None);
}

/// By hand: 5,000 kills a minute, each with its whole report.
#[test]
#[ignore = "a measurement"]
fn what_a_storm_of_kills_costs() {
    let report = records(fixture!("linux-7.2.13/oom-memcg-v2.txt"));
    let mut log = Log::new(PAGE, KernelClock::new(true));
    let cpu =
        || Duration::from(nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
    let (begin, mut seq) = (cpu(), 0u64);
    for kill in 0..5000u64 {
        for record in &report {
            let (head, text) = record.split_once(';').unwrap();
            seq += 1;
            let usec = kill * 12_000 + seq % 50;
            let record = format!("{},{seq},{usec},-;{text}", head.split(',').next().unwrap());
            log.record(record.as_bytes(), at(100.0), true);
        }
        log.quiet();
    }
    let told = log.happened.len();
    println!(
        "{:?} for {seq} records of 5000 kills; {told} events, {} dropped",
        cpu() - begin,
        log.dropped_total()
    );
    let host = Host::new("/", Clock::system(), Places::default());
    let begin = cpu();
    for look in 0..100 {
        log.cgroups.look(&host, Duration::from_secs(10 * look));
    }
    println!("{:?} a look for processes (one in ten seconds)", (cpu() - begin) / 100);
}

#[test]
fn the_journals_kernel_transport_tells_the_same_kill() {
    let root = tempfile::tempdir().unwrap();
    let put = |path: &str, bytes: &[u8]| {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    let host = Host::new(root.path(), Clock::system(), Places::default());
    let machine = "542124179ce14d11b7d36de84b2a8740";
    put(
        &format!("var/log/journal/{machine}/system.journal"),
        &crate::host::journal::file::tests::unpacked("compact-zstd"),
    );
    // The last way: none of the others is there.
    let way = Way::open(&host).unwrap();
    assert_eq!((way.name(), way.has_numbers()), ("journal", false));
    assert!(!way.limits().is_empty() && way.not_used().len() == 3, "{:?}", way.not_used());
    let mut journal = host
        .open_journal(
            0,
            &["MESSAGE", "_TRANSPORT", "PRIORITY", "SYSLOG_FACILITY", "_SOURCE_MONOTONIC_TIMESTAMP"],
        )
        .unwrap();
    let mut log = Log::new(PAGE, KernelClock::new(true));
    for entry in journal.read(&host, 1000).unwrap().entries {
        if entry.get("_TRANSPORT") == Some("kernel") {
            let monotonic = Duration::from_micros(entry.monotonic_usec);
            log.entry(
                &entry,
                Now { stamp: Stamp { wall: jiff::Timestamp::UNIX_EPOCH, boot: monotonic }, monotonic },
            );
        }
    }
    log.quiet();
    let kill = newest(&log);
    assert_eq!((kill.scope, kill.pid, kill.kmsg_seq), (OomScope::Global, 3886, None));
    assert_eq!(kill.trigger.as_deref(), Some("kubelet"));
    // The same line by syslog(2) has the same key.
    let by_syslog = b"<3>[ 3475.751648] Out of memory: Killed process 3886 (tail) total-vm:1341056kB, anon-rss:1338148kB, file-rss:0kB, shmem-rss:0kB, UID:0 pgtables:2664kB oom_score_adj:500";
    let mut other = Log::new(PAGE, KernelClock::new(true));
    other.line(by_syslog, at(5000.0), None);
    other.quiet();
    let key = |log: &Log| log.newest_kills.back().unwrap().id.key();
    assert_eq!(key(&log), key(&other));
}

#[test]
fn a_descriptor_that_is_handed_over_is_as_good_as_the_device() {
    let root = tempfile::tempdir().unwrap();
    let host = Host::new(root.path(), Clock::system(), Places::default());
    let socket = root.path().join("run/nodewhy/kmsg.sock");
    let at = socket.clone();
    let helper = std::thread::spawn(move || crate::host::kmsg_helper::serve(&at));
    while !socket.exists() {
        if helper.is_finished() {
            // Without the right to open it the helper says so; nothing to compare with.
            let error = helper.join().unwrap().unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{error}");
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut handed = open(&host).unwrap();
    let handed = read(&mut handed, &host).unwrap();
    assert_eq!(handed.way, "handed descriptor");
    assert!(handed.limits.is_empty() && handed.other_ways.contains_key("journal"), "{:?}", handed.other_ways);
    let own = Host::new("/", Clock::system(), Places::default());
    let own = read(&mut open(&own).unwrap(), &own).unwrap();
    assert_eq!(handed.first_seq, own.first_seq);
    assert!(handed.records_total > 0 && own.newest_seq >= handed.newest_seq);
}

#[test]
fn the_nodes_memory_is_out() {
    let log = read_whole(fixture!("linux-6.1.192/episode-system-oom.txt"));
    let kill = OomKill {
        scope: OomScope::Global,
        constraint: Some("CONSTRAINT_NONE".into()),
        limit_cgroup: None,
        victim_cgroup: Some("/system.slice/eater.service".into()),
        pid: 3886,
        name: "tail".into(),
        role: Role::Other,
        pod_uid: None,
        container_id: None,
        rss_bytes: Some(1_338_148 * 1024),
        oom_score_adj: Some(500),
        // It was the kubelet that asked, and it was not the kubelet that died.
        trigger: Some("kubelet".into()),
        group: Vec::new(),
        biggest: vec![
            task(3886, "tail", 334_537, 500),
            task(1974, "kubelet", 7461, -999),
            task(2071, "containerd", 5919, -999),
            task(152, "systemd-journal", 793, -250),
            task(205, "sshd", 335, -1000),
        ],
        memory_bytes: Default::default(),
        reaped: None,
        attributed_by: None,
        kmsg_seq: Some(892),
    };
    assert_eq!(kills(&log), [(892, kill)]);
    let log = read_whole(fixture!("linux-7.2.13/episode-system-oom.txt"));
    let (seq, kill) = kills(&log).remove(0);
    assert_eq!(
        (seq, kill.scope, kill.pid, kill.trigger.as_deref()),
        (1207, OomScope::Global, 4761, Some("tail"))
    );
    let biggest: Vec<&str> = kill.biggest.iter().map(|task| task.name.as_str()).collect();
    assert_eq!(biggest, ["tail", "kubelet", "containerd", "containerd-shim", "containerd-shim"]);
    assert_eq!(log.node_kills.unwrap().count, 1);
}

#[test]
fn a_container_that_dies_as_a_group_is_one_kill() {
    let log = read_whole(fixture!("linux-6.1.192/episode-pod-oom.txt"));
    let pod = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod92d194d0_d1ed_470e_a9f6_d720ccdf9fe6.slice";
    let id = "86538b8c4a51ed3bd99720e32a1393a9917666c4dff780cf2dc9532647529ecb";
    let all = kills(&log);
    let of: Vec<_> = all.iter().map(|(seq, kill)| (*seq, kill.pid, kill.group.clone())).collect();
    // A sibling's figures are those of its "Killed process" line: 4 kB.
    let sleep = |pid| vec![OomTask { rss_bytes: 4096, ..task(pid, "sleep", 0, 968) }];
    let want = [(615, 3459, 3474), (683, 3525, 3539), (746, 3588, 3602), (824, 3649, 3662)];
    assert_eq!(of, want.map(|(seq, pid, sibling)| (seq, pid, sleep(sibling))));
    let kill = &all[0].1;
    assert_eq!((kill.scope, kill.role), (OomScope::Memcg, Role::Pod));
    assert_eq!(kill.limit_cgroup.as_deref(), Some(pod));
    assert_eq!(kill.victim_cgroup, Some(format!("{pod}/cri-containerd-{id}.scope")));
    assert_eq!(kill.pod_uid.as_deref(), Some("92d194d0-d1ed-470e-a9f6-d720ccdf9fe6"));
    assert_eq!(kill.container_id.as_deref(), Some(id));
    assert_eq!((kill.rss_bytes, kill.oom_score_adj), (Some((48_208 + 1348) * 1024), Some(968)));
    assert_eq!(log.kills, [KillCount { scope: OomScope::Memcg, role: Role::Pod, count: 4 }]);
    assert_eq!(log.messages, BTreeMap::from([("memory_oom_group", 4)]));

    let log = read_whole(fixture!("linux-7.2.13/episode-pod-oom.txt"));
    let of: Vec<_> = kills(&log).iter().map(|(seq, kill)| (*seq, kill.pid, kill.group[0].pid)).collect();
    assert_eq!(of, [(701, 4404, 4419), (847, 4448, 4466), (982, 4497, 4512), (1122, 4544, 4559)]);
    assert!(kills(&log).iter().all(|(_, kill)| kill.group.len() == 1));
    let biggest: Vec<_> = kills(&log)[0].1.biggest.iter().map(|task| task.pid).collect();
    assert_eq!(biggest, [4404, 4377, 4390, 4419]);
}

#[test]
fn a_group_s_process_that_dies_with_its_pid_namespace_is_named_too() {
    let log = read_whole(fixture!("linux-6.1.192/oom-group-of-a-pid-namespace.txt"));
    let all = kills(&log);
    let [(560, kill)] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!((kill.pid, kill.rss_bytes), (982, Some((23_884 + 1896) * 1024)));
    assert!(kill.limit_cgroup.as_ref().unwrap().ends_with("-podef9fd8f5_de54_8013_a3ac_53f65ee14df9.slice"));
    let sibling = |pid, name, kib: u64| OomTask { rss_bytes: kib * 1024, ..task(pid, name, 0, 968) };
    // 981 has no "Killed process" line: it was the shell's, process 1 of the container, and died with it.
    let exiting = task(981, "hurt", 5322, 968);
    assert_eq!(kill.group, [sibling(957, "sh", 4), sibling(980, "hurt", 21_244 + 1896), exiting]);
}

#[test]
fn limits_of_cgroup_v1_at_the_container_and_at_the_pod() {
    let pod = "/labtest/kubepods/burstable/pod0b9f0f3c-6d9f-4a7b-9c52-3f8a1f7e2d10";
    for (recording, limit, victim, pid, seq) in [
        (fixture!("linux-6.18.44/oom-memcg-v1-container.txt"), "/c1", "/c1", 8903, 417),
        (fixture!("linux-6.18.44/oom-memcg-v1-pod-limit.txt"), "", "/c2", 9325, 495),
    ] {
        let (at, kill) = kills(&read_whole(recording)).remove(0);
        assert_eq!((at, kill.pid, kill.name.as_str(), kill.role), (seq, pid, "python3", Role::Pod));
        assert_eq!(kill.limit_cgroup, Some(format!("{pod}{limit}")));
        assert_eq!(kill.victim_cgroup, Some(format!("{pod}{victim}")));
        assert_eq!(kill.pod_uid.as_deref(), Some("0b9f0f3c-6d9f-4a7b-9c52-3f8a1f7e2d10"));
        assert_eq!(kill.container_id, None, "no runtime made that group");
    }
}

#[test]
fn a_lost_report_leaves_the_scope_unknown() {
    let all = records(fixture!("linux-6.1.192/episode-system-oom.txt"));
    let log = follow(all.iter().filter(|record| record.contains("Killed process")).map(String::as_str));
    let (_, kill) = kills(&log).remove(0);
    assert_eq!((kill.scope, kill.role, kill.constraint), (OomScope::Unknown, Role::Unknown, None));
    assert_eq!((kill.pid, kill.rss_bytes, kill.trigger), (3886, Some(1_338_148 * 1024), None));
    // The group's line alone tells the pod.
    let all = records(fixture!("linux-7.2.13/episode-pod-oom.txt"));
    let group = all.iter().filter(|record| record.contains("Killed process") || record.contains("oom.group"));
    let log = follow(group.take(4).map(String::as_str));
    let (_, kill) = kills(&log).remove(0);
    assert_eq!((kill.scope, kill.role, kill.group.len()), (OomScope::Unknown, Role::Pod, 1));
    assert_eq!(kill.pod_uid.as_deref(), Some("c12ef941-6a22-4f38-8101-61b41df7a6b6"));
    assert_eq!(kill.victim_cgroup, None);
}

#[test]
fn two_groups_without_reports_are_two_kills() {
    // The group lines of the first two kills of the episode, in one second, as a storm writes them.
    let all = records(fixture!("linux-6.1.192/episode-pod-oom.txt"));
    let lines: Vec<String> = all
        .iter()
        .filter(|record| record.contains("Killed process") || record.contains("memory.oom.group"))
        .take(8)
        .enumerate()
        .map(|(at, record)| {
            format!("3,{},{},-;{}", 615 + at, 3_000_000 + at * 1000, record.split_once(';').unwrap().1)
        })
        .collect();
    let of = |log: &Log| -> Vec<_> {
        log.newest_kills.iter().map(|kill| (kill.kill.pid, kill.kill.group.len())).collect()
    };
    assert_eq!(of(&follow(lines.iter().map(String::as_str))), [(3459, 1), (3525, 1)]);
    // Told before its siblings came: still two, and nothing is told twice.
    let mut log = Log::new(PAGE, KernelClock::new(true));
    for line in &lines {
        log.record(line.as_bytes(), at(100.0), true);
        log.quiet();
    }
    assert_eq!(of(&log), [(3459, 1), (3525, 1)]);
    assert_eq!(kills(&log).iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [615, 619]);
}

#[test]
fn other_lines_between_and_reports_across_each_other_confuse_nothing() {
    let one = records(fixture!("linux-6.1.192/episode-system-oom.txt"));
    let other = records(fixture!("linux-6.1.192/oom-memcg-v2.txt"));
    let noise = records(fixture!("linux-6.1.192/boot.txt"));
    // With CONFIG_PRINTK_CALLER each line says whose it is.
    let called = |record: &String, caller: &str| record.replacen(",-;", &format!(",-,caller={caller};"), 1);
    let mut mixed = Vec::new();
    for at in 0..one.len().max(other.len()) {
        mixed.extend(one.get(at).map(|record| called(record, "T1990")));
        mixed.extend(other.get(at).map(|record| called(record, "T584")));
        mixed.extend(noise.get(at).cloned());
    }
    // One stamp for all: the recordings are of different hours.
    let mixed: Vec<String> = mixed.iter().enumerate().map(|(at, record)| renumbered(record, at)).collect();
    let log = follow(mixed.iter().map(String::as_str));
    let got: Vec<_> = kills(&log).into_iter().map(|(_, kill)| OomKill { kmsg_seq: None, ..kill }).collect();
    let alone = |recording: &str| OomKill { kmsg_seq: None, ..kills(&read_whole(recording)).remove(0).1 };
    assert_eq!(
        got,
        [
            alone(fixture!("linux-6.1.192/oom-memcg-v2.txt")),
            alone(fixture!("linux-6.1.192/episode-system-oom.txt"))
        ]
    );
}

fn renumbered(record: &str, at: usize) -> String {
    let mut parts = record.splitn(4, ',');
    let (prio, rest) = (parts.next().unwrap(), parts.nth(2).unwrap());
    format!("{prio},{},{},{rest}", 1 + at, 1_000_000 + at)
}

#[test]
fn what_was_lost_is_counted_exactly_and_no_report_is_joined_across_it() {
    let all = records(fixture!("linux-6.1.192/episode-system-oom.txt"));
    let gap =
        all.iter().enumerate().filter(|(at, _)| !(20..60).contains(at)).map(|(_, record)| record.as_str());
    let log = follow(gap);
    assert_eq!((log.lost_total, log.records_total), (40, all.len() as u64 - 40));
    let (_, kill) = kills(&log).remove(0);
    // The deciding line is there; trigger and table are not sure to be this report's.
    assert_eq!((kill.scope, kill.trigger, kill.biggest.len()), (OomScope::Global, None, 0));
}

#[test]
fn a_report_whose_kill_was_lost_lends_its_cgroup_to_no_other_process_of_that_name() {
    let all = records(fixture!("linux-6.1.192/episode-system-oom.txt"));
    // The kill is overwritten; a second later another "tail" is killed, without a report.
    let other = "3,900,3476751648,-;Out of memory: Killed process 4000 (tail) total-vm:1341056kB, anon-rss:1338148kB, file-rss:0kB, shmem-rss:0kB, UID:0 pgtables:2664kB oom_score_adj:500\n";
    let log = follow(all.iter().take(61).map(String::as_str).chain([other]));
    let (_, kill) = kills(&log).remove(0);
    assert_eq!(
        (kill.pid, kill.scope, kill.victim_cgroup, log.lost_total),
        (4000, OomScope::Unknown, None, 8)
    );
    // Without a loss the same name is enough: the id can be that of another thread.
    let other = other.replace("3,900,", "3,892,");
    let log = follow(all.iter().take(61).map(String::as_str).chain([other.as_str()]));
    assert_eq!(kills(&log)[0].1.scope, OomScope::Global);
}

#[test]
fn a_kernel_before_5_0_names_no_victim_in_its_report() {
    // Records of Linux 4.19 as a public eBPF agent's document shows them; it left the kill's own line out: that is
    // the one of a kernel mailing list report (2016), with this process in it.
    let pod = "/kubepods.slice/kubepods-pod9eb0e64e_6e1a_43e4_b372_2603a3cc2941.slice";
    let id = "663f6287c450aea2f849b82a30d1409059497b5de62846a286e55971d61e2650";
    let log = read_whole(&format!(
        "6,30574067,3816544225424,-;Task in {pod}/docker-{id}.scope killed as a result of limit of {pod}\n\
         6,30574074,3816544225491,-;Tasks state (memory values in pages):\n\
         6,30574075,3816544225492,-;[  pid  ]   uid  tgid total_vm      rss pgtables_bytes swapents oom_score_adj name\n\
         6,30574076,3816544225674,-;[2276312] 65535 2276312      242        1    28672        0          -998 pause\n\
         6,30574077,3816544225685,-;[2292670]     0 2292670   178320     5602   131072        0          -997 main\n\
         3,30574078,3816544225690,-;Killed process 2292670 (main) total-vm:3226820kB, anon-rss:36832kB, file-rss:1640kB, shmem-rss:444kB\n"
    ).replace("30574067", "30574073"));
    let (_, kill) = kills(&log).remove(0);
    assert_eq!((kill.scope, kill.role, kill.constraint), (OomScope::Memcg, Role::Pod, None));
    assert_eq!((kill.limit_cgroup.as_deref(), kill.container_id.as_deref()), (Some(pod), Some(id)));
    assert_eq!(kill.biggest, [task(2_292_670, "main", 5602, -997), task(2_276_312, "pause", 1, -998)]);
}

#[test]
fn what_is_kept_stays_under_a_mebibyte() {
    let mut log = Log::new(PAGE, KernelClock::new(true));
    let text = "x".repeat(8000);
    for seq in 0..5000 {
        log.record(format!("6,{seq},1,-;{text}\n").as_bytes(), at(1.0), true);
    }
    let bytes: usize = log.recent.iter().map(|record| record.text.capacity()).sum();
    assert!(bytes <= 256 * 1024 && log.recent.len() > 100, "{bytes} bytes in {}", log.recent.len());
}

#[test]
fn the_kernels_other_words() {
    let pattern_of = |recording: &str| read_whole(recording).messages;
    for recording in [fixture!("linux-6.1.192/hung-task.txt"), fixture!("linux-7.2.13/hung-task.txt")] {
        let log = read_whole(recording);
        let told: Vec<_> = messages(&log)
            .into_iter()
            .map(|m| (m.pattern, m.fields["task"].clone(), m.fields["seconds"].clone(), m.count))
            .collect();
        let hung = |seconds: &str| ("hung_task".to_owned(), "touch".to_owned(), seconds.to_owned(), 1);
        assert_eq!(told, [hung("15"), hung("30")]);
    }
    for recording in
        [fixture!("linux-6.1.192/conntrack-full.txt"), fixture!("linux-7.2.13/conntrack-full.txt")]
    {
        let log = read_whole(recording);
        let counts: Vec<_> = messages(&log).iter().map(|message| message.count).collect();
        assert_eq!((counts, log.dropped_total()), (vec![1, 9], 0), "the first at once, the rest as one");
    }
    assert_eq!(
        pattern_of(fixture!("linux-6.1.192/io-error.txt")),
        BTreeMap::from([
            ("buffer_io_error", 12),
            ("ext4_error", 1),
            ("fs_remounted_readonly", 1),
            ("io_error", 10),
            ("journal_aborted", 1),
        ])
    );
    let log = read_whole(fixture!("linux-7.2.13/io-medium-error.txt"));
    let error = messages(&log).into_iter().find(|message| message.pattern == "io_error").unwrap();
    assert_eq!(error.fields["error"], "critical medium");
    assert_eq!((error.fields["device"].as_str(), error.fields["sector"].as_str()), ("sda", "4648"));
    assert_eq!((error.fields["operation"].as_str(), error.kmsg_seq), ("READ", Some(782)));
    for recording in
        [fixture!("linux-6.1.192/ext4-remount-ro.txt"), fixture!("linux-7.2.13/ext4-remount-ro.txt")]
    {
        let log = read_whole(recording);
        let told = messages(&log);
        let remounted = told.iter().find(|message| message.pattern == "fs_remounted_readonly").unwrap();
        assert_eq!((remounted.fields["device"].as_str(), remounted.count), ("sda", 1));
        let counted: u64 = told.iter().map(|message| message.count).sum();
        assert_eq!(counted + log.dropped_total(), log.messages.values().sum::<u64>());
    }
}

#[test]
fn a_healthy_boot_and_quiet_episodes_say_nothing() {
    for recording in [
        fixture!("linux-6.1.192/boot.txt"),
        fixture!("linux-7.2.13/boot.txt"),
        fixture!("linux-6.1.192/episode-disk-pressure.txt"),
        fixture!("linux-7.2.13/episode-disk-pressure.txt"),
        fixture!("linux-7.2.13/episode-memory-pressure.txt"),
        fixture!("linux-6.1.192/episode-runtime-down.txt"),
        fixture!("linux-7.2.13/episode-runtime-down.txt"),
    ] {
        let log = read_whole(recording);
        assert_eq!((log.happened.as_slice(), log.malformed_total, log.lost_total), (&[][..], 0, 0));
        assert_eq!(log.records_total, records(recording).len() as u64);
    }
}

#[test]
fn a_program_that_writes_into_the_log_cannot_pose_as_the_kernel() {
    let all = records(fixture!("linux-6.1.192/oom-memcg-v2.txt"));
    // The kernel gives a program's line LOG_USER: prio 3 becomes 11.
    let forged: Vec<String> =
        all.iter().map(|record| format!("1{}", record.replacen(['4', '6'], "3", 1))).collect();
    let log = follow(forged.iter().map(String::as_str));
    assert_eq!((log.happened.as_slice(), log.records_total), (&[][..], 56));
}

#[test]
fn a_storm_of_kills_stays_bounded_and_counted() {
    let mut log = Log::new(PAGE, KernelClock::new(true));
    let line = "Memory cgroup out of memory: Killed process 584 (tail) total-vm:51608kB, anon-rss:48568kB, file-rss:1528kB, shmem-rss:0kB, UID:0 pgtables:140kB oom_score_adj:0";
    for at in 0..50_000u64 {
        let record = format!("3,{at},{},-;{line}\n", 1_000_000 + at * 12_000);
        log.record(record.as_bytes(), self::at(1.0), true);
    }
    log.quiet();
    assert_eq!(log.kills, [KillCount { scope: OomScope::Unknown, role: Role::Unknown, count: 50_000 }]);
    assert_eq!(kills(&log).len() as u64 + log.dropped_total(), 50_000);
    assert!(kills(&log).len() < 1500, "{}", kills(&log).len());
    assert!(log.recent.len() <= 500 && log.newest_kills.len() <= 20);
}

#[test]
fn the_same_ring_read_again_gives_the_same_events() {
    let recording = fixture!("linux-6.1.192/ext4-remount-ro.txt");
    let keys =
        |log: &Log| -> Vec<u64> { log.happened.iter().map(|happened| happened.id.seq().unwrap()).collect() };
    let whole = keys(&read_whole(recording));
    assert_eq!(whole, keys(&read_whole(recording)));
    let mut unique = whole.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), whole.len());
}

fn noticed(log: &mut Log, seconds: f64) -> Noticed {
    let reading = reading(log);
    let mut noticed = Noticed::default();
    detect(Pair { before: None, now: &reading, at: at(seconds).stamp }, &Thresholds::default(), &mut noticed);
    noticed
}

#[test]
fn findings_hold_for_a_minute_after_the_newest_kill() {
    // The recorded global kill, with the kubelet in the victim's place (episode-system-oom.txt of Linux 6.1.192).
    let recording = fixture!("linux-6.1.192/episode-system-oom.txt")
        .replace(
            "task_memcg=/system.slice/eater.service,task=tail",
            "task_memcg=/system.slice/kubelet.service,task=kubelet",
        )
        .replace("Killed process 3886 (tail)", "Killed process 3886 (kubelet)");
    let mut log = read_whole(&recording);
    let told = noticed(&mut log, 3475.8);
    assert_eq!(told.happenings.len(), 1);
    assert_eq!(told.happenings[0].key.as_deref(), Some("kmsg/892"));
    let names: Vec<_> = told.states.iter().map(|state| (state.finding, state.subject.clone())).collect();
    let kubelet = Subject::new(SubjectKind::Kubelet, "kubelet");
    assert_eq!(names, [("system_process_oom_killed", kubelet), ("node_out_of_memory", Subject::node())]);
    let state = &told.states[0];
    assert_eq!(
        (state.severity, state.hold, state.clear_after),
        (Severity::Critical, Duration::ZERO, Duration::ZERO)
    );
    assert_eq!(state.since, told.happenings[0].at.map(|at| at.wall));
    assert_eq!(state.evidence[0].source, "/dev/kmsg 892");
    assert!(state.evidence[1].text.starts_with("the biggest process then was tail[3886] with 1306.8 MiB"));
    // Told once; the findings go on for a minute.
    let later = noticed(&mut log, 3535.7);
    assert_eq!((later.happenings.len(), later.states.len()), (0, 2));
    assert!(noticed(&mut log, 3535.8).states.is_empty());
}

#[test]
fn a_pods_kill_is_no_finding() {
    let mut log = read_whole(fixture!("linux-7.2.13/episode-pod-oom.txt"));
    let told = noticed(&mut log, 4043.0);
    assert_eq!((told.states.len(), told.happenings.len()), (0, 8));
}

#[test]
fn metrics_name_only_what_was_seen() {
    let mut log = read_whole(fixture!("linux-6.1.192/episode-pod-oom.txt"));
    let mut sink = Sink::default();
    metrics(&reading(&mut log), &mut sink);
    let text = sink.encode();
    assert!(text.contains("\nnodewhy_oom_kills_total{scope=\"memcg\",role=\"pod\"} 4\n"), "{text}");
    assert!(text.contains("\nnodewhy_kernel_messages_total{pattern=\"memory_oom_group\"} 4\n"), "{text}");
    assert!(text.contains("\nnodewhy_kmsg_lost_total 0\n") && !text.contains("global"), "{text}");
}

#[test]
fn the_readings_json() {
    let mut log = read_whole(fixture!("linux-6.1.192/episode-system-oom.txt"));
    let json = serde_json::to_value(reading(&mut log)).unwrap();
    assert_eq!((json["way"].as_str(), json["newest_seq"].as_u64()), (Some("/dev/kmsg"), Some(892)));
    assert_eq!(json["recent"].as_array().unwrap().len(), 62);
    assert_eq!(json["recent"][0]["level"], "warn");
    assert_eq!(json["newest_kills"][0]["name"], "tail");
    assert_eq!(json["node_kills"]["count"], 1);
    assert_eq!(json["kills"][0], serde_json::json!({"scope": "global", "role": "other", "count": 1}));
    assert!(json.get("happened").is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_recording_with_a_broken_byte_never_panics(which in 0usize..4, at in 0usize..40_000, flip: u8) {
        let recording = [
            fixture!("linux-6.1.192/episode-pod-oom.txt"),
            fixture!("linux-7.2.13/episode-system-oom.txt"),
            fixture!("linux-6.1.192/ext4-remount-ro.txt"),
            fixture!("linux-6.18.44/oom-memcg-v1-container.txt"),
        ][which];
        let mut broken = recording.as_bytes().to_vec();
        let at = at % broken.len();
        broken[at] ^= flip;
        let mut log = Log::new(PAGE, KernelClock::new(true));
        let mut lines = 0;
        for line in broken.split_inclusive(|byte| *byte == b'\n') {
            log.record(line, self::at(10_000.0), true);
            lines += 1;
        }
        log.quiet();
        prop_assert_eq!(log.records_total + log.malformed_total, lines);
        for (_, kill) in kills(&log) {
            prop_assert!(kill.pid != 0 && kill.rss_bytes != Some(0));
        }
    }

    #[test]
    fn records_in_any_order_with_any_missing_stay_bounded(order in proptest::collection::vec(0usize..400, 0..600)) {
        let all = records(fixture!("linux-6.1.192/episode-pod-oom.txt"));
        let mut log = Log::new(PAGE, KernelClock::new(true));
        for at in order {
            log.record(all[at % all.len()].as_bytes(), self::at(10_000.0), true);
        }
        log.quiet();
        // A kill for each "Killed process" line at the most.
        let killed: u64 = log.kills.iter().map(|count| count.count).sum();
        prop_assert!(killed <= log.records_total && log.happened.len() <= 700);
    }
}

fn host(root: &Path, clock: Clock) -> Host {
    Host::new(root, clock, Places::default())
}

#[test]
fn a_pipe_in_place_of_the_log_wakes_and_a_group_that_comes_a_moment_later_is_the_same_kill() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("dev")).unwrap();
    let path = root.path().join("dev/kmsg");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let host = host(root.path(), Clock::system());
    let mut source = open(&host).unwrap();
    assert_eq!(read(&mut source, &host).unwrap().records_total, 0);
    assert!(wake(&source).is_some());

    let all = records(fixture!("linux-7.2.13/episode-pod-oom.txt"));
    let split = all.iter().position(|record| record.contains(",702,")).unwrap();
    let mut pipe = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    pipe.write_all(all[..split].concat().as_bytes()).unwrap();
    let rest = all[split..split + 3].concat();
    let writer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(8));
        pipe.write_all(rest.as_bytes()).unwrap();
        pipe
    });
    let before = Clock::system().stamp();
    let reading = read(&mut source, &host).unwrap();
    let pipe = writer.join().unwrap();
    assert_eq!((reading.way, reading.behind), ("recording", false));
    let told: Vec<_> = reading.happened.iter().filter(|happened| happened.id == Id::Seq(701)).collect();
    assert_eq!(told.len(), 1);
    let EventBody::OomKill(kill) = &told[0].body else { panic!() };
    assert_eq!((kill.pid, kill.group.len()), (4404, 1));
    assert!(told[0].at.boot >= before.boot && told[0].at.boot - before.boot < Duration::from_secs(2));
    drop(pipe);
    assert!(read(&mut source, &host).unwrap().happened.is_empty());
}

#[test]
fn a_log_that_is_not_there_is_absent() {
    let root = tempfile::tempdir().unwrap();
    let error = open(&host(root.path(), Clock::system())).unwrap_err();
    assert!(matches!(error, ReadError::Absent { .. }));
}

/// Needs the right to read and write /dev/kmsg; without it, says so.
#[test]
fn this_machines_own_log() {
    let host = host(Path::new("/"), Clock::system());
    let mut source = match open(&host) {
        Ok(source) => source,
        Err(error) => {
            eprintln!("SKIPPED, this machine's kernel log cannot be read: {error}");
            return;
        }
    };
    let began = kmsg::monotonic();
    let first = read(&mut source, &host).unwrap();
    eprintln!("read {} records in {:?}", first.records_total, kmsg::monotonic() - began);
    assert_eq!((first.malformed_total, first.way), (0, "/dev/kmsg"));
    let mark = format!("nodewhy-test {}", std::process::id());
    let written = match std::fs::OpenOptions::new().write(true).open(KMSG) {
        Ok(mut log) => {
            let written = kmsg::monotonic();
            // Without its line end the kernel keeps a record open, and unreadable, until the next one.
            log.write_all(format!("<6>{mark}\n").as_bytes()).unwrap();
            written
        }
        Err(error) => {
            eprintln!("SKIPPED, this machine's kernel log cannot be written: {error}");
            return;
        }
    };
    let mut waited = [PollFd::new(wake(&source).unwrap(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut waited, 5000u16), Ok(1), "the log did not wake its reader");
    let second = read(&mut source, &host).unwrap();
    eprintln!("{:?} from the write to the reading", (kmsg::monotonic() - written));
    assert!((kmsg::monotonic() - written) < Duration::from_secs(1));
    let line = second.recent.iter().find(|record| record.0.text == mark).unwrap();
    assert_eq!((line.0.level, line.0.facility), ("info", 1));
    assert!(line.0.at.duration_since(host.clock().now()).abs() < jiff::SignedDuration::from_secs(2));
    // A program's line is kept and never told.
    assert!(second.happened.iter().all(|happened| happened.id.seq() != line.0.seq));
    assert!(second.newest_seq >= first.newest_seq && second.lost_total == Some(0));
}
