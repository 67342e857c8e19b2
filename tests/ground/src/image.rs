//! The node's disk, kernel and initramfs, made from Debian's packages.
//!
//! What was made is kept under `target/ground/`, by a key over all that went into it. Nothing is downloaded twice.

use std::collections::hash_map::DefaultHasher;
use std::ffi::OsStr;
use std::fs;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use nodewhy_tests::kubelet::configuration;
use nodewhy_tests::recording::fixtures;

/// What the harness needs on the machine that runs it: a program, and Debian's package of it.
pub const NEEDED: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("qemu-img", "qemu-utils"),
    ("mmdebstrap", "mmdebstrap"),
    ("mkfs.ext4", "e2fsprogs"),
    ("busybox", "busybox-static"),
    ("tar", "tar"),
];

/// What is on the node.
const PACKAGES: &[&str] = &[
    "apparmor",
    "busybox-static",
    "conntrack",
    "containerd",
    "containernetworking-plugins",
    "dbus",
    "dmsetup",
    "e2fsprogs",
    "etcd-server",
    "ethtool",
    "iproute2",
    "iptables",
    "ipvsadm",
    "kmod",
    "linux-image-cloud-amd64",
    "nftables",
    "procps",
    "prometheus-node-exporter",
    "runc",
    "systemd-sysv",
    "udev",
    "util-linux",
];
/// What builds a kernel module for it.
const MODULE_PACKAGES: &[&str] = &["gcc", "linux-headers-cloud-amd64", "make"];

/// The kubelet whose configuration and answers the node's stand-in has.
const KUBELET: &str = "1.32.6";

/// The modules without which no root disk is seen.
const EARLY_MODULES: &[&str] = &["virtio_pci", "virtio_blk"];

/// Bytes of the root disk; it is sparse.
const ROOT_BYTES: u64 = 4 << 30;

/// Which of Debian's suites the node is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Suite {
    /// Debian 12: Linux 6.1, containerd 1.6, systemd 252.
    Bookworm,
    /// Debian unstable: the newest kernel and containerd.
    Sid,
}

impl Suite {
    /// Debian's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Suite::Bookworm => "bookworm",
            Suite::Sid => "sid",
        }
    }
}

/// The programs of ours that are part of the node.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The channel's server.
    pub guest: PathBuf,
    /// The kubelet's stand-in.
    pub kubelet: PathBuf,
    /// The maker of pods.
    pub pods: PathBuf,
}

/// All that a node boots from.
#[derive(Clone, Debug)]
pub struct Image {
    /// Where it is kept; what is made from it goes here too.
    pub folder: PathBuf,
    /// Its suite.
    pub suite: Suite,
    /// The kernel.
    pub kernel: PathBuf,
    /// The kernel's release.
    pub release: String,
    /// The initramfs: it mounts the root disk, and no more.
    pub initramfs: PathBuf,
    /// The root disk, raw. Never written: nodes write to an overlay.
    pub root: PathBuf,
}

/// Says which of the needed programs are missing, and how to install them.
///
/// # Errors
/// One is missing.
pub fn check_needed() -> anyhow::Result<()> {
    let missing: Vec<&str> =
        NEEDED.iter().filter(|(program, _)| find(program).is_none()).map(|(_, package)| *package).collect();
    ensure!(
        missing.is_empty(),
        "the proving ground needs programs that this machine lacks. Install Debian's packages: apt-get install {}",
        missing.join(" ")
    );
    Ok(())
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // Debian's users have no sbin in their PATH.
    let sbin = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(sbin).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Runs a program to its end.
///
/// # Errors
/// It can't be started, or fails: with its last words.
pub fn run<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> anyhow::Result<()> {
    let found = find(program).with_context(|| format!("{program} is not installed"))?;
    let output = Command::new(found)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {program}"))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let last: Vec<&str> = words.lines().rev().take(8).collect();
        bail!("{program}: {}: {}", output.status, last.into_iter().rev().collect::<Vec<_>>().join("\n"));
    }
    Ok(())
}

/// The folder of everything that the harness makes: `target/ground`.
pub fn cache() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/ground")
}

