//! host-local's allocations: a file an address under `/var/lib/cni/networks/<network>`, against the range that the
//! configuration gives, and against the sandboxes that the runtime knows.
//!
//! Sources: containernetworking/plugins `plugins/ipam/host-local/backend/{disk/backend.go,allocator/range.go}`. Calico,
//! Cilium and others keep their allocations in API objects: those are not on the node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::host::{Host, ReadError};

const DATA_DIR: &str = "/var/lib/cni/networks";
/// More files of a network are counted, and not read.
const MOST_READ: usize = 4096;
const MOST_NAMED: usize = 256;
/// A container that is being made has its address before the runtime lists it.
const BEING_MADE: Duration = Duration::from_secs(30);
/// The runtime's list is no older than this, or nobody is called unknown.
const LIST_AGE: Duration = Duration::from_secs(30);

/// A network of host-local's, by the configuration.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Network {
    pub(super) name: String,
    pub(super) data_dir: String,
    /// How many addresses can be given; `None`: the ranges are not told, or make no sense.
    pub(super) size: Option<f64>,
    /// The bridge that its interfaces are ports of.
    pub(super) bridge: Option<String>,
}

/// Its allocations.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Allocations {
    /// The network's name.
    pub network: String,
    /// The folder.
    pub dir: String,
    /// How many addresses can be given; `None`: not told by the configuration.
    pub size: Option<f64>,
    /// How many are given.
    pub allocated: u64,
    /// How many of them are held for containers that the runtime does not know, with no interface that lives; `None`:
    /// it cannot be told, since the runtime has not answered lately.
    pub leaked: Option<u64>,
    /// The first of them: the address, and the container's id.
    #[serde(skip)]
    pub leaks: Vec<(String, String)>,
    /// Files that make no sense or could not be read.
    pub unread: u64,
}

impl Allocations {
    /// The share of the range that is free.
    pub fn free_ratio(&self) -> Option<f64> {
        let size = self.size.filter(|size| *size > 0.0)?;
        Some(((size - self.allocated as f64) / size).max(0.0))
    }

    /// The share of the range that is leaked.
    pub fn leaked_ratio(&self) -> Option<f64> {
        let size = self.size.filter(|size| *size > 0.0)?;
        Some(self.leaked? as f64 / size)
    }
}

/// The networks of a configuration that is valid.
pub(super) fn networks(bytes: &[u8], host: &Host) -> Vec<Network> {
    let Ok(Value::Object(conf)) = serde_json::from_slice(bytes) else { return Vec::new() };
    let name = conf.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let plugins: Vec<&Map<String, Value>> = match conf.get("plugins").and_then(Value::as_array) {
        Some(list) => list.iter().filter_map(Value::as_object).collect(),
        None => vec![&conf],
    };
    let mut networks = Vec::new();
    for plugin in plugins {
        let kind = plugin.get("type").and_then(Value::as_str);
        let bridge = plugin.get("bridge").and_then(Value::as_str).map(str::to_owned);
        if kind == Some("flannel") {
            // It delegates to bridge and host-local, with the range of its own file.
            let subnet = host.read("/run/flannel/subnet.env").ok();
            let size = subnet
                .and_then(|text| flannel_subnet(&text))
                .and_then(|cidr| range_size(&cidr, None, None, None));
            let (data_dir, bridge) = (DATA_DIR.to_owned(), Some("cni0".to_owned()));
            networks.push(Network { name: name.clone(), data_dir, size, bridge });
        }
        let Some(ipam) = plugin.get("ipam").and_then(Value::as_object) else { continue };
        if ipam.get("type").and_then(Value::as_str) != Some("host-local") {
            continue;
        }
        let data_dir = ipam.get("dataDir").and_then(Value::as_str).filter(|dir| dir.starts_with('/'));
        let bridge = (kind == Some("bridge")).then(|| bridge.unwrap_or_else(|| "cni0".to_owned()));
        networks.push(Network {
            name: name.clone(),
            data_dir: data_dir.unwrap_or(DATA_DIR).to_owned(),
            size: size(ipam),
            bridge,
        });
    }
    networks
}

