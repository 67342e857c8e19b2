//! What an agent saw of a fault, and after how many seconds: how a run is judged. Pure.
//!
//! A sign counts when it is new. What held when the fault began is no sign of it, even if it ends and comes again. A
//! number needs an earlier reading in which it did not hold: a story that begins with it high shows no rise.

mod elapsed;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Deref;

use jiff::Timestamp;
use nodewhy_guest::channel::Clocks;
use nodewhy_proto::{Event, EventBody, Role, Subject};

use crate::evidence::{Asked, Story, Truth, Way};
use crate::fault::{Fault, Sees, What};
use elapsed::Elapsed;

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

/// Whether every agent has seen every sign that it has to. Of a fault without signs this is never so: it is left in
/// place for as long as it may.
pub fn all_seen<S: Deref<Target = Story>>(fault: &Fault, since: &Clocks, stories: &BTreeMap<Way, S>) -> bool {
    let has_all = |(way, story): (&Way, &S)| {
        let signs = signs(fault, since, *way, story);
        signs.iter().all(|sign| sign.seen.is_some() || sign.expected != Expected::Yes)
    };
    !fault.sees.is_empty() && !stories.is_empty() && stories.iter().all(has_all)
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

/// The first time that this was seen.
fn first(sees: &Sees, elapsed: &Elapsed<'_>, undone: Option<f64>, story: &Story) -> Option<Seen> {
    let event = |is: &dyn Fn(&Event) -> bool, dated: Dated| {
        let of_fault = |event: &&Asked<Event>| {
            let seconds = elapsed.event(&event.said);
            seconds >= -GRAIN_SECONDS && !elapsed.is_after(undone, seconds, event.said.boot_id.as_deref())
        };
        let first = story.events.iter().find(|event| of_fault(event) && is(&event.said))?;
        let dated =
            if elapsed.is_other_boot(first.said.boot_id.as_deref()) { Dated::ByOtherBoot } else { dated };
        Some(seen(elapsed, elapsed.event(&first.said), first.received, dated, told(&first.said.body)))
    };
    match sees.what {
        What::Finding(_) => {
            let held = held_before(elapsed, story);
            event(
                &|event| is_finding(sees, event) && !subject_of(event).is_some_and(|key| held.contains(&key)),
                Dated::ByAgent,
            )
        }
        What::OomKill(role) => event(
            &|event| {
                event.source == sees.collector
                    && matches!(&event.body, EventBody::OomKill(kill) if kill.role == role)
            },
            Dated::ByKernel,
        ),
        What::KernelMessage(pattern) => event(
            &|event| {
                event.source == sees.collector
                    && matches!(&event.body, EventBody::KernelMessage(message) if message.pattern == pattern)
            },
            Dated::ByKernel,
        ),
        What::ClockStepped => {
            event(&|event| matches!(event.body, EventBody::ClockStepped { .. }), Dated::ByAgent)
        }
        What::AtLeast(pointer, limit) => {
            number(sees.collector, pointer, &|value| value >= limit, elapsed, undone, story)
        }
        What::AtMost(pointer, limit) => {
            number(sees.collector, pointer, &|value| value <= limit, elapsed, undone, story)
        }
        What::Rebooted => rebooted(elapsed, story),
    }
}

fn seen(elapsed: &Elapsed<'_>, seconds: f64, received: Timestamp, dated: Dated, text: String) -> Seen {
    let served = elapsed.received(received);
    // Nothing is served before it is there, however little is known of the clocks.
    let served_seconds = if dated == Dated::ByOtherBoot { served } else { served.max(seconds) };
    Seen { latency_seconds: seconds.max(0.0), served_seconds: served_seconds.max(0.0), dated, text }
}

/// A number of a reading that came to hold.
fn number(
    collector: &str,
    pointer: &str,
    holds: &dyn Fn(f64) -> bool,
    elapsed: &Elapsed<'_>,
    undone: Option<f64>,
    story: &Story,
) -> Option<Seen> {
    let (mut held, mut otherwise) = (false, None);
    for state in &story.states {
        // A state repeats its newest reading while reads fail: the reading's age dates it. What is not there, or can't
        // be dated, says nothing.
        let known = state.said.collectors.get(collector).and_then(|collector| {
            let value = collector.reading.as_ref()?.pointer(pointer)?.as_f64()?;
            Some((value, elapsed.written(state) - collector.age_seconds?))
        });
        let Some((value, seconds)) = known else { continue };
        let is_new = seconds >= -GRAIN_SECONDS;
        if is_new && held {
            return None;
        }
        if !holds(value) {
            (held, otherwise) = (false, Some(value));
        } else if !is_new {
            held = true;
        } else {
            let before = otherwise?;
            let boot = elapsed.boot_at(state.received);
            let dated = if elapsed.is_other_boot(boot) { Dated::ByOtherBoot } else { Dated::ByAgent };
            let text = format!("{pointer} is {value}, and was {before}");
            return (!elapsed.is_after(undone, seconds, boot))
                .then(|| seen(elapsed, seconds, state.received, dated, text));
        }
    }
    None
}

/// Another boot than the one in which the story begins.
fn rebooted(elapsed: &Elapsed<'_>, story: &Story) -> Option<Seen> {
    let first = story.first_boot()?;
    let info = story.infos.iter().find(|info| {
        info.said.id.boot_id.as_deref().is_some_and(|boot| boot != first)
            && elapsed.info(&info.said) >= -GRAIN_SECONDS
    })?;
    let text = format!("another boot id, {:.1} s after the boot", info.said.uptime_seconds);
    Some(seen(elapsed, elapsed.info(&info.said), info.received, Dated::ByOtherBoot, text))
}

fn is_finding(sees: &Sees, event: &Event) -> bool {
    match (&sees.what, &event.body) {
        (What::Finding(name), EventBody::FindingBegan { finding }) => {
            finding.finding == *name && finding.collector == sees.collector
        }
        _ => false,
    }
}

/// Which finding an event is about, and on what.
fn subject_of(event: &Event) -> Option<(&str, &Subject)> {
    match &event.body {
        EventBody::FindingBegan { finding }
        | EventBody::FindingChanged { finding }
        | EventBody::FindingEnded { finding } => Some((&finding.finding, &finding.subject)),
        _ => None,
    }
}

/// The findings that held when the fault began.
fn held_before<'s>(elapsed: &Elapsed<'_>, story: &'s Story) -> BTreeSet<(&'s str, &'s Subject)> {
    let mut held = BTreeSet::new();
    for event in story.events.iter().filter(|event| elapsed.event(&event.said) < -GRAIN_SECONDS) {
        let Some(key) = subject_of(&event.said) else { continue };
        if matches!(event.said.body, EventBody::FindingEnded { .. }) {
            held.remove(&key);
        } else {
            held.insert(key);
        }
    }
    held
}

impl fmt::Display for What {
    /// In words: `finding runtime_hung`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::Finding(name) => write!(f, "finding {name}"),
            What::OomKill(role) => write!(f, "OOM kill of {}", role_words(*role)),
            What::KernelMessage(pattern) => write!(f, "kernel message {pattern}"),
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

fn told(body: &EventBody) -> String {
    match body {
        EventBody::FindingBegan { finding } => finding.summary.clone(),
        EventBody::OomKill(kill) => format!("{}[{}] was killed", kill.name, kill.pid),
        EventBody::KernelMessage(message) => message.line.clone(),
        EventBody::ClockStepped { seconds } => format!("stepped by {seconds:.1} s"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests;
