//! kube-proxy by its own words: `:10256/healthz`, `127.0.0.1:10249/proxyMode` and `/metrics`
//! (cmd/kube-proxy/app/server.go, pkg/proxy/metrics/metrics.go); and Cilium's agent by its metrics, where it has taken
//! kube-proxy's place.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

use crate::host::Host;
use crate::host::fetch::{FetchError, Request};
use crate::promtext::{Histogram, Part, Reader, Sample};

const LIMIT: Duration = Duration::from_secs(3);
const MOST_BYTES: u64 = 32 * 1024 * 1024;

/// Where the three are asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    pub(super) healthz: SocketAddr,
    pub(super) metrics: SocketAddr,
    pub(super) cilium: SocketAddr,
}

impl Default for Addresses {
    fn default() -> Addresses {
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Addresses { healthz: local(10256), metrics: local(10249), cilium: local(9962) }
    }
}

/// What an HTTP question for health came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Health {
    /// 200.
    Ok,
    /// Another code. 503: a queued sync is older than a minute, or the node is being deleted.
    Status {
        /// The code.
        code: u16,
        /// The beginning of its body.
        body: String,
    },
    /// Nobody listens.
    Refused,
    /// No answer, or no good one.
    Failed {
        /// Why.
        error: String,
    },
}

/// What kube-proxy says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Proxy {
    /// `/healthz` on 10256.
    pub healthz: Health,
    /// iptables, ipvs or nftables.
    pub mode: Option<String>,
    /// Its metrics.
    #[serde(flatten)]
    pub told: Option<Told>,
    /// Why mode or metrics are not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// kube-proxy's metrics, both families together.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Told {
    /// How long its synchronizations took, all since it began.
    #[serde(skip)]
    pub syncs: Histogram,
    /// Half of its synchronizations took at most this long.
    pub sync_seconds_p50: Option<f64>,
    /// 99 of 100 took at most this long.
    pub sync_seconds_p99: Option<f64>,
    /// How many there were.
    pub syncs_count: Option<f64>,
    /// When the last one ended well, seconds since 1970; of two families the older.
    pub last_sync: Option<f64>,
    /// When one was last asked for, seconds since 1970; of two families the newer.
    pub last_queued: Option<f64>,
    /// Of a family that has been asked for a synchronization since its last one: when that last one was.
    pub behind_sync_of: Option<f64>,
    /// When each family was last synchronized, and last asked for it.
    #[serde(skip)]
    pub families: BTreeMap<String, (Option<f64>, Option<f64>)>,
    /// iptables-restore failed so often.
    pub restore_failures: Option<f64>,
    /// A transaction of nftables failed so often.
    pub nftables_failures: Option<f64>,
    /// Changes of endpoints that are not yet in the rules.
    pub endpoint_changes_pending: Option<f64>,
    /// Rules that it means to have in each table. It counts before the kernel has them.
    pub rules: BTreeMap<String, f64>,
}

/// Cilium's agent, where it does kube-proxy's work.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cilium {
    /// Packets that it dropped, by reason, both directions.
    pub drops: BTreeMap<String, f64>,
    /// How full its BPF maps are, 0 to 1; the fullest ones.
    pub map_pressure: BTreeMap<String, f64>,
    /// Why its metrics are not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What was asked in one go.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Asked {
    Proxy(Box<Proxy>),
    Cilium(Cilium),
}

const SYNC: &str = "kubeproxy_sync_proxy_rules_duration_seconds";
const LAST_SYNC: &str = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
const LAST_QUEUED: &str = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds";
const RESTORE_FAILURES: &str = "kubeproxy_sync_proxy_rules_iptables_restore_failures_total";
const NFTABLES_FAILURES: &str = "kubeproxy_sync_proxy_rules_nftables_sync_failures_total";
const PENDING: &str = "kubeproxy_sync_proxy_rules_endpoint_changes_pending";
const RULES: &str = "kubeproxy_sync_proxy_rules_iptables_total";
static PROXY_FAMILIES: &[&str] =
    &[SYNC, LAST_SYNC, LAST_QUEUED, RESTORE_FAILURES, NFTABLES_FAILURES, PENDING, RULES];

const DROPS: &str = "cilium_drop_count_total";
const MAP_PRESSURE: &str = "cilium_bpf_map_pressure";
static CILIUM_FAMILIES: &[&str] = &[DROPS, MAP_PRESSURE];
/// Reasons and maps are tens; more would be somebody else's metrics.
const MOST_KEYS: usize = 64;

