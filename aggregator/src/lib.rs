//! The central program: follows every agent, watches the API server, makes a case at each suspicion or loss of
//! Ready, and keeps incidents with every revision of their verdict.

use std::future::Future;
use std::path::PathBuf;

use nodewhy_clock::Clock;

/// Everything that the aggregator can be told.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The Unix socket (mode 0600) that the API is served on.
    pub socket: Option<PathBuf>,
    /// The agents to follow.
    pub agents: Vec<AgentAddress>,
    /// The cluster to watch; `None`: no cluster, facts are missing and say so.
    pub cluster: Option<ClusterAddress>,
    /// The file of the embedded store; `None`: in memory.
    pub store: Option<PathBuf>,
}

/// Where an agent answers.
#[derive(Clone, Debug)]
pub struct AgentAddress {
    /// The node that it must be on; what it says of another is dropped and counted.
    pub node: String,
    /// Its Unix socket.
    pub socket: PathBuf,
}

/// Which cluster to watch. Never chosen unasked.
#[derive(Clone, Debug, Default)]
pub struct ClusterAddress {
    /// The kubeconfig; `None`: the usual place.
    pub kubeconfig: Option<PathBuf>,
    /// The context; `None`: the kubeconfig's current one.
    pub context: Option<String>,
}

/// Runs the aggregator until `stop` is done.
///
/// # Errors
/// A setting cannot be met: the socket cannot be bound, the kubeconfig cannot be read, the store cannot be opened.
pub async fn run(_settings: Settings, _clock: Clock, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    stop.await;
    Ok(())
}