/// `FLANNEL_SUBNET=10.244.1.1/24`.
fn flannel_subnet(text: &str) -> Option<String> {
    text.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET=")).map(|cidr| cidr.trim().to_owned())
}

/// A pod takes one address of each range set: the smallest set is the limit.
fn size(ipam: &Map<String, Value>) -> Option<f64> {
    let mut sets: Vec<Vec<&Map<String, Value>>> = Vec::new();
    if ipam.contains_key("subnet") {
        sets.push(vec![ipam]);
    }
    for set in ipam.get("ranges").and_then(Value::as_array).into_iter().flatten() {
        sets.push(set.as_array()?.iter().map(Value::as_object).collect::<Option<_>>()?);
    }
    let sizes = sets.iter().map(|set| {
        set.iter().try_fold(0.0, |sum, range| {
            let text = |key: &str| range.get(key).and_then(Value::as_str);
            Some(sum + range_size(text("subnet")?, text("rangeStart"), text("rangeEnd"), text("gateway"))?)
        })
    });
    sizes.collect::<Option<Vec<f64>>>()?.into_iter().reduce(f64::min)
}

/// From the first to the last, both given or the subnet's own, without network, broadcast and gateway.
fn range_size(cidr: &str, start: Option<&str>, end: Option<&str>, gateway: Option<&str>) -> Option<f64> {
    let (address, prefix) = cidr.split_once('/')?;
    let (address, prefix): (IpAddr, u32) = (address.parse().ok()?, prefix.parse().ok()?);
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let host_bits = bits_left(bits, prefix)?;
    let mask = if host_bits == 128 { u128::MAX } else { (1_u128 << host_bits) - 1 };
    let network = number(address) & !mask;
    let given = |text: Option<&str>| match text {
        Some(text) => text.parse().ok().map(|address| Some(number(address))),
        None => Some(None),
    };
    let start = given(start)?.unwrap_or(network + 1);
    // host-local leaves the broadcast address of IPv4 out.
    let broadcast = u128::from(address.is_ipv4());
    let end = given(end)?.unwrap_or((network | mask) - broadcast);
    let gateway = given(gateway)?.unwrap_or(network + 1);
    if start < network || end > (network | mask) || start > end {
        return None;
    }
    let is_inside = (start..=end).contains(&gateway);
    Some((end - start) as f64 + 1.0 - f64::from(u8::from(is_inside)))
}

