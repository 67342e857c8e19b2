//! What the API server said, as facts, kept within bounds; and how old our view is. Pure: time is an argument.
//!
//! A broken watch makes the view old; it never makes nodes disappear, leases stale or conditions unknown.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use jiff::{SignedDuration, Timestamp};
use nodewhy_clock::Stamp;
use nodewhy_diagnosis::{ClusterCase, Peer, Source};
use nodewhy_proto::{Condition, Fact, FactBody, Lease};

use super::object::{EventObject, LeaseObject, NodeObject, Object};

/// How many changes of one condition are kept.
const MAX_CHANGES: usize = 20;
/// How many kinds of conditions a node may have.
const MAX_CONDITIONS: usize = 40;
/// How many Events of a node are kept, the newest.
const MAX_EVENTS: usize = 50;
/// How many names of nodes that the API server does not have may be remembered: deleted ones, and ones of which only
/// an Event speaks. Autoscalers never use a name twice.
const MAX_GONE: usize = 1000;
/// An Event that a list brings and that last happened longer before we began to listen is history.
const EVENT_SLACK: SignedDuration = SignedDuration::from_secs(60);
/// A wall clock that moves by more than this against the time since boot was stepped, not slewed.
const STEP: SignedDuration = SignedDuration::from_secs(1);
/// A Lease is called stale only if the watch proved itself alive so long after the last renewal.
const LEASE_PROOF: SignedDuration = SignedDuration::from_secs(30);

/// The cluster, as far as it is watched.
#[derive(Default)]
pub(crate) enum ClusterView {
    /// Nobody asked for a cluster to be watched.
    #[default]
    NotAsked,
    /// One is watched.
    Watched(Box<Watched>),
}

/// One list that is watched.
#[derive(Clone, Debug, Default)]
pub(crate) struct Channel {
    /// A whole list came at least once.
    pub(crate) listed: bool,
    /// When the server last said anything on it, by our clock.
    pub(crate) heard: Option<Timestamp>,
    /// Why it is not heard now.
    pub(crate) broken: Option<String>,
}

/// What is watched.
#[derive(Default)]
pub(crate) struct Watched {
    pub(crate) nodes_channel: Channel,
    pub(crate) leases_channel: Channel,
    pub(crate) events_channel: Channel,
    old_after: SignedDuration,
    /// When the server last said anything, on both clocks.
    clock: Option<Stamp>,
    nodes: BTreeMap<String, NodeFacts>,
    /// Leases and Events come on streams of their own, perhaps before their Node.
    leases: BTreeMap<String, Fact>,
    events: BTreeMap<String, VecDeque<Fact>>,
}

#[derive(Clone, Debug, Default)]
struct NodeFacts {
    uid: Option<String>,
    machine_id: Option<String>,
    seen: Option<Fact>,
    conditions: BTreeMap<String, VecDeque<Fact>>,
    deleted: Option<Fact>,
}

/// The Ready condition as last heard, from a view that can be believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReadyNow {
    pub(crate) condition: Condition,
    pub(crate) observed: Timestamp,
}

impl Channel {
    /// The server said something.
    pub(crate) fn hear(&mut self, now: Timestamp) {
        self.heard = Some(now);
        self.broken = None;
    }

    /// Why it says nothing about now; `None` when it does.
    fn why_not(&self, what: &str, old_after: SignedDuration, now: Timestamp) -> Option<String> {
        let because = || self.broken.clone().unwrap_or_else(|| "it has not answered yet".to_owned());
        match self.heard {
            Some(heard) if self.listed => {
                let broken = self.broken.is_some() && now.duration_since(heard) > old_after;
                broken.then(|| format!("our view of the API server's {what} is from {heard}: {}", because()))
            }
            _ => Some(format!("the API server's {what} were never listed: {}", because())),
        }
    }
}

