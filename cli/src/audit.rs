//! `leat audit`: whether what a pipeline has written is what its ledger says: nothing missing, nothing twice.
//!
//! Everything it looks at is durable: the rows of the tasks (positions, ledgers, what is on its way), the objects that they
//! name, and the files of sinks. Each file says in its name which task wrote it, so the books of each task are compared by
//! themselves.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use leat_compile::program::{Op, Program};
use leat_crds::spec::FileFormat;
use leat_runtime::engine::ports::StoredRow;
use leat_runtime::operators::files::{positions_in, rows_in};
use leat_runtime_core::ledger::Ledger;
use leat_runtime_core::path;
use leat_runtime_core::row::{KeyedRow, OpenFile, PipelineRow, SourceRow, Status};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::dead_letters::Place;
use crate::report::{columns, thousands};

/// Findings of one kind that are shown.
const SHOWN: usize = 20;

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// `gap`, `repeat`, `ledger`, `object` or `lineage`.
    pub kind: &'static str,
    /// What exactly.
    pub message: String,
}

/// The books of one sink.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Account {
    /// The sink.
    pub sink: String,
    /// Files of this pipeline.
    pub files: u64,
    /// Rows in them.
    pub rows: u64,
    /// Rows that are not in a file yet: they wait for a part, or their file is not closed.
    pub on_their_way: u64,
    /// Rows that went into the sink by the ledger.
    pub ledger: u64,
}

/// What came of an audit.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Audit {
    /// Lineages, and how many of them have ended.
    pub lineages: (usize, usize),
    /// Records taken.
    pub taken: u64,
    /// Sinks of files.
    pub accounts: Vec<Account>,
    /// Positions of the Raw archive that were compared.
    pub positions: u64,
    /// Files in the places of sinks that this pipeline did not write.
    pub others: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// A task's row.
struct Task {
    /// Its key.
    key: String,
    ledger: Ledger,
    /// Its uploads under way, by sink.
    open: Vec<OpenFile>,
    /// Files that its last cut allows to close.
    complete: Vec<OpenFile>,
    /// Rows that are staged for a file, by sink and object.
    staged: Vec<(String, String, u64)>,
    /// Rows that have gone into parts or files, by sink; `None`: all that the ledger counts.
    filed: Option<BTreeMap<String, u64>>,
    objects: Vec<String>,
}

/// Audits a pipeline. `deep`: every position in the Raw archive is read.
pub async fn audit(program: &Program, place: &dyn Place, deep: bool) -> Result<Audit> {
    let pipeline = place.rows(path::PIPELINE).await?.pop().context("the pipeline has no row: nothing ran yet")?;
    let pipeline: PipelineRow = body(&pipeline)?;
    let mut audit = Audit::default();
    let sources = sources(place, &pipeline, &mut audit).await?;
    let keyed = keyed(place).await?;
    let objects = place.objects().await?;
    for task in sources.iter().chain(&keyed) {
        if let Some(gap) = task.ledger.gap() {
            audit.find("ledger", format!("{}: the ledger of {gap} does not add up", task.key));
        }
        for object in task.objects.iter().filter(|object| !objects.contains(*object)) {
            audit.find("object", format!("{}: the object {object}, which its last cut names, is not there", task.key));
        }
    }
    let unique = format!("{}-{}-{:x}", program.document.namespace, program.document.name, pipeline.born);
    for spec in &program.files {
        let writers: BTreeSet<&str> =
            [("source/", is_written(program, true, &spec.name)), ("keyed/", is_written(program, false, &spec.name))]
                .into_iter()
                .filter_map(|(prefix, writes)| writes.then_some(prefix))
                .collect();
        let tasks = sources.iter().chain(&keyed).filter(|task| writers.iter().any(|prefix| task.key.starts_with(prefix)));
        sink(place, spec, &unique, &tasks.collect::<Vec<_>>(), deep, &mut audit).await?;
    }
    Ok(audit)
}

