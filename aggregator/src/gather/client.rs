//! One agent's HTTP API over its Unix socket, as a client: bounded answers, deadlines, errors that name the socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use nodewhy_clock::Clock;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::sse::{Parser, Piece};

/// The longest answer that is taken: a state with every collector's reading is far below it.
const MAX_ANSWER_BYTES: usize = 16 << 20;
/// The longest single event.
const MAX_EVENT_BYTES: usize = 1 << 20;

/// Why an agent could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    #[error("connecting to {}: {source}; is the agent running there?", socket.display())]
    Connect { socket: PathBuf, source: std::io::Error },
    #[error("{} connects, but GET {path} was not answered within {} s", socket.display(), limit.as_secs_f64())]
    Deadline { socket: PathBuf, path: String, limit: Duration },
    #[error("GET {path} on {}: {source}", socket.display())]
    Http { socket: PathBuf, path: String, source: hyper::Error },
    #[error("GET {path} on {} was answered with {status}", socket.display())]
    Status { socket: PathBuf, path: String, status: StatusCode },
    #[error("GET {path} on {}: the answer can't be read: {why}", socket.display())]
    Malformed { socket: PathBuf, path: String, why: String },
    #[error("the agent at {} says that it is on node {said}, not on {asked}: what it says is dropped", socket.display())]
    AnotherNode { socket: PathBuf, said: String, asked: String },
    #[error("the event stream of {} was silent for {} s", socket.display(), limit.as_secs_f64())]
    Silent { socket: PathBuf, limit: Duration },
    #[error("the event stream of {} ended", socket.display())]
    Ended { socket: PathBuf },
}

impl AgentError {
    /// Whether only time was up: a skipped clock or a busy machine does that too, so one new try is due before
    /// the agent is called unreachable.
    pub(crate) fn is_about_time(&self) -> bool {
        matches!(self, AgentError::Deadline { .. } | AgentError::Silent { .. })
    }

    /// Whether the agent says that the question itself is wrong.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, AgentError::Status { status: StatusCode::BAD_REQUEST, .. })
    }
}

/// Asks one agent. Each question has its own connection: a hung one costs only itself.
pub(crate) struct AgentClient {
    pub(crate) socket: PathBuf,
    pub(crate) clock: Clock,
    pub(crate) answer: Duration,
    pub(crate) silence: Duration,
}

/// Drives a connection; ends with its owner.
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl AgentClient {
    /// GETs a JSON document.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, AgentError> {
        let asked = async {
            let (response, _driver) = self.request(path).await?;
            let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
            let bytes = body.map_err(|error| self.malformed(path, error.to_string()))?.to_bytes();
            serde_json::from_slice(&bytes).map_err(|error| self.malformed(path, error.to_string()))
        };
        self.clock.timeout(self.answer, asked).await.unwrap_or_else(|| Err(self.deadline(path)))
    }

    /// Opens the event stream after this cursor.
    pub(crate) async fn events(&self, after: Option<&str>) -> Result<EventStream<'_>, AgentError> {
        let path = match after {
            Some(cursor) => format!("/api/v1/events?after={}", escape(cursor)),
            None => "/api/v1/events".to_owned(),
        };
        let opened = self.clock.timeout(self.answer, self.request(&path)).await;
        let (response, driver) = opened.unwrap_or_else(|| Err(self.deadline(&path)))?;
        Ok(EventStream {
            client: self,
            path,
            body: response.into_body(),
            parser: Parser::new(MAX_EVENT_BYTES),
            _driver: driver,
        })
    }

    async fn request(&self, path: &str) -> Result<(Response<Incoming>, Driver), AgentError> {
        let http = |source| AgentError::Http { socket: self.socket.clone(), path: path.to_owned(), source };
        let stream = connect(&self.socket).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
        let driver = Driver(tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an agent's connection ended");
            }
        }));
        let request = Request::get(path)
            .header("host", "agent")
            .body(Empty::<Bytes>::new())
            .map_err(|error| self.malformed(path, error.to_string()))?;
        let response = sender.send_request(request).await.map_err(http)?;
        if response.status() != StatusCode::OK {
            let (socket, path, status) = (self.socket.clone(), path.to_owned(), response.status());
            return Err(AgentError::Status { socket, path, status });
        }
        Ok((response, driver))
    }

    fn deadline(&self, path: &str) -> AgentError {
        AgentError::Deadline { socket: self.socket.clone(), path: path.to_owned(), limit: self.answer }
    }

    fn malformed(&self, path: &str, why: String) -> AgentError {
        AgentError::Malformed { socket: self.socket.clone(), path: path.to_owned(), why }
    }
}

/// An open event stream.
pub(crate) struct EventStream<'a> {
    client: &'a AgentClient,
    path: String,
    body: Incoming,
    parser: Parser,
    _driver: Driver,
}

impl EventStream<'_> {
    /// The next pieces; never an empty wait: a stream without a byte for too long is an error.
    pub(crate) async fn next(&mut self) -> Result<Vec<Piece>, AgentError> {
        let client = self.client;
        let socket = || client.socket.clone();
        let Some(frame) = client.clock.timeout(client.silence, self.body.frame()).await else {
            return Err(AgentError::Silent { socket: socket(), limit: client.silence });
        };
        match frame {
            None => Err(AgentError::Ended { socket: socket() }),
            Some(Err(source)) => Err(AgentError::Http { socket: socket(), path: self.path.clone(), source }),
            Some(Ok(frame)) => Ok(frame.data_ref().map_or_else(Vec::new, |bytes| self.parser.push(bytes))),
        }
    }
}

async fn connect(socket: &Path) -> Result<UnixStream, AgentError> {
    UnixStream::connect(socket)
        .await
        .map_err(|source| AgentError::Connect { socket: socket.to_owned(), source })
}

/// Percent-encodes a cursor: it is opaque, so anything may stand in it.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_escaped() {
        assert_eq!(escape("b00t/12 &ä"), "b00t%2F12%20%26%C3%A4");
    }
}
