//! What a request asks for: its path, selectors and options.

use serde_json::Value;

use crate::recording::Kind;

/// A request for one object, a list, or a watch of a list.
#[derive(Debug, PartialEq)]
pub(super) struct Asked {
    pub(super) selection: Selection,
    /// One object's name: the answer is the object, not a list.
    pub(super) name: Option<String>,
    pub(super) options: Options,
}

/// Which objects.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Selection {
    pub(super) kind: Kind,
    namespace: Option<String>,
    fields: Vec<FieldSelector>,
}

#[derive(Clone, Debug, PartialEq)]
struct FieldSelector {
    pointer: &'static str,
    value: String,
    equal: bool,
}

/// `ListOptions`, as far as this server knows them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Options {
    pub(super) watch: bool,
    pub(super) resource_version: Option<u64>,
    pub(super) timeout_seconds: Option<u64>,
    pub(super) bookmarks: bool,
    pub(super) send_initial_events: bool,
}

/// Why a request can't be answered: the HTTP status and a message.
pub(super) type Refusal = (u16, String);

impl Asked {
    /// Reads a request's path and query.
    ///
    /// # Errors
    /// An unknown path (404), a selector or an option that this server does not know (400).
    pub(super) fn parse(path: &str, query: &str) -> Result<Asked, Refusal> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let unknown = || (404, "the server could not find the requested resource".to_owned());
        let (kind, namespace, name) = match parts.as_slice() {
            ["api", "v1", "nodes", name @ ..] => (Kind::Node, None, name),
            ["api", "v1", "events"] => (Kind::Event, None, &[][..]),
            ["api", "v1", "namespaces", namespace, "events", name @ ..] => {
                (Kind::Event, Some(*namespace), name)
            }
            ["apis", "coordination.k8s.io", "v1", "leases"] => (Kind::Lease, None, &[][..]),
            ["apis", "coordination.k8s.io", "v1", "namespaces", namespace, "leases", name @ ..] => {
                (Kind::Lease, Some(*namespace), name)
            }
            _ => return Err(unknown()),
        };
        let name = match name {
            [] => None,
            [name] => Some((*name).to_owned()),
            _ => return Err(unknown()),
        };
        let mut asked = Asked {
            selection: Selection { kind, namespace: namespace.map(str::to_owned), fields: Vec::new() },
            name,
            options: Options::default(),
        };
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            asked.option(&key, &value)?;
        }
        Ok(asked)
    }

    fn option(&mut self, key: &str, value: &str) -> Result<(), Refusal> {
        let refused = || (400, format!("this test server does not know {key}={value:?}"));
        let flag = || match value {
            "1" | "true" => Ok(true),
            "0" | "false" => Ok(false),
            _ => Err(refused()),
        };
        let options = &mut self.options;
        match key {
            "watch" => options.watch = flag()?,
            "allowWatchBookmarks" => options.bookmarks = flag()?,
            "sendInitialEvents" => options.send_initial_events = flag()?,
            // Unset and 0 both mean: from whatever there is.
            "resourceVersion" if value.is_empty() || value == "0" => {}
            "resourceVersion" => options.resource_version = Some(value.parse().map_err(|_| refused())?),
            "timeoutSeconds" => options.timeout_seconds = Some(value.parse().map_err(|_| refused())?),
            "fieldSelector" => self.selection.fields = field_selectors(value)?,
            "limit" | "resourceVersionMatch" | "pretty" | "timeout" => {}
            _ if value.is_empty() => {}
            _ => return Err(refused()),
        }
        Ok(())
    }
}

impl Selection {
    /// Whether this object is asked for.
    pub(super) fn takes(&self, kind: Kind, object: &Value) -> bool {
        let field = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        kind == self.kind
            && self.namespace.as_ref().is_none_or(|namespace| namespace == field("/metadata/namespace"))
            && self
                .fields
                .iter()
                .all(|selector| (field(selector.pointer) == selector.value) == selector.equal)
    }
}

fn field_selectors(text: &str) -> Result<Vec<FieldSelector>, Refusal> {
    let unknown = |part: &str| (400, format!("field selector {part:?} is not known to this test server"));
    text.split(',')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (path, value, equal) = if let Some((path, value)) = part.split_once("!=") {
                (path, value, false)
            } else if let Some((path, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (path, value, true)
            } else {
                return Err(unknown(part));
            };
            let pointer = match path {
                "metadata.name" => "/metadata/name",
                "metadata.namespace" => "/metadata/namespace",
                "involvedObject.kind" => "/involvedObject/kind",
                "involvedObject.name" => "/involvedObject/name",
                "involvedObject.namespace" => "/involvedObject/namespace",
                "reason" => "/reason",
                "source" => "/source/component",
                "type" => "/type",
                _ => return Err(unknown(part)),
            };
            Ok(FieldSelector { pointer, value: value.to_owned(), equal })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_options() {
        let asked = Asked::parse(
            "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases",
            "watch=true&timeoutSeconds=290&allowWatchBookmarks=true&resourceVersion=2039&\
             fieldSelector=metadata.name%3Dlab-node1",
        )
        .unwrap();
        assert_eq!(asked.selection.kind, Kind::Lease);
        assert_eq!(asked.name, None);
        assert_eq!(
            asked.options,
            Options {
                watch: true,
                resource_version: Some(2039),
                timeout_seconds: Some(290),
                bookmarks: true,
                send_initial_events: false
            }
        );
        let lease = |name| serde_json::json!({"metadata": {"namespace": "kube-node-lease", "name": name}});
        assert!(asked.selection.takes(Kind::Lease, &lease("lab-node1")));
        assert!(!asked.selection.takes(Kind::Lease, &lease("lab-node2")));
        assert!(!asked.selection.takes(Kind::Node, &lease("lab-node1")));
        assert_eq!(Asked::parse("/api/v1/nodes/a", "").unwrap().name.as_deref(), Some("a"));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert_eq!(Asked::parse("/api/v1/pods", "").unwrap_err().0, 404);
        assert_eq!(Asked::parse("/api/v1/nodes/a/status", "").unwrap_err().0, 404);
        assert_eq!(Asked::parse("/api/v1/nodes", "labelSelector=a%3Db").unwrap_err().0, 400);
        assert_eq!(Asked::parse("/api/v1/nodes", "fieldSelector=spec.x%3Db").unwrap_err().0, 400);
        assert_eq!(Asked::parse("/api/v1/nodes", "resourceVersion=x").unwrap_err().0, 400);
    }
}
