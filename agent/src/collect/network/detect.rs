//! What is abnormal.

use std::time::Duration;

use nodewhy_proto::{Change, EventBody, Evidence, Origin, Severity, Subject, SubjectKind};

use super::Reading;
use super::interfaces::Link;
use super::paths::Default as DefaultRoute;
use crate::collector::{Abnormal, Happening, Noticed, Pair};
use crate::host::rtnetlink::{Family, Neighbour};
use crate::thresholds::{Heuristic, Thresholds};

pub(super) static LIMITS: &[&Heuristic] =
    &[&SOFTNET_DROPS, &KSOFTIRQD, &NEIGHBOURS, &TCP_MEMORY, &LISTEN_OVERFLOWS, &ALLOWANCE];

static SOFTNET_DROPS: Heuristic = Heuristic {
    name: "softnet_drops_per_second",
    about: "packets a second that softirqs drop since their queue is full, above which they cannot keep up",
    value: 10.0,
};
static KSOFTIRQD: Heuristic = Heuristic {
    name: "ksoftirqd_percent",
    about: "share of its processor that a ksoftirqd uses, above which packets storm, if work is left over too",
    value: 80.0,
};
static NEIGHBOURS: Heuristic = Heuristic {
    name: "neighbour_table_percent",
    about: "share of gc_thresh3 in use from which the neighbour table is full",
    value: 95.0,
};
static TCP_MEMORY: Heuristic = Heuristic {
    name: "tcp_memory_percent",
    about: "share of net.ipv4.tcp_mem's limit in use from which TCP's memory is exhausted",
    value: 95.0,
};
static LISTEN_OVERFLOWS: Heuristic = Heuristic {
    name: "listen_overflows_per_second",
    about: "connections a second that find their listener's queue full, above which it is worth knowing",
    value: 1.0,
};
static ALLOWANCE: Heuristic = Heuristic {
    name: "nic_allowance_exceeded_per_second",
    about: "packets a second over the cloud instance's allowance, above which it is exceeded",
    value: 0.01,
};

const NONE: Duration = Duration::ZERO;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(super) fn detect(pair: Pair<'_, Reading>, thresholds: &Thresholds, noticed: &mut Noticed) {
    let Pair { now, before, at } = &pair;
    let passed = before.map(|(_, earlier)| at.boot.saturating_sub(earlier.boot).as_secs_f64());
    // A rate of two counters; `None`: there is no reading before, or the counter began anew.
    let rate = |counter: fn(&Reading) -> Option<u64>| {
        let grown = counter(now)?.checked_sub(counter(before.as_ref()?.0)?)?;
        passed.filter(|passed| *passed > 0.0).map(|passed| grown as f64 / passed)
    };
    softirqs(now, &rate, thresholds, noticed);
    neighbours(&pair, thresholds, noticed);
    tcp(now, &rate, thresholds, noticed);
    noticed.states.extend(now.links.iter().filter(|link| link.went_down()).map(down));
    ways(&pair, noticed);
    allowances(now, thresholds, noticed);
    resolver(now, noticed);
    for state in &mut noticed.states {
        for evidence in &mut state.evidence {
            evidence.at.get_or_insert(at.wall);
        }
    }
}

type Rate<'a> = dyn Fn(fn(&Reading) -> Option<u64>) -> Option<f64> + 'a;

