//! Short tables: columns as wide as their widest cell, the last one clipped to the page.

use super::page::{Page, Paint, Span, Style};
use super::text::{clean, clip, pad, width};

/// A row: its cells, and how the first one is painted.
pub type Row = (Vec<String>, Paint);

/// Adds the table. Nothing but the last column is ever clipped, and only on a terminal: a pipe gets it whole.
pub fn table(page: &mut Page, head: &[&str], rows: &[Row], style: Style) {
    let clean_rows: Vec<(Vec<String>, Paint)> = rows
        .iter()
        .map(|(cells, paint)| (cells.iter().map(|cell| clean(cell).into_owned()).collect(), *paint))
        .collect();
    let widths: Vec<usize> = head
        .iter()
        .enumerate()
        .map(|(column, title)| {
            let cells = clean_rows.iter().filter_map(|(cells, _)| cells.get(column));
            cells.map(|cell| width(cell)).max().unwrap_or(0).max(width(title))
        })
        .collect();
    let titles: Vec<String> = head.iter().map(|title| (*title).to_owned()).collect();
    page.line([Span::new(&row(&titles, &widths, style), Paint::Strong)]);
    for (cells, paint) in &clean_rows {
        page.line([Span::new(&row(cells, &widths, style), *paint)]);
    }
}

fn row(cells: &[String], widths: &[usize], style: Style) -> String {
    let mut line = String::new();
    let last = cells.len().saturating_sub(1);
    for (column, (cell, wide)) in cells.iter().zip(widths).enumerate() {
        if column == last {
            let left = style.width.saturating_sub(width(&line)).max(20);
            line.push_str(&if style.drawing { clip(cell, left) } else { cell.clone() });
        } else {
            line.push_str(&pad(cell, *wide));
            line.push_str("  ");
        }
    }
    line
}
