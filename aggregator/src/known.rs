//! All that is known now, in one place: what the agents said and what the API server said. Followers write it,
//! diagnosis and the HTTP API read it. A change marks its node and wakes whoever judges.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::gather::AgentView;
use crate::watch::ClusterView;

/// What is known of every node.
#[derive(Default)]
pub(crate) struct Known {
    /// By the node's name; only nodes whose agent is followed.
    pub(crate) agents: BTreeMap<String, AgentView>,
    /// What the API server said.
    pub(crate) cluster: ClusterView,
}

impl Known {
    /// Every node that an agent or the API server speaks of.
    pub(crate) fn nodes(&self) -> BTreeSet<String> {
        let mut names: BTreeSet<String> = self.agents.keys().cloned().collect();
        names.extend(self.cluster.nodes().map(str::to_owned));
        names
    }
}

/// [`Known`], shared, with which nodes changed since the last look.
#[derive(Default)]
pub(crate) struct Shared {
    known: Mutex<Known>,
    changed: Mutex<BTreeSet<String>>,
    wake: Notify,
}

impl Shared {
    /// Reads, or changes without waking anybody. Never hold it over an await.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Known> {
        // A thread that died while it wrote leaves the newest view that there is.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that these nodes changed.
    pub(crate) fn wake(&self, nodes: impl IntoIterator<Item = String>) {
        let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        changed.extend(nodes);
        if !changed.is_empty() {
            self.wake.notify_one();
        }
    }

    /// Waits until a node changed.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// The nodes that changed since this was last asked.
    pub(crate) fn take_changed(&self) -> BTreeSet<String> {
        std::mem::take(&mut *self.changed.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
