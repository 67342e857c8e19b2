//! The thread that asks the runtime, so that a reading never waits for an answer.
//!
//! Version and Status each second, a relist every ten; each call at most once in flight. A call that hangs is
//! given up after the kubelet's own two minutes and asked again, so that nothing piles up in a stopped server.

mod inspect;
mod pods;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nodewhy_clock::{Clock, Stamp};
use tokio::net::UnixStream;
use tokio::sync::mpsc::{self, UnboundedSender};

pub(super) use self::inspect::{Inspected, One};
use self::pods::Targets;
use crate::cri::{CallError, Client, StatusResponse, VersionResponse};
use crate::host::{Host, ReadError};

/// Verbs take turns within the second: a runtime that stops meets a question after half a second at most.
const STATUS_TURN: Duration = Duration::from_millis(500);
const RELIST_TURN: Duration = Duration::from_millis(250);
/// The first may meet the old connection, the second one that was made as the runtime died.
const TRIES: usize = 3;
/// The shortest pause between a verb's answer and its next question.
const LEAST_PAUSE: Duration = Duration::from_millis(250);
/// A call this old wakes the collector: with a stopped process it is proof now, not at the next tick.
const SUSPECT_AFTER: Duration = Duration::from_secs(3);
const ASK_EVERY: Duration = Duration::from_secs(1);
/// The kubelet relists each second; ten seconds show the same hang, and cost a node with 500 containers a tenth.
const RELIST_EVERY: Duration = Duration::from_secs(10);
const DIAL_EVERY: Duration = Duration::from_secs(10);
/// The kubelet's runtime-request-timeout.
const GIVE_UP_AFTER: Duration = Duration::from_secs(120);

/// How the newest connect went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// The kernel took it: somebody listens. That does not mean that anybody accepts.
    Connected {
        /// Who listens.
        pid: Option<u32>,
    },
    /// ENOENT.
    Missing,
    /// ECONNREFUSED: the file is there, nobody listens.
    Refused,
    /// EAGAIN: the queue of connections that nobody accepts is full.
    BacklogFull,
    /// Another word of the kernel's.
    Failed {
        /// Whether a right is missing.
        denied: bool,
        /// In words.
        error: String,
    },
}

/// A call that ended.
#[derive(Clone, Debug)]
pub(super) struct Ended<T> {
    /// When.
    pub(super) at: Stamp,
    /// How long it had taken.
    pub(super) took: Duration,
    /// How.
    pub(super) result: Result<T, CallError>,
    /// Whether a new connection was tried for while it was in flight: then a break is no old connection's.
    pub(super) is_on_new_connection: bool,
}

/// One verb: what is in flight, and how the newest ended.
#[derive(Clone, Debug)]
pub(super) struct Verb<T> {
    /// The call in flight.
    pub(super) began: Option<Stamp>,
    /// Since when there has been no answer: the first of the calls that were given up, or the one in flight.
    pub(super) unanswered: Option<Stamp>,
    /// The newest that ended.
    pub(super) ended: Option<Ended<T>>,
    /// How many connects had been tried when the newest call began.
    connects: u64,
}

impl<T> Default for Verb<T> {
    fn default() -> Verb<T> {
        Verb { began: None, unanswered: None, ended: None, connects: 0 }
    }
}

impl<T> Verb<T> {
    /// Whether it has ended, and is not in flight.
    pub(super) fn is_settled(&self) -> bool {
        self.ended.is_some() && self.began.is_none()
    }

    fn begin(&mut self, at: Stamp, connects: u64) {
        self.connects = connects;
        self.began = Some(at);
        self.unanswered.get_or_insert(at);
    }

    fn end(&mut self, at: Stamp, connects: u64, result: Result<T, CallError>) {
        let Some(began) = self.began.take() else { return };
        // Given up is not answered: the hang goes on, and keeps its beginning.
        if !matches!(result, Err(CallError::GivenUp(_))) {
            self.unanswered = None;
        }
        let is_on_new_connection = connects != self.connects;
        self.ended =
            Some(Ended { at, took: at.boot.saturating_sub(began.boot), result, is_on_new_connection });
    }
}

/// Sandboxes and containers, each state's number as the CRI counts them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    /// The states of all sandboxes.
    pub(super) sandboxes: Vec<i32>,
    /// The states of all containers.
    pub(super) containers: Vec<i32>,
}

