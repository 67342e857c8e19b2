use std::time::Duration;

use nodewhy_proto::{EventBody, Evidence, Severity, Subject, SubjectKind};

use super::{Certificate, Owner, Reading};
use crate::collector::{Abnormal, Happening, Noticed, Pair};
use crate::thresholds::{Heuristic, Limit, Thresholds};

pub(super) const LIMITS: &[&Heuristic] = &[&EXPIRING];

static EXPIRING: Heuristic = Heuristic {
    name: "certificate_expiring_hours",
    about: "a certificate that ends in fewer hours is about to",
    value: 24.0,
};
/// No more at once.
const MOST: usize = 10;

pub(super) fn detect(pair: Pair<'_, Reading>, thresholds: &Thresholds, noticed: &mut Noticed) {
    for (at, change) in &pair.now.news {
        let key = format!("change/{}/{}/{}", change.what, change.name, at.wall.as_nanosecond());
        let body = EventBody::Changed(change.clone());
        noticed.happenings.push(Happening { key: Some(key), at: Some(*at), body });
    }
    let limit = thresholds.limit(&EXPIRING);
    let states =
        pair.now.certificates.iter().filter_map(|certificate| ends(certificate, limit, pair.at.wall));
    noticed.states.extend(states.take(MOST));
}

fn ends(certificate: &Certificate, limit: Limit, now: jiff::Timestamp) -> Option<Abnormal> {
    let end = certificate.not_after?;
    let hours = end.duration_since(now).as_secs_f64() / 3600.0;
    if hours >= limit.value {
        return None;
    }
    let path = &certificate.path;
    let (finding, since, summary) = if hours <= 0.0 {
        ("certificate_expired", Some(end), format!("the certificate in {path} ended at {end}"))
    } else {
        ("certificate_expiring", None, format!("the certificate in {path} ends at {end}, in {hours:.1} h"))
    };
    // The kubelet signs this one itself where nobody else does, never renews it, and few verify it.
    let severity = if path.ends_with("/pki/kubelet.crt") { Severity::Info } else { Severity::Warning };
    let kind = match certificate.owner {
        Owner::ControlPlane => SubjectKind::ControlPlane,
        Owner::Runtime => SubjectKind::Runtime,
        _ => SubjectKind::Kubelet,
    };
    Some(Abnormal {
        finding,
        subject: Subject::new(kind, path),
        severity,
        summary,
        evidence: vec![
            Evidence::new(format!("notAfter {end}"), path)
                .with_time(now)
                .with_value(hours, "hours")
                .with_threshold(limit.value, limit.origin),
            Evidence::new("the file alone: a process may still present an older or newer one", "nodewhy")
                .with_time(now),
        ],
        since,
        hold: Duration::ZERO,
        clear_after: Duration::ZERO,
    })
}
