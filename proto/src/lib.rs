//! The contract: every type that crosses a wire between nodewhy's programs. No I/O, no clock.
//!
//! JSON rules: names are snake_case; times are RFC 3339 in UTC; durations and sizes carry their unit in the
//! name; a reader ignores fields that it does not know and reads an enum's unknown variant as `Unknown`, so
//! that old and new versions mix during a rollout. What could not be read is absent with a reason, never zero.

mod event;
mod fact;
mod finding;
mod incident;
mod node;
mod outcome;
mod page;
mod problem;
mod verdict;

pub use event::{
    Change, Event, EventBody, Gap, KernelMessage, LogLine, OomKill, OomScope, OomTask, ProcessChange, Role,
};
pub use fact::{Condition, ConditionStatus, Fact, FactBody, Lease};
pub use finding::{Evidence, Finding, Origin, Severity, Subject, SubjectKind, Threshold};
pub use incident::{Incident, NodeSummary, Revision};
pub use node::{AgentInfo, CgroupMode, Locked, MemoryLock, NodeDistribution, NodeId, NodeInfo};
pub use outcome::{CollectorState, LateTick, Outcome, State, Ticks};
pub use page::{Answer, Page};
pub use problem::Problem;
pub use verdict::{Conclusion, CouldNotTell, Held, RootCause, RuledOut, Step, Verdict};

/// The wire version. It is part of every path: `/api/v1/…`.
pub const API_VERSION: &str = "v1";
