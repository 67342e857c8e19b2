//! The agent and node_exporter as they run, and scrapes of them over a connection that is kept, as Prometheus keeps it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::measure::Ended;

/// node_exporter's collectors that read what the agent reads at its defaults.
const MATCHING: &[&str] = &[
    "conntrack",
    "cpu",
    "diskstats",
    "filefd",
    "filesystem",
    "loadavg",
    "meminfo",
    "netdev",
    "netstat",
    "pressure",
    "schedstat",
    "sockstat",
    "softnet",
    "stat",
    "timex",
    "vmstat",
];

pub(crate) struct Agent {
    pub(crate) child: Ended,
    socket: PathBuf,
    _folder: tempfile::TempDir,
}

impl Agent {
    /// At its defaults, but for its socket's place.
    pub(crate) fn start(program: &Path) -> anyhow::Result<Agent> {
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
        until_answers(|| agent.connect().ok().map(|mut kept| kept.get("/healthz")))?;
        Ok(agent)
    }

    pub(crate) fn connect(&self) -> anyhow::Result<Kept<UnixStream>> {
        Ok(Kept(UnixStream::connect(&self.socket)?))
    }
}

/// Debian's prometheus-node-exporter, with the collectors that match what the agent reads.
pub(crate) struct Peer {
    pub(crate) child: Ended,
    address: SocketAddr,
}

impl Peer {
    pub(crate) fn start() -> anyhow::Result<Peer> {
        let address = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
        let child = Command::new("prometheus-node-exporter")
            .arg("--collector.disable-defaults")
            .args(MATCHING.iter().map(|name| format!("--collector.{name}")))
            .arg("--log.level=error")
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start prometheus-node-exporter (Debian package of that name)")?;
        let peer = Peer { child: Ended(child), address };
        until_answers(|| peer.connect().ok().map(|mut kept| kept.get("/")))?;
        Ok(peer)
    }

    pub(crate) fn connect(&self) -> anyhow::Result<Kept<TcpStream>> {
        Ok(Kept(TcpStream::connect(self.address)?))
    }
}

/// A connection that is asked again and again.
pub(crate) struct Kept<S>(S);

impl<S: Read + Write> Kept<S> {
    pub(crate) fn scrape(&mut self) -> anyhow::Result<usize> {
        Ok(self.get("/metrics")?.len())
    }

    /// The body.
    pub(crate) fn get(&mut self, path: &str) -> anyhow::Result<Vec<u8>> {
        write!(self.0, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")?;
        let mut answer = Vec::with_capacity(128 * 1024);
        let mut buffer = [0u8; 32 * 1024];
        loop {
            let length = self.0.read(&mut buffer)?;
            ensure!(length > 0, "{path}: the answer ended early");
            answer.extend_from_slice(buffer.get(..length).unwrap_or_default());
            let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
            let (head, body) = answer.split_at(head + 4);
            let head = String::from_utf8_lossy(head).to_ascii_lowercase();
            ensure!(head.starts_with("http/1.1 200"), "{path} did not answer 200");
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
            let is_whole = match length {
                Some(length) => body.len() >= length.trim().parse::<usize>()?,
                // In chunks, of which the last one is empty.
                None => body.ends_with(b"\r\n0\r\n\r\n"),
            };
            if is_whole {
                return Ok(body.to_vec());
            }
        }
    }
}

fn until_answers(mut ask: impl FnMut() -> Option<anyhow::Result<Vec<u8>>>) -> anyhow::Result<()> {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(10) {
        if let Some(Ok(_)) = ask() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    bail!("no answer within 10 s of the start")
}
