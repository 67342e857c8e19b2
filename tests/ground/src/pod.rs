//! What a container changes: each line of it seen from inside the agent's own container, with its rights.

use anyhow::{Context, ensure};

use crate::evidence::Way;
use crate::node::Node;
use crate::run::Ground;

/// One thing that a container changes.
#[derive(Debug)]
pub struct Change {
    /// What changes.
    pub what: &'static str,
    /// How it is tried, inside the container.
    pub script: &'static str,
    /// What is said there, in part.
    pub says: &'static [&'static str],
}

/// All that are known. AppArmor's are those of containerd's default profile, `cri-containerd.apparmor.d`.
pub static CHANGES: &[Change] = &[
    Change {
        what: "/dev/kmsg is refused without `privileged`, CAP_SYSLOG or not: the device cgroup decides at open",
        script: "grep CapEff /proc/self/status; head -c 1 < /host/dev/kmsg",
        says: &["CapEff:\t0000000400085004", "/host/dev/kmsg: Operation not permitted"],
    },
    Change {
        what: "/proc/PID/cgroup is relative to the container's own cgroup namespace",
        script: "cat /proc/self/cgroup /host/proc/1/cgroup; cat /host/proc/$(pidof kubelet)/cgroup",
        says: &["0::/\n", "0::/../../../init.scope", "0::/../../../system.slice/kubelet.service"],
    },
    Change {
        what: "a read-only mount refuses PSI triggers (EROFS), and AppArmor where the mount would not",
        script: "echo 'some 150000 1000000' > /host/proc/pressure/memory; echo 'some 150000 1000000' > /proc/pressure/memory",
        says: &[
            "/host/proc/pressure/memory: Read-only file system",
            "/proc/pressure/memory: Permission denied",
        ],
    },
    Change {
        what: "AppArmor's default denies ptrace-reads of host processes (exe, environ, stack), CAP_SYS_PTRACE or not",
        script: "cat /proc/self/attr/current; readlink /host/proc/1/exe || echo no exe; head -c 20 /host/proc/1/environ; \
                 cat /host/proc/1/stack",
        says: &["cri-containerd.apparmor.d (enforce)", "no exe", "environ: Permission denied"],
    },
    Change {
        what: "a wait channel that may not be read is «0», the same as of a process that does not wait: no error tells",
        script: "echo wchan=$(cat /host/proc/$(pidof kubelet)/wchan).",
        says: &["wchan=0."],
    },
    Change {
        what: "`readOnly` is not recursive: mounts beneath a read-only host folder stay writable",
        script: "grep -E ' /host/sys(/fs/cgroup)? ' /proc/mounts",
        says: &["/host/sys sysfs ro", "/host/sys/fs/cgroup cgroup2 rw"],
    },
    Change {
        what: "`hostPID` shows every process, and /proc/1/net is the host's network, without setns",
        script: "test $(ls -d /proc/[0-9]* | wc -l) -gt 50 && echo all processes; echo eth0=$(grep -c ' eth0:' /host/proc/1/net/dev)",
        says: &["all processes", "eth0=1"],
    },
    Change {
        what: "delay accounting is off (kernel.task_delayacct), run-queue delay in /proc/PID/schedstat is there",
        script: "echo delayacct=$(cat /proc/sys/kernel/task_delayacct).; grep -qE '^[1-9][0-9]* [1-9][0-9]* [1-9]' \
                 /host/proc/1/schedstat && echo schedstat is there",
        says: &["delayacct=0.", "schedstat is there"],
    },
    Change {
        what: "the container's root and the host's files can't be written",
        script: "touch /x; touch /host/etc/os-release; echo 3 > /host/proc/sys/vm/drop_caches",
        says: &[
            "/x: Read-only file system",
            "os-release: Read-only file system",
            "drop_caches: Read-only file system",
        ],
    },
];

/// Tries each, in the agent's own container.
///
/// # Errors
/// The container does not say what is known.
pub fn seen(ground: &Ground) -> anyhow::Result<()> {
    let slot = ground.slot()?;
    let node = ground.node(&slot)?;
    node.start_agent(Way::Pod)?;
    let container = container(&node)?;
    for (number, change) in CHANGES.iter().enumerate() {
        // With the same rights as the agent: its cgroup, its capabilities, its profile.
        let said = inside(&node, &container, number, change.script)?;
        println!("{}\n  {}", change.what, said.trim().replace('\n', "\n  "));
        for says in change.says {
            ensure!(said.contains(says), "{}: the container did not say {says:?} but:\n{said}", change.what);
        }
    }
    mounted_as_a_file(&node)
}

/// A socket that is mounted as a file goes stale with the runtime's restart; one in a folder that is mounted does not.
fn mounted_as_a_file(node: &Node) -> anyhow::Result<()> {
    let pod = serde_json::json!({
        "name": "sockets", "namespace": "shop", "image": "localhost/busybox:1",
        "command": ["/bin/busybox", "sleep", "1000000"],
        "mounts": [
            {"host_path": "/run/containerd/containerd.sock", "container_path": "/file.sock", "readonly": true},
            {"host_path": "/run/containerd", "container_path": "/folder", "readonly": true},
        ],
    });
    let made = node.pod(&pod)?;
    let container = made["container"].as_str().context("the pod has no container")?;
    let inode = "stat -c %i /file.sock /folder/containerd.sock";
    let [before, after] = [0, 1].map(|turn: usize| -> anyhow::Result<(String, String)> {
        if turn == 1 {
            node.sh("systemctl restart containerd")?;
        }
        let said = inside(node, container, 100 + turn, inode)?;
        let (file, folder) = said.trim().split_once('\n').with_context(|| format!("stat said {said}"))?;
        Ok((file.to_owned(), folder.to_owned()))
    });
    let (before, after) = (before?, after?);
    println!(
        "a socket as a file, and in a folder: inodes {before:?} before the runtime's restart, {after:?} after it"
    );
    ensure!(before.0 == before.1, "before the restart they are one socket: {before:?}");
    ensure!(after.0 == before.0 && after.1 != before.1, "the file is stale, the folder is not: {after:?}");
    Ok(())
}

fn container(node: &Node) -> anyhow::Result<String> {
    let pods: serde_json::Value = serde_json::from_str(&node.sh("/usr/lib/ground/pods list")?)?;
    let agent = pods.as_array().into_iter().flatten().find(|pod| pod["name"] == "nodewhy-agent");
    let container = agent.and_then(|pod| pod["container"].as_str());
    container.map(str::to_owned).with_context(|| format!("the agent's container is not among {pods}"))
}

fn inside(node: &Node, container: &str, number: usize, script: &str) -> anyhow::Result<String> {
    let argv = ["ctr", "-n", "k8s.io", "tasks", "exec", "--exec-id", &format!("seen-{number}"), container];
    let argv = [&argv[..], &["/bin/busybox", "sh", "-c", script]].concat();
    let output = node.guest()?.run_for(&argv, b"", std::time::Duration::from_secs(60))?;
    Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}
