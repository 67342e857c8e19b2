//! `make bench`: the figures of docs/PERFORMANCE.md, measured on the built programs, beside their peers, in one run.
//!
//! Wall time on a shared machine is noisy, so costs are CPU time as the kernel accounts it, and ratios to what people
//! use today: Debian's prometheus-node-exporter, conntrack, iptables, nft, ps. They run in turn with ours, so that
//! whatever else the machine does hits both alike. A figure that the project promises is asserted: the program ends
//! with 1 when one is missed.
//!
//! What needs a table of rules or connections has it in namespaces of its own ([`alone`]): nothing is made on the
//! machine itself, and all of it ends with the benchmark.

#![expect(clippy::disallowed_methods, reason = "a benchmark starts programs and reads clocks and files")]

mod alone;
mod cgroups;
mod conntrack;
mod iptables;
mod measure;
mod nftables;
mod programs;
mod table;
mod tasks;
mod whole;

use std::process::ExitCode;

use anyhow::Context;

use table::{Row, Table};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let done = match (arguments.next().as_deref(), arguments.next()) {
        (Some(alone::COMMAND), Some(part)) => alone::inside(&part).map(|()| true),
        // One part of it, for who works on that part.
        (Some(part), None) => only(part),
        _ => run(),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<bool> {
    let mut table = Table::default();
    whole(&mut table)?;
    for (part, _) in alone::PARTS {
        alone::part(part, &mut table)?;
    }
    // This machine has no pods: what theirs cost is added. The runtime's and the kubelet's answers are not in it.
    let idle = table.figure(whole::IDLE_CPU).context("the idle agent was not measured")?;
    for (pods, limit) in [(110, 0.4), (250, 0.8)] {
        let cgroups = table.figure(&cgroups::share(pods)).context("the cgroups were not measured")?;
        let what = format!("idle agent and the cgroups of {pods} pods, % of a core");
        table.put(Row::new(what, idle + cgroups).at_most(limit));
    }
    Ok(table.print())
}

fn only(part: &str) -> anyhow::Result<bool> {
    let mut table = Table::default();
    match part {
        "whole" => whole(&mut table)?,
        part => alone::part(part, &mut table)?,
    }
    Ok(table.print())
}

fn whole(table: &mut Table) -> anyhow::Result<()> {
    let folder = std::env::current_exe()?.parent().context("the benchmark has no folder")?.to_owned();
    let agent = folder.join("nodewhy-agent");
    whole::size(&agent, table)?;
    whole::starts(&agent, table)?;
    whole::scrapes(&agent, table)?;
    whole::first_line(&folder.join("nodewhy"), table)
}
