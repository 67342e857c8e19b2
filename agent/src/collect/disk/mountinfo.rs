//! `/proc/1/mountinfo` (proc_pid_mountinfo(5)), and the file systems in it that can fill up, hang or turn read-only.
//!
//! A node with 250 pods has thousands of mounts: overlays, secrets, bind mounts of the same few file systems. A file
//! system is one by its device, however often it is mounted.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use crate::host::mounts::DeviceNumber;

/// More file systems than any node has; what is beyond is counted.
const MOST: usize = 256;

/// No file system of their own, or one that holds no files that anybody wrote.
const PSEUDO: &[&str] = &[
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fuse.lxcfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "overlay",
    "proc",
    "pstore",
    "ramfs",
    "rootfs",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "sysfs",
    "tracefs",
];
/// Always full, and never written.
const IMAGES: &[&str] = &["cramfs", "erofs", "iso9660", "romfs", "squashfs"];
/// Somebody else must answer: a server, a program.
const REMOTE: &[&str] = &[
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "fuse",
    "fuseblk",
    "glusterfs",
    "gpfs",
    "lustre",
    "nfs",
    "nfs4",
    "smb3",
    "smbfs",
    "virtiofs",
];
/// Volumes, credentials, sandboxes: a tmpfs a mount, by the hundred, each as large as its pod may make it.
const SMALL_TMPFS: &[&str] =
    &["/dev", "/sys", "/proc", "/run/user", "/run/credentials", "/run/containerd", "/run/netns"];

/// One line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line<'a> {
    id: u32,
    parent: u32,
    device: DeviceNumber,
    mount_point: &'a str,
    kind: &'a str,
    source: &'a str,
    super_options: &'a str,
}

/// A file system that is mounted somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mounted {
    /// Its device.
    pub(super) device: DeviceNumber,
    /// Where it is reached: the shortest mount point that no other mount hides.
    pub(super) mount_point: String,
    /// `ext4`, `nfs4`.
    pub(super) kind: String,
    /// `/dev/sda1`, `server:/export`.
    pub(super) source: String,
    /// How often it is mounted.
    pub(super) mounts: usize,
    /// Whether somebody else must answer.
    pub(super) is_remote: bool,
    /// The file system itself is read-only, not only this mount of it.
    pub(super) is_read_only: bool,
    /// The kernel stopped writing after an error (`emergency_ro`; Linux 7.2 shows it, 6.1 says `rw` and no more).
    pub(super) is_emergency_read_only: bool,
    /// `errors=remount-ro`, where the mount says so.
    pub(super) remounts_on_errors: bool,
}

/// The file systems of a mount table, by their devices; and how many were left out.
pub(super) fn file_systems(text: &str, kubelet_root: &str) -> Result<(Vec<Mounted>, usize), String> {
    let lines = parse(text)?;
    let children = Children::of(&lines);
    let mut by_device: BTreeMap<DeviceNumber, Vec<&Line<'_>>> = BTreeMap::new();
    for line in &lines {
        if is_wanted(line, kubelet_root) {
            by_device.entry(line.device).or_default().push(line);
        }
    }
    let mut found = Vec::new();
    for (device, mut mounts) in by_device {
        mounts.sort_by_key(|line| unescaped(line.mount_point).len());
        // One that is hidden cannot be asked. Where all are, the first one names the file system.
        let shown = mounts.iter().take(8).find(|line| children.is_reachable(line)).or(mounts.first());
        let Some(shown) = shown else { continue };
        let has = |option: &str| shown.super_options.split(',').any(|it| it == option);
        found.push(Mounted {
            device,
            mount_point: unescaped(shown.mount_point).into_owned(),
            kind: shown.kind.to_owned(),
            source: unescaped(shown.source).into_owned(),
            mounts: mounts.len(),
            is_remote: is_remote(shown.kind),
            is_read_only: has("ro"),
            is_emergency_read_only: has("emergency_ro"),
            remounts_on_errors: has("errors=remount-ro"),
        });
    }
    // What the node stands on comes before what pods mounted.
    found.sort_by_key(|mounted| (mounted.is_remote, mounted.mount_point.len(), mounted.mount_point.clone()));
    let left_out = found.len().saturating_sub(MOST);
    found.truncate(MOST);
    Ok((found, left_out))
}

