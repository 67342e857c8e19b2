//! What an agent under AppArmor leaves alone.
//!
//! Many files of `/proc/PID` are for those who may trace the process. AppArmor's default profile for containers refuses
//! that, and writes each refusal to the kernel's log, even where the kernel asked without audit (`stat`, which gives its
//! other fields all the same). A look at every process each second would flood the log and push out of it what the
//! agent is to find there. So a confined agent takes what `comm` and `status` tell, asks `stat` once for a process's
//! start, and does not try the rest.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Component, Path};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::process::{Process, line_values, parse_stat, unescaped, unless_gone};
use super::{Host, ReadError};

/// Files of `/proc/PID` and of `/proc/PID/task/TID` that ask for the right to trace (fs/proc/base.c, namespaces.c,
/// task_mmu.c). The folder `fd` itself does not: what is in it does.
const GUARDED: &[&str] = &[
    "auxv",
    "cwd",
    "environ",
    "exe",
    "fdinfo",
    "io",
    "map_files",
    "maps",
    "mem",
    "ns",
    "numa_maps",
    "pagemap",
    "personality",
    "root",
    "smaps",
    "smaps_rollup",
    "stack",
    "stat",
    "syscall",
    "timerslack_ns",
    "wchan",
];

const NEEDS: &str = "AppArmor confines the agent, and would log each try: give it `appArmorProfile: {type: Unconfined}` \
                     in the pod's security context";

/// The starts of more processes are not kept.
const MOST_STARTS: usize = 8192;

/// When processes began, for a confined agent: by process id.
#[derive(Debug, Default)]
pub(super) struct Starts(Mutex<BTreeMap<u32, Start>>);

#[derive(Debug)]
struct Start {
    name: String,
    /// The inode of `/proc/PID`. Another process of the same number has another one.
    inode: u64,
    ticks: u64,
}

/// Whether AppArmor enforces a profile upon the agent itself: by its own /proc, wherever the host's is mounted.
pub(super) fn by_apparmor() -> bool {
    static IS: OnceLock<bool> = OnceLock::new();
    // Where other security modules are on too, `current` may be theirs.
    *IS.get_or_init(|| {
        ["/proc/self/attr/apparmor/current", "/proc/self/attr/current"]
            .into_iter()
            .any(|path| std::fs::read_to_string(path).is_ok_and(|label| is_enforced(&label)))
    })
}

/// `cri-containerd.apparmor.d (enforce)`; of several profiles at once the modes may be `mixed`.
fn is_enforced(label: &str) -> bool {
    let label = label.trim_end_matches(['\n', '\0']);
    ["(enforce)", "(kill)", "(mixed)"].into_iter().any(|mode| label.ends_with(mode))
}

/// Whether a path is a file of another process's that asks for the right to trace it.
fn is_guarded(path: &Path) -> bool {
    let mut parts = path.components().filter_map(|part| match part {
        Component::Normal(part) => Some(part.to_str().unwrap_or_default()),
        _ => None,
    });
    let is_number = |part: &str| part.parse::<u32>().is_ok();
    if parts.next() != Some("proc") || !parts.next().is_some_and(is_number) {
        return false;
    }
    let mut file = parts.next();
    if file == Some("task") && parts.next().is_some_and(is_number) {
        file = parts.next();
    }
    match file {
        Some("fd") => parts.next().is_some(),
        Some(file) => GUARDED.contains(&file),
        None => false,
    }
}

impl Host {
    /// The same node, read as one that AppArmor confines, or as one that it does not.
    #[cfg(test)]
    pub(crate) fn confined(self, is_confined: bool) -> Host {
        Host { is_confined, ..self }
    }

    /// Whether AppArmor confines the agent: then it takes other ways, see the module.
    pub(crate) fn is_confined(&self) -> bool {
        self.is_confined
    }

    /// Refuses, without touching it, what AppArmor would refuse and log.
    pub(super) fn allowed(&self, path: &Path) -> Result<(), ReadError> {
        if !self.is_confined || !is_guarded(path) {
            return Ok(());
        }
        let error = ErrorKind::PermissionDenied.into();
        Err(ReadError::Denied { path: path.to_owned(), error, needs: NEEDS.to_owned() })
    }

