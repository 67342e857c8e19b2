//! An incident's life: opened by a sign, revised when the verdict's substance changes, ended when all has been well
//! for a while. Pure: time, signs and the verdict are arguments.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use nodewhy_clock::Stamp;
use nodewhy_proto::{Incident, Revision, Verdict};

use super::signs::Signs;
use super::substance::{Substance, explains};
use crate::Timings;

/// An incident that has not ended.
#[derive(Clone, Debug)]
pub(crate) struct Open {
    pub(crate) incident: Incident,
    /// The signs at the newest revision: what began, and what to say when it is over. `None` after a restart,
    /// until the first look: what is there then did not begin then.
    seen: Option<BTreeMap<String, String>>,
    /// Since when all has been well, on both clocks.
    well_since: Option<Stamp>,
    /// Since when the verdict has been another one that is not recorded at once (time since boot).
    other_since: Option<Duration>,
    /// It was opened by an earlier run of this program.
    resumed: bool,
    /// The Node's UID, once the API server told it.
    pub(crate) uid: Option<String>,
}

/// After so many revisions each new one must hold for [`Timings::fade`]: a verdict that flaps for a night may not
/// fill memory and store.
const OFTEN: usize = 100;

/// What a look came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing is new.
    Nothing,
    /// The incident was opened.
    Opened,
    /// It has a new revision, or it is known now when Ready was lost.
    Revised,
    /// It ended: `open` is to be forgotten.
    Ended,
}

impl Open {
    /// Takes up an incident that the store has as open.
    pub(crate) fn resumed(incident: Incident) -> Open {
        Open { incident, seen: None, well_since: None, other_since: None, resumed: true, uid: None }
    }

    /// Opens an incident. `signs` has at least one.
    pub(crate) fn begin(id: String, signs: &Signs, now: Stamp, verdict: Verdict) -> Open {
        let began = signs.bad.iter().map(|sign| sign.at).min().map_or(now.wall, |at| at.min(now.wall));
        let incident = Incident {
            id,
            node: verdict.node.clone(),
            began,
            opened: now.wall,
            lost_ready: signs.lost_ready,
            ended: None,
            revisions: Vec::new(),
        };
        let mut open = Open { resumed: false, ..Open::resumed(incident) };
        let began: Vec<&str> = signs.bad.iter().map(|sign| sign.began.as_str()).collect();
        open.revise(now.wall, listed(&began), verdict, signs);
        open
    }

    /// Looks again.
    pub(crate) fn look(
        &mut self,
        signs: &Signs,
        now: Stamp,
        timings: &Timings,
        conclude: impl FnOnce() -> Option<Verdict>,
    ) -> Step {
        if signs.bad.is_empty() {
            // Once well, its verdict stays as it was: "healthy now" does not say why it was not. Nor do we
            // know that it is well while we can't tell.
            // An earlier run knew what this one has not heard: then the agent must speak, or Ready come back.
            let came_back = signs.ready && self.incident.lost_ready.is_some();
            let unheard = self.resumed && signs.agent_unheard && !came_back;
            if !signs.can_tell || unheard {
                self.well_since = None;
                return Step::Nothing;
            }
            let since = *self.well_since.get_or_insert(now);
            if now.boot.saturating_sub(since.boot) < timings.settle {
                return Step::Nothing;
            }
            // A wall clock that was stepped back may not end it before it was opened.
            self.incident.ended = Some(since.wall.max(self.incident.opened));
            return Step::Ended;
        }
        self.well_since = None;
        self.seen.get_or_insert_with(|| names(signs));
        let mut step = Step::Nothing;
        if self.incident.lost_ready.is_none() && signs.lost_ready.is_some() {
            self.incident.lost_ready = signs.lost_ready;
            step = Step::Revised;
        }
        let Some(verdict) = conclude() else { return step };
        let Some(recorded) = self.incident.verdict() else {
            self.revise(now.wall, self.what_changed(signs).unwrap_or_default(), verdict, signs);
            return Step::Revised;
        };
        let (old, new) = (Substance::of(recorded), Substance::of(&verdict));
        if old == new {
            self.other_since = None;
            return step;
        }
        // Weaker because something new came is news at once; weaker because evidence ended may be recovery; weaker
        // because we can't see, or do not remember, takes nothing back.
        let news = self.began(signs).next().is_some() && !signs.agent_unheard;
        let weaker = explains(recorded) && !explains(&verdict) && !news;
        if weaker && signs.deaf {
            self.other_since = None;
            return step;
        }
        if weaker || self.incident.revisions.len() >= OFTEN {
            let since = *self.other_since.get_or_insert(now.boot);
            if now.boot.saturating_sub(since) < timings.fade {
                return step;
            }
        }
        let changed_by = self.what_changed(signs).unwrap_or_else(|| old.change_to(&new));
        self.revise(now.wall, changed_by, verdict, signs);
        Step::Revised
    }

