//! What libcni and go-cni make of a configuration file: containerd's verdict on it, reached the same way.
//!
//! Sources: containernetworking/cni `libcni/conf.go`, containerd/go-cni `opts.go` (the first file in lexical order
//! decides; the others are not looked at). `tests/containerd.rs` holds this against a real containerd.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

/// A configuration that can be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Loaded {
    pub(super) name: String,
    pub(super) cni_version: String,
    /// The programs that it calls, in order, each once: each plugin's `type`, and the `type` of its `ipam`.
    pub(super) plugins: Vec<String>,
}

/// Why a file cannot be judged or loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ConfError {
    /// libcni refuses it.
    #[error("{0}")]
    Invalid(String),
    /// libcni 1.3 takes the plugins from `<folder>/<name>/`; older ones refuse the file.
    #[error("it lists no plugins; libcni 1.3 and later would look for them in the folder {0:?} beside it")]
    NoInlinePlugins(String),
}

fn invalid<T>(why: impl Into<String>) -> Result<T, ConfError> {
    Err(ConfError::Invalid(why.into()))
}

/// One plugin, as Go's `types.NetConf` is: a key that is there must have its type, `null` is as good as none.
#[derive(Deserialize)]
#[expect(dead_code, reason = "the types are what is checked: Go refuses a file in which one is another")]
struct NetConf {
    #[serde(rename = "cniversion")]
    cni_version: Option<String>,
    name: Option<String>,
    r#type: Option<String>,
    capabilities: Option<BTreeMap<String, Option<bool>>>,
    ipam: Option<Value>,
    dns: Option<Dns>,
    prevresult: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "as NetConf")]
struct Dns {
    nameservers: Option<Vec<Option<String>>>,
    domain: Option<String>,
    search: Option<Vec<Option<String>>>,
    options: Option<Vec<Option<String>>>,
}

/// Loads a file by its name's ending: `.conflist` is a list of plugins, anything else one plugin.
pub(super) fn load(file: &str, bytes: &[u8]) -> Result<Loaded, ConfError> {
    // Go's JSON replaces bytes that are not UTF-8; it does not refuse them.
    let text = String::from_utf8_lossy(bytes);
    let value: Value = match serde_json::from_str(&text) {
        Ok(value) => value,
        Err(error) => return invalid(format!("not JSON: {error}")),
    };
    let Value::Object(object) = value else { return invalid("not a JSON object") };
    if file.ends_with(".conflist") { list(&object) } else { single(object) }
}

fn list(object: &Map<String, Value>) -> Result<Loaded, ConfError> {
    let name = match object.get("name") {
        Some(Value::String(name)) => name.clone(),
        Some(_) => return invalid("`name` is not a string"),
        None => return invalid("it has no `name`"),
    };
    let cni_version = match object.get("cniVersion") {
        Some(Value::String(version)) => version.clone(),
        Some(_) => return invalid("`cniVersion` is not a string"),
        None => String::new(),
    };
    if object.get("disableCheck").is_some_and(|value| !value.is_boolean()) {
        return invalid("`disableCheck` is not a boolean");
    }
    let plugins = match object.get("plugins") {
        Some(Value::Array(plugins)) if !plugins.is_empty() => plugins,
        Some(Value::Array(_)) | None => return Err(ConfError::NoInlinePlugins(name)),
        Some(_) => return invalid("`plugins` is not a list"),
    };
    let mut types = Vec::new();
    for (index, plugin) in plugins.iter().enumerate() {
        let Value::Object(plugin) = plugin else {
            return invalid(format!("plugin {index} is not a JSON object"));
        };
        match types_of(plugin.clone()) {
            Ok(found) => found.into_iter().for_each(|found| remember(&mut types, found)),
            Err(error) => return invalid(format!("plugin {index}: {error}")),
        }
    }
    Ok(Loaded { name, cni_version, plugins: types })
}

fn single(object: Map<String, Value>) -> Result<Loaded, ConfError> {
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
    let (name, cni_version) = (text("name"), text("cniVersion"));
    let mut types = Vec::new();
    types_of(object)?.into_iter().for_each(|found| remember(&mut types, found));
    Ok(Loaded { name, cni_version, plugins: types })
}

fn remember(types: &mut Vec<String>, found: String) {
    if !types.contains(&found) {
        types.push(found);
    }
}

