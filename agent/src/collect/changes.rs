//! What changed on this node lately: kernels, packages, programs, configurations, certificates, each beside the start of
//! the process that uses it. Onset against a change decides more cases than any metric.
//!
//! Files are looked at each minute by their inode's own time (ctime): a package keeps the time of its build. What a file
//! says is not read, but for `.crt` files: no key and no kubeconfig is opened.

mod certificate;
mod detect;
mod logs;
mod metrics;
mod parse;
mod places;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nodewhy_clock::Stamp;
use serde::Serialize;

pub use self::certificate::Certificate;
pub use self::places::Owner;
use self::places::{Place, What};
use crate::collector::{Collector, Page, never_woken};
use crate::host::process::Process;
use crate::host::{FileStat, Host, ReadError};

/// What changed, every minute.
pub static COLLECTOR: Collector<Source, Reading> = Collector {
    name: "changes",
    every: Duration::from_secs(60),
    deadline: Duration::from_secs(20),
    remembers: true,
    open,
    read,
    wake: never_woken,
    summary,
    families: metrics::FAMILIES,
    metrics: metrics::metrics,
    limits: detect::LIMITS,
    detect: detect::detect,
    pages: &[Page {
        path: "/api/v1/changes",
        about: "Kernels, packages, programs, configurations and certificates that changed in the last 14 days, newest first, \
                each beside the start of the process that uses it; and when certificates end",
        json: page,
    }],
    asks: &[],
};

/// How far back.
const LATELY: SignedDuration = SignedDuration::from_hours(14 * 24);
/// What the page shows.
const MOST: usize = 500;
/// Events of one reading: an upgrade of a thousand packages is told by the list.
const MOST_NEWS: usize = 100;
/// What `/api/v1/state` shows; of packages no more than half of it, so that one upgrade hides nothing else.
const TOP: usize = 40;
/// A file whose time is so close to its reader's start was there for it: times are kept in ticks.
const SAME: SignedDuration = SignedDuration::from_secs(2);

/// What is kept between reads.
#[derive(Debug)]
pub struct Source {
    seen: Option<BTreeMap<PathBuf, (What, FileStat)>>,
    logs: logs::Logs,
    /// The newest second in which a change of a package was told, and of which.
    told: (Timestamp, BTreeSet<String>),
}

/// One reading.
#[derive(Clone, Debug, Serialize)]
pub struct Reading {
    /// The running kernel's release.
    pub kernel: Option<String>,
    /// Which boot.
    pub boot_id: Option<String>,
    /// Boots with their kernels, newest first, by wtmp.
    pub boots: Vec<Boot>,
    /// How many things changed in the last 14 days.
    pub count: usize,
    /// The newest of them, newest first.
    pub changes: Vec<Changed>,
    /// Programs and configurations that are newer than the process that read them at its start.
    pub needs_restart: Vec<Changed>,
    /// The processes that they are held against.
    pub processes: Vec<User>,
    /// Files that were looked at and are there.
    pub files: usize,
    /// Certificates' files.
    pub certificates: Vec<Certificate>,
    /// Changes since the reading before that were too many for an event each; they are in the list.
    pub news_dropped: usize,
    /// What cannot be known here, and why.
    pub missing: Vec<String>,
    /// All of the 14 days.
    #[serde(skip)]
    pub(crate) all: Vec<Changed>,
    /// What changed since the reading before, with its time.
    #[serde(skip)]
    pub(crate) news: Vec<(Stamp, nodewhy_proto::Change)>,
}

/// A boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Boot {
    /// When.
    pub at: Timestamp,
    /// The kernel's release.
    pub kernel: String,
}

/// Something that changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Changed {
    /// When.
    pub at: Timestamp,
    /// `kernel`, `package`, `binary`, `configuration`, `certificate`.
    pub what: &'static str,
    /// Which: a release, a package, a path.
    pub name: String,
    /// What it was before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// What it is now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Who uses it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// Whether it is newer than the start of that process; none where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_newer_than_user: Option<bool>,
}

/// A process that reads files at its start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct User {
    /// Whose files it reads.
    pub owner: Owner,
    /// Its process.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// When it began.
    pub since: Timestamp,
    /// Its program's file; none where that is refused.
    pub exe: Option<String>,
    /// The program was replaced on the disk since: the process runs what is there no more.
    pub exe_is_replaced: Option<bool>,
}

