//! What a keyed task computes: messages of the repartition stream into windows and ids, closed by the watermark.

mod join;
mod persist;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, StringArray, TimestampMicrosecondArray};
use arrow::compute::filter_record_batch;
use arrow::json::LineDelimitedWriter;
use leat_compile::program::{Edge, EdgeKind, From, Node, Op, Program, RowsSpec, Shape, Then, WindowSpec};
use leat_runtime_core::key::{self, KeyGroup, KeyWriter};
use leat_runtime_core::ledger::Ledger;
use leat_runtime_core::merge::Cursors;
use leat_runtime_core::message::Message;
use leat_runtime_core::position::Lineage;
use leat_runtime_core::rules::{Rule, Rules};
use leat_runtime_core::value::Cell;
use leat_runtime_core::watermark::Watermark;
use leat_runtime_core::wire::{Damaged, Reader};

use super::cells::{Builders, Cells};
use super::deduplicate::{Seen, Verdict};
use super::evaluate::{self, Failure};
use super::rows::Rows;
use super::stream::{self, StreamRow};
use super::table;
use super::versions::Versions;
use super::window::{Closed, GroupTable, Sessions, Windows, late};
use crate::output::Item;

/// Rows that leave together.
const BATCH: usize = 8192;
/// Bytes of rows that wait for a cut when no more are taken.
const CROWDED_BYTES: usize = 64 << 20;

/// State of an edge.
#[derive(Debug, Clone)]
enum State {
    Stateless,
    Windows(Windows),
    Sessions(Sessions),
    Seen(Seen),
    Rows(Rows),
    Versions(Versions),
}

/// Rows for a sink since the last cut.
#[derive(Debug, Clone)]
pub enum Output {
    /// For files.
    Rows(Vec<RecordBatch>),
    /// For a table.
    Items(Vec<Item>),
    /// For a stream.
    Records(Vec<StreamRow>),
}

/// The steps of one partition of the repartition stream, and their state.
pub struct KeyedChain {
    program: Arc<Program>,
    partition: u16,
    partitions: u16,
    rules: Rules,
    states: Vec<State>,
    /// What the state of each step depends on.
    prints: BTreeMap<String, u64>,
    /// What was seen of each lineage.
    pub cursors: Cursors,
    /// The watermark applied.
    pub watermark: Watermark,
    /// Where rows went.
    pub ledger: Ledger,
    outputs: BTreeMap<usize, Output>,
    /// Bytes of the rows in `outputs`, about.
    waiting_bytes: usize,
    /// The key that is looked at.
    key: KeyWriter,
    /// A partial result met a window that was closed: the protocol was broken. Never true.
    pub broken: Option<String>,
}

impl KeyedChain {
    /// The steps for `partition` of `partitions`, with empty state.
    pub fn new(program: &Arc<Program>, partition: u16, partitions: u16, rules: Rules) -> Self {
        let state = |edge: &Edge| match &edge.kind {
            EdgeKind::Partial(spec @ WindowSpec { shape: Shape::Session(_), .. }) => State::Sessions(Sessions::new(spec)),
            EdgeKind::Partial(_) => State::Windows(Windows::default()),
            EdgeKind::Rows(rows) => match &rows.then {
                Then::Deduplicate(_) => State::Seen(Seen::default()),
                Then::Join(i, side) => join::state(&program.keyed.joins[*i], *side),
                Then::Pass => State::Stateless,
            },
        };
        Self {
            program: Arc::clone(program),
            partition,
            partitions,
            rules,
            states: program.keyed.edges.iter().map(state).collect(),
            prints: leat_compile::state::fingerprints(program),
            cursors: Cursors::new(),
            watermark: Watermark::MIN,
            ledger: Ledger::default(),
            outputs: BTreeMap::new(),
            waiting_bytes: 0,
            key: KeyWriter::default(),
            broken: None,
        }
    }

    /// Whether a key group belongs to this partition.
    pub fn mine(&self, group: KeyGroup) -> bool {
        group.partition(self.program.document.key_groups, self.partitions) == self.partition
    }

