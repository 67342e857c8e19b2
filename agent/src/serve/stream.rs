//! `/api/v1/events`: server-sent events, resumed from a cursor.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use http_body_util::channel::{Channel, Sender};
use hyper::StatusCode;
use hyper::body::Bytes;
use nodewhy_proto::{Event, EventBody, Gap, Problem};

use crate::board::{AGENT, Board};
use crate::events::After;
use crate::serve::{Answer, with_type};

/// A comment is sent when nothing happened for so long, so that both sides know that the other lives.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Batches that a slow reader may be behind by, before it has to wait and at last gets a gap.
const BATCHES: usize = 4;
/// Events in one batch.
const BATCH: usize = 64;

/// All that is kept after the cursor, then whatever happens.
pub(super) fn open(board: &Arc<Board>, cursor: Option<&str>) -> Answer {
    let after = board
        .events()
        .after_cursor(cursor)
        .map_err(|error| Problem::new(400, "Bad Request", format!("the cursor {error}")))?;
    let (sender, body) = Channel::new(BATCHES);
    tokio::spawn(follow(board.clone(), after, sender));
    Ok(with_type(StatusCode::OK, "text/event-stream", body.boxed()))
}

async fn follow(board: Arc<Board>, mut after: After, mut sender: Sender<Bytes>) {
    let mut newest = board.events().follow();
    loop {
        let mut text = String::new();
        if let Some(gap) = after.gap.take() {
            let cursor = gap.from.clone();
            append(&mut text, "gap", &cursor, &gap_event(&board, gap));
        }
        for batch in after.events.chunks(BATCH) {
            for event in batch {
                append(&mut text, kind(&event.body), &event.cursor, event);
            }
            if sender.send_data(Bytes::from(std::mem::take(&mut text))).await.is_err() {
                return;
            }
        }
        // At the start and after a gap there may be nothing else to send; a new stream is answered at once.
        if after.events.is_empty() {
            text.push_str(":\n\n");
            if sender.send_data(Bytes::from(text)).await.is_err() {
                return;
            }
        }
        let sequence = after.next;
        let waited = tokio::time::timeout(KEEP_ALIVE, newest.wait_for(|newest| *newest > sequence)).await;
        if let Ok(Err(_)) = waited {
            return;
        }
        after = board.events().after(sequence);
    }
}

fn gap_event(board: &Board, gap: Gap) -> Event {
    let now = board.clock().stamp();
    Event {
        id: format!("gap/{}/{}", gap.from, gap.to),
        cursor: gap.from.clone(),
        at: now.wall,
        boot_seconds: now.boot.as_secs_f64(),
        boot_id: None,
        source: AGENT.to_owned(),
        body: EventBody::Gap(gap),
    }
}

fn append(text: &mut String, kind: &str, cursor: &str, event: &Event) {
    // One line: serde_json writes no line breaks. What cannot be written is said, never left out in silence.
    let line =
        serde_json::to_string(event).unwrap_or_else(|error| format!("{{\"error\":{:?}}}", error.to_string()));
    if write!(text, "event: {kind}\nid: {cursor}\ndata: {line}\n\n").is_err() {
        tracing::error!("an event could not be formatted");
    }
}

fn kind(body: &EventBody) -> &'static str {
    match body {
        EventBody::OomKill(_) => "oom_kill",
        EventBody::KernelMessage(_) => "kernel_message",
        EventBody::LogLine(_) => "log_line",
        EventBody::Changed(_) => "changed",
        EventBody::ProcessStarted(_) => "process_started",
        EventBody::ProcessExited(_) => "process_exited",
        EventBody::FindingBegan { .. } => "finding_began",
        EventBody::FindingChanged { .. } => "finding_changed",
        EventBody::FindingEnded { .. } => "finding_ended",
        EventBody::OutcomeChanged { .. } => "outcome_changed",
        EventBody::ClockStepped { .. } => "clock_stepped",
        EventBody::Gap(_) => "gap",
        EventBody::Unknown => "unknown",
    }
}
