//! The node's memory: `/proc/meminfo`, the counters of `/proc/vmstat` that show reclaim, and `memory.available` as the
//! kubelet reckons it, which is what it evicts by.

mod available;
mod parse;

use std::collections::BTreeMap;
use std::time::Duration;

use nodewhy_proto::{Evidence, Severity, Subject};
use serde::Serialize;

pub(crate) use self::parse::total_bytes;
use crate::collector::{Abnormal, Collector, Noticed, Pair, never_woken};
use crate::host::{Host, Kept, ReadError};
use crate::metrics::{Family, Sink};
use crate::thresholds::Thresholds;

/// The node's memory, every second.
pub static COLLECTOR: Collector<Source, Reading> = Collector {
    name: "memory",
    every: Duration::from_secs(1),
    deadline: Duration::from_secs(2),
    remembers: false,
    open,
    read,
    wake: never_woken,
    summary,
    families: &FAMILIES,
    metrics,
    limits: &[],
    detect,
    pages: &[],
    asks: &[],
};

/// The open files.
#[derive(Debug)]
pub struct Source {
    meminfo: Kept,
    vmstat: Kept,
}

/// One reading.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reading {
    /// `/proc/meminfo`.
    #[serde(flatten)]
    pub meminfo: Meminfo,
    /// `memory.available` as the kubelet reckons it: capacity minus the working set of the root cgroup. Below the
    /// hard threshold the kubelet evicts pods. It is neither `MemAvailable` nor `MemFree`.
    pub kubelet_available_bytes: Option<u64>,
    /// What it was reckoned from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubelet_available_from: Option<&'static str>,
    /// Why it could not be reckoned; `memory_available_low` is then off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubelet_available_missing: Option<String>,
    /// `memory.available` as older kubelets reckon it on cgroup v2, which take MemTotal − MemFree for what is used
    /// (libcontainer before 1.1.9 of August 2023). `None` on cgroup v1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubelet_available_older_bytes: Option<u64>,
    /// The kubelet's hard eviction threshold. `None`: eviction on memory is off, or the threshold is not known.
    pub eviction_bytes: Option<f64>,
    /// The counters of `/proc/vmstat` that are named in [`VMSTAT`]; a counter that this kernel lacks is not in here.
    pub vmstat: BTreeMap<&'static str, u64>,
}

/// `/proc/meminfo`, in bytes. What this kernel does not print is `None`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Meminfo {
    /// `MemTotal`: what the kernel manages; the kubelet's capacity.
    pub total_bytes: u64,
    /// `MemFree`.
    pub free_bytes: u64,
    /// `MemAvailable`, the kernel's own estimate (since 3.14).
    pub available_bytes: Option<u64>,
    /// `Buffers`.
    pub buffers_bytes: Option<u64>,
    /// `Cached`: page cache and shared memory.
    pub cached_bytes: Option<u64>,
    /// `Active(file)`: page cache that was used twice. The kubelet counts it as used, though it can be reclaimed.
    pub active_file_bytes: Option<u64>,
    /// `Inactive(file)`.
    pub inactive_file_bytes: Option<u64>,
    /// `AnonPages`.
    pub anon_bytes: Option<u64>,
    /// `Shmem`: tmpfs and shared memory. In `Cached`, and not to be reclaimed without swap.
    pub shmem_bytes: Option<u64>,
    /// `Dirty`: waits to be written.
    pub dirty_bytes: Option<u64>,
    /// `Writeback`: is being written.
    pub writeback_bytes: Option<u64>,
    /// `SReclaimable`.
    pub slab_reclaimable_bytes: Option<u64>,
    /// `SUnreclaim`: the kernel's own, which no eviction gives back.
    pub slab_unreclaimable_bytes: Option<u64>,
    /// `Active(anon)`.
    pub active_anon_bytes: Option<u64>,
    /// `Inactive(anon)`.
    pub inactive_anon_bytes: Option<u64>,
    /// `Unevictable`: locked, or of a kind that is never reclaimed.
    pub unevictable_bytes: Option<u64>,
    /// `Slab`: both kinds.
    pub slab_bytes: Option<u64>,
    /// `KernelStack`: of all threads.
    pub kernel_stack_bytes: Option<u64>,
    /// `PageTables`.
    pub page_tables_bytes: Option<u64>,
    /// `Percpu`; leaked cgroups grow it (since 4.20).
    pub percpu_bytes: Option<u64>,
    /// `CommitLimit`: held against what is committed only with vm.overcommit_memory = 2.
    pub commit_limit_bytes: Option<u64>,
    /// `Committed_AS`: what was promised to all processes.
    pub committed_bytes: Option<u64>,
    /// `HardwareCorrupted`: taken away after a memory error.
    pub hardware_corrupted_bytes: Option<u64>,
    /// `Hugetlb`: set aside for huge pages of all sizes; nothing else can use it (since 4.18).
    pub hugetlb_bytes: Option<u64>,
    /// `HugePages_Total`: pages of the default size.
    pub hugepages: Option<u64>,
    /// `HugePages_Free`.
    pub hugepages_free: Option<u64>,
    /// `SwapCached`: swapped in, and still in swap too.
    pub swap_cached_bytes: Option<u64>,
    /// `SwapTotal`; 0 is "no swap".
    pub swap_total_bytes: Option<u64>,
    /// `SwapFree`.
    pub swap_free_bytes: Option<u64>,
}

