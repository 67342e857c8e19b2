use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{ConditionStatus, Verdict};

/// One revision of an incident's verdict. Every one is kept, with what changed it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Revision {
    /// Counted from 1.
    pub revision: u32,
    /// When, by the aggregator's clock.
    pub at: Timestamp,
    /// What changed since the one before: `finding runtime_hung began`, `Ready became False`.
    pub changed_by: String,
    /// The verdict as it was then.
    pub verdict: Verdict,
}

/// A node's time out of Ready, or under suspicion, with its verdict as evidence arrived.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    /// `2026-11-21-0313-worker-7`: date, time (UTC) and node.
    pub id: String,
    /// The node's name.
    pub node: String,
    /// The first sign, by the fault's own clock.
    pub began: Timestamp,
    /// When nodewhy first knew.
    pub opened: Timestamp,
    /// When the node left Ready, where it has and an API server says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_ready: Option<Timestamp>,
    /// When all was well again; `None` while it lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
    /// Every verdict, oldest first. In lists only the newest.
    pub revisions: Vec<Revision>,
}

impl Incident {
    /// The newest verdict.
    pub fn verdict(&self) -> Option<&Verdict> {
        self.revisions.last().map(|revision| &revision.verdict)
    }
}

/// A node in `/api/v1/nodes` of the aggregator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeSummary {
    /// Its name.
    pub name: String,
    /// The Ready condition as last heard; `None` without an API server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<ConditionStatus>,
    /// How the agent is doing: `answers`, or why it can't be asked.
    pub agent: String,
    /// Seconds since the agent was last heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_age_seconds: Option<f64>,
    /// Seconds since the Lease was last renewed, by its renewTime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_age_seconds: Option<f64>,
    /// Findings that hold, as the agent last told; absent where no agent was ever heard: that is not "none".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub findings: Option<Vec<crate::Finding>>,
    /// The open incident, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incident: Option<String>,
}
