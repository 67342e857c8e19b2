use nodewhy_proto::{OomKill, Role, Subject, SubjectKind};

use crate::oom;
use crate::signs::{certainty, exit_near, exit_told, is_shim};
use crate::{Answer, Case, Cause, Holding, Link, NodeCase, Scope};

pub(super) static CAUSE: Cause = Cause {
    id: "oom_kills_runtime_or_cni",
    title: "The kernel killed the container runtime or the network plugin for want of memory",
    about: "\
Memory ran out, and the kernel's choice fell on containerd, CRI-O, a shim of theirs, or the CNI's agent. A dead runtime \
costs Ready after 30 to 45 s (\"container runtime is down\"). Units that depend on it can take the kubelet down in an \
orderly way: then Ready turns Unknown instead. A dead CNI agent costs Ready only where its configuration goes with it. \
A dead shim costs its own pod alone.

It is seen in the kernel log: the victim's name. It is confused with a clean stop, after which the kernel log is \
silent. Victim, trigger and biggest consumer are three: the victim says nothing of the cause.

Start the unit again, free the memory, and protect the runtime (OOMScoreAdjust=-999 in its unit). The node cannot know \
who placed more on it than it holds.",
    scope: Scope::Node,
    leads_to: &[
        Link::new("containerd_dead", 60),
        Link::new("kubelet_down", 60),
        Link::new("cni_config_missing", 120),
    ],
    remedy: &[
        "systemctl restart containerd (for a CNI agent: restart its pod)",
        "Find the biggest consumer in the kernel's task table: journalctl -k | grep -B 60 oom-kill:",
        "Protect the runtime: OOMScoreAdjust=-999 in its unit. Do not replace the node.",
    ],
    check,
};

fn check(_: &Case, node: &NodeCase) -> Answer {
    // The runtime itself weighs most; a shim's death is the death of one pod.
    let whole = |kill: &OomKill| kill.role == Role::Runtime && !is_shim(&kill.name);
    let any = |kill: &OomKill| matches!(kill.role, Role::Runtime | Role::Cni);
    let Some(kill) = oom::newest(node, whole).or_else(|| oom::newest(node, any)) else {
        let Some(finding) = oom::finding(node, &[SubjectKind::Runtime, SubjectKind::Cni]) else {
            return oom::none(
                node,
                "the kernel log has no OOM kill of a runtime or network plugin in this window",
            );
        };
        return oom::by_finding(node, &finding, "a system process");
    };
    let at = kill.event.at;
    let (mut signals, event) = kill.signals(node);
    let mut because = kill.because();
    because.extend(event);
    because.extend(oom::beside(node, at));
    let exit = exit_near(node, kill.kill.role, at).filter(|(_, change)| change.pid == kill.kill.pid);
    if let Some((exit, change)) = exit {
        signals += 1;
        because.push(exit_told(exit, change));
    }
    let (kind, back) = match (kill.kill.role, is_shim(&kill.kill.name)) {
        (Role::Cni, _) => (SubjectKind::Cni, "Restart the CNI agent's pod on this node."),
        (_, true) => (SubjectKind::Runtime, "A shim died: its pod is restarted by the kubelet."),
        _ => (SubjectKind::Runtime, "systemctl restart containerd (CRI-O: crio), if systemd did not"),
    };
    let mut remedy = vec![back.to_owned()];
    remedy.extend(kill.remedy());
    remedy.push("Do not replace the node.".to_owned());
    let name = &kill.kill.name;
    Answer::Yes(Holding {
        subject: Subject::new(kind, name.clone()),
        since: Some(at),
        ended: Some(at),
        text: match kill.biggest() {
            Some(biggest) => {
                format!("the kernel killed {name} (pid {}); the biggest was {biggest}", kill.kill.pid)
            }
            None => format!("the kernel killed {name} (pid {})", kill.kill.pid),
        },
        because,
        certainty: certainty(signals),
        remedy,
    })
}

#[cfg(test)]
mod tests {
    use super::CAUSE;
    use crate::made::*;
    use nodewhy_proto::{OomScope::Global, Role};

    #[test]
    fn a_kill_of_the_runtime_is_yes_and_weighs_more_than_a_shims() {
        let both = well().killed(10, kill(Global, Role::Runtime, "containerd", 1465));
        let both = both.killed(20, kill(Global, Role::Runtime, "containerd-shim", 77));
        assert_eq!(both.yes(&CAUSE).since, Some(at(10)));
        let agent = well().killed(10, kill(Global, Role::Cni, "calico-node", 5)).yes(&CAUSE);
        assert!(agent.remedy[0].contains("CNI"));
    }

    #[test]
    fn a_kill_of_the_kubelet_is_no() {
        well().killed(10, kill(Global, Role::Kubelet, "kubelet", 998)).no(&CAUSE);
        well().no(&CAUSE);
    }

    #[test]
    fn it_cannot_be_told_without_the_kernel_log() {
        assert!(well().absent("oom").cannot_tell(&CAUSE).contains("oom: absent"));
    }
}
