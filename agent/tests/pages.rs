//! The generated page of docs/ is as the code has it. `make docs` writes it anew (`NODEWHY_BLESS=1`).

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, reason = "a test reads the page")]

use std::path::Path;

#[test]
fn the_page_of_metrics_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let page = nodewhy_agent::metrics::page::markdown();
    if std::env::var_os("NODEWHY_BLESS").is_some() {
        return std::fs::write(&path, page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = page.lines().zip(written.lines()).find(|(is, was)| is != was);
    assert!(page == written, "docs/metrics.md is not current: run `make docs`; first: {differs:?}");
}
