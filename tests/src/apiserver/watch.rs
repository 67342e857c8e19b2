//! A watch: one JSON object a line, for as long as the client listens or `timeoutSeconds` says.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::Either;
use hyper::body::{Body, Bytes, Frame};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::Shared;
use super::query::{Asked, Selection};
use super::respond::{Answer, body, failure, names, status};
use super::store::Since;

/// The real server sends one about every minute.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

/// The real server ends a watch after 30 to 60 minutes by itself.
const LONGEST_SECONDS: u64 = 1800;

/// The body of a watch.
#[derive(Debug)]
pub(super) struct Lines(mpsc::Receiver<Bytes>);

impl Body for Lines {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Lines>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(context).map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}

/// The client went away.
struct Gone;

pub(super) fn watch(asked: Asked, shared: Arc<Shared>) -> Answer {
    if let Some(version) = asked.options.resource_version
        && let Since::Future { version: newest } = shared.store.since(&asked.selection, version)
    {
        return status(504, "Timeout", &format!("Too large resource version: {version}, current: {newest}"));
    }
    let (sender, receiver) = mpsc::channel(64);
    // A watch's time runs from its request, whenever its task is begun.
    let asked_at = shared.clock.since_boot();
    tokio::spawn(async move {
        // Gone is the usual end of a watch.
        follow(asked, asked_at, &shared, sender).await.ok();
    });
    body(200, "application/json", Either::Right(Lines(receiver)))
}

async fn follow(
    asked: Asked,
    asked_at: Duration,
    shared: &Shared,
    sender: mpsc::Sender<Bytes>,
) -> Result<(), Gone> {
    let (options, selection) = (&asked.options, &asked.selection);
    let end = asked_at + Duration::from_secs(options.timeout_seconds.unwrap_or(LONGEST_SECONDS));
    let mut changed = shared.store.changed();
    let mut version = match options.resource_version {
        Some(version) if !options.send_initial_events => version,
        _ => listed(selection, options.send_initial_events, shared, &sender).await?,
    };
    let mut next_bookmark = asked_at + BOOKMARK_EVERY;
    loop {
        changed.mark_unchanged();
        match shared.store.since(selection, version) {
            Since::Changes(changes, newest) => {
                for change in changes {
                    send(&sender, &change.change, change.object).await?;
                }
                version = newest;
            }
            // As the real one does: inside a stream that began with 200.
            Since::TooOld { oldest } => {
                let message = format!("too old resource version: {version} ({oldest})");
                return send(&sender, "ERROR", failure(410, "Expired", &message)).await;
            }
            Since::Future { .. } => {}
        }
        tokio::select! {
            _ = changed.changed() => {}
            () = shared.clock.sleep_until(next_bookmark), if options.bookmarks => {
                send(&sender, "BOOKMARK", bookmark(selection, version)).await?;
                next_bookmark = shared.clock.since_boot() + BOOKMARK_EVERY;
            }
            () = shared.clock.sleep_until(end) => return Ok(()),
            () = sender.closed() => return Err(Gone),
        }
    }
}

/// Tells what there is as added, and, where asked to, where that ends; the version at which it was so.
async fn listed(
    selection: &Selection,
    tell_end: bool,
    shared: &Shared,
    sender: &mpsc::Sender<Bytes>,
) -> Result<u64, Gone> {
    let (objects, version) = shared.store.list(selection);
    for object in objects {
        send(sender, "ADDED", object).await?;
    }
    if tell_end {
        let mut object = bookmark(selection, version);
        if let Some(metadata) = object.pointer_mut("/metadata").and_then(Value::as_object_mut) {
            metadata.insert("annotations".to_owned(), json!({"k8s.io/initial-events-end": "true"}));
        }
        send(sender, "BOOKMARK", object).await?;
    }
    Ok(version)
}

fn bookmark(selection: &Selection, version: u64) -> Value {
    let (api_version, kind) = names(selection.kind);
    let mut object = json!({"kind": kind, "apiVersion": api_version, "metadata": {"resourceVersion": version.to_string()}});
    if let (crate::recording::Kind::Node, Some(fields)) = (selection.kind, object.as_object_mut()) {
        // The real one's Node bookmarks carry both, empty.
        fields.insert("spec".to_owned(), json!({}));
        fields.insert("status".to_owned(), json!({}));
    }
    object
}

async fn send(sender: &mpsc::Sender<Bytes>, change: &str, object: Value) -> Result<(), Gone> {
    let line = format!("{}\n", json!({"type": change, "object": object}));
    sender.send(Bytes::from(line)).await.map_err(|_| Gone)
}
