//! Processes of the node: what `/proc/PID` says, and pidfds.
//!
//! `stat`, `status`, `cgroup` and `comm` never wait for a process. `cmdline` does: it takes the lock of the
//! process's memory map, which a thrashing or stuck process may hold for minutes. So it is read apart.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{Host, ReadError};

/// A read needs no more.
const STACK_BYTES: usize = 128 * 1024;

/// A process, by `/proc/PID/stat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id, as the host's /proc numbers it.
    pub pid: u32,
    /// The kernel's name for it (`comm`), cut at 15 bytes. The process itself may set it to anything.
    pub name: String,
    /// `R`, `S`, `D`, `T` (stopped), `t` (stopped by a tracer), `Z`, `X`, `I`.
    pub state: char,
    /// When it began, in clock ticks since boot (suspended time included). With the pid it is the identity.
    pub start_ticks: u64,
}

impl Process {
    /// Zombies and the dead only wait to be reaped.
    pub fn is_alive(&self) -> bool {
        !matches!(self.state, 'Z' | 'X' | 'x')
    }

    /// When it began, since boot.
    pub fn start_since_boot(&self) -> Duration {
        // sysconf cannot fail for CLK_TCK on Linux; 100 is what every architecture's user space sees.
        let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)
            .ok()
            .flatten()
            .and_then(|ticks| u64::try_from(ticks).ok())
            .filter(|ticks| *ticks > 0)
            .unwrap_or(100);
        let rest_millis = (self.start_ticks % per_second).saturating_mul(1000) / per_second;
        Duration::from_secs(self.start_ticks / per_second) + Duration::from_millis(rest_millis)
    }
}

/// What `/proc/PID/status` adds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Real and effective user id.
    pub uids: Option<(u32, u32)>,
    /// Resident memory. `None` for a zombie, which has none.
    pub rss_bytes: Option<u64>,
    /// Threads.
    pub threads: Option<u32>,
    /// In how many pid namespaces it has a number, counted from the one that this /proc shows: 1 is this one,
    /// more is a container with its own. `None` before Linux 4.1.
    pub pid_namespaces: Option<usize>,
}

/// The one thread that reads command lines. It lives as long as the program: a node whose process ids are used up
/// gives no new one.
struct Reader {
    reads: Option<mpsc::Sender<Read>>,
    /// Ends when the read does that was given last.
    flight: Option<mpsc::Receiver<()>>,
}

static READER: Mutex<Reader> = Mutex::new(Reader { reads: None, flight: None });

fn lock_reader() -> MutexGuard<'static, Reader> {
    READER.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reader {
    fn start(&mut self) -> std::io::Result<mpsc::Sender<Read>> {
        if let Some(reads) = &self.reads {
            return Ok(reads.clone());
        }
        let (reads, given) = mpsc::channel::<Read>();
        std::thread::Builder::new()
            .name("cmdline".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || given.iter().for_each(|read| read()))?;
        Ok(self.reads.insert(reads).clone())
    }

    fn give(&mut self, read: Read) -> std::io::Result<()> {
        self.start()?.send(read).map_err(|_| std::io::Error::other("the reader of command lines has ended"))
    }
}

type Read = Box<dyn FnOnce() + Send>;

/// Starts the thread that reads command lines, if it is not there.
///
/// # Errors
/// The kernel gives no thread.
pub fn start_reader() -> std::io::Result<()> {
    lock_reader().start().map(|_| ())
}

impl Host {
    /// The ids of all processes (thread groups), in order.
    ///
    /// # Errors
    /// /proc cannot be listed.
    pub fn pids(&self) -> Result<Vec<u32>, ReadError> {
        let mut pids: Vec<u32> = self.list("/proc")?.iter().filter_map(|name| name.parse().ok()).collect();
        pids.sort_unstable();
        Ok(pids)
    }

