//! Short tables: columns as wide as their widest cell, the last one wrapped under itself.

use super::page::{Page, Paint, Span, Style};
use super::text::{clean, pad, width};

/// A row: its cells, and how it is painted.
pub type Row = (Vec<String>, Paint);

/// Adds the table. In a pipe each row is one line, however long: a pipe is read by `grep`.
pub fn table(page: &mut Page, head: &[&str], rows: &[Row], style: Style) {
    let titles = (head.iter().map(|title| (*title).to_owned()).collect(), Paint::Strong);
    let rows: Vec<Row> = std::iter::once(&titles)
        .chain(rows)
        .map(|(cells, paint)| (cells.iter().map(|cell| clean(cell).into_owned()).collect(), *paint))
        .collect();
    let widths: Vec<usize> = (0..head.len())
        .map(|column| {
            rows.iter().filter_map(|(cells, _)| cells.get(column)).map(|cell| width(cell)).max().unwrap_or(0)
        })
        .collect();
    for (cells, paint) in &rows {
        let Some((last, before)) = cells.split_last() else { continue };
        let lead: String =
            before.iter().zip(&widths).map(|(cell, wide)| format!("{}  ", pad(cell, *wide))).collect();
        let columns = if style.drawing { style.width } else { usize::MAX };
        let rest = [Span::new(&" ".repeat(width(&lead)), Paint::Plain)];
        page.hang(columns, &[Span::new(&lead, *paint)], &rest, last, *paint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_column_wraps_on_a_terminal_and_stays_whole_in_a_pipe() {
        let row = (
            vec!["containerd_hung".to_owned(), "it accepts connections and answers nothing".to_owned()],
            Paint::Plain,
        );
        let drawn = |style| {
            let mut page = Page::new();
            table(&mut page, &["CAUSE", "WHAT IT IS"], std::slice::from_ref(&row), style);
            page.text(style)
        };
        let narrow = "CAUSE            WHAT IT IS\ncontainerd_hung  it accepts connections\n                 and answers nothing\n";
        assert_eq!(drawn(Style::terminal(42, false)), narrow);
        assert_eq!(drawn(Style::PIPE).lines().count(), 2);
    }
}
