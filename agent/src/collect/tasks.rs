//! Tasks: load, CPU time, limits of process ids and files, and every thread that waits in D; the runtime's calls that do
//! not come back (runc, network plugins), shims, zombies.
//!
//! Load and `/proc/stat` are read each second. They are the gate: while tasks block or the load is high, every thread is
//! looked at each 5 s, else each 30 s. A look takes a bounded time a tick and goes on at the next one. Leaders alone would
//! miss what hangs: the kubelet and the runtime wait on other threads.

mod blocked;
mod calls;
mod describe;
mod detect;
mod inotify;
mod limits;
mod look;
mod metrics;
mod parse;
mod reading;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use nodewhy_clock::Stamp;
use serde::Serialize;

pub use self::blocked::{Blocked, Group};
pub use self::calls::{Call, Shim, Shims};
pub use self::describe::Described;
pub use self::limits::{Files, Limits};
pub use self::parse::{Cpu, Load, Stat};
pub use self::reading::{BlockedSummary, Parent, Reading, Shares, Sweep, Swept, Zombies};
use crate::collector::{Ask, Collector, Page, never_woken};
use crate::host::bounded::Bounded;
use crate::host::{Host, Kept, ReadError};

/// Load, tasks in D, calls that hang, every second.
pub static COLLECTOR: Collector<Source, Reading> = Collector {
    name: "tasks",
    every: Duration::from_secs(1),
    deadline: Duration::from_secs(5),
    remembers: true,
    open,
    read,
    wake: never_woken,
    summary,
    families: metrics::FAMILIES,
    metrics: metrics::metrics,
    limits: detect::LIMITS,
    detect: detect::detect,
    pages: &[Page {
        path: "/api/v1/tasks",
        about: "Threads that wait in D with where and since when, calls of runc and of network plugins, shims without a \
                sandbox, parents of zombies",
        json: page,
    }],
    asks: &[Ask {
        path: "/api/v1/inotify",
        about: "Who has inotify's instances and watches, by user and by process, against the limits of each user",
        parameters: &[],
        deadline: Duration::from_secs(10),
        answer: inotify::owners,
    }],
};

/// A look at every thread may take this long in one tick; then it waits for the next one.
const BUDGET: Duration = Duration::from_millis(10);
/// Between two looks while the gate is open.
const OPEN_EVERY: Duration = Duration::from_secs(5);
/// Between two looks while it is closed.
const CLOSED_EVERY: Duration = Duration::from_secs(30);
/// A load of so much a core opens the gate. Every task in D counts in the load, those that wait for block I/O in
/// `procs_blocked` too.
const OPEN_LOAD_PER_CORE: f64 = 1.0;
/// The oldest tasks in D are looked at again at each tick.
const WATCHED: usize = 32;
/// A wait this long is worth its stack.
const DESCRIBE_AFTER: Duration = Duration::from_secs(5);
/// So many of the oldest get one; as many a tick are asked.
const DESCRIBED: usize = 16;
const DESCRIBED_A_TICK: usize = 2;
/// So many zombies are looked at again soon: they may be a moment's.
const MANY_ZOMBIES: u64 = 20;
/// A call this old is looked at again at each tick.
const OLD_CALL: Duration = Duration::from_secs(15);
const DESCRIBE_LIMIT: Duration = Duration::from_millis(200);
/// Plugins come with an upgrade.
const PLUGINS_EVERY: Duration = Duration::from_secs(600);
/// In so many ticks each shim is looked at once.
const SHIM_TURNS: usize = 10;
/// The span that CPU shares are taken over.
const WINDOW: Duration = Duration::from_secs(60);
/// A CPU time that goes back by less than this is the kernel's error: 3 s, as for node_exporter.
const FELL_TICKS: u64 = 300;
/// What `/api/v1/state` shows of a list.
const TOP: usize = 5;

/// What is kept between reads.
#[derive(Debug)]
pub struct Source {
    load: Kept,
    stat: Kept,
    limits: limits::Reader,
    cpu: VecDeque<(Duration, Cpu)>,
    most: Cpu,
    look: Option<look::Look>,
    /// When the newest look began.
    looked: Option<Duration>,
    blocked: Vec<Blocked>,
    calls: Vec<Call>,
    shims: calls::ShimsSeen,
    stopped: Vec<Shim>,
    swept: Option<Arc<Swept>>,
    sweep_error: Option<String>,
    /// The newest look's shims, and which of them is looked at next.
    known_shims: (Vec<look::Kept>, usize),
    apart: Bounded,
    /// The names in the node's folders of network plugins, and when they were read.
    plugins: (Vec<String>, Option<Duration>),
}

