//! Memory that runs out: of a container, of all pods, of the node; and memory that is short without a kill.

mod kill;

use std::time::Duration;

use anyhow::{Context, ensure};
use nix::libc::SIGKILL;
use nodewhy_proto::{Role, SubjectKind};
use serde_json::{Value, json};

use crate::fault::{Expect, Fault, Injected, Sees, What};
use crate::node::Node;

const MIB: u64 = 1 << 20;
const NODE_OUT_OF_MEMORY: Sees = Sees::of("oom", What::Finding("node_out_of_memory"));
const SYSTEM_PROCESS_KILLED: Sees = Sees::of("oom", What::Finding("system_process_oom_killed"));

/// A container at its own limit.
pub static CONTAINER: Fault = Fault {
    name: "oom-container",
    about: "a container grows past its own limit of 64 MiB; its pod has a higher one",
    cause: "memcg_oom_container",
    subject: (SubjectKind::Container, "grows"),
    sees: &[Sees::of("oom", What::OomKill(Role::Pod))],
    diagnosed: Expect::Holds,
    inject: |node| {
        let mut pod = hog("grows", "memory --mib 200 --rate-mib-per-second 40");
        pod["qos"] = json!("burstable");
        pod["memory_limit_bytes"] = json!(64 * MIB);
        pod["memory_request_bytes"] = json!(32 * MIB);
        // As with a second container, of 64 MiB too.
        pod["pod_memory_limit_bytes"] = json!(128 * MIB);
        let container = text(&node.pod(&pod)?, "/container")?;
        let scope = format!("cri-containerd-{container}.scope,task_memcg=");
        kill::wait(node, &["constraint=CONSTRAINT_MEMCG", "task=hurt", &scope])
    },
    undo: |node| node.remove_pod("grows"),
    hold: Duration::from_secs(10),
    each_time: true,
    ..Fault::USUAL
};

/// All processes of a container at once, at the pod's limit.
pub static GROUP: Fault = Fault {
    name: "oom-group",
    about: "three processes of a container grow past their pod's limit; its memory.oom.group is set, as a kubelet sets it",
    cause: "memcg_oom_container",
    subject: (SubjectKind::Container, "grow-together"),
    sees: &[Sees::of("oom", What::OomKill(Role::Pod))],
    diagnosed: Expect::Holds,
    inject: |node| {
        let hurt = "/opt/ground/hurt memory --mib 100 --rate-mib-per-second 10";
        let mut pod = hog("grow-together", "");
        pod["command"] = json!(["/bin/sh", "-c", format!("{hurt} & {hurt} & {hurt} & wait")]);
        pod["qos"] = json!("burstable");
        pod["memory_request_bytes"] = json!(32 * MIB);
        // One container: its limit is its pod's, and the pause container, which is in the pod too, makes the pod's
        // the one that is hit.
        pod["memory_limit_bytes"] = json!(64 * MIB);
        pod["pod_memory_limit_bytes"] = json!(64 * MIB);
        let cgroup = text(&node.pod(&pod)?, "/cgroup")?;
        let task = format!("task_memcg={cgroup},task=hurt");
        let injected = kill::wait(node, &["constraint=CONSTRAINT_MEMCG", &task])?;
        let said = node.sh("dmesg | grep -A 4 'memory.oom.group set'")?;
        Ok(injected.proven("dmesg", said))
    },
    undo: |node| node.remove_pod("grow-together"),
    hold: Duration::from_secs(10),
    ..Fault::USUAL
};

/// All pods together.
pub static KUBEPODS: Fault = Fault {
    name: "oom-kubepods",
    about: "a pod without a limit grows until all pods together are at kubepods.slice's memory.max",
    cause: "kubepods_oom",
    subject: (SubjectKind::Pod, "default/grows"),
    sees: &[Sees::of("oom", What::OomKill(Role::Pod))],
    inject: |node| {
        // Reserved memory that is really reserved: the node itself has enough left.
        node.sh("systemctl set-property --runtime kubepods.slice MemoryMax=300M")?;
        node.pod(&hog("grows", "memory --mib 600 --rate-mib-per-second 80"))?;
        kill::wait(node, &["constraint=CONSTRAINT_MEMCG", "oom_memcg=/kubepods.slice,", "task=hurt"])
    },
    undo: |node| {
        node.remove_pod("grows")?;
        node.sh("systemctl set-property --runtime kubepods.slice MemoryMax=800M").map(drop)
    },
    hold: Duration::from_secs(10),
    ..Fault::USUAL
};

