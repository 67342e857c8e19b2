//! Whose a cgroup is, and what a process is to the node: by its name, its cgroup and, where the cgroup is unknown, its
//! OOM score.

use nodewhy_proto::Role;

/// The kernel cuts names at 15 bytes: `containerd-shim-runc-v2` is `containerd-shim`.
const CUT: usize = 15;

const KUBELETS: &[&str] = &["kubelet", "k3s", "k3s-server", "k3s-agent", "kubelite", "hyperkube"];

const RUNTIMES: &[&str] =
    &["containerd", "containerd-shim", "containerd-shim-runc-v2", "crio", "dockerd", "cri-dockerd", "conmon"];

/// Programs of network plugins that stay; most run in pods, so the name decides there too.
const CNI_AGENTS: &[&str] = &[
    "calico-node",
    "calico-felix",
    "felix",
    "cilium-agent",
    "flanneld",
    "aws-k8s-agent",
    "aws-node",
    "antrea-agent",
    "kube-router",
    "kindnetd",
    "ovnkube",
    "ovn-controller",
    "azure-cns",
    "multus-daemon",
    "weaver",
];

/// kubelet (pkg/kubelet/qos/policy.go): containers of pods with priority system-node-critical, and of guaranteed pods.
/// Older ones gave −998.
const AGENTS_SCORE: i32 = -997;

/// A pod and a container, as a cgroup's path names them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Under the kubelet's cgroup for pods.
    pub in_pods: bool,
    /// The pod's UID.
    pub pod_uid: Option<String>,
    /// The container's id.
    pub container_id: Option<String>,
    /// Below the pod's own cgroup, in one that is not a runtime's helper's.
    pub(crate) in_container: bool,
}

/// Reads a cgroup's path, of either driver:
/// systemd `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID_WITH_UNDERSCORES.slice/cri-containerd-ID.scope`,
/// cgroupfs `/kubepods/burstable/podUID/ID`. A node in a container has more before it (`/docker/ID/kubelet/kubepods/…`).
pub fn place(cgroup: &str) -> Place {
    let mut place = Place::default();
    for part in cgroup.split('/') {
        if place.pod_uid.is_some() {
            let name = part.strip_suffix(".scope").unwrap_or(part);
            // CRI-O can keep its monitor in the pod's cgroup, beside the container's.
            if !name.contains("conmon") {
                place.in_container = true;
                place.container_id = container_id(name);
            }
            break;
        }
        if place.in_pods {
            place.pod_uid = pod_uid(part);
        }
        if part.contains("kubepods") {
            place.in_pods = true;
            place.pod_uid = pod_uid(part);
        }
    }
    place
}

/// `pod0b9f0f3c-…`, `kubepods-burstable-podc12ef941_6a22_….slice`. A static pod's UID is 32 hex digits.
fn pod_uid(part: &str) -> Option<String> {
    let name = part.strip_suffix(".slice").unwrap_or(part);
    let uid = name.rsplit_once("-pod").map(|(_, uid)| uid).or_else(|| name.strip_prefix("pod"))?;
    let uid = uid.replace('_', "-");
    let digits = uid.bytes().filter(u8::is_ascii_hexdigit).count();
    let dashes = uid.bytes().filter(|byte| *byte == b'-').count();
    (digits == 32 && digits + dashes == uid.len() && (dashes == 0 || dashes == 4)).then_some(uid)
}

/// The 64 hex digits that every runtime gives, with or without `cri-containerd-`, `crio-`, `docker-` before them.
fn container_id(name: &str) -> Option<String> {
    let id = name.rsplit_once('-').map_or(name, |(_, id)| id);
    (id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_owned())
}

