//! Which process is this node's kubelet, and whether there should be one.
//!
//! Anybody may name a process `kubelet`. So it must also run as root, outside of pods, in the node's own pid namespace;
//! one outside of users' sessions goes before one within. What remains: a root process outside of any pod that calls
//! itself `kubelet` is believed where there is no better one; whoever can start one owns the node. A rootless kubelet
//! (KubeletInUserNamespace) is not found.

use std::path::PathBuf;
use std::time::Duration;

use crate::distribution;
use crate::host::process::{Process, Status};
use crate::host::{Host, ReadError};

/// A command line is read apart, and is waited for this long.
pub(crate) const CMDLINE_LIMIT: Duration = Duration::from_millis(500);

/// The kubelet's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kubelet {
    pub(crate) process: Process,
    pub(crate) status: Status,
    /// Its cgroups' paths.
    pub(crate) cgroups: Vec<String>,
}

impl Kubelet {
    /// The lowest is the one: a service before a user's session, then the oldest, for a short-lived `kubelet --version`
    /// beside it is not.
    fn rank(&self) -> (bool, u64) {
        let session = self.cgroups.iter().any(|path| path.split('/').any(|part| part == "user.slice"));
        (session, self.process.start_ticks)
    }
}

/// What looking for it gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) kubelet: Option<Kubelet>,
    /// Processes that are called so and are not it, with the reason.
    pub(crate) others: Vec<String>,
}

/// Whether a command line runs a kubelet.
type Check = fn(&[String]) -> bool;

/// What a kubelet's process is called, and what its command line must say where the name alone does not tell.
///
/// k3s runs the kubelet within its own process, microk8s in kubelite. `k3s server --disable-agent` has none.
static NAMES: &[(&str, Option<Check>)] = &[
    ("kubelet", None),
    ("kubelite", None),
    ("k3s-agent", None),
    ("k3s-server", Some(|arguments| !arguments.iter().any(|word| word == "--disable-agent"))),
    ("k3s", Some(runs_k3s_agent)),
    ("hyperkube", Some(|arguments| arguments.get(1).is_some_and(|word| word == "kubelet"))),
    ("microshift", Some(|arguments| arguments.get(1).is_some_and(|word| word == "run"))),
];

fn runs_k3s_agent(arguments: &[String]) -> bool {
    let role = arguments.get(1).map(String::as_str);
    role == Some("agent")
        || (role == Some("server") && !arguments.iter().any(|word| word == "--disable-agent"))
}

/// Whether a process of this name may be a kubelet.
pub(crate) fn is_name(name: &str) -> bool {
    NAMES.iter().any(|(known, _)| *known == name)
}

/// The kubelet's process, for who need not know why there is none.
pub(crate) fn kubelet(host: &Host) -> Option<Process> {
    find(host).ok()?.kubelet.map(|kubelet| kubelet.process)
}

/// Looks at every process of the node.
///
/// # Errors
/// /proc cannot be listed; or no kubelet was found, and there are processes that could not be read (no descriptors
/// left): one of them may be it.
pub(crate) fn find(host: &Host) -> Result<Found, ReadError> {
    let mut found = Found::default();
    let mut unread = None;
    for pid in host.pids()? {
        let process = match host.process_if(pid, is_name) {
            Ok(Some(process)) => process,
            Err(error @ ReadError::Io { .. }) => {
                unread.get_or_insert(error);
                continue;
            }
            // It has ended, is hidden from us, or is none that the kernel would show so.
            Ok(None) | Err(_) => continue,
        };
        let Some((_, check)) = NAMES.iter().find(|(name, _)| *name == process.name) else { continue };
        match examine(host, process, *check) {
            Ok(Some(candidate)) => {
                if found.kubelet.as_ref().is_none_or(|chosen| candidate.rank() < chosen.rank()) {
                    found.kubelet = Some(candidate);
                }
            }
            Ok(None) => {}
            Err(why) => found.others.push(format!("process {pid} is not this node's kubelet: {why}")),
        }
    }
    match unread {
        Some(error) if found.kubelet.is_none() => Err(error),
        _ => Ok(found),
    }
}

