//! Against the real containerd of Debian 12, started privately: own root, state, socket and CNI folders in a
//! temporary folder. Needs the package `containerd`, and root.

#![expect(clippy::disallowed_methods, reason = "a test starts the real containerd, and looks at its log")]
#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test does")]

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nodewhy_agent::collect::{cni, runtime};
use nodewhy_agent::collector::{Abnormal, Collector, Noticed, Pair};
use nodewhy_agent::host::{Host, Places};
use nodewhy_agent::thresholds::Thresholds;
use nodewhy_clock::Clock;
use tempfile::TempDir;

const PROGRAM: &str = "/usr/bin/containerd";

struct Containerd {
    folder: TempDir,
    child: Child,
}

impl Containerd {
    fn start() -> Containerd {
        let there = Path::new(PROGRAM).exists();
        assert!(there, "{PROGRAM} is missing: apt-get install containerd containernetworking-plugins");
        let folder = tempfile::tempdir().unwrap();
        for name in ["net.d", "bin", "root", "state"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        std::fs::write(folder.path().join("config.toml"), config(folder.path())).unwrap();
        let child = spawn(folder.path());
        let mut containerd = Containerd { folder, child };
        containerd.wait_until_it_listens();
        containerd
    }

    fn wait_until_it_listens(&mut self) {
        let end = Instant::now() + Duration::from_secs(20);
        while std::os::unix::net::UnixStream::connect(self.socket()).is_err() {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < end, "containerd did not start:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn restart(&mut self) {
        self.stop();
        self.child = spawn(self.folder.path());
        self.wait_until_it_listens();
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("c.sock")
    }

    fn net_d(&self) -> PathBuf {
        self.folder.path().join("net.d")
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    fn stop(&mut self) {
        // SIGKILL ends a stopped process too.
        self.child.kill().ok();
        self.child.wait().ok();
    }

    fn host(&self) -> Host {
        let places = Places {
            runtime_socket: Some(self.socket()),
            cni_conf_dir: self.net_d(),
            cni_bin_dirs: vec![self.folder.path().join("bin")],
            ..Places::default()
        };
        Host::new("/", Clock::system(), places)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.stop();
    }
}

fn spawn(folder: &Path) -> Child {
    let log = std::fs::File::create(folder.join("log")).unwrap();
    // It dies with this test, also when the test is killed.
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--", PROGRAM, "--config"])
        .arg(folder.join("config.toml"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        // Its own group: a Ctrl-C for the test is the test's to pass on.
        .process_group(0)
        .spawn()
        .unwrap()
}

fn config(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        r#"version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.overlayfs",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.restart",
  "io.containerd.tracing.processor.v1.otlp"]
[grpc]
address = "{folder}/c.sock"
[ttrpc]
address = "{folder}/t.sock"
[plugins."io.containerd.grpc.v1.cri"]
stream_server_port = "0"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".cni]
conf_dir = "{folder}/net.d"
bin_dir = "{folder}/bin"
"#
    )
}

/// A collector with its source, read as the agent does.
struct Eye<S: 'static, R: 'static> {
    collector: &'static Collector<S, R>,
    source: S,
    host: Host,
}

impl<S, R: std::fmt::Debug> Eye<S, R> {
    fn open(collector: &'static Collector<S, R>, host: Host) -> Eye<S, R> {
        let source = (collector.open)(&host).unwrap();
        Eye { collector, source, host }
    }

    fn look(&mut self) -> (R, Vec<Abnormal>) {
        let reading = (self.collector.read)(&mut self.source, &self.host).unwrap();
        let mut noticed = Noticed::default();
        let pair = Pair { before: None, now: &reading, at: self.host.clock().stamp() };
        (self.collector.detect)(pair, &Thresholds::default(), &mut noticed);
        (reading, noticed.states)
    }

    /// Looks until `holds`, and says how long that took.
    fn until(
        &mut self,
        within: Duration,
        holds: impl Fn(&R, &[Abnormal]) -> bool,
    ) -> (R, Vec<Abnormal>, Duration) {
        let start = Instant::now();
        loop {
            let (reading, states) = self.look();
            if holds(&reading, &states) {
                return (reading, states, start.elapsed());
            }
            assert!(start.elapsed() < within, "not within {within:?}: {reading:#?} {states:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn has(states: &[Abnormal], finding: &str) -> bool {
    states.iter().any(|state| state.finding == finding)
}

const VALID: &str = r#"{"cniVersion": "0.4.0", "name": "lab", "plugins": [{"type": "bridge", "bridge": "lab0",
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]]}}]}"#;

