use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

type Seen = (Programs, &'static str, &'static str, &'static [(&'static str, &'static str)]);

/// Lines that were seen, with where: public issues and programs' own sources. Lines
/// of the recorded episodes are in the collector's tests.
const SEEN: &[Seen] = &[
    // containerd/containerd#5274.
    (
        Programs::KUBELET,
        "skipping pod synchronization - PLEG is not healthy: pleg was last seen active 7m51.835147826s ago; threshold is 3m0s",
        "pleg_not_healthy",
        &[("seconds", "471.835"), ("threshold_seconds", "180.000")],
    ),
    // containerd/cri#1014.
    (
        Programs::KUBELET,
        "skipping pod synchronization - [container runtime is down PLEG is not healthy: pleg was last seen active 66h20m49.039936615s ago; threshold is 3m0s]",
        "pleg_not_healthy",
        &[("seconds", "238849.040"), ("threshold_seconds", "180.000"), ("runtime_is_down", "true")],
    ),
    // bottlerocket#2512.
    (
        Programs::KUBELET,
        r#"kubelet.go:2356] "Container runtime sanity check failed" err="rpc error: code = Unavailable desc = error reading from server: read unix @->/run/containerd/containerd.sock: read: connection reset by peer""#,
        "runtime_unavailable",
        &[("socket", "/run/containerd/containerd.sock")],
    ),
    // k8s#67796.
    (
        Programs::KUBELET,
        "remote_runtime.go:434] Status from runtime service failed: rpc error: code = DeadlineExceeded desc = context deadline exceeded",
        "runtime_call_deadline",
        &[("call", "remote_runtime.go:434] Status from runtime service failed: rpc error: code = Dea…")],
    ),
    // k8s#71692's form, of older kubelets.
    (
        Programs::KUBELET,
        "runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:Network plugin returns error: cni config uninitialized",
        "network_not_ready",
        &[
            ("reason", "NetworkPluginNotReady"),
            ("message", "Network plugin returns error: cni config uninitialized"),
        ],
    ),
    (
        Programs::KUBELET,
        r#"E0101 00:00:01.000000    1 kubelet.go:2450] "Error getting node" err="node \"ip-10-0-64-12.ec2.internal\" not found""#,
        "node_not_found",
        &[("error", r#"node "ip-10-0-64-12.ec2.internal" not found"#)],
    ),
    (
        Programs::KUBELET,
        r#"controller.go:145] "Failed to ensure lease exists, will retry" err="Get \"https://controlplane:6553/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node01?timeout=10s\": dial tcp 192.168.227.122:6553: connect: connection refused" interval="7s""#,
        "lease_failed",
        &[],
    ),
    (
        Programs::KUBELET,
        r#"E0101 00:00:01.000000    1 kubelet_node_status.go:534] "Unable to update node status" err="update node status exceeds retry count""#,
        "node_status_failed",
        &[("error", "update node status exceeds retry count")],
    ),
    // k8s#103765.
    (
        Programs::KUBELET,
        "conn.go:254] Error on socket receive: read tcp 127.0.0.1:14905->127.0.0.1:9946: use of closed network connection",
        "connection_closed",
        &[("connection", "127.0.0.1:14905->127.0.0.1:9946")],
    ),
    // k8s#74169.
    (
        Programs::KUBELET,
        "eviction manager: attempting to reclaim ephemeral-storage",
        "eviction_reclaiming",
        &[("resource", "ephemeral-storage")],
    ),
    // minikube#15579.
    (
        Programs::KUBELET,
        r#"E0101 00:00:01.000000    1 eviction_manager.go:256] "Eviction manager: failed to get summary stats" err="failed to get node info: node \"minikube\" not found""#,
        "summary_stats_failed",
        &[("error", r#"failed to get node info: node "minikube" not found"#)],
    ),
    (
        Programs::KUBELET,
        "cadvisor.go:170] Failed to start manager: inotify_init: too many open files",
        "inotify_exhausted",
        &[],
    ),
    // eks-node-monitoring-agent's tests (four lines).
    (
        Programs::RUNTIME,
        "failed to create new OS thread (foo; errno=11)",
        "threads_exhausted",
        &[("errno", "11")],
    ),
    (
        Programs::KUBELET,
        r#"I0101 00:00:01.000000    1 pod_workers.go:1] "Pod still has one or more containers in the non-exited state and will not be removed from desired state" pod="default/a-pod""#,
        "container_not_exited",
        &[("pod", "default/a-pod")],
    ),
    (
        Programs::KUBELET,
        "fs: disk usage and inodes count on following dirs took 9.537338572s: [/var/lib/docker]",
        "disk_usage_slow",
        &[("seconds", "9.537")],
    ),
    (
        Programs::KUBELET,
        "OCI runtime create failed: unable to retrieve OCI runtime error",
        "oci_create_failed",
        &[],
    ),
    // pkg/kubelet/certificate/transport.go:130.
    (
        Programs::KUBELET,
        "The currently active client certificate has expired and the server is responsive, exiting.",
        "client_certificate_expired",
        &[],
    ),
    (
        Programs::API_SERVER,
        "x509: certificate has expired or is not yet valid: current time 2024-03-04T14:26:31+08:00 is after 2024-02-27T08:36:50Z",
        "certificate_expired",
        &[("current_time", "2024-03-04T14:26:31+08:00"), ("valid_until", "2024-02-27T08:36:50Z")],
    ),
    // containernetworking/cni pkg/invoke/find.go:47.
    (
        Programs::RUNTIME,
        r#"failed to find plugin "calico" in path [/opt/cni/bin]"#,
        "cni_plugin_not_found",
        &[("plugin", "calico"), ("path", "[/opt/cni/bin]")],
    ),
    (
        Programs::KUBELET,
        r#"plugin type="calico" failed (add): stat /var/lib/calico/nodename: no such file or directory: check that the calico/node container is running and has mounted /var/lib/calico/"#,
        "calico_nodename_missing",
        &[],
    ),
    (
        Programs::KUBELET,
        r#"plugin type="flannel" failed (add): loadFlannelSubnetEnv failed: open /run/flannel/subnet.env: no such file or directory"#,
        "flannel_subnet_missing",
        &[],
    ),
    (
        Programs::KUBELET,
        "failed to allocate for range 0: no IP addresses available in range set: 10.252.2.4-10.252.2.4",
        "ipam_range_exhausted",
        &[("range", "10.252.2.4-10.252.2.4")],
    ),
    (
        Programs::RUNTIME,
        r#"unable to allocate IP via local cilium agent: [POST /ipam][502] postIpamFailure "all CIDR ranges are exhausted""#,
        "cilium_ipam_failed",
        &[("error", r#"[POST /ipam][502] postIpamFailure "all CIDR ranges are exhausted""#)],
    ),
    (Programs::CNI, "add cmd: failed to assign an IP address to container", "vpc_no_ip", &[]),
    (Programs::CNI, "No IPs available in pools: [10.48.0.0/16]", "calico_pools_exhausted", &[]),
    // containerd/containerd#5274.
    (
        Programs::RUNTIME,
        r#"level=error msg="get state for 6da3eb52" error="context deadline exceeded: unknown""#,
        "shim_state_unanswered",
        &[("container_id", "6da3eb52"), ("error", "context deadline exceeded: unknown")],
    ),
    // internal/cri/server/container_create.go:108.
    (
        Programs::RUNTIME,
        r#"failed to reserve container name "web_web-1_default_0": name is reserved"#,
        "name_reserved",
        &[("name", "web_web-1_default_0")],
    ),
    // CRI-O, server/utils.go:206.
    (
        Programs::RUNTIME,
        "kubelet may be retrying requests that are timing out in CRI-O due to system load. Currently at stage container volume configuration",
        "crio_system_load",
        &[("stage", "container volume configuration")],
    ),
    (
        Programs::SYSTEMD,
        "mysql.service: A process of this unit has been killed by the OOM killer.",
        "unit_oom_killed",
        &[("unit", "mysql.service")],
    ),
    // systemd's src/core/service.c; the first three are in the recorded episodes.
    (
        Programs::SYSTEMD,
        "kubelet.service: Scheduled restart job, restart counter is at 5.",
        "unit_restart_scheduled",
        &[("unit", "kubelet.service"), ("restarts", "5")],
    ),
    (
        Programs::SYSTEMD,
        "kubelet.service: Start request repeated too quickly.",
        "unit_start_limit",
        &[("unit", "kubelet.service")],
    ),
    // easzlab/kubeasz#704, kind#944.
    (
        Programs::KUBE_PROXY,
        "proxier.go:1285] Failed to execute iptables-restore: exit status 4 (Another app is currently holding the xtables lock. Perhaps you want to use the -w option?",
        "xtables_lock_held",
        &[],
    ),
    (
        Programs::KUBE_PROXY,
        "Failed to execute iptables-restore: failed to acquire new iptables lock: timed out waiting for the condition",
        "xtables_lock_timeout",
        &[],
    ),
    (
        Programs::ETCD,
        r#"{"level":"warn","ts":"2023-03-03T01:45:11.871Z","caller":"wal/wal.go:805","msg":"slow fdatasync","took":"1.044022245s","expected-duration":"1s"}"#,
        "etcd_slow_fdatasync",
        &[("seconds", "1.044")],
    ),
    // etcd, server/etcdserver/raft.go:388.
    (
        Programs::ETCD,
        "leader failed to send out heartbeat on time; took too long, leader is overloaded likely from slow disk",
        "etcd_heartbeat_late",
        &[],
    ),
    (
        Programs::API_SERVER,
        r#"Internal error occurred: failed calling webhook "mutate.kyverno.svc-fail": no endpoints available for service "kyverno-svc""#,
        "webhook_failed",
        &[("webhook", "mutate.kyverno.svc-fail")],
    ),
];

#[test]
fn lines_that_were_seen() {
    for (programs, line, pattern, fields) in SEEN {
        let found = find(line, *programs).unwrap_or_else(|| panic!("{line}"));
        assert_eq!(found.pattern, *pattern, "{line}");
        for (name, value) in *fields {
            assert_eq!(found.fields.get(*name).map(String::as_str), Some(*value), "{name} of {line}");
        }
    }
}

#[test]
fn a_line_in_another_programs_log_is_nothing() {
    let line = "kubelet.service: Start request repeated too quickly.";
    assert!(find(line, Programs::KUBELET).is_none());
    assert!(find("slow fdatasync", Programs::KUBE_PROXY).is_none());
    // Each start of a kubelet passes through this: no fault.
    let start = r#"E1121 07:46:22.376475     344 kubelet.go:2421] "Skipping pod synchronization" err="PLEG is not healthy: pleg has yet to be successful""#;
    assert!(find(start, Programs::KUBELET).is_none());
}

#[test]
fn names_are_metric_labels_and_used_once() {
    let names: Vec<_> = PATTERNS.iter().map(|pattern| pattern.name).collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
    assert!(names.iter().all(|name| name.bytes().all(|byte| byte == b'_' || byte.is_ascii_lowercase())));
    for pattern in PATTERNS {
        assert!(!(pattern.all.is_empty() && pattern.any.is_empty()), "{} fits every line", pattern.name);
    }
}

#[test]
fn durations_of_go() {
    for (text, seconds) in [
        ("7m51.835147826s ago", Some(471.835_147_826)),
        ("2m0.013s\"", Some(120.013)),
        ("\"1.123s\"", Some(1.123)),
        ("123.4ms", Some(0.1234)),
        ("1h0m0s", Some(3600.0)),
        ("12µs", Some(12e-6)),
        ("soon", None),
        ("", None),
        ("5", None),
        ("5x", None),
        ("1.2.3s", None),
    ] {
        match (go_seconds(text), seconds) {
            (Some(got), Some(want)) => assert!((got - want).abs() < 1e-9, "{text}: {got}"),
            (got, want) => assert_eq!(got, want, "{text}"),
        }
    }
}

proptest! {
    #[test]
    fn cut_and_flipped_lines_never_panic(which in 0usize..100, at in 0usize..300, flip: u8) {
        let (programs, line, ..) = SEEN[which % SEEN.len()];
        let at = at % line.len();
        if let Some(cut) = line.get(..at) {
            find(cut, programs);
        }
        let mut flipped = line.as_bytes().to_vec();
        flipped[at] ^= flip;
        if let Some(found) = find(&String::from_utf8_lossy(&flipped), programs) {
            // A number that can't be read is left out, never a zero.
            prop_assert!(found.fields.get("seconds").is_none_or(|seconds| seconds != "0.000"));
        }
    }

    #[test]
    fn any_text_is_taken(text in "\\PC*") {
        find(&text, Programs::ONE_PROCESS);
        cut(&text, 10);
    }
}
