//! The API over its real listeners, with made-up collectors: one that reads, one that hangs, one that panics.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test stops at what it did not expect"
)]

mod support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use nodewhy_agent::board::Board;
use nodewhy_agent::collector::{
    Abnormal, Ask, AskError, Collect, Collector, Noticed, Page, Pair, never_woken,
};
use nodewhy_agent::host::{Host, Places, ReadError};
use nodewhy_agent::metrics::{Family, Sink};
use nodewhy_agent::node::Identity;
use nodewhy_agent::schedule::Schedule;
use nodewhy_agent::serve::{Api, CredentialFiles, Listen, Listeners};
use nodewhy_agent::thresholds::Thresholds;
use nodewhy_clock::{Clock, Mover};
use nodewhy_proto::{Severity, Subject};
use support::{Events, ask, get};

static COUNT: AtomicU64 = AtomicU64::new(0);
static SICK: AtomicBool = AtomicBool::new(false);
static HANGS: AtomicBool = AtomicBool::new(true);

static READS: Collector<(), u64> = Collector {
    pages: PAGES,
    asks: ASKS,
    ..made_up("reads", |_, _| Ok(COUNT.fetch_add(1, Ordering::SeqCst) + 1))
};
static HANG: Collector<(), u64> = made_up("hangs", |_, _| {
    while HANGS.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(7)
});
static PANIC: Collector<(), u64> = made_up("panics", |_, _| panic!("made to"));
static ABSENT: Collector<(), u64> = Collector {
    pages: &[Page { path: "/api/v1/absent", about: "Nothing.", json: |count| Ok((*count).into()) }],
    ..made_up("is_absent", |_, _| Err(ReadError::absent("not built in")))
};

static PAGES: &[Page<u64>] = &[Page {
    path: "/api/v1/pods",
    about: "The count, at length.",
    json: |count| Ok(vec![*count; 3].into()),
}];
static ASKS: &[Ask] = &[Ask {
    path: "/api/v1/conntrack/top",
    about: "What `how` says.",
    parameters: &[("how", "which way it goes")],
    deadline: Duration::from_millis(200),
    answer: asked,
}];
static ASK_HANGS: AtomicBool = AtomicBool::new(true);

fn asked(_: &Host, parameters: &BTreeMap<String, String>) -> Result<serde_json::Value, AskError> {
    match parameters.get("how").map(String::as_str) {
        None => Ok(serde_json::json!({"entries": 12})),
        Some("absent") => Err(ReadError::absent("nf_conntrack is not loaded").into()),
        Some("fails") => Err(ReadError::malformed("/proc/net/x", "it is rubbish").into()),
        Some("panics") => panic!("made to"),
        Some("hangs") => {
            while ASK_HANGS.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(serde_json::json!("late"))
        }
        Some(other) => Err(AskError::Parameter(format!("how={other:?} is no way"))),
    }
}

static FAMILIES: &[&Family] = &[&MADE_UP];
static MADE_UP: Family = Family::counter("nodewhy_made_up_total", "Readings.");

const fn made_up(
    name: &'static str,
    read: fn(&mut (), &Host) -> Result<u64, ReadError>,
) -> Collector<(), u64> {
    Collector {
        name,
        every: Duration::from_millis(50),
        deadline: Duration::from_millis(200),
        remembers: false,
        open: |_| Ok(()),
        read,
        wake: never_woken,
        summary: |count| format!("{count} readings"),
        families: FAMILIES,
        metrics: |count, sink: &mut Sink| sink.put(&MADE_UP, &[], *count as f64),
        limits: &[],
        detect,
        pages: &[],
        asks: &[],
    }
}

fn detect(_: Pair<'_, u64>, _: &Thresholds, noticed: &mut Noticed) {
    if SICK.load(Ordering::SeqCst) {
        noticed.states.push(Abnormal {
            finding: "made_up_sickness",
            subject: Subject::node(),
            severity: Severity::Critical,
            summary: "made sick".to_owned(),
            evidence: Vec::new(),
            since: None,
            hold: Duration::ZERO,
            clear_after: Duration::ZERO,
        });
    }
}

struct Running {
    socket: PathBuf,
    address: SocketAddr,
    metrics: SocketAddr,
    mover: Mover,
    _folder: tempfile::TempDir,
    _schedule: Schedule,
}

