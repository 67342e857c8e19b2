//! Breaks a real container runtime three times, and shows the verdict and the seconds that it took.
//!
//! containerd, the agent and the aggregator run in process, mount and network namespaces of their own: nothing of this
//! machine is touched, and everything ends with the demo, however it ends.

#![expect(clippy::disallowed_methods, reason = "it starts processes and measures seconds")]

use std::path::PathBuf;
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nodewhy_agent::host::Places;
use nodewhy_clock::Clock;
use nodewhy_proto::{Conclusion, Verdict};
use nodewhy_tests::alone::enter;
use nodewhy_tests::client::get_json;
use nodewhy_tests::containerd::{CNI_BIN_DIR, Containerd};
use nodewhy_tests::episode::root;
use nodewhy_tests::programs::Program;
use nodewhy_tests::recording::{Fault, Recording};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

/// The node's name in the demo.
const NODE: &str = "demo";

/// One way to break the runtime.
struct Act {
    title: &'static str,
    /// The same in the table at the end.
    short: &'static str,
    make: fn(&mut Containerd) -> anyhow::Result<()>,
    undo: fn(&mut Containerd) -> anyhow::Result<()>,
    cause: &'static str,
    /// The recording that says when Kubernetes itself noticed.
    recorded: Fault,
}

const ACTS: [Act; 3] = [
    Act {
        title: "containerd is stopped with SIGSTOP: it is there, and hangs",
        short: "containerd stopped (SIGSTOP)",
        make: |containerd| containerd.sigstop(),
        undo: |containerd| containerd.sigcont(),
        cause: "containerd_hung",
        recorded: Fault::Pleg,
    },
    Act {
        title: "containerd is killed with SIGKILL",
        short: "containerd killed (SIGKILL)",
        make: Containerd::sigkill,
        undo: Containerd::launch,
        cause: "containerd_dead",
        recorded: Fault::RuntimeDown,
    },
    Act {
        title: "the CNI configuration is removed",
        short: "CNI configuration removed",
        make: |containerd| containerd.remove_cni_config(),
        undo: |containerd| containerd.write_cni_config(),
        cause: "cni_config_missing",
        recorded: Fault::CniUninitialized,
    },
];

/// The kubelet that the recordings are taken of.
const RECORDED: &str = "1.36.2";

/// How long a verdict may take. Kubernetes needs longer for each of the three.
const LIMIT: Duration = Duration::from_secs(15);

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("demo: {error:#}");
        ExitCode::FAILURE
    })
}

