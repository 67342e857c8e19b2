//! A node whose files are not what they should be: empty, random bytes, folders, links that lead nowhere, pipes that
//! nobody writes to. Nothing may panic, hang, or be taken for a dying node.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test makes its folders, reads this crate's sources, and stops at what it did not expect"
)]

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nodewhy_agent::Agent;
use nodewhy_agent::host::Places;
use nodewhy_agent::settings::Settings;
use nodewhy_clock::Clock;
use nodewhy_proto::{Finding, Outcome, Severity};

/// The files of a process, of a thread, of a cgroup: the sources name them without their folders.
const OF_A_PROCESS: &[&str] = &[
    "cgroup",
    "cmdline",
    "comm",
    "fd/3",
    "fdinfo/3",
    "io",
    "limits",
    "mountinfo",
    "stack",
    "stat",
    "status",
    "syscall",
    "task/734/stack",
    "task/734/stat",
    "task/734/status",
    "task/734/syscall",
    "task/734/wchan",
    "wchan",
];
const OF_A_CGROUP: &[&str] = &[
    "cgroup.controllers",
    "cgroup.events",
    "cgroup.procs",
    "cgroup.stat",
    "cpu.max",
    "cpu.pressure",
    "cpu.stat",
    "io.pressure",
    "io.stat",
    "memory.current",
    "memory.events",
    "memory.events.local",
    "memory.high",
    "memory.max",
    "memory.pressure",
    "memory.stat",
    "pids.current",
    "pids.events",
    "pids.max",
];
/// Where paths of the host begin.
const TOPS: &[&str] = &["/dev/", "/etc/", "/opt/", "/proc/", "/run/", "/sys/", "/usr/", "/var/"];

/// Every path that stands in the agent's own sources, without those of its tests.
fn paths() -> BTreeSet<String> {
    fn gather(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.file_stem().is_some_and(|name| name == "tests") {
                continue;
            }
            if path.is_dir() {
                gather(&path, found);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap();
            let code = code.lines().filter(|line| !line.trim_start().starts_with("//"));
            let quoted = code.flat_map(|line| line.split('"').skip(1).step_by(2));
            let is_path = |text: &&str| {
                TOPS.iter().any(|top| text.starts_with(top))
                    && !text.contains(['{', ' ', '*', '<', ';', ':', ',', '\\'])
                    // Those of other processes' numbers are this one's own.
                    && !text.starts_with("/proc/self/fd")
            };
            found.extend(quoted.filter(is_path).map(|path| path.trim_end_matches('/').to_owned()));
        }
    }
    let mut found = BTreeSet::new();
    gather(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    for pid in [1, 734] {
        found.extend(OF_A_PROCESS.iter().map(|file| format!("/proc/{pid}/{file}")));
    }
    let pod = "/sys/fs/cgroup/kubepods.slice/kubepods-pod00000000_1111_2222_3333_444444444444.slice";
    for cgroup in ["/sys/fs/cgroup", "/sys/fs/cgroup/kubepods.slice", "/sys/fs/cgroup/system.slice", pod] {
        found.extend(OF_A_CGROUP.iter().map(|file| format!("{cgroup}/{file}")));
    }
    // What is below a path that is read as a folder.
    found.extend(["/sys/block/vda/queue/rotational", "/sys/class/net/eth0/operstate"].map(str::to_owned));
    found
}

/// What stands in each file's place.
#[derive(Clone, Copy, Debug)]
enum Instead {
    Nothing,
    RandomBytes,
    Folder,
    DanglingLink,
    Pipe,
}

fn put(path: &Path, instead: Instead, seed: &mut u64) {
    match instead {
        Instead::Nothing => fs::write(path, "").unwrap(),
        Instead::RandomBytes => {
            // xorshift: the same bytes in each run.
            let bytes: Vec<u8> = (0..3000)
                .map(|_| {
                    *seed ^= *seed << 13;
                    *seed ^= *seed >> 7;
                    *seed ^= *seed << 17;
                    u8::try_from(*seed & 0xff).unwrap()
                })
                .collect();
            fs::write(path, bytes).unwrap();
        }
        Instead::Folder => fs::create_dir(path).unwrap(),
        Instead::DanglingLink => std::os::unix::fs::symlink("/nowhere/at/all", path).unwrap(),
        Instead::Pipe => nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap(),
    }
}

/// A root with all of them, over what already stands there.
fn damage(root: &Path, instead: Instead) -> usize {
    let paths = paths();
    assert!(paths.len() > 150 && paths.contains("/proc/meminfo"), "{paths:?}");
    let (mut made, mut seed) = (0, 0x2545_f491_4f6c_dd1d);
    for path in &paths {
        let below = format!("{path}/");
        let is_folder = paths.range(below.clone()..).next().is_some_and(|next| next.starts_with(&below));
        let place = root.join(path.trim_start_matches('/'));
        if is_folder || place.exists() || fs::create_dir_all(place.parent().unwrap()).is_err() {
            continue;
        }
        put(&place, instead, &mut seed);
        made += 1;
    }
    made
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir_all(&to).unwrap();
            copy(&from, &to);
        } else {
            fs::copy(&from, &to).unwrap();
        }
    }
}

