//! The control plane's parts on this node: etcd by its metrics, the API server by its checks of health. Absent on
//! workers.
//!
//! A slow disk under etcd slows the whole cluster, and looks like a slow API server from everywhere else: what decides
//! is the time that a write of etcd's log takes (`wal_fsync`), on this node. Both are found by their processes; nothing
//! is asked for that needs a credential.

mod apiserver;
mod etcd;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use nodewhy_proto::{Evidence, Severity, Subject, SubjectKind};
use serde::Serialize;

pub use self::apiserver::Health;
pub use self::etcd::{Latencies, Latency, Said};

use self::etcd::{Gathering, History};
use crate::collector::{Abnormal, Collector, Noticed, Pair, never_woken};
use crate::host::fetch::Request;
use crate::host::process::Process;
use crate::host::tls::Trust;
use crate::host::{Host, ReadError};
use crate::metrics::{Family, Sink};
use crate::thresholds::{Heuristic, Thresholds};

/// etcd and the API server of this node, every ten seconds.
pub static COLLECTOR: Collector<Source, Reading> = Collector {
    name: "control_plane",
    every: Duration::from_secs(10),
    deadline: Duration::from_secs(20),
    remembers: true,
    open,
    read,
    wake: never_woken,
    summary,
    families: &[
        &HAS_LEADER,
        &LEADER_CHANGES,
        &SLOW_APPLIES,
        &HEARTBEATS,
        &PENDING,
        &FAILED,
        &DB,
        &IN_USE,
        &QUOTA,
        &P99,
        &COUNT,
        &HEALTHY,
    ],
    metrics,
    limits: &[&FSYNC_P99, &QUOTA_USED, &FRAGMENTED],
    detect,
    pages: &[],
    asks: &[],
};

static HAS_LEADER: Family =
    Family::gauge("nodewhy_etcd_has_leader", "Whether etcd on this node knows a leader.");
static LEADER_CHANGES: Family = Family::counter(
    "nodewhy_etcd_leader_changes_total",
    "Changes of the leader that etcd on this node has seen.",
);
static SLOW_APPLIES: Family = Family::counter(
    "nodewhy_etcd_slow_applies_total",
    "Applies of etcd on this node that took more than 100 ms.",
);
static HEARTBEATS: Family = Family::counter(
    "nodewhy_etcd_heartbeat_send_failures_total",
    "Heartbeats that etcd on this node sent late.",
);
static PENDING: Family = Family::gauge(
    "nodewhy_etcd_proposals_pending",
    "Proposals of etcd on this node that wait for agreement.",
);
static FAILED: Family =
    Family::counter("nodewhy_etcd_proposals_failed_total", "Proposals of etcd on this node that failed.");
static DB: Family = Family::gauge("nodewhy_etcd_db_bytes", "Size of etcd's database file on this node.");
static IN_USE: Family =
    Family::gauge("nodewhy_etcd_db_in_use_bytes", "What is in use of etcd's database file.");
static QUOTA: Family =
    Family::gauge("nodewhy_etcd_quota_bytes", "Size at which etcd on this node stops to take writes.");
static P99: Family = Family::gauge(
    "nodewhy_etcd_p99_seconds",
    "What 99 of 100 of etcd's writes of its log, of its database, and round trips to its peers did not exceed, over the last minute.",
)
.by(&["of"]);
static COUNT: Family = Family::gauge(
    "nodewhy_etcd_observed",
    "How many writes or round trips the latency of the last minute is of.",
)
.by(&["of"]);
static HEALTHY: Family = Family::gauge(
    "nodewhy_apiserver_healthy",
    "Whether the API server on this node says that it lives and is ready; absent where it refuses to say.",
)
.by(&["check"]);

static FSYNC_P99: Heuristic = Heuristic {
    name: "etcd_fsync_p99_seconds",
    about: "p99 (p90 of fewer than 100) of etcd's writes of its log within a minute, above which its disk is too slow (etcd's advice is 0.01)",
    value: 0.1,
};
static QUOTA_USED: Heuristic = Heuristic {
    name: "etcd_quota_used_percent",
    about: "share of its quota that etcd's database uses, above which it will soon refuse writes",
    value: 90.0,
};
static FRAGMENTED: Heuristic = Heuristic {
    name: "etcd_fragmented_percent",
    about: "share of etcd's database file that is free but not given back, above which it should be defragmented",
    value: 50.0,
};

