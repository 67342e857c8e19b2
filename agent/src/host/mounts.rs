//! File systems asked for their size, each by a thread that may hang.
//!
//! statfs on a mount whose server is dead waits for ever. So the tick never asks: it hands over what is to be asked,
//! and takes what was answered. A thread that hangs stays with its mount, and another one goes on with the rest. There
//! are never more than [`MOST_THREADS`]; the last one is kept for local file systems.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, fstat, major, minor};
use nix::sys::statvfs::fstatvfs;
use nodewhy_clock::{Clock, Stamp};

use super::Host;

/// Threads in all.
pub const MOST_THREADS: usize = 5;
/// While every thread is with a file system for longer than this, another one is begun.
const IMPATIENT_AFTER: Duration = Duration::from_secs(1);
/// A question needs no more.
const STACK_BYTES: usize = 128 * 1024;

/// A block device's or an anonymous one's number: major, minor.
pub type DeviceNumber = (u32, u32);

/// What a file system says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FsStat {
    /// Its device, by the folder that was asked. btrfs gives each subvolume one of its own.
    pub device: DeviceNumber,
    /// `None`: it tells no size (0 blocks), as pseudo file systems do, and FUSE to whom it does not know.
    pub bytes: Option<FsBytes>,
    /// `None`: it has no fixed number of inodes (btrfs).
    pub inodes: Option<FsInodes>,
}

/// Bytes of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct FsBytes {
    /// All.
    pub total_bytes: u64,
    /// Free for root (`f_bfree`).
    pub free_bytes: u64,
    /// Free for everyone (`f_bavail`): this is what the kubelet goes by.
    pub available_bytes: u64,
}

/// Inodes of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct FsInodes {
    /// All.
    pub inodes: u64,
    /// Free.
    pub inodes_free: u64,
}

/// Why a file system gave no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LookError {
    /// In words: what was tried, on what.
    pub text: String,
    /// There is nothing at this path.
    pub is_gone: bool,
    /// ESTALE: the server no longer knows what is mounted. ENOTCONN: the program behind a FUSE mount has ended.
    pub is_stale: bool,
}

impl LookError {
    fn new(what: &str, path: &Path, errno: Errno) -> LookError {
        LookError {
            text: format!("cannot {what} {}: {}", path.display(), errno.desc()),
            is_gone: errno == Errno::ENOENT,
            is_stale: matches!(errno, Errno::ESTALE | Errno::ENOTCONN),
        }
    }
}

impl Host {
    /// The file system that this path of the host is on. It may hang: see [`Asker`]. Symbolic links are the host's
    /// own; an automount is not set off.
    ///
    /// # Errors
    /// The path is not there, may not be reached, or its file system refuses.
    pub fn filesystem(&self, path: &Path) -> Result<FsStat, LookError> {
        let wrong = |what| move |errno| LookError::new(what, path, errno);
        // With O_PATH nothing is opened: no automount, no device.
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let root = open(self.root(), flags | OFlag::O_DIRECTORY, Mode::empty())
            .map_err(wrong("open the root of"))?;
        let below = path.strip_prefix("/").unwrap_or(path);
        let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
        let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT);
        let found = match openat2(root.as_fd(), below, how) {
            // Before Linux 5.6, or under an older seccomp profile: absolute links lead astray then, no more.
            Err(Errno::ENOSYS | Errno::EPERM) => open(&self.path(path), flags, Mode::empty()),
            // Something was renamed meanwhile.
            Err(Errno::EAGAIN) => openat2(root.as_fd(), below, how),
            found => found,
        }
        .map_err(wrong("look at"))?;
        let there = fstat(&found).map_err(wrong("look at"))?;
        let size = fstatvfs(&found).map_err(wrong("ask the file system of"))?;
        let number = |part: u64| u32::try_from(part).unwrap_or(u32::MAX);
        let scale = size.fragment_size();
        let bytes = |blocks: u64| blocks.checked_mul(scale);
        let bytes = (size.blocks() > 0).then(|| {
            Some(FsBytes {
                total_bytes: bytes(size.blocks())?,
                free_bytes: bytes(size.blocks_free())?,
                available_bytes: bytes(size.blocks_available())?,
            })
        });
        Ok(FsStat {
            device: (number(major(there.st_dev)), number(minor(there.st_dev))),
            bytes: bytes.flatten(),
            inodes: (size.files() > 0)
                .then(|| FsInodes { inodes: size.files(), inodes_free: size.files_free() }),
        })
    }
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Question {
    /// Whether somebody else must answer: a server, a program. Local ones are asked first.
    pub is_remote: bool,
    /// A path of the host.
    pub path: PathBuf,
    /// Which file system is expected there; another one under the same path is another question.
    pub device: Option<DeviceNumber>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// It.
    pub result: Result<FsStat, LookError>,
    /// When.
    pub at: Stamp,
    /// How long it took.
    pub took: Duration,
}

