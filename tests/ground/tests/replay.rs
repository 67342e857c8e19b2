//! The diagnosis on real evidence, without a virtual machine: what was recorded of each fault is diagnosed again, and
//! held against the truth. It prints a line for each fault and agent.

#![expect(clippy::disallowed_methods, reason = "it reads the evidence")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Context;
use nodewhy_diagnosis::causes;
use nodewhy_ground::evidence::{Evidence, Way, folder};
use nodewhy_ground::fault::{Expect, Fault};
use nodewhy_ground::faults;
use nodewhy_ground::replay::judge;

#[test]
fn every_verdict_is_true() {
    let mut wrong = Vec::new();
    let mut found = BTreeSet::new();
    // One after another: all of it at once is some hundred megabytes.
    let root = std::env::var_os("NODEWHY_EVIDENCE").map_or_else(folder, PathBuf::from);
    for (name, path) in kept(&root).unwrap() {
        println!("{name}");
        found.insert(name.clone());
        let Some(fault) = faults::find(&name) else {
            wrong.push(format!("{name}: there is no such fault; rename the folder or remove it"));
            continue;
        };
        match Evidence::read(&path) {
            Ok(evidence) => wrong.extend(judged(fault, &evidence)),
            Err(error) => wrong.push(format!("{name}: {error:#}")),
        }
    }
    let missing = faults::all().filter(|fault| fault.each_time && !found.contains(fault.name));
    wrong.extend(missing.map(|fault| format!("{}: no evidence is kept of it; record it", fault.name)));
    assert!(!found.is_empty(), "{} holds no evidence", root.display());
    assert!(wrong.is_empty(), "{} verdicts or folders are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

fn judged(fault: &Fault, evidence: &Evidence) -> Vec<String> {
    let mut wrong = Vec::new();
    let truth = &evidence.truth;
    if truth.fault != fault.name || truth.cause != fault.cause {
        wrong.push(format!("{}: the truth was {} then; record it again", truth.fault, truth.cause));
    }
    for way in Way::ALL {
        let (name, way_name) = (fault.name, way.folder());
        match judge(fault, evidence, way) {
            Ok(judged) => {
                println!("  {way_name:<5} {}", judged.line);
                wrong.extend(judged.wrong.into_iter().map(|line| format!("{name}, {way_name}: {line}")));
            }
            Err(error) => wrong.push(format!("{name}, {way_name}: {error:#}")),
        }
    }
    wrong
}

/// The folders of evidence, by name. `NODEWHY_EVIDENCE` names another place, for runs that are not kept yet.
fn kept(root: &Path) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let mut kept = BTreeMap::new();
    for entry in std::fs::read_dir(root).with_context(|| format!("list {}", root.display()))? {
        let path = entry?.path();
        if let Some(name) = path.file_name().filter(|_| path.is_dir()) {
            kept.insert(name.to_string_lossy().into_owned(), path);
        }
    }
    Ok(kept)
}

#[test]
fn what_the_catalogue_has_is_not_called_missing_from_it() {
    let Expect::NotYet(usual) = Fault::USUAL.diagnosed else { panic!("the usual expectation is NotYet") };
    assert!(faults::all().next().is_some(), "there are no faults");
    for fault in faults::all() {
        let known = causes::named(fault.cause).is_some();
        match fault.diagnosed {
            Expect::NotYet(why) => assert!(
                !known || why != usual,
                "{}: the catalogue has {}; say Root or Holds, or why it cannot be known",
                fault.name,
                fault.cause
            ),
            Expect::Root | Expect::Holds => {
                assert!(known, "{}: the catalogue has no {}", fault.name, fault.cause);
            }
        }
    }
}
