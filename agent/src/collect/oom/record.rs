//! One record of the kernel log, in the form of either way of reading it.
//!
//! /dev/kmsg: `prio,seq,usec,flags[,…];text`, then ` KEY=value` lines. Bytes that are not printable come as `\xNN`.
//! Source: Documentation/ABI/testing/dev-kmsg.
//!
//! syslog(2): `<prio>[ seconds.microseconds] text`, with `[caller]` after the time where the kernel was built with
//! CONFIG_PRINTK_CALLER. Each line of a record has this prefix, and records of one microsecond have the same one, so
//! each line is a record by itself. Source: `record_print_text` in kernel/printk/printk.c.

use std::collections::BTreeMap;

use crate::host::journal::file::Entry;
use crate::host::kmsg::KMSG;
use crate::host::syslog::SYSLOG;

/// A longer text is cut in what is kept; the longest that the kernel writes is 8 KiB, nearly none passes 1 KiB.
const KEPT_TEXT_BYTES: usize = 2048;

/// What a record is known by within its boot. The same record read again, by another agent or after a restart, has
/// the same one; read in the other way it has another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Id {
    /// Its sequence number, from /dev/kmsg.
    Seq(u64),
    /// A line of syslog(2), which has no number.
    Line {
        /// Its stamp.
        usec: u64,
        /// CRC-32 of its text.
        text_crc: u32,
        /// How many lines of this stamp and text were before it.
        nth: u32,
    },
    /// A file that a crash left, by the CRC-32 of its name.
    Crash {
        /// Of its path.
        path_crc: u32,
    },
}

impl Id {
    /// As the key of an event: `kmsg/48213`, `syslog/3475733824-90ab12cd`, and `-1` for its first repetition.
    pub(super) fn key(self) -> String {
        match self {
            Id::Seq(seq) => format!("kmsg/{seq}"),
            Id::Line { usec, text_crc, nth: 0 } => format!("syslog/{usec}-{text_crc:08x}"),
            Id::Line { usec, text_crc, nth } => format!("syslog/{usec}-{text_crc:08x}-{nth}"),
            Id::Crash { path_crc } => format!("pstore/{path_crc:08x}"),
        }
    }

    /// As the source of evidence: `/dev/kmsg 48213`, `syslog(2) [3475.733824]`.
    pub(super) fn source(self) -> String {
        match self {
            Id::Seq(seq) => format!("{KMSG} {seq}"),
            Id::Line { usec, .. } => {
                format!("{SYSLOG} [{}.{:06}]", usec / 1_000_000, usec % 1_000_000)
            }
            Id::Crash { .. } => "pstore".to_owned(),
        }
    }

    /// The sequence number, where there is one.
    pub(super) fn seq(self) -> Option<u64> {
        match self {
            Id::Seq(seq) => Some(seq),
            Id::Line { .. } | Id::Crash { .. } => None,
        }
    }
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// With the boot id, the record's identity.
    pub(super) id: Id,
    /// Microseconds on the kernel's own clock.
    pub(super) usec: u64,
    /// 0 (emerg) to 7 (debug).
    pub(super) level: u8,
    /// 0 is the kernel itself. A line that a program wrote into /dev/kmsg never has 0: the kernel sees to it.
    pub(super) facility: u64,
    /// `T1234` or `C0` where the kernel was built with CONFIG_PRINTK_CALLER.
    pub(super) caller: Option<String>,
    /// The text, unescaped; bytes that are no UTF-8 are replaced. It may have several lines.
    pub(super) text: String,
    /// `SUBSYSTEM`, `DEVICE`.
    pub(super) fields: BTreeMap<String, String>,
}

/// Parses one record; the error says what was expected.
pub(super) fn parse(raw: &[u8]) -> Result<Record, &'static str> {
    let raw = std::str::from_utf8(raw).map_err(|_| "a record in UTF-8: the kernel escapes all else")?;
    let raw = raw.strip_suffix('\n').ok_or("a record that ends with its line")?;
    let mut lines = raw.split('\n');
    let line = lines.next().ok_or("a line")?;
    let (prefix, text) = line.split_once(';').ok_or("`;` between prefix and text")?;
    let mut parts = prefix.split(',');
    let priority = number(parts.next()).ok_or("a priority")?;
    let seq = number(parts.next()).ok_or("a sequence number")?;
    let usec = number(parts.next()).ok_or("microseconds")?;
    parts.next().ok_or("flags")?;
    // More parts may come with newer kernels; those that are not known are passed over.
    let caller = parts.find_map(|part| part.strip_prefix("caller=")).map(str::to_owned);
    let mut fields = BTreeMap::new();
    for line in lines {
        let field = line.strip_prefix(' ').ok_or("a continuation line that begins with a space")?;
        let (key, value) = field.split_once('=').ok_or("KEY=value in a continuation line")?;
        fields.insert(unescape(key), unescape(value));
    }
    let level = u8::try_from(priority & 7).map_err(|_| "a level")?;
    let id = Id::Seq(seq);
    Ok(Record { id, usec, level, facility: priority >> 3, caller, text: unescape(text), fields })
}

