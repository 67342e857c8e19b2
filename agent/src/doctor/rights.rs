//! What the agent itself may do: its user, its capabilities, its confinement, what of the host is mounted for it.

use serde::Serialize;

use crate::host::netlink::NetworkNamespace;
use crate::host::own::Standing;
use crate::host::{Host, ReadError};

/// Something that the agent may do, or not.
#[derive(Debug, PartialEq, Serialize)]
pub struct Right {
    /// Which.
    pub what: &'static str,
    /// Whether it has it; `None`: that could not be read.
    pub held: Option<bool>,
    /// What was seen.
    pub says: String,
    /// What is not known without it.
    pub lost: &'static str,
    /// How it is given.
    pub recipe: &'static str,
}

/// A capability that some collector uses: its bit (include/uapi/linux/capability.h), what is lost without it.
struct Capability {
    name: &'static str,
    bit: u32,
    lost: &'static str,
    recipe: &'static str,
}

const CAPABILITIES: &[Capability] = &[
    Capability {
        name: "CAP_SYSLOG",
        bit: 34,
        lost: "the kernel log where /dev/kmsg cannot be opened: OOM kills, hung tasks, dead disks",
        recipe: "securityContext.capabilities.add: [SYSLOG]",
    },
    Capability {
        name: "CAP_SYS_PTRACE",
        bit: 19,
        lost: "of other users' processes: in which function they hang, their program, their open files",
        recipe: "securityContext.capabilities.add: [SYS_PTRACE]",
    },
    Capability {
        name: "CAP_DAC_READ_SEARCH",
        bit: 2,
        lost: "files that only their owners may read: kubelet's and CNI's folders, logs",
        recipe: "run as root, or securityContext.capabilities.add: [DAC_READ_SEARCH]",
    },
    Capability {
        name: "CAP_NET_ADMIN",
        bit: 12,
        lost: "rules of netfilter, IPVS, and who owns the entries of conntrack",
        recipe: "securityContext.capabilities.add: [NET_ADMIN]",
    },
    Capability {
        name: "CAP_IPC_LOCK",
        bit: 14,
        lost: "nothing that is read; while the node thrashes the agent's own pages are evicted, and it is late",
        recipe: "securityContext.capabilities.add: [IPC_LOCK], or a higher RLIMIT_MEMLOCK",
    },
];

/// Folders of the host that collectors read.
const MOUNTS: &[(&str, &str)] = &[
    ("/proc", "nearly everything"),
    ("/sys", "cgroups, disks, links, modules"),
    ("/etc", "CNI's and the kubelet's configuration, which system this is"),
    ("/run", "the runtime's socket, what systemd knows"),
    ("/var/log", "logs of pods and the journal"),
    ("/var/lib", "the kubelet's folder, CNI's allocations"),
];

const JOURNALS: &[&str] = &["/var/log/journal", "/run/log/journal"];

/// All of them.
pub(super) fn rights(standing: &Standing, host: &Host) -> Vec<Right> {
    let mut rights = vec![user(standing)];
    rights.extend(CAPABILITIES.iter().map(|capability| held(capability, standing.capabilities)));
    rights.extend([label(standing), processes(standing, host), network(host), mounts(host)]);
    rights.push(journal(host));
    rights
}

fn user(standing: &Standing) -> Right {
    Right {
        what: "root",
        held: standing.uid.map(|uid| uid == 0),
        says: standing
            .uid
            .map_or_else(|| "its user is not known".to_owned(), |uid| format!("it runs as uid {uid}")),
        lost: "sockets and files of root's: the runtime's socket, /proc of other users' processes",
        recipe: "runAsUser: 0; the capabilities below are what of root it uses",
    }
}

fn held(capability: &Capability, bits: Option<u64>) -> Right {
    let held = bits.map(|bits| bits & (1 << capability.bit) != 0);
    let says = match held {
        Some(true) => "held",
        Some(false) => "not held",
        None => "not known: /proc/self/status could not be read",
    };
    Right {
        what: capability.name,
        held,
        says: says.to_owned(),
        lost: capability.lost,
        recipe: capability.recipe,
    }
}

