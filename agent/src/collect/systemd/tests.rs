use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;

use nodewhy_clock::{Clock, Mover};
use nodewhy_proto::{Outcome, SubjectKind};
use proptest::prelude::*;
use rustbus::message_builder::MarshalledMessage;
use rustbus::params::{Array, Base, Container, Param};
use rustbus::signature;
use rustbus::wire::ObjectPath;

use super::*;
use crate::collector::{Abnormal, Collect, Noticed, Pair};
use crate::host::Places;
use crate::host::dbus::peer;
use crate::host::process::made;
use crate::thresholds::Thresholds;

/// A node whose process 1 is systemd.
fn node() -> (tempfile::TempDir, Host, Mover) {
    let root = tempfile::tempdir().unwrap();
    made::process(root.path(), 1, "systemd", 'S');
    fs::create_dir_all(root.path().join("run/systemd/system")).unwrap();
    let (clock, mover) = Clock::skippable();
    let host = Host::new(root.path(), clock, Places::default());
    (root, host, mover)
}

fn states(reading: &Reading) -> Vec<Abnormal> {
    let mut noticed = Noticed::default();
    let at = Clock::system().stamp();
    detect::detect(Pair { before: None, now: reading, at }, &Thresholds::default(), &mut noticed);
    noticed.states
}

/// Reads until this holds.
fn read_until(source: &mut Source, host: &Host, holds: impl Fn(&Reading) -> bool) -> Reading {
    for _ in 0..500 {
        let reading = read(source, host).unwrap();
        if holds(&reading) {
            return reading;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("never: {:?}", read(source, host));
}

/// `a(ssssssouso)`, as org.freedesktop.systemd1(5) has it.
fn units(reply: &mut MarshalledMessage, names: &[&str]) {
    let string = |text: &str| Param::Base(Base::String(text.to_owned()));
    let path = || Param::Base(Base::ObjectPath("/a".to_owned()));
    let unit = |name: &&str| {
        let mut fields =
            vec![string(name), string("about"), string("loaded"), string("failed"), string("failed")];
        fields.extend([string(""), path(), Param::Base(Base::Uint32(0)), string(""), path()]);
        Param::Container(Container::Struct(fields))
    };
    let element_sig = signature::Type::parse_description("(ssssssouso)").unwrap().remove(0);
    let values = names.iter().map(unit).collect();
    reply.body.push_old_param(&Param::Container(Container::Array(Array { element_sig, values }))).unwrap();
}

/// Answers as systemd does on a node whose kubelet failed.
fn systemd(call: &MarshalledMessage) -> Option<MarshalledMessage> {
    let mut reply = call.dynheader.make_response();
    let mut arguments = call.body.parser();
    match call.dynheader.member.as_deref()? {
        "Hello" => reply.body.push_param(":1.7").unwrap(),
        "Ping" => {}
        "ListUnitsFiltered" => units(&mut reply, &["kubelet.service", "docker.service"]),
        "ListUnitsByPatterns" => {
            assert_eq!(arguments.get2::<Vec<String>, Vec<String>>().unwrap().1, ["*.scope", "*.mount"]);
            units(&mut reply, &["init.scope", "run-r12.scope", "-.mount", "cri-containerd-1.scope"]);
        }
        "GetUnit" if arguments.get::<String>().unwrap() == "kubelet.service" => {
            reply
                .body
                .push_param(ObjectPath::new("/org/freedesktop/systemd1/unit/kubelet_2eservice").unwrap())
                .unwrap();
        }
        "GetUnit" => {
            let name = "org.freedesktop.systemd1.NoSuchUnit";
            return Some(call.dynheader.make_error_response(name, None));
        }
        "Get" => {
            let (_, name) = arguments.get2::<String, String>().unwrap();
            let body = &mut reply.body;
            match name.as_str() {
                "Version" => body.push_variant("252.39-1~deb12u1"),
                "SystemState" => body.push_variant("degraded"),
                "NFailedUnits" => body.push_variant(2u32),
                "NJobs" => body.push_variant(0u32),
                "ActiveState" | "SubState" => body.push_variant("failed"),
                "Result" => body.push_variant("exit-code"),
                "NRestarts" => body.push_variant(5u32),
                "TasksMax" => body.push_variant(u64::MAX),
                _ => {
                    return Some(
                        call.dynheader
                            .make_error_response("org.freedesktop.DBus.Error.UnknownProperty", None),
                    );
                }
            }
            .unwrap();
        }
        other => panic!("{other} was not to be asked"),
    }
    Some(reply)
}

fn is_known(reading: &Reading) -> bool {
    reading.known.is_some()
}

#[test]
fn systemd_is_asked_over_its_own_socket() {
    let (root, host, _) = node();
    peer::listen(&root.path().join("run/systemd/private"), systemd);
    let mut source = open(&host).unwrap();
    let reading = read_until(&mut source, &host, is_known);
    assert_eq!(reading.socket, Some(asking::PRIVATE));
    assert!(reading.ping_seconds.unwrap() < 5.0);
    assert_eq!(reading.unanswered_seconds, None);
    let known = reading.known.as_ref().unwrap();
    assert_eq!((known.version.as_deref(), known.failed_count), (Some("252.39-1~deb12u1"), Some(2)));
    assert_eq!((known.scopes, known.run_scopes, known.mount_units), (Some(3), Some(1), Some(1)));
    assert_eq!(known.units, None, "a property that it does not have is none");
    let kubelet = &known.of_note["kubelet.service"];
    assert_eq!((kubelet.restarts, kubelet.tasks_max), (Some(5), None));
    assert_eq!(known.of_note.len(), 1, "docker's is nobody's here");
    let found = states(&reading);
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].finding, found[0].subject.name.as_str()), ("unit_failed", "kubelet.service"));
    // The kubelet runs, in another unit: the one that failed is what was there before (k3s over kubeadm's leftovers).
    let unit = "k3s-agent.service".to_owned();
    let other = UnitTasks { unit, role: "kubelet", current: 40, max: None, refused: None };
    assert_eq!(states(&Reading { unit_tasks: vec![other], ..reading.clone() }).len(), 0);
    let mut sink = Sink::default();
    metrics(&reading, &mut sink);
    assert!(sink.encode().contains("nodewhy_systemd_failed_units 2\n"));
}

