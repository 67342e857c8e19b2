//! The kernel's OOM kills in a case: which one matters, and who was the victim, who asked, who held the most. These
//! are three, and the victim says nothing of the cause.

use std::time::Duration;

use jiff::Timestamp;
use nodewhy_proto::{Event, EventBody, Evidence, Finding, OomKill, OomScope, OomTask, Role, SubjectKind};

use crate::signs::{api_event, bytes, certainty_by, cited, kernel_log_incomplete, told, within};
use crate::{Answer, Holding, NodeCase};

/// A finding of an OOM kill lasts for a minute after the newest kill.
const FINDING_LASTS: Duration = Duration::from_secs(60);

/// A kill with its event.
#[derive(Clone, Copy)]
pub(crate) struct Kill<'a> {
    pub(crate) event: &'a Event,
    pub(crate) kill: &'a OomKill,
    /// The pod UID of the biggest consumer, where a kill names it: the task table has no cgroups.
    biggest_pod: Option<&'a str>,
}

/// The newest kill of this kind before Ready was lost, else the newest of all: one after the loss does not explain
/// it, but it holds.
pub(crate) fn newest<'a>(node: &'a NodeCase, kind: impl Fn(&OomKill) -> bool) -> Option<Kill<'a>> {
    let lost: Option<Timestamp> = node.unready().last().map(|stage| stage.at);
    let kills = kills(node).filter(|(_, kill)| kind(kill)).map(|(event, kill)| {
        let biggest = biggest_task(kill).map(|task| task.pid);
        Kill { event, kill, biggest_pod: biggest.and_then(|pid| pod_of(node, pid)) }
    });
    kills.max_by_key(|one| {
        let before = lost.is_none_or(|lost| within(lost, one.event.at, Duration::ZERO));
        (before, one.event.at, &one.event.id)
    })
}

fn kills(node: &NodeCase) -> impl Iterator<Item = (&Event, &OomKill)> {
    node.events.known().into_iter().flatten().filter_map(|event| match &event.body {
        EventBody::OomKill(kill) => Some((event, kill)),
        _ => None,
    })
}

/// The pod of a process that was killed itself, at this time or another.
fn pod_of(node: &NodeCase, pid: u32) -> Option<&str> {
    kills(node).filter(|(_, kill)| kill.pid == pid).find_map(|(_, kill)| kill.pod_uid.as_deref())
}

fn biggest_task(kill: &OomKill) -> Option<&OomTask> {
    kill.biggest.iter().max_by_key(|task| (task.rss_bytes, task.pid))
}

/// "No such kill", where the kernel log was read without a hole; else what is missing.
pub(crate) fn none(node: &NodeCase, text: &str) -> Answer {
    let mut missing: Vec<String> = node.collector("oom").err().into_iter().collect();
    missing.extend(kernel_log_incomplete(node));
    if !missing.is_empty() {
        return Answer::CannotTell { missing };
    }
    Answer::No { because: vec![Evidence::new(text, "oom collector: kernel log read, no such kill")] }
}

/// The agent's finding that a system process of these roles was killed: it outlives a lost event.
pub(crate) fn finding(node: &NodeCase, kinds: &[SubjectKind]) -> Option<Finding> {
    let found = node.findings.known()?.iter().filter(|finding| {
        finding.finding == "system_process_oom_killed" && kinds.contains(&finding.subject.kind)
    });
    found.max_by_key(|finding| (finding.began, finding.id.clone())).cloned()
}

/// The answer where the finding is all there is: its event was lost.
pub(crate) fn by_finding(node: &NodeCase, finding: &Finding, what: &str) -> Answer {
    Answer::Yes(Holding {
        subject: finding.subject.clone(),
        since: Some(finding.began),
        ended: Some(finding.began),
        text: format!("the kernel killed {what} for want of memory: {}", finding.summary),
        because: told(finding),
        certainty: certainty_by(node, "oom", 1),
        remedy: Vec::new(),
    })
}

/// What the oom collector says of the same moments, in one line each.
pub(crate) fn beside(node: &NodeCase, at: Timestamp) -> impl Iterator<Item = Evidence> + '_ {
    let found = node.findings.known().into_iter().flatten();
    // A row of kills is one finding, which begins with the first of them.
    found
        .filter(move |finding| {
            finding.collector == "oom"
                && within(at, finding.began, FINDING_LASTS)
                && finding.ended.is_none_or(|ended| within(ended, at, FINDING_LASTS))
        })
        .map(cited)
}

