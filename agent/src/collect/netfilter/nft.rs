//! nftables over nfnetlink (include/uapi/linux/netfilter/nf_tables.h): the generation as the gate of change, tables,
//! chains, sets, and each chain's rules by a dump of that chain alone.
//!
//! A dump of all rules at once is quadratic in the kernel (each read begins at the first rule): never done.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::host::netlink::{Attributes, Cut, Netlink, NetlinkError, Payload};

const SUBSYSTEM: u16 = 10 << 8;
const GET_TABLE: u16 = SUBSYSTEM | 1;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const GET_RULE: u16 = SUBSYSTEM | 7;
const GET_SET: u16 = SUBSYSTEM | 10;
const GET_SET_ELEMENTS: u16 = SUBSYSTEM | 13;
const GET_GENERATION: u16 = SUBSYSTEM | 16;

const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_USE: u16 = 6;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_GEN_ID: u16 = 1;
/// A set that a rule holds itself.
const NFT_SET_ANONYMOUS: u32 = 1;

/// `struct nfgenmsg`: family, version, resource (of no meaning in a question).
const HEADER_BYTES: usize = 4;
const EVERY_FAMILY: u8 = 0;
/// One question; dumps of a whole list get the time that is left of [`LONG`].
const SHORT: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(10);

/// The families, by NFPROTO_'s number.
pub(super) fn family_name(family: u8) -> String {
    match family {
        1 => "inet".to_owned(),
        2 => "ip".to_owned(),
        3 => "arp".to_owned(),
        5 => "netdev".to_owned(),
        7 => "bridge".to_owned(),
        10 => "ip6".to_owned(),
        other => other.to_string(),
    }
}

/// A chain, as the list of chains tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) family: u8,
    pub(super) table: String,
    pub(super) name: String,
    /// Whether a hook begins it. Nothing jumps to such a chain.
    pub(super) is_base: bool,
    /// Its rules, and the jumps and map elements that lead to it.
    pub(super) used: Option<u32>,
}

/// A set or map with a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Set {
    /// Its name.
    pub name: String,
    /// Its elements, as the kernel holds them: an interval is two. `None`: not counted.
    pub elements: Option<u64>,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Table {
    /// ip, ip6, inet, arp, bridge, netdev.
    pub family: String,
    /// Its name.
    pub name: String,
    /// Rules of all its chains. `None`: they were not counted.
    pub rules: Option<u64>,
    /// At most so many rules: jumps are counted along.
    pub rules_at_most: Option<u64>,
    /// Its chains with their rules, `None` where they were not counted.
    #[serde(skip)]
    pub chains: Arc<Vec<(String, Option<u64>)>>,
    /// How many chains it has.
    pub chains_count: usize,
    /// Its sets and maps with names.
    #[serde(skip)]
    pub sets: Arc<Vec<Set>>,
    /// Elements of all its sets and maps. `None`: they were not counted.
    pub elements: Option<u64>,
}

/// The ruleset as it is at one generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ruleset {
    pub(super) tables: Vec<Table>,
    /// Why rules or elements were not counted.
    pub(super) uncounted: Option<String>,
    /// Something was written meanwhile.
    pub(super) changed_meanwhile: bool,
}

fn header(family: u8) -> [u8; HEADER_BYTES] {
    [family, 0, 0, 0]
}

/// The number that every change raises. It costs a microsecond.
pub(super) fn generation(netlink: &mut Netlink) -> Result<u32, NetlinkError> {
    let mut id = None;
    netlink.request(GET_GENERATION, &header(EVERY_FAMILY), SHORT, |_, payload| {
        if let Some(found) = Attributes::behind(HEADER_BYTES, payload)?.find(NFTA_GEN_ID)? {
            id = Some(found.u32_be()?);
        }
        Ok(())
    })?;
    id.ok_or_else(|| NetlinkError::Malformed("no generation in it".to_owned()))
}

