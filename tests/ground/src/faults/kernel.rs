//! Faults of the kernel: tasks that hang, a processor that is locked up, and all that ends a boot.

use std::time::Duration;

use nodewhy_guest::channel::Clocks;
use nodewhy_proto::SubjectKind;

use super::disk::IN_D;
use crate::fault::{Fault, Injected, Sees, What};
use crate::machine::RAMOOPS_ADDRESS;
use crate::node::Node;

const NODE: (SubjectKind, &str) = (SubjectKind::Node, "ground");
/// The module's files: see `module/lockup.c`.
const SPIN: &str = "/sys/module/lockup/parameters/spin";
const STUCK: &str = "/sys/module/lockup/parameters/stuck";
const STOP: &str = "/sys/module/lockup/parameters/stop";
const THRESHOLD: &str = "/proc/sys/kernel/watchdog_thresh";
const HUNG_AFTER: &str = "/proc/sys/kernel/hung_task_timeout_secs";
const STALL_AFTER: &str = "/sys/module/rcupdate/parameters/rcu_cpu_stall_timeout";
/// An emulated machine boots within this.
const BOOT: Duration = Duration::from_secs(150);

/// Tasks that wait in the kernel, for nothing that is on a disk.
pub static HUNG_TASKS: Fault = Fault {
    name: "hung-tasks",
    about: "a kernel module leaves 50 threads in uninterruptible sleep, with no I/O in flight: the kernel reports hung tasks (after 10 s \
            instead of 120)",
    cause: "kernel_regression_hang",
    subject: NODE,
    sees: &[Sees::of("oom", What::KernelMessage("hung_task"))],
    inject: |node| {
        node.write(HUNG_AFTER, "10")?;
        node.sh("insmod /var/lib/ground/lockup.ko")?;
        let since = node.write(STUCK, "50")?;
        Ok(Injected::since(since)
            .proven("tasks in D", node.sh(IN_D)?)
            .proven("/proc/loadavg", node.read("/proc/loadavg")?)
            .proven("/sys/block/vda/inflight", node.read("/sys/block/vda/inflight")?))
    },
    undo: |node| {
        node.write(STOP, "Y")?;
        node.write(HUNG_AFTER, "120").map(drop)
    },
    hold: Duration::from_secs(40),
    ..Fault::USUAL
};

/// A processor that runs nothing else.
pub static SOFT_LOCKUP: Fault = Fault {
    name: "soft-lockup",
    about: "a kernel module spins on one of two processors with preemption off: the watchdog reports a soft lockup (after 8 s instead \
            of 20) and RCU a stall (after 10 s instead of 21)",
    cause: "soft_lockup_rcu",
    subject: NODE,
    sees: &[
        Sees::of("oom", What::KernelMessage("soft_lockup")),
        Sees::of("oom", What::KernelMessage("rcu_stall")),
    ],
    inject: |node| {
        node.write(THRESHOLD, "4")?;
        node.write(STALL_AFTER, "10")?;
        // The channel stays off the processor that is locked up: a real-time task that is woken there would wait.
        node.sh("insmod /var/lib/ground/lockup.ko; taskset -a -c -p 0 $(pgrep -x guest)")?;
        let since = node.write(SPIN, "60")?;
        std::thread::sleep(Duration::from_secs(3));
        Ok(Injected::since(since)
            .proven("ps of the thread", node.sh("ps -C spin -o pid,stat,psr,time,comm")?))
    },
    undo: |node| {
        node.write(STOP, "Y")?;
        node.write(STALL_AFTER, "21")?;
        node.write(THRESHOLD, "10").map(drop)
    },
    hold: Duration::from_secs(40),
    ..Fault::USUAL
};

/// A panic whose words are kept.
pub static PANIC_WITH_PSTORE: Fault = Fault {
    name: "panic-pstore",
    about: "the kernel panics (sysrq c) and reboots after 3 s; ramoops keeps its last words in memory that a reset does not clear",
    cause: "panic_or_reboot",
    subject: NODE,
    sees: &[Sees::of("agent", What::Rebooted)],
    inject: |node| {
        node.sh(&ramoops())?;
        let (since, proof) = panic(node)?;
        node.sh(&ramoops())?;
        let kept = node.sh("ls -la /sys/fs/pstore; tail -n 40 /sys/fs/pstore/dmesg-ramoops-0")?;
        Ok(Injected::since(since).proven("boot ids", proof).proven("/sys/fs/pstore", kept))
    },
    undo: |_| Ok(()),
    hold: Duration::from_secs(10),
    ..Fault::USUAL
};

