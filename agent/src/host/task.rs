//! Every thread of the node: `/proc/PID/task/TID/stat` (`status` for an agent that AppArmor confines), many at a time.
//!
//! The leader's state alone misses threads that wait in D: the kubelet and the runtime have dozens. A sweep over all of
//! them is done in parts, so that 100,000 threads cost a bounded time a tick, and with two small buffers, so that they
//! cost no memory.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, RawDir, openat};
use rustix::io::Errno;

use super::process::{line_values, unescaped};
use super::{Host, ReadError};

/// `PF_KTHREAD` (linux/sched.h), in field 9 of `stat`.
const PF_KTHREAD: u64 = 0x0020_0000;
/// About 100 names of a folder of /proc at a time.
const NAMES_BYTES: usize = 4 * 1024;
/// 52 numbers of 20 digits and a name: no line is longer.
const STAT_BYTES: usize = 2 * 1024;
/// The groups of a user and the masks of hundreds of processors. What is cut counts as unread.
const STATUS_BYTES: usize = 16 * 1024;
/// After so many reads the clock is looked at.
const READS_A_LOOK: u32 = 32;

/// A thread, by its `stat` or its `status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task<'a> {
    /// Its process (thread group).
    pub pid: u32,
    /// Itself; the leader's is the process's.
    pub tid: u32,
    /// Its name (`comm`); any bytes.
    pub name: Cow<'a, [u8]>,
    /// `R`, `S`, `D`, `T`, `t`, `Z`, `X`, `I` (an idle kernel thread, which is no D).
    pub state: char,
    /// Its parent process.
    pub parent: u32,
    /// A thread of the kernel's own.
    pub is_kernel: bool,
    /// Threads of its process.
    pub threads: u32,
    /// When it began, in clock ticks since boot. With the tid it is the identity. `status` does not tell it.
    pub start_ticks: Option<u64>,
}

/// How far a sweep came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advance {
    /// The time was up.
    Paused,
    /// Every thread was looked at.
    Done,
}

/// A look at every thread, in as many parts as it takes.
#[derive(Debug)]
pub struct TaskSweep {
    proc: OwnedFd,
    is_listed: bool,
    /// Processes that are listed and not looked at yet.
    queue: Vec<u32>,
    /// The process whose further threads are being looked at.
    inside: Option<(u32, OwnedFd)>,
    names: Vec<MaybeUninit<u8>>,
    numbers: Vec<u32>,
    file: &'static str,
    path: String,
    text: Vec<u8>,
    /// Threads that could not be read or understood.
    pub unread: u64,
}

impl Host {
    /// Begins a look at every thread.
    ///
    /// # Errors
    /// /proc cannot be opened.
    pub fn sweep_tasks(&self) -> Result<TaskSweep, ReadError> {
        let path = Path::new("/proc");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = openat(rustix::fs::CWD, self.path(path), flags, Mode::empty())
            .map_err(|errno| ReadError::from_io("open", path, errno.into()))?;
        Ok(TaskSweep {
            proc,
            is_listed: false,
            queue: Vec::new(),
            inside: None,
            names: vec![MaybeUninit::uninit(); NAMES_BYTES],
            numbers: Vec::new(),
            file: if self.is_confined() { "status" } else { "stat" },
            path: String::with_capacity(32),
            text: vec![0; if self.is_confined() { STATUS_BYTES } else { STAT_BYTES }],
            unread: 0,
        })
    }
}

