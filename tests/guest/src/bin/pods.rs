//! Stands for that part of a kubelet that makes pods: the pod's slice (systemd cgroup driver, cgroup v2), its sandbox and
//! its container over CRI, its log folder. It stands for nothing else: no API server, no probes, no restarts, no volumes
//! but hostPath, no images pulled, no /etc/hosts.
//!
//! `pods run SPEC.json` (`-`: standard input) makes one pod and prints what it made as JSON; `pods list`; `pods remove
//! NAME [NAMESPACE]`. SPEC is `nodewhy_guest::pod::Pod`.

#![expect(
    clippy::disallowed_methods,
    reason = "it is the part of the tests that starts processes and makes files"
)]

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nodewhy_guest::cri::{
    Client, ContainerFilter, ContainerId, ContainerStatusRequest, ContainerStatusResponse,
    CreateContainerRequest, Filter, ListContainersRequest, ListContainersResponse, ListPodSandboxRequest,
    ListPodSandboxResponse, Nothing, PodSandboxId, RunPodSandboxRequest, StopContainerRequest,
};
use nodewhy_guest::pod::Pod;
use serde::Serialize;

const SOCKET: &str = "/run/containerd/containerd.sock";
/// Between SIGTERM and SIGKILL when a pod is removed.
const GRACE_SECONDS: i64 = 2;

/// What was made, or is there.
#[derive(Debug, Serialize)]
struct Made {
    namespace: String,
    name: String,
    uid: String,
    sandbox: String,
    /// 0: ready.
    sandbox_state: i32,
    container: Option<String>,
    /// 1: running.
    container_state: Option<i32>,
    /// Of a running container.
    pid: Option<u32>,
    /// Below /sys/fs/cgroup.
    cgroup: Option<String>,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = Client::new(Path::new(SOCKET));
        match words.as_slice() {
            ["run", spec] => print(&run(&client, &read(spec)?).await?),
            ["list"] => print(&list(&client, HashMap::new()).await?),
            ["remove", name] => remove(&client, name, "default").await,
            ["remove", name, namespace] => remove(&client, name, namespace).await,
            _ => bail!("usage: pods run SPEC.json|- | pods list | pods remove NAME [NAMESPACE]"),
        }
    })
}

fn print(made: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(made)?);
    Ok(())
}

fn read(spec: &str) -> anyhow::Result<Pod> {
    let mut text = String::new();
    if spec == "-" {
        std::io::stdin().read_to_string(&mut text).context("read the standard input")?;
    } else {
        text = std::fs::read_to_string(spec).with_context(|| format!("read {spec}"))?;
    }
    let pod: Pod = serde_json::from_str(&text).with_context(|| format!("{spec} is no pod"))?;
    ensure!(!pod.name.is_empty() && !pod.image.is_empty(), "{spec}: name and image are needed");
    Ok(pod.completed())
}

async fn run(client: &Client, pod: &Pod) -> anyhow::Result<Made> {
    make_slice(pod)?;
    let logs = Path::new(&pod.log_directory()).join(&pod.name);
    std::fs::create_dir_all(&logs).with_context(|| format!("make {}", logs.display()))?;
    let config = pod.sandbox();
    let sandbox: PodSandboxId =
        client.call("RunPodSandbox", RunPodSandboxRequest { config: Some(config.clone()) }).await?;
    let create = CreateContainerRequest {
        pod_sandbox_id: sandbox.pod_sandbox_id.clone(),
        config: Some(pod.container(node_memory_bytes()?)),
        sandbox_config: Some(config),
    };
    let container: ContainerId = client.call("CreateContainer", create).await?;
    let _: Nothing = client.call("StartContainer", container.clone()).await?;
    let labels = HashMap::from([("io.kubernetes.pod.uid".to_owned(), pod.uid.clone())]);
    let made = list(client, labels).await?;
    made.into_iter()
        .find(|made| made.sandbox == sandbox.pod_sandbox_id)
        .context("the runtime does not list the pod")
}

/// As the kubelet does it: a transient unit, whose limits systemd knows, and so leaves at a daemon-reload.
fn make_slice(pod: &Pod) -> anyhow::Result<()> {
    let (slice, properties) = (pod.slice(), pod.slice_properties());
    let mut command = Command::new("busctl");
    command.args([
        "--quiet",
        "--timeout=60",
        "call",
        "org.freedesktop.systemd1",
        "/org/freedesktop/systemd1",
    ]);
    command.args([
        "org.freedesktop.systemd1.Manager",
        "StartTransientUnit",
        "ssa(sv)a(sa(sv))",
        &slice,
        "replace",
    ]);
    command.arg(properties.len().to_string());
    for (name, signature, value) in &properties {
        command.args([*name, *signature, value.as_str()]);
    }
    let said = command.arg("0").output().context("run busctl (Debian's package systemd)")?;
    let words = String::from_utf8_lossy(&said.stderr);
    // One that is there already, from a pod of the same uid, has its limits.
    ensure!(said.status.success() || words.contains("already"), "systemd made no {slice}: {}", words.trim());
    let cgroup = slice_cgroup(&slice);
    for _ in 0..600 {
        if cgroup.join("memory.max").exists() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!("systemd started {slice}, but there is no {} after 60 s", cgroup.display())
}

/// Each dash of a slice's name is a level: a-b.slice is in a.slice.
fn slice_cgroup(slice: &str) -> PathBuf {
    let mut path = PathBuf::from("/sys/fs/cgroup");
    let stem = slice.trim_end_matches(".slice");
    path.extend(
        stem.match_indices('-')
            .filter_map(|(dash, _)| stem.get(..dash))
            .map(|level| format!("{level}.slice")),
    );
    path.join(slice)
}

fn node_memory_bytes() -> anyhow::Result<i64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    Ok(kib.context("/proc/meminfo has no MemTotal")?.trim().parse::<i64>()? * 1024)
}