/// The pod's UID and the volume's name, of a mount point that the kubelet made for a pod's volume
/// (`…/pods/UID/volumes/PLUGIN/NAME`).
pub(super) fn volume(mount_point: &str) -> Option<(&str, &str)> {
    let (_, rest) = mount_point.split_once("/pods/")?;
    let mut parts = rest.split('/');
    let uid = parts.next().filter(|uid| !uid.is_empty())?;
    (parts.next()? == "volumes").then_some(())?;
    let _plugin = parts.next()?;
    Some((uid, parts.next()?))
}

fn is_remote(kind: &str) -> bool {
    REMOTE.contains(&kind) || kind.starts_with("fuse.")
}

fn is_wanted(line: &Line<'_>, kubelet_root: &str) -> bool {
    if PSEUDO.contains(&line.kind) || IMAGES.contains(&line.kind) {
        return false;
    }
    if line.kind != "tmpfs" {
        return true;
    }
    let is_below = |folder: &str| {
        line.mount_point.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let is_volume = line.mount_point.contains("/pods/") || line.mount_point.contains("/sandboxes/");
    !is_volume && !is_below(kubelet_root) && !SMALL_TMPFS.iter().any(|folder| is_below(folder))
}

/// Which mount stands on which, where: the way that a path takes.
struct Children<'a> {
    below: HashMap<(u32, &'a str), u32>,
    root: Option<u32>,
}

impl<'a> Children<'a> {
    fn of(lines: &[Line<'a>]) -> Children<'a> {
        let ids: std::collections::HashSet<u32> = lines.iter().map(|line| line.id).collect();
        // The root's parent is out of sight, or itself.
        let is_root = |line: &&Line<'_>| {
            line.mount_point == "/" && (line.parent == line.id || !ids.contains(&line.parent))
        };
        let root = lines.iter().find(is_root).map(|line| line.id);
        let below = lines
            .iter()
            .filter(|line| Some(line.id) != root)
            .map(|line| ((line.parent, line.mount_point), line.id))
            .collect();
        Children { below, root }
    }

    /// Whether its mount point, looked up from the root, leads to it.
    fn is_reachable(&self, wanted: &Line<'_>) -> bool {
        let Some(mut at) = self.root else { return false };
        let path = wanted.mount_point;
        let ends = path.match_indices('/').map(|(end, _)| end).skip(1).chain([path.len()]);
        let prefixes = std::iter::once("/").chain(ends.filter_map(|end| path.get(..end)));
        // "/" twice is harmless: what stands on the root is stepped onto at once.
        for prefix in prefixes {
            // Mounts on one another end: each is another one. A table that was made up may go round.
            for _ in 0..self.below.len() {
                match self.below.get(&(at, prefix)) {
                    Some(next) if *next != at => at = *next,
                    _ => break,
                }
            }
        }
        at == wanted.id
    }
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn parse(text: &str) -> Result<Vec<Line<'_>>, String> {
    text.split_inclusive('\n')
        .map(|line| {
            let whole = line.strip_suffix('\n').ok_or_else(|| format!("the line `{line}` was cut"))?;
            parse_line(whole).ok_or_else(|| format!("the line `{whole}` is no mount"))
        })
        .collect()
}

fn parse_line(line: &str) -> Option<Line<'_>> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut fields = mount.split(' ');
    let (id, parent) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let (major, minor) = fields.next()?.split_once(':')?;
    let _root = fields.next()?;
    let mount_point = fields.next().filter(|path| path.starts_with('/'))?;
    let _options = fields.next()?;
    let mut fields = file_system.split(' ');
    // The source may be empty: two blanks.
    let (kind, source, super_options) = (fields.next()?, fields.next()?, fields.next()?);
    let device = (major.parse().ok()?, minor.parse().ok()?);
    Some(Line { id, parent, device, mount_point, kind, source, super_options })
}

/// The kernel writes blank, tab, newline and backslash as `\040`.
fn unescaped(text: &str) -> Cow<'_, str> {
    if !text.contains('\\') {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code =
            after.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // Recorded on Linux 6.18.44: process 1 of a virtual machine, cgroup v1.
    const MACHINE: &str = include_str!("../../../fixtures/disk/linux-6.18.44-mountinfo.txt");
    // Recorded on Linux 6.18.44 in a mount namespace: ext4 on a loop device at a path with a blank, bound a second
    // time read-only and remounted read-only as a whole; a tmpfs that hides another one.
    const MADE: &str = include_str!("../../../fixtures/disk/linux-6.18.44-mountinfo-made.txt");

    fn read(text: &str) -> Vec<Mounted> {
        file_systems(text, "/var/lib/kubelet").unwrap().0
    }

    #[test]
    fn a_recorded_machine_has_one_file_system() {
        let found = read(MACHINE);
        let names: Vec<(&str, &str, DeviceNumber)> =
            found.iter().map(|it| (it.mount_point.as_str(), it.kind.as_str(), it.device)).collect();
        assert_eq!(names[0], ("/", "ext4", (254, 0)));
        assert!(names.iter().skip(1).all(|(_, kind, _)| *kind == "tmpfs"), "{names:?}");
        assert!(
            !names.iter().any(|(path, ..)| path.starts_with("/dev") || path.starts_with("/sys")),
            "{names:?}"
        );
        assert!(!found[0].is_read_only && !found[0].is_remote);
    }

    #[test]
    fn a_file_system_is_one_however_often_it_is_mounted() {
        let found = read(MADE);
        let ext4: Vec<&Mounted> = found.iter().filter(|it| it.kind == "ext4" && it.device.0 == 7).collect();
        assert_eq!(ext4.len(), 1, "{found:?}");
        assert!(ext4[0].mount_point.ends_with("/a b"), "{:?}", ext4[0].mount_point);
        assert_eq!((ext4[0].mounts, ext4[0].is_read_only), (2, true));
        // A bind mount alone that is read-only says nothing of the file system.
        let root = found.iter().find(|it| it.mount_point == "/").unwrap();
        assert!(!root.is_read_only);
        // Two on one mount point: the upper one is the one that a path leads to.
        let twice: Vec<&Mounted> = found.iter().filter(|it| it.mount_point.ends_with("/twice")).collect();
        assert_eq!(twice.iter().map(|it| it.source.as_str()).collect::<Vec<_>>(), ["lower", "upper"]);
        let lines = parse(MADE).unwrap();
        let children = Children::of(&lines);
        let reachable =
            |source: &str| children.is_reachable(lines.iter().find(|line| line.source == source).unwrap());
        assert!(!reachable("lower") && reachable("upper"));
    }

    #[test]
    fn the_errors_mark_of_newer_kernels() {
        // The options as Linux 7.2.13 shows them after errors=remount-ro (the fixtures' notes), in a recorded line.
        let text = MACHINE.replace("rw,discard,", "rw,errors=remount-ro,emergency_ro,");
        let root = &read(&text)[0];
        assert!(root.is_emergency_read_only && root.remounts_on_errors && !root.is_read_only);
    }

    #[test]
    fn whose_volume_it_is() {
        let path =
            "/var/lib/kubelet/pods/6c1d6c1a-0000-4000-8000-00000000d15c/volumes/kubernetes.io~nfs/data";
        assert_eq!(volume(path), Some(("6c1d6c1a-0000-4000-8000-00000000d15c", "data")));
        for other in ["/", "/var/lib/kubelet", "/data/pods/x", "/data/pods/x/volumes", "/pods//volumes/a/b"] {
            assert_eq!(volume(other), None, "{other}");
        }
    }

    #[test]
    fn escapes() {
        assert_eq!(unescaped(r"/a\040b\134c\011"), "/a b\\c\t");
        assert_eq!(unescaped(r"/a\04"), r"/a\04");
        assert_eq!(unescaped(r"/a\999"), r"/a\999");
    }

    proptest! {
        #[test]
        fn a_cut_table_is_an_error_or_lacks_whole_lines(cut in 0..MADE.len()) {
            if let Ok((part, _)) = file_systems(&MADE[..cut], "/var/lib/kubelet") {
                prop_assert!(cut == 0 || MADE[..cut].ends_with('\n'));
                prop_assert!(part.len() <= read(MADE).len());
            }
        }

        #[test]
        fn a_flipped_byte_never_panics(at in 0..MADE.len(), byte: u8) {
            let mut bytes = MADE.as_bytes().to_vec();
            bytes[at] = byte;
            file_systems(&String::from_utf8_lossy(&bytes), "/var/lib/kubelet").ok();
        }

        #[test]
        fn made_up_tables_end(lines in prop::collection::vec((0..6u32, 0..6u32, "(/[ab]?){1,3}"), 0..20)) {
            let text: String = lines
                .iter()
                .map(|(id, parent, path)| format!("{id} {parent} 8:{id} / {path} rw - ext4 /dev/a rw\n"))
                .collect();
            file_systems(&text, "/var/lib/kubelet").unwrap();
        }
    }
}
