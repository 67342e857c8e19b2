//! The text of `nodewhy up`: the first lines within a second, then one for each change.

use std::io::{ErrorKind, Write};
use std::time::Duration;

use nodewhy_clock::Clock;
use tokio::sync::watch;

use crate::lines::lines;
use crate::render::time::clock as time_of_day;
use crate::watch::{Snapshot, Watch};

/// The first lines wait this long at most for collectors that were not read yet.
const FIRST_WITHIN: Duration = Duration::from_millis(800);
/// Time between two looks until then.
const FIRST_EVERY: Duration = Duration::from_millis(50);

/// Writes until nobody reads.
///
/// # Errors
/// The lines can't be written, for another reason than that the reader is gone.
pub async fn run(watch: Watch, clock: Clock, place: &[String], out: &mut impl Write) -> anyhow::Result<()> {
    let now = clock.now();
    let utc = format!("nodewhy up {}, all times in UTC", env!("CARGO_PKG_VERSION"));
    let place = std::iter::once(&utc).chain(place).map(|line| format!("{} {line}", time_of_day(now, now)));
    let place: Vec<String> = place.collect();
    if !write(out, &place)? {
        return Ok(());
    }
    let mut told = first(&watch, &clock).await;
    if !write(out, &lines(None, &told))? {
        return Ok(());
    }
    let (sender, mut seen) = watch::channel(None);
    let looking = tokio::spawn(watch.keep_looking(clock, sender));
    while seen.changed().await.is_ok() {
        let Some(mut now) = seen.borrow_and_update().clone() else { continue };
        if !write(out, &lines(Some(&told), &now))? {
            break;
        }
        remember(&told, &mut now);
        told = now;
    }
    looking.abort();
    Ok(())
}

/// The first look that is complete, or the last before the time is up.
async fn first(watch: &Watch, clock: &Clock) -> Snapshot {
    let deadline = clock.since_boot() + FIRST_WITHIN;
    loop {
        let snapshot = watch.look(clock.now()).await;
        if (snapshot.is_complete() && snapshot.summary.is_ok()) || clock.since_boot() >= deadline {
            return snapshot;
        }
        clock.sleep(FIRST_EVERY).await;
    }
}

/// What was known stays known while it can't be asked for: a silence is told as such, not as news at its end.
fn remember(before: &Snapshot, now: &mut Snapshot) {
    if now.findings.is_err() {
        now.findings = before.findings.clone();
    }
    if now.state.is_err() {
        now.state = before.state.clone();
    }
    if now.incident.is_err() {
        now.incident = before.incident.clone();
    }
}

/// Writes lines; `false` when the reader is gone.
fn write(out: &mut impl Write, lines: &[String]) -> anyhow::Result<bool> {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        other => other.map(|()| true).map_err(Into::into),
    }
}
