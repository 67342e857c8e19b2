//! What conntrack counts on each processor, summed: over ctnetlink, else from `/proc/net/stat/nf_conntrack`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use crate::host::netlink::{Attributes, Cut, Netlink, NetlinkError};

/// Events since the namespace was made, by the kernel's name: of one processor, whose counters have 32 bits and begin
/// anew after the last, or the sum of all. What a kernel does not count is not in it.
pub type Statistics = BTreeMap<&'static str, u64>;

/// `enum ctattr_stats_cpu` (include/uapi/linux/netfilter/nfnetlink_conntrack.h), the fields that still count.
static FIELDS: &[(u16, &str)] = &[
    (2, "found"),
    (4, "invalid"),
    (8, "insert"),
    (9, "insert_failed"),
    (10, "drop"),
    (11, "early_drop"),
    (12, "error"),
    (13, "search_restart"),
    (14, "clash_resolve"),
    (15, "chain_toolong"),
];

/// The columns of the file that mean the same (net/netfilter/nf_conntrack_standalone.c). Their names changed in 5.10
/// (`clashres` was `searched`) and 5.15 (`chainlength` was `delete_list`): the old ones meant something else.
static COLUMNS: &[(&str, &str)] = &[
    ("found", "found"),
    ("invalid", "invalid"),
    ("insert", "insert"),
    ("insert_failed", "insert_failed"),
    ("drop", "drop"),
    ("early_drop", "early_drop"),
    ("icmp_error", "error"),
    ("search_restart", "search_restart"),
    ("clashres", "clash_resolve"),
    ("chainlength", "chain_toolong"),
];

/// NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET_STATS_CPU.
const GET_STATS_CPU: u16 = (1 << 8) | 4;
/// `struct nfgenmsg`, every family.
pub(super) const ANY_FAMILY: [u8; 4] = [0; 4];
const LIMIT: Duration = Duration::from_secs(1);

/// Asks the kernel: each processor's counters, always in the same order.
pub(super) fn ask(netlink: &mut Netlink) -> Result<Vec<Statistics>, NetlinkError> {
    let mut each = Vec::new();
    let told = netlink.dump(GET_STATS_CPU, &ANY_FAMILY, LIMIT, |_, payload| {
        let mut counters = Statistics::new();
        add(&mut counters, payload)?;
        each.push(counters);
        Ok(ControlFlow::Continue(()))
    })?;
    if told.messages == 0 {
        return Err(NetlinkError::Malformed("no processor's statistics in it".to_owned()));
    }
    Ok(each)
}

/// One processor's message.
fn add(sum: &mut Statistics, payload: &[u8]) -> Result<(), Cut> {
    for attribute in Attributes::behind(ANY_FAMILY.len(), payload)? {
        let attribute = attribute?;
        if let Some((_, name)) = FIELDS.iter().find(|(kind, _)| *kind == attribute.kind) {
            let count = sum.entry(name).or_default();
            *count = count.saturating_add(u64::from(attribute.u32_be()?));
        }
    }
    Ok(())
}

/// The file: entries of the table (each line has them), and each processor's counters.
pub(super) fn parse(text: &str) -> Result<(u64, Vec<Statistics>), String> {
    // A last line without its end may be cut.
    let mut lines = text.split_inclusive('\n').map(|line| line.strip_suffix('\n'));
    let names: Vec<&str> =
        lines.next().flatten().ok_or("expected a line of names")?.split_whitespace().collect();
    let entries_at = names.iter().position(|name| *name == "entries").ok_or("no column `entries`")?;
    let (mut entries, mut each) = (None, Vec::new());
    for line in lines {
        let line = line.ok_or("the last line is cut")?;
        let values = line
            .split_whitespace()
            .map(|word| u64::from_str_radix(word, 16).map_err(|error| format!("{word:?}: {error}")))
            .collect::<Result<Vec<u64>, String>>()?;
        if values.len() != names.len() {
            return Err(format!("{} values under {} names", values.len(), names.len()));
        }
        entries = values.get(entries_at).copied();
        let mut counters = Statistics::new();
        for (name, value) in names.iter().zip(values) {
            if let Some((_, ours)) = COLUMNS.iter().find(|(column, _)| column == name) {
                counters.insert(*ours, value);
            }
        }
        each.push(counters);
    }
    Ok((entries.ok_or("no processor's line")?, each))
}

