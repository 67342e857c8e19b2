//! The proving ground from the command line.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Parser, Subcommand};
use nodewhy_ground::faults;
use nodewhy_ground::image::{Image, Programs, Suite, module};
use nodewhy_ground::machine::Accelerator;
use nodewhy_ground::node::{Node, Payload, Way};
use nodewhy_ground::ready::ready;

/// Breaks a real node on purpose, in a virtual machine, and shows what the agent sees of it.
#[derive(Debug, Parser)]
struct Cli {
    /// Which of Debian's suites the node is made of.
    #[arg(long, value_enum, default_value = "bookworm", global = true)]
    suite: Suite,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The faults that there are.
    List,
    /// Makes one fault by hand: its proof, and what each agent says each second until the undo.
    Try {
        /// Its name.
        fault: String,
        /// Seconds between the fault and its undo.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
    },
    /// Runs a script of the shell on a fresh node, and says what it said.
    Sh {
        /// The script.
        script: String,
    },
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.command {
        Command::List => {
            for (group, faults) in faults::FAULTS {
                println!("{group}");
                for fault in *faults {
                    println!("  {:<28} {:<26} {}", fault.name, fault.cause, fault.about);
                }
            }
            Ok(())
        }
        Command::Try { fault, seconds } => try_one(cli.suite, &fault, Duration::from_secs(seconds)),
        Command::Sh { script } => {
            let (image, accelerator, payload) = parts(cli.suite)?;
            let disks = ready(&image, accelerator)?.copy(image.folder.join("sh"))?;
            let node = Node::start(&image, accelerator, disks, &payload)?;
            println!("{}", node.says(&script)?);
            Ok(())
        }
    }
}

/// The folder of the release programs beside this one.
fn release(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let found = own.ancestors().map(|folder| folder.join("release").join(name)).find(|file| file.is_file());
    found.with_context(|| {
        format!("{name} is not built: cargo build --release -p nodewhy-agent -p nodewhy-guest --bins")
    })
}

fn parts(suite: Suite) -> anyhow::Result<(Image, Accelerator, Payload)> {
    let kubelet = release("kubelet-standin")?;
    let programs = Programs { guest: release("guest")?, kubelet, pods: release("pods")? };
    let image = Image::make(suite, &programs)?;
    let accelerator = Accelerator::find(&image)?;
    let lockup = module(&image, "lockup", include_str!("../../module/lockup.c"))?;
    let payload = Payload { agent: release("nodewhy-agent")?, hurt: release("hurt")?, lockup: Some(lockup) };
    Ok((image, accelerator, payload))
}

fn try_one(suite: Suite, name: &str, hold: Duration) -> anyhow::Result<()> {
    let fault = faults::find(name).with_context(|| format!("there is no fault {name}: see ground list"))?;
    let (image, accelerator, payload) = parts(suite)?;
    let disks = ready(&image, accelerator)?.copy(image.folder.join("try"))?;
    let began = Instant::now();
    let said = |what: &str| println!("{:6.1} s  {what}", began.elapsed().as_secs_f64());
    let mut node = Node::start(&image, accelerator, disks, &payload)?;
    for way in Way::ALL {
        node.start_agent(way)?;
    }
    said("the node is there, with both agents");
    std::thread::sleep(Duration::from_secs(5));
    let injected = (fault.inject)(&mut node)?;
    said(&format!("{injected:#?}"));
    let left = Instant::now();
    while left.elapsed() < hold {
        for way in Way::ALL {
            said(&format!("{}: {}", way.folder(), told(&node, way)));
        }
        std::thread::sleep(Duration::from_secs(2));
    }
    (fault.undo)(&mut node)?;
    said("undone");
    std::thread::sleep(Duration::from_secs(4));
    for way in Way::ALL {
        said(&format!("{}: {}", way.folder(), told(&node, way)));
    }
    Ok(())
}

/// Each collector that is not well, and each finding, in a line.
fn told(node: &Node, way: Way) -> String {
    let get = |path: &str| -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::from_str(&node.get(way, path)?)?)
    };
    let mut lines = Vec::new();
    match get("/api/v1/state?readings=false") {
        Ok(state) => {
            for (name, collector) in state["collectors"].as_object().into_iter().flatten() {
                let late = &collector["ticks"]["late"];
                lines.push(format!("{name} {} {} (late {late})", collector["outcome"], collector["summary"]));
            }
        }
        Err(error) => lines.push(format!("state: {error:#}")),
    }
    match get("/api/v1/findings") {
        Ok(findings) => {
            for finding in findings.as_array().into_iter().flatten() {
                lines.push(format!(
                    "{} {} since {} ended {}: {}",
                    finding["finding"],
                    finding["subject"],
                    finding["since"],
                    finding["ended"],
                    finding["summary"]
                ));
            }
        }
        Err(error) => lines.push(format!("findings: {error:#}")),
    }
    lines.join("\n          ")
}
