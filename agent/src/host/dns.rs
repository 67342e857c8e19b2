//! One question to one nameserver over UDP, with a deadline: the C library's resolver has none that can be trusted, and
//! says nothing of which nameserver was silent. RFC 1035, no EDNS; an answer that was cut still has its first addresses.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use nodewhy_clock::Clock;

/// The type of what is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Nameservers.
    Ns,
}

impl Kind {
    fn number(self) -> u16 {
        match self {
            Kind::A => 1,
            Kind::Ns => 2,
            Kind::Aaaa => 28,
        }
    }
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// `api.example.org`, or `.` for the root.
    pub name: String,
    /// The records' type.
    pub kind: Kind,
    /// Whether the nameserver may ask others. Without, it answers out of what it has, so that its silence is its own.
    pub recursion: bool,
}

/// How the nameserver answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It did.
    Answered {
        /// 0 is success, 2 SERVFAIL, 3 NXDOMAIN, 5 REFUSED.
        rcode: u8,
        /// The addresses in its answer; at most [`MOST_ADDRESSES`].
        addresses: Vec<IpAddr>,
    },
    /// Nothing came in time.
    TimedOut,
    /// Its host says that nobody listens there (an ICMP error).
    Refused,
    /// The kernel refused to send: no route, no descriptor.
    Failed(String),
}

/// No more addresses are taken out of one answer.
pub const MOST_ADDRESSES: usize = 8;
/// glibc's MAXNS.
const MOST_NAMESERVERS: usize = 3;

/// Asks, and waits for `limit` at most.
pub fn ask(server: SocketAddr, question: &Question, clock: &Clock, limit: Duration) -> Reply {
    let until = clock.since_boot() + limit;
    match ask_until(server, question, clock, until) {
        Ok(reply) => reply,
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused => Reply::Refused,
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Reply::TimedOut,
            _ => Reply::Failed(error.to_string()),
        },
    }
}

fn ask_until(
    server: SocketAddr,
    question: &Question,
    clock: &Clock,
    until: Duration,
) -> std::io::Result<Reply> {
    // Nothing is believed for it: the number only tells a late answer from the one that is waited for.
    let id = u16::try_from(clock.since_boot().subsec_nanos() >> 4 & 0xffff).unwrap_or_default();
    let Some(packet) = encode(id, question) else {
        return Ok(Reply::Failed(format!("{:?} is no name of the DNS", question.name)));
    };
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    // Connected, so that an ICMP error is told, and nobody else's packets come.
    socket.connect(server)?;
    socket.send(&packet)?;
    let mut bytes = [0; 2048];
    loop {
        let left = until.saturating_sub(clock.since_boot());
        if left.is_zero() {
            return Ok(Reply::TimedOut);
        }
        socket.set_read_timeout(Some(left))?;
        let length = match socket.recv(&mut bytes) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if let Some(reply) = bytes.get(..length).and_then(|bytes| decode(id, bytes)) {
            return Ok(reply);
        }
    }
}

/// `None`: the name cannot be one.
fn encode(id: u16, question: &Question) -> Option<Vec<u8>> {
    let mut packet = Vec::with_capacity(64);
    packet.extend(id.to_be_bytes());
    packet.extend([u8::from(question.recursion), 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    let name = question.name.strip_suffix('.').unwrap_or(&question.name);
    if name.len() > 253 {
        return None;
    }
    for label in name.split('.').filter(|_| !name.is_empty()) {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        packet.push(length);
        packet.extend(label.as_bytes());
    }
    packet.push(0);
    packet.extend(question.kind.number().to_be_bytes());
    packet.extend([0, 1]);
    Some(packet)
}

/// `None`: it is no answer to this question.
fn decode(id: u16, bytes: &[u8]) -> Option<Reply> {
    let two = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?));
    let flags = two(2)?;
    if two(0)? != id || flags & 0x8000 == 0 {
        return None;
    }
    let rcode = bytes.get(3)? & 0x0f;
    let (questions, answers) = (two(4)?, two(6)?);
    let mut at = 12;
    for _ in 0..questions {
        at = after_name(bytes, at)?.checked_add(4)?;
    }
    let mut addresses = Vec::new();
    for _ in 0..answers {
        // A packet that was cut ends somewhere in its answers.
        let Some(record) = after_name(bytes, at) else { break };
        let (Some(kind), Some(length)) = (two(record), record.checked_add(8).and_then(two)) else { break };
        let data = record.checked_add(10)?;
        let end = data.checked_add(usize::from(length))?;
        let Some(data) = bytes.get(data..end) else { break };
        let address = match kind {
            1 => <[u8; 4]>::try_from(data).ok().map(IpAddr::from),
            28 => <[u8; 16]>::try_from(data).ok().map(IpAddr::from),
            _ => None,
        };
        if let Some(address) = address
            && addresses.len() < MOST_ADDRESSES
        {
            addresses.push(address);
        }
        at = end;
    }
    Some(Reply::Answered { rcode, addresses })
}

/// Where a name ends; a pointer ends it.
fn after_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *bytes.get(at)? {
            0 => return at.checked_add(1),
            length if length & 0xc0 == 0xc0 => return at.checked_add(2),
            length if length & 0xc0 == 0 => at = at.checked_add(usize::from(length) + 1)?,
            _ => return None,
        }
    }
}

