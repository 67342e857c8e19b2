//! What is known now, for whoever asks: each collector's outcome and newest reading, findings, events.
//!
//! Collectors' threads write it, the API reads it. No lock is held during I/O, so a hung source blocks nobody.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nodewhy_clock::{Clock, Stamp};
use nodewhy_proto::{
    CollectorState, EventBody, Evidence, Finding, Outcome, Severity, State, Subject, SubjectKind,
};

use crate::collector::{Abnormal, Collect, Reading, Step};
use crate::events::EventLog;
use crate::findings::Findings;
use crate::ticks::Ticks;

/// The source of findings and events that are the agent's own.
pub const AGENT: &str = "agent";
/// A wall clock that moves by more than this against the time since boot was stepped, not slewed.
const STEP: Duration = Duration::from_millis(500);

/// What is known now.
pub struct Board {
    node: String,
    clock: Clock,
    slots: Vec<Slot>,
    findings: Mutex<Findings>,
    events: EventLog,
    watched: Mutex<Stamp>,
}

struct Slot {
    collector: &'static dyn Collect,
    enabled: bool,
    now: Mutex<Progress>,
}

#[derive(Clone)]
struct Progress {
    outcome: Outcome,
    /// The outcome that was told last.
    told: Outcome,
    reading: Option<Arc<dyn Reading>>,
    /// The read that is in flight, since when.
    began: Option<Stamp>,
    took: Option<Duration>,
    tries: u64,
    failures: u64,
    ticks: Ticks,
}

/// One collector's counters, for the agent's own metrics.
#[derive(Clone, Debug, PartialEq)]
pub struct Account {
    /// Which collector.
    pub name: &'static str,
    /// Whether it is switched on.
    pub enabled: bool,
    /// How the newest try went, or that one hangs.
    pub outcome: Outcome,
    /// Tries that ended.
    pub tries: u64,
    /// Tries that ended in `Failed`.
    pub failures: u64,
    /// Ticks that had no try of their own: one was in flight, or the collector's thread was not run.
    pub missed: u64,
    /// How punctual it is; `None` while it is switched off.
    pub ticks: Option<nodewhy_proto::Ticks>,
    /// How long the newest finished try took.
    pub took: Option<Duration>,
    /// Age of the newest successful reading.
    pub age: Option<Duration>,
    /// For how long the read that is in flight has hung, by the clock that no step moves.
    pub stuck: Option<Duration>,
}

impl Board {
    /// A board for these collectors; `enabled` says which are switched on.
    pub fn new(
        node: String,
        boot_id: Option<String>,
        clock: Clock,
        collectors: &[&'static dyn Collect],
        enabled: impl Fn(&str) -> bool,
    ) -> Board {
        let started = clock.stamp();
        let slots =
            collectors.iter().map(|collector| Slot::new(*collector, enabled(collector.name()))).collect();
        let events = EventLog::new(boot_id, started);
        Board { node, clock, slots, findings: Mutex::default(), events, watched: Mutex::new(started) }
    }

    /// The clock that everything here is dated by.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The event stream.
    pub fn events(&self) -> &EventLog {
        &self.events
    }

    /// The collectors that are switched on.
    pub fn enabled(&self) -> impl Iterator<Item = &'static dyn Collect> {
        self.slots.iter().filter(|slot| slot.enabled).map(|slot| slot.collector)
    }

    /// Every collector, and whether it is switched on.
    pub fn collectors(&self) -> impl Iterator<Item = (&'static dyn Collect, bool)> {
        self.slots.iter().map(|slot| (slot.collector, slot.enabled))
    }

    /// This collector's outcome now, and its newest successful reading.
    pub fn newest(&self, collector: &str) -> Option<(Outcome, Option<Arc<dyn Reading>>)> {
        let slot = self.slot(collector)?;
        let progress = lock(&slot.now).clone();
        Some((slot.outcome(&progress, self.clock.stamp()), progress.reading))
    }

    /// Findings that hold, then those that ended lately.
    pub fn findings(&self) -> Vec<Finding> {
        lock(&self.findings).list(self.clock.since_boot())
    }

    /// States that are seen and have not lasted long enough to be findings.
    pub fn held(&self) -> Vec<Finding> {
        lock(&self.findings).held().cloned().collect()
    }

