//! The kubelet's ping: `GET /healthz` on 127.0.0.1:10248.
//!
//! It installs no checks (cmd/kubelet/app/server.go): it says `ok` while the runtime is dead and the sync loop hangs.
//! So an answer proves only that the process runs and answers; no answer proves that it does not.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use jiff::Timestamp;
use nodewhy_clock::Stamp;
use serde::Serialize;

use crate::host::Host;
use crate::host::get::{Get, Progress};

/// A read waits this long for the answer; one that takes longer wakes the collector when it comes.
const PATIENCE: Duration = Duration::from_millis(250);
/// Between two questions.
const EVERY: Duration = Duration::from_millis(900);
/// One question is given up after this long, and asked anew; the time without an answer goes on counting.
const GIVE_UP: Duration = Duration::from_secs(30);

/// What the newest question came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Healthz {
    /// Not asked yet.
    Never,
    /// 200.
    Ok {
        /// How long it took.
        took_seconds: f64,
    },
    /// Another status.
    Status {
        /// The code.
        code: u16,
        /// The beginning of its body.
        body: String,
        /// How long it took.
        took_seconds: f64,
    },
    /// Something answers, or hangs up, that does not speak HTTP.
    NotHttp {
        /// What it did.
        what: String,
    },
    /// Nobody listens.
    Refused,
    /// No answer yet. An answer within a second or two is nothing; the age grows while it hangs.
    Pending {
        /// When the oldest unanswered question was asked.
        since: Timestamp,
        /// Seconds since then.
        age_seconds: f64,
        /// Whether the kernel has connected us. If not, the queue of the socket is full: nobody accepts.
        connected: bool,
    },
    /// The question could not be asked: no loopback device, no descriptors left.
    Failed {
        /// Why.
        error: String,
    },
}

/// Asks again and again, one question at a time.
#[derive(Debug)]
pub(super) struct Probe {
    flight: Option<Flight>,
    asked: Option<Duration>,
    /// When the oldest question without an answer was asked.
    unanswered: Option<Stamp>,
    outcome: Healthz,
    /// Why the node's loopback device cannot be reached from here, once that was looked at.
    unreached: Option<Option<String>>,
}

#[derive(Debug)]
struct Flight {
    get: Get,
    begun: Duration,
}

impl Probe {
    pub(super) fn new() -> Probe {
        Probe { flight: None, asked: None, unanswered: None, outcome: Healthz::Never, unreached: None }
    }

