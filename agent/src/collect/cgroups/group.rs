//! One cgroup as it is now, of either version.

use std::path::PathBuf;

use jiff::Timestamp;
use nodewhy_proto::CgroupMode;
use serde::Serialize;

use super::parse::{self, Cpu, Io, Max, MemoryEvents, MemoryStat, Quota};
use super::psi::{self, Pressure};
use crate::host::cgroup::place::below;
use crate::host::cgroup::{Folder, Hierarchies};
use crate::host::{Host, ReadError};

/// A cgroup's figures. A field that is not there could not be read: its controller is off for this cgroup, or the
/// kernel has no such file (see `missing`).
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Group {
    /// Its path in the host's tree.
    pub path: String,
    /// Memory.
    pub memory: Memory,
    /// Processor time and throttling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// Its own quota of processor time; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_quota: Option<Quota>,
    /// Processes and threads.
    pub pids: Pids,
    /// Bytes read and written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io: Option<Io>,
    /// Whether a process lives in it or below it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub populated: Option<bool>,
    /// Whether its processes are frozen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen: Option<bool>,
    /// Cgroups below it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub descendants: Option<u64>,
    /// Cgroups below it that were removed and still hold memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dying: Option<u64>,
    /// Its own pressure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pressure: Option<Pressure>,
    /// What is there and could not be read, or is off, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
}

/// Memory of a cgroup, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Memory {
    /// Used now, page cache included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_bytes: Option<u64>,
    /// The hard limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<Max>,
    /// Above it the cgroup is held up and reclaimed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub high_bytes: Option<Max>,
    /// Below it others are reclaimed first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub low_bytes: Option<Max>,
    /// Swapped out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_bytes: Option<u64>,
    /// Events of it and everything below it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<MemoryEvents>,
    /// Events of its own limit alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events_local: Option<MemoryEvents>,
    /// How often the limit was hit (v1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failcnt: Option<u64>,
    /// What it consists of. It costs more than all the rest, and is read seldom.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stat: Option<MemoryStat>,
    /// When that was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stat_read_at: Option<Timestamp>,
}

/// Processes and threads of a cgroup.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Pids {
    /// How many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<u64>,
    /// How many there may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<Max>,
    /// Forks that were refused. Before Linux 6.11 counted where the process was that forked, wherever the limit is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<u64>,
}

/// What [`read`] needs.
pub(super) struct Reader<'a> {
    pub(super) host: &'a Host,
    pub(super) hierarchies: &'a Hierarchies,
    pub(super) buffer: Vec<u8>,
    pub(super) now: Timestamp,
}

