use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::Path;

use nodewhy_clock::Clock;
use nodewhy_proto::{EventBody, LogLine};

use super::*;
use crate::host::Places;

/// The episodes, by kubelet's version: fixtures/logs/README.md.
macro_rules! episodes {
    ($($name:literal),*) => {
        [$(
            ($name, include_bytes!(concat!("../../../fixtures/logs/kubelet-1.32.6/", $name, ".gz")).as_slice(),
             include_bytes!(concat!("../../../fixtures/logs/kubelet-1.36.2/", $name, ".gz")).as_slice())
        ),*]
    };
}

fn recorded(packed: &[u8]) -> String {
    let mut text = String::new();
    flate2::read::GzDecoder::new(packed).read_to_string(&mut text).unwrap();
    text
}

/// The lines of an episode, each with its programs.
fn lines(text: &str) -> impl Iterator<Item = (Programs, &str)> {
    text.lines().map(|line| {
        let (source, line) = line.split_once('\t').unwrap();
        match source {
            "kubelet" => (Programs::KUBELET, line),
            "containerd" => (Programs::RUNTIME, line),
            // `2026-11-21T08:31:47.236732+0000 lab-node1 systemd[1]: text`.
            _ => (Programs::SYSTEMD, line.split_once("systemd[1]: ").unwrap().1),
        }
    })
}

/// What an episode tells, through the same way as the collector's.
fn told(text: &str) -> Vec<LogLine> {
    let mut events = Events::default();
    let boot = Duration::from_secs(1000);
    for (number, (programs, text)) in lines(text).enumerate() {
        let taken = Stamp {
            wall: "2026-11-21T08:00:00Z".parse().unwrap(),
            boot: boot + Duration::from_millis(number as u64),
        };
        let unit = if programs == Programs::SYSTEMD { "systemd" } else { "kubelet.service" };
        let raw = Raw { key: number.to_string(), unit, of_unit: None, programs, text, taken, by: "journal" };
        events.line(&raw, Duration::ZERO);
    }
    events.passed(Duration::from_secs(100_000));
    assert_eq!(events.dropped_total(), 0);
    let lines = |happening: Happening| match happening.body {
        EventBody::LogLine(line) => line,
        other => panic!("{other:?}"),
    };
    events.happened.into_iter().map(lines).collect()
}

#[test]
fn each_episode_gives_what_its_fault_says() {
    // The deciding ones of each fault; further ones may come with it.
    let expected: &[(&str, &[&str])] = &[
        ("kubelet-killed", &["unit_signal_sent", "unit_process_exited", "unit_failed", "unit_started"]),
        ("kubelet-stopped", &["unit_stopping", "unit_stopped", "unit_started"]),
        (
            "runtime-down",
            &["unit_stopping", "unit_stopped", "unit_started", "runtime_down", "runtime_unavailable"],
        ),
        (
            "pleg",
            &[
                "unit_signal_sent",
                "pleg_not_healthy",
                "runtime_call_deadline",
                "housekeeping_slow",
                "runtime_down",
            ],
        ),
        ("cni-uninitialized", &["network_not_ready", "cni_load_failed", "unit_stopped"]),
        ("memory-pressure", &["eviction_reclaiming", "eviction_threshold_met"]),
        ("disk-pressure", &["eviction_reclaiming", "eviction_threshold_met", "shim_disconnected"]),
        ("pod-oom", &["pod_sync_failed", "shim_disconnected"]),
        ("system-oom", &["unit_failed", "unit_process_exited", "housekeeping_slow"]),
        ("boot", &["node_not_found"]),
    ];
    let packed = episodes!(
        "kubelet-killed",
        "kubelet-stopped",
        "runtime-down",
        "pleg",
        "cni-uninitialized",
        "memory-pressure",
        "disk-pressure",
        "pod-oom",
        "system-oom",
        "boot"
    );
    for (name, old, new) in packed {
        let expected = expected.iter().find(|(episode, _)| *episode == name).unwrap().1;
        for packed in [old, new] {
            let told = told(&recorded(packed));
            let patterns: BTreeSet<&str> = told.iter().map(|line| line.pattern.as_str()).collect();
            if name == "kubelet-stopped" || name == "boot" {
                // Both versions' kubelets are well otherwise.
                let faults = ["pleg_not_healthy", "runtime_down", "unit_failed", "network_not_ready"];
                assert!(faults.iter().all(|fault| !patterns.contains(fault)), "{name}: {patterns:?}");
            }
            let version_has =
                |pattern: &&&str| name != "boot" || told.iter().any(|line| line.pattern == **pattern);
            for pattern in expected.iter().filter(version_has) {
                assert!(patterns.contains(pattern), "{name}: no {pattern} in {patterns:?}");
            }
        }
    }
}

