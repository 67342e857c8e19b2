//! The container runtime, asked as the kubelet asks it: the CRI over its Unix socket.
//!
//! Four outcomes that the kubelet's one message ("container runtime is down") mixes up are told apart here: the
//! socket is missing (ENOENT), nobody listens (ECONNREFUSED), it connects and does not answer (hung), it answers
//! late (slow). A hung runtime takes the kubelet two minutes to notice; a call's age shows it in seconds.

mod asking;
mod detect;
mod endpoint;
mod reading;

use std::os::fd::BorrowedFd;
use std::time::Duration;

use jiff::Timestamp;
use nodewhy_clock::Stamp;
use serde::Serialize;
use tonic::Code;

use self::asking::{Asking, Board, Link};
use self::detect::detect;
use self::endpoint::Endpoint;
pub(crate) use self::endpoint::is_dockers;
use self::reading::{Call, Connect, Inspection, RelistCall, RuntimeCondition, StatusSaid, VersionCall};
use crate::collector::Collector;
use crate::cri::CallError;
use crate::host::process::Process;
use crate::host::{FileStat, Host, ReadError};
use crate::metrics::{Family, Sink};

/// The container runtime. The calls are made on a thread of their own: a read collects what they came to.
pub static COLLECTOR: Collector<Source, Reading> = Collector {
    name: "runtime",
    every: Duration::from_secs(1),
    deadline: Duration::from_secs(2),
    remembers: true,
    open,
    read,
    wake,
    summary,
    families: FAMILIES,
    metrics,
    limits: &[&detect::HUNG, &detect::SLOW],
    detect,
    pages: &[],
    asks: &[],
};

/// The first reading waits this long for first answers, so that it does not say "never asked" of a well runtime.
const FIRST_ANSWERS_WITHIN: Duration = Duration::from_millis(500);

/// Not read for so long, the agent was suspended with its machine, or starved: the calls' thread as well.
const ASLEEP: Duration = Duration::from_secs(3);

/// While connects fail, the kubelet's configuration is read again after so many reads: it may name another socket.
const LOOK_AGAIN_AFTER_READS: u32 = 10;

/// Device, inode and time of making: a socket's own time does not change when it is used.
type Identity = ((u64, u64), Option<Timestamp>);

fn identity(stat: &FileStat) -> Identity {
    (stat.identity, stat.modified)
}

/// Kept between reads.
#[derive(Debug)]
pub struct Source {
    endpoint: Endpoint,
    asking: Asking,
    /// The socket that `asking` was started on.
    identity: Option<Identity>,
    /// Since when it has been gone.
    missing: Option<Stamp>,
    /// The listener's process, from the newest connect that the kernel took.
    pid: Option<u32>,
    /// The runtime's process as it was last seen alive.
    process: Option<Process>,
    /// Whether a process has gone that no other has taken the place of yet.
    was_replaced: bool,
    is_first: bool,
    /// When it was read last, on the clock that also counts suspended time.
    newest_read: Option<Duration>,
    reads_without_runtime: u32,
}

/// What is known of the runtime.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reading {
    /// The socket, a path of the host.
    pub endpoint: String,
    /// Which rule found it.
    pub found_by: String,
    /// The process that listens, by the socket's peer credentials; `None` where they do not name the runtime.
    pub pid: Option<u32>,
    /// Its name.
    pub process_name: Option<String>,
    /// Its state in /proc/PID/stat: T is stopped, D waits in the kernel, Z is dead.
    pub process_state: Option<char>,
    /// What became of the runtime's process since the reading before; told as events.
    #[serde(skip)]
    pub changes: Vec<Change>,
    /// How connecting goes.
    pub connect: Connect,
    /// `Version`.
    pub version: VersionCall,
    /// `Status`.
    pub status: Call,
    /// Our own relist.
    pub relist: RelistCall,
    /// Single sandboxes and containers.
    pub inspection: Inspection,
    /// `systemd`, `cgroupfs`, where the runtime tells (RuntimeConfig).
    pub cgroup_driver: Option<&'static str>,
    /// How many images there are.
    pub images: Option<u64>,
    /// Their sizes' sum; layers that images share are counted in each.
    pub images_bytes: Option<u64>,
    /// The conditions of the newest good `Status`; `None` where the newest has failed.
    pub conditions: Option<Vec<RuntimeCondition>>,
    /// containerd's `lastCNILoadStatus`: `OK`, or why it has no CNI configuration.
    pub last_cni_load_status: Option<String>,
    /// The CNI folder that the runtime itself is configured with.
    pub cni_conf_dir: Option<String>,
    /// The plugin folders that the runtime itself is configured with.
    pub cni_bin_dirs: Option<Vec<String>>,
    /// Whether pods use this runtime, so that its having no pod network is a fault: all but Docker's own containerd.
    pub serves_pods: bool,
}

