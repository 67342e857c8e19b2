//! The faults that run each time: each is made for real, in a machine of its own, and must be seen by the agent on the
//! host and by the agent in a container.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use nodewhy_ground::evidence::Story;
use nodewhy_ground::faults;
use nodewhy_ground::image::{Suite, cache};
use nodewhy_ground::run::{Ground, run};
use nodewhy_ground::seen::signs_of_run;

/// One test a fault, so that each has its own name, time and words.
macro_rules! each_time {
    ($($test:ident => $name:literal,)*) => {
        $(
            #[test]
            fn $test() -> anyhow::Result<()> {
                is_seen($name)
            }
        )*

        const HERE: &[&str] = &[$($name),*];
    };
}

each_time! {
    oom_container => "oom-container",
    oom_kubelet => "oom-kubelet",
    memory_available_low => "memory-available-low",
    disk_dead => "disk-dead",
    disk_hung => "disk-hung",
    power_cut => "power-cut",
    clock_forward => "clock-forward",
    containerd_dead => "containerd-dead",
    containerd_hung => "containerd-hung",
    cni_config_missing => "cni-config-missing",
    cni_dir_removed => "cni-dir-removed",
    conntrack_full => "conntrack-full",
    kubelet_killed => "kubelet-killed",
    kubelet_hung => "kubelet-hung",
}

#[test]
fn every_fault_that_runs_each_time_has_its_test() {
    let listed: BTreeSet<&str> =
        faults::all().filter(|fault| fault.each_time).map(|fault| fault.name).collect();
    assert_eq!(listed, HERE.iter().copied().collect());
}

fn is_seen(name: &str) -> anyhow::Result<()> {
    let fault = faults::find(name).context("there is no such fault")?;
    let ground = Ground::make(Suite::Bookworm)?;
    let evidence = run(&ground, fault)?;
    evidence.write(&cache().join("runs"))?;
    ensure!(evidence.agents.len() == 2, "both agents were followed");
    for (way, served) in &evidence.agents {
        for sign in signs_of_run(fault, &evidence.truth, *way, &Story::of(served)) {
            println!("{name}, {}: {}: {} {}", way.folder(), sign.collector, sign.what, sign.in_short());
            ensure!(sign.is_as_expected(), "{name}: {sign:?}");
        }
    }
    Ok(())
}
