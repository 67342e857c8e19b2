use nodewhy_proto::Role;

use crate::signs::{
    RUNTIME_DOWN, RUNTIME_GONE, against, certainty_by, clean, exit_near, exit_told, ready_says, standing,
    told, within,
};
use crate::{Answer, Case, Cause, Holding, Link, NodeCase, Scope, Unready};

pub(super) static CAUSE: Cause = Cause {
    id: "containerd_dead",
    title: "The container runtime is gone: nobody answers on its socket",
    about: "\
The runtime's process has ended, or its socket is gone. The kubelet asks it for its status each 5 s; when the last \
good answer is 30 s old, the kubelet itself sets Ready to False. Containers that run go on running: their shims do \
not need the runtime.

It is seen by a connect that is refused or that finds no socket, and by the end of the process. The API says \
\"container runtime is down\", 30 to 45 s later. The kubelet's own /healthz goes on saying ok.

It is confused with a hung runtime, where the connect works and the answer never comes, and with a deleted CNI \
folder, where the CRI is gone while the runtime's process lives.

Look at how it ended before the restart: the unit's log, and the kernel log for an OOM kill. The node cannot know \
who stopped a unit that was stopped in an orderly way.",
    scope: Scope::Node,
    leads_to: &[Link::unready(Unready::False(RUNTIME_DOWN), 30, 45, 120)],
    remedy: &[
        "systemctl restart containerd (CRI-O: systemctl restart crio)",
        "journalctl -u containerd -n 100 tells how it ended.",
        "Do not replace the node: its containers still run.",
    ],
    check,
};

/// How much later than the folder's end the CRI's end may be seen and still come of it.
const BY_THE_FOLDER: std::time::Duration = std::time::Duration::from_secs(60);

fn check(_: &Case, node: &NodeCase) -> Answer {
    let Some(gone) = RUNTIME_GONE.iter().filter_map(|name| standing(node, name)).min_by_key(|f| f.began)
    else {
        if let Some(hung) = standing(node, "runtime_hung") {
            return against(hung, "the runtime accepts connections");
        }
        return clean(node, "runtime", "the runtime answers on its socket");
    };
    let exit = exit_near(node, Role::Runtime, gone.began);
    let folder = standing(node, "cni_config_dir_missing");
    if exit.is_none() && folder.is_some_and(|folder| within(folder.began, gone.began, BY_THE_FOLDER)) {
        // containerd stops its whole CRI service over a deleted CNI folder, and lives on.
        return Answer::CannotTell {
            missing: vec![
                "the end of the runtime's process: none was seen, and a containerd whose CNI folder was deleted lives on \
                 without a CRI (see cni_dir_deleted_stops_cri)"
                    .to_owned(),
            ],
        };
    }
    let mut because = told(gone);
    because.extend(exit.map(|(event, change)| exit_told(event, change)));
    let said = ready_says(node, RUNTIME_DOWN);
    let signals = 1 + usize::from(exit.is_some()) + usize::from(said.is_some());
    because.extend(said);
    let since = exit.map_or(gone.began, |(event, _)| event.at.min(gone.began));
    Answer::Yes(Holding {
        subject: gone.subject.clone(),
        since: Some(since),
        ended: gone.ended,
        text: format!("the container runtime is gone: {}", gone.summary),
        because,
        certainty: certainty_by(node, "runtime", signals),
        remedy: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::CAUSE;
    use crate::made::*;
    use nodewhy_proto::{
        ConditionStatus, Role,
        SubjectKind::{Cni, Runtime},
    };

    const SOCKET: &str = "/run/containerd/containerd.sock";

    #[test]
    fn a_refused_socket_is_yes_and_more_signals_make_it_surer() {
        let refused = || well().found("runtime", "runtime_refused", Runtime, SOCKET, 10);
        let alone = refused().yes(&CAUSE);
        assert_eq!((alone.since, alone.certainty), (Some(at(10)), 0.8));
        let exit = refused().exited(8, Role::Runtime, "containerd", 1465);
        assert_eq!(exit.clone().yes(&CAUSE).since, Some(at(8)));
        let said = exit.ready(45, ConditionStatus::False, "container runtime is down");
        assert!(said.yes(&CAUSE).certainty > alone.certainty);
    }

    #[test]
    fn a_shims_end_is_not_the_runtimes() {
        let shim = well().found("runtime", "runtime_refused", Runtime, SOCKET, 10);
        assert_eq!(shim.exited(9, Role::Runtime, "containerd-shim", 77).yes(&CAUSE).certainty, 0.8);
    }

    #[test]
    fn a_hung_runtime_is_no() {
        assert!(well().found("runtime", "runtime_hung", Runtime, SOCKET, 10).no(&CAUSE).contains("accepts"));
        well().no(&CAUSE);
    }

    #[test]
    fn one_that_came_back_before_anything_was_lost_is_no() {
        well().found_until("runtime", "runtime_refused", Runtime, SOCKET, (10, Some(14))).no(&CAUSE);
    }

    #[test]
    fn it_cannot_be_told_without_the_collector_or_beside_a_deleted_cni_folder() {
        assert!(well().failed("runtime").cannot_tell(&CAUSE).contains("runtime: failed (permission denied)"));
        let folder = well().found("runtime", "runtime_refused", Runtime, SOCKET, 11);
        let folder = folder.found("cni", "cni_config_dir_missing", Cni, "/etc/cni/net.d", 10);
        folder.clone().cannot_tell(&CAUSE);
        folder.exited(11, Role::Runtime, "containerd", 1465).yes(&CAUSE);
    }
}
