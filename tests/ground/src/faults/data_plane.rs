//! Faults of what carries packets: conntrack, the rules of services, neighbours, softirqs.

use std::time::Duration;

use anyhow::{Context, ensure};
use nodewhy_proto::SubjectKind;

use super::network::namespace;
use super::tasks::{harm, kernel_said};
use crate::fault::{Fault, Injected, Sees, What};
use crate::node::Node;

const NODE: (SubjectKind, &str) = (SubjectKind::Node, "ground");
/// For rules by the hundred thousand: an emulated machine takes a minute.
const VERY_LONG: Duration = Duration::from_secs(400);

/// The connection table is full.
pub static CONNTRACK_FULL: Fault = Fault {
    name: "conntrack-full",
    about: "nf_conntrack_max is 400, and real TCP connections to a server in a network namespace, established and assured, \
            fill the table of the node's own namespace",
    cause: "conntrack_full",
    subject: NODE,
    // The kubelet is well: new connections are refused to everybody, on the loopback device too.
    sees: &[
        Sees::of("oom", What::KernelMessage("conntrack_table_full")),
        Sees::of("kubelet", What::Finding("kubelet_healthz_hung")),
        Sees::of("conntrack", What::Finding("conntrack_table_full")),
    ],
    inject: |node| {
        namespace(node, "peer", "10.99.1")?;
        harm(
            node,
            "server",
            "-p NetworkNamespacePath=/run/netns/peer -p LimitNOFILE=65536",
            "serve 10.99.1.1:7000 --silent",
        )?;
        // The rule that kube-proxy begins KUBE-FORWARD with. It is what makes the kernel track connections.
        node.sh("iptables-legacy -A INPUT -m conntrack --ctstate INVALID -j DROP; \
             echo 400 > /proc/sys/net/netfilter/nf_conntrack_max")?;
        // The table is full before the kernel says so: it does when the next packet comes.
        let since = node.clocks()?;
        let (_, said) =
            harm(node, "flows", "-p LimitNOFILE=65536", "flows --to 10.99.1.1:7000 --count 1000")?;
        let (_, line) = kernel_said(node, "nf_conntrack: table full")?;
        Ok(Injected::since(since)
            .proven("hurt flows", said)
            .proven("dmesg", line)
            .proven(
                "nf_conntrack_count and nf_conntrack_max",
                node.sh("cd /proc/sys/net/netfilter; grep . nf_conntrack_count nf_conntrack_max")?,
            )
            .proven(
                "conntrack -L, established and assured",
                node.sh("conntrack -L 2>/dev/null | grep ESTABLISHED | grep -c ASSURED")?,
            )
            .proven("conntrack -S", node.sh("conntrack -S")?))
    },
    undo: |node| {
        node.write("/proc/sys/net/netfilter/nf_conntrack_max", "262144")?;
        node.heal("flows")?;
        node.heal("server")?;
        node.sh("iptables-legacy -D INPUT -m conntrack --ctstate INVALID -j DROP; ip link delete peer; ip netns delete peer")
            .map(drop)
    },
    hold: Duration::from_secs(20),
    each_time: true,
    ..Fault::USUAL
};

/// Rules of kube-proxy's mode `iptables`, on the legacy backend, for 50,000 services with one endpoint each,
/// and without --cluster-cidr (which would make a fifth rule a service: more than a node of 1 GiB can take).
const LEGACY: &str = r#"BEGIN {
  print "*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]"
  for (i = 0; i < n; i++) printf ":KUBE-SVC-%016X - [0:0]\n:KUBE-SEP-%016X - [0:0]\n", i, i
  print "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES"
  print "-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES"
  print "-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING"
  print "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000"
  print "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN"
  print "-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0"
  print "-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully"
  for (i = 0; i < n; i++) {
    name = "shop/s" i ":http"; ip = address(96, i); endpoint = address(200, i)
    printf "-A KUBE-SERVICES -d %s/32 -p tcp -m comment --comment \"%s cluster IP\" -m tcp --dport 80 -j KUBE-SVC-%016X\n", ip, name, i
    printf "-A KUBE-SVC-%016X -m comment --comment \"%s -> %s:8080\" -j KUBE-SEP-%016X\n", i, name, endpoint, i
    printf "-A KUBE-SEP-%016X -s %s/32 -m comment --comment \"%s\" -j KUBE-MARK-MASQ\n", i, endpoint, name
    printf "-A KUBE-SEP-%016X -p tcp -m comment --comment \"%s\" -m tcp -j DNAT --to-destination %s:8080\n", i, name, endpoint
  }
  print "COMMIT"
}"#;

