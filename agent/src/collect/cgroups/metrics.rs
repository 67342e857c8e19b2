//! Metrics: by class and by group of the system, so that their number is the same on every node; by pod only behind a
//! switch.

use super::group::Group;
use super::parse::Max;
use super::psi::Pressure;
use super::reading::{PodEntry, Reading};
use crate::metrics::{Family, Sink};

static MEMORY: Family =
    Family::gauge("nodewhy_cgroup_memory_bytes", "Memory of the cgroup, page cache included.")
        .by(&["cgroup"]);
static MEMORY_LIMIT: Family =
    Family::gauge("nodewhy_cgroup_memory_limit_bytes", "memory.max of the cgroup; absent where it has none.")
        .by(&["cgroup"]);
static MEMORY_EVENTS: Family = Family::counter(
    "nodewhy_cgroup_memory_events_total",
    "memory.events of the cgroup and everything below it, by event.",
)
.by(&["cgroup", "event"]);
static CPU: Family =
    Family::counter("nodewhy_cgroup_cpu_seconds_total", "Processor time that the cgroup used.")
        .by(&["cgroup"]);
static PERIODS: Family = Family::counter(
    "nodewhy_cgroup_cpu_periods_total",
    "Periods in which the cgroup wanted to run under its own quota.",
)
.by(&["cgroup"]);
static THROTTLED_PERIODS: Family = Family::counter(
    "nodewhy_cgroup_cpu_throttled_periods_total",
    "Periods in which the cgroup used its own quota up.",
)
.by(&["cgroup"]);
static THROTTLED: Family = Family::counter(
    "nodewhy_cgroup_cpu_throttled_seconds_total",
    "Time for which the cgroup was held up by its own quota, over all processors.",
)
.by(&["cgroup"]);
static PIDS: Family =
    Family::gauge("nodewhy_cgroup_pids", "Processes and threads in the cgroup and below it.").by(&["cgroup"]);
static PIDS_LIMIT: Family =
    Family::gauge("nodewhy_cgroup_pids_limit", "pids.max of the cgroup; absent where it has none.")
        .by(&["cgroup"]);
static IO: Family = Family::counter(
    "nodewhy_cgroup_io_bytes_total",
    "Bytes that the cgroup read and wrote, over all devices.",
)
.by(&["cgroup", "direction"]);
static STALLED: Family = Family::counter(
    "nodewhy_cgroup_pressure_stalled_seconds_total",
    "Time in which some or all tasks of the cgroup waited for the resource.",
)
.by(&["cgroup", "resource", "kind"]);
static PODS: Family = Family::gauge("nodewhy_pods", "Pods with a cgroup, by class of service.").by(&["qos"]);
static CONTAINERS: Family =
    Family::gauge("nodewhy_containers", "Containers with a cgroup, sandboxes too, by class of service.")
        .by(&["qos"]);
static PODS_MEMORY: Family =
    Family::gauge("nodewhy_pods_memory_bytes", "Memory of all pods of a class of service.").by(&["qos"]);
static NO_LIMIT: Family =
    Family::gauge("nodewhy_pods_without_memory_limit", "Pods whose cgroup has no memory limit.");
static CREATED: Family =
    Family::counter("nodewhy_containers_created_total", "Containers that came since the agent looks.");
static REMOVED: Family =
    Family::counter("nodewhy_containers_removed_total", "Containers that went since the agent looks.");
static FROZEN: Family = Family::gauge("nodewhy_cgroups_frozen", "Cgroups whose processes are frozen.");
static PIDS_AT_LIMIT: Family = Family::gauge(
    "nodewhy_cgroups_at_pids_limit",
    "Cgroups that refused a fork within the last minute, or have no process id left.",
);
static LIVING: Family = Family::gauge("nodewhy_cgroups_living", "Cgroups of the node.");
static DYING: Family =
    Family::gauge("nodewhy_cgroups_dying", "Cgroups that were removed and still hold memory.");
static BY_CONTROLLER: Family =
    Family::gauge("nodewhy_cgroups", "Cgroups by controller, dying ones included (/proc/cgroups).")
        .by(&["controller"]);

// Behind the switch `per_pod_metrics`: these alone have a pod for a label.
static POD_MEMORY: Family = Family::gauge(
    "nodewhy_pod_memory_bytes",
    "Memory of a pod, page cache included. Only with per_pod_metrics.",
)
.by(&["namespace", "pod", "uid"]);
static POD_CPU: Family = Family::counter(
    "nodewhy_pod_cpu_seconds_total",
    "Processor time of a pod, as of the last minute. Only with per_pod_metrics.",
)
.by(&["namespace", "pod", "uid"]);
static POD_THROTTLED: Family = Family::counter(
    "nodewhy_pod_cpu_throttled_seconds_total",
    "Time for which a pod and its containers were held up by their quotas, as of the last minute. Only with \
     per_pod_metrics.",
)
.by(&["namespace", "pod", "uid"]);
static POD_OOM_KILLS: Family = Family::counter(
    "nodewhy_pod_oom_kills_total",
    "Processes of a pod that were killed for want of memory, as of the last minute. Only with per_pod_metrics.",
)
.by(&["namespace", "pod", "uid"]);

