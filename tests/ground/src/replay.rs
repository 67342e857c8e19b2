//! Evidence, diagnosed again: what the aggregator would have known of the node at a moment, and concluded. No virtual
//! machine, no socket, no clock.

mod judge;

use anyhow::Context;
use jiff::{SignedDuration, Timestamp};
use nodewhy_aggregator::Replay;
use nodewhy_diagnosis::{Case, explain};
use nodewhy_proto::{NodeInfo, Verdict};

use crate::evidence::{Answer, Evidence, Heard, Said, Served, Stream, Truth, Way};

pub use judge::{Judged, judge};

/// When the diagnosis looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The node is well: just before the fault.
    BeforeFault,
    /// The fault is in place: just before it is undone.
    BeforeUndo,
    /// The run's end.
    End,
}

/// The case that the aggregator would have made then, from what this agent had told. No cluster was watched.
///
/// # Errors
/// There was no such agent, an answer is not understood, or no case can be made: which, and why.
pub fn case(evidence: &Evidence, way: Way, moment: Moment) -> anyhow::Result<Case> {
    let of = || format!("replay {} of {}", way.folder(), evidence.truth.fault);
    let served = evidence.agents.get(&way).with_context(|| format!("{}: it was not followed", of()))?;
    let replayed = || -> anyhow::Result<Case> {
        let first = infos(served).next().context("the agent never said what node it is on")??;
        let at = time(&evidence.truth, served, moment)?;
        let mut replay = Replay::new(first.0.id.name);
        for (_, told) in all_until(served, at) {
            tell(&mut replay, told)?;
        }
        Ok(replay.case(at)?)
    };
    replayed().with_context(of)
}

/// What is concluded of that case.
///
/// # Errors
/// As [`case`].
pub fn verdict(evidence: &Evidence, way: Way, moment: Moment) -> anyhow::Result<Verdict> {
    Ok(explain(&case(evidence, way, moment)?))
}

/// The verdict just before the fault was undone, in a few words for a table: `containerd_hung, sure 0.90`.
pub fn verdict_line(evidence: &Evidence, way: Way) -> String {
    match verdict(evidence, way, Moment::BeforeUndo) {
        Ok(verdict) => judge::line(&verdict),
        Err(error) => format!("no verdict: {error:#}"),
    }
}

/// Something that was recorded.
#[derive(Clone, Copy)]
enum Told<'a> {
    Node(&'a Answer),
    State(&'a Answer),
    Findings(&'a Answer),
    Heard(&'a Heard),
}

/// Everything that was received by then, in the order of its receipt.
fn all_until(served: &Served, at: Timestamp) -> Vec<(Timestamp, Told<'_>)> {
    let nodes = served.node.iter().map(|answer| (answer.received, Told::Node(answer)));
    let states = served.state.iter().map(|answer| (answer.received, Told::State(answer)));
    let findings = served.findings.iter().map(|answer| (answer.received, Told::Findings(answer)));
    let events = served.events.iter().map(|heard| (heard.received, Told::Heard(heard)));
    let mut all: Vec<_> = nodes.chain(states).chain(findings).chain(events).collect();
    all.retain(|(received, _)| *received <= at);
    // It keeps the order of what was received at once: within a stream that is the stream's.
    all.sort_by_key(|(received, _)| *received);
    all
}

fn tell(replay: &mut Replay, told: Told<'_>) -> anyhow::Result<()> {
    type Take = fn(&mut Replay, &str, Timestamp, Timestamp) -> Result<(), nodewhy_aggregator::ReplayError>;
    let (answer, take): (&Answer, Take) = match told {
        Told::Node(answer) => (answer, Replay::node_info),
        Told::State(answer) => (answer, Replay::state),
        Told::Findings(answer) => (answer, Replay::findings),
        Told::Heard(heard) => {
            let received = heard.received;
            match &heard.what {
                Stream::Opened { .. } => replay.opened(),
                Stream::Event { data, .. } => replay.event(data, received)?,
                Stream::Lost { why } => replay.lost(why, received),
            }
            return Ok(());
        }
    };
    match answer.body() {
        Ok(body) => take(replay, body, answer.asked, answer.received)?,
        Err(why) => replay.unanswered(&why, answer.received),
    }
    Ok(())
}

/// The moment, by the clock that recorded.
fn time(truth: &Truth, served: &Served, moment: Moment) -> anyhow::Result<Timestamp> {
    match moment {
        Moment::BeforeFault => injected_at(truth, served),
        Moment::BeforeUndo => Ok(truth.undone_at),
        Moment::End => Ok(truth.ended_at),
    }
}

/// When the fault began, by the clock that recorded: the fault's instant since the node's boot, held against the last
/// answer before it, which tells the same clock. The node's wall clock may be what the fault moves.
pub(crate) fn injected_at(truth: &Truth, served: &Served) -> anyhow::Result<Timestamp> {
    let since = SignedDuration::from_nanos(truth.injected.since.boot_nanos);
    let mut newest = None;
    for info in infos(served) {
        let (info, answer) = info?;
        let uptime = SignedDuration::try_from_secs_f64(info.uptime_seconds)?;
        // After a reboot the clock begins anew: what follows is no answer before the fault.
        if uptime > since || newest.is_some_and(|(before, _)| uptime < before) {
            break;
        }
        newest = Some((uptime, answer));
    }
    let (uptime, answer) = newest.context("the agent was not heard before the fault")?;
    let told_at = answer.asked.checked_add(answer.received.duration_since(answer.asked) / 2)?;
    Ok(told_at.checked_add(since - uptime)?)
}

/// Each answer of `/api/v1/node` that is one.
fn infos(served: &Served) -> impl Iterator<Item = anyhow::Result<(NodeInfo, &Answer)>> {
    let answered = served.node.iter().filter_map(|answer| match &answer.said {
        Said::Body { status: 200, body } => Some((body, answer)),
        _ => None,
    });
    answered.map(|(body, answer)| {
        let info = serde_json::from_str(body)
            .with_context(|| format!("/api/v1/node, received at {}, is not understood", answer.received))?;
        Ok((info, answer))
    })
}

#[cfg(test)]
mod tests;