fn open(host: &Host) -> Result<Source, ReadError> {
    // Without it there is no node to look at.
    host.list("/etc")?;
    let now = host.clock().now();
    Ok(Source { seen: None, logs: logs::Logs::default(), told: (now, BTreeSet::new()) })
}

fn read(source: &mut Source, host: &Host) -> Result<Reading, ReadError> {
    let at = host.clock().stamp();
    let mut missing = Vec::new();
    let kernel = trimmed(host, "/proc/sys/kernel/osrelease", &mut missing);
    let boot_id = trimmed(host, "/proc/sys/kernel/random/boot_id", &mut missing);
    let users: Vec<User> =
        [(Owner::Kubelet, host.kubelet_process()), (Owner::Runtime, host.runtime_process())]
            .into_iter()
            .filter_map(|(owner, process)| user(host, owner, &process?, at, &mut missing))
            .collect();
    let files = look(host, &users, &mut missing);
    let told = source.logs.read(host, &mut missing);

    let oldest = at.wall.checked_sub(LATELY).unwrap_or(at.wall);
    let mut all: Vec<Changed> = Vec::new();
    for (place, stat) in &files {
        let Some(changed) = stat.changed.filter(|changed| *changed >= oldest) else { continue };
        all.push(changed_file(place, stat, changed, &users));
    }
    let packages = told.packages.iter().rev().filter(|package| package.at >= oldest);
    all.extend(packages.take(MOST / 2).map(package));
    let boots: Vec<Boot> =
        told.boots.into_iter().rev().map(|boot| Boot { at: boot.at, kernel: boot.kernel }).take(20).collect();
    all.extend(kernels(&boots, kernel.as_deref(), at).into_iter().filter(|change| change.at >= oldest));
    all.sort_by(|left, right| right.at.cmp(&left.at).then_with(|| left.name.cmp(&right.name)));
    all.truncate(MOST);

    let mut news = source.news(&files, &told.packages, at);
    let news_dropped = news.len().saturating_sub(MOST_NEWS);
    news.truncate(MOST_NEWS);
    let certificates = certificates(host, &files);
    Ok(Reading {
        kernel,
        boot_id,
        boots,
        count: all.len(),
        changes: top(&all),
        needs_restart: needs_restart(&all, &users),
        processes: users,
        files: files.len(),
        certificates,
        missing,
        all,
        news,
        news_dropped,
    })
}

fn trimmed(host: &Host, path: &str, missing: &mut Vec<String>) -> Option<String> {
    match host.read(path) {
        Ok(text) => Some(text.trim().to_owned()).filter(|text| !text.is_empty()),
        Err(error) => {
            missing.push(error.to_string());
            None
        }
    }
}

fn user(host: &Host, owner: Owner, process: &Process, at: Stamp, missing: &mut Vec<String>) -> Option<User> {
    let now = host.process(process.pid).ok().flatten()?;
    if now.start_ticks != process.start_ticks {
        return None;
    }
    let (exe, is_replaced) = match host.process_link(process.pid, "exe") {
        Ok(path) => {
            let path = path.to_string_lossy().into_owned();
            // The kernel's own mark of a file whose name leads to it no more.
            match path.strip_suffix(" (deleted)") {
                Some(path) => (Some(path.to_owned()), Some(true)),
                None => (Some(path), Some(false)),
            }
        }
        Err(error) => {
            missing.push(format!("which program {} runs: {error}", now.name));
            (None, None)
        }
    };
    let ago = SignedDuration::try_from(at.boot.saturating_sub(now.start_since_boot())).ok()?;
    let since = at.wall.checked_sub(ago).ok()?;
    Some(User { owner, pid: process.pid, name: now.name, since, exe, exe_is_replaced: is_replaced })
}

