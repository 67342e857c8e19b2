//! A real containerd, private to a test: its own folders, socket, network and mount namespace.
//!
//! It serves CRI as it does for a kubelet, but no pod is ever started: only Version, Status and lists are asked, so
//! no cgroup of this machine is touched. It dies with the thread that started it, even when that one is killed.

use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Where Debian's package `containernetworking-plugins` puts the standard plugins.
pub const CNI_BIN_DIR: &str = "/usr/lib/cni";

/// What has to be installed, and from which Debian package.
const NEEDED: [(&str, &str); 6] = [
    ("/usr/bin/containerd", "containerd"),
    ("/usr/bin/ctr", "containerd"),
    ("/usr/sbin/runc", "runc"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("/usr/bin/unshare", "util-linux"),
    ("/usr/sbin/ip", "iproute2"),
];

/// A bridge with addresses from a local file, and port mappings: what a kubeadm cluster's first CNI file looks like.
const CNI_CONFIG: &str = r#"{
  "cniVersion": "0.4.0",
  "name": "nodewhy-test",
  "plugins": [
    {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
     "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
"#;

/// A containerd of this test's own.
#[derive(Debug)]
pub struct Containerd {
    folder: TempDir,
    child: Option<Child>,
}

impl Containerd {
    /// Starts one, with a CNI configuration in place, and waits until it answers.
    ///
    /// # Errors
    /// A package is missing (which one is said), the right to make namespaces is, or it does not come up.
    pub fn start() -> anyhow::Result<Containerd> {
        for (path, package) in NEEDED {
            ensure!(Path::new(path).exists(), "{path} is missing: install Debian's package {package}");
        }
        let folder = tempfile::Builder::new().prefix("nodewhy-containerd-").tempdir()?;
        let mut containerd = Containerd { folder, child: None };
        containerd.write_cni_config()?;
        let config = containerd.config()?;
        std::fs::write(containerd.folder.path().join("config.toml"), config)?;
        containerd.launch()?;
        Ok(containerd)
    }

    /// The CRI socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("containerd.sock")
    }

    /// The folder of CNI configurations.
    pub fn cni_conf_dir(&self) -> PathBuf {
        self.folder.path().join("net.d")
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Starts it (again), and waits until it answers.
    ///
    /// # Errors
    /// It runs already, or it does not come up.
    pub fn launch(&mut self) -> anyhow::Result<()> {
        ensure!(self.child.is_none(), "containerd runs already");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log())?;
        // Each step execs the next one, so the id is containerd's own. The stream server needs a loopback interface;
        // what is mounted is mounted in a namespace that ends with it.
        let child = Command::new("unshare")
            .args(["--net", "--mount", "--", "sh", "-euc"])
            .arg(r#"ip link set lo up; exec setpriv --pdeathsig KILL -- "$@""#)
            .args(["sh", "/usr/bin/containerd", "--config"])
            .arg(self.folder.path().join("config.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("run unshare (Debian's package util-linux)")?;
        self.child = Some(child);
        self.wait_ready(Duration::from_secs(20))
    }

    /// Waits until it answers a call.
    ///
    /// # Errors
    /// It ended, or `limit` passed: with the end of its log.
    pub fn wait_ready(&mut self, limit: Duration) -> anyhow::Result<()> {
        let began = std::time::Instant::now();
        loop {
            let Some(child) = &mut self.child else { bail!("containerd does not run") };
            if let Some(status) = child.try_wait()? {
                self.child = None;
                bail!("containerd ended at once ({status}); its log ends:\n{}", self.log_end());
            }
            if UnixStream::connect(self.socket()).is_ok() && self.answers()? {
                return Ok(());
            }
            if began.elapsed() > limit {
                bail!("containerd does not answer after {limit:?}; its log ends:\n{}", self.log_end());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// SIGSTOP, and waits until all of its threads have stopped: it hangs.
    ///
    /// # Errors
    /// It does not run.
    pub fn sigstop(&self) -> anyhow::Result<()> {
        self.signal(Signal::SIGSTOP)?;
        // WSTOPPED alone: an end is left for the child's own wait.
        waitid(Id::Pid(self.process()?), WaitPidFlag::WSTOPPED)
            .context("wait until containerd has stopped")?;
        Ok(())
    }

    /// SIGCONT: it goes on.
    ///
    /// # Errors
    /// It does not run.
    pub fn sigcont(&self) -> anyhow::Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// SIGKILL, as an OOM kill ends it: its socket stays, and refuses.
    ///
    /// # Errors
    /// It does not run.
    pub fn sigkill(&mut self) -> anyhow::Result<()> {
        self.end(Signal::SIGKILL)
    }

    /// SIGTERM, as `systemctl stop` ends it: it removes its socket.
    ///
    /// # Errors
    /// It does not run.
    pub fn sigterm(&mut self) -> anyhow::Result<()> {
        self.end(Signal::SIGTERM)
    }

    /// Writes the CNI configuration, folder included. Written, not moved in: containerd misses a rename.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write_cni_config(&self) -> anyhow::Result<()> {
        std::fs::create_dir_all(self.cni_conf_dir())?;
        std::fs::write(self.cni_config(), CNI_CONFIG)
            .with_context(|| format!("write {}", self.cni_config().display()))
    }

    /// Moves the CNI configuration out of its folder.
    ///
    /// # Errors
    /// It is not there.
    pub fn remove_cni_config(&self) -> anyhow::Result<()> {
        let away = self.folder.path().join("10-nodewhy-test.conflist.away");
        std::fs::rename(self.cni_config(), away)
            .with_context(|| format!("move {} away", self.cni_config().display()))
    }

    /// Removes the folder of CNI configurations itself.
    ///
    /// # Errors
    /// It is not there.
    pub fn remove_cni_dir(&self) -> anyhow::Result<()> {
        let folder = self.cni_conf_dir();
        std::fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))
    }

    /// The end of its log, for error messages.
    pub fn log_end(&self) -> String {
        let text = std::fs::read_to_string(self.log()).unwrap_or_else(|error| format!("(no log: {error})"));
        let lines: Vec<&str> = text.lines().collect();
        lines.iter().rev().take(5).rev().copied().collect::<Vec<_>>().join("\n")
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("containerd.log")
    }

    fn cni_config(&self) -> PathBuf {
        self.cni_conf_dir().join("10-nodewhy-test.conflist")
    }

    /// Plugins that want a disk or a module of their own, or write outside the folders given, are off.
    fn config(&self) -> anyhow::Result<String> {
        let folder = self.folder.path().to_str().context("the temporary folder's name is not UTF-8")?;
        Ok(format!(
            r#"version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.overlayfs", "io.containerd.snapshotter.v1.zfs"]
[grpc]
address = "{folder}/containerd.sock"
[ttrpc]
address = "{folder}/containerd.sock.ttrpc"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{CNI_BIN_DIR}"
conf_dir = "{folder}/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
"#
        ))
    }

    fn answers(&self) -> anyhow::Result<bool> {
        let status = Command::new("/usr/bin/ctr")
            .arg("--address")
            .arg(self.socket())
            .args(["--connect-timeout", "1s", "--timeout", "2s", "version"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .context("run ctr (Debian's package containerd)")?;
        Ok(status.success())
    }

    /// The child is not reaped while it is ours, so its id can be nobody else's.
    fn process(&self) -> anyhow::Result<Pid> {
        let pid = self.pid().context("containerd does not run")?;
        Ok(Pid::from_raw(i32::try_from(pid)?))
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let process = self.process()?;
        kill(process, signal).with_context(|| format!("{signal} to containerd {process}"))
    }

    fn end(&mut self, signal: Signal) -> anyhow::Result<()> {
        self.signal(signal)?;
        if let Some(mut child) = self.child.take() {
            child.wait().context("wait for containerd's end")?;
        }
        Ok(())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if self.child.is_some()
            && let Err(error) = self.end(Signal::SIGKILL)
        {
            eprintln!("containerd was not cleaned up: {error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_starts_stops_and_leaves_nothing() {
        let mut containerd = Containerd::start().unwrap();
        let folder = containerd.folder.path().to_owned();
        let pid = containerd.pid().unwrap();
        assert_eq!(std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim(), "containerd");
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        assert_ne!(std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap(), own);

        containerd.sigstop().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("State:\tT"), "{status}");
        assert!(UnixStream::connect(containerd.socket()).is_ok(), "the kernel accepts for a stopped process");
        containerd.sigcont().unwrap();
        containerd.wait_ready(Duration::from_secs(10)).unwrap();

        containerd.sigkill().unwrap();
        let refused = UnixStream::connect(containerd.socket()).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        containerd.launch().unwrap();
        containerd.sigterm().unwrap();
        let missing = UnixStream::connect(containerd.socket()).unwrap_err();
        assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
        containerd.launch().unwrap();
        let pid = containerd.pid().unwrap();

        containerd.sigstop().unwrap();
        drop(containerd);
        assert!(!folder.exists());
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(folder.to_str().unwrap()), "{mounts}");
    }
}
