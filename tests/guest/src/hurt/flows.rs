//! Connections and packets: what conntrack, port ranges and backlogs are filled with.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::Serialize;

use super::descriptors::raise_to_hard;
use super::end::{End, Pace};
use super::say;

/// So long a connection may take. A packet that was dropped is sent again after 1 s and 3 s.
const CONNECT_SECONDS: i64 = 5;

/// The first and the last of a range.
#[derive(Clone, Copy, Debug)]
struct Ports(u16, u16);

impl Ports {
    /// The next of the range, from its start again after its end.
    fn after(self, port: u16) -> u16 {
        if port < self.0 || port >= self.1 { self.0 } else { port + 1 }
    }
}

fn ports(text: &str) -> Result<Ports, String> {
    let parse = |part: &str| part.parse::<u16>().map_err(|error| format!("{part:?}: {error}"));
    let (first, last) = text.split_once('-').ok_or("write FIRST-LAST")?;
    let ports = Ports(parse(first)?, parse(last)?);
    if ports.0 == 0 || ports.0 > ports.1 { Err("write FIRST-LAST, 1-65535".to_owned()) } else { Ok(ports) }
}

fn any(port: u16, to: SocketAddr) -> SocketAddr {
    match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, port).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, port).into(),
    }
}

/// `flows`. Says `ready NUMBER WHY` (all that were asked for, or the error that the next one got).
#[derive(Debug, Args)]
pub(super) struct Flows {
    /// Where to; several are taken in turn.
    #[arg(long, required = true)]
    to: Vec<SocketAddr>,
    /// How many.
    #[arg(long)]
    count: usize,
    /// The own ports, FIRST-LAST, one after the other. The kernel's choice without it.
    #[arg(long, value_parser = ports)]
    from_ports: Option<Ports>,
}

impl Flows {
    pub(super) fn run(self, end: &End) -> anyhow::Result<()> {
        raise_to_hard()?;
        let (mut held, mut port) = (Vec::new(), 0);
        let mut why = "all that were asked for".to_owned();
        for to in self.to.iter().cycle().take(self.count) {
            if end.here()? {
                return Ok(());
            }
            port = self.from_ports.map_or(0, |ports| ports.after(port));
            match open(port, *to) {
                Ok(stream) => held.push(stream),
                Err(error) => {
                    why = format!("connect from port {port} to {to}: {error}");
                    break;
                }
            }
        }
        say(&format!("ready {} {why}", held.len()))?;
        end.wait()
    }
}

/// From this port (0: any).
fn open(port: u16, to: SocketAddr) -> io::Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // It bounds connect(2) too, which then says EINPROGRESS.
    setsockopt(&fd, sockopt::SendTimeout, &TimeVal::seconds(CONNECT_SECONDS))?;
    if port != 0 {
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        bind(fd.as_raw_fd(), &SockaddrStorage::from(any(port, to)))?;
    }
    connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(fd.into())
}

/// `udp`. After `ready`, each second one line of JSON with what was sent and refused since the start. Each packet has the
/// next port, so each is a flow of its own.
#[derive(Debug, Args)]
pub(super) struct Udp {
    /// Where to; several are taken in turn.
    #[arg(long, required = true)]
    to: Vec<SocketAddr>,
    /// Packets a second; 0: as many as it can.
    #[arg(long)]
    rate: u64,
    /// The own ports, FIRST-LAST.
    #[arg(long, value_parser = ports, default_value = "1024-65535")]
    from_ports: Ports,
}

#[derive(Debug, Default, Serialize)]
struct Packets {
    sent: u64,
    /// By the kernel, at once: EPERM is a packet that netfilter dropped, e.g. because the conntrack table is full.
    refused: u64,
    /// Ports that another had.
    ports_in_use: u64,
    last_error: Option<String>,
}

impl Udp {
    pub(super) fn run(self, end: &End) -> anyhow::Result<()> {
        ensure!(!self.to.is_empty(), "--to is missing");
        let (pace, mut told) = (Pace::new(self.rate), Instant::now());
        let (mut packets, mut port, mut tried) = (Packets::default(), 0, 0);
        for to in self.to.iter().cycle() {
            port = self.from_ports.after(port);
            packets.send(port, *to);
            tried += 1;
            if tried == 1 {
                say("ready")?;
            }
            if told.elapsed() >= Duration::from_secs(1) {
                told = Instant::now();
                say(&serde_json::to_string(&packets)?)?;
            }
            // A pace above a thousand a second is kept in bursts.
            let wait = pace.wait_after(tried);
            if (!wait.is_zero() || tried % 64 == 0) && end.within(wait)? {
                break;
            }
        }
        say(&serde_json::to_string(&packets).context("write JSON")?)
    }
}

impl Packets {
    fn send(&mut self, port: u16, to: SocketAddr) {
        let socket = match UdpSocket::bind(any(port, to)) {
            Ok(socket) => socket,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                self.ports_in_use += 1;
                return;
            }
            Err(error) => return self.refuse(&error),
        };
        match socket.send_to(b"hurt", to) {
            Ok(_) => self.sent += 1,
            Err(error) => self.refuse(&error),
        }
    }

    fn refuse(&mut self, error: &io::Error) {
        self.refused += 1;
        self.last_error = Some(error.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_go_round() {
        let range = ports("7-9").unwrap();
        let mut port = 0;
        let taken: Vec<u16> = std::iter::repeat_with(|| {
            port = range.after(port);
            port
        })
        .take(5)
        .collect();
        assert_eq!(taken, [7, 8, 9, 7, 8]);
        assert_eq!(ports("65535-65535").unwrap().after(65535), 65535);
        for wrong in ["", "7", "9-7", "0-5", "1-65536", "-"] {
            assert!(ports(wrong).is_err(), "{wrong}");
        }
    }
}
