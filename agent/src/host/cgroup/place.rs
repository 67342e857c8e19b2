//! Where a process stands in the host's tree of cgroups.
//!
//! `/proc/PID/cgroup` is relative to the cgroup namespace of whoever reads it: in a container the kubelet's reads
//! `/../../../../system.slice/kubelet.service`. The agent finds the root of its namespace in the host's tree by the
//! number of its folder, joins, and believes the result only if the cgroup there lists the process. Where the host's tree
//! is mounted over the agent's own (a hostPath at /sys/fs/cgroup), the number misleads: then it looks for the cgroup that
//! lists the agent.

use std::collections::VecDeque;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::super::process::unless_gone;
use super::{Hierarchies, Host, ReadError};

/// The search for the agent's own place gives up after so many cgroups.
const MOST_FOLDERS: usize = 20_000;

/// The root of the agent's cgroup namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceRoot {
    /// Its path in the host's tree, `""` for the root itself; `None`: it was not found.
    prefix: Option<String>,
}

impl Host {
    /// Looks for the root of the agent's cgroup namespace in the host's tree.
    pub fn cgroup_namespace_root(&self, hierarchies: &Hierarchies) -> NamespaceRoot {
        let Some((controller, mount)) = hierarchies.main() else { return NamespaceRoot::default() };
        // The agent's own mount of the hierarchy, which shows the root of its namespace, stands at the usual place.
        let own = std::fs::metadata(mount).map(|metadata| (metadata.dev(), metadata.ino()));
        let root = NamespaceRoot { prefix: own.ok().and_then(|own| self.find_cgroup(mount, own)) };
        if matches!(self.cgroup_of_agent(hierarchies, &root), Ok(Some(_))) {
            return root;
        }
        let relative = self.read_bytes("/proc/self/cgroup").ok();
        let relative = relative.map(|text| String::from_utf8_lossy(&text).into_owned());
        let prefix = relative.and_then(|text| {
            let relative = line(&text, controller)?;
            let path = self.find_process(mount, std::process::id())?;
            path.strip_suffix(relative.trim_end_matches('/')).map(str::to_owned)
        });
        NamespaceRoot { prefix }
    }

    /// The path below the mount of the cgroup that lists this process.
    fn find_process(&self, mount: &Path, pid: u32) -> Option<String> {
        let is_it = |path: &str| {
            let procs = self.read(below(mount, path).join("cgroup.procs"));
            procs.is_ok_and(|procs| procs.lines().any(|line| line.parse() == Ok(pid)))
        };
        self.search(mount, |path, _| is_it(path))
    }

    /// The path below the mount of the folder with this device and number.
    fn find_cgroup(&self, mount: &Path, wanted: (u64, u64)) -> Option<String> {
        let (device, inode, _) = self.cgroup_identity(mount).ok()?;
        if device != wanted.0 {
            return None;
        }
        if inode == wanted.1 {
            return Some(String::new());
        }
        self.search(mount, |_, child| child == wanted.1)
    }

    /// The first cgroup below the mount that is it, by path and number.
    fn search(&self, mount: &Path, is_it: impl Fn(&str, u64) -> bool) -> Option<String> {
        let mut waiting = VecDeque::from([String::new()]);
        for _ in 0..MOST_FOLDERS {
            let path = waiting.pop_front()?;
            // One that was removed meanwhile has no children.
            for child in self.cgroup_children(below(mount, &path)).unwrap_or_default() {
                let path = format!("{path}/{}", child.name);
                if is_it(&path, child.inode) {
                    return Some(path);
                }
                waiting.push_back(path);
            }
        }
        None
    }

    /// The cgroup of a process in the main hierarchy, as the host names it: `/system.slice/kubelet.service`. `None`
    /// when there is no such process.
    ///
    /// # Errors
    /// It cannot be read, or no cgroup of the host's tree fits it.
    pub fn cgroup_of_process(
        &self,
        hierarchies: &Hierarchies,
        root: &NamespaceRoot,
        pid: u32,
    ) -> Result<Option<String>, ReadError> {
        self.cgroup_of(hierarchies, root, &format!("/proc/{pid}/cgroup"), pid)
    }

