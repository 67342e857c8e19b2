//! The status of each sandbox and each container, one call after the other, so that the slow one is known by name:
//! the kubelet inspects pods one by one too, and one that never answers holds its relist up while `Status` is fast.
//!
//! With `verbose` containerd asks the pod's shim for the state of the sandbox; a shim that is stopped or stuck is found
//! that way, and the answer has the sandbox' pid, namespace and CNI's result besides. All are asked once a minute, at
//! once where a relist or the kubelet's PLEG is suspected; new sandboxes soon; those that were slow again and again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use nodewhy_clock::Stamp;
use serde::Deserialize;

use super::pods::Target;
use super::{Asker, Board};
use crate::cri::{CallError, Client, PodSandboxStatusResponse};
use crate::host::known::{SandboxNetwork, SandboxNetworks};

const LOOK_EVERY: Duration = Duration::from_secs(2);
const ROUND_EVERY: Duration = Duration::from_secs(60);
/// While something is suspected.
const SUSPECT_ROUND_EVERY: Duration = Duration::from_secs(15);
/// A relist that takes longer is suspect.
const SUSPECT_RELIST: Duration = Duration::from_secs(3);
/// One that was slow is asked again.
const SLOW_AGAIN_EVERY: Duration = Duration::from_secs(10);
/// A well runtime answers within milliseconds.
const GIVE_UP_AFTER: Duration = Duration::from_secs(10);
/// What took so long is remembered until it is asked again.
const SLOW: Duration = Duration::from_secs(1);
/// So many without an answer end a round: it is not one container that hangs.
const MOST_UNANSWERED: usize = 3;
const MOST_SLOW: usize = 10;

/// One call for one sandbox or container.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::collect::runtime) struct One {
    pub(super) target: Target,
    /// Since when it is asked in vain; for an answer, when it was asked.
    pub(in crate::collect::runtime) since: Stamp,
    /// How long the answer took; `None`: none came.
    pub(in crate::collect::runtime) took: Option<Duration>,
}

impl One {
    pub(in crate::collect::runtime) fn call(&self) -> &'static str {
        if self.target.is_sandbox { "PodSandboxStatus" } else { "ContainerStatus" }
    }

    pub(in crate::collect::runtime) fn id(&self) -> &str {
        &self.target.id
    }

    pub(in crate::collect::runtime) fn pod(&self) -> &str {
        &self.target.pod
    }

    pub(in crate::collect::runtime) fn container(&self) -> Option<&str> {
        self.target.container.as_deref()
    }
}

/// One look at all of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::collect::runtime) struct Round {
    pub(in crate::collect::runtime) ended: Stamp,
    pub(in crate::collect::runtime) took: Duration,
    /// How many answered.
    pub(in crate::collect::runtime) answered: usize,
    /// How many were not asked, since others did not answer.
    pub(in crate::collect::runtime) left_out: usize,
    /// The slowest answer.
    pub(in crate::collect::runtime) slowest: Duration,
}

/// What they answered.
#[derive(Clone, Debug, Default)]
pub(in crate::collect::runtime) struct Inspected {
    /// The call in flight.
    pub(in crate::collect::runtime) running: Option<One>,
    /// Those that were slow, or gave no answer, when they were asked last; at most ten.
    pub(in crate::collect::runtime) slow: Vec<One>,
    /// The newest whole round.
    pub(in crate::collect::runtime) round: Option<Round>,
    /// How many images there are, and their sizes' sum.
    pub(in crate::collect::runtime) images: Option<(u64, u64)>,
    /// `systemd`, `cgroupfs`, where the runtime tells.
    pub(in crate::collect::runtime) cgroup_driver: Option<&'static str>,
}

/// Why a round ended early.
enum End {
    /// The connection broke: the verbs that are asked each second tell that.
    Broken,
}

