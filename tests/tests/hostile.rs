//! The agent where it is not welcome: without rights, without files, among garbage, with a runtime that never answers,
//! on a clock that steps. Each time the right outcome, no invented finding, and everything else goes on.

#![expect(clippy::disallowed_methods, reason = "a test makes the files that the agent cannot read")]

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use jiff::SignedDuration;
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use nodewhy_agent::host::Places;
use nodewhy_agent::settings::Settings;
use nodewhy_clock::{Clock, Mover};
use nodewhy_proto::{CollectorState, EventBody, Finding, NodeInfo, Outcome, Problem, State};
use nodewhy_tests::alone::alone;
use nodewhy_tests::client::{events, get, get_json};
use nodewhy_tests::programs::Program;
use tempfile::TempDir;

/// An agent at work on a clock that can be moved.
struct Watched {
    agent: Program,
    clock: Clock,
    mover: Mover,
    _folder: TempDir,
}

impl Watched {
    async fn start(host_root: &Path, places: Places) -> anyhow::Result<Watched> {
        let folder = tempfile::tempdir()?;
        let (clock, mover) = Clock::skippable();
        let settings = Settings {
            node_name: Some("hostile".to_owned()),
            host_root: host_root.to_owned(),
            socket: Some(folder.path().join("agent.sock")),
            places,
            ..Settings::default()
        };
        let mut agent = Program::agent(settings, clock.clone())?;
        agent.wait_ready(Duration::from_secs(20)).await?;
        let mut watched = Watched { agent, clock, mover, _folder: folder };
        watched.tried().await?;
        Ok(watched)
    }

