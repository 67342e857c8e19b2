//! The kernel log as it was followed so far: what is kept, counted and told. Pure; time is an argument.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use nodewhy_clock::Stamp;
use nodewhy_proto::{EventBody, KernelMessage, OomKill, OomScope, Role};
use serde::Serialize;

use super::cgroups::Cgroups;
use super::pattern;
use super::record::{self, Id, Record};
use super::report::{Joined, Joiner, Kill};
use super::snapshot::Alike;
use super::time::{KernelClock, Mark, Now};
use crate::host::journal::file::Entry;
use crate::storm::{Bucket, Storms, Told};
use crate::whose::role_name;

/// So many records are kept for `/api/v1/kmsg`, and so many bytes of text.
const RECENT: usize = 500;
const RECENT_BYTES: usize = 256 * 1024;
/// So many kills are kept.
const NEWEST_KILLS: usize = 20;
/// A finding about kills holds this long after the newest.
pub(super) const RUN: Duration = Duration::from_secs(60);
/// So many names of killed system processes are kept apart.
const RUNS: usize = 16;

/// A kept record.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KernelRecord {
    /// Sequence number; `None` from syslog(2), which has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// When it was written, by the node's wall clock.
    pub at: Timestamp,
    /// `emerg` to `debug`.
    pub level: &'static str,
    /// 0: the kernel itself; anything else was written by a program.
    pub facility: u64,
    /// The text, unescaped.
    pub text: String,
    /// `SUBSYSTEM`, `DEVICE`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, String>,
}

/// A kept kill.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TimedKill {
    /// When, by the node's wall clock.
    pub at: Timestamp,
    /// Seconds since boot, suspended time included.
    pub boot_seconds: f64,
    /// Its deciding record.
    #[serde(skip)]
    pub id: Id,
    /// The kill.
    #[serde(flatten)]
    pub kill: OomKill,
}

/// Kills of one kind that followed each other within 60 s.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Run {
    /// When the first was.
    pub since: Timestamp,
    /// How many.
    pub count: u64,
    /// The newest.
    pub newest: TimedKill,
    /// The newest's place on the clock that no step moves.
    #[serde(skip)]
    pub newest_boot: Duration,
}

/// Kills of one scope and role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct KillCount {
    /// Whose memory had run out.
    pub scope: OomScope,
    /// What the victim was.
    pub role: Role,
    /// How many kills.
    pub count: u64,
}

/// Something to be told, with the record that decides it.
#[derive(Clone, Debug, PartialEq)]
pub struct Happened {
    /// Its record: the event's identity within its boot.
    pub id: Id,
    /// When.
    pub at: Stamp,
    /// What.
    pub body: EventBody,
}

/// Everything that is kept between reads.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) clock: KernelClock,
    joiner: Joiner,
    storms: Storms<(Mark, KernelMessage)>,
    kill_budgets: BTreeMap<&'static str, Bucket>,
    /// Where processes were seen.
    pub(super) cgroups: Cgroups,
    /// Of lines without numbers: which came more than once in a microsecond.
    alike: Alike,
    /// The sequence number that should come next.
    next_seq: Option<u64>,
    pub(super) first_seq: Option<u64>,
    pub(super) newest_seq: Option<u64>,
    pub(super) records_total: u64,
    pub(super) lost_total: u64,
    pub(super) losses_of_unknown_size_total: u64,
    pub(super) overruns_total: u64,
    pub(super) malformed_total: u64,
    kills_dropped_total: u64,
    pub(super) messages: BTreeMap<&'static str, u64>,
    pub(super) kills: Vec<KillCount>,
    pub(super) newest_kills: VecDeque<Arc<TimedKill>>,
    pub(super) system_kills: Vec<Arc<Run>>,
    pub(super) node_kills: Option<Arc<Run>>,
    pub(super) recent: VecDeque<Arc<KernelRecord>>,
    recent_bytes: usize,
    /// Since it was taken last.
    pub(super) happened: Vec<Happened>,
}

impl Log {
    pub(super) fn new(page_bytes: u64, clock: KernelClock) -> Log {
        Log {
            clock,
            joiner: Joiner::new(page_bytes),
            storms: Storms::default(),
            kill_budgets: BTreeMap::new(),
            cgroups: Cgroups::default(),
            alike: Alike::default(),
            next_seq: None,
            first_seq: None,
            newest_seq: None,
            records_total: 0,
            lost_total: 0,
            losses_of_unknown_size_total: 0,
            overruns_total: 0,
            malformed_total: 0,
            kills_dropped_total: 0,
            messages: BTreeMap::new(),
            kills: Vec::new(),
            newest_kills: VecDeque::new(),
            system_kills: Vec::new(),
            node_kills: None,
            recent: VecDeque::new(),
            recent_bytes: 0,
            happened: Vec::new(),
        }
    }

