//! The HTTP API: routes, errors, who may ask what.
//!
//! Everything is read from the board: no request ever reads the node, so none can hang on it.

mod impatient;
mod listen;
mod scrape;
mod stream;

use std::convert::Infallible;
use std::sync::Arc;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes};
use hyper::header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use nodewhy_proto::Problem;
use serde::Serialize;
use subtle::ConstantTimeEq;

use crate::board::Board;
use crate::node::Identity;

pub(crate) use scrape::FAMILIES;

pub use listen::{DEFAULT_PORT, DEFAULT_SOCKET, ListenError, Listeners};

/// What a response carries.
pub type ApiBody = BoxBody<Bytes, Infallible>;
/// An answer; an error is an answer too.
pub type Answer = Result<Response<ApiBody>, Problem>;

/// What the API answers from.
pub struct Api {
    /// What is known now.
    pub board: Arc<Board>,
    /// Which node this is.
    pub identity: Identity,
}

/// How a request came in, which decides what it may see.
#[derive(Clone)]
pub enum Door {
    /// The Unix socket: its mode (0600) says who may.
    Socket,
    /// Loopback: the bearer token says who may; metrics and health are open.
    Loopback {
        /// The token.
        token: Arc<str>,
    },
}

impl Api {
    /// Answers one request.
    pub fn answer<B: Body>(&self, request: &Request<B>, door: &Door) -> Response<ApiBody> {
        let mut response = match self.route(request, door) {
            Ok(response) => response,
            Err(problem) => from_problem(&problem),
        };
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if request.method() == Method::HEAD {
            *response.body_mut() = text_body(String::new());
        }
        response
    }

    fn route<B: Body>(&self, request: &Request<B>, door: &Door) -> Answer {
        let path = request.uri().path();
        let is_open = matches!(path, "/metrics" | "/healthz" | "/readyz");
        if !is_open {
            authorize(request.headers(), door)?;
        }
        if !PATHS.contains(&path) {
            let detail = format!("{path} is not a path of this agent; it has {}", PATHS.join(" "));
            return Err(Problem::new(404, "Not Found", detail));
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let detail = format!("{} on {path}: this API only reads; use GET", request.method());
            return Err(Problem::new(405, "Method Not Allowed", detail));
        }
        match path {
            "/metrics" => text("text/plain; version=0.0.4; charset=utf-8", scrape::text(&self.board)?),
            "/healthz" => text("text/plain; charset=utf-8", "ok\n".to_owned()),
            "/readyz" => self.ready(),
            "/api/v1/node" => json(&self.identity.info(&self.board)),
            "/api/v1/state" => json(&self.board.state(query(request, "readings") != Some("false"))),
            "/api/v1/findings" => json(&self.board.findings()),
            "/api/v1/events" => stream::open(&self.board, cursor(request)),
            _ => self.kmsg(),
        }
    }

    fn ready(&self) -> Answer {
        if self.board.is_ready() {
            return text("text/plain; charset=utf-8", "ok\n".to_owned());
        }
        let detail = "not every collector has tried to read once; this takes about a second after the start";
        Err(Problem::new(503, "Service Unavailable", detail))
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

const PATHS: &[&str] = &[
    "/metrics",
    "/healthz",
    "/readyz",
    "/api/v1/node",
    "/api/v1/state",
    "/api/v1/findings",
    "/api/v1/events",
    "/api/v1/kmsg",
];

fn authorize(headers: &HeaderMap, door: &Door) -> Result<(), Problem> {
    let Door::Loopback { token } = door else { return Ok(()) };
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

fn cursor<B>(request: &Request<B>) -> Option<&str> {
    // A reader that reconnects by itself sends Last-Event-ID, which is newer than the address it began with.
    let last = request.headers().get("last-event-id").and_then(|value| value.to_str().ok());
    last.or_else(|| query(request, "after"))
}

/// Cursors need no escaping, so none is undone.
fn query<'a, B>(request: &'a Request<B>, name: &str) -> Option<&'a str> {
    let pairs = request.uri().query()?.split('&');
    pairs.filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
}

fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_string(value) {
        Ok(body) => text("application/json", body),
        Err(error) => {
            Err(Problem::new(500, "Internal Server Error", format!("the answer is no JSON: {error}")))
        }
    }
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
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}