/// Whether tasks of sources, or keyed ones, write into a sink.
fn is_written(program: &Program, by_sources: bool, sink: &str) -> bool {
    let of = |op: &Op| matches!(op, Op::Files(i) | Op::RawFiles(i) if program.files[*i].name == sink);
    if by_sources {
        program.sources.iter().flat_map(|s| &s.nodes).any(|n| of(&n.op))
    } else {
        program.keyed.nodes.iter().any(|n| of(&n.op))
    }
}

fn body<T: DeserializeOwned>((key, row): &(String, StoredRow)) -> Result<T> {
    serde_json::from_slice(&row.body).with_context(|| format!("the row {key} cannot be read: it is of another version"))
}

async fn sources(place: &dyn Place, pipeline: &PipelineRow, audit: &mut Audit) -> Result<Vec<Task>> {
    let (mut tasks, mut known, mut children) = (Vec::new(), BTreeSet::new(), Vec::new());
    for stored in place.rows(path::SOURCES).await? {
        let row: SourceRow = body(&stored)?;
        let lineage = path::lineage_of(&stored.0);
        audit.lineages.0 += 1;
        audit.lineages.1 += usize::from(row.status == Status::Retired);
        audit.taken += row.taken;
        children.extend(row.children.iter().map(|child| (lineage.clone(), child.clone())));
        known.insert(lineage);
        tasks.push(Task {
            // What a retired one was computed from is needed no more.
            objects: match row.status {
                Status::Retired => Vec::new(),
                _ => row.objects().into_iter().map(str::to_owned).collect(),
            },
            key: stored.0,
            ledger: row.ledger,
            open: row.files,
            complete: row.complete,
            staged: Vec::new(),
            // One that has ended or drained holds nothing back.
            filed: (row.status != Status::Retired && !stored.1.fence.drained).then_some(row.filed),
        });
    }
    for root in pipeline.roots.iter().filter(|root| !known.contains(root)) {
        audit.find("lineage", format!("{root} is listed and has no row: none of its records were read"));
    }
    for (parent, child) in children.into_iter().filter(|(_, child)| !known.contains(child)) {
        audit.find("lineage", format!("{parent} has ended, and its child {child} has no row yet"));
    }
    Ok(tasks)
}

async fn keyed(place: &dyn Place) -> Result<Vec<Task>> {
    let mut tasks = Vec::new();
    for stored in place.rows(path::KEYED).await? {
        let row: KeyedRow = body(&stored)?;
        tasks.push(Task {
            objects: row.objects().into_iter().map(str::to_owned).collect(),
            key: stored.0,
            ledger: row.ledger,
            open: Vec::new(),
            complete: row.complete,
            staged: row.unsent.into_iter().map(|s| (s.to, s.object, s.rows)).collect(),
            filed: None,
        });
    }
    Ok(tasks)
}

