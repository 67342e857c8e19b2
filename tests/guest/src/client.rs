//! The channel's client, on the host: blocking, usable from many threads at once. No call waits without end: each has a
//! deadline, and its error says what was asked and that no answer came.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::poll::{PollFd, PollFlags, PollTimeout};

use crate::call::{Call, Input, Send, lock};
use crate::carry::{carry, wait};
use crate::channel::{Clocks, Decoder, End, Heard, Kind, Nonce, Request, hello};
use crate::forward::Forward;

/// How long a call may take where nothing else is said.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// How often a handshake is repeated: a guest that has just opened its port has not seen what came before.
const AGAIN: Duration = Duration::from_millis(500);
/// What a program says, or a file holds, is refused beyond this.
const LARGEST_ANSWER_BYTES: usize = 256 * 1024 * 1024;

/// Why a call has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The guest is silent.
    #[error(
        "asked the guest to {asked}: no answer came in {seconds} s; is the virtual machine running, and not frozen?"
    )]
    NoAnswer {
        /// What was asked.
        asked: String,
        /// The deadline.
        seconds: f64,
    },
    /// The channel failed.
    #[error("asked the guest to {asked}: the channel failed: {why}")]
    Broken {
        /// What was asked.
        asked: String,
        /// The channel's error.
        why: String,
    },
    /// The guest tried, and failed.
    #[error("asked the guest to {asked}: {why}")]
    Refused {
        /// What was asked.
        asked: String,
        /// The guest's words.
        why: String,
        /// How it ended.
        end: Box<End>,
    },
}

/// What a program left.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
    /// Its exit code, or 128 and the signal's number.
    pub code: i32,
    /// When it was, by the guest's clocks.
    pub end: End,
}

/// The channel's client.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    stream: UnixStream,
    frames: Mutex<Sender<Vec<u8>>>,
    calls: Mutex<HashMap<u32, Arc<Call>>>,
    next: AtomicU32,
    /// The handshake that was answered last.
    met: Mutex<Option<Nonce>>,
    meeting: Condvar,
    broken: Mutex<Option<String>>,
}

/// A program that runs. Dropped, it is killed with its process group.
#[derive(Debug)]
pub struct Running {
    client: Client,
    call: Arc<Call>,
    asked: String,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    read: usize,
}

impl Client {
    /// Begins a conversation over qemu's chardev socket: what a former host had under way is dropped. The guest may
    /// still be booting: it is waited for until the deadline.
    ///
    /// # Errors
    /// No answer, or the socket's own.
    pub fn new(stream: UnixStream, deadline: Duration) -> Result<Client, ClientError> {
        let (frames, queue) = channel();
        let failed = |error: std::io::Error| broken("begin", error);
        let (reading, writing) = (stream.try_clone().map_err(failed)?, stream.try_clone().map_err(failed)?);
        let shared = Arc::new(Shared {
            stream,
            frames: Mutex::new(frames),
            calls: Mutex::default(),
            next: AtomicU32::new(1),
            met: Mutex::default(),
            meeting: Condvar::new(),
            broken: Mutex::default(),
        });
        // The threads hold the shared part weakly: the last client's end closes the stream, and so ends them.
        let (reader, writer) = (Arc::downgrade(&shared), Arc::downgrade(&shared));
        thread::spawn(move || {
            let why = read(reading, &reader);
            if let Some(shared) = reader.upgrade() {
                shared.fail(&why);
            }
        });
        thread::spawn(move || {
            if let Err(error) = write(writing, &queue)
                && let Some(shared) = writer.upgrade()
            {
                shared.fail(&format!("write: {error}"));
            }
        });
        let client = Client { shared };
        client.again(deadline)?;
        Ok(client)
    }

