//! Rules, routes and neighbours of the agent's own network namespace, over rtnetlink(7). That family is in every kernel:
//! asking loads nothing. Whoever asks makes sure that the namespace is the node's ([`Host::network_is_hosts`]).
//!
//! A dump waits for the kernel's lock of all network configuration (RTNL; for routes up to Linux 6.8), which a fault can
//! hold for minutes: it runs on a thread of its own.

use std::net::IpAddr;
use std::ops::ControlFlow;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::{AF_INET, AF_INET6, RTM_GETLINK, RTM_GETNEIGH, RTM_GETROUTE, RTM_GETRULE};
use serde::Serialize;

use super::netlink::{Attribute, Attributes, Netlink, NetlinkError, Protocol};
use super::{Host, ReadError};

/// `struct rtmsg`, `struct ndmsg` and `struct fib_rule_hdr` are all this long.
const HEADER_BYTES: usize = 12;
/// `struct ifinfomsg`.
const LINK_HEADER_BYTES: usize = 16;
const IFLA_IFNAME: u16 = 3;
const NDA_CACHEINFO: u16 = 3;
/// A minute. A hundredth of a second is what every architecture's user space sees.
const FAILED_LONG_AGO_TICKS: u32 = 6000;
/// RTM_F_CLONED: a cached route, none that anybody made.
const CLONED: u32 = 0x200;
/// RT_TABLE_LOCAL: the kernel's own, one route and more for each of its addresses.
const TABLE_LOCAL: u32 = 255;

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Family {
    /// IPv4.
    #[serde(rename = "ipv4")]
    V4,
    /// IPv6.
    #[serde(rename = "ipv6")]
    V6,
}

impl Family {
    fn number(self) -> u8 {
        u8::try_from(if self == Family::V4 { AF_INET } else { AF_INET6 }).unwrap_or_default()
    }

    /// As it stands in labels.
    pub fn word(self) -> &'static str {
        if self == Family::V4 { "ipv4" } else { "ipv6" }
    }
}

/// One `ip rule`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// Its family.
    pub family: Family,
    /// Lower ones go first.
    pub priority: u32,
    /// The table that it leads to; 254 is main, 255 local.
    pub table: u32,
    /// From where, as `10.0.0.0/16`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// To where.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The packet's mark.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mark: Option<u32>,
    /// The interface that it came in by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incoming: Option<String>,
}

/// One route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Route {
    /// Its family.
    pub family: Family,
    /// Its table; 254 is main.
    pub table: u32,
    /// Who made it (rtnetlink(7), /etc/iproute2/rt_protos): 2 the kernel, 3 at boot, 4 static, 12 bird, 16 DHCP, 80 Calico.
    pub protocol: u8,
    /// 1 unicast, 2 local, 6 blackhole, 7 unreachable, 8 prohibit.
    pub kind: u8,
    /// To where, as `10.0.0.0/16`; `default`.
    pub to: String,
    /// By which gateway. Of a route with many ways, the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// By which interface's number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<u32>,
    /// Lower ones go first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<u32>,
}

impl Route {
    /// Whether it leads everywhere, and somewhere: blackholes do not count.
    pub fn is_default(&self) -> bool {
        self.to == "default" && self.kind == 1
    }

    /// Whether it stands in the kernel's own table of local addresses.
    pub fn is_local(&self) -> bool {
        self.table == TABLE_LOCAL
    }
}

/// A neighbour's state (NUD_*), as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Neighbour {
    /// Asked for; no answer yet.
    Incomplete,
    /// It answered lately.
    Reachable,
    /// It answered a while ago.
    Stale,
    /// It is about to be asked again.
    Delay,
    /// It is being asked again.
    Probe,
    /// It does not answer.
    Failed,
    /// It did not answer when it was last asked, which is a minute ago or more: nothing was sent there since. The entry
    /// stays for as long as the table has room.
    FailedLongAgo,
    /// It needs none.
    Noarp,
    /// Set by hand.
    Permanent,
    /// The kernel has no entry: nothing was sent there lately.
    None,
}