/// Compares the files of a sink with the books of the tasks that write it.
async fn sink(
    place: &dyn Place,
    spec: &leat_compile::program::FilesSpec,
    unique: &str,
    tasks: &[&Task],
    deep: bool,
    audit: &mut Audit,
) -> Result<()> {
    let mut written: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let mut names = BTreeSet::new();
    let mut seen: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in place.files(&spec.location).await? {
        // Notes of `leat dead-letters` stand beside the letters.
        if file.starts_with('_') {
            continue;
        }
        let Some(task) = writer(&file, unique, tasks) else {
            audit.others += 1;
            continue;
        };
        let bytes = place.read(&spec.location, &file).await?.with_context(|| format!("{file} went away while it was looked at"))?;
        let bytes = bytes::Bytes::from(bytes);
        let rows = match rows_in(spec.format, bytes.clone()) {
            Ok(rows) => rows,
            Err(why) => {
                audit.find("gap", format!("{}: the file {file} cannot be read: {why}", spec.name));
                continue;
            }
        };
        if deep && spec.format == FileFormat::Raw {
            let positions = seen.entry(task.to_owned()).or_default();
            for position in positions_in(bytes).map_err(|why| anyhow::anyhow!("{file}: {why}"))? {
                audit.positions += 1;
                if !positions.insert(position.clone()) {
                    audit.find("repeat", format!("{}: the record {position} of {task} is there twice, again in {file}", spec.name));
                }
            }
        }
        let account = written.entry(task.to_owned()).or_default();
        (account.0, account.1) = (account.0 + 1, account.1 + rows);
        names.insert(file);
    }
    let mut total = Account { sink: spec.name.trim_end_matches(" (sink)").to_owned(), ..Account::default() };
    for task in tasks {
        let (files, rows) = written.get(&task.key).copied().unwrap_or_default();
        let ledger = task.ledger.0.get(&spec.name).map_or(0, |counts| counts.absorbed);
        // A file may be there while the row does not know it yet.
        let there = |file: &&OpenFile| names.iter().any(|name| file.destination.ends_with(name.as_str()));
        let complete: Vec<&OpenFile> = task.complete.iter().filter(|f| f.sink == spec.name).collect();
        let closed: BTreeSet<&String> = complete.iter().copied().filter(there).flat_map(|f| &f.covers).collect();
        let closing: u64 = complete.iter().filter(|f| !there(f) && f.covers.is_empty()).map(|f| f.rows).sum();
        let open: u64 = task.open.iter().filter(|f| f.sink == spec.name).map(|f| f.rows).sum();
        let staged: u64 = task.staged.iter().filter(|(to, object, _)| *to == spec.name && !closed.contains(object)).map(|(.., n)| n).sum();
        let known = rows + closing + open + staged;
        let counted = task.filed.as_ref().map_or(ledger, |filed| filed.get(&spec.name).copied().unwrap_or_default());
        if known != counted || counted > ledger {
            let kind = if known > counted { "repeat" } else { "gap" };
            audit.find(kind, format!("{}: of {} there are {known} rows, and its books say {counted} of {ledger}", total.sink, task.key));
        }
        total.files += files;
        total.rows += rows;
        total.ledger += ledger;
        total.on_their_way += ledger.saturating_sub(rows);
    }
    audit.accounts.push(total);
    Ok(())
}

/// The task that wrote a file, by its name: what stands before cut, generation and index.
fn writer<'a>(file: &str, unique: &str, tasks: &[&'a Task]) -> Option<&'a str> {
    let name = file.rsplit('/').next().unwrap_or_default();
    let mut parts = name.rsplitn(4, '-');
    let (index, generation, cut, before) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if !number(cut) || !number(generation) || !number(index.split('.').next().unwrap_or_default()) {
        return None;
    }
    let task = before.strip_prefix(unique)?.strip_prefix('-')?;
    tasks.iter().find(|t| t.key.replace('/', "-") == task).map(|t| t.key.as_str())
}

impl Audit {
    fn find(&mut self, kind: &'static str, message: String) {
        self.findings.push(Finding { kind, message });
    }

    /// For people.
    pub fn text(&self) -> String {
        let row = |account: &Account| {
            let numbers = [account.files, account.rows, account.on_their_way, account.ledger].map(thousands);
            std::iter::once(account.sink.clone()).chain(numbers).collect()
        };
        let rows: Vec<Vec<String>> = self.accounts.iter().map(row).collect();
        let (lineages, ended) = self.lineages;
        let mut out = format!("{} records taken from {lineages} lineages, of which {ended} have ended\n\n", thousands(self.taken));
        columns(&mut out, &["", "files", "rows", "on their way", "ledger"], &rows, 1);
        if self.positions > 0 {
            out += &format!("\n{} positions of the Raw archive compared\n", thousands(self.positions));
        }
        if self.others > 0 {
            out += &format!("\n{} files beside them are not of this pipeline\n", thousands(self.others));
        }
        out += "\n";
        for finding in self.findings.iter().take(SHOWN) {
            out += &format!("{:<8} {}\n", finding.kind, finding.message);
        }
        if self.findings.len() > SHOWN {
            out += &format!("and {} more\n", self.findings.len() - SHOWN);
        }
        out += &match self.findings.len() {
            0 => "Nothing is missing and nothing is there twice\n".to_owned(),
            1 => "1 finding\n".to_owned(),
            n => format!("{n} findings\n"),
        };
        out
    }
}