    /// Another handshake over the same stream: after a snapshot was loaded, or after the guest booted again. Every call
    /// that is under way ends.
    ///
    /// # Errors
    /// No answer, or the channel's own.
    pub fn again(&self, deadline: Duration) -> Result<(), ClientError> {
        let shared = &self.shared;
        let asked = "begin a conversation";
        let began = Instant::now();
        let nonce = nonce();
        lock(&shared.calls).drain().for_each(|(_, call)| call.cancel("the conversation began anew"));
        loop {
            shared.send(hello(&nonce)).map_err(|error| broken(asked, error))?;
            let met = lock(&shared.met);
            let (met, _) = shared
                .meeting
                .wait_timeout_while(met, AGAIN.min(deadline), |met| {
                    *met != Some(nonce) && lock(&shared.broken).is_none()
                })
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            if *met == Some(nonce) {
                return Ok(());
            }
            drop(met);
            if let Some(why) = lock(&shared.broken).clone() {
                return Err(broken(asked, why));
            }
            if began.elapsed() >= deadline {
                return Err(ClientError::NoAnswer {
                    asked: asked.to_owned(),
                    seconds: deadline.as_secs_f64(),
                });
            }
        }
    }

    /// Runs a program to its end, in at most [`DEADLINE`]. A program that fails is no error here: see its code.
    ///
    /// # Errors
    /// No answer, or it could not be started.
    pub fn run(&self, argv: &[&str]) -> Result<Output, ClientError> {
        self.run_for(argv, &[], DEADLINE)
    }

    /// Runs a program with this standard input, in at most `deadline`: then it is killed.
    ///
    /// # Errors
    /// As [`Client::run`].
    pub fn run_for(&self, argv: &[&str], stdin: &[u8], deadline: Duration) -> Result<Output, ClientError> {
        let ends = Ends::after(deadline);
        let mut running = self.start(argv)?;
        running.feed(stdin, &ends)?;
        running.finish(&ends)
    }

    /// Starts a program, with an empty standard input, and leaves it running.
    ///
    /// # Errors
    /// The channel's own.
    pub fn start(&self, argv: &[&str]) -> Result<Running, ClientError> {
        let asked = format!("run {argv:?}");
        let argv = argv.iter().map(|word| (*word).to_owned()).collect();
        let call = self.begin(&asked, &Request::Run { argv })?;
        Ok(Running { client: self.clone(), call, asked, stdout: Vec::new(), stderr: Vec::new(), read: 0 })
    }

    /// Writes a file in place; `mode` where it is made new.
    ///
    /// # Errors
    /// No answer, or the guest can't.
    pub fn write(&self, path: &str, mode: u32, bytes: &[u8]) -> Result<End, ClientError> {
        let asked = format!("write {} bytes to {path}", bytes.len());
        self.simple(asked, &Request::Write { path: path.to_owned(), mode }, bytes).map(|(end, _)| end)
    }

    /// Reads a file whole.
    ///
    /// # Errors
    /// No answer, or the guest can't.
    pub fn read(&self, path: &str) -> Result<Vec<u8>, ClientError> {
        self.simple(format!("read {path}"), &Request::Read { path: path.to_owned() }, &[])
            .map(|(_, bytes)| bytes)
    }

    /// Sends a signal; a negative pid means the process group.
    ///
    /// # Errors
    /// No answer, or the guest can't.
    pub fn kill(&self, pid: i32, signal: i32) -> Result<End, ClientError> {
        self.simple(format!("send signal {signal} to {pid}"), &Request::Kill { pid, signal }, &[])
            .map(|(end, _)| end)
    }

    /// The guest's clocks.
    ///
    /// # Errors
    /// No answer.
    pub fn clocks(&self) -> Result<Clocks, ClientError> {
        self.simple("tell its clocks".to_owned(), &Request::Clocks, &[]).map(|(end, _)| end.ended)
    }

