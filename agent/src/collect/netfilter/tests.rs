use std::collections::BTreeMap;
use std::fs;

use nodewhy_clock::{Clock, Stamp};
use nodewhy_proto::{Outcome, Severity};

use super::*;
use crate::collector::{Collect, Noticed, Pair};
use crate::host::inside::{inside, said};
use crate::host::{Places, process};
use crate::metrics::Sink;
use crate::thresholds::Thresholds;

fn host(root: &str) -> Host {
    Host::new(root, Clock::system(), Places::default())
}

fn noticed(now: &Reading) -> Noticed {
    let at: Stamp = Clock::system().stamp();
    let mut noticed = Noticed::default();
    detect::detect(Pair { before: None, now, at }, &Thresholds::default(), &mut noticed);
    noticed
}

fn findings(now: &Reading) -> Vec<&'static str> {
    noticed(now).states.iter().map(|state| state.finding).collect()
}

fn look(host: &Host) -> Reading {
    read(&mut open(host).unwrap(), host).unwrap()
}

/// kube-proxy's shape in legacy tables of both families, of 300 services, and something in `filter`.
const LEGACY: &str = r#"
services() { for i in $(seq 1 300); do printf ":KUBE-SVC-%04d - [0:0]\n:KUBE-SEP-%04d - [0:0]\n" $i $i; done
  for i in $(seq 1 300); do printf -- "-A KUBE-SERVICES -d $1 -p tcp -m comment --comment \"shop/s$i cluster IP\" -m tcp --dport $i -j KUBE-SVC-%04d\n-A KUBE-SVC-%04d -j KUBE-SEP-%04d\n-A KUBE-SEP-%04d -p tcp -m tcp -j DNAT --to-destination $2\n" $i $i $i $i; done; }
{ printf "*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-EMPTY - [0:0]\n-A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n"; services 10.96.0.1/32 10.1.1.1:80; echo COMMIT
  printf "*filter\n:INPUT DROP [0:0]\n:KUBE-FIREWALL - [0:0]\n-A INPUT -j KUBE-FIREWALL\n-A INPUT -i lo -j ACCEPT\n-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP\nCOMMIT\n"; } | iptables-legacy-restore
{ printf "*nat\n:KUBE-SERVICES - [0:0]\n-A OUTPUT -j KUBE-SERVICES\n"; services fd00::1/128 [fd00::2]:80; echo COMMIT; } | ip6tables-legacy-restore
"#;

/// Rules by family, table and chain, as the tool lists them.
fn saved(tool: &str) -> BTreeMap<(String, String), u64> {
    let mut counts = BTreeMap::new();
    let mut table = String::new();
    for line in said(tool).lines() {
        if let Some(name) = line.strip_prefix('*') {
            name.clone_into(&mut table);
        } else if let Some(chain) = line.strip_prefix(':') {
            counts.insert((table.clone(), chain.split(' ').next().unwrap().to_owned()), 0);
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let chain = rule.split(' ').next().unwrap().to_owned();
            *counts.get_mut(&(table.clone(), chain)).unwrap() += 1;
        }
    }
    counts
}

#[test]
fn legacy_rules_are_counted_as_iptables_save_lists_them() {
    let test = "collect::netfilter::tests::legacy_rules_are_counted_as_iptables_save_lists_them";
    if !inside(test, LEGACY) {
        return;
    }
    let reading = look(&host("/"));
    assert_eq!(reading.legacy_missing, Vec::<String>::new());
    for (family, tool) in [(Family::Ip, "iptables-legacy-save"), (Family::Ip6, "ip6tables-legacy-save")] {
        let mut ours = BTreeMap::new();
        for table in reading.legacy.iter().filter(|table| table.family == family) {
            for (chain, rules) in table.chains.as_deref().unwrap() {
                ours.insert((table.table.clone(), chain.clone()), *rules);
            }
        }
        let theirs = saved(tool);
        assert!(theirs.values().sum::<u64>() >= 901, "{tool}");
        assert_eq!(ours, theirs, "{tool}");
    }
    assert_eq!(reading.kube_chains.services_rules, Some(300));
    assert_eq!(reading.kube_chains.nft, Some(0));
    assert_eq!(findings(&reading), [""; 0]);
    let nat = reading.legacy.iter().find(|table| table.table == "nat").unwrap();
    assert!(nat.rules.unwrap() < u64::from(nat.entries), "the gauge is no count of rules");

    // Over the limit: the gauge, its bound, and a word why.
    let small = Places { netfilter_exact_entries_max: 100, ..Places::default() };
    let bounded = look(&Host::new("/", Clock::system(), small));
    let nat = bounded.legacy.iter().find(|table| table.table == "nat").unwrap();
    assert_eq!(nat.rules, None);
    assert!(nat.uncounted.as_ref().unwrap().contains("netfilter_exact_entries_max (100)"), "{nat:?}");
}