/// Of fewer writes a single slow one would be the p99: then nine of ten count.
const FEWEST_FOR_P99: f64 = 100.0;
/// A smaller database need not be defragmented.
const SMALLEST_FRAGMENTED_BYTES: f64 = 256.0 * 1024.0 * 1024.0;
/// One question.
const LIMIT: Duration = Duration::from_secs(4);
/// etcd's metrics are 150 KB to 1 MB.
const MOST_BYTES: u64 = 8 * 1024 * 1024;
/// All processes are gone through so often while one is missing.
const SEARCH_EVERY: Duration = Duration::from_secs(30);
/// An API server needs time to begin.
const YOUNG: Duration = Duration::from_secs(60);

/// A process, by the name that the kernel keeps, and its arguments.
#[derive(Clone, Debug)]
struct Found {
    process: Process,
    arguments: Result<Vec<String>, String>,
}

/// Kept between reads.
#[derive(Debug)]
pub struct Source {
    searched: Option<Duration>,
    etcd: Option<Found>,
    apiserver: Option<Found>,
    /// It was here, since boot it is gone since.
    etcd_gone: Option<Duration>,
    etcd_seen: bool,
    history: History,
}

/// One reading.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reading {
    /// etcd; `None`: none on this node.
    pub etcd: Option<Etcd>,
    /// The API server; `None`: none on this node.
    pub apiserver: Option<ApiServer>,
}

/// etcd on this node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Etcd {
    /// Its process; `None`: it was here and is gone, or only its metrics were named.
    pub pid: Option<u32>,
    /// It was here and is gone.
    pub is_gone: bool,
    /// Where its metrics are.
    pub metrics: Option<String>,
    /// Why there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_error: Option<String>,
    /// What it says.
    #[serde(flatten)]
    pub said: Option<Said>,
    /// Over the last minute.
    #[serde(flatten)]
    pub latencies: Latencies,
    /// Its data folder, by its command line.
    pub data_dir: Option<String>,
    /// The device of it: `nvme1n1`; absent where it can't be told.
    pub data_device: Option<String>,
}

/// The API server on this node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ApiServer {
    /// Its process.
    pub pid: u32,
    /// How long it runs.
    pub age_seconds: f64,
    /// Where it was asked.
    pub address: String,
    /// Whether it lives.
    pub livez: Health,
    /// Whether it is ready.
    pub readyz: Health,
}

fn open(_: &Host) -> Result<Source, ReadError> {
    Ok(Source {
        searched: None,
        etcd: None,
        apiserver: None,
        etcd_gone: None,
        etcd_seen: false,
        history: History::default(),
    })
}

fn read(source: &mut Source, host: &Host) -> Result<Reading, ReadError> {
    let now = host.clock().since_boot();
    find(source, host, now)?;
    let named = host.places().etcd_metrics;
    let reading = Reading {
        etcd: etcd(source, host, now, named),
        apiserver: source.apiserver.as_ref().map(|found| apiserver(found, host, now)),
    };
    if reading.etcd.is_none() && reading.apiserver.is_none() {
        return Err(ReadError::absent("neither etcd nor kube-apiserver runs on this node: it is a worker"));
    }
    Ok(reading)
}

/// Keeps what is still there; looks for what is not.
fn find(source: &mut Source, host: &Host, now: Duration) -> Result<(), ReadError> {
    let lives = |found: &Found| {
        let process = host.process(found.process.pid).ok().flatten();
        process.is_some_and(|process| process.start_ticks == found.process.start_ticks && process.is_alive())
    };
    let had = source.etcd.is_some();
    source.etcd = source.etcd.take().filter(lives);
    source.apiserver = source.apiserver.take().filter(lives);
    let missing = source.etcd.is_none() || source.apiserver.is_none();
    let lost = had && source.etcd.is_none();
    // What was here comes back soon, or not: then it is looked for at every read.
    let due = source.searched.is_none_or(|searched| now.saturating_sub(searched) >= SEARCH_EVERY);
    if missing && (due || lost || source.etcd_gone.is_some()) {
        source.searched = Some(now);
        for pid in host.pids()? {
            // Gone in between, or not to be read: not ours.
            let is_it = |name: &str| matches!(name, "etcd" | "kube-apiserver");
            let Ok(Some(process)) = host.process_if(pid, is_it) else { continue };
            let place = match process.name.as_str() {
                "etcd" => &mut source.etcd,
                "kube-apiserver" => &mut source.apiserver,
                _ => continue,
            };
            if place.is_none() && process.is_alive() && is_the_nodes(host, pid) {
                let arguments = host.process_cmdline(pid, Duration::from_secs(1));
                // Between exec's new name and its new arguments there is a moment without any: the next look has them.
                if arguments.as_ref().is_ok_and(Vec::is_empty) {
                    source.searched = None;
                    continue;
                }
                *place = Some(Found { process, arguments: arguments.map_err(|error| error.to_string()) });
            }
        }
    }
    source.etcd_seen |= source.etcd.is_some();
    source.etcd_gone = match &source.etcd {
        Some(_) => None,
        None if source.etcd_seen => Some(source.etcd_gone.unwrap_or(now)),
        None => None,
    };
    Ok(())
}

