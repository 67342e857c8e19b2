//! What a real API server said during a real fault, recorded, and moved in time so that the fault falls on the test's
//! own.
//!
//! `fixtures/kubernetes/README.md` says what the files are and how they were recorded.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::Value;

/// The versions of the kubelet that were recorded.
pub const VERSIONS: [&str; 2] = ["1.32.6", "1.36.2"];

/// One recorded fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGSTOP to containerd.
    Pleg,
    /// `systemctl stop containerd`.
    RuntimeDown,
    /// SIGKILL to the kubelet, which is not restarted.
    KubeletKilled,
    /// The CNI configuration moved away, and containerd restarted.
    CniUninitialized,
    /// A hog outside pods eats all memory. The node stays Ready.
    SystemOom,
    /// A pod runs into its own limit again and again. The node stays Ready.
    PodOom,
}

impl Fault {
    /// The faults that took the node out of Ready.
    pub const LOSING_READY: [Fault; 4] =
        [Fault::Pleg, Fault::RuntimeDown, Fault::KubeletKilled, Fault::CniUninitialized];

    /// The name of its folder.
    pub fn folder(self) -> &'static str {
        match self {
            Fault::Pleg => "pleg",
            Fault::RuntimeDown => "runtime-down",
            Fault::KubeletKilled => "kubelet-killed",
            Fault::CniUninitialized => "cni-uninitialized",
            Fault::SystemOom => "system-oom",
            Fault::PodOom => "pod-oom",
        }
    }

    /// The line of the node's own logs that tells the instant at which the fault took hold: which file, and what the
    /// line contains. For a containerd that was stopped it is its end, not the wish for it.
    fn mark(self) -> Option<(&'static str, &'static str)> {
        match self {
            Fault::Pleg => Some(("systemd.log", "containerd.service: Sent signal SIGSTOP to main process")),
            Fault::RuntimeDown => Some(("systemd.log", "containerd.service: Deactivated successfully.")),
            Fault::KubeletKilled => {
                Some(("systemd.log", "kubelet.service: Sent signal SIGKILL to main process"))
            }
            Fault::CniUninitialized => {
                Some(("containerd.log", "failed to reload cni configuration after receiving fs change event"))
            }
            Fault::SystemOom | Fault::PodOom => None,
        }
    }
}

/// A list that was watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Nodes.
    Node,
    /// Leases.
    Lease,
    /// Events.
    Event,
}

/// One recorded watch event, or an object listed before the watch began.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// When the recorder received it.
    pub received: Timestamp,
    /// Which list.
    pub kind: Kind,
    /// `ADDED`, `MODIFIED`, `DELETED`, as the server sent it; `INITIAL` for an object that was listed.
    pub change: String,
    /// `metadata.resourceVersion`.
    pub version: u64,
    /// The object.
    pub object: Value,
}

/// A recorded fault, from before it until after recovery.
#[derive(Clone, Debug)]
pub struct Recording {
    /// The node's name.
    pub node: String,
    /// In the order in which the API server wrote them.
    pub records: Vec<Record>,
    /// When the fault took hold.
    pub fault: Timestamp,
    /// When the recorder began to undo it.
    pub heal: Timestamp,
    /// When recording ended.
    pub end: Timestamp,
}

#[derive(Deserialize)]
struct TimelineFile {
    node: String,
    timeline: Vec<Instant>,
}

#[derive(Deserialize)]
struct Instant {
    time: Timestamp,
    event: String,
}

#[derive(Deserialize)]
struct Line {
    received: Timestamp,
    event: WatchEvent,
}

#[derive(Deserialize)]
struct WatchEvent {
    #[serde(rename = "type")]
    change: String,
    object: Value,
}

/// The folder of recorded fixtures.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/kubernetes")
}

impl Recording {
    /// Reads the recording of this fault under this version of the kubelet.
    ///
    /// # Errors
    /// A file is missing or is not what the README says.
    pub fn load(version: &str, fault: Fault) -> anyhow::Result<Recording> {
        let folder = folder(version, fault);
        let file: TimelineFile = serde_json::from_str(&read(&folder.join("timeline.json"))?)?;
        let instant = |name: &str| -> anyhow::Result<Timestamp> {
            let found = file.timeline.iter().find(|instant| instant.event == name);
            Ok(found.with_context(|| format!("{} has no {name}", folder.display()))?.time)
        };
        // The recorder's command ran from `inject` to `injected`. The fault took hold somewhere between, and the node's
        // own log says when. `inject` would flatter the lead: it counts seconds in which nothing was wrong yet.
        let (inject, injected) = (instant("inject")?, instant("injected")?);
        let took_hold = match fault.mark() {
            Some((name, text)) => marked(&read(&folder.join(name))?, text)
                .with_context(|| format!("{} has no line with {text:?}", folder.join(name).display()))?,
            None => inject,
        };
        ensure!(
            (inject..=injected).contains(&took_hold),
            "{}: the fault took hold at {took_hold}, which is not within {inject} to {injected}",
            folder.display()
        );
        let mut records = Vec::new();
        for (name, kind) in
            [("watch-nodes", Kind::Node), ("watch-leases", Kind::Lease), ("watch-events", Kind::Event)]
        {
            let path = folder.join(name).with_extension("ndjson");
            for line in read(&path)?.lines() {
                records.push(record(line, kind).with_context(|| format!("in {}", path.display()))?);
            }
        }
        // Three connections were recorded, whose records arrive some milliseconds out of order; versions are the
        // order in which the API server wrote, and a watch must keep to it.
        records.sort_by_key(|record| record.version);
        let mut newest = Timestamp::MIN;
        for record in records.iter_mut().filter(|record| record.change != "INITIAL") {
            newest = newest.max(record.received);
            record.received = newest;
        }
        let (heal, end) = (instant("heal")?, instant("end")?);
        Ok(Recording { node: file.node, records, fault: took_hold, heal, end })
    }

