//! The lines of logs that matter, one entry each, with where each was seen. A line is an event, never a finding: what
//! a program says is a witness, and witnesses repeat what they heard.
//!
//! The words are those of the programs' sources; file names and line numbers before them change with each version, so
//! parts of the text are looked for. The kernel's own lines are the collector oom's.

use std::collections::BTreeMap;

use super::format::{self, Parsed};

/// Whose log a line is in. A log can be several programs' (k3s is one process).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Programs(u16);

impl Programs {
    pub(super) const KUBELET: Programs = Programs(1);
    pub(super) const RUNTIME: Programs = Programs(2);
    pub(super) const SYSTEMD: Programs = Programs(4);
    pub(super) const KUBE_PROXY: Programs = Programs(8);
    pub(super) const CNI: Programs = Programs(16);
    pub(super) const ETCD: Programs = Programs(32);
    pub(super) const API_SERVER: Programs = Programs(64);
    /// All but PID 1: a distribution of one process.
    pub(super) const ONE_PROCESS: Programs = Programs(1 | 2 | 8 | 16 | 32 | 64);
    /// Whoever starts a pod's network says what its plugin said.
    const NETWORK: Programs = Programs(1 | 2 | 16);
    const ANY: Programs = Programs(1 | 2 | 8 | 16 | 32 | 64);

    fn meets(self, other: Programs) -> bool {
        self.0 & other.0 != 0
    }

    /// These, and those.
    pub(super) const fn and(self, other: Programs) -> Programs {
        Programs(self.0 | other.0)
    }
}

/// What a line was found to be.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Found {
    pub(super) pattern: &'static str,
    pub(super) fields: BTreeMap<String, String>,
    /// What makes two lines of the pattern alike, for counting a storm.
    pub(super) subject: String,
    /// The line, taken apart.
    pub(super) parsed: Parsed,
}

struct Pattern {
    /// A label of metrics too.
    name: &'static str,
    of: Programs,
    /// All of these are in the line …
    all: &'static [&'static str],
    /// … and one of these, if there are any.
    any: &'static [&'static str],
    /// The fields by which two lines are alike.
    alike: &'static [&'static str],
    fields: Fields,
}

/// What a line names; what can't be read of it is left out.
type Fields = fn(&Line<'_>) -> Vec<(&'static str, Option<String>)>;

struct Line<'a> {
    text: &'a str,
    parsed: &'a Parsed,
}

/// What a line says; `None` for nearly all.
pub(super) fn find(line: &str, of: Programs) -> Option<Found> {
    let pattern = PATTERNS.iter().find(|pattern| {
        pattern.of.meets(of)
            && pattern.all.iter().all(|part| line.contains(part))
            && (pattern.any.is_empty() || pattern.any.iter().any(|part| line.contains(part)))
    })?;
    let parsed = format::parse(line);
    let fields = (pattern.fields)(&Line { text: line, parsed: &parsed });
    let fields: BTreeMap<String, String> =
        fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), cut(&value?, 200)))).collect();
    let subject =
        pattern.alike.iter().filter_map(|name| fields.get(*name)).cloned().collect::<Vec<_>>().join(" ");
    Some(Found { pattern: pattern.name, fields, subject, parsed })
}

/// Cut at this many bytes, with a mark.
pub(super) fn cut(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    format!("{}…", text.get(..text.floor_char_boundary(bytes)).unwrap_or_default())
}

impl Line<'_> {
    /// A value of the line's own pairs.
    fn value(&self, key: &str) -> Option<String> {
        self.parsed.value(key).map(str::to_owned)
    }

    /// What the program gives as the error.
    fn error(&self) -> Option<String> {
        self.value("err").or_else(|| self.value("error"))
    }

    /// What stands after this, up to one of these letters or the end.
    fn between(&self, mark: &str, ends: &[char]) -> Option<String> {
        let (_, rest) = self.text.split_once(mark)?;
        let text = rest.split(ends).next().unwrap_or(rest).trim();
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// A duration of Go's after this, in seconds.
    fn seconds(&self, mark: &str) -> Option<String> {
        let (_, rest) = self.text.split_once(mark)?;
        go_seconds(rest).map(|seconds| format!("{seconds:.3}"))
    }

    /// The unit that a line of PID 1 begins with.
    fn unit(&self) -> Option<String> {
        self.text.split_once(": ").map(|(unit, _)| unit.to_owned()).filter(|unit| unit.contains('.'))
    }

    /// The unit that a line of PID 1 names after its first word.
    fn second_word(&self) -> Option<String> {
        let word = self.text.split_ascii_whitespace().nth(1)?.trim_end_matches('.');
        word.rsplit_once('.').is_some().then(|| word.to_owned())
    }
}

