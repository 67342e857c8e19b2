//! Totals and first few of all pods. Pure.

use std::collections::BTreeMap;

use crate::collect::cgroups::psi::Pressure;
use crate::collect::cgroups::reading::{Count, Listed, PodEntry, Ranked, TOP};
use crate::collect::cgroups::tree::Tree;
use crate::collect::pressure::Stalls;

pub(super) fn count(tree: Option<&Tree>) -> BTreeMap<&'static str, Count> {
    let mut counts = BTreeMap::new();
    for pod in tree.iter().flat_map(|tree| tree.pods.values()) {
        let count: &mut Count = counts.entry(pod.qos.name()).or_default();
        count.pods += 1;
        count.containers += pod.containers() as u64;
        if let Some(bytes) = pod.memory_bytes {
            *count.memory_bytes.get_or_insert(0) += bytes;
        }
    }
    counts
}

fn listed(pod: &PodEntry) -> Listed {
    Listed {
        pod: pod.label(),
        memory_bytes: pod.memory_bytes,
        container: None,
        throttled_percent: None,
        cpu_some_avg60: None,
        memory_full_avg60: None,
        io_full_avg60: None,
    }
}

/// Pods that wait for memory or for I/O, those that wait most first.
pub(super) fn stalled(pods: &[PodEntry]) -> Vec<Listed> {
    let mut found = Vec::new();
    for pod in pods {
        let pressure = pod.detail.as_ref().and_then(|detail| detail.cgroup.pressure.as_ref());
        let Some(Pressure::Read(measured)) = pressure else { continue };
        let full = |stalls: Option<Stalls>| stalls?.full.map(|full| full.avg60);
        let (memory, io) = (full(measured.memory), full(measured.io));
        // A percent is noise.
        let most = [memory, io].into_iter().flatten().fold(1.0, f64::max);
        if most > 1.0 {
            let entry = Listed { memory_full_avg60: memory, io_full_avg60: io, ..listed(pod) };
            found.push((most, entry));
        }
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    found.into_iter().take(TOP).map(|(_, entry)| entry).collect()
}

pub(super) fn ranked<'a>(pods: impl Iterator<Item = &'a PodEntry>, most: usize) -> Vec<Listed> {
    let mut pods: Vec<&PodEntry> = pods.collect();
    pods.sort_by_key(|pod| std::cmp::Reverse(pod.memory_bytes));
    pods.into_iter().take(most).map(listed).collect()
}

pub(super) fn without_limit(pods: &[PodEntry]) -> Ranked {
    let without = || pods.iter().filter(|pod| pod.has_memory_limit() == Some(false));
    Ranked {
        count: without().count() as u64,
        of: pods.iter().filter(|pod| pod.has_memory_limit().is_some()).count() as u64,
        top: ranked(without(), TOP),
    }
}

/// Pods with a group that was throttled, by the group that was most.
pub(super) fn throttled(pods: &[PodEntry]) -> Vec<Listed> {
    let mut found = Vec::new();
    for pod in pods {
        let Some(detail) = &pod.detail else { continue };
        let own = (detail.lately, None, &detail.cgroup);
        let containers = detail.containers.iter().map(|one| (one.lately, Some(one), &one.cgroup));
        let most = std::iter::once(own)
            .chain(containers)
            .filter_map(|(lately, one, group)| Some((lately?.throttled_percent?, one, group)))
            .filter(|(percent, ..)| *percent > 0.0)
            .max_by(|a, b| a.0.total_cmp(&b.0));
        let Some((percent, container, group)) = most else { continue };
        let cpu = group.pressure.as_ref().and_then(Pressure::cpu);
        found.push(Listed {
            container: container.map(|one| one.name.clone().or_else(|| one.id.clone()).unwrap_or_default()),
            throttled_percent: Some(percent),
            cpu_some_avg60: cpu.and_then(|cpu| cpu.some).map(|some| some.avg60),
            ..listed(pod)
        });
    }
    let percent = |one: &Listed| one.throttled_percent.unwrap_or(0.0);
    found.sort_by(|a, b| percent(b).total_cmp(&percent(a)));
    found.truncate(TOP);
    found
}
