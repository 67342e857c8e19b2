use std::time::Duration;

use jiff::Timestamp;
use nodewhy_proto::{Evidence, Subject};

use crate::{Case, NodeCase};

/// The symptom that a chain ends in: the node's Ready condition is not True.
pub const NOT_READY: &str = "not_ready";

/// An explanation that can be checked against a case.
pub struct Cause {
    /// Stable: part of the API, of stored verdicts, of users' alert rules.
    pub id: &'static str,
    /// One plain sentence.
    pub title: &'static str,
    /// Its page: what happens, how it is seen, what it is confused with, what to do, what cannot be known from where.
    pub about: &'static str,
    /// Where it is looked for.
    pub scope: Scope,
    /// What it leads to: other causes' ids, or [`NOT_READY`].
    pub leads_to: &'static [Link],
    /// What to do when the check knows nothing more exact; the first thing first.
    pub remedy: &'static [&'static str],
    /// Whether it holds on this node of this case. Pure: the same case gives the same answer.
    pub check: fn(&Case, &NodeCase) -> Answer,
}

/// Where a cause is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// On each node of the case by itself.
    Node,
    /// Once a case, with the node that was asked about.
    Cluster,
}

/// One arrow of the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// A cause's id, or [`NOT_READY`].
    pub to: &'static str,
    /// How long this step takes at most: a consequence that begins later has another cause.
    pub within: Duration,
    /// For an arrow to [`NOT_READY`]: how the API shows it. `None`: any Ready condition that is not True.
    pub shows: Option<Shows>,
}

/// How the API shows a node that left Ready for one cause, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shows {
    /// The Ready condition that it leaves behind.
    pub ready: Unready,
    /// After this long at the soonest, where Ready is lost at all.
    pub soonest: Duration,
    /// After this long as a rule. `Link::within` allows for slow nodes on top.
    pub usually_by: Duration,
}

/// A Ready condition that is not True. Who wrote it splits all causes in two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unready {
    /// Written by the controller-manager: nothing was heard of the kubelet.
    Unknown,
    /// Written by the kubelet, which is alive and reaches the API. Its message contains one of these.
    False(&'static [&'static str]),
}

impl Link {
    /// An arrow to `to`, which shows within this many seconds.
    pub const fn new(to: &'static str, seconds: u64) -> Link {
        Link { to, within: Duration::from_secs(seconds), shows: None }
    }

    /// An arrow to [`NOT_READY`]: after `soonest` seconds at the soonest, by `usually_by` as a rule, and `within` at
    /// most.
    pub const fn unready(ready: Unready, soonest: u64, usually_by: u64, within: u64) -> Link {
        let shows = Shows {
            ready,
            soonest: Duration::from_secs(soonest),
            usually_by: Duration::from_secs(usually_by),
        };
        Link { to: NOT_READY, within: Duration::from_secs(within), shows: Some(shows) }
    }
}

/// What a check says.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// It holds.
    Yes(Holding),
    /// It does not hold, and this speaks against it.
    No {
        /// Never empty: without evidence against it, the answer is `CannotTell`.
        because: Vec<Evidence>,
    },
    /// What would decide it is not there.
    CannotTell {
        /// What is missing, and why it is.
        missing: Vec<String>,
    },
}

/// A cause that holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Holding {
    /// What it is about.
    pub subject: Subject,
    /// Since when, by the fault's own clock.
    pub since: Option<Timestamp>,
    /// Until when. `None` while it lasts; for something that happened at an instant, that instant.
    pub ended: Option<Timestamp>,
    /// One line for people: what happened here, with figures.
    pub text: String,
    /// Why; the deciding piece first.
    pub because: Vec<Evidence>,
    /// 0 to 1: how sure. One signal alone is never more than 0.8.
    pub certainty: f64,
    /// What to do here exactly; empty: the cause's own remedy.
    pub remedy: Vec<String>,
}
