use nodewhy_proto::ConditionStatus::{False, True, Unknown};
use nodewhy_proto::SubjectKind::{Cni, Kubelet, Runtime};
use nodewhy_proto::{Conclusion, FactBody, OomScope, Outcome, Role, Severity, Step, Subject};
use proptest::prelude::*;

use super::*;
use crate::made::*;
use crate::{Link, NOT_READY, NodeCase, Source};

// The messages are recorded from kubelets 1.32.6 and 1.36.2.
const DOWN: &str = "container runtime is down";
const PLEG: &str = "[container runtime is down, PLEG is not healthy: pleg was last seen active 4m11.389129556s ago; \
                    threshold is 3m0s]";
const SILENT: &str = "Kubelet stopped posting node status.";

fn chain(verdict: &Verdict) -> Vec<&str> {
    verdict.roots.first().map(|root| ids(&root.chain)).unwrap_or_default()
}

fn ids(steps: &[Step]) -> Vec<&str> {
    steps.iter().map(|step| step.id.as_str()).collect()
}

fn roots(verdict: &Verdict) -> Vec<&str> {
    verdict.roots.iter().map(|root| root.cause.as_str()).collect()
}

fn contributing(verdict: &Verdict) -> Vec<&str> {
    verdict.contributing.iter().map(|held| held.cause.as_str()).collect()
}

fn hung() -> Made {
    well().found("runtime", "runtime_hung", Runtime, "/run/containerd/containerd.sock", 0)
}

fn kubelet_gone(second: i64) -> Made {
    well().found("kubelet", "kubelet_absent", Kubelet, "kubelet", second)
}

#[test]
fn a_node_that_is_well_is_healthy() {
    for made in [well(), well().renewed(95), well().no_api()] {
        let verdict = explain(&made.case());
        assert_eq!(verdict.conclusion, Conclusion::Healthy);
        assert!(verdict.roots.is_empty() && verdict.contributing.is_empty() && verdict.cycles.is_empty());
    }
}

#[test]
fn where_nobody_says_anything_nothing_is_well() {
    let mut nobody = well().no_api();
    nobody.collectors.clear();
    assert_eq!(explain(&nobody.case()).conclusion, Conclusion::NoCauseFound);
    // Ready True with a Lease that is not renewed: the view is old, or the word is.
    assert_eq!(explain(&well().renewed(10).case()).conclusion, Conclusion::NoCauseFound);
    let deleted = explain(&well().said(50, "Node worker-7", FactBody::NodeDeleted).case());
    assert_eq!((deleted.conclusion, deleted.ready), (Conclusion::NoCauseFound, None));
}

#[test]
fn a_hung_runtime_is_named_before_the_api_knows() {
    let verdict = explain(&hung().to(10).case());
    assert_eq!(verdict.conclusion, Conclusion::Explained);
    assert_eq!(chain(&verdict), ["containerd_hung", "not_ready"]);
    let last = verdict.roots[0].chain.last().unwrap();
    assert_eq!((last.happened, last.at), (false, Some(at(115))));
    assert!(last.text.contains("between 08:01:55 and 08:02:15"), "{}", last.text);
    assert!(verdict.ruled_out.iter().any(|out| out.cause == "containerd_dead"));
}

#[test]
fn an_expected_loss_that_is_overdue_says_so() {
    let verdict = explain(&hung().no_api().to(600).case());
    let last = verdict.roots[0].chain.last().unwrap();
    assert!(
        !last.happened && last.text.contains("was due") && last.text.contains("no API server"),
        "{}",
        last.text
    );
}

#[test]
fn a_hung_runtime_explains_both_of_the_kubelets_messages() {
    let verdict = explain(&hung().ready(122, False, DOWN).to(130).case());
    assert_eq!(chain(&verdict), ["containerd_hung", "not_ready"]);
    let made = hung().ready(122, False, DOWN);
    // The message changed, the transition's time did not.
    let condition = nodewhy_proto::Condition {
        kind: "Ready".into(),
        status: False,
        reason: "KubeletNotReady".into(),
        message: PLEG.into(),
        last_transition: Some(at(122)),
    };
    let verdict = explain(&made.said(252, "Node worker-7", FactBody::Condition(condition)).to(260).case());
    assert_eq!(chain(&verdict), ["containerd_hung", "not_ready"]);
    assert_eq!(verdict.roots[0].chain[1].at, Some(at(122)));
    assert_eq!((verdict.ready, verdict.ready_since), (Some(False), Some(at(122))));
    assert_eq!(verdict.ready_message, PLEG);
}

