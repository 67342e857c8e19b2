use proptest::prelude::*;

use super::*;

// The files' shapes are those of Documentation/admin-guide/cgroup-v2.rst; figures by where they come from.
/// /sys/fs/cgroup/unified/cpu.stat, Linux 6.18.44: the root, which has no quota.
const CPU_STAT: &str =
    "usage_usec 26027079060\nuser_usec 21931286631\nsystem_usec 4095792429\nnice_usec 2138387115\n";
/// /sys/fs/cgroup/cpu/cpu.stat, Linux 6.18.44.
const CPU_STAT_V1: &str = "nr_periods 0\nnr_throttled 0\nthrottled_time 0\nnr_bursts 0\nburst_time 0\n";
/// /sys/fs/cgroup/unified/cgroup.stat, Linux 6.18.44.
const CGROUP_STAT: &str = "nr_descendants 0\nnr_subsys_perf_event 1\nnr_subsys_hugetlb 1\nnr_dying_descendants 0\n\
                           nr_dying_subsys_perf_event 0\nnr_dying_subsys_hugetlb 0\n";
/// /proc/cgroups, Linux 6.18.44.
const CONTROLLERS: &str = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpuset\t3\t1\t1\ncpu\t1\t1\t1\n\
                           memory\t4\t22\t1\nnet_cls\t0\t1\t1\npids\t8\t1\t0\n";
/// A pod's slice on Linux 6.1.192 whose limit of 40 was reached (the proving ground's pids-exhausted-pod).
const PIDS_EVENTS: &str = "max 1\n";
/// A group on a public record of a build whose page cache filled its limit 2,685 times, and nothing was killed: healthy.
const MEMORY_EVENTS: &str = "low 0\nhigh 0\nmax 2685\noom 0\noom_kill 0\noom_group_kill 0\n";
/// Recorded on Linux 6.18.44, cgroup v1.
const MEMORY_STAT_V1: &str =
    include_str!("../../../../fixtures/memory/linux-6.18.44-cgroup-v1-memory.stat.txt");
/// Lines of the v2 file in their order; the figures are the recorded kubelet's (1.32.6) root cgroup's or made.
const MEMORY_STAT: &str = "anon 187203584\nfile 558231552\nkernel 91725824\nshmem 712704\ninactive_file 351232000\n\
                           active_file 206286848\nslab_reclaimable 51941376\nslab_unreclaimable 20152320\n\
                           slab 72093696\nworkingset_refault_anon 11\nworkingset_refault_file 4042\npgfault 912444\n\
                           pgmajfault 1207\n";
const IO_STAT: &str = "254:1 254:0 rbytes=6901432320 wbytes=14245535744 rios=263278 wios=248603 dbytes=0 dios=0\n\
                       259:0 rbytes=1024 wbytes=2048 rios=1 wios=1 dbytes=0 dios=0\n253:0\n";

#[test]
fn recorded_files() {
    let cpu = cpu_stat(CPU_STAT).unwrap();
    assert_eq!(cpu.usage_seconds, Some(26_027.079_06));
    assert_eq!((cpu.periods, cpu.throttled_seconds), (None, None), "the controller is off: no zero");
    assert_eq!(cpu_stat(CPU_STAT_V1).unwrap().throttled_seconds, Some(0.0));
    assert_eq!(cgroup_stat(CGROUP_STAT), Ok((0, 0)));
    let controllers = controllers(CONTROLLERS).unwrap();
    assert_eq!(
        (controllers["memory"], controllers.contains_key("pids")),
        (22, false),
        "pids is switched off"
    );
    assert_eq!(pids_events(PIDS_EVENTS), Ok(1));
    let events = memory_events(MEMORY_EVENTS).unwrap();
    assert_eq!((events.max, events.oom_kill, events.oom_group_kill), (Some(2685), 0, Some(0)));
    let v1 = memory_stat(MEMORY_STAT_V1, true).unwrap();
    assert!(v1.anon > 0 && v1.file > 0 && v1.inactive_file > 0 && v1.slab.is_none());
    let v2 = memory_stat(MEMORY_STAT, false).unwrap();
    assert_eq!((v2.anon, v2.workingset_refault_file, v2.pgmajfault), (187_203_584, Some(4042), Some(1207)));
    let io = io_stat(IO_STAT).unwrap();
    assert_eq!((io.read_bytes, io.written_bytes), (6_901_433_344, 14_245_537_792));
    assert_eq!(io_stat(""), Ok(Io::default()), "it has done no I/O");
}