impl Reader<'_> {
    /// A cgroup by its path in the host's tree; with `memory.stat` or without.
    ///
    /// # Errors
    /// It is not there, or may not be entered.
    pub(super) fn group(&mut self, path: &str, with_stat: bool) -> Result<Group, ReadError> {
        let mut group = Group { path: path.to_owned(), ..Group::default() };
        if self.hierarchies.mode == CgroupMode::V2 {
            let mount = self.hierarchies.unified.clone().unwrap_or_default();
            let folder = self.host.cgroup(below(&mount, path))?;
            self.v2(&folder, &mut group, with_stat);
        } else {
            self.v1(path, &mut group, with_stat)?;
        }
        Ok(group)
    }

    fn v2(&mut self, folder: &Folder, group: &mut Group, with_stat: bool) {
        let mut files = Files { folder, buffer: &mut self.buffer, missing: &mut group.missing };
        let memory = &mut group.memory;
        memory.current_bytes = files.get("memory.current", parse::number);
        if memory.current_bytes.is_some() {
            memory.max_bytes = files.get("memory.max", parse::max);
            memory.high_bytes = files.get("memory.high", parse::max);
            memory.low_bytes = files.get("memory.low", parse::max);
            memory.swap_bytes = files.get("memory.swap.current", parse::number);
            memory.events = files.get("memory.events", parse::memory_events);
            memory.events_local = files.get("memory.events.local", parse::memory_events);
            if with_stat {
                memory.stat = files.get("memory.stat", |text| parse::memory_stat(text, false));
                memory.stat_read_at = memory.stat.map(|_| self.now);
            }
        } else {
            files.off("memory");
        }
        group.cpu = files.get("cpu.stat", parse::cpu_stat);
        if group.cpu.is_some_and(|cpu| cpu.periods.is_some()) {
            group.cpu_quota = files.get("cpu.max", parse::cpu_max).flatten();
        }
        group.pids.current = files.get("pids.current", parse::number);
        if group.pids.current.is_some() {
            group.pids.max = files.get("pids.max", parse::max);
            group.pids.refused = files.get("pids.events", parse::pids_events);
        } else {
            files.off("pids");
        }
        group.io = files.get("io.stat", parse::io_stat);
        (group.populated, group.frozen) = files
            .get("cgroup.events", parse::cgroup_events)
            .map_or((None, None), |(populated, frozen)| (Some(populated), frozen));
        (group.descendants, group.dying) = files
            .get("cgroup.stat", parse::cgroup_stat)
            .map_or((None, None), |(living, dying)| (Some(living), Some(dying)));
        group.pressure = psi::read(&mut files);
    }

    fn v1(&mut self, path: &str, group: &mut Group, with_stat: bool) -> Result<(), ReadError> {
        let place =
            |controller: &str| -> Option<PathBuf> { Some(below(self.hierarchies.v1(controller)?, path)) };
        let mut first = None;
        let mut open = |controller: &str| match self.host.cgroup(place(controller)?) {
            Ok(folder) => Some(folder),
            Err(error) => {
                first.get_or_insert(error);
                None
            }
        };
        // The kubelet and systemd make a cgroup under each controller that they use.
        let (memory, cpu, cpuacct) = (open("memory"), open("cpu"), open("cpuacct"));
        let (pids, freezer, blkio) = (open("pids"), open("freezer"), open("blkio"));
        let any = [&memory, &cpu, &cpuacct, &pids, &freezer, &blkio].into_iter().any(Option::is_some);
        if let (false, Some(error)) = (any, first) {
            return Err(error);
        }
        let (buffer, missing) = (&mut self.buffer, &mut group.missing);
        if let Some(folder) = &memory {
            let mut files = Files { folder, buffer, missing };
            let memory = &mut group.memory;
            memory.current_bytes = files.get("memory.usage_in_bytes", parse::number);
            memory.max_bytes = files.get("memory.limit_in_bytes", parse::limit_v1);
            memory.failcnt = files.get("memory.failcnt", parse::number);
            memory.events = files.get("memory.oom_control", parse::memory_events);
            let with_swap = files.get("memory.memsw.usage_in_bytes", parse::number);
            memory.swap_bytes =
                memory.current_bytes.zip(with_swap).map(|(memory, both)| both.saturating_sub(memory));
            if with_stat {
                memory.stat = files.get("memory.stat", |text| parse::memory_stat(text, true));
                memory.stat_read_at = memory.stat.map(|_| self.now);
            }
        }
        if let Some(folder) = &cpu {
            let mut files = Files { folder, buffer, missing };
            group.cpu = files.get("cpu.stat", parse::cpu_stat);
            let quota = files.get("cpu.cfs_quota_us", |text| Ok(text.to_owned()));
            group.cpu_quota = quota
                .and_then(|quota| files.get("cpu.cfs_period_us", |period| parse::cfs(&quota, period)))
                .flatten();
        }
        if let Some(folder) = &cpuacct {
            let mut files = Files { folder, buffer, missing };
            let usage = files.get("cpuacct.usage", parse::number);
            if let Some(usage) = usage {
                group.cpu.get_or_insert_default().usage_seconds = Some(usage as f64 / 1e9);
            }
        }
        if let Some(folder) = &pids {
            let mut files = Files { folder, buffer, missing };
            group.pids.current = files.get("pids.current", parse::number);
            group.pids.max = files.get("pids.max", parse::max);
            group.pids.refused = files.get("pids.events", parse::pids_events);
        }
        if let Some(folder) = &freezer {
            let mut files = Files { folder, buffer, missing };
            group.frozen = files.get("freezer.state", parse::freezer_state);
        }
        if let Some(folder) = &blkio {
            let mut files = Files { folder, buffer, missing };
            group.io = files.get("blkio.throttle.io_service_bytes_recursive", parse::blkio);
        }
        // v1 itself has no pressure; with cgroup2 beside it a cgroup of the same path may.
        let unified = self.hierarchies.unified.as_deref().map(|mount| self.host.cgroup(below(mount, path)));
        if let Some(Ok(folder)) = unified {
            let mut files = Files { folder: &folder, buffer, missing };
            group.pressure = psi::read(&mut files);
        }
        Ok(())
    }
}

/// Files of one cgroup. What is not there is `None`; what is there and cannot be read is told.
pub(super) struct Files<'a> {
    pub(super) folder: &'a Folder,
    pub(super) buffer: &'a mut Vec<u8>,
    pub(super) missing: &'a mut Vec<String>,
}

impl Files<'_> {
    pub(super) fn get<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        match self.folder.read(name, self.buffer) {
            Ok(text) => match parse(text) {
                Ok(value) => Some(value),
                Err(what) => {
                    let error = ReadError::malformed(self.folder.path().join(name), what);
                    self.missing.push(error.to_string());
                    None
                }
            },
            Err(ReadError::NotFound { .. }) => None,
            // The file is there for a feature that is off.
            Err(ReadError::Io { error, .. }) if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => None,
            Err(error) => {
                self.missing.push(error.to_string());
                None
            }
        }
    }

    fn off(&mut self, controller: &str) {
        // A file that could not be read is told already.
        if self.missing.is_empty() {
            // The root has neither, whatever is enabled; and it alone has no type.
            if self.folder.read("cgroup.type", self.buffer).is_err() {
                return self
                    .missing
                    .push(format!("{controller}: not of the root; see the node's own figures"));
            }
            self.missing.push(format!(
                "{controller}: the controller is not enabled for this cgroup (cgroup.subtree_control of its parent)"
            ));
        }
    }
}