/// Whether it is the cluster's own: anybody may run an etcd in a pod, and hosted clusters run whole control planes so. The
/// cluster's runs outside of pods, in a static pod (its UID is a hash, without dashes), or in a namespace of the system's.
fn is_the_nodes(host: &Host, pid: u32) -> bool {
    // A static pod's has a pid namespace of its own within the node's; one more is a node in a container (kind).
    let status = host.process_status(pid).ok().flatten();
    if status.and_then(|status| status.pid_namespaces).is_some_and(|count| count > 2) {
        return false;
    }
    let places = match host.process_cgroups(pid) {
        Ok(Some(cgroups)) => cgroups.iter().map(|path| crate::whose::place(path)).collect::<Vec<_>>(),
        // It ended.
        Ok(None) => return false,
        Err(_) => Vec::new(),
    };
    let Some(place) = places.into_iter().find(|place| place.in_pods) else { return true };
    let Some(uid) = place.pod_uid else { return false };
    let namespace = host.pods().and_then(|pods| Some(pods.names.get(&uid)?.namespace.clone()));
    match namespace {
        Some(namespace) => namespace == "kube-system" || namespace.starts_with("openshift-"),
        None => !uid.contains('-'),
    }
}

fn etcd(source: &mut Source, host: &Host, now: Duration, named: Option<SocketAddr>) -> Option<Etcd> {
    let found = source.etcd.as_ref();
    if found.is_none() && named.is_none() && source.etcd_gone.is_none() {
        return None;
    }
    let arguments = found.map(|found| found.arguments.as_ref());
    let address = match (named, arguments) {
        (Some(named), _) => Ok(named),
        (None, Some(Ok(arguments))) => etcd::metrics_address(arguments),
        (None, Some(Err(error))) => Err(error.clone()),
        (None, None) => Err("etcd's process is gone".to_owned()),
    };
    let answer = address.clone().and_then(|address| ask(host, address));
    let said = match &answer {
        Ok(said) => Some(said.clone()),
        Err(_) => {
            source.history.clear();
            None
        }
    };
    let latencies = said.as_ref().map(|said| source.history.take(now, said)).unwrap_or_default();
    let data_dir = arguments.and_then(Result::ok).and_then(|arguments| etcd::flag(arguments, "data-dir"));
    Some(Etcd {
        pid: found.map(|found| found.process.pid),
        is_gone: source.etcd_gone.is_some(),
        metrics: address.ok().map(|address| format!("http://{address}/metrics")),
        metrics_error: answer.err(),
        said,
        latencies,
        data_dir: data_dir.map(str::to_owned),
        data_device: data_dir.and_then(|dir| device(host, dir)),
    })
}

fn ask(host: &Host, address: SocketAddr) -> Result<Said, String> {
    host.reaches(address.ip(), "etcd's metrics").map_err(|error| error.to_string())?;
    let request =
        Request { address, path: "/metrics", tls: None, token: None, limit: LIMIT, most_bytes: MOST_BYTES };
    let mut gathering = Gathering::new();
    host.fetch(&request, &mut |piece| gathering.feed(piece)).map_err(|error| error.to_string())?;
    gathering.finish().map_err(|what| format!("http://{address}/metrics: {what}"))
}

/// The device that a folder is on, as the kernel names it. A path within a container's own mounts is not the host's:
/// then there is none, or it is absent here.
fn device(host: &Host, dir: &str) -> Option<String> {
    if !Path::new(dir).is_absolute() {
        return None;
    }
    let dev = host.stat(dir).ok()?.identity.0;
    let (major, minor) = (nix::sys::stat::major(dev), nix::sys::stat::minor(dev));
    let uevent = host.read(format!("/sys/dev/block/{major}:{minor}/uevent")).ok()?;
    uevent.lines().find_map(|line| line.strip_prefix("DEVNAME=")).map(str::to_owned)
}

