//! Sinks, and the dead letters that take what nothing else reads.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field as ArrowField, Schema, SchemaRef};
use leat_crds::problem::suggest;
use leat_crds::spec::{FileFormat, FilePartition, KeyType, S3Sink, Sink, StreamingPipelineSpec};
use leat_crds::values::{Duration, Size};

use super::lower::{Lowering, Place, TIMESTAMP};
use crate::program::{FilesSpec, From, Node, Op, Port, Side, TableSpec};

/// Name of the sink that takes what nothing else reads.
pub const DEAD_LETTERS: &str = "dead letters";

/// A sink's name in the ledger and in state: a step may have the same name.
fn label(sink: &str) -> String {
    format!("{sink} (sink)")
}

/// What a rejected or late record looks like in a file: where it stood, who refused it and why, and its bytes, as text
/// when they are UTF-8.
pub fn dead_letter_schema() -> SchemaRef {
    let text = |name: &str, nullable| ArrowField::new(name, DataType::Utf8, nullable);
    Arc::new(Schema::new(vec![
        text("step", false),
        text("reason", false),
        text("detail", true),
        text("lineage", false),
        text("position", false),
        text("partition_key", true),
        ArrowField::new("arrival", TIMESTAMP, true),
        text("schema", true),
        text("record", true),
        text("record_base64", true),
    ]))
}

pub(super) fn lower(l: &mut Lowering<'_>) {
    let document = l.document;
    for (i, sink) in document.spec.sinks.iter().enumerate() {
        let path = format!("spec.sinks[{i}]");
        if let Some(s3) = &sink.s3 {
            files(l, &path, sink, s3);
        } else if sink.dynamodb.is_some() {
            table(l, &path, sink);
        }
    }
    dead_letters(l);
}

fn files(l: &mut Lowering<'_>, path: &str, sink: &Sink, s3: &S3Sink) {
    let Some((input, inputs)) = l.inputs(path, &sink.from) else { return };
    let refused = inputs.iter().filter(|(_, side)| *side != Side::Passed).count();
    let raw = s3.format == FileFormat::Raw;
    if refused > 0 && (refused < inputs.len() || s3.format != FileFormat::JsonLines) {
        l.problem(
            &format!("{path}.s3.format"),
            "rejected and late records go to JsonLines, and not together with others",
            "a sink of their own with `format: JsonLines`",
        );
        return;
    }
    if raw && !inputs.iter().all(|(o, _)| matches!(&o.place, Place::Sources(p) if p.values().all(|f| *f == From::Source))) {
        l.problem(
            &format!("{path}.from"),
            "Raw keeps records as they came, so it reads sources only",
            "take Parquet or JsonLines for the output of steps",
        );
        return;
    }
    if refused == 0 && input.key.as_ref().is_some_and(|(_, upsert)| *upsert) {
        l.problem(
            &format!("{path}.from"),
            "files only append, and this step corrects its rows",
            "leave out `emit: {mode: OnUpdate}`, or write to a table",
        );
        return;
    }
    let schema = if refused > 0 { dead_letter_schema() } else { Arc::clone(&input.schema) };
    if refused == 0 && !raw {
        l.used.extend(schema.fields().iter().map(|f| f.name().clone()));
    }
    if !input.timed && refused == 0 && !raw && !s3.partition_by.is_empty() {
        l.problem(
            &format!("{path}.s3.partitionBy"),
            "folders by event time need one, and the source has none",
            "give the source an `eventTime`",
        );
    }
    if matches!(input.place, Place::Keyed(_)) && !s3.partition_by.is_empty() {
        l.problem(&format!("{path}.s3.partitionBy"), "folders for the results of keyed steps do not work yet", "leave `partitionBy` out");
    }
    let roll = s3.roll.clone().unwrap_or_default();
    let index = l.program.files.len();
    l.program.files.push(FilesSpec {
        name: label(&sink.name),
        location: place(&l.document.spec, &s3.location),
        format: s3.format,
        partition: s3.partition_by.first().copied(),
        roll_size: roll.size.unwrap_or(Size::from_bytes(128 << 20)),
        roll_interval: roll.interval.unwrap_or(Duration::from_millis(300_000)),
        schema: Arc::clone(&schema),
    });
    l.place(path, &label(&sink.name), &inputs, &schema, &|| if raw { Op::RawFiles(index) } else { Op::Files(index) });
}

