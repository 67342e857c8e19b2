//! The node's own network: interfaces, the softirqs that receive, TCP's and UDP's counters, neighbours, the ways out,
//! and the nameservers. Of the host's network namespace: /proc/1/net, and rtnetlink where the agent is in it.
//!
//! What takes the kernel's lock of all network configuration, and what waits for others, runs on threads of its own:
//! the counters of every tick go on when that lock is held.

mod counters;
mod detect;
mod families;
mod interfaces;
mod paths;
mod reading;
mod resolver;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use serde::Serialize;

use crate::collect::api_server;
use crate::collector::{Collector, Page};
use crate::host::netlink::NetworkNamespace;
use crate::host::{Apart, Host, Kept, ReadError};
use crate::metrics::growing::Growing;
use interfaces::{Known, Link, Listed, MOST_LINKS};
use paths::Paths;
pub use reading::{Ksoftirqd, Missing, Neighbours, Reading, Softirq, Softnet, Tcp, Udp};
use resolver::Resolver;

/// The network, every two seconds; ways and nameservers more seldom.
pub static COLLECTOR: Collector<Source, Reading> = Collector {
    name: "network",
    every: Duration::from_secs(2),
    deadline: Duration::from_secs(5),
    remembers: true,
    open,
    read,
    wake,
    summary,
    families: families::FAMILIES,
    metrics: families::metrics,
    limits: detect::LIMITS,
    detect: detect::detect,
    pages: &[Page {
        path: "/api/v1/network",
        about: "interfaces, default routes, ip rules and routes (1,000 of each at most), neighbour tables, nameservers",
        json: page,
    }],
    asks: &[],
};

/// Ways are looked at so often, unless a look takes long: then a hundredth of the time is spent on it.
const PATHS_EVERY: Duration = Duration::from_secs(10);
/// Nameservers are asked so often while one answers, and so often while none does.
const RESOLVER_EVERY: Duration = Duration::from_secs(30);
const RESOLVER_SILENT_EVERY: Duration = Duration::from_secs(10);
/// Limits of the kernel, IPv6's counters, and what each ksoftirqd used while nothing is squeezed.
const SLOWLY: Duration = Duration::from_secs(30);
/// Drivers without such counters are asked so often: names and numbers of all their statistics are copied each time.
const DRIVERS_EVERY: Duration = Duration::from_secs(300);
const NONE: Duration = Duration::ZERO;
/// So many gateways that answered are remembered.
const MOST_GATEWAYS: usize = 64;
/// The first reading waits so long for the ways out.
const FIRST: Duration = Duration::from_millis(500);

/// The open files, and what is remembered.
#[derive(Debug)]
pub struct Source {
    namespace: NetworkNamespace,
    dev: Kept,
    softnet: Kept,
    snmp: Kept,
    netstat: Kept,
    sockstat: Kept,
    softirqs: Kept,
    stat: Kept,
    known: Known,
    /// The last numbers of each processor, which have 32 bits, and what they add up to.
    softnet_before: BTreeMap<u32, counters::Softnet>,
    softnet_sums: Softnet,
    ksoftirqd: Vec<(u32, u32)>,
    ksoftirqd_before: Option<(Duration, BTreeMap<u32, f64>)>,
    ksoftirqd_now: Option<Ksoftirqd>,
    slowly: Option<Duration>,
    limits: Limits,
    udp6: Udp,
    paths: Apart<Paths>,
    paths_due: Duration,
    paths_now: Option<Paths>,
    allowances_due: Duration,
    asked_drivers: bool,
    /// Cloud's interfaces come and go with their pods: see [`Growing`].
    allowances: BTreeMap<String, Growing>,
    carrier_changes: Growing,
    allowances_before: Option<(Duration, BTreeMap<String, u64>)>,
    allowances_rate: BTreeMap<String, f64>,
    had_default: Vec<crate::host::rtnetlink::Family>,
    had_answer: Vec<IpAddr>,
    resolver: Apart<Resolver>,
    resolver_due: Duration,
    resolver_now: Option<Resolver>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Limits {
    tcp_memory: Option<u64>,
    ipv4: [Option<u64>; 3],
    ipv6: [Option<u64>; 3],
}

fn open(host: &Host) -> Result<Source, ReadError> {
    if let Some(why) = host.blind_to_processes() {
        return Err(ReadError::Other(format!("the host's network is not seen: {why}")));
    }
    let net = |file: &str| host.keep(format!("/proc/1/net/{file}"));
    Ok(Source {
        namespace: host.network_is_hosts(),
        dev: net("dev")?,
        softnet: net("softnet_stat")?,
        snmp: net("snmp")?,
        netstat: net("netstat")?,
        sockstat: net("sockstat")?,
        softirqs: host.keep("/proc/softirqs")?,
        stat: host.keep("/proc/stat")?,
        known: Known::default(),
        softnet_before: BTreeMap::new(),
        softnet_sums: Softnet::default(),
        ksoftirqd: ksoftirqd(host),
        ksoftirqd_before: None,
        ksoftirqd_now: None,
        slowly: None,
        limits: Limits::default(),
        udp6: Udp::default(),
        paths: Apart::start("net-paths")?,
        paths_due: Duration::ZERO,
        paths_now: None,
        allowances_due: Duration::ZERO,
        asked_drivers: false,
        allowances: BTreeMap::new(),
        carrier_changes: Growing::default(),
        allowances_before: None,
        allowances_rate: BTreeMap::new(),
        had_default: Vec::new(),
        had_answer: Vec::new(),
        resolver: Apart::start("net-resolver")?,
        resolver_due: Duration::ZERO,
        resolver_now: None,
    })
}

/// Processor and process id of each `ksoftirqd/N`. They are among the first processes of all.
fn ksoftirqd(host: &Host) -> Vec<(u32, u32)> {
    let cpus = host.read("/proc/softirqs").ok();
    let cpus = cpus.and_then(|text| Some(text.lines().next()?.split_whitespace().count())).unwrap_or(0);
    let named = |pid| {
        let name = host.process_name(pid).ok()??;
        Some((name.strip_prefix("ksoftirqd/")?.parse().ok()?, pid))
    };
    host.pids().unwrap_or_default().into_iter().filter_map(named).take(cpus).collect()
}

fn wake(_: &Source) -> Option<BorrowedFd<'_>> {
    // Results of the threads are taken at the next tick: two seconds are soon enough.
    None
}