fn start() -> Running {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("run/agent.sock");
    let (clock, mover) = Clock::skippable();
    let host = Host::new(folder.path(), clock.clone(), Places::default());
    let identity = Identity::read(&host, Some("worker-7"));
    let list: [&'static dyn Collect; 4] = [&READS, &HANG, &PANIC, &ABSENT];
    let board = Arc::new(Board::new("worker-7".to_owned(), None, clock.clone(), &list, |_| true));
    let thresholds = Arc::new(RwLock::new(Thresholds::default()));
    let schedule = Schedule::start(&board, &host, &thresholds).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    let path = socket.clone();
    let token = secret(folder.path(), "0123456789abcdef");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let any = SocketAddr::from(([127, 0, 0, 1], 0));
            let files = CredentialFiles { token: Some(token), ..CredentialFiles::default() };
            let listen = Listen { socket: Some(path), address: Some(any), metrics: Some(any), files };
            let listeners = Listeners::bind(&listen).await.unwrap();
            sender.send((listeners.address().unwrap(), listeners.metrics_address().unwrap())).unwrap();
            let api = Arc::new(Api::new(board.clone(), identity, &host).unwrap());
            let watch = async {
                loop {
                    board.watch();
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            tokio::join!(listeners.serve(api), watch);
        });
    });
    let (address, metrics) = receiver.recv().unwrap();
    Running { socket, address, metrics, mover, _folder: folder, _schedule: schedule }
}

fn secret(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("token");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..500 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("waited 10 s in vain for: {what}");
}

#[test]
fn one_hung_collector_costs_itself_alone_and_its_age_is_served() {
    let agent = start();
    let state = || get(&agent.socket, "/api/v1/state").json()["collectors"].clone();
    wait_for("the hung one to be stuck", || state()["hangs"]["outcome"] == "stuck");
    // To print its backtrace may take longer than its deadline.
    wait_for("the panic, in words", || {
        let now = state()["panics"].clone();
        now["outcome"] == "failed"
            && now["error"].as_str().is_some_and(|error| error.contains("the collector panicked: made to"))
    });
    assert_eq!(get(&agent.socket, "/readyz").status, 200);
    let now = state();
    assert!(now["hangs"]["since"].is_string());
    assert_eq!(
        (&now["is_absent"]["outcome"], &now["is_absent"]["why"]),
        (&"absent".into(), &"not built in".into())
    );
    let before = COUNT.load(Ordering::SeqCst);
    wait_for("the other to go on", || COUNT.load(Ordering::SeqCst) > before + 5);
    let findings = get(&agent.socket, "/api/v1/findings").json();
    let stuck = findings.as_array().unwrap().iter().find(|f| f["finding"] == "source_stuck").unwrap();
    assert_eq!((&stuck["subject"]["name"], &stuck["ended"]), (&"hangs".into(), &serde_json::Value::Null));

    let scrape = get(&agent.socket, "/metrics").body;
    for line in [
        "nodewhy_collector_outcome{collector=\"hangs\",outcome=\"stuck\"} 1",
        "nodewhy_collector_success{collector=\"reads\"} 1",
        "nodewhy_collector_success{collector=\"is_absent\"} 0",
        "nodewhy_finding_active{finding=\"source_stuck\",severity=\"warning\"} 1",
    ] {
        assert!(scrape.contains(line), "{line} is not in\n{scrape}");
    }
    // The hung one never read: no age, no value of its.
    assert!(!scrape.contains("nodewhy_collector_reading_age_seconds{collector=\"hangs\"}"));

    // Its hanging ages, though it never read.
    let hung = |scrape: &str| -> Option<f64> {
        let prefix = "nodewhy_collector_stuck_seconds{collector=\"hangs\"} ";
        scrape.lines().find_map(|line| line.strip_prefix(prefix))?.parse().ok()
    };
    let before = hung(&scrape).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert!(hung(&get(&agent.socket, "/metrics").body).unwrap() > before && before > 0.2);

    // So is it late, long before its read ends.
    let late = || state()["hangs"]["ticks"]["late"].as_u64().unwrap();
    wait_for("the hung one to be late", || late() > 0);
    let hanging = state()["hangs"]["ticks"].clone();
    assert_eq!(hanging["newest_late"][0]["is_over"], false);
    let scrape = get(&agent.socket, "/metrics").body;
    assert!(scrape.contains("nodewhy_collector_late_ticks_total{collector=\"hangs\"}"));
    assert!(!scrape.contains("nodewhy_collector_late_ticks_total{collector=\"hangs\"} 0"), "{scrape}");

    HANGS.store(false, Ordering::SeqCst);
    wait_for("the hung one to read", || state()["hangs"]["outcome"] == "read");
    wait_for("its finding to end", || {
        let findings = get(&agent.socket, "/api/v1/findings").json();
        findings.as_array().unwrap().iter().all(|f| f["ended"].is_string())
    });
    let ended = state()["hangs"]["ticks"].clone();
    assert!(late() >= hanging["late"].as_u64().unwrap(), "what was late stays so");
    assert_eq!(ended["newest_late"][0]["is_over"], true);
    let longest = |ticks: &serde_json::Value| ticks["longest_delay_seconds"].as_f64().unwrap();
    assert!(longest(&ended) >= longest(&hanging) && longest(&hanging) > 0.25);
    assert!(state()["reads"]["ticks"]["total"].as_u64().unwrap() > 5);
}

