//! The one piece that makes findings of abnormal states: it holds them, dates them, and clears them.
//!
//! `detect` says at every reading what is abnormal *now*. A state that lasts as long as its `hold` becomes a finding;
//! it began when the fault says so, or when it was first seen. It ends when readings that succeeded have shown it gone
//! for `clear_after`. A source that can't be read says nothing: its findings stay as they are.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use nodewhy_clock::Stamp;
use nodewhy_proto::{EventBody, Finding, Severity, Subject};

use crate::collector::Abnormal;

/// Ended findings are kept this long, for whoever asks "what was it?".
const KEPT_AFTER_END: Duration = Duration::from_secs(15 * 60);
/// And no more of them than this, the newest.
const KEPT_AT_MOST: usize = 256;
/// A finding whose text alone changes (a figure moves) is told again no more often than this.
const RETOLD_EVERY: Duration = Duration::from_secs(10);

type Key = (&'static str, &'static str, Subject);

/// Every state that is seen, and the findings that ended lately.
#[derive(Debug, Default)]
pub struct Findings {
    seen: BTreeMap<Key, Seen>,
    ended: VecDeque<(Duration, Finding)>,
}

#[derive(Debug)]
struct Seen {
    first: Stamp,
    gone: Option<Stamp>,
    clear_after: Duration,
    finding: Finding,
    /// Since when it is a finding, and when it was last told; `None` while it is held.
    told: Option<Duration>,
}

impl Findings {
    /// Takes what one collector's reading shows as abnormal, and says which findings began, changed and ended.
    pub fn observe(&mut self, collector: &'static str, states: Vec<Abnormal>, at: Stamp) -> Vec<EventBody> {
        let mut told = Vec::new();
        let mut present = Vec::with_capacity(states.len());
        for state in states {
            let key = (collector, state.finding, state.subject.clone());
            present.push(key.clone());
            let seen = self.seen.entry(key).or_insert_with(|| Seen::first(collector, &state, at));
            told.extend(seen.again(state, at));
        }
        let mine = (collector, "", Subject::node());
        let gone: Vec<Key> = self
            .seen
            .range(mine..)
            .take_while(|((name, ..), _)| *name == collector)
            .filter(|(key, _)| !present.contains(key))
            .map(|(key, _)| key.clone())
            .collect();
        for key in gone {
            let ended = self.seen.get_mut(&key).is_some_and(|seen| seen.is_over(at));
            if ended && let Some(seen) = self.seen.remove(&key) {
                told.extend(self.end(seen, at));
            }
        }
        told
    }

    /// Findings that hold, the worst and oldest first, then those that ended lately, the newest first.
    pub fn list(&self, now: Duration) -> Vec<Finding> {
        let mut active: Vec<Finding> = self.active().cloned().collect();
        active.sort_by(|a, b| (worst_first(a), a.began, &a.id).cmp(&(worst_first(b), b.began, &b.id)));
        let ended = self.ended.iter().rev().filter(|(at, _)| now.saturating_sub(*at) <= KEPT_AFTER_END);
        active.extend(ended.map(|(_, finding)| finding.clone()));
        active
    }

    /// Findings that hold.
    pub fn active(&self) -> impl Iterator<Item = &Finding> {
        self.seen.values().filter(|seen| seen.told.is_some()).map(|seen| &seen.finding)
    }

    /// States that are seen and have not lasted long enough to be findings.
    pub fn held(&self) -> impl Iterator<Item = &Finding> {
        self.seen.values().filter(|seen| seen.told.is_none()).map(|seen| &seen.finding)
    }

    fn end(&mut self, seen: Seen, at: Stamp) -> Option<EventBody> {
        seen.told?;
        let mut finding = seen.finding;
        // A wall clock that was stepped back may not end a finding before it began.
        let ended = seen.gone.map_or(at.wall, |gone| gone.wall);
        finding.ended = Some(ended.max(finding.began));
        self.ended.push_back((at.boot, finding.clone()));
        while self.ended.len() > KEPT_AT_MOST {
            self.ended.pop_front();
        }
        Some(EventBody::FindingEnded { finding })
    }
}

impl Seen {
    fn first(collector: &'static str, state: &Abnormal, at: Stamp) -> Seen {
        let began = state.since.unwrap_or(at.wall);
        let finding = Finding {
            id: id(state, began),
            finding: state.finding.to_owned(),
            collector: collector.to_owned(),
            subject: state.subject.clone(),
            severity: state.severity,
            began,
            noticed: at.wall,
            ended: None,
            summary: state.summary.clone(),
            evidence: state.evidence.clone(),
        };
        Seen { first: at, gone: None, clear_after: state.clear_after, finding, told: None }
    }

    fn again(&mut self, state: Abnormal, at: Stamp) -> Option<EventBody> {
        self.gone = None;
        self.clear_after = state.clear_after;
        let severity_changed = self.finding.severity != state.severity;
        let text_changed = self.finding.summary != state.summary;
        self.finding.severity = state.severity;
        self.finding.summary = state.summary;
        self.finding.evidence = state.evidence;
        match self.told {
            None => {
                if at.boot.saturating_sub(self.first.boot) < state.hold {
                    return None;
                }
                self.finding.noticed = at.wall;
                self.told = Some(at.boot);
                Some(EventBody::FindingBegan { finding: self.finding.clone() })
            }
            Some(told)
                if severity_changed || text_changed && at.boot.saturating_sub(told) >= RETOLD_EVERY =>
            {
                self.told = Some(at.boot);
                Some(EventBody::FindingChanged { finding: self.finding.clone() })
            }
            Some(_) => None,
        }
    }

