//! The reading for people, as metrics, and as the page with every chain. Pure.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::proxy::Health;
use super::{KubeChains, Lock, Reading};
use crate::metrics::{Family, Sink};

static LEGACY_ENTRIES: Family = Family::gauge(
    "nodewhy_iptables_entries",
    "The kernel's entries of a legacy table: rules, two a user's chain, one a built-in chain, one. No count of rules.",
)
.by(&["family", "table"]);
static LEGACY_BYTES: Family =
    Family::gauge("nodewhy_iptables_size_bytes", "Size of a legacy table.").by(&["family", "table"]);
static LEGACY_RULES: Family =
    Family::gauge("nodewhy_iptables_rules", "Rules of a legacy table, when they were last counted.")
        .by(&["family", "table"]);
static NFT_GENERATION: Family =
    Family::gauge("nodewhy_nftables_generation", "The generation of the ruleset: every change raises it.");
static NFT_TABLES: Family = Family::gauge("nodewhy_nftables_tables", "Tables of nftables.").by(&["family"]);
static NFT_CHAINS: Family = Family::gauge("nodewhy_nftables_chains", "Chains of nftables.").by(&["family"]);
static NFT_RULES: Family =
    Family::gauge("nodewhy_nftables_rules", "Rules of nftables, when they were last counted.")
        .by(&["family"]);
static NFT_ELEMENTS: Family = Family::gauge(
    "nodewhy_nftables_set_elements",
    "Elements of the sets and maps of nftables that have names, when they were last counted.",
)
.by(&["family"]);
static KUBE_SERVICES: Family =
    Family::gauge("nodewhy_kube_services_rules", "Rules of the chain KUBE-SERVICES in table nat, family ip.");
static IPVS_SERVICES: Family = Family::gauge("nodewhy_ipvs_services", "Virtual services of IPVS.");
static IPVS_DESTINATIONS: Family =
    Family::gauge("nodewhy_ipvs_destinations", "Destinations of all services of IPVS.");
static LOCK_HELD: Family = Family::gauge(
    "nodewhy_xtables_lock_held_seconds",
    "For how long one process has been seen with the xtables lock; 0 while nobody has it.",
);
static LOCK_WAITERS: Family =
    Family::gauge("nodewhy_xtables_lock_waiters", "Processes that wait for the xtables lock.");
static PROXY_UP: Family =
    Family::gauge("nodewhy_kube_proxy_healthy", "Whether kube-proxy's health check answers 200.");
static PROXY_SYNC: Family = Family::gauge(
    "nodewhy_kube_proxy_last_sync_timestamp_seconds",
    "When kube-proxy last wrote the rules, by its own words; of two families the older.",
);
static PROXY_SYNC_P99: Family = Family::gauge(
    "nodewhy_kube_proxy_sync_p99_seconds",
    "What 99 of 100 of kube-proxy's synchronizations took at most, since it began.",
);
static PROXY_FAILURES: Family = Family::counter(
    "nodewhy_kube_proxy_restore_failures_total",
    "How often iptables-restore failed for kube-proxy, by its own words.",
);
static PROXY_RULES: Family = Family::gauge(
    "nodewhy_kube_proxy_rules",
    "Rules that kube-proxy means to have in a table. It counts them before the kernel has them.",
)
.by(&["table"]);
static CILIUM_DROPS: Family = Family::counter(
    "nodewhy_cilium_drops_total",
    "Packets that Cilium dropped, by reason, by its agent's words.",
)
.by(&["reason"]);
static CILIUM_PRESSURE: Family =
    Family::gauge("nodewhy_cilium_bpf_map_pressure_max_ratio", "How full Cilium's fullest BPF map is.");

/// All of them.
pub(super) static FAMILIES: &[&Family] = &[
    &LEGACY_ENTRIES,
    &LEGACY_BYTES,
    &LEGACY_RULES,
    &NFT_GENERATION,
    &NFT_TABLES,
    &NFT_CHAINS,
    &NFT_RULES,
    &NFT_ELEMENTS,
    &KUBE_SERVICES,
    &IPVS_SERVICES,
    &IPVS_DESTINATIONS,
    &LOCK_HELD,
    &LOCK_WAITERS,
    &PROXY_UP,
    &PROXY_SYNC,
    &PROXY_SYNC_P99,
    &PROXY_FAILURES,
    &PROXY_RULES,
    &CILIUM_DROPS,
    &CILIUM_PRESSURE,
];

/// The page shows so many chains of a table, the largest first.
const MOST_CHAINS: usize = 500;

