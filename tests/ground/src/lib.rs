//! The proving ground: a virtual machine with a stock kernel and pure cgroup v2, broken on purpose by those who know the
//! truth, while the agent runs in it as it would in production.

#![expect(clippy::disallowed_methods, reason = "tests start programs, read clocks and write files")]

pub mod evidence;
pub mod fault;
pub mod faults;
pub mod node;
