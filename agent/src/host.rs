//! The sole owner of the kernel: files, sockets, processes. Everything above it is pure and is tested with text.
//!
//! Every path is the host's own (`/proc/meminfo`), and is looked up under the host's root, so that a container
//! reads `/host/proc/meminfo` and a test reads a folder that it made.

#![expect(clippy::disallowed_methods, reason = "this module is the one place that reads the node")]

pub mod adjtimex;
mod apart;
pub mod bounded;
pub mod cgroup;
mod confined;
pub mod dbus;
pub mod dial;
pub mod dns;
pub mod ethtool;
pub mod fetch;
mod folder;
pub mod get;
pub mod heap;
pub mod inotify;
#[cfg(test)]
pub(crate) mod inside;
pub mod journal;
pub mod kmsg;
pub mod kmsg_helper;
pub mod known;
pub mod module;
pub mod mounts;
pub mod netlink;
mod open;
pub mod own;
pub mod process;
pub mod rtnetlink;
pub mod sock_diag;
pub mod syslog;
pub mod tail;
pub mod task;
pub mod tls;
mod unix;
pub mod wake;
pub mod xtables;

pub use apart::Apart;
pub use folder::{FileStat, FolderWatch};
pub use unix::UnixPeer;

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use nodewhy_clock::Clock;
use nodewhy_proto::Outcome;

/// No file of the kernel that is read whole is larger; a larger one is an error, not a surprise in memory.
const LARGEST_FILE_BYTES: u64 = 8 * 1024 * 1024;
/// Most files of /proc and /sys are shorter.
const FIRST_BUFFER_BYTES: usize = 2048;

/// The node, as it can be read.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
    clock: Clock,
    places: Places,
    learned: Arc<RwLock<KubeletPlaces>>,
    known: Arc<known::Known>,
    /// AppArmor confines the agent; see [`confined`].
    is_confined: bool,
}

/// Where the kubelet has its parts by its own flags and configuration; `None`: where it has them by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KubeletPlaces {
    /// Its root folder (`--root-dir`).
    pub root: Option<PathBuf>,
    /// Where its ping answers (`healthzBindAddress`, `healthzPort`).
    pub healthz: Option<SocketAddr>,
    /// Where its API answers (`address`, `port`).
    pub api: Option<SocketAddr>,
}

/// Where things stand on this node, as set. `None` is "look in the usual places".
#[derive(Clone, Debug)]
pub struct Places {
    /// The runtime's CRI socket, a path of the host; `none`: it is not to be asked.
    pub runtime_socket: Option<PathBuf>,
    /// The folder of CNI configurations.
    pub cni_conf_dir: PathBuf,
    /// The folders of CNI plugins.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// Where the kubelet's ping answers; see [`Host::kubelet_healthz`].
    pub kubelet_healthz: Option<SocketAddr>,
    /// The kubelet's root folder; see [`Host::kubelet_root`].
    pub kubelet_root: Option<PathBuf>,
    /// Where the kubelet's own API answers; see [`Host::kubelet_api`].
    pub kubelet_api: Option<SocketAddr>,
    /// The bearer token for it; a path of the agent's own.
    pub kubelet_token_file: Option<PathBuf>,
    /// Who signed its certificate; a path of the agent's own.
    pub kubelet_ca_file: Option<PathBuf>,
    /// Which distribution this is: a name of [`crate::distribution::DISTRIBUTIONS`].
    pub distribution: Option<String>,
    /// Tables of rules with more entries are not counted one by one.
    pub netfilter_exact_entries_max: u64,
    /// The API server, as the kubelet would dial it.
    pub api_server: Option<dial::Target>,
    /// Where etcd's metrics answer without TLS.
    pub etcd_metrics: Option<SocketAddr>,
    /// Whether each pod is in the metrics too.
    pub per_pod_metrics: bool,
}

/// What is set in place of the runtime's socket where it is not to be asked.
pub fn is_none_socket(path: &Path) -> bool {
    path == Path::new("none")
}

impl Default for Places {
    fn default() -> Places {
        Places {
            runtime_socket: None,
            cni_conf_dir: "/etc/cni/net.d".into(),
            cni_bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into(), "/usr/libexec/cni".into()],
            kubelet_healthz: None,
            kubelet_root: None,
            kubelet_api: None,
            kubelet_token_file: None,
            kubelet_ca_file: None,
            distribution: None,
            netfilter_exact_entries_max: 100_000,
            api_server: None,
            etcd_metrics: None,
            per_pod_metrics: false,
        }
    }
}