    fn revise(&mut self, at: Timestamp, changed_by: String, verdict: Verdict, signs: &Signs) {
        let earliest = verdict.roots.iter().filter_map(|root| root.since).min();
        self.incident.began = earliest.map_or(self.incident.began, |since| since.min(self.incident.began));
        let revision = self.incident.revisions.last().map_or(1, |last| last.revision.saturating_add(1));
        self.incident.revisions.push(Revision { revision, at, changed_by, verdict });
        self.seen = Some(names(signs));
        self.other_since = None;
    }

    /// Which signs came since the newest revision.
    fn began<'a>(&'a self, signs: &'a Signs) -> impl Iterator<Item = &'a str> {
        let seen = |began: &str| self.seen.as_ref().is_some_and(|seen| seen.contains_key(began));
        signs.bad.iter().map(|sign| sign.began.as_str()).filter(move |began| !seen(began))
    }

    /// Which signs came and went since the newest revision; `None`: the same ones.
    fn what_changed(&self, signs: &Signs) -> Option<String> {
        let now = names(signs);
        let seen = self.seen.iter().flatten();
        let over = seen.filter(|(began, _)| !now.contains_key(*began)).map(|(_, over)| over.as_str());
        let mut changes: Vec<&str> = self.began(signs).chain(over).collect();
        changes.dedup();
        (!changes.is_empty()).then(|| listed(&changes))
    }
}

/// What began, and what to say when it is over.
fn names(signs: &Signs) -> BTreeMap<String, String> {
    signs.bad.iter().map(|sign| (sign.began.clone(), sign.over.clone())).collect()
}

/// `2026-11-21-0313-worker-7`; where that is taken, with a number.
pub(crate) fn id(began: Timestamp, node: &str, taken: impl Fn(&str) -> bool) -> String {
    let name = format!("{}-{node}", began.strftime("%Y-%m-%d-%H%M"));
    if !taken(&name) {
        return name;
    }
    (2_u64..).map(|number| format!("{name}-{number}")).find(|name| !taken(name)).unwrap_or(name)
}

/// The first few, and how many more.
fn listed(changes: &[&str]) -> String {
    const SHOWN: usize = 5;
    let shown = changes.iter().take(SHOWN).copied().collect::<Vec<_>>().join("; ");
    match changes.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => format!("{shown}; and {more} more"),
        _ => shown,
    }
}

#[cfg(test)]
mod tests {
    use nodewhy_proto::{Conclusion, ConditionStatus};

    use super::super::signs::Sign;
    use super::*;
    use crate::testing::{at, root, verdict};

    fn stamp(seconds: i64) -> Stamp {
        Stamp { wall: at(seconds), boot: Duration::from_secs(u64::try_from(seconds).unwrap()) }
    }

    fn hung() -> Signs {
        let sign = Sign {
            at: at(90),
            began: "finding runtime_hung began".to_owned(),
            over: "finding runtime_hung ended".to_owned(),
        };
        Signs { bad: vec![sign], ..well() }
    }

    fn not_ready() -> Signs {
        let sign = Sign { at: at(220), began: "Ready became False".to_owned(), over: "x".to_owned() };
        Signs { bad: vec![sign], lost_ready: Some(at(220)), ..well() }
    }

    fn well() -> Signs {
        Signs { can_tell: true, ..Signs::default() }
    }

