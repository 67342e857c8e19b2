//! Watches the API server: Nodes, their Leases, and the Events on Nodes. It only reads, and only where it was asked.

mod follow;
mod object;
mod view;

use std::time::Duration;

use anyhow::Context;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

pub(crate) use follow::Follower;
use follow::Kind;
use object::{EventObject, LeaseObject, NodeObject};
pub(crate) use view::{ClusterView, Watched};

use crate::ClusterAddress;

#[cfg(test)]
pub(crate) use object::{EventObject as TestEvent, LeaseObject as TestLease, NodeObject as TestNode};

/// A client for the cluster that was named.
///
/// # Errors
/// The kubeconfig can't be read, or has no such context.
pub(crate) async fn client(address: &ClusterAddress) -> anyhow::Result<Client> {
    let kubeconfig = match &address.kubeconfig {
        Some(path) => Kubeconfig::read_from(path).with_context(|| {
            format!("reading the kubeconfig {}: name another with --kubeconfig", path.display())
        })?,
        None => Kubeconfig::read()
            .context("reading the kubeconfig at $KUBECONFIG or ~/.kube/config: name one with --kubeconfig")?,
    };
    let context = address.context.clone().or_else(|| kubeconfig.current_context.clone());
    let known: Vec<String> = kubeconfig.contexts.iter().map(|context| context.name.clone()).collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    let options = KubeConfigOptions { context: address.context.clone(), ..KubeConfigOptions::default() };
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.with_context(|| {
        format!(
            "using the context {} of the kubeconfig, which has {known}: name one with --context",
            context.as_deref().unwrap_or("(none is current)")
        )
    })?;
    config.connect_timeout = Some(Duration::from_secs(5));
    tracing::info!(
        server = %config.cluster_url,
        context = context.as_deref().unwrap_or("none"),
        "watching this cluster; nodewhy only reads from it"
    );
    // It may run a credential plugin, and waits for it.
    let made = tokio::task::spawn_blocking(move || Client::try_from(config)).await;
    made.context("making a client for the API server")?.context(
        "making a client for the API server: do the credentials that the kubeconfig names work with kubectl?",
    )
}

/// Watches all that is watched, for ever.
pub(crate) async fn follow(follower: Follower<'_>) {
    let nodes: Kind<NodeObject> = Kind {
        name: "nodes",
        path: "/api/v1/nodes",
        fields: None,
        channel: |watched| &mut watched.nodes_channel,
        list: Watched::list_nodes,
        apply: Watched::apply_node,
        delete: Watched::delete_node,
    };
    let leases: Kind<LeaseObject> = Kind {
        name: "leases",
        path: "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases",
        fields: None,
        channel: |watched| &mut watched.leases_channel,
        list: Watched::list_leases,
        apply: Watched::apply_lease,
        delete: Watched::delete_lease,
    };
    let events: Kind<EventObject> = Kind {
        name: "events",
        path: "/api/v1/events",
        fields: Some("involvedObject.kind=Node"),
        channel: |watched| &mut watched.events_channel,
        list: Watched::list_events,
        apply: Watched::apply_event,
        delete: Watched::delete_event,
    };
    tokio::join!(follower.follow(&nodes), follower.follow(&leases), follower.follow(&events));
}
