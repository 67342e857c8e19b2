//! The agent and the aggregator as they are, each on a thread of its own, on the test's clock.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, bail};
use nodewhy_clock::Clock;
use tokio::sync::oneshot;

use crate::client::get;

/// A program at work in a thread.
#[derive(Debug)]
pub struct Program {
    name: &'static str,
    socket: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Program {
    /// Starts the agent. Its settings name the socket.
    ///
    /// # Errors
    /// The settings name no socket, or no thread can be made.
    pub fn agent(settings: nodewhy_agent::settings::Settings, clock: Clock) -> anyhow::Result<Program> {
        let socket = settings.socket.clone().context("the agent's settings name no socket")?;
        Program::start("agent", socket, move |stop| nodewhy_agent::run(settings, clock, stop))
    }

    /// Starts the aggregator. Its settings name the socket.
    ///
    /// # Errors
    /// The settings name no socket, or no thread can be made.
    pub fn aggregator(settings: nodewhy_aggregator::Settings, clock: Clock) -> anyhow::Result<Program> {
        let socket = settings.socket.clone().context("the aggregator's settings name no socket")?;
        Program::start("aggregator", socket, move |stop| nodewhy_aggregator::run(settings, clock, stop))
    }

    fn start<F>(
        name: &'static str,
        socket: PathBuf,
        run: impl FnOnce(Stop) -> F + Send + 'static,
    ) -> anyhow::Result<Program>
    where
        F: Future<Output = anyhow::Result<()>>,
    {
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(run(Stop(stopped)))
        })?;
        Ok(Program { name, socket, stop: Some(stop), thread: Some(thread) })
    }

    /// The socket that it serves on.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits, in real time, until it says that it is ready.
    ///
    /// # Errors
    /// It ended, or is not ready within `limit`: with its last answer.
    pub async fn wait_ready(&mut self, limit: Duration) -> anyhow::Result<()> {
        let began = std::time::Instant::now();
        loop {
            let answer = get(&self.socket, "/readyz").await;
            if answer.as_ref().is_ok_and(|(status, _)| status.is_success()) {
                return Ok(());
            }
            self.check()?;
            if began.elapsed() > limit {
                match answer {
                    Ok((status, body)) => {
                        let body = String::from_utf8_lossy(&body).into_owned();
                        bail!("the {} is not ready after {limit:?}: {status} {body}", self.name)
                    }
                    Err(error) => return Err(error.context(format!("the {} does not answer", self.name))),
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// That it still runs.
    ///
    /// # Errors
    /// It ended: with its own error.
    pub fn check(&mut self) -> anyhow::Result<()> {
        if self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return Ok(());
        }
        self.join()?;
        bail!("the {} ended by itself", self.name)
    }

    /// Asks it to end, and waits until it has.
    ///
    /// # Errors
    /// It ended with an error, or with a panic.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.stop.take();
        self.join()
    }

    fn join(&mut self) -> anyhow::Result<()> {
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result.with_context(|| format!("the {} failed", self.name)),
            Some(Err(_)) => bail!("the {} panicked", self.name),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.stop.take();
        if let Err(error) = self.join() {
            eprintln!("{error:#}");
        }
    }
}

/// Done when the program is to end: told so, or its handle gone.
struct Stop(oneshot::Receiver<()>);

impl Future for Stop {
    type Output = ();

    fn poll(mut self: std::pin::Pin<&mut Stop>, context: &mut std::task::Context<'_>) -> std::task::Poll<()> {
        std::pin::Pin::new(&mut self.0).poll(context).map(|_| ())
    }
}
