//! Rows and items in one embedded database. Writes that come together share one commit.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::File;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use leat_runtime_core::path;
use leat_runtime_core::row::{Expect, Fence};
use leat_runtime_core::rules::Rules;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::{failed, fatal};
use crate::engine::ports::{Call, Guard, PortError, Rows, StoredRow, Tables};
use crate::output::{Attribute, Item};

const ROWS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("rows");
const ITEMS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("items");
const NOTES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("notes");

/// After a write that failed the database is opened again after so long.
const OPEN_AGAIN: Duration = Duration::from_millis(100);

#[derive(Serialize, Deserialize)]
struct RowOnDisk {
    fence: Fence,
    body: serde_json::Value,
}

/// An item as it is kept: what was written, and the guard that a later write has to exceed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StoredItem {
    /// The item.
    pub item: Item,
    /// When the pipeline that wrote it came into being.
    pub born: i64,
    /// Number of the cut that wrote it.
    pub cut: u64,
}

enum Write {
    /// `None`: the row is removed.
    Row(String, Option<StoredRow>, Expect, oneshot::Sender<Result<bool, PortError>>),
    Items(String, Vec<Item>, Guard, oneshot::Sender<Result<(), PortError>>),
    Note(String, Vec<u8>, oneshot::Sender<Result<(), PortError>>),
}

/// How the database is opened.
type Open = Box<dyn Fn() -> Result<Database, redb::Error> + Send + Sync>;

/// The database. After a write that failed it says nothing more until it is opened again.
struct Opened {
    open: Open,
    database: RwLock<Option<Database>>,
}

impl Opened {
    fn with<T>(&self, what: &str, call: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, PortError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = &*database else { return Err(PortError::Unclear(format!("{what}: the database is not open"))) };
        call(database).map_err(|error| unclear(what, error))
    }

    fn set(&self, database: Option<Database>) {
        *self.database.write().unwrap_or_else(PoisonError::into_inner) = database;
    }