    /// A process; `None` when there is none of this id.
    ///
    /// # Errors
    /// It may not be read, or its `stat` makes no sense.
    pub fn process(&self, pid: u32) -> Result<Option<Process>, ReadError> {
        if self.is_confined() {
            return self.process_by_status(pid);
        }
        let path = of(pid, "stat");
        let Some(text) = unless_gone(self.read_bytes(&path))? else { return Ok(None) };
        // A process's name may be any bytes.
        let text = String::from_utf8_lossy(&text);
        parse_stat(&text).map(Some).ok_or_else(|| {
            ReadError::malformed(
                path,
                "expected `PID (NAME) STATE …` with at least 22 fields and a line's end",
            )
        })
    }

    /// A process's name alone, by `comm`: cheaper than the process, and what a search among all of them begins with.
    /// `None` when there is none of this id.
    ///
    /// # Errors
    /// It may not be read.
    pub fn process_name(&self, pid: u32) -> Result<Option<String>, ReadError> {
        match unless_gone(self.read_bytes(of(pid, "comm")))? {
            // Any bytes, but one line of them: 15, or 63 of a kernel worker that tells what it does.
            Some(comm) => match comm.strip_suffix(b"\n") {
                Some(name) if name.len() < 64 => Ok(Some(String::from_utf8_lossy(name).into_owned())),
                _ => Err(ReadError::malformed(of(pid, "comm"), "expected a name and a line's end")),
            },
            None => Ok(self.process(pid)?.map(|process| process.name)),
        }
    }

    /// A process, if its name is one of those wanted; the others are not looked at further. `None`: it is another one's,
    /// or there is none of this id.
    ///
    /// # Errors
    /// As [`Host::process`].
    pub fn process_if(
        &self,
        pid: u32,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<Option<Process>, ReadError> {
        match self.process_name(pid)? {
            Some(name) if is_wanted(&name) => {}
            _ => return Ok(None),
        }
        // It may have become another program between the two.
        Ok(self.process(pid)?.filter(|process| is_wanted(&process.name)))
    }

    /// How much processor time the first thread of a process has had, in seconds: its `schedstat` needs no right to trace
    /// it, as `stat` does. `None`: it is gone, or the kernel does not count it.
    ///
    /// # Errors
    /// It may not be read.
    pub fn first_thread_cpu_seconds(&self, pid: u32) -> Result<Option<f64>, ReadError> {
        let text = unless_gone(self.read_bytes(of(pid, "schedstat")))?;
        Ok(text.and_then(|text| parse_schedstat(&String::from_utf8_lossy(&text))))
    }

    /// What its `status` adds; `None` when there is no such process.
    ///
    /// # Errors
    /// It may not be read.
    pub fn process_status(&self, pid: u32) -> Result<Option<Status>, ReadError> {
        let text = unless_gone(self.read_bytes(of(pid, "status")))?;
        Ok(text.map(|text| parse_status(&String::from_utf8_lossy(&text))))
    }

    /// Its cgroups, one path a hierarchy, the unified one last. Relative to the reader's own cgroup namespace.
    /// `None` when there is no such process.
    ///
    /// # Errors
    /// It may not be read.
    pub fn process_cgroups(&self, pid: u32) -> Result<Option<Vec<String>>, ReadError> {
        let text = unless_gone(self.read_bytes(of(pid, "cgroup")))?;
        Ok(text.map(|text| {
            String::from_utf8_lossy(&text)
                .lines()
                .filter_map(|line| line.splitn(3, ':').nth(2))
                .map(str::to_owned)
                .collect()
        }))
    }

    /// Its arguments, read on a thread of their own for `limit` at most. One such read is in flight at a time in
    /// the whole agent: a second one waits for the first, for `limit` too, and fails while that one hangs.
    ///
    /// # Errors
    /// There is no such process, it may not be read, or the read hangs.
    pub fn process_cmdline(&self, pid: u32, limit: Duration) -> Result<Vec<String>, ReadError> {
        let path = of(pid, "cmdline");
        let mut reader = lock_reader();
        if let Some(end) = reader.flight.as_ref()
            && matches!(end.recv_timeout(limit), Err(RecvTimeoutError::Timeout))
        {
            return Err(ReadError::Other(format!(
                "cannot read {}: an earlier read of a command line hangs still",
                path.display()
            )));
        }
        let (answer, answered) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let (host, wanted) = (self.clone(), path.clone());
        let read = move || {
            let read = host.read_bytes(&wanted);
            // Before the answer, or whoever asks again at once would take this one for hanging.
            drop(end);
            // Nobody listens any more when the time was up.
            answer.send(read).ok();
        };
        reader
            .give(Box::new(read))
            .map_err(|error| ReadError::from_io("start a thread to read", &path, error))?;
        reader.flight = Some(ended);
        drop(reader);
        let bytes = match answered.recv_timeout(limit) {
            Ok(read) => read?,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                return Err(ReadError::Other(format!(
                    "cannot read {}: no answer within {limit:?}; the process's memory map is locked",
                    path.display()
                )));
            }
        };
        Ok(parse_cmdline(&bytes))
    }

