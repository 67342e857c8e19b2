use std::fs;

use nodewhy_clock::Clock;

use super::*;
use crate::host::Places;

const WANTED: &[&str] = &["MESSAGE"];
const MACHINE: &str = "542124179ce14d11b7d36de84b2a8740";

fn host(root: &Path) -> Host {
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(root.join("etc/machine-id"), format!("{MACHINE}\n")).unwrap();
    Host::new(root, Clock::system(), Places::default())
}

fn folder(root: &Path, of: &str) -> PathBuf {
    let folder = root.join(of).join(MACHINE);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn put(path: &Path) {
    fs::write(path, file::tests::unpacked("compact-zstd")).unwrap();
}

#[test]
fn a_node_without_a_journal_is_absent_and_one_that_is_refused_is_not() {
    let root = tempfile::tempdir().unwrap();
    let host = host(root.path());
    let error = host.open_journal(0, WANTED).unwrap_err();
    assert!(matches!(error, ReadError::Absent { .. }), "{error}");
    let folder = folder(root.path(), "var/log/journal");
    let error = host.open_journal(0, WANTED).unwrap_err();
    assert!(error.to_string().contains("no system.journal in /var/log/journal"), "{error}");
    fs::write(folder.join(ACTIVE), "not a journal").unwrap();
    assert!(matches!(host.open_journal(0, WANTED), Err(ReadError::Malformed { .. })));
}

#[test]
fn the_one_that_is_kept_is_preferred_and_read_in_bounded_pieces() {
    let root = tempfile::tempdir().unwrap();
    let host = host(root.path());
    put(&folder(root.path(), "run/log/journal").join(ACTIVE));
    assert_eq!(host.open_journal(0, WANTED).unwrap().folder(), Path::new("/run/log/journal").join(MACHINE));
    put(&folder(root.path(), "var/log/journal").join(ACTIVE));
    let mut journal = host.open_journal(0, WANTED).unwrap();
    assert_eq!(journal.folder(), Path::new("/var/log/journal").join(MACHINE));
    let first = journal.read(&host, 40).unwrap();
    assert_eq!((first.entries.len(), first.behind, journal.waiting()), (40, true, 11));
    let second = journal.read(&host, 40).unwrap();
    assert_eq!((second.entries.len(), second.behind), (11, false));
    assert!(journal.read(&host, 40).unwrap().entries.is_empty());
}

#[test]
fn a_rotation_is_followed_and_nothing_is_told_twice() {
    let root = tempfile::tempdir().unwrap();
    let host = host(root.path());
    let folder = folder(root.path(), "var/log/journal");
    put(&folder.join(ACTIVE));
    let mut journal = host.open_journal(0, WANTED).unwrap();
    assert_eq!(journal.read(&host, 1000).unwrap().entries.len(), 51);
    // journald renames; here the new file holds the same entries: all but the newest are older than what was read.
    fs::rename(folder.join(ACTIVE), folder.join("system@cd0a-1-660c48e82d1f5.journal")).unwrap();
    assert!(journal.read(&host, 1000).is_err(), "none is there for a moment");
    put(&folder.join(ACTIVE));
    assert!(journal.read(&host, 1000).unwrap().entries.len() <= 1);
    assert_eq!(journal.rotations_total, 1);
}

#[test]
fn what_was_archived_just_before_the_start_is_read_too() {
    let root = tempfile::tempdir().unwrap();
    let host = host(root.path());
    let folder = folder(root.path(), "var/log/journal");
    put(&folder.join("system@cd0a00677e7f40ca91ca904b417b5dbf-0000000000000001-000660c48e82d1f5.journal"));
    let mut empty = file::tests::unpacked("regular");
    // No entries yet: counts and chain are empty.
    empty[152..160].fill(0);
    empty[176..184].fill(0);
    fs::write(folder.join(ACTIVE), empty).unwrap();
    let mut journal = host.open_journal(1_795_250_000_000_000, WANTED).unwrap();
    let entries = journal.read(&host, 1000).unwrap().entries;
    assert_eq!(entries.len(), 10);
    assert!(entries[0].get("MESSAGE").unwrap().starts_with("Started eater.service"));
}

#[test]
fn what_was_read_before_the_damage_is_handed_out() {
    let root = tempfile::tempdir().unwrap();
    let host = host(root.path());
    let mut bytes = file::tests::unpacked("regular");
    let at = |bytes: &[u8], place: usize| {
        usize::try_from(u64::from_le_bytes(bytes[place..place + 8].try_into().unwrap())).unwrap()
    };
    // The second array of entries is overwritten: the header names the first, which names it.
    let second = at(&bytes, at(&bytes, 176) + 16);
    bytes[second] = 0xff;
    fs::write(folder(root.path(), "var/log/journal").join(ACTIVE), bytes).unwrap();
    let mut journal = host.open_journal(0, WANTED).unwrap();
    let read = journal.read(&host, 1000).unwrap();
    assert!(!read.entries.is_empty() && read.entries.len() < 51, "{}", read.entries.len());
    let error = journal.read(&host, 1000).unwrap_err().to_string();
    assert!(error.contains("damaged at byte"), "{error}");
}
