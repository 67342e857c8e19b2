use std::fs;
use std::path::Path;

use nodewhy_clock::{Clock, Mover};
use nodewhy_proto::{EventBody, Severity};

use super::*;
use crate::collector::{Noticed, Pair};
use crate::host::Places;
use crate::host::process::made;
use crate::metrics::Sink;
use crate::thresholds::Thresholds;

fn node() -> (tempfile::TempDir, Host, Mover) {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in [
        ("etc/containerd/config.toml", "version = 2\n"),
        ("usr/bin/containerd", "program"),
        ("etc/resolv.conf", "nameserver 10.0.0.1\n"),
        ("proc/sys/kernel/osrelease", "6.1.0-26-amd64\n"),
        ("proc/sys/kernel/random/boot_id", "0b9f0f3c-6d9f-4a7b-9c52-3f8a1f7e2d10\n"),
    ] {
        write(root.path(), path, text.as_bytes());
    }
    let (clock, mover) = Clock::skippable();
    let host = Host::new(root.path(), clock, Places::default());
    (root, host, mover)
}

fn write(root: &Path, path: &str, text: &[u8]) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn noticed(reading: &Reading, host: &Host) -> Noticed {
    let mut noticed = Noticed::default();
    let pair = Pair { before: None, now: reading, at: host.clock().stamp() };
    detect::detect(pair, &Thresholds::default(), &mut noticed);
    noticed
}

/// What changed, as events: kind, name, whether it was and is there.
fn events(reading: &Reading, host: &Host) -> Vec<(String, String, bool, bool)> {
    let happenings = noticed(reading, host).happenings.into_iter();
    let mut events: Vec<_> = happenings
        .map(|happening| match happening.body {
            EventBody::Changed(change) => {
                (change.what, change.name, change.from.is_some(), change.to.is_some())
            }
            other => panic!("{other:?}"),
        })
        .collect();
    events.sort();
    events
}

