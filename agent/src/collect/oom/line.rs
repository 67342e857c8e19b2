//! The lines of which the kernel makes an OOM report (mm/oom_kill.c), each parsed by itself.

use nodewhy_proto::OomTask;

/// A process's name is 15 bytes at most (`TASK_COMM_LEN`), and a process chooses its own: it may hold any byte.
const LONGEST_NAME_BYTES: usize = 15;

/// One line of a report.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Line<'a> {
    /// `tail invoked oom-killer: gfp_mask=…`: a report begins; whose allocation asked.
    Invoked { trigger: &'a str },
    /// The task table's head: its columns differ from kernel to kernel.
    TableHead(Columns),
    /// Perhaps a row of the table: read it by the head.
    TableRow(&'a str),
    /// `oom-kill:constraint=…`: who, where, and whose limit.
    Victim(Victim<'a>),
    /// `… Killed process 584 (tail) total-vm:…`: the kill itself.
    Killed(Killed<'a>),
    /// `Tasks in … are going to be killed due to memory.oom.group set`.
    Group { cgroup: &'a str },
    /// `… OOM victim 981 (hurt) is already exiting. Skip killing the task`: of a group, one that dies by the death of
    /// another (its pid namespace's first process).
    Exiting { pid: u32 },
    /// Figures of memory: of the node in pages, of a cgroup at its limit in bytes.
    Memory(Vec<(&'static str, Amount)>),
    /// `oom_reaper: reaped process 584 (tail), now anon-rss:0kB, …`, or `unable to reap pid:584 (tail)`.
    Reaped { pid: u32, done: bool },
}

/// So much memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Amount {
    /// Of the machine's pages.
    Pages(u64),
    /// Bytes.
    Bytes(u64),
}

/// The `oom-kill:` line, or what kernels before 5.0 wrote in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Victim<'a> {
    /// `CONSTRAINT_NONE`, `CONSTRAINT_MEMCG`, …; `None` from an old kernel.
    pub(super) constraint: Option<&'a str>,
    /// No memory cgroup's limit was behind it.
    pub(super) global: bool,
    /// Whose limit was hit.
    pub(super) limit_cgroup: Option<&'a str>,
    /// Where the victim is.
    pub(super) victim_cgroup: Option<&'a str>,
    /// The victim's name and id; `None` from an old kernel.
    pub(super) task: Option<(&'a str, u32)>,
}

/// The "Killed process" line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Killed<'a> {
    pub(super) pid: u32,
    pub(super) name: &'a str,
    /// Anonymous, file and shared memory together.
    pub(super) rss_bytes: Option<u64>,
    pub(super) oom_score_adj: Option<i32>,
    /// Whose it is, as the node's first user namespace counts. Linux 5.4 and later.
    pub(super) uid: Option<u32>,
}

/// Where a table row has what is kept of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Columns {
    count: usize,
    pid: usize,
    rss: usize,
    oom_score_adj: usize,
}

/// What this line is to an OOM report; `None` for all others.
pub(super) fn parse(text: &str) -> Option<Line<'_>> {
    if let Some(rest) = text.strip_prefix("oom-kill:") {
        return victim(rest).map(Line::Victim);
    }
    if text.starts_with('[') {
        return Some(Columns::parse(text).map_or(Line::TableRow(text), Line::TableHead));
    }
    if let Some(rest) = text.strip_prefix("oom_reaper: ") {
        return reaped(rest);
    }
    if let Some(amounts) = memory(text) {
        return Some(Line::Memory(amounts));
    }
    if let Some(rest) = text.strip_prefix("Tasks in ") {
        let cgroup = rest.strip_suffix(" are going to be killed due to memory.oom.group set")?;
        return Some(Line::Group { cgroup });
    }
    if let Some(rest) = text.strip_prefix("Task in ") {
        // Kernels before 5.0, as in /kubepods/…/ID killed as a result of limit of /kubepods/….
        let (victim, limit) = rest.split_once(" killed as a result of limit of ")?;
        let (limit_cgroup, victim_cgroup) = (Some(limit), Some(victim));
        let victim = Victim { constraint: None, global: false, limit_cgroup, victim_cgroup, task: None };
        return Some(Line::Victim(victim));
    }
    if let Some((trigger, _)) = text.split_once(" invoked oom-killer: ") {
        return (trigger.len() <= LONGEST_NAME_BYTES).then_some(Line::Invoked { trigger });
    }
    if let Some((_, rest)) = text.split_once(": OOM victim ").filter(|(message, _)| is_message(message)) {
        let rest = rest.strip_suffix(") is already exiting. Skip killing the task")?;
        return rest.split_once(" (")?.0.parse().ok().map(|pid| Line::Exiting { pid });
    }
    // The message before it: "Out of memory", "Memory cgroup out of memory", "Out of memory
    // (oom_kill_allocating_task)"; nothing in kernels before 5.0.
    let rest = match text.strip_prefix("Killed process ") {
        Some(rest) => rest,
        None => {
            let (message, rest) = text.split_once(": Killed process ")?;
            is_message(message).then_some(rest)?
        }
    };
    killed(rest).map(Line::Killed)
}

/// `reaped process 584 (tail), now …` and `unable to reap pid:584 (tail)` (mm/oom_kill.c).
fn reaped(rest: &str) -> Option<Line<'_>> {
    let (rest, done) = match rest.strip_prefix("reaped process ") {
        Some(rest) => (rest, true),
        None => (rest.strip_prefix("unable to reap pid:")?, false),
    };
    // With the name's beginning: a number that was cut is another process.
    rest.split_once(" (")?.0.parse().ok().map(|pid| Line::Reaped { pid, done })
}

/// What is kept of `Mem-Info:` (mm/show_mem.c, before 6.3 mm/page_alloc.c); each is a number of pages.
const FIGURES: &[&str] = &[
    "active_anon",
    "inactive_anon",
    "active_file",
    "inactive_file",
    "unevictable",
    "dirty",
    "writeback",
    "slab_reclaimable",
    "slab_unreclaimable",
    "mapped",
    "shmem",
    "pagetables",
    "free",
    "free_cma",
];

/// The figures of a line, or of the several lines of one record: `active_anon:49 inactive_anon:350799 …`; or of a cgroup:
/// `memory: usage 49152kB, limit 49152kB, failcnt 71` (mm/memcontrol.c).
fn memory(text: &str) -> Option<Vec<(&'static str, Amount)>> {
    for (mark, usage, limit) in [
        ("memory: usage ", "memory_usage", "memory_limit"),
        ("swap: usage ", "swap_usage", "swap_limit"),
        ("memory+swap: usage ", "memory_and_swap_usage", "memory_and_swap_limit"),
    ] {
        let Some(rest) = text.strip_prefix(mark) else { continue };
        let (used, rest) = rest.split_once("kB, limit ")?;
        let bytes = |kib: &str| kib.parse::<u64>().ok()?.checked_mul(1024).map(Amount::Bytes);
        let mut amounts = vec![(usage, bytes(used)?)];
        // "No limit" is written as 9007199254740988kB.
        let most = rest.split_once("kB")?.0.parse::<u64>().ok()?;
        if most < 1 << 50 {
            amounts.push((limit, bytes(rest.split_once("kB")?.0)?));
        }
        return Some(amounts);
    }
    // A node's own lines have `kB` after their numbers, and "Node 0" before them.
    if !text.trim_start().starts_with(|letter: char| letter.is_ascii_lowercase()) || !text.contains(':') {
        return None;
    }
    let mut amounts = Vec::new();
    for token in text.split_ascii_whitespace() {
        let (name, pages) = token.split_once(':')?;
        let pages = pages.parse().ok()?;
        amounts.extend(
            FIGURES.iter().find(|figure| **figure == name).map(|figure| (*figure, Amount::Pages(pages))),
        );
    }
    // A line that was cut may end within a number: its last figure is only believed when another follows it, which the
    // kernel's lines all have.
    (!amounts.is_empty()).then_some(amounts)
}

fn is_message(message: &str) -> bool {
    message.starts_with("Out of memory") || message == "Memory cgroup out of memory"
}

fn victim(rest: &str) -> Option<Victim<'_>> {
    let constraint = rest.strip_prefix("constraint=")?.split(',').next()?;
    // From the end: a name may hold commas and even ",pid=", but only digits follow the last one.
    let (head, _uid) = rest.rsplit_once(",uid=")?;
    let (head, pid) = head.rsplit_once(",pid=")?;
    let pid = pid.parse().ok()?;
    let (head, name) = split_name(head)?;
    let (head, victim_cgroup) = head.split_once(",task_memcg=")?;
    let limit_cgroup = head.split_once(",oom_memcg=").map(|(_, cgroup)| cgroup);
    Some(Victim {
        constraint: Some(constraint),
        global: limit_cgroup.is_none() && head.ends_with(",global_oom"),
        limit_cgroup,
        victim_cgroup: Some(victim_cgroup),
        task: Some((name, pid)),
    })
}

