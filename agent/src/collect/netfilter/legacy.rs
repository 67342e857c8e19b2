//! Legacy tables: the kernel's entry count as the gauge of change, and the exact rules of each chain by a walk.

use std::collections::BTreeMap;

use nix::errno::Errno;

use crate::host::ReadError;
use crate::host::xtables::{Family, Info, Xtables};

/// Rules by chain; built-in chains too, also with none.
pub(super) type Chains = BTreeMap<String, u64>;

/// The layout of an entry (include/uapi/linux/netfilter_ipv4/ip_tables.h and _ipv6; 64-bit kernels).
struct Layout {
    /// Where `target_offset` stands; `next_offset` follows it.
    target_offset: usize,
    /// Of the entry without matches: `sizeof(struct ipt_entry)`.
    size: usize,
}

fn layout(family: Family) -> Layout {
    match family {
        Family::Ip => Layout { target_offset: 88, size: 112 },
        Family::Ip6 => Layout { target_offset: 140, size: 168 },
    }
}

/// `struct xt_entry_target`: size (2 bytes), name (29), revision (1); then the target's own.
const TARGET_NAME: std::ops::Range<usize> = 2..31;
/// XT_FUNCTION_MAXNAMELEN, behind the target's header: the name of the chain that begins here.
const ERROR_NAME: std::ops::Range<usize> = 32..62;
const ERROR_TARGET: &[u8] = b"ERROR";

/// NF_INET_PRE_ROUTING and those after it.
static HOOKS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

/// Why a walk came to nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the table's entries make no sense: {0}")]
pub(super) struct Broken(String);

/// Fetches the table and counts each chain's rules.
pub(super) fn exact(xtables: &Xtables, family: Family, table: &str) -> Result<(Info, Chains), ReadError> {
    let failed = |what: &str, errno: Errno| refused(family, table, what, errno);
    // Whoever writes rules at the same time changes the size: asked again then.
    for _ in 0..3 {
        let info = xtables.info(table).map_err(|errno| failed("IPT_SO_GET_INFO", errno))?;
        match xtables.entries(table, info.size) {
            Ok(bytes) => {
                let chains =
                    walk(family, &info, &bytes).map_err(|error| ReadError::Other(error.to_string()))?;
                return Ok((info, chains));
            }
            Err(Errno::EAGAIN) => {}
            Err(errno) => return Err(failed("IPT_SO_GET_ENTRIES", errno)),
        }
    }
    Err(ReadError::Other(format!("{} table {table} changed three times while it was read", family.name())))
}

/// As a failure that says what to do.
pub(super) fn refused(family: Family, table: &str, what: &str, errno: Errno) -> ReadError {
    let needs = if errno == Errno::EPERM { "; give the agent CAP_NET_ADMIN" } else { "" };
    ReadError::Other(format!("cannot read {} table {table} ({what}): {}{needs}", family.name(), errno.desc()))
}

/// Counts the rules of each chain, as `iptables-save` lists them: a built-in chain's end before its policy, a user's
/// begins with an entry of the target ERROR that names it and ends with a RETURN of its own.
fn walk(family: Family, info: &Info, bytes: &[u8]) -> Result<Chains, Broken> {
    let layout = layout(family);
    let mut chains = Chains::new();
    let mut chain: Option<(String, Count)> = None;
    let (mut at, mut seen) = (0_usize, 0_u64);
    while at < bytes.len() {
        let (target, next) = split(&layout, bytes, at)?;
        seen += 1;
        let offset = u32::try_from(at).map_err(|_| Broken("it is larger than 4 GiB".to_owned()))?;
        let head = error_name(target);
        let hook = (0..HOOKS.len())
            .find(|hook| info.valid_hooks & (1 << hook) != 0 && info.hook_entry.get(*hook) == Some(&offset));
        if let Some(name) = hook.and_then(|hook| HOOKS.get(hook)) {
            close(&mut chains, chain.take())?;
            chain = Some(((*name).to_owned(), Count::BuiltIn(0)));
        } else if let Some(name) = head {
            close(&mut chains, chain.take())?;
            // The last entry of all is named ERROR, too, and begins no chain.
            if next < bytes.len() {
                chain = Some((name, Count::User(0)));
            }
            at = next;
            continue;
        }
        match chain.as_mut() {
            Some((_, Count::BuiltIn(count) | Count::User(count))) => *count += 1,
            None => return Err(Broken(format!("an entry at {at} is in no chain"))),
        }
        at = next;
    }
    close(&mut chains, chain)?;
    if seen != u64::from(info.entries) {
        return Err(Broken(format!("{seen} entries, where {} were announced", info.entries)));
    }
    Ok(chains)
}

