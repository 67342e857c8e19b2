//! Incidents in one SQLite file: WAL, every commit on disk before it is told as done.
//!
//! Two tables: `incident` (one row each) and `revision` (its verdicts, as JSON documents: causes come and go
//! without a change here). `user_version` is the schema's number.

use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use nodewhy_proto::{Incident, Revision, Verdict};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Store, StoreError};

/// The schema that this program writes.
const SCHEMA: i64 = 1;

const CREATE: &str = "
    CREATE TABLE incident (
        id TEXT PRIMARY KEY,
        node TEXT NOT NULL,
        began TEXT NOT NULL,
        opened TEXT NOT NULL,
        opened_micros INTEGER NOT NULL,
        lost_ready TEXT,
        ended TEXT
    ) STRICT;
    CREATE INDEX incident_by_time ON incident (opened_micros);
    CREATE INDEX incident_by_node ON incident (node, opened_micros);
    CREATE TABLE revision (
        incident TEXT NOT NULL REFERENCES incident (id),
        revision INTEGER NOT NULL,
        at TEXT NOT NULL,
        changed_by TEXT NOT NULL,
        verdict TEXT NOT NULL,
        PRIMARY KEY (incident, revision)
    ) STRICT, WITHOUT ROWID;
    PRAGMA user_version = 1;
";

/// The embedded store.
pub(crate) struct Sqlite {
    connection: Connection,
}

impl Sqlite {
    /// Opens the file, or makes it; `None`: in memory.
    ///
    /// # Errors
    /// It can't be opened or written, is no store, or a newer program made it.
    pub(crate) fn open(path: Option<&Path>) -> Result<Sqlite, StoreError> {
        let mut connection = match path {
            Some(path) => {
                // Verdicts carry command lines and logs. SQLite gives its other files the mode of this one.
                std::fs::OpenOptions::new()
                    .create(true)
                    .append(true)
                    .mode(0o600)
                    .open(path)
                    .map_err(StoreError::File)?;
                Connection::open(path)?
            }
            None => Connection::open_in_memory()?,
        };
        connection.busy_timeout(Duration::from_secs(2))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", "ON")?;
        let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        match transaction.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0))? {
            0 => {
                let tables = transaction
                    .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))?;
                if tables > 0 {
                    return Err(StoreError::Foreign);
                }
                transaction.execute_batch(CREATE)?;
            }
            SCHEMA => {}
            found => return Err(StoreError::Schema { found, known: SCHEMA }),
        }
        transaction.commit()?;
        Ok(Sqlite { connection })
    }

    fn revisions(&self, id: &str) -> Result<Vec<Revision>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT revision, at, changed_by, verdict FROM revision WHERE incident = ?1 ORDER BY revision",
        )?;
        let rows = statement.query_map([id], |row| {
            Ok((
                row.get::<_, u32>(0)?,
                row.get::<_, String>(1)?,
                row.get::<_, String>(2)?,
                row.get::<_, String>(3)?,
            ))
        })?;
        let mut revisions = Vec::new();
        for row in rows {
            let (revision, at, changed_by, verdict) = row?;
            let verdict: Verdict = serde_json::from_str(&verdict).map_err(|error| damaged(id, &error))?;
            revisions.push(Revision { revision, at: time(id, &at)?, changed_by, verdict });
        }
        Ok(revisions)
    }

    fn incident(&self, header: Header) -> Result<Incident, StoreError> {
        let id = header.id;
        Ok(Incident {
            revisions: self.revisions(&id)?,
            node: header.node,
            began: time(&id, &header.began)?,
            opened: time(&id, &header.opened)?,
            lost_ready: header.lost_ready.map(|at| time(&id, &at)).transpose()?,
            ended: header.ended.map(|at| time(&id, &at)).transpose()?,
            id,
        })
    }

    fn select(&self, filter: &str, values: &[&dyn rusqlite::ToSql]) -> Result<Vec<Incident>, StoreError> {
        let sql = format!("SELECT id, node, began, opened, lost_ready, ended FROM incident {filter}");
        let mut statement = self.connection.prepare_cached(&sql)?;
        let headers = statement.query_map(values, Header::read)?.collect::<Result<Vec<Header>, _>>()?;
        let mut incidents = Vec::with_capacity(headers.len());
        for header in headers {
            let id = header.id.clone();
            match self.incident(header) {
                Ok(incident) => incidents.push(incident),
                // A damaged record costs only itself.
                Err(error @ StoreError::Damaged { .. }) => {
                    tracing::error!(id, %error, "an incident was left out")
                }
                Err(error) => return Err(error),
            }
        }
        Ok(incidents)
    }
}

