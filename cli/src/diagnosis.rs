//! What the command line asks of `nodewhy-diagnosis`, in one place.

use anyhow::bail;
use nodewhy_diagnosis::{Case, Cause};
use nodewhy_proto::Verdict;

/// The catalogue of causes.
pub fn catalogue() -> &'static [&'static Cause] {
    &[]
}

/// The verdict of a case that was read from a file.
///
/// # Errors
/// This is no case.
pub fn explain(json: &str) -> anyhow::Result<(Case, Verdict)> {
    let case: Case = serde_json::from_str::<Case>(json)?.checked()?;
    bail!("cannot explain the case about {}: this build has no causes", case.node)
}

/// The causes that lead where this one leads: those that are most easily taken for it.
pub fn look_alikes(cause: &str) -> Vec<&'static str> {
    let all = catalogue();
    let Some(root) = all.iter().find(|known| known.id == cause) else { return Vec::new() };
    let leads =
        |other: &Cause| other.leads_to.iter().any(|link| root.leads_to.iter().any(|own| own.to == link.to));
    all.iter().filter(|other| other.id != cause && leads(other)).map(|other| other.id).collect()
}

/// The causes' pages as Markdown.
pub fn markdown(causes: &[&Cause]) -> String {
    let mut out = String::new();
    for cause in causes {
        out.push_str(&format!("## {}\n\n{}\n\n{}\n\n", cause.id, cause.title, cause.about.trim()));
        for link in cause.leads_to {
            out.push_str(&format!("- leads to `{}` within {} s\n", link.to, link.within.as_secs()));
        }
        for remedy in cause.remedy {
            out.push_str(&format!("- do: {remedy}\n"));
        }
        out.push('\n');
    }
    out
}
