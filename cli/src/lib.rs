//! `nodewhy`: why did this node go NotReady? The command line, and `nodewhy up`.
//!
//! [`client`] asks the agent's and the aggregator's API; [`render`] makes pages of what they say; [`command`] is one
//! file a command; [`up`] runs agent and aggregator in this process; [`live`] is its screen, [`lines`] its text.

pub mod client;
pub mod cluster;
pub mod command;
pub mod diagnosis;
pub mod lines;
pub mod live;
pub mod render;
pub mod sockets;
pub mod up;
pub mod watch;
