//! One file of systemd's journal, read from its own bytes: no subprocess, no libsystemd, no memory map (the file is
//! written while it is read, and a map of a file that is cut under it kills its reader).
//!
//! Source: systemd's JOURNAL_FILE_FORMAT and journal-def.h. Entries hang on a chain of arrays in the order in which
//! they were written, so a position is an array and an index, and what is new is found without a search and whatever
//! the wall clock does. Nothing is believed: each offset is held against the file's length, chains only go forwards
//! (the file is only appended to), and each object's size has a limit.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

const SIGNATURE: &[u8; 8] = b"LPKSHHRH";
const HEADER_BYTES: usize = 208;
const OBJECT_HEADER_BYTES: u64 = 16;

const INCOMPATIBLE_COMPACT: u32 = 16;
/// XZ, LZ4, KEYED_HASH, ZSTD, COMPACT: a file with another flag can't be read by this code.
const INCOMPATIBLE_KNOWN: u32 = 1 | 2 | 4 | 8 | INCOMPATIBLE_COMPACT;

const DATA: u8 = 1;
const ENTRY: u8 = 3;
const ENTRY_ARRAY: u8 = 6;

const XZ: u8 = 1;
const LZ4: u8 = 2;
const ZSTD: u8 = 4;

/// An entry has a few dozen fields; journald refuses more than 1024.
const LONGEST_ENTRY_BYTES: u64 = 64 * 1024;
/// Of a field's value so much is read; a longer one is cut.
const KEPT_BYTES: usize = 16 * 1024;
/// A compressed field that is longer is passed over.
const LONGEST_COMPRESSED_BYTES: u64 = 1024 * 1024;
/// A field is read at first with so many bytes: nearly all of them fit.
const FIRST_BYTES: usize = 320;
/// Arrays are twice as long as the one before: so many are far more entries than any file has.
const LONGEST_CHAIN: usize = 4096;
/// So many fields are remembered by their place: units, transports and ids come again and again.
const REMEMBERED: usize = 4096;

/// Why a file could not be read on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// The kernel refused.
    #[error("cannot read it: {0}")]
    Io(String),
    /// It is no journal file, or one that this version can't read.
    #[error("{0}")]
    Unreadable(String),
    /// An object is not what it should be: the file is damaged, or was cut.
    #[error("damaged at byte {offset}: {what}")]
    Damaged {
        /// Where.
        offset: u64,
        /// What was expected.
        what: &'static str,
    },
}

/// One entry, with the fields that this program asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Its number within the file's sequence.
    pub seqnum: u64,
    /// When journald took it, by the wall clock, in microseconds. Late on a starved node.
    pub realtime_usec: u64,
    /// When journald took it, by CLOCK_MONOTONIC of its boot.
    pub monotonic_usec: u64,
    /// Which boot.
    pub boot_id: [u8; 16],
    /// The fields, by name; a value that is no UTF-8 has its bad bytes replaced.
    fields: Vec<(&'static str, Arc<str>)>,
}