    /// Becomes readable when the answer is here.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.flight.as_ref().map(|flight| flight.get.fd())
    }

    /// Goes on with the question that is out, or asks one; waits for [`PATIENCE`] at most. `true` for a new socket.
    pub(super) fn advance(&mut self, host: &Host) -> (Healthz, bool) {
        let clock = host.clock();
        let now = clock.stamp();
        // A wake (a process's exit, an answer) is no reason to ask twice a second.
        let due = self.asked.is_none_or(|asked| now.boot.saturating_sub(asked) >= EVERY);
        let mut fresh = false;
        if self.flight.is_none() && due {
            self.asked = Some(now.boot);
            let address = host.kubelet_healthz();
            // An agent stays in its network namespace: it is looked at once.
            let unreached = self.unreached.get_or_insert_with(|| {
                let reached = host.reaches(address.ip(), "the kubelet's ping");
                reached.err().map(|error| error.to_string())
            });
            if let Some(error) = unreached.clone().filter(|_| address.ip().is_loopback()) {
                self.end(Progress::Failed { error }, Duration::ZERO);
                return (self.outcome.clone(), false);
            }
            match Get::begin(address, "/healthz") {
                Ok(get) => {
                    self.flight = Some(Flight { get, begun: now.boot });
                    self.unanswered.get_or_insert(now);
                    fresh = true;
                }
                Err(ended) => self.end(ended, Duration::ZERO),
            }
        }
        if let Some(flight) = &mut self.flight {
            let begun = flight.begun;
            // Only a question that was just asked is waited for; an old one has had its time.
            let patience = if fresh { PATIENCE } else { Duration::ZERO };
            match flight.get.advance(clock, patience) {
                Progress::Waiting { connected } => {
                    let now = clock.stamp();
                    let since = *self.unanswered.get_or_insert(now);
                    self.outcome = Healthz::Pending {
                        since: since.wall,
                        age_seconds: now.boot.saturating_sub(since.boot).as_secs_f64(),
                        connected,
                    };
                    if now.boot.saturating_sub(begun) >= GIVE_UP {
                        self.flight = None;
                    }
                }
                ended => {
                    self.flight = None;
                    self.end(ended, clock.since_boot().saturating_sub(begun));
                }
            }
        }
        (self.outcome.clone(), fresh)
    }

    fn end(&mut self, ended: Progress, took: Duration) {
        self.unanswered = None;
        let took_seconds = took.as_secs_f64();
        self.outcome = match ended {
            Progress::Answered { code: 200, .. } => Healthz::Ok { took_seconds },
            Progress::Answered { code, body } => Healthz::Status { code, body, took_seconds },
            Progress::NotHttp { what } => Healthz::NotHttp { what },
            Progress::Refused => Healthz::Refused,
            Progress::Failed { error } => Healthz::Failed { error },
            Progress::Waiting { .. } => return,
        };
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use nodewhy_clock::{Clock, Mover};

    use super::*;
    use crate::host::Places;

    // The whole response, recorded from kubelet 1.36.2.
    const OK: &[u8] = include_bytes!("../../../fixtures/kubelet/kubelet-1.36.2-healthz-http.txt");

    fn host(listener: &TcpListener) -> (Host, Mover) {
        let (clock, mover) = Clock::skippable();
        let places = Places { kubelet_healthz: Some(listener.local_addr().unwrap()), ..Places::default() };
        (Host::new("/", clock, places), mover)
    }

    /// Answers every request with these bytes, until the test ends.
    fn serve(answer: &'static [u8]) -> (Host, Mover) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let pair = host(&listener);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = [0; 1024];
                let count = stream.read(&mut request).unwrap();
                assert!(request[..count].starts_with(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:"));
                stream.write_all(answer).unwrap();
            }
        });
        pair
    }

    #[test]
    fn the_recorded_answer_is_ok_and_the_next_question_waits_its_turn() {
        let (host, mover) = serve(OK);
        let mut probe = Probe::new();
        let (outcome, fresh) = probe.advance(&host);
        assert!(matches!(outcome, Healthz::Ok { took_seconds } if took_seconds < 0.25), "{outcome:?}");
        assert!(fresh && probe.fd().is_none());
        assert!(!probe.advance(&host).1, "not twice within a second");
        mover.skip(Duration::from_secs(1));
        assert!(probe.advance(&host).1);
    }

    #[test]
    fn other_answers() {
        let (server, _mover) =
            serve(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 15\r\n\r\nsyncloop failed");
        let (outcome, _) = Probe::new().advance(&server);
        assert!(
            matches!(&outcome, Healthz::Status { code: 500, body, .. } if body == "syncloop failed"),
            "{outcome:?}"
        );
        for garbage in [&b"\x15\x03\x01\x00\x02\x02\x50"[..], b"HTTP/1.1 2", b"", b"200 OK\r\n\r\n"] {
            let (host, _mover) = serve(garbage);
            let (outcome, _) = Probe::new().advance(&host);
            assert!(matches!(outcome, Healthz::NotHttp { .. }), "{garbage:?}: {outcome:?}");
        }
    }

    #[test]
    fn nobody_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (host, _mover) = host(&listener);
        drop(listener);
        assert_eq!(Probe::new().advance(&host).0, Healthz::Refused);
    }

    #[test]
    fn the_loopback_device_of_another_namespace_says_nothing_of_the_kubelet() {
        let root = tempfile::tempdir().unwrap();
        crate::host::process::made::other_network(root.path());
        let host = Host::new(root.path(), Clock::system(), Places::default());
        let (outcome, _) = Probe::new().advance(&host);
        assert!(
            matches!(&outcome, Healthz::Failed { error } if error.contains("hostNetwork")),
            "{outcome:?}"
        );
    }

    #[test]
    fn no_answer_grows_old_with_one_question_in_flight_and_an_answer_ends_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let (host, mover) = host(&listener);
        let mut probe = Probe::new();
        let age = |outcome: Healthz| match outcome {
            Healthz::Pending { age_seconds, connected: true, .. } => age_seconds,
            other => panic!("{other:?}"),
        };
        let begun = host.clock().since_boot();
        let first = age(probe.advance(&host).0);
        assert!((0.2..2.0).contains(&first), "{first}");
        assert!(host.clock().since_boot() - begun < Duration::from_secs(2), "a read does not hang");
        for _ in 0..20 {
            mover.skip(Duration::from_secs(1));
            probe.advance(&host);
        }
        assert!(age(probe.advance(&host).0) >= 20.0);
        let (mut asked, _) = listener.accept().unwrap();
        assert!(listener.accept().is_err(), "one question was asked, not twenty");
        // Past the time when a question is given up, the next one carries the age on.
        mover.skip(Duration::from_secs(15));
        probe.advance(&host);
        probe.advance(&host);
        assert!(age(probe.advance(&host).0) >= 35.0);
        let (mut second, _) = listener.accept().unwrap();
        assert!(asked.read_to_end(&mut Vec::new()).unwrap() > 0);
        second.set_nonblocking(false).unwrap();
        second.write_all(OK).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert!(matches!(probe.advance(&host).0, Healthz::Ok { took_seconds } if took_seconds < 30.0));
    }
}