/// Why a source could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is not there, and that is no fault of the node's: not built in, not loaded, switched off, not used here.
    #[error("{why}")]
    Absent {
        /// Why.
        why: String,
    },
    /// The file, folder or socket does not exist.
    #[error("{path} does not exist")]
    NotFound {
        /// Which.
        path: PathBuf,
    },
    /// A right is missing.
    #[error("cannot read {path}: {error}; {needs}")]
    Denied {
        /// Which file.
        path: PathBuf,
        /// The kernel's word.
        error: std::io::Error,
        /// Which right is missing, and how it is given.
        needs: String,
    },
    /// The kernel refused for another reason.
    #[error("cannot {what} {path}: {error}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's word.
        error: std::io::Error,
    },
    /// It was read and makes no sense.
    #[error("cannot understand {path}: {what}")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What was expected, and what was found.
        what: String,
    },
    /// Anything else, in words: what was tried, on what, what to do.
    #[error("{0}")]
    Other(String),
}

impl ReadError {
    /// It is not there, and that is no fault of the node's.
    pub fn absent(why: impl Into<String>) -> ReadError {
        ReadError::Absent { why: why.into() }
    }

    /// It was read and makes no sense.
    pub fn malformed(path: impl Into<PathBuf>, what: impl Into<String>) -> ReadError {
        ReadError::Malformed { path: path.into(), what: what.into() }
    }

    /// As an outcome: `Absent` or `Failed`. A file that does not exist is a failure, unless the collector says
    /// that its absence is no fault: then it returns [`ReadError::Absent`].
    pub fn outcome(&self) -> Outcome {
        match self {
            ReadError::Absent { why } => Outcome::Absent { why: why.clone() },
            other => Outcome::Failed { error: other.to_string() },
        }
    }

    fn from_io(what: &'static str, path: &Path, error: std::io::Error) -> ReadError {
        let path = path.to_owned();
        let no_descriptor = match error.raw_os_error() {
            Some(nix::libc::EMFILE) => {
                Some("the agent has no descriptor left: raise its limit (RLIMIT_NOFILE)")
            }
            Some(nix::libc::ENFILE) => Some(
                "the node has no descriptor left (fs.file-max): end what holds so many, see /proc/sys/fs/file-nr",
            ),
            _ => None,
        };
        if let Some(meaning) = no_descriptor {
            return ReadError::Io { what, path, error: std::io::Error::other(format!("{error}; {meaning}")) };
        }
        match error.kind() {
            ErrorKind::NotFound => ReadError::NotFound { path },
            ErrorKind::PermissionDenied => {
                let needs = needs(&path, &error).to_owned();
                ReadError::Denied { path, error, needs }
            }
            _ => ReadError::Io { what, path, error },
        }
    }
}

/// Which right a refusal asks for. Of other users' processes the kernel lets see what a tracer may (ptrace(2)); of all
/// else it looks at owner and mode.
fn needs(path: &Path, error: &std::io::Error) -> &'static str {
    let mut parts = path.iter().skip(1).filter_map(std::ffi::OsStr::to_str);
    let is_of_a_process =
        parts.next() == Some("proc") && parts.next().is_some_and(|pid| pid.parse::<u32>().is_ok());
    match (is_of_a_process, error.raw_os_error()) {
        (true, _) => "run as root, or give the agent CAP_SYS_PTRACE",
        (false, Some(nix::libc::EPERM)) => "run as root; in a container, as a privileged one",
        (false, _) => "run as root, or give the agent CAP_DAC_READ_SEARCH",
    }
}

impl Host {
    /// The node under this root.
    pub fn new(root: impl Into<PathBuf>, clock: Clock, places: Places) -> Host {
        let is_confined = confined::by_apparmor();
        Host { root: root.into(), clock, places, learned: Arc::default(), known: Arc::default(), is_confined }
    }

    /// The clock.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Where things stand.
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// The kubelet's root folder: as set, else as the kubelet has it, else its default.
    pub fn kubelet_root(&self) -> PathBuf {
        let set = self.places.kubelet_root.clone();
        set.or_else(|| self.learned().root).unwrap_or_else(|| "/var/lib/kubelet".into())
    }

