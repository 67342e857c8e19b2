//! The interfaces: what kind each is, their counters summed by kind, and whether the physical ones are up.
//!
//! Counters of an interface go with it, and pods' interfaces come and go: sums by kind would fall. So what each has
//! counted since it was first seen is added up, and the sums only grow for as long as the agent lives.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::counters::{self, Traffic};
use crate::host::{Host, ReadError};

/// Physical ones in `/api/v1/state`; all are in `/api/v1/network`.
pub(super) const MOST_LINKS: usize = 16;
/// All kinds together in `/api/v1/network`.
pub(super) const MOST_LISTED: usize = 2000;

/// What an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It has a device behind it.
    Physical,
    /// A part of a device that is lent to pods (SR-IOV), or Infiniband: it may go and come.
    Lent,
    /// One end of a pair, the other of which is mostly a pod's.
    Veth,
    /// A bridge.
    Bridge,
    /// A tunnel, a VLAN, a bond, a dummy.
    Virtual,
    /// `lo`.
    Loopback,
}

impl Kind {
    /// As it stands in labels.
    pub(super) fn word(self) -> &'static str {
        match self {
            Kind::Physical => "physical",
            Kind::Lent => "lent",
            Kind::Veth => "veth",
            Kind::Bridge => "bridge",
            Kind::Virtual => "virtual",
            Kind::Loopback => "loopback",
        }
    }

    /// From /sys/class/net/NAME. Once a name: it costs some files.
    fn of(host: &Host, name: &str) -> Kind {
        if name == "lo" {
            return Kind::Loopback;
        }
        let file = |file: &str| format!("/sys/class/net/{name}/{file}");
        let there = |name: &str| host.exists(file(name)).is_ok_and(|there| there);
        let text = |name: &str| host.read(file(name)).ok().map(|text| text.trim().to_owned());
        // ARPHRD_INFINIBAND.
        let infiniband = text("type").is_some_and(|kind| kind == "32");
        if there("device") {
            return if infiniband || there("device/physfn") { Kind::Lent } else { Kind::Physical };
        }
        if there("bridge") {
            return Kind::Bridge;
        }
        // A veth has no DEVTYPE, and its other end's number, which may by chance be its own: each namespace counts by
        // itself. Then CNI's usual names tell. rtnetlink would be sure, and waits for the lock of all configuration.
        let typed = text("uevent").is_none_or(|text| text.lines().any(|line| line.starts_with("DEVTYPE=")));
        let of_a_pod = ["veth", "cali", "lxc", "eni"].iter().any(|prefix| name.starts_with(prefix));
        match (text("ifindex"), text("iflink")) {
            (Some(index), Some(link)) if !typed && (index != link || of_a_pod) => Kind::Veth,
            _ => Kind::Virtual,
        }
    }
}

/// Whether a physical interface is up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// `up`, `down`, `lowerlayerdown`, `dormant`, `unknown` (RFC 2863; a driver that does not tell says `unknown`).
    pub operstate: Option<String>,
    /// Whether it is switched on (`ip link set … up`).
    pub enabled: Option<bool>,
    /// How often its carrier came or went.
    pub carrier_changes: Option<u64>,
    /// Megabits a second; `None` where the driver does not know.
    pub speed_megabits: Option<u64>,
    /// Whether it was up at some time of the agent's life.
    pub was_up: bool,
}

impl Link {
    /// Down, and was not always.
    pub(super) fn went_down(&self) -> bool {
        let down = matches!(self.operstate.as_deref(), Some("down" | "lowerlayerdown" | "notpresent"));
        self.was_up && (down || self.enabled == Some(false))
    }

    fn is_up(&self) -> bool {
        self.enabled == Some(true) && matches!(self.operstate.as_deref(), Some("up" | "unknown"))
    }
}

/// All interfaces of a kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// How many there are.
    pub count: usize,
    /// What they, and those that are gone, have counted.
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// One of `/api/v1/network`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Its counters, as the kernel has them.
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// What one reading of all of them gives.
#[derive(Debug, Default)]
pub(super) struct Interfaces {
    pub(super) totals: BTreeMap<Kind, Totals>,
    pub(super) listed: Vec<Listed>,
    pub(super) links: Vec<Link>,
}

