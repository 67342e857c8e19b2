//! A server, of one of several kinds.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::descriptors::raise_to_hard;
use super::end::End;
use super::say;

/// A thread for each connection that is answered: small ones. For thousands of connections take `--silent`, which has none.
const STACK_BYTES: usize = 128 << 10;
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nok\n";

/// `serve`. Echoes without an option. Says `ready ADDRESS`: where that of the command line has port 0, the kernel chose.
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Where it listens.
    address: SocketAddr,
    /// Accepts, and never answers.
    #[arg(long, conflicts_with = "slow_ms")]
    silent: bool,
    /// Answers each HTTP request with 200 after so long.
    #[arg(long, conflicts_with = "udp")]
    slow_ms: Option<u64>,
    /// UDP, not TCP.
    #[arg(long)]
    udp: bool,
}

impl Serve {
    pub(super) fn run(self, end: &End) -> anyhow::Result<()> {
        raise_to_hard()?;
        let words = || format!("listen on {}", self.address);
        let address = if self.udp {
            let socket = UdpSocket::bind(self.address).with_context(words)?;
            let address = socket.local_addr()?;
            thread::Builder::new().spawn(move || packets(&socket, self.silent)).context("make a thread")?;
            address
        } else {
            let listener = TcpListener::bind(self.address).with_context(words)?;
            let address = listener.local_addr()?;
            let slow = self.slow_ms.map(Duration::from_millis);
            thread::Builder::new()
                .spawn(move || connections(&listener, self.silent, slow))
                .context("make a thread")?;
            address
        };
        say(&format!("ready {address}"))?;
        end.wait()
    }
}

fn packets(socket: &UdpSocket, silent: bool) {
    let mut buffer = [0; 65536];
    loop {
        // An error here is the other side's, told by ICMP: the next packet is another's.
        if let Ok((length, from)) = socket.recv_from(&mut buffer)
            && !silent
            && let Some(heard) = buffer.get(..length)
        {
            socket.send_to(heard, from).ok();
        }
    }
}

fn connections(listener: &TcpListener, silent: bool, slow: Option<Duration>) {
    let (mut held, mut complained) = (Vec::new(), false);
    loop {
        match listener.accept() {
            Ok((stream, _)) if silent => held.push(stream),
            Ok((stream, _)) => {
                let talk = move || slow.map_or_else(|| echo(&stream), |late| answer(&stream, late));
                // Where no thread can be made, the connection is closed.
                if let Err(error) = thread::Builder::new().stack_size(STACK_BYTES).spawn(talk) {
                    eprintln!("hurt: make a thread for a connection: {error}");
                }
            }
            Err(error) => {
                if !complained {
                    eprintln!("hurt: accept: {error}");
                    complained = true;
                }
                thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

fn echo(mut stream: &TcpStream) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length => stream.write_all(buffer.get(..length).unwrap_or_default())?,
        }
    }
}

/// Requests without a body, one after the other.
fn answer(mut stream: &TcpStream, late: Duration) -> io::Result<()> {
    let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 || request.len() > 1 << 16 {
            return Ok(());
        }
        request.extend_from_slice(buffer.get(..length).unwrap_or_default());
        if request.ends_with(b"\r\n\r\n") {
            request.clear();
            thread::sleep(late);
            stream.write_all(ANSWER)?;
        }
    }
}