/// Splits `…,task=NAME`: the first mark that leaves no more than a name, since a name may hold the mark itself.
fn split_name(head: &str) -> Option<(&str, &str)> {
    let mark = ",task=";
    let (at, _) =
        head.match_indices(mark).find(|(at, _)| head.len() - at - mark.len() <= LONGEST_NAME_BYTES)?;
    Some((head.get(..at)?, head.get(at + mark.len()..)?))
}

fn killed(rest: &str) -> Option<Killed<'_>> {
    let (pid, rest) = rest.split_once(' ')?;
    let pid = pid.trim_end_matches(',').parse().ok()?;
    // The figures come after the last ")": the name may hold any.
    let (head, figures) = rest.split_at(rest.rfind("total-vm:")?);
    let name = head.get(head.find('(')? + 1..head.rfind(')')?)?;
    let kib = |key: &str| -> Option<u64> {
        let (_, value) = figures.split_once(key)?;
        value.split_once("kB")?.0.parse().ok()
    };
    let rss_kib = kib("anon-rss:").and_then(|anon| {
        // shmem-rss came with 4.5: an older kernel counts shared memory as file.
        let shmem = if figures.contains("shmem-rss") { kib("shmem-rss:")? } else { 0 };
        anon.checked_add(kib("file-rss:")?)?.checked_add(shmem)
    });
    let adj = figures.split_once("oom_score_adj:").and_then(|(_, adj)| adj.trim_end().parse().ok());
    // Only with what follows it: a number that was cut is another user's.
    let uid = figures.split_once("UID:").and_then(|(_, uid)| uid.split_once(' ')?.0.parse().ok());
    let rss_bytes = rss_kib.and_then(|kib| kib.checked_mul(1024));
    Some(Killed { pid, name, rss_bytes, oom_score_adj: adj, uid })
}

