use nodewhy_proto::{OomScope, Subject, SubjectKind};

use crate::oom;
use crate::signs::certainty;
use crate::{Answer, Case, Cause, Holding, NodeCase, Scope};

pub(super) static CAUSE: Cause = Cause {
    id: "global_oom_pod",
    title: "The node ran out of memory, and the kernel killed a pod's process",
    about: "\
The whole node's memory ran out, not a container's limit. The kernel chose a process of a pod. By itself this never \
takes Ready away. The next choice may be the kubelet or the runtime, and that does.

It is seen in the kernel log: global_oom, with the victim in a pod's cgroup. The API has an Event SystemOOM, which the \
kubelet posts for global kills only, and perhaps a container that ended with 137.

It is confused with a kill at a container's own limit (CONSTRAINT_MEMCG), which says nothing of the node. The victim is \
not the culprit: look at the biggest consumer in the kernel's task table. It may be no pod at all.

Set requests and limits, and raise what is reserved for the system. The node cannot know which placement was intended.",
    scope: Scope::Node,
    leads_to: &[],
    remedy: &[
        "Find the biggest consumer in the kernel's task table: journalctl -k | grep -B 60 oom-kill:",
        "Give it a memory limit; raise --system-reserved and --kube-reserved.",
    ],
    check,
};

fn check(_: &Case, node: &NodeCase) -> Answer {
    let Some(kill) = oom::newest(node, |kill| kill.scope == OomScope::Global && oom::in_pod(kill)) else {
        if let Some(other) =
            oom::newest(node, oom::in_pod).filter(|other| other.kill.scope == OomScope::Memcg)
        {
            return Answer::No { because: other.because() };
        }
        return oom::none(node, "the kernel log has no global OOM kill of a pod's process in this window");
    };
    let (signals, event) = kill.signals(node);
    let mut because = kill.because();
    because.extend(event);
    let victim = kill.kill.pod_uid.as_ref().map_or_else(
        || format!("{} (pid {})", kill.kill.name, kill.kill.pid),
        |uid| format!("{} (pid {}) of the pod with UID {uid}", kill.kill.name, kill.kill.pid),
    );
    Answer::Yes(Holding {
        subject: match &kill.kill.pod_uid {
            Some(uid) => Subject::new(SubjectKind::Pod, uid.clone()),
            None => Subject::new(SubjectKind::Process, format!("{}[{}]", kill.kill.name, kill.kill.pid)),
        },
        since: Some(kill.event.at),
        ended: Some(kill.event.at),
        text: match kill.biggest() {
            Some(biggest) => {
                format!("the node ran out of memory; {victim} was killed, the biggest was {biggest}")
            }
            None => format!("the node ran out of memory; {victim} was killed"),
        },
        because,
        certainty: certainty(signals),
        remedy: kill.remedy(),
    })
}

#[cfg(test)]
mod tests {
    use super::CAUSE;
    use crate::made::*;
    use nodewhy_proto::{
        OomKill,
        OomScope::{Global, Memcg},
        OomTask, Role,
    };

    fn pod(scope: nodewhy_proto::OomScope) -> OomKill {
        let uid = Some("c12ef941-6a22-4f38-8101-61b41df7a6b6".to_owned());
        OomKill { pod_uid: uid, ..kill(scope, Role::Pod, "tail", 4404) }
    }

    #[test]
    fn a_global_kill_in_a_pod_is_yes_and_names_who_may_never_be_chosen() {
        let mut victim = pod(Global);
        victim.biggest =
            vec![OomTask { pid: 9, name: "hog".into(), rss_bytes: 1 << 33, oom_score_adj: -1000 }];
        let yes = well().killed(10, victim).yes(&CAUSE);
        assert!(yes.text.contains("hog[9], which held 8.0 GiB (oom_score_adj -1000"), "{}", yes.text);
        assert!(yes.text.contains("c12ef941"));
    }

    #[test]
    fn a_kill_at_a_containers_limit_is_no() {
        assert!(well().killed(10, pod(Memcg)).no(&CAUSE).contains("limit"));
        well().no(&CAUSE);
    }

    #[test]
    fn it_cannot_be_told_without_the_kernel_log() {
        well().failed("oom").cannot_tell(&CAUSE);
    }
}
