//! The proving ground: a virtual machine with a stock kernel and pure cgroup v2, broken on purpose by those who know the
//! truth, while the agent runs in it as it would in production.

pub mod fault;
pub mod faults;
pub mod node;
