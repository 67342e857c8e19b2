//! The channel between the test and the virtual machine: one virtio-serial port, which no fault of the network, of a
//! disk or of memory can cut. Both sides write frames.
//!
//! A frame is a header of nine bytes and a payload: the payload's length (u32, little-endian), the call's number (u32,
//! little-endian), the kind (u8). The host begins a call with [`Kind::Ask`] (a [`Request`] as JSON); bytes may then go
//! both ways; the guest ends it with [`Kind::End`] (an [`End`] as JSON), and nothing of that number follows.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// The virtio-serial port's name: `/dev/virtio-ports/NAME` in the guest.
pub const PORT: &str = "nodewhy.channel";
/// A payload is never longer.
pub const LARGEST_PAYLOAD_BYTES: usize = 64 * 1024;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Host to guest: a [`Request`] begins a call.
    Ask,
    /// Bytes: of the connection or of the standard input (to the guest); of the connection, of the standard output or
    /// of the file (to the host).
    Bytes,
    /// Bytes of the standard error (to the host).
    Error,
    /// Host to guest: no more bytes follow (end of the standard input, or the connection is to be closed).
    Close,
    /// Guest to host: an [`End`] ends the call.
    End,
}

/// What the host asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Request {
    /// The guest's clocks, nothing else.
    Clocks,
    /// Runs a program (looked up in PATH) to its end; its process group is killed at the call's close.
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
    /// /proc's, /sys' or cgroupfs'.
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
    /// Sends a signal. A negative pid means the process group.
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
    /// What went wrong, in words; for `Run` only where the program could not be started.
    pub error: Option<String>,
    /// `Run`: the exit code, or 128 and the signal's number.
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

impl Kind {
    const ALL: [Kind; 5] = [Kind::Ask, Kind::Bytes, Kind::Error, Kind::Close, Kind::End];
}

/// Writes a frame, in one write.
///
/// # Errors
/// The payload is too long, or the port's own.
pub fn write_frame(port: &mut impl Write, frame: &Frame) -> io::Result<()> {
    let length = u32::try_from(frame.payload.len()).unwrap_or(u32::MAX);
    if frame.payload.len() > LARGEST_PAYLOAD_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a payload of {length} bytes")));
    }
    let mut bytes = Vec::with_capacity(9 + frame.payload.len());
    bytes.extend(length.to_le_bytes());
    bytes.extend(frame.call.to_le_bytes());
    bytes.push(frame.kind as u8);
    bytes.extend(&frame.payload);
    port.write_all(&bytes)?;
    port.flush()
}

/// Reads a frame; blocks until it is whole.
///
/// # Errors
/// The port's own; or what came is no frame.
pub fn read_frame(port: &mut impl Read) -> io::Result<Frame> {
    let mut header = [0; 9];
    port.read_exact(&mut header)?;
    let [l0, l1, l2, l3, c0, c1, c2, c3, kind] = header;
    let length = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
    let kind = Kind::ALL.get(usize::from(kind)).copied().filter(|_| length <= LARGEST_PAYLOAD_BYTES);
    let Some(kind) = kind else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("no frame: {header:?}")));
    };
    let mut payload = vec![0; length];
    port.read_exact(&mut payload)?;
    Ok(Frame { call: u32::from_le_bytes([c0, c1, c2, c3]), kind, payload })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_as_it_was_written_and_garbage_is_refused() {
        let frame = Frame { call: 7, kind: Kind::End, payload: b"{}".to_vec() };
        let mut wire = Vec::new();
        write_frame(&mut wire, &frame).unwrap();
        assert_eq!(wire, [2, 0, 0, 0, 7, 0, 0, 0, 4, b'{', b'}']);
        assert_eq!(read_frame(&mut wire.as_slice()).unwrap(), frame);
        assert!(read_frame(&mut &wire[..10]).is_err());
        assert!(read_frame(&mut [0xff; 64].as_slice()).is_err());
        assert!(read_frame(&mut [0, 0, 0, 0, 0, 0, 0, 0, 9].as_slice()).is_err());
    }
}
