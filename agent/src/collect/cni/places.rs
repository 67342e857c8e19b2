//! Where CNI's files are on this node, and whether anybody expects them.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::collect::kubelet::find;
use crate::collect::runtime::is_dockers;
use crate::distribution;
use crate::host::{Host, Places, ReadError, is_none_socket};

/// The one runtime whose CRI its own configuration can switch off.
const CONTAINERD_CONFIG: &str = "/etc/containerd/config.toml";

/// The folders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Folders {
    pub(super) conf: PathBuf,
    pub(super) bin: Vec<PathBuf>,
    /// Which rule hit.
    pub(super) found_by: String,
}

/// The folders: as set; else as containerd's configuration file says; else the usual ones.
pub(super) fn folders(host: &Host) -> Folders {
    let (places, usual) = (host.places(), Places::default());
    let mut folders = Folders {
        conf: places.cni_conf_dir.clone(),
        bin: places.cni_bin_dirs.clone(),
        found_by: "the usual place".to_owned(),
    };
    if places.cni_conf_dir != usual.cni_conf_dir {
        folders.found_by = "setting".to_owned();
        return folders;
    }
    for file in distribution::containerd_configs() {
        let Some(cni) = host.read(file).ok().and_then(|text| cni_section(&text)) else { continue };
        if let Some(conf) = cni.get("conf_dir").and_then(Value::as_str).filter(|dir| !dir.is_empty()) {
            folders.conf = conf.into();
            folders.found_by = file.to_owned();
        }
        let many = cni.get("bin_dirs").and_then(Value::as_array).into_iter().flatten();
        // Looked at besides the others, so that an operator's own list stays good.
        for dir in many.chain(cni.get("bin_dir")).filter_map(Value::as_str).filter(|dir| !dir.is_empty()) {
            if !folders.bin.iter().any(|known| known == Path::new(dir)) {
                folders.bin.push(dir.into());
            }
        }
        break;
    }
    if folders.found_by == "the usual place" && !has_conf(host, &folders.conf) {
        let others = distribution::cni_conf_dirs().into_iter().map(Path::new);
        if let Some(dir) = others.into_iter().find(|dir| has_conf(host, dir)) {
            (folders.conf, folders.found_by) = (dir.to_owned(), "a distribution's place".to_owned());
            for dir in distribution::cni_bin_dirs(dir).into_iter().map(PathBuf::from) {
                if !folders.bin.contains(&dir) {
                    folders.bin.push(dir);
                }
            }
        }
    }
    folders
}

fn has_conf(host: &Host, dir: &Path) -> bool {
    host.list(dir).is_ok_and(|names| names.iter().any(super::is_conf))
}

/// `cni` of the CRI plugin: version 2 of the file up to containerd 1.7, version 3 since 2.0.
fn cni_section(text: &str) -> Option<Table> {
    let config: Table = text.parse().ok()?;
    let plugins = config.get("plugins")?.as_table()?;
    ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime", "cri"]
        .iter()
        .find_map(|name| plugins.get(*name)?.get("cni")?.as_table().cloned())
}

/// Whether containerd's CRI is switched off, as Docker's packages do: no pod will ever ask for a network there.
fn is_cri_off(text: &str) -> bool {
    let Ok(config) = text.parse::<Table>() else { return false };
    let disabled = config.get("disabled_plugins").and_then(Value::as_array);
    let off = ["cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"];
    disabled.into_iter().flatten().filter_map(Value::as_str).any(|name| off.contains(&name))
}