pub(super) fn metrics(reading: &Reading, sink: &mut Sink) {
    for table in &reading.legacy {
        let labels = [table.family.name(), table.table.as_str()];
        sink.put(&LEGACY_ENTRIES, &labels, f64::from(table.entries));
        sink.put(&LEGACY_BYTES, &labels, f64::from(table.size_bytes));
        sink.put_some(&LEGACY_RULES, &labels, table.rules.map(|rules| rules as f64));
    }
    if let Some(nft) = &reading.nft {
        sink.put(&NFT_GENERATION, &[], f64::from(nft.generation));
        for (family, sum) in by_family(nft) {
            sink.put(&NFT_TABLES, &[&family], sum.tables as f64);
            sink.put(&NFT_CHAINS, &[&family], sum.chains as f64);
            sink.put_some(&NFT_RULES, &[&family], sum.rules.map(|rules| rules as f64));
            sink.put_some(&NFT_ELEMENTS, &[&family], sum.elements.map(|elements| elements as f64));
        }
    }
    sink.put_some(&KUBE_SERVICES, &[], reading.kube_chains.services_rules.map(|rules| rules as f64));
    if let Some(ipvs) = &reading.ipvs {
        sink.put(&IPVS_SERVICES, &[], ipvs.services as f64);
        sink.put(&IPVS_DESTINATIONS, &[], ipvs.destinations as f64);
    }
    match &reading.lock {
        Some(Lock::Held { holder, waiters }) => {
            sink.put(&LOCK_HELD, &[], holder.age_seconds);
            sink.put(&LOCK_WAITERS, &[], *waiters as f64);
        }
        Some(Lock::Free | Lock::NeverTaken) => {
            sink.put(&LOCK_HELD, &[], 0.0);
            sink.put(&LOCK_WAITERS, &[], 0.0);
        }
        Some(Lock::Unknown { .. }) | None => {}
    }
    if let Some(said) = reading.kube_proxy.as_ref().and_then(|proxy| proxy.said.as_ref()) {
        sink.put(&PROXY_UP, &[], f64::from(u8::from(said.healthz == Health::Ok)));
        if let Some(told) = &said.told {
            sink.put_some(&PROXY_SYNC, &[], told.last_sync);
            sink.put_some(&PROXY_SYNC_P99, &[], told.sync_seconds_p99);
            sink.put_some(&PROXY_FAILURES, &[], told.restore_failures);
            for (table, rules) in &told.rules {
                sink.put(&PROXY_RULES, &[table], *rules);
            }
        }
    }
    if let Some(cilium) = &reading.cilium {
        for (reason, drops) in &cilium.drops {
            sink.put(&CILIUM_DROPS, &[reason], *drops);
        }
        sink.put_some(&CILIUM_PRESSURE, &[], cilium.map_pressure.values().copied().reduce(f64::max));
    }
}

struct Sum {
    tables: u64,
    chains: usize,
    rules: Option<u64>,
    elements: Option<u64>,
}

fn by_family(nft: &super::Nft) -> BTreeMap<String, Sum> {
    let mut sums: BTreeMap<String, Sum> = BTreeMap::new();
    for table in &nft.tables {
        let sum = sums.entry(table.family.clone()).or_insert(Sum {
            tables: 0,
            chains: 0,
            rules: Some(0),
            elements: Some(0),
        });
        sum.tables += 1;
        sum.chains += table.chains_count;
        sum.rules = sum.rules.zip(table.rules).map(|(sum, rules)| sum + rules);
        sum.elements = sum.elements.zip(table.elements).map(|(sum, elements)| sum + elements);
    }
    sums
}

/// Chains whose names begin with KUBE- and that have rules.
pub(super) fn kube_chains(reading: &Reading) -> KubeChains {
    let is_kube = |name: &str| name.starts_with("KUBE-");
    let mut services = None;
    // Where a part is not counted, what is counted stands: it is at least that.
    let is_empty = reading.legacy.is_empty() && reading.legacy_missing.is_empty();
    let counted = reading.legacy.iter().any(|table| table.chains.is_some());
    let chains = reading.legacy.iter().filter_map(|table| table.chains.as_deref()).flatten();
    let legacy = chains.filter(|(name, rules)| is_kube(name) && **rules > 0).count() as u64;
    let legacy = (is_empty || counted).then_some(legacy);
    for table in reading.legacy.iter().filter(|table| table.table == "nat" && table.family.name() == "ip") {
        services =
            services.max(table.chains.as_ref().and_then(|chains| chains.get("KUBE-SERVICES").copied()));
    }
    let nft = reading.nft.as_ref().and_then(|nft| {
        let chains =
            nft.tables.iter().flat_map(|table| table.chains.iter()).filter(|(name, _)| is_kube(name));
        let is_unknown = chains.clone().any(|(_, rules)| rules.is_none());
        let count = chains.filter(|(_, rules)| rules.is_some_and(|rules| rules > 0)).count() as u64;
        (count > 0 || !is_unknown).then_some(count)
    });
    let of_nft = reading.nft.iter().flat_map(|nft| &nft.tables);
    for table in of_nft.filter(|table| table.name == "nat" && table.family == "ip") {
        let found = table.chains.iter().find(|(name, _)| name == "KUBE-SERVICES");
        services = services.max(found.and_then(|(_, rules)| *rules));
    }
    KubeChains { legacy, nft, services_rules: services }
}

