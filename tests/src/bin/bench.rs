//! `make bench`: the figures of docs/PERFORMANCE.md, measured on the built programs, beside their peer, in one run.
//!
//! Wall time on a shared machine is noisy, so costs are CPU time as the kernel accounts it (`/proc/PID/schedstat`,
//! nanoseconds) and ratios to Debian's prometheus-node-exporter, which runs beside with its matching collectors.
//! A figure that the project promises is asserted: the program ends with 1 when one is missed.

#![expect(clippy::disallowed_methods, reason = "a benchmark starts programs and reads clocks and files")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

const STARTS: usize = 40;
const SCRAPES: u32 = 300;
const IDLE: Duration = Duration::from_secs(15);

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<bool> {
    let folder = std::env::current_exe()?.parent().context("the benchmark has no folder")?.to_owned();
    let agent = folder.join("nodewhy-agent");
    let cli = folder.join("nodewhy");
    let mut table = Table::default();
    size(&agent, &mut table)?;
    starts(&agent, &mut table)?;
    scrapes(&agent, &mut table)?;
    first_line(&cli, &mut table)?;
    Ok(table.print())
}

/// One static file, of 8 MB at most.
fn size(agent: &Path, table: &mut Table) -> anyhow::Result<()> {
    let bytes = std::fs::read(agent).with_context(|| format!("cannot read {}", agent.display()))?;
    table.row("size of the agent, MB", bytes.len() as f64 / 1e6, None, Some(8.0));
    let dynamic = has_interpreter(&bytes).context("the agent is no 64-bit ELF file")?;
    table.row("the agent needs a dynamic loader (0: no)", f64::from(u8::from(dynamic)), None, Some(0.0));
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
fn starts(agent: &Path, table: &mut Table) -> anyhow::Result<()> {
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
    table.row("start to first answer, ms, median", median(&mut ours), Some(median(&mut peers)), Some(100.0));
    table.row("start to first answer, ms, p99", p99(&mut ours), Some(p99(&mut peers)), None);
    Ok(())
}

/// CPU of a scrape, CPU of a second in which nobody asks, resident memory.
fn scrapes(agent: &Path, table: &mut Table) -> anyhow::Result<()> {
    let (ours, peer) = (Agent::start(agent)?, Peer::start()?);
    std::thread::sleep(Duration::from_secs(2));
    let (mut our_costs, mut peer_costs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    // In turn, in batches: whatever else the machine does hits both alike.
    for _ in 0..10 {
        let our_cost = cpu_of(ours.child.id(), || ours.scrape(), SCRAPES / 10)?;
        let peer_cost = cpu_of(peer.child.id(), || peer.scrape(), SCRAPES / 10)?;
        ratios.push(our_cost / peer_cost);
        our_costs.push(our_cost);
        peer_costs.push(peer_cost);
    }
    table.row("CPU a scrape, ms, median", median(&mut our_costs), Some(median(&mut peer_costs)), None);
    table.row("CPU a scrape, ms, p99", p99(&mut our_costs), Some(p99(&mut peer_costs)), None);
    table.row("CPU a scrape, ratio to the peer", median(&mut ratios), Some(1.0), Some(1.0));
    let before = cpu_seconds(ours.child.id())?;
    std::thread::sleep(IDLE);
    let idle = (cpu_seconds(ours.child.id())? - before) / IDLE.as_secs_f64();
    table.row("CPU while nobody asks, % of a core", idle * 100.0, None, None);
    // The agent reads on its own cadence and the peer when it is asked: only this row compares all that they do.
    let before = (cpu_seconds(ours.child.id())?, cpu_seconds(peer.child.id())?);
    for _ in 0..IDLE.as_secs() {
        ours.scrape()?;
        peer.scrape()?;
        std::thread::sleep(Duration::from_secs(1));
    }
    let a_second = |now: f64, before: f64| (now - before) * 1e3 / IDLE.as_secs_f64();
    let ours_a_second = a_second(cpu_seconds(ours.child.id())?, before.0);
    let peers_a_second = a_second(cpu_seconds(peer.child.id())?, before.1);
    table.row("CPU a second, one scrape in it, ms", ours_a_second, Some(peers_a_second), None);
    table.row("resident memory, MiB", resident(ours.child.id())?, Some(resident(peer.child.id())?), None);
    Ok(())
}

/// `nodewhy up` in a pipe: from exec to the line that says what this machine is.
fn first_line(cli: &Path, table: &mut Table) -> anyhow::Result<()> {
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
    table.row("`nodewhy up`: what this machine is, s, median", median(&mut times), None, Some(1.0));
    Ok(())
}

struct Agent {
    child: Ended,
    socket: PathBuf,
    _folder: tempfile::TempDir,
}

impl Agent {
    fn start(program: &Path) -> anyhow::Result<Agent> {
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("agent.sock");
        let child = Command::new(program)
            .arg("--socket")
            .arg(&socket)
            .args(["--log", "error"])
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let agent = Agent { child: Ended(child), socket, _folder: folder };
        until_answers(|| UnixStream::connect(&agent.socket).ok().map(|stream| get(stream, "/healthz")))?;
        Ok(agent)
    }

    fn scrape(&self) -> anyhow::Result<usize> {
        get(UnixStream::connect(&self.socket)?, "/metrics")
    }
}

/// Debian's prometheus-node-exporter, with the collectors that match what the agent reads today.
struct Peer {
    child: Ended,
    address: SocketAddr,
}

impl Peer {
    fn start() -> anyhow::Result<Peer> {
        let address = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
        let child = Command::new("prometheus-node-exporter")
            .args(["--collector.disable-defaults", "--collector.pressure", "--collector.meminfo"])
            .args(["--collector.vmstat", "--log.level=error"])
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start prometheus-node-exporter (Debian package of that name)")?;
        let peer = Peer { child: Ended(child), address };
        until_answers(|| TcpStream::connect(peer.address).ok().map(|stream| get(stream, "/")))?;
        Ok(peer)
    }

    fn scrape(&self) -> anyhow::Result<usize> {
        get(TcpStream::connect(self.address)?, "/metrics")
    }
}

/// A process that is ended with its owner.
struct Ended(Child);

impl Ended {
    fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("bench: process {} could not be ended: {error}", self.0.id());
        }
    }
}

