//! The list of collectors. A new one is a file in `collect/` and two lines here: its `mod` and its entry.

pub mod cni;
pub mod kubelet;
pub mod memory;
pub mod oom;
pub mod pressure;
pub mod runtime;

use crate::collector::Collect;

/// Every collector, in the order in which people read about them.
pub static COLLECTORS: &[&dyn Collect] = &[
    &pressure::COLLECTOR,
    &memory::COLLECTOR,
    &oom::COLLECTOR,
    &runtime::COLLECTOR,
    &kubelet::COLLECTOR,
    &cni::COLLECTOR,
];
