//! The HTTP API: routes, errors, who may ask what.
//!
//! Everything is read from the board: no request reads the node, so none can hang on it. What is read only when it is
//! asked for ([`asks`]) is read on threads of its own.

mod asks;
mod credentials;
mod describe;
mod impatient;
mod listen;
mod routes;
mod scrape;
mod stream;
mod tls;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes};
use hyper::header::{
    ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE,
};
use hyper::{Method, Request, Response, StatusCode};
use nodewhy_proto::{Page, Problem};
use serde::Serialize;
use subtle::ConstantTimeEq;

use crate::board::Board;
use crate::host::Host;
use crate::node::Identity;
use crate::serve::routes::{Route, Source};

pub(crate) use scrape::FAMILIES;

pub use credentials::{CredentialFiles, CredentialsError};
pub use listen::{DEFAULT_PORT, DEFAULT_SOCKET, Listen, ListenError, Listeners};

/// What a response carries.
pub type ApiBody = BoxBody<Bytes, Infallible>;
/// An answer; an error is an answer too.
pub type Answer = Result<Response<ApiBody>, Problem>;

/// What the API answers from.
pub struct Api {
    board: Arc<Board>,
    identity: Identity,
    routes: BTreeMap<&'static str, Route>,
}

/// How a request came in, which decides what it may see.
#[derive(Clone)]
pub enum Door {
    /// The Unix socket: its mode (0600) says who may.
    Socket,
    /// An address that serves metrics and health alone, to whoever comes.
    Open,
    /// An address. Metrics and health are open to who got this far; the rest needs the token, where one is set. Where
    /// none is, the client's certificate has said who it is.
    Address {
        /// The token.
        token: Option<Arc<str>>,
    },
}

impl Api {
    /// The API of this board. Starts the threads that read what is asked for.
    ///
    /// # Errors
    /// The kernel gives no thread.
    pub fn new(board: Arc<Board>, identity: Identity, host: &Host) -> std::io::Result<Api> {
        let routes = routes::routes(&board, host)?;
        Ok(Api { board, identity, routes })
    }

    /// Answers one request.
    pub async fn answer<B: Body>(&self, request: &Request<B>, door: &Door) -> Response<ApiBody> {
        let mut response = match self.route(request, door).await {
            Ok(response) => response,
            Err(problem) => from_problem(&problem),
        };
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if request.method() == Method::HEAD {
            *response.body_mut() = text_body(String::new());
        }
        response
    }

    async fn route<B: Body>(&self, request: &Request<B>, door: &Door) -> Answer {
        let path = request.uri().path();
        let route = self.routes.get(path);
        if !route.is_some_and(Route::is_open) {
            authorize(request.headers(), path, door)?;
        }
        let Some(route) = route else {
            let paths: Vec<&str> = self.routes.keys().copied().collect();
            let detail = format!("{path} is not a path of this agent; it has {}", paths.join(" "));
            return Err(Problem::new(404, "Not Found", detail));
        };
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let detail = format!("{} on {path}: this API only reads; use GET", request.method());
            return Err(Problem::new(405, "Method Not Allowed", detail));
        }
        let query = parameters(route, request.uri().query())?;
        match &route.source {
            Source::Metrics => text("text/plain; version=0.0.4; charset=utf-8", scrape::text(&self.board)),
            Source::Healthz => text("text/plain; charset=utf-8", "ok\n".to_owned()),
            Source::Readyz => self.ready(),
            Source::Node => json(&self.identity.info(&self.board)),
            Source::State => json(&self.board.state(with_readings(&query)?)),
            Source::Findings => json(&self.board.findings()),
            Source::Events => stream::open(&self.board, cursor(request.headers(), &query)?),
            Source::Kmsg => self.kmsg(),
            Source::OpenApi => match describe::document(&self.routes, &self.board) {
                Ok(document) => json(&document),
                Err(error) => Err(no_json(&error)),
            },
            Source::Page(collector) => self.page(path, collector),
            Source::Ask(desk) => json(&desk.answer(query).await?),
            Source::Off(collector) => {
                let detail = format!("{path} is read by the collector {collector}, which is switched off");
                Err(Problem::new(503, "Service Unavailable", detail))
            }
        }
    }

    fn ready(&self) -> Answer {
        if self.board.is_ready() {
            return text("text/plain; charset=utf-8", "ok\n".to_owned());
        }
        let detail = "not every collector has tried to read once; this takes about a second after the start";
        Err(Problem::new(503, "Service Unavailable", detail))
    }

    fn page(&self, path: &str, collector: &str) -> Answer {
        let unavailable = |why: String| {
            let detail = format!("{path} cannot be shown: {collector} has no reading: {why}");
            Problem::new(503, "Service Unavailable", detail)
        };
        let Some((outcome, reading)) = self.board.newest(collector) else {
            return Err(unavailable("there is no such collector".to_owned()));
        };
        let Some(reading) = reading else {
            return Err(unavailable(outcome.why().unwrap_or_else(|| "not read yet".to_owned())));
        };
        let page = match reading.page(path) {
            Some(Ok(page)) => page,
            Some(Err(error)) => return Err(no_json(&error)),
            None => return Err(unavailable(format!("its reading has no {path}"))),
        };
        let taken = reading.taken();
        let age = self.board.clock().since_boot().saturating_sub(taken.boot);
        json(&Page {
            collector: collector.to_owned(),
            outcome,
            read_at: taken.wall,
            age_seconds: age.as_secs_f64(),
            page,
        })
    }

    fn kmsg(&self) -> Answer {
        let unavailable = |why: String| {
            let detail =
                format!("no kernel log can be shown: {why}; /api/v1/state says how the collector oom does");
            Problem::new(503, "Service Unavailable", detail)
        };
        let Some(reading) = self.board.reading("oom") else {
            return Err(unavailable(
                self.board.summary("oom").unwrap_or_else(|| "no collector oom".to_owned()),
            ));
        };
        let whole = reading.json().map_err(|error| unavailable(error.to_string()))?;
        let recent =
            whole.get("recent").ok_or_else(|| unavailable("the reading holds no records".to_owned()))?;
        json(recent)
    }
}