#[test]
fn without_its_own_socket_it_is_asked_over_the_bus() {
    let (root, host, _) = node();
    peer::listen(&root.path().join("run/dbus/system_bus_socket"), systemd);
    let mut source = open(&host).unwrap();
    let reading = read_until(&mut source, &host, is_known);
    assert_eq!(reading.socket, Some(asking::SYSTEM_BUS));
}

#[test]
fn a_pid_1_that_takes_connections_and_says_nothing_is_stuck() {
    let (root, host, mover) = node();
    let _kept = UnixListener::bind(root.path().join("run/systemd/private")).unwrap();
    let mut source = open(&host).unwrap();
    let reading = read_until(&mut source, &host, |reading| reading.unanswered_seconds.is_some());
    assert!(states(&reading).is_empty(), "not yet");
    mover.skip(Duration::from_secs(6));
    let reading = read(&mut source, &host).unwrap();
    let found = states(&reading);
    assert_eq!((found[0].finding, found[0].subject.kind), ("systemd_stuck", SubjectKind::Unit));
    assert_eq!(found[0].since, reading.unanswered_since);
    assert!(summary(&reading).contains("has not answered for 6 s"), "{}", summary(&reading));
}

#[test]
fn a_refusal_is_an_error_that_says_which_right_is_missing_and_no_hang() {
    let (root, host, mover) = node();
    peer::listen(&root.path().join("run/systemd/private"), |call| {
        Some(call.dynheader.make_error_response("org.freedesktop.DBus.Error.AccessDenied", None))
    });
    let mut source = open(&host).unwrap();
    let reading = read_until(&mut source, &host, |reading| reading.error.is_some());
    mover.skip(Duration::from_secs(60));
    assert!(
        reading.error.as_ref().unwrap().contains("it takes root for /run/systemd/private"),
        "{reading:?}"
    );
    assert_eq!(read(&mut source, &host).unwrap().unanswered_seconds, None);

    let (_root, host, _) = node();
    let mut source = open(&host).unwrap();
    let reading = read_until(&mut source, &host, |reading| reading.error.is_some());
    assert!(reading.error.as_ref().unwrap().contains("No such file"), "{reading:?}");
    assert!(states(&reading).is_empty());
}

