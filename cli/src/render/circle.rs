//! A deadlock: steps that wait for each other, drawn as a circle.

use nodewhy_proto::Step;

use super::chain::hang_evidence;
use super::page::{Page, Paint, Span, Style};
use super::why::Answer;

/// Draws one circle.
pub(super) fn draw(page: &mut Page, answer: Answer<'_>, cycle: &[Step], style: Style) {
    for (index, step) in cycle.iter().enumerate() {
        let (glyph, stem) = glyphs(index, style);
        let first = [Span::new("     ", Paint::Plain), Span::new(&glyph, Paint::Faint)];
        let rest = [Span::new("     ", Paint::Plain), Span::new(&stem, Paint::Faint)];
        let elsewhere =
            if step.node == answer.verdict.node { String::new() } else { format!("{}: ", step.node) };
        page.hang(style.width, &first, &rest, &format!("{elsewhere}{}", step.text), Paint::Plain);
        let under = [rest[0].clone(), rest[1].clone(), Span::new("  ", Paint::Plain)];
        let shown = if answer.all { usize::MAX } else { 2 };
        for piece in step.evidence.iter().filter(|piece| piece.text != step.text).take(shown) {
            let further = [under[0].clone(), under[1].clone(), Span::new("    ", Paint::Plain)];
            hang_evidence(page, &under, &further, piece, style);
        }
    }
    let back = if style.drawing { "╰── " } else { "" };
    let lead = [Span::new("     ", Paint::Plain), Span::new(back, Paint::Faint)];
    let blank =
        [Span::new("     ", Paint::Plain), Span::new(if style.drawing { "    " } else { "" }, Paint::Faint)];
    let text = if style.drawing {
        "each waits for the next, the last for the first"
    } else {
        "and 1 again: each waits for the next, the last for the first"
    };
    page.hang(style.width, &lead, &blank, text, Paint::Plain);
}

fn glyphs(index: usize, style: Style) -> (String, String) {
    match (style.drawing, index) {
        (false, _) => (format!("{}. ", index + 1), "   ".to_owned()),
        (true, 0) => ("╭─▶ ".to_owned(), "│   ".to_owned()),
        (true, _) => ("├─▶ ".to_owned(), "│   ".to_owned()),
    }
}