impl TaskSweep {
    /// Goes on until every thread was looked at or `is_over` says that the time is up. A process's leader is visited
    /// before its other threads, without another process between them.
    ///
    /// # Errors
    /// /proc cannot be listed, or the agent has no descriptor left.
    pub fn advance(
        &mut self,
        is_over: impl Fn() -> bool,
        mut visit: impl FnMut(&Task<'_>),
    ) -> Result<Advance, ReadError> {
        let mut reads = 0;
        loop {
            if reads >= READS_A_LOOK {
                reads = 0;
                if is_over() {
                    return Ok(Advance::Paused);
                }
            }
            if let Some((pid, folder)) = self.inside.take() {
                let more = batch(&folder, &mut self.names, &mut self.numbers)
                    // A process that ended in between has no more threads.
                    .or_else(|errno| if is_gone(errno) { Ok(false) } else { Err(errno) })
                    .map_err(|errno| failed(pid, errno))?;
                for index in 0..self.numbers.len() {
                    let Some(tid) = self.numbers.get(index).copied().filter(|tid| *tid != pid) else {
                        continue;
                    };
                    reads += 1;
                    if let Some(task) =
                        read(&folder, (tid, self.file), &mut self.path, &mut self.text, &mut self.unread)?
                    {
                        visit(&Task { pid, ..task });
                    }
                }
                if more {
                    self.inside = Some((pid, folder));
                }
            } else if let Some(pid) = self.queue.pop() {
                reads += 1;
                let file = (pid, self.file);
                let Some(task) = read(&self.proc, file, &mut self.path, &mut self.text, &mut self.unread)?
                else {
                    continue;
                };
                visit(&task);
                if task.threads > 1 {
                    self.path.clear();
                    write!(self.path, "{pid}/task").ok();
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                    match openat(&self.proc, self.path.as_str(), flags, Mode::empty()) {
                        Ok(folder) => self.inside = Some((pid, folder)),
                        Err(errno) if is_gone(errno) => {}
                        Err(errno) => return Err(failed(pid, errno)),
                    }
                }
            } else if self.is_listed {
                return Ok(Advance::Done);
            } else {
                reads += 1;
                let more = batch(&self.proc, &mut self.names, &mut self.queue)
                    .map_err(|errno| ReadError::from_io("list", Path::new("/proc"), errno.into()))?;
                self.is_listed = !more;
                self.queue.reverse();
            }
        }
    }
}

fn failed(pid: u32, errno: Errno) -> ReadError {
    ReadError::from_io("look at the threads of", &of(pid, pid, ""), errno.into())
}

fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::SRCH)
}

/// The numbers of one buffer full of names; whether there may be more.
fn batch(folder: &OwnedFd, names: &mut [MaybeUninit<u8>], numbers: &mut Vec<u32>) -> Result<bool, Errno> {
    numbers.clear();
    let mut folder = RawDir::new(folder.as_fd(), names);
    let mut is_first = true;
    loop {
        // What is left in the buffer must be taken: the kernel's place in the folder is behind it.
        if !is_first && folder.is_buffer_empty() {
            return Ok(true);
        }
        is_first = false;
        match folder.next() {
            None => return Ok(false),
            Some(entry) => {
                let entry = entry?;
                numbers.extend(entry.file_name().to_str().ok().and_then(|name| name.parse::<u32>().ok()));
            }
        }
    }
}

/// `NUMBER/stat` or `NUMBER/status` in this folder; `None`: it is gone or makes no sense.
fn read<'a>(
    folder: &OwnedFd,
    (number, file): (u32, &'static str),
    path: &mut String,
    text: &'a mut [u8],
    unread: &mut u64,
) -> Result<Option<Task<'a>>, ReadError> {
    path.clear();
    write!(path, "{number}/{file}").ok();
    let opened =
        openat(folder, path.as_str(), OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
    let length = match opened.and_then(|file| rustix::io::read(&file, &mut *text)) {
        Ok(length) => length,
        Err(errno) if is_gone(errno) => return Ok(None),
        Err(errno @ (Errno::MFILE | Errno::NFILE)) => return Err(failed(number, errno)),
        Err(_) => {
            *unread += 1;
            return Ok(None);
        }
    };
    let parse = if file == "stat" { parse } else { parse_status };
    let task = text.get(..length).and_then(parse);
    if task.is_none() {
        *unread += 1;
    }
    Ok(task)
}

