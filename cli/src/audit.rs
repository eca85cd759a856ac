//! `leat audit`: whether what a pipeline has written is what its ledger says: nothing missing, nothing twice.
//!
//! Everything it looks at is durable: the rows of the tasks (positions, ledgers, what is on its way), the objects that they
//! name, the files of sinks, and the items of tables. Each file says in its name which task wrote it and with which cut, so the books of each task
//! are compared by themselves, as of its cut: a pipeline may run meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use leat_compile::program::{EdgeKind, FilesSpec, From, Node, Op, Program, TableKind, TableSpec};
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

/// Findings that are shown.
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
    /// Files of this pipeline; of a table none.
    pub files: u64,
    /// Rows in them, or items.
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
    /// Sinks of files and, where every item was counted, of tables.
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
    /// Number of its last cut.
    cut: u64,
    ledger: Ledger,
    /// Its uploads under way, and files that its last cut allows to close: they may be there by now, with later rows in those
    /// that were open.
    files: Vec<OpenFile>,
    /// Rows that are staged for a file, by sink and object.
    staged: Vec<(String, String, u64)>,
    /// Rows that have gone into parts or files, by sink; `None`: all that the ledger counts.
    filed: Option<BTreeMap<String, u64>>,
    objects: Vec<String>,
}

/// Audits a pipeline. `deep`: every position in the Raw archive is read, and all items of tables are counted.
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
    let unique = path::unique(&program.document.namespace, &program.document.name, pipeline.born);
    for spec in &program.files {
        let writes =
            |nodes: &[Node]| nodes.iter().any(|n| matches!(n.op, Op::Files(i) | Op::RawFiles(i) if program.files[i].name == spec.name));
        let mut tasks: Vec<&Task> = Vec::new();
        if program.sources.iter().any(|source| writes(&source.nodes)) {
            tasks.extend(&sources);
        }
        if writes(&program.keyed.nodes) {
            tasks.extend(&keyed);
        }
        sink(place, spec, &unique, &tasks, deep, &mut audit).await?;
    }
    if deep {
        for (node, table) in program.keyed.nodes.iter().filter_map(|node| if let Op::Table(i) = node.op { Some((node, i)) } else { None }) {
            items(place, program, node, &program.tables[table], pipeline.born, &mut audit).await?;
        }
    }
    Ok(audit)
}

/// Compares the items of a table with the books of the tasks that write it. An item says what came last and not who wrote it, so
/// they are counted; books from before and from behind the count let a pipeline run meanwhile.
async fn items(place: &dyn Place, program: &Program, node: &Node, table: &TableSpec, born: i64, audit: &mut Audit) -> Result<()> {
    if table.kind != TableKind::DynamoDb {
        return Ok(());
    }
    // Rows that went in, and of them those that may not be there yet.
    let books = async || -> Result<(u64, u64)> {
        let tasks = keyed(place).await?;
        let absorbed = tasks.iter().filter_map(|task| task.ledger.0.get(&node.name)).map(|counts| counts.absorbed).sum();
        let staged = tasks.iter().flat_map(|task| &task.staged).filter(|(to, ..)| *to == table.name).map(|(.., rows)| rows).sum();
        Ok((absorbed, staged))
    };
    let (before, waiting) = books().await?;
    let found = place.items(&table.table, born).await?;
    let (after, _) = books().await?;
    let sink = table.name.trim_end_matches(" (sink)").to_owned();
    if found > after {
        audit.find("repeat", format!("{sink}: there are {found} items of this pipeline, and its books know {after} rows"));
    }
    // Rows that correct each other are one item, and those that have expired are gone.
    if found + waiting < before && table.time_to_live.is_none() && !corrected(program, node) {
        audit.find("gap", format!("{sink}: there are {found} items, and its books say {before} rows, of which {waiting} are on their way"));
    }
    audit.accounts.push(Account { sink, files: 0, rows: found, on_their_way: waiting, ledger: before });
    Ok(())
}

/// Whether later rows take the place of earlier ones.
fn corrected(program: &Program, node: &Node) -> bool {
    node.inputs.iter().any(|input| match input.from {
        From::Edge(edge) => matches!(&program.keyed.edges[edge].kind, EdgeKind::Partial(spec) if spec.on_update.is_some()),
        From::Node(index) => corrected(program, &program.keyed.nodes[index]),
        From::Source => false,
    })
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
            cut: stored.1.fence.cut,
            ledger: row.ledger,
            files: row.files.into_iter().chain(row.complete).collect(),
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
            cut: stored.1.fence.cut,
            ledger: row.ledger,
            files: row.complete,
            staged: row.unsent.into_iter().map(|s| (s.to, s.object, s.rows)).collect(),
            filed: None,
        });
    }
    Ok(tasks)
}

/// Compares the files of a sink with the books of the tasks that write it.
async fn sink(place: &dyn Place, spec: &FilesSpec, unique: &str, tasks: &[&Task], deep: bool, audit: &mut Audit) -> Result<()> {
    let of: BTreeMap<String, &Task> = tasks.iter().map(|task| (path::in_names(&task.key), *task)).collect();
    let pending: BTreeSet<&str> = tasks.iter().flat_map(|task| &task.files).map(|file| file.destination.as_str()).collect();
    // Files of each task, and their rows.
    let mut written: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    let mut seen: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for file in place.files(&spec.location).await? {
        // Notes of `leat dead-letters` stand beside the letters.
        if file.starts_with('_') {
            continue;
        }
        let Some((task, cut)) = path::writer_of(&file, unique).and_then(|(task, cut)| Some((*of.get(task)?, cut))) else {
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
            let positions = seen.entry(&task.key).or_default();
            for position in positions_in(bytes).map_err(|why| anyhow::anyhow!("{file}: {why}"))? {
                audit.positions += 1;
                if !positions.insert(position.clone()) {
                    audit.find("repeat", format!("{}: the record {position} of {} is there twice, again in {file}", spec.name, task.key));
                }
            }
        }
        // Those that the row does not know yet, or not with all that is in them, count as the row says.
        let destination = format!("{}/{file}", spec.location.trim_end_matches('/'));
        if cut <= task.cut && !pending.contains(destination.as_str()) {
            let account = written.entry(&task.key).or_default();
            *account = (account.0 + 1, account.1 + rows);
        }
    }
    let mut total = Account { sink: spec.name.trim_end_matches(" (sink)").to_owned(), ..Account::default() };
    for task in tasks {
        let (files, rows) = written.get(task.key.as_str()).copied().unwrap_or_default();
        let ledger = task.ledger.0.get(&spec.name).map_or(0, |counts| counts.absorbed);
        let pending: Vec<&OpenFile> = task.files.iter().filter(|f| f.sink == spec.name).collect();
        let covered: BTreeSet<&String> = pending.iter().flat_map(|f| &f.covers).collect();
        let staged = task.staged.iter().filter(|(to, object, _)| *to == spec.name && !covered.contains(object));
        let known = rows + pending.iter().map(|f| f.rows).sum::<u64>() + staged.map(|(.., rows)| rows).sum::<u64>();
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
