//! The catalogue: one file a cause. A new cause is one file and two lines here.

use crate::{Cause, NOT_READY, Unready};

mod cni_config_invalid;
mod cni_config_missing;
mod cni_dir_deleted_stops_cri;
mod containerd_dead;
mod containerd_hung;
mod global_oom_pod;
mod kubelet_down;
mod kubelet_wedged;
mod mass_notready_control_plane;
mod memcg_oom_container;
mod memory_pressure;
mod node_api_partition;
mod oom_kills_kubelet;
mod oom_kills_runtime_or_cni;

/// Every cause that nodewhy knows.
pub static ALL: &[&Cause] = &[
    &cni_config_invalid::CAUSE,
    &cni_config_missing::CAUSE,
    &cni_dir_deleted_stops_cri::CAUSE,
    &containerd_dead::CAUSE,
    &containerd_hung::CAUSE,
    &global_oom_pod::CAUSE,
    &kubelet_down::CAUSE,
    &kubelet_wedged::CAUSE,
    &mass_notready_control_plane::CAUSE,
    &memcg_oom_container::CAUSE,
    &memory_pressure::CAUSE,
    &node_api_partition::CAUSE,
    &oom_kills_kubelet::CAUSE,
    &oom_kills_runtime_or_cni::CAUSE,
];

/// The cause of this id.
pub fn named(id: &str) -> Option<&'static Cause> {
    ALL.iter().copied().find(|cause| cause.id == id)
}

/// The catalogue as one Markdown page: `docs/causes.md` is this text.
pub fn page() -> String {
    let mut page = String::from(
        "# Causes\n\nEvery cause that nodewhy can name. This page is generated from the code: `diagnosis/src/causes/`.\n",
    );
    for cause in ALL {
        page.push_str(&format!("\n## {}\n\n{}.\n\n{}\n", cause.id, cause.title, cause.about));
        page.push_str("\nLeads to:\n\n");
        if cause.leads_to.is_empty() {
            page.push_str("- nothing that takes Ready away by itself\n");
        }
        for link in cause.leads_to {
            page.push_str(&format!("- {}\n", arrow(link)));
        }
        page.push_str("\nWhat to do:\n\n");
        for (step, line) in cause.remedy.iter().enumerate() {
            page.push_str(&format!("{}. {line}\n", step + 1));
        }
    }
    page
}

fn arrow(link: &crate::Link) -> String {
    let within = link.within.as_secs();
    if link.to != NOT_READY {
        return format!("`{}`, within {within} s", link.to);
    }
    let Some(shows) = link.shows else { return format!("Ready lost, within {within} s") };
    let becomes = match shows.ready {
        Unready::Unknown => "Ready Unknown".to_owned(),
        Unready::False([]) => "Ready False".to_owned(),
        Unready::False(words) => {
            let words: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
            format!("Ready False ({})", words.join(", or "))
        }
    };
    format!(
        "{becomes}, as a rule {} to {} s after, {within} s at most",
        shows.soonest.as_secs(),
        shows.usually_by.as_secs()
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test lists this crate's own source")]
    fn every_file_is_in_the_list_and_names_its_cause() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/causes");
        let files: BTreeSet<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        let listed: BTreeSet<String> = ALL.iter().map(|cause| cause.id.to_owned()).collect();
        assert_eq!(files, listed);
        assert_eq!(listed.len(), ALL.len(), "an id stands twice");
        // A case that says yes, one for a look-alike that says no, and one in which the deciding source is missing.
        for id in listed {
            let text = std::fs::read_to_string(format!("{folder}/{id}.rs")).unwrap();
            for asked in [".yes(&CAUSE)", ".no(&CAUSE)", ".cannot_tell(&CAUSE)"] {
                assert!(text.contains(asked), "{id}.rs tests no case with {asked}");
            }
        }
    }

    #[test]
    fn every_cause_is_whole() {
        for cause in ALL {
            let id = cause.id;
            assert!(id.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit()), "{id}");
            assert!(cause.about.split("\n\n").count() >= 3 && !cause.title.is_empty(), "{id}");
            assert!(!cause.about.contains('#') && !cause.about.contains("  "), "{id}: plain paragraphs");
            assert!(!cause.remedy.is_empty(), "{id}");
            for link in cause.leads_to {
                assert!(link.to == NOT_READY || named(link.to).is_some(), "{id} leads to {}", link.to);
                assert_eq!(link.shows.is_some(), link.to == NOT_READY, "{id} leads to {}", link.to);
                if let Some(shows) = link.shows {
                    assert!(shows.soonest <= shows.usually_by && shows.usually_by <= link.within, "{id}");
                }
            }
        }
    }

    /// `NODEWHY_BLESS=1 cargo test -p nodewhy-diagnosis` writes the page anew.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test reads this project's own page")]
    fn the_page_in_docs_is_this_catalogue() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/causes.md");
        if std::env::var_os("NODEWHY_BLESS").is_some() {
            std::fs::write(path, page()).unwrap();
        }
        let kept = std::fs::read_to_string(path).unwrap();
        assert_eq!(kept, page(), "run with NODEWHY_BLESS=1 to write docs/causes.md anew");
    }
}
