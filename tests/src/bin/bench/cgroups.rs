//! The cgroups of 110 and of 250 pods with two containers each: what a tick of the collector costs.
//!
//! The tree is one of plain files: nothing may be made in the machine's own. What the kernel pays for writing each
//! file's text is not in these figures, and that is most of `memory.stat`.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use nodewhy_agent::collect::cgroups;
use nodewhy_agent::collector::{Collect, Running};
use nodewhy_agent::host::{Host, Places};
use nodewhy_agent::thresholds::Thresholds;
use nodewhy_clock::Clock;
use nodewhy_proto::Outcome;

use crate::measure::{in_turn, median, own};
use crate::table::Row;

/// A full round of the collector.
const ROUND: u32 = 12;
const HOT: [&str; 6] =
    ["memory.current", "memory.events", "cpu.stat", "cpu.pressure", "memory.pressure", "io.pressure"];

pub(crate) fn measure() -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for pods in [110, 250] {
        let folder = tempfile::tempdir()?;
        make(folder.path(), pods)?;
        let (clock, mover) = Clock::skippable();
        let host = Host::new(folder.path(), clock, Places::default());
        let mut running = cgroups::COLLECTOR.start();
        let every = Collect::every(&cgroups::COLLECTOR);
        let mut tick = || {
            mover.skip(every);
            look(running.as_mut(), &host)
        };
        // The first looks read every pod in full.
        for _ in 0..5 {
            tick()?;
        }
        let seen = tick()?;
        ensure!(seen == pods, "the agent saw {seen} of {pods} pods");
        let mut costs = Vec::new();
        let files = in_turn(
            5,
            || {
                let cost = own(ROUND, &mut tick)?.0 * 1e3;
                costs.push(cost);
                Ok(cost)
            },
            || Ok(own(1, || walk(&folder.path().join("sys/fs/cgroup/kubepods")))?.0 * 1e3),
        )?;
        let cost = median(&mut costs);
        rows.push(
            Row::new(format!("cgroups of {pods} pods, a tick, ms"), cost)
                .beside("six files of each, read", files.peer),
        );
        let share = cost / (every.as_secs_f64() * 1e3) * 100.0;
        rows.push(Row::new(self::share(pods), share));
    }
    Ok(rows)
}

/// The row's name.
pub(crate) fn share(pods: usize) -> String {
    format!("cgroups of {pods} pods, % of a core")
}

fn look(running: &mut dyn Running, host: &Host) -> anyhow::Result<usize> {
    let step = running.step(host, &Thresholds::default());
    ensure!(step.outcome == Outcome::Read, "cgroups: {:?}", step.outcome);
    let page = step.reading.context("no reading")?.page("/api/v1/pods").context("no page of pods")??;
    let pods = page.as_array().or_else(|| page.get("pods")?.as_array());
    Ok(pods.context("no list of pods")?.len())
}

/// Six files of every cgroup, read as most programs read them.
fn walk(folder: &Path) -> anyhow::Result<usize> {
    let mut bytes = 0;
    for file in HOT {
        bytes += fs::read_to_string(folder.join(file))?.len();
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            bytes += walk(&entry.path())?;
        }
    }
    Ok(bytes)
}

fn make(root: &Path, pods: usize) -> anyhow::Result<()> {
    let cgroup = root.join("sys/fs/cgroup");
    fs::create_dir_all(root.join("proc/1"))?;
    fs::write(
        root.join("proc/1/mountinfo"),
        "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n",
    )?;
    group(&cgroup)?;
    for name in ["kubepods", "kubepods/burstable", "kubepods/besteffort", "system.slice"] {
        group(&cgroup.join(name))?;
    }
    for pod in 0..pods {
        let class = if pod % 2 == 0 { "burstable" } else { "besteffort" };
        let folder = cgroup.join(format!("kubepods/{class}/pod{pod:08x}-2452-455f-917f-a0fb0b1e3d2c"));
        group(&folder)?;
        for container in 0..2 {
            group(&folder.join(format!("{pod:032x}{container:032x}")))?;
        }
    }
    Ok(())
}

/// A quiet group's files, as the kernel writes them.
fn group(folder: &Path) -> anyhow::Result<()> {
    let pressure = "some avg10=0.00 avg60=0.00 avg300=0.00 total=12345\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1234\n";
    let events = "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n";
    fs::create_dir_all(folder)?;
    for (file, text) in [
        ("memory.current", "52428800\n"),
        ("memory.max", "max\n"),
        ("memory.high", "max\n"),
        ("memory.low", "0\n"),
        ("memory.swap.current", "0\n"),
        ("memory.events", events),
        ("memory.events.local", events),
        ("memory.stat", "anon 20971520\nfile 20971520\ninactive_file 10485760\nactive_file 10485760\n"),
        ("cpu.stat", "usage_usec 1000000\nnr_periods 0\nnr_throttled 0\nthrottled_usec 0\n"),
        ("cpu.max", "max 100000\n"),
        ("pids.current", "4\n"),
        ("pids.max", "max\n"),
        ("pids.events", "max 0\n"),
        ("io.stat", "8:0 rbytes=1 wbytes=2 rios=1 wios=1 dbytes=0 dios=0\n"),
        ("cgroup.type", "domain\n"),
        ("cgroup.events", "populated 1\nfrozen 0\n"),
        ("cgroup.stat", "nr_descendants 1\nnr_dying_descendants 0\n"),
        ("cgroup.procs", "1\n"),
        ("cpu.pressure", pressure),
        ("memory.pressure", pressure),
        ("io.pressure", pressure),
    ] {
        fs::write(folder.join(file), text)?;
    }
    Ok(())
}
