use std::time::Duration;

use nodewhy_proto::{ConditionStatus, Evidence, Role};

use crate::signs::{
    SILENCED, against, certainty_by, clean, clock_time, exit_near, exit_told, lease_stale_since, standing,
    told, within,
};
use crate::{Answer, Case, Cause, Holding, NodeCase, Scope};

pub(super) static CAUSE: Cause = Cause {
    id: "kubelet_down",
    title: "The kubelet is not running",
    about: "\
The kubelet's process has ended and is not back. Nobody renews the node's Lease or posts its status. When nothing was \
heard for the grace period (50 s; 40 s up to Kubernetes 1.31), the controller-manager sets Ready to Unknown: 40 to 55 s \
after, counted from the last heartbeat. Containers go on running.

It is seen by the missing process, the moment that it ends. The API says \"Kubelet stopped posting node status.\", for \
this and for everything else that silences a node.

It is confused with a partition, where the process lives and is cut off, with a kubelet that is stopped or locked up, \
and with a restart: a kubelet that is back within seconds costs nothing. One that is restarted over and over is down \
for the cluster all the same.

Its last lines tell why it ended. If the kernel killed it for want of memory, that is the root. The node cannot tell \
whether a person or a tool stopped the unit.",
    scope: Scope::Node,
    leads_to: &[SILENCED],
    remedy: &[
        "systemctl start kubelet",
        "journalctl -u kubelet -n 100 and systemctl status kubelet tell how it ended.",
        "Do not replace the node: its containers still run.",
    ],
    check,
};

/// systemd starts it again after RestartSec, 10 s in the packages' units; the start itself takes seconds.
const RESTART: Duration = Duration::from_secs(13);

fn check(case: &Case, node: &NodeCase) -> Answer {
    if let Some(absent) = standing(node, "kubelet_absent") {
        let exit = exit_near(node, Role::Kubelet, absent.began);
        let silent = lease_stale_since(node, absent.began, case.window.to);
        let signals = 1 + usize::from(exit.is_some()) + usize::from(silent.is_some());
        let mut certainty = certainty_by(node, "kubelet", signals);
        let mut because = told(absent);
        because.extend(exit.map(|(event, change)| exit_told(event, change)));
        if silent.is_none() && absent.is_active() && within(absent.began, case.window.to, RESTART) {
            // It may be a restart, which costs nothing.
            certainty = certainty.min(0.8);
        }
        because.extend(silent);
        return Answer::Yes(Holding {
            subject: absent.subject.clone(),
            since: Some(exit.map_or(absent.began, |(event, _)| event.at.min(absent.began))),
            ended: absent.ended,
            text: format!("the kubelet is not running: {}", absent.summary),
            because,
            certainty,
            remedy: Vec::new(),
        });
    }
    let loop_of_starts = standing(node, "kubelet_restarting");
    let unknown = node.ready().is_some_and(|ready| ready.status == ConditionStatus::Unknown);
    if let Some(restarting) = loop_of_starts {
        if !unknown {
            return against(restarting, "it is restarted, and is there again each time");
        }
        return Answer::Yes(Holding {
            subject: restarting.subject.clone(),
            since: Some(restarting.began),
            ended: restarting.ended,
            text: format!("the kubelet is started over and over: {}", restarting.summary),
            because: told(restarting),
            certainty: certainty_by(node, "kubelet", 1).min(0.7),
            remedy: Vec::new(),
        });
    }
    match (clean(node, "kubelet", "the kubelet's process is there"), node.finding("kubelet_absent")) {
        (Answer::No { mut because }, Some(over)) => {
            if let Some(ended) = over.ended {
                let text = format!("it was gone from {} and is back", clock_time(over.began));
                because.push(
                    Evidence::new(text, "finding kubelet_absent of the kubelet collector").with_time(ended),
                );
            }
            Answer::No { because }
        }
        (answer, _) => answer,
    }
}

#[cfg(test)]
mod tests {
    use super::CAUSE;
    use crate::made::*;
    use nodewhy_proto::{Role, SubjectKind::Kubelet};

    fn absent() -> Made {
        well().found("kubelet", "kubelet_absent", Kubelet, "kubelet", 10)
    }

    #[test]
    fn a_missing_process_is_yes_and_more_signals_make_it_surer() {
        assert_eq!(absent().yes(&CAUSE).certainty, 0.8);
        // At first it may be a restart.
        assert_eq!(absent().exited(9, Role::Kubelet, "kubelet", 998).to(15).yes(&CAUSE).certainty, 0.8);
        let exit = absent().exited(9, Role::Kubelet, "kubelet", 998);
        assert_eq!(exit.clone().yes(&CAUSE).certainty, 0.9);
        let silent = exit.renewed(5).yes(&CAUSE);
        assert_eq!((silent.certainty, silent.since), (0.95, Some(at(9))));
        // Renewed after: the Lease is no signal for it.
        assert_eq!(absent().renewed(95).yes(&CAUSE).certainty, 0.8);
    }

    #[test]
    fn a_restart_is_no_and_so_is_a_stopped_one() {
        let back = well().found_until("kubelet", "kubelet_absent", Kubelet, "kubelet", (10, Some(14)));
        assert!(back.no(&CAUSE).contains("is back"));
        well().found("kubelet", "kubelet_restarting", Kubelet, "kubelet", 10).no(&CAUSE);
        well().found("kubelet", "kubelet_stopped", Kubelet, "kubelet", 10).no(&CAUSE);
        well().no(&CAUSE);
    }

    #[test]
    fn it_cannot_be_told_where_no_kubelet_can_be_looked_for() {
        assert!(well().absent("kubelet").cannot_tell(&CAUSE).contains("kubelet: absent"));
    }
}
