//! Names to indexes, texts to expressions: the graph of a manifest, and where each step runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field as ArrowField, Schema, SchemaRef, TimeUnit};
use leat_crds::job::JobDocument;
use leat_crds::problem::{Problem, suggest};
use leat_crds::spec::{FilesFormat, RecordFormat, SchemaFormat, Source, Step, StreamEnd, WrongShard};
use leat_crds::values::Duration;

use crate::definition::{self, Field, Kind};
use crate::program::{
    Csv, Decode, Encoding, EventTimeSpec, From, Input, KeyedProgram, Node, Op, Port, Program, Side, SourceProgram, Start,
};
use crate::sql::{Planner, SqlError, type_name};

/// Files of a prefix that are read at once, unless the manifest says how many.
const LANES: u64 = 8;

/// Type of the columns that hold a time.
pub(super) const TIMESTAMP: DataType = DataType::Timestamp(TimeUnit::Microsecond, None);

/// Where rows are.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Place {
    /// In the tasks of these sources; the port of each.
    Sources(BTreeMap<usize, From>),
    /// In keyed tasks.
    Keyed(From),
}

/// What is known of a source's or step's output.
#[derive(Debug, Clone)]
pub(super) struct Output {
    pub schema: SchemaRef,
    pub place: Place,
    /// Rows have an event time.
    pub timed: bool,
    /// The column of the partition key is still what the producer wrote.
    pub partition_column: Option<String>,
    /// The column that holds the rows' time: that of the event, or the start of the window.
    pub time_column: Option<String>,
    /// Rows are results of windows.
    pub key: Option<Key>,
}

/// What identifies a result, and what becomes of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Key {
    /// Each of these sets of columns tells the results apart.
    pub columns: Vec<Vec<String>>,
    /// Later rows replace earlier ones.
    pub upsert: bool,
    /// The column that orders results of one item: the end of their window.
    pub version: &'static str,
}

pub(super) struct Lowering<'a> {
    pub document: &'a JobDocument,
    pub planner: Planner,
    pub problems: Vec<Problem>,
    pub program: Program,
    pub outputs: BTreeMap<String, Output>,
    /// Names of columns that some expression or sink uses.
    pub used: BTreeSet<String>,
    /// Columns that a join gave another name: the new one and the old one.
    pub renamed: Vec<(String, String)>,
}

impl<'a> Lowering<'a> {
    /// Nothing lowered yet.
    pub fn new(document: &'a JobDocument) -> Self {
        let program = Program {
            document: document.clone(),
            sources: Vec::new(),
            keyed: KeyedProgram::default(),
            files: Vec::new(),
            tables: Vec::new(),
            streams: Vec::new(),
        };
        Self {
            document,
            planner: Planner::default(),
            problems: Vec::new(),
            program,
            outputs: BTreeMap::new(),
            used: BTreeSet::new(),
            renamed: Vec::new(),
        }
    }

    pub fn problem(&mut self, path: &str, message: impl Into<String>, hint: impl Into<String>) {
        self.problems.push(Problem::new(path, message, hint));
    }

    pub fn sql(&mut self, path: &str, error: SqlError) {
        self.problem(path, error.message, error.hint);
    }

