//! Where the API server is: as set, else the `server:` line of the kubelet's kubeconfig, else where the kubelet has its
//! connections.
//!
//! The kubeconfig goes before the connections: a kubelet also has connections to the pods that it probes, and a pod may
//! listen at 6443 too. Of the kubeconfig that one line is kept; its credentials are not looked at.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::connections::{self, Owner};
use crate::host::dial::Target;
use crate::host::process::Process;
use crate::host::{Host, ReadError};

const CMDLINE_LIMIT: Duration = Duration::from_millis(500);

/// Where distributions have the kubelet's kubeconfig.
static PLACES: &[&str] = &[
    // kubeadm, kubespray
    "/etc/kubernetes/kubelet.conf",
    // EKS, AKS, GKE, OpenShift
    "/var/lib/kubelet/kubeconfig",
    // Talos
    "/etc/kubernetes/kubeconfig-kubelet",
    // Bottlerocket
    "/etc/kubernetes/kubelet/kubeconfig",
    "/var/lib/rancher/k3s/agent/kubelet.kubeconfig",
    "/var/lib/rancher/rke2/agent/kubelet.kubeconfig",
    "/var/lib/k0s/kubelet.conf",
    "/var/snap/microk8s/current/credentials/kubelet.config",
];

/// Ports that API servers, and the balancers before them, listen at. For the search among the kubelet's connections.
pub(super) const PORTS: &[u16] = &[6443, 443, 8443, 6444, 16443];

/// Whom to dial, and who says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Found {
    /// Whom.
    #[serde(serialize_with = "shown")]
    pub target: Target,
    /// `the setting api_server`, the kubeconfig's path, or `the kubelet's connections`.
    pub origin: String,
}

fn shown<S: serde::Serializer>(target: &Target, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(target)
}

/// Looks for it.
///
/// # Errors
/// `Absent`: nothing on this node says where it is. Another one: a kubeconfig that may not be read.
pub(super) fn find(host: &Host) -> Result<Found, ReadError> {
    if let Some(target) = &host.places().api_server {
        return Ok(Found { target: target.clone(), origin: "the setting api_server".to_owned() });
    }
    let kubelet = host.kubelet_process().filter(Process::is_alive);
    let mut refused = None;
    for path in kubeconfigs(host, kubelet.as_ref()) {
        match host.read(&path) {
            Ok(text) => {
                let Some(target) = server(&text).and_then(Target::parse) else {
                    let what = "it has no line `server: https://…`";
                    refused.get_or_insert(ReadError::malformed(&path, what));
                    continue;
                };
                return Ok(Found { target, origin: path.display().to_string() });
            }
            Err(ReadError::NotFound { .. }) => {}
            Err(error) => {
                refused.get_or_insert(error);
            }
        }
    }
    if let Some(target) = kubelet.as_ref().and_then(|kubelet| from_connections(host, kubelet)) {
        return Ok(Found { target, origin: "the kubelet's connections".to_owned() });
    }
    Err(refused.unwrap_or_else(|| {
        ReadError::absent(
            "nothing here says where the API server is: no kubeconfig of a kubelet's, and no connection of it; set \
             `api_server`",
        )
    }))
}

/// The API server's name, where it has one and not an address.
pub(super) fn name(host: &Host) -> Option<String> {
    let found = find(host).ok()?;
    found.target.host.parse::<std::net::IpAddr>().is_err().then_some(found.target.host)
}

/// What the kubelet's command line says, then the known places.
fn kubeconfigs(host: &Host, kubelet: Option<&Process>) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    if let Some(kubelet) = kubelet {
        let arguments = host.process_cmdline(kubelet.pid, CMDLINE_LIMIT).unwrap_or_default();
        // The bootstrap's has the same server, and is there before the other.
        for flag in ["kubeconfig", "bootstrap-kubeconfig"] {
            paths.extend(value_of(&arguments, flag).map(PathBuf::from).filter(|path| path.is_absolute()));
        }
    }
    paths.push(host.kubelet_root().join("kubeconfig"));
    paths.extend(PLACES.iter().map(PathBuf::from));
    let mut known = BTreeSet::new();
    paths.retain(|path| known.insert(path.clone()));
    paths
}

/// `--flag=value`, `--flag value`, `-flag …`: the kubelet's flags take all of them; the last one counts.
fn value_of(arguments: &[String], flag: &str) -> Option<String> {
    let mut value = None;
    let mut words = arguments.iter().peekable();
    while let Some(word) = words.next() {
        let Some(name) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else { continue };
        if name == flag {
            value = words.peek().map(|next| (*next).clone());
        } else if let Some(given) = name.strip_prefix(flag).and_then(|rest| rest.strip_prefix('=')) {
            value = Some(given.to_owned());
        }
    }
    value
}

/// The first server of a kubeconfig; the kubelet's has one. YAML, or JSON. A value that has no end may be cut.
fn server(text: &str) -> Option<&str> {
    text.split_inclusive('\n').find_map(|line| {
        let key = line.trim_start().trim_start_matches("- ").trim_start();
        let after = match key.strip_prefix("server:") {
            Some(after) => after,
            None => line.split_once("\"server\"")?.1.trim_start().strip_prefix(':')?,
        };
        let after = after.trim_start_matches(' ');
        let (value, _) = match after.chars().next()? {
            quote @ ('"' | '\'') => after.get(1..)?.split_once(quote)?,
            _ => after.split_once(|end: char| end.is_whitespace() || ",}".contains(end))?,
        };
        (!value.is_empty()).then_some(value)
    })
}

