//! Does harm to the node that it runs on, in one way, for a bounded time: see `hurt help`. For the virtual machine only.

fn main() -> anyhow::Result<()> {
    nodewhy_guest::hurt::run()
}
