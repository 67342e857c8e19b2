//! What the live view knows, and how its parts share the rows of the terminal.

use std::cell::Cell;

use jiff::Timestamp;
use nodewhy_proto::Finding;
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span as Drawn};

use super::pressure::History;
use super::{findings, header, overlay, paint, sources, verdict};
use crate::diagnosis::look_alikes;
use crate::render::Style;
use crate::render::text::clip;
use crate::render::why::{self, Answer};
use crate::watch::Snapshot;

/// A terminal of fewer rows is low: the verdict and what is sick come before everything else.
const LOW: usize = 16;

/// Which page is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Everything on one screen.
    Main,
    /// The chosen finding's evidence.
    Evidence,
    /// The whole verdict.
    Why,
    /// Every source, each with all that it says.
    Sources,
    /// The keys.
    Keys,
}

/// The live view.
#[derive(Debug)]
pub struct Screen {
    /// Which cluster, and where the sockets are.
    pub(super) place: Vec<String>,
    pub(super) colour: bool,
    pub(super) snapshot: Option<Snapshot>,
    pub(super) pressure: History,
    pub(super) view: View,
    pub(super) filter: String,
    /// Whether keys go to the filter.
    pub(super) typing: bool,
    /// The id of the chosen finding.
    pub(super) chosen: Option<String>,
    pub(super) scroll: Cell<usize>,
    /// Told once, in place of the keys.
    pub(super) notice: Option<String>,
}

/// A part of the screen: its rows, wanted in this order.
pub(super) type Rows = Vec<Line<'static>>;

impl Screen {
    /// A screen that has seen nothing yet.
    pub fn new(place: Vec<String>, colour: bool) -> Screen {
        Screen {
            place,
            colour,
            snapshot: None,
            pressure: History::default(),
            view: View::Main,
            filter: String::new(),
            typing: false,
            chosen: None,
            scroll: Cell::new(0),
            notice: None,
        }
    }

    /// Takes what was seen.
    pub fn take(&mut self, snapshot: Snapshot) {
        self.pressure.take(&snapshot);
        self.snapshot = Some(snapshot);
    }

    /// The findings that the filter lets through: those that hold, worst and newest first, then those that ended.
    pub(super) fn shown_findings(&self) -> impl Iterator<Item = &Finding> {
        let all = self.snapshot.as_ref().and_then(|seen| seen.findings.as_ref().ok());
        let mut shown: Vec<&Finding> =
            all.into_iter().flatten().filter(|finding| self.lets_through(finding)).collect();
        shown.sort_by_key(|finding| {
            let severity = std::cmp::Reverse(finding.severity);
            (
                finding.ended.map(std::cmp::Reverse),
                severity,
                std::cmp::Reverse(finding.began),
                finding.id.clone(),
            )
        });
        shown.into_iter()
    }

    fn lets_through(&self, finding: &Finding) -> bool {
        let texts = [&finding.finding, &finding.collector, &finding.subject.name, &finding.summary];
        texts.iter().any(|text| self.matches(text))
    }

    /// Whether the filter lets this text through.
    pub(super) fn matches(&self, text: &str) -> bool {
        text.to_lowercase().contains(&self.filter.to_lowercase())
    }

    /// The verdict's page.
    pub(super) fn verdict_page(&self, now: Timestamp, style: Style) -> Option<crate::render::Page> {
        let snapshot = self.snapshot.as_ref()?;
        let verdict = snapshot.verdict()?;
        let near = verdict.roots.first().map(|root| look_alikes(&root.cause)).unwrap_or_default();
        let answer = Answer {
            incident: snapshot.open_incident(),
            near: &near,
            all: true,
            recovering: snapshot.recovering(),
            ..Answer::of(verdict, now)
        };
        Some(why::page(answer, style))
    }

    /// The verdict as text for the clipboard.
    pub(super) fn verdict_text(&self, now: Timestamp) -> Option<String> {
        Some(self.verdict_page(now, Style::PIPE)?.text(Style::PIPE))
    }