/// The node's memory, taken by a pod that nobody limited.
pub static POD: Fault = Fault {
    name: "oom-pod-without-limit",
    about: "a pod without a limit takes the node's memory: the kernel kills it",
    cause: "global_oom_pod",
    subject: (SubjectKind::Pod, "default/grows"),
    sees: &[Sees::of("oom", What::OomKill(Role::Pod)), NODE_OUT_OF_MEMORY],
    diagnosed: Expect::Holds,
    inject: |node| {
        kills_soon(node)?;
        node.pod(&hog("grows", "memory --mib 2000 --rate-mib-per-second 100"))?;
        kill::wait(node, &["constraint=CONSTRAINT_NONE", "global_oom", "task=hurt"])
    },
    undo: |node| {
        kills_late(node)?;
        node.remove_pod("grows")
    },
    hold: Duration::from_secs(10),
    ..Fault::USUAL
};

/// The kubelet, which no score protects any more.
pub static KUBELET: Fault = Fault {
    name: "oom-kubelet",
    about: "the kubelet leaks, and its unit has lost its OOMScoreAdjust=-999: pods die first, then the kubelet",
    cause: "oom_kills_kubelet",
    subject: (SubjectKind::Kubelet, "kubelet"),
    sees: &[
        Sees::of("oom", What::OomKill(Role::Kubelet)),
        SYSTEM_PROCESS_KILLED,
        NODE_OUT_OF_MEMORY,
        Sees::of("kubelet", What::Finding("kubelet_absent")),
    ],
    diagnosed: Expect::Root,
    inject: |node| {
        kills_soon(node)?;
        // The stand-in leaks nothing: a process of the same name takes its place in its unit.
        let leaks =
            "/var/lib/ground/hurt name kubelet -- memory --mib 2000 --rate-mib-per-second 100 --ready-first";
        node.drop_in("kubelet", &format!("OOMScoreAdjust=0\nExecStart=\nExecStart={leaks}"))?;
        node.sh("systemctl restart kubelet")?;
        kill::wait(node, &["global_oom", "task_memcg=/system.slice/kubelet.service,task=kubelet"])
    },
    undo: |node| {
        kills_late(node)?;
        node.remove_drop_in("kubelet")?;
        node.sh("systemctl restart kubelet").map(drop)
    },
    hold: Duration::from_secs(15),
    each_time: true,
    ..Fault::USUAL
};

/// The runtime, killed for what another holds.
pub static RUNTIME: Fault = Fault {
    name: "oom-containerd",
    about: "a process that the kernel may not kill (oom_score_adj -1000) takes the node's memory; containerd has lost \
            its -999, and is killed",
    cause: "oom_kills_runtime_or_cni",
    subject: (SubjectKind::Runtime, "containerd"),
    sees: &[
        Sees::of("oom", What::OomKill(Role::Runtime)),
        SYSTEM_PROCESS_KILLED,
        NODE_OUT_OF_MEMORY,
        Sees::of("runtime", What::Finding("runtime_refused")),
    ],
    diagnosed: Expect::Root,
    inject: |node| {
        kills_soon(node)?;
        let pid = node.pid("containerd")?;
        node.write(&format!("/proc/{pid}/oom_score_adj"), "0")?;
        // Slow at the end: what containerd's death frees must last until the hog's.
        node.hurt(
            "hog",
            "-p OOMScoreAdjust=-1000",
            "memory --mib 2000 --rate-mib-per-second 80 --ready-first",
        )?;
        let hog = node.pid("hurt")?;
        let comm = format!("/proc/{pid}/comm");
        let killed =
            node.until(Duration::from_secs(60), "containerd is gone", |node| Ok(node.read(&comm).is_err()));
        // It would go on to the next one, and the next.
        node.guest()?.kill(hog, SIGKILL)?;
        killed?;
        kill::wait(node, &["global_oom", "task_memcg=/system.slice/containerd.service,task=containerd"])
    },
    undo: |node| {
        kills_late(node)?;
        node.heal("hog")?;
        node.sh("systemctl start containerd").map(drop)
    },
    hold: Duration::from_secs(15),
    ..Fault::USUAL
};

