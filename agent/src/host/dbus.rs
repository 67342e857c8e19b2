//! D-Bus over a Unix socket of the host, with a deadline for everything.
//!
//! rustbus builds and reads the messages. Connecting, the handshake and the waiting are our own: a peer that hangs must
//! hang neither `connect` nor a read, and a message has a bound.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nodewhy_clock::Clock;
use rustbus::message_builder::{MarshalledMessage, MessageType};
use rustbus::wire::{marshal, unmarshal};

use super::Host;

/// A list of some 10,000 units.
const LARGEST_MESSAGE_BYTES: usize = 8 * 1024 * 1024;
/// Signals and late answers that are passed over before an answer.
const MOST_PASSED_OVER: usize = 10_000;
/// The fixed part of a header with the length of the variable part.
const PREAMBLE_BYTES: usize = 16;

/// Why a peer could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The kernel's word on the connection.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// No answer in time.
    #[error("no answer to {0}")]
    Silent(&'static str),
    /// The peer does not want this user.
    #[error("refused at the handshake: {0}")]
    Rejected(String),
    /// The peer closed the connection.
    #[error("the connection was closed at {0}")]
    Closed(&'static str),
    /// The peer answered with an error.
    #[error("{name}: {text}")]
    Told {
        /// `org.freedesktop.DBus.Error.…`.
        name: String,
        /// Its words.
        text: String,
    },
    /// Not D-Bus, or too long.
    #[error("cannot understand the answer: {0}")]
    Malformed(String),
    /// Anything else of the kernel's.
    #[error("cannot read or write: {0}")]
    Io(io::Error),
}

/// A connection.
#[derive(Debug)]
pub struct Bus {
    stream: UnixStream,
    clock: Clock,
    until: Duration,
    serial: u32,
    inbox: Vec<u8>,
}

impl Host {
    /// Connects and says who we are (EXTERNAL). All that is done on the connection must be over `limit` from now.
    ///
    /// # Errors
    /// Nobody listens, does not answer, or does not want us.
    pub fn dbus(&self, path: impl AsRef<Path>, limit: Duration) -> Result<Bus, BusError> {
        let until = self.clock().since_boot() + limit;
        let stream = self.connect_unix(path).map_err(BusError::Connect)?.stream;
        stream.set_nonblocking(false).map_err(BusError::Io)?;
        let mut bus = Bus { stream, clock: self.clock().clone(), until, serial: 0, inbox: Vec::new() };
        bus.handshake()?;
        Ok(bus)
    }
}

impl Bus {
    fn handshake(&mut self) -> Result<(), BusError> {
        const STEP: &str = "the handshake";
        let uid: String =
            nix::unistd::geteuid().to_string().bytes().map(|digit| format!("{digit:02x}")).collect();
        // BEGIN goes along, as sd-bus has it: where it comes after the answer, systemd may read it together with the first
        // call, and then leaves that call in its buffer until more comes.
        self.send(format!("\0AUTH EXTERNAL {uid}\r\nBEGIN\r\n").as_bytes(), STEP)?;
        let line = loop {
            if let Some(end) = self.inbox.windows(2).position(|pair| pair == b"\r\n") {
                let line: Vec<u8> = self.inbox.drain(..end + 2).collect();
                break String::from_utf8_lossy(&line).trim_end().to_owned();
            }
            if self.inbox.len() > 4096 {
                return Err(BusError::Malformed("no line's end in the handshake".to_owned()));
            }
            self.receive(STEP)?;
        };
        if !line.starts_with("OK") {
            return Err(BusError::Rejected(line));
        }
        Ok(())
    }

    /// Calls and waits for the answer. Signals in between are passed over.
    ///
    /// # Errors
    /// There is no answer in time, or it is an error.
    pub fn call(
        &mut self,
        message: &MarshalledMessage,
        what: &'static str,
    ) -> Result<MarshalledMessage, BusError> {
        self.serial += 1;
        let serial = self.serial;
        let mut bytes = Vec::new();
        marshal::marshal(message, serial, &mut bytes)
            .map_err(|error| BusError::Malformed(format!("{what} cannot be written: {error:?}")))?;
        bytes.extend_from_slice(message.get_buf());
        self.send(&bytes, what)?;
        for _ in 0..MOST_PASSED_OVER {
            let answer = self.message(what)?;
            if answer.dynheader.response_serial != Some(serial) {
                continue;
            }
            return match (answer.typ, answer.dynheader.error_name.clone()) {
                (MessageType::Error, name) | (_, name @ Some(_)) => Err(BusError::Told {
                    name: name.unwrap_or_else(|| "an error without a name".to_owned()),
                    text: answer.body.parser().get::<String>().unwrap_or_default(),
                }),
                _ => Ok(answer),
            };
        }
        Err(BusError::Silent(what))
    }

    fn message(&mut self, what: &'static str) -> Result<MarshalledMessage, BusError> {
        loop {
            let needed = needed(&self.inbox)?;
            if let Some(whole) = needed.filter(|needed| *needed <= self.inbox.len()) {
                let bytes: Vec<u8> = self.inbox.drain(..whole).collect();
                return parse(&bytes).map_err(|error| BusError::Malformed(format!("{error:?}")));
            }
            self.receive(what)?;
        }
    }

    fn left(&self, what: &'static str) -> Result<Duration, BusError> {
        let left = self.until.checked_sub(self.clock.since_boot()).filter(|left| !left.is_zero());
        left.ok_or(BusError::Silent(what))
    }

    fn send(&mut self, bytes: &[u8], what: &'static str) -> Result<(), BusError> {
        let left = self.left(what)?;
        self.stream.set_write_timeout(Some(left)).map_err(BusError::Io)?;
        self.stream.write_all(bytes).map_err(|error| failed(error, what))
    }

    fn receive(&mut self, what: &'static str) -> Result<(), BusError> {
        let left = self.left(what)?;
        self.stream.set_read_timeout(Some(left)).map_err(BusError::Io)?;
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => Err(BusError::Closed(what)),
            Ok(length) => {
                self.inbox.extend(buffer.iter().take(length));
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(failed(error, what)),
        }
    }
}

fn failed(error: io::Error, what: &'static str) -> BusError {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => BusError::Silent(what),
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => BusError::Closed(what),
        _ => BusError::Io(error),
    }
}

