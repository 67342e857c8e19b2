//! The pages of `nodewhy why`, held against golden files: what a terminal of 80 columns shows, and what a pipe gets.
//! `NODEWHY_BLESS=1 cargo test -p nodewhy` writes them anew; read the difference before you commit it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test; clippy sees only the #[test] functions as such"
)]

use std::path::PathBuf;

use nodewhy::render::Style;
use nodewhy::render::text::width;
use nodewhy::render::why::{Answer, page, recovering};

#[path = "screens/live.rs"]
mod live;
#[path = "screens/verdicts.rs"]
mod verdicts;

const TERMINAL: Style = Style { width: 80, colour: false, drawing: true };

fn check(name: &str, answer: Answer<'_>) {
    for (form, style) in [("terminal", TERMINAL), ("pipe", Style::PIPE)] {
        let text = page(answer, style).text(style);
        for line in text.lines() {
            assert!(width(line) <= 80, "{name}, {form}: more than 80 columns: {line:?}");
            assert_eq!(line, line.trim_end());
        }
        assert!(!text.contains('\u{1b}'), "{name}, {form}: colour where none was asked for");
        assert!(
            form == "terminal" || !text.contains(|c| "┬├└│╭╰─▶".contains(c)),
            "{name}: drawn in a pipe:\n{text}"
        );
        let file = format!("{name}.{form}.txt");
        let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(&file);
        if std::env::var_os("NODEWHY_BLESS").is_some() {
            std::fs::write(&golden, &text).unwrap();
        }
        let wanted = verdicts::golden(&file);
        assert!(text == wanted, "{file} is another now:\n{text}\n--- and was:\n{wanted}");
    }
}

#[test]
fn a_cause_on_the_node() {
    let incident = verdicts::incident_of(verdicts::oom());
    let answer = Answer {
        incident: Some((&incident, &incident.revisions[0])),
        near: &["containerd_dead", "containerd_hung"],
        ..Answer::of(&incident.revisions[0].verdict, verdicts::at("03:18:54"))
    };
    check("oom", answer);
}

#[test]
fn a_cause_that_is_not_on_the_node() {
    let verdict = verdicts::control_plane();
    check("control-plane", Answer::of(&verdict, verdicts::at("03:04:13")));
}

#[test]
fn no_cause_found() {
    let verdict = verdicts::nothing_found();
    check("no-cause", Answer::of(&verdict, verdicts::at("04:11:02")));
    let unasked = nodewhy_proto::Verdict { ready: None, ..verdict };
    let text = page(Answer::of(&unasked, verdicts::at("04:11:02")), Style::PIPE).text(Style::PIPE);
    assert!(text.starts_with("worker-9   unclear   Ready not known"), "nobody knows that it is sick: {text}");
}

#[test]
fn a_critical_finding_that_no_cause_cites_is_not_hidden() {
    let mut verdict = verdicts::nothing_found();
    let summary = "NetworkReady=false: cni plugin not initialized; no network config found in /etc/cni/net.d";
    verdict.unexplained = vec![verdicts::sick("runtime_network_not_ready", summary)];
    check("unexplained", Answer::of(&verdict, verdicts::at("04:11:02")));
}

#[test]
fn a_deadlock() {
    let verdict = verdicts::deadlock();
    check("deadlock", Answer::of(&verdict, verdicts::at("05:00:00")));
}

#[test]
fn before_ready_is_lost_what_is_to_come_is_told_as_such() {
    let verdict = verdicts::hung();
    check("hung", Answer::of(&verdict, verdicts::at("03:14:41")));
    let text = page(Answer::of(&verdict, verdicts::at("03:14:41")), Style::PIPE).text(Style::PIPE);
    assert!(text.contains("expected in 1m46s: kubelet gives the runtime up"), "{text}");
    let later = page(Answer::of(&verdict, verdicts::at("03:16:30")), Style::PIPE).text(Style::PIPE);
    assert!(later.contains("expected 3s ago, not seen: kubelet"), "{later}");
}

#[test]
fn an_incident_that_is_over() {
    let mut incident = verdicts::incident_of(verdicts::oom());
    incident.ended = Some(verdicts::at("03:19:30"));
    let answer = Answer {
        incident: Some((&incident, &incident.revisions[0])),
        ..Answer::of(&incident.revisions[0].verdict, verdicts::at("03:40:00"))
    };
    check("over", answer);
}

/// One incident can hold one cause after another; the page tells of the one that holds.
#[test]
fn a_later_cause_of_an_open_incident_has_its_own_time() {
    let incident = verdicts::incident_of(verdicts::hung());
    let answer = Answer {
        incident: Some((&incident, &incident.revisions[0])),
        ..Answer::of(&incident.revisions[0].verdict, verdicts::at("03:14:45"))
    };
    let text = page(answer, Style::PIPE).text(Style::PIPE);
    assert!(text.starts_with("worker-7   sick 18s   still Ready"), "{text}");
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("this cause since 03:14:27"), "{text}");
}

