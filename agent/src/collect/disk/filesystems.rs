//! File systems over time: which there are, how full they are, which hang, which turned read-only.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use nodewhy_clock::Stamp;
use serde::Serialize;

use super::mountinfo::{self, Mounted};
use crate::host::mounts::{Asker, DeviceNumber, FsBytes, FsInodes, Known, Question};
use crate::host::{Host, ReadError};
use crate::thresholds::{Eviction, Thresholds};

/// For each so many mounts the table is read by [`LOCAL_EVERY`] more seldom: it costs 1 µs a mount, and a lock of the
/// node's that each mount and unmount needs.
const MOUNTS_A_LOOK: u32 = 2000;
/// The table of mounts, and local file systems.
const LOCAL_EVERY: Duration = Duration::from_secs(5);
/// File systems of servers: each question is a message.
const REMOTE_EVERY: Duration = Duration::from_secs(15);
/// A healthy one answers in microseconds; the tick waits no longer than this for it.
const WAIT: Duration = Duration::from_millis(20);

/// Where runtimes have their images: the first that is there. Of containerd, CRI-O, k3s, RKE2, k0s, microk8s, Docker.
const IMAGE_ROOTS: &[&str] = &[
    "/var/lib/containerd",
    "/var/lib/containers/storage",
    "/var/lib/rancher/k3s/agent/containerd",
    "/var/lib/rancher/rke2/agent/containerd",
    "/var/lib/k0s/containerd",
    "/var/snap/microk8s/common/var/lib/containerd",
    "/var/lib/docker",
];

/// What a file system is to the kubelet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The kubelet's root folder is on it.
    Nodefs,
    /// The runtime's images are on it.
    Imagefs,
}

impl Role {
    pub(super) fn name(self) -> &'static str {
        match self {
            Role::Nodefs => "nodefs",
            Role::Imagefs => "imagefs",
        }
    }

    pub(super) fn bytes(self, thresholds: &Thresholds) -> Option<Eviction> {
        match self {
            Role::Nodefs => thresholds.nodefs_available,
            Role::Imagefs => thresholds.imagefs_available,
        }
    }

    pub(super) fn inodes(self, thresholds: &Thresholds) -> Option<Eviction> {
        match self {
            Role::Nodefs => thresholds.nodefs_inodes_free,
            Role::Imagefs => thresholds.imagefs_inodes_free,
        }
    }
}

/// A file system, now.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Filesystem {
    /// Where it is mounted: the shortest path.
    pub mount_point: String,
    /// `ext4`, `nfs4`.
    pub kind: String,
    /// `/dev/sda1`, `server:/export`.
    pub source: String,
    /// `8:1`.
    pub device: String,
    /// How often it is mounted.
    pub mounts: usize,
    /// Whether a server or a program must answer for it.
    pub is_remote: bool,
    /// What it is to the kubelet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<Role>,
    /// The pod whose volume it is, by name, else by UID; and the volume's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Its bytes; `None`: it tells none, or did not answer.
    #[serde(flatten)]
    pub bytes: Option<FsBytes>,
    /// Its inodes; `None`: it has no fixed number of them, or did not answer.
    #[serde(flatten)]
    pub inodes: Option<FsInodes>,
    /// Why there is no size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
    /// The server no longer knows what is mounted (ESTALE), or the program behind it has ended (ENOTCONN).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_stale: bool,
    /// Since when it has not answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unanswered_since: Option<Timestamp>,
    /// For how long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unanswered_for_seconds: Option<f64>,
    /// Whether it is read-only as a whole.
    pub is_read_only: bool,
    /// Why it should not be read-only: it was not when this agent began, /etc/fstab wants it otherwise, or the kernel
    /// gave it up after an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turned_read_only: Option<String>,
    /// The errors that its driver counts, where it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errors: Option<Errors>,
}

/// What ext4 noted in its superblock (/sys/fs/ext4/DEVICE). It outlives a reboot, until fsck clears it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Errors {
    /// How many.
    pub count: u64,
    /// The newest, by the wall clock of then.
    pub last: Option<Timestamp>,
    /// The kernel's function that noticed it.
    pub last_function: Option<String>,
    /// Whether the newest is of this boot.
    pub is_of_this_boot: bool,
}

/// What every look found.
#[derive(Clone, Debug, Default)]
pub(super) struct Look {
    pub(super) filesystems: Arc<Vec<Filesystem>>,
    pub(super) left_out: usize,
    pub(super) error: Option<String>,
}