/// `Ok(None)`: it has ended. `Err`: why it is not the kubelet.
fn examine(host: &Host, process: Process, check: Option<Check>) -> Result<Option<Kubelet>, String> {
    if !process.is_alive() {
        return Ok(None);
    }
    let Some(status) = host.process_status(process.pid).map_err(|error| error.to_string())? else {
        return Ok(None);
    };
    let Some(cgroups) = host.process_cgroups(process.pid).map_err(|error| error.to_string())? else {
        return Ok(None);
    };
    match status.uids {
        Some((0, 0)) => {}
        Some((real, _)) => return Err(format!("it is called {} and runs as user {real}", process.name)),
        None => return Err("its user is not known".to_owned()),
    }
    // NSpid is missing before Linux 4.1.
    if status.pid_namespaces.is_some_and(|count| count > 1) {
        return Err("it has a pid namespace of its own: a node in a container (kind, k3d)".to_owned());
    }
    if let Some(place) = cgroups.iter().find_map(|path| foreign(path)) {
        return Err(format!("its cgroup is {place}"));
    }
    if let Some(check) = check {
        let arguments =
            host.process_cmdline(process.pid, CMDLINE_LIMIT).map_err(|error| error.to_string())?;
        if !check(&arguments) {
            return Err(format!("`{}` runs no kubelet", arguments.join(" ")));
        }
    }
    Ok(Some(Kubelet { process, status, cgroups }))
}

/// A cgroup of a pod. Seen from within a container's cgroup namespace the path is relative, and
/// its beginning (`kubepods`) may be missing: then the pod's own part tells.
fn foreign(path: &str) -> Option<String> {
    path.split('/')
        .find(|part| {
            part.starts_with("kubepods")
                || part.starts_with("cri-containerd-")
                || part.starts_with("crio-")
                || part.strip_prefix("pod").is_some_and(|uid| uid.len() == 36)
        })
        .map(|_| path.to_owned())
}

/// The files that a kubelet leaves in its root folder.
const TRACES: [&str; 3] = ["config.yaml", "pki", "kubeconfig"];

/// The first trace of a kubelet on this node. Names alone are looked at: some of these files are keys.
pub(crate) fn trace(host: &Host) -> Option<PathBuf> {
    roots(host)
        .flat_map(|root| TRACES.map(|name| root.join(name)))
        .find(|path| host.exists(path).is_ok_and(|exists| exists))
}

/// Where a kubelet's root folder may be.
pub(crate) fn roots(host: &Host) -> impl Iterator<Item = PathBuf> {
    let first = host.kubelet_root();
    std::iter::once(first).chain(distribution::unusual_kubelet_roots().map(PathBuf::from))
}