/// The counters that are read of `/proc/vmstat`: the kernel's name, the metric, its help. In pages or in events.
pub static VMSTAT: &[(&str, &str, &str)] = &[
    ("pgscan_kswapd", "nodewhy_vmstat_pgscan_kswapd_total", "Pages that kswapd looked at for reclaim."),
    (
        "pgscan_direct",
        "nodewhy_vmstat_pgscan_direct_total",
        "Pages that allocating tasks looked at themselves.",
    ),
    ("pgsteal_kswapd", "nodewhy_vmstat_pgsteal_kswapd_total", "Pages that kswapd reclaimed."),
    (
        "pgsteal_direct",
        "nodewhy_vmstat_pgsteal_direct_total",
        "Pages that allocating tasks reclaimed themselves.",
    ),
    (
        "allocstall_dma",
        "nodewhy_vmstat_allocstall_dma_total",
        "Allocations that had to reclaim first: zone DMA.",
    ),
    (
        "allocstall_dma32",
        "nodewhy_vmstat_allocstall_dma32_total",
        "Allocations that had to reclaim first: zone DMA32.",
    ),
    (
        "allocstall_normal",
        "nodewhy_vmstat_allocstall_normal_total",
        "Allocations that had to reclaim first: zone Normal.",
    ),
    (
        "allocstall_movable",
        "nodewhy_vmstat_allocstall_movable_total",
        "Allocations that had to reclaim first: zone Movable.",
    ),
    (
        "pgscan_direct_throttle",
        "nodewhy_vmstat_pgscan_direct_throttle_total",
        "Times that an allocating task was made to wait for kswapd, as next to nothing was free.",
    ),
    // Up to 5.8 there is one counter; from 5.9 on there are two.
    (
        "workingset_refault",
        "nodewhy_vmstat_workingset_refault_total",
        "Pages read in again soon after reclaim.",
    ),
    (
        "workingset_refault_anon",
        "nodewhy_vmstat_workingset_refault_anon_total",
        "Anonymous pages swapped in again soon after reclaim.",
    ),
    (
        "workingset_refault_file",
        "nodewhy_vmstat_workingset_refault_file_total",
        "File pages read in again soon after reclaim: thrashing.",
    ),
    ("compact_stall", "nodewhy_vmstat_compact_stall_total", "Allocations that had to compact memory first."),
    ("compact_fail", "nodewhy_vmstat_compact_fail_total", "Compactions that did not give the wanted block."),
    ("compact_success", "nodewhy_vmstat_compact_success_total", "Compactions that gave the wanted block."),
    ("pswpin", "nodewhy_vmstat_pswpin_total", "Pages swapped in."),
    ("pswpout", "nodewhy_vmstat_pswpout_total", "Pages swapped out."),
    ("pgmajfault", "nodewhy_vmstat_pgmajfault_total", "Page faults that had to read from disk."),
    // Since 4.13; the whole node's and cgroups' kills alike.
    ("oom_kill", "nodewhy_vmstat_oom_kill_total", "Processes that the kernel killed for want of memory."),
];

fn open(host: &Host) -> Result<Source, ReadError> {
    Ok(Source { meminfo: host.keep("/proc/meminfo")?, vmstat: host.keep("/proc/vmstat")? })
}

fn read(source: &mut Source, host: &Host) -> Result<Reading, ReadError> {
    let meminfo =
        parse::meminfo(source.meminfo.read()?).map_err(|what| ReadError::malformed("/proc/meminfo", what))?;
    let vmstat =
        parse::vmstat(source.vmstat.read()?).map_err(|what| ReadError::malformed("/proc/vmstat", what))?;
    let (mut available, mut older, mut from, mut missing) = (None, None, None, None);
    match available::usage(host) {
        Ok(usage) => {
            let left =
                |usage: available::Usage| meminfo.total_bytes.saturating_sub(usage.working_set_bytes());
            available = Some(left(usage));
            older = usage.older(meminfo.total_bytes, meminfo.free_bytes).map(left);
            from = Some(usage.from);
        }
        Err(why) => missing = Some(why),
    }
    let limits = host.thresholds();
    Ok(Reading {
        kubelet_available_older_bytes: older,
        eviction_bytes: limits.and_then(|limits| limits.memory_available_bytes).map(|limit| limit.value),
        meminfo,
        kubelet_available_bytes: available,
        kubelet_available_from: from,
        kubelet_available_missing: missing,
        vmstat,
    })
}