    /// A descriptor that becomes readable when the process has ended: at once, and for this very process.
    ///
    /// # Errors
    /// The host's pid numbers are not ours (a container without `hostPID`), the process is gone or is another one
    /// by now, or the kernel refuses (before Linux 5.3; seccomp).
    pub fn pidfd(&self, process: &Process) -> Result<OwnedFd, ReadError> {
        let path = of(process.pid, "stat");
        if self.process_status_self()?.pid_namespaces != Some(1) {
            return Err(ReadError::Other(format!(
                "cannot watch process {}: the agent is in another pid namespace than the host's /proc; \
                 give the pod `hostPID: true`",
                process.pid
            )));
        }
        let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
        let Some(pid) = pid else {
            return Err(ReadError::malformed(path, "the process id is out of range"));
        };
        let pidfd = pidfd_open(pid, PidfdFlags::empty())
            .map_err(|errno| ReadError::from_io("watch (pidfd_open)", &path, errno.into()))?;
        // The number may have been given to another process between our look and the opening.
        match self.process(process.pid)? {
            Some(now) if now.start_ticks == process.start_ticks => Ok(pidfd),
            _ => Err(ReadError::NotFound { path }),
        }
    }

    /// Whether the process of this pidfd has ended.
    ///
    /// # Errors
    /// The kernel refuses to say.
    pub fn has_ended(&self, pidfd: BorrowedFd<'_>) -> Result<bool, ReadError> {
        poll(&mut [PollFd::new(pidfd, PollFlags::POLLIN)], PollTimeout::ZERO)
            .map(|ready| ready > 0)
            .map_err(|errno| ReadError::Other(format!("cannot poll a pidfd: {}", errno.desc())))
    }

    /// Why this /proc does not show the node's processes; `None` when it does.
    ///
    /// A container without `hostPID` sees its own processes alone, and `hidepid` hides other users'. Then "no such
    /// process" means nothing.
    pub fn blind_to_processes(&self) -> Option<String> {
        let first = match self.process_name(1) {
            Ok(Some(first)) => first,
            Ok(None) => {
                return Some(
                    "process 1 is not in /proc: it is mounted with `hidepid`, or is not the host's; run as root, \
                     mount the host's /proc"
                        .to_owned(),
                );
            }
            Err(error) => return Some(error.to_string()),
        };
        // Only the machine's own pid namespace has kthreadd as its process 2.
        if matches!(self.process_name(2), Ok(Some(second)) if second == "kthreadd") {
            return None;
        }
        // A node that is itself a container (kind) has an init that lives in another cgroup than a pod's agent.
        let ours = self.read_bytes("/proc/self/cgroup").ok();
        let its = self.read_bytes("/proc/1/cgroup").ok();
        (ours.is_none() || ours == its).then(|| {
            format!(
                "/proc shows the processes of the agent's own container alone (process 1 is `{}`): \
                 give the pod `hostPID: true` or run on the host itself",
                first
            )
        })
    }

