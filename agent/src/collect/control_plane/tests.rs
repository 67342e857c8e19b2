use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use nodewhy_clock::{Clock, Stamp};
use proptest::prelude::*;

use super::etcd::{flag, metrics_address};
use super::*;
use crate::host::Places;
use crate::host::fetch::FetchError;

// fixtures/control-plane/README.md.
const METRICS: &str = include_str!("../../../fixtures/control-plane/etcd-3.4.23-metrics.txt");
const READYZ: &str = include_str!("../../../fixtures/control-plane/kube-apiserver-1.36.2-readyz-verbose.txt");

fn said(text: &str) -> Said {
    let mut gathering = Gathering::new();
    gathering.feed(text.as_bytes());
    gathering.finish().unwrap()
}

fn arguments(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn what_etcd_says() {
    let said = said(METRICS);
    assert_eq!((said.has_leader, said.leader_changes_total), (Some(true), Some(1.0)));
    assert_eq!((said.db_bytes, said.db_in_use_bytes), (Some(20_480.0), Some(16_384.0)));
    assert_eq!(said.quota_bytes, Some(2_147_483_648.0));
    assert_eq!((said.slow_applies_total, said.proposals_pending), (Some(0.0), Some(0.0)));
    assert_eq!((said.fsync.count, said.commit.count), (Some(6.0), Some(6.0)));
    // One member has no peers: nothing is said of them.
    assert_eq!(said.round_trip, Default::default());
}

#[test]
fn an_answer_that_is_not_etcds_is_none_and_no_zero() {
    let mut gathering = Gathering::new();
    gathering.feed(b"# HELP up x\nup 1\n");
    assert!(gathering.finish().unwrap_err().contains("no metric of etcd's"));
    assert_eq!(said("etcd_server_has_leader NaN\netcd_server_proposals_pending 1\n").has_leader, None);
}

#[test]
fn latencies_are_of_the_last_minute_and_begin_anew_with_etcd() {
    let mut history = History::default();
    let with = |count: u32| {
        // The recorded histogram with more observations, all between 0.128 and 0.256 s.
        let slow: String = METRICS
            .lines()
            .filter(|line| line.contains("wal_fsync") && !line.starts_with('#'))
            .map(|line| {
                let (name, value) = line.rsplit_once(' ').unwrap();
                let bound = name
                    .split("le=\"")
                    .nth(1)
                    .and_then(|rest| rest.trim_end_matches("\"}").parse::<f64>().ok());
                let more = if name.ends_with("_sum") {
                    f64::from(count) * 0.2
                } else if bound.is_some_and(|bound| bound < 0.2) {
                    0.0
                } else {
                    f64::from(count)
                };
                format!("{name} {}\n", value.parse::<f64>().unwrap() + more)
            })
            .collect();
        said(&slow)
    };
    let second = Duration::from_secs;
    assert_eq!(history.take(second(0), &with(0)), Latencies::default());
    let fsync = history.take(second(10), &with(20)).wal_fsync.unwrap();
    assert!((fsync.count - 20.0).abs() < 1e-9 && (fsync.window_seconds - 10.0).abs() < 1e-9);
    assert!(fsync.p99_seconds > 0.2 && fsync.p99_seconds <= 0.256, "{fsync:?}");
    assert!((fsync.mean_seconds.unwrap() - 0.2).abs() < 1e-6);
    // Nothing was written since: an old slowness is not a new one.
    for at in (20..90).step_by(10) {
        history.take(second(at), &with(20));
    }
    assert_eq!(history.take(second(90), &with(20)).wal_fsync, None);
    // It began anew.
    assert_eq!(history.take(second(100), &with(0)).wal_fsync, None);
    assert!(history.take(second(110), &with(15)).wal_fsync.is_some());
}

#[test]
fn the_command_line_says_where() {
    let kubeadm = arguments(
        "etcd --advertise-client-urls=https://10.0.0.5:2379 --data-dir=/var/lib/etcd --listen-client-urls=https://127.0.0.1:2379,https://10.0.0.5:2379 --listen-metrics-urls=http://127.0.0.1:2381 --name=a",
    );
    assert_eq!(metrics_address(&kubeadm), Ok("127.0.0.1:2381".parse().unwrap()));
    assert_eq!(flag(&kubeadm, "data-dir"), Some("/var/lib/etcd"));
    let apart = arguments("etcd -data-dir d --listen-metrics-urls http://0.0.0.0:2381");
    assert_eq!(metrics_address(&apart), Ok("127.0.0.1:2381".parse().unwrap()));
    assert_eq!(flag(&apart, "data-dir"), Some("d"));
    assert_eq!(metrics_address(&arguments("etcd")), Ok("127.0.0.1:2379".parse().unwrap()));
    let plain = arguments("etcd --listen-client-urls=http://localhost:2379");
    assert_eq!(metrics_address(&plain), Ok("127.0.0.1:2379".parse().unwrap()));
    let closed = metrics_address(&arguments("etcd --listen-client-urls=https://127.0.0.1:2379")).unwrap_err();
    assert!(closed.contains("--listen-metrics-urls"), "{closed}");
    let file = metrics_address(&arguments("etcd --config-file /etc/etcd.yaml")).unwrap_err();
    assert!(file.contains("etcd_metrics"), "{file}");
    let server = arguments("kube-apiserver --secure-port=8443 --bind-address=::");
    assert_eq!(apiserver::address(&server), "127.0.0.1:8443".parse().unwrap());
    assert_eq!(apiserver::address(&[]), "127.0.0.1:6443".parse().unwrap());
}

#[test]
fn checks_that_failed_are_named_and_a_refusal_is_no_failure() {
    assert_eq!(apiserver::health(Ok(READYZ.to_owned())), Health::Well);
    let status = |code, body: &str| {
        let url = String::new();
        apiserver::health(Err(FetchError::Status { url, code, body: body.to_owned() }))
    };
    // The recorded list with the words of healthz.go for a failed check.
    let body = READYZ.replace("[+]informer-sync ok", "[-]informer-sync failed: reason withheld");
    let failing = Health::Failing { code: 500, checks: vec!["informer-sync".to_owned()] };
    assert_eq!(status(500, &body), failing);
    assert_eq!(status(403, "Forbidden"), Health::Refused { code: 403 });
    let refused = FetchError::Refused { url: "https://127.0.0.1:6443/livez".to_owned() };
    assert!(matches!(apiserver::health(Err(refused)), Health::Silent { .. }));
}

fn etcd_of(said: Said, fsync: Option<Latency>) -> Etcd {
    Etcd {
        pid: Some(7),
        is_gone: false,
        metrics: Some("http://127.0.0.1:2381/metrics".to_owned()),
        metrics_error: None,
        said: Some(said),
        latencies: Latencies { wal_fsync: fsync, ..Latencies::default() },
        data_dir: Some("/var/lib/etcd".to_owned()),
        data_device: Some("vdb".to_owned()),
    }
}

fn findings(etcd: Option<Etcd>, apiserver: Option<ApiServer>) -> Vec<&'static str> {
    let reading = Reading { etcd, apiserver };
    let at = Stamp { wall: jiff::Timestamp::UNIX_EPOCH, boot: Duration::ZERO };
    let mut noticed = Noticed::default();
    detect(Pair { before: None, now: &reading, at }, &Thresholds::default(), &mut noticed);
    assert!(noticed.states.iter().all(|state| state.subject.kind == SubjectKind::ControlPlane));
    noticed.states.iter().map(|state| state.finding).collect()
}

