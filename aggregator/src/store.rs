//! Keeps incidents with every revision of their verdict.

mod ledger;
mod sqlite;

use std::path::PathBuf;

use nodewhy_proto::Incident;
use rusqlite::ErrorCode;

pub(crate) use ledger::{Ledger, opener};

/// Where incidents are kept. One thread owns it and may block. PostgreSQL-compatible SQL can stand behind it.
pub(crate) trait Store: Send {
    /// Writes an incident as it is now: its new revisions are added, those that are there stay as they were.
    ///
    /// # Errors
    /// It could not be made durable.
    fn put(&mut self, incident: &Incident) -> Result<(), StoreError>;

    /// The newest incidents, newest first, with all revisions.
    ///
    /// # Errors
    /// The store can't be read.
    fn newest(&mut self, limit: u32) -> Result<Vec<Incident>, StoreError>;

    /// Every incident that has not ended, newest first.
    ///
    /// # Errors
    /// The store can't be read.
    fn open(&mut self) -> Result<Vec<Incident>, StoreError>;

    /// One incident.
    ///
    /// # Errors
    /// The store can't be read, or this incident is damaged.
    fn get(&mut self, id: &str) -> Result<Option<Incident>, StoreError>;
}

/// What went wrong with a store.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("the store {}: {why}", path.display())]
    At { path: PathBuf, why: String },
    #[error("it can't be opened for writing: {0}")]
    File(std::io::Error),
    #[error("SQLite: {0}{advice}", advice = advice(.0))]
    Sqlite(#[from] rusqlite::Error),
    #[error("it is a database of another program: name another file with --store")]
    Foreign,
    #[error(
        "it was made by a newer nodewhy (schema {found}, this one knows {known}): use that one, or name another file"
    )]
    Schema { found: i64, known: i64 },
    #[error("the incident {id} is damaged: {why}")]
    Damaged { id: String, why: String },
}

fn advice(error: &rusqlite::Error) -> &'static str {
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            ". Move it away, or name another file with --store: a new one is made"
        }
        Some(ErrorCode::DiskFull) => ". Make room on its disk",
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => ". Does another aggregator write to it?",
        _ => "",
    }
}
