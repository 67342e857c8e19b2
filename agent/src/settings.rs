//! What the agent is told: flags, environment, one TOML file.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::host::Places;

/// Everything that the agent can be told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The node's name; the host's name where it is not given.
    pub node_name: Option<String>,
    /// The folder that the host is read from.
    pub host_root: PathBuf,
    /// The Unix socket (mode 0600) that the API is served on.
    pub socket: Option<PathBuf>,
    /// The loopback address that the API is served on, with the token.
    pub listen: Option<SocketAddr>,
    /// The file that holds the bearer token for `listen`.
    pub token_file: Option<PathBuf>,
    /// The collectors that are switched off.
    pub disabled: BTreeSet<String>,
    /// Where things stand on this node.
    pub places: Places,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            node_name: None,
            host_root: "/".into(),
            socket: None,
            listen: None,
            token_file: None,
            disabled: BTreeSet::new(),
            places: Places::default(),
        }
    }
}
