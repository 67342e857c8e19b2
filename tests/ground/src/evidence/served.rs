//! What an agent served, as it was served.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Everything that one agent served during a run, in order of receipt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Served {
    /// `/api/v1/node`.
    pub node: Vec<Answer>,
    /// `/api/v1/state`.
    pub state: Vec<Answer>,
    /// `/metrics`.
    pub metrics: Vec<Answer>,
    /// `/api/v1/findings`.
    pub findings: Vec<Answer>,
    /// `/readyz`.
    pub readyz: Vec<Answer>,
    /// `/api/v1/events`.
    pub events: Vec<Heard>,
}

/// One question and its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// When it was asked, by the harness's clock.
    pub asked: Timestamp,
    /// When the answer was whole, or was given up.
    pub received: Timestamp,
    /// What was said.
    #[serde(flatten)]
    pub said: Said,
}

/// An answer, or none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Said {
    /// Answered.
    Body {
        /// The HTTP status.
        status: u16,
        /// The text.
        body: String,
    },
    /// A hole: what was tried, and what went wrong.
    Hole {
        /// In words.
        error: String,
    },
}

/// One thing that happened on the event stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// When, by the harness's clock.
    pub received: Timestamp,
    /// What.
    #[serde(flatten)]
    pub what: Stream,
}

/// What happens on an event stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "heard", rename_all = "snake_case")]
pub enum Stream {
    /// It was opened.
    Opened {
        /// After which cursor; `None`: all that the agent keeps was asked for.
        after: Option<String>,
    },
    /// An event.
    Event {
        /// Its `id:`, the cursor.
        id: Option<String>,
        /// Its `data:`, the text.
        data: String,
    },
    /// It was cut, or could not be opened. Nothing was heard until the next `Opened`.
    Lost {
        /// Why.
        why: String,
    },
}

impl Answer {
    /// The body of a good answer.
    ///
    /// # Errors
    /// A hole, or another status than 200: in words.
    pub fn body(&self) -> Result<&str, String> {
        match &self.said {
            Said::Body { status: 200, body } => Ok(body),
            Said::Body { status, body } => Err(format!("answered with status {status}: {body}")),
            Said::Hole { error } => Err(error.clone()),
        }
    }
}
