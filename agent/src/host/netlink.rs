//! Netlink: how the kernel is asked about its network.
//!
//! Requests are built by `neli`. Answers are walked in one reused buffer, without a copy of a message: of a dump of
//! 250,000 entries the kernel's own part is 96 % of the time, and nothing may be added to the memory.
//!
//! The socket belongs to the network namespace that the agent runs in. Whether that is the node's own is asked first:
//! [`Host::network_is_hosts`]. Asking can load modules: whoever asks makes sure that the family is there already.

mod attribute;
mod namespace;

pub use attribute::{Attribute, Attributes, Cut, Payload};
pub use namespace::NetworkNamespace;

use std::io::{Cursor, IoSliceMut};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use neli::ToBytes;
use neli::consts::nl::NlmF;
use neli::nl::{NlPayload, NlmsghdrBuilder};
use neli::types::Buffer;
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvmsg, send, socket,
};
use nodewhy_clock::Clock;

use super::{Host, ReadError};

/// The kernel fills no more in one go of a dump (net/netlink/af_netlink.c); a smaller one costs three times the calls.
const BUFFER_BYTES: usize = 32 * 1024;
/// `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;

/// Which part of the kernel is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Links, addresses, routes, rules, neighbours (rtnetlink(7)).
    Route,
    /// nf_tables, conntrack (include/uapi/linux/netfilter/nfnetlink.h).
    Netfilter,
    /// Families found by name: IPVS.
    Generic,
    /// Sockets (sock_diag(7)).
    SockDiag,
}

impl Protocol {
    fn number(self) -> SockProtocol {
        match self {
            Protocol::Route => SockProtocol::NetlinkRoute,
            Protocol::Netfilter => SockProtocol::NetlinkNetFilter,
            Protocol::Generic => SockProtocol::NetlinkGeneric,
            Protocol::SockDiag => SockProtocol::NetlinkSockDiag,
        }
    }
}

/// The fields of `struct nlmsghdr` that matter to a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The message's type, as the family numbers it.
    pub kind: u16,
    /// NLM_F_*.
    pub flags: u16,
}

/// How an exchange went that ended well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exchange {
    /// Messages that were handed on.
    pub messages: u64,
    /// The kernel says that what was dumped changed meanwhile (NLM_F_DUMP_INTR): entries may be missing or told twice.
    pub interrupted: bool,
    /// The reader had enough before the end.
    pub stopped: bool,
}

/// Why the kernel's answer is none.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel refused: ENOENT (no such thing), EPERM (needs CAP_NET_ADMIN), EOPNOTSUPP.
    #[error("the kernel refuses: {}", .0.desc())]
    Refused(Errno),
    /// No whole answer in time.
    #[error("no whole answer within {0:?}")]
    Late(Duration),
    /// Messages were lost (ENOBUFS).
    #[error("messages were lost: they came faster than they were read (ENOBUFS)")]
    Lost,
    /// An answer that makes no sense.
    #[error("the answer makes no sense: {0}")]
    Malformed(String),
    /// The socket itself failed.
    #[error("cannot {what} a netlink socket: {}", .errno.desc())]
    Socket {
        /// What was tried.
        what: &'static str,
        /// The kernel's word.
        errno: Errno,
    },
}

impl NetlinkError {
    /// With what was asked: `nf_tables chains`.
    pub fn asking(self, what: &str) -> ReadError {
        let needs = match self {
            NetlinkError::Refused(Errno::EPERM | Errno::EACCES) => {
                "; give the agent CAP_NET_ADMIN, without a user namespace of its own"
            }
            _ => "",
        };
        ReadError::Other(format!("cannot ask the kernel for {what} over netlink: {self}{needs}"))
    }
}

impl From<Cut> for NetlinkError {
    fn from(cut: Cut) -> NetlinkError {
        NetlinkError::Malformed(cut.to_string())
    }
}

/// A netlink socket, with the one buffer that every answer is read into.
#[derive(Debug)]
pub struct Netlink {
    protocol: Protocol,
    clock: Clock,
    socket: OwnedFd,
    buffer: Vec<u8>,
    sequence: u32,
    /// An exchange ended before its answer did: what is still to come would be taken for the next one's.
    unfinished: bool,
}

