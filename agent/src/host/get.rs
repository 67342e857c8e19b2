//! One plain HTTP GET over TCP that never blocks: begun, and looked at again and again until it is answered. A server
//! that never answers costs one descriptor and no thread.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, connect, socket};
use nodewhy_clock::Clock;

/// No answer's head and first lines are longer; what comes after is not read.
const LONGEST_ANSWER_BYTES: usize = 16 * 1024;

/// A request on its way.
#[derive(Debug)]
pub struct Get {
    stream: TcpStream,
    connected: bool,
    request: Vec<u8>,
    sent: usize,
    answer: Vec<u8>,
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// No answer yet.
    Waiting {
        /// Whether the kernel has connected us; the program itself need not have accepted.
        connected: bool,
    },
    /// The head is here, and as much of the body as came along with it.
    Answered {
        /// The status code.
        code: u16,
        /// The beginning of the body.
        body: String,
    },
    /// Nobody listens there.
    Refused,
    /// Something listens there that does not speak HTTP, or that hangs up without a word.
    NotHttp {
        /// What it did.
        what: String,
    },
    /// The kernel refused for another reason: no route, the loopback device is down, out of descriptors.
    Failed {
        /// The kernel's word.
        error: String,
    },
}

impl Get {
    /// Begins. The connection is made in the background.
    ///
    /// # Errors
    /// How it ended already, as [`Progress`]: refused or failed.
    pub fn begin(address: SocketAddr, path: &str) -> Result<Get, Progress> {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(family, SockType::Stream, flags, None)
            .map_err(|errno| Progress::Failed { error: format!("cannot make a socket: {}", errno.desc()) })?;
        let stream = TcpStream::from(fd);
        let raw = stream.as_raw_fd();
        let begun = match address {
            SocketAddr::V4(address) => connect(raw, &SockaddrIn::from(address)),
            SocketAddr::V6(address) => connect(raw, &SockaddrIn6::from(address)),
        };
        let connected = match begun {
            Ok(()) => true,
            Err(Errno::EINPROGRESS) => false,
            Err(Errno::ECONNREFUSED) => return Err(Progress::Refused),
            Err(errno) => {
                return Err(Progress::Failed { error: format!("cannot connect: {}", errno.desc()) });
            }
        };
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: nodewhy-agent\r\nConnection: close\r\n\r\n"
        );
        Ok(Get { stream, connected, request: request.into_bytes(), sent: 0, answer: Vec::new() })
    }

    /// Becomes readable when an answer is here.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Goes on as far as it can; waits for `limit` at most.
    pub fn advance(&mut self, clock: &Clock, limit: Duration) -> Progress {
        let until = clock.since_boot() + limit;
        loop {
            match self.step() {
                Ok(Progress::Waiting { .. }) => {}
                Ok(progress) => return progress,
                Err(error) => return failed(&error),
            }
            let left = until.saturating_sub(clock.since_boot());
            if left.is_zero() {
                return Progress::Waiting { connected: self.connected };
            }
            let wanted = if self.sent < self.request.len() { PollFlags::POLLOUT } else { PollFlags::POLLIN };
            let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.stream.as_fd(), wanted)], timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Progress::Failed { error: format!("cannot wait: {}", errno.desc()) },
            }
        }
    }

    fn step(&mut self) -> std::io::Result<Progress> {
        if !self.connected {
            if let Some(error) = self.stream.take_error()? {
                return Err(error);
            }
            match self.stream.peer_addr() {
                Ok(_) => self.connected = true,
                Err(error) if error.kind() == ErrorKind::NotConnected => {
                    return Ok(Progress::Waiting { connected: false });
                }
                Err(error) => return Err(error),
            }
        }
        while let Some(rest) = self.request.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match self.stream.write(rest) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Ok(Progress::Waiting { connected: true });
                }
                // It hung up; what it said before is still to be read.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => break,
                Err(error) => return Err(error),
            }
        }
        let mut chunk = [0; 2048];
        let ended = loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => break true,
                Ok(count) => self.answer.extend(chunk.iter().take(count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break true,
                Err(error) => return Err(error),
            }
            if self.answer.len() >= LONGEST_ANSWER_BYTES {
                break true;
            }
        };
        Ok(parse(&self.answer, ended))
    }
}

fn failed(error: &std::io::Error) -> Progress {
    match error.kind() {
        ErrorKind::ConnectionRefused => Progress::Refused,
        _ => Progress::Failed { error: error.to_string() },
    }
}

/// The answer so far; `ended`: nothing more will come. The status counts once the head is complete.
fn parse(bytes: &[u8], ended: bool) -> Progress {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    match response.parse(bytes) {
        Ok(httparse::Status::Complete(head)) => match response.code {
            Some(code) => {
                let body = bytes.get(head..).unwrap_or_default();
                let body = String::from_utf8_lossy(body).chars().take(512).collect();
                Progress::Answered { code, body }
            }
            None => Progress::NotHttp { what: "an answer without a status code".to_owned() },
        },
        Ok(httparse::Status::Partial) if !ended => Progress::Waiting { connected: true },
        Ok(httparse::Status::Partial) if bytes.is_empty() => {
            Progress::NotHttp { what: "it hung up without an answer".to_owned() }
        }
        Ok(httparse::Status::Partial) => {
            Progress::NotHttp { what: "its answer ended within the head".to_owned() }
        }
        Err(error) => Progress::NotHttp { what: error.to_string() },
    }
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    crate::fuzz::done((parse(bytes, false), parse(bytes, true)));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // The whole response of the kubelet's /healthz, recorded from kubelet 1.32.6.
    const OK: &[u8] = include_bytes!("../../fixtures/kubelet/kubelet-1.32.6-healthz-http.txt");

    #[test]
    fn the_recorded_answer() {
        assert_eq!(parse(OK, true), Progress::Answered { code: 200, body: "ok".to_owned() });
    }

    #[test]
    fn nothing_at_all_is_waiting_and_then_hung_up() {
        assert_eq!(parse(b"", false), Progress::Waiting { connected: true });
        assert!(matches!(parse(b"", true), Progress::NotHttp { .. }));
        assert!(matches!(parse(b"SSH-2.0-OpenSSH_9.2p1\r\n", false), Progress::NotHttp { .. }));
    }

    proptest! {
        #[test]
        fn a_cut_answer_is_never_another_code(cut in 0..OK.len()) {
            match parse(&OK[..cut], true) {
                Progress::Answered { code, .. } => prop_assert_eq!(code, 200),
                Progress::NotHttp { .. } => {}
                other => prop_assert!(false, "{:?}", other),
            }
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>, ended: bool) {
            parse(&bytes, ended);
        }
    }
}
