//! The node that every fault starts from: booted, with a runtime, a kubelet's stand-in and pods, saved as a snapshot.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nodewhy_guest::client::Client;
use nodewhy_guest::image::{Config, Entry, pack};

use crate::image::{Image, run};
use crate::machine::{Accelerator, Disks, From, Machine};

/// The snapshot's name.
pub const READY: &str = "ready";

/// Pods of the calm node. What they do is the least that a pod does: they are there, in every class of service.
const PODS: &[&str] = &[
    r#"{"name": "web", "namespace": "shop", "qos": "burstable", "image": "localhost/busybox:1", "memory_limit_bytes": 67108864,
        "pod_memory_limit_bytes": 67108864, "memory_request_bytes": 33554432, "command": ["/bin/busybox", "httpd", "-f", "-p", "8080"]}"#,
    r#"{"name": "batch", "namespace": "shop", "qos": "besteffort", "image": "localhost/busybox:1",
        "command": ["/bin/busybox", "sleep", "1000000"]}"#,
    r#"{"name": "database", "namespace": "shop", "qos": "guaranteed", "image": "localhost/busybox:1",
        "memory_limit_bytes": 100663296, "pod_memory_limit_bytes": 100663296, "cpu_limit_millis": 500, "command": ["/bin/busybox", "sleep", "1000000"]}"#,
];

/// Makes it, or finds it made. What it returns is a model to copy, not to run.
///
/// # Errors
/// The machine does not boot, or a part of the node does not come up: in words, with the console's last lines.
pub fn ready(image: &Image, accelerator: Accelerator) -> anyhow::Result<Disks> {
    let folder = image.folder.join(format!("ready-{}", accelerator.name()));
    let made = Disks { folder: folder.clone() };
    if folder.join("made").is_file() {
        return Ok(made);
    }
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    eprintln!("ground: booting {} for its snapshot ({})", image.release, accelerator.name());
    let began = Instant::now();
    let disks = Disks::new(image, folder.clone())?;
    let images = [("busybox.tar", "localhost/busybox:1"), ("pause.tar", "localhost/pause:1")];
    let images = images.map(|(file, name)| busybox(image, name).map(|archive| (file, archive)));
    payload(&disks, &images.into_iter().collect::<anyhow::Result<Vec<_>>>()?)?;
    let mut machine = Machine::start(image, accelerator, &disks, From::Boot)?;
    let console = |error: anyhow::Error, machine: &Machine| match machine.console() {
        Ok(text) => {
            let last: Vec<&str> = text.lines().rev().take(30).collect();
            error.context(format!(
                "the console's end:\n{}",
                last.into_iter().rev().collect::<Vec<_>>().join("\n")
            ))
        }
        Err(_) => error,
    };
    let dial = || -> anyhow::Result<Client> {
        Ok(Client::new(UnixStream::connect(machine.channel())?, Duration::from_secs(120))?)
    };
    dial().and_then(|client| set_up(&client)).map_err(|error| console(error, &machine))?;
    machine.save(READY)?;
    machine.quit()?;
    fs::write(folder.join("made"), "")?;
    eprintln!("ground: the node is ready, after {:.0} s", began.elapsed().as_secs_f64());
    Ok(made)
}

fn set_up(client: &Client) -> anyhow::Result<()> {
    let long = Duration::from_secs(180);
    let sh = |script: &str| -> anyhow::Result<String> {
        let output = client.run_for(&["/bin/sh", "-ec", script], b"", long)?;
        output.text().map_err(anyhow::Error::msg).with_context(|| format!("on the node: {script}"))
    };
    sh("until systemctl is-active -q multi-user.target; do sleep 0.5; done")?;
    sh("mkdir -p /var/lib/ground && tar -C /var/lib/ground -xf /dev/vdc")?;
    sh(
        "systemctl is-active containerd kubelet kubepods.slice kubepods-burstable.slice kubepods-besteffort.slice",
    )?;
    for file in ["busybox.tar", "pause.tar"] {
        sh(&format!("ctr -n k8s.io images import /var/lib/ground/{file} && rm /var/lib/ground/{file}"))?;
    }
    for pod in PODS {
        let output = client.run_for(&["/usr/lib/ground/pods", "run", "-"], pod.as_bytes(), long)?;
        output.text().map_err(anyhow::Error::msg).with_context(|| format!("make the pod {pod}"))?;
    }
    sh("mount -t tracefs none /sys/kernel/tracing 2>/dev/null || true")?;
    // What is free is not saved with the machine.
    sh("sync; echo 3 > /proc/sys/vm/drop_caches; sync")?;
    Ok(())
}

/// busybox, under this name: the image of every container of the proving ground, and its pause image.
fn busybox(image: &Image, name: &str) -> anyhow::Result<PathBuf> {
    let archive = image.folder.join(format!("{}.tar", name.replace(['/', ':'], "-")));
    let found = ["/bin/busybox", "/usr/bin/busybox"].iter().map(Path::new).find(|path| path.is_file());
    let busybox = found.context("busybox is not installed: Debian's package busybox-static")?;
    let entries = [
        Entry::Folder("bin".to_owned(), 0o755),
        Entry::File("bin/busybox".to_owned(), 0o755, fs::read(busybox)?),
        Entry::Link("bin/sh".to_owned(), "busybox".to_owned()),
    ];
    let entrypoint = ["/bin/busybox", "sleep", "1000000"].map(str::to_owned).to_vec();
    let config = Config { entrypoint, env: Vec::new() };
    pack(fs::File::create(&archive)?, name, &entries, &config)?;
    Ok(archive)
}

/// Writes these files, each under its name, as a tar archive onto the disk that carries what comes with a run.
///
/// # Errors
/// A file can't be read, or they are too large.
pub fn payload(disks: &Disks, files: &[(&str, PathBuf)]) -> anyhow::Result<()> {
    let folder = tempfile::tempdir_in(&disks.folder)?;
    let mut names = Vec::new();
    for (name, file) in files {
        fs::copy(file, folder.path().join(name)).with_context(|| format!("copy {}", file.display()))?;
        names.push((*name).to_owned());
    }
    let payload = disks.payload();
    let [from, to] = [folder.path(), &payload].map(|path| path.display().to_string());
    let mut arguments = vec!["-C".to_owned(), from, "-cf".to_owned(), to];
    arguments.extend(names);
    run("tar", arguments)?;
    let file = fs::OpenOptions::new().write(true).open(&payload)?;
    let length = file.metadata()?.len();
    let room = crate::machine::PAYLOAD_BYTES;
    ensure!(length <= room, "{length} bytes of programs do not fit on the payload's disk of {room}");
    file.set_len(room)?;
    Ok(())
}
