//! `nodewhy-agent`: settings, runtime, signals, drain.

use std::io::{ErrorKind, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use nodewhy_agent::host::Host;
use nodewhy_agent::settings::{Cli, Command, Output, Settings, Told};
use nodewhy_agent::{Agent, distribution, doctor, host, log, memory_lock, once, thresholds};
use nodewhy_clock::Clock;
use tokio::signal::unix::{SignalKind, signal};

/// The end waits so long for a standard error that nobody reads.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What the doctor ends with when it could not look; 1 is that something is lacking.
const COULD_NOT_LOOK: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let failure = match cli.command {
        Some(Command::Doctor { .. }) => ExitCode::from(COULD_NOT_LOOK),
        _ => ExitCode::FAILURE,
    };
    let done = start(cli);
    let last = done.as_ref().err().map(|error| format!("nodewhy-agent: {error:#}"));
    log::end(last.as_deref(), LAST_WORDS);
    done.unwrap_or(failure)
}

fn start(cli: Cli) -> anyhow::Result<ExitCode> {
    let file = cli.config.as_deref().map(Told::from_file).transpose()?.unwrap_or_default();
    let told = cli.told.or(file);
    let settings = told.clone().settings()?;
    if cli.check_config {
        settings.listen().check()?;
        settings.credentials.check()?;
        let text = toml::to_string(&told).context("cannot print the settings")?;
        let host = Host::new(&settings.host_root, Clock::system(), settings.places);
        let found = distribution::told(&host) + &thresholds::told(&told.thresholds);
        print(&format!("{text}# understood; what is not named here has its default\n{found}"))?;
        return Ok(ExitCode::SUCCESS);
    }
    // Before the first thread, whose heap and stack they would come too late for.
    host::heap::share();
    if cli.command.is_none() {
        memory_lock::lock(settings.lock_memory);
    }
    // What a command prints is what was asked for.
    let usual = match cli.command {
        None | Some(Command::KmsgHelper { .. }) => tracing::Level::INFO,
        Some(Command::Once { .. } | Command::Doctor { .. }) => tracing::Level::WARN,
    };
    log::begin(cli.log.unwrap_or(usual), std::io::stderr().is_terminal()).context("cannot begin the log")?;
    if let Some(Command::KmsgHelper { socket }) = &cli.command {
        return nodewhy_agent::host::kmsg_helper::serve(socket)
            .map(|()| ExitCode::SUCCESS)
            .with_context(|| format!("cannot hand /dev/kmsg over at {}", socket.display()));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .build()
        .context("cannot start the runtime")?;
    let clock = Clock::system();
    let done = match cli.command {
        // The helper ended above.
        None | Some(Command::KmsgHelper { .. }) => {
            runtime.block_on(run(settings, clock)).map(|()| ExitCode::SUCCESS)
        }
        Some(Command::Once { output }) => {
            runtime.block_on(look(&settings, clock, output)).map(|()| ExitCode::SUCCESS)
        }
        Some(Command::Doctor { output }) => runtime.block_on(examine(&settings, clock, output)),
    };
    // What hangs in the kernel is not waited for.
    runtime.shutdown_background();
    done
}

async fn run(settings: Settings, clock: Clock) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    nodewhy_agent::run(settings, clock, stop).await
}

async fn look(settings: &Settings, clock: Clock, output: Output) -> anyhow::Result<()> {
    let agent = Agent::start(settings, clock.clone())?;
    let look = once::look(&agent, &clock).await;
    let text = match output {
        Output::Text => once::text(&look),
        Output::Json => serde_json::to_string_pretty(&look).context("the look is no JSON")? + "\n",
    };
    print(&text)
}

async fn examine(settings: &Settings, clock: Clock, output: Output) -> anyhow::Result<ExitCode> {
    let agent = Agent::start(settings, clock.clone())?;
    let look = once::look(&agent, &clock).await;
    let report = doctor::report(agent.host(), &look);
    let text = match output {
        Output::Text => doctor::text(&report),
        Output::Json => serde_json::to_string_pretty(&report).context("the report is no JSON")? + "\n",
    };
    print(&text)?;
    Ok(if report.lacks() { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

/// Whoever stops reading (`| head`) has seen enough; a full disk is an error.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to the standard output")
        }
        _ => Ok(()),
    }
}
