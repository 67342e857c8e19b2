//! The pod network's configuration, as the runtime will find it: the folder, the file that it takes, the programs
//! that this file names.
//!
//! A file that is there and valid need not be loaded (one that was moved in by rename is not noticed): whether
//! the runtime *has* a network is the runtime's own word, `NetworkReady`. Here stands why it may not have one.
//! kubeconfigs and tokens lie in the same folder: only files with CNI's endings are ever opened.

mod agents;
mod conf;
mod detect;
mod ipam;
mod metrics;
mod places;
mod sandboxes;

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

pub use self::agents::{Agent, Thing};
use self::conf::ConfError;
use self::detect::detect;
pub use self::ipam::Allocations;
use self::places::{Folders, Program};
pub use self::sandboxes::{Sandbox, Sandboxes, Step};
use crate::collector::{Collector, Page};
use crate::host::{FolderWatch, Host, ReadError};

/// The pod network's configuration. Woken by inotify where the kernel gives a watch, else by the clock.
pub static COLLECTOR: Collector<Source, Reading> = Collector {
    name: "cni",
    every: Duration::from_secs(1),
    deadline: Duration::from_secs(2),
    remembers: true,
    open,
    read,
    wake,
    summary,
    families: metrics::FAMILIES,
    metrics: metrics::metrics,
    limits: &[&detect::FREE, &detect::LEAKED, &detect::INCOMPLETE],
    detect,
    pages: &[Page {
        path: "/api/v1/cni",
        about: "host-local's allocations against range and sandboxes, the plugin's agent, and of each sandbox which step \
                of its network's set-up is missing",
        json: page,
    }],
    asks: &[],
};

const MOST_FILES: usize = 64;
const LARGEST_FILE_BYTES: u64 = 1024 * 1024;

/// Kept between reads.
#[derive(Debug)]
pub struct Source {
    folders: Folders,
    watch: Option<FolderWatch>,
    /// Whether a configuration was ever seen here: then one is expected.
    seen: bool,
    beyond: Beyond,
}

/// What is looked at besides the configuration, and seldom.
#[derive(Debug, Default)]
struct Beyond {
    /// By the newest configuration that could be loaded.
    networks: Vec<ipam::Network>,
    plugins: Vec<String>,
    looked: Option<Duration>,
    allocations: Vec<Allocations>,
    error: Option<String>,
    agent: Option<Agent>,
    agents: agents::Memory,
    sandboxes: sandboxes::Memory,
}

/// Allocations and the agent: some hundred small files.
const LOOK_EVERY: Duration = Duration::from_secs(10);

impl Beyond {
    fn look(&mut self, reading: &Reading, host: &Host) {
        let now = host.clock().since_boot();
        if self.looked.is_some_and(|newest| now.saturating_sub(newest) < LOOK_EVERY) {
            return;
        }
        self.looked = Some(now);
        if let (FolderState::Configured, Some(file)) = (reading.state, &reading.file) {
            let path = Path::new(&reading.dir).join(file);
            // It was read a moment ago. Gone since: the one that was known stays.
            if let Ok(bytes) = host.read_bytes(path) {
                self.networks = ipam::networks(&bytes, host);
            }
            self.plugins = reading.plugins.iter().map(|plugin| plugin.kind.clone()).collect();
        }
        let (mut allocations, mut error) = (Vec::new(), None);
        for network in self.networks.iter().take(MOST_NETWORKS) {
            match ipam::read(network, host) {
                Ok(read) => allocations.extend(read),
                Err(failed) => error = Some(failed.to_string()),
            }
        }
        (self.allocations, self.error) = (allocations, error);
        self.agent = agents::look(&self.plugins, &mut self.agents, host);
    }
}

const MOST_NETWORKS: usize = 8;

/// How a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FileState {
    /// The runtime takes this one.
    Taken,
    /// It cannot be loaded.
    Invalid,
    /// It comes after the one that decides; it was not looked at.
    NotLookedAt,
    /// It is no CNI configuration by its name, and was not opened.
    Other,
    /// It could not be read or judged from here, which says nothing of the runtime.
    CannotTell,
}

/// A file of the folder.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct File {
    /// Its name.
    pub name: String,
    /// Its size.
    pub size_bytes: Option<u64>,
    /// When it was last written.
    pub modified: Option<Timestamp>,
    /// How it is.
    pub state: FileState,
    /// Why, where it is not taken.
    pub why: Option<String>,
}

/// A plugin of the configuration that is taken.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plugin {
    /// Its `type`: the program's name.
    pub kind: String,
    /// The program.
    pub path: Option<String>,
    /// `found`, `not_executable`, `missing`, `cannot_tell`.
    pub state: &'static str,
    /// Why it cannot be told.
    pub why: Option<String>,
}

/// How the folder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FolderState {
    /// A configuration can be loaded.
    Configured,
    /// No file in it has CNI's endings.
    Empty,
    /// The file that decides cannot be loaded.
    Invalid,
    /// It does not exist.
    Gone,
    /// The file that decides can't be judged from here.
    CannotTell,
}

