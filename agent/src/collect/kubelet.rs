//! The kubelet: its process (found in /proc, watched by a pidfd), its restarts, its ping on 10248.
//!
//! /proc is searched only while no kubelet is known. A known one costs a look at its `stat` and `status`; its end is
//! known within milliseconds by the pidfd, without one at the next look. A kubelet that lives for less than a second
//! between two looks is not seen: the number of starts is a lower bound.

mod api;
mod detect;
pub(crate) mod find;
mod healthz;
mod metrics;

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nodewhy_clock::Stamp;
use serde::Serialize;

pub use self::api::{Api, Config, Gathered, Interval, Problem};
pub use self::healthz::Healthz;
use crate::collector::Collector;
use crate::host::process::Process;
use crate::host::wake::Wake;
use crate::host::{Host, ReadError};

/// Restarts are counted within this time.
const RESTARTS_WITHIN: Duration = Duration::from_secs(10 * 60);

/// The kubelet, every second and at its end.
pub static COLLECTOR: Collector<Source, Reading> = Collector {
    name: "kubelet",
    every: Duration::from_secs(1),
    deadline: Duration::from_secs(3),
    remembers: true,
    open,
    read,
    wake,
    summary: detect::summary,
    families: detect::FAMILIES,
    metrics: detect::metrics,
    limits: &[&detect::PLEG, &detect::CERTIFICATE],
    detect: detect::detect,
    pages: &[],
    asks: &[],
};

/// Kept between reads.
#[derive(Debug)]
pub struct Source {
    known: Option<Known>,
    wake: Option<Wake>,
    /// Whether a kubelet's process was ever seen.
    seen: bool,
    /// When the newest kubelets began.
    starts: VecDeque<Stamp>,
    starts_total: u64,
    exit: Option<Exit>,
    /// What happened and is not told yet: a read may fail after it saw an end.
    changes: Vec<Change>,
    probe: healthz::Probe,
    answered: Option<Timestamp>,
    api: Option<api::Asking>,
}

#[derive(Debug)]
struct Known {
    kubelet: find::Kubelet,
    started: Stamp,
    pidfd: Option<OwnedFd>,
    note: Option<String>,
}

/// One reading.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reading {
    /// Why there should be a kubelet on this node.
    pub expected_because: String,
    /// Its process; `None`: there is none, or see `process_unseen`.
    pub process: Option<KubeletProcess>,
    /// Why "no process" means nothing here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process_unseen: Option<String>,
    /// The newest end of a kubelet that was seen.
    pub exit: Option<Exit>,
    /// When the kubelets of the last 10 minutes began, as far as they were seen; the running one too.
    pub starts_within_10_min: Vec<Timestamp>,
    /// Kubelet processes that were seen since the agent began to look.
    pub starts_total: u64,
    /// What its ping says.
    pub healthz: Healthz,
    /// When the ping answered last, whatever it said.
    pub healthz_answered: Option<Timestamp>,
    /// What its own API on 10250 says.
    pub api: Api,
    /// What was not possible, and what was found that is not the kubelet.
    pub notes: Vec<String>,
    /// What happened since the reading before.
    #[serde(skip)]
    pub changes: Vec<Change>,
}

/// The running kubelet.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KubeletProcess {
    /// Its id.
    pub pid: u32,
    /// Its name: `kubelet`; `k3s-server`, `kubelite`, … where it runs within another program.
    pub name: String,
    /// `R`, `S`, `D`, `T`, `t`, as the kernel tells it of its first thread.
    pub state: char,
    /// When it began.
    pub started: Timestamp,
    /// For how long it has run.
    pub uptime_seconds: f64,
    /// Resident memory.
    pub rss_bytes: Option<u64>,
    /// Threads.
    pub threads: Option<u32>,
    /// Its cgroup, in the unified hierarchy where there is one. Relative to the agent's own cgroup namespace.
    pub cgroup: Option<String>,
}

/// A kubelet's end.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Exit {
    /// Its id.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// When it ended.
    pub at: Timestamp,
    /// Whether its pidfd told, to the millisecond; else it was gone when looked for, up to a second late.
    pub by_pidfd: bool,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Whether it began; else it ended.
    pub began: bool,
    /// Which process.
    pub process: Process,
    /// When.
    pub at: Stamp,
    /// What is known of it.
    pub detail: String,
}

fn open(host: &Host) -> Result<Source, ReadError> {
    Ok(Source {
        known: None,
        wake: Wake::new(),
        seen: false,
        starts: VecDeque::new(),
        starts_total: 0,
        exit: None,
        changes: Vec::new(),
        probe: healthz::Probe::new(),
        answered: None,
        api: api::Asking::start(host)?,
    })
}

fn wake(source: &Source) -> Option<BorrowedFd<'_>> {
    source.wake.as_ref().map(Wake::fd)
}