    /// A read begins. It is in flight until [`Board::finish`].
    pub fn begin(&self, collector: &str) {
        if let Some(slot) = self.slot(collector) {
            lock(&slot.now).began = Some(self.clock.stamp());
        }
    }

    /// From now on this collector is to read at `first`, and every `every` after it.
    pub fn plan(&self, collector: &str, first: Duration, every: Duration) {
        if let Some(slot) = self.slot(collector) {
            lock(&slot.now).ticks.plan(first, every);
        }
    }

    /// A read ended so; when, on the clock of the time since boot: what is due after that is still to be planned.
    pub fn finish(&self, collector: &'static str, step: Step) -> Duration {
        let now = self.clock.stamp();
        let Some(slot) = self.slot(collector) else { return now.boot };
        {
            let mut progress = lock(&slot.now);
            let began = progress.began.take();
            progress.took = began.map(|began| now.boot.saturating_sub(began.boot));
            progress.tries += 1;
            progress.failures += u64::from(matches!(step.outcome, Outcome::Failed { .. }));
            if let Some(began) = began {
                progress.ticks.ended(began.boot, now);
            }
            progress.outcome = step.outcome;
            if step.reading.is_some() {
                progress.reading = step.reading;
            }
            self.tell_outcome(collector, &mut progress, now);
        }
        if let Some(noticed) = step.noticed {
            for happening in noticed.happenings {
                self.events.push(collector, now, happening);
            }
            self.observe(collector, noticed.states, now);
        }
        now.boot
    }

    /// To be called every half second or so: sees reads that hang, and steps of the wall clock.
    pub fn watch(&self) {
        let now = self.clock.stamp();
        let mut stuck = Vec::new();
        for slot in self.slots.iter().filter(|slot| slot.enabled) {
            let name = slot.collector.name();
            let mut progress = lock(&slot.now);
            if let Some(since) = slot.hangs_since(&progress, now) {
                let outcome = Outcome::Stuck { since: since.wall };
                stuck.push(stuck_state(name, since, now));
                progress.outcome = outcome;
                self.tell_outcome(name, &mut progress, now);
            }
        }
        self.observe(AGENT, stuck, now);
        self.watch_clock(now);
    }

    fn watch_clock(&self, now: Stamp) {
        let before = std::mem::replace(&mut *lock(&self.watched), now);
        let wall = now.wall.duration_since(before.wall).as_secs_f64();
        let boot = now.boot.saturating_sub(before.boot).as_secs_f64();
        if (wall - boot).abs() > STEP.as_secs_f64() {
            self.events.tell(AGENT, now, EventBody::ClockStepped { seconds: wall - boot });
        }
    }

    /// Whether every collector that is switched on has ended its first try, or hangs in it.
    pub fn is_ready(&self) -> bool {
        let now = self.clock.stamp();
        self.slots.iter().filter(|slot| slot.enabled).all(|slot| {
            let progress = lock(&slot.now);
            progress.tries > 0 || slot.hangs_since(&progress, now).is_some()
        })
    }

    /// `/api/v1/state`, with the readings or without.
    pub fn state(&self, with_readings: bool) -> State {
        let now = self.clock.stamp();
        let collectors = self.slots.iter().map(|slot| {
            let progress = lock(&slot.now).clone();
            (slot.collector.name().to_owned(), slot.state(&progress, now, with_readings))
        });
        State { node: self.node.clone(), now: now.wall, collectors: collectors.collect() }
    }

    /// The newest successful reading of this collector.
    pub fn reading(&self, collector: &str) -> Option<Arc<dyn Reading>> {
        lock(&self.slot(collector)?.now).reading.clone()
    }

    /// What this collector says in one line: of its newest reading, or why there is none. `None`: no such collector.
    pub fn summary(&self, collector: &str) -> Option<String> {
        let slot = self.slot(collector)?;
        let progress = lock(&slot.now).clone();
        let state = slot.state(&progress, self.clock.stamp(), false);
        state.summary.or_else(|| state.outcome.why())
    }

