//! The agent as a user without any right: what it cannot read it says, with the right that is missing; the rest works.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test starts the program, and stops at what it did not expect"
)]

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use serde_json::Value;

/// A user without any right.
const NOBODY: u32 = 65534;

/// What names a right, and how it is given.
const RIGHTS: &[&str] = &["CAP_", "as root", "as a member of the group", "mount "];

fn run(arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    // Whoever runs it need not be able to enter the folder that it was built in.
    let program = folder.path().join("nodewhy-agent");
    std::fs::copy(env!("CARGO_BIN_EXE_nodewhy-agent"), &program).unwrap();
    let mut command = Command::new(program);
    command.args(arguments).current_dir("/");
    if rustix::process::getuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.output().unwrap()
}

/// Every text of a JSON value that says why something could not be read, by the keys that lead to it.
fn reasons(value: &Value, key: &str, found: &mut Vec<String>) {
    match value {
        Value::String(why)
            if ["error", "why", "missing", "limits"].iter().any(|word| key.ends_with(word)) =>
        {
            found.push(why.clone());
        }
        Value::Array(items) => items.iter().for_each(|item| reasons(item, key, found)),
        Value::Object(members) => members.iter().for_each(|(key, member)| reasons(member, key, found)),
        _ => {}
    }
}

#[test]
fn what_a_user_without_rights_cannot_read_names_the_right_and_the_rest_works() {
    let output = run(&["once", "--output", "json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let look: Value = serde_json::from_slice(&output.stdout).unwrap();
    let collectors = look["state"]["collectors"].as_object().unwrap();
    for (name, state) in collectors {
        let mut why = Vec::new();
        reasons(state, "", &mut why);
        for why in &why {
            assert!(!why.contains("panicked"), "{name}: {why}");
            // The kernel's refusal alone helps nobody.
            let is_refused = why.contains("ermission denied") || why.contains("not permitted");
            let names_a_right = RIGHTS.iter().any(|right| why.contains(right));
            assert!(!is_refused || names_a_right, "{name} does not say which right is missing: {why}");
        }
        if state["outcome"] == "failed" {
            let error = state["error"].as_str().unwrap();
            assert!(RIGHTS.iter().any(|right| error.contains(right)), "{name}: {error}");
        }
        assert!(state["outcome"] != "stuck" && state["outcome"] != "unknown", "{name}: {state}");
    }
    // What anybody may read is read.
    for name in ["memory", "tasks", "disk", "network", "clock"] {
        assert_eq!(collectors[name]["outcome"], "read", "{name}: {}", collectors[name]);
    }
    // A busy machine is one, whoever looks.
    let is_load =
        |finding: &&Value| ["cpu_saturated", "io_stalled"].contains(&finding["finding"].as_str().unwrap());
    let others: Vec<&Value> =
        look["findings"].as_array().unwrap().iter().filter(|finding| !is_load(finding)).collect();
    assert!(others.is_empty(), "{others:#?}");
}

#[test]
fn the_doctor_of_a_user_without_rights_lists_what_is_lost() {
    let output = run(&["doctor"]);
    // 1: something is lacking; 2 would be that it could not look.
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("CAP_SYSLOG") && text.contains("CAP_NET_ADMIN"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
}
