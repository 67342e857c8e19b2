//! Who owns the entries of the table: one dump over ctnetlink, counted as it comes in, in constant memory.
//!
//! Of 250,000 entries the kernel's part is 96 % of the time. What helps is a filter in the kernel: [`Only`].

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::ControlFlow;
use std::time::Duration;

use super::frequent::Frequent;
use super::statistics::ANY_FAMILY;
use crate::host::Host;
use crate::host::netlink::{Attribute, Attributes, Cut, Netlink, NetlinkError, Payload, Protocol};

/// NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET; IPCTNL_MSG_CT_NEW in the answers.
const GET: u16 = (1 << 8) | 1;
/// A table of a million entries takes a second; a kernel under load several.
pub(super) const LIMIT: Duration = Duration::from_secs(20);

// include/uapi/linux/netfilter/nfnetlink_conntrack.h, enum ctattr_type and those within it.
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_STATUS_MASK: u16 = 26;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;

// include/uapi/linux/netfilter/nf_conntrack_common.h, enum ip_conntrack_status.
const IPS_SEEN_REPLY: u32 = 1 << 1;
const IPS_ASSURED: u32 = 1 << 2;

const TCP: u8 = 6;
/// enum tcp_conntrack (nf_conntrack_tcp.h), as `conntrack -L` writes them.
static TCP_STATES: &[&str] = &[
    "NONE",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
];

/// Which entries the kernel shall dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Only {
    /// All.
    All,
    /// Those that were never answered: a scan, a flood, a peer that is gone.
    Unreplied,
    /// Those that are never dropped early: they fill a table for good.
    Assured,
}

impl Only {
    /// Value and mask of the status bits.
    fn status(self) -> Option<(u32, u32)> {
        match self {
            Only::All => None,
            Only::Unreplied => Some((0, IPS_SEEN_REPLY)),
            Only::Assured => Some((IPS_ASSURED, IPS_ASSURED)),
        }
    }

    /// Kernels before 5.10 do not know the filter and dump all: each entry is looked at again.
    fn takes(self, status: u32) -> bool {
        self.status().is_none_or(|(value, mask)| status & mask == value)
    }

    fn payload(self) -> Result<Payload, NetlinkError> {
        let payload = Payload::new(&ANY_FAMILY);
        match self.status() {
            None => Ok(payload),
            Some((value, mask)) => {
                payload.with(CTA_STATUS, &value.to_be_bytes())?.with(CTA_STATUS_MASK, &mask.to_be_bytes())
            }
        }
    }
}

/// What one dump counted.
#[derive(Clone, Debug)]
pub(super) struct Owners {
    /// Entries.
    pub(super) entries: u64,
    /// Answered for good (TCP: the handshake done; UDP: more than one answer): never dropped early.
    pub(super) assured: u64,
    /// Never answered.
    pub(super) unreplied: u64,
    /// By IANA's protocol number.
    pub(super) protocols: BTreeMap<u8, u64>,
    /// TCP's entries by their state's number.
    pub(super) tcp_states: BTreeMap<u8, u64>,
    /// By the address that began the flow.
    pub(super) sources: Frequent<IpAddr>,
    /// The table changed so that entries may have been missed or counted twice.
    pub(super) interrupted: bool,
    /// How long it took.
    pub(super) took: Duration,
}