    /// Each collector's counters.
    pub fn accounts(&self) -> Vec<Account> {
        let now = self.clock.stamp();
        self.slots
            .iter()
            .map(|slot| {
                let progress = lock(&slot.now).clone();
                Account {
                    name: slot.collector.name(),
                    enabled: slot.enabled,
                    outcome: slot.outcome(&progress, now),
                    tries: progress.tries,
                    failures: progress.failures,
                    missed: progress.ticks.missed(),
                    ticks: slot.enabled.then(|| progress.ticks.told(now)),
                    took: progress.took,
                    stuck: slot.hangs_since(&progress, now).map(|since| now.boot.saturating_sub(since.boot)),
                    age: progress.reading.map(|reading| now.boot.saturating_sub(reading.taken().boot)),
                }
            })
            .collect()
    }

    fn observe(&self, collector: &'static str, states: Vec<Abnormal>, now: Stamp) {
        let changes = lock(&self.findings).observe(collector, states, now);
        for change in changes {
            self.events.tell(collector, now, change);
        }
    }

    fn tell_outcome(&self, collector: &str, progress: &mut Progress, now: Stamp) {
        // An error whose text alone changes is no change: it would be told at every tick.
        if progress.outcome.word() != progress.told.word() {
            progress.told = progress.outcome.clone();
            let result = progress.outcome.clone();
            self.events.tell(
                collector,
                now,
                EventBody::OutcomeChanged { collector: collector.to_owned(), result },
            );
        }
    }

    fn slot(&self, collector: &str) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.collector.name() == collector)
    }
}

impl Slot {
    fn new(collector: &'static dyn Collect, enabled: bool) -> Slot {
        let outcome = if enabled {
            Outcome::Unknown
        } else {
            Outcome::Absent { why: "switched off in the agent's settings".to_owned() }
        };
        let now = Progress {
            told: outcome.clone(),
            outcome,
            reading: None,
            began: None,
            took: None,
            tries: 0,
            failures: 0,
            ticks: Ticks::default(),
        };
        Slot { collector, enabled, now: Mutex::new(now) }
    }

    fn hangs_since(&self, progress: &Progress, now: Stamp) -> Option<Stamp> {
        progress.began.filter(|began| now.boot.saturating_sub(began.boot) > self.collector.deadline())
    }

    fn outcome(&self, progress: &Progress, now: Stamp) -> Outcome {
        match self.hangs_since(progress, now) {
            Some(since) => Outcome::Stuck { since: since.wall },
            None => progress.outcome.clone(),
        }
    }

    fn state(&self, progress: &Progress, now: Stamp, with_reading: bool) -> CollectorState {
        let mut outcome = self.outcome(progress, now);
        let mut reading = None;
        if let Some(taken) = progress.reading.as_ref().filter(|_| with_reading) {
            match taken.json() {
                Ok(json) => reading = Some(json),
                Err(error) => {
                    outcome =
                        Outcome::Failed { error: format!("the reading cannot be written as JSON: {error}") };
                }
            }
        }
        let taken = progress.reading.as_ref().map(|reading| reading.taken());
        CollectorState {
            read_at: taken.map(|taken| taken.wall),
            age_seconds: taken.map(|taken| now.boot.saturating_sub(taken.boot).as_secs_f64()),
            took_seconds: progress.took.map(|took| took.as_secs_f64()),
            every_seconds: self.collector.every().as_secs_f64(),
            ticks: self.enabled.then(|| progress.ticks.told(now)),
            summary: progress.reading.as_ref().filter(|_| outcome.is_read()).map(|reading| reading.summary()),
            outcome,
            reading,
        }
    }
}

fn stuck_state(collector: &'static str, since: Stamp, now: Stamp) -> Abnormal {
    let seconds = now.boot.saturating_sub(since.boot).as_secs_f64();
    Abnormal {
        finding: "source_stuck",
        subject: Subject::new(SubjectKind::Source, collector),
        severity: Severity::Warning,
        summary: format!("reading {collector} has hung for {seconds:.0} s"),
        evidence: vec![
            Evidence::new(format!("a read that began at {} has not ended", since.wall), collector)
                .with_value(seconds, "seconds")
                .with_time(since.wall),
        ],
        since: Some(since.wall),
        hold: Duration::ZERO,
        clear_after: Duration::ZERO,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A collector that panicked is reported as failed; what it left behind is whole, as no change here is in halves.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
