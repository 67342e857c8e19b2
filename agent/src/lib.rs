//! The agent: reads the node, says what is abnormal, serves it.
//!
//! The way of a sample: [`host`] → [`collect`] (open, read, parse, detect) → [`schedule`] (one thread a collector) →
//! [`findings`] and [`events`] on the [`board`] → [`serve`].

pub mod board;
pub mod collect;
pub mod collector;
pub mod events;
pub mod findings;
pub mod host;
pub mod metrics;
pub mod node;
pub mod once;
pub mod schedule;
pub mod serve;
pub mod settings;
pub mod thresholds;

use std::future::Future;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context;
use nodewhy_clock::Clock;

use crate::board::Board;
use crate::collect::COLLECTORS;
use crate::host::Host;
use crate::node::Identity;
use crate::schedule::{Schedule, SharedThresholds};
use crate::serve::{Api, Listeners};
use crate::settings::Settings;
use crate::thresholds::{Overrides, Thresholds};

/// How often the board looks for reads that hang and for steps of the wall clock.
const WATCH_EVERY: Duration = Duration::from_millis(500);
/// How often the kubelet's settings are looked at again.
const THRESHOLDS_EVERY: Duration = Duration::from_secs(30);

/// A running agent: its collectors' threads, and the board that they write.
pub struct Agent {
    board: Arc<Board>,
    identity: Identity,
    host: Host,
    thresholds: SharedThresholds,
    /// What the settings say over whatever the kubelet is configured with.
    set: Overrides,
    _schedule: Schedule,
}

impl Agent {
    /// Starts the collectors.
    ///
    /// # Errors
    /// The kernel gives no thread or no descriptor.
    pub fn start(settings: &Settings, clock: Clock) -> anyhow::Result<Agent> {
        let host = Host::new(&settings.host_root, clock.clone(), settings.places.clone());
        let identity = Identity::read(&host, settings.node_name.as_deref());
        let enabled = |name: &str| !settings.disabled.contains(name);
        let boot_id = identity.boot_id().map(str::to_owned);
        let board = Arc::new(Board::new(identity.name().to_owned(), boot_id, clock, COLLECTORS, enabled));
        let thresholds = Arc::new(RwLock::new(settings.thresholds.over(Thresholds::default())));
        let schedule = Schedule::start(&board, &host, &thresholds).context("cannot start the collectors")?;
        let set = settings.thresholds;
        Ok(Agent { board, identity, host, thresholds, set, _schedule: schedule })
    }

    /// What is known now.
    pub fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// Which node this is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Looks after the collectors: reads that hang, steps of the clock, the kubelet's settings. Never ends.
    pub async fn watch(&self) {
        let mut next_thresholds = self.board.clock().since_boot();
        loop {
            self.board.watch();
            if self.board.clock().since_boot() >= next_thresholds {
                next_thresholds = self.board.clock().since_boot() + THRESHOLDS_EVERY;
                let (host, shared, set) = (self.host.clone(), self.thresholds.clone(), self.set);
                // Apart: the kubelet's file may stand on a disk that hangs. One in flight is awaited nowhere.
                std::mem::drop(tokio::task::spawn_blocking(move || {
                    let read = set.over(thresholds::read(&host).thresholds);
                    *shared.write().unwrap_or_else(PoisonError::into_inner) = read;
                }));
            }
            self.board.clock().sleep(WATCH_EVERY).await;
        }
    }
}

/// Runs the agent until `stop` is done: collectors on their threads, the API on this runtime.
///
/// # Errors
/// A setting cannot be met: the socket cannot be bound, the token cannot be read.
pub async fn run(settings: Settings, clock: Clock, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    let token = settings.token()?;
    let listeners = Listeners::bind(settings.socket.as_deref(), settings.listen, token).await?;
    let agent = Agent::start(&settings, clock)?;
    tracing::info!(
        node = agent.identity.name(),
        socket = ?settings.socket,
        listen = ?listeners.address(),
        "the agent reads this node"
    );
    let api = Arc::new(Api { board: agent.board.clone(), identity: agent.identity.clone() });
    tokio::select! {
        () = listeners.serve(api) => {}
        () = agent.watch() => {}
        () = stop => {}
    }
    Ok(())
}