    /// The same, moved in time so that the fault takes hold at `fault`: every time in it moves along.
    #[must_use]
    pub fn moved_to(mut self, fault: Timestamp) -> Recording {
        let by = fault.duration_since(self.fault);
        for record in &mut self.records {
            record.received += by;
            move_times(&mut record.object, by);
        }
        self.fault += by;
        self.heal += by;
        self.end += by;
        self
    }

    /// When the recorder first received anything.
    pub fn begin(&self) -> Timestamp {
        self.records.iter().map(|record| record.received).min().unwrap_or(self.fault)
    }

    /// Seconds from the fault until the API server said that the node is not Ready; `None`: never.
    pub fn lost_ready_seconds(&self) -> Option<f64> {
        let (lost, _) = self.loss()?;
        Some(lost.received.duration_since(self.fault).as_secs_f64())
    }

    /// When the API server first said, after the fault, that the node is not Ready: the earlier of the time of receipt
    /// and the transition's own time, which has whole seconds. `None`: never.
    pub fn lost_ready(&self) -> Option<Timestamp> {
        let (lost, transition) = self.loss()?;
        Some(transition.map_or(lost.received, |at| at.min(lost.received)))
    }

    fn loss(&self) -> Option<(&Record, Option<Timestamp>)> {
        self.records.iter().filter(|record| record.received >= self.fault).find_map(|record| {
            let (status, transition) = ready(record)?;
            (status != "True").then_some((record, transition))
        })
    }
}

/// The folder of one recorded fault.
fn folder(version: &str, fault: Fault) -> PathBuf {
    fixtures().join(format!("kubelet-{version}")).join("episodes").join(fault.folder())
}

/// The recorded kernel log, moved so that its last record was written at `last`, a time of CLOCK_MONOTONIC.
///
/// # Errors
/// The recording is missing, or a record has no time.
pub fn kmsg(version: &str, fault: Fault, last: Duration) -> anyhow::Result<String> {
    let path = folder(version, fault).join("kmsg.txt");
    let text = read(&path)?;
    let records: Vec<(&str, Option<u64>)> = text.lines().map(|line| (line, kmsg_micros(line))).collect();
    let newest = records.iter().filter_map(|(_, micros)| *micros).max();
    let newest = newest.with_context(|| format!("{} has no record", path.display()))?;
    let last = u64::try_from(last.as_micros())?;
    let mut moved = String::new();
    for (line, micros) in records {
        match (micros, line.splitn(4, ',').collect::<Vec<_>>().as_slice()) {
            (Some(micros), [priority, sequence, _, rest]) => {
                let micros =
                    (last + micros).checked_sub(newest).context("this machine was started too lately")?;
                moved.push_str(&format!("{priority},{sequence},{micros},{rest}\n"));
            }
            // A continuation: ` SUBSYSTEM=…`.
            _ => moved.push_str(&format!("{line}\n")),
        }
    }
    Ok(moved)
}

