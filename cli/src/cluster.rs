//! Which cluster is watched, said before anything is asked of it. No cluster is ever chosen unasked.

use std::path::PathBuf;

use anyhow::{Context, bail};
use kube::config::Kubeconfig;

/// A context of a kubeconfig, by what people know it by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The context's name.
    pub context: String,
    /// The API server's address; `None`: the kubeconfig has none.
    pub server: Option<String>,
}

impl Chosen {
    /// One line: which cluster, and that it is only read.
    pub fn line(&self) -> String {
        let server = self.server.as_deref().unwrap_or("no server in the kubeconfig");
        format!("cluster: context {} ({server}); nodewhy only reads it", self.context)
    }
}

/// Looks the cluster up that the flags name.
///
/// # Errors
/// The kubeconfig can't be read, or has no such context.
pub fn choose(kubeconfig: Option<&PathBuf>, context: Option<&str>) -> anyhow::Result<Chosen> {
    let (read, place) = match kubeconfig {
        Some(path) => (Kubeconfig::read_from(path), path.display().to_string()),
        None => (Kubeconfig::read(), "KUBECONFIG or ~/.kube/config".to_owned()),
    };
    let config = read.with_context(|| format!("cannot read the kubeconfig ({place})"))?;
    let Some(name) = context.or(config.current_context.as_deref()) else {
        bail!("the kubeconfig ({place}) has no current context: name one with --context");
    };
    let Some(found) = config.contexts.iter().find(|known| known.name == name) else {
        let known: Vec<&str> = config.contexts.iter().map(|known| known.name.as_str()).collect();
        bail!("the kubeconfig ({place}) has no context {name:?}; it has: {}", known.join(", "));
    };
    let cluster = found.context.as_ref().map(|context| context.cluster.as_str());
    let server = config
        .clusters
        .iter()
        .find(|known| Some(known.name.as_str()) == cluster)
        .and_then(|known| known.cluster.as_ref())
        .and_then(|cluster| cluster.server.clone());
    Ok(Chosen { context: name.to_owned(), server })
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made for this test, in the shape of https://kubernetes.io/docs/concepts/configuration/organize-cluster-access-kubeconfig/
    const KUBECONFIG: &str = r#"{"apiVersion":"v1","kind":"Config","current-context":"lab",
        "contexts":[{"name":"lab","context":{"cluster":"lab-cluster","user":"me"}}],
        "clusters":[{"name":"lab-cluster","cluster":{"server":"https://192.0.2.7:6443"}}],
        "users":[{"name":"me","user":{}}]}"#;

    fn kubeconfig() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        std::fs::write(&path, KUBECONFIG).unwrap();
        (folder, path)
    }

    #[test]
    fn the_cluster_is_named() {
        let (_folder, path) = kubeconfig();
        let chosen = choose(Some(&path), None).unwrap();
        assert_eq!(chosen.line(), "cluster: context lab (https://192.0.2.7:6443); nodewhy only reads it");
    }

    #[test]
    fn another_context_is_an_error_that_names_those_there_are() {
        let (_folder, path) = kubeconfig();
        let error = choose(Some(&path), Some("prod")).unwrap_err().to_string();
        assert!(error.contains("no context \"prod\"; it has: lab"), "{error}");
        assert!(choose(Some(&PathBuf::from("/nonexistent")), None).is_err());
    }
}
