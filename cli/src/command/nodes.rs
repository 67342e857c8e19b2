//! `nodewhy nodes`

use clap::Args;
use jiff::SignedDuration;
use nodewhy_proto::{ConditionStatus, Finding, NodeSummary};

use super::output::{Format, Output, Screen, json};
use super::{Ask, Told, print};
use crate::client::{Client, ClientError};
use crate::render::table::table;
use crate::render::time::age;
use crate::render::{Page, Paint};

/// What `nodes` can be told.
#[derive(Args, Clone, Debug)]
pub(super) struct Nodes {
    #[command(flatten)]
    ask: Ask,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(asked: &Nodes, screen: Screen) -> anyhow::Result<Told> {
    let all = all(&asked.ask.client()).await?;
    print(&match asked.output.output {
        Format::Json => json(&all)?,
        Format::Text if all.is_empty() => "The aggregator knows no node yet.\n".to_owned(),
        Format::Text => text(&all, screen),
    })?;
    Ok(Told::Fine)
}

/// Every node, sick ones first, then by name.
pub(super) async fn all(aggregator: &Client) -> Result<Vec<NodeSummary>, ClientError> {
    let mut all: Vec<NodeSummary> = aggregator.get("/api/v1/nodes").await?;
    all.sort_by(|a, b| (rank(a), &a.name).cmp(&(rank(b), &b.name)));
    Ok(all)
}

/// 0 not Ready, 1 with an incident or a finding, 2 with an agent that can't be asked, 3 well.
fn rank(node: &NodeSummary) -> u8 {
    match node.ready {
        Some(ConditionStatus::False | ConditionStatus::Unknown) => 0,
        _ if node.incident.is_some() || node.findings.iter().flatten().any(Finding::is_active) => 1,
        _ if node.agent != "answers" => 2,
        _ => 3,
    }
}

/// The table.
pub(super) fn text(all: &[NodeSummary], screen: Screen) -> String {
    let rows: Vec<_> = all
        .iter()
        .map(|node| {
            let paint = match rank(node) {
                0 | 1 => Paint::Sick,
                2 => Paint::WasSick,
                _ => Paint::Plain,
            };
            (row(node), paint)
        })
        .collect();
    let mut page = Page::new();
    table(&mut page, &["NODE", "READY", "LEASE", "INCIDENT", "SICK", "AGENT"], &rows, screen.style);
    page.text(screen.style)
}

fn row(node: &NodeSummary) -> Vec<String> {
    let ready = match node.ready {
        Some(ConditionStatus::True) => "True",
        Some(ConditionStatus::False) => "False",
        Some(ConditionStatus::Unknown) => "Unknown",
        None => "not asked",
    };
    let sick: Vec<&str> = node
        .findings
        .iter()
        .flatten()
        .filter(|finding| finding.is_active())
        .map(|finding| finding.finding.as_str())
        .collect();
    let sick = match sick.as_slice() {
        [] if node.findings.is_none() => "not known".to_owned(),
        [] => "-".to_owned(),
        [one] => (*one).to_owned(),
        [first, others @ ..] => format!("{first} +{}", others.len()),
    };
    vec![
        node.name.clone(),
        ready.to_owned(),
        ago(node.lease_age_seconds),
        node.incident.clone().unwrap_or_else(|| "-".to_owned()),
        sick,
        node.agent.clone(),
    ]
}

fn ago(seconds: Option<f64>) -> String {
    let passed = seconds.and_then(|seconds| SignedDuration::try_from_secs_f64(seconds).ok());
    passed.map_or_else(|| "-".to_owned(), age)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_agent_told_is_not_none() {
        let text = r#"{"name": "worker-7", "agent": "no agent is followed"}"#;
        let unheard: NodeSummary = serde_json::from_str(text).unwrap();
        assert_eq!(row(&unheard)[4], "not known");
        assert_eq!(row(&NodeSummary { findings: Some(Vec::new()), ..unheard })[4], "-");
    }
}
