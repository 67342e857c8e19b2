//! Faults of the node's clocks.

use std::time::{Duration, SystemTime};

use nodewhy_proto::SubjectKind;

use crate::fault::{Fault, Injected, Sees, What};
use crate::node::Node;

const NODE: (SubjectKind, &str) = (SubjectKind::Node, "ground");
const STEP: Duration = Duration::from_secs(3600);
const FROZEN_FOR: Duration = Duration::from_secs(60);

/// The clock goes ahead.
pub static FORWARD: Fault = Fault {
    name: "clock-forward",
    about: "the node's wall clock is set one hour ahead",
    cause: "clock_skew",
    subject: NODE,
    sees: &[Sees::of("agent", What::ClockStepped)],
    inject: |node| stepped(node, SystemTime::now() + STEP),
    undo: |node| node.set_clock(SystemTime::now()),
    each_time: true,
    ..Fault::USUAL
};

/// The clock goes back.
pub static BACK: Fault = Fault {
    name: "clock-back",
    about: "the node's wall clock is set one hour back",
    cause: "clock_skew",
    subject: NODE,
    sees: &[Sees::of("agent", What::ClockStepped)],
    inject: |node| stepped(node, SystemTime::now() - STEP),
    undo: |node| node.set_clock(SystemTime::now()),
    ..Fault::USUAL
};

/// The machine stands still.
pub static FROZEN: Fault = Fault {
    name: "machine-frozen",
    about: "the machine is frozen by its hypervisor for a minute: all its clocks stand, but the real-time clock's",
    cause: "machine_frozen",
    subject: NODE,
    sees: &[Sees::of("clock", What::Finding("machine_was_frozen"))],
    inject: |node| {
        let before = clocks(node)?;
        let since = node.clocks()?;
        node.machine()?.freeze()?;
        std::thread::sleep(FROZEN_FOR);
        node.machine()?.thaw()?;
        Ok(Injected::since(since)
            .proven("its clocks before", before)
            .proven("its clocks after", clocks(node)?))
    },
    undo: |node| node.set_clock(SystemTime::now()),
    hold: Duration::from_secs(40),
    ..Fault::USUAL
};

fn stepped(node: &Node, to: SystemTime) -> anyhow::Result<Injected> {
    let since = node.clocks()?;
    let before = clocks(node)?;
    node.set_clock(to)?;
    Ok(Injected::since(since).proven("its clocks before", before).proven("its clocks after", clocks(node)?))
}

/// The node's clocks, each by another way: the wall clock, the time since boot, the real-time clock's.
fn clocks(node: &Node) -> anyhow::Result<String> {
    node.sh("echo \"wall $(date +%s.%N)\"; echo \"up $(cut -d ' ' -f 1 /proc/uptime)\"; \
         echo \"rtc $(cat /sys/class/rtc/rtc0/since_epoch)\"")
}
