use std::time::Duration;

use jiff::Timestamp;
use nodewhy_proto::{ConditionStatus, Evidence, Subject, SubjectKind};

use crate::signs::{certainty, within};
use crate::{Answer, Case, Cause, ClusterCase, Holding, Link, NodeCase, Peer, Scope, Source, Unready};

pub(super) static CAUSE: Cause = Cause {
    id: "mass_notready_control_plane",
    title: "Not this node: the control plane lost most nodes at once, while their agents are well",
    about: "\
Most nodes turn Unknown within one grace period, and their agents say that all is well there. Nodes do not fail like \
that; what they share does: the API server, etcd, or the way to them.

It is seen only from above: at least 55 % of the nodes not heard, all within a minute, with agents that answer and find \
nothing. The controller-manager then goes into its own disruption mode: it evicts slowly or not at all.

It is confused with the outage of a zone, where the agents are silent too, and with a step of the controller's clock, \
after which all nodes go at one instant though Leases are renewed. In a cluster of one or two nodes it cannot be told. \
Nodes that were sick before keep causes of their own.

Mend the control plane. Draining or replacing nodes adds load and mends nothing. No single node can know this: from one \
node it looks like a partition.",
    scope: Scope::Cluster,
    leads_to: &[Link::unready(Unready::Unknown, 0, 60, 90)],
    remedy: &[
        "Do not drain and do not replace nodes.",
        "Look at the API server (/livez, /readyz?verbose) and at etcd's disk and leader.",
    ],
    check,
};

/// The controller's own limit for a disrupted zone (node_lifecycle_controller: unhealthyZoneThreshold), and its
/// "more than two nodes".
const DISRUPTED: f64 = 0.55;
const MORE_THAN: usize = 2;
/// The grace period of 50 s, a look each 5 s, and clocks that differ: heartbeats of well nodes end within 10 s.
const ONE_GRACE_PERIOD: Duration = Duration::from_secs(60);
/// An older view of the cluster says nothing about now.
const VIEW_HOLDS: Duration = Duration::from_secs(60);
/// A Lease is renewed each 10 s, with retries within 7 s more.
const FRESH: Duration = Duration::from_secs(20);
/// So many of the agents that were asked must be well.
const AGENTS_WELL: f64 = 0.8;

fn check(case: &Case, node: &NodeCase) -> Answer {
    let cluster = match &case.cluster {
        Source::Known(cluster) => cluster,
        Source::Missing { why } => {
            return Answer::CannotTell { missing: vec![format!("the state of the other nodes: {why}")] };
        }
    };
    if !within(cluster.heard, case.window.to, VIEW_HOLDS) {
        let missing =
            format!("a fresh view of the cluster: the API server last said something at {}", cluster.heard);
        return Answer::CannotTell { missing: vec![missing] };
    }
    let lost = lost_together(cluster);
    let of = cluster.peers.len();
    if ratio(lost.len(), of) < DISRUPTED {
        let text = format!("{} of {of} nodes were lost within one grace period", lost.len());
        return Answer::No { because: vec![view(cluster, text)] };
    }
    if !lost.iter().any(|peer| peer.name == node.id.name) {
        let text = format!("{} of {of} nodes were lost at once; this node is not among them", lost.len());
        return Answer::No { because: vec![view(cluster, text)] };
    }
    if lost.len() <= MORE_THAN {
        let missing = format!(
            "more nodes: {} of {of} were lost within one grace period, too few to tell the control plane's fault from \
             their own",
            lost.len()
        );
        return Answer::CannotTell { missing: vec![missing] };
    }
    let asked = lost.iter().filter(|peer| peer.agent_well.is_some()).count();
    let well = lost.iter().filter(|peer| peer.agent_well == Some(true)).count();
    let text = format!("{} of {of} nodes were lost within one grace period", lost.len());
    if asked == 0 || ratio(asked, lost.len()) < 0.5 {
        let missing = format!("{text}; whether they are well: {asked} of their agents could be asked");
        return Answer::CannotTell { missing: vec![missing] };
    }
    let agents = format!("{well} of {asked} of their agents say that all is well there");
    if ratio(well, asked) < AGENTS_WELL {
        return Answer::No { because: vec![view(cluster, format!("{text}, and only {agents}"))] };
    }
    let mut because =
        vec![view(cluster, text.clone()), Evidence::new(agents.clone(), "the agents of these nodes")];
    // Two signals: the API's view, and the agents' own.
    let mut certainty = certainty(2);
    let beats = |peer: &&&Peer| peer.lease_renewed.is_some_and(|beat| within(beat, cluster.heard, FRESH));
    let fresh = lost.iter().filter(beats).count();
    if ratio(fresh, lost.len()) >= 0.5 {
        certainty = certainty.min(0.6);
        let text = format!(
            "{fresh} of their Leases are renewed all the same: it ends just now, or the controller-manager's clock was \
             stepped (look at it)"
        );
        because.push(Evidence::new(text, "the API server's list of Leases").with_time(cluster.heard));
    }
    Answer::Yes(Holding {
        subject: Subject::new(SubjectKind::ApiServer, ""),
        since: lost.iter().filter_map(|peer| peer.ready_since).min(),
        ended: None,
        text: format!("{text} while {agents}: the control plane lost them"),
        because,
        certainty,
        remedy: Vec::new(),
    })
}

