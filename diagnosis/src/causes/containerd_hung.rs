use crate::signs::{
    RUNTIME_GONE, RUNTIME_SILENT, against, certainty_by, clean, ready_says, standing, told, within,
};
use crate::{Answer, Case, Cause, Holding, Link, NodeCase, Scope, Unready};

pub(super) static CAUSE: Cause = Cause {
    id: "containerd_hung",
    title: "The container runtime hangs: it accepts connections and answers nothing",
    about: "\
The runtime's process lives and its socket takes connections, but Version and Status are not answered. It may be \
stopped by a signal (state T), locked up in itself, or waiting for a disk.

It is seen by a call of our own that has no answer for 10 s, or for 3 s when the process is stopped or a zombie. The \
API learns of it late: the kubelet's status update waits for a CRI call with a time limit of 2 minutes, so Ready turns \
False (\"container runtime is down\") only about 120 s after, and \"PLEG is not healthy\" is added from 3 minutes on. \
The kubelet's own /healthz says ok all that time.

It is confused with a dead runtime, which refuses connections, and with a hung or very slow disk beneath it, which \
reads the same word for word: then io pressure is high and tasks wait in state D. If only one pod's calls hang, it is \
not this cause.

Take a stack dump before the restart, or the reason is lost. The node cannot know who sent a stop signal.",
    scope: Scope::Node,
    leads_to: &[Link::unready(Unready::False(RUNTIME_SILENT), 115, 135, 300)],
    remedy: &[
        "kill -USR1 $(pidof containerd) writes its stacks to the journal; keep them.",
        "systemctl restart containerd; running containers stay.",
        "Do not replace the node.",
    ],
    check,
};

fn check(_: &Case, node: &NodeCase) -> Answer {
    let Some(hung) = standing(node, "runtime_hung") else {
        if let Some(gone) = RUNTIME_GONE.iter().find_map(|name| standing(node, name)) {
            return against(gone, "nobody accepts connections");
        }
        return clean(node, "runtime", "the runtime answers Version and Status");
    };
    let stopped =
        hung.evidence.iter().any(|evidence| is_stopped(&evidence.text)) || is_stopped(&hung.summary);
    let mut because = told(hung);
    let said = ready_says(node, RUNTIME_SILENT);
    let signals = 1 + usize::from(stopped) + usize::from(said.is_some());
    because.extend(said);
    let mut certainty = certainty_by(node, "runtime", signals);
    // A stopped process does not wait for a disk. One that is not stopped may.
    let disk = standing(node, "io_stalled").filter(|disk| !stopped && within(hung.began, disk.began, hold()));
    if let Some(disk) = disk {
        certainty = certainty.min(0.6);
        because.push(nodewhy_proto::Evidence::new(
            format!("it may wait for a disk, which reads the same: {}", disk.summary),
            "finding io_stalled of the pressure collector",
        ));
    }
    let remedy = if stopped {
        vec![
            "kill -CONT $(pidof containerd): its process is stopped by a signal, nothing in it is broken."
                .to_owned(),
            "If it stays silent: systemctl restart containerd; running containers stay.".to_owned(),
            "Do not replace the node.".to_owned(),
        ]
    } else {
        Vec::new()
    };
    Answer::Yes(Holding {
        subject: hung.subject.clone(),
        since: Some(hung.began),
        ended: hung.ended,
        text: format!("the container runtime hangs: {}", hung.summary),
        because,
        certainty,
        remedy,
    })
}

/// io_stalled holds for 10 s before it is a finding, on an average of 10 s.
fn hold() -> std::time::Duration {
    std::time::Duration::from_secs(20)
}

fn is_stopped(text: &str) -> bool {
    ["state T", "state t", "stopped"].iter().any(|sign| text.contains(sign))
}

#[cfg(test)]
mod tests {
    use super::CAUSE;
    use crate::made::*;
    use nodewhy_proto::{
        Evidence, Outcome,
        SubjectKind::{Node, Runtime},
    };

    const SOCKET: &str = "/run/containerd/containerd.sock";

    #[test]
    fn an_unanswered_call_is_yes_and_a_stopped_process_makes_it_surer() {
        let mut hung = well().found("runtime", "runtime_hung", Runtime, SOCKET, 10);
        assert_eq!(hung.clone().yes(&CAUSE).certainty, 0.8);
        hung.findings[0]
            .evidence
            .push(Evidence::new("containerd (pid 1465) is in state T", "/proc/1465/stat"));
        let stopped = hung.yes(&CAUSE);
        assert_eq!(stopped.certainty, 0.9);
        assert!(stopped.remedy[0].contains("kill -CONT"));
    }

    #[test]
    fn a_finding_whose_collector_is_stuck_is_less_sure() {
        let hung = well().found("runtime", "runtime_hung", Runtime, SOCKET, 10);
        let stuck = hung.collector("runtime", Outcome::Stuck { since: at(12) });
        assert_eq!(stuck.yes(&CAUSE).certainty, 0.7);
    }

    #[test]
    fn a_stalled_disk_beneath_reads_the_same() {
        let disk = well().found("runtime", "runtime_hung", Runtime, SOCKET, 10);
        let disk = disk.found("pressure", "io_stalled", Node, "", 15).yes(&CAUSE);
        assert_eq!(disk.certainty, 0.6);
    }

    #[test]
    fn a_dead_one_is_no() {
        assert!(
            well().found("runtime", "runtime_refused", Runtime, SOCKET, 10).no(&CAUSE).contains("nobody")
        );
        well().no(&CAUSE);
    }

    #[test]
    fn it_cannot_be_told_where_there_is_no_runtime_to_ask() {
        assert!(well().absent("runtime").cannot_tell(&CAUSE).contains("runtime: absent"));
    }
}
