//! Faults between the kubelet and its API server.
//!
//! Neither is here. A server in a network namespace of its own, at `10.99.0.1:6443`, stands for the API server: only for
//! its address and for a TCP connection that is kept. A process called `kubelet`, in kubelet.service's cgroup, stands for
//! the kubelet's connection: it says a line each second, as the kubelet renews its Lease. Neither speaks TLS or HTTP/2.

use std::time::Duration;

use anyhow::ensure;
use nix::libc::SIGKILL;
use nodewhy_proto::SubjectKind;

use super::tasks::harm;
use crate::fault::{Expect, Fault, Injected, Sees, What};
use crate::node::Node;

const API: (SubjectKind, &str) = (SubjectKind::Kubelet, "10.99.0.1:6443");
const CONNECTIONS: &str = "ss -tnoi state all dst 10.99.0.1";
const DIAL: &str =
    "r=0; busybox timeout 4 busybox nc -w 3 10.99.0.1 6443 </dev/null || r=$?; echo exit code $r";

/// The way to the API server is cut.
pub static API_UNREACHABLE: Fault = Fault {
    name: "api-unreachable",
    about: "the link to the API server's address goes down on its far side: the connection dies, and no new one is made",
    cause: "node_api_partition",
    subject: API,
    sees: &[Sees::of("api_server", What::Finding("api_server_unreachable"))],
    diagnosed: Expect::NotYet("it is concluded from the API's facts, by exclusion, and there are none here"),
    inject: |node| {
        api_server(node, "")?;
        kubelet_connection(node)?;
        let before = node.says(DIAL)?;
        let since = node.clocks()?;
        node.sh("ip -n api link set eth0 down")?;
        let dial = node.says(DIAL)?;
        ensure!(before.contains("code 0") && !dial.contains("code 0"), "before: {before}; after: {dial}");
        Ok(Injected::since(since).proven("dialling it", dial).proven(CONNECTIONS, node.sh(CONNECTIONS)?))
    },
    undo: |node| node.sh("ip -n api link set eth0 up").and_then(|_| away(node)),
    hold: Duration::from_secs(60),
    ..Fault::USUAL
};

/// The API server answers, far too late.
pub static API_SLOW: Fault = Fault {
    name: "api-slow",
    about: "the API server's stand-in answers each request after 8 s",
    cause: "apiserver_overloaded",
    subject: API,
    sees: &[Sees::of("api_server", What::Finding("api_server_slow"))],
    inject: |node| {
        let since = node.clocks()?;
        api_server(node, "--slow-ms 8000")?;
        as_the_kubelet(
            node,
            "while :; do (exec -a wget /run/ground/kubelet -q -O /dev/null http://10.99.0.1:6443/healthz) || sleep 1; done",
        )?;
        let took = node
            .sh("a=$(cut -d ' ' -f 1 /proc/uptime); busybox wget -q -O - http://10.99.0.1:6443/healthz; \
             b=$(cut -d ' ' -f 1 /proc/uptime); echo \"from $a to $b s\"")?;
        Ok(Injected::since(since)
            .proven("GET /healthz of it", took)
            .proven(CONNECTIONS, node.sh(CONNECTIONS)?))
    },
    undo: away,
    hold: Duration::from_secs(60),
    ..Fault::USUAL
};

/// A connection that is dead and does not know it.
pub static API_CONNECTION_DEAD: Fault = Fault {
    name: "api-connection-dead",
    about: "the packets of the kubelet's one established connection are dropped silently on the far side, as when a load \
            balancer forgot it: what it sends is never acknowledged, while new connections are made at once",
    cause: "stale_api_connection",
    subject: API,
    sees: &[Sees::of("api_server", What::Finding("stale_api_connection"))],
    inject: |node| {
        api_server(node, "")?;
        kubelet_connection(node)?;
        let since = node.clocks()?;
        node.sh(
            "port=$(ss -tnH state established dst 10.99.0.1 | awk '{print $3}' | sed 's/.*://'); \
             tc -n api qdisc add dev eth0 ingress; \
             tc -n api filter add dev eth0 parent ffff: protocol ip u32 match ip protocol 6 0xff match ip sport $port 0xffff action drop",
        )?;
        node.until(Duration::from_secs(20), "bytes are unacknowledged", |node| {
            Ok(node.sh("ss -tnH state established dst 10.99.0.1 | awk '$2 > 10'")?.contains("10.99.0.1"))
        })?;
        let said = node.sh(CONNECTIONS)?;
        let dial = node.says(DIAL)?;
        ensure!(dial.contains("code 0"), "a new connection is not made: {dial}");
        Ok(Injected::since(since).proven(CONNECTIONS, said).proven("dialling it anew", dial))
    },
    undo: |node| node.sh("tc -n api qdisc del dev eth0 ingress").and_then(|_| away(node)),
    hold: Duration::from_secs(60),
    ..Fault::USUAL
};

/// The API server's stand-in, in a namespace of its own behind a veth pair.
fn api_server(node: &Node, how: &str) -> anyhow::Result<()> {
    namespace(node, "api", "10.99.0")?;
    harm(node, "api", "-p NetworkNamespacePath=/run/netns/api", &format!("serve 10.99.0.1:6443 {how}"))
        .map(drop)
}

/// A namespace with the address NET.1 behind a veth pair, whose other end, here, is called as it and has NET.254.
pub(super) fn namespace(node: &Node, name: &str, net: &str) -> anyhow::Result<()> {
    node.sh(&format!(
        "ip netns add {name}; ip link add {name} type veth peer name eth0 netns {name}; \
         ip addr add {net}.254/24 dev {name}; ip link set {name} up; \
         ip -n {name} addr add {net}.1/24 dev eth0; ip -n {name} link set lo up; ip -n {name} link set eth0 up"
    ))
    .map(drop)
}

/// Runs a script of bash's, the program of whose processes `/run/ground/kubelet` (busybox) has the kubelet's name, and
/// takes them into the kubelet's cgroup.
fn as_the_kubelet(node: &Node, script: &str) -> anyhow::Result<()> {
    node.sh("mkdir -p /run/ground; cp /usr/bin/busybox /run/ground/kubelet")?;
    // The cgroup is the first thing: a process is made in its parent's. systemd made it the leader of its process group.
    let whole = format!(
        "echo $$ > /run/ground/client.pid\necho $$ > /sys/fs/cgroup/system.slice/kubelet.service/cgroup.procs\n{script}\n"
    );
    node.write("/run/ground/client", &whole)?;
    node.sh(
        "systemd-run --quiet --collect --unit=hurt-client -p StandardOutput=null -p StandardError=null bash -e /run/ground/client",
    )?;
    node.until(Duration::from_secs(10), "the kubelet's connection is there", |node| {
        Ok(!node.sh("ss -tnH state established dst 10.99.0.1")?.is_empty())
    })?;
    node.sh("grep -q kubelet.service /proc/$(cat /run/ground/client.pid)/cgroup").map(drop)
}

/// One connection that stays, with a line each second.
fn kubelet_connection(node: &Node) -> anyhow::Result<()> {
    as_the_kubelet(
        node,
        "while :; do echo renew; sleep 1; done | (exec -a nc /run/ground/kubelet 10.99.0.1 6443)",
    )
}

fn away(node: &mut Node) -> anyhow::Result<()> {
    // Its processes are in the kubelet's cgroup: its own unit no longer has them.
    let leader: i32 = node.read("/run/ground/client.pid")?.trim().parse()?;
    node.guest()?.kill(-leader, SIGKILL)?;
    node.heal("api")?;
    node.sh("ip link delete api; ip netns delete api").map(drop)
}