fn read(source: &mut Source, host: &Host) -> Result<Reading, ReadError> {
    let now = host.clock().since_boot();
    let mut missing = Vec::new();
    let text = source.dev.read()?;
    let interfaces = source.known.read(host, text)?;
    let squeezed = softnet(source, &mut missing);
    let is_slow_turn = source.slowly.is_none_or(|last| now.saturating_sub(last) >= SLOWLY);
    if is_slow_turn {
        source.slowly = Some(now);
        limits(source, host, &mut missing);
    }
    if is_slow_turn || squeezed {
        busy(source, host, now);
    }
    let physical: Vec<String> = interfaces.links.iter().map(|link| link.name.clone()).collect();
    ways(source, host, now, &physical)?;
    nameservers(source, host, now)?;
    let mut links = interfaces.links;
    let changes = links.iter().filter_map(|link| Some((link.name.as_str(), link.carrier_changes?)));
    let carrier_changes = source.carrier_changes.take(changes);
    let is_any = carrier_changes > 0 || links.iter().any(|link| link.carrier_changes.is_some());
    // Those that went down are never left out.
    links.sort_by_key(|link| (!link.went_down(), link.name.clone()));
    links.truncate(MOST_LINKS);
    let (tcp, udp) = protocols(source, &mut missing);
    Ok(Reading {
        namespace: match source.namespace {
            NetworkNamespace::Hosts => "hosts",
            NetworkNamespace::Own => "own",
            NetworkNamespace::Unknown { .. } => "unknown",
        },
        interfaces: interfaces.totals,
        links,
        softnet: (!source.softnet_before.is_empty()).then_some(source.softnet_sums),
        softirq: softirq(source),
        tcp,
        udp,
        udp6: source.udp6,
        neighbours: neighbours(source, host, &mut missing),
        paths: source.paths_now.clone(),
        paths_running_seconds: source.paths.began().map(|began| now.saturating_sub(began).as_secs_f64()),
        allowances_exceeded_per_second: source.allowances_rate.clone(),
        had_default: source.had_default.clone(),
        had_answer: source.had_answer.clone(),
        resolver: source.resolver_now.clone(),
        missing,
        carrier_changes: is_any.then_some(carrier_changes),
        listed: interfaces.listed,
    })
}

fn miss(missing: &mut Vec<Missing>, what: &'static str, why: impl ToString) {
    missing.push(Missing { what, why: why.to_string() });
}