fn apiserver(found: &Found, host: &Host, now: Duration) -> ApiServer {
    let none = Vec::new();
    let address = apiserver::address(found.arguments.as_ref().unwrap_or(&none));
    let unreached = host.reaches(address.ip(), "the health of the API server").err();
    let ask = |path: &str| {
        if let Some(error) = &unreached {
            return Health::NotAsked { why: error.to_string() };
        }
        // Nothing secret is sent, and what it answers is only shown: who it is need not be proved.
        let trust = match Trust::anybody() {
            Ok(trust) => trust,
            Err(error) => return Health::Silent { error: error.to_string() },
        };
        let most_bytes = apiserver::MOST_BYTES;
        let request = Request { address, path, tls: Some(&trust), token: None, limit: LIMIT, most_bytes };
        apiserver::health(host.fetch_text(&request))
    };
    ApiServer {
        pid: found.process.pid,
        age_seconds: now.saturating_sub(found.process.start_since_boot()).as_secs_f64(),
        address: address.to_string(),
        livez: ask("/livez?verbose"),
        readyz: ask("/readyz?verbose"),
    }
}

fn summary(reading: &Reading) -> String {
    let etcd = reading.etcd.as_ref().map(|etcd| match (&etcd.said, etcd.latencies.wal_fsync) {
        _ if etcd.is_gone => "etcd is gone".to_owned(),
        (Some(_), Some(fsync)) => format!("etcd, fsync p99 {:.1} ms", fsync.p99_seconds * 1000.0),
        (Some(_), None) => "etcd answers".to_owned(),
        (None, _) => "etcd, without its metrics".to_owned(),
    });
    let apiserver = reading.apiserver.as_ref().map(|apiserver| {
        let livez = match &apiserver.livez {
            Health::Well => "lives".to_owned(),
            Health::Failing { code, .. } => format!("fails its checks ({code})"),
            Health::Refused { code } => format!("refuses anonymous questions ({code})"),
            Health::Silent { .. } => "does not answer".to_owned(),
            Health::NotAsked { .. } => "runs, and cannot be asked from here".to_owned(),
        };
        format!("API server {livez}")
    });
    etcd.into_iter().chain(apiserver).collect::<Vec<_>>().join("; ")
}

fn metrics(reading: &Reading, sink: &mut Sink) {
    if let Some(etcd) = &reading.etcd {
        if let Some(said) = &etcd.said {
            sink.put_some(&HAS_LEADER, &[], said.has_leader.map(|has| f64::from(u8::from(has))));
            for (family, value) in [
                (&LEADER_CHANGES, said.leader_changes_total),
                (&SLOW_APPLIES, said.slow_applies_total),
                (&HEARTBEATS, said.heartbeat_send_failures_total),
                (&PENDING, said.proposals_pending),
                (&FAILED, said.proposals_failed_total),
                (&DB, said.db_bytes),
                (&IN_USE, said.db_in_use_bytes),
                (&QUOTA, said.quota_bytes),
            ] {
                sink.put_some(family, &[], value);
            }
        }
        for (of, latency) in [
            ("wal_fsync", etcd.latencies.wal_fsync),
            ("backend_commit", etcd.latencies.backend_commit),
            ("peer_round_trip", etcd.latencies.peer_round_trip),
        ] {
            sink.put_some(&P99, &[of], latency.map(|latency| latency.p99_seconds));
            sink.put_some(&COUNT, &[of], latency.map(|latency| latency.count));
        }
    }
    if let Some(apiserver) = &reading.apiserver {
        for (check, health) in [("livez", &apiserver.livez), ("readyz", &apiserver.readyz)] {
            let healthy = match health {
                Health::Well => Some(1.0),
                Health::Failing { .. } | Health::Silent { .. } => Some(0.0),
                Health::Refused { .. } | Health::NotAsked { .. } => None,
            };
            sink.put_some(&HEALTHY, &[check], healthy);
        }
    }
}

fn detect(pair: Pair<'_, Reading>, thresholds: &Thresholds, noticed: &mut Noticed) {
    if let Some(etcd) = &pair.now.etcd {
        detect_etcd(etcd, thresholds, noticed);
    }
    if let Some(apiserver) = &pair.now.apiserver {
        detect_apiserver(apiserver, noticed);
    }
}