/// Where the kubelet's connection goes over which most has come. One answer of a pod's to a probe is small.
fn from_connections(host: &Host, kubelet: &Process) -> Option<Target> {
    let owner = Owner::of(host, kubelet);
    let mut best = None;
    for port in PORTS {
        let Ok(found) = connections::read(host, *port) else { continue };
        for connection in found.connections.iter().filter(|it| owner.has(it) == Some(true)) {
            // Who was accepted has the port as its own; who was connected to has it as the far one.
            let received = connection.received_bytes.unwrap_or(0);
            let is_open = connection.state == "ESTABLISHED" || connection.state == "SYN_SENT";
            if is_open && best.as_ref().is_none_or(|(most, _)| received > *most) {
                best = Some((received, connection.remote));
            }
        }
    }
    let (_, remote) = best?;
    Some(Target { host: remote.ip().to_string(), port: remote.port(), tls: true })
}

impl Owner {
    /// What tells the kubelet's sockets from others'.
    pub(super) fn of(host: &Host, kubelet: &Process) -> Owner {
        // Each path is one hierarchy; the unified one stands last. From within a cgroup namespace it begins with `/..`,
        // which leads to the common folder of both: with the agent among the pods that is the root.
        let path = host.process_cgroups(kubelet.pid).ok().flatten().and_then(|mut paths| paths.pop());
        let cgroup = path.and_then(|path| {
            let mut path = path.as_str();
            while let Some(rest) = path.strip_prefix("/..") {
                path = rest;
            }
            // Everybody is below the root: that would tell nothing.
            let path = path.strip_prefix('/').filter(|path| !path.is_empty())?;
            let stat = host.stat(Path::new("/sys/fs/cgroup").join(path)).ok()?;
            Some(stat.identity.1)
        });
        Owner { cgroup, sockets: host.socket_inodes(kubelet.pid).ok() }
    }
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    crate::fuzz::done(server(&crate::fuzz::text(bytes)));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // As kubeadm writes /etc/kubernetes/kubelet.conf (kubeadm 1.32, kubeconfig.go), with the server that it was given.
    const KUBEADM: &str = "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: LS0t\n    server: https://192.0.2.10:6443\n  name: kubernetes\ncontexts:\n- context:\n    cluster: kubernetes\n    user: system:node:worker-1\n  name: x\n";

    #[test]
    fn the_server_of_a_kubeconfig() {
        assert_eq!(server(KUBEADM), Some("https://192.0.2.10:6443"));
        let first = "clusters:\n- cluster: \n  - server: \"https://api.lab:443/\" # here\n";
        assert_eq!(server(first), Some("https://api.lab:443/"));
        let json =
            r#"{"clusters":[{"name":"x","cluster":{"server":"https://[fd00::1]:6443","insecure":true}}]}"#;
        assert_eq!(server(json), Some("https://[fd00::1]:6443"));
        assert_eq!(server("users: []\n"), None);
        assert_eq!(server("    server:\n"), None);
    }

    #[test]
    fn flags_of_the_kubelet() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let of = |text: &str| value_of(&words(text), "kubeconfig");
        assert_eq!(of("kubelet --kubeconfig=/a --v=2"), Some("/a".to_owned()));
        assert_eq!(of("kubelet --kubeconfig /a --kubeconfig=/b"), Some("/b".to_owned()));
        assert_eq!(of("kubelet --bootstrap-kubeconfig=/a"), None);
    }

    #[test]
    fn a_setting_goes_before_the_kubeconfig_and_nothing_is_absent() {
        let root = tempfile::tempdir().unwrap();
        let clock = nodewhy_clock::Clock::system();
        let host = Host::new(root.path(), clock.clone(), crate::host::Places::default());
        assert!(matches!(find(&host), Err(ReadError::Absent { .. })));
        std::fs::create_dir_all(root.path().join("etc/kubernetes")).unwrap();
        std::fs::write(root.path().join("etc/kubernetes/kubelet.conf"), KUBEADM).unwrap();
        let found = find(&host).unwrap();
        assert_eq!(found.target.to_string(), "192.0.2.10:6443");
        assert_eq!(found.origin, "/etc/kubernetes/kubelet.conf");
        assert_eq!(name(&host), None);
        let places =
            crate::host::Places { api_server: Target::parse("http://api.lab"), ..Default::default() };
        let host = Host::new(root.path(), clock, places);
        assert_eq!(find(&host).unwrap().target.to_string(), "api.lab:80");
        assert_eq!(name(&host).as_deref(), Some("api.lab"));
    }

    proptest! {
        #[test]
        fn a_cut_kubeconfig_has_no_other_server(cut in 0..KUBEADM.len()) {
            let found = server(&KUBEADM[..cut]);
            prop_assert!(found.is_none() || found == server(KUBEADM));
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in "(\\PC{0,30}\n){0,6}") {
            let _target = server(&text).and_then(Target::parse);
        }
    }
}
