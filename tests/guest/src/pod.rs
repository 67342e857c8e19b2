//! What a pod is to be, and what a kubelet makes of it: its slice, its sandbox, its container. Pure.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::cri::{
    Capability, ContainerConfig, ContainerMetadata, DnsConfig, ImageSpec, Int64Value, KeyValue,
    LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, Mount, NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
    SecurityProfile, namespace,
};

/// A pod of one container. Only `name`, `image` are needed; what is absent is as in a pod that does not name it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pod {
    /// The pod's name, and its container's.
    pub name: String,
    /// `default`, where empty.
    pub namespace: String,
    /// Made from namespace and name, where empty.
    pub uid: String,
    /// Its class.
    pub qos: Qos,
    /// The host's network namespace.
    pub host_network: bool,
    /// The host's process ids.
    pub host_pid: bool,
    /// `memory.max` of the pod's slice.
    pub pod_memory_limit_bytes: Option<i64>,
    /// `memory.max` of the container's scope.
    pub memory_limit_bytes: Option<i64>,
    /// The request: of a burstable pod it makes the OOM score.
    pub memory_request_bytes: Option<i64>,
    /// Thousandths of a CPU: of the pod's slice and of the container.
    pub cpu_limit_millis: Option<i64>,
    /// `pids.max` of the pod's slice (kubelet's podPidsLimit).
    pub pids_limit: Option<u64>,
    /// Instead of the kubelet's rule.
    pub oom_score_adj: Option<i64>,
    /// `localhost/busybox:1`.
    pub image: String,
    /// Instead of the image's entry point.
    pub command: Vec<String>,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment.
    pub env: Vec<(String, String)>,
    /// What it sees of the host's files.
    pub mounts: Vec<HostMount>,
    /// Everything allowed.
    pub privileged: bool,
    /// Capabilities, without `CAP_`.
    pub add_capabilities: Vec<String>,
    /// Capabilities that it loses; `ALL`.
    pub drop_capabilities: Vec<String>,
    /// A root that can't be written.
    pub readonly_rootfs: bool,
    /// `allowPrivilegeEscalation: false`.
    pub no_new_privs: bool,
    /// seccomp's RuntimeDefault; else Unconfined, which is what a kubelet says for a pod that names none.
    pub seccomp_runtime_default: bool,
    /// Instead of the image's user.
    pub run_as_user: Option<i64>,
}

/// A hostPath volume, mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostMount {
    /// On the node.
    pub host_path: String,
    /// In the container.
    pub container_path: String,
    /// Whether it can't be written.
    #[serde(default)]
    pub readonly: bool,
    /// Of mounts.
    #[serde(default)]
    pub propagation: Propagation,
}

/// Whether mounts that are made later are seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Propagation {
    /// No.
    #[default]
    None,
    /// The host's, in the container.
    HostToContainer,
    /// Both ways.
    Bidirectional,
}

/// The quality-of-service class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Qos {
    /// Requests equal limits.
    Guaranteed,
    /// Some requests or limits.
    Burstable,
    /// None.
    #[default]
    BestEffort,
}

/// What a container does not see, and can't write, unless it is privileged: the kubelet's lists for procMount Default.
const MASKED: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The kernel's period of `cpu.max`, as the kubelet sets it.
const CPU_PERIOD_USEC: i64 = 100_000;

impl Pod {
    /// With what was left out: namespace and uid.
    #[must_use]
    pub fn completed(mut self) -> Pod {
        if self.namespace.is_empty() {
            "default".clone_into(&mut self.namespace);
        }
        if self.uid.is_empty() {
            self.uid = uid(&self.namespace, &self.name);
        }
        self
    }

    /// `kubepods-burstable-pod0b6a….slice`: dashes of the uid would be levels of the tree to systemd.
    pub fn slice(&self) -> String {
        let uid = self.uid.replace('-', "_");
        match self.qos {
            Qos::Guaranteed => format!("kubepods-pod{uid}.slice"),
            Qos::Burstable => format!("kubepods-burstable-pod{uid}.slice"),
            Qos::BestEffort => format!("kubepods-besteffort-pod{uid}.slice"),
        }
    }

    /// `NS_NAME_UID` under /var/log/pods.
    pub fn log_directory(&self) -> String {
        format!("/var/log/pods/{}_{}_{}", self.namespace, self.name, self.uid)
    }

