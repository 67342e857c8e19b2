use std::os::unix::fs::PermissionsExt;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nodewhy_clock::Clock;
use tempfile::TempDir;

use super::*;
use crate::collector::{Abnormal, Noticed, Pair};
use crate::host::Places;
use crate::thresholds::Thresholds;

// The shape of `cni-conf.json` in flannel's Documentation/kube-flannel.yml.
const FLANNEL: &str = r#"{"name": "cbr0", "cniVersion": "0.3.1", "plugins": [
    {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
    {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;

struct Node {
    root: TempDir,
    host: Host,
}

impl Node {
    fn new() -> Node {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), Clock::system(), Places::default());
        let node = Node { root, host };
        // flannel's agent has written its file.
        node.put("run/flannel/subnet.env", "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n");
        node
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn program(&self, path: &str) {
        self.put(path, "#!");
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(self.root.path().join(path), mode).unwrap();
    }

    fn configured() -> Node {
        let node = Node::new();
        node.put("etc/cni/net.d/10-flannel.conflist", FLANNEL);
        node.program("opt/cni/bin/flannel");
        node.program("usr/lib/cni/portmap");
        node
    }

    fn read(&self, source: &mut Source) -> (Reading, Vec<Abnormal>) {
        let reading = read(source, &self.host).unwrap();
        let mut noticed = Noticed::default();
        let pair = Pair { before: None, now: &reading, at: self.host.clock().stamp() };
        detect(pair, &Thresholds::default(), &mut noticed);
        (reading, noticed.states)
    }

    fn once(&self) -> (Reading, Vec<(&'static str, String)>) {
        let (reading, states) = self.read(&mut open(&self.host).unwrap());
        (reading, states.into_iter().map(|state| (state.finding, state.subject.name)).collect())
    }
}

#[test]
fn a_good_configuration_has_no_findings() {
    let (reading, states) = Node::configured().once();
    assert_eq!(states, []);
    assert_eq!(reading.state, FolderState::Configured);
    assert_eq!(reading.network.as_deref(), Some("cbr0"));
    assert_eq!(reading.plugins[1].path.as_deref(), Some("/usr/lib/cni/portmap"));
}

#[test]
fn a_machine_without_kubelet_runtime_and_cni_is_absent() {
    let bare = Node::new();
    assert!(matches!(read(&mut open(&bare.host).unwrap(), &bare.host), Err(ReadError::Absent { .. })));
    std::fs::create_dir_all(bare.root.path().join("etc/cni/net.d")).unwrap();
    assert!(matches!(read(&mut open(&bare.host).unwrap(), &bare.host), Err(ReadError::Absent { .. })));
}

#[test]
fn dockers_containerd_expects_no_network() {
    let node = Node::new();
    node.put("run/containerd/containerd.sock", "");
    node.put("etc/containerd/config.toml", "disabled_plugins = [\"cri\"]\n");
    assert!(matches!(read(&mut open(&node.host).unwrap(), &node.host), Err(ReadError::Absent { .. })));
}

#[test]
fn debians_docker_expects_no_network_until_a_kubelet_comes() {
    let node = Node::new();
    node.put("run/containerd/containerd.sock", "");
    node.put("run/docker.sock", "");
    assert!(matches!(read(&mut open(&node.host).unwrap(), &node.host), Err(ReadError::Absent { .. })));
    node.put("var/lib/kubelet/config.yaml", "");
    assert_eq!(node.once().1, [("cni_config_dir_missing", "/etc/cni/net.d".to_owned())]);
}

#[test]
fn missing_invalid_and_gone_are_told_apart() {
    let node = Node::configured();
    let mut source = open(&node.host).unwrap();
    let finding = |states: &[Abnormal]| states.iter().map(|state| state.finding).collect::<Vec<_>>();
    assert_eq!(finding(&node.read(&mut source).1), [""; 0]);
    // Half a file, as a writer that was killed leaves it.
    node.put("etc/cni/net.d/10-flannel.conflist", &FLANNEL[..FLANNEL.len() / 2]);
    let (reading, states) = node.read(&mut source);
    assert_eq!(
        (finding(&states), states[0].subject.name.as_str()),
        (vec!["cni_config_invalid"], "10-flannel.conflist")
    );
    assert_eq!(reading.files[0].state, FileState::Invalid);
    let dir = node.root.path().join("etc/cni/net.d");
    std::fs::remove_file(dir.join("10-flannel.conflist")).unwrap();
    assert_eq!(finding(&node.read(&mut source).1), ["cni_config_missing"]);
    std::fs::remove_dir(&dir).unwrap();
    assert_eq!(finding(&node.read(&mut source).1), ["cni_config_dir_missing"]);
    node.put("etc/cni/net.d/10-flannel.conflist", FLANNEL);
    assert_eq!(finding(&node.read(&mut source).1), [""; 0]);
}

#[test]
fn a_kubelet_or_a_runtime_makes_it_expected() {
    let node = Node::new();
    node.put("run/containerd/containerd.sock", "");
    let (reading, states) = node.once();
    assert_eq!(states, [("cni_config_dir_missing", "/etc/cni/net.d".to_owned())]);
    assert_eq!(reading.expected_because, "a runtime is here: /run/containerd/containerd.sock");
    let node = Node::new();
    crate::host::process::made::process(node.root.path(), 734, "kubelet", 'S');
    node.put("etc/cni/net.d/README", "");
    assert_eq!(node.once().1, [("cni_config_missing", "/etc/cni/net.d".to_owned())]);
}

#[test]
fn the_first_in_lexical_order_decides_and_secrets_are_not_opened() {
    let node = Node::configured();
    node.put("etc/cni/net.d/05-broken.conf", "{}");
    node.put("etc/cni/net.d/calico-kubeconfig", "token: secret");
    let (reading, states) = node.once();
    assert_eq!(states, [("cni_config_invalid", "05-broken.conf".to_owned())]);
    let files: Vec<_> = reading.files.iter().map(|file| (file.name.as_str(), file.state)).collect();
    assert_eq!(
        files,
        [
            ("05-broken.conf", FileState::Invalid),
            ("10-flannel.conflist", FileState::NotLookedAt),
            ("calico-kubeconfig", FileState::Other)
        ]
    );
    let json = serde_json::to_string(&reading).unwrap();
    assert!(!json.contains("secret"));
}

#[test]
fn cri_o_passes_over_what_it_cannot_load() {
    let node = Node::configured();
    node.put("etc/cni/net.d/05-broken.conf", "{}");
    node.put("run/crio/crio.sock", "");
    let (reading, states) = node.once();
    assert_eq!(states, []);
    assert_eq!(reading.file.as_deref(), Some("10-flannel.conflist"));
}

#[test]
fn a_plugin_that_cannot_be_called_is_named() {
    let node = Node::configured();
    std::fs::remove_file(node.root.path().join("usr/lib/cni/portmap")).unwrap();
    node.put("opt/cni/bin/portmap", "not executable");
    let (reading, states) = node.once();
    assert_eq!(states, [("cni_plugin_missing", "portmap".to_owned())]);
    assert_eq!(reading.plugins[1].state, "not_executable");
    std::fs::remove_file(node.root.path().join("opt/cni/bin/portmap")).unwrap();
    assert_eq!(node.once().0.plugins[1].state, "missing");
    // A link out of this root: whether it leads somewhere can't be seen from here, so nothing is claimed.
    std::os::unix::fs::symlink("/no/such/place/portmap", node.root.path().join("opt/cni/bin/portmap"))
        .unwrap();
    let (reading, states) = node.once();
    assert_eq!((reading.plugins[1].state, states), ("cannot_tell", vec![]));
}

#[test]
fn a_list_whose_plugins_stand_in_a_folder_is_not_judged() {
    let node = Node::new();
    node.put("etc/cni/net.d/10-a.conflist", r#"{"name": "a", "cniVersion": "1.1.0"}"#);
    assert_eq!(node.once().1, [("cni_config_invalid", "10-a.conflist".to_owned())]);
    node.put("etc/cni/net.d/a/10-bridge.conf", r#"{"type": "bridge"}"#);
    let (reading, states) = node.once();
    assert_eq!((reading.state, states), (FolderState::CannotTell, vec![]));
}

#[test]
fn k3s_writes_its_own_folder() {
    let node = Node::new();
    node.put(
        "var/lib/rancher/k3s/agent/etc/containerd/config.toml",
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/k3s/bin\"\nconf_dir = \"/k3s/net.d\"\n",
    );
    node.put("k3s/net.d/10-flannel.conflist", FLANNEL);
    node.program("k3s/bin/flannel");
    node.program("k3s/bin/portmap");
    let (reading, states) = node.once();
    assert_eq!((reading.dir.as_str(), states), ("/k3s/net.d", vec![]));
}

#[test]
fn a_distribution_that_came_later_moves_the_folder() {
    let node = Node::new();
    std::fs::create_dir_all(node.root.path().join("etc/cni/net.d")).unwrap();
    let mut source = open(&node.host).unwrap();
    assert!(matches!(read(&mut source, &node.host), Err(ReadError::Absent { .. })));
    node.put(
        "etc/k0s/containerd.toml",
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\nconf_dir = \"/k0s/net.d\"\n",
    );
    node.put("k0s/net.d/10-mynet.conf", r#"{"type": "bridge"}"#);
    assert_eq!(node.read(&mut source).0.dir, "/k0s/net.d");
}

#[test]
fn a_pipe_in_the_folder_is_not_waited_for() {
    let node = Node::configured();
    let pipe = node.root.path().join("etc/cni/net.d/00-pipe.conf");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (reading, states) = node.once();
    assert_eq!((reading.state, states), (FolderState::CannotTell, vec![]));
}

#[test]
fn a_folder_of_many_and_large_files_is_bounded() {
    let node = Node::configured();
    for index in 0..100 {
        node.put(&format!("etc/cni/net.d/z{index:03}.conf"), "{}");
    }
    node.put("etc/cni/net.d/00-large.conf", &"x".repeat(2 * 1024 * 1024));
    let (reading, states) = node.once();
    assert_eq!((reading.files.len(), reading.files_left_out), (64, 38));
    assert_eq!((reading.state, states), (FolderState::CannotTell, vec![]));
}

#[test]
fn a_change_wakes_also_after_the_folder_came_back() {
    let node = Node::configured();
    let mut source = open(&node.host).unwrap();
    let is_woken = |source: &Source| {
        let mut fds = [PollFd::new(wake(source).unwrap(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(200_u16)).unwrap() == 1
    };
    node.read(&mut source);
    assert!(!is_woken(&source));
    node.put("etc/cni/net.d/10-flannel.conflist", "{}");
    assert!(is_woken(&source));
    node.read(&mut source);
    assert!(!is_woken(&source));
    std::fs::remove_dir_all(node.root.path().join("etc/cni/net.d")).unwrap();
    assert!(is_woken(&source));
    node.read(&mut source);
    std::fs::create_dir(node.root.path().join("etc/cni/net.d")).unwrap();
    assert!(is_woken(&source));
    node.read(&mut source);
    node.put("etc/cni/net.d/10-flannel.conflist", FLANNEL);
    assert!(is_woken(&source));
}

#[test]
fn a_read_that_failed_forgets_no_configuration() {
    use crate::collector::Collect;
    use nodewhy_proto::Outcome;

    let node = Node::configured();
    let dir = node.root.path().join("etc/cni/net.d");
    let mut running = COLLECTOR.start();
    let mut step = || running.step(&node.host, &Thresholds::default());
    assert_eq!(step().outcome, Outcome::Read);
    std::fs::remove_dir_all(&dir).unwrap();
    std::fs::write(&dir, "no folder").unwrap();
    assert!(matches!(step().outcome, Outcome::Failed { .. }));
    std::fs::remove_file(&dir).unwrap();
    let noticed = step().noticed.expect("it was seen: that it is gone is no absence");
    assert_eq!(noticed.states[0].finding, "cni_config_dir_missing");
}

// The proving ground's own configuration: bridge with host-local, a range of 14 hosts of which the first is the gateway.
const BRIDGE: &str = r#"{"cniVersion": "0.4.0", "name": "ground", "plugins": [{"type": "bridge", "bridge": "cni0",
    "isGateway": true, "ipMasq": true, "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/28"}]]}}]}"#;

