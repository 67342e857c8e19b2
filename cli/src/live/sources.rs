//! The sources: what each says in a line, or side by side where they say nothing or the rows are few, and why the others
//! are not read.

use jiff::Timestamp;
use nodewhy_proto::{CollectorState, Outcome};

use ratatui::text::Line;

use super::paint;
use super::screen::{Rows, Screen};
use crate::lines::headline;
use crate::render::text::{clean, clip, pad, width};
use crate::render::time::lasted;
use crate::render::{Page, Paint, Span};

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
            let (broken, other): (Vec<_>, Vec<_>) =
                other.into_iter().partition(|(_, source)| is_broken(source));
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

/// The same where the rows are few: what is broken in a row of its own, all others in two columns. The page of the key
/// `s` has each whole. `None`: nothing is gained by it.
pub(super) fn dense(screen: &Screen, columns: usize, now: Timestamp) -> Option<Rows> {
    let state = screen.snapshot.as_ref()?.state.as_ref().ok()?;
    let half = columns / 2;
    if half < NARROWEST_CELL {
        return None;
    }
    let shown: Vec<(&String, &CollectorState)> =
        state.collectors.iter().filter(|(name, _)| screen.matches(name)).collect();
    let (broken, others): (Vec<_>, Vec<_>) = shown.into_iter().partition(|(_, source)| is_broken(source));
    // What is read stands before what is not on this machine.
    let (read, absent): (Vec<_>, Vec<_>) =
        others.into_iter().partition(|(_, source)| source.outcome.is_read());
    let cells: Vec<(&String, &CollectorState)> = read.into_iter().chain(absent).collect();
    let names = broken.iter().chain(&cells).map(|(name, _)| width(name)).max().unwrap_or(0).min(14);
    let mut rows = vec![paint::rule("sources (s: each whole)", columns)];
    rows.extend(broken.into_iter().map(|one| unread(screen, one, names, columns, now)));
    let height = cells.len().div_ceil(2);
    for index in 0..height {
        let mut row = Vec::new();
        // Down the left column, then down the right one: names are found where they were.
        for cell in [cells.get(index), cells.get(height + index)].into_iter().flatten() {
            row.extend(self::cell(cell, names, half));
        }
        rows.push(paint::line(&row, columns, screen.colour));
    }
    Some(rows)
}

/// A cell with less room than this tells nothing.
const NARROWEST_CELL: usize = 32;

/// ` ✓ memory   82.1 MiB of 64.0 G…`, as wide as it must be.
fn cell((name, source): &(&String, &CollectorState), names: usize, columns: usize) -> [Span; 3] {
    let (mark, paint) = mark(&source.outcome);
    let text = match &source.outcome {
        Outcome::Read => {
            let said = source.summary.as_deref().map(|said| clean(said).into_owned());
            format!("{}{}", said.unwrap_or_else(|| took(source).trim_start().to_owned()), old(source))
        }
        Outcome::Absent { why } => headline(&clean(why)).to_owned(),
        other => other.why().unwrap_or_else(|| other.word().to_owned()),
    };
    let room = columns.saturating_sub(names + 6);
    [
        Span::new(&format!(" {mark} "), paint),
        Span::new(&format!("{}  ", pad(&clip(&clean(name), names), names)), Paint::Plain),
        Span::new(&format!("{} ", pad(&clip(&text, room), room)), Paint::Plain),
    ]
}

fn is_broken(source: &CollectorState) -> bool {
    matches!(source.outcome, Outcome::Failed { .. } | Outcome::Stuck { .. })
}

/// Every source whole, what is broken first.
pub(super) fn page(screen: &Screen, columns: usize, now: Timestamp) -> Page {
    let mut page = Page::new();
    let state = match screen.snapshot.as_ref().map(|seen| &seen.state) {
        None => return page,
        Some(Err(error)) => {
            page.hang(columns, &[], &[], error, Paint::Plain);
            return page;
        }
        Some(Ok(state)) => state,
    };
    let mut sources: Vec<(&String, &CollectorState)> =
        state.collectors.iter().filter(|(name, _)| screen.matches(name)).collect();
    sources.sort_by_key(|(_, source)| (!is_broken(source), !source.outcome.is_read()));
    let names = sources.iter().map(|(name, _)| width(name)).max().unwrap_or(0).min(20);
    for (name, source) in sources {
        let (mark, paint) = mark(&source.outcome);
        let first = [
            Span::new(&format!("{mark} "), paint),
            Span::new(&format!("{}  ", pad(&clip(&clean(name), names), names)), Paint::Strong),
        ];
        let rest = [Span::new(&" ".repeat(names + 4), Paint::Plain)];
        let text = match &source.outcome {
            Outcome::Read => {
                let said = source.summary.as_deref().unwrap_or("read");
                format!("{said}{}", took_words(source))
            }
            _ => why(&source.outcome, usize::MAX, now),
        };
        page.hang(columns, &first, &rest, &text, Paint::Plain);
    }
    page
}

/// ` (0.1 ms, every 1 s)`, with its age where it is old.
fn took_words(source: &CollectorState) -> String {
    let took = took(source);
    let took = took.trim();
    if took.is_empty() { String::new() } else { format!(" ({took}, every {} s)", source.every_seconds) }
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