#[test]
fn a_change_is_seen_at_once_and_counted_later() {
    let test = "collect::netfilter::tests::a_change_is_seen_at_once_and_counted_later";
    if !inside(test, LEGACY) {
        return;
    }
    let (clock, mover) = Clock::skippable();
    let host = Host::new("/", clock, Places::default());
    let mut source = open(&host).unwrap();
    let before = read(&mut source, &host).unwrap();
    said("iptables-legacy -t nat -A OUTPUT -j ACCEPT; nft add table inet shop");
    let after = read(&mut source, &host).unwrap();
    let nat = |reading: &Reading| reading.legacy.iter().find(|table| table.table == "nat").unwrap().clone();
    assert_eq!(nat(&after).entries, nat(&before).entries + 1);
    assert_eq!((nat(&after).rules, nat(&after).changed_since), (nat(&before).rules, true));
    let nft = |reading: &Reading| reading.nft.clone().unwrap();
    assert!(nft(&after).changed_since && nft(&after).generation > nft(&before).generation);
    mover.skip(Duration::from_secs(301));
    let later = read(&mut source, &host).unwrap();
    assert_eq!(
        (nat(&later).rules, nat(&later).changed_since),
        (nat(&before).rules.map(|rules| rules + 1), false)
    );
    assert_eq!(nft(&later).tables.len(), nft(&before).tables.len() + 1);
}

/// kube-proxy's shape in mode nftables, and iptables-nft's.
const NFT: &str = r#"
{ echo "table ip kube-proxy { set cluster-ips { type ipv4_addr; }
  chain reject-chain { reject
  }
  map no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; }
  chain services { ip daddr . meta l4proto . th dport vmap @no-endpoint-services
  }
  chain nat-output { type nat hook output priority -100; jump services; }
}
table inet shop { chain a { counter
 counter
 }
 chain b { jump a
 jump a
 }
}"
for i in $(seq 1 200); do echo "add element ip kube-proxy cluster-ips { 10.96.0.$i }"; echo "add element ip kube-proxy no-endpoint-services { 10.96.0.$i . tcp . 80 : goto reject-chain }"; done; } | nft -f -
iptables-nft -t nat -N KUBE-SERVICES; for i in 1 2 3; do iptables-nft -t nat -A KUBE-SERVICES -p tcp --dport $i -j RETURN; done; iptables-nft -t nat -A OUTPUT -j KUBE-SERVICES
ip6tables-nft -A INPUT -j ACCEPT
"#;

/// Rules by family, table and chain, elements by set, as `nft` lists them.
fn listed() -> (BTreeMap<String, u64>, BTreeMap<String, u64>) {
    let document: serde_json::Value = serde_json::from_str(&said("nft -j list ruleset")).unwrap();
    let (mut rules, mut elements) = (BTreeMap::new(), BTreeMap::new());
    let path = |value: &serde_json::Value, name: &str| {
        let word = |key: &str| value[key].as_str().unwrap().to_owned();
        format!("{} {} {}", word("family"), word("table"), word(name))
    };
    for item in document["nftables"].as_array().unwrap() {
        if let Some(chain) = item.get("chain") {
            rules.insert(path(chain, "name"), 0);
        } else if let Some(rule) = item.get("rule") {
            *rules.get_mut(&path(rule, "chain")).unwrap() += 1;
        } else if let Some(set) = item.get("set").or_else(|| item.get("map")) {
            elements.insert(path(set, "name"), set["elem"].as_array().map_or(0, |all| all.len() as u64));
        }
    }
    (rules, elements)
}

#[test]
fn nft_rules_and_elements_are_counted_as_nft_lists_them() {
    let test = "collect::netfilter::tests::nft_rules_and_elements_are_counted_as_nft_lists_them";
    if !inside(test, NFT) {
        return;
    }
    let reading = look(&host("/"));
    assert_eq!(reading.nft_missing, None);
    let nft = reading.nft.as_ref().unwrap();
    let (mut rules, mut elements) = (BTreeMap::new(), BTreeMap::new());
    for table in &nft.tables {
        for (chain, count) in table.chains.iter() {
            rules.insert(format!("{} {} {chain}", table.family, table.name), count.unwrap());
        }
        for set in table.sets.iter() {
            elements.insert(format!("{} {} {}", table.family, table.name, set.name), set.elements.unwrap());
        }
    }
    let (their_rules, their_elements) = listed();
    assert!(their_rules["inet shop a"] == 2 && their_elements["ip kube-proxy cluster-ips"] == 200);
    assert_eq!(rules, their_rules);
    assert_eq!(elements, their_elements);
    assert_eq!((reading.kube_chains.nft, reading.kube_chains.services_rules), (Some(1), Some(3)));

    let small = Places { netfilter_exact_entries_max: 5, ..Places::default() };
    let bounded = look(&Host::new("/", Clock::system(), small)).nft.unwrap();
    assert!(bounded.uncounted.unwrap().contains("netfilter_exact_entries_max (5)"));
    let table = bounded.tables.iter().find(|table| table.name == "kube-proxy").unwrap();
    assert_eq!((table.rules, table.elements), (None, None));
    assert!(table.rules_at_most.unwrap() >= 3);
}

