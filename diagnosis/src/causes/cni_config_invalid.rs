use crate::network;
use crate::signs::{NETWORK_NOT_READY, against, standing};
use crate::{Answer, Case, Cause, Link, NodeCase, Scope, Unready};

pub(super) static CAUSE: Cause = Cause {
    id: "cni_config_invalid",
    title: "The CNI configuration can't be loaded, so the runtime has no pod network",
    about: "\
The runtime takes the first file of its CNI folder in lexical order. If that file can't be loaded, the runtime has no \
network, whatever good files follow. It reports NetworkReady=false, and the kubelet sets Ready to False within 15 s.

It is seen by reading that first file as the runtime does, and in lastCNILoadStatus (\"failed to load CNI config\").

It is confused with a missing configuration: the API's text, \"cni plugin not initialized\", is the same for both. An \
invalid file alone is not yet this cause: while the runtime says NetworkReady=true it works with what it loaded before.

Repair or remove the first file. A leftover of an earlier network plugin with a lower number is the usual reason. \
Write it in place: containerd does not notice a file that is moved in by rename. The node cannot know who wrote it.",
    scope: Scope::Node,
    leads_to: &[Link::unready(Unready::False(NETWORK_NOT_READY), 0, 15, 60)],
    remedy: &[
        "Repair or remove the first file in /etc/cni/net.d, in lexical order.",
        "crictl info shows lastCNILoadStatus. Repaired and still not loaded: systemctl restart containerd.",
        "Do not replace the node.",
    ],
    check,
};

fn check(_: &Case, node: &NodeCase) -> Answer {
    if let Some(invalid) = standing(node, "cni_config_invalid") {
        let remedy = match invalid.subject.name.as_str() {
            "" => Vec::new(),
            file => vec![
                format!("Repair or remove {file}: the runtime takes the first file in lexical order."),
                "crictl info shows lastCNILoadStatus. Repaired and still not loaded: systemctl restart containerd."
                    .to_owned(),
                "Do not replace the node.".to_owned(),
            ],
        };
        return network::weigh(node, invalid, "the CNI configuration is invalid", remedy);
    }
    match ["cni_config_missing", "cni_config_dir_missing"].iter().find_map(|name| standing(node, name)) {
        Some(missing) => against(missing, "there is no configuration that could be invalid"),
        None => network::no_fault(node, "the CNI configuration, where there is one, can be loaded"),
    }
}

#[cfg(test)]
mod tests {
    use super::CAUSE;
    use crate::made::*;
    use nodewhy_proto::SubjectKind::Cni;

    fn invalid() -> Made {
        well().found("cni", "cni_config_invalid", Cni, "/etc/cni/net.d/00-old.conflist", 10)
    }

    fn network(made: Made) -> Made {
        made.found("runtime", "runtime_network_not_ready", Cni, "NetworkPluginNotReady", 11)
    }

    #[test]
    fn a_first_file_that_cannot_be_loaded_is_yes_and_is_named() {
        let yes = network(invalid()).yes(&CAUSE);
        assert!(yes.remedy[0].contains("/etc/cni/net.d/00-old.conflist"));
        assert_eq!(yes.certainty, 0.9);
    }

    #[test]
    fn a_missing_one_is_no_and_so_is_one_not_loaded_yet() {
        network(well().found("cni", "cni_config_missing", Cni, "/etc/cni/net.d", 10)).no(&CAUSE);
        invalid().no(&CAUSE);
        network(well()).no(&CAUSE);
        well().no(&CAUSE);
    }

    #[test]
    fn it_cannot_be_told_without_the_folder() {
        well().absent("cni").cannot_tell(&CAUSE);
    }
}
