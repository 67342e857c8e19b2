use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::errno::Errno;
use nix::libc::{S_IFMT, S_IFSOCK};
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
    /// The kernel's own word, which tells the cases apart: ENOENT, ECONNREFUSED, EAGAIN, EACCES. What is no socket is
    /// said without one.
    pub fn connect_unix(&self, path: impl AsRef<Path>) -> io::Result<UnixPeer> {
        let path = path.as_ref();
        let address = UnixAddr::new(&self.path(path))?;
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        match connect(socket.as_raw_fd(), &address) {
            // The kernel's word for any other file, too (unix_find_bsd of net/unix/af_unix.c), and no server is dead then.
            Err(Errno::ECONNREFUSED) if self.stat(path).is_ok_and(|stat| stat.mode & S_IFMT != S_IFSOCK) => {
                return Err(io::Error::other("it is no socket"));
            }
            connected => connected?,
        }
        let pid = getsockopt(&socket, PeerCredentials)
            .ok()
            .and_then(|credentials| u32::try_from(credentials.pid()).ok())
            // Zero: a process of a PID namespace that this one does not contain.
            .filter(|pid| *pid != 0);
        Ok(UnixPeer { stream: UnixStream::from(socket), pid })
    }
}

#[cfg(test)]
mod tests {
    use nodewhy_clock::Clock;

    use super::*;
    use crate::host::Places;

    #[test]
    fn a_file_in_the_place_of_a_socket_is_no_server_that_refuses() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), Clock::system(), Places::default());
        std::fs::write(root.path().join("file"), "").unwrap();
        nix::unistd::mkfifo(&root.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in ["/file", "/pipe"] {
            let error = host.connect_unix(path).unwrap_err();
            assert_eq!((error.raw_os_error(), error.to_string().as_str()), (None, "it is no socket"));
        }
        drop(std::os::unix::net::UnixListener::bind(root.path().join("left")).unwrap());
        let refused = host.connect_unix("/left").unwrap_err().raw_os_error();
        assert_eq!(refused, Some(nix::libc::ECONNREFUSED), "its server is gone");
    }
}
