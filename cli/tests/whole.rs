//! The program as its users run it, against stand-ins for agent and aggregator.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test; clippy sees only the #[test] functions as such"
)]

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use nodewhy::client::{Client, Who};
use nodewhy::up::text;
use nodewhy::watch::Watch;
use nodewhy_clock::Clock;
use nodewhy_diagnosis::{Case, NodeCase, Source};
use nodewhy_proto::{
    Condition, ConditionStatus, Evidence, Fact, FactBody, Finding, NodeId, NodeSummary, Outcome, Severity,
    Subject, SubjectKind,
};

#[path = "whole/fake.rs"]
mod fake;
#[path = "screens/verdicts.rs"]
#[expect(dead_code, reason = "shared with the screens' tests, which use the rest")]
mod verdicts;

use fake::Fake;

fn summary(name: &str, ready: Option<ConditionStatus>, incident: Option<&str>) -> NodeSummary {
    NodeSummary {
        name: name.to_owned(),
        ready,
        agent: "answers".to_owned(),
        agent_age_seconds: Some(0.2),
        lease_age_seconds: Some(4.0),
        findings: Some(Vec::new()),
        incident: incident.map(str::to_owned),
    }
}

/// An aggregator that knows a well node and a sick one.
fn aggregator(socket: &Path) -> Fake {
    let fake = Fake::default();
    let incident = verdicts::incident_of(verdicts::oom());
    let sick = summary("worker-7", Some(ConditionStatus::Unknown), Some(&incident.id));
    let well = summary("cp-1", Some(ConditionStatus::True), None);
    fake.answer("/api/v1/nodes", &vec![well.clone(), sick.clone()])
        .answer("/api/v1/nodes/worker-7", &sick)
        .answer("/api/v1/nodes/cp-1", &well)
        .answer("/api/v1/incidents", &vec![incident.clone()])
        .answer("/api/v1/incidents?node=worker-7", &vec![incident.clone()])
        .answer("/api/v1/incidents?node=cp-1", &Vec::<u8>::new())
        .answer("/api/v1/nodes/cp-1/why", &verdicts::healthy())
        .answer(&format!("/api/v1/incidents/{}", incident.id), &incident);
    fake.serve(socket.to_owned());
    fake
}

#[expect(clippy::disallowed_methods, reason = "the program under test is a process")]
fn nodewhy(socket: &Path, args: &[&str]) -> Output {
    std::process::Command::new(env!("CARGO_BIN_EXE_nodewhy"))
        .args(args)
        .env("NODEWHY_AGGREGATOR", socket)
        .env_remove("NO_COLOR")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn why_tells_the_incident_of_a_sick_node() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("aggregator.sock");
    aggregator(&socket);
    let text = stdout(&nodewhy(&socket, &["why", "worker-7"]));
    assert!(text.starts_with("worker-7   NotReady "), "{text}");
    assert!(text.contains("sure 0.97, rev 3") && text.contains("nodewhy knew 0.4 s later"), "{text}");
    assert!(!text.contains('\u{1b}') && !text.contains('├'), "a pipe gets no colour and no drawing: {text}");
    let coloured = stdout(&nodewhy(&socket, &["--color", "always", "why", "worker-7"]));
    assert!(coloured.contains("\u{1b}[1;31mNotReady"), "{coloured}");

    let document: serde_json::Value =
        serde_json::from_str(&stdout(&nodewhy(&socket, &["why", "worker-7", "-o", "json"]))).unwrap();
    assert_eq!(document["incident"]["revision"], 3);
    assert_eq!(document["verdict"]["roots"][0]["cause"], "oom_kills_kubelet");
    assert_eq!(nodewhy(&socket, &["why", "worker-7", "--exit-code"]).status.code(), Some(3));
    assert_eq!(nodewhy(&socket, &["why", "cp-1", "--exit-code"]).status.code(), Some(0));
    let by_id = stdout(&nodewhy(&socket, &["why", "--incident", "2026-11-21-0313-worker-7"]));
    assert!(by_id.contains("The kernel killed kubelet"), "{by_id}");
}