impl Asker {
    /// Inspects, for ever.
    pub(super) async fn inspect(&self, client: &Client) {
        let mut networks = SandboxNetworks::new();
        let mut newest_round = None;
        let mut newest_slow = Duration::ZERO;
        loop {
            self.clock.sleep(LOOK_EVERY).await;
            let now = self.clock.stamp();
            let (targets, slow, is_suspect) = {
                let board = self.shared.lock();
                (Arc::clone(&board.targets), board.inspected.slow.clone(), is_suspect(&board, now))
            };
            let every = match is_suspect || self.host.pleg_is_suspected() {
                true => SUSPECT_ROUND_EVERY,
                false => ROUND_EVERY,
            };
            let is_due = newest_round.is_none_or(|newest| now.boot.saturating_sub(newest) >= every);
            let is_slow_due = now.boot.saturating_sub(newest_slow) >= SLOW_AGAIN_EVERY;
            let known = networks.len();
            networks.retain(|id, _| targets.iter().any(|target| target.is_sandbox && target.id == *id));
            let is_gone = networks.len() != known;
            let wanted = |target: &&Target| {
                is_due
                    || (target.is_sandbox && !networks.contains_key(&target.id))
                    || (is_slow_due && slow.iter().any(|one| one.target.id == target.id))
            };
            let asked: Vec<&Target> =
                if targets.is_empty() { Vec::new() } else { targets.iter().filter(wanted).collect() };
            self.forget(&targets);
            if asked.is_empty() && !is_gone {
                continue;
            }
            if is_slow_due {
                newest_slow = now.boot;
            }
            let mut told = BTreeMap::new();
            let ended = self.round(client, &asked, is_due, &mut told).await;
            networks.append(&mut told);
            self.host.learn_sandbox_networks(networks.clone());
            if is_due && ended.is_ok() {
                newest_round = Some(self.clock.since_boot());
                self.count(client).await;
            }
        }
    }

    /// What has gone is slow no more.
    fn forget(&self, targets: &[Target]) {
        let mut board = self.shared.lock();
        board.inspected.slow.retain(|one| targets.iter().any(|target| target.id == one.target.id));
    }

    async fn round(
        &self,
        client: &Client,
        asked: &[&Target],
        is_whole: bool,
        networks: &mut SandboxNetworks,
    ) -> Result<(), End> {
        let begun = self.clock.since_boot();
        let (mut answered, mut unanswered, mut slowest, mut left) = (0, 0, Duration::ZERO, asked.len());
        for target in asked {
            left -= 1;
            let at = self.clock.stamp();
            let running = One { target: (*target).clone(), since: at, took: None };
            self.shared.note(|board| board.inspected.running = Some(running.clone()));
            let result = self.clock.timeout(GIVE_UP_AFTER, one(client, target)).await;
            let took = self.clock.since_boot().saturating_sub(at.boot);
            let is_broken = matches!(result, Some(Err(CallError::Broken(_))));
            let is_answered = result.is_some() && !is_broken;
            self.shared.note(|board| board.inspected.end(running, took, is_answered, is_broken));
            match result {
                Some(Err(CallError::Broken(_))) => return Err(End::Broken),
                // Gone since the list, or an error that comes promptly: that is an answer.
                Some(Err(_)) => {
                    answered += 1;
                    if target.is_sandbox {
                        networks.insert(target.id.clone(), SandboxNetwork::default());
                    }
                }
                Some(Ok(said)) => {
                    answered += 1;
                    if target.is_sandbox {
                        networks.insert(target.id.clone(), said);
                    }
                }
                None => unanswered += 1,
            }
            slowest = slowest.max(took);
            if took >= SLOW {
                self.shared.wake();
            }
            if unanswered >= MOST_UNANSWERED {
                break;
            }
        }
        if is_whole {
            let ended = self.clock.stamp();
            let took = ended.boot.saturating_sub(begun);
            let round = Round { ended, took, answered, left_out: left, slowest };
            self.shared.note(|board| board.inspected.round = Some(round));
        }
        Ok(())
    }

    /// Images, and the cgroup driver. What does not answer is asked again with the next round.
    async fn count(&self, client: &Client) {
        let images = self.clock.timeout(GIVE_UP_AFTER, client.list_images()).await;
        let images = images.and_then(Result::ok).map(|answer| {
            let bytes = answer.images.iter().fold(0_u64, |sum, image| sum.saturating_add(image.size_bytes));
            (answer.images.len() as u64, bytes)
        });
        let config = self.clock.timeout(GIVE_UP_AFTER, client.runtime_config()).await;
        let driver = match config {
            Some(Ok(config)) => config.linux.and_then(|linux| match linux.cgroup_driver {
                0 => Some("systemd"),
                1 => Some("cgroupfs"),
                _ => None,
            }),
            // containerd before 2.0 does not know the call.
            Some(Err(_)) | None => None,
        };
        self.shared.note(|board| {
            board.inspected.images = images;
            board.inspected.cgroup_driver = driver.or(board.inspected.cgroup_driver);
        });
    }
}

