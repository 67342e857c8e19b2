//! What a verdict comes to, without its figures: only another substance makes a revision. Pure.

use std::collections::BTreeSet;

use nodewhy_proto::{Conclusion, ConditionStatus, Step, Subject, Verdict};

/// A verdict without figures, times and texts.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Substance {
    conclusion: Conclusion,
    ready: Option<ConditionStatus>,
    roots: Vec<Root>,
    cycles: BTreeSet<Vec<String>>,
    contributing: BTreeSet<(String, String, Subject)>,
    unexplained: BTreeSet<(String, Subject)>,
    /// Only while nothing is explained: then what can't be told is what the verdict says.
    cannot_tell: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq)]
struct Root {
    cause: String,
    node: String,
    subject: Subject,
    chain: Vec<(String, String, bool)>,
}

impl Substance {
    pub(crate) fn of(verdict: &Verdict) -> Substance {
        let ids = |steps: &Vec<Step>| steps.iter().map(|step| step.id.clone()).collect();
        let root = |root: &nodewhy_proto::RootCause| Root {
            cause: root.cause.clone(),
            node: root.node.clone(),
            subject: root.subject.clone(),
            chain: root
                .chain
                .iter()
                .map(|step| (step.id.clone(), step.node.clone(), step.happened))
                .collect(),
        };
        let held = |held: &nodewhy_proto::Held| (held.cause.clone(), held.node.clone(), held.subject.clone());
        Substance {
            conclusion: verdict.conclusion,
            ready: verdict.ready,
            roots: verdict.roots.iter().map(root).collect(),
            cycles: verdict.cycles.iter().map(ids).collect(),
            contributing: verdict.contributing.iter().map(held).collect(),
            unexplained: verdict
                .unexplained
                .iter()
                .map(|finding| (finding.finding.clone(), finding.subject.clone()))
                .collect(),
            cannot_tell: if explains(verdict) {
                BTreeSet::new()
            } else {
                verdict.cannot_tell.iter().map(|cause| cause.cause.clone()).collect()
            },
        }
    }

    /// What changed, for people. Never empty where the two differ.
    pub(crate) fn change_to(&self, newer: &Substance) -> String {
        let mut changes = Vec::new();
        if self.ready != newer.ready {
            changes.push(format!("Ready became {}", ready_word(newer.ready)));
        }
        let causes = |roots: &[Root]| {
            let names: Vec<&str> = roots.iter().map(|root| root.cause.as_str()).collect();
            if names.is_empty() { "none".to_owned() } else { names.join(", ") }
        };
        let (was, is) = (causes(&self.roots), causes(&newer.roots));
        if was != is {
            changes.push(format!("root cause: {is} (was: {was})"));
        } else if self.conclusion != newer.conclusion {
            changes.push(format!("the conclusion became {:?}", newer.conclusion));
        }
        if changes.is_empty() {
            changes.push("the evidence changed".to_owned());
        }
        changes.join("; ")
    }
}

/// Whether the verdict names what happened.
pub(crate) fn explains(verdict: &Verdict) -> bool {
    matches!(verdict.conclusion, Conclusion::Explained | Conclusion::Deadlock)
}

fn ready_word(ready: Option<ConditionStatus>) -> &'static str {
    match ready {
        Some(ConditionStatus::True) => "True",
        Some(ConditionStatus::False) => "False",
        Some(ConditionStatus::Unknown) => "Unknown",
        None => "not known",
    }
}
