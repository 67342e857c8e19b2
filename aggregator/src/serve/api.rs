//! What each path answers.

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use nodewhy_diagnosis::Cause;
use nodewhy_proto::{NodeSummary, Problem};
use serde::{Deserialize, Serialize};

use super::Served;
use crate::gather::{AgentView, Contact};
use crate::known::Known;

/// An error document as an answer.
pub(crate) struct Refusal(Problem);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.0)).into_response();
        let kind = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}

fn refuse(status: StatusCode, detail: impl Into<String>) -> Refusal {
    Refusal(Problem::new(status.as_u16(), status.canonical_reason().unwrap_or("error"), detail))
}

pub(crate) async fn no_such_path(method: Method, uri: Uri) -> Refusal {
    let detail =
        format!("{method} {}: there is no such path; see /api/v1/nodes and /api/v1/incidents", uri.path());
    refuse(StatusCode::NOT_FOUND, detail)
}

pub(crate) async fn no_such_method(method: Method, uri: Uri) -> Refusal {
    refuse(StatusCode::METHOD_NOT_ALLOWED, format!("{method} {}: this API is only read: use GET", uri.path()))
}

pub(crate) async fn healthz() -> &'static str {
    "ok\n"
}

/// `/readyz`: whether it serves, and what is wrong with it meanwhile.
#[derive(Serialize)]
pub(crate) struct Readiness {
    ready: bool,
    /// What works only in part. It goes on without.
    degraded: Vec<String>,
}

pub(crate) async fn readyz(State(served): State<Served>) -> Json<Readiness> {
    let mut degraded: Vec<String> = served.judge.ledger.trouble().into_iter().collect();
    let known = served.judge.shared.lock();
    for (name, agent) in &known.agents {
        degraded.extend(agent.why_silent().map(|why| format!("{name}: {why}")));
    }
    let channels = known.cluster.watched().into_iter().flat_map(|watched| {
        [
            ("nodes", &watched.nodes_channel),
            ("leases", &watched.leases_channel),
            ("events", &watched.events_channel),
        ]
    });
    for (name, channel) in channels {
        match &channel.broken {
            Some(why) => degraded.push(format!("the API server's {name}: {why}")),
            None if !channel.listed => degraded.push(format!("the API server's {name} were not listed yet")),
            None => {}
        }
    }
    Json(Readiness { ready: true, degraded })
}