impl ClusterView {
    /// The nodes that the API server has, as far as was ever heard.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &str> {
        self.watched().into_iter().flat_map(|watched| {
            watched.nodes.iter().filter(|(_, node)| node.deleted.is_none()).map(|(name, _)| name.as_str())
        })
    }

    pub(crate) fn watched(&self) -> Option<&Watched> {
        match self {
            ClusterView::NotAsked => None,
            ClusterView::Watched(watched) => Some(watched),
        }
    }

    /// For the followers, which exist only where a cluster is watched.
    pub(crate) fn watched_mut(&mut self) -> Option<&mut Watched> {
        match self {
            ClusterView::NotAsked => None,
            ClusterView::Watched(watched) => Some(watched),
        }
    }

    /// What it said of this node, or why that is not known.
    pub(crate) fn facts(&self, node: &str, now: Timestamp) -> Source<Vec<Fact>> {
        let Some(watched) = self.watched() else {
            return Source::missing("no cluster is watched; name one with --kubeconfig or --context");
        };
        if let Some(why) = watched.why_old(now) {
            return Source::missing(why);
        }
        watched.facts(node, now).map_or_else(
            || Source::missing(format!("the cluster that is watched has no node named {node}")),
            Source::Known,
        )
    }

    /// Ready now; `None` when no API server says so now.
    pub(crate) fn ready(&self, node: &str, now: Timestamp) -> Option<ReadyNow> {
        let watched = self.watched()?;
        if watched.why_old(now).is_some() {
            return None;
        }
        watched.ready(node)
    }

    /// The Lease as last heard, from a view that can be believed.
    pub(crate) fn lease(&self, node: &str, now: Timestamp) -> Option<&Lease> {
        match &self.lease_fact(node, now)?.body {
            FactBody::Lease(lease) => Some(lease),
            _ => None,
        }
    }

    fn lease_fact(&self, node: &str, now: Timestamp) -> Option<&Fact> {
        let watched = self.watched()?;
        if watched.leases_channel.why_not("leases", watched.old_after, now).is_some() {
            return None;
        }
        watched.leases.get(node)
    }

    /// When the Lease was last renewed, if that is longer ago than `after`, and that is not our own deafness.
    ///
    /// As the controller does, we count from when we saw it move: `renewTime` is of the node's clock, which may be
    /// wrong by minutes while the Lease is renewed each 10 s.
    pub(crate) fn stale_lease(&self, node: &str, after: SignedDuration, now: Timestamp) -> Option<Timestamp> {
        let moved = self.lease_fact(node, now)?.observed;
        let heard = self.watched()?.leases_channel.heard?;
        let stale = now.duration_since(moved) > after;
        let proven = heard.duration_since(moved) >= LEASE_PROOF;
        (stale && proven).then_some(moved)
    }

    /// Whether the API server had this node, and says now that it is gone.
    pub(crate) fn is_deleted(&self, node: &str, now: Timestamp) -> bool {
        self.watched().is_some_and(|watched| {
            watched.why_old(now).is_none()
                && watched.nodes.get(node).is_some_and(|facts| facts.deleted.is_some())
        })
    }

    /// Whether a cluster is watched and says nothing about now.
    pub(crate) fn is_deaf(&self, now: Timestamp) -> bool {
        self.watched().is_some_and(|watched| watched.why_old(now).is_some())
    }

    /// The whole cluster. `agent_well` tells of each node's agent.
    pub(crate) fn case(
        &self,
        now: Timestamp,
        agent_well: impl Fn(&str) -> Option<bool>,
    ) -> Source<ClusterCase> {
        let Some(watched) = self.watched() else {
            return Source::missing("no cluster is watched; name one with --kubeconfig or --context");
        };
        if let Some(why) = watched.why_old(now) {
            return Source::missing(why);
        }
        let channels = [watched.nodes_channel.heard, watched.leases_channel.heard];
        let Some(heard) = channels.into_iter().flatten().min() else {
            return Source::missing("the API server was never heard");
        };
        let peers = self
            .nodes()
            .filter_map(|name| {
                let ready = watched.ready(name)?;
                Some(Peer {
                    name: name.to_owned(),
                    ready: ready.condition.status,
                    ready_since: ready.condition.last_transition.or(Some(ready.observed)),
                    lease_renewed: self.lease(name, now).map(|lease| lease.renew_time),
                    agent_well: agent_well(name),
                })
            })
            .collect();
        Source::Known(ClusterCase { heard, peers })
    }
}

