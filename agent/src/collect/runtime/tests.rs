//! Against a CRI server of our own over a real Unix socket: one that answers, hangs, drops, talks nonsense.

use std::collections::HashMap;
use std::convert::Infallible;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use nodewhy_clock::{Clock, Mover};
use prost::Message;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::sync::oneshot;

use super::asking::{Ended, Verb};
use super::reading::CallState;
use super::*;
use crate::collector::{Abnormal, Noticed, Pair};
use crate::cri;
use crate::host::Places;
use crate::thresholds::Thresholds;

/// What a connection meets.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Grpc,
    Garbage,
    Drop,
    /// gRPC on the first connection; then nobody listens any more.
    Once,
}

/// What a call meets.
#[derive(Clone)]
enum Reply {
    Message(Vec<u8>),
    Code(u8),
    Hang,
}

type Replies = Arc<Mutex<HashMap<&'static str, Reply>>>;

struct Fake {
    replies: Replies,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Fake {
    fn start(socket: &Path, manner: Manner) -> Fake {
        let replies: Replies = Arc::new(Mutex::new(well()));
        let (stop, stopped) = oneshot::channel::<()>();
        let listener = UnixListener::bind(socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let shared = replies.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::UnixListener::from_std(listener).unwrap();
                tokio::select! { () = accept(listener, shared, manner) => {}, _ = stopped => {} }
            });
        });
        Fake { replies, stop: Some(stop), thread: Some(thread) }
    }

    fn reply(&self, verb: &'static str, reply: Reply) {
        self.replies.lock().unwrap().insert(verb, reply);
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

async fn accept(listener: tokio::net::UnixListener, replies: Replies, manner: Manner) {
    let mut listener = Some(listener);
    while let Some(listening) = &listener {
        let (mut stream, _) = listening.accept().await.unwrap();
        let replies = replies.clone();
        if manner == Manner::Once {
            listener = None;
        }
        tokio::spawn(async move {
            match manner {
                Manner::Drop => {}
                Manner::Garbage => {
                    stream.write_all(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n").await.ok();
                }
                Manner::Grpc | Manner::Once => {
                    let service = hyper::service::service_fn(move |request| answer(replies.clone(), request));
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    server.serve_connection(TokioIo::new(stream), service).await.ok();
                }
            }
        });
    }
    std::future::pending().await
}

async fn answer(
    replies: Replies,
    request: Request<Incoming>,
) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
    let path = request.uri().path().to_owned();
    let reply = loop {
        let found = {
            let replies = replies.lock().unwrap();
            replies
                .iter()
                .find(|(verb, _)| path.rsplit('/').next() == Some(**verb))
                .map(|(_, reply)| reply.clone())
        };
        match found {
            Some(Reply::Hang) => tokio::time::sleep(Duration::from_millis(5)).await,
            found => break found.unwrap_or(Reply::Code(12)),
        }
    };
    let (frame, code) = match reply {
        Reply::Message(message) => {
            let length = u32::try_from(message.len()).unwrap().to_be_bytes();
            ([&[0], length.as_slice(), &message].concat(), 0)
        }
        Reply::Code(code) => (Vec::new(), code),
        Reply::Hang => unreachable!(),
    };
    let mut trailers = hyper::HeaderMap::new();
    trailers.insert("grpc-status", code.to_string().parse().unwrap());
    trailers.insert("grpc-message", "unknown service".parse().unwrap());
    let body = Full::new(Bytes::from(frame)).with_trailers(async move { Some(Ok(trailers)) });
    Ok(Response::builder().header("content-type", "application/grpc").body(body).unwrap())
}

fn condition(kind: &str, status: bool) -> cri::RuntimeCondition {
    let (reason, message) = if status { ("", "") } else { ("Reason", "a message") };
    cri::RuntimeCondition {
        r#type: kind.to_owned(),
        status,
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

fn status(runtime: bool, network: bool) -> Reply {
    let conditions = vec![condition("RuntimeReady", runtime), condition("NetworkReady", network)];
    let status = Some(cri::RuntimeStatus { conditions });
    Reply::Message(cri::StatusResponse { status, info: HashMap::new() }.encode_to_vec())
}

fn well() -> HashMap<&'static str, Reply> {
    let version = cri::VersionResponse {
        runtime_name: "fake".to_owned(),
        runtime_version: "1.0".to_owned(),
        runtime_api_version: "v1".to_owned(),
    };
    let sandboxes = cri::ListPodSandboxResponse {
        items: [0, 0, 1].map(|state| cri::PodSandbox { state, ..Default::default() }).to_vec(),
    };
    let containers = cri::ListContainersResponse {
        containers: [1, 2, 2, 9].map(|state| cri::Container { state, ..Default::default() }).to_vec(),
    };
    HashMap::from([
        ("Version", Reply::Message(version.encode_to_vec())),
        ("Status", status(true, true)),
        ("ListPodSandbox", Reply::Message(sandboxes.encode_to_vec())),
        ("ListContainers", Reply::Message(containers.encode_to_vec())),
    ])
}

/// A host in a folder, with the socket's place set.
struct Stage {
    root: TempDir,
    host: Host,
    mover: Mover,
}

const SOCKET: &str = "/cri.sock";

impl Stage {
    fn new() -> Stage {
        let root = tempfile::tempdir().unwrap();
        let (clock, mover) = Clock::skippable();
        let places = Places { runtime_socket: Some(SOCKET.into()), ..Places::default() };
        let host = Host::new(root.path(), clock, places);
        Stage { root, host, mover }
    }

    fn socket(&self) -> PathBuf {
        self.host.path(SOCKET)
    }

    fn serve(&self) -> Fake {
        Fake::start(&self.socket(), Manner::Grpc)
    }

    fn open(&self) -> Source {
        open(&self.host).unwrap()
    }

    fn read(&self, source: &mut Source) -> (Reading, Vec<Abnormal>) {
        let before = Clock::system().since_boot();
        let reading = read(source, &self.host).unwrap();
        let took = Clock::system().since_boot().checked_sub(before).unwrap();
        assert!(took < Duration::from_millis(1500), "a reading took {took:?}");
        let mut noticed = Noticed::default();
        let pair = Pair { before: None, now: &reading, at: self.host.clock().stamp() };
        detect(pair, &Thresholds::default(), &mut noticed);
        (reading, noticed.states)
    }

    /// Reads until `holds`, for 5 s of real time.
    fn until(
        &self,
        source: &mut Source,
        holds: impl Fn(&Reading, &[Abnormal]) -> bool,
    ) -> (Reading, Vec<Abnormal>) {
        let end = Clock::system().since_boot() + Duration::from_secs(5);
        loop {
            let (reading, states) = self.read(source);
            if holds(&reading, &states) {
                return (reading, states);
            }
            assert!(Clock::system().since_boot() < end, "it never came: {reading:#?} {states:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What stands in /proc of the process that listens: this one.
    fn process(&self, name: &str, state: char) {
        crate::host::process::made::process(self.root.path(), std::process::id(), name, state);
    }
}

fn names(states: &[Abnormal]) -> Vec<&'static str> {
    states.iter().map(|state| state.finding).collect()
}

#[test]
fn a_well_runtime_is_told_in_the_first_reading_and_has_no_findings() {
    let stage = Stage::new();
    let _fake = stage.serve();
    let mut source = stage.open();
    let (reading, states) = stage.read(&mut source);
    assert_eq!(names(&states), [""; 0]);
    assert_eq!(reading.connect.state, "connected");
    assert_eq!(reading.version.runtime_name.as_deref(), Some("fake"));
    assert_eq!(reading.status.state, CallState::Answered);
    assert_eq!(reading.found_by, "setting");
    assert_eq!(reading.relist.sandboxes.clone().unwrap(), [("notready", 1), ("ready", 2)].into());
    let containers = [("created", 0), ("exited", 2), ("other", 1), ("running", 1), ("unknown", 0)];
    assert_eq!(reading.relist.containers.clone().unwrap(), containers.into());
    let mut sink = Sink::default();
    metrics(&reading, &mut sink);
    let text = sink.encode();
    for line in [
        "nodewhy_runtime_up 1",
        "nodewhy_runtime_condition{type=\"NetworkReady\"} 1",
        "nodewhy_runtime_containers{state=\"running\"} 1",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
    assert!(!text.contains("call_pending"), "nothing is in flight: {text}");
    let json = serde_json::to_value(&reading).unwrap();
    assert_eq!(json["version"]["state"], "answered");
    assert_eq!(json["conditions"][0]["type"], "RuntimeReady");
}

#[test]
fn a_call_that_hangs_is_hung_after_ten_seconds_and_stays_so_when_it_is_given_up() {
    let stage = Stage::new();
    let fake = stage.serve();
    fake.reply("Status", Reply::Hang);
    let mut source = stage.open();
    let (reading, states) = stage.until(&mut source, |reading, _| reading.version.call.has_answer());
    assert_eq!(reading.status.state, CallState::Pending);
    assert_eq!(reading.conditions, None);
    assert_eq!(names(&states), [""; 0]);
    let began = reading.status.unanswered_since;
    stage.mover.skip(Duration::from_secs(10));
    let (_, states) = stage.read(&mut source);
    assert_eq!(names(&states), ["runtime_hung"]);
    assert_eq!(states[0].since, began);
    stage.mover.skip(Duration::from_secs(111));
    let (reading, states) = stage.until(&mut source, |reading, _| reading.status.error.is_some());
    assert!(reading.status.error.unwrap().contains("no answer in 120 seconds"));
    assert_eq!(names(&states), ["runtime_hung"]);
    assert_eq!(states[0].since, began, "a call that is given up is no answer");
    fake.reply("Status", status(true, true));
    // The answer to a call that was asked again in good time; the metric tells its own, short duration.
    let (reading, _) = stage.until(&mut source, |_, states| states.is_empty());
    assert!(reading.status.unanswered_seconds.is_none_or(|seconds| seconds < 1.0));
}

#[test]
fn a_call_that_was_in_flight_while_the_agent_slept_is_not_hung() {
    let stage = Stage::new();
    let fake = stage.serve();
    fake.reply("Status", Reply::Hang);
    let mut source = stage.open();
    stage.until(&mut source, |reading, _| reading.status.state == CallState::Pending);
    // A suspended machine wakes: the age of the call jumps, and its answer is taken in a moment later.
    stage.mover.skip(Duration::from_secs(60));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            fake.reply("Status", status(true, true));
        });
        let (_, states) = stage.read(&mut source);
        assert!(!names(&states).contains(&"runtime_hung"), "{states:#?}");
    });
}

#[test]
fn with_its_process_stopped_three_seconds_are_enough() {
    let stage = Stage::new();
    let fake = stage.serve();
    stage.process("containerd", 'T');
    fake.reply("Version", Reply::Hang);
    let mut source = stage.open();
    let (reading, states) = stage.read(&mut source);
    assert_eq!(reading.process_state, Some('T'));
    assert_eq!(names(&states), [""; 0]);
    stage.mover.skip(Duration::from_secs(3));
    let (_, states) = stage.read(&mut source);
    assert_eq!(names(&states), ["runtime_hung"]);
    assert!(states[0].summary.contains("containerd (pid "), "{}", states[0].summary);
    assert!(
        states[0].summary.contains(") is stopped by a signal and has not answered"),
        "{}",
        states[0].summary
    );
    // A process that sleeps proves nothing: ten seconds are needed again.
    stage.process("containerd", 'S');
    assert_eq!(names(&stage.read(&mut source).1), [""; 0]);
}

/// `containerd_hung` in the catalogue of causes looks for these words: another remedy follows from them.
#[test]
fn the_words_of_a_process_state_are_those_that_the_diagnosis_looks_for() {
    let stage = Stage::new();
    let fake = stage.serve();
    fake.reply("Version", Reply::Hang);
    stage.process("containerd", 'S');
    let mut source = stage.open();
    stage.read(&mut source);
    stage.mover.skip(Duration::from_secs(10));
    for (state, says, is_stopped) in [
        ('T', "is in state T: stopped by a signal", true),
        ('t', "is in state t: stopped by a debugger", true),
        ('Z', "is in state Z: a zombie, dead and not yet reaped", false),
        ('D', "is in state D: waiting in the kernel, not to be interrupted", false),
        ('S', "is in state S: sleeping", false),
        ('R', "is in state R: running", false),
    ] {
        stage.process("containerd", state);
        let (_, states) = stage.read(&mut source);
        assert_eq!(names(&states), ["runtime_hung"], "{state}");
        let mut texts: Vec<&str> = states[0].evidence.iter().map(|evidence| evidence.text.as_str()).collect();
        texts.push(&states[0].summary);
        assert!(texts.iter().any(|text| text.ends_with(says)), "{state}: {texts:?}");
        let has = |sign: &str| texts.iter().any(|text| text.contains(sign));
        assert_eq!(has("stopped") || has("state T") || has("state t"), is_stopped, "{state}: {texts:?}");
        assert_eq!(has("zombie") || has("state Z"), state == 'Z', "{state}: {texts:?}");
    }
}

#[test]
fn systemd_behind_the_socket_is_not_the_runtime() {
    let stage = Stage::new();
    let _fake = stage.serve();
    stage.process("systemd", 'T');
    let (reading, _) = stage.read(&mut stage.open());
    assert_eq!((reading.pid, reading.process_state), (None, None));
}

#[test]
fn an_answer_that_came_late_is_slow_and_not_hung() {
    let stage = Stage::new();
    let fake = stage.serve();
    fake.reply("Status", Reply::Hang);
    let mut source = stage.open();
    stage.until(&mut source, |reading, _| reading.status.state == CallState::Pending);
    stage.mover.skip(Duration::from_secs(6));
    assert_eq!(names(&stage.read(&mut source).1), [""; 0]);
    fake.reply("Status", status(true, true));
    let (reading, states) = stage.until(&mut source, |_, states| !states.is_empty());
    assert_eq!(names(&states), ["runtime_slow"]);
    assert!(reading.status.took_seconds.unwrap() >= 6.0);
    // The next answer is fast: it clears.
    stage.until(&mut source, |_, states| states.is_empty());
}

#[test]
fn a_relist_that_hangs_while_status_answers_is_told_apart() {
    let stage = Stage::new();
    let fake = stage.serve();
    fake.reply("ListContainers", Reply::Hang);
    let mut source = stage.open();
    stage.until(&mut source, |reading, _| reading.status.has_answer());
    stage.mover.skip(Duration::from_secs(6));
    let (reading, states) = stage.until(&mut source, |_, states| !states.is_empty());
    assert_eq!(names(&states), ["relist_slow"]);
    assert_eq!(reading.relist.list_pod_sandbox.state, CallState::Answered);
    assert_eq!(reading.relist.list_containers.state, CallState::Pending);
    assert_eq!(reading.relist.containers, None);
}

#[test]
fn its_conditions_are_findings() {
    let stage = Stage::new();
    let fake = stage.serve();
    fake.reply("Status", status(false, false));
    let (_, states) = stage.read(&mut stage.open());
    assert_eq!(names(&states), ["runtime_not_ready", "runtime_network_not_ready"]);
    assert_eq!(states[1].subject, nodewhy_proto::Subject::new(nodewhy_proto::SubjectKind::Cni, "Reason"));
}

#[test]
fn dockers_containerd_needs_no_pod_network() {
    let root = tempfile::tempdir().unwrap();
    let host = Host::new(root.path(), Clock::system(), Places::default());
    std::fs::create_dir_all(root.path().join("run/containerd")).unwrap();
    std::fs::write(root.path().join("run/docker.sock"), "").unwrap();
    let fake = Fake::start(&root.path().join("run/containerd/containerd.sock"), Manner::Grpc);
    fake.reply("Status", status(true, false));
    let look = || {
        let reading = read(&mut open(&host).unwrap(), &host).unwrap();
        let mut noticed = Noticed::default();
        let pair = Pair { before: None, now: &reading, at: host.clock().stamp() };
        detect(pair, &Thresholds::default(), &mut noticed);
        (reading.condition("NetworkReady").is_some(), names(&noticed.states))
    };
    assert_eq!(look(), (true, vec![]));
    crate::host::process::made::process(root.path(), 734, "kubelet", 'S');
    assert_eq!(look(), (true, vec!["runtime_network_not_ready"]));
}

#[test]
fn a_socket_without_a_listener_is_refused_and_a_new_listener_is_asked_at_once() {
    let stage = Stage::new();
    drop(UnixListener::bind(stage.socket()).unwrap());
    let mut source = stage.open();
    let (reading, states) = stage.read(&mut source);
    assert_eq!(names(&states), ["runtime_refused"]);
    assert_eq!((reading.conditions, reading.pid), (None, None));
    std::fs::remove_file(stage.socket()).unwrap();
    let (_, states) = stage.read(&mut source);
    assert_eq!(names(&states), ["runtime_socket_missing"]);
    let fake = stage.serve();
    let (_, states) = stage.read(&mut source);
    assert_eq!(names(&states), [""; 0]);
    // It dies, and is started again.
    drop(fake);
    stage.until(&mut source, |_, states| names(states) == ["runtime_refused"]);
    std::fs::remove_file(stage.socket()).unwrap();
    let _fake = stage.serve();
    let (reading, states) = stage.read(&mut source);
    assert_eq!(names(&states), [""; 0]);
    assert!(reading.status.has_answer());
}

#[test]
fn a_hung_server_that_dies_is_refused_and_no_longer_hung() {
    let stage = Stage::new();
    let fake = stage.serve();
    fake.reply("Status", Reply::Hang);
    let mut source = stage.open();
    stage.read(&mut source);
    stage.mover.skip(Duration::from_secs(20));
    assert_eq!(names(&stage.read(&mut source).1), ["runtime_hung"]);
    drop(fake);
    stage.until(&mut source, |_, states| names(states) == ["runtime_refused"]);
}

#[test]
fn a_full_queue_is_hung_too() {
    let stage = Stage::new();
    let _listener = UnixListener::bind(stage.socket()).unwrap();
    // A closed connection stays in the queue, so the queue fills without as many descriptors.
    let mut connects = 0;
    while stage.host.connect_unix(SOCKET).is_ok() {
        connects += 1;
        assert!(connects < 1_000_000, "the queue never fills");
    }
    let mut source = stage.open();
    let (reading, states) = stage.read(&mut source);
    assert_eq!((reading.connect.state, names(&states)), ("backlog_full", vec![]));
    stage.mover.skip(Duration::from_secs(10));
    assert_eq!(names(&stage.read(&mut source).1), ["runtime_hung"]);
}

#[test]
fn what_does_not_speak_cri_is_a_failure_in_words() {
    for (manner, words) in [(Manner::Garbage, "does not speak gRPC"), (Manner::Drop, "does not speak gRPC")] {
        let stage = Stage::new();
        let _fake = Fake::start(&stage.socket(), manner);
        let mut source = stage.open();
        // Whose connection broke is sure once each verb has met a new one: at the next turn at the latest.
        let end = Clock::system().since_boot() + Duration::from_secs(5);
        let error = loop {
            match read(&mut source, &stage.host) {
                Err(error) => break error,
                Ok(reading) => assert!(Clock::system().since_boot() < end, "{reading:#?}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(error.to_string().contains(words), "{error}");
    }
    let stage = Stage::new();
    let fake = stage.serve();
    fake.reply("Version", Reply::Code(12));
    fake.reply("Status", Reply::Code(12));
    let error = read(&mut stage.open(), &stage.host).unwrap_err();
    assert!(error.to_string().contains("does not serve CRI v1"), "{error}");
}

#[test]
fn nonsense_in_an_answer_is_an_error_and_no_condition() {
    let stage = Stage::new();
    let fake = stage.serve();
    fake.reply("Status", Reply::Message(vec![0xff; 40]));
    let (reading, states) = stage.read(&mut stage.open());
    assert_eq!(reading.status.state, CallState::Failed);
    assert_eq!((reading.conditions, names(&states)), (None, vec![]));
}

#[test]
fn a_missing_right_says_what_to_do() {
    let stage = Stage::new();
    let _fake = stage.serve();
    let source = stage.open();
    let link = Link::Failed { denied: true, error: "Permission denied (os error 13)".to_owned() };
    let board = Board { link: Some((link, stage.host.clock().stamp())), ..Board::default() };
    let error = refuse(&source, &board).unwrap_err();
    assert!(error.to_string().contains("run the agent as root"), "{error}");
}

#[test]
fn a_machine_without_a_runtime_is_absent() {
    let root = tempfile::tempdir().unwrap();
    let host = Host::new(root.path(), Clock::system(), Places::default());
    assert!(matches!(open(&host), Err(ReadError::Absent { .. })));
}

#[test]
fn a_change_and_a_suspect_call_wake_the_collector() {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let stage = Stage::new();
    let fake = stage.serve();
    let mut source = stage.open();
    let is_woken = |source: &Source| {
        let mut fds = [PollFd::new(wake(source).unwrap(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(1500_u16)).unwrap() == 1
    };
    stage.read(&mut source);
    // What came before the first reading is in it.
    source.asking.board();
    assert!(!is_woken(&source), "nothing happens to a well runtime");
    fake.reply("Status", Reply::Hang);
    stage.until(&mut source, |reading, _| reading.status.state == CallState::Pending);
    stage.mover.skip(Duration::from_secs(3));
    assert!(is_woken(&source));
    stage.read(&mut source);
    drop(fake);
    assert!(is_woken(&source));
}

#[test]
fn the_runtimes_process_is_told_when_it_goes_and_when_another_comes() {
    let stage = Stage::new();
    let fake = stage.serve();
    stage.process("containerd", 'S');
    let mut source = stage.open();
    assert_eq!(stage.read(&mut source).0.changes, [], "it ran before we looked");
    drop(fake);
    let (reading, _) = stage.until(&mut source, |_, states| names(states) == ["runtime_refused"]);
    assert_eq!(reading.changes, [], "it is in /proc still");
    let folder = stage.root.path().join(format!("proc/{}", std::process::id()));
    std::fs::remove_dir_all(&folder).unwrap();
    let gone = stage.read(&mut source).0.changes;
    assert!(matches!(gone.as_slice(), [Change::Exited(process)] if process.pid == std::process::id()));
    assert_eq!(stage.read(&mut source).0.changes, [], "told once");
    stage.process("containerd", 'S');
    std::fs::remove_file(stage.socket()).unwrap();
    let _fake = stage.serve();
    let come = stage.read(&mut source).0.changes;
    assert!(matches!(come.as_slice(), [Change::Started(process)] if process.pid == std::process::id()));
}

#[test]
fn verbs_keep_their_turns() {
    let every = Duration::from_secs(1);
    let next = |now: u64, turn: u64| {
        super::asking::next_turn(Duration::from_millis(now), every, Duration::from_millis(turn)).as_millis()
    };
    assert_eq!(next(10_005, 0), 11_000);
    assert_eq!(next(10_505, 500), 11_500);
    assert_eq!(next(10_900, 0), 12_000, "a second later, not a tenth");
    assert_eq!(next(0, 500), 500, "before the first turn on a machine that just started");
}

#[test]
fn a_dropped_source_leaves_nothing_behind_even_while_calls_hang() {
    let stage = Stage::new();
    let fake = stage.serve();
    fake.reply("Status", Reply::Hang);
    let mut source = stage.open();
    stage.read(&mut source);
    let alive = source.asking.watch();
    assert!(alive.upgrade().is_some());
    drop(source);
    assert!(alive.upgrade().is_none(), "the thread, its connection and its calls are gone");
}

#[test]
fn a_runtime_that_was_restarted_is_asked_by_the_same_thread() {
    let stage = Stage::new();
    let first = stage.serve();
    first.reply("Status", Reply::Hang);
    let mut source = stage.open();
    stage.read(&mut source);
    let (thread, old) = (source.asking.thread_id(), source.asking.watch());
    drop(first);
    std::fs::remove_file(stage.socket()).unwrap();
    let _second = stage.serve();
    let (reading, _) = stage.read(&mut source);
    assert_eq!(reading.status.state, CallState::Answered, "by the new one");
    assert!(old.upgrade().is_none(), "the old connection and its calls are gone");
    assert_eq!(source.asking.thread_id(), thread);
}

#[test]
fn a_failed_status_forgets_the_conditions() {
    let at = Clock::system().stamp();
    let failed = Err(CallError::Broken("gone".to_owned()));
    let ended = Ended { at, took: Duration::ZERO, result: failed, is_on_new_connection: true };
    let mut verb = Verb::default();
    verb.ended = Some(ended);
    assert_eq!(StatusSaid::of(&verb), None);
}

#[test]
fn what_is_no_runtime_is_left_for_one_that_came_and_its_failure_forgets_nothing() {
    use crate::collector::Collect;
    use nodewhy_proto::Outcome;

    let root = tempfile::tempdir().unwrap();
    let host = Host::new(root.path(), Clock::system(), Places::default());
    for folder in ["run/containerd", "run/crio"] {
        std::fs::create_dir_all(root.path().join(folder)).unwrap();
    }
    let garbage = Fake::start(&root.path().join("run/containerd/containerd.sock"), Manner::Garbage);
    let mut running = COLLECTOR.start();
    let mut step = || running.step(&host, &Thresholds::default());
    let until_failed = |step: &mut dyn FnMut() -> crate::collector::Step| {
        let end = Clock::system().since_boot() + Duration::from_secs(5);
        while !matches!(step().outcome, Outcome::Failed { .. }) {
            assert!(Clock::system().since_boot() < end, "it never failed");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    until_failed(&mut step);
    let crio = root.path().join("run/crio/crio.sock");
    let fake = Fake::start(&crio, Manner::Grpc);
    let came = (0..2 * LOOK_AGAIN_AFTER_READS).map(|_| step()).find(|step| step.outcome == Outcome::Read);
    assert_eq!(came.unwrap().reading.unwrap().json().unwrap()["endpoint"], "/run/crio/crio.sock");
    // It is the one that is missed from now on, also past a failure.
    drop(garbage);
    drop(fake);
    std::fs::remove_file(&crio).unwrap();
    let fake = Fake::start(&crio, Manner::Garbage);
    // A socket made anew within one tick of the clock looks like the old one: then the next calls notice.
    until_failed(&mut step);
    drop(fake);
    std::fs::remove_file(&crio).unwrap();
    std::fs::remove_file(root.path().join("run/containerd/containerd.sock")).unwrap();
    let states = step().noticed.expect("it was seen: that it is gone is no absence").states;
    assert_eq!(names(&states), ["runtime_socket_missing"]);
}

fn pod(id: &str, name: &str) -> cri::PodSandbox {
    let metadata = cri::PodSandboxMetadata {
        name: name.to_owned(),
        uid: format!("uid-of-{name}"),
        namespace: "default".to_owned(),
    };
    cri::PodSandbox { id: id.to_owned(), metadata: Some(metadata), ..Default::default() }
}

#[test]
fn the_sandbox_that_hangs_is_named_while_the_runtime_is_well() {
    let stage = Stage::new();
    let fake = stage.serve();
    let items = vec![pod("s1", "web"), pod("s2", "db")];
    fake.reply("ListPodSandbox", Reply::Message(cri::ListPodSandboxResponse { items }.encode_to_vec()));
    fake.reply("ListContainers", Reply::Message(Vec::new()));
    fake.reply("PodSandboxStatus", Reply::Hang);
    fake.reply("RuntimeConfig", Reply::Message(vec![0x0a, 0x02, 0x08, 0x01]));
    let images =
        cri::ListImagesResponse { images: [7, 9].map(|size_bytes| cri::Image { size_bytes }).to_vec() };
    fake.reply("ListImages", Reply::Message(images.encode_to_vec()));
    let mut source = stage.open();
    stage.until(&mut source, |reading, _| reading.relist.sandboxes.is_some());
    let pods = stage.host.pods().unwrap();
    assert_eq!(pods.names["uid-of-web"].name, "web");
    assert_eq!(pods.sandboxes["s2"], ("uid-of-db".to_owned(), true));

    stage.mover.skip(Duration::from_secs(2));
    let (reading, states) = stage.until(&mut source, |reading, _| reading.inspection.running.is_some());
    assert_eq!(names(&states), [""; 0]);
    assert_eq!(reading.inspection.running.unwrap().who(), "default/web (its sandbox)");
    stage.mover.skip(Duration::from_secs(6));
    let (_, states) = stage.until(&mut source, |_, states| names(states) == ["container_status_slow"]);
    assert_eq!(states[0].subject, nodewhy_proto::Subject::new(nodewhy_proto::SubjectKind::Container, "s1"));
    assert!(states[0].summary.starts_with("PodSandboxStatus of default/web (its sandbox) has had no answer"));
    let began = states[0].since;

    // Given up, it stays what it is, and the next one is asked.
    stage.mover.skip(Duration::from_secs(5));
    let (reading, states) = stage.until(&mut source, |reading, states| {
        names(states) == ["container_status_slow"]
            && reading.inspection.running.as_ref().is_some_and(|running| running.id == "s2")
    });
    assert_eq!((states[0].since, reading.inspection.slow[0].is_answered), (began, false));

    let info = r#"{"pid": 4711, "runtimeSpec": {"linux": {"namespaces": [{"type": "pid"}]}}}"#;
    let info = HashMap::from([("info".to_owned(), info.to_owned())]);
    let answer = cri::PodSandboxStatusResponse { info };
    fake.reply("PodSandboxStatus", Reply::Message(answer.encode_to_vec()));
    stage.until(&mut source, |reading, _| reading.inspection.round_at.is_some() && reading.images.is_some());
    stage.mover.skip(Duration::from_secs(12));
    let (reading, _) = stage.until(&mut source, |reading, states| {
        states.is_empty() && reading.inspection.slow.is_empty() && reading.cgroup_driver.is_some()
    });
    assert_eq!((reading.images, reading.images_bytes), (Some(2), Some(16)));
    assert_eq!(reading.cgroup_driver, Some("cgroupfs"));
    let networks = stage.host.sandbox_networks().unwrap();
    assert_eq!((networks["s1"].pid, networks["s1"].is_hosts), (Some(4711), Some(true)));
}

#[test]
fn an_old_connection_that_is_answered_hides_no_listener_that_is_gone() {
    let stage = Stage::new();
    let fake = Fake::start(&stage.socket(), Manner::Once);
    let mut source = stage.open();
    let (reading, states) = stage.until(&mut source, |reading, _| reading.status.has_answer());
    assert_eq!((reading.connect.state, names(&states)), ("connected", Vec::new()));
    stage.mover.skip(Duration::from_secs(10));
    let (reading, states) = stage.until(&mut source, |_, states| !states.is_empty());
    assert_eq!((reading.connect.state, names(&states)), ("refused", vec!["runtime_refused"]));
    assert!(reading.status.has_answer(), "the old connection lives");
    drop(fake);
}

#[test]
fn a_runtime_that_is_not_to_be_asked_is_absent_with_what_is_lost() {
    let root = tempfile::tempdir().unwrap();
    let places = Places { runtime_socket: Some("none".into()), ..Places::default() };
    let host = Host::new(root.path(), Clock::system(), places);
    let Err(ReadError::Absent { why }) = open(&host) else { panic!("it was opened") };
    assert!(why.contains("runtime_socket = none") && why.contains("how long a relist takes"), "{why}");
}
