//! What runs inside the proving ground's virtual machine, beside the real parts: the channel's server (`guest`), the
//! stand-in for the kubelet, the maker of pods, and the programs that do harm (`hurt`). The channel's other side, which
//! runs on the host, is [`client`].

#![expect(
    clippy::disallowed_methods,
    reason = "it is the part of the tests that starts processes and breaks things"
)]

pub mod call;
pub mod carry;
pub mod channel;
pub mod client;
pub mod cri;
mod files;
pub mod forward;
pub mod hurt;
pub mod image;
pub mod pod;
mod pool;
mod run;
pub mod server;