/// Whether a softirq had to stop with work left since the reading before.
fn softnet(source: &mut Source, missing: &mut Vec<Missing>) -> bool {
    let lines = match source.softnet.read().map(counters::softnet) {
        Ok(Some(lines)) => lines,
        Ok(None) => {
            miss(missing, "softnet", "cannot understand /proc/1/net/softnet_stat");
            return false;
        }
        Err(error) => {
            miss(missing, "softnet", error);
            return false;
        }
    };
    let mut squeezed = false;
    for line in lines {
        let before = source.softnet_before.insert(line.cpu, line);
        let Some(before) = before else { continue };
        let grown = |now: u32, before: u32| u64::from(now.wrapping_sub(before));
        source.softnet_sums.processed += grown(line.processed, before.processed);
        source.softnet_sums.dropped += grown(line.dropped, before.dropped);
        let squeezes = grown(line.time_squeeze, before.time_squeeze);
        source.softnet_sums.time_squeeze += squeezes;
        squeezed |= squeezes > 0;
    }
    squeezed
}

fn limits(source: &mut Source, host: &Host, missing: &mut Vec<Missing>) {
    if let Ok(text) = host.read("/proc/1/net/snmp6") {
        source.udp6 = Udp {
            receive_buffer_errors: counters::snmp6(&text, "Udp6RcvbufErrors"),
            send_buffer_errors: counters::snmp6(&text, "Udp6SndbufErrors"),
        };
    }
    // /proc/sys/net is of the reader's own namespace.
    if let Err(error) = source.namespace.needed_for("net.ipv4.tcp_mem and the neighbour tables' limits") {
        miss(missing, "limits", error);
        return;
    }
    let number = |path: String| host.read(path).ok()?.trim().parse().ok();
    let thresholds = |family: &str| {
        [1, 2, 3].map(|which| number(format!("/proc/sys/net/{family}/neigh/default/gc_thresh{which}")))
    };
    let third = |text: String| text.split_whitespace().nth(2)?.parse().ok();
    source.limits = Limits {
        tcp_memory: host.read("/proc/sys/net/ipv4/tcp_mem").ok().and_then(third),
        ipv4: thresholds("ipv4"),
        ipv6: thresholds("ipv6"),
    };
}

/// What each ksoftirqd used since the look before.
fn busy(source: &mut Source, host: &Host, now: Duration) {
    let per_second = ticks_per_second();
    let mut ticks = BTreeMap::new();
    for (cpu, pid) in &source.ksoftirqd {
        if host.is_confined() {
            let name = host.process_name(*pid).ok().flatten();
            let seconds = host.first_thread_cpu_seconds(*pid).ok().flatten();
            let seconds = seconds.filter(|_| name.is_some_and(|name| name == format!("ksoftirqd/{cpu}")));
            ticks.extend(seconds.map(|seconds| (*cpu, seconds * per_second)));
            continue;
        }
        let text = host.read(format!("/proc/{pid}/stat")).ok();
        // Its processor was taken away, or the number is another process's now.
        let Some(text) = text.filter(|text| text.contains(&format!("(ksoftirqd/{cpu})"))) else { continue };
        ticks.extend(counters::process_ticks(&text).map(|count| (*cpu, count as f64)));
    }
    if ticks.is_empty() {
        source.ksoftirqd_now = None;
        return;
    }
    let before = source.ksoftirqd_before.as_ref();
    let busiest = before.and_then(|(at, before)| {
        let passed = now.saturating_sub(*at).as_secs_f64();
        let used = |(cpu, count): (&u32, &f64)| Some((*cpu, count - before.get(cpu)?));
        let grown = ticks.iter().filter_map(used).filter(|(_, count)| *count >= 0.0);
        let (cpu, count) = grown.max_by(|(_, one), (_, other)| one.total_cmp(other))?;
        (passed > 0.5).then(|| (cpu, count / per_second / passed * 100.0))
    });
    source.ksoftirqd_now = Some(Ksoftirqd {
        cpu_seconds: ticks.values().sum::<f64>() / per_second,
        busiest_cpu: busiest.map(|(cpu, _)| cpu),
        busiest_percent: busiest.map(|(_, percent)| percent),
    });
    source.ksoftirqd_before = Some((now, ticks));
}

fn ticks_per_second() -> f64 {
    // 100 is what every architecture's user space sees.
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten();
    ticks.filter(|ticks| *ticks > 0).map_or(100.0, |ticks| ticks as f64)
}

fn softirq(source: &mut Source) -> Softirq {
    let net_rx = source.softirqs.read().ok().and_then(|text| counters::softirqs(text, "NET_RX"));
    let ticks = source.stat.read().ok().and_then(counters::softirq_ticks);
    Softirq {
        net_rx,
        cpu_seconds: ticks.map(|ticks| ticks as f64 / ticks_per_second()),
        ksoftirqd: source.ksoftirqd_now,
    }
}

