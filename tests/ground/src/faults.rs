//! The library of faults: one list that one can read.

use crate::fault::Fault;

/// All of them.
pub static FAULTS: &[&Fault] = &[];
