//! What the agent is told: flags, then environment, then one TOML file, then defaults.
//!
//! One struct is both the flags and the file, so that neither can know what the other does not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::collect::COLLECTORS;
use crate::distribution::DISTRIBUTIONS;
use crate::host::dial::Target;
use crate::host::{Places, is_none_socket};
use crate::serve::{CredentialFiles, DEFAULT_PORT, DEFAULT_SOCKET, Listen};
use crate::thresholds::Overrides;

/// Everything that the agent can be told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The node's name; the host's name where it is not given.
    pub node_name: Option<String>,
    /// The folder that the host is read from.
    pub host_root: PathBuf,
    /// The Unix socket (mode 0600) that the API is served on.
    pub socket: Option<PathBuf>,
    /// The address that the API is served on too, to those who show a token or a certificate.
    pub listen: Option<SocketAddr>,
    /// The address that serves metrics and health alone, to whoever asks.
    pub metrics_listen: Option<SocketAddr>,
    /// What the clients of `listen` must show.
    pub credentials: CredentialFiles,
    /// The collectors that are switched off.
    pub disabled: BTreeSet<String>,
    /// Whether the agent's program keeps its own memory from being evicted.
    pub lock_memory: bool,
    /// Where things stand on this node.
    pub places: Places,
    /// Limits that are set here, over the kubelet's and over nodewhy's own.
    pub thresholds: Overrides,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            node_name: None,
            host_root: "/".into(),
            socket: None,
            listen: None,
            metrics_listen: None,
            credentials: CredentialFiles::default(),
            disabled: BTreeSet::new(),
            lock_memory: false,
            places: Places::default(),
            thresholds: Overrides::default(),
        }
    }
}