    /// Sets the guest's wall clock.
    ///
    /// # Errors
    /// No answer, or the guest can't.
    pub fn set_clock(&self, unix_nanos: i64) -> Result<End, ClientError> {
        let asked = format!("set its clock to {unix_nanos} ns");
        self.simple(asked, &Request::SetClock { unix_nanos }, &[]).map(|(end, _)| end)
    }

    /// A connection to a Unix socket of the guest. Where the guest can't connect, it is closed at once.
    ///
    /// # Errors
    /// The channel's own.
    pub fn connect(&self, socket: &str) -> Result<UnixStream, ClientError> {
        let asked = format!("connect to {socket}");
        let (mine, theirs) = UnixStream::pair().map_err(|error| broken(&asked, error))?;
        let (client, socket) = (self.clone(), socket.to_owned());
        thread::spawn(move || {
            if let Err(error) = client.carry(&socket, theirs) {
                eprintln!("{error}");
            }
        });
        Ok(mine)
    }

    /// Carries a connection to the guest's socket, until it ends.
    ///
    /// # Errors
    /// The guest can't connect, or the channel failed.
    pub fn carry(&self, socket: &str, connection: UnixStream) -> Result<(), ClientError> {
        let asked = format!("connect to {socket}");
        let call = self.begin(&asked, &Request::Connect { socket: socket.to_owned() })?;
        let carried = carry(connection, &call);
        let end = call.end();
        self.forget(&call);
        if let Some(end) = end.filter(|end| end.error.is_some()) {
            return Err(refused(&asked, end));
        }
        carried.map_err(|error| broken(&asked, error))
    }

    /// Listens on a Unix socket here; each of its connections is carried to the guest's socket.
    ///
    /// # Errors
    /// The socket can't be made here.
    pub fn forward(&self, guest_socket: &str, host_socket: &Path) -> std::io::Result<Forward> {
        Forward::start(self.clone(), guest_socket, host_socket)
    }

    fn simple(&self, asked: String, request: &Request, input: &[u8]) -> Result<(End, Vec<u8>), ClientError> {
        let ends = Ends::after(DEADLINE);
        let call = self.begin(&asked, request)?;
        let mut running =
            Running { client: self.clone(), call, asked, stdout: Vec::new(), stderr: Vec::new(), read: 0 };
        running.feed(input, &ends)?;
        let end = running.until_end(&ends)?;
        Ok((end, std::mem::take(&mut running.stdout)))
    }

    fn begin(&self, asked: &str, request: &Request) -> Result<Arc<Call>, ClientError> {
        let failed = |error: std::io::Error| broken(asked, error);
        let shared = &self.shared;
        if let Some(why) = lock(&shared.broken).clone() {
            return Err(broken(asked, why));
        }
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        let weak = Arc::downgrade(shared);
        let send: Send = Arc::new(move |bytes| {
            let shared = weak.upgrade().ok_or_else(|| std::io::Error::other("the client is gone"))?;
            shared.send(bytes)
        });
        let call = Arc::new(Call::new(number, send).map_err(failed)?);
        lock(&shared.calls).insert(number, call.clone());
        let ask = serde_json::to_vec(request).map_err(|error| broken(asked, error))?;
        call.say(Kind::Ask, &ask).map_err(failed)?;
        Ok(call)
    }

    /// No frame of this call is wanted any more.
    fn forget(&self, call: &Call) {
        let known = lock(&self.shared.calls).remove(&call.number());
        if known.is_some() && call.end().is_none() {
            // Where the channel failed there is nobody to tell.
            call.say(Kind::Cancel, &[]).ok();
        }
    }
}

