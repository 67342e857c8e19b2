//! A node of the proving ground: the machine from its snapshot, the channel into it, and the agent in both ways.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::evidence::Way;
use crate::image::Image;
use crate::machine::{Accelerator, Disks, From, Machine};
use crate::ready::{READY, payload};
use anyhow::{Context, bail, ensure};
use nodewhy_guest::channel::Clocks;
use nodewhy_guest::client::{Client, Output};
use nodewhy_guest::forward::Forward;

/// Where the agent of this way listens, on the node.
fn socket(way: Way) -> String {
    format!("/run/nodewhy/{}/agent.sock", way.folder())
}

/// What comes onto the node with each run.
#[derive(Clone, Debug)]
pub struct Payload {
    /// The agent under test.
    pub agent: PathBuf,
    /// The programs that do harm.
    pub hurt: PathBuf,
    /// The scraper that is compared with the agent.
    pub scrape: PathBuf,
    /// The module that locks up a processor, where it was built.
    pub lockup: Option<PathBuf>,
}

/// A running node. Dropped, its machine is killed.
#[derive(Debug)]
pub struct Node {
    image: Image,
    accelerator: Accelerator,
    disks: Disks,
    machine: Option<Machine>,
    client: Option<Client>,
    forwards: Vec<(Way, PathBuf, Forward)>,
}

/// How long the emulated machine may take for one command of a fault.
const LONG: Duration = Duration::from_secs(90);

impl Node {
    /// Starts it from the snapshot in `disks`, with its wall clock set, and the payload unpacked. No agent runs yet.
    ///
    /// # Errors
    /// The machine does not start, or does not answer.
    pub fn start(
        image: &Image,
        accelerator: Accelerator,
        disks: Disks,
        brings: &Payload,
    ) -> anyhow::Result<Node> {
        let mut files = vec![
            ("nodewhy-agent", brings.agent.clone()),
            ("hurt", brings.hurt.clone()),
            ("scrape", brings.scrape.clone()),
        ];
        files.extend(brings.lockup.clone().map(|module| ("lockup.ko", module)));
        payload(&disks, &files)?;
        let machine = Machine::start(image, accelerator, &disks, From::Snapshot(READY))?;
        let mut node = Node {
            image: image.clone(),
            accelerator,
            disks,
            machine: Some(machine),
            client: None,
            forwards: Vec::new(),
        };
        node.dial(Duration::from_secs(30))?;
        // A snapshot's clock stands where it was saved.
        // On a machine under load it happened that nothing answered after a snapshot was loaded: a new handshake, then.
        if node.set_clock(std::time::SystemTime::now()).is_err() {
            node.dial(Duration::from_secs(30))?;
            node.set_clock(std::time::SystemTime::now())?;
        }
        node.sh("blockdev --flushbufs /dev/vdc; tar -C /var/lib/ground -xf /dev/vdc")?;
        Ok(node)
    }

    fn dial(&mut self, within: Duration) -> anyhow::Result<()> {
        self.client = None;
        let channel = UnixStream::connect(self.machine()?.channel())?;
        self.client = Some(Client::new(channel, within).context("the node does not answer on its channel")?);
        Ok(())
    }

    /// The machine.
    ///
    /// # Errors
    /// Its power was cut.
    pub fn machine(&mut self) -> anyhow::Result<&mut Machine> {
        self.machine.as_mut().context("the machine's power is cut")
    }

    /// The channel.
    ///
    /// # Errors
    /// The machine's power was cut.
    pub fn guest(&self) -> anyhow::Result<&Client> {
        self.client.as_ref().context("the machine's power is cut")
    }

    /// The image that it was made from.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The node's own clocks.
    ///
    /// # Errors
    /// It does not answer.
    pub fn clocks(&self) -> anyhow::Result<Clocks> {
        Ok(self.guest()?.clocks()?)
    }

    /// Sets the node's wall clock.
    ///
    /// # Errors
    /// It does not answer.
    pub fn set_clock(&self, to: std::time::SystemTime) -> anyhow::Result<()> {
        let since = to.duration_since(std::time::UNIX_EPOCH)?;
        self.guest()?.set_clock(i64::try_from(since.as_nanos())?)?;
        Ok(())
    }

    /// Runs a script of the shell on the node; its standard output.
    ///
    /// # Errors
    /// It ended with another code than 0: with what it said.
    pub fn sh(&self, script: &str) -> anyhow::Result<String> {
        self.output(script)?
            .text()
            .map_err(anyhow::Error::msg)
            .with_context(|| format!("on the node: {script}"))
    }

