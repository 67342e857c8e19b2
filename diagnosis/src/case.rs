use std::collections::BTreeMap;

use jiff::Timestamp;
use nodewhy_proto::{Condition, ConditionStatus, Event, Fact, FactBody, Finding, Lease, NodeId, Outcome};
use serde::{Deserialize, Serialize};

/// Something that was asked for: known, or missing with the reason. A missing source is never empty.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source<T> {
    /// It was asked and it answered; an empty list means that there is nothing.
    Known(T),
    /// It could not be asked.
    Missing {
        /// Why.
        why: String,
    },
}

impl<T> Source<T> {
    /// Missing, for this reason.
    pub fn missing(why: impl Into<String>) -> Source<T> {
        Source::Missing { why: why.into() }
    }

    /// What is known.
    pub fn known(&self) -> Option<&T> {
        match self {
            Source::Known(value) => Some(value),
            Source::Missing { .. } => None,
        }
    }

    /// Why it is missing.
    pub fn why_missing(&self) -> Option<&str> {
        match self {
            Source::Known(_) => None,
            Source::Missing { why } => Some(why),
        }
    }
}

/// The stretch of time that a case is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Nothing before this was asked for.
    pub from: Timestamp,
    /// "Now" of the case: nothing after this is known.
    pub to: Timestamp,
}

/// The complete, immutable input of one diagnosis.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// The node asked about.
    pub node: String,
    /// The stretch of time.
    pub window: Window,
    /// The evidence of each node that was asked, by name. The node asked about is among them.
    pub nodes: BTreeMap<String, NodeCase>,
    /// What the API server says of the whole cluster.
    pub cluster: Source<ClusterCase>,
}

/// One node's evidence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeCase {
    /// Who it is.
    pub id: NodeId,
    /// The agent's findings that held within the window, ended ones too. Missing: the agent can't be asked.
    pub findings: Source<Vec<Finding>>,
    /// The agent's events within the window, in order of time.
    pub events: Source<Vec<Event>>,
    /// Each collector's outcome at the end of the window.
    pub collectors: Source<BTreeMap<String, Outcome>>,
    /// What the API server said of this node, in the order in which it was heard.
    pub facts: Source<Vec<Fact>>,
}

/// What the API server says of the whole cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterCase {
    /// When the API server last said anything: an old view says nothing about now.
    pub heard: Timestamp,
    /// Every node, the one asked about too.
    pub peers: Vec<Peer>,
}

/// A node as the cluster sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its Ready condition.
    pub ready: ConditionStatus,
    /// Since when it is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_since: Option<Timestamp>,
    /// Its Lease's `renewTime`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_renewed: Option<Timestamp>,
    /// Whether its agent answers and has no critical finding; `None` where no agent can be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_well: Option<bool>,
}

impl Case {
    /// Starts a case about this node.
    pub fn about(node: impl Into<String>) -> CaseBuilder {
        CaseBuilder { node: node.into(), window: None, nodes: Vec::new(), cluster: None }
    }

    /// The node asked about. The builder and [`Case::checked`] see to it that it is there.
    pub fn asked(&self) -> Option<&NodeCase> {
        self.nodes.get(&self.node)
    }

    /// Refuses a case, read from a file, that no builder would have made; puts its lists in order of time and rids
    /// them of repeats.
    ///
    /// # Errors
    /// The node asked about is not among the nodes, a node's evidence stands under another's name, or the window
    /// ends before it begins.
    pub fn checked(mut self) -> Result<Case, CaseError> {
        if !self.nodes.contains_key(&self.node) {
            return Err(CaseError::Forgotten {
                what: "the evidence of the node asked about",
                node: self.node,
            });
        }
        if self.window.to < self.window.from {
            return Err(CaseError::Backwards { from: self.window.from, to: self.window.to });
        }
        if let Some((key, node)) = self.nodes.iter().find(|(key, node)| **key != node.id.name) {
            return Err(CaseError::Misnamed { key: key.clone(), name: node.id.name.clone() });
        }
        self.tidy();
        Ok(self)
    }
}