/// AppArmor's profile or SELinux' context, and the system calls' filter.
fn label(standing: &Standing) -> Right {
    let seccomp = match standing.seccomp {
        Some(0) => "no seccomp",
        Some(1 | 2) => "seccomp filters system calls",
        _ => "seccomp not known",
    };
    // What neither confines, and SELinux' own type for it.
    let is_free =
        |label: &str| label.starts_with("unconfined") || label.contains(":spc_t:") || label == "kernel";
    let is_free =
        |label: &str| is_free(label) || label.contains("unconfined_t") || label.ends_with("(complain)");
    Right {
        what: "no confinement",
        held: Some(standing.label.as_deref().is_none_or(is_free)),
        says: match &standing.label {
            Some(label) => format!("{label}, {seccomp}"),
            None => format!("neither AppArmor nor SELinux, {seccomp}"),
        },
        lost: "AppArmor's default profile: in which function tasks hang, programs, namespaces of host processes. \
               SELinux' container_t: the runtime's socket",
        recipe: "appArmorProfile: {type: Unconfined}, seLinuxOptions: {type: spc_t}",
    }
}

fn processes(standing: &Standing, host: &Host) -> Right {
    let blind = host.blind_to_processes();
    Right {
        what: "hostPID",
        held: match (&blind, standing.sees_host_processes) {
            (Some(_), _) => Some(false),
            // Another root than its own /proc shows the host's processes, whatever its own namespace.
            (None, Some(false)) if host.root() != std::path::Path::new("/") => Some(true),
            (None, held) => held,
        },
        says: match (blind, standing.sees_host_processes) {
            (Some(why), _) => why,
            (None, Some(true)) => "its process ids are the host's".to_owned(),
            (None, Some(false)) => format!(
                "its own process ids are a container's; processes are read under {}",
                host.path("/proc").display()
            ),
            (None, None) => "its namespace of process ids could not be read".to_owned(),
        },
        lost: "the kubelet, the runtime and every other process of the host",
        recipe: "hostPID: true",
    }
}

fn network(host: &Host) -> Right {
    let (held, says) = match host.network_is_hosts() {
        NetworkNamespace::Hosts => (Some(true), "its network is that of the host's first process".to_owned()),
        NetworkNamespace::Own => (Some(false), "its network is a namespace of its own".to_owned()),
        NetworkNamespace::Unknown { why } => (None, format!("cannot tell: {why}")),
    };
    Right {
        what: "hostNetwork",
        held,
        says,
        lost: "what only netlink tells of the host: conntrack's counters and owners, nftables, IPVS; what answers on its \
               loopback device: the kubelet's ping, kube-proxy, etcd, the API server, the network's agent; its own dial \
               to the API server goes another way than the kubelet's",
        recipe: "hostNetwork: true",
    }
}

fn mounts(host: &Host) -> Right {
    let missing: Vec<String> = MOUNTS
        .iter()
        .filter(|(path, _)| !host.list(path).is_ok_and(|names| !names.is_empty()))
        .map(|(path, what)| format!("{path} ({what})"))
        .collect();
    Right {
        what: "the host's folders",
        held: Some(missing.is_empty()),
        says: if missing.is_empty() {
            format!("all that are read are there under {}", host.root().display())
        } else {
            format!("empty or not there under {}: {}", host.root().display(), missing.join(", "))
        },
        lost: "what stands there, as named",
        recipe: "mount the host's / at /host, read-only, with mountPropagation: HostToContainer, and --host-root /host",
    }
}

fn journal(host: &Host) -> Right {
    let seen = JOURNALS.iter().map(|path| (*path, host.list(path)));
    let mut denied = None;
    let mut found = None;
    for (path, names) in seen {
        match names {
            Ok(names) if !names.is_empty() => found = Some(path),
            Ok(_) | Err(ReadError::NotFound { .. }) => {}
            Err(error) => denied = Some(error.to_string()),
        }
    }
    Right {
        what: "journal",
        held: match (found, &denied) {
            (Some(_), _) => Some(true),
            (None, Some(_)) => Some(false),
            (None, None) => None,
        },
        says: match (found, denied) {
            (Some(path), _) => format!("{path} can be listed"),
            (None, Some(error)) => error,
            (None, None) => format!("none in {}", JOURNALS.join(" and ")),
        },
        lost: "the logs of kubelet, runtime and systemd, where they write to the journal",
        recipe: "mount /var/log and /run of the host; run as root, or in the group systemd-journal",
    }
}
