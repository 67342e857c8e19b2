//! The channel between the test and the virtual machine: one virtio-serial port, which no fault of the network, of a
//! disk or of memory can cut. Both sides write frames.
//!
//! A frame is a header of nine bytes and a payload: the kind (u8), the payload's length (u32, little-endian), the call's
//! number (u32, little-endian). The host begins a call with [`Kind::Ask`] (a [`Request`] as JSON); bytes may then go
//! both ways; the guest ends it with [`Kind::End`] (an [`End`] as JSON), and nothing of that number follows.
//!
//! **Flow.** A side has at most [`WINDOW_BYTES`] of a call's payload under way; the other side gives back what it has
//! consumed with [`Kind::More`]. So neither reader ever waits for a slow consumer, and neither buffers without bound.
//!
//! **Handshake.** The port has no beginning and no end: a host goes away in the midst of a frame, a snapshot is loaded
//! whose guest had read half of another. So a host first sends [`MAGIC`] and a nonce of its own, in the midst of
//! whatever went before. The guest drops every call of the former host, and answers with the magic and the same nonce;
//! all that follows is new. The same nonce again is answered again, and drops nothing, so a host may repeat it until it
//! has an answer. The magic is never within a frame: each of its bytes is above every kind, so it can't begin in one
//! payload and end in the next frame; it is no UTF-8, so it is in no JSON; and bytes that hold it are sent in two frames.

use std::io;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// The virtio-serial port's name: `/dev/virtio-ports/NAME` in the guest.
pub const PORT: &str = "nodewhy.channel";
/// A payload is never longer.
pub const LARGEST_PAYLOAD_BYTES: usize = 16 * 1024;
/// How many payload bytes of one call may be under way in one direction.
pub const WINDOW_BYTES: usize = 256 * 1024;
/// What a handshake begins with.
pub const MAGIC: [u8; 16] =
    [0xff, 0x9e, 0xd1, 0x8b, 0xf5, 0xa7, 0xc3, 0xe8, 0x92, 0xfa, 0xb6, 0xdd, 0x81, 0xef, 0xc9, 0xfe];
/// A handshake: the magic and the nonce.
pub const HELLO_BYTES: usize = MAGIC.len() + 16;
const HEADER_BYTES: usize = 9;

/// Which host, and which of its attempts.
pub type Nonce = [u8; 16];

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Host to guest: a [`Request`] begins a call.
    Ask,
    /// Bytes: of the connection, of the standard input or of the file (to the guest); of the connection, of the standard
    /// output or of the file (to the host).
    Bytes,
    /// Bytes of the standard error (to the host).
    Error,
    /// No more bytes follow from this side: the end of the standard input, of the file, of the connection.
    Close,
    /// So many payload bytes were consumed (u32, little-endian): as many more may be sent.
    More,
    /// Host to guest: the call is not wanted any more. A program that it runs gets SIGKILL, with its process group.
    Cancel,
    /// Guest to host: an [`End`] ends the call.
    End,
}

/// What the host asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Request {
    /// The guest's clocks, nothing else.
    Clocks,
    /// Runs a program (looked up in PATH) to its end, in a process group of its own.
    Run {
        /// Program and arguments.
        argv: Vec<String>,
    },
    /// Connects to a Unix socket and carries bytes both ways.
    Connect {
        /// The socket's path.
        socket: String,
    },
    /// Writes a file (the bytes that follow until `Close`), in place: no temporary file, no rename, since most are
    /// /proc's, /sys' or cgroupfs'. One write(2) a frame.
    Write {
        /// The file.
        path: String,
        /// Its mode, where it is made new.
        mode: u32,
    },
    /// Reads a file whole.
    Read {
        /// The file.
        path: String,
    },
    /// Sends a signal (0: only asks whether the process is there). A negative pid means the process group.
    Kill {
        /// Whom.
        pid: i32,
        /// Its number.
        signal: i32,
    },
    /// Sets the wall clock.
    SetClock {
        /// Nanoseconds since 1970.
        unix_nanos: i64,
    },
}

/// The guest's clocks at one instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    /// CLOCK_REALTIME, nanoseconds since 1970.
    pub unix_nanos: i64,
    /// CLOCK_BOOTTIME, nanoseconds.
    pub boot_nanos: i64,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub monotonic_nanos: i64,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Just before it was begun.
    pub began: Clocks,
    /// When it was over.
    pub ended: Clocks,
    /// What went wrong, in words. A program that runs and fails is no error here.
    pub error: Option<String>,
    /// `Run`: the exit code, or 128 and the signal's number. 126 and 127 with words on the standard error: the program
    /// could not be executed, as a shell says it.
    pub code: Option<i32>,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Which call.
    pub call: u32,
    /// What the payload is.
    pub kind: Kind,
    /// At most [`LARGEST_PAYLOAD_BYTES`].
    pub payload: Vec<u8>,
}

