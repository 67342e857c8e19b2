//! The rules of packets: legacy iptables, nftables, IPVS; the xtables lock; kube-proxy, or Cilium in its place.
//!
//! A question can make what it asks about: GET_INFO makes its table, netlink loads its module. Each is asked only where
//! it is there already. Of tables that change the size is read at each tick, their rules at most every five minutes.

mod detect;
mod ipvs;
mod legacy;
mod lock;
mod nft;
mod processes;
mod proxy;
mod show;
mod tables;

use std::time::Duration;

use serde::Serialize;

use crate::apart::Apart;
use crate::collector::{Collector, Page, never_woken};
use crate::host::netlink::NetworkNamespace;
use crate::host::process::Process;
use crate::host::xtables::Family;
use crate::host::{Host, ReadError};
pub use ipvs::Ipvs;
pub use lock::{Holder, Lock};
pub use nft::{Set, Table};
pub use processes::Writer;
pub use proxy::{Cilium, Health, Proxy};
pub use tables::{LegacyTable, Nft};

/// The rules, every second.
pub static COLLECTOR: Collector<Source, Reading> = Collector {
    name: "netfilter",
    every: Duration::from_secs(1),
    // The exact count of tables with 50,000 services takes seconds on a slow machine.
    deadline: Duration::from_secs(20),
    remembers: true,
    open,
    read,
    wake: never_woken,
    summary: show::summary,
    families: show::FAMILIES,
    metrics: show::metrics,
    limits: detect::LIMITS,
    detect: detect::detect,
    pages: &[Page {
        path: "/api/v1/netfilter",
        about: "Tables, chains and sets with their sizes, the xtables lock, kube-proxy.",
        json: show::page,
    }],
    asks: &[],
};

/// Processes are looked at, and kube-proxy is asked, this often.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// IPVS is counted by reading its whole list.
const IPVS_EVERY: Duration = Duration::from_secs(60);

/// What is kept between readings.
pub struct Source {
    network: NetworkNamespace,
    blind: Option<String>,
    legacy: tables::Legacy,
    nft: tables::Nftables,
    ipvs: Option<(Result<Option<Ipvs>, String>, Duration)>,
    lock: lock::Watch,
    seen: Option<Result<processes::Seen, String>>,
    looked: Option<Duration>,
    proxy: Option<KnownProxy>,
    asking: Option<Apart<proxy::Asked>>,
    asked: Option<Duration>,
    behind: Option<(f64, Duration)>,
    addresses: proxy::Addresses,
}

/// The newest kube-proxy that was seen.
struct KnownProxy {
    process: Process,
    is_embedded: bool,
    gone: Option<Duration>,
    /// It has answered its health check at least once.
    answered: bool,
}

/// One reading. What cannot be read has a reason beside it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Reading {
    /// Legacy tables of both families; those that are there.
    pub legacy: Vec<LegacyTable>,
    /// Why a family's legacy tables are not known, or that there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub legacy_missing: Vec<String>,
    /// nftables.
    pub nft: Option<Nft>,
    /// Why nftables are not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nft_missing: Option<String>,
    /// IPVS; `None` where it is not loaded.
    pub ipvs: Option<Ipvs>,
    /// Why IPVS is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipvs_missing: Option<String>,
    /// The xtables lock.
    pub lock: Option<Lock>,
    /// Running iptables, ip6tables and nft, the oldest first.
    pub writers: Vec<Writer>,
    /// kube-proxy.
    pub kube_proxy: Option<KubeProxy>,
    /// Why it is not known whether there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes_missing: Option<String>,
    /// Cilium's agent, where it runs without a kube-proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cilium: Option<Cilium>,
    /// Where the services' rules are, if not here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub services_missing: Option<String>,
    /// KUBE-* chains, in legacy and in nft.
    pub kube_chains: KubeChains,
}

