use nodewhy_proto::{EventBody, Finding};

use crate::signs::{
    RUNTIME_GONE, SILENCED, against, certainty_by, lease_stale_since, silence, standing, told,
};
use crate::{Answer, Case, Cause, Holding, NodeCase, Scope};

pub(super) static CAUSE: Cause = Cause {
    id: "kubelet_wedged",
    title: "The kubelet is alive and does nothing",
    about: "\
The kubelet's process is there, and does not work: it is stopped by a signal (state T), or locked up in itself. If its \
heartbeats stop too, Ready turns Unknown 40 to 55 s after the last one. If only its sync loop is stuck, Ready may stay True while no \
pod is started or ended.

It is seen by the process's state, or by a health endpoint (port 10248) that takes the connection and does not answer, \
or answers an error, while the runtime is well.

It is confused with every cause that holds the sync loop from outside: a runtime that hangs skips the loop too, so a \
hung or missing runtime rules this cause out. And it is confused with a kubelet that is gone.

An \"ok\" on 10248 proves nothing: it is a ping, and says ok while the sync loop is stuck. The loop's own check is on \
port 10250, which asks for a credential with nodes/healthz. Without it, nobody on the node can rule this cause out.",
    scope: Scope::Node,
    leads_to: &[SILENCED],
    remedy: &[
        "kill -QUIT $(pidof kubelet) writes its stacks to the journal and ends it; systemd starts it again.",
        "journalctl -u kubelet keeps the stacks: look for what they all wait for.",
        "Do not replace the node.",
    ],
    check,
};

fn check(case: &Case, node: &NodeCase) -> Answer {
    if let Some(stopped) = standing(node, "kubelet_stopped") {
        let remedy = vec![
            "kill -CONT $(pidof kubelet): it is stopped by a signal, nothing in it is broken.".to_owned(),
            "Do not replace the node.".to_owned(),
        ];
        return yes(case, node, stopped, "the kubelet is stopped", remedy);
    }
    if let Some(absent) = standing(node, "kubelet_absent") {
        return against(absent, "there is no process that could be stuck");
    }
    let outside = RUNTIME_GONE.iter().chain(&["runtime_hung", "runtime_not_ready"]);
    if let Some(runtime) = outside.filter_map(|name| standing(node, name)).min_by_key(|f| f.began) {
        return against(runtime, "the runtime holds the kubelet's loop up");
    }
    let unwell = ["kubelet_healthz_hung", "kubelet_healthz_failing"];
    match unwell.iter().find_map(|name| standing(node, name)) {
        // A runtime that can't be looked at may be what holds it up.
        Some(unwell) => match silence(node, &["runtime"]) {
            // The ping goes over TCP: a kernel that drops packets of new connections loses it on loopback too.
            Ok(()) if drops_packets(node) => Answer::CannotTell {
                missing: vec![
                    "whether the kubelet itself is silent: the kernel says that it drops packets of new connections, \
                     and the kubelet's ping is one"
                        .to_owned(),
                ],
            },
            Ok(()) => yes(case, node, unwell, "the kubelet is alive and unwell", Vec::new()),
            Err(missing) => Answer::CannotTell { missing },
        },
        None => quiet(node),
    }
}

/// The kernel said so within the case's window: its conntrack or neighbour table was full.
fn drops_packets(node: &NodeCase) -> bool {
    node.events.known().into_iter().flatten().any(|event| match &event.body {
        EventBody::KernelMessage(message) => {
            ["conntrack_table_full", "neighbor_table_overflow"].contains(&message.pattern.as_str())
        }
        _ => false,
    })
}

fn yes(case: &Case, node: &NodeCase, finding: &Finding, what: &str, remedy: Vec<String>) -> Answer {
    let silent = lease_stale_since(node, finding.began, case.window.to);
    // What a stopped kubelet leads to by itself: it is told here, and is a second look at the same fault.
    let health = ["kubelet_healthz_hung", "kubelet_healthz_failing"];
    let health = health.iter().find_map(|name| standing(node, name)).filter(|health| health.id != finding.id);
    let signals = 1 + usize::from(silent.is_some()) + usize::from(health.is_some());
    let mut because = told(finding);
    because.extend(health.into_iter().flat_map(told));
    because.extend(silent);
    Answer::Yes(Holding {
        subject: finding.subject.clone(),
        since: Some(finding.began),
        ended: finding.ended,
        text: format!("{what}: {}", finding.summary),
        because,
        certainty: certainty_by(node, "kubelet", signals),
        remedy,
    })
}