/// What comes out of the port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The other side's handshake: what came before it is of a former host, or is its answer to one.
    Hello(Nonce),
    /// A frame.
    Frame(Frame),
    /// What came is no frame. Nothing more is understood until the next handshake.
    Garbage,
}

impl Kind {
    const ALL: [Kind; 7] =
        [Kind::Ask, Kind::Bytes, Kind::Error, Kind::Close, Kind::More, Kind::Cancel, Kind::End];
}

impl Clocks {
    /// This machine's, now. The three are read one after the other.
    ///
    /// # Errors
    /// The kernel's; or a clock past the year 2262.
    pub fn now() -> io::Result<Clocks> {
        let nanos = |clock: ClockId| -> io::Result<i64> {
            let time = clock_gettime(clock)?;
            let nanos = i128::from(time.tv_sec()) * 1_000_000_000 + i128::from(time.tv_nsec());
            i64::try_from(nanos).map_err(|_| io::Error::other(format!("clock {clock}: {nanos} ns is no i64")))
        };
        Ok(Clocks {
            unix_nanos: nanos(ClockId::CLOCK_REALTIME)?,
            boot_nanos: nanos(ClockId::CLOCK_BOOTTIME)?,
            monotonic_nanos: nanos(ClockId::CLOCK_MONOTONIC)?,
        })
    }
}

/// A handshake's bytes: what the host sends, and what the guest answers.
pub fn hello(nonce: &Nonce) -> Vec<u8> {
    [MAGIC, *nonce].concat()
}

/// A frame's bytes.
///
/// # Errors
/// The payload is too long, or holds [`MAGIC`]: cut it with [`pieces`].
pub fn frame(call: u32, kind: Kind, payload: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    if payload.len() > LARGEST_PAYLOAD_BYTES || find_magic(payload).is_some() {
        let words =
            format!("a payload of {length} bytes does not fit a frame, or holds the handshake's magic");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, words));
    }
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.push(kind as u8);
    bytes.extend(length.to_le_bytes());
    bytes.extend(call.to_le_bytes());
    bytes.extend(payload);
    Ok(bytes)
}

/// Cuts bytes into payloads that fit frames.
pub fn pieces(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    while !bytes.is_empty() {
        let (mut piece, _) = bytes.split_at_checked(LARGEST_PAYLOAD_BYTES).unwrap_or((bytes, &[]));
        if let Some((head, _)) =
            find_magic(piece).and_then(|found| piece.split_at_checked(found + MAGIC.len() / 2))
        {
            piece = head;
        }
        bytes = bytes.get(piece.len()..).unwrap_or_default();
        pieces.push(piece);
    }
    pieces
}

/// Takes the port's bytes as they come, and says what they are.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// Up to here no magic begins.
    clean: usize,
    /// A handshake was seen, and no garbage since.
    in_step: bool,
}

impl Decoder {
    /// More bytes came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    /// The other side is gone: nothing is understood until the next handshake.
    pub fn reset(&mut self) {
        *self = Decoder::default();
    }

    fn take(&mut self, length: usize) {
        self.bytes.drain(..length.min(self.bytes.len()));
        self.clean = self.clean.saturating_sub(length);
    }
}

impl Iterator for Decoder {
    type Item = Heard;

    /// The next that is whole; `None` until more has come. Before the first handshake there are no frames.
    fn next(&mut self) -> Option<Heard> {
        let found = self.bytes.get(self.clean..).and_then(find_magic).map(|found| self.clean + found);
        // The magic's beginning may be the end of what has come.
        self.clean = found.unwrap_or((self.bytes.len() + 1).saturating_sub(MAGIC.len()).max(self.clean));
        let before = found.unwrap_or(self.bytes.len());
        if self.in_step {
            match self.bytes.get(..before).map(whole_frame) {
                Some(Ok(Some((frame, length)))) => {
                    self.take(length);
                    return Some(Heard::Frame(frame));
                }
                Some(Err(NoFrame)) => {
                    self.in_step = false;
                    return Some(Heard::Garbage);
                }
                Some(Ok(None)) | None => {}
            }
        } else if found.is_none() {
            self.take(self.clean);
        }
        let found = found?;
        let nonce = self.bytes.get(found + MAGIC.len()..found + HELLO_BYTES)?.try_into().ok()?;
        self.take(found + HELLO_BYTES);
        self.in_step = true;
        Some(Heard::Hello(nonce))
    }
}

struct NoFrame;

