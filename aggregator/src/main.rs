//! `nodewhy-aggregator`: settings, runtime, signals.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::Context;
use clap::Parser;
use nodewhy_aggregator::{AgentAddress, ClusterAddress, Settings, run};
use nodewhy_clock::Clock;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Follows nodewhy's agents, watches a cluster where it is told to, and keeps incidents with their causes.
///
/// It only reads: from the agents, and from the API server. Agents are reached over Unix sockets on this machine;
/// agents on other machines (TLS) are not supported yet.
#[derive(Parser)]
#[command(name = "nodewhy-aggregator", version)]
struct Arguments {
    /// The Unix socket to serve the API on (mode 0600).
    #[arg(long, env = "NODEWHY_AGGREGATOR_SOCKET", default_value = "/run/nodewhy/aggregator.sock")]
    socket: PathBuf,

    /// An agent to follow: its node's name and its socket. May be given again; in the environment separated by commas.
    #[arg(
        long = "agent",
        value_name = "NODE=SOCKET",
        env = "NODEWHY_AGGREGATOR_AGENTS",
        value_delimiter = ','
    )]
    agents: Vec<Agent>,

    /// Watch the cluster of this kubeconfig. Without this and --context no cluster is watched.
    #[arg(long, env = "NODEWHY_AGGREGATOR_KUBECONFIG")]
    kubeconfig: Option<PathBuf>,

    /// Watch the cluster of this context of the kubeconfig.
    #[arg(long, env = "NODEWHY_AGGREGATOR_CONTEXT")]
    context: Option<String>,

    /// Keep incidents in this SQLite file. Without it they are kept in memory.
    #[arg(long, env = "NODEWHY_AGGREGATOR_STORE")]
    store: Option<PathBuf>,
}

/// `NODE=SOCKET`.
#[derive(Clone)]
struct Agent(AgentAddress);

impl FromStr for Agent {
    type Err = String;

    fn from_str(text: &str) -> Result<Agent, String> {
        match text.split_once('=') {
            Some((node, socket)) if !node.is_empty() && !socket.is_empty() => {
                Ok(Agent(AgentAddress { node: node.to_owned(), socket: PathBuf::from(socket) }))
            }
            _ => Err("expected NODE=SOCKET, as in worker-7=/run/nodewhy/agent.sock".to_owned()),
        }
    }
}

impl Arguments {
    fn settings(self) -> Settings {
        // A cluster is watched only where somebody said so: KUBECONFIG in the environment alone is no such word.
        let asked = self.kubeconfig.is_some() || self.context.is_some();
        Settings {
            socket: Some(self.socket),
            agents: self.agents.into_iter().map(|agent| agent.0).collect(),
            cluster: asked.then_some(ClusterAddress { kubeconfig: self.kubeconfig, context: self.context }),
            store: self.store,
            ..Settings::default()
        }
    }
}

fn main() -> ExitCode {
    let settings = Arguments::parse().settings();
    let ansi = std::io::stderr().is_terminal();
    // kube says at each try that the API server is not there; we say it once, and that it is back.
    let levels = Targets::new().with_default(LevelFilter::INFO).with_target("kube_client", LevelFilter::OFF);
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(ansi).finish().with(levels).init();
    let ended = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting tokio's runtime")
        .and_then(|runtime| {
            let ended = runtime.block_on(until_a_signal(settings));
            // A credential plugin that hangs does not keep us.
            runtime.shutdown_background();
            ended
        });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nodewhy-aggregator: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn until_a_signal(settings: Settings) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("catching SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("catching SIGINT")?;
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
    };
    run(settings, Clock::system(), stop).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_never_chosen_unasked() {
        let settings = |arguments: &[&str]| {
            Arguments::try_parse_from([&["nodewhy-aggregator"], arguments].concat()).map(Arguments::settings)
        };
        assert!(settings(&[]).unwrap().cluster.is_none());
        let context = settings(&["--context", "lab"]).unwrap().cluster.unwrap();
        assert_eq!((context.kubeconfig, context.context.as_deref()), (None, Some("lab")));
        let agents = settings(&["--agent", "a=/x,b=/y", "--agent", "c=/z"]).unwrap().agents;
        assert_eq!(agents.iter().map(|agent| agent.node.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert!(settings(&["--agent", "/x"]).is_err());
    }
}
