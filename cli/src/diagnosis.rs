//! What the command line asks of `nodewhy-diagnosis`, in one place.

use anyhow::Context;
use nodewhy_diagnosis::{Case, Cause, Unready, causes};
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

/// The causes that are most easily taken for this one: those that stand next to it in the graph, and those that
/// leave the same Ready condition behind, with a word in common.
pub fn look_alikes(cause: &str) -> Vec<&'static str> {
    let all = catalogue();
    let Some(root) = causes::named(cause) else { return Vec::new() };
    let near = |other: &Cause| leads(root, other) || leads(other, root) || shown_alike(root, other);
    all.iter().filter(|other| other.id != cause && near(other)).map(|other| other.id).collect()
}

fn leads(from: &Cause, to: &Cause) -> bool {
    from.leads_to.iter().any(|link| link.to == to.id)
}

fn shown_alike(one: &Cause, other: &Cause) -> bool {
    let ready = |cause: &Cause| cause.leads_to.iter().find_map(|link| link.shows).map(|shows| shows.ready);
    match (ready(one), ready(other)) {
        (Some(Unready::Unknown), Some(Unready::Unknown)) => true,
        (Some(Unready::False(words)), Some(Unready::False(others))) => {
            words.iter().any(|word| others.contains(word))
        }
        _ => false,
    }
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
        assert!(
            !look_alikes("containerd_hung").contains(&"cni_config_missing"),
            "Ready says something else then"
        );
        assert!(look_alikes("unheard_of").is_empty());
    }

    #[test]
    fn what_is_no_case_is_refused() {
        assert!(format!("{:#}", explain("{").unwrap_err()).starts_with("it is no case: "));
    }
}
