//! GET over a Unix socket: the way in which agent and aggregator are asked.

use std::path::Path;

use anyhow::{Context, ensure};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// GETs a path; the status and the whole body.
///
/// # Errors
/// The socket can't be connected to, or what answers speaks no HTTP.
pub async fn get(socket: &Path, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    let stream =
        UnixStream::connect(socket).await.with_context(|| format!("connect to {}", socket.display()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path).header("host", "localhost").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await.with_context(|| format!("GET {path}"))?;
    let status = response.status();
    let body = response.into_body().collect().await.with_context(|| format!("read {path}"))?.to_bytes();
    connection.abort();
    Ok((status, body))
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