    fn explained() -> Verdict {
        let mut verdict = verdict("n", Conclusion::Explained, Some(ConditionStatus::True));
        verdict.roots.push(root("containerd_hung", at(85)));
        verdict
    }

    fn opened() -> Open {
        Open::begin("id".to_owned(), &hung(), stamp(100), explained())
    }

    #[test]
    fn a_sign_opens_with_the_first_sign_as_its_beginning() {
        let open = opened();
        assert_eq!(
            (open.incident.began, open.incident.opened, open.incident.lost_ready),
            (at(85), at(100), None)
        );
        assert_eq!(open.incident.revisions[0].changed_by, "finding runtime_hung began");
    }

    #[test]
    fn figures_alone_make_no_revision_and_substance_does() {
        let mut open = opened();
        let mut same = explained();
        same.at = at(105);
        same.roots[0].certainty = 0.7;
        assert_eq!(open.look(&hung(), stamp(105), &Timings::default(), || Some(same)), Step::Nothing);
        let mut lost = explained();
        lost.ready = Some(ConditionStatus::False);
        let signs = Signs { bad: [hung().bad, not_ready().bad].concat(), ..not_ready() };
        assert_eq!(open.look(&signs, stamp(220), &Timings::default(), || Some(lost)), Step::Revised);
        let newest = open.incident.revisions.last().unwrap();
        assert_eq!((newest.revision, newest.changed_by.as_str()), (2, "Ready became False"));
        assert_eq!(open.incident.lost_ready, Some(at(220)));
    }

    #[test]
    fn without_a_new_sign_the_difference_of_the_verdicts_is_told() {
        let mut open = opened();
        let mut other = explained();
        other.roots[0].cause = "containerd_dead".to_owned();
        open.look(&hung(), stamp(105), &Timings::default(), || Some(other));
        let told = &open.incident.revisions.last().unwrap().changed_by;
        assert_eq!(told, "root cause: containerd_dead (was: containerd_hung)");
    }

    #[test]
    fn a_verdict_that_only_gets_weaker_waits() {
        let timings = Timings::default();
        let weaker = || Some(verdict("n", Conclusion::NoCauseFound, Some(ConditionStatus::False)));
        let mut open = opened();
        assert_eq!(open.look(&hung(), stamp(200), &timings, weaker), Step::Nothing);
        assert_eq!(open.look(&hung(), stamp(259), &timings, weaker), Step::Nothing);
        assert_eq!(open.look(&hung(), stamp(260), &timings, weaker), Step::Revised);
        // A stronger one in between starts the wait anew.
        let mut open = opened();
        open.look(&hung(), stamp(200), &timings, weaker);
        open.look(&hung(), stamp(230), &timings, || Some(explained()));
        assert_eq!(open.look(&hung(), stamp(261), &timings, weaker), Step::Nothing);
    }

    #[test]
    fn a_verdict_that_gets_weaker_by_something_new_is_told_at_once() {
        let weaker = || Some(verdict("n", Conclusion::NoCauseFound, Some(ConditionStatus::False)));
        let signs = Signs { bad: [hung().bad, not_ready().bad].concat(), ..not_ready() };
        let mut open = opened();
        assert_eq!(open.look(&signs, stamp(220), &Timings::default(), weaker), Step::Revised);
        // After a restart what is there is not new.
        let mut open = Open::resumed(opened().incident);
        assert_eq!(open.look(&hung(), stamp(220), &Timings::default(), weaker), Step::Nothing);
    }

    #[test]
    fn it_ends_when_all_has_been_well_for_a_while_and_keeps_its_verdict() {
        let timings = Timings::default();
        let never = || -> Option<Verdict> { panic!("a node that is well is not explained again") };
        let mut open = opened();
        assert_eq!(open.look(&well(), stamp(300), &timings, never), Step::Nothing);
        assert_eq!(open.look(&hung(), stamp(305), &timings, || None), Step::Nothing);
        assert_eq!(open.look(&well(), stamp(310), &timings, never), Step::Nothing);
        assert_eq!(open.look(&well(), stamp(319), &timings, never), Step::Nothing);
        assert_eq!(open.look(&well(), stamp(320), &timings, never), Step::Ended);
        assert_eq!(open.incident.ended, Some(at(310)));
        assert_eq!(open.incident.verdict(), Some(&explained()));
    }

