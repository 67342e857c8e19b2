//! The agent itself: what it costs, and what it may do. Its own /proc, which is never the host's root.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};

/// What the agent itself costs; `None`: it could not be read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// User and system time of all its threads, those that ended too (getrusage(2)).
    pub cpu_seconds: Option<f64>,
    /// Resident memory (`/proc/self/statm`, second field).
    pub resident_bytes: Option<u64>,
    /// Threads (`num_threads` of `/proc/self/stat`).
    pub threads: Option<u64>,
    /// Entries of `/proc/self/fd`, without the one that listing it takes.
    pub open_descriptors: Option<u64>,
    /// The soft limit of open descriptors; `None` too where there is none.
    pub most_descriptors: Option<u64>,
}

/// Reads it: a few microseconds, and nothing of it takes a lock that a sick node holds.
pub fn usage() -> Usage {
    let cpu = getrusage(UsageWho::RUSAGE_SELF).ok().map(|usage| {
        let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
        seconds(usage.user_time()) + seconds(usage.system_time())
    });
    let most = getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft);
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    let page = page.and_then(|bytes| u64::try_from(bytes).ok());
    Usage {
        cpu_seconds: cpu,
        resident_bytes: text("/proc/self/statm")
            .zip(page)
            .and_then(|(statm, page)| resident_pages(&statm)?.checked_mul(page)),
        threads: text("/proc/self/stat").and_then(|stat| threads(&stat)),
        open_descriptors: open_descriptors(),
        most_descriptors: most.filter(|most| *most != nix::libc::RLIM_INFINITY),
    }
}

/// What the agent may do; `None`: it could not be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Its effective user.
    pub uid: Option<u32>,
    /// The effective capabilities, as the kernel's bits (capabilities(7)).
    pub capabilities: Option<u64>,
    /// `0` none, `1` strict, `2` a filter (`Seccomp` of /proc/self/status).
    pub seccomp: Option<u32>,
    /// What AppArmor or SELinux calls it: `unconfined`, `cri-containerd.apparmor.d (enforce)`,
    /// `system_u:system_r:container_t:s0`; `None` too where neither is on.
    pub label: Option<String>,
    /// Whether its process ids are the host's.
    pub sees_host_processes: Option<bool>,
}

/// The inode of the first process-id namespace (PROC_PID_INIT_INO of the kernel's include/linux/proc_ns.h).
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// Reads it.
pub fn standing() -> Standing {
    let status = text("/proc/self/status").unwrap_or_default();
    let pids = std::fs::metadata("/proc/self/ns/pid").ok();
    let label = text("/proc/self/attr/current").map(|label| label.trim_end_matches(['\n', '\0']).to_owned());
    Standing {
        uid: field(&status, "Uid").and_then(|uids| uids.split_whitespace().nth(1)?.parse().ok()),
        capabilities: field(&status, "CapEff").and_then(|bits| u64::from_str_radix(bits, 16).ok()),
        seccomp: field(&status, "Seccomp").and_then(|mode| mode.parse().ok()),
        label: label.filter(|label| !label.is_empty()),
        sees_host_processes: pids.map(|namespace| namespace.ino() == FIRST_PID_NAMESPACE),
    }
}

/// `CapEff:\t000001ffffffffff`.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
}

/// A file of the agent's own /proc, or of its own container.
fn text(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// Linux 6.2 counts them for whoever asks for the folder's size; before, all had to be listed, and it still says 0.
fn open_descriptors() -> Option<u64> {
    let counted = std::fs::metadata("/proc/self/fd").ok()?.len();
    if counted > 0 {
        return Some(counted);
    }
    // The folder's own is one of them.
    u64::try_from(std::fs::read_dir("/proc/self/fd").ok()?.count()).ok()?.checked_sub(1)
}

fn resident_pages(statm: &str) -> Option<u64> {
    statm.split(' ').nth(1)?.parse().ok()
}

/// The 20th field; the second one, the name, may hold anything but ends with the last bracket (proc_pid_stat(5)).
fn threads(stat: &str) -> Option<u64> {
    stat.rsplit_once(") ")?.1.split(' ').nth(17)?.parse().ok()
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    use crate::fuzz::{done, text};
    let text = text(bytes);
    done((field(&text, "CapEff").map(str::len), resident_pages(&text), threads(&text)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_from_the_end_of_the_name_and_what_is_cut_is_none() {
        // Recorded on Linux 6.18: a shell, with a name made worse.
        let stat =
            "4242 (a) b (c) S 1 4242 4242 0 -1 4194560 431 0 0 0 0 0 0 0 20 0 3 0 12345 2580480 414 1844\n";
        assert_eq!(threads(stat), Some(3));
        assert_eq!(threads(&stat[..40]), None);
        assert_eq!(resident_pages("630 414 331 216 0 77 0\n"), Some(414));
        assert_eq!(resident_pages("630"), None);
    }

    #[test]
    fn its_standing_is_told_as_the_kernel_has_it() {
        let standing = standing();
        assert_eq!(standing.uid, Some(nix::unistd::geteuid().as_raw()));
        assert!(standing.capabilities.is_some() && standing.seccomp.is_some(), "{standing:?}");
        // Recorded on Linux 6.18.
        assert_eq!(
            field("SigCgt:\t0\nCapEff:\t000001ffffffffff\nCapBnd:\t0\n", "CapEff"),
            Some("000001ffffffffff")
        );
        assert_eq!(field("CapEffective: 1\n", "CapEff"), None);
    }

    #[test]
    fn this_process_costs_something_and_no_more_than_it_has() {
        let before = usage();
        let held: Vec<std::fs::File> =
            (0..8).map(|_| std::fs::File::open("/proc/self/stat").unwrap()).collect();
        let usage = usage();
        assert!(usage.cpu_seconds.unwrap() >= before.cpu_seconds.unwrap());
        assert!(usage.resident_bytes.unwrap() > 100 * 1024);
        assert!(usage.threads.unwrap() >= 1);
        assert!(usage.open_descriptors.unwrap() >= 8, "{usage:?}");
        assert!(usage.most_descriptors.is_none_or(|most| most >= usage.open_descriptors.unwrap()));
        drop(held);
    }
}
