//! The live view, drawn on a terminal that is a buffer.

use jiff::Timestamp;
use nodewhy::live::{Act, Screen};
use nodewhy::watch::Snapshot;
use nodewhy_proto::{
    AgentInfo, CollectorState, Evidence, Finding, Incident, NodeId, NodeInfo, NodeSummary, Outcome, Severity,
    State, Subject, SubjectKind,
};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::verdicts::{self, at};

fn finding(name: &str, severity: Severity, began: &str, ended: Option<&str>, summary: &str) -> Finding {
    Finding {
        id: format!("{name}@{began}"),
        finding: name.to_owned(),
        collector: "pressure".to_owned(),
        subject: Subject::new(SubjectKind::Node, ""),
        severity,
        began: at(began),
        noticed: at(began),
        ended: ended.map(at),
        summary: summary.to_owned(),
        evidence: vec![Evidence::new("memory full avg10 71 %", "/proc/pressure/memory")],
    }
}

fn source(outcome: Outcome, reading: Option<serde_json::Value>, now: Timestamp) -> CollectorState {
    CollectorState {
        outcome,
        read_at: Some(now),
        age_seconds: Some(0.2),
        took_seconds: Some(0.000_1),
        every_seconds: 1.0,
        ticks: None,
        summary: None,
        reading,
    }
}

fn snapshot(now: Timestamp, memory: f64) -> Snapshot {
    let pressure = serde_json::json!({
        "cpu": {"some": {"avg10": 62.0}, "full": null},
        "memory": {"some": {"avg10": 80.0}, "full": {"avg10": memory}},
        "io": {"some": {"avg10": 14.0}, "full": {"avg10": 0.0}},
    });
    let absent = Outcome::Absent { why: "no CNI configuration folder, and no runtime is here".to_owned() };
    let collectors = [
        ("pressure", source(Outcome::Read, Some(pressure), now)),
        ("memory", source(Outcome::Read, None, now)),
        ("oom", source(Outcome::Read, None, now)),
        ("runtime", source(Outcome::Read, None, now)),
        ("cni", source(absent, None, now)),
        (
            "kubelet",
            source(Outcome::Failed { error: "cannot read /proc/998/stat: EACCES".to_owned() }, None, now),
        ),
    ];
    let mut collectors = collectors;
    collectors[1].1.summary = Some("82.1 MiB of 64.0 GiB available".to_owned());
    collectors[3].1.summary = Some("containerd 2.1.9 answers in 3 ms".to_owned());
    let state = State {
        node: "worker-7".to_owned(),
        now,
        collectors: collectors.into_iter().map(|(name, state)| (name.to_owned(), state)).collect(),
    };
    let node = NodeInfo {
        id: NodeId { name: "worker-7".to_owned(), ..Default::default() },
        now,
        uptime_seconds: 1_040_000.0,
        kernel: Some("6.1.0-56-cloud-amd64".to_owned()),
        os: Some("Debian GNU/Linux 12 (bookworm)".to_owned()),
        cgroups: None,
        cpus: Some(8),
        memory_total_bytes: None,
        runtime: Some("containerd 2.1.9".to_owned()),
        kubelet: Some("kubelet v1.36.2".to_owned()),
        distribution: None,
        shared_kernel: None,
        kernel_log: None,
        agent: AgentInfo {
            version: "0.1.0".to_owned(),
            started: now,
            host_root: "/".to_owned(),
            memory_locked: None,
        },
    };
    let summary = NodeSummary {
        name: "worker-7".to_owned(),
        ready: Some(nodewhy_proto::ConditionStatus::True),
        agent: "answers".to_owned(),
        agent_age_seconds: Some(0.1),
        lease_age_seconds: None,
        findings: Some(Vec::new()),
        incident: None,
    };
    let findings = vec![
        finding(
            "memory_thrash",
            Severity::Critical,
            "03:13:50",
            None,
            "full 71 %, refaults 48,000/s, oldest: gateway-7489-abcde",
        ),
        finding(
            "memory_available_low",
            Severity::Warning,
            "03:13:31",
            None,
            "memory.available 82.1 MiB, below 100 MiB",
        ),
        finding("io_stalled", Severity::Warning, "03:10:00", Some("03:11:16"), "io full 41 %"),
    ];
    Snapshot {
        at: now,
        node: Ok(node),
        state: Ok(state),
        findings: Ok(findings),
        summary: Ok(summary),
        incident: Ok(Some(Incident {
            began: at("03:13:50"),
            opened: at("03:13:50.4"),
            ..verdicts::incident_of(verdicts::oom())
        })),
        concluded: None,
    }
}

fn place() -> Vec<String> {
    vec![
        "cluster: context lab (https://192.0.2.7:6443); nodewhy only reads it".to_owned(),
        "sockets: /run/nodewhy/aggregator.sock (and agent.sock beside it)".to_owned(),
    ]
}

