//! On answers of a real agent: `fixtures/kubelet-killed/README.md` says of which.

use nodewhy_guest::channel::Clocks;
use nodewhy_proto::{Conclusion, SubjectKind};

use super::*;
use crate::evidence::{Heard, VERSION, tests::truth};
use crate::fault::{Expect, Fault, Injected, Sees, What};

fn lines<T: serde::de::DeserializeOwned>(text: &str) -> Vec<T> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// When it was killed, started again, and last looked at, as the recorder noted it.
fn killed() -> Evidence {
    let served = Served {
        node: lines(include_str!("../../fixtures/kubelet-killed/node.jsonl")),
        state: lines(include_str!("../../fixtures/kubelet-killed/state.jsonl")),
        findings: lines(include_str!("../../fixtures/kubelet-killed/findings.jsonl")),
        events: lines(include_str!("../../fixtures/kubelet-killed/events.jsonl")),
        ..Served::default()
    };
    let since = Clocks {
        unix_nanos: 1_795_278_665_740_461_043,
        boot_nanos: 15_428_814_827_690,
        monotonic_nanos: 15_428_814_829_048,
    };
    let truth = Truth {
        version: VERSION,
        cause: "kubelet_down".to_owned(),
        injected: Injected::since(since),
        undone_at: "2026-11-21T16:31:12.816513Z".parse().unwrap(),
        began_at: "2026-11-21T16:30:59.699584Z".parse().unwrap(),
        ended_at: "2026-11-21T16:31:17.896687Z".parse().unwrap(),
        ..truth("kubelet-killed")
    };
    Evidence { truth, agents: [(Way::Host, served.clone()), (Way::Pod, served)].into(), kmsg: None }
}

const FAULT: Fault = Fault {
    name: "kubelet-killed",
    cause: "kubelet_down",
    subject: (SubjectKind::Kubelet, "kubelet"),
    sees: &[Sees::of("kubelet", What::Finding("kubelet_absent"))],
    diagnosed: Expect::Root,
    ..Fault::USUAL
};

fn served(evidence: &mut Evidence) -> &mut Served {
    evidence.agents.get_mut(&Way::Host).unwrap()
}

fn wrong(fault: &Fault, evidence: &Evidence, way: Way) -> String {
    judge(fault, evidence, way).unwrap().wrong.join("\n")
}

#[test]
fn the_truth_is_found_and_the_node_was_well_before() {
    let evidence = killed();
    assert_eq!(
        judge(&FAULT, &evidence, Way::Host).unwrap(),
        Judged { line: "kubelet_down, sure 0.80".to_owned(), wrong: vec![] }
    );
    assert_eq!(verdict_line(&evidence, Way::Pod), "kubelet_down, sure 0.80");
    let before = verdict(&evidence, Way::Host, Moment::BeforeFault).unwrap();
    assert_eq!((before.conclusion, before.ready), (Conclusion::Healthy, None));
    // Without an API server the chain ends in a loss of Ready that is yet to come.
    let broken = verdict(&evidence, Way::Host, Moment::BeforeUndo).unwrap();
    let last = broken.roots[0].chain.last().unwrap();
    assert_eq!((last.id.as_str(), last.happened), (nodewhy_diagnosis::NOT_READY, false));
}

#[test]
fn the_fault_is_found_by_the_clock_since_boot_to_a_few_milliseconds() {
    let evidence = killed();
    // The machine that recorded is the one that was recorded: its wall clock knows it too.
    let truly = Timestamp::from_nanosecond(i128::from(evidence.truth.injected.since.unix_nanos)).unwrap();
    let at = injected_at(&evidence.truth, &evidence.agents[&Way::Host]).unwrap();
    assert!(at.duration_since(truly).abs() < SignedDuration::from_millis(20), "{at} {truly}");
}

