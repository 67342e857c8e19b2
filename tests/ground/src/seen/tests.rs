use std::collections::BTreeMap;

use nodewhy_proto::{
    AgentInfo, CollectorState, Event, Finding, KernelMessage, NodeId, NodeInfo, OomKill, OomScope, Outcome,
    Severity, State,
};
use serde_json::json;

use super::*;
use crate::evidence::Asked;
use crate::evidence::tests::at;

/// The fault begins 10 s after the story, by the harness's clock; the node's wall clock is 3 s ahead of that one.
const SINCE_MILLIS: i64 = 10_000;
const WALL_AHEAD_MILLIS: i64 = 3_000;
/// The boot clock at the story's beginning.
const BOOTED_MILLIS: i64 = 100_000;

fn since() -> Clocks {
    Clocks {
        unix_nanos: i64::try_from(at(SINCE_MILLIS + WALL_AHEAD_MILLIS).as_nanosecond()).unwrap(),
        boot_nanos: (BOOTED_MILLIS + SINCE_MILLIS) * 1_000_000,
        monotonic_nanos: 0,
    }
}

fn fault(sees: &'static [Sees]) -> Fault {
    Fault { name: "made-up", sees, ..Fault::USUAL }
}

fn seconds(millis: i64) -> f64 {
    std::time::Duration::from_millis(u64::try_from(millis).unwrap()).as_secs_f64()
}

/// `/api/v1/node` of this boot, written at this time of the harness, half-way between question and answer.
fn info(
    millis: i64,
    boot_id: &str,
    uptime_millis: i64,
    wall_ahead_millis: i64,
    trip_millis: i64,
) -> Asked<NodeInfo> {
    let said = NodeInfo {
        id: NodeId { boot_id: Some(boot_id.to_owned()), ..NodeId::default() },
        now: at(millis + wall_ahead_millis),
        uptime_seconds: seconds(uptime_millis),
        kernel: None,
        os: None,
        cgroups: None,
        cpus: None,
        memory_total_bytes: None,
        runtime: None,
        kubelet: None,
        distribution: None,
        shared_kernel: None,
        kernel_log: None,
        agent: AgentInfo {
            version: "0.1.0".to_owned(),
            started: at(0),
            host_root: "/".to_owned(),
            memory_locked: None,
        },
    };
    Asked { asked: at(millis - trip_millis / 2), received: at(millis + trip_millis / 2), said }
}

/// A story in which only the clocks were told: each second, for a minute.
fn story() -> Story {
    let infos = (0..60)
        .map(|second| info(second * 1000, "boot-1", BOOTED_MILLIS + second * 1000, WALL_AHEAD_MILLIS, 20));
    Story { infos: infos.collect(), ..Story::default() }
}

/// An event that happened so long after the fault, and was received then.
fn event(source: &str, after_millis: i64, received_after_millis: i64, body: EventBody) -> Asked<Event> {
    let received = at(SINCE_MILLIS + received_after_millis);
    let said = Event {
        id: format!("boot-1/x/{after_millis}"),
        cursor: "1-1".to_owned(),
        at: at(SINCE_MILLIS + WALL_AHEAD_MILLIS + after_millis),
        boot_seconds: seconds(BOOTED_MILLIS + SINCE_MILLIS + after_millis),
        boot_id: Some("boot-1".to_owned()),
        source: source.to_owned(),
        body,
    };
    Asked { asked: received, received, said }
}

fn finding(name: &str, subject: &str) -> Finding {
    Finding {
        id: format!("{name}/{subject}"),
        finding: name.to_owned(),
        collector: "runtime".to_owned(),
        subject: Subject::new(nodewhy_proto::SubjectKind::Runtime, subject),
        severity: Severity::Critical,
        began: at(0),
        noticed: at(0),
        ended: None,
        summary: format!("{subject} is {name}"),
        evidence: vec![],
    }
}

fn began(after_millis: i64, name: &str, subject: &str) -> Asked<Event> {
    let body = EventBody::FindingBegan { finding: finding(name, subject) };
    event("runtime", after_millis, after_millis + 30, body)
}

fn ended(after_millis: i64, name: &str, subject: &str) -> Asked<Event> {
    let body = EventBody::FindingEnded { finding: finding(name, subject) };
    event("runtime", after_millis, after_millis + 30, body)
}

