//! /dev/kmsg: the kernel log, one record a read, followed without waiting.
//!
//! The kernel's document is `Documentation/ABI/testing/dev-kmsg`. Under a host root that a test or a recording
//! made, the same path may be a file or a pipe with the same records: they are then split at line ends.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::makedev;
use nix::time::{ClockId, clock_gettime};

use super::{Host, ReadError};

/// The path of it, on the host.
pub const KMSG: &str = "/dev/kmsg";

/// The kernel's own limit of an extended record (`CONSOLE_EXT_LOG_MAX`) is 8 KiB. A shorter buffer gets EINVAL.
const LONGEST_RECORD_BYTES: usize = 16 * 1024;

/// `CAP_SYSLOG` in the bit masks of /proc/self/status (`linux/capability.h`).
pub(super) const CAP_SYSLOG: u32 = 34;

/// The kernel log, open at its oldest record.
#[derive(Debug)]
pub struct Kmsg {
    file: File,
    kind: Kind,
    buffer: Vec<u8>,
    /// Of a recording: bytes read and not handed out yet.
    held: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Device,
    /// Records of a file or a pipe; `woken` for the pipe, which can be polled.
    Recording {
        woken: bool,
    },
}

/// What one read of the log gave.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<'a> {
    /// One record, as the kernel wrote it.
    Record(&'a [u8]),
    /// There is no newer one now.
    Nothing,
    /// EPIPE: records were overwritten before they were read; the next one's number tells how many.
    Overwritten,
    /// A record did not fit into the buffer and is passed over; the next one's number tells which.
    TooLong,
}

impl Host {
    /// Opens the kernel log at its oldest record, never to block.
    ///
    /// # Errors
    /// `Absent` where there is none; `Denied` with the right that is missing; another character device in its place
    /// (a container's /dev/null or console).
    pub fn open_kmsg(&self) -> Result<Kmsg, ReadError> {
        let path = self.path(KMSG);
        let meta = std::fs::metadata(&path).map_err(|error| self.kmsg_error("look at", error))?;
        let (kind, write) = if meta.file_type().is_char_device() {
            if meta.rdev() != makedev(1, 11) {
                let what = "it is a character device, but not the kernel log (1:11); \
                            mount the host's /dev/kmsg there";
                return Err(ReadError::malformed(KMSG, what));
            }
            (Kind::Device, false)
        } else {
            // A pipe opened for writing too never hangs up when its writers come and go.
            let pipe = meta.file_type().is_fifo();
            (Kind::Recording { woken: pipe }, pipe)
        };
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let file = OpenOptions::new()
            .read(true)
            .write(write)
            .custom_flags(flags.bits())
            .open(&path)
            .map_err(|error| self.kmsg_error("open", error))?;
        let held = Vec::new();
        Ok(Kmsg { file, kind, buffer: vec![0; LONGEST_RECORD_BYTES], held })
    }

    pub(super) fn kmsg_error(&self, what: &'static str, error: std::io::Error) -> ReadError {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT) => {
                ReadError::absent("/dev/kmsg does not exist: no kernel log can be read here")
            }
            Some(Errno::ENODEV | Errno::ENXIO) => {
                ReadError::absent("/dev/kmsg leads nowhere: this kernel was built without CONFIG_PRINTK")
            }
            Some(Errno::EPERM | Errno::EACCES) => {
                ReadError::Denied { path: KMSG.into(), error, needs: self.kmsg_needs() }
            }
            _ => ReadError::Io { what, path: KMSG.into(), error },
        }
    }

    /// Which right is missing: the kernel answers EPERM for the capability and for the device cgroup alike.
    fn kmsg_needs(&self) -> String {
        let has = self.read("/proc/self/status").ok().and_then(|status| has_capability(&status, CAP_SYSLOG));
        match has {
            Some(true) => {
                "CAP_SYSLOG is there, so the container's device rules or the file's mode refuse it: \
                           run the container privileged"
                    .to_owned()
            }
            Some(false) => {
                "CAP_SYSLOG is missing; in a container, the device rules must allow it too: run as \
                            root, or the container privileged"
                    .to_owned()
            }
            None => "it needs CAP_SYSLOG, and in a container a privileged one (device rules)".to_owned(),
        }
    }
}

/// Whether a process of this /proc/PID/status has the capability; `None` where it can't be told.
pub(super) fn has_capability(status: &str, bit: u32) -> Option<bool> {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
    Some(mask.checked_shr(bit)? & 1 == 1)
}