/// Reads a case that was written as JSON: what `nodewhy explain PATH` is given.
///
/// # Errors
/// The text is not a case, or it is one that no builder would have made.
pub fn read_case(json: &str) -> Result<Case, CaseError> {
    let case: Case =
        serde_json::from_str(json).map_err(|error| CaseError::Malformed { error: error.to_string() })?;
    case.checked()
}

impl NodeCase {
    /// Starts the evidence of this node.
    pub fn of(id: NodeId) -> NodeCaseBuilder {
        NodeCaseBuilder { id, findings: None, events: None, collectors: None, facts: None }
    }

    /// This node's findings of this name, active ones first, then by time. Empty when the agent can't be asked:
    /// look at [`NodeCase::collector`] before taking that for "well".
    pub fn findings_named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Finding> + 'a {
        let mut found: Vec<&Finding> =
            self.findings.known().into_iter().flatten().filter(move |f| f.finding == name).collect();
        found.sort_by(|a, b| (a.ended.is_some(), a.began, &a.id).cmp(&(b.ended.is_some(), b.began, &b.id)));
        found.into_iter()
    }

    /// This node's finding of this name that holds now, or else the one that ended last.
    pub fn finding(&self, name: &str) -> Option<&Finding> {
        let mut found: Vec<&Finding> =
            self.findings.known().into_iter().flatten().filter(|f| f.finding == name).collect();
        found.sort_by_key(|f| (f.ended.is_some(), f.ended.map(std::cmp::Reverse), f.began, &f.id));
        found.into_iter().next()
    }

    /// This collector's outcome; `Err` says in words why nothing can be concluded from its silence.
    ///
    /// # Errors
    /// The agent can't be asked, does not know the collector, or the collector is absent, failed or stuck.
    pub fn collector(&self, name: &str) -> Result<(), String> {
        match &self.collectors {
            Source::Missing { why } => Err(format!("{name}: {why}")),
            Source::Known(outcomes) => match outcomes.get(name) {
                None => Err(format!("{name}: this agent has no such collector")),
                Some(Outcome::Read) => Ok(()),
                Some(outcome) => match outcome.why() {
                    Some(why) => Err(format!("{name}: {} ({why})", outcome.word())),
                    None => Err(format!("{name}: {}", outcome.word())),
                },
            },
        }
    }

    /// The newest Ready condition; `None` when it was never heard.
    pub fn ready(&self) -> Option<&Condition> {
        self.condition("Ready")
    }

    /// The newest condition of this type; `None` when it was never heard, or the Node object is gone since.
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        let newest = self.facts.known()?.iter().rev().find_map(|fact| match &fact.body {
            FactBody::Condition(condition) if condition.kind == kind => Some(Some(condition)),
            FactBody::NodeDeleted => Some(None),
            _ => None,
        });
        newest.flatten()
    }

    /// The newest Lease, with when it was heard.
    pub fn lease(&self) -> Option<(&Lease, Timestamp)> {
        self.facts.known()?.iter().rev().find_map(|fact| match &fact.body {
            FactBody::Lease(lease) => Some((lease, fact.observed)),
            _ => None,
        })
    }

    /// When the kubelet's heart last beat, as its Lease tells: `renewTime`, but never later than we heard of it, for a
    /// node's clock can be ahead.
    pub fn heartbeat(&self) -> Option<Timestamp> {
        self.lease().map(|(lease, observed)| lease.renew_time.min(observed))
    }
}