/// Parses one line of syslog(2), without its line end; the error says what was expected. `nth`: how many lines of this
/// stamp and text came before it.
pub(super) fn parse_line(line: &[u8], nth: impl FnOnce(u64, u32) -> u32) -> Result<Record, &'static str> {
    let (prefix, rest) = split_once(line, b'>').ok_or("`<priority>`")?;
    let priority = prefix.strip_prefix(b"<").and_then(digits).ok_or("a priority")?;
    let rest = rest.strip_prefix(b"[").ok_or("`[` before the time: is printk.time switched off?")?;
    let (time, rest) = split_once(rest, b']').ok_or("`]` after the time")?;
    let usec = microseconds(time).ok_or("seconds and six digits of microseconds")?;
    let (caller, rest) = match rest.strip_prefix(b"[") {
        None => (None, rest),
        Some(rest) => {
            let (caller, rest) = split_once(rest, b']').ok_or("`]` after the caller")?;
            (Some(String::from_utf8_lossy(caller).trim().to_owned()), rest)
        }
    };
    let text = rest.strip_prefix(b" ").ok_or("a space before the text")?;
    let mut crc = flate2::Crc::new();
    crc.update(text);
    let text_crc = crc.sum();
    Ok(Record {
        id: Id::Line { usec, text_crc, nth: nth(usec, text_crc) },
        usec,
        level: u8::try_from(priority & 7).map_err(|_| "a level")?,
        facility: priority >> 3,
        caller,
        text: String::from_utf8_lossy(text).into_owned(),
        fields: BTreeMap::new(),
    })
}

/// One entry of the journal's kernel transport. It is known as the same line of syslog(2) is: by stamp and text.
pub(super) fn of_journal(entry: &Entry, nth: impl FnOnce(u64, u32) -> u32) -> Result<Record, &'static str> {
    let digits = |field| number(entry.get(field));
    // The stamp of the kernel; without it (an old journald) the time at which journald read the line.
    let usec = digits("_SOURCE_MONOTONIC_TIMESTAMP").unwrap_or(entry.monotonic_usec);
    let text = entry.get("MESSAGE").ok_or("a message")?;
    let level = digits("PRIORITY").and_then(|level| u8::try_from(level).ok()).filter(|level| *level <= 7);
    let mut crc = flate2::Crc::new();
    crc.update(text.as_bytes());
    let text_crc = crc.sum();
    Ok(Record {
        id: Id::Line { usec, text_crc, nth: nth(usec, text_crc) },
        usec,
        level: level.ok_or("a priority")?,
        // journald keeps the facility; a line of the kernel itself has 0, or none in older ones.
        facility: digits("SYSLOG_FACILITY").unwrap_or(0),
        caller: None,
        text: text.to_owned(),
        fields: BTreeMap::new(),
    })
}

fn split_once(bytes: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let position = bytes.iter().position(|byte| *byte == at)?;
    Some((bytes.get(..position)?, bytes.get(position + 1..)?))
}

/// `   12.345678`: seconds, padded, and always six digits.
fn microseconds(time: &[u8]) -> Option<u64> {
    let (seconds, micros) = split_once(time.trim_ascii_start(), b'.')?;
    let micros = digits(micros).filter(|_| micros.len() == 6)?;
    digits(seconds)?.checked_mul(1_000_000)?.checked_add(micros)
}

fn digits(part: &[u8]) -> Option<u64> {
    number(std::str::from_utf8(part).ok())
}