#[test]
fn events_are_streamed_resumed_and_never_repeated() {
    let agent = start();
    let mut events = Events::open(&agent.socket, "", "");
    let first = events.next();
    assert_eq!(first.kind, "outcome_changed");
    SICK.store(true, Ordering::SeqCst);
    let began = loop {
        let event = events.next();
        if event.kind == "finding_began" && event.data["finding"]["finding"] == "made_up_sickness" {
            break event;
        }
    };
    SICK.store(false, Ordering::SeqCst);
    // Another reader takes up where the first one stopped, by the query or by the standard header.
    for (query, header) in [
        (format!("?after={}", began.id), String::new()),
        (String::new(), format!("Last-Event-ID: {}\r\n", began.id)),
    ] {
        let mut resumed = Events::open(&agent.socket, &query, &header);
        let next = resumed.next();
        assert_ne!(next.id, began.id);
        let sequence = |id: &str| id.split_once('-').unwrap().1.parse::<u64>().unwrap();
        assert_eq!(sequence(&next.id), sequence(&began.id) + 1);
    }
    let mut lost = Events::open(&agent.socket, "?after=ffffff-12", "");
    let gap = lost.next();
    assert_eq!((gap.kind.as_str(), &gap.data["from"]), ("gap", &"ffffff-12".into()));
    assert_eq!(lost.next().id, gap.data["to"].as_str().unwrap());
    assert_eq!(get(&agent.socket, "/api/v1/events?after=rubbish").status, 400);

    agent.mover.step_wall(jiff::SignedDuration::from_secs(-3600));
    loop {
        let event = events.next();
        if event.kind == "clock_stepped" {
            assert!((event.data["seconds"].as_f64().unwrap() + 3600.0).abs() < 5.0);
            break;
        }
    }
}

#[test]
fn only_metrics_and_health_are_open_on_loopback() {
    let agent = start();
    let tcp =
        |path: &str, headers: &str| ask(TcpStream::connect(agent.address).unwrap(), "GET", path, headers);
    assert_eq!(tcp("/healthz", "").status, 200);
    assert_eq!(tcp("/metrics", "").status, 200);
    let wrong =
        ["", "Authorization: Bearer 0123456789abcdeg\r\n", "Authorization: Basic 0123456789abcdef\r\n"];
    for path in
        ["/api/v1/node", "/api/v1/state", "/api/v1/findings", "/api/v1/events", "/api/v1/kmsg", "/nowhere"]
    {
        for headers in wrong {
            let refused = tcp(path, headers);
            assert_eq!(refused.status, 401, "{path} {headers}");
            assert!(refused.head.contains("application/problem+json"));
            assert_eq!(refused.json()["status"], 401);
        }
    }
    let right = "authorization: bearer 0123456789abcdef\r\n";
    assert_eq!(tcp("/api/v1/node", right).json()["id"]["name"], "worker-7");
    assert_eq!(tcp("/nowhere", right).status, 404);
    let head = ask(TcpStream::connect(agent.address).unwrap(), "HEAD", "/api/v1/node", right);
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    let post = ask(TcpStream::connect(agent.address).unwrap(), "POST", "/api/v1/node", right);
    assert_eq!(post.status, 405);
    assert!(post.head.to_lowercase().contains("allow: get, head"));
    // A made-up list has no collector oom: no kernel log, and the reason.
    assert_eq!(get(&agent.socket, "/api/v1/kmsg").status, 503);
}