impl Watched {
    /// Nothing was heard yet. A broken view older than `old_after` says nothing about now.
    pub(crate) fn new(old_after: SignedDuration) -> Watched {
        Watched { old_after, ..Watched::default() }
    }

    /// Our wall clock may have been stepped since the server last spoke. What ages is moved along: a step of a minute
    /// may not make every Lease a minute older.
    pub(crate) fn follow_clock(&mut self, now: Stamp) {
        let Some(before) = self.clock.replace(now) else { return };
        let Ok(passed) = SignedDuration::try_from(now.boot.saturating_sub(before.boot)) else { return };
        let step = now.wall.duration_since(before.wall) - passed;
        if step.abs() < STEP {
            return;
        }
        let channels = [&mut self.nodes_channel, &mut self.leases_channel, &mut self.events_channel];
        let heard = channels.into_iter().filter_map(|channel| channel.heard.as_mut());
        for at in heard.chain(self.leases.values_mut().map(|fact| &mut fact.observed)) {
            *at = at.checked_add(step).unwrap_or(*at);
        }
    }

    fn why_old(&self, now: Timestamp) -> Option<String> {
        self.nodes_channel.why_not("nodes", self.old_after, now)
    }

    /// The Node's UID and machine id.
    pub(crate) fn identity(&self, node: &str) -> (Option<String>, Option<String>) {
        self.nodes.get(node).map_or((None, None), |facts| (facts.uid.clone(), facts.machine_id.clone()))
    }

    fn ready(&self, node: &str) -> Option<ReadyNow> {
        let facts = self.nodes.get(node).filter(|facts| facts.deleted.is_none())?;
        let fact = facts.conditions.get("Ready")?.back()?;
        match &fact.body {
            FactBody::Condition(condition) => {
                Some(ReadyNow { condition: condition.clone(), observed: fact.observed })
            }
            _ => None,
        }
    }

    fn facts(&self, node: &str, now: Timestamp) -> Option<Vec<Fact>> {
        let known = self.nodes.get(node)?;
        let mut facts: Vec<Fact> =
            known.seen.iter().chain(known.conditions.values().flatten()).cloned().collect();
        if self.leases_channel.why_not("leases", self.old_after, now).is_none() {
            facts.extend(self.leases.get(node).cloned());
        }
        facts.extend(self.events.get(node).into_iter().flatten().cloned());
        facts.extend(known.deleted.clone());
        facts.sort_by_key(|fact| fact.observed);
        Some(facts)
    }

    /// A whole list of Nodes: whoever is not in it is gone.
    pub(crate) fn list_nodes(&mut self, nodes: Vec<NodeObject>, now: Timestamp) -> Vec<String> {
        let listed: BTreeSet<String> = nodes.iter().filter_map(|node| node.meta().name.clone()).collect();
        let gone: Vec<String> = self.nodes.keys().filter(|name| !listed.contains(*name)).cloned().collect();
        let mut touched: Vec<String> =
            nodes.into_iter().filter_map(|node| self.apply_node(node, now)).collect();
        touched.extend(gone.into_iter().filter(|name| self.remove_node(name, now)));
        touched
    }

