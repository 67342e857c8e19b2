//! What one agent said, kept within bounds. Pure: time is an argument.
//!
//! Reports come twice, late and out of order; none of that may change what is known. An agent that can't be asked
//! leaves its last words and the reason for its silence, never "no findings".

use std::collections::{BTreeMap, HashSet, VecDeque};

use jiff::{SignedDuration, Timestamp};
use nodewhy_diagnosis::Source;
use nodewhy_proto::{Event, EventBody, Finding, Gap, NodeInfo, Outcome, Severity, State};

use super::offset::{Offset, correct_event, correct_finding};

/// How many events of a node are kept, the newest.
const MAX_EVENTS: usize = 2000;
const MAX_OUTCOME_CHANGES: usize = 500;
/// How many events of a node are known again when they are told again: as many as an agent keeps.
const MAX_IDS: usize = 4096;
/// How long an ended finding is kept: it may be how an incident began that goes on till morning.
const KEEP_ENDED: SignedDuration = SignedDuration::from_hours(24);
/// Times of the agent's and of ours that are compared may be apart by so much.
const MARGIN: SignedDuration = SignedDuration::from_secs(2);
/// The longest that a state must last to be a finding (`cpu_saturated`): an agent that runs for less has not told
/// all that its earlier run told.
const RELEARN: SignedDuration = SignedDuration::from_secs(60);
/// The most findings of a node: a broken agent may not fill our memory.
const MAX_FINDINGS: usize = 2000;

/// How the agent is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Contact {
    /// It was not reached yet, and no try has failed yet.
    #[default]
    NotYet,
    /// It answers.
    Answers,
    /// It can't be asked.
    Lost {
        /// When that was first seen.
        since: Timestamp,
        /// Why.
        why: String,
    },
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// New.
    New,
    /// It was told before.
    Repeat,
    /// Events are missing before it: findings and state must be read again.
    Gap,
}

/// One agent, as it was last heard.
#[derive(Clone, Debug, Default)]
pub(crate) struct AgentView {
    pub(crate) contact: Contact,
    /// When it last said anything, by our clock.
    pub(crate) heard: Option<Timestamp>,
    pub(crate) info: Option<NodeInfo>,
    /// Where the event stream goes on.
    pub(crate) cursor: Option<String>,
    offset: Option<Offset>,
    findings: BTreeMap<String, Finding>,
    /// When `/api/v1/findings` was last asked, by our clock.
    findings_asked: Option<Timestamp>,
    /// What happened, but for what it says of findings, which is kept as these, and of outcomes.
    events: VecDeque<Event>,
    /// Changes of outcomes: a case must know from when on a collector saw. Apart, so that one that flaps pushes
    /// out no OOM kill.
    outcome_changes: VecDeque<Event>,
    /// What was told before, and in which order.
    ids: HashSet<String>,
    told: VecDeque<String>,
    outcomes: Option<BTreeMap<String, Outcome>>,
    /// When the agent wrote `outcomes`, by its own clock.
    outcomes_at: Option<Timestamp>,
}

impl AgentView {
    /// It said something.
    pub(crate) fn hear(&mut self, now: Timestamp) {
        self.heard = Some(now);
    }

    /// It can't be asked; true when that is new.
    pub(crate) fn lose(&mut self, now: Timestamp, reason: String) -> bool {
        match &mut self.contact {
            Contact::Lost { why, .. } => {
                *why = reason;
                false
            }
            contact => {
                *contact = Contact::Lost { since: now, why: reason };
                true
            }
        }
    }

    /// A measurement of its clock: it wrote `theirs` between our two times.
    pub(crate) fn measure(&mut self, sent: Timestamp, theirs: Timestamp, received: Timestamp) {
        let newer = Offset::measure(sent, theirs, received);
        self.offset = Some(self.offset.map_or(newer, |older| older.refined(newer)));
    }

    fn correction(&self) -> SignedDuration {
        self.offset.map_or(SignedDuration::ZERO, Offset::correction)
    }

    /// `/api/v1/state`: only how reading went is kept.
    pub(crate) fn take_state(&mut self, state: State) -> bool {
        let outcomes: BTreeMap<String, Outcome> =
            state.collectors.into_iter().map(|(name, collector)| (name, collector.outcome)).collect();
        let changed = self.outcomes.as_ref() != Some(&outcomes);
        self.outcomes = Some(outcomes);
        self.outcomes_at = Some(state.now);
        changed
    }

