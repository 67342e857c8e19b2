//! /proc/loadavg, /proc/stat and the limits, as text.

use serde::Serialize;

/// /proc/loadavg (proc_loadavg(5)).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Load {
    /// Average over a minute of tasks that run, wait for a CPU, or wait in D.
    pub one: f64,
    /// Over five minutes.
    pub five: f64,
    /// Over fifteen minutes.
    pub fifteen: f64,
    /// Tasks (threads) that run or wait for a CPU now.
    pub running: u64,
    /// All tasks (threads). The kubelet takes its own count from here (pkg/kubelet/stats/pidlimit).
    pub tasks: u64,
}

/// CPU time of the node since boot, of all CPUs together, in clock ticks (proc_stat(5)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// user, nice, system, idle, iowait, irq, softirq, steal. Guests' time is in user and nice already.
    pub ticks: [u64; 8],
}

/// The names of [`Cpu::ticks`].
pub(super) const MODES: [&str; 8] = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"];

/// The lines of /proc/stat that are the node's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stat {
    /// CPU time.
    pub cpu: Cpu,
    /// CPUs that are online.
    pub cores: usize,
    /// Context switches since boot.
    pub context_switches: u64,
    /// Forks (and clones) since boot.
    pub forks: u64,
    /// Tasks that run or wait for a CPU.
    pub running: u64,
    /// Tasks that wait for block I/O (`in_iowait`): only a part of those in D.
    pub blocked: u64,
}

/// `0.20 0.18 0.12 1/80 11206`, with its line's end.
pub(super) fn load(text: &str) -> Option<Load> {
    let mut fields = text.strip_suffix('\n')?.split(' ');
    let mut average =
        || fields.next()?.parse().ok().filter(|average: &f64| average.is_finite() && *average >= 0.0);
    let (one, five, fifteen) = (average()?, average()?, average()?);
    let (running, tasks) = fields.next()?.split_once('/')?;
    let _newest: u64 = fields.next()?.parse().ok()?;
    // No machine has less than one task, and each is counted: the reader runs.
    let tasks = tasks.parse().ok().filter(|tasks| *tasks > 0)?;
    Some(Load { one, five, fifteen, running: running.parse().ok()?, tasks })
}

/// All of /proc/stat; a line that is missing or cut makes it none.
pub(super) fn stat(text: &str) -> Option<Stat> {
    let (mut cpu, mut cores) = (None, 0);
    let (mut context_switches, mut forks, mut running, mut blocked) = (None, None, None, None);
    for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        let Some((key, value)) = line.split_once(' ') else { continue };
        match key {
            "cpu" => cpu = ticks(value),
            "ctxt" => context_switches = value.parse().ok(),
            "processes" => forks = value.parse().ok(),
            "procs_running" => running = value.parse().ok(),
            "procs_blocked" => blocked = value.parse().ok(),
            _ => {
                cores +=
                    usize::from(key.strip_prefix("cpu").is_some_and(|number| number.parse::<u32>().is_ok()))
            }
        }
    }
    Some(Stat {
        cpu: cpu?,
        cores: (cores > 0).then_some(cores)?,
        context_switches: context_switches?,
        forks: forks?,
        running: running?,
        blocked: blocked?,
    })
}

fn ticks(text: &str) -> Option<Cpu> {
    let mut fields = text.split_ascii_whitespace();
    let mut ticks = [0; 8];
    // All eight are there since Linux 2.6.11.
    for tick in &mut ticks {
        *tick = fields.next()?.parse().ok()?;
    }
    Some(Cpu { ticks })
}

/// A file with one number.
pub(super) fn number(text: &str) -> Option<u64> {
    text.strip_suffix('\n')?.trim().parse().ok()
}

/// /proc/sys/fs/file-nr: `2336\t0\t9223372036854775807`: handles in use, then unused ones (0 since 2.6), then the limit.
pub(super) fn file_handles(text: &str) -> Option<(u64, u64)> {
    let mut fields = text.strip_suffix('\n')?.split_ascii_whitespace();
    let allocated: u64 = fields.next()?.parse().ok()?;
    let free: u64 = fields.next()?.parse().ok()?;
    let most = fields.next()?.parse().ok()?;
    Some((allocated.checked_sub(free)?, most))
}

/// The soft limit of open files in /proc/PID/limits; `u64::MAX` for `unlimited`.
pub(super) fn open_files_limit(text: &str) -> Option<u64> {
    let line = text
        .split_inclusive('\n')
        .find_map(|line| line.strip_suffix('\n')?.strip_prefix("Max open files"))?;
    match line.split_ascii_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        soft => soft.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // All recorded on Linux 6.18.44.
    const LOAD: &str = "8.69 6.43 3.53 7/161 3983\n";
    const STAT: &str = "cpu  1888167 213838 390831 2446277 27171 0 3977 4305 2 0\ncpu0 931311 105270 176433 1263378 8392 0 283 2214 0 0\ncpu1 956855 108568 214397 1182898 18778 0 3693 2091 1 0\nintr 25736621 0 0\nctxt 69674240\nbtime 1795263236\nprocesses 748218\nprocs_running 5\nprocs_blocked 0\nsoftirq 10676214 0 1320024 429 139681 3267025 0 1787 2268820 0 3678448\n";
    const FILES: &str = "1520\t0\t2466177\n";
    const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units     \nMax processes             96365                96365                processes \nMax open files            20000                20000                files     \nMax locked memory         8388608              8388608              bytes     \n";

    #[test]
    fn recorded_texts() {
        let read = load(LOAD).unwrap();
        assert_eq!((read.one, read.fifteen, read.running, read.tasks), (8.69, 3.53, 7, 161));
        let read = stat(STAT).unwrap();
        assert_eq!((read.cores, read.forks, read.running, read.blocked), (2, 748_218, 5, 0));
        assert_eq!(read.cpu.ticks, [1_888_167, 213_838, 390_831, 2_446_277, 27_171, 0, 3977, 4305]);
        assert_eq!(read.context_switches, 69_674_240);
        assert_eq!(file_handles(FILES), Some((1520, 2_466_177)));
        assert_eq!(number("4194304\n"), Some(4_194_304));
        assert_eq!(open_files_limit(LIMITS), Some(20_000));
    }

    proptest! {
        #[test]
        fn what_is_cut_is_none(cut in 0..STAT.len()) {
            // The lines behind procs_blocked are not needed.
            let needed = STAT.find("softirq").unwrap();
            prop_assert_eq!(stat(&STAT[..cut]).is_some(), cut >= needed);
            prop_assert_eq!(load(&LOAD[..cut.min(LOAD.len() - 1)]), None);
            prop_assert_eq!(file_handles(&FILES[..cut.min(FILES.len() - 1)]), None);
            let limit = open_files_limit(&LIMITS[..cut.min(LIMITS.len())]);
            prop_assert!(limit.is_none_or(|limit| limit == 20_000));
        }

        #[test]
        fn any_text_is_taken(text in "\\PC{0,300}\n?") {
            load(&text);
            stat(&text);
            number(&text);
            file_handles(&text);
            open_files_limit(&text);
        }

        #[test]
        fn a_flipped_byte_never_panics(at in 0..STAT.len(), byte: u8) {
            let mut bytes = STAT.as_bytes().to_vec();
            bytes[at] = byte;
            stat(&String::from_utf8_lossy(&bytes));
        }
    }
}