/// `7m51.835147826s`, `66h20m49s`, `123.4ms` in seconds, from the beginning of this text.
fn go_seconds(text: &str) -> Option<f64> {
    let (mut seconds, mut rest, mut parts) = (0.0, text.trim_start_matches(['"', '\\', ' ']), 0);
    loop {
        let end = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        let Ok(number) = number.parse::<f64>() else { break };
        // The longer names first: `ms` is no `m`.
        let (name, unit) =
            [("ms", 1e-3), ("µs", 1e-6), ("us", 1e-6), ("ns", 1e-9), ("h", 3600.0), ("m", 60.0), ("s", 1.0)]
                .into_iter()
                .find(|(name, _)| after.starts_with(name))?;
        seconds += number * unit;
        rest = after.get(name.len()..)?;
        parts += 1;
    }
    (parts > 0 && seconds.is_finite()).then_some(seconds)
}

const NOTHING: Fields = |_| Vec::new();
const ERROR: Fields = |line| vec![("error", line.error())];

/// The first that fits is it, so the sharper ones stand first.
static PATTERNS: &[Pattern] = &[
    // containerd/containerd#5274: "PLEG is not healthy: pleg was last seen active 7m51.835147826s ago; threshold is 3m0s".
    Pattern {
        name: "pleg_not_healthy",
        of: Programs::KUBELET,
        all: &["pleg was last seen active "],
        any: &[],
        alike: &[],
        fields: |line| {
            let down = line.text.contains("container runtime is down").then(|| "true".to_owned());
            vec![
                ("seconds", line.seconds("pleg was last seen active ")),
                ("threshold_seconds", line.seconds("threshold is ")),
                ("runtime_is_down", down),
            ]
        },
    },
    Pattern {
        name: "runtime_down",
        of: Programs::KUBELET,
        all: &["container runtime is down"],
        any: &[],
        alike: &[],
        fields: NOTHING,
    },
    // bottlerocket#2512; kubelet.go: "Container runtime sanity check failed".
    Pattern {
        name: "runtime_unavailable",
        of: Programs::KUBELET,
        all: &["code = Unavailable"],
        any: &[
            "sanity check failed",
            "from runtime service failed",
            "Status from runtime",
            "GenericPLEG: Unable to retrieve pods",
        ],
        alike: &["socket"],
        fields: |line| {
            vec![("socket", line.between("dial unix ", &[':']).or_else(|| line.between("->", &[':'])))]
        },
    },
    // k8s#67796: "Status from runtime service failed: rpc error: code = DeadlineExceeded desc = context deadline exceeded".
    Pattern {
        name: "runtime_call_deadline",
        of: Programs::KUBELET,
        all: &["code = DeadlineExceeded"],
        any: &[],
        alike: &["call"],
        fields: |line| vec![("call", Some(cut(&line.parsed.message, 80)))],
    },
    // Seen at kubelet 1.32: "Container runtime network not ready" networkReady="NetworkReady=false reason:…".
    Pattern {
        name: "network_not_ready",
        of: Programs::KUBELET,
        all: &["NetworkReady=false"],
        any: &[],
        alike: &["reason"],
        fields: |line| {
            vec![("reason", line.between("reason:", &[' '])), ("message", line.between("message:", &['"']))]
        },
    },
    // 1.32: "Error getting the current node from lister" err="node \"lab-node1\" not found".
    Pattern {
        name: "node_not_found",
        of: Programs::KUBELET,
        all: &["not found", "node"],
        any: &["rror getting node", "rror getting the current node"],
        alike: &[],
        fields: ERROR,
    },
    Pattern {
        name: "lease_failed",
        of: Programs::KUBELET,
        all: &["Failed to ensure lease exists"],
        any: &[],
        alike: &[],
        fields: ERROR,
    },
    Pattern {
        name: "lease_update_failed",
        of: Programs::KUBELET,
        all: &["Failed to update lease"],
        any: &[],
        alike: &[],
        fields: ERROR,
    },
    Pattern {
        name: "node_status_failed",
        of: Programs::KUBELET,
        all: &["exceeds retry count"],
        any: &[],
        alike: &[],
        fields: ERROR,
    },
    Pattern {
        name: "connection_closed",
        of: Programs::KUBELET,
        all: &["read tcp ", "use of closed network connection"],
        any: &[],
        alike: &[],
        fields: |line| {
            vec![(
                "connection",
                line.between("read tcp ", &[' ']).map(|name| name.trim_end_matches(':').to_owned()),
            )]
        },
    },
    Pattern {
        name: "node_became_not_ready",
        of: Programs::KUBELET,
        all: &["Node became not ready"],
        any: &[],
        alike: &[],
        fields: |line| vec![("condition", line.value("condition"))],
    },
    Pattern {
        name: "housekeeping_slow",
        of: Programs::KUBELET,
        all: &["Housekeeping took longer"],
        any: &[],
        alike: &[],
        fields: |line| {
            vec![("seconds", line.seconds("actual=")), ("expected_seconds", line.seconds("expected="))]
        },
    },
    // 1.36 writes "Eviction manager: attempting to reclaim" resourceName="…".
    Pattern {
        name: "eviction_reclaiming",
        of: Programs::KUBELET,
        all: &["attempting to reclaim"],
        any: &[],
        alike: &["resource"],
        fields: |line| {
            vec![(
                "resource",
                line.value("resourceName").or_else(|| line.between("attempting to reclaim ", &[' ', '"'])),
            )]
        },
    },
    Pattern {
        name: "eviction_threshold_met",
        of: Programs::KUBELET,
        all: &["eviction thresholds have been met"],
        any: &[],
        alike: &[],
        fields: NOTHING,
    },
    Pattern {
        name: "summary_stats_failed",
        of: Programs::KUBELET,
        all: &["failed to get summary stats"],
        any: &[],
        alike: &[],
        fields: ERROR,
    },
    Pattern {
        name: "inotify_exhausted",
        of: Programs::ANY,
        all: &["inotify"],
        any: &["too many open files", "no space left on device"],
        alike: &[],
        fields: NOTHING,
    },
    // eks-node-monitoring-agent's tests: "failed to create new OS thread (foo; errno=11)".
    Pattern {
        name: "threads_exhausted",
        of: Programs::ANY,
        all: &[],
        any: &["failed to create new OS thread", "resource temporarily unavailable"],
        alike: &[],
        fields: |line| vec![("errno", line.between("errno=", &[')', ' ']))],
    },
    Pattern {
        name: "pod_sync_failed",
        of: Programs::KUBELET,
        all: &["Error syncing pod, skipping"],
        any: &[],
        alike: &["pod"],
        fields: |line| vec![("pod", line.value("pod")), ("error", line.error())],
    },
    Pattern {
        name: "container_not_exited",
        of: Programs::KUBELET,
        all: &["non-exited state"],
        any: &[],
        alike: &["pod"],
        fields: |line| vec![("pod", line.value("pod"))],
    },
    Pattern {
        name: "disk_usage_slow",
        of: Programs::KUBELET,
        all: &["following dirs took "],
        any: &[],
        alike: &[],
        fields: |line| vec![("seconds", line.seconds("following dirs took "))],
    },
    Pattern {
        name: "client_certificate_expired",
        of: Programs::KUBELET,
        all: &["client certificate has expired"],
        any: &[],
        alike: &[],
        fields: NOTHING,
    },
    // crypto/x509: "certificate has expired or is not yet valid: current time … is after …" (expired) or "is before" (skew).
    Pattern {
        name: "certificate_expired",
        of: Programs::ANY,
        all: &["x509: certificate has expired or is not yet valid", " is after "],
        any: &[],
        alike: &[],
        fields: |line| {
            vec![
                ("current_time", line.between("current time ", &[' '])),
                ("valid_until", line.between(" is after ", &['"', ',', ' ', '\\'])),
            ]
        },
    },
    Pattern {
        name: "certificate_not_yet_valid",
        of: Programs::ANY,
        all: &["x509: certificate has expired or is not yet valid", " is before "],
        any: &[],
        alike: &[],
        fields: |line| {
            vec![
                ("current_time", line.between("current time ", &[' '])),
                ("valid_from", line.between(" is before ", &['"', ',', ' ', '\\'])),
            ]
        },
    },
    Pattern {
        name: "cni_plugin_not_found",
        of: Programs::NETWORK,
        all: &["failed to find plugin"],
        any: &[],
        alike: &["plugin"],
        fields: |line| {
            vec![
                (
                    "plugin",
                    line.between("failed to find plugin ", &[' '])
                        .map(|name| name.trim_matches(['"', '\\']).to_owned()),
                ),
                ("path", line.between(" in path ", &['"'])),
            ]
        },
    },
    Pattern {
        name: "calico_nodename_missing",
        of: Programs::NETWORK,
        all: &["/var/lib/calico/nodename"],
        any: &["no such file"],
        alike: &[],
        fields: NOTHING,
    },
    Pattern {
        name: "flannel_subnet_missing",
        of: Programs::NETWORK,
        all: &["subnet.env", "no such file"],
        any: &[],
        alike: &[],
        fields: NOTHING,
    },
    Pattern {
        name: "ipam_range_exhausted",
        of: Programs::NETWORK,
        all: &["no IP addresses available"],
        any: &[],
        alike: &["range"],
        fields: |line| vec![("range", line.between("range set: ", &['"', ' ']))],
    },
    Pattern {
        name: "cilium_ipam_failed",
        of: Programs::NETWORK,
        all: &["via local cilium agent"],
        any: &[],
        alike: &[],
        fields: |line| vec![("error", line.between("via local cilium agent: ", &[]))],
    },
    Pattern {
        name: "vpc_no_ip",
        of: Programs::NETWORK,
        all: &["failed to assign an IP address"],
        any: &[],
        alike: &[],
        fields: NOTHING,
    },
    Pattern {
        name: "calico_pools_exhausted",
        of: Programs::NETWORK,
        all: &["No IPs available in pools"],
        any: &[],
        alike: &[],
        fields: NOTHING,
    },
    Pattern {
        name: "shim_state_unanswered",
        of: Programs::RUNTIME,
        all: &["get state for "],
        any: &[],
        alike: &["container_id"],
        fields: |line| {
            vec![
                ("container_id", line.between("get state for ", &['"', ' ', '\\', ':'])),
                ("error", line.error()),
            ]
        },
    },
    // containerd, pkg/cri: "failed to reserve container name …; check if another … request is in progress".
    Pattern {
        name: "name_reserved",
        of: Programs::KUBELET.and(Programs::RUNTIME),
        all: &["failed to reserve "],
        any: &["container name", "sandbox name"],
        alike: &[],
        fields: |line| {
            vec![(
                "name",
                line.between(" name ", &[';', ':', ' '])
                    .map(|name| name.trim_matches(['"', '\\']).to_owned()),
            )]
        },
    },
    Pattern {
        name: "shim_disconnected",
        of: Programs::RUNTIME,
        all: &["after shim disconnected"],
        any: &[],
        alike: &["id"],
        fields: |line| vec![("id", line.value("id"))],
    },
    Pattern {
        name: "cni_load_failed",
        of: Programs::RUNTIME,
        all: &[],
        any: &["failed to load cni", "failed to reload cni configuration"],
        alike: &[],
        fields: ERROR,
    },
    Pattern {
        name: "oci_create_failed",
        of: Programs::KUBELET.and(Programs::RUNTIME),
        all: &["OCI runtime create failed"],
        any: &[],
        alike: &[],
        fields: ERROR,
    },
    Pattern {
        name: "crio_system_load",
        of: Programs::KUBELET.and(Programs::RUNTIME),
        all: &["due to system load"],
        any: &[],
        alike: &["stage"],
        fields: |line| vec![("stage", line.between("Currently at stage ", &['"', ',']))],
    },
    // PID 1, systemd 252: "kubelet.service: Main process exited, code=killed, status=9/KILL".
    Pattern {
        name: "unit_oom_killed",
        of: Programs::SYSTEMD,
        all: &[],
        any: &["killed by the OOM killer", "killed by systemd-oomd"],
        alike: &["unit"],
        fields: |line| vec![("unit", line.unit())],
    },
    Pattern {
        name: "unit_process_exited",
        of: Programs::SYSTEMD,
        all: &["Main process exited, "],
        any: &[],
        alike: &["unit"],
        fields: |line| {
            vec![
                ("unit", line.unit()),
                ("code", line.between("code=", &[','])),
                ("status", line.between("status=", &[','])),
            ]
        },
    },
    Pattern {
        name: "unit_failed",
        of: Programs::SYSTEMD,
        all: &["Failed with result "],
        any: &[],
        alike: &["unit"],
        fields: |line| vec![("unit", line.unit()), ("result", line.between("Failed with result '", &['\'']))],
    },
    // "Start request repeated too quickly.": systemd tries no more.
    Pattern {
        name: "unit_start_limit",
        of: Programs::SYSTEMD,
        all: &["Start request repeated too quickly"],
        any: &[],
        alike: &["unit"],
        fields: |line| vec![("unit", line.unit())],
    },
    Pattern {
        name: "unit_restart_scheduled",
        of: Programs::SYSTEMD,
        all: &["Scheduled restart job"],
        any: &[],
        alike: &["unit"],
        fields: |line| {
            vec![("unit", line.unit()), ("restarts", line.between("restart counter is at ", &['.']))]
        },
    },
    Pattern {
        name: "unit_watchdog",
        of: Programs::SYSTEMD,
        all: &["Watchdog timeout"],
        any: &[],
        alike: &["unit"],
        fields: |line| vec![("unit", line.unit())],
    },
    // `systemctl kill`: "containerd.service: Sent signal SIGSTOP to main process 1301 (containerd) on client request."
    Pattern {
        name: "unit_signal_sent",
        of: Programs::SYSTEMD,
        all: &[": Sent signal SIG"],
        any: &[],
        alike: &["unit", "signal"],
        fields: |line| vec![("unit", line.unit()), ("signal", line.between("Sent signal ", &[' ']))],
    },
    // Before systemd 246 the unit's name is not in these lines: the field UNIT has it.
    Pattern {
        name: "unit_started",
        of: Programs::SYSTEMD,
        all: &[],
        any: &["Started "],
        alike: &["unit"],
        fields: |line| vec![("unit", line.second_word())],
    },
    Pattern {
        name: "unit_stopping",
        of: Programs::SYSTEMD,
        all: &[],
        any: &["Stopping "],
        alike: &["unit"],
        fields: |line| vec![("unit", line.second_word())],
    },
    Pattern {
        name: "unit_stopped",
        of: Programs::SYSTEMD,
        all: &[],
        any: &["Stopped "],
        alike: &["unit"],
        fields: |line| vec![("unit", line.second_word())],
    },
    // easzlab/kubeasz#704; kind#944.
    Pattern {
        name: "xtables_lock_timeout",
        of: Programs::KUBE_PROXY,
        all: &["failed to acquire new iptables lock"],
        any: &[],
        alike: &[],
        fields: NOTHING,
    },
    Pattern {
        name: "xtables_lock_held",
        of: Programs::KUBE_PROXY.and(Programs::CNI),
        all: &["holding the xtables lock"],
        any: &[],
        alike: &[],
        fields: NOTHING,
    },
    Pattern {
        name: "etcd_slow_fdatasync",
        of: Programs::ETCD,
        all: &["slow fdatasync"],
        any: &[],
        alike: &[],
        fields: |line| {
            vec![(
                "seconds",
                line.value("took").and_then(|took| go_seconds(&took)).map(|seconds| format!("{seconds:.3}")),
            )]
        },
    },
    Pattern {
        name: "etcd_heartbeat_late",
        of: Programs::ETCD,
        all: &["failed to send out heartbeat on time"],
        any: &[],
        alike: &[],
        fields: |line| vec![("exceeded", line.value("exceeded-duration"))],
    },
    Pattern {
        name: "etcd_slow_apply",
        of: Programs::ETCD,
        all: &["apply request took too long"],
        any: &[],
        alike: &[],
        fields: |line| {
            vec![(
                "seconds",
                line.value("took").and_then(|took| go_seconds(&took)).map(|seconds| format!("{seconds:.3}")),
            )]
        },
    },
    // "failed calling webhook \"mutate.kyverno.svc-fail\": …".
    Pattern {
        name: "webhook_failed",
        of: Programs::API_SERVER.and(Programs::KUBELET),
        all: &["failed calling webhook"],
        any: &[],
        alike: &["webhook"],
        fields: |line| {
            vec![(
                "webhook",
                line.between("failed calling webhook ", &[',', ' ', ':'])
                    .map(|name| name.trim_matches(['"', '\\']).to_owned()),
            )]
        },
    },
];

#[cfg(test)]
mod tests;
