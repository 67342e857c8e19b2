//! Why a node has no pressure files, and what ends that.
//!
//! kernel/sched/psi.c: with PSI off by `psi=0` or by CONFIG_PSI_DEFAULT_DISABLED, older kernels make the files and
//! refuse to read them (EOPNOTSUPP); newer ones make no files at all (ENOENT), which also is what a kernel without
//! CONFIG_PSI does. So ENOENT is settled with the kernel's command line and its configuration.

use std::io::Read;

use nix::libc;

use crate::host::{Host, ReadError};

/// No kernel configuration is larger (300 KiB today).
const LARGEST_CONFIG_BYTES: u64 = 4 * 1024 * 1024;

/// Turns "not there" and "not supported" into `Absent` with the reason; leaves every other error as it is.
pub(super) fn explain(error: ReadError, host: &Host) -> ReadError {
    let refused = match &error {
        ReadError::NotFound { .. } => false,
        ReadError::Io { error, .. }
            if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP) | Some(libc::ENOSYS)) =>
        {
            true
        }
        _ => return error,
    };
    // Without a kernel's /proc below the host's root nothing is known of the kernel.
    let Ok(release) = host.read("/proc/sys/kernel/osrelease") else { return error };
    let release = release.trim();
    let command_line = host.read("/proc/cmdline").ok();
    let config = config(host, release);
    let recipe = recipe(host.read("/etc/os-release").ok().as_deref());
    ReadError::absent(why(refused, release, command_line.as_deref().and_then(asked), &config, recipe))
}

fn why(refused: bool, release: &str, asked: Option<bool>, config: &Config, recipe: &str) -> String {
    match (asked, config) {
        (_, Config::Found { path, psi: false, .. }) => format!(
            "kernel {release} is built without CONFIG_PSI (by {path}): only another kernel has pressure files; psi=1 \
             does not help"
        ),
        (Some(false), _) => {
            format!(
                "pressure stall information is switched off by psi=0 on the kernel command line: {recipe}"
            )
        }
        (None, Config::Found { path, default_disabled: true, .. }) => format!(
            "kernel {release} has pressure stall information switched off by default (CONFIG_PSI_DEFAULT_DISABLED=y \
             in {path}): {recipe}"
        ),
        (asked, Config::Found { path, .. }) => format!(
            "kernel {release} has CONFIG_PSI ({path}){}, and yet /proc/pressure cannot be read: a container \
             runtime may mask it, or this is not the host's /proc; mount the host's (psi itself is on)",
            if asked == Some(true) { " and psi=1" } else { "" }
        ),
        (_, Config::NotFound) if refused => {
            format!("kernel {release} has pressure stall information, switched off at boot: {recipe}")
        }
        (asked, Config::NotFound) => format!(
            "kernel {release} has no /proc/pressure: {}; which, no kernel configuration tells (looked for \
             /proc/config.gz, /boot/config-{release}, /lib/modules/{release}/config). If it is built in: {recipe}",
            if asked == Some(true) {
                "it is built without CONFIG_PSI (psi=1 is on its command line), or the files are hidden"
            } else {
                "it is built without CONFIG_PSI, or PSI is off by default"
            }
        ),
    }
}

/// How PSI is switched on, by the distribution.
fn recipe(os_release: Option<&str>) -> &'static str {
    let id = os_release
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix("ID=")))
        .map(|id| id.trim_matches('"'));
    match id {
        Some("bottlerocket") => {
            "set settings.boot.kernel-parameters.psi to [\"1\"] and settings.boot.reboot-to-reconcile to true, and reboot"
        }
        Some("rhcos") => "add psi=1 to the kernelArguments of a MachineConfig; the node reboots",
        Some("talos") => "add psi=1 to machine.install.extraKernelArgs and upgrade or reboot",
        _ => "add psi=1 to the kernel command line and reboot",
    }
}

/// What the kernel's command line asks for; the last word counts. What follows `--` is for init.
fn asked(command_line: &str) -> Option<bool> {
    command_line
        .split_ascii_whitespace()
        .take_while(|word| *word != "--")
        .filter_map(|word| word.strip_prefix("psi="))
        .filter_map(|value| match value.as_bytes() {
            // As the kernel's kstrtobool reads it.
            [b'1' | b'y' | b'Y' | b't' | b'T', ..] | [b'o' | b'O', b'n' | b'N', ..] => Some(true),
            [b'0' | b'n' | b'N' | b'f' | b'F', ..] | [b'o' | b'O', b'f' | b'F', ..] => Some(false),
            _ => None,
        })
        .last()
}

/// The kernel's own configuration, as far as it can be read.
#[derive(Debug, PartialEq, Eq)]
enum Config {
    NotFound,
    Found { path: String, psi: bool, default_disabled: bool },
}

