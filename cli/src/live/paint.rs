//! From a page's paint to the terminal's, and the rule between two parts of the screen.

use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span as Drawn};

use super::screen::Rows;
use crate::render::text::{clip, width};
use crate::render::{Page, Paint, Span};

/// How this paint looks. Without colour only bold and faint are left; the words say it anyway.
pub(super) fn style(paint: Paint, colour: bool) -> Style {
    let plain = Style::default();
    match paint {
        Paint::Plain => plain,
        Paint::Strong => plain.add_modifier(Modifier::BOLD),
        Paint::Faint => plain.add_modifier(Modifier::DIM),
        Paint::Sick if colour => plain.fg(Color::Red).add_modifier(Modifier::BOLD),
        Paint::Sick => plain.add_modifier(Modifier::BOLD),
        Paint::WasSick if colour => plain.fg(Color::Yellow),
        Paint::Well if colour => plain.fg(Color::Green),
        Paint::WasSick | Paint::Well => plain,
    }
}

/// A line of these pieces, cut at the screen's edge.
pub(super) fn line(spans: &[Span], columns: usize, colour: bool) -> Line<'static> {
    let mut left = columns;
    let mut drawn = Vec::new();
    for span in spans {
        let text = clip(&span.text, left);
        let is_cut = text != span.text;
        left -= width(&text).min(left);
        drawn.push(Drawn::styled(text, style(span.paint, colour)));
        // One mark says that something is missing.
        if is_cut {
            break;
        }
    }
    Line::from(drawn)
}

/// A page's lines.
pub(super) fn rows(page: &Page, columns: usize, colour: bool) -> Rows {
    page.lines.iter().map(|spans| line(spans, columns, colour)).collect()
}

/// ` ── title ───────────────`
pub(super) fn rule(title: &str, columns: usize) -> Line<'static> {
    let head = format!(" ── {title} ");
    let fill = columns.saturating_sub(width(&head) + 1);
    let text = clip(&format!("{head}{}", "─".repeat(fill)), columns);
    Line::from(Drawn::styled(text, style(Paint::Faint, false)))
}
