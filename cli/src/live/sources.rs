//! The sources: what each says in a line, or side by side where they say nothing, and why the others are not read.

use jiff::Timestamp;
use nodewhy_proto::{CollectorState, Outcome};

use ratatui::text::Line;

use super::paint;
use super::screen::{Rows, Screen};
use crate::lines::headline;
use crate::render::text::{clean, pad, width};
use crate::render::time::lasted;
use crate::render::{Paint, Span};

/// A reading this many times older than its cadence is told to be old.
const OLD: f64 = 5.0;

/// The part, and below it which cluster is watched and where the sockets are.
pub(super) fn rows(screen: &Screen, columns: usize, now: Timestamp) -> Rows {
    let mut rows = vec![paint::rule("sources", columns)];
    match screen.snapshot.as_ref().map(|seen| &seen.state) {
        None => {}
        Some(Err(error)) => {
            let spans = [Span::new(" ✗ ", Paint::Sick), Span::new(error, Paint::Plain)];
            rows.push(paint::line(&spans, columns, screen.colour));
        }
        Some(Ok(state)) => {
            let shown: Vec<(&String, &CollectorState)> =
                state.collectors.iter().filter(|(name, _)| screen.matches(name)).collect();
            let (read, other): (Vec<_>, Vec<_>) =
                shown.into_iter().partition(|(_, source)| source.outcome.is_read());
            let (said, silent): (Vec<_>, Vec<_>) =
                read.into_iter().partition(|(_, source)| source.summary.is_some());
            let names = other.iter().chain(&said).map(|(name, _)| width(name)).max().unwrap_or(0).min(20);
            // What is broken stands first: on a low screen the end is cut.
            let (broken, other): (Vec<_>, Vec<_>) = other.into_iter().partition(|(_, source)| {
                matches!(source.outcome, Outcome::Failed { .. } | Outcome::Stuck { .. })
            });
            rows.extend(broken.into_iter().map(|one| unread(screen, one, names, columns, now)));
            for (name, source) in said {
                let summary = source.summary.as_deref().unwrap_or_default();
                let spans = [
                    Span::new(" ✓ ", Paint::Well),
                    Span::new(&format!("{}  ", pad(&clean(name), names)), Paint::Plain),
                    Span::new(summary, Paint::Plain),
                    Span::new(&old(source), Paint::WasSick),
                ];
                rows.push(paint::line(&spans, columns, screen.colour));
            }
            rows.extend(side_by_side(screen, &silent, columns));
            rows.extend(other.into_iter().map(|one| unread(screen, one, names, columns, now)));
        }
    }
    for line in &screen.place {
        rows.push(paint::line(&[Span::new(&format!("   {line}"), Paint::Faint)], columns, screen.colour));
    }
    rows
}

/// ` ✗ kubelet  failed: …`
fn unread(
    screen: &Screen,
    (name, source): (&String, &CollectorState),
    names: usize,
    columns: usize,
    now: Timestamp,
) -> Line<'static> {
    let (mark, paint) = mark(&source.outcome);
    let why = why(&source.outcome, columns.saturating_sub(names + 6), now);
    let spans = [
        Span::new(&format!(" {mark} "), paint),
        Span::new(&format!("{}  ", pad(&clean(name), names)), Paint::Plain),
        Span::new(&why, Paint::Plain),
    ];
    paint::line(&spans, columns, screen.colour)
}

/// Why it is absent, `failed: …`, `stuck: a read has not ended for 14s`, `not read yet`. Where the whole reason for an
/// absence does not fit, its headline stands.
fn why(outcome: &Outcome, columns: usize, now: Timestamp) -> String {
    match (outcome, outcome.why()) {
        (Outcome::Absent { why }, _) => {
            let whole = clean(why);
            if width(&whole) <= columns { whole.into_owned() } else { headline(&whole).to_owned() }
        }
        (Outcome::Stuck { since }, _) => format!("stuck: a read has not ended for {}", lasted(*since, now)),
        (Outcome::Unknown, Some(why)) => why,
        (_, Some(why)) => format!("{}: {why}", outcome.word()),
        (_, None) => outcome.word().to_owned(),
    }
}

fn mark(outcome: &Outcome) -> (&'static str, Paint) {
    match outcome {
        Outcome::Read => ("✓", Paint::Well),
        Outcome::Absent { .. } => ("–", Paint::Plain),
        Outcome::Failed { .. } => ("✗", Paint::Sick),
        Outcome::Stuck { .. } => ("…", Paint::Sick),
        Outcome::Unknown => ("?", Paint::Plain),
    }
}

/// ` ✓ memory 0.1 ms   ✓ oom 0.2 ms`, as many in a row as fit.
fn side_by_side(screen: &Screen, read: &[(&String, &CollectorState)], columns: usize) -> Rows {
    let mut rows = Vec::new();
    let mut row: Vec<Span> = Vec::new();
    let mut used = 0;
    for (name, source) in read {
        let words = format!("{}{}", clean(name), took(source));
        let wide = 3 + width(&words) + 2;
        if used > 0 && used + wide > columns {
            rows.push(paint::line(&row, columns, screen.colour));
            row.clear();
            used = 0;
        }
        used += wide;
        row.push(Span::new(" ✓ ", Paint::Well));
        row.push(Span::new(&format!("{words}  "), Paint::Plain));
    }
    if !row.is_empty() {
        rows.push(paint::line(&row, columns, screen.colour));
    }
    rows
}

/// How long the read took, and how old the reading is where it is old.
fn took(source: &CollectorState) -> String {
    let took = source.took_seconds.map(|seconds| match seconds {
        0.0..0.1 => format!(" {:.1} ms", seconds * 1000.0),
        0.1..1.0 => format!(" {:.0} ms", seconds * 1000.0),
        _ => format!(" {seconds:.1} s"),
    });
    format!("{}{}", took.unwrap_or_default(), old(source))
}

fn old(source: &CollectorState) -> String {
    let old = source.age_seconds.filter(|age| *age > OLD * source.every_seconds.max(1.0));
    old.map(|age| format!(" ({age:.0} s old)")).unwrap_or_default()
}