#[test]
fn a_message_that_another_wrote_is_not_explained() {
    // False is the kubelet's own word: a kubelet that went later did not write it, nor does it explain it.
    let verdict = explain(&kubelet_gone(60).ready(45, False, DOWN).case());
    assert_eq!(
        (verdict.conclusion, contributing(&verdict)),
        (Conclusion::NoCauseFound, vec!["kubelet_down"])
    );
    let verdict = explain(&kubelet_gone(10).ready(45, False, DOWN).case());
    assert_eq!(verdict.conclusion, Conclusion::NoCauseFound);
    let verdict = explain(&hung().ready(100, Unknown, SILENT).case());
    assert_eq!(
        (verdict.conclusion, contributing(&verdict)),
        (Conclusion::NoCauseFound, vec!["containerd_hung"])
    );
}

#[test]
fn a_kill_of_the_kubelet_is_the_root_and_its_chain_is_in_order() {
    let killed = kubelet_gone(10)
        .exited(10, Role::Kubelet, "kubelet", 998)
        .killed(9, kill(OomScope::Global, Role::Kubelet, "kubelet", 998));
    let verdict = explain(&killed.clone().ready(54, Unknown, SILENT).renewed(4).case());
    assert_eq!(chain(&verdict), ["oom_kills_kubelet", "kubelet_down", "not_ready"]);
    let times: Vec<_> = verdict.roots[0].chain.iter().map(|step| step.at.unwrap()).collect();
    assert_eq!(times, [at(9), at(10), at(54)]);
    assert_eq!(roots(&verdict), ["oom_kills_kubelet"]);
    assert_eq!(contributing(&verdict), ["kubelet_down"]);
    // Before the API knows, the same chain with its last step to come.
    let before = explain(&killed.to(15).case());
    assert_eq!(chain(&before), ["oom_kills_kubelet", "kubelet_down", "not_ready"]);
    assert!(!before.roots[0].chain[2].happened);
}

#[test]
fn a_kill_ten_minutes_before_is_no_root() {
    let old = well().killed(-600, kill(OomScope::Global, Role::Kubelet, "kubelet", 998));
    let verdict = explain(&old.clone().ready(50, Unknown, SILENT).case());
    assert_eq!(
        (verdict.conclusion, contributing(&verdict)),
        (Conclusion::NoCauseFound, vec!["oom_kills_kubelet"])
    );
    let healthy = explain(&old.case());
    assert_eq!(
        (healthy.conclusion, contributing(&healthy)),
        (Conclusion::Healthy, vec!["oom_kills_kubelet"])
    );
}

#[test]
fn a_heartbeat_after_the_fault_acquits_it() {
    let kill = kill(OomScope::Global, Role::Kubelet, "kubelet", 998);
    let back = well().killed(0, kill).renewed(25).ready(75, Unknown, SILENT);
    assert_eq!(explain(&back.case()).conclusion, Conclusion::NoCauseFound);
}

#[test]
fn a_killed_runtime_reaches_ready_by_its_death() {
    let killed = well()
        .killed(5, kill(OomScope::Global, Role::Runtime, "containerd", 1465))
        .found("runtime", "runtime_refused", Runtime, "/run/containerd/containerd.sock", 6)
        .ready(45, False, DOWN);
    let verdict = explain(&killed.case());
    assert_eq!(chain(&verdict), ["oom_kills_runtime_or_cni", "containerd_dead", "not_ready"]);
}

#[test]
fn a_pod_at_its_limit_never_takes_ready_away() {
    let pod = well().killed(5, kill(OomScope::Memcg, Role::Pod, "java", 77));
    let verdict = explain(&pod.ready(45, False, DOWN).case());
    assert_eq!(
        (verdict.conclusion, contributing(&verdict)),
        (Conclusion::NoCauseFound, vec!["memcg_oom_container"])
    );
}