    fn process_status_self(&self) -> Result<Status, ReadError> {
        Ok(parse_status(&self.read("/proc/self/status")?))
    }
}

fn of(pid: u32, file: &str) -> PathBuf {
    Path::new("/proc").join(pid.to_string()).join(file)
}

/// A process that ended between listing and reading is gone, which is no failure: the open says ENOENT, the read of a
/// file that was already open says ESRCH.
pub(super) fn unless_gone(read: Result<Vec<u8>, ReadError>) -> Result<Option<Vec<u8>>, ReadError> {
    match read {
        Ok(bytes) => Ok(Some(bytes)),
        Err(ReadError::NotFound { .. }) => Ok(None),
        Err(ReadError::Io { error, .. }) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `PID (NAME) STATE …`: the name may hold blanks and parentheses, so the last `)` ends it.
pub(super) fn parse_stat(text: &str) -> Option<Process> {
    // Without its line's end the last number may be cut.
    let line = text.strip_suffix('\n')?;
    let (pid, rest) = line.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = single(fields.next()?)?;
    // proc_pid_stat(5): state is field 3, starttime is field 22.
    let start_ticks = fields.nth(22 - 4)?.parse().ok()?;
    Some(Process { pid: pid.parse().ok()?, name: name.to_owned(), state, start_ticks })
}

fn single(text: &str) -> Option<char> {
    let mut letters = text.chars();
    let letter = letters.next().filter(char::is_ascii_alphabetic)?;
    letters.next().is_none().then_some(letter)
}

/// The lines `KEY:\tVALUE` of a `status`. The last line counts only with its end: a cut number is another number.
pub(super) fn line_values(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    lines.filter_map(|line| {
        line.split_once(':').map(|(key, value)| (key, value.strip_prefix('\t').unwrap_or(value)))
    })
}

/// A name in `status`, where the kernel writes a line's end and a backslash as `\n` and `\\`.
pub(super) fn unescaped(name: &str) -> String {
    name.split("\\\\").map(|part| part.replace("\\n", "\n")).collect::<Vec<_>>().join("\\")
}

/// `NANOSECONDS WAITED TURNS`; three zeros where the kernel does not count (`sched_info_on`).
fn parse_schedstat(text: &str) -> Option<f64> {
    let mut fields = text.strip_suffix('\n')?.split(' ').map(str::parse::<u64>);
    let (ran, waited, turns) = (fields.next()?.ok()?, fields.next()?.ok()?, fields.next()?.ok()?);
    (fields.next().is_none() && (ran, waited, turns) != (0, 0, 0)).then_some(ran as f64 / 1e9)
}

fn parse_status(text: &str) -> Status {
    let mut status = Status::default();
    for (key, value) in line_values(text) {
        let mut words = value.split_whitespace();
        match key {
            "Uid" => {
                status.uids = words
                    .next()
                    .and_then(|uid| uid.parse().ok())
                    .zip(words.next().and_then(|uid| uid.parse().ok()));
            }
            "VmRSS" => {
                let kib: Option<u64> = words.next().and_then(|size| size.parse().ok());
                status.rss_bytes =
                    kib.filter(|_| words.next() == Some("kB")).and_then(|kib| kib.checked_mul(1024));
            }
            "Threads" => status.threads = words.next().and_then(|count| count.parse().ok()),
            "NSpid" => status.pid_namespaces = Some(words.count()),
            _ => {}
        }
    }
    status
}

/// Arguments end with NUL. A process that writes its own title (k3s: `/usr/local/bin/k3s server`) leaves one string
/// with blanks: that one is split at them.
fn parse_cmdline(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let arguments: Vec<String> = text.trim_end_matches('\0').split('\0').map(str::to_owned).collect();
    match arguments.as_slice() {
        [one] if one.contains(' ') => one.split_whitespace().map(str::to_owned).collect(),
        [one] if one.is_empty() => Vec::new(),
        _ => arguments,
    }
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    use crate::fuzz::{done, text};
    let text = text(bytes);
    done(parse_stat(&text));
    done(parse_status(&text));
    done(parse_cmdline(bytes));
}

/// Parts of tests in other files: a process of root's, in a made-up /proc.
#[cfg(test)]
pub(crate) mod made {
    use std::path::Path;

    // /proc/9154/stat and part of its status: a shell on Linux 6.18.44.
    pub(crate) const STAT: &str = "9154 (bash) S 9151 9154 9154 0 -1 4194560 5320 71390 0 60 0 3 48 12 20 0 1 0 142746 5255168 946 18446744073709551615 94343146389504 94343147178909 140731346292800 0 0 0 65536 4 1132560123 1 0 0 17 1 0 0 0 0 0 94343147412208 94343147460452 94343631511552 140731346295676 140731346295691 140731346295691 140731346296810 0\n";
    pub(crate) const STATUS: &str = "Name:\tbash\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t9154\nPid:\t9154\nPPid:\t9151\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nNSpid:\t9154\nVmSize:\t    5132 kB\nVmHWM:\t    3900 kB\nVmRSS:\t    3900 kB\nThreads:\t1\n";

    /// Puts a process of this name and state into the system's slice.
    pub(crate) fn process(root: &Path, pid: u32, name: &str, state: char) {
        let folder = root.join("proc").join(pid.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        let stat = STAT.replace("9154", &pid.to_string()).replace("bash) S", &format!("{name}) {state}"));
        let status = STATUS.replace("9154", &pid.to_string()).replace("bash", name);
        let status = status.replace("State:\tS", &format!("State:\t{state}"));
        let cgroup = format!("0::/system.slice/{name}.service\n");
        for (file, text) in
            [("comm", format!("{name}\n")), ("stat", stat), ("status", status), ("cgroup", cgroup)]
        {
            std::fs::write(folder.join(file), text).unwrap();
        }
    }

    /// Makes the root one whose process 1 is in another network namespace than the test: an agent in a pod without
    /// `hostNetwork`.
    pub(crate) fn other_network(root: &Path) {
        process(root, 1, "systemd", 'S');
        process(root, 2, "kthreadd", 'S');
        std::fs::create_dir_all(root.join("proc/1/net")).unwrap();
        std::fs::write(root.join("proc/1/net/dev"), "").unwrap();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::made::{STAT, STATUS};
    use super::*;

    #[test]
    fn a_recorded_stat_and_status() {
        let process = parse_stat(STAT).unwrap();
        assert_eq!(process, Process { pid: 9154, name: "bash".to_owned(), state: 'S', start_ticks: 142_746 });
        assert_eq!(process.start_since_boot(), Duration::from_millis(1_427_460));
        assert_eq!(
            parse_status(STATUS),
            Status {
                uids: Some((0, 0)),
                rss_bytes: Some(3900 * 1024),
                threads: Some(1),
                pid_namespaces: Some(1)
            }
        );
    }

    #[test]
    fn a_name_cannot_forge_the_fields_behind_it() {
        let process = parse_stat(&STAT.replace("(bash)", "(kubelet) Z 1 (x)")).unwrap();
        assert_eq!((process.name.as_str(), process.state), ("kubelet) Z 1 (x", 'S'));
    }

    #[test]
    fn a_schedstat_that_counts_nothing_is_no_zero() {
        // In the form of Documentation/scheduler/sched-stats.rst, with made-up numbers.
        assert_eq!(parse_schedstat("1532104017 88130571 4711\n"), Some(1.532_104_017));
        for text in ["0 0 0\n", "1532104017 88130571 4711", "1532104017 88\n", ""] {
            assert_eq!(parse_schedstat(text), None, "{text}");
        }
        assert_eq!(unescaped(r"a\\nb\n"), "a\\nb\n");
    }

    #[test]
    fn command_lines() {
        assert_eq!(
            parse_cmdline(b"kubelet\0--config=/lab/kubelet.yaml\0"),
            ["kubelet", "--config=/lab/kubelet.yaml"]
        );
        assert_eq!(parse_cmdline(b"/usr/local/bin/k3s server\0\0\0"), ["/usr/local/bin/k3s", "server"]);
        assert!(parse_cmdline(b"").is_empty());
    }

    #[test]
    fn this_process_is_found_read_and_watched() {
        let host = Host::new("/", nodewhy_clock::Clock::system(), super::super::Places::default());
        let pid = std::process::id();
        assert!(host.pids().unwrap().contains(&pid));
        let process = host.process(pid).unwrap().unwrap();
        assert!(process.is_alive());
        assert!(process.start_since_boot() <= host.clock().since_boot());
        assert!(host.process_status(pid).unwrap().unwrap().rss_bytes.unwrap() > 0);
        let arguments = host.process_cmdline(pid, Duration::from_secs(5)).unwrap();
        assert_eq!(arguments.first(), std::env::args().next().as_ref());
        assert_eq!(host.process(u32::MAX).unwrap(), None);
        host.pidfd(&process).unwrap();
        let other = Process { start_ticks: process.start_ticks + 1, ..process };
        assert!(host.pidfd(&other).is_err(), "a pid that was given to another process is not watched");
    }

    #[test]
    fn command_lines_are_read_by_one_thread_for_good() {
        let host = Host::new("/", nodewhy_clock::Clock::system(), super::super::Places::default());
        let readers = || {
            let tasks = host.list("/proc/self/task").unwrap();
            let name = |task: &String| host.read(format!("/proc/self/task/{task}/comm")).unwrap_or_default();
            tasks.into_iter().filter(|task| name(task).trim() == "cmdline").collect::<Vec<String>>()
        };
        start_reader().unwrap();
        host.process_cmdline(std::process::id(), Duration::from_secs(5)).unwrap();
        let first = readers();
        assert_eq!(first.len(), 1);
        for _ in 0..20 {
            host.process_cmdline(std::process::id(), Duration::from_secs(5)).unwrap();
            host.process_cmdline(u32::MAX, Duration::from_secs(5)).unwrap_err();
        }
        assert_eq!(readers(), first);
    }

    #[test]
    fn a_host_root_without_proc_is_an_error_and_not_an_empty_node() {
        let empty = tempfile::tempdir().unwrap();
        let host = Host::new(empty.path(), nodewhy_clock::Clock::system(), super::super::Places::default());
        assert!(matches!(host.pids(), Err(ReadError::NotFound { .. })));
        assert!(host.blind_to_processes().is_some());
    }

    proptest! {
        #[test]
        fn a_cut_stat_is_no_process(cut in 0..STAT.len()) {
            prop_assert_eq!(parse_stat(&STAT[..cut]), None);
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in ".{0,200}\n?") {
            parse_stat(&text);
            parse_status(&text);
            parse_cmdline(text.as_bytes());
        }

        #[test]
        fn a_cut_status_gives_the_recorded_values_or_none(cut in 0..STATUS.len()) {
            let (cut, whole) = (parse_status(&STATUS[..cut]), parse_status(STATUS));
            prop_assert!(cut.uids.is_none() || cut.uids == whole.uids);
            prop_assert!(cut.rss_bytes.is_none() || cut.rss_bytes == whole.rss_bytes);
            prop_assert!(cut.threads.is_none() || cut.threads == whole.threads);
            prop_assert!(cut.pid_namespaces.is_none() || cut.pid_namespaces == whole.pid_namespaces);
        }

        #[test]
        fn a_flipped_byte_never_panics(at in 0..STAT.len(), byte: u8) {
            let mut bytes = STAT.as_bytes().to_vec();
            bytes[at] = byte;
            parse_stat(&String::from_utf8_lossy(&bytes));
        }
    }
}
