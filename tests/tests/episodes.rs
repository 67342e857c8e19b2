//! The main job, end to end: a real fault under a real agent and aggregator, beside what a real API server said of the
//! same fault. The verdict must come before the recorded loss of Ready, stay when Ready is lost, and end with the cure.
//!
//! Each test runs in namespaces of its own and takes root. They run one at a time (`.config/nextest.toml`): the
//! seconds that they print are measured.

use nodewhy_tests::alone::alone;
use nodewhy_tests::episode::play;
use nodewhy_tests::kubelet::standin;
use nodewhy_tests::recording::Fault;

/// Plays the episode, and prints how much earlier the verdict came.
fn episode(test: &str, version: &str, fault: Fault, cause: &str) -> anyhow::Result<()> {
    if !alone(test)? {
        return Ok(());
    }
    let standin = standin()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let lead = runtime.block_on(play(&standin, version, fault, cause))?;
    println!("{}", lead.table());
    Ok(())
}

#[test]
fn pleg_on_kubelet_1_32_6() -> anyhow::Result<()> {
    episode("pleg_on_kubelet_1_32_6", "1.32.6", Fault::Pleg, "containerd_hung")
}

#[test]
fn pleg_on_kubelet_1_36_2() -> anyhow::Result<()> {
    episode("pleg_on_kubelet_1_36_2", "1.36.2", Fault::Pleg, "containerd_hung")
}

#[test]
fn runtime_down_on_kubelet_1_32_6() -> anyhow::Result<()> {
    episode("runtime_down_on_kubelet_1_32_6", "1.32.6", Fault::RuntimeDown, "containerd_dead")
}

#[test]
fn runtime_down_on_kubelet_1_36_2() -> anyhow::Result<()> {
    episode("runtime_down_on_kubelet_1_36_2", "1.36.2", Fault::RuntimeDown, "containerd_dead")
}

#[test]
fn kubelet_killed_on_kubelet_1_32_6() -> anyhow::Result<()> {
    episode("kubelet_killed_on_kubelet_1_32_6", "1.32.6", Fault::KubeletKilled, "kubelet_down")
}

#[test]
fn kubelet_killed_on_kubelet_1_36_2() -> anyhow::Result<()> {
    episode("kubelet_killed_on_kubelet_1_36_2", "1.36.2", Fault::KubeletKilled, "kubelet_down")
}

#[test]
fn cni_uninitialized_on_kubelet_1_32_6() -> anyhow::Result<()> {
    let cause = "cni_config_missing";
    episode("cni_uninitialized_on_kubelet_1_32_6", "1.32.6", Fault::CniUninitialized, cause)
}

#[test]
fn cni_uninitialized_on_kubelet_1_36_2() -> anyhow::Result<()> {
    let cause = "cni_config_missing";
    episode("cni_uninitialized_on_kubelet_1_36_2", "1.36.2", Fault::CniUninitialized, cause)
}
