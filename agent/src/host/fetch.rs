//! One HTTP GET with a deadline for the whole of it and a bound in bytes, the body streamed: the metrics of the kubelet,
//! of kube-proxy, of etcd. Over TCP, or TLS by rustls.
//!
//! hyper speaks the HTTP, on a runtime of one call: no thread, no connection that is kept. What can go wrong is told by
//! its step, since each step has another cause: refused is a process that is gone, a handshake that hangs is one that
//! does not run.

use std::cell::Cell;
use std::io::{self, ErrorKind, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONNECTION, HOST, HeaderMap, HeaderValue, USER_AGENT};
use hyper_util::rt::TokioIo;
use nix::errno::Errno;
use nodewhy_clock::Clock;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::Host;
use super::tls::Trust;

/// Of an answer that is no success so much of the body is kept: the kubelet names the failing check, or the missing
/// right, in it.
const SHOWN_BODY_BYTES: usize = 4 * 1024;

/// No token is longer.
const LONGEST_TOKEN_BYTES: u64 = 64 * 1024;

/// What to get, and for how long to try.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Where.
    pub address: SocketAddr,
    /// With the query: `/metrics`.
    pub path: &'a str,
    /// Whom to believe; `None`: plain HTTP.
    pub tls: Option<&'a Trust>,
    /// A bearer token.
    pub token: Option<&'a Token>,
    /// For the whole: from the first packet to the last byte.
    pub limit: Duration,
    /// A longer body is an error; what came before was given out.
    pub most_bytes: u64,
}

/// A bearer token; it is never shown.
#[derive(Clone)]
pub struct Token(HeaderValue);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// Reads it from the agent's own file, as it is now: the kubelet renews projected tokens.
    ///
    /// # Errors
    /// It cannot be read, is empty, or is no word that a header may hold.
    pub fn read(path: &Path) -> Result<Token, FetchError> {
        let unusable = |error: String| FetchError::Token { path: path.to_owned(), error };
        let mut text = String::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(LONGEST_TOKEN_BYTES).read_to_string(&mut text))
            .map_err(|error| unusable(error.to_string()))?;
        let word = text.trim();
        if word.is_empty() {
            return Err(unusable("it is empty".to_owned()));
        }
        let mut value = HeaderValue::from_str(&format!("Bearer {word}"))
            .map_err(|_| unusable("it is no token: it has characters that no token has".to_owned()))?;
        value.set_sensitive(true);
        Ok(Token(value))
    }
}

/// A success.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// 200 to 299.
    pub code: u16,
    /// The head.
    pub headers: HeaderMap,
    /// How long the body was.
    pub body_bytes: u64,
    /// From the beginning until the connection was there.
    pub connected: Duration,
    /// And until TLS was agreed on.
    pub agreed: Option<Duration>,
    /// And until the head was here.
    pub answered: Duration,
    /// And until the end of the body.
    pub took: Duration,
}

/// How far it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The TCP connection.
    Connect,
    /// The TLS handshake.
    Tls,
    /// The answer's first byte to the end of its head.
    Answer,
    /// The body.
    Body,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Step::Connect => "connecting",
            Step::Tls => "the TLS handshake",
            Step::Answer => "the answer",
            Step::Body => "the body",
        })
    }
}

/// Why there is no answer, or no good one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// Nobody listens there.
    #[error("{url}: connection refused: nobody listens there")]
    Refused {
        /// What was asked.
        url: String,
    },
    /// The kernel refused for another reason: no route, no descriptor.
    #[error("{url}: cannot connect: {error}")]
    Unreachable {
        /// What was asked.
        url: String,
        /// The kernel's word.
        error: String,
    },
    /// The time was up.
    #[error("{url}: given up after {} s, waiting for {step}", .limit.as_secs_f64())]
    TimedOut {
        /// What was asked.
        url: String,
        /// What it waited for.
        step: Step,
        /// The whole time.
        limit: Duration,
    },
    /// The handshake failed: whom we do not believe, or who does not believe us.
    #[error("{url}: no TLS: {error}")]
    Tls {
        /// What was asked.
        url: String,
        /// The library's words.
        error: String,
    },
    /// An answer other than a success.
    #[error("{url} answered {code}: {}", .body.trim())]
    Status {
        /// What was asked.
        url: String,
        /// The code. 401: the token is not believed; 403: it lacks the right.
        code: u16,
        /// The beginning of the body.
        body: String,
    },
    /// The body is longer than is wanted.
    #[error("{url}: the answer is longer than {most_bytes} bytes; the rest was not read")]
    TooLong {
        /// What was asked.
        url: String,
        /// The bound.
        most_bytes: u64,
    },
    /// It broke, or is no HTTP.
    #[error("{url}: broken while waiting for {step}: {error}")]
    Broken {
        /// What was asked.
        url: String,
        /// What it waited for.
        step: Step,
        /// The library's words.
        error: String,
    },
    /// The token's file.
    #[error("cannot use the token in {path}: {error}")]
    Token {
        /// The agent's own path.
        path: PathBuf,
        /// Why.
        error: String,
    },
}

impl Host {
    /// Gets it, on this thread, which must be no thread of an asynchronous runtime. Each piece of the body of a success
    /// goes to `each` as it comes.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub fn fetch(
        &self,
        request: &Request<'_>,
        each: &mut (dyn FnMut(&[u8]) + Send),
    ) -> Result<Fetched, FetchError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| FetchError::Unreachable {
            url: request.url(),
            error: format!("no event loop: {error}"),
        })?;
        runtime.block_on(get(self.clock(), request, each))
    }

    /// As [`Host::fetch`], the body of a success as text.
    ///
    /// # Errors
    /// See [`FetchError`]; a body that is not UTF-8 is broken.
    pub fn fetch_text(&self, request: &Request<'_>) -> Result<String, FetchError> {
        let mut bytes = Vec::new();
        self.fetch(request, &mut |piece| bytes.extend_from_slice(piece))?;
        String::from_utf8(bytes).map_err(|error| request.broken(Step::Body, &error))
    }
}