fn summary(reading: &Reading) -> String {
    const GIB: f64 = 1024.0 * 1024.0 * 1024.0;
    let total = reading.meminfo.total_bytes as f64 / GIB;
    match reading.meminfo.available_bytes {
        Some(available) => format!("{:.1} of {total:.1} GiB available", available as f64 / GIB),
        None => format!("{total:.1} GiB; this kernel does not say how much is available"),
    }
}

/// A gauge, and the field of the reading that it is.
type Gauge = (Family, fn(&Reading) -> Option<u64>);

static GAUGES: &[Gauge] = &[
    (Family::gauge("nodewhy_memory_total_bytes", "MemTotal."), |it| Some(it.meminfo.total_bytes)),
    (Family::gauge("nodewhy_memory_free_bytes", "MemFree."), |it| Some(it.meminfo.free_bytes)),
    (Family::gauge("nodewhy_memory_available_bytes", "MemAvailable: the kernel's estimate."), |it| {
        it.meminfo.available_bytes
    }),
    (
        Family::gauge(
            "nodewhy_memory_kubelet_available_bytes",
            "memory.available as the kubelet reckons it, by which it evicts.",
        ),
        |it| it.kubelet_available_bytes,
    ),
    (Family::gauge("nodewhy_memory_cached_bytes", "Cached: page cache and shared memory."), |it| {
        it.meminfo.cached_bytes
    }),
    (Family::gauge("nodewhy_memory_active_file_bytes", "Active(file)."), |it| it.meminfo.active_file_bytes),
    (Family::gauge("nodewhy_memory_inactive_file_bytes", "Inactive(file)."), |it| {
        it.meminfo.inactive_file_bytes
    }),
    (Family::gauge("nodewhy_memory_anon_bytes", "AnonPages."), |it| it.meminfo.anon_bytes),
    (Family::gauge("nodewhy_memory_shmem_bytes", "Shmem."), |it| it.meminfo.shmem_bytes),
    (Family::gauge("nodewhy_memory_dirty_bytes", "Dirty."), |it| it.meminfo.dirty_bytes),
    (Family::gauge("nodewhy_memory_writeback_bytes", "Writeback."), |it| it.meminfo.writeback_bytes),
    (Family::gauge("nodewhy_memory_slab_unreclaimable_bytes", "SUnreclaim."), |it| {
        it.meminfo.slab_unreclaimable_bytes
    }),
    (
        Family::gauge(
            "nodewhy_memory_slab_bytes",
            "Slab: the kernel's own objects, reclaimable ones included.",
        ),
        |it| it.meminfo.slab_bytes,
    ),
    (Family::gauge("nodewhy_memory_slab_reclaimable_bytes", "SReclaimable."), |it| {
        it.meminfo.slab_reclaimable_bytes
    }),
    (Family::gauge("nodewhy_memory_kernel_stack_bytes", "KernelStack: of all threads."), |it| {
        it.meminfo.kernel_stack_bytes
    }),
    (Family::gauge("nodewhy_memory_page_tables_bytes", "PageTables."), |it| it.meminfo.page_tables_bytes),
    (Family::gauge("nodewhy_memory_percpu_bytes", "Percpu; leaked cgroups grow it."), |it| {
        it.meminfo.percpu_bytes
    }),
    (Family::gauge("nodewhy_memory_unevictable_bytes", "Unevictable."), |it| it.meminfo.unevictable_bytes),
    (
        Family::gauge("nodewhy_memory_committed_bytes", "Committed_AS: what was promised to all processes."),
        |it| it.meminfo.committed_bytes,
    ),
    (Family::gauge("nodewhy_memory_commit_limit_bytes", "CommitLimit."), |it| it.meminfo.commit_limit_bytes),
    (
        Family::gauge(
            "nodewhy_memory_hugetlb_bytes",
            "Hugetlb: set aside for huge pages; nothing else can use it.",
        ),
        |it| it.meminfo.hugetlb_bytes,
    ),
    (Family::gauge("nodewhy_memory_hugepages", "HugePages_Total: pages of the default size."), |it| {
        it.meminfo.hugepages
    }),
    (Family::gauge("nodewhy_memory_hugepages_free", "HugePages_Free."), |it| it.meminfo.hugepages_free),
    (
        Family::gauge("nodewhy_memory_hardware_corrupted_bytes", "HardwareCorrupted: lost to memory errors."),
        |it| it.meminfo.hardware_corrupted_bytes,
    ),
    (Family::gauge("nodewhy_memory_swap_total_bytes", "SwapTotal."), |it| it.meminfo.swap_total_bytes),
    (Family::gauge("nodewhy_memory_swap_free_bytes", "SwapFree."), |it| it.meminfo.swap_free_bytes),
];