/// What both writers of rules share: the address of a service or an endpoint.
const ADDRESS: &str = "function address(second, i) { return sprintf(\"10.%d.%d.%d\", second + int(i / 65536), int(i / 256) % 256, i % 256) }\n";

/// Far too many services for iptables.
pub static SERVICES_LEGACY: Fault = Fault {
    name: "services-iptables-50000",
    about: "50,000 services with an endpoint each in legacy iptables: 200,000 rules of kube-proxy's shape in table nat",
    cause: "kube_services_explosion",
    subject: NODE,
    sees: &[Sees::of("netfilter", What::Finding("service_rules_many"))],
    inject: |node| {
        let since = node.clocks()?;
        let took = rules(node, LEGACY, 50_000, "iptables-legacy-restore --noflush < /var/lib/ground/rules")?;
        let asked = long(
            node,
            "a=$(cut -d ' ' -f 1 /proc/uptime); iptables-legacy-save -t nat > /var/lib/ground/rules; \
             b=$(cut -d ' ' -f 1 /proc/uptime); grep -c '^-A KUBE-SERVICES' /var/lib/ground/rules; grep -c ^-A /var/lib/ground/rules; \
             echo \"from $a to $b s\"; rm /var/lib/ground/rules",
        )?;
        Ok(Injected::since(since)
            .proven("writing them", took)
            .proven("iptables-legacy-save -t nat: rules in KUBE-SERVICES, rules, time", asked))
    },
    // At once: each command of iptables' takes the whole table out of the kernel and puts it back.
    undo: |node| long(node, "printf '*nat\\nCOMMIT\\n' | iptables-legacy-restore").map(drop),
    hold: Duration::from_secs(60),
    ..Fault::USUAL
};

/// Rules of kube-proxy's mode `nftables`, as `nft list` shows them. The first 1,000 services have an endpoint, each with
/// its two chains; the others have none, and are an element of `no-endpoint-services`, as kube-proxy writes them.
const NFT: &str = r#"function endpoint(i) { return sprintf("endpoint-%08X-shop/s%d/tcp/http__%s/8080", i, i, address(200, i)) }
function service(i) { return sprintf("service-%08X-shop/s%d/tcp/http", i, i) }
BEGIN {
  full = 1000
  print "table ip kube-proxy {"
  print "set cluster-ips { type ipv4_addr; elements = {"
  for (i = 0; i < n; i++) printf "%s,\n", address(96, i)
  print "} }"
  print "chain reject-chain { reject\n}\nchain mark-for-masquerade { meta mark set meta mark or 0x4000\n}"
  for (i = 0; i < full; i++) {
    printf "chain %s {\nip saddr %s jump mark-for-masquerade\nmeta l4proto tcp dnat to %s:8080\n}\n", endpoint(i), address(200, i), address(200, i)
    printf "chain %s {\nip daddr %s tcp dport 80 ip saddr != 10.88.0.0/28 jump mark-for-masquerade\n", service(i), address(96, i)
    printf "numgen random mod 1 vmap { 0 : goto %s }\n}\n", endpoint(i)
  }
  print "map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; elements = {"
  for (i = 0; i < full; i++) printf "%s . tcp . 80 : goto %s,\n", address(96, i), service(i)
  print "} }\nmap no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; elements = {"
  for (i = full; i < n; i++) printf "%s . tcp . 80 : goto reject-chain,\n", address(96, i)
  print "} }"
  print "chain services { ip daddr . meta l4proto . th dport vmap @service-ips\n}"
  print "chain service-endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services\n}"
  print "chain filter-output { type filter hook output priority -110; policy accept; ct state new jump service-endpoints-check\n}"
  print "chain filter-forward { type filter hook forward priority -110; policy accept; ct state new jump service-endpoints-check\n}"
  print "chain nat-prerouting { type nat hook prerouting priority dstnat; policy accept; jump services\n}"
  print "chain nat-output { type nat hook output priority -100; policy accept; jump services\n}"
  print "}"
}"#;