impl Image {
    /// Makes it, or finds it made.
    ///
    /// # Errors
    /// A program is missing, Debian's archive can't be reached, the disk is full: in words.
    pub fn make(suite: Suite, programs: &Programs) -> anyhow::Result<Image> {
        check_needed()?;
        let over = Path::new(env!("CARGO_MANIFEST_DIR")).join("image");
        let key = key(suite, programs, &over)?;
        let folder = cache().join(format!("{}-{key:016x}", suite.name()));
        if !folder.join("made").is_file() {
            forget_others(suite, &folder)?;
            let packages = bootstrap(suite, "root", PACKAGES)?;
            fs::create_dir_all(&folder)?;
            make(&folder, &packages, programs, &over)
                .with_context(|| format!("make {}", folder.display()))?;
            fs::write(folder.join("made"), "")?;
        }
        let release = fs::read_to_string(folder.join("release"))?;
        Ok(Image {
            suite,
            kernel: folder.join("vmlinuz"),
            release: release.trim().to_owned(),
            initramfs: folder.join("initramfs"),
            root: folder.join("root.raw"),
            folder,
        })
    }
}

/// What was made from older programs is of no use, and large.
fn forget_others(suite: Suite, keep: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(cache())?;
    for entry in fs::read_dir(cache())? {
        let entry = entry?;
        let name = entry.file_name();
        let ours = name.to_str().is_some_and(|name| name.starts_with(&format!("{}-", suite.name())));
        if ours && entry.path() != keep && entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Everything that the disk is made of, and the snapshot: their recipes, too.
fn key(suite: Suite, programs: &Programs, over: &Path) -> anyhow::Result<u64> {
    let mut hasher = DefaultHasher::new();
    (suite.name(), PACKAGES, ROOT_BYTES).hash(&mut hasher);
    (include_str!("image.rs"), include_str!("machine.rs"), include_str!("ready.rs")).hash(&mut hasher);
    for program in [&programs.guest, &programs.kubelet, &programs.pods] {
        let bytes = fs::read(program).with_context(|| {
            format!("read {}: build it with cargo build --release -p nodewhy-guest", program.display())
        })?;
        bytes.hash(&mut hasher);
    }
    for file in files(over)?.into_iter().chain([healthz()]) {
        (&file, fs::read(&file)?, fs::metadata(&file)?.permissions().mode()).hash(&mut hasher);
    }
    configuration(KUBELET)?.hash(&mut hasher);
    Ok(hasher.finish())
}

fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => found.extend(files(&entry.path())?),
            false => found.push(entry.path()),
        }
    }
    found.sort();
    Ok(found)
}

/// Debian's packages, unpacked and configured, as one archive. Kept by suite and list.
fn bootstrap(suite: Suite, what: &str, packages: &[&str]) -> anyhow::Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    packages.hash(&mut hasher);
    let archive = cache().join(format!("debian-{}-{what}-{:016x}.tar", suite.name(), hasher.finish()));
    if archive.is_file() {
        return Ok(archive);
    }
    eprintln!("ground: installing Debian {} ({what}) into {}", suite.name(), archive.display());
    let part = archive.with_extension("part.tar");
    let include = format!("--include={}", packages.join(","));
    let part_text = part.to_str().context("the path of target/ is not UTF-8")?;
    let mut arguments = vec!["--variant=minbase", "--mode=root", &include];
    arguments.extend(["--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*"]);
    // A mirror may lag behind by weeks: its signature still counts, its date does not.
    arguments.push("--aptopt=Acquire::Check-Valid-Until \"false\"");
    arguments.extend(["--dpkgopt=path-exclude=/usr/share/locale/*", suite.name(), part_text]);
    run("mmdebstrap", arguments)?;
    fs::rename(&part, &archive)?;
    Ok(archive)
}