impl Entry {
    /// A field's value.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| *known == name).map(|(_, value)| &**value)
    }

    /// The boot, as the kernel writes it.
    pub fn boot(&self) -> String {
        self.boot_id.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Where reading goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Position {
    /// The array; 0: before the first.
    array: u64,
    /// The index within it.
    index: u64,
    /// Entries before it, of all arrays.
    before: u64,
}

/// A journal file that is being followed.
#[derive(Debug)]
pub struct JournalFile {
    file: File,
    /// Which fields are asked for.
    wanted: &'static [&'static str],
    compact: bool,
    length: u64,
    entries: u64,
    first_array: u64,
    at: Position,
    /// Fields by their place in the file; `None`: nobody asks for it.
    remembered: HashMap<u64, Option<(&'static str, Arc<str>)>>,
    /// Entries and fields that were damaged and were passed over.
    pub damaged_total: u64,
}

impl JournalFile {
    /// Takes an open file, at its beginning.
    ///
    /// # Errors
    /// It is no journal file, has a feature that is not known here, or can't be read.
    pub fn new(file: File, wanted: &'static [&'static str]) -> Result<JournalFile, FileError> {
        let mut journal = JournalFile {
            file,
            wanted,
            compact: false,
            length: 0,
            entries: 0,
            first_array: 0,
            at: Position::default(),
            remembered: HashMap::new(),
            damaged_total: 0,
        };
        journal.refresh()?;
        Ok(journal)
    }

    /// Entries that are written and were not read yet.
    pub fn waiting(&self) -> u64 {
        self.entries.saturating_sub(self.at.before)
    }

    /// Whether nothing was read of it and nothing is passed over.
    pub fn at_start(&self) -> bool {
        self.at.before == 0
    }

    /// Looks at how far the file is written by now.
    ///
    /// # Errors
    /// As [`JournalFile::new`].
    pub fn refresh(&mut self) -> Result<(), FileError> {
        let metadata = self.file.metadata().map_err(|error| FileError::Io(error.to_string()))?;
        let mut header = [0; HEADER_BYTES];
        self.file.read_exact_at(&mut header, 0).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                FileError::Unreadable("no journal file: it ends within its header".to_owned())
            }
            _ => FileError::Io(error.to_string()),
        })?;
        if header.get(..8) != Some(SIGNATURE.as_slice()) {
            return Err(FileError::Unreadable(
                "no journal file: its first bytes are not LPKSHHRH".to_owned(),
            ));
        }
        let short = FileError::Damaged { offset: 0, what: "a header" };
        let incompatible = u32_at(&header, 12).ok_or_else(|| short.clone())?;
        if incompatible & !INCOMPATIBLE_KNOWN != 0 {
            return Err(FileError::Unreadable(format!(
                "it has features that this version does not know (incompatible flags {incompatible:#x})"
            )));
        }
        let field = |at: usize| u64_at(&header, at).ok_or_else(|| short.clone());
        self.compact = incompatible & INCOMPATIBLE_COMPACT != 0;
        // The file may be cut: then what is missing is damaged, and what is there is read.
        self.length = metadata.len().min(field(88)?.saturating_add(field(96)?));
        self.entries = field(152)?;
        self.first_array = field(176)?;
        Ok(())
    }

    /// Goes to the first entry that is not older than this (wall clock, microseconds), as far as the entries' times
    /// are in order.
    ///
    /// # Errors
    /// The chain of arrays is damaged.
    pub fn seek(&mut self, since_realtime_usec: u64) -> Result<(), FileError> {
        let arrays = self.arrays()?;
        let (mut low, mut high) = (0, self.entries);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.realtime_of(&arrays, middle)? {
                Some(realtime) if realtime < since_realtime_usec => low = middle + 1,
                _ => high = middle,
            }
        }
        let found = arrays.iter().rfind(|array| array.before <= low);
        self.at = match found {
            Some(array) => Position { array: array.array, index: low - array.before, before: low },
            None => Position::default(),
        };
        Ok(())
    }

    /// The next entry; `None`: there is none yet. A damaged one is counted and passed over.
    ///
    /// # Errors
    /// The chain of arrays is damaged: what follows can't be found.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, FileError> {
        while self.at.before < self.entries {
            let Some(offset) = self.item()? else { return Ok(None) };
            self.at.index += 1;
            self.at.before += 1;
            match self.entry(offset) {
                Ok(entry) => return Ok(Some(entry)),
                Err(FileError::Damaged { .. }) => self.damaged_total += 1,
                Err(other) => return Err(other),
            }
        }
        Ok(None)
    }

    /// The place of the entry at the position; goes on to the next array at the end of one.
    fn item(&mut self) -> Result<Option<u64>, FileError> {
        if self.at.array == 0 {
            if self.first_array == 0 {
                return Ok(None);
            }
            self.at.array = self.first_array;
        }
        let array = self.array(self.at.array)?;
        if self.at.index >= array.capacity {
            if array.next == 0 {
                return Ok(None);
            }
            if array.next <= self.at.array {
                return Err(FileError::Damaged { offset: self.at.array, what: "the next array after it" });
            }
            self.at.array = array.next;
            self.at.index = 0;
            return self.item_of(array.next, 0);
        }
        self.item_of(self.at.array, self.at.index)
    }

    fn item_of(&self, array: u64, index: u64) -> Result<Option<u64>, FileError> {
        let width = self.width();
        let damaged = FileError::Damaged { offset: array, what: "an array of entries" };
        let offset = index.checked_mul(width).and_then(|at| at.checked_add(array)?.checked_add(24));
        let mut bytes = [0; 8];
        let item = bytes.get_mut(..if self.compact { 4 } else { 8 }).ok_or_else(|| damaged.clone())?;
        self.read(offset.ok_or(damaged)?, item)?;
        let offset = u64::from_le_bytes(bytes);
        // Written after the header's count was seen: not yet there.
        Ok((offset != 0).then_some(offset))
    }

    fn width(&self) -> u64 {
        if self.compact { 4 } else { 8 }
    }

    fn array(&self, offset: u64) -> Result<Array, FileError> {
        let (kind, _, size) = self.object(offset)?;
        if kind != ENTRY_ARRAY || size < 24 {
            return Err(FileError::Damaged { offset, what: "an array of entries" });
        }
        let mut next = [0; 8];
        self.read(offset + OBJECT_HEADER_BYTES, &mut next)?;
        Ok(Array { next: u64::from_le_bytes(next), capacity: (size - 24) / self.width() })
    }

    /// The whole chain, each array with the number of entries before it.
    fn arrays(&self) -> Result<Vec<Position>, FileError> {
        let (mut arrays, mut offset, mut before) = (Vec::new(), self.first_array, 0u64);
        while offset != 0 && before < self.entries {
            if arrays.len() == LONGEST_CHAIN {
                return Err(FileError::Damaged { offset, what: "an end of the chain of arrays" });
            }
            arrays.push(Position { array: offset, index: 0, before });
            let array = self.array(offset)?;
            if array.next != 0 && array.next <= offset {
                return Err(FileError::Damaged { offset, what: "the next array after it" });
            }
            before = before.saturating_add(array.capacity);
            offset = array.next;
        }
        Ok(arrays)
    }

    fn realtime_of(&self, arrays: &[Position], number: u64) -> Result<Option<u64>, FileError> {
        let Some(array) = arrays.iter().rfind(|array| array.before <= number) else { return Ok(None) };
        let Some(offset) = self.item_of(array.array, number - array.before)? else { return Ok(None) };
        let mut bytes = [0; 8];
        self.read(offset.saturating_add(24), &mut bytes)?;
        Ok(Some(u64::from_le_bytes(bytes)))
    }

    fn entry(&mut self, offset: u64) -> Result<Entry, FileError> {
        let damaged = |what| FileError::Damaged { offset, what };
        let (kind, _, size) = self.object(offset)?;
        if kind != ENTRY || !(64..=LONGEST_ENTRY_BYTES).contains(&size) {
            return Err(damaged("an entry"));
        }
        let mut bytes = vec![0; usize::try_from(size).map_err(|_| damaged("an entry"))?];
        self.read(offset, &mut bytes)?;
        let number = |at| u64_at(&bytes, at).ok_or_else(|| damaged("an entry"));
        let mut entry = Entry {
            seqnum: number(16)?,
            realtime_usec: number(24)?,
            monotonic_usec: number(32)?,
            boot_id: id_at(&bytes, 40).ok_or_else(|| damaged("an entry"))?,
            fields: Vec::new(),
        };
        let items = bytes.get(64..).unwrap_or_default().chunks_exact(if self.compact { 4 } else { 16 });
        for item in items {
            let place = if self.compact { u32_at(item, 0).map(u64::from) } else { u64_at(item, 0) };
            let Some(place) = place.filter(|place| *place != 0) else { continue };
            match self.field(place) {
                Ok(field) => entry.fields.extend(field),
                // One field costs only itself.
                Err(FileError::Damaged { .. }) => self.damaged_total += 1,
                Err(other) => return Err(other),
            }
        }
        Ok(entry)
    }

    /// The field at this place, if it is asked for.
    fn field(&mut self, offset: u64) -> Result<Option<(&'static str, Arc<str>)>, FileError> {
        if let Some(field) = self.remembered.get(&offset) {
            return Ok(field.clone());
        }
        let field = self.data(offset)?;
        if self.remembered.len() >= REMEMBERED {
            self.remembered.clear();
        }
        // A message comes once: remembering it would only cost memory.
        let once = field.as_ref().is_some_and(|(_, value)| value.len() > 256);
        if !once {
            self.remembered.insert(offset, field.clone());
        }
        Ok(field)
    }

    fn data(&self, offset: u64) -> Result<Option<(&'static str, Arc<str>)>, FileError> {
        let damaged = FileError::Damaged { offset, what: "a field" };
        let mut first = [0; FIRST_BYTES];
        let there = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let first = first.get_mut(..FIRST_BYTES.min(there)).unwrap_or_default();
        self.read(offset, first)?;
        let head = if self.compact { 72 } else { 64 };
        let (Some(&kind), Some(&flags), Some(size)) = (first.first(), first.get(1), u64_at(first, 8)) else {
            return Err(damaged);
        };
        let Some(payload_bytes) = size.checked_sub(head).filter(|_| kind == DATA) else {
            return Err(damaged);
        };
        if offset.saturating_add(size) > self.length {
            return Err(damaged);
        }
        let start = offset + head;
        if flags & (XZ | LZ4 | ZSTD) == 0 {
            // The name first: what nobody asks for is not read.
            let beginning = first.get(usize::try_from(head).unwrap_or(usize::MAX)..).unwrap_or_default();
            let inside = usize::try_from(payload_bytes).unwrap_or(usize::MAX).min(beginning.len());
            let beginning = beginning.get(..inside).unwrap_or_default();
            let Some(name) = self.wanted_name(beginning) else { return Ok(None) };
            let whole = usize::try_from(payload_bytes).unwrap_or(usize::MAX).min(KEPT_BYTES);
            if whole <= beginning.len() {
                return Ok(field_of(name, beginning));
            }
            let mut payload = vec![0; whole];
            self.read(start, &mut payload)?;
            return Ok(field_of(name, &payload));
        }
        if payload_bytes > LONGEST_COMPRESSED_BYTES {
            return Err(damaged);
        }
        let mut packed = vec![0; usize::try_from(payload_bytes).map_err(|_| damaged.clone())?];
        self.read(start, &mut packed)?;
        let payload = match flags & (XZ | LZ4 | ZSTD) {
            ZSTD => unpack_zstd(&packed),
            LZ4 => unpack_lz4(&packed),
            // XZ: systemd before 246 on some distributions; its reader is not built in.
            _ => None,
        };
        let payload = payload.ok_or(damaged)?;
        Ok(self.wanted_name(&payload).and_then(|name| field_of(name, &payload)))
    }

    /// The name before `=`, if it is asked for.
    fn wanted_name(&self, payload: &[u8]) -> Option<&'static str> {
        let end = payload.iter().take(64).position(|byte| *byte == b'=')?;
        let name = payload.get(..end)?;
        self.wanted.iter().find(|wanted| wanted.as_bytes() == name).copied()
    }

    /// Type, flags and size of the object here.
    fn object(&self, offset: u64) -> Result<(u8, u8, u64), FileError> {
        let damaged = FileError::Damaged { offset, what: "an object" };
        let mut bytes = [0; 16];
        self.read(offset, &mut bytes)?;
        let size =
            u64_at(&bytes, 8).filter(|size| *size >= OBJECT_HEADER_BYTES).ok_or_else(|| damaged.clone())?;
        if !offset.is_multiple_of(8) || offset.checked_add(size).is_none_or(|end| end > self.length) {
            return Err(damaged);
        }
        let [kind, flags, ..] = bytes;
        Ok((kind, flags, size))
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), FileError> {
        let damaged = FileError::Damaged { offset, what: "more of the file" };
        if offset < HEADER_BYTES as u64
            || offset.checked_add(bytes.len() as u64).is_none_or(|end| end > self.length)
        {
            return Err(damaged);
        }
        self.file.read_exact_at(bytes, offset).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => damaged,
            _ => FileError::Io(error.to_string()),
        })
    }
}

