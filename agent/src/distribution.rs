//! Where each Kubernetes distribution has its parts, and which one this node is of.
//!
//! One table. What the kubelet itself was told goes before it, and what is set in nodewhy goes before both: the table
//! is where to look when nobody says. A cell that is not sourced in the distribution's own documents is the common
//! default; whoever uses it looks whether the thing is there.

mod blind;
mod table;

use std::path::Path;

use serde::Serialize;

pub use self::blind::{BlindSpot, blind_spots};
pub use self::table::{DISTRIBUTIONS, Distribution};
use crate::collect::kubelet::find;
use crate::host::Host;
use crate::host::process::Process;

/// What tells a distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// `ID=` of /etc/os-release is this.
    Os(&'static str),
    /// This path is there.
    Path(&'static str),
    /// The kubelet's process is called so.
    Kubelet(&'static str),
    /// The kubelet's command line has this in it.
    Argument(&'static str),
}

/// What this node was found to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Found {
    /// Its row of the table; `None`: no sign of any.
    #[serde(serialize_with = "by_name")]
    pub distribution: Option<&'static Distribution>,
    /// Which rule hit: `setting`, `the kubelet's process is called k3s-server`, `/kind is there`.
    pub found_by: String,
    /// Whether the node is a container, whose kernel is other nodes' too: what the kernel says (log, PSI, conntrack) is
    /// then of all of them. `None`: it cannot be told.
    pub shared_kernel: Option<bool>,
}

fn by_name<S: serde::Serializer>(
    distribution: &Option<&'static Distribution>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    distribution.map(|distribution| distribution.name).serialize(serializer)
}

impl Found {
    /// Its name.
    pub fn name(&self) -> Option<&'static str> {
        self.distribution.map(|distribution| distribution.name)
    }
}

/// Which distribution this node is of: as set; else by the kubelet's own process and arguments; else by known places.
/// Looks at every process once, so it is not for every tick.
pub fn of(host: &Host) -> Found {
    let shared_kernel = shared_kernel(host);
    let found = |distribution, found_by| Found { distribution: Some(distribution), found_by, shared_kernel };
    if let Some(set) = host.places().distribution.as_deref().and_then(named) {
        return found(set, "setting".to_owned());
    }
    let kubelet = find::kubelet(host);
    let arguments = kubelet
        .as_ref()
        // A command line that hangs or may not be read names nothing.
        .and_then(|kubelet| host.process_cmdline(kubelet.pid, find::CMDLINE_LIMIT).ok());
    let arguments = arguments.unwrap_or_default();
    let by_kubelet = |sign: &Sign| by_kubelet(sign, kubelet.as_ref(), &arguments);
    let told = first(by_kubelet).or_else(|| first(|sign| by_place(sign, host)));
    if let Some((distribution, found_by)) = told {
        return found(distribution, found_by);
    }
    let found_by = match &kubelet {
        Some(kubelet) => format!("no sign of a distribution; {} runs (pid {})", kubelet.name, kubelet.pid),
        None => "no sign of a distribution, and no kubelet runs".to_owned(),
    };
    Found { distribution: None, found_by, shared_kernel }
}

/// The first row with a sign that this rule finds.
fn first(rule: impl Fn(&Sign) -> Option<String>) -> Option<(&'static Distribution, String)> {
    DISTRIBUTIONS.iter().find_map(|row| Some((row, row.signs.iter().find_map(&rule)?)))
}

/// The row of this name.
pub fn named(name: &str) -> Option<&'static Distribution> {
    DISTRIBUTIONS.iter().find(|distribution| distribution.name == name)
}

/// All runtime sockets of the table, those that all share last: a node of k3s can have Docker's containerd as well,
/// which pods never use.
pub fn runtime_sockets() -> Vec<&'static str> {
    all(|row| row.runtime_sockets, |socket| USUAL_SOCKETS.contains(socket))
}

/// All kubelet roots of the table, but the usual one.
pub fn unusual_kubelet_roots() -> impl Iterator<Item = &'static str> {
    let roots = DISTRIBUTIONS.iter().map(|row| row.kubelet_root);
    roots.filter(|root| *root != table::USUAL.kubelet_root)
}

/// All configuration files of containerd in the table, the usual one last.
pub fn containerd_configs() -> Vec<&'static str> {
    all(|row| row.containerd_configs, |path| table::USUAL.containerd_configs.contains(path))
}

/// All folders of CNI configurations in the table, the usual one last.
pub fn cni_conf_dirs() -> Vec<&'static str> {
    all(|row| row.cni_conf_dirs, |path| table::USUAL.cni_conf_dirs.contains(path))
}

