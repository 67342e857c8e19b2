//! What an explanation came to, and what this node cannot see at all.

use std::time::Duration;

use nodewhy_proto::{Conclusion, ConditionStatus, EventBody, Finding, Outcome, Severity};

use super::Found;
use super::reach::{Asked, Reach};
use crate::signs::{source_of, still_counts};
use crate::{Case, NodeCase, Source};

/// A Lease that was not renewed for this long is on its way to the grace period's end (40 s up to Kubernetes 1.31).
const LEASE_STALE: Duration = Duration::from_secs(40);

pub(super) fn conclusion(
    asked: &Asked<'_>,
    found: &[Found],
    roots: &[(Reach, Vec<usize>)],
    circle: bool,
    circle_reaches: bool,
) -> Conclusion {
    // A circle somewhere else does not take the answer from a root that stands.
    if circle && (circle_reaches || roots.is_empty()) {
        return Conclusion::Deadlock;
    }
    if !roots.is_empty() {
        return Conclusion::Explained;
    }
    let suspect = unexplained(asked, found).any(Finding::is_active);
    if !suspect && is_heard(asked) { Conclusion::Healthy } else { Conclusion::NoCauseFound }
}

/// Critical findings on the asked node that no cause cites: they hold, or ended too late to be innocent of the loss of
/// Ready that lasts.
pub(super) fn unexplained<'a>(
    asked: &'a Asked<'_>,
    found: &'a [Found],
) -> impl Iterator<Item = &'a Finding> + 'a {
    let cited = |finding: &Finding| {
        let source = source_of(finding);
        found
            .iter()
            .filter(|one| one.node == asked.name)
            .any(|one| one.holding.because.iter().any(|evidence| evidence.source == source))
    };
    let lost = asked.stages.first().map(|stage| stage.at);
    let findings = asked.node.and_then(|node| node.findings.known()).into_iter().flatten();
    findings.filter(move |finding| {
        finding.severity == Severity::Critical && still_counts(finding, lost) && !cited(finding)
    })
}

/// Whether the node is Ready, as far as is known. Where nobody says anything, nothing is known to be well.
fn is_heard(asked: &Asked<'_>) -> bool {
    let Some(node) = asked.node else { return false };
    match node.ready().map(|ready| ready.status) {
        Some(ConditionStatus::True) => {
            let silent = asked
                .renewed()
                .and_then(|renewed| renewed.saturating_add(LEASE_STALE).ok())
                .is_some_and(|stale| stale < asked.now);
            !silent
        }
        Some(_) => false,
        None if node.node_deleted() => false,
        // Without an API server the agent's own eyes must be open.
        None => {
            node.findings.known().is_some()
                && node.collectors.known().is_some_and(|all| all.values().any(Outcome::is_read))
        }
    }
}

/// Collectors that are absent, failed or stuck, sources that could not be asked, holes in the stream of events.
pub(super) fn blind(case: &Case) -> Vec<String> {
    let mut blind = Vec::new();
    for (name, node) in &case.nodes {
        let of = |line: String| if *name == case.node { line } else { format!("{name}: {line}") };
        blind.extend(of_node(node).into_iter().map(of));
    }
    if let Some(why) = case.cluster.why_missing() {
        blind.push(format!("the cluster: {why}"));
    }
    blind
}

fn of_node(node: &NodeCase) -> Vec<String> {
    let mut blind = Vec::new();
    let sources = [
        ("the agent's findings", node.findings.why_missing()),
        ("the agent's events", node.events.why_missing()),
        ("the agent's collectors", node.collectors.why_missing()),
        ("the API server's facts", node.facts.why_missing()),
    ];
    blind.extend(sources.iter().filter_map(|(what, why)| why.map(|why| format!("{what}: {why}"))));
    if let Source::Known(collectors) = &node.collectors {
        for (name, outcome) in collectors {
            if let Some(why) = outcome.why() {
                blind.push(format!("{name}: {} ({why})", outcome.word()));
            }
        }
    }
    for event in node.events.known().into_iter().flatten() {
        if let EventBody::Gap(gap) = &event.body {
            let count =
                gap.count.map_or_else(|| "an unknown number of".to_owned(), |count| count.to_string());
            blind.push(format!("events: {count} are missing before {}", event.at));
        }
    }
    blind
}