    /// A process by its `status`, and by its `stat` only the first time.
    pub(super) fn process_by_status(&self, pid: u32) -> Result<Option<Process>, ReadError> {
        let path = Path::new("/proc").join(pid.to_string());
        let inode = match self.stat(&path) {
            Ok(stat) => stat.identity.1,
            Err(ReadError::NotFound { .. }) => {
                self.forget_start(pid);
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let Some(text) = unless_gone(self.read_bytes(path.join("status")))? else {
            self.forget_start(pid);
            return Ok(None);
        };
        let (name, state) = parse_status(&String::from_utf8_lossy(&text)).ok_or_else(|| {
            ReadError::malformed(path.join("status"), "expected lines `Name:` and `State:`")
        })?;
        let Some(start_ticks) = self.start_ticks(pid, &name, inode)? else { return Ok(None) };
        Ok(Some(Process { pid, name, state, start_ticks }))
    }

    /// A process's state alone, by its `status`; `None`: it is gone.
    ///
    /// # Errors
    /// It may not be read, or makes no sense.
    pub(crate) fn state_by_status(&self, pid: u32) -> Result<Option<char>, ReadError> {
        let path = Path::new("/proc").join(pid.to_string()).join("status");
        let Some(text) = unless_gone(self.read_bytes(&path))? else { return Ok(None) };
        let told = parse_status(&String::from_utf8_lossy(&text));
        let (_, state) =
            told.ok_or_else(|| ReadError::malformed(path, "expected lines `Name:` and `State:`"))?;
        Ok(Some(state))
    }

    fn start_ticks(&self, pid: u32, name: &str, inode: u64) -> Result<Option<u64>, ReadError> {
        let mut starts = self.known.starts.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(start) = starts.get(&pid).filter(|start| start.name == name && start.inode == inode) {
            return Ok(Some(start.ticks));
        }
        starts.remove(&pid);
        let path = Path::new("/proc").join(pid.to_string()).join("stat");
        // It is given to whoever may not trace the process too: only addresses in it are hidden.
        let Some(text) = unless_gone(self.read_unguarded(&path))? else { return Ok(None) };
        let process = parse_stat(&String::from_utf8_lossy(&text))
            .ok_or_else(|| ReadError::malformed(path, "expected `PID (NAME) STATE …`"))?;
        if starts.len() >= MOST_STARTS {
            starts.clear();
        }
        let ticks = process.start_ticks;
        starts.insert(pid, Start { name: name.to_owned(), inode, ticks });
        Ok(Some(ticks))
    }

    fn forget_start(&self, pid: u32) {
        self.known.starts.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
    }
}

/// Name and state.
fn parse_status(text: &str) -> Option<(String, char)> {
    let (mut name, mut state) = (None, None);
    for (key, value) in line_values(text) {
        match key {
            "Name" => name = Some(unescaped(value)),
            "State" => state = value.chars().next().filter(char::is_ascii_alphabetic),
            _ => {}
        }
    }
    name.zip(state)
}

#[cfg(test)]
mod node;

#[cfg(test)]
mod tests {
    use std::fs;

    use nodewhy_clock::Clock;
    use proptest::prelude::*;

    use super::super::Places;
    use super::super::process::made;
    use super::*;

    fn node() -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        made::process(root.path(), 9154, "bash", 'S');
        let host = Host::new(root.path(), Clock::system(), Places::default()).confined(true);
        (root, host)
    }

    #[test]
    fn labels() {
        // As Debian 12 and containerd have them (apparmor(7)), and SELinux' own.
        assert!(is_enforced("cri-containerd.apparmor.d (enforce)\n"));
        assert!(is_enforced("docker-default (enforce)"));
        for label in
            ["unconfined\n", "cri-containerd.apparmor.d (complain)\n", "system_u:system_r:spc_t:s0\0"]
        {
            assert!(!is_enforced(label), "{label}");
        }
    }

    #[test]
    fn what_asks_for_the_right_to_trace() {
        for path in [
            "/proc/7/stat",
            "/proc/7/task/8/stat",
            "/proc/7/task/8/wchan",
            "/proc/7/fd/3",
            "/proc/7/fdinfo/3",
            "/proc/7/root/etc/x",
            "/proc/7/ns/net",
        ] {
            assert!(is_guarded(Path::new(path)), "{path}");
        }
        for path in [
            "/proc/stat",
            "/proc/7",
            "/proc/7/status",
            "/proc/7/fd",
            "/proc/7/net/stat/nf_conntrack",
            "/proc/7/task/8/status",
            "/proc/7/task",
            "/proc/self/stat",
            "/proc/net/stat",
            "/etc/7/stat",
        ] {
            assert!(!is_guarded(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn a_start_is_read_once_for_a_process() {
        let (root, host) = node();
        let first = host.process(9154).unwrap().unwrap();
        let as_ever = host.clone().confined(false).process(9154).unwrap().unwrap();
        assert_eq!(first, as_ever);
        // From now on a read of it is an error.
        let stat = root.path().join("proc/9154/stat");
        fs::remove_file(&stat).unwrap();
        fs::create_dir(&stat).unwrap();
        assert_eq!(host.process(9154).unwrap().unwrap(), first);
        let status = root.path().join("proc/9154/status");
        let stopped = fs::read_to_string(&status).unwrap().replace("S (sleeping)", "T (stopped)");
        fs::write(&status, &stopped).unwrap();
        assert_eq!(host.process(9154).unwrap().unwrap().state, 'T');
        fs::write(&status, stopped.replace("bash", "other")).unwrap();
        host.process(9154).unwrap_err();
    }

    #[test]
    fn another_process_of_the_same_number_has_its_own_start() {
        let (root, host) = node();
        let first = host.process(9154).unwrap().unwrap();
        // The old folder stays, so that the new one cannot have its inode.
        fs::rename(root.path().join("proc/9154"), root.path().join("proc/old")).unwrap();
        made::process(root.path(), 9154, "bash", 'S');
        let stat = made::STAT.replace(" 142746 ", " 999999 ");
        fs::write(root.path().join("proc/9154/stat"), stat).unwrap();
        let second = host.process(9154).unwrap().unwrap();
        assert_eq!((first.start_ticks, second.start_ticks), (142_746, 999_999));
        fs::remove_dir_all(root.path().join("proc/9154")).unwrap();
        assert_eq!(host.process(9154).unwrap(), None);
        assert!(host.known.starts.0.lock().unwrap().is_empty());
    }

    #[test]
    fn what_would_be_logged_is_refused_with_the_remedy() {
        let (root, host) = node();
        let folder = root.path().join("proc/9154");
        fs::create_dir_all(folder.join("fd")).unwrap();
        std::os::unix::fs::symlink("/bin/sh", folder.join("exe")).unwrap();
        std::os::unix::fs::symlink("socket:[7]", folder.join("fd/3")).unwrap();
        fs::write(folder.join("wchan"), "rpc_wait").unwrap();
        let told = |error: ReadError| {
            let is_denied = matches!(error, ReadError::Denied { .. });
            assert!(is_denied && error.to_string().contains("appArmorProfile"), "{error}");
        };
        told(host.process_link(9154, "exe").unwrap_err());
        told(host.process_link(9154, "fd/3").unwrap_err());
        told(host.socket_inodes(9154).unwrap_err());
        told(host.task_file(9154, 9154, "stack").unwrap_err());
        told(host.read("/proc/9154/stat").unwrap_err());
        told(host.list("/proc/9154/ns").unwrap_err());
        told(host.exists("/proc/9154/root/etc").unwrap_err());
        assert_eq!(host.task_wait_channel(9154, 9154), None);
        // How many there are, the folder tells without a look at them.
        assert!(host.process_open_files(9154).is_ok());
        assert_eq!(host.clone().confined(false).socket_inodes(9154).unwrap().len(), 1);
    }

    proptest! {
        #[test]
        fn a_cut_status_gives_name_and_state_or_none(cut in 0..made::STATUS.len()) {
            let told = parse_status(&made::STATUS[..cut]);
            prop_assert!(told.is_none_or(|told| told == ("bash".to_owned(), 'S')));
        }

        #[test]
        fn any_text_is_taken(text in ".{0,200}\n?") {
            parse_status(&text);
            is_enforced(&text);
            is_guarded(Path::new(&text));
        }
    }
}
