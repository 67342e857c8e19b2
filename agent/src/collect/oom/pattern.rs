//! The kernel's other lines that matter, each with its pattern's name and what it names.
//!
//! One table. Plain searches, no regular expressions: most lines are turned away by their first bytes.

use std::collections::BTreeMap;

/// What a pattern found in a line: what it names, in the order in which it matters.
type Fields<'a> = Vec<(&'static str, &'a str)>;

/// One pattern.
pub(super) struct Pattern {
    /// Its name, in events and metrics.
    pub(super) name: &'static str,
    /// What it names, if the line is one. The first field is its subject: lines of one subject are alike.
    fields: for<'a> fn(&'a str) -> Option<Fields<'a>>,
}

/// A line that matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Match {
    /// The pattern's name.
    pub(super) pattern: &'static str,
    /// What makes two lines of the pattern alike.
    pub(super) subject: String,
    /// What it names.
    pub(super) fields: BTreeMap<String, String>,
}

/// The first pattern that the text is of. Only the kernel's own lines (facility 0) belong here.
pub(super) fn find(text: &str) -> Option<Match> {
    let line = text.split('\n').next()?;
    PATTERNS.iter().find_map(|pattern| {
        let fields = (pattern.fields)(line)?;
        let subject = fields.first().map_or(String::new(), |(_, value)| (*value).to_owned());
        let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Some(Match { pattern: pattern.name, subject, fields })
    })
}