    /// Takes one record as /dev/kmsg gave it. `live`: the log had been read to its end before it came.
    pub(super) fn record(&mut self, raw: &[u8], now: Now, live: bool) {
        let Ok(record) = record::parse(raw) else {
            self.malformed_total += 1;
            return;
        };
        let at = self.clock.place(record.usec, now, live);
        self.take(record, at);
    }

    /// Takes one line as syslog(2) gave it, without its line end. `since`: when the log was read to its end before,
    /// on the monotonic clock; `None` at first.
    pub(super) fn line(&mut self, raw: &[u8], now: Now, since: Option<Duration>) {
        let alike = &mut self.alike;
        let Ok(record) = record::parse_line(raw, |usec, text_crc| alike.nth(usec, text_crc)) else {
            self.malformed_total += 1;
            return;
        };
        let at = match since {
            Some(since) => self.clock.place_between(record.usec, since, now),
            None => self.clock.place(record.usec, now, false),
        };
        self.take(record, at);
    }

    /// Takes one entry of the journal. `now`: both clocks at the moment in which journald read the line.
    pub(super) fn entry(&mut self, entry: &Entry, now: Now) {
        let alike = &mut self.alike;
        let Ok(record) = record::of_journal(entry, |usec, text_crc| alike.nth(usec, text_crc)) else {
            self.malformed_total += 1;
            return;
        };
        let at = self.clock.place(record.usec, now, true);
        self.take(record, at);
    }

    /// Tells of a file that a crash left.
    pub(super) fn crash(&mut self, path: &str, text: &str, at: Stamp) {
        let mut crc = flate2::Crc::new();
        crc.update(path.as_bytes());
        *self.messages.entry("crash_record").or_default() += 1;
        let message = KernelMessage {
            pattern: "crash_record".to_owned(),
            fields: BTreeMap::from([("file".to_owned(), path.to_owned())]),
            line: record::kept(text),
            kmsg_seq: None,
            count: 1,
        };
        let id = Id::Crash { path_crc: crc.sum() };
        self.happened.push(Happened { id, at, body: EventBody::KernelMessage(message) });
    }

    fn take(&mut self, record: Record, at: Stamp) {
        self.records_total += 1;
        if let Id::Seq(seq) = record.id {
            self.number(seq);
        }
        // What a program wrote into /dev/kmsg never has the kernel's facility: it can't pose as the kernel.
        if record.facility == 0 {
            let mut joined = Vec::new();
            let mark = Mark { id: record.id, usec: record.usec, at };
            self.joiner.line(mark, record.caller.as_deref(), &record.text, &mut joined);
            self.joined(joined);
            if let Some(found) = pattern::find(&record.text) {
                let count = self.messages.entry(found.pattern).or_default();
                *count += 1;
                let message = KernelMessage {
                    pattern: found.pattern.to_owned(),
                    fields: found.fields,
                    line: record::kept(&record.text),
                    kmsg_seq: record.id.seq(),
                    count: 1,
                };
                let mut told = Vec::new();
                self.storms.line(found.pattern, &found.subject, mark.usec, (mark, message), &mut told);
                self.told(told);
            }
        }
        self.keep(record, at);
    }

    /// EPIPE: the ring went over what was not read yet.
    pub(super) fn overwritten(&mut self) {
        self.overruns_total += 1;
    }

    /// The end of what was read before is not there any more: nobody can know how many lines are missing.
    pub(super) fn lost_some(&mut self) {
        self.losses_of_unknown_size_total += 1;
        let mut joined = Vec::new();
        self.joiner.lost(&mut joined);
        self.joined(joined);
    }

    /// How long the log should be quiet before [`Log::quiet`]; `None` when nothing waits for that.
    pub(super) fn settles_in(&self) -> Option<Duration> {
        self.joiner.settles_in()
    }

    /// The log is quiet now: an open kill is told.
    pub(super) fn quiet(&mut self) {
        let mut joined = Vec::new();
        self.joiner.settle(&mut joined);
        self.joined(joined);
    }

    /// Time has passed: storms that are over are told. Only when the log was read to its end.
    pub(super) fn passed(&mut self, now: Now) {
        let mut told = Vec::new();
        self.storms.close(self.clock.usec(now), &mut told);
        self.told(told);
    }

    /// Events that were not told: they were too many.
    pub(super) fn dropped_total(&self) -> u64 {
        self.storms.dropped_total + self.kills_dropped_total
    }

    /// Reports of which no kill came.
    pub(super) fn unfinished_total(&self) -> u64 {
        self.joiner.unfinished_total
    }

    fn number(&mut self, seq: u64) {
        self.first_seq.get_or_insert(seq);
        self.newest_seq = Some(seq);
        let lost = self.next_seq.map_or(0, |next| seq.saturating_sub(next));
        if lost > 0 {
            self.lost_total += lost;
            let mut joined = Vec::new();
            self.joiner.lost(&mut joined);
            self.joined(joined);
        }
        self.next_seq = seq.checked_add(1);
    }

