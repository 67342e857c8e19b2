//! A cgroup's own pressure. It is not the node's: a pod at its CPU limit has high CPU pressure on an idle node, so its
//! throttled time stands beside it.

use serde::Serialize;

use super::group::Files;
use crate::collect::pressure::{Stalls, Wanted, stalls};
use crate::host::ReadError;

/// Pressure of a cgroup, or why there is none.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Pressure {
    /// As read.
    Read(Box<Measured>),
    /// The kernel does not measure it. That is no pressure of zero.
    Off {
        /// Why, and what ends that.
        off: String,
    },
}

/// Pressure of a cgroup. Unlike the node's, `full` of the CPU means something here: all of its tasks waited.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// CPU. Without `full` up to Linux 5.12.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Stalls>,
    /// Memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Stalls>,
    /// I/O.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io: Option<Stalls>,
}

impl Pressure {
    /// CPU pressure.
    pub fn cpu(&self) -> Option<Stalls> {
        match self {
            Pressure::Read(measured) => measured.cpu,
            Pressure::Off { .. } => None,
        }
    }
}

/// `None`: no reason is known, or it stands in `missing`.
pub(super) fn read(files: &mut Files<'_>) -> Option<Pressure> {
    let cpu = match files.folder.read("cpu.pressure", files.buffer).map(|text| stalls(text, Wanted::Some)) {
        Ok(Ok(stalls)) => Some(stalls),
        Ok(Err(what)) => {
            let error = ReadError::malformed(files.folder.path().join("cpu.pressure"), what);
            files.missing.push(error.to_string());
            None
        }
        Err(ReadError::NotFound { .. }) => {
            // Since Linux 6.1 a cgroup's accounting can be switched off, which hides the files.
            return (files.get("cgroup.pressure", super::parse::number) == Some(0)).then(|| Pressure::Off {
                off: "this cgroup's pressure is switched off: cgroup.pressure is 0; write 1 to it".to_owned(),
            });
        }
        Err(ReadError::Io { error, .. }) if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => {
            return Some(Pressure::Off {
                off: "the kernel was booted with PSI off; see `pressure`".to_owned(),
            });
        }
        Err(error) => {
            files.missing.push(error.to_string());
            None
        }
    };
    let memory = files.get("memory.pressure", |text| stalls(text, Wanted::Both));
    let io = files.get("io.pressure", |text| stalls(text, Wanted::Both));
    let is_any = cpu.is_some() || memory.is_some() || io.is_some();
    is_any.then(|| Pressure::Read(Box::new(Measured { cpu, memory, io })))
}
