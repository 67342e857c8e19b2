//! `nodewhy up`: agent and aggregator in this process, each on its own thread, and a view of them.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use nodewhy_agent::host::{Host, Places};
use nodewhy_aggregator::{AgentAddress, ClusterAddress};
use nodewhy_clock::Clock;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::client::{Client, Who};
use crate::cluster;
use crate::command::Screen;
use crate::live;
use crate::sockets::Sockets;
use crate::watch::Watch;

pub mod text;

/// The agent and the aggregator are given this long to end.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What `nodewhy up` can be told.
#[derive(Args, Clone, Debug, Default)]
pub struct Up {
    /// Watch this kubeconfig's cluster too. It is only read. Without this and --context: this machine alone
    #[arg(long, value_name = "PATH")]
    pub kubeconfig: Option<PathBuf>,
    /// Watch the cluster of this context too. It is only read
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// The node's name in the cluster [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// The folder that the machine is read from
    #[arg(long, value_name = "PATH", default_value = "/")]
    pub host_root: PathBuf,
    /// The container runtime's CRI socket [default: looked for in the usual places]
    #[arg(long, value_name = "PATH")]
    pub runtime_socket: Option<PathBuf>,
    /// The folder of CNI configurations
    #[arg(long, value_name = "PATH")]
    pub cni_conf_dir: Option<PathBuf>,
    /// A folder of CNI plugins; may be given several times
    #[arg(long, value_name = "PATH")]
    pub cni_bin_dir: Vec<PathBuf>,
    /// Where the kubelet's ping answers
    #[arg(long, value_name = "ADDRESS")]
    pub kubelet_healthz: Option<std::net::SocketAddr>,
    /// The kubelet's root folder
    #[arg(long, value_name = "PATH")]
    pub kubelet_root: Option<PathBuf>,
    /// Keep sockets and incidents in this folder, which must be yours alone
    #[arg(long, value_name = "PATH")]
    pub state_dir: Option<PathBuf>,
    /// Lines of text, also on a terminal
    #[arg(long)]
    pub plain: bool,
}

impl Up {
    fn places(&self) -> Places {
        let usual = Places::default();
        Places {
            runtime_socket: self.runtime_socket.clone(),
            cni_conf_dir: self.cni_conf_dir.clone().unwrap_or(usual.cni_conf_dir),
            cni_bin_dirs: if self.cni_bin_dir.is_empty() {
                usual.cni_bin_dirs
            } else {
                self.cni_bin_dir.clone()
            },
            kubelet_healthz: self.kubelet_healthz,
            kubelet_root: self.kubelet_root.clone(),
            ..usual
        }
    }
}

/// Runs it until it is stopped: by `q`, by a signal, or because the agent or the aggregator ended.
///
/// # Errors
/// The flags can't be met, or the agent or the aggregator failed.
pub fn run(up: &Up, screen: Screen, runtime_dir: Option<&Path>) -> anyhow::Result<()> {
    let clock = Clock::system();
    let chosen = (up.kubeconfig.is_some() || up.context.is_some())
        .then(|| cluster::choose(up.kubeconfig.as_ref(), up.context.as_deref()))
        .transpose()?;
    let node = node_name(up, &clock)?;
    let runtime = runtime()?;
    let mut signals = Signals::listen(&runtime)?;
    let sockets = Sockets::claim(up.state_dir.as_deref(), runtime_dir)?;
    let place = place(&sockets, chosen.as_ref());
    // A dumb terminal can't be drawn on.
    let on_terminal = !up.plain && screen.style.drawing && std::io::stdin().is_terminal();
    if !on_terminal {
        log_to_stderr(screen);
    }

    let (stop, stopped) = watch::channel(false);
    let (ended, mut end) = tokio::sync::mpsc::unbounded_channel();
    let agent = start("agent", &stopped, &ended, {
        let settings = nodewhy_agent::settings::Settings {
            node_name: Some(node.clone()),
            host_root: up.host_root.clone(),
            socket: Some(sockets.agent()),
            places: up.places(),
            ..Default::default()
        };
        let clock = clock.clone();
        move |stop| nodewhy_agent::run(settings, clock, stop)
    })?;
    let aggregator = start("aggregator", &stopped, &ended, {
        let settings = aggregator_settings(up, &sockets, &node);
        let clock = clock.clone();
        move |stop| nodewhy_aggregator::run(settings, clock, stop)
    })?;

    let watch = Watch {
        agent: Client::new(Who::Agent, sockets.agent()),
        aggregator: Client::new(Who::Aggregator, sockets.aggregator()),
        node,
    };
    let shown = runtime.block_on(async {
        let view = async {
            if on_terminal {
                live::run(watch, clock.clone(), place, screen.colour).await
            } else {
                text::run(watch, clock.clone(), &place, &mut std::io::stdout()).await
            }
        };
        tokio::select! {
            shown = view => shown,
            () = signals.first() => Ok(()),
            Some(Ended { who, how }) = end.recv() => Err(how.map_or_else(
                |error| error.context(format!("the {who} failed")),
                |()| anyhow!("the {who} ended unasked"),
            )),
        }
    });
    // The view is gone and the terminal restored: now the two may take their time to end, within reason.
    stop.send_replace(true);
    drop(ended);
    let both_over = async { while end.recv().await.is_some() {} };
    let in_time = runtime.block_on(clock.timeout(LAST_WORDS, both_over)).is_some();
    runtime.shutdown_background();
    if !in_time {
        // A read that hangs in the kernel cannot be ended; the process can.
        return shown
            .and(Err(anyhow!("the agent or the aggregator did not end within {} s", LAST_WORDS.as_secs())));
    }
    for thread in [agent, aggregator] {
        if thread.join().is_err() {
            return shown.and(Err(anyhow!("the agent or the aggregator panicked: this is a bug in nodewhy")));
        }
    }
    shown
}

