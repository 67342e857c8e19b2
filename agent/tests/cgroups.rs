//! The agent finds its own cgroup from within a cgroup namespace, as a container has one. Namespaces are the test's own.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test starts the agent in namespaces of its own, and stops at what it did not expect"
)]

use std::process::{Command, Output};

use serde_json::Value;

/// The hierarchy that the agent goes by, as `/proc/self/cgroup` has it: v1's memory, else the unified one.
fn own_cgroup() -> (&'static str, String) {
    let text = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let of = |wanted: &str| {
        text.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            (fields.next()? == wanted).then(|| fields.next().map(str::to_owned)).flatten()
        })
    };
    of("memory").map(|path| ("memory", path)).or_else(|| Some(("", of("")?))).unwrap()
}

/// Runs this in a mount and a cgroup namespace; `None`: this user may not make them.
fn in_namespaces(script: &str) -> Option<Output> {
    let may = Command::new("unshare").args(["--cgroup", "--mount", "true"]).output().unwrap();
    if !may.status.success() {
        eprintln!("skipped: {}", String::from_utf8_lossy(&may.stderr));
        return None;
    }
    let shell = format!("set -e\n{script}");
    Some(Command::new("unshare").args(["--cgroup", "--mount", "sh", "-c", &shell]).output().unwrap())
}

fn agents_path(output: &Output) -> String {
    let state: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let path = [
        "/state/collectors/cgroups/reading/groups/agent/path",
        "/collectors/cgroups/reading/groups/agent/path",
    ]
    .into_iter()
    .find_map(|pointer| state.pointer(pointer).and_then(Value::as_str));
    path.unwrap_or_else(|| panic!("no cgroup of the agent in {state:#}")).to_owned()
}

const AGENT: &str = env!("CARGO_BIN_EXE_nodewhy-agent");

#[test]
fn a_namespace_of_its_own_over_the_hosts_mounts() {
    let (_, own) = own_cgroup();
    // As with a hostPath at /sys/fs/cgroup: /proc/self/cgroup says `/`, the tree is the host's.
    let Some(output) = in_namespaces(&format!("{AGENT} once --output json || true")) else { return };
    assert_eq!(agents_path(&output), own);
}

#[test]
fn a_namespace_of_its_own_with_mounts_of_its_own() {
    let (controller, own) = own_cgroup();
    let folder = tempfile::tempdir().unwrap();
    let host = folder.path().display();
    let place = format!("/sys/fs/cgroup/{controller}");
    // As in a container: the host's tree below --host-root, at the usual place the agent's own cgroup.
    let script = format!(
        "mount --rbind / {host}\nmount --bind {place}{own} {place}\n{AGENT} --host-root {host} once --output json || true"
    );
    let Some(output) = in_namespaces(&script) else { return };
    assert_eq!(agents_path(&output), own);
}
