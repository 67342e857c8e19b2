//! The channel's server, in the guest. One thread reads the port, and never waits for anything else; each call has a
//! thread of a pool that was made beforehand.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use nix::unistd::Pid;

use crate::call::{Call, lock};
use crate::carry::carry;
use crate::channel::{
    Clocks, Decoder, End, Frame, Heard, Kind, LARGEST_PAYLOAD_BYTES, Nonce, Request, hello,
};
use crate::pool::Pool;
use crate::{files, run};

/// Calls that can be under way at once without a new thread.
const THREADS: usize = 48;
/// The kernel copies what one write(2) brings: small pieces need no large free pages.
const PIECE_BYTES: usize = 4096;
/// While no host is there, a virtio port's read returns at once.
const NO_HOST: Duration = Duration::from_millis(20);

/// The channel's server.
pub struct Server {
    pool: Arc<Pool>,
    /// What goes before the arguments of a program that is run.
    ordinary: Vec<OsString>,
}

/// The port's other direction. A host that is gone has no voice: what its calls still say is dropped.
struct Port {
    host: Mutex<(File, Option<Nonce>)>,
}

type Calls = Arc<Mutex<HashMap<u32, Arc<Call>>>>;

impl Server {
    /// Makes its threads. `ordinary` is a program (with arguments) that makes an ordinary process of itself and then
    /// executes its other arguments; empty where the server is itself an ordinary process.
    ///
    /// # Errors
    /// The kernel gives no threads.
    pub fn new(ordinary: Vec<OsString>) -> io::Result<Server> {
        Ok(Server { pool: Pool::new(THREADS)?, ordinary })
    }

    /// Serves one port after another host comes and goes, until the port fails. At its end (which a virtio port has
    /// while no host is connected) `end` says whether to read on.
    ///
    /// # Errors
    /// The port's own.
    pub fn serve(&self, mut port: File, read_on: bool) -> io::Result<()> {
        let voice = Arc::new(Port { host: Mutex::new((port.try_clone()?, None)) });
        let calls = Calls::default();
        let mut decoder = Decoder::default();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match port.read(&mut buffer) {
                Ok(0) => {
                    cancel_all(&calls, "the host is gone");
                    if !read_on {
                        return Ok(());
                    }
                    decoder.reset();
                    lock(&voice.host).1 = None;
                    std::thread::sleep(NO_HOST);
                }
                Ok(length) => decoder.push(buffer.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    cancel_all(&calls, "the port failed");
                    return Err(error);
                }
            }
            for heard in &mut decoder {
                match heard {
                    Heard::Hello(nonce) => welcome(&voice, nonce, &calls)?,
                    Heard::Frame(frame) => self.hear(frame, &voice, &calls),
                    Heard::Garbage => cancel_all(&calls, "garbage came"),
                }
            }
        }
    }

    fn hear(&self, frame: Frame, voice: &Arc<Port>, calls: &Calls) {
        if frame.kind != Kind::Ask {
            if let Some(call) = lock(calls).get(&frame.call) {
                call.deliver(frame.kind, frame.payload);
            }
            return;
        }
        if let Err(error) = self.begin(frame.call, &frame.payload, voice, calls) {
            lock(calls).remove(&frame.call);
            let send = voice_of(voice);
            let said = Clocks::now().and_then(|now| {
                let error = Some(format!("the guest can't begin the call: {error}"));
                let end = serde_json::to_vec(&End { began: now, ended: now, error, code: None })?;
                send(crate::channel::frame(frame.call, Kind::End, &end)?)
            });
            if let Err(error) = said {
                eprintln!("call {}: {error}", frame.call);
            }
        }
    }

    fn begin(&self, number: u32, ask: &[u8], voice: &Arc<Port>, calls: &Calls) -> io::Result<()> {
        let request: Request = serde_json::from_slice(ask)?;
        let call = Arc::new(Call::new(number, voice_of(voice))?);
        lock(calls).insert(number, call.clone());
        let (calls, ordinary) = (calls.clone(), self.ordinary.clone());
        self.pool.run(Box::new(move || {
            let said = answer(&request, &ordinary, &call);
            let mut open = lock(&calls);
            // Another host may have begun a call of the same number.
            if open.get(&number).is_some_and(|other| Arc::ptr_eq(other, &call)) {
                open.remove(&number);
            }
            drop(open);
            if let Err(error) = said.and_then(|end| call.say(Kind::End, &serde_json::to_vec(&end)?)) {
                eprintln!("call {number}: {error}");
            }
        }))
    }
}

