//! What happened, in the order in which it was told: a bounded ring with cursors that can be resumed.
//!
//! A cursor is opaque to readers. It names this agent's run and a sequence number in it, so that a cursor of an
//! earlier run is recognised: its reader gets a gap whose size nobody can know, then all that is kept. Kernel records
//! are read again after a restart, and keep their ids: a reader that drops repeated ids misses nothing of them.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nodewhy_clock::Stamp;
use nodewhy_proto::{Event, EventBody, Gap};
use tokio::sync::watch;

use crate::collector::Happening;

/// As many events are kept in memory.
const KEPT: usize = 4096;

/// The ring.
#[derive(Debug)]
pub struct EventLog {
    boot_id: Option<String>,
    run: String,
    ring: Mutex<Ring>,
    newest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Ring {
    /// The sequence number of the newest event; the first is 1.
    newest: u64,
    events: VecDeque<Arc<Event>>,
    ids: BTreeSet<String>,
}

/// A cursor that this agent can make nothing of.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no cursor of this API: pass an event's id as it was received, or none for all that is kept"
)]
pub struct BadCursor(String);

/// What follows a cursor.
#[derive(Debug, PartialEq)]
pub struct After {
    /// Events are missing before `events`.
    pub gap: Option<Gap>,
    /// In order.
    pub events: Vec<Arc<Event>>,
    /// Where to go on.
    pub next: u64,
}

impl EventLog {
    /// An empty log of this boot, by an agent that was started at `started`.
    pub fn new(boot_id: Option<String>, started: Stamp) -> EventLog {
        // Two boots may start their agents at the same millisecond.
        let boot = boot_id.iter().flat_map(|id| id.chars()).filter(char::is_ascii_hexdigit).take(8);
        let run: String = boot.chain(format!("{:x}", started.boot.as_millis()).chars()).collect();
        EventLog { boot_id, run, ring: Mutex::default(), newest: watch::Sender::new(0) }
    }

    /// Adds what `source` tells, unless an event of the same key is kept already.
    pub fn push(&self, source: &str, now: Stamp, happening: Happening) {
        let at = happening.at.unwrap_or(now);
        let mut ring = self.ring();
        let sequence = ring.newest + 1;
        let boot = self.boot_id.as_deref().unwrap_or("boot-unknown");
        let id = match happening.key {
            Some(key) => format!("{boot}/{key}"),
            None => format!("{boot}/{}/{sequence}", self.run),
        };
        if !ring.ids.insert(id.clone()) {
            return;
        }
        ring.events.push_back(Arc::new(Event {
            id,
            cursor: self.cursor(sequence),
            at: at.wall,
            boot_seconds: at.boot.as_secs_f64(),
            boot_id: self.boot_id.clone(),
            source: source.to_owned(),
            body: happening.body,
        }));
        ring.newest = sequence;
        if ring.events.len() > KEPT
            && let Some(oldest) = ring.events.pop_front()
        {
            ring.ids.remove(&oldest.id);
        }
        drop(ring);
        self.newest.send_replace(sequence);
    }

    /// Adds an event that is told once.
    pub fn tell(&self, source: &str, now: Stamp, body: EventBody) {
        self.push(source, now, Happening { key: None, at: None, body });
    }

