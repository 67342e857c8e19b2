//! The connection tracking table: how full it is, what is dropped, who owns it (net/netfilter/nf_conntrack_core.c).
//!
//! When it is full the kernel drops new connections, the kubelet's and the probes' too. Nothing is asked of a node that
//! does not track: asking would load the module.

mod detect;
mod frequent;
mod owners;
mod pods;
mod statistics;
mod top;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::apart::Apart;
use crate::collector::{Collector, never_woken};
use crate::host::module::Module;
use crate::host::netlink::{Netlink, NetworkNamespace, Protocol};
use crate::host::{Host, Kept, ReadError};
use crate::metrics::{Family, Sink};
use owners::Only;
pub use statistics::Statistics;
pub use top::{Row, Top};

/// The table, every second.
pub static COLLECTOR: Collector<Source, Reading> = Collector {
    name: "conntrack",
    every: Duration::from_secs(1),
    deadline: Duration::from_secs(2),
    remembers: false,
    open,
    read,
    wake: never_woken,
    summary,
    families: &[&ENTRIES, &ENTRIES_LIMIT, &BUCKETS, &EVENTS],
    metrics,
    limits: &[&detect::TABLE_FULL, &detect::TABLE_HIGH, &detect::DROPS],
    detect: detect::detect,
    pages: &[],
    asks: &[top::ASK],
};

static ENTRIES: Family =
    Family::gauge("nodewhy_conntrack_entries", "Entries of the connection tracking table.");
static ENTRIES_LIMIT: Family = Family::gauge(
    "nodewhy_conntrack_entries_limit",
    "Entries above which new connections are dropped: nf_conntrack_max.",
);
static BUCKETS: Family = Family::gauge("nodewhy_conntrack_buckets", "Buckets of the table's hash.");
static EVENTS: Family = Family::counter(
    "nodewhy_conntrack_events_total",
    "What conntrack counts on each processor, summed: found, invalid, insert, insert_failed, drop, early_drop and others.",
)
.by(&["event"]);

const SYSCTL: &str = "/proc/sys/net/netfilter";
/// Of process 1's namespace, for any reader.
const STAT: &str = "/proc/1/net/stat/nf_conntrack";
/// From here on the table is dumped by itself, to know its owners before it is full.
const DUMP_FROM_PERCENT: f64 = 80.0;
const DUMP_EVERY: Duration = Duration::from_secs(60);
/// A slope is taken over this time.
const SLOPE_OVER: Duration = Duration::from_secs(60);
const SLOPE_OVER_AT_LEAST: Duration = Duration::from_secs(10);
/// Further away it is no forecast.
const FULL_WITHIN: Duration = Duration::from_secs(3600);

/// What is kept between readings.
pub struct Source {
    way: Way,
    /// Count and its time since boot, the oldest first.
    counts: VecDeque<(Duration, u64)>,
    sum: statistics::Sum,
    before: Option<(Duration, Statistics)>,
    dumps: Option<Apart<Result<top::Told, ReadError>>>,
    dumped: Option<Duration>,
}

enum Way {
    /// The agent is in the node's network namespace.
    Own(Box<Own>),
    /// It is not, or that cannot be told: /proc/1/net is the node's for any reader, but has no limit.
    Stat { why: String },
}

struct Own {
    count: Kept,
    limit: Kept,
    buckets: Option<Kept>,
    /// Or why it cannot be asked.
    netlink: Result<Netlink, String>,
}

/// One reading.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reading {
    /// Entries now.
    pub entries: u64,
    /// `nf_conntrack_max`. `None`: there is no limit (0), or it cannot be read: see `limit_error`.
    pub limit: Option<u64>,
    /// Why there is no limit here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_error: Option<String>,
    /// Entries of the limit, in percent.
    pub used_percent: Option<f64>,
    /// Buckets of the hash.
    pub buckets: Option<u64>,
    /// By how many entries the table grew (or shrank) a second, over the last minute.
    pub entries_per_second: Option<f64>,
    /// When the table is full if it goes on growing so; `None`: not within the hour.
    pub full_in_seconds: Option<f64>,
    /// Counters, summed over the processors.
    pub statistics: Option<Statistics>,
    /// Where they were read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statistics_from: Option<&'static str>,
    /// Why they could not be read, or not over netlink.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statistics_error: Option<String>,
    /// What they grew by a second since the reading before.
    pub per_second: Option<BTreeMap<&'static str, f64>>,
    /// Who owns the entries, once the table was over 80 % full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top: Option<Top>,
    /// Why that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_error: Option<String>,
}

