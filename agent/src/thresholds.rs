//! The limits that this node's kubelet was configured with, each with where it comes from.
//!
//! In the kubelet's own order: its command line, then its configuration file with the drop-ins of `--config-dir`, then
//! its documented default. What is set in nodewhy itself ([`Overrides`]) goes before all of them.

mod config;
mod eviction;
pub mod follow;
mod quantity;

use std::collections::BTreeMap;

use nodewhy_proto::Origin;
use serde::{Deserialize, Serialize};

use crate::collect::{COLLECTORS, memory};
use crate::host::{Host, KubeletPlaces};

pub use self::eviction::{Eviction, Signal};
pub use self::quantity::Amount;

/// A limit and its origin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    /// In the unit of the field that holds it.
    pub value: f64,
    /// Where it comes from.
    pub origin: Origin,
}

/// A limit of ours, that nothing on the node tells: it stands beside the collector that needs it, in its `limits`, and
/// can be set in the table `[thresholds]` of the settings.
#[derive(Debug, PartialEq)]
pub struct Heuristic {
    /// Its name in the settings, with the unit: `memory_full_percent`.
    pub name: &'static str,
    /// What is abnormal above it, for docs and `--check-config`.
    pub about: &'static str,
    /// What it is unless it is set.
    pub value: f64,
}

impl Heuristic {
    /// No percentage is above 100.
    fn most(&self) -> f64 {
        if self.name.ends_with("_percent") { 100.0 } else { f64::MAX }
    }
}

/// What `detect` holds readings against.
#[derive(Clone, Debug, PartialEq)]
pub struct Thresholds {
    /// Hard eviction threshold for `memory.available`, in bytes. A percentage in the kubelet's configuration is
    /// already taken of the node's memory. `None`: eviction on memory is switched off.
    pub memory_available_bytes: Option<Limit>,
    /// For bytes of the file system of the kubelet's root folder. `None`, here and below: switched off.
    pub nodefs_available: Option<Eviction>,
    /// For inodes of it.
    pub nodefs_inodes_free: Option<Eviction>,
    /// For bytes of the file system of the runtime's images. The kubelet holds it against this limit also where it is
    /// the same as the nodefs.
    pub imagefs_available: Option<Eviction>,
    /// For inodes of it.
    pub imagefs_inodes_free: Option<Eviction>,
    /// For process ids; a percentage is of `min(pid_max, threads-max)`. By default there is none.
    pub pid_available: Option<Eviction>,
    /// Use of the imagefs above which the kubelet removes images, in percent. `None`: no kubelet, or 100.
    pub image_gc_high_percent: Option<Limit>,
    /// Processes that one pod may have (`podPidsLimit`). `None`: no limit.
    pub pod_pids_limit: Option<Limit>,
    /// Pods that this node may have (`maxPods`).
    pub max_pods: Option<Limit>,
    /// The heuristics that are set.
    pub set: Overrides,
}

impl Thresholds {
    /// A heuristic, as set or as it is.
    pub fn limit(&self, heuristic: &Heuristic) -> Limit {
        match self.set.value(heuristic.name) {
            Some(value) => Limit { value, origin: Origin::Setting },
            None => Limit { value: heuristic.value, origin: Origin::Heuristic },
        }
    }
}

impl Thresholds {
    /// Nothing of the kubelet is known: nothing is held against a guess.
    pub fn unknown() -> Thresholds {
        Thresholds {
            memory_available_bytes: None,
            nodefs_available: None,
            nodefs_inodes_free: None,
            imagefs_available: None,
            imagefs_inodes_free: None,
            pid_available: None,
            image_gc_high_percent: None,
            pod_pids_limit: None,
            max_pods: None,
            set: Overrides::default(),
        }
    }