/// `TID (NAME) STATE …` with its line's end (proc_pid_stat(5)): the name may hold anything, so the last `)` ends it.
fn parse(text: &[u8]) -> Option<Task<'_>> {
    let line = text.strip_suffix(b"\n")?;
    let open = line.iter().position(|byte| *byte == b'(')?;
    let close = line.iter().rposition(|byte| *byte == b')')?;
    let tid: u32 = std::str::from_utf8(line.get(..open)?).ok()?.strip_suffix(' ')?.parse().ok()?;
    let name = line.get(open + 1..close)?;
    let rest = std::str::from_utf8(line.get(close + 1..)?).ok()?.strip_prefix(' ')?;
    let mut fields = rest.split(' ');
    // State is field 3, ppid 4, flags 9, num_threads 20, starttime 22.
    let mut letters = fields.next()?.chars();
    let state = letters.next().filter(char::is_ascii_alphabetic)?;
    if letters.next().is_some() {
        return None;
    }
    let parent = fields.next()?.parse().ok()?;
    let flags: u64 = fields.nth(9 - 5)?.parse().ok()?;
    let threads = fields.nth(20 - 10)?.parse().ok()?;
    let start_ticks = fields.nth(22 - 21)?.parse().ok()?;
    Some(Task {
        pid: tid,
        tid,
        name: Cow::Borrowed(name),
        state,
        parent,
        is_kernel: flags & PF_KTHREAD != 0,
        threads,
        start_ticks: Some(start_ticks),
    })
}

/// The lines of a `status` (proc_pid_status(5)). A kernel that has no line `Kthread` (before 6.8) is told by its threads'
/// parent: kthreadd, which is process 2; and they have no memory of their own, as zombies have none.
fn parse_status(text: &[u8]) -> Option<Task<'static>> {
    let text = String::from_utf8_lossy(text);
    let (mut name, mut state, mut tid, mut parent, mut threads) = (None, None, None, None, None);
    let (mut is_kernel, mut has_memory) = (None, false);
    for (key, value) in line_values(&text) {
        match key {
            "Name" => name = Some(unescaped(value)),
            "State" => state = value.chars().next().filter(char::is_ascii_alphabetic),
            "Pid" => tid = value.parse().ok(),
            "PPid" => parent = value.parse().ok(),
            "Kthread" => is_kernel = Some(value == "1"),
            "VmSize" => has_memory = true,
            "Threads" => threads = value.parse().ok(),
            _ => {}
        }
    }
    let (name, state, tid, parent) = (name?, state?, tid?, parent?);
    let is_kthreadds = parent == 2 || (tid == 2 && name == "kthreadd");
    let is_kernel = is_kernel.unwrap_or(is_kthreadds && !has_memory && state != 'Z');
    let name = Cow::Owned(name.into_bytes());
    Some(Task { pid: tid, tid, name, state, parent, is_kernel, threads: threads?, start_ticks: None })
}

/// What `/proc/PID/task/TID/status` tells of a wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Switches {
    /// How often it was given a CPU away, of its own will or not. As long as this stands still, it has not run: the
    /// kernel's own hung-task watch goes by it.
    pub count: Option<u64>,
    /// Real user id.
    pub uid: Option<u32>,
}

impl Host {
    /// A thread as it is now, and its start where `stat` is read; `None`: it is gone.
    ///
    /// # Errors
    /// It may not be read, or its `stat` (`status`) makes no sense.
    pub fn task_state(&self, pid: u32, tid: u32) -> Result<Option<(char, Option<u64>)>, ReadError> {
        let path = of(pid, tid, if self.is_confined() { "status" } else { "stat" });
        let Some(text) = unless_gone(self.read_bytes(&path))? else { return Ok(None) };
        let task = if self.is_confined() { parse_status(&text) } else { parse(&text) };
        let task = task.ok_or_else(|| ReadError::malformed(path, "it is not a task's"))?;
        Ok(Some((task.state, task.start_ticks)))
    }

    /// How often a thread ran; `None`: it is gone.
    ///
    /// # Errors
    /// It may not be read.
    pub fn task_switches(&self, pid: u32, tid: u32) -> Result<Option<Switches>, ReadError> {
        let text = unless_gone(self.read_bytes(of(pid, tid, "status")))?;
        Ok(text.map(|text| parse_switches(&String::from_utf8_lossy(&text))))
    }

    /// Where in the kernel a thread waits. `None`: it does not wait, it is gone, or the kernel does not say: a reader
    /// without the right to trace it (AppArmor in a container) gets `0`, which is no place.
    pub fn task_wait_channel(&self, pid: u32, tid: u32) -> Option<String> {
        let text = self.read(of(pid, tid, "wchan")).ok()?;
        let name = text.trim();
        (!name.is_empty() && name != "0").then(|| name.to_owned())
    }