#[test]
fn pages_are_the_newest_readings_and_say_how_old_they_are() {
    let agent = start();
    wait_for("a reading", || get(&agent.socket, "/api/v1/pods").status == 200);
    let page = get(&agent.socket, "/api/v1/pods").json();
    assert_eq!((&page["collector"], &page["outcome"]), (&"reads".into(), &"read".into()));
    assert_eq!(page["page"].as_array().unwrap().len(), 3);
    assert!(page["age_seconds"].as_f64().unwrap() < 10.0 && page["read_at"].is_string());
    wait_for("the absence", || get(&agent.socket, "/api/v1/absent").body.contains("not built in"));
    let absent = get(&agent.socket, "/api/v1/absent");
    assert_eq!(absent.status, 503);
    assert_eq!(
        absent.json()["detail"],
        "/api/v1/absent cannot be shown: is_absent has no reading: not built in"
    );
}

#[test]
fn what_is_asked_for_is_read_apart_and_its_hanging_is_told() {
    let agent = start();
    let how = |how: &str| get(&agent.socket, &format!("/api/v1/conntrack/top{how}"));
    let read = how("").json();
    assert_eq!((&read["outcome"], &read["answer"]["entries"]), (&"read".into(), &12.into()));
    let absent = how("?how=absent");
    assert_eq!((absent.status, &absent.json()["why"]), (200, &"nf_conntrack is not loaded".into()));
    for (query, status, words) in [
        ("?how=fails", 503, "cannot understand /proc/net/x: it is rubbish"),
        ("?how=panics", 500, "panicked: made to"),
        ("?how=sideways", 400, "is no way"),
        ("?who=me", 400, "takes how"),
        ("?how=absent&how=fails", 400, "given twice"),
        ("?how=%61bsent", 200, ""),
        ("?how=%ff", 400, "is no way"),
    ] {
        let answer = how(query);
        assert_eq!(answer.status, status, "{query}: {}", answer.body);
        assert!(answer.body.contains(words), "{query}: {}", answer.body);
    }
    // One hangs; a second one is not begun, and is told at once that the first hangs.
    let first = how("?how=hangs");
    assert_eq!(first.status, 504);
    assert!(first.json()["detail"].as_str().unwrap().contains("has hung since 2"), "{}", first.body);
    let before = std::time::Instant::now();
    assert_eq!(how("").status, 504);
    assert!(before.elapsed() < Duration::from_millis(150), "it waited {:?}", before.elapsed());
    // Nothing else waits for it.
    assert_eq!(get(&agent.socket, "/api/v1/node").status, 200);
    ASK_HANGS.store(false, Ordering::SeqCst);
    wait_for("the first to end", || how("").status == 200);
}

#[test]
fn what_is_not_understood_is_refused_in_words() {
    let agent = start();
    let ask = |method: &str, path: &str, headers: &str| {
        ask(std::os::unix::net::UnixStream::connect(&agent.socket).unwrap(), method, path, headers)
    };
    for (path, status) in [
        ("/api/v1/state?readings=false", 200),
        ("/api/v1/state?readings=maybe", 400),
        ("/api/v1/state?reading=false", 400),
        ("/api/v1/node?pretty", 400),
        ("/api/v1/events?after=", 400),
        ("/api/v1/events?after=%00", 400),
        ("/metrics?x=1", 400),
        ("/api/v1", 404),
        ("/api/v1/state/", 404),
        ("/API/v1/state", 404),
        ("//metrics", 404),
    ] {
        let answer = ask("GET", path, "");
        assert_eq!(answer.status, status, "{path}: {}", answer.body);
        if status != 200 {
            assert_eq!(answer.json()["status"], status, "{path}");
        }
    }
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
        let answer = ask(method, "/api/v1/state", "");
        assert_eq!(answer.status, 405, "{method}");
        assert!(answer.head.to_lowercase().contains("allow: get, head"), "{}", answer.head);
    }
    let head = ask("HEAD", "/api/v1/state", "");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert_eq!(ask("GET", "/api/v1/events", "Last-Event-ID: \u{e9}\r\n").status, 400);
    let many = "X: y\r\n".repeat(200);
    assert_eq!(ask("GET", "/healthz", &many).status, 431);
    // What is too long is not read to its end, and the kernel then resets the connection, at times before the answer.
    let mut long = std::os::unix::net::UnixStream::connect(&agent.socket).unwrap();
    let head = format!("GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "a".repeat(64 * 1024));
    let mut said = Vec::new();
    if long.write_all(head.as_bytes()).is_ok() {
        long.read_to_end(&mut said).ok();
    }
    assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&said));
    assert_eq!(ask("GET", "/healthz", "").status, 200);
}

