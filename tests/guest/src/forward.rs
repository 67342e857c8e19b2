//! A Unix socket on the host that stands for one of the guest's.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::EventFd;

use crate::carry::{not_now, wait};
use crate::client::Client;

/// Listens until it is dropped; connections that are under way go on to their own end.
#[derive(Debug)]
pub struct Forward {
    path: PathBuf,
    stop: Arc<EventFd>,
    listening: Option<JoinHandle<()>>,
}

impl Forward {
    pub(crate) fn start(client: Client, guest_socket: &str, host_socket: &Path) -> io::Result<Forward> {
        let listener = UnixListener::bind(host_socket)?;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(EventFd::new()?);
        let (stopped, guest_socket) = (stop.clone(), guest_socket.to_owned());
        let listening = thread::spawn(move || {
            if let Err(error) = listen(&listener, &stopped, &client, &guest_socket) {
                eprintln!("the forwarding to the guest's {guest_socket} ended: {error}");
            }
        });
        Ok(Forward { path: host_socket.to_owned(), stop, listening: Some(listening) })
    }

    /// The socket here.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn listen(listener: &UnixListener, stop: &EventFd, client: &Client, guest_socket: &str) -> io::Result<()> {
    loop {
        let mut fds =
            [PollFd::new(stop.as_fd(), PollFlags::POLLIN), PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        wait(&mut fds, PollTimeout::NONE)?;
        let [stopped, _] = fds;
        if stopped.any() == Some(true) {
            return Ok(());
        }
        let connection = match listener.accept() {
            Ok((connection, _)) => connection,
            Err(error) if not_now(&error) => continue,
            Err(error) => return Err(error),
        };
        let (client, guest_socket) = (client.clone(), guest_socket.to_owned());
        // What goes wrong is told by the connection's end to whoever connected: a node that is down is asked again and
        // again, and each time would be a line.
        thread::spawn(move || client.carry(&guest_socket, connection).is_ok());
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        if let Err(error) = self.stop.write(1) {
            eprintln!("stop forwarding {}: {error}", self.path.display());
        } else if self.listening.take().is_some_and(|listening| listening.join().is_err()) {
            eprintln!("the forwarding of {} panicked", self.path.display());
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            eprintln!("remove {}: {error}", self.path.display());
        }
    }
}
