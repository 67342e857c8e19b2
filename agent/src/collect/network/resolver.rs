//! The node's nameservers: each is asked for itself, since the C library hides which one is silent.
//!
//! For the API server's name, where it has one: that is what the node needs. Else for the root's nameservers, without
//! recursion: a nameserver that is alive answers that out of what it has, in an air-gapped cluster too.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::Serialize;

use crate::host::dns::{self, Kind, Question, Reply};
use crate::host::{Host, ReadError};

const LIMIT: Duration = Duration::from_secs(2);

/// One nameserver.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Nameserver {
    /// Its address.
    pub address: IpAddr,
    /// `answered`, `timed_out`, `refused` (nobody listens there), `failed`.
    pub outcome: &'static str,
    /// The answer's code: 0 is success, 2 SERVFAIL, 3 NXDOMAIN, 5 REFUSED.
    pub rcode: Option<u8>,
    /// Time to the answer.
    pub answer_seconds: Option<f64>,
    /// The kernel's word, where it could not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Nameserver {
    /// Whether it answered, whatever it said.
    pub(super) fn answered(&self) -> bool {
        self.outcome == "answered"
    }
}

/// All of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Resolver {
    /// What they were asked for: a name, or `.`.
    pub question: String,
    /// In the order of /etc/resolv.conf. Empty: it names none.
    pub nameservers: Vec<Nameserver>,
    /// How many addresses the name has, by the first that answered; `None` for `.`.
    pub addresses: Option<usize>,
    /// Why nothing was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Resolver {
    /// All were asked, and none answered.
    pub(super) fn is_silent(&self) -> bool {
        !self.nameservers.is_empty() && !self.nameservers.iter().any(Nameserver::answered)
    }
}

/// Asks each nameserver of /etc/resolv.conf, for two seconds at most. `own`: the agent is in a network namespace of its
/// own, so that nameservers on the node's loopback device are not there.
pub(super) fn ask(host: &Host, name: Option<String>, own: bool) -> Resolver {
    let question = name.map_or_else(
        || Question { name: ".".to_owned(), kind: Kind::Ns, recursion: false },
        |name| Question { name, kind: Kind::A, recursion: true },
    );
    let mut resolver =
        Resolver { question: question.name.clone(), nameservers: Vec::new(), addresses: None, error: None };
    let conf = match host.read("/etc/resolv.conf") {
        Ok(text) => dns::resolv_conf(&text),
        Err(ReadError::NotFound { .. }) if host.is_dangling_link("/etc/resolv.conf") => {
            resolver.error = Some(
                "/etc/resolv.conf is a link that leads nowhere from here: mount the host's /run too"
                    .to_owned(),
            );
            return resolver;
        }
        Err(error) => {
            resolver.error = Some(error.to_string());
            return resolver;
        }
    };
    for address in conf.nameservers {
        if own && address.is_loopback() {
            resolver.error =
                Some(format!("{address} is on the node's loopback device, which is not the agent's"));
            continue;
        }
        let began = host.clock().since_boot();
        let reply = dns::ask(SocketAddr::new(address, 53), &question, host.clock(), LIMIT);
        let took = host.clock().since_boot().saturating_sub(began).as_secs_f64();
        let mut asked =
            Nameserver { address, outcome: "answered", rcode: None, answer_seconds: None, error: None };
        match reply {
            Reply::Answered { rcode, addresses } => {
                asked.rcode = Some(rcode);
                asked.answer_seconds = Some(took);
                if question.kind == Kind::A && resolver.addresses.is_none() {
                    resolver.addresses = Some(addresses.len());
                }
            }
            Reply::TimedOut => asked.outcome = "timed_out",
            Reply::Refused => asked.outcome = "refused",
            Reply::Failed(error) => {
                asked.outcome = "failed";
                asked.error = Some(error);
            }
        }
        resolver.nameservers.push(asked);
    }
    resolver
}
