//! What speaks for an incident on a node now, and whether we know enough to call it well. Pure.

use jiff::{SignedDuration, Timestamp};
use nodewhy_proto::{ConditionStatus, EventBody, Role, Severity};

use crate::Timings;
use crate::known::Known;

/// The oom collector's finding holds as long after a kill.
const OOM_KILL_COUNTS: SignedDuration = SignedDuration::from_secs(60);

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Sign {
    /// Since when, by the fault's own clock.
    pub(crate) at: Timestamp,
    /// `finding runtime_hung began`.
    pub(crate) began: String,
    /// What to say when it is over: `finding runtime_hung ended`.
    pub(crate) over: String,
}

/// What is wrong with a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Signs {
    /// The earliest first.
    pub(crate) bad: Vec<Sign>,
    /// When the node left Ready, while it is not Ready.
    pub(crate) lost_ready: Option<Timestamp>,
    /// Whether "nothing is wrong" may be believed. Our own deafness is no recovery.
    pub(crate) can_tell: bool,
    /// Ready is True, by the API server's word of now.
    pub(crate) ready: bool,
    /// The agent that is followed, or the API server that is watched, can't be asked now.
    pub(crate) deaf: bool,
    /// The agent that is followed said nothing since we were started: its evidence of before is lost to us.
    pub(crate) agent_unheard: bool,
}

/// Looks at a node.
pub(crate) fn signs(known: &Known, node: &str, now: Timestamp, timings: &Timings) -> Signs {
    let agent = known.agents.get(node);
    let silent = agent.is_some_and(|agent| agent.why_silent().is_some());
    let mut signs = Signs {
        can_tell: can_tell(known, node, now),
        deaf: silent || known.cluster.is_deaf(now),
        agent_unheard: agent.is_some_and(|agent| agent.heard.is_none()),
        ..Signs::default()
    };
    if silent && known.cluster.is_deleted(node, now) {
        // Its last words are of a node that is no more.
        signs.can_tell = true;
        return signs;
    }
    if let Some(agent) = agent {
        let from = crate::before(now, timings.window);
        let findings = agent.findings_within(from, now);
        for finding in findings.known().into_iter().flatten() {
            if finding.is_active() && finding.severity == Severity::Critical {
                signs.bad.push(Sign {
                    at: finding.began,
                    began: format!("finding {} began", finding.finding),
                    over: format!("finding {} ended", finding.finding),
                });
            }
        }
        for event in agent.events() {
            let EventBody::OomKill(kill) = &event.body else { continue };
            let of_the_system = matches!(kill.role, Role::Kubelet | Role::Runtime | Role::Cni);
            if of_the_system && now.duration_since(event.at).abs() <= OOM_KILL_COUNTS {
                signs.bad.push(Sign {
                    at: event.at,
                    began: format!("the kernel killed {} for want of memory", kill.name),
                    over: format!("the OOM kill of {} is a minute old", kill.name),
                });
            }
        }
    }
    match known.cluster.ready(node, now) {
        Some(ready) if ready.condition.status != ConditionStatus::True => {
            let status = match ready.condition.status {
                ConditionStatus::False => "False",
                _ => "Unknown",
            };
            // The writer's clock, unless it is ahead of ours: then when we heard it.
            let at = ready.condition.last_transition.map_or(ready.observed, |at| at.min(ready.observed));
            signs.lost_ready = Some(at);
            signs.bad.push(Sign {
                at,
                began: format!("Ready became {status}"),
                over: format!("Ready is no longer {status}"),
            });
        }
        Some(_) => {
            signs.ready = true;
            let stale = SignedDuration::try_from(timings.lease_stale).unwrap_or(SignedDuration::MAX);
            if let Some(renewed) = known.cluster.stale_lease(node, stale, now) {
                signs.bad.push(Sign {
                    at: renewed,
                    began: "the Lease went stale while Ready is True".to_owned(),
                    over: "the Lease is renewed again".to_owned(),
                });
            }
        }
        None => {}
    }
    signs.bad.sort();
    signs.bad.dedup();
    signs
}

fn can_tell(known: &Known, node: &str, now: Timestamp) -> bool {
    if known.cluster.is_deaf(now) {
        return false;
    }
    let watched = known.cluster.watched().is_some();
    match (known.cluster.ready(node, now), known.agents.get(node)) {
        (Some(_), _) => true,
        // No API server speaks of it: then its agent must.
        (None, Some(agent)) => agent.why_silent().is_none(),
        // Nobody does: where a cluster is watched, the node is gone.
        (None, None) => watched,
    }
}
