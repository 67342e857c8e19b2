//! Legacy rules of 10,000 services: the gauge of each tick, and the exact count beside `iptables-legacy-save`.

use std::fmt::Write;

use anyhow::{Context, ensure};
use nodewhy_agent::collect::netfilter;
use nodewhy_agent::collector::{Collect, Running};
use nodewhy_agent::host::Host;
use nodewhy_agent::host::xtables::{Family, Xtables};
use nodewhy_agent::thresholds::Thresholds;
use nodewhy_proto::Outcome;

use crate::alone::host;
use crate::measure::{in_turn, median, own, sh, shell};
use crate::table::Row;

const SERVICES: u32 = 10_000;
const TICKS: u32 = 50;

pub(crate) fn measure() -> anyhow::Result<Vec<Row>> {
    restore("iptables-legacy-restore", SERVICES)?;
    let rules: u64 = sh("iptables-legacy-save -t nat | grep -c '^-A'")?.trim().parse()?;
    let host = host();
    let exact = || -> anyhow::Result<f64> {
        let (cost, counted) = first_look(&host, "legacy")?;
        ensure!(counted == Some(rules), "the agent counted {counted:?} rules, iptables-legacy-save {rules}");
        Ok(cost * 1e3)
    };
    let walk = in_turn(7, exact, || Ok(walked()? * 1e3))?;
    let save = in_turn(5, exact, || Ok(shell("iptables-legacy-save -t nat | wc -l")? * 1e3))?;
    let socket = Xtables::open(Family::Ip)?;
    let mut infos = Vec::new();
    for _ in 0..9 {
        infos.push(own(20_000, || Ok(socket.info("nat")?))?.0 * 1e6);
    }
    let mut ticks = Vec::new();
    let mut running = netfilter::COLLECTOR.start();
    step(running.as_mut(), &host)?;
    for _ in 0..5 {
        ticks.push(own(TICKS, || step(running.as_mut(), &host).map(drop))?.0 * 1e6);
    }
    Ok(vec![
        Row::new("legacy, size of a table (GET_INFO), µs", median(&mut infos)),
        Row::new("netfilter, a tick while nothing changed, µs", median(&mut ticks)),
        Row::new("legacy, exact per chain, 10,000 services, ms", walk.ours)
            .beside("fetch and walk", walk.peer),
        Row::new("legacy, exact, ratio to fetch and walk", walk.ratio).at_most(1.2),
        Row::new("legacy, exact, ms", save.ours).beside("iptables-legacy-save and wc", save.peer),
        Row::new("legacy, exact, ratio to iptables-legacy-save", save.ratio).at_most(1.0),
    ])
}

/// CPU seconds of a new collector's first look, which counts exactly, and the rules that it tells.
pub(crate) fn first_look(host: &Host, of: &str) -> anyhow::Result<(f64, Option<u64>)> {
    let mut running = netfilter::COLLECTOR.start();
    let (cost, reading) = own(1, || step(running.as_mut(), host))?;
    let tables = match of {
        "legacy" => reading.get("legacy"),
        _ => reading.pointer("/nft/tables"),
    };
    let tables = tables.and_then(serde_json::Value::as_array);
    let rules = tables.and_then(|tables| {
        let of_nat = |table: &&serde_json::Value| {
            ["table", "name"].iter().any(|key| table.get(key).is_some_and(|name| name == "nat"))
        };
        tables.iter().find(of_nat)?.get("rules")?.as_u64()
    });
    Ok((cost, rules))
}

fn step(running: &mut dyn Running, host: &Host) -> anyhow::Result<serde_json::Value> {
    let step = running.step(host, &Thresholds::default());
    ensure!(step.outcome == Outcome::Read, "netfilter: {:?}", step.outcome);
    Ok(step.reading.context("no reading")?.json()?)
}

/// CPU seconds of the table's size, its entries, and a walk over them that counts: no exact reader can be cheaper.
fn walked() -> anyhow::Result<f64> {
    let (cost, entries) = own(1, || {
        let socket = Xtables::open(Family::Ip)?;
        let info = socket.info("nat")?;
        let bytes = socket.entries("nat", info.size)?;
        let (mut rest, mut count) = (bytes.as_slice(), 0u32);
        // struct ipt_entry: the address and interface part is 84 bytes; then nfcache (4), target_offset and
        // next_offset (2 each).
        while let Some(next) = rest.get(90..92) {
            let next = usize::from(u16::from_ne_bytes(next.try_into()?));
            rest = rest.get(next.max(112)..).unwrap_or_default();
            count += 1;
        }
        ensure!(count == info.entries, "{count} of {} entries", info.entries);
        Ok(count)
    })?;
    ensure!(entries > 0, "the table is empty");
    Ok(cost)
}

/// Two chains and five rules a service, as kube-proxy has them.
pub(crate) fn restore(program: &str, services: u32) -> anyhow::Result<()> {
    let mut chains = String::from("*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n");
    let mut rules = String::from(
        "-A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n\
         -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n",
    );
    for service in 0..services {
        let (high, low) = (service / 250, 1 + service % 250);
        let (svc, sep) = (format!("KUBE-SVC-{service:016}"), format!("KUBE-SEP-{service:016}"));
        writeln!(chains, ":{svc} - [0:0]\n:{sep} - [0:0]")?;
        writeln!(
            rules,
            "-A KUBE-SERVICES -d 10.96.{high}.{low}/32 -p tcp -m tcp --dport 80 -j {svc}\n\
             -A {svc} ! -s 10.244.0.0/16 -d 10.96.{high}.{low}/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ\n\
             -A {svc} -j {sep}\n\
             -A {sep} -s 10.244.{high}.{low}/32 -j KUBE-MARK-MASQ\n\
             -A {sep} -p tcp -m tcp -j DNAT --to-destination 10.244.{high}.{low}:8080"
        )?;
    }
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("rules");
    std::fs::write(&file, chains + &rules + "COMMIT\n")?;
    sh(&format!("{program} < {}", file.display())).map(drop)
}
