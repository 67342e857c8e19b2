//! `nodewhy explain PATH`

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use nodewhy_proto::Conclusion;

use super::output::{Format, Output, Screen, json};
use super::{Told, print};
use crate::diagnosis;
use crate::render::why::{self, Answer};

/// What `explain` can be told.
#[derive(Args, Clone, Debug)]
pub(super) struct Explain {
    /// A case as JSON, or a folder with case.json in it
    path: PathBuf,
    /// Everything that was ruled out, can't be told or can't be seen, with all evidence
    #[arg(long)]
    all: bool,
    /// End with 3 when the node is not well
    #[arg(long)]
    exit_code: bool,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(asked: &Explain, screen: Screen) -> anyhow::Result<Told> {
    let (file, text) = read(&asked.path)?;
    let (case, verdict) =
        diagnosis::explain(&text).with_context(|| format!("{} cannot be explained", file.display()))?;
    print(&match asked.output.output {
        Format::Json => json(&verdict)?,
        Format::Text => {
            let near =
                verdict.roots.first().map(|root| diagnosis::look_alikes(&root.cause)).unwrap_or_default();
            // A case's "now" is its window's end, however long ago that is.
            let again = format!("nodewhy explain {}", asked.path.display());
            let answer = Answer {
                near: &near,
                again: Some(&again),
                all: asked.all,
                ..Answer::of(&verdict, case.window.to)
            };
            why::page(answer, screen.style).text(screen.style)
        }
    })?;
    let well = verdict.conclusion == Conclusion::Healthy;
    Ok(if asked.exit_code && !well { Told::NotWell } else { Told::Fine })
}

#[expect(clippy::disallowed_methods, reason = "a file that the user names, not one of the node")]
fn read(path: &Path) -> anyhow::Result<(PathBuf, String)> {
    let file = if path.is_dir() { path.join("case.json") } else { path.to_owned() };
    let text =
        std::fs::read_to_string(&file).with_context(|| format!("cannot read the case {}", file.display()))?;
    Ok((file, text))
}
