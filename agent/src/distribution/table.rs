//! The table.

use super::Sign;

/// One distribution, as far as it differs.
#[derive(Debug, PartialEq, Eq)]
pub struct Distribution {
    /// Its name, as it is set: `k3s`.
    pub name: &'static str,
    /// Where its CRI socket may be, the likeliest first.
    pub runtime_sockets: &'static [&'static str],
    /// containerd's configuration files.
    pub containerd_configs: &'static [&'static str],
    /// Folders of CNI configurations.
    pub cni_conf_dirs: &'static [&'static str],
    /// Folders of CNI plugins.
    pub cni_bin_dirs: &'static [&'static str],
    /// What the kubelet's process is called.
    pub kubelet_process: &'static str,
    /// Its root folder.
    pub kubelet_root: &'static str,
    /// The units that run the kubelet; empty: no systemd, or it runs in a container.
    pub kubelet_units: &'static [&'static str],
    /// The units that run the runtime; empty: it is the kubelet's unit's, or there is no systemd.
    pub runtime_units: &'static [&'static str],
    /// Where their logs are: `journal`, a file, or words.
    pub logs: &'static str,
    /// The kubelet's and the runtime's cgroup driver by default; `None`: as the host has it.
    pub cgroup_driver: Option<&'static str>,
    /// How PSI is switched on where it is off.
    pub psi_recipe: &'static str,
    /// What tells it.
    pub signs: &'static [Sign],
}

const CONTAINERD: &[&str] = &["/run/containerd/containerd.sock", "/var/run/containerd/containerd.sock"];
const CRIO: &[&str] = &["/run/crio/crio.sock", "/var/run/crio/crio.sock"];
const CONFIG: &[&str] = &["/etc/containerd/config.toml"];
const NET_D: &[&str] = &["/etc/cni/net.d"];
const BIN: &[&str] = &["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"];
const CMDLINE: &str = "boot the kernel with psi=1";

/// What most have.
pub(super) const USUAL: Distribution = Distribution {
    name: "",
    runtime_sockets: CONTAINERD,
    containerd_configs: CONFIG,
    cni_conf_dirs: NET_D,
    cni_bin_dirs: BIN,
    kubelet_process: "kubelet",
    kubelet_root: "/var/lib/kubelet",
    kubelet_units: &["kubelet.service"],
    runtime_units: &["containerd.service"],
    logs: "journal",
    cgroup_driver: Some("systemd"),
    psi_recipe: CMDLINE,
    signs: &[],
};

