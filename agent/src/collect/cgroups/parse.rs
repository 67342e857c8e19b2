//! The texts of a cgroup's files (Documentation/admin-guide/cgroup-v2.rst; of v1 those of the same meaning).
//!
//! Each gives what the text says or, in words, what is wrong with it. A line without its end was cut, and its number is
//! another number.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

/// A limit that may be none: `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Max {
    /// This much.
    At(u64),
    /// Unlimited.
    Unlimited,
}

impl Max {
    /// The limit, where there is one.
    pub fn at(self) -> Option<u64> {
        match self {
            Max::At(value) => Some(value),
            Max::Unlimited => None,
        }
    }
}

impl Serialize for Max {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Max::At(value) => serializer.serialize_u64(*value),
            Max::Unlimited => serializer.serialize_str("max"),
        }
    }
}

/// `memory.events`: of v1 `oom_kill` alone (`memory.oom_control`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryEvents {
    /// Reclaimed though usage is under `memory.low`: too much is promised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub low: Option<u64>,
    /// Held up and reclaimed at `memory.high`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub high: Option<u64>,
    /// About to go over `memory.max`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
    /// At the limit, and nothing could be reclaimed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom: Option<u64>,
    /// Processes that were killed.
    pub oom_kill: u64,
    /// Whole groups that were killed (`memory.oom.group`), since Linux 5.12.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_group_kill: Option<u64>,
}

/// The fields of `memory.stat` that tell memory that can be had back from memory that cannot. In bytes; the last three
/// are events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryStat {
    /// Anonymous memory; on v1 `total_rss`.
    pub anon: u64,
    /// Page cache, tmpfs included; on v1 `total_cache`.
    pub file: u64,
    /// Kernel objects. Not on v1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slab: Option<u64>,
    /// The part of it that can be reclaimed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slab_reclaimable: Option<u64>,
    /// tmpfs and shared memory: `file`, but not reclaimable without swap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shmem: Option<u64>,
    /// Page cache not used lately.
    pub inactive_file: u64,
    /// Page cache in use.
    pub active_file: u64,
    /// Anonymous pages swapped in again soon after reclaim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workingset_refault_anon: Option<u64>,
    /// File pages read again soon after reclaim: thrashing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workingset_refault_file: Option<u64>,
    /// Faults that had to read from disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pgmajfault: Option<u64>,
}

/// `cpu.stat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Cpu {
    /// Processor time used, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage_seconds: Option<f64>,
    /// Periods in which a task wanted to run under a quota. With the next two: absent where the controller is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub periods: Option<u64>,
    /// Periods in which the quota was used up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttled_periods: Option<u64>,
    /// Time in which it was used up, summed over processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttled_seconds: Option<f64>,
}

/// `cpu.max`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quota {
    /// Processors that may be used, as time a period.
    pub cpus: f64,
    /// The period.
    pub period_seconds: f64,
}

/// `io.stat`, summed over the devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Io {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
}

/// A number by itself: `memory.current`.
pub(super) fn number(text: &str) -> Result<u64, String> {
    digits(whole(text)?).ok_or_else(|| format!("`{}` is no number", text.trim_end()))
}

/// A number or `max`: `memory.max`, `pids.max`.
pub(super) fn max(text: &str) -> Result<Max, String> {
    match whole(text)? {
        "max" => Ok(Max::Unlimited),
        text => digits(text).map(Max::At).ok_or_else(|| format!("`{text}` is neither a number nor `max`")),
    }
}

/// `memory.limit_in_bytes` of v1: no limit is the largest number of pages that the kernel can count.
pub(super) fn limit_v1(text: &str) -> Result<Max, String> {
    // PAGE_COUNTER_MAX: LONG_MAX in pages, here of 4 KiB to 64 KiB.
    let value = number(text)?;
    Ok(if value >= (i64::MAX as u64) & !0xffff { Max::Unlimited } else { Max::At(value) })
}

/// `memory.events`, `memory.events.local`, `memory.oom_control`.
pub(super) fn memory_events(text: &str) -> Result<MemoryEvents, String> {
    let mut events = MemoryEvents::default();
    let mut oom_kill = None;
    each(text, |key, value| {
        match key {
            "low" => events.low = Some(value),
            "high" => events.high = Some(value),
            "max" => events.max = Some(value),
            "oom" => events.oom = Some(value),
            "oom_kill" => oom_kill = Some(value),
            "oom_group_kill" => events.oom_group_kill = Some(value),
            _ => {}
        }
        Ok(())
    })?;
    // Since 4.13 on v2 and v1.
    Ok(MemoryEvents { oom_kill: oom_kill.ok_or("there is no line `oom_kill`")?, ..events })
}

