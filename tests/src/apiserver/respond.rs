//! One request, one response.

use std::convert::Infallible;
use std::sync::Arc;

use http_body_util::{Either, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use serde_json::{Value, json};

use super::Shared;
use super::query::Asked;
use super::watch::{Lines, watch};
use crate::recording::Kind;

pub(super) type Answer = Response<Either<Full<Bytes>, Lines>>;

pub(super) async fn respond(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Answer, Infallible> {
    let (method, uri) = (request.method(), request.uri());
    if method != Method::GET {
        shared.refuse(format!("{method} {uri}"));
        return Ok(status(405, "MethodNotAllowed", "this test server answers reads alone"));
    }
    Ok(match uri.path() {
        "/readyz" | "/livez" | "/healthz" => text("ok"),
        "/version" => document(200, &json!({"major": "1", "minor": "36", "gitVersion": "v1.36.2"})),
        path => match Asked::parse(path, uri.query().unwrap_or_default()) {
            Err((code, message)) => {
                status(code, if code == 404 { "NotFound" } else { "BadRequest" }, &message)
            }
            Ok(asked) if asked.options.watch => watch(asked, shared),
            Ok(asked) => read(&asked, &shared),
        },
    })
}

fn read(asked: &Asked, shared: &Shared) -> Answer {
    let (objects, version) = shared.store.list(&asked.selection);
    let Some(name) = &asked.name else {
        let (api_version, kind) = names(asked.selection.kind);
        let metadata = json!({"resourceVersion": version.to_string()});
        let list = json!({"kind": format!("{kind}List"), "apiVersion": api_version, "metadata": metadata, "items": objects});
        return document(200, &list);
    };
    let found = objects.iter().find(|object| object.pointer("/metadata/name").is_some_and(|n| n == name));
    match found {
        Some(object) => document(200, object),
        None => {
            let plural = format!("{}s", names(asked.selection.kind).1.to_lowercase());
            status(404, "NotFound", &format!("{plural} {name:?} not found"))
        }
    }
}

/// `apiVersion` and `kind`.
pub(super) fn names(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::Node => ("v1", "Node"),
        Kind::Lease => ("coordination.k8s.io/v1", "Lease"),
        Kind::Event => ("v1", "Event"),
    }
}

/// A `Status` object, as every error of a real API server is.
pub(super) fn failure(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
           "message": message, "reason": reason, "code": code})
}

pub(super) fn status(code: u16, reason: &str, message: &str) -> Answer {
    document(code, &failure(code, reason, message))
}

fn document(code: u16, value: &Value) -> Answer {
    body(code, "application/json", Either::Left(Full::from(value.to_string())))
}

fn text(text: &'static str) -> Answer {
    body(200, "text/plain; charset=utf-8", Either::Left(Full::from(text)))
}

pub(super) fn body(code: u16, content: &'static str, body: Either<Full<Bytes>, Lines>) -> Answer {
    let mut response = Response::new(body);
    *response.status_mut() =
        hyper::StatusCode::from_u16(code).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static(content));
    response
}
