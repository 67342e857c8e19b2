//! One fault from healthy to healthy: a real fault under a real agent, beside what a real API server said of it.

mod scene;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use jiff::Timestamp;
use nodewhy_diagnosis::NOT_READY;
use nodewhy_proto::{Conclusion, ConditionStatus, Incident, Verdict};

use crate::recording::Fault;
pub use scene::Scene;

/// How much earlier than the API server nodewhy knew.
#[derive(Clone, Debug)]
pub struct Lead {
    /// The kubelet's version.
    pub version: String,
    /// The fault.
    pub fault: Fault,
    /// The root cause that was named.
    pub cause: String,
    /// Seconds from the real fault to the verdict.
    pub verdict_seconds: f64,
    /// Seconds from the recorded fault to the recorded loss of Ready.
    pub lost_ready_seconds: f64,
}

impl Lead {
    /// As a table of one row.
    pub fn table(&self) -> String {
        format!(
            "{:<18} {:<8} {:<20} {:>16} {:>17} {:>8}\n{:<18} {:<8} {:<20} {:>14.1} s {:>15.1} s {:>6.1} s",
            "fault",
            "kubelet",
            "verdict",
            "fault to verdict",
            "fault to NotReady",
            "lead",
            self.fault.folder(),
            self.version,
            self.cause,
            self.verdict_seconds,
            self.lost_ready_seconds,
            self.lost_ready_seconds - self.verdict_seconds,
        )
    }
}

/// Plays one episode: healthy, the real fault, the verdict before the recorded loss of Ready, the loss, the cure, the end.
///
/// # Errors
/// Anything went otherwise; the error carries what agent and aggregator said at that moment.
pub async fn play(standin: &Path, version: &str, fault: Fault, cause: &str) -> anyhow::Result<Lead> {
    let mut scene = Scene::set(standin, version, fault).await?;
    match act(&mut scene, version, fault, cause).await {
        Ok(lead) => {
            scene.end()?;
            Ok(lead)
        }
        Err(error) => {
            let seen = scene.describe().await;
            Err(error.context(format!("{} on kubelet {version}\n{seen}", fault.folder())))
        }
    }
}

async fn act(scene: &mut Scene, version: &str, fault: Fault, cause: &str) -> anyhow::Result<Lead> {
    // A verdict that was there before the fault detects nothing.
    scene.run_until(scene.recording.fault).await?;
    ensure!(open(&scene.incidents().await?).is_none(), "there was an incident before the fault");
    let why = scene.why().await?;
    ensure!(why.conclusion == Conclusion::Healthy, "before the fault the node was not healthy: {why:?}");

    let lost = scene.recording.lost_ready().context("the recording never loses Ready")?;
    let began = scene.inject(fault)?;
    ensure!(began < lost, "the machine is too slow: Ready was lost before the fault could be made");
    let verdict_at = verdict(scene, began, lost, cause).await?;

    // Ready is lost: the same root, and a chain that has reached its end.
    scene.run_until(lost + Duration::from_secs(2)).await?;
    let seen = scene
        .wait_for("the loss of Ready in the incident", Duration::from_secs(20), |incidents| {
            open(incidents)
                .filter(|incident| incident.lost_ready.is_some() && ends_not_ready(incident))
                .cloned()
        })
        .await?;
    scene.run_until(scene.recording.heal).await?;
    let before_cure = scene.whole(&seen.id).await?;
    let held = before_cure.revisions.iter().filter(|revision| revision.at >= verdict_at);
    for revision in held {
        ensure!(
            root(&revision.verdict) == Some(cause),
            "revision {} ({}) names another root: {:?}",
            revision.revision,
            revision.changed_by,
            root(&revision.verdict)
        );
    }

    // Undone: Ready comes back, and the incident ends.
    scene.undo(fault)?;
    scene.run_until(scene.recording.end).await?;
    let ended = scene
        .wait_for("the end of the incident", Duration::from_secs(180), |incidents| {
            incidents.iter().find(|incident| incident.id == seen.id && incident.ended.is_some()).cloned()
        })
        .await?;
    ensure!(ended.ended > ended.lost_ready, "it ended before Ready was lost: {ended:?}");
    let summary = scene.summary().await?;
    ensure!(summary.ready == Some(ConditionStatus::True), "Ready is {:?} at the end", summary.ready);
    ensure!(scene.api.refused().is_empty(), "the API server was written to: {:?}", scene.api.refused());

    Ok(Lead {
        version: version.to_owned(),
        fault,
        cause: cause.to_owned(),
        verdict_seconds: verdict_at.duration_since(began).as_secs_f64(),
        lost_ready_seconds: scene.recording.lost_ready_seconds().context("the recording keeps Ready")?,
    })
}

/// Waits, in real time, for the verdict, and no longer than until Ready is lost; when it was concluded.
async fn verdict(
    scene: &mut Scene,
    began: Timestamp,
    lost: Timestamp,
    cause: &str,
) -> anyhow::Result<Timestamp> {
    let newest = loop {
        let incidents = scene.incidents().await?;
        if let Some(incident) = open(&incidents)
            && incident.verdict().and_then(root) == Some(cause)
        {
            break incident.id.clone();
        }
        if scene.clock.now() >= lost {
            let last = open(&incidents).and_then(|incident| incident.verdict().and_then(root));
            bail!("no verdict {cause} before Ready was lost in the recording; last: {last:?}");
        }
        scene.check()?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let incident = scene.whole(&newest).await?;
    let first = incident.revisions.iter().find(|revision| root(&revision.verdict) == Some(cause));
    let at = first.context("the incident lost its revision")?.at;
    ensure!(at >= began, "the verdict ({at}) is older than the fault ({began})");
    ensure!(at < lost, "the verdict ({at}) is no earlier than the recorded loss of Ready ({lost})");
    Ok(at)
}

fn open(incidents: &[Incident]) -> Option<&Incident> {
    incidents.iter().find(|incident| incident.ended.is_none())
}

/// The surest root cause.
pub fn root(verdict: &Verdict) -> Option<&str> {
    verdict.roots.first().map(|root| root.cause.as_str())
}

fn ends_not_ready(incident: &Incident) -> bool {
    incident.verdict().is_some_and(|verdict| {
        matches!(verdict.ready, Some(ConditionStatus::False | ConditionStatus::Unknown))
            && verdict
                .roots
                .first()
                .and_then(|root| root.chain.last())
                .is_some_and(|step| step.id == NOT_READY && step.happened)
    })
}
