//! What a task needs of the world. Every call may fail, may take for ever, and may have had its effect although it
//! failed; each trait says what may be assumed all the same.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::future::LocalBoxFuture;
use leat_runtime_core::begin::{Begin, Known};
use leat_runtime_core::key::HashRange;
use leat_runtime_core::listing::Listing;
use leat_runtime_core::position::{Lineage, Offset};
use leat_runtime_core::row::{Expect, Fence, OpenFile, Part};
use thiserror::Error;

use crate::batch::SourceBatch;
use crate::operators::memory::Memory;
use crate::output::{Item, StreamRecord, TopicRecord};

/// A call under way. Tasks run on one thread each, so it need not be sent to another.
pub type Call<'a, T> = LocalBoxFuture<'a, Result<T, PortError>>;

/// Why a call failed, and what follows.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum PortError {
    /// It may or may not have had its effect; the same call may be made again.
    #[error("no clear answer: {0}")]
    Unclear(String),
    /// It had no effect and never will: the task stops and says why.
    #[error("{0}")]
    Fatal(String),
}

/// A row as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRow {
    /// Who may write it next.
    pub fence: Fence,
    /// The row, JSON.
    pub body: Bytes,
}

/// The lease table.
///
/// Guarantees: reads see every write that was acknowledged before them; a conditional write is atomic, and for a row
/// that is absent also looks at the pipeline's row. Caveat: a write without a clear answer may still come into effect
/// later.
pub trait Rows: Send + Sync {
    /// The row at `key`.
    fn get<'a>(&'a self, key: &'a str) -> Call<'a, Option<StoredRow>>;
    /// All rows whose keys start with `prefix`, in the order of their keys; not one moment in time.
    fn list<'a>(&'a self, prefix: &'a str) -> Call<'a, Vec<(String, StoredRow)>>;
    /// Writes a row if it is as expected; answers whether it was.
    fn put<'a>(&'a self, key: &'a str, row: StoredRow, expect: Expect) -> Call<'a, bool>;
    /// Removes a row if it is as expected; answers whether it was. Only sessions that are over are ever removed.
    fn delete<'a>(&'a self, key: &'a str, expect: Fence) -> Call<'a, bool>;
}

/// Objects that are written once: staged output, snapshots, tails.
///
/// Guarantees: an object that was acknowledged is there, whole. Names are unique per generation, so an object that
/// exists already is the one that an earlier try of the same call wrote.
pub trait Objects: Send + Sync {
    /// Writes an object unless there is one.
    fn put<'a>(&'a self, name: &'a str, bytes: Bytes) -> Call<'a, ()>;
    /// Reads an object.
    fn get<'a>(&'a self, name: &'a str) -> Call<'a, Bytes>;
    /// Removes an object that no row names any more; one that is gone is no error.
    fn delete<'a>(&'a self, name: &'a str) -> Call<'a, ()>;
}

/// How completing a file went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completed {
    /// It is there.
    Done,
    /// A part is not what it should be.
    WrongPart,
}

/// Files of sinks: nothing is visible before it is completed.
pub trait Files: Send + Sync {
    /// Smallest size of a part that is not the last.
    fn smallest_part(&self) -> usize;
    /// Begins an upload.
    fn create<'a>(&'a self, destination: &'a str) -> Call<'a, String>;
    /// Writes a part; writing it again replaces it. `None`: the upload is gone, since the file was completed.
    fn part<'a>(&'a self, destination: &'a str, upload: &'a str, number: u32, bytes: Bytes) -> Call<'a, Option<String>>;
    /// Writes a small file at once, unless there is one.
    fn put<'a>(&'a self, destination: &'a str, bytes: Bytes) -> Call<'a, ()>;
    /// Makes the file of exactly these parts; done again, it changes nothing.
    fn complete<'a>(&'a self, destination: &'a str, upload: &'a str, parts: &'a [Part]) -> Call<'a, Completed>;
}

