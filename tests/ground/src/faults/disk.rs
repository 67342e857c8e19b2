//! Faults of disks: full, without inodes, read-only, slow, hung.
//!
//! containerd's state is on `/dev/mapper/data`, a linear device-mapper device over `/dev/vdb`: another table makes it
//! slow, or fail, under the mounted file system.

use std::time::Duration;

use anyhow::ensure;
use nodewhy_guest::channel::Clocks;
use nodewhy_proto::SubjectKind;

use super::runtime::idle_pod;
use crate::fault::{Fault, Injected, Sees, What};
use crate::node::Node;

const DATA: (SubjectKind, &str) = (SubjectKind::Node, "/dev/mapper/data");
const ROOT: (SubjectKind, &str) = (SubjectKind::Node, "/dev/vda");
const SCSI: (SubjectKind, &str) = (SubjectKind::Node, "/dev/sda");
/// qemu's name of the root disk.
const ROOT_DRIVE: &str = "virtio0";
/// Writes and waits for the disk, over and over: what a runtime that unpacks an image does.
const WRITER: &str = "systemd-run --quiet --collect --unit=writer sh -c \
                      'while :; do dd if=/dev/zero of=/var/lib/containerd/written bs=64k count=16 conv=fsync 2>/dev/null; sleep 0.1; done'";
const END_WRITER: &str = "systemctl kill --signal=KILL writer 2>/dev/null || true";

/// The root file system is full.
pub static NODEFS_FULL: Fault = Fault {
    name: "nodefs-full",
    about: "a file takes every byte of the root file system (the kubelet's nodefs: /var/lib/kubelet, /var/log)",
    cause: "disk_full",
    subject: ROOT,
    sees: &[Sees::of("disk", What::Finding("filesystem_full"))],
    inject: |node| fill(node, "/var/lib/ground/filler"),
    undo: |node| node.sh("rm -f /var/lib/ground/filler").map(drop),
    hold: Duration::from_secs(40),
    ..Fault::USUAL
};

/// containerd's file system is full.
pub static IMAGEFS_FULL: Fault = Fault {
    name: "imagefs-full",
    about: "a file takes every byte of containerd's file system (the kubelet's imagefs): no pod can be made",
    cause: "disk_full",
    subject: DATA,
    sees: &[Sees::of("disk", What::Finding("filesystem_full"))],
    inject: |node| {
        let injected = fill(node, "/var/lib/containerd/filler")?;
        Ok(injected.proven("making a pod", unlucky(node)))
    },
    undo: |node| node.sh("rm -f /var/lib/containerd/filler").map(drop),
    hold: Duration::from_secs(40),
    ..Fault::USUAL
};

/// A file that takes all that is free, in ever smaller steps. No byte of it is written.
fn fill(node: &Node, file: &str) -> anyhow::Result<Injected> {
    let since = node.clocks()?;
    node.sh(&format!(
        "at=0; for step in 67108864 4194304 262144 4096; do \
         while fallocate -o $at -l $step {file} 2>/dev/null; do at=$((at + step)); done; done"
    ))?;
    let df = node.sh(&format!("df -B1 {file}"))?;
    let write = node.says(&format!("dd if=/dev/zero of={file}.more bs=4k count=8 2>&1 || rm {file}.more"))?;
    ensure!(write.contains("No space left"), "there is room still: {df}{write}");
    Ok(Injected::since(since).proven("df -B1", df).proven("writing 32 KiB more", write))
}

