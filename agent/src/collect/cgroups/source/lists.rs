//! Totals and first few of all pods. Pure.

use std::collections::BTreeMap;

use crate::collect::cgroups::psi::Pressure;
use crate::collect::cgroups::reading::{Count, PodEntry, Ranked, Service, TOP};
use crate::collect::cgroups::tree::Tree;

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

fn listed(pod: &PodEntry) -> Service {
    Service {
        pod: pod.label(),
        memory_bytes: pod.memory_bytes,
        container: None,
        throttled_percent: None,
        cpu_some_avg60: None,
    }
}

pub(super) fn ranked<'a>(pods: impl Iterator<Item = &'a PodEntry>, most: usize) -> Vec<Service> {
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
pub(super) fn throttled(pods: &[PodEntry]) -> Vec<Service> {
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
        found.push(Service {
            container: container.map(|one| one.name.clone().or_else(|| one.id.clone()).unwrap_or_default()),
            throttled_percent: Some(percent),
            cpu_some_avg60: cpu.and_then(|cpu| cpu.some).map(|some| some.avg60),
            ..listed(pod)
        });
    }
    found.sort_by(|a, b| {
        b.throttled_percent.partial_cmp(&a.throttled_percent).unwrap_or(std::cmp::Ordering::Equal)
    });
    found.truncate(TOP);
    found
}