/// As [`Host::fetch`], on the runtime that is there.
///
/// # Errors
/// See [`FetchError`].
pub async fn get(
    clock: &Clock,
    request: &Request<'_>,
    each: &mut (dyn FnMut(&[u8]) + Send),
) -> Result<Fetched, FetchError> {
    let step = Cell::new(Step::Connect);
    let begun = clock.since_boot();
    let exchange = async {
        let stream =
            TcpStream::connect(request.address).await.map_err(|error| request.unconnected(&error))?;
        let connected = clock.since_boot().saturating_sub(begun);
        let mut asked = Asked { clock, request, begun, step: &step, connected, agreed: None };
        match request.tls {
            None => asked.exchange(stream, each).await,
            Some(trust) => {
                step.set(Step::Tls);
                let name = ServerName::IpAddress(request.address.ip().into());
                let tls = TlsConnector::from(Arc::clone(trust.config()));
                let refused = |error: io::Error| FetchError::Tls { url: request.url(), error: words(&error) };
                let stream = tls.connect(name, stream).await.map_err(refused)?;
                asked.agreed = Some(clock.since_boot().saturating_sub(begun));
                asked.exchange(stream, each).await
            }
        }
    };
    match clock.timeout(request.limit, exchange).await {
        Some(done) => done,
        None => Err(FetchError::TimedOut { url: request.url(), step: step.get(), limit: request.limit }),
    }
}

impl Request<'_> {
    fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}{}", self.address, self.path)
    }

    fn unconnected(&self, error: &io::Error) -> FetchError {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ECONNREFUSED) => FetchError::Refused { url: self.url() },
            _ => FetchError::Unreachable { url: self.url(), error: error.to_string() },
        }
    }

    fn broken(&self, step: Step, error: &(dyn std::error::Error + 'static)) -> FetchError {
        FetchError::Broken { url: self.url(), step, error: words(error) }
    }

    fn head(&self) -> Result<hyper::Request<Empty<Bytes>>, FetchError> {
        let mut head = hyper::Request::builder()
            .uri(self.path)
            .header(HOST, self.address.to_string())
            .header(USER_AGENT, "nodewhy-agent")
            .header(CONNECTION, "close");
        if let Some(Token(token)) = self.token {
            head = head.header(AUTHORIZATION, token.clone());
        }
        head.body(Empty::new()).map_err(|error| self.broken(Step::Answer, &error))
    }
}

struct Asked<'a> {
    clock: &'a Clock,
    request: &'a Request<'a>,
    begun: Duration,
    step: &'a Cell<Step>,
    connected: Duration,
    agreed: Option<Duration>,
}

impl Asked<'_> {
    async fn exchange<T>(self, stream: T, each: &mut (dyn FnMut(&[u8]) + Send)) -> Result<Fetched, FetchError>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let request = self.request;
        self.step.set(Step::Answer);
        let broken = |error: hyper::Error| request.broken(Step::Answer, &error);
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let mut connection = pin!(connection);
        let mut work = pin!(async {
            let answer = sender.send_request(request.head()?).await.map_err(broken)?;
            let answered = self.passed();
            self.step.set(Step::Body);
            let code = answer.status();
            let headers = answer.headers().clone();
            let mut body = answer.into_body();
            if !code.is_success() {
                let body = beginning(&mut body).await;
                return Err(FetchError::Status { url: request.url(), code: code.as_u16(), body });
            }
            let body_bytes = self.stream(&mut body, each).await?;
            let (connected, agreed, took) = (self.connected, self.agreed, self.passed());
            let code = code.as_u16();
            Ok(Fetched { code, headers, body_bytes, connected, agreed, answered, took })
        });
        // The connection moves the bytes; it ends before the work does where the peer hangs up, or at the same time.
        tokio::select! {
            biased;
            done = &mut work => return done,
            _ended = &mut connection => {}
        }
        work.await
    }

    async fn stream(
        &self,
        body: &mut Incoming,
        each: &mut (dyn FnMut(&[u8]) + Send),
    ) -> Result<u64, FetchError> {
        let mut bytes = 0_u64;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.request.broken(Step::Body, &error))?;
            let Ok(piece) = frame.into_data() else { continue };
            bytes += piece.len() as u64;
            if bytes > self.request.most_bytes {
                let most_bytes = self.request.most_bytes;
                return Err(FetchError::TooLong { url: self.request.url(), most_bytes });
            }
            each(&piece);
        }
        Ok(bytes)
    }

    fn passed(&self) -> Duration {
        self.clock.since_boot().saturating_sub(self.begun)
    }
}

/// As much of a body as is shown. What breaks while it comes is no matter: the code is known.
async fn beginning(body: &mut Incoming) -> String {
    let mut bytes = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(piece) = frame.into_data() else { continue };
        bytes.extend_from_slice(&piece);
        if bytes.len() >= SHOWN_BODY_BYTES {
            bytes.truncate(SHOWN_BODY_BYTES);
            break;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An error with those beneath it, each once.
fn words(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let words = error.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        next = error.source();
    }
    if let Some(error) = error_kind(error) {
        text = format!("{text} ({error})");
    }
    text
}

/// A peer that hangs up in the middle of TLS is "unexpected end of file" alone.
fn error_kind(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    let error = error.downcast_ref::<io::Error>()?;
    (error.kind() == ErrorKind::UnexpectedEof).then_some("it hung up")
}

#[cfg(test)]
mod tests;