struct Array {
    next: u64,
    capacity: u64,
}

fn field_of(name: &'static str, payload: &[u8]) -> Option<(&'static str, Arc<str>)> {
    let value = payload.get(name.len() + 1..)?;
    let value = value.get(..value.len().min(KEPT_BYTES)).unwrap_or(value);
    Some((name, String::from_utf8_lossy(value).into()))
}

/// The beginning of what was packed, as much of it as is kept.
fn unpack_zstd(packed: &[u8]) -> Option<Vec<u8>> {
    // The frame's head says how much memory its reader needs: a damaged one could ask for gigabytes.
    let descriptor = *packed.get(4)?;
    if descriptor & 0x20 == 0 {
        let window = *packed.get(5)?;
        // 2^(10 + exponent): 8 MiB at most, which every level of the compressor keeps to.
        if window >> 3 > 13 {
            return None;
        }
    } else {
        // One segment: the window is the whole content, whose size follows.
        let size = match descriptor >> 6 {
            0 => u64::from(*packed.get(5)?),
            1 => u64::from(u16::from_le_bytes([*packed.get(5)?, *packed.get(6)?])),
            2 => u64::from(u32_at(packed, 5)?),
            _ => u64_at(packed, 5)?,
        };
        if size > 8 * LONGEST_COMPRESSED_BYTES {
            return None;
        }
    }
    let decoder = ruzstd::decoding::StreamingDecoder::new(packed).ok()?;
    let mut payload = Vec::new();
    decoder.take(KEPT_BYTES as u64).read_to_end(&mut payload).ok()?;
    Some(payload)
}

