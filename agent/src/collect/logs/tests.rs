use std::collections::BTreeSet;
use std::io::Read;

use super::*;

fn recorded(packed: &[u8]) -> String {
    let mut text = String::new();
    flate2::read::GzDecoder::new(packed).read_to_string(&mut text).unwrap();
    text
}

/// The patterns of an episode, each with the source.
fn patterns(text: &str) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    for line in text.lines() {
        let (source, line) = line.split_once('\t').unwrap();
        let (programs, line) = match source {
            "kubelet" => (Programs::KUBELET, line),
            "containerd" => (Programs::RUNTIME, line),
            // `2026-11-21T08:31:47.236732+0000 lab-node1 systemd[1]: text`.
            _ => (Programs::SYSTEMD, line.split_once("systemd[1]: ").unwrap().1),
        };
        seen.extend(
            pattern::find(line, programs)
                .map(|found| format!("{source} {} {:?}", found.pattern, found.fields)),
        );
    }
    seen
}

#[test]
fn zz() {
    for v in ["1.32.6", "1.36.2"] {
        for e in [
            "boot",
            "kubelet-killed",
            "kubelet-stopped",
            "runtime-down",
            "pleg",
            "cni-uninitialized",
            "memory-pressure",
            "disk-pressure",
            "pod-oom",
            "system-oom",
        ] {
            let path = format!("{}/fixtures/logs/kubelet-{v}/{e}.gz", env!("CARGO_MANIFEST_DIR"));
            #[allow(clippy::disallowed_methods)]
            let packed = std::fs::read(path).unwrap();
            println!("== {v} {e}");
            for p in patterns(&recorded(&packed)) {
                println!("{}", p.chars().take(200).collect::<String>());
            }
        }
    }
}