/// The frame that begins these bytes, with its length on the wire; `None` where more must come.
fn whole_frame(bytes: &[u8]) -> Result<Option<(Frame, usize)>, NoFrame> {
    let Some((&[kind, l0, l1, l2, l3, c0, c1, c2, c3], rest)) = bytes.split_first_chunk::<HEADER_BYTES>()
    else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).map_err(|_| NoFrame)?;
    let kind = Kind::ALL.get(usize::from(kind)).copied().ok_or(NoFrame)?;
    if length > LARGEST_PAYLOAD_BYTES {
        return Err(NoFrame);
    }
    let Some(payload) = rest.get(..length) else { return Ok(None) };
    let call = u32::from_le_bytes([c0, c1, c2, c3]);
    Ok(Some((Frame { call, kind, payload: payload.to_vec() }, HEADER_BYTES + length)))
}

fn find_magic(bytes: &[u8]) -> Option<usize> {
    bytes.windows(MAGIC.len()).position(|window| window == MAGIC)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(decoder: &mut Decoder) -> Vec<Heard> {
        decoder.collect()
    }

    fn bytes(call: u32, payload: &[u8]) -> Heard {
        Heard::Frame(Frame { call, kind: Kind::Bytes, payload: payload.to_vec() })
    }

    #[test]
    fn a_frame_is_written_as_the_format_says() {
        let wire = frame(7, Kind::End, b"{}").unwrap();
        assert_eq!(wire, [6, 2, 0, 0, 0, 7, 0, 0, 0, b'{', b'}']);
        assert!(frame(7, Kind::Bytes, &[0; LARGEST_PAYLOAD_BYTES + 1]).is_err());
        assert!(frame(7, Kind::Bytes, &MAGIC).is_err());
    }

    #[test]
    fn what_the_handshake_relies_on_is_so() {
        // Above every kind, so that no magic goes over a frame's beginning; and no JSON can hold it.
        assert!(MAGIC.iter().all(|byte| usize::from(*byte) > Kind::ALL.len() && *byte >= 0x80));
        assert!(MAGIC.contains(&0xff), "never in UTF-8");
        for (number, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, number);
        }
    }

    #[test]
    fn a_handshake_in_the_midst_of_a_frame_begins_anew() {
        let mut decoder = Decoder::default();
        let old = frame(1, Kind::Bytes, &[5; 1000]).unwrap();
        decoder.push(&old);
        assert_eq!(all(&mut decoder), [], "no frame before a handshake");
        decoder.push(&hello(&[1; 16]));
        decoder.push(&frame(2, Kind::Bytes, b"whole").unwrap());
        decoder.push(&old[..500]);
        decoder.push(&hello(&[2; 16]));
        decoder.push(&frame(3, Kind::Bytes, b"new").unwrap());
        let heard = [Heard::Hello([1; 16]), bytes(2, b"whole"), Heard::Hello([2; 16]), bytes(3, b"new")];
        assert_eq!(all(&mut decoder), heard);
        decoder.push(&[0xff; 40]);
        assert_eq!(all(&mut decoder), [Heard::Garbage]);
        decoder.push(&frame(4, Kind::Bytes, b"lost").unwrap());
        decoder.push(&hello(&[3; 16]));
        assert_eq!(all(&mut decoder), [Heard::Hello([3; 16])]);
    }

    #[test]
    fn bytes_that_hold_the_magic_are_sent_in_two() {
        let file = [b"program".as_slice(), &MAGIC, &MAGIC, b"end"].concat();
        let mut decoder = Decoder::default();
        decoder.push(&hello(&[9; 16]));
        for piece in pieces(&file) {
            decoder.push(&frame(1, Kind::Bytes, piece).unwrap());
        }
        let mut whole = Vec::new();
        for heard in all(&mut decoder).into_iter().skip(1) {
            let Heard::Frame(frame) = heard else { panic!("{heard:?}") };
            whole.extend(frame.payload);
        }
        assert_eq!(whole, file);
    }

    proptest! {
        #[test]
        fn however_it_is_cut_it_says_the_same(
            before in prop::collection::vec(any::<u8>(), 0..100),
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..6),
            cuts in prop::collection::vec(1..40_usize, 1..50),
        ) {
            let mut wire = [before, hello(&[7; 16])].concat();
            let mut expected = vec![Heard::Hello([7; 16])];
            for (number, payload) in (0..).zip(&payloads) {
                wire.extend(frame(number, Kind::Bytes, payload).unwrap());
                expected.push(bytes(number, payload));
            }
            let (mut decoder, mut heard, mut rest) = (Decoder::default(), Vec::new(), wire.as_slice());
            for cut in cuts.iter().cycle() {
                let (head, tail) = rest.split_at(rest.len().min(*cut));
                decoder.push(head);
                heard.extend(all(&mut decoder));
                rest = tail;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(heard, expected);
        }

        #[test]
        fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut decoder = Decoder::default();
            decoder.push(&hello(&[7; 16]));
            decoder.push(&bytes);
            prop_assert!(all(&mut decoder).len() <= 1 + bytes.len());
        }
    }
}
