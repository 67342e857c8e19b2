//! The proving ground from the command line.

#![expect(clippy::disallowed_methods, reason = "it measures how long things take")]

use std::collections::VecDeque;
use std::fmt::Write;
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand};
use nodewhy_ground::evidence::{Evidence, Story, Way, folder};
use nodewhy_ground::fault::Fault;
use nodewhy_ground::image::{Suite, cache};
use nodewhy_ground::node::Node;
use nodewhy_ground::run::{Ground, run};
use nodewhy_ground::seen::{signs_of_run, unexpected};
use nodewhy_ground::{bare, faults, fire, pod};

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
    /// Makes the image and the snapshot, where they are not made yet.
    Make,
    /// Runs faults by name: each from the snapshot, with the agent on the host and in a container.
    Run {
        /// Their names.
        #[arg(required = true)]
        faults: Vec<String>,
        /// Keeps the evidence in the repository.
        #[arg(long)]
        keep: bool,
        /// So many machines at once.
        #[arg(long, default_value_t = 1)]
        jobs: usize,
    },
    /// Runs every fault.
    All {
        /// Only those that run each time.
        #[arg(long)]
        each_time: bool,
        /// Keeps the evidence in the repository.
        #[arg(long)]
        keep: bool,
        /// So many machines at once.
        #[arg(long, default_value_t = 1)]
        jobs: usize,
    },
    /// Makes one fault by hand: its proof, and what each agent says until the undo.
    Try {
        /// Its name.
        fault: String,
        /// Seconds between the fault and its undo.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
    },
    /// Shows that the agent loads nothing: modules and tables before and after a full run, on the ready node and a bare one.
    Bare,
    /// What a container changes, seen from inside the agent's.
    Pod,
    /// How late the agent's ticks are while the node is dying, beside node_exporter and a loop of the shell.
    Fire {
        /// Under these faults alone.
        faults: Vec<String>,
    },
    /// Runs a script of the shell on a fresh node, and says what it said.
    Sh {
        /// The script.
        script: String,
        /// Starts the agent in both ways first.
        #[arg(long)]
        agents: bool,
    },
}

fn main() -> ExitCode {
    match start(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ground: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::List => {
            for (group, faults) in faults::FAULTS {
                println!("{group}");
                for fault in *faults {
                    let each_time = if fault.each_time { "*" } else { " " };
                    println!("{each_time} {:<28} {:<26} {}", fault.name, fault.cause, fault.about);
                }
            }
            println!("* runs each time");
            Ok(())
        }
        Command::Make => Ground::make(cli.suite).map(drop),
        Command::Run { faults, keep, jobs } => {
            let faults: Vec<&'static Fault> =
                faults.iter().map(|name| find(name)).collect::<Result<_, _>>()?;
            run_all(&Ground::make(cli.suite)?, &faults, jobs, keep)
        }
        Command::All { each_time, keep, jobs } => {
            let faults: Vec<&'static Fault> =
                faults::all().filter(|fault| fault.each_time || !each_time).collect();
            run_all(&Ground::make(cli.suite)?, &faults, jobs, keep)
        }
        Command::Try { fault, seconds } => try_one(cli.suite, find(&fault)?, Duration::from_secs(seconds)),
        Command::Bare => bare::seen(&Ground::make(cli.suite)?),
        Command::Pod => pod::seen(&Ground::make(cli.suite)?),
        Command::Fire { faults } => {
            let ground = Ground::make(cli.suite)?;
            let names: Vec<&str> = match faults.as_slice() {
                [] => fire::UNDER.to_vec(),
                named => named.iter().map(String::as_str).collect(),
            };
            let mut fires = Vec::new();
            for name in names {
                let fire = fire::under(&ground, find(name)?)?;
                println!("{}", serde_json::to_string(&fire)?);
                fires.push(fire);
            }
            print!("{}", fire::table(&fires));
            for fire in &fires {
                for (way, late) in [("host", &fire.host), ("pod", &fire.pod)] {
                    let share = 1.0 - late.on_time();
                    ensure!(
                        share <= fire::LATE_AT_MOST,
                        "{}: {share:.3} of the ticks ({way}) were late",
                        fire.fault
                    );
                }
            }
            Ok(())
        }
        Command::Sh { script, agents } => {
            let ground = Ground::make(cli.suite)?;
            let slot = ground.slot()?;
            let node = ground.node(&slot)?;
            for way in Way::ALL.iter().filter(|_| agents) {
                node.start_agent(*way)?;
            }
            println!("{}", node.says(&script)?);
            Ok(())
        }
    }
}

fn find(name: &str) -> anyhow::Result<&'static Fault> {
    faults::find(name).with_context(|| format!("there is no fault {name}: `ground list` shows them"))
}

