//! One run: from the snapshot, through calm, fault and recovery, to the evidence.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use jiff::{SignedDuration, Timestamp};
use nix::fcntl::{Flock, FlockArg};
use nodewhy_proto::Outcome;

use crate::evidence::{Evidence, Software, Truth, Way};
use crate::fault::Fault;
use crate::image::{Image, Programs, Suite, module};
use crate::machine::Accelerator;
use crate::node::{Node, Payload};
use crate::ready::ready;
use crate::seen::all_seen;
use crate::watch::Watch;

/// Both agents have to be well for so long before the fault: it is the run's part in which nothing may be found.
const CALM: Duration = Duration::from_secs(3);
/// And have this long to become so.
const CALM_WITHIN: Duration = Duration::from_secs(60);
/// What is watched of the recovery.
const AFTER: Duration = Duration::from_secs(5);
/// Machines that may run at once, each on disks of its own.
const SLOTS: u32 = 8;

/// What every run shares.
#[derive(Clone, Debug)]
pub struct Ground {
    /// The image.
    pub image: Image,
    /// What executes it.
    pub accelerator: Accelerator,
    /// What comes onto the node.
    pub payload: Payload,
}

/// Disks that no other run uses meanwhile.
#[derive(Debug)]
pub struct Slot {
    folder: PathBuf,
    _lock: Flock<fs::File>,
}

impl Ground {
    /// Makes image and snapshot, or finds them made.
    ///
    /// # Errors
    /// A program is missing, or something can't be built: in words.
    pub fn make(suite: Suite) -> anyhow::Result<Ground> {
        crate::image::check_needed()?;
        let programs = Programs {
            guest: program("guest")?,
            kubelet: program("kubelet-standin")?,
            pods: program("pods")?,
        };
        let _one_at_a_time = lock(crate::image::cache().join("making.lock"), FlockArg::LockExclusive)?;
        let image = Image::make(suite, &programs)?;
        let accelerator = Accelerator::find(&image)?;
        let lockup = module(&image, "lockup", include_str!("../module/lockup.c"))?;
        let payload = Payload {
            agent: program("nodewhy-agent")?,
            hurt: program("hurt")?,
            scrape: program("scrape")?,
            lockup: Some(lockup),
        };
        ready(&image, accelerator)?;
        Ok(Ground { image, accelerator, payload })
    }

    /// Disks for one run.
    ///
    /// # Errors
    /// All are in use.
    pub fn slot(&self) -> anyhow::Result<Slot> {
        for number in 0..SLOTS {
            let folder = self.image.folder.join(format!("slot-{number}"));
            fs::create_dir_all(&folder)?;
            if let Ok(lock) = lock(folder.join("lock"), FlockArg::LockExclusiveNonblock) {
                return Ok(Slot { folder, _lock: lock });
            }
        }
        bail!("{SLOTS} machines of the proving ground run already")
    }

    /// A node from the snapshot, on these disks, without an agent.
    ///
    /// # Errors
    /// It does not start.
    pub fn node(&self, slot: &Slot) -> anyhow::Result<Node> {
        let disks = ready(&self.image, self.accelerator)?.copy(slot.folder.clone())?;
        Node::start(&self.image, self.accelerator, disks, &self.payload)
    }
}

fn lock(path: PathBuf, how: FlockArg) -> anyhow::Result<Flock<fs::File>> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let file = fs::File::create(&path)?;
    Flock::lock(file, how).map_err(|(_, error)| error).with_context(|| format!("lock {}", path.display()))
}

/// A program of ours as it was built for release: an emulated machine is slow enough.
fn program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let found = own.ancestors().map(|folder| folder.join("release").join(name)).find(|file| file.is_file());
    found.with_context(|| {
        format!("{name} is not built: cargo build --release -p nodewhy-agent -p nodewhy-guest --bins")
    })
}