    /// A Node is new or changed. The name, if that says something new.
    pub(crate) fn apply_node(&mut self, node: NodeObject, now: Timestamp) -> Option<String> {
        let name = node.meta().name.clone()?;
        let known = self.nodes.entry(name.clone()).or_default();
        if known.deleted.is_some() || (known.uid.is_some() && known.uid != node.meta().uid) {
            // Names come back: another UID is another node, with a history of its own.
            *known = NodeFacts::default();
        }
        known.uid = node.meta().uid.clone();
        known.machine_id = node.machine_id();
        let source = format!("Node {name}");
        let mut changed = false;
        let seen = node.seen();
        if known.seen.as_ref().is_none_or(|fact| fact.body != seen) {
            known.seen = Some(Fact { observed: now, source: source.clone(), body: seen });
            changed = true;
        }
        for condition in node.conditions() {
            if known.conditions.len() >= MAX_CONDITIONS && !known.conditions.contains_key(&condition.kind) {
                continue;
            }
            let history = known.conditions.entry(condition.kind.clone()).or_default();
            if history.back().is_some_and(|newest| says_the_same(newest, &condition)) {
                continue;
            }
            if history.len() >= MAX_CHANGES {
                history.pop_front();
            }
            history.push_back(Fact {
                observed: now,
                source: source.clone(),
                body: FactBody::Condition(condition),
            });
            changed = true;
        }
        changed.then_some(name)
    }

    /// A Node was deleted.
    pub(crate) fn delete_node(&mut self, node: NodeObject, now: Timestamp) -> Option<String> {
        let name = node.meta().name.clone()?;
        self.remove_node(&name, now).then_some(name)
    }

    fn remove_node(&mut self, name: &str, now: Timestamp) -> bool {
        let Some(known) = self.nodes.get_mut(name).filter(|known| known.deleted.is_none()) else {
            return false;
        };
        known.deleted =
            Some(Fact { observed: now, source: format!("Node {name}"), body: FactBody::NodeDeleted });
        let deleted =
            |(name, known): (&String, &NodeFacts)| Some((known.deleted.as_ref()?.observed, name.clone()));
        let mut gone: Vec<(Timestamp, String)> = self.nodes.iter().filter_map(deleted).collect();
        gone.sort();
        let surplus = gone.len().saturating_sub(MAX_GONE);
        for (_, name) in gone.into_iter().take(surplus) {
            self.nodes.remove(&name);
            self.events.remove(&name);
        }
        true
    }

    pub(crate) fn list_leases(&mut self, leases: Vec<LeaseObject>, now: Timestamp) -> Vec<String> {
        let listed: BTreeSet<String> = leases.iter().filter_map(|lease| lease.meta().name.clone()).collect();
        self.leases.retain(|name, _| listed.contains(name));
        leases.into_iter().filter_map(|lease| self.apply_lease(lease, now)).collect()
    }

    /// A Lease is new or was renewed.
    pub(crate) fn apply_lease(&mut self, lease: LeaseObject, now: Timestamp) -> Option<String> {
        let name = lease.meta().name.clone()?;
        let body = FactBody::Lease(lease.lease()?);
        if self.leases.get(&name).is_some_and(|known| known.body == body) {
            return None;
        }
        self.leases.insert(name.clone(), Fact { observed: now, source: format!("Lease {name}"), body });
        Some(name)
    }

    pub(crate) fn delete_lease(&mut self, lease: LeaseObject, _now: Timestamp) -> Option<String> {
        let name = lease.meta().name.clone()?;
        self.leases.remove(&name).map(|_| name)
    }

    pub(crate) fn list_events(&mut self, events: Vec<EventObject>, now: Timestamp) -> Vec<String> {
        // Before the first list nothing was heard: what is older than now is history that we did not see.
        let since = self.events_channel.heard.filter(|_| self.events_channel.listed).unwrap_or(now);
        let fresh =
            |event: &EventObject| event.last().is_some_and(|last| since.duration_since(last) <= EVENT_SLACK);
        events.into_iter().filter(fresh).filter_map(|event| self.apply_event(event, now)).collect()
    }

    /// An Event is new, or happened again.
    pub(crate) fn apply_event(&mut self, event: EventObject, now: Timestamp) -> Option<String> {
        let node = event.node()?.to_owned();
        let fact = event.fact(now)?;
        let strangers = self.events.len() >= self.nodes.len() + MAX_GONE;
        if strangers && !self.events.contains_key(&node) && !self.nodes.contains_key(&node) {
            self.events.retain(|name, _| self.nodes.contains_key(name));
        }
        let known = self.events.entry(node.clone()).or_default();
        if known.iter().any(|old| old.source == fact.source && old.body == fact.body) {
            return None;
        }
        known.retain(|old| old.source != fact.source);
        if known.len() >= MAX_EVENTS {
            known.pop_front();
        }
        known.push_back(fact);
        Some(node)
    }

