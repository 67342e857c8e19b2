//! docs/proving-ground.md is what the kept evidence says.

use std::collections::BTreeMap;
use std::path::Path;

use nodewhy_ground::evidence::{self, Evidence, Way};
use nodewhy_ground::faults::{self, FAULTS};
use nodewhy_ground::replay::verdict_line;
use nodewhy_ground::table::page;

/// `NODEWHY_BLESS=1 cargo test -p nodewhy-ground --test table` writes the page anew.
#[test]
#[expect(clippy::disallowed_methods, reason = "the test reads this project's own page")]
fn the_page_in_docs_is_what_the_evidence_says() {
    let evidence = evidence::all(&evidence::folder()).unwrap();
    for name in evidence.keys() {
        assert!(
            faults::find(name).is_some(),
            "there is evidence of {name}, and no such fault: remove the folder"
        );
    }
    let verdict = |evidence: &Evidence| Way::ALL.map(|way| (way, verdict_line(evidence, way))).into();
    let verdicts: BTreeMap<String, BTreeMap<Way, String>> =
        evidence.iter().map(|(name, evidence)| (name.clone(), verdict(evidence))).collect();
    let page = page(FAULTS, &evidence, &verdicts);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/proving-ground.md");
    if std::env::var_os("NODEWHY_BLESS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap();
    assert_eq!(kept, page, "run with NODEWHY_BLESS=1 to write docs/proving-ground.md anew");
}
