#![expect(
    clippy::disallowed_methods,
    reason = "a test mounts file systems by the usual commands, and takes the time"
)]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, mpsc};

use nodewhy_clock::{Clock, Mover};
use nodewhy_proto::{Origin, Severity, SubjectKind};

use super::*;
use crate::collector::{Abnormal, Noticed, Pair};
use crate::host::Places;
use crate::host::mounts::{FsBytes, FsInodes, FsStat, LookError};
use crate::thresholds::{Amount, Eviction, Thresholds};

// Recorded on Linux 6.18.44.
const DISKSTATS: &str = include_str!("../../../fixtures/disk/linux-6.18.44-diskstats.txt");
const MOUNTINFO: &str = include_str!("../../../fixtures/disk/linux-6.18.44-mountinfo.txt");
// An NFS mount of a pod, in the form of that table; the options of nfs(5).
const NFS: &str = "90 27 0:61 / /var/lib/kubelet/pods/6c1d6c1a/volumes/kubernetes.io~nfs/data rw,relatime shared:9 - nfs4 \
                   10.0.0.9:/export rw,vers=4.2,hard\n";
const NFS_POINT: &str = "/var/lib/kubelet/pods/6c1d6c1a/volumes/kubernetes.io~nfs/data";

/// A made node whose file systems answer by `look`.
struct Node {
    root: tempfile::TempDir,
    host: Host,
    mover: Mover,
    source: Source,
    before: Option<(Reading, Stamp)>,
}

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// The recorded nodes' disk, 8,350,298,112 bytes and 524,288 inodes, with so many left.
fn stat(available_bytes: u64, inodes_free: u64) -> FsStat {
    let bytes = FsBytes { total_bytes: 8_350_298_112, free_bytes: available_bytes + 4096, available_bytes };
    FsStat { device: (254, 0), bytes: Some(bytes), inodes: Some(FsInodes { inodes: 524_288, inodes_free }) }
}

