//! Carries bytes both ways between a socket and a call. Both sides of the channel do it the same.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::call::{Call, Input};
use crate::channel::{Kind, LARGEST_PAYLOAD_BYTES};

/// Waits until one of them has something. A signal is nothing.
pub(crate) fn wait(fds: &mut [PollFd<'_>], timeout: PollTimeout) -> io::Result<()> {
    match poll(fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether it would block.
pub(crate) fn not_now(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Carries until both have closed, the call is over, or nobody is left at the socket's other end.
///
/// # Errors
/// The socket's or the port's.
pub fn carry(mut socket: UnixStream, call: &Call) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    let mut buffer = [0; LARGEST_PAYLOAD_BYTES];
    let (mut pending, mut written) = (Vec::new(), 0);
    let (mut socket_closed, mut call_closed) = (false, false);
    loop {
        call.listen();
        if call.cancelled().is_some() {
            return Ok(());
        }
        while written == pending.len() && !call_closed {
            match call.take()? {
                Input::Bytes(_, bytes) => (pending, written) = (bytes, 0),
                Input::Closed => {
                    call_closed = true;
                    // It fails where the peer is gone, which is seen below.
                    socket.shutdown(Shutdown::Write).ok();
                }
                Input::Nothing => break,
            }
        }
        if call_closed && (socket_closed || call.end().is_some()) {
            return Ok(());
        }
        let credit = call.credit_bytes().min(buffer.len());
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::POLLIN, !socket_closed && credit > 0);
        wanted.set(PollFlags::POLLOUT, written < pending.len());
        // A hang-up is always told: without room for what the peer said last, it would wake us for nothing.
        let full = !socket_closed && credit == 0 && wanted.is_empty();
        let mut fds = [PollFd::new(call.as_fd(), PollFlags::POLLIN), PollFd::new(socket.as_fd(), wanted)];
        let (told, _) = fds.split_at_mut(if full { 1 } else { 2 });
        wait(told, PollTimeout::NONE)?;
        let [_, on_socket] = fds;
        let ready = if full { PollFlags::empty() } else { on_socket.revents().unwrap_or(PollFlags::empty()) };
        if ready.contains(PollFlags::POLLOUT) {
            match socket.write(pending.get(written..).unwrap_or_default()) {
                Ok(length) => written += length,
                Err(error) if not_now(&error) => {}
                Err(error) => return Err(error),
            }
        }
        if wanted.contains(PollFlags::POLLIN) && ready.intersects(PollFlags::POLLIN | PollFlags::POLLHUP) {
            let room = buffer.get_mut(..credit).unwrap_or_default();
            match socket.read(room) {
                Ok(0) => {
                    socket_closed = true;
                    call.say(Kind::Close, &[])?;
                }
                Ok(length) => call.send(Kind::Bytes, buffer.get(..length).unwrap_or_default())?,
                Err(error) if not_now(&error) => {}
                Err(error) => return Err(error),
            }
        }
        // Closed both ways at the other end, and all that it said was read: nobody takes what else would come.
        if socket_closed && ready.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
            return Ok(());
        }
    }
}
