//! The whole aggregator against an agent and an API server that do as the test says.

mod agent;
mod api;

use std::path::PathBuf;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nodewhy_clock::{Clock, Mover};
use nodewhy_diagnosis::Case;
use nodewhy_proto::{
    Conclusion, ConditionStatus, EventBody, Finding, Gap, Incident, NodeSummary, Problem, Verdict,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::incident::Diagnosis;
use crate::testing::{finding, root, verdict};
use crate::{AgentAddress, ClusterAddress, Settings, Timings, run_with};
use agent::FakeAgent;
use api::{EVENTS, FakeApi, LEASES, NODES};

const NODE: &str = "worker-7";

/// A core with one cause: a hung runtime. It says "no cause" only where the agent could be asked.
fn explain(case: &Case) -> Verdict {
    let node = case.asked().unwrap();
    let ready = node.ready().map(|ready| ready.status);
    let mut verdict = verdict(&case.node, Conclusion::NoCauseFound, ready);
    verdict.at = case.window.to;
    if let Some(hung) = node.finding("runtime_hung").filter(|finding| finding.is_active()) {
        verdict.conclusion = Conclusion::Explained;
        verdict.roots.push(root("containerd_hung", hung.began));
    }
    verdict.blind.extend(node.findings.why_missing().map(str::to_owned));
    verdict.blind.extend(node.facts.why_missing().map(str::to_owned));
    verdict
}

struct World {
    folder: TempDir,
    clock: Clock,
    mover: Mover,
    running: Option<(oneshot::Sender<()>, JoinHandle<anyhow::Result<()>>)>,
}

impl World {
    fn new() -> World {
        let (clock, mover) = Clock::skippable();
        World { folder: tempfile::tempdir().unwrap(), clock, mover, running: None }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("aggregator.sock")
    }

    fn settings(&self, agent: Option<&FakeAgent>, api: Option<&FakeApi>) -> Settings {
        let address =
            |agent: &FakeAgent| AgentAddress { node: NODE.to_owned(), socket: agent.socket.clone() };
        let cluster =
            |api: &FakeApi| ClusterAddress { kubeconfig: Some(api.kubeconfig.clone()), context: None };
        Settings {
            socket: Some(self.socket()),
            agents: agent.map(address).into_iter().collect(),
            cluster: api.map(cluster),
            store: Some(self.folder.path().join("incidents.sqlite")),
            timings: Timings {
                backoff_min: Duration::from_millis(5),
                backoff_max: Duration::from_millis(50),
                answer: Duration::from_millis(500),
                state_every: Duration::from_millis(100),
                ..Timings::default()
            },
        }
    }

    async fn start(&mut self, settings: Settings) {
        let (stop, stopped) = oneshot::channel::<()>();
        let diagnosis = Diagnosis { explain, causes: Vec::new };
        let clock = self.clock.clone();
        let aggregator = tokio::spawn(async move {
            let stopped = async { assert!(stopped.await.is_ok()) };
            run_with(settings, clock, stopped, diagnosis).await
        });
        self.running = Some((stop, aggregator));
        eventually("it serves", async || UnixStream::connect(self.socket()).await.ok()).await;
    }

    async fn stop(&mut self) {
        let (stop, aggregator) = self.running.take().unwrap();
        stop.send(()).unwrap();
        aggregator.await.unwrap().unwrap();
        assert!(!self.socket().exists(), "the socket is removed");
    }

    async fn raw(&self, request: &str) -> (u16, String) {
        let mut stream = UnixStream::connect(self.socket()).await.unwrap();
        let request = format!("{request} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer)
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        let (status, answer) = self.raw(&format!("GET {path}")).await;
        assert_eq!(status, 200, "{answer}");
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    async fn summary(&self) -> NodeSummary {
        self.get(&format!("/api/v1/nodes/{NODE}")).await
    }

    async fn metric(&self, line: &str) -> bool {
        self.raw("GET /metrics").await.1.lines().any(|found| found == line)
    }

    async fn agent_says(&self, word: &str) {
        eventually(word, async || self.summary().await.agent.contains(word).then_some(())).await;
    }

    /// The newest incident, once it is so.
    async fn incident(&self, what: &str, so: impl Fn(&Incident) -> bool) -> Incident {
        eventually(what, async || {
            let list: Vec<Incident> = self.get("/api/v1/incidents").await;
            let newest = list.into_iter().next()?;
            let whole: Incident = self.get(&format!("/api/v1/incidents/{}", newest.id)).await;
            so(&whole).then_some(whole)
        })
        .await
    }
}

/// Waits until it is so; real time, for the sockets are real.
async fn eventually<T>(what: &str, so: impl AsyncFn() -> Option<T>) -> T {
    for _ in 0..1000 {
        if let Some(found) = so().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not so within 10 s: {what}")
}

fn hung(world: &World) -> Finding {
    let now = world.clock.now();
    Finding { began: now, noticed: now, ..finding("runtime_hung", 0) }
}

fn ready_node(status: &str, since: Timestamp) -> Value {
    json!({
        "metadata": {"name": NODE, "uid": "u1"},
        "status": {"conditions": [
            {"type": "Ready", "status": status, "reason": "r", "message": "m", "lastTransitionTime": since},
        ]},
    })
}

fn lease(renewed: Timestamp) -> Value {
    json!({"metadata": {"name": NODE}, "spec": {"renewTime": renewed, "leaseDurationSeconds": 40}})
}

#[tokio::test]
async fn an_incident_from_the_first_finding_to_the_end_across_a_restart() {
    let mut world = World::new();
    let agent = FakeAgent::start(world.folder.path(), NODE, &world.clock);
    let api = FakeApi::start(world.folder.path()).await;
    let start = world.clock.now();
    api.put(NODES, "ADDED", ready_node("True", start));
    api.put(LEASES, "ADDED", lease(start));
    world.start(world.settings(Some(&agent), Some(&api))).await;
    world.agent_says("answers").await;
    eventually("Ready", async || world.summary().await.ready).await;
    assert_eq!(world.get::<Vec<Incident>>("/api/v1/incidents").await, []);
    let healthy: Verdict = world.get(&format!("/api/v1/nodes/{NODE}/why")).await;
    assert_eq!((healthy.ready, healthy.blind), (Some(ConditionStatus::True), Vec::new()));

    let finding = hung(&world);
    agent.begin(finding.clone());
    let opened = world.incident("opened", |incident| incident.revisions.len() == 1).await;
    assert_eq!(opened.revisions[0].changed_by, "finding runtime_hung began");
    assert_eq!((opened.lost_ready, opened.began), (None, finding.began));
    assert_eq!(world.summary().await.incident, Some(opened.id.clone()));

    world.mover.skip(Duration::from_secs(5));
    api.put(NODES, "MODIFIED", ready_node("False", world.clock.now()));
    let revised = world.incident("revised", |incident| incident.revisions.len() == 2).await;
    assert_eq!(
        (revised.id.clone(), revised.revisions[1].changed_by.as_str()),
        (opened.id, "Ready became False")
    );
    assert!(revised.lost_ready.is_some());

    world.stop().await;
    world.start(world.settings(Some(&agent), Some(&api))).await;
    eventually("it is taken up again", async || world.summary().await.incident).await;
    assert_eq!(world.get::<Vec<Incident>>("/api/v1/incidents").await.len(), 1, "not opened twice");

    agent.end(finding);
    api.put(NODES, "MODIFIED", ready_node("True", world.clock.now()));
    api.put(LEASES, "MODIFIED", lease(world.clock.now()));
    eventually("nothing is wrong", async || {
        let summary = world.summary().await;
        (summary.ready == Some(ConditionStatus::True) && summary.findings.as_ref().is_some_and(Vec::is_empty))
            .then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    world.mover.skip(Duration::from_secs(11));
    let ended = world.incident("ended", |incident| incident.ended.is_some()).await;
    assert_eq!(ended.verdict().map(|verdict| verdict.roots[0].cause.as_str()), Some("containerd_hung"));
    assert!(api.script(|script| script.strange.is_empty()), "it only reads");
    world.stop().await;
}

#[tokio::test]
async fn an_agent_that_hangs_dies_or_talks_garbage_is_unreachable_with_the_reason() {
    let mut world = World::new();
    let mut agent = FakeAgent::start(world.folder.path(), NODE, &world.clock);
    world.start(world.settings(Some(&agent), None)).await;
    world.agent_says("answers").await;
    agent.script(|script| script.hangs = true);
    world.agent_says("was not answered within 0.5 s").await;
    let blind = world.get::<Verdict>(&format!("/api/v1/nodes/{NODE}/why")).await.blind;
    assert!(blind.iter().any(|why| why.contains("unreachable since")), "never an empty list: {blind:?}");
    assert!(blind.iter().any(|why| why.contains("no cluster is watched")), "{blind:?}");
    agent.script(|script| script.hangs = false);
    world.agent_says("answers").await;
    agent.script(|script| script.garbage = Some("{\"node\": 7".to_owned()));
    world.agent_says("can't be read").await;
    agent.script(|script| script.garbage = None);
    world.agent_says("answers").await;
    agent.kill();
    world.agent_says("is the agent running there?").await;
    agent.listen();
    world.agent_says("answers").await;
    let ready: Value = world.get("/readyz").await;
    assert_eq!(ready, json!({"ready": true, "degraded": []}));
    world.stop().await;
}

#[tokio::test]
async fn bad_pieces_of_a_stream_cost_only_themselves_and_it_resumes_by_cursor() {
    let mut world = World::new();
    let agent = FakeAgent::start(world.folder.path(), NODE, &world.clock);
    agent.write("id: 1\ndata: {\"not\": \"an event\"}\n\n");
    agent.write(format!("id: 2\ndata: {}\n\n", "x".repeat(2 << 20)));
    agent.write(": keep-alive\n\n");
    let told = agent.tell(0, EventBody::ClockStepped { seconds: 0.5 });
    world.start(world.settings(Some(&agent), None)).await;
    let received =
        async |count: u32| world.metric(&format!("nodewhy_aggregator_events_received_total {count}")).await;
    eventually("one event", async || received(1).await.then_some(())).await;
    assert!(world.metric("nodewhy_aggregator_dropped_total{reason=\"malformed\"} 1").await);
    assert!(world.metric("nodewhy_aggregator_dropped_total{reason=\"too_long\"} 1").await);
    // Half an event, then the stream ends: whole on the next connection, after the last whole one's cursor.
    agent.write("id: 5\ndata: {\"kind\": \"clock_ste");
    tokio::time::sleep(Duration::from_millis(30)).await;
    agent.script(|script| {
        script.stream.pop();
        script.generation += 1;
    });
    agent.tell(1, EventBody::ClockStepped { seconds: 1.5 });
    // The same happening told again is a repeat.
    agent.write(format!("id: 6\ndata: {}\n\n", serde_json::to_string(&told).unwrap()));
    eventually("the second", async || received(2).await.then_some(())).await;
    eventually("the repeat", async || {
        world.metric("nodewhy_aggregator_dropped_total{reason=\"repeat\"} 1").await.then_some(())
    })
    .await;
    assert_eq!(agent.script(|script| script.opened_after.clone()), [None, Some(4)]);
    world.stop().await;
}

#[tokio::test]
async fn after_a_gap_the_list_decides() {
    let mut world = World::new();
    let agent = FakeAgent::start(world.folder.path(), NODE, &world.clock);
    let mut settings = world.settings(Some(&agent), None);
    settings.timings.state_every = Duration::from_secs(3600);
    world.start(settings).await;
    world.agent_says("answers").await;
    // It began while the event was lost: only the list has it.
    let finding = hung(&world);
    agent.script(|script| script.findings.push(finding));
    agent.tell(0, EventBody::Gap(Gap { from: "0".to_owned(), to: "1".to_owned(), count: None }));
    world.incident("opened from the list", |incident| incident.revisions.len() == 1).await;
    world.stop().await;
}

#[tokio::test]
async fn a_cursor_that_is_refused_is_given_up_and_what_is_missing_is_told() {
    let mut world = World::new();
    let agent = FakeAgent::start(world.folder.path(), NODE, &world.clock);
    agent.tell(0, EventBody::ClockStepped { seconds: 0.5 });
    world.start(world.settings(Some(&agent), None)).await;
    eventually("one event", async || {
        world.metric("nodewhy_aggregator_events_received_total 1").await.then_some(())
    })
    .await;
    agent.script(|script| (script.refuses_cursors, script.generation) = (true, script.generation + 1));
    eventually("opened anew", async || {
        agent.script(|script| script.opened_after == [None, None]).then_some(())
    })
    .await;
    agent.begin(hung(&world));
    world.incident("it is heard", |incident| incident.revisions.len() == 1).await;
    assert_eq!(agent.script(|script| script.readings_asked), 0);
    world.stop().await;
}

#[tokio::test]
async fn what_an_agent_says_of_another_node_is_dropped_and_counted() {
    let mut world = World::new();
    let agent = FakeAgent::start(world.folder.path(), NODE, &world.clock);
    agent.script(|script| script.node = "impostor".to_owned());
    agent.begin(hung(&world));
    world.start(world.settings(Some(&agent), None)).await;
    world.agent_says("says that it is on node impostor").await;
    assert_eq!(world.get::<Vec<Incident>>("/api/v1/incidents").await, []);
    let counted = world.raw("GET /metrics").await.1;
    assert!(counted.contains("dropped_total{reason=\"another_node\"}"), "{counted}");
    world.stop().await;
}

#[tokio::test]
async fn a_broken_api_server_makes_our_view_old_and_heals() {
    let mut world = World::new();
    let api = FakeApi::start(world.folder.path()).await;
    let start = world.clock.now();
    api.put(NODES, "ADDED", ready_node("True", start));
    api.put(LEASES, "ADDED", lease(start));
    world.start(world.settings(None, Some(&api))).await;
    let is_ready = async |ready: Option<ConditionStatus>| {
        eventually(&format!("{ready:?}"), async || (world.summary().await.ready == ready).then_some(()))
            .await;
    };
    eventually("the node", async || {
        world.raw(&format!("GET /api/v1/nodes/{NODE}")).await.0.eq(&200).then_some(())
    })
    .await;
    is_ready(Some(ConditionStatus::True)).await;

    // A bookmark and a line of nonsense change nothing.
    api.write(NODES, r#"{"type":"BOOKMARK","object":{"kind":"Node","apiVersion":"v1","metadata":{"resourceVersion":"VERSION"}}}"#);
    api.write(NODES, r#"{"type":"MODIFIED","object":[1,2]}"#);
    eventually("counted", async || {
        world.metric("nodewhy_aggregator_dropped_total{reason=\"malformed\"} 1").await.then_some(())
    })
    .await;
    assert_eq!(api.script(|script| script.lists[NODES]), 1);

    // Compacted: the watch is gone (410), a new list tells what was missed.
    api.put(NODES, "MODIFIED", ready_node("Unknown", start));
    api.compact();
    is_ready(Some(ConditionStatus::Unknown)).await;
    assert_eq!(api.script(|script| script.lists[NODES]), 2);
    let opened = world.incident("opened by Ready alone", |_| true).await;
    assert_eq!(opened.revisions[0].changed_by, "Ready became Unknown");

    // The server breaks: the view grows old. The node is not gone, and no incident ends.
    api.script(|script| (script.fails, script.generation) = (true, script.generation + 1));
    eventually("told", async || {
        let ready: Value = world.get("/readyz").await;
        ready["degraded"].to_string().contains("the API server's leases").then_some(())
    })
    .await;
    for _ in 0..10 {
        world.mover.skip(Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    is_ready(None).await;
    let why: Verdict = world.get(&format!("/api/v1/nodes/{NODE}/why")).await;
    assert!(
        why.blind.iter().any(|why| why.contains("our view of the API server's nodes is from")),
        "{:?}",
        why.blind
    );
    assert_eq!(world.incident("still there", |_| true).await.ended, None);

    // It hangs instead, then it is back.
    api.script(|script| (script.fails, script.hangs) = (false, true));
    tokio::time::sleep(Duration::from_millis(100)).await;
    is_ready(None).await;
    api.script(|script| script.hangs = false);
    is_ready(Some(ConditionStatus::Unknown)).await;
    world.stop().await;
}

#[tokio::test]
async fn a_version_that_the_api_server_refuses_is_given_up() {
    let mut world = World::new();
    let api = FakeApi::start(world.folder.path()).await;
    api.put(NODES, "ADDED", ready_node("True", world.clock.now()));
    world.start(world.settings(None, Some(&api))).await;
    let is_ready = async |ready: ConditionStatus| {
        let found = async || world.raw(&format!("GET /api/v1/nodes/{NODE}")).await.0 == 200;
        eventually(&format!("{ready:?}"), async || {
            (found().await && world.summary().await.ready == Some(ready)).then_some(())
        })
        .await;
    };
    is_ready(ConditionStatus::True).await;
    api.put(NODES, "MODIFIED", ready_node("Unknown", world.clock.now()));
    api.script(|script| {
        script.version += 10;
        (script.refused_before, script.generation) = (script.version, script.generation + 1);
    });
    is_ready(ConditionStatus::Unknown).await;
    world.stop().await;
}

/// Feeds a recorded episode at its own times; gives the incidents, newest first.
async fn replay(records: [(&str, &str); 3]) -> Vec<Incident> {
    let mut world = World::new();
    let api = FakeApi::start(world.folder.path()).await;
    let mut feed: Vec<(Timestamp, &str, Value)> = Vec::new();
    for (path, text) in records {
        for line in text.lines() {
            let record: Value = serde_json::from_str(line).unwrap();
            feed.push((record["received"].as_str().unwrap().parse().unwrap(), path, record["event"].clone()));
        }
    }
    feed.sort_by_key(|(at, _, _)| *at);
    let (initial, changes): (Vec<_>, Vec<_>) =
        feed.into_iter().partition(|(_, _, event)| event["type"] == "INITIAL");
    for (_, path, event) in &initial {
        api.put(path, "ADDED", event["object"].clone());
    }
    let begin = initial.iter().map(|(at, _, _)| *at).max().unwrap();
    world.mover.step_wall(begin.duration_since(world.clock.now()));
    world.start(world.settings(None, Some(&api))).await;
    eventually("listed", async || {
        world.get::<Value>("/readyz").await["degraded"].as_array().unwrap().is_empty().then_some(())
    })
    .await;
    let until = async |at: Timestamp| loop {
        let left = at.duration_since(world.clock.now());
        if left <= SignedDuration::ZERO {
            break;
        }
        world.mover.skip(Duration::try_from(left).unwrap().min(Duration::from_secs(2)));
        tokio::time::sleep(Duration::from_millis(8)).await;
    };
    let mut last = begin;
    for (at, path, event) in changes {
        until(at).await;
        last = at;
        api.put(path, event["type"].as_str().unwrap(), event["object"].clone());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    until(last + SignedDuration::from_secs(15)).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let incidents = world.get("/api/v1/incidents").await;
    world.stop().await;
    incidents
}

#[tokio::test]
async fn a_recorded_loss_of_the_runtime_is_one_incident() {
    let incidents = replay([
        (NODES, include_str!("../fixtures/runtime-down/watch-nodes.ndjson")),
        (LEASES, include_str!("../fixtures/runtime-down/watch-leases.ndjson")),
        (EVENTS, include_str!("../fixtures/runtime-down/watch-events.ndjson")),
    ])
    .await;
    let [incident] = &incidents[..] else { panic!("{incidents:#?}") };
    assert_eq!(incident.id, "2026-11-21-0756-lab-node1");
    assert!(incident.lost_ready.unwrap().to_string().starts_with("2026-11-21T07:56:4"), "{incident:#?}");
    assert!(incident.ended.unwrap().to_string().starts_with("2026-11-21T07:57:5"), "{incident:#?}");
}

#[tokio::test]
async fn a_recorded_death_of_the_kubelet_is_suspected_before_ready_is_lost() {
    let incidents = replay([
        (NODES, include_str!("../fixtures/kubelet-killed/watch-nodes.ndjson")),
        (LEASES, include_str!("../fixtures/kubelet-killed/watch-leases.ndjson")),
        (EVENTS, include_str!("../fixtures/kubelet-killed/watch-events.ndjson")),
    ])
    .await;
    let [incident] = &incidents[..] else { panic!("{incidents:#?}") };
    let lost: Timestamp = "2026-11-21T08:30:40Z".parse().unwrap();
    assert!(incident.opened < lost, "the Lease was stale before: {incident:#?}");
    assert!(incident.lost_ready.unwrap() >= lost && incident.ended.is_some(), "{incident:#?}");
}

#[tokio::test]
async fn what_is_unknown_gets_a_problem_document() {
    let mut world = World::new();
    world.start(world.settings(None, None)).await;
    for (request, status, word) in [
        ("GET /api/v1/nothing", 404, "/api/v1/nodes"),
        ("GET /", 404, "/api/v1/nodes"),
        ("GET /api/v1/nodes/ghost", 404, "ghost"),
        ("GET /api/v1/nodes/ghost/why", 404, "ghost"),
        ("GET /api/v1/incidents/ghost", 404, "ghost"),
        ("GET /api/v1/nodes/%ff", 400, "UTF-8"),
        ("GET /api/v1/nodes/%ff/why", 400, "UTF-8"),
        ("GET /api/v1/incidents/%ff", 400, "UTF-8"),
        ("POST /api/v1/nodes", 405, "only read"),
        ("GET /api/v1/incidents?node=a&node=b", 400, "duplicate"),
    ] {
        let (found, answer) = world.raw(request).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("application/problem+json"), "{request}: {answer}");
        let problem: Problem = serde_json::from_str(body).unwrap();
        assert_eq!((found, problem.status), (status, status), "{request}");
        assert!(problem.detail.contains(word), "{request}: {}", problem.detail);
    }
    assert_eq!(world.raw("GET /healthz").await.0, 200);
    assert_eq!(world.get::<Vec<Value>>("/api/v1/causes").await.len(), 0);
    world.stop().await;
}

#[tokio::test]
async fn a_setting_that_cannot_be_met_is_an_error_that_says_what_to_do() {
    let world = World::new();
    let good = world.settings(None, None);
    let agent = AgentAddress { node: NODE.to_owned(), socket: "/x".into() };
    let nowhere = ClusterAddress { kubeconfig: Some("/no/such/kubeconfig".into()), context: None };
    for (settings, words) in [
        (Settings { store: Some("/no/such/folder/s".into()), ..good.clone() }, "/no/such/folder"),
        (Settings { agents: vec![agent.clone(), agent], ..good.clone() }, "two agents"),
        (Settings { cluster: Some(nowhere), ..good.clone() }, "--kubeconfig"),
        (Settings { socket: Some("/no/such/folder/s".into()), ..good }, "/no/such/folder"),
    ] {
        let error = crate::run(settings, world.clock.clone(), std::future::pending()).await.unwrap_err();
        assert!(format!("{error:#}").contains(words), "{error:#}");
    }
}