fn softirqs(now: &Reading, rate: &Rate<'_>, thresholds: &Thresholds, noticed: &mut Noticed) {
    let limit = thresholds.limit(&SOFTNET_DROPS);
    if let Some(drops) = rate(|it| it.softnet.map(|it| it.dropped)).filter(|drops| *drops > limit.value) {
        noticed.states.push(Abnormal {
            finding: "softnet_dropping",
            subject: Subject::node(),
            severity: Severity::Warning,
            summary: format!("{drops:.0} packets/s that came are dropped: the kernel's queue is full"),
            evidence: vec![
                Evidence::new(
                    format!("dropped {drops:.1}/s, above {}", limit.value),
                    "/proc/1/net/softnet_stat",
                )
                .with_value(drops, "1/s")
                .with_threshold(limit.value, limit.origin),
            ],
            since: None,
            hold: seconds(10),
            clear_after: seconds(20),
        });
    }
    let limit = thresholds.limit(&KSOFTIRQD);
    let squeezes = rate(|it| it.softnet.map(|it| it.time_squeeze)).filter(|squeezes| *squeezes > 0.0);
    let busy = now.softirq.ksoftirqd.and_then(|it| it.busiest_cpu.zip(it.busiest_percent));
    if let (Some((cpu, percent)), Some(squeezes)) = (busy.filter(|(_, it)| *it > limit.value), squeezes) {
        noticed.states.push(Abnormal {
            finding: "packet_storm",
            subject: Subject::node(),
            severity: Severity::Warning,
            summary: format!(
                "ksoftirqd/{cpu} uses {percent:.0} % of its processor: more packets than it can take"
            ),
            evidence: vec![
                Evidence::new(
                    format!("ksoftirqd/{cpu} {percent:.0} % of a processor, above {} %", limit.value),
                    "/proc/PID/stat",
                )
                .with_value(percent, "percent")
                .with_threshold(limit.value, limit.origin),
                Evidence::new(format!("time_squeeze {squeezes:.1}/s"), "/proc/1/net/softnet_stat")
                    .with_value(squeezes, "1/s"),
            ],
            since: None,
            hold: seconds(10),
            clear_after: seconds(20),
        });
    }
}

fn neighbours(pair: &Pair<'_, Reading>, thresholds: &Thresholds, noticed: &mut Noticed) {
    let limit = thresholds.limit(&NEIGHBOURS);
    for (family, table) in &pair.now.neighbours {
        let Some(most) = table.gc_thresh3.filter(|most| *most > 0) else { continue };
        let percent = table.entries as f64 * 100.0 / most as f64;
        let before = pair.before.and_then(|(before, _)| before.neighbours.get(family)?.table_fulls);
        let refused = table.table_fulls.zip(before).and_then(|(now, before)| now.checked_sub(before));
        let refused = refused.filter(|refused| *refused > 0);
        if percent < limit.value && refused.is_none() {
            continue;
        }
        let file =
            format!("/proc/1/net/stat/{}", if *family == "ipv4" { "arp_cache" } else { "ndisc_cache" });
        let text = format!("{} entries of {most} (gc_thresh3), {percent:.0} %", table.entries);
        let mut evidence = vec![
            Evidence::new(text.clone(), file.as_str())
                .with_value(percent, "percent")
                .with_threshold(limit.value, limit.origin),
        ];
        evidence.extend(refused.map(|refused| {
            Evidence::new(format!("{refused} entries were refused (table_fulls)"), file.as_str())
                .with_value(refused as f64, "entries")
        }));
        noticed.states.push(Abnormal {
            finding: "neighbour_table_full",
            subject: Subject::node(),
            severity: Severity::Warning,
            summary: format!(
                "the {family} neighbour table is full: {text}, for all pods of the node together"
            ),
            evidence,
            since: None,
            hold: NONE,
            clear_after: seconds(30),
        });
    }
}

