//! The first row: which node, what runs on it, how it stands with Kubernetes, and the time.

use jiff::{SignedDuration, Timestamp};
use nodewhy_proto::ConditionStatus;
use ratatui::text::Line;

use super::paint;
use super::screen::Screen;
use crate::lines::headline;
use crate::render::text::{clean, clip, width};
use crate::render::time::age;
use crate::render::{Paint, Span};

/// Draws it: the right end stays, the left is shortened from its end.
pub(super) fn line(screen: &Screen, columns: usize, now: Timestamp) -> Line<'static> {
    let (ready, colour) = ready(screen);
    let time = now.strftime("%H:%M:%S").to_string();
    let right = width(&ready) + 2 + width(&time) + 1;
    let room = columns.saturating_sub(right + 2);
    let mut left = format!(" {}", name(screen));
    for part in parts(screen) {
        let longer = format!("{left} · {part}");
        if width(&longer) <= room {
            left = longer;
        }
    }
    let left = clip(&left, room.max(8));
    let fill = columns.saturating_sub(width(&left) + right);
    let pieces = [
        Span::new(&left, Paint::Strong),
        Span::new(&" ".repeat(fill), Paint::Plain),
        Span::new(&ready, colour),
        Span::new(&format!("  {time} "), Paint::Plain),
    ];
    paint::line(&pieces, columns, screen.colour)
}

fn name(screen: &Screen) -> String {
    let node = screen.snapshot.as_ref().and_then(|seen| seen.node.as_ref().ok());
    node.map_or_else(|| "this machine".to_owned(), |node| clean(&node.id.name).into_owned())
}

/// What else is known of the node; what matters most comes first, and what does not fit is left out.
fn parts(screen: &Screen) -> Vec<String> {
    let Some(seen) = &screen.snapshot else { return vec!["asking the agent…".to_owned()] };
    let node = match &seen.node {
        Ok(node) => node,
        Err(_) => return vec!["the agent can't be asked".to_owned()],
    };
    let kernel = node.kernel.as_ref().map(|release| format!("Linux {}", short_release(&clean(release))));
    let up = SignedDuration::try_from_secs_f64(node.uptime_seconds).ok().map(|up| format!("up {}", age(up)));
    let short = |text: &Option<String>| text.as_deref().map(|text| clip(&clean(name_of(text)), 28));
    [kernel, short(&node.runtime), short(&node.kubelet), up].into_iter().flatten().collect()
}

/// `containerd 1.6.20` of `containerd 1.6.20 answers in 3 ms`: how it does stands among the sources.
fn name_of(summary: &str) -> &str {
    let name = headline(summary);
    [" answers ", " has not answered ", " refuses ", " could not be ", " not pinged "]
        .iter()
        .filter_map(|word| name.split_once(word))
        .map(|(name, _)| name)
        .min_by_key(|name| name.len())
        .unwrap_or(name)
}

/// A kernel's release without its flavour: `6.1.0-56` of `6.1.0-56-cloud-amd64`.
fn short_release(release: &str) -> String {
    let parts: Vec<&str> = release.splitn(3, '-').take(2).collect();
    clip(&parts.join("-"), 20)
}

fn ready(screen: &Screen) -> (String, Paint) {
    let summary = screen.snapshot.as_ref().and_then(|seen| seen.summary.as_ref().ok());
    match summary.and_then(|summary| summary.ready) {
        Some(ConditionStatus::True) => ("Ready ✓".to_owned(), Paint::Well),
        Some(ConditionStatus::False) => ("NotReady ✗".to_owned(), Paint::Sick),
        Some(ConditionStatus::Unknown) => ("Ready Unknown ✗".to_owned(), Paint::Sick),
        None if screen.place.first().is_some_and(|place| place.starts_with("cluster")) => {
            ("Ready ?".to_owned(), Paint::Plain)
        }
        None => ("no cluster".to_owned(), Paint::Faint),
    }
}