#[test]
fn what_followed_later_does_not_hide_what_came_first() {
    // The runtime hung and cost Ready; then it was killed by hand; then the kubelet ended too.
    let story = well()
        .found_until("runtime", "runtime_hung", Runtime, "sock", (0, Some(150)))
        .found("runtime", "runtime_refused", Runtime, "sock", 150)
        .ready(122, False, DOWN)
        .to(180);
    let verdict = explain(&story.clone().case());
    assert_eq!((roots(&verdict), contributing(&verdict)), (vec!["containerd_hung"], vec!["containerd_dead"]));
    let story = story.found("kubelet", "kubelet_absent", Kubelet, "kubelet", 200).ready(250, Unknown, SILENT);
    let verdict = explain(&story.to(260).case());
    assert_eq!(roots(&verdict), ["kubelet_down", "containerd_hung"]);
}

#[test]
fn where_no_kubelet_is_the_cause_itself_ends_the_chain() {
    let verdict = explain(&hung().no_api().absent("kubelet").to(20).case());
    assert_eq!((verdict.conclusion, chain(&verdict)), (Conclusion::Explained, vec!["containerd_hung"]));
    assert!(verdict.blind.iter().any(|line| line == "kubelet: absent (not on this node)"));
}

#[test]
fn what_cannot_be_seen_is_named() {
    let blind =
        explain(&well().failed("oom").collector("runtime", Outcome::Stuck { since: at(3) }).case()).blind;
    assert!(blind.contains(&"oom: failed (permission denied)".to_owned()), "{blind:?}");
    assert!(blind.iter().any(|line| line.starts_with("runtime: stuck (")), "{blind:?}");
    assert!(blind.iter().any(|line| line.starts_with("the cluster: ")), "{blind:?}");
}

#[test]
fn the_control_plane_is_the_root_where_it_lost_most_nodes() {
    let mut peers = vec![peer(NODE, Unknown, 50, Some(true))];
    peers.extend((0..99).map(|n| peer(&format!("w-{n}"), Unknown, 40 + n % 20, Some(true))));
    let made = well().renewed(0).ready(50, Unknown, SILENT).cluster(95, peers);
    let verdict = explain(&made.case());
    assert_eq!(chain(&verdict), ["mass_notready_control_plane", "not_ready"]);
}

// A catalogue of made-up causes: `a` and `b` wait for each other, `c` feeds `a`, and `b` takes Ready away.

fn holds(name: &str, second: i64) -> Answer {
    Answer::Yes(Holding {
        subject: Subject::node(),
        since: Some(at(second)),
        ended: None,
        text: name.to_owned(),
        because: vec![nodewhy_proto::Evidence::new(name, "made up")],
        certainty: 0.8,
        remedy: vec![],
    })
}

const fn made_up(
    id: &'static str,
    leads_to: &'static [Link],
    check: fn(&Case, &NodeCase) -> Answer,
) -> Cause {
    Cause { id, title: "", about: "", scope: Scope::Node, leads_to, remedy: &["Break the circle."], check }
}

static A: Cause = made_up("a", &[Link::new("b", 60)], |_, _| holds("a waits for b", 0));
static B: Cause =
    made_up("b", &[Link::new("a", 60), Link::new(NOT_READY, 60)], |_, _| holds("b waits for a", 1));
static C: Cause = made_up("c", &[Link::new("a", 60)], |_, _| holds("c", 0));
static LATE: Cause = made_up("late", &[Link::new("a", 60)], |_, _| holds("late", 30));
static EARLY: Cause = made_up("early", &[Link::new("a", 60)], |_, _| holds("early", -600));
static SPEECHLESS: Cause = made_up("speechless", &[], |_, _| Answer::No { because: vec![] });

