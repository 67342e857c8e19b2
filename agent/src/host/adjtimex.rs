//! adjtimex(2): what the kernel knows of its clock. It is asked, never set: `modes` is 0.

#![expect(unsafe_code, reason = "calls adjtimex(2), which no library here wraps")]

use nix::errno::Errno;
use nix::libc;
use nix::sys::statfs::{PROC_SUPER_MAGIC, statfs};

use super::{Host, ReadError};

/// How this way of reading is called.
pub const ADJTIMEX: &str = "adjtimex(2)";

/// At the boot, after a step, and where the largest error stops to grow (NTP_PHASE_LIMIT of include/linux/timex.h).
const LARGEST_ERROR_MICROSECONDS: i64 = 16_000_000;

/// The kernel's clock (include/uapi/linux/timex.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelClock {
    /// `STA_*`.
    pub status: i32,
    /// What is still to be slewed, in nanoseconds.
    pub offset_nanoseconds: i64,
    /// Correction of the frequency, in parts per million shifted left by 16.
    pub frequency_scaled_ppm: i64,
    /// Largest error, in microseconds. Grows by 500 a second while nobody synchronises; stops at 16 s.
    pub max_error_microseconds: i64,
    /// Estimated error, in microseconds.
    pub estimated_error_microseconds: i64,
    /// TAI less UTC, in seconds; 0: nobody said.
    pub tai_offset_seconds: i32,
    /// `TIME_OK` and so on: whether a leap second is near; `TIME_ERROR`: not synchronised.
    pub state: i32,
}

impl KernelClock {
    /// Whether nobody has set it right lately (`STA_UNSYNC`).
    pub fn is_unsynchronised(&self) -> bool {
        self.status & libc::STA_UNSYNC != 0
    }

    /// Whether it is unsynchronised, and nobody tells the kernel how wrong it may be either. chronyd without `rtcsync`
    /// leaves the mark as it is and keeps the largest error up to date (chrony's sys_timex.c).
    pub fn is_left_alone(&self) -> bool {
        self.is_unsynchronised() && self.max_error_microseconds >= LARGEST_ERROR_MICROSECONDS
    }

    /// `ok`, or what is done about a leap second, or `unsynchronised`.
    pub fn state_name(&self) -> &'static str {
        match self.state {
            libc::TIME_OK => "ok",
            libc::TIME_INS => "leap_second_will_be_inserted",
            libc::TIME_DEL => "leap_second_will_be_deleted",
            libc::TIME_OOP => "leap_second_in_progress",
            libc::TIME_WAIT => "leap_second_has_been",
            libc::TIME_ERROR => "unsynchronised",
            _ => "unknown",
        }
    }
}

impl Host {
    /// Asks the kernel of its clock. It needs no right.
    ///
    /// # Errors
    /// `Absent` under a root that a test or a recording made: the call would tell of another machine. `Denied` where
    /// a seccomp profile refuses the call.
    pub fn kernel_clock(&self) -> Result<KernelClock, ReadError> {
        // procfs is always the running kernel's own; a made root has files in its place.
        let proc = self.path("/proc");
        if !statfs(&proc).is_ok_and(|there| there.filesystem_type() == PROC_SUPER_MAGIC) {
            return Err(ReadError::absent(
                "the host's /proc is no procfs, so this is not the running kernel's host, whose clock adjtimex(2) tells of",
            ));
        }
        // SAFETY: timex is a plain structure of integers, for which zeros are valid; modes 0 asks and sets nothing.
        let mut timex: libc::timex = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes one timex to where `timex` is.
        let state = unsafe { libc::adjtimex(&raw mut timex) };
        let state = Errno::result(state).map_err(|errno| match errno {
            Errno::EPERM | Errno::EACCES => ReadError::Denied {
                path: ADJTIMEX.into(),
                error: errno.into(),
                needs: "a seccomp profile refuses it: allow the agent the system call adjtimex".to_owned(),
            },
            _ => ReadError::Io { what: "ask the clock by", path: ADJTIMEX.into(), error: errno.into() },
        })?;
        // STA_NANO says in which unit the offset is.
        let scale = if timex.status & libc::STA_NANO != 0 { 1 } else { 1000 };
        Ok(KernelClock {
            status: timex.status,
            offset_nanoseconds: timex.offset.saturating_mul(scale),
            frequency_scaled_ppm: timex.freq,
            max_error_microseconds: timex.maxerror,
            estimated_error_microseconds: timex.esterror,
            tai_offset_seconds: timex.tai,
            state,
        })
    }
}

#[cfg(test)]
mod tests {
    use nodewhy_clock::Clock;

    use super::*;
    use crate::host::Places;

    #[test]
    fn this_machines_clock_is_asked_and_a_made_root_has_none() {
        let host = Host::new("/", Clock::system(), Places::default());
        let clock = host.kernel_clock().unwrap();
        assert_eq!(clock.is_unsynchronised(), clock.state_name() == "unsynchronised", "{clock:?}");
        assert!(clock.max_error_microseconds > 0, "{clock:?}");
        let root = tempfile::tempdir().unwrap();
        let made = Host::new(root.path(), Clock::system(), Places::default());
        assert!(matches!(made.kernel_clock(), Err(ReadError::Absent { .. })));
    }
}