fn config(host: &Host, release: &str) -> Config {
    let packed = host.read_bytes("/proc/config.gz").ok().and_then(|bytes| unpack(&bytes));
    let text = packed.map(|text| ("/proc/config.gz".to_owned(), text)).or_else(|| {
        [format!("/boot/config-{release}"), format!("/lib/modules/{release}/config")]
            .into_iter()
            .find_map(|path| host.read(&path).ok().map(|text| (path, text)))
    });
    match text {
        // A file without this line is not a kernel's configuration.
        Some((path, text)) if text.contains("CONFIG_64BIT") || text.contains("CONFIG_MMU") => {
            let set = |option: &str| text.lines().any(|line| line == option);
            Config::Found {
                path,
                psi: set("CONFIG_PSI=y"),
                default_disabled: set("CONFIG_PSI_DEFAULT_DISABLED=y"),
            }
        }
        _ => Config::NotFound,
    }
}

fn unpack(bytes: &[u8]) -> Option<String> {
    let mut text = String::new();
    flate2::read::GzDecoder::new(bytes).take(LARGEST_CONFIG_BYTES).read_to_string(&mut text).ok()?;
    Some(text)
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    use crate::fuzz::{done, text};
    done(asked(&text(bytes)));
    done(unpack(bytes));
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use nodewhy_clock::Clock;

    use super::*;
    use crate::host::Places;

    // Lines of /proc/config.gz and the release of Linux 6.18.44.
    const ON: &str = "CONFIG_64BIT=y\nCONFIG_MMU=y\nCONFIG_PSI=y\n# CONFIG_PSI_DEFAULT_DISABLED is not set\n";
    const RELEASE: &str = "6.18.44";

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn explained(error: ReadError, command_line: &str, config: Option<&str>, os: &str) -> String {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "proc/sys/kernel/osrelease", &format!("{RELEASE}\n"));
        write(root.path(), "proc/cmdline", command_line);
        write(root.path(), "etc/os-release", os);
        if let Some(config) = config {
            write(root.path(), &format!("boot/config-{RELEASE}"), config);
        }
        let host = Host::new(root.path(), Clock::system(), Places::default());
        match explain(error, &host) {
            ReadError::Absent { why } => why,
            error => panic!("{error}"),
        }
    }

    fn not_found() -> ReadError {
        ReadError::NotFound { path: "/proc/pressure/cpu".into() }
    }

    fn refused() -> ReadError {
        let error = std::io::Error::from_raw_os_error(libc::EOPNOTSUPP);
        ReadError::Io { what: "read", path: "/proc/pressure/cpu".into(), error }
    }

    #[test]
    fn psi_0_on_the_command_line() {
        for error in [not_found(), refused()] {
            let why = explained(error, "quiet psi=1 psi=0 -- psi=1\n", Some(ON), "");
            assert!(why.contains("psi=0"), "{why}");
            assert!(why.contains("add psi=1 to the kernel command line and reboot"), "{why}");
        }
    }

    #[test]
    fn off_by_default_and_the_distributions_recipe() {
        let config = ON.replace("# CONFIG_PSI_DEFAULT_DISABLED is not set", "CONFIG_PSI_DEFAULT_DISABLED=y");
        let why = explained(not_found(), "quiet\n", Some(&config), "ID=bottlerocket\n");
        assert!(why.contains("CONFIG_PSI_DEFAULT_DISABLED") && why.contains("settings.boot"), "{why}");
    }

    #[test]
    fn not_built_in() {
        let config = ON.replace("CONFIG_PSI=y", "# CONFIG_PSI is not set");
        let why = explained(not_found(), "psi=1\n", Some(&config), "");
        assert!(why.contains("built without CONFIG_PSI"), "{why}");
    }

    #[test]
    fn without_a_configuration_only_a_refusal_is_sure() {
        let why = explained(refused(), "quiet\n", None, "");
        assert!(why.contains("switched off at boot"), "{why}");
        let why = explained(not_found(), "quiet\n", None, "");
        assert!(why.contains("no kernel configuration tells") && why.contains("/proc/config.gz"), "{why}");
        let why = explained(not_found(), "quiet\n", Some("not a configuration"), "");
        assert!(why.contains("no kernel configuration tells"), "{why}");
    }

    #[test]
    fn on_and_yet_not_there_is_a_masked_proc() {
        let why = explained(not_found(), "psi=1\n", Some(ON), "");
        assert!(why.contains("mask"), "{why}");
    }

    #[test]
    fn other_errors_stay_what_they_are() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), Clock::system(), Places::default());
        assert!(matches!(explain(not_found(), &host), ReadError::NotFound { .. }), "no kernel at this root");
        let denied = ReadError::Other("EACCES".to_owned());
        assert!(matches!(explain(denied, &host), ReadError::Other(_)));
    }

    #[test]
    fn this_kernels_packed_configuration_is_read_or_missing() {
        let host = Host::new("/", Clock::system(), Places::default());
        if host.read_bytes("/proc/config.gz").is_ok() {
            let Config::Found { path, psi, .. } = config(&host, "none") else { panic!("not unpacked") };
            assert_eq!(path, "/proc/config.gz");
            assert!(psi || host.read("/proc/pressure/cpu").is_err());
        } else {
            assert_eq!(config(&host, "no such release"), Config::NotFound);
        }
    }

    #[test]
    fn a_packed_configuration_that_is_none() {
        assert_eq!(unpack(b"garbage"), None);
        assert_eq!(unpack(b""), None);
    }
}
