//! Asks an HTTP server once a second and writes down how late each answer was: the other side of the comparison with
//! the agent's own ticks. It does no harm; it must itself not be late, so it is to be run locked in memory and with
//! a real-time priority.
//!
//! `scrape ADDRESS PATH FILE` goes on until FILE.stop exists, and then writes FILE: a line a tick, its due (seconds since
//! boot) and its delay in seconds. The rule is the agent's: a tick is served by the first answer that is whole at or after
//! it was due, if it was asked for no sooner than 250 ms before; its delay runs from its due to that answer. A tick that
//! no answer came for is as late as the end.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Context;
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::time::{ClockId, clock_gettime};

const SECOND: Duration = Duration::from_secs(1);
const ON_TIME: Duration = Duration::from_millis(250);
/// Prometheus' own scrape_timeout.
const GIVEN_UP: Duration = Duration::from_secs(10);

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, path, file] = arguments.as_slice() else {
        anyhow::bail!("usage: scrape ADDRESS PATH FILE");
    };
    let address: SocketAddr = address.parse().with_context(|| format!("the address {address}"))?;
    let stop = format!("{file}.stop");
    mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE).context("lock memory")?;
    let mut lines = String::with_capacity(1 << 20);
    let mut answer = Vec::with_capacity(4 << 20);
    println!("ready");
    let mut due = boot()?;
    while !std::path::Path::new(&stop).exists() {
        std::thread::sleep(due.saturating_sub(boot()?));
        let asked = boot()?;
        if ask(address, path, &mut answer).is_err() {
            // Asked again at once it would be a burst; the tick stays unserved.
            std::thread::sleep(Duration::from_millis(50));
            continue;
        }
        let whole = boot()?;
        // All that were due when it was asked for, or shortly after.
        while due <= whole && due <= asked + ON_TIME {
            lines += &format!("{:.3} {:.3}\n", due.as_secs_f64(), (whole - due).as_secs_f64());
            due += SECOND;
        }
    }
    let end = boot()?;
    while due <= end {
        lines += &format!("{:.3} {:.3}\n", due.as_secs_f64(), (end - due).as_secs_f64());
        due += SECOND;
    }
    std::fs::write(file, lines).with_context(|| format!("write {file}"))
}

/// Time since boot.
fn boot() -> anyhow::Result<Duration> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?))
}

fn ask(address: SocketAddr, path: &str, answer: &mut Vec<u8>) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, GIVEN_UP)?;
    stream.set_read_timeout(Some(GIVEN_UP))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    answer.clear();
    stream.read_to_end(answer)?;
    anyhow::ensure!(
        answer.starts_with(b"HTTP/1.") && answer.get(9..12) == Some(b"200"),
        "not answered with 200"
    );
    Ok(())
}