/// Dumps and counts.
pub(super) fn count(host: &Host, only: Only) -> Result<Owners, NetlinkError> {
    let begun = host.clock().since_boot();
    let mut owners = Owners {
        entries: 0,
        assured: 0,
        unreplied: 0,
        protocols: BTreeMap::new(),
        tcp_states: BTreeMap::new(),
        sources: Frequent::new(),
        interrupted: false,
        took: Duration::ZERO,
    };
    let mut netlink = Netlink::open(host, Protocol::Netfilter)?;
    let told = netlink.dump(GET, only.payload()?.bytes(), LIMIT, |_, payload| {
        let entry = entry(payload)?;
        if only.takes(entry.status) {
            owners.add(&entry);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    owners.interrupted = told.interrupted;
    owners.took = host.clock().since_boot().saturating_sub(begun);
    Ok(owners)
}

impl Owners {
    fn add(&mut self, entry: &Entry) {
        self.entries += 1;
        self.assured += u64::from(entry.status & IPS_ASSURED != 0);
        self.unreplied += u64::from(entry.status & IPS_SEEN_REPLY == 0);
        *self.protocols.entry(entry.protocol).or_default() += 1;
        if let Some(state) = entry.tcp_state {
            *self.tcp_states.entry(state).or_default() += 1;
        }
        self.sources.add(entry.source);
    }
}

/// One entry, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    source: IpAddr,
    protocol: u8,
    status: u32,
    tcp_state: Option<u8>,
}

fn entry(payload: &[u8]) -> Result<Entry, Cut> {
    let (mut tuple, mut status, mut tcp_state) = (None, None, None);
    for attribute in Attributes::behind(ANY_FAMILY.len(), payload)? {
        let attribute = attribute?;
        match attribute.kind {
            CTA_TUPLE_ORIG => tuple = Some(self::tuple(&attribute)?),
            CTA_STATUS => status = Some(attribute.u32_be()?),
            CTA_PROTOINFO => {
                if let Some(tcp) = attribute.nested().find(CTA_PROTOINFO_TCP)?
                    && let Some(state) = tcp.nested().find(CTA_PROTOINFO_TCP_STATE)?
                {
                    tcp_state = Some(state.u8()?);
                }
            }
            _ => {}
        }
    }
    let (source, protocol) = tuple.ok_or(Cut)?;
    let tcp_state = tcp_state.filter(|_| protocol == TCP);
    Ok(Entry { source, protocol, status: status.ok_or(Cut)?, tcp_state })
}

fn tuple(attribute: &Attribute<'_>) -> Result<(IpAddr, u8), Cut> {
    let (mut source, mut protocol) = (None, None);
    for part in attribute.nested() {
        let part = part?;
        match part.kind {
            CTA_TUPLE_IP => {
                for address in part.nested() {
                    let address = address?;
                    match address.kind {
                        CTA_IP_V4_SRC => {
                            let bytes: [u8; 4] = address.payload.try_into().map_err(|_| Cut)?;
                            source = Some(IpAddr::from(Ipv4Addr::from(bytes)));
                        }
                        CTA_IP_V6_SRC => {
                            let bytes: [u8; 16] = address.payload.try_into().map_err(|_| Cut)?;
                            source = Some(IpAddr::from(Ipv6Addr::from(bytes)));
                        }
                        _ => {}
                    }
                }
            }
            CTA_TUPLE_PROTO => {
                protocol = part.nested().find(CTA_PROTO_NUM)?.map(|number| number.u8()).transpose()?;
            }
            _ => {}
        }
    }
    Ok((source.ok_or(Cut)?, protocol.ok_or(Cut)?))
}

/// As `conntrack -L` names it; else its number.
pub(super) fn protocol_name(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        33 => "dccp".to_owned(),
        47 => "gre".to_owned(),
        58 => "icmpv6".to_owned(),
        132 => "sctp".to_owned(),
        136 => "udplite".to_owned(),
        other => other.to_string(),
    }
}

/// As `conntrack -L` names it; else its number.
pub(super) fn state_name(number: u8) -> String {
    TCP_STATES.get(usize::from(number)).map_or_else(|| number.to_string(), |name| (*name).to_owned())
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    crate::fuzz::done(entry(bytes));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // One message of a dump, its netlink header taken off: the entry that
    // `conntrack -I -s 10.1.1.1 -d 10.2.2.2 -p tcp --sport 10 --dport 20 --state ESTABLISHED -t 100 -u ASSURED` made,
    // recorded on Linux 6.18.44.
    const MESSAGE: &[u8] = include_bytes!("../../../fixtures/conntrack/linux-6.18.44-entry.bin");

    #[test]
    fn the_recorded_entry() {
        assert_eq!(
            entry(MESSAGE).unwrap(),
            Entry {
                source: IpAddr::from([10, 1, 1, 1]),
                protocol: TCP,
                // Put in by hand: confirmed, assured and without an answer (include/uapi: 1 << 3, 1 << 2).
                status: 0b1100,
                tcp_state: Some(3),
            }
        );
        assert_eq!(state_name(3), "ESTABLISHED");
        assert_eq!(protocol_name(TCP), "tcp");
    }

    proptest! {
        #[test]
        fn a_cut_entry_is_an_error_or_the_entry(cut in 0..MESSAGE.len()) {
            // What follows the state (marks, zones) is not read.
            if let Ok(cut) = entry(&MESSAGE[..cut]) {
                let whole = entry(MESSAGE).unwrap();
                prop_assert_eq!((cut.source, cut.protocol, cut.status), (whole.source, whole.protocol, whole.status));
            }
        }

        #[test]
        fn a_flipped_byte_never_panics(at in 0..MESSAGE.len(), byte: u8) {
            let mut bytes = MESSAGE.to_vec();
            bytes[at] = byte;
            entry(&bytes).ok();
        }
    }
}