#[test]
fn why_without_a_node_lists_the_sick_first_and_an_unknown_one_gets_the_nearest() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("aggregator.sock");
    let fake = aggregator(&socket);
    let text = stdout(&nodewhy(&socket, &["why"]));
    assert!(text.find("worker-7").unwrap() < text.find("cp-1").unwrap(), "{text}");
    assert!(text.contains("Name one: nodewhy why NODE"), "{text}");

    let unknown = nodewhy(&socket, &["why", "worker7"]);
    let error = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert_eq!(unknown.status.code(), Some(1));
    assert!(error.contains("knows no node \"worker7\"; did you mean worker-7?"), "{error}");

    fake.answer("/api/v1/nodes", &vec![summary("cp-1", None, None)]);
    assert!(stdout(&nodewhy(&socket, &["why"])).contains("LOOKED 12 of 13 causes ruled out"));
    fake.answer("/api/v1/nodes", &Vec::<u8>::new());
    let none = nodewhy(&socket, &["why"]);
    assert!(String::from_utf8_lossy(&none.stderr).contains("knows no node yet"), "{none:?}");
}

#[test]
fn short_tables() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("aggregator.sock");
    aggregator(&socket);
    let nodes = stdout(&nodewhy(&socket, &["nodes"]));
    assert!(nodes.lines().nth(1).unwrap().starts_with("worker-7  Unknown  4s"), "{nodes}");
    let incidents = stdout(&nodewhy(&socket, &["incidents"]));
    assert!(incidents.contains("oom_kills_kubelet") && incidents.contains("so far"), "{incidents}");
    assert!(incidents.contains("READY LOST") && incidents.contains(" 03:14:42 "), "{incidents}");

    // Where no API server was asked nobody knows that Ready was kept.
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("aggregator.sock");
    let mut unasked = verdicts::incident_of(nodewhy_proto::Verdict { ready: None, ..verdicts::hung() });
    unasked.lost_ready = None;
    let mut kept = verdicts::incident_of(verdicts::hung());
    kept.lost_ready = None;
    let fake = Fake::default();
    fake.answer("/api/v1/incidents", &vec![unasked, kept]).serve(socket.clone());
    let incidents = stdout(&nodewhy(&socket, &["incidents"]));
    let lines: Vec<&str> = incidents.lines().collect();
    assert!(lines[1].contains("  not known  ") && lines[2].contains("  no  "), "{incidents}");
}

#[test]
fn errors_say_what_was_tried_and_what_to_do() {
    let gone = nodewhy(Path::new("/nonexistent/aggregator.sock"), &["nodes"]);
    assert_eq!(gone.status.code(), Some(1));
    let error = String::from_utf8_lossy(&gone.stderr).into_owned();
    assert!(
        error.contains("cannot reach the aggregator at /nonexistent/aggregator.sock: no such file"),
        "{error}"
    );
    assert!(error.contains("--aggregator"), "{error}");
    assert_eq!(nodewhy(Path::new("/x"), &["why", "a", "b"]).status.code(), Some(2));
    let case = nodewhy(Path::new("/x"), &["explain", "/nonexistent"]);
    assert_eq!(case.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&case.stderr).contains("cannot read the case /nonexistent"), "{case:?}");
}

#[test]
fn something_else_behind_the_socket_is_told_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("aggregator.sock");
    Fake::default().answer("/api/v1/nodes", &"hello").serve(socket.clone());
    let odd = nodewhy(&socket, &["nodes"]);
    let error = String::from_utf8_lossy(&odd.stderr).into_owned();
    assert!(error.contains("cannot understand the aggregator's answer to /api/v1/nodes"), "{error}");
}

/// A case of the real catalogue: a stopped containerd, the node Ready still, no word from elsewhere.
fn hung_case() -> Case {
    let began = verdicts::at("03:14:27");
    let socket = "/run/containerd/containerd.sock";
    let finding = Finding {
        id: "runtime_hung@1".to_owned(),
        finding: "runtime_hung".to_owned(),
        collector: "runtime".to_owned(),
        subject: Subject::new(SubjectKind::Runtime, socket),
        severity: Severity::Critical,
        began,
        noticed: verdicts::at("03:14:37"),
        ended: None,
        summary: format!("{socket} has not answered Version for 14 s; process 812 is stopped (state T)"),
        evidence: vec![Evidence::new("Version unanswered for 14 s", format!("CRI Version on {socket}"))],
    };
    let ready = Condition {
        kind: "Ready".to_owned(),
        status: ConditionStatus::True,
        reason: "KubeletReady".to_owned(),
        message: "kubelet is posting ready status".to_owned(),
        last_transition: Some(verdicts::at("01:00:00")),
    };
    let fact = Fact { observed: began, source: "Node worker-7".to_owned(), body: FactBody::Condition(ready) };
    let collectors = ["pressure", "memory", "oom", "runtime", "kubelet", "cni"];
    let node = NodeCase::of(NodeId { name: "worker-7".to_owned(), ..Default::default() })
        .findings(Source::Known(vec![finding]))
        .events(Source::Known(Vec::new()))
        .collectors(Source::Known(
            collectors.into_iter().map(|name| (name.to_owned(), Outcome::Read)).collect(),
        ))
        .facts(Source::Known(vec![fact]))
        .build()
        .unwrap();
    let case = Case::about("worker-7").window(verdicts::at("03:00:00"), verdicts::at("03:14:41")).node(node);
    case.cluster(Source::missing("not asked in this test")).build().unwrap()
}

