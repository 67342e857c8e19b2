//! What is abnormal about the table.

use std::time::Duration;

use nodewhy_proto::{Evidence, Severity, Subject};

use super::Reading;
use crate::collector::{Abnormal, Noticed, Pair};
use crate::thresholds::{Heuristic, Limit, Thresholds};

/// See its `about`.
pub(super) static TABLE_FULL: Heuristic = Heuristic {
    name: "conntrack_full_percent",
    about: "share of nf_conntrack_max from which on the table of connections is full",
    value: 95.0,
};
/// See its `about`.
pub(super) static TABLE_HIGH: Heuristic = Heuristic {
    name: "conntrack_high_percent",
    about: "share of nf_conntrack_max from which on dropped and refused entries are the full table's",
    value: 80.0,
};
/// See its `about`.
pub(super) static DROPS: Heuristic = Heuristic {
    name: "conntrack_drops_per_second",
    about: "entries that conntrack drops or cannot insert a second, with a table that is nearly full",
    value: 1.0,
};

const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";
/// What counts as lost: dropped for want of room, room made by dropping another, not inserted.
const LOST: &[&str] = &["drop", "early_drop", "insert_failed"];

pub(super) fn detect(pair: Pair<'_, Reading>, thresholds: &Thresholds, noticed: &mut Noticed) {
    let reading = pair.now;
    let Some((percent, limit)) = reading.used_percent.zip(reading.limit) else { return };
    let used = |against: Limit| {
        let text = format!("{} of {limit} entries", reading.entries);
        Evidence::new(text, COUNT)
            .with_time(pair.at.wall)
            .with_value(percent, "percent")
            .with_threshold(against.value, against.origin)
    };
    let full = thresholds.limit(&TABLE_FULL);
    if percent >= full.value {
        let mut evidence = vec![used(full)];
        evidence.extend(lost(reading, &pair));
        evidence.extend(reading.top.iter().flat_map(|top| top.evidence()));
        noticed.states.push(Abnormal {
            finding: "conntrack_table_full",
            subject: Subject::node(),
            severity: Severity::Critical,
            summary: format!("the table of connections is full: {} of {limit} entries", reading.entries),
            evidence,
            since: None,
            hold: Duration::ZERO,
            clear_after: Duration::from_secs(30),
        });
    }
    let (high, drops) = (thresholds.limit(&TABLE_HIGH), thresholds.limit(&DROPS));
    let rate: f64 =
        reading.per_second.iter().flat_map(|rates| LOST.iter().filter_map(|name| rates.get(name))).sum();
    if percent >= high.value && rate > drops.value {
        let mut evidence: Vec<Evidence> = lost(reading, &pair).into_iter().collect();
        evidence.push(
            Evidence::new(format!("{rate:.1} a second together, above {}", drops.value), "ctnetlink")
                .with_time(pair.at.wall)
                .with_value(rate, "per second")
                .with_threshold(drops.value, drops.origin),
        );
        evidence.push(used(high));
        noticed.states.push(Abnormal {
            finding: "conntrack_drops",
            subject: Subject::node(),
            severity: Severity::Warning,
            summary: format!("conntrack drops or refuses {rate:.0} connections a second"),
            evidence,
            since: None,
            hold: Duration::from_secs(10),
            clear_after: Duration::from_secs(30),
        });
    }
}

fn lost(reading: &Reading, pair: &Pair<'_, Reading>) -> Option<Evidence> {
    let rates = reading.per_second.as_ref()?;
    let parts: Vec<String> =
        LOST.iter().filter_map(|name| Some(format!("{name} {:.1}/s", rates.get(name)?))).collect();
    let source = reading.statistics_from?;
    (!parts.is_empty()).then(|| Evidence::new(parts.join(", "), source).with_time(pair.at.wall))
}
