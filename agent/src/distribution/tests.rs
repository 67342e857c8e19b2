use std::fs;
use std::path::Path;

use nodewhy_clock::Clock;

use super::*;
use crate::host::Places;
use crate::host::process::made;

fn node(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("proc")).unwrap();
    for (path, text) in files {
        put(root.path(), path, text);
    }
    let host = Host::new(root.path(), Clock::system(), Places::default());
    (root, host)
}

fn put(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn kubelet(root: &Path, name: &str, cmdline: &str) {
    made::process(root, 734, name, 'S');
    put(root, "proc/734/cmdline", cmdline);
}

#[test]
fn each_is_found_by_its_own_sign() {
    for (name, process, cmdline, files) in [
        // kubeadm's drop-in 10-kubeadm.conf, as its documents show the command line.
        (
            "kubeadm",
            "kubelet",
            "kubelet\0--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf\0",
            &[][..],
        ),
        ("eks", "kubelet", "kubelet\0--node-labels=eks.amazonaws.com/nodegroup=a\0", &[]),
        ("gke", "kubelet", "kubelet\0--node-labels=cloud.google.com/gke-nodepool=a\0", &[]),
        ("aks", "kubelet", "kubelet\0--node-labels=kubernetes.azure.com/mode=system\0", &[]),
        ("openshift", "kubelet", "kubelet\0", &[("etc/os-release", "NAME=x\nID=\"rhcos\"\n")]),
        ("k3s", "k3s-server", "/usr/local/bin/k3s server\0", &[]),
        ("rke2", "kubelet", "kubelet\0--config-dir=/var/lib/rancher/rke2/agent/etc/kubelet.conf.d\0", &[]),
        ("k0s", "kubelet", "kubelet\0--root-dir=/var/lib/k0s/kubelet\0", &[]),
        ("microk8s", "kubelite", "kubelite\0", &[]),
        ("talos", "kubelet", "kubelet\0", &[("etc/os-release", "ID=talos\n")]),
        ("bottlerocket", "kubelet", "kubelet\0", &[("etc/os-release", "ID=bottlerocket\n")]),
        ("flatcar", "kubelet", "kubelet\0", &[("etc/os-release", "ID=flatcar\nID_LIKE=coreos\n")]),
        ("kind", "kubelet", "kubelet\0", &[("kind/product_name", "kind\n")]),
        ("minikube", "kubelet", "kubelet\0--x=/var/lib/minikube/binaries/v1.34.0/kubelet\0", &[]),
    ] {
        let (root, host) = node(files);
        kubelet(root.path(), process, cmdline);
        let found = of(&host);
        assert_eq!(found.name(), Some(name), "{}", found.found_by);
        assert!(named(name).is_some());
    }
    assert_eq!(DISTRIBUTIONS.len(), 14, "each has a case here");
}

#[test]
fn a_setting_goes_before_the_kubelet_and_the_kubelet_before_places() {
    let (root, host) = node(&[("kind/product_name", "kind\n")]);
    assert_eq!(of(&host).found_by, "/kind is there");
    kubelet(root.path(), "k3s-agent", "/usr/local/bin/k3s agent\0");
    let found = of(&host);
    assert_eq!((found.name(), found.shared_kernel), (Some("k3s"), Some(true)));
    assert_eq!(found.found_by, "the kubelet's process is called k3s-agent (pid 734)");
    let places = Places { distribution: Some("talos".to_owned()), ..Places::default() };
    let host = Host::new(root.path(), Clock::system(), places);
    assert_eq!((of(&host).name(), of(&host).found_by.as_str()), (Some("talos"), "setting"));
}

#[test]
fn a_bare_machine_is_none_of_them() {
    let (root, host) = node(&[("etc/os-release", "ID=debian\n")]);
    made::process(root.path(), 2, "kthreadd", 'S');
    let found = of(&host);
    assert_eq!((found.name(), found.shared_kernel), (None, Some(false)));
    assert!(told(&host).starts_with("# distribution: not known ("), "{}", told(&host));
}

#[test]
fn what_is_off_is_named_with_its_recipe_and_what_cannot_be_looked_at_is_not() {
    let (root, host) = node(&[("etc/os-release", "ID=bottlerocket\n")]);
    let what =
        |host: &Host| -> Vec<&str> { blind_spots(host, &of(host)).iter().map(|spot| spot.what).collect() };
    assert_eq!(what(&host), ["the kubelet's own metrics"], "without a kernel nothing is known of it");
    put(root.path(), "proc/stat", "cpu 1\n");
    put(root.path(), "proc/sys/kernel/hung_task_timeout_secs", "0\n");
    put(root.path(), "proc/sys/kernel/task_delayacct", "1\n");
    put(root.path(), "proc/1/net/dev", "");
    let spots = blind_spots(&host, &of(&host));
    let names: Vec<_> = spots.iter().map(|spot| spot.what).collect();
    assert_eq!(
        names,
        [
            "PSI",
            "hung-task detection",
            "soft-lockup detection",
            "legacy iptables",
            "the kubelet's own metrics"
        ]
    );
    assert!(spots[0].recipe.contains("settings.boot.kernel-parameters"));
    assert_eq!(spots[1].recipe, "sysctl kernel.hung_task_timeout_secs=120");
    put(root.path(), "proc/pressure/cpu", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n");
    assert!(!what(&host).contains(&"PSI"));
}

#[test]
fn the_tables_places_are_listed_once_and_in_order() {
    let sockets = runtime_sockets();
    let at = |socket| sockets.iter().position(|known| *known == socket).unwrap();
    assert_eq!(sockets.iter().filter(|socket| **socket == "/run/k3s/containerd/containerd.sock").count(), 1);
    assert_eq!(at("/run/containerd/containerd.sock"), sockets.len() - 3, "what all have comes last");
    assert_eq!(containerd_configs().last(), Some(&"/etc/containerd/config.toml"));
    assert_eq!(unusual_kubelet_roots().count(), 2);
    for row in DISTRIBUTIONS {
        let all = [row.runtime_sockets, row.cni_conf_dirs, row.cni_bin_dirs, row.containerd_configs].concat();
        assert!(all.iter().chain([&row.kubelet_root]).all(|path| path.starts_with('/')), "{}", row.name);
        assert!(!row.signs.is_empty());
    }
}
