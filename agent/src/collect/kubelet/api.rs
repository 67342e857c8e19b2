//! The kubelet's own API on 10250, asked on a thread of its own with a token: its metrics (PLEG, runtime operations,
//! evictions, the life of its certificate), its health checks (the sync loop), its configuration.
//!
//! The ping on 10248 knows of no fault; these do. Without a token, what is lost is said, and the rest of the collector
//! goes on. Where no authority is named for the kubelet's certificate (it signs its own in most clusters), the token
//! is sent only where root's process listens: else any user could take the port while the kubelet is down, and the
//! token with it.

mod gathered;
mod listener;

use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use nodewhy_clock::Stamp;
use serde::Serialize;

pub use self::gathered::{Gathered, Interval};
use crate::host::fetch::{FetchError, Request, Token};
use crate::host::tls::Trust;
use crate::host::{Host, ReadError};
use crate::promtext::{Counted, Reader};

const EVERY: Duration = Duration::from_secs(15);
const CONFIG_EVERY: Duration = Duration::from_secs(10 * 60);
/// For one answer. The kubelet gathers its metrics in well under a second.
const LIMIT: Duration = Duration::from_secs(10);
/// A kubelet with 250 pods has about 1 MiB of metrics.
const MOST_METRICS_BYTES: u64 = 32 * 1024 * 1024;
const MOST_OTHER_BYTES: u64 = 1024 * 1024;
/// Metrics that are older say nothing of now.
const STALE: Duration = Duration::from_secs(60);
const STACK_BYTES: usize = 1024 * 1024;

/// Why nothing is read without a token.
const NO_TOKEN: &str = "no token for the kubelet's API is set (kubelet_token_file, a token with the rights nodes/metrics, \
                        nodes/healthz and nodes/configz; before Kubernetes 1.33 nodes/proxy, which also allows exec): \
                        PLEG as the kubelet sees it, its sync loop, evictions and the life of its certificate are not known";

/// What the kubelet's own API says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Api {
    /// Why it is not asked at all.
    pub missing: Option<String>,
    /// Where it is asked.
    pub address: Option<String>,
    /// Its metrics; `None`: none that are younger than a minute.
    pub metrics: Option<Gathered>,
    /// How old they are.
    pub metrics_age_seconds: Option<f64>,
    /// Why the newest question for them has no good answer.
    pub metrics_error: Option<Problem>,
    /// Its checks, by name, that fail; `None`: not known.
    pub failing_checks: Option<Vec<String>>,
    /// Why the newest question for them has no good answer.
    pub checks_error: Option<Problem>,
    /// Its configuration, as far as it matters here; read every ten minutes.
    pub config: Option<Config>,
    /// Why the newest question for it has no good answer.
    pub config_error: Option<Problem>,
    /// How long the question in flight has been out.
    pub pending_seconds: Option<f64>,
}

/// Why there is no good answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// `unauthorized`, `forbidden`, `status`, `refused`, `unreachable`, `timed_out`, `tls`, `broken`, `token`,
    /// `not_roots`.
    pub kind: &'static str,
    /// In words, with what to do.
    pub error: String,
}

/// What matters of `/configz`.
#[derive(Clone, Debug, PartialEq, Serialize, serde::Deserialize)]
#[serde(rename_all(deserialize = "camelCase"))]
pub struct Config {
    /// `maxPods`.
    pub max_pods: Option<u64>,
    /// `podPidsLimit`; −1 is none.
    pub pod_pids_limit: Option<i64>,
    /// `cgroupDriver`.
    pub cgroup_driver: Option<String>,
    /// `evictionHard`, as written.
    pub eviction_hard: Option<std::collections::BTreeMap<String, String>>,
    /// `runtimeRequestTimeout`, as written.
    pub runtime_request_timeout: Option<String>,
    /// `rotateCertificates`.
    pub rotate_certificates: Option<bool>,
}

#[derive(Clone, Debug, Default)]
struct Board {
    began: Option<Stamp>,
    metrics: Option<(Gathered, Stamp)>,
    metrics_error: Option<Problem>,
    checks: Option<(Vec<String>, Stamp)>,
    checks_error: Option<Problem>,
    config: Option<Config>,
    config_error: Option<Problem>,
}

/// The thread that asks. Dropped, it ends after its question.
#[derive(Debug)]
pub(super) struct Asking {
    board: Arc<Mutex<Board>>,
    _stop: mpsc::Sender<()>,
}

