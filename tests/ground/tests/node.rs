//! What is true of the node and of the agent in it, whatever the fault.

use nodewhy_ground::image::Suite;
use nodewhy_ground::run::Ground;
use nodewhy_ground::{bare, pod};

#[test]
fn what_a_container_changes_is_seen_from_inside_one() -> anyhow::Result<()> {
    pod::seen(&Ground::make(Suite::Bookworm)?)
}

#[test]
fn the_agent_loads_nothing_and_makes_no_table() -> anyhow::Result<()> {
    bare::seen(&Ground::make(Suite::Bookworm)?)
}
