//! A node of the proving ground.

/// A running node.
#[derive(Debug)]
pub struct Node {}
