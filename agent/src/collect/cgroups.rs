//! Control groups: the kubelet's tree of pods, and the system's groups beside it
//! (Documentation/admin-guide/cgroup-v2.rst; v1 where the node has it).
//!
//! A limit looks like a sick node from within: what is throttled, frozen, out of process ids or at its memory limit is
//! told here, with the group whose limit it is. Every 5 s, and at once when something below kubepods is killed for want
//! of memory (`memory.events` of the parent tells of all below it).

mod detect;
mod group;
mod lately;
mod metrics;
mod names;
mod parse;
mod psi;
mod reading;
mod source;
mod tree;

use std::time::Duration;

pub use group::{Group, Memory, Pids};
pub use lately::{Lately, Share};
pub use parse::{Cpu, Io, Max, MemoryEvents, MemoryStat, Quota};
pub use psi::{Measured, Pressure};
pub use reading::{
    AtLimit, Churn, Count, Dying, Kills, Level, Listed, PodEntry, Program, Ranked, Reading, Unit,
};
pub use source::Source;
pub use tree::{Container, Detail, Qos};

use crate::collector::{Collector, Page};

/// Groups of pods and of the system.
pub static COLLECTOR: Collector<Source, Reading> = Collector {
    name: "cgroups",
    every: Duration::from_secs(5),
    deadline: Duration::from_secs(5),
    remembers: true,
    open: source::open,
    read: source::read,
    wake: source::wake,
    summary: reading::summary,
    families: metrics::FAMILIES,
    metrics: metrics::metrics,
    limits: detect::LIMITS,
    detect: detect::detect,
    pages: &[Page {
        path: "/api/v1/pods",
        about: "Every pod of the node with its containers: name, class, memory, CPU, throttling, pressure, processes, \
                I/O, by the kubelet's tree of cgroups. Memory at each tick, the rest within a minute.",
        json: reading::pods,
    }],
    asks: &[],
};

/// Every parser of this collector, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    use crate::fuzz::{done, text};
    let text = text(bytes);
    done(parse::number(&text));
    done(parse::max(&text));
    done(parse::limit_v1(&text));
    done(parse::memory_events(&text));
    done((parse::memory_stat(&text, false), parse::memory_stat(&text, true)));
    done(parse::cpu_stat(&text));
    done(parse::cpu_max(&text));
    done(parse::cfs(&text, &text));
    done(parse::pids_events(&text));
    done(parse::cgroup_events(&text));
    done(parse::freezer_state(&text));
    done(parse::cgroup_stat(&text));
    done(parse::io_stat(&text));
    done(parse::blkio(&text));
    done(parse::controllers(&text));
    done(crate::whose::place(&text));
}

#[cfg(test)]
mod tests;
