//! What is read only when it is asked for: each path on a thread of its own, one reading in flight, with a deadline.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use nodewhy_clock::{Clock, Stamp};
use nodewhy_proto::{Answer, Outcome, Problem};
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;

use crate::collector::{Ask, AskError};
use crate::host::Host;

/// A path that is read when it is asked for.
pub(super) struct Desk {
    collector: &'static str,
    ask: &'static Ask,
    clock: Clock,
    /// One reading at a time: it is given back when the reading ends, not when its asker gave up.
    place: Arc<Semaphore>,
    jobs: Sender<Job>,
    began: Arc<Mutex<Option<Stamp>>>,
}

struct Job {
    parameters: BTreeMap<String, String>,
    reply: oneshot::Sender<Told>,
    _place: OwnedSemaphorePermit,
}

type Told = Result<Result<Value, AskError>, String>;

impl Desk {
    /// Starts its thread: a node without free process ids gives none later.
    pub(super) fn open(
        collector: &'static str,
        ask: &'static Ask,
        host: &Host,
        clock: &Clock,
    ) -> std::io::Result<Desk> {
        let (jobs, received) = channel();
        let began = Arc::new(Mutex::new(None));
        let (host, seen) = (host.clone(), began.clone());
        // A thread that hangs in the kernel can't be joined: none is. It ends with the desk.
        std::thread::Builder::new()
            .name(format!("a-{}", ask.path.trim_start_matches("/api/v1/")))
            .stack_size(crate::schedule::STACK_BYTES)
            .spawn(move || work(ask, &host, &received, &seen))?;
        Ok(Desk { collector, ask, clock: clock.clone(), place: Arc::new(Semaphore::new(1)), jobs, began })
    }

    /// Reads, or says why not.
    pub(super) async fn answer(&self, parameters: BTreeMap<String, String>) -> Result<Answer, Problem> {
        // Somebody else's reading may be in flight; one that hangs is not waited for.
        if self.in_flight().is_some_and(|(_, seconds)| seconds >= self.ask.deadline.as_secs_f64()) {
            return Err(self.hangs());
        }
        let place = match timeout(self.ask.deadline, self.place.clone().acquire_owned()).await {
            Ok(Ok(place)) => place,
            Ok(Err(_)) => return Err(self.gone()),
            Err(_) => return Err(self.hangs()),
        };
        let (reply, told) = oneshot::channel();
        let began = self.clock.stamp();
        *lock(&self.began) = Some(began);
        self.jobs.send(Job { parameters, reply, _place: place }).map_err(|_| self.gone())?;
        let told = match timeout(self.ask.deadline, told).await {
            Ok(Ok(told)) => told,
            Ok(Err(_)) => return Err(self.gone()),
            Err(_) => return Err(self.hangs()),
        };
        let now = self.clock.stamp();
        let (outcome, answer) = match told {
            Ok(Ok(answer)) => (Outcome::Read, Some(answer)),
            Ok(Err(AskError::Parameter(why))) => return Err(Problem::new(400, "Bad Request", why)),
            Ok(Err(AskError::Read(error))) => match error.outcome() {
                absent @ Outcome::Absent { .. } => (absent, None),
                _ => return Err(Problem::new(503, "Service Unavailable", error.to_string())),
            },
            Err(panic) => {
                let detail = format!(
                    "a defect in nodewhy: reading {} panicked: {panic}. Please report it",
                    self.ask.path
                );
                return Err(Problem::new(500, "Internal Server Error", detail));
            }
        };
        Ok(Answer {
            collector: self.collector.to_owned(),
            outcome,
            read_at: now.wall,
            took_seconds: now.boot.saturating_sub(began.boot).as_secs_f64(),
            answer,
        })
    }

    fn in_flight(&self) -> Option<(Stamp, f64)> {
        let began = (*lock(&self.began))?;
        Some((began, self.clock.since_boot().saturating_sub(began.boot).as_secs_f64()))
    }

    fn hangs(&self) -> Problem {
        let since = self.in_flight().map_or_else(
            || format!("has not answered within {:?}", self.ask.deadline),
            |(began, seconds)| format!("has hung since {} ({seconds:.0} s)", began.wall),
        );
        let detail = format!(
            "reading {} {since}; it goes on, and no second one is begun: ask again later. /api/v1/state says how the \
             collector {} does",
            self.ask.path, self.collector
        );
        Problem::new(504, "Gateway Timeout", detail)
    }

    fn gone(&self) -> Problem {
        let detail =
            format!("the thread that reads {} is gone: restart the agent and report it", self.ask.path);
        Problem::new(500, "Internal Server Error", detail)
    }
}

fn work(ask: &Ask, host: &Host, jobs: &Receiver<Job>, began: &Mutex<Option<Stamp>>) {
    while let Ok(job) = jobs.recv() {
        let told = catch_unwind(AssertUnwindSafe(|| (ask.answer)(host, &job.parameters)))
            .map_err(|panic| crate::schedule::panic_text(panic.as_ref()));
        *lock(began) = None;
        if job.reply.send(told).is_err() {
            tracing::debug!(path = ask.path, "an answer came too late for who asked");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