fn open(host: &Host) -> Result<Source, ReadError> {
    let mut apart = Bounded::new("tasks");
    apart.start()?;
    Ok(Source {
        load: host.keep("/proc/loadavg")?,
        stat: host.keep("/proc/stat")?,
        limits: limits::Reader::default(),
        cpu: VecDeque::new(),
        most: Cpu::default(),
        look: None,
        looked: None,
        blocked: Vec::new(),
        calls: Vec::new(),
        shims: calls::ShimsSeen::default(),
        stopped: Vec::new(),
        swept: None,
        sweep_error: None,
        known_shims: (Vec::new(), 0),
        apart,
        plugins: (Vec::new(), None),
    })
}

fn read(source: &mut Source, host: &Host) -> Result<Reading, ReadError> {
    let text = source.load.read()?;
    let load = parse::load(text)
        .ok_or_else(|| ReadError::malformed("/proc/loadavg", "expected `0.20 0.18 0.12 1/80 11206`"))?;
    let stat = parse::stat(source.stat.read()?)
        .ok_or_else(|| ReadError::malformed("/proc/stat", "a line is missing or is no number"))?;
    let at = host.clock().stamp();
    let limits = source.limits.read(host, at.boot);
    let is_open = stat.blocked > 0
        || load.one >= OPEN_LOAD_PER_CORE * stat.cores as f64
        || source.blocked.iter().any(|task| task.age(at.boot) >= DESCRIBE_AFTER)
        || source.calls.iter().any(|call| call.age(at.boot) >= OLD_CALL)
        || source.swept.as_deref().is_some_and(|swept| swept.zombies >= MANY_ZOMBIES);
    // What of the threads cannot be seen costs only that: load and limits are told all the same.
    match source.look_on(host, at, is_open) {
        Ok(()) => {}
        Err(error) => {
            source.look = None;
            // What was found before is not so any more, as far as can be known.
            (source.swept, source.blocked, source.calls, source.stopped) = Default::default();
            source.sweep_error = Some(error.to_string());
        }
    }
    source.watch(host, at);
    Ok(source.reading(load, stat, limits, is_open, at))
}

impl Source {
    /// Begins a look when it is time, or goes on with the one under way.
    fn look_on(&mut self, host: &Host, at: Stamp, is_open: bool) -> Result<(), ReadError> {
        let every = if is_open { OPEN_EVERY } else { CLOSED_EVERY };
        let is_due = self.looked.is_none_or(|looked| looked + every <= at.boot);
        let mut look = match self.look.take() {
            Some(look) => look,
            None if is_due => {
                self.looked = Some(at.boot);
                if let Some(why) = host.blind_to_processes() {
                    return Err(ReadError::Other(why));
                }
                self.read_plugins(host, at.boot);
                look::Look::begin(host)?
            }
            None => return Ok(()),
        };
        let (plugins, _) = &self.plugins;
        let is_call = |name: &str| calls::may_be_plugin(name, plugins);
        let Some(mut looked) = look.advance(host.clock(), BUDGET, is_call)? else {
            self.look = Some(look);
            return Ok(());
        };
        let at = host.clock().stamp();
        let calls = calls::calls(host, &looked.calls, at);
        let groups = calls.iter().map(|call| (call.pid, call.group)).collect();
        self.blocked = blocked::follow(host, &self.blocked, &looked.blocked, &groups, at);
        let found = std::mem::take(&mut looked.shims);
        looked.shims = look::started(host, found, &mut looked.unread);
        let shims = self.shims.judge(host, &looked.shims, at);
        self.known_shims = (looked.shims, 0);
        self.calls.clone_from(&calls);
        self.stopped.clone_from(&shims.stopped);
        self.swept = Some(Arc::new(Swept {
            at,
            processes: looked.processes,
            threads: looked.threads,
            ticks: look.ticks,
            unread: looked.unread,
            blocked: looked.states.get(&'D').copied().unwrap_or_default(),
            states: looked.states,
            shims,
            parents: parents(host, &looked.zombies),
            zombies: looked.zombies_in_all,
        }));
        self.sweep_error = None;
        Ok(())
    }

    /// The folders lie on a disk, which may be what hangs.
    fn read_plugins(&mut self, host: &Host, now: Duration) {
        let (names, read) = &mut self.plugins;
        if read.is_some_and(|read| read + PLUGINS_EVERY > now) {
            return;
        }
        *read = Some(now);
        let asked = host.clone();
        if let Ok(found) = self.apart.run(DESCRIBE_LIMIT, move || calls::plugins_in_folders(&asked)) {
            *names = found;
        }
    }