/// Reads this node and says what is abnormal, as metrics, as JSON, as events.
#[derive(Debug, Parser)]
#[command(name = "nodewhy-agent", version, max_term_width = 100)]
pub struct Cli {
    /// What to do; without one the agent runs until it is told to stop.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The TOML file with settings: the same names as the flags, with `_` for `-`.
    #[arg(long, env = "NODEWHY_CONFIG", value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Say whether flags, environment and file can be understood, print what they come to, and end.
    #[arg(long)]
    pub check_config: bool,
    /// How much is logged: error, warn, info, debug, trace; by default info, for once and doctor warn.
    #[arg(long, env = "NODEWHY_LOG", global = true)]
    pub log: Option<tracing::Level>,
    /// The rest.
    #[command(flatten)]
    pub told: Told,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Read everything once, print it with what is abnormal first, and end.
    Once {
        /// For people, or the documents.
        #[arg(long, short, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Open /dev/kmsg for an agent that may not, hand it over a Unix socket, and do nothing else.
    ///
    /// For a container of its own that is privileged, so that the agent's need not be. It reads nothing.
    KmsgHelper {
        /// The socket; its folder is shared with the agent's container.
        #[arg(long, value_name = "PATH", default_value = crate::host::kmsg_helper::SOCKET)]
        socket: PathBuf,
    },
    /// Say which rights, mounts and kernel features this agent has and lacks, and what is lost by each.
    ///
    /// Ends with 0 if nothing is lacking, with 1 if something is, with 2 if it could not look.
    Doctor {
        /// For people, or the documents.
        #[arg(long, short, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// What flags, environment or file say; `None`: nothing.
#[derive(Clone, Debug, Default, Args, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Told {
    /// The node's name in the cluster [default: the host's name]
    #[arg(long, env = "NODEWHY_NODE_NAME", global = true)]
    pub node_name: Option<String>,
    /// The folder that the host is read from; in a container where the host is mounted [default: /]
    #[arg(long, env = "NODEWHY_HOST_ROOT", value_name = "DIR", global = true)]
    pub host_root: Option<PathBuf>,
    /// The Unix socket (mode 0600) to serve on [default: /run/nodewhy/agent.sock]
    #[arg(long, env = "NODEWHY_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The address to serve on too, as 127.0.0.1[:10977]; needs --token-file or TLS with --tls-client-ca-file, and TLS
    /// where it is not loopback
    #[arg(long, env = "NODEWHY_LISTEN", value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// The address that serves /metrics, /healthz and /readyz alone, to whoever asks
    #[arg(long, env = "NODEWHY_METRICS_LISTEN", value_name = "ADDRESS")]
    pub metrics_listen: Option<String>,
    /// The file with the bearer token for --listen; readable by its owner alone; read again when it changes
    #[arg(long, env = "NODEWHY_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The certificate chain of --listen, PEM; read again when it changes
    #[arg(long, env = "NODEWHY_TLS_CERT_FILE", value_name = "FILE")]
    pub tls_cert_file: Option<PathBuf>,
    /// Its private key, PEM; readable by its owner alone
    #[arg(long, env = "NODEWHY_TLS_KEY_FILE", value_name = "FILE")]
    pub tls_key_file: Option<PathBuf>,
    /// The authorities of the clients' certificates, PEM: with it every client must show one
    #[arg(long, env = "NODEWHY_TLS_CLIENT_CA_FILE", value_name = "FILE")]
    pub tls_client_ca_file: Option<PathBuf>,
    /// Collectors to switch off, separated by commas
    #[arg(long, env = "NODEWHY_DISABLE", value_name = "NAMES", value_delimiter = ',', global = true)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disable: Vec<String>,
    /// Whether to keep the agent's own memory from being evicted (mlockall) [default: true]
    #[arg(long, env = "NODEWHY_LOCK_MEMORY", value_name = "BOOL")]
    pub lock_memory: Option<bool>,
    /// The runtime's CRI socket, or `none` to leave it alone [default: from the kubelet's settings, then the usual places]
    #[arg(long, env = "NODEWHY_RUNTIME_SOCKET", value_name = "PATH", global = true)]
    pub runtime_socket: Option<PathBuf>,
    /// The folder of CNI configurations [default: /etc/cni/net.d]
    #[arg(long, env = "NODEWHY_CNI_CONF_DIR", value_name = "DIR", global = true)]
    pub cni_conf_dir: Option<PathBuf>,
    /// A folder of CNI plugins; may be repeated [default: /opt/cni/bin /usr/lib/cni /usr/libexec/cni]
    #[arg(
        long = "cni-bin-dir",
        env = "NODEWHY_CNI_BIN_DIRS",
        value_name = "DIR",
        value_delimiter = ':',
        global = true
    )]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cni_bin_dirs: Vec<PathBuf>,
    /// Where the kubelet's ping answers [default: from the kubelet's settings, then 127.0.0.1:10248]
    #[arg(long, env = "NODEWHY_KUBELET_HEALTHZ", value_name = "ADDRESS", global = true)]
    pub kubelet_healthz: Option<SocketAddr>,
    /// The kubelet's root folder [default: from the kubelet's flags, then /var/lib/kubelet]
    #[arg(long, env = "NODEWHY_KUBELET_ROOT", value_name = "DIR", global = true)]
    pub kubelet_root: Option<PathBuf>,
    /// Where the kubelet's own API answers [default: from the kubelet's settings, then 127.0.0.1:10250]
    #[arg(long, env = "NODEWHY_KUBELET_API", value_name = "ADDRESS", global = true)]
    pub kubelet_api: Option<SocketAddr>,
    /// The file with the bearer token for the kubelet's API; without it the kubelet's own metrics are not read
    #[arg(long, env = "NODEWHY_KUBELET_TOKEN_FILE", value_name = "FILE", global = true)]
    pub kubelet_token_file: Option<PathBuf>,
    /// Who signed the kubelet's certificate [default: whoever listens must be root's process]
    #[arg(long, env = "NODEWHY_KUBELET_CA_FILE", value_name = "FILE", global = true)]
    pub kubelet_ca_file: Option<PathBuf>,
    /// Which distribution of Kubernetes this is [default: found by its signs]
    #[arg(long, env = "NODEWHY_DISTRIBUTION", value_name = "NAME", global = true)]
    pub distribution: Option<String>,
    /// The API server, as URL or HOST:PORT [default: from the kubelet's kubeconfig, then from its connections]
    #[arg(long, env = "NODEWHY_API_SERVER", value_name = "URL", global = true)]
    pub api_server: Option<String>,
    /// Where etcd's metrics answer without TLS [default: from etcd's --listen-metrics-urls]
    #[arg(long, env = "NODEWHY_ETCD_METRICS", value_name = "ADDRESS", global = true)]
    pub etcd_metrics: Option<SocketAddr>,
    /// Whether metrics have series of each pod too: their number grows with the pods [default: false]
    #[arg(long, env = "NODEWHY_PER_POD_METRICS", value_name = "BOOL")]
    pub per_pod_metrics: Option<bool>,
    /// Limits, in the file alone.
    #[arg(skip)]
    #[serde(default)]
    pub thresholds: Overrides,
}