pub(crate) async fn metrics(State(served): State<Served>) -> Result<Response, Refusal> {
    let now = served.judge.clock.now();
    let metrics = &served.judge.metrics;
    metrics.store_works.set(i64::from(served.judge.ledger.trouble().is_none()));
    {
        let known = served.judge.shared.lock();
        for (name, agent) in &known.agents {
            if let Some(heard) = agent.heard {
                metrics.agent_age_seconds.with_label_values(&[name]).set(seconds_since(heard, now));
            }
        }
        if let Some(watched) = known.cluster.watched() {
            for (name, channel) in [
                ("nodes", &watched.nodes_channel),
                ("leases", &watched.leases_channel),
                ("events", &watched.events_channel),
            ] {
                if let Some(heard) = channel.heard {
                    metrics.view_age_seconds.with_label_values(&[name]).set(seconds_since(heard, now));
                }
            }
        }
    }
    let text =
        metrics.encode().map_err(|error| refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

pub(crate) async fn nodes(State(served): State<Served>) -> Json<Vec<NodeSummary>> {
    let now = served.judge.clock.now();
    let mut summaries: Vec<NodeSummary> = {
        let known = served.judge.shared.lock();
        known.nodes().iter().map(|name| summary(&known, name, now)).collect()
    };
    for summary in &mut summaries {
        summary.incident = served.judge.open_incident(&summary.name);
    }
    Json(summaries)
}

pub(crate) async fn node(
    State(served): State<Served>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<NodeSummary>, Refusal> {
    let name = segment(name)?;
    let now = served.judge.clock.now();
    let mut found = {
        let known = served.judge.shared.lock();
        if !known.nodes().contains(&name) {
            return Err(unknown_node(&name));
        }
        summary(&known, &name, now)
    };
    found.incident = served.judge.open_incident(&name);
    Ok(Json(found))
}

pub(crate) async fn why(
    State(served): State<Served>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, Refusal> {
    let name = segment(name)?;
    match served.judge.why(&name) {
        None => Err(unknown_node(&name)),
        Some(Ok(verdict)) => Ok(Json(verdict).into_response()),
        Some(Err(error)) => Err(refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

#[derive(Deserialize)]
pub(crate) struct Which {
    node: Option<String>,
}

pub(crate) async fn incidents(
    State(served): State<Served>,
    which: Result<Query<Which>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(which) = which.map_err(|error| refuse(StatusCode::BAD_REQUEST, error.body_text()))?;
    Ok(Json(served.judge.ledger.list(which.node.as_deref())).into_response())
}

pub(crate) async fn incident(
    State(served): State<Served>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, Refusal> {
    let id = segment(id)?;
    match served.judge.ledger.get(&id).await {
        Ok(Some(incident)) => Ok(Json(incident).into_response()),
        Ok(None) => Err(refuse(StatusCode::NOT_FOUND, format!("no incident {id}; see /api/v1/incidents"))),
        // What can't be looked up is not absent.
        Err(why) => Err(refuse(StatusCode::SERVICE_UNAVAILABLE, format!("the incident {id}: {why}"))),
    }
}

/// What stands in the path, where it is text.
fn segment(path: Result<Path<String>, PathRejection>) -> Result<String, Refusal> {
    path.map(|Path(text)| text).map_err(|error| refuse(StatusCode::BAD_REQUEST, error.body_text()))
}

/// A cause of the catalogue, as it is told.
#[derive(Serialize)]
pub(crate) struct CauseEntry {
    id: &'static str,
    title: &'static str,
    about: &'static str,
    leads_to: Vec<Arrow>,
    remedy: &'static [&'static str],
}

#[derive(Serialize)]
struct Arrow {
    /// A cause's id, or `not_ready`.
    to: &'static str,
    within_seconds: u64,
}

pub(crate) async fn causes(State(served): State<Served>) -> Json<Vec<CauseEntry>> {
    let entry = |cause: &'static Cause| CauseEntry {
        id: cause.id,
        title: cause.title,
        about: cause.about,
        leads_to: cause
            .leads_to
            .iter()
            .map(|link| Arrow { to: link.to, within_seconds: link.within.as_secs() })
            .collect(),
        remedy: cause.remedy,
    };
    Json((served.judge.diagnosis.causes)().into_iter().map(entry).collect())
}

fn unknown_node(name: &str) -> Refusal {
    let detail =
        format!("neither an agent nor an API server speaks of a node named {name}; see /api/v1/nodes");
    refuse(StatusCode::NOT_FOUND, detail)
}

fn summary(known: &Known, name: &str, now: Timestamp) -> NodeSummary {
    let agent = known.agents.get(name);
    NodeSummary {
        name: name.to_owned(),
        ready: known.cluster.ready(name, now).map(|ready| ready.condition.status),
        agent: agent.map_or_else(|| "no agent is followed".to_owned(), agent_word),
        agent_age_seconds: agent.and_then(|agent| agent.heard).map(|heard| seconds_since(heard, now)),
        lease_age_seconds: known.cluster.lease(name, now).map(|lease| seconds_since(lease.renew_time, now)),
        findings: agent.filter(|agent| agent.heard.is_some()).map(|agent| agent.active().cloned().collect()),
        incident: None,
    }
}

fn agent_word(agent: &AgentView) -> String {
    match &agent.contact {
        Contact::Answers => "answers".to_owned(),
        Contact::NotYet => "has not answered yet".to_owned(),
        Contact::Lost { since, why } => format!("unreachable since {since}: {why}"),
    }
}

fn seconds_since(then: Timestamp, now: Timestamp) -> f64 {
    now.duration_since(then).as_secs_f64()
}
