//! The shape of a collector, and its erasure, so that collectors of every reading stand in one list.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use nodewhy_clock::Stamp;
use nodewhy_proto::{EventBody, Evidence, Outcome, Severity, Subject};
use serde::Serialize;

use crate::host::{Host, ReadError};
use crate::metrics::{Family, Sink};
use crate::thresholds::{Heuristic, Thresholds};

/// One thing that is read. `S` is what is kept between reads (descriptors, cursors, clients), `R` a reading.
pub struct Collector<S, R: 'static> {
    /// Its name in settings, in the API, in metrics.
    pub name: &'static str,
    /// Time between two reads. While it is absent it is looked for more seldom: see [`crate::schedule`].
    pub every: Duration,
    /// A read that takes longer is `Stuck` until it ends. It stays in flight; no second one is begun.
    pub deadline: Duration,
    /// Whether what is kept outlives a failed read, since it remembers what was seen on this node. If not, a failure
    /// closes it, and the next read opens it anew.
    pub remembers: bool,
    /// Opens what is kept.
    pub open: fn(&Host) -> Result<S, ReadError>,
    /// The only I/O. It runs on the collector's own thread, so it may block; it delays nobody else.
    pub read: fn(&mut S, &Host) -> Result<R, ReadError>,
    /// A descriptor that becomes readable when something happened: the next read follows at once.
    pub wake: fn(&S) -> Option<BorrowedFd<'_>>,
    /// The reading in one short line for people: `containerd 1.6.20, answers in 3 ms`. Pure.
    pub summary: fn(&R) -> String,
    /// Every metric family that `metrics` may write, for docs/metrics.md.
    pub families: &'static [&'static Family],
    /// The reading as metrics. Pure.
    pub metrics: fn(&R, &mut Sink),
    /// The limits of ours that `detect` holds the reading against.
    pub limits: &'static [&'static Heuristic],
    /// What is abnormal now, and what happened since the reading before. Pure.
    pub detect: fn(Pair<'_, R>, &Thresholds, &mut Noticed),
    /// What the newest reading holds beyond what `/api/v1/state` shows of it: paths of their own.
    pub pages: &'static [Page<R>],
    /// What is read only when it is asked for: paths of their own.
    pub asks: &'static [Ask],
}

/// A part of the reading that is too long for `/api/v1/state` (there it is `#[serde(skip)]`): a path of its own.
pub struct Page<R> {
    /// `/api/v1/pods`.
    pub path: &'static str,
    /// What it shows, in a sentence, for the API's description.
    pub about: &'static str,
    /// It. Pure.
    pub json: fn(&R) -> Result<serde_json::Value, serde_json::Error>,
}

/// What costs too much to be read at every tick: it is read when it is asked for, on a thread of its own, one at a
/// time, with a deadline.
pub struct Ask {
    /// `/api/v1/conntrack/top`.
    pub path: &'static str,
    /// What it shows, in a sentence, for the API's description.
    pub about: &'static str,
    /// The parameters that it knows, each with what it means; another one is refused.
    pub parameters: &'static [(&'static str, &'static str)],
    /// After this the asker is told that it hangs; it goes on, and no second one is begun.
    pub deadline: Duration,
    /// Reads it. `Absent` is an answer too.
    pub answer: fn(&Host, &BTreeMap<String, String>) -> Result<serde_json::Value, AskError>,
}

/// Why what was asked for cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// A parameter makes no sense: which, and what would.
    #[error("{0}")]
    Parameter(String),
    /// The node could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// For a collector that nothing wakes.
pub fn never_woken<S>(_: &S) -> Option<BorrowedFd<'_>> {
    None
}

/// A reading, with the one before it: rates and changes come from the two.
pub struct Pair<'a, R> {
    /// The reading before, with its time; `None` at first and after a failure or an absence.
    pub before: Option<(&'a R, Stamp)>,
    /// The reading.
    pub now: &'a R,
    /// When it was taken.
    pub at: Stamp,
}

/// What `detect` noticed.
#[derive(Debug, Default)]
pub struct Noticed {
    /// What is abnormal now. Told anew at every reading for as long as it holds.
    pub states: Vec<Abnormal>,
    /// What happened since the reading before.
    pub happenings: Vec<Happening>,
}

/// An abnormal state as one reading shows it; [`crate::findings`] holds it, dates it, clears it.
#[derive(Clone, Debug, PartialEq)]
pub struct Abnormal {
    /// The finding's name.
    pub finding: &'static str,
    /// What it is about. With the name it is the state's identity.
    pub subject: Subject,
    /// How bad.
    pub severity: Severity,
    /// One line for people.
    pub summary: String,
    /// Why it may be believed.
    pub evidence: Vec<Evidence>,
    /// When it began by the fault's own clock, where that is known; else when it was first seen.
    pub since: Option<Timestamp>,
    /// It must last this long before it is a finding. Zero where one look is proof.
    pub hold: Duration,
    /// It must be gone this long, in readings that succeeded, before the finding ends.
    pub clear_after: Duration,
}

/// Something that happened at an instant.
#[derive(Clone, Debug, PartialEq)]
pub struct Happening {
    /// The same happening has the same key however often it is read: `kmsg/48213`. `None`: this telling is unique.
    pub key: Option<String>,
    /// When; `None`: now.
    pub at: Option<Stamp>,
    /// What.
    pub body: EventBody,
}

