//! `nodewhy incidents`

use clap::Args;
use jiff::Timestamp;
use nodewhy_proto::{Conclusion, Incident};

use super::output::{Format, Output, Screen, json};
use super::{Ask, Told, print};
use crate::client::segment;
use crate::render::table::table;
use crate::render::time::{clock, lasted};
use crate::render::{Page, Paint};

/// What `incidents` can be told.
#[derive(Args, Clone, Debug)]
pub(super) struct Incidents {
    /// Of this node alone
    node: Option<String>,
    #[command(flatten)]
    ask: Ask,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(asked: &Incidents, screen: Screen, now: Timestamp) -> anyhow::Result<Told> {
    let path = match &asked.node {
        Some(node) => format!("/api/v1/incidents?node={}", segment(node)),
        None => "/api/v1/incidents".to_owned(),
    };
    let all: Vec<Incident> = asked.ask.client().get(&path).await?;
    print(&match asked.output.output {
        Format::Json => json(&all)?,
        Format::Text if all.is_empty() => "No incidents.\n".to_owned(),
        Format::Text => text(&all, screen, now),
    })?;
    Ok(Told::Fine)
}

fn text(all: &[Incident], screen: Screen, now: Timestamp) -> String {
    let rows: Vec<_> = all
        .iter()
        .map(|incident| {
            let lasted = match incident.ended {
                Some(ended) => lasted(incident.began, ended),
                None => format!("{} so far", lasted(incident.began, now)),
            };
            let asked = incident.verdict().is_some_and(|verdict| verdict.ready.is_some());
            let lost = match incident.lost_ready {
                Some(lost) => clock(lost, now),
                None if asked => "no".to_owned(),
                // Nobody asked an API server: that Ready was kept is not known.
                None => "not known".to_owned(),
            };
            let cells = vec![incident.id.clone(), clock(incident.began, now), lasted, lost, cause(incident)];
            (cells, if incident.ended.is_none() { Paint::Sick } else { Paint::Plain })
        })
        .collect();
    let mut page = Page::new();
    table(&mut page, &["INCIDENT", "BEGAN (UTC)", "LASTED", "READY LOST", "CAUSE"], &rows, screen.style);
    page.text(screen.style)
}

/// The id of its root cause. The list has the newest revision alone, and of an incident that ended that may be
/// "all is well": then `nodewhy why --incident` tells.
fn cause(incident: &Incident) -> String {
    let Some(verdict) = incident.verdict() else { return "no verdict yet".to_owned() };
    match (verdict.conclusion, verdict.roots.first()) {
        (_, Some(root)) => root.cause.clone(),
        (Conclusion::Deadlock, None) => "a deadlock".to_owned(),
        (Conclusion::Healthy, None) => "well again".to_owned(),
        _ => "no cause found".to_owned(),
    }
}