    fn is_open(&self) -> bool {
        self.database.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Opens it again where the last write has failed. One thread writes.
    fn open_again(&self) -> Result<(), PortError> {
        if !self.is_open() {
            self.set(Some(prepared((self.open)()).map_err(|error| unclear("cannot open the database again", error))?));
        }
        Ok(())
    }

    fn write<T>(&self, call: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, PortError> {
        self.open_again()?;
        self.with("cannot write", call).inspect_err(|_| self.set(None))
    }
}

fn unclear(what: &str, error: redb::Error) -> PortError {
    match error {
        redb::Error::Io(error) => failed(what, &error),
        // It was said before why.
        redb::Error::PreviousIo => PortError::Unclear(format!("{what}: {error}")),
        error => fatal(what, error),
    }
}

/// A database that was opened, with its tables.
fn prepared(database: Result<Database, redb::Error>) -> Result<Database, redb::Error> {
    let database = database?;
    let transaction = database.begin_write()?;
    transaction.open_table(ROWS)?;
    transaction.open_table(ITEMS)?;
    transaction.open_table(NOTES)?;
    transaction.commit()?;
    Ok(database)
}

/// The embedded database.
pub struct Store {
    database: Arc<Opened>,
    writes: mpsc::Sender<Write>,
    /// The state is this process's own, also while the database is not open.
    _lock: File,
}

impl Store {
    /// Opens or creates the database; one process at a time.
    pub fn open(file: &Path) -> Result<Self, PortError> {
        let path = file.to_owned();
        Self::over(file, Box::new(move || Ok(Database::create(&path)?)))
    }

    fn over(file: &Path, open: Open) -> Result<Self, PortError> {
        let cannot = |e: &dyn Display| fatal(&format!("cannot open {} (is another `leat dev` running?)", file.display()), e);
        let lock = File::create(file.with_extension("lock")).map_err(|e| cannot(&e))?;
        lock.try_lock().map_err(|e| cannot(&e))?;
        let database = prepared(open()).map_err(|e| cannot(&e))?;
        let database = Arc::new(Opened { open, database: RwLock::new(Some(database)) });
        let (writes, queue) = mpsc::channel();
        let writer = Arc::clone(&database);
        std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || write_all(&writer, &queue))
            .map_err(|e| fatal("cannot start a thread", e))?;
        Ok(Self { database, writes, _lock: lock })
    }

    /// All items of a table, in the order of their keys.
    pub fn items(&self, table: &str) -> Result<Vec<StoredItem>, PortError> {
        let prefix = format!("{table}\u{0}");
        self.database.with("cannot read items", |database| {
            let items = database.begin_read()?.open_table(ITEMS)?;
            let mut found = Vec::new();
            for entry in items.range(prefix.as_str()..)? {
                let (key, value) = entry?;
                if !key.value().starts_with(&prefix) {
                    break;
                }
                found.extend(serde_json::from_slice::<StoredItem>(value.value()));
            }
            Ok(found)
        })
    }

    /// A note that something besides the engine keeps.
    pub fn note(&self, key: &str) -> Result<Option<Vec<u8>>, PortError> {
        let read = |database: &Database| Ok(database.begin_read()?.open_table(NOTES)?.get(key)?.map(|v| v.value().to_vec()));
        self.database.with("cannot read a note", read)
    }

    /// Writes a note, durably.
    pub async fn put_note(&self, key: &str, value: Vec<u8>) -> Result<(), PortError> {
        self.send(|reply| Write::Note(key.to_owned(), value, reply)).await
    }

    async fn send<T>(&self, write: impl FnOnce(oneshot::Sender<Result<T, PortError>>) -> Write) -> Result<T, PortError> {
        let (reply, answer) = oneshot::channel();
        self.writes.send(write(reply)).map_err(|e| fatal("the database is closed", e))?;
        answer.await.map_err(|e| fatal("the database is closed", e))?
    }

    fn read_row(&self, key: &str) -> Result<Option<StoredRow>, PortError> {
        let read = |database: &Database| Ok(database.begin_read()?.open_table(ROWS)?.get(key)?.map(|v| v.value().to_vec()));
        self.database.with("cannot read a row", read)?.map(|bytes| row(&bytes)).transpose()
    }

    fn list_rows(&self, prefix: &str) -> Result<Vec<(String, StoredRow)>, PortError> {
        let rows = self.database.with("cannot list rows", |database| {
            let rows = database.begin_read()?.open_table(ROWS)?;
            let mut found = Vec::new();
            for entry in rows.range(prefix..)? {
                let (key, value) = entry?;
                if !key.value().starts_with(prefix) {
                    break;
                }
                found.push((key.value().to_owned(), value.value().to_vec()));
            }
            Ok(found)
        })?;
        rows.into_iter().map(|(key, bytes)| Ok((key, row(&bytes)?))).collect()
    }
}

fn row(bytes: &[u8]) -> Result<StoredRow, PortError> {
    let on_disk: RowOnDisk = serde_json::from_slice(bytes).map_err(|e| fatal("a row is damaged", e))?;
    Ok(StoredRow { fence: on_disk.fence, body: serde_json::to_vec(&on_disk.body).unwrap_or_default().into() })
}

/// Takes all writes that wait into one transaction. Where one has failed, whoever made it may look before it writes again: the
/// database is opened again without being asked.
fn write_all(database: &Opened, queue: &mpsc::Receiver<Write>) {
    loop {
        let first = match database.is_open() {
            true => queue.recv().map_err(RecvTimeoutError::from),
            false => queue.recv_timeout(OPEN_AGAIN),
        };
        let first = match first {
            Ok(first) => first,
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                // Who waits for it hears why it is not open.
                drop(database.open_again());
                continue;
            }
        };
        let writes: Vec<Write> = std::iter::once(first).chain(queue.try_iter()).collect();
        let outcome = database.write(|database| commit(database, &writes));
        for (i, write) in writes.into_iter().enumerate() {
            let failed = outcome.as_ref().err().cloned();
            // Nobody waits for the answer any more when the task was dropped.
            match write {
                Write::Row(.., reply) => drop(reply.send(failed.map_or_else(|| Ok(outcome.as_ref().is_ok_and(|done| done[i])), Err))),
                Write::Items(.., reply) | Write::Note(.., reply) => drop(reply.send(failed.map_or(Ok(()), Err))),
            }
        }
    }
}

fn commit(database: &Database, writes: &[Write]) -> Result<Vec<bool>, redb::Error> {
    let transaction = database.begin_write()?;
    let mut done = Vec::with_capacity(writes.len());
    {
        let mut rows = transaction.open_table(ROWS)?;
        let mut items = transaction.open_table(ITEMS)?;
        let mut notes = transaction.open_table(NOTES)?;
        for write in writes {
            done.push(match write {
                Write::Row(key, row, expect, _) => {
                    let fence_of = |bytes: &[u8]| serde_json::from_slice::<RowOnDisk>(bytes).ok().map(|r| r.fence);
                    let found = rows.get(key.as_str())?.and_then(|v| fence_of(v.value()));
                    let pipeline_allows = match expect {
                        Expect::Absent { job } if *job > 0 => {
                            rows.get(path::PIPELINE)?.and_then(|v| fence_of(v.value())).is_some_and(|p| p.job == *job && !p.drained)
                        }
                        _ => true,
                    };
                    let allowed = pipeline_allows && expect.allows(found.as_ref(), Rules::all());
                    if let (true, Some(row)) = (allowed, row) {
                        let body = serde_json::from_slice(&row.body).unwrap_or_default();
                        let bytes = serde_json::to_vec(&RowOnDisk { fence: row.fence.clone(), body }).unwrap_or_default();
                        rows.insert(key.as_str(), bytes.as_slice())?;
                    } else if allowed {
                        rows.remove(key.as_str())?;
                    }
                    allowed
                }
                Write::Items(table, new, guard, _) => {
                    for item in new {
                        let key = item_key(table, item);
                        let newer = match items.get(key.as_str())? {
                            Some(found) => serde_json::from_slice::<StoredItem>(found.value())
                                .is_ok_and(|f| (f.born, f.item.version, f.cut) < (guard.born, item.version, guard.cut)),
                            None => true,
                        };
                        if newer {
                            let stored = StoredItem { item: item.clone(), born: guard.born, cut: guard.cut };
                            items.insert(key.as_str(), serde_json::to_vec(&stored).unwrap_or_default().as_slice())?;
                        }
                    }
                    true
                }
                Write::Note(key, value, _) => {
                    notes.insert(key.as_str(), value.as_slice())?;
                    true
                }
            });
        }
    }
    transaction.commit()?;
    Ok(done)
}

