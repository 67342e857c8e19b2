//! A journal that is written while it is read: by `systemd-journal-remote`, which writes files as journald does. Needs the
//! package `systemd-journal-remote`.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test starts what writes the journal"
)]

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nodewhy_agent::host::{Host, Places};
use nodewhy_clock::Clock;

const WRITER: &str = "/lib/systemd/systemd-journal-remote";
const MACHINE: &str = "542124179ce14d11b7d36de84b2a8740";

/// Ended with the test, however that ends.
struct Writer(Child);

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Writer {
    fn to(file: &Path) -> Writer {
        let child = Command::new(WRITER)
            .arg("-o")
            .arg(file)
            .arg("-")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{WRITER}: {error}; `make test` installs Debian's systemd-journal-remote")
            });
        Writer(child)
    }

    /// Entries in the journal's export form.
    fn write(&mut self, numbers: std::ops::Range<u64>, length: usize) {
        let mut text = String::new();
        for number in numbers {
            let (realtime, monotonic) = (1_795_247_000_000_000 + number * 1000, 1_000_000 + number * 1000);
            text += &format!(
                "__REALTIME_TIMESTAMP={realtime}\n__MONOTONIC_TIMESTAMP={monotonic}\n_BOOT_ID=0f47e3a5f3204faeb9526a15905f1e79\n\
                 _SYSTEMD_UNIT=kubelet.service\nMESSAGE={number} {}\n\n",
                "x".repeat(length)
            );
        }
        let input = self.0.stdin.as_mut().unwrap();
        input.write_all(text.as_bytes()).unwrap();
        input.flush().unwrap();
    }
}

#[test]
fn what_is_written_is_read_once_in_order_and_over_a_rotation() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("var/log/journal").join(MACHINE);
    std::fs::create_dir_all(&folder).unwrap();
    let host = Host::new(root.path(), Clock::system(), Places::default());
    let active = folder.join("system.journal");
    let mut writer = Writer::to(&active);
    writer.write(0..3, 10);
    let until = host.clock().since_boot() + Duration::from_secs(60);
    let wait = || {
        assert!(host.clock().since_boot() < until, "it does not come");
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut journal = loop {
        match host.open_journal(0, &["MESSAGE", "_SYSTEMD_UNIT"]) {
            Ok(journal) => break journal,
            // Not there yet, or its header is not written yet.
            Err(_) => wait(),
        }
    };
    let mut seen: Vec<u64> = Vec::new();
    let mut read_to = |end: u64| {
        while (seen.len() as u64) < end {
            let read = match journal.read(&host, 700) {
                Ok(read) => read,
                // Between two files.
                Err(_) => {
                    wait();
                    continue;
                }
            };
            if read.entries.is_empty() {
                wait();
            }
            for entry in &read.entries {
                assert_eq!(entry.get("_SYSTEMD_UNIT"), Some("kubelet.service"));
                seen.push(entry.get("MESSAGE").unwrap().split(' ').next().unwrap().parse().unwrap());
            }
        }
        assert_eq!(seen, (0..end).collect::<Vec<_>>());
    };
    read_to(3);
    // So many that the chain of arrays grows, some of them compressed.
    for (from, to, length) in [(3, 4, 10), (4, 2000, 10), (2000, 2500, 3000)] {
        writer.write(from..to, length);
        read_to(to);
    }
    // As journald does: the file is renamed, the last of it is written, a new one follows.
    std::fs::rename(&active, folder.join("system@0-1-2.journal")).unwrap();
    writer.write(2500..2510, 10);
    drop(writer.0.stdin.take());
    writer.0.wait().unwrap();
    let mut next = Writer::to(&active);
    next.write(2510..2600, 10);
    read_to(2600);
}
