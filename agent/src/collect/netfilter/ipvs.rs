//! IPVS: services and their destinations, by `/proc/1/net/ip_vs` (net/netfilter/ipvs/ip_vs_ctl.c). The file is there only
//! where the module is; asking for the netlink family would load it.

use serde::Serialize;

use crate::host::{Host, ReadError};

const FILE: &str = "/proc/1/net/ip_vs";

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ipvs {
    /// Virtual services.
    pub services: u64,
    /// Their destinations, together.
    pub destinations: u64,
}

/// `None`: IPVS is not loaded.
pub(super) fn read(host: &Host) -> Result<Option<Ipvs>, ReadError> {
    let mut count = Ipvs::default();
    let mut lines = 0_u64;
    let read = host.each_line(FILE, |line| {
        lines += 1;
        count.add(line);
    });
    match read {
        Ok(()) if lines >= 3 => Ok(Some(count)),
        Ok(()) => Err(ReadError::malformed(FILE, "expected three lines of head")),
        Err(ReadError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Ipvs {
    /// Services begin at the line's start with their protocol or mark, destinations with `  ->`; the head's lines are
    /// its version and the names of the two kinds' columns.
    fn add(&mut self, line: &str) {
        if line.starts_with("  -> RemoteAddress") {
        } else if line.starts_with("  ->") {
            self.destinations += 1;
        } else if ["TCP ", "UDP ", "SCTP", "FWM "].iter().any(|start| line.starts_with(start)) {
            self.services += 1;
        }
    }
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    let mut count = Ipvs::default();
    crate::fuzz::text(bytes).lines().for_each(|line| count.add(line));
}