#[test]
fn the_fields_of_deciding_lines() {
    let [(_, pleg, _), (_, killed, _)] = episodes!("pleg", "kubelet-killed");
    let told_of = |packed, pattern: &str| {
        told(&recorded(packed)).into_iter().find(|line| line.pattern == pattern).unwrap()
    };
    let stopped = told_of(pleg, "unit_signal_sent");
    assert_eq!(
        (stopped.fields["unit"].as_str(), stopped.fields["signal"].as_str()),
        ("containerd.service", "SIGSTOP")
    );
    let unhealthy = told_of(pleg, "pleg_not_healthy");
    let seconds: f64 = unhealthy.fields["seconds"].parse().unwrap();
    assert!(seconds > 180.0 && unhealthy.fields["threshold_seconds"] == "180.000", "{unhealthy:?}");
    let exited = told_of(killed, "unit_process_exited");
    assert_eq!((exited.fields["code"].as_str(), exited.fields["status"].as_str()), ("killed", "9/KILL"));
    assert!(told(&recorded(pleg)).iter().all(|line| line.line.len() <= 404));
}

#[test]
fn of_units_that_nobody_reads_only_failures_are_told() {
    let [(_, runtime, _), (_, oom, _)] = episodes!("runtime-down", "system-oom");
    let units = |packed, pattern: &str| -> BTreeSet<String> {
        let told = told(&recorded(packed)).into_iter().filter(|line| line.pattern == pattern);
        told.map(|line| line.fields["unit"].clone()).collect()
    };
    assert_eq!(units(runtime, "unit_started"), BTreeSet::from(["containerd.service".to_owned()]));
    assert_eq!(units(oom, "unit_failed"), BTreeSet::from(["eater.service".to_owned()]));
    assert!(units(oom, "unit_started").is_empty());
}

#[test]
fn a_storm_is_counted() {
    let mut events = Events::default();
    let text = r#"E1121 08:06:31.0 734 kubelet.go:2421] "Skipping pod synchronization" err="container runtime is down""#;
    for second in 0..3600u64 {
        let taken = Stamp { wall: Timestamp::UNIX_EPOCH, boot: Duration::from_secs(second) };
        let key = second.to_string();
        let raw =
            Raw { key, unit: "u", of_unit: None, programs: Programs::KUBELET, text, taken, by: "journal" };
        events.line(&raw, Duration::ZERO);
    }
    events.passed(Duration::from_secs(4000));
    assert_eq!(events.patterns["runtime_down"], 3600);
    let counts: u64 = events
        .happened
        .iter()
        .map(|happening| match &happening.body {
            EventBody::LogLine(line) => line.count,
            _ => 0,
        })
        .sum();
    assert_eq!(counts + events.dropped_total(), 3600);
    assert!(events.happened.len() <= 2 * 360 && events.newest.len() == 20);
    let keys: BTreeSet<_> = events.happened.iter().map(|happening| happening.key.clone()).collect();
    assert_eq!(keys.len(), events.happened.len());
}

#[test]
fn no_event_tells_a_token() {
    let mut events = Events::default();
    let text = r#"E1121 08:06:31.0 734 kubelet.go:1] "Error syncing pod, skipping" err="401 for Bearer eyJhbGciOi.x.y" pod="a/b""#;
    let taken = Stamp { wall: Timestamp::UNIX_EPOCH, boot: Duration::from_secs(1) };
    let programs = Programs::KUBELET;
    let raw = Raw { key: "k".to_owned(), unit: "u", of_unit: None, programs, text, taken, by: "journal" };
    events.line(&raw, Duration::ZERO);
    let told = serde_json::to_string(&events.newest).unwrap();
    assert!(told.contains("401 for Bearer …") && !told.contains("eyJ"), "{told}");
}

fn put(root: &Path, path: &str, bytes: &[u8]) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn host(root: &Path) -> Host {
    Host::new(root, Clock::system(), Places::default())
}

