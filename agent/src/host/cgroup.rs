//! The node's cgroups: where they are mounted, and the files in them.
//!
//! A hundred pods have thousands of files, so none is kept open: a kept one costs 4 KiB of kernel memory that is charged
//! to the agent. A folder is opened once for all of its files, which saves most of the path.

pub mod place;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::stat::Mode;
use nix::sys::uio::pread;
use nodewhy_proto::CgroupMode;

use super::{Host, LARGEST_FILE_BYTES, ReadError};

/// Where cgroups are mounted, as paths of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchies {
    /// Which ones.
    pub mode: CgroupMode,
    /// The mount of cgroup2.
    pub unified: Option<PathBuf>,
    /// The mounts of cgroup v1, by controller (`memory`, `cpu`, …).
    v1: Vec<(String, PathBuf)>,
}

impl Hierarchies {
    /// The v1 mount of this controller, on a node that has it on v1.
    pub fn v1(&self, controller: &str) -> Option<&Path> {
        self.v1.iter().find(|(name, _)| name == controller).map(|(_, path)| path.as_path())
    }

    /// The hierarchy that has every pod: the unified one, or on v1 the memory controller's.
    pub fn main(&self) -> Option<(&'static str, &Path)> {
        match self.mode {
            CgroupMode::V2 => self.unified.as_deref().map(|path| ("", path)),
            _ => ["memory", "pids", "cpu"]
                .into_iter()
                .find_map(|controller| Some((controller, self.v1(controller)?))),
        }
    }

    /// Reads a mount table (proc_pid_mountinfo(5)). `None`: no cgroups are mounted.
    fn parse(mountinfo: &str) -> Option<Hierarchies> {
        let mut found = Hierarchies { mode: CgroupMode::V2, unified: None, v1: Vec::new() };
        let mut mounts: Vec<Mount> = mountinfo.lines().filter_map(mount).collect();
        // A hierarchy may be mounted again (Cilium's /run/cilium/cgroupv2), or in parts: the usual place and the whole
        // come first.
        mounts.sort_by_key(|mount| (!mount.path.starts_with("/sys/fs/cgroup"), !mount.is_whole));
        for mount in mounts {
            match mount.controllers {
                None if found.unified.is_none() => found.unified = Some(mount.path),
                None => {}
                Some(controllers) => {
                    for controller in controllers {
                        if found.v1(&controller).is_none() {
                            found.v1.push((controller, mount.path.clone()));
                        }
                    }
                }
            }
        }
        found.mode = match (found.v1.is_empty(), found.unified.is_some()) {
            (true, true) => CgroupMode::V2,
            (false, true) => CgroupMode::Hybrid,
            (false, false) => CgroupMode::V1,
            (true, false) => return None,
        };
        Some(found)
    }
}

struct Mount {
    path: PathBuf,
    is_whole: bool,
    /// `None`: cgroup2.
    controllers: Option<Vec<String>>,
}

fn mount(line: &str) -> Option<Mount> {
    let (place, kind) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let (root, path) = (place.next()?, place.next()?);
    let mut kind = kind.split(' ');
    let controllers = match kind.next()? {
        "cgroup2" => None,
        "cgroup" => Some(kind.nth(1)?.split(',').filter(|word| *word != "rw").map(str::to_owned).collect()),
        _ => return None,
    };
    // The kernel writes blanks as \040; no cgroup mount has one.
    Some(Mount { path: path.into(), is_whole: root == "/", controllers })
}

/// A child of a cgroup.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Child {
    /// Its name.
    pub name: String,
    /// The number of its folder.
    pub inode: u64,
}

impl Host {
    /// Where the node has its cgroups mounted, by the mount table of its first process.
    ///
    /// # Errors
    /// The mount table cannot be read; `Absent`: it has no cgroups.
    pub fn cgroup_hierarchies(&self) -> Result<Hierarchies, ReadError> {
        Hierarchies::parse(&self.read("/proc/1/mountinfo")?)
            .ok_or_else(|| ReadError::absent("no cgroup hierarchy is mounted on this node"))
    }

