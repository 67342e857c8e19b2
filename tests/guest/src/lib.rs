//! What runs inside the proving ground's virtual machine, beside the real parts: the channel's server (`guest`), the
//! stand-in for the kubelet, the maker of pods, and the programs that do harm (`hurt`).

pub mod channel;
