//! Which step of its network's set-up a sandbox lacks: namespace, veth, attachment, address, routes.
//!
//! Read from /proc/PID/net of the sandbox' own process (nothing is entered), and from the host's interfaces. A few a
//! tick, those that lack something again each time. The sixth step, NAT, is rules: the netfilter collector counts those.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use nodewhy_clock::Stamp;
use serde::Serialize;

use crate::host::Host;
use crate::host::known::{Pods, SandboxNetwork};
use crate::whose;

/// So many are looked at in a tick: three small files each.
const A_TICK: usize = 8;
const LIST_EVERY: Duration = Duration::from_secs(10);
/// Names of namespaces that are remembered.
const MOST_NAMESPACES: usize = 4096;
/// Where namespaces are bound to names: one folder, by two names.
const NAMED: [&str; 2] = ["/run/netns", "/var/run/netns"];
/// CNI had this long to make a sandbox of a namespace.
const UNCLAIMED_SECONDS: f64 = 60.0;

/// A step that a sandbox' network needs, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The namespace is bound to its name.
    Namespace,
    /// It has an interface besides `lo`.
    Veth,
    /// The host's end is there, and is a port of the bridge where a bridge is configured.
    Attachment,
    /// It has an address besides the loopback's.
    Address,
    /// It has a default route.
    Routes,
}

impl Step {
    /// For people: what is not there.
    pub(super) fn missing(self) -> &'static str {
        match self {
            Step::Namespace => "its network namespace has no name any more",
            Step::Veth => "it has no interface besides lo: its veth pair is gone",
            Step::Attachment => "the host's end of its veth pair is gone, or is no port of the bridge",
            Step::Address => "its interface has no address",
            Step::Routes => "it has no default route",
        }
    }
}

/// A sandbox, as it was looked at last.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sandbox {
    /// Its id.
    pub id: String,
    /// `namespace/name`, or the pod's UID.
    pub pod: String,
    /// Its process.
    pub pid: u32,
    /// The first step that is missing; `None`: nothing is.
    pub missing: Option<Step>,
    /// Since when that is so, as far as it was seen.
    pub since: Timestamp,
    /// For how long, in seconds.
    pub for_seconds: f64,
    /// The host's interfaces that CNI made for it.
    pub host_interfaces: Vec<String>,
    /// Its addresses, by the runtime's record.
    pub addresses: Vec<String>,
    #[serde(skip)]
    began: Stamp,
}

/// What is remembered between ticks.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    seen: BTreeMap<String, Sandbox>,
    /// After which id the next tick goes on.
    cursor: String,
    namespaces: BTreeMap<String, Stamp>,
    /// When their folder was listed last, whether it could be, and whether it had any name in it.
    listed: Option<Duration>,
    is_listed: bool,
    are_named: bool,
}

/// All of them together.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Sandboxes {
    /// How many were looked at and have a network of their own.
    pub looked_at: u64,
    /// How many lack a step.
    pub incomplete: u64,
    /// The first of those.
    pub first_incomplete: Vec<Sandbox>,
    /// Network namespaces with a name; `None`: the folder cannot be listed from here.
    pub namespaces: Option<u64>,
    /// How many of them are no known sandbox' and have been there for a minute: being made, or left over. `None`: not
    /// all sandboxes' namespaces are known.
    pub namespaces_unclaimed: Option<u64>,
    /// Why nothing can be said of sandboxes.
    pub unknown: Option<&'static str>,
    /// All, for the page.
    #[serde(skip)]
    pub all: Vec<Sandbox>,
}

