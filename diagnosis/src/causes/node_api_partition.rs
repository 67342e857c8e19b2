use std::time::Duration;

use jiff::Timestamp;
use nodewhy_proto::{ConditionStatus, EventBody, Evidence, Role, Subject, SubjectKind};

use crate::signs::{against, clock_time, events_incomplete, silence, standing, still_counts, within};
use crate::{Answer, Case, Cause, Holding, Link, NodeCase, Scope, Source, Stage, Unready};

pub(super) static CAUSE: Cause = Cause {
    id: "node_api_partition",
    title: "The node is well, and its heartbeats do not reach the API server",
    about: "\
The kubelet runs, the runtime answers, and the heartbeats do not arrive: the path between this node and the API server \
is broken, or saturated. Ready turns Unknown 40 to 55 s after the last one, for this node or its zone.

It is seen for sure by dialling the API server from the node: the dial or its TLS handshake fails. This agent does not \
dial yet. So it is concluded from what is left: Ready stays Unknown, neither Lease nor status arrives, the agent answers \
and finds nothing wrong with the kubelet, the runtime or the machine, and the Leases of the other nodes are fresh. That \
is never surer than 0.6.

It is confused with a kubelet that is down, stopped or locked up, with one old connection that is dead while a new dial \
works (restart the kubelet), with an expired client certificate or a name that does not resolve, and with a control plane \
that lost all nodes at once. A Lease alone that is refused, by a webhook say, looks different: the kubelet posts its \
status all the same, so Ready is True again within 10 s, over and over.

A node alone cannot tell whether the far side is up. Where the agent cannot be reached either, nothing is concluded: the \
node may be cut off, or dead.",
    scope: Scope::Node,
    leads_to: &[Link::unready(Unready::Unknown, 40, 55, 120)],
    remedy: &[
        "On the node: journalctl -u kubelet --since '10 min ago' | grep -iE 'lease|node status|dial|x509|unauthorized'",
        "On the node: curl -k https://API-SERVER:6443/livez. No answer: look at routes, security groups, CNI and link.",
        "An answer: systemctl restart kubelet closes a dead connection; then look at its client certificate.",
        "Do not replace the node before the path is known to be well.",
    ],
    check,
};

/// A Lease is renewed each 10 s, with retries within 7 s more.
const FRESH: Duration = Duration::from_secs(20);
/// The grace period, in the shortest version.
const SILENT: Duration = Duration::from_secs(40);
/// A kubelet that is heard at all sees Unknown in its own Node and posts its status within 10 s.
const STAYS: Duration = Duration::from_secs(20);
/// By exclusion, with look-alikes that only a dial of our own would exclude.
const CERTAINTY: f64 = 0.6;

/// What must be seen to be well: a kubelet that is gone, held up or starved is silent too.
const LOOKED_AT: [&str; 4] = ["kubelet", "runtime", "pressure", "oom"];

fn check(case: &Case, node: &NodeCase) -> Answer {
    let now = case.window.to;
    if let Some(beat) = node.heartbeat().filter(|beat| within(*beat, now, FRESH)) {
        let text = format!("the Lease was renewed at {}: the API server is reached", clock_time(beat));
        return Answer::No { because: vec![lease(node, text, beat)] };
    }
    let stages = node.unready();
    let lost = stages.last();
    if let Some(stage) = lost.filter(|stage| stage.status == ConditionStatus::False) {
        let text =
            format!("Ready=False is the kubelet's own word, and it reached the API: {}", stage.message);
        return Answer::No { because: vec![Evidence::new(text, &stage.source).with_time(stage.at)] };
    }
    let silenced = ["kubelet_absent", "kubelet_stopped"].iter().find_map(|name| standing(node, name));
    if let Some(silenced) = silenced {
        return against(silenced, "the kubelet sends no heartbeat that could be lost");
    }
    let evidence = [heartbeats(node, lost, now), unhurt(node), others(case, node)];
    let (mut because, mut missing) = (Vec::new(), Vec::new());
    for one in evidence {
        match one {
            Ok(seen) => because.extend(seen),
            Err(why) => missing.extend(why),
        }
    }
    let dial = "this node's own dial to the API server: no collector of this agent tries it";
    let Some(beat) = node.heartbeat().filter(|_| missing.is_empty()) else {
        missing.push(dial.to_owned());
        return Answer::CannotTell { missing };
    };
    let alike = "not known: this agent does not dial the API server. One dead connection, a refused certificate, a name \
                 that does not resolve, or a kubelet that is locked up behind its ping look the same";
    because.push(Evidence::new(alike, "what no collector of this agent reads"));
    Answer::Yes(Holding {
        subject: Subject::new(SubjectKind::ApiServer, ""),
        since: Some(beat),
        ended: None,
        text: format!(
            "the kubelet runs, and nothing that it sends has reached the API server since {}",
            clock_time(beat)
        ),
        because,
        certainty: CERTAINTY,
        remedy: Vec::new(),
    })
}

