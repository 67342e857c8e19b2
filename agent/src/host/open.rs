//! How the node's files are opened. Whatever stands in the place of a file, opening it must not wait: a pipe without a
//! writer would hold its reader for ever.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::OFlag;

/// Opens a regular file to be read; those of /proc, /sys and cgroups are regular, too.
///
/// # Errors
/// It is not there, may not be opened, or is no file: a folder, a pipe, a socket, a device.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    let kind = file.metadata()?.file_type();
    // An empty pipe reads as an empty file.
    if kind.is_file() {
        return Ok(file);
    }
    let what = if kind.is_dir() {
        "a folder"
    } else if kind.is_fifo() {
        "a pipe"
    } else {
        "a device"
    };
    Err(io::Error::other(format!("it is {what}, and no file")))
}