/// File systems over time.
#[derive(Debug)]
pub(super) struct Filesystems {
    asker: Asker,
    fstab: Fstab,
    mounted: Vec<Mounted>,
    left_out: usize,
    error: Option<String>,
    errors: BTreeMap<DeviceNumber, Errors>,
    /// Those that were seen writable, by device and source.
    was_writable: BTreeSet<(DeviceNumber, String)>,
    local: Option<Stamp>,
    remote: Option<Stamp>,
    /// When the table is read again, and how many lines it had.
    table: Duration,
    lines: u32,
    /// What was told last, and whether something had not answered then.
    told: Arc<Vec<Filesystem>>,
    waits: bool,
}

/// The mount points that /etc/fstab wants writable.
type Fstab = BTreeSet<String>;

impl Filesystems {
    pub(super) fn new(asker: Asker, host: &Host) -> Filesystems {
        // Without the file nothing is known to be wanted.
        let fstab = host.read("/etc/fstab").map(|text| writable(&text)).unwrap_or_default();
        Filesystems {
            asker,
            fstab,
            mounted: Vec::new(),
            left_out: 0,
            error: None,
            errors: BTreeMap::new(),
            was_writable: BTreeSet::new(),
            local: None,
            remote: None,
            table: Duration::ZERO,
            lines: 0,
            told: Arc::default(),
            waits: false,
        }
    }

    /// Whether a local one has not answered the newest question.
    #[cfg(test)]
    pub(super) fn waits_for_local(&self) -> bool {
        self.asker.waits(false)
    }

    /// How many threads ask.
    pub(super) fn threads(&self) -> usize {
        self.asker.threads()
    }

    /// The mount points of each device.
    pub(super) fn mount_points(&self) -> BTreeMap<DeviceNumber, Vec<String>> {
        let mut points: BTreeMap<DeviceNumber, Vec<String>> = BTreeMap::new();
        for mounted in &self.mounted {
            points.entry(mounted.device).or_default().push(mounted.mount_point.clone());
        }
        points
    }

    /// Asks what is due, and tells what is known.
    pub(super) fn look(&mut self, host: &Host, names: &BTreeMap<DeviceNumber, &str>, now: Stamp) -> Look {
        let kubelet_root = host.kubelet_root();
        let is_due =
            |last: Option<Stamp>, every| last.is_none_or(|last| now.boot.saturating_sub(last.boot) >= every);
        let roles = roles(&kubelet_root, host);
        let looks = is_due(self.local, LOCAL_EVERY);
        if looks {
            self.local = Some(now);
            if now.boot >= self.table {
                self.read_table(host, &kubelet_root.display().to_string());
                self.table = now.boot + LOCAL_EVERY * (self.lines / MOUNTS_A_LOOK).min(11);
            }
            self.read_errors(host, names, now);
            let asks_remote = is_due(self.remote, REMOTE_EVERY);
            if asks_remote {
                self.remote = Some(now);
            }
            let all: BTreeSet<Question> =
                roles.iter().map(|(_, it)| it.clone()).chain(self.mounted.iter().map(question)).collect();
            let due: Vec<Question> = all.iter().filter(|it| asks_remote || !it.is_remote).cloned().collect();
            self.asker.ask(due, &all);
            self.asker.wait(WAIT);
        }
        // Between two looks nothing changes, but for what hangs.
        if looks || self.waits {
            // Before: what answers meanwhile is told at the next tick.
            self.waits = self.asker.waits(true);
            let known = self.asker.known();
            let by_role = role_devices(&roles, &known);
            let tell = |mounted| self.filesystem(mounted, &known, &by_role, host, now);
            self.told = Arc::new(self.mounted.iter().map(tell).collect());
        }
        Look { filesystems: self.told.clone(), left_out: self.left_out, error: self.error.clone() }
    }

    fn read_table(&mut self, host: &Host, kubelet_root: &str) {
        let read = host.read_bytes("/proc/1/mountinfo").and_then(|bytes| {
            // A path may be any bytes.
            let text = String::from_utf8_lossy(&bytes);
            self.lines = u32::try_from(text.lines().count()).unwrap_or(u32::MAX);
            mountinfo::file_systems(&text, kubelet_root)
                .map_err(|what| ReadError::malformed("/proc/1/mountinfo", what))
        });
        match read {
            Ok((mounted, left_out)) => {
                self.mounted = mounted;
                self.left_out = left_out;
                self.error = None;
            }
            // What was mounted then is not known to be so now.
            Err(error) => {
                self.mounted.clear();
                self.error = Some(error.to_string());
                return;
            }
        }
        let now: BTreeSet<(DeviceNumber, String)> =
            self.mounted.iter().map(|it| (it.device, it.source.clone())).collect();
        self.was_writable.retain(|it| now.contains(it));
        let writable = self.mounted.iter().filter(|it| !it.is_read_only && !it.is_emergency_read_only);
        self.was_writable.extend(writable.map(|it| (it.device, it.source.clone())));
    }

