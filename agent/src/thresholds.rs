//! The limits that this node's kubelet was configured with, each with where it comes from.
//!
//! In the kubelet's own order: its command line, then its configuration file with the drop-ins of `--config-dir`, then
//! its documented default. What is set in nodewhy itself ([`Overrides`]) goes before all of them.

mod config;
pub mod follow;
mod quantity;

use nodewhy_proto::Origin;
use serde::{Deserialize, Serialize};

use crate::collect::memory;
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

/// What `detect` holds readings against.
#[derive(Clone, Debug, PartialEq)]
pub struct Thresholds {
    /// Hard eviction threshold for `memory.available`, in bytes. A percentage in the kubelet's configuration is
    /// already taken of the node's memory. `None`: eviction on memory is switched off.
    pub memory_available_bytes: Option<Limit>,
    /// PSI `full avg10` of memory, in percent, above which the node thrashes.
    pub memory_full_percent: Limit,
    /// PSI `some avg60` of CPU, in percent, above which the node is saturated.
    pub cpu_some_percent: Limit,
    /// PSI `full avg10` of I/O, in percent, above which the disk holds the node up.
    pub io_full_percent: Limit,
    /// A CRI call that has not answered for this long, in seconds, is hung.
    pub runtime_hung_seconds: Limit,
    /// A CRI call of which the answer takes this long, in seconds, is slow.
    pub runtime_slow_seconds: Limit,
}

const fn heuristic(value: f64) -> Limit {
    Limit { value, origin: Origin::Heuristic }
}

impl Default for Thresholds {
    fn default() -> Thresholds {
        Thresholds {
            // kubelet: eviction/defaults_linux.go.
            memory_available_bytes: Some(Limit {
                value: 100.0 * 1024.0 * 1024.0,
                origin: Origin::DocumentedDefault,
            }),
            memory_full_percent: heuristic(20.0),
            cpu_some_percent: heuristic(60.0),
            io_full_percent: heuristic(20.0),
            runtime_hung_seconds: heuristic(10.0),
            runtime_slow_seconds: heuristic(5.0),
        }
    }
}

/// Limits that are set in nodewhy's own settings; `None` leaves what [`read`] finds. Each gets [`Origin::Setting`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Overrides {
    /// See [`Thresholds::memory_available_bytes`]; it cannot be switched off here.
    pub memory_available_bytes: Option<f64>,
    /// See [`Thresholds::memory_full_percent`].
    pub memory_full_percent: Option<f64>,
    /// See [`Thresholds::cpu_some_percent`].
    pub cpu_some_percent: Option<f64>,
    /// See [`Thresholds::io_full_percent`].
    pub io_full_percent: Option<f64>,
    /// See [`Thresholds::runtime_hung_seconds`].
    pub runtime_hung_seconds: Option<f64>,
    /// See [`Thresholds::runtime_slow_seconds`].
    pub runtime_slow_seconds: Option<f64>,
}

impl Overrides {
    /// The names of all of them.
    pub const NAMES: &[&str] = &[
        "memory_available_bytes",
        "memory_full_percent",
        "cpu_some_percent",
        "io_full_percent",
        "runtime_hung_seconds",
        "runtime_slow_seconds",
    ];

    /// Says which limit makes no sense: not a number, not above zero, a percentage above 100.
    pub(crate) fn check(&self) -> Result<(), String> {
        let percent = 100.0;
        for (name, value, most) in [
            ("memory_available_bytes", self.memory_available_bytes, f64::MAX),
            ("memory_full_percent", self.memory_full_percent, percent),
            ("cpu_some_percent", self.cpu_some_percent, percent),
            ("io_full_percent", self.io_full_percent, percent),
            ("runtime_hung_seconds", self.runtime_hung_seconds, f64::MAX),
            ("runtime_slow_seconds", self.runtime_slow_seconds, f64::MAX),
        ] {
            if let Some(value) = value.filter(|value| !(*value > 0.0 && *value <= most)) {
                let most = if most == percent { " and at most 100" } else { "" };
                return Err(format!("thresholds: {name} is {value}; it must be more than 0{most}"));
            }
        }
        Ok(())
    }

    /// These thresholds, with what is set here instead.
    #[must_use]
    pub fn over(&self, mut thresholds: Thresholds) -> Thresholds {
        let setting = |value| Limit { value, origin: Origin::Setting };
        if let Some(value) = self.memory_available_bytes {
            thresholds.memory_available_bytes = Some(setting(value));
        }
        for (value, place) in [
            (self.memory_full_percent, &mut thresholds.memory_full_percent),
            (self.cpu_some_percent, &mut thresholds.cpu_some_percent),
            (self.io_full_percent, &mut thresholds.io_full_percent),
            (self.runtime_hung_seconds, &mut thresholds.runtime_hung_seconds),
            (self.runtime_slow_seconds, &mut thresholds.runtime_slow_seconds),
        ] {
            if let Some(value) = value {
                *place = setting(value);
            }
        }
        thresholds
    }
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