/// Begins anew for this host: its own repeated handshake is only answered again.
fn welcome(voice: &Port, nonce: Nonce, calls: &Calls) -> io::Result<()> {
    let mut host = lock(&voice.host);
    if host.1 != Some(nonce) {
        // First nobody may speak, then the old calls end: none of their words comes after the answer.
        host.1 = Some(nonce);
        let old = std::mem::take(&mut *lock(calls));
        old.values().for_each(|call| call.cancel("another host came"));
    }
    write_all(&mut host.0, &hello(&nonce))
}

fn cancel_all(calls: &Calls, why: &str) {
    std::mem::take(&mut *lock(calls)).values().for_each(|call| call.cancel(why));
}

/// How calls of the host that is there now speak.
fn voice_of(voice: &Arc<Port>) -> crate::call::Send {
    let voice = voice.clone();
    let mine = lock(&voice.host).1;
    Arc::new(move |bytes| {
        let mut host = lock(&voice.host);
        if host.1 != mine {
            return Err(io::Error::other("its host is gone"));
        }
        write_all(&mut host.0, &bytes)
    })
}

fn write_all(port: &mut File, bytes: &[u8]) -> io::Result<()> {
    bytes.chunks(PIECE_BYTES).try_for_each(|piece| port.write_all(piece))
}

/// Does what is asked.
fn answer(request: &Request, ordinary: &[OsString], call: &Call) -> io::Result<End> {
    let began = Clocks::now()?;
    let done = match request {
        Request::Clocks => Ok(None),
        Request::Run { argv } => run::run(argv, ordinary, call).map(Some),
        Request::Connect { socket } => connect(socket, call).map(|()| None),
        Request::Write { path, mode } => files::write(path, *mode, call).map(|()| None),
        Request::Read { path } => files::read(path, call).map(|()| None),
        Request::Kill { pid, signal } => send_signal(*pid, *signal).map(|()| None),
        Request::SetClock { unix_nanos } => set_clock(*unix_nanos).map(|()| None),
    };
    let (code, error) = match done {
        Ok(code) => (code, None),
        Err(error) => (None, Some(error.to_string())),
    };
    Ok(End { began, ended: Clocks::now()?, error, code })
}

fn connect(path: &str, call: &Call) -> io::Result<()> {
    let socket = UnixStream::connect(path)
        .map_err(|error| io::Error::new(error.kind(), format!("connect to {path}: {error}")))?;
    carry(socket, call)
}

/// 0 and -1 would be the server's own group, and everybody.
fn send_signal(pid: i32, signal: i32) -> io::Result<()> {
    if matches!(pid, 0 | -1) {
        return Err(io::Error::other(format!("pid {pid} is no process and no group: name one")));
    }
    let signal = if signal == 0 { None } else { Some(Signal::try_from(signal)?) };
    kill(Pid::from_raw(pid), signal)
        .map_err(|error| io::Error::other(format!("signal {signal:?} to {pid}: {error}")))
}

fn set_clock(unix_nanos: i64) -> io::Result<()> {
    let nanos = u64::try_from(unix_nanos).map_err(io::Error::other)?;
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from(Duration::from_nanos(nanos)))
        .map_err(|error| io::Error::other(format!("clock_settime to {unix_nanos} ns: {error}")))
}

impl std::fmt::Debug for Server {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Server").field("ordinary", &self.ordinary).finish_non_exhaustive()
    }
}

/// The largest stack user is a call's buffers: they must fit a pool thread's stack.
const _: () = assert!(LARGEST_PAYLOAD_BYTES * 4 < 192 * 1024);
