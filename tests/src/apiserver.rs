//! A test API server: plain HTTP on 127.0.0.1, list and watch of nodes, leases and events, fed by a recording.
//!
//! It keeps to what a client must rely on: one order of resource versions over all lists, a list at a version, a
//! watch from a version, bookmarks, `timeoutSeconds`, 410 for a version from before its history. It answers reads alone;
//! a write is refused and remembered, since nodewhy must not write. Limits: no paging (`limit` is ignored, as the real
//! one's watch cache may), no label selectors, no other kinds (404).

mod query;
mod respond;
mod store;
mod watch;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use nodewhy_clock::Clock;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::recording::Recording;
use store::Store;

/// A running server. It ends when this is dropped.
#[derive(Debug)]
pub struct ApiServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

/// What every request sees.
#[derive(Debug)]
struct Shared {
    store: Store,
    clock: Clock,
    refused: Mutex<Vec<String>>,
}

impl ApiServer {
    /// Serves this recording: what it listed at first at once, each change when the clock reaches its time of receipt.
    ///
    /// # Errors
    /// No port or no thread is to be had.
    pub fn start(recording: &Recording, clock: Clock) -> anyhow::Result<ApiServer> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).context("listen on 127.0.0.1")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let store = Store::listing(recording.records.iter().filter(|record| record.change == "INITIAL"));
        let shared = Arc::new(Shared { store, clock, refused: Mutex::default() });
        let changes: Vec<_> =
            recording.records.iter().filter(|record| record.change != "INITIAL").cloned().collect();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = shared.clone();
        let thread = std::thread::Builder::new().name("apiserver".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async move {
                tokio::spawn(play(changes, serving.clone()));
                tokio::select! {
                    result = serve(listener, serving) => result,
                    _ = stopped => Ok(()),
                }
            })
        })?;
        Ok(ApiServer { address, shared, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A kubeconfig whose current context is this server.
    pub fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: recorded\n\
             clusters:\n- name: recorded\n  cluster:\n    server: http://{}\n\
             users:\n- name: reader\n  user: {{}}\n\
             contexts:\n- name: recorded\n  context:\n    cluster: recorded\n    user: reader\n",
            self.address
        )
    }

    /// Requests that were no reads, as `METHOD path`. nodewhy makes none.
    pub fn refused(&self) -> Vec<String> {
        self.shared.refused()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop.take();
        match self.thread.take().map(JoinHandle::join) {
            None | Some(Ok(Ok(()))) => {}
            Some(Ok(Err(error))) => eprintln!("the test API server failed: {error:#}"),
            Some(Err(_)) => eprintln!("the test API server panicked"),
        }
    }
}

impl Shared {
    fn refused(&self) -> Vec<String> {
        self.refused.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    fn refuse(&self, request: String) {
        self.refused.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(request);
    }
}

/// Applies each change when its time has come.
async fn play(changes: Vec<crate::recording::Record>, shared: Arc<Shared>) {
    for change in changes {
        sleep_until(&shared.clock, change.received).await;
        shared.store.apply(&change);
    }
}

async fn sleep_until(clock: &Clock, at: Timestamp) {
    while let Ok(left) = Duration::try_from(at.duration_since(clock.now())) {
        if left.is_zero() {
            return;
        }
        clock.sleep(left).await;
    }
}

async fn serve(listener: std::net::TcpListener, shared: Arc<Shared>) -> anyhow::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await.context("accept a connection")?;
        let shared = shared.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| respond::respond(request, shared.clone()));
            // A client that goes away in the middle of a watch is no fault of the test's.
            http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
        });
    }
}

#[cfg(test)]
mod tests;
