//! The proving ground from the command line.

fn main() {}
