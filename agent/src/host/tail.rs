//! Log files that grow, are renamed and cut (rotation), followed by their inode; and what wakes their reader.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::{Host, ReadError};

/// A longer line is cut: what matters stands at its beginning.
const LONGEST_LINE_BYTES: usize = 16 * 1024;
/// One read.
const CHUNK_BYTES: usize = 64 * 1024;

/// A line, without its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TailLine {
    /// Where it began, in the file of this inode: with it the line's identity.
    pub offset: u64,
    /// The file.
    pub inode: u64,
    /// The text; bytes that are no UTF-8 are replaced, and a very long one is cut.
    pub text: String,
}

/// A log file by its name, whatever file has that name.
#[derive(Debug)]
pub struct Tail {
    path: PathBuf,
    shown: PathBuf,
    file: Option<(File, u64)>,
    offset: u64,
    /// Of a line whose end is not written yet, and where it began.
    partial: Vec<u8>,
    partial_at: u64,
    /// The rest of a line that was too long is passed over.
    cut: bool,
    /// Bytes that were passed over, since more waited than is read, or at the beginning of an old file.
    pub skipped_bytes: u64,
    /// How often another file took the name, or the file was cut.
    pub rotations: u64,
}

impl Host {
    /// Follows a file; it need not be there yet. Of a file that is there, the last `from_end` bytes are read first.
    pub fn tail(&self, path: impl AsRef<Path>, from_end: u64) -> Tail {
        let path = path.as_ref();
        let mut tail = Tail {
            path: self.path(path),
            shown: path.to_owned(),
            file: None,
            offset: 0,
            partial: Vec::new(),
            partial_at: 0,
            cut: false,
            skipped_bytes: 0,
            rotations: 0,
        };
        if let Ok(Some((file, inode, length))) = tail.look() {
            tail.file = Some((file, inode));
            tail.start_at(length.saturating_sub(from_end));
        }
        tail
    }

    /// Wakes when one of its files or folders changes.
    ///
    /// # Errors
    /// The kernel gives no inotify instance (`fs.inotify.max_user_instances`).
    pub fn watch_files(&self) -> Result<FileWatch, ReadError> {
        let flags = InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC;
        let inotify = Inotify::init(flags)
            .map_err(|error| ReadError::from_io("watch", Path::new("log files"), error.into()))?;
        Ok(FileWatch { inotify, root: self.path("/") })
    }
}

impl Tail {
    /// The lines that are complete and were not handed out yet, `most_bytes` at most; what waits beyond `behind_bytes`
    /// is passed over and counted.
    ///
    /// # Errors
    /// The file may not be opened or read. Its absence is none: it may come.
    pub fn read(&mut self, most_bytes: u64, behind_bytes: u64) -> Result<Vec<TailLine>, ReadError> {
        let mut lines = Vec::new();
        let mut left = most_bytes;
        if self.file.is_some() {
            self.drain(&mut left, behind_bytes, &mut lines)?;
        }
        // Another file under the name? The one before was read to its end above.
        let named = self.look()?;
        match (named, self.file.as_ref().map(|(_, inode)| *inode)) {
            (Some((_, inode, length)), Some(known)) if inode == known => {
                if length < self.offset {
                    self.rotations += 1;
                    self.start_at(0);
                    self.drain(&mut left, behind_bytes, &mut lines)?;
                }
            }
            (Some((file, inode, _)), known) => {
                if known.is_some() {
                    if left == 0 {
                        return Ok(lines);
                    }
                    self.rotations += 1;
                }
                self.file = Some((file, inode));
                self.start_at(0);
                self.drain(&mut left, behind_bytes, &mut lines)?;
            }
            // Renamed, and the new one is not there yet.
            (None, _) => {}
        }
        Ok(lines)
    }

    fn start_at(&mut self, offset: u64) {
        self.offset = offset;
        self.skipped_bytes += offset;
        self.partial.clear();
        self.partial_at = offset;
        // In the midst of the file a line's beginning is not there.
        self.cut = offset > 0;
    }