/// The runtime's process began or ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Another process listens now.
    Started(Process),
    /// The process that listened is gone from /proc.
    Exited(Process),
}

impl Reading {
    /// The condition of this type.
    pub fn condition(&self, kind: &str) -> Option<&RuntimeCondition> {
        self.conditions.iter().flatten().find(|condition| condition.kind == kind)
    }

    /// The oldest call of Version and Status that nobody answers: its name, its age, and itself.
    pub fn oldest_unanswered(&self) -> Option<(&'static str, f64, &Call)> {
        [("Version", &self.version.call), ("Status", &self.status)]
            .into_iter()
            .filter_map(|(name, call)| Some((name, call.unanswered_seconds?, call)))
            .max_by(|one, other| one.1.total_cmp(&other.1))
    }
}

/// Where the socket is, and which rule found it.
///
/// # Errors
/// There is none, or it is not to be asked.
pub(crate) fn endpoint_told(host: &Host) -> Result<(std::path::PathBuf, String), ReadError> {
    endpoint::find(host).map(|endpoint| (endpoint.socket, endpoint.found_by))
}

fn open(host: &Host) -> Result<Source, ReadError> {
    let endpoint = endpoint::find(host)?;
    let stat = host.stat(&endpoint.socket).ok();
    Ok(Source {
        asking: Asking::start(host, endpoint.socket.clone())?,
        identity: stat.as_ref().map(identity),
        missing: None,
        endpoint,
        pid: None,
        process: None,
        was_replaced: false,
        is_first: true,
        newest_read: None,
        reads_without_runtime: 0,
    })
}

fn wake(source: &Source) -> Option<BorrowedFd<'_>> {
    Some(source.asking.news())
}

fn read(source: &mut Source, host: &Host) -> Result<Reading, ReadError> {
    let is_missing = source.look(host)?;
    let now = host.clock().since_boot();
    let asleep = source.newest_read.replace(now).is_some_and(|newest| now.saturating_sub(newest) >= ASLEEP);
    // Who slept finds answers that came long ago: they are taken in before a call's age is believed.
    let mut board = match std::mem::take(&mut source.is_first) {
        true => source.asking.first_board(FIRST_ANSWERS_WITHIN),
        false if asleep => source.asking.board_with_answers(FIRST_ANSWERS_WITHIN),
        false => source.asking.board(),
    };
    let now = host.clock().stamp();
    if is_missing {
        // An old connection may live on; a kubelet that connects now finds nothing, as we would.
        board.link = Some((Link::Missing, *source.missing.get_or_insert(now)));
    } else {
        source.missing = None;
    }
    let refused = refuse(source, &board);
    source.relook(host, &board, refused.is_err())?;
    refused?;
    if let Some((Link::Connected { pid }, _)) = &board.link {
        source.pid = *pid;
    }
    let process = match &board.link {
        // A queue that is full had a listener when it filled: the pid stands. Refused and missing have none.
        Some((Link::Connected { .. } | Link::BacklogFull, _)) => {
            source.pid.and_then(|pid| host.process(pid).ok().flatten())
        }
        _ => None,
    }
    // Under socket activation systemd called `listen`: its state says nothing of the runtime's.
    .filter(|process| !(process.pid == 1 || process.name == "systemd" || process.name == "init"));
    host.learn_runtime_process(process.clone().or_else(|| source.process.clone()));
    let said = StatusSaid::of(&board.status).unwrap_or(StatusSaid::NOTHING);
    let serves_pods = source.endpoint.expected_because.is_some() || !is_dockers(host);
    Ok(Reading {
        endpoint: source.endpoint.socket.display().to_string(),
        found_by: source.endpoint.found_by.clone(),
        pid: process.as_ref().map(|process| process.pid),
        process_name: process.as_ref().map(|process| process.name.clone()),
        process_state: process.as_ref().map(|process| process.state),
        changes: source.changes(host, process),
        connect: Connect::of(board.link.as_ref(), now),
        version: VersionCall::of(&board.version, now),
        status: Call::of(&board.status, now),
        relist: RelistCall::of(&board.relist, &board.list_pod_sandbox, &board.list_containers, now),
        inspection: Inspection::of(&board.inspected, now),
        cgroup_driver: board.inspected.cgroup_driver,
        images: board.inspected.images.map(|(count, _)| count),
        images_bytes: board.inspected.images.map(|(_, bytes)| bytes),
        conditions: said.conditions,
        last_cni_load_status: said.last_cni_load_status,
        cni_conf_dir: said.cni_conf_dir,
        cni_bin_dirs: said.cni_bin_dirs,
        serves_pods,
    })
}

