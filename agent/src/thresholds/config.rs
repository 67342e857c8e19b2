//! The kubelet's configuration: its flags, its file, its drop-ins.
//!
//! The rules are the kubelet's (cmd/kubelet/app/server.go, pkg/kubelet/apis/config/v1beta1/defaults.go): a flag goes
//! before the file; drop-ins (`--config-dir`, `*.conf` in order of their names) are merged into the file key by key; a
//! missing or null `evictionHard` means the defaults, but one that is there, even empty, means **only what it names**,
//! unless `mergeDefaultEvictionSettings` is true.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::eviction::EvictionHard;
use crate::collect::kubelet::find;
use crate::host::{Host, KubeletPlaces, ReadError};

/// No kubelet's configuration is larger.
const LARGEST_CONFIG_BYTES: usize = 1024 * 1024;

const CMDLINE_LIMIT: Duration = Duration::from_secs(2);

/// Where newer k3s has its kubelet's drop-ins; no command line says so.
const K3S_DROP_INS: &str = "/var/lib/rancher/k3s/agent/etc/kubelet.conf.d";

/// What was read.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) eviction_hard: EvictionHard,
    /// The other limits; `None`: no kubelet here.
    pub(super) others: Option<Others>,
    /// `None`: no process of it is seen.
    pub(super) places: Option<KubeletPlaces>,
    /// Whether its flags and files were read, or none are known.
    pub(super) is_whole: bool,
    pub(super) notes: Vec<String>,
}

/// Limits that are no eviction; `None`: nobody set it. By flag or file alike.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Others {
    pub(super) image_gc_high_percent: Option<f64>,
    /// Below 1: no limit.
    pub(super) pod_pids_limit: Option<f64>,
    pub(super) max_pods: Option<f64>,
}

/// What matters of `KubeletConfiguration`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    kind: Option<String>,
    eviction_hard: Option<BTreeMap<String, Option<String>>>,
    merge_default_eviction_settings: Option<bool>,
    healthz_port: Option<u16>,
    healthz_bind_address: Option<String>,
    port: Option<u16>,
    address: Option<String>,
    #[serde(rename = "imageGCHighThresholdPercent")]
    image_gc_high_threshold_percent: Option<i32>,
    pod_pids_limit: Option<i64>,
    max_pods: Option<i32>,
}

/// What matters of the command line; the last of a repeated flag counts.
#[derive(Debug, Default, PartialEq)]
struct Flags {
    config: Option<String>,
    config_dir: Option<String>,
    eviction_hard: Option<String>,
    root_dir: Option<String>,
    args_file: Option<String>,
    healthz_port: Option<String>,
    healthz_bind_address: Option<String>,
    port: Option<String>,
    address: Option<String>,
    image_gc_high_threshold: Option<String>,
    pod_max_pids: Option<String>,
    max_pods: Option<String>,
}

pub(super) fn read(host: &Host) -> Config {
    let mut notes = Vec::new();
    let found = match find::find(host) {
        Ok(found) => found,
        Err(error) => {
            notes.push(format!("the kubelet's process is not known: {error}"));
            find::Found::default()
        }
    };
    let Some(kubelet) = found.kubelet else { return without_process(host, notes) };
    let (pid, name) = (kubelet.process.pid, kubelet.process.name);
    let mut is_whole = true;
    let mut flags = match host.process_cmdline(pid, CMDLINE_LIMIT) {
        Ok(arguments) => flags(&arguments),
        Err(error) => {
            is_whole = false;
            notes.push(format!("the kubelet's command line is not known: {error}"));
            Flags::default()
        }
    };
    // kubelite (microk8s) has the kubelet's flags in a file, one a line.
    if let Some(path) = flags.args_file.take() {
        match host.read(&path) {
            Ok(text) => flags = self::flags(&unquoted(&text)),
            Err(error) => {
                is_whole = false;
                notes.push(format!("the kubelet's flags are not known: {error}"));
            }
        }
    }
    let k3s = name.starts_with("k3s");
    if k3s && flags.config_dir.is_none() && host.exists(K3S_DROP_INS).is_ok_and(|exists| exists) {
        flags.config_dir = Some(K3S_DROP_INS.to_owned());
    }
    let known = notes.len();
    let file = file(host, pid, &flags, &mut notes);
    is_whole &= notes.len() == known;
    // A relative root is relative to a folder that is not known here.
    let root = flags.root_dir.as_deref().map(PathBuf::from).filter(|root| root.is_absolute());
    let places = Some(KubeletPlaces { root, healthz: healthz(&flags, &file), api: api(&flags, &file) });
    let others = Some(others(&flags, &file, &mut notes));
    let eviction_hard = match (flags.eviction_hard, file.eviction_hard) {
        (Some(flag), _) => EvictionHard::Flag(flag),
        (None, Some(signals)) => {
            EvictionHard::Map { signals, merges_defaults: file.merge_default_eviction_settings == Some(true) }
        }
        (None, None) if k3s => EvictionHard::K3s,
        (None, None) => EvictionHard::Default,
    };
    Config { eviction_hard, others, places, is_whole, notes }
}