    /// The agent's own cgroup in the main hierarchy.
    ///
    /// # Errors
    /// As [`Host::cgroup_of_process`].
    pub fn cgroup_of_agent(
        &self,
        hierarchies: &Hierarchies,
        root: &NamespaceRoot,
    ) -> Result<Option<String>, ReadError> {
        self.cgroup_of(hierarchies, root, "/proc/self/cgroup", std::process::id())
    }

    fn cgroup_of(
        &self,
        hierarchies: &Hierarchies,
        root: &NamespaceRoot,
        file: &str,
        pid: u32,
    ) -> Result<Option<String>, ReadError> {
        let Some((controller, mount)) = hierarchies.main() else { return Ok(None) };
        let Some(text) = unless_gone(self.read_bytes(file))? else { return Ok(None) };
        let text = String::from_utf8_lossy(&text);
        let relative = line(&text, controller).ok_or_else(|| {
            let hierarchy = if controller.is_empty() { "the unified hierarchy" } else { controller };
            ReadError::malformed(file, format!("there is no line of {hierarchy}"))
        })?;
        for path in candidates(root.prefix.as_deref(), relative) {
            match self.read(below(mount, &path).join("cgroup.procs")) {
                Ok(procs) if lists(&procs, pid) => return Ok(Some(path)),
                Ok(_) | Err(ReadError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Err(ReadError::Other(format!(
            "{file} says {relative}, and no cgroup below {} that this could be lists process {pid}: the agent is in a \
             cgroup namespace of its own, and the host's cgroups are not mounted below --host-root",
            mount.display()
        )))
    }
}

/// A cgroup's folder.
pub fn below(mount: &Path, path: &str) -> std::path::PathBuf {
    mount.join(path.trim_start_matches('/'))
}

/// `ID:CONTROLLERS:PATH`; of the unified hierarchy `0::PATH`.
fn line<'a>(text: &'a str, controller: &str) -> Option<&'a str> {
    text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let is_it = match controller {
            "" => id == "0" && controllers.is_empty(),
            controller => controllers.split(',').any(|one| one == controller),
        };
        is_it.then_some(path)
    })
}

/// What the text may mean: relative to the namespace's root, as it stands, and from the host's root on (where the
/// process has no cgroup above it in common with the agent). A zombie's cgroup may end with ` (deleted)`.
fn candidates(prefix: Option<&str>, relative: &str) -> Vec<String> {
    let relative = relative.strip_suffix(" (deleted)").unwrap_or(relative);
    let joined = prefix.and_then(|prefix| normal(&format!("{prefix}{relative}")));
    let stripped = relative.split('/').filter(|part| !part.is_empty() && *part != "..").collect::<Vec<_>>();
    let mut candidates: Vec<String> = joined.into_iter().collect();
    let stripped = format!("/{}", stripped.join("/"));
    if !candidates.contains(&stripped) {
        candidates.push(stripped);
    }
    candidates
}