/// What is known of one question.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    /// The newest answer.
    pub answer: Option<Answer>,
    /// Since when it has been asked without an answer.
    pub asked: Option<Stamp>,
}

type Look = dyn Fn(&Path) -> Result<FsStat, LookError> + Send + Sync;

/// Asks file systems. Dropped, its threads end as soon as they are free.
pub struct Asker {
    shared: Arc<Shared>,
}

struct Shared {
    look: Box<Look>,
    clock: Clock,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What waits for a thread, in order: local ones first.
    queue: BTreeSet<Question>,
    known: BTreeMap<Question, Known>,
    threads: usize,
    idle: usize,
    is_closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn in_flight(&self) -> impl Iterator<Item = (&Question, Stamp)> {
        self.known.iter().filter_map(|(question, known)| Some((question, known.asked?)))
    }

    fn next(&mut self) -> Option<Question> {
        let remote = self.in_flight().filter(|(question, _)| question.is_remote).count();
        let allowed = |question: &Question| !question.is_remote || remote + 1 < MOST_THREADS;
        let next = self.queue.iter().find(|question| allowed(question))?.clone();
        self.queue.take(&next)
    }
}

impl Asker {
    /// Asks by this function.
    pub fn new(
        clock: Clock,
        look: impl Fn(&Path) -> Result<FsStat, LookError> + Send + Sync + 'static,
    ) -> Asker {
        let (state, changed) = (Mutex::default(), Condvar::new());
        Asker { shared: Arc::new(Shared { look: Box::new(look), clock, state, changed }) }
    }

    /// Asks all these anew, but for those that have not answered yet. What is not among `all` is forgotten, unless a
    /// thread hangs with it.
    pub fn ask(&self, now: impl IntoIterator<Item = Question>, all: &BTreeSet<Question>) {
        let mut state = self.shared.lock();
        state.known.retain(|question, known| known.asked.is_some() || all.contains(question));
        state.queue.retain(|question| all.contains(question));
        for question in now {
            if state.known.entry(question.clone()).or_default().asked.is_none() {
                state.queue.insert(question);
            }
        }
        drop(state);
        self.tend();
        self.shared.changed.notify_all();
    }

    /// Waits until all is answered, for `limit` at most; not at all while something hangs.
    pub fn wait(&self, limit: Duration) {
        let state = self.shared.lock();
        let now = self.shared.clock.since_boot();
        if state.in_flight().any(|(_, asked)| now.saturating_sub(asked.boot) >= IMPATIENT_AFTER) {
            return;
        }
        let busy = |state: &mut State| !state.queue.is_empty() || state.in_flight().next().is_some();
        // What was answered is told; the rest is at the next tick.
        drop(self.shared.changed.wait_timeout_while(state, limit, busy));
    }

    /// What is known of everything that was asked and not forgotten.
    pub fn known(&self) -> BTreeMap<Question, Known> {
        self.tend();
        self.shared.lock().known.clone()
    }

    /// Whether something is to be asked still, or has not answered: of the local ones alone, or of all.
    pub fn waits(&self, for_remote: bool) -> bool {
        let state = self.shared.lock();
        let counts = |question: &Question| for_remote || !question.is_remote;
        state.queue.iter().any(counts) || state.in_flight().any(|(question, _)| counts(question))
    }

    /// How many threads are at work or wait for it.
    pub fn threads(&self) -> usize {
        self.shared.lock().threads
    }

    /// Begins a thread where none is free soon.
    fn tend(&self) {
        let mut state = self.shared.lock();
        let now = self.shared.clock.since_boot();
        let is_soon_free =
            state.in_flight().any(|(_, asked)| now.saturating_sub(asked.boot) < IMPATIENT_AFTER);
        if state.queue.is_empty() || state.idle > 0 || state.threads >= MOST_THREADS {
            return;
        }
        if state.threads > 0 && is_soon_free {
            return;
        }
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new().name("statfs".to_owned()).stack_size(STACK_BYTES);
        // Without a thread the questions wait; each tick tries again.
        match thread.spawn(move || work(&shared)) {
            Ok(_) => state.threads += 1,
            Err(error) => tracing::warn!("cannot start a thread that asks file systems: {error}"),
        }
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.changed.notify_all();
    }
}