    /// Waits until every collector was tried.
    async fn tried(&mut self) -> anyhow::Result<()> {
        let began = std::time::Instant::now();
        while self.state().await?.collectors.values().any(|collector| collector.outcome == Outcome::Unknown) {
            self.agent.check()?;
            ensure!(began.elapsed() < Duration::from_secs(20), "a collector was never tried");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Lets this much time pass, three times as fast as it does: every collector reads after each skip.
    async fn pass(&mut self, time: Duration) -> anyhow::Result<()> {
        let end = self.clock.since_boot() + time;
        while self.clock.since_boot() < end {
            self.mover.skip(Duration::from_secs(2));
            tokio::time::sleep(Duration::from_millis(1100)).await;
            self.agent.check()?;
        }
        Ok(())
    }

    async fn state(&self) -> anyhow::Result<State> {
        get_json(self.agent.socket(), "/api/v1/state").await
    }

    async fn collector(&self, name: &str) -> anyhow::Result<CollectorState> {
        let mut state = self.state().await?;
        state.collectors.remove(name).with_context(|| format!("no collector {name}"))
    }

    /// The names of the findings that hold.
    async fn findings(&self) -> anyhow::Result<Vec<String>> {
        let findings: Vec<Finding> = get_json(self.agent.socket(), "/api/v1/findings").await?;
        Ok(findings.into_iter().filter(Finding::is_active).map(|finding| finding.finding).collect())
    }

    /// The steps of the wall clock that were told, in whole seconds.
    async fn steps(&self) -> anyhow::Result<Vec<f64>> {
        let told = events(self.agent.socket(), Duration::from_millis(200)).await?;
        let steps = told.into_iter().filter_map(|event| match event.body {
            EventBody::ClockStepped { seconds } => Some(seconds.round()),
            _ => None,
        });
        Ok(steps.collect())
    }

    /// That these collectors go on reading, whatever happens to others: within two real seconds after a skip, which
    /// makes the newest reading look old until the next one.
    async fn fresh(&self, names: &[&str]) -> anyhow::Result<()> {
        let began = std::time::Instant::now();
        for name in names {
            loop {
                let collector = self.collector(name).await?;
                ensure!(collector.outcome.is_read(), "{name}: {:?}", collector.outcome);
                let age = collector.age_seconds.with_context(|| format!("{name} has no age"))?;
                if (0.0..collector.every_seconds + 0.5).contains(&age) {
                    break;
                }
                ensure!(began.elapsed() < Duration::from_secs(2), "{name} is {age} s old");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// That everything that is served is there, whatever could not be read.
    async fn serves(&self) -> anyhow::Result<()> {
        let socket = self.agent.socket();
        for path in ["/metrics", "/healthz", "/readyz"] {
            let (status, body) = get(socket, path).await?;
            ensure!(status.is_success(), "GET {path}: {status} {}", String::from_utf8_lossy(&body));
        }
        let node: NodeInfo = get_json(socket, "/api/v1/node").await?;
        ensure!(node.id.name == "hostile", "{node:?}");
        // A kernel log that can't be read is a problem with its reason, never an empty log.
        let (status, body) = get(socket, "/api/v1/kmsg").await?;
        if self.collector("oom").await?.outcome.is_read() {
            ensure!(status.is_success(), "GET /api/v1/kmsg: {status} {}", String::from_utf8_lossy(&body));
        } else {
            let problem: Problem = serde_json::from_slice(&body)?;
            ensure!(status.is_server_error() && !problem.detail.is_empty(), "{status} {problem:?}");
        }
        Ok(())
    }
}

fn failed(collector: &CollectorState) -> bool {
    matches!(collector.outcome, Outcome::Failed { .. })
}

/// Places that exist nowhere.
fn nowhere() -> Places {
    // Port 9 (discard) answers nobody.
    Places { kubelet_healthz: Some(([127, 0, 0, 1], 9).into()), ..Places::default() }
}

#[test]
fn as_an_unprivileged_user() -> anyhow::Result<()> {
    if !alone("as_an_unprivileged_user")? {
        return Ok(());
    }
    // A runtime is there, behind a folder that is root's alone.
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("containerd.sock");
    let _listener = UnixListener::bind(&socket)?;
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700))?;
    setgroups(&[])?;
    setgid(Gid::from_raw(65534))?;
    setuid(Uid::from_raw(65534))?;
    let kmsg = std::fs::File::open("/dev/kmsg");

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let places = Places { runtime_socket: Some(socket), ..nowhere() };
        let mut watched = Watched::start(Path::new("/"), places).await?;
        watched.pass(Duration::from_secs(20)).await?;
        watched.fresh(&["memory"]).await?;
        watched.serves().await?;
        // No right to look is no fault of the runtime's.
        let collector = watched.collector("runtime").await?;
        ensure!(failed(&collector), "runtime: {:?}", collector.outcome);
        let findings = watched.findings().await?;
        ensure!(!findings.iter().any(|name| name.starts_with("runtime_")), "{findings:?}");
        let oom = watched.collector("oom").await?;
        match kmsg {
            Ok(_) => ensure!(oom.outcome.is_read(), "oom: {:?}", oom.outcome),
            Err(error) => {
                let why = oom.outcome.why().unwrap_or_default();
                ensure!(failed(&oom) && why.contains("CAP_SYSLOG"), "oom, with {error}: {:?}", oom.outcome);
            }
        }
        watched.agent.stop()
    })
}

#[tokio::test]
async fn with_an_empty_host_root() -> anyhow::Result<()> {
    let root = tempfile::tempdir()?;
    let mut watched = Watched::start(root.path(), nowhere()).await?;
    watched.pass(Duration::from_secs(15)).await?;
    for (name, collector) in watched.state().await?.collectors {
        ensure!(
            matches!(collector.outcome, Outcome::Absent { .. } | Outcome::Failed { .. }),
            "{name}: {collector:?}"
        );
        ensure!(collector.outcome.why().is_some_and(|why| !why.is_empty()), "{name} does not say why");
        ensure!(collector.reading.is_none(), "{name} read something: {collector:?}");
    }
    ensure!(watched.findings().await?.is_empty(), "{:?}", watched.findings().await?);
    watched.serves().await?;
    watched.agent.stop()
}

#[tokio::test]
async fn with_garbage_in_every_file() -> anyhow::Result<()> {
    let root = tempfile::tempdir()?;
    let files = [
        "proc/meminfo",
        "proc/vmstat",
        "proc/zoneinfo",
        "proc/uptime",
        "proc/stat",
        "proc/mounts",
        "proc/loadavg",
        "proc/pressure/cpu",
        "proc/pressure/memory",
        "proc/pressure/io",
        "proc/pressure/irq",
        "proc/cpuinfo",
        "proc/sys/kernel/random/boot_id",
        "proc/sys/kernel/osrelease",
        "proc/sys/kernel/hostname",
        "proc/1/stat",
        "proc/1/status",
        "proc/1/comm",
        "proc/1/cmdline",
        "proc/1/cgroup",
        "proc/1/mountinfo",
        "proc/77/stat",
        "proc/77/status",
        "proc/77/comm",
        "proc/77/cmdline",
        "proc/77/cgroup",
        "etc/machine-id",
        "etc/hostname",
        "etc/os-release",
        "etc/cni/net.d/10-garbage.conflist",
        "dev/kmsg",
        "var/lib/kubelet/config.yaml",
        "sys/fs/cgroup/cgroup.controllers",
        "sys/fs/cgroup/memory.stat",
    ];
    for (seed, file) in (1..).zip(files) {
        let path = root.path().join(file);
        std::fs::create_dir_all(path.parent().context("a file in no folder")?)?;
        std::fs::write(path, garbage(seed, 3000))?;
    }
    let mut watched = Watched::start(root.path(), nowhere()).await?;
    watched.pass(Duration::from_secs(15)).await?;
    for name in ["pressure", "memory"] {
        let collector = watched.collector(name).await?;
        ensure!(failed(&collector) && collector.reading.is_none(), "{name}: {collector:?}");
    }
    // These are true: the file is there and is not valid, a kubelet's configuration is there and no kubelet is, and
    // where a kubelet was set up, a runtime belongs.
    let real = ["cni_config_invalid", "kubelet_absent", "runtime_socket_missing"];
    let findings = watched.findings().await?;
    ensure!(findings.iter().all(|name| real.contains(&name.as_str())), "{findings:?}");
    ensure!(findings.iter().any(|name| name == "cni_config_invalid"), "{findings:?}");
    let told = events(watched.agent.socket(), Duration::from_secs(1)).await?;
    ensure!(!told.iter().any(|event| matches!(event.body, EventBody::OomKill(_))), "{told:?}");
    watched.serves().await?;
    watched.agent.stop()
}

#[tokio::test]
async fn with_a_runtime_that_never_answers() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("containerd.sock");
    // The kernel connects for it; nobody ever accepts.
    let _listener = UnixListener::bind(&socket)?;
    let places = Places { runtime_socket: Some(socket), ..nowhere() };
    let mut watched = Watched::start(Path::new("/"), places).await?;
    watched.pass(Duration::from_secs(4)).await?;
    ensure!(!watched.findings().await?.contains(&"runtime_hung".to_owned()), "hung before its 10 s");
    watched.pass(Duration::from_secs(60)).await?;
    let findings = watched.findings().await?;
    let of_runtime: Vec<_> = findings.iter().filter(|name| name.starts_with("runtime_")).collect();
    ensure!(of_runtime == ["runtime_hung"], "{findings:?}");
    watched.fresh(&["memory"]).await?;
    watched.serves().await?;
    watched.agent.stop()
}