#[test]
fn kubernetes_chains_in_both_backends_are_a_finding() {
    let test = "collect::netfilter::tests::kubernetes_chains_in_both_backends_are_a_finding";
    let script = format!("{LEGACY}{NFT}");
    if !inside(test, &script) {
        return;
    }
    let reading = look(&host("/"));
    assert!(reading.kube_chains.legacy.unwrap() > 600);
    assert_eq!(findings(&reading), ["iptables_backend_mismatch"]);
    let mut sink = Sink::default();
    show::metrics(&reading, &mut sink);
    let text = sink.encode();
    assert!(text.contains("nodewhy_nftables_rules{family=\"inet\"} 4"), "{text}");
    assert!(text.contains("nodewhy_kube_services_rules 300"), "{text}");
    let page = show::page(&reading).unwrap();
    assert_eq!(page["nft_chains"].as_array().unwrap().len(), reading.nft.unwrap().tables.len());
    let state = serde_json::to_string(&look(&host("/"))).unwrap();
    assert!(state.len() < 8 * 1024, "{}", state.len());
}

/// What a question could have made.
const MADE: &str = "cat /proc/net/ip_tables_names /proc/net/ip6_tables_names; nft list tables; ls /sys/module; \
    cat /proc/modules 2>/dev/null || true";

#[test]
fn looking_makes_no_table_and_loads_no_module() {
    let test = "collect::netfilter::tests::looking_makes_no_table_and_loads_no_module";
    if !inside(test, "") {
        return;
    }
    let host = host("/");
    let before = said(MADE);
    // Each collector, as the agent runs it.
    for collector in crate::collect::COLLECTORS {
        if ["netfilter", "conntrack"].contains(&collector.name()) {
            let step = collector.start().step(&host, &Thresholds::default());
            assert_eq!(step.outcome, Outcome::Read, "{}", collector.name());
        }
        for ask in collector.asks().iter().filter(|ask| ask.path.starts_with("/api/v1/conntrack")) {
            (ask.answer)(&host, &BTreeMap::new()).unwrap();
        }
    }
    assert_eq!(said(MADE), before);
    assert_eq!(host.xtables_names(Family::Ip).unwrap(), [""; 0]);
}

#[test]
fn the_lock_its_holder_and_who_waits() {
    let test = "collect::netfilter::tests::the_lock_its_holder_and_who_waits";
    let script = "flock -x /run/xtables.lock sleep 60 & until ! flock -n /run/xtables.lock true; do :; done\n\
        flock -x /run/xtables.lock true & until grep -q -- '->' /proc/locks; do :; done";
    if !inside(test, script) {
        return;
    }
    let (clock, mover) = Clock::skippable();
    let host = Host::new("/", clock, Places::default());
    let mut source = open(&host).unwrap();
    let reading = read(&mut source, &host).unwrap();
    let Some(Lock::Held { holder, waiters }) = &reading.lock else { panic!("{:?}", reading.lock) };
    assert_eq!((holder.name.as_deref(), *waiters), (Some("flock"), 1));
    assert_eq!(findings(&reading), [""; 0]);
    mover.skip(Duration::from_secs(6));
    let reading = read(&mut source, &host).unwrap();
    let found = noticed(&reading).states;
    assert_eq!((found[0].finding, found[0].severity), ("xtables_lock_held", Severity::Warning));
    assert!(found[0].subject.name.starts_with("flock["), "{:?}", found[0].subject);
    said("kill $(pgrep -x sleep) $(pgrep -x flock); until flock -n /run/xtables.lock true; do :; done");
    assert_eq!(read(&mut source, &host).unwrap().lock, Some(Lock::Free));
}

#[test]
fn a_root_without_anything_is_a_failure_with_its_reason() {
    let root = tempfile::tempdir().unwrap();
    let step = COLLECTOR.start().step(&host(root.path().to_str().unwrap()), &Thresholds::default());
    let Outcome::Failed { error } = step.outcome else { panic!("{:?}", step.outcome) };
    assert!(error.contains("cannot be told whether"), "{error}");
}

