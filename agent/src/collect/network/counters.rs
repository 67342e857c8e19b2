//! Tables of counters: `/proc/net/{dev,snmp,netstat,snmp6,softnet_stat,sockstat}`, `/proc/net/stat/*_cache`, and
//! `/proc/softirqs`. Text in, numbers out; what is not there is `None`.

use std::collections::BTreeMap;

/// `/proc/net/snmp` and `netstat`: a line of names, then a line of values, both under the same prefix.
pub(super) fn pairs<'a>(text: &'a str, prefix: &str) -> Option<BTreeMap<&'a str, i64>> {
    let mut lines = whole_lines(text);
    while let Some(names) = lines.next() {
        let Some(names) = names.strip_prefix(prefix).and_then(|rest| rest.strip_prefix(": ")) else {
            continue;
        };
        let values = lines.next()?.strip_prefix(prefix)?.strip_prefix(": ")?;
        let (names, values): (Vec<&str>, Vec<&str>) =
            (names.split_whitespace().collect(), values.split_whitespace().collect());
        if names.len() != values.len() {
            return None;
        }
        return names
            .into_iter()
            .zip(values)
            .map(|(name, value)| Some((name, value.parse().ok()?)))
            .collect();
    }
    None
}

/// One counter of [`pairs`]; a negative one is no counter.
pub(super) fn counter(pairs: Option<&BTreeMap<&str, i64>>, name: &str) -> Option<u64> {
    pairs?.get(name).and_then(|value| u64::try_from(*value).ok())
}

/// A line of `/proc/net/snmp6`: `Udp6RcvbufErrors  0`.
pub(super) fn snmp6(text: &str, name: &str) -> Option<u64> {
    whole_lines(text).find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(name)).then(|| words.next()?.parse().ok()).flatten()
    })
}

/// A field of `/proc/net/sockstat`: `TCP: inuse 1 orphan 0 tw 0 alloc 1 mem 152`.
pub(super) fn sockstat(text: &str, prefix: &str, name: &str) -> Option<u64> {
    let line = whole_lines(text)
        .find_map(|line| line.strip_prefix(prefix).and_then(|rest| rest.strip_prefix(": ")))?;
    let mut words = line.split_whitespace();
    while let Some(word) = words.next() {
        let value = words.next()?;
        if word == name {
            return value.parse().ok();
        }
    }
    None
}

/// One processor's line of `/proc/net/softnet_stat`, all hexadecimal. Each number has 32 bits and wraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Softnet {
    /// The processor; its line's number where the kernel does not say it (before Linux 5.10).
    pub(super) cpu: u32,
    /// Packets taken.
    pub(super) processed: u32,
    /// Packets dropped, since the queue (`netdev_max_backlog`) was full.
    pub(super) dropped: u32,
    /// Times that the softirq had to stop with work left.
    pub(super) time_squeeze: u32,
}

/// `None`: a line makes no sense.
pub(super) fn softnet(text: &str) -> Option<Vec<Softnet>> {
    let lines: Option<Vec<Softnet>> = whole_lines(text)
        .enumerate()
        .map(|(number, line)| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let hex = |at: usize| u32::from_str_radix(words.get(at).filter(|word| word.len() == 8)?, 16).ok();
            // Columns were added at the end: 13 since Linux 5.10 (cpu), 15 since 6.2.
            let cpu = if words.len() >= 13 { hex(12)? } else { u32::try_from(number).ok()? };
            (words.len() >= 3).then_some(())?;
            Some(Softnet { cpu, processed: hex(0)?, dropped: hex(1)?, time_squeeze: hex(2)? })
        })
        .collect();
    lines.filter(|lines| !lines.is_empty())
}

/// One line of `/proc/net/dev`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Traffic {
    /// Bytes that came.
    pub receive_bytes: u64,
    /// Packets that came.
    pub receive_packets: u64,
    /// Errors of receiving.
    pub receive_errors: u64,
    /// Packets that came and were dropped: also those of a protocol that nobody wants.
    pub receive_dropped: u64,
    /// Bytes that went.
    pub transmit_bytes: u64,
    /// Packets that went.
    pub transmit_packets: u64,
    /// Errors of sending.
    pub transmit_errors: u64,
    /// Packets that could not be sent and were dropped.
    pub transmit_dropped: u64,
}

