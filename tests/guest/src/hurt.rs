//! `hurt`: programs that do harm to the node that they run on, one subcommand each.
//!
//! Each says `ready` in one line when it is at work (some with figures behind the word), ends by itself after
//! `--seconds`, and at once at SIGTERM or SIGINT. What it started ends with it, even where it is killed: the children
//! have asked the kernel for SIGKILL at their parent's death. One in an uninterruptible sleep dies when that ends.

mod children;
mod cpu;
mod descriptors;
mod disk;
mod end;
mod flows;
mod inotify;
mod memory;
mod name;
mod processes;
mod serve;
mod thrash;

use std::io::Write;

use anyhow::Context;
use clap::{Parser, Subcommand};

use self::end::End;

/// Does harm to the node that it runs on, in one way, for a bounded time. For a virtual machine only.
#[derive(Debug, Parser)]
#[command(name = "hurt")]
struct Cli {
    /// It ends by itself after so long.
    #[arg(long, global = true, default_value_t = 120)]
    seconds: u64,
    /// Its own oom_score_adj, -1000 to 1000 (below what it has: root only). As inherited without it.
    #[arg(long, global = true, allow_negative_numbers = true)]
    oom_score_adj: Option<i16>,
    #[command(subcommand)]
    harm: Harm,
}

#[derive(Debug, Subcommand)]
enum Harm {
    /// Holds anonymous memory that no compression and no merging makes smaller.
    Memory(memory::Memory),
    /// Reads a file that is larger than the memory left, at random, again and again.
    Thrash(thrash::Thrash),
    /// Keeps processors busy.
    Cpu(cpu::Cpu),
    /// Makes processes that sleep, until no more can be made.
    Fork(processes::Fork),
    /// Makes processes that have ended and are not reaped.
    Zombies(processes::Zombies),
    /// Opens files until no more can be opened.
    Fds(descriptors::Fds),
    /// Makes inotify instances and watches until no more can be made.
    Inotify(inotify::Watches),
    /// Processes that write and fdatasync all the time: all are in state D soon after their device was suspended.
    Blocked(disk::Blocked),
    /// A writer as etcd's: appends 2 KiB and calls fdatasync, one after the other; says each second how long that took.
    Fsync(disk::Fsync),
    /// Holds an exclusive flock(2) of a file.
    Flock(disk::Lock),
    /// Holds TCP connections open.
    Flows(flows::Flows),
    /// Sends UDP packets from ever other ports.
    Udp(flows::Udp),
    /// A server that echoes, or never answers, or answers late.
    Serve(serve::Serve),
    /// Runs another subcommand under this process name.
    Name(name::Name),
    /// A child of `fork`.
    #[command(hide = true)]
    ChildSleep,
    /// A child of `zombies`.
    #[command(hide = true)]
    ChildEnd,
    /// A child of `fds`.
    #[command(hide = true)]
    ChildOpen(descriptors::Open),
    /// A child of `blocked`.
    #[command(hide = true)]
    ChildWrite(disk::Write),
}

/// The whole program, from the command line on.
///
/// # Errors
/// The harm can't be done; what was tried is in the words. A limit that a harm is meant to reach is not an error.
pub fn run() -> anyhow::Result<()> {
    let cli = Cli::parse();
    children::end_with_the_parent()?;
    name::take()?;
    if let Some(score) = cli.oom_score_adj {
        std::fs::write("/proc/self/oom_score_adj", score.to_string())
            .with_context(|| format!("set the own oom_score_adj to {score}"))?;
    }
    match cli.harm {
        Harm::Name(name) => return name.run(cli.seconds),
        Harm::ChildSleep => return children::sleep(),
        Harm::ChildEnd => return Ok(()),
        Harm::ChildOpen(open) => return open.run(),
        Harm::ChildWrite(write) => return write.run(),
        _ => {}
    }
    // Before any thread is made, which inherits what signals are blocked.
    let end = End::after(cli.seconds)?;
    match cli.harm {
        Harm::Memory(harm) => harm.run(&end),
        Harm::Thrash(harm) => harm.run(&end),
        Harm::Cpu(harm) => harm.run(&end),
        Harm::Fork(harm) => harm.run(&end),
        Harm::Zombies(harm) => harm.run(&end),
        Harm::Fds(harm) => harm.run(&end),
        Harm::Inotify(harm) => harm.run(&end),
        Harm::Blocked(harm) => harm.run(&end),
        Harm::Fsync(harm) => harm.run(&end),
        Harm::Flock(harm) => harm.run(&end),
        Harm::Flows(harm) => harm.run(&end),
        Harm::Udp(harm) => harm.run(&end),
        Harm::Serve(harm) => harm.run(&end),
        Harm::Name(_) | Harm::ChildSleep | Harm::ChildEnd | Harm::ChildOpen(_) | Harm::ChildWrite(_) => {
            Ok(())
        }
    }
}

/// One line on the standard output, at once: who reads it may read a file.
fn say(line: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}").and_then(|()| stdout.flush()).context("write to the standard output")
}
