//! docs/metrics.md: every metric family, as the code declares it.

use std::fmt::Write;

use crate::board::AGENT;
use crate::collect::COLLECTORS;
use crate::metrics::{Family, Kind};
use crate::serve;

const HEAD: &str = "\
# Metrics

Every metric that `nodewhy-agent` serves at `/metrics`. This page is generated from the code: `make docs` writes it.

The number of series is the same on a node with 10 pods and on one with 250: no label is a pod, a container, a device
or a message, but for the families `nodewhy_pod_…`, which are served only where `per_pod_metrics` is set. What stands
behind a figure is in the API (`/api/v1/state`, and the paths in `/api/v1/openapi.json`).

A value that could not be read has no series; it is never zero for that. A collector whose newest try was no reading has
none of its series, and `nodewhy_collector_outcome` says how that try went.
";

/// Who writes which families: the agent itself, then each collector.
pub fn writers() -> impl Iterator<Item = (&'static str, &'static [&'static Family])> {
    let collectors = COLLECTORS.iter().map(|collector| (collector.name(), collector.families()));
    std::iter::once((AGENT, serve::FAMILIES)).chain(collectors)
}

/// The page.
pub fn markdown() -> String {
    let mut page = HEAD.to_owned();
    for (writer, families) in writers() {
        // Writing to a String cannot fail.
        let written = section(writer, families, &mut page);
        debug_assert!(written.is_ok());
    }
    page
}

fn section(writer: &str, families: &[&Family], page: &mut String) -> std::fmt::Result {
    writeln!(page, "\n## {writer}\n")?;
    if families.is_empty() {
        return writeln!(page, "None: what it reads is in the API alone.");
    }
    writeln!(page, "| metric | type | labels | what it is |\n| --- | --- | --- | --- |")?;
    for family in families {
        let kind = match family.kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
        };
        let labels: Vec<String> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        let help = family.help.replace('|', "\\|");
        writeln!(page, "| `{}` | {kind} | {} | {help} |", family.name, labels.join(" "))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn families_are_each_declared_once_and_named_as_prometheus_would_have_it() {
        let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
        for (writer, families) in writers() {
            for family in families {
                let name = family.name;
                assert!(seen.insert(name, writer).is_none(), "{name}: {} and {writer}", seen[name]);
                assert!(name.starts_with("nodewhy_") || writer == AGENT, "{name}");
                assert_eq!(name.ends_with("_total"), family.kind == Kind::Counter, "{name}");
                assert!(family.help.ends_with('.'), "{name}: its help is no sentence: {}", family.help);
            }
        }
    }

    #[test]
    fn no_label_has_as_many_values_as_the_node_has_pods() {
        const UNBOUNDED: &[&str] = &[
            "pod",
            "pod_uid",
            "uid",
            "namespace",
            "container",
            "container_id",
            "id",
            "image",
            "device",
            "disk",
            "mountpoint",
            "mount",
            "path",
            "interface",
            "pid",
            "comm",
            "name",
            "message",
            "error",
            "address",
            "ip",
            "port",
        ];
        for (writer, families) in writers() {
            // Off unless it is asked for: those are of pods by their very name.
            for family in families.iter().filter(|family| !family.name.starts_with("nodewhy_pod_")) {
                let unbounded = family.labels.iter().find(|label| UNBOUNDED.contains(label));
                assert_eq!(unbounded, None, "{} of {writer}: series must be bounded a node", family.name);
            }
        }
    }
}