/// Everything known of the runtime's answers.
#[derive(Clone, Debug, Default)]
pub(super) struct Board {
    /// How many connects were tried.
    pub(super) connects: u64,
    /// The newest connect and since when connects go that way.
    pub(super) link: Option<(Link, Stamp)>,
    /// `Version`.
    pub(super) version: Verb<VersionResponse>,
    /// `Status`.
    pub(super) status: Verb<StatusResponse>,
    /// `ListPodSandbox`, then `ListContainers`: our own relist.
    pub(super) relist: Verb<Counted>,
    /// The first half of the relist.
    pub(super) list_pod_sandbox: Verb<()>,
    /// The second half.
    pub(super) list_containers: Verb<()>,
    /// What single sandboxes and containers answered.
    pub(super) inspected: Inspected,
    /// Whom to ask one by one, by the newest relist.
    pub(super) targets: Targets,
}

impl Board {
    /// Whether this is another link than before.
    fn connected(&mut self, link: Link, at: Stamp) -> bool {
        self.connects += 1;
        let is_new = self.link.as_ref().is_none_or(|(known, _)| *known != link);
        if is_new {
            self.link = Some((link, at));
        }
        is_new
    }

    /// What a connect showed that was made to look, and for no call. Whether that is news.
    fn dialled(&mut self, link: Link, at: Stamp) -> bool {
        let is_new = self.link.as_ref().is_none_or(|(known, _)| *known != link);
        if is_new {
            self.link = Some((link, at));
        }
        is_new
    }

    /// Whether each verb has ended once, and none is being asked again: the first reading is then complete.
    fn is_complete(&self) -> bool {
        self.version.is_settled() && self.status.is_settled() && self.relist.is_settled()
    }
}

#[derive(Debug)]
struct Shared {
    board: Mutex<Board>,
    changed: Condvar,
    /// Readable when the collector should look at once.
    news: EventFd,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Board> {
        // A panic elsewhere leaves the board as it was: still worth reading.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, change: impl FnOnce(&mut Board)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn wake(&self) {
        // It fails only when the counter is full: then it is readable already.
        self.news.write(1).ok();
    }
}

/// The thread that asks. Dropped, it ends, with its connection and its calls.
#[derive(Debug)]
pub(super) struct Asking {
    shared: Arc<Shared>,
    next: Option<UnboundedSender<Asker>>,
    thread: Option<JoinHandle<()>>,
}

impl Asking {
    /// Begins to ask at this socket.
    ///
    /// # Errors
    /// The kernel gives no thread or no event descriptor.
    pub(super) fn start(host: &Host, socket: PathBuf) -> Result<Asking, ReadError> {
        let shown = socket.clone();
        let failed = |error| cannot_start(&shown, error);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let mut asker = Asker::new(host, socket).map_err(failed)?;
        let shared = asker.shared.clone();
        let (next, mut others) = mpsc::unbounded_channel();
        let thread = std::thread::Builder::new()
            .name("cri".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    loop {
                        tokio::select! {
                            () = asker.ask() => return,
                            other = others.recv() => match other {
                                Some(other) => asker = other,
                                // Dropped: it ends.
                                None => return,
                            },
                        }
                    }
                });
                // No blocking task is ever started; this only frees what is left at once.
                runtime.shutdown_background();
            })
            .map_err(failed)?;
        Ok(Asking { shared, next: Some(next), thread: Some(thread) })
    }

    /// Forgets the connection and its calls, and asks anew at this socket. On the same thread: a runtime that was
    /// restarted on a node without free process ids is followed too.
    ///
    /// # Errors
    /// The kernel gives no event descriptor, or the thread has ended; then all stays as it was.
    pub(super) fn ask_at(&mut self, host: &Host, socket: PathBuf) -> Result<(), ReadError> {
        let asker = Asker::new(host, socket.clone()).map_err(|error| cannot_start(&socket, error))?;
        let shared = asker.shared.clone();
        if self.next.as_ref().is_none_or(|next| next.send(asker).is_err()) {
            *self = Asking::start(host, socket)?;
            return Ok(());
        }
        self.shared = shared;
        Ok(())
    }

    /// Readable when something changed that is worth a look at once.
    pub(super) fn news(&self) -> BorrowedFd<'_> {
        self.shared.news.as_fd()
    }

    /// What is known now.
    pub(super) fn board(&self) -> Board {
        // Emptied before the board is read, so that news after it wake again. Empty already: nothing to do.
        self.shared.news.read().ok();
        self.shared.lock().clone()
    }

    /// Whether anything of this is left after it was dropped.
    #[cfg(test)]
    pub(super) fn watch(&self) -> std::sync::Weak<impl Sized + use<>> {
        Arc::downgrade(&self.shared)
    }

    /// Which thread asks.
    #[cfg(test)]
    pub(super) fn thread_id(&self) -> Option<std::thread::ThreadId> {
        self.thread.as_ref().map(|thread| thread.thread().id())
    }

    /// What is known once each verb has ended, or after `limit` at the latest.
    pub(super) fn first_board(&self, limit: Duration) -> Board {
        self.board_when(Board::is_complete, limit)
    }

    /// What is known once Version and Status wait for no answer, or after `limit` at the latest.
    pub(super) fn board_with_answers(&self, limit: Duration) -> Board {
        let are_here = |board: &Board| board.version.unanswered.or(board.status.unanswered).is_none();
        self.board_when(are_here, limit)
    }

    fn board_when(&self, holds: impl Fn(&Board) -> bool, limit: Duration) -> Board {
        let waited = self.shared.changed.wait_timeout_while(self.shared.lock(), limit, |board| !holds(board));
        waited.unwrap_or_else(PoisonError::into_inner).0.clone()
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        drop(self.next.take());
        if let Some(thread) = self.thread.take() {
            // Nothing on it blocks, so this takes no longer than one poll. A panic there has been told already.
            drop(thread.join());
        }
    }
}