/// The repartition stream.
///
/// Guarantees: what was acknowledged is in the log, for good, at one offset; records of one partition are read in the
/// order of their offsets by everybody. Caveat: an append may fail in part, be repeated, and come into effect later
/// than the next one.
pub trait Log: Send + Sync {
    /// Appends records to a partition; answers the indexes of those that failed.
    fn append<'a>(&'a self, partition: u16, records: Vec<Bytes>) -> Call<'a, Vec<usize>>;
    /// Records after an offset; none when there are none now.
    fn read<'a>(&'a self, partition: u16, after: Option<Offset>) -> Call<'a, Vec<(Offset, Bytes)>>;
}

/// A shard, partition or split, as the source lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// Its lineage.
    pub lineage: Lineage,
    /// Where it comes from; those that are gone are left out.
    pub parents: Vec<Lineage>,
    /// The keys that it takes.
    pub range: HashRange,
    /// No more records come.
    pub closed: bool,
}

/// An answer of a source.
#[derive(Debug, Clone, Default)]
pub struct Read {
    /// Records, in order.
    pub batch: SourceBatch,
    /// All up to here was looked at, where behind the last record is something that is no record: the end of a transaction,
    /// what was aborted or compacted away.
    pub scanned: Option<Offset>,
    /// More is there, although it cannot be read yet: this is not the tip.
    pub more: bool,
    /// The source has waited for more before it answered: it may be asked again at once.
    pub awaited: bool,
    /// The shard ended, and these are its last records.
    pub end: bool,
    /// At the end: the lineages that go on.
    pub children: Vec<Lineage>,
}

/// From where a lineage is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Its oldest record.
    Oldest,
    /// What arrived at this time or later, ms.
    Since(i64),
    /// The record behind this one, with which what was stored as one ends.
    After(Offset),
    /// The record behind this one, which may be in the middle of what was stored as one.
    Inside(Offset),
}

impl Place {
    /// Behind a record that was taken with all that was stored with it; `None`: nothing was.
    pub fn behind(last: Option<Offset>) -> Self {
        last.map_or(Self::Oldest, Self::After)
    }
}

/// What a pipeline reads.
///
/// Guarantees: a lineage's records have one order, and reading after an offset gives the same records each time.
pub trait Source: Send + Sync {
    /// The shards of a source that exist now, parents among them as long as they have records.
    fn shards<'a>(&'a self, source: &'a str) -> Call<'a, Vec<Shard>>;
    /// How far another application has read, by partition: its lease table of the Kinesis Client Library, or its group of
    /// consumers, says it.
    fn standing<'a>(&'a self, source: &'a str, application: &'a str) -> Call<'a, Vec<(String, Known)>>;
    /// Whether a source is files, which are listed once.
    fn is_listed(&self, _source: &str) -> bool {
        false
    }
    /// The files that are there now.
    fn list<'a>(&'a self, source: &'a str) -> Call<'a, Listing> {
        let why = format!("the source `{source}` reads no files");
        Box::pin(async { Err(PortError::Fatal(why)) })
    }
    /// Says what was decided when a source became a part of the pipeline: its files.
    fn know(&self, _source: &str, _begin: &Arc<Begin>) {}
    /// Whether a time means a record only once, when it is asked for the first time: where producers say what time it is. Such a
    /// source says with [`Source::at_time`] what it means, and that is written down.
    fn asks_time_once(&self, _source: &str) -> bool {
        false
    }
    /// What each partition is begun behind, to begin with what arrives from now on (`None`) or has this time (ms) or a later one.
    fn at_time<'a>(&'a self, source: &'a str, _time: Option<i64>) -> Call<'a, Vec<(String, Known)>> {
        let why = format!("the source `{source}` is begun at a time by each of its tasks");
        Box::pin(async { Err(PortError::Fatal(why)) })
    }
    /// Whether a lineage can be read from a place on; if not, why.
    fn probe<'a>(&'a self, lineage: &'a Lineage, from: Place) -> Call<'a, ()>;
    /// Records from a place on, as many as are there now up to a size of the source's choice.
    fn read<'a>(&'a self, lineage: &'a Lineage, from: Place) -> Call<'a, Read>;
    /// Whether others can see how far a source is read.
    fn shows_cuts(&self, _source: &str) -> bool {
        false
    }
    /// Shows others that all up to a record is behind a cut. Nothing rests on it.
    fn show_cut<'a>(&'a self, _lineage: &'a Lineage, _position: Offset) -> Call<'a, ()> {
        Box::pin(async { Ok(()) })
    }
}

