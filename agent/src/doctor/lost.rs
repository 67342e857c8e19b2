//! What is not known without a collector.

const LOST: &[(&str, &str)] = &[
    ("pressure", "how long tasks wait for CPU, memory and I/O: a node that starves looks idle"),
    ("memory", "how near the node is to eviction, and whether it thrashes"),
    ("cgroups", "which pod takes the memory, which is throttled, which was killed within its own limit"),
    ("oom", "OOM kills and the kernel's other words: hung tasks, dead disks, a full conntrack table"),
    ("conntrack", "whether the table of connections is full, and who fills it"),
    ("netfilter", "how many rules iptables, nftables and IPVS hold, and whether kube-proxy keeps up"),
    ("runtime", "whether the container runtime answers, and which call hangs; pods' names"),
    ("kubelet", "whether the kubelet runs, was restarted, or does not answer"),
    ("cni", "why pods get no network: a configuration or a plugin that is missing"),
    ("disk", "slow or dead disks, full or read-only file systems, mounts that hang"),
    ("tasks", "which tasks are blocked, on what, and since when; what blocks the kubelet's relist"),
    ("network", "drops, full tables, lost routes of this node's own network"),
    ("api_server", "whether this node itself reaches the API server, and what fails on the way"),
    ("clock", "whether the clock is right, and when it was stepped"),
    ("logs", "what the kubelet, the runtime, kube-proxy and the network's agents say in their logs"),
    ("control_plane", "whether etcd and the API server of this node are well"),
    ("systemd", "whether systemd answers, and which units failed or were restarted"),
    ("changes", "what was changed on this node before it fell sick"),
];

/// What is not known without this one.
pub(super) fn without(collector: &str) -> &'static str {
    let known = LOST.iter().find(|(name, _)| *name == collector);
    known.map_or("its findings, its events and its metrics", |(_, lost)| lost)
}

#[cfg(test)]
mod tests {
    use super::LOST;
    use crate::collect::COLLECTORS;

    #[test]
    fn it_is_said_of_every_collector() {
        for collector in COLLECTORS {
            let name = collector.name();
            assert!(LOST.iter().any(|(known, _)| *known == name), "doctor/lost.rs says nothing of {name}");
        }
    }
}