fn until_answers(mut ask: impl FnMut() -> Option<anyhow::Result<usize>>) -> anyhow::Result<()> {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(10) {
        if let Some(Ok(_)) = ask() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    bail!("no answer within 10 s of the start")
}

fn get(mut stream: impl Read + Write, path: &str) -> anyhow::Result<usize> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "{path} did not answer 200");
    Ok(answer.len())
}

/// CPU milliseconds that process `pid` spends on one `call`, as the mean of `times`.
fn cpu_of(pid: u32, call: impl Fn() -> anyhow::Result<usize>, times: u32) -> anyhow::Result<f64> {
    let before = cpu_seconds(pid)?;
    for _ in 0..times {
        call()?;
    }
    Ok((cpu_seconds(pid)? - before) * 1e3 / f64::from(times))
}

/// CPU time of all threads that live, in seconds: the first field of each thread's schedstat, in nanoseconds.
fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let mut nanoseconds = 0u64;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        nanoseconds += text.split_whitespace().next().context("empty schedstat")?.parse::<u64>()?;
    }
    Ok(nanoseconds as f64 / 1e9)
}

fn resident(pid: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<f64>()? / 1024.0)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn p99(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get((values.len() * 99 / 100).min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

#[derive(Default)]
struct Table {
    rows: Vec<(String, f64, Option<f64>, Option<f64>)>,
}

impl Table {
    fn row(&mut self, what: &str, ours: f64, peer: Option<f64>, limit: Option<f64>) {
        self.rows.push((what.to_owned(), ours, peer, limit));
    }

    /// Prints the table; whether every limit was kept.
    fn print(&self) -> bool {
        println!("| figure | nodewhy | node_exporter | limit | |");
        println!("| --- | ---: | ---: | ---: | --- |");
        let mut kept = true;
        for (what, ours, peer, limit) in &self.rows {
            let shown =
                |value: &Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.3}"));
            let verdict = match limit {
                Some(limit) if ours <= limit => "kept",
                Some(_) => "MISSED",
                None => "",
            };
            kept &= verdict != "MISSED";
            println!("| {what} | {ours:.3} | {} | {} | {verdict} |", shown(peer), shown(limit));
        }
        kept
    }
}
