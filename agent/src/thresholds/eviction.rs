//! The kubelet's hard eviction: its signals, their documented defaults, and what this kubelet was told of each.

use std::collections::BTreeMap;

use nodewhy_proto::Origin;

use super::Limit;
use super::quantity::{self, Amount};

/// A signal of the kubelet's eviction (pkg/kubelet/eviction/api/types.go).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// The node's memory, in bytes.
    MemoryAvailable,
    /// Bytes of the file system of the kubelet's root folder.
    NodefsAvailable,
    /// Inodes of it.
    NodefsInodesFree,
    /// Bytes of the file system of the runtime's images.
    ImagefsAvailable,
    /// Inodes of it.
    ImagefsInodesFree,
    /// Process ids of the node.
    PidAvailable,
}

impl Signal {
    /// Its name in the kubelet's configuration.
    pub fn name(self) -> &'static str {
        match self {
            Signal::MemoryAvailable => "memory.available",
            Signal::NodefsAvailable => "nodefs.available",
            Signal::NodefsInodesFree => "nodefs.inodesFree",
            Signal::ImagefsAvailable => "imagefs.available",
            Signal::ImagefsInodesFree => "imagefs.inodesFree",
            Signal::PidAvailable => "pid.available",
        }
    }

    /// pkg/kubelet/eviction/defaults_linux.go; there is none for process ids.
    pub fn documented_default(self) -> Option<Eviction> {
        let amount = match self {
            Signal::MemoryAvailable => Amount::Absolute(100.0 * 1024.0 * 1024.0),
            Signal::NodefsAvailable => Amount::Percent(10.0),
            Signal::NodefsInodesFree | Signal::ImagefsInodesFree => Amount::Percent(5.0),
            Signal::ImagefsAvailable => Amount::Percent(15.0),
            Signal::PidAvailable => return None,
        };
        Some(Eviction { amount, origin: Origin::DocumentedDefault })
    }
}

/// A hard eviction threshold as it was configured: in the signal's own unit, or a percentage of the capacity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Eviction {
    /// How much.
    pub amount: Amount,
    /// Where it comes from.
    pub origin: Origin,
}

impl Eviction {
    /// The limit where this is the capacity, in the capacity's unit.
    pub fn of(&self, capacity: f64) -> Limit {
        let value = match self.amount {
            Amount::Absolute(value) => value,
            // The kubelet drops the fraction (eviction/api/types.go: GetThresholdQuantity).
            Amount::Percent(percent) => (capacity * percent / 100.0).floor(),
        };
        Limit { value, origin: self.origin }
    }
}

/// All of `evictionHard`, as this kubelet has it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum EvictionHard {
    /// Nobody set it: the documented defaults.
    Default,
    /// The flag; it replaces the file's map.
    Flag(String),
    /// The map in the file and its drop-ins.
    Map {
        signals: BTreeMap<String, Option<String>>,
        /// `mergeDefaultEvictionSettings`: what the map does not name has its default.
        merges_defaults: bool,
    },
    /// k3s gives its kubelet this, and shows it in no command line (pkg/daemons/agent/agent_linux.go).
    K3s,
    /// Nobody evicts here.
    Off { why: String },
}

/// What k3s sets where nobody set anything.
const K3S: &str = "imagefs.available<5%,nodefs.available<5%";

