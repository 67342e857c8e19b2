//! Stands for a kubelet where a test needs one to be there and to die: it has the name `kubelet` (the test copies
//! this program to a file of that name) and answers every request on its address with the recorded response of a
//! real kubelet's `/healthz`. It stands for nothing else: no CRI client, no Lease, no API client, no pods. What the
//! API server saw of the kubelet comes from the recording.
//!
//! `kubelet ADDRESS FILE [ADDRESS FILE …]`: each FILE is a whole recorded response, which is the answer to every request
//! on its ADDRESS, whatever is asked for. Text above the response, each line of it after a `#`, says what the file
//! stands for and what not; it is not sent. A file without it is the bare recording. Flags (`--config=…`) are those of a
//! kubelet: whoever looks at its command line finds them, and nothing here reads them.

#![expect(clippy::disallowed_methods, reason = "it reads its own recordings")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, bail, ensure};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let (pairs, rest) = arguments.as_chunks::<2>();
    ensure!(!pairs.is_empty() && rest.is_empty(), "usage: kubelet ADDRESS FILE [ADDRESS FILE …]");
    // All of them are bound before the first is served: it is there whole, or not at all.
    let mut serving = Vec::new();
    for [address, file] in pairs {
        let recorded = std::fs::read_to_string(file).with_context(|| format!("read {file}"))?;
        let response = response(&recorded).with_context(|| format!("{file} is no recorded response"))?;
        serving.push((TcpListener::bind(address).with_context(|| format!("listen on {address}"))?, response));
    }
    let threads: Vec<_> = serving
        .into_iter()
        .map(|(listener, response)| thread::spawn(move || serve(&listener, &response)))
        .collect();
    for thread in threads {
        thread.join().ok();
    }
    bail!("no address is served any more")
}

/// As it goes over the wire: the recording has text line ends, the head's lines end in CRLF.
fn response(recorded: &str) -> anyhow::Result<Arc<[u8]>> {
    let mut recorded = recorded;
    while recorded.starts_with('#') {
        recorded = recorded.split_once('\n').context("there is nothing below its comment")?.1;
    }
    ensure!(recorded.starts_with("HTTP/1."), "it does not begin with HTTP/1.");
    let (head, body) = recorded.split_once("\n\n").context("it has no empty line")?;
    Ok(format!("{}\r\n\r\n{body}", head.replace('\n', "\r\n")).into_bytes().into())
}

/// Where one address can't be served any more, the whole process ends, as a kubelet does.
fn serve(listener: &TcpListener, response: &Arc<[u8]>) {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                let response = response.clone();
                thread::spawn(move || answer(stream, &response));
            }
            Err(error) => {
                eprintln!("kubelet-standin: accept: {error}");
                std::process::exit(1);
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_is_sent_as_it_was_on_the_wire_without_what_is_said_about_it() {
        let bare = "HTTP/1.1 200 OK\nContent-Length: 2\n\nok";
        let wire = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        assert_eq!(&*response(bare).unwrap(), wire);
        assert_eq!(&*response(&format!("# Stands for this.\n# Not for that.\n{bare}")).unwrap(), wire);
        for wrong in ["", "#", "# only this\n", "HTTP/1.1 200 OK\nContent-Length: 2\n", "ok\n\n"] {
            assert!(response(wrong).is_err(), "{wrong:?}");
        }
    }
}