/// Every distribution that is known; the first of which a sign is seen is it. Those that bring a runtime of their own
/// come first, plain kubeadm last: its signs are left by others too (kind, minikube).
pub static DISTRIBUTIONS: &[Distribution] = &[
    Distribution {
        name: "kind",
        psi_recipe: "boot the kernel of the machine that runs kind with psi=1",
        signs: &[Sign::Path("/kind")],
        ..USUAL
    },
    Distribution {
        name: "minikube",
        runtime_sockets: &[
            "/run/containerd/containerd.sock",
            "/run/cri-dockerd.sock",
            "/var/run/cri-dockerd.sock",
            "/run/crio/crio.sock",
        ],
        signs: &[Sign::Argument("/var/lib/minikube/"), Sign::Path("/var/lib/minikube")],
        ..USUAL
    },
    Distribution {
        name: "microk8s",
        runtime_sockets: &["/var/snap/microk8s/common/run/containerd.sock"],
        containerd_configs: &["/var/snap/microk8s/current/args/containerd.toml"],
        cni_conf_dirs: &["/var/snap/microk8s/current/args/cni-network"],
        cni_bin_dirs: &["/var/snap/microk8s/current/opt/cni/bin"],
        kubelet_process: "kubelite",
        kubelet_root: "/var/snap/microk8s/common/var/lib/kubelet",
        kubelet_units: &["snap.microk8s.daemon-kubelite.service"],
        runtime_units: &["snap.microk8s.daemon-containerd.service"],
        cgroup_driver: None,
        signs: &[Sign::Kubelet("kubelite"), Sign::Path("/var/snap/microk8s/current")],
        ..USUAL
    },
    Distribution {
        name: "k0s",
        runtime_sockets: &["/run/k0s/containerd.sock"],
        containerd_configs: &["/etc/k0s/containerd.toml"],
        kubelet_root: "/var/lib/k0s/kubelet",
        kubelet_units: &["k0sworker.service", "k0scontroller.service"],
        runtime_units: &[],
        cgroup_driver: None,
        signs: &[Sign::Argument("/var/lib/k0s/"), Sign::Path("/run/k0s"), Sign::Path("/var/lib/k0s")],
        ..USUAL
    },
    // Before k3s, whose folders it has too. Its kubelet is a process of its own.
    Distribution {
        name: "rke2",
        runtime_sockets: &["/run/k3s/containerd/containerd.sock"],
        containerd_configs: &["/var/lib/rancher/rke2/agent/etc/containerd/config.toml"],
        cni_bin_dirs: &["/opt/cni/bin", "/var/lib/rancher/rke2/data/cni"],
        kubelet_units: &["rke2-server.service", "rke2-agent.service"],
        runtime_units: &[],
        logs: "/var/lib/rancher/rke2/agent/logs/kubelet.log and /var/lib/rancher/rke2/agent/containerd/containerd.log",
        cgroup_driver: None,
        signs: &[Sign::Argument("/var/lib/rancher/rke2/"), Sign::Path("/var/lib/rancher/rke2")],
        ..USUAL
    },
    Distribution {
        name: "k3s",
        runtime_sockets: &["/run/k3s/containerd/containerd.sock"],
        containerd_configs: &["/var/lib/rancher/k3s/agent/etc/containerd/config.toml"],
        cni_conf_dirs: &["/var/lib/rancher/k3s/agent/etc/cni/net.d"],
        cni_bin_dirs: &["/var/lib/rancher/k3s/data/cni", "/var/lib/rancher/k3s/data/current/bin"],
        kubelet_process: "k3s-server or k3s-agent",
        kubelet_units: &["k3s.service", "k3s-agent.service"],
        runtime_units: &[],
        logs: "journal of the k3s unit, the kubelet's lines among others",
        cgroup_driver: None,
        signs: &[
            Sign::Kubelet("k3s-server"),
            Sign::Kubelet("k3s-agent"),
            Sign::Kubelet("k3s"),
            Sign::Path("/run/k3s"),
            Sign::Path("/var/lib/rancher/k3s"),
        ],
        ..USUAL
    },
    // Its kernel has neither hung-task nor soft-lockup detection, nor legacy tables; it has neither systemd nor journal.
    Distribution {
        name: "talos",
        containerd_configs: &["/etc/cri/containerd.toml"],
        kubelet_units: &[],
        runtime_units: &[],
        logs: "no journal: Talos' API, and the kernel log",
        cgroup_driver: Some("cgroupfs"),
        signs: &[Sign::Os("talos")],
        ..USUAL
    },
    Distribution {
        name: "bottlerocket",
        runtime_sockets: &["/run/containerd/containerd.sock", "/run/dockershim.sock"],
        psi_recipe: "set settings.boot.kernel-parameters psi=[\"1\"] with reboot-to-reconcile",
        signs: &[Sign::Os("bottlerocket")],
        ..USUAL
    },
    Distribution {
        name: "openshift",
        runtime_sockets: CRIO,
        containerd_configs: &[],
        cni_conf_dirs: &["/etc/kubernetes/cni/net.d", "/etc/cni/net.d"],
        cni_bin_dirs: &["/var/lib/cni/bin", "/usr/libexec/cni"],
        runtime_units: &["crio.service"],
        psi_recipe: "set psi=1 with a MachineConfig (kernelArguments)",
        signs: &[Sign::Os("rhcos"), Sign::Kubelet("microshift"), Sign::Path("/etc/machine-config-daemon")],
        ..USUAL
    },
    Distribution {
        name: "gke",
        cni_bin_dirs: &["/home/kubernetes/bin"],
        psi_recipe: "the node image's kernel is Google's: choose one with PSI, or do without",
        signs: &[
            Sign::Argument("cloud.google.com/gke-"),
            Sign::Argument("/home/kubernetes/"),
            Sign::Path("/home/kubernetes/kubelet-config.yaml"),
        ],
        ..USUAL
    },
    Distribution {
        name: "aks",
        signs: &[Sign::Argument("kubernetes.azure.com/"), Sign::Path("/etc/kubernetes/azure.json")],
        ..USUAL
    },
    Distribution {
        name: "eks",
        psi_recipe: "use the AL2023 node image (psi=1 by default), or boot the kernel with psi=1",
        signs: &[
            Sign::Argument("eks.amazonaws.com/"),
            Sign::Path("/etc/eks"),
            Sign::Path("/etc/kubernetes/kubelet/config.json"),
        ],
        ..USUAL
    },
    Distribution { name: "flatcar", signs: &[Sign::Os("flatcar")], ..USUAL },
    Distribution {
        name: "kubeadm",
        runtime_sockets: &[
            "/run/crio/crio.sock",
            "/var/run/crio/crio.sock",
            "/run/cri-dockerd.sock",
            "/var/run/cri-dockerd.sock",
            "/run/containerd/containerd.sock",
            "/var/run/containerd/containerd.sock",
            "/run/dockershim.sock",
        ],
        signs: &[
            Sign::Argument("/etc/kubernetes/bootstrap-kubelet.conf"),
            Sign::Path("/var/lib/kubelet/kubeadm-flags.env"),
            Sign::Path("/etc/kubernetes/kubelet.conf"),
        ],
        ..USUAL
    },
];