/// As many services in nftables.
pub static SERVICES_NFT: Fault = Fault {
    name: "services-nft-50000",
    about: "50,000 services in nftables as kube-proxy's mode nftables writes them: 1,000 with an endpoint and their chains \
            (50,000 such take the emulated machine seven minutes), 49,000 without",
    cause: "kube_services_explosion",
    subject: NODE,
    sees: &[Sees::of("netfilter", What::Finding("service_rules_many"))],
    inject: |node| {
        let since = node.clocks()?;
        let took = rules(node, NFT, 50_000, "nft -f /var/lib/ground/rules")?;
        let asked = long(
            node,
            "a=$(cut -d ' ' -f 1 /proc/uptime); nft list table ip kube-proxy > /var/lib/ground/rules; \
             b=$(cut -d ' ' -f 1 /proc/uptime); grep -c 'chain .* {$' /var/lib/ground/rules; grep -o 'tcp . 80 : goto' /var/lib/ground/rules | wc -l; \
             echo \"from $a to $b s\"; rm /var/lib/ground/rules",
        )?;
        Ok(Injected::since(since)
            .proven("writing them", took)
            .proven("nft list table ip kube-proxy: chains, services in its maps, time", asked))
    },
    undo: |node| long(node, "nft delete table ip kube-proxy").map(drop),
    hold: Duration::from_secs(60),
    ..Fault::USUAL
};

/// The lock of all writers of rules is held.
pub static XTABLES_LOCK: Fault = Fault {
    name: "xtables-lock-held",
    about: "a process holds the lock /run/xtables.lock for 30 s, as an iptables that hangs does: kube-proxy's can't write",
    cause: "xtables_lock_held",
    subject: NODE,
    sees: &[Sees::of("netfilter", What::Finding("xtables_lock_held"))],
    inject: |node| {
        let since = node.clocks()?;
        node.sh("systemd-run --quiet --collect --unit=hurt-lock flock -x /run/xtables.lock sleep 30")?;
        node.until(Duration::from_secs(5), "the lock is held", |node| {
            Ok(node.output("flock -n /run/xtables.lock true")?.code != 0)
        })?;
        let refused =
            node.says("iptables-legacy -w 5 -t nat -A PREROUTING -j ACCEPT || echo exit code $?")?;
        ensure!(refused.contains("exit code 4"), "iptables-legacy had the lock: {refused}");
        Ok(Injected::since(since).proven("iptables-legacy -w 5", refused).proven(
            "/proc/locks, and the lock's inode",
            node.sh("cat /proc/locks; stat -c %i /run/xtables.lock")?,
        ))
    },
    undo: |node| node.heal("lock"),
    hold: Duration::from_secs(30),
    ..Fault::USUAL
};

/// Too many neighbours.
pub static NEIGHBOURS: Fault = Fault {
    name: "neighbour-overflow",
    about: "gc_thresh3 of the neighbour table is 64, and packets go to 200 addresses of one link",
    cause: "neighbor_overflow",
    subject: NODE,
    sees: &[
        Sees::of("oom", What::KernelMessage("neighbor_table_overflow")),
        Sees::of("network", What::Finding("neighbour_table_full")),
    ],
    inject: |node| {
        namespace(node, "peer", "10.99.1")?;
        node.sh("cd /proc/sys/net/ipv4/neigh/default; \
             echo 16 > gc_thresh1; echo 32 > gc_thresh2; echo 64 > gc_thresh3")?;
        let to: String = (2..202).map(|last| format!(" --to 10.99.1.{last}:7000")).collect();
        harm(node, "packets", "", &format!("udp --rate 200{to}"))?;
        let (since, line) = kernel_said(node, "neighbor table overflow")?;
        Ok(Injected::since(since)
            .proven("dmesg", line)
            .proven("ip neigh", node.sh("ip -4 neigh show dev peer | awk '{print $NF}' | sort | uniq -c")?)
            .proven("hurt udp", node.sh("tail -n 1 /run/hurt-packets.ready")?))
    },
    undo: |node| {
        node.heal("packets")?;
        node.sh(
            "cd /proc/sys/net/ipv4/neigh/default; echo 1024 > gc_thresh3; echo 512 > gc_thresh2; echo 128 > gc_thresh1; \
             ip link delete peer; ip netns delete peer",
        )
        .map(drop)
    },
    hold: Duration::from_secs(40),
    ..Fault::USUAL
};