    /// Takes messages in the order of the log. What was seen before is dropped; so is what is for another partition:
    /// key groups move only with a job change, after everything sent before was consumed.
    pub fn take(&mut self, messages: Vec<Message>) -> Result<(), Damaged> {
        let program = Arc::clone(&self.program);
        // Those of one edge and lineage that follow each other are taken together.
        let mut messages = messages.into_iter().filter(|message| self.mine(message.group)).collect::<Vec<_>>();
        while let Some(first) = messages.first().cloned() {
            let alike = messages.iter().take_while(|message| message.is_like(&first)).count();
            let rest = messages.split_off(alike);
            let rules = self.rules;
            let edges = match self.cursors.get_mut(&first.lineage) {
                Some(edges) => edges,
                None => self.cursors.entry(first.lineage.clone()).or_default(),
            };
            let edge = cursor_of(&first.edge, rules);
            let cursors = match edges.get_mut(edge) {
                Some(cursors) => cursors,
                None => edges.entry(edge.to_owned()).or_default(),
            };
            // An edge that this job does not have any more: its step was dropped, as the plan said.
            let at = program.keyed.edges.iter().position(|e| e.name == *first.edge);
            messages.retain(|message| cursors.entry(message.group).or_default().admit_by(message.number, rules));
            match at.map(|i| (i, &program.keyed.edges[i].kind)) {
                None => {}
                Some((i, EdgeKind::Partial(spec))) => messages.iter().try_for_each(|message| self.partial(i, spec, message))?,
                Some((i, EdgeKind::Rows(spec))) => self.rows(&program, i, spec, &messages)?,
            }
            messages = rest;
        }
        Ok(())
    }

    fn partial(&mut self, i: usize, spec: &WindowSpec, message: &Message) -> Result<(), Damaged> {
        let state = &mut self.states[i];
        let (mut body, mut rows) = (Reader::new(&message.body), 0_u64);
        while !body.is_empty() {
            let partial = match state {
                State::Windows(windows) => windows.take(&mut body, spec, message.group)?,
                State::Sessions(sessions) => sessions.take(&mut body, spec, message.group)?,
                _ => return Ok(()),
            };
            if late(partial.start, self.watermark.0, spec) {
                self.broken = Some(format!(
                    "{}: a result of {} for the window {} came at watermark {}",
                    message.edge, message.lineage, partial.start, self.watermark
                ));
            }
            rows = rows.saturating_add(partial.rows);
        }
        let counts = self.ledger.of(&format!("{} (windows)", message.edge));
        counts.taken = counts.taken.saturating_add(rows);
        counts.absorbed = counts.absorbed.saturating_add(rows);
        Ok(())
    }

    /// Takes rows of one edge and lineage.
    fn rows(&mut self, program: &Program, i: usize, spec: &RowsSpec, messages: &[Message]) -> Result<(), Damaged> {
        if messages.is_empty() {
            return Ok(());
        }
        if let Then::Join(join, side) = &spec.then {
            return self.join(program, *join, *side, messages);
        }
        let edge = &program.keyed.edges[i];
        let mut times = Vec::with_capacity(messages.len());
        let width = spec.schema.fields().len();
        let mut builders = Builders::new(&spec.schema, width);
        for message in messages {
            let mut body = Reader::new(&message.body);
            times.push((body.signed()?, body.signed()?));
            for column in 0..width {
                builders.cell(column, Cell::read(&mut body)?);
            }
            builders.row();
        }
        let mut columns = builders.finish();
        if spec.then == Then::Pass {
            let micros = times.iter().map(|(time, _)| Some(time.saturating_mul(1000)));
            columns.push(Arc::new(micros.collect::<TimestampMicrosecondArray>()));
        }
        let rows = RecordBatch::try_new(Arc::clone(&edge.schema), columns).map_err(|_| Damaged("a row does not fit its step"))?;
        let (mut keep, mut late, mut repeats) = (vec![true; messages.len()], 0, 0);
        if let (Then::Deduplicate(deduplicate), State::Seen(seen)) = (&spec.then, &mut self.states[i]) {
            let (cells, mut writer) = (Cells::of(&rows), KeyWriter::default());
            // Rows of all lineages that are still to come have this watermark or a higher one.
            seen.advance(self.watermark.0, deduplicate.within.millis());
            for (row, (time, watermark)) in times.iter().enumerate() {
                let place = key::hash(cells.key(row, &spec.key, &mut writer));
                let id = (place, key::hash(cells.key(row, spec.key.iter().chain(&deduplicate.by), &mut writer)));
                // Judged against the watermark that the row's lineage had before it, so that the verdict is a function of
                // the log alone.
                let verdict = seen.judge(id, *time, *watermark, deduplicate.within.millis(), self.rules)?;
                keep[row] = verdict == Verdict::New;
                late += u64::from(verdict == Verdict::Late);
                repeats += u64::from(verdict == Verdict::Repeat);
            }
        }
        let counts = self.ledger.of(&format!("{} (keyed)", edge.name));
        counts.taken += messages.len() as u64;
        counts.passed += messages.len() as u64 - late - repeats;
        counts.late += late;
        counts.deduplicated += repeats;
        let mask = BooleanArray::from(keep);
        let rows = if mask.true_count() == rows.num_rows() { Ok(rows) } else { filter_record_batch(&rows, &mask) };
        self.flow(From::Edge(i), rows.map_err(|_| Damaged("a row does not fit its step"))?);
        Ok(())
    }

