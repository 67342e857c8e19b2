//! The parts of an episode: containerd, the kubelet's stand-in, the agent, the API server, the aggregator, and one
//! clock for all of nodewhy and the recording.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use jiff::{SignedDuration, Timestamp};
use nodewhy_agent::host::Places;
use nodewhy_clock::{Clock, Mover};
use nodewhy_proto::{ConditionStatus, Finding, Incident, NodeSummary, Severity, State, Verdict};
use tempfile::TempDir;

use crate::apiserver::ApiServer;
use crate::client::get_json;
use crate::containerd::{CNI_BIN_DIR, Containerd};
use crate::kubelet::Kubelet;
use crate::programs::Program;
use crate::recording::{Fault, Recording};

/// Time is skipped in steps of this, with a pause for the programs to keep up. One long skip would make calls that
/// were in flight look as long as the skip, and healthy answers late.
const STEP: Duration = Duration::from_secs(1);

/// A collector may be this much older than its cadence before time is skipped on. The agent's collectors wait in
/// real time between two reads, and see a skip at their next one.
const BEHIND_SECONDS: f64 = 4.0;

/// From the start of the API server to the fault, at least: the aggregator has to see the healthy node first.
const LEAD_IN: SignedDuration = SignedDuration::from_secs(6);

/// Everything that an episode plays with.
#[derive(Debug)]
pub struct Scene {
    /// The clock of agent, aggregator and recording.
    pub clock: Clock,
    /// The recording, moved so that its fault falls on the real one.
    pub recording: Recording,
    /// The API server that plays it.
    pub api: ApiServer,
    /// The real runtime.
    pub containerd: Containerd,
    /// The kubelet's stand-in.
    pub kubelet: Kubelet,
    mover: Mover,
    aggregator: Program,
    agent: Program,
    // Last: the programs' sockets are in it.
    _folder: TempDir,
}

impl Scene {
    /// Sets it up, and waits until agent and aggregator see a healthy node.
    ///
    /// # Errors
    /// A part does not start, or the node is not healthy in time.
    pub async fn set(standin: &Path, version: &str, fault: Fault) -> anyhow::Result<Scene> {
        let folder = tempfile::Builder::new().prefix("nodewhy-scene-").tempdir()?;
        let recording = Recording::load(version, fault)?;
        let containerd = Containerd::start()?;
        let kubelet = Kubelet::start(standin, version, ([127, 0, 0, 1], 10248).into())?;
        let (clock, mover) = Clock::skippable();

        let settings = nodewhy_agent::settings::Settings {
            node_name: Some(recording.node.clone()),
            socket: Some(folder.path().join("agent.sock")),
            places: places(&containerd, &kubelet),
            ..Default::default()
        };
        let mut agent = Program::agent(settings, clock.clone())?;
        agent.wait_ready(Duration::from_secs(20)).await?;
        well(&agent, Duration::from_secs(20)).await?;

        // The recorded stretch before the fault may be shorter than the aggregator needs to start.
        let before = recording.fault.duration_since(recording.begin()).max(LEAD_IN);
        let recording = recording.moved_to(clock.now() + before);
        let api = ApiServer::start(&recording, clock.clone())?;
        let kubeconfig = folder.path().join("kubeconfig");
        std::fs::write(&kubeconfig, api.kubeconfig())?;
        let settings = nodewhy_aggregator::Settings {
            store: Some(folder.path().join("incidents.sqlite")),
            ..nodewhy_aggregator::Settings::default()
        };
        let settings = nodewhy_aggregator::Settings {
            socket: Some(folder.path().join("aggregator.sock")),
            agents: vec![nodewhy_aggregator::AgentAddress {
                node: recording.node.clone(),
                socket: agent.socket().to_owned(),
            }],
            cluster: Some(nodewhy_aggregator::ClusterAddress { kubeconfig: Some(kubeconfig), context: None }),
            ..settings
        };
        let mut aggregator = Program::aggregator(settings, clock.clone())?;
        aggregator.wait_ready(Duration::from_secs(20)).await?;
        let mut scene =
            Scene { clock, recording, api, containerd, kubelet, mover, aggregator, agent, _folder: folder };
        scene.seen_ready().await?;
        Ok(scene)
    }

