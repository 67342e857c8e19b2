use std::time::Duration;

use nodewhy_proto::{Evidence, Severity, Subject, SubjectKind};

use super::{Agent, Allocations, FileState, FolderState, Plugin, Reading, Sandbox, Sandboxes};
use crate::collector::{Abnormal, Noticed, Pair};
use crate::thresholds::{Heuristic, Limit, Thresholds};

/// A CNI agent rewrites its file when it starts: half a file for a moment is no finding.
const HOLD: Duration = Duration::from_secs(1);
const CLEAR_AFTER: Duration = Duration::from_secs(2);

pub(super) static FREE: Heuristic = Heuristic {
    name: "cni_addresses_free_percent",
    about: "a share of free pod addresses below which the node's range is as good as exhausted",
    value: 2.0,
};
pub(super) static LEAKED: Heuristic = Heuristic {
    name: "cni_addresses_leaked_percent",
    about: "a share of the node's pod addresses, held for containers that are gone, above which they are leaked",
    value: 10.0,
};
pub(super) static INCOMPLETE: Heuristic = Heuristic {
    name: "sandbox_network_seconds",
    about: "a sandbox that lacks a part of its network for longer has lost it",
    value: 30.0,
};
/// From then on it is no start that is slow.
const INCOMPLETE_FOR_LONG_SECONDS: f64 = 120.0;
/// An agent that restarts takes its socket away for a moment.
const AGENT_HOLD: Duration = Duration::from_secs(10);
const MOST_SANDBOXES: usize = 10;

/// What is abnormal of the configuration now.
pub(super) fn detect(pair: Pair<'_, Reading>, thresholds: &Thresholds, noticed: &mut Noticed) {
    let reading = pair.now;
    for network in &reading.allocations {
        noticed.states.extend(exhausted(network, thresholds.limit(&FREE)));
        noticed.states.extend(leaked(network, thresholds.limit(&LEAKED)));
    }
    noticed.states.extend(reading.agent.as_ref().and_then(agent_down));
    noticed.states.extend(incomplete(&reading.sandboxes, thresholds.limit(&INCOMPLETE)));
    let dir = &reading.dir;
    let expected = Evidence::new(format!("expected: {}", reading.expected_because), "nodewhy");
    match reading.state {
        FolderState::Gone => {
            let seen = Evidence::new(format!("{dir} does not exist"), dir.as_str());
            let summary = format!("the folder of CNI configurations {dir} is gone");
            noticed.states.push(critical("cni_config_dir_missing", dir, summary, vec![seen, expected]));
        }
        FolderState::Empty => {
            let others = match reading.files.len() {
                0 => "it is empty".to_owned(),
                count => format!("its {count} files have other endings"),
            };
            let text = format!("no .conf, .conflist or .json in {dir}: {others}");
            let summary = format!("there is no CNI configuration in {dir}");
            let seen = Evidence::new(text, dir.as_str());
            noticed.states.push(critical("cni_config_missing", dir, summary, vec![seen, expected]));
        }
        FolderState::Invalid => noticed.states.extend(invalid(reading)),
        FolderState::Configured => {
            noticed.states.extend(reading.plugins.iter().filter_map(|plugin| missing(reading, plugin)));
        }
        FolderState::CannotTell => {}
    }
}

fn of_network(finding: &'static str, network: &Allocations, summary: String, evidence: Evidence) -> Abnormal {
    let state = critical(finding, &network.network, summary, vec![evidence]);
    Abnormal {
        severity: Severity::Warning,
        hold: Duration::ZERO,
        clear_after: Duration::from_secs(20),
        ..state
    }
}

fn exhausted(network: &Allocations, limit: Limit) -> Option<Abnormal> {
    let free = network.free_ratio()? * 100.0;
    let size = network.size?;
    if free >= limit.value {
        return None;
    }
    let text = format!("{} of {size:.0} addresses are given", network.allocated);
    let summary = format!("the pod addresses of {} are used up: {text}", network.network);
    let evidence = Evidence::new(text, network.dir.as_str())
        .with_value(free, "percent")
        .with_threshold(limit.value, limit.origin);
    let mut state = of_network("ipam_exhausted", network, summary, evidence);
    if let Some(leaked) = network.leaked {
        let text = format!("{leaked} of them are held for containers that the runtime does not know");
        state.evidence.push(Evidence::new(text, "host-local's files against CRI ListPodSandbox"));
    }
    Some(state)
}

fn leaked(network: &Allocations, limit: Limit) -> Option<Abnormal> {
    let percent = network.leaked_ratio()? * 100.0;
    if percent <= limit.value {
        return None;
    }
    let (leaked, size) = (network.leaked?, network.size?);
    let text = format!(
        "{leaked} of {size:.0} addresses are held for containers that the runtime does not know, without an interface"
    );
    let summary = format!("pod addresses of {} are leaked: {text}", network.network);
    let evidence = Evidence::new(text, "host-local's files against CRI ListPodSandbox")
        .with_value(percent, "percent")
        .with_threshold(limit.value, limit.origin);
    let mut state = of_network("ipam_leaked", network, summary, evidence);
    for (address, id) in network.leaks.iter().take(3) {
        state.evidence.push(Evidence::new(format!("{address} is held for {id}"), network.dir.as_str()));
    }
    Some(state)
}

