use std::time::Duration;

use nodewhy_proto::{Evidence, Finding, Outcome, Role};

use crate::signs::{
    RUNTIME_DOWN, against, certainty_by, clean, exit_near, ready_says, standing, told, within,
};
use crate::{Answer, Case, Cause, Holding, Link, NodeCase, Scope, Unready};

pub(super) static CAUSE: Cause = Cause {
    id: "cni_dir_deleted_stops_cri",
    title: "The CNI configuration folder was deleted, and containerd stopped its CRI over it",
    about: "\
containerd watches its CNI configuration folder. When the folder itself is deleted, not only the files in it, the \
watcher fails and containerd stops its whole CRI service. Its process lives on, and systemd sees a healthy unit.

It is seen by the missing folder, and by a CRI that is refused or not implemented from then on. The API says \
\"container runtime is down\" after 30 to 45 s.

It is confused with a dead runtime: there the process has ended. It is not this cause while the CRI answers: then the \
folder is missing, and the network configuration may be lost, but the runtime works.

Make the folder again and restart containerd: it does not watch a folder that came back. The CNI's agent writes its \
configuration anew when it starts. The node cannot know who removed the folder: uninstall scripts of network plugins \
often do.",
    scope: Scope::Node,
    leads_to: &[Link::unready(Unready::False(RUNTIME_DOWN), 30, 45, 120)],
    remedy: &[
        "mkdir -p /etc/cni/net.d, and let the CNI's agent write its configuration",
        "systemctl restart containerd",
        "Do not replace the node.",
    ],
    check,
};

/// The watcher fails at once; our own look at the CRI comes within seconds, a busy node's later.
const STOPS_WITHIN: Duration = Duration::from_secs(60);

const FAILING: [&str; 3] = ["runtime_refused", "runtime_socket_missing", "runtime_not_ready"];

fn check(_: &Case, node: &NodeCase) -> Answer {
    let Some(folder) = standing(node, "cni_config_dir_missing") else {
        return clean(node, "cni", "the CNI configuration folder is there");
    };
    if let Some(hung) = standing(node, "runtime_hung") {
        return against(hung, "the runtime accepts connections, so its CRI was not stopped");
    }
    let failing = FAILING.iter().filter_map(|name| standing(node, name)).min_by_key(|finding| finding.began);
    let stopped: Evidence = match (failing, outcome(node)) {
        (Some(failing), _) if within(failing.began, folder.began, Duration::ZERO) => stopped_by(failing),
        (Some(failing), _) => return against(failing, "the CRI failed before the folder was gone"),
        (None, Some(Outcome::Failed { error })) => {
            Evidence::new(format!("the CRI can't be read: {error}"), "runtime collector: failed")
        }
        (None, _) => return clean(node, "runtime", "the folder is gone, and the CRI answers all the same"),
    };
    if let Some(failing) = failing.filter(|failing| !within(folder.began, failing.began, STOPS_WITHIN)) {
        return against(failing, "the CRI failed long after the folder was gone");
    }
    let when = failing.map_or(folder.began, |failing| failing.began);
    if exit_near(node, Role::Runtime, when).is_some() {
        return Answer::CannotTell {
            missing: vec![
                "why the runtime's process ended as the folder went: its last log lines tell whether it was over the \
                 folder (journalctl -u containerd)"
                    .to_owned(),
            ],
        };
    }
    let said = ready_says(node, RUNTIME_DOWN);
    // That the process lives is concluded from no exit seen: the folder and the CRI are the two signals.
    let signals = 1 + usize::from(failing.is_some()) + usize::from(said.is_some());
    let mut because = told(folder);
    because.push(stopped);
    because.extend(said);
    Answer::Yes(Holding {
        subject: folder.subject.clone(),
        since: Some(folder.began),
        ended: failing.and_then(|failing| failing.ended),
        text: "the CNI configuration folder was deleted; containerd stopped its CRI over it".to_owned(),
        because,
        certainty: certainty_by(node, "cni", signals),
        remedy: remedy(&folder.subject.name),
    })
}

fn outcome(node: &NodeCase) -> Option<&Outcome> {
    node.collectors.known()?.get("runtime")
}

fn stopped_by(failing: &Finding) -> Evidence {
    let source = format!("finding {} of the {} collector", failing.finding, failing.collector);
    Evidence::new(failing.summary.clone(), source).with_time(failing.began)
}

fn remedy(folder: &str) -> Vec<String> {
    if folder.is_empty() {
        return Vec::new();
    }
    vec![
        format!("mkdir -p {folder}, and let the CNI's agent write its configuration (restart its pod)"),
        "systemctl restart containerd: it does not watch a folder that came back".to_owned(),
        "Do not replace the node.".to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::CAUSE;
    use crate::made::*;
    use nodewhy_proto::{
        Role,
        SubjectKind::{Cni, Runtime},
    };

    fn folder_gone(second: i64) -> Made {
        well().found("cni", "cni_config_dir_missing", Cni, "/etc/cni/net.d", second)
    }

    #[test]
    fn a_cri_that_fails_as_the_folder_goes_is_yes() {
        let refused = folder_gone(10).found("runtime", "runtime_refused", Runtime, "sock", 11);
        let yes = refused.yes(&CAUSE);
        assert_eq!(yes.certainty, 0.9);
        assert!(yes.remedy[0].contains("mkdir -p /etc/cni/net.d"));
        // Not implemented: the runtime's socket answers, the CRI on it does not.
        assert!(folder_gone(10).failed("runtime").yes(&CAUSE).certainty <= 0.8);
    }

    #[test]
    fn the_folder_alone_or_a_cri_that_failed_before_is_no() {
        assert!(folder_gone(10).no(&CAUSE).contains("answers all the same"));
        assert!(
            folder_gone(50)
                .found("runtime", "runtime_refused", Runtime, "s", 10)
                .no(&CAUSE)
                .contains("before")
        );
        assert!(
            folder_gone(0).found("runtime", "runtime_refused", Runtime, "s", 90).no(&CAUSE).contains("long")
        );
        folder_gone(10).found("runtime", "runtime_hung", Runtime, "s", 11).no(&CAUSE);
        well().no(&CAUSE);
    }

    #[test]
    fn it_cannot_be_told_when_the_process_ended_too_or_nobody_looked() {
        let ended = folder_gone(10).found("runtime", "runtime_refused", Runtime, "s", 11);
        ended.exited(11, Role::Runtime, "containerd", 5).cannot_tell(&CAUSE);
        well().failed("cni").cannot_tell(&CAUSE);
        folder_gone(10).absent("runtime").cannot_tell(&CAUSE);
    }
}