#[test]
fn what_is_there_at_first_is_a_change_of_the_list_and_no_event() {
    let (root, host, _) = node();
    let mut source = open(&host).unwrap();
    let first = read(&mut source, &host).unwrap();
    assert_eq!(events(&first, &host), []);
    let names: Vec<&str> = first.changes.iter().map(|change| change.name.as_str()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(names.contains(&"/usr/bin/containerd") && names.contains(&"/etc/resolv.conf"));
    assert_eq!(first.kernel.as_deref(), Some("6.1.0-26-amd64"));
    assert!(first.missing.iter().any(|why| why.contains("neither /var/log/dpkg.log")), "{:?}", first.missing);
    assert!(first.missing.iter().any(|why| why.contains("there is no /var/log/wtmp")));

    assert_eq!(events(&read(&mut source, &host).unwrap(), &host), []);
    write(root.path(), "etc/containerd/config.toml", b"version = 3\n#\n");
    write(root.path(), "etc/cni/net.d/10-new.conflist", b"{}");
    fs::remove_file(root.path().join("etc/resolv.conf")).unwrap();
    let changed = read(&mut source, &host).unwrap();
    let configuration = |name: &str, was, is| ("configuration".to_owned(), name.to_owned(), was, is);
    assert_eq!(
        events(&changed, &host),
        [
            configuration("/etc/cni/net.d/10-new.conflist", false, true),
            configuration("/etc/containerd/config.toml", true, true),
            configuration("/etc/resolv.conf", true, false),
        ]
    );
    let keys: std::collections::BTreeSet<_> =
        noticed(&changed, &host).happenings.into_iter().map(|happening| happening.key).collect();
    assert_eq!(keys.len(), 3, "each is another event");
    assert_eq!(events(&read(&mut source, &host).unwrap(), &host), []);
}

#[test]
fn a_configuration_that_is_newer_than_its_process_needs_a_restart() {
    let (root, host, _) = node();
    // It began 1427 s after boot, long before the test's files.
    made::process(root.path(), 77, "containerd", 'S');
    host.learn_runtime_process(host.process(77).unwrap());
    std::os::unix::fs::symlink("/usr/bin/containerd", root.path().join("proc/77/exe")).unwrap();
    let mut source = open(&host).unwrap();
    let reading = read(&mut source, &host).unwrap();
    let restart: Vec<&str> = reading.needs_restart.iter().map(|change| change.name.as_str()).collect();
    assert_eq!(restart, ["/etc/containerd/config.toml"], "the program on the disk is the one that runs");
    assert_eq!(reading.processes[0].exe_is_replaced, Some(false));

    fs::remove_file(root.path().join("proc/77/exe")).unwrap();
    std::os::unix::fs::symlink("/usr/bin/containerd (deleted)", root.path().join("proc/77/exe")).unwrap();
    let reading = read(&mut source, &host).unwrap();
    assert_eq!(reading.needs_restart.len(), 2, "{:?}", reading.needs_restart);
    let mut sink = Sink::default();
    metrics::metrics(&reading, &mut sink);
    assert!(sink.encode().contains("nodewhy_changes_need_restart 2\n"));
}

#[test]
fn packages_are_listed_and_new_ones_are_events() {
    let (root, host, _) = node();
    // As Debian 12 writes them; the times are the test's own.
    let line = |at: Timestamp, package: &str| {
        let at = at.to_zoned(jiff::tz::TimeZone::UTC).datetime();
        format!(
            "{} {} upgrade {package} 252.36-1~deb12u1 252.38-1~deb12u1\n",
            at.date(),
            at.time().round(jiff::Unit::Second).unwrap()
        )
    };
    let now = host.clock().now();
    let old = now.checked_sub(SignedDuration::from_hours(24 * 20)).unwrap();
    let recent = now.checked_sub(SignedDuration::from_hours(5)).unwrap();
    let mut log = line(old, "ancient:amd64") + &line(recent, "libudev1:amd64");
    write(root.path(), "var/log/dpkg.log", log.as_bytes());
    let mut source = open(&host).unwrap();
    let first = read(&mut source, &host).unwrap();
    let packages = |reading: &Reading| {
        let packages = reading.changes.iter().filter(|change| change.what == "package");
        packages.map(|change| change.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(packages(&first), ["libudev1:amd64"]);
    assert_eq!(events(&first, &host), []);

    let later = now.checked_add(SignedDuration::from_secs(5)).unwrap();
    log += &line(later, "containerd.io:amd64");
    write(root.path(), "var/log/dpkg.log", log.as_bytes());
    let second = read(&mut source, &host).unwrap();
    assert_eq!(
        events(&second, &host),
        [("package".to_owned(), "containerd.io:amd64".to_owned(), true, true)]
    );
    assert_eq!(events(&read(&mut source, &host).unwrap(), &host), []);

    for number in 0..1500 {
        log += &line(later, &format!("package{number}:amd64"));
    }
    write(root.path(), "var/log/dpkg.log", log.as_bytes());
    let many = read(&mut source, &host).unwrap();
    assert!(
        many.changes.iter().any(|change| change.name == "/usr/bin/containerd"),
        "an upgrade hides nothing else"
    );
    assert_eq!(events(&many, &host).len(), MOST_NEWS);
    assert_eq!(many.news_dropped, 1500 - MOST_NEWS);
    assert!(serde_json::to_string(&many).unwrap().len() < 12 * 1024);
    assert_eq!(page(&many).unwrap()["changes"].as_array().unwrap().len(), MOST / 2 + 3);
}

#[test]
fn a_kernel_that_is_another_one_than_before_is_a_change() {
    let boot = |hours: i64, kernel: &str| Boot {
        at: Timestamp::from_second(1_700_000_000 + hours * 3600).unwrap(),
        kernel: kernel.to_owned(),
    };
    let boots = [boot(30, "6.1.0-26"), boot(20, "6.1.0-26"), boot(10, "6.1.0-18")];
    let at = Clock::system().stamp();
    let told = kernels(&boots, Some("6.1.0-26"), at);
    assert_eq!(told.len(), 1);
    assert_eq!(
        (told[0].at, told[0].from.as_deref(), told[0].name.as_str()),
        (boots[1].at, Some("6.1.0-18"), "6.1.0-26")
    );
    let told = kernels(&boots, Some("6.1.0-27"), at);
    assert_eq!(told.len(), 2, "this boot is not in wtmp");
    assert_eq!(kernels(&[], Some("6.1.0-27"), at), [], "nothing is known of the boot before");
}

fn certificate(not_after: Timestamp) -> Vec<u8> {
    let mut parameters = rcgen::CertificateParams::new(vec!["node".to_owned()]).unwrap();
    let date = not_after.to_zoned(jiff::tz::TimeZone::UTC).date();
    let (month, day) = (date.month().unsigned_abs(), date.day().unsigned_abs());
    parameters.not_after = rcgen::date_time_ymd(i32::from(date.year()), month, day);
    let key = rcgen::KeyPair::generate().unwrap();
    parameters.self_signed(&key).unwrap().pem().into_bytes()
}

#[test]
fn certificates_that_end_are_told_and_files_with_keys_are_not_opened() {
    let (root, host, _) = node();
    let day = SignedDuration::from_hours(24);
    let now = host.clock().now();
    let ended = certificate(now.checked_sub(day * 3).unwrap());
    write(root.path(), "var/lib/kubelet/pki/kubelet.crt", &ended);
    write(root.path(), "etc/kubernetes/pki/apiserver.crt", &ended);
    write(root.path(), "etc/kubernetes/pki/ca.crt", &certificate(now.checked_add(day * 300).unwrap()));
    write(root.path(), "etc/kubernetes/pki/ca.key", b"secret");
    write(root.path(), "var/lib/kubelet/pki/kubelet-client-current.pem", &ended);
    let mut source = open(&host).unwrap();
    let reading = read(&mut source, &host).unwrap();
    let client = reading.certificates.iter().find(|file| file.path.ends_with("current.pem")).unwrap();
    assert_eq!((client.not_after, client.untold.is_some()), (None, true));
    assert!(reading.certificates.iter().all(|file| !file.path.ends_with(".key")));
    let mut states = noticed(&reading, &host).states;
    states.sort_by(|left, right| left.subject.cmp(&right.subject));
    let told: Vec<_> =
        states.iter().map(|state| (state.finding, state.subject.name.as_str(), state.severity)).collect();
    assert_eq!(
        told,
        [
            ("certificate_expired", "/var/lib/kubelet/pki/kubelet.crt", Severity::Info),
            ("certificate_expired", "/etc/kubernetes/pki/apiserver.crt", Severity::Warning),
        ]
    );
    // A day's certificate ends at midnight: within 24 h at any time of the day before.
    write(root.path(), "etc/kubernetes/pki/apiserver.crt", &certificate(now.checked_add(day).unwrap()));
    let reading = read(&mut source, &host).unwrap();
    let finding = noticed(&reading, &host)
        .states
        .into_iter()
        .map(|state| state.finding)
        .find(|finding| *finding != "certificate_expired");
    assert_eq!(finding, Some("certificate_expiring"));
}

#[test]
fn this_machine_is_read() {
    let host = Host::new("/", Clock::system(), Places::default());
    let mut source = open(&host).unwrap();
    let reading = read(&mut source, &host).unwrap();
    assert!(reading.kernel.is_some() && reading.boot_id.is_some());
    assert_eq!(noticed(&reading, &host).states, []);
    page(&reading).unwrap();
    summary(&reading);
}
