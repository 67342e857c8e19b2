//! The API over its real listeners, with made-up collectors: one that reads, one that hangs, one that panics.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test stops at what it did not expect"
)]

mod support;

use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use nodewhy_agent::board::Board;
use nodewhy_agent::collector::{Abnormal, Collect, Collector, Noticed, Pair, never_woken};
use nodewhy_agent::host::{Host, Places, ReadError};
use nodewhy_agent::metrics::{Family, Sink};
use nodewhy_agent::node::Identity;
use nodewhy_agent::schedule::Schedule;
use nodewhy_agent::serve::{Api, Listeners};
use nodewhy_agent::thresholds::Thresholds;
use nodewhy_clock::{Clock, Mover};
use nodewhy_proto::{Severity, Subject};
use support::{Events, ask, get};

static COUNT: AtomicU64 = AtomicU64::new(0);
static SICK: AtomicBool = AtomicBool::new(false);
static HANGS: AtomicBool = AtomicBool::new(true);

static READS: Collector<(), u64> = made_up("reads", |_, _| Ok(COUNT.fetch_add(1, Ordering::SeqCst) + 1));
static HANG: Collector<(), u64> = made_up("hangs", |_, _| {
    while HANGS.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(7)
});
static PANIC: Collector<(), u64> = made_up("panics", |_, _| panic!("made to"));
static ABSENT: Collector<(), u64> = made_up("is_absent", |_, _| Err(ReadError::absent("not built in")));

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
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let any = SocketAddr::from(([127, 0, 0, 1], 0));
            let listeners =
                Listeners::bind(Some(&path), Some(any), Some("0123456789abcdef".into())).await.unwrap();
            sender.send(listeners.address().unwrap()).unwrap();
            let api = Arc::new(Api { board: board.clone(), identity });
            let watch = async {
                loop {
                    board.watch();
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            tokio::join!(listeners.serve(api), watch);
        });
    });
    let address = receiver.recv().unwrap();
    Running { socket, address, mover, _folder: folder, _schedule: schedule }
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
    assert_eq!(get(&agent.socket, "/readyz").status, 200);
    let now = state();
    assert!(now["hangs"]["since"].is_string());
    assert_eq!(now["panics"]["outcome"], "failed");
    assert!(now["panics"]["error"].as_str().unwrap().contains("the collector panicked: made to"));
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
fn the_socket_is_its_owners_alone_and_a_stale_one_is_replaced() {
    let agent = start();
    let mode = std::fs::metadata(&agent.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bind = |socket: &Path, listen: Option<&str>, token: Option<&str>| {
        let listen = listen.map(|text| text.parse().unwrap());
        let bound = runtime.block_on(Listeners::bind(Some(socket), listen, token.map(Arc::from)));
        bound.map_err(|error| error.to_string())
    };
    assert!(bind(&agent.socket, None, None).unwrap_err().contains("another program answers on"));
    let folder = tempfile::tempdir().unwrap();
    let stale = folder.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert!(stale.exists());
    drop(bind(&stale, None, None).unwrap());
    assert!(!stale.exists());
    // An agent that ends leaves alone what another one has put in its socket's place.
    let first = bind(&stale, None, None).unwrap();
    std::fs::remove_file(&stale).unwrap();
    let second = bind(&stale, None, None).unwrap();
    drop(first);
    assert!(stale.exists());
    drop(second);
    std::fs::write(&stale, "precious").unwrap();
    assert!(bind(&stale, None, None).unwrap_err().contains("is no socket"));
    assert_eq!(std::fs::read_to_string(&stale).unwrap(), "precious");

    let free = folder.path().join("free.sock");
    assert!(bind(&free, Some("0.0.0.0:0"), Some("t")).unwrap_err().contains("TLS is not there yet"));
    assert!(bind(&free, Some("127.0.0.1:0"), None).unwrap_err().contains("without --token-file"));
    assert!(bind(&free, Some("[::1]:0"), Some("0123456789abcdef")).is_ok());
}