/// Runs a fault.
///
/// # Errors
/// A part of the proving ground failed. What was not seen is no error: the evidence says it.
pub fn run(ground: &Ground, fault: &Fault) -> anyhow::Result<Evidence> {
    let slot = ground.slot()?;
    let began_at = Timestamp::now();
    // Before the node: its forwards end first, and remove their sockets.
    let sockets = tempfile::Builder::new().prefix("ground-").tempdir()?;
    let mut node = ground.node(&slot)?;
    let mut watches = BTreeMap::new();
    for way in Way::ALL {
        node.start_agent(way)?;
        let socket = sockets.path().join(way.folder());
        node.forward(way, &socket)?;
        watches.insert(way, Watch::start(&socket)?);
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
    truth.stand_ins =
        vec!["kubelet: kubelet-standin".to_owned(), "the kubelet's making of pods: pods".to_owned()];
    let left = Instant::now();
    while left.elapsed() < fault.hold && !watches.iter().all(|(way, watch)| seen(fault, &truth, *way, watch))
    {
        sleep(Duration::from_millis(250));
    }
    // A node that is too ill to tell its time says nothing of it.
    truth.undone = node.clocks().ok();
    truth.undone_at = Timestamp::now();
    (fault.undo)(&mut node).with_context(|| format!("undo the fault {}", fault.name))?;
    sleep(AFTER);
    truth.ended_at = Timestamp::now();
    let mut agents = BTreeMap::new();
    for (way, watch) in watches {
        agents.insert(way, watch.stop()?);
    }
    // The kernel's own log, by another reader than the agent.
    let kmsg = node.sh("dmesg --raw").ok().map(|text| text.lines().map(str::to_owned).collect());
    Ok(Evidence { truth, agents, kmsg })
}

/// Waits until both agents have read all that they can, and found nothing.
fn calm(watches: &BTreeMap<Way, Watch>) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut since: Option<Instant> = None;
    loop {
        let troubled: Vec<String> = watches.iter().filter_map(|(way, watch)| trouble(*way, watch)).collect();
        match since {
            Some(since) if troubled.is_empty() && since.elapsed() >= CALM => return Ok(()),
            Some(_) if troubled.is_empty() => {}
            _ => since = troubled.is_empty().then(Instant::now),
        }
        ensure!(
            began.elapsed() < CALM_WITHIN,
            "the node was not calm before the fault within {CALM_WITHIN:?}: {}",
            if troubled.is_empty() { "it had only just become so".to_owned() } else { troubled.join("; ") }
        );
        sleep(Duration::from_millis(200));
    }
}

/// What keeps an agent's node from being calm.
fn trouble(way: Way, watch: &Watch) -> Option<String> {
    watch.so_far(|story| {
        let name = way.folder();
        // An agent that fell silent is not calm: its last words are old.
        let recent = |received: Timestamp, within: i64| {
            Timestamp::now().duration_since(received) <= SignedDuration::from_secs(within)
        };
        let state = story.states.last().filter(|state| recent(state.received, 4));
        let Some(state) = state else { return Some(format!("{name}: no state in the last 4 s")) };
        for (collector, state) in &state.said.collectors {
            if !matches!(state.outcome, Outcome::Read | Outcome::Absent { .. }) {
                return Some(format!("{name}: {collector}: {:?}", state.outcome));
            }
        }
        let findings = story.findings.last().filter(|findings| recent(findings.received, 8));
        let Some(findings) = findings else { return Some(format!("{name}: no findings in the last 8 s")) };
        let active = findings.said.iter().find(|finding| finding.is_active())?;
        Some(format!("{name}: {}: {}", active.finding, active.summary))
    })
}

/// A fault that nothing shows yet is left in place for as long as it may.
fn seen(fault: &Fault, truth: &Truth, way: Way, watch: &Watch) -> bool {
    watch.so_far(|story| all_seen(fault, &truth.injected.since, way, story))
}
