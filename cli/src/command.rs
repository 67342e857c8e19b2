//! The command line: what there is, and how a command ends.
//!
//! Exit codes: 0 the answer was printed, whatever it says; 1 there is no answer, and stderr says why; 2 the command
//! line is wrong; 3 with `why --exit-code` or `explain --exit-code`: the answer was printed and the node is not well.

mod causes;
mod explain;
mod incidents;
mod nodes;
mod output;
mod why;

use std::ffi::OsString;
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use nodewhy_clock::Clock;

use crate::render::text::clean;
use crate::up::{self, Up};

pub use output::{Color, Format, Screen};

const EXIT_CODES: &str = "\
Exit codes:
  0  the answer was printed, whatever it says
  1  there is no answer; stderr says why and what to do
  2  the command line is wrong
  3  with --exit-code: the answer was printed, and the node is not well";

/// Why did this node go NotReady?
#[derive(Parser, Debug)]
#[command(name = "nodewhy", version, about, after_help = EXIT_CODES, arg_required_else_help = true)]
pub struct Cli {
    /// When to colour. NO_COLOR is honoured; a pipe has no colour unless this says `always`
    #[arg(long, global = true, value_enum, default_value = "auto", value_name = "WHEN")]
    pub color: Color,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Why is this node, or was it, not Ready: root cause, chain, evidence, what to do
    Why(why::Why),
    /// Watch this machine: agent and aggregator together, on one screen or as lines of text
    Up(Box<Up>),
    /// Explain a recorded case: a file, or a folder with case.json
    Explain(explain::Explain),
    /// The causes that nodewhy knows, or the page of one
    Causes(causes::Causes),
    /// Incidents, newest first
    Incidents(incidents::Incidents),
    /// The nodes that the aggregator knows, sick ones first
    Nodes(nodes::Nodes),
}

/// Where the aggregator is.
#[derive(clap::Args, Clone, Debug)]
pub struct Ask {
    /// The aggregator's socket [default: $XDG_RUNTIME_DIR/nodewhy/aggregator.sock, else
    /// /run/nodewhy/aggregator.sock]
    #[arg(long, env = "NODEWHY_AGGREGATOR", value_name = "SOCKET")]
    pub aggregator: Option<PathBuf>,
}

impl Ask {
    fn client(&self) -> crate::client::Client {
        use crate::client::{Client, Who};
        use crate::sockets::usual_aggregator;
        if let Some(socket) = &self.aggregator {
            return Client::new(Who::Aggregator, socket);
        }
        let own = usual_aggregator(runtime_dir().as_deref());
        let system = usual_aggregator(None);
        // An `up` of one's own comes before the machine's service.
        Client::new(Who::Aggregator, if own.exists() || !system.exists() { own } else { system })
    }
}

/// How a command ended, when its answer was printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// That is all.
    Fine,
    /// The node is not well, and the exit code is to say so.
    NotWell,
}

/// The whole program.
pub fn main() -> ExitCode {
    let cli = match parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    match run(cli) {
        Ok(Told::Fine) => ExitCode::SUCCESS,
        Ok(Told::NotWell) => ExitCode::from(3),
        // The reader has what it wanted (`nodewhy causes | head`).
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// Reads the command line. Run as `kubectl-nodewhy`, the program calls itself as its user did: `kubectl nodewhy`.
///
/// # Errors
/// It is wrong, or help was asked for.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let args: Vec<OsString> = args.into_iter().collect();
    let name = args.first().map(PathBuf::from).and_then(|path| path.file_stem().map(ToOwned::to_owned));
    let mut command = Cli::command();
    if name.is_some_and(|name| name == "kubectl-nodewhy") {
        command = command.bin_name("kubectl nodewhy").display_name("kubectl-nodewhy");
    }
    Cli::from_arg_matches(&command.try_get_matches_from(args)?)
}

fn run(cli: Cli) -> anyhow::Result<Told> {
    let screen = Screen::of_stdout(cli.color);
    let now = Clock::system().now();
    let ask = |future: std::pin::Pin<Box<dyn Future<Output = anyhow::Result<Told>>>>| {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
    };
    match cli.command {
        Command::Why(why) => ask(Box::pin(async move { why::run(&why, screen, now).await })),
        Command::Incidents(incidents) => {
            ask(Box::pin(async move { incidents::run(&incidents, screen, now).await }))
        }
        Command::Nodes(nodes) => ask(Box::pin(async move { nodes::run(&nodes, screen).await })),
        Command::Explain(explain) => explain::run(&explain, screen),
        Command::Causes(causes) => causes::run(&causes, screen),
        Command::Up(up) => up::run(&up, screen, runtime_dir().as_deref()).map(|()| Told::Fine),
    }
}

fn runtime_dir() -> Option<PathBuf> {
    std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| Path::new(dir).is_absolute())
}

/// Writes an answer to stdout.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

/// `nodewhy: what was tried, on what, what to do`, each on a line of the terminal's width.
fn complain(error: &anyhow::Error) {
    let text = format!("nodewhy: {error:#}");
    let terminal = std::io::stderr().is_terminal();
    let width = if terminal { output::columns_of(true).map_or(80, usize::from) } else { usize::MAX };
    for paragraph in text.split('\n') {
        for line in crate::render::text::wrap(&clean(paragraph), width) {
            eprintln!("{line}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Cli, clap::Error> {
        parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_wrong_command_line_ends_with_2() {
        for line in [
            "nodewhy whi",
            "nodewhy why -o xml",
            "nodewhy explain",
            "nodewhy why a b",
            "nodewhy --color maybe nodes",
        ] {
            assert_eq!(parsed(line).unwrap_err().exit_code(), 2, "{line}");
        }
        assert!(parsed("nodewhy whi").unwrap_err().to_string().contains("'why'"));
    }

    #[test]
    fn as_a_plugin_it_calls_itself_as_its_user_did() {
        let help = parsed("/usr/local/bin/kubectl-nodewhy why --help").unwrap_err();
        assert!(help.to_string().contains("Usage: kubectl nodewhy why"), "{help}");
        assert!(matches!(parsed("kubectl-nodewhy why n").unwrap().command, Command::Why(_)));
        let help = parsed("nodewhy why --help").unwrap_err();
        assert!(help.to_string().contains("Usage: nodewhy why"), "{help}");
    }

    #[test]
    fn help_tells_the_exit_codes() {
        assert!(parsed("nodewhy --help").unwrap_err().to_string().contains("3  with --exit-code"));
    }
}
