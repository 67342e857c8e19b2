//! What one collector learned of the node and others need too: who is the kubelet, which pod is behind an id. Each says
//! it when it knows it; who finds nothing here goes without, or looks by itself.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

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

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Known {
    pods: RwLock<Option<Arc<Pods>>>,
    kubelet: RwLock<Option<Process>>,
    runtime: RwLock<Option<Process>>,
    thresholds: RwLock<Option<Arc<Thresholds>>>,
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
        get(&self.known.pods)
    }

    /// Said by the collector of the runtime after each list.
    pub fn learn_pods(&self, pods: Pods) {
        set(&self.known.pods, Some(Arc::new(pods)));
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