const SOON: Duration = Duration::from_secs(10);

#[test]
fn what_happens_to_a_real_containerd_is_told_apart() {
    let mut containerd = Containerd::start();
    let mut eye = Eye::open(&runtime::COLLECTOR, containerd.host());

    // A folder without configuration: containerd's own words.
    let (reading, states, _) = eye.until(SOON, |reading, _| reading.conditions.is_some());
    assert_eq!(reading.version.runtime_name.as_deref(), Some("containerd"));
    assert_eq!(reading.pid, Some(containerd.child.id()));
    assert_eq!(reading.process_name.as_deref(), Some("containerd"));
    assert!(has(&states, "runtime_network_not_ready"), "{states:#?}");
    let load = reading.last_cni_load_status.unwrap();
    assert!(load.contains("no network config found in"), "{load}");
    assert_eq!(reading.cni_conf_dir, Some(containerd.net_d().display().to_string()));

    // It is written: NetworkReady, and nothing is abnormal.
    std::fs::write(containerd.net_d().join("10-lab.conflist"), VALID).unwrap();
    let (reading, states, _) = eye.until(SOON, |_, states| states.is_empty());
    assert!(reading.condition("NetworkReady").unwrap().status, "{states:?}");
    assert_eq!(reading.last_cni_load_status.as_deref(), Some("OK"));
    let (reading, _, _) = eye.until(SOON, |reading, _| reading.relist.containers.is_some());
    assert_eq!(reading.relist.sandboxes.unwrap().values().sum::<u64>(), 0);

    // It is removed.
    std::fs::remove_file(containerd.net_d().join("10-lab.conflist")).unwrap();
    let (_, states, _) = eye.until(SOON, |_, states| has(states, "runtime_network_not_ready"));
    assert!(states[0].summary.contains("lastCNILoadStatus: cni config load failed"), "{}", states[0].summary);
    std::fs::write(containerd.net_d().join("10-lab.conflist"), VALID).unwrap();
    eye.until(SOON, |_, states| states.is_empty());

    // Stopped: hung, within 4 s, though it still connects.
    containerd.signal(Signal::SIGSTOP);
    let (reading, states, took) = eye.until(SOON, |_, states| has(states, "runtime_hung"));
    assert!(took <= Duration::from_secs(4), "runtime_hung took {took:?}");
    assert_eq!((reading.connect.state, reading.process_state), ("connected", Some('T')));
    assert!(states[0].since.is_some());
    containerd.signal(Signal::SIGCONT);
    let (_, _, took) = eye.until(SOON, |_, states| !has(states, "runtime_hung"));
    assert!(took < Duration::from_secs(3), "it answered again after {took:?}");

    // Killed: its socket's file stays and refuses; it is hung no more.
    containerd.stop();
    let (_, states, took) = eye.until(SOON, |_, states| has(states, "runtime_refused"));
    assert!(took < Duration::from_secs(2), "runtime_refused took {took:?}");
    assert!(!has(&states, "runtime_hung"));
    std::fs::remove_file(containerd.socket()).unwrap();
    let (_, states, _) = eye.until(SOON, |_, states| has(states, "runtime_socket_missing"));
    assert!(!has(&states, "runtime_refused"));

    // Started again: asked at once over a new connection.
    containerd.restart();
    let (reading, _, _) = eye.until(SOON, |_, states| states.is_empty());
    assert_eq!(reading.pid, Some(containerd.child.id()));
}

/// With its CNI folder gone containerd 1.6 goes on, and says only that there is no configuration. It watches the
/// folder that was: one that is made anew is not noticed until containerd is started again.
#[test]
fn a_cni_folder_that_is_gone_is_told_by_its_own_name() {
    let mut containerd = Containerd::start();
    std::fs::write(containerd.net_d().join("10-lab.conflist"), VALID).unwrap();
    let mut eye = Eye::open(&runtime::COLLECTOR, containerd.host());
    let mut ours = Eye::open(&cni::COLLECTOR, containerd.host());
    eye.until(SOON, |_, states| states.is_empty());
    // The plugins that the file names were never installed.
    assert!(has(&ours.look().1, "cni_plugin_missing"));

    std::fs::remove_dir_all(containerd.net_d()).unwrap();
    let (_, states) = ours.look();
    assert!(has(&states, "cni_config_dir_missing"), "{states:#?}");
    eye.until(SOON, |_, states| has(states, "runtime_network_not_ready"));

    std::fs::create_dir(containerd.net_d()).unwrap();
    std::fs::write(containerd.net_d().join("10-lab.conflist"), VALID).unwrap();
    let (reading, _) = ours.look();
    assert_eq!(reading.state, cni::FolderState::Configured);
    std::thread::sleep(Duration::from_secs(3));
    let (_, states) = eye.look();
    assert!(
        has(&states, "runtime_network_not_ready"),
        "the file is there and valid, and not loaded: {states:#?}"
    );

    containerd.restart();
    eye.until(SOON, |_, states| states.is_empty());
}

