//! One run: from the snapshot, through calm, fault and recovery, to the evidence.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use jiff::Timestamp;

use crate::evidence::{Evidence, Software, Truth, Way};
use crate::fault::Fault;
use crate::image::Image;
use crate::machine::{Accelerator, Disks};
use crate::node::{Node, Payload};
use crate::seen;
use crate::watch::Watch;

/// Both agents have to be well for so long before the fault: it is the run's part in which nothing may be found.
const CALM: Duration = Duration::from_secs(4);
/// And have this long to become so.
const CALM_WITHIN: Duration = Duration::from_secs(60);
/// What is watched of the recovery.
const AFTER: Duration = Duration::from_secs(5);

/// What every run of one set shares.
#[derive(Clone, Debug)]
pub struct Ground {
    /// The image.
    pub image: Image,
    /// What executes it.
    pub accelerator: Accelerator,
    /// Disks of this set alone, with the snapshot.
    pub disks: Disks,
    /// What comes onto the node.
    pub payload: Payload,
}

/// Runs a fault.
///
/// # Errors
/// A part of the proving ground failed; not: something was not seen. That is in the evidence.
pub fn run(ground: &Ground, fault: &Fault) -> anyhow::Result<Evidence> {
    let began_at = Timestamp::now();
    let mut node = Node::start(&ground.image, ground.accelerator, ground.disks.clone(), &ground.payload)?;
    let sockets = tempfile::Builder::new().prefix("ground-").tempdir()?;
    let mut watches = BTreeMap::new();
    for way in Way::ALL {
        node.start_agent(way)?;
        let socket: PathBuf = sockets.path().join(way.folder());
        node.forward(way, &socket)?;
        watches.insert(way, Watch::start(&socket, way.folder())?);
    }
    calm(&watches)?;
    let software = Software {
        kernel: ground.image.release.clone(),
        suite: ground.image.suite.name().to_owned(),
        containerd: node.sh("containerd --version | cut -d ' ' -f 3")?.trim().to_owned(),
        agent: node.sh("/var/lib/ground/nodewhy-agent --version | cut -d ' ' -f 2")?.trim().to_owned(),
    };

    let injected = (fault.inject)(&mut node).with_context(|| format!("make the fault {}", fault.name))?;
    let mut truth = Truth::of(fault, injected, began_at, software);
    truth.stand_ins = vec!["kubelet: kubelet-standin".to_owned(), "the kubelet's making of pods: pods".to_owned()];
    let left = Instant::now();
    while left.elapsed() < fault.hold && !seen::all(fault, &truth, &watches) {
        sleep(Duration::from_millis(250));
    }
    truth.undone = node.clocks().ok();
    truth.undone_at = Timestamp::now();
    (fault.undo)(&mut node).with_context(|| format!("undo the fault {}", fault.name))?;
    sleep(AFTER);
    truth.ended_at = Timestamp::now();
    let agents = watches.into_iter().map(|(way, watch)| (way, watch.stop())).collect();
    // -r: raw. The kernel's own log, by another reader than the agent.
    let kmsg = node.sh("dmesg -r").ok().map(|text| text.lines().map(str::to_owned).collect());
    Ok(Evidence { truth, agents, kmsg })
}
