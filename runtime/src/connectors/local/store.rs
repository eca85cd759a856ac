//! Rows and items in one embedded database. Writes that come together share one commit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, mpsc};

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

/// The database, and where it lies. After a write that failed it says nothing more until it is opened again.
struct Opened {
    file: PathBuf,
    database: RwLock<Option<Database>>,
}

impl Opened {
    fn with<T>(&self, what: &str, call: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, PortError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = &*database else { return Err(PortError::Unclear(format!("{what}: the database is not open"))) };
        call(database).map_err(|error| unclear(what, error))
    }

    /// Opens it again where the last write has failed. One thread writes.
    fn write<T>(&self, call: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, PortError> {
        let set = |database| *self.database.write().unwrap_or_else(PoisonError::into_inner) = database;
        if self.database.read().unwrap_or_else(PoisonError::into_inner).is_none() {
            set(Some(open(&self.file).map_err(|error| unclear("cannot open the database again", error))?));
        }
        self.with("cannot write", call).inspect_err(|_| set(None))
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

fn open(file: &Path) -> Result<Database, redb::Error> {
    let database = Database::create(file)?;
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
}

impl Store {
    /// Opens or creates the database; one process at a time.
    pub fn open(file: &Path) -> Result<Self, PortError> {
        let database = open(file).map_err(|e| fatal(&format!("cannot open {} (is another `leat dev` running?)", file.display()), e))?;
        let database = Arc::new(Opened { file: file.to_owned(), database: RwLock::new(Some(database)) });
        let (writes, queue) = mpsc::channel();
        let writer = Arc::clone(&database);
        std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || write_all(&writer, &queue))
            .map_err(|e| fatal("cannot start a thread", e))?;
        Ok(Self { database, writes })
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

/// Takes all writes that wait into one transaction.
fn write_all(database: &Opened, queue: &mpsc::Receiver<Write>) {
    while let Ok(first) = queue.recv() {
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
