//! The central program: follows every agent, watches the API server, makes a case at each suspicion or loss of
//! Ready, and keeps incidents with every revision of their verdict.

mod gather;
mod incident;
mod known;
mod metrics;
mod pause;
mod replay;
mod serve;
mod store;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod timings;
mod watch;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use jiff::{SignedDuration, Timestamp};
use nodewhy_clock::Clock;
use tokio::task::JoinSet;

use crate::incident::{Diagnosis, Judge};
use crate::known::Shared;
use crate::metrics::Metrics;
pub use crate::replay::{Replay, ReplayError};
use crate::store::{Ledger, opener};
pub use crate::timings::Timings;
use crate::watch::{ClusterView, Watched};

/// Everything that the aggregator can be told.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The Unix socket (mode 0600) that the API is served on; `None`: it is not served.
    pub socket: Option<PathBuf>,
    /// The agents to follow.
    pub agents: Vec<AgentAddress>,
    /// The cluster to watch; `None`: no cluster, facts are missing and say so.
    pub cluster: Option<ClusterAddress>,
    /// The file of the embedded store; `None`: in memory.
    pub store: Option<PathBuf>,
    /// How long things may take.
    pub timings: Timings,
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

/// Runs the aggregator until `stop` is done. A store that does not work is not an error: incidents are then kept in
/// memory, and the log, `/readyz` and a metric say so.
///
/// # Errors
/// A setting cannot be met: the socket cannot be bound, the kubeconfig cannot be read, the store's folder is not
/// there, or one node has two agents.
pub async fn run(settings: Settings, clock: Clock, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    run_with(settings, clock, stop, diagnosis()).await
}

/// The pure core that production uses.
fn diagnosis() -> Diagnosis {
    Diagnosis { explain: nodewhy_diagnosis::explain, causes: || nodewhy_diagnosis::causes::ALL.to_vec() }
}

async fn run_with(
    settings: Settings,
    clock: Clock,
    stop: impl Future<Output = ()>,
    diagnosis: Diagnosis,
) -> anyhow::Result<()> {
    let timings = settings.timings;
    if let Some(folder) = settings.store.as_deref().and_then(|path| path.parent())
        && !folder.as_os_str().is_empty()
        && !folder.is_dir()
    {
        anyhow::bail!(
            "the store's folder {} is not there: make it, or name another --store",
            folder.display()
        );
    }
    let metrics = Arc::new(Metrics::new().context("making the metrics")?);
    let ledger = Ledger::start(opener(settings.store)).await.context("starting the store's thread")?;
    let ledger = Arc::new(ledger);
    let shared = Arc::new(Shared::default());
    for address in &settings.agents {
        let twice = shared.lock().agents.insert(address.node.clone(), Default::default()).is_some();
        anyhow::ensure!(!twice, "two agents are named for the node {}: name one", address.node);
    }
    let mut stop = std::pin::pin!(stop);
    let client = match &settings.cluster {
        Some(address) => tokio::select! {
            client = watch::client(address) => Some(client?),
            () = &mut stop => return Ok(()),
        },
        None => None,
    };
    if client.is_some() {
        let old_after = SignedDuration::try_from(timings.view_old).unwrap_or(SignedDuration::MAX);
        shared.lock().cluster = ClusterView::Watched(Box::new(Watched::new(old_after)));
    }
    let judge = Arc::new(Judge::new(
        shared.clone(),
        ledger.clone(),
        metrics.clone(),
        clock.clone(),
        timings,
        diagnosis,
    ));
    let (stop_serving, stopping) = tokio::sync::watch::channel(false);
    let server = match &settings.socket {
        Some(path) => Some(serve::serve(path, serve::Served { judge: judge.clone() }, stopping).await?),
        None => None,
    };
    let mut tasks = JoinSet::new();
    for address in settings.agents {
        let (shared, metrics, clock) = (shared.clone(), metrics.clone(), clock.clone());
        tasks.spawn(async move {
            let follower = gather::Follower {
                address: &address,
                shared: &shared,
                metrics: &metrics,
                clock: &clock,
                timings: &timings,
            };
            follower.follow().await;
        });
    }
    if let Some(client) = client {
        let (shared, metrics, clock) = (shared.clone(), metrics.clone(), clock.clone());
        tasks.spawn(async move {
            let follower = watch::Follower {
                client,
                shared: &shared,
                metrics: &metrics,
                clock: &clock,
                timings: &timings,
            };
            watch::follow(follower).await;
        });
    }
    tasks.spawn(async move { judge.run().await });
    let server = server.map(tokio::spawn);
    loop {
        tokio::select! {
            () = &mut stop => break,
            // These never end by themselves: one that did has a fault of ours, which must not be silent.
            Some(ended) = tasks.join_next() => tracing::error!(?ended, "a part of the aggregator ended"),
        }
    }
    if stop_serving.send(true).is_err() {
        tracing::debug!("nobody serves");
    }
    if let Some(server) = server {
        server.await.context("serving")?;
    }
    tasks.shutdown().await;
    ledger.flush().await;
    Ok(())
}

/// So long before an instant, or the beginning of time.
fn before(now: Timestamp, duration: Duration) -> Timestamp {
    now.checked_sub(duration).unwrap_or(Timestamp::MIN)
}