impl Asking {
    /// Begins to ask where a token is set.
    ///
    /// # Errors
    /// The kernel gives no thread.
    pub(super) fn start(host: &Host) -> Result<Option<Asking>, ReadError> {
        let Some(token) = host.places().kubelet_token_file.clone() else { return Ok(None) };
        let board: Arc<Mutex<Board>> = Arc::default();
        let (stop, stopped) = mpsc::channel();
        let mut asker = Asker { host: host.clone(), token, board: board.clone(), configured: None };
        std::thread::Builder::new()
            .name("kubelet-api".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                loop {
                    asker.ask();
                    if stopped.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout) {
                        return;
                    }
                }
            })
            .map_err(|error| ReadError::Other(format!("cannot start asking the kubelet: {error}")))?;
        Ok(Some(Asking { board, _stop: stop }))
    }
}

/// What is known now.
pub(super) fn told(asking: Option<&Asking>, host: &Host) -> Api {
    let board = asking.map(|asking| asking.board.lock().unwrap_or_else(PoisonError::into_inner).clone());
    let missing = board.is_none().then(|| NO_TOKEN.to_owned());
    let address = board.is_some().then(|| host.kubelet_api().to_string());
    let board = board.unwrap_or_default();
    let now = host.clock().stamp();
    let age = |at: Stamp| now.boot.saturating_sub(at.boot);
    let metrics = board.metrics.filter(|(_, at)| age(*at) <= STALE);
    let api = Api {
        missing,
        address,
        metrics_age_seconds: metrics.as_ref().map(|(_, at)| age(*at).as_secs_f64()),
        metrics: metrics.map(|(gathered, _)| gathered),
        metrics_error: board.metrics_error,
        failing_checks: board.checks.filter(|(_, at)| age(*at) <= STALE).map(|(failing, _)| failing),
        checks_error: board.checks_error,
        config: board.config,
        config_error: board.config_error,
        pending_seconds: board.began.map(|began| age(began).as_secs_f64()),
    };
    if api.missing.is_none() {
        host.suspect_pleg(api.metrics.as_ref().is_some_and(|metrics| metrics.pleg_is_suspect()));
    }
    api
}

struct Asker {
    host: Host,
    token: PathBuf,
    board: Arc<Mutex<Board>>,
    configured: Option<Duration>,
}