    /// A cgroup's folder.
    ///
    /// # Errors
    /// It is not there, or may not be entered.
    pub fn cgroup(&self, path: impl AsRef<Path>) -> Result<Folder, ReadError> {
        let path = path.as_ref();
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = open(&self.path(path), flags, Mode::empty())
            .map_err(|errno| ReadError::from_io("open", path, errno.into()))?;
        Ok(Folder { path: path.to_owned(), fd })
    }

    /// The children of a cgroup, by name.
    ///
    /// # Errors
    /// It is not there, or may not be listed.
    pub fn cgroup_children(&self, path: impl AsRef<Path>) -> Result<Vec<Child>, ReadError> {
        let path = path.as_ref();
        let failed = |error| ReadError::from_io("list", path, error);
        let mut children = Vec::new();
        for entry in std::fs::read_dir(self.path(path)).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // The kernel tells the type with the name: no look at each file is needed.
            if entry.file_type().map_err(failed)?.is_dir() {
                let name = entry.file_name().to_string_lossy().into_owned();
                children.push(Child { name, inode: entry.ino() });
            }
        }
        children.sort();
        Ok(children)
    }

    /// Device, number and links of a cgroup's folder. Links are its children and two more.
    ///
    /// # Errors
    /// It is not there.
    pub fn cgroup_identity(&self, path: impl AsRef<Path>) -> Result<(u64, u64, u64), ReadError> {
        let path = path.as_ref();
        let metadata =
            std::fs::metadata(self.path(path)).map_err(|error| ReadError::from_io("stat", path, error))?;
        Ok((metadata.dev(), metadata.ino(), metadata.nlink()))
    }

    /// Watches one file of a cgroup that the kernel says changes of (`memory.events`).
    ///
    /// # Errors
    /// It is not there, or the kernel gives no inotify instance or watch.
    pub fn watch_cgroup_file(&self, path: impl AsRef<Path>) -> Result<FileWatch, ReadError> {
        let path = path.as_ref();
        let failed = |errno: Errno| ReadError::from_io("watch", path, errno.into());
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(failed)?;
        inotify.add_watch(&self.path(path), AddWatchFlags::IN_MODIFY).map_err(failed)?;
        Ok(FileWatch(inotify))
    }
}

/// Readable when the file has changed.
#[derive(Debug)]
pub struct FileWatch(Inotify);

impl FileWatch {
    /// Whether it has changed since the last call.
    pub fn take(&self) -> bool {
        let mut changed = false;
        // Equal changes are folded into one, so this ends; the bound is for a writer that is faster than we are.
        for _ in 0..16 {
            match self.0.read_events() {
                Ok(events) if !events.is_empty() => changed = true,
                _ => break,
            }
        }
        changed
    }
}

impl AsFd for FileWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// An open cgroup.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    fd: OwnedFd,
}