    /// The hard eviction threshold of this signal; that of memory is always in bytes.
    pub fn eviction(&self, signal: Signal) -> Option<Eviction> {
        match signal {
            Signal::MemoryAvailable => {
                let limit = self.memory_available_bytes?;
                Some(Eviction { amount: Amount::Absolute(limit.value), origin: limit.origin })
            }
            Signal::NodefsAvailable => self.nodefs_available,
            Signal::NodefsInodesFree => self.nodefs_inodes_free,
            Signal::ImagefsAvailable => self.imagefs_available,
            Signal::ImagefsInodesFree => self.imagefs_inodes_free,
            Signal::PidAvailable => self.pid_available,
        }
    }
}

/// What a kubelet has that nobody configured (eviction/defaults_linux.go, apis/config/v1beta1/defaults.go).
impl Default for Thresholds {
    fn default() -> Thresholds {
        let default = |value| Some(Limit { value, origin: Origin::DocumentedDefault });
        Thresholds {
            memory_available_bytes: default(100.0 * 1024.0 * 1024.0),
            nodefs_available: Signal::NodefsAvailable.documented_default(),
            nodefs_inodes_free: Signal::NodefsInodesFree.documented_default(),
            imagefs_available: Signal::ImagefsAvailable.documented_default(),
            imagefs_inodes_free: Signal::ImagefsInodesFree.documented_default(),
            pid_available: Signal::PidAvailable.documented_default(),
            image_gc_high_percent: default(85.0),
            pod_pids_limit: None,
            max_pods: default(110.0),
            set: Overrides::default(),
        }
    }
}

/// The kubelet's own limit, which can be set here too; it cannot be switched off here.
const MEMORY_AVAILABLE: &str = "memory_available_bytes";

/// Limits that are set in nodewhy's own settings, by name. Each gets [`Origin::Setting`].
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Overrides(BTreeMap<String, f64>);

impl Overrides {
    /// The names of all that can be set.
    pub fn names() -> impl Iterator<Item = &'static str> + Clone {
        let heuristics = COLLECTORS.iter().flat_map(|collector| collector.limits());
        std::iter::once(MEMORY_AVAILABLE).chain(heuristics.map(|heuristic| heuristic.name))
    }

    /// What this one is set to.
    pub fn value(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    /// Says which limit makes no sense: not known, not a number, not above zero, a percentage above 100.
    pub(crate) fn check(&self) -> Result<(), String> {
        let heuristics = || COLLECTORS.iter().flat_map(|collector| collector.limits());
        for (name, value) in &self.0 {
            let most = match heuristics().find(|heuristic| heuristic.name == name) {
                Some(heuristic) => heuristic.most(),
                None if name == MEMORY_AVAILABLE => f64::MAX,
                None => return Err(format!("thresholds: {name} is not known")),
            };
            if !(*value > 0.0 && *value <= most) {
                let most = if most == f64::MAX { "" } else { " and at most 100" };
                return Err(format!("thresholds: {name} is {value}; it must be more than 0{most}"));
            }
        }
        Ok(())
    }

    /// These thresholds, with what is set here instead.
    #[must_use]
    pub fn over(&self, mut thresholds: Thresholds) -> Thresholds {
        if let Some(value) = self.value(MEMORY_AVAILABLE) {
            thresholds.memory_available_bytes = Some(Limit { value, origin: Origin::Setting });
        }
        thresholds.set = self.clone();
        thresholds
    }
}