impl Asker {
    fn note(&self, change: impl FnOnce(&mut Board)) {
        change(&mut self.board.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn ask(&mut self) {
        let clock = self.host.clock().clone();
        self.note(|board| board.began = Some(clock.stamp()));
        let metrics = self.metrics();
        let at = clock.stamp();
        self.note(|board| match metrics {
            Ok(gathered) => {
                let before = board.metrics.take();
                let interval = before
                    .and_then(|(before, then)| gathered.since(&before, at.boot.saturating_sub(then.boot)));
                board.metrics = Some((Gathered { interval, ..gathered }, at));
                board.metrics_error = None;
            }
            Err(problem) => board.metrics_error = Some(problem),
        });
        let checks = match self.text("/healthz?verbose") {
            Ok(_) => Ok(Vec::new()),
            Err(FetchError::Status { code: 500, body, .. }) => Ok(failing(&body)),
            Err(error) => Err(Problem::of(error, "nodes/healthz")),
        };
        let at = clock.stamp();
        self.note(|board| match checks {
            Ok(failing) => (board.checks, board.checks_error) = (Some((failing, at)), None),
            Err(problem) => board.checks_error = Some(problem),
        });
        if self.configured.is_none_or(|newest| at.boot.saturating_sub(newest) >= CONFIG_EVERY) {
            let config = self.text("/configz").map_err(|error| Problem::of(error, "nodes/configz"));
            match config.and_then(|text| Config::parse(&text)) {
                Ok(config) => {
                    self.configured = Some(at.boot);
                    self.note(|board| (board.config, board.config_error) = (Some(config), None));
                }
                Err(problem) => self.note(|board| board.config_error = Some(problem)),
            }
        }
        self.note(|board| board.began = None);
    }

    fn metrics(&self) -> Result<Gathered, Problem> {
        let mut reader = Reader::new(gathered::WANTED);
        let mut gathered = Gathered::default();
        self.get("/metrics", MOST_METRICS_BYTES, &mut |piece| {
            reader.feed(piece, &mut |sample| gathered.take(sample));
        })
        .map_err(|error| Problem::of(error, "nodes/metrics"))?;
        let counted: Counted = reader.finish();
        if counted.samples == 0 {
            let error = format!("the answer of {} lines has no metric of a kubelet's", counted.lines);
            return Err(Problem { kind: "broken", error });
        }
        gathered.broken_lines = counted.broken + counted.too_long;
        gathered.pleg_age_seconds = gathered.pleg_age(self.host.clock().now());
        Ok(gathered)
    }

    fn text(&self, path: &str) -> Result<String, FetchError> {
        let mut bytes = Vec::new();
        self.get(path, MOST_OTHER_BYTES, &mut |piece| bytes.extend_from_slice(piece))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn get(
        &self,
        path: &str,
        most_bytes: u64,
        each: &mut (dyn FnMut(&[u8]) + Send),
    ) -> Result<(), FetchError> {
        let address = self.host.kubelet_api();
        let unusable = |path: PathBuf, error: String| FetchError::Token { path, error };
        let token = Token::read(&self.token)?;
        let trust = match &self.host.places().kubelet_ca_file {
            Some(path) => Trust::authorities(path),
            None => {
                listener::is_roots(&self.host, address)
                    .map_err(|why| unusable(self.token.clone(), format!("{NOT_ROOTS}{why}")))?;
                Trust::anybody()
            }
        };
        let trust = trust.map_err(|error| FetchError::Tls {
            url: format!("https://{address}{path}"),
            error: error.to_string(),
        })?;
        let request =
            Request { address, path, tls: Some(&trust), token: Some(&token), limit: LIMIT, most_bytes };
        self.host.fetch(&request, each).map(drop)
    }
}

const NOT_ROOTS: &str = "it was not sent: ";

impl Problem {
    fn of(error: FetchError, right: &str) -> Problem {
        let (kind, advice) = match &error {
            FetchError::Status { code: 401, .. } => (
                "unauthorized",
                "the token is not believed: is it expired, or the API server not reachable for the kubelet?"
                    .to_owned(),
            ),
            FetchError::Status { code: 403, .. } => {
                ("forbidden", format!("the token's account lacks the right {right}"))
            }
            FetchError::Status { .. } => ("status", String::new()),
            FetchError::Refused { .. } => ("refused", String::new()),
            FetchError::Unreachable { .. } => ("unreachable", String::new()),
            FetchError::TimedOut { .. } => ("timed_out", String::new()),
            FetchError::Tls { .. } => ("tls", "see kubelet_ca_file".to_owned()),
            FetchError::TooLong { .. } | FetchError::Broken { .. } => ("broken", String::new()),
            FetchError::Token { error, .. } if error.starts_with(NOT_ROOTS) => {
                ("not_roots", "name the authority of the kubelet's certificate (kubelet_ca_file)".to_owned())
            }
            FetchError::Token { .. } => ("token", String::new()),
        };
        let error = if advice.is_empty() { error.to_string() } else { format!("{error}; {advice}") };
        Problem { kind, error }
    }
}

impl Config {
    fn parse(text: &str) -> Result<Config, Problem> {
        #[derive(serde::Deserialize)]
        struct Whole {
            kubeletconfig: Config,
        }
        serde_json::from_str(text).map(|whole: Whole| whole.kubeletconfig).map_err(|error| Problem {
            kind: "broken",
            error: format!("cannot understand /configz: {error}"),
        })
    }
}

/// `[-]syncloop failed: reason withheld` of the API machinery's health checks; `whole` where it names none.
fn failing(body: &str) -> Vec<String> {
    let names: Vec<String> = body
        .lines()
        .filter_map(|line| line.strip_prefix("[-]")?.split_whitespace().next())
        .take(32)
        .map(str::to_owned)
        .collect();
    if names.is_empty() { vec!["whole".to_owned()] } else { names }
}

impl Api {
    /// When the kubelet last listed its containers; for dating.
    pub(super) fn pleg_last_seen(&self) -> Option<Timestamp> {
        self.metrics.as_ref()?.pleg_last_seen
    }
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    use crate::fuzz::{done, text};
    let mut gathered = gathered::Gathered::default();
    let mut reader = crate::promtext::Reader::new(gathered::WANTED);
    bytes.chunks(101).for_each(|piece| reader.feed(piece, &mut |sample| gathered.take(sample)));
    done(reader.finish());
    done(gathered.since(&gathered::Gathered::default(), std::time::Duration::from_secs(1)));
    done(gathered.pleg_age(crate::fuzz::now().wall));
    let text = text(bytes);
    done((Config::parse(&text), failing(&text)));
    listener::fuzz(bytes);
}

#[cfg(test)]
mod tests;