fn not_loaded() -> ReadError {
    ReadError::absent(
        "nf_conntrack is not loaded: nothing on this node tracks connections (no rule of a firewall, no NAT, no \
         kube-proxy asks for it)",
    )
}

/// Whether the table may be asked over netlink from here.
fn may_ask(host: &Host) -> Result<(), ReadError> {
    if !host.exists(format!("{SYSCTL}/nf_conntrack_count"))? {
        return Err(not_loaded());
    }
    host.network_is_hosts().needed_for("the connection tracking table")?;
    host.module("nf_conntrack_netlink").needed_for("nf_conntrack_netlink", "ctnetlink")
}

fn open(host: &Host) -> Result<Source, ReadError> {
    let way = match host.network_is_hosts() {
        NetworkNamespace::Hosts => own(host)?,
        other => {
            let why = other.needed_for("nf_conntrack_max").err().map(|error| error.to_string());
            Way::Stat { why: why.unwrap_or_default() }
        }
    };
    Ok(Source {
        way,
        counts: VecDeque::new(),
        sum: statistics::Sum::default(),
        before: None,
        dumps: None,
        dumped: None,
    })
}

fn own(host: &Host) -> Result<Way, ReadError> {
    let keep = |name: &str| host.keep(format!("{SYSCTL}/{name}"));
    let count = keep("nf_conntrack_count").map_err(|error| match error {
        ReadError::NotFound { .. } => not_loaded(),
        other => other,
    })?;
    let netlink = match host.module("nf_conntrack_netlink") {
        Module::There => Netlink::open(host, Protocol::Netfilter)
            .map_err(|error| error.asking("conntrack's statistics").to_string()),
        other => other
            .needed_for("nf_conntrack_netlink", "ctnetlink")
            .map_or_else(|error| Err(error.to_string()), |()| Err(String::new())),
    };
    let (limit, buckets) = (keep("nf_conntrack_max")?, keep("nf_conntrack_buckets").ok());
    Ok(Way::Own(Box::new(Own { count, limit, buckets, netlink })))
}

fn number(file: &mut Kept) -> Result<u64, ReadError> {
    let path = file.path().to_owned();
    let text = file.read()?;
    // Without its line's end the number may be cut.
    let number = text.strip_suffix('\n').and_then(|line| line.trim().parse().ok());
    number.ok_or_else(|| ReadError::malformed(path, format!("expected a number, found {text:?}")))
}

fn read(source: &mut Source, host: &Host) -> Result<Reading, ReadError> {
    let stat = |host: &Host| {
        let text = host.read(STAT).map_err(|error| match error {
            // Without process 1's folder nothing is known of its modules.
            ReadError::NotFound { .. } if matches!(host.exists("/proc/1/net/dev"), Ok(true)) => not_loaded(),
            other => other,
        })?;
        statistics::parse(&text).map_err(|what| ReadError::malformed(STAT, what))
    };
    let (mut statistics_error, mut limit_error) = (None, None);
    let (entries, limit, buckets, counters, statistics_from);
    match &mut source.way {
        Way::Own(own) => {
            let Own { count, limit: most, buckets: hash, netlink } = own.as_mut();
            entries = number(count)?;
            limit = Some(number(most)?).filter(|limit| *limit > 0);
            if limit.is_none() {
                limit_error = Some("nf_conntrack_max is 0: the kernel sets no limit".to_owned());
            }
            buckets = hash.as_mut().and_then(|file| number(file).ok());
            let asked = match netlink {
                Ok(netlink) => statistics::ask(netlink)
                    .map_err(|error| error.asking("conntrack's statistics").to_string()),
                Err(error) => Err(error.clone()),
            };
            (counters, statistics_from) = match asked {
                Ok(each) => (Some(each), Some("ctnetlink, IPCTNL_MSG_CT_GET_STATS_CPU")),
                Err(error) => {
                    statistics_error = Some(error);
                    (stat(host).ok().map(|(_, each)| each), Some(STAT))
                }
            };
        }
        Way::Stat { why } => {
            let (counted, each) = stat(host)?;
            entries = counted;
            (limit, buckets) = (None, None);
            limit_error = Some(why.clone());
            (counters, statistics_from) = (Some(each), Some(STAT));
        }
    }
    let statistics = counters.map(|each| source.sum.take(each));
    let now = host.clock().since_boot();
    let used_percent = limit.map(|limit| entries as f64 * 100.0 / limit as f64);
    let entries_per_second = source.slope(now, entries);
    let full_in_seconds = limit.zip(entries_per_second).and_then(|(limit, slope)| {
        let seconds = limit.saturating_sub(entries) as f64 / slope;
        (slope > 0.0 && seconds <= FULL_WITHIN.as_secs_f64()).then_some(seconds)
    });
    let per_second = statistics.as_ref().zip(source.before.as_ref()).and_then(|(sum, (at, before))| {
        statistics::per_second(sum, before, now.saturating_sub(*at).as_secs_f64())
    });
    source.before = statistics.clone().map(|sum| (now, sum));
    let (top, top_error) = match used_percent {
        Some(percent) if percent >= DUMP_FROM_PERCENT => source.top(host, now),
        _ => (None, None),
    };
    let statistics_from = statistics_from.filter(|_| statistics.is_some());
    Ok(Reading {
        entries,
        limit,
        limit_error,
        used_percent,
        buckets,
        entries_per_second,
        full_in_seconds,
        statistics,
        statistics_from,
        statistics_error,
        per_second,
        top,
        top_error,
    })
}