impl Neighbour {
    fn of(state: u16) -> Neighbour {
        match state {
            0x01 => Neighbour::Incomplete,
            0x02 => Neighbour::Reachable,
            0x04 => Neighbour::Stale,
            0x08 => Neighbour::Delay,
            0x10 => Neighbour::Probe,
            0x20 => Neighbour::Failed,
            0x40 => Neighbour::Noarp,
            0x80 => Neighbour::Permanent,
            _ => Neighbour::None,
        }
    }

    /// As `ip neigh` writes it, in small letters.
    pub fn word(self) -> &'static str {
        match self {
            Neighbour::Incomplete => "incomplete",
            Neighbour::Reachable => "reachable",
            Neighbour::Stale => "stale",
            Neighbour::Delay => "delay",
            Neighbour::Probe => "probe",
            Neighbour::Failed => "failed",
            Neighbour::FailedLongAgo => "failed_long_ago",
            Neighbour::Noarp => "noarp",
            Neighbour::Permanent => "permanent",
            Neighbour::None => "none",
        }
    }

    /// Whether nobody answers for the address: asked for, and silent.
    pub fn is_silent(self) -> bool {
        matches!(self, Neighbour::Failed | Neighbour::Incomplete)
    }
}

/// A socket of rtnetlink.
#[derive(Debug)]
pub struct Rtnetlink {
    netlink: Netlink,
}

impl Rtnetlink {
    /// A socket in the agent's own network namespace.
    ///
    /// # Errors
    /// The kernel gives none.
    pub fn open(host: &Host) -> Result<Rtnetlink, ReadError> {
        let netlink = Netlink::open(host, Protocol::Route).map_err(|error| error.asking("routes"))?;
        Ok(Rtnetlink { netlink })
    }

    /// Hands on every `ip rule` of a family. A kernel without CONFIG_IP_MULTIPLE_TABLES has none, and says EOPNOTSUPP.
    /// False: they changed meanwhile, so that some may be missing or told twice.
    ///
    /// # Errors
    /// The kernel refuses, is late, or says what makes no sense.
    pub fn rules(
        &mut self,
        family: Family,
        limit: Duration,
        mut each: impl FnMut(Rule),
    ) -> Result<bool, ReadError> {
        let mut header = [0; HEADER_BYTES];
        header[0] = family.number();
        self.netlink
            .dump(RTM_GETRULE, &header, limit, |_, payload| {
                each(rule(family, payload)?);
                Ok(ControlFlow::Continue(()))
            })
            .map(|exchange| !exchange.interrupted)
            .map_err(|error| error.asking("ip rules"))
    }

    /// Hands on every route of a family, of all tables. False as for rules.
    ///
    /// # Errors
    /// As for rules.
    pub fn routes(
        &mut self,
        family: Family,
        limit: Duration,
        mut each: impl FnMut(Route),
    ) -> Result<bool, ReadError> {
        let mut header = [0; HEADER_BYTES];
        header[0] = family.number();
        self.netlink
            .dump(RTM_GETROUTE, &header, limit, |_, payload| {
                if let Some(route) = route(family, payload)? {
                    each(route);
                }
                Ok(ControlFlow::Continue(()))
            })
            .map(|exchange| !exchange.interrupted)
            .map_err(|error| error.asking("routes"))
    }

    /// The name of an interface's number.
    ///
    /// # Errors
    /// There is none of this number; as for rules.
    pub fn name(&mut self, interface: u32, limit: Duration) -> Result<String, ReadError> {
        let mut payload = [0; LINK_HEADER_BYTES];
        payload[4..8].copy_from_slice(&interface.to_ne_bytes());
        let mut name = None;
        let asked = self.netlink.request(RTM_GETLINK, &payload, limit, |_, payload| {
            let found = Attributes::behind(LINK_HEADER_BYTES, payload)?.find(IFLA_IFNAME)?;
            name = found.map(|found| text(&found));
            Ok(())
        });
        let unnamed = || ReadError::Other(format!("interface {interface} has no name"));
        asked.map_err(|error| error.asking("an interface's name"))?;
        name.ok_or_else(unnamed)
    }

