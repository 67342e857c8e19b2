//! What a crash left behind (pstore): the firmware's or the memory's copy of the kernel's last words, shown after the next
//! boot. systemd moves the files to /var/lib/systemd/pstore (systemd-pstore.service), and frees the firmware's.
//!
//! Source: Documentation/ABI/testing/pstore. A file's name says the backend and the kind: `dmesg-efi-1…`.

use std::path::{Path, PathBuf};

use super::log::Log;
use crate::host::Host;

/// The kernel's own place, and where systemd moves them.
const FOLDERS: &[&str] = &["/sys/fs/pstore", "/var/lib/systemd/pstore"];
/// So many files are told; a crash leaves one for each few kilobytes of its log.
const FILES: usize = 8;
/// Lines of each.
const LINES: usize = 3;

/// Tells of each file that is there, once: at the agent's start, with the same key every time.
pub(super) fn look(host: &Host, log: &mut Log) {
    let at = host.clock().stamp();
    let mut files: Vec<PathBuf> = Vec::new();
    for folder in FOLDERS {
        let folder = Path::new(folder);
        for name in host.list(folder).unwrap_or_else(|_| Vec::new()) {
            let path = folder.join(name);
            match host.stat(&path) {
                Ok(stat) if stat.is_dir => {
                    // systemd makes a folder for each crash.
                    let names = host.list(&path).unwrap_or_else(|_| Vec::new());
                    files.extend(names.into_iter().map(|name| path.join(name)));
                }
                Ok(_) => files.push(path),
                Err(_) => {}
            }
        }
    }
    for path in files.into_iter().filter(|path| is_kernels(path)).take(FILES) {
        let text = match host.read_bytes(&path) {
            Ok(bytes) => beginning(&bytes),
            // It is there all the same.
            Err(error) => error.to_string(),
        };
        log.crash(&path.display().to_string(), &text, at);
    }
}

/// The kernel's log, not a program's or the console's.
fn is_kernels(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("dmesg"))
}

fn beginning(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes.get(..bytes.len().min(4096)).unwrap_or(bytes));
    if text.contains('\u{fffd}') || text.contains('\0') {
        return format!("{} bytes, packed: see the file", bytes.len());
    }
    text.lines().filter(|line| !line.trim().is_empty()).take(LINES).collect::<Vec<_>>().join("\n")
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    crate::fuzz::done(beginning(bytes));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collect::oom::time::KernelClock;
    use crate::host::Places;
    use nodewhy_clock::Clock;
    use nodewhy_proto::EventBody;

    #[test]
    fn each_file_of_a_crash_is_told_with_its_first_lines() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, bytes: &[u8]| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        };
        // The head is pstore's (fs/pstore/platform.c: "%s#%d Part%u\n"); the lines are of
        // fixtures/kmsg/linux-6.1.192/kernel-panic-console.txt's form.
        let text = b"Panic#1 Part1\n<0>[  123.456789] Kernel panic - not syncing: sysrq triggered crash\n<4>[  123.456790] CPU: 0\n<4>x\n";
        put("sys/fs/pstore/dmesg-efi-170000000000001", text);
        put("sys/fs/pstore/console-ramoops-0", b"boot");
        put("var/lib/systemd/pstore/1700000000/dmesg-ramoops-0.enc.z", &[0x78, 0x9c, 0xff, 0xfe]);
        let host = Host::new(root.path(), Clock::system(), Places::default());
        let tell = || {
            let mut log = Log::new(4096, KernelClock::new(true));
            look(&host, &mut log);
            log
        };
        let (log, again) = (tell(), tell());
        assert_eq!(log.messages["crash_record"], 2);
        let told: Vec<_> = log
            .happened
            .iter()
            .map(|happened| match &happened.body {
                EventBody::KernelMessage(message) => (message.fields["file"].as_str(), message.line.as_str()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(told[0].0, "/sys/fs/pstore/dmesg-efi-170000000000001");
        assert!(told[0].1.starts_with("Panic#1 Part1\n") && !told[0].1.contains("<4>x"), "{told:?}");
        assert!(told[1].1.contains("4 bytes, packed"), "{told:?}");
        let keys = |log: &Log| log.happened.iter().map(|happened| happened.id.key()).collect::<Vec<_>>();
        assert!(keys(&log) == keys(&again) && keys(&log)[0] != keys(&log)[1]);
    }
}
