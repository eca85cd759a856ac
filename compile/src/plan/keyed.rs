//! Verbs that need all rows of a key in one place: deduplication, windows, sessions, joins.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field as ArrowField, Schema, SchemaRef};
use leat_crds::spec::{EmitMode, JoinKind, JoinType, Step, Window};
use leat_crds::values::Duration;

use super::lower::{Key, Lowering, Output, Place, TIMESTAMP, base};
use crate::program::{
    Aggregate, DeduplicateSpec, Edge, EdgeKind, From, Function, JoinSide, JoinSpec, Meets, Op, RowsSpec, Shape, Side, Then, WindowSpec,
};
use crate::sql::type_name;

/// Most panes of a sliding window.
const PANES: i64 = 1_440;

/// What a windowed verb asks for, and where in the manifest.
struct Wanted<'a> {
    /// The window's own path.
    at: String,
    shape: Option<Shape>,
    /// Columns that the verb adds itself.
    own: &'a [ArrowField],
    allowed_lateness: Option<Duration>,
    on_update: Option<Duration>,
    by: (String, &'a [String]),
    calls: (String, &'a BTreeMap<String, String>),
}

impl Lowering<'_> {
    pub fn deduplicate(&mut self, path: &str, step: &Step, input: Output, inputs: &[(Output, Side)]) -> Option<Output> {
        let verb = step.deduplicate.as_ref()?;
        if !input.timed {
            self.problem(path, "`deduplicate` forgets by event time, and the source has none", "give the source an `eventTime`");
        }
        if input.key.is_some() {
            self.problem(path, "results of an aggregate are not deduplicated", "they have one row per key already");
        }
        let by = self.columns(&format!("{path}.deduplicate.by"), &verb.by, &input.schema);
        let keyed_with = if verb.keyed_with.is_empty() { &verb.by } else { &verb.keyed_with };
        let key = self.columns(&format!("{path}.deduplicate.keyedWith"), keyed_with, &input.schema);
        let spec = DeduplicateSpec { by: by?, key: key?, within: verb.within };
        self.only_events(path, &input)?;
        let Place::Sources(sources) = &input.place else { return None };
        let direct = sources.len() == 1 && input.partition_column.as_ref().is_some_and(|c| keyed_with == std::slice::from_ref(c));
        let place = if direct {
            self.place(path, &step.name, inputs, &input.schema, &|| Op::Deduplicate(spec.clone()))?
        } else {
            let kind = EdgeKind::Rows(RowsSpec { schema: Arc::clone(&input.schema), key: spec.key.clone(), then: Then::Deduplicate(spec) });
            Place::Keyed(From::Edge(self.edge(path, &step.name, inputs, &input.schema, kind, &input.schema)?))
        };
        Some(Output { place, ..input })
    }

    pub fn aggregate(&mut self, path: &str, step: &Step, input: Output, inputs: &[(Output, Side)]) -> Option<Output> {
        let calls = step.aggregate.as_ref()?;
        let window = step.window.clone().unwrap_or_default();
        let shape = self.shape(&format!("{path}.window"), &window);
        let own = ["window_start", "window_end"].map(|n| ArrowField::new(n, TIMESTAMP, false));
        let on_update = step.emit.as_ref().filter(|e| e.mode == EmitMode::OnUpdate).map(|e| e.every.unwrap_or(Duration::from_millis(1000)));
        if let (Some(Shape::Sliding { .. }), Some(_)) = (shape, on_update) {
            self.problem(
                &format!("{path}.emit"),
                "sliding windows that are corrected do not work yet",
                "let them leave once, at their end",
            );
        }
        let wanted = Wanted {
            at: format!("{path}.window"),
            shape,
            own: &own,
            allowed_lateness: window.allowed_lateness,
            on_update,
            by: (format!("{path}.groupBy"), &step.group_by),
            calls: (format!("{path}.aggregate"), calls),
        };
        let key = step.group_by.iter().cloned().chain(["window_start".to_owned()]).collect();
        self.windows(path, step, &input, inputs, wanted, Key { columns: vec![key], upsert: on_update.is_some(), version: "window_end" })
    }

    /// The windows of an aggregate.
    fn shape(&mut self, path: &str, window: &Window) -> Option<Shape> {
        let all = [("tumbling", window.tumbling), ("size", window.size), ("slide", window.slide)];
        if let Some((name, _)) = all.iter().find(|(_, d)| d.is_some_and(|d| d.millis() <= 0)) {
            self.problem(&format!("{path}.{name}"), "a window has a length", "write for example `1m`");
            return None;
        }
        match (window.tumbling, window.size, window.slide) {
            (Some(size), None, None) => Some(Shape::Tumbling(size)),
            (None, Some(size), Some(slide)) => {
                let panes = size.millis() / slide.millis();
                if size.millis() % slide.millis() != 0 || panes > PANES {
                    let message = if panes > PANES {
                        format!("a window of {size} is {panes} times as long as {slide}; {PANES} times is the most")
                    } else {
                        format!("a window of {size} is not a multiple of {slide}")
                    };
                    self.problem(&format!("{path}.slide"), message, "write for example `window: {size: 10m, slide: 1m}`");
                    return None;
                }
                Some(Shape::Sliding { size, slide })
            }
            (Some(_), ..) => {
                self.problem(path, "windows are either `tumbling`, or have a `size` and a `slide`", "take out one of them");
                None
            }
            (None, None, None) => {
                let hint = "write for example `window: {tumbling: 1m}` or `window: {size: 10m, slide: 1m}`";
                self.problem(path, "an aggregate without a window does not work yet", hint);
                None
            }
            (None, ..) => {
                self.problem(path, "a sliding window has a `size` and a `slide`", "write for example `window: {size: 10m, slide: 1m}`");
                None
            }
        }
    }

    pub fn sessionize(&mut self, path: &str, step: &Step, input: Output, inputs: &[(Output, Side)]) -> Option<Output> {
        let verb = step.sessionize.as_ref()?;
        let path = format!("{path}.sessionize");
        if verb.gap.millis() <= 0 {
            self.problem(&format!("{path}.gap"), "sessions without a gap are single events", "write for example `gap: 30m`");
        }
        let own = [
            ArrowField::new("session_id", DataType::Utf8, false),
            ArrowField::new("session_start", TIMESTAMP, false),
            ArrowField::new("session_end", TIMESTAMP, false),
        ];
        let all = BTreeMap::from([("events".to_owned(), "count(*)".to_owned())]);
        let wanted = Wanted {
            at: path.clone(),
            shape: Some(Shape::Session(verb.gap)),
            own: &own,
            allowed_lateness: verb.allowed_lateness,
            on_update: None,
            by: (format!("{path}.by"), &verb.by),
            calls: (format!("{path}.aggregate"), if verb.aggregate.is_empty() { &all } else { &verb.aggregate }),
        };
        let start = verb.by.iter().cloned().chain(["session_start".to_owned()]).collect();
        let columns = vec![vec!["session_id".to_owned()], start];
        self.windows(&path, step, &input, inputs, wanted, Key { columns, upsert: false, version: "session_end" })
    }

    /// Windows of any shape: partial results in the tasks of the sources, merged behind the repartition stream.
    fn windows(
        &mut self,
        path: &str,
        step: &Step,
        input: &Output,
        inputs: &[(Output, Side)],
        wanted: Wanted<'_>,
        key: Key,
    ) -> Option<Output> {
        if !input.timed {
            self.problem(&wanted.at, "a window needs event time, and the source has none", "give the source an `eventTime`");
        }
        self.only_events(path, input)?;
        let group_by = self.columns(&wanted.by.0, wanted.by.1, &input.schema);
        let mut aggregates = Vec::new();
        for (name, text) in wanted.calls.1 {
            let path = format!("{}.{name}", wanted.calls.0);
            if wanted.own.iter().any(|f| f.name() == name) || wanted.by.1.contains(name) {
                self.problem(&path, format!("`{name}` is a column of the result already"), "take another name");
            }
            match self.planner.aggregate(text, &input.schema) {
                Err(error) => self.sql(&path, error),
                Ok(call) => {
                    self.used.extend(call.columns().cloned());
                    aggregates.extend(self.mergeable(&path, name, call));
                }
            }
        }
        let (group_by, shape) = (group_by?, wanted.shape?);
        let group: Vec<ArrowField> = group_by.iter().map(|i| input.schema.field(*i).clone()).collect();
        if let Some(twice) = group.iter().find(|g| wanted.own.iter().any(|own| own.name() == g.name())) {
            self.problem(
                &wanted.by.0,
                format!("`{}` is a column of the result already", twice.name()),
                "give it another name in a `select`",
            );
        }
        let group_types = group.iter().map(|f| f.data_type().clone()).collect();
        let results = aggregates.iter().map(|a| ArrowField::new(&a.name, a.output.clone(), true));
        let fields = group.into_iter().chain(wanted.own.iter().cloned()).chain(results);
        let schema: SchemaRef = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let allowed_lateness = wanted.allowed_lateness.unwrap_or(Duration::from_millis(0));
        let spec = WindowSpec { shape, allowed_lateness, on_update: wanted.on_update, group_by, group_types, aggregates };
        let edge = self.edge(path, &step.name, inputs, &input.schema, EdgeKind::Partial(spec), &schema)?;
        // The first of its own columns that is a time says where a result lies.
        let time_column = wanted.own.iter().find(|f| *f.data_type() == TIMESTAMP).map(|f| f.name().clone());
        Some(Output { schema, place: Place::Keyed(From::Edge(edge)), timed: true, partition_column: None, time_column, key: Some(key) })
    }

    /// An edge, and the nodes that feed it.
    pub fn edge(
        &mut self,
        path: &str,
        name: &str,
        inputs: &[(Output, Side)],
        rows: &SchemaRef,
        kind: EdgeKind,
        schema: &SchemaRef,
    ) -> Option<usize> {
        let edge = self.program.keyed.edges.len();
        let partial = matches!(kind, EdgeKind::Partial(_));
        self.place(path, name, inputs, rows, &|| if partial { Op::Partial(edge) } else { Op::Exchange(edge) })?;
        self.program.keyed.edges.push(Edge { name: name.to_owned(), kind, schema: Arc::clone(schema) });
        Some(edge)
    }

    /// Says that what was keyed already cannot be keyed again.
    pub fn only_events(&mut self, path: &str, input: &Output) -> Option<()> {
        if matches!(input.place, Place::Keyed(_)) {
            self.problem(path, "a second repartition does not work yet: what comes in was keyed by another step", "read events");
            return None;
        }
        Some(())
    }

    pub fn join(&mut self, path: &str, step: &Step, left: Output, left_inputs: &[(Output, Side)]) -> Option<Output> {
        let verb = step.join.as_ref()?;
        let path = format!("{path}.join");
        let (right, right_inputs) = self.inputs_at(&|_| format!("{path}.with"), std::slice::from_ref(&verb.with))?;
        if right_inputs.iter().any(|(_, side)| *side != Side::Passed) {
            self.problem(&format!("{path}.with"), "steps that read `.rejected` or `.late` do not work yet", "a sink can read them");
            return None;
        }
        for (at, output) in [(path.clone(), &left), (format!("{path}.with"), &right)] {
            if !output.timed {
                self.problem(&at, "rows meet in event time, and the source has none", "give the source an `eventTime`");
            }
            self.only_events(&at, output)?;
        }
        let mut keys = [Vec::new(), Vec::new()];
        for (ours, theirs) in &verb.keys {
            let at = format!("{path}.keys.{ours}");
            let (a, b) = (self.column(&at, ours, &left.schema)?, self.column(&at, theirs, &right.schema)?);
            let [one, other] = [left.schema.field(a), right.schema.field(b)].map(|f| f.data_type().clone());
            if one != other {
                let message = format!("`{ours}` is {}, and `{theirs}` of `{}` is {}", type_name(&one), verb.with, type_name(&other));
                self.problem(&at, message, "cast one of them in a `derive` before");
            }
            keys[0].push(a);
            keys[1].push(b);
        }
        let taken = match verb.select.as_slice() {
            [] => (0..right.schema.fields().len()).filter(|i| !keys[1].contains(i)).collect(),
            names => self.columns(&format!("{path}.select"), names, &right.schema)?,
        };
        let mut fields: Vec<ArrowField> = left.schema.fields().iter().map(|f| f.as_ref().clone()).collect();
        for index in &taken {
            let field = right.schema.field(*index);
            let mut name = field.name().clone();
            if left.schema.column_with_name(&name).is_some() {
                name = format!("{}_{name}", base(&verb.with));
                self.renamed.push((name.clone(), field.name().clone()));
            }
            if fields.iter().any(|f| *f.name() == name) {
                let hint = "give one of them another name in a `select` before";
                self.problem(&path, format!("two columns would be called `{name}`"), hint);
            }
            fields.push(ArrowField::new(name, field.data_type().clone(), true));
        }
        let schema: SchemaRef = Arc::new(Schema::new(fields));
        let within = verb.within.clone().unwrap_or_default();
        let ms = |d: Option<Duration>| d.map_or(0, Duration::millis);
        let meets = match verb.kind {
            JoinKind::Interval => Meets::Interval { before: ms(within.before), after: ms(within.after) },
            JoinKind::Temporal => Meets::Newest,
        };
        let join = self.program.keyed.joins.len();
        let rows = |output: &Output, key: &[usize], side| {
            EdgeKind::Rows(RowsSpec { schema: Arc::clone(&output.schema), key: key.to_vec(), then: Then::Join(join, side) })
        };
        let (ours, theirs) = (rows(&left, &keys[0], JoinSide::Left), rows(&right, &keys[1], JoinSide::Right));
        let one = self.edge(&path, &step.name, left_inputs, &left.schema, ours, &schema)?;
        let other = self.edge(&path, &format!("{}.with", step.name), &right_inputs, &right.schema, theirs, &right.schema)?;
        self.program.keyed.joins.push(JoinSpec {
            name: step.name.clone(),
            edges: [one, other],
            meets,
            outer: verb.outer == Some(JoinType::Left),
            allowed_lateness: ms(verb.allowed_lateness),
            taken,
        });
        Some(Output { schema, place: Place::Keyed(From::Edge(one)), partition_column: None, ..left })
    }

    /// The aggregate as one whose partial results merge exactly, in any order.
    fn mergeable(&mut self, path: &str, name: &str, call: crate::sql::AggregateCall) -> Option<Aggregate> {
        let input = call.argument.as_ref().map_or(DataType::Int64, |a| a.data_type.clone());
        let function = match (call.function.as_str(), &input) {
            ("count", _) if call.distinct => {
                self.problem(path, "`count(DISTINCT …)` does not work yet", "count rows, or deduplicate first");
                return None;
            }
            ("count", _) => Function::Count,
            ("min", _) => Function::Min,
            ("max", _) => Function::Max,
            ("sum" | "avg", DataType::Float64) => {
                let message = format!("`{}` over DOUBLE depends on the order of events, so it could differ after a restart", call.function);
                self.problem(path, message, "cast to DECIMAL, or declare the field with `x-leat-type: decimal(18,4)`");
                return None;
            }
            ("sum", _) => Function::Sum,
            _ => Function::Avg,
        };
        let output = match (function, &input) {
            (Function::Sum, DataType::Decimal128(_, scale)) => DataType::Decimal128(38, *scale),
            (Function::Sum, _) => DataType::Decimal128(38, 0),
            (Function::Min | Function::Max, _) => input.clone(),
            _ => call.data_type.clone(),
        };
        Some(Aggregate {
            name: name.to_owned(),
            function,
            argument: call.argument.map(|a| a.expr),
            filter: call.filter.map(|f| f.expr),
            input,
            output,
        })
    }
}
