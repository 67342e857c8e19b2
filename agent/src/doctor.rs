//! `nodewhy-agent doctor`: what this agent may read on this node and what not, what is lost by it, and how to get it.

mod lost;
mod rights;

use std::fmt::Write;

use nodewhy_proto::{CollectorState, Outcome};
use serde::Serialize;
use serde_json::Value;

pub use self::rights::Right;
use crate::distribution::{self, BlindSpot, Found};
use crate::host::{Host, own};
use crate::once::{Look, wrapped};

/// What the doctor says.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The node's name.
    pub node: String,
    /// Which distribution this is, and by which rule.
    pub distribution: Found,
    /// What the agent itself may do.
    pub rights: Vec<Right>,
    /// Each collector.
    pub sources: Vec<Source>,
    /// What nobody can read on this node, whatever the agent may do.
    pub blind_spots: Vec<BlindSpot>,
}

/// How a collector does.
#[derive(Debug, Serialize)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// Whether it works.
    pub works: Works,
    /// Its reading in a line, or why there is none.
    pub says: String,
    /// What it could not read, each in a line that says why.
    pub missing: Vec<String>,
    /// What is not known without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<&'static str>,
}

/// Whether a collector works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Works {
    /// It should read, and cannot.
    No,
    /// It reads, but for something.
    Part,
    /// It reads.
    Yes,
    /// Its subject is not on this node, or it is switched off.
    Absent,
}

impl Report {
    /// Whether the agent could know more if it were let.
    pub fn lacks(&self) -> bool {
        self.rights.iter().any(|right| right.held == Some(false))
            || self.sources.iter().any(|source| source.works <= Works::Part)
    }
}

/// Looks at the agent's own rights, and at how the collectors did.
pub fn report(host: &Host, look: &Look) -> Report {
    let found = distribution::of(host);
    let mut rights = rights::rights(&own::standing(), host);
    rights.sort_by_key(|right| right.held.map_or(1, |held| if held { 2 } else { 0 }));
    let mut sources: Vec<Source> =
        look.state.collectors.iter().map(|(name, state)| source(name, state)).collect();
    sources.sort_by_key(|source| source.works);
    Report {
        node: look.node.id.name.clone(),
        blind_spots: distribution::blind_spots(host, &found),
        distribution: found,
        rights,
        sources,
    }
}

fn source(name: &str, state: &CollectorState) -> Source {
    let missing = state.reading.as_ref().map(missing).unwrap_or_default();
    let works = match &state.outcome {
        Outcome::Read if missing.is_empty() => Works::Yes,
        Outcome::Read => Works::Part,
        Outcome::Absent { .. } => Works::Absent,
        Outcome::Failed { .. } | Outcome::Stuck { .. } | Outcome::Unknown => Works::No,
    };
    Source {
        name: name.to_owned(),
        works,
        says: state.summary.clone().or_else(|| state.outcome.why()).unwrap_or_default(),
        missing,
        lost: (works == Works::No).then(|| lost::without(name)),
    }
}

/// What a reading itself says that it lacks: `irq_error`, `kubelet_available_missing`, `missing`, `limits`. The words
/// are the collector's own.
fn missing(reading: &Value) -> Vec<String> {
    let mut found = Vec::new();
    collect(reading, 0, &mut found);
    found
}

fn collect(value: &Value, depth: usize, found: &mut Vec<String>) {
    /// Deeper stands what is of a single pod, disk or task.
    const DEEPEST: usize = 2;
    let Value::Object(members) = value else { return };
    for (key, member) in members {
        let is_told = key.ends_with("_error") || key.ends_with("_missing");
        match member {
            Value::String(why) if is_told => found.push(format!("{}: {why}", words(key))),
            Value::Array(items) if key == "missing" || key == "limits" => {
                found.extend(items.iter().filter_map(told));
            }
            Value::Object(_) if depth < DEEPEST => collect(member, depth + 1, found),
            _ => {}
        }
    }
}

/// `kubelet_available_missing` is about `kubelet available`.
fn words(key: &str) -> String {
    key.trim_end_matches("_error").trim_end_matches("_missing").replace('_', " ")
}

/// A line of a list: words, or `{"what": …, "why": …}`.
fn told(item: &Value) -> Option<String> {
    match item {
        Value::String(text) => Some(text.clone()),
        Value::Object(members) => {
            let why = members.get("why").and_then(Value::as_str)?;
            match members.get("what").and_then(Value::as_str) {
                Some(what) => Some(format!("{what}: {why}")),
                None => Some(why.to_owned()),
            }
        }
        _ => None,
    }
}

/// For people, at 80 columns, what is missing first.
pub fn text(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let written = write_text(report, &mut text);
    debug_assert!(written.is_ok());
    text
}

fn write_text(report: &Report, out: &mut String) -> std::fmt::Result {
    let name = report.distribution.name().unwrap_or("distribution not known");
    for line in wrapped(&format!("{}   {name} ({})", report.node, report.distribution.found_by), 80) {
        writeln!(out, "{line}")?;
    }
    writeln!(out, "\nSOURCES")?;
    for source in &report.sources {
        let mark = match source.works {
            Works::No => "✗",
            Works::Part => "!",
            Works::Yes => "✓",
            Works::Absent => "–",
        };
        row(out, mark, &source.name, &source.says)?;
        for missing in &source.missing {
            detail(out, "lacks", missing)?;
        }
        if let Some(lost) = source.lost {
            detail(out, "lost", lost)?;
        }
    }
    writeln!(out, "\nRIGHTS OF THIS AGENT")?;
    for right in &report.rights {
        let mark = match right.held {
            Some(true) => "✓",
            Some(false) => "✗",
            None => "?",
        };
        row(out, mark, right.what, &right.says)?;
        if right.held != Some(true) {
            detail(out, "lost", right.lost)?;
            detail(out, "do", right.recipe)?;
        }
    }
    if !report.blind_spots.is_empty() {
        writeln!(out, "\nBLIND SPOTS OF THIS NODE")?;
    }
    for spot in &report.blind_spots {
        row(out, "–", spot.what, "")?;
        detail(out, "lost", spot.lost)?;
        detail(out, "do", &spot.recipe)?;
    }
    Ok(())
}

/// `  ✗ name           words`, wrapped under themselves; a long name has the row alone.
fn row(out: &mut String, mark: &str, name: &str, says: &str) -> std::fmt::Result {
    const NAME: usize = 19;
    let lines = wrapped(says, 80 - 5 - NAME);
    let says = lines.iter().map(String::as_str).filter(|line| !line.is_empty());
    let mut lead = format!("  {mark} {name:<NAME$} ");
    if name.chars().count() > NAME {
        writeln!(out, "{}", lead.trim_end())?;
        lead = " ".repeat(5 + NAME);
    }
    let mut is_told = false;
    for line in says {
        writeln!(out, "{lead}{line}")?;
        lead = " ".repeat(5 + NAME);
        is_told = true;
    }
    if !is_told && name.chars().count() <= NAME {
        writeln!(out, "{}", lead.trim_end())?;
    }
    Ok(())
}

fn detail(out: &mut String, word: &str, text: &str) -> std::fmt::Result {
    for (index, line) in wrapped(text, 80 - 13).iter().enumerate() {
        let word = if index == 0 { word } else { "" };
        writeln!(out, "      {word:<6} {line}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