    fn look(&self) -> Result<Option<(File, u64, u64)>, ReadError> {
        if let Some((_, inode)) = &self.file {
            // A name that still leads to the file that is open is not opened anew.
            match std::fs::metadata(&self.path) {
                Ok(metadata) if metadata.ino() == *inode => {
                    let (file, inode) = self
                        .file
                        .as_ref()
                        .map(|(file, inode)| (file.try_clone(), *inode))
                        .ok_or_else(|| ReadError::malformed(&self.shown, "no open file"))?;
                    let file = file.map_err(|error| ReadError::from_io("open", &self.shown, error))?;
                    return Ok(Some((file, inode, metadata.len())));
                }
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                _ => {}
            }
        }
        match super::open::open(&self.path) {
            Ok(file) => {
                let metadata =
                    file.metadata().map_err(|error| ReadError::from_io("stat", &self.shown, error))?;
                Ok(Some((file, metadata.ino(), metadata.len())))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ReadError::from_io("open", &self.shown, error)),
        }
    }

    fn drain(
        &mut self,
        left: &mut u64,
        behind_bytes: u64,
        lines: &mut Vec<TailLine>,
    ) -> Result<(), ReadError> {
        let Some((file, inode)) = &self.file else { return Ok(()) };
        let length = file.metadata().map_err(|error| ReadError::from_io("stat", &self.shown, error))?.len();
        if length.saturating_sub(self.offset) > behind_bytes {
            let to = length - behind_bytes;
            self.skipped_bytes += to - self.offset;
            self.offset = to;
            self.partial.clear();
            self.partial_at = to;
            self.cut = true;
        }
        let mut chunk = vec![0; CHUNK_BYTES];
        while *left > 0 {
            let wanted = chunk.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
            let window = chunk.get_mut(..wanted).unwrap_or_default();
            let count = match file.read_at(window, self.offset) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(ReadError::from_io("read", &self.shown, error)),
            };
            *left = left.saturating_sub(count as u64);
            let mut rest = window.get(..count).unwrap_or_default();
            let mut at = self.offset;
            self.offset += count as u64;
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let piece = rest.get(..end).unwrap_or_default();
                if !self.cut {
                    let room = LONGEST_LINE_BYTES.saturating_sub(self.partial.len());
                    self.partial.extend(piece.iter().take(room));
                    if !self.partial.is_empty() {
                        let text = String::from_utf8_lossy(&self.partial).into_owned();
                        lines.push(TailLine { offset: self.partial_at, inode: *inode, text });
                    }
                }
                self.cut = false;
                self.partial.clear();
                at += end as u64 + 1;
                self.partial_at = at;
                rest = rest.get(end + 1..).unwrap_or_default();
            }
            if !self.cut {
                let room = LONGEST_LINE_BYTES.saturating_sub(self.partial.len());
                self.partial.extend(rest.iter().take(room));
            }
        }
        Ok(())
    }
}

/// See [`Host::watch_files`].
#[derive(Debug)]
pub struct FileWatch {
    inotify: Inotify,
    root: PathBuf,
}

impl FileWatch {
    /// Watches a file or a folder of the host; adding one again changes nothing. `false`: it will not wake (it is not
    /// there, or `fs.inotify.max_user_watches` is used up).
    pub fn add(&self, path: impl AsRef<Path>) -> bool {
        let path = path.as_ref();
        let path = self.root.join(path.strip_prefix("/").unwrap_or(path));
        let flags = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_DELETE_SELF;
        self.inotify.add_watch(&path, flags).is_ok()
    }

    /// Empties the queue: what happened is not told, the reader looks at all.
    pub fn drain(&self) {
        for _ in 0..64 {
            match self.inotify.read_events() {
                Ok(events) if !events.is_empty() => {}
                Err(Errno::EINTR) => {}
                _ => break,
            }
        }
    }
}

