//! Against a real TLS server that serves what kubelets were recorded to say.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};

use nodewhy_clock::Clock;
use rustls_pki_types::PrivateKeyDer;

use super::*;
use crate::host::Places;

// Recorded from kubelets 1.32.6 and 1.36.2: GET /metrics and /configz on 10250, one pod of two containers, healthy.
const OLD: &str = include_str!("../../../../fixtures/kubelet/kubelet-1.32.6-metrics.txt");
const NEW: &str = include_str!("../../../../fixtures/kubelet/kubelet-1.36.2-metrics.txt");
const OLD_CONFIG: &str = include_str!("../../../../fixtures/kubelet/kubelet-1.32.6-configz.json");
const NEW_CONFIG: &str = include_str!("../../../../fixtures/kubelet/kubelet-1.36.2-configz.json");

/// The API machinery's words (apiserver/pkg/server/healthz) with the kubelet's checks.
const CHECKS_FAIL: &str =
    "[+]ping ok\n[+]log ok\n[-]syncloop failed: reason withheld\nhealthz check failed\n";

pub(in crate::collect::kubelet) struct Kubelet {
    folder: tempfile::TempDir,
    pub(in crate::collect::kubelet) address: SocketAddr,
}

type Answers = fn(&str) -> (u16, String);

impl Kubelet {
    /// Serves, until the test ends, to whoever has the token `sesame`.
    pub(in crate::collect::kubelet) fn start(answers: Answers) -> Kubelet {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.crt"), made.cert.pem()).unwrap();
        std::fs::write(folder.path().join("token"), "sesame\n").unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let session = rustls::ServerConnection::new(config.clone()).unwrap();
                serve(rustls::StreamOwned::new(session, stream.unwrap()), answers);
            }
        });
        Kubelet { folder, address }
    }

    fn places(&self) -> Places {
        Places {
            kubelet_api: Some(self.address),
            kubelet_token_file: Some(self.folder.path().join("token")),
            kubelet_ca_file: Some(self.folder.path().join("ca.crt")),
            ..Places::default()
        }
    }

    pub(in crate::collect::kubelet) fn host(&self) -> Host {
        Host::new("/", Clock::system(), self.places())
    }

    fn token(&self, token: &str) {
        std::fs::write(self.folder.path().join("token"), token).unwrap();
    }
}

