use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::{Host, ReadError};

/// What `stat` says of a file, symbolic links followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileStat {
    /// Its size.
    pub size_bytes: u64,
    /// When its content last changed, by the node's clock; `None` where the file system's time makes no sense.
    pub modified: Option<Timestamp>,
    /// When its content, rights or name last changed (ctime). A package keeps the time of its build as `modified`; this
    /// one is when it came here.
    pub changed: Option<Timestamp>,
    /// Type and permission bits.
    pub mode: u32,
    /// Device and inode. File systems give a freed inode's number to the next file: with `modified` it is surer.
    pub identity: (u64, u64),
    /// A folder.
    pub is_dir: bool,
    /// A regular file.
    pub is_file: bool,
}

impl FileStat {
    /// Whether root may execute it: a regular file with at least one execute bit.
    pub fn is_executable(&self) -> bool {
        self.is_file && self.mode & 0o111 != 0
    }
}

impl From<Metadata> for FileStat {
    fn from(metadata: Metadata) -> FileStat {
        let time =
            |seconds, nanos| i32::try_from(nanos).ok().and_then(|nanos| Timestamp::new(seconds, nanos).ok());
        FileStat {
            size_bytes: metadata.len(),
            modified: time(metadata.mtime(), metadata.mtime_nsec()),
            changed: time(metadata.ctime(), metadata.ctime_nsec()),
            mode: metadata.mode(),
            identity: (metadata.dev(), metadata.ino()),
            is_dir: metadata.is_dir(),
            is_file: metadata.is_file(),
        }
    }
}

impl Host {
    /// What `stat` says of a path of the host.
    ///
    /// # Errors
    /// It is not there, or a folder above it may not be searched.
    pub fn stat(&self, path: impl AsRef<Path>) -> Result<FileStat, ReadError> {
        let path = path.as_ref();
        self.allowed(path)?;
        let metadata =
            std::fs::metadata(self.path(path)).map_err(|error| ReadError::from_io("stat", path, error))?;
        Ok(FileStat::from(metadata))
    }

    /// Whether a name exists that leads nowhere from here: a symbolic link without its target. Under another
    /// root an absolute link points out of that root, so its target cannot be judged.
    pub fn is_dangling_link(&self, path: impl AsRef<Path>) -> bool {
        let path = self.path(path);
        let missing = matches!(std::fs::metadata(&path), Err(error) if error.kind() == ErrorKind::NotFound);
        missing && std::fs::symlink_metadata(&path).is_ok()
    }

    /// Watches a folder for changes, also for its own removal and return.
    ///
    /// # Errors
    /// The kernel gives no inotify instance (`fs.inotify.max_user_instances`), or no watch.
    pub fn watch_folder(&self, path: impl AsRef<Path>) -> Result<FolderWatch, ReadError> {
        let path = path.as_ref();
        let failed = |error: Errno| ReadError::from_io("watch", path, error.into());
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(failed)?;
        let mut watch = FolderWatch { inotify, folder: self.path(path) };
        watch.renew().map_err(failed)?;
        Ok(watch)
    }
}

/// An inotify watch of a folder and of the folder above it.
#[derive(Debug)]
pub struct FolderWatch {
    inotify: Inotify,
    folder: PathBuf,
}

impl FolderWatch {
    /// Empties the queue, and watches the folder that now stands under the name. What changed is not told: an
    /// event only wakes, the reader reads anew.
    ///
    /// # Errors
    /// The kernel's word: ENOSPC when `fs.inotify.max_user_watches` is used up.
    pub fn renew(&mut self) -> Result<(), Errno> {
        // Each read takes a buffer full; the number of rounds is bounded, since a busy writer could go on for ever.
        for _ in 0..64 {
            match self.inotify.read_events() {
                Ok(events) if !events.is_empty() => {}
                _ => break,
            }
        }
        let inside = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        let above = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_ONLYDIR;
        // Adding a watch that is there changes nothing: the kernel goes by inode.
        self.add(&self.folder, inside)?;
        match self.folder.parent() {
            Some(parent) => self.add(parent, above),
            None => Ok(()),
        }
    }

    fn add(&self, path: &Path, flags: AddWatchFlags) -> Result<(), Errno> {
        match self.inotify.add_watch(path, flags) {
            Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for FolderWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}
