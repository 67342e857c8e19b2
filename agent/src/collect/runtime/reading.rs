//! What is told of the runtime: the board's stamps made into ages, its answers into what people look for.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use nodewhy_clock::Stamp;
use serde::{Deserialize, Serialize};

use super::asking::{Counted, Inspected, Link, One, Verb};
use crate::cri::{StatusResponse, VersionResponse};

/// How far one verb is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CallState {
    /// The newest call was answered, and none is in flight.
    Answered,
    /// A call is in flight.
    Pending,
    /// The newest call was not answered, or answered with an error.
    Failed,
    /// Never asked, or not ended yet.
    Never,
}

/// One verb of the CRI.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Call {
    /// How far it is.
    pub state: CallState,
    /// How long the newest good answer took.
    pub took_seconds: Option<f64>,
    /// The age of the call in flight.
    pub pending_seconds: Option<f64>,
    /// How long there has been no answer, over calls that were given up.
    pub unanswered_seconds: Option<f64>,
    /// When that began.
    pub unanswered_since: Option<Timestamp>,
    /// Why the newest call that ended has no good answer.
    pub error: Option<String>,
    /// When the newest call ended.
    pub at: Option<Timestamp>,
}

impl Call {
    /// From the board, at this instant.
    pub(super) fn of<T>(verb: &Verb<T>, now: Stamp) -> Call {
        let age = |stamp: Stamp| seconds(now.boot.saturating_sub(stamp.boot));
        let ended = verb.ended.as_ref();
        let state = match (&verb.began, ended) {
            (Some(_), _) => CallState::Pending,
            (None, Some(ended)) if ended.result.is_ok() => CallState::Answered,
            (None, Some(_)) => CallState::Failed,
            (None, None) => CallState::Never,
        };
        Call {
            state,
            took_seconds: ended.filter(|ended| ended.result.is_ok()).map(|ended| seconds(ended.took)),
            pending_seconds: verb.began.map(age),
            unanswered_seconds: verb.unanswered.map(age),
            unanswered_since: verb.unanswered.map(|stamp| stamp.wall),
            error: ended.and_then(|ended| ended.result.as_ref().err()).map(ToString::to_string),
            at: ended.map(|ended| ended.at.wall),
        }
    }

    /// Whether the newest call that ended has a good answer, whatever is in flight.
    pub fn has_answer(&self) -> bool {
        self.took_seconds.is_some()
    }
}

/// `Version`, and what it said.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VersionCall {
    /// The call.
    #[serde(flatten)]
    pub call: Call,
    /// `containerd`, `cri-o`.
    pub runtime_name: Option<String>,
    /// `1.6.20~ds1`.
    pub runtime_version: Option<String>,
    /// `v1`.
    pub runtime_api_version: Option<String>,
}

impl VersionCall {
    /// From the board.
    pub(super) fn of(verb: &Verb<VersionResponse>, now: Stamp) -> VersionCall {
        let answer = answer(verb);
        VersionCall {
            call: Call::of(verb, now),
            runtime_name: answer.map(|answer| answer.runtime_name.clone()),
            runtime_version: answer.map(|answer| answer.runtime_version.clone()),
            runtime_api_version: answer.map(|answer| answer.runtime_api_version.clone()),
        }
    }
}

/// The relist, and what it counted, by state.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RelistCall {
    /// Both calls together.
    #[serde(flatten)]
    pub call: Call,
    /// `ListPodSandbox` alone.
    pub list_pod_sandbox: Call,
    /// `ListContainers` alone.
    pub list_containers: Call,
    /// `ready`, `notready`; `None` where the newest relist has no good answer.
    pub sandboxes: Option<BTreeMap<&'static str, u64>>,
    /// `created`, `running`, `exited`, `unknown`.
    pub containers: Option<BTreeMap<&'static str, u64>>,
}

impl RelistCall {
    /// From the board.
    pub(super) fn of(verb: &Verb<Counted>, first: &Verb<()>, second: &Verb<()>, now: Stamp) -> RelistCall {
        let answer = answer(verb);
        RelistCall {
            call: Call::of(verb, now),
            list_pod_sandbox: Call::of(first, now),
            list_containers: Call::of(second, now),
            sandboxes: answer.map(|counted| by_state(&counted.sandboxes, &["ready", "notready"])),
            containers: answer
                .map(|counted| by_state(&counted.containers, &["created", "running", "exited", "unknown"])),
        }
    }
}

