//! docs/proving-ground.md: what was seen of each fault and when, as the kept evidence has it. Pure.

use std::collections::BTreeMap;

use crate::evidence::{Evidence, Story, Way};
use crate::fault::Fault;
use crate::pod::CHANGES;
use crate::seen::{self, Sign, figure};

const INTRO: &str = "\
# The proving ground

A virtual machine with a stock kernel of Debian's and cgroup v2 alone is broken on purpose, while the agent runs in it.
What was done is known, so what the agent saw of it and what the diagnosis made of it can be judged.

    make ground FAULT=containerd-hung    one fault, without keeping anything
    make ground-all                      all of them; keeps the evidence of each, and writes this page anew

This page is generated from `tests/ground/src/faults.rs` and from the evidence in `tests/ground/evidence/`.

## How to read the tables

- Two agents run in each fault at once: one on the host, one in a container with the DaemonSet's security context.
  They see the same fault at the same instant.
- **true cause** is its id in the catalogue ([causes.md](causes.md)), or the name that it is to have there.
- **sign** is what the agent must see: the collector, and its finding, event or figure. `none yet` means that no
  collector reads what would show this fault; the text under the table says which source would.
- **host** and **container** say how many seconds after the fault the agent had the sign to serve. Seconds are counted
  on the node's boot clock. OOM kills and kernel messages bear the kernel's stamp, and another boot begins on a coarse
  clock: for these they are counted until the sign was received from the agent. `cannot` means that an agent in a
  container has no way to see it; the text under the table says why. `not seen` is a failure. `not run` means that no
  evidence is kept. A state that held before the fault never counts.
- **verdict** is what the diagnosis makes of each agent's evidence just before the fault was undone, without an API server:
  the root cause and how sure it is, then what else holds. `no cause named`: the catalogue has no cause for it yet, or
  none that takes Ready away.
- A run takes 20 to 60 s once image and snapshot are made; a few take minutes (50,000 services, a saturated processor). All
  of them take about half an hour, two at a time.
- The machine is emulated, and two agents, the harness and the fault share two processors. Times are longer than on
  real hardware.
";

/// The page. A fault without evidence shows as not run; `verdicts` (by the fault's name) are what the diagnosis made of the
/// evidence, and make a column of their own where there are any.
pub fn page(
    groups: &[(&str, &[&Fault])],
    evidence: &BTreeMap<String, Evidence>,
    verdicts: &BTreeMap<String, BTreeMap<Way, String>>,
) -> String {
    let all = groups.iter().flat_map(|(_, faults)| faults.iter());
    let (total, run) = all.fold((0, 0), |(total, run), fault| {
        (total + 1, run + usize::from(evidence.contains_key(fault.name)))
    });
    let mut page = format!("{INTRO}\n{total} faults; the evidence of {run} is kept.\n");
    for (group, faults) in groups {
        let mut rows =
            vec![["fault", "true cause", "sign", "host", "container", "verdict"].map(str::to_owned)];
        let mut notes = String::new();
        for fault in *faults {
            let run = evidence.get(fault.name).map(|evidence| Run::of(fault, evidence));
            rows.extend(fault_rows(fault, run.as_ref(), verdicts.get(fault.name)));
            notes.push_str(&note(fault, run.as_ref()));
        }
        let columns = if verdicts.is_empty() { 5 } else { 6 };
        page.push_str(&format!("\n## {group}\n\n{}\n{notes}", table(&rows, columns)));
    }
    page + &changes()
}

/// What a container changes: a test tries each of it in the agent's own container, and holds what is said there against
/// this list.
fn changes() -> String {
    let mut text = String::from(
        "\n## What a container changes\n\nTried inside the agent's own container, with its rights (`make ground-pod`): \
         not privileged, a cgroup namespace of its own, a read-only root, the host's PID and network namespaces, \
         seccomp's and AppArmor's defaults, and the capabilities of `agent-pod.json`. SELinux is not on this node.\n\n",
    );
    for change in CHANGES {
        let said = change.says.iter().map(|says| format!("`{}`", says.trim())).collect::<Vec<_>>().join(", ");
        text.push_str(&format!("- {}.\n  Said there: {said}\n", change.what));
    }
    text.push_str(
        "- a socket that is mounted as a file goes stale when the runtime restarts; in a folder that is mounted it does not.\n",
    );
    text
}

/// One run, judged.
struct Run<'e> {
    evidence: &'e Evidence,
    signs: BTreeMap<Way, Vec<Sign>>,
    unexpected: BTreeMap<Way, Vec<seen::Unexpected>>,
}