/// Looks at the next few.
pub(super) fn look(memory: &mut Memory, bridge: Option<&str>, host: &Host) -> Sandboxes {
    let now = host.clock().stamp();
    let (Some(pods), Some(networks)) = (host.pods(), host.sandbox_networks()) else {
        let unknown = Some("the runtime has not told its sandboxes: it is not asked, or has not answered");
        return Sandboxes { unknown, ..Sandboxes::default() };
    };
    let ready: BTreeMap<&String, &SandboxNetwork> = networks
        .iter()
        .filter(|(id, network)| {
            let is_ready = pods.sandboxes.get(*id).is_some_and(|(_, is_ready)| *is_ready);
            is_ready && network.pid.is_some() && network.is_hosts == Some(false)
        })
        .collect();
    memory.seen.retain(|id, _| ready.contains_key(id));
    let due = due(memory, &ready);
    memory.list_namespaces(now, host);
    let links = host.read("/proc/1/net/dev").ok().map(|text| interfaces(&text));
    for id in due {
        let Some(network) = networks.get(&id) else { continue };
        if let Some(missing) = one(&id, network, bridge, links.as_ref(), memory.are_named, host) {
            memory.note(&id, network, &pods, missing, now);
        } else {
            // Its process has gone: the runtime will say so.
            memory.seen.remove(&id);
        }
    }
    for sandbox in memory.seen.values_mut() {
        sandbox.for_seconds = now.boot.saturating_sub(sandbox.began.boot).as_secs_f64();
    }
    let all: Vec<Sandbox> = memory.seen.values().cloned().collect();
    let incomplete = all.iter().filter(|sandbox| sandbox.missing.is_some());
    let known: BTreeSet<&str> = networks.values().filter_map(|it| name_of(it.netns.as_deref()?)).collect();
    let are_known =
        pods.sandboxes.iter().filter(|(_, (_, is_ready))| *is_ready).all(|(id, _)| networks.contains_key(id));
    let (namespaces, unclaimed) = memory.count_namespaces(&known, now);
    Sandboxes {
        looked_at: all.len() as u64,
        incomplete: incomplete.clone().count() as u64,
        first_incomplete: incomplete.take(10).cloned().collect(),
        namespaces,
        namespaces_unclaimed: unclaimed.filter(|_| are_known),
        unknown: None,
        all,
    }
}

/// Those that lack something, those that were never looked at, then the next ones in turn.
fn due(memory: &mut Memory, ready: &BTreeMap<&String, &SandboxNetwork>) -> Vec<String> {
    let lacks = |id: &String| memory.seen.get(id).is_none_or(|sandbox| sandbox.missing.is_some());
    let mut due: Vec<String> = ready.keys().copied().filter(|id| lacks(id)).take(A_TICK).cloned().collect();
    // In turn after the last one of the tick before; at the end it begins anew.
    let (before, after): (Vec<&String>, Vec<&String>) =
        ready.keys().copied().partition(|id| **id <= memory.cursor);
    for id in after.into_iter().chain(before) {
        if due.len() >= A_TICK {
            break;
        }
        if !due.contains(id) {
            due.push(id.clone());
            memory.cursor.clone_from(id);
        }
    }
    due
}

impl Memory {
    fn note(&mut self, id: &str, network: &SandboxNetwork, pods: &Pods, missing: Option<Step>, now: Stamp) {
        let began = self.seen.get(id).filter(|before| before.missing == missing).map(|before| before.began);
        let began = began.unwrap_or(now);
        let uid = pods.sandboxes.get(id).map(|(uid, _)| uid.as_str()).unwrap_or(id);
        let pod = pods.names.get(uid).map(|name| format!("{}/{}", name.namespace, name.name));
        let Some(pid) = network.pid else { return };
        let sandbox = Sandbox {
            id: id.to_owned(),
            pod: pod.unwrap_or_else(|| uid.to_owned()),
            pid,
            missing,
            since: began.wall,
            for_seconds: 0.0,
            host_interfaces: network.host_interfaces.clone(),
            addresses: network.addresses.clone(),
            began,
        };
        self.seen.insert(id.to_owned(), sandbox);
    }

