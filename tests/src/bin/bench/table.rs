//! The rows, and whether each kept its limit.

use serde::{Deserialize, Serialize};

#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

/// A figure, and what it is held against.
#[derive(Serialize, Deserialize)]
pub(crate) struct Row {
    what: String,
    ours: f64,
    peer: Option<(String, f64)>,
    limit: Option<f64>,
}

impl Row {
    pub(crate) fn new(what: impl Into<String>, ours: f64) -> Row {
        Row { what: what.into(), ours, peer: None, limit: None }
    }

    /// The same figure of this peer.
    pub(crate) fn beside(self, peer: &str, figure: f64) -> Row {
        Row { peer: Some((peer.to_owned(), figure)), ..self }
    }

    /// It may be no more than this.
    pub(crate) fn at_most(self, limit: f64) -> Row {
        Row { limit: Some(limit), ..self }
    }
}

impl Table {
    pub(crate) fn put(&mut self, row: Row) {
        eprintln!("bench: {}: {:.4}", row.what, row.ours);
        self.rows.push(row);
    }

    /// This row's figure of ours.
    pub(crate) fn figure(&self, what: &str) -> Option<f64> {
        self.rows.iter().find(|row| row.what == what).map(|row| row.ours)
    }

    /// Prints the table; whether every limit was kept.
    pub(crate) fn print(&self) -> bool {
        println!("| figure | nodewhy | peer | | limit | |");
        println!("| --- | ---: | ---: | --- | ---: | --- |");
        let mut kept = true;
        for Row { what, ours, peer, limit } in &self.rows {
            let (name, figure) =
                peer.as_ref().map_or(("", String::new()), |(name, figure)| (name, format!("{figure:.3}")));
            let verdict = match limit {
                Some(limit) if ours <= limit => "kept",
                Some(_) => "MISSED",
                None => "",
            };
            kept &= verdict != "MISSED";
            let limit = limit.map_or_else(String::new, |limit| format!("{limit:.3}"));
            println!("| {what} | {ours:.3} | {figure} | {name} | {limit} | {verdict} |");
        }
        kept
    }
}
