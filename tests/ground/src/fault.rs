//! What a fault is: how it is made, the truth about it, what must be seen of it, and how it is undone.

use std::time::Duration;

use nodewhy_guest::channel::Clocks;
use nodewhy_proto::{Role, SubjectKind};
use serde::{Deserialize, Serialize};

use crate::node::Node;

/// A way to break a node on purpose. One `static` in a file of `faults/`, named in `faults::FAULTS`.
#[derive(Debug)]
pub struct Fault {
    /// Its name on the command line and of its evidence's folder: `containerd-hung`.
    pub name: &'static str,
    /// What is done to the node, in a sentence for the table.
    pub about: &'static str,
    /// The cause that is the truth, by its id in the catalogue.
    pub cause: &'static str,
    /// What the fault is about.
    pub subject: (SubjectKind, &'static str),
    /// What the agent must see of it. Empty: no collector reads what shows it yet, and `unseen` says which would.
    pub sees: &'static [Sees],
    /// Which source would show it, where none does yet.
    pub unseen: Option<&'static str>,
    /// What the diagnosis must make of the evidence.
    pub diagnosed: Expect,
    /// Causes that it may name as roots too, since they truly are there: consequences, and their like.
    pub also: &'static [&'static str],
    /// Makes it. Returns when the fault holds, with the proof that it does: taken on the node by other means than the
    /// agent.
    pub inject: fn(&mut Node) -> anyhow::Result<Injected>,
    /// Undoes it, so that the node could be well again.
    pub undo: fn(&mut Node) -> anyhow::Result<()>,
    /// How long it is left in place at most: it is undone when everything in `sees` was seen.
    pub hold: Duration,
    /// Whether it runs each time (the set of CI), or only when all run.
    pub each_time: bool,
}

impl Fault {
    /// What most faults have. The two functions have no usual form: a fault that forgets one fails when it is run, and
    /// a test lets none be without a name, a cause, and a sign or the reason why it has none.
    pub const USUAL: Fault = Fault {
        name: "",
        about: "",
        cause: "",
        subject: (SubjectKind::Node, ""),
        sees: &[],
        unseen: None,
        diagnosed: Expect::NotYet("the catalogue does not have this cause yet"),
        also: &[],
        inject: |_| anyhow::bail!("this fault has no inject function"),
        undo: |_| anyhow::bail!("this fault has no undo function"),
        hold: Duration::from_secs(20),
        each_time: false,
    };
}

/// What the diagnosis must make of a fault's evidence, without an API server.
#[derive(Debug)]
pub enum Expect {
    /// The true cause holds, and is the first root.
    Root,
    /// The true cause holds; it does not take Ready away, or is no root.
    Holds,
    /// It cannot know the cause from there, or the catalogue does not have it yet: why.
    NotYet(&'static str),
}

/// What an agent is to see of a fault.
#[derive(Debug)]
pub struct Sees {
    /// Which collector.
    pub collector: &'static str,
    /// What.
    pub what: What,
    /// Why the agent in a container cannot see it, where it cannot.
    pub not_in_pod: Option<&'static str>,
}

/// One sign.
#[derive(Debug)]
pub enum What {
    /// A finding of this name holds.
    Finding(&'static str),
    /// The kernel killed a process of this role.
    OomKill(Role),
    /// A kernel message of this pattern.
    KernelMessage(&'static str),
    /// A line of this pattern in a program's log.
    LogLine(&'static str),
    /// A number of the collector's reading (a JSON pointer into it) reaches this.
    AtLeast(&'static str, f64),
    /// A number of the collector's reading falls to this.
    AtMost(&'static str, f64),
    /// The wall clock's step.
    ClockStepped,
    /// The node started anew: another boot id.
    Rebooted,
}

/// A fault that was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Injected {
    /// When it began, by the node's own clocks: what the agent's latency is counted from.
    pub since: Clocks,
    /// The proof that it holds: what was looked at, and what it said.
    pub proof: Vec<Proof>,
}

/// One proof.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Proof {
    /// The command or the file.
    pub source: String,
    /// Its words.
    pub said: String,
}

impl Sees {
    /// A sign that both ways of running the agent see.
    pub const fn of(collector: &'static str, what: What) -> Sees {
        Sees { collector, what, not_in_pod: None }
    }

    /// A sign that only the agent on the host sees, and why.
    pub const fn not_in_pod(collector: &'static str, what: What, why: &'static str) -> Sees {
        Sees { collector, what, not_in_pod: Some(why) }
    }
}

impl Injected {
    /// Since then, with no proof yet.
    pub fn since(since: Clocks) -> Injected {
        Injected { since, proof: Vec::new() }
    }

    /// With this proof, too.
    #[must_use]
    pub fn proven(mut self, source: impl Into<String>, said: impl Into<String>) -> Injected {
        self.proof.push(Proof { source: source.into(), said: said.into() });
        self
    }
}
