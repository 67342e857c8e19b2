//! Faults of the container runtime.

use std::time::Duration;

use nix::libc::{SIGCONT, SIGKILL, SIGSTOP};
use nodewhy_proto::SubjectKind;
use serde_json::json;

use crate::fault::{Expect, Fault, Injected, Sees, What};
use crate::node::Node;

const SOCKET: (SubjectKind, &str) = (SubjectKind::Runtime, "/run/containerd/containerd.sock");

/// A dead runtime.
pub static DEAD: Fault = Fault {
    name: "containerd-dead",
    about: "containerd is killed with SIGKILL, and its unit may not start it again",
    cause: "containerd_dead",
    subject: SOCKET,
    sees: &[Sees::of("runtime", What::Finding("runtime_refused"))],
    diagnosed: Expect::Root,
    inject: |node| {
        node.drop_in("containerd", "Restart=no")?;
        let since = node.signal("containerd", SIGKILL)?;
        let active = node.ended("containerd")?;
        Ok(Injected::since(since).proven("systemctl is-active containerd", active))
    },
    undo: |node| {
        node.remove_drop_in("containerd")?;
        node.sh("systemctl start containerd").map(drop)
    },
    each_time: true,
    ..Fault::USUAL
};

/// A runtime that hangs.
pub static HUNG: Fault = Fault {
    name: "containerd-hung",
    about: "containerd is stopped with SIGSTOP: it accepts connections and answers nothing",
    cause: "containerd_hung",
    subject: SOCKET,
    sees: &[Sees::of("runtime", What::Finding("runtime_hung"))],
    diagnosed: Expect::Root,
    inject: |node| {
        let since = node.signal("containerd", SIGSTOP)?;
        Ok(Injected::since(since).proven("/proc/PID/status of containerd", state(node, "containerd")?))
    },
    undo: |node| node.signal("containerd", SIGCONT).map(drop),
    each_time: true,
    ..Fault::USUAL
};

/// A runtime that is far too slow.
pub static SLOW: Fault = Fault {
    name: "containerd-slow",
    about: "containerd may use 1 % of a processor (cpu.max of its unit): every call takes long",
    cause: "runtime_slow_churn",
    subject: SOCKET,
    sees: &[Sees::of("runtime", What::Finding("runtime_slow"))],
    inject: |node| {
        let since = node.write("/sys/fs/cgroup/system.slice/containerd.service/cpu.max", "1000 100000")?;
        std::thread::sleep(std::time::Duration::from_secs(3));
        let stat = node.read("/sys/fs/cgroup/system.slice/containerd.service/cpu.stat")?;
        Ok(Injected::since(since).proven("cpu.stat of containerd.service", stat))
    },
    undo: |node| node.write("/sys/fs/cgroup/system.slice/containerd.service/cpu.max", "max 100000").map(drop),
    hold: std::time::Duration::from_secs(90),
    ..Fault::USUAL
};

/// One container whose shim answers nothing.
pub static ONE_CONTAINER_HUNG: Fault = Fault {
    name: "container-hung",
    about: "the shim of one pod is stopped with SIGSTOP: containerd is well, one container's status never comes",
    cause: "pod_inspect_hang",
    subject: SOCKET,
    sees: &[
        Sees::of("runtime", What::Finding("container_status_slow")),
        Sees::of("tasks", What::Finding("shim_stopped")),
    ],
    inject: |node| {
        let shim = node.sh("pgrep -f -o containerd-shim-runc-v2")?;
        let pid = shim.trim().parse()?;
        let since = node.guest()?.kill(pid, SIGSTOP)?.began;
        Ok(Injected::since(since)
            .proven("/proc/PID/status of the shim", node.sh(&format!("grep State /proc/{pid}/status"))?))
    },
    undo: |node| node.sh("pkill -CONT -f containerd-shim-runc-v2").map(drop),
    hold: Duration::from_secs(90),
    ..Fault::USUAL
};

/// A runtime that can't read what it knew.
pub static STATE_DAMAGED: Fault = Fault {
    name: "containerd-state-damaged",
    about: "containerd's database (io.containerd.metadata.v1.bolt/meta.db) is overwritten and containerd restarted",
    cause: "runtime_state_corrupt",
    subject: SOCKET,
    sees: &[Sees::of("runtime", What::Finding("runtime_refused"))],
    inject: |node| {
        node.sh("systemctl stop containerd")?;
        let since = node.clocks()?;
        node.sh("cd /var/lib/containerd/io.containerd.metadata.v1.bolt; cp meta.db meta.db.kept; \
                 dd if=/dev/urandom of=meta.db bs=4096 count=4 conv=notrunc 2>/dev/null; systemctl start containerd || true")?;
        let said = node.sh("journalctl -u containerd -n 5 --no-pager -o cat")?;
        Ok(Injected::since(since).proven("journalctl -u containerd", said))
    },
    undo: |node| {
        node.sh("systemctl stop containerd; cd /var/lib/containerd/io.containerd.metadata.v1.bolt; \
                 mv meta.db.kept meta.db; systemctl reset-failed containerd; systemctl start containerd")
            .map(drop)
    },
    ..Fault::USUAL
};

/// The folder of CNI configurations goes away under the runtime.
pub static CNI_DIR_REMOVED: Fault = Fault {
    name: "cni-dir-removed",
    about: "/etc/cni/net.d itself is removed while containerd runs",
    cause: "cni_dir_deleted_stops_cri",
    subject: (SubjectKind::Cni, "/etc/cni/net.d"),
    sees: &[Sees::of("cni", What::Finding("cni_config_dir_missing"))],
    diagnosed: Expect::NotYet(
        "this containerd (1.6) goes on without the folder; the cause is of newer ones, which stop",
    ),
    // A folder that is gone holds no configuration, and this containerd says so.
    also: &["cni_config_missing"],
    inject: |node| {
        let since = node.clocks()?;
        node.sh("mv /etc/cni/net.d /var/lib/ground/net.d")?;
        Ok(Injected::since(since).proven("ls /etc/cni", node.sh("ls -la /etc/cni")?))
    },
    undo: |node| node.sh("mv /var/lib/ground/net.d /etc/cni/net.d; systemctl restart containerd").map(drop),
    each_time: true,
    ..Fault::USUAL
};

/// What the kernel says a process is doing.
fn state(node: &Node, name: &str) -> anyhow::Result<String> {
    Ok(node.sh(&format!("grep State /proc/{}/status", node.pid(name)?))?.trim().to_owned())
}

/// The specification of a pod that does nothing.
pub(super) fn idle_pod(name: &str) -> serde_json::Value {
    json!({
        "name": name, "namespace": "shop", "qos": "besteffort", "image": "localhost/busybox:1",
        "command": ["/bin/busybox", "sleep", "1000000"],
    })
}
