//! The metric families of changes.

use super::{Owner, Reading};
use crate::metrics::{Family, Sink};

pub(super) const FAMILIES: &[&Family] = &[&NEWEST, &COUNT, &RESTART, &EXPIRY];
static NEWEST: Family = Family::gauge(
    "nodewhy_change_newest_timestamp_seconds",
    "When something of the kind was last changed, of the last 14 days.",
)
.by(&["what"]);
static COUNT: Family =
    Family::gauge("nodewhy_changes", "Changes of the last 14 days that are known.").by(&["what"]);
static RESTART: Family = Family::gauge(
    "nodewhy_changes_need_restart",
    "Programs and configurations that are newer than the kubelet or runtime that read them at its start.",
);
static EXPIRY: Family = Family::gauge(
    "nodewhy_certificate_expiry_timestamp_seconds",
    "When the first of the certificates' files ends, by who uses it.",
)
.by(&["owner"]);

pub(super) fn metrics(reading: &Reading, sink: &mut Sink) {
    for what in ["kernel", "package", "binary", "configuration", "certificate"] {
        // Newest first.
        let mut of_kind = reading.all.iter().filter(|change| change.what == what);
        let newest = of_kind.next();
        sink.put_some(&NEWEST, &[what], newest.map(|change| change.at.as_second() as f64));
        sink.put(&COUNT, &[what], (of_kind.count() + usize::from(newest.is_some())) as f64);
    }
    sink.put(&RESTART, &[], reading.needs_restart.len() as f64);
    for (owner, word) in [(Owner::Kubelet, "kubelet"), (Owner::ControlPlane, "control_plane")] {
        let ends = reading.certificates.iter().filter(|certificate| certificate.owner == owner);
        let first = ends.filter_map(|certificate| certificate.not_after).min();
        sink.put_some(&EXPIRY, &[word], first.map(|end| end.as_second() as f64));
    }
}