/// The configuration, as it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reading {
    /// The folder, a path of the host.
    pub dir: String,
    /// Which rule found it.
    pub found_by: String,
    /// Why a configuration is expected here.
    pub expected_because: String,
    /// How the folder is.
    pub state: FolderState,
    /// Its files, in lexical order; at most 64.
    pub files: Vec<File>,
    /// How many more files there are than are told.
    pub files_left_out: usize,
    /// The file that decides.
    pub file: Option<String>,
    /// The network's name in it.
    pub network: Option<String>,
    /// Its `cniVersion`.
    pub cni_version: Option<String>,
    /// Its plugins, and those that they delegate addresses to.
    pub plugins: Vec<Plugin>,
    /// Where plugins were looked for.
    pub bin_dirs: Vec<String>,
    /// host-local's allocations, a network each; empty where its addresses are not host-local's.
    pub allocations: Vec<Allocations>,
    /// Why they could not be read.
    pub allocations_error: Option<String>,
    /// The agent of the network plugin; `None`: it has none that is known here.
    pub agent: Option<Agent>,
    /// Sandboxes' networks.
    pub sandboxes: Sandboxes,
}

fn open(host: &Host) -> Result<Source, ReadError> {
    let folders = places::folders(host);
    // Without a watch the clock wakes: that costs a second, not the reading.
    let watch = host.watch_folder(&folders.conf).ok();
    Ok(Source { folders, watch, seen: false, beyond: Beyond::default() })
}

fn wake(source: &Source) -> Option<BorrowedFd<'_>> {
    source.watch.as_ref().map(AsFd::as_fd)
}

fn read(source: &mut Source, host: &Host) -> Result<Reading, ReadError> {
    // The queue is emptied before the folder is read: a change during the reading wakes again.
    if source.watch.as_mut().is_some_and(|watch| watch.renew().is_err()) {
        source.watch = None;
    }
    if source.watch.is_none() {
        source.watch = host.watch_folder(&source.folders.conf).ok();
    }
    let mut names = names(&source.folders.conf, host);
    let is_configured = |names: &Names| names.as_ref().is_ok_and(|names| names.iter().flatten().any(is_conf));
    if !is_configured(&names) {
        // A distribution that was installed since may have named another folder.
        let folders = places::folders(host);
        if folders.conf != source.folders.conf {
            names = self::names(&folders.conf, host);
            source.watch = host.watch_folder(&folders.conf).ok();
            source.folders = folders;
        }
    }
    let has_conf = is_configured(&names);
    let names = names?;
    let dir = &source.folders.conf;
    let because = if source.seen {
        Some("a configuration was here before".to_owned())
    } else if has_conf {
        Some("a configuration is here".to_owned())
    } else {
        places::expected(host)
    };
    let Some(expected_because) = because else {
        return Err(ReadError::absent(format!(
            "no CNI configuration in {}, and no kubelet and no runtime that would use one",
            dir.display()
        )));
    };
    source.seen |= has_conf;
    let passes_over = places::passes_over_invalid(host);
    let mut reading = Reading {
        dir: dir.display().to_string(),
        found_by: source.folders.found_by.clone(),
        expected_because,
        state: if names.is_some() { FolderState::Empty } else { FolderState::Gone },
        files: Vec::new(),
        files_left_out: 0,
        file: None,
        network: None,
        cni_version: None,
        plugins: Vec::new(),
        bin_dirs: source.folders.bin.iter().map(|dir| dir.display().to_string()).collect(),
        allocations: Vec::new(),
        allocations_error: None,
        agent: None,
        sandboxes: Sandboxes::default(),
    };
    for name in names.into_iter().flatten() {
        reading.take(host, dir, &source.folders.bin, name, passes_over);
    }
    reading.files_left_out = reading.files.len().saturating_sub(MOST_FILES);
    reading.files.truncate(MOST_FILES);
    let beyond = &mut source.beyond;
    beyond.look(&reading, host);
    reading.allocations.clone_from(&beyond.allocations);
    reading.allocations_error.clone_from(&beyond.error);
    reading.agent.clone_from(&beyond.agent);
    let bridge = beyond.networks.iter().find_map(|network| network.bridge.as_deref());
    reading.sandboxes = sandboxes::look(&mut beyond.sandboxes, bridge, host);
    Ok(reading)
}

/// The names in a folder; `None`: it does not exist.
type Names = Result<Option<Vec<String>>, ReadError>;

