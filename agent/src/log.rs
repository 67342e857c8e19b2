//! The agent's own log lines, which may never hold up whoever writes them.
//!
//! Standard error is a pipe to containerd's shim, or to journald. When that one is stopped or hangs, the pipe is full
//! after 64 KiB and a write to it blocks for as long: a collector that warns would stop reading. So one thread writes,
//! from a queue with an end; what finds the queue full is dropped and counted. (`O_NONBLOCK` is no way: it belongs to
//! the open file, which others share.)

use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::time::Duration;

use tracing::Level;

/// Lines that wait for the pipe at most.
const LINES: usize = 256;
/// A longer line is cut, so that the queue is bounded in bytes too.
const LINE_BYTES: usize = 4096;
/// The thread only writes bytes that others formatted.
const STACK_BYTES: usize = 64 * 1024;
/// Pause between two looks whether a full queue has room at last.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Lines that nobody will read.
static DROPPED: AtomicU64 = AtomicU64::new(0);
static QUEUE: OnceLock<SyncSender<Word>> = OnceLock::new();

enum Word {
    Line(Vec<u8>),
    /// All that came before this was written.
    Written(SyncSender<()>),
}

/// Log lines that were dropped because standard error took none, since the agent's start.
pub fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Sends this program's log, and what a panic has to say, to standard error.
///
/// # Errors
/// The kernel gives no thread; a log was begun before.
pub fn begin(level: Level, colour: bool) -> io::Result<()> {
    let (queue, words) = mpsc::sync_channel(LINES);
    std::thread::Builder::new()
        .name("log".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || write_all(&words, io::stderr()))?;
    QUEUE.set(queue).map_err(|_| io::Error::other("the log was begun before"))?;
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(|| Queued)
        .with_ansi(colour)
        .try_init()
        .map_err(io::Error::other)?;
    // The usual hook writes to standard error itself, on the thread that panicked.
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    Ok(())
}

/// Says this last line, and waits until all lines are written, for `limit` at most.
pub fn end(last: Option<&str>, limit: Duration) {
    if let Some(last) = last {
        let line = format!("{last}\n");
        match QUEUE.get() {
            Some(queue) => drop(send(queue, Word::Line(line.into_bytes()), limit)),
            None => eprint!("{line}"),
        }
    }
    let Some(queue) = QUEUE.get() else { return };
    let (written, done) = mpsc::sync_channel(1);
    if send(queue, Word::Written(written), limit) {
        // Whether it was written or the time was up: the program ends.
        done.recv_timeout(limit).ok();
    }
}

/// Waits for room in the queue, for `limit` at most.
fn send(queue: &SyncSender<Word>, mut word: Word, limit: Duration) -> bool {
    let mut left = limit;
    loop {
        match queue.try_send(word) {
            Ok(()) => return true,
            Err(TrySendError::Disconnected(_)) => return false,
            Err(TrySendError::Full(back)) => word = back,
        }
        if left.is_zero() {
            return false;
        }
        std::thread::sleep(LOOK_EVERY);
        left = left.saturating_sub(LOOK_EVERY);
    }
}

/// What the subscriber writes to: each call is one whole line.
struct Queued;

impl Write for Queued {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(queue) = QUEUE.get() {
            enqueue(queue, line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn enqueue(queue: &SyncSender<Word>, line: &[u8]) {
    let line = match line.get(..LINE_BYTES) {
        Some(start) => [start, b" [cut]\n"].concat(),
        None => line.to_vec(),
    };
    if queue.try_send(Word::Line(line)).is_err() {
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
}

fn write_all(words: &Receiver<Word>, mut out: impl Write) {
    let mut told = dropped();
    for word in words {
        match word {
            Word::Line(line) => {
                // An error is a reader that is gone: the line is lost, and is counted as such.
                if out.write_all(&line).is_err() {
                    DROPPED.fetch_add(1, Ordering::Relaxed);
                }
            }
            // Whoever waited may have given up.
            Word::Written(done) => done.send(()).unwrap_or(()),
        }
        let now = dropped();
        if now > told {
            let lost = format!("{} log lines were dropped: nobody read them\n", now - told);
            if out.write_all(lost.as_bytes()).is_ok() {
                told = now;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Takes what it is given once it is let.
    #[derive(Clone, Default)]
    struct Pipe {
        text: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.text.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_finds_the_queue_full_is_dropped_counted_and_told() {
        let (queue, words) = mpsc::sync_channel(3);
        let before = dropped();
        let pipe = Pipe::default();
        let full = pipe.text.lock().unwrap();
        let writer = std::thread::spawn({
            let pipe = pipe.clone();
            move || write_all(&words, pipe)
        });
        // One is in the writer's hand, three wait.
        for line in ["1\n", "2\n", "3\n", "4\n", "5\n", "6\n", "7\n", "8\n"] {
            enqueue(&queue, line.as_bytes());
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(dropped() - before, 4);
        drop(full);
        drop(queue);
        writer.join().unwrap();
        let text = String::from_utf8(pipe.text.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "1\n4 log lines were dropped: nobody read them\n2\n3\n4\n");
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let (queue, words) = mpsc::sync_channel(1);
        enqueue(&queue, &vec![b'x'; 3 * LINE_BYTES]);
        let Ok(Word::Line(line)) = words.try_recv() else { panic!("no line") };
        assert_eq!(line.len(), LINE_BYTES + 7);
        assert!(line.ends_with(b"x [cut]\n"));
    }

    #[test]
    fn the_end_waits_no_longer_than_it_is_told() {
        let (queue, _words) = mpsc::sync_channel(1);
        assert!(send(&queue, Word::Line(Vec::new()), Duration::ZERO));
        assert!(!send(&queue, Word::Line(Vec::new()), Duration::from_millis(30)));
    }
}