    /// The file of `/proc/PID/task/TID`, as text. For what may wait for the process (`stack`, `syscall`): call it apart.
    ///
    /// # Errors
    /// It is gone or may not be read.
    pub fn task_file(&self, pid: u32, tid: u32, file: &str) -> Result<String, ReadError> {
        self.read(of(pid, tid, file))
    }

    /// Where the symbolic link `/proc/PID/LINK` leads, by the process's own view.
    ///
    /// # Errors
    /// It is gone, or may not be read: it takes the right to trace the process (PTRACE_MODE_READ).
    pub fn process_link(&self, pid: u32, link: &str) -> Result<PathBuf, ReadError> {
        let path = Path::new("/proc").join(pid.to_string()).join(link);
        self.allowed(&path)?;
        let target = std::fs::read_link(self.path(&path));
        target.map_err(|error| ReadError::from_io("read the link", &path, error))
    }

    /// How many files a process has open. Since Linux 6.2 the folder's size tells it; before, its names are counted.
    ///
    /// # Errors
    /// It is gone or may not be read.
    pub fn process_open_files(&self, pid: u32) -> Result<u64, ReadError> {
        let path = Path::new("/proc").join(pid.to_string()).join("fd");
        let size = self.stat(&path)?.size_bytes;
        if size > 0 {
            return Ok(size);
        }
        Ok(self.list(&path)?.len() as u64)
    }
}

fn of(pid: u32, tid: u32, file: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/task/{tid}/{file}"))
}