    /// Applies a watermark: windows that it closes are emitted.
    pub fn advance(&mut self, watermark: Watermark) -> Result<(), Damaged> {
        if watermark <= self.watermark {
            return Ok(());
        }
        self.watermark = watermark;
        for i in 0..self.states.len() {
            let program = Arc::clone(&self.program);
            let edge = &program.keyed.edges[i];
            let EdgeKind::Partial(spec) = &edge.kind else { continue };
            let closed = match &mut self.states[i] {
                State::Windows(windows) => windows.close(watermark, spec),
                State::Sessions(sessions) => sessions.close(watermark, spec),
                _ => continue,
            };
            self.emit(i, edge, spec, closed)?;
        }
        self.advance_joins(true)
    }

    /// The next watermark up to `to` after which it is looked whether what leaves is too much: a jump of the watermark would let
    /// windows that slide leave all at once, each row of them many times.
    pub fn next(&self, to: Watermark) -> Watermark {
        let next = self.states.iter().zip(&self.program.keyed.edges).filter_map(|(state, edge)| match (state, &edge.kind) {
            (State::Windows(windows), EdgeKind::Partial(spec)) => windows.next(spec),
            _ => None,
        });
        next.min().map_or(to, |next| next.clamp(self.watermark, to))
    }

    /// Emits early and corrected rows of windows that changed.
    pub fn emit_updates(&mut self) -> Result<(), Damaged> {
        for i in 0..self.states.len() {
            let program = Arc::clone(&self.program);
            let edge = &program.keyed.edges[i];
            if let (State::Windows(windows), EdgeKind::Partial(spec)) = (&mut self.states[i], &edge.kind)
                && spec.on_update.is_some()
            {
                let changed = windows.changed(spec);
                self.emit(i, edge, spec, changed)?;
            }
        }
        Ok(())
    }

    /// Sends groups on; each table goes when its rows are made.
    fn emit(&mut self, i: usize, edge: &Edge, spec: &WindowSpec, closed: Vec<Closed>) -> Result<(), Damaged> {
        let width = edge.schema.fields().len();
        let mut rows = Builders::new(&edge.schema, width);
        for Closed { start, table } in closed {
            for row in 0..table.groups() {
                self.row(&mut rows, &table, row, start, spec)?;
                if rows.rows() >= BATCH {
                    let full = std::mem::replace(&mut rows, Builders::new(&edge.schema, width));
                    self.leave(i, edge, full);
                }
            }
        }
        self.leave(i, edge, rows);
        Ok(())
    }

    /// Adds the row of a group: its key, its window or session, and its results.
    fn row(&mut self, rows: &mut Builders, table: &GroupTable, row: usize, start: i64, spec: &WindowSpec) -> Result<(), Damaged> {
        let mut key = Reader::new(table.key(row));
        let mut columns = 0..;
        let mut add = |cell: Cell<'_>| columns.next().into_iter().for_each(|column| rows.cell(column, cell));
        for _ in &spec.group_by {
            add(Cell::read(&mut key)?);
        }
        let time = |ms: i64| Cell::Timestamp(ms.saturating_mul(1000));
        match spec.shape {
            Shape::Tumbling(size) | Shape::Sliding { size, .. } => {
                add(time(start));
                add(time(start.saturating_add(size.millis())));
            }
            Shape::Session(_) => {
                let (first, last) = table.span(row);
                table.canonical(row, spec, &mut self.key)?;
                add(Cell::Text(&key::name(&[self.key.bytes(), &first.to_le_bytes()].concat())));
                add(time(first));
                add(time(last));
            }
        }
        for (index, aggregate) in spec.aggregates.iter().enumerate() {
            add(table.result(row, index, aggregate).cell());
        }
        rows.row();
        Ok(())
    }

    fn leave(&mut self, i: usize, edge: &Edge, rows: Builders) {
        let count = rows.rows() as u64;
        if count == 0 {
            return;
        }
        #[expect(clippy::expect_used, reason = "the columns were made from the schema's types, one value per row")]
        let rows = RecordBatch::try_new(Arc::clone(&edge.schema), rows.finish()).expect("rows fit the edge");
        self.ledger.of(&format!("{} (windows)", edge.name)).emitted += count;
        self.flow(From::Edge(i), rows);
    }