    pub fn source(&mut self, index: usize, source: &Source, used: Option<&BTreeSet<String>>) {
        let path = format!("spec.sources[{index}]");
        let spec = &self.document.spec;
        if let Some(stream) = source.stream.as_ref().filter(|s| !spec.streams.iter().any(|d| d.name == **s)) {
            let hint = suggest(stream, spec.streams.iter().map(|s| s.name.as_str()));
            self.problem(&format!("{path}.stream"), format!("there is no stream `{stream}`"), hint);
        }
        let Some((mut fields, encoding)) = self.fields(&path, source) else { return };
        let in_use = |f: &&mut Field| matches!(f.kind, Kind::Scalar(_)) && used.is_none_or(|used| used.contains(&f.name));
        for (column, field) in fields.iter_mut().filter(in_use).enumerate() {
            field.column = Some(column);
        }
        let columns = fields.iter().filter(|f| f.column.is_some()).filter_map(|f| match &f.kind {
            Kind::Scalar(data_type) => Some(ArrowField::new(&f.name, data_type.clone(), true)),
            _ => None,
        });
        let schema: SchemaRef = Arc::new(Schema::new(columns.collect::<Vec<_>>()));
        let partition_column = source.partitioned_by.first().cloned();
        let partitioned_by = partition_column.as_ref().and_then(|name| self.column(&format!("{path}.partitionedBy[0]"), name, &schema));
        if let Some(column) = partitioned_by
            && !matches!(schema.field(column).data_type(), DataType::Utf8 | DataType::Int64)
        {
            let name = type_name(schema.field(column).data_type());
            let message = format!("a partition key is a text, and `{}` is {name}", schema.field(column).name());
            self.problem(&format!("{path}.partitionedBy[0]"), message, "declare the field as a text or an integer");
        }
        let event_time = source.event_time.as_ref().and_then(|time| {
            let column = self.column(&format!("{path}.eventTime.field"), &time.field, &schema)?;
            match schema.field(column).data_type() {
                DataType::Int64 | DataType::Date32 | DataType::Timestamp(..) => {}
                other => {
                    let message = format!("`{}` is {}, not a time", time.field, type_name(other));
                    self.problem(
                        &format!("{path}.eventTime.field"),
                        message,
                        "a timestamp (in JSON Schema: format date-time), a date, or an integer of epoch milliseconds",
                    );
                    return None;
                }
            }
            Some(EventTimeSpec {
                column,
                max_out_of_orderness: time.max_out_of_orderness.unwrap_or(Duration::from_millis(0)),
                idle_timeout: time.idle_timeout,
                max_ahead: time.max_ahead.unwrap_or(Duration::from_millis(86_400_000)),
            })
        });
        let input = match (&source.stream, &source.files) {
            (Some(stream), _) => Input::Stream(stream.clone()),
            (None, files) => Input::Files {
                path: files.as_ref().map(|f| f.path.clone()).unwrap_or_default(),
                lanes: files.as_ref().and_then(|f| f.parallelism).map_or(LANES, u64::from),
                raw: files.as_ref().and_then(|f| f.format) == Some(FilesFormat::Raw),
            },
        };
        let at = self.program.sources.len();
        let timed = event_time.is_some() || source.event_time.is_some();
        let decode = Decode { encoding, fields, schema: Arc::clone(&schema) };
        self.program.sources.push(SourceProgram {
            name: source.name.clone(),
            input,
            decode,
            partitioned_by,
            start: start_of(source),
            drop_strays: source.kpl.as_ref().and_then(|k| k.wrong_shard) == Some(WrongShard::Drop),
            event_time,
            nodes: Vec::new(),
        });
        let place = Place::Sources(BTreeMap::from([(at, From::Source)]));
        let time_column = source.event_time.as_ref().map(|t| t.field.clone());
        self.outputs.insert(source.name.clone(), Output { schema, place, timed, partition_column, time_column, key: None });
    }

    fn fields(&mut self, path: &str, source: &Source) -> Option<(Vec<Field>, Encoding)> {
        let format = source.record_format().unwrap_or(RecordFormat::Json);
        let csv = source.csv.clone().unwrap_or_default();
        let delimiter = csv.delimiter.as_deref().and_then(|d| d.bytes().next()).unwrap_or(b',');
        let encoding = match format {
            RecordFormat::Csv => Encoding::Csv(Csv { header: csv.header, delimiter }),
            RecordFormat::Json | RecordFormat::JsonLines => Encoding::Json,
        };
        let fields = self.declared(path, source)?;
        if let Encoding::Csv(csv) = &encoding {
            self.fields_of_csv(path, &fields, csv);
        }
        Some((fields, encoding))
    }

    /// CSV has no objects, and every declared field is in its header.
    fn fields_of_csv(&mut self, path: &str, fields: &[Field], csv: &Csv) {
        for field in fields {
            if matches!(field.kind, Kind::Object | Kind::Array) {
                self.problem(
                    &format!("{path}.format"),
                    format!("`{}` is an object or a list, which CSV has not", field.name),
                    "declare a text",
                );
            }
            if !csv.header.is_empty() && !csv.header.contains(&field.name) {
                let hint = suggest(&field.name, csv.header.iter().map(String::as_str));
                self.problem(&format!("{path}.csv.header"), format!("`{}` is declared and not in the header", field.name), hint);
            }
        }
    }

