//! One record of /dev/kmsg: `prio,seq,usec,flags[,…];text`, then ` KEY=value` lines.
//!
//! Bytes that are not printable come as `\xNN`. Source: Documentation/ABI/testing/dev-kmsg.

use std::collections::BTreeMap;

/// A longer text is cut in what is kept; the longest that the kernel writes is 8 KiB, nearly none passes 1 KiB.
const KEPT_TEXT_BYTES: usize = 2048;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Sequence number: with the boot id, the record's identity.
    pub(super) seq: u64,
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
    Ok(Record { seq, usec, level, facility: priority >> 3, caller, text: unescape(text), fields })
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
        assert_eq!((record.seq, record.usec, record.level, record.facility), (68, 172_543, 6, 0));
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
        fn a_cut_or_flipped_record_never_panics_nor_reads_as_zero(at in 0usize..200, byte: u8) {
            let whole = b"4,831,3475733824,-;kubelet invoked oom-killer: gfp_mask=0x140cca, order=0\n KEY=v\n";
            let at = at % whole.len();
            // Cut inside the record, the line's end is missing: an error, but for the whole first line.
            if let Ok(record) = parse(&whole[..at]) {
                prop_assert_eq!((record.seq, record.usec), (831, 3_475_733_824));
            }
            let mut flipped = whole.to_vec();
            flipped[at] ^= byte;
            if let Ok(record) = parse(&flipped) {
                prop_assert!(record.seq != 0 && record.usec != 0);
            }
        }
    }
}
