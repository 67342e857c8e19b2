//! Judging by what is known, without a wire.

use std::time::Duration;

use jiff::SignedDuration;
use nodewhy_clock::Mover;
use nodewhy_diagnosis::Source;
use nodewhy_proto::{Conclusion, EventBody, Finding, OomKill, OomScope, Role, Severity};
use proptest::prelude::*;

use super::*;
use crate::gather::{AgentView, Contact};
use crate::store::opener;
use crate::testing::{event, finding, lease_object, node_object, root, verdict};
use crate::watch::{ClusterView, Watched};

/// Names what it was given, so that a verdict shows the case: each finding is a root, in the case's order.
fn explain(case: &Case) -> Verdict {
    let node = case.asked().unwrap();
    let mut verdict = verdict(&case.node, Conclusion::Explained, node.ready().map(|ready| ready.status));
    for finding in node.findings.known().into_iter().flatten() {
        verdict.roots.push(root(&finding.finding, finding.began));
    }
    if let Source::Known(events) = &node.events {
        verdict.blind.extend(events.iter().map(|event| event.id.clone()));
    }
    verdict
}

async fn judge() -> (Judge, Mover) {
    let (clock, mover) = Clock::skippable();
    let judge = Judge::new(
        Arc::new(Shared::default()),
        Arc::new(Ledger::start(opener(None)).await.unwrap()),
        Arc::new(Metrics::new().unwrap()),
        clock,
        Timings::default(),
        Diagnosis { explain, causes: Vec::new },
    );
    (judge, mover)
}

fn answering() -> AgentView {
    let mut agent = AgentView::default();
    agent.contact = Contact::Answers;
    agent
}

fn watched(judge: &Judge, change: impl FnOnce(&mut Watched)) {
    let mut known = judge.shared.lock();
    if known.cluster.watched().is_none() {
        known.cluster = ClusterView::Watched(Box::new(Watched::new(SignedDuration::from_secs(40))));
    }
    let watched = known.cluster.watched_mut().unwrap();
    change(watched);
    for channel in [&mut watched.nodes_channel, &mut watched.leases_channel] {
        channel.listed = true;
        channel.hear(judge.clock.now());
    }
}

fn kill(role: Role) -> EventBody {
    EventBody::OomKill(OomKill {
        scope: OomScope::Global,
        constraint: None,
        limit_cgroup: None,
        victim_cgroup: None,
        pid: 7,
        name: "containerd".to_owned(),
        role,
        pod_uid: None,
        container_id: None,
        rss_bytes: None,
        oom_score_adj: None,
        trigger: None,
        group: Vec::new(),
        biggest: Vec::new(),
        memory_bytes: Default::default(),
        reaped: None,
        attributed_by: None,
        kmsg_seq: None,
    })
}

#[tokio::test]
async fn an_oom_kill_of_a_system_process_opens_and_that_of_a_pod_does_not() {
    for (role, opens) in
        [(Role::Runtime, true), (Role::Kubelet, true), (Role::Pod, false), (Role::Other, false)]
    {
        let (judge, _mover) = judge().await;
        let now = judge.clock.now();
        let mut agent = answering();
        agent.take_event(nodewhy_proto::Event { at: now, ..event(1, 0, kill(role)) }, now);
        judge.shared.lock().agents.insert("n".to_owned(), agent);
        judge.judge("n");
        assert_eq!(judge.open_incident("n").is_some(), opens, "{role:?}");
    }
}

#[tokio::test]
async fn a_warning_opens_nothing() {
    let (judge, _mover) = judge().await;
    let now = judge.clock.now();
    let mut agent = answering();
    let warning =
        Finding { severity: Severity::Warning, began: now, noticed: now, ..finding("io_stalled", 0) };
    agent.take_findings(vec![warning], now, now);
    judge.shared.lock().agents.insert("n".to_owned(), agent);
    judge.judge("n");
    assert_eq!(judge.open_incident("n"), None);
    assert!(judge.why("n").unwrap().is_ok() && judge.why("ghost").is_none());
}

#[tokio::test]
async fn a_deleted_node_ends_its_incident_and_a_deaf_watch_does_not() {
    let (judge, mover) = judge().await;
    watched(&judge, |watched| {
        watched.list_nodes(vec![node_object("n", "u", "Unknown")], judge.clock.now());
    });
    judge.judge("n");
    assert!(judge.open_incident("n").is_some());
    judge.shared.lock().cluster.watched_mut().unwrap().nodes_channel.broken = Some("refused".to_owned());
    for _ in 0..10 {
        mover.skip(Duration::from_secs(60));
        judge.judge("n");
    }
    assert!(judge.open_incident("n").is_some(), "our deafness is no recovery");
    watched(&judge, |watched| {
        watched.list_nodes(Vec::new(), judge.clock.now());
    });
    judge.judge("n");
    mover.skip(Duration::from_secs(11));
    judge.judge("n");
    assert_eq!(judge.open_incident("n"), None);
}

#[tokio::test]
async fn a_deleted_node_ends_its_incident_though_its_agent_died_with_it() {
    let (judge, mover) = judge().await;
    let now = judge.clock.now();
    let mut agent = answering();
    agent.hear(now);
    agent.take_findings(vec![Finding { began: now, noticed: now, ..finding("runtime_hung", 0) }], now, now);
    judge.shared.lock().agents.insert("n".to_owned(), agent);
    watched(&judge, |watched| {
        watched.list_nodes(vec![node_object("n", "u", "True")], now);
    });
    judge.judge("n");
    assert!(judge.open_incident("n").is_some());
    judge.shared.lock().agents.get_mut("n").unwrap().lose(now, "connection refused".to_owned());
    let look = || {
        for _ in 0..3 {
            mover.skip(Duration::from_secs(11));
            judge.judge("n");
        }
    };
    look();
    assert!(judge.open_incident("n").is_some(), "its last words count");
    watched(&judge, |watched| {
        watched.list_nodes(Vec::new(), judge.clock.now());
    });
    look();
    assert_eq!(judge.open_incident("n"), None);
}

