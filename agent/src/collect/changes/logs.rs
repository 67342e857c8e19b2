//! The files that packages and boots are written into; read again only when they changed.

use jiff::tz::TimeZone;

use super::parse::{self, Boot, Package};
use crate::host::{FileStat, Host, ReadError};

const DPKG: &[&str] = &["/var/log/dpkg.log.1", "/var/log/dpkg.log"];
const DNF: &[&str] = &["/var/log/dnf.rpm.log.1", "/var/log/dnf.rpm.log"];
const RPM_DATABASES: &[&str] =
    &["/usr/lib/sysimage/rpm/rpmdb.sqlite", "/var/lib/rpm/rpmdb.sqlite", "/var/lib/rpm/Packages"];
const WTMP: &str = "/var/log/wtmp";
/// No more packages are kept: the newest.
const MOST: usize = 2000;

/// What the logs say.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    /// Oldest first.
    pub(super) packages: Vec<Package>,
    /// Oldest first.
    pub(super) boots: Vec<Boot>,
}

/// The files as they were, and what they said.
#[derive(Debug, Default)]
pub(super) struct Logs {
    files: Vec<(&'static str, Option<FileStat>)>,
    told: Told,
    missing: Vec<String>,
}

impl Logs {
    pub(super) fn read(&mut self, host: &Host, missing: &mut Vec<String>) -> Told {
        let all = DPKG.iter().chain(DNF).chain(RPM_DATABASES).chain([&WTMP]);
        let files: Vec<_> = all.map(|path| (*path, host.stat(path).ok())).collect();
        if files != self.files {
            (self.told, self.missing) = read(host, &files);
            self.files = files;
        }
        missing.extend(self.missing.iter().cloned());
        self.told.clone()
    }
}

fn read(host: &Host, files: &[(&'static str, Option<FileStat>)]) -> (Told, Vec<String>) {
    let mut missing = Vec::new();
    let mut text = |path: &str| match host.read_bytes(path) {
        Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        Err(ReadError::NotFound { .. }) => None,
        Err(error) => {
            missing.push(format!("packages: {error}"));
            None
        }
    };
    let dpkg: Vec<String> = DPKG.iter().filter_map(|path| text(path)).collect();
    let dnf: Vec<String> = DNF.iter().filter_map(|path| text(path)).collect();
    let zone = zone(host);
    if !dpkg.is_empty() && zone.is_none() {
        missing.push(
            "the node's time zone (/etc/localtime) cannot be read: dpkg's local times are taken as UTC"
                .to_owned(),
        );
    }
    let zone = zone.unwrap_or(TimeZone::UTC);
    let mut packages: Vec<Package> = dpkg.iter().flat_map(|text| parse::dpkg(text, &zone)).collect();
    packages.extend(dnf.iter().flat_map(|text| parse::dnf(text)));
    if dpkg.is_empty() && dnf.is_empty() {
        missing.push("packages: there is neither /var/log/dpkg.log nor /var/log/dnf.rpm.log".to_owned());
        // The coarse sign: something was installed or removed then.
        let database = files.iter().filter(|(path, _)| RPM_DATABASES.contains(path));
        let changed = database.filter_map(|(path, stat)| Some((path, stat.as_ref()?.modified?)));
        packages.extend(changed.max_by_key(|(_, at)| *at).map(|(path, at)| Package {
            at,
            name: format!("the database of packages ({path})"),
            from: None,
            to: None,
        }));
    }
    packages.sort_by_key(|package| package.at);
    packages.drain(..packages.len().saturating_sub(MOST));
    let boots = match host.read_bytes(WTMP) {
        Ok(bytes) => {
            let boots = parse::wtmp(&bytes);
            if boots.is_empty() {
                missing.push("earlier boots: /var/log/wtmp holds none".to_owned());
            }
            boots
        }
        Err(ReadError::NotFound { .. }) => {
            missing.push("earlier boots: there is no /var/log/wtmp".to_owned());
            Vec::new()
        }
        Err(error) => {
            missing.push(format!("earlier boots: {error}"));
            Vec::new()
        }
    };
    (Told { packages, boots }, missing)
}

/// The node's own time zone: dpkg writes local time.
fn zone(host: &Host) -> Option<TimeZone> {
    let bytes = host.read_bytes("/etc/localtime").ok()?;
    TimeZone::tzif("localtime", &bytes).ok()
}
