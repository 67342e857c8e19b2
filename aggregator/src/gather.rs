//! Follows every agent: what it knows, then its event stream, resumed from a cursor.

mod client;
mod follow;
mod offset;
mod sse;
mod view;

pub(crate) use follow::Follower;
pub(crate) use view::{AgentView, Contact};
