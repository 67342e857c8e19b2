//! The black box under fire: how late the agent's ticks are while the node is dying, beside node_exporter's answers and
//! a plain loop of the shell over the same files, in the same minute of the same machine.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nodewhy_proto::State;
use serde::{Deserialize, Serialize};

use crate::evidence::Way;
use crate::fault::Fault;
use crate::node::Node;
use crate::run::Ground;

/// The faults under which it is measured.
pub const UNDER: &[&str] = &["memory-thrash", "load-of-blocked-tasks", "disk-hung", "pids-exhausted-node"];
/// For so long.
const SECONDS: u64 = 60;
/// Of all ticks so many may be late.
pub const LATE_AT_MOST: f64 = 0.01;

/// What the agent's collectors read each second, for the loop.
const FILES: &str = "/proc/pressure/cpu /proc/pressure/memory /proc/pressure/io /proc/meminfo /proc/vmstat /proc/loadavg \
                     /proc/stat /sys/fs/cgroup/memory.stat /etc/cni/net.d/10-ground.conflist";

/// What node_exporter reads of that. With all that it has by default, one scrape takes two seconds on the emulated node.
const EXPORTER: &str = "--web.listen-address=127.0.0.1:9100 --collector.disable-defaults --web.disable-exporter-metrics \
     --collector.pressure --collector.meminfo --collector.vmstat --collector.loadavg --collector.stat";

/// One fault's figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fire {
    /// The fault.
    pub fault: String,
    /// The agent on the host.
    pub host: Late,
    /// The agent in a container.
    pub pod: Late,
    /// node_exporter's answers to a scrape a second.
    pub node_exporter: Late,
    /// The shell's loop.
    pub shell: Late,
}

/// How late ticks were.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Late {
    /// Ticks that were due.
    pub ticks: u64,
    /// More than 250 ms late.
    pub late: u64,
    /// The longest delay of a late tick; `None`: none was late.
    pub longest_seconds: Option<f64>,
    /// Of the agent: each late tick, by collector: when since boot, and its delay.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub each: Vec<(String, f64, f64)>,
}

impl Late {
    /// The share of ticks that were on time.
    #[expect(clippy::cast_precision_loss, reason = "ticks of minutes")]
    pub fn on_time(&self) -> f64 {
        1.0 - self.late as f64 / self.ticks.max(1) as f64
    }
}

/// Measures under one fault.
///
/// # Errors
/// A part of the proving ground failed.
pub fn under(ground: &Ground, fault: &Fault) -> anyhow::Result<Fire> {
    let slot = ground.slot()?;
    let mut node = ground.node(&slot)?;
    for way in Way::ALL {
        node.start_agent(way)?;
    }
    peers(&node)?;
    // What starts is slow, and is not what is measured.
    std::thread::sleep(Duration::from_secs(10));
    (fault.inject)(&mut node).with_context(|| format!("make the fault {}", fault.name))?;
    let measured = window(&node);
    let undone = (fault.undo)(&mut node);
    let (from, to, host, pod) = measured?;
    undone.with_context(|| format!("undo the fault {}", fault.name))?;
    node.write("/run/scrape.stop", "")?;
    node.write("/run/loop.stop", "")?;
    node.until(Duration::from_secs(60), "the scraper has written what it saw", |node| {
        Ok(node.output("! systemctl is-active -q scrape && test -s /run/scrape")?.code == 0)
    })?;
    let scraped = node.read("/run/scrape")?;
    let node_exporter = within(from, to, scraped.lines().filter_map(pair));
    let looped: Vec<f64> =
        node.read("/run/loop")?.lines().filter_map(|line| line.trim().parse().ok()).collect();
    let shell = within(from, to, grid(&looped, to).into_iter());
    ensure!(node_exporter.ticks > 0 && shell.ticks > 0, "a peer left no ticks: {node_exporter:?}, {shell:?}");
    Ok(Fire { fault: fault.name.to_owned(), host, pod, node_exporter, shell })
}

/// The peers, started before the fault: some faults leave no process to start.
fn peers(node: &Node) -> anyhow::Result<()> {
    node.sh(&format!("systemd-run --quiet --unit=exporter /usr/bin/prometheus-node-exporter {EXPORTER}"))?;
    node.until(Duration::from_secs(30), "node_exporter listens", |node| {
        Ok(node.output("ss -ltn | grep -q :9100")?.code == 0)
    })?;
    node.sh(
        "systemd-run --quiet --unit=scrape -p CPUSchedulingPolicy=rr -p CPUSchedulingPriority=40 -p OOMScoreAdjust=-1000 \
         -p LimitMEMLOCK=infinity /var/lib/ground/scrape 127.0.0.1:9100 /metrics /run/scrape",
    )?;
    let endless = format!(
        "while [ ! -e /run/loop.stop ]; do cat {FILES} > /dev/null; read up rest < /proc/uptime; echo $up >> /run/loop; \
         sleep 1; done"
    );
    node.write("/run/loop.sh", &endless)?;
    node.sh("systemd-run --quiet --unit=loop /bin/sh /run/loop.sh").map(drop)
}

