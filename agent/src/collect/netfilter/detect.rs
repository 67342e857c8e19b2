//! What is abnormal about rules, their lock, and kube-proxy.

use std::time::Duration;

use nodewhy_proto::{Evidence, Severity, Subject, SubjectKind};

use super::proxy::Health;
use super::{KubeProxy, Lock, Reading};
use crate::collector::{Abnormal, Noticed, Pair};
use crate::thresholds::{Heuristic, Limit, Thresholds};

static LOCK_HELD: Heuristic = Heuristic {
    name: "xtables_lock_held_seconds",
    about: "how long one process holds the xtables lock; kube-proxy gives up after 5 s",
    value: 5.0,
};
static RULES_MANY: Heuristic = Heuristic {
    name: "service_rules_max",
    about: "rules and map elements of services above which their writing and matching is slow",
    value: 20_000.0,
};
static UNHEALTHY: Heuristic = Heuristic {
    name: "kube_proxy_unhealthy_seconds",
    about: "how long kube-proxy's health check answers 503, or has nobody who answers it",
    value: 60.0,
};
static STALE: Heuristic = Heuristic {
    name: "kube_proxy_sync_stale_seconds",
    about: "how long kube-proxy owes a synchronization of its rules",
    value: 60.0,
};
/// Read as a part of [`crate::host::Places`].
pub(crate) static EXACT_ENTRIES: Heuristic = Heuristic {
    name: "netfilter_exact_entries_max",
    about: "entries of a table above which its rules are not counted one by one",
    value: 100_000.0,
};

/// All of them.
pub(super) static LIMITS: &[&Heuristic] = &[&LOCK_HELD, &RULES_MANY, &UNHEALTHY, &STALE, &EXACT_ENTRIES];

pub(super) fn detect(pair: Pair<'_, Reading>, thresholds: &Thresholds, noticed: &mut Noticed) {
    noticed.states.extend(lock_held(&pair, thresholds.limit(&LOCK_HELD)));
    noticed.states.extend(rules_many(&pair, thresholds.limit(&RULES_MANY)));
    noticed.states.extend(mismatch(&pair));
    if let Some(proxy) = &pair.now.kube_proxy {
        noticed.states.extend(down(&pair, proxy, thresholds.limit(&UNHEALTHY)));
        noticed.states.extend(unhealthy(&pair, proxy, thresholds.limit(&UNHEALTHY)));
        noticed.states.extend(stale(&pair, proxy, thresholds.limit(&STALE)));
    }
}

fn warning(finding: &'static str, subject: Subject, summary: String, evidence: Vec<Evidence>) -> Abnormal {
    Abnormal {
        finding,
        subject,
        severity: Severity::Warning,
        summary,
        evidence,
        since: None,
        hold: Duration::ZERO,
        clear_after: Duration::from_secs(10),
    }
}

fn seconds(limit: Limit) -> Duration {
    Duration::try_from_secs_f64(limit.value).unwrap_or(Duration::MAX)
}

fn process(name: &str, pid: u32) -> Subject {
    Subject::new(SubjectKind::Process, format!("{name}[{pid}]"))
}

fn lock_held(pair: &Pair<'_, Reading>, limit: Limit) -> Option<Abnormal> {
    let Some(Lock::Held { holder, waiters }) = &pair.now.lock else { return None };
    if holder.age_seconds <= limit.value {
        return None;
    }
    let name = holder.name.as_deref().unwrap_or("unknown");
    let text =
        format!("FLOCK of {name}[{}] for {:.0} s, {waiters} wait for it", holder.pid, holder.age_seconds);
    let mut evidence = vec![
        Evidence::new(text, "/proc/locks")
            .with_time(pair.at.wall)
            .with_value(holder.age_seconds, "seconds")
            .with_threshold(limit.value, limit.origin),
    ];
    if let Some(age) = holder.process_age_seconds {
        let text = format!("the process is {age:.0} s old: it has held the lock for no longer");
        evidence.push(Evidence::new(text, format!("/proc/{}/stat", holder.pid)));
    }
    let summary =
        format!("{name}[{}] holds /run/xtables.lock: nobody else can write legacy rules", holder.pid);
    let state = warning("xtables_lock_held", process(name, holder.pid), summary, evidence);
    Some(Abnormal { since: Some(holder.since), clear_after: Duration::from_secs(2), ..state })
}