/// The ruleset. Rules are counted chain by chain while the uses of all chains together are at most `most`; elements
/// of sets until there are more than that.
pub(super) fn ruleset(netlink: &mut Netlink, most: u64) -> Result<Ruleset, NetlinkError> {
    let mut changed = false;
    let mut tables = tables(netlink, &mut changed)?;
    let chains = chains(netlink, &mut changed)?;
    let uses: u64 = chains.iter().filter_map(|chain| chain.used).map(u64::from).sum();
    let mut uncounted = (uses > most).then(|| {
        format!("there may be {uses} rules, over netfilter_exact_entries_max ({most}): the rules are not counted one by one")
    });
    for chain in &chains {
        let rules = match (chain.is_base, chain.used) {
            // Nothing can jump to it: all its uses are rules.
            (true, Some(used)) => Some(u64::from(used)),
            (false, Some(0)) => Some(0),
            _ if uncounted.is_none() => rules(netlink, chain)?,
            _ => None,
        };
        let Some(table) = tables.get_mut(&(chain.family, chain.table.clone())) else { continue };
        table.rules = table.rules.zip(rules).map(|(sum, rules)| sum + rules);
        table.rules_at_most = table.rules_at_most.zip(chain.used).map(|(sum, used)| sum + u64::from(used));
        Arc::make_mut(&mut table.chains).push((chain.name.clone(), rules));
        table.chains_count += 1;
    }
    let mut left = most;
    for (family, table, name) in sets(netlink, &mut changed)? {
        let Some(of) = tables.get_mut(&(family, table.clone())) else { continue };
        let elements = elements(netlink, family, &table, &name, left)?;
        left = left.saturating_sub(elements.unwrap_or(left));
        if elements.is_none() {
            uncounted.get_or_insert_with(|| {
                format!("the sets have more than {most} elements (netfilter_exact_entries_max): not all are counted")
            });
        }
        of.elements = of.elements.zip(elements).map(|(sum, elements)| sum + elements);
        Arc::make_mut(&mut of.sets).push(Set { name, elements });
    }
    Ok(Ruleset { tables: tables.into_values().collect(), uncounted, changed_meanwhile: changed })
}

type Tables = BTreeMap<(u8, String), Table>;

fn tables(netlink: &mut Netlink, changed: &mut bool) -> Result<Tables, NetlinkError> {
    let mut tables = Tables::new();
    let told = netlink.dump(GET_TABLE, &header(EVERY_FAMILY), LONG, |_, payload| {
        let family = *payload.first().ok_or(Cut)?;
        let name = Attributes::behind(HEADER_BYTES, payload)?.find(NFTA_TABLE_NAME)?.ok_or(Cut)?.text()?;
        let table = Table {
            family: family_name(family),
            name: name.to_owned(),
            rules: Some(0),
            rules_at_most: Some(0),
            chains: Arc::default(),
            chains_count: 0,
            sets: Arc::default(),
            elements: Some(0),
        };
        tables.insert((family, name.to_owned()), table);
        Ok(ControlFlow::Continue(()))
    })?;
    *changed |= told.interrupted;
    Ok(tables)
}

fn chains(netlink: &mut Netlink, changed: &mut bool) -> Result<Vec<Chain>, NetlinkError> {
    let mut chains = Vec::new();
    let told = netlink.dump(GET_CHAIN, &header(EVERY_FAMILY), LONG, |_, payload| {
        chains.push(chain(payload)?);
        Ok(ControlFlow::Continue(()))
    })?;
    *changed |= told.interrupted;
    Ok(chains)
}

fn chain(payload: &[u8]) -> Result<Chain, Cut> {
    let family = *payload.first().ok_or(Cut)?;
    let (mut table, mut name, mut is_base, mut used) = (None, None, false, None);
    for attribute in Attributes::behind(HEADER_BYTES, payload)? {
        let attribute = attribute?;
        match attribute.kind {
            NFTA_CHAIN_TABLE => table = Some(attribute.text()?.to_owned()),
            NFTA_CHAIN_NAME => name = Some(attribute.text()?.to_owned()),
            NFTA_CHAIN_HOOK => is_base = true,
            NFTA_CHAIN_USE => used = Some(attribute.u32_be()?),
            _ => {}
        }
    }
    Ok(Chain { family, table: table.ok_or(Cut)?, name: name.ok_or(Cut)?, is_base, used })
}