    /// `/api/v1/findings`, asked at `asked` and answered at `now`. True when something changed.
    pub(crate) fn take_findings(&mut self, findings: Vec<Finding>, asked: Timestamp, now: Timestamp) -> bool {
        let by = self.correction();
        let mut changed = false;
        let listed: HashSet<String> = findings.iter().map(|finding| finding.id.clone()).collect();
        for mut finding in findings {
            correct_finding(&mut finding, by, now);
            // An end that we concluded from its absence was wrong, if a later list names it again.
            let ended = self.findings.get(&finding.id).and_then(|known| known.ended);
            if finding.is_active() && ended.is_some_and(|ended| asked.duration_since(ended) > MARGIN) {
                self.findings.remove(&finding.id);
            }
            changed |= self.put_finding(finding);
        }
        // Absence is not recovery: only a collector that reads well and no longer names the finding has ended it,
        // once its agent has run for long enough to name it again.
        let ran = self.info.as_ref().map(|info| info.now.duration_since(info.agent.started));
        let young = ran.is_some_and(|ran| ran < RELEARN);
        let reads = |collector: &str| self.outcomes.as_ref()?.get(collector).map(Outcome::is_read);
        for finding in self.findings.values_mut() {
            let told_since = finding.noticed > asked;
            if !young
                && finding.is_active()
                && !listed.contains(&finding.id)
                && !told_since
                && reads(&finding.collector) == Some(true)
            {
                finding.ended = Some(now);
                changed = true;
            }
        }
        self.findings_asked = Some(asked);
        self.forget(now);
        changed
    }

    /// An event of the stream.
    pub(crate) fn take_event(&mut self, mut event: Event, now: Timestamp) -> Taken {
        self.cursor = Some(event.cursor.clone());
        let is_gap = matches!(event.body, EventBody::Gap(_));
        if !self.ids.insert(event.id.clone()) {
            return if is_gap { Taken::Gap } else { Taken::Repeat };
        }
        self.told.push_back(event.id.clone());
        if self.told.len() > MAX_IDS
            && let Some(oldest) = self.told.pop_front()
        {
            self.ids.remove(&oldest);
        }
        let theirs = event.at;
        correct_event(&mut event, self.correction(), now);
        match &event.body {
            EventBody::FindingBegan { finding } | EventBody::FindingChanged { finding } => {
                // A first connection replays what is kept: a beginning without its end, which follows, must not
                // look like a finding that holds now. The list that was read before the stream is surer.
                let known = self.findings.contains_key(&finding.id);
                let replayed =
                    self.findings_asked.is_some_and(|asked| asked.duration_since(finding.noticed) > MARGIN);
                if known || !replayed {
                    self.put_finding(finding.clone());
                }
            }
            EventBody::FindingEnded { finding } => {
                self.put_finding(finding.clone());
            }
            EventBody::OutcomeChanged { collector, result } => {
                // One that is replayed is older than the state that was read before the stream.
                let replayed = self.outcomes_at.is_some_and(|at| theirs < at);
                if let Some(outcomes) = self.outcomes.as_mut().filter(|_| !replayed) {
                    outcomes.insert(collector.clone(), result.clone());
                }
                keep(&mut self.outcome_changes, event, MAX_OUTCOME_CHANGES);
            }
            // A gap too: where events are missing, "no such kill" may not be said.
            _ => keep(&mut self.events, event, MAX_EVENTS),
        }
        self.forget(now);
        if is_gap { Taken::Gap } else { Taken::New }
    }

    /// The agent can't go on from our cursor: whatever is not told again is missing from here on.
    pub(crate) fn lose_cursor(&mut self, now: Timestamp) {
        let Some(from) = self.cursor.take() else { return };
        let gap = Event {
            id: format!("gap/{from}/refused"),
            cursor: from.clone(),
            at: now,
            boot_seconds: 0.0,
            boot_id: None,
            source: "aggregator".to_owned(),
            body: EventBody::Gap(Gap { from, to: "unknown".to_owned(), count: None }),
        };
        keep(&mut self.events, gap, MAX_EVENTS);
    }

    /// One that has ended stays so: a late report of its life does not revive it.
    fn put_finding(&mut self, finding: Finding) -> bool {
        match self.findings.get(&finding.id) {
            Some(known) if !known.is_active() && finding.is_active() => false,
            Some(known) if *known == finding => false,
            _ => {
                self.findings.insert(finding.id.clone(), finding);
                true
            }
        }
    }