/// A network plugin's agent that grows with the node's memory.
pub static CNI_AGENT: Fault = Fault {
    name: "oom-cni-agent",
    about: "a network plugin's agent, a service of the host's (calico-node), takes the node's memory and is killed",
    cause: "oom_kills_runtime_or_cni",
    subject: (SubjectKind::Cni, "calico-node"),
    sees: &[Sees::of("oom", What::OomKill(Role::Cni)), SYSTEM_PROCESS_KILLED, NODE_OUT_OF_MEMORY],
    diagnosed: Expect::Holds,
    inject: |node| {
        kills_soon(node)?;
        node.hurt(
            "calico-node",
            "",
            "name calico-node -- memory --mib 2000 --rate-mib-per-second 100 --ready-first",
        )?;
        kill::wait(node, &["global_oom", "task=calico-node"])
    },
    undo: |node| {
        kills_late(node)?;
        node.heal("calico-node")
    },
    hold: Duration::from_secs(15),
    ..Fault::USUAL
};

/// A network plugin's agent at its own limit: the more usual way.
pub static CNI_AGENT_LIMIT: Fault = Fault {
    name: "oom-cni-agent-at-its-limit",
    about: "a network plugin's agent in a pod (kindnetd) grows past its own limit of 50 MiB, as in kindnet's manifest",
    cause: "oom_kills_runtime_or_cni",
    subject: (SubjectKind::Cni, "kindnetd"),
    sees: &[Sees::of("oom", What::OomKill(Role::Cni)), SYSTEM_PROCESS_KILLED],
    diagnosed: Expect::Holds,
    inject: |node| {
        let mut pod = hog("kindnet", "name kindnetd -- memory --mib 200 --rate-mib-per-second 40");
        pod["qos"] = json!("guaranteed");
        pod["host_network"] = json!(true);
        pod["memory_limit_bytes"] = json!(50 * MIB);
        pod["pod_memory_limit_bytes"] = json!(50 * MIB);
        node.pod(&pod)?;
        kill::wait(node, &["constraint=CONSTRAINT_MEMCG", "task=kindnetd"])
    },
    undo: |node| node.remove_pod("kindnet"),
    hold: Duration::from_secs(10),
    ..Fault::USUAL
};

/// No kill, no log line, and nothing goes on.
pub static THRASH: Fault = Fault {
    name: "memory-thrash",
    about: "programs read a file that does not fit into the memory that is left, again and again, from a disk of 4 MiB a second: no swap, no OOM kill",
    cause: "memory_thrash",
    subject: (SubjectKind::Node, "ground"),
    sees: &[Sees::of("pressure", What::Finding("memory_thrash"))],
    inject: |node| {
        let before = kill::kills(node)?;
        let anon = available_mib(node)?.saturating_sub(110);
        node.hurt(
            "thrash",
            "",
            &format!("thrash --file /var/lib/ground/thrash --mib 200 --anon-mib {anon} --threads 8"),
        )?;
        // The virtual disk is as fast as the memory of the machine that runs it; a cloud's is not.
        node.machine()?.throttle("virtio0", 4 << 20)?;
        let since = node.clocks()?;
        node.until(Duration::from_secs(60), "memory full avg10 is above 20", |node| {
            Ok(full_avg10(&node.read("/proc/pressure/memory")?)? > 20.0)
        })?;
        let after = kill::kills(node)?;
        ensure!(before == after, "the kernel killed: {before} kills before, {after} after");
        let refaults = node.sh("grep -E '^(workingset_refault_file|oom_kill) ' /proc/vmstat")?;
        Ok(Injected::since(since)
            .proven("/proc/pressure/memory", node.read("/proc/pressure/memory")?)
            .proven("/proc/vmstat", refaults))
    },
    undo: |node| {
        node.machine()?.throttle("virtio0", 0)?;
        node.heal("thrash")?;
        node.sh("rm -f /var/lib/ground/thrash").map(drop)
    },
    hold: Duration::from_secs(30),
    ..Fault::USUAL
};