/// A flag goes before the file. One that is no number is said; the kubelet does not start with it.
fn others(flags: &Flags, file: &File, notes: &mut Vec<String>) -> Others {
    let mut pick =
        |name: &str, flag: Option<&String>, file: Option<f64>| match flag.map(|text| text.parse::<i64>()) {
            Some(Ok(value)) => Some(value as f64),
            Some(Err(error)) => {
                notes.push(format!("the kubelet's flag --{name} is no number: {error}"));
                None
            }
            None => file,
        };
    Others {
        image_gc_high_percent: pick(
            "image-gc-high-threshold",
            flags.image_gc_high_threshold.as_ref(),
            file.image_gc_high_threshold_percent.map(f64::from),
        ),
        pod_pids_limit: pick(
            "pod-max-pids",
            flags.pod_max_pids.as_ref(),
            file.pod_pids_limit.map(|limit| limit as f64),
        ),
        max_pods: pick("max-pods", flags.max_pods.as_ref(), file.max_pods.map(f64::from)),
    }
}

/// No process: the file in the root folder is what the next one will most likely read.
fn without_process(host: &Host, mut notes: Vec<String>) -> Config {
    let Some(trace) = find::trace(host) else {
        let why = match host.blind_to_processes() {
            Some(blind) => format!("whether a kubelet is here cannot be told: {blind}"),
            None => "no kubelet on this machine, so nobody evicts".to_owned(),
        };
        let eviction_hard = EvictionHard::Off { why };
        return Config { eviction_hard, others: None, places: None, is_whole: true, notes };
    };
    notes.push(format!(
        "no kubelet's process is seen, though {} is there: its flags are not known",
        trace.display()
    ));
    let path = find::roots(host)
        .map(|root| root.join("config.yaml"))
        .find(|path| host.exists(path).is_ok_and(|is| is));
    let file = path
        .and_then(|path| parse(host, &path).map_err(|error| notes.push(not_read(&error))).ok())
        .unwrap_or_default();
    let others = Some(others(&Flags::default(), &file, &mut notes));
    let eviction_hard = match file.eviction_hard {
        Some(signals) => {
            EvictionHard::Map { signals, merges_defaults: file.merge_default_eviction_settings == Some(true) }
        }
        None => EvictionHard::Default,
    };
    Config { eviction_hard, others, places: None, is_whole: true, notes }
}

fn not_read(error: &ReadError) -> String {
    format!("a configuration of the kubelet is not known, its defaults are taken: {error}")
}

/// The file that the flags name, with its drop-ins merged in.
fn file(host: &Host, pid: u32, flags: &Flags, notes: &mut Vec<String>) -> File {
    let mut merged = File::default();
    let mut paths: Vec<PathBuf> = flags.config.iter().map(PathBuf::from).collect();
    if let Some(folder) = flags.config_dir.as_deref().filter(|folder| !folder.is_empty()) {
        match host.list(folder) {
            Ok(names) => paths.extend(
                names.iter().filter(|name| name.ends_with(".conf")).map(|name| Path::new(folder).join(name)),
            ),
            Err(error) => notes.push(not_read(&error)),
        }
    }
    for path in paths {
        if path.is_relative() {
            notes.push(format!(
                "the kubelet's configuration {} is not read: it is relative to the kubelet's working folder",
                path.display()
            ));
            continue;
        }
        // A kubelet with a mount namespace of its own (Talos, a snap) means its own root.
        let read = match parse(host, &path) {
            Err(ReadError::NotFound { .. }) => {
                let inside = path.strip_prefix("/").unwrap_or(&path);
                parse(host, &Path::new("/proc").join(pid.to_string()).join("root").join(inside))
            }
            read => read,
        };
        match read {
            Ok(file) => merged.merge(file),
            Err(error) => notes.push(not_read(&error)),
        }
    }
    merged
}