/// Every key of the file, for naming the nearest one to a mistyped key.
const KEYS: &[&str] = &[
    "node_name",
    "host_root",
    "socket",
    "listen",
    "metrics_listen",
    "token_file",
    "tls_cert_file",
    "tls_key_file",
    "tls_client_ca_file",
    "disable",
    "lock_memory",
    "runtime_socket",
    "cni_conf_dir",
    "cni_bin_dirs",
    "kubelet_healthz",
    "kubelet_root",
    "kubelet_api",
    "kubelet_token_file",
    "kubelet_ca_file",
    "distribution",
    "api_server",
    "etcd_metrics",
    "per_pod_metrics",
    THRESHOLDS,
];
/// The table of limits: in the file alone.
const THRESHOLDS: &str = "thresholds";

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file cannot be read.
    #[error("cannot read {what} {path}: {error}")]
    Unreadable {
        /// What it is.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// The kernel's word.
        error: std::io::Error,
    },
    /// The file is no TOML, or a value has another type.
    #[error("cannot understand {path}: {what}")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and where.
        what: String,
    },
    /// A key or name that nobody knows.
    #[error("{place}: {what} {name:?} is not known; {nearest}")]
    Unknown {
        /// Where it stands.
        place: String,
        /// What it is: `key`, `collector`.
        what: &'static str,
        /// The word.
        name: String,
        /// The nearest known one, or all of them.
        nearest: String,
    },
    /// A value that makes no sense.
    #[error("{0}")]
    Senseless(String),
}

impl Told {
    /// What the file says.
    ///
    /// # Errors
    /// It cannot be read, is no TOML, has an unknown key, or a value of another type.
    pub fn from_file(path: &Path) -> Result<Told, SettingsError> {
        Told::from_toml(&read(path, "the configuration")?, path)
    }

    fn from_toml(text: &str, path: &Path) -> Result<Told, SettingsError> {
        let malformed = |error: toml::de::Error| SettingsError::Malformed {
            path: path.to_owned(),
            what: error.to_string().trim_end().to_owned(),
        };
        let table: BTreeMap<String, toml::Value> = toml::from_str(text).map_err(malformed)?;
        for (key, value) in &table {
            check_known(KEYS.iter().copied(), key, "key", path.display().to_string())?;
            if let (THRESHOLDS, Some(limits)) = (key.as_str(), value.as_table()) {
                let place = format!("{} [{THRESHOLDS}]", path.display());
                for limit in limits.keys() {
                    check_known(Overrides::names(), limit, "limit", place.clone())?;
                }
            }
        }
        toml::from_str(text).map_err(malformed)
    }

