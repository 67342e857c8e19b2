//! Joins the kernel's lines about one OOM kill into one [`OomKill`].
//!
//! The kernel writes, under one lock: `… invoked oom-killer`, a stack, memory figures, the task table, the
//! `oom-kill:` line, `Killed process …`; then, where `memory.oom.group` is set, `Tasks in … are going to be
//! killed`, the first victim once more and each sibling. Other lines stand between. More than ten reports in 5 s
//! are not written at all: then only "Killed process" is there, and the scope is unknown.
//!
//! **When a kill is told.** The "Killed process" line decides; whether a group follows is seen only after it. So
//! the kill stays open until the next report begins or [`Joiner::settle`] is called, which the reader does as
//! soon as the log is quiet for a moment. A sibling that comes later still is no second kill: it is handed out
//! as [`Joined::Member`].

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use nodewhy_proto::{OomKill, OomScope, OomTask, Role};

use super::line::{self, Amount, Columns, Killed, Line, Victim};
use super::record::Id;
use super::time::Mark;

/// So many of the task table's rows are kept.
const BIGGEST: usize = 5;
/// So many unfinished reports; the kernel's lock allows one.
const REPORTS: usize = 4;
/// A report of which nothing more came for this long is given up. A serial console can take seconds for a table.
const UNFINISHED: Duration = Duration::from_secs(30);
/// A report has at most so many lines of its own (rows of a task table).
const REPORT_LINES: usize = 100_000;
/// Siblings follow each other at once; after this silence a killed process is another kill.
const GROUP_SILENCE: Duration = Duration::from_secs(2);
/// So many siblings are named.
const GROUP: usize = 64;

/// A kill, with where its deciding line stands.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Kill {
    pub(super) mark: Mark,
    pub(super) kill: OomKill,
    /// The victim's user.
    pub(super) uid: Option<u32>,
}

/// What became known.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Joined {
    /// A kill, to be told.
    Kill(Box<Kill>),
    /// A sibling of a kill that was told already, `of` which record.
    Member { of: Id, task: OomTask },
    /// What was handed out as a member was a kill of its own, which follows.
    NoMember { of: Id, pid: u32 },
    /// Whether the memory of a victim that was told already came back.
    Reaped { pid: u32, done: bool },
}

/// What is kept between lines.
#[derive(Debug)]
pub(super) struct Joiner {
    page_bytes: u64,
    reports: VecDeque<Report>,
    open: Option<Open>,
    /// This kernel writes `oom-kill:` lines (5.0 and later): a report without one is not finished.
    names_victims: bool,
    /// Reports that never came to a kill, or lost lines.
    pub(super) unfinished_total: u64,
}

#[derive(Debug, Default)]
struct Report {
    caller: Option<String>,
    newest_usec: u64,
    lines: usize,
    /// Records were lost after its deciding line: perhaps its kill too. Only the same id still proves a kill its.
    torn: bool,
    trigger: Option<String>,
    columns: Option<Columns>,
    biggest: Vec<OomTask>,
    memory_bytes: BTreeMap<String, u64>,
    victim: Option<OwnedVictim>,
}

impl Report {
    fn task(&self) -> Option<&(String, u32)> {
        self.victim.as_ref()?.task.as_ref()
    }
}

#[derive(Debug)]
struct OwnedVictim {
    constraint: Option<String>,
    global: bool,
    limit_cgroup: Option<String>,
    victim_cgroup: Option<String>,
    task: Option<(String, u32)>,
}

/// The newest kill, of which siblings may still come.
#[derive(Debug)]
struct Open {
    kill: Kill,
    told: bool,
    /// `memory.oom.group` was announced.
    group: bool,
    newest_usec: u64,
    /// The newest sibling: when a group is announced right after it, it was a victim of its own.
    member: Option<Kill>,
}