fn work(shared: &Shared) {
    let mut state = shared.lock();
    loop {
        if state.is_closed {
            break;
        }
        let Some(question) = state.next() else {
            // One that is free is enough.
            if state.idle > 0 {
                break;
            }
            state.idle += 1;
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
            continue;
        };
        let began = shared.clock.stamp();
        state.known.entry(question.clone()).or_default().asked = Some(began);
        drop(state);
        let result = (shared.look)(&question.path);
        let at = shared.clock.stamp();
        state = shared.lock();
        let known = state.known.entry(question).or_default();
        known.asked = None;
        known.answer = Some(Answer { result, at, took: at.boot.saturating_sub(began.boot) });
        shared.changed.notify_all();
    }
    state.threads -= 1;
}

impl std::fmt::Debug for Asker {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Asker").field("threads", &self.threads()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::host::Places;

    fn question(path: &str, is_remote: bool) -> Question {
        Question { is_remote, path: path.into(), device: None }
    }

    fn small() -> FsStat {
        let bytes = FsBytes { total_bytes: 100, free_bytes: 50, available_bytes: 40 };
        FsStat { device: (8, 1), bytes: Some(bytes), inodes: None }
    }

    /// Waits, in real time, for what other threads do.
    fn until(what: &str, mut is: impl FnMut() -> bool) {
        for _ in 0..500 {
            if is() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{what}");
    }

    #[test]
    fn mounts_that_hang_hold_up_no_other_and_take_few_threads() {
        let (clock, mover) = Clock::skippable();
        let (release, released) = mpsc::channel::<()>();
        let released = Mutex::new(released);
        let asker = Asker::new(clock.clone(), move |path| {
            if path.starts_with("/nfs") {
                // One is let go for each message; at the end all are.
                released.lock().unwrap().recv().ok();
            }
            Ok(small())
        });
        let mut all: BTreeSet<Question> = (0..10).map(|n| question(&format!("/nfs/{n}"), true)).collect();
        all.extend((0..20).map(|n| question(&format!("/local/{n}"), false)));
        let answered = |asker: &Asker, prefix: &str| {
            let known = asker.known();
            known.iter().filter(|(it, known)| it.path.starts_with(prefix) && known.answer.is_some()).count()
        };
        asker.ask(all.clone(), &all);
        until("the local ones answer", || answered(&asker, "/local") == 20);
        // Each time that all threads hang, one more is tried, but never the last.
        for _ in 0..20 {
            mover.skip(Duration::from_secs(2));
            asker.ask(all.clone(), &all);
            until("the local ones answer again", || {
                let known = asker.known();
                known
                    .iter()
                    .all(|(it, known)| it.is_remote || (known.answer.is_some() && known.asked.is_none()))
            });
        }
        let hanging = || asker.known().values().filter(|known| known.asked.is_some()).count();
        until("four hang", || hanging() == MOST_THREADS - 1);
        assert!(asker.threads() <= MOST_THREADS);
        assert_eq!(answered(&asker, "/nfs"), 0);
        // Each is asked once, however often it is wanted.
        assert_eq!(asker.known().values().filter_map(|known| known.asked).count(), MOST_THREADS - 1);
        let since = asker.known().values().find_map(|known| known.asked).unwrap();
        assert!(clock.since_boot().saturating_sub(since.boot) > Duration::from_secs(30));
        // What is no longer mounted is forgotten once it has answered.
        asker.ask([], &BTreeSet::new());
        assert_eq!(asker.known().len(), MOST_THREADS - 1);
        drop(release);
        until("all threads are free", || hanging() == 0);
        until("one waits for work", || asker.threads() == 1);
    }

    #[test]
    fn this_machines_root_and_what_is_not_there() {
        let host = Host::new("/", Clock::system(), Places::default());
        let root = host.filesystem(Path::new("/")).unwrap();
        let bytes = root.bytes.unwrap();
        assert!(bytes.available_bytes <= bytes.free_bytes && bytes.free_bytes <= bytes.total_bytes);
        assert!(host.filesystem(Path::new("/no/such")).unwrap_err().is_gone);
        assert_eq!(host.filesystem(Path::new("/proc")).unwrap().bytes, None, "procfs has no size");
    }

    #[test]
    fn links_stay_below_the_hosts_root() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("data")).unwrap();
        std::os::unix::fs::symlink("/data", root.path().join("link")).unwrap();
        std::os::unix::fs::symlink("/proc", root.path().join("out")).unwrap();
        let host = Host::new(root.path(), Clock::system(), Places::default());
        assert!(host.filesystem(Path::new("/link")).is_ok());
        assert!(
            host.filesystem(Path::new("/out")).unwrap_err().is_gone,
            "/proc of this machine is not the host's"
        );
    }
}