#[test]
fn what_is_abnormal_of_etcd() {
    let well = said(METRICS);
    let latency = |p99_seconds, count| {
        Some(Latency {
            p90_seconds: p99_seconds,
            p99_seconds,
            mean_seconds: None,
            count,
            window_seconds: 60.0,
        })
    };
    assert!(findings(Some(etcd_of(well.clone(), latency(0.02, 100.0))), None).is_empty());
    assert!(findings(Some(etcd_of(well.clone(), latency(0.5, 9.0))), None).is_empty(), "too few");
    assert_eq!(findings(Some(etcd_of(well.clone(), latency(0.5, 10.0))), None), ["etcd_slow_disk"]);
    let one_of_many = Latency { p90_seconds: 0.02, ..latency(0.5, 50.0).unwrap() };
    assert!(findings(Some(etcd_of(well.clone(), Some(one_of_many))), None).is_empty(), "one slow write");
    let alone = Said { has_leader: Some(false), ..well.clone() };
    assert_eq!(findings(Some(etcd_of(alone, None)), None), ["etcd_no_leader"]);
    let gib = 1024.0 * 1024.0 * 1024.0;
    let full = Said { db_bytes: Some(2.0 * gib), db_in_use_bytes: Some(1.9 * gib), ..well.clone() };
    assert_eq!(findings(Some(etcd_of(full, None)), None), ["etcd_quota_nearly_full"]);
    let holes = Said { db_bytes: Some(gib), db_in_use_bytes: Some(0.3 * gib), ..well.clone() };
    assert_eq!(findings(Some(etcd_of(holes, None)), None), ["etcd_fragmented"]);
    let unknown =
        Said { has_leader: None, db_bytes: None, db_in_use_bytes: None, quota_bytes: Some(0.0), ..well };
    assert!(findings(Some(etcd_of(unknown.clone(), None)), None).is_empty());
    let gone = Etcd { is_gone: true, pid: None, said: None, ..etcd_of(unknown, None) };
    assert_eq!(findings(Some(gone), None), ["etcd_down"]);
}

