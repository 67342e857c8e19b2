//! The xtables lock: `/run/xtables.lock`, which every writer of legacy rules holds (flock(2)); kube-proxy waits for it
//! 5 s and then gives up. iptables-nft does not use it.
//!
//! Who holds it stands in /proc/locks, for the pid namespace of that /proc alone: a holder outside of it is not shown.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::host::{Host, ReadError};

const LOCK: &str = "/run/xtables.lock";
const LOCKS: &str = "/proc/locks";

/// The lock now.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Lock {
    /// The file is not there: nobody has ever taken it since the boot.
    NeverTaken,
    /// Nobody holds it.
    Free,
    /// Somebody does.
    Held {
        /// Who.
        holder: Holder,
        /// Processes that wait for it.
        waiters: usize,
    },
    /// It cannot be told.
    Unknown {
        /// Why.
        why: String,
    },
}

/// Who holds the lock.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Holder {
    /// Its id.
    pub pid: u32,
    /// The kernel's name for it; `None`: it has ended, or is not to be seen.
    pub name: Option<String>,
    /// When it was first seen with the lock. It may have held it for longer: the kernel does not tell.
    pub since: Timestamp,
    /// Seconds since then.
    pub age_seconds: f64,
    /// Seconds since the process began: it holds the lock for no longer than that.
    pub process_age_seconds: Option<f64>,
}

/// Who was seen with it, and since when.
#[derive(Debug, Default)]
pub(super) struct Watch {
    seen: Option<(u32, nodewhy_clock::Stamp)>,
}

impl Watch {
    /// Looks at it. `blind`: why /proc does not show the node's processes.
    pub(super) fn look(&mut self, host: &Host, blind: Option<&str>) -> Lock {
        if let Some(why) = blind {
            return Lock::Unknown { why: why.to_owned() };
        }
        match held(host) {
            Err(ReadError::NotFound { .. }) => {
                self.seen = None;
                Lock::NeverTaken
            }
            Err(error) => Lock::Unknown { why: error.to_string() },
            Ok(None) => {
                self.seen = None;
                Lock::Free
            }
            Ok(Some((pid, waiters))) => {
                let now = host.clock().stamp();
                let since = match self.seen {
                    Some((seen, since)) if seen == pid => since,
                    _ => now,
                };
                self.seen = Some((pid, since));
                let process = host.process(pid).ok().flatten();
                let age = |began: Duration| now.boot.saturating_sub(began).as_secs_f64();
                let holder = Holder {
                    pid,
                    name: process.as_ref().map(|process| process.name.clone()),
                    since: since.wall,
                    age_seconds: age(since.boot),
                    process_age_seconds: process.map(|process| age(process.start_since_boot())),
                };
                Lock::Held { holder, waiters }
            }
        }
    }
}

/// The holder's process and how many wait; `None`: it is free.
fn held(host: &Host) -> Result<Option<(u32, usize)>, ReadError> {
    let (device, inode) = host.stat(LOCK)?.identity;
    // It must not become "the lock's file is not there".
    let text = host.read(LOCKS).map_err(|error| ReadError::Other(error.to_string()))?;
    let identity =
        format!("{:02x}:{:02x}:{inode}", nix::sys::stat::major(device), nix::sys::stat::minor(device));
    parse(&text, &identity).map_err(|what| ReadError::malformed(LOCKS, what))
}

/// The flock of this file (`major:minor:inode`, the first two hexadecimal): `6: FLOCK  ADVISORY  WRITE 3 00:28:2 0 EOF`;
/// who waits has `->` behind the number (fs/locks.c).
fn parse(text: &str, identity: &str) -> Result<Option<(u32, usize)>, String> {
    let (mut holder, mut waiters) = (None, 0);
    for line in text.lines() {
        let mut words = line.split_whitespace().skip(1).peekable();
        let waits = words.next_if_eq(&"->").is_some();
        let fields: Vec<&str> = words.collect();
        let [kind, _, _, pid, file, ..] = fields.as_slice() else {
            return Err(format!("expected a lock, found {line:?}"));
        };
        if *kind != "FLOCK" || *file != identity {
            continue;
        }
        let pid: u32 = pid.parse().map_err(|_| format!("expected a process id, found {pid:?}"))?;
        if waits {
            waiters += 1;
        } else {
            holder = Some(pid);
        }
    }
    Ok(holder.map(|holder| (holder, waiters)))
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    crate::fuzz::done(parse(&crate::fuzz::text(bytes), "00:28:2"));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // Recorded on Linux 6.18.44 in a pid namespace: `flock -x /run/xtables.lock sleep 3`, and another one that waits.
    const LOCKS_HELD: &str =
        "6: FLOCK  ADVISORY  WRITE 3 00:28:2 0 EOF\n6: -> FLOCK  ADVISORY  WRITE 6 00:28:2 0 EOF\n";
    // From the machine that it runs on.
    const OTHERS: &str = "1: FLOCK  ADVISORY  WRITE 28239 fe:00:6496279 0 EOF\n4: FLOCK  ADVISORY  READ 28231 fe:00:10136096 0 EOF\n";

    #[test]
    fn holder_and_waiter() {
        let text = format!("{OTHERS}{LOCKS_HELD}");
        assert_eq!(parse(&text, "00:28:2"), Ok(Some((3, 1))));
        assert_eq!(parse(&text, "00:28:20"), Ok(None));
        assert_eq!(parse(OTHERS, "00:28:2"), Ok(None));
        assert_eq!(parse("", "00:28:2"), Ok(None));
    }

    proptest! {
        #[test]
        fn a_cut_list_never_has_another_holder(cut in 0..LOCKS_HELD.len()) {
            if let Ok(Some((holder, waiters))) = parse(&LOCKS_HELD[..cut], "00:28:2") {
                prop_assert!(holder == 3 && waiters <= 1);
            }
        }

        #[test]
        fn any_text(text in ".{0,200}") {
            parse(&text, "00:28:2").ok();
        }
    }
}