impl Joiner {
    pub(super) fn new(page_bytes: u64) -> Joiner {
        Joiner { page_bytes, reports: VecDeque::new(), open: None, names_victims: false, unfinished_total: 0 }
    }

    /// Takes a line of the kernel's own (facility 0), in the order of the log.
    pub(super) fn line(&mut self, mark: Mark, caller: Option<&str>, text: &str, joined: &mut Vec<Joined>) {
        let usec = mark.usec;
        match line::parse(text) {
            None => {}
            Some(Line::Invoked { trigger }) => {
                self.finish(joined);
                self.give_up(usec);
                if self.reports.len() == REPORTS {
                    self.reports.pop_front();
                    self.unfinished_total += 1;
                }
                self.reports.push_back(Report {
                    caller: caller.map(str::to_owned),
                    newest_usec: usec,
                    trigger: Some(trigger.to_owned()),
                    ..Report::default()
                });
            }
            Some(Line::TableHead(columns)) => {
                if let Some(report) = self.writing(caller, usec) {
                    report.columns = Some(columns);
                }
            }
            Some(Line::TableRow(row)) => {
                let page_bytes = self.page_bytes;
                if let Some(report) = self.writing(caller, usec) {
                    let task = report.columns.and_then(|columns| columns.task(row, page_bytes));
                    report.biggest.extend(task);
                    report.biggest.sort_by_key(|task| std::cmp::Reverse(task.rss_bytes));
                    report.biggest.truncate(BIGGEST);
                }
            }
            Some(Line::Victim(victim)) => {
                self.finish(joined);
                self.give_up(usec);
                self.names_victims |= victim.task.is_some();
                let victim = Some(OwnedVictim::from(victim));
                match self.writing(caller, usec) {
                    Some(report) => report.victim = victim,
                    // The beginning was overwritten, but this line has what matters most.
                    None => self.reports.push_back(Report {
                        caller: caller.map(str::to_owned),
                        newest_usec: usec,
                        victim,
                        ..Report::default()
                    }),
                }
                while self.reports.len() > REPORTS {
                    self.reports.pop_front();
                    self.unfinished_total += 1;
                }
            }
            Some(Line::Killed(killed)) => self.killed(mark, caller, &killed, joined),
            Some(Line::Group { cgroup }) => self.group(usec, cgroup, joined),
            Some(Line::Exiting { pid }) => self.exiting(usec, pid, joined),
            Some(Line::Memory(amounts)) => {
                let page_bytes = self.page_bytes;
                if let Some(report) = self.writing(caller, usec) {
                    for (name, amount) in amounts {
                        let bytes = match amount {
                            Amount::Bytes(bytes) => Some(bytes),
                            Amount::Pages(pages) => pages.checked_mul(page_bytes),
                        };
                        report.memory_bytes.extend(bytes.map(|bytes| (name.to_owned(), bytes)));
                    }
                }
            }
            Some(Line::Reaped { pid, done }) => match &mut self.open {
                Some(open) if !open.told && open.kill.kill.pid == pid => open.kill.kill.reaped = Some(done),
                _ => joined.push(Joined::Reaped { pid, done }),
            },
        }
    }

    /// Records were lost here: what is unfinished and not decided can't be trusted to belong together.
    pub(super) fn lost(&mut self, joined: &mut Vec<Joined>) {
        self.finish(joined);
        let before = self.reports.len();
        self.reports.retain(|report| report.task().is_some());
        self.reports.iter_mut().for_each(|report| report.torn = true);
        self.unfinished_total += (before - self.reports.len()) as u64;
    }

    /// How long the log should be quiet before the open kill is told; `None` when none is open.
    pub(super) fn settles_in(&self) -> Option<Duration> {
        // The kernel goes on at once; a serial console holds each line up for some 10 ms.
        let open = self.open.as_ref().filter(|open| !open.told)?;
        Some(Duration::from_millis(if open.group { 50 } else { 25 }))
    }