    /// Follows the newest sequence number.
    pub fn follow(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// The sequence number that a cursor names, for [`EventLog::after`]: `None` is the beginning of what is kept.
    ///
    /// # Errors
    /// It is no cursor.
    pub fn after_cursor(&self, cursor: Option<&str>) -> Result<After, BadCursor> {
        let Some(cursor) = cursor else {
            let mut all = self.after(0);
            all.gap = None;
            return Ok(all);
        };
        let bad = || BadCursor(cursor.chars().take(64).collect());
        let (run, sequence) = cursor.split_once('-').ok_or_else(bad)?;
        let sequence: u64 = sequence.parse().map_err(|_| bad())?;
        if run.is_empty() || !run.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let foreign = run != self.run || sequence > self.ring().newest;
        let mut after = self.after(if foreign { 0 } else { sequence });
        if foreign {
            after.gap = Some(self.gap(cursor.to_owned(), &after.events, None));
        } else if let Some(gap) = &mut after.gap {
            gap.from = cursor.to_owned();
        }
        Ok(after)
    }

    /// All that is kept after this sequence number.
    pub fn after(&self, sequence: u64) -> After {
        let ring = self.ring();
        let kept = ring.events.len() as u64;
        let first = ring.newest + 1 - kept;
        let skip = usize::try_from((sequence + 1).saturating_sub(first)).unwrap_or(usize::MAX);
        let events: Vec<Arc<Event>> = ring.events.iter().skip(skip).cloned().collect();
        let lost = first.saturating_sub(sequence + 1);
        let gap = (lost > 0).then(|| self.gap(self.cursor(sequence), &events, Some(lost)));
        After { gap, events, next: ring.newest }
    }

    fn gap(&self, from: String, events: &[Arc<Event>], count: Option<u64>) -> Gap {
        let to = events.first().map_or_else(|| self.cursor(0), |event| event.cursor.clone());
        Gap { from, to, count }
    }

    fn cursor(&self, sequence: u64) -> String {
        format!("{}-{sequence}", self.run)
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // Nothing that holds this lock can stop half-way through a change that matters.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;

    use super::*;

    fn stamp(milliseconds: u64) -> Stamp {
        Stamp { wall: Timestamp::UNIX_EPOCH, boot: Duration::from_millis(milliseconds) }
    }

    fn log_of(events: u64) -> EventLog {
        let log = EventLog::new(Some("b".to_owned()), stamp(0xabc));
        for step in 0..events {
            log.tell("agent", stamp(step), EventBody::ClockStepped { seconds: 1.0 });
        }
        log
    }

    #[test]
    fn a_cursor_goes_on_where_it_stopped() {
        let log = log_of(3);
        let all = log.after_cursor(None).unwrap();
        assert_eq!((all.gap, all.events.len(), all.next), (None, 3, 3));
        let rest = log.after_cursor(Some(&all.events[1].cursor)).unwrap();
        assert_eq!((rest.gap, rest.events), (None, vec![all.events[2].clone()]));
        assert!(log.after_cursor(Some("babc-3")).unwrap().events.is_empty());
    }

    #[test]
    fn what_is_no_longer_kept_is_a_gap_of_known_size() {
        let log = log_of(KEPT as u64 + 10);
        let after = log.after_cursor(Some("babc-4")).unwrap();
        let gap = after.gap.unwrap();
        assert_eq!((gap.from.as_str(), gap.to.as_str(), gap.count), ("babc-4", "babc-11", Some(6)));
        assert_eq!(after.events.len(), KEPT);
        // Without a cursor nobody asked for what is gone.
        assert_eq!(log.after_cursor(None).unwrap().gap, None);
    }

    #[test]
    fn a_cursor_of_an_earlier_run_is_a_gap_of_unknown_size() {
        let log = log_of(2);
        for cursor in ["fff-1", "babc-3"] {
            let after = log.after_cursor(Some(cursor)).unwrap();
            assert_eq!(
                after.gap.unwrap(),
                Gap { from: cursor.to_owned(), to: "babc-1".to_owned(), count: None }
            );
            assert_eq!(after.events.len(), 2);
        }
        for garbage in ["", "x", "-", "-1", "babc-", "babc--1", "zz-1", "babc-99999999999999999999"] {
            assert_eq!(log.after_cursor(Some(garbage)).unwrap_err(), BadCursor(garbage.to_owned()));
        }
    }

    #[test]
    fn a_cursor_of_another_boot_is_foreign_though_the_agent_began_at_the_same_instant() {
        let before = EventLog::new(Some("1f00ba47-9c7e-4b5b".to_owned()), stamp(0xabc));
        before.tell("agent", stamp(1), EventBody::ClockStepped { seconds: 1.0 });
        let cursor = before.after(0).events[0].cursor.clone();
        assert_eq!(before.after_cursor(Some(&cursor)).unwrap().gap, None);
        let now = EventLog::new(Some("2e00ba47-9c7e-4b5b".to_owned()), stamp(0xabc));
        now.tell("agent", stamp(1), EventBody::ClockStepped { seconds: 1.0 });
        let after = now.after_cursor(Some(&cursor)).unwrap();
        assert!(after.gap.is_some());
        assert_eq!(after.events.len(), 1);
    }

    #[test]
    fn the_same_happening_is_told_once() {
        let log = log_of(0);
        let happening = Happening {
            key: Some("kmsg/7".to_owned()),
            at: None,
            body: EventBody::ClockStepped { seconds: 1.0 },
        };
        log.push("oom", stamp(1), happening.clone());
        log.push("oom", stamp(2), happening);
        let all = log.after_cursor(None).unwrap();
        assert_eq!((all.events.len(), all.events[0].id.as_str(), all.next), (1, "b/kmsg/7", 1));
    }
}
