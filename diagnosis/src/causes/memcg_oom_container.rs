use nodewhy_proto::{Evidence, OomKill, OomScope, Subject, SubjectKind};

use crate::oom;
use crate::signs::certainty;
use crate::{Answer, Case, Cause, Holding, NodeCase, Scope};

pub(super) static CAUSE: Cause = Cause {
    id: "memcg_oom_container",
    title: "A container hit its memory limit, and the kernel killed it",
    about: "\
A container, or its pod, reached its own memory limit, and the kernel killed in it. The node's memory is not short. This \
never takes Ready away.

It is seen in the kernel log: CONSTRAINT_MEMCG. oom_memcg is the cgroup whose limit was hit, task_memcg the victim's. If \
both are the container's, its own limit was hit; if oom_memcg is the pod's slice, the limit of the pod as a whole. With \
memory.oom.group the kernel kills all processes of the container and logs the first victim twice: one kill, not \
several. The API says OOMKilled, exit code 137; when the two differ, the kernel log is right.

It is confused with a global OOM, and with the limit of all pods together (oom_memcg is kubepods itself). Exit code 137 \
alone proves nothing: a failed liveness probe ends in it too.

Raise the limit or mend the leak. The node cannot know whether the limit is wrong or the load.",
    scope: Scope::Node,
    leads_to: &[],
    remedy: &["Raise the container's memory limit, or find what grew: memory.peak and memory.stat in its cgroup."],
    check,
};

/// Whose limit was hit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Limit {
    Container,
    Pod,
    AllPods,
    NotKnown,
}

fn check(_: &Case, node: &NodeCase) -> Answer {
    let at_own_limit =
        |kill: &OomKill| kill.scope == OomScope::Memcg && oom::in_pod(kill) && limit(kill) != Limit::AllPods;
    let Some(kill) = oom::newest(node, at_own_limit) else {
        if let Some(other) = oom::newest(node, oom::in_pod).filter(|one| one.kill.scope != OomScope::Unknown)
        {
            let mut because = other.because();
            let text = "not a container's own limit: memory had run out above it";
            because.push(Evidence::new(text, format!("event {}", other.event.id)));
            return Answer::No { because };
        }
        return oom::none(node, "the kernel log has no OOM kill at a container's limit in this window");
    };
    let (signals, event) = kill.signals(node);
    let mut because = kill.because();
    because.extend(event);
    let whose = match limit(kill.kill) {
        Limit::Container => "a container hit its own memory limit",
        Limit::Pod => "a pod hit the memory limit of the pod as a whole",
        Limit::AllPods | Limit::NotKnown => "a pod's process was killed at a cgroup's memory limit",
    };
    Answer::Yes(Holding {
        subject: match (&kill.kill.container_id, &kill.kill.pod_uid) {
            (Some(id), _) => Subject::new(SubjectKind::Container, id.clone()),
            (None, Some(uid)) => Subject::new(SubjectKind::Pod, uid.clone()),
            (None, None) => {
                Subject::new(SubjectKind::Process, format!("{}[{}]", kill.kill.name, kill.kill.pid))
            }
        },
        since: Some(kill.event.at),
        ended: Some(kill.event.at),
        text: format!("{whose}: {}", kill.line()),
        because,
        certainty: certainty(signals),
        remedy: kill.remedy(),
    })
}

/// By the limit's cgroup beside the victim's. A path's last part tells the level: `kubepods…` alone is all pods or
/// a class of them, one with `pod` and a UID is a pod, what stands beneath it a container.
fn limit(kill: &OomKill) -> Limit {
    let Some(path) = kill.limit_cgroup.as_deref() else { return Limit::NotKnown };
    let last = path.trim_end_matches('/').rsplit('/').next().unwrap_or(path);
    let in_container = kill.container_id.as_deref().is_some_and(|id| last.contains(id));
    if in_container || kill.victim_cgroup.as_deref() == Some(path) {
        return Limit::Container;
    }
    let uid = kill.pod_uid.as_deref();
    let of_pod = uid.is_some_and(|uid| last.contains(uid) || last.contains(&uid.replace('-', "_")));
    let name = last.trim_end_matches(".slice");
    let of_all = ["kubepods", "burstable", "besteffort", "guaranteed"];
    if of_pod {
        Limit::Pod
    } else if of_all.contains(&name.rsplit('-').next().unwrap_or(name)) {
        Limit::AllPods
    } else {
        Limit::NotKnown
    }
}

#[cfg(test)]
mod tests {
    use super::CAUSE;
    use crate::made::*;
    use nodewhy_proto::{
        OomKill,
        OomScope::{Global, Memcg},
        Role,
    };

    // Recorded on Linux 7.2.13, Debian sid: a pod of 48Mi, killed by memory.oom.group.
    const POD: &str = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podc12ef941_6a22_4f38_8101_61b41df7a6b6.slice";
    const CONTAINER: &str =
        "cri-containerd-b0b795bead51d415fc6af03eca6d9322f073f00f26866ef237845e33f0784586.scope";

    fn at_limit(limit: &str) -> OomKill {
        OomKill {
            limit_cgroup: Some(limit.to_owned()),
            victim_cgroup: Some(format!("{POD}/{CONTAINER}")),
            pod_uid: Some("c12ef941-6a22-4f38-8101-61b41df7a6b6".to_owned()),
            container_id: Some("b0b795bead51d415fc6af03eca6d9322f073f00f26866ef237845e33f0784586".to_owned()),
            ..kill(Memcg, Role::Pod, "tail", 4404)
        }
    }

    #[test]
    fn a_pods_limit_and_a_containers_are_told_apart() {
        assert!(well().killed(10, at_limit(POD)).yes(&CAUSE).text.contains("the pod as a whole"));
        let own = at_limit(&format!("{POD}/{CONTAINER}"));
        assert!(well().killed(10, own).yes(&CAUSE).text.contains("its own memory limit"));
    }

    #[test]
    fn the_limit_of_all_pods_and_a_global_kill_are_no() {
        well().killed(10, at_limit("/kubepods.slice")).no(&CAUSE);
        well().killed(10, at_limit("/kubepods.slice/kubepods-burstable.slice")).no(&CAUSE);
        well().killed(10, kill(Global, Role::Pod, "tail", 4404)).no(&CAUSE);
        well().no(&CAUSE);
    }

    #[test]
    fn it_cannot_be_told_without_the_kernel_log() {
        well().failed("oom").cannot_tell(&CAUSE);
    }
}
