use std::path::Path;

use nodewhy_clock::{Clock, Stamp};
use nodewhy_proto::Severity;

use super::interfaces::Kind;
use super::*;
use crate::collector::{Abnormal, Noticed, Pair};
use crate::host::Places;
use crate::metrics::Sink;
use crate::thresholds::Thresholds;

// Recorded on Linux 6.18.44.
const FILES: [(&str, &str); 11] = [
    ("dev", include_str!("../../../fixtures/network/linux-6.18.44-dev.txt")),
    ("softnet_stat", include_str!("../../../fixtures/network/linux-6.18.44-softnet_stat.txt")),
    ("snmp", include_str!("../../../fixtures/network/linux-6.18.44-snmp.txt")),
    ("netstat", include_str!("../../../fixtures/network/linux-6.18.44-netstat.txt")),
    ("snmp6", include_str!("../../../fixtures/network/linux-6.18.44-snmp6.txt")),
    ("sockstat", include_str!("../../../fixtures/network/linux-6.18.44-sockstat.txt")),
    ("route", include_str!("../../../fixtures/network/linux-6.18.44-route.txt")),
    ("ipv6_route", include_str!("../../../fixtures/network/linux-6.18.44-ipv6_route.txt")),
    ("arp", include_str!("../../../fixtures/network/linux-6.18.44-arp.txt")),
    ("stat/arp_cache", include_str!("../../../fixtures/network/linux-6.18.44-arp_cache.txt")),
    ("stat/ndisc_cache", include_str!("../../../fixtures/network/linux-6.18.44-ndisc_cache.txt")),
];

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// The recorded node: eth0 with a device, and ifb0 and ifb1 that are down for ever.
fn node() -> (tempfile::TempDir, Host, nodewhy_clock::Mover) {
    let root = tempfile::tempdir().unwrap();
    for (file, text) in FILES {
        write(root.path(), &format!("proc/1/net/{file}"), text);
    }
    write(root.path(), "proc/softirqs", include_str!("../../../fixtures/network/linux-6.18.44-softirqs.txt"));
    write(root.path(), "proc/stat", "cpu  10132153 290696 3084719 46828483 16683 0 25195 0 175628 0\n");
    for (pid, name) in [(1, "systemd"), (2, "kthreadd"), (14, "ksoftirqd/0"), (23, "ksoftirqd/1")] {
        crate::host::process::made::process(root.path(), pid, name, 'S');
    }
    for (file, text) in
        [("operstate", "up\n"), ("flags", "0x1003\n"), ("carrier_changes", "2\n"), ("speed", "10000\n")]
    {
        write(root.path(), &format!("sys/class/net/eth0/{file}"), text);
    }
    write(root.path(), "sys/class/net/eth0/device/vendor", "0x1af4\n");
    for dummy in ["ifb0", "ifb1"] {
        write(root.path(), &format!("sys/class/net/{dummy}/operstate"), "down\n");
        write(root.path(), &format!("sys/class/net/{dummy}/flags"), "0x82\n");
    }
    let (clock, mover) = Clock::skippable();
    let host = Host::new(root.path(), clock, Places::default());
    (root, host, mover)
}

fn noticed(now: &Reading, before: Option<&Reading>) -> Vec<Abnormal> {
    let at = Clock::system().stamp();
    let earlier = Stamp { boot: at.boot.saturating_sub(Duration::from_secs(2)), ..at };
    let pair = Pair { before: before.map(|before| (before, earlier)), now, at };
    let mut noticed = Noticed::default();
    detect::detect(pair, &Thresholds::default(), &mut noticed);
    noticed.states
}

fn names(states: &[Abnormal]) -> Vec<&'static str> {
    states.iter().map(|state| state.finding).collect()
}

