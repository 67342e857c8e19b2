//! Whether the kernel has a part already: asking for one that it has not loads it.

use super::{Host, ReadError};

/// Whether a part of the kernel is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Module {
    /// It is loaded or built in; or this kernel loads nothing at all, so that asking changes nothing.
    There,
    /// It is not loaded.
    NotLoaded,
    /// It may be built in; what tells that cannot be read.
    Unknown {
        /// Why.
        why: String,
    },
}

impl Module {
    /// Nothing, or why `what` cannot be asked for.
    ///
    /// # Errors
    /// `Absent` where it is not loaded; a failure where it cannot be told.
    pub fn needed_for(&self, name: &str, what: &str) -> Result<(), ReadError> {
        match self {
            Module::There => Ok(()),
            Module::NotLoaded => {
                Err(ReadError::absent(format!("{name} is not loaded: {what} is not in use")))
            }
            Module::Unknown { why } => Err(ReadError::Other(format!(
                "cannot tell whether the kernel has {name} (asking would load it): {why}; mount the host's \
                 /lib/modules, read-only"
            ))),
        }
    }
}

impl Host {
    /// Whether the kernel has this module, loaded or built in. `name` with underscores, as in /sys/module.
    pub fn module(&self, name: &str) -> Module {
        if matches!(self.exists(format!("/sys/module/{name}")), Ok(true)) {
            return Module::There;
        }
        // A built-in one has no folder there unless it has parameters.
        if matches!(self.exists("/proc/modules"), Ok(false)) && matches!(self.exists("/proc/stat"), Ok(true))
        {
            return Module::There;
        }
        let built_in = self
            .read("/proc/sys/kernel/osrelease")
            .and_then(|release| self.read(format!("/lib/modules/{}/modules.builtin", release.trim())));
        match built_in {
            Ok(list) if is_listed(&list, name) => Module::There,
            Ok(_) => Module::NotLoaded,
            Err(error) => Module::Unknown { why: error.to_string() },
        }
    }
}

/// `kernel/net/netfilter/nf_tables.ko`, one a line (kbuild.rst); file names may have dashes where modules have underscores.
fn is_listed(list: &str, name: &str) -> bool {
    list.lines().any(|line| {
        let file = line.rsplit('/').next().unwrap_or(line);
        file.strip_suffix(".ko").is_some_and(|file| file.replace('-', "_") == name)
    })
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    use crate::fuzz::{done, text};
    done(is_listed(&text(bytes), "nf_tables"));
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nodewhy_clock::Clock;

    use super::*;
    use crate::host::Places;

    #[test]
    fn loaded_built_in_not_loaded_and_unknown_are_four() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), Clock::system(), Places::default());
        let make = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert!(matches!(host.module("nf_tables"), Module::Unknown { .. }));
        make("proc/stat", "cpu 0\n");
        assert_eq!(host.module("nf_tables"), Module::There, "a kernel without modules loads none");
        make("proc/modules", "");
        assert!(matches!(host.module("nf_tables"), Module::Unknown { .. }));
        make("proc/sys/kernel/osrelease", "6.1.0\n");
        // The form of Debian's /lib/modules/6.1.0-39-cloud-amd64/modules.builtin.
        make("lib/modules/6.1.0/modules.builtin", "kernel/fs/ext4/ext4.ko\nkernel/net/ipv4/inet-diag.ko\n");
        assert_eq!(host.module("nf_tables"), Module::NotLoaded);
        assert_eq!(host.module("inet_diag"), Module::There);
        fs::create_dir_all(root.path().join("sys/module/nf_tables")).unwrap();
        assert_eq!(host.module("nf_tables"), Module::There);
    }
}