impl Source {
    /// What became of the runtime's process. The first one seen is no event: it ran before we looked.
    fn changes(&mut self, host: &Host, now: Option<Process>) -> Vec<Change> {
        let mut changes = Vec::new();
        if let Some(before) = self.process.take_if(|known| {
            now.as_ref().is_none_or(|now| (now.pid, now.start_ticks) != (known.pid, known.start_ticks))
        }) {
            match host.process(before.pid) {
                // Nobody listens, but it lives: it may listen again.
                Ok(Some(same)) if same.start_ticks == before.start_ticks && now.is_none() => {
                    self.process = Some(before)
                }
                Ok(None) => {
                    self.was_replaced = true;
                    changes.push(Change::Exited(before));
                }
                // Another listens while it lives, or /proc did not say: only the new one is sure.
                _ => self.was_replaced = true,
            }
        }
        if let Some(now) = now {
            if std::mem::take(&mut self.was_replaced) {
                changes.push(Change::Started(now.clone()));
            }
            self.process = Some(now);
        }
        changes
    }

    /// Whether the socket is missing. Another socket under the same name is asked over a new connection at once.
    fn look(&mut self, host: &Host) -> Result<bool, ReadError> {
        match host.stat(&self.endpoint.socket) {
            Ok(stat) => {
                if self.identity != Some(identity(&stat)) {
                    self.asking.ask_at(host, self.endpoint.socket.clone())?;
                    self.is_first = true;
                    // Last: a try that failed is made again at the next read.
                    self.identity = Some(identity(&stat));
                }
                Ok(false)
            }
            Err(ReadError::NotFound { .. }) => Ok(true),
            // What stat may not see, connect may: its word counts.
            Err(_) => Ok(false),
        }
    }

    /// While no runtime is there, or what is there is none, looks now and then whether another socket is the right one.
    fn relook(&mut self, host: &Host, board: &Board, is_refused: bool) -> Result<(), ReadError> {
        let is_there = matches!(board.link, Some((Link::Connected { .. } | Link::BacklogFull, _)) | None);
        if is_there && !is_refused {
            self.reads_without_runtime = 0;
            return Ok(());
        }
        self.reads_without_runtime += 1;
        if self.reads_without_runtime < LOOK_AGAIN_AFTER_READS {
            return Ok(());
        }
        self.reads_without_runtime = 0;
        match endpoint::find(host) {
            Ok(found) if found.socket != self.endpoint.socket => {
                // Only a socket that is there takes the place of the one that was.
                if let Ok(stat) = host.stat(&found.socket) {
                    self.asking.ask_at(host, found.socket.clone())?;
                    self.is_first = true;
                    self.identity = Some(identity(&stat));
                    self.endpoint = found;
                }
            }
            // Nothing new, or nothing at all: the one that was here stays the one that is missed.
            _ => {}
        }
        Ok(())
    }
}

