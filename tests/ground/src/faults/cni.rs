//! Faults of the container network: configuration, plugins, addresses, interfaces.

use std::time::Duration;

use anyhow::bail;
use nodewhy_proto::SubjectKind;

use super::runtime::idle_pod;
use crate::fault::{Expect, Fault, Injected, Sees, What};
use crate::node::Node;

const FILE: &str = "/etc/cni/net.d/10-ground.conflist";
/// The one plugin of [`FILE`], as the runtime hands it to the plugin.
const BRIDGE: &str = r#"{"cniVersion": "0.4.0", "name": "ground", "type": "bridge", "bridge": "cni0", "isGateway": true,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/28"}]], "routes": [{"dst": "0.0.0.0/0"}]}}"#;
const LEASES: &str = "/var/lib/cni/networks/ground";
/// A `/28`: 16 addresses less network, broadcast and gateway.
const ADDRESSES: usize = 13;

/// No configuration.
pub static CONFIG_MISSING: Fault = Fault {
    name: "cni-config-missing",
    about: "the CNI configuration is moved away and containerd restarted, as when the agent that writes it is gone",
    cause: "cni_config_missing",
    subject: (SubjectKind::Cni, "/etc/cni/net.d"),
    sees: &[
        Sees::of("cni", What::Finding("cni_config_missing")),
        Sees::of("runtime", What::Finding("runtime_network_not_ready")),
    ],
    diagnosed: Expect::Root,
    // The fault restarts containerd, so for seconds there was none.
    also: &["containerd_dead"],
    inject: |node| {
        let since = node.clocks()?;
        node.sh(&format!("mv {FILE} /var/lib/ground/conflist.kept; systemctl restart containerd"))?;
        Ok(Injected::since(since).proven("ls /etc/cni/net.d", node.sh("ls -la /etc/cni/net.d")?))
    },
    // Copied, not moved: containerd does not notice a file that is renamed into its folder.
    undo: |node| node.sh(&format!("cp /var/lib/ground/conflist.kept {FILE}")).map(drop),
    each_time: true,
    ..Fault::USUAL
};

/// A configuration that can't be loaded.
pub static CONFIG_INVALID: Fault = Fault {
    name: "cni-config-invalid",
    about: "a CNI configuration that is no JSON comes before the good one, and containerd is restarted",
    cause: "cni_config_invalid",
    subject: (SubjectKind::Cni, "00-broken.conflist"),
    sees: &[Sees::of("cni", What::Finding("cni_config_invalid"))],
    diagnosed: Expect::Root,
    also: &["containerd_dead"],
    inject: |node| {
        let since = node.clocks()?;
        node.sh(&format!("head -c 100 {FILE} > /etc/cni/net.d/00-broken.conflist; mv {FILE} /var/lib/ground/conflist.kept; \
                          systemctl restart containerd"))?;
        Ok(Injected::since(since).proven("the file", node.sh("cat /etc/cni/net.d/00-broken.conflist")?))
    },
    undo: |node| {
        node.sh(&format!("rm /etc/cni/net.d/00-broken.conflist; cp /var/lib/ground/conflist.kept {FILE}"))
            .map(drop)
    },
    ..Fault::USUAL
};

/// No plugin.
pub static PLUGIN_MISSING: Fault = Fault {
    name: "cni-plugin-missing",
    about: "the plugin that the CNI configuration names (bridge) is removed from its folder",
    cause: "cni_binary_missing",
    subject: (SubjectKind::Cni, "bridge"),
    sees: &[Sees::of("cni", What::Finding("cni_plugin_missing"))],
    inject: |node| {
        let since = node.clocks()?;
        node.sh("mv /usr/lib/cni/bridge /var/lib/ground/bridge.kept")?;
        let said = refused(node)?;
        Ok(Injected::since(since).proven("making a pod", said))
    },
    undo: |node| node.sh("mv /var/lib/ground/bridge.kept /usr/lib/cni/bridge").map(drop),
    ..Fault::USUAL
};

/// All addresses in use by pods that are there.
pub static IPAM_EXHAUSTED: Fault = Fault {
    name: "ipam-exhausted",
    about: "each address of the node's range belongs to a pod sandbox that is there (made by CNI ADD in its own namespace)",
    cause: "pod_density_limit",
    subject: (SubjectKind::Cni, "ground"),
    sees: &[Sees::of("cni", What::Finding("ipam_exhausted"))],
    inject: |node| {
        node.write("/var/lib/ground/bridge.json", BRIDGE)?;
        let since = node.clocks()?;
        // Real allocations of the real plugin, each for a network namespace that lives.
        node.sh(&format!(
            "i=0; while [ $(ls {LEASES} | grep -c '^10') -lt {ADDRESSES} ]; do i=$((i+1)); ip netns add full$i; \
             CNI_COMMAND=ADD CNI_CONTAINERID=full$i CNI_NETNS=/run/netns/full$i CNI_IFNAME=eth0 CNI_PATH=/usr/lib/cni \
             /usr/lib/cni/bridge < /var/lib/ground/bridge.json >/dev/null; done"
        ))?;
        let said = refused(node)?;
        Ok(Injected::since(since).proven("making one more pod", said))
    },
    undo: |node| {
        node.sh(
            "for n in $(ip netns list | grep -o '^full[0-9]*'); do \
             CNI_COMMAND=DEL CNI_CONTAINERID=$n CNI_NETNS=/run/netns/$n CNI_IFNAME=eth0 CNI_PATH=/usr/lib/cni \
             /usr/lib/cni/bridge < /var/lib/ground/bridge.json; ip netns delete $n; done",
        )
        .map(drop)
    },
    hold: Duration::from_secs(60),
    ..Fault::USUAL
};

