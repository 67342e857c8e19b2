//! The pages that take the whole screen: evidence, the whole verdict, the sources, the keys.

use jiff::Timestamp;
use ratatui::layout::Rect;
use ratatui::text::Line;

use super::keys::KEYS;
use super::paint;
use super::screen::{Rows, Screen};
use crate::render::time::{clock, lasted};
use crate::render::{Page, Paint, Span, Style, words};

/// The whole verdict.
pub(super) fn why(screen: &Screen, area: Rect, now: Timestamp) -> Rows {
    let page =
        screen.verdict_page(now, style(area, screen)).unwrap_or_else(|| said("There is no verdict yet."));
    scrolled(screen, area, &page)
}

/// Everything about the chosen finding, or the first one.
pub(super) fn evidence(screen: &Screen, area: Rect, now: Timestamp) -> Rows {
    let chosen = screen.shown_findings().find(|finding| Some(&finding.id) == screen.chosen.as_ref());
    let Some(finding) = chosen.or_else(|| screen.shown_findings().next()) else {
        return scrolled(
            screen,
            area,
            &said("No finding is shown: nothing abnormal, or the filter hides it."),
        );
    };
    let width = style(area, screen).width;
    let mut page = Page::new();
    let paint = if finding.is_active() { Paint::Sick } else { Paint::WasSick };
    page.line([Span::new(&finding.finding, paint)]);
    page.hang(width, &[], &[], &finding.summary, Paint::Plain);
    page.gap();
    let until = finding.ended.unwrap_or(now);
    let ended = finding.ended.map(|ended| format!(", ended {}", clock(ended, now))).unwrap_or_default();
    let since =
        format!("since {} UTC, for {}{ended}", clock(finding.began, now), lasted(finding.began, until));
    for text in [
        format!("{since}; nodewhy knew at {}", clock(finding.noticed, now)),
        format!("seen on {}, by the collector {}", words::subject(&finding.subject), finding.collector),
    ] {
        page.hang(width, &[], &[], &text, Paint::Plain);
    }
    page.gap();
    for piece in &finding.evidence {
        let at = piece.at.map(|at| format!("{} ", clock(at, now))).unwrap_or_default();
        page.hang(width, &[], &[], &format!("{at}{}", piece.text), Paint::Plain);
        let under = [Span::new("  ", Paint::Plain)];
        page.hang(width, &under, &under, &piece.source, Paint::Faint);
        if let Some(limit) = &piece.threshold {
            let unit = piece.unit.as_deref().map(|unit| format!(" {unit}")).unwrap_or_default();
            let text = format!("held against {}{unit}: {}", limit.value, words::origin(limit.origin));
            page.hang(width, &under, &under, &text, Paint::Faint);
        }
    }
    scrolled(screen, area, &page)
}

/// Every source, each with all that it says.
pub(super) fn sources(screen: &Screen, area: Rect, now: Timestamp) -> Rows {
    scrolled(screen, area, &super::sources::page(screen, style(area, screen).width, now))
}

/// The keys, and what the marks mean.
pub(super) fn keys(screen: &Screen, area: Rect) -> Rows {
    let width = style(area, screen).width;
    let mut page = Page::new();
    for (key, text) in KEYS {
        let first = [Span::new(&format!("{key:<16}"), Paint::Strong)];
        let rest = [Span::new(&" ".repeat(16), Paint::Plain)];
        page.hang(width, &first, &rest, text, Paint::Plain);
    }
    scrolled(screen, area, &page)
}

fn style(area: Rect, screen: &Screen) -> Style {
    Style::terminal(area.width.saturating_sub(2), screen.colour)
}

fn said(text: &str) -> Page {
    let mut page = Page::new();
    page.line([Span::new(text, Paint::Plain)]);
    page
}

/// The rows of a page from where it is scrolled to, and the way back below them.
fn scrolled(screen: &Screen, area: Rect, page: &Page) -> Rows {
    let (columns, height) = (usize::from(area.width), usize::from(area.height));
    let all = paint::rows(page, columns.saturating_sub(1), screen.colour);
    let room = height.saturating_sub(1).max(1);
    let furthest = all.len().saturating_sub(room);
    // Kept within the page, so that one key back from its end moves at once.
    let from = screen.scroll.get().min(furthest);
    screen.scroll.set(from);
    let mut rows: Rows = all
        .into_iter()
        .skip(from)
        .take(room)
        .map(|mut line| {
            line.spans.insert(0, " ".into());
            line
        })
        .collect();
    if height > 1 {
        rows.resize(room, Line::default());
        let below = furthest - from;
        let more = if below > 0 { format!("   {below} lines below (↓)") } else { String::new() };
        let text = match &screen.notice {
            Some(notice) => format!(" {notice}"),
            None => format!(" q back   ↑↓ scroll   y copy{more}"),
        };
        rows.push(paint::line(&[Span::new(&text, Paint::Faint)], columns, screen.colour));
    }
    rows
}