/// Why there is no case.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CaseError {
    /// An input was neither given nor said to be missing.
    #[error("the case about {node} lacks {what}: give it, or say why it is missing")]
    Forgotten {
        /// Which input.
        what: &'static str,
        /// Of which node.
        node: String,
    },
    /// The window ends before it begins.
    #[error("the window of the case ends ({to}) before it begins ({from})")]
    Backwards {
        /// Its beginning.
        from: Timestamp,
        /// Its end.
        to: Timestamp,
    },
    /// The same node was given twice: which evidence counts would hang on the order.
    #[error("the case has the evidence of {node} twice: give each node once")]
    Twice {
        /// Which node.
        node: String,
    },
    /// A node's evidence stands under another node's name.
    #[error("under {key:?} the case has the evidence of {name:?}: name it by its own node")]
    Misnamed {
        /// The name it stands under.
        key: String,
        /// The name it has.
        name: String,
    },
    /// The text is not a case.
    #[error("this is not a case in nodewhy's JSON: {error}; take one from a bundle, whole")]
    Malformed {
        /// What the reader met, with line and column.
        error: String,
    },
}

/// Builds a case; refuses one with a forgotten input.
pub struct CaseBuilder {
    node: String,
    window: Option<Window>,
    nodes: Vec<NodeCase>,
    cluster: Option<Source<ClusterCase>>,
}

impl CaseBuilder {
    /// The stretch of time.
    #[must_use]
    pub fn window(mut self, from: Timestamp, to: Timestamp) -> CaseBuilder {
        self.window = Some(Window { from, to });
        self
    }

    /// One node's evidence.
    #[must_use]
    pub fn node(mut self, node: NodeCase) -> CaseBuilder {
        self.nodes.push(node);
        self
    }

    /// What the API server says of the cluster, or why it can't be asked.
    #[must_use]
    pub fn cluster(mut self, cluster: Source<ClusterCase>) -> CaseBuilder {
        self.cluster = Some(cluster);
        self
    }

    /// The case.
    ///
    /// # Errors
    /// An input was forgotten, a node was given twice, or the window ends before it begins.
    pub fn build(self) -> Result<Case, CaseError> {
        let forgotten = |what| CaseError::Forgotten { what, node: self.node.clone() };
        let window = self.window.ok_or_else(|| forgotten("its window of time"))?;
        let cluster = self.cluster.ok_or_else(|| forgotten("the cluster's view"))?;
        let mut nodes = BTreeMap::new();
        for node in self.nodes {
            let name = node.id.name.clone();
            if nodes.insert(name.clone(), node).is_some() {
                return Err(CaseError::Twice { node: name });
            }
        }
        Case { node: self.node, window, nodes, cluster }.checked()
    }
}

/// Builds one node's evidence; refuses a forgotten source.
pub struct NodeCaseBuilder {
    id: NodeId,
    findings: Option<Source<Vec<Finding>>>,
    events: Option<Source<Vec<Event>>>,
    collectors: Option<Source<BTreeMap<String, Outcome>>>,
    facts: Option<Source<Vec<Fact>>>,
}

impl NodeCaseBuilder {
    /// The agent's findings.
    #[must_use]
    pub fn findings(mut self, findings: Source<Vec<Finding>>) -> NodeCaseBuilder {
        self.findings = Some(findings);
        self
    }

    /// The agent's events.
    #[must_use]
    pub fn events(mut self, events: Source<Vec<Event>>) -> NodeCaseBuilder {
        self.events = Some(events);
        self
    }

    /// The collectors' outcomes.
    #[must_use]
    pub fn collectors(mut self, collectors: Source<BTreeMap<String, Outcome>>) -> NodeCaseBuilder {
        self.collectors = Some(collectors);
        self
    }

    /// What the API server said of this node.
    #[must_use]
    pub fn facts(mut self, facts: Source<Vec<Fact>>) -> NodeCaseBuilder {
        self.facts = Some(facts);
        self
    }

    /// The node's evidence. Its lists are put in order of time and rid of repeats, so that the order in which
    /// reports came never changes a verdict.
    ///
    /// # Errors
    /// A source was forgotten.
    pub fn build(self) -> Result<NodeCase, CaseError> {
        let node = self.id.name.clone();
        let forgotten = |what| CaseError::Forgotten { what, node: node.clone() };
        let mut case = NodeCase {
            findings: self.findings.ok_or_else(|| forgotten("the agent's findings"))?,
            events: self.events.ok_or_else(|| forgotten("the agent's events"))?,
            collectors: self.collectors.ok_or_else(|| forgotten("the collectors' outcomes"))?,
            facts: self.facts.ok_or_else(|| forgotten("the API server's facts"))?,
            id: self.id,
        };
        case.tidy();
        Ok(case)
    }
}