/// Why no kubelet is expected here: what was looked for.
pub(crate) fn not_expected(host: &Host, others: &[String]) -> String {
    let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
    let mut why = format!(
        "no kubelet on this machine: no process of root's is called {}, and {} has no {}",
        names.join(", "),
        host.kubelet_root().display(),
        TRACES.join(", ")
    );
    for other in others {
        why.push_str("; ");
        why.push_str(other);
    }
    why
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    crate::fuzz::done(foreign(&crate::fuzz::text(bytes)));
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use nodewhy_clock::Clock;

    use super::*;
    use crate::host::Places;

    // The lines of the recorded stat and status of host/process.rs (Linux 6.18.44), with other names and numbers.
    #[expect(clippy::too_many_arguments, reason = "a table of processes reads best with a row a call")]
    fn process(
        root: &Path,
        pid: u32,
        name: &str,
        uid: u32,
        state: char,
        start: u64,
        cgroup: &str,
        cmdline: &[u8],
    ) {
        let folder = root.join("proc").join(pid.to_string());
        fs::create_dir_all(&folder).unwrap();
        let stat = format!(
            "{pid} ({name}) {state} 1 {pid} {pid} 0 -1 4194560 5320 71390 0 60 0 3 48 12 20 0 1 0 {start} 5255168 946 18446744073709551615\n"
        );
        fs::write(folder.join("stat"), stat).unwrap();
        let nested = if cgroup.contains("docker") { "\t1" } else { "" };
        let status = format!(
            "Name:\t{name}\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nNSpid:\t{pid}{nested}\nVmRSS:\t    3900 kB\nThreads:\t12\n"
        );
        fs::write(folder.join("status"), status).unwrap();
        fs::write(folder.join("cgroup"), format!("0::{cgroup}\n")).unwrap();
        fs::write(folder.join("cmdline"), cmdline).unwrap();
    }

    fn node() -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc")).unwrap();
        let host = Host::new(root.path(), Clock::system(), Places::default());
        (root, host)
    }

    fn pid(host: &Host) -> Option<u32> {
        find(host).unwrap().kubelet.map(|kubelet| kubelet.process.pid)
    }

    const SERVICE: &str = "/system.slice/kubelet.service";

    #[test]
    fn the_kubelet_is_the_oldest_of_its_name() {
        let (root, host) = node();
        process(root.path(), 344, "kubelet", 0, 'S', 3600, SERVICE, b"");
        process(root.path(), 200, "kubelet", 0, 'R', 9000, SERVICE, b"");
        let found = find(&host).unwrap();
        let kubelet = found.kubelet.unwrap();
        assert_eq!((kubelet.process.pid, kubelet.status.threads), (344, Some(12)));
        assert_eq!(kubelet.cgroups, [SERVICE]);
    }

    #[test]
    fn a_process_that_cannot_be_read_may_be_the_kubelet() {
        let (root, host) = node();
        // Reading a folder fails as a file does when no descriptors are left: with an error that is not "gone".
        fs::create_dir_all(root.path().join("proc/344/stat")).unwrap();
        assert!(matches!(find(&host), Err(ReadError::Io { .. })), "no word that there is none");
        process(root.path(), 200, "kubelet", 0, 'S', 3600, SERVICE, b"");
        assert_eq!(pid(&host), Some(200));
    }

    #[test]
    fn a_service_goes_before_a_session() {
        let (root, host) = node();
        process(root.path(), 11, "kubelet", 0, 'S', 1, "/user.slice/user-0.slice/session-3.scope", b"");
        assert_eq!(pid(&host), Some(11), "one that root started by hand");
        process(root.path(), 344, "kubelet", 0, 'S', 3600, SERVICE, b"");
        assert_eq!(pid(&host), Some(344));
    }

    #[test]
    fn a_name_alone_does_not_make_a_kubelet() {
        let (root, host) = node();
        process(root.path(), 10, "kubelet", 1000, 'S', 1, SERVICE, b"");
        let pod =
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-1.scope";
        process(root.path(), 12, "kubelet", 0, 'S', 1, pod, b"");
        let relative = "/../podd8c40446-2452-455f-917f-a0fb0b1e3d2c/abc";
        process(root.path(), 13, "kubelet", 0, 'S', 1, relative, b"");
        process(root.path(), 14, "kubelet", 0, 'S', 1, "/docker/0123/kubelet.slice/kubelet.service", b"");
        process(root.path(), 15, "kubelet", 0, 'Z', 1, SERVICE, b"");
        process(root.path(), 16, "kubelet-wrapper", 0, 'S', 1, SERVICE, b"");
        let found = find(&host).unwrap();
        assert_eq!(found.kubelet, None);
        assert_eq!(found.others.len(), 4, "{:?}", found.others);
        let why = not_expected(&host, &found.others);
        assert!(why.starts_with("no kubelet on this machine") && why.contains("user 1000"), "{why}");
        // A process that garbled its files, or that ended while it was looked at.
        fs::write(root.path().join("proc/10/stat"), "garbage").unwrap();
        fs::remove_file(root.path().join("proc/12/status")).unwrap();
        assert_eq!(pid(&host), None);
    }

    #[test]
    fn distributions_of_one_process() {
        for (name, cmdline, is) in [
            ("kubelite", &b"/snap/microk8s/1/kubelite\0--kubelet-args-file=x\0"[..], true),
            ("k3s-agent", b"/usr/local/bin/k3s agent\0\0", true),
            ("k3s-server", b"/usr/local/bin/k3s server\0\0", true),
            ("k3s-server", b"/usr/local/bin/k3s\0server\0--disable-agent\0", false),
            ("k3s", b"k3s\0agent\0", true),
            ("k3s", b"k3s\0kubectl\0get\0nodes\0", false),
            ("hyperkube", b"/hyperkube\0kubelet\0", true),
            ("hyperkube", b"/hyperkube\0kube-proxy\0", false),
            ("k3s", b"", false),
        ] {
            let (root, host) = node();
            process(root.path(), 7, name, 0, 'S', 1, "/system.slice/k3s.service", cmdline);
            assert_eq!(pid(&host).is_some(), is, "{name} {}", String::from_utf8_lossy(cmdline));
        }
    }

    #[test]
    fn traces_are_looked_for_in_every_root() {
        let (root, host) = node();
        assert_eq!(trace(&host), None);
        fs::create_dir_all(root.path().join("var/lib/kubelet")).unwrap();
        assert_eq!(trace(&host), None, "an empty folder comes with a package");
        fs::create_dir_all(root.path().join("var/lib/k0s/kubelet/pki")).unwrap();
        assert_eq!(trace(&host), Some("/var/lib/k0s/kubelet/pki".into()));
        fs::write(root.path().join("var/lib/kubelet/config.yaml"), "").unwrap();
        assert_eq!(trace(&host), Some("/var/lib/kubelet/config.yaml".into()));
    }
}