/// The folders of plugins that go with this folder of configurations, where it is a distribution's own. The usual one says
/// nothing of where plugins are.
pub fn cni_bin_dirs(conf_dir: &Path) -> Vec<&'static str> {
    let has = |dirs: &[&str]| dirs.iter().any(|dir| Path::new(dir) == conf_dir);
    if has(table::USUAL.cni_conf_dirs) {
        return Vec::new();
    }
    let rows = DISTRIBUTIONS.iter().filter(|row| has(row.cni_conf_dirs));
    rows.flat_map(|row| row.cni_bin_dirs).copied().collect()
}

/// Of every containerd, and the link that the kubelets of old had.
const USUAL_SOCKETS: [&str; 3] =
    ["/run/containerd/containerd.sock", "/var/run/containerd/containerd.sock", "/run/dockershim.sock"];

/// Each once, in the order of the table, those that are usual last.
fn all(
    part: fn(&'static Distribution) -> &'static [&'static str],
    is_usual: impl Fn(&&'static str) -> bool,
) -> Vec<&'static str> {
    let mut seen = Vec::new();
    for item in DISTRIBUTIONS.iter().flat_map(part).copied() {
        if !seen.contains(&item) {
            seen.push(item);
        }
    }
    seen.sort_by_key(is_usual);
    seen
}

fn by_kubelet(sign: &Sign, kubelet: Option<&Process>, arguments: &[String]) -> Option<String> {
    match sign {
        Sign::Kubelet(name) => kubelet
            .filter(|kubelet| kubelet.name == *name)
            .map(|kubelet| format!("the kubelet's process is called {} (pid {})", kubelet.name, kubelet.pid)),
        Sign::Argument(part) => arguments
            .iter()
            .any(|argument| argument.contains(part))
            .then(|| format!("the kubelet's command line names {part}")),
        Sign::Os(_) | Sign::Path(_) => None,
    }
}

fn by_place(sign: &Sign, host: &Host) -> Option<String> {
    match sign {
        Sign::Os(id) => {
            let text = host.read("/etc/os-release").ok()?;
            (os_id(&text)? == *id).then(|| format!("/etc/os-release says ID={id}"))
        }
        Sign::Path(path) => host.exists(path).is_ok_and(|is| is).then(|| format!("{path} is there")),
        Sign::Kubelet(_) | Sign::Argument(_) => None,
    }
}

fn os_id(os_release: &str) -> Option<&str> {
    let id = os_release.lines().find_map(|line| line.strip_prefix("ID="))?;
    Some(id.trim().trim_matches(['"', '\'']))
}

/// systemd writes what contains it; a machine's own pid namespace has kthreadd as its process 2.
fn shared_kernel(host: &Host) -> Option<bool> {
    if host.exists("/run/systemd/container").is_ok_and(|is| is) || host.exists("/kind").is_ok_and(|is| is) {
        return Some(true);
    }
    match host.process_name(2) {
        Ok(Some(second)) if second == "kthreadd" => Some(false),
        // The agent's own container, or a node in one without systemd: from here they look the same.
        _ => None,
    }
}

/// For `--check-config`: each part with the rule that hit, as comments of TOML.
pub fn told(host: &Host) -> String {
    let found = of(host);
    let mut lines = vec![match found.name() {
        Some(name) => format!("distribution: {name} ({})", found.found_by),
        None => format!("distribution: not known ({})", found.found_by),
    }];
    if found.shared_kernel == Some(true) {
        lines.push("this node is a container: what the kernel says is of all nodes that share it".to_owned());
    }
    lines.push(match crate::collect::runtime::endpoint_told(host) {
        Ok((socket, rule)) => format!("runtime socket: {} ({rule})", socket.display()),
        Err(error) => format!("runtime socket: {error}"),
    });
    lines.push(format!("kubelet root: {}", host.kubelet_root().display()));
    for spot in blind_spots(host, &found) {
        lines.push(format!("blind spot: {}: {}. {}", spot.what, spot.lost, spot.recipe));
    }
    lines.into_iter().map(|line| format!("# {line}\n")).collect()
}

/// Whether there is such a path: for the table's own cells.
fn is_there(host: &Host, path: impl AsRef<Path>) -> bool {
    host.exists(path).is_ok_and(|is| is)
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    crate::fuzz::done(os_id(&crate::fuzz::text(bytes)));
}

#[cfg(test)]
mod tests;
