//! Whether the agent's own network namespace is the node's.
//!
//! What netlink says, and what /proc/sys/net says, is of the namespace of whoever asks. In a pod without `hostNetwork`
//! that is the pod's: its empty tables are no news of the node.

use std::net::IpAddr;
use std::path::Path;

use super::super::{Host, ReadError};

/// Whether what the agent asks the kernel about the network is about the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkNamespace {
    /// It is the one of the host's process 1.
    Hosts,
    /// It is another one.
    Own,
    /// It cannot be told.
    Unknown {
        /// Why.
        why: String,
    },
}

impl NetworkNamespace {
    /// Nothing, or why `what` (`conntrack's table`) cannot be read from here.
    ///
    /// # Errors
    /// The agent is in a network namespace of its own, or that cannot be told.
    pub fn needed_for(&self, what: &str) -> Result<(), ReadError> {
        match self {
            NetworkNamespace::Hosts => Ok(()),
            NetworkNamespace::Own => Err(ReadError::Other(format!(
                "cannot read {what} of the node: the agent is in a network namespace of its own; give the pod \
                 `hostNetwork: true`"
            ))),
            NetworkNamespace::Unknown { why } => Err(ReadError::Other(format!(
                "cannot read {what}: it cannot be told whether the agent's network namespace is the node's: {why}"
            ))),
        }
    }
}

impl Host {
    /// Nothing, or why a connection to this address does not reach the node's `what`: in another network namespace the
    /// loopback device is another one, and nobody listening there is no news of the node.
    ///
    /// # Errors
    /// The address is the loopback device's, and the agent is known to be in a network namespace of its own.
    pub fn reaches(&self, address: IpAddr, what: &str) -> Result<(), ReadError> {
        match self.network_is_hosts() {
            own @ NetworkNamespace::Own if address.is_loopback() => own.needed_for(what),
            _ => Ok(()),
        }
    }

    /// Whether the agent's own network namespace is that of the host's process 1.
    ///
    /// `/proc/PID/ns/net` needs the right to trace process 1, which AppArmor's default for containers refuses even to
    /// root. `/proc/PID/net/dev` needs none: each namespace has files of its own there, and the kernel numbers all of
    /// /proc's files from one pool (fs/proc/generic.c, `proc_alloc_inum`), so that the same number is the same file in
    /// every mount of /proc.
    pub fn network_is_hosts(&self) -> NetworkNamespace {
        if let Some(why) = self.blind_to_processes() {
            return NetworkNamespace::Unknown { why };
        }
        let number = |path: &str, host: &Host| host.stat(path).map(|stat| stat.identity.1);
        // The agent's own /proc, wherever the host's is mounted.
        let own = Host { root: Path::new("/").to_owned(), ..self.clone() };
        match (number("/proc/1/net/dev", self), number("/proc/self/net/dev", &own)) {
            (Ok(its), Ok(ours)) if its == ours => NetworkNamespace::Hosts,
            (Ok(_), Ok(_)) => NetworkNamespace::Own,
            (Err(error), _) | (_, Err(error)) => NetworkNamespace::Unknown { why: error.to_string() },
        }
    }
}