    /// Seldom: a folder of hundreds of names.
    fn list_namespaces(&mut self, now: Stamp, host: &Host) {
        if self.listed.is_some_and(|newest| now.boot.saturating_sub(newest) < LIST_EVERY) {
            return;
        }
        self.listed = Some(now.boot);
        let listed = host.list(NAMED[0]).or_else(|_| host.list(NAMED[1]));
        self.is_listed = listed.is_ok();
        // Under another root the folder may not be mounted, and be empty: then it says nothing.
        self.are_named = listed.as_ref().is_ok_and(|names| !names.is_empty());
        let Ok(names) = listed else { return };
        let made = names.into_iter().filter(|name| name.starts_with("cni-"));
        let made: BTreeSet<String> = made.take(MOST_NAMESPACES).collect();
        self.namespaces.retain(|name, _| made.contains(name));
        for name in made {
            self.namespaces.entry(name).or_insert(now);
        }
    }

    fn count_namespaces(&self, known: &BTreeSet<&str>, now: Stamp) -> (Option<u64>, Option<u64>) {
        if !self.is_listed {
            return (None, None);
        }
        let unclaimed = self.namespaces.iter().filter(|(name, seen)| {
            let age = now.boot.saturating_sub(seen.boot).as_secs_f64();
            age >= UNCLAIMED_SECONDS && !known.contains(name.as_str())
        });
        (Some(self.namespaces.len() as u64), Some(unclaimed.count() as u64))
    }
}

fn name_of(path: &str) -> Option<&str> {
    path.rsplit('/').next().filter(|name| !name.is_empty())
}

/// Its name where it is bound in the usual folder. Other runtimes bind it elsewhere, or not at all.
fn bound_name(path: &str) -> Option<&str> {
    let (folder, name) = path.rsplit_once('/')?;
    (NAMED.contains(&folder) && !name.is_empty()).then_some(name)
}

/// What is missing of one; `None`: its process is not there, or is another one by now.
fn one(
    id: &str,
    network: &SandboxNetwork,
    bridge: Option<&str>,
    links: Option<&BTreeSet<String>>,
    are_named: bool,
    host: &Host,
) -> Option<Option<Step>> {
    let pid = network.pid?;
    // A pid that was given to another process since: its cgroup names another container, or none.
    let cgroups = host.process_cgroups(pid).ok().flatten()?;
    let its = cgroups.iter().find_map(|path| whose::place(path).container_id);
    if its.is_some_and(|its| its != id) {
        return None;
    }
    let file = |name: &str| host.read(format!("/proc/{pid}/net/{name}")).ok();
    let inside = interfaces(&file("dev")?);
    if !inside.iter().any(|name| name != "lo") {
        return Some(Some(Step::Veth));
    }
    if let Some(links) = links {
        let is_gone = network.host_interfaces.iter().any(|name| !links.contains(name));
        // A port of a bridge has a `master`. The host's /sys may show another namespace than /proc/1 does: then the
        // interface itself is not in it, and nothing is said.
        let is_loose = bridge.is_some()
            && network.host_interfaces.iter().any(|name| {
                let exists = |file: &str| host.exists(format!("/sys/class/net/{name}{file}"));
                // The bridge plugin names the bridge itself too, which is a port of nothing.
                exists("").is_ok_and(|is| is)
                    && exists("/bridge").is_ok_and(|is| !is)
                    && exists("/master").is_ok_and(|is| !is)
            });
        if is_gone || is_loose {
            return Some(Some(Step::Attachment));
        }
    }
    let has_route = file("route").is_some_and(|text| has_default_route(&text))
        || file("ipv6_route").is_some_and(|text| has_default_route_6(&text));
    if !has_route {
        let has_address = file("fib_trie").is_some_and(|text| has_address(&text))
            || file("if_inet6").is_some_and(|text| has_address_6(&text));
        return Some(Some(if has_address { Step::Routes } else { Step::Address }));
    }
    let is_nameless = are_named
        && network.netns.as_deref().and_then(bound_name).is_some_and(|name| {
            let is_gone = |dir: &&str| host.exists(format!("{dir}/{name}")).is_ok_and(|is| !is);
            NAMED.iter().all(is_gone)
        });
    Some(is_nameless.then_some(Step::Namespace))
}