#[test]
fn a_recorded_case_is_explained_from_a_file_and_from_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("case.json");
    std::fs::write(&file, serde_json::to_string(&hung_case()).unwrap()).unwrap();
    let nowhere = Path::new("/nonexistent");
    let text = stdout(&nodewhy(nowhere, &["explain", folder.path().to_str().unwrap()]));
    assert!(text.starts_with("worker-7   sick 14s   still Ready since 01:00:00"), "{text}");
    assert!(
        text.contains("WHY  The container runtime hangs")
            && text.contains("in 1m41s: Ready is expected to turn False"),
        "{text}"
    );
    assert!(text.contains("--all") && text.contains("nodewhy causes containerd_hung"), "{text}");
    let at = |cause: &str| text.find(cause).unwrap();
    assert!(at("containerd_dead ") < at("cni_config_invalid "), "look-alikes come first: {text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    let of_file = stdout(&nodewhy(nowhere, &["explain", file.to_str().unwrap()]));
    assert_eq!(text.split("MORE").next(), of_file.split("MORE").next());
    assert!(of_file.contains(&format!("nodewhy explain {} --all", file.display())), "{of_file}");
    let verdict: serde_json::Value =
        serde_json::from_str(&stdout(&nodewhy(nowhere, &["explain", file.to_str().unwrap(), "-o", "json"])))
            .unwrap();
    assert_eq!(verdict["roots"][0]["cause"], "containerd_hung");
    assert_eq!(nodewhy(nowhere, &["explain", "--exit-code", file.to_str().unwrap()]).status.code(), Some(3));
}