    fn keep(&mut self, record: Record, at: Stamp) {
        let text = record::kept(&record.text);
        self.recent_bytes += text.len();
        let (seq, facility, fields) = (record.id.seq(), record.facility, record.fields);
        let level = record::level_name(record.level);
        self.recent.push_back(Arc::new(KernelRecord { seq, at: at.wall, level, facility, text, fields }));
        while self.recent.len() > RECENT || self.recent_bytes > RECENT_BYTES {
            let Some(oldest) = self.recent.pop_front() else {
                return;
            };
            self.recent_bytes -= oldest.text.len();
        }
    }

    fn joined(&mut self, joined: Vec<Joined>) {
        for joined in joined {
            match joined {
                Joined::Kill(kill) => self.kill(*kill),
                Joined::Member { of, task } => self.change_kill(of, |kill| kill.group.push(task)),
                Joined::Reaped { pid, done } => {
                    // Names and ids come back: only the newest of this id.
                    let of = self.newest_kills.iter().rfind(|kill| kill.kill.pid == pid).map(|kill| kill.id);
                    if let Some(of) = of {
                        self.change_kill(of, |kill| kill.reaped = Some(done));
                    }
                }
                Joined::NoMember { of, pid } => {
                    self.change_kill(of, |kill| kill.group.retain(|task| task.pid != pid));
                }
            }
        }
    }

    fn kill(&mut self, Kill { mark: Mark { id, usec, at }, mut kill, uid }: Kill) {
        // The report was not written, as kills came back to back: who it was is known from before.
        if kill.victim_cgroup.is_none()
            && let Some(cgroup) = self.cgroups.of(kill.pid, &kill.name, at.boot)
        {
            let place = crate::whose::place(&cgroup);
            kill.role = crate::whose::role(&kill.name, Some(&place), kill.oom_score_adj, uid);
            (kill.pod_uid, kill.container_id) = (place.pod_uid, place.container_id);
            kill.victim_cgroup = Some(cgroup.to_string());
            kill.attributed_by = Some(
                "the kernel wrote no report; its process was seen in this cgroup before. Whose limit it was is not known:                  memory.events of the cgroup and those above it tell"
                    .to_owned(),
            );
        }
        let (scope, role) = (kill.scope, kill.role);
        match self.kills.iter_mut().find(|count| count.scope == scope && count.role == role) {
            Some(count) => count.count += 1,
            None => self.kills.push(KillCount { scope, role, count: 1 }),
        }
        let timed = TimedKill { at: at.wall, boot_seconds: at.boot.as_secs_f64(), id, kill };
        if matches!(role, Role::Kubelet | Role::Runtime | Role::Cni) {
            self.system_kill(&timed, at);
        }
        if scope == OomScope::Global {
            let run = run(self.node_kills.as_deref(), &timed, at);
            self.node_kills = Some(Arc::new(run));
        }
        self.newest_kills.push_back(Arc::new(timed.clone()));
        if self.newest_kills.len() > NEWEST_KILLS {
            self.newest_kills.pop_front();
        }
        // A budget for each role: a storm in pods does not hide the kubelet.
        let budget = self.kill_budgets.entry(role_name(role)).or_insert_with(|| Bucket::new(100.0, 2.0));
        if budget.take(usec) {
            self.happened.push(Happened { id, at, body: EventBody::OomKill(timed.kill) });
        } else {
            self.kills_dropped_total += 1;
        }
    }

    fn system_kill(&mut self, timed: &TimedKill, at: Stamp) {
        let same = |run: &Arc<Run>| {
            let newest = &run.newest.kill;
            newest.role == timed.kill.role && newest.name == timed.kill.name
        };
        let before = self.system_kills.iter().position(same).map(|at| self.system_kills.remove(at));
        self.system_kills.push(Arc::new(run(before.as_deref(), timed, at)));
        if self.system_kills.len() > RUNS {
            self.system_kills.remove(0);
        }
    }

    fn change_kill(&mut self, id: Id, change: impl FnOnce(&mut OomKill)) {
        let told = self.newest_kills.iter_mut().find(|kill| kill.id == id);
        if let Some(kill) = told {
            change(&mut Arc::make_mut(kill).kill);
        }
    }

    fn told(&mut self, told: Vec<Told<(Mark, KernelMessage)>>) {
        self.happened.extend(told.into_iter().map(|Told { what: (mark, message), count }| {
            let body = EventBody::KernelMessage(KernelMessage { count, ..message });
            Happened { id: mark.id, at: mark.at, body }
        }));
    }
}

fn run(before: Option<&Run>, timed: &TimedKill, at: Stamp) -> Run {
    let before = before.filter(|run| at.boot.saturating_sub(run.newest_boot) <= RUN);
    Run {
        since: before.map_or(timed.at, |run| run.since),
        count: before.map_or(0, |run| run.count) + 1,
        newest: timed.clone(),
        newest_boot: at.boot,
    }
}