fn make(folder: &Path, packages: &Path, programs: &Programs, over: &Path) -> anyhow::Result<()> {
    let root = tempfile::Builder::new().prefix("root-").tempdir_in(folder)?;
    let at = |path: &str| root.path().join(path);
    run("tar", [OsStr::new("-C"), root.path().as_os_str(), OsStr::new("-xf"), packages.as_os_str()])?;
    let release = only(&at("lib/modules"))?;
    fs::write(folder.join("release"), &release)?;
    fs::copy(at(&format!("boot/vmlinuz-{release}")), folder.join("vmlinuz"))?;
    initramfs(&at(&format!("lib/modules/{release}")), &at("bin/busybox"), &release, folder)?;

    // Large, and read by nothing: the kernel is given to qemu, and packages are not installed again.
    for useless in ["boot", "var/cache/apt", "var/lib/apt/lists"] {
        fs::remove_dir_all(at(useless))?;
        fs::create_dir(at(useless))?;
    }
    for file in files(over)? {
        let target = root.path().join(file.strip_prefix(over)?);
        fs::create_dir_all(target.parent().context("a file at the root")?)?;
        fs::copy(&file, &target).with_context(|| format!("copy {}", target.display()))?;
    }
    for (program, target) in [
        (&programs.guest, "usr/lib/ground/guest"),
        (&programs.pods, "usr/lib/ground/pods"),
        (&programs.kubelet, "usr/bin/kubelet"),
    ] {
        fs::copy(program, at(target)).with_context(|| format!("copy {}", program.display()))?;
        fs::set_permissions(at(target), fs::Permissions::from_mode(0o755))?;
    }
    fs::copy(healthz(), at("usr/lib/ground/kubelet-healthz.txt"))?;
    fs::create_dir_all(at("var/lib/kubelet"))?;
    fs::write(at("var/lib/kubelet/config.yaml"), configuration(KUBELET)?)?;
    // A console without a password, for people.
    let shadow = fs::read_to_string(at("etc/shadow"))?;
    let opened: Vec<String> = shadow
        .lines()
        .map(|line| {
            line.strip_prefix("root:")
                .and_then(|rest| rest.split_once(':'))
                .map_or(line.to_owned(), |(_, rest)| format!("root::{rest}"))
        })
        .collect();
    fs::write(at("etc/shadow"), opened.join("\n") + "\n")?;
    for unit in ["guest", "data", "network", "kubelet"] {
        let wants = at("etc/systemd/system").join(match unit {
            "guest" => "sysinit.target.wants",
            _ => "multi-user.target.wants",
        });
        fs::create_dir_all(&wants)?;
        std::os::unix::fs::symlink(
            format!("/etc/systemd/system/{unit}.service"),
            wants.join(format!("{unit}.service")),
        )?;
    }
    let requires = at("etc/systemd/system/containerd.service.requires");
    fs::create_dir_all(&requires)?;
    std::os::unix::fs::symlink("/etc/systemd/system/data.service", requires.join("data.service"))?;
    let wants = at("etc/systemd/system/multi-user.target.wants");
    for slice in ["kubepods", "kubepods-burstable", "kubepods-besteffort"] {
        let unit = format!("{slice}.slice");
        std::os::unix::fs::symlink(format!("/etc/systemd/system/{unit}"), wants.join(&unit))?;
    }
    // They run where a fault wants them. Timers would make a snapshot's every start another one.
    for unit in ["etcd.service", "prometheus-node-exporter.service"] {
        let link = wants.join(unit);
        if link.is_symlink() {
            fs::remove_file(link)?;
        }
    }
    for timer in [
        "apt-daily.timer",
        "apt-daily-upgrade.timer",
        "dpkg-db-backup.timer",
        "e2scrub_all.timer",
        "fstrim.timer",
    ] {
        std::os::unix::fs::symlink("/dev/null", at("etc/systemd/system").join(timer))?;
    }

    let disk = folder.join("root.raw");
    fs::File::create(&disk)?.set_len(ROOT_BYTES)?;
    let [root, disk] = [root.path().as_os_str(), disk.as_os_str()];
    run("mkfs.ext4", [OsStr::new("-q"), OsStr::new("-F"), OsStr::new("-d"), root, disk])
}

/// What the recorded kubelet's `/healthz` answered.
fn healthz() -> PathBuf {
    fixtures().join(format!("kubelet-{KUBELET}/kubelet-{KUBELET}-healthz-http.txt"))
}

fn only(folder: &Path) -> anyhow::Result<String> {
    let names: Vec<_> = fs::read_dir(folder)
        .with_context(|| format!("list {}", folder.display()))?
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_, _>>()?;
    match names.as_slice() {
        [one] => Ok(one.clone()),
        _ => bail!("one kernel was expected in {}, there are {names:?}", folder.display()),
    }
}