/// Without `..`; `None` where they lead out of the tree.
fn normal(path: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        match part {
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(format!("/{}", parts.join("/")))
}

/// Whether this `cgroup.procs` has the process. From a PID namespace that does not contain them, processes read 0.
fn lists(procs: &str, pid: u32) -> bool {
    procs.lines().filter_map(|line| line.parse::<u32>().ok()).any(|one| one == pid || one == 0)
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    use crate::fuzz::{done, text};
    let text = text(bytes);
    done(line(&text, "memory").map(|line| (normal(line), candidates(Some(line), line))));
    done(lists(&text, 1));
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nodewhy_clock::Clock;
    use proptest::prelude::*;

    use super::*;
    use crate::host::Places;

    const MOUNTS: &str = "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
    const AGENT: &str = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-a.scope";

    fn node(groups: &[(&str, u32)], processes: &[(u32, &str)]) -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc/1")).unwrap();
        fs::write(root.path().join("proc/1/mountinfo"), MOUNTS).unwrap();
        for (path, pid) in groups {
            let folder = root.path().join("sys/fs/cgroup").join(path.trim_start_matches('/'));
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("cgroup.procs"), format!("{pid}\n")).unwrap();
        }
        for (pid, cgroup) in processes {
            fs::create_dir_all(root.path().join(format!("proc/{pid}"))).unwrap();
            fs::write(root.path().join(format!("proc/{pid}/cgroup")), format!("0::{cgroup}\n")).unwrap();
        }
        let host = Host::new(root.path(), Clock::system(), Places::default());
        (root, host)
    }

    #[test]
    fn the_root_of_the_namespace_is_found_by_its_number_and_joined() {
        let (_root, host) = node(
            &[(AGENT, 1), ("/system.slice/kubelet.service", 344)],
            &[(344, "/../../../../system.slice/kubelet.service")],
        );
        let mount = Path::new("/sys/fs/cgroup");
        let (device, inode, _) = host.cgroup_identity(below(mount, AGENT)).unwrap();
        let prefix = host.find_cgroup(mount, (device, inode));
        assert_eq!(prefix.as_deref(), Some(AGENT));
        assert_eq!(host.find_cgroup(mount, (device + 1, inode)), None, "another file system's number");
        let (hierarchies, root) = (host.cgroup_hierarchies().unwrap(), NamespaceRoot { prefix });
        let found = host.cgroup_of_process(&hierarchies, &root, 344).unwrap();
        assert_eq!(found.as_deref(), Some("/system.slice/kubelet.service"));
        // Without the namespace's root it is found all the same, since the cgroup lists the process.
        let found = host.cgroup_of_process(&hierarchies, &NamespaceRoot::default(), 344).unwrap();
        assert_eq!(found.as_deref(), Some("/system.slice/kubelet.service"));
        assert_eq!(host.cgroup_of_process(&hierarchies, &root, 345).unwrap(), None, "no such process");
    }

    #[test]
    fn a_cgroup_that_does_not_list_the_process_is_not_believed() {
        let (_root, host) = node(&[("/a/b", 7), ("/b", 8)], &[(9, "/../b"), (8, "/b")]);
        let (hierarchies, root) =
            (host.cgroup_hierarchies().unwrap(), NamespaceRoot { prefix: Some("/a/x".to_owned()) });
        let error = host.cgroup_of_process(&hierarchies, &root, 9).unwrap_err().to_string();
        assert!(error.contains("lists process 9") && error.contains("--host-root"), "{error}");
        assert_eq!(host.cgroup_of_process(&hierarchies, &root, 8).unwrap().as_deref(), Some("/b"));
    }

    #[test]
    fn this_process_is_in_the_cgroup_that_is_found_for_it() {
        let host = Host::new("/", Clock::system(), Places::default());
        let hierarchies = match host.cgroup_hierarchies() {
            Ok(hierarchies) => hierarchies,
            Err(error) => return assert!(matches!(error, ReadError::Absent { .. }), "{error}"),
        };
        let root = host.cgroup_namespace_root(&hierarchies);
        let path = host.cgroup_of_agent(&hierarchies, &root).unwrap().unwrap();
        let mount = hierarchies.main().unwrap().1;
        let procs = host.read(below(mount, &path).join("cgroup.procs")).unwrap();
        assert!(procs.lines().any(|pid| pid == std::process::id().to_string()), "{path}");
    }

    #[test]
    fn lines_of_both_versions() {
        // /proc/self/cgroup on Linux 6.18.44 with v1 controllers, shortened.
        let text = "8:pids:/\n4:memory:/process_api\n2:cpu,cpuacct:/x\n0::/\n";
        assert_eq!(line(text, "memory"), Some("/process_api"));
        assert_eq!(line(text, "cpuacct"), Some("/x"));
        assert_eq!(line(text, ""), Some("/"));
        assert_eq!(line(text, "cpuset"), None);
        assert_eq!(line("0::/cut", ""), None);
    }

    proptest! {
        #[test]
        fn any_text_is_joined_without_a_panic(prefix in "(/[a-z.]{0,5}){0,4}", text in "(/[a-z.]{0,5}){0,6}") {
            for path in candidates(Some(&prefix), &text) {
                prop_assert!(path.starts_with('/') && !path.split('/').any(|part| part == ".."));
            }
        }
    }
}
