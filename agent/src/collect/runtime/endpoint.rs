//! Where the runtime's socket is: a setting, the kubelet's own configuration, then known places.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::collect::kubelet::find;
use crate::distribution;
use crate::host::process::Process;
use crate::host::{Host, ReadError, is_none_socket};

const DOCKER_SOCKETS: [&str; 2] = ["/run/docker.sock", "/var/run/docker.sock"];

/// The kubelet's default since 1.24 on Linux when it names none.
const KUBELET_DEFAULT: &str = "/run/containerd/containerd.sock";

/// The socket, and how it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Endpoint {
    /// The host's path.
    pub(super) socket: PathBuf,
    /// Which rule hit: `setting`, `kubelet's command line (pid 734)`, `known place`, …
    pub(super) found_by: String,
    /// Why a runtime must be here, even if its socket is gone; `None` where only the socket itself spoke for it.
    pub(super) expected_because: Option<String>,
}

/// Finds the socket.
///
/// # Errors
/// `Absent` where nothing is configured, nothing is found and no kubelet runs; a configuration that names
/// something other than a Unix socket.
pub(super) fn find(host: &Host) -> Result<Endpoint, ReadError> {
    let mut endpoint = named(host)?;
    // /var/run is a link to /run, on most nodes an absolute one: under another root it leads out of that root.
    if let Ok(rest) = endpoint.socket.strip_prefix("/var/run") {
        let direct = Path::new("/run").join(rest);
        if host.stat(&endpoint.socket).is_err() && host.stat(&direct).is_ok() {
            endpoint.socket = direct;
        }
    }
    Ok(endpoint)
}

/// Whether the containerd here is Docker's alone: Docker's socket is there, and no kubelet is or was. Debian's packages,
/// unlike Docker's own, leave its CRI on: it says that it has no pod network, and nobody will ever ask it for one.
pub(crate) fn is_dockers(host: &Host) -> bool {
    DOCKER_SOCKETS.iter().any(|socket| host.stat(socket).is_ok())
        && find::trace(host).is_none()
        && find::kubelet(host).is_none()
}

fn named(host: &Host) -> Result<Endpoint, ReadError> {
    if let Some(socket) = &host.places().runtime_socket {
        if is_none_socket(socket) {
            return Err(ReadError::absent(
                "the settings say not to ask the runtime (runtime_socket = none): whether it answers, how long a relist \
                 takes, whether pods have a network and pods' names by its labels are not known",
            ));
        }
        return Ok(found(socket.clone(), "setting", Some("it is set in nodewhy's settings")));
    }
    let kubelet = find::kubelet(host);
    if let Some(endpoint) = by_kubelet(host, kubelet.as_ref())? {
        return Ok(endpoint);
    }
    let runs = kubelet.map(|kubelet| format!("{} runs (pid {})", kubelet.name, kubelet.pid));
    // The one that is set first, if one is set.
    let set = host.places().distribution.as_deref().and_then(distribution::named);
    let sockets = set.map(|row| row.runtime_sockets).unwrap_or_default().iter().copied();
    for place in sockets.chain(distribution::runtime_sockets()) {
        if host.stat(place).is_ok() {
            return Ok(Endpoint {
                socket: place.into(),
                found_by: "known place".to_owned(),
                expected_because: runs,
            });
        }
    }
    match runs {
        Some(runs) => Ok(found(KUBELET_DEFAULT.into(), "the kubelet's default", Some(&runs))),
        None => Err(ReadError::absent(
            "no container runtime: no socket in the known places, none configured, and no kubelet runs here",
        )),
    }
}

fn found(socket: PathBuf, rule: &str, because: Option<&str>) -> Endpoint {
    Endpoint { socket, found_by: rule.to_owned(), expected_because: because.map(str::to_owned) }
}

fn by_kubelet(host: &Host, kubelet: Option<&Process>) -> Result<Option<Endpoint>, ReadError> {
    let mut config = host.kubelet_root().join("config.yaml");
    if let Some(kubelet) = kubelet {
        // It may be gone by now, not be ours to read, or hang: then it names nothing, and the next rule is asked.
        let arguments = host.process_cmdline(kubelet.pid, find::CMDLINE_LIMIT).unwrap_or_else(|_| Vec::new());
        if let Some(endpoint) = flag(&arguments, "--container-runtime-endpoint") {
            let rule = format!("the kubelet's command line (pid {})", kubelet.pid);
            let socket = unix_path(&endpoint, &rule)?;
            return Ok(Some(found(socket, &rule, Some("the kubelet's command line names it"))));
        }
        if let Some(path) = flag(&arguments, "--config") {
            config = path.into();
        }
    }
    // No file, or one that may not be read: the next rule. A kubelet need not have one.
    let Ok(text) = host.read(&config) else { return Ok(None) };
    let Some(endpoint) = endpoint_of(&text) else { return Ok(None) };
    let rule = config.display().to_string();
    let socket = unix_path(&endpoint, &rule)?;
    Ok(Some(found(socket, &rule, Some("the kubelet's configuration names it"))))
}

/// `--name=value` or `--name value`; the last one wins, as in the kubelet.
fn flag(arguments: &[String], name: &str) -> Option<String> {
    let next = arguments.iter().skip(1).map(Some).chain([None]);
    arguments
        .iter()
        .zip(next)
        .filter_map(|(argument, next)| match argument.strip_prefix(name)? {
            "" => next.cloned(),
            rest => rest.strip_prefix('=').map(str::to_owned),
        })
        .filter(|value| !value.is_empty())
        .last()
}