// /proc/net/ip_vs as net/netfilter/ipvs/ip_vs_ctl.c (ip_vs_info_seq_show) writes it: see the proving ground for real ones.
#[test]
fn ipvs_by_its_lines() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("proc/1/net")).unwrap();
    let host = host(root.path().to_str().unwrap());
    assert_eq!(ipvs::read(&host).unwrap(), None);
    let head = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n";
    let write = |text: &str| fs::write(root.path().join("proc/1/net/ip_vs"), text).unwrap();
    write(head);
    assert_eq!(ipvs::read(&host).unwrap(), Some(Ipvs::default()));
    write(&format!(
        "{head}TCP  0A600001:01BB rr \n  -> 0A000A05:192B      Masq    1      0          0         \n  -> 0A000A06:192B      Masq    1      0          0         \nFWM  00000001 rr\n"
    ));
    assert_eq!(ipvs::read(&host).unwrap(), Some(Ipvs { services: 2, destinations: 2 }));
    write(&head[..60]);
    assert!(ipvs::read(&host).is_err());
}

#[test]
fn a_kube_proxy_that_goes_is_missed_and_one_that_comes_back_is_not() {
    let root = tempfile::tempdir().unwrap();
    let (clock, mover) = Clock::skippable();
    let host = Host::new(root.path(), clock, Places::default());
    for (pid, name) in [(1, "systemd"), (2, "kthreadd"), (500, "kube-proxy"), (600, "iptables-restor")] {
        process::made::process(root.path(), pid, name, 'S');
    }
    let mut source = open(&host).unwrap();
    let reading = read(&mut source, &host).unwrap();
    let proxy = reading.kube_proxy.as_ref().unwrap();
    assert_eq!((proxy.pid, proxy.gone_seconds), (500, None));
    assert!(proxy.unasked.is_some(), "a made-up root has no network of the node's");
    assert_eq!(reading.writers[0].name, "iptables-restor");
    assert_eq!(findings(&reading), [""; 0]);
    fs::remove_dir_all(root.path().join("proc/500")).unwrap();
    mover.skip(Duration::from_secs(1));
    let reading = read(&mut source, &host).unwrap();
    assert_eq!(findings(&reading), ["kube_proxy_down"]);
    process::made::process(root.path(), 700, "kube-proxy", 'S');
    mover.skip(Duration::from_secs(10));
    assert_eq!(findings(&read(&mut source, &host).unwrap()), [""; 0]);
}

#[test]
fn health_503_and_a_sync_that_is_owed() {
    let said = Proxy {
        healthz: Health::Status { code: 503, body: "{}".to_owned() },
        mode: None,
        told: None,
        error: None,
    };
    let proxy = KubeProxy {
        pid: 5,
        name: "kube-proxy".to_owned(),
        is_embedded: false,
        gone_seconds: None,
        has_answered: true,
        said: Some(said.clone()),
        said_seconds_ago: Some(1.0),
        behind_seconds: Some(61.0),
        unasked: None,
    };
    let mut reading = Reading { kube_proxy: Some(proxy.clone()), ..Reading::default() };
    assert_eq!(findings(&reading), ["kube_proxy_unhealthy", "kube_proxy_sync_stale"]);
    assert_eq!(noticed(&reading).states[0].hold, Duration::from_secs(60));
    let refused = Some(Proxy { healthz: Health::Refused, ..said });
    reading.kube_proxy = Some(KubeProxy { said: refused.clone(), behind_seconds: None, ..proxy.clone() });
    assert_eq!(findings(&reading), ["kube_proxy_down"]);
    reading.kube_proxy = Some(KubeProxy {
        said: refused,
        behind_seconds: None,
        is_embedded: true,
        has_answered: false,
        ..proxy
    });
    assert_eq!(findings(&reading), [""; 0], "k3s with its kube-proxy switched off");
}

#[test]
fn many_rules_are_worth_knowing_and_slow_ones_are_a_warning() {
    let table = |rules: Option<u64>, entries| LegacyTable {
        family: Family::Ip,
        table: "nat".to_owned(),
        entries,
        size_bytes: 0,
        rules,
        chains: None,
        chains_count: None,
        counted_seconds_ago: None,
        changed_since: false,
        uncounted: None,
    };
    let with = |rules, entries| Reading { legacy: vec![table(rules, entries)], ..Reading::default() };
    assert_eq!(findings(&with(Some(20_000), 45_000)), [""; 0]);
    let many = noticed(&with(Some(20_001), 45_000)).states;
    assert_eq!((many[0].finding, many[0].severity), ("service_rules_many", Severity::Info));
    let uncounted = noticed(&with(None, 450_021)).states;
    assert!(uncounted[0].summary.contains("rules are fewer"), "{}", uncounted[0].summary);
}
