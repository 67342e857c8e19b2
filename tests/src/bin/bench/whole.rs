//! The programs as they are shipped: size, start, what the agent costs while it runs.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::measure::{Ended, cpu_of, cpu_seconds, entries, in_turn, mebibytes, median, p99};
use crate::programs::{Agent, Peer};
use crate::table::{Row, Table};

pub(crate) const IDLE_CPU: &str = "CPU while nobody asks, % of a core";
const STARTS: usize = 40;
const SCRAPES: u32 = 300;
const IDLE: Duration = Duration::from_secs(60);
/// First looks, which read all there is, are over.
const SETTLED: Duration = Duration::from_secs(12);

/// One static file, of 8 MB at most.
pub(crate) fn size(agent: &Path, table: &mut Table) -> anyhow::Result<()> {
    let bytes = std::fs::read(agent).with_context(|| format!("cannot read {}", agent.display()))?;
    table.put(Row::new("size of the agent, MB", bytes.len() as f64 / 1e6).at_most(8.0));
    let dynamic = has_interpreter(&bytes).context("the agent is no 64-bit ELF file")?;
    table
        .put(Row::new("the agent needs a dynamic loader (0: no)", f64::from(u8::from(dynamic))).at_most(0.0));
    Ok(())
}

/// Whether an ELF file names a program interpreter (a PT_INTERP header), as everything linked dynamically does.
fn has_interpreter(elf: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, size: usize| -> Option<usize> {
        let bytes = elf.get(at..at + size)?;
        bytes
            .iter()
            .rev()
            .try_fold(0usize, |value, byte| value.checked_mul(256)?.checked_add(usize::from(*byte)))
    };
    // The class byte says 64 bits; then the headers' place, the size of one, and how many (elf(5)).
    if elf.get(..5)? != b"\x7fELF\x02" {
        return None;
    }
    let (first, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    let mut kinds = (0..count).map(|index| number(first + index * size, 4));
    Some(kinds.any(|kind| kind == usize::try_from(PT_INTERP).ok()))
}

/// From exec to the first answer on the socket.
pub(crate) fn starts(agent: &Path, table: &mut Table) -> anyhow::Result<()> {
    const PEER: &str = "node_exporter";
    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let began = Instant::now();
        let running = Agent::start(agent)?;
        ours.push(began.elapsed().as_secs_f64() * 1e3);
        drop(running);
        let began = Instant::now();
        let running = Peer::start()?;
        peers.push(began.elapsed().as_secs_f64() * 1e3);
        drop(running);
    }
    let (our, their) = (median(&mut ours), median(&mut peers));
    table.put(Row::new("start to first answer, ms, median", our).beside(PEER, their).at_most(100.0));
    table.put(Row::new("start to first answer, ms, p99", p99(&mut ours)).beside(PEER, p99(&mut peers)));
    Ok(())
}

/// CPU of a scrape, CPU of a second in which nobody asks, memory.
pub(crate) fn scrapes(agent: &Path, table: &mut Table) -> anyhow::Result<()> {
    const PEER: &str = "node_exporter";
    let (ours, peer) = (Agent::start(agent)?, Peer::start()?);
    let (our_id, peer_id) = (ours.child.id(), peer.child.id());
    std::thread::sleep(SETTLED);
    let before = cpu_seconds(our_id)?;
    std::thread::sleep(IDLE);
    let idle = (cpu_seconds(our_id)? - before) / IDLE.as_secs_f64();
    table.put(Row::new(IDLE_CPU, idle * 100.0).at_most(0.4));
    let (mut kept, mut peers) = (ours.connect()?, peer.connect()?);
    // In batches; what the agent reads on its own meanwhile is taken off.
    let batch = SCRAPES / 10;
    let mut costs = Vec::new();
    let pair = in_turn(
        10,
        || {
            let began = Instant::now();
            let cost = cpu_of(our_id, || kept.scrape(), batch)?;
            let own = idle * began.elapsed().as_secs_f64() * 1e3 / f64::from(batch);
            costs.push(cost - own);
            Ok(cost - own)
        },
        || cpu_of(peer_id, || peers.scrape(), batch),
    )?;
    table.put(Row::new("CPU a scrape, ms, median", pair.ours).beside(PEER, pair.peer).at_most(0.9));
    table.put(Row::new("CPU a scrape, ms, p99", p99(&mut costs)));
    table.put(Row::new("CPU a scrape, ratio", pair.ratio).at_most(1.0 / 3.0));
    let text = String::from_utf8(kept.get("/metrics")?)?;
    let theirs = String::from_utf8_lossy(&peers.get("/metrics")?).into_owned();
    let series = |text: &str| text.lines().filter(|line| !line.starts_with('#')).count() as f64;
    table.put(Row::new("series", series(&text)).beside(PEER, series(&theirs)));
    table.put(Row::new("a scrape, KB", text.len() as f64 / 1e3).beside(PEER, theirs.len() as f64 / 1e3));
    // The agent reads on its own cadence and the peer when it is asked: only this row compares all that they do.
    let before = (cpu_seconds(our_id)?, cpu_seconds(peer_id)?);
    let began = Instant::now();
    for _ in 0..15 {
        kept.scrape()?;
        peers.scrape()?;
        std::thread::sleep(Duration::from_secs(1));
    }
    let seconds = began.elapsed().as_secs_f64();
    let a_second =
        |id, before: f64| -> anyhow::Result<f64> { Ok((cpu_seconds(id)? - before) * 1e3 / seconds) };
    let (our, their) = (a_second(our_id, before.0)?, a_second(peer_id, before.1)?);
    table.put(Row::new("CPU a second, one scrape in it, ms", our).beside(PEER, their));
    let resident = |id| mebibytes(id, "VmRSS");
    table.put(
        Row::new("resident memory, MiB", resident(our_id)?).beside(PEER, resident(peer_id)?).at_most(10.0),
    );
    table.put(Row::new("of it the program's own pages, MiB", mebibytes(our_id, "RssFile")?));
    table.put(Row::new("threads", entries(format!("/proc/{our_id}/task"))?));
    table.put(Row::new("open descriptors", entries(format!("/proc/{our_id}/fd"))?));
    Ok(())
}

/// `nodewhy up` in a pipe: from exec to the line that says what this machine is.
pub(crate) fn first_line(cli: &Path, table: &mut Table) -> anyhow::Result<()> {
    let mut times = Vec::new();
    for _ in 0..5 {
        let folder = tempfile::tempdir()?;
        let began = Instant::now();
        let child = Command::new(cli)
            .args(["up", "--state-dir"])
            .arg(folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", cli.display()))?;
        let mut child = Ended(child);
        let out = child.0.stdout.take().context("no pipe")?;
        let mut lines = BufReader::new(out).lines();
        let says = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("this machine: ")));
        ensure!(says.is_some(), "`nodewhy up` ended without a word about this machine");
        times.push(began.elapsed().as_secs_f64());
    }
    table.put(Row::new("`nodewhy up`: what this machine is, s, median", median(&mut times)).at_most(1.0));
    Ok(())
}