    /// The API server forgets Events after an hour; that they happened stays true.
    pub(crate) fn delete_event(&mut self, _event: EventObject, _now: Timestamp) -> Option<String> {
        None
    }
}

/// Heartbeats change a Node every few minutes and say nothing new.
fn says_the_same(newest: &Fact, condition: &Condition) -> bool {
    match &newest.body {
        // Another transition time under the same words: it flapped between two of our looks.
        FactBody::Condition(known) => known == condition,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use nodewhy_proto::ConditionStatus;

    use super::*;
    use crate::testing::{at, event_object, lease_object, node_object};

    fn listed(watched: &mut Watched, now: i64) {
        for channel in [&mut watched.nodes_channel, &mut watched.leases_channel, &mut watched.events_channel]
        {
            channel.listed = true;
            channel.hear(at(now));
        }
    }

    fn view() -> Watched {
        let mut watched = Watched::new(SignedDuration::from_secs(40));
        watched.list_nodes(vec![node_object("a", "u1", "True"), node_object("b", "u2", "True")], at(0));
        watched.list_leases(vec![lease_object("a", at(0)), lease_object("b", at(0))], at(0));
        listed(&mut watched, 0);
        watched
    }

    fn cluster(watched: Watched) -> ClusterView {
        ClusterView::Watched(Box::new(watched))
    }

    #[test]
    fn before_the_first_list_nothing_is_known() {
        let cluster = cluster(Watched::default());
        assert!(cluster.facts("a", at(0)).known().is_none());
        assert!(cluster.case(at(0), |_| None).known().is_none());
        assert!(
            ClusterView::NotAsked
                .facts("a", at(0))
                .why_missing()
                .is_some_and(|why| why.contains("--kubeconfig"))
        );
    }

    #[test]
    fn a_broken_watch_makes_the_view_old_and_no_node_disappear() {
        let mut watched = view();
        for channel in [&mut watched.nodes_channel, &mut watched.leases_channel] {
            channel.broken = Some("connection refused".to_owned());
        }
        let cluster = cluster(watched);
        assert!(cluster.facts("a", at(30)).known().is_some(), "a moment's break changes nothing");
        let why = cluster.facts("a", at(100));
        assert!(why.why_missing().is_some_and(|why| why.contains("connection refused")), "{why:?}");
        assert_eq!((cluster.ready("a", at(100)), cluster.nodes().count()), (None, 2));
        assert_eq!(cluster.stale_lease("a", SignedDuration::from_secs(40), at(100)), None);
        assert!(cluster.is_deaf(at(100)));
    }

    #[test]
    fn a_lease_is_stale_only_where_the_watch_proved_itself_alive() {
        let stale = SignedDuration::from_secs(40);
        let mut watched = view();
        watched.leases_channel.hear(at(20));
        let mut cluster = cluster(watched);
        assert_eq!(cluster.stale_lease("a", stale, at(45)), None, "perhaps it is we who are deaf");
        cluster.watched_mut().unwrap().leases_channel.hear(at(41));
        assert!(cluster.stale_lease("a", stale, at(45)).is_some());
        assert_eq!(cluster.stale_lease("a", stale, at(39)), None);
    }

    #[test]
    fn a_lease_of_a_node_whose_clock_is_wrong_is_not_stale_while_it_moves() {
        let stale = SignedDuration::from_secs(40);
        for wrong in [-600, 600] {
            let mut watched = view();
            for second in [10, 20, 30] {
                watched.apply_lease(lease_object("a", at(second + wrong)), at(second));
                watched.leases_channel.hear(at(second));
            }
            watched.leases_channel.hear(at(75));
            let cluster = cluster(watched);
            assert_eq!(cluster.stale_lease("a", stale, at(35)), None, "{wrong}");
            assert_eq!(cluster.stale_lease("a", stale, at(75)), Some(at(30)), "{wrong}");
        }
    }

    #[test]
    fn a_new_list_without_a_node_is_its_deletion_and_a_new_uid_another_node() {
        let mut watched = view();
        assert_eq!(watched.list_nodes(vec![node_object("a", "u1", "True")], at(10)), ["b"]);
        let deleted = |watched: &Watched| watched.facts("b", at(11)).unwrap().last().unwrap().body.clone();
        assert_eq!(deleted(&watched), FactBody::NodeDeleted);
        assert_eq!(watched.ready("b"), None);
        watched.apply_node(node_object("b", "u3", "False"), at(20));
        assert!(!watched.facts("b", at(21)).unwrap().iter().any(|fact| fact.body == FactBody::NodeDeleted));
        assert_eq!(watched.identity("b").0.as_deref(), Some("u3"));
    }

    #[test]
    fn heartbeats_are_no_news_and_histories_are_bounded() {
        let mut watched = view();
        assert_eq!(watched.apply_node(node_object("a", "u1", "True"), at(1)), None);
        for turn in 0..200 {
            let status = if turn % 2 == 0 { "False" } else { "Unknown" };
            assert!(watched.apply_node(node_object("a", "u1", status), at(turn + 2)).is_some());
            watched.apply_event(event_object("a", &format!("e{turn}"), at(turn + 2), 1), at(turn + 2));
        }
        assert!(watched.facts("a", at(300)).unwrap().len() <= MAX_CHANGES + MAX_EVENTS + 2);
        assert_eq!(watched.ready("a").unwrap().condition.status, ConditionStatus::Unknown);
    }

    #[test]
    fn a_step_of_our_clock_makes_no_lease_stale_and_no_view_old() {
        let stale = SignedDuration::from_secs(40);
        for step in [3600, -3600] {
            let mut watched = view();
            let stamp =
                |boot: u64, wall: i64| Stamp { boot: std::time::Duration::from_secs(boot), wall: at(wall) };
            watched.follow_clock(stamp(1000, 0));
            watched.follow_clock(stamp(1005, 5 + step));
            watched.leases_channel.hear(at(5 + step));
            let mut cluster = cluster(watched);
            assert_eq!(cluster.stale_lease("a", stale, at(6 + step)), None, "{step}");
            let watched = cluster.watched_mut().unwrap();
            watched.follow_clock(stamp(1045, 45 + step));
            watched.leases_channel.hear(at(45 + step));
            watched.nodes_channel.broken = Some("refused".to_owned());
            assert_eq!(cluster.stale_lease("a", stale, at(45 + step)), Some(at(step)), "{step}");
            assert!(cluster.is_deaf(at(45 + step)) && !cluster.is_deaf(at(35 + step)), "{step}");
        }
    }

    #[test]
    fn events_of_nodes_that_are_not_there_are_bounded() {
        let mut watched = view();
        watched.apply_event(event_object("a", "e", at(1), 1), at(1));
        for number in 0..5000 {
            watched.apply_event(event_object(&format!("gone-{number}"), "e", at(1), 1), at(1));
        }
        assert!(watched.events.len() <= MAX_GONE + 2, "{}", watched.events.len());
        assert!(watched.events.contains_key("a"));
    }

    #[test]
    fn old_events_of_the_first_list_are_history() {
        let mut watched = view();
        watched.events_channel = Channel::default();
        let events = vec![event_object("a", "old", at(0), 1), event_object("a", "new", at(3590), 1)];
        assert_eq!(watched.list_events(events, at(3600)), ["a"]);
        assert_eq!(watched.events["a"].len(), 1);
        assert_eq!(watched.apply_event(event_object("a", "new", at(3590), 1), at(3601)), None, "told twice");
        assert!(watched.apply_event(event_object("a", "new", at(3601), 2), at(3601)).is_some());
    }
}