fn agent_down(agent: &Agent) -> Option<Abnormal> {
    let thing = agent.things.iter().find(|thing| matches!(thing.state, "missing" | "refused"));
    let is_process_gone = agent.process.is_none() && agent.process_was_seen;
    let is_refused = agent.health_was_ok.is_some() && agent.health.as_deref() == Some("refused");
    let (name, what) = match thing {
        Some(thing) if thing.state == "missing" => {
            (thing.path.as_str(), format!("{} is not there", thing.path))
        }
        Some(thing) => (thing.path.as_str(), format!("nobody listens on {}", thing.path)),
        None if is_process_gone => (agent.name, "its process has gone".to_owned()),
        None if is_refused => (agent.name, "its health port, which answered before, refuses".to_owned()),
        None => return None,
    };
    let mut evidence = vec![Evidence::new(what.clone(), name)];
    if agent.process.is_none() {
        let text =
            if agent.process_was_seen { "its process was seen and has gone" } else { "no such process runs" };
        evidence.push(Evidence::new(text, "/proc"));
    }
    evidence.extend(
        agent.health.iter().map(|said| Evidence::new(format!("its health port: {said}"), agent.name)),
    );
    let summary = format!("the agent of {} is down: {what}", agent.name);
    let state = critical("cni_agent_down", name, summary, evidence);
    Some(Abnormal { severity: Severity::Warning, hold: AGENT_HOLD, ..state })
}

fn incomplete(sandboxes: &Sandboxes, limit: Limit) -> Vec<Abnormal> {
    let one = |sandbox: &Sandbox| {
        let missing = sandbox.missing.filter(|_| sandbox.for_seconds > limit.value)?;
        let severity = match sandbox.for_seconds > INCOMPLETE_FOR_LONG_SECONDS {
            true => Severity::Warning,
            false => Severity::Info,
        };
        let text = format!("{}, for {:.0} s", missing.missing(), sandbox.for_seconds);
        let seen = Evidence::new(text, format!("/proc/{}/net", sandbox.pid))
            .with_value(sandbox.for_seconds, "seconds")
            .with_threshold(limit.value, limit.origin);
        let mut evidence = vec![seen];
        if !sandbox.host_interfaces.is_empty() {
            let text = format!("CNI made {} for it", sandbox.host_interfaces.join(", "));
            evidence.push(Evidence::new(text, "CRI PodSandboxStatus"));
        }
        Some(Abnormal {
            finding: "sandbox_network_incomplete",
            subject: Subject::new(SubjectKind::Pod, &sandbox.pod),
            severity,
            summary: format!("the pod {} has no whole network: {}", sandbox.pod, missing.missing()),
            evidence,
            since: Some(sandbox.since),
            hold: Duration::ZERO,
            clear_after: Duration::from_secs(2),
        })
    };
    sandboxes.all.iter().filter_map(one).take(MOST_SANDBOXES).collect()
}

fn critical(finding: &'static str, name: &str, summary: String, evidence: Vec<Evidence>) -> Abnormal {
    Abnormal {
        finding,
        subject: Subject::new(SubjectKind::Cni, name),
        severity: Severity::Critical,
        summary,
        evidence,
        since: None,
        hold: HOLD,
        clear_after: CLEAR_AFTER,
    }
}

fn invalid(reading: &Reading) -> Option<Abnormal> {
    // The first one: with containerd it decides alone, with CRI-O none of those after it could be loaded either.
    let file = reading.files.iter().find(|file| file.state == FileState::Invalid)?;
    let why = file.why.as_deref().unwrap_or("it cannot be loaded");
    let path = format!("{}/{}", reading.dir, file.name);
    let mut seen = Evidence::new(format!("{}: {why}", file.name), path.as_str());
    seen.at = file.modified;
    let summary = format!("the CNI configuration {path} cannot be loaded: {why}");
    Some(critical("cni_config_invalid", &file.name, summary, vec![seen]))
}

fn missing(reading: &Reading, plugin: &Plugin) -> Option<Abnormal> {
    let text = match plugin.state {
        "missing" => format!("no program {} in {}", plugin.kind, reading.bin_dirs.join(", ")),
        "not_executable" => format!("{} is not executable", plugin.path.as_deref().unwrap_or(&plugin.kind)),
        _ => return None,
    };
    let file = reading.file.as_deref().unwrap_or("the configuration");
    let named = Evidence::new(format!("{file} calls {}", plugin.kind), format!("{}/{file}", reading.dir));
    let summary = format!("the CNI plugin {} cannot be called: {text}", plugin.kind);
    let looked = Evidence::new(text, reading.bin_dirs.join(", "));
    let state = critical("cni_plugin_missing", &plugin.kind, summary, vec![looked, named]);
    Some(Abnormal { severity: Severity::Warning, ..state })
}