impl AsFd for FileWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nodewhy_clock::Clock;
    use std::io::Write;

    fn host(root: &Path) -> Host {
        Host::new(root, Clock::system(), super::super::Places::default())
    }

    fn texts(tail: &mut Tail) -> Vec<String> {
        tail.read(1 << 20, 1 << 20).unwrap().into_iter().map(|line| line.text).collect()
    }

    fn append(path: &Path, text: &str) {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn lines_are_handed_out_when_their_end_is_written_and_once() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.log");
        let mut tail = host(root.path()).tail("/a.log", 0);
        assert!(texts(&mut tail).is_empty());
        append(&path, "one\ntw");
        assert_eq!(texts(&mut tail), ["one"]);
        append(&path, "o\n\nthree\n");
        let lines = tail.read(1 << 20, 1 << 20).unwrap();
        assert_eq!(
            lines.iter().map(|line| (line.offset, line.text.as_str())).collect::<Vec<_>>(),
            [(4, "two"), (9, "three")]
        );
        assert!(texts(&mut tail).is_empty());
    }

    #[test]
    fn a_renamed_file_is_read_to_its_end_and_then_the_new_one() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.log");
        let mut tail = host(root.path()).tail("/a.log", 0);
        append(&path, "one\n");
        assert_eq!(texts(&mut tail), ["one"]);
        append(&path, "two\n");
        std::fs::rename(&path, root.path().join("a.log.1")).unwrap();
        assert_eq!(texts(&mut tail), ["two"]);
        append(&root.path().join("a.log.1"), "late\n");
        append(&path, "three\n");
        assert_eq!(texts(&mut tail), ["late", "three"]);
        assert_eq!(tail.rotations, 1);
    }

    #[test]
    fn a_file_that_was_cut_is_read_from_its_beginning() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.log");
        append(&path, "a long first line\n");
        let mut tail = host(root.path()).tail("/a.log", 1 << 20);
        assert_eq!(texts(&mut tail), ["a long first line"]);
        std::fs::write(&path, "two\n").unwrap();
        assert_eq!(texts(&mut tail), ["two"]);
        assert_eq!(tail.rotations, 1);
    }

    #[test]
    fn of_an_old_file_only_the_end_is_read_and_no_half_line() {
        let root = tempfile::tempdir().unwrap();
        append(&root.path().join("a.log"), "0123456789\nsecond\nthird\n");
        let mut tail = host(root.path()).tail("/a.log", 16);
        assert_eq!(texts(&mut tail), ["second", "third"]);
        assert_eq!(tail.skipped_bytes, 8);
    }

    #[test]
    fn a_reader_that_is_far_behind_passes_over_and_says_how_much() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.log");
        let mut tail = host(root.path()).tail("/a.log", 0);
        append(&path, &"0123456789abcde\n".repeat(1000));
        let lines = tail.read(1 << 20, 160).unwrap();
        // Passed over up to the beginning of a line, whose first byte can't be known as one.
        assert_eq!((lines.len(), tail.skipped_bytes), (9, 16 * 1000 - 160));
        append(&path, &"x".repeat(1 << 20));
        append(&path, "\nlast\n");
        let lines = tail.read(4 << 20, 4 << 20).unwrap();
        assert_eq!((lines[0].text.len(), lines[1].text.as_str()), (LONGEST_LINE_BYTES, "last"));
    }

    #[test]
    fn a_budget_ends_a_read_and_the_next_goes_on() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.log");
        append(&path, &"0123456\n".repeat(10));
        let mut tail = host(root.path()).tail("/a.log", 1 << 20);
        assert_eq!(tail.read(20, 1 << 20).unwrap().len(), 2);
        assert_eq!(tail.read(1 << 20, 1 << 20).unwrap().len(), 8);
    }

    #[test]
    fn what_is_written_wakes() {
        use nix::poll::{PollFd, PollFlags, poll};
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.log");
        append(&path, "one\n");
        let watch = host(root.path()).watch_files().unwrap();
        assert!(watch.add("/a.log") && !watch.add("/none"));
        let ready =
            |limit: u16| poll(&mut [PollFd::new(watch.as_fd(), PollFlags::POLLIN)], limit).unwrap() == 1;
        assert!(!ready(0));
        append(&path, "two\n");
        assert!(ready(5000));
        watch.drain();
        assert!(!ready(0));
    }
}