fn cannot_start(socket: &Path, error: io::Error) -> ReadError {
    ReadError::Other(format!("cannot start asking the runtime at {}: {error}", socket.display()))
}

#[derive(Debug)]
struct Asker {
    host: Host,
    clock: Clock,
    socket: PathBuf,
    shared: Arc<Shared>,
}

impl Asker {
    fn new(host: &Host, socket: PathBuf) -> io::Result<Asker> {
        let news = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let shared = Arc::new(Shared { board: Mutex::default(), changed: Condvar::new(), news });
        Ok(Asker { host: host.clone(), clock: host.clock().clone(), socket, shared })
    }

    async fn ask(&self) {
        let client = self.client();
        tokio::join!(
            self.keep(
                (ASK_EVERY, Duration::ZERO),
                |board| &mut board.version,
                async || { self.bounded(client.version()).await }
            ),
            self.keep(
                (ASK_EVERY, STATUS_TURN),
                |board| &mut board.status,
                async || { self.bounded(client.status()).await }
            ),
            self.keep(
                (RELIST_EVERY, RELIST_TURN),
                |board| &mut board.relist,
                async || { self.relist(&client).await }
            ),
            self.inspect(&client),
            self.dial(),
        );
    }

    /// Connects anew now and then: an old connection that is still answered may hide that nobody listens any more.
    async fn dial(&self) {
        loop {
            let is_there = self
                .shared
                .lock()
                .link
                .as_ref()
                .is_none_or(|(link, _)| matches!(link, Link::Connected { .. }));
            self.clock.sleep(if is_there { DIAL_EVERY } else { ASK_EVERY }).await;
            let link = match self.host.connect_unix(&self.socket) {
                Ok(peer) => Link::Connected { pid: peer.pid },
                Err(error) => link(&error),
            };
            let mut is_new = false;
            self.shared.note(|board| is_new = board.dialled(link, self.clock.stamp()));
            if is_new {
                self.shared.wake();
            }
        }
    }

    fn client(&self) -> Client {
        let (host, socket, shared) = (self.host.clone(), self.socket.clone(), self.shared.clone());
        Client::new(move || {
            let connected = host.connect_unix(&socket);
            let link = match &connected {
                Ok(peer) => Link::Connected { pid: peer.pid },
                Err(error) => link(error),
            };
            let mut is_new = false;
            shared.note(|board| is_new = board.connected(link, host.clock().stamp()));
            if is_new {
                shared.wake();
            }
            async move { UnixStream::from_std(connected?.stream) }
        })
    }

