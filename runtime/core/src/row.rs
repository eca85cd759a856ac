//! The rows that tasks, workers and the pipeline keep in the lease table. A task's row is its cut: whoever holds the
//! row's generation may write the next one, once, under the number that follows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ledger::Ledger;
use crate::numbers::Numbers;
use crate::position::{Lineage, Offset};
use crate::rules::{Rule, Rules};
use crate::watermark::Watermark;

/// Who may write a row next: every write is conditional on these. Attributes of their own in the lease table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// Raised by one with each change of owner.
    pub generation: u64,
    /// Session of the worker that holds the lease; empty: nobody's.
    pub owner: String,
    /// Number of the job that the row belongs to.
    pub job: u64,
    /// Number of the last cut.
    pub cut: u64,
    /// Closed to its job: only the next job may take it.
    pub drained: bool,
}

/// What a conditional write demands of the row as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// There is no row, and the pipeline's row has this job and is not draining.
    Absent {
        /// Number of the active job.
        job: u64,
    },
    /// The row has this fence; its owner does not matter.
    Fence(Fence),
}

impl Expect {
    /// Whether a row with `found` may be overwritten.
    pub fn allows(&self, found: Option<&Fence>, rules: Rules) -> bool {
        match (self, found) {
            (Expect::Absent { .. }, None) => true,
            (Expect::Fence(wanted), Some(found)) => {
                let fenced = wanted.generation == found.generation && wanted.job == found.job && wanted.drained == found.drained;
                (fenced || !rules.hold(Rule::Fence)) && (wanted.cut == found.cut || !rules.hold(Rule::Pred))
            }
            _ => false,
        }
    }
}

/// Output written down before a cut and sent after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staged {
    /// Where it goes: the repartition stream, or the name of a sink.
    pub to: String,
    /// The object that holds it.
    pub object: String,
    /// Number of the cut that assigned it.
    pub cut: u64,
    /// Rows in it.
    pub rows: u64,
}

/// A part of an upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its number, from 1.
    pub number: u32,
    /// What the store answered for it.
    pub tag: String,
    /// Its size in bytes.
    pub size: u64,
}

/// A file that spans cuts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFile {
    /// Name of the sink.
    pub sink: String,
    /// Its folder below the sink's location, such as `hour=2026-11-21T14`.
    pub folder: String,
    /// Key or path of the file.
    pub destination: String,
    /// The store's id of the upload.
    pub upload: String,
    /// The parts so far.
    pub parts: Vec<Part>,
    /// Object with the bytes that close the file after these parts (the footer of Parquet).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<String>,
    /// Rows in the parts.
    pub rows: u64,
    /// When it was opened: milliseconds since the epoch.
    pub opened: i64,
    /// Staged output that the file contains; sent when the file is completed. Files of keyed tasks only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub covers: Vec<String>,
}

/// A snapshot of a task's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Objects that together hold it, oldest first; today always one.
    pub objects: Vec<String>,
    /// The last record that is in it; `None`: before the first.
    pub position: Option<Offset>,
    /// Size in bytes.
    pub size: u64,
}

/// Where a lineage stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// Records may come.
    Live,
    /// The last record was taken; output may be unacknowledged.
    Ended,
    /// Everything is acknowledged.
    Retired,
}

/// What a lineage's state starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// A root: empty, at this watermark.
    Root(Watermark),
    /// The states of its parents at their end, united; at this watermark.
    Parents {
        /// End snapshots of the parents.
        snapshots: Vec<Snapshot>,
        /// The highest of their final watermarks.
        watermark: Watermark,
        /// First and last hash of the shard, decimal.
        hash_range: (String, String),
    },
}

/// The row of a source task: its lineage's last cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceRow {
    /// What its state starts from.
    pub origin: Origin,
    /// Where it stands in its life.
    pub status: Status,
    /// Nothing newer came for the idle time-out: others do not wait for it.
    pub idle: bool,
    /// The last record taken.
    pub position: Option<Offset>,
    /// Records taken.
    pub taken: u64,
    /// Its watermark.
    pub watermark: Watermark,
    /// Highest event time seen, in milliseconds.
    pub newest: i64,
    /// The last numbers assigned, per edge; those of staged output included.
    pub numbers: BTreeMap<String, Numbers>,
    /// Output written down and not acknowledged yet.
    pub unsent: Vec<Staged>,
    /// Files that span this cut.
    pub files: Vec<OpenFile>,
    /// Files to complete, not acknowledged yet.
    pub complete: Vec<OpenFile>,
    /// Per sink and folder: rows up to this number are in parts or files.
    pub flushed: BTreeMap<String, BTreeMap<String, u64>>,
    /// Per sink, how many rows have gone into parts or files since the lineage was born: what an audit counts again.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub filed: BTreeMap<String, u64>,
    /// Raises of the watermark since the snapshot, each after the record at its position.
    pub raises: Vec<(Option<Offset>, Watermark)>,
    /// The base of recovery.
    pub snapshot: Option<Snapshot>,
    /// State at the end, for the children.
    pub end_snapshot: Option<Snapshot>,
    /// The record that it is begun behind, where the source's beginning says one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begins: Option<Offset>,
    /// Records of its parents were taken: it is read from its oldest record, wherever the manifest begins.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub continues: bool,
    /// Lineages that go on where this one ended.
    pub children: Vec<Lineage>,
    /// Where its records went.
    pub ledger: Ledger,
}