/// The live view owns the whole terminal; lines can share it with warnings. Incidents are lines already.
fn log_to_stderr(screen: Screen) {
    let levels = Targets::new()
        .with_default(LevelFilter::WARN)
        .with_target("nodewhy_aggregator::incident", LevelFilter::ERROR)
        // kube says at each try that the API server is not there; the aggregator says it once, and that it is back.
        .with_target("kube_client", LevelFilter::OFF);
    let colour = screen.colour && std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colour);
    if tracing_subscriber::registry().with(lines.with_filter(levels)).try_init().is_err() {
        tracing::debug!("logs are already set up");
    }
}

/// Everything else stays as the aggregator has it by default.
fn aggregator_settings(up: &Up, sockets: &Sockets, node: &str) -> nodewhy_aggregator::Settings {
    let mut settings = nodewhy_aggregator::Settings::default();
    let told = &mut settings;
    told.socket = Some(sockets.aggregator());
    told.agents = vec![AgentAddress { node: node.to_owned(), socket: sockets.agent() }];
    told.cluster = (up.kubeconfig.is_some() || up.context.is_some())
        .then(|| ClusterAddress { kubeconfig: up.kubeconfig.clone(), context: up.context.clone() });
    told.store = up.state_dir.as_ref().map(|folder| folder.join("incidents.sqlite"));
    settings
}

/// How the agent or the aggregator ended.
struct Ended {
    who: &'static str,
    how: anyhow::Result<()>,
}

/// Runs one of the two on a thread and a runtime of its own: a slow disk under one delays nobody else.
fn start<F>(
    who: &'static str,
    stopped: &watch::Receiver<bool>,
    ended: &tokio::sync::mpsc::UnboundedSender<Ended>,
    program: impl FnOnce(std::pin::Pin<Box<dyn Future<Output = ()> + Send>>) -> F + Send + 'static,
) -> anyhow::Result<JoinHandle<()>>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let mut stopped = stopped.clone();
    let guard = Farewell { who, ended: ended.clone(), how: None };
    let body = move || {
        let mut guard = guard;
        let stop = Box::pin(async move {
            // A sender that is gone means the same.
            if stopped.wait_for(|stop| *stop).await.is_err() {
                tracing::debug!("nobody is left to say stop");
            }
        });
        guard.how = Some(runtime().and_then(|runtime| runtime.block_on(program(stop))));
    };
    std::thread::Builder::new()
        .name(who.to_owned())
        .spawn(body)
        .with_context(|| format!("cannot start the {who}'s thread"))
}

/// Tells how a thread ended, also when it panicked.
struct Farewell {
    who: &'static str,
    ended: tokio::sync::mpsc::UnboundedSender<Ended>,
    how: Option<anyhow::Result<()>>,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        let how = self.how.take().unwrap_or_else(|| Err(anyhow!("it panicked: this is a bug in nodewhy")));
        if self.ended.send(Ended { who: self.who, how }).is_err() {
            tracing::debug!("{} ended after everything else", self.who);
        }
    }
}

fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the async runtime")
}

/// The signals that ask this program to end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// Listens from now on. Before anything is made that must be removed again: a signal that comes in between
    /// would end the process at once.
    fn listen(runtime: &Runtime) -> anyhow::Result<Signals> {
        let _entered = runtime.enter();
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?,
            hangup: signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?,
        })
    }

    /// Ends at the first one.
    async fn first(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

/// The name that agent and aggregator agree on.
fn node_name(up: &Up, clock: &Clock) -> anyhow::Result<String> {
    if let Some(name) = &up.node_name {
        return Ok(name.clone());
    }
    let host = Host::new(&up.host_root, clock.clone(), up.places());
    let name = host.read("/proc/sys/kernel/hostname").with_context(|| {
        format!("cannot read the host's name under {}; give --node-name", up.host_root.display())
    })?;
    // As the kubelet does it: the host's name in small letters.
    let name = name.trim().to_lowercase();
    if name.is_empty() { Err(anyhow!("the host has no name: give --node-name")) } else { Ok(name) }
}

/// What is said first: which cluster, and where the sockets are.
fn place(sockets: &Sockets, chosen: Option<&cluster::Chosen>) -> Vec<String> {
    let mut lines =
        vec![chosen.map_or_else(|| "no cluster: this machine alone".to_owned(), cluster::Chosen::line)];
    let socket = sockets.aggregator();
    match &sockets.elsewhere {
        None => lines.push(format!("sockets: {} (and agent.sock beside it)", socket.display())),
        Some(why) => lines.push(format!(
            "sockets: {} (ask with: nodewhy why --aggregator {}), because {why}",
            socket.display(),
            socket.display()
        )),
    }
    lines
}
