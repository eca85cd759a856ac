//! What stands in on the laptop for what exists elsewhere: objects, rows of tables, secrets.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use leat_compile::program::{Input, Program};
use leat_crds::problem::suggest;
use leat_crds::spec::DynamoDbTable;
use leat_runtime::codecs::csv::Splitter;
use leat_runtime::codecs::framing::Framing;
use leat_runtime::connectors::local::files;
use leat_runtime::output::{Attribute, Item};
use serde_json::{Map, Value};

/// What the flags of the command line say.
#[derive(Debug, Clone, Default)]
pub struct StandIns {
    /// Declared table → file of its rows.
    pub tables: BTreeMap<String, PathBuf>,
    /// `s3://bucket/key` or prefix → file or folder.
    pub objects: BTreeMap<String, PathBuf>,
    /// `name/key` of a Secret → value.
    pub secrets: BTreeMap<String, String>,
}

impl StandIns {
    /// Everything that is missing, and every flag that nothing in the manifest asks for, at once.
    pub fn check(&self, program: &Program) -> Result<()> {
        let spec = &program.document.spec;
        let elsewhere: Vec<&str> = program.sources.iter().filter_map(|s| elsewhere(&s.input)).collect();
        let mut wrong: Vec<String> = elsewhere
            .iter()
            .filter(|uri| !self.objects.contains_key(**uri))
            .map(|uri| format!("{uri} is not on this machine: add --object {uri}=FILE, or a folder"))
            .collect();
        for uri in self.objects.keys().filter(|uri| !elsewhere.contains(&uri.as_str())) {
            wrong.push(format!("--object {uri}: no source reads it; {}", suggest(uri, elsewhere.iter().copied())));
        }
        let tables: Vec<&str> = spec.tables.iter().filter(|t| t.dynamodb.is_some()).map(|t| t.name.as_str()).collect();
        for name in self.tables.keys().filter(|name| !tables.contains(&name.as_str())) {
            wrong.push(format!("--table {name}: the manifest declares no such table; {}", suggest(name, tables.iter().copied())));
        }
        for secret in self.secrets.keys() {
            wrong.push(format!("--secret {secret}: nothing in the manifest refers to it"));
        }
        if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("\n       ")) }
    }

    /// Where the files of a source are.
    pub fn path(&self, base: &Path, path: &str) -> PathBuf {
        self.objects.get(path).cloned().unwrap_or_else(|| base.join(path))
    }

    /// The rows of a declared table, as items that everything that is written later replaces.
    pub fn items(&self, name: &str, table: &DynamoDbTable) -> Result<Vec<Item>> {
        let Some(path) = self.tables.get(name) else { return Ok(Vec::new()) };
        let at = |n: usize| format!("--table {name}: {} row {n}", path.display());
        rows(path)?.into_iter().enumerate().map(|(n, row)| item(row, table).with_context(|| at(n + 1))).collect()
    }
}

/// The address of files that are not on this machine.
fn elsewhere(input: &Input) -> Option<&str> {
    match input {
        Input::Files { path, .. } if path.contains("://") => Some(path),
        _ => None,
    }
}

/// The rows of a file: NDJSON, or CSV with a line of names.
fn rows(path: &Path) -> Result<Vec<Map<String, Value>>> {
    let unreadable = || format!("cannot read {}", path.display());
    let mut lines = files::open(path).with_context(unreadable)?;
    let csv = files::is_csv(path);
    let framing = if csv { Framing::Csv { header: true, delimiter: b',' } } else { Framing::Lines };
    let mut splitter = Splitter::new(b',');
    let (mut line, mut names, mut rows) = (Vec::new(), Vec::new(), Vec::new());
    while framing.next(&mut *lines, &mut line).with_context(unreadable)? {
        let said = |why| anyhow::anyhow!("{}: {why}", path.display());
        if line.is_empty() {
        } else if !csv {
            rows.push(serde_json::from_slice(&line).with_context(|| format!("{} row {}", path.display(), rows.len() + 1))?);
        } else if names.is_empty() {
            names = splitter.names(&line).map_err(said)?;
        } else {
            let values = splitter.names(&line).map_err(said)?;
            if values.len() != names.len() {
                bail!("{} row {}: {} fields, the header names {}", path.display(), rows.len() + 1, values.len(), names.len());
            }
            let value = |v: String| if v.is_empty() { Value::Null } else { Value::String(v) };
            rows.push(names.iter().cloned().zip(values.into_iter().map(value)).collect());
        }
        line.clear();
    }
    Ok(rows)
}

fn item(row: Map<String, Value>, table: &DynamoDbTable) -> Result<Item> {
    let mut attributes: BTreeMap<String, Attribute> = BTreeMap::new();
    for (name, value) in row {
        let attribute = match value {
            Value::Null => Attribute::Null,
            Value::Bool(value) => Attribute::Bool(value),
            Value::Number(number) => Attribute::N(number.to_string()),
            Value::String(text) => Attribute::S(text),
            Value::Array(_) | Value::Object(_) => bail!("`{name}` is a list or an object, which a column has not"),
        };
        attributes.insert(name, attribute);
    }
    let keys = std::iter::once(&table.partition_key).chain(&table.sort_key);
    let mut key = Vec::new();
    for wanted in keys {
        match attributes.remove(&wanted.name) {
            Some(value @ (Attribute::S(_) | Attribute::N(_))) => key.push((wanted.name.clone(), value)),
            _ => bail!("the table's key `{}` is missing", wanted.name),
        }
    }
    Ok(Item { key, attributes, version: i64::MIN })
}