fn killed(after_millis: i64, received_after_millis: i64, role: Role) -> Asked<Event> {
    let kill = OomKill {
        scope: OomScope::Global,
        constraint: None,
        limit_cgroup: None,
        victim_cgroup: None,
        pid: 7,
        name: "kubelet".to_owned(),
        role,
        pod_uid: None,
        container_id: None,
        rss_bytes: None,
        oom_score_adj: None,
        trigger: None,
        group: vec![],
        biggest: vec![],
        memory_bytes: Default::default(),
        reaped: None,
        attributed_by: None,
        kmsg_seq: None,
    };
    event("oom", after_millis, received_after_millis, EventBody::OomKill(kill))
}

fn said(after_millis: i64, pattern: &str) -> Asked<Event> {
    let message = KernelMessage {
        pattern: pattern.to_owned(),
        fields: BTreeMap::new(),
        line: format!("the words of {pattern}"),
        kmsg_seq: None,
        count: 1,
    };
    event("oom", after_millis, after_millis + 400, EventBody::KernelMessage(message))
}

/// A state received so long after the fault, with this reading of `pressure`'s, of this age.
fn state(after_millis: i64, age_seconds: Option<f64>, reading: Option<serde_json::Value>) -> Asked<State> {
    let collector = CollectorState {
        outcome: Outcome::Read,
        read_at: None,
        age_seconds,
        took_seconds: None,
        every_seconds: 1.0,
        ticks: None,
        summary: None,
        reading,
    };
    let millis = SINCE_MILLIS + after_millis;
    let said = State {
        node: "node".to_owned(),
        now: at(millis - 50 + WALL_AHEAD_MILLIS),
        collectors: [("pressure".to_owned(), collector)].into(),
    };
    Asked { asked: at(millis - 100), received: at(millis), said }
}

fn avg10(after_millis: i64, value: f64) -> Asked<State> {
    state(after_millis, Some(0.5), Some(json!({"memory": {"full": {"avg10": value}}})))
}

/// What became of the fault's only sign.
fn only(sees: &'static [Sees], story: &Story) -> Option<Seen> {
    let mut signs = signs(&fault(sees), &since(), Way::Host, story);
    assert_eq!(signs.len(), 1);
    signs.remove(0).seen
}

fn near(seen: &Option<Seen>, latency: f64, served: f64) {
    let seen = seen.as_ref().unwrap();
    assert!((seen.latency_seconds - latency).abs() < 0.0005, "{seen:?}");
    assert!((seen.served_seconds - served).abs() < 0.0005, "{seen:?}");
}

static HUNG: &[Sees] = &[Sees::of("runtime", What::Finding("runtime_hung"))];
static OOM: &[Sees] = &[Sees::of("oom", What::OomKill(Role::Kubelet))];
static THRASH: &[Sees] = &[Sees::of("pressure", What::AtLeast("/memory/full/avg10", 10.0))];

#[test]
fn a_finding_is_seen_when_the_agent_noticed_it_and_served_when_it_was_received() {
    let mut story = story();
    assert_eq!(only(HUNG, &story), None);
    // Of another name; then the first, which is told again later.
    story.events = vec![
        began(1_000, "runtime_refused", "socket"),
        began(2_000, "runtime_hung", "socket"),
        began(2_000, "runtime_hung", "socket"),
        began(9_000, "runtime_hung", "another"),
    ];
    story.events[2].received = at(SINCE_MILLIS + 30_000);
    let seen = only(HUNG, &story);
    // The answers about the clocks took 20 ms: the reckoning is late by half of that, never early.
    near(&seen, 2.0, 2.040);
    let seen = seen.unwrap();
    assert_eq!(seen.text, "socket is runtime_hung");
    assert!((seen.figure_seconds() - 2.0).abs() < 0.0005);
}

#[test]
fn a_finding_of_another_collector_is_another() {
    static OTHER: &[Sees] = &[Sees::of("kubelet", What::Finding("runtime_hung"))];
    let mut story = story();
    story.events = vec![began(2_000, "runtime_hung", "socket")];
    assert_eq!(only(OTHER, &story), None);
}

