//! The node's Ready condition through time: what the API server said since Ready was last True.

use jiff::Timestamp;
use nodewhy_proto::{Condition, ConditionStatus, FactBody};

use crate::NodeCase;

/// One thing that the API server said while the node was not Ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// When it began: the transition's own time, or when a new message was heard.
    pub at: Timestamp,
    /// `False` (the kubelet wrote it) or `Unknown` (the controller-manager did).
    pub status: ConditionStatus,
    /// `KubeletNotReady`, `NodeStatusUnknown`, …
    pub reason: String,
    /// Match substrings, never split at commas.
    pub message: String,
    /// Where it stands: `Node worker-7`.
    pub source: String,
    transition: Option<Timestamp>,
}

impl NodeCase {
    /// The stages since Ready was last True, oldest first. Empty while it is True, or when nobody said anything, or
    /// when the Node object is gone.
    pub fn unready(&self) -> Vec<Stage> {
        let mut stages: Vec<Stage> = Vec::new();
        for fact in self.facts.known().into_iter().flatten() {
            match &fact.body {
                FactBody::NodeDeleted => stages.clear(),
                FactBody::Condition(condition) if condition.kind == "Ready" => {
                    take(&mut stages, condition, fact.observed, &fact.source);
                }
                _ => {}
            }
        }
        stages
    }

    /// When the node left Ready, as far as the API server told.
    pub fn lost_ready(&self) -> Option<Timestamp> {
        self.unready().first().map(|stage| stage.at)
    }

    /// Whether the newest that was heard of the Node object is its end.
    pub fn node_deleted(&self) -> bool {
        let mut deleted = false;
        for fact in self.facts.known().into_iter().flatten() {
            match fact.body {
                FactBody::NodeDeleted => deleted = true,
                FactBody::Condition(_) | FactBody::NodeSeen { .. } => deleted = false,
                _ => {}
            }
        }
        deleted
    }
}

fn take(stages: &mut Vec<Stage>, condition: &Condition, observed: Timestamp, source: &str) {
    if condition.status == ConditionStatus::True {
        stages.clear();
        return;
    }
    // A kubelet's clock that is ahead must not put the loss of Ready after the moment at which we heard of it.
    let mut at = condition.last_transition.map_or(observed, |transition| transition.min(observed));
    if let Some(last) = stages.last() {
        if last.status == condition.status && last.transition != condition.last_transition {
            // The transition's time moves only with the status: Ready was True in between, unheard.
            stages.clear();
        } else if last.status == condition.status {
            if last.message == condition.message {
                return;
            }
            at = observed;
        }
    }
    stages.push(Stage {
        at,
        status: condition.status,
        reason: condition.reason.clone(),
        message: condition.message.clone(),
        source: source.to_owned(),
        transition: condition.last_transition,
    });
}
