//! The verdict in two rows: why, and what to do.

use jiff::Timestamp;
use nodewhy_proto::{Conclusion, Verdict};

use super::paint;
use super::screen::{Rows, Screen};
use crate::render::time::{lasted, seconds};
use crate::render::{Paint, Span, certainty_word};

/// The two rows; one where there is nothing to do.
pub(super) fn rows(screen: &Screen, columns: usize, now: Timestamp) -> Rows {
    let row = |label: &str, text: &str, paint: Paint| {
        let spans = [Span::new(&format!(" {label:<4} "), Paint::Strong), Span::new(text, paint)];
        paint::line(&spans, columns, screen.colour)
    };
    let Some(seen) = &screen.snapshot else { return vec![row("why", "looking…", Paint::Plain)] };
    if let Err(error) = &seen.incident {
        return vec![row("why", &format!("not known: {error}"), Paint::WasSick)];
    }
    let Some(verdict) = seen.verdict() else {
        return vec![row("why", "no verdict yet", Paint::Plain)];
    };
    let (what, paint) = what(verdict);
    let mut rows = Vec::new();
    match seen.open_incident() {
        Some((incident, revision)) => {
            let took = seconds(incident.opened.duration_since(incident.began));
            let age = lasted(incident.began, now);
            let sure = certainty_word(verdict);
            let sure =
                if verdict.conclusion == Conclusion::Explained { format!("{sure}, ") } else { String::new() };
            rows.push(row("why", &what, paint));
            rows.push(row(
                "",
                &format!("{sure}rev {}, for {age}, known after {took}", revision.revision),
                Paint::Plain,
            ));
        }
        None => rows.push(row("why", &what, paint)),
    }
    if let Some(remedy) = verdict.roots.first().and_then(|root| root.remedy.first()) {
        rows.push(row("do", remedy, Paint::Plain));
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
        (Conclusion::Healthy, _) => ("nothing to explain".to_owned(), Paint::Well),
        (Conclusion::NoCauseFound, _) => {
            let unknown = verdict.cannot_tell.len();
            (format!("no cause found; {unknown} causes can't be told from here (w)"), Paint::WasSick)
        }
        _ => ("a conclusion that this version does not know".to_owned(), Paint::Plain),
    }
}