impl EvictionHard {
    /// The threshold of this signal; `Ok(None)`: it is off on purpose. The error says why it cannot be known.
    pub(super) fn of(&self, signal: Signal) -> Result<Option<Eviction>, String> {
        let (text, origin) = match self {
            EvictionHard::Default => return Ok(signal.documented_default()),
            EvictionHard::Off { .. } => return Ok(None),
            EvictionHard::Flag(flag) => (in_flag(flag, signal), Origin::KubeletConfig),
            EvictionHard::K3s => (in_flag(K3S, signal), Origin::DocumentedDefault),
            EvictionHard::Map { signals, merges_defaults } => match signals.get(signal.name()) {
                Some(Some(text)) => (Some(text.as_str()), Origin::KubeletConfig),
                _ if *merges_defaults => return Ok(signal.documented_default()),
                _ => (None, Origin::KubeletConfig),
            },
        };
        let Some(text) = text else { return Ok(None) };
        let amount = quantity::amount(signal.name(), text)?;
        // The kubelet ignores 0% and 100% (eviction/helpers.go: parseThresholdStatement).
        let is_ignored = matches!(amount, Amount::Percent(percent) if percent == 0.0 || percent == 100.0);
        Ok((!is_ignored).then_some(Eviction { amount, origin }))
    }

    /// Why eviction on memory is off, where it is.
    pub(super) fn why_off(&self) -> String {
        let signal = Signal::MemoryAvailable.name();
        match self {
            EvictionHard::Off { why } => why.clone(),
            EvictionHard::Flag(flag) => {
                format!(
                    "the kubelet's flag --eviction-hard={flag} does not name {signal}, or names all of it"
                )
            }
            EvictionHard::K3s => format!(
                "k3s sets eviction-hard without {signal} by default (kubelet-arg in /etc/rancher/k3s/config.yaml is \
                 not read)"
            ),
            EvictionHard::Map { .. } | EvictionHard::Default => {
                format!(
                    "the kubelet's evictionHard does not name {signal}, or names all of it: that switches it off"
                )
            }
        }
    }
}

/// `memory.available<100Mi,nodefs.available<10%`; the last one of a repeated signal counts.
fn in_flag(flag: &str, wanted: Signal) -> Option<&str> {
    flag.split(',')
        .filter_map(|pair| pair.split_once('<'))
        .rfind(|(signal, _)| signal.trim() == wanted.name())
        .map(|(_, amount)| amount.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eviction_hard_as_a_flag() {
        let flag = EvictionHard::Flag("nodefs.available<10%, memory.available<500Mi".to_owned());
        let set = |amount| Ok(Some(Eviction { amount, origin: Origin::KubeletConfig }));
        assert_eq!(flag.of(Signal::MemoryAvailable), set(Amount::Absolute(500.0 * 1024.0 * 1024.0)));
        assert_eq!(flag.of(Signal::NodefsAvailable), set(Amount::Percent(10.0)));
        assert_eq!(flag.of(Signal::ImagefsAvailable), Ok(None), "what it does not name is off");
        assert_eq!(EvictionHard::Flag(String::new()).of(Signal::MemoryAvailable), Ok(None));
        let wrong = EvictionHard::Flag("nodefs.available<much".to_owned());
        assert!(wrong.of(Signal::NodefsAvailable).unwrap_err().contains("nodefs.available is `much`"));
    }

    #[test]
    fn k3s_evicts_by_file_systems_alone() {
        let five = Eviction { amount: Amount::Percent(5.0), origin: Origin::DocumentedDefault };
        assert_eq!(EvictionHard::K3s.of(Signal::ImagefsAvailable), Ok(Some(five)));
        assert_eq!(EvictionHard::K3s.of(Signal::NodefsAvailable), Ok(Some(five)));
        assert_eq!(EvictionHard::K3s.of(Signal::MemoryAvailable), Ok(None));
        assert_eq!(EvictionHard::K3s.of(Signal::NodefsInodesFree), Ok(None));
    }

    #[test]
    fn a_percentage_is_of_the_capacity_and_an_amount_is_not() {
        let ten = Signal::NodefsAvailable.documented_default().unwrap();
        assert_eq!(ten.of(8_350_298_112.0).value, 835_029_811.0);
        let bytes = Eviction { amount: Amount::Absolute(5e8), origin: Origin::KubeletConfig };
        assert_eq!(bytes.of(8_350_298_112.0).value, 5e8);
        assert_eq!(Signal::PidAvailable.documented_default(), None);
    }
}