    fn declared(&mut self, path: &str, source: &Source) -> Option<Vec<Field>> {
        let Some(name) = &source.schema else {
            let mut fields = Vec::new();
            for (name, text) in &source.columns {
                match self.planner.column_type(text) {
                    Ok(data_type) => fields.push(Field {
                        name: name.clone(),
                        kind: Kind::Scalar(data_type),
                        required: false,
                        nullable: true,
                        bounds: definition::Bounds::default(),
                        column: None,
                    }),
                    Err(message) => self.problem(&format!("{path}.columns.{name}"), message, ""),
                }
            }
            return Some(fields);
        };
        let schemas = &self.document.spec.schemas;
        let Some(i) = schemas.iter().position(|s| s.name == *name) else {
            let hint = suggest(name, schemas.iter().map(|s| s.name.as_str()));
            self.problem(&format!("{path}.schema"), format!("there is no schema `{name}`"), hint);
            return None;
        };
        if schemas[i].format != SchemaFormat::JSON {
            self.problem(&format!("spec.schemas[{i}].format"), format!("{:?} does not work yet", schemas[i].format), "JSON does");
            return None;
        }
        let text = self.document.definitions.get(name)?;
        match definition::from_json_schema(text, &format!("spec.schemas[{i}]"), &self.planner) {
            Ok(fields) => Some(fields),
            Err(problems) => {
                self.problems.extend(problems);
                None
            }
        }
    }

    /// Steps so that each comes after what it reads; those in a cycle are reported and left out.
    pub fn order_of_steps(&mut self) -> Vec<usize> {
        let steps = &self.document.spec.steps;
        let index: BTreeMap<&str, usize> = steps.iter().enumerate().map(|(i, s)| (s.name.as_str(), i)).collect();
        let named = |step: &'a Step| step.from.iter().chain(step.join.as_ref().map(|j| &j.with));
        let reads = |step: &'a Step| named(step).filter_map(|f| index.get(base(f)).copied()).collect::<BTreeSet<_>>();
        let mut left: BTreeMap<usize, BTreeSet<usize>> = steps.iter().enumerate().map(|(i, s)| (i, reads(s))).collect();
        let mut order = Vec::new();
        while let Some(next) = left.iter().find(|(_, needs)| needs.iter().all(|n| !left.contains_key(n))).map(|(i, _)| *i) {
            left.remove(&next);
            order.push(next);
        }
        for i in left.keys() {
            let around: Vec<&str> = left.keys().map(|i| steps[*i].name.as_str()).collect();
            let problem = Problem::new(
                format!("spec.steps[{i}].from"),
                format!("`{}` reads, in the end, itself", steps[*i].name),
                format!("break the cycle among {}", around.join(", ")),
            );
            self.problems.push(problem);
        }
        order
    }

    /// What `from` names: outputs that can be united, and their ports.
    pub fn inputs(&mut self, path: &str, from: &[String]) -> Option<(Output, Vec<(Output, Side)>)> {
        self.inputs_at(&|i| format!("{path}.from[{i}]"), from)
    }

    /// What is named at these paths.
    pub fn inputs_at(&mut self, path: &dyn Fn(usize) -> String, from: &[String]) -> Option<(Output, Vec<(Output, Side)>)> {
        let mut found = Vec::new();
        let mut complete = true;
        for (i, name) in from.iter().enumerate() {
            let side = match name.split_once('.') {
                None => Side::Passed,
                Some((_, "rejected")) => Side::Rejected,
                Some((_, "late")) => Side::Late,
                Some((_, other)) => {
                    self.problem(&path(i), format!("`.{other}` is no output"), "NAME, NAME.rejected and NAME.late are");
                    complete = false;
                    continue;
                }
            };
            match self.outputs.get(base(name)) {
                Some(output) => found.push((output.clone(), side)),
                None => {
                    complete = false;
                    let known: Vec<&str> = self
                        .document
                        .spec
                        .sources
                        .iter()
                        .map(|s| s.name.as_str())
                        .chain(self.document.spec.steps.iter().map(|s| s.name.as_str()))
                        .collect();
                    if !known.contains(&base(name)) {
                        let hint = suggest(base(name), known);
                        self.problem(&path(i), format!("there is no source or step `{name}`"), hint);
                    }
                }
            }
        }
        let (first, _) = found.first()?;
        let mut union = first.clone();
        // Whatever was refused has the same shape.
        for (i, (output, _)) in found.iter().enumerate().skip(1).filter(|(_, (_, side))| *side == Side::Passed) {
            if output.schema != union.schema {
                self.problem(&path(i), format!("`{}` has other columns than `{}`", from[i], from[0]), "a union wants the same columns");
                complete = false;
            }
            union.timed &= output.timed;
            if output.partition_column != union.partition_column {
                union.partition_column = None;
            }
            if output.time_column != union.time_column {
                union.time_column = None;
            }
            if output.key.is_some() || union.key.is_some() {
                self.problem(&path(i), "a union of aggregates does not work yet", "one sink for each");
                complete = false;
            }
        }
        complete.then_some((union, found))
    }

