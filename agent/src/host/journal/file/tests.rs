use std::io::Write;

use proptest::prelude::*;

use super::*;

const WANTED: &[&str] = &["MESSAGE", "_SYSTEMD_UNIT", "UNIT", "_TRANSPORT", "_SOURCE_MONOTONIC_TIMESTAMP"];

/// What `journalctl` reads of both files; see fixtures/journal/README.md.
const EXPECTED: &str = include_str!("../../../../fixtures/journal/expected.tsv");

pub(crate) fn unpacked(name: &str) -> Vec<u8> {
    let packed: &[u8] = match name {
        "compact-zstd" => include_bytes!("../../../../fixtures/journal/compact-zstd.journal.gz"),
        _ => include_bytes!("../../../../fixtures/journal/regular.journal.gz"),
    };
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
    bytes
}

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn entries(file: &mut JournalFile) -> Vec<Entry> {
    let mut entries = Vec::new();
    while let Ok(Some(entry)) = file.next_entry() {
        entries.push(entry);
        assert!(entries.len() < 10_000, "it has no end");
    }
    entries
}

fn row(entry: &Entry) -> String {
    let get = |name| entry.get(name).unwrap_or_default();
    let message = get("MESSAGE");
    let beginning: String = message.chars().take(60).collect();
    let (realtime, monotonic) = (entry.realtime_usec, entry.monotonic_usec);
    let (transport, unit, of) = (get("_TRANSPORT"), get("_SYSTEMD_UNIT"), get("UNIT"));
    format!("{realtime}\t{monotonic}\t{transport}\t{unit}\t{of}\t{}\t{beginning}", message.chars().count())
}

#[test]
fn both_forms_are_read_as_journalctl_reads_them() {
    for name in ["compact-zstd", "regular"] {
        let mut file = JournalFile::new(file_of(&unpacked(name)), WANTED).unwrap();
        let rows: Vec<String> = entries(&mut file).iter().map(row).collect();
        assert_eq!(rows.join("\n"), EXPECTED.trim_end(), "{name}");
        assert_eq!((file.waiting(), file.damaged_total), (0, 0));
    }
}

#[test]
fn another_reader_of_the_format_agrees() {
    for name in ["compact-zstd", "regular"] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("system.journal"), unpacked(name)).unwrap();
        let theirs = sdjournal::Journal::open_dir(folder.path()).unwrap().query().collect_owned().unwrap();
        let mut file = JournalFile::new(file_of(&unpacked(name)), WANTED).unwrap();
        let ours = entries(&mut file);
        assert_eq!(ours.len(), theirs.len());
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert_eq!((ours.seqnum, ours.boot_id), (theirs.seqnum(), theirs.boot_id()));
            for field in WANTED {
                let text = theirs.get(field).map(|value| String::from_utf8_lossy(value).into_owned());
                assert_eq!(ours.get(field), text.as_deref(), "{field}");
            }
        }
    }
}

#[test]
fn a_time_is_found() {
    let realtimes: Vec<u64> =
        EXPECTED.lines().map(|line| line.split('\t').next().unwrap().parse().unwrap()).collect();
    let mut file = JournalFile::new(file_of(&unpacked("compact-zstd")), WANTED).unwrap();
    for since in [0, realtimes[0], realtimes[7], realtimes[7] + 1, realtimes[50], u64::MAX] {
        file.seek(since).unwrap();
        let expected = realtimes.iter().filter(|realtime| **realtime >= since).count();
        assert_eq!(entries(&mut file).len(), expected, "{since}");
    }
}

#[test]
fn what_is_no_journal_says_so() {
    for (bytes, expected) in [
        (Vec::new(), "ends within its header"),
        (vec![0; 4096], "not LPKSHHRH"),
        ([SIGNATURE.as_slice(), &[0, 0, 0, 0, 0x20, 0, 0, 0], &[0; 400]].concat(), "flags 0x20"),
    ] {
        let error = JournalFile::new(file_of(&bytes), WANTED).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_chain_that_leads_back_has_an_end() {
    let mut bytes = unpacked("regular");
    let first = usize::try_from(u64_at(&bytes, 176).unwrap()).unwrap();
    let itself = (first as u64).to_le_bytes();
    bytes[first + 16..first + 24].copy_from_slice(&itself);
    let mut file = JournalFile::new(file_of(&bytes), WANTED).unwrap();
    assert!(matches!(file.seek(0), Err(FileError::Damaged { .. })));
    assert!(entries(&mut file).len() <= 51);
}

#[test]
fn an_lz4_field_is_unpacked_and_a_zstd_one_that_asks_for_gigabytes_is_not() {
    // systemd's form: the content's length in eight bytes, then the block.
    let text = "MESSAGE=".to_owned() + &"abc".repeat(1000);
    let mut packed = (text.len() as u64).to_le_bytes().to_vec();
    packed.extend(lz4_flex::block::compress(text.as_bytes()));
    assert_eq!(unpack_lz4(&packed).unwrap(), text.as_bytes());
    assert_eq!(unpack_lz4(&[0xff; 20]), None);
    // A frame head with a window of 2^31 bytes (RFC 8878).
    assert_eq!(unpack_zstd(&[0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3, 0, 0]), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_cut_file_gives_what_is_there_or_an_error(permille in 0usize..1000, compact: bool) {
        let bytes = unpacked(if compact { "compact-zstd" } else { "regular" });
        // What is written ends long before the file does.
        let written = usize::try_from(u64_at(&bytes, 136).unwrap()).unwrap();
        let cut = &bytes[..written * permille / 1000];
        if let Ok(mut file) = JournalFile::new(file_of(cut), WANTED) {
            let seek = file.seek(1_795_247_190_000_000);
            let as_told = seek.is_ok() || matches!(seek, Err(FileError::Damaged { .. }));
            prop_assert!(as_told);
            for entry in entries(&mut file) {
                prop_assert!(entry.realtime_usec > 1_795_247_000_000_000 && entry.monotonic_usec > 0);
            }
        }
    }

    #[test]
    fn flipped_bytes_never_panic_nor_hang(flips in proptest::collection::vec((0usize..1000, any::<u8>()), 1..200), near in 0usize..60_000) {
        let mut bytes = unpacked("compact-zstd");
        let written = usize::try_from(u64_at(&bytes, 136).unwrap()).unwrap();
        for (at, byte) in flips {
            // Where the objects are, not in the empty hash tables.
            let at = written.saturating_sub(near) + at;
            bytes[at] ^= byte;
        }
        if let Ok(mut file) = JournalFile::new(file_of(&bytes), WANTED) {
            let _seek = file.seek(1);
            entries(&mut file);
        }
    }

    #[test]
    fn a_flipped_header_never_panics_nor_hangs(at in 0usize..272, byte: u8) {
        let mut bytes = unpacked("compact-zstd");
        bytes[at] ^= byte;
        if let Ok(mut file) = JournalFile::new(file_of(&bytes), WANTED) {
            let _seek = file.seek(1_795_247_190_000_000);
            entries(&mut file);
        }
    }
}
