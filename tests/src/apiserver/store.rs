//! The objects, and the history of their changes, in the order of resource versions.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use serde_json::Value;
use tokio::sync::watch;

use super::query::Selection;
use crate::recording::{Kind, Record};

#[derive(Debug)]
pub(super) struct Store {
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    /// History begins here; a watch from before it is refused.
    oldest: u64,
    /// The newest version of any list.
    version: u64,
    objects: BTreeMap<(Kind, String, String), Value>,
    history: Vec<Change>,
}

/// A change that a watch tells.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) kind: Kind,
    pub(super) version: u64,
    pub(super) change: String,
    pub(super) object: Value,
}

/// What follows a version.
#[derive(Debug)]
pub(super) enum Since {
    /// These changes, and the newest version of any list.
    Changes(Vec<Change>, u64),
    /// History begins later than that.
    TooOld { oldest: u64 },
    /// That version is still to come.
    Future { version: u64 },
}

impl Store {
    /// A store of these objects, with no history yet.
    pub(super) fn listing<'a>(records: impl Iterator<Item = &'a Record>) -> Store {
        let mut inner = Inner { oldest: 0, version: 0, objects: BTreeMap::new(), history: Vec::new() };
        for record in records {
            inner.version = inner.version.max(record.version);
            inner.objects.insert(key(record.kind, &record.object), record.object.clone());
        }
        inner.oldest = inner.version;
        Store { changed: watch::Sender::new(inner.version), inner: Mutex::new(inner) }
    }

    pub(super) fn apply(&self, record: &Record) {
        let mut inner = self.lock();
        let key = key(record.kind, &record.object);
        if record.change == "DELETED" {
            inner.objects.remove(&key);
        } else {
            inner.objects.insert(key, record.object.clone());
        }
        inner.version = inner.version.max(record.version);
        inner.history.push(Change {
            kind: record.kind,
            version: record.version,
            change: record.change.clone(),
            object: record.object.clone(),
        });
        self.changed.send_replace(inner.version);
    }

    /// The objects of a list, and the version at which they were so.
    pub(super) fn list(&self, selection: &Selection) -> (Vec<Value>, u64) {
        let inner = self.lock();
        let objects = inner.objects.iter().filter(|((kind, ..), object)| selection.takes(*kind, object));
        (objects.map(|(_, object)| object.clone()).collect(), inner.version)
    }

    /// What changed in a list since this version.
    pub(super) fn since(&self, selection: &Selection, version: u64) -> Since {
        let inner = self.lock();
        if version < inner.oldest {
            return Since::TooOld { oldest: inner.oldest };
        }
        if version > inner.version {
            return Since::Future { version: inner.version };
        }
        let changes = inner
            .history
            .iter()
            .filter(|change| change.version > version && selection.takes(change.kind, &change.object));
        Since::Changes(changes.cloned().collect(), inner.version)
    }

    /// Wakes at each change.
    pub(super) fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Kind, namespace, name.
fn key(kind: Kind, object: &Value) -> (Kind, String, String) {
    let field = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    (kind, field("/metadata/namespace"), field("/metadata/name"))
}
