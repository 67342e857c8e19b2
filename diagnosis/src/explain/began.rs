//! When a cause that holds began, where nobody was looking then: an agent that was started, or that could read again,
//! after the fault dates it by its first look. The fault began at that look or at some time before.

use std::time::Duration;

use jiff::Timestamp;
use nodewhy_proto::{ConditionStatus, EventBody, Evidence, Finding};

use super::reach::{Asked, HEARTBEAT_GRACE, Reach};
use super::{CLOCK_GRAIN, Found};
use crate::signs::{clock_time, source_of, within};
use crate::{Holding, Link, NodeCase, Stage};

/// A state that waits for an answer is dated by the question, which the first look asked this long before it was read.
const FIRST_QUESTION: Duration = Duration::from_secs(15);

/// What began before anybody looked is taken for the cause by its kind alone, not by its time.
const AT_MOST: f64 = 0.7;

/// The first look that found something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FirstLook {
    at: Timestamp,
    /// Nobody looked from then on. `None`: nothing is known of a look before.
    blind_since: Option<Timestamp>,
}

/// When something may have begun. `None`: without a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) earliest: Option<Timestamp>,
    pub(super) latest: Option<Timestamp>,
}

impl Span {
    /// At this instant.
    pub(super) fn at(time: Option<Timestamp>) -> Span {
        Span { earliest: time, latest: time }
    }
}

/// The first look by which this is dated; `None` where it is dated by the fault itself, or somebody looked before.
pub(super) fn first_look(node: &NodeCase, holding: &Holding) -> Option<FirstLook> {
    let since = holding.since?;
    let mut dated_by = node.findings.known()?.iter().filter(|finding| {
        let source = source_of(finding);
        finding.began == since && holding.because.iter().any(|evidence| evidence.source == source)
    });
    dated_by.find_map(|finding| look_of(node, finding))
}

fn look_of(node: &NodeCase, finding: &Finding) -> Option<FirstLook> {
    // The kernel dates its own lines.
    if finding.collector == "oom" {
        return None;
    }
    let mut read_at = None;
    let mut blind_since = None;
    let mut look = None;
    for event in node.events.known()?.iter().filter(|event| event.source == finding.collector) {
        match &event.body {
            EventBody::OutcomeChanged { result, .. } if result.is_read() => {
                if within(event.at, finding.began, Duration::ZERO)
                    && within(finding.began, event.at, FIRST_QUESTION)
                {
                    // Read twice in a row: the agent was started again in between.
                    look = Some(FirstLook { at: event.at, blind_since: blind_since.or(read_at) });
                }
                (read_at, blind_since) = (Some(event.at), None);
            }
            EventBody::OutcomeChanged { .. } => blind_since = blind_since.or(Some(event.at)),
            _ if blind_since.is_none() && read_at.is_some() => read_at = Some(event.at),
            _ => {}
        }
    }
    // A fault that began before the blindness is dated by its own clock.
    look.filter(|look| look.blind_since.is_none_or(|from| within(finding.began, from, Duration::ZERO)))
}

impl FirstLook {
    /// Whether what this look found may have been there, unseen, in time for this loss of Ready.
    pub(super) fn may_precede(&self, link: &Link, stage: &Stage, asked: &Asked<'_>) -> bool {
        let soonest = link.shows.map_or(Duration::ZERO, |shows| shows.soonest);
        let unseen = self.blind_since.is_none_or(|from| {
            from.saturating_add(soonest).is_ok_and(|due| within(stage.at, due, CLOCK_GRAIN))
        });
        // A heartbeat after the loss: then this did not silence the kubelet before it.
        let heard = stage.status == ConditionStatus::Unknown
            && asked.renewed().is_some_and(|renewed| !within(stage.at, renewed, CLOCK_GRAIN));
        stage.at < self.at && unseen && !heard
    }
}

/// When this began: as it is dated; or, where the loss of Ready that it explains came before the first look, at some
/// time before that loss, and not before what is known of it allows. The holding then says so itself.
pub(super) fn settle(one: &mut Found, reach: Option<&Reach>, asked: &Asked<'_>) -> Span {
    let since = one.holding.since;
    let dated = Span::at(since);
    let (Some(look), Some(Reach::Happened { stage, link, .. })) = (one.first_look, reach) else {
        return dated;
    };
    if since.is_some_and(|since| within(stage.at, since, Duration::ZERO)) {
        return dated;
    }
    let by_link = stage.at.saturating_sub(link.within).ok();
    let by_heart = asked.renewed().filter(|_| stage.status == ConditionStatus::Unknown);
    let by_heart = by_heart.and_then(|renewed| renewed.saturating_sub(HEARTBEAT_GRACE).ok());
    let holding = &mut one.holding;
    let text = format!(
        "it was so already at the first look, at {}: when it began is not known",
        clock_time(look.at)
    );
    holding.because.push(Evidence::new(&text, "the agent's events").with_time(look.at));
    holding.text = format!("{}; {text}", holding.text);
    holding.since = None;
    holding.certainty = holding.certainty.min(AT_MOST);
    Span {
        earliest: [look.blind_since, by_link, by_heart].into_iter().flatten().max(),
        latest: Some(stage.at),
    }
}
