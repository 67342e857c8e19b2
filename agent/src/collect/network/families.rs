//! The metrics.

use super::Reading;
use crate::metrics::{Family, Sink};

pub(super) static FAMILIES: &[&Family] = &[
    &INTERFACES,
    &BYTES,
    &PACKETS,
    &ERRORS,
    &DROPS,
    &LINKS_DOWN,
    &CARRIER_CHANGES,
    &SOFTNET_PROCESSED,
    &SOFTNET_DROPPED,
    &SOFTNET_SQUEEZED,
    &NET_RX,
    &SOFTIRQ_SECONDS,
    &KSOFTIRQD_SECONDS,
    &KSOFTIRQD_BUSIEST,
    &TCP_SENT,
    &TCP_RETRANSMITTED,
    &TCP_TIMEOUTS,
    &LISTEN_OVERFLOWS,
    &LISTEN_DROPS,
    &TCP_ABORTED,
    &TCP_SOCKETS,
    &TCP_MEMORY,
    &TCP_MEMORY_LIMIT,
    &UDP_ERRORS,
    &NEIGHBOURS,
    &NEIGHBOUR_LIMIT,
    &NEIGHBOUR_FULL,
    &NEIGHBOUR_FAILURES,
    &DEFAULT_ROUTES,
    &GATEWAYS_SILENT,
    &RULES,
    &ROUTES,
    &ALLOWANCES,
    &NAMESERVERS,
    &NAMESERVER_SECONDS,
];

static INTERFACES: Family =
    Family::gauge("nodewhy_network_interfaces", "Interfaces of the host's network namespace.").by(&["kind"]);
static BYTES: Family = Family::counter(
    "nodewhy_network_bytes_total",
    "Bytes of all interfaces of a kind since the agent began, those that are gone included.",
)
.by(&["kind", "direction"]);
static PACKETS: Family = Family::counter(
    "nodewhy_network_packets_total",
    "Packets of all interfaces of a kind since the agent began.",
)
.by(&["kind", "direction"]);
static ERRORS: Family = Family::counter(
    "nodewhy_network_errors_total",
    "Errors of all interfaces of a kind since the agent began.",
)
.by(&["kind", "direction"]);
static DROPS: Family = Family::counter(
    "nodewhy_network_drops_total",
    "Packets that interfaces of a kind dropped since the agent began.",
)
.by(&["kind", "direction"]);
static LINKS_DOWN: Family = Family::gauge(
    "nodewhy_network_links_down",
    "Physical interfaces that are down and were up at some time of the agent's life.",
);
static CARRIER_CHANGES: Family = Family::counter(
    "nodewhy_network_carrier_changes_total",
    "How often the carrier of a physical interface came or went, summed over the interfaces.",
);
static SOFTNET_PROCESSED: Family = Family::counter(
    "nodewhy_network_softnet_processed_total",
    "Packets that softirqs took, of all processors, since the agent began.",
);
static SOFTNET_DROPPED: Family = Family::counter(
    "nodewhy_network_softnet_dropped_total",
    "Packets dropped since net.core.netdev_max_backlog was full, since the agent began.",
);
static SOFTNET_SQUEEZED: Family = Family::counter(
    "nodewhy_network_softnet_time_squeezes_total",
    "Times that a softirq had to stop with work left, since the agent began.",
);
static NET_RX: Family =
    Family::counter("nodewhy_network_rx_softirqs_total", "NET_RX softirqs of all processors.");
static SOFTIRQ_SECONDS: Family =
    Family::counter("nodewhy_softirq_cpu_seconds_total", "Processor time in softirqs of all kinds.");
static KSOFTIRQD_SECONDS: Family = Family::counter(
    "nodewhy_ksoftirqd_cpu_seconds_total",
    "Processor time of all threads ksoftirqd; up to 30 s old while nothing is squeezed.",
);
static KSOFTIRQD_BUSIEST: Family = Family::gauge(
    "nodewhy_ksoftirqd_busiest_ratio",
    "The share of its processor that the busiest ksoftirqd used between the two newest looks.",
);
static TCP_SENT: Family = Family::counter("nodewhy_tcp_sent_segments_total", "TCP segments sent.");
static TCP_RETRANSMITTED: Family =
    Family::counter("nodewhy_tcp_retransmitted_segments_total", "TCP segments sent again.");