impl<'e> Run<'e> {
    fn of(fault: &Fault, evidence: &'e Evidence) -> Run<'e> {
        let truth = &evidence.truth;
        let mut run = Run { evidence, signs: BTreeMap::new(), unexpected: BTreeMap::new() };
        for (way, served) in &evidence.agents {
            let story =
                if seen::needs_readings(fault) { Story::of(served) } else { Story::without_states(served) };
            run.signs.insert(*way, seen::signs_of_run(fault, truth, *way, &story));
            let unexpected = seen::unexpected(fault, &truth.injected.since, truth.undone_at, &story);
            run.unexpected.insert(*way, unexpected);
        }
        run
    }
}

/// A row for each sign; what is the fault's stands in the first alone.
fn fault_rows(
    fault: &Fault,
    run: Option<&Run<'_>>,
    verdicts: Option<&BTreeMap<Way, String>>,
) -> Vec<[String; 6]> {
    let mut signs: Vec<String> =
        fault.sees.iter().map(|sees| format!("{}: {}", sees.collector, sees.what)).collect();
    if signs.is_empty() {
        signs.push("none yet".to_owned());
    }
    let row = |(number, sign): (usize, String)| {
        let [host, pod] = Way::ALL.map(|way| cell(fault, number, way, run));
        let once = |text: String| if number == 0 { text } else { String::new() };
        let [name, cause] = [fault.name, fault.cause].map(|word| once(format!("`{word}`")));
        [name, cause, sign, host, pod, once(verdict(verdicts))]
    };
    signs.into_iter().enumerate().map(row).collect()
}

/// When an agent saw a fault's sign of this number.
fn cell(fault: &Fault, number: usize, way: Way, run: Option<&Run<'_>>) -> String {
    let Some(run) = run else { return "not run".to_owned() };
    let Some(signs) = run.signs.get(&way) else { return "not followed".to_owned() };
    let Some(sign) = signs.get(number) else {
        debug_assert!(fault.sees.is_empty(), "each entry of `sees` is judged");
        return "-".to_owned();
    };
    sign.in_short()
}

fn verdict(verdicts: Option<&BTreeMap<Way, String>>) -> String {
    let Some(verdicts) = verdicts else { return "-".to_owned() };
    match (verdicts.get(&Way::Host), verdicts.get(&Way::Pod)) {
        (Some(host), Some(pod)) if host == pod => host.clone(),
        (Some(host), Some(pod)) => format!("host: {host}; container: {pod}"),
        (Some(host), None) => format!("host: {host}"),
        (None, Some(pod)) => format!("container: {pod}"),
        (None, None) => "-".to_owned(),
    }
}

/// What is said of a fault under its group's table.
fn note(fault: &Fault, run: Option<&Run<'_>>) -> String {
    let mut sentences = vec![format!("- `{}`: {}", fault.name, fault.about)];
    sentences.extend(fault.unseen.map(|why| format!("No sign yet: {why}")));
    for sees in fault.sees {
        sentences
            .extend(sees.not_in_pod.map(|why| format!("A container cannot see the {}: {why}", sees.what)));
    }
    if let Some(run) = run {
        for (way, unexpected) in &run.unexpected {
            let listed: Vec<String> = unexpected
                .iter()
                .map(|one| format!("`{}` after {}", one.finding, figure(one.latency_seconds)))
                .collect();
            if !listed.is_empty() {
                sentences.push(format!("Found as well ({}): {}", named(*way), listed.join(", ")));
            }
        }
        let (software, took) = (&run.evidence.truth.software, run.evidence.truth.took_seconds());
        sentences.push(format!("Recorded on Linux {} in {took:.0} s", software.kernel));
    }
    // The texts are phrases that their authors ended as they liked.
    let ended = sentences.iter().map(|sentence| format!("{}.", sentence.trim_end_matches('.')));
    ended.collect::<Vec<_>>().join("\n  ") + "\n"
}

fn named(way: Way) -> &'static str {
    match way {
        Way::Host => "host",
        Way::Pod => "container",
    }
}

/// A Markdown table that a terminal shows as a table too: each cell is filled up to its column's width.
fn table(rows: &[[String; 6]], columns: usize) -> String {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().take(columns).map(|cell| cell.replace('|', "\\|").replace('\n', " ")).collect())
        .collect();
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |cells: &[String]| {
        let filled: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("| {} |\n", filled.join(" | "))
    };
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    let mut lines: Vec<String> = rows.iter().map(|row| line(row)).collect();
    lines.insert(1.min(lines.len()), line(&rule));
    lines.concat()
}

#[cfg(test)]
mod tests;