fn protocols(source: &mut Source, missing: &mut Vec<Missing>) -> (Tcp, Udp) {
    let (mut tcp, mut udp) = (Tcp::default(), Udp::default());
    match source.snmp.read() {
        Ok(text) => {
            let pairs = counters::pairs(text, "Tcp");
            tcp.sent_segments = counters::counter(pairs.as_ref(), "OutSegs");
            tcp.retransmitted_segments = counters::counter(pairs.as_ref(), "RetransSegs");
            let pairs = counters::pairs(text, "Udp");
            udp.receive_buffer_errors = counters::counter(pairs.as_ref(), "RcvbufErrors");
            udp.send_buffer_errors = counters::counter(pairs.as_ref(), "SndbufErrors");
        }
        Err(error) => miss(missing, "snmp", error),
    }
    match source.netstat.read() {
        Ok(text) => {
            let pairs = counters::pairs(text, "TcpExt");
            let counter = |name| counters::counter(pairs.as_ref(), name);
            tcp.timeouts = counter("TCPTimeouts");
            tcp.listen_overflows = counter("ListenOverflows");
            tcp.listen_drops = counter("ListenDrops");
            tcp.aborted_on_memory = counter("TCPAbortOnMemory");
        }
        Err(error) => miss(missing, "netstat", error),
    }
    match source.sockstat.read() {
        Ok(text) => {
            let number = |name| counters::sockstat(text, "TCP", name);
            tcp.in_use = number("inuse");
            tcp.orphans = number("orphan");
            tcp.time_wait = number("tw");
            tcp.memory_pages = number("mem");
        }
        Err(error) => miss(missing, "sockstat", error),
    }
    tcp.memory_limit_pages = source.limits.tcp_memory;
    (tcp, udp)
}

fn neighbours(
    source: &Source,
    host: &Host,
    missing: &mut Vec<Missing>,
) -> BTreeMap<&'static str, Neighbours> {
    let tables = [("ipv4", "arp_cache", source.limits.ipv4), ("ipv6", "ndisc_cache", source.limits.ipv6)];
    let mut found = BTreeMap::new();
    for (family, file, [gc_thresh1, gc_thresh2, gc_thresh3]) in tables {
        let text = match host.read(format!("/proc/1/net/stat/{file}")) {
            Ok(text) => text,
            // No IPv6; or process 1's namespace is not the machine's first (a node in a container): only that has it.
            Err(ReadError::NotFound { .. }) => continue,
            Err(error) => {
                miss(missing, "neighbours", error);
                continue;
            }
        };
        let Some(table) = counters::neighbour_table(&text) else {
            miss(missing, "neighbours", format!("cannot understand /proc/1/net/stat/{file}"));
            continue;
        };
        let table = Neighbours {
            entries: table.entries,
            gc_thresh1,
            gc_thresh2,
            gc_thresh3,
            table_fulls: table.table_fulls,
            forced_gc_runs: table.forced_gc_runs,
            resolution_failures: table.resolution_failures,
        };
        found.insert(family, table);
    }
    found
}

fn ways(source: &mut Source, host: &Host, now: Duration, physical: &[String]) -> Result<(), ReadError> {
    if now >= source.paths_due && source.paths.began().is_none() {
        let host = host.clone();
        let asks_drivers = now >= source.allowances_due;
        let physical =
            if asks_drivers { physical.iter().take(MOST_LINKS).cloned().collect() } else { Vec::new() };
        source.asked_drivers = asks_drivers;
        let cannot = source.namespace.needed_for("routes and ip rules").err().map(|error| error.to_string());
        source.paths.begin(now, move || match cannot {
            None => paths::ask(&host, &physical),
            Some(why) => paths::read(&host, why),
        });
        source.paths_due = now + PATHS_EVERY;
    }
    let limit = if source.paths_now.is_none() { FIRST } else { Duration::ZERO };
    let Some(mut paths) = source.paths.take(limit)? else { return Ok(()) };
    for (allowance, of) in &paths.allowances_by_interface {
        let sum = source.allowances.entry(allowance.clone()).or_default();
        let sum = sum.take(of.iter().map(|(interface, count)| (interface.as_str(), *count)));
        paths.allowances_exceeded.insert(allowance.clone(), sum);
    }
    let pause = Duration::try_from_secs_f64(paths.took_seconds * 100.0).unwrap_or(PATHS_EVERY);
    source.paths_due = now + pause.max(PATHS_EVERY);
    for family in paths.defaults.iter().map(|route| route.family) {
        if !source.had_default.contains(&family) {
            source.had_default.push(family);
        }
    }
    for gateway in paths.defaults.iter().filter(|route| route.answers()).filter_map(|route| route.gateway) {
        if !source.had_answer.contains(&gateway) && source.had_answer.len() < MOST_GATEWAYS {
            source.had_answer.push(gateway);
        }
    }
    if source.asked_drivers {
        // A driver that has none will have none in ten seconds either.
        source.allowances_due = now + if paths.allowances_exceeded.is_empty() { DRIVERS_EVERY } else { NONE };
    }
    let before = source.allowances_before.replace((now, paths.allowances_exceeded.clone()));
    if let Some((at, before)) = before {
        let passed = now.saturating_sub(at).as_secs_f64();
        let rate = |(name, value): (&String, &u64)| {
            let grown = value.checked_sub(*before.get(name)?)?;
            (passed > 0.0).then(|| (name.clone(), grown as f64 / passed))
        };
        source.allowances_rate = paths.allowances_exceeded.iter().filter_map(rate).collect();
    }
    source.paths_now = Some(paths);
    Ok(())
}

