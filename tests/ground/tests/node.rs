//! What is true of the node and of the agent in it, whatever the fault.

use nodewhy_ground::image::Suite;
use nodewhy_ground::pod;
use nodewhy_ground::run::Ground;

#[test]
fn what_a_container_changes_is_seen_from_inside_one() -> anyhow::Result<()> {
    pod::seen(&Ground::make(Suite::Bookworm)?)
}