/// Every file that is there. One that may not be looked at costs itself.
fn look(host: &Host, users: &[User], missing: &mut Vec<String>) -> Vec<(Place, FileStat)> {
    let mut places = places::places(host);
    for user in users {
        if let Some(exe) = &user.exe {
            places.push(Place { path: exe.into(), what: What::Binary, owner: user.owner });
        }
    }
    // /bin is /usr/bin by a link, and a program found by its process stands in the list as well.
    let mut seen = std::collections::BTreeSet::new();
    let mut files = Vec::new();
    for place in places {
        match host.stat(&place.path) {
            Ok(stat) if stat.is_file && seen.insert(place.path.clone()) => files.push((place, stat)),
            Ok(_) | Err(ReadError::NotFound { .. }) => {}
            // ENOTDIR: a part of the path is a file.
            Err(ReadError::Io { error, .. }) if error.kind() == std::io::ErrorKind::NotADirectory => {}
            Err(error) => missing.push(error.to_string()),
        }
    }
    files
}

fn changed_file(place: &Place, stat: &FileStat, at: Timestamp, users: &[User]) -> Changed {
    let user = users.iter().find(|user| user.owner == place.owner);
    let is_newer = user.map(|user| at.duration_since(user.since) > SAME);
    Changed {
        at,
        what: place.what.word(),
        name: place.path.display().to_string(),
        from: None,
        to: Some(format!("{} bytes", stat.size_bytes)),
        owner: Some(place.owner),
        is_newer_than_user: is_newer,
    }
}

fn package(package: &parse::Package) -> Changed {
    Changed {
        at: package.at,
        what: "package",
        name: package.name.clone(),
        from: package.from.clone(),
        to: package.to.clone(),
        owner: None,
        is_newer_than_user: None,
    }
}

/// Boots whose kernel is another one than the boot's before. The running boot is known without wtmp.
fn kernels(boots: &[Boot], running: Option<&str>, at: Stamp) -> Vec<Changed> {
    let change = |at, from: Option<&str>, to: &str| Changed {
        at,
        what: "kernel",
        name: to.to_owned(),
        from: from.map(str::to_owned),
        to: Some(to.to_owned()),
        owner: None,
        is_newer_than_user: None,
    };
    let mut changes = Vec::new();
    for pair in boots.windows(2) {
        let [now, before] = pair else { continue };
        if now.kernel != before.kernel {
            changes.push(change(now.at, Some(&before.kernel), &now.kernel));
        }
    }
    // wtmp knows nothing of this boot: it was cut, or nobody writes it.
    let newest = boots.first().map(|boot| boot.kernel.as_str());
    if let Some(running) = running.filter(|running| newest.is_some_and(|newest| newest != *running)) {
        let ago = SignedDuration::try_from(at.boot).unwrap_or_default();
        let booted = at.wall.checked_sub(ago).unwrap_or(at.wall);
        changes.push(change(booted, newest, running));
    }
    changes
}

fn top(all: &[Changed]) -> Vec<Changed> {
    let mut packages = 0;
    let shown = all.iter().filter(|change| {
        packages += usize::from(change.what == "package");
        change.what != "package" || packages <= TOP / 2
    });
    shown.take(TOP).cloned().collect()
}

/// Certificates are read anew by those that use them; a program and its configuration are not. A program is judged by the
/// kernel's own mark where that may be read.
fn needs_restart(all: &[Changed], users: &[User]) -> Vec<Changed> {
    let judged = |change: &&Changed| match change.what {
        "configuration" => change.is_newer_than_user == Some(true),
        "binary" => {
            let user = users.iter().find(|user| Some(user.owner) == change.owner);
            let runs_it = user.is_some_and(|user| user.exe.as_deref().is_none_or(|exe| exe == change.name));
            let is_replaced = user.and_then(|user| user.exe_is_replaced).or(change.is_newer_than_user);
            runs_it && is_replaced == Some(true)
        }
        _ => false,
    };
    all.iter().filter(judged).take(TOP / 2).cloned().collect()
}