/// systemd writes the length of the content before the block, eight bytes.
fn unpack_lz4(packed: &[u8]) -> Option<Vec<u8>> {
    let length = usize::try_from(u64_at(packed, 0)?).ok().filter(|length| *length <= 8 << 20)?;
    lz4_flex::block::decompress(packed.get(8..)?, length).ok()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_le_bytes)
}

fn id_at(bytes: &[u8], at: usize) -> Option<[u8; 16]> {
    bytes.get(at..at.checked_add(16)?)?.try_into().ok()
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    use std::io::Write;
    let wanted: &[&str] = &["MESSAGE", "_SYSTEMD_UNIT", "_PID"];
    let Ok(memory) = rustix::fs::memfd_create("journal", rustix::fs::MemfdFlags::CLOEXEC) else { return };
    let mut file = File::from(memory);
    if file.write_all(bytes).is_err() {
        return;
    }
    let Ok(mut journal) = JournalFile::new(file, wanted) else { return };
    crate::fuzz::done(journal.seek(1));
    // No file gives more entries than it has room for.
    for _ in 0..4096 {
        match journal.next_entry() {
            Ok(Some(entry)) => crate::fuzz::done((entry.get("MESSAGE").map(str::len), entry.boot())),
            Ok(None) | Err(_) => break,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
