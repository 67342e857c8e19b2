//! Who owns the entries, as it is told: with pods' names where an address is known to be a pod's.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use nodewhy_proto::Evidence;
use serde::Serialize;
use serde_json::Value;

use super::owners::{self, Only, Owners, protocol_name, state_name};
use super::pods;
use crate::collector::{Ask, AskError};
use crate::host::{Host, ReadError};

/// Reads the table when it is asked for.
pub(super) const ASK: Ask = Ask {
    path: "/api/v1/conntrack/top",
    about: "Who owns the entries of the connection tracking table: by source address, pod, protocol or TCP state.",
    parameters: &[
        ("by", "address (of who began the flow), pod, protocol or state; address by default"),
        ("limit", "how many at most, 1 to 1000; 20 by default"),
        ("only", "all, unreplied or assured: the kernel then tells only those; all by default"),
    ],
    deadline: Duration::from_secs(25),
    answer,
};

const MOST_ROWS: usize = 1000;

/// The few that matter, as they stand in the reading.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Top {
    /// Seconds since the table was dumped for it.
    pub age_seconds: f64,
    /// Entries that were dumped.
    pub entries: u64,
    /// Of them never answered.
    pub unreplied: u64,
    /// Of them never dropped early.
    pub assured: u64,
    /// By how much each count may be too low; 0: exact.
    pub undercounted_by_at_most: u64,
    /// The sources with the most entries.
    pub sources: Vec<Row>,
    /// By protocol.
    pub protocols: Vec<Row>,
}

/// One owner.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The address, `namespace/name` of the pod, the protocol, the state.
    pub key: String,
    /// The pod that has this address, `namespace/name`, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Its entries.
    pub entries: u64,
}

impl Top {
    pub(super) fn new(told: &Told, age: Duration) -> Top {
        let owners = &told.owners;
        Top {
            age_seconds: age.as_secs_f64(),
            entries: owners.entries,
            unreplied: owners.unreplied,
            assured: owners.assured,
            undercounted_by_at_most: owners.sources.missed(),
            sources: told.sources.iter().take(5).cloned().collect(),
            protocols: rows(&owners.protocols, protocol_name).into_iter().take(5).collect(),
        }
    }

    pub(super) fn evidence(&self) -> Option<Evidence> {
        let first = self.sources.first()?;
        let pod = first.pod.as_ref().map(|pod| format!(" (pod {pod})")).unwrap_or_default();
        let at_least = if self.undercounted_by_at_most > 0 { "at least " } else { "" };
        let text = format!(
            "{}{pod} began {at_least}{} of {} entries; {} were never answered",
            first.key, first.entries, self.entries, self.unreplied
        );
        Some(
            Evidence::new(text, "a dump of the table over ctnetlink")
                .with_value(first.entries as f64, "entries"),
        )
    }
}

/// A dump, and whose the addresses are.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) owners: Owners,
    sources: Vec<Row>,
    pods: HashMap<IpAddr, String>,
    pods_error: Option<String>,
}

/// Dumps the table. Slow: for a thread of its own.
pub(super) fn dump(host: &Host, only: Only) -> Result<Told, ReadError> {
    let owners = owners::count(host, only).map_err(|error| error.asking("the entries of conntrack"))?;
    let (pods, pods_error) = match pods::addresses(host) {
        Ok(pods) => (pods, None),
        Err(error) => (HashMap::new(), Some(error.to_string())),
    };
    let row = |(address, entries): (IpAddr, u64)| Row {
        key: address.to_string(),
        pod: pods.get(&address).cloned(),
        entries,
    };
    let sources = owners.sources.sorted().into_iter().take(MOST_ROWS).map(row).collect();
    Ok(Told { owners, sources, pods, pods_error })
}

fn rows(counts: &BTreeMap<u8, u64>, name: fn(u8) -> String) -> Vec<Row> {
    sorted(counts.iter().map(|(number, entries)| (name(*number), *entries)).collect())
}

fn sorted(counts: BTreeMap<String, u64>) -> Vec<Row> {
    let mut rows: Vec<Row> =
        counts.into_iter().map(|(key, entries)| Row { key, pod: None, entries }).collect();
    rows.sort_by(|a, b| b.entries.cmp(&a.entries).then(a.key.cmp(&b.key)));
    rows
}

fn answer(host: &Host, parameters: &BTreeMap<String, String>) -> Result<Value, AskError> {
    let parameter = |name: &str| parameters.get(name).map(String::as_str);
    let only = match parameter("only") {
        None | Some("all") => Only::All,
        Some("unreplied") => Only::Unreplied,
        Some("assured") => Only::Assured,
        Some(other) => return Err(unknown("only", other, "all, unreplied or assured")),
    };
    let limit = match parameter("limit").map(str::parse::<usize>) {
        None => 20,
        Some(Ok(limit)) if (1..=MOST_ROWS).contains(&limit) => limit,
        Some(_) => {
            return Err(unknown("limit", parameter("limit").unwrap_or_default(), "a number from 1 to 1000"));
        }
    };
    let by = parameter("by").unwrap_or("address");
    if !["address", "pod", "protocol", "state"].contains(&by) {
        return Err(unknown("by", by, "address, pod, protocol or state"));
    }
    super::may_ask(host)?;
    let told = dump(host, only)?;
    Ok(told.json(by, limit))
}

fn unknown(name: &str, value: &str, expected: &str) -> AskError {
    AskError::Parameter(format!("{name}={value:?} makes no sense: it is {expected}"))
}

impl Told {
    fn json(&self, by: &str, limit: usize) -> Value {
        let owners = &self.owners;
        let (mut rows, missed) = match by {
            "protocol" => (rows(&owners.protocols, protocol_name), 0),
            "state" => (rows(&owners.tcp_states, state_name), 0),
            "pod" => (self.by_pod(), owners.sources.missed()),
            _ => (self.sources.clone(), owners.sources.missed()),
        };
        let told_apart = rows.len();
        rows.truncate(limit);
        serde_json::json!({
            "by": by,
            "entries": owners.entries,
            "assured": owners.assured,
            "unreplied": owners.unreplied,
            "took_seconds": owners.took.as_secs_f64(),
            "changed_meanwhile": owners.interrupted,
            "approximate": missed > 0,
            "undercounted_by_at_most": missed,
            "told_apart": told_apart,
            "pods_error": self.pods_error,
            "rows": rows,
        })
    }

    /// Addresses that are no known pod's stand together, under a key that no pod can have.
    fn by_pod(&self) -> Vec<Row> {
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for (address, entries) in self.owners.sources.sorted() {
            let key = self.pods.get(&address).cloned().unwrap_or_else(|| "no known pod".to_owned());
            *counts.entry(key).or_default() += entries;
        }
        sorted(counts)
    }
}
