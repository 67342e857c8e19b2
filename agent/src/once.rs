//! `nodewhy-agent once`: everything read once, what is abnormal first.

use std::fmt::Write;
use std::time::Duration;

use nodewhy_clock::Clock;
use nodewhy_proto::{CollectorState, Finding, NodeInfo, Outcome, State};
use serde::Serialize;

use crate::Agent;

/// Rates and changes need two readings: this long is waited for at least.
const AT_LEAST: Duration = Duration::from_millis(1200);
/// Whatever has not been read by then hangs, and is shown so.
const AT_MOST: Duration = Duration::from_secs(5);

/// Everything that one look shows.
#[derive(Debug, Serialize)]
pub struct Look {
    /// Which node.
    pub node: NodeInfo,
    /// What is abnormal.
    pub findings: Vec<Finding>,
    /// What is abnormal at this instant and has not lasted long enough to be sure of.
    pub not_sure_yet: Vec<Finding>,
    /// Each collector's outcome and reading.
    pub state: State,
}

/// Waits until every collector has read, and takes the look.
pub async fn look(agent: &Agent, clock: &Clock) -> Look {
    let began = clock.since_boot();
    loop {
        let passed = clock.since_boot().saturating_sub(began);
        if passed >= AT_MOST || passed >= AT_LEAST && agent.board().is_ready() {
            break;
        }
        clock.sleep(Duration::from_millis(20)).await;
    }
    agent.board().watch();
    Look {
        node: agent.identity().info(agent.board()),
        findings: agent.board().findings(),
        not_sure_yet: agent.board().held(),
        state: agent.board().state(true),
    }
}

/// The look for people, at 80 columns.
pub fn text(look: &Look) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let written = write_text(look, &mut text);
    debug_assert!(written.is_ok());
    text
}

fn write_text(look: &Look, out: &mut String) -> std::fmt::Result {
    let unknown = || "unknown".to_owned();
    writeln!(
        out,
        "{}   Linux {}   {}",
        look.node.id.name,
        look.node.kernel.clone().unwrap_or_else(unknown),
        look.node.os.clone().unwrap_or_else(unknown)
    )?;
    let abnormal: Vec<&Finding> = look.findings.iter().filter(|finding| finding.is_active()).collect();
    if abnormal.is_empty() && look.not_sure_yet.is_empty() {
        let blind = look.state.collectors.values().filter(|state| is_blind(state)).count();
        let but = if blind == 0 {
            String::new()
        } else {
            format!(", as far as can be seen ({blind} sources blind)")
        };
        writeln!(out, "\nNothing abnormal{but}.")?;
    }
    if !abnormal.is_empty() {
        writeln!(out, "\nABNORMAL")?;
    }
    for finding in abnormal {
        finding_text(finding, look, out)?;
    }
    if !look.not_sure_yet.is_empty() {
        writeln!(out, "\nABNORMAL NOW, not for long enough to be sure")?;
    }
    for finding in &look.not_sure_yet {
        finding_text(finding, look, out)?;
    }
    writeln!(out, "\nSOURCES")?;
    // What is broken stands first, what is not on this node last.
    let mut sources: Vec<(&String, &CollectorState)> = look.state.collectors.iter().collect();
    sources.sort_by_key(|(_, state)| match state.outcome {
        Outcome::Failed { .. } | Outcome::Stuck { .. } | Outcome::Unknown => 0,
        Outcome::Read => 1,
        Outcome::Absent { .. } => 2,
    });
    let names = sources.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    for (name, state) in sources {
        let mark = match state.outcome {
            Outcome::Read => "✓",
            Outcome::Absent { .. } => "–",
            _ => "✗",
        };
        let says = state.summary.clone().or_else(|| state.outcome.why()).unwrap_or_default();
        // That it was read need not be said: its reading stands there.
        let says = if state.outcome.is_read() { says } else { format!("{}: {says}", state.outcome.word()) };
        for (index, line) in wrapped(&says, 80 - 5 - names).iter().enumerate() {
            let (mark, name) = if index == 0 { (mark, name.as_str()) } else { (" ", "") };
            writeln!(out, "  {mark} {name:<names$} {line}")?;
        }
    }
    Ok(())
}

fn is_blind(state: &CollectorState) -> bool {
    matches!(state.outcome, Outcome::Failed { .. } | Outcome::Stuck { .. } | Outcome::Unknown)
}

fn finding_text(finding: &Finding, look: &Look, out: &mut String) -> std::fmt::Result {
    let seconds = look.state.now.duration_since(finding.began).as_secs().max(0);
    writeln!(out, "  ✗ {}   for {} s", finding.finding, seconds)?;
    for line in wrapped(&finding.summary, 74) {
        writeln!(out, "      {line}")?;
    }
    for evidence in &finding.evidence {
        for line in wrapped(&format!("{} ({})", evidence.text, evidence.source), 72) {
            writeln!(out, "        {line}")?;
        }
    }
    Ok(())
}

/// Lines of at most `width` characters; control characters of foreign text become spaces. A word that is longer is cut
/// where it must be.
pub(crate) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut lines = vec![String::new()];
    for word in clean.split_whitespace().flat_map(|word| pieces(word, width)) {
        let Some(last) = lines.last_mut() else { continue };
        if !last.is_empty() && last.chars().count() + 1 + word.chars().count() > width {
            lines.push(word);
            continue;
        }
        if !last.is_empty() {
            last.push(' ');
        }
        last.push_str(&word);
    }
    lines
}

fn pieces(word: &str, width: usize) -> Vec<String> {
    let characters: Vec<char> = word.chars().collect();
    characters.chunks(width.max(1)).map(|piece| piece.iter().collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::wrapped;

    #[test]
    fn no_line_is_wider_whatever_the_words() {
        let path = "/sys/fs/cgroup/kubepods.slice/kubepods-burstable.slice/x".repeat(3);
        let lines = wrapped(&format!("cannot read {path}: EACCES\nsecond\tline"), 40);
        assert!(lines.iter().all(|line| line.chars().count() <= 40), "{lines:#?}");
        assert_eq!(lines.concat().replace(' ', ""), format!("cannotread{path}:EACCESsecondline"));
        assert_eq!(wrapped("", 40), [""]);
    }
}