/// No inode is left.
pub static INODES_EXHAUSTED: Fault = Fault {
    name: "inodes-exhausted",
    about: "empty files take every inode of containerd's file system; its bytes are free",
    cause: "inode_full",
    subject: DATA,
    sees: &[Sees::of("disk", What::Finding("filesystem_inodes_full"))],
    inject: |node| {
        let make = |but: &str| {
            format!(
                "mkdir -p {MANY}; cd {MANY}; seq $(( $(stat -f -c %d .) - {but} )) | sed 's/^/{but}-/' | xargs -r touch"
            )
        };
        node.sh(&make("16"))?;
        let since = node.clocks()?;
        node.sh(&make("0"))?;
        let touch = node.says(&format!("touch {MANY}/one-more || true"))?;
        ensure!(touch.contains("No space left"), "there are inodes still: {touch}");
        Ok(Injected::since(since)
            .proven("touch", touch)
            .proven("df -i", node.sh(&format!("df -i {MANY}"))?)
            .proven("df -B1", node.sh(&format!("df -B1 {MANY}"))?)
            .proven("making a pod", unlucky(node)))
    },
    undo: |node| node.sh(&format!("rm -rf {MANY}")).map(drop),
    hold: Duration::from_secs(40),
    ..Fault::USUAL
};

const MANY: &str = "/var/lib/containerd/many";

/// Every I/O fails.
pub static READONLY_BY_ERROR: Fault = Fault {
    name: "disk-dead",
    about: "containerd's disk answers each read and write with an error (dm-error): ext4 remounts itself read-only",
    cause: "fs_readonly",
    subject: DATA,
    sees: &[
        Sees::of("oom", What::KernelMessage("fs_remounted_readonly")),
        Sees::of("oom", What::KernelMessage("journal_aborted")),
        Sees::of("oom", What::KernelMessage("buffer_io_error")),
        Sees::of("disk", What::Finding("filesystem_errors")),
    ],
    inject: |node| {
        let since = table(node, "error")?;
        provoke(node, "/var/lib/containerd")?;
        Ok(broken(node, Injected::since(since), "dm-0", READ_ONLY)?.proven("making a pod", unlucky(node)))
    },
    undo: linear,
    each_time: true,
    ..Fault::USUAL
};

/// Every write fails.
pub static READONLY_BY_FLAKEY: Fault = Fault {
    name: "disk-write-errors",
    about: "containerd's disk fails each write and answers each read (dm-flakey, error_writes): ext4 remounts itself read-only",
    cause: "fs_readonly",
    subject: DATA,
    sees: &[
        Sees::of("oom", What::KernelMessage("fs_remounted_readonly")),
        Sees::of("oom", What::KernelMessage("buffer_io_error")),
        Sees::of("disk", What::Finding("filesystem_errors")),
    ],
    inject: |node| {
        node.sh("modprobe dm_flakey")?;
        // Up for 0 s, down for an hour.
        let since = table(node, "flakey /dev/vdb 0 0 3600 1 error_writes")?;
        provoke(node, "/var/lib/containerd")?;
        broken(node, Injected::since(since), "dm-0", READ_ONLY)
    },
    undo: linear,
    ..Fault::USUAL
};

/// A SCSI disk whose path fails.
pub static SCSI_ERRORS: Fault = Fault {
    name: "scsi-errors",
    about: "a SCSI disk (scsi_debug) that is a pod's volume answers each command with a transport error: ext4 remounts itself read-only",
    cause: "disk_io_error",
    subject: SCSI,
    sees: &[
        Sees::of("oom", What::KernelMessage("io_error")),
        Sees::of("oom", What::KernelMessage("fs_remounted_readonly")),
        Sees::of("disk", What::Finding("filesystem_errors")),
        Sees::of("disk", What::Finding("disk_errors")),
    ],
    inject: |node| {
        volume(node)?;
        let since = node.clocks()?;
        // 0x10: transport errors; every command.
        node.sh(&format!("echo 0x10 > {SCSI_DEBUG}/opts; echo 1 > {SCSI_DEBUG}/every_nth"))?;
        provoke(node, VOLUME)?;
        broken(node, Injected::since(since), "sda", READ_ONLY)
    },
    undo: end_volume,
    ..Fault::USUAL
};