/// Nothing was found. That a loop is not stuck is shown by nothing that this agent reads.
fn quiet(node: &NodeCase) -> Answer {
    let mut missing = match silence(node, &["kubelet", "runtime"]) {
        Ok(()) => Vec::new(),
        Err(missing) => missing,
    };
    missing.push(
        "the sync loop's own check on the kubelet's port 10250 (needs nodes/healthz): 10248 says ok while the loop is \
         stuck"
            .to_owned(),
    );
    if let Some(refused) = standing(node, "kubelet_healthz_refused") {
        missing.push(format!("why port 10248 refuses: {}", refused.summary));
    }
    Answer::CannotTell { missing }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::CAUSE;
    use crate::made::*;
    use nodewhy_proto::SubjectKind::{Kubelet, Runtime};
    use nodewhy_proto::{EventBody, KernelMessage};

    #[test]
    fn a_stopped_one_is_yes_and_so_is_a_silent_one_beside_a_runtime_that_is_well() {
        let stopped = well().found("kubelet", "kubelet_stopped", Kubelet, "kubelet", 10).yes(&CAUSE);
        assert!(stopped.remedy[0].contains("kill -CONT"));
        let silent = well().found("kubelet", "kubelet_healthz_hung", Kubelet, "kubelet", 10);
        assert_eq!(silent.yes(&CAUSE).certainty, 0.8);
    }

    /// As in the proving ground: a stopped kubelet's health endpoint hangs some seconds later, and is no riddle then.
    #[test]
    fn a_stopped_one_whose_health_endpoint_hangs_is_told_with_both() {
        let stopped = well().found("kubelet", "kubelet_stopped", Kubelet, "kubelet", 10);
        let both = stopped.found("kubelet", "kubelet_healthz_hung", Kubelet, "kubelet", 5);
        let alone = well().found("kubelet", "kubelet_stopped", Kubelet, "kubelet", 10).yes(&CAUSE);
        let both = both.yes(&CAUSE);
        assert!(both.because.len() > alone.because.len(), "{:?}", both.because);
        assert!(both.certainty > alone.certainty);
    }

    /// As in the proving ground: with conntrack full, the kubelet's ping on loopback is dropped, and the kubelet is well.
    #[test]
    fn a_ping_that_the_kernel_may_have_dropped_accuses_nobody() {
        let full = EventBody::KernelMessage(KernelMessage {
            pattern: "conntrack_table_full".to_owned(),
            fields: BTreeMap::new(),
            line: "nf_conntrack: nf_conntrack: table full, dropping packet".to_owned(),
            kmsg_seq: Some(900),
            count: 1,
        });
        let hung = well().found("kubelet", "kubelet_healthz_hung", Kubelet, "kubelet", 10);
        assert!(hung.happened("kmsg/900", 12, "oom", full).cannot_tell(&CAUSE).contains("drops packets"));
    }

    #[test]
    fn a_hung_runtime_holds_the_loop_up_and_is_no() {
        let hung = well().found("kubelet", "kubelet_healthz_failing", Kubelet, "kubelet", 20);
        assert!(hung.found("runtime", "runtime_hung", Runtime, "s", 10).no(&CAUSE).contains("runtime"));
        well().found("kubelet", "kubelet_absent", Kubelet, "kubelet", 10).no(&CAUSE);
    }

    #[test]
    fn an_ok_of_10248_proves_nothing() {
        assert!(well().cannot_tell(&CAUSE).contains("10250"));
        let unseen =
            well().found("kubelet", "kubelet_healthz_hung", Kubelet, "kubelet", 10).failed("runtime");
        assert!(unseen.cannot_tell(&CAUSE).contains("runtime: failed"));
    }
}