#[test]
fn limits_and_quotas() {
    assert_eq!((max("max\n"), max("40\n")), (Ok(Max::Unlimited), Ok(Max::At(40))));
    assert!(max("").is_err() && max("max").is_err() && max("-1\n").is_err());
    // /sys/fs/cgroup/memory/memory.limit_in_bytes, Linux 6.18.44.
    assert_eq!(limit_v1("9223372036854771712\n"), Ok(Max::Unlimited));
    assert_eq!(limit_v1("50331648\n"), Ok(Max::At(50_331_648)));
    assert_eq!(cpu_max("max 100000\n"), Ok(None));
    assert_eq!(cpu_max("10000 100000\n"), Ok(Some(Quota { cpus: 0.1, period_seconds: 0.1 })));
    assert!(cpu_max("10000 0\n").is_err() && cpu_max("10000\n").is_err());
    // /sys/fs/cgroup/cpu/cpu.cfs_quota_us, Linux 6.18.44.
    assert_eq!(cfs("-1\n", "100000\n"), Ok(None));
    assert_eq!(cfs("150000\n", "100000\n").unwrap().unwrap().cpus, 1.5);
    assert_eq!(serde_json::to_string(&(Max::Unlimited, Max::At(1))).unwrap(), "[\"max\",1]");
}

#[test]
fn states() {
    assert_eq!(cgroup_events("populated 1\nfrozen 0\n"), Ok((true, Some(false))));
    assert_eq!(cgroup_events("populated 0\n"), Ok((false, None)), "before Linux 5.2");
    assert!(cgroup_events("populated 2\n").is_err() && cgroup_events("frozen 1\n").is_err());
    assert_eq!((freezer_state("FROZEN\n"), freezer_state("THAWED\n")), (Ok(true), Ok(false)));
    assert!(freezer_state("\n").is_err());
    // /sys/fs/cgroup/memory/memory.oom_control, Linux 6.18.44; kernels before 4.13 have no third line.
    assert_eq!(memory_events("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n").unwrap().oom_kill, 3);
    assert!(memory_events("oom_kill_disable 0\nunder_oom 0\n").is_err());
    assert_eq!(
        blkio("8:0 Read 5\n8:0 Write 7\n8:0 Total 12\nTotal 12\n"),
        Ok(Io { read_bytes: 5, written_bytes: 7 })
    );
    // /sys/fs/cgroup/blkio/blkio.throttle.io_service_bytes_recursive, Linux 6.18.44.
    assert_eq!(blkio("Total 0\n"), Ok(Io::default()));
    assert!(blkio("8:0 Read 5\n").is_err(), "cut");
    // The memory controller's dying groups outlive their cgroups (Linux 6.18).
    let stat = "nr_descendants 5\nnr_dying_descendants 2\nnr_dying_subsys_memory 40\n";
    assert_eq!(cgroup_stat(stat), Ok((5, 40)));
}

proptest! {
    #[test]
    fn a_cut_file_is_an_error_or_has_no_other_number(cut in 0usize..400) {
        let cut_at = |text: &'static str| text.get(..cut.min(text.len())).unwrap();
        if let Ok(stat) = memory_stat(cut_at(MEMORY_STAT), false) {
            let whole = memory_stat(MEMORY_STAT, false).unwrap();
            prop_assert_eq!((stat.anon, stat.file), (whole.anon, whole.file));
            prop_assert!(stat.pgmajfault.is_none() || stat.pgmajfault == whole.pgmajfault);
        }
        if let Ok(events) = memory_events(cut_at(MEMORY_EVENTS)) {
            prop_assert_eq!(events.max, Some(2685));
        }
        if let Ok(cpu) = cpu_stat(cut_at(CPU_STAT)) {
            prop_assert_eq!(cpu.usage_seconds, Some(26_027.079_06));
        }
        if let Ok(found) = controllers(cut_at(CONTROLLERS)) {
            prop_assert!(found.get("memory").is_none_or(|count| *count == 22));
        }
        if cut < CGROUP_STAT.len() && let Ok(stat) = cgroup_stat(cut_at(CGROUP_STAT)) {
            prop_assert_eq!(stat, (0, 0));
        }
        if cut < PIDS_EVENTS.len() {
            prop_assert!(pids_events(cut_at(PIDS_EVENTS)).is_err());
        }
    }

    #[test]
    fn a_flipped_byte_gives_a_value_or_an_error(at in 0..MEMORY_STAT.len(), byte: u8) {
        let mut bytes = MEMORY_STAT.as_bytes().to_vec();
        bytes[at] = byte;
        if let Ok(text) = String::from_utf8(bytes)
            && let Ok(stat) = memory_stat(&text, false)
        {
            // Each of these has many digits: one flipped byte makes none of them 0.
            prop_assert!(stat.anon > 0 && stat.file > 0 && stat.inactive_file > 0 && stat.active_file > 0);
        }
    }

    #[test]
    fn any_text_is_read_without_a_panic(text in "[a-z_:=0-9 .\n]{0,80}") {
        number(&text).ok();
        max(&text).ok();
        limit_v1(&text).ok();
        memory_events(&text).ok();
        memory_stat(&text, true).ok();
        memory_stat(&text, false).ok();
        cpu_stat(&text).ok();
        cpu_max(&text).ok();
        cfs(&text, &text).ok();
        cgroup_events(&text).ok();
        cgroup_stat(&text).ok();
        io_stat(&text).ok();
        blkio(&text).ok();
        controllers(&text).ok();
    }
}
