//! A virtual machine: one qemu process, its monitor, its files.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nodewhy_guest::channel::PORT;
use serde_json::{Value, json};

use crate::image::{Image, run};

/// Memory that the kernel uses. Beyond it lies what a crashed kernel's words are kept in: see [`RAMOOPS_ADDRESS`].
pub const MEMORY_MIB: u64 = 1024;
/// Reserved by `mem=`: the machine has it, the kernel does not use it, a reset does not clear it. Not the last MiB,
/// where the firmware puts its tables.
pub const RAMOOPS_ADDRESS: u64 = (MEMORY_MIB + 1) << 20;
const RESERVED_MIB: u64 = 8;
/// Processors.
pub const CPUS: u32 = 2;
/// Bytes of the disk under containerd's state.
const DATA_BYTES: u64 = 1 << 30;
/// With KVM the kernel's first words come in a fraction of this.
const KVM_TRIAL: Duration = Duration::from_secs(8);
/// Bytes of the disk that carries what comes anew with each run.
pub const PAYLOAD_BYTES: u64 = 96 << 20;

/// What executes the machine's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor's own virtualization.
    Kvm,
    /// Software emulation.
    Tcg,
}

impl Accelerator {
    /// Tries whether a machine with KVM boots this kernel. A device file alone says nothing: there are hosts on which KVM
    /// makes a machine whose firmware runs and whose kernel never does. What was found is kept beside the image.
    ///
    /// # Errors
    /// qemu can't be started, or the answer can't be kept.
    pub fn find(image: &Image) -> anyhow::Result<Accelerator> {
        let kept = image.folder.join("accelerator");
        if let Ok(name) = fs::read_to_string(&kept) {
            return Ok(if name == Accelerator::Kvm.name() { Accelerator::Kvm } else { Accelerator::Tcg });
        }
        let works = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok() && boots(image)?;
        let found = if works { Accelerator::Kvm } else { Accelerator::Tcg };
        fs::write(kept, found.name())?;
        Ok(found)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        }
    }
}