    /// This, and where it says nothing, `other`.
    #[must_use]
    pub fn or(self, other: Told) -> Told {
        fn either<T>(mine: Vec<T>, others: Vec<T>) -> Vec<T> {
            if mine.is_empty() { others } else { mine }
        }
        Told {
            node_name: self.node_name.or(other.node_name),
            host_root: self.host_root.or(other.host_root),
            socket: self.socket.or(other.socket),
            listen: self.listen.or(other.listen),
            metrics_listen: self.metrics_listen.or(other.metrics_listen),
            token_file: self.token_file.or(other.token_file),
            tls_cert_file: self.tls_cert_file.or(other.tls_cert_file),
            tls_key_file: self.tls_key_file.or(other.tls_key_file),
            tls_client_ca_file: self.tls_client_ca_file.or(other.tls_client_ca_file),
            disable: either(self.disable, other.disable),
            lock_memory: self.lock_memory.or(other.lock_memory),
            runtime_socket: self.runtime_socket.or(other.runtime_socket),
            cni_conf_dir: self.cni_conf_dir.or(other.cni_conf_dir),
            cni_bin_dirs: either(self.cni_bin_dirs, other.cni_bin_dirs),
            kubelet_healthz: self.kubelet_healthz.or(other.kubelet_healthz),
            kubelet_root: self.kubelet_root.or(other.kubelet_root),
            kubelet_api: self.kubelet_api.or(other.kubelet_api),
            kubelet_token_file: self.kubelet_token_file.or(other.kubelet_token_file),
            kubelet_ca_file: self.kubelet_ca_file.or(other.kubelet_ca_file),
            distribution: self.distribution.or(other.distribution),
            api_server: self.api_server.or(other.api_server),
            etcd_metrics: self.etcd_metrics.or(other.etcd_metrics),
            per_pod_metrics: self.per_pod_metrics.or(other.per_pod_metrics),
            thresholds: other.thresholds,
        }
    }

    /// As settings.
    ///
    /// # Errors
    /// A collector that does not exist, an address that is none, a root that is not absolute.
    pub fn settings(self) -> Result<Settings, SettingsError> {
        // An empty variable of the environment names nothing.
        let disable: BTreeSet<String> = self.disable.into_iter().filter(|name| !name.is_empty()).collect();
        for name in &disable {
            let known = COLLECTORS.iter().map(|collector| collector.name());
            check_known(known, name, "collector", "disable".to_owned())?;
        }
        let usual = Places::default();
        let settings = Settings {
            node_name: self.node_name,
            host_root: self.host_root.unwrap_or_else(|| "/".into()),
            listen: self.listen.as_deref().map(|text| address("listen", text)).transpose()?,
            metrics_listen: self
                .metrics_listen
                .as_deref()
                .map(|text| address("metrics_listen", text))
                .transpose()?,
            socket: Some(self.socket.unwrap_or_else(|| DEFAULT_SOCKET.into())),
            credentials: CredentialFiles {
                token: self.token_file,
                certificate: self.tls_cert_file,
                key: self.tls_key_file,
                client_ca: self.tls_client_ca_file,
            },
            disabled: disable,
            lock_memory: self.lock_memory.unwrap_or(true),
            places: Places {
                runtime_socket: self.runtime_socket,
                cni_conf_dir: self.cni_conf_dir.unwrap_or(usual.cni_conf_dir),
                cni_bin_dirs: if self.cni_bin_dirs.is_empty() {
                    usual.cni_bin_dirs
                } else {
                    self.cni_bin_dirs
                },
                kubelet_healthz: self.kubelet_healthz,
                kubelet_root: self.kubelet_root,
                kubelet_api: self.kubelet_api,
                kubelet_token_file: self.kubelet_token_file,
                kubelet_ca_file: self.kubelet_ca_file,
                distribution: self.distribution,
                netfilter_exact_entries_max: self
                    .thresholds
                    .value("netfilter_exact_entries_max")
                    .map_or(usual.netfilter_exact_entries_max, |entries| entries as u64),
                api_server: self.api_server.as_deref().map(api_server).transpose()?,
                etcd_metrics: self.etcd_metrics,
                per_pod_metrics: self.per_pod_metrics.unwrap_or(false),
            },
            thresholds: self.thresholds,
        };
        settings.check()?;
        Ok(settings)
    }
}

