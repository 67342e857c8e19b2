//! One call, as either side holds it: what has come for it, how much may still be sent, and whether it is over.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::channel::{self, End, Kind, WINDOW_BYTES};

/// Sends a frame's bytes to the other side.
pub type Send = Arc<dyn Fn(Vec<u8>) -> io::Result<()> + std::marker::Send + Sync>;

/// A call that is under way.
pub struct Call {
    number: u32,
    send: Send,
    state: Mutex<State>,
    /// Readable when something changed.
    changed: EventFd,
}

struct State {
    input: VecDeque<(Kind, Vec<u8>)>,
    input_bytes: usize,
    input_closed: bool,
    /// Consumed, and not yet told to the other side.
    owed_bytes: usize,
    credit_bytes: usize,
    cancelled: Option<String>,
    end: Option<End>,
}

/// What has come for a call.
#[derive(Debug, PartialEq, Eq)]
pub enum Input {
    /// Bytes, of [`Kind::Bytes`] or of [`Kind::Error`].
    Bytes(Kind, Vec<u8>),
    /// No more will come.
    Closed,
    /// Nothing for now.
    Nothing,
}

impl fmt::Debug for Call {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Call").field("number", &self.number).finish_non_exhaustive()
    }
}

/// A lock whose holder panicked is taken all the same: each change of a state here is whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Call {
    /// A call of this number, which sends by `send`.
    ///
    /// # Errors
    /// No eventfd is to be had.
    pub fn new(number: u32, send: Send) -> io::Result<Call> {
        let state = State {
            input: VecDeque::new(),
            input_bytes: 0,
            input_closed: false,
            owed_bytes: 0,
            credit_bytes: WINDOW_BYTES,
            cancelled: None,
            end: None,
        };
        let changed = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Call { number, send, state: Mutex::new(state), changed })
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// A frame came for it. Called by the port's reader: it never waits.
    pub fn deliver(&self, kind: Kind, payload: Vec<u8>) {
        let mut state = lock(&self.state);
        match kind {
            Kind::Ask => {}
            Kind::Bytes | Kind::Error => {
                state.input_bytes += payload.len();
                if state.input_bytes > WINDOW_BYTES {
                    state
                        .cancelled
                        .get_or_insert_with(|| "more bytes came than the window allows".to_owned());
                } else {
                    state.input.push_back((kind, payload));
                }
            }
            Kind::Close => state.input_closed = true,
            Kind::More => match <[u8; 4]>::try_from(payload.as_slice()).map(u32::from_le_bytes) {
                Ok(more) => {
                    let more = usize::try_from(more).unwrap_or(usize::MAX);
                    state.credit_bytes = state.credit_bytes.saturating_add(more).min(WINDOW_BYTES);
                }
                Err(_) => state.cancelled = Some("a malformed More came".to_owned()),
            },
            Kind::Cancel => {
                state.cancelled.get_or_insert_with(|| "cancelled by the host".to_owned());
            }
            Kind::End => match serde_json::from_slice(&payload) {
                Ok(end) => {
                    state.end = Some(end);
                    state.input_closed = true;
                }
                Err(error) => state.cancelled = Some(format!("a malformed End came: {error}")),
            },
        }
        drop(state);
        self.wake();
    }

    /// It is over, and why.
    pub fn cancel(&self, why: &str) {
        lock(&self.state).cancelled.get_or_insert_with(|| why.to_owned());
        self.wake();
    }

    /// Why it is over, where it was cancelled.
    pub fn cancelled(&self) -> Option<String> {
        lock(&self.state).cancelled.clone()
    }

    /// How the other side ended it, once it did and all of its bytes were taken.
    pub fn end(&self) -> Option<End> {
        let state = lock(&self.state);
        state.end.clone().filter(|_| state.input.is_empty())
    }

    /// The next that came. What was taken is told to the other side, so that it may send more.
    ///
    /// # Errors
    /// The port's own.
    pub fn take(&self) -> io::Result<Input> {
        let mut state = lock(&self.state);
        let Some((kind, bytes)) = state.input.pop_front() else {
            return Ok(if state.input_closed { Input::Closed } else { Input::Nothing });
        };
        state.input_bytes -= bytes.len();
        state.owed_bytes += bytes.len();
        let owed = state.owed_bytes;
        if owed >= WINDOW_BYTES / 4 && !state.input_closed {
            state.owed_bytes = 0;
            drop(state);
            let owed = u32::try_from(owed).unwrap_or(u32::MAX);
            (self.send)(channel::frame(self.number, Kind::More, &owed.to_le_bytes())?)?;
        }
        Ok(Input::Bytes(kind, bytes))
    }

    /// How many bytes may be sent now.
    pub fn credit_bytes(&self) -> usize {
        lock(&self.state).credit_bytes
    }

    /// Sends bytes: no more than [`Call::credit_bytes`] allows.
    ///
    /// # Errors
    /// More than that, or the port's own.
    pub fn send(&self, kind: Kind, bytes: &[u8]) -> io::Result<()> {
        {
            let mut state = lock(&self.state);
            let rest = state.credit_bytes.checked_sub(bytes.len());
            state.credit_bytes = rest.ok_or_else(|| io::Error::other("more bytes than the window allows"))?;
        }
        for piece in channel::pieces(bytes) {
            (self.send)(channel::frame(self.number, kind, piece)?)?;
        }
        Ok(())
    }

    /// Sends a frame that is not counted: Ask, Close, Cancel, End.
    ///
    /// # Errors
    /// The port's own.
    pub fn say(&self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        (self.send)(channel::frame(self.number, kind, payload)?)
    }

    /// Forgets that something changed. Before the state is looked at, so that no change is missed.
    pub fn listen(&self) {
        // Nonblocking: an error is EAGAIN, that nothing changed.
        self.changed.read().ok();
    }

    fn wake(&self) {
        // It fails only when the counter is full: then it is readable anyway.
        self.changed.write(1).ok();
    }
}

impl AsFd for Call {
    /// Readable when something changed since [`Call::listen`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.changed.as_fd()
    }
}
