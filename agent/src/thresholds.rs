//! The limits that this node's kubelet was configured with, each with where it comes from.
//!
//! In the kubelet's own order: its command line, then its configuration file with the drop-ins of `--config-dir`, then
//! its documented default. What is set in nodewhy itself ([`Overrides`]) goes before all of them.

mod config;
pub mod follow;
mod quantity;

use std::collections::BTreeMap;

use nodewhy_proto::Origin;
use serde::{Deserialize, Serialize};

use crate::collect::{COLLECTORS, memory};
use crate::host::{Host, KubeletPlaces};
use crate::thresholds::quantity::Amount;

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

impl Default for Thresholds {
    fn default() -> Thresholds {
        Thresholds {
            // kubelet: eviction/defaults_linux.go.
            memory_available_bytes: Some(Limit {
                value: 100.0 * 1024.0 * 1024.0,
                origin: Origin::DocumentedDefault,
            }),
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
    let memory_available_bytes = match config.memory_available {
        config::MemoryAvailable::Default => Thresholds::default().memory_available_bytes,
        config::MemoryAvailable::Off { why } => {
            notes.push(format!("memory_available_low is off: {why}"));
            None
        }
        config::MemoryAvailable::Set { text, origin } => match limit(&text, host) {
            Ok(value) => value.map(|value| Limit { value, origin }),
            Err(why) => {
                notes.push(format!("memory_available_low is off: {why}"));
                None
            }
        },
    };
    Configured {
        thresholds: Thresholds { memory_available_bytes, ..Thresholds::default() },
        places: config.places,
        is_whole: config.is_whole,
        notes,
    }
}

/// `100Mi` or `5%` as bytes of this node. `None`: the kubelet ignores 0% and 100%.
fn limit(text: &str, host: &Host) -> Result<Option<f64>, String> {
    match quantity::amount(text)? {
        Amount::Absolute(bytes) => Ok(Some(bytes)),
        Amount::Percent(percent) if percent == 0.0 || percent == 100.0 => Ok(None),
        Amount::Percent(percent) => {
            let why =
                |what: String| format!("memory.available is {text} of a memory that cannot be read: {what}");
            let meminfo = host.read("/proc/meminfo").map_err(|error| why(error.to_string()))?;
            let total = memory::total_bytes(&meminfo).map_err(why)?;
            Ok(Some(total as f64 * percent / 100.0))
        }
    }
}

#[cfg(test)]
mod tests;
