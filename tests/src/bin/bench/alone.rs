//! Parts of the benchmark in namespaces of their own: this program runs itself again in new network, process and mount
//! namespaces, as their first process. Tables, mounts and processes in there end with it.

use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use nodewhy_agent::host::{Host, Places};
use nodewhy_clock::Clock;

use crate::table::{Row, Table};
use crate::{cgroups, conntrack, iptables, nftables, tasks};

/// The word that the second run knows itself by.
pub(crate) const COMMAND: &str = "alone";

type Part = fn() -> anyhow::Result<Vec<Row>>;

/// What is measured so.
pub(crate) const PARTS: &[(&str, Part)] = &[
    ("conntrack", conntrack::measure),
    ("iptables", iptables::measure),
    ("nftables", nftables::measure),
    ("cgroups", cgroups::measure),
    ("tasks", tasks::measure),
];

/// Runs this part in its namespaces, and takes over its rows.
pub(crate) fn part(part: &str, table: &mut Table) -> anyhow::Result<()> {
    // As on a node, process 2 is called `kthreadd`: by that the agent knows that it sees all processes.
    let folder = tempfile::tempdir()?;
    let second = folder.path().join("kthreadd");
    std::fs::copy("/usr/bin/sleep", &second).context("cannot copy sleep")?;
    // `/run` holds iptables' lock, which is the machine's.
    let script = "\"$0\" 10000 & mount -t tmpfs none /run && exec \"$@\"";
    let output = Command::new("unshare")
        .args(["--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc", "sh", "-ec", script])
        .arg(second)
        .arg(std::env::current_exe()?)
        .args([COMMAND, part])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run unshare (Debian package util-linux)")?;
    ensure!(
        output.status.success(),
        "{part}, in its own namespaces (root is needed), ended with {}",
        output.status
    );
    let rows: Vec<Row> = serde_json::from_slice(&output.stdout).context("the part's rows are no JSON")?;
    rows.into_iter().for_each(|row| table.put(row));
    Ok(())
}

/// The second run: its rows go to the standard output.
pub(crate) fn inside(part: &str) -> anyhow::Result<()> {
    let (_, measure) =
        PARTS.iter().find(|(name, _)| *name == part).with_context(|| format!("{part} is no part"))?;
    println!("{}", serde_json::to_string(&measure()?)?);
    Ok(())
}

/// The node as the agent reads it at its defaults.
pub(crate) fn host() -> Host {
    Host::new("/", Clock::system(), Places::default())
}