fn tcp(now: &Reading, rate: &Rate<'_>, thresholds: &Thresholds, noticed: &mut Noticed) {
    let limit = thresholds.limit(&TCP_MEMORY);
    let used = now.tcp.memory_pages.zip(now.tcp.memory_limit_pages.filter(|most| *most > 0));
    let aborted = rate(|it| it.tcp.aborted_on_memory).filter(|aborted| *aborted > 0.0);
    if let Some((pages, most)) = used {
        let percent = pages as f64 * 100.0 / most as f64;
        // TCPAbortOnMemory alone is no proof: connections beyond net.ipv4.tcp_max_orphans count there too.
        if percent >= limit.value {
            let mut evidence = vec![
                Evidence::new(format!("{pages} pages of {most}, {percent:.0} %"), "/proc/1/net/sockstat")
                    .with_value(percent, "percent")
                    .with_threshold(limit.value, limit.origin),
            ];
            evidence.extend(aborted.map(|aborted| {
                Evidence::new(format!("TCPAbortOnMemory {aborted:.1}/s"), "/proc/1/net/netstat")
                    .with_value(aborted, "1/s")
            }));
            noticed.states.push(Abnormal {
                finding: "tcp_memory_exhausted",
                subject: Subject::node(),
                severity: Severity::Warning,
                summary: format!("TCP's buffers use {percent:.0} % of net.ipv4.tcp_mem: connections starve"),
                evidence,
                since: None,
                hold: NONE,
                clear_after: seconds(30),
            });
        }
    }
    let limit = thresholds.limit(&LISTEN_OVERFLOWS);
    let overflows = rate(|it| it.tcp.listen_overflows).filter(|overflows| *overflows > limit.value);
    if let Some(overflows) = overflows {
        noticed.states.push(Abnormal {
            finding: "listen_queue_overflow",
            subject: Subject::node(),
            severity: Severity::Info,
            summary: format!("{overflows:.0} connections/s find a listener of the host's network full"),
            evidence: vec![
                Evidence::new(
                    format!("ListenOverflows {overflows:.1}/s, above {}", limit.value),
                    "/proc/1/net/netstat",
                )
                .with_value(overflows, "1/s")
                .with_threshold(limit.value, limit.origin),
            ],
            since: None,
            hold: seconds(10),
            clear_after: seconds(30),
        });
    }
}

fn down(link: &Link) -> Abnormal {
    let state = link.operstate.as_deref().unwrap_or("unknown");
    let why = if link.enabled == Some(false) { "it was switched off" } else { "it has no carrier" };
    Abnormal {
        finding: "interface_down",
        subject: Subject::new(SubjectKind::Interface, link.name.clone()),
        severity: Severity::Warning,
        summary: format!("{} is down and was up: {why}", link.name),
        evidence: vec![Evidence::new(
            format!("operstate {state}, {}", why),
            format!("/sys/class/net/{}/operstate", link.name),
        )],
        since: None,
        hold: seconds(2),
        clear_after: seconds(5),
    }
}

