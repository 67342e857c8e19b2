//! When a fault of the CNI configuration counts: a file that is there proves nothing, and one that is gone does
//! nothing while the runtime has its configuration loaded. What the CRI says of NetworkReady decides.

use std::time::Duration;

use nodewhy_proto::{Evidence, Finding};

use crate::signs::{NETWORK_NOT_READY, against, certainty_by, clean, ready_says, standing, told, within};
use crate::{Answer, Holding, NodeCase};

/// The runtime reads the folder when it changes, or only when it is started again: then it lost the network then.
const SAME_MOMENT: Duration = Duration::from_secs(60);

/// What the CRI, or the kubelet in its place, says against the network.
pub(crate) fn not_ready(node: &NodeCase) -> Option<&Finding> {
    standing(node, "runtime_network_not_ready")
}

/// The answer for a fault of the configuration that was found: it is a cause when the runtime lacks the network.
pub(crate) fn weigh(node: &NodeCase, fault: &Finding, what: &str, remedy: Vec<String>) -> Answer {
    let said = ready_says(node, NETWORK_NOT_READY);
    let lost = not_ready(node);
    if lost.is_none() && said.is_none() {
        let held =
            "the runtime says that its network is ready: it has a configuration loaded, until it reads again";
        return clean(node, "runtime", held);
    }
    if let Some(lost) = lost.filter(|lost| !within(lost.began, fault.began, SAME_MOMENT)) {
        return against(lost, "the runtime lacked the network long before this");
    }
    let signals = 1 + usize::from(lost.is_some()) + usize::from(said.is_some());
    let mut because = told(fault);
    let mut since = fault.began;
    if let Some(lost) = lost {
        let source = format!("finding {} of the {} collector", lost.finding, lost.collector);
        because.push(Evidence::new(lost.summary.clone(), source).with_time(lost.began));
        because.extend(lost.evidence.iter().cloned());
        // A configuration that was kept in memory for hours took the network when it was let go, not before.
        if !within(fault.began, lost.began, SAME_MOMENT) {
            since = lost.began;
        }
    }
    because.extend(said);
    Answer::Yes(Holding {
        subject: fault.subject.clone(),
        since: Some(since),
        ended: lost.map_or(fault.ended, |lost| lost.ended),
        text: format!("{what}: {}", fault.summary),
        because,
        certainty: certainty_by(node, "cni", signals),
        remedy,
    })
}

/// The answer where no such fault of the configuration was found.
pub(crate) fn no_fault(node: &NodeCase, text: &str) -> Answer {
    match (clean(node, "cni", text), not_ready(node)) {
        // Not the folder's contents: one that is valid and not loaded is another fault, and is told as such.
        (Answer::No { mut because }, Some(lost)) => {
            because.push(Evidence::new(
                format!("the network is not ready for another reason: {}", lost.summary),
                "finding runtime_network_not_ready of the runtime collector",
            ));
            Answer::No { because }
        }
        (answer, _) => answer,
    }
}