/// How long the message is that begins here; `None`: too few bytes to know.
fn needed(bytes: &[u8]) -> Result<Option<usize>, BusError> {
    let (Some(preamble), Some(order)) = (bytes.get(..PREAMBLE_BYTES), bytes.first()) else { return Ok(None) };
    let word = |at: usize| -> Option<u32> {
        let word: [u8; 4] = preamble.get(at..at + 4)?.try_into().ok()?;
        match order {
            b'l' => Some(u32::from_le_bytes(word)),
            b'B' => Some(u32::from_be_bytes(word)),
            _ => None,
        }
    };
    let lengths = word(4)
        .zip(word(12))
        .and_then(|(body, fields)| Some((usize::try_from(body).ok()?, usize::try_from(fields).ok()?)));
    let whole = lengths.and_then(|(body, fields)| {
        // The fields are padded to eight bytes, the body follows.
        fields.checked_add(PREAMBLE_BYTES)?.checked_next_multiple_of(8)?.checked_add(body)
    });
    match whole {
        Some(whole) if whole <= LARGEST_MESSAGE_BYTES => Ok(Some(whole)),
        Some(whole) => Err(BusError::Malformed(format!("a message of {whole} bytes"))),
        None => Err(BusError::Malformed("it is no D-Bus message".to_owned())),
    }
}

fn parse(bytes: &[u8]) -> Result<MarshalledMessage, rustbus::wire::errors::UnmarshalError> {
    let (used, header) = unmarshal::unmarshal_header(bytes, 0)?;
    let (fields, dynamic) = unmarshal::unmarshal_dynamic_header(&header, bytes, used)?;
    unmarshal::unmarshal_next_message(&header, dynamic, bytes, used + fields).map(|(_, message)| message)
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    let Ok(Some(whole)) = needed(bytes) else { return };
    // As many bytes as the head announces, and no more, are given to the library.
    if let Some(Ok(message)) = bytes.get(..whole).map(parse) {
        let mut parser = message.body.parser();
        crate::fuzz::done(parser.get::<String>());
        crate::fuzz::done(parser.get::<u64>());
        crate::fuzz::done(message.body.parser().get::<Vec<String>>());
    }
}

/// A peer of the tests' own: it speaks D-Bus and answers as it is told.
#[cfg(test)]
pub(crate) mod peer {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// What the peer does with a call: `None` says nothing.
    pub(crate) type Answer = dyn Fn(&MarshalledMessage) -> Option<MarshalledMessage> + Send + Sync;