/// Why a CNI configuration is expected on this node; `None` where nobody would use one.
pub(super) fn expected(host: &Host) -> Option<String> {
    if let Some(socket) = host.places().runtime_socket.as_ref().filter(|path| !is_none_socket(path)) {
        return Some(format!("the runtime's socket is set to {}", socket.display()));
    }
    for socket in distribution::runtime_sockets() {
        let is_there = host.stat(socket).is_ok();
        let is_off = || {
            socket.ends_with("/run/containerd/containerd.sock")
                && (host.read(CONTAINERD_CONFIG).is_ok_and(|text| is_cri_off(&text)) || is_dockers(host))
        };
        if is_there && !socket.ends_with("dockershim.sock") && !is_off() {
            return Some(format!("a runtime is here: {socket}"));
        }
    }
    let config = host.kubelet_root().join("config.yaml");
    if host.stat(&config).is_ok() {
        return Some(format!("a kubelet is configured: {}", config.display()));
    }
    find::kubelet(host).map(|kubelet| format!("{} runs (pid {})", kubelet.name, kubelet.pid))
}

/// CRI-O passes over a file that it cannot load, and takes the next; containerd stops at it.
pub(super) fn passes_over_invalid(host: &Host) -> bool {
    let set = host.places().runtime_socket.as_deref();
    match set {
        Some(socket) => socket.to_string_lossy().contains("crio"),
        None => ["/run/crio/crio.sock", "/var/run/crio/crio.sock"].iter().any(|path| host.stat(path).is_ok()),
    }
}

/// Where a plugin stands in the folders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Program {
    At(PathBuf),
    NotExecutable(PathBuf),
    Missing,
    /// It cannot be seen from here, and why.
    CannotTell(String),
}

/// Looks for a plugin's program as libcni does: the first folder that holds a regular file of that name.
pub(super) fn program(host: &Host, folders: &[PathBuf], kind: &str) -> Program {
    // libcni refuses such a name before it looks.
    if kind.contains('/') {
        return Program::Missing;
    }
    let mut doubt = None;
    let mut barred = None;
    for folder in folders {
        let path = folder.join(kind);
        match host.stat(&path) {
            Ok(stat) if stat.is_executable() => return Program::At(path),
            Ok(stat) if stat.is_file => barred = barred.or(Some(path)),
            Ok(_) => {}
            Err(ReadError::NotFound { .. }) if host.root() != Path::new("/") => {
                // Under another root an absolute link leads out of it: whether it leads somewhere is not known.
                if host.is_dangling_link(&path) || host.is_dangling_link(folder) {
                    doubt = Some(format!("{} is a link that leads nowhere from here", path.display()));
                }
            }
            Err(ReadError::NotFound { .. }) => {}
            Err(error) => doubt = Some(error.to_string()),
        }
    }
    match (doubt, barred) {
        (Some(why), _) => Program::CannotTell(why),
        (None, Some(path)) => Program::NotExecutable(path),
        (None, None) => Program::Missing,
    }
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    use crate::fuzz::{done, text};
    let text = text(bytes);
    done((cni_section(&text), is_cri_off(&text)));
}

#[cfg(test)]
mod tests {
    use super::*;

    // `containerd config default` of containerd 1.6.20, Debian 12, cut to what is read here.
    const VERSION_2: &str = "disabled_plugins = []\nversion = 2\n[plugins]\n\
        [plugins.\"io.containerd.grpc.v1.cri\"]\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\n\
        bin_dir = \"/opt/cni/bin\"\nconf_dir = \"/etc/cni/net.d\"\n";

    #[test]
    fn containerds_own_file_names_the_folders() {
        let cni = cni_section(VERSION_2).unwrap();
        assert_eq!(cni.get("conf_dir").and_then(Value::as_str), Some("/etc/cni/net.d"));
        assert_eq!(cni.get("bin_dir").and_then(Value::as_str), Some("/opt/cni/bin"));
        assert!(!is_cri_off(VERSION_2));
    }

    #[test]
    fn dockers_containerd_has_no_cri() {
        // /etc/containerd/config.toml of Docker's containerd.io package.
        assert!(is_cri_off("disabled_plugins = [\"cri\"]\n"));
    }

    #[test]
    fn every_prefix_of_the_file_is_a_value_or_none() {
        for cut in 0..VERSION_2.len() {
            let _ = cni_section(&VERSION_2[..cut]);
        }
    }
}
