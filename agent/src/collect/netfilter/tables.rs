//! What is kept of the tables between readings: a gauge each tick, exact counts after a change.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::legacy::{self, Chains};
use super::nft::{self, Ruleset};
use crate::host::netlink::{Netlink, Protocol};
use crate::host::xtables::{Family, Info, Xtables};
use crate::host::{Host, ReadError};

/// Exact counts cost: after a change, and no more often than this.
const EXACT_EVERY: Duration = Duration::from_secs(300);
/// A table of legacy rules comes whole into memory.
const MOST_BYTES: u32 = 40 * 1024 * 1024;

/// A legacy table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LegacyTable {
    /// ip or ip6.
    pub family: Family,
    /// nat, filter, mangle, raw, security.
    pub table: String,
    /// The kernel's entries: rules, two a user's chain, one a built-in chain, one. The gauge of change, no count of rules.
    pub entries: u32,
    /// Its size in bytes.
    pub size_bytes: u32,
    /// Rules, as `iptables-save` lists them, when they were last counted. `None`: not counted; there are fewer than
    /// `entries`.
    pub rules: Option<u64>,
    /// Rules by chain then.
    #[serde(skip)]
    pub chains: Option<Arc<Chains>>,
    /// How many chains it had then.
    pub chains_count: Option<usize>,
    /// Seconds since they were counted.
    pub counted_seconds_ago: Option<f64>,
    /// Whether the table has changed since then.
    pub changed_since: bool,
    /// Why they are not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uncounted: Option<String>,
}

/// nftables as a whole.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Nft {
    /// Raised by every change.
    pub generation: u32,
    /// Its tables.
    pub tables: Vec<nft::Table>,
    /// Why rules or elements are not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uncounted: Option<String>,
    /// Seconds since tables, chains, rules and sets were counted.
    pub counted_seconds_ago: f64,
    /// Whether the ruleset has changed since then, or while it was counted.
    pub changed_since: bool,
}

struct Counted {
    info: Info,
    chains: Result<Arc<Chains>, String>,
    at: Duration,
}

/// Both families' legacy tables.
#[derive(Default)]
pub(super) struct Legacy {
    sockets: BTreeMap<Family, Xtables>,
    counted: BTreeMap<(Family, String), Counted>,
}

impl Legacy {
    /// One family's tables. Only those are asked for that are there: a question makes the table that it is for.
    pub(super) fn read(&mut self, host: &Host, family: Family) -> Result<Vec<LegacyTable>, ReadError> {
        let names = host.xtables_names(family)?;
        self.counted.retain(|(of, table), _| *of != family || names.contains(table));
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let socket = match self.sockets.remove(&family) {
            Some(socket) => socket,
            None => Xtables::open(family).map_err(|errno| {
                ReadError::Other(format!("cannot make a socket for {}: {}", family.name(), errno.desc()))
            })?,
        };
        let tables = names.into_iter().map(|table| self.table(host, &socket, family, table)).collect();
        self.sockets.insert(family, socket);
        tables
    }

    fn table(
        &mut self,
        host: &Host,
        socket: &Xtables,
        family: Family,
        table: String,
    ) -> Result<LegacyTable, ReadError> {
        let info =
            socket.info(&table).map_err(|errno| legacy::refused(family, &table, "IPT_SO_GET_INFO", errno))?;
        let now = host.clock().since_boot();
        let key = (family, table.clone());
        let due = self
            .counted
            .get(&key)
            .is_none_or(|counted| counted.info != info && now.saturating_sub(counted.at) >= EXACT_EVERY);
        let most = host.places().netfilter_exact_entries_max;
        let too_large = u64::from(info.entries) > most || info.size > MOST_BYTES;
        if due && !too_large {
            let counted = match legacy::exact(socket, family, &table) {
                Ok((info, chains)) => Counted { info, chains: Ok(Arc::new(chains)), at: now },
                Err(error) => Counted { info, chains: Err(error.to_string()), at: now },
            };
            self.counted.insert(key.clone(), counted);
        }
        let counted = self.counted.get(&key);
        let chains = counted.and_then(|counted| counted.chains.as_ref().ok());
        let changed_since = counted.is_some_and(|counted| counted.info != info);
        let uncounted = match counted {
            _ if too_large && (changed_since || chains.is_none()) => Some(format!(
                "{} entries, {} bytes: over netfilter_exact_entries_max ({most}) or {MOST_BYTES} bytes",
                info.entries, info.size
            )),
            Some(Counted { chains: Err(error), .. }) => Some(error.clone()),
            _ => None,
        };
        // A count from when the table was smaller says nothing of one that has outgrown the limit.
        let chains = chains.filter(|_| uncounted.is_none());
        Ok(LegacyTable {
            family,
            table,
            entries: info.entries,
            size_bytes: info.size,
            rules: chains.map(|chains| chains.values().sum()),
            chains_count: chains.map(|chains| chains.len()),
            chains: chains.cloned(),
            counted_seconds_ago: counted
                .filter(|_| chains.is_some())
                .map(|counted| now.saturating_sub(counted.at).as_secs_f64()),
            changed_since,
            uncounted,
        })
    }
}

/// nftables.
#[derive(Default)]
pub(super) struct Nftables {
    netlink: Option<Netlink>,
    counted: Option<(u32, Ruleset, Duration)>,
}

impl Nftables {
    /// Asked only where nf_tables is there: a question loads it.
    pub(super) fn read(&mut self, host: &Host) -> Result<Nft, ReadError> {
        host.module("nf_tables").needed_for("nf_tables", "nftables")?;
        let asking = |error: crate::host::netlink::NetlinkError| error.asking("nftables");
        let netlink = match &mut self.netlink {
            Some(netlink) => netlink,
            none => none.insert(Netlink::open(host, Protocol::Netfilter).map_err(asking)?),
        };
        let generation = nft::generation(netlink).map_err(asking)?;
        let now = host.clock().since_boot();
        let due = self.counted.as_ref().is_none_or(|(counted, ruleset, at)| {
            (*counted != generation || ruleset.changed_meanwhile) && now.saturating_sub(*at) >= EXACT_EVERY
        });
        if due {
            let most = host.places().netfilter_exact_entries_max;
            let ruleset = nft::ruleset(netlink, most).map_err(asking)?;
            self.counted = Some((generation, ruleset, now));
        }
        let Some((counted, ruleset, at)) = &self.counted else {
            return Err(ReadError::Other("nftables: nothing was counted".to_owned()));
        };
        Ok(Nft {
            generation,
            tables: ruleset.tables.clone(),
            uncounted: ruleset.uncounted.clone(),
            counted_seconds_ago: now.saturating_sub(*at).as_secs_f64(),
            changed_since: *counted != generation || ruleset.changed_meanwhile,
        })
    }
}