/// What cannot be a reading: a right is missing, or the peer does not speak CRI v1.
fn refuse(source: &Source, board: &Board) -> Result<(), ReadError> {
    let socket = &source.endpoint.socket;
    match &board.link {
        Some((Link::Failed { denied: true, error }, _)) => {
            return Err(ReadError::Denied {
                path: socket.clone(),
                error: std::io::Error::other(error.clone()),
                needs: "whoever may use the CRI socket is root on the node: run the agent as root (SELinux: \
                        spc_t), or switch the collector off"
                    .to_owned(),
            });
        }
        Some((Link::Failed { error, .. }, _)) => {
            return Err(ReadError::Other(format!("cannot connect to {}: {error}", socket.display())));
        }
        Some((Link::Connected { .. }, _)) => {}
        _ => return Ok(()),
    }
    // Both must say so, after their last try: a broken call alone is a runtime that restarts.
    if !board.version.is_settled() || !board.status.is_settled() {
        return Ok(());
    }
    let (Some(version), Some(status)) = (&board.version.ended, &board.status.ended) else { return Ok(()) };
    let (Err(version_error), Err(status_error)) = (&version.result, &status.result) else { return Ok(()) };
    let is_unknown =
        |error: &CallError| matches!(error, CallError::Answered { code: Code::Unimplemented, .. });
    if is_unknown(version_error) && is_unknown(status_error) {
        return Err(ReadError::Other(format!(
            "{} does not serve CRI v1: {version_error}. If it is containerd: its CRI plugin is off (disabled_plugins \
             in its config.toml), did not load, or is older than 1.6",
            socket.display()
        )));
    }
    let are_new = version.is_on_new_connection && status.is_on_new_connection;
    if let (true, CallError::Broken(_), CallError::Broken(words)) = (are_new, version_error, status_error) {
        return Err(ReadError::Other(format!(
            "{} takes connections and does not speak gRPC on them: {words}. Check that it is the runtime's CRI socket",
            socket.display()
        )));
    }
    Ok(())
}

static STATUS_SLOWEST: Family = Family::gauge(
    "nodewhy_runtime_status_slowest_seconds",
    "The slowest status of a single sandbox or container in the newest round over all of them.",
);
static STATUS_ROUND: Family = Family::gauge(
    "nodewhy_runtime_status_round_seconds",
    "How long it took to ask for the status of all sandboxes and containers, one by one.",
);
static STATUS_SLOW: Family = Family::gauge(
    "nodewhy_runtime_status_slow",
    "Sandboxes and containers that took a second or more for their status, or gave none, when asked last; at most ten are known.",
);
static STATUS_PENDING: Family = Family::gauge(
    "nodewhy_runtime_status_pending_seconds",
    "The age of the status call in flight for a single sandbox or container; absent while none is.",
);
static IMAGES: Family = Family::gauge("nodewhy_runtime_images", "Images that the runtime has.");
static IMAGES_BYTES: Family = Family::gauge(
    "nodewhy_runtime_images_bytes",
    "The sum of the images' sizes; layers that images share are counted in each.",
);
static FAMILIES: &[&Family] = &[
    &UP,
    &CALL,
    &CALL_PENDING,
    &CONDITION,
    &SANDBOXES,
    &CONTAINERS,
    &STATUS_SLOWEST,
    &STATUS_ROUND,
    &STATUS_SLOW,
    &STATUS_PENDING,
    &IMAGES,
    &IMAGES_BYTES,
];

/// A call this old, in seconds, is taken for hung in `nodewhy_runtime_up`. The finding has its own threshold.
const UP_UNANSWERED_SECONDS: f64 = 10.0;

fn summary(reading: &Reading) -> String {
    let version = &reading.version;
    let name = match (&version.runtime_name, &version.runtime_version) {
        (Some(name), Some(version)) => format!("{name} {version}"),
        (Some(name), None) => name.clone(),
        _ => reading.process_name.clone().unwrap_or_else(|| reading.endpoint.clone()),
    };
    match (reading.status.unanswered_seconds, reading.status.took_seconds) {
        (Some(unanswered), _) if unanswered >= 1.0 => {
            format!("{name} has not answered for {unanswered:.0} s")
        }
        (_, Some(took)) => format!("{name} answers in {:.0} ms", took * 1e3),
        _ => format!("{name}: {}", reading.status.error.as_deref().unwrap_or("no answer yet")),
    }
}