/// Runs them, `jobs` at a time. Each worker's machine ends with its run.
fn run_all(ground: &Ground, faults: &[&'static Fault], jobs: usize, keep: bool) -> anyhow::Result<()> {
    let whole = Instant::now();
    let left = Mutex::new(faults.iter().copied().collect::<VecDeque<_>>());
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while let Some(fault) = lock(&left).pop_front() {
                    let began = Instant::now();
                    let (said, well) = match one(ground, fault, keep) {
                        Ok(told) => told,
                        Err(error) => (format!("   the run failed: {error:#}\n"), false),
                    };
                    let took = began.elapsed().as_secs_f64();
                    println!("== {}: {}\n{said}   {took:.0} s", fault.name, fault.about);
                    if !well {
                        lock(&wrong).push(fault.name);
                    }
                }
            });
        }
    });
    println!("{} faults in {:.0} s", faults.len(), whole.elapsed().as_secs_f64());
    let wrong = lock(&wrong);
    ensure!(wrong.is_empty(), "not as it should be: {}", wrong.join(", "));
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One run: its report, and whether everything is as it should be.
fn one(ground: &Ground, fault: &Fault, keep: bool) -> anyhow::Result<(String, bool)> {
    let evidence = run(ground, fault)?;
    let (mut said, well) = report(fault, &evidence)?;
    if keep && !well {
        said += "   not kept: what is in the repository is as it should be\n";
    }
    let root = if keep && well { folder() } else { cache().join("runs") };
    let written = evidence.write(&root)?;
    writeln!(said, "   evidence in {}", written.display())?;
    Ok((said, well))
}

/// What was seen of it, by whom, when; and whether that is as it should be.
fn report(fault: &Fault, evidence: &Evidence) -> anyhow::Result<(String, bool)> {
    let (mut said, mut well) = (String::new(), true);
    for proof in &evidence.truth.injected.proof {
        let words = proof.said.trim().replace('\n', "\n          ");
        writeln!(said, "   proof  {}: {words}", proof.source)?;
    }
    for (way, served) in &evidence.agents {
        let story = Story::of(served);
        for sign in signs_of_run(fault, &evidence.truth, *way, &story) {
            well &= sign.is_as_expected();
            let mark = if sign.is_as_expected() { " " } else { "!" };
            let text = sign.seen.as_ref().map_or("", |seen| &seen.text);
            let (way, short) = (way.folder(), sign.in_short());
            writeln!(said, " {mark} {way:<5} {short:<9} {}: {} {text}", sign.collector, sign.what)?;
        }
        for also in unexpected(fault, &evidence.truth.injected.since, evidence.truth.undone_at, &story) {
            writeln!(
                said,
                "   {:<5} also      {} {}: {}",
                way.folder(),
                also.collector,
                also.finding,
                also.text
            )?;
        }
    }
    Ok((said, well))
}

fn try_one(suite: Suite, fault: &Fault, hold: Duration) -> anyhow::Result<()> {
    let ground = Ground::make(suite)?;
    let slot = ground.slot()?;
    let began = Instant::now();
    let said = |what: &str| println!("{:6.1} s  {what}", began.elapsed().as_secs_f64());
    let mut node = ground.node(&slot)?;
    for way in Way::ALL {
        node.start_agent(way)?;
    }
    said("the node is there, with both agents");
    std::thread::sleep(Duration::from_secs(5));
    let injected = (fault.inject)(&mut node)?;
    said("the fault holds");
    for proof in &injected.proof {
        said(&format!("proof: {}: {}", proof.source, proof.said.trim()));
    }
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

/// Each collector, and each finding, in a line.
fn told(node: &Node, way: Way) -> String {
    let get = |path: &str| -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::from_str(&node.get(way, path)?)?)
    };
    let mut lines = Vec::new();
    match get("/api/v1/state?readings=false") {
        Ok(state) => {
            for (name, collector) in state["collectors"].as_object().into_iter().flatten() {
                let (outcome, summary) = (&collector["outcome"], &collector["summary"]);
                lines.push(format!("{name} {outcome} {summary} (late {})", collector["ticks"]["late"]));
            }
        }
        Err(error) => lines.push(format!("state: {error:#}")),
    }
    match get("/api/v1/findings") {
        Ok(findings) => {
            for finding in findings.as_array().into_iter().flatten() {
                let (name, subject) = (&finding["finding"], &finding["subject"]["name"]);
                let (began, ended) = (&finding["began"], &finding["ended"]);
                lines.push(format!("{name} {subject} {began} to {ended}: {}", finding["summary"]));
            }
        }
        Err(error) => lines.push(format!("findings: {error:#}")),
    }
    match node.get(way, "/metrics") {
        Ok(metrics) => {
            let messages = metrics.lines().filter(|line| line.starts_with("nodewhy_kernel_messages_total"));
            lines.extend(messages.filter(|line| !line.ends_with(" 0")).map(str::to_owned));
        }
        Err(error) => lines.push(format!("metrics: {error:#}")),
    }
    lines.join("\n          ")
}