type Told = Result<Vec<Evidence>, Vec<String>>;

/// Neither Lease nor status arrives, for longer than the grace period.
fn heartbeats(node: &NodeCase, lost: Option<&Stage>, now: Timestamp) -> Told {
    if let Some(why) = node.facts.why_missing() {
        return Err(vec![format!("the API server's facts: {why}")]);
    }
    let (Some(beat), Some((_, heard))) = (node.heartbeat(), node.lease()) else {
        return Err(vec!["the node's Lease: it was not heard".to_owned()]);
    };
    // By our own clock too: the node's may be behind.
    if within(beat.max(heard), now, SILENT) {
        return Err(vec![format!(
            "a longer silence: a renewal of the Lease was heard at {}",
            clock_time(heard)
        )]);
    }
    let Some(stage) = lost.filter(|stage| !within(stage.at, now, STAYS)) else {
        return Err(vec![format!(
            "whether Ready stays Unknown for {} s: a kubelet whose Lease alone is refused posts its status again",
            STAYS.as_secs()
        )]);
    };
    let silent = format!("neither Lease nor status arrived for {} s", now.duration_since(beat).as_secs());
    let stays = format!("Ready={:?} since {}, without a break", stage.status, clock_time(stage.at));
    Ok(vec![lease(node, silent, beat), Evidence::new(stays, &stage.source).with_time(stage.at)])
}

/// Nothing is wrong with the kubelet, and nothing here holds it up.
fn unhurt(node: &NodeCase) -> Told {
    silence(node, &LOOKED_AT)?;
    if let Some(missing) = events_incomplete(node) {
        return Err(vec![missing]);
    }
    let first = node.unready().first().map(|stage| stage.at);
    let hurt = node
        .findings
        .known()
        .into_iter()
        .flatten()
        .find(|finding| LOOKED_AT.contains(&finding.collector.as_str()) && still_counts(finding, first));
    if let Some(hurt) = hurt {
        return Err(vec![format!("whether this silenced the kubelet: {}", hurt.summary)]);
    }
    let beat = node.heartbeat();
    let ended = node.events.known().into_iter().flatten().find(|event| match &event.body {
        EventBody::ProcessExited(change) => {
            change.role == Role::Kubelet && beat.is_none_or(|beat| within(event.at, beat, Duration::ZERO))
        }
        _ => false,
    });
    if let Some(ended) = ended {
        return Err(vec![format!("what the kubelet did since its end at {}", clock_time(ended.at))]);
    }
    let text = "the agent answers; the kubelet's process runs and no check of it fails, the runtime answers, and the \
                machine is not starved";
    Ok(vec![Evidence::new(text, "kubelet, runtime, pressure and oom collectors: read, no finding")])
}

/// The API server takes the heartbeats of the other nodes.
fn others(case: &Case, node: &NodeCase) -> Told {
    let cluster = match &case.cluster {
        Source::Known(cluster) => cluster,
        Source::Missing { why } => return Err(vec![format!("the Leases of the other nodes: {why}")]),
    };
    let now = case.window.to;
    if !within(cluster.heard, now, FRESH) {
        let heard = clock_time(cluster.heard);
        return Err(vec![format!(
            "a fresh view of the other nodes: the API server last said something at {heard}"
        )]);
    }
    let others = || cluster.peers.iter().filter(|peer| peer.name != node.id.name);
    let fresh =
        others().filter(|peer| peer.lease_renewed.is_some_and(|beat| within(beat, now, FRESH))).count();
    let of = others().count();
    let text = format!("{fresh} of {of} other nodes renewed their Lease within {} s", FRESH.as_secs());
    // Most of a zone may be cut off together; where most of the cluster is, it is not the path of this node.
    if fresh == 0 || fresh.saturating_mul(2) < of {
        return Err(vec![format!("more nodes that are heard: {text}")]);
    }
    let text = format!("{text}: the API server takes heartbeats");
    Ok(vec![Evidence::new(text, "the API server's list of Leases").with_time(cluster.heard)])
}

fn lease(node: &NodeCase, text: String, beat: Timestamp) -> Evidence {
    Evidence::new(text, format!("Lease {}", node.id.name)).with_time(beat)
}