    #[test]
    fn what_we_cannot_see_or_do_not_remember_takes_no_verdict_back() {
        let timings = Timings::default();
        let weaker = || Some(verdict("n", Conclusion::NoCauseFound, Some(ConditionStatus::False)));
        // The agent was killed with its node: its silence is no evidence, however long.
        let mut open = opened();
        let deaf = Signs { deaf: true, ..hung() };
        for second in [200, 300, 3000] {
            assert_eq!(open.look(&deaf, stamp(second), &timings, weaker), Step::Nothing);
        }
        assert_eq!(
            open.look(&hung(), stamp(3010), &timings, weaker),
            Step::Nothing,
            "seen again: the wait begins"
        );
        assert_eq!(open.look(&hung(), stamp(3070), &timings, weaker), Step::Revised);
        // We were started anew and the agent is silent: though Ready flips, its evidence stands in the record.
        let mut open = Open::resumed(opened().incident);
        open.look(&Signs { deaf: true, agent_unheard: true, ..hung() }, stamp(200), &timings, weaker);
        let lost = Signs { deaf: true, agent_unheard: true, ..not_ready() };
        assert_eq!(
            open.look(&lost, stamp(300), &timings, weaker),
            Step::Revised,
            "Ready was lost: that is kept"
        );
        assert_eq!((open.incident.lost_ready, open.incident.verdict()), (Some(at(220)), Some(&explained())));
    }

    #[test]
    fn a_resumed_incident_ends_by_its_agents_word_or_when_ready_comes_back() {
        let timings = Timings::default();
        let unheard = Signs { deaf: true, agent_unheard: true, ready: true, ..well() };
        let mut open = Open::resumed(opened().incident);
        for second in [200, 300, 3000] {
            assert_eq!(open.look(&unheard, stamp(second), &timings, || None), Step::Nothing);
        }
        assert_eq!(open.look(&well(), stamp(3001), &timings, || None), Step::Nothing);
        assert_eq!(open.look(&well(), stamp(3011), &timings, || None), Step::Ended);
        let mut incident = opened().incident;
        incident.lost_ready = Some(at(150));
        let mut open = Open::resumed(incident);
        open.look(&unheard, stamp(200), &timings, || None);
        assert_eq!(open.look(&unheard, stamp(210), &timings, || None), Step::Ended);
    }

    #[test]
    fn a_verdict_that_flaps_all_night_stays_within_bounds() {
        let mut open = opened();
        for second in 101..30_000 {
            let mut other = explained();
            if second % 2 == 0 {
                other.roots[0].cause = "containerd_dead".to_owned();
            }
            open.look(&hung(), stamp(second), &Timings::default(), || Some(other));
        }
        assert_eq!(open.incident.revisions.len(), OFTEN);
        let lasting = || {
            let mut lasting = explained();
            lasting.roots[0].cause = "kubelet_down".to_owned();
            Some(lasting)
        };
        open.look(&hung(), stamp(30_000), &Timings::default(), lasting);
        assert_eq!(open.look(&hung(), stamp(30_060), &Timings::default(), lasting), Step::Revised);
    }

    #[test]
    fn our_own_deafness_is_no_recovery() {
        let mut open = opened();
        let deaf = Signs::default();
        for second in [200, 2000, 20_000] {
            assert_eq!(open.look(&deaf, stamp(second), &Timings::default(), || None), Step::Nothing);
        }
        assert_eq!(open.incident.ended, None);
    }

    #[test]
    fn ids_are_unique() {
        let began = "2026-11-21T03:13:59Z".parse().unwrap();
        assert_eq!(id(began, "worker-7", |_| false), "2026-11-21-0313-worker-7");
        let taken = ["2026-11-21-0313-worker-7", "2026-11-21-0313-worker-7-2"];
        assert_eq!(id(began, "worker-7", |name| taken.contains(&name)), "2026-11-21-0313-worker-7-3");
    }
}