    /// Whether it has been gone long enough; marks when it went. What is held only is over at once.
    fn is_over(&mut self, at: Stamp) -> bool {
        let gone = *self.gone.get_or_insert(at);
        self.told.is_none() || at.boot.saturating_sub(gone.boot) >= self.clear_after
    }
}

fn id(state: &Abnormal, began: Timestamp) -> String {
    let kind = serde_json::to_value(state.subject.kind).ok();
    let kind = kind.as_ref().and_then(|kind| kind.as_str()).unwrap_or("unknown");
    format!("{}/{}:{}@{}", state.finding, kind, state.subject.name, began.as_millisecond())
}

fn worst_first(finding: &Finding) -> std::cmp::Reverse<Severity> {
    std::cmp::Reverse(finding.severity)
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use nodewhy_proto::SubjectKind;

    use super::*;

    fn at(seconds: u64) -> Stamp {
        let wall =
            Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1_000_000 + i64::try_from(seconds).unwrap());
        Stamp { wall, boot: Duration::from_secs(seconds) }
    }

    fn state(hold: u64, clear_after: u64) -> Abnormal {
        Abnormal {
            finding: "runtime_refused",
            subject: Subject::new(SubjectKind::Runtime, "/run/x.sock"),
            severity: Severity::Critical,
            summary: "refused".to_owned(),
            evidence: Vec::new(),
            since: None,
            hold: Duration::from_secs(hold),
            clear_after: Duration::from_secs(clear_after),
        }
    }

    fn names(events: &[EventBody]) -> Vec<&'static str> {
        events
            .iter()
            .map(|event| match event {
                EventBody::FindingBegan { .. } => "began",
                EventBody::FindingChanged { .. } => "changed",
                EventBody::FindingEnded { .. } => "ended",
                _ => "other",
            })
            .collect()
    }

    #[test]
    fn a_state_that_does_not_last_is_no_finding() {
        let mut findings = Findings::default();
        assert!(findings.observe("runtime", vec![state(2, 2)], at(1)).is_empty());
        assert_eq!(findings.held().count(), 1);
        assert!(findings.observe("runtime", vec![], at(2)).is_empty());
        assert!(findings.observe("runtime", vec![state(2, 2)], at(3)).is_empty());
        assert!(findings.observe("runtime", vec![], at(4)).is_empty());
        assert!(findings.list(at(4).boot).is_empty());
    }

    #[test]
    fn a_finding_is_dated_from_the_first_sight_and_ends_at_the_first_clean_reading() {
        let mut findings = Findings::default();
        findings.observe("runtime", vec![state(2, 2)], at(1));
        let began = findings.observe("runtime", vec![state(2, 2)], at(3));
        assert_eq!(names(&began), ["began"]);
        let list = findings.list(at(3).boot);
        assert_eq!((list[0].began, list[0].noticed), (at(1).wall, at(3).wall));
        // A flicker shorter than clear_after does not end it.
        assert!(findings.observe("runtime", vec![], at(4)).is_empty());
        assert!(findings.observe("runtime", vec![state(2, 2)], at(5)).is_empty());
        assert!(findings.observe("runtime", vec![], at(6)).is_empty());
        assert_eq!(names(&findings.observe("runtime", vec![], at(8))), ["ended"]);
        assert_eq!(findings.list(at(8).boot)[0].ended, Some(at(6).wall));
        assert!(findings.list(at(8).boot + KEPT_AFTER_END + Duration::from_secs(1)).is_empty());
    }

    #[test]
    fn the_faults_own_clock_dates_it() {
        let mut findings = Findings::default();
        let mut told = state(0, 0);
        told.since = Some(at(1).wall);
        assert_eq!(names(&findings.observe("oom", vec![told], at(40))), ["began"]);
        assert_eq!(findings.list(at(40).boot)[0].began, at(1).wall);
    }

    #[test]
    fn another_collectors_reading_ends_nothing() {
        let mut findings = Findings::default();
        findings.observe("runtime", vec![state(0, 0)], at(1));
        assert!(findings.observe("cni", vec![], at(100)).is_empty());
        assert!(findings.observe("runtime-x", vec![], at(100)).is_empty());
        assert_eq!(findings.active().count(), 1);
    }

    #[test]
    fn a_moving_figure_is_retold_seldom_and_a_severity_at_once() {
        let mut findings = Findings::default();
        findings.observe("runtime", vec![state(0, 0)], at(1));
        let mut moved = state(0, 0);
        moved.summary = "refused 2".to_owned();
        assert!(findings.observe("runtime", vec![moved.clone()], at(2)).is_empty());
        assert_eq!(findings.list(at(2).boot)[0].summary, "refused 2");
        moved.severity = Severity::Warning;
        assert_eq!(names(&findings.observe("runtime", vec![moved.clone()], at(3))), ["changed"]);
        moved.summary = "refused 3".to_owned();
        assert_eq!(names(&findings.observe("runtime", vec![moved], at(13))), ["changed"]);
    }

    #[test]
    fn a_clock_stepped_back_ends_nothing_before_it_began() {
        let mut findings = Findings::default();
        findings.observe("runtime", vec![state(0, 0)], at(100));
        let back = Stamp { wall: at(0).wall, boot: Duration::from_secs(101) };
        findings.observe("runtime", vec![], back);
        let finding = &findings.list(back.boot)[0];
        assert_eq!(finding.ended, Some(finding.began));
    }
}