async fn list(client: &Client, labels: HashMap<String, String>) -> anyhow::Result<Vec<Made>> {
    let filter = Some(Filter { label_selector: labels });
    let sandboxes: ListPodSandboxResponse =
        client.call("ListPodSandbox", ListPodSandboxRequest { filter }).await?;
    let mut all = Vec::new();
    for sandbox in sandboxes.items {
        let metadata = sandbox.metadata.unwrap_or_default();
        let mut made = Made {
            namespace: metadata.namespace,
            name: metadata.name,
            uid: metadata.uid,
            sandbox: sandbox.id.clone(),
            sandbox_state: sandbox.state,
            container: None,
            container_state: None,
            pid: None,
            cgroup: None,
        };
        if let Some((id, state)) = containers(client, &sandbox.id).await?.into_iter().next() {
            if state == 1 {
                made.pid = Some(pid(client, &id).await?);
                made.cgroup = made.pid.and_then(cgroup);
            }
            (made.container, made.container_state) = (Some(id), Some(state));
        }
        all.push(made);
    }
    all.sort_by(|left, right| (&left.namespace, &left.name).cmp(&(&right.namespace, &right.name)));
    Ok(all)
}

async fn containers(client: &Client, sandbox: &str) -> anyhow::Result<Vec<(String, i32)>> {
    let filter = Some(ContainerFilter { pod_sandbox_id: sandbox.to_owned() });
    let answer: ListContainersResponse =
        client.call("ListContainers", ListContainersRequest { filter }).await?;
    Ok(answer.containers.into_iter().map(|container| (container.id, container.state)).collect())
}

async fn pid(client: &Client, container: &str) -> anyhow::Result<u32> {
    let ask = ContainerStatusRequest { container_id: container.to_owned(), verbose: true };
    let status: ContainerStatusResponse = client.call("ContainerStatus", ask).await?;
    let info = status.info.get("info").context("the runtime's ContainerStatus has no info")?;
    let info: serde_json::Value = serde_json::from_str(info).context("the runtime's info is no JSON")?;
    let pid = info.get("pid").and_then(serde_json::Value::as_u64).context("the runtime's info has no pid")?;
    Ok(u32::try_from(pid)?)
}

/// A process that has just ended has none.
fn cgroup(pid: u32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

async fn remove(client: &Client, name: &str, namespace: &str) -> anyhow::Result<()> {
    let labels = [("name", name), ("namespace", namespace)]
        .map(|(key, value)| (format!("io.kubernetes.pod.{key}"), value.to_owned()));
    let found = list(client, HashMap::from(labels)).await?;
    ensure!(!found.is_empty(), "there is no pod {namespace}/{name}");
    for pod in found {
        for (container_id, _) in containers(client, &pod.sandbox).await? {
            // A container that ends by itself at this moment takes its shim along («ttrpc: closed»), or has ended and is
            // not known to («is still running»). A kubelet asks again.
            let mut tries = 0;
            while let Err(error) = remove_container(client, &container_id).await {
                tries += 1;
                ensure!(tries < 10, "{error:#}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        let sandbox = PodSandboxId { pod_sandbox_id: pod.sandbox.clone() };
        let _: Nothing = client.call("StopPodSandbox", sandbox.clone()).await?;
        let _: Nothing = client.call("RemovePodSandbox", sandbox).await?;
        stop_slice(&pod.uid)?;
    }
    Ok(())
}

async fn remove_container(client: &Client, id: &str) -> anyhow::Result<()> {
    let stop = StopContainerRequest { container_id: id.to_owned(), timeout: GRACE_SECONDS };
    let _: Nothing = client.call("StopContainer", stop).await?;
    let _: Nothing = client.call("RemoveContainer", ContainerId { container_id: id.to_owned() }).await?;
    Ok(())
}

/// Whatever its class was: only a unit that is there is stopped.
fn stop_slice(uid: &str) -> anyhow::Result<()> {
    let uid = uid.replace('-', "_");
    for class in ["", "burstable-", "besteffort-"] {
        let slice = format!("kubepods-{class}pod{uid}.slice");
        if slice_cgroup(&slice).exists() {
            let status =
                Command::new("systemctl").args(["stop", &slice]).status().context("run systemctl")?;
            ensure!(status.success(), "systemctl stop {slice}: {status}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_s_levels_are_folders() {
        let path = slice_cgroup("kubepods-besteffort-pod1_2.slice");
        let expected =
            "/sys/fs/cgroup/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice";
        assert_eq!(path, Path::new(expected));
        assert_eq!(slice_cgroup("kubepods.slice"), Path::new("/sys/fs/cgroup/kubepods.slice"));
    }
}
