//! Where the API listens. Nothing but metrics and health is served to whoever asks: the program does not start else.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::serve::impatient::Impatient;
use crate::serve::{Api, Door};

/// The Unix socket where none is named.
pub const DEFAULT_SOCKET: &str = "/run/nodewhy/agent.sock";
/// The port for `--listen 127.0.0.1` without one.
pub const DEFAULT_PORT: u16 = 10977;

/// A client that does not finish its request's head within this is hung up on; so is an idle one.
const HEAD_WITHIN: Duration = Duration::from_secs(30);
/// A client that takes nothing of what is sent to it for this long is hung up on; a cursor lets it go on later.
const TAKEN_WITHIN: Duration = Duration::from_secs(60);
/// That connections cannot be accepted is told again after this.
const RETOLD_EVERY: Duration = Duration::from_secs(60);
/// Connections at once, for each listener by itself: who floods the one does not lock the other.
const CONNECTIONS: usize = 64;

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Neither socket nor address.
    #[error("nowhere to listen: name a Unix socket (--socket) or a loopback address (--listen)")]
    Nowhere,
    /// An address that others can reach.
    #[error(
        "will not listen on {0}: the API shows command lines and logs, and TLS is not there yet; use a loopback \
         address (127.0.0.1) with --token-file, or --socket"
    )]
    NotLoopback(SocketAddr),
    /// Loopback without a token.
    #[error(
        "will not listen on {0} without --token-file: on a host network every local user and every host-network pod \
         can reach loopback"
    )]
    NoToken(SocketAddr),
    /// Somebody answers there.
    #[error("another program answers on {0}: stop it, or name another --socket")]
    Taken(PathBuf),
    /// Something else stands there.
    #[error("{0} is there and is no socket: remove it, or name another --socket")]
    NotASocket(PathBuf),
    /// The kernel refused.
    #[error("cannot {what} {whom}: {error}; {hint}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        whom: String,
        /// The kernel's word.
        error: io::Error,
        /// What to do.
        hint: &'static str,
    },
}

/// The kernel takes 107 bytes, of which the temporary name needs eight.
const SOCKET_HINT: &str =
    "name another --socket, with at most 99 bytes, in a folder that the agent may write to";

/// What is bound. The socket's file is removed at the end.
#[derive(Debug)]
pub struct Listeners {
    unix: Option<(UnixListener, SocketFile)>,
    tcp: Option<(TcpListener, Arc<str>)>,
}

#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode: another agent may have put its own in place since.
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let there = std::fs::symlink_metadata(&self.path);
        if there.is_ok_and(|there| (there.dev(), there.ino()) != self.identity) {
            return;
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the socket's file could not be removed");
        }
    }
}

impl Listeners {
    /// Binds the Unix socket, and the loopback address with its token.
    ///
    /// # Errors
    /// Nothing is named, or what is named is not safe or not free.
    pub async fn bind(
        socket: Option<&Path>,
        listen: Option<SocketAddr>,
        token: Option<Arc<str>>,
    ) -> Result<Listeners, ListenError> {
        if socket.is_none() && listen.is_none() {
            return Err(ListenError::Nowhere);
        }
        let tcp = match (listen, token) {
            (Some(address), _) if !address.ip().is_loopback() => {
                return Err(ListenError::NotLoopback(address));
            }
            (Some(address), None) => return Err(ListenError::NoToken(address)),
            (Some(address), Some(token)) => {
                let listener = TcpListener::bind(address).await.map_err(|error| {
                    let hint = "stop whoever listens there, or name another --listen";
                    ListenError::Io { what: "listen on", whom: address.to_string(), error, hint }
                })?;
                Some((listener, token))
            }
            (None, _) => None,
        };
        Ok(Listeners { unix: socket.map(bind_unix).transpose()?, tcp })
    }

    /// The loopback address, with the port that the kernel chose for port 0.
    pub fn address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|(listener, _)| listener.local_addr().ok())
    }

    /// Serves until the future is dropped.
    pub async fn serve(&self, api: Arc<Api>) {
        let unix = async {
            match &self.unix {
                Some((listener, _)) => {
                    accept(api.clone(), Door::Socket, async || {
                        listener.accept().await.map(|(stream, _)| stream)
                    })
                    .await
                }
                None => std::future::pending().await,
            }
        };
        let tcp = async {
            match &self.tcp {
                Some((listener, token)) => {
                    let door = Door::Loopback { token: token.clone() };
                    accept(api.clone(), door, async || listener.accept().await.map(|(stream, _)| stream))
                        .await
                }
                None => std::future::pending().await,
            }
        };
        tokio::join!(unix, tcp);
    }
}

fn bind_unix(path: &Path) -> Result<(UnixListener, SocketFile), ListenError> {
    let whom = || path.display().to_string();
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| failed("make the folder of", whom(), error))?;
    }
    free(path)?;
    // Bound under another name, closed to others, and only then put in place: there is no instant at which others
    // could connect.
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(name);
    let listener = UnixListener::bind(&temporary).map_err(|error| failed("bind", whom(), error))?;
    let in_place = std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o600))
        .and_then(|()| std::fs::symlink_metadata(&temporary))
        .and_then(|bound| std::fs::rename(&temporary, path).map(|()| (bound.dev(), bound.ino())));
    match in_place {
        Ok(identity) => Ok((listener, SocketFile { path: path.to_owned(), identity })),
        Err(error) => {
            // The first error is the one to tell.
            std::fs::remove_file(&temporary).ok();
            Err(failed("put in place", whom(), error))
        }
    }
}

/// Removes what an agent left behind that was killed; never what somebody answers on, or what is no socket.
fn free(path: &Path) -> Result<(), ListenError> {
    let whom = || path.display().to_string();
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at", whom(), error)),
        Ok(found) if !found.file_type().is_socket() => return Err(ListenError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|error| failed("remove the stale", whom(), error))
        }
        _ => Err(ListenError::Taken(path.to_owned())),
    }
}

async fn accept<S>(api: Arc<Api>, door: Door, next: impl AsyncFn() -> io::Result<S>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut told = None;
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match next().await {
            Ok(stream) => {
                tokio::spawn(serve(api.clone(), door.clone(), stream, place));
            }
            Err(error) => {
                // Out of descriptors, most likely: the next try may find one. Told seldom, for it goes on for long.
                if told.is_none_or(|told: Instant| told.elapsed() >= RETOLD_EVERY) {
                    tracing::warn!(%error, "connections cannot be accepted");
                    told = Some(Instant::now());
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve<S>(api: Arc<Api>, door: Door, stream: S, _place: OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let answer = api.answer(&request, &door);
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .serve_connection(TokioIo::new(Impatient::new(stream, TAKEN_WITHIN)), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection ended early");
    }
}

fn failed(what: &'static str, whom: String, error: io::Error) -> ListenError {
    ListenError::Io { what, whom, error, hint: SOCKET_HINT }
}