#[test]
fn what_came_before_the_fault_does_not_count_save_for_the_clocks_grain() {
    let mut story = story();
    story.events = vec![began(-60, "runtime_hung", "socket")];
    assert_eq!(only(HUNG, &story), None);
    story.events = vec![began(-40, "runtime_hung", "socket")];
    near(&only(HUNG, &story), 0.0, 0.0);
    story.events = vec![killed(-60, 500, Role::Kubelet)];
    assert_eq!(only(OOM, &story), None);
}

#[test]
fn a_finding_that_held_when_the_fault_began_is_no_sign_even_if_it_comes_again() {
    let mut story = story();
    story.events = vec![
        began(-2_000, "runtime_hung", "socket"),
        ended(1_000, "runtime_hung", "socket"),
        began(3_000, "runtime_hung", "socket"),
    ];
    assert_eq!(only(HUNG, &story), None);
    // On another subject it is new.
    story.events.push(began(4_000, "runtime_hung", "other"));
    near(&only(HUNG, &story), 4.0, 4.040);
    // And so it is when it was over before.
    story.events[1] = ended(-1_000, "runtime_hung", "socket");
    near(&only(HUNG, &story), 3.0, 3.040);
}

#[test]
fn what_the_kernel_dates_is_shown_as_it_was_served() {
    let mut story = story();
    story.events = vec![killed(100, 800, Role::Pod), killed(200, 900, Role::Kubelet)];
    let seen = only(OOM, &story);
    near(&seen, 0.2, 0.910);
    assert!((seen.unwrap().figure_seconds() - 0.910).abs() < 0.0005);

    static MESSAGE: &[Sees] = &[Sees::of("oom", What::KernelMessage("hung_task"))];
    story.events = vec![said(100, "soft_lockup"), said(5_000, "hung_task")];
    let seen = only(MESSAGE, &story);
    near(&seen, 5.0, 5.410);
    let seen = seen.unwrap();
    assert_eq!(seen.text, "the words of hung_task");
    assert!((seen.figure_seconds() - 5.410).abs() < 0.0005);
    static OTHER: &[Sees] = &[Sees::of("kernel", What::KernelMessage("hung_task"))];
    assert_eq!(only(OTHER, &story), None);
}

#[test]
fn a_number_counts_from_the_time_of_its_reading() {
    let mut story = story();
    story.states = vec![avg10(-1_000, 0.0), avg10(600, 9.9), avg10(1_600, 12.0), avg10(2_600, 20.0)];
    // Written 50 ms before it was received, by the node's clocks; the reading was 0.5 s old then.
    let seen = only(THRASH, &story);
    near(&seen, 1.05, 1.610);
    assert_eq!(seen.unwrap().text, "/memory/full/avg10 is 12, and was 9.9");

    static LOW: &[Sees] = &[Sees::of("pressure", What::AtMost("/memory/full/avg10", 1.0))];
    story.states = vec![avg10(-1_000, 30.0), avg10(1_600, 1.0)];
    near(&only(LOW, &story), 1.05, 1.610);
    assert!(needs_readings(&fault(LOW)) && needs_readings(&fault(THRASH)) && !needs_readings(&fault(OOM)));
}

#[test]
fn a_number_needs_an_earlier_reading_in_which_it_did_not_hold() {
    let nothing = |after| state(after, Some(0.5), None);
    let mut story = story();
    // Nobody knows what was before.
    story.states = vec![nothing(-1_000), avg10(1_600, 12.0), avg10(2_600, 0.0), avg10(3_600, 12.0)];
    assert_eq!(only(THRASH, &story), None);
    // It held when the fault began, whatever came in between.
    story.states = vec![avg10(-2_000, 0.0), avg10(-1_000, 12.0), avg10(1_600, 0.0), avg10(2_600, 12.0)];
    assert_eq!(only(THRASH, &story), None);
    // The reading that shows it was taken before the fault, and served after it.
    story.states = vec![avg10(-1_000, 0.0), avg10(300, 12.0), avg10(1_300, 12.0)];
    assert_eq!(only(THRASH, &story), None);
    // A hole is no zero, and no rise.
    story.states = vec![avg10(-1_000, 0.0), nothing(1_600), avg10(2_600, 12.0)];
    near(&only(THRASH, &story), 2.05, 2.610);
    // A reading that can't be dated, and what is no number.
    let undated = state(1_600, None, Some(json!({"memory": {"full": {"avg10": 12.0}}})));
    let words = state(1_600, Some(0.5), Some(json!({"memory": {"full": null}})));
    story.states = vec![avg10(-1_000, 0.0), undated, words];
    assert_eq!(only(THRASH, &story), None);
}

