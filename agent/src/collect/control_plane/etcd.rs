//! etcd's own metrics, and what its command line says of where they are and where its data is.
//!
//! Families: etcd's `metrics.go` files; the histograms are of one interval here, since etcd's own run from its start.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::Serialize;

use crate::promtext::{Histogram, Part, Reader, Sample};

/// Latencies are of so much time at most.
pub(super) const WINDOW: Duration = Duration::from_secs(60);

/// Fewer observations say nothing: then a longer time is looked at.
pub(super) const FEWEST: f64 = 10.0;

const FSYNC: &str = "etcd_disk_wal_fsync_duration_seconds";
const COMMIT: &str = "etcd_disk_backend_commit_duration_seconds";
const ROUND_TRIP: &str = "etcd_network_peer_round_trip_time_seconds";

pub(super) const WANTED: &[&str] = &[
    FSYNC,
    COMMIT,
    ROUND_TRIP,
    "etcd_server_has_leader",
    "etcd_server_leader_changes_seen_total",
    "etcd_server_slow_apply_total",
    "etcd_server_heartbeat_send_failures_total",
    "etcd_server_proposals_pending",
    "etcd_server_proposals_failed_total",
    "etcd_mvcc_db_total_size_in_bytes",
    "etcd_mvcc_db_total_size_in_use_in_bytes",
    "etcd_server_quota_backend_bytes",
];

/// What etcd says of itself. What it did not say is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Said {
    /// Whether this member knows a leader.
    pub has_leader: Option<bool>,
    /// Changes of the leader since this member began.
    pub leader_changes_total: Option<f64>,
    /// Applies that took more than 100 ms.
    pub slow_applies_total: Option<f64>,
    /// Heartbeats that were sent late: its own disk or processor was too slow.
    pub heartbeat_send_failures_total: Option<f64>,
    /// Proposals that wait for agreement.
    pub proposals_pending: Option<f64>,
    /// Proposals that failed.
    pub proposals_failed_total: Option<f64>,
    /// The database's file.
    pub db_bytes: Option<f64>,
    /// Of which in use; the rest is freed by defragmenting.
    pub db_in_use_bytes: Option<f64>,
    /// The file may not grow past this: then etcd only reads.
    pub quota_bytes: Option<f64>,
    #[serde(skip)]
    pub(super) fsync: Histogram,
    #[serde(skip)]
    pub(super) commit: Histogram,
    #[serde(skip)]
    pub(super) round_trip: Histogram,
}

/// A histogram over an interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// Nine of ten were not slower.
    pub p90_seconds: f64,
    /// 99 of 100 were not slower. Of few observations it is no more than the slowest's bucket.
    pub p99_seconds: f64,
    /// The mean.
    pub mean_seconds: Option<f64>,
    /// How many.
    pub count: f64,
    /// Within this time.
    pub window_seconds: f64,
}

/// Gathers what an answer says, piece by piece.
pub(super) struct Gathering {
    reader: Option<Reader>,
    said: Said,
}

impl Gathering {
    pub(super) fn new() -> Gathering {
        Gathering { reader: Some(Reader::new(WANTED)), said: Said::default() }
    }

    pub(super) fn feed(&mut self, piece: &[u8]) {
        let said = &mut self.said;
        if let Some(reader) = &mut self.reader {
            reader.feed(piece, &mut |sample| take(said, sample));
        }
    }

    /// What it said; an answer without one sample of etcd's is none of etcd's.
    pub(super) fn finish(mut self) -> Result<Said, String> {
        let counted = self.reader.take().map(Reader::finish).unwrap_or_default();
        match counted.samples {
            0 => Err(format!("its {} lines hold no metric of etcd's", counted.lines)),
            _ => Ok(self.said),
        }
    }
}

fn take(said: &mut Said, sample: &Sample<'_>) {
    let histogram = match sample.family {
        FSYNC => Some(&mut said.fsync),
        COMMIT => Some(&mut said.commit),
        ROUND_TRIP => Some(&mut said.round_trip),
        _ => None,
    };
    if let Some(histogram) = histogram {
        histogram.add(sample.part, sample.value);
        return;
    }
    if sample.part != Part::Value || !sample.value.is_finite() {
        return;
    }
    let value = Some(sample.value);
    match sample.family {
        "etcd_server_has_leader" => said.has_leader = Some(sample.value > 0.0),
        "etcd_server_leader_changes_seen_total" => said.leader_changes_total = value,
        "etcd_server_slow_apply_total" => said.slow_applies_total = value,
        "etcd_server_heartbeat_send_failures_total" => said.heartbeat_send_failures_total = value,
        "etcd_server_proposals_pending" => said.proposals_pending = value,
        "etcd_server_proposals_failed_total" => said.proposals_failed_total = value,
        "etcd_mvcc_db_total_size_in_bytes" => said.db_bytes = value,
        "etcd_mvcc_db_total_size_in_use_in_bytes" => said.db_in_use_bytes = value,
        "etcd_server_quota_backend_bytes" => said.quota_bytes = value,
        _ => {}
    }
}