/// What the process was. Anybody may name a process `kubelet`: one in a pod is the pod's, and one that is not root's is
/// nobody's of these. A network plugin's agent in a pod has the score of a node's critical pod, or of a guaranteed one.
///
/// Without the cgroup (the report was lost) the score tells: the node's own programs run with −998 or −999, the
/// kubelet gives containers −997 or 2 to 1000. What neither tells is `Unknown`.
pub fn role(name: &str, place: Option<&Place>, oom_score_adj: Option<i32>, uid: Option<u32>) -> Role {
    let is =
        |known: &[&str]| uid.is_none_or(|uid| uid == 0) && known.iter().any(|known| cut(known) == cut(name));
    let is_agent = match place {
        // Kernels before 5.4 print no score.
        Some(place) if place.in_pods => oom_score_adj.is_none_or(|adj| adj <= AGENTS_SCORE),
        Some(_) => true,
        None => oom_score_adj.is_some_and(|adj| adj <= AGENTS_SCORE),
    };
    if is_agent && is(CNI_AGENTS) {
        return Role::Cni;
    }
    if cut(name) == "kube-proxy" {
        return Role::KubeProxy;
    }
    let system = match () {
        () if is(KUBELETS) => Some(Role::Kubelet),
        () if is(RUNTIMES) => Some(Role::Runtime),
        () => None,
    };
    match (place, system) {
        // A shim or a monitor in the pod's own cgroup is the runtime's; in a container's it is the pod's.
        (Some(place), Some(Role::Runtime))
            if place.in_pods && place.pod_uid.is_some() && !place.in_container =>
        {
            Role::Runtime
        }
        (Some(place), _) if place.in_pods => Role::Pod,
        (Some(_), system) => system.unwrap_or(Role::Other),
        (None, Some(system)) if oom_score_adj.is_some_and(|adj| adj <= -998) => system,
        (None, _) => Role::Unknown,
    }
}

fn cut(name: &str) -> &str {
    name.get(..CUT).unwrap_or(name)
}

