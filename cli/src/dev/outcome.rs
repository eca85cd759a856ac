//! The report of a run, from what is durable: rows, tables, files.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use leat_runtime::connectors::local::store;
use leat_runtime::output::Attribute;
use leat_runtime_core::ledger::Ledger;

use super::{World, keyed, sources};
use crate::report::{Output, Report, Table, ordered};

/// Rows of a table that are shown.
const SHOWN: usize = 5;

pub(super) async fn report(world: &World, done: bool, before: u64, seconds: f64) -> Result<Report> {
    let mut ledger = Ledger::default();
    let mut taken = 0;
    for row in sources(world).await?.values() {
        ledger.add(&row.ledger);
        taken += row.taken;
    }
    keyed(world).await?.values().for_each(|row| ledger.add(&row.ledger));
    let program = &world.program;
    let mut names: Vec<String> = program.sources.iter().map(|s| s.name.clone()).collect();
    names.extend(program.document.spec.steps.iter().map(|s| s.name.clone()));
    names.extend(program.document.spec.sinks.iter().map(|s| s.name.clone()));
    let mut dead_letters = BTreeMap::new();
    for (name, counts) in &ledger.0 {
        for (reason, n) in &counts.rejected {
            dead_letters.insert(format!("{name}: {reason}"), *n);
        }
        if counts.late > 0 {
            dead_letters.insert(format!("{name}: late"), counts.late);
        }
    }
    let outputs = program.files.iter().map(|spec| {
        let path = world.files.path(&spec.location);
        let (files, bytes) = size_of(&path);
        Output { sink: spec.name.trim_end_matches(" (sink)").to_owned(), path, files, bytes }
    });
    let written = program.streams.iter().map(|spec| {
        let path = world.written.path(&spec.stream);
        let bytes = std::fs::metadata(&path).map_or(0, |m| m.len());
        Output { sink: spec.name.trim_end_matches(" (sink)").to_owned(), files: usize::from(bytes > 0), bytes, path }
    });
    let outputs = outputs.chain(written).collect();
    let mut tables = Vec::new();
    for spec in &program.tables {
        tables.push(table(world, &spec.table)?);
    }
    let (cpu_seconds, peak_memory) = crate::report::usage();
    Ok(Report {
        pipeline: format!("{}/{}", program.document.namespace, program.document.name),
        done,
        taken: taken.saturating_sub(before),
        seconds,
        cpu_seconds,
        peak_memory,
        spilled: world.ports.memory.disk().map_or(0, |disk| disk.written()),
        ledger: ordered(&ledger, &names),
        dead_letters,
        outputs,
        tables,
    })
}

fn size_of(path: &Path) -> (usize, u64) {
    let Ok(entries) = std::fs::read_dir(path) else { return (0, 0) };
    entries.flatten().fold((0, 0), |(files, bytes), entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => {
            let (f, b) = size_of(&entry.path());
            (files + f, bytes + b)
        }
        Ok(meta) => (files + 1, bytes + meta.len()),
        Err(_) => (files, bytes),
    })
}

/// The items of a table of a run that has ended, attribute by attribute as text.
pub fn items(folder: &Path, table: &str) -> Result<Vec<BTreeMap<String, String>>> {
    let store = leat_runtime::connectors::local::store::Store::open(&folder.join("store.redb"))?;
    let items = store.items(table)?;
    Ok(items
        .iter()
        .map(|i| store::attributes(&i.item).into_iter().map(|(name, value)| (name.to_owned(), text(Some(value)))).collect())
        .collect())
}

fn text(value: Option<&Attribute>) -> String {
    match value {
        Some(Attribute::S(text) | Attribute::N(text)) => text.clone(),
        Some(Attribute::Bool(value)) => value.to_string(),
        Some(Attribute::Null) | None => "null".to_owned(),
    }
}

fn table(world: &World, name: &str) -> Result<Table> {
    let items = world.store.items(name)?;
    let mut columns: Vec<String> = Vec::new();
    let mut rows = Vec::new();
    for item in items.iter().take(SHOWN) {
        let attributes = store::attributes(&item.item);
        if columns.is_empty() {
            columns = item.item.key.iter().map(|(name, _)| name.clone()).chain(item.item.attributes.keys().cloned()).collect();
        }
        rows.push(columns.iter().map(|c| text(attributes.get(c.as_str()).copied())).collect());
    }
    Ok(Table { name: name.to_owned(), items: items.len(), columns, rows })
}
