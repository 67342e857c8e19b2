//! The metrics.

use super::Reading;
use crate::host::dial::Why;
use crate::metrics::{Family, Sink};

pub(super) static FAMILIES: &[&Family] = &[
    &UP,
    &FAILED,
    &STEP_SECONDS,
    &TOTAL_SECONDS,
    &STATUS,
    &OFFSET,
    &OFFSET_ERROR,
    &CERTIFICATE,
    &CONNECTIONS,
    &UNACKNOWLEDGED,
    &RETRANSMITS,
    &WAITED,
];

static UP: Family = Family::gauge(
    "nodewhy_api_server_answers",
    "1: the newest dial of the API server was answered, with any status; 0: it was not.",
);
static FAILED: Family =
    Family::gauge("nodewhy_api_server_dial_failed", "1: the newest dial failed, and why.").by(&["why"]);
static STEP_SECONDS: Family = Family::gauge(
    "nodewhy_api_server_dial_step_seconds",
    "Time for a step of the newest dial (resolve, connect, tls, answer), for those that ended well.",
)
.by(&["step"]);
static TOTAL_SECONDS: Family =
    Family::gauge("nodewhy_api_server_dial_seconds", "Time for the newest dial, however it ended.");
static STATUS: Family =
    Family::gauge("nodewhy_api_server_livez_status", "HTTP status of /livez; 401 and 403 are answers.");
static OFFSET: Family = Family::gauge(
    "nodewhy_api_server_clock_offset_seconds",
    "The node's clock less the API server's, by its Date header.",
);
static OFFSET_ERROR: Family =
    Family::gauge("nodewhy_api_server_clock_offset_error_seconds", "By how much that offset may be off.");
static CERTIFICATE: Family = Family::gauge(
    "nodewhy_api_server_certificate_not_after_seconds",
    "When the certificate that the API server shows expires, in seconds since 1970.",
);
static CONNECTIONS: Family = Family::gauge(
    "nodewhy_kubelet_api_connections",
    "The kubelet's TCP connections to the API server; all of the node's where its own cannot be told.",
)
.by(&["state"]);
static UNACKNOWLEDGED: Family = Family::gauge(
    "nodewhy_kubelet_api_unacknowledged_bytes",
    "Bytes on those connections that are not acknowledged, sent or not.",
);
static RETRANSMITS: Family = Family::gauge(
    "nodewhy_kubelet_api_retransmits",
    "The most timeouts one after another on one of those connections.",
);
static WAITED: Family = Family::gauge(
    "nodewhy_kubelet_api_unacknowledged_seconds",
    "For how long the oldest byte on those connections has waited for its acknowledgement, at least.",
);

const WHYS: [Why; 8] = [
    Why::NameNotResolved,
    Why::NoRoute,
    Why::Refused,
    Why::TimedOut,
    Why::Reset,
    Why::Tls,
    Why::NotHttp,
    Why::Failed,
];

pub(super) fn metrics(reading: &Reading, sink: &mut Sink) {
    let dial = &reading.dial;
    sink.put(&UP, &[], f64::from(u8::from(dial.answer.is_some())));
    let why = dial.error.as_ref().map(|error| error.why);
    for known in WHYS {
        sink.put(&FAILED, &[known.word()], f64::from(u8::from(why == Some(known))));
    }
    for (step, took) in [
        ("resolve", dial.resolve_seconds),
        ("connect", dial.connect_seconds),
        ("tls", dial.tls_seconds),
        ("answer", dial.answer_seconds),
    ] {
        sink.put_some(&STEP_SECONDS, &[step], took);
    }
    sink.put(&TOTAL_SECONDS, &[], dial.total_seconds);
    sink.put_some(&STATUS, &[], dial.answer.as_ref().map(|answer| f64::from(answer.status)));
    sink.put_some(&OFFSET, &[], reading.clock_offset_seconds);
    sink.put_some(&OFFSET_ERROR, &[], reading.clock_offset_error_seconds);
    let until = dial.certificate.as_ref().and_then(|certificate| certificate.not_after);
    sink.put_some(&CERTIFICATE, &[], until.map(|until| until.as_second() as f64));
    let Some(connections) = &reading.connections else { return };
    for (state, count) in &connections.by_state {
        sink.put(&CONNECTIONS, &[state], *count as f64);
    }
    sink.put(&UNACKNOWLEDGED, &[], connections.unacknowledged_bytes as f64);
    sink.put(&RETRANSMITS, &[], connections.retransmits as f64);
    sink.put(&WAITED, &[], connections.waited_seconds);
}