/// The row of a keyed task: the last cut of a partition of the repartition stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyedRow {
    /// The last record of the repartition stream taken.
    pub position: Option<Offset>,
    /// Watermark applied.
    pub watermark: Watermark,
    /// Output written down and not acknowledged yet.
    pub unsent: Vec<Staged>,
    /// Files to complete, not acknowledged yet.
    pub complete: Vec<OpenFile>,
    /// The base of recovery; before the first, key groups taken over from the job before.
    pub snapshot: Option<Snapshot>,
    /// Snapshots of the job before that hold key groups of this partition.
    pub inherits: Vec<Snapshot>,
    /// Version of the list of roots that this task has acknowledged.
    pub roots_version: u64,
    /// Rows with changes that were not emitted yet.
    pub dirty: u64,
    /// Open windows.
    pub open: u64,
    /// Its worker's memory is full.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pressed: bool,
    /// Where rows went.
    pub ledger: Ledger,
}

/// The pipeline's own row; `Fence::cut` is its version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PipelineRow {
    /// Number of the active job.
    pub job: u64,
    /// Hash of the active job's document.
    pub job_hash: String,
    /// Revision of the job that runs, or that the tasks drain for.
    pub revision: u64,
    /// Hash of the job that the tasks drain for.
    pub draining_for: Option<String>,
    /// Partitions of the repartition stream under the job that the tasks drain for.
    pub next_partitions: u16,
    /// Sources of the active job; lineages of others are left alone.
    pub sources: Vec<String>,
    /// Sources of the job that the tasks drain for.
    pub next_sources: Vec<String>,
    /// When the pipeline came into being, ms: makes the names of its files its own.
    pub born: i64,
    /// When each source became a part of the pipeline for the first time, ms.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub began: BTreeMap<String, i64>,
    /// Object that says where the lineages of a source are begun, for those that have one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub begins: BTreeMap<String, String>,
    /// Lineages without parents, listed before any watermark is merged.
    pub roots: Vec<Lineage>,
    /// Raised whenever a root is announced.
    pub roots_version: u64,
    /// Roots announced after the start, waiting for all keyed tasks to hold their watermark.
    pub joining: Vec<Lineage>,
    /// Partitions of the repartition stream under the active job.
    pub partitions: u16,
    /// The memory of a keyed task's worker is full: lineages that are ahead of others in event time wait.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pressed: bool,
    /// Bounded input: when every lineage has taken its records up to here, all windows close.
    pub seal: Option<Seal>,
}

impl PipelineRow {
    /// Whether a source is or was a part of the pipeline.
    pub fn knows(&self, source: &str) -> bool {
        self.began.contains_key(source) || self.sources.iter().any(|s| s == source)
    }

    /// When a source became a part of the pipeline, ms.
    pub fn began(&self, source: &str) -> i64 {
        self.began.get(source).copied().unwrap_or(self.born)
    }
}

/// The end of bounded input that was fed into streams.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// Last record of each lineage; `None`: it has none.
    pub ends: BTreeMap<Lineage, Option<Offset>>,
    /// Watermark that closes all windows; known once all lineages have come to their ends.
    pub watermark: Option<Watermark>,
}

impl SourceRow {
    /// The watermark that children start from: the lineage's own at its end.
    pub fn final_watermark(&self) -> Watermark {
        if self.children.is_empty() { Watermark::MAX } else { self.watermark }
    }
}

impl SourceRow {
    /// The objects that this row needs: all others of its task may go.
    pub fn objects(&self) -> Vec<&str> {
        let staged = self.unsent.iter().map(|s| s.object.as_str());
        let tails = self.files.iter().chain(&self.complete).filter_map(|f| f.tail.as_deref());
        let snapshots = self.snapshot.iter().chain(&self.end_snapshot).flat_map(|s| s.objects.iter().map(String::as_str));
        staged.chain(tails).chain(snapshots).collect()
    }
}

impl KeyedRow {
    /// The objects that this row needs. What it inherits may be needed by others too.
    pub fn objects(&self) -> Vec<&str> {
        let staged = self.unsent.iter().map(|s| s.object.as_str());
        let tails = self.complete.iter().filter_map(|f| f.tail.as_deref());
        let snapshots = self.snapshot.iter().flat_map(|s| s.objects.iter().map(String::as_str));
        staged.chain(tails).chain(snapshots).collect()
    }
}