static TCP_TIMEOUTS: Family = Family::counter("nodewhy_tcp_timeouts_total", "TCP's timeouts.");
static LISTEN_OVERFLOWS: Family = Family::counter(
    "nodewhy_tcp_listen_overflows_total",
    "Connections that came while a listener's queue was full.",
);
static LISTEN_DROPS: Family =
    Family::counter("nodewhy_tcp_listen_drops_total", "Connections that were dropped at a listener.");
static TCP_ABORTED: Family =
    Family::counter("nodewhy_tcp_aborted_on_memory_total", "TCP connections given up for want of memory.");
static TCP_SOCKETS: Family =
    Family::gauge("nodewhy_tcp_sockets", "TCP sockets of the host's namespace.").by(&["state"]);
static TCP_MEMORY: Family =
    Family::gauge("nodewhy_tcp_memory_pages", "Memory of TCP's buffers, of all namespaces, in pages.");
static TCP_MEMORY_LIMIT: Family =
    Family::gauge("nodewhy_tcp_memory_limit_pages", "The limit of that memory (net.ipv4.tcp_mem).");
static UDP_ERRORS: Family =
    Family::counter("nodewhy_udp_buffer_errors_total", "Datagrams dropped for want of a socket's buffer.")
        .by(&["family", "direction"]);
static NEIGHBOURS: Family =
    Family::gauge("nodewhy_neighbour_entries", "Entries of the neighbour table, of all namespaces.")
        .by(&["family"]);
static NEIGHBOUR_LIMIT: Family =
    Family::gauge("nodewhy_neighbour_entries_limit", "Its limit (gc_thresh3).").by(&["family"]);
static NEIGHBOUR_FULL: Family = Family::counter(
    "nodewhy_neighbour_table_fulls_total",
    "Entries that were refused since the neighbour table was full.",
)
.by(&["family"]);
static NEIGHBOUR_FAILURES: Family =
    Family::counter("nodewhy_neighbour_resolution_failures_total", "Addresses that nobody answered for.")
        .by(&["family"]);
static DEFAULT_ROUTES: Family =
    Family::gauge("nodewhy_default_routes", "Default routes, of all tables.").by(&["family"]);
static GATEWAYS_SILENT: Family = Family::gauge(
    "nodewhy_gateways_silent",
    "Gateways of default routes whose neighbour entry is failed or without an answer.",
);
static RULES: Family = Family::gauge("nodewhy_ip_rules", "ip rules.").by(&["family"]);
static ROUTES: Family = Family::gauge(
    "nodewhy_routes",
    "Routes of all tables but the kernel's own of local addresses, by who made them.",
)
.by(&["family", "protocol"]);
static ALLOWANCES: Family = Family::counter(
    "nodewhy_network_allowance_exceeded_total",
    "Packets that the cloud's network dropped or delayed over the instance's allowance (driver's statistics).",
)
.by(&["allowance"]);
static NAMESERVERS: Family = Family::gauge(
    "nodewhy_nameservers",
    "Nameservers of /etc/resolv.conf by how they answered when they were asked last.",
)
.by(&["outcome"]);
static NAMESERVER_SECONDS: Family = Family::gauge(
    "nodewhy_nameserver_answer_seconds",
    "Time to the answer of the slowest nameserver that answered.",
);