#[test]
fn the_recorded_node_is_read_and_is_well() {
    let (_root, host, _) = node();
    let mut source = open(&host).unwrap();
    let first = read(&mut source, &host).unwrap();
    let reading = read(&mut source, &host).unwrap();
    assert_eq!(reading.interfaces[&Kind::Physical].count, 1);
    assert_eq!(reading.interfaces[&Kind::Virtual].count, 2);
    assert_eq!(reading.links[0].speed_megabits, Some(10_000));
    // The agent's own network namespace is not the made-up root's: /proc/1/net tells what it can.
    assert_ne!(reading.namespace, "hosts");
    let paths = reading.paths.as_ref().unwrap();
    assert_eq!((paths.source, paths.defaults.len()), ("/proc/1/net", 2));
    assert!(paths.missing[0].contains("rules, tables and counts of routes"), "{:?}", paths.missing);
    assert!(paths.rules.is_empty(), "no rule was counted, and none is said to be there");
    assert_eq!(reading.softirq.ksoftirqd.unwrap().cpu_seconds, 0.06);
    assert_eq!(names(&noticed(&reading, Some(&first))), Vec::<&str>::new());
    let mut sink = Sink::default();
    families::metrics(&reading, &mut sink);
    let text = sink.encode();
    assert!(text.contains("nodewhy_default_routes{family=\"ipv4\"} 1"), "{text}");
    assert!(!text.contains("nodewhy_ip_rules"), "{text}");
    assert!(!text.contains("nodewhy_neighbour_entries_limit"), "a limit that was not read");
}

#[test]
fn a_physical_interface_that_was_up_and_goes_down_is_told_and_a_dummy_is_not() {
    let (root, host, _) = node();
    let mut source = open(&host).unwrap();
    assert!(noticed(&read(&mut source, &host).unwrap(), None).is_empty());
    write(root.path(), "sys/class/net/eth0/operstate", "down\n");
    let states = noticed(&read(&mut source, &host).unwrap(), None);
    assert_eq!(names(&states), ["interface_down"]);
    assert_eq!(states[0].subject.name, "eth0");
    assert!(states[0].summary.contains("no carrier"));
    write(root.path(), "sys/class/net/eth0/flags", "0x1002\n");
    assert!(noticed(&read(&mut source, &host).unwrap(), None)[0].summary.contains("switched off"));
    // One that never was up in the agent's life is nobody's loss.
    assert!(noticed(&read(&mut open(&host).unwrap(), &host).unwrap(), None).is_empty());
}

#[test]
fn sums_by_kind_only_grow_though_interfaces_go() {
    let (root, host, _) = node();
    let mut source = open(&host).unwrap();
    let bytes = |reading: &Reading| reading.interfaces[&Kind::Virtual].traffic.receive_bytes;
    let dev = FILES[0].1;
    write(root.path(), "proc/1/net/dev", &dev.replace("ifb0:       0", "ifb0:     700"));
    let mut source_of = |text: &str| {
        // The kept descriptor reads the file that is there: written in place.
        std::fs::write(root.path().join("proc/1/net/dev"), text).unwrap();
        read(&mut source, &host).unwrap()
    };
    assert_eq!(bytes(&source_of(&dev.replace("ifb0:       0", "ifb0:     700"))), 700);
    let gone: String =
        dev.lines().filter(|line| !line.contains("ifb0")).map(|line| format!("{line}\n")).collect();
    let reading = source_of(&gone);
    assert_eq!((bytes(&reading), reading.interfaces[&Kind::Virtual].count), (700, 1));
    assert_eq!(bytes(&source_of(&dev.replace("ifb0:       0", "ifb0:      50"))), 750);
}

