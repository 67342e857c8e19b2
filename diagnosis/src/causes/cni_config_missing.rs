use crate::network;
use crate::signs::{NETWORK_NOT_READY, against, standing};
use crate::{Answer, Case, Cause, Link, NodeCase, Scope, Unready};

pub(super) static CAUSE: Cause = Cause {
    id: "cni_config_missing",
    title: "No CNI configuration is there, so the runtime has no pod network",
    about: "\
The folder that the runtime reads its network configuration from has no .conf, .conflist or .json file. The runtime \
then reports NetworkReady=false, and the kubelet sets Ready to False within 15 s.

It is seen in the folder, in the CRI's NetworkReady condition and in lastCNILoadStatus (\"no network config found\"). \
The API says \"cni plugin not initialized\"; older kubelets say \"cni config uninitialized\".

It is confused with an invalid configuration, for which the API's text is the same, and with a file that is there, \
valid, and not loaded: containerd does not notice one that was moved in by rename. An empty folder alone is not yet \
this cause: while the runtime says NetworkReady=true it works with what it has loaded, until it reads again or is \
restarted. Each start of a kubelet passes through this message for seconds: no fault.

Start the CNI's agent on this node; it writes the file. Only the API server knows why the agent's DaemonSet has no pod \
here. A common reason: the DaemonSet does not tolerate the not-ready taint that its own absence causes.",
    scope: Scope::Node,
    leads_to: &[Link::unready(Unready::False(NETWORK_NOT_READY), 0, 15, 60)],
    remedy: &[
        "Start the CNI's agent on this node (its DaemonSet's pod); it writes the configuration.",
        "crictl info shows lastCNILoadStatus. Written and still not loaded: systemctl restart containerd.",
        "Do not replace the node.",
    ],
    check,
};

fn check(_: &Case, node: &NodeCase) -> Answer {
    if let Some(invalid) = standing(node, "cni_config_invalid") {
        return against(invalid, "a configuration is there, and can't be loaded");
    }
    let missing =
        ["cni_config_missing", "cni_config_dir_missing"].iter().find_map(|name| standing(node, name));
    match missing {
        Some(missing) => network::weigh(node, missing, "no CNI configuration", Vec::new()),
        None => network::no_fault(node, "a CNI configuration is in the folder and can be loaded"),
    }
}

#[cfg(test)]
mod tests {
    use super::CAUSE;
    use crate::made::*;
    use nodewhy_proto::{ConditionStatus, SubjectKind::Cni};

    // Recorded on kubelet 1.36.2 and containerd 2.1.9.
    const SAID: &str = "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady \
                        message:Network plugin returns error: cni plugin not initialized";

    fn empty(second: i64) -> Made {
        well().found("cni", "cni_config_missing", Cni, "/etc/cni/net.d", second)
    }

    fn network(made: Made, second: i64) -> Made {
        made.found("runtime", "runtime_network_not_ready", Cni, "NetworkPluginNotReady", second)
    }

    #[test]
    fn an_empty_folder_and_a_runtime_without_network_is_yes() {
        assert_eq!(network(empty(10), 11).yes(&CAUSE).certainty, 0.9);
        let said = network(empty(10), 11).ready(20, ConditionStatus::False, SAID);
        assert_eq!(said.yes(&CAUSE).certainty, 0.95);
        // The kubelet's word counts where the runtime can't be asked.
        empty(10).failed("runtime").ready(20, ConditionStatus::False, SAID).yes(&CAUSE);
    }

    #[test]
    fn a_configuration_kept_in_memory_takes_the_network_when_it_is_let_go() {
        assert_eq!(network(empty(-500), 11).yes(&CAUSE).since, Some(at(11)));
    }

    #[test]
    fn an_empty_folder_under_a_runtime_that_has_its_network_is_not_yet() {
        assert!(empty(10).no(&CAUSE).contains("network is ready"));
    }

    #[test]
    fn a_file_that_is_invalid_or_valid_and_not_loaded_is_no() {
        let invalid = network(well().found("cni", "cni_config_invalid", Cni, "10-a.conflist", 10), 11);
        invalid.no(&CAUSE);
        assert!(network(well(), 11).no(&CAUSE).contains("another reason"));
        assert!(network(empty(90), 10).no(&CAUSE).contains("long before"));
    }

    #[test]
    fn it_cannot_be_told_without_the_runtimes_word_or_the_folder() {
        assert!(empty(10).absent("runtime").cannot_tell(&CAUSE).contains("runtime: absent"));
        assert!(network(well().failed("cni"), 11).cannot_tell(&CAUSE).contains("cni: failed"));
    }
}
