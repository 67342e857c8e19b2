//! An agent that does as the test says, over a real Unix socket.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use nodewhy_clock::Clock;
use nodewhy_proto::{Event, EventBody, Finding};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::testing::event;

#[derive(Default)]
pub(super) struct Script {
    pub(super) node: String,
    pub(super) findings: Vec<Finding>,
    /// Pieces of the event stream; a cursor counts them.
    pub(super) stream: Vec<Vec<u8>>,
    /// No request is answered.
    pub(super) hangs: bool,
    /// `/api/v1/state` is answered with this instead.
    pub(super) garbage: Option<String>,
    /// Streams of an older generation end.
    pub(super) generation: u64,
    /// The `after` of each stream that was opened.
    pub(super) opened_after: Vec<Option<usize>>,
    /// A cursor is answered with 400, as by an agent of another version.
    pub(super) refuses_cursors: bool,
    /// How often the whole state with its readings was asked for.
    pub(super) readings_asked: u32,
}

#[derive(Clone)]
struct Shared(Arc<Mutex<Script>>, watch::Sender<u64>, Clock);

pub(super) struct FakeAgent {
    pub(super) socket: PathBuf,
    shared: Shared,
    server: Option<JoinHandle<()>>,
}

impl FakeAgent {
    pub(super) fn start(folder: &Path, node: &str, clock: &Clock) -> FakeAgent {
        let script = Script { node: node.to_owned(), ..Script::default() };
        let shared = Shared(Arc::new(Mutex::new(script)), watch::channel(0).0, clock.clone());
        let mut agent = FakeAgent { socket: folder.join(format!("{node}.sock")), shared, server: None };
        agent.listen();
        agent
    }

    /// Starts anew after [`FakeAgent::kill`].
    pub(super) fn listen(&mut self) {
        let router = Router::new()
            .route("/api/v1/node", get(node))
            .route("/api/v1/state", get(state))
            .route("/api/v1/findings", get(findings))
            .route("/api/v1/events", get(events))
            .with_state(self.shared.clone());
        let listener = UnixListener::bind(&self.socket).unwrap();
        self.server = Some(tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }));
    }

    /// Dies: the socket's file goes, streams end.
    pub(super) fn kill(&mut self) {
        self.server.take().unwrap().abort();
        std::fs::remove_file(&self.socket).unwrap();
        self.script(|script| script.generation += 1);
    }

    pub(super) fn script<T>(&self, change: impl FnOnce(&mut Script) -> T) -> T {
        let result = change(&mut self.shared.0.lock().unwrap());
        self.shared.1.send_modify(|tick| *tick += 1);
        result
    }

    /// Writes raw bytes into the stream.
    pub(super) fn write(&self, bytes: impl Into<Vec<u8>>) {
        self.script(|script| script.stream.push(bytes.into()));
    }

    /// Writes a whole event; its cursor is its place in the stream.
    pub(super) fn tell(&self, seconds: i64, body: EventBody) -> Event {
        let number = self.script(|script| script.stream.len()) as u64 + 1;
        let event = event(number, seconds, body);
        let data = serde_json::to_string(&event).unwrap();
        self.write(format!("event: x\nid: {number}\ndata: {data}\n\n"));
        event
    }

    /// A finding begins: it is in the list, and in the stream.
    pub(super) fn begin(&self, finding: Finding) {
        self.script(|script| script.findings.push(finding.clone()));
        self.tell(0, EventBody::FindingBegan { finding });
    }

    /// It ends.
    pub(super) fn end(&self, mut finding: Finding) {
        finding.ended = Some(self.shared.2.now());
        self.script(|script| script.findings = vec![finding.clone()]);
        self.tell(0, EventBody::FindingEnded { finding });
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
        }
    }
}

impl Shared {
    async fn hang_if_told(&self) {
        while self.0.lock().unwrap().hangs {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn node(State(shared): State<Shared>) -> Response {
    shared.hang_if_told().await;
    let (name, now) = (shared.0.lock().unwrap().node.clone(), shared.2.now());
    axum::Json(json!({
        "id": {"name": name}, "now": now, "uptime_seconds": 1.0,
        "agent": {"version": "0", "started": now, "host_root": "/"},
    }))
    .into_response()
}

async fn state(State(shared): State<Shared>, RawQuery(query): RawQuery) -> Response {
    shared.hang_if_told().await;
    let now = shared.2.now();
    let mut script = shared.0.lock().unwrap();
    script.readings_asked += u32::from(query.as_deref() != Some("readings=false"));
    if let Some(garbage) = &script.garbage {
        return garbage.clone().into_response();
    }
    let runtime = json!({"outcome": "read", "every_seconds": 1.0, "reading": {"ignored": [1, 2]}});
    axum::Json(json!({"node": script.node, "now": now, "collectors": {"runtime": runtime}})).into_response()
}

async fn findings(State(shared): State<Shared>) -> axum::Json<Value> {
    shared.hang_if_told().await;
    axum::Json(serde_json::to_value(&shared.0.lock().unwrap().findings).unwrap())
}

#[derive(Deserialize)]
struct After {
    after: Option<usize>,
}

async fn events(State(shared): State<Shared>, Query(after): Query<After>) -> Response {
    shared.hang_if_told().await;
    let generation = {
        let mut script = shared.0.lock().unwrap();
        if script.refuses_cursors && after.after.is_some() {
            return StatusCode::BAD_REQUEST.into_response();
        }
        script.opened_after.push(after.after);
        script.generation
    };
    let changed = shared.1.subscribe();
    let from = after.after.unwrap_or(0);
    Body::from_stream(futures::stream::unfold(
        (shared, changed, from),
        move |(shared, mut changed, from)| async move {
            loop {
                let (piece, ended) = {
                    let script = shared.0.lock().unwrap();
                    (script.stream.get(from).cloned(), script.generation != generation)
                };
                match piece {
                    _ if ended => return None,
                    Some(piece) => {
                        return Some((
                            Ok::<_, std::io::Error>(Bytes::from(piece)),
                            (shared, changed, from + 1),
                        ));
                    }
                    None => changed.changed().await.ok()?,
                }
            }
        },
    ))
    .into_response()
}
