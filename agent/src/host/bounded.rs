//! Reads that may hang, on a thread of their own: made once, one read in flight. Whoever asks waits for a limited time.

use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::time::Duration;

use super::ReadError;

/// Such a read needs little.
const STACK_BYTES: usize = 256 * 1024;

type Job = Box<dyn FnOnce() + Send>;

/// The thread. It ends when this is dropped, or when the read that hangs does.
#[derive(Debug)]
pub struct Bounded {
    name: &'static str,
    jobs: Option<mpsc::Sender<Job>>,
    /// Ends when the read does that was given last.
    flight: Option<mpsc::Receiver<()>>,
}

impl Bounded {
    /// No thread yet: the first read starts it.
    pub fn new(name: &'static str) -> Bounded {
        Bounded { name, jobs: None, flight: None }
    }

    /// Starts the thread now: a node whose process ids are used up gives none later.
    ///
    /// # Errors
    /// The kernel gives no thread.
    pub fn start(&mut self) -> Result<(), ReadError> {
        self.give(Box::new(|| {}))
    }

    /// Whether an earlier read hangs still.
    pub fn is_hanging(&mut self) -> bool {
        let hangs =
            self.flight.as_ref().is_some_and(|flight| matches!(flight.try_recv(), Err(TryRecvError::Empty)));
        if !hangs {
            self.flight = None;
        }
        hangs
    }

    /// Runs this there and waits for `limit` at most. What has not ended by then goes on, and its result is lost.
    ///
    /// # Errors
    /// The time was up, an earlier read hangs still, or the kernel gives no thread.
    pub fn run<T: Send + 'static>(
        &mut self,
        limit: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ReadError> {
        if self.is_hanging() {
            return Err(ReadError::Other(format!("an earlier read of `{}` hangs still", self.name)));
        }
        let (answer, answered) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let job: Job = Box::new(move || {
            let result = work();
            // Before the answer, or whoever asks again at once would take this one for hanging.
            drop(end);
            // Nobody listens any more when the time was up.
            answer.send(result).ok();
        });
        self.give(job)?;
        self.flight = Some(ended);
        match answered.recv_timeout(limit) {
            Ok(result) => Ok(result),
            Err(RecvTimeoutError::Timeout) => {
                Err(ReadError::Other(format!("a read of `{}` has no end after {limit:?}", self.name)))
            }
            Err(RecvTimeoutError::Disconnected) => {
                self.jobs = None;
                Err(ReadError::Other(format!("the thread `{}` has ended", self.name)))
            }
        }
    }

    fn give(&mut self, job: Job) -> Result<(), ReadError> {
        let failed = |what: String| ReadError::Other(format!("cannot start the thread `{what}`"));
        let jobs = match &self.jobs {
            Some(jobs) => jobs.clone(),
            None => {
                let (jobs, given) = mpsc::channel::<Job>();
                std::thread::Builder::new()
                    .name(self.name.to_owned())
                    .stack_size(STACK_BYTES)
                    .spawn(move || given.iter().for_each(|job| job()))
                    .map_err(|error| failed(format!("{}`: `{error}", self.name)))?;
                self.jobs.insert(jobs).clone()
            }
        };
        jobs.send(job).map_err(|_| failed(self.name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_is_waited_for_once_and_what_follows_is_refused_until_it_ends() {
        let mut bounded = Bounded::new("test");
        assert_eq!(bounded.run(Duration::from_secs(5), || 1).unwrap(), 1);
        let (release, released) = mpsc::channel::<()>();
        let hung = bounded.run(Duration::from_millis(20), move || released.recv().is_ok());
        assert!(hung.unwrap_err().to_string().contains("has no end"));
        assert!(bounded.run(Duration::from_secs(5), || 2).unwrap_err().to_string().contains("hangs still"));
        release.send(()).unwrap();
        while bounded.is_hanging() {
            std::thread::yield_now();
        }
        assert_eq!(bounded.run(Duration::from_secs(5), || 3).unwrap(), 3);
    }
}
