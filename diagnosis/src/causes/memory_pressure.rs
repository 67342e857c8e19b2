use nodewhy_proto::{Condition, ConditionStatus, Evidence, Subject};

use crate::signs::{api_event, certainty, certainty_by, clean, silence, standing, told};
use crate::{Answer, Case, Cause, Holding, NodeCase, Scope};

pub(super) static CAUSE: Cause = Cause {
    id: "memory_pressure",
    title: "The node's memory is below the kubelet's eviction threshold",
    about: "\
memory.available, as the kubelet counts it, is below its hard eviction threshold (100 MiB if nobody set another). The \
kubelet evicts pods and sets MemoryPressure; Ready stays True. By itself this never takes Ready away. What it leads to \
may: an OOM kill of the kubelet or the runtime, or a node that only thrashes.

It is seen in the node's own figures, at once, and in the condition MemoryPressure, which the kubelet holds for 5 minutes \
after the last bad reading.

It is confused with an OOM kill, which leaves a line in the kernel log; an eviction leaves none. Page cache can be the \
user: memory.available counts active file pages as used. If memory pressure (PSI) is near zero and active_file is high, \
nobody is short of memory.

Find the pod that uses the most beyond its request. The node cannot know who scheduled it.",
    scope: Scope::Node,
    leads_to: &[],
    remedy: &[
        "kubectl top pods -A --sort-by=memory; evict or limit the biggest beyond its request.",
        "Look at active_file in /proc/meminfo first: page cache is counted as used.",
    ],
    check,
};

fn check(_: &Case, node: &NodeCase) -> Answer {
    let low = standing(node, "memory_available_low").filter(|low| low.is_active());
    let says = says_pressure(node);
    if low.is_none() && says.is_none() {
        // The threshold is the kubelet's: where none was found there is none to be above.
        return match silence(node, &["memory", "kubelet"]) {
            Ok(()) => clean(node, "memory", "memory.available is above the kubelet's eviction threshold"),
            Err(missing) => Answer::CannotTell { missing },
        };
    }
    let event = api_event(node, "EvictionThresholdMet", "");
    let signals = usize::from(low.is_some()) + usize::from(says.is_some()) + usize::from(event.is_some());
    let mut because: Vec<Evidence> = low.map(told).unwrap_or_default();
    let mut since = low.map(|low| low.began);
    if let Some(condition) = says {
        let text = format!("MemoryPressure=True: {}", condition.message);
        let mut evidence = Evidence::new(text, format!("Node {}", node.id.name));
        evidence.at = condition.last_transition;
        because.push(evidence);
        since = since.into_iter().chain(condition.last_transition).min();
    }
    because.extend(event);
    let text = match low {
        Some(low) => format!("memory is below the eviction threshold: {}", low.summary),
        None => "the kubelet says MemoryPressure; it holds that for 5 minutes after the last bad reading"
            .to_owned(),
    };
    Answer::Yes(Holding {
        subject: low.map_or_else(Subject::node, |low| low.subject.clone()),
        since,
        ended: None,
        text,
        because,
        certainty: if low.is_some() {
            certainty_by(node, "memory", signals)
        } else {
            certainty(signals).min(0.7)
        },
        remedy: Vec::new(),
    })
}

/// The kubelet's own word. Unknown is the controller's, which sets all conditions at once, and says nothing.
fn says_pressure(node: &NodeCase) -> Option<&Condition> {
    node.condition("MemoryPressure").filter(|condition| condition.status == ConditionStatus::True)
}

#[cfg(test)]
mod tests {
    use super::CAUSE;
    use crate::made::*;
    use nodewhy_proto::{ConditionStatus, OomScope::Global, Role, SubjectKind::Node};

    // Recorded on kubelet 1.36.2.
    const SAID: &str = "kubelet has insufficient memory available";

    #[test]
    fn low_memory_is_yes_and_the_kubelets_word_makes_it_surer() {
        let low = || well().found("memory", "memory_available_low", Node, "", 10);
        assert_eq!(low().yes(&CAUSE).certainty, 0.8);
        assert_eq!(
            low().condition("MemoryPressure", 20, ConditionStatus::True, SAID).yes(&CAUSE).certainty,
            0.9
        );
        let held = well().condition("MemoryPressure", 20, ConditionStatus::True, SAID).yes(&CAUSE);
        assert_eq!((held.certainty, held.since), (0.7, Some(at(20))));
    }

    #[test]
    fn an_oom_kill_alone_and_the_controllers_unknown_are_no() {
        well().killed(10, kill(Global, Role::Pod, "java", 5)).no(&CAUSE);
        well().condition("MemoryPressure", 20, ConditionStatus::Unknown, "").no(&CAUSE);
    }

    #[test]
    fn it_cannot_be_told_without_the_figures() {
        well().failed("memory").cannot_tell(&CAUSE);
        well().absent("kubelet").cannot_tell(&CAUSE);
    }
}
