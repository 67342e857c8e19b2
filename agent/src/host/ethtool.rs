//! A driver's own statistics (`ethtool -S`), by ioctl: the one place where a cloud's network card says that the
//! provider dropped packets over the instance's allowance. Reading needs no capability.

#![expect(unsafe_code, reason = "the ioctl SIOCETHTOOL, which takes a pointer within `struct ifreq`")]

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::ReadError;

const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSTATS: u32 = 0x1d;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETH_SS_STATS: u32 = 1;
/// Each name has so many bytes.
const NAME_BYTES: usize = 32;
/// Drivers with many queues have thousands; those are not asked.
const MOST: u32 = 2048;
/// The kernel writes as many as the driver has when it is asked (net/ethtool/ioctl.c, `ethtool_get_stats`), however many
/// it was told of: a driver that is given more queues between two questions has more. Room for four times as many.
const ROOM: usize = 8192;

/// A driver's statistics, in its own order.
///
/// # Errors
/// There is no such interface, the driver has none (EOPNOTSUPP), or the kernel refuses.
pub fn statistics(interface: &str) -> Result<Vec<(String, u64)>, ReadError> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)
        .map_err(|errno| failed(interface, "a socket", errno))?;
    let count = count(&socket, interface)?;
    if count == 0 {
        return Ok(Vec::new());
    }
    let length = usize::try_from(count).unwrap_or_default();
    if count > MOST {
        return Err(ReadError::Other(format!(
            "the driver of {interface} has {count} statistics: too many to ask"
        )));
    }
    // `struct ethtool_gstrings`: command, set, count, then the names.
    let mut names = vec![0u64; (12 + ROOM * NAME_BYTES).div_ceil(8)];
    write(&mut names, &[ETHTOOL_GSTRINGS, ETH_SS_STATS, count]);
    ask(&socket, interface, &mut names, "names of statistics")?;
    // `struct ethtool_stats`: command, count, then the values.
    let mut values = vec![0u64; 1 + ROOM];
    write(&mut values, &[ETHTOOL_GSTATS, count]);
    ask(&socket, interface, &mut values, "statistics")?;
    let used = (12 + length * NAME_BYTES).div_ceil(8);
    let bytes: Vec<u8> = names.iter().take(used).flat_map(|word| word.to_ne_bytes()).collect();
    let names = bytes.get(12..).unwrap_or_default().chunks(NAME_BYTES).map(|name| {
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        String::from_utf8_lossy(name.get(..end).unwrap_or_default()).into_owned()
    });
    Ok(names.zip(values.into_iter().skip(1)).take(length).collect())
}

/// How many statistics the driver has.
fn count(socket: &OwnedFd, interface: &str) -> Result<u32, ReadError> {
    // `struct ethtool_sset_info`: command, reserved, a mask of 64 bits, then a number for each bit that is left.
    let mut buffer = vec![0u64; 3];
    write(&mut buffer, &[ETHTOOL_GSSET_INFO, 0]);
    if let Some(mask) = buffer.get_mut(1) {
        *mask = 1 << ETH_SS_STATS;
    }
    ask(socket, interface, &mut buffer, "the number of statistics")?;
    // The bit of a set that the driver does not have is taken out of the mask.
    if buffer.get(1).is_none_or(|mask| *mask == 0) {
        return Ok(0);
    }
    let count = buffer.get(2).and_then(|word| word.to_ne_bytes().first_chunk().copied());
    Ok(count.map_or(0, u32::from_ne_bytes))
}

fn write(buffer: &mut [u64], words: &[u32]) {
    for (place, pair) in buffer.iter_mut().zip(words.chunks(2)) {
        let mut bytes = place.to_ne_bytes();
        for (part, word) in bytes.chunks_mut(4).zip(pair) {
            part.copy_from_slice(&word.to_ne_bytes());
        }
        *place = u64::from_ne_bytes(bytes);
    }
}

fn ask(socket: &OwnedFd, interface: &str, buffer: &mut [u64], what: &str) -> Result<(), ReadError> {
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays 0.
    if interface.is_empty() || interface.len() >= libc::IFNAMSIZ {
        return Err(ReadError::Other(format!("{interface:?} is no name of an interface")));
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *place = libc::c_char::from_ne_bytes([byte]);
    }
    request.ifr_ifru.ifru_data = buffer.as_mut_ptr().cast();
    // SAFETY: the buffer has [`ROOM`] for the answers of the two commands that write lists, and three words for the one
    // that writes a number; request and buffer outlive the call.
    let code = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    Errno::result(code).map(drop).map_err(|errno| failed(interface, what, errno))
}

fn failed(interface: &str, what: &str, errno: Errno) -> ReadError {
    match errno {
        Errno::EOPNOTSUPP => ReadError::absent(format!("the driver of {interface} has no statistics")),
        _ => ReadError::Other(format!("cannot ask the driver of {interface} for {what}: {}", errno.desc())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_without_statistics_and_one_that_is_not_there() {
        assert!(matches!(statistics("lo"), Ok(none) if none.is_empty()) || statistics("lo").is_err());
        let error = statistics("not-there").unwrap_err().to_string();
        assert!(error.contains("No such device"), "{error}");
        assert!(statistics(&"x".repeat(16)).is_err());
    }
}
