//! The incidents, in memory for readers, and written to the store by one thread.
//!
//! A store that is broken, read-only or full costs durability and nothing else: incidents go on in memory, wait to
//! be written, and the state of the store is told.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nodewhy_proto::Incident;
use tokio::sync::oneshot;

use super::sqlite::Sqlite;
use super::{Store, StoreError};

/// Incidents that are kept in memory: every open one, and the newest of the others.
const IN_MEMORY: u32 = 1000;
/// Incidents that wait for a broken store, at most; beyond that the oldest are no longer written.
const MAX_WAITING: usize = 10_000;
/// How often a broken store is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(5);
/// How long a store may take to answer. One on a hung disk may take for ever, and may hold up nothing else.
const PATIENCE: Duration = Duration::from_secs(5);

/// Opens the store; called again as long as it fails.
pub(crate) type Opener = Box<dyn Fn() -> Result<Box<dyn Store>, StoreError> + Send>;

enum Job {
    Put(Box<Incident>),
    Get(String, oneshot::Sender<Found>),
    Flush(oneshot::Sender<()>),
}

/// An incident, if the store has it; or why that can't be said.
type Found = Result<Option<Incident>, String>;

/// The incidents.
pub(crate) struct Ledger {
    recent: Mutex<BTreeMap<String, Incident>>,
    jobs: Sender<Job>,
    health: Arc<Mutex<Option<String>>>,
    /// How long the store may take to answer.
    patience: Duration,
}

/// The store that the settings name.
pub(crate) fn opener(path: Option<PathBuf>) -> Opener {
    Box::new(move || {
        let store = Sqlite::open(path.as_deref()).map_err(|error| match &path {
            Some(path) => StoreError::At { path: path.clone(), why: error.to_string() },
            None => error,
        })?;
        Ok(Box::new(store) as Box<dyn Store>)
    })
}

impl Ledger {
    /// Starts the writer, and takes up what the store has.
    ///
    /// # Errors
    /// No thread can be started.
    pub(crate) async fn start(opener: Opener) -> std::io::Result<Ledger> {
        Ledger::start_within(opener, PATIENCE).await
    }

    async fn start_within(opener: Opener, patience: Duration) -> std::io::Result<Ledger> {
        let (jobs, todo) = channel();
        let (loaded, load) = oneshot::channel();
        let health = Arc::new(Mutex::new(None));
        let writer = Writer { opener, store: None, waiting: BTreeMap::new(), health: health.clone() };
        std::thread::Builder::new().name("store".to_owned()).spawn(move || writer.run(&todo, loaded))?;
        let found = tokio::time::timeout(patience, load).await;
        let ledger = Ledger { recent: Mutex::default(), jobs, health, patience };
        match found {
            Ok(found) => {
                let found = found.unwrap_or_default();
                let recent = found.into_iter().map(|incident| (incident.id.clone(), incident)).collect();
                Ok(Ledger { recent: Mutex::new(recent), ..ledger })
            }
            Err(_) => {
                let why = hung("opened", patience);
                tracing::error!(why, "incidents are kept in memory; those of an earlier run are not known");
                ledger.set_health(why);
                Ok(ledger)
            }
        }
    }

    /// Records an incident as it is now.
    pub(crate) fn put(&self, incident: Incident) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.insert(incident.id.clone(), incident.clone());
        let ended = recent.values().filter(|incident| incident.ended.is_some());
        if u32::try_from(recent.len()).unwrap_or(u32::MAX) > IN_MEMORY
            && let Some(oldest) =
                ended.min_by_key(|incident| incident.opened).map(|incident| incident.id.clone())
        {
            recent.remove(&oldest);
        }
        drop(recent);
        if self.jobs.send(Job::Put(Box::new(incident))).is_err() {
            self.set_health("the store's thread has ended".to_owned());
        }
    }

    /// Whether this id is taken.
    pub(crate) fn has(&self, id: &str) -> bool {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).contains_key(id)
    }

    /// The newest incidents, of one node or of all, newest first, each with its newest revision alone.
    pub(crate) fn list(&self, node: Option<&str>) -> Vec<Incident> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let of_node = recent.values().filter(|incident| node.is_none_or(|node| incident.node == node));
        let mut list: Vec<Incident> = of_node
            .map(|incident| Incident {
                revisions: incident.revisions.last().cloned().into_iter().collect(),
                ..Incident {
                    id: incident.id.clone(),
                    node: incident.node.clone(),
                    began: incident.began,
                    opened: incident.opened,
                    lost_ready: incident.lost_ready,
                    ended: incident.ended,
                    revisions: Vec::new(),
                }
            })
            .collect();
        list.sort_by(|a, b| (b.opened, &b.id).cmp(&(a.opened, &a.id)));
        list
    }

    /// Incidents that have not ended, newest first, whole.
    pub(crate) fn open(&self) -> Vec<Incident> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let mut open: Vec<Incident> =
            recent.values().filter(|incident| incident.ended.is_none()).cloned().collect();
        open.sort_by(|a, b| (b.opened, &b.id).cmp(&(a.opened, &a.id)));
        open
    }

    /// One incident with all its revisions; `None` where the store has no such one.
    ///
    /// # Errors
    /// The store can't be asked, in words.
    pub(crate) async fn get(&self, id: &str) -> Found {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned();
        if recent.is_some() {
            return Ok(recent);
        }
        let ended = || "the store's thread has ended".to_owned();
        let (answer, answered) = oneshot::channel();
        self.jobs.send(Job::Get(id.to_owned(), answer)).map_err(|_| ended())?;
        let answered = tokio::time::timeout(self.patience, answered).await;
        answered.map_err(|_| hung("read", self.patience))?.map_err(|_| ended())?
    }

    /// Why incidents do not reach the store; `None` when they do.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until all that was put was written, or could not be.
    pub(crate) async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.jobs.send(Job::Flush(done)).is_err() {
            tracing::error!("the store's thread ended before all was written");
        } else if tokio::time::timeout(self.patience, flushed).await.is_err() {
            tracing::error!(why = hung("written", self.patience), "what was not written yet is lost");
        }
    }

    fn set_health(&self, why: String) {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }
}

