//! The verdict: why, why that may be believed, what to do.

use jiff::Timestamp;
use nodewhy_proto::{Conclusion, Verdict};

use super::paint;
use super::screen::{Rows, Screen};
use crate::render::text::{width, wrap};
use crate::render::time::{lasted, seconds};
use crate::render::why::reason;
use crate::render::{Paint, Span, certainty_word, later_cause};

/// Its rows. The answer and what to do are told in full where that takes three rows at most; the reason has one row on
/// a low screen, for there the rest is on the page of the key `w`.
pub(super) fn rows(screen: &Screen, columns: usize, is_low: bool, now: Timestamp) -> Rows {
    let within = |lines: usize, label: &str, text: &str, paint: Paint| {
        let text = crate::render::text::clean(text);
        let mut texts = wrap(&text, columns.saturating_sub(7).max(8));
        if texts.len() > lines {
            // The rest goes on in the last row, which is cut with a mark.
            let rest = texts.split_off(lines.saturating_sub(1)).join(" ");
            texts.push(rest);
        }
        let mut label = label;
        let rows = texts.into_iter().map(|text| {
            let lead = Span::new(&format!(" {:<4} ", std::mem::take(&mut label)), Paint::Strong);
            paint::line(&[lead, Span::new(&text, paint)], columns, screen.colour)
        });
        rows.collect::<Rows>()
    };
    let said = |label: &str, text: &str, paint: Paint| within(3, label, text, paint);
    let Some(seen) = &screen.snapshot else { return said("why", "looking…", Paint::Plain) };
    if let Err(error) = &seen.incident {
        return said("why", &format!("not known: {error}"), Paint::WasSick);
    }
    let Some(verdict) = seen.verdict() else {
        return said("why", "no verdict yet", Paint::Plain);
    };
    let (what, paint) = what(verdict);
    let label = if verdict.conclusion == Conclusion::Healthy { "now" } else { "why" };
    if let Some(better) = seen.recovering() {
        let mut rows = said("now", better, Paint::Well);
        rows.extend(said("was", &what, Paint::WasSick));
        return rows;
    }
    let mut rows = said(label, &what, paint);
    let root = verdict.roots.first();
    if let Some(text) = root.and_then(reason) {
        rows.extend(within(if is_low { 1 } else { 3 }, "", &text, Paint::Plain));
    }
    if let Some((incident, revision)) = seen.open_incident() {
        let later = later_cause(verdict, incident);
        let sure = match verdict.conclusion {
            Conclusion::Explained => format!("{}, ", certainty_word(verdict)),
            _ => String::new(),
        };
        let age = lasted(later.unwrap_or(incident.began), now);
        let took = seconds(incident.opened.duration_since(incident.began));
        let known = if later.is_some() { String::new() } else { format!(", known after {took}") };
        let whole = format!("{sure}for {age}{known}, rev {}", revision.revision);
        let text = if width(&whole) + 7 <= columns { whole } else { format!("{sure}for {age}") };
        rows.extend(said("", &text, Paint::Faint));
    }
    if let Some(remedy) = root.and_then(|root| root.remedy.first()) {
        rows.extend(said("do", remedy, Paint::Plain));
    }
    rows
}

fn what(verdict: &Verdict) -> (String, Paint) {
    match (verdict.conclusion, verdict.roots.as_slice()) {
        (Conclusion::Explained, [root, others @ ..]) => {
            let also =
                if others.is_empty() { String::new() } else { format!(" (and {} more)", others.len()) };
            (format!("{}{also}", root.title), Paint::Sick)
        }
        (Conclusion::Deadlock, _) => ("a circle: nothing in it can move by itself".to_owned(), Paint::Sick),
        (Conclusion::Healthy, _) => (looked(verdict), Paint::Well),
        (Conclusion::NoCauseFound, _) => {
            let unknown = verdict.cannot_tell.len();
            (format!("no cause found; {unknown} causes can't be told from here (w)"), Paint::WasSick)
        }
        _ => ("a conclusion that this version does not know".to_owned(), Paint::Plain),
    }
}

/// How far "well" reaches.
fn looked(verdict: &Verdict) -> String {
    let (ruled, unknown) = (verdict.ruled_out.len(), verdict.cannot_tell.len());
    let all = ruled + unknown + verdict.contributing.len();
    let rest = if unknown == 0 { String::new() } else { format!(", {unknown} can't be told (w)") };
    format!("no known cause holds; {ruled} of {all} ruled out{rest}")
}