    /// Waits until the aggregator knows that the node is Ready and that its agent answers.
    async fn seen_ready(&mut self) -> anyhow::Result<()> {
        loop {
            let summary = self.summary().await;
            if let Ok(summary) = &summary
                && summary.ready == Some(ConditionStatus::True)
                && summary.agent == "answers"
            {
                return Ok(());
            }
            if self.clock.now() >= self.recording.fault {
                bail!("the aggregator did not see a Ready node and its agent before the fault: {summary:?}");
            }
            self.check()?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Makes the fault, for real, as the recording's lab did; when it took hold.
    ///
    /// # Errors
    /// It can't be made.
    pub fn inject(&mut self, fault: Fault) -> anyhow::Result<Timestamp> {
        let began = match fault {
            Fault::Pleg => {
                self.containerd.sigstop()?;
                self.clock.now()
            }
            // systemctl stop: SIGTERM; the kubelet then found no socket.
            Fault::RuntimeDown => {
                self.containerd.sigterm()?;
                self.clock.now()
            }
            Fault::KubeletKilled => {
                self.kubelet.kill()?;
                self.clock.now()
            }
            // Moved away, and containerd restarted: it keeps what it has loaded otherwise.
            Fault::CniUninitialized => {
                self.containerd.remove_cni_config()?;
                let moved = self.clock.now();
                self.containerd.sigterm()?;
                self.containerd.launch()?;
                moved
            }
            Fault::SystemOom | Fault::PodOom => bail!("this fault is fed from the recorded kernel log"),
        };
        Ok(began)
    }

    /// Undoes the fault, for real.
    ///
    /// # Errors
    /// It can't be undone.
    pub fn undo(&mut self, fault: Fault) -> anyhow::Result<()> {
        match fault {
            Fault::Pleg => self.containerd.sigcont(),
            Fault::RuntimeDown => self.containerd.launch(),
            Fault::KubeletKilled => self.kubelet.launch(),
            Fault::CniUninitialized => self.containerd.write_cni_config(),
            Fault::SystemOom | Fault::PodOom => Ok(()),
        }
    }

    /// Lets time pass until `at`, skipping what need not be waited for.
    ///
    /// # Errors
    /// Agent or aggregator ended, or does not keep up.
    pub async fn run_until(&mut self, at: Timestamp) -> anyhow::Result<()> {
        while let Ok(left) = Duration::try_from(at.duration_since(self.clock.now()))
            && !left.is_zero()
        {
            self.mover.skip(left.min(STEP));
            self.settle().await?;
        }
        Ok(())
    }

    /// Waits until no collector that reads is far behind, for two real seconds at most.
    async fn settle(&mut self) -> anyhow::Result<()> {
        let began = std::time::Instant::now();
        loop {
            tokio::time::sleep(Duration::from_millis(25)).await;
            self.check()?;
            let state: State = get_json(self.agent.socket(), "/api/v1/state").await?;
            let behind = state.collectors.values().any(|collector| {
                let due = collector.every_seconds + BEHIND_SECONDS;
                collector.outcome.is_read() && collector.age_seconds.is_none_or(|age| age > due)
            });
            if !behind || began.elapsed() > Duration::from_secs(2) {
                return Ok(());
            }
        }
    }

    /// Lets time pass until the list of incidents shows what is waited for.
    ///
    /// # Errors
    /// `limit` of the clock's time has passed.
    pub async fn wait_for<T>(
        &mut self,
        what: &str,
        limit: Duration,
        look: impl Fn(&[Incident]) -> Option<T>,
    ) -> anyhow::Result<T> {
        let until = self.clock.now() + limit;
        loop {
            if let Some(found) = look(&self.incidents().await?) {
                return Ok(found);
            }
            ensure!(self.clock.now() < until, "waited {limit:?} in vain for {what}");
            let next = self.clock.now() + STEP;
            self.run_until(next).await?;
        }
    }

    /// The node's incidents, newest first, each with its newest revision.
    ///
    /// # Errors
    /// The aggregator does not answer.
    pub async fn incidents(&self) -> anyhow::Result<Vec<Incident>> {
        get_json(self.aggregator.socket(), &format!("/api/v1/incidents?node={}", self.recording.node)).await
    }

    /// One incident with all its revisions.
    ///
    /// # Errors
    /// The aggregator does not answer, or does not know it.
    pub async fn whole(&self, id: &str) -> anyhow::Result<Incident> {
        get_json(self.aggregator.socket(), &format!("/api/v1/incidents/{id}")).await
    }

    /// The node as the aggregator sees it.
    ///
    /// # Errors
    /// The aggregator does not answer, or does not know the node.
    pub async fn summary(&self) -> anyhow::Result<NodeSummary> {
        get_json(self.aggregator.socket(), &format!("/api/v1/nodes/{}", self.recording.node)).await
    }

    /// The verdict, concluded now.
    ///
    /// # Errors
    /// The aggregator does not answer, or does not know the node.
    pub async fn why(&self) -> anyhow::Result<Verdict> {
        get_json(self.aggregator.socket(), &format!("/api/v1/nodes/{}/why", self.recording.node)).await
    }

    /// The agent's socket.
    pub fn agent(&self) -> &Path {
        self.agent.socket()
    }

    /// That agent and aggregator still run.
    ///
    /// # Errors
    /// One ended.
    pub fn check(&mut self) -> anyhow::Result<()> {
        self.agent.check()?;
        self.aggregator.check()
    }

    /// Ends the programs.
    ///
    /// # Errors
    /// One ended with an error.
    pub fn end(self) -> anyhow::Result<()> {
        self.aggregator.stop()?;
        self.agent.stop()
    }

    /// What agent and aggregator say now, for an error message.
    pub async fn describe(&self) -> String {
        let mut lines = vec![format!("now: {}, the fault: {}", self.clock.now(), self.recording.fault)];
        match get_json::<State>(self.agent.socket(), "/api/v1/state").await {
            Ok(state) => lines.extend(state.collectors.iter().map(|(name, collector)| {
                let why = collector.outcome.why().unwrap_or_default();
                format!("  {name}: {} {why} (age {:?} s)", collector.outcome.word(), collector.age_seconds)
            })),
            Err(error) => lines.push(format!("  agent: {error:#}")),
        }
        match get_json::<Vec<Finding>>(self.agent.socket(), "/api/v1/findings").await {
            Ok(findings) => lines.extend(findings.iter().map(|finding| {
                format!(
                    "  {} {:?} to {:?}: {}",
                    finding.finding, finding.began, finding.ended, finding.summary
                )
            })),
            Err(error) => lines.push(format!("  findings: {error:#}")),
        }
        match self.incidents().await {
            Ok(incidents) => {
                for incident in incidents {
                    lines.push(format!("  incident {} ended {:?}", incident.id, incident.ended));
                    let revisions =
                        self.whole(&incident.id).await.map(|whole| whole.revisions).unwrap_or_default();
                    lines.extend(revisions.iter().map(|revision| {
                        let roots: Vec<&str> =
                            revision.verdict.roots.iter().map(|root| root.cause.as_str()).collect();
                        let (at, what) = (revision.at, &revision.verdict.conclusion);
                        format!("    {at} {}: {what:?} {roots:?}", revision.changed_by)
                    }));
                }
            }
            Err(error) => lines.push(format!("  aggregator: {error:#}")),
        }
        lines.join("\n")
    }
}

/// Where the test's node has its parts.
pub(super) fn places(containerd: &Containerd, kubelet: &Kubelet) -> Places {
    Places {
        runtime_socket: Some(containerd.socket()),
        cni_conf_dir: containerd.cni_conf_dir(),
        cni_bin_dirs: vec![CNI_BIN_DIR.into()],
        kubelet_healthz: Some(kubelet.address()),
        kubelet_root: Some(kubelet.root()),
        ..Places::default()
    }
}

/// Waits, in real time, until no critical finding holds and runtime, kubelet and CNI were read.
async fn well(agent: &Program, limit: Duration) -> anyhow::Result<()> {
    let began = std::time::Instant::now();
    loop {
        let state: State = get_json(agent.socket(), "/api/v1/state").await?;
        let findings: Vec<Finding> = get_json(agent.socket(), "/api/v1/findings").await?;
        let unread: Vec<&str> = ["runtime", "kubelet", "cni"]
            .into_iter()
            .filter(|name| !state.collectors.get(*name).is_some_and(|collector| collector.outcome.is_read()))
            .collect();
        let critical: Vec<&Finding> = findings
            .iter()
            .filter(|finding| finding.is_active() && finding.severity == Severity::Critical)
            .collect();
        if unread.is_empty() && critical.is_empty() {
            return Ok(());
        }
        if began.elapsed() > limit {
            return Err(anyhow::anyhow!("unread: {unread:?}; critical: {critical:?}"))
                .context(format!("the agent does not see a healthy node after {limit:?}"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