fn detect_etcd(etcd: &Etcd, thresholds: &Thresholds, noticed: &mut Noticed) {
    let mut abnormal = |finding, severity, summary: String, evidence: Evidence, hold: u64| {
        noticed.states.push(Abnormal {
            finding,
            subject: Subject::new(SubjectKind::ControlPlane, "etcd"),
            severity,
            summary,
            evidence: vec![evidence],
            since: None,
            hold: Duration::from_secs(hold),
            clear_after: Duration::from_secs(30),
        });
    };
    if etcd.is_gone {
        let evidence = Evidence::new("its process was here and there is none now", "/proc");
        abnormal(
            "etcd_down",
            Severity::Critical,
            "etcd ran on this node and does no more".to_owned(),
            evidence,
            20,
        );
    }
    let source = etcd.metrics.clone().unwrap_or_default();
    let limit = thresholds.limit(&FSYNC_P99);
    let fsync = etcd.latencies.wal_fsync.map(|fsync| match fsync.count >= FEWEST_FOR_P99 {
        true => (fsync, fsync.p99_seconds, "p99"),
        false => (fsync, fsync.p90_seconds, "p90"),
    });
    if let Some((fsync, seconds, share)) = fsync
        && fsync.count >= etcd::FEWEST
        && seconds > limit.value
    {
        let on = etcd.data_device.as_ref().map(|device| format!(" on {device}")).unwrap_or_default();
        let summary =
            format!("etcd's disk{on} is slow: a write of its log takes {:.0} ms ({share})", seconds * 1000.0);
        let text = format!("wal_fsync {share} over {:.0} s, {:.0} writes", fsync.window_seconds, fsync.count);
        let evidence = Evidence::new(text, source.clone()).with_value(seconds, "seconds");
        // Two readings: one stall of a moment is none.
        abnormal(
            "etcd_slow_disk",
            Severity::Warning,
            summary,
            evidence.with_threshold(limit.value, limit.origin),
            10,
        );
    }
    let Some(said) = &etcd.said else { return };
    if said.has_leader == Some(false) {
        let evidence = Evidence::new("etcd_server_has_leader", source.clone()).with_value(0.0, "members");
        let summary =
            "etcd on this node knows no leader: the cluster can change nothing through it".to_owned();
        abnormal("etcd_no_leader", Severity::Critical, summary, evidence, 10);
    }
    let limit = thresholds.limit(&QUOTA_USED);
    if let (Some(in_use), Some(quota)) = (said.db_in_use_bytes, said.quota_bytes.filter(|quota| *quota > 0.0))
        && in_use / quota * 100.0 >= limit.value
    {
        let percent = in_use / quota * 100.0;
        let summary =
            format!("etcd's database uses {percent:.0} % of its quota: at 100 % it refuses all writes");
        let evidence =
            Evidence::new("database in use, of the quota", source.clone()).with_value(percent, "percent");
        abnormal(
            "etcd_quota_nearly_full",
            Severity::Warning,
            summary,
            evidence.with_threshold(limit.value, limit.origin),
            0,
        );
    }
    let limit = thresholds.limit(&FRAGMENTED);
    if let (Some(in_use), Some(size)) = (said.db_in_use_bytes, said.db_bytes)
        && size >= SMALLEST_FRAGMENTED_BYTES
        && (size - in_use) / size * 100.0 >= limit.value
    {
        let percent = (size - in_use) / size * 100.0;
        let summary = format!("{percent:.0} % of etcd's database file is free: defragment it");
        let evidence = Evidence::new("free, of the database's file", source).with_value(percent, "percent");
        abnormal(
            "etcd_fragmented",
            Severity::Info,
            summary,
            evidence.with_threshold(limit.value, limit.origin),
            0,
        );
    }
}

fn detect_apiserver(apiserver: &ApiServer, noticed: &mut Noticed) {
    let what = match &apiserver.livez {
        Health::Well | Health::Refused { .. } | Health::NotAsked { .. } => return,
        _ if apiserver.age_seconds < YOUNG.as_secs_f64() => return,
        Health::Failing { code, checks } if checks.is_empty() => format!("/livez answers {code}"),
        Health::Failing { code, checks } => format!("/livez answers {code}: {} failed", checks.join(", ")),
        Health::Silent { error } => format!("/livez: {error}"),
    };
    noticed.states.push(Abnormal {
        finding: "apiserver_unhealthy",
        subject: Subject::new(SubjectKind::ControlPlane, "kube-apiserver"),
        severity: Severity::Critical,
        summary: format!("the API server on this node is not healthy: {what}"),
        evidence: vec![Evidence::new(what, format!("https://{}/livez", apiserver.address))],
        since: None,
        hold: Duration::from_secs(30),
        clear_after: Duration::from_secs(20),
    });
}

/// Every parser of this collector, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    let mut gathering = etcd::Gathering::new();
    bytes.chunks(97).for_each(|piece| gathering.feed(piece));
    crate::fuzz::done(gathering.finish());
    apiserver::fuzz(bytes);
}

#[cfg(test)]
mod tests;
