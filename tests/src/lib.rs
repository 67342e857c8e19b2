//! The whole-system tests and their parts: a real containerd, a stand-in for the kubelet, an API server that plays a
//! recording, and the agent and the aggregator as they are.
//!
//! [`alone`] gives a test its own process, mount and network namespaces, so that no other process of this machine
//! is taken for the node's. [`recording`] is what a real cluster said during a fault; [`apiserver`] says it again, moved
//! to the time of the test. [`programs`] runs agent and aggregator, [`episode`] drives one fault from healthy to
//! healthy.

#![expect(clippy::disallowed_methods, reason = "tests start processes, make files and break them")]

pub mod alone;
pub mod apiserver;
pub mod client;
pub mod containerd;
pub mod episode;
pub mod kubelet;
pub mod programs;
pub mod recording;