/// kube-proxy's process, and what it says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KubeProxy {
    /// Its process.
    pub pid: u32,
    /// `kube-proxy`, or what has it within: `k3s-server`, `kubelite`.
    pub name: String,
    /// Within another program: it may be switched off there.
    pub is_embedded: bool,
    /// Seconds since its process ended, if it has.
    pub gone_seconds: Option<f64>,
    /// It has answered its health check since it was first seen.
    pub has_answered: bool,
    /// What it said last.
    pub said: Option<Proxy>,
    /// How long ago that was.
    pub said_seconds_ago: Option<f64>,
    /// For how long it has been asked for a synchronization that it has not made.
    pub behind_seconds: Option<f64>,
    /// Why it is not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unasked: Option<String>,
}

/// Chains whose names begin with `KUBE-` and that have rules, as far as they were counted; `None`: none was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KubeChains {
    /// With rules, in legacy tables.
    pub legacy: Option<u64>,
    /// With rules, in nftables.
    pub nft: Option<u64>,
    /// Rules of KUBE-SERVICES in table nat, family ip; of the backend that has more.
    pub services_rules: Option<u64>,
}

fn open(host: &Host) -> Result<Source, ReadError> {
    Ok(Source {
        network: host.network_is_hosts(),
        blind: host.blind_to_processes(),
        legacy: tables::Legacy::default(),
        nft: tables::Nftables::default(),
        ipvs: None,
        lock: lock::Watch::default(),
        seen: None,
        looked: None,
        proxy: None,
        asking: None,
        asked: None,
        behind: None,
        addresses: proxy::Addresses::default(),
    })
}

fn read(source: &mut Source, host: &Host) -> Result<Reading, ReadError> {
    let mut reading = Reading::default();
    let now = host.clock().since_boot();
    source.rules(host, &mut reading);
    source.ipvs(host, now, &mut reading);
    source.processes(host, now, &mut reading);
    reading.lock = Some(source.lock.look(host, source.blind.as_deref()));
    let is_dark = reading.legacy_missing.len() == 2
        && reading.nft.is_none()
        && reading.ipvs.is_none()
        && reading.processes_missing.is_some();
    if is_dark {
        return Err(ReadError::Other(reading.legacy_missing.swap_remove(0)));
    }
    reading.kube_chains = show::kube_chains(&reading);
    Ok(reading)
}

impl Source {
    fn rules(&mut self, host: &Host, reading: &mut Reading) {
        if let Err(error) = self.network.needed_for("the rules of netfilter") {
            reading.legacy_missing = vec![error.to_string(), error.to_string()];
            reading.nft_missing = Some(error.to_string());
            return;
        }
        for family in [Family::Ip, Family::Ip6] {
            match self.legacy.read(host, family) {
                Ok(tables) => reading.legacy.extend(tables),
                Err(error) => reading.legacy_missing.push(error.to_string()),
            }
        }
        match self.nft.read(host) {
            Ok(nft) => reading.nft = Some(nft),
            Err(error) => reading.nft_missing = Some(error.to_string()),
        }
    }

    fn ipvs(&mut self, host: &Host, now: Duration, reading: &mut Reading) {
        let due = self.ipvs.as_ref().is_none_or(|(_, at)| now.saturating_sub(*at) >= IPVS_EVERY);
        if due {
            self.ipvs = Some((ipvs::read(host).map_err(|error| error.to_string()), now));
        }
        match self.ipvs.as_ref().map(|(read, _)| read) {
            Some(Ok(ipvs)) => reading.ipvs = *ipvs,
            Some(Err(error)) => reading.ipvs_missing = Some(error.clone()),
            None => {}
        }
    }