/// Asks kube-proxy. Blocks for some seconds at most.
pub(super) fn ask(host: &Host, addresses: Addresses) -> Asked {
    let healthz = match host.fetch_text(&plain(addresses.healthz, "/healthz")) {
        Ok(_) => Health::Ok,
        Err(FetchError::Status { code, body, .. }) => {
            Health::Status { code, body: body.chars().take(200).collect() }
        }
        Err(FetchError::Refused { .. }) => Health::Refused,
        Err(error) => Health::Failed { error: error.to_string() },
    };
    let mode = host.fetch_text(&plain(addresses.metrics, "/proxyMode"));
    let mut told = Told::default();
    let read = metrics(host, addresses.metrics, PROXY_FAMILIES, |sample| told.take(sample));
    let error = mode.as_ref().err().map(ToString::to_string).or_else(|| read.clone().err());
    let mode = mode.ok().map(|mode| mode.trim().chars().take(32).collect());
    told.finish();
    Asked::Proxy(Box::new(Proxy { healthz, mode, told: read.is_ok().then_some(told), error }))
}

/// Asks Cilium's agent.
pub(super) fn ask_cilium(host: &Host, addresses: Addresses) -> Asked {
    let mut cilium = Cilium::default();
    let read = metrics(host, addresses.cilium, CILIUM_FAMILIES, |sample| cilium.take(sample));
    match read {
        Ok(()) => Asked::Cilium(cilium),
        Err(error) => Asked::Cilium(Cilium { error: Some(error), ..Cilium::default() }),
    }
}

fn plain(address: SocketAddr, path: &str) -> Request<'_> {
    Request { address, path, tls: None, token: None, limit: LIMIT, most_bytes: MOST_BYTES }
}

fn metrics(
    host: &Host,
    address: SocketAddr,
    families: &'static [&'static str],
    mut each: impl FnMut(&Sample<'_>) + Send,
) -> Result<(), String> {
    let mut reader = Reader::new(families);
    host.fetch(&plain(address, "/metrics"), &mut |piece| reader.feed(piece, &mut each))
        .map_err(|error| error.to_string())?;
    let counted = reader.finish();
    match (counted.samples, counted.broken) {
        (_, 1..) => Err(format!("{} lines of http://{address}/metrics make no sense", counted.broken)),
        (0, _) => {
            Err(format!("http://{address}/metrics has none of the wanted metrics: it is another program"))
        }
        _ => Ok(()),
    }
}

impl Told {
    fn take(&mut self, sample: &Sample<'_>) {
        if sample.value.is_nan() {
            return;
        }
        let add = |place: &mut Option<f64>| *place = Some(place.unwrap_or(0.0) + sample.value);
        match sample.family {
            SYNC if sample.part != Part::Value => self.syncs.add(sample.part, sample.value),
            // 0: it has never happened.
            LAST_SYNC | LAST_QUEUED if sample.value > 0.0 && self.families.len() < MOST_KEYS => {
                // Before 1.36 there is one for both families.
                let family = sample.label("ip_family").unwrap_or_default();
                let (sync, queued) = self.families.entry(family.to_owned()).or_default();
                *(if sample.family == LAST_SYNC { sync } else { queued }) = Some(sample.value);
            }
            RESTORE_FAILURES => add(&mut self.restore_failures),
            NFTABLES_FAILURES => add(&mut self.nftables_failures),
            PENDING => add(&mut self.endpoint_changes_pending),
            RULES => {
                if let Some(table) = sample.label("table")
                    && (self.rules.len() < MOST_KEYS || self.rules.contains_key(table))
                {
                    *self.rules.entry(table.to_owned()).or_default() += sample.value;
                }
            }
            _ => {}
        }
    }

    fn finish(&mut self) {
        self.sync_seconds_p50 = self.syncs.quantile(0.5);
        self.sync_seconds_p99 = self.syncs.quantile(0.99);
        self.syncs_count = self.syncs.count;
        self.last_sync = self.families.values().filter_map(|(sync, _)| *sync).min_by(f64::total_cmp);
        self.last_queued = self.families.values().filter_map(|(_, queued)| *queued).max_by(f64::total_cmp);
        let behind = self.families.values().filter_map(|(sync, queued)| sync.zip(*queued));
        let behind = behind.filter(|(sync, queued)| queued > sync).map(|(sync, _)| sync);
        self.behind_sync_of = behind.min_by(f64::total_cmp);
    }
}