/// The programs of one plugin.
fn types_of(object: Map<String, Value>) -> Result<Vec<String>, ConfError> {
    // Go matches the keys of a struct whatever their case.
    let folded: Map<String, Value> =
        object.into_iter().map(|(key, value)| (key.to_ascii_lowercase(), value)).collect();
    let conf: NetConf = match serde_json::from_value(Value::Object(folded)) {
        Ok(conf) => conf,
        Err(error) => return invalid(error.to_string()),
    };
    let Some(kind) = conf.r#type.filter(|kind| !kind.is_empty()) else {
        return invalid("it has no `type`: which program to call is not said");
    };
    let ipam = match conf.ipam {
        Some(Value::Object(ipam)) => match ipam.get("type") {
            Some(Value::String(kind)) => Some(kind.clone()).filter(|kind| !kind.is_empty()),
            Some(Value::Null) | None => None,
            Some(_) => return invalid("`ipam.type` is not a string"),
        },
        Some(Value::Null) | None => None,
        Some(_) => return invalid("`ipam` is not a JSON object"),
    };
    Ok([kind].into_iter().chain(ipam).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // The shape of `cni-conf.json` in flannel's Documentation/kube-flannel.yml.
    const FLANNEL: &str = r#"{"name": "cbr0", "cniVersion": "0.3.1", "plugins": [
        {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
        {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;
    // The shape of `cni_network_config` in calico's manifests/calico.yaml, as its installer writes it.
    const CALICO: &str = r#"{"name": "k8s-pod-network", "cniVersion": "0.3.1", "plugins": [
        {"type": "calico", "log_level": "info", "datastore_type": "kubernetes", "mtu": 1500,
         "ipam": {"type": "calico-ipam"}, "policy": {"type": "k8s"},
         "kubernetes": {"kubeconfig": "/etc/cni/net.d/calico-kubeconfig"}},
        {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}]}"#;
    // The example of the containernetworking/cni README (`10-mynet.conf`).
    const MYNET: &str = r#"{"cniVersion": "0.2.0", "name": "mynet", "type": "bridge", "bridge": "cni0",
        "isGateway": true, "ipMasq": true, "ipam": {"type": "host-local", "subnet": "10.22.0.0/16",
        "routes": [{"dst": "0.0.0.0/0"}]}}"#;

    #[test]
    fn a_list_names_its_plugins_and_their_ipam_once() {
        assert_eq!(load("10-flannel.conflist", FLANNEL.as_bytes()).unwrap().plugins, ["flannel", "portmap"]);
        let calico = load("10-calico.conflist", CALICO.as_bytes()).unwrap();
        assert_eq!(calico.plugins, ["calico", "calico-ipam", "portmap"]);
        assert_eq!((calico.name.as_str(), calico.cni_version.as_str()), ("k8s-pod-network", "0.3.1"));
    }

    #[test]
    fn a_single_plugin_is_taken_from_conf_and_json() {
        for file in ["10-mynet.conf", "10-mynet.json"] {
            assert_eq!(load(file, MYNET.as_bytes()).unwrap().plugins, ["bridge", "host-local"]);
        }
    }

    #[test]
    fn a_list_in_a_conf_file_has_no_type() {
        assert!(matches!(load("10-flannel.conf", FLANNEL.as_bytes()), Err(ConfError::Invalid(_))));
        assert_eq!(
            load("10-mynet.conflist", MYNET.as_bytes()),
            Err(ConfError::NoInlinePlugins("mynet".to_owned()))
        );
    }

    #[test]
    fn every_prefix_is_refused() {
        for text in [FLANNEL, CALICO, MYNET] {
            for cut in 0..text.len() {
                assert!(matches!(load("10.conflist", &text.as_bytes()[..cut]), Err(ConfError::Invalid(_))));
            }
        }
    }

    proptest! {
        #[test]
        fn a_flipped_byte_is_a_value_or_an_error(at in 0..FLANNEL.len(), byte: u8) {
            let mut bytes = FLANNEL.as_bytes().to_vec();
            bytes[at] = byte;
            for file in ["10.conflist", "10.conf"] {
                if let Ok(loaded) = load(file, &bytes) {
                    prop_assert!(!loaded.plugins.is_empty());
                }
            }
        }

        #[test]
        fn any_bytes_are_a_value_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(loaded) = load("10.conf", &bytes) {
                prop_assert!(!loaded.plugins.is_empty());
            }
        }
    }
}
