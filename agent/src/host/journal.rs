//! The journal of the node: which files of systemd's journal are read, and how they are followed over rotation.
//!
//! Only `system.journal` is followed (services, PID 1 and the kernel write there; `user-*.journal` is people's), and at
//! the start the newest archived one before it, where the time that is asked for began in it. journald renames the
//! file when it is full or damaged and makes a new one: the old one is read to its end by its descriptor.

pub mod file;

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use self::file::{Entry, FileError, JournalFile};
use super::{Host, ReadError};

/// Kept over restarts, and the one that is gone with the boot. Where the first is there journald writes no other.
const FOLDERS: &[&str] = &["/var/log/journal", "/run/log/journal"];
/// The one that is written.
const ACTIVE: &str = "system.journal";

/// The node's journal, followed.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    wanted: &'static [&'static str],
    /// An archived one that is read first.
    older: Option<JournalFile>,
    file: Option<(JournalFile, u64)>,
    /// The newest entry that was handed out: what is not newer was read from another file of the same boot.
    newest: Option<([u8; 16], u64)>,
    /// Entries that were read.
    pub entries_total: u64,
    /// Objects that were damaged and were passed over.
    damaged_before: u64,
    /// How often journald began a new file.
    pub rotations_total: u64,
}

/// What one read gave.
#[derive(Debug, Default)]
pub struct JournalRead {
    /// New entries, oldest first.
    pub entries: Vec<Entry>,
    /// Whether more waits than was asked for.
    pub behind: bool,
}

impl Host {
    /// Opens the journal at its first entry that is not older than this (wall clock, microseconds), for these fields.
    ///
    /// # Errors
    /// `Absent` where this node has none; `Denied` with the right that is missing.
    pub fn open_journal(
        &self,
        since_realtime_usec: u64,
        wanted: &'static [&'static str],
    ) -> Result<Journal, ReadError> {
        let folder = self.journal_folder()?;
        let mut journal = Journal {
            folder: folder.clone(),
            wanted,
            older: None,
            file: None,
            newest: None,
            entries_total: 0,
            damaged_before: 0,
            rotations_total: 0,
        };
        let (mut active, inode) = journal.open(self, ACTIVE)?;
        if active.seek(since_realtime_usec).is_err() {
            // Damaged in its chain: read as far as it goes, from its beginning.
            active.refresh().map_err(|error| unreadable(&folder.join(ACTIVE), &error))?;
        }
        // Nothing before its first entry is wanted, or perhaps something is.
        if active.at_start() {
            journal.older = journal.archived(self, since_realtime_usec);
        }
        journal.file = Some((active, inode));
        Ok(journal)
    }

    /// The folder with this machine's `system.journal`.
    fn journal_folder(&self) -> Result<PathBuf, ReadError> {
        let machine = self.read("/etc/machine-id").ok().map(|text| text.trim().to_owned());
        let mut refused = None;
        let mut seen = Vec::new();
        for folder in FOLDERS {
            let names = match self.list(folder) {
                Ok(names) => names,
                Err(ReadError::NotFound { .. }) => continue,
                Err(error) => {
                    refused = Some(error);
                    continue;
                }
            };
            seen.push(*folder);
            // A machine whose id is not readable, or was changed since: any folder that is named as one.
            let mut names: Vec<String> = names.into_iter().filter(|name| is_machine(name)).collect();
            names.sort_by_key(|name| Some(name) != machine.as_ref());
            for name in names {
                let candidate = Path::new(folder).join(name);
                match self.stat(candidate.join(ACTIVE)) {
                    Ok(_) => return Ok(candidate),
                    Err(ReadError::NotFound { .. }) => {}
                    Err(error) => refused = Some(error),
                }
            }
        }
        match (refused, seen.as_slice()) {
            (Some(error), _) => Err(error),
            (None, []) => Err(ReadError::absent(format!(
                "no journal: neither {} exists; this node has no systemd-journald, or its folders are not mounted",
                FOLDERS.join(" nor ")
            ))),
            (None, seen) => Err(ReadError::absent(format!("no {ACTIVE} in {}", seen.join(" or in ")))),
        }
    }
}

impl Journal {
    /// The host's folder of its files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Entries that are written and were not read yet.
    pub fn waiting(&self) -> u64 {
        let waiting = |file: &JournalFile| file.waiting();
        self.older.as_ref().map_or(0, waiting) + self.file.as_ref().map_or(0, |(file, _)| waiting(file))
    }

    /// Entries and fields that were damaged and were passed over.
    pub fn damaged_total(&self) -> u64 {
        let damaged = |file: &JournalFile| file.damaged_total;
        self.damaged_before
            + self.older.as_ref().map_or(0, damaged)
            + self.file.as_ref().map_or(0, |(file, _)| damaged(file))
    }