fn ways(pair: &Pair<'_, Reading>, noticed: &mut Noticed) {
    let Some(paths) = &pair.now.paths else { return };
    let lost: Vec<Family> = pair
        .now
        .had_default
        .iter()
        .copied()
        .filter(|family| paths.families.contains(family))
        .filter(|family| !paths.defaults.iter().any(|route| route.family == *family))
        .collect();
    if !lost.is_empty() {
        let words: Vec<&str> = lost.iter().map(|family| family.word()).collect();
        // A router's announcement that ended takes IPv6's away, which most clusters never use.
        let is_ipv6_alone = lost == [Family::V6] && !paths.defaults.is_empty();
        noticed.states.push(Abnormal {
            finding: "no_default_route",
            subject: Subject::node(),
            severity: if is_ipv6_alone { Severity::Warning } else { Severity::Critical },
            summary: format!("the default route is gone ({})", words.join(", ")),
            evidence: vec![Evidence::new("there was one, and there is none", paths.source)],
            since: None,
            hold: NONE,
            clear_after: NONE,
        });
    }
    // A second way out that never led anywhere (IPv6 that nobody routes) is no change of this node's.
    let is_used = |route: &&DefaultRoute| {
        route.gateway.is_some_and(|gateway| pair.now.had_answer.contains(&gateway))
            || !paths.defaults.iter().any(DefaultRoute::answers)
    };
    let silent = paths.defaults.iter().filter(|route| route.neighbour.is_some_and(|it| it.is_silent()));
    let silent = silent.filter(is_used);
    // The first is proof enough; a second default route is mostly the same gateway's.
    if let Some(route) = silent.into_iter().next() {
        let gateway = route.gateway.map(|gateway| gateway.to_string()).unwrap_or_default();
        let interface = route.interface.as_deref().unwrap_or("?");
        noticed.states.push(Abnormal {
            finding: "gateway_unreachable",
            subject: Subject::node(),
            severity: Severity::Warning,
            summary: format!("nobody answers for the gateway {gateway} on {interface}"),
            evidence: vec![Evidence::new(
                format!(
                    "neighbour {gateway} on {interface} is {}",
                    route.neighbour.map_or("unknown", Neighbour::word)
                ),
                paths.source,
            )],
            since: None,
            // Looked at every ten seconds: two in a row, for the first question of all has no answer yet either.
            hold: seconds(12),
            clear_after: NONE,
        });
    }
    let before = pair.before.and_then(|(before, _)| before.paths.as_ref());
    let Some(before) = before else { return };
    let mut flushed = |what: &str, name: String, was: u64, is: u64| {
        // A handful is a pod's; half of them is nobody's daily work.
        if was >= 4 && is * 2 <= was {
            let change =
                Change { what: what.to_owned(), name, from: Some(was.to_string()), to: Some(is.to_string()) };
            noticed.happenings.push(Happening { key: None, at: None, body: EventBody::Changed(change) });
        }
    };
    for (family, was) in &before.rules {
        if let Some(is) = paths.rules.get(family) {
            flushed("ip_rules", format!("{family} rules"), *was, *is);
        }
    }
    for (family, makers) in &before.routes {
        let Some(now) = paths.routes.get(family) else { continue };
        for (maker, was) in makers {
            flushed(
                "routes",
                format!("{family} routes of {maker}"),
                *was,
                now.get(maker).copied().unwrap_or(0),
            );
        }
    }
}

fn allowances(now: &Reading, thresholds: &Thresholds, noticed: &mut Noticed) {
    let limit = thresholds.limit(&ALLOWANCE);
    let exceeded: Vec<(&String, f64)> = now
        .allowances_exceeded_per_second
        .iter()
        .map(|(name, rate)| (name, *rate))
        .filter(|(_, rate)| *rate > limit.value)
        .collect();
    let Some((worst, rate)) = exceeded.iter().max_by(|one, other| one.1.total_cmp(&other.1)) else { return };
    noticed.states.push(Abnormal {
        finding: "nic_allowance_exceeded",
        subject: Subject::node(),
        severity: Severity::Warning,
        summary: format!("the cloud's network holds packets back: {worst} {rate:.1}/s"),
        evidence: exceeded
            .iter()
            .map(|(name, rate)| {
                Evidence::new(format!("{name} {rate:.1}/s"), "ethtool -S")
                    .with_value(*rate, "1/s")
                    .with_threshold(limit.value, limit.origin)
            })
            .collect(),
        since: None,
        hold: seconds(30),
        clear_after: seconds(30),
    });
}

fn resolver(now: &Reading, noticed: &mut Noticed) {
    let Some(resolver) = now.resolver.as_ref().filter(|resolver| resolver.is_silent()) else { return };
    let evidence = resolver.nameservers.iter().map(|server| {
        let text = match &server.error {
            Some(error) => format!("{}: {error}", server.address),
            None => format!("{} {} when asked for {}", server.address, server.outcome, resolver.question),
        };
        Evidence::new(text, "a question of our own over UDP").with_threshold(2.0, Origin::Heuristic)
    });
    noticed.states.push(Abnormal {
        finding: "name_resolution_failing",
        subject: Subject::node(),
        severity: Severity::Warning,
        summary: format!("none of {} nameservers of /etc/resolv.conf answers", resolver.nameservers.len()),
        evidence: evidence.collect(),
        since: None,
        hold: seconds(30),
        clear_after: NONE,
    });
}
