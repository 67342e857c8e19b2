//! The kernel log for an agent that may not open it: a helper in a privileged container opens /dev/kmsg and hands the
//! descriptor over a Unix socket (SCM_RIGHTS). Only opening needs the right, not reading.
//!
//! The helper opens the device anew for each that asks, since a descriptor's place in the log belongs to the opening,
//! not to the reader. It hands it to processes of its own user alone, reads nothing, and keeps nothing.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg, sockopt::socket_peercred,
};

use super::kmsg::{KMSG, Kmsg};
use super::{Host, ReadError};

/// Where the helper waits, a path of the host.
pub const SOCKET: &str = "/run/nodewhy/kmsg.sock";
/// How this way of reading is called.
pub const HANDED: &str = "handed descriptor";

/// The helper answers at once, or does not run.
const LIMIT: Duration = Duration::from_secs(1);

impl Host {
    /// Asks the helper for the kernel log.
    ///
    /// # Errors
    /// `Absent` where none waits; else why it gave nothing that can be used.
    pub fn open_handed_kmsg(&self) -> Result<Kmsg, ReadError> {
        let peer = self.connect_unix(SOCKET).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                ReadError::absent(format!("no helper waits at {SOCKET} (nodewhy-agent kmsg-helper)"))
            }
            _ => ReadError::from_io("connect to", Path::new(SOCKET), error),
        })?;
        let file = receive(&peer.stream)
            .map_err(|error| ReadError::from_io("receive /dev/kmsg from", Path::new(SOCKET), error))?;
        Kmsg::of_descriptor(file)
            .ok_or_else(|| ReadError::malformed(SOCKET, "what it hands over is not the kernel log (1:11)"))
    }
}

fn receive(stream: &UnixStream) -> std::io::Result<File> {
    let limit = PollTimeout::try_from(LIMIT).unwrap_or(PollTimeout::ZERO);
    if poll(&mut [PollFd::new(stream.as_fd(), PollFlags::POLLIN)], limit)? == 0 {
        return Err(std::io::Error::from(std::io::ErrorKind::TimedOut));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let handed = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    handed
        .map(File::from)
        .ok_or_else(|| std::io::Error::other("it hung up and gave no descriptor: see its own log"))
}

/// Waits at this socket, for ever, and hands the kernel log to each that asks.
///
/// # Errors
/// The socket can't be made, or /dev/kmsg can't be opened at all.
pub fn serve(socket: &Path) -> std::io::Result<()> {
    serve_device(socket, Path::new(KMSG))
}

fn serve_device(socket: &Path, device: &Path) -> std::io::Result<()> {
    // Said at the start, not when somebody asks.
    drop(open(device)?);
    // What an earlier one left; nothing else is removed.
    if std::fs::symlink_metadata(socket).is_ok_and(|meta| meta.file_type().is_socket()) {
        std::fs::remove_file(socket)?;
    }
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, Permissions::from_mode(0o600))?;
    for stream in listener.incoming() {
        if let Err(error) = stream.and_then(|stream| hand(&stream, device)) {
            tracing::warn!(%error, "could not hand /dev/kmsg over");
        }
    }
    Ok(())
}

fn hand(stream: &UnixStream, device: &Path) -> std::io::Result<()> {
    let peer = socket_peercred(stream)?;
    if peer.uid != rustix::process::geteuid() {
        return Err(std::io::Error::other(format!(
            "uid {} asked: only this program's own user may",
            peer.uid.as_raw()
        )));
    }
    // One that does not read holds nobody up for long.
    stream.set_write_timeout(Some(LIMIT))?;
    let file = open(device)?;
    let descriptors = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(std::io::Error::other("no room for the descriptor"));
    }
    sendmsg(stream, &[IoSlice::new(b"k")], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn open(device: &Path) -> std::io::Result<File> {
    let flags = nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_CLOEXEC;
    OpenOptions::new().read(true).custom_flags(flags.bits()).open(device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Places;
    use crate::host::kmsg::Next;
    use nodewhy_clock::Clock;

    fn wait_for(path: &Path) {
        for _ in 0..500 {
            if path.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{} was not made", path.display());
    }

    #[test]
    fn each_that_asks_gets_the_log_from_its_beginning() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), Clock::system(), Places::default());
        assert!(matches!(host.open_handed_kmsg(), Err(ReadError::Absent { .. })));
        let socket = root.path().join("run/nodewhy/kmsg.sock");
        if let Err(error) = open(Path::new(KMSG)) {
            // A container without the right: the helper says so at its start, and makes no socket.
            assert_eq!(serve(&socket).unwrap_err().kind(), error.kind());
            return;
        }
        let at = socket.clone();
        std::thread::spawn(move || serve(&at));
        wait_for(&socket);
        assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
        let first = |kmsg: &mut Kmsg| match kmsg.next_record().unwrap() {
            Next::Record(record) => record.to_vec(),
            other => panic!("{other:?}"),
        };
        let (mut one, mut two) = (host.open_handed_kmsg().unwrap(), host.open_handed_kmsg().unwrap());
        assert!(one.is_device());
        let whole = first(&mut one);
        first(&mut one);
        assert_eq!(first(&mut two), whole, "its place in the log is its own");
    }

    #[test]
    fn what_is_not_the_kernel_log_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), Clock::system(), Places::default());
        let socket = root.path().join("run/nodewhy/kmsg.sock");
        let at = socket.clone();
        std::thread::spawn(move || serve_device(&at, Path::new("/dev/null")));
        wait_for(&socket);
        let error = host.open_handed_kmsg().unwrap_err().to_string();
        assert!(error.contains("is not the kernel log (1:11)"), "{error}");
    }
}
