//! TLS handshakes: bounded in time and in number, so that a client that begins one and says no more costs nothing.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use nodewhy_proto::Problem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::serve::credentials::Credentials;

/// A handshake is a few milliseconds; over a bad network some round trips.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);
/// So many at once. The oldest gives way to one more: a flood of silent clients turns out its own.
const HANDSHAKES: usize = 64;
/// Whoever speaks plain HTTP is waited for no longer than this to take the answer.
const PLAIN_WITHIN: Duration = Duration::from_secs(1);
/// The content type of a handshake record (RFC 8446, 5.1).
const HANDSHAKE_RECORD: u8 = 22;

/// Those that are going on, oldest first.
#[derive(Default)]
pub(super) struct Handshakes(VecDeque<AbortHandle>);

impl Handshakes {
    /// Begins one; `then` takes the connection.
    pub(super) fn begin<F, T>(&mut self, stream: TcpStream, credentials: Arc<Credentials>, then: F)
    where
        F: FnOnce(TlsStream<TcpStream>) -> T + Send + 'static,
        T: Future<Output = ()> + Send,
    {
        self.0.retain(|handshake| !handshake.is_finished());
        while self.0.len() >= HANDSHAKES
            && let Some(oldest) = self.0.pop_front()
        {
            oldest.abort();
        }
        let handshake = tokio::spawn(async move {
            match timeout(HANDSHAKE_WITHIN, shake(stream, &credentials)).await {
                Ok(Ok(Some(stream))) => then(stream).await,
                Ok(Ok(None)) => {}
                // A client's certificate that is refused is told to the client by TLS itself.
                Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                Err(_) => tracing::debug!("a TLS handshake was not done in {HANDSHAKE_WITHIN:?}"),
            }
        });
        self.0.push_back(handshake.abort_handle());
    }
}

/// `None`: it was no TLS, and was told so.
async fn shake(mut stream: TcpStream, credentials: &Credentials) -> io::Result<Option<TlsStream<TcpStream>>> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Ok(None);
    }
    if first != [HANDSHAKE_RECORD] {
        refuse(&mut stream).await?;
        return Ok(None);
    }
    let Some(config) = credentials.tls.clone() else { return Ok(None) };
    TlsAcceptor::from(config).accept(stream).await.map(Some)
}

/// In plain HTTP, as the client speaks it.
async fn refuse(stream: &mut TcpStream) -> io::Result<()> {
    let problem = Problem::new(400, "Bad Request", "this address speaks TLS: ask with https://");
    let body = serde_json::to_string(&problem).unwrap_or_else(|_| problem.detail.clone());
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: application/problem+json\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    // What the client sent and nobody read would make the kernel reset the connection, and lose the answer.
    let drained = async {
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    timeout(PLAIN_WITHIN, drained).await.unwrap_or(Ok(()))
}
