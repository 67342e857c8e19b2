//! Runs a program in process, mount and network namespaces of its own.
//!
//! The agent looks for a process named `kubelet`, and another test, or the machine itself, may run one. Alone, only
//! what the test started is there. When the first process of a PID namespace ends, the kernel kills all others of it,
//! and their mounts and interfaces go with them: nothing can be left behind, even after SIGKILL. Temporary files lie in a
//! file system in memory that ends likewise.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use anyhow::{Context, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

const MARK: &str = "NODEWHY_TESTS_ALONE";

/// Debian has it, and nothing that is built or tested lies in it.
const TEMPORARY: &str = "/media";

/// Runs this test alone: `true` inside, where the test goes on; `false` outside, after the run inside went well.
///
/// # Errors
/// The namespaces can't be made (root is needed), or the run inside failed.
pub fn alone(test: &str) -> anyhow::Result<bool> {
    let arguments = [test, "--exact", "--nocapture"].map(OsString::from);
    match enter(arguments)? {
        None => Ok(true),
        Some(mut child) => {
            let status = child.wait().context("wait for the run in its own namespaces")?;
            ensure!(status.success(), "{test}, run in its own namespaces, ended with {status}");
            Ok(false)
        }
    }
}

/// Starts this program again in namespaces of its own; `None` when this is that second run.
///
/// # Errors
/// The namespaces can't be made: root is needed.
pub fn enter(arguments: impl IntoIterator<Item = OsString>) -> anyhow::Result<Option<Child>> {
    if std::env::var_os(MARK).is_some() {
        settle_in()?;
        return Ok(None);
    }
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this starts a container runtime in namespaces of its own, which takes root: run it as root (sudo)"
    );
    // The new PID namespace is for children alone, so the child is its first process.
    unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
        .context("unshare process, mount and network namespaces")?;
    let program = std::env::current_exe().context("find this program's own file")?;
    let child = Command::new(&program)
        .args(arguments)
        .env(MARK, "1")
        .env("TMPDIR", TEMPORARY)
        // A terminal's Ctrl-C reaches the outer process alone, which passes it on.
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {} again", program.display()))?;
    Ok(Some(child))
}

fn settle_in() -> anyhow::Result<()> {
    if std::process::id() != 1 {
        bail!("{MARK} is set, but this is not the first process of a PID namespace: unset it");
    }
    set_pdeathsig(Signal::SIGKILL).context("ask to die with the outer process")?;
    // Mounts are often shared with the outer namespace; without this our /proc would appear there.
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make mounts private")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, none)
        .context("mount /proc of the new PID namespace")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    // Programs are copied into it and started there.
    mount(Some("tmpfs"), TEMPORARY, Some("tmpfs"), flags, Some("mode=1777"))
        .with_context(|| format!("mount a file system in memory on {TEMPORARY}"))?;
    let status = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status()
        .context("run ip (Debian's package iproute2)")?;
    ensure!(status.success(), "ip link set lo up: {status}");
    Ok(())
}