    /// Adds `op` wherever its inputs are; answers where it is now.
    pub fn place(&mut self, path: &str, name: &str, inputs: &[(Output, Side)], schema: &SchemaRef, op: &dyn Fn() -> Op) -> Option<Place> {
        let mut by_source: BTreeMap<usize, Vec<Port>> = BTreeMap::new();
        let mut keyed = Vec::new();
        for (output, side) in inputs {
            match &output.place {
                // What a keyed step refuses, it refuses where its rows come from.
                Place::Keyed(From::Edge(edge)) if *side != Side::Passed => {
                    for (source, node) in self.feeders(*edge) {
                        by_source.entry(source).or_default().push(Port { from: From::Node(node), side: *side });
                    }
                }
                Place::Sources(ports) => {
                    ports.iter().for_each(|(s, from)| by_source.entry(*s).or_default().push(Port { from: *from, side: *side }))
                }
                Place::Keyed(from) => keyed.push(Port { from: *from, side: *side }),
            }
        }
        if !keyed.is_empty() && !by_source.is_empty() {
            self.problem(&format!("{path}.from"), "a union of events with results of a keyed step does not work yet", "one step for each");
            return None;
        }
        let node =
            |inputs| Node { name: name.to_owned(), inputs, op: op(), schema: Arc::clone(schema), rejects_read: false, late_read: false };
        if keyed.is_empty() {
            let add = |(source, ports): (usize, Vec<Port>)| {
                let nodes = &mut self.program.sources[source].nodes;
                nodes.push(node(ports));
                (source, From::Node(nodes.len() - 1))
            };
            Some(Place::Sources(by_source.into_iter().map(add).collect()))
        } else {
            self.program.keyed.nodes.push(node(keyed));
            Some(Place::Keyed(From::Node(self.program.keyed.nodes.len() - 1)))
        }
    }

    /// The nodes of sources that send rows over an edge, or over either edge of a join.
    fn feeders(&self, edge: usize) -> Vec<(usize, usize)> {
        let join = self.program.keyed.joins.iter().find(|join| join.edges[0] == edge);
        let edges = join.map_or([edge; 2], |join| join.edges);
        let nodes = self
            .program
            .sources
            .iter()
            .enumerate()
            .flat_map(|(s, source)| source.nodes.iter().enumerate().map(move |(n, node)| (s, n, node)));
        let feeds = |node: &Node| matches!(&node.op, Op::Partial(to) | Op::Exchange(to) if edges.contains(to));
        nodes.filter(|(_, _, node)| feeds(node)).map(|(source, index, _)| (source, index)).collect()
    }

    /// Rejected and late records have a shape of their own, which files take.
    pub fn only_passed(&mut self, path: &str, inputs: &[(Output, Side)]) -> bool {
        let fits = inputs.iter().all(|(_, side)| *side == Side::Passed);
        if !fits {
            self.problem(&format!("{path}.from"), "rejected and late records go to files only", "an `s3` sink with `format: JsonLines`");
        }
        fits
    }

    pub fn column(&mut self, path: &str, name: &str, schema: &Schema) -> Option<usize> {
        self.used.insert(name.to_owned());
        match schema.index_of(name) {
            Ok(index) => Some(index),
            Err(_) => {
                let hint = suggest(name, schema.fields().iter().map(|f| f.name().as_str()));
                self.problem(path, format!("`{name}` is not a column of what comes in"), hint);
                None
            }
        }
    }

    pub fn columns(&mut self, path: &str, names: &[String], schema: &Schema) -> Option<Vec<usize>> {
        let found: Vec<Option<usize>> = names.iter().enumerate().map(|(i, n)| self.column(&format!("{path}[{i}]"), n, schema)).collect();
        found.into_iter().collect()
    }