#[cfg(test)]
mod tests {
    use nodewhy_proto::{Severity, Subject};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_795_000_000 + second).unwrap()
    }

    fn finding(id: &str, began: i64, ended: Option<i64>) -> Finding {
        Finding {
            id: id.to_owned(),
            finding: "runtime_hung".to_owned(),
            collector: "runtime".to_owned(),
            subject: Subject::node(),
            severity: Severity::Critical,
            began: at(began),
            noticed: at(began),
            ended: ended.map(at),
            summary: "hung".to_owned(),
            evidence: vec![],
        }
    }

    fn node(findings: Vec<Finding>) -> NodeCase {
        NodeCase::of(NodeId { name: "worker-7".to_owned(), ..NodeId::default() })
            .findings(Source::Known(findings))
            .events(Source::Known(vec![]))
            .collectors(Source::Known(BTreeMap::new()))
            .facts(Source::missing("no API server"))
            .build()
            .unwrap()
    }

    #[test]
    fn of_a_finding_told_twice_the_ended_version_is_kept_wherever_it_stands() {
        // The same id with another finding between: repeats need not be neighbours.
        let told = [finding("a", 0, None), finding("b", 1, None), finding("a", 0, Some(5))];
        let mut reversed = told.to_vec();
        reversed.reverse();
        for findings in [told.to_vec(), reversed] {
            let node = node(findings);
            let known = node.findings.known().unwrap();
            assert_eq!(known.len(), 2);
            assert_eq!(known.iter().find(|f| f.id == "a").unwrap().ended, Some(at(5)));
        }
    }

    #[test]
    fn a_forgotten_source_is_named() {
        let forgotten = NodeCase::of(NodeId { name: "worker-7".to_owned(), ..NodeId::default() })
            .findings(Source::Known(vec![]))
            .events(Source::Known(vec![]))
            .facts(Source::Known(vec![]))
            .build()
            .unwrap_err();
        assert!(forgotten.to_string().contains("the collectors' outcomes"), "{forgotten}");
    }

    #[test]
    fn a_case_without_window_cluster_or_node_is_refused() {
        let missing = || Source::missing("no API server");
        let no_window = Case::about("worker-7").node(node(vec![])).cluster(missing()).build();
        assert!(matches!(no_window, Err(CaseError::Forgotten { what: "its window of time", .. })));
        let no_cluster = Case::about("worker-7").node(node(vec![])).window(at(0), at(1)).build();
        assert!(matches!(no_cluster, Err(CaseError::Forgotten { what: "the cluster's view", .. })));
        let no_node = Case::about("worker-7").window(at(0), at(1)).cluster(missing()).build();
        assert!(matches!(no_node, Err(CaseError::Forgotten { .. })));
        let twice = Case::about("worker-7").node(node(vec![])).node(node(vec![]));
        let twice = twice.window(at(0), at(1)).cluster(missing()).build();
        assert_eq!(twice, Err(CaseError::Twice { node: "worker-7".to_owned() }));
        let backwards = Case::about("worker-7").node(node(vec![])).window(at(1), at(0)).cluster(missing());
        assert!(matches!(backwards.build(), Err(CaseError::Backwards { .. })));
    }

    #[test]
    fn every_prefix_of_a_case_is_an_error() {
        let case = Case::about("worker-7")
            .node(node(vec![finding("a", 0, Some(5))]))
            .window(at(0), at(9))
            .cluster(Source::missing("no API server"))
            .build()
            .unwrap();
        let json = serde_json::to_string(&case).unwrap();
        assert_eq!(read_case(&json), Ok(case));
        for end in 0..json.len() {
            let prefix = json.get(..end).unwrap();
            assert!(matches!(read_case(prefix), Err(CaseError::Malformed { .. })), "{prefix}");
        }
    }
}