    fn processes(&mut self, host: &Host, now: Duration, reading: &mut Reading) {
        if let Some(why) = &self.blind {
            reading.processes_missing = Some(why.clone());
            return;
        }
        if self.looked.is_none_or(|looked| now.saturating_sub(looked) >= LOOK_EVERY) {
            self.looked = Some(now);
            self.seen = Some(processes::look(host).map_err(|error| error.to_string()));
        }
        let seen = match &self.seen {
            Some(Ok(seen)) => seen.clone(),
            Some(Err(error)) => {
                reading.processes_missing = Some(error.clone());
                return;
            }
            None => return,
        };
        let living = |process: &&Process| processes::lives(host, process);
        reading.writers =
            seen.writers.iter().filter(living).map(|process| processes::writer(process, now)).collect();
        let newest = match (&seen.kube_proxy, &seen.embedding) {
            (Some(process), _) => Some((process, false)),
            (None, Some(process)) => Some((process, true)),
            (None, None) => None,
        };
        if let Some((process, is_embedded)) = newest.filter(|(process, _)| processes::lives(host, process)) {
            let is_same = |known: &KnownProxy| {
                (known.process.pid, known.process.start_ticks) == (process.pid, process.start_ticks)
            };
            let same = self.proxy.as_ref().is_some_and(is_same);
            if !same {
                let process = process.clone();
                self.proxy = Some(KnownProxy { process, is_embedded, gone: None, answered: false });
                self.behind = None;
            }
        }
        if let Some(known) = &mut self.proxy {
            let lives = processes::lives(host, &known.process);
            known.gone = if lives { None } else { known.gone.or(Some(now)) };
        }
        let cilium = seen.cilium.filter(|process| self.proxy.is_none() && processes::lives(host, process));
        if cilium.is_some() {
            reading.services_missing = Some(
                "Cilium's BPF maps: Cilium's agent runs and no kube-proxy does, so that services and connections are in \
                 its BPF maps and not in netfilter"
                    .to_owned(),
            );
        }
        self.ask(host, now, cilium.is_some(), reading);
    }

    /// What kube-proxy, or Cilium, said last; asks anew where it is time, on a thread of its own.
    fn ask(&mut self, host: &Host, now: Duration, is_cilium: bool, reading: &mut Reading) {
        let mut unasked = self.network.needed_for("kube-proxy's health").err().map(|error| error.to_string());
        let wanted = is_cilium || self.proxy.as_ref().is_some_and(|known| known.gone.is_none());
        let due = self.asked.is_none_or(|asked| now.saturating_sub(asked) >= LOOK_EVERY);
        if wanted && due && unasked.is_none() {
            self.asked = Some(now);
            if self.asking.is_none() {
                match Apart::start("kube-proxy", host.clock().clone()) {
                    Ok(asking) => self.asking = Some(asking),
                    Err(error) => unasked = Some(format!("no thread to ask it: {error}")),
                }
            }
            if let Some(asking) = &self.asking {
                let (host, addresses) = (host.clone(), self.addresses);
                asking.give(move || match is_cilium {
                    true => proxy::ask_cilium(&host, addresses),
                    false => proxy::ask(&host, addresses),
                });
            }
        }
        let newest = self.asking.as_ref().and_then(Apart::newest);
        let Some(known) = &mut self.proxy else {
            if let Some(proxy::Asked::Cilium(cilium)) = newest.as_ref().map(|(asked, _)| asked.as_ref()) {
                reading.cilium = is_cilium.then(|| cilium.clone());
            }
            return;
        };
        let began = known.process.start_since_boot();
        let said = newest.and_then(|(asked, at)| match asked.as_ref() {
            // What an earlier process said is not this one's.
            proxy::Asked::Proxy(said) if at.boot > began => Some((said.as_ref().clone(), at.boot)),
            _ => None,
        });
        if let Some((said, at)) = &said {
            known.answered |= said.healthz == Health::Ok;
            // Behind with the same last synchronization as when it was first seen so.
            let behind = said.told.as_ref().and_then(|told| told.behind_sync_of);
            self.behind = behind.map(|sync| match self.behind {
                Some((known, since)) if known.total_cmp(&sync).is_eq() => (known, since),
                _ => (sync, *at),
            });
        }
        let since = |at: Duration| now.saturating_sub(at).as_secs_f64();
        reading.kube_proxy = Some(KubeProxy {
            pid: known.process.pid,
            name: known.process.name.clone(),
            is_embedded: known.is_embedded,
            gone_seconds: known.gone.map(since),
            has_answered: known.answered,
            said_seconds_ago: said.as_ref().map(|(_, at)| since(*at)),
            said: said.map(|(said, _)| said),
            behind_seconds: self.behind.map(|(_, at)| since(at)),
            unasked,
        });
    }
}

/// Every parser of this collector, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    legacy::fuzz(bytes);
    nft::fuzz(bytes);
    lock::fuzz(bytes);
    ipvs::fuzz(bytes);
    proxy::fuzz(bytes);
}

#[cfg(test)]
mod tests;