fn read(source: &mut Source, host: &Host) -> Result<Reading, ReadError> {
    let mut notes = Vec::new();
    let process = match source.look_again(host)? {
        Some(process) => Some(process),
        None => {
            let found = find::find(host)?;
            notes.extend(found.others);
            found.kubelet.map(|kubelet| source.meet(kubelet, host))
        }
    };
    host.learn_kubelet_process(source.known.as_ref().map(|known| known.kubelet.process.clone()));
    let (expected_because, blind) = source.expected(host, process.as_ref(), &notes)?;
    let healthz = source.ask(host);
    let answers = matches!(healthz, Healthz::Ok { .. } | Healthz::Status { .. });
    if let (Some(why), false) = (&blind, answers) {
        return Err(ReadError::absent(why));
    }
    // A ping that answers belies "no process" until a process was seen: then its end was seen too, and whoever answers
    // may be anybody.
    let unseen = blind.or_else(|| {
        (process.is_none() && !source.seen && answers)
            .then(|| format!("{} answers, and no process has a kubelet's name", host.kubelet_healthz()))
    });
    notes.extend(source.known.as_ref().and_then(|known| known.note.clone()));
    let now = host.clock().stamp();
    source.starts.retain(|start| now.boot.saturating_sub(start.boot) <= RESTARTS_WITHIN);
    Ok(Reading {
        expected_because,
        process,
        process_unseen: unseen,
        exit: source.exit.clone(),
        starts_within_10_min: source.starts.iter().map(|start| start.wall).collect(),
        starts_total: source.starts_total,
        healthz,
        healthz_answered: source.answered,
        api: api::told(source.api.as_ref(), host),
        notes,
        changes: std::mem::take(&mut source.changes),
    })
}

impl Source {
    /// The known kubelet as it is now; `None`: there is none, or it has ended.
    fn look_again(&mut self, host: &Host) -> Result<Option<KubeletProcess>, ReadError> {
        let Some(known) = &mut self.known else { return Ok(None) };
        let ended = match &known.pidfd {
            Some(pidfd) => host.has_ended(pidfd.as_fd())?,
            None => false,
        };
        let pid = known.kubelet.process.pid;
        let now = if ended { None } else { host.process(pid)? };
        let same = now.filter(|now| {
            // A process whose first thread ended shows as a zombie and lives; only a pidfd tells the two apart.
            now.start_ticks == known.kubelet.process.start_ticks
                && find::is_name(&now.name)
                && (now.is_alive() || known.pidfd.is_some())
        });
        let Some(process) = same else {
            let at = host.clock().stamp();
            let detail = if ended {
                "its pidfd told; how it ended, only its parent (systemd) knows"
            } else {
                "it was gone when it was looked for; how it ended, only its parent (systemd) knows"
            };
            let process = known.kubelet.process.clone();
            self.known = None;
            self.exit = Some(Exit { pid, name: process.name.clone(), at: at.wall, by_pidfd: ended });
            self.changes.push(Change { began: false, process, at, detail: detail.to_owned() });
            return Ok(None);
        };
        known.kubelet.process = process;
        if let Some(status) = host.process_status(pid)? {
            known.kubelet.status = status;
        }
        Ok(Some(describe(known, host.clock().stamp())))
    }

    /// A kubelet that was not known before.
    fn meet(&mut self, kubelet: find::Kubelet, host: &Host) -> KubeletProcess {
        let now = host.clock().stamp();
        let began = kubelet.process.start_since_boot();
        let age = now.boot.saturating_sub(began);
        let wall = SignedDuration::try_from(age).ok().and_then(|age| now.wall.checked_sub(age).ok());
        let started = Stamp { wall: wall.unwrap_or(now.wall), boot: began };
        let (pidfd, note) = match host.pidfd(&kubelet.process) {
            Ok(pidfd) => (Some(pidfd), None),
            Err(error) => (None, Some(format!("its end is noticed up to a second late: {error}"))),
        };
        if let (Some(wake), Some(pidfd)) = (&self.wake, &pidfd) {
            wake.add(pidfd);
        }
        // One that has run for long when it is first seen is no news.
        if self.seen || age <= RESTARTS_WITHIN {
            self.changes.push(Change {
                began: true,
                process: kubelet.process.clone(),
                at: started,
                detail: kubelet.cgroups.last().map(|path| format!("cgroup {path}")).unwrap_or_default(),
            });
        }
        self.seen = true;
        self.starts.push_back(started);
        self.starts_total += 1;
        let known = self.known.insert(Known { kubelet, started, pidfd, note });
        describe(known, now)
    }

    /// Why a kubelet is expected, and why /proc cannot be believed where it shows none.
    fn expected(
        &self,
        host: &Host,
        process: Option<&KubeletProcess>,
        others: &[String],
    ) -> Result<(String, Option<String>), ReadError> {
        if process.is_some() {
            return Ok(("its process is running".to_owned(), None));
        }
        if self.seen {
            return Ok(("its process was seen".to_owned(), None));
        }
        let blind = host.blind_to_processes();
        match (find::trace(host), blind) {
            (Some(trace), blind) => Ok((format!("{} is there", trace.display()), blind)),
            (None, Some(blind)) => Ok(("its ping answers".to_owned(), Some(blind))),
            (None, None) => Err(ReadError::absent(find::not_expected(host, others))),
        }
    }

    fn ask(&mut self, host: &Host) -> Healthz {
        let (healthz, fresh) = self.probe.advance(host);
        if let (true, Some(wake), Some(socket)) = (fresh, &self.wake, self.probe.fd()) {
            wake.add(socket);
        }
        if matches!(healthz, Healthz::Ok { .. } | Healthz::Status { .. }) {
            self.answered = Some(host.clock().now());
        }
        healthz
    }
}

fn describe(known: &Known, now: Stamp) -> KubeletProcess {
    let find::Kubelet { process, status, cgroups } = &known.kubelet;
    KubeletProcess {
        pid: process.pid,
        name: process.name.clone(),
        state: process.state,
        started: known.started.wall,
        uptime_seconds: now.boot.saturating_sub(known.started.boot).as_secs_f64(),
        rss_bytes: status.rss_bytes,
        threads: status.threads,
        cgroup: cgroups.last().cloned(),
    }
}

/// Every parser of this collector, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    api::fuzz(bytes);
    find::fuzz(bytes);
}

#[cfg(test)]
mod tests;
