//! A page: lines of painted text, wrapped. One page becomes a terminal's text, a pipe's, or the live view's.

use super::text::{clean, wrap};

/// How a page is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Columns.
    pub width: usize,
    /// Whether colours and bold are written.
    pub colour: bool,
    /// Whether lines are drawn (`┬ ├ └`).
    pub drawing: bool,
}

impl Style {
    /// A pipe: 80 columns, no colour, no drawing.
    pub const PIPE: Style = Style { width: 80, colour: false, drawing: false };

    /// A terminal this wide: what fits, and never so wide that the eye loses the line.
    pub fn terminal(columns: u16, colour: bool) -> Style {
        Style { width: usize::from(columns).clamp(20, 100), colour, drawing: true }
    }
}

/// What a piece of text says about the node. Colour repeats it; the words say it already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Paint {
    /// Nothing.
    #[default]
    Plain,
    /// A label, a title.
    Strong,
    /// Sources, and what matters less.
    Faint,
    /// Sick.
    Sick,
    /// Was sick, or is about to be.
    WasSick,
    /// Well.
    Well,
}

impl Paint {
    /// The terminal's sequence (SGR).
    fn sequence(self) -> Option<&'static str> {
        match self {
            Paint::Plain => None,
            Paint::Strong => Some("\u{1b}[1m"),
            Paint::Faint => Some("\u{1b}[2m"),
            Paint::Sick => Some("\u{1b}[1;31m"),
            Paint::WasSick => Some("\u{1b}[33m"),
            Paint::Well => Some("\u{1b}[32m"),
        }
    }
}

/// A piece of a line. Its text is clean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The text.
    pub text: String,
    /// What it says.
    pub paint: Paint,
}

impl Span {
    /// A piece of text that may come from anywhere.
    pub fn new(text: &str, paint: Paint) -> Span {
        Span { text: clean(text).into_owned(), paint }
    }
}

/// Lines of painted text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The lines.
    pub lines: Vec<Vec<Span>>,
}

impl Page {
    /// An empty page.
    pub fn new() -> Page {
        Page::default()
    }

    /// Adds a line of these pieces, as it is.
    pub fn line(&mut self, spans: impl IntoIterator<Item = Span>) {
        self.lines.push(spans.into_iter().collect());
    }

    /// Adds an empty line, unless the page is empty or ends in one.
    pub fn gap(&mut self) {
        if self.lines.last().is_some_and(|line| !line.is_empty()) {
            self.lines.push(Vec::new());
        }
    }

    /// Adds text wrapped to `width`: `first` stands before its first line, `rest` before the others. Both have the
    /// same width in columns.
    pub fn hang(&mut self, width: usize, first: &[Span], rest: &[Span], text: &str, paint: Paint) {
        let used: usize = first.iter().map(|span| super::text::width(&span.text)).sum();
        // A prefix wider than the page would leave nothing: a few columns are always given.
        let columns = width.saturating_sub(used).max(8);
        for (index, line) in wrap(&clean(text), columns).into_iter().enumerate() {
            let prefix = if index == 0 { first } else { rest };
            self.lines.push(prefix.iter().cloned().chain([Span { text: line, paint }]).collect());
        }
    }

    /// The page as text, with colour where the style has it. Ends in a line break unless it is empty.
    pub fn text(&self, style: Style) -> String {
        let mut out = String::new();
        for line in &self.lines {
            let mut written = String::new();
            for span in line {
                match span.paint.sequence().filter(|_| style.colour && !span.text.trim().is_empty()) {
                    Some(sequence) => written.push_str(&format!("{sequence}{}\u{1b}[0m", span.text)),
                    None => written.push_str(&span.text),
                }
            }
            out.push_str(written.trim_end());
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_is_written_only_where_asked_for() {
        let mut page = Page::new();
        page.line([Span::new("sick\u{1b}[32m", Paint::Sick), Span::new("  ", Paint::Plain)]);
        assert_eq!(page.text(Style::PIPE), "sick\n");
        assert_eq!(page.text(Style::terminal(80, true)), "\u{1b}[1;31msick\u{1b}[0m\n");
    }

    #[test]
    fn gaps_never_double() {
        let mut page = Page::new();
        page.gap();
        page.line([Span::new("a", Paint::Plain)]);
        page.gap();
        page.gap();
        assert_eq!(page.text(Style::PIPE), "a\n\n");
    }
}
