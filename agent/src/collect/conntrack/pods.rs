//! Which pod has which address: by the results that CNI's library keeps of every attachment that containerd and CRI-O
//! make (libcni/api.go, `cachedInfo`), so that no runtime need answer.

use std::collections::HashMap;
use std::net::IpAddr;

use serde::Deserialize;

use crate::host::{Host, ReadError};

const RESULTS: &str = "/var/lib/cni/results";
/// A node has at most some hundred pods; a folder with more holds leftovers, which say nothing of the living.
const MOST_FILES: usize = 4000;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cached {
    container_id: String,
    #[serde(default)]
    cni_args: Vec<(String, String)>,
    result: Attached,
}

#[derive(Deserialize)]
struct Attached {
    #[serde(default)]
    ips: Vec<Address>,
}

#[derive(Deserialize)]
struct Address {
    /// With the prefix' length: `10.88.0.5/16`.
    address: String,
}

/// Addresses with `namespace/name` of their pods.
pub(super) fn addresses(host: &Host) -> Result<HashMap<IpAddr, String>, ReadError> {
    let files = match host.list(RESULTS) {
        Ok(files) => files,
        Err(ReadError::NotFound { .. }) => {
            return Err(ReadError::absent(format!(
                "{RESULTS} does not exist: pods' addresses are not known"
            )));
        }
        Err(error) => return Err(error),
    };
    if files.len() > MOST_FILES {
        return Err(ReadError::Other(format!(
            "{RESULTS} has {} files: more than can be living pods",
            files.len()
        )));
    }
    let living = host.pods();
    let mut found = HashMap::new();
    for file in files {
        // One that is being written, or is not of this form, costs only itself.
        let Some(cached) = host.read(format!("{RESULTS}/{file}")).ok().and_then(|text| parse(&text)) else {
            continue;
        };
        // An address may be given to the next pod before the last one's result is removed.
        let is_dead = |pods: &crate::host::known::Pods| !pods.sandboxes.contains_key(&cached.container_id);
        if living.as_deref().is_some_and(is_dead) {
            continue;
        }
        let by_runtime = living.as_deref().and_then(|pods| {
            let (uid, _) = pods.sandboxes.get(&cached.container_id)?;
            pods.names.get(uid).map(|pod| format!("{}/{}", pod.namespace, pod.name))
        });
        let Some(name) = by_runtime.or_else(|| cached.pod()) else { continue };
        for address in cached.addresses() {
            found.insert(address, name.clone());
        }
    }
    Ok(found)
}

fn parse(text: &str) -> Option<Cached> {
    serde_json::from_str(text).ok()
}

impl Cached {
    fn pod(&self) -> Option<String> {
        let argument = |wanted: &str| {
            let found = self.cni_args.iter().find(|(name, _)| name == wanted)?;
            Some(found.1.as_str()).filter(|value| !value.is_empty())
        };
        Some(format!("{}/{}", argument("K8S_POD_NAMESPACE")?, argument("K8S_POD_NAME")?))
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.result.ips.iter().filter_map(|ip| ip.address.split('/').next()?.parse().ok())
    }
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    let cached = parse(&crate::fuzz::text(bytes));
    crate::fuzz::done(cached.map(|cached| (cached.pod(), cached.addresses().count())));
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nodewhy_clock::Clock;

    use super::*;
    use crate::host::Places;
    use crate::host::known::{PodName, Pods};

    // /var/lib/cni/results/lab-default-lab1-eth0, recorded from `ctr run --cni` of containerd 1.6.20, Debian 12. The CRI's
    // own sandboxes have `cniArgs` besides: pairs of names and values (libcni/api.go).
    const RECORDED: &str = include_str!("../../../fixtures/conntrack/containerd-1.6.20-cni-result.json");

    fn found(text: &str, pods: Option<Pods>) -> HashMap<IpAddr, String> {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("var/lib/cni/results");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("lab-default-lab1-eth0"), text).unwrap();
        fs::write(folder.join("lab-cut-eth0"), &text[..text.len() / 2]).unwrap();
        let host = Host::new(root.path(), Clock::system(), Places::default());
        if let Some(pods) = pods {
            host.learn_pods(pods);
        }
        addresses(&host).unwrap()
    }

    fn living(sandbox: &str) -> Pods {
        let mut pods = Pods::default();
        let name = PodName { namespace: "shop".to_owned(), name: "cart-0".to_owned() };
        pods.names.insert("uid".to_owned(), name);
        pods.sandboxes.insert(sandbox.to_owned(), ("uid".to_owned(), true));
        pods
    }

    #[test]
    fn an_address_is_the_pods_that_the_runtime_names() {
        let address = IpAddr::from([10, 88, 0, 2]);
        assert_eq!(
            found(RECORDED, Some(living("default-lab1"))),
            [(address, "shop/cart-0".to_owned())].into()
        );
        assert!(found(RECORDED, Some(living("another"))).is_empty(), "a sandbox that is gone");
        assert!(found(RECORDED, None).is_empty(), "nobody names it");
    }

    #[test]
    fn without_a_runtime_the_arguments_of_the_attachment_name_it() {
        let arguments = r#""cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","shop"],["K8S_POD_NAME","cart-0"]],"ifName""#;
        let text = RECORDED.replace(r#""ifName""#, arguments);
        assert_eq!(found(&text, None)[&IpAddr::from([10, 88, 0, 2])], "shop/cart-0");
    }

    #[test]
    fn no_folder_is_no_node_without_pods() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), Clock::system(), Places::default());
        assert!(matches!(addresses(&host), Err(ReadError::Absent { .. })));
    }
}