impl Running {
    /// The next line of its standard output, without the line's end: how a harmful program says that it is at work.
    ///
    /// # Errors
    /// None came before the deadline, or the program ended.
    pub fn line(&mut self, deadline: Duration) -> Result<String, ClientError> {
        let ends = Ends::after(deadline);
        loop {
            self.call.listen();
            self.drain()?;
            let unread = self.stdout.get(self.read..).unwrap_or_default();
            if let Some(length) = unread.iter().position(|byte| *byte == b'\n') {
                let line = String::from_utf8_lossy(unread.get(..length).unwrap_or_default()).into_owned();
                self.read += length + 1;
                return Ok(line);
            }
            if let Some(end) = self.call.end() {
                let said = String::from_utf8_lossy(&self.stderr).trim().to_owned();
                let mut end = end;
                end.error
                    .get_or_insert(format!("it ended ({:?}) and said no further line: {said}", end.code));
                return Err(refused(&self.asked, end));
            }
            ends.wait(&self.call, &self.asked)?;
        }
    }

    /// Waits for its end. At the deadline it is killed.
    ///
    /// # Errors
    /// No answer, or it could not be started.
    pub fn wait(self, deadline: Duration) -> Result<Output, ClientError> {
        self.finish(&Ends::after(deadline))
    }

    /// Kills it, with its process group, and waits until the guest has.
    ///
    /// # Errors
    /// No answer.
    pub fn stop(mut self) -> Result<(), ClientError> {
        let ends = Ends::after(DEADLINE);
        self.call.say(Kind::Cancel, &[]).map_err(|error| broken(&self.asked, error))?;
        while self.call.end().is_none() {
            self.call.listen();
            self.drain()?;
            if self.call.end().is_none() {
                ends.wait(&self.call, &self.asked)?;
            }
        }
        Ok(())
    }

    /// Sends the input as fast as the guest takes it, and takes meanwhile what it says.
    fn feed(&mut self, mut input: &[u8], ends: &Ends) -> Result<(), ClientError> {
        while !input.is_empty() && self.call.end().is_none() {
            self.call.listen();
            self.drain()?;
            let (now, later) = input.split_at(self.call.credit_bytes().min(input.len()));
            if now.is_empty() && self.call.end().is_none() {
                ends.wait(&self.call, &self.asked)?;
            }
            self.call.send(Kind::Bytes, now).map_err(|error| broken(&self.asked, error))?;
            input = later;
        }
        self.call.say(Kind::Close, &[]).map_err(|error| broken(&self.asked, error))
    }

    fn finish(mut self, ends: &Ends) -> Result<Output, ClientError> {
        let end = self.until_end(ends)?;
        let code = end.code.ok_or_else(|| broken(&self.asked, "its end has no exit code"))?;
        let (stdout, stderr) = (std::mem::take(&mut self.stdout), std::mem::take(&mut self.stderr));
        Ok(Output { stdout, stderr, code, end })
    }

    fn until_end(&mut self, ends: &Ends) -> Result<End, ClientError> {
        loop {
            self.call.listen();
            self.drain()?;
            match self.call.end() {
                Some(end) if end.error.is_some() => return Err(refused(&self.asked, end)),
                Some(end) => return Ok(end),
                None => ends.wait(&self.call, &self.asked)?,
            }
        }
    }

    /// Takes all that has come.
    fn drain(&mut self) -> Result<(), ClientError> {
        if let Some(why) = self.call.cancelled() {
            return Err(broken(&self.asked, why));
        }
        loop {
            match self.call.take().map_err(|error| broken(&self.asked, error))? {
                Input::Bytes(Kind::Error, bytes) => self.stderr.extend(bytes),
                Input::Bytes(_, bytes) => self.stdout.extend(bytes),
                Input::Closed | Input::Nothing => break,
            }
        }
        if self.stdout.len() + self.stderr.len() > LARGEST_ANSWER_BYTES {
            return Err(broken(&self.asked, format!("it said more than {LARGEST_ANSWER_BYTES} bytes")));
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.client.forget(&self.call);
    }
}

impl Output {
    /// The standard output of a program that succeeded.
    ///
    /// # Errors
    /// It failed: with its code and the end of what it said.
    pub fn text(&self) -> Result<String, String> {
        let stdout = String::from_utf8_lossy(&self.stdout);
        if self.code == 0 {
            return Ok(stdout.into_owned());
        }
        Err(format!("exit code {}: {}{}", self.code, stdout, String::from_utf8_lossy(&self.stderr)))
    }
}

impl Shared {
    fn send(&self, bytes: Vec<u8>) -> std::io::Result<()> {
        lock(&self.frames).send(bytes).map_err(|_| std::io::Error::other("the channel's writer ended"))
    }