/// `memory.stat` of v2, or of v1 with the sums of the tree (`total_…`).
pub(super) fn memory_stat(text: &str, is_v1: bool) -> Result<MemoryStat, String> {
    let mut stat = MemoryStat::default();
    let (mut anon, mut file, mut inactive_file, mut active_file) = (None, None, None, None);
    each(text, |key, value| {
        let key = match key.strip_prefix("total_") {
            Some("rss") if is_v1 => "anon",
            Some("cache") if is_v1 => "file",
            Some(key) if is_v1 => key,
            _ if is_v1 => return Ok(()),
            _ => key,
        };
        match key {
            "anon" => anon = Some(value),
            "file" => file = Some(value),
            "inactive_file" => inactive_file = Some(value),
            "active_file" => active_file = Some(value),
            "shmem" => stat.shmem = Some(value),
            "slab" => stat.slab = Some(value),
            "slab_reclaimable" => stat.slab_reclaimable = Some(value),
            "workingset_refault_anon" => stat.workingset_refault_anon = Some(value),
            // One counter up to 5.8.
            "workingset_refault" | "workingset_refault_file" => stat.workingset_refault_file = Some(value),
            "pgmajfault" => stat.pgmajfault = Some(value),
            _ => {}
        }
        Ok(())
    })?;
    Ok(MemoryStat {
        anon: anon.ok_or("there is no line `anon`")?,
        file: file.ok_or("there is no line `file`")?,
        inactive_file: inactive_file.ok_or("there is no line `inactive_file`")?,
        active_file: active_file.ok_or("there is no line `active_file`")?,
        ..stat
    })
}

/// `cpu.stat` of v2 (microseconds), or of v1 (`throttled_time` in nanoseconds, no usage).
pub(super) fn cpu_stat(text: &str) -> Result<Cpu, String> {
    let mut cpu = Cpu::default();
    each(text, |key, value| {
        match key {
            "usage_usec" => cpu.usage_seconds = Some(value as f64 / 1e6),
            "nr_periods" => cpu.periods = Some(value),
            "nr_throttled" => cpu.throttled_periods = Some(value),
            "throttled_usec" => cpu.throttled_seconds = Some(value as f64 / 1e6),
            "throttled_time" => cpu.throttled_seconds = Some(value as f64 / 1e9),
            _ => {}
        }
        Ok(())
    })?;
    if cpu == Cpu::default() { Err("it has neither usage_usec nor nr_periods".to_owned()) } else { Ok(cpu) }
}

/// `cpu.max`: `10000 100000`, `max 100000`. `None`: no quota.
pub(super) fn cpu_max(text: &str) -> Result<Option<Quota>, String> {
    let (quota, period) = whole(text)?.split_once(' ').ok_or("expected `QUOTA PERIOD`")?;
    let period = digits(period).ok_or_else(|| format!("`{period}` is no period"))?;
    match quota {
        "max" => Ok(None),
        quota => {
            let quota_micros = digits(quota).ok_or_else(|| format!("`{quota}` is no quota"))?;
            quota_of(quota_micros, period).map(Some)
        }
    }
}

/// `cpu.cfs_quota_us` (−1: none) and `cpu.cfs_period_us` of v1.
pub(super) fn cfs(quota: &str, period: &str) -> Result<Option<Quota>, String> {
    if whole(quota)? == "-1" { Ok(None) } else { quota_of(number(quota)?, number(period)?).map(Some) }
}

fn quota_of(quota_micros: u64, period_micros: u64) -> Result<Quota, String> {
    if quota_micros == 0 || period_micros == 0 {
        return Err("a quota or a period of 0".to_owned());
    }
    Ok(Quota { cpus: quota_micros as f64 / period_micros as f64, period_seconds: period_micros as f64 / 1e6 })
}

/// `pids.events`: how often a fork was refused.
pub(super) fn pids_events(text: &str) -> Result<u64, String> {
    one(text, "max")
}

/// `cgroup.events`: whether it has a living process, and whether it is frozen (since Linux 5.2).
pub(super) fn cgroup_events(text: &str) -> Result<(bool, Option<bool>), String> {
    let (mut populated, mut frozen) = (None, None);
    each(text, |key, value| {
        match key {
            "populated" => populated = Some(yes(value)?),
            "frozen" => frozen = Some(yes(value)?),
            _ => {}
        }
        Ok(())
    })?;
    Ok((populated.ok_or("there is no line `populated`")?, frozen))
}

/// `freezer.state` of v1.
pub(super) fn freezer_state(text: &str) -> Result<bool, String> {
    match whole(text)? {
        "FROZEN" => Ok(true),
        "THAWED" | "FREEZING" => Ok(false),
        text => Err(format!("`{text}` is no state of the freezer")),
    }
}