impl Source {
    /// What was not so at the reading before. The first one is no change.
    fn news(
        &mut self,
        files: &[(Place, FileStat)],
        packages: &[parse::Package],
        at: Stamp,
    ) -> Vec<(Stamp, nodewhy_proto::Change)> {
        let now: BTreeMap<PathBuf, (What, FileStat)> =
            files.iter().map(|(place, stat)| (place.path.clone(), (place.what, stat.clone()))).collect();
        let mut news = Vec::new();
        if let Some(before) = self.seen.take() {
            let size = |stat: &FileStat| format!("{} bytes", stat.size_bytes);
            let change = |what: What, path: &PathBuf, from: Option<&FileStat>, to: Option<&FileStat>| {
                nodewhy_proto::Change {
                    what: what.word().to_owned(),
                    name: path.display().to_string(),
                    from: from.map(size),
                    to: to.map(size),
                }
            };
            for (path, (what, stat)) in &now {
                let old = before.get(path).map(|(_, old)| old);
                if old != Some(stat) {
                    let when = stat.changed.map_or(at, |changed| stamp(changed, at));
                    news.push((when, change(*what, path, old, Some(stat))));
                }
            }
            for (path, (what, stat)) in before.iter().filter(|(path, _)| !now.contains_key(*path)) {
                news.push((at, change(*what, path, Some(stat), None)));
            }
        }
        self.seen = Some(now);
        // The log's times are whole seconds: one may be half written when it is read.
        let (last, told) = &self.told;
        let is_new = |package: &&parse::Package| {
            package.at > *last || (package.at == *last && !told.contains(&package.name))
        };
        for package in packages.iter().filter(is_new) {
            let change = nodewhy_proto::Change {
                what: "package".to_owned(),
                name: package.name.clone(),
                from: package.from.clone(),
                to: package.to.clone(),
            };
            news.push((stamp(package.at, at), change));
        }
        if let Some(newest) = packages.iter().map(|package| package.at).max().filter(|newest| newest >= last)
        {
            let names =
                packages.iter().filter(|package| package.at == newest).map(|package| package.name.clone());
            self.told = (newest, names.collect());
        }
        news
    }
}

/// A wall time of the past on both clocks.
fn stamp(wall: Timestamp, now: Stamp) -> Stamp {
    let ago = now.wall.duration_since(wall);
    match Duration::try_from(ago) {
        Ok(ago) => Stamp { wall, boot: now.boot.saturating_sub(ago) },
        // In the future by this clock: no later than now.
        Err(_) => now,
    }
}

fn certificates(host: &Host, files: &[(Place, FileStat)]) -> Vec<Certificate> {
    let files = files.iter().filter(|(place, _)| place.what == What::Certificate);
    files
        .map(|(place, _)| {
            let read = if places::may_be_opened(&place.path) {
                let text = host.read_bytes(&place.path).map_err(|error| error.to_string());
                text.and_then(|text| certificate::not_after(&place.path, &text))
            } else {
                Err("not opened: it holds a private key".to_owned())
            };
            let (not_after, untold) = match read {
                Ok(end) => (Some(end), None),
                Err(why) => (None, Some(why)),
            };
            Certificate { path: place.path.display().to_string(), owner: place.owner, not_after, untold }
        })
        .collect()
}

fn summary(reading: &Reading) -> String {
    let newest = reading
        .changes
        .first()
        .map(|change| format!(", newest {} {} at {}", change.what, change.name, change.at));
    let restart = match reading.needs_restart.len() {
        0 => String::new(),
        count => format!("; {count} are newer than the process that uses them"),
    };
    format!("{} changes in 14 days{}{restart}", reading.count, newest.unwrap_or_default())
}

fn page(reading: &Reading) -> Result<serde_json::Value, serde_json::Error> {
    #[derive(Serialize)]
    struct Lists<'a> {
        kernel: Option<&'a str>,
        boots: &'a [Boot],
        changes: &'a [Changed],
        needs_restart: &'a [Changed],
        processes: &'a [User],
        certificates: &'a [Certificate],
        missing: &'a [String],
    }
    serde_json::to_value(Lists {
        kernel: reading.kernel.as_deref(),
        boots: &reading.boots,
        changes: &reading.all,
        needs_restart: &reading.needs_restart,
        processes: &reading.processes,
        certificates: &reading.certificates,
        missing: &reading.missing,
    })
}

/// Every parser of this collector, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    use crate::fuzz::{done, text};
    let text = text(bytes);
    done(parse::dpkg(&text, &jiff::tz::TimeZone::UTC));
    done(parse::dnf(&text));
    done(parse::wtmp(bytes));
    done(certificate::not_after(std::path::Path::new("/ca.crt"), bytes));
}

#[cfg(test)]
mod tests;