impl Columns {
    /// `[  pid  ]   uid  tgid total_vm      rss … oom_score_adj name`.
    fn parse(text: &str) -> Option<Columns> {
        let text = text.replace(['[', ']'], " ");
        let names: Vec<&str> = text.split_whitespace().collect();
        if names.last() != Some(&"name") {
            return None;
        }
        let place = |wanted: &str| names.iter().position(|name| *name == wanted);
        let oom_score_adj = place("oom_score_adj")?;
        Some(Columns { count: names.len(), pid: place("pid")?, rss: place("rss")?, oom_score_adj })
    }

    /// A row of the table, resident pages turned into bytes; `None` for a line that is no row of this table.
    pub(super) fn task(&self, row: &str, page_bytes: u64) -> Option<OomTask> {
        // Only the first brackets are the table's: a name may hold some, and spaces.
        let row = row.strip_prefix('[')?;
        let (pid, mut rest) = row.split_once(']')?;
        let mut fields = vec![pid.trim()];
        while fields.len() + 1 < self.count {
            rest = rest.trim_start();
            let end = rest.find(' ')?;
            fields.push(rest.get(..end)?);
            rest = rest.get(end..)?;
        }
        let rss_pages: u64 = fields.get(self.rss)?.parse().ok()?;
        Some(OomTask {
            pid: fields.get(self.pid)?.parse().ok()?,
            name: rest.strip_prefix(' ')?.to_owned(),
            rss_bytes: rss_pages.checked_mul(page_bytes)?,
            oom_score_adj: fields.get(self.oom_score_adj)?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // fixtures/kmsg/linux-6.1.192/oom-memcg-v2.txt and episode-system-oom.txt; linux-7.2.13/oom-memcg-v2.txt.
    const MEMCG: &str = "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=eater2.service,mems_allowed=0,oom_memcg=/system.slice/eater2.service,task_memcg=/system.slice/eater2.service,task=tail,pid=584,uid=0";
    const GLOBAL: &str = "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=kubelet.service,mems_allowed=0,global_oom,task_memcg=/system.slice/eater.service,task=tail,pid=3886,uid=0";
    const KILLED: &str = "Memory cgroup out of memory: Killed process 584 (tail) total-vm:51608kB, anon-rss:48568kB, file-rss:1528kB, shmem-rss:0kB, UID:0 pgtables:140kB oom_score_adj:0";
    const HEAD_6_1: &str =
        "[  pid  ]   uid  tgid total_vm      rss pgtables_bytes swapents oom_score_adj name";
    const ROW_6_1: &str = "[   3886]     0  3886   335264   334537  2727936        0           500 tail";
    const HEAD_7_2: &str = "[  pid  ]   uid  tgid total_vm      rss rss_anon rss_file rss_shmem pgtables_bytes swapents oom_score_adj name";
    const ROW_7_2: &str = "[   1612]     0  1612    12935    12606    12186      420         0   147456        0             0 tail";

    #[test]
    fn the_deciding_line() {
        let Some(Line::Victim(victim)) = parse(MEMCG) else { panic!() };
        assert_eq!((victim.constraint, victim.global), (Some("CONSTRAINT_MEMCG"), false));
        assert_eq!(victim.limit_cgroup, Some("/system.slice/eater2.service"));
        assert_eq!(victim.task, Some(("tail", 584)));
        let Some(Line::Victim(victim)) = parse(GLOBAL) else { panic!() };
        assert_eq!((victim.constraint, victim.global), (Some("CONSTRAINT_NONE"), true));
        assert_eq!((victim.limit_cgroup, victim.victim_cgroup), (None, Some("/system.slice/eater.service")));
    }

    #[test]
    fn the_line_of_kernels_before_5_0() {
        // node-problem-detector's test data.
        let line = "Task in /kubepods/burstable/pode501ca8a-ec23-11e8-b17a-0a586444015a/f24766bce80e0ce4f0ca2887da2be9d0d250448d7ef503d9f85bf5e549c757d5 killed as a result of limit of /kubepods/burstable/pode501ca8a-ec23-11e8-b17a-0a586444015a";
        let Some(Line::Victim(victim)) = parse(line) else { panic!() };
        let limit = "/kubepods/burstable/pode501ca8a-ec23-11e8-b17a-0a586444015a";
        assert_eq!(victim.limit_cgroup, Some(limit));
        assert!(
            victim
                .victim_cgroup
                .unwrap()
                .ends_with("/f24766bce80e0ce4f0ca2887da2be9d0d250448d7ef503d9f85bf5e549c757d5")
        );
    }

    #[test]
    fn the_kill_and_its_older_forms() {
        let killed = Killed {
            pid: 584,
            name: "tail",
            rss_bytes: Some(50_096 * 1024),
            oom_score_adj: Some(0),
            uid: Some(0),
        };
        assert_eq!(parse(KILLED), Some(Line::Killed(killed)));
        // Two kernel mailing list reports (2016, and CentOS 6 with the user id before the name).
        let old = "Killed process 3477 (trinity-c159) total-vm:3226820kB, anon-rss:36832kB, file-rss:1640kB, shmem-rss:444kB";
        let Some(Line::Killed(killed)) = parse(old) else { panic!() };
        assert_eq!((killed.pid, killed.name, killed.oom_score_adj), (3477, "trinity-c159", None));
        assert_eq!(killed.rss_bytes, Some(38_916 * 1024));
        let older = "Killed process 6608, UID 500, (top) total-vm:15028kB, anon-rss:308kB, file-rss:4kB";
        let Some(Line::Killed(killed)) = parse(older) else { panic!() };
        assert_eq!((killed.pid, killed.name, killed.rss_bytes), (6608, "top", Some(312 * 1024)));
    }

    #[test]
    fn a_kernel_that_kills_the_one_that_asks_says_so_in_the_message() {
        // The recorded line with the other message of mm/oom_kill.c's out_of_memory().
        let line = KILLED.replace("Memory cgroup out of memory", "Out of memory (oom_kill_allocating_task)");
        assert!(matches!(parse(&line), Some(Line::Killed(Killed { pid: 584, .. }))));
    }

    #[test]
    fn the_table_is_read_by_its_head() {
        let Some(Line::TableHead(columns)) = parse(HEAD_6_1) else { panic!() };
        let task = columns.task(ROW_6_1, 4096).unwrap();
        let whole = OomTask { pid: 3886, name: "tail".into(), rss_bytes: 334_537 * 4096, oom_score_adj: 500 };
        assert_eq!(task, whole);
        let Some(Line::TableHead(columns)) = parse(HEAD_7_2) else { panic!() };
        assert_eq!(columns.task(ROW_7_2, 65536).unwrap().rss_bytes, 12_606 * 65_536);
        assert_eq!(columns.task(ROW_6_1, 4096), None);
        assert_eq!(parse(ROW_6_1), Some(Line::TableRow(ROW_6_1)));
    }

    #[test]
    fn a_process_cannot_talk_itself_into_another() {
        // The recorded lines with names that a process may give itself (15 bytes, any but zero).
        let name = "x,task=kubelet";
        let line = MEMCG.replace("task=tail", &format!("task={name}"));
        let Some(Line::Victim(victim)) = parse(&line) else { panic!() };
        assert_eq!(victim.task, Some((name, 584)));
        assert_eq!(victim.victim_cgroup, Some("/system.slice/eater2.service"));
        let line = KILLED.replace("(tail)", "(a) (b) total-)");
        let Some(Line::Killed(killed)) = parse(&line) else { panic!() };
        assert_eq!(killed.name, "a) (b) total-");
        let Some(Line::TableHead(columns)) = parse(HEAD_6_1) else { panic!() };
        assert_eq!(
            columns.task(&ROW_6_1.replace("tail", " [1] my name "), 4096).unwrap().name,
            " [1] my name "
        );
    }

    #[test]
    fn figures_of_memory_and_the_reaper() {
        // fixtures/kmsg/linux-6.1.192/episode-system-oom.txt and oom-memcg-v2.txt; Linux 4.15.0-46 (a public report of 2019).
        let node = "active_anon:49 inactive_anon:350799 isolated_anon:0\n active_file:17 inactive_file:12 isolated_file:0";
        let Some(Line::Memory(amounts)) = parse(node) else { panic!() };
        let pages = |name| amounts.iter().find(|(known, _)| *known == name).map(|(_, amount)| *amount);
        assert_eq!(
            (pages("inactive_anon"), pages("active_file")),
            (Some(Amount::Pages(350_799)), Some(Amount::Pages(17)))
        );
        let Some(Line::Memory(amounts)) = parse("memory: usage 49152kB, limit 49152kB, failcnt 71") else {
            panic!()
        };
        let limit = Amount::Bytes(49_152 * 1024);
        assert_eq!(amounts, [("memory_usage", limit), ("memory_limit", limit)]);
        let none = parse("memory+swap: usage 0kB, limit 9007199254740988kB, failcnt 0");
        assert_eq!(none, Some(Line::Memory(vec![("memory_and_swap_usage", Amount::Bytes(0))])));
        let reaped =
            "oom_reaper: reaped process 32308 (stress), now anon-rss:0kB, file-rss:0kB, shmem-rss:0kB";
        assert_eq!(parse(reaped), Some(Line::Reaped { pid: 32_308, done: true }));
    }

    #[test]
    fn lines_that_are_none() {
        for line in [
            "oom_reaper: reaped",
            "memory: usage 49152kB",
            "Node 0 active_anon:196kB inactive_anon:1403196kB",
            "active_anon:x inactive_anon:1",
            "",
            "Tasks state (memory values in pages):",
            "Out of memory",
            "a: Killed process 1 (a) total-vm:1kB",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    proptest! {
        #[test]
        fn cut_and_flipped_lines_give_a_value_or_none(which in 0usize..5, at in 0usize..250, flip: u8) {
            let line = [MEMCG, GLOBAL, KILLED, HEAD_7_2, ROW_6_1][which];
            let at = at % line.len();
            let mut flipped = line.as_bytes().to_vec();
            flipped[at] ^= flip;
            for text in [line.get(..at).unwrap().to_owned(), String::from_utf8_lossy(&flipped).into_owned()] {
                if let Some(Line::Killed(killed)) = parse(&text) {
                    prop_assert!(killed.rss_bytes != Some(0));
                }
                if let Some(Line::TableHead(columns)) = parse(&text) {
                    let _task = columns.task(ROW_7_2, u64::MAX);
                }
                let Some(Line::TableHead(columns)) = parse(HEAD_6_1) else { panic!() };
                if let Some(task) = columns.task(&text, 4096) {
                    prop_assert!(task.rss_bytes != 0);
                }
            }
        }

        #[test]
        fn any_text_is_taken(text in "\\PC*") {
            let _line = parse(&text);
        }
    }
}
