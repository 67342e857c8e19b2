use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How reading a source went. Absent is neither zero nor recovered.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// Read, and understood.
    Read,
    /// Not on this node, not built into this kernel, or switched off: `why` says which.
    Absent {
        /// Why there is nothing to read.
        why: String,
    },
    /// It is there and could not be read or understood.
    Failed {
        /// What was tried, on what, and what went wrong.
        error: String,
    },
    /// A read began and has not ended.
    Stuck {
        /// When it began.
        since: Timestamp,
    },
    /// Not read yet, or an outcome that this reader does not know.
    #[serde(other)]
    Unknown,
}

impl Outcome {
    /// Whether the newest reading may be believed.
    pub fn is_read(&self) -> bool {
        matches!(self, Outcome::Read)
    }

    /// One word: `read`, `absent`, `failed`, `stuck`, `unknown`.
    pub fn word(&self) -> &'static str {
        match self {
            Outcome::Read => "read",
            Outcome::Absent { .. } => "absent",
            Outcome::Failed { .. } => "failed",
            Outcome::Stuck { .. } => "stuck",
            Outcome::Unknown => "unknown",
        }
    }

    /// Why there is no reading, in words; `None` when there is one.
    pub fn why(&self) -> Option<String> {
        match self {
            Outcome::Read => None,
            Outcome::Absent { why } => Some(why.clone()),
            Outcome::Failed { error } => Some(error.clone()),
            Outcome::Stuck { since } => Some(format!("a read has not ended since {since}")),
            Outcome::Unknown => Some("not read yet".to_owned()),
        }
    }
}

/// How punctual a collector is. A tick is on time when a read of it ended within 250 ms of the time that it was due.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ticks {
    /// Ticks of the collector's grid so far: those that were read, and those that are overdue now.
    pub total: u64,
    /// Those of them that were late. Ticks that went by unused while a read hung are among them.
    pub late: u64,
    /// The longest time from a tick's due to the end of its read; absent until there was a tick.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longest_delay_seconds: Option<f64>,
    /// The newest late ones, newest last; 64 at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub newest_late: Vec<LateTick>,
}

/// A tick that was late.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LateTick {
    /// When it was due, by the node's wall clock.
    pub due: Timestamp,
    /// When it was due, in seconds since boot.
    pub boot_seconds: f64,
    /// Seconds from then until a read of it ended, or until now.
    pub delay_seconds: f64,
    /// Whether that read has ended; if not, the delay grows.
    pub is_over: bool,
}

/// One collector's outcome and newest reading.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CollectorState {
    /// How the newest try went.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// When the newest successful reading was taken. Its age grows while reads hang or fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_at: Option<Timestamp>,
    /// Seconds since then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<f64>,
    /// How long the newest finished try took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_seconds: Option<f64>,
    /// Seconds between two reads; an absent source is looked for every 5 s at most.
    pub every_seconds: f64,
    /// How punctual it is; absent while it is switched off, and from an agent that does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticks: Option<Ticks>,
    /// The newest reading in one short line for people, while the outcome is `read`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// The newest successful reading, in the collector's own shape. Old when `age_seconds` is large.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reading: Option<serde_json::Value>,
}

/// `/api/v1/state`: every collector's outcome and newest reading, by its name.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The node's name.
    pub node: String,
    /// The node's wall clock when this was written.
    pub now: Timestamp,
    /// By collector name.
    pub collectors: BTreeMap<String, CollectorState>,
}