impl Node {
    fn new(
        mounts: &str,
        look: impl Fn(&Path) -> Result<FsStat, LookError> + Send + Sync + 'static,
        prepare: impl FnOnce(&Path),
    ) -> Node {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "proc/diskstats", DISKSTATS);
        write(root.path(), "proc/1/mountinfo", mounts);
        fs::create_dir_all(root.path().join("sys/block/vda")).unwrap();
        prepare(root.path());
        let (clock, mover) = Clock::skippable();
        let host = Host::new(root.path(), clock.clone(), Places::default());
        let source = open_with(&host, Asker::new(clock, look)).unwrap();
        Node { root, host, mover, source, before: None }
    }

    fn tick(&mut self) -> Reading {
        self.mover.skip(Duration::from_secs(1));
        // The threads that ask run in real time: what answers at once has answered.
        for again in 0..400 {
            let is_settled = again > 0 && !self.source.filesystems.waits_for_local();
            let reading = read(&mut self.source, &self.host).unwrap();
            if is_settled {
                return reading;
            }
            if self.source.filesystems.waits_for_local() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        panic!("local file systems do not answer");
    }

    /// One more second; what is abnormal then.
    fn abnormal(&mut self) -> Vec<Abnormal> {
        self.abnormal_by(&Thresholds::default())
    }

    fn abnormal_by(&mut self, thresholds: &Thresholds) -> Vec<Abnormal> {
        let reading = self.tick();
        let at = self.host.clock().stamp();
        let mut noticed = Noticed::default();
        let before = self.before.as_ref().map(|(reading, at)| (reading, *at));
        detect::detect(Pair { before, now: &reading, at }, thresholds, &mut noticed);
        self.before = Some((reading, at));
        noticed.states
    }

    fn until(&mut self, seconds: usize, mut is: impl FnMut(&[Abnormal]) -> bool) -> Vec<Abnormal> {
        for _ in 0..seconds {
            let states = self.abnormal();
            if is(&states) {
                return states;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("not within {seconds} s; last {:?}", self.before.as_ref().map(|(reading, _)| reading));
    }

    fn vda(&self, change: impl Fn(&mut [u64])) {
        let path = self.root.path().join("proc/diskstats");
        let lines: Vec<String> = fs::read_to_string(&path)
            .unwrap()
            .lines()
            .map(|line| {
                let mut words: Vec<&str> = line.split_whitespace().collect();
                if words[2] != "vda" {
                    return format!("{line}\n");
                }
                let mut counters: Vec<u64> = words.drain(3..).map(|word| word.parse().unwrap()).collect();
                change(&mut counters);
                let counters: Vec<String> = counters.iter().map(u64::to_string).collect();
                format!(" 254       0 vda {}\n", counters.join(" "))
            })
            .collect();
        // In place: the collector keeps the file open.
        fs::write(&path, lines.concat()).unwrap();
    }
}

/// Of the usual folders the kubelet's and containerd's are there, on the root.
fn usual(left: FsStat) -> impl Fn(&Path) -> Result<FsStat, LookError> + Send + Sync + 'static {
    move |path| match path.to_str() {
        Some("/" | "/var/lib/kubelet" | "/var/lib/containerd") => Ok(left),
        _ => Err(LookError {
            text: format!("{} is not there", path.display()),
            is_gone: true,
            is_stale: false,
        }),
    }
}

fn names(states: &[Abnormal]) -> Vec<(&str, &str)> {
    states.iter().map(|state| (state.finding, state.subject.name.as_str())).collect()
}

#[test]
fn a_healthy_node_has_both_file_systems_and_no_finding() {
    let mut node = Node::new(MOUNTINFO, usual(stat(6_980_136_960, 511_653)), |_| {});
    node.host.learn_thresholds(Thresholds::default());
    for _ in 0..30 {
        assert_eq!(names(&node.abnormal()), []);
    }
    let reading = node.tick();
    let nodefs = reading.nodefs.as_ref().unwrap();
    assert_eq!((nodefs.mount_point.as_str(), nodefs.available_bytes), ("/", Some(6_980_136_960)));
    assert_eq!((nodefs.eviction_bytes, nodefs.eviction_inodes), (Some(835_029_811.0), Some(26_214.0)));
    assert_eq!(reading.imagefs.as_ref().unwrap().eviction_bytes, Some(1_252_544_716.0));
    assert_eq!(nodefs.reserved_bytes, Some(4096));
    assert!(summary(&reading).starts_with("nodefs 84 % free, imagefs 84 % free"), "{}", summary(&reading));
    let mut sink = Sink::default();
    metrics(&reading, &mut sink);
    let text = sink.encode();
    let distance = "nodewhy_filesystem_eviction_distance_bytes{role=\"nodefs\"} 6145107149\n";
    assert!(text.contains(distance), "{text}");
    assert!(text.contains("nodewhy_disk_reads_total 5405162\n"), "{text}");
    assert!(!text.contains("nodewhy_disk_errors_total"), "no disk counts errors: {text}");
    assert!(!text.contains("await_worst"), "nothing ended lately: {text}");
    let state = serde_json::to_value(&reading).unwrap();
    assert!(state.get("devices").is_none() && state["nodefs"]["inodes_free"] == 511_653);
    let page = (COLLECTOR.pages[0].json)(&reading).unwrap();
    assert_eq!(page["devices"].as_array().unwrap().len(), 10);
    assert_eq!(page["filesystems"][0]["roles"], serde_json::json!(["nodefs", "imagefs"]));
}

#[test]
fn below_the_kubelets_limits_it_is_full_by_bytes_or_by_inodes() {
    // 12 % are left: less than the imagefs' 15, more than the nodefs' 10.
    let mut node = Node::new(MOUNTINFO, usual(stat(1_002_035_773, 26_213)), |_| {});
    let states = node.abnormal();
    assert_eq!(names(&states), [("filesystem_full", "/"), ("filesystem_inodes_full", "/")]);
    assert!(states.iter().all(|state| state.severity == Severity::Warning));
    assert_eq!(states[0].subject.kind, SubjectKind::Filesystem);
    let evidence = &states[0].evidence[0];
    assert_eq!(evidence.text, "imagefs.available 955.6 MiB, below 1.2 GiB");
    assert_eq!(evidence.threshold.as_ref().unwrap().origin, Origin::DocumentedDefault);
    assert_eq!(states[1].evidence[0].text, "nodefs.inodesFree 26213 inodes, below 26214 inodes");
    assert_eq!(states[1].evidence.len(), 2, "of both roles");
    // By another kubelet's limit it is not full.
    let amount = Eviction { amount: Amount::Absolute(1e9), origin: Origin::KubeletConfig };
    let mild = Thresholds {
        nodefs_available: Some(amount),
        imagefs_available: Some(amount),
        ..Thresholds::unknown()
    };
    assert_eq!(names(&node.abnormal_by(&mild)), []);
    // Where nobody evicts, only what has next to nothing left is told, and is no warning.
    assert_eq!(names(&node.abnormal_by(&Thresholds::unknown())), []);
    let mut node = Node::new(MOUNTINFO, usual(stat(4096, 511_653)), |_| {});
    let states = node.abnormal_by(&Thresholds::unknown());
    assert_eq!((names(&states), states[0].severity), (vec![("filesystem_full", "/")], Severity::Info));
}

#[test]
fn what_is_not_there_or_tells_no_size_is_not_full() {
    let no_size = FsStat { bytes: None, inodes: None, ..stat(0, 0) };
    for look in [Ok(no_size), Err(LookError { text: "EIO".into(), is_gone: false, is_stale: false })] {
        let mut node = Node::new(MOUNTINFO, move |_| look.clone(), |_| {});
        assert_eq!(names(&node.abnormal()), []);
        let reading = node.tick();
        let mut sink = Sink::default();
        metrics(&reading, &mut sink);
        let text = sink.encode();
        assert!(!text.contains("nodewhy_filesystem_size_bytes"), "{text}");
        assert!(text.contains("nodewhy_filesystems{state=\"failed\"} "), "{text}");
    }
    // The agent's own root instead of the host's mounts: a size of something else is none.
    let mut node = Node::new(MOUNTINFO, |_| Ok(FsStat { device: (0, 99), ..stat(0, 0) }), |_| {});
    assert_eq!(names(&node.abnormal()), []);
    let reading = node.tick();
    assert!(reading.filesystems[0].missing.as_ref().unwrap().contains("HostToContainer"), "{reading:?}");
    assert!(reading.nodefs.is_none());
}

#[test]
fn a_dead_server_is_told_with_its_pod_and_holds_nothing_up() {
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let local = usual(stat(6_980_136_960, 511_653));
    let look = move |path: &Path| {
        if path == Path::new(NFS_POINT) {
            released.lock().unwrap().recv().ok();
            return Ok(FsStat { device: (0, 61), ..stat(1 << 30, 1 << 20) });
        }
        local(path)
    };
    let mut node = Node::new(&format!("{MOUNTINFO}{NFS}"), look, |_| {});
    let states = node.until(20, |states| !states.is_empty());
    assert_eq!(names(&states), [("mount_stuck", NFS_POINT)]);
    let expected = format!(
        "{NFS_POINT} (nfs4 from 10.0.0.9:/export, mounted by pod 6c1d6c1a, volume data) does not answer"
    );
    assert_eq!(states[0].summary, expected);
    assert!(states[0].since.unwrap() < node.host.clock().now());
    let reading = node.tick();
    assert_eq!(
        (reading.unanswered_count, reading.unanswered.as_slice()),
        (1, [NFS_POINT.to_owned()].as_slice())
    );
    // Others answer meanwhile, and each tick is short.
    assert!(reading.nodefs.is_some());
    let started = std::time::Instant::now();
    for _ in 0..50 {
        assert_eq!(names(&node.abnormal()), [("mount_stuck", NFS_POINT)]);
    }
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    drop(release);
    node.until(100, <[Abnormal]>::is_empty);
    assert_eq!(node.tick().filesystems.iter().filter(|it| it.is_remote).count(), 1);
}

#[test]
fn a_stale_mount_is_stuck_too() {
    let local = usual(stat(6_980_136_960, 511_653));
    let look = move |path: &Path| {
        if path == Path::new(NFS_POINT) {
            return Err(LookError { text: "Stale file handle".into(), is_gone: false, is_stale: true });
        }
        local(path)
    };
    let mut node = Node::new(&format!("{MOUNTINFO}{NFS}"), look, |_| {});
    let states = node.abnormal();
    assert_eq!(names(&states), [("mount_stuck", NFS_POINT)]);
    assert!(states[0].summary.contains(" is stale: its server no longer knows it"), "{}", states[0].summary);
}

#[test]
fn read_only_is_abnormal_only_where_it_was_not_meant() {
    let healthy = || usual(stat(6_980_136_960, 511_653));
    let read_only = MOUNTINFO.replace("/dev/vda rw,", "/dev/vda ro,");
    // From the start, by intent as far as anybody can tell.
    let mut node = Node::new(&read_only, healthy(), |_| {});
    assert_eq!(names(&node.abnormal()), []);
    assert!(node.tick().nodefs.unwrap().is_read_only);
    // From the start, and fstab wants it otherwise.
    let mut node = Node::new(&read_only, healthy(), |root| {
        write(root, "etc/fstab", "/dev/vda / ext4 defaults 0 1\n");
    });
    assert_eq!(names(&node.abnormal()), [("filesystem_readonly", "/")]);
    // It was writable before.
    let mut node = Node::new(MOUNTINFO, healthy(), |_| {});
    assert_eq!(names(&node.abnormal()), []);
    write(node.root.path(), "proc/1/mountinfo", &read_only);
    let states = node.until(6, |states| !states.is_empty());
    assert_eq!(
        (names(&states), states[0].severity),
        (vec![("filesystem_readonly", "/")], Severity::Critical)
    );
    assert_eq!(states[0].evidence[0].text, "/: it was writable before");
    // A table that cannot be read says nothing: neither that it is well again.
    write(node.root.path(), "proc/1/mountinfo", "garbage\n");
    node.mover.skip(Duration::from_secs(6));
    let reading = node.tick();
    assert!(reading.mounts_error.as_ref().unwrap().contains("/proc/1/mountinfo"), "{reading:?}");
    assert!(reading.nodefs.is_none() && reading.filesystems.is_empty());
    write(node.root.path(), "proc/1/mountinfo", &read_only);
    node.until(6, |states| names(states) == [("filesystem_readonly", "/")]);
    write(node.root.path(), "proc/1/mountinfo", MOUNTINFO);
    node.until(6, <[Abnormal]>::is_empty);
}

#[test]
fn a_disk_is_slow_when_it_is_busy_and_what_ends_took_long() {
    let mut node = Node::new(MOUNTINFO, usual(stat(6_980_136_960, 511_653)), |_| {});
    node.abnormal();
    // Each second two writes of 1.5 s and nothing else.
    let mut found = Vec::new();
    for _ in 0..12 {
        node.vda(|counters| {
            counters[4] += 2;
            counters[7] += 3000;
            counters[9] += 1000;
            counters[10] += 3000;
        });
        found = node.abnormal();
    }
    assert_eq!(names(&found), [("disk_slow", "vda")]);
    assert_eq!(found[0].subject.kind, SubjectKind::Device);
    assert_eq!(found[0].summary, "vda under /: a read or write takes 1500 ms");
    node.vda(|counters| {
        counters[4] += 1;
        counters[7] += 400;
        counters[9] += 500;
    });
    node.mover.skip(Duration::from_secs(1));
    let reading = read(&mut node.source, &node.host).unwrap();
    let busy = &reading.busiest[0];
    assert_eq!((busy.device.as_str(), busy.await_seconds), ("vda", Some(0.4)));
    assert!((0.2..=0.5).contains(&busy.busy_ratio), "{busy:?}");
    assert!(summary(&reading).contains("vda "), "{}", summary(&reading));
    // As slow, but for the odd write of an idle disk: no finding.
    let mut node = Node::new(MOUNTINFO, usual(stat(6_980_136_960, 511_653)), |_| {});
    for _ in 0..30 {
        node.vda(|counters| {
            counters[4] += 1;
            counters[7] += 300;
            counters[9] += 300;
        });
        assert_eq!(names(&node.abnormal()), []);
    }
    // Busy, and each is quick.
    for _ in 0..30 {
        node.vda(|counters| {
            counters[0] += 100;
            counters[3] += 990;
            counters[9] += 990;
        });
        assert_eq!(names(&node.abnormal()), []);
    }
}

#[test]
fn a_disk_hangs_when_something_is_in_flight_and_nothing_ends() {
    let mut node = Node::new(MOUNTINFO, usual(stat(6_980_136_960, 511_653)), |_| {});
    node.abnormal();
    node.vda(|counters| counters[8] = 3);
    let mut seconds = 0;
    let states = loop {
        node.vda(|counters| counters[9] += 1000);
        let states = node.abnormal();
        seconds += 1;
        if !states.is_empty() || seconds > 30 {
            break states;
        }
    };
    assert_eq!(names(&states), [("disk_hung", "vda")]);
    assert!((10..=12).contains(&seconds), "{seconds}");
    assert_eq!(states[0].summary, "vda under / answers nothing: 3 requests wait");
    node.vda(|counters| counters[4] += 1);
    assert_eq!(names(&node.abnormal()), [], "one ended");
    // A count that a driver lost: in flight for ever, never busy.
    for _ in 0..30 {
        assert_eq!(names(&node.abnormal()), []);
    }
}

#[test]
fn a_device_that_device_mapper_suspended_hangs() {
    let stats = format!("{DISKSTATS} 253       7 dm-0 1 0 8 1 1 0 8 1 0 2 2 0 0 0 0 0 0\n");
    let mut node = Node::new(MOUNTINFO, usual(stat(6_980_136_960, 511_653)), |root| {
        write(root, "proc/diskstats", &stats);
        // The files of drivers/md/dm-sysfs.c.
        write(root, "sys/block/dm-0/dm/name", "data\n");
        write(root, "sys/block/dm-0/dm/suspended", "0\n");
    });
    assert_eq!(names(&node.abnormal()), []);
    write(node.root.path(), "sys/block/dm-0/dm/suspended", "1\n");
    let states = node.until(20, |states| !states.is_empty());
    assert_eq!(names(&states), [("disk_hung", "dm-0")]);
    assert_eq!(states[0].summary, "dm-0 (data) is suspended: all its I/O waits");
    write(node.root.path(), "sys/block/dm-0/dm/suspended", "0\n");
    node.until(6, <[Abnormal]>::is_empty);
}

#[test]
fn commands_that_fail_are_counted_within_a_minute() {
    let stats = format!("{DISKSTATS}   8       0 sda 1 0 8 1 1 0 8 1 0 2 2 0 0 0 0 0 0\n");
    let mut node = Node::new(MOUNTINFO, usual(stat(6_980_136_960, 511_653)), |root| {
        write(root, "proc/diskstats", &stats);
        write(root, "sys/block/sda/device/ioerr_cnt", "0x12\n");
        write(root, "sys/block/sda/device/state", "running\n");
    });
    assert_eq!(names(&node.abnormal()), [], "what failed before is no news");
    write(node.root.path(), "sys/block/sda/device/ioerr_cnt", "0x16\n");
    for _ in 0..10 {
        assert_eq!(names(&node.abnormal()), [], "four are none yet");
    }
    write(node.root.path(), "sys/block/sda/device/ioerr_cnt", "0x20\n");
    let states = node.until(6, |states| !states.is_empty());
    assert_eq!(names(&states), [("disk_errors", "sda")]);
    assert!(states[0].summary.contains("14 commands failed within a minute, the driver says running"));
    let sda = node.tick().devices.into_iter().find(|device| device.name == "sda").unwrap();
    assert_eq!((sda.io_errors, sda.io_errors_lately), (Some(0x20), Some(14)));
    node.until(70, <[Abnormal]>::is_empty);
}

#[test]
fn garbage_fails_and_names_the_file() {
    let mut node = Node::new(MOUNTINFO, usual(stat(1, 1)), |_| {});
    write(node.root.path(), "proc/diskstats", "garbage\n");
    let error = read(&mut node.source, &node.host).unwrap_err().to_string();
    assert!(error.contains("/proc/diskstats"), "{error}");
}

#[test]
fn this_machine_is_read() {
    let host = Host::new("/", Clock::system(), Places::default());
    let mut source = open(&host).unwrap();
    let reading = read(&mut source, &host).unwrap();
    assert_eq!(reading.mounts_error, None);
    let root = reading.filesystems.iter().find(|it| it.mount_point == "/").unwrap();
    assert!(root.bytes.is_some() || root.kind == "overlay", "{root:?}");
}

/// In a mount and pid namespace of its own: real file systems, filled, remounted, broken.
#[test]
fn real_file_systems_in_a_namespace() {
    if !nix::unistd::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
        eprintln!("left out: mounting a loop device needs root and /dev/loop-control");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let made = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--mount-proc", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "collect::disk::tests::inside_the_namespace", "--ignored", "--nocapture"])
        .env("NODEWHY_DISK_FOLDER", folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&made.stdout);
    assert!(
        made.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&made.stderr)
    );
}

