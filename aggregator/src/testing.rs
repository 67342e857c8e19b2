//! What tests build their input from.

use jiff::Timestamp;
use nodewhy_proto::{
    Conclusion, ConditionStatus, Event, EventBody, Finding, Incident, Revision, RootCause, Severity, Subject,
    Verdict,
};
use serde_json::json;

use crate::watch::{TestEvent, TestLease, TestNode};

/// So many seconds after the tests' beginning of time.
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_795_244_400 + seconds).unwrap()
}

/// A critical finding of the `runtime` collector that began and was noticed then.
pub(crate) fn finding(name: &str, began: i64) -> Finding {
    Finding {
        id: format!("{name}@{began}"),
        finding: name.to_owned(),
        collector: "runtime".to_owned(),
        subject: Subject::node(),
        severity: Severity::Critical,
        began: at(began),
        noticed: at(began),
        ended: None,
        summary: name.to_owned(),
        evidence: Vec::new(),
    }
}

pub(crate) fn event(number: u64, seconds: i64, body: EventBody) -> Event {
    Event {
        id: format!("boot/{number}"),
        cursor: number.to_string(),
        at: at(seconds),
        boot_seconds: 1.0,
        boot_id: None,
        source: "agent".to_owned(),
        body,
    }
}

pub(crate) fn verdict(node: &str, conclusion: Conclusion, ready: Option<ConditionStatus>) -> Verdict {
    Verdict {
        node: node.to_owned(),
        at: at(0),
        conclusion,
        ready,
        ready_since: None,
        ready_message: String::new(),
        roots: Vec::new(),
        cycles: Vec::new(),
        contributing: Vec::new(),
        unexplained: Vec::new(),
        ruled_out: Vec::new(),
        cannot_tell: Vec::new(),
        blind: Vec::new(),
    }
}

pub(crate) fn root(cause: &str, since: Timestamp) -> RootCause {
    RootCause {
        cause: cause.to_owned(),
        title: cause.to_owned(),
        node: "n".to_owned(),
        subject: Subject::node(),
        since: Some(since),
        certainty: 0.9,
        because: Vec::new(),
        chain: Vec::new(),
        remedy: Vec::new(),
    }
}

pub(crate) fn incident(id: &str, node: &str, opened: i64, revisions: u32) -> Incident {
    Incident {
        id: id.to_owned(),
        node: node.to_owned(),
        began: at(opened - 1),
        opened: at(opened),
        lost_ready: None,
        ended: None,
        revisions: (1..=revisions)
            .map(|revision| Revision {
                revision,
                at: at(opened + i64::from(revision)),
                changed_by: format!("because {revision}"),
                verdict: verdict(node, Conclusion::NoCauseFound, None),
            })
            .collect(),
    }
}

pub(crate) fn node_object(name: &str, uid: &str, ready: &str) -> TestNode {
    serde_json::from_value(json!({
        "metadata": {"name": name, "uid": uid, "resourceVersion": "1"},
        "status": {"conditions": [{"type": "Ready", "status": ready, "reason": "r", "message": "m"}]},
    }))
    .unwrap()
}

pub(crate) fn lease_object(name: &str, renewed: Timestamp) -> TestLease {
    serde_json::from_value(json!({
        "metadata": {"name": name, "resourceVersion": "1"},
        "spec": {"renewTime": renewed, "leaseDurationSeconds": 40},
    }))
    .unwrap()
}

pub(crate) fn event_object(node: &str, name: &str, last: Timestamp, count: u32) -> TestEvent {
    serde_json::from_value(json!({
        "metadata": {"name": name, "resourceVersion": "1"},
        "involvedObject": {"kind": "Node", "name": node},
        "reason": "SystemOOM", "message": "m", "source": {"component": "kubelet"},
        "lastTimestamp": last, "count": count,
    }))
    .unwrap()
}
