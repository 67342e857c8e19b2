//! For whom an answer is: a terminal with its width and colour, a pipe, a program.

use std::ffi::OsStr;
use std::io::IsTerminal;

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::render::Style;

/// When to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Also in a pipe, whatever NO_COLOR says.
    Always,
    /// Nowhere.
    Never,
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// The document.
    Json,
}

/// The option that chooses it.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct Output {
    /// The form of the answer
    #[arg(short, long, value_enum, default_value = "text", value_name = "FORM")]
    pub(super) output: Format,
}

/// What stdout is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Screen {
    /// Whether to colour.
    pub colour: bool,
    /// How pages are drawn.
    pub style: Style,
}

impl Screen {
    /// Looks at stdout and at the environment.
    pub fn of_stdout(color: Color) -> Screen {
        let terminal = std::io::stdout().is_terminal();
        let columns = columns_of(terminal);
        let term = std::env::var_os("TERM");
        Screen::of(color, terminal, columns, std::env::var_os("NO_COLOR").as_deref(), term.as_deref())
    }

    /// What follows from what stdout is. Pure.
    fn of(
        color: Color,
        terminal: bool,
        columns: Option<u16>,
        no_color: Option<&OsStr>,
        term: Option<&OsStr>,
    ) -> Screen {
        let dumb = term.is_some_and(|term| term == "dumb");
        // https://no-color.org: set and not empty.
        let refused = no_color.is_some_and(|value| !value.is_empty());
        let colour = match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => terminal && !refused && !dumb,
        };
        let drawing = terminal && !dumb;
        let style = Style { drawing, ..Style::terminal(columns.unwrap_or(80), colour) };
        Screen { colour, style }
    }
}

/// How wide to write: what COLUMNS says, else the terminal that is written to.
pub(super) fn columns_of(terminal: bool) -> Option<u16> {
    let told = std::env::var("COLUMNS").ok();
    let asked = if terminal { crossterm::terminal::size().ok().map(|(columns, _)| columns) } else { None };
    columns(told.as_deref(), asked)
}

/// What COLUMNS says comes first. A terminal that does not tell its size says 0.
fn columns(told: Option<&str>, asked: Option<u16>) -> Option<u16> {
    let told = told.and_then(|columns| columns.trim().parse().ok());
    [told, asked].into_iter().flatten().find(|columns| *columns > 0)
}

/// A document as text that ends in a line break.
///
/// # Errors
/// It has no JSON form.
pub(super) fn json(document: &impl Serialize) -> anyhow::Result<String> {
    Ok(format!("{}\n", serde_json::to_string_pretty(document)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_is_for_terminals_that_want_it() {
        let colour = |color, terminal, no_color: Option<&str>, term: &str| {
            Screen::of(color, terminal, Some(120), no_color.map(OsStr::new), Some(OsStr::new(term))).colour
        };
        assert!(colour(Color::Auto, true, None, "xterm"));
        assert!(colour(Color::Auto, true, Some(""), "xterm"));
        assert!(!colour(Color::Auto, true, Some("1"), "xterm"));
        assert!(!colour(Color::Auto, true, None, "dumb"));
        assert!(!colour(Color::Auto, false, None, "xterm"));
        assert!(colour(Color::Always, false, Some("1"), "xterm"));
        assert!(!colour(Color::Never, true, None, "xterm"));
    }

    #[test]
    fn width_follows_the_terminal_within_reason() {
        let width = |terminal, columns| Screen::of(Color::Auto, terminal, columns, None, None).style.width;
        assert_eq!(width(true, Some(72)), 72);
        assert_eq!(width(true, Some(240)), 100);
        assert_eq!(width(true, None), 80);
        assert_eq!(width(false, None), 80);
    }

    #[test]
    fn columns_says_more_than_the_terminal() {
        assert_eq!(columns(Some("60"), Some(120)), Some(60));
        assert_eq!(columns(Some("60"), None), Some(60));
        for nonsense in [None, Some("wide"), Some("0"), Some(""), Some("-3"), Some("99999999")] {
            assert_eq!(columns(nonsense, Some(120)), Some(120));
            assert_eq!(columns(nonsense, Some(0)), None);
        }
    }
}