/// What orders writes of one item: with the item's version it is its guard, (born, version, cut).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Guard {
    /// When the pipeline came into being, ms: one that starts over writes above all that was there before it.
    pub born: i64,
    /// Number of the cut that made the items.
    pub cut: u64,
}

/// Tables of sinks.
///
/// Guarantees: an item is written only when its guard is above that of what is there.
pub trait Tables: Send + Sync {
    /// Writes items, each of another key; answers the indexes of those that may not have been written.
    fn put<'a>(&'a self, table: &'a str, items: &'a [Item], guard: Guard) -> Call<'a, Vec<usize>>;
}

/// Streams of sinks.
///
/// Guarantees: what was accepted is in the stream, for good. Caveat: it may be there twice, and in another order than it
/// was sent.
pub trait Streams: Send + Sync {
    /// Appends records to a declared stream; answers the indexes of those that failed.
    fn put<'a>(&'a self, stream: &'a str, records: &'a [StreamRecord]) -> Call<'a, Vec<usize>>;
}

/// Topics of sinks, written in transactions.
///
/// Guarantees: records and the mark of their transaction are there together, or none of them is; once a writer has begun,
/// nothing comes into effect any more of what one of its name, begun before, had not committed.
pub trait Topics: Send + Sync {
    /// Begins to write to a declared stream that is a topic.
    fn begin<'a>(&'a self, stream: &'a str, writer: &'a str) -> Call<'a, Begun>;
}

/// A writer that has begun.
pub struct Begun {
    /// The mark of the last transaction of its name; `None`: there is none, or none any more.
    pub mark: Option<String>,
    /// Writes on from there.
    pub writer: Box<dyn Transactions>,
}

/// A writer of a topic.
pub trait Transactions {
    /// Appends records, and leaves a mark. Without a clear answer it may or may not be done, and this writer is of no use any
    /// more: the next one finds out by the mark.
    fn commit<'a>(&'a mut self, records: &'a [TopicRecord], mark: &'a str) -> Call<'a, ()>;
}

/// Time.
pub trait Clock: Send + Sync {
    /// Milliseconds since the epoch.
    fn now(&self) -> i64;
    /// Waits.
    fn sleep(&self, millis: u64) -> LocalBoxFuture<'_, ()>;
}

/// All of them.
#[allow(missing_docs)]
#[derive(Clone)]
pub struct Ports {
    pub rows: Arc<dyn Rows>,
    pub objects: Arc<dyn Objects>,
    pub files: Arc<dyn Files>,
    pub log: Arc<dyn Log>,
    pub source: Arc<dyn Source>,
    pub tables: Arc<dyn Tables>,
    pub streams: Arc<dyn Streams>,
    pub topics: Arc<dyn Topics>,
    pub clock: Arc<dyn Clock>,
    pub unclear: Arc<Unclear>,
    pub memory: Arc<Memory>,
}

/// Calls that had no clear answer, or were put off, and are made again: nothing is lost by them, but whoever waits wants to
/// know why.
#[derive(Debug, Default)]
pub struct Unclear(Mutex<(u64, String)>);

impl Unclear {
    /// One more, and why.
    pub fn note(&self, why: &str) {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        noted.0 += 1;
        why.clone_into(&mut noted.1);
    }

    /// How many so far, and why the last one.
    pub fn seen(&self) -> (u64, String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Ports {
    /// Makes a call until it has a clear answer, each time after a longer pause. Only for calls that may be repeated.
    pub async fn insist<'a, T>(&'a self, call: impl Fn() -> Call<'a, T>) -> Result<T, PortError> {
        let mut pause = 10;
        loop {
            match call().await {
                Err(PortError::Unclear(why)) => {
                    self.unclear.note(&why);
                    self.clock.sleep(pause).await;
                    pause = (pause * 2).min(2_000);
                }
                clear => return clear,
            }
        }
    }
}

/// The parts of a file, its tail included.
pub fn parts_with_tail(file: &OpenFile, tail: Option<Part>) -> Vec<Part> {
    file.parts.iter().cloned().chain(tail).collect()
}