/// A panic of which nothing is kept.
pub static PANIC: Fault = Fault {
    name: "panic",
    about: "the kernel panics (sysrq c) and reboots after 3 s; nothing keeps its last words",
    cause: "panic_or_reboot",
    subject: NODE,
    sees: &[Sees::of("agent", What::Rebooted)],
    inject: |node| {
        let (since, proof) = panic(node)?;
        Ok(Injected::since(since).proven("boot ids", proof).proven("what the node has of it", traces(node)?))
    },
    undo: |_| Ok(()),
    hold: Duration::from_secs(10),
    ..Fault::USUAL
};

/// The plug is pulled.
pub static POWER_CUT: Fault = Fault {
    name: "power-cut",
    about: "the machine is switched off with all that it had not written to its disks, and switched on again 5 s later",
    cause: "panic_or_reboot",
    subject: NODE,
    sees: &[Sees::of("agent", What::Rebooted)],
    inject: |node| {
        node.settle()?;
        let before = node.boot_id()?;
        let since = node.clocks()?;
        node.power_cut()?;
        std::thread::sleep(Duration::from_secs(5));
        node.power_on()?;
        let proof = format!("{before} -> {}", node.boot_id()?);
        node.resume()?;
        Ok(Injected::since(since).proven("boot ids", proof).proven("what the node has of it", traces(node)?))
    },
    undo: |_| Ok(()),
    hold: Duration::from_secs(10),
    each_time: true,
    ..Fault::USUAL
};

/// An orderly reboot.
pub static REBOOT: Fault = Fault {
    name: "reboot",
    about: "the node's pods are removed, as a drain does, and it is rebooted by systemctl",
    cause: "panic_or_reboot",
    subject: NODE,
    sees: &[Sees::of("agent", What::Rebooted)],
    inject: |node| {
        // A program that is its namespace's first ignores SIGTERM: its scope would be waited for, for 90 s.
        node.sh("for pod in web batch database; do /usr/lib/ground/pods remove $pod shop; done")?;
        node.settle()?;
        let before = node.boot_id()?;
        let since = node.clocks()?;
        // The channel's server may be stopped before it answers: the new boot is the proof.
        let asked =
            node.guest()?.run_for(&["systemctl", "--no-block", "reboot"], b"", Duration::from_secs(10));
        if let Ok(output) = asked {
            output.text().map_err(anyhow::Error::msg)?;
        }
        node.rebooted(&before, BOOT)?;
        let proof = format!("{before} -> {}", node.boot_id()?);
        node.resume()?;
        Ok(Injected::since(since).proven("boot ids", proof).proven("what the node has of it", traces(node)?))
    },
    undo: |_| Ok(()),
    hold: Duration::from_secs(10),
    ..Fault::USUAL
};

/// Makes pstore keep its records in the memory that `mem=` hides from the kernel.
fn ramoops() -> String {
    format!(
        "modprobe ramoops mem_address={RAMOOPS_ADDRESS:#x} mem_size=0x200000 record_size=0x20000 console_size=0x40000 ecc=1"
    )
}

/// Panics, and waits until the node is up again: the clocks just before, and the boot ids.
fn panic(node: &mut Node) -> anyhow::Result<(Clocks, String)> {
    node.settle()?;
    let before = node.boot_id()?;
    let since = node.clocks()?;
    // There can be no answer to this. Whoever begins a conversation ends what is under way: not before it was done.
    let client = node.guest()?.clone();
    let crash = std::thread::spawn(move || client.write("/proc/sysrq-trigger", 0o200, b"c"));
    std::thread::sleep(Duration::from_secs(2));
    node.rebooted(&before, BOOT)?;
    anyhow::ensure!(crash.join().is_ok_and(|written| written.is_err()), "the kernel did not panic");
    let proof = format!("{before} -> {}", node.boot_id()?);
    node.resume()?;
    Ok((since, proof))
}

/// What a node knows of how its last boot ended, where nothing kept the kernel's words.
fn traces(node: &Node) -> anyhow::Result<String> {
    node.sh(
        "echo '# the journal of the boot before, its end'; journalctl -b -1 -n 4 --no-pager -o short-precise || true; \
         echo '# the kernel on file systems'; dmesg | grep -E 'EXT4-fs.*(recovery|orphan|mounted)|pstore' || true; \
         echo '# the shutdown in wtmp'; last -x -n 4 2>/dev/null || true; \
         echo '# pstore'; ls /sys/fs/pstore /var/lib/systemd/pstore",
    )
}
