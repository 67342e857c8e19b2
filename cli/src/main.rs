//! nodewhy: why did this node go NotReady?
fn main() {}