    /// The log is quiet: the open kill is told. Later siblings are still known as such.
    pub(super) fn settle(&mut self, joined: &mut Vec<Joined>) {
        if let Some(open) = self.open.as_mut().filter(|open| !open.told) {
            open.told = true;
            joined.push(Joined::Kill(Box::new(open.kill.clone())));
        }
    }

    fn finish(&mut self, joined: &mut Vec<Joined>) {
        self.settle(joined);
        self.open = None;
    }

    /// The newest report of this caller that names no victim yet.
    fn writing(&mut self, caller: Option<&str>, usec: u64) -> Option<&mut Report> {
        let report = self
            .reports
            .iter_mut()
            .rev()
            .find(|report| report.task().is_none() && report.caller.as_deref() == caller)?;
        report.newest_usec = usec;
        report.lines += 1;
        (report.lines <= REPORT_LINES).then_some(report)
    }

    fn give_up(&mut self, usec: u64) {
        let before = self.reports.len();
        self.reports.retain(|report| {
            let silent = Duration::from_micros(usec.saturating_sub(report.newest_usec));
            silent <= UNFINISHED && report.lines <= REPORT_LINES
        });
        self.unfinished_total += (before - self.reports.len()) as u64;
    }

    fn killed(&mut self, mark: Mark, caller: Option<&str>, killed: &Killed<'_>, joined: &mut Vec<Joined>) {
        self.give_up(mark.usec);
        let report = self.report_of(caller, killed);
        if report.is_none() && self.joins_group(mark, killed, joined) {
            return;
        }
        self.finish(joined);
        let kill = Kill { mark, kill: kill(mark.id, killed, report), uid: killed.uid };
        self.open = Some(Open { kill, told: false, group: false, newest_usec: mark.usec, member: None });
    }

    /// Takes the report that this kill ends: the victim's by its id, or by its name (the id can be another
    /// thread's), or an old kernel's report that names none.
    fn report_of(&mut self, caller: Option<&str>, killed: &Killed<'_>) -> Option<Report> {
        let by_pid = |report: &Report| report.task().is_some_and(|(_, pid)| *pid == killed.pid);
        let by_name =
            |report: &Report| !report.torn && report.task().is_some_and(|(name, _)| name == killed.name);
        let unnamed = |report: &Report| {
            !self.names_victims
                && report.caller.as_deref() == caller
                && report.columns.is_some()
                && report.task().is_none()
        };
        let newest = |wanted: &dyn Fn(&Report) -> bool| self.reports.iter().rposition(wanted);
        let at = newest(&by_pid).or_else(|| newest(&by_name)).or_else(|| newest(&unnamed))?;
        self.reports.remove(at)
    }

    /// Whether this is one more process of the group that is being killed.
    fn joins_group(&mut self, mark: Mark, killed: &Killed<'_>, joined: &mut Vec<Joined>) -> bool {
        let usec = mark.usec;
        let Some(open) = self.open.as_mut().filter(|open| open.group) else {
            return false;
        };
        if Duration::from_micros(usec.saturating_sub(open.newest_usec)) > GROUP_SILENCE {
            return false;
        }
        open.newest_usec = usec;
        if killed.pid == open.kill.kill.pid {
            return true;
        }
        if let (Some(rss_bytes), Some(oom_score_adj)) = (killed.rss_bytes, killed.oom_score_adj) {
            let task = OomTask { pid: killed.pid, name: killed.name.to_owned(), rss_bytes, oom_score_adj };
            if open.told {
                joined.push(Joined::Member { of: open.kill.mark.id, task });
            } else if open.kill.kill.group.len() < GROUP {
                open.kill.kill.group.push(task);
            }
        }
        open.member = Some(Kill { mark, kill: kill(mark.id, killed, None), uid: killed.uid });
        true
    }