/// Digits alone: `+5` and ` 5` are not what the kernel writes.
fn number(part: Option<&str>) -> Option<u64> {
    part.filter(|part| part.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok()
}

/// Turns `\x0a` back into its byte. The kernel escapes `\` itself, so nothing is ambiguous.
fn unescape(text: &str) -> String {
    if !text.contains('\\') {
        return text.to_owned();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        bytes.extend_from_slice(before.as_bytes());
        let hex = after.strip_prefix('x').and_then(|hex| hex.get(..2));
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(b'\\');
                rest = after;
            }
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The text as it is kept: cut, with a mark, where it is very long.
pub(super) fn kept(text: &str) -> String {
    if text.len() <= KEPT_TEXT_BYTES {
        return text.to_owned();
    }
    let mut cut =
        format!("{} […]", text.get(..text.floor_char_boundary(KEPT_TEXT_BYTES)).unwrap_or_default());
    cut.shrink_to_fit();
    cut
}

/// The level's name, as `dmesg` writes it.
pub(super) fn level_name(level: u8) -> &'static str {
    match level {
        0 => "emerg",
        1 => "alert",
        2 => "crit",
        3 => "err",
        4 => "warn",
        5 => "notice",
        6 => "info",
        _ => "debug",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_record_with_fields_and_escapes() {
        // fixtures/kmsg/linux-6.1.192/boot.txt, and its form with CONFIG_PRINTK_CALLER (dev-kmsg's document).
        let record = parse(b"6,68,172543,-;pci_bus 0000:00: root\\x0a\\x09bus\\x5c \xc3\xa4\n SUBSYSTEM=acpi\n DEVICE=+acpi:PNP0A03:00\n");
        let record = record.unwrap();
        assert_eq!((record.id, record.usec, record.level, record.facility), (Id::Seq(68), 172_543, 6, 0));
        assert_eq!(record.text, "pci_bus 0000:00: root\n\tbus\\ ä");
        assert_eq!(record.fields["DEVICE"], "+acpi:PNP0A03:00");
        let record = parse(b"30,160,424069,-,caller=T1;udevd[80]: starting version 181\n").unwrap();
        assert_eq!((record.level, record.facility, record.caller.as_deref()), (6, 3, Some("T1")));
    }

    #[test]
    fn what_is_no_record_is_an_error_and_never_a_zero() {
        for raw in ["", "\n", ";\n", "6,1,2,-\n", "6,,2,-;x\n", "6,1,,-;x\n", ",1,2,-;x\n", "6,+1,2,-;x\n"] {
            parse(raw.as_bytes()).unwrap_err();
        }
        for raw in ["6,1,2;x\n", "6,99999999999999999999,2,-;x\n", "6,1,2,-;x", "6,1,2,-;x\nKEY=v\n"] {
            parse(raw.as_bytes()).unwrap_err();
        }
    }

    #[test]
    fn a_line_of_syslog_with_and_without_its_caller() {
        // fixtures/kmsg/linux-6.1.192/boot.txt in the form of record_print_text, and with CONFIG_PRINTK_CALLER.
        let record = parse_line(b"<6>[    0.172543] pci_bus 0000:00: [a] root", |_, _| 0).unwrap();
        assert_eq!((record.usec, record.level, record.facility), (172_543, 6, 0));
        assert_eq!((record.text.as_str(), record.caller.as_deref()), ("pci_bus 0000:00: [a] root", None));
        let record = parse_line(b"<30>[424069.000160][    T1] [x] y \xff", |_, _| 2).unwrap();
        assert_eq!((record.usec, record.level, record.facility), (424_069_000_160, 6, 3));
        assert_eq!((record.text.as_str(), record.caller.as_deref()), ("[x] y \u{fffd}", Some("T1")));
        assert!(record.id.key().starts_with("syslog/424069000160-") && record.id.key().ends_with("-2"));
        assert_eq!(record.id.source(), "syslog(2) [424069.000160]");
    }

    #[test]
    fn what_is_no_line_of_syslog_is_an_error() {
        for raw in
            ["", "<6>", "<6>no time", "<6>[    T1] no time", "<>[    0.000001] x", "6>[    0.000001] x"]
        {
            parse_line(raw.as_bytes(), |_, _| 0).unwrap_err();
        }
        for raw in
            ["<6>[    0.00001] x", "<6>[     .000001] x", "<6>[0.000001]x", "<6>[99999999999999.000000] x"]
        {
            parse_line(raw.as_bytes(), |_, _| 0).unwrap_err();
        }
    }

    #[test]
    fn a_very_long_text_is_cut_with_a_mark() {
        assert_eq!(kept("short"), "short");
        let cut = kept(&"ä".repeat(4000));
        assert!(cut.len() < KEPT_TEXT_BYTES + 10 && cut.ends_with("[…]"));
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_value_or_an_error(raw in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(record) = parse(&raw) {
                prop_assert!(raw.starts_with(b"") && record.level <= 7);
            }
        }

        #[test]
        fn any_line_gives_a_value_or_an_error(line in proptest::collection::vec(any::<u8>(), 0..80), at in 0usize..60, flip: u8) {
            if let Ok(record) = parse_line(&line, |_, _| 0) {
                prop_assert!(record.level <= 7);
            }
            let whole = b"<4>[ 3475.733824][  T1990] kubelet invoked oom-killer: order=0";
            // Cut before the text, it is an error and no record of a zero.
            if let Ok(record) = parse_line(&whole[..at], |_, _| 0) {
                prop_assert!(record.usec == 3_475_733_824 && at >= 27);
            }
            let mut flipped = whole.to_vec();
            flipped[at] ^= flip;
            if let Ok(record) = parse_line(&flipped, |_, _| 0) {
                prop_assert!(record.usec != 0 && record.level <= 7);
            }
        }

        #[test]
        fn a_cut_or_flipped_record_never_panics_nor_reads_as_zero(at in 0usize..200, byte: u8) {
            let whole = b"4,831,3475733824,-;kubelet invoked oom-killer: gfp_mask=0x140cca, order=0\n KEY=v\n";
            let at = at % whole.len();
            // Cut inside the record, the line's end is missing: an error, but for the whole first line.
            if let Ok(record) = parse(&whole[..at]) {
                prop_assert_eq!((record.id, record.usec), (Id::Seq(831), 3_475_733_824));
            }
            let mut flipped = whole.to_vec();
            flipped[at] ^= byte;
            if let Ok(record) = parse(&flipped) {
                prop_assert!(record.id != Id::Seq(0) && record.usec != 0);
            }
        }
    }
}