/// What of `/etc/resolv.conf` matters (resolv.conf(5)): glibc uses the first three nameservers and six search domains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// In order. Empty: none is named, which means this machine.
    pub nameservers: Vec<IpAddr>,
    /// In order.
    pub search: Vec<String>,
}

/// Never fails: what is not understood is skipped, as the C library does.
pub fn resolv_conf(text: &str) -> ResolvConf {
    let mut conf = ResolvConf::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                // `fe80::1%eth0` has a zone, which is not needed for anything but link-local addresses.
                let address: Option<IpAddr> =
                    words.next().and_then(|word| word.split('%').next()?.parse().ok());
                if let Some(address) = address
                    && conf.nameservers.len() < MOST_NAMESERVERS
                {
                    conf.nameservers.push(address);
                }
            }
            Some("search" | "domain") => {
                conf.search = words.take(6).map(|domain| domain.trim_end_matches('.').to_owned()).collect();
            }
            _ => {}
        }
    }
    conf
}

/// The addresses of a name in `/etc/hosts`.
pub fn hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let name = name.trim_end_matches('.');
    text.lines()
        .filter_map(|line| {
            let mut words = line.split('#').next()?.split_whitespace();
            let address: IpAddr = words.next()?.parse().ok()?;
            words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
        })
        .take(MOST_ADDRESSES)
        .collect()
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    use crate::fuzz::{done, text};
    let id = bytes.first_chunk().map_or(0, |id| u16::from_be_bytes(*id));
    done(decode(id, bytes));
    let text = text(bytes);
    done(resolv_conf(&text));
    done(hosts(&text, "api"));
    done(encode(id, &Question { name: text.into_owned(), kind: Kind::A, recursion: true }));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn question(name: &str) -> Question {
        Question { name: name.to_owned(), kind: Kind::A, recursion: true }
    }

    // The answer of RFC 1035, section 4.1.4's shape: a question, a CNAME, then an address, both with pointers.
    fn answer() -> Vec<u8> {
        let mut bytes = encode(7, &question("api.example.org")).unwrap();
        bytes[2] |= 0x80;
        bytes[7] = 2;
        bytes.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 60, 0, 4, 1, b'x', 0xc0, 16]);
        bytes.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7]);
        bytes
    }

    #[test]
    fn questions_and_answers() {
        // RFC 1035: header, QNAME as labels, QTYPE, QCLASS.
        let root = Question { name: ".".to_owned(), kind: Kind::Ns, recursion: false };
        assert_eq!(encode(1, &root).unwrap(), [0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1]);
        assert_eq!(encode(1, &question("a..b")), None);
        assert_eq!(encode(1, &question(&"x".repeat(64))), None);
        let address = "192.0.2.7".parse().unwrap();
        assert_eq!(decode(7, &answer()), Some(Reply::Answered { rcode: 0, addresses: vec![address] }));
        assert_eq!(decode(8, &answer()), None, "the answer to another question");
    }

    #[test]
    fn the_files_as_resolv_conf_5_and_hosts_5_have_them() {
        let conf = resolv_conf(
            "# made\nsearch example.org svc.\nnameserver 127.0.0.53\nnameserver fe80::1%eth0\noptions edns0\nnameserver x\n",
        );
        assert_eq!(conf.search, ["example.org", "svc"]);
        assert_eq!(conf.nameservers, ["127.0.0.53".parse::<IpAddr>().unwrap(), "fe80::1".parse().unwrap()]);
        let text = "127.0.0.1 localhost # api.lab\n192.0.2.9\tcp Api.Lab\n";
        assert_eq!(hosts(text, "api.lab"), ["192.0.2.9".parse::<IpAddr>().unwrap()]);
        assert!(hosts(text, "lab").is_empty());
    }

    #[test]
    fn a_real_nameserver_that_refuses_and_one_that_is_silent() {
        let clock = Clock::system();
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let limit = Duration::from_millis(50);
        assert_eq!(ask(silent.local_addr().unwrap(), &question("a"), &clock, limit), Reply::TimedOut);
        let address = silent.local_addr().unwrap();
        drop(silent);
        assert_eq!(ask(address, &question("a"), &clock, Duration::from_secs(5)), Reply::Refused);
    }

    proptest! {
        #[test]
        fn a_cut_answer_has_no_other_address(cut in 0usize..64) {
            let whole = answer();
            if let Some(Reply::Answered { addresses, .. }) = decode(7, &whole[..cut.min(whole.len())]) {
                let known: IpAddr = "192.0.2.7".parse().unwrap();
                prop_assert!(addresses.iter().all(|address| *address == known));
            }
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>, text in "\\PC{0,80}") {
            decode(7, &bytes);
            resolv_conf(&text);
            hosts(&text, "a");
            encode(1, &question(&text));
        }

        #[test]
        fn a_flipped_byte_never_panics(at in 0usize..64, byte: u8) {
            let mut bytes = answer();
            let at = at % bytes.len();
            bytes[at] = byte;
            decode(7, &bytes);
        }
    }
}