    /// Sends rows through the nodes that read `from`.
    fn flow(&mut self, from: From, rows: RecordBatch) {
        let program = Arc::clone(&self.program);
        for (n, node) in program.keyed.nodes.iter().enumerate() {
            if rows.num_rows() > 0 && node.inputs.iter().any(|p| p.from == from && p.side == leat_compile::program::Side::Passed) {
                self.node(n, node, &rows);
            }
        }
    }

    fn node(&mut self, n: usize, node: &Node, rows: &RecordBatch) {
        let taken = rows.num_rows() as u64;
        if let Op::Files(_) | Op::Table(_) | Op::Stream(_) = node.op {
            self.waiting_bytes += rows.get_array_memory_size();
        }
        let (output, failures) = match &node.op {
            Op::Filter(condition) => {
                let (holds, failures) = evaluate::condition(condition, rows);
                (filter_record_batch(rows, &holds).ok(), failures)
            }
            Op::Project(exprs) => {
                let (columns, failures): (Vec<ArrayRef>, Vec<_>) = exprs.iter().map(|e| evaluate::evaluate(e, rows)).unzip();
                let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
                let failures = failures.concat();
                let projected = RecordBatch::try_new_with_options(Arc::clone(&node.schema), columns, &options).ok();
                (projected.and_then(|p| without(&p, &failures)), failures)
            }
            Op::Files(_) => {
                if let Output::Rows(batches) = self.outputs.entry(n).or_insert_with(|| Output::Rows(Vec::new())) {
                    batches.push(rows.clone());
                }
                (None, Vec::new())
            }
            Op::Table(index) => {
                let (items, failures) = table::items(&self.program.tables[*index], rows);
                if let Output::Items(all) = self.outputs.entry(n).or_insert_with(|| Output::Items(Vec::new())) {
                    all.extend(items);
                }
                (None, failures)
            }
            Op::Stream(sink) => {
                let (records, failures) = stream::rows(&self.program.streams[*sink], rows);
                if let Output::Records(all) = self.outputs.entry(n).or_insert_with(|| Output::Records(Vec::new())) {
                    all.extend(records.into_values());
                }
                (None, failures)
            }
            Op::Validate(rules) => {
                let broken = broken_rules(rules, rows);
                (without(rows, &broken), broken)
            }
            // These are steps of source tasks.
            Op::Deduplicate(_) | Op::Partial(_) | Op::Exchange(_) | Op::RawFiles(_) => (None, Vec::new()),
        };
        let failures = one_each(failures);
        let rejected = failures.len() as u64;
        self.reject(n, node, rows, &failures);
        let counts = self.ledger.of(&node.name);
        counts.taken += taken;
        failures.iter().for_each(|failure| counts.reject(failure.reason(), 1));
        let passed = output.as_ref().map_or(0, |o| o.num_rows() as u64);
        match &node.op {
            Op::Files(_) | Op::Table(_) | Op::Stream(_) => counts.absorbed += taken - rejected,
            Op::Filter(_) => {
                counts.passed += passed;
                counts.filtered += taken - passed - rejected;
            }
            _ => counts.passed += passed,
        }
        if let Some(output) = output {
            self.flow(From::Node(n), output);
        }
    }

    /// Rows for which an expression failed go to the dead letters, as JSON: their events are not known any more.
    fn reject(&mut self, n: usize, node: &Node, rows: &RecordBatch, failures: &[Failure]) {
        let program = Arc::clone(&self.program);
        let reads = |other: &Node| other.inputs.iter().any(|p| p.from == From::Node(n) && p.side == leat_compile::program::Side::Rejected);
        let Some((i, reader)) = program.keyed.nodes.iter().enumerate().find(|(_, other)| reads(other)) else { return };
        if failures.is_empty() {
            return;
        }
        let text = |f: &dyn Fn(&Failure) -> Option<String>| -> ArrayRef { Arc::new(failures.iter().map(f).collect::<StringArray>()) };
        let json = |row: usize| {
            let mut writer = LineDelimitedWriter::new(Vec::new());
            writer.write(&rows.slice(row, 1)).and_then(|()| writer.finish()).ok()?;
            Some(String::from_utf8_lossy(&writer.into_inner()).trim_end().to_owned())
        };
        let partition = leat_runtime_core::path::keyed_row(self.partition);
        let columns: Vec<ArrayRef> = vec![
            text(&|_| Some(node.name.clone())),
            text(&|f| Some(f.reason().to_owned())),
            text(&|f| Some(f.detail.clone())),
            text(&|_| Some(partition.clone())),
            text(&|_| Some("0".to_owned())),
            text(&|_| None),
            arrow::array::new_null_array(reader.schema.field(6).data_type(), failures.len()),
            text(&|_| None),
            text(&|f| json(f.row)),
            text(&|_| None),
        ];
        #[expect(clippy::expect_used, reason = "each column has one value per failure and the type of its field")]
        let batch = RecordBatch::try_new(Arc::clone(&reader.schema), columns).expect("columns fit the schema");
        self.node(i, reader, &batch);
    }

