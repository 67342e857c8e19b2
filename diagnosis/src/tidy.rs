//! Puts a case's lists in order of time and rids them of repeats, so that the order in which reports came, a
//! report told twice, or one told late never changes a verdict.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use jiff::Timestamp;
use nodewhy_proto::{Event, Fact, FactBody, Finding};
use serde::Serialize;

use crate::{Case, NodeCase, Peer, Source};

impl Case {
    /// Every list of the case in order, each report once.
    pub(crate) fn tidy(&mut self) {
        self.nodes.values_mut().for_each(NodeCase::tidy);
        if let Source::Known(cluster) = &mut self.cluster {
            cluster.peers = newest_peers(std::mem::take(&mut cluster.peers));
        }
    }

    /// Whether [`Case::tidy`] would change nothing.
    pub(crate) fn is_tidy(&self) -> bool {
        let peers = match &self.cluster {
            Source::Known(cluster) => cluster.peers.is_sorted_by(|a, b| a.name < b.name),
            Source::Missing { .. } => true,
        };
        peers && self.nodes.values().all(NodeCase::is_tidy)
    }
}

impl NodeCase {
    pub(crate) fn tidy(&mut self) {
        if let Source::Known(findings) = &mut self.findings {
            *findings = newest_findings(std::mem::take(findings));
        }
        if let Source::Known(events) = &mut self.events {
            *events = once_each(std::mem::take(events));
        }
        if let Source::Known(facts) = &mut self.facts {
            facts.sort_by(in_order_heard);
            // Equal facts stand side by side now: the order is total over all that a fact holds.
            facts.dedup();
        }
    }

    fn is_tidy(&self) -> bool {
        let findings = self.findings.known().is_none_or(|findings| {
            findings.is_sorted_by(|a, b| (a.began, &a.id) < (b.began, &b.id))
                && unique(findings.iter().map(|finding| &finding.id))
        });
        let events = self.events.known().is_none_or(|events| {
            events.is_sorted_by(|a, b| (a.at, &a.id) < (b.at, &b.id))
                && unique(events.iter().map(|event| &event.id))
        });
        let facts = self
            .facts
            .known()
            .is_none_or(|facts| facts.is_sorted_by(|a, b| in_order_heard(a, b) == Ordering::Less));
        findings && events && facts
    }
}

fn unique<'a>(ids: impl Iterator<Item = &'a String>) -> bool {
    let mut seen = std::collections::BTreeSet::new();
    ids.into_iter().all(|id| seen.insert(id))
}

/// The newest version of each finding: ended over active, later evidence over earlier.
fn newest_findings(findings: Vec<Finding>) -> Vec<Finding> {
    let mut newest: BTreeMap<String, Finding> = BTreeMap::new();
    for finding in findings {
        match newest.get(&finding.id) {
            Some(kept) if version(kept) >= version(&finding) => {}
            _ => {
                newest.insert(finding.id.clone(), finding);
            }
        }
    }
    let mut findings: Vec<Finding> = newest.into_values().collect();
    findings.sort_by(|a, b| (a.began, &a.id).cmp(&(b.began, &b.id)));
    findings
}

/// A finding carries no revision number. It ends once, and its evidence only gets newer; the text decides
/// between what is left, so that the choice does not hang on who came first.
fn version(finding: &Finding) -> (bool, Option<Timestamp>, Option<Timestamp>, Option<String>) {
    let seen = finding.evidence.iter().filter_map(|evidence| evidence.at).max();
    (finding.ended.is_some(), finding.ended, seen, text(finding))
}

/// Each event once by its id, in order of time. A retold event's time may differ by the clock's correction: the
/// earliest counts.
fn once_each(events: Vec<Event>) -> Vec<Event> {
    let mut kept: BTreeMap<String, Event> = BTreeMap::new();
    for event in events {
        match kept.get(&event.id) {
            Some(first) if (first.at, text(first)) <= (event.at, text(&event)) => {}
            _ => {
                kept.insert(event.id.clone(), event);
            }
        }
    }
    let mut events: Vec<Event> = kept.into_values().collect();
    events.sort_by(|a, b| (a.at, &a.id).cmp(&(b.at, &b.id)));
    events
}

/// By when they were heard; of those heard at once, the later transition last. The rest only makes it total.
fn in_order_heard(a: &Fact, b: &Fact) -> Ordering {
    a.observed
        .cmp(&b.observed)
        .then_with(|| transition(a).cmp(&transition(b)))
        .then_with(|| a.source.cmp(&b.source))
        .then_with(|| text(a).cmp(&text(b)))
}

fn transition(fact: &Fact) -> Option<Timestamp> {
    match &fact.body {
        FactBody::Condition(condition) => condition.last_transition,
        FactBody::Lease(lease) => Some(lease.renew_time),
        _ => None,
    }
}

fn newest_peers(peers: Vec<Peer>) -> Vec<Peer> {
    let mut newest: BTreeMap<String, Peer> = BTreeMap::new();
    for peer in peers {
        let version = |peer: &Peer| (peer.ready_since, peer.lease_renewed, text(peer));
        match newest.get(&peer.name) {
            Some(kept) if version(kept) >= version(&peer) => {}
            _ => {
                newest.insert(peer.name.clone(), peer);
            }
        }
    }
    newest.into_values().collect()
}

/// Only to choose between two that are otherwise equal. `None` for a number that JSON lacks (NaN).
fn text(value: &impl Serialize) -> Option<String> {
    serde_json::to_string(value).ok()
}
