//! What this node's kernel or settings do not show, each with what is lost and how to end it.

use serde::Serialize;

use super::{Found, is_there};
use crate::host::{Host, ReadError};

/// Something that cannot be seen here. It is no zero anywhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BlindSpot {
    /// What is off: `PSI`.
    pub what: &'static str,
    /// What cannot be told without it.
    pub lost: &'static str,
    /// How to end it.
    pub recipe: String,
}

/// What is off on this node. Each is looked at, none is taken from the distribution's name.
pub fn blind_spots(host: &Host, found: &Found) -> Vec<BlindSpot> {
    let mut spots = Vec::new();
    let mut add = |what, lost, recipe: String| spots.push(BlindSpot { what, lost, recipe });
    let psi = found.distribution.map_or("boot the kernel with psi=1", |row| row.psi_recipe);
    // The file can be there and refuse: it must be read, not looked for. Without /proc nothing is known.
    if is_there(host, "/proc/stat") && !can_read(host, "/proc/pressure/cpu") {
        add("PSI", "how long tasks wait for CPU, memory and I/O", psi.to_owned());
    }
    let sysctl = |name: &str| format!("/proc/sys/kernel/{name}");
    if is_there(host, "/proc/sys/kernel") {
        match host.read(sysctl("hung_task_timeout_secs")).ok().as_deref().map(str::trim) {
            None => add(
                "hung-task detection",
                "the kernel's lines on tasks that are blocked for minutes; D states are still looked at",
                "it is not in this kernel (CONFIG_DETECT_HUNG_TASK): use one that has it".to_owned(),
            ),
            Some("0") => add(
                "hung-task detection",
                "the kernel's lines on tasks that are blocked for minutes; D states are still looked at",
                "sysctl kernel.hung_task_timeout_secs=120".to_owned(),
            ),
            Some(_) => {}
        }
        if !is_there(host, sysctl("soft_watchdog")) {
            add(
                "soft-lockup detection",
                "the kernel's lines on a CPU that is stuck",
                "it is not in this kernel (CONFIG_SOFTLOCKUP_DETECTOR): use one that has it".to_owned(),
            );
        }
        if host.read(sysctl("task_delayacct")).is_ok_and(|text| text.trim() == "0") {
            add(
                "delay accounting",
                "for how long single tasks waited for disk and swap",
                "sysctl kernel.task_delayacct=1, or boot the kernel with delayacct".to_owned(),
            );
        }
    }
    if is_there(host, "/proc/1/net") && !is_there(host, "/proc/1/net/ip_tables_names") {
        add(
            "legacy iptables",
            "nothing, where rules are nftables' (told by the netfilter collector)",
            "no recipe is needed: a kernel without ip_tables has no such rules".to_owned(),
        );
    }
    if found.shared_kernel == Some(true) {
        add(
            "a kernel of its own",
            "which of the nodes on this kernel its log, its PSI and its tables speak of",
            "run nodes on machines of their own".to_owned(),
        );
    }
    if host.places().runtime_socket.as_deref().is_some_and(crate::host::is_none_socket) {
        add(
            "the runtime's socket",
            "whether the runtime answers, how long a relist takes, pods' names where logs do not tell them",
            "leave runtime_socket out of the settings; whoever may use that socket is root on the node"
                .to_owned(),
        );
    }
    if host.places().kubelet_token_file.is_none() {
        add(
            "the kubelet's own metrics",
            "PLEG as the kubelet sees it, evictions, the life of its certificate, its sync loop",
            "give the agent a token with nodes/metrics, nodes/healthz and nodes/configz (kubelet_token_file)"
                .to_owned(),
        );
    }
    spots
}

fn can_read(host: &Host, path: &str) -> bool {
    // What may not be read by us is another matter than what is off.
    matches!(host.read(path), Ok(_) | Err(ReadError::Denied { .. }))
}
