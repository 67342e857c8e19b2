//! Faults of what every process needs: process ids, file descriptors, inotify, a runc that comes back.

use std::time::Duration;

use anyhow::{Context, ensure};
use nodewhy_guest::channel::Clocks;
use nodewhy_proto::SubjectKind;
use serde_json::json;

use crate::fault::{Fault, Injected, Sees, What};
use crate::node::Node;

const NODE: (SubjectKind, &str) = (SubjectKind::Node, "ground");
/// Harm that waits for the emulated machine to make a few hundred processes.
const AT_WORK_WITHIN: Duration = Duration::from_secs(60);

/// A pod at its limit of process ids.
pub static PIDS_OF_A_POD: Fault = Fault {
    name: "pids-exhausted-pod",
    about: "a pod with a limit of 40 process ids (pids.max of its slice) forks until the kernel refuses",
    cause: "pid_exhausted_cgroup",
    subject: (SubjectKind::Pod, "forker"),
    sees: &[
        Sees::of("oom", What::KernelMessage("fork_rejected_by_pids")),
        Sees::of("cgroups", What::Finding("pids_limit_reached")),
    ],
    inject: |node| {
        node.pod(&json!({
            "name": "forker", "namespace": "default", "qos": "besteffort", "image": "localhost/busybox:1",
            "pids_limit": 40, "command": ["/opt/ground/hurt", "--seconds", "600", "fork", "--max", "1000"],
            "mounts": [{"host_path": "/var/lib/ground", "container_path": "/opt/ground", "readonly": true}],
        }))?;
        let (since, line) = kernel_said(node, "fork rejected by pids controller")?;
        let slice = "cd $(dirname $(find /sys/fs/cgroup/kubepods.slice -name pids.max -exec grep -lx 40 {} + | head -n 1))";
        Ok(Injected::since(since).proven("dmesg", line).proven(
            "pids.max and pids.current of the pod's slice, pids.events of its containers",
            node.sh(&format!("{slice}; pwd; grep . pids.max pids.current */pids.events"))?,
        ))
    },
    undo: |node| node.remove_pod("forker"),
    hold: Duration::from_secs(15),
    ..Fault::USUAL
};

/// No process ids left for anybody.
pub static PIDS_OF_THE_NODE: Fault = Fault {
    name: "pids-exhausted-node",
    about: "kernel.pid_max is lowered, and a process outside of any pod forks until the kernel has no id left",
    cause: "pid_exhausted_node",
    subject: NODE,
    sees: &[Sees::of("tasks", What::Finding("node_tasks_exhausted"))],
    inject: |node| {
        let before = node.clocks()?;
        node.write("/proc/sys/kernel/pid_max", "600")?;
        let (_, said) = harm(node, "fork", "-p TasksMax=infinity", "fork --max 2000")?;
        ensure!(said.contains("Resource temporarily unavailable"), "forks went on: {said}");
        // From here on nothing can be started: neither a shell nor grep.
        let refused = match node.output("true") {
            Ok(output) => format!("exit code {}: {}", output.code, String::from_utf8_lossy(&output.stderr)),
            Err(error) => format!("{error:#}"),
        };
        Ok(Injected::since(before)
            .proven("hurt fork", said)
            .proven("starting one more process", refused)
            .proven("/proc/loadavg", node.read("/proc/loadavg")?)
            .proven("/proc/sys/kernel/pid_max", node.read("/proc/sys/kernel/pid_max")?))
    },
    // Without a fork: there may be none.
    undo: |node| {
        node.write("/sys/fs/cgroup/system.slice/hurt-fork.service/cgroup.kill", "1")?;
        node.write("/proc/sys/kernel/pid_max", "4194304").map(drop)
    },
    hold: Duration::from_secs(30),
    ..Fault::USUAL
};

/// Processes that nobody reaps.
pub static ZOMBIES: Fault = Fault {
    name: "zombies",
    about: "a process leaves 150 children unreaped",
    // The catalogue knows zombies only as what to tell apart from `pid_exhausted_node`: an id of its own, in its style.
    cause: "zombies_unreaped",
    subject: NODE,
    sees: &[Sees::of("tasks", What::Finding("zombies_many"))],
    inject: |node| {
        let (since, said) = harm(node, "zombies", "", "zombies --count 150")?;
        Ok(Injected::since(since).proven("hurt zombies", said).proven(
            "states Z in /proc/PID/stat, and their parents",
            node.sh("cat /proc/[0-9]*/stat 2>/dev/null | awk '$3 == \"Z\" {n[$4]++} END {for (p in n) print n[p], \"of parent\", p}'")?,
        ))
    },
    undo: |node| node.heal("zombies"),
    hold: Duration::from_secs(60),
    ..Fault::USUAL
};

