//! Who has inotify's instances and watches. The kernel counts them for each user, and tells neither count: every open
//! file of every process is looked at, so only when it is asked for.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::collector::AskError;
use crate::host::{Host, ReadError};

/// The processes with the most watches.
const MOST: usize = 50;

#[derive(Debug, Default, Serialize)]
struct Owner {
    pid: u32,
    name: String,
    uid: Option<u32>,
    instances: u64,
    watches: u64,
}

#[derive(Debug, Default, Serialize)]
struct User {
    instances: u64,
    watches: u64,
}

#[derive(Debug, Serialize)]
struct Owners {
    max_user_instances: Option<u64>,
    max_user_watches: Option<u64>,
    /// By user id; the limits are each user's. Users of other user namespaces have their own numbers.
    users: BTreeMap<u32, User>,
    /// Most watches first.
    processes: Vec<Owner>,
    /// Processes whose open files may not be seen: their instances are missing in the sums.
    refused: u64,
}

/// Looks at every open file of the node.
pub(super) fn owners(host: &Host, _: &BTreeMap<String, String>) -> Result<serde_json::Value, AskError> {
    let limit = |name: &str| {
        let text = host.read(format!("/proc/sys/fs/inotify/{name}")).ok()?;
        super::parse::number(&text)
    };
    let mut users = BTreeMap::<u32, User>::new();
    let (mut processes, mut refused) = (Vec::new(), 0);
    for pid in host.pids()? {
        let owner = match of(host, pid) {
            Some(owner) => owner,
            None => {
                refused += u64::from(host.process_name(pid).is_ok_and(|name| name.is_some()));
                continue;
            }
        };
        if owner.instances == 0 {
            continue;
        }
        if let Some(uid) = owner.uid {
            let user = users.entry(uid).or_default();
            user.instances += owner.instances;
            user.watches += owner.watches;
        }
        processes.push(owner);
    }
    processes.sort_by(|left, right| right.watches.cmp(&left.watches).then(left.pid.cmp(&right.pid)));
    processes.truncate(MOST);
    let owners = Owners {
        max_user_instances: limit("max_user_instances"),
        max_user_watches: limit("max_user_watches"),
        users,
        processes,
        refused,
    };
    serde_json::to_value(owners)
        .map_err(|error| AskError::Read(ReadError::Other(format!("inotify's owners: {error}"))))
}

/// `None`: its open files may not be seen, or it is gone.
fn of(host: &Host, pid: u32) -> Option<Owner> {
    let descriptors = host.list(format!("/proc/{pid}/fd")).ok()?;
    let mut owner = Owner { pid, ..Owner::default() };
    for descriptor in &descriptors {
        let target = match host.process_link(pid, &format!("fd/{descriptor}")) {
            Ok(target) => target,
            // Listing is allowed to root, following takes the right to trace the process.
            Err(ReadError::Denied { .. }) => return None,
            // Closed in between.
            Err(_) => continue,
        };
        if target.as_os_str() != "anon_inode:inotify" {
            continue;
        }
        owner.instances += 1;
        let Ok(text) = host.read(format!("/proc/{pid}/fdinfo/{descriptor}")) else { continue };
        owner.watches += text.lines().filter(|line| line.starts_with("inotify wd:")).count() as u64;
    }
    if owner.instances > 0 {
        owner.name = host.process_name(pid).ok().flatten()?;
        let status = host.process_status(pid).ok().flatten();
        owner.uid = status.and_then(|status| status.uids).map(|(uid, _)| uid);
    }
    Some(owner)
}

#[cfg(test)]
mod tests {
    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
    use nodewhy_clock::Clock;

    use super::*;
    use crate::host::Places;

    #[test]
    fn this_process_is_an_owner() {
        let instances: Vec<Inotify> = (0..3).map(|_| Inotify::init(InitFlags::IN_CLOEXEC).unwrap()).collect();
        for folder in ["/proc", "/etc", "/usr"] {
            instances[0].add_watch(folder, AddWatchFlags::IN_CREATE).unwrap();
        }
        let host = Host::new("/", Clock::system(), Places::default());
        let told = owners(&host, &BTreeMap::new()).unwrap();
        let pid = u64::from(std::process::id());
        let ours = told["processes"].as_array().unwrap().iter().find(|owner| owner["pid"] == pid).unwrap();
        assert_eq!((ours["instances"].as_u64(), ours["watches"].as_u64()), (Some(3), Some(3)), "{ours}");
        let uid = nix::unistd::getuid().to_string();
        assert!(told["users"][uid]["instances"].as_u64().unwrap() >= 3);
        assert!(told["max_user_instances"].as_u64().unwrap() > 0);
    }
}
