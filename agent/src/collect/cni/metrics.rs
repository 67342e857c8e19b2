//! CNI as metrics. Pure.

use super::{FolderState, Reading};
use crate::metrics::{Family, Sink};

static CONFIGURED: Family = Family::gauge(
    "nodewhy_cni_configured",
    "Whether the CNI folder holds a configuration that can be loaded. Whether the runtime did is \
     nodewhy_runtime_condition.",
);
static PLUGINS_MISSING: Family = Family::gauge(
    "nodewhy_cni_plugins_missing",
    "Plugins of the CNI configuration whose program is missing or not executable.",
);

static ADDRESSES: Family =
    Family::gauge("nodewhy_cni_addresses", "Addresses that host-local can give on this node.")
        .by(&["network"]);
static ALLOCATED: Family =
    Family::gauge("nodewhy_cni_addresses_allocated", "Addresses that host-local has given.").by(&["network"]);
static LEAKED: Family = Family::gauge(
    "nodewhy_cni_addresses_leaked",
    "Addresses that are held for containers that the runtime does not know; absent while it has not answered lately.",
)
.by(&["network"]);
static AGENT_THINGS_MISSING: Family = Family::gauge(
    "nodewhy_cni_agent_files_missing",
    "Files and sockets of the network plugin's agent that the plugin needs and that are not there.",
);
static SANDBOXES: Family = Family::gauge(
    "nodewhy_cni_sandboxes",
    "Sandboxes with a network of their own, by whether all steps of its set-up are there.",
)
.by(&["state"]);
static NAMESPACES: Family = Family::gauge(
    "nodewhy_cni_namespaces",
    "Network namespaces that the runtime made for CNI and that have a name.",
);
static UNCLAIMED: Family = Family::gauge(
    "nodewhy_cni_namespaces_unclaimed",
    "Of those, the ones that have been there for a minute and are no known sandbox'.",
);

pub(super) static FAMILIES: &[&Family] = &[
    &CONFIGURED,
    &PLUGINS_MISSING,
    &ADDRESSES,
    &ALLOCATED,
    &LEAKED,
    &AGENT_THINGS_MISSING,
    &SANDBOXES,
    &NAMESPACES,
    &UNCLAIMED,
];

fn beyond(reading: &Reading, sink: &mut Sink) {
    for network in &reading.allocations {
        let name = network.network.as_str();
        sink.put_some(&ADDRESSES, &[name], network.size);
        sink.put(&ALLOCATED, &[name], network.allocated as f64);
        sink.put_some(&LEAKED, &[name], network.leaked.map(|leaked| leaked as f64));
    }
    if let Some(agent) = &reading.agent {
        let missing = agent.things.iter().filter(|thing| matches!(thing.state, "missing" | "refused"));
        sink.put(&AGENT_THINGS_MISSING, &[], missing.count() as f64);
    }
    let sandboxes = &reading.sandboxes;
    if sandboxes.unknown.is_none() {
        let whole = sandboxes.looked_at.saturating_sub(sandboxes.incomplete);
        sink.put(&SANDBOXES, &["complete"], whole as f64);
        sink.put(&SANDBOXES, &["incomplete"], sandboxes.incomplete as f64);
    }
    sink.put_some(&NAMESPACES, &[], sandboxes.namespaces.map(|count| count as f64));
    sink.put_some(&UNCLAIMED, &[], sandboxes.namespaces_unclaimed.map(|count| count as f64));
}

pub(super) fn metrics(reading: &Reading, sink: &mut Sink) {
    beyond(reading, sink);
    let configured = match reading.state {
        FolderState::Configured => Some(1.0),
        FolderState::Empty | FolderState::Invalid | FolderState::Gone => Some(0.0),
        FolderState::CannotTell => None,
    };
    sink.put_some(&CONFIGURED, &[], configured);
    if reading.state == FolderState::Configured {
        let missing =
            reading.plugins.iter().filter(|plugin| matches!(plugin.state, "missing" | "not_executable"));
        sink.put(&PLUGINS_MISSING, &[], missing.count() as f64);
    }
}
