//! The bare node: an agent that only reads must load nothing. The kernel loads a module for who merely asks: the first
//! `iptables -L`, the first netlink question to conntrack, a `getsockopt`. So modules, tables and interfaces are compared
//! before and after a full run of the agent, and each request of the kernel's for a module meanwhile is recorded.
//!
//! What is compared is read from files: `nft` and `iptables` would load what they ask for. `nft` is asked only
//! where its module is there already.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::time::Duration;

use anyhow::{Context, ensure};
use nodewhy_proto::{Outcome, State};
use serde::Serialize;

use crate::evidence::Way;
use crate::node::Node;
use crate::run::Ground;

/// Each collector has to have read so often.
const READS: u64 = 3;
const WITHIN: Duration = Duration::from_secs(120);
const BOOTED_WITHIN: Duration = Duration::from_secs(180);
/// The agent's paths that answer 200 whatever the node is.
const PATHS: [&str; 5] = ["/metrics", "/healthz", "/api/v1/node", "/api/v1/state", "/api/v1/findings"];
/// These may answer other than 200 (what they tell is not to be had), or have no end.
const OTHER_PATHS: [&str; 3] = ["/readyz", "/api/v1/kmsg", EVENTS];
const EVENTS: &str = "/api/v1/events";

/// What is loaded and made: a line for each module, table, interface and file of the kernel's that comes with a module.
type Standing = BTreeSet<String>;

/// What an agent changed on one node.
#[derive(Debug, Serialize)]
pub struct BareReport {
    /// Which node.
    pub node: &'static str,
    /// Before any agent was started.
    pub before: Standing,
    /// After their full run, while they run.
    pub after: Standing,
    /// What the kernel asked modprobe for meanwhile, found or not.
    pub asked: Vec<String>,
    /// How often each collector of each agent read on time.
    pub reads: BTreeMap<String, u64>,
    /// What a control changed, which the test makes by itself at the end: one dummy interface.
    pub control: Vec<String>,
}

impl BareReport {
    /// What is not as it was.
    pub fn difference(&self) -> Vec<String> {
        difference(&self.before, &self.after, &self.asked)
    }
}

fn difference(before: &Standing, after: &Standing, asked: &[String]) -> Vec<String> {
    let came = after.difference(before).map(|line| format!("came: {line}"));
    let went = before.difference(after).map(|line| format!("went: {line}"));
    came.chain(went).chain(asked.iter().map(|request| format!("the kernel asked for: {request}"))).collect()
}

/// Runs the agent on the ready node in both ways, and on the host of a node that booted without a runtime, a kubelet, a
/// CNI configuration and the module that systemd loads (ip_tables).
///
/// # Errors
/// A part of the proving ground failed, or the test itself: its control was not seen. Not: something changed.
pub fn bare(ground: &Ground) -> anyhow::Result<Vec<BareReport>> {
    let slot = ground.slot()?;
    let node = ground.node(&slot)?;
    let ready = full_run(&node, "ready: containerd, kubelet's stand-in, pods", &Way::ALL)?;
    drop(node);

    let mut node = ground.node(&slot)?;
    node.sh("cd /etc/systemd/system/multi-user.target.wants; \
             rm containerd.service kubelet.service data.service kubepods*.slice; rm -r /etc/cni/net.d /var/lib/kubelet; sync")?;
    node.power_cut()?;
    node.power_on()?;
    // The channel answers early in the boot, when modules are still being loaded for every device.
    node.until(BOOTED_WITHIN, "the node has booted", |node| {
        Ok(node.output("systemctl is-active multi-user.target")?.code == 0)
    })?;
    node.sh(
        "rmmod ip_tables x_tables; \
         while udevadm settle; a=$(cat /proc/modules); sleep 5; [ \"$a\" != \"$(cat /proc/modules)\" ]; do :; done",
    )?;
    ensure!(node.output("pgrep containerd")?.code != 0, "containerd runs on the node that is to be bare");
    let bare = full_run(&node, "bare: booted without runtime, kubelet, CNI and ip_tables", &[Way::Host])?;
    Ok(vec![ready, bare])
}

/// The same, said and judged.
///
/// # Errors
/// As [`bare`]; or something is not as it was.
pub fn seen(ground: &Ground) -> anyhow::Result<()> {
    for report in bare(ground)? {
        println!("{}: {} lines before, {} after", report.node, report.before.len(), report.after.len());
        println!("  reads on time: {:?}\n  seen of the control: {:?}", report.reads, report.control);
        let changed = report.difference();
        ensure!(changed.is_empty(), "the node is not as it was: {changed:?}");
    }
    Ok(())
}