impl Inspected {
    fn end(&mut self, mut one: One, took: Duration, is_answered: bool, is_broken: bool) {
        self.running = None;
        let known = self.slow.iter().position(|slow| slow.target.id == one.target.id);
        let before = known.map(|at| self.slow.remove(at));
        if is_broken {
            // It says nothing of this one.
            self.slow.extend(before);
            return;
        }
        if is_answered {
            one.took = Some(took);
            if took < SLOW {
                return;
            }
        } else if let Some(before) = before.filter(|before| before.took.is_none()) {
            one.since = before.since;
        }
        self.slow.push(one);
        // Without an answer before with a slow one.
        self.slow.sort_by_key(|one| one.took.is_some());
        self.slow.truncate(MOST_SLOW);
    }
}

async fn one(client: &Client, target: &Target) -> Result<SandboxNetwork, CallError> {
    match target.is_sandbox {
        true => client.pod_sandbox_status(&target.id).await.map(|answer| network(&answer)),
        false => client.container_status(&target.id).await.map(|_| SandboxNetwork::default()),
    }
}

fn is_suspect(board: &Board, now: Stamp) -> bool {
    let relist = &board.relist;
    let running = relist.unanswered.map(|since| now.boot.saturating_sub(since.boot));
    let took = relist.ended.as_ref().map(|ended| ended.took);
    running.into_iter().chain(took).any(|time| time >= SUSPECT_RELIST)
}