/// The role's name, as in JSON.
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::Kubelet => "kubelet",
        Role::Runtime => "runtime",
        Role::Cni => "cni",
        Role::KubeProxy => "kube_proxy",
        Role::Pod => "pod",
        Role::Other => "other",
        Role::Unknown => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // fixtures/kmsg/linux-7.2.13/episode-pod-oom.txt.
    const SYSTEMD: &str = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podc12ef941_6a22_4f38_8101_61b41df7a6b6.slice/cri-containerd-b0b795bead51d415fc6af03eca6d9322f073f00f26866ef237845e33f0784586.scope";
    const UID: &str = "c12ef941-6a22-4f38-8101-61b41df7a6b6";
    const ID: &str = "b0b795bead51d415fc6af03eca6d9322f073f00f26866ef237845e33f0784586";

    #[test]
    fn both_drivers_name_pod_and_container() {
        for path in [
            SYSTEMD.to_owned(),
            SYSTEMD.replace("cri-containerd-", "crio-") + "/container",
            SYSTEMD.replace("-burstable", ""),
            format!("/kubepods/burstable/pod{UID}/{ID}"),
            format!("/kubepods/pod{UID}/{ID}"),
            format!("/docker/{ID}/kubelet/kubepods/besteffort/pod{UID}/{ID}"),
            format!(
                "/docker/{ID}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{}.slice/cri-containerd-{ID}.scope",
                UID.replace('-', "_")
            ),
        ] {
            let place = place(&path);
            assert!(place.in_pods, "{path}");
            assert_eq!(
                (place.pod_uid.as_deref(), place.container_id.as_deref()),
                (Some(UID), Some(ID)),
                "{path}"
            );
        }
    }

    #[test]
    fn what_is_no_pod_or_no_id_is_not_guessed() {
        assert_eq!(place("/system.slice/eater.service"), Place::default());
        assert_eq!(place(&format!("/system.slice/docker-{ID}.scope")), Place::default());
        assert_eq!(place("/kubepods.slice/kubepods-burstable.slice").pod_uid, None);
        assert_eq!(place("/kubepods/podium/x").pod_uid, None);
        // fixtures/kmsg/linux-6.18.44: a container's group that no runtime named.
        let place = place("/labtest/kubepods/burstable/pod0b9f0f3c-6d9f-4a7b-9c52-3f8a1f7e2d10/c1");
        assert_eq!(place.pod_uid.as_deref(), Some("0b9f0f3c-6d9f-4a7b-9c52-3f8a1f7e2d10"));
        assert_eq!(place.container_id, None);
        // A static pod's UID is a hash of its file.
        let hash = "f5f41fb4cabbb63e12dc36a7aa8a3e4b";
        assert_eq!(
            super::place(&format!("/kubepods/burstable/pod{hash}/{ID}")).pod_uid.as_deref(),
            Some(hash)
        );
    }

    #[test]
    fn roles() {
        let system = place("/system.slice/containerd.service");
        let pod = place(SYSTEMD);
        let of = |name: &str, place: &Place| role(name, Some(place), Some(-999), Some(0));
        for (name, want) in [
            ("kubelet", Role::Kubelet),
            ("k3s-server", Role::Kubelet),
            ("kubelite", Role::Kubelet),
            ("containerd", Role::Runtime),
            ("containerd-shim", Role::Runtime),
            ("containerd-shim-runc-v2", Role::Runtime),
            ("crio", Role::Runtime),
            ("conmon", Role::Runtime),
            ("tail", Role::Other),
        ] {
            assert_eq!(of(name, &system), want, "{name}");
            assert_eq!(of(name, &pod), Role::Pod, "{name} in a container");
        }
        for name in ["calico-node", "cilium-agent", "aws-k8s-agent", "flanneld"] {
            assert_eq!((of(name, &pod), of(name, &system)), (Role::Cni, Role::Cni), "{name}");
        }
        assert_eq!(of("kube-proxy", &pod), Role::KubeProxy);
    }

    #[test]
    fn a_runtimes_helper_in_the_pods_own_cgroup_is_the_runtimes() {
        let pod = SYSTEMD.rsplit_once('/').unwrap().0;
        let monitor = place(&format!("{pod}/crio-conmon-{ID}.scope"));
        assert_eq!(monitor.container_id, None);
        assert_eq!(role("conmon", Some(&monitor), None, Some(0)), Role::Runtime);
        assert_eq!(role("containerd-shim", Some(&place(pod)), None, Some(0)), Role::Runtime);
        assert_eq!(role("kubelet", Some(&place(pod)), None, Some(0)), Role::Pod);
    }

    #[test]
    fn without_a_cgroup_the_score_tells_or_nothing_does() {
        assert_eq!(role("kubelet", None, Some(-999), Some(0)), Role::Kubelet);
        assert_eq!(role("containerd-shim", None, Some(-998), Some(0)), Role::Runtime);
        assert_eq!(role("kubelet", None, Some(968), Some(0)), Role::Unknown);
        assert_eq!(role("kubelet", None, None, Some(0)), Role::Unknown);
        assert_eq!(role("tail", None, Some(0), Some(0)), Role::Unknown);
        assert_eq!(role("calico-node", None, Some(-997), Some(0)), Role::Cni);
    }

    #[test]
    fn a_name_alone_makes_no_system_process() {
        let pod = place(SYSTEMD);
        let session = place("/user.slice/user-1000.slice/session-3.scope");
        assert_eq!(role("felix", Some(&pod), Some(985), Some(0)), Role::Pod, "a pod that anybody made");
        assert_eq!(role("calico-node", Some(&pod), Some(-997), Some(0)), Role::Cni);
        assert_eq!(role("calico-node", Some(&pod), None, None), Role::Cni, "an old kernel");
        assert_eq!(role("calico-node", None, Some(985), Some(0)), Role::Unknown);
        for name in ["kubelet", "containerd", "flanneld"] {
            assert_eq!(role(name, Some(&session), Some(0), Some(1000)), Role::Other, "{name} of a user's");
            assert_eq!(role(name, None, Some(-999), Some(1000)), Role::Unknown, "{name} of a user's");
        }
    }

    proptest! {
        #[test]
        fn any_path_and_name_are_taken(path in "(/(kubepods|pod)?[-_a-f0-9]{0,40}){0,5}", name in "\\PC{0,20}") {
            let place = place(&path);
            prop_assert!(place.pod_uid.is_none() || place.in_pods);
            prop_assert!(place.container_id.is_none() || place.pod_uid.is_some());
            let _role = role(&name, Some(&place), None, Some(0));
        }
    }
}