/// All addresses taken by pods that are gone.
pub static IPAM_LEAKED: Fault = Fault {
    name: "ipam-leaked",
    about: "each free address of the range is held by a file of host-local whose container no longer exists",
    cause: "ipam_leak_exhausted",
    subject: (SubjectKind::Cni, "ground"),
    sees: &[Sees::of("cni", What::Finding("ipam_leaked"))],
    inject: |node| {
        let since = node.clocks()?;
        node.sh(&format!(
            "cd {LEASES}; for i in $(seq 2 14); do [ -e 10.88.0.$i ] || \
             printf '%064d\\r\\neth0' $i > 10.88.0.$i; done"
        ))?;
        let said = refused(node)?;
        Ok(Injected::since(since).proven("making one more pod", said))
    },
    undo: |node| node.sh(&format!("cd {LEASES}; grep -l '^00000' 10.* | xargs -r rm")).map(drop),
    hold: Duration::from_secs(60),
    ..Fault::USUAL
};

/// A plugin whose agent is gone.
pub static AGENT_SOCKET_GONE: Fault = Fault {
    name: "cni-agent-gone",
    about: "the CNI configuration's plugin asks an agent over its socket (a stand-in for cilium-cni), and the socket is gone",
    cause: "cni_agent_down",
    subject: (SubjectKind::Cni, "/var/run/cilium/cilium.sock"),
    sees: &[Sees::of("cni", What::Finding("cni_agent_down"))],
    inject: |node| {
        // Stands for cilium-cni: it fails with its words when its agent's socket does not answer.
        node.write(
            "/usr/lib/cni/cilium-cni",
            "#!/bin/sh\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\n[ -S /var/run/cilium/cilium.sock ] || { echo '{\"code\": 11, \
             \"msg\": \"unable to connect to Cilium agent: failed to create cilium agent client after 30.000000 seconds timeout: Get \
             \\\"http://localhost/v1/config\\\": dial unix /var/run/cilium/cilium.sock: connect: no such file or directory\"}'; exit 1; }\n",
        )?;
        node.sh(&format!("chmod +x /usr/lib/cni/cilium-cni; cp {FILE} /var/lib/ground/conflist.kept"))?;
        let since = node.write(
            FILE,
            r#"{"cniVersion": "0.3.1", "name": "cilium", "plugins": [{"type": "cilium-cni", "enable-debug": false}]}"#,
        )?;
        std::thread::sleep(std::time::Duration::from_secs(1));
        let said = refused(node)?;
        Ok(Injected::since(since).proven("making a pod", said))
    },
    undo: |node| {
        node.sh(&format!("cp /var/lib/ground/conflist.kept {FILE}; rm /usr/lib/cni/cilium-cni")).map(drop)
    },
    hold: Duration::from_secs(60),
    ..Fault::USUAL
};

/// A pod's interface is gone.
pub static VETH_GONE: Fault = Fault {
    name: "veth-gone",
    about: "the host's end of a running pod's veth pair is deleted",
    cause: "pod_network_lost",
    subject: (SubjectKind::Pod, "web"),
    sees: &[Sees::of("cni", What::Finding("sandbox_network_incomplete"))],
    inject: |node| {
        let since = node.clocks()?;
        let gone = node.sh("v=$(ip -o link show type veth | head -n 1 | sed 's/^[0-9]*: //; s/@.*//'); ip link delete $v; echo $v")?;
        Ok(Injected::since(since)
            .proven("ip link delete", gone)
            .proven("ip -o link show type veth", node.sh("ip -o link show type veth")?))
    },
    // The kubelet would make the sandbox anew; its stand-in does not.
    undo: |_| Ok(()),
    hold: Duration::from_secs(90),
    ..Fault::USUAL
};

/// A namespace that was never made.
pub static NAMESPACE_NEVER_MADE: Fault = Fault {
    name: "netns-never-made",
    about: "/run/netns, where the runtime makes pods' network namespaces, is read-only: none can be made",
    cause: "sandbox_create_failed",
    subject: (SubjectKind::Runtime, "/run/containerd/containerd.sock"),
    sees: &[],
    unseen: Some("failures of making a sandbox (the runtime's log, its metrics) are not read yet"),
    inject: |node| {
        let since = node.clocks()?;
        node.sh("mount -t tmpfs -o ro none /var/run/netns")?;
        let said = refused(node)?;
        Ok(Injected::since(since).proven("making a pod", said))
    },
    undo: |node| node.sh("umount /var/run/netns").map(drop),
    ..Fault::USUAL
};

/// What the runtime says when one more pod is made, which the fault must not let it make.
fn refused(node: &Node) -> anyhow::Result<String> {
    match node.pod(&idle_pod("unlucky")) {
        Ok(made) => bail!("the fault does not hold: a pod was made: {made}"),
        Err(error) => Ok(format!("{error:#}")),
    }
}
