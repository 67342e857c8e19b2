//! The list of collectors. A new one is a file in `collect/` and two lines here: its `mod` and its entry.

pub mod api_server;
pub mod cgroups;
pub mod changes;
pub mod clock;
pub mod cni;
pub mod conntrack;
pub mod control_plane;
pub mod disk;
pub mod kubelet;
pub mod logs;
pub mod memory;
pub mod netfilter;
pub mod network;
pub mod oom;
pub mod pressure;
pub mod runtime;
pub mod systemd;
pub mod tasks;

use crate::collector::Collect;

/// Every collector, in the order in which people read about them.
pub static COLLECTORS: &[&dyn Collect] = &[
    &pressure::COLLECTOR,
    &memory::COLLECTOR,
    &cgroups::COLLECTOR,
    &oom::COLLECTOR,
    &tasks::COLLECTOR,
    &disk::COLLECTOR,
    &network::COLLECTOR,
    &conntrack::COLLECTOR,
    &netfilter::COLLECTOR,
    &api_server::COLLECTOR,
    &runtime::COLLECTOR,
    &kubelet::COLLECTOR,
    &cni::COLLECTOR,
    &logs::COLLECTOR,
    &systemd::COLLECTOR,
    &control_plane::COLLECTOR,
    &clock::COLLECTOR,
    &changes::COLLECTOR,
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::COLLECTORS;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test reads this crate's own sources")]
    fn every_file_of_the_folder_is_in_the_list_under_its_own_name() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/collect");
        let mut files = BTreeSet::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let Some(name) = path.file_name().unwrap().to_str().unwrap().strip_suffix(".rs") else {
                continue;
            };
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(
                text.contains(&format!("    name: \"{name}\",\n")),
                "{name}.rs: COLLECTOR.name is not its own"
            );
            files.insert(name.to_owned());
        }
        let listed: BTreeSet<String> =
            COLLECTORS.iter().map(|collector| collector.name().to_owned()).collect();
        assert_eq!(listed.len(), COLLECTORS.len(), "a name stands twice in the list");
        assert_eq!(files, listed, "left: src/collect/*.rs; right: the list in src/collect.rs");
    }
}