/// The names in /proc/net/dev: two lines of heads, then `name: figures`.
pub(super) fn interfaces(text: &str) -> BTreeSet<String> {
    text.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
}

/// A line of /proc/net/route with destination and mask zero.
fn has_default_route(text: &str) -> bool {
    text.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split('\t').collect();
        fields.get(1) == Some(&"00000000") && fields.get(7) == Some(&"00000000")
    })
}

/// As above; the kernel's own entries for "nothing" are on `lo`.
fn has_default_route_6(text: &str) -> bool {
    text.lines().any(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        fields.first().is_some_and(|destination| destination.bytes().all(|byte| byte == b'0'))
            && fields.get(1) == Some(&"00")
            && fields.get(9).is_some_and(|device| *device != "lo")
    })
}

/// A `host LOCAL` of /proc/net/fib_trie below an address that is no loopback's.
fn has_address(text: &str) -> bool {
    let mut address = "";
    text.lines().any(|line| {
        let line = line.trim();
        if let Some(next) = line.strip_prefix("|-- ") {
            address = next;
        }
        line == "/32 host LOCAL" && !address.starts_with("127.")
    })
}

/// A line of /proc/net/if_inet6 whose scope is global (00): link-local ones come by themselves.
fn has_address_6(text: &str) -> bool {
    text.lines().any(|line| line.split_ascii_whitespace().nth(3) == Some("00"))
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    use crate::fuzz::{done, text};
    let text = text(bytes);
    done(interfaces(&text));
    done((has_default_route(&text), has_default_route_6(&text), has_address(&text), has_address_6(&text)));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // A namespace with one veth, an address and a default route, made for it on Linux 6.18.44.
    const DEV: &str = include_str!("../../../fixtures/cni/linux-6.18.44-netns-dev.txt");
    const ROUTE: &str = include_str!("../../../fixtures/cni/linux-6.18.44-netns-route.txt");
    const TRIE: &str = include_str!("../../../fixtures/cni/linux-6.18.44-netns-fib_trie.txt");
    const ROUTE_6: &str = include_str!("../../../fixtures/cni/linux-6.18.44-netns-ipv6_route.txt");
    const INET_6: &str = include_str!("../../../fixtures/cni/linux-6.18.44-netns-if_inet6.txt");

    #[test]
    fn the_recorded_namespace_has_all_but_an_ipv6_route() {
        assert_eq!(interfaces(DEV).into_iter().collect::<Vec<_>>(), ["eth0", "lo", "x0"]);
        assert!(has_default_route(ROUTE) && has_address(TRIE) && has_address_6(INET_6));
        assert!(!has_default_route_6(ROUTE_6), "the kernel's own entries on lo are none");
        let lines: Vec<&str> = ROUTE.lines().filter(|line| !line.contains("0100580A")).collect();
        assert!(!has_default_route(&lines.join("\n")));
        assert!(!has_address(&TRIE.replace("10.88.0.5", "127.0.0.9")));
    }

    proptest! {
        #[test]
        fn a_cut_file_shows_no_more_than_the_whole(cut in 0..TRIE.len()) {
            let dev = DEV.get(..cut.min(DEV.len())).unwrap_or_default();
            prop_assert!(interfaces(dev).is_subset(&interfaces(DEV)));
            let _ = has_address(&TRIE[..cut]);
        }

        #[test]
        fn any_text_is_taken(text in "\\PC{0,200}") {
            let _ = (interfaces(&text), has_default_route(&text), has_default_route_6(&text));
            let _ = (has_address(&text), has_address_6(&text));
        }
    }
}
