//! The logs that tell of changes, as text: packages (dpkg, dnf) and boots (wtmp).

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// A package that was installed, upgraded or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Package {
    pub(super) at: Timestamp,
    pub(super) name: String,
    /// What was there before; none: nothing, or it is not told.
    pub(super) from: Option<String>,
    /// What is there now; none: nothing.
    pub(super) to: Option<String>,
}

/// dpkg.log: `2025-06-24 14:36:25 upgrade libudev1:amd64 252.36-1~deb12u1 252.38-1~deb12u1`, in the node's local time.
/// What is not an action on a package is passed over; a last line without its end is not written yet.
pub(super) fn dpkg(text: &str, zone: &TimeZone) -> Vec<Package> {
    let lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    lines.filter_map(|line| dpkg_line(line, zone)).collect()
}

fn dpkg_line(line: &str, zone: &TimeZone) -> Option<Package> {
    let mut words = line.split(' ');
    let (date, time) = (words.next()?, words.next()?);
    if !matches!(words.next()?, "install" | "upgrade" | "remove" | "purge") {
        return None;
    }
    let name = words.next()?.to_owned();
    let version = |word: &str| (word != "<none>").then(|| word.to_owned());
    let (from, to) = (version(words.next()?), version(words.next()?));
    // Purging what was removed before changes no program.
    if words.next().is_some() || (from.is_none() && to.is_none()) {
        return None;
    }
    let civil: DateTime = format!("{date}T{time}").parse().ok()?;
    // An hour that the clock went through twice is taken as the first.
    let at = zone.to_ambiguous_timestamp(civil).compatible().ok()?;
    Some(Package { at, name, from, to })
}

/// dnf.rpm.log: `2022-03-23T16:46:43-0400 SUBDEBUG Installed: redhat-rpm-config-194-1.el9.noarch`. An upgrade is two lines
/// (`Upgrade:` the new one, `Upgraded:` the old one): the first is taken, and the second one's version when it follows.
pub(super) fn dnf(text: &str) -> Vec<Package> {
    let mut packages: Vec<Package> = Vec::new();
    for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        let Some((at, verb, package)) = dnf_line(line) else { continue };
        let Some((name, version)) = name_and_version(package) else { continue };
        match verb {
            "Installed" | "Upgrade" | "Downgrade" => {
                packages.push(Package { at, name, from: None, to: Some(version) });
            }
            "Erase" => packages.push(Package { at, name, from: Some(version), to: None }),
            "Upgraded" | "Downgraded" => {
                let new = packages.iter_mut().rev().find(|new| new.name == name && new.from.is_none());
                if let Some(new) = new {
                    new.from = Some(version);
                }
            }
            _ => {}
        }
    }
    packages
}

fn dnf_line(line: &str) -> Option<(Timestamp, &str, &str)> {
    let (at, rest) = line.split_once(' ')?;
    let (_level, rest) = rest.split_once(' ')?;
    let (verb, package) = rest.split_once(": ")?;
    Some((at.parse().ok()?, verb, package))
}

/// `openssl-libs-1:3.2.2-6.el9.x86_64`: the name may hold dashes, version and release follow the last two.
fn name_and_version(package: &str) -> Option<(String, String)> {
    let (rest, release) = package.rsplit_once('-')?;
    let (name, version) = rest.rsplit_once('-')?;
    (!name.is_empty()).then(|| (name.to_owned(), format!("{version}-{release}")))
}

/// A boot, by wtmp.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Boot {
    pub(super) at: Timestamp,
    /// The kernel's release.
    pub(super) kernel: String,
}

/// `struct utmp` of glibc (utmp(5), bits/utmp.h): on x86 the time has 32 bits for the sake of 32-bit programs.
#[cfg(target_arch = "x86_64")]
const RECORD: (usize, usize, usize) = (384, 340, 4);
#[cfg(not(target_arch = "x86_64"))]
const RECORD: (usize, usize, usize) = (400, 344, 8);
const BOOT_TIME: i16 = 2;
const USER: std::ops::Range<usize> = 44..76;
const HOST: std::ops::Range<usize> = 76..332;

/// The boots in wtmp, oldest first. A record that is cut is passed over.
pub(super) fn wtmp(bytes: &[u8]) -> Vec<Boot> {
    let (size, ..) = RECORD;
    bytes.chunks_exact(size).filter_map(boot).collect()
}

fn boot(record: &[u8]) -> Option<Boot> {
    let (_, seconds_at, width) = RECORD;
    let kind = i16::from_ne_bytes(record.get(..2)?.try_into().ok()?);
    if kind != BOOT_TIME || text(record.get(USER)?)? != "reboot" {
        return None;
    }
    let seconds = record.get(seconds_at..seconds_at + width)?;
    let seconds = match width {
        4 => i64::from(u32::from_ne_bytes(seconds.try_into().ok()?)),
        _ => i64::from_ne_bytes(seconds.try_into().ok()?),
    };
    let kernel = text(record.get(HOST)?).filter(|kernel| !kernel.is_empty())?;
    Some(Boot { at: Timestamp::from_second(seconds).ok()?, kernel: kernel.to_owned() })
}