#[test]
fn packets_that_storm_and_are_dropped() {
    let (root, host, mover) = node();
    let mut source = open(&host).unwrap();
    let before = read(&mut source, &host).unwrap();
    mover.skip(Duration::from_secs(2));
    let mut now_with = |text: &str| {
        std::fs::write(root.path().join("proc/1/net/softnet_stat"), text).unwrap();
        read(&mut source, &host).unwrap()
    };
    // 100 dropped and 40 squeezes more on the second processor.
    let second = FILES[1].1.lines().nth(1).unwrap();
    let processed = second.split(' ').next().unwrap();
    let storm = second.replacen(
        &format!("{processed} 00000000 00000000"),
        &format!("{processed} 00000064 00000028"),
        1,
    );
    let text = FILES[1].1.replace(second, &storm);
    let stat = root.path().join("proc/23/stat");
    let busy = host.read("/proc/23/stat").unwrap().replace(" 0 60 0 3 ", " 0 60 0 193 ");
    std::fs::write(&stat, busy).unwrap();
    let now = now_with(&text);
    let softnet = now.softnet.unwrap();
    assert_eq!((softnet.dropped, softnet.time_squeeze), (100, 40));
    let states = noticed(&now, Some(&before));
    assert_eq!(names(&states), ["softnet_dropping", "packet_storm"]);
    assert!(states[1].summary.starts_with("ksoftirqd/1 uses 9"), "{}", states[1].summary);
    // The numbers have 32 bits: one that begins anew has not fallen.
    let wrapped = text.replacen("00000064", "00000004", 1);
    assert_eq!(now_with(&wrapped).softnet.unwrap().dropped, 100 + u64::from(u32::MAX) - 0x64 + 4 + 1);
}

#[test]
fn tables_that_are_full() {
    let (_root, host, _) = node();
    let well = read(&mut open(&host).unwrap(), &host).unwrap();
    let mut full = well.clone();
    let table = full.neighbours.get_mut("ipv4").unwrap();
    (table.entries, table.gc_thresh3) = (973, Some(1024));
    assert_eq!(names(&noticed(&full, None)), ["neighbour_table_full"]);
    full.neighbours.get_mut("ipv4").unwrap().entries = 972;
    assert_eq!(names(&noticed(&full, None)), Vec::<&str>::new());
    // The collector forced entries out: below the limit again, but some were refused.
    full.neighbours.get_mut("ipv4").unwrap().table_fulls = Some(3);
    assert_eq!(names(&noticed(&full, Some(&well))), ["neighbour_table_full"]);

    let mut full = well.clone();
    full.tcp.memory_limit_pages = Some(160);
    assert_eq!(names(&noticed(&full, None)), ["tcp_memory_exhausted"]);
    // Too many orphans are given up under the same counter, with memory to spare.
    let mut orphans = well.clone();
    orphans.tcp.memory_limit_pages = Some(100_000);
    orphans.tcp.aborted_on_memory = orphans.tcp.aborted_on_memory.map(|count| count + 10);
    assert!(orphans.tcp.aborted_on_memory.is_some());
    assert_eq!(names(&noticed(&orphans, Some(&well))), Vec::<&str>::new());
    let mut full = well.clone();
    full.tcp.listen_overflows = full.tcp.listen_overflows.map(|count| count + 10);
    let states = noticed(&full, Some(&well));
    assert_eq!(names(&states), ["listen_queue_overflow"]);
    assert_eq!(states[0].severity, Severity::Info);
}

#[test]
fn a_default_route_that_goes_and_a_gateway_that_is_silent() {
    let (_root, host, _) = node();
    let mut now = read(&mut open(&host).unwrap(), &host).unwrap();
    let paths = now.paths.as_mut().unwrap();
    paths.defaults[0].neighbour = Some(crate::host::rtnetlink::Neighbour::Failed);
    let states = noticed(&now, None);
    assert_eq!(names(&states), ["gateway_unreachable"]);
    assert_eq!(states[0].evidence[0].text, "neighbour 192.0.2.1 on eth0 is failed");
    // Another way out leads somewhere, as it does on a machine whose IPv6 nobody routes.
    let paths = now.paths.as_mut().unwrap();
    let mut other = paths.defaults[0].clone();
    other.gateway = Some("192.0.2.9".parse().unwrap());
    other.neighbour = Some(crate::host::rtnetlink::Neighbour::Stale);
    paths.defaults.push(other);
    now.had_answer.clear();
    assert!(noticed(&now, None).is_empty());
    now.had_answer.push("192.0.2.1".parse().unwrap());
    assert_eq!(names(&noticed(&now, None)), ["gateway_unreachable"], "it did answer before");
    let mut ipv4_alone = now.clone();
    ipv4_alone.paths.as_mut().unwrap().defaults.retain(|route| route.gateway.unwrap().is_ipv4());
    ipv4_alone.paths.as_mut().unwrap().defaults[0].neighbour = None;
    let states = noticed(&ipv4_alone, None);
    assert_eq!((names(&states), states[0].severity), (vec!["no_default_route"], Severity::Warning));
    now.paths.as_mut().unwrap().defaults.clear();
    let states = noticed(&now, None);
    assert_eq!((names(&states), states[0].severity), (vec!["no_default_route"], Severity::Critical));
    assert!(states[0].summary.contains("ipv4, ipv6"));
    now.had_default.clear();
    assert!(noticed(&now, None).is_empty(), "a node that never had one");
    // Routes that could not be read are not gone.
    now.had_default.push(crate::host::rtnetlink::Family::V4);
    now.paths.as_mut().unwrap().families.clear();
    assert!(noticed(&now, None).is_empty());
}

