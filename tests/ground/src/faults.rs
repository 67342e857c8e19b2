//! The library of faults: one list that one can read. Each file is a part of the node that is broken.

pub mod clock;
pub mod cni;
pub mod cpu;
pub mod data_plane;
pub mod disk;
pub mod kernel;
pub mod kubelet;
pub mod memory;
pub mod network;
pub mod runtime;
pub mod tasks;

use crate::fault::Fault;

/// All of them, by group, in the order in which the table shows them.
pub static FAULTS: &[(&str, &[&Fault])] = &[
    (
        "Memory",
        &[
            &memory::CONTAINER,
            &memory::GROUP,
            &memory::KUBEPODS,
            &memory::POD,
            &memory::KUBELET,
            &memory::RUNTIME,
            &memory::CNI_AGENT,
            &memory::CNI_AGENT_LIMIT,
            &memory::THRASH,
            &memory::EVICTION,
        ],
    ),
    ("CPU", &[&cpu::KUBELET_THROTTLED, &cpu::SATURATED, &cpu::BLOCKED_TASKS]),
    (
        "Disk",
        &[
            &disk::NODEFS_FULL,
            &disk::IMAGEFS_FULL,
            &disk::INODES_EXHAUSTED,
            &disk::READONLY_BY_ERROR,
            &disk::READONLY_BY_FLAKEY,
            &disk::SCSI_ERRORS,
            &disk::SCSI_MEDIUM_ERROR,
            &disk::SLOW,
            &disk::HUNG,
            &disk::ROOT_HUNG,
            &disk::ETCD_FSYNC_SLOW,
        ],
    ),
    (
        "Kernel",
        &[
            &kernel::HUNG_TASKS,
            &kernel::SOFT_LOCKUP,
            &kernel::PANIC_WITH_PSTORE,
            &kernel::PANIC,
            &kernel::POWER_CUT,
            &kernel::REBOOT,
        ],
    ),
    ("Clock", &[&clock::FORWARD, &clock::BACK, &clock::FROZEN]),
    (
        "Runtime",
        &[
            &runtime::DEAD,
            &runtime::HUNG,
            &runtime::SLOW,
            &runtime::ONE_CONTAINER_HUNG,
            &runtime::STATE_DAMAGED,
            &runtime::CNI_DIR_REMOVED,
        ],
    ),
    (
        "CNI",
        &[
            &cni::CONFIG_MISSING,
            &cni::CONFIG_INVALID,
            &cni::PLUGIN_MISSING,
            &cni::IPAM_EXHAUSTED,
            &cni::IPAM_LEAKED,
            &cni::AGENT_SOCKET_GONE,
            &cni::VETH_GONE,
            &cni::NAMESPACE_NEVER_MADE,
        ],
    ),
    (
        "Tasks",
        &[
            &tasks::PIDS_OF_A_POD,
            &tasks::PIDS_OF_THE_NODE,
            &tasks::ZOMBIES,
            &tasks::FILES_OF_THE_NODE,
            &tasks::FILES_OF_THE_RUNTIME,
            &tasks::INOTIFY_INSTANCES,
            &tasks::INOTIFY_WATCHES,
            &tasks::RUNC_HUNG,
        ],
    ),
    (
        "Data plane",
        &[
            &data_plane::CONNTRACK_FULL,
            &data_plane::SERVICES_LEGACY,
            &data_plane::SERVICES_NFT,
            &data_plane::XTABLES_LOCK,
            &data_plane::NEIGHBOURS,
            &data_plane::SOFTIRQ_STORM,
        ],
    ),
    ("Network", &[&network::API_UNREACHABLE, &network::API_SLOW, &network::API_CONNECTION_DEAD]),
    ("Kubelet", &[&kubelet::KILLED, &kubelet::STOPPED, &kubelet::HUNG, &kubelet::CERTIFICATE_EXPIRED]),
];

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Fault> {
    FAULTS.iter().flat_map(|(_, faults)| faults.iter().copied())
}

/// The fault of this name.
pub fn find(name: &str) -> Option<&'static Fault> {
    all().find(|fault| fault.name == name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_fault_says_what_it_is_and_what_must_be_seen_of_it() {
        let mut names = BTreeSet::new();
        for fault in all() {
            assert!(names.insert(fault.name), "{} is there twice", fault.name);
            let said = [fault.name, fault.about, fault.cause, fault.subject.1];
            assert!(!said.contains(&""), "{fault:?}");
            assert_eq!(
                fault.sees.is_empty(),
                fault.unseen.is_some(),
                "{}: seen, or said why not",
                fault.name
            );
        }
    }
}