impl File {
    fn merge(&mut self, other: File) {
        if let Some(map) = other.eviction_hard {
            self.eviction_hard.get_or_insert_default().extend(map);
        }
        self.merge_default_eviction_settings =
            other.merge_default_eviction_settings.or(self.merge_default_eviction_settings);
        self.healthz_port = other.healthz_port.or(self.healthz_port);
        self.healthz_bind_address = other.healthz_bind_address.or(self.healthz_bind_address.take());
        self.port = other.port.or(self.port);
        self.address = other.address.or(self.address.take());
        self.image_gc_high_threshold_percent =
            other.image_gc_high_threshold_percent.or(self.image_gc_high_threshold_percent);
        self.pod_pids_limit = other.pod_pids_limit.or(self.pod_pids_limit);
        self.max_pods = other.max_pods.or(self.max_pods);
    }
}

/// Where the ping answers; `None` where nothing is set, or port 0 switches it off.
fn healthz(flags: &Flags, file: &File) -> Option<SocketAddr> {
    let address = flags.healthz_bind_address.as_deref().or(file.healthz_bind_address.as_deref());
    answers(flags.healthz_port.as_deref(), file.healthz_port, address, 10248)
}

/// Where the API answers; `None` where nothing is set.
fn api(flags: &Flags, file: &File) -> Option<SocketAddr> {
    answers(flags.port.as_deref(), file.port, flags.address.as_deref().or(file.address.as_deref()), 10250)
}

fn answers(flag: Option<&str>, file: Option<u16>, address: Option<&str>, usual: u16) -> Option<SocketAddr> {
    let port = match flag {
        Some(port) => Some(port.parse::<u16>().ok()?),
        None => file,
    };
    if port.is_none() && address.is_none() {
        return None;
    }
    let address = match address.unwrap_or("127.0.0.1").parse::<IpAddr>().ok()? {
        // Bound to every address, it answers on loopback.
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    };
    let port = port.unwrap_or(usual);
    (port != 0).then_some(SocketAddr::new(address, port))
}

fn parse(host: &Host, path: &Path) -> Result<File, ReadError> {
    let text = host.read(path)?;
    if text.len() > LARGEST_CONFIG_BYTES {
        return Err(ReadError::malformed(path, format!("it is larger than {LARGEST_CONFIG_BYTES} bytes")));
    }
    understand(&text).map_err(|what| ReadError::malformed(path, what))
}

fn understand(text: &str) -> Result<File, String> {
    // JSON is YAML. The parser has a budget for aliases and depth: a "YAML bomb" is an error.
    let file: File = serde_saphyr::from_str(text)
        .map_err(|error| error.to_string().lines().next().unwrap_or("no YAML").to_owned())?;
    match file.kind.as_deref() {
        Some("KubeletConfiguration") => Ok(file),
        Some(other) => Err(format!("it is a {other}, no KubeletConfiguration")),
        None => Err("it has no `kind: KubeletConfiguration`".to_owned()),
    }
}

