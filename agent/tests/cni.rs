//! Against the real host-local of Debian 12: it alone decides which addresses there are. Needs the package
//! `containernetworking-plugins`.

#![expect(clippy::disallowed_methods, reason = "a test starts the real plugin")]
#![expect(clippy::unwrap_used, reason = "a test's helpers fail as the test does")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use nodewhy_agent::collect::cni;
use nodewhy_agent::collector::{Noticed, Pair};
use nodewhy_agent::host::{Host, Places};
use nodewhy_agent::thresholds::Thresholds;
use nodewhy_clock::Clock;

const PLUGIN: &str = "/usr/lib/cni/host-local";

/// Asks for an address; whether one was given.
fn add(conf: &str, id: &str) -> bool {
    let mut child = Command::new(PLUGIN)
        .envs([
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", id),
            ("CNI_NETNS", "/proc/self/ns/net"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/usr/lib/cni"),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(conf.as_bytes()).unwrap();
    child.wait().unwrap().success()
}

#[test]
fn the_range_is_used_up_when_the_real_host_local_says_so() {
    assert!(Path::new(PLUGIN).exists(), "{PLUGIN} is missing: apt-get install containernetworking-plugins");
    for range in [
        r#"{"subnet": "10.99.0.0/28"}"#,
        r#"{"subnet": "10.99.0.0/24", "rangeStart": "10.99.0.250"}"#,
        r#"{"subnet": "10.99.0.0/24", "rangeStart": "10.99.0.10", "rangeEnd": "10.99.0.20", "gateway": "10.99.0.15"}"#,
        r#"{"subnet": "fd00::/124"}"#,
    ] {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("networks").display().to_string();
        let ipam = format!(r#"{{"type": "host-local", "dataDir": "{data}", "ranges": [[{range}]]}}"#);
        let conf = format!(r#"{{"cniVersion": "0.4.0", "name": "lab", "type": "ptp", "ipam": {ipam}}}"#);
        std::fs::create_dir(folder.path().join("net.d")).unwrap();
        std::fs::write(folder.path().join("net.d/10-lab.conf"), &conf).unwrap();
        let places = Places {
            cni_conf_dir: folder.path().join("net.d"),
            cni_bin_dirs: vec!["/usr/lib/cni".into()],
            ..Places::default()
        };
        let look = || {
            let host = Host::new("/", Clock::system(), places.clone());
            let reading = (cni::COLLECTOR.read)(&mut (cni::COLLECTOR.open)(&host).unwrap(), &host).unwrap();
            let mut noticed = Noticed::default();
            let pair = Pair { before: None, now: &reading, at: host.clock().stamp() };
            (cni::COLLECTOR.detect)(pair, &Thresholds::default(), &mut noticed);
            let names: Vec<_> = noticed.states.iter().map(|state| state.finding).collect();
            (reading.allocations.first().cloned(), names)
        };
        let mut given = 0_u32;
        while add(&conf, &format!("c{given}")) {
            given += 1;
            assert!(given < 300, "{range} has no end");
        }
        let (allocations, names) = look();
        let allocations = allocations.unwrap();
        assert_eq!(
            (allocations.size, allocations.allocated),
            (Some(f64::from(given)), u64::from(given)),
            "{range}"
        );
        assert_eq!(names, ["ipam_exhausted"], "{range}");
    }
}
