use std::fs;
use std::path::Path;

use nodewhy_clock::Clock;
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::host::{KubeletPlaces, Places};

/// What GET /configz of kubelet 1.32.6 and 1.36.2 said.
const CONFIGZ: [&str; 2] = [
    include_str!("../../fixtures/thresholds/kubelet-1.32.6-configz.json"),
    include_str!("../../fixtures/thresholds/kubelet-1.36.2-configz.json"),
];

// The command line of the recorded kubelet (systemd-cgls of the node).
const CMDLINE: &str = "/usr/local/bin/kubelet --config=/lab/kubelet.yaml --kubeconfig=/lab/kubeconfig --v=2 \
                       --hostname-override=lab-node1 --node-ip=10.88.0.11";

const MIB: f64 = 1024.0 * 1024.0;

fn write(root: &Path, path: &str, text: impl AsRef<[u8]>) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// A node with this kubelet's process and these files.
fn node_of(name: &str, cmdline: &str, files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
    let root = tempfile::tempdir().unwrap();
    // The lines of host/process.rs' recordings that are needed.
    let stat = format!("344 ({name}) S 1 344 344 0 -1 4194560 5320 71390 0 60 0 3 48 12 20 0 1 0 3600\n");
    write(root.path(), "proc/344/stat", stat);
    write(root.path(), "proc/344/status", "Uid:\t0\t0\t0\t0\nNSpid:\t344\n");
    write(root.path(), "proc/344/cgroup", "0::/system.slice/kubelet.service\n");
    write(root.path(), "proc/344/cmdline", format!("{}\0", cmdline.replace(' ', "\0")));
    write(root.path(), "proc/meminfo", "MemTotal:        1509904 kB\nMemFree:           94556 kB\n");
    for (path, text) in files {
        write(root.path(), path, text);
    }
    let host = Host::new(root.path(), Clock::system(), Places::default());
    (root, host)
}

fn configured(cmdline: &str, files: &[(&str, &str)]) -> Configured {
    let (_root, host) = node_of("kubelet", cmdline, files);
    read(&host)
}

fn available(configured: &Configured) -> Option<(f64, Origin)> {
    configured.thresholds.memory_available_bytes.map(|limit| (limit.value, limit.origin))
}

/// The recorded configuration, as the file that it would be.
fn recorded(configz: &str, change: impl FnOnce(&mut Value)) -> String {
    let mut config = serde_json::from_str::<Value>(configz).unwrap()["kubeletconfig"].take();
    config["kind"] = "KubeletConfiguration".into();
    change(&mut config);
    config.to_string()
}

#[test]
fn the_recorded_configurations() {
    for configz in CONFIGZ {
        let file = recorded(configz, |_| {});
        let read = configured(CMDLINE, &[("lab/kubelet.yaml", &file)]);
        assert_eq!(available(&read), Some((100.0 * MIB, Origin::KubeletConfig)));
        let healthz = Some(([127, 0, 0, 1], 10248).into());
        assert_eq!(
            read.places,
            Some(KubeletPlaces { root: None, healthz, api: Some(([127, 0, 0, 1], 10250).into()) })
        );
        assert_eq!((read.is_whole, read.notes), (true, Vec::<String>::new()));
    }
}

#[test]
fn the_recorded_limits_of_file_systems_and_pods() {
    for configz in CONFIGZ {
        let file = recorded(configz, |_| {});
        let limits = configured(CMDLINE, &[("lab/kubelet.yaml", &file)]).thresholds;
        let percent =
            |percent| Some(Eviction { amount: Amount::Percent(percent), origin: Origin::KubeletConfig });
        assert_eq!(limits.nodefs_available, percent(10.0));
        assert_eq!(limits.nodefs_inodes_free, percent(5.0));
        assert_eq!(limits.imagefs_available, percent(15.0));
        assert_eq!(limits.imagefs_inodes_free, None, "its evictionHard does not name it");
        assert_eq!(limits.pid_available, percent(10.0));
        let told = |value| Some(Limit { value, origin: Origin::KubeletConfig });
        assert_eq!(limits.image_gc_high_percent, told(85.0));
        assert_eq!((limits.pod_pids_limit, limits.max_pods), (None, told(110.0)));
    }
    let flags = " --max-pods=250 --pod-max-pids=4096 --image-gc-high-threshold=100";
    let file = recorded(CONFIGZ[0], |config| config["evictionHard"]["nodefs.available"] = "a lot".into());
    let read = configured(&format!("{CMDLINE}{flags}"), &[("lab/kubelet.yaml", &file)]);
    assert_eq!(read.thresholds.max_pods.unwrap().value, 250.0);
    assert_eq!(read.thresholds.pod_pids_limit.unwrap().value, 4096.0);
    assert_eq!(read.thresholds.image_gc_high_percent, None, "100 % is never");
    assert_eq!(read.thresholds.nodefs_available, None);
    assert!(read.notes[0].starts_with("nodefs.available is off: "), "{:?}", read.notes);
    let nobody = configured(&format!("{CMDLINE} --max-pods=many"), &[]);
    assert!(nobody.notes.iter().any(|note| note.contains("--max-pods is no number")), "{:?}", nobody.notes);
    // Nothing is set: the documented defaults, but for process ids, which have none.
    let default = configured("kubelet", &[]).thresholds;
    assert_eq!(default, Thresholds::default());
    assert_eq!(default.eviction(Signal::ImagefsAvailable).unwrap().of(1000.0).value, 150.0);
}