fn serve(mut stream: rustls::StreamOwned<rustls::ServerConnection, std::net::TcpStream>, answers: Answers) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count == 1) {
        head.extend(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let Some(path) = head.split(' ').nth(1) else { return };
    let (code, body) = match head.contains("authorization: Bearer sesame\r\n") {
        true => answers(path),
        false => (401, "Unauthorized".to_owned()),
    };
    let length = body.len();
    let answer =
        format!("HTTP/1.1 {code} X\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(answer.as_bytes()).ok();
    stream.conn.send_close_notify();
    stream.flush().ok();
}

pub(in crate::collect::kubelet) fn well(path: &str) -> (u16, String) {
    let body = match path {
        "/metrics" => OLD,
        "/healthz?verbose" => "[+]ping ok\n[+]log ok\n[+]syncloop ok\nhealthz check passed\n",
        "/configz" => OLD_CONFIG,
        _ => return (404, "404 page not found\n".to_owned()),
    };
    (200, body.to_owned())
}

fn asker(kubelet: &Kubelet) -> Asker {
    let host = kubelet.host();
    let token = host.places().kubelet_token_file.clone().unwrap();
    Asker { host, token, board: Arc::default(), configured: None }
}

fn api(asker: &Asker) -> Api {
    let (stop, _stopped) = mpsc::channel();
    told(Some(&Asking { board: asker.board.clone(), _stop: stop }), &asker.host)
}

#[test]
fn the_recorded_kubelet_is_read_over_tls() {
    let kubelet = Kubelet::start(well);
    let mut asker = asker(&kubelet);
    asker.ask();
    let api = api(&asker);
    assert_eq!((api.metrics_error, api.checks_error, api.config_error), (None, None, None));
    let metrics = api.metrics.unwrap();
    assert_eq!(metrics.pleg_last_seen.unwrap().as_second(), 1_795_247_254);
    assert_eq!(metrics.running_pods, Some(1.0));
    assert_eq!(metrics.running_containers["running"], 2.0);
    assert_eq!(metrics.relist_interval_seconds.count, Some(69.0));
    assert_eq!(metrics.api_requests["200"], 32.0);
    assert_eq!(metrics.api_requests["404"], 29.0);
    assert_eq!(metrics.api_rate_limited_seconds.count, Some(58.0));
    assert!(metrics.operations["container_status"].total.unwrap() > 0.0);
    assert_eq!(metrics.operations["run_podsandbox"].seconds.buckets.len(), 15);
    assert_eq!(metrics.certificate_ttl_seconds, None, "this one does not renew its certificate");
    assert!(metrics.evictions.is_empty() && metrics.interval.is_none() && metrics.broken_lines == 0);
    assert_eq!(api.failing_checks, Some(Vec::new()));
    let config = api.config.unwrap();
    assert_eq!((config.max_pods, config.pod_pids_limit), (Some(110), Some(-1)));
    assert_eq!(config.eviction_hard.unwrap()["memory.available"], "100Mi");
    assert_eq!(api.pending_seconds, None);
    let size = serde_json::to_string(&super::told(None, &asker.host)).unwrap().len();
    assert!(size < 1500, "{size}");
}

#[test]
fn what_happened_between_two_readings() {
    let read = |text: &str| {
        let mut reader = Reader::new(gathered::WANTED);
        let mut gathered = Gathered::default();
        reader.feed(text.as_bytes(), &mut |sample| gathered.take(sample));
        assert_eq!(reader.finish().broken, 0);
        gathered
    };
    let (old, new) = (read(OLD), read(NEW));
    let passed = Duration::from_secs(15);
    let nothing = old.since(&old, passed).unwrap();
    assert_eq!((nothing.relists, nothing.relist_p99_seconds), (Some(0.0), None), "nothing is not fast");
    assert_eq!(nothing.slowest_operation, None);
    assert_eq!(old.since(&new, passed), None, "fewer relists than before: it began anew");
    // As in the recorded text, with the series of evictions as the 1.36.2 source has it.
    let more = format!(
        "{}kubelet_evictions{{eviction_signal=\"memory.available\"}} 2\n\
         rest_client_requests_total{{code=\"<error>\",host=\"10.88.0.1:6443\",method=\"GET\"}} 3\n\
         kubelet_certificate_manager_client_ttl_seconds 1800\n",
        OLD.replace(
            "kubelet_pleg_relist_duration_seconds_bucket{le=\"+Inf\"} 7",
            "kubelet_pleg_relist_duration_seconds_bucket{le=\"+Inf\"} 8"
        )
    );
    let more = read(&more);
    let interval = more.since(&old, passed).unwrap();
    assert_eq!((interval.evictions["memory.available"], interval.api_failures), (2.0, 3.0));
    assert_eq!(more.certificate_ttl_seconds, Some(1800.0));
    let at = |seconds: i64| Timestamp::from_second(1_795_247_254 + seconds).unwrap();
    assert_eq!(
        (old.pleg_age(at(70)), old.pleg_age(at(-1)), old.pleg_age(at(-60))),
        (Some(70.0), Some(0.0), None)
    );
    let stuck = Gathered { pleg_age_seconds: Some(61.0), interval: Some(nothing), ..old.clone() };
    assert!(stuck.pleg_is_suspect());
    let stepped = Interval { relists: Some(14.0), ..Interval::default() };
    assert!(!Gathered { interval: Some(stepped), ..stuck }.pleg_is_suspect(), "a clock that was stepped");
}

#[test]
fn each_refusal_says_what_to_do() {
    let kubelet = Kubelet::start(|path| {
        match path {
        "/metrics" => (
            403,
            "Forbidden (user=system:serviceaccount:nodewhy:agent, verb=get, resource=nodes, subresource(s)=[metrics])"
                .to_owned(),
        ),
        "/healthz?verbose" => (500, CHECKS_FAIL.to_owned()),
        _ => (200, NEW_CONFIG.replace("kubeletconfig", "other")),
    }
    });
    let mut asker = asker(&kubelet);
    asker.ask();
    let seen = api(&asker);
    let problem = seen.metrics_error.unwrap();
    assert_eq!(problem.kind, "forbidden");
    assert!(
        problem.error.contains("subresource(s)=[metrics]") && problem.error.ends_with("nodes/metrics"),
        "{problem:?}"
    );
    assert_eq!(seen.failing_checks.unwrap(), ["syncloop"]);
    assert_eq!(seen.config_error.unwrap().kind, "broken");

    // The token is read anew each time.
    kubelet.token("another");
    asker.ask();
    let seen = api(&asker);
    assert_eq!(seen.metrics_error.unwrap().kind, "unauthorized");
    assert_eq!(seen.checks_error.unwrap().kind, "unauthorized");
    kubelet.token("");
    asker.ask();
    assert_eq!(api(&asker).metrics_error.unwrap().kind, "token");
}

#[test]
fn a_token_is_never_sent_where_it_is_not_known_who_listens() {
    let kubelet = Kubelet::start(well);
    let root = tempfile::tempdir().unwrap();
    let places = Places { kubelet_ca_file: None, ..kubelet.places() };
    let host = Host::new(root.path(), Clock::system(), places);
    let token = host.places().kubelet_token_file.clone().unwrap();
    let mut asker = Asker { host, token, board: Arc::default(), configured: None };
    asker.ask();
    let problem = api(&asker).metrics_error.unwrap();
    assert_eq!(problem.kind, "not_roots");
    assert!(
        problem.error.contains("it was not sent") && problem.error.contains("kubelet_ca_file"),
        "{problem:?}"
    );
}

#[test]
fn without_a_token_the_missing_right_is_named() {
    let host = Host::new("/", Clock::system(), Places::default());
    assert!(Asking::start(&host).unwrap().is_none());
    let missing = told(None, &host).missing.unwrap();
    assert!(missing.contains("nodes/metrics") && missing.contains("sync loop"), "{missing}");
}

#[test]
fn checks_that_fail_without_a_name_fail_as_a_whole() {
    assert_eq!(failing(CHECKS_FAIL), ["syncloop"]);
    assert_eq!(failing("internal error"), ["whole"]);
    for cut in 0..CHECKS_FAIL.len() {
        assert!(!failing(&CHECKS_FAIL[..cut]).is_empty());
    }
}
