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
