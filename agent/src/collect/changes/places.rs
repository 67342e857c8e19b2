//! Which files are looked at: programs, configurations, certificates, and whose they are.

use std::path::{Path, PathBuf};

use crate::host::Host;

/// Whose a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// The kubelet reads it at its start.
    Kubelet,
    /// The container runtime reads it at its start.
    Runtime,
    /// It is run or read anew at each call: runc, shims, network plugins and their configurations.
    EachCall,
    /// A program of the control plane.
    ControlPlane,
    /// Anything else of the node's.
    Node,
}

/// A kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    Binary,
    Configuration,
    Certificate,
}

impl What {
    pub(super) fn word(self) -> &'static str {
        match self {
            What::Binary => "binary",
            What::Configuration => "configuration",
            What::Certificate => "certificate",
        }
    }
}

/// A file to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) what: What,
    pub(super) owner: Owner,
}

/// No folder has more that matters; what is beyond is counted, not looked at.
const MOST_IN_A_FOLDER: usize = 200;

const BINARIES: &[(&str, Owner)] = &[
    ("kubelet", Owner::Kubelet),
    ("k3s", Owner::Kubelet),
    ("containerd", Owner::Runtime),
    ("crio", Owner::Runtime),
    ("dockerd", Owner::Runtime),
    ("containerd-shim-runc-v2", Owner::EachCall),
    ("conmon", Owner::EachCall),
    ("runc", Owner::EachCall),
    ("crun", Owner::EachCall),
];
const BINARY_FOLDERS: &[&str] = &["/usr/bin", "/usr/local/bin", "/usr/sbin", "/usr/local/sbin", "/opt/bin"];

const FILES: &[(&str, What, Owner)] = &[
    ("/var/lib/kubelet/kubeadm-flags.env", What::Configuration, Owner::Kubelet),
    // Before its folder, whose other kubeconfigs are not the kubelet's.
    ("/etc/kubernetes/kubelet.conf", What::Configuration, Owner::Kubelet),
    // k3s and RKE2 write other files beside these at each start.
    ("/etc/rancher/k3s/config.yaml", What::Configuration, Owner::Kubelet),
    ("/etc/rancher/rke2/config.yaml", What::Configuration, Owner::Kubelet),
    ("/etc/default/kubelet", What::Configuration, Owner::Kubelet),
    ("/etc/sysconfig/kubelet", What::Configuration, Owner::Kubelet),
    ("/etc/containerd/config.toml", What::Configuration, Owner::Runtime),
    ("/etc/crio/crio.conf", What::Configuration, Owner::Runtime),
    ("/etc/docker/daemon.json", What::Configuration, Owner::Runtime),
    ("/etc/resolv.conf", What::Configuration, Owner::Node),
    ("/etc/hosts", What::Configuration, Owner::Node),
    ("/etc/sysctl.conf", What::Configuration, Owner::Node),
    ("/etc/fstab", What::Configuration, Owner::Node),
    ("/etc/network/interfaces", What::Configuration, Owner::Node),
    ("/etc/NetworkManager/NetworkManager.conf", What::Configuration, Owner::Node),
    ("/etc/default/grub", What::Configuration, Owner::Node),
];

const FOLDERS: &[(&str, What, Owner)] = &[
    ("/etc/containerd/conf.d", What::Configuration, Owner::Runtime),
    ("/etc/crio/crio.conf.d", What::Configuration, Owner::Runtime),
    ("/etc/kubernetes", What::Configuration, Owner::Node),
    ("/etc/kubernetes/manifests", What::Configuration, Owner::ControlPlane),
    ("/etc/kubernetes/pki", What::Certificate, Owner::ControlPlane),
    ("/etc/kubernetes/pki/etcd", What::Certificate, Owner::ControlPlane),
    ("/var/lib/rancher/k3s/agent", What::Certificate, Owner::Kubelet),
    ("/var/lib/rancher/k3s/server/tls", What::Certificate, Owner::ControlPlane),
    ("/var/lib/rancher/rke2/agent", What::Certificate, Owner::Kubelet),
    ("/etc/rancher/k3s/config.yaml.d", What::Configuration, Owner::Kubelet),
    ("/etc/rancher/rke2/config.yaml.d", What::Configuration, Owner::Kubelet),
    ("/etc/sysctl.d", What::Configuration, Owner::Node),
    ("/etc/modules-load.d", What::Configuration, Owner::Node),
    ("/etc/netplan", What::Configuration, Owner::Node),
    ("/etc/NetworkManager/conf.d", What::Configuration, Owner::Node),
    ("/etc/NetworkManager/system-connections", What::Configuration, Owner::Node),
    ("/etc/systemd/network", What::Configuration, Owner::Node),
];

const UNIT_FOLDERS: &[&str] =
    &["/etc/systemd/system", "/usr/lib/systemd/system", "/usr/local/lib/systemd/system"];
const UNITS: &[(&str, Owner)] = &[
    ("kubelet.service", Owner::Kubelet),
    ("k3s.service", Owner::Kubelet),
    ("k3s-agent.service", Owner::Kubelet),
    ("rke2-agent.service", Owner::Kubelet),
    ("containerd.service", Owner::Runtime),
    ("crio.service", Owner::Runtime),
];

/// Every file that is looked at on this node, whether or not it is there.
pub(super) fn places(host: &Host) -> Vec<Place> {
    let mut places = Vec::new();
    for folder in BINARY_FOLDERS {
        for (name, owner) in BINARIES {
            places.push(Place { path: Path::new(folder).join(name), what: What::Binary, owner: *owner });
        }
    }
    for (path, what, owner) in FILES {
        places.push(Place { path: path.into(), what: *what, owner: *owner });
    }
    let root = host.kubelet_root();
    places.push(Place { path: root.join("config.yaml"), what: What::Configuration, owner: Owner::Kubelet });
    folder(host, &mut places, &root.join("pki"), What::Certificate, Owner::Kubelet);
    for (path, what, owner) in FOLDERS {
        folder(host, &mut places, Path::new(path), *what, *owner);
    }
    folder(host, &mut places, &host.places().cni_conf_dir, What::Configuration, Owner::EachCall);
    for path in &host.places().cni_bin_dirs {
        folder(host, &mut places, path, What::Binary, Owner::EachCall);
    }
    for (name, owner) in UNITS {
        for path in UNIT_FOLDERS {
            let unit = Path::new(path).join(name);
            folder(
                host,
                &mut places,
                &Path::new(path).join(format!("{name}.d")),
                What::Configuration,
                *owner,
            );
            places.push(Place { path: unit, what: What::Configuration, owner: *owner });
        }
    }
    places
}

fn folder(host: &Host, places: &mut Vec<Place>, path: &Path, what: What, owner: Owner) {
    // A folder that is not there has nothing to look at.
    let Ok(names) = host.list(path) else { return };
    let of_interest = |name: &String| {
        // A key's file has its certificate's time.
        !name.ends_with(".key")
            && (what != What::Certificate || name.ends_with(".crt") || name.ends_with(".pem"))
    };
    for name in names.into_iter().filter(of_interest).take(MOST_IN_A_FOLDER) {
        places.push(Place { path: path.join(name), what, owner });
    }
}

/// Whether a certificate may be read out of the file: `.crt` files hold no key. The kubelet's `.pem` files do.
pub(super) fn may_be_opened(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "crt")
}
