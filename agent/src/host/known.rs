//! What one collector learned of the node and others need too: who is the kubelet, which pod is behind an id. Each says
//! it when it knows it; who finds nothing here goes without, or looks by itself.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use super::Host;
use super::process::Process;
use crate::thresholds::Thresholds;

/// A pod's name.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// The pods of the node, as the runtime labels them. They outlive a runtime that answers no more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pods {
    /// By the pod's UID.
    pub names: BTreeMap<String, PodName>,
    /// The container's name and its pod's UID, by the container's id.
    pub containers: BTreeMap<String, (String, String)>,
    /// The pod's UID, by the sandbox' id, and whether the runtime says that it is ready.
    pub sandboxes: BTreeMap<String, (String, bool)>,
}

/// What the runtime says of a sandbox' network.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct SandboxNetwork {
    /// Its first process, by the host's numbers.
    pub pid: Option<u32>,
    /// Where its network namespace is bound: `/var/run/netns/cni-…`. `None` where it is not told.
    pub netns: Option<String>,
    /// It uses the node's own network: there is nothing to set up. `None`: not told.
    pub is_hosts: Option<bool>,
    /// The host's interfaces that CNI made for it, by the runtime's record of its result.
    pub host_interfaces: Vec<String>,
    /// Its addresses, by the same record.
    pub addresses: Vec<String>,
}

/// The networks of sandboxes by their id, and when that was known.
pub type SandboxNetworks = BTreeMap<String, SandboxNetwork>;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Known {
    pods: RwLock<Option<(Arc<Pods>, Duration)>>,
    networks: RwLock<Option<Arc<SandboxNetworks>>>,
    pleg_is_suspected: RwLock<bool>,
    kubelet: RwLock<Option<Process>>,
    runtime: RwLock<Option<Process>>,
    thresholds: RwLock<Option<Arc<Thresholds>>>,
    pub(super) starts: super::confined::Starts,
}

fn get<T: Clone>(place: &RwLock<T>) -> T {
    place.read().unwrap_or_else(PoisonError::into_inner).clone()
}

fn set<T>(place: &RwLock<T>, value: T) {
    *place.write().unwrap_or_else(PoisonError::into_inner) = value;
}

impl Host {
    /// The pods by the runtime's newest answer; `None`: it has never answered.
    pub fn pods(&self) -> Option<Arc<Pods>> {
        get(&self.known.pods).map(|(pods, _)| pods)
    }

    /// How long ago the runtime last said which pods there are; `None`: never.
    pub fn pods_age(&self) -> Option<Duration> {
        get(&self.known.pods).map(|(_, at)| self.clock.since_boot().saturating_sub(at))
    }

    /// The networks of the sandboxes that the runtime was asked about; `None`: none yet.
    pub fn sandbox_networks(&self) -> Option<Arc<SandboxNetworks>> {
        get(&self.known.networks)
    }

    /// Said by the collector of the runtime.
    pub fn learn_sandbox_networks(&self, networks: SandboxNetworks) {
        set(&self.known.networks, Some(Arc::new(networks)));
    }

    /// Whether the kubelet's own relist looks stuck, by its metrics.
    pub fn pleg_is_suspected(&self) -> bool {
        get(&self.known.pleg_is_suspected)
    }

    /// Said by the collector of the kubelet.
    pub fn suspect_pleg(&self, is_suspected: bool) {
        set(&self.known.pleg_is_suspected, is_suspected);
    }

    /// Said by the collector of the runtime after each list.
    pub fn learn_pods(&self, pods: Pods) {
        set(&self.known.pods, Some((Arc::new(pods), self.clock.since_boot())));
    }

    /// The kubelet's process as it was last seen; it may have ended since.
    pub fn kubelet_process(&self) -> Option<Process> {
        get(&self.known.kubelet)
    }

    /// Said by the collector of the kubelet.
    pub fn learn_kubelet_process(&self, process: Option<Process>) {
        set(&self.known.kubelet, process);
    }

    /// The runtime's process as it was last seen; it may have ended since.
    pub fn runtime_process(&self) -> Option<Process> {
        get(&self.known.runtime)
    }

    /// Said by the collector of the runtime.
    pub fn learn_runtime_process(&self, process: Option<Process>) {
        set(&self.known.runtime, process);
    }

    /// What `detect` is held against, for a reading that tells how far away it is; `None`: not known yet.
    pub fn thresholds(&self) -> Option<Arc<Thresholds>> {
        get(&self.known.thresholds)
    }

    /// Said by who follows the kubelet's settings.
    pub fn learn_thresholds(&self, thresholds: Thresholds) {
        set(&self.known.thresholds, Some(Arc::new(thresholds)));
    }
}
