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
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use crate::serve::credentials::{self, CredentialFiles, Credentials, CredentialsError, Followed};
use crate::serve::impatient::Impatient;
use crate::serve::tls::Handshakes;
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
/// No request of this API needs a larger head, or more headers.
const LARGEST_HEAD_BYTES: usize = 32 * 1024;
const MOST_HEADERS: usize = 64;

/// Where to listen, and what clients must show there.
#[derive(Clone, Debug, Default)]
pub struct Listen {
    /// The Unix socket.
    pub socket: Option<PathBuf>,
    /// The address of the API.
    pub address: Option<SocketAddr>,
    /// The address that serves metrics and health alone, to whoever asks.
    pub metrics: Option<SocketAddr>,
    /// What the clients of `address` must show.
    pub files: CredentialFiles,
}

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Neither socket nor address.
    #[error("nowhere to listen: name a Unix socket (--socket) or an address (--listen)")]
    Nowhere,
    /// An address that others can reach, without TLS.
    #[error(
        "will not listen on {0} without TLS: the API shows command lines and logs. Name --tls-cert-file and \
         --tls-key-file, with --tls-client-ca-file or --token-file; or listen on 127.0.0.1 with --token-file; or serve \
         metrics and health alone with --metrics-listen"
    )]
    NoTls(SocketAddr),
    /// An address at which nobody would be asked who they are.
    #[error(
        "will not listen on {0} without --token-file or --tls-client-ca-file: the API shows command lines and logs, and \
         even loopback is reached by every local user and every host-network pod"
    )]
    NobodyAsked(SocketAddr),
    /// Credentials without an address that asks for them.
    #[error(
        "a token or TLS files are named, and no --listen: on the Unix socket nobody is asked for them. Name --listen, or \
         leave them out"
    )]
    NothingToGuard,
    /// A credential cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
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

impl Listen {
    /// Whether whoever could reach it is asked who they are.
    ///
    /// # Errors
    /// Why the agent will not listen so.
    pub fn check(&self) -> Result<(), ListenError> {
        let Listen { socket, address, metrics, files } = self;
        let has_tls = files.certificate.is_some();
        match address {
            None if socket.is_none() && metrics.is_none() => Err(ListenError::Nowhere),
            None if *files != CredentialFiles::default() => Err(ListenError::NothingToGuard),
            Some(address) if !address.ip().is_loopback() && !has_tls => Err(ListenError::NoTls(*address)),
            Some(address) if files.token.is_none() && files.client_ca.is_none() => {
                Err(ListenError::NobodyAsked(*address))
            }
            _ => Ok(()),
        }
    }
}

/// What is bound. The socket's file is removed at the end.
#[derive(Debug)]
pub struct Listeners {
    unix: Option<(UnixListener, SocketFile)>,
    tcp: Option<(TcpListener, Followed)>,
    metrics: Option<TcpListener>,
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
    /// Binds what is named, and reads the credentials.
    ///
    /// # Errors
    /// Nothing is named, or what is named is not safe or not free.
    pub async fn bind(listen: &Listen) -> Result<Listeners, ListenError> {
        listen.check()?;
        let tcp = match listen.address {
            Some(address) => {
                let followed = credentials::follow(&listen.files)?;
                Some((bind_tcp(address, "--listen").await?, followed))
            }
            None => None,
        };
        let metrics = match listen.metrics {
            Some(address) => Some(bind_tcp(address, "--metrics-listen").await?),
            None => None,
        };
        Ok(Listeners { unix: listen.socket.as_deref().map(bind_unix).transpose()?, tcp, metrics })
    }

    /// The API's address, with the port that the kernel chose for port 0.
    pub fn address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|(listener, _)| listener.local_addr().ok())
    }

    /// The address of metrics and health alone.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Serves until the future is dropped.
    pub async fn serve(&self, api: Arc<Api>) {
        let unix = async {
            if let Some((listener, _)) = &self.unix {
                accept(
                    api.clone(),
                    || Guard::Socket,
                    async || listener.accept().await.map(|(stream, _)| stream),
                )
                .await;
            }
        };
        let tcp = async {
            let Some((listener, followed)) = &self.tcp else { return };
            if followed.current.borrow().tls.is_some() {
                accept_tls(&api, listener, &followed.current).await;
            } else {
                let guard = || Guard::of(&followed.current, &followed.current.borrow());
                accept(api.clone(), guard, async || next(listener).await).await;
            }
        };
        let metrics = async {
            if let Some(listener) = &self.metrics {
                accept(api.clone(), || Guard::Open, async || next(listener).await).await;
            }
        };
        tokio::join!(unix, tcp, metrics);
        // Not one listener: whoever serves waits all the same.
        std::future::pending().await
    }
}