/// The rules of one chain; `None`: it is gone by now.
fn rules(netlink: &mut Netlink, chain: &Chain) -> Result<Option<u64>, NetlinkError> {
    let payload = Payload::new(&header(chain.family))
        .with_text(NFTA_RULE_TABLE, &chain.table)?
        .with_text(NFTA_RULE_CHAIN, &chain.name)?;
    counted(netlink.dump(GET_RULE, payload.bytes(), LONG, |_, _| Ok(ControlFlow::Continue(()))))
}

fn counted(told: Result<crate::host::netlink::Exchange, NetlinkError>) -> Result<Option<u64>, NetlinkError> {
    match told {
        Ok(told) => Ok(Some(told.messages)),
        Err(NetlinkError::Refused(nix::errno::Errno::ENOENT)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn sets(netlink: &mut Netlink, changed: &mut bool) -> Result<Vec<(u8, String, String)>, NetlinkError> {
    let mut sets = Vec::new();
    let told = netlink.dump(GET_SET, &header(EVERY_FAMILY), LONG, |_, payload| {
        let family = *payload.first().ok_or(Cut)?;
        let attributes = Attributes::behind(HEADER_BYTES, payload)?;
        let flags = attributes.find(NFTA_SET_FLAGS)?.map(|flags| flags.u32_be()).transpose()?;
        if flags.is_none_or(|flags| flags & NFT_SET_ANONYMOUS == 0) {
            let table = attributes.find(NFTA_SET_TABLE)?.ok_or(Cut)?.text()?.to_owned();
            let name = attributes.find(NFTA_SET_NAME)?.ok_or(Cut)?.text()?.to_owned();
            sets.push((family, table, name));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    *changed |= told.interrupted;
    Ok(sets)
}

/// The elements of a set; `None`: there are more than `most`, or it is gone by now.
fn elements(
    netlink: &mut Netlink,
    family: u8,
    table: &str,
    set: &str,
    most: u64,
) -> Result<Option<u64>, NetlinkError> {
    let payload = Payload::new(&header(family))
        .with_text(NFTA_SET_ELEM_LIST_TABLE, table)?
        .with_text(NFTA_SET_ELEM_LIST_SET, set)?;
    let mut count = 0;
    let told = netlink.dump(GET_SET_ELEMENTS, payload.bytes(), LONG, |_, payload| {
        // A message holds as many elements as fit.
        if let Some(list) = Attributes::behind(HEADER_BYTES, payload)?.find(NFTA_SET_ELEM_LIST_ELEMENTS)? {
            for element in list.nested() {
                element?;
                count += 1;
            }
        }
        Ok(if count > most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    });
    counted(told).map(|told| told.filter(|_| count <= most).map(|_| count))
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    crate::fuzz::done(chain(bytes));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // Two messages of a NFT_MSG_GETCHAIN dump, netlink headers taken off, of
    // `table ip nat { chain PREROUTING { type nat hook prerouting priority -100; jump KUBE-SERVICES; }; chain KUBE-SERVICES { } }`,
    // recorded on Linux 6.18.44.
    const BASE: &[u8] = include_bytes!("../../../fixtures/netfilter/linux-6.18.44-nft-base-chain.bin");
    const JUMPED_TO: &[u8] = include_bytes!("../../../fixtures/netfilter/linux-6.18.44-nft-chain.bin");

    #[test]
    fn the_recorded_chains() {
        let base = chain(BASE).unwrap();
        assert_eq!((base.name.as_str(), base.is_base, base.used), ("PREROUTING", true, Some(1)));
        assert_eq!((family_name(base.family).as_str(), base.table.as_str()), ("ip", "nat"));
        let other = chain(JUMPED_TO).unwrap();
        // No rule: the one use is the jump to it.
        assert_eq!((other.name.as_str(), other.is_base, other.used), ("KUBE-SERVICES", false, Some(1)));
    }

    proptest! {
        #[test]
        fn a_cut_chain_is_an_error_or_keeps_its_name(cut in 0..BASE.len()) {
            if let Ok(cut) = chain(&BASE[..cut]) {
                prop_assert_eq!(cut.name, "PREROUTING");
            }
        }

        #[test]
        fn a_flipped_byte_never_panics(at in 0..BASE.len(), byte: u8) {
            let mut bytes = BASE.to_vec();
            bytes[at] = byte;
            chain(&bytes).ok();
        }
    }
}
