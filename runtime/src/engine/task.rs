//! What source and keyed tasks share: taking a row, writing the next one, and how a task ends.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use leat_runtime_core::position::Offset;
use leat_runtime_core::row::{Expect, Fence, PipelineRow, Snapshot};
use leat_runtime_core::rules::{Rule, Rules};
use leat_runtime_core::wire::Damaged;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::ports::{Objects, PortError, Ports, StoredRow};
use crate::operators::saved::{Run, Saved};

/// How a task ended, when nothing is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Its lineage is retired.
    Retired,
    /// It drained for the next job.
    Drained,
    /// Somebody else holds its row.
    Fenced,
}

/// Why a task stopped.
#[derive(Debug, Error)]
pub enum TaskError {
    /// Somebody else holds the row: no fault.
    #[error("another worker holds the row")]
    Fenced,
    /// A port cannot do what is needed.
    #[error(transparent)]
    Port(#[from] PortError),
    /// Something persisted cannot be read.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// Records that are needed to compute the state again are not there any more.
    #[error("{what}: the records after {} are gone, and the state since its last snapshot with them; they were kept for less long than \
             the worker was away. Start over with other state: delete the pipeline and its lease table, and apply it again", from.map_or_else(|| "the beginning".to_owned(), |o| o.to_string()))]
    Trimmed {
        /// The input.
        what: String,
        /// The last record that is in the snapshot.
        from: Option<Offset>,
    },
    /// A file could not be encoded.
    #[error("a file cannot be encoded: {0}")]
    Encode(String),
    /// The protocol was broken: a defect of ours; the task stops before it does harm.
    #[error("defect: {0}")]
    Defect(String),
}

/// A task's settings.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Least time between two cuts, ms.
    pub cut_interval: i64,
    /// Least time between two snapshots, ms.
    pub snapshot_interval: i64,
    /// How often something that may have changed elsewhere is looked at, ms.
    pub poll_interval: u64,
    /// Every so many rounds a worker looks after the pipeline's rows, unless it is the first of those that live.
    pub pass_every: u64,
    /// A part of a file is written when so many bytes are in memory.
    pub part_bytes: usize,
    /// So many ids, at least, go into an object of their own.
    pub run_ids: usize,
    /// A keyed task takes no more when so many rows wait for a cut.
    pub crowded_rows: usize,
    /// The rules of the protocol; all of them.
    pub rules: Rules,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cut_interval: 250,
            snapshot_interval: 5_000,
            poll_interval: 20,
            pass_every: 1,
            part_bytes: 8 << 20,
            run_ids: 16 << 10,
            crowded_rows: 200_000,
            rules: Rules::all(),
        }
    }
}

/// What the worker knows of the pipeline's row; never newer than the truth.
pub trait Control {
    /// The pipeline's row as it was last seen; asked for with each step of a task, so it is shared.
    fn pipeline(&self) -> Arc<PipelineRow>;

    /// The lowest watermark of all lineages, ms: only a wrong variant judges lateness by it.
    #[cfg(feature = "ablation")]
    fn merged(&self) -> i64 {
        i64::MIN
    }
}

/// How often, and for how long, a task was held up by its own cuts and snapshots: while it decides what is written. Writing goes on
/// beside its work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// How often.
    pub times: u64,
    /// For how long in all.
    pub total: Duration,
    /// For how long at most.
    pub longest: Duration,
}

impl Held {
    /// Once more, since `began`.
    pub fn note(&mut self, began: Instant) {
        self.add(&Self { times: 1, total: began.elapsed(), longest: began.elapsed() });
    }

    /// Those of another task too.
    pub fn add(&mut self, other: &Self) {
        self.times += other.times;
        self.total += other.total;
        self.longest = self.longest.max(other.longest);
    }
}

/// How often nothing of something was accepted, one time after the other.
#[derive(Default)]
pub(super) struct Tries {
    refused: u32,
    sent: usize,
}

impl Tries {
    /// So much is sent; answers the pause where none of it is accepted.
    pub fn with(&mut self, sent: usize) -> u64 {
        self.sent = sent;
        self.pause()
    }

    /// So much was not accepted.
    pub fn left(&mut self, left: usize) {
        self.refused = if left > 0 && left == self.sent { self.refused + 1 } else { 0 };
    }

    /// Pause before it is sent again, ms: twice as long each time, as where a call has no clear answer.
    pub fn pause(&self) -> u64 {
        (10 << self.refused.min(8)).min(2_000)
    }
}

/// Whether the tasks of a job drain for another one.
pub fn draining<C: Control>(control: &C, job: u64) -> bool {
    let pipeline = control.pipeline();
    pipeline.draining_for.is_some() && pipeline.job == job
}

/// A body as JSON.
pub fn encode<T: Serialize>(body: &T) -> Bytes {
    serde_json::to_vec(body).unwrap_or_default().into()
}

/// A body from JSON.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Damaged> {
    serde_json::from_slice(body).map_err(|_| Damaged("a row cannot be read"))
}