fn table(l: &mut Lowering<'_>, path: &str, sink: &Sink) {
    let Some(spec) = &sink.dynamodb else { return };
    let Some((input, inputs)) = l.inputs(path, &sink.from) else { return };
    let path = format!("{path}.dynamodb");
    let tables = &l.document.spec.tables;
    let Some(table) = tables.iter().find(|t| t.name == spec.table).and_then(|t| t.dynamodb.as_ref()) else {
        let hint = suggest(&spec.table, tables.iter().map(|t| t.name.as_str()));
        l.problem(&format!("{path}.table"), format!("there is no table `{}`", spec.table), hint);
        return;
    };
    let Some((key, _)) = &input.key else {
        l.problem(&path, "a table takes the rows of an aggregate; single events do not work yet", "aggregate them, or write files");
        return;
    };
    let mut attributes = Vec::new();
    let mut types = Vec::new();
    let mut sources: Vec<(String, Vec<String>)> = Vec::new();
    for field in input.schema.fields().iter().filter(|f| !spec.columns.contains_key(f.name())) {
        if let Ok(same) = l.planner.scalar(&format!("\"{}\"", field.name()), &input.schema) {
            attributes.push((field.name().clone(), same.expr));
            types.push(field.data_type().clone());
            sources.push((field.name().clone(), vec![field.name().clone()]));
        }
    }
    for (name, text) in &spec.columns {
        match l.planner.scalar(text, &input.schema) {
            Ok(scalar) => {
                attributes.push((name.clone(), scalar.expr));
                types.push(scalar.data_type);
                sources.push((name.clone(), scalar.columns.into_iter().collect()));
            }
            Err(error) => l.problem(&format!("{path}.columns.{name}"), error.message, error.hint),
        }
    }
    let mut find = |key: &leat_crds::spec::KeyAttribute| {
        let Some(index) = attributes.iter().position(|(name, _)| *name == key.name) else {
            let hint = suggest(&key.name, attributes.iter().map(|(name, _)| name.as_str()));
            l.problem(
                &format!("{path}.columns"),
                format!("the table's key `{}` is not an attribute of the item", key.name),
                format!("{hint}; or compute it under `columns`"),
            );
            return None;
        };
        let fits = match key.kind {
            KeyType::S => types[index] == DataType::Utf8,
            KeyType::N => matches!(types[index], DataType::Int64 | DataType::Decimal128(..)),
        };
        if !fits {
            l.problem(
                &format!("{path}.columns"),
                format!("the table's key `{}` is {:?}, the attribute is {}", key.name, key.kind, crate::sql::type_name(&types[index])),
                "cast it under `columns`",
            );
        }
        Some((key.name.clone(), index))
    };
    let partition_key = find(&table.partition_key);
    let sort_key = match &table.sort_key {
        Some(key) => find(key).map(Some),
        None => Some(None),
    };
    let (Some(partition_key), Some(sort_key)) = (partition_key, sort_key) else { return };
    let in_key: Vec<&String> = std::iter::once(&partition_key)
        .chain(&sort_key)
        .flat_map(|(name, _)| sources.iter().filter(move |(n, _)| n == name))
        .flat_map(|(_, from)| from)
        .collect();
    for column in key.iter().filter(|c| !in_key.contains(c)) {
        l.problem(
            &path,
            format!("rows differ in `{column}`, and the table's key does not contain it: they would overwrite each other"),
            "put it into the table's key under `columns`",
        );
    }
    if spec.time_to_live.is_some() && table.time_to_live.is_none() {
        l.problem(
            &format!("{path}.timeToLive"),
            format!("the table `{}` has no `timeToLive` attribute", spec.table),
            "name the attribute at the table",
        );
    }
    let Ok(version_column) = input.schema.index_of("window_end") else {
        l.problem(&path, "the rows lost their `window_end`", "keep it in `select`");
        return;
    };
    let index = l.program.tables.len();
    l.program.tables.push(TableSpec {
        name: label(&sink.name),
        table: spec.table.clone(),
        partition_key,
        sort_key,
        attributes,
        time_to_live: table.time_to_live.clone().zip(spec.time_to_live),
        version_column,
        schema: Arc::clone(&input.schema),
    });
    l.place(&path, &label(&sink.name), &inputs, &input.schema, &|| Op::Table(index));
}