/// What is remembered of them.
#[derive(Debug, Default)]
pub(super) struct Known {
    interfaces: BTreeMap<String, (Kind, Traffic)>,
    sums: BTreeMap<Kind, Traffic>,
    /// Names of physical ones that were up, with the carrier changes and the speed as they were read last.
    links: BTreeMap<String, Seen>,
}

#[derive(Clone, Debug, Default)]
struct Seen {
    was_up: bool,
    at_changes: Option<u64>,
    speed: Option<u64>,
}

impl Known {
    /// `text` is /proc/1/net/dev. `None`: it makes no sense.
    pub(super) fn read(&mut self, host: &Host, text: &str) -> Result<Interfaces, ReadError> {
        let now = counters::dev(text).ok_or_else(|| {
            ReadError::malformed("/proc/1/net/dev", "expected two lines of heads, then 16 counters each")
        })?;
        let mut read = Interfaces::default();
        let mut present = BTreeMap::new();
        for (name, traffic) in now {
            let before = self.interfaces.get(name);
            let kind = before.map_or_else(|| Kind::of(host, name), |(kind, _)| *kind);
            let since = before.map(|(_, traffic)| *traffic).unwrap_or_default();
            let sum = self.sums.entry(kind).or_default();
            *sum = added(*sum, since, traffic);
            read.totals.entry(kind).or_default().count += 1;
            if read.listed.len() < MOST_LISTED {
                read.listed.push(Listed { name: name.to_owned(), kind, traffic });
            }
            present.insert(name.to_owned(), (kind, traffic));
        }
        self.interfaces = present;
        for (kind, sum) in &self.sums {
            read.totals.entry(*kind).or_default().traffic = *sum;
        }
        let physical: BTreeSet<String> = self
            .interfaces
            .iter()
            .filter(|(_, (kind, _))| *kind == Kind::Physical)
            .map(|(name, _)| name.clone())
            .collect();
        self.links.retain(|name, _| physical.contains(name));
        for name in physical {
            let seen = self.links.entry(name.clone()).or_default();
            read.links.push(link(host, name, seen));
        }
        Ok(read)
    }
}

/// A counter that fell is a new interface under an old name.
fn added(sum: Traffic, since: Traffic, now: Traffic) -> Traffic {
    let add = |sum: u64, since: u64, now: u64| sum.saturating_add(now.checked_sub(since).unwrap_or(now));
    Traffic {
        receive_bytes: add(sum.receive_bytes, since.receive_bytes, now.receive_bytes),
        receive_packets: add(sum.receive_packets, since.receive_packets, now.receive_packets),
        receive_errors: add(sum.receive_errors, since.receive_errors, now.receive_errors),
        receive_dropped: add(sum.receive_dropped, since.receive_dropped, now.receive_dropped),
        transmit_bytes: add(sum.transmit_bytes, since.transmit_bytes, now.transmit_bytes),
        transmit_packets: add(sum.transmit_packets, since.transmit_packets, now.transmit_packets),
        transmit_errors: add(sum.transmit_errors, since.transmit_errors, now.transmit_errors),
        transmit_dropped: add(sum.transmit_dropped, since.transmit_dropped, now.transmit_dropped),
    }
}

/// `operstate`, `flags` and `carrier_changes` take no lock. `speed` takes the lock of all network configuration, which a
/// fault can hold: it is read only when the carrier has changed.
fn link(host: &Host, name: String, seen: &mut Seen) -> Link {
    let text = |file: &str| {
        host.read(format!("/sys/class/net/{name}/{file}")).ok().map(|text| text.trim().to_owned())
    };
    let flags = text("flags").and_then(|flags| u32::from_str_radix(flags.strip_prefix("0x")?, 16).ok());
    let carrier_changes = text("carrier_changes").and_then(|count| count.parse().ok());
    let mut link = Link {
        operstate: text("operstate"),
        // IFF_UP.
        enabled: flags.map(|flags| flags & 1 != 0),
        carrier_changes,
        speed_megabits: None,
        was_up: false,
        name: String::new(),
    };
    let up = link.is_up();
    if up && (!seen.was_up || seen.at_changes != carrier_changes) {
        // -1 where the driver does not know.
        seen.speed = text("speed").and_then(|speed| speed.parse().ok());
    }
    seen.was_up |= up;
    seen.at_changes = carrier_changes;
    link.was_up = seen.was_up;
    link.speed_megabits = seen.speed;
    link.name = name;
    link
}