    fn forget(&mut self, now: Timestamp) {
        self.findings
            .retain(|_, finding| finding.ended.is_none_or(|ended| now.duration_since(ended) <= KEEP_ENDED));
        while self.findings.len() > MAX_FINDINGS {
            let oldest =
                self.findings.values().min_by_key(|f| (f.is_active(), f.noticed)).map(|f| f.id.clone());
            let Some(oldest) = oldest else { return };
            self.findings.remove(&oldest);
        }
    }

    /// Why it can't be asked now; `None` when it answers.
    pub(crate) fn why_silent(&self) -> Option<String> {
        match &self.contact {
            Contact::Answers => None,
            Contact::NotYet => Some("the agent has not answered yet".to_owned()),
            Contact::Lost { since, why } => {
                Some(format!("the agent has been unreachable since {since}: {why}"))
            }
        }
    }

    /// Whether its last words are too old to be evidence of a window that begins at `from`.
    fn silent_since_before(&self, from: Timestamp) -> bool {
        match &self.contact {
            Contact::Answers => false,
            Contact::NotYet => true,
            Contact::Lost { since, .. } => self.heard.unwrap_or(*since) < from,
        }
    }

    /// Findings that held within the window, which ends now. An unreachable agent's last words still count; its silence
    /// is no empty list. What is dated later than now is of now: our clock was stepped back since it was heard.
    pub(crate) fn findings_within(&self, from: Timestamp, to: Timestamp) -> Source<Vec<Finding>> {
        let held = || {
            let held =
                self.findings.values().filter(|finding| finding.ended.is_none_or(|ended| ended >= from));
            held.cloned()
                .map(|mut finding| {
                    correct_finding(&mut finding, SignedDuration::ZERO, to);
                    finding
                })
                .collect()
        };
        self.last_words(from, held)
    }

    /// Events within the window; the same rule.
    pub(crate) fn events_within(&self, from: Timestamp, to: Timestamp) -> Source<Vec<Event>> {
        let within = || {
            let all = self.events.iter().chain(&self.outcome_changes);
            let within = all.filter(|event| event.at >= from);
            within
                .cloned()
                .map(|mut event| {
                    correct_event(&mut event, SignedDuration::ZERO, to);
                    event
                })
                .collect()
        };
        self.last_words(from, within)
    }

    fn last_words<T>(&self, from: Timestamp, list: impl Fn() -> Vec<T>) -> Source<Vec<T>> {
        match self.why_silent() {
            None => Source::Known(list()),
            Some(why) if self.silent_since_before(from) => Source::missing(why),
            Some(why) => {
                let words = list();
                if words.is_empty() { Source::missing(why) } else { Source::Known(words) }
            }
        }
    }

    /// How reading goes; missing while the agent can't be asked, so that nothing is concluded from its silence.
    pub(crate) fn outcomes(&self) -> Source<BTreeMap<String, Outcome>> {
        match (self.why_silent(), &self.outcomes) {
            (Some(why), _) => Source::missing(why),
            (None, Some(outcomes)) => Source::Known(outcomes.clone()),
            (None, None) => Source::missing("the agent has not told its state yet"),
        }
    }

    /// Findings that hold, as far as is known.
    pub(crate) fn active(&self) -> impl Iterator<Item = &Finding> {
        self.findings.values().filter(|finding| finding.is_active())
    }

    /// Critical findings that hold, as far as is known.
    pub(crate) fn critical(&self) -> impl Iterator<Item = &Finding> {
        self.active().filter(|finding| finding.severity == Severity::Critical)
    }

    /// The events that are kept, in the order in which they came, but for changes of outcomes.
    pub(crate) fn events(&self) -> impl DoubleEndedIterator<Item = &Event> {
        self.events.iter()
    }
}