    /// What the kernel thinks of one neighbour (Linux 5.0 and later; before, it is refused).
    ///
    /// # Errors
    /// As for rules.
    pub fn neighbour(
        &mut self,
        address: IpAddr,
        interface: u32,
        limit: Duration,
    ) -> Result<Neighbour, ReadError> {
        let mut payload = vec![0; HEADER_BYTES];
        let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
        payload.splice(0..1, [family.number()]);
        payload.splice(4..8, interface.to_ne_bytes());
        let bytes = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        // NDA_DST. Both lengths are multiples of four.
        let length = u16::try_from(4 + bytes.len()).unwrap_or_default();
        payload.extend(length.to_ne_bytes());
        payload.extend(1u16.to_ne_bytes());
        payload.extend(bytes);
        let mut found = Neighbour::None;
        let asked = self.netlink.request(RTM_GETNEIGH, &payload, limit, |_, payload| {
            found = neighbour(payload)?;
            Ok(())
        });
        match asked {
            Ok(_) | Err(NetlinkError::Refused(Errno::ENOENT)) => Ok(found),
            Err(error) => Err(error.asking("the gateway's neighbour entry")),
        }
    }
}

fn short(what: &str) -> NetlinkError {
    NetlinkError::Malformed(format!("a {what} is shorter than its header"))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn address(attribute: &Attribute<'_>) -> Option<IpAddr> {
    let bytes = attribute.payload;
    let four = <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    four.or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))
}

/// A string with its NUL.
fn text(attribute: &Attribute<'_>) -> String {
    String::from_utf8_lossy(attribute.payload).trim_end_matches('\0').to_owned()
}

fn prefix(attribute: &Attribute<'_>, length: u8) -> Option<String> {
    address(attribute).map(|address| format!("{address}/{length}"))
}

/// `struct ndmsg` and NDA_* (include/uapi/linux/neighbour.h). Whoever sends to one that failed makes the kernel ask again,
/// and its entry new.
fn neighbour(payload: &[u8]) -> Result<Neighbour, NetlinkError> {
    let state = Neighbour::of(half(payload, 8).ok_or_else(|| short("neighbour"))?);
    // `struct nda_cacheinfo`: confirmed, used, updated, each in ticks ago (USER_HZ).
    let cache = Attributes::behind(HEADER_BYTES, payload)?.find(NDA_CACHEINFO)?;
    let updated = cache.and_then(|cache| word(cache.payload, 8));
    let is_old = updated.is_some_and(|ticks| ticks >= FAILED_LONG_AGO_TICKS);
    Ok(if state == Neighbour::Failed && is_old { Neighbour::FailedLongAgo } else { state })
}

/// `struct fib_rule_hdr` and FRA_* (include/uapi/linux/fib_rules.h).
fn rule(family: Family, payload: &[u8]) -> Result<Rule, NetlinkError> {
    let byte = |at: usize| payload.get(at).copied().ok_or_else(|| short("rule"));
    let (to_length, from_length) = (byte(1)?, byte(2)?);
    let mut rule = Rule {
        family,
        // A rule without one has 0: the first of all.
        priority: 0,
        table: u32::from(byte(4)?),
        from: None,
        to: None,
        mark: None,
        incoming: None,
    };
    for attribute in Attributes::behind(HEADER_BYTES, payload)? {
        let attribute = attribute?;
        match attribute.kind {
            1 => rule.to = prefix(&attribute, to_length),
            2 => rule.from = prefix(&attribute, from_length),
            3 => rule.incoming = Some(text(&attribute)),
            6 => rule.priority = attribute.u32()?,
            10 => rule.mark = Some(attribute.u32()?).filter(|mark| *mark != 0),
            15 => rule.table = attribute.u32()?,
            _ => {}
        }
    }
    Ok(rule)
}

