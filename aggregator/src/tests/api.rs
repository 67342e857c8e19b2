//! A test API server: list, watch, bookmarks, 410, and faults, over plain HTTP on loopback.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub(super) const NODES: &str = "/api/v1/nodes";
pub(super) const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
pub(super) const EVENTS: &str = "/api/v1/events";

/// What kube-apiserver 1.36.2 answered to a watch from an expired version.
const GONE: &str = include_str!("../../fixtures/api-watch-410.txt");

#[derive(Default)]
pub(super) struct Script {
    objects: BTreeMap<(String, String), Value>,
    log: Vec<(u64, String, String)>,
    pub(super) version: u64,
    /// Watches from before this version get a 410.
    pub(super) oldest: u64,
    /// No request is answered.
    pub(super) hangs: bool,
    /// Every request is answered with 500.
    pub(super) fails: bool,
    /// Watches from before this version are refused with 400: as if another cluster were at this address.
    pub(super) refused_before: u64,
    /// Streams of an older generation end.
    pub(super) generation: u64,
    /// How often each path was listed.
    pub(super) lists: BTreeMap<String, u32>,
    /// What was asked, other than GET or unknown.
    pub(super) strange: Vec<String>,
}

#[derive(Clone)]
struct Shared(Arc<Mutex<Script>>, watch::Sender<u64>);

pub(super) struct FakeApi {
    shared: Shared,
    server: JoinHandle<()>,
    pub(super) kubeconfig: PathBuf,
}

impl FakeApi {
    pub(super) async fn start(folder: &Path) -> FakeApi {
        let script = Script { version: 100, ..Script::default() };
        let shared = Shared(Arc::new(Mutex::new(script)), watch::channel(0).0);
        let router = Router::new().fallback(answer).with_state(shared.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let kubeconfig = folder.join("kubeconfig");
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": format!("http://127.0.0.1:{port}")}}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        std::fs::write(&kubeconfig, text.to_string()).unwrap();
        FakeApi { shared, server, kubeconfig }
    }

    pub(super) fn script<T>(&self, change: impl FnOnce(&mut Script) -> T) -> T {
        let result = change(&mut self.shared.0.lock().unwrap());
        self.shared.1.send_modify(|tick| *tick += 1);
        result
    }

    /// An object is added, modified or deleted.
    pub(super) fn put(&self, path: &str, kind: &str, mut object: Value) {
        self.script(|script| {
            script.version += 1;
            object["metadata"]["resourceVersion"] = json!(script.version.to_string());
            let key = (path.to_owned(), object["metadata"]["name"].as_str().unwrap().to_owned());
            script.log.push((
                script.version,
                path.to_owned(),
                json!({"type": kind, "object": object}).to_string(),
            ));
            if kind == "DELETED" {
                script.objects.remove(&key)
            } else {
                script.objects.insert(key, object)
            };
        });
    }

    /// A line of the watch that is not a change of an object: a bookmark, or nonsense.
    pub(super) fn write(&self, path: &str, line: &str) {
        self.script(|script| {
            script.version += 1;
            let line = line.replace("VERSION", &script.version.to_string());
            script.log.push((script.version, path.to_owned(), line));
        });
    }

    /// Forgets the log, as a compaction does, and ends every watch.
    pub(super) fn compact(&self) {
        self.script(|script| {
            script.log.clear();
            script.version += 10;
            script.oldest = script.version;
            script.generation += 1;
        });
    }
}

impl Drop for FakeApi {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn answer(
    State(shared): State<Shared>,
    method: axum::http::Method,
    uri: Uri,
    Query(query): Query<BTreeMap<String, String>>,
) -> Response {
    while shared.0.lock().unwrap().hangs {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let path = uri.path().to_owned();
    let mut script = shared.0.lock().unwrap();
    if method != "GET" || ![NODES, LEASES, EVENTS].contains(&path.as_str()) {
        script.strange.push(format!("{method} {uri}"));
    }
    if script.fails {
        return (StatusCode::INTERNAL_SERVER_ERROR, "broken").into_response();
    }
    if query.get("watch").is_none_or(|watch| watch != "true") {
        *script.lists.entry(path.clone()).or_default() += 1;
        let items: Vec<&Value> =
            script.objects.iter().filter(|(key, _)| key.0 == path).map(|(_, object)| object).collect();
        let list = json!({
            "kind": "List", "apiVersion": "v1",
            "metadata": {"resourceVersion": script.version.to_string()}, "items": items,
        });
        return axum::Json(list).into_response();
    }
    let from: u64 = query["resourceVersion"].parse().unwrap();
    if from < script.oldest {
        return format!("{}\n", GONE.lines().last().unwrap()).into_response();
    }
    if from < script.refused_before {
        return (StatusCode::BAD_REQUEST, "no such version").into_response();
    }
    let generation = script.generation;
    drop(script);
    let changed = shared.1.subscribe();
    let stream = futures::stream::unfold((shared, changed, from), move |(shared, mut changed, from)| {
        let path = path.clone();
        async move {
            loop {
                let (next, ended) = {
                    let script = shared.0.lock().unwrap();
                    let next =
                        script.log.iter().find(|(version, of, _)| *version > from && *of == path).cloned();
                    (next, script.generation != generation)
                };
                match next {
                    Some(_) | None if ended => return None,
                    Some((version, _, line)) => {
                        let bytes = Bytes::from(format!("{line}\n"));
                        return Some((Ok::<_, std::io::Error>(bytes), (shared, changed, version)));
                    }
                    None => changed.changed().await.ok()?,
                }
            }
        }
    });
    Body::from_stream(stream).into_response()
}