impl Netlink {
    /// A socket in the agent's own network namespace.
    ///
    /// # Errors
    /// The kernel has no such protocol, or gives no socket.
    pub fn open(host: &Host, protocol: Protocol) -> Result<Netlink, NetlinkError> {
        Ok(Netlink {
            protocol,
            clock: host.clock().clone(),
            socket: connect(protocol)?,
            buffer: vec![0; BUFFER_BYTES],
            sequence: 0,
            unfinished: false,
        })
    }

    /// Asks one question, and hands on the messages of the answer. An answer without a message is none too few: a
    /// thing that does not exist is `Refused(ENOENT)`.
    ///
    /// # Errors
    /// See [`NetlinkError`]; what the reader returns.
    pub fn request(
        &mut self,
        kind: u16,
        payload: &[u8],
        limit: Duration,
        mut each: impl FnMut(Header, &[u8]) -> Result<(), NetlinkError>,
    ) -> Result<Exchange, NetlinkError> {
        let flags = NlmF::REQUEST | NlmF::ACK;
        self.exchange(kind, flags, payload, limit, |header, payload| {
            each(header, payload).map(ControlFlow::Continue)
        })
    }

    /// Asks for a list, and hands on its messages. The reader may stop it with `Break`.
    ///
    /// # Errors
    /// See [`NetlinkError`]; what the reader returns.
    pub fn dump(
        &mut self,
        kind: u16,
        payload: &[u8],
        limit: Duration,
        each: impl FnMut(Header, &[u8]) -> Result<ControlFlow<()>, NetlinkError>,
    ) -> Result<Exchange, NetlinkError> {
        self.exchange(kind, NlmF::REQUEST | NlmF::DUMP, payload, limit, each)
    }

    fn exchange(
        &mut self,
        kind: u16,
        flags: NlmF,
        payload: &[u8],
        limit: Duration,
        mut each: impl FnMut(Header, &[u8]) -> Result<ControlFlow<()>, NetlinkError>,
    ) -> Result<Exchange, NetlinkError> {
        if self.unfinished {
            self.socket = connect(self.protocol)?;
        }
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let message = message(kind, flags, self.sequence, payload)?;
        let until = self.clock.since_boot() + limit;
        self.unfinished = true;
        send(self.socket.as_raw_fd(), &message, MsgFlags::MSG_DONTWAIT)
            .map_err(|errno| NetlinkError::Socket { what: "send on", errno })?;
        let mut told = Exchange::default();
        loop {
            let length = self.receive(until, limit)?;
            let mut rest = self.buffer.get(..length).unwrap_or_default();
            while !rest.is_empty() {
                let (header, payload, next) = split(rest)?;
                rest = next;
                if header.sequence != self.sequence {
                    continue;
                }
                // In a dump the flag may stand on any message, the last one too.
                told.interrupted |= header.flags & NlmF::DUMP_INTR.bits() != 0;
                match i32::from(header.kind) {
                    libc::NLMSG_NOOP => {}
                    libc::NLMSG_OVERRUN => return Err(NetlinkError::Lost),
                    // Both carry an errno, negative; an acknowledgement's is 0, a dump's end's may be missing.
                    libc::NLMSG_ERROR | libc::NLMSG_DONE => {
                        self.unfinished = false;
                        return ended(header.kind, payload).map(|()| told);
                    }
                    _ => {
                        told.messages += 1;
                        let flow = each(Header { kind: header.kind, flags: header.flags }, payload)?;
                        if flow.is_break() {
                            told.stopped = true;
                            return Ok(told);
                        }
                    }
                }
            }
        }
    }