/// The largest group of nodes that turned Unknown within one grace period of each other; of equals the newest.
fn lost_together(cluster: &ClusterCase) -> Vec<&Peer> {
    let mut lost: Vec<(Timestamp, &Peer)> = cluster
        .peers
        .iter()
        .filter(|peer| peer.ready == ConditionStatus::Unknown)
        .filter_map(|peer| peer.ready_since.map(|since| (since, peer)))
        .collect();
    lost.sort_by(|a, b| (a.0, &a.1.name).cmp(&(b.0, &b.1.name)));
    let mut best = 0..0;
    let mut from = 0;
    for (to, (since, _)) in lost.iter().enumerate() {
        while lost.get(from).is_some_and(|(first, _)| !within(*first, *since, ONE_GRACE_PERIOD)) {
            from += 1;
        }
        if to + 1 - from >= best.len() {
            best = from..to + 1;
        }
    }
    lost.get(best).into_iter().flatten().map(|(_, peer)| *peer).collect()
}

fn view(cluster: &ClusterCase, text: String) -> Evidence {
    Evidence::new(text, "the API server's list of nodes").with_time(cluster.heard)
}

#[expect(clippy::cast_precision_loss, reason = "counts of nodes")]
fn ratio(part: usize, of: usize) -> f64 {
    if of == 0 { 0.0 } else { part as f64 / of as f64 }
}

#[cfg(test)]
mod tests {
    use super::CAUSE;
    use crate::made::*;
    use nodewhy_proto::ConditionStatus::{True, Unknown};

    use crate::Peer;

    fn lost(count: i64, agent_well: Option<bool>) -> Vec<Peer> {
        let mut peers = vec![peer(NODE, Unknown, 50, agent_well)];
        peers.extend((1..count).map(|n| peer(&format!("lost-{n}"), Unknown, 40 + n % 30, agent_well)));
        peers.extend((count..20).map(|n| peer(&format!("well-{n}"), True, -9000, Some(true))));
        peers
    }

    #[test]
    fn most_nodes_lost_at_once_with_agents_that_are_well_is_yes() {
        let yes = well().cluster(95, lost(18, Some(true))).yes(&CAUSE);
        assert!(
            yes.text.contains("18 of 20 nodes") && yes.text.contains("18 of 18 of their agents"),
            "{}",
            yes.text
        );
        assert_eq!(yes.since, Some(at(41)));
    }

    #[test]
    fn leases_that_are_renewed_all_the_same_point_to_the_controllers_clock() {
        let mut peers = lost(18, Some(true));
        peers.iter_mut().for_each(|peer| peer.lease_renewed = Some(at(5)));
        assert_eq!(well().cluster(95, peers.clone()).yes(&CAUSE).certainty, 0.9);
        peers.iter_mut().for_each(|peer| peer.lease_renewed = Some(at(90)));
        let yes = well().cluster(95, peers).yes(&CAUSE);
        assert_eq!(yes.certainty, 0.6);
        assert!(yes.because.last().unwrap().text.contains("18 of their Leases"));
    }

    #[test]
    fn few_nodes_or_sick_agents_or_not_this_one_is_no() {
        assert!(well().cluster(95, lost(10, Some(true))).no(&CAUSE).contains("10 of 20"));
        assert!(well().cluster(95, lost(18, Some(false))).no(&CAUSE).contains("only 0 of 18"));
        let mut others = lost(18, Some(true));
        others[0].ready = True;
        assert!(well().cluster(95, others).no(&CAUSE).contains("not among them"));
        let mut spread = lost(18, Some(true));
        for (n, peer) in spread.iter_mut().enumerate() {
            peer.ready_since = Some(at(-3000 + 120 * i64::try_from(n).unwrap()));
        }
        well().cluster(95, spread).no(&CAUSE);
    }

    #[test]
    fn in_a_cluster_of_one_or_two_nodes_it_cannot_be_told() {
        let all = |count| lost(20, Some(true)).into_iter().take(count).collect::<Vec<_>>();
        assert!(well().cluster(95, all(1)).cannot_tell(&CAUSE).contains("1 of 1"));
        assert!(well().cluster(95, all(2)).cannot_tell(&CAUSE).contains("2 of 2"));
        well().cluster(95, all(3)).yes(&CAUSE);
        // One of two is not most of them, nor is nobody of nobody.
        let mut half = all(2);
        half[1].ready = True;
        well().cluster(95, half).no(&CAUSE);
        well().cluster(95, vec![]).no(&CAUSE);
    }

    #[test]
    fn the_boundary_is_the_controllers_own() {
        // 11 of 20 are 55 %.
        well().cluster(95, lost(11, Some(true))).yes(&CAUSE);
        well().cluster(95, lost(10, Some(true))).no(&CAUSE);
        // 15 of 18 agents are 83 %, 14 are 78 %.
        for (sick, holds) in [(3, true), (4, false)] {
            let mut peers = lost(18, Some(true));
            peers.iter_mut().take(sick).for_each(|peer| peer.agent_well = Some(false));
            let made = well().cluster(95, peers);
            if holds { drop(made.yes(&CAUSE)) } else { drop(made.no(&CAUSE)) }
        }
    }

    #[test]
    fn it_cannot_be_told_from_one_node_from_an_old_view_or_without_agents() {
        well().cannot_tell(&CAUSE);
        well().cluster(-60, lost(18, Some(true))).cannot_tell(&CAUSE);
        // An agent that does not answer is neither well nor sick: a zone's outage looks like this.
        let mut few = lost(18, None);
        few.iter_mut().take(8).for_each(|peer| peer.agent_well = Some(true));
        assert!(well().cluster(95, few).cannot_tell(&CAUSE).contains("8 of their agents"));
        assert!(well().cluster(95, lost(18, None)).cannot_tell(&CAUSE).contains("0 of their agents"));
    }
}