fn screen() -> Screen {
    let mut screen = Screen::new(place(), true);
    for (second, memory) in (0..12).zip([0.0, 0.0, 0.5, 1.0, 3.0, 9.0, 21.0, 36.0, 51.0, 60.0, 71.0, 71.0]) {
        screen.take(snapshot(
            at("03:13:45").checked_add(jiff::SignedDuration::from_secs(second)).unwrap(),
            memory,
        ));
    }
    screen
}

fn drawn(screen: &Screen, columns: u16, rows: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
    terminal.draw(|frame| screen.draw(frame, at("03:13:57"))).unwrap();
    let buffer = terminal.backend().buffer();
    let lines: Vec<String> = (0..rows)
        .map(|row| {
            (0..columns)
                .map(|column| buffer[(column, row)].symbol())
                .collect::<String>()
                .trim_end()
                .to_owned()
        })
        .collect();
    lines.join("\n") + "\n"
}

fn check(file: &str, text: &str) {
    let golden = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    if std::env::var_os("NODEWHY_BLESS").is_some() {
        std::fs::write(&golden, text).unwrap();
    }
    let wanted = verdicts::golden(file);
    assert!(text == wanted, "{file} is another now:\n{text}\n--- and was:\n{wanted}");
}

fn press(screen: &mut Screen, code: KeyCode) -> Act {
    screen.key(KeyEvent::new(code, KeyModifiers::NONE), at("03:13:57"))
}

#[test]
fn a_sick_node_on_80_by_24() {
    check("live.80x24.txt", &drawn(&screen(), 80, 24));
    check("live.120x40.txt", &drawn(&screen(), 120, 40));
    check("live.40x12.txt", &drawn(&screen(), 40, 12));
}

/// As many sources as the agent has, on a node that is sick: each is there, what is broken whole and first.
#[test]
fn seventeen_sources_stand_side_by_side_on_80_by_24() {
    let mut screen = screen();
    let mut many = snapshot(at("03:13:57"), 71.0);
    let names = [
        "cgroups",
        "conntrack",
        "netfilter",
        "disk",
        "tasks",
        "network",
        "api_server",
        "clock",
        "logs",
        "systemd",
        "changes",
    ];
    if let Ok(state) = &mut many.state {
        for (index, name) in names.into_iter().enumerate() {
            let mut one = source(Outcome::Read, None, at("03:13:57"));
            one.summary = Some(format!("{} of 262,144 entries; what else there is to say", index * 1000));
            state.collectors.insert(name.to_owned(), one);
        }
    }
    screen.take(many);
    let text = drawn(&screen, 80, 24);
    assert!(text.lines().all(|line| line.chars().count() <= 80));
    check("live.17-sources.80x24.txt", &text);
    for size in [(80, 30), (120, 24), (80, 50)] {
        let text = drawn(&screen, size.0, size.1);
        for name in names.into_iter().chain(["pressure", "memory", "oom", "runtime", "kubelet", "cni"]) {
            assert!(text.contains(&format!(" {name} ")), "{name} is not on {size:?}:\n{text}");
        }
        assert!(text.find("✗ kubelet").unwrap() < text.find("✓ cgroups").unwrap(), "{text}");
    }
    press(&mut screen, KeyCode::Char('s'));
    let page = drawn(&screen, 80, 24);
    assert!(page.contains("✗ kubelet") && page.contains("what else there is to say"), "{page}");
    press(&mut screen, KeyCode::Char('q'));
    assert_eq!(drawn(&screen, 80, 24), text);
}

#[test]
fn any_size_goes() {
    let mut screen = screen();
    for key in ['?', 'w', 's', 'q', '/'] {
        for (columns, rows) in (0..50).flat_map(|columns| (0..12).map(move |rows| (columns, rows))) {
            if columns > 0 && rows > 0 {
                drawn(&screen, columns, rows);
            }
        }
        press(&mut screen, KeyCode::Char(key));
    }
    press(&mut screen, KeyCode::Esc);
    press(&mut screen, KeyCode::Enter);
    for columns in 1..50 {
        drawn(&screen, columns, 5);
    }
}

#[test]
fn nothing_seen_yet_and_an_agent_that_is_silent() {
    let fresh = drawn(&Screen::new(place(), true), 80, 24);
    assert!(fresh.contains("looking…") && !fresh.contains("nothing abnormal"), "{fresh}");
    let mut screen = screen();
    let mut silent = snapshot(at("03:13:58"), 71.0);
    let error =
        || "cannot reach the agent at /run/nodewhy/agent.sock: nobody listens there any more".to_owned();
    silent.node = Err(error());
    silent.state = Err(error());
    silent.findings = Err(error());
    silent.incident = Err(error());
    screen.take(silent);
    let text = drawn(&screen, 80, 24);
    assert!(text.contains("pressure not known: the agent can't be asked"), "{text}");
    assert!(text.contains("cannot reach the agent") && !text.contains("nothing abnormal"), "{text}");
    assert!(text.contains("the agent can't be asked"), "{text}");
}