#[test]
fn an_open_incident_that_is_well_by_now_is_recovering() {
    let mut incident = verdicts::incident_of(verdicts::oom());
    incident.revisions[0].verdict.ready = None;
    let better = recovering(&verdicts::healthy());
    let answer = Answer {
        incident: Some((&incident, &incident.revisions[0])),
        recovering: better,
        ..Answer::of(&incident.revisions[0].verdict, verdicts::at("03:20:00"))
    };
    let text = page(answer, Style::PIPE).text(Style::PIPE);
    assert!(text.starts_with("worker-7   recovering   no known cause holds any more"), "{text}");
    assert!(text.contains("figures of 03:14:43"), "its figures are old, and it says so: {text}");
    for still in [verdicts::oom(), verdicts::nothing_found()] {
        assert_eq!(recovering(&still), None, "no cause found is not well: {still:?}");
    }
}

#[test]
fn times_are_said_to_be_utc_once() {
    let incident = verdicts::incident_of(verdicts::oom());
    let revision = &incident.revisions[0];
    let unasked = nodewhy_proto::Verdict { ready: None, ready_since: None, ..verdicts::hung() };
    let now = verdicts::at("03:18:54");
    for answer in [
        Answer { incident: Some((&incident, revision)), ..Answer::of(&revision.verdict, now) },
        Answer::of(&revision.verdict, now),
        Answer::of(&unasked, now),
        Answer { incident: Some((&incident, revision)), ..Answer::of(&unasked, now) },
    ] {
        let text = page(answer, Style::PIPE).text(Style::PIPE);
        assert_eq!(text.matches("UTC").count(), 1, "{text}");
    }
    let recorded = Answer { again: Some("nodewhy explain x"), ..Answer::of(&unasked, now) };
    let text = page(recorded, Style::PIPE).text(Style::PIPE);
    assert!(text.contains("WHEN as of 2026-11-21 03:18:54 UTC, the recording's end"), "{text}");
}

#[test]
fn what_is_missing_for_one_reason_is_told_together_and_its_proof_with_all() {
    let mut verdict = verdicts::oom();
    verdict.blind = [
        "the cluster: no cluster is watched",
        "kubelet: absent (no kubelet on this machine: no process is called kubelet)",
        "the API server's facts: no cluster is watched",
        "oom: failed (cannot read /dev/kmsg)",
    ]
    .map(str::to_owned)
    .to_vec();
    verdict.cannot_tell = verdicts::nothing_found().cannot_tell;
    let text = |all| {
        let answer = Answer { all, ..Answer::of(&verdict, verdicts::at("03:18:54")) };
        page(answer, Style::PIPE).text(Style::PIPE)
    };
    let (short, whole) = (text(false), text(true));
    for page in [&short, &whole] {
        assert!(
            page.contains("BLIND the cluster, the API server's facts: no cluster is watched\n"),
            "{page}"
        );
        assert!(page.contains("     oom: failed (cannot read /dev/kmsg)\n"), "{page}");
    }
    assert!(short.contains("     kubelet: absent (no kubelet on this machine)\n"), "{short}");
    assert!(whole.contains("no process is called kubelet"), "{whole}");
    assert!(short.contains("OPEN 2 can't be told from here: worker-9: node_api_partition"), "{short}");
    assert!(!short.contains("ARP answers") && whole.contains("ARP answers"), "{whole}");
}

#[test]
fn healthy() {
    let verdict = verdicts::healthy();
    let answer = Answer::of(&verdict, verdicts::at("06:00:00"));
    check("healthy", answer);
    let all = page(Answer { all: true, ..answer }, Style::PIPE).text(Style::PIPE);
    assert!(
        all.contains("node_api_partition  worker-9: no API server is asked"),
        "what can't be told is told: {all}"
    );
}

#[test]
fn wide_terminals_get_a_hundred_columns_and_narrow_ones_lose_no_figure() {
    let verdict = verdicts::oom();
    let answer = Answer { all: true, ..Answer::of(&verdict, verdicts::at("03:18:54")) };
    for columns in [20_u16, 40, 60, 100, 300] {
        let style = Style::terminal(columns, false);
        let text = page(answer, style).text(style);
        assert!(text.lines().all(|line| width(line) <= style.width.max(24)), "{columns}:\n{text}");
        for figure in ["61.2", "64 GiB", "71 %", "48,000/s", "48,213", "pid 4711"] {
            assert!(text.contains(figure), "{columns} columns lost {figure:?}:\n{text}");
        }
    }
}

#[test]
fn colour_repeats_and_adds_nothing() {
    let verdict = verdicts::oom();
    let answer = Answer::of(&verdict, verdicts::at("03:18:54"));
    let style = Style::terminal(80, true);
    let coloured = page(answer, style).text(style);
    assert!(coloured.contains("\u{1b}[1;31mNotReady 4m12s\u{1b}[0m"), "{coloured}");
    let plain: String = coloured
        .lines()
        .map(|line| nodewhy::render::text::clean(line).trim_end().to_owned() + "\n")
        .collect();
    assert_eq!(plain, page(answer, TERMINAL).text(TERMINAL));
}

#[test]
fn what_others_wrote_cannot_drive_the_terminal() {
    let verdict = verdicts::hostile();
    for style in [TERMINAL, Style::PIPE] {
        let text =
            page(Answer { all: true, ..Answer::of(&verdict, verdicts::at("03:18:54")) }, style).text(style);
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
        assert!(!text.contains("52;c;"), "{text}");
    }
}
