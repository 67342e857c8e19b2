//! What the parsers' fuzz entries share. They stand beside the parsers, as `fuzz`, and the crate `fuzz/` calls them: each
//! hands all of the input to each of its parsers.

use std::borrow::Cow;

use jiff::Timestamp;
use nodewhy_clock::{Clock, Stamp};

use crate::host::{Host, Places};

/// Takes what a parser gave: that it ended, and how much memory it took, is what is looked at.
pub(crate) fn done<T>(_given: T) {}

/// The input as the text that most files are.
pub(crate) fn text(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// A node without anything.
pub(crate) fn host() -> Host {
    Host::new("/proc/self/fdinfo/none", Clock::system(), Places::default())
}

/// A moment.
pub(crate) fn now() -> Stamp {
    Stamp { wall: Timestamp::UNIX_EPOCH, boot: std::time::Duration::from_secs(1000) }
}
