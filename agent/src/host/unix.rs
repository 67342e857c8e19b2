use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt::PeerCredentials,
};

use super::Host;

/// A connection to a Unix socket of the host.
#[derive(Debug)]
pub struct UnixPeer {
    /// The connection; reads and writes on it do not block.
    pub stream: UnixStream,
    /// The process that called `listen` (SO_PEERCRED). The kernel tells it even while that process is stopped.
    /// `None` where this PID namespace does not show it. Under socket activation it is systemd's, not the server's.
    pub pid: Option<u32>,
}

impl Host {
    /// Connects to a Unix socket of the host, and never waits: with a full backlog (nobody accepts) the kernel
    /// says EAGAIN, where a blocking `connect` would hang with the server.
    ///
    /// # Errors
    /// The kernel's own word, which tells the cases apart: ENOENT, ECONNREFUSED, EAGAIN, EACCES.
    pub fn connect_unix(&self, path: impl AsRef<Path>) -> io::Result<UnixPeer> {
        let address = UnixAddr::new(&self.path(path))?;
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(socket.as_raw_fd(), &address)?;
        let pid = getsockopt(&socket, PeerCredentials)
            .ok()
            .and_then(|credentials| u32::try_from(credentials.pid()).ok())
            // Zero: a process of a PID namespace that this one does not contain.
            .filter(|pid| *pid != 0);
        Ok(UnixPeer { stream: UnixStream::from(socket), pid })
    }
}
