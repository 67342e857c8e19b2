//! Follows one agent through a run, and keeps all that it serves.
//!
//! A thread with three loops: node and state each second; metrics, findings and readiness each five; the event stream,
//! taken up again from its cursor whenever it is cut. A question that is not answered in time is kept as a hole.

use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use http_body_util::BodyExt;
use jiff::Timestamp;
use nodewhy_tests::client::open;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::evidence::{Answer, Heard, Said, Served, Story, Stream};

/// An agent that takes longer is silent for that second.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// The agent sends a comment each ten seconds while nothing happens.
const SILENCE: Duration = Duration::from_secs(15);
/// Between two tries to open the stream.
const AGAIN: Duration = Duration::from_millis(250);

/// A watch over one agent. Dropped, it ends.
#[derive(Debug)]
pub struct Watch {
    kept: Arc<Mutex<Kept>>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

#[derive(Debug, Default)]
struct Kept {
    served: Served,
    story: Story,
}

type Shared = Arc<Mutex<Kept>>;

fn lock(kept: &Shared) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watch {
    /// Begins to follow the agent that answers on this socket.
    ///
    /// # Errors
    /// No thread can be made.
    pub fn start(socket: &Path) -> anyhow::Result<Watch> {
        let (stop, stopped) = watch::channel(false);
        let kept = Shared::default();
        let (socket, shared) = (socket.to_owned(), kept.clone());
        let thread = std::thread::Builder::new().name("watch".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(follow(&socket, &shared, stopped));
            Ok(())
        })?;
        Ok(Watch { kept, stop, thread: Some(thread) })
    }

    /// A look at what is understood of it so far.
    pub fn so_far<T>(&self, look: impl FnOnce(&Story) -> T) -> T {
        look(&lock(&self.kept).story)
    }

    /// Asks for everything once more, and ends.
    ///
    /// # Errors
    /// The watch itself failed.
    pub fn stop(mut self) -> anyhow::Result<Served> {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow!("the watch panicked"))??;
        }
        Ok(std::mem::take(&mut lock(&self.kept).served))
    }
}

async fn follow(socket: &Path, kept: &Shared, mut stopped: watch::Receiver<bool>) {
    let each_second = async {
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tick.tick().await;
            tokio::join!(node(socket, kept), state(socket, kept));
        }
    };
    let seldom = async {
        let mut tick = interval(Duration::from_secs(5));
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tick.tick().await;
            tokio::join!(metrics(socket, kept), findings(socket, kept), readyz(socket, kept));
        }
    };
    tokio::select! {
        () = each_second => {}
        () = seldom => {}
        () = listen(socket, kept) => {}
        _ = stopped.wait_for(|stopped| *stopped) => {}
    }
    tokio::join!(
        node(socket, kept),
        state(socket, kept),
        metrics(socket, kept),
        findings(socket, kept),
        readyz(socket, kept)
    );
}

async fn node(socket: &Path, kept: &Shared) {
    let answer = ask(socket, "/api/v1/node").await;
    let mut kept = lock(kept);
    kept.story.take_node(&answer);
    kept.served.node.push(answer);
}

async fn state(socket: &Path, kept: &Shared) {
    let answer = ask(socket, "/api/v1/state").await;
    let mut kept = lock(kept);
    kept.story.take_state(&answer);
    kept.served.state.push(answer);
}

async fn metrics(socket: &Path, kept: &Shared) {
    let answer = ask(socket, "/metrics").await;
    lock(kept).served.metrics.push(answer);
}

async fn findings(socket: &Path, kept: &Shared) {
    let answer = ask(socket, "/api/v1/findings").await;
    let mut kept = lock(kept);
    kept.story.take_findings(&answer);
    kept.served.findings.push(answer);
}

async fn readyz(socket: &Path, kept: &Shared) {
    let answer = ask(socket, "/readyz").await;
    lock(kept).served.readyz.push(answer);
}

/// One question. What goes wrong is its answer.
async fn ask(socket: &Path, path: &str) -> Answer {
    let asked = Timestamp::now();
    let whole = async {
        let response = open(socket, path).await?;
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.context("read the answer")?.to_bytes();
        let body = String::from_utf8(bytes.to_vec()).context("the answer is not UTF-8")?;
        anyhow::Ok(Said::Body { status, body })
    };
    let said =
        within(ANSWER_WITHIN, whole).await.unwrap_or_else(|error| Said::Hole { error: format!("{error:#}") });
    Answer { asked, received: Timestamp::now(), said }
}

async fn within<T>(limit: Duration, what: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    timeout(limit, what).await.unwrap_or_else(|_| Err(anyhow!("no answer in {} s", limit.as_secs())))
}

/// The event stream, opened again from where it was cut. Never ends.
async fn listen(socket: &Path, kept: &Shared) {
    let mut after: Option<String> = None;
    loop {
        let lost = match once(socket, kept, &mut after).await {
            Ok(()) => "the agent ended the stream".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        hear(kept, Stream::Lost { why: lost });
        tokio::time::sleep(AGAIN).await;
    }
}

fn hear(kept: &Shared, what: Stream) {
    let heard = Heard { received: Timestamp::now(), what };
    let mut kept = lock(kept);
    // Tries that fail alike stand once: the hole goes from the first to the next `Opened`.
    let again = matches!((&heard.what, kept.served.events.last()),
        (Stream::Lost { why }, Some(Heard { what: Stream::Lost { why: before }, .. })) if why == before);
    if !again {
        kept.story.take_heard(&heard);
        kept.served.events.push(heard);
    }
}

async fn once(socket: &Path, kept: &Shared, after: &mut Option<String>) -> anyhow::Result<()> {
    let path = match after {
        Some(cursor) => format!("/api/v1/events?after={cursor}"),
        None => "/api/v1/events".to_owned(),
    };
    let response = within(ANSWER_WITHIN, open(socket, &path)).await?;
    let status = response.status();
    if status.is_client_error() {
        // A cursor that this agent does not take: everything that it keeps, next time.
        *after = None;
    }
    ensure!(status.is_success(), "GET {path}: {status}");
    hear(kept, Stream::Opened { after: after.clone() });
    let (mut body, mut text) = (response.into_body(), Vec::new());
    while let Some(frame) = timeout(SILENCE, body.frame()).await.context("silent for 15 s")? {
        text.extend(frame?.data_ref().into_iter().flatten());
        // An event ends with an empty line. The agent writes one `data:` line an event.
        while let Some(end) = text.windows(2).position(|two| two == b"\n\n") {
            let whole: Vec<u8> = text.drain(..end + 2).collect();
            let whole = String::from_utf8(whole).context("the event stream is not UTF-8")?;
            let field = |name: &str| {
                let line = whole.lines().find_map(|line| line.strip_prefix(name))?;
                Some(line.strip_prefix(' ').unwrap_or(line).to_owned())
            };
            let Some(data) = field("data:") else { continue };
            let id = field("id:");
            *after = id.clone().or(after.take());
            hear(kept, Stream::Event { id, data });
        }
    }
    Ok(())
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}
