//! From a case to a verdict: every check is run, what holds is joined into a graph by what it leads to, and the
//! sources of that graph from which the loss of Ready is reached are the roots.

mod began;
mod conclude;
mod reach;

use std::time::Duration;

use jiff::Timestamp;
use nodewhy_proto::{CouldNotTell, Held, RootCause, RuledOut, Step, Verdict};

use crate::causes::ALL;
use crate::graph::Graph;
use crate::{Answer, Case, Cause, Holding, Scope};
use began::{FirstLook, Span};
use reach::{Asked, Reach};

/// How much earlier than its cause a consequence may be dated: the API's times are whole seconds, and a poll dates
/// what it sees up to a second late.
pub const CLOCK_GRAIN: Duration = Duration::from_secs(2);

/// Why the case's node is not Ready, or is about to leave Ready. Pure: the same evidence gives the same verdict, in
/// whatever order and however often it was told.
pub fn explain(case: &Case) -> Verdict {
    explain_with(ALL, case)
}

/// [`explain`] with a catalogue of one's own.
pub fn explain_with(causes: &[&'static Cause], case: &Case) -> Verdict {
    if case.is_tidy() {
        return weigh(causes, case);
    }
    // Its fields are public: a case may have been put together without the builder.
    let mut tidied = case.clone();
    tidied.tidy();
    weigh(causes, &tidied)
}

/// A cause that holds, and where: a vertex of the graph.
struct Found {
    cause: &'static Cause,
    node: String,
    holding: Holding,
    /// Where it is dated by the first look that anybody took.
    first_look: Option<FirstLook>,
}

fn weigh(causes: &[&'static Cause], case: &Case) -> Verdict {
    let mut found = Vec::new();
    let mut ruled_out = Vec::new();
    let mut cannot_tell = Vec::new();
    for (cause, node, answer) in answers(causes, case) {
        let id = cause.id.to_owned();
        match answer {
            Answer::Yes(holding) => {
                let first_look = case.nodes.get(&node).and_then(|node| began::first_look(node, &holding));
                found.push(Found { cause, node, holding, first_look });
            }
            Answer::No { because } if because.is_empty() => {
                let missing = vec!["the check named no evidence against it".to_owned()];
                cannot_tell.push(CouldNotTell { cause: id, node, missing });
            }
            Answer::No { because } => ruled_out.push(RuledOut { cause: id, node, because }),
            Answer::CannotTell { missing } => cannot_tell.push(CouldNotTell { cause: id, node, missing }),
        }
    }
    let asked = Asked::of(case);
    let reaches: Vec<Option<Reach>> = found.iter().map(|one| reach::of(one, &asked)).collect();
    let settle = |(one, reach): (&mut Found, &Option<Reach>)| began::settle(one, reach.as_ref(), &asked);
    let spans: Vec<Span> = found.iter_mut().zip(&reaches).map(settle).collect();
    let graph = Graph::new(found.len(), arrows(&found, &spans));
    let circles = graph.unfed_circles();
    let mut roots: Vec<(Reach, Vec<usize>)> = (0..found.len())
        .filter(|&vertex| graph.is_source(vertex))
        .filter_map(|vertex| best_chain(&graph.without_shortcuts(), &reaches, vertex))
        .collect();
    roots.sort_by(|a, b| rank(&found, a).cmp(&rank(&found, b)));
    let cycles: Vec<Vec<usize>> =
        circles.iter().filter_map(|circle| around(&graph, &found, circle)).collect();

    let told = |vertex: &usize| {
        roots.iter().any(|(_, chain)| chain.first() == Some(vertex))
            || cycles.iter().any(|cycle| cycle.contains(vertex))
    };
    let mut contributing: Vec<Held> = (0..found.len())
        .filter(|vertex| !told(vertex))
        .filter_map(|vertex| found.get(vertex).map(held))
        .collect();
    contributing.sort_by(|a, b| {
        (a.since.is_none(), a.since, &a.cause, &a.node).cmp(&(b.since.is_none(), b.since, &b.cause, &b.node))
    });
    ruled_out.sort_by(|a, b| (&a.cause, &a.node).cmp(&(&b.cause, &b.node)));
    cannot_tell.sort_by(|a, b| (&a.cause, &a.node).cmp(&(&b.cause, &b.node)));

    let deadlock = circles.iter().flatten().any(|&vertex| reached_from(&graph, &reaches, vertex));
    let ready = asked.node.and_then(|node| node.ready());
    Verdict {
        node: case.node.clone(),
        at: case.window.to,
        conclusion: conclude::conclusion(&asked, &found, &roots, !cycles.is_empty(), deadlock),
        ready: ready.map(|ready| ready.status),
        ready_since: asked.ready_since(),
        ready_message: ready.map(|ready| ready.message.clone()).unwrap_or_default(),
        roots: roots.iter().filter_map(|(reach, chain)| root(&found, &asked, reach, chain)).collect(),
        cycles: cycles.iter().map(|cycle| steps(&found, cycle)).collect(),
        contributing,
        unexplained: conclude::unexplained(&asked, &found).cloned().collect(),
        ruled_out,
        cannot_tell,
        blind: conclude::blind(case),
    }
}

/// Every check's answer, in an order that hangs on names alone.
fn answers(causes: &[&'static Cause], case: &Case) -> Vec<(&'static Cause, String, Answer)> {
    let mut causes: Vec<&'static Cause> = causes.to_vec();
    causes.sort_by_key(|cause| cause.id);
    causes.dedup_by_key(|cause| cause.id);
    let mut answers = Vec::new();
    for cause in causes {
        for (name, node) in &case.nodes {
            if cause.scope == Scope::Node || *name == case.node {
                answers.push((cause, name.clone(), (cause.check)(case, node)));
            }
        }
    }
    answers
}

/// One arrow from each that holds to each that it leads to: on the same node, or across where one of the two is the
/// cluster's; in the right order in time; within the time that the step takes.
fn arrows(found: &[Found], spans: &[Span]) -> Vec<(usize, usize)> {
    let mut arrows = Vec::new();
    for (from, (cause, began)) in found.iter().zip(spans).enumerate() {
        for link in cause.cause.leads_to {
            for (to, (effect, then)) in found.iter().zip(spans).enumerate() {
                let near = cause.node == effect.node
                    || cause.cause.scope == Scope::Cluster
                    || effect.cause.scope == Scope::Cluster;
                if effect.cause.id == link.to && near && follows(*began, *then, link.within) {
                    arrows.push((from, to));
                }
            }
        }
    }
    arrows
}

/// Whether something that began within `effect` may come of what began within `cause`. Where a time is not known, the
/// order is not known either, and does not speak against it.
fn follows(cause: Span, effect: Span, within: Duration) -> bool {
    let in_order = match (cause.earliest, effect.latest) {
        (Some(cause), Some(effect)) => cause.saturating_sub(CLOCK_GRAIN).is_ok_and(|cause| cause <= effect),
        _ => true,
    };
    let in_time = match (cause.latest, effect.earliest) {
        (Some(cause), Some(effect)) => {
            cause.saturating_add(within.saturating_add(CLOCK_GRAIN)).is_ok_and(|latest| effect <= latest)
        }
        _ => true,
    };
    in_order && in_time
}

fn reached_from(graph: &Graph, reaches: &[Option<Reach>], start: usize) -> bool {
    reaches
        .iter()
        .enumerate()
        .any(|(vertex, reach)| reach.is_some() && (vertex == start || graph.reaches(start, vertex)))
}

/// From `start` to where the loss of Ready is reached: the best such place, and of equals the farthest, so that the
/// whole story is told.
fn best_chain(graph: &Graph, reaches: &[Option<Reach>], start: usize) -> Option<(Reach, Vec<usize>)> {
    let mut best: Option<(Reach, Vec<usize>)> = None;
    for (vertex, reach) in reaches.iter().enumerate() {
        let path = if vertex == start { Some(vec![start]) } else { graph.shortest(start, vertex) };
        let (Some(reach), Some(path)) = (reach, path) else { continue };
        let better = best.as_ref().is_none_or(|(held, chain)| {
            reach.class() < held.class() || (reach.class() == held.class() && path.len() > chain.len())
        });
        if better {
            best = Some((reach.clone(), path));
        }
    }
    best
}

/// An actual loss of Ready before one to come; then the surest; then the earliest; then by name.
fn rank<'a>(
    found: &'a [Found],
    (reach, chain): &(Reach, Vec<usize>),
) -> (u8, std::cmp::Reverse<u32>, bool, Option<Timestamp>, &'a str, &'a str) {
    let root = chain.first().and_then(|&vertex| found.get(vertex));
    let since = root.and_then(|root| root.holding.since);
    (
        reach.class(),
        std::cmp::Reverse(root.map_or(0, |root| thousandths(root.holding.certainty))),
        since.is_none(),
        since,
        root.map_or("", |root| root.cause.id),
        root.map_or("", |root| root.node.as_str()),
    )
}

/// Certainty as a number that can be ordered: what is not a number is no certainty.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1000, by the clamp")]
fn thousandths(certainty: f64) -> u32 {
    (certainty.clamp(0.0, 1.0) * 1000.0).round() as u32
}

/// The smallest circle through its earliest member.
fn around(graph: &Graph, found: &[Found], circle: &[usize]) -> Option<Vec<usize>> {
    let first = circle.iter().copied().min_by_key(|&vertex| {
        let since = found.get(vertex).and_then(|one| one.holding.since);
        (since.is_none(), since, vertex)
    })?;
    let mut path = graph.shortest(first, first)?;
    path.pop();
    Some(path)
}

fn root(found: &[Found], asked: &Asked<'_>, reach: &Reach, chain: &[usize]) -> Option<RootCause> {
    let root = found.get(*chain.first()?)?;
    let mut told = steps(found, chain);
    let last = found.get(*chain.last()?)?;
    told.extend(reach.step(asked, last, root.holding.since));
    let remedy = if root.holding.remedy.is_empty() {
        root.cause.remedy.iter().map(|line| (*line).to_owned()).collect()
    } else {
        root.holding.remedy.clone()
    };
    Some(RootCause {
        cause: root.cause.id.to_owned(),
        title: root.cause.title.to_owned(),
        node: root.node.clone(),
        subject: root.holding.subject.clone(),
        since: root.holding.since,
        certainty: if root.holding.certainty.is_nan() { 0.0 } else { root.holding.certainty.clamp(0.0, 1.0) },
        because: root.holding.because.clone(),
        chain: told,
        remedy,
    })
}

fn steps(found: &[Found], chain: &[usize]) -> Vec<Step> {
    let step = |one: &Found| Step {
        id: one.cause.id.to_owned(),
        text: one.holding.text.clone(),
        node: one.node.clone(),
        at: one.holding.since,
        happened: true,
        evidence: one.holding.because.clone(),
    };
    chain.iter().filter_map(|&vertex| found.get(vertex).map(step)).collect()
}

fn held(one: &Found) -> Held {
    Held {
        cause: one.cause.id.to_owned(),
        title: one.cause.title.to_owned(),
        node: one.node.clone(),
        subject: one.holding.subject.clone(),
        since: one.holding.since,
        because: one.holding.because.clone(),
    }
}

#[cfg(test)]
mod tests;