    /// One datagram, into the buffer.
    fn receive(&mut self, until: Duration, limit: Duration) -> Result<usize, NetlinkError> {
        loop {
            // Also while messages keep coming: a dump of a table that grows for ever has to end.
            let left = until.saturating_sub(self.clock.since_boot());
            if left.is_zero() {
                return Err(NetlinkError::Late(limit));
            }
            let capacity = self.buffer.len();
            let mut parts = [IoSliceMut::new(&mut self.buffer)];
            // MSG_TRUNC: the true length, so that a datagram larger than the buffer is no shorter one.
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
            match recvmsg::<NetlinkAddr>(self.socket.as_raw_fd(), &mut parts, None, flags) {
                Ok(got) if got.bytes > capacity => {
                    return Err(NetlinkError::Malformed(format!("a datagram of {} bytes", got.bytes)));
                }
                // Root can send to this socket; the kernel alone has number 0.
                Ok(got) if got.address.is_some_and(|address| address.pid() != 0) => {}
                Ok(got) => return Ok(got.bytes),
                Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => return Err(NetlinkError::Lost),
                Err(Errno::EAGAIN) => self.wait(left)?,
                Err(errno) => return Err(NetlinkError::Socket { what: "read", errno }),
            }
        }
    }

    fn wait(&self, left: Duration) -> Result<(), NetlinkError> {
        let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(NetlinkError::Socket { what: "wait for", errno }),
        }
    }
}

fn connect(protocol: Protocol) -> Result<OwnedFd, NetlinkError> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol.number())
        .map_err(|errno| NetlinkError::Socket { what: "make", errno })?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))
        .map_err(|errno| NetlinkError::Socket { what: "bind", errno })?;
    Ok(socket)
}

fn message(kind: u16, flags: NlmF, sequence: u32, payload: &[u8]) -> Result<Vec<u8>, NetlinkError> {
    let unbuilt = |error: String| NetlinkError::Malformed(format!("a request cannot be built: {error}"));
    let message = NlmsghdrBuilder::default()
        .nl_type(kind)
        .nl_flags(flags)
        .nl_seq(sequence)
        .nl_payload(NlPayload::Payload(Buffer::from(payload)))
        .build()
        .map_err(|error| unbuilt(error.to_string()))?;
    let mut bytes = Cursor::new(Vec::new());
    message.to_bytes(&mut bytes).map_err(|error| unbuilt(error.to_string()))?;
    Ok(bytes.into_inner())
}

struct Raw {
    kind: u16,
    flags: u16,
    sequence: u32,
}

/// The first message of a datagram: header, payload, and what comes after it.
fn split(bytes: &[u8]) -> Result<(Raw, &[u8], &[u8]), NetlinkError> {
    let cut = || NetlinkError::Malformed(format!("{} bytes are no whole message", bytes.len()));
    let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let half = |at: usize| bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes);
    let length = word(0).and_then(|length| usize::try_from(length).ok()).ok_or_else(cut)?;
    let payload = bytes.get(HEADER_BYTES..length).ok_or_else(cut)?;
    let (kind, flags, sequence) =
        (half(4).ok_or_else(cut)?, half(6).ok_or_else(cut)?, word(8).ok_or_else(cut)?);
    // The last message of a datagram need not be padded.
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Ok((Raw { kind, flags, sequence }, payload, next))
}

fn ended(kind: u16, payload: &[u8]) -> Result<(), NetlinkError> {
    let code = payload.get(..4).and_then(|code| code.try_into().ok()).map(i32::from_ne_bytes);
    match code {
        Some(code) if code < 0 => Err(NetlinkError::Refused(Errno::from_raw(code.saturating_neg()))),
        Some(_) => Ok(()),
        None if i32::from(kind) == libc::NLMSG_DONE => Ok(()),
        None => Err(NetlinkError::Malformed("an error message without its number".to_owned())),
    }
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok((header, payload, next)) = split(rest) {
        crate::fuzz::done(ended(header.kind, payload));
        for attribute in Attributes::new(payload).flatten() {
            crate::fuzz::done((attribute.text(), attribute.u8(), attribute.u32_be()));
            attribute.nested().for_each(crate::fuzz::done);
        }
        if next.len() >= rest.len() {
            break;
        }
        rest = next;
    }
}

#[cfg(test)]
mod tests;