#[test]
fn a_circle_that_nothing_feeds_is_a_deadlock() {
    let verdict = explain_with(&[&B, &A], &well().case());
    assert_eq!(verdict.conclusion, Conclusion::Deadlock);
    assert_eq!(verdict.cycles.iter().map(|cycle| ids(cycle)).collect::<Vec<_>>(), [["a", "b"]]);
    assert!(verdict.roots.is_empty() && verdict.contributing.is_empty());
}

#[test]
fn a_circle_that_is_fed_has_its_root_outside() {
    let verdict = explain_with(&[&A, &B, &C], &well().case());
    assert_eq!(
        (verdict.conclusion, chain(&verdict)),
        (Conclusion::Explained, vec!["c", "a", "b", "not_ready"])
    );
    assert_eq!((verdict.cycles.len(), contributing(&verdict)), (0, vec!["a", "b"]));
}

#[test]
fn neither_a_later_nor_a_much_earlier_cause_feeds_anything() {
    for outside in [&LATE, &EARLY] {
        let verdict = explain_with(&[&A, &B, outside], &well().case());
        assert_eq!((verdict.conclusion, contributing(&verdict)), (Conclusion::Deadlock, vec![outside.id]));
    }
}

#[test]
fn a_no_without_evidence_is_not_believed() {
    let verdict = explain_with(&[&SPEECHLESS], &well().case());
    assert!(verdict.ruled_out.is_empty());
    assert_eq!(verdict.cannot_tell[0].cause, "speechless");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the test measures how long an explanation takes")]
fn an_explanation_takes_no_time() {
    let mut made = hung().ready(122, False, DOWN).to(200);
    for n in 0..200 {
        made = made.killed(n, kill(OomScope::Memcg, Role::Pod, "java", 1000 + u32::try_from(n).unwrap()));
    }
    let case = made.case();
    let took = (0..20).map(|_| {
        let began = std::time::Instant::now();
        assert_eq!(explain(&case).conclusion, Conclusion::Explained);
        began.elapsed()
    });
    assert!(took.min().unwrap() < Duration::from_millis(10));
}

/// One thing that may be reported of a node.
fn report(made: Made, which: usize, second: i64) -> Made {
    let until = if second % 2 == 0 { None } else { Some(second + 20) };
    let found = |made: Made, collector: &str, name: &str, kind| {
        made.found_until(collector, name, kind, "it", (second, until))
    };
    match which {
        0 => found(made, "runtime", "runtime_hung", Runtime),
        1 => found(made, "runtime", "runtime_refused", Runtime),
        2 => found(made, "kubelet", "kubelet_absent", Kubelet),
        3 => found(made, "cni", "cni_config_missing", Cni),
        4 => found(made, "runtime", "runtime_network_not_ready", Cni),
        5 => found(made, "cni", "cni_config_dir_missing", Cni),
        6 => made.killed(second, kill(OomScope::Global, Role::Kubelet, "kubelet", 998)),
        7 => made.killed(second, kill(OomScope::Global, Role::Runtime, "containerd", 1465)),
        8 => made.exited(second, Role::Kubelet, "kubelet", 998),
        9 => made.ready(second, False, DOWN),
        10 => made.ready(second, Unknown, SILENT),
        11 => made.ready(second, True, "kubelet is posting ready status"),
        12 => made.renewed(second),
        13 => made.failed("runtime"),
        14 => outcome(made, second, "runtime", Outcome::Read),
        15 => outcome(made, second, "kubelet", Outcome::Read),
        16 => outcome(made, second, "kubelet", Outcome::Stuck { since: at(second) }),
        _ => found(made, "kubelet", "kubelet_stopped", Kubelet),
    }
}

fn any_case() -> impl Strategy<Value = Made> {
    proptest::collection::vec((0_usize..18, -300_i64..100), 0..12)
        .prop_map(|told| told.into_iter().fold(well(), |made, (which, second)| report(made, which, second)))
}

fn told_again(made: &Made, order: u64) -> Case {
    // Put together by hand, as by somebody who does not use the builder: out of order and with repeats.
    let mut case = made.clone().case();
    let node = case.nodes.get_mut(NODE).unwrap();
    fn stir<T: Clone>(list: &mut Source<Vec<T>>, order: u64) {
        if let Source::Known(list) = list {
            let again: Vec<T> = list.iter().step_by(2).cloned().collect();
            list.extend(again);
            let turn = usize::try_from(order).unwrap_or(0) % list.len().max(1);
            list.rotate_left(turn);
            if order.is_multiple_of(2) {
                list.reverse();
            }
        }
    }
    stir(&mut node.findings, order);
    stir(&mut node.events, order);
    stir(&mut node.facts, order);
    case
}

proptest! {
    #[test]
    fn order_and_repeats_never_change_a_verdict(made in any_case(), order in 0_u64..1000) {
        let verdict = explain(&made.clone().case());
        let again = told_again(&made, order);
        prop_assert_eq!(&explain(&again), &verdict);
        // Nor does the way through a file.
        let json = serde_json::to_string(&again).unwrap();
        prop_assert_eq!(&explain(&crate::read_case(&json).unwrap()), &verdict);
        // Nor the order of the catalogue.
        let mut causes: Vec<&'static Cause> = ALL.to_vec();
        causes.reverse();
        prop_assert_eq!(&explain_with(&causes, &again), &verdict);
    }

    #[test]
    fn every_verdict_is_whole(made in any_case()) {
        let case = made.case();
        let made_findings = case.asked().unwrap().findings.known().unwrap();
        let verdict = explain(&case);
        for root in &verdict.roots {
            prop_assert!(!root.because.is_empty() && !root.remedy.is_empty());
            prop_assert!((0.0..=1.0).contains(&root.certainty));
            prop_assert_eq!(&root.chain[0].id, &root.cause);
            prop_assert_eq!(&root.chain.last().unwrap().id, NOT_READY);
        }
        let said = verdict.roots.iter().map(|root| &root.cause)
            .chain(verdict.contributing.iter().map(|held| &held.cause))
            .chain(verdict.ruled_out.iter().map(|out| &out.cause))
            .chain(verdict.cannot_tell.iter().map(|out| &out.cause));
        let mut said: Vec<&String> = said.collect();
        said.sort();
        let all: Vec<&str> = ALL.iter().map(|cause| cause.id).collect();
        let critical = made_findings.iter().filter(|f| f.is_active() && f.severity == Severity::Critical);
        for finding in critical {
            let source = crate::signs::source_of(finding);
            let because = verdict.roots.iter().flat_map(|root| &root.because)
                .chain(verdict.contributing.iter().flat_map(|held| &held.because));
            // No critical finding that holds is hidden.
            prop_assert!(because.map(|one| &one.source).any(|cited| *cited == source)
                || verdict.unexplained.contains(finding));
        }
        // Each cause stands in one place, and none is forgotten.
        prop_assert_eq!(said, all);
        prop_assert!(verdict.conclusion != Conclusion::Healthy || verdict.ready == Some(True));
        prop_assert_eq!(verdict.conclusion == Conclusion::Explained, !verdict.roots.is_empty());
    }
}

#[test]
fn a_critical_finding_that_no_cause_accounts_for_makes_a_node_suspect() {
    let node = nodewhy_proto::SubjectKind::Node;
    let thrash = well().found("pressure", "memory_thrash", node, "", 50);
    assert_eq!(explain(&thrash.case()).conclusion, Conclusion::NoCauseFound);
    // A global kill in a pod accounts for the node's being out of memory: Ready stays, and it is told.
    let out = well().found("oom", "node_out_of_memory", node, "", 50);
    assert_eq!(explain(&out.clone().case()).conclusion, Conclusion::NoCauseFound);
    let told = out.killed(50, kill(OomScope::Global, Role::Pod, "java", 77));
    let verdict = explain(&told.case());
    assert_eq!((verdict.conclusion, contributing(&verdict)), (Conclusion::Healthy, vec!["global_oom_pod"]));
    // Gone from the folder, still loaded by the runtime: not yet a cause, but not well either.
    let empty = well().found("cni", "cni_config_missing", Cni, "/etc/cni/net.d", 50);
    assert_eq!(explain(&empty.case()).conclusion, Conclusion::NoCauseFound);
}

#[test]
fn the_biggest_is_named_with_its_pod_when_it_was_killed_too() {
    let mut first = kill(OomScope::Global, Role::Kubelet, "kubelet", 998);
    first.biggest =
        vec![nodewhy_proto::OomTask { pid: 77, name: "java".into(), rss_bytes: 1 << 34, oom_score_adj: 984 }];
    let mut second = kill(OomScope::Global, Role::Pod, "java", 77);
    second.pod_uid = Some("c12ef941-6a22-4f38-8101-61b41df7a6b6".into());
    let verdict = explain(&kubelet_gone(10).killed(10, first).killed(12, second).to(20).case());
    let text = &verdict.roots[0].chain[0].text;
    assert!(text.contains("java[77], which held 16.0 GiB (pod UID c12ef941-"), "{text}");
}

#[test]
fn a_consequence_may_be_dated_before_its_cause_by_the_clocks_grain_alone() {
    let killed = |second| {
        let kill = kill(OomScope::Global, Role::Kubelet, "kubelet", 998);
        explain(&kubelet_gone(10).killed(second, kill).to(40).case())
    };
    assert_eq!(chain(&killed(12)), ["oom_kills_kubelet", "kubelet_down", "not_ready"]);
    assert_eq!(chain(&killed(13)), ["kubelet_down", "not_ready"]);
    assert_eq!(chain(&killed(-20)), ["oom_kills_kubelet", "kubelet_down", "not_ready"]);
    assert_eq!(chain(&killed(-23)), ["kubelet_down", "not_ready"]);
}

#[test]
fn what_holds_on_another_node_is_no_root_here() {
    let mut case = well().ready(122, False, DOWN).to(130).case();
    let mut other = hung().case().nodes.remove(NODE).unwrap();
    other.id.name = "worker-8".to_owned();
    case.nodes.insert("worker-8".to_owned(), other);
    let verdict = explain(&case);
    assert_eq!(verdict.conclusion, Conclusion::NoCauseFound);
    let held: Vec<_> =
        verdict.contributing.iter().map(|held| (held.cause.as_str(), held.node.as_str())).collect();
    assert_eq!(held, [("containerd_hung", "worker-8")]);
}

#[test]
fn an_agent_that_cannot_be_asked_rules_nothing_out() {
    let mut case = well().ready(50, Unknown, SILENT).renewed(0).case();
    let node = case.nodes.get_mut(NODE).unwrap();
    node.findings = Source::missing("the agent does not answer");
    node.events = Source::missing("the agent does not answer");
    node.collectors = Source::missing("the agent does not answer");
    let verdict = explain(&case);
    assert_eq!(verdict.conclusion, Conclusion::NoCauseFound);
    assert!(verdict.ruled_out.is_empty(), "{:?}", verdict.ruled_out);
    assert_eq!(verdict.cannot_tell.len(), ALL.len());
}

#[test]
fn a_machine_without_kubelet_runtime_and_cni_has_no_cause() {
    let bare = well().no_api().absent("kubelet").absent("runtime").absent("cni");
    let verdict = explain(&bare.case());
    assert_eq!((verdict.conclusion, verdict.contributing.len()), (Conclusion::Healthy, 0));
}

#[test]
fn of_repeats_the_one_before_the_loss_explains_it() {
    let again = well()
        .found_until("runtime", "runtime_hung", Runtime, "sock", (0, Some(150)))
        .found("runtime", "runtime_hung", Runtime, "sock", 170)
        .ready(122, False, DOWN);
    let verdict = explain(&again.to(200).case());
    assert_eq!((roots(&verdict), verdict.roots[0].since), (vec!["containerd_hung"], Some(at(0))));

    let killed = kubelet_gone(10)
        .killed(10, kill(OomScope::Global, Role::Kubelet, "kubelet", 998))
        .killed(70, kill(OomScope::Global, Role::Kubelet, "kubelet", 1200))
        .ready(54, Unknown, SILENT);
    let verdict = explain(&killed.case());
    assert_eq!((roots(&verdict), verdict.roots[0].since), (vec!["oom_kills_kubelet"], Some(at(10))));
}

#[test]
fn the_whole_story_is_told_not_its_shortcut() {
    // `first` leads to `b` by itself and by `a`: the way by `a` says more.
    static FIRST: Cause =
        made_up("first", &[Link::new("b", 60), Link::new("a", 60)], |_, _| holds("first", 0));
    static A_ONLY: Cause = made_up("a", &[Link::new("b", 60)], |_, _| holds("a", 0));
    static B_ONLY: Cause = made_up("b", &[Link::new(NOT_READY, 60)], |_, _| holds("b", 1));
    let verdict = explain_with(&[&B_ONLY, &A_ONLY, &FIRST], &well().case());
    assert_eq!(chain(&verdict), ["first", "a", "b", "not_ready"]);
}

#[test]
fn a_critical_finding_that_no_cause_cites_is_told_whatever_was_concluded() {
    let unexplained = |verdict: &Verdict| {
        verdict.unexplained.iter().map(|finding| finding.finding.clone()).collect::<Vec<_>>()
    };
    // A CNI file that is there, valid, and not loaded (moved in by rename): both CNI causes are ruled out, and what the
    // runtime says is what is left.
    let not_loaded = well().found("runtime", "runtime_network_not_ready", Cni, "NetworkPluginNotReady", 10);
    let said = "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady \
                message:Network plugin returns error: cni plugin not initialized";
    let verdict = explain(&not_loaded.ready(20, False, said).case());
    assert_eq!(verdict.conclusion, Conclusion::NoCauseFound);
    assert_eq!(unexplained(&verdict), ["runtime_network_not_ready"]);
    assert!(verdict.ruled_out.iter().any(|out| out.cause == "cni_config_missing"));
    // Beside a root too; and one that is cited is not told twice.
    let node = nodewhy_proto::SubjectKind::Node;
    let beside = hung().found("pressure", "memory_thrash", node, "", 5).to(20);
    let verdict = explain(&beside.case());
    assert_eq!(
        (roots(&verdict), unexplained(&verdict)),
        (vec!["containerd_hung"], vec!["memory_thrash".into()])
    );
    // One that was over long before the loss of Ready is history; one that ended into it is not.
    let thrash = |until| well().found_until("pressure", "memory_thrash", node, "", (-300, Some(until)));
    let lost = |until| explain(&thrash(until).ready(60, Unknown, SILENT).case());
    assert!(unexplained(&lost(-100)).is_empty());
    assert_eq!(unexplained(&lost(30)), ["memory_thrash"]);
    assert_eq!(explain(&thrash(30).case()).conclusion, Conclusion::Healthy);
}

fn outcome(made: Made, second: i64, collector: &str, result: Outcome) -> Made {
    let changed = nodewhy_proto::EventBody::OutcomeChanged { collector: collector.to_owned(), result };
    made.happened(&format!("outcome/{collector}@{second}"), second, collector, changed)
}

fn refused(second: i64) -> Made {
    well().found("runtime", "runtime_refused", Runtime, "/run/containerd/containerd.sock", second)
}

#[test]
fn what_the_first_look_finds_may_have_begun_before_the_loss() {
    // The agent was started a minute after Ready was lost.
    let late = outcome(refused(60).ready(0, False, DOWN), 60, "runtime", Outcome::Read);
    let verdict = explain(&late.clone().case());
    assert_eq!(chain(&verdict), ["containerd_dead", "not_ready"]);
    let root = &verdict.roots[0];
    assert_eq!((root.since, root.chain[0].at, root.certainty), (None, None, 0.7));
    assert!(root.chain[0].text.contains("already at the first look, at 08:01:00"), "{}", root.chain[0].text);
    // What Ready says must fit all the same.
    let other = outcome(refused(60).ready(0, Unknown, SILENT), 60, "runtime", Outcome::Read);
    assert_eq!(explain(&other.case()).conclusion, Conclusion::NoCauseFound);
    // Not at the first look, or with nothing known of a first look: it began after the loss.
    let later = outcome(refused(90).ready(0, False, DOWN), 60, "runtime", Outcome::Read);
    assert_eq!(explain(&later.case()).conclusion, Conclusion::NoCauseFound);
    assert_eq!(explain(&refused(60).ready(0, False, DOWN).case()).conclusion, Conclusion::NoCauseFound);
    let another = outcome(refused(60).ready(0, False, DOWN), 60, "cni", Outcome::Read);
    assert_eq!(explain(&another.case()).conclusion, Conclusion::NoCauseFound);
}

#[test]
fn somebody_who_looked_when_ready_was_lost_would_have_seen_it() {
    let blind = |from| {
        let made = outcome(refused(60).ready(0, False, DOWN), -500, "runtime", Outcome::Read);
        let made = outcome(made, from, "runtime", Outcome::Failed { error: "permission denied".into() });
        explain(&outcome(made, 60, "runtime", Outcome::Read).case())
    };
    assert_eq!(roots(&blind(-60)), ["containerd_dead"]);
    // A dead runtime costs Ready after 30 s at the soonest, and ten seconds before it was seen to answer.
    assert_eq!(blind(-10).conclusion, Conclusion::NoCauseFound);
    assert_eq!(blind(30).conclusion, Conclusion::NoCauseFound);
}

#[test]
fn a_kill_is_the_root_of_what_an_agent_that_died_too_found_late() {
    let story = |heard| {
        let found = kubelet_gone(100)
            .killed(9, kill(OomScope::Global, Role::Kubelet, "kubelet", 998))
            .ready(54, Unknown, SILENT)
            .renewed(heard)
            .to(120);
        let restarted =
            outcome(outcome(found, -200, "kubelet", Outcome::Read), 100, "kubelet", Outcome::Read);
        explain(&restarted.case())
    };
    let verdict = story(4);
    assert_eq!(chain(&verdict), ["oom_kills_kubelet", "kubelet_down", "not_ready"]);
    assert_eq!(verdict.roots[0].since, Some(at(9)));
    // A heartbeat after the kill: it was started again, and ended later by something else.
    assert_eq!(roots(&story(48)), ["kubelet_down"]);
    // A heartbeat after the loss: what was found at 100 is another death, which did not cost this.
    assert_eq!(chain(&story(80)), ["oom_kills_kubelet", "not_ready"]);
}

#[test]
fn a_clock_that_is_ahead_keeps_no_lease_fresh() {
    // Renewed for the last time at 10 by everybody's clock but the node's, which is an hour ahead.
    let lease = nodewhy_proto::Lease { renew_time: at(3610), duration_seconds: 40 };
    let made = kubelet_gone(12).said(10, "Lease worker-7", FactBody::Lease(lease)).ready(60, Unknown, SILENT);
    let verdict = explain(&made.case());
    assert_eq!((roots(&verdict), verdict.roots[0].certainty), (vec!["kubelet_down"], 0.9));
}

#[test]
fn a_node_that_is_cut_off_is_told_from_a_control_plane_that_lost_it() {
    let peers = |status, since, beat| {
        let others = (0..9).map(move |n| crate::Peer {
            lease_renewed: Some(at(beat)),
            ..peer(&format!("w-{n}"), status, since, Some(true))
        });
        let mut peers: Vec<_> = others.collect();
        peers.push(peer(NODE, Unknown, 60, Some(true)));
        peers
    };
    let silent = || well().renewed(10).ready(60, Unknown, SILENT);
    let cut_off = explain(&silent().cluster(98, peers(True, -900, 92)).case());
    assert_eq!(chain(&cut_off), ["node_api_partition", "not_ready"]);
    let all = explain(&silent().cluster(98, peers(Unknown, 58, 8)).case());
    assert_eq!(roots(&all), ["mass_notready_control_plane"]);
    // Put together by hand, in another order and with repeats; one of them old.
    let mut again = silent().cluster(98, peers(Unknown, 58, 8)).case();
    let Source::Known(cluster) = &mut again.cluster else { panic!("it is known") };
    cluster.peers.reverse();
    cluster.peers.extend(peers(Unknown, 58, 8));
    cluster.peers.insert(3, peer("w-3", True, -900, Some(true)));
    assert_eq!(explain(&again), all);
}