/// Adds the newest, and lets go of the oldest over `most`.
fn keep(events: &mut VecDeque<Event>, event: Event, most: usize) {
    events.push_back(event);
    if events.len() > most {
        events.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{at, event, finding};

    fn answering() -> AgentView {
        AgentView { contact: Contact::Answers, ..AgentView::default() }
    }

    fn read_collector(view: &mut AgentView, outcome: Outcome) {
        view.outcomes = Some(BTreeMap::from([("runtime".to_owned(), outcome)]));
    }

    #[test]
    fn an_unreachable_agent_is_missing_and_never_an_empty_list() {
        let mut view = answering();
        assert_eq!(view.findings_within(at(0), at(900)), Source::Known(Vec::new()));
        view.hear(at(890));
        assert!(view.lose(at(895), "connecting: refused".to_owned()));
        assert!(!view.lose(at(899), "connecting: refused".to_owned()), "only the first time is news");
        for why in [
            view.findings_within(at(0), at(900)).why_missing().map(str::to_owned),
            view.events_within(at(0), at(900)).why_missing().map(str::to_owned),
            view.outcomes().why_missing().map(str::to_owned),
        ] {
            let why = why.expect("missing");
            assert!(why.contains("refused") && why.contains(&at(895).to_string()), "{why}");
        }
    }

    #[test]
    fn its_last_words_count_until_they_are_older_than_the_window() {
        let mut view = answering();
        view.take_findings(vec![finding("kubelet_absent", 800)], at(801), at(801));
        view.hear(at(890));
        view.lose(at(895), "refused".to_owned());
        assert_eq!(view.findings_within(at(0), at(900)).known().map(Vec::len), Some(1));
        assert!(view.findings_within(at(1000), at(1900)).known().is_none());
        assert!(view.outcomes().known().is_none(), "nothing may be concluded from what it does not say");
    }

    #[test]
    fn absence_from_the_list_ends_a_finding_only_where_its_collector_reads() {
        let mut view = answering();
        view.take_findings(vec![finding("runtime_hung", 100)], at(101), at(101));
        for outcome in [Outcome::Stuck { since: at(90) }, Outcome::Failed { error: "x".to_owned() }] {
            read_collector(&mut view, outcome);
            view.take_findings(Vec::new(), at(110), at(110));
            assert_eq!(view.critical().count(), 1);
        }
        read_collector(&mut view, Outcome::Read);
        assert!(view.take_findings(Vec::new(), at(120), at(120)));
        assert_eq!(view.critical().count(), 0);
    }

    #[test]
    fn a_replayed_beginning_is_no_finding_that_holds_now() {
        let mut view = answering();
        view.take_findings(Vec::new(), at(1000), at(1000));
        view.take_event(
            event(1, 500, EventBody::FindingBegan { finding: finding("runtime_hung", 500) }),
            at(1001),
        );
        assert_eq!(view.active().count(), 0);
        // Nor may a new one be missed because the fault itself began long ago.
        let mut fresh = finding("kubelet_absent", 500);
        fresh.noticed = at(1001);
        view.take_event(event(2, 500, EventBody::FindingBegan { finding: fresh }), at(1001));
        assert_eq!(view.active().count(), 1);
    }

    #[test]
    fn a_gap_is_told_and_moves_the_cursor() {
        let mut view = answering();
        let gap = nodewhy_proto::Gap { from: "a".to_owned(), to: "b".to_owned(), count: None };
        for _ in 0..2 {
            assert_eq!(view.take_event(event(9, 0, EventBody::Gap(gap.clone())), at(1)), Taken::Gap);
        }
        assert_eq!(view.cursor.as_deref(), Some("9"));
        let kept = view.events_within(at(0), at(2));
        assert!(
            matches!(&kept.known().unwrap()[..], [Event { body: EventBody::Gap(_), .. }]),
            "a case must know that events are missing: {kept:?}"
        );
        view.lose_cursor(at(2));
        assert_eq!((view.cursor.as_deref(), view.events.len()), (None, 2));
    }

    #[test]
    fn a_finding_that_is_listed_again_was_not_over() {
        let mut view = answering();
        let hung = || vec![finding("runtime_hung", 100)];
        read_collector(&mut view, Outcome::Read);
        view.take_findings(hung(), at(101), at(101));
        view.take_findings(Vec::new(), at(110), at(110));
        assert_eq!(view.critical().count(), 0);
        // A list that was written before the end is no such word.
        view.take_findings(hung(), at(111), at(111));
        assert_eq!(view.critical().count(), 0);
        view.take_findings(hung(), at(140), at(140));
        assert_eq!(view.critical().count(), 1);
    }

    #[test]
    fn an_agent_that_was_started_anew_must_first_see_again() {
        let mut view = answering();
        let info = |now: i64| {
            let text = serde_json::json!({
                "id": {"name": "n"}, "now": at(now), "uptime_seconds": 1.0,
                "agent": {"version": "0", "started": at(200), "host_root": "/"},
            });
            serde_json::from_value(text).ok()
        };
        read_collector(&mut view, Outcome::Read);
        view.take_findings(vec![finding("memory_thrash", 100)], at(101), at(101));
        view.info = info(202);
        view.take_findings(Vec::new(), at(202), at(202));
        assert_eq!(view.critical().count(), 1);
        view.info = info(270);
        view.take_findings(Vec::new(), at(270), at(270));
        assert_eq!(view.critical().count(), 0);
    }

    #[test]
    fn a_replayed_outcome_does_not_hide_the_newer_state() {
        let mut view = answering();
        let state = |outcome: &str| {
            let runtime = serde_json::json!({"outcome": outcome, "error": "x", "every_seconds": 1.0});
            serde_json::from_value(
                serde_json::json!({"node": "n", "now": at(100), "collectors": {"runtime": runtime}}),
            )
            .unwrap()
        };
        view.take_state(state("read"));
        let failed = |number, seconds| {
            let result = Outcome::Failed { error: "x".to_owned() };
            event(number, seconds, EventBody::OutcomeChanged { collector: "runtime".to_owned(), result })
        };
        let reads = |view: &AgentView| view.outcomes().known().unwrap()["runtime"].is_read();
        view.take_event(failed(1, 50), at(101));
        assert!(reads(&view));
        view.take_event(failed(2, 101), at(101));
        assert!(!reads(&view));
        // A case must know from when on a collector saw, and when not.
        assert_eq!(view.events_within(at(0), at(102)).known().map(Vec::len), Some(2));
        for number in 3..10_000 {
            view.take_event(failed(number, 101), at(101));
        }
        assert_eq!(view.outcome_changes.len(), MAX_OUTCOME_CHANGES);
    }

    #[test]
    fn an_oom_kill_is_not_pushed_out_by_what_findings_say() {
        let mut view = answering();
        view.take_event(event(0, 10, EventBody::ClockStepped { seconds: 1.0 }), at(10));
        for number in 1..10_000 {
            let changed = EventBody::FindingChanged { finding: finding("io_stalled", 10) };
            view.take_event(event(number, 10, changed), at(10));
        }
        assert_eq!((view.events.len(), view.ids.len(), view.told.len()), (1, MAX_IDS, MAX_IDS));
    }

    #[test]
    fn memory_is_bounded() {
        let mut view = answering();
        for number in 0..(MAX_IDS as u64 + 500) {
            let began = EventBody::FindingBegan { finding: finding(&format!("f{number}"), 10) };
            assert_eq!(view.take_event(event(number, 10, began), at(10)), Taken::New);
            let stepped = EventBody::ClockStepped { seconds: 1.0 };
            assert_eq!(view.take_event(event(number + 1_000_000, 10, stepped), at(10)), Taken::New);
        }
        assert_eq!(
            (view.events.len(), view.ids.len(), view.told.len(), view.findings.len()),
            (MAX_EVENTS, MAX_IDS, MAX_IDS, MAX_FINDINGS)
        );
    }

    #[test]
    fn our_clock_that_is_stepped_back_hides_nothing() {
        let mut view = answering();
        view.take_findings(vec![finding("runtime_hung", 5000)], at(5001), at(5001));
        view.take_event(event(1, 5000, EventBody::ClockStepped { seconds: 1.0 }), at(5001));
        let (findings, events) = (view.findings_within(at(0), at(900)), view.events_within(at(0), at(900)));
        assert_eq!(findings.known().map(|found| found[0].began), Some(at(900)));
        assert_eq!(events.known().map(|found| found[0].at), Some(at(900)));
    }

    #[test]
    fn a_skewed_clock_is_corrected() {
        let mut view = answering();
        view.measure(at(0), at(3600), at(0));
        view.take_event(event(1, 3700, EventBody::Unknown), at(100));
        assert_eq!(view.events().next().map(|event| event.at), Some(at(100)));
    }

    proptest! {
        // Any order and any repeats of a finding's life give the same end.
        #[test]
        fn order_and_repeats_change_nothing(order in proptest::collection::vec(0_usize..3, 0..8)) {
            let mut ended = finding("runtime_hung", 100);
            ended.ended = Some(at(130));
            let life = [
                EventBody::FindingBegan { finding: finding("runtime_hung", 100) },
                EventBody::FindingChanged { finding: finding("runtime_hung", 100) },
                EventBody::FindingEnded { finding: ended },
            ];
            let mut view = answering();
            for index in order.iter().chain(&[2]) {
                let number = u64::try_from(*index).unwrap();
                view.take_event(event(number, 100, life[*index].clone()), at(140));
            }
            prop_assert_eq!(view.active().count(), 0);
            prop_assert_eq!(view.findings.len(), 1);
        }
    }
}
