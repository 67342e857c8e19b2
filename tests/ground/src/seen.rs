//! What an agent saw of a fault, and after how many seconds: how a run is judged. Pure.
//!
//! A sign counts when it is new. What held when the fault began is no sign of it, even if it ends and comes again. A
//! number needs an earlier reading in which it did not hold: a story that begins with it high shows no rise.

mod elapsed;
mod first;

use std::collections::BTreeSet;
use std::fmt;

use jiff::Timestamp;
use nodewhy_guest::channel::Clocks;
use nodewhy_proto::{EventBody, Role, Subject};

use crate::evidence::{Story, Truth, Way};
use crate::fault::{Fault, Sees, What};
use elapsed::Elapsed;
use first::{first, is_finding};

/// The kernel dates with a grain, and a clock is read a moment before what follows it: so much earlier is not before.
const GRAIN_SECONDS: f64 = 0.05;

/// One entry of [`Fault::sees`], and what became of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sign {
    /// Which collector.
    pub collector: &'static str,
    /// What, in words: `finding runtime_hung`.
    pub what: String,
    /// Whether this agent has to see it.
    pub expected: Expected,
    /// The first time that it was seen; `None`: it was not.
    pub seen: Option<Seen>,
}

/// Whether an agent has to see a sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It has to.
    Yes,
    /// It runs in a container, and can't: why.
    NotInPod(&'static str),
}

/// When a sign was seen. Seconds are counted from the fault's beginning.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// The time that the agent gives it: of the event, of the reading. For a kernel message that is the kernel's stamp.
    pub latency_seconds: f64,
    /// When the agent had served it, as the harness received it.
    pub served_seconds: f64,
    /// What the first of the two is worth.
    pub dated: Dated,
    /// What the agent said.
    pub text: String,
}

/// By what a sign's own time is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dated {
    /// The agent's boot clock, when it noticed.
    ByAgent,
    /// The kernel's stamp, by which the agent would know everything at once.
    ByKernel,
    /// The wall clock of another boot than the fault's: it starts from an RTC of whole seconds.
    ByOtherBoot,
}

/// A finding that began during the fault and is not among its signs.
#[derive(Clone, Debug, PartialEq)]
pub struct Unexpected {
    /// Which collector.
    pub collector: String,
    /// The finding's name.
    pub finding: String,
    /// What it is about.
    pub subject: Subject,
    /// Seconds after the fault.
    pub latency_seconds: f64,
    /// Its summary.
    pub text: String,
}

impl Seen {
    /// The figure that may be shown as the latency: after so many seconds, the agent had it to serve.
    pub fn figure_seconds(&self) -> f64 {
        match self.dated {
            Dated::ByAgent => self.latency_seconds,
            Dated::ByKernel | Dated::ByOtherBoot => self.served_seconds,
        }
    }
}

impl Sign {
    /// Whether it is as it should be: seen, or not seen by the agent that can't. The latter, seen, is a wrong claim.
    pub fn is_as_expected(&self) -> bool {
        self.seen.is_some() == (self.expected == Expected::Yes)
    }

    /// In a word or two: `3.2 s`, `not seen`, `cannot`.
    pub fn in_short(&self) -> String {
        match (&self.seen, self.expected) {
            (Some(seen), Expected::Yes) => figure(seen.figure_seconds()),
            (Some(seen), Expected::NotInPod(_)) => {
                format!("{}, though it cannot", figure(seen.figure_seconds()))
            }
            (None, Expected::Yes) => "not seen".to_owned(),
            (None, Expected::NotInPod(_)) => "cannot".to_owned(),
        }
    }
}

/// Seconds for people: one decimal below ten.
pub fn figure(seconds: f64) -> String {
    if seconds < 9.95 { format!("{seconds:.1} s") } else { format!("{seconds:.0} s") }
}

/// Whether a sign of the fault is a figure: without, the judgement needs no states of a story.
pub fn needs_readings(fault: &Fault) -> bool {
    fault.sees.iter().any(|sees| matches!(sees.what, What::AtLeast(..) | What::AtMost(..)))
}

