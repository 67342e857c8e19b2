//! The agent: reads the node, says what is abnormal, serves it.
//!
//! The way of a sample: [`host`] → [`collect`] (open, read, parse, detect) → [`schedule`] (one thread a collector) →
//! [`findings`] and [`events`] on the [`board`] → [`serve`].

pub mod apart;
pub mod board;
pub mod collect;
pub mod collector;
pub mod cri;
pub mod distribution;
pub mod doctor;
pub mod events;
pub mod findings;
#[cfg(fuzzing)]
mod fuzz;
pub mod host;
pub mod log;
pub mod memory_lock;
pub mod metrics;
pub mod node;
pub mod once;
pub mod promtext;
pub mod schedule;
pub mod serve;
pub mod settings;
mod storm;
pub mod thresholds;
pub mod ticks;
pub mod whose;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nodewhy_clock::Clock;

use crate::board::Board;
use crate::collect::COLLECTORS;
use crate::host::Host;
use crate::node::Identity;
use crate::schedule::Schedule;
use crate::serve::{Api, Listeners};
use crate::settings::Settings;
use crate::thresholds::follow::{Follow, follow};

/// How often the board looks for reads that hang and for steps of the wall clock.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// A running agent: its collectors' threads, and the board that they write.
pub struct Agent {
    host: Host,
    board: Arc<Board>,
    identity: Identity,
    _schedule: Schedule,
    _follow: Follow,
}

impl Agent {
    /// Starts the collectors.
    ///
    /// # Errors
    /// The settings make no sense; the host's root is no folder; the kernel gives no thread or no descriptor.
    pub fn start(settings: &Settings, clock: Clock) -> anyhow::Result<Agent> {
        settings.check()?;
        let host = Host::new(&settings.host_root, clock.clone(), settings.places.clone());
        // A mistyped root would look like a node on which nothing is.
        if !host.stat("/").is_ok_and(|stat| stat.is_dir) {
            let root = host.root().display();
            anyhow::bail!("no folder {root} to read the host from: mount the host there, or see --host-root");
        }
        // Now, for a node without free process ids gives no thread later.
        host::process::start_reader().context("cannot start the reader of command lines")?;
        let identity = Identity::read(&host, settings.node_name.as_deref());
        let enabled = |name: &str| !settings.disabled.contains(name);
        let boot_id = identity.boot_id().map(str::to_owned);
        let board = Arc::new(Board::new(identity.name().to_owned(), boot_id, clock, COLLECTORS, enabled));
        let (thresholds, follow) =
            follow(&host, settings.thresholds.clone()).context("cannot follow the kubelet's settings")?;
        let schedule = Schedule::start(&board, &host, &thresholds).context("cannot start the collectors")?;
        Ok(Agent { host, board, identity, _schedule: schedule, _follow: follow })
    }

    /// What is known now.
    pub fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// Which node this is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The node, as it can be read.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The API over what is known.
    ///
    /// # Errors
    /// The kernel gives no thread.
    pub fn api(&self) -> std::io::Result<Api> {
        Api::new(self.board.clone(), self.identity.clone(), &self.host)
    }

    /// Looks after the collectors: reads that hang, steps of the clock. Never ends.
    pub async fn watch(&self) {
        loop {
            self.board.watch();
            self.board.clock().sleep(WATCH_EVERY).await;
        }
    }
}

/// Runs the agent until `stop` is done: collectors on their threads, the API on this runtime.
///
/// # Errors
/// A setting cannot be met: the socket cannot be bound, the token cannot be read.
pub async fn run(settings: Settings, clock: Clock, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    let listeners = Listeners::bind(&settings.listen()).await?;
    let agent = Agent::start(&settings, clock)?;
    tracing::info!(
        node = agent.identity.name(),
        socket = ?settings.socket,
        listen = ?listeners.address(),
        metrics_listen = ?listeners.metrics_address(),
        "the agent reads this node"
    );
    let api = Arc::new(agent.api().context("cannot start the threads of the API")?);
    tokio::select! {
        () = listeners.serve(api) => {}
        () = agent.watch() => {}
        () = stop => {}
    }
    Ok(())
}
