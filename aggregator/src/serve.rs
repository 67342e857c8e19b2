//! The HTTP API over a Unix socket. It is only read.

mod api;
mod socket;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use tokio::sync::watch;

use crate::incident::Judge;
use socket::bind;

/// What the handlers read.
#[derive(Clone)]
pub(crate) struct Served {
    pub(crate) judge: Arc<Judge>,
}

/// How long open requests may take to end after the stop.
const DRAIN: Duration = Duration::from_secs(2);

/// Binds, then serves until `stop` says true.
///
/// # Errors
/// The socket can't be bound.
pub(crate) async fn serve(
    path: &Path,
    served: Served,
    mut stop: watch::Receiver<bool>,
) -> anyhow::Result<impl Future<Output = ()> + use<>> {
    let clock = served.judge.clock.clone();
    let (listener, bound) = bind(path).await?;
    tracing::info!(socket = %path.display(), "serving");
    let mut drained = stop.clone();
    Ok(async move {
        let stopped = async move {
            // An error means that whoever could stop us is gone, which is a stop too.
            if stop.wait_for(|stop| *stop).await.is_err() {
                tracing::debug!("stopped by its owner's end");
            }
        };
        let server = axum::serve(listener, router(served)).with_graceful_shutdown(stopped);
        tokio::select! {
            ended = server.into_future() => if let Err(error) = ended {
                tracing::error!(%error, "serving ended");
            },
            () = async {
                if drained.wait_for(|stop| *stop).await.is_err() {
                    tracing::debug!("stopped by its owner's end");
                }
                clock.sleep(DRAIN).await;
            } => tracing::warn!("a request did not end in time: it was cut off"),
        }
        drop(bound);
    })
}

fn router(served: Served) -> Router {
    Router::new()
        .route("/healthz", get(api::healthz))
        .route("/readyz", get(api::readyz))
        .route("/metrics", get(api::metrics))
        .route("/api/v1/nodes", get(api::nodes))
        .route("/api/v1/nodes/{node}", get(api::node))
        .route("/api/v1/nodes/{node}/why", get(api::why))
        .route("/api/v1/incidents", get(api::incidents))
        .route("/api/v1/incidents/{id}", get(api::incident))
        .route("/api/v1/causes", get(api::causes))
        .fallback(api::no_such_path)
        .method_not_allowed_fallback(api::no_such_method)
        .with_state(served)
}
