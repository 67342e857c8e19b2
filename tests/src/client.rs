//! GET over a Unix socket: the way in which agent and aggregator are asked.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use nodewhy_proto::Event;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// GETs a path; the status and the whole body.
///
/// # Errors
/// The socket can't be connected to, what answers speaks no HTTP, or it takes more than ten seconds.
pub async fn get(socket: &Path, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    let whole = async {
        let response = open(socket, path).await?;
        let status = response.status();
        let body = response.into_body().collect().await.with_context(|| format!("read {path}"))?.to_bytes();
        anyhow::Ok((status, body))
    };
    let limit = Duration::from_secs(10);
    tokio::time::timeout(limit, whole)
        .await
        .with_context(|| format!("GET {path} on {}: no answer in {limit:?}", socket.display()))?
}

/// The events that the agent's stream tells within this much real time.
///
/// # Errors
/// As [`get`]; or the stream ends, or an event is not of proto's shape.
pub async fn events(socket: &Path, listen: Duration) -> anyhow::Result<Vec<Event>> {
    let response = open(socket, "/api/v1/events").await?;
    ensure!(response.status() == StatusCode::OK, "GET /api/v1/events: {}", response.status());
    let (mut body, mut text) = (response.into_body(), Vec::new());
    let end = tokio::time::Instant::now() + listen;
    while let Ok(frame) = tokio::time::timeout_at(end, body.frame()).await {
        let frame = frame.context("the event stream ended")??;
        text.extend(frame.data_ref().into_iter().flatten());
    }
    let text = String::from_utf8(text).context("the event stream is not UTF-8")?;
    // What follows the last empty line is not whole yet.
    let whole = text.rsplit_once("\n\n").map_or("", |(whole, _)| whole);
    whole
        .lines()
        .filter_map(|line| line.strip_prefix("data:"))
        .map(|data| serde_json::from_str(data).with_context(|| format!("event {data}")))
        .collect()
}

/// GETs a path; the answer's head, whose body is still to come.
///
/// # Errors
/// The socket can't be connected to, or what answers speaks no HTTP.
pub async fn open(socket: &Path, path: &str) -> anyhow::Result<Response<Incoming>> {
    let stream =
        UnixStream::connect(socket).await.with_context(|| format!("connect to {}", socket.display()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the response's body.
    tokio::spawn(connection);
    let request = Request::get(path).header("host", "localhost").body(Empty::<Bytes>::new())?;
    sender.send_request(request).await.with_context(|| format!("GET {path}"))
}

/// GETs a path that answers with JSON of this type.
///
/// # Errors
/// As [`get`]; or the status is not 200, or the body is not of that type.
pub async fn get_json<T: DeserializeOwned>(socket: &Path, path: &str) -> anyhow::Result<T> {
    let (status, body) = get(socket, path).await?;
    let text = String::from_utf8_lossy(&body);
    ensure!(status == StatusCode::OK, "GET {path} on {}: {status}: {text}", socket.display());
    serde_json::from_slice(&body).with_context(|| format!("GET {path} on {}: {text}", socket.display()))
}