pub(super) static FAMILIES: &[&Family] = &[
    &MEMORY,
    &MEMORY_LIMIT,
    &MEMORY_EVENTS,
    &CPU,
    &PERIODS,
    &THROTTLED_PERIODS,
    &THROTTLED,
    &PIDS,
    &PIDS_LIMIT,
    &IO,
    &STALLED,
    &PODS,
    &CONTAINERS,
    &PODS_MEMORY,
    &NO_LIMIT,
    &CREATED,
    &REMOVED,
    &FROZEN,
    &PIDS_AT_LIMIT,
    &LIVING,
    &DYING,
    &BY_CONTROLLER,
    &POD_MEMORY,
    &POD_CPU,
    &POD_THROTTLED,
    &POD_OOM_KILLS,
];

pub(super) fn metrics(reading: &Reading, sink: &mut Sink) {
    for (name, group) in &reading.groups {
        of_group(name, group, sink);
    }
    if reading.kubepods.is_some() {
        for (qos, count) in &reading.qos {
            sink.put(&PODS, &[qos], count.pods as f64);
            sink.put(&CONTAINERS, &[qos], count.containers as f64);
            sink.put_some(&PODS_MEMORY, &[qos], count.memory_bytes.map(|bytes| bytes as f64));
        }
        sink.put(&NO_LIMIT, &[], reading.without_memory_limit.count as f64);
        sink.put(&CREATED, &[], reading.churn.created as f64);
        sink.put(&REMOVED, &[], reading.churn.removed as f64);
    }
    sink.put(&FROZEN, &[], reading.frozen.len() as f64);
    sink.put(&PIDS_AT_LIMIT, &[], reading.pids_at_limit.len() as f64);
    if let Some(dying) = &reading.dying {
        sink.put(&LIVING, &[], dying.living as f64);
        sink.put(&DYING, &[], dying.dying as f64);
    }
    for (controller, count) in &reading.controllers {
        sink.put(&BY_CONTROLLER, &[controller], *count as f64);
    }
    if reading.is_per_pod {
        reading.pods.iter().for_each(|pod| of_pod(pod, sink));
    }
}

fn of_pod(pod: &PodEntry, sink: &mut Sink) {
    let name = pod.name.as_ref();
    let labels = [
        name.map_or("", |name| name.namespace.as_str()),
        name.map_or("", |name| name.name.as_str()),
        pod.uid.as_str(),
    ];
    sink.put_some(&POD_MEMORY, &labels, pod.memory_bytes.map(|bytes| bytes as f64));
    let Some(detail) = &pod.detail else { return };
    sink.put_some(&POD_CPU, &labels, detail.cgroup.cpu.and_then(|cpu| cpu.usage_seconds));
    let groups = std::iter::once(&detail.cgroup).chain(detail.containers.iter().map(|one| &one.cgroup));
    let throttled = groups.filter_map(|group| group.cpu?.throttled_seconds).reduce(|sum, one| sum + one);
    sink.put_some(&POD_THROTTLED, &labels, throttled);
    let kills = detail.cgroup.memory.events.map(|events| events.oom_kill as f64);
    sink.put_some(&POD_OOM_KILLS, &labels, kills);
}

fn of_group(name: &str, group: &Group, sink: &mut Sink) {
    let number = |value: Option<u64>| value.map(|value| value as f64);
    let limit = |value: Option<Max>| number(value.and_then(Max::at));
    sink.put_some(&MEMORY, &[name], number(group.memory.current_bytes));
    sink.put_some(&MEMORY_LIMIT, &[name], limit(group.memory.max_bytes));
    if let Some(events) = group.memory.events {
        for (event, count) in [
            ("low", events.low),
            ("high", events.high),
            ("max", events.max),
            ("oom", events.oom),
            ("oom_kill", Some(events.oom_kill)),
            ("oom_group_kill", events.oom_group_kill),
        ] {
            sink.put_some(&MEMORY_EVENTS, &[name, event], number(count));
        }
    }
    if let Some(cpu) = group.cpu {
        sink.put_some(&CPU, &[name], cpu.usage_seconds);
        sink.put_some(&PERIODS, &[name], number(cpu.periods));
        sink.put_some(&THROTTLED_PERIODS, &[name], number(cpu.throttled_periods));
        sink.put_some(&THROTTLED, &[name], cpu.throttled_seconds);
    }
    sink.put_some(&PIDS, &[name], number(group.pids.current));
    sink.put_some(&PIDS_LIMIT, &[name], limit(group.pids.max));
    if let Some(io) = group.io {
        sink.put(&IO, &[name, "read"], io.read_bytes as f64);
        sink.put(&IO, &[name, "write"], io.written_bytes as f64);
    }
    if let Some(Pressure::Read(measured)) = &group.pressure {
        for (resource, stalls) in [("cpu", measured.cpu), ("memory", measured.memory), ("io", measured.io)] {
            let Some(stalls) = stalls else { continue };
            for (kind, stall) in [("some", stalls.some), ("full", stalls.full)] {
                sink.put_some(&STALLED, &[name, resource, kind], stall.map(|stall| stall.total_seconds));
            }
        }
    }
}
