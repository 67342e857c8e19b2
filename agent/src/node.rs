//! Which node this is: read once, as none of it changes within a boot.

use nodewhy_proto::{AgentInfo, CgroupMode, NodeDistribution, NodeId, NodeInfo};

use crate::board::Board;
use crate::distribution::{self, Found};
use crate::host::Host;
use crate::memory_lock;

/// What is known of the node at the agent's start.
#[derive(Clone, Debug)]
pub struct Identity {
    id: NodeId,
    kernel: Option<String>,
    os: Option<String>,
    cgroups: Option<CgroupMode>,
    cpus: Option<u32>,
    memory_total_bytes: Option<u64>,
    distribution: Found,
    agent: AgentInfo,
}

impl Identity {
    /// Reads who this node is. What cannot be read is absent.
    pub fn read(host: &Host, node_name: Option<&str>) -> Identity {
        let line =
            |path: &str| host.read(path).ok().map(|text| text.trim().to_owned()).filter(|s| !s.is_empty());
        let name = node_name.map(str::to_owned).or_else(|| line("/proc/sys/kernel/hostname"));
        Identity {
            id: NodeId {
                name: name.unwrap_or_else(|| "unnamed".to_owned()),
                uid: None,
                machine_id: line("/etc/machine-id"),
                boot_id: line("/proc/sys/kernel/random/boot_id"),
            },
            kernel: line("/proc/sys/kernel/osrelease"),
            os: host.read("/etc/os-release").ok().and_then(|text| pretty_name(&text)),
            // The host's own mounts; the agent's are its container's.
            cgroups: host.read("/proc/1/mountinfo").ok().and_then(|text| cgroup_mode(&text)),
            cpus: host.read("/sys/devices/system/cpu/online").ok().and_then(|text| count_cpus(text.trim())),
            memory_total_bytes: host.read("/proc/meminfo").ok().and_then(|text| mem_total(&text)),
            distribution: distribution::of(host),
            agent: AgentInfo {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                started: host.clock().now(),
                host_root: host.root().display().to_string(),
                memory_locked: memory_lock::outcome(),
            },
        }
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.id.name
    }

    /// This boot.
    pub fn boot_id(&self) -> Option<&str> {
        self.id.boot_id.as_deref()
    }

    /// `/api/v1/node`, with what the collectors say of runtime and kubelet.
    pub fn info(&self, board: &Board) -> NodeInfo {
        let stamp = board.clock().stamp();
        NodeInfo {
            id: self.id.clone(),
            now: stamp.wall,
            uptime_seconds: stamp.boot.as_secs_f64(),
            kernel: self.kernel.clone(),
            os: self.os.clone(),
            cgroups: self.cgroups,
            cpus: self.cpus,
            memory_total_bytes: self.memory_total_bytes,
            runtime: board.summary("runtime"),
            kubelet: board.summary("kubelet"),
            distribution: self.distribution.name().map(|name| NodeDistribution {
                name: name.to_owned(),
                found_by: self.distribution.found_by.clone(),
            }),
            shared_kernel: self.distribution.shared_kernel,
            kernel_log: kernel_log(board),
            agent: self.agent.clone(),
        }
    }
}

/// The way by which the kernel log is read; `None`: it is not.
fn kernel_log(board: &Board) -> Option<String> {
    let reading = board.reading("oom")?.json().ok()?;
    reading.get("way")?.as_str().map(str::to_owned)
}

fn pretty_name(os_release: &str) -> Option<String> {
    let value = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim().trim_matches(['"', '\'']).to_owned())
}

/// The type of a mount follows ` - ` in its line (proc_pid_mountinfo(5)).
fn cgroup_mode(mountinfo: &str) -> Option<CgroupMode> {
    let types: Vec<&str> =
        mountinfo.lines().filter_map(|line| line.split_once(" - ")?.1.split_whitespace().next()).collect();
    match (types.contains(&"cgroup"), types.contains(&"cgroup2")) {
        (false, true) => Some(CgroupMode::V2),
        (true, true) => Some(CgroupMode::Hybrid),
        (true, false) => Some(CgroupMode::V1),
        (false, false) => None,
    }
}

/// `0-3,8` is five.
fn count_cpus(list: &str) -> Option<u32> {
    list.split(',').try_fold(0u32, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

fn mem_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    use crate::fuzz::{done, text};
    let text = text(bytes);
    done((pretty_name(&text), cgroup_mode(&text), count_cpus(&text), mem_total(&text)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_are_told_apart() {
        // A Debian 12 machine (systemd), and a machine with v1 controllers and cgroup2 beside them, shortened.
        let v2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        let hybrid = "22 21 0:20 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                      33 21 0:31 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup_mode(v2), Some(CgroupMode::V2));
        assert_eq!(cgroup_mode(hybrid), Some(CgroupMode::Hybrid));
        assert_eq!(cgroup_mode("22 21 0:20 / /proc rw - proc proc rw\n"), None);
        assert_eq!(cgroup_mode("garbage"), None);
    }

    #[test]
    fn processors_are_counted_and_garbage_is_not_zero() {
        assert_eq!(count_cpus("0-3,8"), Some(5));
        assert_eq!(count_cpus("0"), Some(1));
        for garbage in ["", "x", "3-1", "0-4294967295", "1,,2"] {
            assert_eq!(count_cpus(garbage), None, "{garbage}");
        }
    }

    #[test]
    fn a_memory_that_is_not_told_is_not_zero() {
        assert_eq!(mem_total("MemTotal:        1500756 kB\nMemFree: 1 kB\n"), Some(1_500_756 * 1024));
        assert_eq!(mem_total("MemFree: 1 kB\n"), None);
        assert_eq!(mem_total("MemTotal: 18446744073709551615 kB\n"), None);
    }
}