    fn fail(&self, why: &str) {
        lock(&self.broken).get_or_insert_with(|| why.to_owned());
        lock(&self.calls).drain().for_each(|(_, call)| call.cancel(why));
        // Under the lock of who waits, so that it is not missed.
        drop(lock(&self.met));
        self.meeting.notify_all();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // It fails where the other side was first.
        self.stream.shutdown(Shutdown::Both).ok();
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Shared").field("stream", &self.stream).finish_non_exhaustive()
    }
}

/// When a call is given up.
struct Ends {
    at: Instant,
    deadline: Duration,
}

impl Ends {
    fn after(deadline: Duration) -> Ends {
        Ends { at: Instant::now() + deadline, deadline }
    }

    /// Waits until something changed.
    fn wait(&self, call: &Call, asked: &str) -> Result<(), ClientError> {
        let left = self.at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ClientError::NoAnswer {
                asked: asked.to_owned(),
                seconds: self.deadline.as_secs_f64(),
            });
        }
        // A round up: else it would be asked again and again in the last millisecond.
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        wait(&mut [PollFd::new(call.as_fd(), PollFlags::POLLIN)], timeout)
            .map_err(|error| broken(asked, error))
    }
}

fn broken(asked: &str, why: impl std::fmt::Display) -> ClientError {
    ClientError::Broken { asked: asked.to_owned(), why: why.to_string() }
}

fn refused(asked: &str, end: End) -> ClientError {
    let why = end.error.clone().unwrap_or_else(|| "it failed, and did not say why".to_owned());
    ClientError::Refused { asked: asked.to_owned(), why, end: Box::new(end) }
}

/// Never the same twice: two hosts, or two snapshots' hosts, must not be taken for one.
fn nonce() -> Nonce {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let mixed = nanos ^ (u128::from(std::process::id()) << 96) ^ (u128::from(count) << 64);
    mixed.to_le_bytes()
}

/// Gives each call what came for it, until the stream ends. Why it ended.
fn read(mut stream: UnixStream, shared: &std::sync::Weak<Shared>) -> String {
    let (mut decoder, mut buffer) = (Decoder::default(), vec![0; 64 * 1024]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return "the virtual machine closed it".to_owned(),
            Ok(length) => decoder.push(buffer.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return format!("read: {error}"),
        }
        let Some(shared) = shared.upgrade() else { return "the client is gone".to_owned() };
        for heard in &mut decoder {
            match heard {
                Heard::Hello(nonce) => {
                    *lock(&shared.met) = Some(nonce);
                    shared.meeting.notify_all();
                }
                Heard::Frame(frame) => {
                    let mut calls = lock(&shared.calls);
                    // What comes for a call that was given up is not wanted.
                    if frame.kind == Kind::End {
                        if let Some(call) = calls.remove(&frame.call) {
                            call.deliver(frame.kind, frame.payload);
                        }
                    } else if let Some(call) = calls.get(&frame.call) {
                        call.deliver(frame.kind, frame.payload);
                    }
                }
                Heard::Garbage => {
                    lock(&shared.calls).drain().for_each(|(_, call)| call.cancel("garbage came"));
                }
            }
        }
    }
}

/// Its own thread, so that a virtual machine that does not read holds up no caller past its deadline. What waits here
/// is bounded by the calls' windows.
fn write(mut stream: UnixStream, queue: &Receiver<Vec<u8>>) -> std::io::Result<()> {
    queue.iter().try_for_each(|bytes| stream.write_all(&bytes))
}
