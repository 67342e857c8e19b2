//! Whether, how and when a cause makes the asked node leave Ready.

use std::time::Duration;

use jiff::Timestamp;
use nodewhy_proto::{ConditionStatus, Evidence, Step};

use super::began::Span;
use super::{Found, follows};
use crate::signs::clock_time;
use crate::{Case, Link, NOT_READY, NodeCase, Scope, Shows, Stage, Unready};

/// A heartbeat that came this long after a fault shows that the fault did not silence the kubelet.
pub(super) const HEARTBEAT_GRACE: Duration = Duration::from_secs(5);

/// What is known of the asked node's Ready condition.
pub(super) struct Asked<'a> {
    pub(super) name: &'a str,
    pub(super) now: Timestamp,
    pub(super) node: Option<&'a NodeCase>,
    pub(super) stages: Vec<Stage>,
    /// Whether there is a kubelet here that can lose Ready: its collector reads it, or the API has its Node.
    pub(super) has_kubelet: bool,
}

/// How a cause reaches the loss of Ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Ready was lost as this cause loses it. `current`: and the API still says so today.
    Happened { link: &'static Link, stage: Stage, current: bool },
    /// Ready is True as far as anybody knows; this cause takes it away.
    Expected { link: &'static Link },
    /// The cause holds, on a machine without a kubelet that could lose Ready.
    NoKubelet,
}

impl<'a> Asked<'a> {
    pub(super) fn of(case: &'a Case) -> Asked<'a> {
        let node = case.asked();
        let has_kubelet =
            node.is_some_and(|node| node.ready().is_some() || node.collector("kubelet").is_ok());
        let stages = node.map(NodeCase::unready).unwrap_or_default();
        Asked { name: &case.node, now: case.window.to, node, stages, has_kubelet }
    }

    /// Since when Ready is what it is: the transition's own time, or when it was first heard.
    pub(super) fn ready_since(&self) -> Option<Timestamp> {
        let ready = self.node?.ready()?;
        // Stages of one status are one state: its message changed, its beginning did not.
        let last = self.stages.last().map(|stage| stage.status);
        let run = self.stages.iter().rev().take_while(|stage| Some(stage.status) == last).last();
        run.map(|stage| stage.at).or(ready.last_transition)
    }

    /// The Lease's newest renewal.
    pub(super) fn renewed(&self) -> Option<Timestamp> {
        self.node?.heartbeat()
    }
}

/// How this cause reaches the loss of Ready by an arrow of its own.
pub(super) fn of(one: &Found, asked: &Asked<'_>) -> Option<Reach> {
    let cluster = one.cause.scope == Scope::Cluster;
    if one.node != asked.name && !cluster {
        return None;
    }
    let last = asked.stages.last().map(|stage| stage.status);
    for link in one.cause.leads_to.iter().filter(|link| link.to == NOT_READY) {
        let matching: Vec<&Stage> =
            asked.stages.iter().filter(|stage| explains(one, link, stage, asked)).collect();
        if let Some(first) = matching.first() {
            let current = matching.iter().any(|stage| Some(stage.status) == last);
            return Some(Reach::Happened { link, stage: (*first).clone(), current });
        }
        // What is over, or holds elsewhere, takes nothing away any more. A Node object that is gone has no Ready.
        let gone = asked.node.is_none_or(NodeCase::node_deleted);
        if asked.stages.is_empty() && !gone && !cluster && one.holding.ended.is_none() {
            return Some(if asked.has_kubelet { Reach::Expected { link } } else { Reach::NoKubelet });
        }
    }
    None
}

fn explains(one: &Found, link: &Link, stage: &Stage, asked: &Asked<'_>) -> bool {
    let shown = match link.shows.map(|shows| shows.ready) {
        None => true,
        Some(Unready::Unknown) => stage.status == ConditionStatus::Unknown,
        Some(Unready::False(signs)) => {
            stage.status == ConditionStatus::False && signs.iter().any(|sign| stage.message.contains(sign))
        }
    };
    let began = Span::at(one.holding.since);
    let in_time = follows(began, Span::at(Some(stage.at)), link.within)
        || one.first_look.is_some_and(|look| look.may_precede(link, stage, asked));
    shown && in_time && !(one.cause.scope == Scope::Node && heard_after(one, stage, asked))
}

/// Whether the kubelet's heart beat after the fault and before it was missed: then this fault did not silence it.
fn heard_after(one: &Found, stage: &Stage, asked: &Asked<'_>) -> bool {
    if stage.status != ConditionStatus::Unknown {
        return false;
    }
    match (one.holding.since, asked.renewed()) {
        (Some(since), Some(renewed)) => {
            renewed <= stage.at && since.saturating_add(HEARTBEAT_GRACE).is_ok_and(|silent| renewed > silent)
        }
        _ => false,
    }
}

impl Reach {
    /// Smaller is better.
    pub(super) fn class(&self) -> u8 {
        match self {
            Reach::Happened { current: true, .. } => 0,
            Reach::Happened { current: false, .. } => 1,
            Reach::Expected { .. } => 2,
            Reach::NoKubelet => 3,
        }
    }

    /// The chain's end, `began` being when it began. None where there is no kubelet: the chain ends with the cause.
    pub(super) fn step(&self, asked: &Asked<'_>, last: &Found, began: Option<Timestamp>) -> Option<Step> {
        match self {
            Reach::NoKubelet => None,
            Reach::Happened { stage, .. } => Some(lost(asked, stage, began)),
            Reach::Expected { link } => Some(expected(asked, link, last.holding.since)),
        }
    }
}

fn lost(asked: &Asked<'_>, stage: &Stage, began: Option<Timestamp>) -> Step {
    let writer = match stage.status {
        ConditionStatus::Unknown => "written by the controller-manager",
        _ => "written by the kubelet",
    };
    let mut text = format!("Ready {:?}", stage.status);
    if !stage.message.is_empty() {
        text = format!("{text}: {}", stage.message);
    }
    if let Some(seconds) = began.map(|began| stage.at.duration_since(began).as_secs()).filter(|s| *s > 0) {
        text = format!("{text} ({seconds} s after the first step)");
    }
    let said = format!("Ready={:?} {} ({writer})", stage.status, stage.reason);
    let mut evidence = vec![Evidence::new(said, &stage.source).with_time(stage.at)];
    if let Some(renewed) = asked.renewed().filter(|_| stage.status == ConditionStatus::Unknown) {
        let text = format!("the newest renewal of its Lease is of {}", clock_time(renewed));
        evidence.push(Evidence::new(text, format!("Lease {}", asked.name)).with_time(renewed));
    }
    step(asked, text, Some(stage.at), true, evidence)
}

fn expected(asked: &Asked<'_>, link: &Link, since: Option<Timestamp>) -> Step {
    let becomes = match link.shows.map(|shows| shows.ready) {
        Some(Unready::Unknown) => "Unknown".to_owned(),
        Some(Unready::False([sign, ..])) => format!("False ({sign})"),
        Some(Unready::False([])) => "False".to_owned(),
        None => "False or Unknown".to_owned(),
    };
    let Shows { soonest, usually_by, .. } = link.shows.unwrap_or(Shows {
        ready: Unready::Unknown,
        soonest: Duration::ZERO,
        usually_by: link.within,
    });
    let at = since.and_then(|since| since.saturating_add(soonest).ok());
    let by = since.and_then(|since| since.saturating_add(usually_by).ok());
    let heard = match asked.node.and_then(|node| node.ready()) {
        Some(_) => "the API server still says Ready True",
        None => "no API server was asked",
    };
    let text = match (at, by) {
        (_, Some(by)) if by < asked.now => {
            format!("Ready was due to turn {becomes} by {}; {heard}", clock_time(by))
        }
        (Some(at), Some(by)) => format!(
            "Ready is expected to turn {becomes} between {} and {}; {heard}",
            clock_time(at),
            clock_time(by)
        ),
        _ => format!("Ready is expected to turn {becomes}; {heard}"),
    };
    step(asked, text, at, false, Vec::new())
}

fn step(
    asked: &Asked<'_>,
    text: String,
    at: Option<Timestamp>,
    happened: bool,
    evidence: Vec<Evidence>,
) -> Step {
    Step { id: NOT_READY.to_owned(), text, node: asked.name.to_owned(), at, happened, evidence }
}
