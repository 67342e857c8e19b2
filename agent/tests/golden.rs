//! What the agent says of a recorded host's root, word for word: `/metrics` and `/api/v1/state`.
//!
//! `NODEWHY_BLESS=1` writes the files anew; read the difference before you commit it. Needs `promtool` (package
//! `prometheus`).

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test reads its golden files, starts promtool, and stops at what it did not expect"
)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::Request;
use nodewhy_agent::Agent;
use nodewhy_agent::host::Places;
use nodewhy_agent::serve::{Api, Door};
use nodewhy_agent::settings::Settings;
use nodewhy_clock::{Clock, Mover};
use serde_json::Value;

/// Keys of the JSON whose values are times, ages and durations.
const TIMES: &[&str] = &[
    "now",
    "at",
    "read_at",
    "since",
    "started",
    "modified",
    "unanswered_since",
    "healthz_answered",
    "age_seconds",
    "boot_seconds",
    "for_seconds",
    "took_seconds",
    "uptime_seconds",
];
/// Metrics whose values are times, ages and durations, or count the agent's own tries.
const MOVING: &[&str] = &[
    "nodewhy_collector_duration_seconds",
    "nodewhy_collector_late_ticks_total",
    "nodewhy_collector_missed_ticks_total",
    "nodewhy_collector_reading_age_seconds",
    "nodewhy_collector_failures_total",
    "nodewhy_collector_tick_delay_max_seconds",
    "nodewhy_collector_ticks_total",
    "nodewhy_collector_tries_total",
    "nodewhy_kubelet_healthz_duration_seconds",
    "nodewhy_kubelet_uptime_seconds",
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_threads",
    "nodewhy_uptime_seconds",
];

#[test]
fn a_recorded_node_is_told_word_for_word() {
    let answer: &[u8] = include_bytes!("../fixtures/kubelet/kubelet-1.36.2-healthz-http.txt");
    let names = ["cni_agent_down", "cni_plugin_missing", "runtime_socket_missing"];
    compare("linux-6.18", serve(answer), &names);
}

#[test]
fn an_empty_root_is_told_word_for_word_and_has_no_findings() {
    compare("bare", nobody(), &[]);
}

/// Starts the agent on this root, waits for what must be found and no more, and compares what it says.
fn compare(tree: &str, kubelet_healthz: SocketAddr, names: &[&str]) {
    let (agent, mover) = start(tree, kubelet_healthz);
    let board = agent.board().clone();
    wait("every collector has read", || board.is_ready());
    // Past every hold: the next readings decide.
    mover.skip(Duration::from_secs(70));
    let found = || {
        let mut found: Vec<String> = board.findings().into_iter().map(|finding| finding.finding).collect();
        found.sort();
        found
    };
    wait("the findings are there", || found() == names);
    let api = agent.api().unwrap();
    same(&format!("{tree}.state.json"), || steady_state(&ask(&api, "/api/v1/state")));
    same(&format!("{tree}.metrics.txt"), || {
        let text = ask(&api, "/metrics");
        promtool(&text);
        steady_metrics(&text)
    });
    assert_eq!(found(), names, "nothing else is abnormal");
}

fn start(tree: &str, kubelet_healthz: SocketAddr) -> (Agent, Mover) {
    let (clock, mover) = Clock::skippable();
    // A day after the boot, whenever this machine was booted: the recorded kubelet began 24 minutes after its own.
    mover.skip(Duration::from_secs(24 * 60 * 60));
    let settings = Settings {
        host_root: folder("fixtures/hosts").join(tree),
        places: Places { kubelet_healthz: Some(kubelet_healthz), ..Places::default() },
        // It tells when files were written, and a checkout writes all of them anew.
        disabled: ["changes".to_owned()].into(),
        ..Settings::default()
    };
    (Agent::start(&settings, clock).unwrap(), mover)
}

fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Answers every request with these bytes, until the test ends.
fn serve(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // One that hung up is not asked why.
            if stream.read(&mut [0; 1024]).is_ok() {
                stream.write_all(answer).ok();
            }
        }
    });
    address
}

/// An address at which nobody listens.
fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn ask(api: &Api, path: &str) -> String {
    let request = Request::get(path).body(String::new()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let response = runtime.block_on(api.answer(&request, &Door::Socket));
    assert_eq!(response.status(), 200, "{path}");
    let body = runtime.block_on(response.into_body().collect()).unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

fn steady_state(text: &str) -> String {
    fn steady(value: &mut Value) {
        match value {
            Value::Object(members) => {
                for (key, member) in members {
                    let is_time = TIMES.contains(&key.as_str()) && (member.is_number() || member.is_string());
                    // How late this machine was; the numbers have tests of their own.
                    if key == "ticks" {
                        *member = "<moves>".into();
                    } else if is_time {
                        *member = "<time>".into()
                    } else {
                        steady(member)
                    }
                }
            }
            Value::Array(items) => items.iter_mut().for_each(steady),
            _ => {}
        }
    }
    let mut state: Value = serde_json::from_str(text).unwrap();
    steady(&mut state);
    // The kubelet's summary has the ping's milliseconds, which stand in `took_seconds` as well.
    if let Some(Value::String(summary)) = state.pointer_mut("/collectors/kubelet/summary")
        && let Some((head, _)) = summary.split_once(" its ping in ")
    {
        *summary = format!("{head} its ping in <time>");
    }
    serde_json::to_string_pretty(&state).unwrap() + "\n"
}

fn steady_metrics(text: &str) -> String {
    let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
    let steady = |line: &str| match line.split_once(['{', ' ']) {
        Some((name, _)) if MOVING.contains(&name) => {
            let (series, _) = line.rsplit_once(' ').unwrap();
            format!("{series} <moves>\n")
        }
        _ => format!("{}\n", line.replace(&version, "version=\"<version>\"")),
    };
    text.lines().map(steady).collect()
}

/// Compares with the golden file. A call that is in flight at this very instant is gone a moment later, so a
/// difference counts only if it stays.
fn same(name: &str, said: impl Fn() -> String) {
    let path = folder("tests/golden").join(name);
    if std::env::var_os("NODEWHY_BLESS").is_some() {
        std::fs::create_dir_all(folder("tests/golden")).unwrap();
        return std::fs::write(&path, said()).unwrap();
    }
    let golden = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; NODEWHY_BLESS=1 writes it", path.display()));
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let said = said();
        if said == golden {
            return;
        }
        if Instant::now() > end {
            let differs = golden.lines().zip(said.lines()).find(|(golden, said)| golden != said);
            panic!(
                "{} differs, first at {differs:#?}; if that is right: NODEWHY_BLESS=1\n{said}",
                path.display()
            );
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn wait(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < end, "it never came: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Prometheus' own check of names, types and help; it must have nothing to say.
fn promtool(text: &str) {
    let spawned = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child =
        spawned.unwrap_or_else(|error| panic!("promtool is missing ({error}): apt-get install prometheus"));
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}
