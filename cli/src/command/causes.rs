//! `nodewhy causes [ID]`

use anyhow::bail;
use clap::{Args, ValueEnum};
use nodewhy_diagnosis::{Cause, Link, NOT_READY, Unready};
use serde::Serialize;

use super::output::{Screen, json};
use super::{Told, print};
use crate::diagnosis::catalogue;
use crate::render::table::table;
use crate::render::text::nearest;
use crate::render::{Page, Paint, Span, Style};

/// What `causes` can be told.
#[derive(Args, Clone, Debug)]
pub(super) struct Causes {
    /// The cause, by its id. Without it: all of them
    id: Option<String>,
    /// The form of the answer
    #[arg(short, long, value_enum, default_value = "text", value_name = "FORM")]
    output: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people.
    Text,
    /// The document.
    Json,
    /// As docs/causes.md has it.
    Markdown,
}

/// A cause as a document.
#[derive(Serialize)]
struct Document {
    id: &'static str,
    title: &'static str,
    about: &'static str,
    leads_to: Vec<&'static str>,
    remedy: &'static [&'static str],
}

pub(super) fn run(asked: &Causes, screen: Screen) -> anyhow::Result<Told> {
    let causes = match &asked.id {
        None => catalogue().to_vec(),
        Some(id) => vec![find(id)?],
    };
    print(&match (asked.output, asked.id.is_some()) {
        (Form::Json, false) => json(&causes.iter().map(|cause| document(cause)).collect::<Vec<_>>())?,
        (Form::Json, true) => json(&causes.first().map(|cause| document(cause)))?,
        (Form::Markdown, _) => crate::diagnosis::markdown(asked.id.as_deref()),
        (Form::Text, false) => list(&causes, screen.style),
        (Form::Text, true) => causes.iter().map(|cause| page(cause, screen.style)).collect(),
    })?;
    Ok(Told::Fine)
}

fn find(id: &str) -> anyhow::Result<&'static Cause> {
    if let Some(cause) = catalogue().iter().find(|cause| cause.id == id) {
        return Ok(cause);
    }
    let near = nearest(id, catalogue().iter().map(|cause| cause.id));
    let hint = if near.is_empty() {
        "see `nodewhy causes`".to_owned()
    } else {
        format!("did you mean {}?", near.join(", "))
    };
    bail!("there is no cause {id:?}; {hint}")
}

fn document(cause: &Cause) -> Document {
    Document {
        id: cause.id,
        title: cause.title,
        about: cause.about,
        leads_to: cause.leads_to.iter().map(|link| link.to).collect(),
        remedy: cause.remedy,
    }
}

fn list(causes: &[&Cause], style: Style) -> String {
    let rows: Vec<_> = causes
        .iter()
        .map(|cause| (vec![cause.id.to_owned(), cause.title.to_owned()], Paint::Plain))
        .collect();
    let mut page = Page::new();
    table(&mut page, &["CAUSE", "WHAT IT IS"], &rows, style);
    page.text(style)
}

fn page(cause: &Cause, style: Style) -> String {
    let mut page = Page::new();
    page.line([Span::new(cause.id, Paint::Strong)]);
    page.hang(style.width, &[], &[], cause.title, Paint::Plain);
    page.gap();
    for paragraph in cause.about.split("\n\n") {
        page.hang(style.width, &[], &[], paragraph, Paint::Plain);
        page.gap();
    }
    for (label, text) in leads(cause) {
        let first = [Span::new(&format!("{label:<10}"), Paint::Strong)];
        page.hang(style.width, &first, &[Span::new("          ", Paint::Plain)], &text, Paint::Plain);
    }
    for (index, remedy) in cause.remedy.iter().enumerate() {
        let first = [Span::new(if index == 0 { "DO        " } else { "          " }, Paint::Strong)];
        page.hang(style.width, &first, &[Span::new("          ", Paint::Plain)], remedy, Paint::Plain);
    }
    page.text(style)
}

/// `LEADS TO  containerd_dead within 60 s`
fn leads(cause: &Cause) -> Vec<(&'static str, String)> {
    let links = cause.leads_to.iter().enumerate();
    links.map(|(index, link)| (if index == 0 { "LEADS TO" } else { "" }, arrow(link))).collect()
}

fn arrow(link: &Link) -> String {
    let within = link.within.as_secs();
    match (link.to, link.shows) {
        (NOT_READY, Some(shows)) => {
            let status = if shows.ready == Unready::Unknown { "Unknown" } else { "False" };
            let (soonest, usually) = (shows.soonest.as_secs(), shows.usually_by.as_secs());
            format!("Ready {status}, as a rule {soonest} to {usually} s after, {within} s at most")
        }
        (NOT_READY, None) => format!("the loss of Ready within {within} s"),
        (id, _) => format!("{id} within {within} s"),
    }
}