fn log_lines(reading: &Reading) -> Vec<(&LogLine, &Happening)> {
    let lines = reading.happened.iter().map(|happening| match &happening.body {
        EventBody::LogLine(line) => (line, happening),
        other => panic!("{other:?}"),
    });
    lines.collect()
}

#[test]
fn a_node_without_any_log_is_absent_with_the_reason() {
    let root = tempfile::tempdir().unwrap();
    let host = host(root.path());
    let mut source = open(&host).unwrap();
    let error = read(&mut source, &host).unwrap_err();
    assert!(matches!(error, ReadError::Absent { .. }), "{error}");
    assert!(error.to_string().contains("/var/log/journal"), "{error}");
}

#[test]
fn files_alone_are_read_and_the_missing_journal_is_named() {
    let root = tempfile::tempdir().unwrap();
    let host = host(root.path());
    let log = "var/log/pods/kube-system_kube-proxy-x_1/kube-proxy/0.log";
    let text = "Failed to execute iptables-restore: failed to acquire new iptables lock: timed out waiting for the condition";
    let now = host.clock().now();
    let old = now.checked_sub(SignedDuration::from_secs(60)).unwrap();
    put(root.path(), log, format!("{old} stderr F {text}\n").as_bytes());
    let mut source = open(&host).unwrap();
    let first = read(&mut source, &host).unwrap();
    assert!(first.journal_error.as_ref().unwrap().contains("no journal"), "{first:?}");
    assert_eq!((first.journal_waiting, first.journal_rotations_total), (None, None));
    let told = log_lines(&first);
    assert_eq!(told.len(), 1);
    let (line, happening) = told[0];
    assert_eq!(
        (line.pattern.as_str(), line.unit.as_str()),
        ("xtables_lock_timeout", "kube-system/kube-proxy-x/kube-proxy")
    );
    assert_eq!((line.fields["time_by"].as_str(), line.fields["before_start"].as_str()), ("runtime", "true"));
    assert_eq!(happening.at.unwrap().wall, old);
    // Another reader finds the same key.
    let mut other = open(&host).unwrap();
    assert_eq!(log_lines(&read(&mut other, &host).unwrap())[0].1.key, happening.key);
    // New lines come once, and are not old.
    let mut file = std::fs::OpenOptions::new().append(true).open(root.path().join(log)).unwrap();
    let held = "exit status 4 (Another app is currently holding the xtables lock. Perhaps you want to use the -w option?";
    writeln!(file, "{} stderr F {held}", host.clock().now()).unwrap();
    let second = read(&mut source, &host).unwrap();
    let told = log_lines(&second);
    assert_eq!(told.len(), 1);
    assert!(!told[0].0.fields.contains_key("before_start"));
    assert_eq!(second.patterns["xtables_lock_held"], 1);
}

#[test]
fn the_journals_entries_of_this_boot_are_told_with_the_best_time_there_is() {
    let root = tempfile::tempdir().unwrap();
    let host = host(root.path());
    let machine = "542124179ce14d11b7d36de84b2a8740";
    put(
        root.path(),
        &format!("var/log/journal/{machine}/system.journal"),
        &crate::host::journal::file::tests::unpacked("compact-zstd"),
    );
    put(root.path(), "proc/sys/kernel/random/boot_id", b"0f47e3a5-f320-4fae-b952-6a15905f1e79\n");
    let mut source = open(&host).unwrap();
    // Recorded long ago: all of it is asked for.
    source.journal = host.open_journal(0, FIELDS).map_err(|error| error.to_string());
    read_journal(&mut source, &host);
    let reading = reading(&mut source);
    assert_eq!(reading.journal_lines_total, 51);
    let told = log_lines(&reading);
    let patterns: Vec<&str> = told.iter().map(|(line, _)| line.pattern.as_str()).collect();
    assert_eq!(patterns, ["unit_oom_killed", "unit_process_exited", "unit_failed"]);
    let (line, happening) = told[0];
    assert_eq!((line.unit.as_str(), line.fields["unit"].as_str()), ("systemd", "eater.service"));
    assert_eq!(line.fields["time_by"], "sender");
    // 0.4 ms before journald took it.
    assert_eq!(happening.at.unwrap().wall, "2026-11-21T08:43:31.874557Z".parse().unwrap());
    assert!(happening.key.as_ref().unwrap().starts_with("journal/3476066021-"));
    // Of another boot nothing is told.
    put(root.path(), "proc/sys/kernel/random/boot_id", b"11111111-f320-4fae-b952-6a15905f1e79\n");
    let mut source = open(&host).unwrap();
    source.journal = host.open_journal(0, FIELDS).map_err(|error| error.to_string());
    read_journal(&mut source, &host);
    assert!(super::reading(&mut source).happened.is_empty());
}

