//! The pure core: a case in, a verdict out. No clock, no I/O, no async; it depends on `proto` alone.
//!
//! [`Case`] is the complete, immutable input. [`causes::ALL`] is the catalogue, one file a cause. [`explain`] runs
//! every check, joins what holds into a graph by what each cause leads to, and names the root.

mod case;
mod cause;
// pub mod causes;
// mod explain;

pub use case::{Case, CaseBuilder, CaseError, ClusterCase, NodeCase, NodeCaseBuilder, Peer, Source, Window};
pub use cause::{Answer, Cause, Holding, Link, NOT_READY, Scope};
// pub use explain::explain;