fn with_network(conf: &str) -> Node {
    let node = Node::new();
    node.put("etc/cni/net.d/10-ground.conflist", conf);
    for plugin in ["bridge", "host-local", "cilium-cni"] {
        node.program(&format!("opt/cni/bin/{plugin}"));
    }
    node
}

/// An address that has been held for ten minutes, as host-local 1.1.1 writes it.
fn hold(node: &Node, last: u32, id: &str) {
    let path = format!("var/lib/cni/networks/ground/10.88.0.{last}");
    node.put(&path, &format!("{id}\r\neth0"));
    let file = std::fs::File::options().write(true).open(node.root.path().join(path)).unwrap();
    let at = std::time::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    file.set_modified(at).unwrap();
}

fn sandboxes(ids: &[&str]) -> crate::host::known::Pods {
    let mut pods = crate::host::known::Pods::default();
    for id in ids {
        let uid = format!("uid-{id}");
        let name = crate::host::known::PodName { namespace: "default".to_owned(), name: format!("pod-{id}") };
        pods.sandboxes.insert((*id).to_owned(), (uid.clone(), true));
        pods.names.insert(uid, name);
    }
    pods
}

#[test]
fn addresses_are_held_against_the_range_and_the_sandboxes() {
    let node = with_network(BRIDGE);
    let (reading, found) = node.once();
    assert_eq!((reading.allocations.len(), found.len()), (0, 0), "nothing was ever given");

    node.put("var/lib/cni/networks/ground/last_reserved_ip.0", "10.88.0.3");
    node.put("var/lib/cni/networks/ground/lock", "");
    for last in 2..=14 {
        hold(&node, last, &format!("s{last}"));
    }
    let (reading, found) = node.once();
    let network = &reading.allocations[0];
    assert_eq!((network.size, network.allocated, network.leaked), (Some(13.0), 13, None));
    assert_eq!(found, [("ipam_exhausted", "ground".to_owned())], "whose they are is not known");

    // All of them are sandboxes': honest exhaustion.
    let ids: Vec<String> = (2..=14).map(|last| format!("s{last}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    node.host.learn_pods(sandboxes(&ids));
    let (reading, found) = node.once();
    assert_eq!((reading.allocations[0].leaked, found.len()), (Some(0), 1));

    // Two are; eleven are nobody's, and two interfaces live.
    node.host.learn_pods(sandboxes(&["s2", "s3"]));
    for port in ["veth1", "veth2"] {
        node.put(&format!("sys/class/net/cni0/brif/{port}/x"), "");
    }
    let (reading, states) = node.read(&mut open(&node.host).unwrap());
    assert_eq!(reading.allocations[0].leaked, Some(11));
    let names: Vec<_> = states.iter().map(|state| state.finding).collect();
    assert_eq!(names, ["ipam_exhausted", "ipam_leaked"]);
    assert_eq!(states[1].evidence[1].text, "10.88.0.10 is held for s10");
    let page = super::page(&reading).unwrap();
    assert_eq!(page["leaks"]["ground"].as_array().unwrap().len(), 11);
    let mut sink = crate::metrics::Sink::default();
    super::metrics::metrics(&reading, &mut sink);
    let text = sink.encode();
    assert!(text.contains("nodewhy_cni_addresses_leaked{network=\"ground\"} 11"), "{text}");

    // Eleven more interfaces live: somebody has them, whom the runtime does not know.
    for port in 3..=13 {
        node.put(&format!("sys/class/net/cni0/brif/veth{port}/x"), "");
    }
    let (reading, found) = node.once();
    assert_eq!((reading.allocations[0].leaked, found.len()), (Some(0), 1));
}

#[test]
fn an_address_of_a_sandbox_that_is_being_made_is_not_leaked() {
    let node = with_network(BRIDGE);
    node.host.learn_pods(sandboxes(&[]));
    for last in 2..=8 {
        node.put(&format!("var/lib/cni/networks/ground/10.88.0.{last}"), "young\r\neth0");
    }
    let (reading, found) = node.once();
    assert_eq!((reading.allocations[0].leaked, found), (Some(0), Vec::new()));
}

#[test]
fn an_agent_is_missed_only_where_its_plugin_is_configured() {
    let (_, found) = with_network(BRIDGE).once();
    assert_eq!(found, []);
    let node = with_network(
        r#"{"cniVersion": "0.3.1", "name": "cilium", "plugins": [{"type": "cilium-cni", "enable-debug": false}]}"#,
    );
    node.put("proc/1/stat", "");
    let (reading, found) = node.once();
    assert_eq!(found, [("cni_agent_down", "/var/run/cilium/cilium.sock".to_owned())]);
    assert_eq!(reading.agent.unwrap().things[0].state, "missing");
    let socket = node.root.path().join("run/cilium/cilium.sock");
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    assert_eq!(node.once().1, []);
    drop(listener);
    let (reading, found) = node.once();
    assert_eq!((reading.agent.unwrap().things[0].state, found.len()), ("refused", 1));
    // flannel's file.
    let node = Node::configured();
    std::fs::remove_dir_all(node.root.path().join("run/flannel")).unwrap();
    assert_eq!(node.once().1, [("cni_agent_down", "/run/flannel/subnet.env".to_owned())]);
    node.put("run/flannel/subnet.env", "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n");
    hold(&node, 2, "x");
    std::fs::rename(
        node.root.path().join("var/lib/cni/networks/ground"),
        node.root.path().join("var/lib/cni/networks/cbr0"),
    )
    .unwrap();
    let (reading, found) = node.once();
    assert_eq!((reading.allocations[0].size, found.len()), (Some(253.0), 0));
}

#[test]
fn a_process_that_was_seen_and_has_gone_is_an_agent_that_is_down() {
    let node = Node::configured();
    crate::host::process::made::process(node.root.path(), 77, "flanneld", 'S');
    let mut source = open(&node.host).unwrap();
    let (reading, states) = node.read(&mut source);
    assert_eq!((reading.agent.unwrap().process, states.len()), (Some((77, "flanneld".to_owned())), 0));
    std::fs::remove_dir_all(node.root.path().join("proc/77")).unwrap();
    source.beyond.looked = None;
    let (_, states) = node.read(&mut source);
    assert_eq!((states[0].finding, states[0].subject.name.as_str()), ("cni_agent_down", "flannel"));
}

/// The recorded namespace (see sandboxes.rs) as that of process 4711, whose veth is `veth1` on `cni0`.
fn with_sandbox() -> Node {
    let node = with_network(BRIDGE);
    for (file, text) in [
        ("dev", include_str!("../../../fixtures/cni/linux-6.18.44-netns-dev.txt")),
        ("route", include_str!("../../../fixtures/cni/linux-6.18.44-netns-route.txt")),
        ("fib_trie", include_str!("../../../fixtures/cni/linux-6.18.44-netns-fib_trie.txt")),
    ] {
        node.put(&format!("proc/4711/net/{file}"), text);
    }
    node.put("proc/4711/cgroup", "0::/kubepods/burstable/x\n");
    node.put("proc/1/net/dev", "h\nh\n  cni0: 0\n veth1: 0\n");
    node.put("sys/class/net/veth1/master/ifindex", "3\n");
    // The bridge plugin's result names the bridge too, which is a port of nothing.
    node.put("sys/class/net/cni0/bridge/bridge_id", "8000.1a2b3c4d5e6f\n");
    node.put("run/netns/cni-1", "");
    node.host.learn_pods(sandboxes(&["s1"]));
    let network = crate::host::known::SandboxNetwork {
        pid: Some(4711),
        netns: Some("/var/run/netns/cni-1".to_owned()),
        is_hosts: Some(false),
        host_interfaces: vec!["cni0".to_owned(), "veth1".to_owned()],
        addresses: vec!["10.88.0.5".to_owned()],
    };
    node.host.learn_sandbox_networks([("s1".to_owned(), network)].into());
    node
}

#[test]
fn each_step_that_is_missing_is_named() {
    let missing = |node: &Node| {
        let (reading, found) = node.once();
        assert_eq!(found, [], "not at once");
        assert_eq!(reading.sandboxes.looked_at, 1);
        reading.sandboxes.all[0].missing
    };
    assert_eq!(missing(&with_sandbox()), None);
    let node = with_sandbox();
    node.put("proc/4711/net/dev", "h\nh\n    lo: 0\n");
    assert_eq!(missing(&node), Some(Step::Veth));
    let node = with_sandbox();
    node.put("proc/1/net/dev", "h\nh\n  cni0: 0\n");
    assert_eq!(missing(&node), Some(Step::Attachment));
    let node = with_sandbox();
    std::fs::remove_dir_all(node.root.path().join("sys/class/net/veth1/master")).unwrap();
    assert_eq!(missing(&node), Some(Step::Attachment), "no port of the bridge");
    std::fs::remove_dir_all(node.root.path().join("sys/class/net/veth1")).unwrap();
    assert_eq!(missing(&node), None, "a /sys of another namespace says nothing");
    let node = with_sandbox();
    node.put("proc/4711/net/route", "Iface\tDestination\n");
    assert_eq!(missing(&node), Some(Step::Routes));
    node.put("proc/4711/net/fib_trie", "");
    assert_eq!(missing(&node), Some(Step::Address));
    let node = with_sandbox();
    std::fs::rename(node.root.path().join("run/netns/cni-1"), node.root.path().join("run/netns/cni-2"))
        .unwrap();
    assert_eq!(missing(&node), Some(Step::Namespace));
    // Another container has that pid now.
    let node = with_sandbox();
    let id = "b0b795bead51d415fc6af03eca6d9322f073f00f26866ef237845e33f0784586";
    let uid = "c12ef941-6a22-4f38-8101-61b41df7a6b6";
    node.put("proc/4711/cgroup", &format!("0::/kubepods/burstable/pod{uid}/{id}\n"));
    assert_eq!(node.once().0.sandboxes.looked_at, 0);
}

#[test]
fn a_sandbox_without_its_veth_is_a_finding_after_half_a_minute() {
    let (clock, mover) = Clock::skippable();
    let mut node = with_sandbox();
    let (pods, networks) = (node.host.pods().unwrap(), node.host.sandbox_networks().unwrap());
    node.host = Host::new(node.root.path(), clock, Places::default());
    node.host.learn_pods((*pods).clone());
    node.host.learn_sandbox_networks((*networks).clone());
    let mut source = open(&node.host).unwrap();
    assert_eq!(node.read(&mut source).1.len(), 0);
    node.put("proc/4711/net/dev", "h\nh\n    lo: 0\n");
    assert_eq!(node.read(&mut source).1.len(), 0);
    mover.skip(Duration::from_secs(31));
    let (_, states) = node.read(&mut source);
    assert_eq!(
        (states[0].finding, states[0].subject.name.as_str()),
        ("sandbox_network_incomplete", "default/pod-s1")
    );
    assert_eq!(states[0].severity, nodewhy_proto::Severity::Info);
    assert!(states[0].summary.ends_with("its veth pair is gone"), "{}", states[0].summary);
    mover.skip(Duration::from_secs(100));
    assert_eq!(node.read(&mut source).1[0].severity, nodewhy_proto::Severity::Warning);
    node.put("proc/4711/net/dev", include_str!("../../../fixtures/cni/linux-6.18.44-netns-dev.txt"));
    assert_eq!(node.read(&mut source).1.len(), 0);
}

#[test]
fn what_a_tick_costs_is_bounded_with_a_thousand_sandboxes() {
    let node = with_sandbox();
    let one = node.host.sandbox_networks().unwrap()["s1"].clone();
    let ids: Vec<String> = (0..1000).map(|id| format!("s{id:04}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    node.host.learn_pods(sandboxes(&ids));
    node.host.learn_sandbox_networks(ids.iter().map(|id| ((*id).to_owned(), one.clone())).collect());
    let mut source = open(&node.host).unwrap();
    for ticks in 1..=4 {
        assert_eq!(node.read(&mut source).0.sandboxes.looked_at, ticks * 8);
    }
    let json = serde_json::to_string(&node.read(&mut source).0).unwrap();
    assert!(json.len() < 8000, "{}", json.len());
}

#[test]
fn a_namespace_that_is_bound_elsewhere_has_its_name() {
    // containerd's `netns_mounts_under_state_dir`, and the form that CRI-O had without `manage_ns_lifecycle`.
    for elsewhere in ["/run/containerd/io.containerd.grpc.v1.cri/netns/cni-9", "/proc/4711/ns/net"] {
        let node = with_sandbox();
        let mut networks = (*node.host.sandbox_networks().unwrap()).clone();
        networks.get_mut("s1").unwrap().netns = Some(elsewhere.to_owned());
        node.host.learn_sandbox_networks(networks);
        assert_eq!(node.once().0.sandboxes.all[0].missing, None, "{elsewhere}");
    }
}

#[test]
fn a_distributions_folder_of_configurations_comes_with_its_folders_of_plugins() {
    let node = Node::new();
    // OpenShift's multus; CRI-O's own configuration names both folders, and is not read.
    let conf = r#"{"cniVersion": "0.3.1", "name": "multus-cni-network", "type": "multus-shim"}"#;
    node.put("etc/kubernetes/cni/net.d/00-multus.conf", conf);
    node.put("run/crio/crio.sock", "");
    node.program("var/lib/cni/bin/multus-shim");
    let (reading, states) = node.once();
    assert_eq!((reading.dir.as_str(), states), ("/etc/kubernetes/cni/net.d", Vec::new()));
    assert_eq!(reading.plugins[0].path.as_deref(), Some("/var/lib/cni/bin/multus-shim"));
}

#[test]
fn an_agents_health_port_is_not_asked_on_another_namespaces_loopback_device() {
    let root = tempfile::tempdir().unwrap();
    crate::host::process::made::other_network(root.path());
    let host = Host::new(root.path(), Clock::system(), Places::default());
    let agent = agents::look(&["cilium-cni".to_owned()], &mut agents::Memory::default(), &host).unwrap();
    assert!(agent.health.as_ref().unwrap().contains("hostNetwork"), "{agent:?}");
}