impl<const N: usize> From<[(&str, f64); N]> for Overrides {
    fn from(set: [(&str, f64); N]) -> Overrides {
        Overrides(set.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }
}

/// For `--check-config`: each limit of ours with its value, as comments of TOML.
pub fn told(set: &Overrides) -> String {
    let heuristics = COLLECTORS.iter().flat_map(|collector| collector.limits());
    heuristics
        .map(|heuristic| {
            let (value, origin) = match set.value(heuristic.name) {
                Some(value) => (value, "set"),
                None => (heuristic.value, "nodewhy's own"),
            };
            format!("# limit: {} = {value} ({origin}): {}\n", heuristic.name, heuristic.about)
        })
        .collect()
}

/// What this node's kubelet was configured with, as far as it could be read.
#[derive(Clone, Debug, PartialEq)]
pub struct Configured {
    /// The limits.
    pub thresholds: Thresholds,
    /// Where it has its parts; `None`: no process of it is seen.
    pub places: Option<KubeletPlaces>,
    /// Whether its flags and files were read. Where they were not, the limits are the documented defaults.
    pub is_whole: bool,
    /// For people: what could not be read, and what follows from that; why a limit is off.
    pub notes: Vec<String>,
}

/// Reads the kubelet's command line and configuration. Searches /proc once.
pub fn read(host: &Host) -> Configured {
    let config = config::read(host);
    let mut notes = config.notes;
    let mut eviction = |signal: Signal| {
        config.eviction_hard.of(signal).unwrap_or_else(|why| {
            let what = if signal == Signal::MemoryAvailable { "memory_available_low" } else { signal.name() };
            notes.push(format!("{what} is off: {why}"));
            None
        })
    };
    let memory = eviction(Signal::MemoryAvailable);
    let mut thresholds = Thresholds {
        nodefs_available: eviction(Signal::NodefsAvailable),
        nodefs_inodes_free: eviction(Signal::NodefsInodesFree),
        imagefs_available: eviction(Signal::ImagefsAvailable),
        imagefs_inodes_free: eviction(Signal::ImagefsInodesFree),
        pid_available: eviction(Signal::PidAvailable),
        ..others(config.others)
    };
    match memory.map(|memory| memory_bytes(memory, host)) {
        Some(Ok(limit)) => thresholds.memory_available_bytes = Some(limit),
        Some(Err(why)) => notes.push(format!("memory_available_low is off: {why}")),
        // What is wrong with the amount is said above.
        None if config.eviction_hard.of(Signal::MemoryAvailable).is_err() => {}
        None => notes.push(format!("memory_available_low is off: {}", config.eviction_hard.why_off())),
    }
    Configured { thresholds, places: config.places, is_whole: config.is_whole, notes }
}

/// The limits that are no eviction, over those that nobody knows.
fn others(others: Option<config::Others>) -> Thresholds {
    let Some(others) = others else { return Thresholds::unknown() };
    let default = Thresholds::default();
    let told = |value: Option<f64>, default: Option<Limit>| match value {
        Some(value) => Some(Limit { value, origin: Origin::KubeletConfig }),
        None => default,
    };
    Thresholds {
        // 100 switches the collection off (pkg/kubelet/images/image_gc_manager.go).
        image_gc_high_percent: told(others.image_gc_high_percent, default.image_gc_high_percent)
            .filter(|limit| limit.value < 100.0),
        // -1 is no limit; 0 is taken for it too.
        pod_pids_limit: told(others.pod_pids_limit, default.pod_pids_limit).filter(|limit| limit.value > 0.0),
        max_pods: told(others.max_pods, default.max_pods),
        ..Thresholds::unknown()
    }
}

/// As bytes of this node.
fn memory_bytes(eviction: Eviction, host: &Host) -> Result<Limit, String> {
    if let Amount::Absolute(value) = eviction.amount {
        return Ok(Limit { value, origin: eviction.origin });
    }
    let why =
        |what: String| format!("memory.available is a percentage of a memory that cannot be read: {what}");
    let meminfo = host.read("/proc/meminfo").map_err(|error| why(error.to_string()))?;
    let total = memory::total_bytes(&meminfo).map_err(why)?;
    Ok(eviction.of(total as f64))
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    quantity::fuzz(bytes);
    config::fuzz(bytes);
    let signals = eviction::EvictionHard::Flag(crate::fuzz::text(bytes).into_owned());
    crate::fuzz::done(signals.of(Signal::MemoryAvailable));
}

#[cfg(test)]
mod tests;