/// Debian's own initramfs holds every driver there is, and an emulated machine takes long to unpack it.
fn initramfs(modules: &Path, busybox: &Path, release: &str, folder: &Path) -> anyhow::Result<()> {
    let tree = tempfile::Builder::new().prefix("initramfs-").tempdir_in(folder)?;
    let at = |path: &str| tree.path().join(path);
    for made in ["bin", "proc", "dev", "mnt"] {
        fs::create_dir(at(made))?;
    }
    fs::copy(busybox, at("bin/busybox"))?;
    let needs = fs::read_to_string(modules.join("modules.dep")).context("read modules.dep")?;
    let into = tree.path().join("lib/modules").join(release);
    for line in needs.lines() {
        let Some((module, on)) = line.split_once(':') else { continue };
        let stem = module.rsplit('/').next().and_then(|name| name.split('.').next());
        if !stem.is_some_and(|stem| EARLY_MODULES.contains(&stem)) {
            continue;
        }
        for module in std::iter::once(module).chain(on.split_whitespace()) {
            let target = into.join(module);
            fs::create_dir_all(target.parent().context("a module at the root")?)?;
            fs::copy(modules.join(module), target).with_context(|| format!("copy {module}"))?;
        }
    }
    for index in ["modules.dep", "modules.alias", "modules.builtin", "modules.order"] {
        fs::copy(modules.join(index), into.join(index))?;
    }
    let load: String = EARLY_MODULES.iter().map(|module| format!("$b modprobe {module}\n")).collect();
    let init = format!(
        "#!/bin/busybox sh\nb=/bin/busybox\n$b mount -t proc proc /proc\n$b mount -t devtmpfs dev /dev\n{load}\
         while [ ! -b /dev/vda ]; do $b usleep 20000; done\n$b mount -t ext4 /dev/vda /mnt\n\
         $b umount /proc\n$b umount /dev\nexec $b switch_root /mnt /lib/systemd/systemd\n"
    );
    fs::write(at("init"), init)?;
    fs::set_permissions(at("init"), fs::Permissions::from_mode(0o755))?;
    let archive = folder.join("initramfs");
    let pack = format!(
        "cd '{}' && find . | busybox cpio -o -H newc > '{}'",
        tree.path().display(),
        archive.display()
    );
    run("sh", ["-c", &pack])
}

/// Builds a kernel module of ours against the headers of the suite's kernel.
///
/// # Errors
/// Debian's headers are of another release than the image's kernel, or it doesn't compile.
pub fn module(image: &Image, name: &str, source: &str) -> anyhow::Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    source.hash(&mut hasher);
    let built = image.folder.join(format!("{name}-{:016x}.ko", hasher.finish()));
    if built.is_file() {
        return Ok(built);
    }
    let packages = bootstrap(image.suite, "module", MODULE_PACKAGES)?;
    let root = tempfile::Builder::new().prefix("module-").tempdir_in(&image.folder)?;
    run("tar", [OsStr::new("-C"), root.path().as_os_str(), OsStr::new("-xf"), packages.as_os_str()])?;
    let headers = format!("/usr/src/linux-headers-{}", image.release);
    ensure!(
        root.path().join(&headers[1..]).is_dir(),
        "Debian's headers are not those of the image's kernel {}: remove target/ground and try again",
        image.release
    );
    let folder = root.path().join("module");
    fs::create_dir(&folder)?;
    fs::write(folder.join(format!("{name}.c")), source)?;
    fs::write(folder.join("Makefile"), format!("obj-m := {name}.o\n"))?;
    let root_text = root.path().to_str().context("the path of target/ is not UTF-8")?;
    // objtool of newer kernels reads /proc; it is mounted where nobody else sees it, and gone with the process.
    let build = format!(
        "mount -t proc proc {root_text}/proc && exec chroot {root_text} make -C {headers} M=/module modules"
    );
    run("unshare", ["--mount", "sh", "-c", &build])?;
    fs::copy(folder.join(format!("{name}.ko")), &built)?;
    Ok(built)
}