impl Source {
    fn slope(&mut self, now: Duration, entries: u64) -> Option<f64> {
        self.counts.push_back((now, entries));
        while self.counts.front().is_some_and(|(at, _)| now.saturating_sub(*at) > SLOPE_OVER) {
            self.counts.pop_front();
        }
        let (at, first) = self.counts.front()?;
        let passed = now.saturating_sub(*at);
        (passed >= SLOPE_OVER_AT_LEAST).then(|| (entries as f64 - *first as f64) / passed.as_secs_f64())
    }

    /// What the newest dump said; begins one where it is time, on a thread of its own: a tick never waits for it.
    fn top(&mut self, host: &Host, now: Duration) -> (Option<Top>, Option<String>) {
        if !matches!(&self.way, Way::Own(own) if own.netlink.is_ok()) {
            return (None, Some("ctnetlink cannot be asked: see statistics_error".to_owned()));
        }
        let dumps = match &self.dumps {
            Some(dumps) => dumps,
            None => match Apart::start("conntrack-dump", host.clock().clone()) {
                Ok(dumps) => self.dumps.insert(dumps),
                Err(error) => return (None, Some(format!("no thread for a dump of the table: {error}"))),
            },
        };
        if self.dumped.is_none_or(|dumped| now.saturating_sub(dumped) >= DUMP_EVERY) {
            self.dumped = Some(now);
            let host = host.clone();
            dumps.give(move || top::dump(&host, Only::All));
        }
        let Some((newest, at)): Option<(Arc<Result<top::Told, ReadError>>, _)> = dumps.newest() else {
            return (None, None);
        };
        match newest.as_ref() {
            Ok(told) => (Some(Top::new(told, now.saturating_sub(at.boot))), None),
            Err(error) => (None, Some(error.to_string())),
        }
    }
}

fn summary(reading: &Reading) -> String {
    let Some(limit) = reading.limit else {
        return format!("{} entries, limit unknown", reading.entries);
    };
    let percent = reading.used_percent.unwrap_or_default();
    let soon = reading.full_in_seconds.map(|seconds| format!(", full in {seconds:.0} s")).unwrap_or_default();
    format!("{} of {limit} entries ({percent:.0} %){soon}", reading.entries)
}

fn metrics(reading: &Reading, sink: &mut Sink) {
    sink.put(&ENTRIES, &[], reading.entries as f64);
    sink.put_some(&ENTRIES_LIMIT, &[], reading.limit.map(|limit| limit as f64));
    sink.put_some(&BUCKETS, &[], reading.buckets.map(|buckets| buckets as f64));
    for (event, count) in reading.statistics.iter().flatten() {
        sink.put(&EVENTS, &[event], *count as f64);
    }
}

/// Every parser of this collector, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    owners::fuzz(bytes);
    statistics::fuzz(bytes);
    pods::fuzz(bytes);
}

#[cfg(test)]
mod tests;
