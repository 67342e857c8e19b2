//! The guest's files, for the host: read whole, or written in place.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;

use nix::poll::{PollFd, PollFlags, PollTimeout};

use crate::call::{Call, Input};
use crate::carry::wait;
use crate::channel::{Kind, LARGEST_PAYLOAD_BYTES};

fn wait_for(call: &Call) -> io::Result<()> {
    wait(&mut [PollFd::new(call.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)
}

fn named(path: &str, what: &str) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{what} {path}: {error}"))
}

/// Sends the file's bytes.
pub(crate) fn read(path: &str, call: &Call) -> io::Result<()> {
    let mut file = File::open(path).map_err(named(path, "open"))?;
    let mut buffer = [0; LARGEST_PAYLOAD_BYTES];
    loop {
        call.listen();
        if let Some(why) = call.cancelled() {
            return Err(io::Error::other(why));
        }
        let room = buffer.get_mut(..call.credit_bytes().min(LARGEST_PAYLOAD_BYTES)).unwrap_or_default();
        if room.is_empty() {
            wait_for(call)?;
            continue;
        }
        match file.read(room) {
            Ok(0) => return Ok(()),
            Ok(length) => call.send(Kind::Bytes, room.get(..length).unwrap_or_default())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(named(path, "read")(error)),
        }
    }
}

/// Writes what comes until `Close`.
pub(crate) fn write(path: &str, mode: u32, call: &Call) -> io::Result<()> {
    let mut file = open_to_write(path, mode).map_err(named(path, "open for writing"))?;
    loop {
        call.listen();
        if let Some(why) = call.cancelled() {
            return Err(io::Error::other(why));
        }
        match call.take()? {
            Input::Bytes(_, bytes) => file.write_all(&bytes).map_err(named(path, "write"))?,
            Input::Closed => return Ok(()),
            Input::Nothing => wait_for(call)?,
        }
    }
}

/// The mode is for a new file alone, and is not masked.
fn open_to_write(path: &str, mode: u32) -> io::Result<File> {
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(file) => {
            file.set_permissions(Permissions::from_mode(mode))?;
            Ok(file)
        }
        // A device, or a file of /proc, is opened as it is.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            OpenOptions::new().write(true).truncate(true).open(path)
        }
        Err(error) => OpenOptions::new().write(true).truncate(true).open(path).map_err(|_| error),
    }
}
