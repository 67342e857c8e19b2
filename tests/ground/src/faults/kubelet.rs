//! Faults of the kubelet. Its stand-in has its name, its unit, its cgroup and its port.

use std::time::Duration;

use nix::libc::{SIGCONT, SIGKILL, SIGSTOP};
use nodewhy_proto::SubjectKind;

use crate::fault::{Expect, Fault, Injected, Sees, What};

const KUBELET: (SubjectKind, &str) = (SubjectKind::Kubelet, "kubelet");

/// A killed kubelet.
pub static KILLED: Fault = Fault {
    name: "kubelet-killed",
    about: "the kubelet is killed with SIGKILL, and its unit may not start it again",
    cause: "kubelet_down",
    subject: KUBELET,
    sees: &[Sees::of("kubelet", What::Finding("kubelet_absent"))],
    diagnosed: Expect::Root,
    inject: |node| {
        node.drop_in("kubelet", "Restart=no")?;
        let since = node.signal("kubelet", SIGKILL)?;
        Ok(Injected::since(since).proven("systemctl is-active kubelet", node.ended("kubelet")?))
    },
    undo: |node| {
        node.remove_drop_in("kubelet")?;
        node.sh("systemctl start kubelet").map(drop)
    },
    each_time: true,
    ..Fault::USUAL
};

/// A kubelet that was stopped in an orderly way.
pub static STOPPED: Fault = Fault {
    name: "kubelet-stopped",
    about: "systemctl stop kubelet",
    cause: "kubelet_down",
    subject: KUBELET,
    sees: &[Sees::of("kubelet", What::Finding("kubelet_absent"))],
    diagnosed: Expect::Root,
    inject: |node| {
        let since = node.clocks()?;
        node.sh("systemctl stop kubelet")?;
        Ok(Injected::since(since).proven("systemctl is-active kubelet", node.ended("kubelet")?))
    },
    undo: |node| node.sh("systemctl start kubelet").map(drop),
    ..Fault::USUAL
};

/// A kubelet that hangs.
pub static HUNG: Fault = Fault {
    name: "kubelet-hung",
    about: "the kubelet is stopped with SIGSTOP",
    cause: "kubelet_wedged",
    subject: KUBELET,
    sees: &[
        Sees::of("kubelet", What::Finding("kubelet_stopped")),
        Sees::of("kubelet", What::Finding("kubelet_healthz_hung")),
    ],
    diagnosed: Expect::Root,
    inject: |node| {
        let since = node.signal("kubelet", SIGSTOP)?;
        let state = node.sh(&format!("grep State /proc/{}/status", node.pid("kubelet")?))?;
        Ok(Injected::since(since).proven("/proc/PID/status of kubelet", state))
    },
    undo: |node| node.signal("kubelet", SIGCONT).map(drop),
    each_time: true,
    ..Fault::USUAL
};

/// A certificate that has run out.
pub static CERTIFICATE_EXPIRED: Fault = Fault {
    name: "kubelet-certificate-expired",
    about: "the kubelet's client certificate has run out: it exits with its words, and again each time that it is started",
    cause: "client_cert_expired",
    subject: KUBELET,
    sees: &[Sees::of("kubelet", What::Finding("kubelet_absent"))],
    inject: |node| {
        // Stands for the kubelet's own way: the words are those of its source, the exit is what its transport does.
        node.write(
            "/var/lib/ground/kubelet-expired",
            "#!/bin/sh\necho 'E1121 03:12:07.000000    1234 transport.go:130] \"The currently active client certificate has expired and the \
             server is responsive, exiting.\"' >&2\nexit 1\n",
        )?;
        node.sh("chmod +x /var/lib/ground/kubelet-expired")?;
        node.drop_in("kubelet", "ExecStart=\nExecStart=/var/lib/ground/kubelet-expired\nRestartSec=2")?;
        let since = node.signal("kubelet", SIGKILL)?;
        std::thread::sleep(Duration::from_secs(3));
        Ok(Injected::since(since)
            .proven("journalctl -u kubelet", node.sh("journalctl -u kubelet -n 5 --no-pager -o cat")?))
    },
    undo: |node| {
        node.remove_drop_in("kubelet")?;
        node.sh("systemctl restart kubelet").map(drop)
    },
    ..Fault::USUAL
};
