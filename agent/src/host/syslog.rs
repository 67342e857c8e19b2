//! syslog(2), which dmesg(1) uses too: the kernel log as text, for a container that may not open /dev/kmsg.
//!
//! Opening /dev/kmsg is up to the container's device rules, this call is up to CAP_SYSLOG alone. Only actions that
//! consume nothing are used, so that no other reader of the log misses anything.

#![expect(unsafe_code, reason = "calls syslog(2) (klogctl), which no library wraps")]

use std::fs;

use nix::errno::Errno;
use nix::libc::{c_char, c_int, klogctl};
use nix::sys::statfs::{PROC_SUPER_MAGIC, statfs};

use super::kmsg::{CAP_SYSLOG, has_capability};
use super::{Host, ReadError};

/// How this way of reading is called.
pub const SYSLOG: &str = "syslog(2)";

/// `SYSLOG_ACTION_READ_ALL`: the newest records that fit, oldest first; it takes nothing away.
const READ_ALL: c_int = 3;
/// `SYSLOG_ACTION_SIZE_BUFFER`.
const SIZE_BUFFER: c_int = 10;

/// The kernel log by syslog(2).
#[derive(Debug)]
pub struct Syslog {
    /// How many bytes the kernel keeps (`log_buf_len`). The text is longer: it has a prefix for each line.
    pub ring_bytes: usize,
}

impl Host {
    /// Looks whether syslog(2) reads this host's log.
    ///
    /// # Errors
    /// `Absent` under a root that a test or a recording made: the call would tell of another machine. `Denied`
    /// without the right.
    pub fn open_syslog(&self) -> Result<Syslog, ReadError> {
        // procfs is always the running kernel's own; a made root has files in its place.
        let proc = self.path("/proc");
        if !statfs(&proc).is_ok_and(|there| there.filesystem_type() == PROC_SUPER_MAGIC) {
            return Err(ReadError::absent(format!(
                "{} is no procfs, so this is not the running kernel's host, whose log syslog(2) reads",
                proc.display()
            )));
        }
        let ring_bytes = call(SIZE_BUFFER, &mut []).map_err(refused)?;
        let syslog = Syslog { ring_bytes };
        // SIZE_BUFFER may be allowed where reading is not: one look tells.
        syslog.newest(1)?;
        Ok(syslog)
    }
}

impl Syslog {
    /// The newest whole records whose text fits into so many bytes, oldest first. Each line begins with
    /// `<priority>[seconds.microseconds] `, also the further lines of one record.
    ///
    /// # Errors
    /// The right is missing, or the kernel has no memory for it.
    pub fn newest(&self, bytes: usize) -> Result<Vec<u8>, ReadError> {
        // The kernel touches only what it fills.
        let mut text = vec![0; bytes];
        let length = call(READ_ALL, &mut text).map_err(refused)?;
        text.truncate(length);
        Ok(text)
    }
}

fn call(action: c_int, buffer: &mut [u8]) -> Result<usize, Errno> {
    let length = c_int::try_from(buffer.len()).unwrap_or(c_int::MAX);
    // SAFETY: the kernel writes `length` bytes at most into `buffer`, which is that long and outlives the call.
    let result = unsafe { klogctl(action, buffer.as_mut_ptr().cast::<c_char>(), length) };
    Errno::result(result).and_then(|written| usize::try_from(written).map_err(|_| Errno::EOVERFLOW))
}

fn refused(errno: Errno) -> ReadError {
    match errno {
        Errno::ENOSYS => {
            ReadError::absent("syslog(2) is not in this kernel: it was built without CONFIG_PRINTK")
        }
        Errno::EPERM | Errno::EACCES => {
            // The agent's own status: the right that counts is this process's, wherever the host's root is.
            let status = fs::read_to_string("/proc/self/status").ok();
            let needs = needs(status.and_then(|status| has_capability(&status, CAP_SYSLOG)));
            ReadError::Denied { path: SYSLOG.into(), error: errno.into(), needs: needs.to_owned() }
        }
        _ => ReadError::Io { what: "read the kernel log by", path: SYSLOG.into(), error: errno.into() },
    }
}

fn needs(capability: Option<bool>) -> &'static str {
    match capability {
        Some(true) => {
            "CAP_SYSLOG is there, so a seccomp profile, AppArmor, SELinux or a user namespace refuses it: \
             allow the agent the system call syslog"
        }
        Some(false) => "CAP_SYSLOG is missing: add SYSLOG to the container's capabilities, or run as root",
        None => "it needs CAP_SYSLOG: add SYSLOG to the container's capabilities, or run as root",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Places;
    use nodewhy_clock::Clock;

    #[test]
    fn a_made_root_is_never_taken_for_this_machine() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), Clock::system(), Places::default());
        assert!(matches!(host.open_syslog(), Err(ReadError::Absent { .. })));
        // Nor when a copy of this machine's boot id is in it.
        fs::create_dir_all(root.path().join("proc/sys/kernel/random")).unwrap();
        let boot_id = "proc/sys/kernel/random/boot_id";
        fs::write(root.path().join(boot_id), fs::read(format!("/{boot_id}")).unwrap()).unwrap();
        let error = host.open_syslog().unwrap_err().to_string();
        assert!(error.contains("is no procfs"), "{error}");
    }

    #[test]
    fn a_refusal_names_the_right_that_is_missing() {
        assert!(refused(Errno::EPERM).to_string().contains("CAP_SYSLOG"));
        assert!(needs(Some(false)).contains("is missing") && needs(Some(true)).contains("seccomp"));
        assert!(matches!(refused(Errno::ENOSYS), ReadError::Absent { .. }));
        let error = refused(Errno::ENOMEM).to_string();
        assert!(error.starts_with("cannot read the kernel log by syslog(2): "), "{error}");
    }
}
