//! The channel's server, in the guest: answers the host while memory thrashes, while no pid is left, while disks hang.
//!
//! `guest [PORT]` serves the virtio port (or, where PORT is a Unix socket, connects to it: so it is tested without a
//! virtual machine). `guest ordinary PROGRAM …` is how it starts what the host runs: as any other process, not as
//! itself.
//!
//! What makes it robust: all of its memory is locked, it is not killed for want of memory, it runs before all ordinary
//! processes (SCHED_RR, which its children do not inherit), its threads exist beforehand. What it can't: fork where
//! no pid is left (the call says so), and open files on a disk that hangs (that call hangs alone).

#![expect(
    clippy::disallowed_methods,
    reason = "it is the part of the tests that starts processes and breaks things"
)]

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use nix::sys::mman::{MlockAllFlags, mlockall};
use nodewhy_guest::channel::PORT;
use nodewhy_guest::server::Server;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let first = arguments.next();
    if first.as_deref() == Some("ordinary".as_ref()) {
        return Err(ordinary(arguments));
    }
    let port = first.map_or_else(|| Path::new("/dev/virtio-ports").join(PORT), PathBuf::from);
    let itself = std::env::current_exe().context("find the own program")?;
    let server = Server::new(vec![itself.into(), "ordinary".into()]).context("make the threads")?;
    // Where a right is missing it serves all the same, less robust: said, not hidden.
    for (what, done) in
        [("lock memory", lock_memory()), ("oom_score_adj", protect()), ("scheduling", go_first())]
    {
        if let Err(error) = done {
            eprintln!("guest: {what}: {error:#}");
        }
    }
    loop {
        let (file, read_on) = open(&port).with_context(|| format!("open {}", port.display()))?;
        server.serve(file, read_on).with_context(|| format!("serve {}", port.display()))?;
    }
}

/// A virtio port stays open: its reader gets an end while no host is there. A socket's end is its end.
fn open(port: &Path) -> io::Result<(File, bool)> {
    if std::fs::metadata(port)?.file_type().is_socket() {
        return Ok((OwnedFd::from(UnixStream::connect(port)?).into(), false));
    }
    // A port has one opener: one that was just killed may still hold it.
    let mut tries = 0;
    loop {
        match OpenOptions::new().read(true).write(true).open(port) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && tries < 50 => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(100));
            }
            other => return Ok((other?, true)),
        }
    }
}

fn lock_memory() -> anyhow::Result<()> {
    Ok(mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE)?)
}

fn protect() -> anyhow::Result<()> {
    Ok(std::fs::write("/proc/self/oom_score_adj", "-1000")?)
}

/// Before all ordinary processes, all threads that exist now. With the flag its children are ordinary again.
fn go_first() -> anyhow::Result<()> {
    let own = std::process::id().to_string();
    let said = Command::new("chrt")
        .args(["--all-tasks", "--reset-on-fork", "--rr", "--pid", "50", &own])
        .output()
        .context("run chrt (Debian's package util-linux)")?;
    anyhow::ensure!(said.status.success(), "chrt: {}", String::from_utf8_lossy(&said.stderr).trim());
    Ok(())
}

/// Gives up what the server has above others, and becomes the program. Returns where it can't.
fn ordinary(mut arguments: impl Iterator<Item = OsString>) -> anyhow::Error {
    let Some(program) = arguments.next() else { return anyhow::anyhow!("no program is named") };
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "0") {
        eprintln!("guest: set oom_score_adj of {} to 0: {error}", program.display());
    }
    let error = Command::new(&program).args(arguments).exec();
    eprintln!("guest: {}: {error}", program.display());
    std::process::exit(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 })
}