#[tokio::test]
async fn a_node_that_comes_back_under_another_uid_has_incidents_of_its_own() {
    let (judge, mover) = judge().await;
    let is = |uid: &'static str| {
        watched(&judge, |watched| {
            watched.list_nodes(vec![node_object("n", uid, "Unknown")], judge.clock.now());
        });
        judge.judge("n");
        judge.open_incident("n").unwrap()
    };
    let first = is("u1");
    assert_eq!(is("u1"), first);
    mover.skip(Duration::from_secs(5));
    let second = is("u2");
    assert_ne!(second, first);
    assert!(judge.ledger.get(&first).await.unwrap().unwrap().ended.is_some());
    assert_eq!(judge.ledger.open().len(), 1);
}

#[tokio::test]
async fn of_two_open_incidents_of_a_node_the_older_one_is_ended() {
    let ledger = Arc::new(Ledger::start(opener(None)).await.unwrap());
    ledger.put(crate::testing::incident("a", "n", 100, 1));
    ledger.put(crate::testing::incident("b", "n", 200, 1));
    let judge = Judge::new(
        Arc::new(Shared::default()),
        ledger,
        Arc::new(Metrics::new().unwrap()),
        Clock::system(),
        Timings::default(),
        Diagnosis { explain, causes: Vec::new },
    );
    assert_eq!(judge.open_incident("n").as_deref(), Some("b"));
    assert_eq!(judge.ledger.get("a").await.unwrap().unwrap().ended, Some(crate::testing::at(200)));
}

#[tokio::test]
async fn a_stale_lease_opens_while_ready_is_true() {
    let (judge, mover) = judge().await;
    watched(&judge, |watched| {
        let now = judge.clock.now();
        watched.list_nodes(vec![node_object("n", "u", "True")], now);
        watched.list_leases(vec![lease_object("n", now)], now);
    });
    mover.skip(Duration::from_secs(39));
    watched(&judge, |_| {});
    judge.judge("n");
    assert_eq!(judge.open_incident("n"), None);
    mover.skip(Duration::from_secs(2));
    judge.judge("n");
    let id = judge.open_incident("n").unwrap();
    let incident = judge.ledger.get(&id).await.unwrap().unwrap();
    assert_eq!(incident.revisions[0].changed_by, "the Lease went stale while Ready is True");
    assert_eq!(incident.lost_ready, None);
}

/// What can be heard, each thing once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    Hung,
    Absent,
    Kill,
    PodKill,
    NotReady,
    Lease,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    // Whatever the order, however often, with or without a look in between: the verdict is the same.
    #[test]
    fn the_order_of_wakes_never_changes_the_verdict(
        order in Just(vec![Heard::Hung, Heard::Absent, Heard::Kill, Heard::PodKill, Heard::NotReady, Heard::Lease]).prop_shuffle(),
        again in proptest::collection::vec(0_usize..6, 0..5),
        looks in proptest::collection::vec(any::<bool>(), 11),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (judge, _mover) = runtime.block_on(judge());
        let now = judge.clock.now();
        judge.shared.lock().agents.insert("n".to_owned(), answering());
        watched(&judge, |watched| {
            watched.list_nodes(vec![node_object("n", "u", "True")], now);
        });
        let began = |name: &str, ago: i64| {
            let at = now - SignedDuration::from_secs(ago);
            EventBody::FindingBegan { finding: Finding { began: at, noticed: at, ..finding(name, 0) } }
        };
        let all: Vec<Heard> = order.iter().copied().chain(again.iter().filter_map(|i| order.get(*i).copied())).collect();
        for (heard, look) in all.iter().zip(looks) {
            let tell = |number: u64, ago: i64, body: EventBody| {
                let event = nodewhy_proto::Event { at: now - SignedDuration::from_secs(ago), ..event(number, 0, body) };
                judge.shared.lock().agents.get_mut("n").unwrap().take_event(event, judge.clock.now());
            };
            match heard {
                Heard::Hung => tell(1, 30, began("runtime_hung", 30)),
                Heard::Absent => tell(2, 20, began("kubelet_absent", 20)),
                Heard::Kill => tell(3, 40, kill(Role::Runtime)),
                Heard::PodKill => tell(4, 25, kill(Role::Pod)),
                Heard::NotReady => watched(&judge, |watched| {
                    watched.apply_node(node_object("n", "u", "False"), judge.clock.now());
                }),
                Heard::Lease => watched(&judge, |watched| {
                    watched.apply_lease(lease_object("n", now), now);
                }),
            }
            if look {
                judge.judge("n");
            }
        }
        judge.judge("n");
        let id = judge.open_incident("n").unwrap();
        let incident = runtime.block_on(judge.ledger.get(&id)).unwrap().unwrap();
        let verdict = incident.verdict().unwrap();
        let roots: Vec<&str> = verdict.roots.iter().map(|root| root.cause.as_str()).collect();
        prop_assert_eq!(roots, ["runtime_hung", "kubelet_absent"]);
        prop_assert_eq!(verdict.ready, Some(nodewhy_proto::ConditionStatus::False));
        let why = judge.why("n").unwrap().unwrap();
        prop_assert_eq!(why.blind, ["boot/3", "boot/4"]);
    }
}
