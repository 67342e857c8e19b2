//! Judges nodes: at every wake, and every few seconds, for ages grow without an event. A wake only wakes: what is
//! known is read anew.

mod case;
mod life;
mod signs;
mod substance;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use nodewhy_clock::Clock;
use nodewhy_diagnosis::{Case, CaseError, Cause};
use nodewhy_proto::{Incident, Verdict};

use crate::Timings;
use crate::known::{Known, Shared};
use crate::metrics::Metrics;
use crate::store::Ledger;
use life::{Open, Step};

/// The pure core, as functions: tests bring their own.
#[derive(Clone, Copy)]
pub(crate) struct Diagnosis {
    pub(crate) explain: fn(&Case) -> Verdict,
    pub(crate) causes: fn() -> Vec<&'static Cause>,
}

/// The case that is made now of a node without an open incident.
///
/// # Errors
/// The clock was stepped so far that the window ends before it begins.
pub(crate) fn case_now(
    known: &Known,
    node: &str,
    now: Timestamp,
    timings: &Timings,
) -> Result<Case, CaseError> {
    let signs = signs::signs(known, node, now, timings);
    case::case(known, node, signs.bad.first().map(|sign| sign.at), now, timings)
}

/// Judges every node, and keeps the incidents that are open.
pub(crate) struct Judge {
    pub(crate) shared: Arc<Shared>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) clock: Clock,
    pub(crate) timings: Timings,
    pub(crate) diagnosis: Diagnosis,
    open: Mutex<BTreeMap<String, Open>>,
}

impl Judge {
    /// `open` are the incidents that had not ended when the aggregator was last stopped.
    pub(crate) fn new(
        shared: Arc<Shared>,
        ledger: Arc<Ledger>,
        metrics: Arc<Metrics>,
        clock: Clock,
        timings: Timings,
        diagnosis: Diagnosis,
    ) -> Judge {
        let mut open: BTreeMap<String, Open> = BTreeMap::new();
        // Oldest first: of two for one node, which a store that was away at a start leaves, the newest goes on. The
        // other had ended by then at the latest.
        for incident in ledger.open().into_iter().rev() {
            let newer = incident.opened;
            if let Some(older) = open.insert(incident.node.clone(), Open::resumed(incident)) {
                ledger.put(Incident { ended: Some(newer), ..older.incident });
            }
        }
        metrics.open.set(i64::try_from(open.len()).unwrap_or(i64::MAX));
        Judge { shared, ledger, metrics, clock, timings, diagnosis, open: Mutex::new(open) }
    }

    /// Judges for ever.
    pub(crate) async fn run(&self) {
        let mut all_at = self.clock.since_boot();
        loop {
            tokio::select! {
                () = self.shared.woken() => self.clock.sleep(self.timings.debounce).await,
                () = self.clock.sleep_until(all_at) => {}
            }
            let mut nodes = self.shared.take_changed();
            if self.clock.since_boot() >= all_at {
                all_at = self.clock.since_boot() + self.timings.evaluate_every;
                nodes.extend(self.nodes());
            }
            for node in nodes {
                self.judge(&node);
                // Many nodes may be due at once; the API is to answer meanwhile.
                tokio::task::yield_now().await;
            }
        }
    }

    fn nodes(&self) -> BTreeSet<String> {
        let mut nodes = self.shared.lock().nodes();
        nodes.extend(self.open.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned());
        nodes
    }

    /// Judges one node.
    pub(crate) fn judge(&self, node: &str) {
        let now = self.clock.stamp();
        self.end_that_of_another_uid(node, now.wall);
        let mut all = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let open = all.get_mut(node);
        let began = open.as_ref().map(|open| open.incident.began);
        let (signs, case) = {
            let known = self.shared.lock();
            let signs = signs::signs(&known, node, now.wall, &self.timings);
            let began = began.into_iter().chain(signs.bad.first().map(|sign| sign.at)).min();
            let case =
                (!signs.bad.is_empty()).then(|| case::case(&known, node, began, now.wall, &self.timings));
            (signs, case)
        };
        let conclude = || match case? {
            Ok(case) => Some(self.explain(&case)),
            Err(error) => {
                tracing::error!(node, %error, "no case could be made");
                None
            }
        };
        let (step, incident) = match open {
            Some(open) => {
                let step = open.look(&signs, now, &self.timings, conclude);
                if step == Step::Nothing {
                    return;
                }
                (step, open.incident.clone())
            }
            None if signs.bad.is_empty() => return,
            None => {
                let Some(verdict) = conclude() else { return };
                let began = signs.bad.first().map_or(now.wall, |sign| sign.at.min(now.wall));
                let id = life::id(began, node, |id| self.ledger.has(id));
                let open = Open::begin(id, &signs, now, verdict);
                let incident = open.incident.clone();
                all.insert(node.to_owned(), open);
                (Step::Opened, incident)
            }
        };
        if step == Step::Ended {
            all.remove(node);
        }
        self.metrics.open.set(i64::try_from(all.len()).unwrap_or(i64::MAX));
        drop(all);
        self.tell(step, incident);
    }

    /// Names come back: under another UID it is another node, with incidents of its own.
    fn end_that_of_another_uid(&self, node: &str, now: Timestamp) {
        let Some(uid) = self.shared.lock().cluster.watched().and_then(|watched| watched.identity(node).0)
        else {
            return;
        };
        let mut all = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if all.get_mut(node).is_none_or(|open| *open.uid.get_or_insert_with(|| uid.clone()) == uid) {
            return;
        }
        let Some(Open { incident, .. }) = all.remove(node) else { return };
        drop(all);
        self.tell(Step::Ended, Incident { ended: Some(now.max(incident.opened)), ..incident });
    }

    fn tell(&self, step: Step, incident: Incident) {
        let cause = incident
            .verdict()
            .and_then(|verdict| verdict.roots.first())
            .map_or("none found yet", |root| root.cause.as_str());
        let changed_by = incident.revisions.last().map_or("", |revision| revision.changed_by.as_str());
        match step {
            Step::Nothing => return,
            Step::Opened => {
                self.metrics.opened.inc();
                self.metrics.revisions.inc();
                tracing::warn!(incident = incident.id, cause, changed_by, "an incident was opened");
            }
            Step::Revised => {
                self.metrics.revisions.inc();
                tracing::warn!(incident = incident.id, cause, changed_by, "an incident was revised");
            }
            Step::Ended => tracing::info!(incident = incident.id, cause, "an incident ended"),
        }
        self.ledger.put(incident);
    }

    /// Concludes now, incident or not; `None` for a node of which nobody ever spoke.
    pub(crate) fn why(&self, node: &str) -> Option<Result<Verdict, nodewhy_diagnosis::CaseError>> {
        let began = {
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.get(node).map(|open| open.incident.began)
        };
        let now = self.clock.now();
        let case = {
            let known = self.shared.lock();
            if !known.nodes().contains(node) {
                return None;
            }
            case::case(&known, node, began, now, &self.timings)
        };
        Some(case.map(|case| self.explain(&case)))
    }

    /// The id of the node's open incident.
    pub(crate) fn open_incident(&self, node: &str) -> Option<String> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(node).map(|open| open.incident.id.clone())
    }

    fn explain(&self, case: &Case) -> Verdict {
        let began = self.clock.since_boot();
        let verdict = (self.diagnosis.explain)(case);
        self.metrics.explain_seconds.observe(self.clock.since_boot().saturating_sub(began).as_secs_f64());
        verdict
    }
}