/// What single sandboxes and containers answered when they were asked one by one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// When the newest round over all of them ended; `None`: none yet.
    pub round_at: Option<Timestamp>,
    /// How long it took.
    pub round_seconds: Option<f64>,
    /// How many answered in it.
    pub answered: Option<u64>,
    /// How many were not asked in it, since others did not answer.
    pub left_out: Option<u64>,
    /// The slowest of it.
    pub slowest_seconds: Option<f64>,
    /// The call in flight.
    pub running: Option<Status>,
    /// Those that took a second or more, or did not answer, when they were asked last; those without an answer first,
    /// at most ten.
    pub slow: Vec<Status>,
}

/// One call for one sandbox or container.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    /// `PodSandboxStatus`, `ContainerStatus`.
    pub call: &'static str,
    /// The sandbox' or container's id.
    pub id: String,
    /// `namespace/name`, or the pod's UID.
    pub pod: String,
    /// The container's name.
    pub container: Option<String>,
    /// Since when it is asked; for one without an answer since it was first asked in vain.
    pub since: Timestamp,
    /// How long the answer took, or how long there has been none.
    pub seconds: f64,
    /// Whether it answered.
    pub is_answered: bool,
}

impl Status {
    fn of(one: &One, now: Stamp) -> Status {
        let age = now.boot.saturating_sub(one.since.boot);
        Status {
            call: one.call(),
            id: one.id().to_owned(),
            pod: one.pod().to_owned(),
            container: one.container().map(str::to_owned),
            since: one.since.wall,
            seconds: seconds(one.took.unwrap_or(age)),
            is_answered: one.took.is_some(),
        }
    }

    /// Whose it is, for people: `default/web (container nginx)`.
    pub fn who(&self) -> String {
        match &self.container {
            Some(container) => format!("{} (container {container})", self.pod),
            None => format!("{} (its sandbox)", self.pod),
        }
    }
}

impl Inspection {
    /// From the board.
    pub(super) fn of(inspected: &Inspected, now: Stamp) -> Inspection {
        let round = inspected.round.as_ref();
        Inspection {
            round_at: round.map(|round| round.ended.wall),
            round_seconds: round.map(|round| seconds(round.took)),
            answered: round.map(|round| round.answered as u64),
            left_out: round.map(|round| round.left_out as u64),
            slowest_seconds: round.map(|round| seconds(round.slowest)),
            running: inspected.running.as_ref().map(|one| Status::of(one, now)),
            slow: inspected.slow.iter().map(|one| Status::of(one, now)).collect(),
        }
    }

    /// Those that take longer than this: each that was slow, and the one in flight.
    pub fn slower_than(&self, limit: f64) -> impl Iterator<Item = &Status> {
        let running =
            self.running.iter().filter(|running| self.slow.iter().all(|slow| slow.id != running.id));
        self.slow.iter().chain(running).filter(move |status| status.seconds >= limit)
    }
}

