//! Text that others wrote, made fit for a terminal: cleaned, measured, wrapped.

use std::borrow::Cow;
use std::iter::Peekable;
use std::str::Chars;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

const ESCAPE: char = '\u{1b}';

/// Takes out what a terminal would obey instead of show: escape sequences whole, control characters, and the
/// marks that turn the direction of writing. A line break or a tab becomes a space.
///
/// A pod's name or a kernel line is written by whoever runs the pod; it must not move the cursor of the one who
/// reads it.
pub fn clean(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_dangerous) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(letter) = rest.next() {
        match letter {
            ESCAPE => skip_sequence(&mut rest),
            '\u{9b}' => skip_parameters(&mut rest),
            '\u{90}' | '\u{98}' | '\u{9d}'..='\u{9f}' => skip_string(&mut rest),
            '\n' | '\r' | '\t' | '\u{2028}' | '\u{2029}' => shown.push(' '),
            letter if is_dangerous(letter) => {}
            letter => shown.push(letter),
        }
    }
    Cow::Owned(shown)
}

fn is_dangerous(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// After ESC: a control sequence, a string (title, clipboard), or a single letter.
fn skip_sequence(rest: &mut Peekable<Chars<'_>>) {
    match rest.peek() {
        Some('[') => {
            rest.next();
            skip_parameters(rest);
        }
        Some(']' | 'P' | 'X' | '^' | '_') => {
            rest.next();
            skip_string(rest);
        }
        Some(&letter) if !letter.is_control() => {
            rest.next();
            // ESC ( B and its like: an intermediate letter, then the final one.
            if matches!(letter, ' '..='/') {
                rest.next_if(|next| ('0'..='~').contains(next));
            }
        }
        _ => {}
    }
}

/// CSI: parameters and intermediates, then one final letter of `@` to `~`.
fn skip_parameters(rest: &mut Peekable<Chars<'_>>) {
    while rest.next_if(|letter| (' '..='?').contains(letter)).is_some() {}
    rest.next_if(|letter| ('@'..='~').contains(letter));
}

/// OSC, DCS, …: up to BEL or the string terminator. One that never ends takes the rest of the text with it, as it
/// would on the terminal.
fn skip_string(rest: &mut Peekable<Chars<'_>>) {
    while let Some(letter) = rest.next() {
        match letter {
            '\u{7}' | '\u{9c}' => return,
            ESCAPE => {
                rest.next_if_eq(&'\\');
                return;
            }
            _ => {}
        }
    }
}

/// How many columns a terminal gives this text.
pub fn width(text: &str) -> usize {
    text.width()
}

/// Breaks text into lines of `columns` at most. A figure stays whole, with its unit or with what it numbers: `64 GiB`
/// and `pid 4711` never break. Only what is wider than the whole line is cut.
pub fn wrap(text: &str, columns: usize) -> Vec<String> {
    let columns = columns.max(1);
    let mut lines = Vec::new();
    let mut line = String::new();
    for piece in pieces(text) {
        if !line.is_empty() && width(&line) + 1 + width(&piece) > columns {
            lines.push(std::mem::take(&mut line));
        }
        if line.is_empty() {
            line = piece;
        } else {
            line.push(' ');
            line.push_str(&piece);
        }
        while width(&line) > columns {
            let (head, tail) = cut(&line, columns);
            lines.push(head);
            line = tail;
        }
    }
    if !line.is_empty() || lines.is_empty() {
        lines.push(line);
    }
    lines
}

/// The text's words; a figure and the unit after it are one.
fn pieces(text: &str) -> Vec<String> {
    let mut pieces: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match pieces.last_mut() {
            Some(before)
                if (is_unit(word) && ends_in_figure(before))
                    || (is_number(word) && announces_number(before)) =>
            {
                before.push(' ');
                before.push_str(word);
            }
            _ => pieces.push(word.to_owned()),
        }
    }
    pieces
}

fn ends_in_figure(piece: &str) -> bool {
    let last = piece.rsplit(' ').next().unwrap_or(piece);
    last.starts_with(|c: char| {
        c.is_ascii_digit() || matches!(c, '-' | '+' | '(' | '<' | '>' | '≥' | '≤' | '~')
    }) && last.ends_with(|c: char| c.is_ascii_digit())
}

fn announces_number(piece: &str) -> bool {
    let last = piece.rsplit(' ').next().unwrap_or(piece).trim_start_matches('(');
    matches!(last, "pid" | "uid" | "log" | "port" | "rev" | "exit")
}

fn is_number(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_digit())
}

fn is_unit(word: &str) -> bool {
    let bare = word.trim_end_matches([',', '.', ';', ':', ')']);
    let bare = bare.split('/').next().unwrap_or(bare);
    matches!(
        bare,
        "B" | "KB"
            | "MB"
            | "GB"
            | "TB"
            | "KiB"
            | "MiB"
            | "GiB"
            | "TiB"
            | "bytes"
            | "%"
            | "ns"
            | "µs"
            | "ms"
            | "s"
            | "seconds"
            | "min"
            | "minutes"
            | "h"
            | "hours"
            | "d"
            | "days"
            | "times"
            | "nodes"
            | "pods"
            | "pages"
    )
}

