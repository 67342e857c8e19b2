use nodewhy_proto::{OomScope, Role, Subject, SubjectKind};

use crate::oom;
use crate::signs::{SILENCED, certainty, exit_near, exit_told};
use crate::{Answer, Case, Cause, Holding, Link, NodeCase, Scope};

pub(super) static CAUSE: Cause = Cause {
    id: "oom_kills_kubelet",
    title: "The kernel killed the kubelet for want of memory",
    about: "\
The node's memory ran out, and the kernel's choice fell on the kubelet. systemd starts it again after 10 s as a rule, \
but a starved node can take minutes, and the kill repeats. Without heartbeats Ready turns Unknown.

It is seen in the kernel log: an oom-kill line with global_oom and task=kubelet. The API only sees silence, and an \
Event SystemOOM after the restart. That Event is no clock: a kubelet that starts again reads the kernel log from its \
start and posts old kills anew.

Three are told apart. The victim is the kubelet. The trigger is whose allocation asked for memory at that moment. The \
biggest consumer is who held it; it can be in no kill line at all, if its oom_score_adj is -1000. It is confused with a \
partition, where the kernel log is silent, and with a clean stop.

Free the memory first: find the biggest and give it a limit. Reserve memory for the system. A kubelet's oom_score_adj \
is -999 by its own setting; another value is a fault in the unit. A kill at the limit of the kubelet's own unit is a \
matter of that limit, not of the node's memory.",
    scope: Scope::Node,
    leads_to: &[Link::new("kubelet_down", 30), SILENCED],
    remedy: &[
        "systemctl status kubelet; if it does not run: systemctl start kubelet",
        "Find the biggest consumer in the kernel's task table: journalctl -k | grep -B 60 oom-kill:",
        "Give it a memory limit, and reserve memory for the system. Do not replace the node.",
    ],
    check,
};

fn check(_: &Case, node: &NodeCase) -> Answer {
    let Some(kill) = oom::newest(node, |kill| kill.role == Role::Kubelet) else {
        // The event can be lost where the finding is not.
        let Some(finding) = oom::finding(node, &[SubjectKind::Kubelet]) else {
            return oom::none(node, "the kernel log has no OOM kill of a kubelet in this window");
        };
        return oom::by_finding(node, &finding, "the kubelet");
    };
    let at = kill.event.at;
    let (mut signals, event) = kill.signals(node);
    let mut because = kill.because();
    because.extend(event);
    because.extend(oom::beside(node, at));
    if let Some((exit, change)) = exit_near(node, Role::Kubelet, at).filter(|(_, c)| c.pid == kill.kill.pid) {
        signals += 1;
        because.push(exit_told(exit, change));
    }
    let back = "systemctl status kubelet; if it does not run: systemctl start kubelet";
    let mut remedy = vec![back.to_owned()];
    remedy.extend(kill.remedy());
    remedy.push("Do not replace the node.".to_owned());
    let whose = if kill.kill.scope == OomScope::Memcg { " at a cgroup's limit" } else { "" };
    Answer::Yes(Holding {
        subject: Subject::new(SubjectKind::Kubelet, kill.kill.name.clone()),
        since: Some(at),
        ended: Some(at),
        text: match kill.biggest() {
            Some(biggest) => format!("the kernel killed the kubelet{whose}; the biggest was {biggest}"),
            None => format!("the kernel killed the kubelet{whose} (pid {})", kill.kill.pid),
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
    use nodewhy_proto::{
        EventBody, FactBody, Gap,
        OomScope::{Global, Memcg},
        OomTask, Outcome, Role,
        SubjectKind::Kubelet,
    };

    #[test]
    fn a_kill_of_the_kubelet_is_yes_with_victim_trigger_and_biggest_apart() {
        let mut victim = kill(Global, Role::Kubelet, "kubelet", 998);
        victim.biggest =
            vec![OomTask { pid: 4711, name: "java".into(), rss_bytes: 65_713_281_434, oom_score_adj: 984 }];
        let yes = well().killed(10, victim).yes(&CAUSE);
        assert!(yes.text.contains("java[4711], which held 61.2 GiB"), "{}", yes.text);
        assert!(
            yes.because[0].text.contains("kubelet (pid 998)") && yes.because[0].source == "/dev/kmsg 48213"
        );
        assert!(yes.because[1].text.contains("asked for by gateway"));
        assert!(yes.remedy.iter().any(|line| line.contains("/proc/4711/cgroup")));
        assert_eq!(yes.certainty, 0.9);
    }

    #[test]
    fn an_event_of_the_api_counts_for_the_same_pid_alone() {
        let killed = || well().killed(10, kill(Global, Role::Kubelet, "kubelet", 47));
        let said = |pid| FactBody::Event {
            reason: "SystemOOM".into(),
            message: format!("System OOM encountered, victim process: kubelet, pid: {pid}"),
            reporter: "kubelet".into(),
            count: 1,
        };
        assert_eq!(killed().said(30, "Event x", said(4711)).yes(&CAUSE).certainty, 0.9);
        assert_eq!(killed().said(30, "Event x", said(47)).yes(&CAUSE).certainty, 0.95);
    }

    #[test]
    fn the_finding_stands_in_for_a_lost_event() {
        assert_eq!(
            well().found("oom", "system_process_oom_killed", Kubelet, "kubelet", 10).yes(&CAUSE).certainty,
            0.8
        );
    }

    #[test]
    fn another_victim_is_no() {
        well().killed(10, kill(Memcg, Role::Pod, "java", 5)).no(&CAUSE);
        well().no(&CAUSE);
    }

    #[test]
    fn it_cannot_be_told_without_the_kernel_log_or_with_a_hole_in_the_events() {
        well().failed("oom").cannot_tell(&CAUSE);
        let gap = Gap { from: "1".into(), to: "9".into(), count: Some(8) };
        well().happened("gap", 20, "agent", EventBody::Gap(gap)).cannot_tell(&CAUSE);
        let restart = || EventBody::Gap(Gap { from: "1".into(), to: "9".into(), count: None });
        well().happened("gap", 20, "agent", restart()).cannot_tell(&CAUSE);
    }

    #[test]
    fn an_agent_that_was_started_anew_has_read_the_kernel_log_again() {
        let restart = EventBody::Gap(Gap { from: "1".into(), to: "9".into(), count: None });
        let read = EventBody::OutcomeChanged { collector: "oom".to_owned(), result: Outcome::Read };
        well().happened("read", 19, "oom", read).happened("gap", 20, "agent", restart).no(&CAUSE);
    }
}