/// A SCSI disk with bad sectors.
pub static SCSI_MEDIUM_ERROR: Fault = Fault {
    name: "scsi-medium-error",
    about: "ten sectors of a SCSI disk (scsi_debug) that is a pod's volume can't be read: the file there is lost, the file system goes on",
    cause: "disk_io_error",
    subject: SCSI,
    sees: &[Sees::of("oom", What::KernelMessage("io_error"))],
    inject: |node| {
        volume(node)?;
        node.sh(&format!(
            "dd if=/dev/zero of={VOLUME}/file bs=1M count=34 2>/dev/null; sync; echo 1 > /proc/sys/vm/drop_caches"
        ))?;
        // 2: medium errors, at the sectors that were named when the disk was made.
        node.sh(&format!("echo 2 > {SCSI_DEBUG}/opts"))?;
        let since = node.clocks()?;
        let read = node.says(&format!("dd if={VOLUME}/file of=/dev/null bs=64k 2>&1 || true"))?;
        Ok(broken(node, Injected::since(since), "sda", "critical medium error")?
            .proven("reading the file", read))
    },
    undo: end_volume,
    ..Fault::USUAL
};

/// A slow disk.
pub static SLOW: Fault = Fault {
    name: "disk-slow",
    about: "each I/O of containerd's disk takes 1.5 s (dm-delay) while something writes there",
    cause: "disk_slow",
    subject: DATA,
    sees: &[Sees::of("pressure", What::Finding("io_stalled")), Sees::of("disk", What::Finding("disk_slow"))],
    inject: |node| {
        node.sh("modprobe dm_delay")?;
        node.sh(WRITER)?;
        let since = table(node, "delay /dev/vdb 0 1500")?;
        std::thread::sleep(Duration::from_secs(5));
        Ok(Injected::since(since)
            .proven("dmsetup table data", node.sh("dmsetup table data")?)
            .proven("tasks in D", node.sh(IN_D)?)
            .proven("/proc/pressure/io", node.read("/proc/pressure/io")?))
    },
    undo: |node| {
        node.sh(END_WRITER)?;
        linear(node)
    },
    hold: Duration::from_secs(60),
    ..Fault::USUAL
};

/// A disk that answers nothing.
pub static HUNG: Fault = Fault {
    name: "disk-hung",
    about: "containerd's disk answers nothing (its device-mapper device is suspended) while something writes there and a pod is being made",
    cause: "disk_slow",
    subject: DATA,
    sees: &[
        Sees::of("pressure", What::Finding("io_stalled")),
        Sees::of("oom", What::KernelMessage("hung_task")),
        Sees::of("disk", What::Finding("disk_hung")),
    ],
    inject: |node| {
        // 120 s by default: no fault takes that long here.
        node.write("/proc/sys/kernel/hung_task_timeout_secs", "10")?;
        node.sh(WRITER)?;
        let since = node.clocks()?;
        // Neither frozen nor flushed: what is written is queued, as it is for a disk that is silent.
        node.sh("dmsetup suspend --nolockfs --noflush data")?;
        let pod = idle_pod("waiting").to_string();
        node.write("/run/waiting.json", &pod)?;
        node.sh("systemd-run --quiet --collect --unit=waiting /usr/lib/ground/pods run /run/waiting.json")?;
        std::thread::sleep(Duration::from_secs(4));
        Ok(Injected::since(since)
            .proven("dmsetup info data", node.sh("dmsetup info data")?)
            .proven("tasks in D", node.sh(IN_D)?)
            .proven("systemctl is-active waiting", node.says("systemctl is-active waiting || true")?)
            .proven("/proc/pressure/io", node.read("/proc/pressure/io")?))
    },
    undo: |node| {
        node.sh("dmsetup resume --noudevsync data")?;
        node.sh(END_WRITER)?;
        node.write("/proc/sys/kernel/hung_task_timeout_secs", "120").map(drop)
    },
    hold: Duration::from_secs(60),
    each_time: true,
    ..Fault::USUAL
};

