//! What the command line asks of `nodewhy-diagnosis`, in one place.

use anyhow::Context;
use nodewhy_diagnosis::{Case, Cause, causes};
use nodewhy_proto::Verdict;

/// The catalogue of causes.
pub fn catalogue() -> &'static [&'static Cause] {
    causes::ALL
}

/// The verdict of a case that was read from a file.
///
/// # Errors
/// The text is no case, or one that no builder would have made.
pub fn explain(json: &str) -> anyhow::Result<(Case, Verdict)> {
    let case = nodewhy_diagnosis::read_case(json).context("it is no case")?;
    let verdict = nodewhy_diagnosis::explain(&case);
    Ok((case, verdict))
}

/// The causes that lead where this one leads: those that are most easily taken for it.
pub fn look_alikes(cause: &str) -> Vec<&'static str> {
    let all = catalogue();
    let Some(root) = all.iter().find(|known| known.id == cause) else { return Vec::new() };
    let leads =
        |other: &Cause| other.leads_to.iter().any(|link| root.leads_to.iter().any(|own| own.to == link.to));
    all.iter().filter(|other| other.id != cause && leads(other)).map(|other| other.id).collect()
}

/// The causes' pages as Markdown: docs/causes.md, or one section of it.
pub fn markdown(only: Option<&str>) -> String {
    let page = causes::page();
    let Some(id) = only else { return page };
    let head = format!("## {id}");
    let mut inside = false;
    let section = page.lines().filter(|line| {
        if line.starts_with("## ") {
            inside = *line == head;
        }
        inside
    });
    let text = section.collect::<Vec<_>>().join("\n");
    format!("{}\n", text.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_its_section_of_the_page() {
        let whole = markdown(None);
        for cause in catalogue() {
            let section = markdown(Some(cause.id));
            assert!(
                section.starts_with(&format!("## {}\n", cause.id)) && section.contains(cause.title),
                "{section}"
            );
            assert!(whole.contains(section.trim_end()));
            assert_eq!(section.matches("\n## ").count(), 0);
        }
    }

    #[test]
    fn a_look_alike_leads_where_the_cause_leads() {
        assert!(look_alikes("containerd_hung").contains(&"containerd_dead"));
        assert!(!look_alikes("containerd_hung").contains(&"containerd_hung"));
        assert!(look_alikes("unheard_of").is_empty());
    }

    #[test]
    fn what_is_no_case_is_refused() {
        assert!(format!("{:#}", explain("{").unwrap_err()).starts_with("it is no case: "));
    }
}
