//! The ways out: default routes and whether their gateways answer, `ip rule`s, and how many routes each table and each
//! maker of routes has. A flush (a network manager's restart, an agent's end) shows as counts that fall.
//!
//! Over rtnetlink where the agent's network namespace is the node's; else what /proc/1/net says, which is less.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde::Serialize;

use crate::host::rtnetlink::{Family, Neighbour, Route, Rtnetlink, Rule};
use crate::host::{Host, ReadError, ethtool};

/// Rules and routes in `/api/v1/network`, each.
const MOST_LISTED: usize = 1000;
/// Tables that are counted by number; the rest is one.
const MOST_TABLES: usize = 64;
const MOST_DEFAULTS: usize = 8;
const LIMIT: Duration = Duration::from_secs(5);
const TRIES: usize = 3;

/// A default route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Default {
    /// Its family.
    pub family: Family,
    /// Its table: 254 is main.
    pub table: u32,
    /// Where it leads; `None`: straight out of the interface.
    pub gateway: Option<IpAddr>,
    /// By which interface.
    pub interface: Option<String>,
    /// Whether the gateway answers, as the kernel sees it; `None`: not known.
    pub neighbour: Option<Neighbour>,
}

impl Default {
    /// Whether its gateway answered when it was asked last.
    pub(super) fn answers(&self) -> bool {
        self.neighbour.is_some_and(|neighbour| !neighbour.is_silent() && neighbour != Neighbour::None)
    }
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Paths {
    /// `rtnetlink`, or `/proc/1/net`.
    pub source: &'static str,
    /// The default routes, of the main table and others.
    pub defaults: Vec<Default>,
    /// Families that were read: of the others nothing is known.
    pub families: Vec<Family>,
    /// Rules, by family. Empty where they cannot be read.
    pub rules: BTreeMap<&'static str, u64>,
    /// Routes but the kernel's own table of local addresses, by family and maker.
    pub routes: BTreeMap<&'static str, BTreeMap<&'static str, u64>>,
    /// The same, by table: at most 64, the rest under `other`.
    pub tables: BTreeMap<String, u64>,
    /// What could not be read, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// For `/api/v1/network`.
    #[serde(skip)]
    pub rule_list: Vec<Rule>,
    /// For `/api/v1/network`.
    #[serde(skip)]
    pub route_list: Vec<Route>,
    /// The drivers' counters of what the provider dropped over the instance's allowance, those of interfaces that are gone
    /// included.
    pub allowances_exceeded: BTreeMap<String, u64>,
    /// The same, by interface, as the drivers have them.
    #[serde(skip)]
    pub allowances_by_interface: BTreeMap<String, BTreeMap<String, u64>>,
    /// How long it took.
    pub took_seconds: f64,
}

impl Paths {
    fn none(source: &'static str) -> Paths {
        Paths {
            source,
            defaults: Vec::new(),
            families: Vec::new(),
            rules: BTreeMap::new(),
            routes: BTreeMap::new(),
            tables: BTreeMap::new(),
            missing: Vec::new(),
            rule_list: Vec::new(),
            route_list: Vec::new(),
            allowances_exceeded: BTreeMap::new(),
            allowances_by_interface: BTreeMap::new(),
            took_seconds: 0.0,
        }
    }
}

/// Who made a route: rtnetlink(7), and the numbers that CNI agents took.
pub(super) fn maker(protocol: u8) -> &'static str {
    match protocol {
        1 => "redirect",
        2 => "kernel",
        3 => "boot",
        4 => "static",
        9 => "router_advertisement",
        11 => "zebra",
        12 => "bird",
        16 => "dhcp",
        18 => "keepalived",
        80 => "calico",
        186 => "bgp",
        _ => "other",
    }
}

/// Over rtnetlink. `physical`: whose drivers are asked for allowances.
pub(super) fn ask(host: &Host, physical: &[String]) -> Paths {
    let began = host.clock().since_boot();
    let mut paths = Paths::none("rtnetlink");
    if let Err(error) = fill(host, &mut paths) {
        paths.missing.push(error.to_string());
    }
    for interface in physical {
        // No statistics, or a driver without this one: nothing is said.
        for (name, value) in ethtool::statistics(interface).unwrap_or_default() {
            if name.ends_with("_allowance_exceeded") {
                let of = paths.allowances_by_interface.entry(name).or_default();
                of.insert(interface.clone(), value);
            }
        }
    }
    paths.took_seconds = host.clock().since_boot().saturating_sub(began).as_secs_f64();
    paths
}