/// The sum over the processors, which only grows: each processor's counter has 32 bits and wraps, within hours on a busy
/// node, and the plain sum would fall by 4,294,967,296 then.
#[derive(Clone, Debug, Default)]
pub(super) struct Sum {
    before: Vec<Statistics>,
    sum: Statistics,
}

impl Sum {
    /// The sum after this look at all processors.
    pub(super) fn take(&mut self, each: Vec<Statistics>) -> Statistics {
        if self.before.len() == each.len() {
            for (now, before) in each.iter().zip(&self.before) {
                for (name, count) in now {
                    let since = before.get(name).copied().unwrap_or(0);
                    let grown = count.wrapping_sub(since) & u64::from(u32::MAX);
                    let sum = self.sum.entry(name).or_default();
                    *sum = sum.saturating_add(grown);
                }
            }
        } else {
            self.sum = total(&each);
        }
        self.before = each;
        self.sum.clone()
    }
}

/// The plain sum.
pub(super) fn total(each: &[Statistics]) -> Statistics {
    let mut sum = Statistics::new();
    for (name, count) in each.iter().flatten() {
        let place: &mut u64 = sum.entry(name).or_default();
        *place = place.saturating_add(*count);
    }
    sum
}

/// What each grew by a second. A counter that fell began anew: nothing can be said of it.
pub(super) fn per_second(
    now: &Statistics,
    before: &Statistics,
    seconds: f64,
) -> Option<BTreeMap<&'static str, f64>> {
    if seconds <= 0.0 {
        return None;
    }
    let rate = |(name, now): (&&'static str, &u64)| {
        let grown = now.checked_sub(*before.get(name)?)?;
        Some((*name, grown as f64 / seconds))
    };
    Some(now.iter().filter_map(rate).collect())
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    crate::fuzz::done(add(&mut Statistics::new(), bytes));
    crate::fuzz::done(parse(&crate::fuzz::text(bytes)));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // Recorded on Linux 6.18.44 in a network namespace, two processors, one entry put in by `conntrack -I`.
    const FILE: &str = include_str!("../../../fixtures/conntrack/linux-6.18.44-stat.txt");

    #[test]
    fn the_recorded_file() {
        let (entries, each) = parse(FILE).unwrap();
        let sum = total(&each);
        assert_eq!((entries, sum["insert_failed"], sum["chain_toolong"]), (2, 0, 0));
        assert_eq!(sum.len(), COLUMNS.len());
    }

    #[test]
    fn each_processor_counts_and_hexadecimal_is_read_as_such() {
        // The recorded header, with counts of a sort that the idle namespace does not have.
        let header = FILE.lines().next().unwrap();
        let line = |drop: &str| {
            let words: Vec<&str> = header
                .split_whitespace()
                .map(|name| match name {
                    "entries" => "0003ffff",
                    "drop" => drop,
                    _ => "00000000",
                })
                .collect();
            words.join(" ")
        };
        let text = format!("{header}\n{}\n{}\n", line("0000000a"), line("00000010"));
        let (entries, each) = parse(&text).unwrap();
        let sum = total(&each);
        assert_eq!((entries, sum["drop"]), (262_143, 26));
        let later = Statistics::from([("drop", 30), ("found", 1)]);
        let rates = per_second(&later, &sum, 2.0).unwrap();
        assert_eq!(rates.get("drop"), Some(&2.0));
        assert_eq!(per_second(&sum, &later, 1.0).unwrap().get("drop"), None, "it fell: no rate");
    }

    #[test]
    fn a_processors_counter_that_wraps_does_not_make_the_sum_fall() {
        let each = |one: u64, other: u64| {
            vec![Statistics::from([("found", one)]), Statistics::from([("found", other)])]
        };
        let mut sum = Sum::default();
        let most = u64::from(u32::MAX);
        assert_eq!(sum.take(each(most, 5))["found"], most + 5);
        assert_eq!(sum.take(each(9, 6))["found"], most + 5 + 10 + 1);
        assert_eq!(sum.take(each(9, 6))["found"], most + 16);
    }

    proptest! {
        #[test]
        fn a_cut_file_is_an_error_or_has_fewer_processors(cut in 0..FILE.len()) {
            if let Ok((entries, _)) = parse(&FILE[..cut]) {
                prop_assert_eq!(entries, 2);
            }
        }

        #[test]
        fn any_text_and_any_message(text in ".{0,200}\n?", bytes: Vec<u8>) {
            parse(&text).ok();
            add(&mut Statistics::new(), &bytes).ok();
        }
    }
}