/// A published reading, whatever its type.
pub trait Reading: Send + Sync {
    /// As JSON, in the collector's own shape.
    fn json(&self) -> Result<serde_json::Value, serde_json::Error>;
    /// In one short line for people.
    fn summary(&self) -> String;
    /// As metrics.
    fn metrics(&self, sink: &mut Sink);
    /// The page of this path; `None`: it has none.
    fn page(&self, path: &str) -> Option<Result<serde_json::Value, serde_json::Error>>;
    /// When it was taken.
    fn taken(&self) -> Stamp;
}

struct Taken<S: 'static, R: 'static> {
    collector: &'static Collector<S, R>,
    reading: R,
    at: Stamp,
}

impl<S, R: Serialize + Send + Sync> Reading for Taken<S, R> {
    fn json(&self) -> Result<serde_json::Value, serde_json::Error> {
        serde_json::to_value(&self.reading)
    }

    fn summary(&self) -> String {
        (self.collector.summary)(&self.reading)
    }

    fn metrics(&self, sink: &mut Sink) {
        sink.written_by(self.collector.name, self.collector.families);
        (self.collector.metrics)(&self.reading, sink);
    }

    fn page(&self, path: &str) -> Option<Result<serde_json::Value, serde_json::Error>> {
        let page = self.collector.pages.iter().find(|page| page.path == path)?;
        Some((page.json)(&self.reading))
    }

    fn taken(&self) -> Stamp {
        self.at
    }
}

/// One read's result.
pub struct Step {
    /// How it went.
    pub outcome: Outcome,
    /// The reading, when it went well.
    pub reading: Option<Arc<dyn Reading>>,
    /// What `detect` noticed in it; `None` when there is no reading: absence is not recovery.
    pub noticed: Option<Noticed>,
}

/// A collector of any reading, as the list holds it.
pub trait Collect: Sync {
    /// Its name.
    fn name(&self) -> &'static str;
    /// Time between two reads.
    fn every(&self) -> Duration;
    /// After this, a read is `Stuck`.
    fn deadline(&self) -> Duration;
    /// Its metric families.
    fn families(&self) -> &'static [&'static Family];
    /// The limits of ours that can be set.
    fn limits(&self) -> &'static [&'static Heuristic];
    /// Its reading's pages: path and what it shows.
    fn pages(&self) -> Vec<(&'static str, &'static str)>;
    /// What it reads when it is asked.
    fn asks(&self) -> &'static [Ask];
    /// What keeps its state between reads; nothing is opened yet.
    fn start(&'static self) -> Box<dyn Running>;
}

/// A collector at work, on its own thread.
pub trait Running: Send {
    /// Opens if need be, reads, detects.
    fn step(&mut self, host: &Host, thresholds: &Thresholds) -> Step;
    /// The descriptor that wakes it, while its source is open.
    fn wake(&self) -> Option<BorrowedFd<'_>>;
    /// Forgets what is kept: the next step opens anew.
    fn close(&mut self);
}

struct Runner<S: 'static, R: 'static> {
    collector: &'static Collector<S, R>,
    source: Option<S>,
    before: Option<Arc<Taken<S, R>>>,
}

impl<S, R> Collect for Collector<S, R>
where
    S: Send + 'static,
    R: Serialize + Send + Sync + 'static,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn every(&self) -> Duration {
        self.every
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }

    fn families(&self) -> &'static [&'static Family] {
        self.families
    }

    fn limits(&self) -> &'static [&'static Heuristic] {
        self.limits
    }

    fn pages(&self) -> Vec<(&'static str, &'static str)> {
        self.pages.iter().map(|page| (page.path, page.about)).collect()
    }

    fn asks(&self) -> &'static [Ask] {
        self.asks
    }

    fn start(&'static self) -> Box<dyn Running> {
        Box::new(Runner { collector: self, source: None, before: None })
    }
}

impl<S, R> Running for Runner<S, R>
where
    S: Send + 'static,
    R: Serialize + Send + Sync + 'static,
{
    fn step(&mut self, host: &Host, thresholds: &Thresholds) -> Step {
        match self.read(host) {
            Ok(reading) => {
                let at = host.clock().stamp();
                let mut noticed = Noticed::default();
                let before = self.before.as_deref().map(|taken| (&taken.reading, taken.at));
                (self.collector.detect)(Pair { before, now: &reading, at }, thresholds, &mut noticed);
                let taken = Arc::new(Taken { collector: self.collector, reading, at });
                self.before = Some(taken.clone());
                Step { outcome: Outcome::Read, reading: Some(taken), noticed: Some(noticed) }
            }
            Err(error) => {
                if self.collector.remembers {
                    self.before = None;
                } else {
                    self.close();
                }
                Step { outcome: host.unless_unmounted(error).outcome(), reading: None, noticed: None }
            }
        }
    }

    fn wake(&self) -> Option<BorrowedFd<'_>> {
        self.source.as_ref().and_then(self.collector.wake)
    }

    fn close(&mut self) {
        self.source = None;
        self.before = None;
    }
}

impl<S, R> Runner<S, R> {
    fn read(&mut self, host: &Host) -> Result<R, ReadError> {
        let source = match &mut self.source {
            Some(source) => source,
            none => none.insert((self.collector.open)(host)?),
        };
        (self.collector.read)(source, host)
    }
}
