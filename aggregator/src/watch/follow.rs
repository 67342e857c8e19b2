//! Lists and watches one kind of object for ever.
//!
//! kube's own `watcher` keeps bookmarks and reopened watches to itself; here they are what proves that our view
//! is alive. So this is the same state machine over kube's client, small: list, watch from its version, again
//! from the newest version after a break, list anew after a 410. It only reads.

use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use futures::TryStreamExt;
use kube::Client;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::{ObjectList, Request};
use nodewhy_clock::Clock;
use serde::de::DeserializeOwned;

use super::object::Object;
use super::view::{Channel, Watched};
use crate::Timings;
use crate::known::Shared;
use crate::metrics::Metrics;
use crate::pause::Pauses;
use jiff::Timestamp;

/// Objects a page of a list: client-go's own size.
const PAGE: u32 = 500;

/// What is watched, and where its objects go. Each function gives the names of the nodes that it touched.
pub(crate) struct Kind<K> {
    /// `nodes`, `leases`, `events`.
    pub(crate) name: &'static str,
    pub(crate) path: &'static str,
    pub(crate) fields: Option<&'static str>,
    pub(crate) channel: fn(&mut Watched) -> &mut Channel,
    pub(crate) list: fn(&mut Watched, Vec<K>, Timestamp) -> Vec<String>,
    pub(crate) apply: fn(&mut Watched, K, Timestamp) -> Option<String>,
    pub(crate) delete: fn(&mut Watched, K, Timestamp) -> Option<String>,
}