/// `cgroup.stat`: living descendants, and dying ones: removed, but still holding memory. Newer kernels count those of
/// the memory controller too, which outlive their cgroups.
pub(super) fn cgroup_stat(text: &str) -> Result<(u64, u64), String> {
    let (mut living, mut dying) = (None, None);
    each(text, |key, value| {
        match key {
            "nr_descendants" => living = Some(value),
            "nr_dying_descendants" | "nr_dying_subsys_memory" => dying = dying.max(Some(value)),
            _ => {}
        }
        Ok(())
    })?;
    Ok((
        living.ok_or("there is no line `nr_descendants`")?,
        dying.ok_or("there is no line `nr_dying_descendants`")?,
    ))
}

/// `io.stat`: a line a device, `8:0 rbytes=1 wbytes=2 …`; a device that did nothing may have no fields.
pub(super) fn io_stat(text: &str) -> Result<Io, String> {
    let mut io = Io::default();
    for line in lines(text) {
        for word in line?.split_ascii_whitespace().skip(1) {
            let Some((key, value)) = word.split_once('=') else { continue };
            let sum = match key {
                "rbytes" => &mut io.read_bytes,
                "wbytes" => &mut io.written_bytes,
                _ => continue,
            };
            let value = digits(value).ok_or_else(|| format!("`{word}` has no number"))?;
            *sum = sum.checked_add(value).ok_or("the sum is too large")?;
        }
    }
    Ok(io)
}

/// `blkio.throttle.io_service_bytes_recursive` of v1: `8:0 Read 1`, …, `Total 3`.
pub(super) fn blkio(text: &str) -> Result<Io, String> {
    let mut io = Io::default();
    let mut is_whole = false;
    for line in lines(text) {
        let line = line?;
        let mut words = line.split_ascii_whitespace();
        let (device, kind, value) = (words.next(), words.next(), words.next());
        let sum = match (device, kind) {
            (Some("Total"), Some(_)) => {
                is_whole = true;
                continue;
            }
            (_, Some("Read")) => &mut io.read_bytes,
            (_, Some("Write")) => &mut io.written_bytes,
            _ => continue,
        };
        let value = value.and_then(digits).ok_or_else(|| format!("`{line}` has no number"))?;
        *sum = sum.checked_add(value).ok_or("the sum is too large")?;
    }
    if is_whole { Ok(io) } else { Err("there is no line `Total`".to_owned()) }
}

/// /proc/cgroups: how many cgroups each controller has, the dying ones included. Controllers that are switched off are
/// left out.
pub(super) fn controllers(text: &str) -> Result<BTreeMap<String, u64>, String> {
    let mut found = BTreeMap::new();
    for line in lines(text) {
        let line = line?;
        if line.starts_with('#') {
            continue;
        }
        let mut words = line.split_ascii_whitespace();
        let fields = (words.next(), words.next(), words.next().and_then(digits), words.next());
        match fields {
            (Some(name), Some(_), Some(count), Some("1")) => drop(found.insert(name.to_owned(), count)),
            (Some(_), Some(_), Some(_), Some("0")) => {}
            _ => return Err(format!("expected `NAME HIERARCHY COUNT ENABLED`, found `{line}`")),
        }
    }
    if found.is_empty() { Err("there is no controller in it".to_owned()) } else { Ok(found) }
}

fn yes(value: u64) -> Result<bool, String> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(format!("{value} is neither 0 nor 1")),
    }
}

fn one(text: &str, wanted: &str) -> Result<u64, String> {
    let mut found = None;
    each(text, |key, value| {
        if key == wanted {
            found = Some(value);
        }
        Ok(())
    })?;
    found.ok_or_else(|| format!("there is no line `{wanted}`"))
}

/// Lines `KEY NUMBER`.
fn each(text: &str, mut take: impl FnMut(&str, u64) -> Result<(), String>) -> Result<(), String> {
    for line in lines(text) {
        let line = line?;
        let (key, value) = line.split_once(' ').ok_or_else(|| format!("the line `{line}` has no value"))?;
        take(key, digits(value).ok_or_else(|| format!("`{value}` of {key} is no number"))?)?;
    }
    Ok(())
}

fn lines(text: &str) -> impl Iterator<Item = Result<&str, String>> {
    text.split_inclusive('\n')
        .map(|line| line.strip_suffix('\n').ok_or_else(|| format!("the line `{line}` was cut")))
}

fn whole(text: &str) -> Result<&str, String> {
    text.strip_suffix('\n')
        .ok_or_else(|| if text.is_empty() { "it is empty".to_owned() } else { format!("`{text}` was cut") })
}

fn digits(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests;