/// `containerRuntimeEndpoint` of a KubeletConfiguration (since 1.27); `None` where it is not set.
fn endpoint_of(text: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct KubeletConfiguration {
        #[serde(rename = "containerRuntimeEndpoint")]
        endpoint: Option<String>,
    }
    let config: KubeletConfiguration = serde_saphyr::from_str(text).ok()?;
    config.endpoint.filter(|endpoint| !endpoint.is_empty())
}

/// `unix:///run/x.sock`, or a bare path.
fn unix_path(endpoint: &str, rule: &str) -> Result<PathBuf, ReadError> {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    if !Path::new(path).is_absolute() {
        return Err(ReadError::Other(format!(
            "the runtime's endpoint {endpoint:?} ({rule}) is not a Unix socket: set the socket's path in nodewhy's settings"
        )));
    }
    Ok(path.into())
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    let text = crate::fuzz::text(bytes);
    crate::fuzz::done((endpoint_of(&text), unix_path(&text, "a rule")));
}

#[cfg(test)]
mod tests {
    use nodewhy_clock::Clock;
    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;
    use crate::host::{Places, process};

    /// A host with these files; `proc/PID/comm` stands for a whole process of root's in the system's slice.
    fn host(files: &[(&str, &str)]) -> (TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        for (path, comm) in files {
            let pid = path.strip_prefix("proc/").and_then(|rest| rest.strip_suffix("/comm"));
            if let Some(pid) = pid {
                process::made::process(root.path(), pid.parse().unwrap(), comm.trim(), 'S');
            }
        }
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let host = Host::new(root.path(), Clock::system(), Places::default());
        (root, host)
    }

    #[test]
    fn a_bare_machine_has_no_runtime() {
        let (_root, host) = host(&[("proc/1/comm", "systemd\n")]);
        assert!(matches!(find(&host), Err(ReadError::Absent { .. })));
    }

    // The flag and its value as kubelet 1.32.6 on Debian 12 dumps them at --v=2, joined as /proc/PID/cmdline is.
    const CMDLINE: &str =
        "/usr/bin/kubelet\0--container-runtime-endpoint=unix:///run/containerd/containerd.sock\0--v=2\0";

    #[test]
    fn the_kubelets_flag_comes_before_known_places() {
        let (_root, host) = host(&[
            ("proc/734/comm", "kubelet\n"),
            ("proc/734/cmdline", CMDLINE),
            ("run/crio/crio.sock", ""),
        ]);
        let endpoint = find(&host).unwrap();
        assert_eq!(endpoint.socket, Path::new("/run/containerd/containerd.sock"));
        assert_eq!(endpoint.found_by, "the kubelet's command line (pid 734)");
        assert!(endpoint.expected_because.is_some());
    }

    #[test]
    fn the_kubelets_file_is_asked_where_the_flag_is_not_set() {
        let yaml = "kind: KubeletConfiguration\ncontainerRuntimeEndpoint: unix:///run/crio/crio.sock\n";
        let (_root, host) = host(&[
            ("proc/734/comm", "kubelet\n"),
            ("proc/734/cmdline", "kubelet\0--config\0/etc/kubelet.yaml\0"),
            ("etc/kubelet.yaml", yaml),
        ]);
        let endpoint = find(&host).unwrap();
        assert_eq!(endpoint.socket, Path::new("/run/crio/crio.sock"));
        assert_eq!(endpoint.found_by, "/etc/kubelet.yaml");
    }

    #[test]
    fn a_kubelet_without_any_socket_makes_one_expected() {
        let (_root, host) = host(&[("proc/9/comm", "kubelet\n"), ("proc/9/cmdline", "kubelet\0")]);
        let endpoint = find(&host).unwrap();
        assert_eq!(endpoint.socket, Path::new(KUBELET_DEFAULT));
        assert_eq!(endpoint.expected_because.as_deref(), Some("kubelet runs (pid 9)"));
    }

    #[test]
    fn a_distributions_socket_comes_before_dockers_containerd() {
        let (_root, host) =
            host(&[("run/containerd/containerd.sock", ""), ("run/k3s/containerd/containerd.sock", "")]);
        let endpoint = find(&host).unwrap();
        assert_eq!(endpoint.socket, Path::new("/run/k3s/containerd/containerd.sock"));
        assert_eq!(endpoint.expected_because, None);
    }

    #[test]
    fn var_run_is_followed_within_the_hosts_root() {
        let yaml = "containerRuntimeEndpoint: unix:///var/run/crio/crio.sock\n";
        let (root, host) = host(&[("var/lib/kubelet/config.yaml", yaml), ("run/crio/crio.sock", "")]);
        std::os::unix::fs::symlink("/no-such-run", root.path().join("var/run")).unwrap();
        assert_eq!(find(&host).unwrap().socket, Path::new("/run/crio/crio.sock"));
    }

    #[test]
    fn an_endpoint_that_is_no_unix_socket_is_said() {
        assert!(unix_path("tcp://127.0.0.1:1234", "x").is_err());
        assert_eq!(unix_path("/run/a.sock", "x").unwrap(), Path::new("/run/a.sock"));
    }

    proptest! {
        #[test]
        fn any_command_line_and_file_give_a_value_or_none(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let text = String::from_utf8_lossy(&bytes);
            let words: Vec<String> = text.split('\0').map(str::to_owned).collect();
            let _ = flag(&words, "--config");
            let _ = endpoint_of(&String::from_utf8_lossy(&bytes));
        }
    }
}
