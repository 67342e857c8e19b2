//! HTTP over a Unix socket: one call, one connection. The answers are small and seldom asked for.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use nodewhy_proto::Problem;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// No answer of ours is larger; a larger one is an error, not a surprise in memory.
const LARGEST_ANSWER_BYTES: usize = 64 * 1024 * 1024;
/// A program that has not answered by then hangs.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who is asked, for messages: what it is called, and what to do when it can't be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The agent of this machine.
    Agent,
    /// The aggregator.
    Aggregator,
}

impl Who {
    fn name(self) -> &'static str {
        match self {
            Who::Agent => "agent",
            Who::Aggregator => "aggregator",
        }
    }

    /// The way to the aggregator's socket is an option; the agent's is given by `nodewhy up` itself.
    fn flag(self) -> &'static str {
        match self {
            Who::Agent => "",
            Who::Aggregator => ", or name its socket with --aggregator",
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers there.
    #[error("cannot reach the {} at {}: {}. {}", who.name(), socket.display(), reason(error), advice(*who, error))]
    Unreachable {
        /// Who was to be reached.
        who: Who,
        /// Where.
        socket: PathBuf,
        /// The kernel's word.
        error: std::io::Error,
    },
    /// It accepts connections and does not answer.
    #[error("the {} at {} has not answered {path} for {} s. It hangs or the machine starves; try again, or start it anew", who.name(), socket.display(), PATIENCE.as_secs())]
    Silent {
        /// Who.
        who: Who,
        /// Where.
        socket: PathBuf,
        /// What was asked.
        path: String,
    },
    /// The connection broke, or what came back is no HTTP.
    #[error("the {} at {} broke off its answer to {path}: {error}. Is this really its socket?", who.name(), socket.display())]
    Broken {
        /// Who.
        who: Who,
        /// Where.
        socket: PathBuf,
        /// What was asked.
        path: String,
        /// What went wrong.
        error: String,
    },
    /// It answered with an error.
    #[error("the {} refuses {path}: {} ({})", who.name(), problem.detail, problem.status)]
    Refused {
        /// Who.
        who: Who,
        /// What was asked.
        path: String,
        /// Its own words.
        problem: Problem,
    },
    /// It answered with something else than was expected.
    #[error("cannot understand the {}'s answer to {path}: {error}. Are both of the same version?", who.name())]
    NotUnderstood {
        /// Who.
        who: Who,
        /// What was asked.
        path: String,
        /// Where the answer stops making sense.
        error: serde_json::Error,
    },
}

impl ClientError {
    /// Whether what was asked for is not there, though the one who was asked is.
    pub fn is_not_found(&self) -> bool {
        matches!(self, ClientError::Refused { problem, .. } if problem.status == 404)
    }
}

fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "no such file".to_owned(),
        ErrorKind::ConnectionRefused => "nobody listens there any more".to_owned(),
        ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

fn advice(who: Who, error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::PermissionDenied => {
            "The socket is its owner's alone: run this as the user that started it, or as root".to_owned()
        }
        _ => format!("Start `nodewhy up` on this machine{}", who.flag()),
    }
}

/// A socket and who stands behind it.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    who: Who,
}

impl Client {
    /// The one behind this socket.
    pub fn new(who: Who, socket: impl Into<PathBuf>) -> Client {
        Client { socket: socket.into(), who }
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks for a document.
    ///
    /// # Errors
    /// Nobody answers, or the answer is an error or no such document.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let asked = async {
            let response = self.send(path).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), LARGEST_ANSWER_BYTES).collect().await;
            let body = body.map_err(|error| self.broken(path, too_large(&*error)))?.to_bytes();
            self.understand(path, status, &body)
        };
        tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| Err(self.silent(path)))
    }

    /// Opens a stream that lasts: its body is read by the caller.
    ///
    /// # Errors
    /// Nobody answers, or the answer is an error.
    pub async fn stream(&self, path: &str) -> Result<Incoming, ClientError> {
        let opened = tokio::time::timeout(PATIENCE, self.send(path)).await;
        let response = opened.unwrap_or_else(|_| Err(self.silent(path)))?;
        match response.status() {
            StatusCode::OK => Ok(response.into_body()),
            status => Err(self.refused(path, status, b"")),
        }
    }

    async fn send(&self, path: &str) -> Result<Response<Incoming>, ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| ClientError::Unreachable {
            who: self.who,
            socket: self.socket.clone(),
            error,
        })?;
        let (mut sender, connection): (SendRequest<Empty<Bytes>>, _) =
            handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(path, error.to_string()))?;
        // It ends with the connection; a failure is seen by whoever reads the answer.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("connection: {error}");
            }
        });
        let request = Request::get(path)
            .header(header::HOST, "nodewhy")
            .body(Empty::new())
            .map_err(|error| self.broken(path, error.to_string()))?;
        sender.send_request(request).await.map_err(|error| self.broken(path, error.to_string()))
    }

    fn understand<T: DeserializeOwned>(
        &self,
        path: &str,
        status: StatusCode,
        body: &[u8],
    ) -> Result<T, ClientError> {
        if status != StatusCode::OK {
            return Err(self.refused(path, status, body));
        }
        serde_json::from_slice(body).map_err(|error| ClientError::NotUnderstood {
            who: self.who,
            path: path.to_owned(),
            error,
        })
    }

    fn refused(&self, path: &str, status: StatusCode, body: &[u8]) -> ClientError {
        let problem = serde_json::from_slice(body).unwrap_or_else(|_| {
            let words = status.canonical_reason().unwrap_or("no reason given");
            Problem::new(status.as_u16(), words, words.to_lowercase())
        });
        ClientError::Refused { who: self.who, path: path.to_owned(), problem }
    }

    fn silent(&self, path: &str) -> ClientError {
        ClientError::Silent { who: self.who, socket: self.socket.clone(), path: path.to_owned() }
    }

    fn broken(&self, path: &str, error: String) -> ClientError {
        ClientError::Broken { who: self.who, socket: self.socket.clone(), path: path.to_owned(), error }
    }
}

fn too_large(error: &(dyn std::error::Error + 'static)) -> String {
    if error.is::<LengthLimitError>() { "it is larger than 64 MiB".to_owned() } else { error.to_string() }
}

/// A name as one segment of a path: what a URL does not carry as it is, is written as `%XX`.
pub fn segment(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_segment() {
        assert_eq!(segment("worker-7.example"), "worker-7.example");
        assert_eq!(segment("../x?y#z é"), "..%2Fx%3Fy%23z%20%C3%A9");
    }

    #[tokio::test]
    async fn who_cannot_be_reached_is_said_with_what_to_do() {
        let client = Client::new(Who::Aggregator, "/nonexistent/aggregator.sock");
        let error = client.get::<Vec<u8>>("/api/v1/nodes").await.unwrap_err().to_string();
        assert_eq!(
            error,
            "cannot reach the aggregator at /nonexistent/aggregator.sock: no such file. Start `nodewhy up` on \
             this machine, or name its socket with --aggregator"
        );
    }
}