    /// What sinks get with the next cut, by node; nothing is left.
    pub fn take_outputs(&mut self) -> BTreeMap<usize, Output> {
        self.waiting_bytes = 0;
        let mut outputs = std::mem::take(&mut self.outputs);
        for output in outputs.values_mut() {
            if let Output::Items(items) = output {
                table::keep_newest(items);
            }
        }
        outputs
    }

    /// Rows that come out on the way to a cut that was made were staged with it: they are not kept.
    pub fn drop_outputs(&mut self) {
        self.waiting_bytes = 0;
        self.outputs.clear();
    }

    /// Whether much waits for a cut: who has more to take makes one first.
    pub fn crowded(&self, most: usize) -> bool {
        let rows = |output: &Output| match output {
            Output::Rows(batches) => batches.iter().map(RecordBatch::num_rows).sum(),
            Output::Items(items) => items.len(),
            Output::Records(records) => records.len(),
        };
        self.waiting_bytes >= CROWDED_BYTES || self.outputs.values().map(rows).sum::<usize>() >= most
    }

    /// Whether something waits for a cut.
    pub fn has_outputs(&self) -> bool {
        !self.outputs.is_empty()
    }

    /// What waits for a watermark to leave (windows, sessions, rows of joins), and windows with changes that were not emitted.
    pub fn open(&self) -> (u64, u64) {
        let mut counts = (0, 0);
        for (state, edge) in self.states.iter().zip(&self.program.keyed.edges) {
            match (state, &edge.kind) {
                (State::Windows(windows), EdgeKind::Partial(spec)) => {
                    counts.0 += windows.len() as u64;
                    if spec.on_update.is_some() {
                        counts.1 += windows.dirty() as u64;
                    }
                }
                (State::Sessions(sessions), _) => counts.0 += sessions.len() as u64,
                _ => {}
            }
        }
        counts.0 += self.waiting();
        counts
    }
}

/// The rows for which nothing failed.
fn without(rows: &RecordBatch, failures: &[Failure]) -> Option<RecordBatch> {
    if failures.is_empty() {
        return Some(rows.clone());
    }
    let keep: BooleanArray = (0..rows.num_rows()).map(|row| Some(!failures.iter().any(|f| f.row == row))).collect();
    filter_record_batch(rows, &keep).ok()
}

/// The first rule that each row breaks.
fn broken_rules(rules: &[(String, leat_compile::program::Expr)], rows: &RecordBatch) -> Vec<Failure> {
    let mut broken: BTreeMap<usize, Failure> = BTreeMap::new();
    for (name, rule) in rules {
        let (holds, failures) = evaluate::condition(rule, rows);
        let mut details: BTreeMap<usize, String> = failures.into_iter().map(|f| (f.row, f.detail)).collect();
        for row in (0..rows.num_rows()).filter(|row| !holds.value(*row)) {
            let failure = || Failure { row, detail: details.remove(&row).unwrap_or_default(), rule: Some(format!("rule:{name}")) };
            broken.entry(row).or_insert_with(failure);
        }
    }
    broken.into_values().collect()
}

/// The first failure of each row.
fn one_each(mut failures: Vec<Failure>) -> Vec<Failure> {
    failures.sort_by_key(|f| f.row);
    failures.dedup_by_key(|f| f.row);
    failures
}

/// Each edge has a sequence of its own (rule `oneseq`).
pub fn cursor_of(edge: &str, rules: Rules) -> &str {
    if rules.hold(Rule::OneSeq) { edge } else { "" }
}

/// The lineages whose cursors are kept.
impl KeyedChain {
    /// Forgets a lineage, as only a wrong variant does while its messages may still come.
    pub fn forget(&mut self, lineage: &Lineage) {
        self.cursors.remove(lineage);
    }
}