#[test]
fn percentages_are_of_this_nodes_memory() {
    let file = recorded(CONFIGZ[0], |config| config["evictionHard"]["memory.available"] = "5%".into());
    let read = configured(CMDLINE, &[("lab/kubelet.yaml", &file)]);
    assert_eq!(available(&read), Some((77_307_084.0, Origin::KubeletConfig)));
    let files = [("lab/kubelet.yaml", file.as_str()), ("proc/meminfo", "garbage\n")];
    let read = configured(CMDLINE, &files);
    assert_eq!(available(&read), None);
    assert!(read.notes[0].contains("memory_available_low is off"), "{:?}", read.notes);
}

#[test]
fn a_map_that_does_not_name_memory_switches_it_off_and_a_missing_map_does_not() {
    let hard = |map: Value, merge: bool| {
        let file = recorded(CONFIGZ[1], |config| {
            config["evictionHard"] = map;
            config["mergeDefaultEvictionSettings"] = merge.into();
        });
        configured(CMDLINE, &[("lab/kubelet.yaml", &file)])
    };
    let default = Some((100.0 * MIB, Origin::DocumentedDefault));
    let off = hard(serde_json::json!({}), false);
    assert_eq!(available(&off), None);
    assert!(off.notes[0].contains("evictionHard"), "{:?}", off.notes);
    assert_eq!(available(&hard(serde_json::json!({"nodefs.available": "10%"}), false)), None);
    assert_eq!(available(&hard(serde_json::json!({"nodefs.available": "10%"}), true)), default);
    assert_eq!(available(&hard(Value::Null, false)), default);
    assert_eq!(available(&hard(serde_json::json!({"memory.available": "100%"}), false)), None);
    let wrong = hard(serde_json::json!({"memory.available": "a lot"}), false);
    assert_eq!(available(&wrong), None);
    assert!(wrong.notes[0].contains("a lot"), "{:?}", wrong.notes);
}

#[test]
fn a_flag_goes_before_the_file_and_moves_the_root() {
    let file = recorded(CONFIGZ[0], |_| {});
    let cmdline = format!("{CMDLINE} --eviction-hard=memory.available<250Mi --root-dir=/data/kubelet");
    let read = configured(&cmdline, &[("lab/kubelet.yaml", &file)]);
    assert_eq!(available(&read), Some((250.0 * MIB, Origin::KubeletConfig)));
    assert_eq!(read.places.unwrap().root, Some("/data/kubelet".into()));
}

#[test]
fn where_the_ping_answers_by_flag_then_by_file() {
    let file = recorded(CONFIGZ[0], |config| {
        config["healthzPort"] = 10250.into();
        config["healthzBindAddress"] = "0.0.0.0".into();
    });
    let healthz = |flags: &str| {
        let read = configured(&format!("{CMDLINE}{flags}"), &[("lab/kubelet.yaml", &file)]);
        read.places.unwrap().healthz.map(|address| address.to_string())
    };
    assert_eq!(healthz("").as_deref(), Some("127.0.0.1:10250"));
    assert_eq!(healthz(" --healthz-port=9999").as_deref(), Some("127.0.0.1:9999"));
    assert_eq!(healthz(" --healthz-bind-address=10.88.0.11").as_deref(), Some("10.88.0.11:10250"));
    for off in [" --healthz-port=0", " --healthz-port=x", " --healthz-bind-address=here"] {
        assert_eq!(healthz(off), None, "{off}");
    }
    assert_eq!(configured("kubelet", &[]).places, Some(KubeletPlaces::default()));
}