#[tokio::test]
async fn with_a_clock_that_steps() -> anyhow::Result<()> {
    let mut watched = Watched::start(Path::new("/"), nowhere()).await?;
    watched.pass(Duration::from_secs(5)).await?;
    let before = watched.findings().await?;
    let wanted = [-3600.0, 7200.0, -3600.0];
    for (count, seconds) in (1..).zip([-3600, 7200, -3600]) {
        watched.mover.step_wall(SignedDuration::from_secs(seconds));
        // Told in its own time; two steps at once would be one.
        let began = std::time::Instant::now();
        while watched.steps().await?.len() < count {
            ensure!(began.elapsed() < Duration::from_secs(5), "the step of {seconds} s was not told");
        }
        watched.pass(Duration::from_secs(5)).await?;
        watched.fresh(&["memory"]).await?;
    }
    ensure!(watched.steps().await? == wanted, "{:?}", watched.steps().await?);
    // Load may come and go meanwhile; a step begins or ends nothing of the node's parts.
    let parts = |findings: Vec<String>| -> Vec<String> {
        findings
            .into_iter()
            .filter(|name| ["runtime_", "kubelet_", "cni_"].iter().any(|prefix| name.starts_with(prefix)))
            .collect()
    };
    let after = watched.findings().await?;
    ensure!(parts(before.clone()) == parts(after.clone()), "{before:?} became {after:?}");
    watched.serves().await?;
    watched.agent.stop()
}

/// Bytes that look like nothing, the same at every run (xorshift).
fn garbage(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}
