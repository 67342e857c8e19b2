//! `memory.available` as the kubelet reckons it.
//!
//! kubelet (pkg/kubelet/eviction/helpers.go, stats/helper.go): available = capacity − working set of the root cgroup,
//! capacity = MemTotal. cAdvisor (container/libcontainer/handler.go): working set = usage − inactive_file, 0 where that
//! is negative. Usage of the root cgroup, by opencontainers/cgroups (runc's library, that cAdvisor uses):
//!
//! - cgroup v2: `anon` + `file` of the root's `memory.stat` (fs2/memory.go; runc pull request 3933, 2023). The root has
//!   no `memory.current`. The recordings of kubelet 1.32.6 and 1.36.2 agree to the byte.
//! - cgroup v1: `memory.usage_in_bytes` of the root, and `total_inactive_file`. **Not checked against a kubelet**: there
//!   is no recording of one on cgroup v1.
//!
//! Kubelets with that library from before the pull request (libcontainer 1.1.9 of August 2023 is the first with it; see
//! kubernetes issue 118916) take MemTotal − MemFree for usage on v2: the kernel's own memory is in it, so they see less
//! available, and evict earlier. Which kubelet release took it over was not checked; 1.32.6 has it. Nothing on a node
//! tells the kubelet's version without asking it, so both figures are told, and the newer one decides.

use crate::host::{Host, ReadError};

use super::parse::digits;

/// What the root cgroup uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Usage {
    /// All of it.
    pub(super) usage_bytes: u64,
    /// The part that is page cache not used lately.
    pub(super) inactive_file_bytes: u64,
    /// Whether it is of cgroup v2.
    is_v2: bool,
    /// Which files say so.
    pub(super) from: &'static str,
}

impl Usage {
    /// What an older kubelet takes for it; `None` on cgroup v1, where there is no difference.
    pub(super) fn older(self, total_bytes: u64, free_bytes: u64) -> Option<Usage> {
        let usage_bytes = total_bytes.checked_sub(free_bytes).filter(|_| self.is_v2)?;
        Some(Usage { usage_bytes, ..self })
    }

    pub(super) fn working_set_bytes(self) -> u64 {
        self.usage_bytes.saturating_sub(self.inactive_file_bytes)
    }
}

/// The root cgroup's usage; or, in words, why it cannot be known.
pub(super) fn usage(host: &Host) -> Result<Usage, String> {
    // On a node with both hierarchies mounted (hybrid) the memory controller is on v1.
    if exists(host, "/sys/fs/cgroup/cgroup.controllers")? { usage_v2(host) } else { usage_v1(host) }
}

fn usage_v2(host: &Host) -> Result<Usage, String> {
    // Every cgroup but the real root has this file: a container's own cgroup namespace shows its own cgroup here.
    if exists(host, "/sys/fs/cgroup/cgroup.type")? {
        return Err("/sys/fs/cgroup is a container's own cgroup, not the node's root: mount the host's \
                    /sys/fs/cgroup below --host-root"
            .to_owned());
    }
    let path = "/sys/fs/cgroup/memory.stat";
    let text = host.read(path).map_err(|error| error.to_string())?;
    let [anon, file, inactive_file] = stat(&text, ["anon", "file", "inactive_file"])
        .map_err(|what| ReadError::malformed(path, what).to_string())?;
    let usage_bytes = anon.checked_add(file).ok_or_else(|| format!("{path}: anon + file is too large"))?;
    Ok(Usage {
        usage_bytes,
        inactive_file_bytes: inactive_file,
        is_v2: true,
        from: "MemTotal − (anon + file − inactive_file of /sys/fs/cgroup/memory.stat)",
    })
}

fn usage_v1(host: &Host) -> Result<Usage, String> {
    let path = "/sys/fs/cgroup/memory/memory.usage_in_bytes";
    if !exists(host, path)? {
        return Err("there is no memory controller in /sys/fs/cgroup, neither of cgroup v2 nor of v1 \
                    (cgroup_disable=memory, or /sys/fs/cgroup is not the host's)"
            .to_owned());
    }
    // On v1 the root alone has this file.
    if !exists(host, "/sys/fs/cgroup/memory/release_agent")? {
        return Err(
            "/sys/fs/cgroup/memory is a container's own cgroup, not the node's root: mount the host's \
                    /sys/fs/cgroup below --host-root"
                .to_owned(),
        );
    }
    let text = host.read(path).map_err(|error| error.to_string())?;
    let usage_bytes = text
        .strip_suffix('\n')
        .and_then(digits)
        .ok_or_else(|| ReadError::malformed(path, "it is no number").to_string())?;
    let path = "/sys/fs/cgroup/memory/memory.stat";
    let text = host.read(path).map_err(|error| error.to_string())?;
    let [inactive_file] =
        stat(&text, ["total_inactive_file"]).map_err(|what| ReadError::malformed(path, what).to_string())?;
    Ok(Usage {
        usage_bytes,
        inactive_file_bytes: inactive_file,
        is_v2: false,
        from: "MemTotal − (memory.usage_in_bytes − total_inactive_file of /sys/fs/cgroup/memory)",
    })
}

fn exists(host: &Host, path: &str) -> Result<bool, String> {
    host.exists(path).map_err(|error| error.to_string())
}

/// These fields of a `memory.stat`, each of which must be there.
fn stat<const N: usize>(text: &str, names: [&str; N]) -> Result<[u64; N], String> {
    let mut values = [None; N];
    for line in text.split_inclusive('\n') {
        let Some(line) = line.strip_suffix('\n') else { return Err(format!("the line `{line}` was cut")) };
        let (name, value) = line.split_once(' ').ok_or_else(|| format!("the line `{line}` has no value"))?;
        for (wanted, place) in names.iter().zip(&mut values) {
            if *wanted == name {
                *place = Some(digits(value).ok_or_else(|| format!("`{value}` of {name} is no number"))?);
            }
        }
    }
    let mut found = [0; N];
    for ((name, value), place) in names.iter().zip(values).zip(&mut found) {
        *place = value.ok_or_else(|| format!("there is no line `{name}`"))?;
    }
    Ok(found)
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    crate::fuzz::done(stat(&crate::fuzz::text(bytes), ["anon", "file", "inactive_file"]));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // Recorded on Linux 6.18.44, cgroup v1.
    const STAT: &str = include_str!("../../../fixtures/memory/linux-6.18.44-cgroup-v1-memory.stat.txt");

    proptest! {
        #[test]
        fn a_cut_stat_is_an_error_or_the_recorded_value(cut in 0..STAT.len()) {
            let names = ["total_cache", "total_inactive_file"];
            if let Ok(values) = stat(&STAT[..cut], names) {
                prop_assert_eq!(Ok(values), stat(STAT, names));
            }
        }

        #[test]
        fn a_flipped_byte_gives_values_or_an_error(at in 0..STAT.len(), byte: u8) {
            let mut bytes = STAT.as_bytes().to_vec();
            bytes[at] = byte;
            if let Ok(text) = String::from_utf8(bytes)
                && let Ok([inactive_file]) = stat(&text, ["total_inactive_file"])
            {
                prop_assert!(inactive_file > 0);
            }
        }
    }
}