    /// One more of the group. The line has no figures: those are in the task table, where it is among the biggest.
    fn exiting(&mut self, usec: u64, pid: u32, joined: &mut Vec<Joined>) {
        let Some(open) = self.open.as_mut().filter(|open| open.group) else {
            return;
        };
        let kill = &mut open.kill.kill;
        if pid == kill.pid || kill.group.iter().any(|task| task.pid == pid) {
            return;
        }
        open.newest_usec = usec;
        let Some(task) = kill.biggest.iter().find(|task| task.pid == pid).cloned() else {
            return;
        };
        if open.told {
            joined.push(Joined::Member { of: open.kill.mark.id, task });
        } else if kill.group.len() < GROUP {
            kill.group.push(task);
        }
    }

    fn group(&mut self, usec: u64, cgroup: &str, joined: &mut Vec<Joined>) {
        let Some(open) = &mut self.open else {
            return;
        };
        if open.group {
            // A second group: its victim, whose report was not written, was taken for a sibling of the first.
            let Some(victim) = open.member.take() else {
                return;
            };
            let (of, pid) = (open.kill.mark.id, victim.kill.pid);
            if open.told {
                joined.push(Joined::NoMember { of, pid });
            } else {
                open.kill.kill.group.retain(|task| task.pid != pid);
            }
            self.finish(joined);
            self.open =
                Some(Open { kill: victim, told: false, group: false, newest_usec: usec, member: None });
        }
        if let Some(open) = &mut self.open {
            open.group = true;
            open.newest_usec = usec;
            let Kill { kill, uid, .. } = &mut open.kill;
            if kill.victim_cgroup.is_none() {
                // The victim is in this cgroup or below it: enough to know the pod.
                let place = crate::whose::place(cgroup);
                kill.role = crate::whose::role(&kill.name, Some(&place), kill.oom_score_adj, *uid);
                (kill.pod_uid, kill.container_id) = (place.pod_uid, place.container_id);
            }
        }
    }
}

impl From<Victim<'_>> for OwnedVictim {
    fn from(victim: Victim<'_>) -> OwnedVictim {
        OwnedVictim {
            constraint: victim.constraint.map(str::to_owned),
            global: victim.global,
            limit_cgroup: victim.limit_cgroup.map(str::to_owned),
            victim_cgroup: victim.victim_cgroup.map(str::to_owned),
            task: victim.task.map(|(name, pid)| (name.to_owned(), pid)),
        }
    }
}

fn kill(id: Id, killed: &Killed<'_>, report: Option<Report>) -> OomKill {
    let report = report.unwrap_or_default();
    let (constraint, global, limit_cgroup, victim_cgroup) = match report.victim {
        Some(victim) => (victim.constraint, victim.global, victim.limit_cgroup, victim.victim_cgroup),
        None => (None, false, None, None),
    };
    let scope = match (&limit_cgroup, constraint.as_deref()) {
        (Some(_), _) => OomScope::Memcg,
        // The kernel writes global_oom for CONSTRAINT_CPUSET and _MEMORY_POLICY too: some memory nodes' memory is
        // out, not the machine's.
        (None, Some("CONSTRAINT_NONE")) if global => OomScope::Global,
        _ => OomScope::Unknown,
    };
    let place = victim_cgroup.as_deref().map(crate::whose::place);
    let role: Role = crate::whose::role(killed.name, place.as_ref(), killed.oom_score_adj, killed.uid);
    let place = place.unwrap_or_default();
    OomKill {
        scope,
        constraint,
        limit_cgroup,
        victim_cgroup,
        pid: killed.pid,
        name: killed.name.to_owned(),
        role,
        pod_uid: place.pod_uid,
        container_id: place.container_id,
        rss_bytes: killed.rss_bytes,
        oom_score_adj: killed.oom_score_adj,
        trigger: report.trigger,
        group: Vec::new(),
        biggest: report.biggest,
        memory_bytes: report.memory_bytes,
        reaped: None,
        attributed_by: None,
        kmsg_seq: id.seq(),
    }
}
