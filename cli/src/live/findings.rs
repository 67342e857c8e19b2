//! What is sick, and what was.

use jiff::Timestamp;
use nodewhy_proto::{Finding, Severity};

use super::paint;
use super::screen::{Rows, Screen};
use crate::render::text::{clean, clip, pad, width, wrap};
use crate::render::time::{clock, column};
use crate::render::{Paint, Span};

/// The widest column of names.
const WIDEST_NAME: usize = 30;
/// In fewer columns than these, text is cut rather than wrapped.
const NARROWEST_TEXT: usize = 20;

/// The part of what holds. Where nothing does, it says of what that is true.
pub(super) fn sick(screen: &Screen, columns: usize, wrapped: bool, now: Timestamp) -> Rows {
    let mut title = vec![paint::rule("sick", columns)];
    let all = match screen.snapshot.as_ref().map(|seen| &seen.findings) {
        None => return title,
        Some(Err(error)) => {
            let spans = [Span::new(" ✗ ", Paint::Sick), Span::new(error, Paint::Plain)];
            title.push(paint::line(&spans, columns, screen.colour));
            return title;
        }
        Some(Ok(all)) => all,
    };
    let active: Vec<&Finding> = screen.shown_findings().filter(|finding| finding.is_active()).collect();
    let sick = all.iter().filter(|finding| finding.is_active()).count();
    let hidden = sick - active.len();
    // The title tells how many: on a low screen it stands alone.
    let mut rows =
        vec![paint::rule(&if sick == 0 { "sick".to_owned() } else { format!("sick ({sick})") }, columns)];
    let names = name_column(screen);
    rows.extend(active.into_iter().flat_map(|finding| row(screen, finding, names, columns, wrapped, now)));
    if hidden > 0 {
        let text = format!("   {hidden} hidden by the filter");
        rows.push(paint::line(&[Span::new(&text, Paint::Faint)], columns, screen.colour));
    } else if rows.len() == 1 {
        rows.push(paint::line(&[nothing(screen)], columns, screen.colour));
    }
    rows
}

/// "Nothing abnormal" is true of what was read, and is said of no more.
fn nothing(screen: &Screen) -> Span {
    let state = screen.snapshot.as_ref().and_then(|seen| seen.state.as_ref().ok());
    let Some(state) = state else { return Span::new("   not known: no source was read", Paint::Plain) };
    let read = state.collectors.values().filter(|source| source.outcome.is_read()).count();
    match read {
        0 => Span::new("   not known: no source was read", Paint::Plain),
        _ if read == state.collectors.len() => Span::new("   nothing abnormal", Paint::Well),
        _ => Span::new(&format!("   nothing abnormal in the {read} sources that are read"), Paint::Well),
    }
}

/// The part of what ended; left out where there is nothing.
pub(super) fn was_sick(screen: &Screen, columns: usize, now: Timestamp) -> Rows {
    let names = name_column(screen);
    let mut rows: Rows = screen
        .shown_findings()
        .filter(|finding| !finding.is_active())
        .flat_map(|finding| row(screen, finding, names, columns, false, now))
        .collect();
    if !rows.is_empty() {
        rows.insert(0, paint::rule("was sick (15 min)", columns));
    }
    rows
}

fn name_column(screen: &Screen) -> usize {
    screen.shown_findings().map(|finding| width(&finding.finding)).max().unwrap_or(0).min(WIDEST_NAME)
}

/// ` ✗ 00:07  memory_thrash  full 71 %, …`: the age of what holds, and how long ago the other ended. In one row, or
/// wrapped under itself.
fn row(
    screen: &Screen,
    finding: &Finding,
    names: usize,
    columns: usize,
    wrapped: bool,
    now: Timestamp,
) -> Rows {
    let since = finding.ended.unwrap_or(finding.began);
    let (mark, paint) = match (finding.is_active(), finding.severity) {
        (false, _) => ("·", Paint::WasSick),
        (true, Severity::Critical) => ("✗", Paint::Sick),
        (true, Severity::Warning) => ("!", Paint::Sick),
        (true, Severity::Info | Severity::Unknown) => ("·", Paint::WasSick),
    };
    let chosen = screen.chosen.as_deref() == Some(finding.id.as_str());
    let names = names.min(columns / 2);
    let ended = finding.ended.map(|ended| format!("ended {}: ", clock(ended, now))).unwrap_or_default();
    let mut lead = vec![
        Span::new(if chosen { "▸" } else { " " }, Paint::Strong),
        Span::new(&format!("{mark} "), paint),
        Span::new(&format!("{}  ", pad(&column(now.duration_since(since)), 5)), Paint::Plain),
        Span::new(&format!("{}  ", pad(&clip(&clean(&finding.finding), names), names)), paint),
    ];
    let text = format!("{ended}{}", clean(&finding.summary));
    let used: usize = lead.iter().map(|span| width(&span.text)).sum();
    let room = columns.saturating_sub(used + 1);
    let texts = if wrapped && room >= NARROWEST_TEXT { wrap(&text, room) } else { vec![text] };
    let mut rows = Rows::new();
    for text in texts {
        let indent = vec![Span::new(&" ".repeat(used), Paint::Plain)];
        let spans: Vec<Span> = std::mem::replace(&mut lead, indent)
            .into_iter()
            .chain([Span::new(&text, Paint::Plain)])
            .collect();
        rows.push(paint::line(&spans, columns, screen.colour));
    }
    rows
}