#[test]
fn metrics_name_only_what_was_seen() {
    let root = tempfile::tempdir().unwrap();
    let host = host(root.path());
    put(root.path(), "var/log/aws-routed-eni/ipamd.log", b"");
    let mut source = open(&host).unwrap();
    let reading = read(&mut source, &host).unwrap();
    let mut sink = Sink::default();
    metrics(&reading, &mut sink);
    let text = sink.encode();
    assert!(text.contains("nodewhy_log_lines_total{from=\"files\"} 0"), "{text}");
    for absent in
        ["nodewhy_log_events_total{", "journal_waiting_entries ", "journal_late_seconds ", "from=\"journal\""]
    {
        assert!(!text.contains(absent), "{absent}: {text}");
    }
    assert!(summary(&reading).contains("1 files"), "{}", summary(&reading));
}

/// By hand: what an idle tick costs, on this machine's own journal or the fixture's.
#[test]
#[ignore = "a measurement"]
fn what_an_idle_tick_costs() {
    let root = tempfile::tempdir().unwrap();
    let host = host(root.path());
    put(
        root.path(),
        "var/log/journal/542124179ce14d11b7d36de84b2a8740/system.journal",
        &crate::host::journal::file::tests::unpacked("compact-zstd"),
    );
    for pod in 0..5 {
        put(root.path(), &format!("var/log/pods/kube-system_kube-proxy-{pod}_1/kube-proxy/0.log"), b"");
    }
    let mut source = open(&host).unwrap();
    look(&mut source, &host);
    let begin = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
    for _ in 0..1000 {
        read_journal(&mut source, &host);
        read_files(&mut source, &host);
        source.events.passed(Duration::from_secs(1));
        reading(&mut source);
    }
    let end = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
    println!("{:?} a tick", (Duration::from(end) - Duration::from(begin)) / 1000);
    let begin = end;
    for _ in 0..1000 {
        look(&mut source, &host);
    }
    let end = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
    println!("{:?} a look", (Duration::from(end) - Duration::from(begin)) / 1000);
}

#[test]
fn another_line_at_the_same_place_is_another_event() {
    let root = tempfile::tempdir().unwrap();
    let host = host(root.path());
    let log = "var/log/kube-proxy.log";
    put(
        root.path(),
        log,
        b"failed to acquire new iptables lock: timed out waiting for the condition, and more\n",
    );
    let mut source = open(&host).unwrap();
    let first = read(&mut source, &host).unwrap();
    // `copytruncate` of logrotate: the same file, cut and written anew from its beginning.
    put(root.path(), log, b"Another app is currently holding the xtables lock.\n");
    let second = read(&mut source, &host).unwrap();
    let (first, second) = (log_lines(&first), log_lines(&second));
    assert_eq!((first.len(), second.len()), (1, 1));
    assert_ne!(first[0].1.key, second[0].1.key);
}

#[test]
fn a_log_behind_a_link_that_leads_nowhere_is_told_and_not_followed() {
    let root = tempfile::tempdir().unwrap();
    let host = host(root.path());
    put(root.path(), "var/log/kubelet.log", b"");
    // Docker's: a link to its own folder, which under another root leads out of that root.
    let folder = root.path().join("var/log/pods/kube-system_kube-proxy-x_1/kube-proxy");
    std::fs::create_dir_all(&folder).unwrap();
    let target = "/var/lib/docker/containers/0123/0123-json.log";
    std::os::unix::fs::symlink(target, folder.join("0.log")).unwrap();
    let reading = read(&mut open(&host).unwrap(), &host).unwrap();
    assert_eq!(reading.files.keys().collect::<Vec<_>>(), ["/var/log/kubelet.log"]);
    let error = reading.files_error.unwrap();
    assert!(error.contains("kube-proxy/0.log") && error.contains("leads nowhere"), "{error}");
}