#[test]
fn a_node_without_systemd_is_told_apart_from_one_whose_run_is_not_seen() {
    let (root, host, _) = node();
    fs::remove_dir_all(root.path().join("run")).unwrap();
    let mut source = open(&host).unwrap();
    let reading = read_until(&mut source, &host, |reading| reading.error.is_some());
    assert!(reading.error.as_ref().unwrap().contains("No such file"), "{reading:?}");
    assert!(states(&reading).is_empty(), "what cannot be asked is not stuck");
    made::process(root.path(), 1, "machined", 'S');
    let outcome = COLLECTOR.start().step(&host, &Thresholds::default()).outcome;
    assert!(matches!(&outcome, Outcome::Absent { why } if why.contains("`machined`")), "{outcome:?}");
}

#[test]
fn the_thread_ends_with_the_source() {
    let (root, host, _) = node();
    peer::listen(&root.path().join("run/systemd/private"), systemd);
    let mut source = open(&host).unwrap();
    read_until(&mut source, &host, is_known);
    let weak = source.asking.watch();
    drop(source);
    for _ in 0..500 {
        if weak.strong_count() == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it asks for ever");
}

fn cgroup(root: &Path, path: &str, files: &[(&str, &str)]) {
    let folder = root.join("sys/fs/cgroup").join(path);
    fs::create_dir_all(&folder).unwrap();
    for (name, text) in files {
        fs::write(folder.join(name), text).unwrap();
    }
}

#[test]
fn tasks_of_the_runtimes_unit_are_held_against_its_own_limit() {
    let (root, host, _) = node();
    made::process(root.path(), 77, "containerd", 'S');
    host.learn_runtime_process(host.process(77).unwrap());
    let files = [("pids.current", "95\n"), ("pids.max", "100\n"), ("pids.events", "max 3\n")];
    cgroup(root.path(), "system.slice/containerd.service", &files);
    cgroup(root.path(), "", &[("cgroup.stat", "nr_descendants 84\nnr_dying_descendants 2\n")]);
    let mut source = open(&host).unwrap();
    let reading = read(&mut source, &host).unwrap();
    assert_eq!(reading.cgroups, Some(84));
    assert_eq!((reading.unit_tasks[0].max, reading.unit_tasks[0].refused), (Some(100), Some(3)));
    let found = states(&reading);
    assert_eq!(
        (found[0].finding, found[0].subject.name.as_str()),
        ("unit_tasks_exhausted", "containerd.service")
    );
    cgroup(root.path(), "system.slice/containerd.service", &[("pids.max", "max\n")]);
    let reading = read(&mut source, &host).unwrap();
    assert_eq!(reading.unit_tasks[0].max, None);
    assert!(states(&reading).is_empty());
}

#[test]
fn a_busy_pid_1_is_told_after_a_whole_minute() {
    let (root, host, mover) = node();
    let mut source = open(&host).unwrap();
    assert_eq!(read(&mut source, &host).unwrap().pid1_core_percent, None);
    let stat = host.read("/proc/1/stat").unwrap();
    let (before, behind) = stat.rsplit_once(") ").unwrap();
    let mut fields: Vec<&str> = behind.split(' ').collect();
    fields[11] = "6100";
    fs::write(root.path().join("proc/1/stat"), format!("{before}) {}", fields.join(" "))).unwrap();
    mover.skip(Duration::from_secs(59));
    assert_eq!(read(&mut source, &host).unwrap().pid1_core_percent, None);
    mover.skip(Duration::from_secs(2));
    let reading = read(&mut source, &host).unwrap();
    assert!(reading.pid1_core_percent.unwrap() > 95.0, "{reading:?}");
    assert_eq!(states(&reading)[0].finding, "pid1_busy");
}

#[test]
fn units_in_paths() {
    let of = |path| unit_in(path).map(|(path, unit)| format!("{path} {unit}"));
    let expected = Some("/system.slice/kubelet.service kubelet.service".to_owned());
    assert_eq!(of("/system.slice/kubelet.service"), expected);
    assert_eq!(of("/../../../system.slice/kubelet.service"), expected);
    assert_eq!(of("/system.slice/kubelet.service/sub"), expected);
    assert_eq!(of("/kubepods.slice"), None);
    assert_eq!(of("/"), None);
}

proptest! {
    #[test]
    fn a_cut_stat_gives_no_smaller_cpu_time(cut in 0..made::STAT.len()) {
        let whole = parse_first(made::STAT).unwrap();
        prop_assert!(parse_first(&made::STAT[..cut]).is_none_or(|first| first == whole));
        prop_assert!(descendants("nr_descendants 84\n").is_some_and(|count| count == 84));
        prop_assert_eq!(descendants(&"nr_descendants 84\n"[..cut.min(17)]), None);
    }
}
