//! Netlink attributes: type, length, value, padded to four bytes (`struct nlattr`, include/uapi/linux/netlink.h).

use std::io::Cursor;

use neli::ToBytes;
use neli::genl::{AttrTypeBuilder, NlattrBuilder};
use neli::types::Buffer;

use super::NetlinkError;

const HEADER_BYTES: usize = 4;
/// Without NLA_F_NESTED and NLA_F_NET_BYTEORDER.
const TYPE_MASK: u16 = 0x3fff;

/// Attributes that end in the middle of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an attribute is longer than what holds it, or has another length than its type")]
pub struct Cut;

/// Attributes one after another. What is malformed is an error in its place, and the last item.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// The attributes in these bytes.
    pub fn new(bytes: &'a [u8]) -> Attributes<'a> {
        Attributes { rest: bytes }
    }

    /// The attributes of a message behind its family's own header: 4 bytes of `nfgenmsg` or `genlmsghdr`, 12 of
    /// `rtmsg` and `ndmsg`, 16 of `ifinfomsg`, 72 of `inet_diag_msg`.
    ///
    /// # Errors
    /// The message is shorter than that header.
    pub fn behind(header_bytes: usize, payload: &'a [u8]) -> Result<Attributes<'a>, Cut> {
        payload.get(header_bytes..).map(Attributes::new).ok_or(Cut)
    }

    /// The first attribute of this type.
    ///
    /// # Errors
    /// The attributes are malformed before it comes.
    pub fn find(mut self, kind: u16) -> Result<Option<Attribute<'a>>, Cut> {
        self.find_map(|attribute| match attribute {
            Ok(attribute) if attribute.kind != kind => None,
            found => Some(found),
        })
        .transpose()
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, Cut>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let Some((attribute, rest)) = split(self.rest) else {
            self.rest = &[];
            return Some(Err(Cut));
        };
        self.rest = rest;
        Some(Ok(attribute))
    }
}

fn split(bytes: &[u8]) -> Option<(Attribute<'_>, &[u8])> {
    let half = |at: usize| bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes);
    let (length, kind) = (usize::from(half(0)?), half(2)?);
    let payload = bytes.get(HEADER_BYTES..length)?;
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((Attribute { kind: kind & TYPE_MASK, payload }, rest))
}

/// One attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// Its type, without the flags.
    pub kind: u16,
    /// Its value.
    pub payload: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// The attributes that it holds.
    pub fn nested(&self) -> Attributes<'a> {
        Attributes::new(self.payload)
    }

    fn array<const N: usize>(&self) -> Result<[u8; N], Cut> {
        self.payload.try_into().map_err(|_| Cut)
    }

    /// A byte.
    ///
    /// # Errors
    /// It has another length.
    pub fn u8(&self) -> Result<u8, Cut> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// Two bytes in the machine's order.
    ///
    /// # Errors
    /// It has another length.
    pub fn u16(&self) -> Result<u16, Cut> {
        self.array().map(u16::from_ne_bytes)
    }

    /// Four bytes in the machine's order.
    ///
    /// # Errors
    /// It has another length.
    pub fn u32(&self) -> Result<u32, Cut> {
        self.array().map(u32::from_ne_bytes)
    }

    /// Eight bytes in the machine's order.
    ///
    /// # Errors
    /// It has another length.
    pub fn u64(&self) -> Result<u64, Cut> {
        self.array().map(u64::from_ne_bytes)
    }

    /// Two bytes in the network's order, as netfilter writes them.
    ///
    /// # Errors
    /// It has another length.
    pub fn u16_be(&self) -> Result<u16, Cut> {
        self.array().map(u16::from_be_bytes)
    }

    /// Four bytes in the network's order.
    ///
    /// # Errors
    /// It has another length.
    pub fn u32_be(&self) -> Result<u32, Cut> {
        self.array().map(u32::from_be_bytes)
    }

    /// Eight bytes in the network's order.
    ///
    /// # Errors
    /// It has another length.
    pub fn u64_be(&self) -> Result<u64, Cut> {
        self.array().map(u64::from_be_bytes)
    }

    /// A name, without the NUL at its end.
    ///
    /// # Errors
    /// It is not UTF-8.
    pub fn text(&self) -> Result<&'a str, Cut> {
        let text = self.payload.split(|byte| *byte == 0).next().unwrap_or_default();
        std::str::from_utf8(text).map_err(|_| Cut)
    }
}

/// The payload of a request: a family's own header, then attributes.
#[derive(Clone, Debug)]
pub struct Payload(Vec<u8>);

impl Payload {
    /// Begins with the family's own header: `nfgenmsg`, `rtmsg`, `genlmsghdr`.
    pub fn new(header: &[u8]) -> Payload {
        Payload(header.to_vec())
    }

    /// With one more attribute.
    ///
    /// # Errors
    /// It is longer than 64 KiB.
    pub fn with(mut self, kind: u16, value: &[u8]) -> Result<Payload, NetlinkError> {
        let unbuilt =
            |error: String| NetlinkError::Malformed(format!("an attribute cannot be built: {error}"));
        if value.len() + HEADER_BYTES > usize::from(u16::MAX) {
            return Err(unbuilt(format!("{} bytes are too many", value.len())));
        }
        let kind =
            AttrTypeBuilder::default().nla_type(kind).build().map_err(|error| unbuilt(error.to_string()))?;
        let attribute = NlattrBuilder::default()
            .nla_type(kind)
            .nla_payload(Buffer::from(value))
            .build()
            .map_err(|error| unbuilt(error.to_string()))?;
        let mut bytes = Cursor::new(Vec::new());
        attribute.to_bytes(&mut bytes).map_err(|error| unbuilt(error.to_string()))?;
        let mut bytes = bytes.into_inner();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        self.0.append(&mut bytes);
        Ok(self)
    }

    /// With a name, NUL at its end.
    ///
    /// # Errors
    /// It is longer than 64 KiB.
    pub fn with_text(self, kind: u16, text: &str) -> Result<Payload, NetlinkError> {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.with(kind, &bytes)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}
