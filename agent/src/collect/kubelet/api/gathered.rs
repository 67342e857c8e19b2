//! What matters of the kubelet's metrics (pkg/kubelet/metrics/metrics.go; all of them alpha: what a version does not
//! have is absent here).

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::promtext::{Histogram, Part, Sample};

/// The families that are read.
pub(super) static WANTED: &[&str] = &[
    "kubelet_pleg_last_seen_seconds",
    "kubelet_pleg_relist_duration_seconds",
    "kubelet_pleg_relist_interval_seconds",
    "kubelet_pleg_discard_events",
    "kubelet_runtime_operations_total",
    "kubelet_runtime_operations_errors_total",
    "kubelet_runtime_operations_duration_seconds",
    "kubelet_run_podsandbox_errors_total",
    "kubelet_evictions",
    "kubelet_certificate_manager_client_ttl_seconds",
    "kubelet_certificate_manager_client_expiration_renew_errors",
    "rest_client_requests_total",
    "rest_client_rate_limiter_duration_seconds",
    "kubelet_running_pods",
    "kubelet_running_containers",
    "kubelet_started_pods_errors_total",
    "kubelet_orphaned_runtime_pods_total",
    "kubelet_pod_worker_duration_seconds",
    "volume_manager_total_volumes",
    "kubelet_http_inflight_requests",
];

/// More labels than any kubelet has are a peer's attempt at our memory.
const MOST_LABELS: usize = 64;
/// A relist that began longer ago is suspect; a well one begins each second.
const PLEG_SUSPECT_SECONDS: f64 = 20.0;

/// One kind of call to the runtime.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Operations {
    /// How many.
    pub total: Option<f64>,
    /// How many of them failed; no failure, no series.
    pub errors: Option<f64>,
    /// How long they took.
    pub seconds: Histogram,
}

/// The kubelet's metrics, as they were. Counters begin with its process.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Gathered {
    /// When it last listed its containers.
    pub pleg_last_seen: Option<Timestamp>,
    /// How long before the answer that was.
    pub pleg_age_seconds: Option<f64>,
    /// How long its relists took.
    pub relist_seconds: Histogram,
    /// How long between two relists.
    pub relist_interval_seconds: Histogram,
    /// Events that its PLEG threw away.
    pub pleg_discarded_events: Option<f64>,
    /// Calls to the runtime, by kind.
    pub operations: BTreeMap<String, Operations>,
    /// Sandboxes that could not be made, of all runtime handlers.
    pub sandbox_errors: Option<f64>,
    /// Pods that could not be started.
    pub start_errors: Option<f64>,
    /// Pods that run and that it knows of no more.
    pub orphaned_pods: Option<f64>,
    /// How long its workers took for a pod.
    pub pod_worker_seconds: Histogram,
    /// Evictions, by signal.
    pub evictions: BTreeMap<String, f64>,
    /// For how long its client certificate is good; negative when it has expired. `None` where it has none that is
    /// renewed.
    pub certificate_ttl_seconds: Option<f64>,
    /// Renewals of it that failed.
    pub certificate_renew_errors: Option<f64>,
    /// Its requests to the API server, by status code; `<error>`: no answer.
    pub api_requests: BTreeMap<String, f64>,
    /// How long its own rate limiter held requests back.
    pub api_rate_limited_seconds: Histogram,
    /// Pods that run.
    pub running_pods: Option<f64>,
    /// Containers, by state.
    pub running_containers: BTreeMap<String, f64>,
    /// Volumes: `actual_state_of_world`, `desired_state_of_world`.
    pub volumes: BTreeMap<String, f64>,
    /// Requests to the kubelet that it works at.
    pub http_inflight: Option<f64>,
    /// Lines of these that made no sense.
    pub broken_lines: u64,
    /// Since the metrics before; `None`: there are none, or the kubelet began anew.
    pub interval: Option<Interval>,
}

/// What happened between two readings of the metrics.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Interval {
    /// How long it was.
    pub seconds: f64,
    /// How many relists ended in it.
    pub relists: Option<f64>,
    /// Their 99th percentile.
    pub relist_p99_seconds: Option<f64>,
    /// The 99th percentile of the time between two.
    pub relist_interval_p99_seconds: Option<f64>,
    /// The kind of call to the runtime whose mean was longest, and that mean.
    pub slowest_operation: Option<(String, f64)>,
    /// Evictions in it, by signal; those that grew alone.
    pub evictions: BTreeMap<String, f64>,
    /// Requests to the API server in it that failed or had no answer (5xx, 429, `<error>`).
    pub api_failures: f64,
}