    pub fn step(&mut self, path: &str, step: &Step) {
        let Some((input, inputs)) = self.inputs(path, &step.from) else { return };
        if inputs.iter().any(|(_, side)| *side != Side::Passed) {
            self.problem(&format!("{path}.from"), "steps that read `.rejected` or `.late` do not work yet", "a sink can read them");
            return;
        }
        let output = if let Some(validate) = &step.validate {
            let mut rules = Vec::new();
            for (name, text) in &validate.rules {
                match self.planner.condition(text, &input.schema) {
                    Ok(rule) => {
                        self.used.extend(rule.columns);
                        rules.push((name.clone(), rule.expr));
                    }
                    Err(error) => self.sql(&format!("{path}.validate.rules.{name}"), error),
                }
            }
            self.place(path, &step.name, &inputs, &input.schema, &|| Op::Validate(rules.clone())).map(|place| Output { place, ..input })
        } else if let Some(text) = &step.filter {
            match self.planner.condition(text, &input.schema) {
                Ok(condition) => {
                    self.used.extend(condition.columns);
                    self.place(path, &step.name, &inputs, &input.schema, &|| Op::Filter(Arc::clone(&condition.expr)))
                        .map(|place| Output { place, ..input })
                }
                Err(error) => {
                    self.sql(&format!("{path}.filter"), error);
                    None
                }
            }
        } else if let Some(columns) = step.select.as_ref().or(step.derive.as_ref()) {
            let verb = if step.select.is_some() { "select" } else { "derive" };
            self.project(path, step, verb, columns, input, &inputs)
        } else if step.deduplicate.is_some() {
            self.deduplicate(path, step, input, &inputs)
        } else if step.aggregate.is_some() {
            self.aggregate(path, step, input, &inputs)
        } else if step.sessionize.is_some() {
            self.sessionize(path, step, input, &inputs)
        } else if step.join.is_some() {
            self.join(path, step, input, &inputs)
        } else {
            None
        };
        if let Some(output) = output {
            self.outputs.insert(step.name.clone(), output);
        }
    }

    fn project(
        &mut self,
        path: &str,
        step: &Step,
        verb: &str,
        columns: &BTreeMap<String, String>,
        input: Output,
        inputs: &[(Output, Side)],
    ) -> Option<Output> {
        let mut fields: Vec<(ArrowField, Option<crate::program::Expr>)> = Vec::new();
        let mut new = Vec::new();
        for (name, text) in columns {
            match self.planner.scalar(text, &input.schema) {
                Ok(scalar) => {
                    self.used.extend(scalar.columns);
                    new.push((ArrowField::new(name, scalar.data_type, true), scalar.expr));
                }
                Err(error) => self.sql(&format!("{path}.{verb}.{name}"), error),
            }
        }
        if verb == "derive" {
            for field in input.schema.fields().iter().filter(|f| !columns.contains_key(f.name())) {
                let same = self.planner.scalar(&format!("\"{}\"", field.name()), &input.schema).ok()?;
                fields.push((field.as_ref().clone(), Some(same.expr)));
            }
        }
        fields.extend(new.into_iter().map(|(f, e)| (f, Some(e))));
        let schema: SchemaRef = Arc::new(Schema::new(fields.iter().map(|(f, _)| f.clone()).collect::<Vec<_>>()));
        let exprs: Vec<_> = fields.into_iter().filter_map(|(_, e)| e).collect();
        let place = self.place(path, &step.name, inputs, &schema, &|| Op::Project(exprs.clone()))?;
        let kept = |name: &String| (verb == "derive") != columns.contains_key(name);
        let partition_column = input.partition_column.filter(|c| kept(c) && verb == "derive");
        let same = |c: &String| columns.get(c).map_or(verb == "derive", |text| text.trim() == c);
        let time_column = input.time_column.filter(same);
        // A column that is computed anew does not tell results apart any more.
        let key = input.key.map(|key| Key { columns: key.columns.into_iter().filter(|set| set.iter().all(same)).collect(), ..key });
        Some(Output { schema, place, partition_column, time_column, key, ..input })
    }
}

/// A sink's name in the ledger and in state: a step may have the same name.
pub(super) fn label(sink: &str) -> String {
    format!("{sink} (sink)")
}

/// Where the lineages of a source are begun.
fn start_of(source: &Source) -> Start {
    let Some(start) = &source.start else { return Start::Earliest };
    match (&start.kcl_table, &start.group, &start.positions, start.time) {
        (Some(table), ..) => Start::Leases(table.clone()),
        (_, Some(group), ..) => Start::Group(group.clone()),
        (.., Some(positions), _) => Start::Positions(positions.iter().map(|(shard, at)| (shard.clone(), at.to_string())).collect()),
        (.., Some(time)) => Start::Since(time.millis()),
        _ if start.at == Some(StreamEnd::Latest) => Start::Latest,
        _ => Start::Earliest,
    }
}

/// The name before `.rejected` or `.late`.
pub(super) fn base(name: &str) -> &str {
    name.split_once('.').map_or(name, |(base, _)| base)
}