impl Store for Sqlite {
    fn put(&mut self, incident: &Incident) -> Result<(), StoreError> {
        let transaction = self.connection.transaction()?;
        transaction.prepare_cached(
            "INSERT INTO incident (id, node, began, opened, opened_micros, lost_ready, ended) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT (id) DO UPDATE SET began = ?3, lost_ready = ?6, ended = ?7",
        )?
        .execute(params![
            incident.id,
            incident.node,
            incident.began.to_string(),
            incident.opened.to_string(),
            incident.opened.as_microsecond(),
            incident.lost_ready.map(|at| at.to_string()),
            incident.ended.map(|at| at.to_string()),
        ])?;
        let written: Option<u32> = transaction
            .prepare_cached("SELECT max(revision) FROM revision WHERE incident = ?1")?
            .query_row([&incident.id], |row| row.get(0))?;
        // What was once said stays as it was said.
        for revision in incident.revisions.iter().filter(|one| written.is_none_or(|last| one.revision > last))
        {
            let verdict =
                serde_json::to_string(&revision.verdict).map_err(|error| damaged(&incident.id, &error))?;
            transaction
                .prepare_cached(
                    "INSERT INTO revision (incident, revision, at, changed_by, verdict) VALUES (?1, ?2, ?3, ?4, ?5)",
                )?
                .execute(params![incident.id, revision.revision, revision.at.to_string(), revision.changed_by, verdict])?;
        }
        transaction.commit()?;
        Ok(())
    }

    fn newest(&mut self, limit: u32) -> Result<Vec<Incident>, StoreError> {
        self.select("ORDER BY opened_micros DESC, id DESC LIMIT ?1", &[&limit])
    }

    fn open(&mut self) -> Result<Vec<Incident>, StoreError> {
        self.select("WHERE ended IS NULL ORDER BY opened_micros DESC, id DESC", &[])
    }

    fn get(&mut self, id: &str) -> Result<Option<Incident>, StoreError> {
        let header = self
            .connection
            .query_row(
                "SELECT id, node, began, opened, lost_ready, ended FROM incident WHERE id = ?1",
                [id],
                Header::read,
            )
            .optional()?;
        header.map(|header| self.incident(header)).transpose()
    }
}

struct Header {
    id: String,
    node: String,
    began: String,
    opened: String,
    lost_ready: Option<String>,
    ended: Option<String>,
}

impl Header {
    fn read(row: &Row<'_>) -> rusqlite::Result<Header> {
        Ok(Header {
            id: row.get(0)?,
            node: row.get(1)?,
            began: row.get(2)?,
            opened: row.get(3)?,
            lost_ready: row.get(4)?,
            ended: row.get(5)?,
        })
    }
}

fn time(id: &str, text: &str) -> Result<Timestamp, StoreError> {
    text.parse().map_err(|error: jiff::Error| damaged(id, &error))
}

fn damaged(id: &str, why: &dyn std::fmt::Display) -> StoreError {
    StoreError::Damaged { id: id.to_owned(), why: why.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::incident;

    #[test]
    fn what_was_put_is_there_after_a_kill() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("incidents.sqlite");
        let mut store = Sqlite::open(Some(&path)).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        let mut first = incident("a", "n", 100, 2);
        store.put(&first).unwrap();
        store.put(&incident("b", "m", 200, 1)).unwrap();
        // As after kill -9: no close, no checkpoint.
        std::mem::forget(store);
        let mut store = Sqlite::open(Some(&path)).unwrap();
        assert_eq!(store.get("a").unwrap().as_ref(), Some(&first));
        assert_eq!(store.newest(10).unwrap().iter().map(|i| i.id.as_str()).collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!(store.newest(1).unwrap().len(), 1);
        first.ended = Some(first.opened);
        first.revisions[0].changed_by = "history is not rewritten".to_owned();
        store.put(&first).unwrap();
        let again = store.get("a").unwrap().unwrap();
        assert_eq!((again.ended, again.revisions[0].changed_by.as_str()), (first.ended, "because 1"));
        assert_eq!(store.open().unwrap().iter().map(|i| i.id.as_str()).collect::<Vec<_>>(), ["b"]);
        assert_eq!(store.get("c").unwrap(), None);
    }

    #[test]
    fn a_newer_schema_and_garbage_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let newer = folder.path().join("newer.sqlite");
        Connection::open(&newer).unwrap().pragma_update(None, "user_version", 7).unwrap();
        let error = Sqlite::open(Some(&newer)).err().unwrap();
        assert!(matches!(error, StoreError::Schema { found: 7, known: 1 }), "{error}");
        let foreign = folder.path().join("foreign.sqlite");
        Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE precious (x)").unwrap();
        assert!(matches!(Sqlite::open(Some(&foreign)), Err(StoreError::Foreign)));
        let garbage = folder.path().join("garbage.sqlite");
        std::fs::write(&garbage, "not a store ".repeat(1000)).unwrap();
        assert!(matches!(Sqlite::open(Some(&garbage)), Err(StoreError::Sqlite(_))));
    }

    #[test]
    fn a_damaged_verdict_costs_only_its_incident() {
        let mut store = Sqlite::open(None).unwrap();
        store.put(&incident("a", "n", 100, 1)).unwrap();
        store.put(&incident("b", "n", 200, 1)).unwrap();
        store.connection.execute("UPDATE revision SET verdict = '{' WHERE incident = 'b'", []).unwrap();
        assert_eq!(store.newest(10).unwrap().iter().map(|i| i.id.as_str()).collect::<Vec<_>>(), ["a"]);
        assert!(matches!(store.get("b"), Err(StoreError::Damaged { .. })));
    }
}