/// Takes a row: raises its generation and makes `session` its owner. Safe at any time: the owner before finds out at
/// its next cut.
pub async fn take<T: DeserializeOwned>(ports: &Ports, key: &str, job: u64, session: &str, rules: Rules) -> Result<(Fence, T), TaskError> {
    loop {
        let row = ports.insist(|| ports.rows.get(key)).await?.ok_or(TaskError::Fenced)?;
        if row.fence.job > job || (row.fence.drained && row.fence.job == job && rules.hold(Rule::Drain)) {
            return Err(TaskError::Fenced);
        }
        let fence = Fence { generation: row.fence.generation + 1, owner: session.to_owned(), job, drained: false, ..row.fence.clone() };
        let new = StoredRow { fence: fence.clone(), body: row.body.clone() };
        match ports.rows.put(key, new, Expect::Fence(row.fence)).await {
            Ok(true) => return Ok((fence, decode(&row.body)?)),
            // A cut of the owner before came between: look again.
            Ok(false) => continue,
            Err(PortError::Unclear(why)) => {
                ports.unclear.note(&why);
                let found = ports.insist(|| ports.rows.get(key)).await?.ok_or(TaskError::Fenced)?;
                if found.fence.generation == fence.generation && found.fence.owner == session {
                    return Ok((found.fence.clone(), decode(&found.body)?));
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Writes the cut that follows `before`. Its outcome is clear when this returns: after an unclear answer the row is
/// read, and the same bytes are written again, never another cut under that number.
pub async fn write_cut(ports: &Ports, key: &str, before: &Fence, after: Fence, body: Bytes, rules: Rules) -> Result<Fence, TaskError> {
    let mine = |found: &Fence| found.generation == after.generation && found.owner == after.owner && found.cut == after.cut;
    loop {
        let row = StoredRow { fence: after.clone(), body: body.clone() };
        match ports.rows.put(key, row, Expect::Fence(before.clone())).await {
            Ok(true) => return Ok(after),
            Ok(false) => {
                // An earlier try may have come into effect late.
                let found = ports.insist(|| ports.rows.get(key)).await?;
                return if found.is_some_and(|f| mine(&f.fence)) && rules.hold(Rule::Pred) { Ok(after) } else { Err(TaskError::Fenced) };
            }
            Err(PortError::Unclear(why)) => {
                ports.unclear.note(&why);
                if rules.hold(Rule::Pred) {
                    let found = ports.insist(|| ports.rows.get(key)).await?.ok_or(TaskError::Fenced)?;
                    if mine(&found.fence) {
                        return Ok(after);
                    }
                    if found.fence.generation != after.generation {
                        return Err(TaskError::Fenced);
                    }
                }
                ports.clock.sleep(10).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// How a task of `session` really ended: one that failed after somebody else had taken its row was fenced, whatever it
/// met then (its objects may be gone).
pub async fn outcome(ports: &Ports, key: &str, session: &str, ended: Result<Exit, TaskError>) -> Result<Exit, TaskError> {
    match ended {
        Err(TaskError::Fenced) => Ok(Exit::Fenced),
        Err(error) => match ports.insist(|| ports.rows.get(key)).await? {
            Some(row) if row.fence.owner != session => Ok(Exit::Fenced),
            _ => Err(error),
        },
        fine => fine,
    }
}

/// The objects of a cut that the next one does not name any more.
pub fn unneeded(before: &[&str], after: &[&str]) -> Vec<String> {
    before.iter().filter(|o| !after.contains(o)).map(|o| (*o).to_owned()).collect()
}

/// Removes objects; one that stays is only waste.
pub async fn remove(objects: &dyn Objects, garbage: &[String]) {
    for object in garbage {
        drop(objects.delete(object).await);
    }
}

/// Objects that are read at a time.
const LOADS: usize = 16;

/// Reads the objects that a snapshot names, and hands each over as it comes.
pub async fn load(ports: &Ports, runs: &[Run], mut take: impl FnMut(&Run, &[u8]) -> Result<(), Damaged>) -> Result<(), TaskError> {
    let mut reads =
        stream::iter(runs).map(|run| async move { (run, ports.insist(|| ports.objects.get(&run.object)).await) }).buffer_unordered(LOADS);
    while let Some((run, bytes)) = reads.next().await {
        take(run, &bytes?)?;
    }
    Ok(())
}

/// A snapshot whose objects are written, or are with the cut that makes it the base.
#[derive(Debug, Clone)]
pub struct Base {
    /// As the row says it.
    pub snapshot: Snapshot,
    /// All objects of this task that its head names.
    pub named: Vec<String>,
}

impl Base {
    /// The base that a snapshot makes; `head`: the name of its head.
    pub fn new(head: &str, position: Option<Offset>, saved: &Saved) -> Self {
        Self { snapshot: Snapshot { objects: vec![head.to_owned()], position, size: saved.size() }, named: saved.named.clone() }
    }
}

/// Takes in what a new base names; answers what the one before named and it does not, which nobody needs any more.
pub fn replaced(named: &mut BTreeSet<String>, by: Vec<String>) -> Vec<String> {
    let before = std::mem::replace(named, by.into_iter().collect());
    before.difference(named).cloned().collect()
}

/// A snapshot's objects, to be written: those that the head names first.
pub fn objects_of(head: &str, saved: Saved) -> Vec<(String, Bytes)> {
    let mut objects = saved.new;
    objects.push((head.to_owned(), saved.head));
    objects
}