fn shell(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
#[ignore = "runs in the namespace that real_file_systems_in_a_namespace makes"]
fn inside_the_namespace() {
    let folder = std::env::var("NODEWHY_DISK_FOLDER").unwrap();
    let kubelet = format!("{folder}/kubelet");
    shell(&format!(
        "mkdir {kubelet}; truncate -s 32M {folder}/image; mkfs.ext4 -q -N 512 {folder}/image; \
         mount -o loop,errors=remount-ro {folder}/image {kubelet}; mkdir {kubelet}/bound; \
         mount --bind {kubelet}/bound {kubelet}/bound"
    ));
    let (clock, mover) = Clock::skippable();
    let places = Places { kubelet_root: Some(kubelet.clone().into()), ..Places::default() };
    let host = Host::new("/", clock, places);
    let mut source = open(&host).unwrap();
    let mut look = || {
        mover.skip(Duration::from_secs(6));
        let mut reading = read(&mut source, &host).unwrap();
        while source.filesystems.waits_for_local() {
            std::thread::sleep(Duration::from_millis(5));
            reading = read(&mut source, &host).unwrap();
        }
        reading = read(&mut source, &host).unwrap_or(reading);
        let mut noticed = Noticed::default();
        let at = host.clock().stamp();
        detect::detect(Pair { before: None, now: &reading, at }, &Thresholds::default(), &mut noticed);
        let mut states = noticed.states;
        states.retain(|state| state.subject.name == kubelet);
        (reading, states)
    };
    let df = |column: &str| -> u64 {
        let text = shell(&format!("df -B1 --output={column} {kubelet}"));
        text.lines().nth(1).unwrap().trim().parse().unwrap()
    };
    let (reading, states) = look();
    assert_eq!(names(&states), []);
    let nodefs = reading.nodefs.unwrap();
    assert_eq!(nodefs.mount_point, kubelet);
    assert_eq!(nodefs.total_bytes, Some(df("size")));
    assert_eq!(nodefs.available_bytes, Some(df("avail")));
    assert_eq!((nodefs.inodes, nodefs.inodes_free), (Some(df("itotal")), Some(df("iavail"))));
    assert!(nodefs.reserved_bytes.unwrap() > 0, "ext4 keeps 5 % for root");
    let filesystem = reading.filesystems.iter().find(|it| it.mount_point == kubelet).unwrap();
    assert_eq!((filesystem.kind.as_str(), filesystem.mounts), ("ext4", 2));

    shell(&format!("dd if=/dev/zero of={kubelet}/filler bs=1M 2>/dev/null || true"));
    let (reading, states) = look();
    assert_eq!(names(&states), [("filesystem_full", kubelet.as_str())]);
    assert_eq!(reading.nodefs.unwrap().available_bytes, Some(0));
    shell(&format!(
        "rm {kubelet}/filler; mkdir {kubelet}/many; cd {kubelet}/many; seq 1000 | xargs touch 2>/dev/null || true"
    ));
    let (_, states) = look();
    assert_eq!(names(&states), [("filesystem_inodes_full", kubelet.as_str())]);
    shell(&format!("rm -r {kubelet}/many"));
    assert_eq!(names(&look().1), []);

    shell(&format!("mount -o remount,ro {kubelet}"));
    let (_, states) = look();
    assert_eq!(names(&states), [("filesystem_readonly", kubelet.as_str())]);
    shell(&format!("mount -o remount,rw {kubelet}"));
    assert_eq!(names(&look().1), []);

    // The kernel's own way to make an error; it then stops writing (errors=remount-ro).
    let trigger =
        shell(&format!("echo /sys/fs/ext4/$(basename $(findmnt -no SOURCE {kubelet} | head -n 1))"));
    shell(&format!("echo 1 > {}/trigger_fs_error", trigger.trim()));
    let (reading, states) = look();
    assert_eq!(
        names(&states),
        [("filesystem_readonly", kubelet.as_str()), ("filesystem_errors", kubelet.as_str())]
    );
    let errors = reading.filesystems.iter().find_map(|it| it.errors.clone()).unwrap();
    assert_eq!((errors.count, errors.last_function.as_deref()), (1, Some("trigger_test_error")));
    assert!(shell(&format!("touch {kubelet}/x 2>&1 || true")).contains("Read-only file system"));
    shell(&format!("umount {kubelet}/bound; umount {kubelet}"));

    if Path::new("/dev/fuse").exists() {
        a_mount_that_hangs(&format!("{folder}/dead"));
    }
}

/// FUSE whose program answers nothing: the kernel waits for it as for a dead server.
fn a_mount_that_hangs(point: &str) {
    let script = format!(
        "mkdir {point}; exec 3<>/dev/fuse; \
         mount -i -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 dead {point}; exec sleep 120"
    );
    let mut program = Command::new("sh").args(["-ec", &script]).spawn().unwrap();
    let (clock, mover) = Clock::skippable();
    let host = Host::new("/", clock, Places::default());
    let mut source = open(&host).unwrap();
    let mut until = |what: &str, is: &dyn Fn(&[Abnormal]) -> bool| {
        for _ in 0..500 {
            mover.skip(Duration::from_secs(2));
            let began = std::time::Instant::now();
            let reading = read(&mut source, &host).unwrap();
            assert!(began.elapsed() < Duration::from_secs(1), "{what}: a tick waited");
            let mut noticed = Noticed::default();
            let at = host.clock().stamp();
            detect::detect(Pair { before: None, now: &reading, at }, &Thresholds::default(), &mut noticed);
            let of_it: Vec<Abnormal> =
                noticed.states.into_iter().filter(|state| state.subject.name == point).collect();
            if is(&of_it) {
                return reading;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{what}");
    };
    let hangs =
        until("it hangs", &|states| states.iter().any(|state| state.summary.ends_with("does not answer")));
    assert_eq!(hangs.unanswered_count, 1);
    let root = hangs.filesystems.iter().find(|it| it.mount_point == "/").unwrap();
    assert!(root.bytes.is_some() || root.kind == "overlay", "others answer: {root:?}");
    program.kill().unwrap();
    program.wait().unwrap();
    let ended =
        until("it is stale", &|states| states.iter().any(|state| state.summary.contains(" is stale: ")));
    assert_eq!(ended.unanswered_count, 0);
    shell(&format!("umount {point}"));
    until("it is gone", &<[Abnormal]>::is_empty);
}

#[test]
fn the_cost_of_a_tick() {
    // Told, not held against: `cargo nextest run the_cost --no-capture`.
    let host = Host::new("/", Clock::system(), Places::default());
    let mut source = open(&host).unwrap();
    read(&mut source, &host).unwrap();
    let started = cpu();
    for _ in 0..200 {
        read(&mut source, &host).unwrap();
    }
    eprintln!("disk: {:.1} us a tick", (cpu() - started) / 200.0 * 1e6);
    let mover = Arc::new(Clock::skippable());
    let host = Host::new("/", mover.0.clone(), Places::default());
    let mut source = open(&host).unwrap();
    let started = cpu();
    for _ in 0..100 {
        mover.1.skip(Duration::from_secs(5));
        read(&mut source, &host).unwrap();
    }
    eprintln!("disk: {:.1} us a tick with file systems", (cpu() - started) / 100.0 * 1e6);
    // 1,000 pods of ten mounts each, 200 of them with a volume of a server's.
    let mut mounts = MOUNTINFO.to_owned();
    for pod in 0..1000 {
        for mount in 0..9 {
            mounts += &format!(
                "{} 27 0:{} / /var/lib/kubelet/pods/{pod}/volumes/kubernetes.io~projected/{mount} rw,relatime shared:1 - \
                 tmpfs tmpfs rw,size=24684092k\n",
                1000 + pod * 10 + mount,
                1000 + pod * 10 + mount
            );
        }
        if pod < 200 {
            let point = format!("/var/lib/kubelet/pods/{pod}/volumes/kubernetes.io~nfs/data");
            mounts += &format!("{} 27 1:{pod} / {point} rw - nfs4 10.0.0.9:/export/{pod} rw\n", 20_000 + pod);
        }
    }
    let mut node = Node::new(&mounts, usual(stat(6_980_136_960, 511_653)), |_| {});
    node.tick();
    let started = cpu();
    for _ in 0..20 {
        node.tick();
    }
    let each = (cpu() - started) / 20.0 * 1e6;
    let reading = node.tick();
    eprintln!(
        "disk: {each:.1} us a tick with {} mounts, {} file systems; the state is {} bytes",
        mounts.lines().count(),
        reading.filesystems.len(),
        serde_json::to_string(&reading).unwrap().len()
    );
}

/// CPU time of this process, in seconds.
fn cpu() -> f64 {
    let usage = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap();
    usage.tv_sec() as f64 + usage.tv_nsec() as f64 / 1e9
}

#[test]
fn sums_over_disks_only_grow_though_a_volume_is_detached() {
    let vda = DISKSTATS.lines().find(|line| line.contains(" vda ")).unwrap();
    let with_two = format!("{DISKSTATS}{}\n", vda.replace("254       0 vda", "254      16 vdb"));
    assert!(with_two.contains(" vdb "));
    let mut node = Node::new(MOUNTINFO, usual(stat(6_980_136_960, 511_653)), |root| {
        fs::create_dir_all(root.join("sys/block/vdb")).unwrap();
        fs::write(root.join("proc/diskstats"), &with_two).unwrap();
    });
    let told = |reading: &Reading| {
        let mut sink = Sink::default();
        metrics(reading, &mut sink);
        sink.encode()
    };
    let both = told(&node.tick());
    assert!(both.contains("nodewhy_disk_reads_total 10810324\n"), "{both}");
    fs::write(node.root.path().join("proc/diskstats"), DISKSTATS).unwrap();
    let one = told(&node.tick());
    assert!(one.contains("nodewhy_disk_reads_total 10810324\n"), "{one}");
    // The times have 32 bits, and begin anew: the sum does not.
    assert!(one.contains("nodewhy_disk_read_seconds_total 13269.87\n"), "{one}");
    let wrapped = DISKSTATS.replace(vda, &vda.replace(" 6634935 ", " 1000 "));
    fs::write(node.root.path().join("proc/diskstats"), wrapped).unwrap();
    assert!(told(&node.tick()).contains("nodewhy_disk_read_seconds_total 13270.87\n"));
}