fn nameservers(source: &mut Source, host: &Host, now: Duration) -> Result<(), ReadError> {
    if now >= source.resolver_due && source.resolver.began().is_none() {
        let (asking, own) = (host.clone(), source.namespace == NetworkNamespace::Own);
        source.resolver.begin(now, move || {
            let name = api_server::name(&asking);
            resolver::ask(&asking, name, own)
        });
        source.resolver_due = now + RESOLVER_EVERY;
    }
    let Some(resolver) = source.resolver.take(Duration::ZERO)? else { return Ok(()) };
    let every = if resolver.is_silent() { RESOLVER_SILENT_EVERY } else { RESOLVER_EVERY };
    source.resolver_due = now + every;
    source.resolver_now = Some(resolver);
    Ok(())
}

fn summary(reading: &Reading) -> String {
    let count: usize = reading.interfaces.values().map(|totals| totals.count).sum();
    let gateway = reading.paths.as_ref().and_then(|paths| paths.defaults.first());
    let way = gateway.map_or_else(
        || "no default route".to_owned(),
        |route| {
            let interface = route.interface.as_deref().unwrap_or("?");
            match route.gateway {
                Some(gateway) => format!("default via {gateway} ({interface})"),
                None => format!("default by {interface}"),
            }
        },
    );
    let way = if reading.paths.is_none() { "routes not read yet".to_owned() } else { way };
    let answer = reading.resolver.as_ref().map_or_else(
        || "nameservers not asked yet".to_owned(),
        |resolver| {
            let answered = resolver.nameservers.iter().filter(|server| server.answered()).count();
            format!("{answered} of {} nameservers answer", resolver.nameservers.len())
        },
    );
    format!("{count} interfaces, {way}, {answer}")
}

#[derive(Serialize)]
struct Whole<'a> {
    interfaces: &'a [Listed],
    links: &'a [Link],
    #[serde(flatten)]
    paths: Option<&'a Paths>,
    rules_listed: &'a [crate::host::rtnetlink::Rule],
    routes_listed: &'a [crate::host::rtnetlink::Route],
    neighbours: &'a BTreeMap<&'static str, Neighbours>,
    resolver: Option<&'a Resolver>,
    missing: &'a [Missing],
}

fn page(reading: &Reading) -> Result<serde_json::Value, serde_json::Error> {
    let paths = reading.paths.as_ref();
    serde_json::to_value(Whole {
        interfaces: &reading.listed,
        links: &reading.links,
        paths,
        rules_listed: paths.map_or(&[], |paths| &paths.rule_list),
        routes_listed: paths.map_or(&[], |paths| &paths.route_list),
        neighbours: &reading.neighbours,
        resolver: reading.resolver.as_ref(),
        missing: &reading.missing,
    })
}

/// Every parser of this collector, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    use crate::fuzz::{done, text};
    let text = text(bytes);
    let pairs = counters::pairs(&text, "Tcp");
    done(counters::counter(pairs.as_ref(), "RetransSegs"));
    done(counters::snmp6(&text, "Ip6InReceives"));
    done(counters::sockstat(&text, "TCP", "mem"));
    done(counters::softnet(&text));
    done(counters::dev(&text));
    done(counters::neighbour_table(&text));
    done((
        counters::softirqs(&text, "NET_RX"),
        counters::softirq_ticks(&text),
        counters::process_ticks(&text),
    ));
    paths::fuzz(bytes);
}

#[cfg(test)]
mod tests;