#[test]
fn the_address_of_metrics_shows_nothing_else() {
    let agent = start();
    let tcp =
        |path: &str, headers: &str| ask(TcpStream::connect(agent.metrics).unwrap(), "GET", path, headers);
    for path in ["/metrics", "/healthz"] {
        assert_eq!(tcp(path, "").status, 200, "{path}");
    }
    let right = "authorization: bearer 0123456789abcdef\r\n";
    for path in ["/api/v1/node", "/api/v1/state", "/api/v1/pods", "/api/v1/openapi.json", "/nowhere"] {
        for headers in ["", right] {
            let refused = tcp(path, headers);
            assert_eq!(refused.status, 404, "{path}");
            assert!(refused.body.contains("it has /metrics /healthz /readyz"), "{}", refused.body);
        }
    }
}

#[test]
fn the_description_has_every_path_and_every_reference_in_it_leads_somewhere() {
    let agent = start();
    let document = get(&agent.socket, "/api/v1/openapi.json").json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let paths = document["paths"].as_object().unwrap();
    for path in ["/metrics", "/readyz", "/api/v1/state", "/api/v1/pods", "/api/v1/conntrack/top"] {
        assert!(paths.contains_key(path), "{path}");
    }
    assert_eq!(paths["/api/v1/conntrack/top"]["get"]["parameters"][0]["name"], "how");
    assert!(paths["/api/v1/conntrack/top"]["get"]["responses"]["504"].is_object());
    assert_eq!(paths["/metrics"]["get"]["security"], serde_json::json!([]));
    fn references<'a>(value: &'a serde_json::Value, found: &mut Vec<&'a str>) {
        match value {
            serde_json::Value::Object(members) => {
                found.extend(members.get("$ref").and_then(|it| it.as_str()));
                members.values().for_each(|member| references(member, found));
            }
            serde_json::Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 20, "{found:?}");
    for reference in found {
        assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference} leads nowhere");
    }
}

#[test]
fn the_socket_is_its_owners_alone_and_a_stale_one_is_replaced() {
    let agent = start();
    let mode = std::fs::metadata(&agent.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let token_file = secret(folder.path(), "0123456789abcdef");
    let bind = |socket: &Path, address: Option<&str>, token: bool| {
        let listen = Listen {
            socket: Some(socket.to_owned()),
            address: address.map(|text| text.parse().unwrap()),
            metrics: None,
            files: CredentialFiles { token: token.then(|| token_file.clone()), ..CredentialFiles::default() },
        };
        runtime.block_on(Listeners::bind(&listen)).map_err(|error| error.to_string())
    };
    assert!(bind(&agent.socket, None, false).unwrap_err().contains("another program answers on"));
    let stale = folder.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert!(stale.exists());
    drop(bind(&stale, None, false).unwrap());
    assert!(!stale.exists());
    // An agent that ends leaves alone what another one has put in its socket's place.
    let first = bind(&stale, None, false).unwrap();
    std::fs::remove_file(&stale).unwrap();
    let second = bind(&stale, None, false).unwrap();
    drop(first);
    assert!(stale.exists());
    drop(second);
    std::fs::write(&stale, "precious").unwrap();
    assert!(bind(&stale, None, false).unwrap_err().contains("is no socket"));
    assert_eq!(std::fs::read_to_string(&stale).unwrap(), "precious");

    let free = folder.path().join("free.sock");
    assert!(bind(&free, Some("0.0.0.0:0"), true).unwrap_err().contains("without TLS"));
    assert!(bind(&free, Some("127.0.0.1:0"), false).unwrap_err().contains("without --token-file"));
    assert!(bind(&free, None, true).unwrap_err().contains("no --listen"));
    assert!(bind(&free, Some("[::1]:0"), true).is_ok());
}