#[test]
fn a_setting_goes_before_what_the_kubelet_says_and_that_before_the_default() {
    let (root, host) = node_of("kubelet", "kubelet --root-dir=/data/kubelet --healthz-port=9999", &[]);
    assert_eq!(host.kubelet_root(), Path::new("/var/lib/kubelet"));
    host.clone().learn(read(&host).places.unwrap());
    assert_eq!(host.kubelet_root(), Path::new("/data/kubelet"));
    assert_eq!(host.kubelet_healthz(), ([127, 0, 0, 1], 9999).into());
    // Set to what is the default anyway: a setting still.
    let set = Places {
        kubelet_root: Some("/var/lib/kubelet".into()),
        kubelet_healthz: Some(([127, 0, 0, 1], 10248).into()),
        ..Places::default()
    };
    let host = Host::new(root.path(), Clock::system(), set);
    host.learn(read(&host).places.unwrap());
    assert_eq!(host.kubelet_root(), Path::new("/var/lib/kubelet"));
    assert_eq!(host.kubelet_healthz(), ([127, 0, 0, 1], 10248).into());
}

#[test]
fn drop_ins_are_merged_key_by_key_in_order() {
    let file = recorded(CONFIGZ[0], |_| {});
    let drop_in = |amount: &str| {
        format!(
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nevictionHard:\n  memory.available: {amount}\n"
        )
    };
    let cmdline = format!("{CMDLINE} --config-dir=/etc/kubelet.d");
    let (first, second) = (drop_in("300Mi"), drop_in("400Mi"));
    let read = configured(
        &cmdline,
        &[
            ("lab/kubelet.yaml", &file),
            ("etc/kubelet.d/20-b.conf", &second),
            ("etc/kubelet.d/10-a.conf", &first),
            ("etc/kubelet.d/30-c.yaml", &drop_in("500Mi")),
        ],
    );
    assert_eq!(available(&read), Some((400.0 * MIB, Origin::KubeletConfig)));
}

#[test]
fn what_cannot_be_read_is_said_and_is_the_documented_default() {
    let default = Some((100.0 * MIB, Origin::DocumentedDefault));
    let bomb: String = std::iter::once("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned())
        .chain((1..12).map(|n| format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 10].join(","))))
        .chain(std::iter::once(
            "kind: KubeletConfiguration\nevictionHard: {memory.available: 1Gi}\n".to_owned(),
        ))
        .collect();
    for text in ["\u{0}garbage: [", "kind: Pod\n", "", "[1, 2]", "evictionHard: 7\n", &bomb] {
        let read = configured(CMDLINE, &[("lab/kubelet.yaml", text)]);
        assert_eq!(available(&read), default, "{text:.40}");
        assert!(read.notes[0].contains("/lab/kubelet.yaml"), "{text:.40}: {:?}", read.notes);
    }
    let missing = configured(CMDLINE, &[]);
    assert_eq!(available(&missing), default);
    assert!(missing.notes[0].contains("does not exist"), "{:?}", missing.notes);
    assert!(!missing.is_whole);
    let folder = configured(CMDLINE, &[("lab/kubelet.yaml/file", "")]);
    assert!(folder.notes[0].contains("/lab/kubelet.yaml"), "{:?}", folder.notes);
    let relative = configured("kubelet --config=kubelet.yaml", &[]);
    assert!(relative.notes[0].contains("relative"), "{:?}", relative.notes);
    assert_eq!(available(&configured("kubelet", &[])), default);
}

#[test]
fn k3s_switches_memory_off_unless_told_otherwise() {
    let (_root, host) = node_of("k3s-server", "/usr/local/bin/k3s server", &[]);
    assert_eq!(available(&read(&host)), None);
    let cmdline = "/usr/local/bin/k3s server --kubelet-arg=eviction-hard=memory.available<200Mi";
    let (_root, host) = node_of("k3s-server", cmdline, &[]);
    assert_eq!(available(&read(&host)), Some((200.0 * MIB, Origin::KubeletConfig)));
}

#[test]
fn k3s_has_drop_ins_of_its_own() {
    let drop_in = "kind: KubeletConfiguration\nevictionHard: {memory.available: 150Mi}\n";
    let path = "var/lib/rancher/k3s/agent/etc/kubelet.conf.d/10-mine.conf";
    let (_root, host) = node_of("k3s-agent", "/usr/local/bin/k3s agent", &[(path, drop_in)]);
    assert_eq!(available(&read(&host)), Some((150.0 * MIB, Origin::KubeletConfig)));
}