    /// The slice's limits, as properties of systemd: (name, signature, value).
    pub fn slice_properties(&self) -> Vec<(&'static str, &'static str, String)> {
        let mut properties = vec![
            ("Description", "s", format!("pod {}/{}", self.namespace, self.name)),
            ("CPUAccounting", "b", "true".to_owned()),
            ("MemoryAccounting", "b", "true".to_owned()),
            ("TasksAccounting", "b", "true".to_owned()),
            ("IOAccounting", "b", "true".to_owned()),
        ];
        if let Some(bytes) = self.pod_memory_limit_bytes {
            properties.push(("MemoryMax", "t", bytes.to_string()));
        }
        if let Some(millis) = self.cpu_limit_millis {
            properties.push(("CPUQuotaPerSecUSec", "t", (millis * 1000).to_string()));
        }
        if let Some(limit) = self.pids_limit {
            properties.push(("TasksMax", "t", limit.to_string()));
        }
        properties
    }

    /// The kubelet's rule (`pkg/kubelet/qos/policy.go`): a burstable container's score falls with its request's share
    /// of the node's memory, and is between the others'.
    pub fn oom_score_adj(&self, node_memory_bytes: i64) -> i64 {
        let by_rule = match self.qos {
            Qos::Guaranteed => -997,
            Qos::BestEffort => 1000,
            Qos::Burstable => {
                let request = self.memory_request_bytes.unwrap_or(0);
                1000_i64.saturating_sub(request.saturating_mul(1000) / node_memory_bytes.max(1)).clamp(3, 999)
            }
        };
        self.oom_score_adj.unwrap_or(by_rule)
    }

    /// What `RunPodSandbox` is given.
    pub fn sandbox(&self) -> PodSandboxConfig {
        let metadata = PodSandboxMetadata {
            name: self.name.clone(),
            uid: self.uid.clone(),
            namespace: self.namespace.clone(),
            attempt: 0,
        };
        let security_context = LinuxSandboxSecurityContext {
            namespace_options: Some(self.namespaces()),
            readonly_rootfs: false,
            privileged: self.privileged,
            seccomp: Some(SecurityProfile { profile_type: 0 }),
        };
        PodSandboxConfig {
            metadata: Some(metadata),
            // On the host's network the host's name is the pod's.
            hostname: if self.host_network { String::new() } else { self.name.clone() },
            log_directory: self.log_directory(),
            dns_config: Some(DnsConfig {
                servers: vec!["10.96.0.10".to_owned()],
                searches: vec![format!("{}.svc.cluster.local", self.namespace)],
                options: vec!["ndots:5".to_owned()],
            }),
            labels: self.labels(),
            annotations: HashMap::from([("kubernetes.io/config.source".to_owned(), "api".to_owned())]),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.slice(),
                security_context: Some(security_context),
            }),
        }
    }

    /// What `CreateContainer` is given.
    pub fn container(&self, node_memory_bytes: i64) -> ContainerConfig {
        let mut labels = self.labels();
        labels.insert("io.kubernetes.container.name".to_owned(), self.name.clone());
        let mounts = self.mounts.iter().map(|mount| Mount {
            container_path: mount.container_path.clone(),
            host_path: mount.host_path.clone(),
            readonly: mount.readonly,
            propagation: mount.propagation as i32,
        });
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: self.name.clone(), attempt: 0 }),
            image: Some(ImageSpec { image: self.image.clone() }),
            command: self.command.clone(),
            args: self.args.clone(),
            envs: self
                .env
                .iter()
                .map(|(key, value)| KeyValue { key: key.clone(), value: value.clone() })
                .collect(),
            mounts: mounts.collect(),
            labels,
            annotations: HashMap::from([("io.kubernetes.container.restartCount".to_owned(), "0".to_owned())]),
            log_path: format!("{}/0.log", self.name),
            linux: Some(LinuxContainerConfig {
                resources: Some(self.resources(node_memory_bytes)),
                security_context: Some(self.security_context()),
            }),
            ..ContainerConfig::default()
        }
    }

    fn resources(&self, node_memory_bytes: i64) -> LinuxContainerResources {
        LinuxContainerResources {
            cpu_period: CPU_PERIOD_USEC,
            cpu_quota: self.cpu_limit_millis.map_or(0, |millis| millis * CPU_PERIOD_USEC / 1000),
            // Without a request the kubelet gives the least that there is.
            cpu_shares: self.cpu_limit_millis.map_or(2, |millis| (millis * 1024 / 1000).max(2)),
            memory_limit_in_bytes: self.memory_limit_bytes.unwrap_or(0),
            oom_score_adj: self.oom_score_adj(node_memory_bytes),
            // The kubelet's default on cgroup v2 since 1.28: an OOM kill takes the whole container.
            unified: HashMap::from([("memory.oom.group".to_owned(), "1".to_owned())]),
        }
    }

    fn security_context(&self) -> LinuxContainerSecurityContext {
        let paths = |list: &[&str]| -> Vec<String> {
            if self.privileged { Vec::new() } else { list.iter().map(|&path| path.to_owned()).collect() }
        };
        LinuxContainerSecurityContext {
            capabilities: Some(Capability {
                add_capabilities: self.add_capabilities.clone(),
                drop_capabilities: self.drop_capabilities.clone(),
            }),
            privileged: self.privileged,
            namespace_options: Some(self.namespaces()),
            run_as_user: self.run_as_user.map(|value| Int64Value { value }),
            readonly_rootfs: self.readonly_rootfs,
            no_new_privs: self.no_new_privs,
            masked_paths: paths(&MASKED),
            readonly_paths: paths(&READONLY),
            seccomp: Some(SecurityProfile { profile_type: i32::from(!self.seccomp_runtime_default) }),
        }
    }

    fn namespaces(&self) -> NamespaceOption {
        let of_host = |host: bool, otherwise: i32| if host { namespace::NODE } else { otherwise };
        NamespaceOption {
            network: of_host(self.host_network, namespace::POD),
            pid: of_host(self.host_pid, namespace::CONTAINER),
            ipc: namespace::POD,
        }
    }

    fn labels(&self) -> HashMap<String, String> {
        let labels = [("pod.name", &self.name), ("pod.namespace", &self.namespace), ("pod.uid", &self.uid)];
        labels.into_iter().map(|(key, value)| (format!("io.kubernetes.{key}"), value.clone())).collect()
    }
}