impl Gathered {
    /// Takes a sample.
    pub(super) fn take(&mut self, sample: &Sample<'_>) {
        let value = sample.value;
        match sample.family {
            "kubelet_pleg_last_seen_seconds" => self.pleg_last_seen = instant(value),
            "kubelet_pleg_relist_duration_seconds" => self.relist_seconds.add(sample.part, value),
            "kubelet_pleg_relist_interval_seconds" => self.relist_interval_seconds.add(sample.part, value),
            "kubelet_pleg_discard_events" => add(&mut self.pleg_discarded_events, value),
            "kubelet_runtime_operations_total" => {
                self.operation(sample, |operations| add(&mut operations.total, value));
            }
            "kubelet_runtime_operations_errors_total" => {
                self.operation(sample, |operations| add(&mut operations.errors, value));
            }
            "kubelet_runtime_operations_duration_seconds" => {
                let part = sample.part;
                self.operation(sample, |operations| operations.seconds.add(part, value));
            }
            "kubelet_run_podsandbox_errors_total" => add(&mut self.sandbox_errors, value),
            "kubelet_started_pods_errors_total" => add(&mut self.start_errors, value),
            "kubelet_orphaned_runtime_pods_total" => add(&mut self.orphaned_pods, value),
            "kubelet_pod_worker_duration_seconds" => self.pod_worker_seconds.add(sample.part, value),
            "kubelet_evictions" => by(&mut self.evictions, sample, "eviction_signal"),
            "kubelet_certificate_manager_client_ttl_seconds" => {
                // Infinite where there is no certificate.
                self.certificate_ttl_seconds = Some(value).filter(|value| value.is_finite());
            }
            "kubelet_certificate_manager_client_expiration_renew_errors" => {
                add(&mut self.certificate_renew_errors, value);
            }
            "rest_client_requests_total" => by(&mut self.api_requests, sample, "code"),
            "rest_client_rate_limiter_duration_seconds" => {
                self.api_rate_limited_seconds.add(sample.part, value);
            }
            "kubelet_running_pods" => add(&mut self.running_pods, value),
            "kubelet_running_containers" => by(&mut self.running_containers, sample, "container_state"),
            "volume_manager_total_volumes" => by(&mut self.volumes, sample, "state"),
            "kubelet_http_inflight_requests" => add(&mut self.http_inflight, value),
            _ => {}
        }
    }

    fn operation(&mut self, sample: &Sample<'_>, take: impl FnOnce(&mut Operations)) {
        let Some(kind) = sample.label("operation_type") else { return };
        if self.operations.len() < MOST_LABELS || self.operations.contains_key(kind) {
            take(self.operations.entry(kind.to_owned()).or_default());
        }
    }

    /// How long before this instant it listed its containers last.
    pub(super) fn pleg_age(&self, now: Timestamp) -> Option<f64> {
        let age = now.duration_since(self.pleg_last_seen?).as_secs_f64();
        // A second off: the kubelet tells whole ones.
        (age > -2.0).then_some(age.max(0.0))
    }

    /// Whether its relist looks stuck. The wall clock may have been stepped: where it is known how many relists ended,
    /// that counts too.
    pub(in crate::collect::kubelet) fn pleg_is_suspect(&self) -> bool {
        let stands =
            self.interval.as_ref().and_then(|interval| interval.relists).is_none_or(|ended| ended == 0.0);
        stands && self.pleg_age_seconds.is_some_and(|age| age > PLEG_SUSPECT_SECONDS)
    }

    /// What happened since `before`; `None`: the kubelet began anew.
    pub(super) fn since(&self, before: &Gathered, passed: Duration) -> Option<Interval> {
        let relists = self.relist_seconds.since(&before.relist_seconds)?;
        let intervals = self.relist_interval_seconds.since(&before.relist_interval_seconds)?;
        let means = self.operations.iter().filter_map(|(kind, now)| {
            let before = before.operations.get(kind).map_or_else(Default::default, |it| it.seconds.clone());
            let seconds = match before.count {
                Some(_) => now.seconds.since(&before)?,
                None => now.seconds.clone(),
            };
            Some((kind.clone(), seconds.mean()?))
        });
        let grown = |now: &BTreeMap<String, f64>, before: &BTreeMap<String, f64>| -> BTreeMap<String, f64> {
            now.iter()
                .map(|(name, now)| (name.clone(), now - before.get(name).copied().unwrap_or(0.0)))
                .filter(|(_, more)| *more > 0.0)
                .collect()
        };
        let requests = grown(&self.api_requests, &before.api_requests);
        let is_failure = |code: &str| code.starts_with('5') || code == "429" || code == "<error>";
        Some(Interval {
            seconds: passed.as_secs_f64(),
            relists: relists.count,
            relist_p99_seconds: relists.quantile(0.99),
            relist_interval_p99_seconds: intervals.quantile(0.99),
            slowest_operation: means.max_by(|one, other| one.1.total_cmp(&other.1)),
            evictions: grown(&self.evictions, &before.evictions),
            api_failures: requests.iter().filter(|(code, _)| is_failure(code)).map(|(_, more)| more).sum(),
        })
    }
}

fn add(sum: &mut Option<f64>, value: f64) {
    if value.is_finite() {
        *sum.get_or_insert(0.0) += value;
    }
}

fn by(map: &mut BTreeMap<String, f64>, sample: &Sample<'_>, label: &str) {
    let Some(name) = sample.label(label).filter(|_| sample.part == Part::Value && sample.value.is_finite())
    else {
        return;
    };
    if map.len() < MOST_LABELS || map.contains_key(name) {
        *map.entry(name.to_owned()).or_insert(0.0) += sample.value;
    }
}

/// Seconds since 1970. Zero: it was never set.
fn instant(seconds: f64) -> Option<Timestamp> {
    let whole = (seconds.is_finite() && seconds > 0.0 && seconds < 1e11).then_some(seconds)?;
    Timestamp::UNIX_EPOCH.checked_add(Duration::from_secs_f64(whole)).ok()
}
