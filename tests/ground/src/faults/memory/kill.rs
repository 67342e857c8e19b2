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
    /// When that was written, by the kernel log's own clock.
    nanos: i64,
}

/// Waits for the kill whose `oom-kill:` line has all of these in it. The fault is as old as the kernel's line.
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
    let since = clocks(node, kill.nanos)?;
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
    Some(Kill { victim, killed, nanos: nanos(killed)? })
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