#[test]
fn what_is_claimed_beside_the_truth_is_wrong() {
    let evidence = killed();
    let other = Fault { cause: "containerd_hung", ..FAULT };
    let not_yet = Fault { cause: "client_cert_expired", diagnosed: Expect::NotYet("not there"), ..FAULT };
    for fault in [&other, &not_yet] {
        assert!(wrong(fault, &evidence, Way::Host).contains("kubelet_down is named as a root"));
    }
    // The runtime's collector was off: it can't be known.
    assert!(wrong(&other, &evidence, Way::Host).contains("containerd_hung holds is not known"));
    let also = Fault { also: &["kubelet_down"], ..not_yet };
    assert_eq!(wrong(&also, &evidence, Way::Host), "");
    // A stale expectation: it is known by now.
    let known = Fault { diagnosed: Expect::NotYet("not there"), ..FAULT };
    assert!(wrong(&known, &evidence, Way::Host).contains("is named as a root"));
    let elsewhere = Fault { subject: (SubjectKind::Runtime, ""), ..FAULT };
    assert!(wrong(&elsewhere, &evidence, Way::Host).contains("is about"));
}

#[test]
fn what_a_pod_cannot_see_may_be_unknown_there_and_never_denied() {
    const HIDDEN: &[Sees] =
        &[Sees::not_in_pod("runtime", What::Finding("runtime_hung"), "for this test alone")];
    let evidence = killed();
    let unknown = Fault { cause: "containerd_hung", sees: HIDDEN, also: &["kubelet_down"], ..FAULT };
    assert_eq!(wrong(&unknown, &evidence, Way::Pod), "");
    assert_ne!(wrong(&unknown, &evidence, Way::Host), "");
    let denied = Fault { cause: "kubelet_wedged", ..unknown };
    assert!(wrong(&denied, &evidence, Way::Pod).contains("kubelet_wedged is denied"));
}

#[test]
fn a_fault_dated_before_it_was_made_or_found_on_a_well_node_is_wrong() {
    let mut evidence = killed();
    // As if it had been made five seconds later: then the node was not well before.
    evidence.truth.injected.since.boot_nanos += 5_000_000_000;
    let wrong = wrong(&FAULT, &evidence, Way::Host);
    for part in ["before the fault, kubelet_absent holds", "before the fault, the verdict is", "is dated"] {
        assert!(wrong.contains(part), "{wrong}");
    }
}

#[test]
fn silence_is_missing_and_never_well() {
    let mut evidence = killed();
    let hole = Said::Hole { error: "no answer in 2 s".to_owned() };
    let undone = evidence.truth.undone_at;
    let cut = "2026-11-21T16:31:04Z".parse().unwrap();
    let agent = served(&mut evidence);
    for answer in agent.node.iter_mut().chain(&mut agent.state).chain(&mut agent.findings) {
        if answer.received > cut {
            answer.said = hole.clone();
        }
    }
    agent.events.retain(|heard| heard.received < cut);
    agent.events.push(Heard { received: cut, what: Stream::Lost { why: "the stream ended".to_owned() } });
    let case = case(&evidence, Way::Host, Moment::BeforeUndo).unwrap();
    assert_eq!(case.window.to, undone);
    let node = case.asked().unwrap();
    assert!(node.collectors.why_missing().unwrap().contains("no answer in 2 s"), "{node:?}");
    assert_eq!(explain(&case).conclusion, Conclusion::NoCauseFound);
    assert_eq!(verdict_line(&evidence, Way::Host), "no cause found");
    served(&mut evidence).node.clear();
    let error = format!("{:#}", verdict(&evidence, Way::Host, Moment::End).unwrap_err());
    assert!(error.contains("host of kubelet-killed") && error.contains("never said"), "{error}");
}

#[test]
fn an_answer_that_is_not_understood_is_no_evidence() {
    for end in [0, 1, 100] {
        let mut evidence = killed();
        let answer = &mut served(&mut evidence).state[0];
        if let Said::Body { body, .. } = &mut answer.said {
            body.truncate(end);
        }
        let error = format!("{:#}", case(&evidence, Way::Host, Moment::BeforeFault).unwrap_err());
        assert!(error.contains("/api/v1/state") && error.contains("can't be read"), "{error}");
    }
}
