//! `nodewhy why [NODE]`

use anyhow::{anyhow, bail};
use clap::Args;
use jiff::{SignedDuration, Timestamp};
use nodewhy_proto::{Conclusion, Incident, NodeSummary, Revision, Verdict};
use serde::Serialize;

use super::output::{Format, Output, Screen, json};
use super::{Ask, Told, nodes, print};
use crate::client::{Client, ClientError, segment};
use crate::diagnosis::look_alikes;
use crate::render::text::nearest;
use crate::render::why::{self, Answer, recovering, telling};

/// An incident that ended within this time is still what is asked for: who is woken comes after it.
const STILL_TOLD: SignedDuration = SignedDuration::from_mins(60);

/// What `why` can be told.
#[derive(Args, Clone, Debug)]
pub(super) struct Why {
    /// The node. Without it: the only one, or the list with the sick ones first
    node: Option<String>,
    /// This incident, open or not
    #[arg(long, value_name = "ID", conflicts_with_all = ["node", "now"])]
    incident: Option<String>,
    /// Conclude anew from what is known now, and leave incidents aside
    #[arg(long)]
    now: bool,
    /// Everything that was ruled out, can't be told or can't be seen, with all evidence
    #[arg(long)]
    all: bool,
    /// End with 3 when the node is not well
    #[arg(long)]
    exit_code: bool,
    #[command(flatten)]
    ask: Ask,
    #[command(flatten)]
    output: Output,
}

/// The document that `-o json` prints.
#[derive(Serialize)]
struct Document<'a> {
    /// The incident that the verdict belongs to; null when it was concluded on the spot.
    incident: Option<About<'a>>,
    /// The verdict.
    verdict: &'a Verdict,
}

#[derive(Serialize)]
struct About<'a> {
    id: &'a str,
    began: Timestamp,
    opened: Timestamp,
    lost_ready: Option<Timestamp>,
    ended: Option<Timestamp>,
    revision: u32,
    changed_by: &'a str,
}

pub(super) async fn run(asked: &Why, screen: Screen, now: Timestamp) -> anyhow::Result<Told> {
    let aggregator = asked.ask.client();
    let node = match (&asked.node, &asked.incident) {
        (_, Some(id)) => {
            let incident = incident(&aggregator, id).await?;
            return tell_incident(asked, screen, now, &incident, None);
        }
        (Some(node), _) => known(&aggregator, node).await?,
        (None, _) => match only(&aggregator).await? {
            Only(node) => node,
            Several(all) => {
                print(&match asked.output.output {
                    Format::Json => json(&all)?,
                    Format::Text => format!("{}\nName one: nodewhy why NODE\n", nodes::text(&all, screen)),
                })?;
                return Ok(Told::Fine);
            }
        },
    };
    if !asked.now
        && let Some(incident) = newest(&aggregator, &node, now).await?
    {
        // The incident is the answer; that it is about to end is an addition, and may fail.
        let open = incident.ended.is_none();
        let verdict = if open { concluded(&aggregator, &node).await.ok() } else { None };
        return tell_incident(asked, screen, now, &incident, verdict.as_ref().and_then(recovering));
    }
    tell(asked, screen, now, &concluded(&aggregator, &node).await?, None, None)
}

async fn concluded(aggregator: &Client, node: &str) -> Result<Verdict, ClientError> {
    aggregator.get(&format!("/api/v1/nodes/{}/why", segment(node))).await
}

fn tell_incident(
    asked: &Why,
    screen: Screen,
    now: Timestamp,
    incident: &Incident,
    recovering: Option<&str>,
) -> anyhow::Result<Told> {
    let Some(revision) = telling(incident) else {
        bail!("incident {} has no verdict yet: ask again in a second", incident.id);
    };
    tell(asked, screen, now, &revision.verdict, Some((incident, revision)), recovering)
}

fn tell(
    asked: &Why,
    screen: Screen,
    now: Timestamp,
    verdict: &Verdict,
    incident: Option<(&Incident, &Revision)>,
    recovering: Option<&str>,
) -> anyhow::Result<Told> {
    print(&match asked.output.output {
        Format::Json => json(&document(verdict, incident))?,
        Format::Text => {
            let near = verdict.roots.first().map(|root| look_alikes(&root.cause)).unwrap_or_default();
            let answer =
                Answer { incident, near: &near, all: asked.all, recovering, ..Answer::of(verdict, now) };
            why::page(answer, screen.style).text(screen.style)
        }
    })?;
    let over = incident.is_some_and(|(incident, _)| incident.ended.is_some());
    let well = over || verdict.conclusion == Conclusion::Healthy;
    Ok(if asked.exit_code && !well { Told::NotWell } else { Told::Fine })
}

fn document<'a>(verdict: &'a Verdict, incident: Option<(&'a Incident, &'a Revision)>) -> Document<'a> {
    let about = incident.map(|(incident, revision)| About {
        id: &incident.id,
        began: incident.began,
        opened: incident.opened,
        lost_ready: incident.lost_ready,
        ended: incident.ended,
        revision: revision.revision,
        changed_by: &revision.changed_by,
    });
    Document { incident: about, verdict }
}

enum Nodes {
    Only(String),
    Several(Vec<NodeSummary>),
}
use Nodes::{Only, Several};

/// The only node, or all of them.
async fn only(aggregator: &Client) -> anyhow::Result<Nodes> {
    let all = nodes::all(aggregator).await?;
    match all.as_slice() {
        [] => bail!(
            "the aggregator at {} knows no node yet. Is an agent running? `nodewhy up` runs one on this machine",
            aggregator.socket().display()
        ),
        [node] => Ok(Only(node.name.clone())),
        _ => Ok(Several(all)),
    }
}

/// The node's name if the aggregator knows it; else the names that are near.
async fn known(aggregator: &Client, node: &str) -> anyhow::Result<String> {
    match aggregator.get::<NodeSummary>(&format!("/api/v1/nodes/{}", segment(node))).await {
        Ok(_) => return Ok(node.to_owned()),
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error.into()),
    }
    let all = nodes::all(aggregator).await?;
    let near = nearest(node, all.iter().map(|node| node.name.as_str()));
    let hint = match (near.as_slice(), all.len()) {
        ([], 0) => "it knows no node yet".to_owned(),
        ([], count) => format!("it knows {count}: see `nodewhy nodes`"),
        (near, _) => format!("did you mean {}?", near.join(", ")),
    };
    Err(anyhow!("the aggregator knows no node {node:?}; {hint}"))
}

/// The newest incident if it is open or ended a short time ago. A list has only its newest revision, and the newest
/// of one that ended says that all is well: then the whole one is asked for.
async fn newest(aggregator: &Client, node: &str, now: Timestamp) -> Result<Option<Incident>, ClientError> {
    let all: Vec<Incident> = aggregator.get(&format!("/api/v1/incidents?node={}", segment(node))).await?;
    let Some(newest) = all.into_iter().next() else { return Ok(None) };
    match newest.ended {
        None => Ok(Some(newest)),
        Some(ended) if now.duration_since(ended) > STILL_TOLD => Ok(None),
        Some(_) => incident(aggregator, &newest.id).await.map(Some),
    }
}

async fn incident(aggregator: &Client, id: &str) -> Result<Incident, ClientError> {
    aggregator.get(&format!("/api/v1/incidents/{}", segment(id))).await
}
