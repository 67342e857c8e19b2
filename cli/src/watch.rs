//! What the live view and the lines are made of: everything that agent and aggregator say, asked for each second,
//! and at once when the agent's event stream moves.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use jiff::Timestamp;
use nodewhy_clock::Clock;
use nodewhy_proto::{Finding, Incident, NodeInfo, NodeSummary, Outcome, Revision, Severity, State, Verdict};
use tokio::sync::{Notify, watch};

use crate::client::{Client, ClientError, segment};
use crate::render::why::{recovering, telling};

/// Time between two looks while nothing happens.
const EVERY: Duration = Duration::from_secs(1);
/// Time between two looks just after something happened: the verdict follows the finding.
const EVERY_BUSY: Duration = Duration::from_millis(200);
/// How many such looks.
const BUSY_LOOKS: u32 = 15;

/// What was asked for, or why it is not there.
pub type Asked<T> = Result<T, String>;

/// Everything, at one instant.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When it was asked for.
    pub at: Timestamp,
    /// Which node, and what runs on it.
    pub node: Asked<NodeInfo>,
    /// The collectors.
    pub state: Asked<State>,
    /// The findings that hold, and those that ended within 15 minutes.
    pub findings: Asked<Vec<Finding>>,
    /// The node as the aggregator knows it.
    pub summary: Asked<NodeSummary>,
    /// The newest incident, with its newest revision alone.
    pub incident: Asked<Option<Incident>>,
    /// The verdict concluded now, asked for while no incident is open, or one that may be about to end.
    pub concluded: Option<Verdict>,
}

impl Snapshot {
    /// The open incident and its newest revision.
    pub fn open_incident(&self) -> Option<(&Incident, &Revision)> {
        let incident = self.incident.as_ref().ok()?.as_ref().filter(|incident| incident.ended.is_none())?;
        Some((incident, telling(incident)?))
    }

    /// The verdict to show: the open incident's, or the one concluded now.
    pub fn verdict(&self) -> Option<&Verdict> {
        self.open_incident().map(|(_, revision)| &revision.verdict).or(self.concluded.as_ref())
    }

    /// What is better by now, while the incident is still open.
    pub fn recovering(&self) -> Option<&'static str> {
        self.open_incident().and(self.concluded.as_ref()).and_then(recovering)
    }

    /// Whether every collector was tried once.
    pub fn is_complete(&self) -> bool {
        self.node.is_ok()
            && self.state.as_ref().is_ok_and(|state| {
                !state.collectors.is_empty()
                    && state.collectors.values().all(|collector| collector.outcome != Outcome::Unknown)
            })
    }
}

/// The two that are asked, and about which node.
#[derive(Clone, Debug)]
pub struct Watch {
    /// The agent of this machine.
    pub agent: Client,
    /// The aggregator.
    pub aggregator: Client,
    /// The node's name.
    pub node: String,
}

impl Watch {
    /// Asks for everything, all at once.
    pub async fn look(&self, now: Timestamp) -> Snapshot {
        let node = segment(&self.node);
        let paths = [
            format!("/api/v1/nodes/{node}"),
            format!("/api/v1/incidents?node={node}"),
            format!("/api/v1/nodes/{node}/why"),
        ];
        let [summary, incidents, why] = &paths;
        let (node, state, findings, summary, incidents) = tokio::join!(
            self.agent.get("/api/v1/node"),
            self.agent.get("/api/v1/state"),
            self.agent.get("/api/v1/findings"),
            self.aggregator.get(summary),
            self.aggregator.get::<Vec<Incident>>(incidents),
        );
        let incident = incidents.map_err(words).map(|incidents| incidents.into_iter().next());
        let open = matches!(&incident, Ok(Some(incident)) if incident.ended.is_none());
        // Nothing is lost when this fails: the lines above say already that the aggregator can't be asked.
        let findings: Asked<Vec<Finding>> = findings.map_err(words);
        // A warning alone does not keep a node from being well.
        let is_critical = |finding: &Finding| finding.is_active() && finding.severity == Severity::Critical;
        let sick = findings.as_ref().is_ok_and(|findings| findings.iter().any(is_critical));
        let ask = incident.is_ok() && !(open && sick);
        let concluded = if ask { self.aggregator.get(why).await.ok() } else { None };
        Snapshot {
            at: now,
            node: node.map_err(words),
            state: state.map_err(words),
            findings,
            summary: summary.map_err(words),
            incident,
            concluded,
        }
    }

    /// Looks again and again, and sends what it sees, until nobody listens.
    pub async fn keep_looking(self, clock: Clock, seen: watch::Sender<Option<Snapshot>>) {
        let moved = Arc::new(Notify::new());
        let events = tokio::spawn(wake_on_events(self.agent.clone(), moved.clone(), clock.clone()));
        let mut busy = BUSY_LOOKS;
        while !seen.is_closed() {
            let snapshot = self.look(clock.now()).await;
            seen.send_replace(Some(snapshot));
            let pause = if busy > 0 { EVERY_BUSY } else { EVERY };
            busy = busy.saturating_sub(1);
            if clock.timeout(pause, moved.notified()).await.is_some() {
                busy = BUSY_LOOKS;
                // A storm of events is one look, not thousands.
                clock.sleep(Duration::from_millis(50)).await;
            }
        }
        events.abort();
    }
}

fn words(error: ClientError) -> String {
    error.to_string()
}

/// Follows the agent's event stream, only to know that something happened.
async fn wake_on_events(agent: Client, moved: Arc<Notify>, clock: Clock) {
    loop {
        if let Ok(mut body) = agent.stream("/api/v1/events").await {
            while let Some(Ok(frame)) = body.frame().await {
                // A line that begins with a colon is only a sign of life.
                if frame.data_ref().is_some_and(|data| !data.starts_with(b":")) {
                    moved.notify_one();
                }
            }
        }
        clock.sleep(EVERY).await;
    }
}