/// The root disk answers nothing.
pub static ROOT_HUNG: Fault = Fault {
    name: "root-disk-hung",
    about: "the root disk answers nothing any more (qemu lets one byte a second through, as a cloud's throttle does) while something \
            writes there",
    cause: "disk_slow",
    subject: ROOT,
    sees: &[Sees::of("pressure", What::Finding("io_stalled")), Sees::of("disk", What::Finding("disk_hung"))],
    inject: |node| {
        node.sh(
            "systemd-run --quiet --collect --unit=writer sh -c \
             'while :; do dd if=/dev/zero of=/var/lib/ground/written bs=64k count=16 conv=fsync 2>/dev/null; sleep 0.1; done'",
        )?;
        let since = node.clocks()?;
        node.machine()?.throttle(ROOT_DRIVE, 1)?;
        // No program can be started by what follows: its file may have to be read from that disk.
        std::thread::sleep(Duration::from_secs(4));
        let before = node.read("/sys/block/vda/stat")?;
        std::thread::sleep(Duration::from_secs(2));
        let after = node.read("/sys/block/vda/stat")?;
        Ok(Injected::since(since)
            .proven("/sys/block/vda/stat", before)
            .proven("/sys/block/vda/stat, 2 s later", after)
            .proven("/proc/pressure/io", node.read("/proc/pressure/io")?))
    },
    undo: |node| {
        node.machine()?.throttle(ROOT_DRIVE, 0)?;
        node.sh(END_WRITER).map(drop)
    },
    hold: Duration::from_secs(60),
    ..Fault::USUAL
};

/// A disk that is too slow for etcd.
pub static ETCD_FSYNC_SLOW: Fault = Fault {
    name: "etcd-fsync-slow",
    about: "etcd runs on a disk of its own, and is written to; then each write of that disk takes 0.5 s (dm-delay), and a flush of its log many of them",
    cause: "etcd_slow_disk",
    subject: (SubjectKind::Process, "etcd"),
    sees: &[
        Sees::of("pressure", What::Finding("io_stalled")),
        Sees::of("disk", What::Finding("disk_slow")),
        Sees::of("control_plane", What::Finding("etcd_slow_disk")),
    ],
    inject: |node| {
        node.sh("modprobe loop; modprobe dm_delay; truncate -s 256M /var/lib/ground/etcd.disk")?;
        node.sh(&format!(
            "{ETCD_DISK}; losetup $l /var/lib/ground/etcd.disk; \
             dmsetup create etcd --noudevsync --table \"0 $(blockdev --getsz $l) delay $l 0 0\"; dmsetup mknodes; \
             mkfs.ext4 -q /dev/mapper/etcd; mkdir -p /var/lib/etcd; mount /dev/mapper/etcd /var/lib/etcd; \
             chown etcd:etcd /var/lib/etcd"
        ))?;
        // The log's form since 3.5.
        node.drop_in("etcd", "Environment=ETCD_LOGGER=zap")?;
        node.sh("systemctl start etcd")?;
        // base64, as etcd's gateway wants it: key, value. Debian's static busybox crashes when it posts.
        let put = r#"{"key":"a2V5","value":"dmFsdWU="}"#;
        let length = put.len();
        node.write(
            "/run/put",
            &format!("POST /v3/kv/put HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{put}"),
        )?;
        node.sh(
            "systemd-run --quiet --collect --unit=writer bash -c \
             'while :; do { cat /run/put >&3; cat <&3 >/dev/null; } 3<>/dev/tcp/127.0.0.1/2379 || sleep 1; done'",
        )?;
        node.until(Duration::from_secs(30), "etcd writes what it is given", |node| {
            Ok(node.output(&format!("{ETCD_FSYNC} | grep -q '_count [1-9][0-9]'"))?.code == 0)
        })?;
        let calm = node.sh(ETCD_FSYNC)?;
        let since = etcd_delay(node, 500)?;
        node.until(Duration::from_secs(30), "etcd says that its disk is slow", |node| {
            Ok(node.output("journalctl -u etcd -o cat --no-pager | grep -q 'slow fdatasync'")?.code == 0)
        })?;
        let said = node.sh(
            "journalctl -u etcd -o cat --no-pager | grep -E 'slow fdatasync|took too long' | tail -n 3",
        )?;
        Ok(Injected::since(since)
            .proven("http://127.0.0.1:2379/metrics, before", calm)
            .proven("http://127.0.0.1:2379/metrics", node.sh(ETCD_FSYNC)?)
            .proven("journalctl -u etcd", said))
    },
    undo: |node| {
        node.sh(END_WRITER)?;
        etcd_delay(node, 0).map(drop)
    },
    hold: Duration::from_secs(90),
    ..Fault::USUAL
};

