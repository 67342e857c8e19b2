//! The agent: reads the node, says what is abnormal, serves it.
//!
//! The way of a sample: [`host`] → [`collect`] (open, read, parse, detect) → `schedule` (one thread a collector) →
//! `findings` and `events` → `serve`.

pub mod collect;
pub mod collector;
pub mod cri;
pub mod host;
pub mod metrics;
pub mod settings;
pub mod thresholds;

use std::future::Future;

use nodewhy_clock::Clock;

use crate::settings::Settings;

/// Runs the agent until `stop` is done: collectors on their threads, the API on this runtime.
///
/// # Errors
/// A setting cannot be met: the socket cannot be bound, the token cannot be read.
pub async fn run(_settings: Settings, _clock: Clock, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    stop.await;
    Ok(())
}
