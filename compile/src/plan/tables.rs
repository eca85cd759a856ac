//! Sinks into tables: the attributes of an item, its key, and what orders its versions.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field as ArrowField, Schema, SchemaRef};
use leat_crds::names;
use leat_crds::problem::suggest;
use leat_crds::spec::{DynamoDbSink, DynamoDbTable, KeyAttribute, KeyType, RedisSink, Sink};
use leat_crds::values::Duration;

use super::lower::{Key, Lowering, Output, Place, TIMESTAMP, label};
use crate::program::{EdgeKind, Expr, From, Op, RowsSpec, Side, TableKind, TableSpec, Then};
use crate::sql::type_name;

/// Column that is added to single events on their way to a table.
const EVENT_TIME: &str = "leat_event_time";
/// Attributes of an item for Redis that are its key and its field.
const KEY: &str = "leat_key";
const FIELD: &str = "leat_field";

/// An attribute of an item.
struct Attribute {
    name: String,
    expr: Expr,
    data_type: DataType,
    /// Columns that it is computed from.
    columns: Vec<String>,
}

/// What an item is made of.
struct Shape {
    attributes: Vec<Attribute>,
    partition_key: (String, usize),
    sort_key: Option<(String, usize)>,
}

impl Shape {
    /// Indexes of the attributes that make the key.
    fn key(&self) -> Vec<usize> {
        std::iter::once(&self.partition_key).chain(&self.sort_key).map(|(_, i)| *i).collect()
    }
}

/// A sink into a table.
pub(super) fn table(l: &mut Lowering<'_>, path: &str, sink: &Sink, spec: &DynamoDbSink) {
    let Some((input, inputs)) = l.inputs(path, &sink.from) else { return };
    if !l.only_passed(path, &inputs) {
        return;
    }
    let path = format!("{path}.dynamodb");
    let tables = &l.document.spec.tables;
    let Some(table) = tables.iter().find(|t| t.name == spec.table).and_then(|t| t.dynamodb.as_ref()) else {
        let hint = suggest(&spec.table, tables.iter().map(|t| t.name.as_str()));
        l.problem(&format!("{path}.table"), format!("there is no table `{}`", spec.table), hint);
        return;
    };
    if spec.time_to_live.is_some() && table.time_to_live.is_none() {
        l.problem(
            &format!("{path}.timeToLive"),
            format!("the table `{}` has no `timeToLive` attribute", spec.table),
            "name the attribute at the table",
        );
    }
    let Some(shape) = shape(l, &path, spec, table, &input.schema) else { return };
    let target = Target {
        table: spec.table.clone(),
        kind: TableKind::DynamoDb,
        time_to_live: table.time_to_live.clone().zip(spec.time_to_live),
        key: "put it into the table's key under `columns`",
    };
    items(l, &path, sink, target, shape, (input, inputs));
}

/// What items are written to.
struct Target {
    table: String,
    kind: TableKind,
    time_to_live: Option<(String, Duration)>,
    /// How a column comes into the key.
    key: &'static str,
}

/// The operator that makes items of rows.
fn items(l: &mut Lowering<'_>, path: &str, sink: &Sink, target: Target, shape: Shape, (input, inputs): (Output, Vec<(Output, Side)>)) {
    let made = match input.key.clone() {
        Some(key) => results(l, path, &key, &target, shape, input, inputs),
        None => events(l, path, sink, shape, input, &inputs),
    };
    let Some((shape, version_column, input, inputs)) = made else { return };
    let index = l.program.tables.len();
    l.program.tables.push(TableSpec {
        name: label(&sink.name),
        table: target.table,
        kind: target.kind,
        partition_key: shape.partition_key,
        sort_key: shape.sort_key,
        attributes: shape.attributes.into_iter().map(|a| (a.name, a.expr)).collect(),
        time_to_live: target.time_to_live,
        version_column,
        schema: Arc::clone(&input.schema),
    });
    l.place(path, &label(&sink.name), &inputs, &input.schema, &|| Op::Table(index));
}