    /// Where the kubelet's ping answers: as set, else as the kubelet has it, else its default.
    pub fn kubelet_healthz(&self) -> SocketAddr {
        let set = self.places.kubelet_healthz;
        set.or_else(|| self.learned().healthz).unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 10248)))
    }

    /// Where the kubelet's own API answers: as set, else as the kubelet has it, else its default.
    pub fn kubelet_api(&self) -> SocketAddr {
        let set = self.places.kubelet_api;
        set.or_else(|| self.learned().api).unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 10250)))
    }

    /// Takes over what the running kubelet was told; every clone of this host knows it then.
    pub fn learn(&self, kubelet: KubeletPlaces) {
        *self.learned.write().unwrap_or_else(PoisonError::into_inner) = kubelet;
    }

    fn learned(&self) -> KubeletPlaces {
        self.learned.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The folder that the host is read from.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// As it is; of what is not there because nothing of the host's is mounted there, says so.
    pub(crate) fn unless_unmounted(&self, error: ReadError) -> ReadError {
        let ReadError::NotFound { path } = &error else { return error };
        let Some(top) = path.iter().nth(1).map(|top| Path::new("/").join(top)) else { return error };
        if !matches!(self.exists(&top), Ok(false)) {
            return error;
        }
        ReadError::Other(format!("{error}: mount the host's {} in the folder of --host-root", top.display()))
    }

    /// Where this path of the host is found.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// A whole file as bytes.
    ///
    /// # Errors
    /// It is not there, may not be read, or is larger than any file of the kernel.
    pub fn read_bytes(&self, path: impl AsRef<Path>) -> Result<Vec<u8>, ReadError> {
        let path = path.as_ref();
        self.allowed(path)?;
        self.read_unguarded(path)
    }

    fn read_unguarded(&self, path: &Path) -> Result<Vec<u8>, ReadError> {
        let file = open::open(&self.path(path)).map_err(|error| ReadError::from_io("open", path, error))?;
        // The kernel's files tell no size beforehand: from nothing, the buffer would grow by a read each time.
        let mut bytes = Vec::with_capacity(FIRST_BUFFER_BYTES);
        file.take(LARGEST_FILE_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| ReadError::from_io("read", path, error))?;
        if bytes.len() as u64 > LARGEST_FILE_BYTES {
            return Err(ReadError::malformed(path, format!("it is larger than {LARGEST_FILE_BYTES} bytes")));
        }
        Ok(bytes)
    }

    /// The lines of a file that may be long, one after another, without their ends. A line longer than 64 KiB is an
    /// error.
    ///
    /// # Errors
    /// It is not there, may not be read, or is no text of lines.
    pub fn each_line(&self, path: impl AsRef<Path>, mut each: impl FnMut(&str)) -> Result<(), ReadError> {
        let path = path.as_ref();
        self.allowed(path)?;
        let file = open::open(&self.path(path)).map_err(|error| ReadError::from_io("open", path, error))?;
        // What /proc gives in one read is bounded by the reader's buffer: a larger one needs fewer walks.
        let mut reader = BufReader::with_capacity(64 * 1024, file);
        let mut line = Vec::new();
        loop {
            line.clear();
            let length = (&mut reader)
                .take(64 * 1024)
                .read_until(b'\n', &mut line)
                .map_err(|error| ReadError::from_io("read", path, error))?;
            if length == 0 {
                return Ok(());
            }
            let Some(text) = line.strip_suffix(b"\n") else {
                return Err(ReadError::malformed(path, "a line is cut or longer than 64 KiB"));
            };
            each(&String::from_utf8_lossy(text));
        }
    }

    /// A whole file as text.
    ///
    /// # Errors
    /// As [`Host::read_bytes`], or it is not UTF-8.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<String, ReadError> {
        let path = path.as_ref();
        String::from_utf8(self.read_bytes(path)?)
            .map_err(|error| ReadError::malformed(path, format!("not UTF-8: {error}")))
    }

    /// Whether there is anything at this path.
    ///
    /// # Errors
    /// It cannot be told: a folder above it may not be entered, the disk does not answer.
    pub fn exists(&self, path: impl AsRef<Path>) -> Result<bool, ReadError> {
        let path = path.as_ref();
        self.allowed(path)?;
        self.path(path).try_exists().map_err(|error| ReadError::from_io("look at", path, error))
    }

    /// The names in a folder, sorted.
    ///
    /// # Errors
    /// It is not there or may not be read.
    pub fn list(&self, path: impl AsRef<Path>) -> Result<Vec<String>, ReadError> {
        let path = path.as_ref();
        self.allowed(path)?;
        let entries =
            std::fs::read_dir(self.path(path)).map_err(|error| ReadError::from_io("list", path, error))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| ReadError::from_io("list", path, error))?;
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    /// Keeps a file open, to be read again and again from its start.
    ///
    /// # Errors
    /// It is not there or may not be opened.
    pub fn keep(&self, path: impl AsRef<Path>) -> Result<Kept, ReadError> {
        let path = path.as_ref();
        self.allowed(path)?;
        let file = open::open(&self.path(path)).map_err(|error| ReadError::from_io("open", path, error))?;
        Ok(Kept { path: path.to_owned(), file, buffer: vec![0; 4096] })
    }
}

