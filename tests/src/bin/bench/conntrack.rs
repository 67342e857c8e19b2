//! Who owns 250,000 entries of the connection tracking table: the agent's answer beside the kernel's part of it alone,
//! and beside what a user types.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::os::fd::AsRawFd;

use anyhow::{Context, ensure};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use nodewhy_agent::collect::conntrack;
use nodewhy_agent::collector::Collect;

use crate::alone::host;
use crate::measure::{in_turn, own, sh, shell};
use crate::table::Row;

const ENTRIES: u32 = 250_000;

pub(crate) fn measure() -> anyhow::Result<Vec<Row>> {
    fill()?;
    let counted: u32 = sh("conntrack -C")?.trim().parse()?;
    ensure!(counted == ENTRIES, "{counted} entries were made, not {ENTRIES}");
    let host = host();
    let collector: &dyn Collect = &conntrack::COLLECTOR;
    let ask = collector.asks().first().context("conntrack has no question")?;
    let owners = |only: &str| -> anyhow::Result<(f64, Option<u64>)> {
        let parameters = BTreeMap::from([("only".to_owned(), only.to_owned())]);
        let (cost, answer) = own(1, || Ok((ask.answer)(&host, &parameters)?))?;
        Ok((cost * 1e3, answer.get("entries").and_then(serde_json::Value::as_u64)))
    };
    let all = || -> anyhow::Result<f64> {
        let (cost, entries) = owners("all")?;
        ensure!(entries == Some(u64::from(ENTRIES)), "the agent counted {entries:?} entries");
        Ok(cost)
    };
    let kernel = in_turn(5, all, || drained().map(|cost| cost * 1e3))?;
    let typed = in_turn(3, all, || {
        Ok(shell(
            "conntrack -L 2>/dev/null | grep -o 'src=[^ ]*' | sort | uniq -c | sort -rn | head >/dev/null",
        )? * 1e3)
    })?;
    let listed = in_turn(3, all, || Ok(shell("conntrack -L 2>/dev/null | wc -l")? * 1e3))?;
    // None of them is in this state, so all is the kernel's walk and filter.
    let filtered = in_turn(5, || Ok(owners("assured")?.0), all)?;
    Ok(vec![
        Row::new("conntrack owners of 250,000 entries, ms", kernel.ours)
            .beside("the kernel alone", kernel.peer),
        Row::new("conntrack owners, ratio to the kernel alone", kernel.ratio).at_most(1.1),
        Row::new("conntrack owners, ms", listed.ours).beside("conntrack -L and wc", listed.peer),
        Row::new("conntrack owners, ratio to conntrack -L, grep, sort, uniq", typed.ratio)
            .beside("that, ms", typed.peer),
        Row::new("conntrack, filtered in the kernel, ms", filtered.ours).beside("unfiltered", filtered.peer),
    ])
}

/// From 2,500 sources, a hundred flows each.
fn fill() -> anyhow::Result<()> {
    let mut lines = String::new();
    for entry in 0..ENTRIES {
        let (source, port) = (entry % 2500, 1024 + entry / 2500);
        let (high, low) = (source / 250, 1 + source % 250);
        writeln!(lines, "-I -s 10.1.{high}.{low} -d 10.96.0.10 -p udp --sport {port} --dport 53 -t 3000")?;
    }
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("entries");
    std::fs::write(&file, lines)?;
    sh(&format!("conntrack -R {} 2>/dev/null >/dev/null", file.display())).map(drop)
}

/// CPU seconds of a dump of which nothing is looked at but where it ends: what no reader can be cheaper than.
fn drained() -> anyhow::Result<f64> {
    const GET_DUMP: [u8; 20] = {
        // struct nlmsghdr: 20 bytes, IPCTNL_MSG_CT_GET of NFNL_SUBSYS_CTNETLINK, NLM_F_REQUEST | NLM_F_DUMP; then
        // struct nfgenmsg: any family.
        let [l0, l1, l2, l3] = 20u32.to_ne_bytes();
        let [t0, t1] = 0x0101u16.to_ne_bytes();
        let [f0, f1] = 0x0301u16.to_ne_bytes();
        [l0, l1, l2, l3, t0, t1, f0, f1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    };
    const NLMSG_DONE: u16 = 3;
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    let mut buffer = vec![0u8; 32 * 1024];
    let (cost, ()) = own(1, || {
        send(socket.as_raw_fd(), &GET_DUMP, MsgFlags::empty())?;
        loop {
            let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let (Some(size), Some(kind)) = (rest.first_chunk::<4>(), rest.get(4..6)) {
                if kind == NLMSG_DONE.to_ne_bytes() {
                    return Ok(());
                }
                let size = usize::try_from(u32::from_ne_bytes(*size))?.next_multiple_of(4).max(16);
                rest = rest.get(size..).unwrap_or_default();
            }
        }
    })?;
    Ok(cost)
}