impl Kmsg {
    /// Takes a descriptor of the device that another process opened; `None`: it is of something else.
    pub(super) fn of_descriptor(file: File) -> Option<Kmsg> {
        let meta = file.metadata().ok()?;
        let is_device = meta.file_type().is_char_device() && meta.rdev() == makedev(1, 11);
        let buffer = vec![0; LONGEST_RECORD_BYTES];
        is_device.then_some(Kmsg { file, kind: Kind::Device, buffer, held: Vec::new() })
    }

    /// The next record; never waits.
    ///
    /// # Errors
    /// The kernel refuses for a reason that reading on will not heal.
    pub fn next_record(&mut self) -> Result<Next<'_>, ReadError> {
        match self.kind {
            Kind::Device => self.next_of_device(),
            Kind::Recording { .. } => self.next_of_recording(),
        }
    }

    fn next_of_device(&mut self) -> Result<Next<'_>, ReadError> {
        let length = loop {
            match self.file.read(&mut self.buffer) {
                Ok(0) => return Ok(Next::Nothing),
                Ok(length) => break length,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    return match error.raw_os_error().map(Errno::from_raw) {
                        Some(Errno::EAGAIN) => Ok(Next::Nothing),
                        Some(Errno::EPIPE) => Ok(Next::Overwritten),
                        // The kernel has moved past the record by then.
                        Some(Errno::EINVAL) => Ok(Next::TooLong),
                        _ => Err(ReadError::from_io("read", Path::new(KMSG), error)),
                    };
                }
            }
        };
        Ok(self.buffer.get(..length).map_or(Next::Nothing, Next::Record))
    }

    fn next_of_recording(&mut self) -> Result<Next<'_>, ReadError> {
        let ended = loop {
            if let Some(end) = record_end(&self.held, false) {
                break end;
            }
            if self.held.len() > LONGEST_RECORD_BYTES {
                self.held.clear();
                return Ok(Next::TooLong);
            }
            match self.file.read(&mut self.buffer) {
                Ok(0) => match record_end(&self.held, true) {
                    Some(end) => break end,
                    None => return Ok(Next::Nothing),
                },
                Ok(length) => self.held.extend(self.buffer.iter().take(length)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => match record_end(&self.held, true) {
                    Some(end) => break end,
                    None => return Ok(Next::Nothing),
                },
                Err(error) => return Err(ReadError::from_io("read", Path::new(KMSG), error)),
            }
        };
        self.buffer.clear();
        self.buffer.extend(self.held.drain(..ended));
        let length = self.buffer.len();
        self.buffer.resize(LONGEST_RECORD_BYTES, 0);
        Ok(self.buffer.get(..length).map_or(Next::Nothing, Next::Record))
    }

    /// Whether this is the running kernel's own log, and not a recording in its place.
    pub fn is_device(&self) -> bool {
        self.kind == Kind::Device
    }

    /// What becomes readable when the log grows; `None` for a plain file, which always says that it is readable.
    pub fn wake(&self) -> Option<BorrowedFd<'_>> {
        (self.kind != Kind::Recording { woken: false }).then(|| self.file.as_fd())
    }

    /// Waits for a record, this long at most. Whether one is there; a plain file never grows while one waits.
    pub fn wait(&self, limit: Duration) -> bool {
        let Some(descriptor) = self.wake() else {
            return false;
        };
        let mut waited = [PollFd::new(descriptor, PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::ZERO);
        poll(&mut waited, limit).is_ok_and(|ready| ready > 0)
    }
}

/// Where the first record ends: a line, and the lines after it that begin with a space. While more may come
/// (`last` is false) the line after it must be there, to show that it is none of the record's.
fn record_end(held: &[u8], last: bool) -> Option<usize> {
    let mut end = 0;
    loop {
        end += held.get(end..)?.iter().position(|byte| *byte == b'\n')? + 1;
        match held.get(end) {
            Some(b' ') => {}
            Some(_) => return Some(end),
            None => return last.then_some(end),
        }
    }
}

/// The clock nearest to the one that stamps kernel records: both stand still while the machine is suspended.
pub fn monotonic() -> Duration {
    // CLOCK_MONOTONIC cannot fail on Linux.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

/// Sleeps this long; for a reader that would otherwise be woken for each line of a storm.
pub fn pause(limit: Duration) {
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::ZERO);
    // Cut short by a signal, a pause is only shorter.
    poll(&mut [], limit).ok();
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    use crate::fuzz::{done, text};
    done((record_end(bytes, true), record_end(bytes, false)));
    done(has_capability(&text(bytes), CAP_SYSLOG));
}

