//! The kubelet's stand-in: a process named `kubelet` that serves a recorded `/healthz`. It stands for the kubelet's
//! process and for that answer, and for nothing else.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;

use crate::recording::fixtures;

/// The program, in the folder of what was built: that of the program that asks, or one above it (a test lies in
/// `deps`).
///
/// # Errors
/// It was not built.
pub fn standin() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("find this program's own file")?;
    own.ancestors()
        .skip(1)
        .map(|folder| folder.join("kubelet-standin"))
        .find(|file| file.is_file())
        .with_context(|| {
            format!(
                "no folder above {} holds kubelet-standin: build it with \
                 `cargo build -p nodewhy-guest --bin kubelet-standin`",
                own.display()
            )
        })
}

/// The stand-in of one kubelet version.
#[derive(Debug)]
pub struct Kubelet {
    folder: TempDir,
    recorded: PathBuf,
    address: SocketAddr,
    child: Option<Child>,
}

impl Kubelet {
    /// Starts the stand-in of this version on this address. `standin` is the file of the program
    /// `kubelet-standin`. Its root folder holds the recorded configuration, as a kubelet's does.
    ///
    /// # Errors
    /// The fixture is missing, or the process does not come up.
    pub fn start(standin: &Path, version: &str, address: SocketAddr) -> anyhow::Result<Kubelet> {
        let folder = tempfile::Builder::new().prefix("nodewhy-kubelet-").tempdir()?;
        std::fs::copy(standin, folder.path().join("kubelet"))
            .with_context(|| format!("copy {}", standin.display()))?;
        let recorded = fixtures().join(format!("kubelet-{version}/kubelet-{version}-healthz-http.txt"));
        let mut kubelet = Kubelet { folder, recorded, address, child: None };
        std::fs::create_dir(kubelet.root())?;
        std::fs::write(kubelet.root().join("config.yaml"), configuration(version)?)?;
        kubelet.launch()?;
        Ok(kubelet)
    }

    /// Its root folder (`/var/lib/kubelet` on a node).
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// Where its `/healthz` answers.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Starts it (again), and waits until it listens.
    ///
    /// # Errors
    /// It runs already, or does not come up.
    pub fn launch(&mut self) -> anyhow::Result<()> {
        ensure!(self.child.is_none(), "the kubelet's stand-in runs already");
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(self.folder.path().join("kubelet"))
            .arg(self.address.to_string())
            .arg(&self.recorded)
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .context("run setpriv (Debian's package util-linux)")?;
        let child = self.child.insert(child);
        for _ in 0..500 {
            if let Some(status) = child.try_wait()? {
                self.child = None;
                bail!("the kubelet's stand-in ended at once: {status}");
            }
            if TcpStream::connect(self.address).is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("the kubelet's stand-in does not listen on {} after 10 s", self.address)
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        let mut child = self.child.take().context("the kubelet's stand-in does not run")?;
        child.kill().context("kill the kubelet's stand-in")?;
        child.wait().context("wait for the stand-in's end")?;
        Ok(())
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        if self.child.is_some()
            && let Err(error) = self.kill()
        {
            eprintln!("the kubelet's stand-in was not cleaned up: {error:#}");
        }
    }
}

/// The configuration that the real kubelet ran with, by its `/configz`. JSON is YAML.
///
/// # Errors
/// The recording is missing, or is not what it was.
pub fn configuration(version: &str) -> anyhow::Result<String> {
    let path = fixtures().join(format!("kubelet-{version}/kubelet-{version}-configz.json"));
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let mut document: serde_json::Value = serde_json::from_str(&text)?;
    let config = document
        .get_mut("kubeletconfig")
        .and_then(serde_json::Value::as_object_mut)
        .with_context(|| format!("{} has no kubeletconfig", path.display()))?;
    config.insert("apiVersion".to_owned(), "kubelet.config.k8s.io/v1beta1".into());
    config.insert("kind".to_owned(), "KubeletConfiguration".into());
    Ok(serde_json::to_string_pretty(config)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recorded_configuration_is_a_kubelet_s_configuration_file() {
        for version in crate::recording::VERSIONS {
            let config: serde_json::Value = serde_json::from_str(&configuration(version).unwrap()).unwrap();
            assert_eq!(config["kind"], "KubeletConfiguration");
            assert_eq!(config["evictionHard"]["nodefs.available"], "10%", "{version}");
        }
    }
}