/// Why a list or a watch failed.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error("{tried}: {}", chain(source))]
    Api { tried: String, source: Box<kube::Error> },
    #[error("{tried}: no answer within {} s", limit.as_secs_f64())]
    Deadline { tried: String, limit: Duration },
    #[error("the version that the watch of {0} was to go on from is no longer kept")]
    Gone(&'static str),
    #[error("the list of {0} has no resourceVersion to watch from")]
    NoVersion(&'static str),
    #[error("GET {0} can't be asked for: {1}")]
    Request(&'static str, String),
}

impl WatchError {
    /// Whether the server itself refused. Then our version may be of another etcd (a restored one, or a new cluster
    /// at the old address), and going on from it would be refused for ever. "Too many requests" says nothing of it.
    fn is_refusal(&self) -> bool {
        let WatchError::Api { source, .. } = self else { return false };
        matches!(&**source, kube::Error::Api(status) if (400..500).contains(&status.code) && status.code != 429)
    }
}

/// An error with what lies under it: kube's outermost words are often only "client error".
fn chain(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        let advice = match status.code {
            401 => ". Are the kubeconfig's credentials still good?",
            403 => ". The right to get, list and watch this is all that nodewhy needs",
            _ => "",
        };
        return format!("the API server answers {}: {}{advice}", status.code, status.message);
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    text
}

/// What watching needs.
pub(crate) struct Follower<'a> {
    pub(crate) client: Client,
    pub(crate) shared: &'a Shared,
    pub(crate) metrics: &'a Metrics,
    pub(crate) clock: &'a Clock,
    pub(crate) timings: &'a Timings,
}

impl Follower<'_> {
    /// Never ends by itself.
    pub(crate) async fn follow<K>(&self, kind: &Kind<K>)
    where
        K: Object + Clone + Debug + DeserializeOwned + 'static,
    {
        let mut pauses = Pauses::new(self.timings);
        let mut version: Option<String> = None;
        let mut doubted = false;
        loop {
            let began = self.clock.since_boot();
            let turn = match &mut version {
                Some(version) => self.watch(kind, version).await,
                None => self.list(kind).await.map(|listed| version = Some(listed)),
            };
            match turn {
                Ok(()) => {
                    doubted = false;
                    // A server that closes each watch at once must not be asked without a pause.
                    if self.clock.since_boot().saturating_sub(began) >= Duration::from_secs(1) {
                        pauses.reset();
                        continue;
                    }
                }
                Err(WatchError::Gone(_)) => version = None,
                // A skipped clock or a busy machine runs out of time too: one new try is due first.
                Err(WatchError::Deadline { .. }) if !doubted => {
                    doubted = true;
                    continue;
                }
                Err(error) => {
                    self.metrics.reconnects.with_label_values(&[kind.name]).inc();
                    self.broken(kind, &error);
                    if error.is_refusal() {
                        version = None;
                    }
                }
            }
            self.clock.sleep(pauses.next()).await;
        }
    }

    fn broken<K>(&self, kind: &Kind<K>, error: &WatchError) {
        let mut known = self.shared.lock();
        let Some(watched) = known.cluster.watched_mut() else { return };
        let channel = (kind.channel)(watched);
        if channel.broken.is_none() {
            tracing::warn!(watch = kind.name, %error, "the API server can't be read; our view grows old");
        }
        channel.broken = Some(error.to_string());
    }

    fn change<K>(&self, kind: &Kind<K>, change: impl FnOnce(&mut Watched, Timestamp) -> Vec<String>) {
        let stamp = self.clock.stamp();
        let now = stamp.wall;
        let mut touched = Vec::new();
        if let Some(watched) = self.shared.lock().cluster.watched_mut() {
            watched.follow_clock(stamp);
            touched = change(watched, now);
            let channel = (kind.channel)(watched);
            if channel.broken.is_some() {
                tracing::info!(watch = kind.name, "the API server is read again");
            }
            channel.hear(now);
        }
        self.shared.wake(touched);
    }

    /// The whole list, page by page; its version.
    async fn list<K>(&self, kind: &Kind<K>) -> Result<String, WatchError>
    where
        K: Object + Clone + Debug + DeserializeOwned + 'static,
    {
        let mut params =
            ListParams { field_selector: kind.fields.map(str::to_owned), ..ListParams::default() };
        params = params.limit(PAGE);
        let mut objects = Vec::new();
        loop {
            let request = Request::new(kind.path).list(&params);
            let request = request.map_err(|error| WatchError::Request(kind.path, error.to_string()))?;
            let page: ObjectList<K> =
                self.within(format!("listing {}", kind.path), self.client.request(request)).await?;
            objects.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => {
                    let version = page.metadata.resource_version.filter(|version| !version.is_empty());
                    let version = version.ok_or(WatchError::NoVersion(kind.name))?;
                    self.change(kind, |watched, now| {
                        let touched = (kind.list)(watched, objects, now);
                        (kind.channel)(watched).listed = true;
                        touched
                    });
                    return Ok(version);
                }
            }
        }
    }

    /// One watch's life, from `version` on, which is moved along.
    async fn watch<K>(&self, kind: &Kind<K>, version: &mut String) -> Result<(), WatchError>
    where
        K: Object + Clone + Debug + DeserializeOwned + 'static,
    {
        let params = WatchParams {
            field_selector: kind.fields.map(str::to_owned),
            timeout: Some(u32::try_from(self.timings.watch.as_secs().max(1)).unwrap_or(u32::MAX)),
            bookmarks: true,
            ..WatchParams::default()
        };
        let request = Request::new(kind.path).watch(&params, version);
        let request = request.map_err(|error| WatchError::Request(kind.path, error.to_string()))?;
        let opened = self.client.request_events::<K>(request);
        let mut stream = pin!(self.within(format!("watching {}", kind.path), opened).await?);
        self.change(kind, |_, _| Vec::new());
        // A server that neither speaks nor closes in time is asked anew, which shows whether it is there.
        let silence = self.timings.watch + self.timings.answer;
        loop {
            let Some(next) = self.clock.timeout(silence, stream.try_next()).await else { return Ok(()) };
            match next {
                Ok(None) => return Ok(()),
                Ok(Some(WatchEvent::Added(object) | WatchEvent::Modified(object))) => {
                    advance(version, object.meta().resource_version.clone());
                    self.change(kind, |watched, now| {
                        (kind.apply)(watched, object, now).into_iter().collect()
                    });
                }
                Ok(Some(WatchEvent::Deleted(object))) => {
                    advance(version, object.meta().resource_version.clone());
                    self.change(kind, |watched, now| {
                        (kind.delete)(watched, object, now).into_iter().collect()
                    });
                }
                Ok(Some(WatchEvent::Bookmark(bookmark))) => {
                    advance(version, Some(bookmark.metadata.resource_version));
                    self.change(kind, |_, _| Vec::new());
                }
                Ok(Some(WatchEvent::Error(status))) if status.code == 410 => {
                    return Err(WatchError::Gone(kind.name));
                }
                Ok(Some(WatchEvent::Error(status))) => {
                    return Err(failed(kind.name, kube::Error::Api(status)));
                }
                Err(error) if is_malformed(&error) => {
                    // The server is there; one line of it is not an event that we understand. Asking for it again
                    // would bring it again.
                    self.metrics.drop_one("malformed");
                    tracing::warn!(watch = kind.name, %error, "a watch event that can't be read was dropped");
                }
                Err(kube::Error::Api(status)) if status.code == 410 => {
                    return Err(WatchError::Gone(kind.name));
                }
                Err(error) => return Err(failed(kind.name, error)),
            }
        }
    }

    async fn within<T>(
        &self,
        tried: String,
        asked: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, WatchError> {
        let limit = self.timings.answer * 2;
        match self.clock.timeout(limit, asked).await {
            None => Err(WatchError::Deadline { tried, limit }),
            Some(Err(kube::Error::Api(status))) if status.code == 410 => Err(WatchError::Gone("objects")),
            Some(Err(error)) => Err(WatchError::Api { tried, source: Box::new(error) }),
            Some(Ok(answer)) => Ok(answer),
        }
    }
}

fn failed(name: &'static str, error: kube::Error) -> WatchError {
    WatchError::Api { tried: format!("the watch of {name} broke"), source: Box::new(error) }
}

/// kube reads a line that is no event as a `Status`, whose fields may all be absent: then nothing is in it.
fn is_malformed(error: &kube::Error) -> bool {
    match error {
        kube::Error::SerdeError(_) => true,
        kube::Error::Api(status) => status.code == 0,
        _ => false,
    }
}

fn advance(version: &mut String, newer: Option<String>) {
    if let Some(newer) = newer.filter(|newer| !newer.is_empty()) {
        *version = newer;
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn a_refusal_says_what_is_needed() {
        let status = Status { code: 403, message: "nodes is forbidden".to_owned(), ..Status::default() };
        assert_eq!(
            chain(&kube::Error::Api(Box::new(status))),
            "the API server answers 403: nodes is forbidden. The right to get, list and watch this is all that \
             nodewhy needs"
        );
    }
}
