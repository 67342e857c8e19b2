//! The legacy tables of iptables and ip6tables, by the socket options that the tools use
//! (include/uapi/linux/netfilter_ipv4/ip_tables.h).
//!
//! **A question for a table that is not there makes it.** So a table is asked for only while
//! `/proc/net/ip_tables_names` lists it: see [`Host::xtables_names`].

#![expect(unsafe_code, reason = "getsockopt with options that no library wraps")]

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use serde::Serialize;

use super::{Host, ReadError};

/// IPT_SO_GET_INFO and IPT_SO_GET_ENTRIES; IP6T_… are the same numbers.
const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;
/// XT_TABLE_MAXNAMELEN, with its NUL.
const NAME_BYTES: usize = 32;
/// `struct ipt_getinfo`: name, valid_hooks, hook_entry[5], underflow[5], num_entries, size.
const INFO_BYTES: usize = NAME_BYTES + 4 + 20 + 20 + 4 + 4;
/// `struct ipt_get_entries` before its entries: name, size, and padding to the alignment of counters.
const ENTRIES_HEADER_BYTES: usize = NAME_BYTES + 8;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// iptables.
    Ip,
    /// ip6tables.
    Ip6,
}

impl Family {
    /// As nft names it.
    pub fn name(self) -> &'static str {
        match self {
            Family::Ip => "ip",
            Family::Ip6 => "ip6",
        }
    }
}

/// What the kernel says of a table without showing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Which hooks it has chains at, a bit each.
    pub valid_hooks: u32,
    /// Where the built-in chain of each hook begins, in bytes.
    pub hook_entry: [u32; 5],
    /// Where its policy is: behind its last rule.
    pub underflow: [u32; 5],
    /// Entries: rules, two a user's chain, one a built-in chain's policy, one at the end. It is no count of rules.
    pub entries: u32,
    /// Bytes.
    pub size: u32,
}

/// A socket that tables are asked through, in the agent's own network namespace.
#[derive(Debug)]
pub struct Xtables {
    family: Family,
    socket: OwnedFd,
}

impl Host {
    /// The tables that are there: of process 1's namespace. Empty: none. It is root's to read, whatever the capabilities.
    ///
    /// # Errors
    /// `Absent`: this kernel has no legacy tables, or has not loaded them. It may not be read.
    pub fn xtables_names(&self, family: Family) -> Result<Vec<String>, ReadError> {
        let path = match family {
            Family::Ip => "/proc/1/net/ip_tables_names",
            Family::Ip6 => "/proc/1/net/ip6_tables_names",
        };
        match self.read(path) {
            Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
            // Without process 1's folder nothing is known of its tables.
            Err(ReadError::NotFound { .. }) if matches!(self.exists("/proc/1/net/dev"), Ok(true)) => {
                Err(ReadError::absent(format!(
                    "{path} does not exist: the kernel has no legacy iptables, or has not loaded them"
                )))
            }
            Err(error) => Err(error),
        }
    }
}

impl Xtables {
    /// A socket of this family.
    ///
    /// # Errors
    /// The kernel's word: EAFNOSUPPORT where IPv6 is off.
    pub fn open(family: Family) -> Result<Xtables, Errno> {
        let domain = match family {
            Family::Ip => AddressFamily::Inet,
            Family::Ip6 => AddressFamily::Inet6,
        };
        let socket = socket(domain, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        Ok(Xtables { family, socket })
    }

    /// The table's size. Ask only for a table that is listed.
    ///
    /// # Errors
    /// EPERM: no CAP_NET_ADMIN in this network namespace.
    pub fn info(&self, table: &str) -> Result<Info, Errno> {
        let mut buffer = named(table, INFO_BYTES)?;
        self.ask(GET_INFO, &mut buffer)?;
        info(&buffer).ok_or(Errno::EPROTO)
    }

    /// The entries of a table of this size, counters left in. EAGAIN: it has another size by now.
    ///
    /// # Errors
    /// As [`Xtables::info`].
    pub fn entries(&self, table: &str, size: u32) -> Result<Vec<u8>, Errno> {
        let length = usize::try_from(size).map_err(|_| Errno::EFBIG)?;
        let mut buffer = named(table, ENTRIES_HEADER_BYTES + length)?;
        for (to, from) in buffer.iter_mut().skip(NAME_BYTES).zip(size.to_ne_bytes()) {
            *to = from;
        }
        self.ask(GET_ENTRIES, &mut buffer)?;
        buffer.drain(..ENTRIES_HEADER_BYTES);
        Ok(buffer)
    }

    fn ask(&self, option: i32, buffer: &mut [u8]) -> Result<(), Errno> {
        let level = match self.family {
            Family::Ip => libc::IPPROTO_IP,
            Family::Ip6 => libc::IPPROTO_IPV6,
        };
        let mut length = libc::socklen_t::try_from(buffer.len()).map_err(|_| Errno::EFBIG)?;
        // SAFETY: the kernel writes at most `length` bytes, which are the buffer's own, and the length itself.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                level,
                option,
                buffer.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let is_whole = usize::try_from(length).is_ok_and(|length| length == buffer.len());
        Errno::result(result).and(if is_whole { Ok(()) } else { Err(Errno::EPROTO) })
    }
}

fn named(table: &str, length: usize) -> Result<Vec<u8>, Errno> {
    if table.len() >= NAME_BYTES {
        return Err(Errno::ENAMETOOLONG);
    }
    let mut buffer = table.as_bytes().to_vec();
    buffer.resize(length, 0);
    Ok(buffer)
}

fn info(buffer: &[u8]) -> Option<Info> {
    let word = |at: usize| {
        let at = NAME_BYTES + 4 * at;
        buffer.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
    };
    let five =
        |from: usize| Some([word(from)?, word(from + 1)?, word(from + 2)?, word(from + 3)?, word(from + 4)?]);
    Some(Info {
        valid_hooks: word(0)?,
        hook_entry: five(1)?,
        underflow: five(6)?,
        entries: word(11)?,
        size: word(12)?,
    })
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    crate::fuzz::done(info(bytes));
}
