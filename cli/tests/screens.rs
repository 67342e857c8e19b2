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
use nodewhy::render::why::{Answer, page};

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

#[test]
fn healthy() {
    let verdict = verdicts::healthy();
    check("healthy", Answer::of(&verdict, verdicts::at("06:00:00")));
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