/// Every pattern, in the order in which they are tried.
pub(super) static PATTERNS: &[Pattern] = &[
    // kernel/hung_task.c: "INFO: task touch:749 blocked for more than 15 seconds."
    Pattern {
        name: "hung_task",
        fields: |line| {
            let (task, rest) = line.strip_prefix("INFO: task ")?.split_once(" blocked ")?;
            let (task, pid) = task.rsplit_once(':')?;
            let (_, seconds) = rest.split_once("for more than ")?;
            Some(vec![("task", task), ("pid", pid), ("seconds", seconds.strip_suffix(" seconds.")?)])
        },
    },
    // kernel/watchdog.c: "watchdog: BUG: soft lockup - CPU#6 stuck for 23s! [VM Thread:4054]"
    Pattern {
        name: "soft_lockup",
        fields: |line| {
            let (_, rest) = line.split_once("BUG: soft lockup - CPU#")?;
            let (cpu, rest) = rest.split_once(" stuck for ")?;
            let (seconds, task) = rest.split_once("s! [")?;
            let (task, pid) = task.strip_suffix(']')?.rsplit_once(':')?;
            Some(vec![("cpu", cpu), ("seconds", seconds), ("task", task), ("pid", pid)])
        },
    },
    Pattern {
        name: "hard_lockup",
        fields: |line| {
            let (before, cpu) = line.split_once("Watchdog detected hard LOCKUP on cpu ")?;
            before.contains("watchdog: ").then(|| vec![("cpu", cpu)])
        },
    },
    // kernel/rcu/tree_stall.h: "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:"
    Pattern {
        name: "rcu_stall",
        fields: |line| {
            let (flavor, rest) = line.strip_prefix("rcu: INFO: ")?.split_once(' ')?;
            let stall = rest.starts_with("self-detected stall on CPU")
                || rest.starts_with("detected stalls on CPUs/tasks")
                || rest.starts_with("detected expedited stalls on CPUs/tasks");
            stall.then(|| vec![("flavor", flavor)])
        },
    },
    // fs/ext4/super.c, also jbd2's users; fs/btrfs says it in its own words.
    Pattern {
        name: "fs_remounted_readonly",
        fields: |line| {
            let (filesystem, rest) = line.split_once(" (")?;
            let (device, what) = rest.split_once("): ")?;
            (what == "Remounting filesystem read-only")
                .then(|| vec![("device", device), ("filesystem", filesystem)])
        },
    },
    // fs/ext4/super.c: "EXT4-fs error (device sda): ext4_journal_check_start:83: comm mkdir: …"
    Pattern {
        name: "ext4_error",
        fields: |line| {
            let (device, rest) = line.strip_prefix("EXT4-fs error (device ")?.split_once(')')?;
            Some(vec![("device", device), ("error", rest.trim_start_matches([':', ' ']))])
        },
    },
    // fs/jbd2/journal.c: "Aborting journal on device sda-8."
    Pattern {
        name: "journal_aborted",
        fields: |line| {
            Some(vec![("device", line.strip_prefix("Aborting journal on device ")?.strip_suffix('.')?)])
        },
    },
    // fs/xfs/xfs_fsops.c. The words changed with 6.x.
    Pattern {
        name: "xfs_shutdown",
        fields: |line| {
            let (device, what) = line.strip_prefix("XFS (")?.split_once("): ")?;
            let down =
                what.contains("Shutting down filesystem") || what.contains("has been shut down due to");
            down.then(|| vec![("device", device), ("reason", what)])
        },
    },
    // block/blk-core.c: "I/O error, dev sda, sector 28674 op 0x1:(WRITE) …", "critical medium error, dev …".
    Pattern {
        name: "io_error",
        fields: |line| {
            let line = line.strip_prefix("blk_update_request: ").unwrap_or(line);
            let (error, rest) = line.split_once(" error, dev ")?;
            let (device, rest) = rest.split_once(", sector ")?;
            let (sector, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            let mut fields = vec![("device", device), ("error", error), ("sector", sector)];
            let operation = rest.split_once(":(").and_then(|(_, operation)| operation.split_once(')'));
            fields.extend(operation.map(|(operation, _)| ("operation", operation)));
            Some(fields)
        },
    },
    // fs/buffer.c: "Buffer I/O error on dev sda, logical block 16386, lost sync page write".
    Pattern {
        name: "buffer_io_error",
        fields: |line| {
            let rest = line.strip_prefix("Buffer I/O error on dev")?;
            let (device, rest) =
                rest.trim_start_matches("ice").trim_start().split_once(", logical block ")?;
            Some(vec![("device", device), ("block", rest.split_once(',').map_or(rest, |(block, _)| block))])
        },
    },
    // net/netfilter/nf_conntrack_core.c: "nf_conntrack: nf_conntrack: table full, dropping packet"
    Pattern {
        name: "conntrack_table_full",
        fields: |line| line.contains("nf_conntrack: table full").then(Vec::new),
    },
    // net/core/neighbour.c: "neighbour: arp_cache: neighbor table overflow!"
    Pattern {
        name: "neighbor_table_overflow",
        fields: |line| {
            let line = line.strip_suffix("neighbor table overflow!")?.trim_end_matches([':', ' ']);
            Some(vec![("table", line.strip_prefix("neighbour: ").unwrap_or(line))])
        },
    },
    // net/core/dev.c: "unregister_netdevice: waiting for lo to become free. Usage count = 2"
    Pattern {
        name: "unregister_netdevice",
        fields: |line| {
            let rest = line.strip_prefix("unregister_netdevice: waiting for ")?;
            let (device, rest) = rest.split_once(" to become free. Usage count = ")?;
            Some(vec![("device", device), ("usage_count", rest)])
        },
    },
    // kernel/cgroup/pids.c: "cgroup: fork rejected by pids controller in /kubepods.slice/…"
    Pattern {
        name: "fork_rejected_by_pids",
        fields: |line| {
            Some(vec![("cgroup", line.strip_prefix("cgroup: fork rejected by pids controller in ")?)])
        },
    },
    // fs/file_table.c: "VFS: file-max limit 8192 reached"
    Pattern {
        name: "file_max_reached",
        fields: |line| {
            Some(vec![("limit", line.strip_prefix("VFS: file-max limit ")?.strip_suffix(" reached")?)])
        },
    },
    // fs/lockd and net/sunrpc/clnt.c: "nfs: server 10.100.0.60 not responding, still trying"
    Pattern {
        name: "nfs_server_not_responding",
        fields: |line| {
            let (server, rest) = line.strip_prefix("nfs: server ")?.split_once(" not responding, ")?;
            Some(vec![("server", server), ("then", rest)])
        },
    },
    // net/sched/sch_generic.c, before and since 6.9.
    Pattern {
        name: "netdev_watchdog",
        fields: |line| {
            let (before, after) = line.split_once("NETDEV WATCHDOG: ")?;
            let (head, queue) = after.split_once("transmit queue ")?;
            let device = match before.trim_end_matches([':', ' ']) {
                "" => head.split_once(' ')?.0,
                named => named.rsplit_once(' ').map_or(named, |(_, device)| device),
            };
            Some(vec![("device", device), ("queue", queue.split_once(' ').map_or(queue, |(queue, _)| queue))])
        },
    },
    Pattern {
        name: "kernel_panic",
        fields: |line| Some(vec![("reason", line.strip_prefix("Kernel panic - not syncing: ")?)]),
    },
    // What an oops begins with on x86, and on arm64.
    Pattern {
        name: "kernel_oops",
        fields: |line| {
            const BEGINNINGS: [&str; 7] = [
                "BUG: kernel NULL pointer dereference",
                "BUG: unable to handle",
                "Unable to handle kernel",
                "kernel BUG at ",
                "Oops: ",
                "general protection fault",
                "Internal error: Oops",
            ];
            let kind = BEGINNINGS.into_iter().find(|beginning| line.starts_with(beginning))?;
            Some(vec![("oops", kind.trim_end_matches([':', ' ']))])
        },
    },
    // arch/x86/kernel/cpu/mce: one such line a batch; those that follow it are details.
    Pattern { name: "mce", fields: |line| line.starts_with("mce: [Hardware Error]: ").then(Vec::new) },
    // mm/oom_kill.c. The kill itself is an event of its own.
    Pattern {
        name: "memory_oom_group",
        fields: |line| {
            let rest = line.strip_prefix("Tasks in ")?;
            Some(vec![("cgroup", rest.strip_suffix(" are going to be killed due to memory.oom.group set")?)])
        },
    },
    Pattern {
        name: "oom_no_killable_process",
        fields: |line| line.starts_with("Out of memory and no killable processes").then(Vec::new),
    },
    // mm/oom_kill.c: the victim's memory did not come back, and the kernel will kill another.
    Pattern {
        name: "oom_reap_failed",
        fields: |line| {
            let (pid, name) = line.strip_prefix("oom_reaper: unable to reap pid:")?.split_once(" (")?;
            Some(vec![("pid", pid), ("name", name.strip_suffix(')')?)])
        },
    },
    // mm/page_alloc.c: "kswapd0: page allocation failure: order:0, mode:0x820(GFP_ATOMIC), …"
    Pattern {
        name: "page_allocation_failure",
        fields: |line| {
            let (task, rest) = line.split_once(": page allocation failure: order:")?;
            Some(vec![("task", task), ("order", rest.split_once(',').map_or(rest, |(order, _)| order))])
        },
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Seen = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

    /// Lines that were seen, with where. Those of the fixtures are tested with the fixtures.
    const SEEN: &[Seen] = &[
        // eks-node-monitoring-agent's tests.
        (
            "watchdog: BUG: soft lockup - CPU#6 stuck for 23s! [VM Thread:4054]",
            "soft_lockup",
            &[("cpu", "6"), ("seconds", "23"), ("task", "VM Thread"), ("pid", "4054")],
        ),
        (
            "blk_update_request: I/O error, dev nvme1n1, sector 1234567",
            "io_error",
            &[("device", "nvme1n1"), ("error", "I/O"), ("sector", "1234567")],
        ),
        // node-problem-detector's problem generator.
        (
            "INFO: task docker:20744 blocked for more than 120 seconds.",
            "hung_task",
            &[("task", "docker"), ("pid", "20744"), ("seconds", "120")],
        ),
        (
            "EXT4-fs (sda1): Remounting filesystem read-only",
            "fs_remounted_readonly",
            &[("device", "sda1"), ("filesystem", "EXT4-fs")],
        ),
        // Kernel mailing lists and public bug reports.
        ("watchdog: Watchdog detected hard LOCKUP on cpu 3", "hard_lockup", &[("cpu", "3")]),
        ("NMI watchdog: Watchdog detected hard LOCKUP on cpu 1", "hard_lockup", &[("cpu", "1")]),
        ("rcu: INFO: rcu_sched self-detected stall on CPU", "rcu_stall", &[("flavor", "rcu_sched")]),
        ("rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", "rcu_stall", &[("flavor", "rcu_preempt")]),
        (
            "XFS (dm-0): Shutting down filesystem. Please unmount the filesystem and rectify the problem(s)",
            "xfs_shutdown",
            &[
                ("device", "dm-0"),
                (
                    "reason",
                    "Shutting down filesystem. Please unmount the filesystem and rectify the problem(s)",
                ),
            ],
        ),
        (
            "XFS (sda6): Filesystem has been shut down due to log error (0x2).",
            "xfs_shutdown",
            &[("device", "sda6"), ("reason", "Filesystem has been shut down due to log error (0x2).")],
        ),
        (
            "neighbour: arp_cache: neighbor table overflow!",
            "neighbor_table_overflow",
            &[("table", "arp_cache")],
        ),
        (
            "unregister_netdevice: waiting for lo to become free. Usage count = 2",
            "unregister_netdevice",
            &[("device", "lo"), ("usage_count", "2")],
        ),
        ("VFS: file-max limit 8192 reached", "file_max_reached", &[("limit", "8192")]),
        (
            "nfs: server 10.100.0.60 not responding, still trying",
            "nfs_server_not_responding",
            &[("server", "10.100.0.60"), ("then", "still trying")],
        ),
        (
            "NETDEV WATCHDOG: eth0 (igb): transmit queue 0 timed out",
            "netdev_watchdog",
            &[("device", "eth0"), ("queue", "0")],
        ),
        (
            "i40e 0000:a1:00.0 ens44f0np0: NETDEV WATCHDOG: CPU: 214: transmit queue 22 timed out 5376 ms",
            "netdev_watchdog",
            &[("device", "ens44f0np0"), ("queue", "22")],
        ),
        (
            "BUG: kernel NULL pointer dereference, address: 0000000000000018",
            "kernel_oops",
            &[("oops", "BUG: kernel NULL pointer dereference")],
        ),
        ("Oops: 0000 [#1] SMP NOPTI", "kernel_oops", &[("oops", "Oops")]),
        ("mce: [Hardware Error]: Machine check events logged", "mce", &[]),
        ("Out of memory and no killable processes...", "oom_no_killable_process", &[]),
        (
            "kworker/u8:4: page allocation failure: order:0, mode:0x404000(GFP_NOWAIT|__GFP_COMP)",
            "page_allocation_failure",
            &[("task", "kworker/u8:4"), ("order", "0")],
        ),
        (
            "cgroup: fork rejected by pids controller in /kubepods/burstable/pod22612ffb-4523-4958-b6dd-a80bd35fd325/8e8c5f52932538520f5b8042a2b602c1c5a07805ee073f1892ad27b0d818b584",
            "fork_rejected_by_pids",
            &[(
                "cgroup",
                "/kubepods/burstable/pod22612ffb-4523-4958-b6dd-a80bd35fd325/8e8c5f52932538520f5b8042a2b602c1c5a07805ee073f1892ad27b0d818b584",
            )],
        ),
        // fixtures/kmsg/linux-*/kernel-panic-console.txt: the console's text of it.
        (
            "Kernel panic - not syncing: sysrq triggered crash",
            "kernel_panic",
            &[("reason", "sysrq triggered crash")],
        ),
    ];

    #[test]
    fn lines_that_were_seen() {
        for (line, pattern, fields) in SEEN {
            let found = find(line).unwrap_or_else(|| panic!("{line}"));
            assert_eq!(found.pattern, *pattern, "{line}");
            let fields: BTreeMap<String, String> =
                fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            assert_eq!(found.fields, fields, "{line}");
        }
    }

    #[test]
    fn names_are_metric_labels_and_used_once() {
        let mut names: Vec<_> = PATTERNS.iter().map(|pattern| pattern.name).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
        assert!(
            names.iter().all(|name| name.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric()))
        );
    }

    proptest! {
        #[test]
        fn cut_and_flipped_lines_never_panic(which in 0usize..23, at in 0usize..120, flip: u8) {
            let line = SEEN[which % SEEN.len()].0;
            let at = at % line.len();
            let _cut = find(&line[..at]);
            let mut flipped = line.as_bytes().to_vec();
            flipped[at] ^= flip;
            let _flipped = find(&String::from_utf8_lossy(&flipped));
        }

        #[test]
        fn any_text_is_taken(text in "\\PC*") {
            prop_assert!(find(&text).is_none());
        }
    }
}
