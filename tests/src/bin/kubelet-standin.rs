//! Stands for a kubelet where a test needs one to be there and to die: it has the name `kubelet` (the test copies
//! this program to a file of that name) and answers every request on its address with the recorded response of a
//! real kubelet's `/healthz`. It stands for nothing else: no CRI client, no Lease, no API client, no pods. What the
//! API server saw of the kubelet comes from the recording.
//!
//! `kubelet ADDRESS FILE`: FILE is the whole recorded response.

#![expect(clippy::disallowed_methods, reason = "it reads one file, its own recording")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use anyhow::Context;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().context("the address to listen on is missing")?;
    let file = arguments.next().context("the file of the recorded response is missing")?;
    let recorded = std::fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
    // The recording has text line ends; on the wire the head's lines end in CRLF.
    let (head, body) = recorded.split_once("\n\n").context("the recorded response has no empty line")?;
    let response: Arc<[u8]> = format!("{}\r\n\r\n{body}", head.replace('\n', "\r\n")).into_bytes().into();
    let listener = TcpListener::bind(&address).with_context(|| format!("listen on {address}"))?;
    for stream in listener.incoming() {
        let (stream, response) = (stream?, response.clone());
        std::thread::spawn(move || answer(stream, &response));
    }
    Ok(())
}

/// Answers each request of a connection until its other end closes it.
fn answer(mut stream: TcpStream, response: &[u8]) -> std::io::Result<()> {
    let (mut request, mut buffer) = (Vec::new(), [0; 1024]);
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        request.extend(buffer.iter().take(length));
        if request.ends_with(b"\r\n\r\n") {
            stream.write_all(response)?;
            request.clear();
        }
    }
}
