//! What the API server of this node says of its own health: `/livez`, and `/readyz?verbose` with each check.
//!
//! Source: k8s.io/apiserver/pkg/server/healthz: `[+]ping ok`, `[-]etcd failed: reason withheld`. OpenShift leaves etcd
//! out of readyz. Where anonymous requests are refused (401, 403) health is not known, and the server runs.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::Serialize;

use super::etcd::{flag, from_here};
use crate::host::fetch::FetchError;

/// No list of checks is longer.
pub(super) const MOST_BYTES: u64 = 64 * 1024;

/// What a check of health came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "health", rename_all = "snake_case")]
pub enum Health {
    /// 200.
    Well,
    /// Another answer: which checks failed, where it names them.
    Failing {
        /// The answer's code.
        code: u16,
        /// `etcd`, `poststarthook/rbac/bootstrap-roles`.
        checks: Vec<String>,
    },
    /// 401 or 403: anonymous requests are refused. It answers, more is not known.
    Refused {
        /// The answer's code.
        code: u16,
    },
    /// It cannot be asked from here, which says nothing of it.
    NotAsked {
        /// Why.
        why: String,
    },
    /// No answer.
    Silent {
        /// Why.
        error: String,
    },
}

/// By the answer or its lack.
pub(super) fn health(answer: Result<String, FetchError>) -> Health {
    match answer {
        Ok(_) => Health::Well,
        Err(FetchError::Status { code: code @ (401 | 403), .. }) => Health::Refused { code },
        Err(FetchError::Status { code, body, .. }) => Health::Failing { code, checks: failed(&body) },
        Err(error) => Health::Silent { error: error.to_string() },
    }
}

/// The checks that failed, by their names.
fn failed(body: &str) -> Vec<String> {
    let name = |line: &str| Some(line.strip_prefix("[-]")?.split_ascii_whitespace().next()?.to_owned());
    body.lines().filter_map(name).take(32).collect()
}

/// Where it answers, by its command line.
pub(super) fn address(arguments: &[String]) -> SocketAddr {
    let port = flag(arguments, "secure-port").and_then(|port| port.parse().ok()).unwrap_or(6443);
    let ip = flag(arguments, "bind-address").and_then(|ip| ip.parse().ok());
    SocketAddr::new(from_here(ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))), port)
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    crate::fuzz::done(failed(&crate::fuzz::text(bytes)));
}
