//! Parts of the agent's tests: an HTTP client of twenty lines, and made-up collectors.
#![allow(dead_code, unreachable_pub, reason = "each test program uses its own part of this")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A response, read whole.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Response {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// Sends one request on this connection and reads until the other side ends.
pub fn ask(mut stream: impl Read + Write, method: &str, path: &str, headers: &str) -> Response {
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Response { status, head: head.to_owned(), body: body.to_owned() }
}

/// GET over a Unix socket.
pub fn get(socket: &Path, path: &str) -> Response {
    ask(UnixStream::connect(socket).unwrap(), "GET", path, "")
}

/// A server-sent event.
#[derive(Clone, Debug, PartialEq)]
pub struct Sent {
    pub kind: String,
    pub id: String,
    pub data: serde_json::Value,
}

/// Opens the event stream; `next` gives each event, comments are passed over.
pub struct Events {
    lines: BufReader<UnixStream>,
}

impl Events {
    pub fn open(socket: &Path, query: &str, headers: &str) -> Events {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(stream, "GET /api/v1/events{query} HTTP/1.1\r\nHost: x\r\n{headers}\r\n").unwrap();
        let mut lines = BufReader::new(stream);
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert!(line.starts_with("HTTP/1.1 200"), "{line}");
        while line != "\r\n" {
            line.clear();
            lines.read_line(&mut line).unwrap();
        }
        Events { lines }
    }

    pub fn next(&mut self) -> Sent {
        let (mut kind, mut id) = (String::new(), String::new());
        loop {
            let mut line = String::new();
            assert!(self.lines.read_line(&mut line).unwrap() > 0, "the stream ended");
            // Lines of chunk sizes are hexadecimal and match none of these.
            if let Some(rest) = line.strip_prefix("event: ") {
                kind = rest.trim_end().to_owned();
            } else if let Some(rest) = line.strip_prefix("id: ") {
                id = rest.trim_end().to_owned();
            } else if let Some(rest) = line.strip_prefix("data: ") {
                return Sent { kind, id, data: serde_json::from_str(rest).unwrap() };
            }
        }
    }
}