/// The interfaces of `/proc/net/dev`, by name. `None`: a line makes no sense.
pub(super) fn dev(text: &str) -> Option<Vec<(&str, Traffic)>> {
    let mut lines = whole_lines(text);
    let heads = lines.next()?.contains("Receive") && lines.next()?.contains("bytes");
    if !heads {
        return None;
    }
    lines
        .map(|line| {
            // A name may hold a colon (an alias); the counters never do.
            let (name, rest) = line.rsplit_once(':')?;
            let numbers: Option<Vec<u64>> = rest.split_whitespace().map(|word| word.parse().ok()).collect();
            let numbers = numbers?;
            let at = |at: usize| numbers.get(at).copied();
            (numbers.len() >= 16).then_some(())?;
            let traffic = Traffic {
                receive_bytes: at(0)?,
                receive_packets: at(1)?,
                receive_errors: at(2)?,
                receive_dropped: at(3)?,
                transmit_bytes: at(8)?,
                transmit_packets: at(9)?,
                transmit_errors: at(10)?,
                transmit_dropped: at(11)?,
            };
            Some((name.trim(), traffic))
        })
        .collect()
}

/// `/proc/net/stat/arp_cache`: of the whole table, in all namespaces. One line a processor; hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NeighbourTable {
    /// The same in each line.
    pub(super) entries: u64,
    /// Refused since the table was full.
    pub(super) table_fulls: Option<u64>,
    /// Times that entries had to be thrown out at once.
    pub(super) forced_gc_runs: Option<u64>,
    /// Addresses that nobody answered for.
    pub(super) resolution_failures: Option<u64>,
}

/// `None`: it makes no sense.
pub(super) fn neighbour_table(text: &str) -> Option<NeighbourTable> {
    let mut lines = whole_lines(text);
    let names: Vec<&str> = lines.next()?.split_whitespace().collect();
    let rows: Option<Vec<Vec<u64>>> = lines
        .map(|line| {
            let row: Option<Vec<u64>> =
                line.split_whitespace().map(|word| u64::from_str_radix(word, 16).ok()).collect();
            row.filter(|row| row.len() == names.len())
        })
        .collect();
    let rows = rows?;
    let sum = |name: &str| {
        let at = names.iter().position(|known| *known == name)?;
        rows.iter().map(|row| row.get(at).copied()).sum::<Option<u64>>()
    };
    let entries = *rows.first()?.get(names.iter().position(|name| *name == "entries")?)?;
    Some(NeighbourTable {
        entries,
        table_fulls: sum("table_fulls"),
        forced_gc_runs: sum("forced_gc_runs"),
        resolution_failures: sum("res_failed"),
    })
}

/// One line of `/proc/softirqs`, summed over the processors.
pub(super) fn softirqs(text: &str, name: &str) -> Option<u64> {
    let cpus = whole_lines(text).next()?.split_whitespace().count();
    let line = whole_lines(text).find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(':'))?;
    let counts: Option<Vec<u64>> = line.split_whitespace().map(|word| word.parse().ok()).collect();
    counts.filter(|counts| counts.len() == cpus && cpus > 0).map(|counts| counts.iter().sum())
}

/// `cpu  user nice system idle iowait irq softirq steal …` of `/proc/stat`: ticks of softirq, of all processors.
pub(super) fn softirq_ticks(text: &str) -> Option<u64> {
    let words: Vec<&str> = whole_lines(text).next()?.strip_prefix("cpu ")?.split_whitespace().collect();
    words.get(6)?.parse().ok()
}

/// `utime` and `stime` of `/proc/PID/stat`, in ticks.
pub(super) fn process_ticks(text: &str) -> Option<u64> {
    let (_, rest) = text.strip_suffix('\n')?.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(14 - 3);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    user.checked_add(system)
}