/// More packets than a processor takes.
pub static SOFTIRQ_STORM: Fault = Fault {
    name: "softirq-storm",
    about: "the kernel's pktgen sends at full speed over a veth pair, and one processor's softirqs receive it all",
    cause: "softirq_packet_storm",
    subject: NODE,
    sees: &[Sees::of("network", What::Finding("packet_storm"))],
    inject: |node| {
        namespace(node, "storm", "10.99.3")?;
        let mac = node.sh("ip -n storm -br link show dev eth0 | awk '{print $3}'")?;
        let settings = [
            "count 0",
            "clone_skb 0",
            "pkt_size 64",
            "delay 0",
            "dst 10.99.3.1",
            &format!("dst_mac {}", mac.trim()),
        ];
        let set: String =
            settings.iter().map(|line| format!("echo '{line}' > /proc/net/pktgen/storm; ")).collect();
        // Received on the other processor than it is sent from: there it is nothing but softirq.
        node.sh(&format!(
            "ip netns exec storm sh -c 'echo 2 > /sys/class/net/eth0/queues/rx-0/rps_cpus'; modprobe pktgen; \
             echo 'add_device storm' > /proc/net/pktgen/kpktgend_0; {set}"
        ))?;
        let before = node.sh(SOFTIRQS)?;
        let since = node.clocks()?;
        node.sh(
            "systemd-run --quiet --collect --unit=hurt-storm sh -c 'echo start > /proc/net/pktgen/pgctrl'",
        )?;
        std::thread::sleep(Duration::from_secs(4));
        let after = node.sh(SOFTIRQS)?;
        Ok(Injected::since(since)
            .proven("/proc/net/softnet_stat and CPU ticks of ksoftirqd before", before)
            .proven("the same 4 s later", after))
    },
    undo: |node| {
        node.sh("echo stop > /proc/net/pktgen/pgctrl; sleep 1; rmmod pktgen; ip link delete storm; ip netns delete storm")
            .map(drop)
    },
    hold: Duration::from_secs(30),
    ..Fault::USUAL
};

/// packets, dropped, time_squeeze of each processor (hexadecimal), and what each ksoftirqd used.
const SOFTIRQS: &str = "cut -d ' ' -f 1-3 /proc/net/softnet_stat; \
    for p in $(pgrep ksoftirqd); do awk '{print $2, \"ticks\", $14 + $15}' /proc/$p/stat; done; cut -d ' ' -f 1 /proc/uptime";

/// Writes so many services' rules to `/var/lib/ground/rules` and has them taken; how large they were, and how long it took.
fn rules(node: &Node, program: &str, services: u32, take: &str) -> anyhow::Result<String> {
    node.write("/var/lib/ground/rules.awk", &format!("{ADDRESS}{program}\n"))?;
    long(
        node,
        &format!(
            "awk -v n={services} -f /var/lib/ground/rules.awk > /var/lib/ground/rules; a=$(cut -d ' ' -f 1 /proc/uptime); {take}; \
             b=$(cut -d ' ' -f 1 /proc/uptime); wc -lc /var/lib/ground/rules; echo \"from $a to $b s\""
        ),
    )
}

/// A script that takes longer than others.
fn long(node: &Node, script: &str) -> anyhow::Result<String> {
    let output = node.guest()?.run_for(&["/bin/sh", "-ec", script], b"", VERY_LONG)?;
    output.text().map_err(anyhow::Error::msg).with_context(|| format!("on the node: {script}"))
}
