//! The proving ground: a virtual machine with a stock kernel and pure cgroup v2, broken on purpose by those who know the
//! truth, while the agent runs in it as it would in production.
//!
//! [`image`] makes the disk from Debian's packages, [`machine`] runs it, [`ready`] is the node that every fault starts from,
//! [`node`] is one at work. [`faults`] is the library of what is broken.
//! [`evidence`] is what is kept of a run, [`seen`] judges it, [`table`] shows it.

#![expect(clippy::disallowed_methods, reason = "it starts virtual machines, makes files and breaks them")]

pub mod bare;
pub mod evidence;
pub mod fault;
pub mod faults;
pub mod fire;
pub mod image;
pub mod machine;
pub mod node;
pub mod pod;
pub mod ready;
pub mod replay;
pub mod run;
pub mod seen;
pub mod table;
pub mod watch;