/// `struct rtmsg` and RTA_* (include/uapi/linux/rtnetlink.h). `None`: a cached one.
fn route(family: Family, payload: &[u8]) -> Result<Option<Route>, NetlinkError> {
    let byte = |at: usize| payload.get(at).copied().ok_or_else(|| short("route"));
    if word(payload, 8).ok_or_else(|| short("route"))? & CLONED != 0 {
        return Ok(None);
    }
    let length = byte(1)?;
    let mut route = Route {
        family,
        table: u32::from(byte(4)?),
        protocol: byte(5)?,
        kind: byte(7)?,
        to: if length == 0 { "default".to_owned() } else { String::new() },
        gateway: None,
        interface: None,
        metric: None,
    };
    for attribute in Attributes::behind(HEADER_BYTES, payload)? {
        let attribute = attribute?;
        match attribute.kind {
            1 if length > 0 => route.to = prefix(&attribute, length).unwrap_or_default(),
            4 => route.interface = Some(attribute.u32()?),
            5 => route.gateway = address(&attribute),
            6 => route.metric = Some(attribute.u32()?),
            9 => first_way(&attribute, &mut route),
            15 => route.table = attribute.u32()?,
            // RTA_VIA: a gateway of the other family, two bytes of it first.
            18 => {
                let bytes = attribute.payload.get(2..).unwrap_or_default();
                route.gateway = address(&Attribute { kind: 18, payload: bytes });
            }
            _ => {}
        }
    }
    Ok(Some(route))
}

/// RTA_MULTIPATH: `struct rtnexthop` (8 bytes: length, flags, hops, interface), each with attributes.
fn first_way(attribute: &Attribute<'_>, route: &mut Route) {
    let bytes = attribute.payload;
    let Some(end) = half(bytes, 0).map(usize::from) else { return };
    route.interface = word(bytes, 4);
    let within = bytes.get(8..end).unwrap_or_default();
    for inner in Attributes::new(within).flatten() {
        if inner.kind == 5 {
            route.gateway = address(&inner);
        }
    }
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    for family in [Family::V4, Family::V6] {
        crate::fuzz::done(rule(family, bytes));
        crate::fuzz::done(route(family, bytes));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(4 + value.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// `default via 192.0.2.1 dev 4 proto static metric 100` as include/uapi/linux/rtnetlink.h lays it out.
    fn default_route() -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0];
        bytes.extend(attribute(15, &254u32.to_ne_bytes()));
        bytes.extend(attribute(5, &[192, 0, 2, 1]));
        bytes.extend(attribute(4, &4u32.to_ne_bytes()));
        bytes.extend(attribute(6, &100u32.to_ne_bytes()));
        bytes
    }

    #[test]
    fn a_default_route_and_a_cached_one() {
        let route = route(Family::V4, &default_route()).unwrap().unwrap();
        assert!(route.is_default());
        assert_eq!((route.protocol, route.interface, route.metric), (4, Some(4), Some(100)));
        assert_eq!(route.gateway, Some([192, 0, 2, 1].into()));
        let mut cached = default_route();
        cached.splice(8..12, CLONED.to_ne_bytes());
        assert_eq!(super::route(Family::V4, &cached).unwrap(), None);
        let mut blackhole = default_route();
        blackhole[7] = 6;
        assert!(!super::route(Family::V4, &blackhole).unwrap().unwrap().is_default());
    }

    #[test]
    fn a_neighbour_that_failed_long_ago_was_not_asked_since() {
        let message = |state: u8, updated: u32| {
            let mut bytes = vec![2, 0, 0, 0, 4, 0, 0, 0, state, 0, 0, 0];
            let ticks = [9000u32, 9000, updated, 0];
            bytes.extend(attribute(1, &[192, 0, 2, 1]));
            bytes.extend(attribute(3, &ticks.map(u32::to_ne_bytes).concat()));
            bytes
        };
        assert_eq!(neighbour(&message(0x20, 300)).unwrap(), Neighbour::Failed);
        let old = neighbour(&message(0x20, 6000)).unwrap();
        assert!(old == Neighbour::FailedLongAgo && !old.is_silent());
        assert_eq!(neighbour(&message(0x02, 6000)).unwrap(), Neighbour::Reachable);
    }

    proptest! {
        #[test]
        fn any_message_is_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            rule(Family::V4, &bytes).ok();
            neighbour(&bytes).ok();
            route(Family::V6, &bytes).ok();
        }

        #[test]
        fn a_cut_route_is_an_error_or_has_less(cut in 0usize..80) {
            let whole = default_route();
            if let Ok(Some(route)) = route(Family::V4, &whole[..cut.min(whole.len())]) {
                prop_assert!(route.gateway.is_none() || route.gateway == Some([192, 0, 2, 1].into()));
                prop_assert!(route.metric.is_none() || route.metric == Some(100));
            }
        }
    }
}