/// No open files left for anybody but root.
pub static FILES_OF_THE_NODE: Fault = Fault {
    name: "file-max-reached",
    about: "fs.file-max is lowered to 400 above what is open, and a process without privileges opens files until ENFILE",
    cause: "fd_or_inotify_exhausted",
    subject: NODE,
    sees: &[
        Sees::of("oom", What::KernelMessage("file_max_reached")),
        Sees::of("tasks", What::Finding("file_handles_exhausted")),
    ],
    inject: |node| {
        node.sh("echo $(( $(cut -f 1 /proc/sys/fs/file-nr) + 400 )) > /proc/sys/fs/file-max")?;
        // Who may CAP_SYS_ADMIN is not bound by it: the harm runs as another user.
        let (_, said) = harm(node, "files", "-p User=nobody -p LimitNOFILE=65536", "fds --count 4000")?;
        let (since, line) = kernel_said(node, "VFS: file-max limit")?;
        Ok(Injected::since(since)
            .proven("hurt fds", said)
            .proven("dmesg", line)
            .proven("/proc/sys/fs/file-nr", node.read("/proc/sys/fs/file-nr")?)
            .proven(
                "opening a file as nobody",
                node.says("setpriv --reuid=65534 --clear-groups --bounding-set=-all cat /dev/null")?,
            ))
    },
    undo: |node| {
        node.write("/proc/sys/fs/file-max", "9223372036854775807")?;
        node.heal("files")
    },
    hold: Duration::from_secs(30),
    ..Fault::USUAL
};

/// No file descriptors left in one process.
pub static FILES_OF_THE_RUNTIME: Fault = Fault {
    name: "containerd-files-exhausted",
    about: "RLIMIT_NOFILE of containerd is lowered to the descriptors that it has open: accept(2) gets EMFILE, new connections \
            wait for ever, those that were there go on",
    cause: "fd_or_inotify_exhausted",
    subject: (SubjectKind::Runtime, "/run/containerd/containerd.sock"),
    sees: &[Sees::of("tasks", What::Finding("file_handles_exhausted"))],
    inject: |node| {
        let pid = node.pid("containerd")?;
        let since = node.clocks()?;
        node.sh(&format!("prlimit --pid {pid} --nofile=$(ls /proc/{pid}/fd | wc -l):1048576"))?;
        let dial = node.says("r=0; timeout 5 ctr version || r=$?; echo exit code $r")?;
        ensure!(dial.contains("code 124"), "containerd answered a new connection: {dial}");
        Ok(Injected::since(since)
            .proven(
                "/proc/PID/limits of containerd, and how many files are open",
                node.sh(&format!("grep 'Max open files' /proc/{pid}/limits; ls /proc/{pid}/fd | wc -l"))?,
            )
            .proven("ctr version", dial))
    },
    undo: |node| node.sh("prlimit --pid $(pgrep -x containerd) --nofile=1048576:1048576").map(drop),
    hold: Duration::from_secs(60),
    ..Fault::USUAL
};

/// No inotify instances left.
pub static INOTIFY_INSTANCES: Fault = Fault {
    name: "inotify-instances-exhausted",
    about: "a process of root's makes inotify instances until fs.inotify.max_user_instances (128) is reached",
    cause: "fd_or_inotify_exhausted",
    subject: NODE,
    sees: &[Sees::of("tasks", What::Finding("inotify_exhausted"))],
    inject: |node| {
        let (since, said) = harm(node, "inotify", "", "inotify --instances 1000")?;
        ensure!(said.contains("EMFILE"), "instances were to be had: {said}");
        Ok(Injected::since(since)
            .proven("hurt inotify", said)
            .proven(
                "/proc/sys/fs/inotify/max_user_instances",
                node.read("/proc/sys/fs/inotify/max_user_instances")?,
            )
            .proven("following a file", node.says("timeout 2 tail -f /etc/hostname || true")?))
    },
    undo: |node| node.heal("inotify"),
    hold: Duration::from_secs(40),
    ..Fault::USUAL
};

/// No inotify watches left.
pub static INOTIFY_WATCHES: Fault = Fault {
    name: "inotify-watches-exhausted",
    about: "fs.inotify.max_user_watches is lowered to 500, and a process of root's watches files until ENOSPC",
    cause: "fd_or_inotify_exhausted",
    subject: NODE,
    sees: &[Sees::of("tasks", What::Finding("inotify_exhausted"))],
    inject: |node| {
        node.write("/proc/sys/fs/inotify/max_user_watches", "500")?;
        let (since, said) = harm(node, "watches", "", "inotify --instances 1 --watches 1000 --dir /run")?;
        ensure!(said.contains("ENOSPC"), "watches were to be had: {said}");
        Ok(Injected::since(since)
            .proven("hurt inotify", said)
            .proven("following a file", node.says("timeout 2 tail -f /etc/hostname || true")?))
    },
    undo: |node| {
        node.write("/proc/sys/fs/inotify/max_user_watches", "8192")?;
        node.heal("watches")
    },
    hold: Duration::from_secs(40),
    ..Fault::USUAL
};