fn fill(host: &Host, paths: &mut Paths) -> Result<(), ReadError> {
    let mut rtnetlink = Rtnetlink::open(host)?;
    let mut families = vec![Family::V4];
    // Without IPv6 the kernel answers with another family's routes, or none.
    if host.exists("/proc/1/net/if_inet6")? {
        families.push(Family::V6);
    }
    for family in families {
        match whole(|rules: &mut (u64, Vec<Rule>)| {
            rtnetlink.rules(family, LIMIT, |rule| {
                rules.0 += 1;
                if rules.1.len() < MOST_LISTED {
                    rules.1.push(rule);
                }
            })
        }) {
            Ok((count, listed)) => {
                paths.rules.insert(family.word(), count);
                paths.rule_list.extend(listed);
            }
            Err(error) => paths.missing.push(error.to_string()),
        }
        match whole(|counted: &mut Counted| rtnetlink.routes(family, LIMIT, |route| counted.take(route))) {
            Ok(counted) => {
                paths.families.push(family);
                paths.routes.insert(family.word(), counted.makers);
                for (table, count) in counted.tables {
                    *paths.tables.entry(table).or_default() += count;
                }
                for route in counted.defaults {
                    paths.defaults.push(default(&mut rtnetlink, &route));
                }
                paths.route_list.extend(counted.listed);
            }
            Err(error) => paths.missing.push(error.to_string()),
        }
    }
    Ok(())
}

/// A list that did not change while it was read: what was counted while it did is no count.
fn whole<T: std::default::Default>(
    mut read: impl FnMut(&mut T) -> Result<bool, ReadError>,
) -> Result<T, ReadError> {
    for _ in 0..TRIES {
        let mut counted = T::default();
        if read(&mut counted)? {
            return Ok(counted);
        }
    }
    Err(ReadError::Other(format!("routes or rules changed while they were read, {TRIES} times")))
}

#[derive(std::default::Default)]
struct Counted {
    makers: BTreeMap<&'static str, u64>,
    tables: BTreeMap<String, u64>,
    defaults: Vec<Route>,
    listed: Vec<Route>,
}

impl Counted {
    fn take(&mut self, route: Route) {
        if route.is_local() {
            return;
        }
        *self.makers.entry(maker(route.protocol)).or_default() += 1;
        let name = match route.table {
            254 => "main".to_owned(),
            253 => "default".to_owned(),
            table => table.to_string(),
        };
        let known = self.tables.contains_key(&name) || self.tables.len() < MOST_TABLES;
        *self.tables.entry(if known { name } else { "other".to_owned() }).or_default() += 1;
        if route.is_default() && self.defaults.len() < MOST_DEFAULTS {
            self.defaults.push(route.clone());
        }
        if self.listed.len() < MOST_LISTED {
            self.listed.push(route);
        }
    }
}

fn default(rtnetlink: &mut Rtnetlink, route: &Route) -> Default {
    let neighbour = match (route.gateway, route.interface) {
        // Before Linux 5.0 one entry cannot be asked for: not known.
        (Some(gateway), Some(interface)) => rtnetlink.neighbour(gateway, interface, LIMIT).ok(),
        _ => None,
    };
    let interface = route
        .interface
        .map(|number| rtnetlink.name(number, LIMIT).unwrap_or_else(|_| format!("interface {number}")));
    Default { family: route.family, table: route.table, gateway: route.gateway, interface, neighbour }
}

/// From /proc/1/net/{route,ipv6_route,arp}: main table's defaults, and whether the gateways answer. `why`: rtnetlink
/// cannot be asked.
pub(super) fn read(host: &Host, why: String) -> Paths {
    let mut paths = Paths::none("/proc/1/net");
    paths.missing.push(format!("rules, tables and counts of routes: {why}"));
    match host.read("/proc/1/net/route") {
        Ok(text) => {
            let arp = host.read("/proc/1/net/arp").unwrap_or_default();
            paths.families.push(Family::V4);
            paths.defaults.extend(ipv4_defaults(&text).into_iter().map(|(interface, gateway)| Default {
                family: Family::V4,
                table: 254,
                gateway,
                neighbour: gateway.and_then(|gateway| in_arp(&arp, gateway, &interface)),
                interface: Some(interface),
            }));
        }
        Err(error) => paths.missing.push(error.to_string()),
    }
    // Not there: no IPv6.
    if let Ok(text) = host.read("/proc/1/net/ipv6_route") {
        paths.families.push(Family::V6);
        paths.defaults.extend(ipv6_defaults(&text).into_iter().map(|(interface, gateway)| Default {
            family: Family::V6,
            table: 254,
            gateway,
            interface: Some(interface),
            neighbour: None,
        }));
    }
    paths
}