/// The table with the most rules of services, and how they were counted.
fn rules_many(pair: &Pair<'_, Reading>, limit: Limit) -> Option<Abnormal> {
    let reading = pair.now;
    let told = reading.kube_proxy.as_ref().and_then(|proxy| proxy.said.as_ref()?.told.as_ref());
    let mut counts: Vec<(u64, String, &'static str)> = Vec::new();
    for table in reading.legacy.iter().filter(|table| table.table == "nat") {
        let family = table.family.name();
        match table.rules {
            Some(rules) => {
                counts.push((rules, format!("{rules} rules in legacy {family} nat"), "IPT_SO_GET_ENTRIES"))
            }
            None => {
                let entries = u64::from(table.entries);
                let own = told.and_then(|told| told.rules.get("nat"));
                let own = own.map(|own| format!("; kube-proxy means to have {own}")).unwrap_or_default();
                let text = format!(
                    "{entries} entries in legacy {family} nat (rules are fewer, and were not counted){own}"
                );
                counts.push((entries, text, "IPT_SO_GET_INFO"));
            }
        }
    }
    for table in reading.nft.iter().flat_map(|nft| &nft.tables) {
        // kube-proxy's own in mode nftables; else what iptables-nft calls its nat.
        if table.name != "kube-proxy"
            && (table.name != "nat" || !["ip", "ip6"].contains(&table.family.as_str()))
        {
            continue;
        }
        let elements = table.elements.unwrap_or(0);
        let Some(rules) = table.rules.or(table.rules_at_most) else { continue };
        let at_most = if table.rules.is_some() { "" } else { "at most " };
        let more = if table.elements.is_some() { "" } else { " or more" };
        let text = format!(
            "{at_most}{rules} rules and {elements}{more} elements of maps in nft {} {}",
            table.family, table.name
        );
        counts.push((rules + elements, text, "nf_tables over netlink"));
        if table.elements.is_none() {
            let text =
                format!("more elements in the maps of nft {} {} than are counted", table.family, table.name);
            counts.push((u64::MAX, text, "nf_tables over netlink"));
        }
    }
    let (count, text, source) = counts.into_iter().max()?;
    if count as f64 <= limit.value {
        return None;
    }
    let mut evidence =
        Evidence::new(text.clone(), source).with_time(pair.at.wall).with_threshold(limit.value, limit.origin);
    if count != u64::MAX {
        evidence = evidence.with_value(count as f64, "rules");
    }
    let mut all = vec![evidence];
    let slow = told.and_then(|told| told.sync_seconds_p99).filter(|slow| *slow > 2.0);
    if let Some(p99) = slow {
        let text = format!("99 of 100 synchronizations take {p99:.1} s or less");
        all.push(Evidence::new(text, "kube-proxy's /metrics").with_value(p99, "seconds"));
    }
    let mut state = warning("service_rules_many", Subject::node(), text, all);
    // Many rules alone harm nobody; slow writing does.
    if slow.is_none() {
        state.severity = Severity::Info;
    }
    Some(Abnormal { clear_after: Duration::from_secs(30), ..state })
}

fn mismatch(pair: &Pair<'_, Reading>) -> Option<Abnormal> {
    let chains = &pair.now.kube_chains;
    let (legacy, nft) = (chains.legacy?, chains.nft?);
    if legacy == 0 || nft == 0 {
        return None;
    }
    let of = |count: u64, backend: &str, source: &str| {
        let text = format!("{count} KUBE-* chains with rules in {backend}");
        Evidence::new(text, source).with_time(pair.at.wall).with_value(count as f64, "chains")
    };
    let evidence = vec![
        of(legacy, "legacy iptables", "IPT_SO_GET_ENTRIES"),
        of(nft, "nftables", "nf_tables over netlink"),
    ];
    let summary =
        "Kubernetes' rules are in legacy iptables and in nftables: two programs write to two backends";
    let state = warning("iptables_backend_mismatch", Subject::node(), summary.to_owned(), evidence);
    Some(Abnormal { hold: Duration::from_secs(10), clear_after: Duration::from_secs(30), ..state })
}

fn down(pair: &Pair<'_, Reading>, proxy: &KubeProxy, limit: Limit) -> Option<Abnormal> {
    let subject = Subject::new(SubjectKind::Process, "kube-proxy");
    if let Some(gone) = proxy.gone_seconds {
        let text = format!("{}[{}] ended {gone:.0} s ago, and no other began", proxy.name, proxy.pid);
        let evidence = vec![Evidence::new(text, "/proc").with_time(pair.at.wall).with_value(gone, "seconds")];
        let summary = "kube-proxy is gone: the rules of services stay as they are".to_owned();
        // A new version takes some seconds to come.
        let state = warning("kube_proxy_down", subject, summary, evidence);
        return Some(Abnormal { hold: Duration::from_secs(20), ..state });
    }
    // A program that has it within may have it switched off: then it has never answered.
    let is_refused = proxy.said.as_ref().is_some_and(|said| said.healthz == Health::Refused);
    if !is_refused || proxy.is_embedded && !proxy.has_answered {
        return None;
    }
    let text = format!("connection refused, while {}[{}] runs", proxy.name, proxy.pid);
    let evidence = vec![Evidence::new(text, "http://127.0.0.1:10256/healthz").with_time(pair.at.wall)];
    let summary = "kube-proxy runs, and its health check has nobody who answers".to_owned();
    let state = warning("kube_proxy_down", subject, summary, evidence);
    Some(Abnormal { hold: seconds(limit), clear_after: Duration::from_secs(15), ..state })
}

fn unhealthy(pair: &Pair<'_, Reading>, proxy: &KubeProxy, limit: Limit) -> Option<Abnormal> {
    let Health::Status { code: 503, body } = &proxy.said.as_ref()?.healthz else { return None };
    if proxy.gone_seconds.is_some() {
        return None;
    }
    let evidence = vec![
        Evidence::new(format!("503: {}", body.trim()), "http://127.0.0.1:10256/healthz")
            .with_time(pair.at.wall)
            .with_threshold(limit.value, limit.origin),
    ];
    let summary = "kube-proxy's health check answers 503: its rules are late, or the node is being deleted";
    let subject = Subject::new(SubjectKind::Process, "kube-proxy");
    let state = warning("kube_proxy_unhealthy", subject, summary.to_owned(), evidence);
    Some(Abnormal { hold: seconds(limit), clear_after: Duration::from_secs(15), ..state })
}

fn stale(pair: &Pair<'_, Reading>, proxy: &KubeProxy, limit: Limit) -> Option<Abnormal> {
    let behind = proxy.behind_seconds.filter(|behind| *behind > limit.value)?;
    if proxy.gone_seconds.is_some() {
        return None;
    }
    let text = format!("a synchronization was asked for, and none has ended for {behind:.0} s");
    let evidence = vec![
        Evidence::new(text, "kube-proxy's /metrics")
            .with_time(pair.at.wall)
            .with_value(behind, "seconds")
            .with_threshold(limit.value, limit.origin),
    ];
    let summary = format!("kube-proxy owes a synchronization of its rules for {behind:.0} s");
    let subject = Subject::new(SubjectKind::Process, "kube-proxy");
    let state = warning("kube_proxy_sync_stale", subject, summary, evidence);
    Some(Abnormal { clear_after: Duration::from_secs(30), ..state })
}
