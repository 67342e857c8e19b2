//! Processors that are too few, or taken away; and a load that is none of theirs.

use std::time::Duration;

use anyhow::Context;
use nodewhy_proto::SubjectKind;

use crate::fault::{Fault, Injected, Sees, What};

/// The kubelet's cgroup, as systemd makes it.
const KUBELET_CGROUP: &str = "/sys/fs/cgroup/system.slice/kubelet.service";
/// Tasks that hang.
const BLOCKED: usize = 450;

/// A kubelet that may not run.
pub static KUBELET_THROTTLED: Fault = Fault {
    name: "kubelet-throttled",
    about: "kubelet.service may use 10 % of a processor (cpu.max), and has work for more",
    cause: "kubelet_cpu_throttled",
    subject: (SubjectKind::Kubelet, "kubelet"),
    sees: &[Sees::of("cgroups", What::Finding("kubelet_cpu_throttled"))],
    inject: |node| {
        // The stand-in has no work of its own: a busy process in its cgroup takes its share.
        node.hurt("busy", "", "cpu --threads 1")?;
        let busy = node.pid("hurt")?;
        node.write(&format!("{KUBELET_CGROUP}/cgroup.procs"), &busy.to_string())?;
        let since = node.write(&format!("{KUBELET_CGROUP}/cpu.max"), "10000 100000")?;
        let mut stat = String::new();
        node.until(Duration::from_secs(20), "nr_throttled is above a quarter of nr_periods", |node| {
            stat = node.read(&format!("{KUBELET_CGROUP}/cpu.stat"))?;
            let (periods, throttled) = (field(&stat, "nr_periods")?, field(&stat, "nr_throttled")?);
            Ok(periods >= 20 && throttled * 4 > periods)
        })?;
        Ok(Injected::since(since).proven("cpu.stat of kubelet.service", stat))
    },
    undo: |node| {
        node.write(&format!("{KUBELET_CGROUP}/cpu.max"), "max 100000")?;
        // It is not in its own unit's cgroup any more, so systemd would not find it.
        let pid = node.pid("hurt")?;
        node.guest()?.kill(pid, nix::libc::SIGKILL).map(drop).context("end the busy process")
    },
    hold: Duration::from_secs(60),
    ..Fault::USUAL
};

/// A node whose processors are all taken.
pub static SATURATED: Fault = Fault {
    name: "cpu-saturated",
    about: "16 busy threads on 2 processors",
    cause: "node_cpu_saturated",
    subject: (SubjectKind::Node, "ground"),
    sees: &[Sees::of("pressure", What::Finding("cpu_saturated"))],
    inject: |node| {
        let since = node.hurt("busy", "", "--seconds 300 cpu --threads 16")?;
        let mut pressure = String::new();
        node.until(Duration::from_secs(60), "cpu some avg10 is above 60", |node| {
            pressure = node.read("/proc/pressure/cpu")?;
            let avg10 = pressure.strip_prefix("some avg10=").and_then(|rest| rest.split_whitespace().next());
            Ok(avg10.context("there is no some avg10")?.parse::<f64>()? > 60.0)
        })?;
        Ok(Injected::since(since)
            .proven("/proc/pressure/cpu", pressure)
            .proven("/proc/loadavg", node.read("/proc/loadavg")?))
    },
    undo: |node| node.heal("busy"),
    // The average of 60 s has to rise, and the rule holds for 60 s more.
    hold: Duration::from_secs(150),
    ..Fault::USUAL
};

/// A load that no processor feels.
pub static BLOCKED_TASKS: Fault = Fault {
    name: "load-of-blocked-tasks",
    about: "450 processes are in D: each waits for fdatasync on a disk of its own kind, a suspended device-mapper device",
    cause: "disk_slow",
    subject: (SubjectKind::Node, "ground"),
    sees: &[
        Sees::of("pressure", What::Finding("io_stalled")),
        Sees::of("tasks", What::Finding("load_from_blocked_tasks")),
    ],
    inject: |node| {
        node.sh("modprobe brd rd_nr=1 rd_size=32768
             echo \"0 $(blockdev --getsz /dev/ram0) linear /dev/ram0 0\" | dmsetup create blocked
             mkfs.ext4 -q -O ^has_journal /dev/mapper/blocked
             mkdir -p /run/blocked
             mount /dev/mapper/blocked /run/blocked")?;
        // Not frozen and not flushed: each waits for its own I/O. Suspended before they come, or 450 writers would keep
        // the processors busy until then.
        let since = node.clocks()?;
        node.sh("dmsetup suspend --nolockfs --noflush blocked")?;
        let blocked = format!("--seconds 300 blocked --count {BLOCKED} --dir /run/blocked --ready-first");
        node.hurt("blocked", "", &blocked)?;
        let mut states = String::new();
        node.until(Duration::from_secs(30), "most of the 450 are in D", |node| {
            states =
                node.sh("cat /proc/[0-9]*/stat 2>/dev/null | sed 's/.*) \\(.\\) .*/\\1/' | sort | uniq -c")?;
            Ok(in_d(&states)? * 10 >= BLOCKED * 9)
        })?;
        Ok(Injected::since(since)
            .proven("states in /proc/*/stat", states)
            .proven("/proc/loadavg", node.read("/proc/loadavg")?))
    },
    undo: |node| {
        node.sh("dmsetup resume blocked")?;
        node.heal("blocked")?;
        node.until(Duration::from_secs(30), "the disk is not in use any more", |node| {
            Ok(node.output("umount /run/blocked")?.code == 0)
        })?;
        node.sh("dmsetup remove blocked; rmmod brd").map(drop)
    },
    hold: Duration::from_secs(60),
    ..Fault::USUAL
};

/// The line `  450 D`.
fn in_d(states: &str) -> anyhow::Result<usize> {
    let line = states.lines().find_map(|line| line.trim().strip_suffix(" D"));
    line.map_or(Ok(0), |count| count.trim().parse().with_context(|| format!("count states: {states}")))
}

fn field(stat: &str, name: &str) -> anyhow::Result<u64> {
    let value = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value
        .with_context(|| format!("cpu.stat has no {name}"))?
        .parse()
        .with_context(|| format!("{name} of cpu.stat"))
}