    fn read_errors(&mut self, host: &Host, names: &BTreeMap<DeviceNumber, &str>, now: Stamp) {
        self.errors.clear();
        for mounted in self.mounted.iter().filter(|it| it.kind.starts_with("ext")) {
            let Some(name) = names.get(&mounted.device) else { continue };
            if let Some(errors) = ext4_errors(host, name, now) {
                self.errors.insert(mounted.device, errors);
            }
        }
    }

    fn filesystem(
        &self,
        mounted: &Mounted,
        known_all: &BTreeMap<Question, Known>,
        by_role: &[(Role, Option<DeviceNumber>, PathBuf)],
        host: &Host,
        now: Stamp,
    ) -> Filesystem {
        let known = known_all.get(&question(mounted)).cloned().unwrap_or_default();
        let answer = known.answer.as_ref().map(|answer| &answer.result);
        // btrfs has another device for each subvolume.
        let is_it = |device: DeviceNumber| device == mounted.device || mounted.kind == "btrfs";
        let stat = answer.and_then(|result| result.as_ref().ok()).filter(|stat| is_it(stat.device));
        // In a container the host's root is not to be seen, but a folder on the same file system may be: the kubelet's.
        let stat = stat.or_else(|| {
            let answers = known_all.values().filter_map(|known| known.answer.as_ref()?.result.as_ref().ok());
            answers.into_iter().find(|stat| mounted.kind != "btrfs" && stat.device == mounted.device)
        });
        let missing = match (answer, stat) {
            (_, Some(stat)) if stat.bytes.is_none() => Some("it tells no size".to_owned()),
            (_, Some(_)) => None,
            (Some(Ok(other)), None) => Some(format!(
                "another file system ({}:{}) is found at its mount point: the agent does not see the host's mounts \
                 (mount the host's root with HostToContainer propagation)",
                other.device.0, other.device.1
            )),
            (Some(Err(error)), None) => Some(error.text.clone()),
            (None, None) if known.asked.is_some() => Some("it has not answered".to_owned()),
            (None, None) => Some("it has not been asked yet".to_owned()),
        };
        let asked_for = known.asked.map(|asked| now.boot.saturating_sub(asked.boot));
        let roles = by_role
            .iter()
            .filter(|(_, device, path)| match device {
                Some(device) if mounted.kind != "btrfs" => *device == mounted.device,
                // By the path, then: the nearest mount point above it.
                Some(_) => self.nearest(path) == Some(&mounted.mount_point),
                None => false,
            })
            .map(|(role, ..)| *role)
            .collect();
        let errors = self.errors.get(&mounted.device).cloned();
        Filesystem {
            mount_point: mounted.mount_point.clone(),
            kind: mounted.kind.clone(),
            source: mounted.source.clone(),
            device: format!("{}:{}", mounted.device.0, mounted.device.1),
            mounts: mounted.mounts,
            is_remote: mounted.is_remote,
            roles,
            pod: pod(&mounted.mount_point, host),
            bytes: stat.and_then(|stat| stat.bytes),
            inodes: stat.and_then(|stat| stat.inodes),
            missing,
            is_stale: matches!(answer, Some(Err(error)) if error.is_stale),
            unanswered_since: known.asked.map(|asked| asked.wall),
            unanswered_for_seconds: asked_for.map(|passed| passed.as_secs_f64()),
            is_read_only: mounted.is_read_only || mounted.is_emergency_read_only,
            turned_read_only: self.turned_read_only(mounted, errors.as_ref()),
            errors,
        }
    }

    fn nearest(&self, path: &Path) -> Option<&String> {
        let above = self.mounted.iter().map(|it| &it.mount_point).filter(|it| path.starts_with(it));
        above.max_by_key(|it| it.len())
    }

    fn turned_read_only(&self, mounted: &Mounted, errors: Option<&Errors>) -> Option<String> {
        let said = |why: &str| Some(why.to_owned());
        if mounted.is_emergency_read_only {
            return said("the kernel stopped writing after an error (emergency_ro)");
        }
        if errors.is_some_and(|errors| errors.is_of_this_boot) && mounted.remounts_on_errors {
            return said("it had an error since the boot, and is mounted with errors=remount-ro");
        }
        if !mounted.is_read_only {
            return None;
        }
        if self.was_writable.contains(&(mounted.device, mounted.source.clone())) {
            return said("it was writable before");
        }
        self.fstab.contains(&mounted.mount_point).then(|| "/etc/fstab wants it writable".to_owned())
    }
}