    /// Draws it. Any size goes: what does not fit is counted or left out, the answer last.
    pub fn draw(&self, frame: &mut Frame<'_>, now: Timestamp) {
        let area = frame.area();
        if area.width == 0 || area.height == 0 {
            return;
        }
        let rows = match self.view {
            View::Main => self.main(area, now),
            View::Evidence => overlay::evidence(self, area, now),
            View::Why => overlay::why(self, area, now),
            View::Sources => overlay::sources(self, area, now),
            View::Keys => overlay::keys(self, area),
        };
        for (row, line) in (area.y..area.bottom()).zip(rows) {
            frame.render_widget(line, Rect { x: area.x, y: row, width: area.width, height: 1 });
        }
    }

    fn main(&self, area: Rect, now: Timestamp) -> Rows {
        let (width, height) = (usize::from(area.width), usize::from(area.height));
        let is_low = height < LOW;
        let mut rows = vec![header::line(self, width, now)];
        rows.extend(verdict::rows(self, width, is_low, now));
        rows.extend(self.pressure.rows(self, width, is_low));
        // The keys take the last row, unless there is hardly any.
        let footer = usize::from(height > 5);
        rows.truncate(height - footer);
        let left = height - footer - rows.len();
        let parts = |wrapped: bool, dense: bool| {
            let narrow = if dense { sources::dense(self, width, now) } else { None };
            [
                findings::sick(self, width, wrapped, now),
                findings::was_sick(self, width, now),
                narrow.unwrap_or_else(|| sources::rows(self, width, now)),
            ]
        };
        // Whole where there is room; else what is sick each in a row, or the sources side by side; else both.
        let fits = |parts: &[Rows; 3]| parts.iter().map(Vec::len).sum::<usize>() <= left;
        let ways = [(true, false), (false, false), (true, true)];
        let parts = ways
            .into_iter()
            .map(|(wrapped, dense)| parts(wrapped, dense))
            .find(fits)
            .unwrap_or_else(|| parts(false, true));
        let shares = share(&parts, left);
        // Air between the parts, where there is room for all of it.
        let airy = shares.iter().sum::<usize>() + parts.len() <= left;
        for (part, share) in parts.into_iter().zip(shares) {
            if airy && !part.is_empty() {
                rows.push(Line::default());
            }
            rows.extend(shorten(part, share, self.colour));
        }
        rows.resize(height - footer, Line::default());
        if footer == 1 {
            rows.push(self.footer(width));
        }
        rows
    }

    /// The last row: what is typed, what is to be told once, or the keys.
    pub(super) fn footer(&self, width: usize) -> Line<'static> {
        let text = if self.typing {
            format!(" /{}▏  enter keeps the filter, esc clears it", crate::render::text::clean(&self.filter))
        } else if let Some(notice) = &self.notice {
            format!(" {notice}")
        } else if self.filter.is_empty() && width >= 74 {
            " q quit   / filter   enter evidence   w why   s sources   y copy   ? keys".to_owned()
        } else if self.filter.is_empty() {
            " q quit   w why   ? keys".to_owned()
        } else {
            format!(" filter: {} (esc clears it)   q quit   ? keys", crate::render::text::clean(&self.filter))
        };
        Line::from(Drawn::styled(clip(&text, width), paint::style(crate::render::Paint::Faint, self.colour)))
    }
}

/// How many rows each part gets. Where they are few, what was sick gives first, then the sources, then what is sick.
fn share(parts: &[Rows; 3], rows: usize) -> [usize; 3] {
    const SICK: usize = 0;
    const WAS_SICK: usize = 1;
    const SOURCES: usize = 2;
    let mut shares = [parts[SICK].len(), parts[WAS_SICK].len(), parts[SOURCES].len()];
    for (part, least) in [(WAS_SICK, 2), (SOURCES, 3), (SICK, 4), (WAS_SICK, 0), (SOURCES, 0), (SICK, 0)] {
        let wanted: usize = shares.iter().sum();
        let spare = shares[part].saturating_sub(least);
        shares[part] -= spare.min(wanted.saturating_sub(rows));
    }
    shares
}

/// The first rows of a part, with the number of those that are left out.
fn shorten(mut part: Rows, rows: usize, colour: bool) -> Rows {
    let left_out = part.len().saturating_sub(rows);
    if left_out > 0 {
        part.truncate(rows);
        // A title, or a title and its first row: a number below would take the row that matters.
        if rows > 2
            && let Some(last) = part.last_mut()
        {
            let text = format!("   … {} more", left_out + 1);
            *last = Line::from(Drawn::styled(text, paint::style(crate::render::Paint::Faint, colour)));
        }
    }
    part
}
