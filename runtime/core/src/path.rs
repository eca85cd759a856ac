//! The one place that formats names of rows and objects.

use crate::position::Lineage;

/// Row of the pipeline.
pub const PIPELINE: &str = "pipeline";

/// Prefix of the rows of source tasks.
pub const SOURCES: &str = "source/";

/// Prefix of the rows of keyed tasks.
pub const KEYED: &str = "keyed/";

/// Prefix of the heartbeats of workers.
pub const SESSIONS: &str = "session/";

/// Row of a source task.
pub fn source_row(lineage: &Lineage) -> String {
    format!("{SOURCES}{lineage}")
}

/// The lineage of a source task's row.
pub fn lineage_of(key: &str) -> Lineage {
    let mut parts = key[SOURCES.len()..].splitn(3, '/');
    let mut part = || parts.next().unwrap_or_default();
    Lineage::new(part(), part(), part())
}

/// Row of a keyed task.
pub fn keyed_row(partition: u16) -> String {
    format!("{KEYED}{partition:05}")
}

/// Heartbeat of a worker.
pub fn session_row(session: &str) -> String {
    format!("{SESSIONS}{session}")
}

/// What an object of a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Output written down before its cut.
    Staged,
    /// State.
    Snapshot,
    /// The bytes that close an open file.
    Tail,
    /// Ids of a deduplication, which snapshots name until all of them have expired.
    Ids,
}

/// Name of an object that a task writes for the cut `cut`, `index`th of its kind. It contains the generation, so that
/// no two owners write one name (rule `names`); `None` leaves it out. `pipeline` is unique among all pipelines that ever
/// were: one that starts over finds nothing of what was there before it under its names.
pub fn object(kind: Kind, pipeline: &str, row: &str, cut: u64, generation: Option<u64>, index: usize) -> String {
    let folder = match kind {
        Kind::Staged => "staged",
        Kind::Snapshot => "snapshots",
        Kind::Tail => "tails",
        Kind::Ids => "ids",
    };
    match generation {
        Some(generation) => format!("{folder}/{pipeline}/{row}/{cut:012}-{generation}-{index}"),
        None => format!("{folder}/{pipeline}/{row}/{cut:012}-{index}"),
    }
}

/// Name of what says where the lineages of a source are begun, as a session found it.
pub fn begin(source: &str, session: &str) -> String {
    format!("begins/{source}/{session}.json")
}

/// Name of a job's document.
pub fn job(hash: &str) -> String {
    format!("jobs/{hash}.json")
}

/// Name of a file that a task puts into a sink's folder. `pipeline` is unique among all pipelines that ever were, so the
/// whole is unique for ever.
pub fn file(pipeline: &str, row: &str, cut: u64, generation: u64, index: usize, extension: &str) -> String {
    let task = row.replace('/', "-");
    format!("{pipeline}-{task}-{cut:012}-{generation}-{index}.{extension}")
}