    /// Asks, tells the board, waits, for ever.
    async fn keep<T>(
        &self,
        (every, turn): (Duration, Duration),
        verb: impl Fn(&mut Board) -> &mut Verb<T>,
        call: impl AsyncFn() -> Result<T, CallError>,
    ) {
        loop {
            // A connection that broke under a call says nothing of the runtime as it is now: a new one does. A few
            // tries, not over and over: a peer that drops each connection is asked each second.
            self.shared.note(|board| {
                let connects = board.connects;
                verb(board).begin(self.clock.stamp(), connects)
            });
            for left in (0..TRIES).rev() {
                if let Asked::Ended = self.once(&verb, &call, left > 0).await {
                    break;
                }
            }
            self.clock.sleep_until(next_turn(self.clock.since_boot(), every, turn)).await;
        }
    }

    async fn once<T>(
        &self,
        verb: &impl Fn(&mut Board) -> &mut Verb<T>,
        call: &impl AsyncFn() -> Result<T, CallError>,
        is_tried_again: bool,
    ) -> Asked {
        let mut calling = pin!(call());
        let early = self.clock.timeout(SUSPECT_AFTER, calling.as_mut()).await;
        let is_late = early.is_none();
        let result = match early {
            Some(result) => result,
            None => {
                self.shared.wake();
                calling.await
            }
        };
        let broken = matches!(result, Err(CallError::Broken(_)));
        self.shared.note(|board| {
            let (at, connects) = (self.clock.stamp(), board.connects);
            verb(board).end(at, connects, result);
            // In one step: between two tries nobody may take the verb for settled.
            if broken && is_tried_again {
                verb(board).begin(at, connects);
            }
        });
        if is_late {
            // A slow answer must be seen before the next, fast one takes its place.
            self.shared.wake();
        }
        if broken { Asked::Broken } else { Asked::Ended }
    }

    async fn bounded<T>(&self, call: impl Future<Output = Result<T, CallError>>) -> Result<T, CallError> {
        let result = self.clock.timeout(GIVE_UP_AFTER, call).await;
        result.unwrap_or(Err(CallError::GivenUp(GIVE_UP_AFTER.as_secs())))
    }

    async fn relist(&self, client: &Client) -> Result<Counted, CallError> {
        let sandboxes =
            self.part(|board| &mut board.list_pod_sandbox, client.list_pod_sandbox()).await?.items;
        let containers =
            self.part(|board| &mut board.list_containers, client.list_containers()).await?.containers;
        let (pods, targets) = pods::sorted(&sandboxes, &containers);
        self.host.learn_pods(pods);
        self.shared.lock().targets = targets;
        Ok(Counted {
            sandboxes: sandboxes.into_iter().map(|sandbox| sandbox.state).collect(),
            containers: containers.into_iter().map(|container| container.state).collect(),
        })
    }

    /// One half of the relist, on the board by itself: which of the two hangs is worth knowing.
    async fn part<T>(
        &self,
        verb: impl Fn(&mut Board) -> &mut Verb<()>,
        call: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        self.shared.note(|board| {
            let connects = board.connects;
            verb(board).begin(self.clock.stamp(), connects)
        });
        let result = self.bounded(call).await;
        let told = result.as_ref().map(|_| ()).map_err(Clone::clone);
        self.shared.note(|board| {
            let connects = board.connects;
            verb(board).end(self.clock.stamp(), connects, told)
        });
        result
    }
}

enum Asked {
    Ended,
    Broken,
}

/// The next instant of `turn + n * every` on the clock, after the least pause: verbs do not drift together.
pub(super) fn next_turn(now: Duration, every: Duration, turn: Duration) -> Duration {
    let earliest = now + LEAST_PAUSE;
    let past = (earliest + every).as_nanos().saturating_sub(turn.as_nanos()) % every.as_nanos();
    // Never more than `every`, which fits.
    let left = u64::try_from(every.as_nanos() - past).unwrap_or(u64::MAX);
    earliest + Duration::from_nanos(left)
}

fn link(error: &io::Error) -> Link {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => Link::Missing,
        Some(Errno::ECONNREFUSED) => Link::Refused,
        Some(Errno::EAGAIN) => Link::BacklogFull,
        Some(Errno::EACCES | Errno::EPERM) => Link::Failed { denied: true, error: error.to_string() },
        _ => Link::Failed { denied: false, error: error.to_string() },
    }
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    inspect::fuzz(bytes);
}