/// The agent on this root, until each collector has read and time has passed that every hold is over.
fn look(root: &Path, what: &str) -> Vec<Finding> {
    let (clock, mover) = Clock::skippable();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let settings = Settings {
        host_root: PathBuf::from(root),
        places: Places { kubelet_healthz: Some(nobody), kubelet_api: Some(nobody), ..Places::default() },
        ..Settings::default()
    };
    let agent = Agent::start(&settings, clock).unwrap();
    let board = agent.board();
    let waits = |before: &[u64]| {
        let end = Instant::now() + Duration::from_secs(60);
        while !board.is_ready() || ticks(&agent).iter().zip(before).any(|(now, before)| now <= before) {
            let state = board.state(false);
            assert!(Instant::now() < end, "{what}: a collector hangs: {state:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    waits(&[]);
    for _ in 0..2 {
        mover.skip(Duration::from_secs(70));
        // The one that is under way may have begun before.
        for _ in 0..2 {
            waits(&ticks(&agent));
        }
    }
    for (name, state) in board.state(true).collectors {
        let why = state.outcome.why().unwrap_or_default();
        assert!(!why.contains("panicked"), "{what}: {name}: {why}");
        assert!(!matches!(state.outcome, Outcome::Stuck { .. } | Outcome::Unknown), "{what}: {name}: {why}");
    }
    board.findings().into_iter().filter(Finding::is_active).collect()
}

/// Of those that read often.
fn ticks(agent: &Agent) -> Vec<u64> {
    let state = agent.board().state(false);
    let often = state.collectors.values().filter(|state| state.every_seconds <= 2.0);
    often.map(|state| state.ticks.as_ref().map_or(0, |ticks| ticks.total)).collect()
}

fn every_kind(with_node: bool) {
    let kinds =
        [Instead::Nothing, Instead::RandomBytes, Instead::Folder, Instead::DanglingLink, Instead::Pipe];
    for instead in kinds {
        let what = format!(
            "{instead:?} in the place of each file, {}",
            if with_node { "over a node" } else { "alone" }
        );
        let root = tempfile::tempdir().unwrap();
        if with_node {
            copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/hosts/linux-6.18"), root.path());
        }
        assert!(damage(root.path(), instead) > 100);
        let found = look(root.path(), &what);
        println!(
            "{what}: {:#?}",
            found.iter().map(|finding| (&finding.finding, &finding.summary)).collect::<Vec<_>>()
        );
        for finding in found {
            let name = finding.finding.as_str();
            // The fixture's node has lost its runtime; and a folder of CNI's that is empty holds no configuration.
            let known = with_node && name == "runtime_socket_missing"
                || matches!(instead, Instead::Folder) && name == "cni_config_missing";
            assert!(known || finding.severity != Severity::Critical, "{what}: {finding:#?}");
        }
    }
}

#[test]
fn whatever_stands_in_the_place_of_a_file_nothing_panics_hangs_or_is_critical() {
    every_kind(false);
}

#[test]
fn nor_beside_what_is_well() {
    every_kind(true);
}