fn flags(arguments: &[String]) -> Flags {
    let mut flags = Flags::default();
    let mut words = arguments.iter().peekable();
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix("--") else { continue };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        // k3s hands flags on to its kubelet: `--kubelet-arg=eviction-hard=…`, `--kubelet-arg eviction-hard=…`.
        let handed_on = name == "kubelet-arg";
        let value = match value {
            Some(value) => Some(value),
            None => words.next_if(|next| !next.starts_with("--")).cloned(),
        };
        let Some(value) = value else { continue };
        let (name, value) = match (handed_on, value.split_once('=')) {
            (false, _) => (name.to_owned(), value),
            (true, Some((name, value))) => (name.trim_start_matches('-').to_owned(), value.to_owned()),
            (true, None) => continue,
        };
        match name.as_str() {
            "config" if !is_k3s(arguments) || handed_on => flags.config = Some(value),
            "config-dir" => flags.config_dir = Some(value),
            "eviction-hard" => flags.eviction_hard = Some(value),
            "root-dir" => flags.root_dir = Some(value),
            "kubelet-args-file" => flags.args_file = Some(value),
            "healthz-port" => flags.healthz_port = Some(value),
            "healthz-bind-address" => flags.healthz_bind_address = Some(value),
            "port" if !is_k3s(arguments) || handed_on => flags.port = Some(value),
            "address" if !is_k3s(arguments) || handed_on => flags.address = Some(value),
            "image-gc-high-threshold" => flags.image_gc_high_threshold = Some(value),
            "pod-max-pids" => flags.pod_max_pids = Some(value),
            "max-pods" => flags.max_pods = Some(value),
            _ => {}
        }
    }
    flags
}

/// `--config` of k3s itself is k3s' own file, not a KubeletConfiguration.
fn is_k3s(arguments: &[String]) -> bool {
    arguments
        .first()
        .and_then(|program| program.rsplit('/').next())
        .is_some_and(|name| name.starts_with("k3s"))
}

/// The words of a file of flags; quotes around a value go, variables stay as they are.
fn unquoted(text: &str) -> Vec<String> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .flat_map(str::split_whitespace)
        .map(|word| word.replace('"', ""))
        .collect()
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    let text = crate::fuzz::text(bytes);
    crate::fuzz::done(understand(&text));
    let flags = flags(&unquoted(&text));
    crate::fuzz::done((healthz(&flags, &File::default()), api(&flags, &File::default())));
    crate::fuzz::done(others(&flags, &File::default(), &mut Vec::new()));
}

#[cfg(test)]
mod tests {
    use super::*;

    // Flags as the recorded kubelets print them (kubelet 1.32.6 and 1.36.2, `flags.go:64] FLAG: --NAME="VALUE"`).
    const DUMPS: [&str; 2] = [
        include_str!("../../fixtures/thresholds/kubelet-1.32.6-flags.log"),
        include_str!("../../fixtures/thresholds/kubelet-1.36.2-flags.log"),
    ];

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn every_flag_that_is_read_is_one_that_the_kubelet_has() {
        for dump in DUMPS {
            let arguments: Vec<String> = dump
                .lines()
                .map(|line| line.split_once("FLAG: ").unwrap().1)
                .map(|flag| flag.replace('"', ""))
                .collect();
            let flags = flags(&arguments);
            assert_eq!(flags.config.as_deref(), Some("/lab/kubelet.yaml"));
            assert_eq!(flags.root_dir.as_deref(), Some("/var/lib/kubelet"));
            assert_eq!((flags.config_dir.as_deref(), flags.eviction_hard.as_deref()), (Some(""), Some("")));
        }
    }

    #[test]
    fn flags_of_both_forms_the_last_one_counting() {
        let line =
            "kubelet --v=2 --config /a.yaml --config=/b.yaml --root-dir --eviction-hard memory.available<5%";
        let flags = flags(&words(line));
        assert_eq!(flags.config.as_deref(), Some("/b.yaml"));
        assert_eq!(flags.root_dir, None, "the next flag is not its value");
        assert_eq!(flags.eviction_hard.as_deref(), Some("memory.available<5%"));
    }

    #[test]
    fn flags_that_k3s_hands_on() {
        let line = "/usr/local/bin/k3s server --config /etc/rancher/k3s/config.yaml \
                    --kubelet-arg=eviction-hard=memory.available<200Mi --kubelet-arg root-dir=/data/kubelet";
        let flags = flags(&words(line));
        assert_eq!(flags.config, None);
        assert_eq!(flags.eviction_hard.as_deref(), Some("memory.available<200Mi"));
        assert_eq!(flags.root_dir.as_deref(), Some("/data/kubelet"));
    }

    #[test]
    fn a_file_of_flags() {
        let text = "# comment\n--eviction-hard=\"memory.available<100Mi,nodefs.available<1Gi\"\n--root-dir=${SNAP}/kubelet\n";
        let flags = flags(&unquoted(text));
        assert_eq!(flags.eviction_hard.as_deref(), Some("memory.available<100Mi,nodefs.available<1Gi"));
    }
}