async fn bind_tcp(address: SocketAddr, flag: &'static str) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|error| {
        let hint = match flag {
            "--listen" => "stop whoever listens there, or name another --listen",
            _ => "stop whoever listens there, or name another --metrics-listen",
        };
        ListenError::Io { what: "listen on", whom: address.to_string(), error, hint }
    })
}

async fn next(listener: &TcpListener) -> io::Result<TcpStream> {
    let (stream, _) = listener.accept().await?;
    // An event is one small write that nobody should wait for.
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// What a connection's requests must show.
#[derive(Clone)]
pub(super) enum Guard {
    /// The Unix socket.
    Socket,
    /// Metrics and health alone.
    Open,
    /// The token as it is when the request comes.
    Address {
        current: watch::Receiver<Arc<Credentials>>,
        /// Who was let in when the connection came.
        trust: u64,
    },
}

impl Guard {
    fn of(current: &watch::Receiver<Arc<Credentials>>, seen: &Credentials) -> Guard {
        Guard::Address { current: current.clone(), trust: seen.trust }
    }

    fn door(&self) -> Door {
        match self {
            Guard::Socket => Door::Socket,
            Guard::Open => Door::Open,
            Guard::Address { current, .. } => Door::Address { token: current.borrow().token.clone() },
        }
    }

    /// Ends when those are no longer let in who were when the connection came: an event stream would go on for ever.
    async fn revoked(&self) {
        match self {
            Guard::Socket | Guard::Open => std::future::pending().await,
            Guard::Address { current, trust } => {
                let mut current = current.clone();
                // The sender's end is the agent's end.
                if current.wait_for(|now| now.trust != *trust).await.is_err() {
                    std::future::pending().await
                }
            }
        }
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

async fn accept<S>(api: Arc<Api>, guard: impl Fn() -> Guard, next: impl AsyncFn() -> io::Result<S>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut trouble = Trouble::default();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match next().await {
            Ok(stream) => {
                tokio::spawn(serve(api.clone(), guard(), stream, place));
            }
            Err(error) => trouble.tell_and_wait(&error).await,
        }
    }
}

/// With TLS a connection takes its place when its client has shown who it is: those who never do take none.
async fn accept_tls(api: &Arc<Api>, listener: &TcpListener, current: &watch::Receiver<Arc<Credentials>>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut handshakes = Handshakes::default();
    let mut trouble = Trouble::default();
    loop {
        match next(listener).await {
            Ok(stream) => {
                let credentials = current.borrow().clone();
                let guard = Guard::of(current, &credentials);
                let (api, places) = (api.clone(), places.clone());
                handshakes.begin(stream, credentials, |stream| async move {
                    if let Ok(place) = places.acquire_owned().await {
                        tokio::spawn(serve(api, guard, stream, place));
                    }
                });
            }
            Err(error) => trouble.tell_and_wait(&error).await,
        }
    }
}

/// Out of descriptors, most likely: the next try may find one. Told seldom, for it goes on for long.
#[derive(Default)]
struct Trouble {
    told: Option<Instant>,
}

impl Trouble {
    async fn tell_and_wait(&mut self, error: &io::Error) {
        if self.told.is_none_or(|told| told.elapsed() >= RETOLD_EVERY) {
            tracing::warn!(%error, "connections cannot be accepted");
            self.told = Some(Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn serve<S>(api: Arc<Api>, guard: Guard, stream: S, _place: OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let revoked = guard.clone();
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let (api, door) = (api.clone(), guard.door());
        async move { Ok::<_, Infallible>(api.answer(&request, &door).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(LARGEST_HEAD_BYTES)
        .max_headers(MOST_HEADERS)
        .serve_connection(TokioIo::new(Impatient::new(stream, TAKEN_WITHIN)), service);
    tokio::select! {
        ended = connection => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended early");
            }
        }
        () = revoked.revoked() => tracing::info!("a connection of a client that is no longer let in was ended"),
    }
}

fn failed(what: &'static str, whom: String, error: io::Error) -> ListenError {
    ListenError::Io { what, whom, error, hint: SOCKET_HINT }
}
