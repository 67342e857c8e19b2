//! The pure core: a case in, a verdict out. No clock, no I/O, no async; it depends on `proto` alone.
//!
//! [`Case`] is the complete, immutable input. [`causes::ALL`] is the catalogue, one file a cause. [`explain`] runs
//! every check, joins what holds into a graph by what each cause leads to, and names the root.

mod case;
mod cause;
pub mod causes;
mod explain;
mod graph;
#[cfg(test)]
mod made;
mod network;
mod oom;
mod ready;
mod signs;
mod tidy;

pub use case::{
    Case, CaseBuilder, CaseError, ClusterCase, NodeCase, NodeCaseBuilder, Peer, Source, Window, read_case,
};
pub use cause::{Answer, Cause, Holding, Link, NOT_READY, Scope, Shows, Unready};
pub use explain::{CLOCK_GRAIN, explain, explain_with};
pub use ready::Stage;