/// A kernel file that is kept open: one `pread` a reading, a fifth of the cost of opening it each time.
#[derive(Debug)]
pub struct Kept {
    path: PathBuf,
    file: File,
    buffer: Vec<u8>,
}

impl Kept {
    /// The host's path of it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file as it is now.
    ///
    /// # Errors
    /// It can no longer be read, or is not UTF-8.
    pub fn read(&mut self) -> Result<&str, ReadError> {
        let length = loop {
            let length = self
                .file
                .read_at(&mut self.buffer, 0)
                .map_err(|error| ReadError::from_io("read", &self.path, error))?;
            if length < self.buffer.len() {
                break length;
            }
            if self.buffer.len() as u64 >= LARGEST_FILE_BYTES {
                let what = format!("it is larger than {LARGEST_FILE_BYTES} bytes");
                return Err(ReadError::malformed(&self.path, what));
            }
            self.buffer.resize(self.buffer.len() * 2, 0);
        };
        std::str::from_utf8(&self.buffer[..length])
            .map_err(|error| ReadError::malformed(&self.path, format!("not UTF-8: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_right() {
        let refused = |path: &str, errno| {
            ReadError::from_io("open", Path::new(path), std::io::Error::from_raw_os_error(errno)).to_string()
        };
        assert!(refused("/proc/1/ns/net", nix::libc::EACCES).contains("CAP_SYS_PTRACE"));
        assert!(refused("/proc/slabinfo", nix::libc::EACCES).contains("CAP_DAC_READ_SEARCH"));
        assert!(refused("/sys/fs/pstore", nix::libc::EPERM).contains("privileged"));
    }

    #[test]
    fn what_is_not_mounted_is_told_from_what_is_not_there() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), Clock::system(), Places::default());
        let said = || host.unless_unmounted(host.read("/proc/meminfo").unwrap_err()).to_string();
        assert!(said().contains("mount the host's /proc"), "{}", said());
        std::fs::create_dir(root.path().join("proc")).unwrap();
        assert_eq!(said(), "/proc/meminfo does not exist");
    }

    #[test]
    fn what_is_no_file_is_an_error_at_once() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), Clock::system(), Places::default());
        // A pipe that nobody writes to: opened as a file, it would hold its reader for ever, or read as an empty one.
        nix::unistd::mkfifo(&root.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::fs::create_dir(root.path().join("folder")).unwrap();
        for (path, what) in [("/pipe", "it is a pipe"), ("/folder", "it is a folder")] {
            assert!(host.read(path).unwrap_err().to_string().contains(what), "{path}");
            assert!(host.keep(path).unwrap_err().to_string().contains(what), "{path}");
            assert!(host.each_line(path, |_| ()).unwrap_err().to_string().contains(what), "{path}");
        }
    }

    #[test]
    fn descriptors_that_are_used_up_are_a_failure_in_clear_words_and_no_absence() {
        for (errno, expected) in [
            (nix::libc::ENFILE, "the node has no descriptor left (fs.file-max)"),
            (nix::libc::EMFILE, "the agent has no descriptor left"),
        ] {
            let error = std::io::Error::from_raw_os_error(errno);
            let outcome = ReadError::from_io("open", Path::new("/proc/meminfo"), error).outcome();
            let Outcome::Failed { error } = outcome else { panic!("{outcome:?}") };
            assert!(error.starts_with("cannot open /proc/meminfo: Too many open files"), "{error}");
            assert!(error.contains(expected), "{error}");
        }
    }
}
