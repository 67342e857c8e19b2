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

#[cfg(test)]
mod tests {
    use nodewhy_proto::ConditionStatus::{False, True, Unknown};

    use super::*;
    use crate::made::*;

    fn stages(made: Made) -> Vec<(Timestamp, ConditionStatus)> {
        let case = made.case();
        case.asked().unwrap().unready().iter().map(|stage| (stage.at, stage.status)).collect()
    }

    fn heard(made: Made, observed: i64, transition: Option<i64>, message: &str) -> Made {
        let condition = Condition {
            kind: "Ready".to_owned(),
            status: False,
            reason: "KubeletNotReady".to_owned(),
            message: message.to_owned(),
            last_transition: transition.map(at),
        };
        made.said(observed, "Node worker-7", FactBody::Condition(condition))
    }

    #[test]
    fn a_clock_that_is_ahead_does_not_date_the_loss_after_it_was_heard() {
        assert_eq!(stages(heard(well(), 10, Some(70), "down")), [(at(10), False)]);
        assert_eq!(stages(heard(well(), 10, Some(4), "down")), [(at(4), False)]);
        assert_eq!(stages(heard(well(), 10, None, "down")), [(at(10), False)]);
    }

    #[test]
    fn a_new_message_is_a_stage_and_a_repeat_is_not() {
        let made = heard(heard(heard(well(), 10, Some(9), "down"), 20, Some(9), "down"), 30, Some(9), "pleg");
        assert_eq!(stages(made), [(at(9), False), (at(30), False)]);
    }

    #[test]
    fn the_same_status_of_another_time_is_another_loss() {
        // Ready was True in between, and nobody told us.
        let made = heard(heard(well(), 10, Some(9), "down"), 90, Some(88), "down");
        assert_eq!(stages(made), [(at(88), False)]);
    }

    #[test]
    fn true_ends_the_stretch_and_a_change_of_writer_does_not() {
        let lost = well().ready(10, False, "down").ready(60, Unknown, "silent");
        assert_eq!(stages(lost.clone()), [(at(10), False), (at(60), Unknown)]);
        assert!(stages(lost.clone().ready(70, True, "well")).is_empty());
        assert!(stages(lost.said(70, "Node worker-7", FactBody::NodeDeleted)).is_empty());
    }

    #[test]
    fn of_two_words_heard_at_once_the_choice_does_not_hang_on_their_order() {
        let (one, other) = (heard(well(), 10, Some(9), "a"), heard(well(), 10, Some(9), "b"));
        let (one, other) = (heard(one, 10, Some(9), "b"), heard(other, 10, Some(9), "a"));
        let newest = |made: Made| made.case().asked().unwrap().ready().cloned();
        assert_eq!(newest(one), newest(other));
    }
}