/// Counts by name. A number that a newer runtime made up is `other`: it is neither lost nor counted as known.
fn by_state(states: &[i32], names: &[&'static str]) -> BTreeMap<&'static str, u64> {
    let mut counts: BTreeMap<&'static str, u64> = names.iter().map(|name| (*name, 0)).collect();
    for state in states {
        let name = usize::try_from(*state).ok().and_then(|state| names.get(state)).copied();
        *counts.entry(name.unwrap_or("other")).or_insert(0) += 1;
    }
    counts
}

/// A condition of the runtime's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuntimeCondition {
    /// `RuntimeReady`, `NetworkReady`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it holds.
    pub status: bool,
    /// One word.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// What `Status` said, as far as it is told on. `info.config` may hold registry passwords: it is not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StatusSaid {
    /// Its conditions; `None` where the answer holds no status at all.
    pub(super) conditions: Option<Vec<RuntimeCondition>>,
    /// How containerd's newest load of the CNI configuration went: `OK`, or the error.
    pub(super) last_cni_load_status: Option<String>,
    /// The CNI folder that containerd is configured with.
    pub(super) cni_conf_dir: Option<String>,
    /// The plugin folders that containerd is configured with.
    pub(super) cni_bin_dirs: Option<Vec<String>>,
}

impl StatusSaid {
    /// The newest `Status` has no good answer: nothing is known, which is not the same as nothing being wrong.
    pub(super) const NOTHING: StatusSaid =
        StatusSaid { conditions: None, last_cni_load_status: None, cni_conf_dir: None, cni_bin_dirs: None };

    /// From the board: the newest good answer, `None` where the newest call has none.
    pub(super) fn of(verb: &Verb<StatusResponse>) -> Option<StatusSaid> {
        let answer = answer(verb)?;
        let conditions = answer.status.as_ref().map(|status| {
            status
                .conditions
                .iter()
                .map(|condition| RuntimeCondition {
                    kind: condition.r#type.clone(),
                    status: condition.status,
                    reason: condition.reason.clone(),
                    message: condition.message.clone(),
                })
                .collect()
        });
        let load =
            answer.info.get("lastCNILoadStatus").or_else(|| answer.info.get("lastCNILoadStatus.default"));
        let (cni_conf_dir, cni_bin_dirs) =
            answer.info.get("config").map_or((None, None), |text| cni_places(text));
        Some(StatusSaid { conditions, last_cni_load_status: load.cloned(), cni_conf_dir, cni_bin_dirs })
    }
}

/// The CNI folders in containerd's `info.config`: `binDir` up to 2.0, `binDirs` since.
fn cni_places(config: &str) -> (Option<String>, Option<Vec<String>>) {
    #[derive(Deserialize)]
    struct Config {
        cni: Option<Cni>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Cni {
        conf_dir: Option<String>,
        bin_dir: Option<String>,
        bin_dirs: Option<Vec<String>>,
    }
    let Some(cni) = serde_json::from_str(config).ok().and_then(|config: Config| config.cni) else {
        return (None, None);
    };
    let one = cni.bin_dir.filter(|dir| !dir.is_empty()).map(|dir| vec![dir]);
    let bin_dirs = cni.bin_dirs.filter(|dirs| !dirs.is_empty()).or(one);
    (cni.conf_dir.filter(|dir| !dir.is_empty()), bin_dirs)
}

/// How connecting goes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Connect {
    /// `connected`, `missing`, `refused`, `backlog_full`, `failed`, `never`.
    pub state: &'static str,
    /// Since when it goes that way.
    pub since: Option<Timestamp>,
    /// For how long, in seconds.
    pub for_seconds: Option<f64>,
    /// The kernel's word, where it failed.
    pub error: Option<String>,
}

impl Connect {
    /// From the board.
    pub(super) fn of(link: Option<&(Link, Stamp)>, now: Stamp) -> Connect {
        let Some((link, since)) = link else {
            return Connect { state: "never", since: None, for_seconds: None, error: None };
        };
        let (state, error) = match link {
            Link::Connected { .. } => ("connected", None),
            Link::Missing => ("missing", Some("ENOENT: the socket does not exist".to_owned())),
            Link::Refused => ("refused", Some("ECONNREFUSED: nobody listens on the socket".to_owned())),
            Link::BacklogFull => {
                ("backlog_full", Some("EAGAIN: nobody accepts, and the queue is full".to_owned()))
            }
            Link::Failed { error, .. } => ("failed", Some(error.clone())),
        };
        let age = seconds(now.boot.saturating_sub(since.boot));
        Connect { state, since: Some(since.wall), for_seconds: Some(age), error }
    }
}

fn answer<T>(verb: &Verb<T>) -> Option<&T> {
    verb.ended.as_ref().and_then(|ended| ended.result.as_ref().ok())
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    crate::fuzz::done(cni_places(&crate::fuzz::text(bytes)));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // `info.config` of containerd 1.6.20 on Debian 12 (CRI Status, verbose), cut to its CNI part and one
    // neighbour, with the default folders.
    const CONFIG: &str = r#"{"cni":{"binDir":"/opt/cni/bin","confDir":"/etc/cni/net.d","maxConfNum":1,"confTemplate":"","ipPref":""},"disableTCPService":true}"#;

    #[test]
    fn containerds_cni_folders_are_read_from_its_config() {
        let bin = Some(vec!["/opt/cni/bin".to_owned()]);
        assert_eq!(cni_places(CONFIG), (Some("/etc/cni/net.d".to_owned()), bin));
    }

    #[test]
    fn every_prefix_says_nothing() {
        for cut in 0..CONFIG.len() {
            assert_eq!(cni_places(&CONFIG[..cut]), (None, None));
        }
    }

    proptest! {
        #[test]
        fn a_flipped_byte_is_a_value_or_nothing(at in 0..CONFIG.len(), byte: u8) {
            let mut bytes = CONFIG.as_bytes().to_vec();
            bytes[at] = byte;
            let (_, bin) = cni_places(&String::from_utf8_lossy(&bytes));
            prop_assert!(bin.is_none_or(|dirs| !dirs.is_empty()));
        }

        #[test]
        fn no_state_is_lost_in_counting(states in prop::collection::vec(-2..9_i32, 0..50)) {
            let counts = by_state(&states, &["ready", "notready"]);
            prop_assert_eq!(counts.values().sum::<u64>(), states.len() as u64);
        }
    }
}