/// What is asked to learn which file system has which role: the kubelet's own folder, and each of the runtimes', that
/// of the one that runs here first.
fn roles(kubelet_root: &Path, host: &Host) -> Vec<(Role, Question)> {
    let ask = |path: PathBuf| Question { is_remote: false, path, device: None };
    let runtime = host.runtime_process().map(|process| process.name).unwrap_or_default();
    let is_its = |path: &str| match runtime.as_str() {
        name if name.starts_with("crio") => path.contains("containers/storage"),
        name if name.starts_with("k3s") => path.contains("k3s"),
        name if name.starts_with("dockerd") || name.starts_with("cri-dockerd") => path.contains("docker"),
        _ => false,
    };
    let mut images = IMAGE_ROOTS.to_vec();
    images.sort_by_key(|path| !is_its(path));
    std::iter::once((Role::Nodefs, ask(kubelet_root.to_owned())))
        .chain(images.into_iter().map(|path| (Role::Imagefs, ask(PathBuf::from(path)))))
        .collect()
}

fn question(mounted: &Mounted) -> Question {
    Question {
        is_remote: mounted.is_remote,
        path: PathBuf::from(&mounted.mount_point),
        device: Some(mounted.device),
    }
}

/// Each role's device. Of the runtimes' folders the first that is there.
fn role_devices(
    roles: &[(Role, Question)],
    known: &BTreeMap<Question, Known>,
) -> Vec<(Role, Option<DeviceNumber>, PathBuf)> {
    let mut found: Vec<(Role, Option<DeviceNumber>, PathBuf)> = Vec::new();
    for (role, question) in roles {
        if found.iter().any(|(it, ..)| it == role) {
            continue;
        }
        let result = known.get(question).and_then(|known| known.answer.as_ref()).map(|answer| &answer.result);
        if let Some(Ok(stat)) = result {
            found.push((*role, Some(stat.device), question.path.clone()));
        }
    }
    found
}

/// `default/web-1, volume data`.
fn pod(mount_point: &str, host: &Host) -> Option<String> {
    let (uid, volume) = mountinfo::volume(mount_point)?;
    let pods = host.pods();
    let name = pods.as_ref().and_then(|pods| pods.names.get(uid));
    Some(match name {
        Some(pod) => format!("{}/{}, volume {volume}", pod.namespace, pod.name),
        None => format!("{uid}, volume {volume}"),
    })
}

/// `None`: no error was ever noted, or the kernel does not say.
fn ext4_errors(host: &Host, device: &str, now: Stamp) -> Option<Errors> {
    let line = |file: &str| {
        let text = host.read(format!("/sys/fs/ext4/{device}/{file}")).ok()?;
        text.strip_suffix('\n').map(str::to_owned)
    };
    let count = line("errors_count")?.parse::<u64>().ok().filter(|count| *count > 0)?;
    let seconds = line("last_error_time").and_then(|text| text.parse::<i64>().ok());
    let last = seconds.and_then(|seconds| Timestamp::from_second(seconds).ok());
    let booted = now.wall.checked_sub(now.boot).ok();
    let is_of_this_boot = last.zip(booted).is_some_and(|(last, booted)| last >= booted);
    let last_function = line("last_error_func").filter(|text| !text.is_empty());
    Some(Errors { count, last, last_function, is_of_this_boot })
}

/// The mount points of an fstab(5) whose options do not say `ro`, of file systems that are written to.
fn writable(fstab: &str) -> Fstab {
    let wanted = |line: &str| {
        let mut words = line.split_whitespace();
        let (_, mount_point, kind, options) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let is_disk = matches!(kind, "ext2" | "ext3" | "ext4" | "xfs" | "btrfs" | "f2fs");
        let is_writable = !options.split(',').any(|option| matches!(option, "ro" | "noauto"));
        (is_disk && is_writable && mount_point.starts_with('/')).then(|| mount_point.to_owned())
    };
    fstab.lines().filter(|line| !line.trim_start().starts_with('#')).filter_map(wanted).collect()
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    crate::fuzz::done(writable(&crate::fuzz::text(bytes)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fstab_wants_writable() {
        // The form of fstab(5); Debian 12's installer writes the first two lines so.
        let fstab = "# <file system> <mount point> <type> <options> <dump> <pass>\n\
                     UUID=0a-b / ext4 errors=remount-ro 0 1\n\
                     /dev/sr0 /media/cdrom0 udf,iso9660 user,noauto 0 0\n\
                     /dev/sdb1 /data xfs defaults 0 2\n\
                     /dev/sdc1 /image ext4 ro,nodev 0 2\n\
                     server:/export /mnt nfs defaults 0 0\n\
                     broken\n";
        assert_eq!(writable(fstab), Fstab::from(["/".to_owned(), "/data".to_owned()]));
    }
}
