//! Cgroups that were removed and still hold memory.

use std::collections::BTreeMap;
use std::path::Path;

use nodewhy_proto::CgroupMode;

use super::{STAT_EVERY, Source};
use crate::collect::cgroups::group::Reader;
use crate::collect::cgroups::parse;
use crate::collect::cgroups::reading::Dying;
use crate::host::Host;

/// The search for living cgroups of a v1 hierarchy gives up after so many.
const MOST_FOLDERS: usize = 20_000;

/// Of v2 the root's own count; of v1 the controller's count less the cgroups that are there, once a minute.
pub(super) fn dying(
    source: &mut Source,
    reader: &mut Reader<'_>,
    controllers: &BTreeMap<String, u64>,
) -> Option<Dying> {
    if source.hierarchies.mode == CgroupMode::V2 {
        let mount = source.hierarchies.unified.as_deref()?;
        let folder = reader.host.cgroup(mount).ok()?;
        let text = folder.read("cgroup.stat", &mut reader.buffer).ok()?;
        let (living, dying) = parse::cgroup_stat(text).ok()?;
        return Some(Dying { living, dying, from: "cgroup.stat of the root" });
    }
    if source.ticks % STAT_EVERY == 1 || source.dying.is_none() {
        let mount = source.hierarchies.v1("memory")?;
        let living = folders(reader.host, mount)?;
        // Read before the search, so that a cgroup that was made meanwhile is counted as living at most.
        let dying = controllers.get("memory")?.saturating_sub(living);
        source.dying =
            Some(Dying { living, dying, from: "/proc/cgroups less the folders of the memory controller" });
    }
    source.dying.clone()
}

fn folders(host: &Host, mount: &Path) -> Option<u64> {
    let mut waiting = vec![mount.to_owned()];
    let mut count = 0;
    while let Some(path) = waiting.pop() {
        count += 1;
        if count > MOST_FOLDERS {
            return None;
        }
        let children = host.cgroup_children(&path).unwrap_or_default();
        waiting.extend(children.into_iter().map(|child| path.join(child.name)));
    }
    Some(count as u64)
}
