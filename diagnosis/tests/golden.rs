//! Whole verdicts for whole cases: `tests/cases/NAME/case.json` gives `tests/cases/NAME/verdict.json`.
//!
//! The facts are recorded watch events of real nodes: kubelet 1.36.2, containerd 2.1.9, Linux 7.2.13, Debian sid; in
//! the folders named so, kubelet 1.32.6, containerd 1.6.20, Linux 6.1.192, Debian 12. The Ready messages stand as the API
//! server sent them. Findings and events are written after the same episodes' times, in the agent's contract. `NODEWHY_BLESS=1 cargo test -p nodewhy-diagnosis` writes the verdicts anew: read the
//! difference before you commit it.
#![expect(clippy::disallowed_methods, reason = "the test reads its own files")]

use std::path::{Path, PathBuf};

use nodewhy_diagnosis::{explain, read_case};
use nodewhy_proto::{Conclusion, Verdict};

/// Each case's root, and whether Ready was lost already: blessing cannot change these.
const EXPECTED: [(&str, &str, bool); 10] = [
    ("cni-uninitialized", "cni_config_missing", true),
    ("cni-uninitialized-1.32.6", "cni_config_missing", true),
    ("kubelet-killed", "kubelet_down", true),
    ("kubelet-killed-1.32.6", "kubelet_down", true),
    ("kubelet-killed-before-the-loss", "kubelet_down", false),
    ("pleg", "containerd_hung", true),
    ("pleg-1.32.6", "containerd_hung", true),
    ("pleg-before-the-loss", "containerd_hung", false),
    ("runtime-down", "containerd_dead", true),
    ("runtime-down-1.32.6", "containerd_dead", true),
];

fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases")
}

#[test]
fn every_case_has_its_verdict() {
    let mut names: Vec<String> = std::fs::read_dir(cases())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert_eq!(names, EXPECTED.map(|(name, ..)| name));
    for (name, root, lost) in EXPECTED {
        let folder = cases().join(name);
        let case = read_case(&std::fs::read_to_string(folder.join("case.json")).unwrap()).unwrap();
        let verdict = explain(&case);
        assert_eq!(verdict.conclusion, Conclusion::Explained, "{name}");
        assert_eq!(
            verdict.roots.iter().map(|root| root.cause.as_str()).collect::<Vec<_>>(),
            [root],
            "{name}"
        );
        assert_eq!(verdict.roots[0].chain.last().unwrap().happened, lost, "{name}");
        let path = folder.join("verdict.json");
        if std::env::var_os("NODEWHY_BLESS").is_some() {
            std::fs::write(&path, serde_json::to_string_pretty(&verdict).unwrap() + "\n").unwrap();
        }
        let kept: Verdict = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(kept, verdict, "{name}: run with NODEWHY_BLESS=1 to write it anew");
    }
}

#[test]
fn a_case_cut_anywhere_is_an_error_that_says_so() {
    let whole = std::fs::read_to_string(cases().join("pleg/case.json")).unwrap();
    let whole = whole.trim_end();
    for end in (0..whole.len()).filter(|&end| whole.is_char_boundary(end)) {
        let error = read_case(&whole[..end]).unwrap_err().to_string();
        assert!(error.contains("not a case"), "{error}");
    }
}

#[test]
fn a_case_with_a_flipped_byte_never_panics() {
    let whole = std::fs::read_to_string(cases().join("kubelet-killed/case.json")).unwrap().into_bytes();
    for at in 0..whole.len() {
        for bit in [0x01, 0x10, 0x80] {
            let mut flipped = whole.clone();
            flipped[at] ^= bit;
            if let Some(case) = std::str::from_utf8(&flipped).ok().and_then(|json| read_case(json).ok()) {
                explain(&case);
            }
        }
    }
}