fn hung(what: &str, patience: Duration) -> String {
    format!(
        "the store could not be {what} within {} s: is its disk or its file server hung?",
        patience.as_secs_f64()
    )
}

/// The thread that owns the store.
struct Writer {
    opener: Opener,
    store: Option<Box<dyn Store>>,
    /// What was not written yet; the newest form of each incident is enough, for it has every revision.
    waiting: BTreeMap<String, Incident>,
    health: Arc<Mutex<Option<String>>>,
}

impl Writer {
    fn run(mut self, todo: &Receiver<Job>, loaded: oneshot::Sender<Vec<Incident>>) {
        let found = self.load();
        if loaded.send(found).is_err() {
            tracing::warn!(
                "the store took long to open; incidents of an earlier run are taken up at the next start"
            );
        }
        loop {
            match todo.recv_timeout(TRY_AGAIN) {
                Ok(Job::Put(incident)) => {
                    self.waiting.insert(incident.id.clone(), *incident);
                    self.write();
                }
                Ok(Job::Get(id, answer)) => {
                    let found = self.get(&id);
                    if answer.send(found).is_err() {
                        tracing::debug!(id, "whoever asked for an incident is gone");
                    }
                }
                Ok(Job::Flush(done)) => {
                    self.write();
                    if done.send(()).is_err() {
                        tracing::debug!("whoever waited for the store is gone");
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.write(),
                Err(RecvTimeoutError::Disconnected) => return self.write(),
            }
        }
    }

    fn load(&mut self) -> Vec<Incident> {
        match self.open().and_then(|store| Ok((store.newest(IN_MEMORY)?, store.open()?))) {
            Ok((mut newest, open)) => {
                newest.extend(open);
                newest
            }
            Err(error) => {
                self.trouble(&error);
                Vec::new()
            }
        }
    }

    fn open(&mut self) -> Result<&mut Box<dyn Store>, StoreError> {
        match self.store.take() {
            Some(store) => Ok(self.store.insert(store)),
            None => {
                let store = (self.opener)()?;
                Ok(self.store.insert(store))
            }
        }
    }

    fn get(&mut self, id: &str) -> Found {
        self.open().and_then(|store| store.get(id)).map_err(|error| error.to_string())
    }

    fn write(&mut self) {
        while let Some((id, incident)) = self.waiting.pop_first() {
            if let Err(error) = self.open().and_then(|store| store.put(&incident)) {
                self.waiting.insert(id, incident);
                if self.waiting.len() > MAX_WAITING {
                    self.waiting.pop_first();
                }
                // Opened anew at the next try: the file may be another one, or on another disk by then.
                self.store = None;
                return self.trouble(&error);
            }
        }
        // Nothing to write proves nothing: a store that could not be opened is tried again.
        match self.open() {
            Ok(_) => {
                let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
                if health.take().is_some() {
                    tracing::info!("the store works again");
                }
            }
            Err(error) => self.trouble(&error),
        }
    }

    fn trouble(&self, error: &StoreError) {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        if health.is_none() {
            tracing::error!(%error, "the store does not work: incidents are kept in memory until it does");
        }
        *health = Some(error.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::incident;

    #[tokio::test]
    async fn a_broken_store_costs_only_durability_and_heals() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.sqlite");
        std::fs::write(&path, "garbage ".repeat(2000)).unwrap();
        let ledger = Ledger::start(opener(Some(path.clone()))).await.unwrap();
        ledger.put(incident("a", "n", 100, 2));
        ledger.flush().await;
        let trouble = ledger.trouble().expect("told");
        assert!(trouble.contains("store.sqlite") && trouble.contains("name another"), "{trouble}");
        assert!(ledger.get("of an earlier run").await.is_err(), "what can't be looked up is not absent");
        assert_eq!(ledger.get("a").await.unwrap().map(|i| i.revisions.len()), Some(2));
        std::fs::remove_file(&path).unwrap();
        ledger.flush().await;
        assert_eq!(ledger.trouble(), None);
        assert_eq!(Sqlite::open(Some(&path)).unwrap().get("a").unwrap(), Some(incident("a", "n", 100, 2)));
    }

    #[tokio::test]
    async fn a_full_disk_is_told_and_what_waited_is_written_later() {
        struct Full(Arc<std::sync::atomic::AtomicBool>, Sqlite);
        impl Store for Full {
            fn put(&mut self, incident: &Incident) -> Result<(), StoreError> {
                if self.0.load(std::sync::atomic::Ordering::SeqCst) {
                    // What SQLite says when the disk is full.
                    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL);
                    return Err(rusqlite::Error::SqliteFailure(code, None).into());
                }
                self.1.put(incident)
            }
            fn newest(&mut self, limit: u32) -> Result<Vec<Incident>, StoreError> {
                self.1.newest(limit)
            }
            fn open(&mut self) -> Result<Vec<Incident>, StoreError> {
                self.1.open()
            }
            fn get(&mut self, id: &str) -> Result<Option<Incident>, StoreError> {
                self.1.get(id)
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.sqlite");
        let full = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let (flag, file) = (full.clone(), path.clone());
        let ledger = Ledger::start(Box::new(move || {
            Ok(Box::new(Full(flag.clone(), Sqlite::open(Some(&file))?)) as Box<dyn Store>)
        }))
        .await
        .unwrap();
        ledger.put(incident("a", "n", 100, 1));
        ledger.put(incident("b", "n", 200, 1));
        ledger.flush().await;
        assert!(ledger.trouble().is_some_and(|why| why.contains("full")));
        full.store(false, std::sync::atomic::Ordering::SeqCst);
        ledger.flush().await;
        assert_eq!(ledger.trouble(), None);
        assert_eq!(Sqlite::open(Some(&path)).unwrap().newest(9).unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_store_that_cannot_be_opened_is_told_at_once() {
        let folder = tempfile::tempdir().unwrap();
        // A folder where the file should be: refused for root too, as a read-only mount is.
        let ledger = Ledger::start(opener(Some(folder.path().to_owned()))).await.unwrap();
        assert!(
            ledger.trouble().is_some_and(|why| why.contains("opened for writing")),
            "{:?}",
            ledger.trouble()
        );
        ledger.put(incident("a", "n", 100, 1));
        ledger.flush().await;
        assert_eq!(ledger.list(None).len(), 1);
    }

    #[tokio::test]
    async fn a_store_that_hangs_holds_up_nothing_else() {
        let (release, held) = channel::<()>();
        let held = Mutex::new(held);
        let opener: Opener = Box::new(move || {
            assert!(held.lock().unwrap().recv().is_ok());
            Ok(Box::new(Sqlite::open(None)?))
        });
        let ledger = Ledger::start_within(opener, Duration::from_millis(50)).await.unwrap();
        assert!(ledger.trouble().is_some_and(|why| why.contains("hung?")), "{:?}", ledger.trouble());
        ledger.put(incident("a", "n", 100, 1));
        assert!(ledger.get("b").await.is_err() && ledger.get("a").await.unwrap().is_some());
        ledger.flush().await;
        release.send(()).unwrap();
        let works = async || {
            while ledger.trouble().is_some() {
                ledger.flush().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), works()).await.unwrap();
    }

    #[tokio::test]
    async fn lists_are_newest_first_with_the_newest_revision_alone() {
        let ledger = Ledger::start(opener(None)).await.unwrap();
        for (id, node, opened) in [("a", "n", 100), ("b", "m", 300), ("c", "n", 200)] {
            ledger.put(incident(id, node, opened, 3));
        }
        let ids = |list: Vec<Incident>| list.into_iter().map(|incident| incident.id).collect::<Vec<_>>();
        assert_eq!(ids(ledger.list(None)), ["b", "c", "a"]);
        assert_eq!(ids(ledger.list(Some("n"))), ["c", "a"]);
        assert!(ledger.list(None).iter().all(|incident| incident.revisions.len() == 1));
        assert_eq!(ledger.list(Some("n"))[0].revisions[0].revision, 3);
    }

    #[tokio::test]
    async fn memory_is_bounded_and_the_store_has_the_rest() {
        let ledger = Ledger::start(opener(None)).await.unwrap();
        for number in 0..i64::from(IN_MEMORY) + 10 {
            let mut incident = incident(&format!("i{number}"), "n", number, 1);
            incident.ended = Some(incident.opened);
            ledger.put(incident);
        }
        assert_eq!(ledger.list(None).len(), usize::try_from(IN_MEMORY).unwrap());
        assert!(!ledger.has("i0"));
        assert_eq!(ledger.get("i0").await.unwrap().map(|incident| incident.id).as_deref(), Some("i0"));
    }
}