fn text(field: &[u8]) -> Option<&str> {
    std::str::from_utf8(field.split(|byte| *byte == 0).next()?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // Recorded on Debian 12.
    const DPKG: &str = "2025-06-24 14:36:25 startup archives unpack\n2025-06-24 14:36:25 upgrade libsystemd0:amd64 252.36-1~deb12u1 252.38-1~deb12u1\n2025-06-24 14:36:29 install libgdbm6:amd64 <none> 1.23-3\n2026-09-22 04:48:38 remove libcurl4-gnutls-dev:amd64 7.88.1-10+deb12u15 <none>\n2026-11-21 15:29:56 status installed libc-bin:amd64 2.36-9+deb12u14\n";
    // The first two from a public course on RHEL 9 (`tail /var/log/dnf.rpm.log`), the others' verbs from dnf's own
    // behaviour tests (rpm-software-management/ci-dnf-stack, logging of rpm transactions).
    const DNF: &str = "2022-03-23T16:46:43-0400 SUBDEBUG Installed: python-srpm-macros-3.9-52.el9.noarch\n2022-03-23T16:46:43-0400 SUBDEBUG Installed: redhat-rpm-config-194-1.el9.noarch\n2022-03-23T16:47:00-0400 INFO --- logging initialized ---\n2022-03-23T16:47:01-0400 SUBDEBUG Upgrade: flac-1.3.3-3.fc29.x86_64\n2022-03-23T16:47:01-0400 SUBDEBUG Upgraded: flac-1.3.3-2.fc29.x86_64\n2022-03-23T16:47:02-0400 SUBDEBUG Erase: flac-1.3.3-3.fc29.x86_64\n";
    // Made by `utmpdump -r` of util-linux 2.38.1 from four lines: boot, login, shutdown, boot.
    #[cfg(target_arch = "x86_64")]
    const WTMP: &[u8] = include_bytes!("../../../fixtures/changes/wtmp-x86_64");

    #[test]
    fn recorded_dpkg() {
        let read = dpkg(DPKG, &TimeZone::UTC);
        let first = Package {
            at: "2025-06-24T14:36:25Z".parse().unwrap(),
            name: "libsystemd0:amd64".to_owned(),
            from: Some("252.36-1~deb12u1".to_owned()),
            to: Some("252.38-1~deb12u1".to_owned()),
        };
        assert_eq!(read[0], first);
        assert_eq!((read.len(), read[1].from.as_deref(), read[2].to.as_deref()), (3, None, None));
        let east = TimeZone::fixed(jiff::tz::offset(2));
        assert_eq!(dpkg(DPKG, &east)[0].at, "2025-06-24T12:36:25Z".parse().unwrap());
    }

    #[test]
    fn dnf_with_the_version_before() {
        let read = dnf(DNF);
        assert_eq!(read.len(), 4);
        assert_eq!(read[0].at, "2022-03-23T20:46:43Z".parse().unwrap());
        assert_eq!(
            (read[1].name.as_str(), read[1].to.as_deref()),
            ("redhat-rpm-config", Some("194-1.el9.noarch"))
        );
        let flac = (read[2].from.as_deref(), read[2].to.as_deref());
        assert_eq!(flac, (Some("1.3.3-2.fc29.x86_64"), Some("1.3.3-3.fc29.x86_64")));
        assert_eq!(read[3].to, None);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn boots_with_their_kernels() {
        let read = wtmp(WTMP);
        let told: Vec<_> = read.iter().map(|boot| (boot.at.to_string(), boot.kernel.as_str())).collect();
        assert_eq!(
            told,
            [
                ("2026-11-01T10:00:00Z".to_owned(), "6.1.0-18-amd64"),
                ("2026-11-10T10:00:00Z".to_owned(), "6.1.0-26-amd64"),
            ]
        );
    }

    proptest! {
        #[test]
        fn what_is_cut_tells_nothing_else(cut in 0..DPKG.len()) {
            let whole = dpkg(DPKG, &TimeZone::UTC);
            let read = dpkg(&DPKG[..cut], &TimeZone::UTC);
            prop_assert!(whole.starts_with(&read));
            dnf(&DNF[..cut.min(DNF.len())]);
        }

        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..900), text in "\\PC{0,200}\n") {
            wtmp(&bytes);
            dpkg(&text, &TimeZone::UTC);
            dnf(&text);
        }
    }
}