static UP: Family = Family::gauge("nodewhy_runtime_up", "Whether the container runtime answers CRI calls.");
static CALL: Family =
    Family::gauge("nodewhy_runtime_call_seconds", "How long the newest answer to this CRI call took.")
        .by(&["call"]);
static CALL_PENDING: Family = Family::gauge(
    "nodewhy_runtime_call_pending_seconds",
    "The age of the CRI call in flight; absent while none is.",
)
.by(&["call"]);
static CONDITION: Family =
    Family::gauge("nodewhy_runtime_condition", "A condition of the runtime's own, by its newest Status.")
        .by(&["type"]);
static SANDBOXES: Family =
    Family::gauge("nodewhy_runtime_sandboxes", "Pod sandboxes by state, of the newest relist.")
        .by(&["state"]);
static CONTAINERS: Family =
    Family::gauge("nodewhy_runtime_containers", "Containers by state, of the newest relist.").by(&["state"]);

fn metrics(reading: &Reading, sink: &mut Sink) {
    let inspection = &reading.inspection;
    sink.put_some(&STATUS_SLOWEST, &[], inspection.slowest_seconds);
    sink.put_some(&STATUS_ROUND, &[], inspection.round_seconds);
    if inspection.round_at.is_some() {
        sink.put(&STATUS_SLOW, &[], inspection.slow.len() as f64);
    }
    sink.put_some(&STATUS_PENDING, &[], inspection.running.as_ref().map(|running| running.seconds));
    sink.put_some(&IMAGES, &[], reading.images.map(|count| count as f64));
    sink.put_some(&IMAGES_BYTES, &[], reading.images_bytes.map(|bytes| bytes as f64));
    let unanswered = reading.oldest_unanswered().map(|(_, seconds, _)| seconds);
    let is_up = match reading.connect.state {
        "connected" if unanswered.is_some_and(|seconds| seconds >= UP_UNANSWERED_SECONDS) => Some(false),
        "connected" if reading.status.has_answer() => Some(true),
        "connected" => reading.status.error.as_ref().map(|_| false),
        "missing" | "refused" | "backlog_full" => Some(false),
        _ => None,
    };
    sink.put_some(&UP, &[], is_up.map(|is_up| f64::from(u8::from(is_up))));
    let calls = [
        ("Version", &reading.version.call),
        ("Status", &reading.status),
        ("ListPodSandbox", &reading.relist.list_pod_sandbox),
        ("ListContainers", &reading.relist.list_containers),
        ("relist", &reading.relist.call),
    ];
    for (name, call) in calls {
        sink.put_some(&CALL, &[name], call.took_seconds);
        sink.put_some(&CALL_PENDING, &[name], call.pending_seconds);
    }
    for kind in ["RuntimeReady", "NetworkReady"] {
        let status = reading.condition(kind).map(|condition| f64::from(u8::from(condition.status)));
        sink.put_some(&CONDITION, &[kind], status);
    }
    for (family, counts) in
        [(&SANDBOXES, &reading.relist.sandboxes), (&CONTAINERS, &reading.relist.containers)]
    {
        for (state, count) in counts.iter().flatten() {
            // Exact up to 2^53 containers.
            sink.put(family, &[state], *count as f64);
        }
    }
}

/// Every parser of this collector, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    use prost::Message;
    crate::fuzz::done(crate::cri::StatusResponse::decode(bytes));
    crate::fuzz::done(crate::cri::ListPodSandboxResponse::decode(bytes));
    crate::fuzz::done(crate::cri::ListContainersResponse::decode(bytes));
    crate::fuzz::done(crate::cri::ListImagesResponse::decode(bytes));
    endpoint::fuzz(bytes);
    asking::fuzz(bytes);
    reading::fuzz(bytes);
}

#[cfg(test)]
mod tests;