/// `6,891,3475749674,-;text`: the third field, in microseconds since boot.
fn kmsg_micros(line: &str) -> Option<u64> {
    let (head, _) = line.split_once(';')?;
    head.split(',').nth(2)?.parse().ok()
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

fn record(line: &str, kind: Kind) -> anyhow::Result<Record> {
    let Line { received, event: WatchEvent { change, object } } = serde_json::from_str(line)?;
    let version = object
        .pointer("/metadata/resourceVersion")
        .and_then(Value::as_str)
        .context("the object has no resourceVersion")?
        .parse()?;
    Ok(Record { received, kind, change, version, object })
}

fn ready(record: &Record) -> Option<(&str, Option<Timestamp>)> {
    let conditions = record.object.pointer("/status/conditions")?.as_array()?;
    let ready =
        conditions.iter().find(|condition| condition.get("type").is_some_and(|kind| kind == "Ready"))?;
    let transition = ready.get("lastTransitionTime").and_then(Value::as_str);
    Some((ready.get("status")?.as_str()?, transition.and_then(|text| text.parse().ok())))
}

/// The time of the first line that contains `text`: `2026-11-21T08:02:22.535335+0000 …` of the journal, or
/// `time="2026-11-21T08:31:46.941298270Z" …` of containerd.
fn marked(log: &str, text: &str) -> Option<Timestamp> {
    let line = log.lines().find(|line| line.contains(text))?;
    let line = line.strip_prefix("time=\"").unwrap_or(line);
    line.split([' ', '"']).next()?.parse().ok()
}

/// Moves every RFC 3339 time in a document, and keeps each one's number of decimals, as Kubernetes does: `Time` has
/// none, `MicroTime` six.
fn move_times(value: &mut Value, by: SignedDuration) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(|field| move_times(field, by)),
        Value::Array(items) => items.iter_mut().for_each(|item| move_times(item, by)),
        Value::String(text) => {
            if let Some(moved) = moved_time(text, by) {
                *text = moved;
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn moved_time(text: &str, by: SignedDuration) -> Option<String> {
    // Only the form that Kubernetes writes; a message that begins with a date is left alone.
    let (seconds, rest) = text.split_once('Z').filter(|(_, rest)| rest.is_empty())?;
    let decimals = seconds.split_once('.').map_or(0, |(_, decimals)| decimals.len());
    (text.len() >= "2026-11-21T08:02:22Z".len()).then_some(rest)?;
    let moved = text.parse::<Timestamp>().ok()?.checked_add(by).ok()?;
    // Precision cuts, and does not round: no time ends up later than it was.
    Some(format!("{moved:.decimals$}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recording_loads_and_says_when_the_fault_took_hold() {
        for version in VERSIONS {
            for fault in Fault::LOSING_READY {
                let recording = Recording::load(version, fault).unwrap();
                let lost = recording.lost_ready().unwrap();
                let seconds = recording.lost_ready_seconds().unwrap();
                // CAUSES.md and the fixtures' README: about 120 s, 30-45 s, 44-63 s, up to 20 s.
                let expected = match fault {
                    Fault::Pleg => 110.0..140.0,
                    Fault::RuntimeDown => 30.0..46.0,
                    Fault::KubeletKilled => 44.0..63.0,
                    _ => 5.0..20.0,
                };
                assert!(expected.contains(&seconds), "{version} {fault:?}: {seconds} s");
                assert!(lost < recording.heal && recording.heal < recording.end);
            }
            for fault in [Fault::SystemOom, Fault::PodOom] {
                assert_eq!(Recording::load(version, fault).unwrap().lost_ready(), None);
            }
        }
    }

    #[test]
    fn versions_and_times_of_receipt_are_in_one_order() {
        for version in VERSIONS {
            for fault in Fault::LOSING_READY {
                let recording = Recording::load(version, fault).unwrap();
                let played: Vec<&Record> =
                    recording.records.iter().filter(|record| record.change != "INITIAL").collect();
                assert!(played.is_sorted_by_key(|record| record.version));
                assert!(played.is_sorted_by_key(|record| record.received));
                let listed = recording.records.iter().filter(|record| record.change == "INITIAL");
                assert!(listed.map(|record| record.version).max() < played.first().map(|r| r.version));
            }
        }
    }

    #[test]
    fn every_time_moves_by_the_same_amount() {
        let recording = Recording::load("1.36.2", Fault::Pleg).unwrap();
        let by = SignedDuration::from_millis(3_600_250);
        let moved = recording.clone().moved_to(recording.fault + by);
        assert_eq!(moved.lost_ready().unwrap().duration_since(moved.fault), {
            // The transition's time has whole seconds, before and after.
            let lost: Timestamp = "2026-11-21T09:04:22Z".parse().unwrap();
            lost.duration_since("2026-11-21T09:02:21.640775Z".parse().unwrap())
        });
        let lease = moved.records.iter().find(|record| record.kind == Kind::Lease).unwrap();
        // 08:02:11.679391 in the recording.
        assert_eq!(lease.object["spec"]["renewTime"], "2026-11-21T09:02:11.929391Z");
        // 07:40:38 in the recording.
        assert_eq!(lease.object["metadata"]["creationTimestamp"], "2026-11-21T08:40:38Z");
        let text =
            serde_json::to_string(&moved.records.iter().map(|r| &r.object).collect::<Vec<_>>()).unwrap();
        assert!(!text.contains("2026-11-21T07:"), "a time stayed where it was");
    }

    #[test]
    fn the_kernel_log_moves_and_keeps_its_distances() {
        let moved = kmsg("1.32.6", Fault::SystemOom, Duration::from_secs(5000)).unwrap();
        // 4,831,3475733824 and 3,892,3475751648 in the recording.
        assert!(moved.starts_with("4,831,4999982176,-;kubelet invoked oom-killer:"), "{moved}");
        assert!(moved.contains("\n3,892,5000000000,-;Out of memory: Killed process 3886 (tail)"), "{moved}");
    }

    #[test]
    fn text_that_is_no_time_stays() {
        let by = SignedDuration::from_secs(1);
        for text in
            ["v1.36.2", "2026", "Kubelet stopped posting node status.", "2026-11-21T08:02:22Z later", "Z"]
        {
            assert_eq!(moved_time(text, by), None, "{text}");
        }
    }
}