/// A runc that never comes back.
pub static RUNC_HUNG: Fault = Fault {
    name: "runc-hung",
    about: "containerd starts a container whose root file system lies on a suspended device: its runc waits in state D \
            (kernel.hung_task_timeout_secs is 5, not 120)",
    cause: "runc_hung_d_state",
    subject: (SubjectKind::Runtime, "/run/containerd/containerd.sock"),
    sees: &[
        Sees::of("oom", What::KernelMessage("hung_task")),
        Sees::of("tasks", What::AtLeast("/blocked/by_group/runc", 1.0)),
    ],
    inject: |node| {
        // Mounted anew, so that nothing of it is in memory.
        node.sh(
            "d=/run/hung; mkdir -p $d; truncate -s 64M /var/lib/ground/hung.img; \
             l=$(losetup -f --show /var/lib/ground/hung.img); \
             dmsetup create hung --noudevsync --table \"0 131072 linear $l 0\"; dmsetup mknodes; \
             mkfs.ext4 -q /dev/mapper/hung; mount /dev/mapper/hung $d; \
             for f in bin proc sys dev run tmp; do mkdir -p $d/rootfs/$f; done; cp /usr/bin/busybox $d/rootfs/bin; \
             umount $d; mount /dev/mapper/hung $d; echo 5 > /proc/sys/kernel/hung_task_timeout_secs",
        )?;
        let since = node.clocks()?;
        node.sh("dmsetup suspend --nolockfs --noudevsync hung; \
                 systemd-run --quiet --collect --unit=hurt-stuck \
                 ctr -n k8s.io run --rootfs /run/hung/rootfs stuck /bin/busybox sleep 1000000")?;
        let states = "for p in $(pgrep -x runc); do grep -H State /proc/$p/status; cat /proc/$p/wchan; echo; cat /proc/$p/stack; done";
        node.until(AT_WORK_WITHIN, "runc is in state D", |node| {
            Ok(node.says(states)?.contains("D (disk sleep)"))
        })?;
        Ok(Injected::since(since)
            .proven("/proc/PID/status, wchan and stack of runc", node.says(states)?)
            .proven("dmsetup info hung", node.sh("dmsetup info hung | grep State")?))
    },
    undo: |node| {
        node.sh(
            "dmsetup resume --noudevsync hung; echo 120 > /proc/sys/kernel/hung_task_timeout_secs; \
             for i in $(seq 50); do ctr -n k8s.io task kill -s KILL stuck && break; sleep 0.2; done; \
             for i in $(seq 50); do ctr -n k8s.io task rm -f stuck || true; ctr -n k8s.io container rm stuck && break; sleep 0.2; done; \
             for i in $(seq 20); do umount /run/hung && break; sleep 0.2; done; \
             dmsetup remove --noudevsync hung; losetup -D; rm /var/lib/ground/hung.img",
        )
        .map(drop)
    },
    hold: Duration::from_secs(30),
    ..Fault::USUAL
};

/// Starts harm as a unit of systemd's (`hurt-NAME`) and waits until it is at work: the clocks just before, and what it
/// said. Waits without a fork, which the harm may have made impossible.
pub(super) fn harm(
    node: &Node,
    name: &str,
    properties: &str,
    arguments: &str,
) -> anyhow::Result<(Clocks, String)> {
    let before = node.clocks()?;
    let words = format!("/run/hurt-{name}.ready");
    node.sh(&format!(
        "rm -f {words}; systemd-run --quiet --collect --unit=hurt-{name} {properties} \
         -p StandardOutput=file:{words} /var/lib/ground/hurt --seconds 600 {arguments}"
    ))?;
    let mut said = String::new();
    node.until(AT_WORK_WITHIN, &format!("hurt {arguments} says that it is at work"), |node| {
        said = node.read(&words).unwrap_or_default();
        Ok(said.contains("ready"))
    })?;
    Ok((before, said.trim().to_owned()))
}

/// The newest line of the kernel's with these words, waited for; and the node's clocks at its time.
pub(super) fn kernel_said(node: &Node, words: &str) -> anyhow::Result<(Clocks, String)> {
    let mut line = String::new();
    node.until(Duration::from_secs(30), &format!("the kernel says {words:?}"), |node| {
        line = node.says(&format!("dmesg | grep -F '{words}' | tail -n 1"))?;
        Ok(!line.is_empty())
    })?;
    let stamp = line.trim_start_matches('[').split(']').next().unwrap_or_default().trim();
    let seconds: f64 = stamp.parse().with_context(|| format!("dmesg gave no time: {line}"))?;
    // What has passed since. The kernel stamps its lines by a clock that runs with CLOCK_MONOTONIC.
    let now = node.clocks()?;
    let passed = now.monotonic_nanos - (seconds * 1e9).round() as i64;
    let at = Clocks {
        unix_nanos: now.unix_nanos - passed,
        boot_nanos: now.boot_nanos - passed,
        monotonic_nanos: now.monotonic_nanos - passed,
    };
    Ok((at, line))
}
