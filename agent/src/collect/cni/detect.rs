use std::time::Duration;

use nodewhy_proto::{Evidence, Severity, Subject, SubjectKind};

use super::{FileState, FolderState, Plugin, Reading};
use crate::collector::{Abnormal, Noticed, Pair};
use crate::thresholds::Thresholds;

/// A CNI agent rewrites its file when it starts: half a file for a moment is no finding.
const HOLD: Duration = Duration::from_secs(1);
const CLEAR_AFTER: Duration = Duration::from_secs(2);

/// What is abnormal of the configuration now.
pub(super) fn detect(pair: Pair<'_, Reading>, _: &Thresholds, noticed: &mut Noticed) {
    let reading = pair.now;
    let dir = &reading.dir;
    let expected = Evidence::new(format!("expected: {}", reading.expected_because), "nodewhy");
    match reading.state {
        FolderState::Gone => {
            let seen = Evidence::new(format!("{dir} does not exist"), dir.as_str());
            let summary = format!("the folder of CNI configurations {dir} is gone");
            noticed.states.push(critical("cni_config_dir_missing", dir, summary, vec![seen, expected]));
        }
        FolderState::Empty => {
            let others = match reading.files.len() {
                0 => "it is empty".to_owned(),
                count => format!("its {count} files have other endings"),
            };
            let text = format!("no .conf, .conflist or .json in {dir}: {others}");
            let summary = format!("there is no CNI configuration in {dir}");
            let seen = Evidence::new(text, dir.as_str());
            noticed.states.push(critical("cni_config_missing", dir, summary, vec![seen, expected]));
        }
        FolderState::Invalid => noticed.states.extend(invalid(reading)),
        FolderState::Configured => {
            noticed.states.extend(reading.plugins.iter().filter_map(|plugin| missing(reading, plugin)));
        }
        FolderState::CannotTell => {}
    }
}

fn critical(finding: &'static str, name: &str, summary: String, evidence: Vec<Evidence>) -> Abnormal {
    Abnormal {
        finding,
        subject: Subject::new(SubjectKind::Cni, name),
        severity: Severity::Critical,
        summary,
        evidence,
        since: None,
        hold: HOLD,
        clear_after: CLEAR_AFTER,
    }
}

fn invalid(reading: &Reading) -> Option<Abnormal> {
    // The first one: with containerd it decides alone, with CRI-O none of those after it could be loaded either.
    let file = reading.files.iter().find(|file| file.state == FileState::Invalid)?;
    let why = file.why.as_deref().unwrap_or("it cannot be loaded");
    let path = format!("{}/{}", reading.dir, file.name);
    let mut seen = Evidence::new(format!("{}: {why}", file.name), path.as_str());
    seen.at = file.modified;
    let summary = format!("the CNI configuration {path} cannot be loaded: {why}");
    Some(critical("cni_config_invalid", &file.name, summary, vec![seen]))
}

fn missing(reading: &Reading, plugin: &Plugin) -> Option<Abnormal> {
    let text = match plugin.state {
        "missing" => format!("no program {} in {}", plugin.kind, reading.bin_dirs.join(", ")),
        "not_executable" => format!("{} is not executable", plugin.path.as_deref().unwrap_or(&plugin.kind)),
        _ => return None,
    };
    let file = reading.file.as_deref().unwrap_or("the configuration");
    let named = Evidence::new(format!("{file} calls {}", plugin.kind), format!("{}/{file}", reading.dir));
    let summary = format!("the CNI plugin {} cannot be called: {text}", plugin.kind);
    let looked = Evidence::new(text, reading.bin_dirs.join(", "));
    let state = critical("cni_plugin_missing", &plugin.kind, summary, vec![looked, named]);
    Some(Abnormal { severity: Severity::Warning, ..state })
}