    /// What is new, `most` entries at most.
    ///
    /// # Errors
    /// The file can't be read on: it is damaged where its entries hang, or the disk fails. The next file will be read.
    pub fn read(&mut self, host: &Host, most: usize) -> Result<JournalRead, ReadError> {
        let mut read = JournalRead::default();
        if let Some(mut older) = self.older.take() {
            let ended = drain(&mut older, most, &mut read.entries);
            self.damaged_before += older.damaged_total;
            // An archive that is damaged is read as far as it goes.
            if matches!(ended, Ok(false)) {
                older.damaged_total = 0;
                self.older = Some(older);
                read.behind = true;
            }
        }
        if !read.behind {
            self.read_active(host, most, &mut read)?;
        }
        let newest = &mut self.newest;
        read.entries.retain(|entry| {
            let seen = newest
                .is_some_and(|(boot, monotonic)| boot == entry.boot_id && entry.monotonic_usec < monotonic);
            *newest = Some((entry.boot_id, entry.monotonic_usec)).filter(|_| !seen).or(*newest);
            !seen
        });
        self.entries_total += read.entries.len() as u64;
        Ok(read)
    }

    fn read_active(&mut self, host: &Host, most: usize, read: &mut JournalRead) -> Result<(), ReadError> {
        let path = self.folder.join(ACTIVE);
        // Before the look at the name: what is written to the old file until it is renamed is read from it.
        let named = match host.stat(&path) {
            Ok(stat) => Some(stat.identity.1),
            // Between the renaming and the new file; or the runtime journal went to /var/log/journal.
            Err(ReadError::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        if let Some((file, inode)) = &mut self.file {
            let ended = file
                .refresh()
                .and_then(|()| drain(file, most, &mut read.entries))
                .map_err(|error| unreadable(&path, &error));
            let moved = named != Some(*inode);
            match ended {
                Ok(false) => {
                    read.behind = true;
                    return Ok(());
                }
                Ok(true) if !moved => return Ok(()),
                // What was read is handed out first; the new one has its turn in the next read.
                Ok(true) if !read.entries.is_empty() => {
                    read.behind = true;
                    return Ok(());
                }
                // What was read before the damage is handed out first; the next read meets it again.
                Err(_) if !moved && !read.entries.is_empty() => {
                    read.behind = true;
                    return Ok(());
                }
                Err(error) if !moved => return Err(error),
                // A damaged one that journald set aside: on with the new one.
                _ => {}
            }
            self.damaged_before += file.damaged_total;
            self.file = None;
        }
        if named.is_none() {
            self.folder = host.journal_folder()?;
        }
        let (mut next, inode) = self.open(host, ACTIVE)?;
        self.rotations_total += 1;
        let ended = drain(&mut next, most, &mut read.entries);
        self.file = Some((next, inode));
        read.behind |= !ended.map_err(|error| unreadable(&self.folder.join(ACTIVE), &error))?;
        Ok(())
    }

    fn open(&self, host: &Host, name: &str) -> Result<(JournalFile, u64), ReadError> {
        let path = self.folder.join(name);
        let file = super::open::open(&host.path(&path)).map_err(|error| match error.kind() {
            ErrorKind::PermissionDenied => ReadError::Denied {
                path: path.clone(),
                error,
                needs: "run as root, or as a member of the group systemd-journal".to_owned(),
            },
            _ => ReadError::from_io("open", &path, error),
        })?;
        let inode = file.metadata().map_err(|error| ReadError::from_io("stat", &path, error))?.ino();
        let file = JournalFile::new(file, self.wanted).map_err(|error| unreadable(&path, &error))?;
        Ok((file, inode))
    }

    /// The newest archived file: `system@SEQUENCE-SEQNUM-REALTIME.journal`, the last two in hex. It is a help at the
    /// start alone: what is wrong with it costs nothing else.
    fn archived(&self, host: &Host, since_realtime_usec: u64) -> Option<JournalFile> {
        let names = host.list(&self.folder).ok()?;
        let began = |name: &str| {
            let name = name.strip_prefix("system@")?.strip_suffix(".journal")?;
            u64::from_str_radix(name.rsplit_once('-')?.1, 16).ok()
        };
        let newest = names.iter().filter_map(|name| Some((began(name)?, name))).max()?.1;
        let (mut file, _) = self.open(host, newest).ok()?;
        file.seek(since_realtime_usec).ok()?;
        Some(file)
    }
}

/// Reads on until the end (`true`) or until there are `most` entries.
fn drain(file: &mut JournalFile, most: usize, entries: &mut Vec<Entry>) -> Result<bool, FileError> {
    while entries.len() < most {
        match file.next_entry()? {
            Some(entry) => entries.push(entry),
            None => return Ok(true),
        }
    }
    Ok(file.waiting() == 0)
}

fn unreadable(path: &Path, error: &FileError) -> ReadError {
    match error {
        FileError::Io(error) => {
            ReadError::Io { what: "read", path: path.to_owned(), error: std::io::Error::other(error.clone()) }
        }
        other => ReadError::malformed(path, other.to_string()),
    }
}

/// A machine id: 32 hex digits.
fn is_machine(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests;