    /// Looks at some of the shims, at each within ten ticks: a stopped one blocks whoever calls it.
    fn watch_shims(&mut self, host: &Host, at: Stamp) {
        let is_stopped = |pid| {
            let now = host.process(pid).ok().flatten();
            now.filter(|process| matches!(process.state, 'T' | 't')).map(|process| process.start_ticks)
        };
        self.stopped.retain(|shim| is_stopped(shim.pid).is_some());
        let (shims, next) = &mut self.known_shims;
        for _ in 0..shims.len().div_ceil(SHIM_TURNS) {
            let Some(task) = shims.get(*next).or(shims.first()) else { return };
            *next = if *next + 1 < shims.len() { *next + 1 } else { 0 };
            let is_new = self.stopped.iter().all(|shim| shim.pid != task.pid);
            let stopped = is_stopped(task.pid);
            if is_new && stopped.is_some() && stopped == task.start_ticks {
                self.stopped.push(self.shims.shim(task, at));
            }
        }
    }

    /// Looks again at the oldest in D: which of them go on, and what they wait for.
    fn watch(&mut self, host: &Host, at: Stamp) {
        let mut index = 0;
        self.blocked.retain(|task| {
            index += 1;
            index > WATCHED || blocked::is_same(host, task)
        });
        // A call that has come back since the look must not grow old.
        let is_there = |pid, start: Duration| {
            let now = host.process(pid).ok().flatten();
            now.filter(|process| process.is_alive() && process.start_since_boot() == start)
        };
        let mut index = 0;
        self.calls.retain(|call| {
            index += 1;
            index > WATCHED || call.age(at.boot) < OLD_CALL || is_there(call.pid, call.since_boot).is_some()
        });
        self.watch_shims(host, at);
        let mut left = DESCRIBED_A_TICK;
        for task in self.blocked.iter_mut().take(DESCRIBED) {
            if left == 0 || task.described.is_some() || task.age(at.boot) < DESCRIBE_AFTER {
                continue;
            }
            left -= 1;
            let (asked, pid, tid) = (host.clone(), task.pid, task.tid);
            let described = self.apart.run(DESCRIBE_LIMIT, move || describe::describe(&asked, pid, tid));
            task.described = Some(described.unwrap_or_else(|error| Described {
                untold: vec![format!("stack and system call: {error}")],
                ..Described::default()
            }));
            // A place that was not to be had in the first instant may be by now.
            task.wchan = task.wchan.take().or_else(|| host.task_wait_channel(pid, tid));
        }
    }

    fn reading(&mut self, load: Load, stat: Stat, limits: Limits, is_open: bool, at: Stamp) -> Reading {
        let swept = self.swept.clone();
        let mut by_group = BTreeMap::<&str, u64>::new();
        let mut by_wchan = BTreeMap::<&str, u64>::new();
        for task in &self.blocked {
            *by_group.entry(task.group.word()).or_default() += 1;
            *by_wchan.entry(task.wchan.as_deref().unwrap_or("not known")).or_default() += 1;
        }
        let mut by_wchan: Vec<_> =
            by_wchan.into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
        by_wchan.sort_by(|left, right| right.1.cmp(&left.1).then_with(|| left.0.cmp(&right.0)));
        by_wchan.truncate(TOP);
        let zombies = swept.as_deref().map(|swept| Zombies {
            count: swept.zombies,
            parents: swept.parents.iter().take(TOP).cloned().collect(),
        });
        let calls: Vec<Call> = self.calls.iter().take(TOP).cloned().collect();
        let shims =
            swept.as_deref().map(|swept| Shims { stopped: self.stopped.clone(), ..swept.shims.clone() });
        Reading {
            load,
            cores: stat.cores,
            running: stat.running,
            blocked_on_io: stat.blocked,
            forks: stat.forks,
            context_switches: stat.context_switches,
            cpu_seconds: parse::MODES.into_iter().zip(self.grown(stat.cpu).map(seconds)).collect(),
            cpu: self.shares(stat.cpu, at.boot),
            limits,
            sweep: self.progress(is_open, at),
            blocks_pleg: detect::blocks_pleg(&self.blocked, &calls, shims.as_ref(), at.boot),
            blocked: BlockedSummary {
                // Those of a look that are more than are kept by name are counted still.
                count: swept.as_deref().map(|swept| {
                    if swept.blocked > look::MOST_BLOCKED as u64 {
                        swept.blocked
                    } else {
                        self.blocked.len() as u64
                    }
                }),
                by_group,
                by_wchan,
                oldest: self.blocked.iter().take(TOP).cloned().collect(),
            },
            calls,
            all_calls: self.calls.clone(),
            shims,
            zombies,
            swept,
            all_blocked: Arc::new(self.blocked.clone()),
            boot: at.boot,
        }
    }