pub(super) fn summary(reading: &Reading) -> String {
    if reading.services_missing.is_some() {
        return "services are in Cilium's BPF maps, not in netfilter".to_owned();
    }
    let mut parts = Vec::new();
    let entries: u64 = reading.legacy.iter().map(|table| u64::from(table.entries)).sum();
    let rules = reading.legacy.iter().try_fold(0, |sum, table| Some(sum + table.rules?));
    match (reading.legacy.is_empty(), rules) {
        (true, _) => {}
        (false, Some(rules)) => parts.push(format!("legacy {rules} rules")),
        (false, None) => parts.push(format!("legacy fewer than {entries} rules")),
    }
    if let Some(nft) = reading.nft.as_ref().filter(|nft| !nft.tables.is_empty()) {
        let rules = nft.tables.iter().try_fold(0, |sum, table| Some(sum + table.rules?));
        parts.push(rules.map_or_else(
            || format!("nft {} tables", nft.tables.len()),
            |rules| format!("nft {rules} rules"),
        ));
    }
    if let Some(ipvs) = &reading.ipvs {
        parts.push(format!("IPVS {} services", ipvs.services));
    }
    if let Some(Lock::Held { holder, .. }) = &reading.lock {
        let name = holder.name.as_deref().unwrap_or("process");
        parts.push(format!("xtables lock held by {name}[{}]", holder.pid));
    }
    // What could not be read may hold rules.
    let unread: Vec<&str> = [
        ("legacy tables", !reading.legacy_missing.is_empty()),
        ("nft", reading.nft_missing.is_some()),
        ("IPVS", reading.ipvs_missing.is_some()),
    ]
    .iter()
    .filter_map(|(what, is_unread)| is_unread.then_some(*what))
    .collect();
    if !unread.is_empty() {
        parts.push(format!("{} not read", unread.join(" and ")));
    }
    if parts.is_empty() { "no rules".to_owned() } else { parts.join(", ") }
}

pub(super) fn page(reading: &Reading) -> Result<Value, serde_json::Error> {
    let mut whole = serde_json::to_value(reading)?;
    let legacy: Vec<Value> = reading
        .legacy
        .iter()
        .map(|table| {
            let chains = table
                .chains
                .as_deref()
                .into_iter()
                .flatten()
                .map(|(name, rules)| (name.as_str(), Some(*rules)));
            let mut value = json!({"family": table.family, "table": table.table});
            with_chains(&mut value, chains.collect());
            value
        })
        .collect();
    let nft: Vec<Value> = reading
        .nft
        .iter()
        .flat_map(|nft| &nft.tables)
        .map(|table| {
            let chains = table.chains.iter().map(|(name, rules)| (name.as_str(), *rules));
            let mut value =
                json!({"family": table.family, "table": table.name, "sets": table.sets.as_slice()});
            with_chains(&mut value, chains.collect());
            value
        })
        .collect();
    if let Value::Object(fields) = &mut whole {
        fields.insert("legacy_chains".to_owned(), legacy.into());
        fields.insert("nft_chains".to_owned(), nft.into());
    }
    Ok(whole)
}

fn with_chains(value: &mut Value, mut chains: Vec<(&str, Option<u64>)>) {
    chains.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    let all = chains.len();
    let shown: Vec<Value> = chains
        .into_iter()
        .take(MOST_CHAINS)
        .map(|(name, rules)| json!({"chain": name, "rules": rules}))
        .collect();
    if let Value::Object(fields) = value {
        fields.insert("not_shown".to_owned(), all.saturating_sub(shown.len()).into());
        fields.insert("chains".to_owned(), shown.into());
    }
}