impl Kill<'_> {
    /// `global OOM: kubelet (pid 998) killed; it held 60.0 MiB`, and whose memory had run out.
    pub(crate) fn line(&self) -> String {
        let kill = self.kill;
        let scope = match (kill.scope, &kill.limit_cgroup) {
            (OomScope::Global, _) => "global OOM".to_owned(),
            (OomScope::Memcg, Some(limit)) => format!("OOM at the limit of {limit}"),
            (OomScope::Memcg, None) => "OOM at a cgroup's limit".to_owned(),
            (OomScope::Unknown, _) => "OOM (the kernel's report was lost)".to_owned(),
        };
        let held = kill.rss_bytes.map(|rss| format!("; it held {}", bytes(rss))).unwrap_or_default();
        let others = match kill.group.len() {
            0 => String::new(),
            others => format!("; {others} more of its cgroup died with it (memory.oom.group): one kill"),
        };
        format!("{scope}: {} (pid {}) killed{held}{others}", kill.name, kill.pid)
    }

    /// Victim, trigger and biggest, each by itself.
    pub(crate) fn because(&self) -> Vec<Evidence> {
        let kill = self.kill;
        let source = match kill.kmsg_seq {
            Some(seq) => format!("/dev/kmsg {seq}"),
            None => format!("event {}", self.event.id),
        };
        let at = self.event.at;
        let mut victim = self.line();
        if let Some(adj) = kill.oom_score_adj {
            victim = format!("{victim}; the victim's oom_score_adj {adj}");
        }
        let mut because = vec![Evidence::new(victim, &source).with_time(at)];
        if let Some(trigger) = &kill.trigger {
            let text = format!("asked for by {trigger}: whose allocation it was, not who is to blame");
            because.push(Evidence::new(text, &source).with_time(at));
        }
        let text = match self.biggest() {
            Some(biggest) => format!("the biggest was {biggest}"),
            None => "who held the most is not known: the kernel's task table is missing".to_owned(),
        };
        because.push(Evidence::new(text, &source).with_time(at));
        because
    }

    /// `gateway[4711], which held 61.2 GiB`; with its pod where a kill names it.
    pub(crate) fn biggest(&self) -> Option<String> {
        let task = biggest_task(self.kill)?;
        let mut text = format!("{}[{}], which held {}", task.name, task.pid, bytes(task.rss_bytes));
        if let Some(uid) = self.biggest_pod {
            text = format!("{text} (pod UID {uid})");
        }
        if task.oom_score_adj == -1000 {
            text = format!("{text} (oom_score_adj -1000: the kernel may never choose it)");
        }
        if task.pid == self.kill.pid {
            text = format!("the victim itself, {text}");
        }
        Some(text)
    }

    /// What to do about the memory itself.
    pub(crate) fn remedy(&self) -> Vec<String> {
        match (self.kill.scope, biggest_task(self.kill), &self.kill.limit_cgroup) {
            (OomScope::Memcg, _, Some(limit)) => vec![format!(
                "The limit of {limit} was hit, not the node's memory: raise it (memory.max) or find what grew."
            )],
            (_, Some(task), _) => vec![
                format!(
                    "Stop or limit {}[{}], which held {}; `cat /proc/{}/cgroup` names its pod while it lives.",
                    task.name,
                    task.pid,
                    bytes(task.rss_bytes),
                    task.pid
                ),
                "Give its pod a memory limit, and reserve memory for the system (--system-reserved)."
                    .to_owned(),
            ],
            _ => vec!["Find what took the memory: `journalctl -k | grep -B 60 oom-kill:`.".to_owned()],
        }
    }

    /// How many signals: the report's two lines, and what else saw this very kill. An Event is one only with the
    /// same pid: a kubelet that starts again posts SystemOOM anew for old kills.
    pub(crate) fn signals(&self, node: &NodeCase) -> (usize, Option<Evidence>) {
        let report = if self.kill.constraint.is_some() { 2 } else { 1 };
        let event = api_event(node, "SystemOOM", &format!("pid: {}", self.kill.pid))
            .filter(|event| ends_with_pid(&event.text, self.kill.pid));
        (report + usize::from(event.is_some()), event)
    }
}

/// Pid 47 stands in "pid: 4711" too.
fn ends_with_pid(text: &str, pid: u32) -> bool {
    text.rsplit_once("pid: ").is_some_and(|(_, said)| said.trim() == pid.to_string())
}

/// Whether the victim belongs to a pod.
pub(crate) fn in_pod(kill: &OomKill) -> bool {
    kill.role == Role::Pod || kill.pod_uid.is_some() || kill.container_id.is_some()
}