    /// The kernel's idle and iowait go back now and then (proc_stat(5)), by a few ticks; a counter that falls is taken for
    /// one that began anew, and all of it for new. One that fell by more did begin anew: a CPU was taken offline.
    fn grown(&mut self, cpu: Cpu) -> [u64; 8] {
        for (most, ticks) in self.most.ticks.iter_mut().zip(cpu.ticks) {
            if ticks > *most || most.saturating_sub(ticks) > FELL_TICKS {
                *most = ticks;
            }
        }
        self.most.ticks
    }

    /// Shares since the oldest reading of the last minute.
    fn shares(&mut self, cpu: Cpu, now: Duration) -> Option<Shares> {
        self.cpu.push_back((now, cpu));
        // One reading stays that is a minute old or more.
        while self.cpu.get(1).is_some_and(|(at, _)| *at + WINDOW <= now) {
            self.cpu.pop_front();
        }
        let (at, before) = self.cpu.front()?;
        shares(*before, cpu, now.saturating_sub(*at))
    }

    fn progress(&self, is_open: bool, at: Stamp) -> Sweep {
        let swept = self.swept.as_deref();
        Sweep {
            gate_is_open: is_open,
            so_far: self.look.as_ref().map(look::progress),
            age_seconds: swept.map(|swept| at.boot.saturating_sub(swept.at.boot).as_secs_f64()),
            processes: swept.map(|swept| swept.processes),
            threads: swept.map(|swept| swept.threads),
            ticks: swept.map(|swept| swept.ticks),
            states: swept.map(|swept| swept.states.clone()).unwrap_or_default(),
            unread: swept.map(|swept| swept.unread),
            error: self.sweep_error.clone(),
        }
    }
}

/// None where no time passed, or a counter went back (a CPU was taken offline).
fn shares(before: Cpu, now: Cpu, over: Duration) -> Option<Shares> {
    let mut passed = [0; 8];
    for (passed, (now, before)) in passed.iter_mut().zip(now.ticks.into_iter().zip(before.ticks)) {
        *passed = now.checked_sub(before)?;
    }
    let all: u64 = passed.iter().sum();
    let [_, _, _, idle, iowait, _, _, steal] = passed;
    let percent = |ticks: u64| ticks as f64 * 100.0 / all as f64;
    (all > 0 && !over.is_zero()).then(|| Shares {
        over_seconds: over.as_secs_f64(),
        steal_percent: percent(steal),
        idle_percent: percent(idle + iowait),
    })
}

/// User space sees ticks of a hundredth of a second on every architecture (USER_HZ).
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / 100.0
}

fn parents(host: &Host, zombies: &BTreeMap<u32, u64>) -> Vec<Parent> {
    let mut ranked: Vec<(u32, u64)> = zombies.iter().map(|(pid, count)| (*pid, *count)).collect();
    ranked.sort_by(|left, right| right.1.cmp(&left.1).then(left.0.cmp(&right.0)));
    ranked.truncate(50);
    let name = |pid| host.process_name(pid).ok().flatten();
    ranked.into_iter().map(|(pid, zombies)| Parent { pid, name: name(pid), zombies }).collect()
}

fn summary(reading: &Reading) -> String {
    let mut text =
        format!("load {:.2} on {} CPUs, {} tasks", reading.load.one, reading.cores, reading.load.tasks);
    match reading.blocked.count {
        Some(count) => text.push_str(&format!(", {count} in D")),
        None => text.push_str(", states not known yet"),
    }
    if let Some(line) = &reading.blocks_pleg {
        text.push_str(&format!("; {line}"));
    }
    text
}

fn page(reading: &Reading) -> Result<serde_json::Value, serde_json::Error> {
    #[derive(Serialize)]
    struct Lists<'a> {
        sweep: &'a Sweep,
        blocks_pleg: &'a Option<String>,
        blocked: &'a [Blocked],
        calls: &'a [Call],
        shims: Option<&'a Shims>,
        zombies: Option<u64>,
        zombie_parents: &'a [Parent],
    }
    let swept = reading.swept.as_deref();
    serde_json::to_value(Lists {
        sweep: &reading.sweep,
        blocks_pleg: &reading.blocks_pleg,
        blocked: &reading.all_blocked,
        calls: &reading.all_calls,
        shims: reading.shims.as_ref(),
        zombies: swept.map(|swept| swept.zombies),
        zombie_parents: swept.map(|swept| swept.parents.as_slice()).unwrap_or_default(),
    })
}

/// Every parser of this collector, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    use crate::fuzz::{done, text};
    let text = text(bytes);
    done((parse::load(&text), parse::stat(&text), parse::number(&text)));
    done((parse::file_handles(&text), parse::open_files_limit(&text)));
    describe::fuzz(bytes);
}

#[cfg(test)]
mod tests;
