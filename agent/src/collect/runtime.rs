//! Not written yet.

use std::time::Duration;

use serde::Serialize;

use crate::collector::{Collector, Noticed, Pair, never_woken};
use crate::host::{Host, ReadError};
use crate::metrics::Sink;
use crate::thresholds::Thresholds;

/// Not written yet.
pub static COLLECTOR: Collector<Source, Reading> = Collector {
    name: "runtime",
    every: Duration::from_secs(1),
    deadline: Duration::from_secs(2),
    open,
    read,
    wake: never_woken,
    summary,
    metrics,
    detect,
};

/// Kept between reads.
#[derive(Debug)]
pub struct Source;

/// One reading.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reading {}

fn open(_host: &Host) -> Result<Source, ReadError> {
    Ok(Source)
}

fn read(_source: &mut Source, _host: &Host) -> Result<Reading, ReadError> {
    Err(ReadError::absent("not written yet"))
}

fn summary(_reading: &Reading) -> String {
    String::new()
}

fn metrics(_reading: &Reading, _sink: &mut Sink) {}

fn detect(_pair: Pair<'_, Reading>, _thresholds: &Thresholds, _noticed: &mut Noticed) {}
