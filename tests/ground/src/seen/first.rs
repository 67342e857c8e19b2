//! The first time that a sign was seen: the rules, one for each kind of sign.

use std::collections::BTreeSet;

use jiff::Timestamp;
use nodewhy_proto::{Event, EventBody, Subject};

use super::elapsed::Elapsed;
use super::{Dated, GRAIN_SECONDS, Seen};
use crate::evidence::{Asked, Story};
use crate::fault::{Sees, What};

/// The first time that this was seen.
pub(super) fn first(sees: &Sees, elapsed: &Elapsed<'_>, undone: Option<f64>, story: &Story) -> Option<Seen> {
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
        What::LogLine(pattern) => event(
            &|event| {
                event.source == sees.collector
                    && matches!(&event.body, EventBody::LogLine(line) if line.pattern == pattern)
            },
            Dated::ByAgent,
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

/// Whether this event is the beginning of the finding that is a sign.
pub(super) fn is_finding(sees: &Sees, event: &Event) -> bool {
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

fn told(body: &EventBody) -> String {
    match body {
        EventBody::FindingBegan { finding } => finding.summary.clone(),
        EventBody::OomKill(kill) => format!("{}[{}] was killed", kill.name, kill.pid),
        EventBody::KernelMessage(message) => message.line.clone(),
        EventBody::LogLine(line) => line.line.clone(),
        EventBody::ClockStepped { seconds } => format!("stepped by {seconds:.1} s"),
        _ => String::new(),
    }
}