/// As little as makes the kubelet evict.
pub static EVICTION: Fault = Fault {
    name: "memory-available-low",
    about: "a program holds so much that 60 MiB less than the kubelet's hard threshold (300Mi) are available; nothing is killed",
    cause: "memory_pressure",
    subject: (SubjectKind::Node, "ground"),
    sees: &[Sees::of("memory", What::Finding("memory_available_low"))],
    diagnosed: Expect::Holds,
    inject: |node| {
        let more = kubelet_available(node)?.saturating_sub(240 * MIB) / MIB;
        let since = node.clocks()?;
        node.hurt("hog", "", &format!("memory --mib {more}"))?;
        let left = kubelet_available(node)?;
        ensure!(left < 300 * MIB, "{left} bytes are available by the kubelet's reckoning");
        let stat = node.sh(
            "grep -E '^(anon|file|inactive_file) ' /sys/fs/cgroup/memory.stat; grep MemTotal /proc/meminfo",
        )?;
        Ok(Injected::since(since).proven("memory.stat of the root cgroup, /proc/meminfo", stat))
    },
    undo: |node| node.heal("hog"),
    hold: Duration::from_secs(10),
    each_time: true,
    ..Fault::USUAL
};

/// While reclaim gives a page now and then, the kernel kills nobody: for a minute and more the programs of a node without
/// swap are read in and dropped again, which is another fault ([`THRASH`]). The multi-generational LRU can be told to
/// kill sooner: when pages that were used in the last second would have to go.
fn kills_soon(node: &Node) -> anyhow::Result<()> {
    node.write("/sys/kernel/mm/lru_gen/enabled", "y")?;
    node.write("/sys/kernel/mm/lru_gen/min_ttl_ms", "1000").map(drop)
}

/// As it was.
fn kills_late(node: &Node) -> anyhow::Result<()> {
    node.write("/sys/kernel/mm/lru_gen/min_ttl_ms", "0")?;
    node.write("/sys/kernel/mm/lru_gen/enabled", "n").map(drop)
}

/// A pod of no class that hurts.
fn hog(name: &str, arguments: &str) -> Value {
    let command: Vec<&str> =
        std::iter::once("/opt/ground/hurt").chain(arguments.split_whitespace()).collect();
    json!({
        "name": name, "qos": "besteffort", "image": "localhost/busybox:1", "command": command,
        "mounts": [{"host_path": "/var/lib/ground", "container_path": "/opt/ground", "readonly": true}],
    })
}

fn text(made: &Value, pointer: &str) -> anyhow::Result<String> {
    let found = made.pointer(pointer).and_then(Value::as_str);
    found.map(str::to_owned).with_context(|| format!("the pod that was made has no {pointer}: {made}"))
}

fn available_mib(node: &Node) -> anyhow::Result<u64> {
    Ok(field(&node.read("/proc/meminfo")?, "MemAvailable:")? / 1024)
}

/// The kubelet's memory.available: capacity less (usage less inactive_file) of the root cgroup.
fn kubelet_available(node: &Node) -> anyhow::Result<u64> {
    let total = field(&node.read("/proc/meminfo")?, "MemTotal:")? * 1024;
    let stat = node.read("/sys/fs/cgroup/memory.stat")?;
    let usage = field(&stat, "anon")? + field(&stat, "file")?;
    Ok(total.saturating_sub(usage.saturating_sub(field(&stat, "inactive_file")?)))
}

fn field(text: &str, name: &str) -> anyhow::Result<u64> {
    let mut lines = text.lines().map(str::split_whitespace);
    let value = lines.find_map(|mut words| (words.next() == Some(name)).then(|| words.next())).flatten();
    value
        .with_context(|| format!("there is no {name}"))?
        .parse()
        .with_context(|| format!("the value of {name}"))
}

fn full_avg10(text: &str) -> anyhow::Result<f64> {
    let full = text.lines().find_map(|line| line.strip_prefix("full avg10="));
    let value = full.and_then(|rest| rest.split_whitespace().next());
    value.context("there is no full avg10")?.parse().context("the value of full avg10")
}