fn unless_gone(read: Result<Vec<u8>, ReadError>) -> Result<Option<Vec<u8>>, ReadError> {
    match read {
        Ok(bytes) => Ok(Some(bytes)),
        Err(ReadError::NotFound { .. }) => Ok(None),
        Err(ReadError::Io { error, .. }) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse_switches(text: &str) -> Switches {
    let (mut uid, mut voluntary, mut forced) = (None, None, None);
    for (key, value) in line_values(text) {
        match key {
            "Uid" => uid = value.split_whitespace().next().and_then(|uid| uid.parse().ok()),
            "voluntary_ctxt_switches" => voluntary = value.trim().parse::<u64>().ok(),
            "nonvoluntary_ctxt_switches" => forced = value.trim().parse::<u64>().ok(),
            _ => {}
        }
    }
    let count = voluntary.zip(forced).map(|(voluntary, forced)| voluntary.wrapping_add(forced));
    Switches { count, uid }
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    use crate::fuzz::{done, text};
    done(parse(bytes));
    done(parse_switches(&text(bytes)));
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::super::process::made;
    use super::*;

    // Recorded on Linux 6.18.44.
    const KTHREADD: &str = "2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 52 0 0 18446744073709551615 0 0 0 0 0 0 0 2147483647 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n";
    const SWITCHES: &str =
        "Name:\tbash\nUid:\t0\t0\t0\t0\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t3\n";

    fn machine() -> Host {
        Host::new("/", nodewhy_clock::Clock::system(), super::super::Places::default())
    }

    #[test]
    fn recorded_stats() {
        let task = parse(made::STAT.as_bytes()).unwrap();
        assert_eq!((task.tid, &*task.name, task.state), (9154, b"bash".as_slice(), 'S'));
        assert_eq!((task.start_ticks, task.is_kernel), (Some(142_746), false));
        let kernel = parse(KTHREADD.as_bytes()).unwrap();
        assert!(kernel.is_kernel);
        assert_eq!((kernel.parent, kernel.threads, kernel.start_ticks), (0, 1, Some(52)));
        assert_eq!(parse_switches(SWITCHES), Switches { count: Some(15), uid: Some(0) });
    }

    #[test]
    fn a_status_tells_a_task_and_whether_it_is_the_kernels() {
        let task = parse_status(made::STATUS.as_bytes()).unwrap();
        assert_eq!((task.tid, &*task.name, task.state, task.parent), (9154, b"bash".as_slice(), 'S', 9151));
        assert_eq!((task.start_ticks, task.threads, task.is_kernel), (None, 1, false));
        let of = |text: &str| parse_status(text.as_bytes()).unwrap().is_kernel;
        let without = made::STATUS.replace("PPid:\t9151", "PPid:\t2").replace("VmSize:\t    5132 kB\n", "");
        assert!(of(&without), "before 6.8");
        assert!(!of(&without.replace("State:\tS", "State:\tZ")), "a zombie has no memory either");
        assert!(!of(&without.replace("NSpid", "Kthread:\t0\nNSpid")));
        assert!(of(&made::STATUS.replace("NSpid", "Kthread:\t1\nNSpid")));
    }

    #[test]
    fn every_thread_of_this_machine_is_visited_once_in_small_parts_too() {
        let (release, released) = std::sync::mpsc::channel::<()>();
        let released = std::sync::Arc::new(std::sync::Mutex::new(released));
        let threads: Vec<_> = (0..200)
            .map(|_| {
                let released = released.clone();
                std::thread::spawn(move || drop(released.lock().map(|released| released.recv())))
            })
            .collect();
        let host = machine();
        let mut sweep = host.sweep_tasks().unwrap();
        let (mut seen, mut parts) = (Vec::new(), 0);
        let over = Cell::new(false);
        loop {
            parts += 1;
            over.set(true);
            let advance = sweep.advance(|| over.get(), |task| seen.push((task.pid, task.tid))).unwrap();
            if advance == Advance::Done {
                break;
            }
        }
        assert!(parts > 3, "{parts}");
        let distinct: BTreeSet<_> = seen.iter().copied().collect();
        assert_eq!(distinct.len(), seen.len(), "none twice");
        let ours = host.list("/proc/self/task").unwrap();
        assert!(ours.len() > 200);
        let pid = std::process::id();
        let missing: Vec<_> =
            ours.iter().filter(|tid| !distinct.contains(&(pid, tid.parse().unwrap()))).collect();
        assert!(missing.len() < 3, "threads of other tests may have begun since: {missing:?}");
        assert_eq!(sweep.unread, 0);
        drop(release);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn a_process_that_stands_still_has_a_place_and_its_count_moves_when_it_runs() {
        let host = machine();
        let pid = std::process::id();
        let tid = u32::try_from(nix::unistd::gettid().as_raw()).unwrap();
        let before = host.task_switches(pid, tid).unwrap().unwrap().count.unwrap();
        std::thread::sleep(std::time::Duration::from_millis(5));
        let after = host.task_switches(pid, tid).unwrap().unwrap().count.unwrap();
        assert!(after > before);
        assert_eq!(host.task_switches(u32::MAX, u32::MAX).unwrap(), None);
        assert_eq!(host.task_state(u32::MAX, u32::MAX).unwrap(), None);
        assert_eq!(host.task_wait_channel(u32::MAX, u32::MAX), None);
        assert!(host.process_open_files(pid).unwrap() >= 3);
    }

    #[test]
    fn a_root_without_proc_is_an_error() {
        let empty = tempfile::tempdir().unwrap();
        let host = Host::new(empty.path(), nodewhy_clock::Clock::system(), super::super::Places::default());
        assert!(matches!(host.sweep_tasks(), Err(ReadError::NotFound { .. })));
    }

    proptest! {
        #[test]
        fn a_cut_stat_is_no_task(cut in 0..KTHREADD.len()) {
            prop_assert_eq!(parse(&KTHREADD.as_bytes()[..cut]), None);
        }

        #[test]
        fn a_cut_status_is_the_whole_task_or_none(cut in 0..made::STATUS.len()) {
            prop_assert_eq!(parse_status(&made::STATUS.as_bytes()[..cut]), None);
        }

        #[test]
        fn a_flipped_byte_never_panics(at in 0..made::STAT.len(), byte: u8) {
            let mut bytes = made::STAT.as_bytes().to_vec();
            bytes[at] = byte;
            parse(&bytes);
            parse_status(&bytes);
        }

        #[test]
        fn a_cut_status_gives_the_count_or_none(cut in 0..SWITCHES.len()) {
            let switches = parse_switches(&SWITCHES[..cut]);
            prop_assert!(switches.count.is_none_or(|count| count == 15));
        }
    }
}
