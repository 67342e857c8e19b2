use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::ReadError;

const STACK_BYTES: usize = 256 * 1024;

type Job<T> = Box<dyn FnOnce() -> T + Send>;

/// One thread, made once, for what may hang: a connection, a lock of the kernel's. One job is in flight at a time; its
/// result waits until it is taken. Dropped, the thread ends after the job that it is in.
#[derive(Debug)]
pub struct Apart<T> {
    name: String,
    jobs: Sender<Job<T>>,
    results: Receiver<T>,
    /// Readable when a result waits.
    news: Arc<EventFd>,
    /// When the job in flight was given.
    began: Option<Duration>,
}

impl<T: Send + 'static> Apart<T> {
    /// Starts the thread under this name (15 bytes at most are shown).
    ///
    /// # Errors
    /// The kernel gives no thread or no event descriptor.
    pub fn start(name: &str) -> Result<Apart<T>, ReadError> {
        let failed = |error| ReadError::Other(format!("cannot start the thread {name}: {error}"));
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let news = EventFd::from_value_and_flags(0, flags).map_err(|errno| failed(errno.into()))?;
        let news = Arc::new(news);
        let (jobs, given) = mpsc::channel::<Job<T>>();
        let (done, results) = mpsc::channel();
        let told = news.clone();
        std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                for job in given {
                    if done.send(job()).is_err() {
                        return;
                    }
                    // It fails only when the counter is full: then it is readable already.
                    told.write(1).ok();
                }
            })
            .map_err(failed)?;
        Ok(Apart { name: name.to_owned(), jobs, results, news, began: None })
    }

    /// Gives it a job, unless one is in flight: whether it was given. `now` is time since boot.
    pub fn begin(&mut self, now: Duration, job: impl FnOnce() -> T + Send + 'static) -> bool {
        if self.began.is_some() || self.jobs.send(Box::new(job)).is_err() {
            return false;
        }
        self.began = Some(now);
        true
    }

    /// When the job in flight was given, in time since boot.
    pub fn began(&self) -> Option<Duration> {
        self.began
    }

    /// The result, once it is there; waits for `limit` at most.
    ///
    /// # Errors
    /// The thread is gone, for a job panicked: another one is started.
    pub fn take(&mut self, limit: Duration) -> Result<Option<T>, ReadError> {
        if self.began.is_none() {
            return Ok(None);
        }
        match self.results.recv_timeout(limit) {
            Ok(result) => {
                // Nobody else reads it; EAGAIN means that the wake is still to come, and will find nothing.
                self.news.read().ok();
                self.began = None;
                Ok(Some(result))
            }
            Err(RecvTimeoutError::Timeout) => {
                self.news.read().ok();
                Ok(None)
            }
            Err(RecvTimeoutError::Disconnected) => {
                *self = Apart::start(&self.name)?;
                let what =
                    format!("a defect in nodewhy: the thread {} panicked. Please report it", self.name);
                Err(ReadError::Other(what))
            }
        }
    }
}

impl<T> AsFd for Apart<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_job_at_a_time_and_its_result_is_waited_for_no_longer_than_the_limit() {
        let mut apart = Apart::start("test").unwrap();
        let (go, gone) = mpsc::channel::<()>();
        assert!(apart.begin(Duration::from_secs(1), move || gone.recv().is_err()));
        assert!(!apart.begin(Duration::from_secs(2), || false));
        assert_eq!(apart.take(Duration::from_millis(10)).unwrap(), None);
        assert_eq!(apart.began(), Some(Duration::from_secs(1)));
        drop(go);
        assert_eq!(apart.take(Duration::from_secs(10)).unwrap(), Some(true));
        assert_eq!(apart.began(), None);
        assert!(apart.begin(Duration::from_secs(3), || false));
    }

    #[test]
    fn a_thread_that_is_gone_is_told_and_made_anew() {
        let mut apart = Apart::<()>::start("test").unwrap();
        apart.begin(Duration::ZERO, || std::panic::resume_unwind(Box::new("made by the test")));
        assert!(apart.take(Duration::from_secs(10)).is_err());
        assert!(apart.begin(Duration::ZERO, || ()));
        assert_eq!(apart.take(Duration::from_secs(10)).unwrap(), Some(()));
    }
}
