//! The live view: one screen, redrawn each second and at every key, and the terminal given back on every way out.

mod findings;
mod header;
mod keys;
mod overlay;
mod paint;
mod pressure;
mod screen;
mod sources;
mod verdict;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nodewhy_clock::Clock;
use ratatui::DefaultTerminal;
use ratatui::crossterm::clipboard::CopyToClipboard;
use ratatui::crossterm::event::{self, Event};
use ratatui::crossterm::execute;
use tokio::sync::{mpsc, watch};

pub use keys::Act;
pub use screen::{Screen, View};

use crate::watch::Watch;

/// How long the thread that reads keys waits at most before it sees that it is to end.
const KEY_PATIENCE: Duration = Duration::from_millis(100);

/// Gives the terminal back, whatever way this ends. A panic gives it back before it prints (ratatui's hook).
struct Borrowed {
    terminal: DefaultTerminal,
    over: Arc<AtomicBool>,
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        ratatui::restore();
    }
}

/// Shows the live view until `q`.
///
/// # Errors
/// The terminal can't be drawn on.
pub async fn run(watch: Watch, clock: Clock, place: Vec<String>, colour: bool) -> anyhow::Result<()> {
    let over = Arc::new(AtomicBool::new(false));
    let mut borrowed = Borrowed { terminal: ratatui::try_init()?, over: over.clone() };
    let mut keys = read_keys(over)?;
    let (sender, mut seen) = watch::channel(None);
    let looking = tokio::spawn(watch.keep_looking(clock.clone(), sender));
    let mut screen = Screen::new(place, colour);
    loop {
        borrowed.terminal.draw(|frame| screen.draw(frame, clock.now()))?;
        tokio::select! {
            key = keys.recv() => match key {
                Some(Event::Key(key)) => match screen.key(key, clock.now()) {
                    Act::Quit => break,
                    Act::Copy(text) => copy(&text)?,
                    Act::Nothing => {}
                },
                // A resize, a mouse: drawing anew is the whole answer.
                Some(_) => {}
                // The terminal is gone.
                None => break,
            },
            changed = seen.changed() => {
                if changed.is_err() {
                    break;
                }
                if let Some(snapshot) = seen.borrow_and_update().clone() {
                    screen.take(snapshot);
                }
            }
            () = clock.sleep(Duration::from_secs(1)) => {}
        }
    }
    looking.abort();
    Ok(())
}

/// Reads keys on a thread of their own, for reading them blocks.
fn read_keys(over: Arc<AtomicBool>) -> std::io::Result<mpsc::UnboundedReceiver<Event>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let read = move || {
        while !over.load(Ordering::SeqCst) {
            match event::poll(KEY_PATIENCE) {
                Ok(false) => {}
                Ok(true) => match event::read() {
                    Ok(event) => {
                        if sender.send(event).is_err() {
                            return;
                        }
                    }
                    Err(_) => return,
                },
                Err(_) => return,
            }
        }
    };
    std::thread::Builder::new().name("keys".to_owned()).spawn(read)?;
    Ok(receiver)
}

/// Hands text to the terminal's clipboard (OSC 52), which works through SSH too.
fn copy(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout();
    execute!(out, CopyToClipboard::to_clipboard_from(text))?;
    out.flush()
}
