//! Work that takes too long for a tick: on a thread of its own, made once, one piece at a time.

use std::io;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nodewhy_clock::{Clock, Stamp};

/// Parsers of answers need no more.
const STACK_BYTES: usize = 512 * 1024;

type Job<T> = Box<dyn FnOnce() -> T + Send>;

/// A thread that works for one collector, and what its newest piece of work came to.
pub struct Apart<T> {
    jobs: mpsc::Sender<Job<T>>,
    state: Arc<Mutex<State<T>>>,
    clock: Clock,
}

struct State<T> {
    began: Option<Stamp>,
    newest: Option<(Arc<T>, Stamp)>,
}

impl<T: Send + Sync + 'static> Apart<T> {
    /// Starts the thread. It ends with this value, or when the work in flight ends.
    ///
    /// # Errors
    /// The kernel gives no thread.
    pub fn start(name: &str, clock: Clock) -> io::Result<Apart<T>> {
        let (jobs, given) = mpsc::channel::<Job<T>>();
        let state = Arc::new(Mutex::new(State { began: None, newest: None }));
        let (its, time) = (state.clone(), clock.clone());
        std::thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(move || {
            for job in given {
                let result = Arc::new(job());
                let mut state = lock(&its);
                state.newest = Some((result, time.stamp()));
                state.began = None;
            }
        })?;
        Ok(Apart { jobs, state, clock })
    }

    /// Begins this piece of work, unless one is in flight.
    pub fn give(&self, job: impl FnOnce() -> T + Send + 'static) {
        let mut state = lock(&self.state);
        if state.began.is_none() && self.jobs.send(Box::new(job)).is_ok() {
            state.began = Some(self.clock.stamp());
        }
    }

    /// Since when one is in flight.
    pub fn in_flight(&self) -> Option<Stamp> {
        lock(&self.state).began
    }

    /// The newest result, and when it came.
    pub fn newest(&self) -> Option<(Arc<T>, Stamp)> {
        lock(&self.state).newest.clone()
    }
}

fn lock<T>(state: &Mutex<State<T>>) -> MutexGuard<'_, State<T>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_piece_at_a_time_and_the_newest_result() {
        let clock = Clock::system();
        let apart = Apart::start("test", clock).unwrap();
        let (go, wait) = mpsc::channel::<()>();
        apart.give(move || {
            wait.recv().ok();
            1
        });
        apart.give(|| 2);
        assert!(apart.in_flight().is_some() && apart.newest().is_none());
        go.send(()).unwrap();
        while apart.in_flight().is_some() {
            std::thread::yield_now();
        }
        assert_eq!(*apart.newest().unwrap().0, 1);
    }
}
