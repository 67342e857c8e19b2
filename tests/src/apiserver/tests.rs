//! As a client sees it, over HTTP.

use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::{Bytes, Incoming};
use jiff::SignedDuration;
use nodewhy_clock::Mover;
use serde_json::Value;

use super::*;
use crate::recording::{Fault, Kind, Recording, fixtures};

/// The recording of `pleg` with the fault 1000 s from now, on a clock that can be moved there.
fn server() -> (ApiServer, Recording, Clock, Mover) {
    let (clock, mover) = Clock::skippable();
    let recording = Recording::load("1.36.2", Fault::Pleg).unwrap();
    let recording = recording.moved_to(clock.now() + SignedDuration::from_secs(1000));
    let server = ApiServer::start(&recording, clock.clone()).unwrap();
    (server, recording, clock, mover)
}

async fn request(server: &ApiServer, method: &str, path: &str) -> hyper::Response<Incoming> {
    let stream = tokio::net::TcpStream::connect(server.address()).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("host", "x").body(Empty::new()).unwrap();
    sender.send_request(request).await.unwrap()
}

async fn get(server: &ApiServer, path: &str) -> (u16, Value) {
    let response = request(server, "GET", path).await;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

/// A watch's body. A line is not a frame: the client may see two at once, or one in pieces.
struct Watch {
    body: Incoming,
    buffer: Vec<u8>,
}

async fn watch(server: &ApiServer, path: &str) -> Watch {
    Watch { body: request(server, "GET", path).await.into_body(), buffer: Vec::new() }
}

/// The next line of a watch; `None` at its end.
async fn line(watch: &mut Watch) -> Option<Value> {
    loop {
        if let Some(end) = watch.buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = watch.buffer.drain(..=end).collect();
            return Some(serde_json::from_slice(&line).unwrap());
        }
        let frame = watch.body.frame().await?.unwrap();
        watch.buffer.extend(frame.data_ref().unwrap());
    }
}

