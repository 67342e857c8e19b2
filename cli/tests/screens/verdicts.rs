//! Verdicts as documents. Their texts are the examples of how pages should read; the shapes are the contract's.

use jiff::Timestamp;
use nodewhy_proto::{
    Conclusion, ConditionStatus, CouldNotTell, Evidence, Finding, Held, Incident, Origin, Revision,
    RootCause, RuledOut, Severity, Step, Subject, SubjectKind, Verdict,
};

pub(crate) fn golden(file: &str) -> String {
    let path = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    #[expect(clippy::disallowed_methods, reason = "a golden file, none of the node")]
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub(crate) fn at(time: &str) -> Timestamp {
    format!("2026-11-21T{time}Z").parse().unwrap()
}

fn step(id: &str, time: &str, text: &str, evidence: Vec<Evidence>) -> Step {
    Step {
        id: id.to_owned(),
        text: text.to_owned(),
        node: "worker-7".to_owned(),
        at: Some(at(time)),
        happened: true,
        evidence,
    }
}

fn verdict(node: &str, time: &str, conclusion: Conclusion) -> Verdict {
    Verdict {
        node: node.to_owned(),
        at: at(time),
        conclusion,
        ready: Some(ConditionStatus::Unknown),
        ready_since: None,
        ready_message: String::new(),
        roots: Vec::new(),
        cycles: Vec::new(),
        contributing: Vec::new(),
        unexplained: vec![],
        ruled_out: Vec::new(),
        cannot_tell: Vec::new(),
        blind: Vec::new(),
    }
}

fn no(cause: &str, text: &str) -> RuledOut {
    let because = vec![Evidence::new(text, "CRI Status on /run/containerd/containerd.sock")];
    RuledOut { cause: cause.to_owned(), node: "worker-7".to_owned(), because }
}

fn unknown(cause: &str, missing: &[&str]) -> CouldNotTell {
    CouldNotTell {
        cause: cause.to_owned(),
        node: "worker-9".to_owned(),
        missing: missing.iter().map(|text| (*text).to_owned()).collect(),
    }
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

pub(crate) fn oom() -> Verdict {
    let log = |text: &str| Evidence::new(text, "kernel log 48,213");
    let chain = vec![
        step(
            "pod_without_limit",
            "03:13:31",
            "payments/gateway-7489-abcde grows by 1.4 GiB a second",
            vec![Evidence::new(
                "memory.current 12.0 → 61.2 GiB; memory.max: max",
                "cgroup kubepods.slice/…/memory.current",
            )],
        ),
        step(
            "memory_pressure",
            "03:13:50",
            "the node starves: memory pressure full 71 %, refaults 48,000/s",
            vec![
                Evidence::new("memory full avg10 71 %, above 20 %", "/proc/pressure/memory")
                    .with_threshold(20.0, Origin::Heuristic),
            ],
        ),
        step(
            "oom_kills_kubelet",
            "03:13:58",
            "global OOM: kubelet killed (pid 998, asked for by gateway, pid 4711)",
            vec![log("victim's oom_score_adj -999")],
        ),
        step("kubelet_down", "03:13:58", "no more heartbeats (last lease renewal 03:13:52)", vec![]),
        step("not_ready", "03:14:42", "Ready Unknown, 44 s after the kill", vec![]),
    ];
    let root = RootCause {
        cause: "oom_kills_kubelet".to_owned(),
        title: "The kernel killed kubelet for want of memory".to_owned(),
        node: "worker-7".to_owned(),
        subject: Subject::new(SubjectKind::Kubelet, "kubelet"),
        since: Some(at("03:13:31")),
        certainty: 0.97,
        because: vec![log("payments/gateway-7489-abcde has no memory limit and held 61.2 of 64 GiB")],
        chain,
        remedy: strings(&[
            "kubectl delete pod -n payments gateway-7489-abcde",
            "kubelet is back by itself (systemd, 10 s). Then give the pod a memory limit.",
            "For repairers: none needed. Do not replace the node.",
        ]),
    };
    Verdict {
        ready_since: Some(at("03:14:42")),
        roots: vec![root],
        unexplained: vec![],
        ruled_out: vec![
            no("disk_slow", "nvme0n1 awaits 2 ms"),
            no("node_api_partition", "our own dial to the API server: 12 ms"),
            no("containerd_hung", "answers Version in 3 ms"),
            no("containerd_dead", "answers in 3 ms"),
        ],
        blind: strings(&["hung tasks: this kernel is built without their detection"]),
        ..verdict("worker-7", "03:14:43", Conclusion::Explained)
    }
}

pub(crate) fn incident_of(verdict: Verdict) -> Incident {
    Incident {
        id: format!("2026-11-21-0313-{}", verdict.node),
        node: verdict.node.clone(),
        began: at("03:13:58"),
        opened: at("03:13:58.4"),
        lost_ready: Some(at("03:14:42")),
        ended: None,
        revisions: vec![Revision {
            revision: 3,
            at: at("03:14:43"),
            changed_by: "Ready became Unknown".to_owned(),
            verdict,
        }],
    }
}

pub(crate) fn control_plane() -> Verdict {
    let mut slow = step("etcd_slow", "02:58:40", "nvme1n1 await 1.9 s, etcd fsync p99 2.45 s", vec![]);
    slow.node = "cp-2".to_owned();
    let chain = vec![
        slow,
        step(
            "api_server_overloaded",
            "02:59:05",
            "API server: writes 31 s, 8,214 requests turned away",
            vec![],
        ),
        step("not_ready", "03:02:10", "leases can't be renewed → Unknown (4,000 nodes)", vec![]),
    ];
    let root = RootCause {
        cause: "mass_notready_control_plane".to_owned(),
        title: "4,000 of 4,012 nodes stopped being heard within 48 s while 3,997 of their agents say that all is well: \
                the control plane lost them"
            .to_owned(),
        node: "worker-7".to_owned(),
        subject: Subject::new(SubjectKind::Cluster, ""),
        since: Some(at("02:58:40")),
        certainty: 0.94,
        because: vec![Evidence::new("etcd's disk on cp-2 takes 2.45 s a commit (well: 0.008 s)", "etcd metrics of cp-2")],
        chain,
        remedy: strings(&[
            "Move I/O off cp-2's disk, or move etcd's leader.",
            "Do not drain, do not replace nodes: Kubernetes itself has stopped evicting (all zones disrupted).",
        ]),
    };
    Verdict {
        ready_since: Some(at("03:02:10")),
        roots: vec![root],
        contributing: vec![Held {
            cause: "clock_skew".to_owned(),
            title: "The node's clock is off".to_owned(),
            node: "worker-12".to_owned(),
            subject: Subject::node(),
            since: Some(at("01:12:00")),
            because: vec![Evidence::new("2.1 s ahead of the aggregator", "agent on worker-12")],
        }],
        ..verdict("worker-7", "03:04:12", Conclusion::Explained)
    }
}

pub(crate) fn nothing_found() -> Verdict {
    Verdict {
        ready_since: Some(at("04:10:11")),
        ready_message: "Kubelet stopped posting node status.".to_owned(),
        unexplained: vec![],
        ruled_out: (0..12).map(|index| no(&format!("cause_{index}"), "nothing of the kind")).collect(),
        cannot_tell: vec![
            unknown(
                "node_api_partition",
                &[
                    "the agent can't be reached since 04:09:20",
                    "a neighbour (worker-8) can't reach it either, ARP answers",
                ],
            ),
            unknown("panic_or_reboot", &["known when it comes back: boot id was 7f3a0c51"]),
        ],
        blind: strings(&["the agent on worker-9: connection timed out since 04:09:20"]),
        ..verdict("worker-9", "04:11:00", Conclusion::NoCauseFound)
    }
}

pub(crate) fn deadlock() -> Verdict {
    let cycle = vec![
        step(
            "provisioner_pending",
            "04:40:00",
            "karpenter (Pending) waits for a node that its affinity allows",
            vec![Evidence::new(
                "affinity karpenter.sh/nodepool DoesNotExist; 0 such nodes are Ready",
                "Pod kube-system/karpenter-6d5f",
            )],
        ),
        step("no_node", "04:40:00", "a node that its affinity allows is made by karpenter", vec![]),
    ];
    let root = RootCause {
        cause: "provisioner_deadlock".to_owned(),
        title: "The provisioner waits for itself".to_owned(),
        node: "worker-7".to_owned(),
        subject: Subject::new(SubjectKind::Cluster, ""),
        since: Some(at("04:40:00")),
        certainty: 0.9,
        because: vec![],
        chain: vec![],
        remedy: strings(&["Add one such node, or relax that affinity. 15 pods wait behind it."]),
    };
    Verdict {
        ready_since: Some(at("04:41:00")),
        roots: vec![root],
        cycles: vec![cycle],
        ..verdict("worker-7", "04:59:59", Conclusion::Deadlock)
    }
}

/// The shape that `explain` gives while the node is Ready still: the root's text is the chain's first, and what it
/// leads to next is expected.
pub(crate) fn hung() -> Verdict {
    let because = vec![
        Evidence::new(
            "Version unanswered since 03:14:27 (14.2 s)",
            "CRI Version on /run/containerd/containerd.sock",
        )
        .with_threshold(10.0, Origin::Heuristic),
        Evidence::new("process 812 is stopped (state T)", "/proc/812/stat"),
    ];
    let text = "containerd accepts connections and has answered nothing for 14.2 s";
    let mut next = step("relist_stuck", "03:16:27", "kubelet gives the runtime up after 120 s", vec![]);
    next.happened = false;
    let mut lost = step("not_ready", "03:17:07", "Ready becomes False: PLEG is not healthy", vec![]);
    lost.happened = false;
    let root = RootCause {
        cause: "containerd_hung".to_owned(),
        title: "The container runtime is hung".to_owned(),
        node: "worker-7".to_owned(),
        subject: Subject::new(SubjectKind::Runtime, "/run/containerd/containerd.sock"),
        since: Some(at("03:14:27")),
        certainty: 0.95,
        because: because.clone(),
        chain: vec![step("containerd_hung", "03:14:27", text, because), next, lost],
        remedy: strings(&["systemctl restart containerd", "First keep its stacks: kill -USR1 812"]),
    };
    Verdict {
        ready: Some(ConditionStatus::True),
        ready_since: Some("2026-11-09T10:00:00Z".parse().unwrap()),
        roots: vec![root],
        unexplained: vec![],
        ruled_out: vec![no("containerd_dead", "the socket accepts connections")],
        ..verdict("worker-7", "03:14:41", Conclusion::Explained)
    }
}

pub(crate) fn healthy() -> Verdict {
    Verdict {
        ready: None,
        unexplained: vec![],
        ruled_out: (0..12).map(|index| no(&format!("cause_{index}"), "nothing of the kind")).collect(),
        cannot_tell: vec![unknown("node_api_partition", &["no API server is asked"])],
        blind: strings(&["runtime: absent (no CRI socket in the usual places, and no kubelet here)"]),
        ..verdict("lab-1", "06:00:00", Conclusion::Healthy)
    }
}

/// A critical finding that no cause cites.
pub(crate) fn sick(finding: &str, summary: &str) -> Finding {
    Finding {
        id: finding.to_owned(),
        finding: finding.to_owned(),
        collector: "runtime".to_owned(),
        subject: Subject::new(SubjectKind::Cni, "NetworkPluginNotReady"),
        severity: Severity::Critical,
        began: at("04:10:05"),
        noticed: at("04:10:05"),
        ended: None,
        summary: summary.to_owned(),
        evidence: Vec::new(),
    }
}

/// Every text of a document, as someone would write it who wants the reader's terminal.
pub(crate) fn hostile() -> Verdict {
    let evil = "\u{1b}]52;c;ZXZpbA==\u{7}\u{1b}[2J\u{9b}31mname\u{202e}\r\n\u{8}\u{0}";
    let mut verdict = oom();
    verdict.node = evil.to_owned();
    verdict.ready_message = evil.to_owned();
    verdict.blind = strings(&[evil]);
    verdict.cannot_tell = vec![unknown(evil, &[evil])];
    verdict.ruled_out = vec![no(evil, evil)];
    verdict.unexplained = vec![sick(evil, evil)];
    for root in &mut verdict.roots {
        root.title = evil.to_owned();
        root.remedy = strings(&[evil]);
        root.because = vec![Evidence::new(evil, evil)];
        for step in &mut root.chain {
            step.text = evil.to_owned();
            step.node = evil.to_owned();
            step.evidence = vec![Evidence::new(format!("{evil} 2"), evil)];
        }
    }
    verdict
}