#[cfg(test)]
mod tests {
    use super::CAUSE;
    use crate::made::*;
    use crate::{Answer, Peer};
    use nodewhy_proto::{
        ConditionStatus::{self, Unknown},
        EventBody, Gap, Role,
        SubjectKind::{Kubelet, Node, Runtime},
    };

    const SAID: &str = "Kubelet stopped posting node status.";

    fn peers(fresh: usize, silent: usize) -> Vec<Peer> {
        let beats = (0..fresh).map(|_| 90).chain((0..silent).map(|_| 10));
        let others = beats.enumerate().map(|(n, beat)| Peer {
            lease_renewed: Some(at(beat)),
            ..peer(&format!("other-{n}"), ConditionStatus::True, -9000, Some(true))
        });
        others.chain([Peer { lease_renewed: Some(at(10)), ..peer(NODE, Unknown, 60, Some(true)) }]).collect()
    }

    /// The last heartbeat 90 s ago, Unknown for 40 s, everything here well, two other nodes heard.
    fn silent() -> Made {
        well().renewed(10).ready(60, Unknown, SAID).cluster(98, peers(2, 0))
    }

    #[test]
    fn a_living_kubelet_that_only_the_api_server_does_not_hear_is_yes_and_never_sure() {
        let yes = silent().yes(&CAUSE);
        assert_eq!((yes.since, yes.certainty), (Some(at(10)), 0.6));
        let told = yes.because.iter().map(|one| one.text.as_str()).collect::<Vec<_>>().join("; ");
        for part in ["for 90 s", "Unknown since 08:01:00", "2 of 2 other nodes", "does not dial"] {
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn a_fresh_lease_a_word_of_the_kubelet_or_a_dead_kubelet_is_no() {
        assert!(well().renewed(95).no(&CAUSE).contains("renewed at 08:01:35"));
        well().ready(50, ConditionStatus::False, "container runtime is down").no(&CAUSE);
        let dead = silent().found("kubelet", "kubelet_absent", Kubelet, "kubelet", 10);
        dead.no(&CAUSE);
        silent().found("kubelet", "kubelet_stopped", Kubelet, "kubelet", 10).no(&CAUSE);
    }

    #[test]
    fn a_node_that_is_well_is_never_condemned() {
        for made in [well(), well().renewed(95), well().renewed(10), well().no_api()] {
            let made = made.cluster(98, peers(2, 0));
            assert!(!matches!(made.clone().ask(&CAUSE), Answer::Yes(_)), "{made:?}");
        }
    }

    #[test]
    fn whatever_else_may_have_silenced_it_leaves_it_open() {
        // A refused Lease flaps: Unknown has just begun each time.
        assert!(silent().ready(85, Unknown, SAID).cannot_tell(&CAUSE).contains("refused"));
        let starved = silent().found("pressure", "memory_thrash", Node, "", 5);
        assert!(starved.cannot_tell(&CAUSE).contains("memory_thrash"));
        silent().found("runtime", "runtime_hung", Runtime, "sock", 5).cannot_tell(&CAUSE);
        silent().found("kubelet", "kubelet_healthz_hung", Kubelet, "kubelet", 5).cannot_tell(&CAUSE);
        let again = silent().exited(30, Role::Kubelet, "kubelet", 998);
        assert!(again.cannot_tell(&CAUSE).contains("its end at 08:00:30"));
        let gap = Gap { from: "1".into(), to: "9".into(), count: None };
        silent().happened("gap", 40, "agent", EventBody::Gap(gap)).cannot_tell(&CAUSE);
        // The Lease was heard late: the node's clock is behind.
        let lease = nodewhy_proto::Lease { renew_time: at(20), duration_seconds: 40 };
        silent().said(80, "Lease worker-7", nodewhy_proto::FactBody::Lease(lease)).cannot_tell(&CAUSE);
    }

    #[test]
    fn it_cannot_be_told_without_the_agent_the_api_server_or_other_nodes() {
        for collector in ["kubelet", "runtime", "pressure", "oom"] {
            assert!(silent().failed(collector).cannot_tell(&CAUSE).contains(collector));
        }
        assert!(well().no_api().cannot_tell(&CAUSE).contains("dial"));
        assert!(silent().cluster(98, peers(0, 0)).cannot_tell(&CAUSE).contains("0 of 0"));
        assert!(silent().cluster(98, peers(1, 2)).cannot_tell(&CAUSE).contains("1 of 3"));
        assert!(silent().cluster(40, peers(2, 0)).cannot_tell(&CAUSE).contains("fresh view"));
        let mut alone = silent();
        alone.cluster = crate::Source::missing("only this node was asked");
        assert!(alone.cannot_tell(&CAUSE).contains("only this node"));
    }
}