#[test]
fn allowances_that_are_exceeded() {
    let (_root, host, _) = node();
    let mut now = read(&mut open(&host).unwrap(), &host).unwrap();
    // The names of the driver ena (drivers/net/ethernet/amazon/ena/ena_ethtool.c).
    now.allowances_exceeded_per_second =
        [("pps_allowance_exceeded".to_owned(), 12.0), ("bw_in_allowance_exceeded".to_owned(), 0.0)].into();
    let states = noticed(&now, None);
    assert_eq!(names(&states), ["nic_allowance_exceeded"]);
    assert_eq!((states[0].hold, states[0].evidence.len()), (Duration::from_secs(30), 1));
}

#[test]
fn a_container_that_sees_no_host_says_so() {
    let root = tempfile::tempdir().unwrap();
    let host = Host::new(root.path(), Clock::system(), Places::default());
    let error = open(&host).unwrap_err().to_string();
    assert!(error.starts_with("the host's network is not seen"), "{error}");
}

#[test]
fn carrier_changes_do_not_fall_when_an_interface_is_taken_away() {
    let (root, host, _) = node();
    let dev = FILES[0].1;
    let second: String = dev.lines().filter(|line| line.contains("eth0")).collect();
    let both = format!("{dev}{}\n", second.replace("eth0", "eth1"));
    write(root.path(), "sys/class/net/eth1/carrier_changes", "3\n");
    write(root.path(), "sys/class/net/eth1/device/vendor", "0x1d0f\n");
    std::fs::write(root.path().join("proc/1/net/dev"), both).unwrap();
    let mut source = open(&host).unwrap();
    assert_eq!(read(&mut source, &host).unwrap().carrier_changes, Some(5));
    std::fs::write(root.path().join("proc/1/net/dev"), dev).unwrap();
    let reading = read(&mut source, &host).unwrap();
    assert_eq!((reading.links.len(), reading.carrier_changes), (1, Some(5)));
}

#[test]
fn allowances_do_not_fall_when_an_interface_is_taken_away() {
    let (_root, host, mover) = node();
    let mut source = open(&host).unwrap();
    read(&mut source, &host).unwrap();
    let told = |source: &mut Source, counts: &[(&str, u64)]| {
        let of = counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        let mut paths = paths::read(&host, "made".to_owned());
        paths.allowances_by_interface = [("pps_allowance_exceeded".to_owned(), of)].into();
        mover.skip(Duration::from_secs(10));
        let now = host.clock().since_boot();
        // What the thread would have come to.
        source.paths_due = now + Duration::from_secs(1000);
        assert!(source.paths.begin(now, move || paths));
        source.paths_now = None;
        ways(source, &host, now, &[]).unwrap();
        source.paths_now.as_ref().unwrap().allowances_exceeded["pps_allowance_exceeded"]
    };
    assert_eq!(told(&mut source, &[("eth0", 100), ("eth1", 900)]), 1000);
    assert_eq!(told(&mut source, &[("eth0", 120)]), 1020, "eth1 was detached");
    // The time is the real one, with what was skipped.
    let rate = source.allowances_rate["pps_allowance_exceeded"];
    assert!((1.0..=2.0).contains(&rate), "{rate}");
}