#[test]
fn a_step_of_the_wall_clock_moves_no_figure() {
    static STEPPED: &[Sees] = &[Sees::of("agent", What::ClockStepped)];
    let mut story = story();
    // From the fault on, the node's wall clock is an hour back.
    let back = 3_600_000;
    story.infos = (0..60)
        .map(|second| {
            let stepped = if second * 1000 > SINCE_MILLIS { back } else { 0 };
            info(second * 1000, "boot-1", BOOTED_MILLIS + second * 1000, WALL_AHEAD_MILLIS - stepped, 20)
        })
        .collect();
    let mut step = event("agent", 400, 420, EventBody::ClockStepped { seconds: -3600.0 });
    step.said.at = at(SINCE_MILLIS + WALL_AHEAD_MILLIS + 400 - back);
    story.events = vec![event("agent", -500, -480, EventBody::ClockStepped { seconds: 2.0 }), step];
    let seen = only(STEPPED, &story);
    near(&seen, 0.4, 0.430);
    assert_eq!(seen.unwrap().text, "stepped by -3600.0 s");
    // A state from after the step, though the best answer about the clocks may be from before it: within the
    // time between question and answer.
    let mut risen = avg10(400, 12.0);
    risen.said.now = at(SINCE_MILLIS + 350 + WALL_AHEAD_MILLIS - back);
    risen.said.collectors.get_mut("pressure").unwrap().age_seconds = Some(0.0);
    story.states = vec![avg10(-1_000, 0.0), risen];
    let seen = only(THRASH, &story).unwrap();
    assert!((0.25..0.45).contains(&seen.latency_seconds), "{seen:?}");
}

#[test]
fn another_boot_is_seen_by_its_id_and_dated_by_the_wall_clock() {
    static REBOOTED: &[Sees] = &[Sees::of("agent", What::Rebooted)];
    let mut story = story();
    assert_eq!(only(REBOOTED, &story), None);
    story.infos.truncate(11);
    // Its RTC is a whole second off; by the harness's clock it is known better when it was served.
    story.infos.push(info(SINCE_MILLIS + 20_000, "boot-2", 4_000, WALL_AHEAD_MILLIS + 1_000, 20));
    let seen = only(REBOOTED, &story);
    near(&seen, 21.0, 20.020);
    let seen = seen.unwrap();
    assert_eq!(seen.text, "another boot id, 4.0 s after the boot");
    assert!((seen.figure_seconds() - 20.020).abs() < 0.0005);
    // An event of the new boot has a boot clock that began anew.
    let mut kill = killed(21_000, 21_500, Role::Kubelet);
    (kill.said.boot_id, kill.said.boot_seconds) = (Some("boot-2".to_owned()), 5.0);
    story.events = vec![kill];
    near(&only(OOM, &story), 21.0, 21.510);
}

#[test]
fn a_slow_answer_about_the_clocks_does_not_blur_what_quick_ones_tell() {
    let mut story = story();
    // From the fault on each answer takes 2 s: the last quick one ties the clocks for 20 s at least.
    for slow in story.infos.iter_mut().filter(|info| info.received > at(SINCE_MILLIS)) {
        slow.asked -= jiff::SignedDuration::from_secs(1);
        slow.received += jiff::SignedDuration::from_secs(1);
    }
    story.events = vec![killed(200, 9_000, Role::Kubelet)];
    near(&only(OOM, &story), 0.2, 9.010);
    // A machine that was frozen for a minute is another matter: only what was told after it ties them.
    story.infos.retain(|info| info.received < at(SINCE_MILLIS));
    story.infos.push(info(SINCE_MILLIS + 70_000, "boot-1", BOOTED_MILLIS + SINCE_MILLIS + 10_000, 0, 200));
    story.events = vec![killed(200, 69_500, Role::Kubelet)];
    near(&only(OOM, &story), 0.2, 9.6);
}

