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

/// Asks each nameserver of /etc/resolv.conf, for two seconds at most, or twice that. `own`: the agent is in a network namespace of its
/// own, so that nameservers on the node's loopback device are not there.
pub(super) fn ask(host: &Host, name: Option<String>, own: bool) -> Resolver {
    let question = name.map_or_else(
        || Question { name: ".".to_owned(), kind: Kind::Ns, recursion: false },
        |name| Question { name, kind: Kind::A, recursion: true },
    );
    // Some resolvers drop what they may not recurse for (against cache snooping).
    let recursive = Question { name: question.name.clone(), kind: question.kind, recursion: true };
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
        let server = SocketAddr::new(address, 53);
        let reply = match dns::ask(server, &question, host.clock(), LIMIT) {
            Reply::TimedOut if !question.recursion => dns::ask(server, &recursive, host.clock(), LIMIT),
            reply => reply,
        };
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

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use nodewhy_clock::Clock;

    use super::*;
    use crate::host::Places;
    use crate::host::inside::inside;

    #[test]
    fn a_nameserver_that_drops_what_it_may_not_recurse_for_is_not_silent() {
        let test = "collect::network::resolver::tests::a_nameserver_that_drops_what_it_may_not_recurse_for_is_not_silent";
        if !inside(test, "") {
            return;
        }
        let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
        std::thread::spawn(move || {
            let mut packet = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut packet) {
                // RD, and then QR: the question is sent back as an answer without records.
                if packet[2] & 1 == 1 {
                    packet[2] |= 0x80;
                    socket.send_to(&packet[..length], from).unwrap();
                }
            }
        });
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/resolv.conf"), "nameserver 127.0.0.1\n").unwrap();
        let host = Host::new(root.path(), Clock::system(), Places::default());
        let resolver = ask(&host, None, false);
        assert_eq!((resolver.nameservers[0].outcome, resolver.is_silent()), ("answered", false));
    }
}
