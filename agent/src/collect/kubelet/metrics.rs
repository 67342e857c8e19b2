//! What the kubelet's own API says, as metrics. Pure.

use super::Api;
use crate::metrics::{Family, Sink};

pub(super) static API_UP: Family = Family::gauge(
    "nodewhy_kubelet_api_up",
    "Whether the kubelet's own API gave its metrics when asked last; absent while no token is set.",
);
pub(super) static PLEG_AGE: Family = Family::gauge(
    "nodewhy_kubelet_pleg_age_seconds",
    "How long ago the kubelet last listed its containers, when its metrics were read.",
);
pub(super) static RELIST_P99: Family = Family::gauge(
    "nodewhy_kubelet_relist_p99_seconds",
    "The 99th percentile of the kubelet's relists between the newest two readings of its metrics.",
);
pub(super) static RELISTS: Family =
    Family::counter("nodewhy_kubelet_relists_total", "Relists that the kubelet has ended since it began.");
pub(super) static OPERATIONS: Family = Family::counter(
    "nodewhy_kubelet_runtime_operations_total",
    "The kubelet's calls to the runtime since it began.",
)
.by(&["operation_type"]);
pub(super) static OPERATION_ERRORS: Family = Family::counter(
    "nodewhy_kubelet_runtime_operations_errors_total",
    "The kubelet's calls to the runtime that failed; no series for a kind that never did.",
)
.by(&["operation_type"]);
pub(super) static OPERATION_SECONDS: Family = Family::counter(
    "nodewhy_kubelet_runtime_operations_seconds_total",
    "Time that the kubelet waited for its calls to the runtime.",
)
.by(&["operation_type"]);
pub(super) static EVICTIONS: Family =
    Family::counter("nodewhy_kubelet_evictions_total", "Pods that the kubelet has evicted since it began.")
        .by(&["eviction_signal"]);
pub(super) static CERTIFICATE_TTL: Family = Family::gauge(
    "nodewhy_kubelet_certificate_ttl_seconds",
    "For how long the kubelet's client certificate is good; negative when it has expired.",
);
pub(super) static RENEW_ERRORS: Family = Family::counter(
    "nodewhy_kubelet_certificate_renew_errors_total",
    "Renewals of the kubelet's client certificate that failed.",
);
pub(super) static REQUESTS: Family = Family::counter(
    "nodewhy_kubelet_api_server_requests_total",
    "The kubelet's requests to the API server by status code; <error>: no answer.",
)
.by(&["code"]);
pub(super) static RUNNING_PODS: Family =
    Family::gauge("nodewhy_kubelet_running_pods", "Pods that run, as the kubelet counts them.");
pub(super) static RUNNING_CONTAINERS: Family =
    Family::gauge("nodewhy_kubelet_containers", "Containers, as the kubelet counts them.").by(&["state"]);

pub(super) fn of_api(api: &Api, sink: &mut Sink) {
    if api.missing.is_none() && (api.metrics.is_some() || api.metrics_error.is_some()) {
        sink.put(&API_UP, &[], f64::from(u8::from(api.metrics_error.is_none())));
    }
    let Some(metrics) = &api.metrics else { return };
    sink.put_some(&PLEG_AGE, &[], metrics.pleg_age_seconds);
    let interval = metrics.interval.as_ref();
    sink.put_some(&RELIST_P99, &[], interval.and_then(|interval| interval.relist_p99_seconds));
    sink.put_some(&RELISTS, &[], metrics.relist_seconds.count);
    for (kind, operations) in &metrics.operations {
        sink.put_some(&OPERATIONS, &[kind], operations.total);
        sink.put_some(&OPERATION_ERRORS, &[kind], operations.errors);
        sink.put_some(&OPERATION_SECONDS, &[kind], operations.seconds.sum);
    }
    for (family, values) in [
        (&EVICTIONS, &metrics.evictions),
        (&REQUESTS, &metrics.api_requests),
        (&RUNNING_CONTAINERS, &metrics.running_containers),
    ] {
        for (label, value) in values {
            sink.put(family, &[label], *value);
        }
    }
    sink.put_some(&CERTIFICATE_TTL, &[], metrics.certificate_ttl_seconds);
    sink.put_some(&RENEW_ERRORS, &[], metrics.certificate_renew_errors);
    sink.put_some(&RUNNING_PODS, &[], metrics.running_pods);
}