/// Lines that have their end: a last one without it may be cut.
fn whole_lines(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // Recorded on Linux 6.18.44.
    const DEV: &str = include_str!("../../../fixtures/network/linux-6.18.44-dev.txt");
    const SOFTNET: &str = include_str!("../../../fixtures/network/linux-6.18.44-softnet_stat.txt");
    const SNMP: &str = include_str!("../../../fixtures/network/linux-6.18.44-snmp.txt");
    const NETSTAT: &str = include_str!("../../../fixtures/network/linux-6.18.44-netstat.txt");
    const SNMP6: &str = include_str!("../../../fixtures/network/linux-6.18.44-snmp6.txt");
    const SOCKSTAT: &str = include_str!("../../../fixtures/network/linux-6.18.44-sockstat.txt");
    const ARP: &str = include_str!("../../../fixtures/network/linux-6.18.44-arp_cache.txt");
    const NDISC: &str = include_str!("../../../fixtures/network/linux-6.18.44-ndisc_cache.txt");
    const SOFTIRQS: &str = include_str!("../../../fixtures/network/linux-6.18.44-softirqs.txt");

    #[test]
    fn the_recorded_tables() {
        let interfaces = dev(DEV).unwrap();
        let names: Vec<&str> = interfaces.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["lo", "ifb0", "ifb1", "eth0"]);
        assert!(interfaces[3].1.receive_bytes > 2_000_000_000);
        let softnet = softnet(SOFTNET).unwrap();
        assert_eq!(softnet.iter().map(|line| line.cpu).collect::<Vec<_>>(), [0, 1]);
        assert!(softnet[0].processed > 60_000 && softnet[0].dropped == 0);
        let tcp = pairs(SNMP, "Tcp").unwrap();
        assert_eq!((tcp["MaxConn"], counter(Some(&tcp), "RetransSegs")), (-1, Some(0)));
        assert_eq!(counter(Some(&tcp), "MaxConn"), None, "-1 is no count");
        let udp = pairs(SNMP, "Udp").unwrap();
        assert_eq!(counter(Some(&udp), "RcvbufErrors"), Some(0));
        let extended = pairs(NETSTAT, "TcpExt").unwrap();
        assert_eq!(counter(Some(&extended), "ListenOverflows"), Some(0));
        assert!(counter(Some(&extended), "TW").unwrap() > 4000);
        assert_eq!(snmp6(SNMP6, "Udp6RcvbufErrors"), Some(0));
        assert_eq!(sockstat(SOCKSTAT, "TCP", "mem"), Some(152));
        assert_eq!(sockstat(SOCKSTAT, "sockets", "used"), Some(24));
        let table = neighbour_table(ARP).unwrap();
        assert_eq!((table.entries, table.table_fulls), (2, Some(0)));
        assert_eq!(neighbour_table(NDISC).unwrap().resolution_failures, Some(3));
        assert!(softirqs(SOFTIRQS, "NET_RX").unwrap() > 0);
        assert_eq!(softirqs(SOFTIRQS, "NET_RY"), None);
    }

    // proc(5); the figures are made up.
    #[test]
    fn ticks_of_a_thread_and_of_all_softirqs() {
        assert_eq!(
            softirq_ticks("cpu  10132153 290696 3084719 46828483 16683 0 25195 0 175628 0\n"),
            Some(25195)
        );
        let stat = crate::host::process::made::STAT;
        assert_eq!(process_ticks(stat), Some(3));
        assert_eq!(process_ticks(stat.trim_end()), None);
    }

    // Linux 4.18 (net/core/net-procfs.c at v4.18) prints 11 columns and no processor.
    #[test]
    fn older_kernels_have_fewer_columns() {
        let line = SOFTNET.lines().next().unwrap();
        let eleven = line.split(' ').take(11).collect::<Vec<_>>().join(" ");
        let old = softnet(&format!("{eleven}\n{eleven}\n")).unwrap();
        assert_eq!(old.iter().map(|line| line.cpu).collect::<Vec<_>>(), [0, 1]);
    }

    proptest! {
        #[test]
        fn a_cut_table_has_the_recorded_values_or_none(cut in 0..2000usize) {
            let cut = |text: &'static str| &text[..cut.min(text.len())];
            let whole: Vec<_> = dev(DEV).unwrap();
            for line in dev(cut(DEV)).unwrap_or_default() {
                prop_assert!(whole.contains(&line));
            }
            let whole = softnet(SOFTNET).unwrap();
            for line in softnet(cut(SOFTNET)).unwrap_or_default() {
                prop_assert!(whole.contains(&line));
            }
            for (text, prefix) in [(SNMP, "Tcp"), (SNMP, "Udp"), (NETSTAT, "TcpExt")] {
                let part = pairs(cut(text), prefix);
                prop_assert!(part.is_none() || part == pairs(text, prefix));
            }
            let mem = sockstat(cut(SOCKSTAT), "TCP", "mem");
            prop_assert!(mem.is_none() || mem == Some(152));
            let table = neighbour_table(cut(ARP));
            prop_assert!(table.is_none_or(|table| table.entries == 2));
            let irqs = softirqs(cut(SOFTIRQS), "NET_RX");
            prop_assert!(irqs.is_none() || irqs == softirqs(SOFTIRQS, "NET_RX"));
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in "(\\PC{0,40}[ :\n]){0,8}") {
            dev(&text);
            softnet(&text);
            pairs(&text, "Tcp");
            snmp6(&text, "x");
            sockstat(&text, "TCP", "mem");
            neighbour_table(&text);
            softirqs(&text, "NET_RX");
            softirq_ticks(&text);
            process_ticks(&text);
        }

        #[test]
        fn a_flipped_byte_never_panics(at in 0..2000usize, byte: u8) {
            for text in [DEV, SOFTNET, SNMP, NETSTAT, SOCKSTAT, ARP, SOFTIRQS] {
                let mut bytes = text.as_bytes().to_vec();
                let at = at % bytes.len();
                bytes[at] = byte;
                let text = String::from_utf8_lossy(&bytes);
                dev(&text);
                softnet(&text);
                pairs(&text, "Tcp");
                sockstat(&text, "TCP", "mem");
                neighbour_table(&text);
                softirqs(&text, "NET_RX");
            }
        }
    }
}
