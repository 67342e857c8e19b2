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