fn authorize(headers: &HeaderMap, path: &str, door: &Door) -> Result<(), Problem> {
    let token = match door {
        Door::Socket | Door::Address { token: None } => return Ok(()),
        Door::Open => {
            let detail = format!(
                "{path} is not served on this address, which anybody may ask: it has /metrics /healthz /readyz. Ask on \
                 the agent's Unix socket, or on the address of --listen"
            );
            return Err(Problem::new(404, "Not Found", detail));
        }
        Door::Address { token: Some(token) } => token,
    };
    let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.split_once(' '));
    let right = given.is_some_and(|(scheme, value)| {
        scheme.eq_ignore_ascii_case("bearer") && bool::from(value.trim().as_bytes().ct_eq(token.as_bytes()))
    });
    if right {
        return Ok(());
    }
    let detail = "this path shows what runs on the node: send `Authorization: Bearer TOKEN` with the token from the \
                  agent's token file, or ask on its Unix socket";
    Err(Problem::new(401, "Unauthorized", detail))
}

/// The query's parameters, each known and each once.
fn parameters(route: &Route, query: Option<&str>) -> Result<BTreeMap<String, String>, Problem> {
    let mut given = BTreeMap::new();
    for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        let bad = |what: &str| {
            let known: Vec<&str> = route.parameters.iter().map(|(name, _)| *name).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let detail = format!("the parameter {name:?} of {} {what}; it takes {known}", route.path);
            Problem::new(400, "Bad Request", detail)
        };
        if !route.parameters.iter().any(|(known, _)| *known == name) {
            return Err(bad("is not known"));
        }
        if given.insert(name.clone().into_owned(), value.into_owned()).is_some() {
            return Err(bad("is given twice"));
        }
    }
    Ok(given)
}

fn with_readings(query: &BTreeMap<String, String>) -> Result<bool, Problem> {
    match query.get("readings").map(String::as_str) {
        None | Some("true") => Ok(true),
        Some("false") => Ok(false),
        Some(other) => {
            let detail = format!("readings={other:?} is neither true nor false");
            Err(Problem::new(400, "Bad Request", detail))
        }
    }
}

/// A reader that reconnects by itself sends Last-Event-ID, which is newer than the address it began with.
fn cursor<'a>(
    headers: &'a HeaderMap,
    query: &'a BTreeMap<String, String>,
) -> Result<Option<&'a str>, Problem> {
    let Some(last) = headers.get("last-event-id") else { return Ok(query.get("after").map(String::as_str)) };
    last.to_str().map(Some).map_err(|_| {
        Problem::new(
            400,
            "Bad Request",
            "the header Last-Event-ID is no cursor: pass an event's id as it was received",
        )
    })
}

fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_string(value) {
        Ok(body) => text("application/json", body),
        Err(error) => Err(no_json(&error)),
    }
}

fn no_json(error: &serde_json::Error) -> Problem {
    Problem::new(500, "Internal Server Error", format!("the answer is no JSON: {error}"))
}

fn text(kind: &'static str, body: String) -> Answer {
    Ok(with_type(StatusCode::OK, kind, text_body(body)))
}

fn text_body(body: String) -> ApiBody {
    Full::new(Bytes::from(body)).boxed()
}

fn with_type(status: StatusCode, kind: &'static str, body: ApiBody) -> Response<ApiBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn from_problem(problem: &Problem) -> Response<ApiBody> {
    // A document of four short fields is always JSON; were it not, its detail in plain text serves.
    let body = serde_json::to_string(problem).unwrap_or_else(|_| problem.detail.clone());
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = with_type(status, "application/problem+json", text_body(body));
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}
