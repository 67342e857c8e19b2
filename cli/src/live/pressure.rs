//! The pressure row: a minute of cpu, memory and io, by what the kernel says of waiting (PSI).

use std::collections::VecDeque;

use nodewhy_proto::Outcome;
use serde_json::Value;

use super::paint;
use super::screen::{Rows, Screen};
use crate::render::text::{clip, pad, width};
use crate::render::{Paint, Span};
use crate::watch::Snapshot;

/// How much is kept: more than the widest screen draws.
const KEPT: usize = 120;
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// One resource: its name, which figure of the reading is drawn, and the finding that says that it is too high.
struct Resource {
    name: &'static str,
    word: &'static str,
    pointer: &'static str,
    finding: &'static str,
}

const RESOURCES: [Resource; 3] = [
    Resource { name: "cpu", word: "some", pointer: "/cpu/some/avg10", finding: "cpu_saturated" },
    Resource { name: "memory", word: "full", pointer: "/memory/full/avg10", finding: "memory_thrash" },
    Resource { name: "io", word: "full", pointer: "/io/full/avg10", finding: "io_stalled" },
];

/// The newest percentages, oldest first; `None` where there was no reading. A gap is drawn as a gap.
#[derive(Debug, Default)]
pub(super) struct History {
    seconds: VecDeque<[Option<f64>; 3]>,
    newest: Option<jiff::Timestamp>,
    why_not: Option<String>,
}

impl History {
    /// Takes a reading, if it is one that was not taken yet.
    pub(super) fn take(&mut self, snapshot: &Snapshot) {
        let source = snapshot.state.as_ref().ok().and_then(|state| state.collectors.get("pressure"));
        let (reading, why_not) = match (source, &snapshot.state) {
            (Some(source), _) if source.outcome == Outcome::Read => (source.reading.as_ref(), None),
            (Some(source), _) => (None, source.outcome.why()),
            (None, Ok(_)) => (None, Some("this agent has no pressure collector".to_owned())),
            (None, Err(_)) => (None, Some("the agent can't be asked".to_owned())),
        };
        self.why_not = why_not;
        let taken =
            source.and_then(|source| source.read_at).filter(|_| reading.is_some()).unwrap_or(snapshot.at);
        // Looks come faster than readings after an event: one column a second all the same.
        if self.newest.is_some_and(|newest| taken.duration_since(newest).as_millis() < 500) {
            return;
        }
        self.newest = Some(taken);
        self.seconds.push_back(RESOURCES.map(|resource| percent(reading, resource.pointer)));
        while self.seconds.len() > KEPT {
            self.seconds.pop_front();
        }
    }

    /// One row with all three, or one each where the screen is narrow; on a low and narrow one the figures alone.
    pub(super) fn rows(&self, screen: &Screen, columns: usize, is_low: bool) -> Rows {
        if let Some(why) = &self.why_not {
            let text = format!(" pressure not known: {why}");
            return vec![paint::line(
                &[Span::new(&clip(&text, columns), Paint::Plain)],
                columns,
                screen.colour,
            )];
        }
        if columns >= 66 {
            let cell = (columns - 1) / 3;
            let mut pieces = vec![Span::new(" ", Paint::Plain)];
            for index in 0..RESOURCES.len() {
                pieces.extend(self.cell(index, cell, screen));
            }
            return vec![paint::line(&pieces, columns, screen.colour)];
        }
        if is_low {
            let figures = RESOURCES.iter().enumerate().flat_map(|(index, resource)| {
                let paint = if self.is_sick(resource, screen) { Paint::Sick } else { Paint::Plain };
                [
                    Span::new(&format!(" {}", resource.name), Paint::Strong),
                    Span::new(&format!(" {} ", self.figure(index)), paint),
                ]
            });
            let pieces: Vec<Span> =
                std::iter::once(Span::new(" waits", Paint::Plain)).chain(figures).collect();
            return vec![paint::line(&pieces, columns, screen.colour)];
        }
        (0..RESOURCES.len())
            .map(|index| {
                let mut pieces = vec![Span::new(" ", Paint::Plain)];
                pieces.extend(self.cell(index, columns.saturating_sub(2), screen));
                paint::line(&pieces, columns, screen.colour)
            })
            .collect()
    }

    /// `memory ▁▁▂▅█ full 71 %`
    fn cell(&self, index: usize, columns: usize, screen: &Screen) -> Vec<Span> {
        let Some(resource) = RESOURCES.get(index) else { return Vec::new() };
        let values = self.seconds.iter().map(|second| second.get(index).copied().flatten());
        let words = pad(&format!(" {} {}", resource.word, self.figure(index)), 11);
        let name = format!("{} ", resource.name);
        let bars = columns.saturating_sub(width(&name) + width(&words) + 1).min(60);
        let bars: String = {
            let all: Vec<char> = values.map(bar).collect();
            let shown = all.get(all.len().saturating_sub(bars)..).unwrap_or(&[]);
            std::iter::repeat_n(' ', bars - shown.len()).chain(shown.iter().copied()).collect()
        };
        let paint = if self.is_sick(resource, screen) { Paint::Sick } else { Paint::Plain };
        let fill = columns.saturating_sub(width(&name) + width(&bars) + width(&words));
        vec![
            Span::new(&name, Paint::Strong),
            Span::new(&bars, paint),
            Span::new(&words, paint),
            Span::new(&" ".repeat(fill), Paint::Plain),
        ]
    }

    /// The newest percentage.
    fn figure(&self, index: usize) -> String {
        let newest = self.seconds.back().and_then(|second| second.get(index).copied().flatten());
        newest.map_or_else(|| "?".to_owned(), |percent| format!("{percent:.0} %"))
    }

    /// Only a finding says sick; this row has no limits of its own.
    fn is_sick(&self, resource: &Resource, screen: &Screen) -> bool {
        let findings = screen.snapshot.as_ref().and_then(|seen| seen.findings.as_ref().ok());
        findings
            .into_iter()
            .flatten()
            .any(|finding| finding.is_active() && finding.finding == resource.finding)
    }
}

fn percent(reading: Option<&Value>, pointer: &str) -> Option<f64> {
    reading?.pointer(pointer)?.as_f64().filter(|percent| percent.is_finite())
}

/// Nothing is a space, zero is the lowest bar, and whatever is more than zero is seen to be more.
fn bar(percent: Option<f64>) -> char {
    let Some(percent) = percent else { return ' ' };
    let steps = [0.0, 2.0, 8.0, 20.0, 35.0, 50.0, 70.0];
    let level = steps.iter().filter(|step| percent > **step).count();
    BARS.get(level).copied().unwrap_or('█')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_reading_is_not_drawn_as_zero() {
        assert_eq!(bar(None), ' ');
        assert_eq!(bar(Some(0.0)), '▁');
        assert_eq!(bar(Some(0.1)), '▂');
        assert_eq!(bar(Some(71.0)), '█');
        assert_eq!(percent(Some(&serde_json::json!({"cpu": {"some": null}})), "/cpu/some/avg10"), None);
    }
}
