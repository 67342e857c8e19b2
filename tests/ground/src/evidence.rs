//! What is kept of one run: one folder, from which the run is judged and diagnosed again without a virtual machine.
//!
//! This comment is the format's specification, version 1. `evidence/FAULT/` holds:
//!
//! | file | what |
//! | --- | --- |
//! | `truth.json` | [`Truth`]: what was done, since when, the proof, on what software |
//! | `host/`, `pod/` | one folder for each agent that was followed ([`Way`]): on the host, and in a container |
//! | `…/node.zst` | `/api/v1/node`, each second: also how the node's wall clock stood to its boot clock |
//! | `…/state.zst` | `/api/v1/state` with the readings, each second |
//! | `…/metrics.zst`, `…/findings.zst`, `…/readyz.zst` | `/metrics`, `/api/v1/findings`, `/readyz`, each 5 s |
//! | `…/events.zst` | the stream `/api/v1/events`: each event as served, and where the stream was cut |
//! | `kmsg.zst` | the lines of `dmesg --raw` at the run's end, where the node still answered |
//!
//! A `.zst` file is one zstd frame with a checksum (window of 64 MiB at most, so `zstd -dc` reads it). Inside, each line
//! is a JSON document. The first is the header, `{"format":"nodewhy-evidence","version":1,"records":N}`; N records
//! follow: [`Answer`]s, [`Heard`]s in `events.zst`, strings in `kmsg.zst`. An answer has the body as the text that was
//! served, so `zstd -dc host/state.zst | tail -n +2 | jq '.body | fromjson'` shows states.
//!
//! All records carry the times at which the reader asked and received, by the clock of the machine that runs the
//! virtual machine: one clock for both agents, which no fault moves. What an agent says has the node's own clocks.
//! A question that was not answered within its deadline is a record with `error`: a hole is never an absence, and a
//! second without a record was a second in which nobody asked.
//!
//! States of successive seconds are nearly alike: on a quiet machine, the first of 70 KB cost 14 KB once compressed and
//! each further one about 165 bytes, so nothing is dropped and no difference is computed.
//!
//! A reader refuses a version that it does not know, a file that it does not know, and one that ends too early.

mod files;
mod served;
mod story;

use std::collections::BTreeMap;

use jiff::Timestamp;
use nodewhy_guest::channel::Clocks;
use nodewhy_proto::Subject;
use serde::{Deserialize, Serialize};

use crate::fault::{Fault, Injected};

pub use files::{all, folder};
pub use served::{Answer, Heard, Said, Served, Stream};
pub use story::{Asked, Story};

/// The version that is written, and the only one that is read.
pub const VERSION: u32 = 1;

/// How an agent ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// On the host, as a unit of systemd.
    Host,
    /// In a container with the DaemonSet's security context.
    Pod,
}

/// One run.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    /// What was done.
    pub truth: Truth,
    /// What each agent served.
    pub agents: BTreeMap<Way, Served>,
    /// The kernel's log as `dmesg --raw` printed it at the run's end; `None` where nobody read it.
    pub kmsg: Option<Vec<String>>,
}

/// What was done to the node: known, not concluded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Truth {
    /// The format's version.
    pub version: u32,
    /// [`Fault::name`], and the folder's.
    pub fault: String,
    /// [`Fault::about`], as it was then.
    pub about: String,
    /// The cause that is true, by its id.
    pub cause: String,
    /// What it is about.
    pub subject: Subject,
    /// When it began by the node's clocks, and the proof.
    pub injected: Injected,
    /// When undoing it began, by the harness's clock: evidence received before is of the fault.
    pub undone_at: Timestamp,
    /// The same by the node's clocks, where the node could still tell.
    pub undone: Option<Clocks>,
    /// When the run began, by the harness's clock: the snapshot ran, and the agents were followed.
    pub began_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
    /// On what.
    pub software: Software,
    /// Programs that stood in for real ones: `kubelet-standin`.
    pub stand_ins: Vec<String>,
}

/// What the node ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Software {
    /// `uname -r`.
    pub kernel: String,
    /// Debian's suite: `bookworm`.
    pub suite: String,
    /// containerd's version.
    pub containerd: String,
    /// The agent's version.
    pub agent: String,
}

impl Way {
    /// Both.
    pub const ALL: [Way; 2] = [Way::Host, Way::Pod];

    /// The name of its folder.
    pub fn folder(self) -> &'static str {
        match self {
            Way::Host => "host",
            Way::Pod => "pod",
        }
    }
}

impl Truth {
    /// How long the run took, by the harness's clock.
    pub fn took_seconds(&self) -> f64 {
        self.ended_at.duration_since(self.began_at).as_secs_f64()
    }

    /// What a run of this fault begins with. `ended_at`, `undone_at` and `undone` are to be set when that is known;
    /// until then they are the beginning.
    pub fn of(fault: &Fault, injected: Injected, began_at: Timestamp, software: Software) -> Truth {
        Truth {
            version: VERSION,
            fault: fault.name.to_owned(),
            about: fault.about.to_owned(),
            cause: fault.cause.to_owned(),
            subject: Subject::new(fault.subject.0, fault.subject.1),
            injected,
            undone_at: began_at,
            undone: None,
            began_at,
            ended_at: began_at,
            software,
            stand_ins: Vec::new(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