const ETCD_DISK: &str = "l=/dev/loop0";
const ETCD_FSYNC: &str =
    "busybox wget -q -O - http://127.0.0.1:2379/metrics | grep '^etcd_disk_wal_fsync_duration_seconds'";

/// Another delay for each write of etcd's disk; reads come at once.
fn etcd_delay(node: &Node, milliseconds: u32) -> anyhow::Result<Clocks> {
    let since = node.clocks()?;
    node.sh(&format!(
        "{ETCD_DISK}; dmsetup suspend --nolockfs etcd; \
         dmsetup reload etcd --table \"0 $(blockdev --getsz $l) delay $l 0 0 $l 0 {milliseconds}\"; dmsetup resume --noudevsync etcd"
    ))?;
    Ok(since)
}

/// Tasks that wait without being woken by signals, with what they wait in.
pub(super) const IN_D: &str = "ps -eLo stat,pid,comm,wchan:32 | grep '^D' || true";
/// Where a pod's volume is mounted, by the kubelet's habit.
const VOLUME: &str =
    "/var/lib/kubelet/pods/6c1d6c1a-0000-4000-8000-00000000d15c/volumes/kubernetes.io~csi/data/mount";
const READ_ONLY: &str = "Remounting filesystem read-only";
const SCSI_DEBUG: &str = "/sys/bus/pseudo/drivers/scsi_debug";

/// Another table for containerd's disk; the clocks just before. udev is not waited for: it reads the slow disk.
fn table(node: &Node, target: &str) -> anyhow::Result<Clocks> {
    let since = node.clocks()?;
    node.sh(&format!(
        "dmsetup suspend --nolockfs data; dmsetup reload data --table \"0 $(blockdev --getsz /dev/vdb) {target}\"; dmsetup resume --noudevsync data"
    ))?;
    Ok(since)
}

/// The disk as it was. A file system that remounted itself read-only stays so until the node starts anew.
fn linear(node: &mut Node) -> anyhow::Result<()> {
    table(node, "linear /dev/vdb 0").map(drop)
}

/// ext4 meets the error when it writes its journal, and acts on it when something writes next.
fn provoke(node: &Node, folder: &str) -> anyhow::Result<()> {
    node.says(&format!("set +e; cd {folder}; echo b > b; sync -f .; touch c; touch d")).map(drop)
}

fn broken(node: &Node, injected: Injected, device: &str, sign: &str) -> anyhow::Result<Injected> {
    node.until(Duration::from_secs(15), &format!("the kernel says {sign:?} of {device}"), |node| {
        Ok(node.output(&format!("dmesg | grep {device} | grep -q '{sign}'"))?.code == 0)
    })?;
    let said = node.sh(&format!("dmesg | grep {device} | grep -iE 'error|abort|read-only' | tail -n 12"))?;
    let mounts = node.sh(&format!("grep -E 'mapper/data|{device}' /proc/mounts"))?;
    Ok(injected.proven("dmesg", said).proven("/proc/mounts", mounts))
}

fn unlucky(node: &Node) -> String {
    node.pod(&idle_pod("unlucky")).map_or_else(|error| format!("{error:#}"), |made| made.to_string())
}

fn volume(node: &Node) -> anyhow::Result<()> {
    node.sh(&format!(
        "modprobe scsi_debug dev_size_mb=48 medium_error_start=60000; i=0; until [ -b /dev/sda ]; do i=$((i+1)); [ $i -lt 50 ]; sleep 0.2; done; \
         mkfs.ext4 -q /dev/sda; mkdir -p {VOLUME}; mount -o errors=remount-ro /dev/sda {VOLUME}; echo a > {VOLUME}/a; sync"
    ))
    .map(drop)
}

fn end_volume(node: &mut Node) -> anyhow::Result<()> {
    node.sh(&format!("echo 0 > {SCSI_DEBUG}/every_nth; echo 0 > {SCSI_DEBUG}/opts; umount {VOLUME}"))
        .map(drop)
}