#[test]
fn microk8s_keeps_its_flags_in_a_file() {
    let path = "var/snap/microk8s/1/args/kubelet";
    let cmdline = format!("/snap/microk8s/1/kubelite --kubelet-args-file=/{path}");
    let args = "--eviction-hard=\"memory.available<120Mi,nodefs.available<1Gi\"\n";
    let (_root, host) = node_of("kubelite", &cmdline, &[(path, args)]);
    assert_eq!(available(&read(&host)), Some((120.0 * MIB, Origin::KubeletConfig)));
}

#[test]
fn without_a_kubelet_nobody_evicts_and_a_dead_ones_file_is_read() {
    let (root, host) = node_of("systemd", "/sbin/init", &[]);
    let blind = read(&host);
    assert_eq!(available(&blind), None);
    assert!(blind.notes[0].contains("cannot be told"), "{:?}", blind.notes);
    // kthreadd as process 2 proves that this is the machine's /proc.
    for (pid, name) in [(1, "systemd"), (2, "kthreadd")] {
        let stat = format!("{pid} ({name}) S 0 {pid} {pid} 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 2\n");
        write(root.path(), &format!("proc/{pid}/stat"), stat);
    }
    let nothing = read(&host);
    assert_eq!(nothing.thresholds, Thresholds::unknown(), "nobody evicts");
    assert!(nothing.notes[0].contains("no kubelet on this machine"), "{:?}", nothing.notes);
    write(root.path(), "var/lib/kubelet/config.yaml", recorded(CONFIGZ[1], |_| {}));
    assert_eq!(available(&read(&host)), Some((100.0 * MIB, Origin::KubeletConfig)));
}

#[test]
fn settings_go_before_everything() {
    let heuristic =
        |name| COLLECTORS.iter().flat_map(|collector| collector.limits()).find(|it| it.name == name).unwrap();
    let (cpu, io) = (heuristic("cpu_some_percent"), heuristic("io_full_percent"));
    let overrides = Overrides::from([("memory_available_bytes", 5.0), ("cpu_some_percent", 90.0)]);
    let thresholds = overrides.over(Thresholds::default());
    assert_eq!(thresholds.memory_available_bytes, Some(Limit { value: 5.0, origin: Origin::Setting }));
    assert_eq!(thresholds.limit(cpu), Limit { value: 90.0, origin: Origin::Setting });
    assert_eq!(thresholds.limit(io), Limit { value: 20.0, origin: Origin::Heuristic });
    assert_eq!(Overrides::default().over(Thresholds::default()), Thresholds::default());
}

#[test]
fn every_limit_can_be_set_and_is_checked() {
    let names: Vec<&str> = Overrides::names().collect();
    let unique: std::collections::BTreeSet<&str> = names.iter().copied().collect();
    assert_eq!(unique.len(), names.len(), "a limit's name stands twice");
    assert!(unique.contains("memory_full_percent") && unique.contains("runtime_hung_seconds"));
    for name in names {
        let set = |value: &str| toml::from_str::<Overrides>(&format!("{name} = {value}")).unwrap();
        assert_ne!(set("3").over(Thresholds::default()), Thresholds::default(), "{name}");
        assert_eq!(set("3").check(), Ok(()), "{name}");
        for senseless in ["-1", "0", "nan", "inf"] {
            assert!(set(senseless).check().unwrap_err().contains(name), "{name} {senseless}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_cut_or_flipped_configuration_is_never_a_smaller_threshold(cut in 0..2000usize, byte: u8) {
        let file = recorded(CONFIGZ[0], |_| {});
        let read = configured(CMDLINE, &[("lab/kubelet.yaml", &file[..cut.min(file.len() - 1)])]);
        // A cut file is no JSON: the default, and said so.
        prop_assert_eq!(available(&read), Some((100.0 * MIB, Origin::DocumentedDefault)));
        prop_assert_eq!(read.notes.len(), 1);
        let mut bytes = file.into_bytes();
        let at = cut % bytes.len();
        bytes[at] = byte;
        let (root, host) = node_of("kubelet", CMDLINE, &[]);
        write(root.path(), "lab/kubelet.yaml", bytes);
        if let Some((value, _)) = available(&super::read(&host)) {
            prop_assert!(value > 0.0);
        }
    }
}