    /// What a script of the shell says on the node, whether it succeeds or not.
    ///
    /// # Errors
    /// The node does not answer.
    pub fn says(&self, script: &str) -> anyhow::Result<String> {
        let output = self.output(script)?;
        let bytes = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// Runs a script of the shell on the node.
    ///
    /// # Errors
    /// The node does not answer.
    pub fn output(&self, script: &str) -> anyhow::Result<Output> {
        Ok(self.guest()?.run_for(&["/bin/sh", "-ec", script], b"", LONG)?)
    }

    /// Sends a signal to the one process of this name; the node's clocks just before.
    ///
    /// # Errors
    /// There is none, or there are several.
    pub fn signal(&self, name: &str, signal: i32) -> anyhow::Result<Clocks> {
        let pid = self.pid(name)?;
        Ok(self.guest()?.kill(pid, signal)?.began)
    }

    /// The one process of this name.
    ///
    /// # Errors
    /// There is none, or there are several.
    pub fn pid(&self, name: &str) -> anyhow::Result<i32> {
        let pids = self.sh(&format!("pgrep -x {name}"))?;
        pids.trim().parse().with_context(|| format!("one process {name} was expected, pgrep says {pids:?}"))
    }

    /// A file of the node.
    ///
    /// # Errors
    /// It can't be read.
    pub fn read(&self, path: &str) -> anyhow::Result<String> {
        let bytes = self.guest()?.read(path)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Writes a file of the node, in place; the node's clocks just before.
    ///
    /// # Errors
    /// It can't be written.
    pub fn write(&self, path: &str, text: &str) -> anyhow::Result<Clocks> {
        Ok(self.guest()?.write(path, 0o644, text.as_bytes())?.began)
    }

    /// Lays a setting over a unit's own (its section `Service`), until it is removed or the node starts anew.
    ///
    /// # Errors
    /// systemd does not take it.
    pub fn drop_in(&self, unit: &str, settings: &str) -> anyhow::Result<()> {
        let folder = format!("/run/systemd/system/{unit}.service.d");
        self.sh(&format!("mkdir -p {folder}"))?;
        self.write(&format!("{folder}/fault.conf"), &format!("[Service]\n{settings}\n"))?;
        self.sh("systemctl daemon-reload").map(drop)
    }

    /// Waits until a unit is no longer active; systemd's word for what it is then.
    ///
    /// # Errors
    /// It stays active.
    pub fn ended(&self, unit: &str) -> anyhow::Result<String> {
        self.until(Duration::from_secs(20), &format!("{unit} is not active any more"), |node| {
            Ok(node.output(&format!("systemctl is-active -q {unit}"))?.code != 0)
        })?;
        self.says(&format!("systemctl is-active {unit}"))
    }

    /// Removes what [`Node::drop_in`] laid over a unit.
    ///
    /// # Errors
    /// It is not there, or systemd does not answer.
    pub fn remove_drop_in(&self, unit: &str) -> anyhow::Result<()> {
        self.sh(&format!("rm /run/systemd/system/{unit}.service.d/fault.conf; systemctl daemon-reload"))
            .map(drop)
    }

    /// Makes a pod of this specification (see `pods`); what is known of it, as JSON.
    ///
    /// # Errors
    /// The runtime's words.
    pub fn pod(&self, specification: &serde_json::Value) -> anyhow::Result<serde_json::Value> {
        let input = specification.to_string();
        let output = self.guest()?.run_for(&["/usr/lib/ground/pods", "run", "-"], input.as_bytes(), LONG)?;
        let text =
            output.text().map_err(anyhow::Error::msg).with_context(|| format!("make the pod {input}"))?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Removes a pod.
    ///
    /// # Errors
    /// The runtime's words.
    pub fn remove_pod(&self, name: &str) -> anyhow::Result<()> {
        let output = self.guest()?.run_for(&["/usr/lib/ground/pods", "remove", name], b"", LONG)?;
        output.text().map(drop).map_err(anyhow::Error::msg)
    }

    /// Starts harm as a unit of systemd's (`hurt-NAME`), and waits until it says that it is at work. `properties` are
    /// systemd-run's (`--slice=…`, `-p OOMScoreAdjust=…`).
    ///
    /// # Errors
    /// It does not start, or is not at work in time.
    pub fn hurt(&self, name: &str, properties: &str, arguments: &str) -> anyhow::Result<Clocks> {
        let before = self.clocks()?;
        let ready = format!("/run/hurt-{name}.ready");
        self.sh(&format!(
            "rm -f {ready}; systemd-run --quiet --collect --unit=hurt-{name} {properties} \
             -p StandardOutput=file:{ready} /var/lib/ground/hurt {arguments}"
        ))?;
        self.until(LONG, &format!("hurt {arguments} says that it is at work"), |node| {
            Ok(node.output(&format!("grep -q ready {ready}"))?.code == 0)
        })?;
        Ok(before)
    }

    /// Ends harm that [`Node::hurt`] started. Harm that has ended already is no error.
    ///
    /// # Errors
    /// systemd does not answer.
    pub fn heal(&self, name: &str) -> anyhow::Result<()> {
        self.sh(&format!("systemctl kill --signal=KILL hurt-{name}.service 2>/dev/null || true")).map(drop)
    }

    /// Waits until something holds on the node.
    ///
    /// # Errors
    /// It does not in time.
    pub fn until(
        &self,
        limit: Duration,
        what: &str,
        mut holds: impl FnMut(&Node) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        while !holds(self)? {
            ensure!(began.elapsed() < limit, "after {limit:?} it does not hold that {what}");
            sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// Starts the agent in this way, and waits until its socket is there.
    ///
    /// # Errors
    /// It does not come up: with what it said.
    pub fn start_agent(&self, way: Way) -> anyhow::Result<()> {
        match way {
            Way::Host => self.sh("systemctl start nodewhy-agent").map(drop)?,
            Way::Pod => {
                let pod = include_str!("agent-pod.json");
                self.pod(&serde_json::from_str(pod)?)?;
            }
        }
        let socket = socket(way);
        let there = self.until(Duration::from_secs(30), &format!("{socket} is there"), |node| {
            Ok(node.output(&format!("test -S {socket}"))?.code == 0)
        });
        if there.is_err() {
            let said = match way {
                Way::Host => self.sh("journalctl -u nodewhy-agent -n 20 --no-pager")?,
                Way::Pod => self.sh("tail -n 20 /var/log/pods/*nodewhy-agent*/*/*.log || true")?,
            };
            bail!("the agent ({}) does not come up: {said}", way.folder());
        }
        Ok(())
    }

    /// Makes an agent's socket reachable from here: a socket of this machine, each of whose connections is carried to
    /// the node's. It stays through reboots and power cuts.
    ///
    /// # Errors
    /// The socket can't be made.
    pub fn forward(&mut self, way: Way, to: &Path) -> anyhow::Result<()> {
        let forward = self.guest()?.forward(&socket(way), to)?;
        self.forwards.push((way, to.to_owned(), forward));
        Ok(())
    }

    /// A connection to an agent, over the channel.
    ///
    /// # Errors
    /// It does not listen.
    pub fn agent(&self, way: Way) -> anyhow::Result<UnixStream> {
        Ok(self.guest()?.connect(&socket(way))?)
    }

    /// GETs a path of an agent, over the channel; the body of its answer.
    ///
    /// # Errors
    /// It does not answer in five seconds, or not with 200.
    pub fn get(&self, way: Way, path: &str) -> anyhow::Result<String> {
        let mut stream = self.agent(way)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .with_context(|| format!("GET {path} of the agent ({})", way.folder()))?;
        let (head, body) =
            answer.split_once("\r\n\r\n").context("the agent's answer has no end of its head")?;
        ensure!(head.contains(" 200 "), "GET {path}: {head}");
        Ok(body.to_owned())
    }

    /// Pulls the plug.
    ///
    /// # Errors
    /// qemu can't be killed.
    pub fn power_cut(&mut self) -> anyhow::Result<()> {
        self.client = None;
        self.machine.take().context("the machine's power is cut already")?.power_cut()
    }

    /// Switches it on again: it boots from its disks, as they were when the power was cut.
    ///
    /// # Errors
    /// It does not come up.
    pub fn power_on(&mut self) -> anyhow::Result<()> {
        ensure!(self.machine.is_none(), "the machine is on");
        self.machine = Some(Machine::start(&self.image, self.accelerator, &self.disks, From::Boot)?);
        self.dial(Duration::from_secs(120))?;
        for (way, to, old) in std::mem::take(&mut self.forwards) {
            drop(old);
            self.forward(way, &to)?;
        }
        Ok(())
    }

    /// Waits until a machine that starts anew by itself answers again, with another boot id than before.
    ///
    /// # Errors
    /// It does not in time.
    pub fn rebooted(&mut self, before: &str, within: Duration) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            if self.guest()?.again(Duration::from_secs(2)).is_ok()
                && self.boot_id().is_ok_and(|id| id != before)
            {
                return Ok(());
            }
            ensure!(began.elapsed() < within, "the machine did not start anew within {within:?}");
            // A call that is under way when the guest goes down has no answer for long: there are to be few.
            sleep(Duration::from_millis(500));
        }
    }

    /// Which boot this is.
    ///
    /// # Errors
    /// The node does not answer.
    pub fn boot_id(&self) -> anyhow::Result<String> {
        Ok(self.read("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
    }

    /// Before a fault that ends this boot: what a node has that ran for long. The agent's unit starts with the next
    /// boot, and nothing waits to be written.
    ///
    /// # Errors
    /// The node does not answer.
    pub fn settle(&self) -> anyhow::Result<()> {
        let unit = "/etc/systemd/system/nodewhy-agent.service";
        self.sh(&format!("ln -sf {unit} /etc/systemd/system/multi-user.target.wants/; sync")).map(drop)
    }

    /// After a boot: waits for the runtime, and makes the agent's pod again. The kubelet would.
    ///
    /// # Errors
    /// The runtime, or an agent, does not come up.
    pub fn resume(&self) -> anyhow::Result<()> {
        // is-active is content with one of those that it is asked for.
        let up = "for unit in containerd kubelet nodewhy-agent; do systemctl is-active $unit; done; /usr/lib/ground/pods list";
        self.until(LONG, "containerd answers, kubelet and the agent's unit are active", |node| {
            Ok(node.output(up)?.code == 0)
        })?;
        // The runtime knows the sandbox of the boot before, and keeps its name taken.
        self.sh("/usr/lib/ground/pods remove nodewhy-agent nodewhy || true")?;
        self.start_agent(Way::Pod)?;
        self.start_agent(Way::Host)
    }
}