/// A sink of values in Redis: items whose key is the text of the key, and that of the field.
pub(super) fn redis(l: &mut Lowering<'_>, path: &str, sink: &Sink, spec: &RedisSink) {
    let Some((input, inputs)) = l.inputs(path, &sink.from) else { return };
    if !l.only_passed(path, &inputs) {
        return;
    }
    let path = format!("{path}.redis");
    for reserved in [KEY, FIELD].iter().filter(|name| input.schema.column_with_name(name).is_some()) {
        l.problem(
            &format!("{path}.key"),
            format!("`{reserved}` is a name of the sink's own"),
            "give the column another name in a `select`",
        );
    }
    if let Some(value) = &spec.value
        && l.column(&format!("{path}.value"), value, &input.schema).is_none()
    {
        return;
    }
    let mut attributes = columns(l, &input.schema, |name| spec.value.as_ref().is_none_or(|value| value == name));
    let mut texts = |name: &str, member: &str, template: &str| {
        attributes.push(composed(l, &format!("{path}.{member}"), name, template, &input.schema)?);
        Some((name.to_owned(), attributes.len() - 1))
    };
    let partition_key = texts(KEY, "key", &spec.key);
    let sort_key = match &spec.field {
        Some(field) => texts(FIELD, "field", field).map(Some),
        None => Some(None),
    };
    let (Some(partition_key), Some(sort_key)) = (partition_key, sort_key) else { return };
    let target = Target {
        table: names::redis_table(&sink.name),
        kind: TableKind::Redis { plain: spec.value.is_some() },
        time_to_live: None,
        key: "put it into `key` or `field`, in braces",
    };
    items(l, &path, sink, target, Shape { attributes, partition_key, sort_key }, (input, inputs));
}

/// A text with columns in braces.
fn composed(l: &mut Lowering<'_>, path: &str, name: &str, template: &str, schema: &SchemaRef) -> Option<Attribute> {
    let mut parts: Vec<String> = Vec::new();
    let literal = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let mut rest = template;
    while let Some(at) = rest.find('{') {
        let (before, opened) = rest.split_at(at);
        if let Some(behind) = opened.strip_prefix("{{") {
            parts.push(literal(&format!("{before}{{")));
            rest = behind;
            continue;
        }
        let Some((column, behind)) = opened[1..].split_once('}') else {
            l.problem(path, format!("`{opened}` has no end"), "write `{column}`, or `{{` for a brace");
            return None;
        };
        let index = l.column(path, column, schema)?;
        let quoted = format!("\"{}\"", column.replace('"', "\"\""));
        parts.push(literal(before));
        parts.push(match schema.field(index).data_type() {
            DataType::Utf8 => quoted,
            DataType::Timestamp(..) => format!("to_char({quoted}, '%Y-%m-%dT%H:%M:%S%.fZ')"),
            _ => format!("CAST({quoted} AS TEXT)"),
        });
        rest = behind;
    }
    parts.push(literal(rest));
    match l.planner.scalar(&parts.join(" || "), schema) {
        Ok(scalar) => {
            let columns = scalar.columns.into_iter().collect();
            Some(Attribute { name: name.to_owned(), expr: scalar.expr, data_type: scalar.data_type, columns })
        }
        Err(error) => {
            l.problem(path, error.message, error.hint);
            None
        }
    }
}

/// What an item is made of: the row's columns, and those under `columns`.
fn shape(l: &mut Lowering<'_>, path: &str, spec: &DynamoDbSink, table: &DynamoDbTable, schema: &SchemaRef) -> Option<Shape> {
    let mut attributes = columns(l, schema, |name| !spec.columns.contains_key(name));
    for (name, text) in &spec.columns {
        match l.planner.scalar(text, schema) {
            Ok(scalar) => {
                let columns = scalar.columns.into_iter().collect();
                attributes.push(Attribute { name: name.clone(), expr: scalar.expr, data_type: scalar.data_type, columns });
            }
            Err(error) => l.problem(&format!("{path}.columns.{name}"), error.message, error.hint),
        }
    }
    let partition_key = key(l, path, &attributes, &table.partition_key);
    let sort_key = match &table.sort_key {
        Some(sort) => key(l, path, &attributes, sort).map(Some),
        None => Some(None),
    };
    Some(Shape { partition_key: partition_key?, sort_key: sort_key?, attributes })
}

/// Columns as they are.
fn columns(l: &mut Lowering<'_>, schema: &SchemaRef, wanted: impl Fn(&str) -> bool) -> Vec<Attribute> {
    let fields = schema.fields().iter().filter(|f| wanted(f.name()));
    let same = fields.filter_map(|field| {
        let scalar = l.planner.scalar(&format!("\"{}\"", field.name()), schema).ok()?;
        let name = field.name().clone();
        Some(Attribute { columns: vec![name.clone()], name, expr: scalar.expr, data_type: field.data_type().clone() })
    });
    same.collect()
}