impl Settings {
    /// Whether they make sense, however they were made: by [`Told::settings`], or by a program that runs the agent.
    ///
    /// # Errors
    /// A name that is empty, a path of the host that is not absolute, a limit that is none.
    pub(crate) fn check(&self) -> Result<(), SettingsError> {
        if self.node_name.as_ref().is_some_and(|name| name.trim().is_empty()) {
            return Err(SettingsError::Senseless(
                "node_name is empty: leave it out for the host's name".to_owned(),
            ));
        }
        if self.socket.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            let what = format!("socket is empty: leave it out for {DEFAULT_SOCKET}");
            return Err(SettingsError::Senseless(what));
        }
        let places = &self.places;
        if let Some(name) = &places.distribution {
            let known = DISTRIBUTIONS.iter().map(|distribution| distribution.name);
            check_known(known, name, "distribution", "distribution".to_owned())?;
        }
        let socket = places.runtime_socket.as_ref().filter(|path| !is_none_socket(path));
        let absolute = [
            ("host_root", Some(&self.host_root), "/host"),
            ("runtime_socket", socket, "/run/containerd/containerd.sock"),
            ("cni_conf_dir", Some(&places.cni_conf_dir), "/etc/cni/net.d"),
            ("kubelet_root", places.kubelet_root.as_ref(), "/var/lib/kubelet"),
        ];
        let bin_dirs = places.cni_bin_dirs.iter().map(|dir| ("cni_bin_dirs", Some(dir), "/opt/cni/bin"));
        for (name, path, example) in absolute.into_iter().chain(bin_dirs) {
            if let Some(path) = path.filter(|path| !path.is_absolute()) {
                let what = format!("{name} {:?} must be an absolute path, as {example}", path.display());
                return Err(SettingsError::Senseless(what));
            }
        }
        self.thresholds.check().map_err(SettingsError::Senseless)
    }

    /// Where the API is served, and what clients must show there.
    pub fn listen(&self) -> Listen {
        Listen {
            socket: self.socket.clone(),
            address: self.listen,
            metrics: self.metrics_listen,
            files: self.credentials.clone(),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "settings are the agent's own files, not the node's")]
fn read(path: &Path, what: &'static str) -> Result<String, SettingsError> {
    std::fs::read_to_string(path).map_err(|error| SettingsError::Unreadable {
        what,
        path: path.to_owned(),
        error,
    })
}

fn address(name: &str, text: &str) -> Result<SocketAddr, SettingsError> {
    let alone = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, DEFAULT_PORT));
    text.parse().or(alone).map_err(|_| {
        SettingsError::Senseless(format!(
            "{name} {text:?} is no address: write it as 127.0.0.1:{DEFAULT_PORT}"
        ))
    })
}

fn api_server(text: &str) -> Result<Target, SettingsError> {
    Target::parse(text).ok_or_else(|| {
        SettingsError::Senseless(format!(
            "api_server {text:?} is no address: write it as https://api.example.org:6443 or 192.0.2.10:6443"
        ))
    })
}