fn names(dir: &Path, host: &Host) -> Names {
    match host.list(dir) {
        Ok(names) => Ok(Some(names)),
        Err(ReadError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The endings that libcni's `ConfFiles` is asked for by containerd and CRI-O.
fn is_conf(name: impl AsRef<str>) -> bool {
    let name = name.as_ref();
    [".conf", ".conflist", ".json"].iter().any(|ending| name.ends_with(ending))
}

impl Reading {
    /// Takes the next file of the folder in, in lexical order.
    fn take(&mut self, host: &Host, dir: &Path, bin: &[PathBuf], name: String, passes_over: bool) {
        let path = dir.join(&name);
        let stat = host.stat(&path);
        if stat.as_ref().is_ok_and(|stat| stat.is_dir) {
            return;
        }
        let mut file = File {
            size_bytes: stat.as_ref().ok().map(|stat| stat.size_bytes),
            modified: stat.as_ref().ok().and_then(|stat| stat.modified),
            state: FileState::Other,
            why: None,
            name,
        };
        let decided = match self.state {
            FolderState::Configured | FolderState::CannotTell => true,
            FolderState::Invalid => !passes_over,
            FolderState::Empty | FolderState::Gone => false,
        };
        if is_conf(&file.name) {
            if decided {
                file.state = FileState::NotLookedAt;
            } else {
                self.judge(host, &path, bin, &mut file);
            }
        }
        self.files.push(file);
    }

    fn judge(&mut self, host: &Host, path: &Path, bin: &[PathBuf], file: &mut File) {
        let is_special = host.stat(path).is_ok_and(|stat| !stat.is_file);
        let is_under_root = host.root() == Path::new("/");
        let judged = if is_special {
            // Opening a pipe waits for a writer.
            Err((FileState::CannotTell, "it is no regular file: not read".to_owned()))
        } else if file.size_bytes.is_some_and(|bytes| bytes > LARGEST_FILE_BYTES) {
            Err((FileState::CannotTell, format!("it is larger than {LARGEST_FILE_BYTES} bytes: not read")))
        } else {
            match host.read_bytes(path) {
                Ok(bytes) => conf::load(&file.name, &bytes).map_err(|error| {
                    // Only libcni 1.3 looks into that folder. Is it there, then which libcni it is decides.
                    let beside = match &error {
                        ConfError::NoInlinePlugins(name) => path.with_file_name(name),
                        ConfError::Invalid(_) => return (FileState::Invalid, error.to_string()),
                    };
                    let is_there =
                        !beside.as_os_str().is_empty() && host.stat(&beside).is_ok_and(|stat| stat.is_dir);
                    match is_there {
                        true => (FileState::CannotTell, error.to_string()),
                        false => (FileState::Invalid, "it lists no plugins".to_owned()),
                    }
                }),
                // A link without its target. Under another root only the link may be out of reach, from here.
                Err(error @ ReadError::NotFound { .. }) if is_under_root => {
                    Err((FileState::Invalid, format!("{error}: a link that leads nowhere")))
                }
                Err(error) => Err((FileState::CannotTell, error.to_string())),
            }
        };
        self.file = Some(file.name.clone());
        match judged {
            Ok(loaded) => {
                file.state = FileState::Taken;
                self.state = FolderState::Configured;
                self.plugins = loaded.plugins.into_iter().map(|kind| plugin(host, bin, kind)).collect();
                (self.network, self.cni_version) = (Some(loaded.name), Some(loaded.cni_version));
            }
            Err((state, why)) => {
                let is_invalid = state == FileState::Invalid;
                self.state = if is_invalid { FolderState::Invalid } else { FolderState::CannotTell };
                (file.state, file.why) = (state, Some(why));
            }
        }
    }
}

fn plugin(host: &Host, bin: &[PathBuf], kind: String) -> Plugin {
    let (state, path, why) = match places::program(host, bin, &kind) {
        Program::At(path) => ("found", Some(path), None),
        Program::NotExecutable(path) => ("not_executable", Some(path), None),
        Program::Missing => ("missing", None, None),
        Program::CannotTell(why) => ("cannot_tell", None, Some(why)),
    };
    Plugin { kind, path: path.map(|path| path.display().to_string()), state, why }
}

fn summary(reading: &Reading) -> String {
    match (&reading.file, &reading.network) {
        (Some(file), Some(network)) => format!("{file} (network {network})"),
        (Some(file), None) => format!("{file} cannot be loaded"),
        (None, _) => format!("no configuration in {}", reading.dir),
    }
}

fn page(reading: &Reading) -> Result<serde_json::Value, serde_json::Error> {
    let leaks = reading.allocations.iter().map(|network| {
        let leaks = network
            .leaks
            .iter()
            .map(|(address, id)| serde_json::json!({"address": address, "container": id}));
        (network.network.clone(), leaks.collect::<serde_json::Value>())
    });
    Ok(serde_json::json!({
        "network": reading.network,
        "allocations": reading.allocations,
        "leaks": leaks.collect::<serde_json::Map<_, _>>(),
        "agent": reading.agent,
        "sandboxes": reading.sandboxes.all,
    }))
}

/// Every parser of this collector, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    for name in ["10-net.conflist", "10-net.conf"] {
        crate::fuzz::done(conf::load(name, bytes));
    }
    ipam::fuzz(bytes);
    places::fuzz(bytes);
    sandboxes::fuzz(bytes);
}

#[cfg(test)]
mod tests;