/// What `info` says of the network: containerd's and CRI-O's own JSON, as far as it is there.
fn network(answer: &PodSandboxStatusResponse) -> SandboxNetwork {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Info {
        pid: Option<u32>,
        runtime_spec: Option<Spec>,
        cni_result: Option<CniResult>,
    }
    #[derive(Deserialize)]
    struct Spec {
        linux: Option<Linux>,
    }
    #[derive(Deserialize)]
    struct Linux {
        namespaces: Option<Vec<Namespace>>,
    }
    #[derive(Deserialize)]
    struct Namespace {
        r#type: String,
        path: Option<String>,
    }
    /// go-cni's `Result`: Go's own names.
    #[derive(Deserialize)]
    struct CniResult {
        #[serde(rename = "Interfaces")]
        interfaces: Option<BTreeMap<String, Option<Interface>>>,
    }
    #[derive(Deserialize)]
    struct Interface {
        #[serde(rename = "IPConfigs")]
        addresses: Option<Vec<Address>>,
        #[serde(rename = "Sandbox")]
        sandbox: Option<String>,
    }
    #[derive(Deserialize)]
    struct Address {
        #[serde(rename = "IP")]
        ip: Option<String>,
    }
    let Some(info) = answer.info.get("info").and_then(|text| serde_json::from_str::<Info>(text).ok()) else {
        return SandboxNetwork::default();
    };
    let namespaces = info.runtime_spec.and_then(|spec| spec.linux).and_then(|linux| linux.namespaces);
    let netns = namespaces.as_ref().map(|all| all.iter().find(|space| space.r#type == "network"));
    let mut said = SandboxNetwork {
        pid: info.pid.filter(|pid| *pid > 0),
        netns: netns.flatten().and_then(|space| space.path.clone()).filter(|path| !path.is_empty()),
        is_hosts: netns.map(|space| space.is_none()),
        ..SandboxNetwork::default()
    };
    let interfaces = info.cni_result.and_then(|result| result.interfaces).into_iter().flatten();
    // The AWS plugin writes notes to itself as an interface `dummy…` that it never makes.
    for (name, interface) in interfaces.filter(|(name, _)| name != "lo" && !name.starts_with("dummy")) {
        let Some(interface) = interface else { continue };
        let inside = interface.sandbox.is_some_and(|path| !path.is_empty());
        if inside {
            said.addresses.extend(interface.addresses.into_iter().flatten().filter_map(|address| address.ip));
        } else {
            said.host_interfaces.push(name);
        }
    }
    said
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    use prost::Message;
    crate::fuzz::done(PodSandboxStatusResponse::decode(bytes).map(|answer| network(&answer)));
    let info = [("info".to_owned(), crate::fuzz::text(bytes).into_owned())];
    let answer = PodSandboxStatusResponse { info: info.into_iter().collect(), ..Default::default() };
    crate::fuzz::done(network(&answer));
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use nodewhy_clock::Clock;
    use proptest::prelude::*;

    use super::*;

    fn answer(text: &str) -> PodSandboxStatusResponse {
        PodSandboxStatusResponse { info: HashMap::from([("info".to_owned(), text.to_owned())]) }
    }

    // `info` of `crictl inspectp` on a kind node of April 2024 (containerd), published in a public repository's tests; cut
    // to the parts that are read here and their neighbours, in the one line that the runtime sends.
    const INFO: &str = include_str!("../../../../fixtures/runtime/kind-2024-sandbox-info.json");

    #[test]
    fn the_recorded_sandbox_has_its_namespace_and_its_veth() {
        let said = network(&answer(INFO));
        assert_eq!(
            said,
            SandboxNetwork {
                pid: Some(6075),
                netns: Some("/var/run/netns/cni-6c2f3f24-c065-fe4d-c5d6-849f28acc7de".to_owned()),
                is_hosts: Some(false),
                host_interfaces: vec!["veth57ab7399".to_owned()],
                addresses: vec!["10.244.0.9".to_owned()],
            }
        );
    }

    #[test]
    fn what_is_not_said_is_not_known() {
        assert_eq!(network(&answer("")), SandboxNetwork::default());
        assert_eq!(network(&answer("{}")), SandboxNetwork::default());
        assert_eq!(network(&PodSandboxStatusResponse::default()).is_hosts, None);
    }

    #[test]
    fn the_mark_that_the_aws_plugin_leaves_is_no_interface() {
        // go-cni's names around what amazon-vpc-cni-k8s (cmd/routed-eni-cni-plugin/cni.go) gives for a pod with security
        // groups of its own: the VLAN's number stands in Mac, and no such interface is made.
        let said = network(&answer(
            r#"{"cniResult":{"Interfaces":{"vlan6a1b2c3d4e5":{"Sandbox":""},"dummy6a1b2c3d4e5":{"Mac":"3","Sandbox":""},
            "eth0":{"IPConfigs":[{"IP":"10.0.3.7"}],"Sandbox":"/var/run/netns/cni-1"}}}}"#,
        ));
        assert_eq!(
            (said.host_interfaces, said.addresses),
            (vec!["vlan6a1b2c3d4e5".to_owned()], vec!["10.0.3.7".to_owned()])
        );
    }

    fn target(id: &str) -> Target {
        Target { is_sandbox: true, id: id.to_owned(), pod: "default/web".to_owned(), container: None }
    }

    #[test]
    fn the_slow_ones_are_kept_until_they_answer_fast_and_keep_their_beginning() {
        let now = Clock::system().stamp();
        let at = |seconds| Stamp { boot: Duration::from_secs(seconds), ..now };
        let mut inspected = Inspected::default();
        let mut end = |id: &str, at: Stamp, took: u64, answered, broken| {
            let one = One { target: target(id), since: at, took: None };
            inspected.end(one, Duration::from_secs(took), answered, broken);
            inspected.slow.clone()
        };
        assert!(end("a", at(10), 0, true, false).is_empty());
        assert_eq!(end("a", at(20), 10, false, false)[0].since, at(20));
        assert_eq!(end("a", at(40), 10, false, false)[0].since, at(20), "the hang goes on");
        assert_eq!(end("a", at(60), 0, false, true)[0].since, at(20), "a break says nothing of it");
        let slow = end("b", at(60), 2, true, false);
        assert_eq!((slow.len(), slow[0].id(), slow[1].took), (2, "a", Some(Duration::from_secs(2))));
        for id in 0..50 {
            assert!(end(&id.to_string(), at(70), 3, true, false).len() <= MOST_SLOW);
        }
        assert_eq!(end("b", at(80), 0, true, false)[0].id(), "a", "without an answer goes first");
        assert!(end("a", at(90), 0, true, false).iter().all(|one| one.id() != "a"));
    }

    proptest! {
        #[test]
        fn a_cut_or_flipped_info_says_what_it_says_or_nothing(at in 0..INFO.len(), byte: u8) {
            let mut bytes = INFO.as_bytes().to_vec();
            // The last byte is the line's end.
            if at + 1 < INFO.len() {
                let cut = String::from_utf8_lossy(&bytes[..at]).into_owned();
                prop_assert_eq!(network(&answer(&cut)), SandboxNetwork::default());
            }
            bytes[at] = byte;
            // Any value or none; no panic.
            network(&answer(&String::from_utf8_lossy(&bytes)));
        }
    }
}