/// One sink for everything that is rejected or late and that nobody reads.
fn dead_letters(l: &mut Lowering<'_>) {
    let addressed = |name: &str, side: &str| {
        let full = format!("{name}.{side}");
        l.document.spec.sinks.iter().any(|s| s.from.contains(&full))
    };
    let unread: Vec<Vec<Port>> = l
        .program
        .sources
        .iter_mut()
        .map(|source| {
            let mut ports = Vec::new();
            if !addressed(&source.name, "rejected") {
                ports.push(Port { from: From::Source, side: Side::Rejected });
            }
            for (i, node) in source.nodes.iter_mut().enumerate() {
                node.rejects_read = addressed(&node.name, "rejected");
                node.late_read = addressed(&node.name, "late");
                let (rejects, late) = sides(&node.op);
                let sides = [(rejects && !node.rejects_read, Side::Rejected), (late && !node.late_read, Side::Late)];
                ports.extend(sides.into_iter().filter(|(unread, _)| *unread).map(|(_, side)| Port { from: From::Node(i), side }));
            }
            ports
        })
        .collect();
    let location = l.document.spec.dead_letter.as_ref().map_or("dead-letters/", |d| d.s3.location.as_str());
    let location = place(&l.document.spec, location);
    let index = l.program.files.len();
    let schema = dead_letter_schema();
    l.program.files.push(FilesSpec {
        name: DEAD_LETTERS.to_owned(),
        location,
        format: FileFormat::JsonLines,
        partition: Some(FilePartition::Hour),
        roll_size: Size::from_bytes(64 << 20),
        roll_interval: Duration::from_millis(60_000),
        schema: Arc::clone(&schema),
    });
    for (source, inputs) in l.program.sources.iter_mut().zip(unread) {
        source.nodes.push(Node {
            name: DEAD_LETTERS.to_owned(),
            inputs,
            op: Op::Files(index),
            schema: Arc::clone(&schema),
            rejects_read: true,
            late_read: true,
        });
    }
    let keyed = &mut l.program.keyed;
    let inputs: Vec<Port> = keyed
        .nodes
        .iter()
        .enumerate()
        .filter(|(_, n)| sides(&n.op).0)
        .map(|(i, _)| Port { from: From::Node(i), side: Side::Rejected })
        .collect();
    if !inputs.is_empty() {
        keyed.nodes.push(Node { name: DEAD_LETTERS.to_owned(), inputs, op: Op::Files(index), schema, rejects_read: true, late_read: true });
    }
}

/// Whether a node can reject, and whether rows can be late at it.
fn sides(op: &Op) -> (bool, bool) {
    match op {
        Op::Validate(_) | Op::Filter(_) | Op::Project(_) => (true, false),
        Op::Deduplicate(_) | Op::Exchange(_) => (false, true),
        Op::Partial(_) => (true, true),
        Op::Table(_) => (true, false),
        Op::Files(_) | Op::RawFiles(_) => (false, false),
    }
}

/// A location without scheme is under the pipeline's storage, if it has one.
fn place(spec: &StreamingPipelineSpec, location: &str) -> String {
    match &spec.storage {
        Some(storage) if !location.contains("://") => format!("{}/{location}", storage.location.trim_end_matches('/')),
        _ => location.to_owned(),
    }
}
