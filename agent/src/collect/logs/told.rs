//! Lines in, events out: pure, time is an argument.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nodewhy_clock::Stamp;
use nodewhy_proto::{EventBody, LogLine};
use serde::Serialize;

use super::format;
use super::pattern::{self, Found, Programs};
use super::places;
use super::secret;
use crate::collector::Happening;
use crate::storm::{Storms, Told};

/// Of a line so much is kept: a log can hold secrets, and the beginning says what matters.
const KEPT_BYTES: usize = 400;
/// So many events are shown.
const NEWEST: usize = 20;

/// A line as it was read.
#[derive(Clone, Debug)]
pub(super) struct Raw<'a> {
    /// The same line has the same one, however often it is read.
    pub(super) key: String,
    /// `kubelet.service`, `kube-system/etcd-a/etcd`.
    pub(super) unit: &'a str,
    /// The unit that PID 1 speaks of.
    pub(super) of_unit: Option<&'a str>,
    pub(super) programs: Programs,
    pub(super) text: &'a str,
    /// When it was taken, by the first who took it.
    pub(super) taken: Stamp,
    /// Who that was: `journal` (journald took it), `sender` (who wrote it says so), `runtime` (CRI's prefix), `read`.
    pub(super) by: &'static str,
}

/// An event, as the reading shows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Newest {
    /// When.
    pub at: Timestamp,
    /// What.
    #[serde(flatten)]
    pub line: LogLine,
}

/// What was told so far.
#[derive(Debug, Default)]
pub(super) struct Events {
    storms: Storms<(String, Stamp, LogLine)>,
    /// Lines that matter, by pattern.
    pub(super) patterns: BTreeMap<&'static str, u64>,
    pub(super) newest: VecDeque<Newest>,
    pub(super) happened: Vec<Happening>,
    /// The newest line's time since boot: storms are over by the lines' own time.
    newest_boot: Duration,
}

impl Events {
    /// Takes a line. `started`: what was written before it is told as old.
    pub(super) fn line(&mut self, raw: &Raw<'_>, started: Duration) {
        let Some(Found { pattern, mut fields, subject, parsed }) = pattern::find(raw.text, raw.programs)
        else {
            return;
        };
        if let Some(unit) = raw.of_unit {
            fields.insert("unit".to_owned(), unit.to_owned());
        }
        if raw.programs == Programs::SYSTEMD && !is_of_note(pattern, fields.get("unit")) {
            return;
        }
        *self.patterns.entry(pattern).or_default() += 1;
        let (at, by) = match parsed.written.and_then(|written| format::written_at(written, raw.taken.wall)) {
            Some(written) => (earlier(raw.taken, written), "line"),
            None => (raw.taken, raw.by),
        };
        fields.insert("time_by".to_owned(), by.to_owned());
        if at.boot < started {
            fields.insert("before_start".to_owned(), "true".to_owned());
        }
        fields.values_mut().for_each(|value| *value = secret::hidden(value));
        let line = LogLine {
            pattern: pattern.to_owned(),
            unit: raw.unit.to_owned(),
            fields,
            line: pattern::cut(&secret::hidden(raw.text), KEPT_BYTES),
            count: 1,
        };
        self.newest_boot = self.newest_boot.max(at.boot);
        let mut told = Vec::new();
        let subject = format!("{} {} {subject}", raw.unit, raw.of_unit.unwrap_or_default());
        self.storms.line(pattern, &subject, usec(at.boot), (raw.key.clone(), at, line), &mut told);
        self.tell(told);
    }

    /// Time has passed: storms that are over are told.
    pub(super) fn passed(&mut self, now: Duration) {
        let mut told = Vec::new();
        self.storms.close(usec(now.max(self.newest_boot)), &mut told);
        self.tell(told);
    }

    /// Lines that matter and that no event stands for.
    pub(super) fn dropped_total(&self) -> u64 {
        self.storms.dropped_total
    }

    fn tell(&mut self, told: Vec<Told<(String, Stamp, LogLine)>>) {
        for Told { what: (key, at, line), count } in told {
            let line = LogLine { count, ..line };
            self.newest.push_back(Newest { at: at.wall, line: line.clone() });
            if self.newest.len() > NEWEST {
                self.newest.pop_front();
            }
            // A line that begins a storm and then stands for the rest of it is two tellings.
            let key = if count > 1 { format!("{key}+{count}") } else { key };
            self.happened.push(Happening { key: Some(key), at: Some(at), body: EventBody::LogLine(line) });
        }
    }
}

/// PID 1 starts and stops much that is nobody's trouble: of those only the units that are read are told; what failed is
/// told of every service, and who was killed for want of memory of every unit.
fn is_of_note(pattern: &str, unit: Option<&String>) -> bool {
    match pattern {
        "unit_oom_killed" => true,
        "unit_started" | "unit_stopping" | "unit_stopped" => {
            unit.is_some_and(|unit| places::programs_of_unit(unit).is_some())
        }
        _ => unit.is_some_and(|unit| unit.ends_with(".service")),
    }
}

fn usec(boot: Duration) -> u64 {
    u64::try_from(boot.as_micros()).unwrap_or(u64::MAX)
}

/// The same instant's stamp, told by its wall clock.
pub(super) fn earlier(taken: Stamp, wall: Timestamp) -> Stamp {
    let ago = taken.wall.duration_since(wall).max(SignedDuration::ZERO);
    Stamp { wall, boot: taken.boot.saturating_sub(ago.unsigned_abs()) }
}
