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

/// What makes the names of a pipeline's files and objects its own, also beside those of one that had its name before.
pub fn unique(namespace: &str, name: &str, born: i64) -> String {
    format!("{namespace}-{name}-{born:x}")
}

/// Name of a file that a task puts into a sink's folder, with the cut that put the first rows into it. `pipeline` is
/// [`unique`], so the whole is unique for ever.
pub fn file(pipeline: &str, row: &str, cut: u64, generation: u64, index: usize, extension: &str) -> String {
    format!("{pipeline}-{}-{cut:012}-{generation}-{index}.{extension}", in_names(row))
}

/// The task of a file as it stands in its name, and the cut; `None`: no task of this pipeline wrote it.
pub fn writer_of<'a>(file: &'a str, pipeline: &str) -> Option<(&'a str, u64)> {
    // Names of lineages have dots and dashes too.
    let mut parts = file.rsplit('/').next()?.rsplitn(4, '-');
    let number = |text: &str| if text.bytes().all(|b| b.is_ascii_digit()) { text.parse::<u64>().ok() } else { None };
    let (_index, _generation, cut) = (number(parts.next()?.split('.').next()?)?, number(parts.next()?)?, number(parts.next()?)?);
    Some((parts.next()?.strip_prefix(pipeline)?.strip_prefix('-')?, cut))
}

/// Name under which a task writes a topic, for a sink.
pub fn writer(pipeline: &str, sink: &str, row: &str) -> String {
    format!("leat.{pipeline}.{sink}.{row}")
}

/// A task's row as it stands in the names of its files.
pub fn in_names(row: &str) -> String {
    row.replace('/', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_names_its_task_and_cut() {
        let pipeline = unique("analytics", "clicks-2", 255);
        let row = source_row(&Lineage::new("web-clicks", "1f", "part-1.2.jsonl"));
        let name = file(&pipeline, &row, 41, 7, 2, "parquet");
        assert_eq!(writer_of(&format!("dt=2026-01-01/{name}"), &pipeline), Some((&*in_names(&row), 41)));
        for other in [unique("analytics", "clicks-2", 256), unique("analytics", "clicks", 255)] {
            assert_eq!(writer_of(&name, &other), None, "{other}");
        }
        for strange in ["notes.parquet", "analytics-clicks-2-ff.parquet", &name.replace("-7-", "-x-"), ""] {
            assert_eq!(writer_of(strange, &pipeline), None, "{strange}");
        }
    }
}