fn item_key(table: &str, item: &Item) -> String {
    let mut key = table.to_owned();
    for (_, attribute) in &item.key {
        key.push('\u{0}');
        key.push_str(match attribute {
            Attribute::S(text) | Attribute::N(text) => text,
            Attribute::Bool(true) => "true",
            Attribute::Bool(false) => "false",
            Attribute::Null => "",
        });
    }
    key
}

impl Rows for Store {
    fn get<'a>(&'a self, key: &'a str) -> Call<'a, Option<StoredRow>> {
        Box::pin(async move { self.read_row(key) })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> Call<'a, Vec<(String, StoredRow)>> {
        Box::pin(async move { self.list_rows(prefix) })
    }

    fn put<'a>(&'a self, key: &'a str, row: StoredRow, expect: Expect) -> Call<'a, bool> {
        Box::pin(self.send(|reply| Write::Row(key.to_owned(), Some(row), expect, reply)))
    }

    fn delete<'a>(&'a self, key: &'a str, expect: Fence) -> Call<'a, bool> {
        Box::pin(self.send(|reply| Write::Row(key.to_owned(), None, Expect::Fence(expect), reply)))
    }
}

impl Tables for Store {
    fn put<'a>(&'a self, table: &'a str, items: &'a [Item], guard: Guard) -> Call<'a, Vec<usize>> {
        // All of them are in one transaction.
        let written = self.send(move |reply| Write::Items(table.to_owned(), items.to_vec(), guard, reply));
        Box::pin(async move { written.await.map(|()| Vec::new()) })
    }
}

/// Attributes of an item, key and others together.
pub fn attributes(item: &Item) -> BTreeMap<&str, &Attribute> {
    item.key.iter().map(|(k, v)| (k.as_str(), v)).chain(item.attributes.iter().map(|(k, v)| (k.as_str(), v))).collect()
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};
    use std::sync::atomic::{AtomicBool, Ordering};

    use redb::StorageBackend;
    use redb::backends::FileBackend;

    use super::*;

    /// A file on a disk where each write needs room, as on file systems that never overwrite.
    #[derive(Debug)]
    struct Disk {
        file: FileBackend,
        full: Arc<AtomicBool>,
    }

    impl StorageBackend for Disk {
        fn len(&self) -> Result<u64, Error> {
            self.file.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), Error> {
            self.file.read(offset, out)
        }

        fn set_len(&self, len: u64) -> Result<(), Error> {
            self.file.set_len(len)
        }

        fn sync_data(&self) -> Result<(), Error> {
            self.file.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
            if self.full.load(Ordering::Relaxed) { Err(ErrorKind::StorageFull.into()) } else { self.file.write(offset, data) }
        }
    }

    fn on(path: &Path, full: &Arc<AtomicBool>) -> Result<Store, PortError> {
        let (file, full) = (path.to_owned(), Arc::clone(full));
        let open = move || {
            let disk = File::options().read(true).write(true).create(true).truncate(false).open(&file)?;
            let disk = Disk { file: FileBackend::new(disk)?, full: Arc::clone(&full) };
            Ok(Database::builder().create_with_backend(disk)?)
        };
        Store::over(path, Box::new(open))
    }

    #[tokio::test]
    async fn who_only_reads_finds_the_database_again_when_there_is_room() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, full) = (folder.path().join("store.redb"), Arc::new(AtomicBool::new(false)));
        let store = on(&path, &full).expect("a store");
        store.put_note("a", b"1".to_vec()).await.expect("written");
        full.store(true, Ordering::Relaxed);
        assert!(matches!(store.put_note("a", b"2".to_vec()).await, Err(PortError::Unclear(why)) if why.starts_with("the disk is full")));
        assert!(matches!(store.note("a"), Err(PortError::Unclear(_))));
        // The state is still this process's, open or not.
        assert!(matches!(Store::open(&path), Err(PortError::Fatal(why)) if why.contains("is another `leat dev` running?")));
        full.store(false, Ordering::Relaxed);
        let found = tokio::time::timeout(Duration::from_secs(20), async {
            loop {
                match store.note("a") {
                    Err(PortError::Unclear(_)) => tokio::task::yield_now().await,
                    found => return found,
                }
            }
        });
        assert_eq!(found.await.expect("it is open again").expect("a note").as_deref(), Some(b"1".as_slice()));
    }
}
