//! OOM kills in the kernel log, as `dmesg` prints it: the proof, and the kernel's own time.

use std::time::Duration;

use anyhow::{Context, ensure};
use nodewhy_guest::channel::Clocks;

use crate::fault::Injected;
use crate::node::Node;

/// How long the emulated machine may take from the first page of a hog to the kill.
const WITHIN: Duration = Duration::from_secs(60);

/// The lines of one kill.
#[derive(Debug, PartialEq, Eq)]
struct Kill<'a> {
    /// `oom-kill:constraint=…`.
    victim: &'a str,
    /// `… Killed process …`.
    killed: &'a str,
    /// When the first such line, of whatever process, was written, by the kernel log's own clock.
    first_nanos: i64,
}

/// Waits for the kill whose `oom-kill:` line has all of these in it. The fault is as old as the first kill of its kind
/// in the kernel's log: a node that runs out of memory may kill others first, and what they show is its sign too.
pub(super) fn wait(node: &Node, wanted: &[&str]) -> anyhow::Result<Injected> {
    let mut log = String::new();
    let mut counted = 0;
    let what = format!("the kernel kills for want of memory, with {wanted:?} in its words");
    node.until(WITHIN, &what, |node| {
        // The counter costs no fork on a node without memory.
        let kills = kills(node)?;
        if kills > counted {
            counted = kills;
            log = node.sh("dmesg")?;
        }
        Ok(find(&log, wanted).is_some())
    })
    .with_context(|| format!("{counted} kills: {}", about(&log)))?;
    let kill = find(&log, wanted).context("the kill is gone from the log")?;
    let since = clocks(node, kill.first_nanos)?;
    Ok(Injected::since(since).proven("dmesg", kill.victim).proven("dmesg", kill.killed))
}

/// How many processes the kernel has killed for want of memory, since boot.
pub(super) fn kills(node: &Node) -> anyhow::Result<u64> {
    let vmstat = node.read("/proc/vmstat")?;
    let count = vmstat.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.context("/proc/vmstat has no oom_kill")?.parse().context("oom_kill of /proc/vmstat")
}

/// For an error: every line about a kill.
fn about(log: &str) -> String {
    let lines = log.lines().filter(|line| line.contains("oom-kill:") || line.contains("Killed process"));
    lines.collect::<Vec<_>>().join("\n")
}

fn find<'a>(log: &'a str, wanted: &[&str]) -> Option<Kill<'a>> {
    let mut lines = log.lines();
    let victim = lines
        .by_ref()
        .find(|line| line.contains("oom-kill:") && wanted.iter().all(|wanted| line.contains(wanted)))?;
    let (_, pid) = victim.rsplit_once(",pid=")?;
    let (pid, _) = pid.split_once(',')?;
    let wanted = format!("Killed process {pid} (");
    let killed = lines.find(|line| line.contains(&wanted))?;
    // `Out of memory` or `Memory cgroup out of memory`.
    let (_, kind) = killed.split_once("] ")?;
    let (kind, _) = kind.split_once(": Killed process ")?;
    let same = format!("] {kind}: Killed process ");
    let first = log.lines().find(|line| line.contains(&same))?;
    Some(Kill { victim, killed, first_nanos: nanos(first)? })
}

/// `[   59.652221] text`.
fn nanos(line: &str) -> Option<i64> {
    let (stamp, _) = line.strip_prefix('[')?.split_once(']')?;
    let (seconds, micros) = stamp.trim().split_once('.')?;
    let seconds: i64 = seconds.parse().ok()?;
    seconds.checked_mul(1_000_000)?.checked_add(micros.parse().ok()?)?.checked_mul(1000)
}

/// The kernel log has a clock of its own: a mark that is written into it now tells how far that is from the others.
fn clocks(node: &Node, nanos_then: i64) -> anyhow::Result<Clocks> {
    let now = node.write("/dev/kmsg", "ground: a mark\n")?;
    let log = node.sh("dmesg")?;
    let mark = log.lines().rfind(|line| line.ends_with("] ground: a mark"));
    let nanos_now = mark.and_then(nanos).context("the mark is not in the kernel log")?;
    let ago = nanos_now - nanos_then;
    ensure!(ago >= 0, "the kernel log's clock went back by {ago} ns");
    Ok(Clocks {
        unix_nanos: now.unix_nanos - ago,
        boot_nanos: now.boot_nanos - ago,
        monotonic_nanos: now.monotonic_nanos - ago,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // The lines that the kernel writes (mm/oom_kill.c), shortened, as two kills of one run.
    const LOG: &str = "\
[   31.050000] oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/kubepods.slice/a,task=tail,pid=812,uid=0
[   31.060000] Out of memory: Killed process 812 (tail) total-vm:51608kB, anon-rss:48568kB, file-rss:1528kB, shmem-rss:0kB, UID:0 pgtables:140kB oom_score_adj:1000
[   33.100000] oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/system.slice/kubelet.service,task=kubelet,pid=900,uid=0
[   33.200000] Out of memory: Killed process 900 (kubelet) total-vm:2051608kB, anon-rss:648568kB, file-rss:1528kB, shmem-rss:0kB, UID:0 pgtables:140kB oom_score_adj:0
";

    #[test]
    fn the_fault_is_as_old_as_the_first_kill_of_its_kind() {
        let kill = find(LOG, &["global_oom", "task=kubelet"]).unwrap();
        assert!(kill.killed.contains("process 900 (kubelet)") && kill.victim.contains("pid=900"));
        assert_eq!(kill.first_nanos, 31_060_000_000);
        assert_eq!(find(LOG, &["global_oom", "task=containerd"]), None);
        let (first, _) = LOG.split_once("[   33.1").unwrap();
        assert_eq!(find(first, &["global_oom", "task=kubelet"]), None);
    }
}