/// The answers of the last minute, for latencies.
#[derive(Debug, Default)]
pub(super) struct History(VecDeque<(Duration, Said)>);

/// The three latencies; `None`: nothing happened, or there is nothing to compare with yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Latencies {
    /// A write of the log to the disk: every change of the cluster waits for it.
    pub wal_fsync: Option<Latency>,
    /// A write of the database.
    pub backend_commit: Option<Latency>,
    /// To the other members and back.
    pub peer_round_trip: Option<Latency>,
}

impl History {
    /// Takes an answer, at this time since boot.
    pub(super) fn take(&mut self, at: Duration, said: &Said) -> Latencies {
        // Smaller counts: it began anew.
        if self.0.back().is_some_and(|(_, before)| said.fsync.since(&before.fsync).is_none()) {
            self.0.clear();
        }
        while self.0.front().is_some_and(|(then, _)| at.saturating_sub(*then) > WINDOW) && self.0.len() > 1 {
            self.0.pop_front();
        }
        let latencies = Latencies {
            wal_fsync: self.latency(at, said, |said| &said.fsync),
            backend_commit: self.latency(at, said, |said| &said.commit),
            peer_round_trip: self.latency(at, said, |said| &said.round_trip),
        };
        self.0.push_back((at, said.clone()));
        latencies
    }

    /// Since the newest answer that enough happened after: what was fast a minute ago may not hide what is slow now.
    fn latency(&self, at: Duration, said: &Said, of: impl Fn(&Said) -> &Histogram) -> Option<Latency> {
        let mut longest = None;
        for (then, before) in self.0.iter().rev() {
            let within = of(said).since(of(before))?;
            let Some(count) = within.count.filter(|count| *count > 0.0) else { continue };
            let (p90_seconds, p99_seconds) = (within.quantile(0.9)?, within.quantile(0.99)?);
            let window_seconds = at.saturating_sub(*then).as_secs_f64();
            let mean_seconds = within.mean();
            longest = Some(Latency { p90_seconds, p99_seconds, mean_seconds, count, window_seconds });
            if count >= FEWEST {
                break;
            }
        }
        longest
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// A flag's value, as `--flag=value` or `--flag value`.
pub(super) fn flag<'a>(arguments: &'a [String], name: &str) -> Option<&'a str> {
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        // Go takes one dash or two.
        let Some(bare) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else { continue };
        match bare.split_once('=') {
            Some((known, value)) if known == name => return Some(value),
            None if bare == name => return arguments.next().map(String::as_str),
            _ => {}
        }
    }
    None
}

/// Where the metrics answer without TLS, by the command line; else why they do not.
pub(super) fn metrics_address(arguments: &[String]) -> Result<SocketAddr, String> {
    let plain = |urls: &str| urls.split(',').find_map(address);
    if let Some(address) = flag(arguments, "listen-metrics-urls").and_then(plain) {
        return Ok(address);
    }
    match flag(arguments, "listen-client-urls") {
        Some(urls) => plain(urls).ok_or_else(|| {
            "etcd answers with client certificates only: give it --listen-metrics-urls=http://127.0.0.1:2381, or name the \
             place with etcd_metrics"
                .to_owned()
        }),
        None if flag(arguments, "config-file").is_some() => Err(
            "etcd has its settings in a file (--config-file): name the place of its metrics with etcd_metrics".to_owned(),
        ),
        // etcd's own default; the environment (ETCD_…) may say otherwise.
        None => Ok(SocketAddr::from(([127, 0, 0, 1], 2379))),
    }
}

/// `http://HOST:PORT`, as seen from this node.
fn address(url: &str) -> Option<SocketAddr> {
    let rest = url.trim().strip_prefix("http://")?;
    let rest = rest.split('/').next()?;
    let address: SocketAddr = match rest.strip_prefix("localhost:") {
        Some(port) => SocketAddr::from((Ipv4Addr::LOCALHOST, port.parse().ok()?)),
        None => rest.parse().ok()?,
    };
    Some(SocketAddr::new(from_here(address.ip()), address.port()))
}

/// Who listens on all addresses is asked on the loopback's.
pub(super) fn from_here(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        ip => ip,
    }
}