impl Cilium {
    fn take(&mut self, sample: &Sample<'_>) {
        if sample.value.is_nan() {
            return;
        }
        let (map, label) = match sample.family {
            DROPS => (&mut self.drops, "reason"),
            _ => (&mut self.map_pressure, "map_name"),
        };
        let Some(key) = sample.label(label) else { return };
        if map.len() < MOST_KEYS || map.contains_key(key) {
            *map.entry(key.to_owned()).or_default() += sample.value;
        }
    }
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    let (mut told, mut cilium) = (Told::default(), Cilium::default());
    let (mut proxy, mut agent) = (Reader::new(PROXY_FAMILIES), Reader::new(CILIUM_FAMILIES));
    for piece in bytes.chunks(89) {
        proxy.feed(piece, &mut |sample| told.take(sample));
        agent.feed(piece, &mut |sample| cilium.take(sample));
    }
    told.finish();
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use nodewhy_clock::Clock;

    use super::*;
    use crate::host::Places;

    /// Answers each path so, for ever.
    fn serve(answers: &'static [(&'static str, &'static str, &'static str)]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = [0; 4096];
                let length = stream.read(&mut request).unwrap();
                let request = String::from_utf8_lossy(&request[..length]).into_owned();
                let path = request.split(' ').nth(1).unwrap();
                let (_, status, body) = answers.iter().find(|(known, _, _)| *known == path).unwrap();
                let head = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                stream.write_all(head.as_bytes()).unwrap();
                stream.write_all(body.as_bytes()).unwrap();
            }
        });
        address
    }

    // No recorded text of a kube-proxy was to be had. The names and labels are those of pkg/proxy/metrics/metrics.go
    // (1.36: with ip_family); the figures are made up.
    const METRICS: &str = "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.5\"} 1\n\
        kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"+Inf\"} 2\n\
        kubeproxy_sync_proxy_rules_duration_seconds_sum{ip_family=\"IPv4\"} 80.1\n\
        kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 2\n\
        kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} 1.7e+09\n\
        kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv6\"} 1.6e+09\n\
        kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv4\"} 0\n\
        kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv6\"} 1.65e+09\n\
        kubeproxy_sync_proxy_rules_iptables_total{ip_family=\"IPv4\",table=\"nat\"} 40000\n\
        kubeproxy_sync_proxy_rules_iptables_total{ip_family=\"IPv6\",table=\"nat\"} 5\n";

    #[test]
    fn a_kube_proxy_that_is_behind() {
        static ANSWERS: &[(&str, &str, &str)] = &[
            ("/healthz", "503 Service Unavailable", "{\"lastUpdated\": \"x\"}"),
            ("/proxyMode", "200 OK", "iptables"),
            ("/metrics", "200 OK", METRICS),
        ];
        let host = Host::new("/", Clock::system(), Places::default());
        let address = serve(ANSWERS);
        let addresses = Addresses { healthz: address, metrics: address, cilium: address };
        let Asked::Proxy(proxy) = ask(&host, addresses) else { panic!() };
        assert!(matches!(proxy.healthz, Health::Status { code: 503, .. }), "{proxy:?}");
        assert_eq!((proxy.mode.as_deref(), &proxy.error), (Some("iptables"), &None));
        let told = proxy.told.unwrap();
        assert_eq!(
            (told.last_sync, told.last_queued, told.behind_sync_of),
            (Some(1.6e9), Some(1.65e9), Some(1.6e9))
        );
        assert_eq!((told.rules["nat"], told.restore_failures), (40_005.0, None));
        assert_eq!((told.syncs_count, told.sync_seconds_p50), (Some(2.0), Some(0.5)));
        let Asked::Cilium(cilium) = ask_cilium(&host, addresses) else { panic!() };
        assert!(cilium.error.unwrap().contains("none of the wanted"), "kube-proxy is not Cilium");
    }

    #[test]
    fn nobody_there() {
        let host = Host::new("/", Clock::system(), Places::default());
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let addresses = Addresses { healthz: address, metrics: address, cilium: address };
        let Asked::Proxy(proxy) = ask(&host, addresses) else { panic!() };
        assert_eq!((&proxy.healthz, &proxy.mode, &proxy.told), (&Health::Refused, &None, &None));
        assert!(proxy.error.unwrap().contains("refused"));
    }
}
