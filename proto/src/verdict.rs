use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{ConditionStatus, Evidence, Finding, Subject};

/// What an explanation came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Conclusion {
    /// At least one root cause stands.
    Explained,
    /// The causes that hold wait for each other: nothing in the circle can move by itself.
    Deadlock,
    /// The node is not Ready, or is suspected, and no cause in the catalogue holds.
    NoCauseFound,
    /// The node is Ready, as far as is known, and no critical finding holds that a cause does not account for. Warnings
    /// may hold, and so may causes that do not take Ready away: a pod at its memory limit, say.
    Healthy,
    /// A conclusion that this reader does not know.
    #[serde(other)]
    Unknown,
}

/// One step of a chain from root cause to loss of Ready.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// A cause's id, or a symptom's: `not_ready`.
    pub id: String,
    /// For people: what happened in this step.
    pub text: String,
    /// On which node; another's where the chain crosses nodes.
    pub node: String,
    /// When it began. For a step that is still to come: when it is expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    /// Whether it has happened, or is what this chain leads to next.
    pub happened: bool,
    /// Why it may be believed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<Evidence>,
}

/// A cause that explains the loss of Ready, with its chain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RootCause {
    /// The cause's id: `oom_kills_kubelet`.
    pub cause: String,
    /// Its title, in plain words.
    pub title: String,
    /// On which node.
    pub node: String,
    /// What it is about.
    pub subject: Subject,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// 0 to 1: how sure. Severity is another thing.
    pub certainty: f64,
    /// Why.
    pub because: Vec<Evidence>,
    /// From this cause to loss of Ready, in order of time.
    pub chain: Vec<Step>,
    /// What to do, the first thing first.
    pub remedy: Vec<String>,
}

/// A cause that holds and is no root: it contributes, or it is a consequence, or it does not reach Ready.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// The cause's id.
    pub cause: String,
    /// Its title.
    pub title: String,
    /// On which node.
    pub node: String,
    /// What it is about.
    pub subject: Subject,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Why.
    pub because: Vec<Evidence>,
}

/// A cause that does not hold, and the evidence against it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RuledOut {
    /// The cause's id.
    pub cause: String,
    /// On which node.
    pub node: String,
    /// What speaks against it.
    pub because: Vec<Evidence>,
}

/// A cause that can be neither shown nor ruled out, and what is missing to decide.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CouldNotTell {
    /// The cause's id.
    pub cause: String,
    /// On which node.
    pub node: String,
    /// What would decide it, and why it is not there.
    pub missing: Vec<String>,
}

/// The answer to "why?" for one node: what nodewhy is for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The node asked about.
    pub node: String,
    /// When this was concluded, by the asker's clock.
    pub at: Timestamp,
    /// What it came to.
    pub conclusion: Conclusion,
    /// The Ready condition as last heard; `None` where no API server was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<ConditionStatus>,
    /// Since when it is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_since: Option<Timestamp>,
    /// The Ready condition's message.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ready_message: String,
    /// The root cause or causes, the surest first.
    pub roots: Vec<RootCause>,
    /// Circles of causes that wait for each other, each as the ids in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cycles: Vec<Vec<Step>>,
    /// What holds too and is no root.
    pub contributing: Vec<Held>,
    /// Critical findings on this node that no cause above cites: they are told whatever was concluded, for a catalogue
    /// does not know every fault.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unexplained: Vec<Finding>,
    /// What was ruled out, and why.
    pub ruled_out: Vec<RuledOut>,
    /// What can't be told, and what is missing.
    pub cannot_tell: Vec<CouldNotTell>,
    /// What this node cannot see at all, and why: collectors absent, failed or stuck.
    pub blind: Vec<String>,
}