/// Our verdict on a configuration is containerd's, for each of these files.
#[test]
fn the_cni_parser_agrees_with_containerd() {
    let cases: &[(&str, &str, bool)] = &[
        ("10-lab.conflist", VALID, true),
        ("10-lab.conflist", r#"{"name": "lab", "plugins": [{"type": "bridge"}]}"#, true),
        ("10-lab.conflist", r#"{"name": "", "plugins": [{"Type": "bridge", "ipam": {}}]}"#, true),
        ("10-lab.conflist", r#"{"plugins": [{"type": "bridge"}]}"#, false),
        ("10-lab.conflist", r#"{"name": 1, "plugins": [{"type": "bridge"}]}"#, false),
        ("10-lab.conflist", r#"{"name": "lab", "cniVersion": 1, "plugins": [{"type": "bridge"}]}"#, false),
        (
            "10-lab.conflist",
            r#"{"name": "lab", "disableCheck": "x", "plugins": [{"type": "bridge"}]}"#,
            false,
        ),
        ("10-lab.conflist", r#"{"name": "lab", "plugins": []}"#, false),
        ("10-lab.conflist", r#"{"name": "lab", "plugins": {}}"#, false),
        ("10-lab.conflist", r#"{"name": "lab"}"#, false),
        ("10-lab.conflist", r#"{"name": "lab", "plugins": [{"type": ""}]}"#, false),
        ("10-lab.conflist", r#"{"name": "lab", "plugins": ["bridge"]}"#, false),
        (
            "10-lab.conflist",
            r#"{"name": "lab", "plugins": [{"type": "bridge", "capabilities": {"a": 1}}]}"#,
            false,
        ),
        (
            "10-lab.conflist",
            r#"{"name": "lab", "plugins": [{"type": "bridge", "ipam": "host-local"}]}"#,
            false,
        ),
        (
            "10-lab.conflist",
            r#"{"name": "lab", "plugins": [{"type": "bridge", "dns": {"search": "x"}}]}"#,
            false,
        ),
        ("10-lab.conflist", r#"{"name": "lab", "plugins": [{"type": "bridge"}],}"#, false),
        // Not quite empty: containerd looks when a file is written to, and an empty one never is.
        ("10-lab.conflist", "\n", false),
        ("10-lab.conf", r#"{"name": "lab", "type": "bridge"}"#, true),
        ("10-lab.conf", r#"{"type": "bridge"}"#, true),
        ("10-lab.json", r#"{"name": "lab", "type": "bridge"}"#, true),
        ("10-lab.conf", r#"{"name": "lab", "plugins": [{"type": "bridge"}]}"#, false),
        ("10-lab.conf", r#"{"name": "lab"}"#, false),
        ("10-lab.conf", "[]", false),
    ];
    let containerd = Containerd::start();
    let mut eye = Eye::open(&runtime::COLLECTOR, containerd.host());
    let mut ours = Eye::open(&cni::COLLECTOR, containerd.host());
    for (name, text, is_valid) in cases {
        let before = containerd.log().len();
        let path = containerd.net_d().join(name);
        std::fs::write(&path, text).unwrap();
        // containerd's word on this very file, not on the one before: it logs each load that fails.
        let loaded = |reading: &runtime::Reading| match reading.condition("NetworkReady") {
            Some(condition) => condition.status,
            None => panic!("no NetworkReady in {reading:#?}"),
        };
        if *is_valid {
            eye.until(SOON, |reading, _| loaded(reading));
        } else {
            let end = Instant::now() + SOON;
            let refused = |log: &str| {
                log.contains("failed to load CNI config") || log.contains("network type not found")
            };
            while !refused(&containerd.log()[before..]) {
                assert!(
                    Instant::now() < end,
                    "containerd did not refuse {name} {text}:\n{}",
                    &containerd.log()[before..]
                );
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let (reading, states) = ours.look();
        assert_eq!(has(&states, "cni_config_invalid"), !is_valid, "{name} {text}: {reading:#?}");
        std::fs::remove_file(&path).unwrap();
        eye.until(SOON, |reading, _| !loaded(reading));
    }
}