#[tokio::test]
async fn a_list_then_a_watch_from_its_version_tells_every_change_once() {
    let (server, recording, _clock, mover) = server();
    let (status, list) = get(&server, "/api/v1/nodes?limit=500").await;
    assert_eq!((status, list["kind"].as_str()), (200, Some("NodeList")));
    assert_eq!(list["items"][0]["metadata"]["name"], "lab-node2");
    // The newest version of any list: the Lease's, not the Node's.
    assert_eq!(list["metadata"]["resourceVersion"], "2032");

    let path = "/api/v1/nodes?watch=true&resourceVersion=2032&allowWatchBookmarks=false&timeoutSeconds=5000";
    let mut body = watch(&server, path).await;
    mover.skip(Duration::from_secs(1000 + 400));
    let mut seen = Vec::new();
    for _ in 0..8 {
        let event = line(&mut body).await.unwrap();
        assert_eq!(event["type"], "MODIFIED");
        seen.push(event["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap());
    }
    let expected: Vec<u64> = recording
        .records
        .iter()
        .filter(|record| record.kind == Kind::Node && record.change != "INITIAL")
        .map(|record| record.version)
        .collect();
    assert_eq!(seen, expected);
    // Taken up again in the middle: only what came later.
    let path = format!("/api/v1/nodes?watch=true&resourceVersion={}&timeoutSeconds=1", expected[5]);
    let mut body = watch(&server, &path).await;
    for version in &expected[6..] {
        let event = line(&mut body).await.unwrap();
        assert_eq!(event["object"]["metadata"]["resourceVersion"], version.to_string());
    }
    mover.skip(Duration::from_secs(2));
    assert_eq!(line(&mut body).await, None, "timeoutSeconds is over");
}

#[tokio::test]
async fn a_change_is_told_at_its_time_and_not_before() {
    let (server, recording, clock, mover) = server();
    let lost = recording.lost_ready().unwrap();
    let ready = |node: &Value| {
        let conditions = node["status"]["conditions"].as_array().unwrap();
        conditions.iter().find(|condition| condition["type"] == "Ready").unwrap()["status"].clone()
    };
    let before = Duration::try_from(lost.duration_since(clock.now())).unwrap() - Duration::from_secs(3);
    mover.skip(before);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(ready(&get(&server, "/api/v1/nodes/lab-node2").await.1), "True");
    mover.skip(Duration::from_secs(5));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(ready(&get(&server, "/api/v1/nodes/lab-node2").await.1), "False");
}

#[tokio::test]
async fn bookmarks_carry_the_newest_version_of_any_list() {
    let (server, _recording, _clock, mover) = server();
    let path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases\
                ?watch=1&resourceVersion=2032&allowWatchBookmarks=true&timeoutSeconds=290";
    let mut body = watch(&server, path).await;
    mover.skip(Duration::from_secs(61));
    let event = line(&mut body).await.unwrap();
    assert_eq!(event["type"], "BOOKMARK");
    assert_eq!(event["object"]["kind"], "Lease");
    assert_eq!(event["object"]["metadata"]["resourceVersion"], "2032");
}

#[tokio::test]
async fn a_streamed_list_ends_as_the_recorded_one_does() {
    let (server, ..) = server();
    let path = "/api/v1/nodes?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
                &allowWatchBookmarks=true";
    let mut body = watch(&server, path).await;
    let added = line(&mut body).await.unwrap();
    assert_eq!((&added["type"], &added["object"]["kind"]), (&"ADDED".into(), &"Node".into()));
    let end = line(&mut body).await.unwrap();
    let recorded = recorded("api-watchlist-initial-events-end.txt");
    let recorded: Value = serde_json::from_str(recorded.lines().last().unwrap()).unwrap();
    assert_eq!(end["type"], recorded["type"]);
    assert_eq!(end["object"]["kind"], recorded["object"]["kind"]);
    assert_eq!(end["object"]["metadata"]["annotations"], recorded["object"]["metadata"]["annotations"]);
}

#[tokio::test]
async fn a_version_from_before_the_history_is_gone_as_the_recorded_one_was() {
    let (server, ..) = server();
    let mut body = watch(&server, "/api/v1/nodes?watch=true&resourceVersion=1").await;
    let event = line(&mut body).await.unwrap();
    let recorded = recorded("api-watch-410.txt");
    let mut recorded: Value = serde_json::from_str(recorded.lines().last().unwrap()).unwrap();
    recorded["object"]["message"] = "too old resource version: 1 (2032)".into();
    assert_eq!(event, recorded);
    assert_eq!(line(&mut body).await, None);
    let (status, answer) = get(&server, "/api/v1/nodes?watch=true&resourceVersion=999999").await;
    assert_eq!((status, answer["reason"].as_str()), (504, Some("Timeout")));
}

#[tokio::test]
async fn what_is_unknown_is_a_status_and_what_writes_is_refused() {
    let (server, ..) = server();
    let (status, answer) = get(&server, "/api/v1/nodes/nosuch").await;
    let recorded: Value = serde_json::from_str(&recorded("api-node-404.txt")).unwrap();
    assert_eq!(status, 404);
    for field in ["kind", "status", "message", "reason", "code"] {
        assert_eq!(answer[field], recorded[field], "{field}");
    }
    let (status, answer) = get(&server, "/api/v1/pods").await;
    assert_eq!((status, answer["kind"].as_str()), (404, Some("Status")));
    assert!(server.refused().is_empty());
    assert_eq!(request(&server, "DELETE", "/api/v1/nodes/lab-node2").await.status().as_u16(), 405);
    assert_eq!(server.refused(), ["DELETE /api/v1/nodes/lab-node2"]);
    assert_eq!(get(&server, "/version").await.0, 200);
    let (status, events) = get(&server, "/api/v1/events?fieldSelector=involvedObject.kind%3DNode").await;
    assert_eq!((status, events["items"].as_array().map(Vec::len)), (200, Some(0)));
}

/// The body of a recorded response.
fn recorded(name: &str) -> String {
    let text = std::fs::read_to_string(fixtures().join("control-plane").join(name)).unwrap();
    text.split_once("\n\n").unwrap().1.to_owned()
}
