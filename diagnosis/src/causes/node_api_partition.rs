use std::time::Duration;

use nodewhy_proto::{ConditionStatus, Evidence};

use crate::signs::{against, clock_time, silence, standing, within};
use crate::{Answer, Case, Cause, Link, NodeCase, Scope, Unready};

pub(super) static CAUSE: Cause = Cause {
    id: "node_api_partition",
    title: "The node is well and does not reach the API server",
    about: "\
The kubelet runs, the runtime answers, and the heartbeats do not arrive: the path between this node and the API server \
is broken, or saturated. Ready turns Unknown 40 to 55 s later, for this node or its zone.

It is seen by dialling the API server from the node: the dial or its TLS handshake fails. Reaching the gateway or not \
tells near from far.

It is confused with a kubelet that is down or stopped, with one old connection that is dead while a new dial works \
(restart the kubelet), with a Lease that is refused by a webhook or for an expired certificate, and with a control plane \
that lost all nodes at once.

A node alone cannot tell whether the far side is up. Without the result of a dial this cause is not named: that a node is \
silent and its kubelet alive fits all of the above.",
    scope: Scope::Node,
    leads_to: &[Link::unready(Unready::Unknown, 40, 55, 120)],
    remedy: &[
        "From the node: curl -k https://API-SERVER:6443/livez; then routes, security groups, CNI, link.",
        "Do not replace the node before the path is known to be well.",
    ],
    check,
};

/// A Lease is renewed each 10 s, with retries within 7 s more.
const FRESH: Duration = Duration::from_secs(20);

fn check(case: &Case, node: &NodeCase) -> Answer {
    if let Some((lease, _)) =
        node.lease().filter(|(lease, _)| within(lease.renew_time, case.window.to, FRESH))
    {
        let text =
            format!("the Lease was renewed at {}: the API server is reached", clock_time(lease.renew_time));
        let evidence = Evidence::new(text, format!("Lease {}", node.id.name)).with_time(lease.renew_time);
        return Answer::No { because: vec![evidence] };
    }
    if let Some(stage) = node.unready().last().filter(|stage| stage.status == ConditionStatus::False) {
        let text =
            format!("Ready=False is the kubelet's own word, and it reached the API: {}", stage.message);
        return Answer::No { because: vec![Evidence::new(text, &stage.source).with_time(stage.at)] };
    }
    let silenced = ["kubelet_absent", "kubelet_stopped"].iter().find_map(|name| standing(node, name));
    if let Some(silenced) = silenced {
        return against(silenced, "the kubelet sends no heartbeat that could be lost");
    }
    let mut missing = match silence(node, &["kubelet"]) {
        Ok(()) => Vec::new(),
        Err(missing) => missing,
    };
    if let Some(why) = node.facts.why_missing() {
        missing.push(format!("the API server's facts: {why}"));
    } else if node.lease().is_none() {
        missing.push("the node's Lease: it was not heard".to_owned());
    }
    missing.push("this node's own dial to the API server: no collector of this agent tries it".to_owned());
    Answer::CannotTell { missing }
}

#[cfg(test)]
mod tests {
    use super::CAUSE;
    use crate::made::*;
    use nodewhy_proto::{ConditionStatus, SubjectKind::Kubelet};

    // There is no case that says Yes: no collector dials the API server yet.

    #[test]
    fn a_fresh_lease_a_word_of_the_kubelet_or_a_dead_kubelet_is_no() {
        assert!(well().renewed(95).no(&CAUSE).contains("renewed at 08:01:35"));
        well().ready(50, ConditionStatus::False, "container runtime is down").no(&CAUSE);
        let dead = well().found("kubelet", "kubelet_absent", Kubelet, "kubelet", 10);
        dead.ready(60, ConditionStatus::Unknown, "Kubelet stopped posting node status.").no(&CAUSE);
    }

    #[test]
    fn a_silent_node_with_a_living_kubelet_cannot_be_told() {
        let silent =
            well().renewed(10).ready(60, ConditionStatus::Unknown, "Kubelet stopped posting node status.");
        assert!(silent.cannot_tell(&CAUSE).contains("dial"));
        well().no_api().cannot_tell(&CAUSE);
    }
}