impl Folder {
    /// The host's path of it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it, or below it (`CHILD/memory.current`), into the buffer.
    ///
    /// # Errors
    /// It is not there (the controller is off, or the kernel is older than the file), may not be read, is not UTF-8.
    /// `NotFound` also when the cgroup itself was removed meanwhile.
    pub fn read<'b>(&self, name: &str, buffer: &'b mut Vec<u8>) -> Result<&'b str, ReadError> {
        let failed = |what, errno: Errno| match errno {
            // An open folder of a cgroup that was removed.
            Errno::ENODEV => ReadError::NotFound { path: self.path.join(name) },
            errno => ReadError::from_io(what, &self.path.join(name), errno.into()),
        };
        let file =
            openat(&self.fd, name, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty())
                .map_err(|errno| failed("open", errno))?;
        if buffer.len() < 4096 {
            buffer.resize(4096, 0);
        }
        // The kernel gives such a file whole, or as much as the buffer takes.
        let length = loop {
            let length = pread(&file, buffer, 0).map_err(|errno| failed("read", errno))?;
            if length < buffer.len() {
                break length;
            }
            if buffer.len() as u64 >= LARGEST_FILE_BYTES {
                let what = format!("it is larger than {LARGEST_FILE_BYTES} bytes");
                return Err(ReadError::malformed(self.path.join(name), what));
            }
            buffer.resize(buffer.len() * 2, 0);
        };
        let text = buffer.get(..length).unwrap_or_default();
        std::str::from_utf8(text)
            .map_err(|error| ReadError::malformed(self.path.join(name), format!("not UTF-8: {error}")))
    }
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    use crate::fuzz::{done, text};
    done(Hierarchies::parse(&text(bytes)));
    place::fuzz(bytes);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Recorded on Linux 6.18.44 with v1 controllers.
    const HYBRID: &str = include_str!("../../fixtures/hosts/linux-6.18/proc/1/mountinfo");
    /// A Debian 12 machine with systemd.
    const V2: &str =
        "30 24 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn the_three_kinds_of_nodes() {
        let v2 = Hierarchies::parse(V2).unwrap();
        assert_eq!((v2.mode, v2.main()), (CgroupMode::V2, Some(("", Path::new("/sys/fs/cgroup")))));
        let hybrid = Hierarchies::parse(HYBRID).unwrap();
        assert_eq!(hybrid.mode, CgroupMode::Hybrid);
        assert_eq!(hybrid.main(), Some(("memory", Path::new("/sys/fs/cgroup/memory"))));
        assert_eq!(hybrid.unified.as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
        assert_eq!(hybrid.v1("name=systemd"), Some(Path::new("/sys/fs/cgroup/systemd")));
        let without = HYBRID.lines().filter(|line| !line.contains("cgroup2")).collect::<Vec<_>>().join("\n");
        assert_eq!(Hierarchies::parse(&without).unwrap().mode, CgroupMode::V1);
        assert_eq!(Hierarchies::parse("22 21 0:20 / /proc rw - proc proc rw\n"), None);
    }

    #[test]
    fn a_second_mount_is_not_taken_for_the_first() {
        // Cilium's mount, as its documentation has it (cgroup.hostRoot /run/cilium/cgroupv2).
        let again = V2.replace("/sys/fs/cgroup", "/run/cilium/cgroupv2") + V2;
        assert_eq!(Hierarchies::parse(&again), Hierarchies::parse(V2));
        let both = V2.replace("- cgroup2 cgroup2 rw,nsdelegate", "- cgroup cgroup rw,cpu,cpuacct");
        let both = Hierarchies::parse(&both).unwrap();
        assert_eq!((both.v1("cpu"), both.v1("cpu")), (both.v1("cpuacct"), Some(Path::new("/sys/fs/cgroup"))));
    }

    #[test]
    fn files_are_read_whole_and_what_is_gone_is_not_found() {
        let root = tempfile::tempdir().unwrap();
        let long = "x".repeat(10_000) + "\n";
        std::fs::create_dir_all(root.path().join("cg/a/b")).unwrap();
        std::fs::write(root.path().join("cg/a/memory.stat"), &long).unwrap();
        std::fs::write(root.path().join("cg/a/b/bad"), b"\xff\n").unwrap();
        let host = Host::new(root.path(), nodewhy_clock::Clock::system(), crate::host::Places::default());
        let folder = host.cgroup("/cg/a").unwrap();
        let mut buffer = Vec::new();
        assert_eq!(folder.read("memory.stat", &mut buffer).unwrap(), long);
        assert!(matches!(folder.read("b/none", &mut buffer), Err(ReadError::NotFound { .. })));
        assert!(matches!(folder.read("b/bad", &mut buffer), Err(ReadError::Malformed { .. })));
        assert_eq!(host.cgroup_children("/cg/a").unwrap()[0].name, "b");
        let (_, inode, links) = host.cgroup_identity("/cg/a/b").unwrap();
        assert_eq!((host.cgroup_children("/cg/a").unwrap()[0].inode, links), (inode, 2));
        assert!(matches!(host.cgroup("/cg/none"), Err(ReadError::NotFound { .. })));
    }

    proptest! {
        #[test]
        fn any_table_is_read_without_a_panic(cut in 0..HYBRID.len(), text in ".{0,80}") {
            Hierarchies::parse(&format!("{}{text}", HYBRID.get(..cut).unwrap_or_default()));
        }
    }
}
