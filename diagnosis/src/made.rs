//! Cases made by hand for tests. Times are seconds after 08:00:00.

use std::collections::BTreeMap;

use jiff::Timestamp;
use nodewhy_proto::{
    Condition, ConditionStatus, Event, EventBody, Evidence, Fact, FactBody, Finding, Lease, NodeId, OomKill,
    OomScope, Outcome, ProcessChange, Role, Severity, Subject, SubjectKind,
};

use crate::{Answer, Case, Cause, ClusterCase, Holding, NodeCase, Peer, Source};

pub(crate) const NODE: &str = "worker-7";

/// So many seconds after 08:00:00.
pub(crate) fn at(second: i64) -> Timestamp {
    "2026-11-21T08:00:00Z".parse::<Timestamp>().unwrap() + jiff::SignedDuration::from_secs(second)
}

#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) to: i64,
    pub(crate) findings: Vec<Finding>,
    pub(crate) events: Vec<Event>,
    pub(crate) collectors: BTreeMap<String, Outcome>,
    pub(crate) facts: Source<Vec<Fact>>,
    pub(crate) cluster: Source<ClusterCase>,
}

/// A node that is well at 08:00:00 and a hundred seconds on: every collector reads, Ready is True.
pub(crate) fn well() -> Made {
    let names = ["pressure", "memory", "oom", "runtime", "kubelet", "cni"];
    Made {
        to: 100,
        findings: vec![],
        events: vec![],
        collectors: names.iter().map(|name| ((*name).to_owned(), Outcome::Read)).collect(),
        facts: Source::Known(vec![]),
        cluster: Source::missing("only this node was asked"),
    }
    .ready(-600, ConditionStatus::True, "kubelet is posting ready status")
}

impl Made {
    pub(crate) fn to(mut self, second: i64) -> Made {
        self.to = second;
        self
    }

    pub(crate) fn found(
        self,
        collector: &str,
        name: &str,
        kind: SubjectKind,
        subject: &str,
        began: i64,
    ) -> Made {
        self.found_until(collector, name, kind, subject, (began, None))
    }

    pub(crate) fn found_until(
        mut self,
        collector: &str,
        name: &str,
        kind: SubjectKind,
        subject: &str,
        (began, ended): (i64, Option<i64>),
    ) -> Made {
        self.findings.push(Finding {
            id: format!("{name}/{subject}@{began}"),
            finding: name.to_owned(),
            collector: collector.to_owned(),
            subject: Subject::new(kind, subject),
            severity: Severity::Critical,
            began: at(began),
            noticed: at(began + 2),
            ended: ended.map(at),
            summary: format!("{name} on {subject}"),
            evidence: vec![Evidence::new(
                format!("seen: {name}"),
                format!("the {collector} collector's source"),
            )],
        });
        self
    }

    pub(crate) fn collector(mut self, name: &str, outcome: Outcome) -> Made {
        self.collectors.insert(name.to_owned(), outcome);
        self
    }

    pub(crate) fn absent(self, name: &str) -> Made {
        self.collector(name, Outcome::Absent { why: "not on this node".to_owned() })
    }

    pub(crate) fn failed(self, name: &str) -> Made {
        self.collector(name, Outcome::Failed { error: "permission denied".to_owned() })
    }

    pub(crate) fn happened(mut self, id: &str, second: i64, source: &str, body: EventBody) -> Made {
        self.events.push(Event {
            id: id.to_owned(),
            cursor: id.to_owned(),
            at: at(second),
            boot_seconds: 1000.0,
            boot_id: None,
            source: source.to_owned(),
            body,
        });
        self
    }

    pub(crate) fn exited(self, second: i64, role: Role, name: &str, pid: u32) -> Made {
        let change = ProcessChange { role, name: name.to_owned(), pid, detail: String::new() };
        self.happened(&format!("exit/{pid}"), second, "kubelet", EventBody::ProcessExited(change))
    }

    pub(crate) fn killed(self, second: i64, kill: OomKill) -> Made {
        self.happened(&format!("kmsg/{second}/{}", kill.pid), second, "oom", EventBody::OomKill(kill))
    }

