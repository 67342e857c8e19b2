//! Kernels that killed for want of memory, from their recorded logs: /dev/kmsg is a pipe here, into which the recording is
//! written. Everything else is as in the other episodes; the node stays Ready, as it did in the recordings.

use std::fs::OpenOptions;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use nix::time::{ClockId, clock_gettime};
use nodewhy_proto::{ConditionStatus, EventBody, OomKill, OomScope, Role, Verdict};
use nodewhy_tests::alone::alone;
use nodewhy_tests::client::events;
use nodewhy_tests::episode::Scene;
use nodewhy_tests::kubelet::standin;
use nodewhy_tests::recording::{Fault, kmsg};

/// Plays the recording under a healthy node: the kills as the agent tells them, and the verdict right after them.
async fn played(version: &str, fault: Fault) -> anyhow::Result<(Scene, Vec<OomKill>, Verdict)> {
    let folder = tempfile::tempdir()?;
    let pipe = folder.path().join("kmsg");
    nix::unistd::mkfifo(&pipe, Mode::from_bits_truncate(0o600))?;
    let none = None::<&str>;
    mount(Some(&pipe), "/dev/kmsg", none, MsFlags::MS_BIND, none).context("put a pipe over /dev/kmsg")?;
    let mut scene = Scene::set(&standin()?, version, fault).await?;
    scene.run_until(scene.recording.fault).await?;

    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
    let log = kmsg(version, fault, now)?;
    OpenOptions::new().read(true).write(true).open(&pipe)?.write_all(log.as_bytes())?;
    let told = events(scene.agent(), Duration::from_secs(3)).await?;
    let kills = told.into_iter().filter_map(|event| match event.body {
        EventBody::OomKill(kill) => Some(kill),
        _ => None,
    });
    let kills = kills.collect();
    let why = scene.why().await?;
    Ok((scene, kills, why))
}

fn run(
    test: &str,
    version: &str,
    fault: Fault,
    check: impl Fn(&[OomKill], &Verdict) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if !alone(test)? {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut scene, kills, why) = played(version, fault).await?;
        ensure!(why.ready == Some(ConditionStatus::True), "Ready is {:?}", why.ready);
        let checked = check(&kills, &why).with_context(|| format!("kills: {kills:#?}"));
        if let Err(error) = checked {
            return Err(error.context(scene.describe().await));
        }
        // Nothing of it takes the node out of Ready, also when the API's own events have arrived.
        scene.run_until(scene.recording.end).await?;
        let summary = scene.summary().await?;
        ensure!(summary.ready == Some(ConditionStatus::True), "Ready is {:?} at the end", summary.ready);
        scene.end()
    })
}

/// Whether a verdict says that this cause holds, as a root or beside one.
fn holds(why: &Verdict, cause: &str) -> bool {
    why.roots.iter().any(|root| root.cause == cause)
        || why.contributing.iter().any(|held| held.cause == cause)
}

/// Four kills in a pod with a limit of its own: the kernel tells each first victim twice, and its sibling.
fn pod(kills: &[OomKill], why: &Verdict, uid: &str, pids: [u32; 4]) -> anyhow::Result<()> {
    ensure!(kills.iter().map(|kill| kill.pid).eq(pids), "not the four kills: {:?}", kills.len());
    for kill in kills {
        ensure!(kill.scope == OomScope::Memcg && kill.role == Role::Pod && kill.name == "tail", "{kill:?}");
        ensure!(kill.pod_uid.as_deref() == Some(uid), "{:?}", kill.pod_uid);
        ensure!(
            kill.group.len() == 1 && kill.group.iter().all(|task| task.name == "sleep"),
            "{:?}",
            kill.group
        );
        ensure!(kill.oom_score_adj == Some(968), "{:?}", kill.oom_score_adj);
    }
    ensure!(holds(why, "memcg_oom_container"), "memcg_oom_container does not hold: {why:#?}");
    for cause in ["global_oom_pod", "oom_kills_kubelet", "oom_kills_runtime_or_cni"] {
        ensure!(!holds(why, cause), "{cause} holds: {why:#?}");
    }
    Ok(())
}

/// One global kill, of a process that is no pod's and none of the node's own.
fn system(kills: &[OomKill], why: &Verdict, pid: u32, trigger: &str) -> anyhow::Result<()> {
    let [kill] = kills else { anyhow::bail!("{} kills", kills.len()) };
    ensure!(kill.scope == OomScope::Global && kill.role == Role::Other, "{kill:?}");
    ensure!((kill.pid, kill.name.as_str()) == (pid, "tail"), "{kill:?}");
    ensure!(kill.trigger.as_deref() == Some(trigger), "{:?}", kill.trigger);
    ensure!(kill.biggest.first().is_some_and(|task| task.pid == pid), "{:?}", kill.biggest);
    // The kubelet asked for memory, in one of the recordings, and was not killed.
    for cause in ["oom_kills_kubelet", "oom_kills_runtime_or_cni", "memcg_oom_container"] {
        ensure!(!holds(why, cause), "{cause} holds: {why:#?}");
        ensure!(why.ruled_out.iter().any(|out| out.cause == cause), "{cause} is not ruled out: {why:#?}");
    }
    Ok(())
}

#[test]
fn pod_oom_on_kubelet_1_32_6() -> anyhow::Result<()> {
    run("pod_oom_on_kubelet_1_32_6", "1.32.6", Fault::PodOom, |kills, why| {
        pod(kills, why, "92d194d0-d1ed-470e-a9f6-d720ccdf9fe6", [3459, 3525, 3588, 3649])
    })
}

#[test]
fn pod_oom_on_kubelet_1_36_2() -> anyhow::Result<()> {
    run("pod_oom_on_kubelet_1_36_2", "1.36.2", Fault::PodOom, |kills, why| {
        pod(kills, why, "c12ef941-6a22-4f38-8101-61b41df7a6b6", [4404, 4448, 4497, 4544])
    })
}

#[test]
fn system_oom_on_kubelet_1_32_6() -> anyhow::Result<()> {
    run("system_oom_on_kubelet_1_32_6", "1.32.6", Fault::SystemOom, |kills, why| {
        system(kills, why, 3886, "kubelet")
    })
}

#[test]
fn system_oom_on_kubelet_1_36_2() -> anyhow::Result<()> {
    run("system_oom_on_kubelet_1_36_2", "1.36.2", Fault::SystemOom, |kills, why| {
        system(kills, why, 4761, "tail")
    })
}
