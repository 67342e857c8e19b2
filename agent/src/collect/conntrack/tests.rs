use std::fs;

use nodewhy_clock::{Clock, Stamp};
use nodewhy_proto::{Outcome, Severity};

use super::*;
use crate::collector::{Collect, Noticed, Pair};
use crate::host::Places;
use crate::host::inside::{inside, said};
use crate::thresholds::Thresholds;

fn host(root: &str) -> Host {
    Host::new(root, Clock::system(), Places::default())
}

fn made(entries: u64, limit: u64) -> Reading {
    Reading {
        entries,
        limit: Some(limit),
        limit_error: None,
        used_percent: Some(entries as f64 * 100.0 / limit as f64),
        buckets: None,
        entries_per_second: None,
        full_in_seconds: None,
        statistics: None,
        statistics_from: None,
        statistics_error: None,
        per_second: None,
        top: None,
        top_error: None,
    }
}

fn noticed(now: &Reading) -> Noticed {
    let at: Stamp = Clock::system().stamp();
    let mut noticed = Noticed::default();
    detect::detect(Pair { before: None, now, at }, &Thresholds::default(), &mut noticed);
    noticed
}

#[test]
fn full_from_95_percent_on_and_drops_only_with_a_table_that_is_nearly_full() {
    assert!(noticed(&made(249_036, 262_144)).states.is_empty(), "94.99 %");
    let full = noticed(&made(249_037, 262_144)).states;
    assert_eq!((full[0].finding, full[0].severity), ("conntrack_table_full", Severity::Critical));
    let lost = BTreeMap::from([("drop", 0.0), ("early_drop", 3.0), ("insert_failed", 0.5)]);
    let mut high = Reading { per_second: Some(lost), statistics_from: Some(STAT), ..made(80, 100) };
    let drops = noticed(&high).states;
    assert_eq!((drops[0].finding, drops[0].hold), ("conntrack_drops", Duration::from_secs(10)));
    assert_eq!(drops[0].evidence[0].text, "drop 0.0/s, early_drop 3.0/s, insert_failed 0.5/s");
    high.used_percent = Some(79.9);
    assert!(noticed(&high).states.is_empty(), "with room, a drop has another reason");
}

#[test]
fn a_node_that_does_not_track_is_absent_and_no_empty_table() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("proc/1/net")).unwrap();
    let look = || COLLECTOR.start().step(&host(root.path().to_str().unwrap()), &Thresholds::default());
    assert!(matches!(look().outcome, Outcome::Failed { .. }), "nothing is known without process 1's network");
    fs::write(root.path().join("proc/1/net/dev"), "").unwrap();
    let step = look();
    let Outcome::Absent { why } = step.outcome else { panic!("{:?}", step.outcome) };
    assert!(why.contains("nf_conntrack is not loaded"), "{why}");
    assert!(matches!(may_ask(&host(root.path().to_str().unwrap())), Err(ReadError::Absent { .. })));
}

#[test]
fn in_another_namespace_the_count_is_process_1s_and_the_limit_is_not_known() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("proc/1/net/stat")).unwrap();
    let text = include_str!("../../../fixtures/conntrack/linux-6.18.44-stat.txt");
    fs::write(root.path().join("proc/1/net/stat/nf_conntrack"), text).unwrap();
    let host = host(root.path().to_str().unwrap());
    let reading = read(&mut open(&host).unwrap(), &host).unwrap();
    assert_eq!((reading.entries, reading.limit, reading.used_percent), (2, None, None));
    assert!(reading.limit_error.unwrap().contains("cannot be told whether"));
    assert_eq!(reading.statistics.unwrap()["insert"], 2);
}

/// Flows of 3 protocols, answered and unanswered, of two sources in v4 and one in v6.
const FLOWS: &str = r#"
for p in $(seq 1 40); do echo "-I -s 10.1.1.1 -d 10.9.9.9 -p tcp --sport $p --dport 80 --state ESTABLISHED -t 600 -u ASSURED,SEEN_REPLY"; done > /run/flows
for p in $(seq 1 25); do echo "-I -s 10.1.1.2 -d 10.9.9.9 -p udp --sport $p --dport 53 -t 600"; done >> /run/flows
for p in $(seq 1 5); do echo "-I -s fd00::1 -d fd00::2 -p tcp --sport $p --dport 80 --state SYN_SENT -t 600"; done >> /run/flows
conntrack -R /run/flows 2>/run/said || while read -r line; do conntrack $line 2>>/run/said; done < /run/flows
"#;