    pub(crate) fn said(mut self, observed: i64, source: &str, body: FactBody) -> Made {
        if let Source::Known(facts) = &mut self.facts {
            facts.push(Fact { observed: at(observed), source: source.to_owned(), body });
        }
        self
    }

    pub(crate) fn condition(self, kind: &str, second: i64, status: ConditionStatus, message: &str) -> Made {
        let condition = Condition {
            kind: kind.to_owned(),
            status,
            reason: "Reason".to_owned(),
            message: message.to_owned(),
            last_transition: Some(at(second)),
        };
        self.said(second, "Node worker-7", FactBody::Condition(condition))
    }

    pub(crate) fn ready(self, second: i64, status: ConditionStatus, message: &str) -> Made {
        self.condition("Ready", second, status, message)
    }

    pub(crate) fn renewed(self, second: i64) -> Made {
        let lease = Lease { renew_time: at(second), duration_seconds: 40 };
        self.said(second, "Lease worker-7", FactBody::Lease(lease))
    }

    pub(crate) fn no_api(mut self) -> Made {
        self.facts = Source::missing("no API server was asked");
        self
    }

    pub(crate) fn cluster(mut self, heard: i64, peers: Vec<Peer>) -> Made {
        self.cluster = Source::Known(ClusterCase { heard: at(heard), peers });
        self
    }

    pub(crate) fn case(self) -> Case {
        let node = NodeCase::of(NodeId { name: NODE.to_owned(), ..NodeId::default() })
            .findings(Source::Known(self.findings))
            .events(Source::Known(self.events))
            .collectors(Source::Known(self.collectors))
            .facts(self.facts)
            .build()
            .unwrap();
        Case::about(NODE).node(node).window(at(-900), at(self.to)).cluster(self.cluster).build().unwrap()
    }

    pub(crate) fn ask(self, cause: &Cause) -> Answer {
        let case = self.case();
        (cause.check)(&case, case.asked().unwrap())
    }

    pub(crate) fn yes(self, cause: &Cause) -> Holding {
        match self.ask(cause) {
            Answer::Yes(holding) => {
                assert!(!holding.because.is_empty() && !holding.text.is_empty());
                assert!(holding.certainty > 0.0 && holding.certainty < 1.0);
                holding
            }
            other => panic!("{} says {other:?}", cause.id),
        }
    }

    /// The evidence against, as one text.
    pub(crate) fn no(self, cause: &Cause) -> String {
        match self.ask(cause) {
            Answer::No { because } => {
                assert!(!because.is_empty());
                because.iter().map(|one| one.text.as_str()).collect::<Vec<_>>().join("; ")
            }
            other => panic!("{} says {other:?}", cause.id),
        }
    }

    /// What is missing, as one text.
    pub(crate) fn cannot_tell(self, cause: &Cause) -> String {
        match self.ask(cause) {
            Answer::CannotTell { missing } => {
                assert!(!missing.is_empty());
                missing.join("; ")
            }
            other => panic!("{} says {other:?}", cause.id),
        }
    }
}

/// A kill as the agent joins it from the kernel's lines.
pub(crate) fn kill(scope: OomScope, role: Role, name: &str, pid: u32) -> OomKill {
    let constraint = if scope == OomScope::Global { "CONSTRAINT_NONE" } else { "CONSTRAINT_MEMCG" };
    OomKill {
        scope,
        constraint: Some(constraint.to_owned()),
        limit_cgroup: None,
        victim_cgroup: None,
        pid,
        name: name.to_owned(),
        role,
        pod_uid: None,
        container_id: None,
        rss_bytes: Some(62_914_560),
        oom_score_adj: Some(-999),
        trigger: Some("gateway".to_owned()),
        group: vec![],
        biggest: vec![],
        memory_bytes: Default::default(),
        reaped: None,
        attributed_by: None,
        kmsg_seq: Some(48_213),
    }
}

pub(crate) fn peer(name: &str, ready: ConditionStatus, since: i64, agent_well: Option<bool>) -> Peer {
    Peer { name: name.to_owned(), ready, ready_since: Some(at(since)), lease_renewed: None, agent_well }
}
