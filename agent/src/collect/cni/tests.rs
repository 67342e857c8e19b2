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
        Node { root, host }
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