#[test]
fn what_an_agent_in_a_container_cannot_see_is_not_expected_of_it() {
    static SEES: &[Sees] = &[
        Sees::of("runtime", What::Finding("runtime_hung")),
        Sees::not_in_pod("oom", What::OomKill(Role::Kubelet), "it has no /dev/kmsg"),
    ];
    let fault = fault(SEES);
    let (mut host, mut pod) = (story(), story());
    host.events = vec![began(2_000, "runtime_hung", "socket")];
    pod.events = host.events.clone();
    let of_pod = signs(&fault, &since(), Way::Pod, &pod);
    assert_eq!(of_pod[1].expected, Expected::NotInPod("it has no /dev/kmsg"));
    assert!(of_pod.iter().all(Sign::is_as_expected));
    let of_host = signs(&fault, &since(), Way::Host, &host);
    assert_eq!(of_host[1].what, "OOM kill of the kubelet");
    assert!(of_host[0].is_as_expected() && !of_host[1].is_as_expected());

    let both = |host: &Story, pod: &Story| {
        all_seen(&fault, &since(), Way::Host, host) && all_seen(&fault, &since(), Way::Pod, pod)
    };
    assert!(!both(&host, &pod));
    host.events.push(killed(200, 900, Role::Kubelet));
    assert!(both(&host, &pod));
    assert!(!both(&host, &Story::default()));
    // A claim that it can't, and it can, is wrong; but nobody waits for it.
    pod.events.push(killed(200, 900, Role::Kubelet));
    let wrong = signs(&fault, &since(), Way::Pod, &pod).remove(1);
    assert!(!wrong.is_as_expected());
    assert_eq!(
        [&of_pod[1], &of_host[1], &wrong].map(Sign::in_short),
        ["cannot", "not seen", "0.9 s, though it cannot"]
    );
    assert!(both(&host, &pod));
}

#[test]
fn where_nothing_is_to_be_seen_never_everything_was() {
    assert!(!all_seen(&fault(&[]), &since(), Way::Host, &story()));
}

#[test]
fn what_is_noticed_after_the_undo_is_no_sign_of_a_run_that_is_over() {
    let mut truth = crate::evidence::tests::truth("made-up");
    truth.injected.since = since();
    truth.undone_at = at(SINCE_MILLIS + 20_000);
    let of_run = |story: &Story| signs_of_run(&fault(HUNG), &truth, Way::Host, story).remove(0).seen;
    let mut story = story();
    story.events = vec![began(19_900, "runtime_hung", "socket")];
    near(&of_run(&story), 19.9, 19.940);
    story.events = vec![began(20_100, "runtime_hung", "socket")];
    assert_eq!(of_run(&story), None);
    // A new boot is often the undo itself, and tells of the fault.
    story.events[0].said.boot_id = Some("boot-2".to_owned());
    near(&of_run(&story), 20.1, 20.140);

    let thrash = |story: &Story| signs_of_run(&fault(THRASH), &truth, Way::Host, story).remove(0).seen;
    story.states = vec![avg10(-1_000, 0.0), avg10(20_400, 12.0)];
    near(&thrash(&story), 19.85, 20.410);
    story.states = vec![avg10(-1_000, 0.0), avg10(20_800, 12.0)];
    assert_eq!(thrash(&story), None);
}

#[test]
fn findings_that_are_no_signs_are_listed_once_each() {
    let mut story = story();
    story.events = vec![
        began(-500, "before", "socket"),
        began(2_000, "runtime_hung", "socket"),
        began(3_000, "relist_slow", "socket"),
        began(5_000, "relist_slow", "socket"),
        began(6_000, "relist_slow", "other"),
        began(21_000, "after", "socket"),
    ];
    let listed = unexpected(&fault(HUNG), &since(), at(SINCE_MILLIS + 20_000), &story);
    let told: Vec<_> = listed.iter().map(|one| (one.finding.as_str(), one.subject.name.as_str())).collect();
    assert_eq!(told, [("relist_slow", "socket"), ("relist_slow", "other")]);
    assert!((listed[0].latency_seconds - 3.0).abs() < 0.0005);
    assert_eq!(listed[0].text, "socket is relist_slow");
}

#[test]
fn a_story_without_clocks_is_dated_by_the_wall_clock() {
    let story = Story { events: vec![killed(200, 900, Role::Kubelet)], ..Story::default() };
    // The harness's clock stands for the node's wall clock, which it set; here that is wrong by 3 s, and yet nothing was
    // served before it was there.
    near(&only(OOM, &story), 0.2, 0.2);
}
