//! Units below system.slice: which of them use most memory, and which are frozen.

use crate::collect::cgroups::group::Reader;
use crate::collect::cgroups::parse;
use crate::collect::cgroups::reading::{TOP, Unit};
use crate::host::cgroup::place::below;
use nodewhy_proto::CgroupMode;

use super::{STAT_EVERY, Source};

const SLICE: &str = "/system.slice";
/// A node has some fifty; one that leaks scopes has thousands, and those are no units that anybody asks for.
const MOST: usize = 500;

/// The units that use most memory, and the paths of the frozen ones.
pub(super) fn services(source: &mut Source, reader: &mut Reader<'_>) -> (Vec<Unit>, Vec<String>) {
    let Some((controller, mount)) = source.hierarchies.main() else { return (Vec::new(), Vec::new()) };
    if source.ticks % STAT_EVERY == 1 || source.services.is_empty() {
        // No system.slice: no systemd.
        let children = reader.host.cgroup_children(below(mount, SLICE)).unwrap_or_default();
        source.services = children.into_iter().map(|child| child.name).take(MOST).collect();
    }
    let is_v1 = !controller.is_empty();
    let Ok(folder) = reader.host.cgroup(below(mount, SLICE)) else { return (Vec::new(), Vec::new()) };
    let freezer = match source.hierarchies.mode {
        CgroupMode::V2 => None,
        _ => source.hierarchies.v1("freezer").and_then(|mount| reader.host.cgroup(below(mount, SLICE)).ok()),
    };
    let (mut units, mut frozen) = (Vec::new(), Vec::new());
    for name in &source.services {
        let file = format!("{name}/{}", if is_v1 { "memory.usage_in_bytes" } else { "memory.current" });
        let memory = folder.read(&file, &mut reader.buffer).ok().and_then(|text| parse::number(text).ok());
        units.extend(memory.map(|memory_bytes| Unit { name: name.clone(), memory_bytes }));
        let is_frozen = match &freezer {
            Some(freezer) => {
                let state = freezer.read(&format!("{name}/freezer.state"), &mut reader.buffer);
                state.ok().and_then(|text| parse::freezer_state(text).ok())
            }
            None if is_v1 => None,
            None => {
                let events = folder.read(&format!("{name}/cgroup.events"), &mut reader.buffer);
                events.ok().and_then(|text| parse::cgroup_events(text).ok()).and_then(|(_, frozen)| frozen)
            }
        };
        if is_frozen == Some(true) {
            frozen.push(format!("{SLICE}/{name}"));
        }
    }
    units.sort_by_key(|unit| std::cmp::Reverse(unit.memory_bytes));
    units.truncate(TOP);
    (units, frozen)
}