fn full_run(node: &Node, name: &'static str, ways: &[Way]) -> anyhow::Result<BareReport> {
    record_requests(node)?;
    let before = standing(node)?;
    let mut reads = BTreeMap::new();
    for way in ways {
        node.start_agent(*way)?;
    }
    for way in ways {
        node.until(WITHIN, &format!("each collector ({}) has read {READS} times", way.folder()), |node| {
            let state: State = serde_json::from_str(&node.get(*way, "/api/v1/state")?)?;
            for (collector, its) in &state.collectors {
                // One that is late has been read too, or is overdue: it is not counted.
                let on_time = its.ticks.as_ref().map_or(0, |ticks| ticks.total.saturating_sub(ticks.late));
                // What fails has been asked too, but not read.
                let is_read = matches!(its.outcome, Outcome::Read | Outcome::Absent { .. });
                // What is read once a minute or so has been read at all: three times would take as many minutes.
                let on_time = if its.every_seconds > 10.0 { READS } else { on_time };
                let on_time = if is_read { on_time } else { 0 };
                reads.insert(format!("{} {collector}", way.folder()), on_time);
            }
            Ok(!state.collectors.is_empty() && reads.values().all(|count| *count >= READS))
        })?;
        for path in PATHS {
            node.get(*way, path)?;
        }
        for path in OTHER_PATHS {
            answers(node, *way, path)?;
        }
    }
    let after = standing(node)?;
    let asked = requests(node)?;

    // A test that can't fail proves nothing: it has to see this.
    node.sh("ip link add ground0 type dummy")?;
    let after_that = standing(node)?;
    let asked_then: Vec<String> = requests(node)?.split_off(asked.len());
    let control = difference(&after, &after_that, &asked_then);
    for expected in ["/proc/modules: dummy", "/sys/class/net: ground0", "rtnl-link-dummy"] {
        ensure!(
            control.iter().any(|line| line.ends_with(expected)),
            "a dummy interface was made, and {expected} is not in the difference: {control:?}"
        );
    }
    Ok(BareReport { node: name, before, after, asked, reads, control })
}

/// Asks, and takes what comes: an answer that is no 200, or the beginning of one that has no end.
fn answers(node: &Node, way: Way, path: &str) -> anyhow::Result<()> {
    let mut stream = node.agent(way)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut head = [0; 9];
    stream.read_exact(&mut head).with_context(|| format!("GET {path} of the agent ({})", way.folder()))?;
    ensure!(&head == b"HTTP/1.0 ", "GET {path}: {}", String::from_utf8_lossy(&head));
    if path != EVENTS {
        stream.read_to_end(&mut Vec::new())?;
    }
    Ok(())
}

const RECORDER: &str = "/run/ground-modprobe";
const REQUESTS: &str = "/run/ground-requests";

/// From now on the kernel's requests for modules go through a script that writes them down.
fn record_requests(node: &Node) -> anyhow::Result<()> {
    node.write(RECORDER, &format!("#!/bin/sh\necho \"$*\" >> {REQUESTS}\nexec /sbin/modprobe \"$@\"\n"))?;
    node.sh(&format!("chmod +x {RECORDER}; : > {REQUESTS}"))?;
    node.write("/proc/sys/kernel/modprobe", RECORDER).map(drop)
}

fn requests(node: &Node) -> anyhow::Result<Vec<String>> {
    Ok(node.read(REQUESTS)?.lines().map(str::to_owned).collect())
}

fn standing(node: &Node) -> anyhow::Result<Standing> {
    let said = node.sh(STANDING)?;
    let standing: Standing = said.lines().map(str::to_owned).collect();
    ensure!(standing.iter().any(|line| line.starts_with("/proc/modules: ")), "no module at all: {said}");
    Ok(standing)
}

/// The names in each list, and what is in each folder. `nft` is asked only where its module is there already.
const STANDING: &str = "for f in /proc/modules /proc/net/ip_tables_names /proc/net/ip6_tables_names \
     /proc/net/arp_tables_names; do [ ! -e $f ] || while read -r name rest; do echo \"$f: $name\"; done < $f; done; \
     for f in /proc/net/nf_conntrack /proc/net/ip_vs /proc/net/ip_tables_names /proc/net/ip6_tables_names; do \
     [ ! -e $f ] || echo \"$f is there\"; done; \
     for d in /proc/net/netfilter /proc/sys/net/netfilter /sys/class/net; do [ ! -d $d ] || \
     for name in $(ls $d); do echo \"$d: $name\"; done; done; \
     ! grep -q '^nf_tables ' /proc/modules || nft list tables";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_what_went_and_what_was_asked_for() {
        let lines = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Standing>();
        let (before, after) = (lines(&["veth", "bridge"]), lines(&["veth", "nf_conntrack"]));
        assert_eq!(
            difference(&before, &after, &["-q -- ip_tables".to_owned()]),
            ["came: nf_conntrack", "went: bridge", "the kernel asked for: -q -- ip_tables"]
        );
        assert!(difference(&before, &before, &[]).is_empty());
    }
}