/// Whether a machine with KVM gets as far as the kernel's first words.
fn boots(image: &Image) -> anyhow::Result<bool> {
    let console = image.folder.join("console-of-kvm");
    fs::write(&console, "")?;
    let mut command = Command::new("qemu-system-x86_64");
    command.args([
        "-accel",
        "kvm",
        "-cpu",
        "host",
        "-m",
        "256",
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
    ]);
    command.arg("-kernel").arg(&image.kernel).args(["-append", "earlyprintk=ttyS0 console=ttyS0 panic=-1"]);
    command.arg("-serial").arg(format!("file:{}", console.display()));
    let mut child =
        with_harness(command).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let began = Instant::now();
    let boots = loop {
        if String::from_utf8_lossy(&fs::read(&console)?).contains("Linux version") {
            break true;
        }
        if child.try_wait()?.is_some() || began.elapsed() > KVM_TRIAL {
            break false;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    // It may have ended by itself.
    child.kill().or_else(|error| child.try_wait().and_then(|ended| ended.map(drop).ok_or(error)))?;
    child.wait()?;
    fs::remove_file(console)?;
    Ok(boots)
}

/// The machine's disks, in a folder of their own. A snapshot is in them.
#[derive(Clone, Debug)]
pub struct Disks {
    /// Where they are.
    pub folder: PathBuf,
}

impl Disks {
    /// New ones: the root disk as the image has it, the data disk empty.
    ///
    /// # Errors
    /// They can't be written.
    pub fn new(image: &Image, folder: PathBuf) -> anyhow::Result<Disks> {
        fs::create_dir_all(&folder)?;
        let disks = Disks { folder };
        let [root, data] = [disks.root(), disks.data()].map(|path| path.display().to_string());
        let base = fs::canonicalize(&image.root)?.display().to_string();
        run("qemu-img", ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &base, &root])?;
        run("qemu-img", ["create", "-q", "-f", "qcow2", &data, &DATA_BYTES.to_string()])?;
        fs::File::create(disks.payload())?.set_len(PAYLOAD_BYTES)?;
        Ok(disks)
    }

    /// A copy of them, with their snapshots.
    ///
    /// # Errors
    /// They can't be read or written.
    pub fn copy(&self, folder: PathBuf) -> anyhow::Result<Disks> {
        fs::create_dir_all(&folder)?;
        let copy = Disks { folder };
        for (from, to) in [(self.root(), copy.root()), (self.data(), copy.data())] {
            fs::copy(&from, &to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
        }
        fs::File::create(copy.payload())?.set_len(PAYLOAD_BYTES)?;
        Ok(copy)
    }

    fn root(&self) -> PathBuf {
        self.folder.join("root.qcow2")
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data.qcow2")
    }

    /// The disk that carries what comes anew with each run, as a tar archive.
    pub fn payload(&self) -> PathBuf {
        self.folder.join("payload.raw")
    }
}

/// How a machine begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From<'a> {
    /// Power on.
    Boot,
    /// As it was saved.
    Snapshot(&'a str),
}

/// A running machine. Dropped, it is killed.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    monitor: BufReader<UnixStream>,
    folder: PathBuf,
}

impl Machine {
    /// Starts it, and waits for its monitor.
    ///
    /// # Errors
    /// qemu does not start: with its words.
    pub fn start(
        image: &Image,
        accelerator: Accelerator,
        disks: &Disks,
        from: From<'_>,
    ) -> anyhow::Result<Machine> {
        let folder = fs::canonicalize(&disks.folder)?;
        let at = |name: &str| folder.join(name).display().to_string();
        for stale in ["monitor.sock", "channel.sock"] {
            match fs::remove_file(at(stale)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    bail!("remove {stale}: {error}")
                }
                _ => {}
            }
        }
        let mut command = Command::new("qemu-system-x86_64");
        command.args(match accelerator {
            Accelerator::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Accelerator::Tcg => ["-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max"],
        });
        // mem=: what lies beyond is for ramoops.
        let append = format!(
            "root=/dev/vda mem={MEMORY_MIB}M console=ttyS0 quiet net.ifnames=0 panic=3 systemd.show_status=0 \
             random.trust_cpu=on mitigations=off"
        );
        let disk = |file: String, format: &str, extra: &str| {
            format!("file={file},format={format},if=virtio,cache=writeback,discard=unmap{extra}")
        };
        command
            .args(["-name", "nodewhy-ground", "-smp", &CPUS.to_string()])
            .args(["-m", &(MEMORY_MIB + RESERVED_MIB).to_string()])
            .args(["-display", "none", "-no-user-config", "-nodefaults", "-msg", "timestamp=on"])
            .arg("-kernel")
            .arg(&image.kernel)
            .arg("-initrd")
            .arg(&image.initramfs)
            .args(["-append", &append])
            .args(["-drive", &disk(at("root.qcow2"), "qcow2", "")])
            .args(["-drive", &disk(at("data.qcow2"), "qcow2", "")])
            .args(["-drive", &disk(at("payload.raw"), "raw", ",readonly=on")])
            // Nothing outside the machine can be reached.
            .args(["-nic", "user,restrict=on,model=virtio-net-pci"])
            .args(["-device", "virtio-serial-pci"])
            .args(["-chardev", &format!("socket,id=channel,path={},server=on,wait=off", at("channel.sock"))])
            .args(["-device", &format!("virtserialport,chardev=channel,name={PORT}")])
            .args(["-chardev", &format!("file,id=console,path={},append=on", at("console.log"))])
            .args(["-serial", "chardev:console"])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", at("monitor.sock"))]);
        if let From::Snapshot(name) = from {
            command.args(["-loadvm", name]);
        }
        let words = fs::File::create(folder.join("qemu.log"))?;
        // It ends with the harness, however that ends.
        let mut child = with_harness(command)
            .stdin(Stdio::null())
            .stdout(words.try_clone()?)
            .stderr(words)
            .spawn()
            .context("start qemu-system-x86_64")?;
        let monitor = match wait_for(&folder.join("monitor.sock"), &mut child) {
            Ok(stream) => stream,
            Err(error) => {
                let words = fs::read_to_string(folder.join("qemu.log")).unwrap_or_default();
                child.kill()?;
                child.wait()?;
                return Err(error.context(format!("qemu said: {}", words.trim())));
            }
        };
        monitor.set_read_timeout(Some(Duration::from_secs(180)))?;
        let mut machine = Machine { child, monitor: BufReader::new(monitor), folder };
        machine.line()?;
        machine.ask("qmp_capabilities", json!({}))?;
        Ok(machine)
    }

    /// The channel's socket.
    pub fn channel(&self) -> PathBuf {
        self.folder.join("channel.sock")
    }

    /// What the machine said on its serial console so far.
    ///
    /// # Errors
    /// It can't be read.
    pub fn console(&self) -> anyhow::Result<String> {
        let bytes = fs::read(self.folder.join("console.log"))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Saves the machine, disks and memory, under a name. It stands still meanwhile.
    ///
    /// # Errors
    /// qemu's words.
    pub fn save(&mut self, name: &str) -> anyhow::Result<()> {
        self.human(&format!("savevm {name}"))
    }

    /// Stops its processors: the machine is frozen, its clocks stand.
    ///
    /// # Errors
    /// qemu's words.
    pub fn freeze(&mut self) -> anyhow::Result<()> {
        self.ask("stop", json!({})).map(drop)
    }

    /// Goes on after [`Machine::freeze`].
    ///
    /// # Errors
    /// qemu's words.
    pub fn thaw(&mut self) -> anyhow::Result<()> {
        self.ask("cont", json!({})).map(drop)
    }

    /// Lets no more than so many bytes a second through to a disk (`virtio0` is the first one), as a cloud's quota does.
    /// 0: as many as there are.
    ///
    /// # Errors
    /// qemu's words.
    pub fn throttle(&mut self, disk: &str, bytes_per_second: u64) -> anyhow::Result<()> {
        let limits = json!({
            "device": disk, "bps": bytes_per_second, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0,
        });
        self.ask("block_set_io_throttle", limits).map(drop)
    }

    /// Presses its reset button.
    ///
    /// # Errors
    /// qemu's words.
    pub fn reset(&mut self) -> anyhow::Result<()> {
        self.ask("system_reset", json!({})).map(drop)
    }

    /// Ends qemu in an orderly way: everything is written to the disks' files.
    ///
    /// # Errors
    /// qemu's words, or it does not end.
    pub fn quit(mut self) -> anyhow::Result<()> {
        self.ask("quit", json!({}))?;
        let status = self.child.wait()?;
        ensure!(status.success(), "qemu ended with {status}");
        Ok(())
    }

    /// Pulls the plug: qemu is killed.
    ///
    /// # Errors
    /// It can't be killed.
    pub fn power_cut(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// The process that is the machine.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn human(&mut self, line: &str) -> anyhow::Result<()> {
        let said = self.ask("human-monitor-command", json!({"command-line": line}))?;
        match said.as_str() {
            Some("") => Ok(()),
            _ => bail!("{line}: qemu said {said}"),
        }
    }

    fn ask(&mut self, command: &str, arguments: Value) -> anyhow::Result<Value> {
        let mut line = json!({"execute": command, "arguments": arguments}).to_string();
        line.push('\n');
        self.monitor
            .get_mut()
            .write_all(line.as_bytes())
            .with_context(|| format!("ask qemu to {command}"))?;
        loop {
            let answer = self.line().with_context(|| format!("wait for qemu's answer to {command}"))?;
            if let Some(said) = answer.get("return") {
                return Ok(said.clone());
            }
            if let Some(error) = answer.get("error") {
                bail!("{command}: qemu said {error}");
            }
            // Else an event: it tells nothing that is waited for.
        }
    }

    fn line(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        ensure!(self.monitor.read_line(&mut line)? > 0, "qemu's monitor was closed");
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // A machine that has ended already can't be killed.
        if let (Err(error), Ok(None)) = (self.child.kill(), self.child.try_wait()) {
            eprintln!("ground: qemu (pid {}) could not be killed: {error}", self.child.id());
        }
        if let Err(error) = self.child.wait() {
            eprintln!("ground: qemu (pid {}) was not waited for: {error}", self.child.id());
        }
    }
}

/// The same command, which the kernel kills when this process ends.
fn with_harness(command: Command) -> Command {
    let mut wrapped = Command::new("setpriv");
    wrapped.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
    wrapped
}

fn wait_for(socket: &Path, child: &mut Child) -> anyhow::Result<UnixStream> {
    let began = Instant::now();
    loop {
        if let Ok(stream) = UnixStream::connect(socket) {
            return Ok(stream);
        }
        if let Some(status) = child.try_wait()? {
            bail!("it ended at once: {status}");
        }
        ensure!(began.elapsed() < Duration::from_secs(30), "its monitor did not answer in 30 s");
        std::thread::sleep(Duration::from_millis(10));
    }
}