/// Cuts a line that is too wide: after the last separator that fits and stands in no figure, else at the last letter
/// that fits.
fn cut(line: &str, columns: usize) -> (String, String) {
    let mut used = 0;
    let (mut fits, mut nice) = (0, 0);
    let mut before = ' ';
    for (at, letter) in line.char_indices() {
        let in_figure = letter.is_ascii_digit() && matches!(before, ',' | ':' | '.' | '-');
        if !in_figure && matches!(before, '/' | '-' | '_' | ',' | ':' | ' ' | '=') {
            nice = at;
        }
        used += letter.width().unwrap_or(0);
        if used > columns && at > 0 {
            fits = at;
            break;
        }
        before = letter;
    }
    let at = if nice > 0 && nice <= fits { nice } else { fits };
    if at == 0 {
        // A single letter wider than the line: it stands alone.
        return (line.to_owned(), String::new());
    }
    let (head, tail) = line.split_at(at);
    (head.trim_end().to_owned(), tail.trim_start().to_owned())
}

/// Cuts text to `columns`, with `…` where something is missing.
pub fn clip(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    if columns == 0 {
        return String::new();
    }
    let mut shown = String::new();
    let mut used = 0;
    for letter in text.chars() {
        let wide = letter.width().unwrap_or(0);
        if used + wide > columns - 1 {
            break;
        }
        used += wide;
        shown.push(letter);
    }
    shown.truncate(shown.trim_end().len());
    shown.push('…');
    shown
}

/// Adds spaces up to `columns`.
pub fn pad(text: &str, columns: usize) -> String {
    let missing = columns.saturating_sub(width(text));
    format!("{text}{}", " ".repeat(missing))
}

/// The names nearest to `asked`, best first, three at most.
pub fn nearest<'a>(asked: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut close: Vec<(f64, &str)> = names
        .into_iter()
        .map(|name| {
            let contains = if !asked.is_empty() && name.contains(asked) { 1.0 } else { 0.0 };
            (strsim::jaro_winkler(asked, name).max(contains), name)
        })
        .filter(|(likeness, _)| *likeness > 0.75)
        .collect();
    close.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    close.into_iter().take(3).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn escape_sequences_go_whole() {
        assert_eq!(clean("a\u{1b}[31mred\u{1b}[0m b"), "ared b");
        assert_eq!(clean("x\u{1b}]52;c;ZXZpbA==\u{7}y"), "xy");
        assert_eq!(clean("x\u{1b}]0;title\u{1b}\\y"), "xy");
        assert_eq!(clean("x\u{9b}2Jy"), "xy");
        assert_eq!(clean("x\u{1b}(By\u{1b}cz"), "xyz");
        assert_eq!(clean("one\ntwo\tthree\u{0}\u{8}"), "one two three");
        assert_eq!(clean("gnp.\u{202e}exe"), "gnp.exe");
        assert_eq!(clean("ends in \u{1b}"), "ends in ");
        assert!(matches!(clean("worker-7 · ½"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_figure_keeps_its_unit() {
        assert_eq!(wrap("held 61.2 of 64 GiB", 16), ["held 61.2 of", "64 GiB"]);
        assert_eq!(wrap("refaults 48,000/s here", 12), ["refaults", "48,000/s", "here"]);
        assert_eq!(wrap("pressure full 71 %, then", 18), ["pressure full", "71 %, then"]);
    }

    #[test]
    fn a_long_path_is_cut_at_a_separator() {
        assert_eq!(wrap("/run/containerd/containerd.sock", 20), ["/run/containerd/", "containerd.sock"]);
        assert_eq!(wrap("世界世界", 4), ["世界", "世界"]);
        assert_eq!(wrap("", 10), [""]);
    }

    #[test]
    fn clipping_says_so() {
        assert_eq!(clip("containerd", 6), "conta…");
        assert_eq!(clip("世界世界", 5), "世界…");
        assert_eq!(clip("ab", 0), "");
        assert_eq!(clip("ab", 2), "ab");
    }

    #[test]
    fn near_names_are_found() {
        assert_eq!(nearest("worker7", ["worker-7", "cp-1", "worker-8"]).first(), Some(&"worker-7"));
        assert!(nearest("zzz", ["worker-7"]).is_empty());
    }

    proptest! {
        #[test]
        fn nothing_that_a_terminal_obeys_is_left(text in any::<String>()) {
            let shown = clean(&text);
            prop_assert!(!shown.chars().any(is_dangerous), "{shown:?}");
        }

        #[test]
        fn every_sequence_is_safe(text in "[\u{1b}\u{9b}\u{9d}\\[\\]();0-9a-zA-Z \u{7}\\\\]{0,40}") {
            prop_assert!(!clean(&text).chars().any(char::is_control));
        }

        #[test]
        fn a_line_is_never_too_wide_and_no_letter_is_lost(text in "[a-z0-9 /,.%世-]{0,120}", columns in 2_usize..60) {
            let lines = wrap(&text, columns);
            for line in &lines {
                prop_assert!(width(line) <= columns, "{line:?} is wider than {columns}");
            }
            let letters = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
            prop_assert_eq!(letters(&lines.concat()), letters(&text));
        }
    }
}