#[test]
fn what_is_abnormal_of_the_api_server() {
    let of = |livez: Health, age_seconds| {
        let readyz = Health::Failing { code: 500, checks: vec!["etcd".to_owned()] };
        Some(ApiServer { pid: 8, age_seconds, address: "127.0.0.1:6443".to_owned(), livez, readyz })
    };
    let failing = || Health::Failing { code: 500, checks: vec!["etcd".to_owned()] };
    assert_eq!(findings(None, of(failing(), 600.0)), ["apiserver_unhealthy"]);
    assert_eq!(findings(None, of(Health::Silent { error: "x".to_owned() }, 600.0)), ["apiserver_unhealthy"]);
    assert!(findings(None, of(failing(), 10.0)).is_empty(), "it only begins");
    assert!(findings(None, of(Health::Refused { code: 401 }, 600.0)).is_empty());
    assert!(findings(None, of(Health::Well, 600.0)).is_empty(), "not ready is no reason to call it dead");
}

/// A process of the host that a test makes.
fn process(root: &std::path::Path, pid: u32, name: &str, cmdline: &str) {
    let folder = root.join(format!("proc/{pid}"));
    std::fs::create_dir_all(&folder).unwrap();
    let stat = format!(
        "{pid} ({name}) S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 100 1000 10 18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0\n"
    );
    std::fs::write(folder.join("stat"), stat).unwrap();
    std::fs::write(folder.join("cgroup"), "0::/system.slice/etcd.service\n").unwrap();
    std::fs::write(folder.join("cmdline"), cmdline.replace(' ', "\0") + "\0").unwrap();
}

#[test]
fn anybodys_etcd_in_a_pod_is_not_the_clusters() {
    let root = tempfile::tempdir().unwrap();
    let host = Host::new(root.path(), Clock::system(), Places::default());
    let with = |cgroup: &str| {
        process(root.path(), 42, "etcd", "etcd");
        std::fs::write(root.path().join("proc/42/cgroup"), format!("0::{cgroup}\n")).unwrap();
        is_the_nodes(&host, 42)
    };
    let uid = "c12ef941-6a22-4f38-8101-61b41df7a6b6";
    assert!(with("/system.slice/etcd.service"));
    // A static pod's UID is a hash of its file.
    assert!(with("/kubepods/burstable/podf5f41fb4cabbb63e12dc36a7aa8a3e4b/x"));
    assert!(!with(&format!("/kubepods/burstable/pod{uid}/x")));
    let named = |namespace: &str| {
        let name = crate::host::known::PodName { namespace: namespace.to_owned(), name: "etcd-0".to_owned() };
        let mut pods = crate::host::known::Pods::default();
        pods.names.insert(uid.to_owned(), name);
        host.learn_pods(pods);
        with(&format!("/kubepods/burstable/pod{uid}/x"))
    };
    assert!(named("kube-system") && named("openshift-etcd") && !named("tenant-a"));
}

#[test]
fn the_control_plane_of_a_node_in_a_container_is_not_this_nodes() {
    let root = tempfile::tempdir().unwrap();
    let host = Host::new(root.path(), Clock::system(), Places::default());
    let cgroup = "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/\
                  kubelet-kubepods-burstable-podf5f41fb4cabbb63e12dc36a7aa8a3e4b.slice/cri-containerd-x.scope";
    let with = |before: &str, namespaces: &str| {
        process(root.path(), 42, "kube-apiserver", "kube-apiserver");
        std::fs::write(root.path().join("proc/42/cgroup"), format!("0::{before}{cgroup}\n")).unwrap();
        std::fs::write(root.path().join("proc/42/status"), format!("NSpid:\t42{namespaces}\n")).unwrap();
        is_the_nodes(&host, 42)
    };
    assert!(with("", "\t1"), "a static pod");
    // kind on somebody's machine: the machine's, the node's, the pod's.
    assert!(!with("/docker/0123", "\t600\t1"));
}

