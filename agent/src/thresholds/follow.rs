//! Follows the kubelet's settings, on a thread of its own: its files may stand on a disk that hangs, and its command
//! line is locked while it thrashes. So one look is in flight by construction, and what was known stays.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use super::{Configured, Overrides, Thresholds, read};
use crate::host::Host;

/// How often they are looked at again.
const EVERY: Duration = Duration::from_secs(30);
/// The agent's start waits for the first look, no longer than this.
const FIRST_WITHIN: Duration = Duration::from_millis(500);

/// What this node's kubelet was configured with, as last read.
pub type SharedThresholds = Arc<RwLock<Thresholds>>;

/// Dropped, it ends the thread after the look that it is in.
#[derive(Debug)]
pub struct Follow {
    _stop: mpsc::Sender<()>,
}

/// Begins to follow. The first look is done at the return, unless it hangs: until it ends nobody knows the kubelet's
/// limits, and nothing is held against a guess.
///
/// # Errors
/// The kernel gives no thread.
pub fn follow(host: &Host, set: Overrides) -> std::io::Result<(SharedThresholds, Follow)> {
    let shared = Arc::new(RwLock::new(set.over(Thresholds::unknown())));
    let (stop, stopped) = mpsc::channel();
    let (looked, first) = mpsc::channel();
    let (host, its) = (host.clone(), shared.clone());
    std::thread::Builder::new().name("thresholds".to_owned()).spawn(move || {
        let mut last = None;
        loop {
            let now = latest(last.take(), read(&host));
            if let Some(places) = now.places.clone() {
                host.learn(places);
            }
            let thresholds = set.over(now.thresholds.clone());
            host.learn_thresholds(thresholds.clone());
            *its.write().unwrap_or_else(PoisonError::into_inner) = thresholds;
            last = Some(now);
            // Only the first one is waited for.
            looked.send(()).ok();
            if stopped.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    })?;
    if first.recv_timeout(FIRST_WITHIN).is_err() {
        tracing::warn!("the kubelet's settings are slow to read; its limits are not known yet");
    }
    Ok((shared, Follow { _stop: stop }))
}

/// What is known after another look: one that failed in part does not undo what a whole one found.
fn latest(last: Option<Configured>, mut now: Configured) -> Configured {
    let told = last.as_ref().map(|last| last.notes.clone()).unwrap_or_default();
    for note in now.notes.iter().filter(|note| !told.contains(note)) {
        tracing::info!("{note}");
    }
    if let Some(last) = last.filter(|last| last.is_whole && last.places.is_some() && !now.is_whole) {
        now = Configured { notes: now.notes, ..last };
    }
    now
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::KubeletPlaces;
    use crate::thresholds::{Limit, Origin};

    fn configured(bytes: f64, origin: Origin, is_whole: bool) -> Configured {
        let limit = Some(Limit { value: bytes, origin });
        let thresholds = Thresholds { memory_available_bytes: limit, ..Thresholds::default() };
        Configured { thresholds, places: Some(KubeletPlaces::default()), is_whole, notes: Vec::new() }
    }

    #[test]
    fn a_look_that_failed_does_not_undo_what_is_known() {
        let known = configured(5e8, Origin::KubeletConfig, true);
        let guess = configured(1e8, Origin::DocumentedDefault, false);
        let other = configured(7e8, Origin::KubeletConfig, true);
        assert_eq!(latest(None, guess.clone()), guess);
        let kept = latest(Some(known.clone()), guess.clone());
        assert_eq!(kept, known);
        assert_eq!(latest(Some(kept), guess.clone()), known, "however often it fails");
        assert_eq!(latest(Some(known), other.clone()), other);
        assert_eq!(latest(Some(guess), other.clone()), other);
    }

    #[test]
    fn the_first_look_is_done_at_the_start_and_settings_go_before_it() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), nodewhy_clock::Clock::system(), crate::host::Places::default());
        let set = Overrides::from([("cpu_some_percent", 90.0)]);
        let (shared, _follow) = follow(&host, set).unwrap();
        let now = shared.read().unwrap().clone();
        // Without a kubelet nobody evicts: the documented default is no limit here.
        assert_eq!(now.memory_available_bytes, None);
        assert_eq!(now.set.value("cpu_some_percent"), Some(90.0));
    }
}