fn run() -> anyhow::Result<ExitCode> {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
    // Namespaces first: they are a thread's, and this is still the only one.
    match enter(std::env::args_os().skip(1))? {
        Some(child) => runtime()?.block_on(outside(child)),
        None => runtime()?.block_on(async {
            let (mut interrupt, mut terminate) =
                (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
            tokio::select! {
                right = inside() => Ok(if right? { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
                _ = interrupt.recv() => Ok(stopped(Signal::SIGINT)),
                _ = terminate.recv() => Ok(stopped(Signal::SIGTERM)),
            }
        }),
    }
}

/// The exit code that a shell gives a program that a signal ended.
fn stopped(by: Signal) -> ExitCode {
    println!("Stopped by {by}: everything that was started is ended and removed.");
    ExitCode::from(if by == Signal::SIGINT { 130 } else { 143 })
}

/// Passes signals on to the demo, and ends as it does.
async fn outside(mut child: Child) -> anyhow::Result<ExitCode> {
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    loop {
        // Not reaped before this says so: the id is the child's until then.
        if let Some(status) = child.try_wait()? {
            let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
            return Ok(ExitCode::from(code));
        }
        tokio::select! {
            _ = interrupt.recv() => kill(pid, Signal::SIGINT)?,
            _ = terminate.recv() => kill(pid, Signal::SIGTERM)?,
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
    }
}

/// The node of the demo.
struct Stage {
    containerd: Containerd,
    aggregator: Program,
    _agent: Program,
    _folder: TempDir,
}

/// Whether every verdict was right and in time.
async fn inside() -> anyhow::Result<bool> {
    println!("Starting a real containerd, and nodewhy's agent and aggregator.");
    println!("They run in namespaces of their own: nothing of this machine is touched.");
    let mut stage = set().await?;
    stage.well().await?;
    println!("All is well: the runtime answers, the CNI configuration is loaded.\n");
    let mut rows = Vec::new();
    let mut right = true;
    for act in &ACTS {
        println!("== Now {}", act.title);
        let began = Instant::now();
        (act.make)(&mut stage.containerd)?;
        let (verdict, took) = stage.verdict(act.cause, began).await?;
        let named = root(&verdict).unwrap_or("none").to_owned();
        right &= fault_in(act, &named, took).is_none();
        println!("   Verdict after {:.1} s: {named}\n", took.as_secs_f64());
        stage.show(&verdict)?;
        rows.push((act, named, took));
        (act.undo)(&mut stage.containerd)?;
        stage.well().await?;
        println!("   Undone: all is well again.\n");
    }
    println!("{:<30} {:<20} {:>9} {:>12}", "FAULT", "VERDICT", "NODEWHY", "KUBERNETES");
    for (act, named, took) in rows {
        let seconds = took.as_secs_f64();
        let kubernetes =
            Recording::load(RECORDED, act.recorded)?.lost_ready_seconds().context("Ready was kept")?;
        let mark = fault_in(act, &named, took).unwrap_or_default();
        println!("{:<30} {named:<20} {seconds:>7.1} s {kubernetes:>10.1} s{mark}", act.short);
    }
    println!("\nNODEWHY: from the fault to the verdict, measured just now.");
    println!("KUBERNETES: from the fault to NotReady, recorded on kubelet {RECORDED}.");
    if !right {
        println!("A verdict was wrong, or did not come within {} s.", LIMIT.as_secs());
    }
    Ok(right)
}

/// What is wrong with a verdict.
fn fault_in(act: &Act, named: &str, took: Duration) -> Option<&'static str> {
    if named != act.cause {
        Some("  WRONG")
    } else if took > LIMIT {
        Some("  LATE")
    } else {
        None
    }
}

async fn set() -> anyhow::Result<Stage> {
    let folder = tempfile::Builder::new().prefix("nodewhy-demo-").tempdir()?;
    let containerd = Containerd::start()?;
    let clock = Clock::system();
    let mut agent = Program::agent(
        nodewhy_agent::settings::Settings {
            node_name: Some(NODE.to_owned()),
            socket: Some(folder.path().join("agent.sock")),
            places: Places {
                runtime_socket: Some(containerd.socket()),
                cni_conf_dir: containerd.cni_conf_dir(),
                cni_bin_dirs: vec![CNI_BIN_DIR.into()],
                // No kubelet is part of this; a folder that is not there expects none.
                kubelet_root: Some(folder.path().join("no-kubelet")),
                ..Places::default()
            },
            ..Default::default()
        },
        clock.clone(),
    )?;
    agent.wait_ready(Duration::from_secs(20)).await?;
    let agents = vec![nodewhy_aggregator::AgentAddress {
        node: NODE.to_owned(),
        socket: folder.path().join("agent.sock"),
    }];
    let socket = Some(folder.path().join("aggregator.sock"));
    let settings = nodewhy_aggregator::Settings { socket, agents, ..Default::default() };
    let mut aggregator = Program::aggregator(settings, clock)?;
    aggregator.wait_ready(Duration::from_secs(20)).await?;
    Ok(Stage { containerd, aggregator, _agent: agent, _folder: folder })
}

impl Stage {
    async fn why(&self) -> anyhow::Result<Verdict> {
        get_json(self.aggregator.socket(), &format!("/api/v1/nodes/{NODE}/why")).await
    }

    /// Waits until no cause that the demo provokes holds.
    async fn well(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            let why = self.why().await;
            if let Ok(why) = &why
                && why.roots.is_empty()
                && why.conclusion == Conclusion::Healthy
            {
                return Ok(());
            }
            self.aggregator.check()?;
            if began.elapsed() > Duration::from_secs(60) {
                let why = why?;
                bail!("the node is not well after 60 s: {:?}, root {:?}", why.conclusion, root(&why));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The verdict as soon as it names this cause; after [`LIMIT`], whatever it is. How long that took.
    async fn verdict(&mut self, cause: &str, began: Instant) -> anyhow::Result<(Verdict, Duration)> {
        loop {
            let why = self.why().await?;
            let took = began.elapsed();
            if root(&why) == Some(cause) || took > LIMIT {
                return Ok((why, took));
            }
            self.aggregator.check()?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The verdict as `nodewhy why` shows it, where that is built; else its root in one line.
    fn show(&self, verdict: &Verdict) -> anyhow::Result<()> {
        let Some(program) = nodewhy()? else {
            for root in &verdict.roots {
                println!("   {}: {}", root.cause, root.title);
            }
            return Ok(());
        };
        let status = Command::new(&program)
            // Concluded now: an incident lasts from one act into the next, and its times are the first one's.
            .args(["why", NODE, "--now", "--aggregator"])
            .arg(self.aggregator.socket())
            .status()
            .with_context(|| format!("run {}", program.display()))?;
        ensure!(status.success(), "{} ended with {status}", program.display());
        println!();
        Ok(())
    }
}

/// The command line's program, beside this one.
fn nodewhy() -> anyhow::Result<Option<PathBuf>> {
    let own = std::env::current_exe().context("find this program's own file")?;
    let beside = own.parent().context("this program lies in no folder")?.join("nodewhy");
    Ok(beside.exists().then_some(beside))
}