#[test]
fn the_loopback_device_of_another_namespace_is_not_asked() {
    let root = tempfile::tempdir().unwrap();
    crate::host::process::made::other_network(root.path());
    let address = serve(METRICS);
    process(root.path(), 42, "etcd", &format!("etcd --listen-metrics-urls=http://{address}"));
    process(root.path(), 43, "kube-apiserver", "kube-apiserver --secure-port=1");
    let host = Host::new(root.path(), Clock::system(), Places::default());
    let reading = read(&mut open(&host).unwrap(), &host).unwrap();
    let etcd = reading.etcd.clone().unwrap();
    assert_eq!(etcd.said, None, "whoever answers there is not the node's etcd");
    assert!(etcd.metrics_error.unwrap().contains("hostNetwork"));
    let apiserver = ApiServer { age_seconds: 600.0, ..reading.apiserver.clone().unwrap() };
    assert!(findings(None, Some(apiserver)).is_empty());
    let mut sink = Sink::default();
    metrics(&reading, &mut sink);
    let text = sink.encode();
    assert!(!text.contains("nodewhy_apiserver_healthy{"), "{text}");
}

fn serve(body: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut asked = [0; 1024];
            let _count = stream.read(&mut asked).unwrap();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all((head + body).as_bytes()).ok();
        }
    });
    address
}

#[test]
fn a_worker_is_absent_and_an_etcd_that_ends_is_gone() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(root.path().join("proc/1")).unwrap();
    let host = Host::new(root.path(), Clock::system(), Places::default());
    let mut source = open(&host).unwrap();
    let error = read(&mut source, &host).unwrap_err();
    assert!(matches!(error, ReadError::Absent { .. }), "{error}");
    let address = serve(METRICS);
    process(
        root.path(),
        42,
        "etcd",
        &format!("etcd --listen-metrics-urls=http://{address} --data-dir=/var/lib/etcd"),
    );
    source.searched = None;
    let reading = read(&mut source, &host).unwrap();
    let etcd = reading.etcd.clone().unwrap();
    assert_eq!((etcd.pid, etcd.is_gone, etcd.metrics_error), (Some(42), false, None));
    assert_eq!(etcd.said.unwrap().has_leader, Some(true));
    let mut sink = Sink::default();
    metrics(&reading, &mut sink);
    let text = sink.encode();
    assert!(
        text.contains("nodewhy_etcd_has_leader 1") && !text.contains("nodewhy_etcd_p99_seconds{"),
        "{text}"
    );
    std::fs::remove_dir_all(root.path().join("proc/42")).unwrap();
    let gone = read(&mut source, &host).unwrap().etcd.unwrap();
    assert!(gone.is_gone && gone.said.is_none(), "{gone:?}");
    process(root.path(), 43, "etcd", &format!("etcd --listen-metrics-urls=http://{address}"));
    assert!(!read(&mut source, &host).unwrap().etcd.unwrap().is_gone);
}

proptest! {
    #[test]
    fn a_cut_or_flipped_answer_is_never_a_false_zero(at in 0usize..9000, flip: u8) {
        let mut bytes = METRICS.as_bytes().to_vec();
        let at = at % bytes.len();
        for bytes in [bytes[..at].to_vec(), { bytes[at] ^= flip; bytes }] {
            let mut gathering = Gathering::new();
            gathering.feed(&bytes);
            if let Ok(said) = gathering.finish() {
                prop_assert!(said.quota_bytes != Some(0.0));
            }
        }
    }

    #[test]
    fn any_arguments_are_taken(arguments in proptest::collection::vec("\\PC{0,30}", 0..6)) {
        let _address = metrics_address(&arguments);
        apiserver::address(&arguments);
    }
}

#[test]
fn a_disk_that_becomes_slow_is_not_hidden_by_the_thousands_of_fast_writes_before() {
    let at_most = |bounds: &[(&str, u32)], count: u32, sum: f64| {
        let buckets: String = bounds
            .iter()
            .map(|(bound, below)| {
                format!("etcd_disk_wal_fsync_duration_seconds_bucket{{le=\"{bound}\"}} {below}\n")
            })
            .collect();
        said(&format!(
            "{buckets}etcd_disk_wal_fsync_duration_seconds_sum {sum}\netcd_disk_wal_fsync_duration_seconds_count {count}\n"
        ))
    };
    let mut history = History::default();
    let mut slow_since = None;
    for tick in 0..12u32 {
        // 5000 writes of 1 ms in ten seconds; from the fourth tick on four of 2 s.
        let (fast, slow) = (5000 * (tick.min(3) + 1), 4 * tick.saturating_sub(3));
        let answer = at_most(
            &[("0.001", fast), ("1.024", fast), ("2.048", fast + slow), ("+Inf", fast + slow)],
            fast + slow,
            1.0,
        );
        let latencies = history.take(Duration::from_secs(u64::from(10 * tick)), &answer);
        if latencies.wal_fsync.is_some_and(|fsync| fsync.p90_seconds > 1.0) {
            slow_since.get_or_insert(tick);
        }
    }
    assert_eq!(slow_since, Some(6), "as soon as ten writes were slow");
}