pub(super) fn metrics(reading: &Reading, sink: &mut Sink) {
    let count = |value: Option<u64>| value.map(|value| value as f64);
    for (kind, totals) in &reading.interfaces {
        let (kind, it) = (kind.word(), &totals.traffic);
        sink.put(&INTERFACES, &[kind], totals.count as f64);
        for (family, received, sent) in [
            (&BYTES, it.receive_bytes, it.transmit_bytes),
            (&PACKETS, it.receive_packets, it.transmit_packets),
            (&ERRORS, it.receive_errors, it.transmit_errors),
            (&DROPS, it.receive_dropped, it.transmit_dropped),
        ] {
            sink.put(family, &[kind, "receive"], received as f64);
            sink.put(family, &[kind, "transmit"], sent as f64);
        }
    }
    sink.put(&LINKS_DOWN, &[], reading.links.iter().filter(|link| link.went_down()).count() as f64);
    sink.put_some(&CARRIER_CHANGES, &[], count(reading.carrier_changes));
    if let Some(softnet) = reading.softnet {
        sink.put(&SOFTNET_PROCESSED, &[], softnet.processed as f64);
        sink.put(&SOFTNET_DROPPED, &[], softnet.dropped as f64);
        sink.put(&SOFTNET_SQUEEZED, &[], softnet.time_squeeze as f64);
    }
    sink.put_some(&NET_RX, &[], count(reading.softirq.net_rx));
    sink.put_some(&SOFTIRQ_SECONDS, &[], reading.softirq.cpu_seconds);
    if let Some(ksoftirqd) = reading.softirq.ksoftirqd {
        sink.put(&KSOFTIRQD_SECONDS, &[], ksoftirqd.cpu_seconds);
        sink.put_some(&KSOFTIRQD_BUSIEST, &[], ksoftirqd.busiest_percent.map(|percent| percent / 100.0));
    }
    protocols(reading, sink);
    for (family, table) in &reading.neighbours {
        sink.put(&NEIGHBOURS, &[family], table.entries as f64);
        sink.put_some(&NEIGHBOUR_LIMIT, &[family], count(table.gc_thresh3));
        sink.put_some(&NEIGHBOUR_FULL, &[family], count(table.table_fulls));
        sink.put_some(&NEIGHBOUR_FAILURES, &[family], count(table.resolution_failures));
    }
    ways(reading, sink);
    if let Some(resolver) = reading.resolver.as_ref().filter(|resolver| !resolver.nameservers.is_empty()) {
        for outcome in ["answered", "timed_out", "refused", "failed"] {
            let with = resolver.nameservers.iter().filter(|server| server.outcome == outcome).count();
            sink.put(&NAMESERVERS, &[outcome], with as f64);
        }
        let slowest = resolver.nameservers.iter().filter_map(|server| server.answer_seconds);
        sink.put_some(&NAMESERVER_SECONDS, &[], slowest.max_by(f64::total_cmp));
    }
}

fn protocols(reading: &Reading, sink: &mut Sink) {
    let tcp = reading.tcp;
    for (family, value) in [
        (&TCP_SENT, tcp.sent_segments),
        (&TCP_RETRANSMITTED, tcp.retransmitted_segments),
        (&TCP_TIMEOUTS, tcp.timeouts),
        (&LISTEN_OVERFLOWS, tcp.listen_overflows),
        (&LISTEN_DROPS, tcp.listen_drops),
        (&TCP_ABORTED, tcp.aborted_on_memory),
        (&TCP_MEMORY, tcp.memory_pages),
        (&TCP_MEMORY_LIMIT, tcp.memory_limit_pages),
    ] {
        sink.put_some(family, &[], value.map(|value| value as f64));
    }
    for (state, value) in [("in_use", tcp.in_use), ("orphan", tcp.orphans), ("time_wait", tcp.time_wait)] {
        sink.put_some(&TCP_SOCKETS, &[state], value.map(|value| value as f64));
    }
    for (family, udp) in [("ipv4", reading.udp), ("ipv6", reading.udp6)] {
        for (direction, value) in
            [("receive", udp.receive_buffer_errors), ("transmit", udp.send_buffer_errors)]
        {
            sink.put_some(&UDP_ERRORS, &[family, direction], value.map(|value| value as f64));
        }
    }
}

fn ways(reading: &Reading, sink: &mut Sink) {
    let Some(paths) = &reading.paths else { return };
    for family in &paths.families {
        let count = paths.defaults.iter().filter(|route| route.family == *family).count();
        sink.put(&DEFAULT_ROUTES, &[family.word()], count as f64);
    }
    let known: Vec<bool> =
        paths.defaults.iter().filter_map(|route| route.neighbour).map(|it| it.is_silent()).collect();
    if !known.is_empty() {
        sink.put(&GATEWAYS_SILENT, &[], known.iter().filter(|silent| **silent).count() as f64);
    }
    for (family, rules) in &paths.rules {
        sink.put(&RULES, &[family], *rules as f64);
    }
    for (family, makers) in &paths.routes {
        for (maker, routes) in makers {
            sink.put(&ROUTES, &[family, maker], *routes as f64);
        }
    }
    for (allowance, exceeded) in &paths.allowances_exceeded {
        sink.put(&ALLOWANCES, &[allowance.trim_end_matches("_allowance_exceeded")], *exceeded as f64);
    }
}