#[cfg(test)]
mod tests {
    use super::*;
    use nodewhy_clock::Clock;
    use std::io::Write;

    fn records(kmsg: &mut Kmsg) -> Vec<String> {
        let mut seen = Vec::new();
        while let Next::Record(record) = kmsg.next_record().unwrap() {
            seen.push(String::from_utf8(record.to_vec()).unwrap());
        }
        seen
    }

    fn host(root: &Path) -> Host {
        std::fs::create_dir_all(root.join("dev")).unwrap();
        Host::new(root, Clock::system(), super::super::Places::default())
    }

    #[test]
    fn a_recording_is_split_into_records_and_may_grow() {
        let root = tempfile::tempdir().unwrap();
        let host = host(root.path());
        // Two records of fixtures/kmsg/linux-6.1.192/boot.txt's form, the first with its continuation lines.
        let first = "6,1,10,-;acpi PNP0A03:00: fail\n SUBSYSTEM=acpi\n DEVICE=+acpi:PNP0A03:00\n";
        let second = "6,2,11,-;next\n";
        std::fs::write(root.path().join("dev/kmsg"), format!("{first}{second}6,3,12,-;ha")).unwrap();
        let mut kmsg = host.open_kmsg().unwrap();
        assert!(kmsg.wake().is_none());
        assert_eq!(records(&mut kmsg), [first, second]);
        let mut file = OpenOptions::new().append(true).open(root.path().join("dev/kmsg")).unwrap();
        file.write_all(b"lf\n").unwrap();
        assert_eq!(records(&mut kmsg), ["6,3,12,-;half\n"]);
        assert!(!kmsg.wait(Duration::from_millis(1)));
    }

    #[test]
    fn a_pipe_wakes_its_reader_and_outlives_its_writers() {
        let root = tempfile::tempdir().unwrap();
        let host = host(root.path());
        let path = root.path().join("dev/kmsg");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut kmsg = host.open_kmsg().unwrap();
        for round in 0..2 {
            assert!(!kmsg.wait(Duration::from_millis(1)));
            let mut writer = OpenOptions::new().write(true).open(&path).unwrap();
            writer.write_all(format!("6,{round},1,-;x\n").as_bytes()).unwrap();
            drop(writer);
            assert!(kmsg.wait(Duration::from_secs(5)));
            assert_eq!(records(&mut kmsg), [format!("6,{round},1,-;x\n")]);
        }
    }

    #[test]
    fn an_endless_line_is_passed_over_and_never_kept() {
        let root = tempfile::tempdir().unwrap();
        let host = host(root.path());
        std::fs::write(root.path().join("dev/kmsg"), vec![b'x'; 100 * 1024]).unwrap();
        let mut kmsg = host.open_kmsg().unwrap();
        assert_eq!(kmsg.next_record().unwrap(), Next::TooLong);
        assert!(kmsg.held.capacity() <= 4 * LONGEST_RECORD_BYTES);
    }

    #[test]
    fn what_is_not_there_and_what_is_not_the_log_are_told_apart() {
        let root = tempfile::tempdir().unwrap();
        let host = host(root.path());
        assert!(matches!(host.open_kmsg(), Err(ReadError::Absent { .. })));
        std::os::unix::fs::symlink("/dev/null", root.path().join("dev/kmsg")).unwrap();
        let error = host.open_kmsg().unwrap_err().to_string();
        assert!(error.contains("not the kernel log (1:11)"), "{error}");
    }

    #[test]
    fn a_refusal_names_the_right_that_is_missing() {
        let root = tempfile::tempdir().unwrap();
        let host = host(root.path());
        std::fs::create_dir_all(root.path().join("proc/self")).unwrap();
        let refused = || {
            let error = std::io::Error::from_raw_os_error(nix::libc::EPERM);
            host.kmsg_error("open", error).to_string()
        };
        assert!(refused().contains("it needs CAP_SYSLOG"), "{}", refused());
        // /proc/self/status of Linux 6.18 (root in a plain container, and root on the machine).
        let status = root.path().join("proc/self/status");
        std::fs::write(&status, "CapPrm:\t00000000a80425fb\nCapEff:\t00000000a80425fb\n").unwrap();
        assert!(refused().contains("CAP_SYSLOG is missing"), "{}", refused());
        std::fs::write(&status, "CapEff:\t000001ffffffffff\n").unwrap();
        assert!(refused().contains("CAP_SYSLOG is there"), "{}", refused());
        assert_eq!(has_capability("CapEff:\tzz\n", CAP_SYSLOG), None);
    }
}
