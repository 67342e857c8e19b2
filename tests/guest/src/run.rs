//! Runs a program for the host, in one thread, however much it says.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open};

use crate::call::{Call, Input};
use crate::carry::{not_now, wait};
use crate::channel::{Kind, LARGEST_PAYLOAD_BYTES};

/// What a program's children, which hold its output open, may still say after its end.
const LAST_WORDS_MILLIS: u8 = 200;
/// A killed program is waited for so long; one that hangs in the kernel can't be.
const KILLED_MILLIS: u8 = 250;
/// Debian's, where the server was started without one.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs it to its end. The exit code, or 128 and the signal's number.
///
/// # Errors
/// It can't be started (no pid, no memory), or the call was cancelled: then its process group was killed.
pub(crate) fn run(argv: &[String], ordinary: &[OsString], call: &Call) -> io::Result<i32> {
    let mut words = ordinary.iter().cloned().chain(argv.iter().map(OsString::from));
    let program = words.next().ok_or_else(|| io::Error::other("no program is named"))?;
    let mut command = Command::new(program);
    command.args(words).process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if std::env::var_os("PATH").is_none() {
        command.env("PATH", PATH);
    }
    let mut child = command.spawn()?;
    match attend(&mut child, call) {
        Ok(status) => Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))),
        Err(error) => {
            kill_group(&mut child)?;
            Err(error)
        }
    }
}

/// The child is not reaped yet, so its group can be nobody else's.
fn kill_group(child: &mut Child) -> io::Result<()> {
    let group = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
    killpg(group, Signal::SIGKILL)?;
    let ended = pidfd(child)?;
    wait(&mut [PollFd::new(ended.as_fd(), PollFlags::POLLIN)], PollTimeout::from(KILLED_MILLIS))?;
    // One that is in an uninterruptible sleep stays a zombie of ours: its thread is not lost for it.
    child.try_wait()?;
    Ok(())
}

fn pidfd(child: &Child) -> io::Result<OwnedFd> {
    Ok(pidfd_open(rustix::process::Pid::from_child(child), PidfdFlags::empty())?)
}

fn nonblocking(fd: impl AsFd) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Carries its input and outputs until it has ended and all was said.
fn attend(child: &mut Child, call: &Call) -> io::Result<ExitStatus> {
    let ended = pidfd(child)?;
    let (mut stdin, mut stdout, mut stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    stdin.as_ref().map_or(Ok(()), nonblocking)?;
    stdout.as_ref().map_or(Ok(()), nonblocking)?;
    stderr.as_ref().map_or(Ok(()), nonblocking)?;
    let (mut pending, mut written) = (Vec::new(), 0);
    let mut status = None;
    loop {
        call.listen();
        if let Some(why) = call.cancelled() {
            return Err(io::Error::other(why));
        }
        while written == pending.len() {
            match call.take()? {
                // Without a reader it is thrown away: the host must not be stopped by it.
                Input::Bytes(_, bytes) if stdin.is_some() => (pending, written) = (bytes, 0),
                Input::Bytes(..) => {}
                Input::Closed => {
                    stdin = None;
                    break;
                }
                Input::Nothing => break,
            }
        }
        let room = call.credit_bytes() > 0;
        let mut fds = vec![PollFd::new(call.as_fd(), PollFlags::POLLIN)];
        if status.is_none() {
            fds.push(PollFd::new(ended.as_fd(), PollFlags::POLLIN));
        }
        fds.extend(stdout.iter().filter(|_| room).map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        fds.extend(stderr.iter().filter(|_| room).map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        let unwritten = written < pending.len();
        fds.extend(
            stdin.iter().filter(|_| unwritten).map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)),
        );
        let last_words = status.is_some() && room;
        wait(&mut fds, if last_words { LAST_WORDS_MILLIS.into() } else { PollTimeout::NONE })?;
        let quiet = fds.iter().all(|fd| fd.any() == Some(false));
        drop(fds);

        if unwritten && write_some(&mut stdin, pending.get(written..).unwrap_or_default(), &mut written)? {
            (stdin, pending, written) = (None, Vec::new(), 0);
        }
        if room {
            read_some(&mut stdout, Kind::Bytes, call)?;
            read_some(&mut stderr, Kind::Error, call)?;
        }
        if status.is_none() {
            status = child.try_wait()?;
        }
        if let Some(status) = status
            && ((stdout.is_none() && stderr.is_none()) || (last_words && quiet))
        {
            return Ok(status);
        }
    }
}

/// Whether its reader is gone.
fn write_some(pipe: &mut Option<impl Write>, bytes: &[u8], written: &mut usize) -> io::Result<bool> {
    let Some(pipe) = pipe else { return Ok(true) };
    match pipe.write(bytes) {
        Ok(length) => *written += length,
        Err(error) if not_now(&error) => {}
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(true),
        Err(error) => return Err(error),
    }
    Ok(false)
}

/// Sends what one read gives; at its end the pipe is dropped.
fn read_some(pipe: &mut Option<impl Read>, kind: Kind, call: &Call) -> io::Result<()> {
    let Some(open) = pipe else { return Ok(()) };
    let mut buffer = [0; LARGEST_PAYLOAD_BYTES];
    let room = buffer.get_mut(..call.credit_bytes().min(LARGEST_PAYLOAD_BYTES)).unwrap_or_default();
    if room.is_empty() {
        return Ok(());
    }
    match open.read(room) {
        Ok(0) => *pipe = None,
        Ok(length) => call.send(kind, room.get(..length).unwrap_or_default())?,
        Err(error) if not_now(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}
