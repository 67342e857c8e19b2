//! What keys do.

use jiff::Timestamp;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::screen::{Screen, View};

/// What a key asks of the program; everything else happens on the screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing.
    Nothing,
    /// End.
    Quit,
    /// Put this on the clipboard.
    Copy(String),
}

/// The keys, for the page that tells them.
pub(super) const KEYS: &[(&str, &str)] = &[
    ("q", "quit; from another page: back"),
    ("/", "filter findings and sources by text; Esc clears it"),
    ("up down  j k", "choose a finding; scroll a page"),
    ("enter", "the evidence of the chosen finding"),
    ("w", "why: the whole verdict"),
    ("s", "every source, each with all that it says"),
    ("y", "copy the verdict to the clipboard (OSC 52)"),
    ("PgUp PgDn  g G", "scroll a page far"),
    ("?", "these keys"),
    ("", ""),
    ("✗ ! ·", "critical, warning, worth knowing"),
    ("✓ – ✗", "source read, absent (not on this machine), failed"),
    ("… ?", "a read that has not ended, not read yet"),
];

impl Screen {
    /// Takes a key.
    pub fn key(&mut self, key: KeyEvent, now: Timestamp) -> Act {
        if key.kind == KeyEventKind::Release {
            return Act::Nothing;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return if key.code == KeyCode::Char('c') { Act::Quit } else { Act::Nothing };
        }
        self.notice = None;
        if self.typing {
            self.type_filter(key.code);
            return Act::Nothing;
        }
        match key.code {
            KeyCode::Char('q') if self.view == View::Main => return Act::Quit,
            KeyCode::Char('q') | KeyCode::Backspace => self.open(View::Main),
            KeyCode::Esc if self.view == View::Main => self.filter.clear(),
            KeyCode::Esc => self.open(View::Main),
            KeyCode::Char('?') => self.open(View::Keys),
            KeyCode::Char('w') => self.open(View::Why),
            KeyCode::Char('s') => self.open(View::Sources),
            KeyCode::Enter if self.view == View::Main => self.open(View::Evidence),
            KeyCode::Enter => self.open(View::Main),
            KeyCode::Char('/') => {
                self.open(View::Main);
                self.typing = true;
            }
            KeyCode::Char('y') => return self.copy(now),
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::Up | KeyCode::Char('k') => self.step(-1),
            KeyCode::PageDown | KeyCode::Char(' ') => self.step(10),
            KeyCode::PageUp => self.step(-10),
            KeyCode::Home | KeyCode::Char('g') => self.step(isize::MIN),
            KeyCode::End | KeyCode::Char('G') => self.step(isize::MAX),
            _ => {}
        }
        Act::Nothing
    }

    fn type_filter(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(letter) if !letter.is_control() => self.filter.push(letter),
            _ => {}
        }
    }

    fn open(&mut self, view: View) {
        self.view = view;
        self.scroll.set(0);
    }

    /// Moves the choice on the main view, the text on the others.
    fn step(&mut self, by: isize) {
        if self.view != View::Main {
            self.scroll.set(self.scroll.get().saturating_add_signed(by));
            return;
        }
        let shown: Vec<String> = self.shown_findings().map(|finding| finding.id.clone()).collect();
        let at = self.chosen.as_ref().and_then(|id| shown.iter().position(|other| other == id));
        let last = shown.len().saturating_sub(1);
        let next = at.map_or(0, |at| at.saturating_add_signed(by).min(last));
        self.chosen = shown.into_iter().nth(next);
    }

    fn copy(&mut self, now: Timestamp) -> Act {
        match self.verdict_text(now) {
            Some(text) => {
                self.notice = Some("copied to the clipboard, if this terminal allows it (OSC 52)".to_owned());
                Act::Copy(text)
            }
            None => {
                self.notice = Some("there is no verdict to copy yet".to_owned());
                Act::Nothing
            }
        }
    }
}