fn whole_lines(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'))
}

/// Addresses are hexadecimal, in the machine's byte order.
fn ipv4_defaults(text: &str) -> Vec<(String, Option<IpAddr>)> {
    let found = whole_lines(text).skip(1).filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let hex = |at: usize| u32::from_str_radix(words.get(at)?, 16).ok();
        // RTF_REJECT (0x200) is a blackhole.
        let leads_everywhere = hex(1)? == 0 && hex(7)? == 0 && hex(3)? & 0x201 == 1;
        let gateway = Ipv4Addr::from(hex(2)?.to_ne_bytes());
        let gateway = (!gateway.is_unspecified()).then_some(IpAddr::V4(gateway));
        leads_everywhere.then(|| Some(((*words.first()?).to_owned(), gateway))).flatten()
    });
    found.take(MOST_DEFAULTS).collect()
}

/// Destination, its length, source, its length, gateway, metric, references, uses, flags, interface.
fn ipv6_defaults(text: &str) -> Vec<(String, Option<IpAddr>)> {
    let found = whole_lines(text).filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let hex = |at: usize| u128::from_str_radix(words.get(at)?, 16).ok();
        // The kernel's own `unreachable default dev lo` has RTF_REJECT (0x200) and is no route.
        let leads_everywhere = hex(0)? == 0 && hex(1)? == 0 && hex(8)? & 0x201 == 1;
        let gateway = Ipv6Addr::from(hex(4)?);
        let gateway = (!gateway.is_unspecified()).then_some(IpAddr::V6(gateway));
        leads_everywhere.then(|| Some(((*words.get(9)?).to_owned(), gateway))).flatten()
    });
    found.take(MOST_DEFAULTS).collect()
}

/// Flags: 0x2 is complete, 0 asked for without an answer, 0x4 permanent.
fn in_arp(text: &str, gateway: IpAddr, interface: &str) -> Option<Neighbour> {
    whole_lines(text).skip(1).find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_it = words.first()?.parse() == Ok(gateway) && words.get(5) == Some(&interface);
        let flags = u32::from_str_radix(words.get(2)?.strip_prefix("0x")?, 16).ok()?;
        is_it.then_some(match flags {
            flags if flags & 4 != 0 => Neighbour::Permanent,
            flags if flags & 2 != 0 => Neighbour::Reachable,
            _ => Neighbour::Incomplete,
        })
    })
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    use crate::fuzz::{done, text};
    let text = text(bytes);
    done((ipv4_defaults(&text), ipv6_defaults(&text)));
    done(in_arp(&text, IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), "eth0"));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // Recorded on Linux 6.18.44.
    const ROUTE: &str = include_str!("../../../fixtures/network/linux-6.18.44-route.txt");
    const ROUTE6: &str = include_str!("../../../fixtures/network/linux-6.18.44-ipv6_route.txt");
    const ARP: &str = include_str!("../../../fixtures/network/linux-6.18.44-arp.txt");

    #[test]
    fn the_recorded_routes() {
        let gateway: IpAddr = "192.0.2.1".parse().unwrap();
        assert_eq!(ipv4_defaults(ROUTE), [("eth0".to_owned(), Some(gateway))]);
        let six = ("eth0".to_owned(), Some("fd00::1".parse().unwrap()));
        assert_eq!(ipv6_defaults(ROUTE6), [six], "the kernel's own `unreachable default` is none");
        assert_eq!(in_arp(ARP, gateway, "eth0"), Some(Neighbour::Reachable));
        assert_eq!(in_arp(ARP, gateway, "eth1"), None);
        // proc(5): an entry without an answer has flags 0 and a hardware address of zeroes.
        assert_eq!(in_arp(&ARP.replace("0x2 ", "0x0 "), gateway, "eth0"), Some(Neighbour::Incomplete));
    }

    proptest! {
        #[test]
        fn a_cut_table_has_no_other_route(cut in 0usize..1200) {
            let cut = |text: &'static str| &text[..cut.min(text.len())];
            prop_assert!(ipv4_defaults(cut(ROUTE)).iter().all(|it| ipv4_defaults(ROUTE).contains(it)));
            prop_assert!(ipv6_defaults(cut(ROUTE6)).iter().all(|it| ipv6_defaults(ROUTE6).contains(it)));
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in "(\\PC{0,20}[ \n]){0,14}") {
            ipv4_defaults(&text);
            ipv6_defaults(&text);
            in_arp(&text, "192.0.2.1".parse().unwrap(), "eth0");
        }
    }
}