/// A range needs four addresses at least, as host-local does.
fn bits_left(bits: u32, prefix: u32) -> Option<u32> {
    bits.checked_sub(prefix).filter(|left| *left >= 2)
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// Reads the folder. `None`: there is none, for nothing was ever allocated.
pub(super) fn read(network: &Network, host: &Host) -> Result<Option<Allocations>, ReadError> {
    let dir = Path::new(&network.data_dir).join(&network.name);
    let names = match host.list(&dir) {
        Ok(names) => names,
        Err(ReadError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    // Beside them stand `lock` and `last_reserved_ip.0`.
    let addresses: Vec<&String> = names
        .iter()
        .filter(|name| name.parse::<Ipv4Addr>().is_ok() || name.parse::<Ipv6Addr>().is_ok())
        .collect();
    let pods = host.pods().filter(|_| host.pods_age().is_some_and(|age| age <= LIST_AGE));
    let now = host.clock().now();
    let (mut unread, mut unknown, mut leaks) = (0, 0_u64, Vec::new());
    for address in addresses.iter().take(if pods.is_some() { MOST_READ } else { 0 }) {
        let path = dir.join(address);
        let Some(id) = host.read(&path).ok().and_then(|text| owner(&text)) else {
            unread += 1;
            continue;
        };
        let is_known = pods.as_ref().is_some_and(|pods| pods.sandboxes.contains_key(&id));
        if is_known {
            continue;
        }
        let age = host.stat(&path).ok().and_then(|stat| stat.modified).map(|at| now.duration_since(at));
        if age.is_some_and(|age| age.as_secs_f64() >= BEING_MADE.as_secs_f64()) {
            unknown += 1;
            if leaks.len() < MOST_NAMED {
                leaks.push(((*address).clone(), id));
            }
        }
    }
    let allocated = addresses.len() as u64;
    // An address whose interface lives is held by somebody, whoever that is.
    let ports = network.bridge.as_ref().and_then(|bridge| {
        host.list(format!("/sys/class/net/{bridge}/brif")).ok().map(|ports| ports.len() as u64)
    });
    let leaked = pods.map(|_| ports.map_or(unknown, |ports| unknown.min(allocated.saturating_sub(ports))));
    if leaked == Some(0) {
        leaks.clear();
    }
    Ok(Some(Allocations {
        network: network.name.clone(),
        dir: dir.display().to_string(),
        size: network.size,
        allocated,
        leaked,
        leaks,
        unread,
    }))
}

/// `containerID\r\nifname`; older versions wrote the id alone.
fn owner(text: &str) -> Option<String> {
    let id = text.lines().next()?.trim();
    (!id.is_empty()).then(|| id.to_owned())
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    use crate::fuzz::{done, text};
    done(networks(bytes, &crate::fuzz::host()));
    let text = text(bytes);
    done(flannel_subnet(&text).and_then(|cidr| range_size(&cidr, None, None, None)));
    done(range_size(&text, Some(&text), Some(&text), Some(&text)));
    done(owner(&text));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn size_of(text: &str) -> Option<f64> {
        let value: Value = serde_json::from_str(text).unwrap();
        size(value.as_object().unwrap())
    }

    #[test]
    fn ranges_are_host_locals_own() {
        // host-local's README; and the range of the proving ground, of which thirteen addresses were given.
        assert_eq!(size_of(r#"{"subnet": "10.88.0.0/28"}"#), Some(13.0));
        assert_eq!(
            size_of(
                r#"{"ranges": [[{"subnet": "10.10.0.0/16", "rangeStart": "10.10.1.20", "rangeEnd": "10.10.3.50", "gateway": "10.10.0.254"}, {"subnet": "172.16.5.0/24"}]]}"#
            ),
            Some(543.0 + 253.0)
        );
        assert_eq!(
            size_of(
                r#"{"ranges": [[{"subnet": "3ffe:ffff:0:01ff::/64", "rangeStart": "3ffe:ffff:0:01ff::0010", "rangeEnd": "3ffe:ffff:0:01ff::0020"}]]}"#
            ),
            Some(17.0)
        );
        // Dual stack: the smaller one is the limit.
        assert_eq!(
            size_of(r#"{"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]]}"#),
            Some(253.0)
        );
        for nonsense in [
            "{}",
            r#"{"subnet": "10.0.0.0/31"}"#,
            r#"{"subnet": "10.0.0.0"}"#,
            r#"{"subnet": "10.0.0.0/24", "rangeStart": "11.0.0.1"}"#,
            r#"{"subnet": "10.0.0.0/24", "rangeEnd": "x"}"#,
            r#"{"ranges": [{"subnet": "10.0.0.0/24"}]}"#,
        ] {
            assert_eq!(size_of(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn who_holds_an_address() {
        // What host-local 1.1.1 writes.
        assert_eq!(owner("full1\r\neth0").as_deref(), Some("full1"));
        assert_eq!(owner("full1").as_deref(), Some("full1"));
        assert_eq!((owner(""), owner("\r\neth0")), (None, None));
    }

    proptest! {
        #[test]
        fn any_range_is_a_size_or_none(cidr in "[0-9a-f.:]{0,12}/[0-9]{0,3}", start in "[0-9.]{0,9}") {
            let size = range_size(&cidr, Some(&start), None, None);
            prop_assert!(size.is_none_or(|size| size >= 0.0));
        }
    }
}