/// When each sign of the fault was first seen by this agent, in the order of [`Fault::sees`]. For a run that goes on:
/// what came after the undo is not told apart here.
pub fn signs(fault: &Fault, since: &Clocks, way: Way, story: &Story) -> Vec<Sign> {
    judged(fault, since, None, way, story)
}

/// The same for a run that is over: what the agent noticed after the undo, in the fault's own boot, is no sign of the
/// fault.
pub fn signs_of_run(fault: &Fault, truth: &Truth, way: Way, story: &Story) -> Vec<Sign> {
    judged(fault, &truth.injected.since, Some(truth.undone_at), way, story)
}

/// Whether this agent has seen every sign that it has to. Of a fault without signs this is never so: it is left in place
/// for as long as it may.
pub fn all_seen(fault: &Fault, since: &Clocks, way: Way, story: &Story) -> bool {
    let signs = signs(fault, since, way, story);
    !signs.is_empty() && signs.iter().all(|sign| sign.seen.is_some() || sign.expected != Expected::Yes)
}

/// Findings that began during the fault (were received before the undo began), and are not among its signs. They are
/// consequences, or wrong: listed for a person, not judged.
pub fn unexpected(fault: &Fault, since: &Clocks, undone_at: Timestamp, story: &Story) -> Vec<Unexpected> {
    let elapsed = Elapsed::new(since, story);
    let mut listed = BTreeSet::new();
    let mut unexpected = Vec::new();
    for event in story.events.iter().filter(|event| event.received <= undone_at) {
        let EventBody::FindingBegan { finding } = &event.said.body else { continue };
        let latency_seconds = elapsed.event(&event.said);
        let is_sign = fault.sees.iter().any(|sees| is_finding(sees, &event.said));
        // The first of its kind on its subject: one that flaps is listed once.
        if latency_seconds >= -GRAIN_SECONDS
            && !is_sign
            && listed.insert((&finding.finding, &finding.subject))
        {
            unexpected.push(Unexpected {
                collector: finding.collector.clone(),
                finding: finding.finding.clone(),
                subject: finding.subject.clone(),
                latency_seconds: latency_seconds.max(0.0),
                text: finding.summary.clone(),
            });
        }
    }
    unexpected
}

fn judged(fault: &Fault, since: &Clocks, undone_at: Option<Timestamp>, way: Way, story: &Story) -> Vec<Sign> {
    let elapsed = Elapsed::new(since, story);
    let undone = undone_at.map(|at| elapsed.received(at));
    let sign = |sees: &Sees| Sign {
        collector: sees.collector,
        what: sees.what.to_string(),
        expected: match (way, sees.not_in_pod) {
            (Way::Pod, Some(why)) => Expected::NotInPod(why),
            _ => Expected::Yes,
        },
        seen: first(sees, &elapsed, undone, story),
    };
    fault.sees.iter().map(sign).collect()
}

impl fmt::Display for What {
    /// In words: `finding runtime_hung`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::Finding(name) => write!(f, "finding {name}"),
            What::OomKill(role) => write!(f, "OOM kill of {}", role_words(*role)),
            What::KernelMessage(pattern) => write!(f, "kernel message {pattern}"),
            What::LogLine(pattern) => write!(f, "log line {pattern}"),
            What::AtLeast(pointer, limit) => write!(f, "{pointer} at least {limit}"),
            What::AtMost(pointer, limit) => write!(f, "{pointer} at most {limit}"),
            What::ClockStepped => f.write_str("step of the wall clock"),
            What::Rebooted => f.write_str("another boot"),
        }
    }
}

fn role_words(role: Role) -> &'static str {
    match role {
        Role::Kubelet => "the kubelet",
        Role::Runtime => "the runtime",
        Role::Cni => "a network plugin",
        Role::KubeProxy => "kube-proxy",
        Role::Pod => "a pod's process",
        Role::Other | Role::Unknown => "another process",
    }
}

#[cfg(test)]
mod tests;