/// Entries of a chain so far. Of each kind one is no rule: the policy, the RETURN.
enum Count {
    BuiltIn(u64),
    User(u64),
}

fn close(chains: &mut Chains, chain: Option<(String, Count)>) -> Result<(), Broken> {
    let Some((name, Count::BuiltIn(entries) | Count::User(entries))) = chain else { return Ok(()) };
    let rules = entries.checked_sub(1).ok_or_else(|| Broken(format!("chain {name} has no end")))?;
    chains.insert(name, rules);
    Ok(())
}

/// The entry's target, and where the next entry begins.
fn split<'a>(layout: &Layout, bytes: &'a [u8], at: usize) -> Result<(&'a [u8], usize), Broken> {
    let cut = || Broken(format!("the entry at {at} is cut"));
    let half = |from: usize| {
        let from = at + from;
        bytes.get(from..from + 2)?.try_into().ok().map(u16::from_ne_bytes).map(usize::from)
    };
    let target = half(layout.target_offset).ok_or_else(cut)?;
    let next = half(layout.target_offset + 2).ok_or_else(cut)?;
    if target < layout.size || next <= target {
        return Err(cut());
    }
    Ok((bytes.get(at + target..at + next).ok_or_else(cut)?, at + next))
}

/// The name that an ERROR target bears.
fn error_name(target: &[u8]) -> Option<String> {
    let name = until_nul(target.get(TARGET_NAME)?);
    (name == ERROR_TARGET).then(|| {
        let end = ERROR_NAME.end.min(target.len());
        String::from_utf8_lossy(until_nul(target.get(ERROR_NAME.start..end).unwrap_or_default())).into_owned()
    })
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    // The 84 bytes of IPT_SO_GET_INFO, then the entries.
    let word = |at: usize| bytes.get(32 + 4 * at..36 + 4 * at)?.try_into().ok().map(u32::from_ne_bytes);
    let five = |from: usize| [0, 1, 2, 3, 4].map(|index| word(from + index).unwrap_or(0));
    let (Some(valid_hooks), Some(entries), Some(size)) = (word(0), word(11), word(12)) else { return };
    let info = Info { valid_hooks, hook_entry: five(1), underflow: five(6), entries, size };
    for family in [Family::Ip, Family::Ip6] {
        crate::fuzz::done(walk(family, &info, bytes.get(84..).unwrap_or_default()));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // `*nat` of `iptables-legacy-restore` with -A OUTPUT -j KUBE-SERVICES, -A KUBE-SERVICES -d 10.96.0.1/32 -j RETURN, and
    // an empty chain KUBE-NODEPORTS: IPT_SO_GET_INFO's 84 bytes, then the entries, recorded on Linux 6.18.44.
    const TABLE: &[u8] = include_bytes!("../../../fixtures/netfilter/linux-6.18.44-nat.bin");

    fn recorded() -> (Info, &'static [u8]) {
        let word = |at: usize| u32::from_ne_bytes(TABLE[32 + 4 * at..36 + 4 * at].try_into().unwrap());
        let five = |from: usize| [0, 1, 2, 3, 4].map(|index| word(from + index));
        let info = Info {
            valid_hooks: word(0),
            hook_entry: five(1),
            underflow: five(6),
            entries: word(11),
            size: word(12),
        };
        (info, &TABLE[84..])
    }

    #[test]
    fn the_recorded_table() {
        let (info, bytes) = recorded();
        assert_eq!(usize::try_from(info.size).unwrap(), bytes.len());
        let chains = walk(Family::Ip, &info, bytes).unwrap();
        let expected = [
            ("INPUT", 0),
            ("KUBE-NODEPORTS", 0),
            ("KUBE-SERVICES", 1),
            ("OUTPUT", 1),
            ("POSTROUTING", 0),
            ("PREROUTING", 0),
        ];
        assert_eq!(chains, expected.map(|(name, rules)| (name.to_owned(), rules)).into());
    }

    proptest! {
        #[test]
        fn a_cut_table_is_an_error(cut in 0..TABLE.len() - 84) {
            let (info, bytes) = recorded();
            prop_assert!(walk(Family::Ip, &info, &bytes[..cut]).is_err());
        }

        #[test]
        fn a_flipped_byte_never_panics(at in 0..TABLE.len() - 84, byte: u8) {
            let (info, bytes) = recorded();
            let mut bytes = bytes.to_vec();
            bytes[at] = byte;
            walk(Family::Ip, &info, &bytes).ok();
            walk(Family::Ip6, &info, &bytes).ok();
        }
    }
}