/// A minute of the fault: from, to (seconds since boot), and how late the agents were meanwhile.
fn window(node: &Node) -> anyhow::Result<(f64, f64, Late, Late)> {
    let ticks = |way| -> anyhow::Result<State> {
        let text = node.get(way, "/api/v1/state?readings=false")?;
        serde_json::from_str(&text).context("the agent's state")
    };
    #[expect(clippy::cast_precision_loss, reason = "seconds since boot")]
    let boot = || anyhow::Ok(node.clocks()?.boot_nanos as f64 / 1e9);
    let from = boot()?;
    let (host, pod) = (ticks(Way::Host)?, ticks(Way::Pod)?);
    std::thread::sleep(Duration::from_secs(SECONDS));
    let (host, pod) = (between(&host, &ticks(Way::Host)?)?, between(&pod, &ticks(Way::Pod)?)?);
    Ok((from, boot()?, host, pod))
}

/// `DUE DELAY`.
fn pair(line: &str) -> Option<(f64, f64)> {
    let (due, delay) = line.split_once(' ')?;
    Some((due.parse().ok()?, delay.trim().parse().ok()?))
}

/// The ticks of a loop that sleeps a second after each turn, from the ends of its turns: the next is due a second after
/// the last end, and each further second that it has not ended is a tick too.
fn grid(ends: &[f64], last: f64) -> Vec<(f64, f64)> {
    let mut ticks = Vec::new();
    for (index, end) in ends.iter().enumerate() {
        let next = ends.get(index + 1).copied().unwrap_or(last);
        let mut due = end + 1.0;
        while due <= next {
            ticks.push((due, next - due));
            due += 1.0;
        }
    }
    ticks
}

/// How late the ticks of this window were.
fn within(from: f64, to: f64, ticks: impl Iterator<Item = (f64, f64)>) -> Late {
    let mut sum = Late::default();
    for (_, delay) in ticks.filter(|(due, _)| (from..to).contains(due)) {
        sum.ticks += 1;
        if delay > 0.25 {
            sum.late += 1;
            sum.longest_seconds = longest(sum.longest_seconds, delay);
        }
    }
    sum
}

fn longest(before: Option<f64>, delay: f64) -> Option<f64> {
    Some(before.map_or(delay, |before| before.max(delay)))
}

/// What came between two states of one agent.
///
/// # Errors
/// The agent was started anew meanwhile, a collector does not read what it read before, or ticks are missing: then it
/// was not on time, whatever its counters say.
fn between(before: &State, after: &State) -> anyhow::Result<Late> {
    let mut sum = Late::default();
    for (name, was) in &before.collectors {
        let now =
            after.collectors.get(name).with_context(|| format!("{name} is not in the state any more"))?;
        ensure!(
            now.outcome.is_read() || !was.outcome.is_read(),
            "{name} was read before, and now it is {:?}",
            now.outcome
        );
        let (Some(was), Some(now)) = (&was.ticks, &now.ticks) else { continue };
        let (Some(ticks), Some(late)) = (now.total.checked_sub(was.total), now.late.checked_sub(was.late))
        else {
            bail!("{name} counts from the beginning: the agent was started anew");
        };
        ensure!(ticks + 2 >= SECONDS, "{name}: {ticks} ticks in {SECONDS} s: the agent was started anew");
        sum.ticks += ticks;
        sum.late += late;
        for late in now.newest_late.iter().rev().take(usize::try_from(late).unwrap_or(usize::MAX)) {
            sum.longest_seconds = longest(sum.longest_seconds, late.delay_seconds);
            sum.each.push((name.clone(), late.boot_seconds, late.delay_seconds));
        }
    }
    ensure!(sum.ticks > 0, "the agent's state has no ticks");
    Ok(sum)
}

/// The figures, for people.
pub fn table(fires: &[Fire]) -> String {
    let mut text = String::from(
        "| fault | agent on the host | agent in a container | node_exporter | shell loop |\n| --- | ---: | ---: | ---: | ---: |\n",
    );
    for fire in fires {
        let cell = |late: &Late| {
            let longest = late.longest_seconds.map_or(String::new(), |longest| format!(" ({longest:.2} s)"));
            format!("{:.1} % of {}{longest}", late.on_time() * 100.0, late.ticks)
        };
        let cells = [&fire.host, &fire.pod, &fire.node_exporter, &fire.shell].map(cell).join(" | ");
        // Writing to a string can't fail.
        _ = writeln!(text, "| {} | {cells} |", fire.fault);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_stalls_misses_each_second_of_the_stall() {
        let ticks = grid(&[10.0, 11.03, 15.0], 15.5);
        assert_eq!(ticks.iter().map(|(due, _)| *due).collect::<Vec<_>>(), [11.0, 12.03, 13.03, 14.03]);
        let late = within(10.0, 20.0, ticks.into_iter());
        assert_eq!((late.ticks, late.late), (4, 3));
        assert!((late.longest_seconds.unwrap() - 2.97).abs() < 1e-9);
        assert_eq!(
            within(10.0, 11.5, [(11.0, 0.03)].into_iter()).longest_seconds,
            None,
            "no late tick is no delay of zero"
        );
        assert!((late.on_time() - 0.25).abs() < 1e-9);
    }

    #[test]
    fn the_scraper_s_lines_are_pairs() {
        assert_eq!(pair("12.500 0.031"), Some((12.5, 0.031)));
        assert_eq!(pair("12.500"), None);
    }
}