/// Those of [`VMSTAT`], in its order.
static COUNTERS: [Family; VMSTAT.len()] = {
    let mut families = [const { Family::counter("", "") }; VMSTAT.len()];
    let mut at = 0;
    while at < VMSTAT.len() {
        families[at] = Family::counter(VMSTAT[at].1, VMSTAT[at].2);
        at += 1;
    }
    families
};

static EVICTION: Family = Family::gauge(
    "nodewhy_memory_eviction_threshold_bytes",
    "The kubelet's hard eviction threshold for memory.available. Left out where it is off or not known.",
);
static EVICTION_DISTANCE: Family = Family::gauge(
    "nodewhy_memory_eviction_distance_bytes",
    "memory.available above the kubelet's hard eviction threshold; below 0 it evicts.",
);

static FAMILIES: [&Family; GAUGES.len() + VMSTAT.len() + 2] = {
    let mut families = [&EVICTION; GAUGES.len() + VMSTAT.len() + 2];
    families[GAUGES.len() + VMSTAT.len() + 1] = &EVICTION_DISTANCE;
    let mut at = 0;
    while at < GAUGES.len() + VMSTAT.len() {
        families[at] = if at < GAUGES.len() { &GAUGES[at].0 } else { &COUNTERS[at - GAUGES.len()] };
        at += 1;
    }
    families
};

fn metrics(reading: &Reading, sink: &mut Sink) {
    for (family, field) in GAUGES {
        sink.put_some(family, &[], field(reading).map(|bytes| bytes as f64));
    }
    for (family, (field, ..)) in COUNTERS.iter().zip(VMSTAT) {
        sink.put_some(family, &[], reading.vmstat.get(field).map(|count| *count as f64));
    }
    sink.put_some(&EVICTION, &[], reading.eviction_bytes);
    let distance = reading.kubelet_available_bytes.zip(reading.eviction_bytes);
    sink.put_some(&EVICTION_DISTANCE, &[], distance.map(|(available, limit)| available as f64 - limit));
}

fn detect(pair: Pair<'_, Reading>, thresholds: &Thresholds, noticed: &mut Noticed) {
    // Both are `None` for a reason that the reading, or the thresholds' notes, tell.
    let (Some(available), Some(limit)) =
        (pair.now.kubelet_available_bytes, thresholds.memory_available_bytes)
    else {
        return;
    };
    let available = available as f64;
    if available >= limit.value {
        return;
    }
    let mib = |bytes: f64| bytes / (1024.0 * 1024.0);
    let text = format!("memory.available {:.1} MiB, below {:.1} MiB", mib(available), mib(limit.value));
    let mut evidence = vec![
        Evidence::new(&text, pair.now.kubelet_available_from.unwrap_or("cgroup"))
            .with_time(pair.at.wall)
            .with_value(available, "bytes")
            .with_threshold(limit.value, limit.origin),
    ];
    // Page cache in use can be the "user": the kernel could take it back, the kubelet counts it as used.
    for (what, bytes) in [
        ("MemAvailable", pair.now.meminfo.available_bytes),
        ("Active(file)", pair.now.meminfo.active_file_bytes),
        ("memory.available of an older kubelet", pair.now.kubelet_available_older_bytes),
    ] {
        if let Some(bytes) = bytes {
            let text = format!("{what} {:.1} MiB", mib(bytes as f64));
            evidence.push(
                Evidence::new(text, "/proc/meminfo")
                    .with_time(pair.at.wall)
                    .with_value(bytes as f64, "bytes"),
            );
        }
    }
    noticed.states.push(Abnormal {
        finding: "memory_available_low",
        subject: Subject::node(),
        severity: Severity::Warning,
        summary: format!("{text}: the kubelet evicts pods"),
        evidence,
        since: None,
        hold: Duration::ZERO,
        clear_after: Duration::from_secs(30),
    });
}

/// Every parser of this collector, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    use crate::fuzz::{done, text};
    let text = text(bytes);
    done(parse::meminfo(&text));
    done(parse::total_bytes(&text));
    done(parse::vmstat(&text));
    available::fuzz(bytes);
}

#[cfg(test)]
mod tests;