/// The same for the same pod, and shaped as a UUID (of version 8, whose bits mean what its maker wants).
fn uid(namespace: &str, name: &str) -> String {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(format!("{namespace}/{name}"));
    let mut hex: Vec<char> =
        digest.iter().flat_map(|byte| format!("{byte:02x}").chars().collect::<Vec<_>>()).collect();
    hex.truncate(32);
    for (place, digit) in [(12, '8'), (16, 'a')] {
        if let Some(digit_there) = hex.get_mut(place) {
            *digit_there = digit;
        }
    }
    let mut uid = String::new();
    for (place, digit) in hex.into_iter().enumerate() {
        if matches!(place, 8 | 12 | 16 | 20) {
            uid.push('-');
        }
        uid.push(digit);
    }
    uid
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(json: &str) -> Pod {
        serde_json::from_str::<Pod>(json).unwrap().completed()
    }

    #[test]
    fn a_uid_is_the_same_again_and_a_uuid() {
        let web = pod(r#"{"name": "web", "image": "i"}"#);
        assert_eq!(web.uid, uid("default", "web"));
        assert_ne!(web.uid, uid("default", "web2"));
        let lengths: Vec<usize> = web.uid.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12], "{}", web.uid);
    }

    #[test]
    fn the_slice_is_where_the_kubelet_s_systemd_driver_puts_it() {
        let slice = |qos: &str| pod(&format!(r#"{{"name": "a", "uid": "1-2", "qos": "{qos}"}}"#)).slice();
        assert_eq!(slice("guaranteed"), "kubepods-pod1_2.slice");
        assert_eq!(slice("burstable"), "kubepods-burstable-pod1_2.slice");
        assert_eq!(slice("besteffort"), "kubepods-besteffort-pod1_2.slice");
    }

    #[test]
    fn oom_scores_follow_the_class() {
        let score = |json: &str| pod(json).oom_score_adj(1000);
        assert_eq!(score(r#"{"qos": "guaranteed"}"#), -997);
        assert_eq!(score(r#"{"qos": "besteffort"}"#), 1000);
        assert_eq!(score(r#"{"qos": "burstable"}"#), 999);
        assert_eq!(score(r#"{"qos": "burstable", "memory_request_bytes": 400}"#), 600);
        assert_eq!(score(r#"{"qos": "burstable", "memory_request_bytes": 1000}"#), 3);
        assert_eq!(score(r#"{"qos": "guaranteed", "oom_score_adj": 5}"#), 5);
    }

    #[test]
    fn what_is_misspelt_is_refused() {
        assert!(serde_json::from_str::<Pod>(r#"{"name": "a", "memory_limit": 5}"#).is_err());
    }
}
