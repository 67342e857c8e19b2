//! nftables with 2,000 services: each chain's rules, beside `nft list ruleset`.

use anyhow::ensure;

use crate::alone::host;
use crate::iptables::{first_look, restore};
use crate::measure::{in_turn, sh, shell};
use crate::table::Row;

const SERVICES: u32 = 2_000;

pub(crate) fn measure() -> anyhow::Result<Vec<Row>> {
    restore("iptables-nft-restore", SERVICES)?;
    let rules: u64 = sh("iptables-nft-save -t nat | grep -c '^-A'")?.trim().parse()?;
    let host = host();
    let exact = || -> anyhow::Result<f64> {
        let (cost, counted) = first_look(&host, "nft")?;
        ensure!(counted == Some(rules), "the agent counted {counted:?} rules, iptables-nft-save {rules}");
        Ok(cost * 1e3)
    };
    let list = in_turn(3, exact, || Ok(shell("nft list ruleset | wc -l")? * 1e3))?;
    let save = in_turn(3, exact, || Ok(shell("iptables-nft-save | wc -l")? * 1e3))?;
    Ok(vec![
        Row::new("nft, exact per chain, 2,000 services, ms", list.ours)
            .beside("nft list ruleset and wc", list.peer),
        Row::new("nft, ratio to nft list ruleset", list.ratio).at_most(0.2),
        Row::new("nft, ratio to iptables-nft-save", save.ratio).beside("that, ms", save.peer).at_most(1.0),
    ])
}