#[test]
fn counts_and_owners_are_those_of_the_conntrack_tool() {
    let test = "collect::conntrack::tests::counts_and_owners_are_those_of_the_conntrack_tool";
    if !inside(test, FLOWS) {
        return;
    }
    let host = host("/");
    assert_eq!(host.network_is_hosts(), NetworkNamespace::Hosts);
    let mut source = open(&host).unwrap();
    let reading = read(&mut source, &host).unwrap();
    assert_eq!(reading.entries.to_string(), said("conntrack -C").trim());
    assert_eq!(reading.entries, 70);
    assert_eq!(
        reading.limit,
        Some(said("cat /proc/sys/net/netfilter/nf_conntrack_max").trim().parse().unwrap())
    );
    assert_eq!(reading.statistics_error, None);
    let inserted: u64 = said("conntrack -S | grep -o ' insert=[0-9]*' | cut -d= -f2")
        .lines()
        .map(|line| line.parse::<u64>().unwrap())
        .sum();
    assert_eq!(reading.statistics.unwrap()["insert"], inserted);
    let (_, of_file) = statistics::parse(&host.read(STAT).unwrap()).unwrap();
    assert_eq!(statistics::total(&of_file)["insert"], inserted);

    let ask = |parameters: &[(&str, &str)]| {
        let parameters =
            parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        (top::ASK.answer)(&host, &parameters)
    };
    let by_address = ask(&[]).unwrap();
    assert_eq!((&by_address["entries"], &by_address["approximate"]), (&70.into(), &false.into()));
    let rows = |value: &serde_json::Value| {
        let row = |row: &serde_json::Value| {
            (row["key"].as_str().unwrap().to_owned(), row["entries"].as_u64().unwrap())
        };
        value["rows"].as_array().unwrap().iter().map(row).collect::<Vec<(String, u64)>>()
    };
    let pair = |key: &str, entries| (key.to_owned(), entries);
    assert_eq!(rows(&by_address), [pair("10.1.1.1", 40), pair("10.1.1.2", 25), pair("fd00::1", 5)]);
    assert_eq!(rows(&ask(&[("by", "protocol")]).unwrap()), [pair("tcp", 45), pair("udp", 25)]);
    assert_eq!(rows(&ask(&[("by", "state")]).unwrap()), [pair("ESTABLISHED", 40), pair("SYN_SENT", 5)]);
    assert_eq!(rows(&ask(&[("limit", "1")]).unwrap()).len(), 1);
    let unreplied = ask(&[("only", "unreplied")]).unwrap();
    assert_eq!(unreplied["entries"].to_string(), said("conntrack -L -f ipv4 -u UNREPLIED 2>/dev/null | wc -l; conntrack -L -f ipv6 -u UNREPLIED 2>/dev/null | wc -l").lines().map(|n| n.trim().parse::<u64>().unwrap()).sum::<u64>().to_string());
    assert_eq!(ask(&[("only", "assured")]).unwrap()["entries"], 40);
    for wrong in [("by", "colour"), ("limit", "0"), ("limit", "x"), ("only", "some")] {
        assert!(matches!(ask(&[wrong]), Err(crate::collector::AskError::Parameter(_))), "{wrong:?}");
    }
}

#[test]
fn a_table_that_is_nearly_full_tells_its_owners_by_itself() {
    let test = "collect::conntrack::tests::a_table_that_is_nearly_full_tells_its_owners_by_itself";
    if !inside(test, FLOWS) {
        return;
    }
    let host = host("/");
    let mut source = open(&host).unwrap();
    let now = host.clock().since_boot();
    assert_eq!(source.top(&host, now), (None, None), "the tick does not wait");
    let mut told = None;
    for _ in 0..500 {
        told = source.top(&host, now).0;
        if told.is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let top = told.unwrap();
    assert_eq!((top.entries, top.assured, top.unreplied), (70, 40, 30));
    assert_eq!((top.sources[0].key.as_str(), top.sources[0].entries), ("10.1.1.1", 40));
    assert!(top.evidence().unwrap().text.starts_with("10.1.1.1 began 40 of 70 entries"));
}
