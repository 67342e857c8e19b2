use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::Outcome;

/// A part of a collector's newest reading that is too long for `/api/v1/state`: a path of its own.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Page {
    /// Which collector.
    pub collector: String,
    /// How its newest try went. If that was no reading, the page is an older one.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// When the page's reading was taken.
    pub read_at: Timestamp,
    /// Seconds since then.
    pub age_seconds: f64,
    /// The page, in the collector's own shape.
    pub page: serde_json::Value,
}

/// What was read because it was asked for.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Which collector.
    pub collector: String,
    /// `read`, or `absent` with the reason.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// When the reading ended.
    pub read_at: Timestamp,
    /// How long it took.
    pub took_seconds: f64,
    /// The answer, in the collector's own shape.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<serde_json::Value>,
}
