use serde::{Deserialize, Serialize};

/// An error document (RFC 9457, `application/problem+json`).
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `about:blank`, or a stable name for the kind of problem.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What was tried, on what, and what to do.
    pub detail: String,
}

impl Problem {
    /// A problem of no further kind.
    pub fn new(status: u16, title: &str, detail: impl Into<String>) -> Problem {
        Problem { kind: "about:blank".to_owned(), title: title.to_owned(), status, detail: detail.into() }
    }
}