    /// Listens at this path until the test ends.
    pub(crate) fn listen(
        path: &Path,
        answer: impl Fn(&MarshalledMessage) -> Option<MarshalledMessage> + Send + Sync + 'static,
    ) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(path).unwrap();
        let answer: std::sync::Arc<Answer> = std::sync::Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let answer = answer.clone();
                std::thread::spawn(move || drop(serve(stream.unwrap(), &*answer)));
            }
        });
    }

    fn serve(mut stream: UnixStream, answer: &Answer) -> Result<(), BusError> {
        let mut line = Vec::new();
        let mut byte = [0];
        while !line.ends_with(b"\r\n") {
            stream.read_exact(&mut byte).map_err(BusError::Io)?;
            line.extend(byte);
        }
        assert!(line.starts_with(b"\0AUTH EXTERNAL 3"), "{line:?}");
        stream.write_all(b"OK 1234deadbeef\r\n").map_err(BusError::Io)?;
        let mut begin = [0; 7];
        stream.read_exact(&mut begin).map_err(BusError::Io)?;
        assert_eq!(&begin, b"BEGIN\r\n");
        let clock = Clock::system();
        let until = clock.since_boot() + Duration::from_secs(60);
        let mut bus = Bus { stream, clock, until, serial: 0, inbox: Vec::new() };
        loop {
            let call = bus.message("a call")?;
            // A signal first, as the private socket sends them unasked.
            let signal = rustbus::MessageBuilder::new()
                .signal("org.freedesktop.systemd1.Manager", "UnitNew", "/org/freedesktop/systemd1")
                .build();
            bus.reply(&signal)?;
            if let Some(reply) = answer(&call) {
                if let Some(name) = &reply.dynheader.error_name {
                    bus.error(call.dynheader.serial.unwrap(), name)?;
                    continue;
                }
                bus.reply(&reply)?;
            }
        }
    }

    impl Bus {
        /// rustbus 0.19 writes no error's name, so it is written here, by the specification's table of header fields.
        fn error(&mut self, call: u32, name: &str) -> Result<(), BusError> {
            let mut fields = vec![5, 1, b'u', 0];
            fields.extend(call.to_le_bytes());
            fields.extend([4, 1, b's', 0]);
            fields.extend(u32::try_from(name.len()).unwrap().to_le_bytes());
            fields.extend(name.bytes().chain([0]));
            self.serial += 1;
            let mut bytes = vec![b'l', 3, 0, 1, 0, 0, 0, 0];
            bytes.extend(self.serial.to_le_bytes());
            bytes.extend(u32::try_from(fields.len()).unwrap().to_le_bytes());
            bytes.extend(&fields);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            self.send(&bytes, "an error")
        }

        fn reply(&mut self, message: &MarshalledMessage) -> Result<(), BusError> {
            self.serial += 1;
            let mut bytes = Vec::new();
            marshal::marshal(message, self.serial, &mut bytes).unwrap();
            bytes.extend_from_slice(message.get_buf());
            self.send(&bytes, "a reply")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use proptest::prelude::*;
    use rustbus::MessageBuilder;

    use super::*;
    use crate::host::Places;

    fn node() -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), Clock::system(), Places::default());
        (root, host)
    }

    fn ping() -> MarshalledMessage {
        MessageBuilder::new().call("Ping").on("/").with_interface("org.freedesktop.DBus.Peer").build()
    }

    #[test]
    fn a_call_is_answered_and_signals_are_passed_over() {
        let (root, host) = node();
        peer::listen(&root.path().join("bus"), |call| {
            let mut reply = call.dynheader.make_response();
            reply.body.push_param("x".repeat(100_000)).unwrap();
            Some(reply)
        });
        let mut bus = host.dbus("/bus", Duration::from_secs(5)).unwrap();
        for _ in 0..3 {
            let answer = bus.call(&ping(), "Ping").unwrap();
            assert_eq!(answer.body.parser().get::<String>().unwrap().len(), 100_000);
        }
    }

    #[test]
    fn silence_errors_and_nobody_are_told_apart() {
        let (root, host) = node();
        let short = Duration::from_millis(50);
        assert!(
            matches!(host.dbus("/none", short), Err(BusError::Connect(error)) if error.kind() == ErrorKind::NotFound)
        );
        let kept = UnixListener::bind(root.path().join("hung")).unwrap();
        assert!(matches!(host.dbus("/hung", short), Err(BusError::Silent("the handshake"))));
        drop(kept);
        assert!(
            matches!(host.dbus("/hung", short), Err(BusError::Connect(error)) if error.kind() == ErrorKind::ConnectionRefused)
        );
        peer::listen(&root.path().join("silent"), |_| None);
        let mut bus = host.dbus("/silent", short).unwrap();
        assert!(matches!(bus.call(&ping(), "Ping"), Err(BusError::Silent("Ping"))));
        peer::listen(&root.path().join("angry"), |call| {
            let name = "org.freedesktop.DBus.Error.AccessDenied";
            Some(call.dynheader.make_error_response(name, None))
        });
        let mut bus = host.dbus("/angry", Duration::from_secs(5)).unwrap();
        let told = bus.call(&ping(), "Ping").unwrap_err().to_string();
        assert_eq!(told, "org.freedesktop.DBus.Error.AccessDenied: ");
    }

    fn message() -> Vec<u8> {
        let mut message = MessageBuilder::new().call("Ping").on("/a").with_interface("b.c").build();
        message.body.push_param("text").unwrap();
        let mut bytes = Vec::new();
        marshal::marshal(&message, 7, &mut bytes).unwrap();
        bytes.extend_from_slice(message.get_buf());
        bytes
    }

    proptest! {
        #[test]
        fn the_length_is_known_from_the_preamble_on(cut in 0usize..80) {
            let whole = message();
            let cut = cut.min(whole.len());
            let known = needed(&whole[..cut]).unwrap();
            prop_assert_eq!(known, (cut >= PREAMBLE_BYTES).then_some(whole.len()));
            if cut < whole.len() {
                prop_assert!(parse(&whole[..cut]).is_err());
            }
        }

        #[test]
        fn any_bytes_have_a_bounded_length_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(Some(length)) = needed(&bytes) {
                prop_assert!(length <= LARGEST_MESSAGE_BYTES);
            }
        }
    }
}