fn key(l: &mut Lowering<'_>, path: &str, attributes: &[Attribute], key: &KeyAttribute) -> Option<(String, usize)> {
    let Some(index) = attributes.iter().position(|a| a.name == key.name) else {
        let hint = suggest(&key.name, attributes.iter().map(|a| a.name.as_str()));
        l.problem(
            &format!("{path}.columns"),
            format!("the table's key `{}` is not an attribute of the item", key.name),
            format!("{hint}; or compute it under `columns`"),
        );
        return None;
    };
    let data_type = &attributes[index].data_type;
    let fits = match key.kind {
        KeyType::S => *data_type == DataType::Utf8,
        KeyType::N => matches!(data_type, DataType::Int64 | DataType::Decimal128(..)),
    };
    if !fits {
        l.problem(
            &format!("{path}.columns"),
            format!("the table's key `{}` is {:?}, the attribute is {}", key.name, key.kind, type_name(data_type)),
            "cast it under `columns`",
        );
    }
    Some((key.name.clone(), index))
}

/// An item, the column of its version, and where its rows come from.
type Made = (Shape, usize, Output, Vec<(Output, Side)>);

/// Rows of an aggregate: one per key and window, which are the item's.
fn results(
    l: &mut Lowering<'_>,
    path: &str,
    key: &Key,
    target: &Target,
    shape: Shape,
    input: Output,
    inputs: Vec<(Output, Side)>,
) -> Option<Made> {
    let in_key: Vec<&String> = shape.key().into_iter().flat_map(|i| &shape.attributes[i].columns).collect();
    let lacks = |columns: &[String]| columns.iter().filter(|c| !in_key.contains(c)).cloned().collect::<Vec<_>>();
    if key.columns.is_empty() {
        l.problem(path, "the rows lost the columns that tell them apart", "keep those of the group and the window's start as they are");
    }
    // Of several sets that tell rows apart, the one that is nearest.
    for column in key.columns.iter().map(|columns| lacks(columns)).min_by_key(Vec::len).unwrap_or_default() {
        l.problem(path, format!("rows differ in `{column}`, and the key does not contain it: they would overwrite each other"), target.key);
    }
    match input.schema.index_of(key.version) {
        Ok(version) => Some((shape, version, input, inputs)),
        Err(_) => {
            l.problem(path, format!("the rows lost their `{}`", key.version), "keep it in `select`");
            None
        }
    }
}

/// Single events: those of one item meet in one keyed task, and the newest by event time stays.
fn events(l: &mut Lowering<'_>, path: &str, sink: &Sink, shape: Shape, input: Output, inputs: &[(Output, Side)]) -> Option<Made> {
    if !input.timed {
        l.problem(
            path,
            "of several events of an item the newest stays, and the source has no event time",
            "give the source an `eventTime`",
        );
    }
    l.only_events(path, &input)?;
    l.used.extend(shape.attributes.iter().flat_map(|a| a.columns.iter().cloned()));
    let fields: Vec<ArrowField> = shape.attributes.iter().map(|a| ArrowField::new(&a.name, a.data_type.clone(), true)).collect();
    let schema: SchemaRef = Arc::new(Schema::new(fields.clone()));
    let exprs: Vec<Expr> = shape.attributes.iter().map(|a| Arc::clone(&a.expr)).collect();
    let place = l.place(path, &format!("{} (items)", sink.name), inputs, &schema, &|| Op::Project(exprs.clone()))?;
    let items = Output { schema: Arc::clone(&schema), place, ..input };
    let stamped: SchemaRef =
        Arc::new(Schema::new(fields.into_iter().chain([ArrowField::new(EVENT_TIME, TIMESTAMP, false)]).collect::<Vec<_>>()));
    let rows = EdgeKind::Rows(RowsSpec { schema: Arc::clone(&schema), key: shape.key(), then: Then::Pass });
    let edge = l.edge(path, &format!("{} (by key)", sink.name), &[(items.clone(), Side::Passed)], &schema, rows, &stamped)?;
    // The time is the last column, so that those before it keep their places whatever they are called.
    let attributes = columns(l, &schema, |_| true);
    let keyed = Output { schema: stamped, place: Place::Keyed(From::Edge(edge)), ..items };
    let version = attributes.len();
    Some((Shape { attributes, ..shape }, version, keyed.clone(), vec![(keyed, Side::Passed)]))
}