#[test]
fn the_catalogue_is_told() {
    let nowhere = Path::new("/nonexistent");
    let list = stdout(&nodewhy(nowhere, &["causes"]));
    assert!(list.contains("\noom_kills_kubelet  "), "{list}");
    let page = stdout(&nodewhy(nowhere, &["causes", "containerd_hung"]));
    assert!(page.contains("LEADS TO  Ready False, as a rule") && page.contains("\nDO  "), "{page}");
    let all: serde_json::Value =
        serde_json::from_str(&stdout(&nodewhy(nowhere, &["causes", "-o", "json"]))).unwrap();
    assert_eq!(all.as_array().unwrap().len(), nodewhy_diagnosis::causes::ALL.len());
    let unknown = nodewhy(nowhere, &["causes", "contanerd_hung"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("did you mean containerd_hung"), "{unknown:?}");
}

/// The lines of `up`, from stand-ins whose answers change while it runs.
#[tokio::test]
async fn up_in_a_pipe_tells_how_it_is_and_then_what_changes() {
    let folder = tempfile::tempdir().unwrap();
    let (agent_socket, aggregator_socket) =
        (folder.path().join("agent.sock"), folder.path().join("aggregator.sock"));
    let clock = Clock::system();
    let now = clock.now();
    let (agent, fleet) = (Fake::default(), Fake::default());
    let node = serde_json::json!({
        "id": {"name": "lab-1"}, "now": now, "uptime_seconds": 11_100.0, "kernel": "6.1.0-56-amd64",
        "os": "Debian GNU/Linux 12 (bookworm)", "kubelet": "no kubelet on this machine: no process is called kubelet",
        "agent": {"version": "0.1.0", "started": now, "host_root": "/"},
    });
    let state = |runtime: Outcome| {
        let mut runtime = serde_json::to_value(runtime).unwrap();
        runtime["every_seconds"] = 1.0.into();
        serde_json::json!({"node": "lab-1", "now": now, "collectors": {
            "pressure": {"outcome": "read", "every_seconds": 1.0},
            "runtime": runtime,
        }})
    };
    let absent = Outcome::Absent { why: "no runtime\u{1b}[2J socket in the usual places".to_owned() };
    agent.answer("/api/v1/node", &node).answer("/api/v1/state", &state(absent));
    agent.answer("/api/v1/findings", &Vec::<u8>::new());
    fleet.answer("/api/v1/nodes/lab-1", &summary("lab-1", None, None));
    fleet.answer("/api/v1/incidents?node=lab-1", &Vec::<u8>::new());
    agent.serve(agent_socket.clone());
    fleet.serve(aggregator_socket.clone());

    let watch = Watch {
        agent: Client::new(Who::Agent, agent_socket),
        aggregator: Client::new(Who::Aggregator, aggregator_socket),
        node: "lab-1".to_owned(),
    };
    let place = vec!["no cluster: this machine alone".to_owned()];
    let mut out = Written::default();
    let before = clock.since_boot();
    let running = tokio::spawn({
        let (clock, mut out) = (clock.clone(), out.clone());
        async move { text::run(watch, clock, &place, &mut out).await }
    });
    out.wait_for("nothing abnormal in what could be read").await;
    assert!(clock.since_boot() - before < Duration::from_secs(1), "the first lines come within a second");
    let first = out.text();
    for wanted in [
        "no cluster: this machine alone",
        "this machine: lab-1, Linux 6.1.0-56-amd64, Debian GNU/Linux 12 (bookworm), up 3h05m, no runtime known, no kubelet on this machine",
        "sources read: pressure",
        "source runtime: absent: no runtime socket in the usual places",
    ] {
        assert!(first.contains(wanted), "{wanted:?} is not in:\n{first}");
    }

    let mut finding = serde_json::json!({
        "id": "runtime_hung@1", "finding": "runtime_hung", "collector": "runtime", "subject": {"kind": "runtime"},
        "severity": "critical", "began": "2026-11-21T03:14:27Z", "noticed": "2026-11-21T03:14:37Z",
        "summary": "Version unanswered for 10 s", "evidence": [],
    });
    agent.answer("/api/v1/state", &state(Outcome::Read)).answer("/api/v1/findings", &[&finding]);
    let mut incident = verdicts::incident_of(verdicts::hung());
    incident.began = verdicts::at("03:14:27");
    incident.revisions[0].at = verdicts::at("03:14:37.25");
    incident.revisions[0].revision = 1;
    fleet.answer("/api/v1/incidents?node=lab-1", &[&incident]);
    out.wait_for("do: systemctl restart containerd").await;
    let told = out.text();
    assert!(told.contains("source runtime: read (was absent)"), "{told}");
    assert!(
        told.contains("sick: runtime_hung since 11-21 03:14:27, known 10 s later: Version unanswered")
            || told.contains("sick: runtime_hung since 03:14:27, known 10 s later: Version unanswered"),
        "{told}"
    );
    assert!(
        told.contains(
            "why: The container runtime is hung (containerd_hung); sure 0.95, rev 1, 10 s after it began"
        ),
        "{told}"
    );

    finding["ended"] = "2026-11-21T03:15:27Z".into();
    incident.ended = Some(verdicts::at("03:15:29"));
    agent.answer("/api/v1/findings", &[&finding]);
    fleet.answer("/api/v1/incidents?node=lab-1", &[&incident]);
    out.wait_for("after 1m02s").await;
    let told = out.text();
    assert!(told.contains("well: runtime_hung ended") && told.contains("after 1m00s"), "{told}");
    assert_eq!(told.matches("sick: runtime_hung").count(), 1, "each change is told once:\n{told}");
    assert!(
        told.lines().all(|line| line.as_bytes().get(2) == Some(&b':')),
        "each line begins with the time:\n{told}"
    );
    assert!(!told.contains('\u{1b}'));
    running.abort();
}

/// The real program in a pipe: it starts both, says where its sockets are, and leaves nothing behind.
#[test]
#[expect(clippy::disallowed_methods, reason = "the program under test is a process")]
fn up_says_where_it_is_and_leaves_nothing_behind() {
    use std::io::{BufRead, BufReader};

    let runtime_dir = tempfile::tempdir().unwrap();
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_nodewhy"))
        .args(["up", "--node-name", "lab-1"])
        .env("XDG_RUNTIME_DIR", runtime_dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().ends_with("all times in UTC"));
    assert!(lines.next().unwrap().unwrap().ends_with("no cluster: this machine alone"));
    let sockets = lines.next().unwrap().unwrap();
    let folder = runtime_dir.path().join("nodewhy");
    assert!(sockets.contains(&folder.join("aggregator.sock").display().to_string()), "{sockets}");
    assert!(folder.exists());
    let pid = nix::unistd::Pid::from_raw(program.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(program.wait().unwrap().success(), "SIGTERM is a good end");
    assert!(!folder.exists(), "its folder is gone");
}

/// What was written, for another task to look at.
#[derive(Clone, Default)]
struct Written(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Written {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    async fn wait_for(&mut self, wanted: &str) {
        for _ in 0..500 {
            if self.text().contains(wanted) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{wanted:?} was not told within 10 s:\n{}", self.text());
    }
}