fn check_known<'a>(
    known: impl Iterator<Item = &'a str>,
    name: &str,
    what: &'static str,
    place: String,
) -> Result<(), SettingsError> {
    let known: Vec<&str> = known.collect();
    if known.contains(&name) {
        return Ok(());
    }
    let close = |candidate: &&&str| strsim::damerau_levenshtein(candidate, name);
    let nearest = match known.iter().min_by_key(close) {
        Some(nearest) if close(&nearest) <= 4.min(name.len() / 2) => format!("did you mean {nearest:?}?"),
        _ => format!("known are {}", known.join(", ")),
    };
    Err(SettingsError::Unknown { place, what, name: name.to_owned(), nearest })
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    crate::fuzz::done(Told::from_toml(&crate::fuzz::text(bytes), Path::new("/agent.toml")));
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn from(text: &str) -> Result<Told, String> {
        Told::from_toml(text, Path::new("nodewhy.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn every_flag_is_a_key_and_every_key_a_flag() {
        let only_flags = ["config", "check_config", "log", "help", "version"];
        let command = Cli::command();
        let mut flags: Vec<String> = command
            .get_arguments()
            .map(|argument| argument.get_id().to_string())
            .filter(|id| !only_flags.contains(&id.as_str()))
            .collect();
        flags.sort();
        let mut keys: Vec<&str> = KEYS.iter().copied().filter(|key| *key != THRESHOLDS).collect();
        keys.sort_unstable();
        assert_eq!(flags, keys);
        Cli::command().debug_assert();
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_known() {
        assert_eq!(
            from("host_rot = \"/host\"").unwrap_err(),
            "nodewhy.toml: key \"host_rot\" is not known; did you mean \"host_root\"?"
        );
        assert!(from("completely_else = 1").unwrap_err().contains("known are node_name, "));
        assert_eq!(
            from("[thresholds]\nruntime_hung_second = 3").unwrap_err(),
            "nodewhy.toml [thresholds]: limit \"runtime_hung_second\" is not known; did you mean \
             \"runtime_hung_seconds\"?"
        );
        let limits = from("[thresholds]\nruntime_hung_seconds = 3.5").unwrap().settings().unwrap().thresholds;
        assert_eq!(limits.value("runtime_hung_seconds"), Some(3.5));
        assert!(from("host_root = 7").unwrap_err().contains("expected path string"));
        assert!(from("host_root = ").unwrap_err().starts_with("cannot understand nodewhy.toml"));
    }

    #[test]
    fn flags_win_over_the_file() {
        let file = from("node_name = \"file\"\nhost_root = \"/host\"\ndisable = [\"oom\"]").unwrap();
        let flags = Told { node_name: Some("flag".to_owned()), ..Told::default() };
        let settings = flags.or(file).settings().unwrap();
        assert_eq!(settings.node_name.as_deref(), Some("flag"));
        assert_eq!(settings.host_root, Path::new("/host"));
        assert!(settings.disabled.contains("oom"));
    }

    #[test]
    fn senseless_values_are_refused_in_words() {
        let told = |text: &str| from(text).unwrap().settings().unwrap_err().to_string();
        assert_eq!(
            told("disable = [\"presure\"]"),
            "disable: collector \"presure\" is not known; did you mean \"pressure\"?"
        );
        assert!(told("listen = \"here\"").contains("is no address: write it as 127.0.0.1:10977"));
        assert!(told("host_root = \"host\"").contains("must be an absolute path"));
        assert!(told("api_server = \"ftp://api\"").contains("write it as https://api.example.org:6443"));
        // As the kubelet's own flag would have it: taken for a path, it would be a socket that is missing.
        assert!(
            told("runtime_socket = \"unix:///run/containerd/containerd.sock\"")
                .contains("must be an absolute path")
        );
        for empty in ["node_name = \" \"", "socket = \"\"", "cni_conf_dir = \"\"", "cni_bin_dirs = [\"\"]"] {
            assert!(from(empty).unwrap().settings().is_err(), "{empty}");
        }
        for limit in ["memory_full_percent = -5", "io_full_percent = 101", "runtime_hung_seconds = nan"] {
            let error = told(&format!("[thresholds]\n{limit}"));
            assert!(error.starts_with("thresholds: ") && error.contains("must be more than 0"), "{error}");
        }
        assert!(from("disable = [\"\"]").unwrap().settings().unwrap().disabled.is_empty());
        let listen = from("listen = \"127.0.0.1\"").unwrap().settings().unwrap().listen.unwrap();
        assert_eq!(listen.port(), DEFAULT_PORT);
    }
}