#[test]
fn nothing_abnormal_is_said_of_what_was_read_alone() {
    let mut screen = Screen::new(place(), true);
    let mut well = snapshot(at("03:13:57"), 0.0);
    well.findings = Ok(Vec::new());
    screen.take(well.clone());
    assert!(drawn(&screen, 80, 24).contains("nothing abnormal in the 4 sources that are read"));
    if let Ok(state) = &mut well.state {
        state.collectors.values_mut().for_each(|source| source.outcome = Outcome::Unknown);
    }
    screen.take(well);
    let text = drawn(&screen, 80, 24);
    assert!(text.contains("not known: no source was read") && !text.contains("nothing abnormal"), "{text}");
}

#[test]
fn what_is_to_be_done_is_told_whole_and_what_is_broken_first() {
    let mut screen = Screen::new(place(), true);
    let mut hung = snapshot(at("03:14:41"), 0.0);
    let mut verdict = verdicts::hung();
    verdict.roots[0].remedy = vec![
        "kill -CONT $(pidof containerd): its process is stopped by a signal, nothing in it is broken."
            .to_owned(),
    ];
    hung.incident = Ok(Some(Incident { began: at("03:14:27"), ..verdicts::incident_of(verdict) }));
    if let Ok(node) = &mut hung.node {
        node.runtime = Some("containerd 2.1.9 has not answered for 14 s".to_owned());
    }
    screen.take(hung.clone());
    let text = drawn(&screen, 80, 24);
    assert!(text.contains("nothing in it is broken."), "{text}");
    assert!(text.contains("containerd accepts connections and has answered nothing for 14.2 s."), "{text}");
    assert!(text.contains(" · containerd 2.1.9 · "), "{text}");
    assert!(text.find("✗ kubelet").unwrap() < text.find("✓ memory").unwrap(), "{text}");
    assert!(!drawn(&screen, 36, 24).contains("……"));

    hung.findings = Ok(Vec::new());
    hung.concluded = Some(verdicts::healthy());
    screen.take(hung);
    let text = drawn(&screen, 80, 24);
    assert!(
        text.contains(" now  no known cause holds any more") && text.contains(" was  The container"),
        "{text}"
    );
    assert!(!text.contains("kill -CONT"), "nothing is to be done any more: {text}");
}

#[test]
fn keys_open_pages_filter_choose_and_copy() {
    let mut screen = screen();
    press(&mut screen, KeyCode::Char('w'));
    assert!(drawn(&screen, 80, 24).contains("WHY  The kernel killed kubelet"));
    press(&mut screen, KeyCode::Char('G'));
    assert!(drawn(&screen, 80, 24).contains("MORE"));
    press(&mut screen, KeyCode::Char('q'));
    press(&mut screen, KeyCode::Down);
    press(&mut screen, KeyCode::Down);
    press(&mut screen, KeyCode::Enter);
    let text = drawn(&screen, 80, 24);
    assert!(text.contains("memory.available 82.1 MiB") && text.contains("/proc/pressure/memory"), "{text}");
    press(&mut screen, KeyCode::Esc);
    press(&mut screen, KeyCode::Char('/'));
    for letter in "thrash".chars() {
        press(&mut screen, KeyCode::Char(letter));
    }
    press(&mut screen, KeyCode::Enter);
    let text = drawn(&screen, 80, 24);
    assert!(text.contains("memory_thrash") && !text.contains("memory_available_low"), "{text}");
    assert!(text.contains("1 hidden by the filter"), "what is sick is never hidden without a word: {text}");
    press(&mut screen, KeyCode::Esc);
    assert!(drawn(&screen, 80, 24).contains("memory_available_low"));
    let Act::Copy(text) = press(&mut screen, KeyCode::Char('y')) else { panic!("nothing was copied") };
    assert!(text.contains("kubectl delete pod") && !text.contains('\u{1b}'), "{text}");
    assert_eq!(press(&mut screen, KeyCode::Char('q')), Act::Quit);
}

#[test]
fn names_cannot_drive_the_terminal() {
    let mut hostile = snapshot(at("03:13:57"), 71.0);
    let evil = "\u{1b}]52;c;ZXZpbA==\u{7}\u{1b}[2Jworse\u{202e}";
    hostile.findings = Ok(vec![finding(evil, Severity::Critical, "03:13:50", None, evil)]);
    hostile.incident = Ok(Some(Incident { ended: None, ..verdicts::incident_of(verdicts::hostile()) }));
    if let Ok(node) = &mut hostile.node {
        node.id.name = evil.to_owned();
        node.runtime = Some(evil.to_owned());
    }
    if let Ok(state) = &mut hostile.state {
        state.collectors.insert(
            evil.to_owned(),
            source(Outcome::Failed { error: evil.to_owned() }, None, at("03:13:57")),
        );
    }
    let mut screen = Screen::new(place(), true);
    screen.take(hostile);
    for key in ['w', 's', 'q', '/'] {
        let text = drawn(&screen, 100, 40);
        assert!(!text.contains("52;c;") && !text.contains("[2J"), "{text}");
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'));
        press(&mut screen, KeyCode::Char(key));
    }
}
