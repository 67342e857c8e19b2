use nodewhy_clock::{Clock, Stamp};

use super::*;
use crate::collector::{Noticed, Pair};
use crate::host::dial::{DialError, Step, Why};
use crate::metrics::Sink;
use crate::thresholds::Thresholds;

fn reading(failed_in_row: u32, failing_seconds: f64) -> Reading {
    let at = Clock::system().stamp();
    let target = dial::Target::parse("https://192.0.2.10:6443").unwrap();
    let error = DialError { step: Step::Connect, why: Why::TimedOut, error: "not in time".to_owned() };
    Reading {
        found: Found { target: target.clone(), origin: "the setting api_server".to_owned() },
        dial: Dialled {
            began: at,
            ended: at,
            target: target.to_string(),
            address: Some("192.0.2.10:6443".parse().unwrap()),
            addresses: Vec::new(),
            tried: Vec::new(),
            resolve_seconds: None,
            connect_seconds: None,
            tls_seconds: None,
            answer_seconds: None,
            total_seconds: 9.0,
            certificate: None,
            answer: None,
            error: Some(error),
        },
        from_hosts_network: true,
        failed_in_row,
        failing_seconds: Some(failing_seconds),
        failing_since: Some(at.wall),
        clock_offset_seconds: None,
        clock_offset_error_seconds: None,
        connections: None,
        connections_error: None,
        running_seconds: None,
    }
}

fn noticed(now: &Reading) -> Vec<crate::collector::Abnormal> {
    let mut noticed = Noticed::default();
    let at: Stamp = Clock::system().stamp();
    detect::detect(Pair { before: None, now, at }, &Thresholds::default(), &mut noticed);
    noticed.states
}

#[test]
fn unreachable_for_the_shortest_grace_period_is_critical() {
    use nodewhy_proto::Severity::{Critical, Warning};
    assert!(noticed(&reading(1, 9.0)).is_empty());
    assert_eq!(noticed(&reading(2, 19.0))[0].severity, Warning);
    assert_eq!(noticed(&reading(5, 49.0))[0].severity, Critical);
}

#[test]
fn what_is_not_known_is_in_no_metric() {
    let mut sink = Sink::default();
    families::metrics(&reading(2, 19.0), &mut sink);
    let text = sink.encode();
    assert!(text.contains("nodewhy_api_server_answers 0\n"), "{text}");
    assert!(text.contains("nodewhy_api_server_dial_failed{why=\"timed_out\"} 1\n"), "{text}");
    for unknown in ["step_seconds", "clock_offset", "certificate", "kubelet_api", "livez_status"] {
        assert!(!text.contains(unknown), "{unknown}: {text}");
    }
}

#[test]
fn a_balancer_on_the_nodes_loopback_device_is_not_dialled_from_elsewhere() {
    let root = tempfile::tempdir().unwrap();
    let api_server = dial::Target::parse("https://127.0.0.1:6443");
    let places = crate::host::Places { api_server, ..Default::default() };
    let host = Host::new(root.path(), Clock::system(), places);
    let error = read(&mut open(&host).unwrap(), &host).unwrap_err().to_string();
    assert!(error.contains("over the node's loopback device"), "{error}");
}

#[test]
fn where_it_was_is_remembered_when_what_told_it_is_gone() {
    let root = tempfile::tempdir().unwrap();
    let host = Host::new(root.path(), Clock::system(), crate::host::Places::default());
    // No /etc/resolv.conf in this root: the dial of what was remembered fails at once.
    let target = dial::Target::parse("gone.lab:6443").unwrap();
    let last = Found { target, origin: "the kubelet's connections".to_owned() };
    assert!(matches!(look(&host, None).found, Err(ReadError::Absent { .. })));
    let look = look(&host, Some(last.clone()));
    assert_eq!(look.found.unwrap(), last);
    assert_eq!(look.dialled.unwrap().error.unwrap().why, Why::NameNotResolved);
}

#[test]
fn a_node_that_does_not_say_where_it_is_has_no_api_server() {
    let root = tempfile::tempdir().unwrap();
    let host = Host::new(root.path(), Clock::system(), crate::host::Places::default());
    let error = read(&mut open(&host).unwrap(), &host).unwrap_err();
    assert!(matches!(&error, ReadError::Absent { why } if why.contains("set `api_server`")), "{error}");
}

#[test]
fn a_nameserver_on_the_nodes_loopback_device_is_no_news_from_elsewhere() {
    let root = tempfile::tempdir().unwrap();
    crate::host::process::made::other_network(root.path());
    std::fs::create_dir_all(root.path().join("etc")).unwrap();
    // systemd-resolved's stub. Here nobody listens there, as in a pod.
    std::fs::write(root.path().join("etc/resolv.conf"), "nameserver 127.0.0.253\n").unwrap();
    let places =
        crate::host::Places { api_server: dial::Target::parse("https://api.lab"), ..Default::default() };
    let host = Host::new(root.path(), Clock::system(), places);
    let error = look(&host, None).found.unwrap_err().to_string();
    assert!(error.contains("127.0.0.253") && error.contains("hostNetwork"), "{error}");
}
