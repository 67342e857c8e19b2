//! Our own slim forms of the API's objects: a Node of 14 KB becomes a few facts at once, and nothing else of it is
//! kept. Every field may be absent: one odd object must not cost the list that it stands in.

use jiff::Timestamp;
use nodewhy_proto::{Condition, ConditionStatus, Fact, FactBody, Lease};
use serde::Deserialize;

/// `metadata`, as far as we need it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Meta {
    #[serde(default)]
    pub(crate) name: Option<String>,
    #[serde(default)]
    pub(crate) uid: Option<String>,
    #[serde(default)]
    pub(crate) resource_version: Option<String>,
}

/// An object with metadata.
pub(crate) trait Object {
    fn meta(&self) -> &Meta;
}

/// A Node.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct NodeObject {
    #[serde(default)]
    metadata: Meta,
    #[serde(default)]
    status: Option<NodeStatus>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeStatus {
    #[serde(default)]
    conditions: Option<Vec<NodeCondition>>,
    #[serde(default)]
    node_info: Option<NodeInfo>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeCondition {
    #[serde(rename = "type", default)]
    kind: Option<String>,
    #[serde(default)]
    status: Option<ConditionStatus>,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    last_transition_time: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct NodeInfo {
    #[serde(rename = "bootID", default)]
    boot_id: Option<String>,
    #[serde(rename = "machineID", default)]
    machine_id: Option<String>,
    #[serde(rename = "kubeletVersion", default)]
    kubelet_version: Option<String>,
}

impl Object for NodeObject {
    fn meta(&self) -> &Meta {
        &self.metadata
    }
}

impl NodeObject {
    /// What it says of itself.
    pub(crate) fn seen(&self) -> FactBody {
        let info = self.status.as_ref().and_then(|status| status.node_info.as_ref());
        FactBody::NodeSeen {
            uid: self.metadata.uid.clone().unwrap_or_else(|| "unknown".to_owned()),
            boot_id: info.and_then(|info| info.boot_id.clone()).filter(|id| !id.is_empty()),
            kubelet_version: info
                .and_then(|info| info.kubelet_version.clone())
                .filter(|version| !version.is_empty()),
        }
    }

    /// `status.nodeInfo.machineID`.
    pub(crate) fn machine_id(&self) -> Option<String> {
        self.status.as_ref()?.node_info.as_ref()?.machine_id.clone().filter(|id| !id.is_empty())
    }

    /// Its conditions; one without a type or a status says nothing.
    pub(crate) fn conditions(&self) -> impl Iterator<Item = Condition> {
        let conditions = self.status.as_ref().and_then(|status| status.conditions.as_ref());
        conditions.into_iter().flatten().filter_map(|condition| {
            Some(Condition {
                kind: condition.kind.clone()?,
                status: condition.status?,
                reason: condition.reason.clone().unwrap_or_default(),
                message: condition.message.clone().unwrap_or_default(),
                last_transition: condition.last_transition_time.as_deref().and_then(time),
            })
        })
    }
}

/// A Lease.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct LeaseObject {
    #[serde(default)]
    metadata: Meta,
    #[serde(default)]
    spec: Option<LeaseSpec>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeaseSpec {
    #[serde(default)]
    renew_time: Option<String>,
    #[serde(default)]
    lease_duration_seconds: Option<u32>,
}

impl Object for LeaseObject {
    fn meta(&self) -> &Meta {
        &self.metadata
    }
}

impl LeaseObject {
    /// When it was renewed; `None` for one that never was, or whose time can't be read.
    pub(crate) fn lease(&self) -> Option<Lease> {
        let spec = self.spec.as_ref()?;
        Some(Lease {
            renew_time: spec.renew_time.as_deref().and_then(time)?,
            duration_seconds: spec.lease_duration_seconds?,
        })
    }
}

/// An Event of core/v1.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EventObject {
    #[serde(default)]
    metadata: Meta,
    #[serde(default)]
    involved_object: Option<Involved>,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    source: Option<EventSource>,
    #[serde(default)]
    reporting_component: Option<String>,
    #[serde(default)]
    count: Option<u32>,
    #[serde(default)]
    first_timestamp: Option<String>,
    #[serde(default)]
    last_timestamp: Option<String>,
    #[serde(default)]
    event_time: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Involved {
    #[serde(default)]
    kind: Option<String>,
    #[serde(default)]
    name: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct EventSource {
    #[serde(default)]
    component: Option<String>,
}

impl Object for EventObject {
    fn meta(&self) -> &Meta {
        &self.metadata
    }
}

impl EventObject {
    /// Which node it is about. The field selector asks for nodes alone; a server that ignores it is not believed.
    pub(crate) fn node(&self) -> Option<&str> {
        let involved = self.involved_object.as_ref()?;
        if involved.kind.as_deref() != Some("Node") {
            return None;
        }
        involved.name.as_deref()
    }

    /// When it last happened, by its writer's clock.
    pub(crate) fn last(&self) -> Option<Timestamp> {
        [&self.last_timestamp, &self.event_time, &self.first_timestamp]
            .into_iter()
            .flatten()
            .find_map(|text| time(text))
    }

    /// What it says.
    pub(crate) fn fact(&self, observed: Timestamp) -> Option<Fact> {
        let component = self.source.as_ref().and_then(|source| source.component.clone());
        let reporter = component.filter(|name| !name.is_empty()).or_else(|| self.reporting_component.clone());
        Some(Fact {
            observed,
            source: format!("Event {}", self.metadata.name.as_deref()?),
            body: FactBody::Event {
                reason: self.reason.clone()?,
                message: self.message.clone().unwrap_or_default(),
                reporter: reporter.unwrap_or_default(),
                // An Event without a count stands for one happening (events.k8s.io has none).
                count: self.count.filter(|count| *count > 0).unwrap_or(1),
            },
        })
    }
}

fn time(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    // The first records of the episode `runtime-down` on kubelet 1.32.6, as kube-apiserver 1.36.2 sent them.
    const NODES: &str = include_str!("../../fixtures/runtime-down/watch-nodes.ndjson");
    const LEASES: &str = include_str!("../../fixtures/runtime-down/watch-leases.ndjson");
    const EVENTS: &str = include_str!("../../fixtures/runtime-down/watch-events.ndjson");

    fn objects<T: serde::de::DeserializeOwned>(text: &str) -> Vec<T> {
        text.lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .map(|line| serde_json::from_value(line["event"]["object"].clone()).unwrap())
            .collect()
    }

    #[test]
    fn a_recorded_node_becomes_facts() {
        let nodes: Vec<NodeObject> = objects(NODES);
        assert_eq!(
            nodes[0].seen(),
            FactBody::NodeSeen {
                uid: "e3465235-f018-4c79-8f7d-2b83cb27f6fc".to_owned(),
                boot_id: Some("0f47e3a5-f320-4fae-b952-6a15905f1e79".to_owned()),
                kubelet_version: Some("v1.32.6".to_owned()),
            }
        );
        let ready =
            |node: &NodeObject| node.conditions().find(|condition| condition.kind == "Ready").unwrap();
        assert_eq!(ready(&nodes[0]).status, ConditionStatus::True);
        let lost = nodes.iter().map(ready).find(|ready| ready.status == ConditionStatus::False).unwrap();
        assert_eq!(lost.reason, "KubeletNotReady");
        assert!(lost.message.contains("container runtime is down"), "{}", lost.message);
    }

    #[test]
    fn a_recorded_lease_and_event_become_facts() {
        let leases: Vec<LeaseObject> = objects(LEASES);
        let lease = leases[0].lease().unwrap();
        assert_eq!(
            lease,
            Lease { renew_time: "2026-11-21T07:55:48.776829Z".parse().unwrap(), duration_seconds: 40 }
        );
        let events: Vec<EventObject> = objects(EVENTS);
        assert_eq!(events[0].node(), Some("lab-node1"));
        assert_eq!(events[0].last(), Some("2026-11-21T07:56:33Z".parse().unwrap()));
        let Some(Fact { body: FactBody::Event { reason, reporter, count, .. }, .. }) =
            events[0].fact(Timestamp::UNIX_EPOCH)
        else {
            panic!("no fact")
        };
        assert_eq!((reason.as_str(), reporter.as_str(), count), ("ContainerGCFailed", "kubelet", 1));
    }

    #[test]
    fn a_time_that_cannot_be_read_is_no_time() {
        let lease: LeaseObject =
            serde_json::from_str(r#"{"spec":{"renewTime":"yesterday","leaseDurationSeconds":40}}"#).unwrap();
        assert_eq!(lease.lease(), None);
        let node: NodeObject =
            serde_json::from_str(r#"{"status":{"conditions":[{"type":"Ready"},{"status":"True"}]}}"#)
                .unwrap();
        assert_eq!(node.conditions().count(), 0);
    }
}
