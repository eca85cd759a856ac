//! Sinks, and the dead letters that take what nothing else reads.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field as ArrowField, Schema, SchemaRef};
use leat_crds::problem::suggest;
use leat_crds::spec::{FileFormat, FilePartition, S3Sink, Sink, StreamSink, StreamingPipelineSpec};
use leat_crds::values::{Duration, Size};

use super::lower::{Lowering, Place, TIMESTAMP, base, label};
use crate::program::{FilesSpec, From, Node, Op, Port, RECORD_ID, Side, StreamSpec};

/// Name of the sink that takes what nothing else reads.
pub const DEAD_LETTERS: &str = "dead letters";

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

/// A sink of files.
pub(super) fn files(l: &mut Lowering<'_>, path: &str, sink: &Sink, s3: &S3Sink) {
    let Some((input, inputs)) = l.inputs(path, &sink.from) else { return };
    let refused = inputs.iter().filter(|(_, side)| *side != Side::Passed).count();
    for (i, name) in sink.from.iter().enumerate().filter(|(_, name)| name.ends_with(".late")) {
        let step = base(name);
        let nodes = l.program.sources.iter().flat_map(|s| &s.nodes).filter(|n| n.name == step);
        if !nodes.into_iter().any(|n| sides(&n.op).1) {
            l.problem(
                &format!("{path}.from[{i}]"),
                format!("nothing is late at `{step}`"),
                "windows, sessions, joins and deduplication have late rows",
            );
        }
    }
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
    if refused == 0 && input.key.as_ref().is_some_and(|key| key.upsert) {
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
    let time_column = input.time_column.as_ref().and_then(|name| input.schema.index_of(name).ok());
    if matches!(input.place, Place::Keyed(_)) && !s3.partition_by.is_empty() && time_column.is_none() {
        let hint = "keep `window_start`, or the source's event time, as it is";
        l.problem(&format!("{path}.s3.partitionBy"), "the rows lost the column of their time", hint);
    }
    let roll = s3.roll.clone().unwrap_or_default();
    let index = l.program.files.len();
    l.program.files.push(FilesSpec {
        name: label(&sink.name),
        location: place(&l.document.spec, &s3.location),
        format: s3.format,
        partition: s3.partition_by.first().copied(),
        time_column,
        roll_size: roll.size.unwrap_or(Size::from_bytes(128 << 20)),
        roll_interval: roll.interval.unwrap_or(Duration::from_millis(300_000)),
        schema: Arc::clone(&schema),
    });
    l.place(path, &label(&sink.name), &inputs, &schema, &|| if raw { Op::RawFiles(index) } else { Op::Files(index) });
}

/// A sink into a stream.
pub(super) fn stream(l: &mut Lowering<'_>, path: &str, sink: &Sink, spec: &StreamSink) {
    let Some((input, inputs)) = l.inputs(path, &sink.from) else { return };
    if !l.only_passed(path, &inputs) {
        return;
    }
    let path = format!("{path}.stream");
    let declared = &l.document.spec.streams;
    if !declared.iter().any(|s| s.name == spec.name) {
        let hint = suggest(&spec.name, declared.iter().map(|s| s.name.as_str()));
        l.problem(&format!("{path}.name"), format!("there is no stream `{}`", spec.name), hint);
    }
    let topic = declared.iter().any(|s| s.name == spec.name && s.kafka.is_some());
    if l.document.spec.sources.iter().any(|s| s.stream.as_ref() == Some(&spec.name)) {
        let message = format!("this pipeline reads `{}`: a pipeline that reads what it writes does not work yet", spec.name);
        l.problem(&format!("{path}.name"), message, "another pipeline can read it");
    }
    if input.key.as_ref().is_some_and(|key| key.upsert) {
        let hint = "leave out `emit: {mode: OnUpdate}`, or write to a table";
        l.problem(&format!("{path}.from"), "a stream only appends, and this step corrects its rows", hint);
    }
    if !topic && input.schema.column_with_name(RECORD_ID).is_some() {
        let hint = "give the column another name in a `select`, or leave it out";
        l.problem(&path, format!("`{RECORD_ID}` is the id that the sink gives each record"), hint);
    }
    l.used.extend(input.schema.fields().iter().map(|f| f.name().clone()));
    let partition_by = match &spec.partition_by {
        None => None,
        Some(name) => match l.column(&format!("{path}.partitionBy"), name, &input.schema) {
            None => return,
            column => column,
        },
    };
    let index = l.program.streams.len();
    l.program.streams.push(StreamSpec { name: label(&sink.name), sink: sink.name.clone(), stream: spec.name.clone(), topic, partition_by });
    l.place(&path, &label(&sink.name), &inputs, &input.schema, &|| Op::Stream(index));
}

/// One sink for everything that is rejected or late and that nobody reads.
pub(super) fn dead_letters(l: &mut Lowering<'_>) {
    let addressed = |name: &str, side: &str| {
        // The second input of a join is called after its step.
        let full = format!("{}.{side}", base(name));
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
        time_column: None,
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
        Op::Deduplicate(_) => (false, true),
        Op::Exchange(_) | Op::Partial(_) => (true, true),
        Op::Table(_) | Op::Stream(_) => (true, false),
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
