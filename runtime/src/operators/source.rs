//! What a source task computes: its lineage's records through decode, steps and partial results, in order.
//!
//! The state is a function of the records, in their order, of what the lineage inherited and of the raises of its
//! watermark; it does not depend on where batches end.

mod dead;
mod persist;
mod rows;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Date32Type, Int64Type, TimeUnit, TimestampMicrosecondType};
use bytes::Bytes;
use leat_compile::program::{EdgeKind, From, Op, Port, Program, Side, SourceProgram, Then};
use leat_runtime_core::key::{self, HashRange, KeyGroup, KeyWriter, partition_hash};
use leat_runtime_core::ledger::Ledger;
use leat_runtime_core::message::Message;
use leat_runtime_core::numbers::Numbers;
use leat_runtime_core::position::{Lineage, Offset};
use leat_runtime_core::rules::{Rule, Rules};
use leat_runtime_core::wire::{Damaged, Writer};

use self::rows::Rows;
use super::cells::Cells;
use super::deduplicate::{self, Seen, Verdict};
use super::evaluate;
use super::files::FileRows;
use super::stream::{self, StreamRow};
use super::window::{self, Groups};
use crate::batch::SourceBatch;
use crate::codecs::decoder::Decoder;

/// Partial results of one message, about, in bytes.
const PARTIALS_BYTES: usize = 256 << 10;
/// Most bytes of a message: with its place it fits into a record of 1 MiB (Kinesis Data Streams quotas).
const LONGEST_BODY: usize = (1 << 20) - 2_048;

/// A record that a step refused or that came too late.
#[derive(Debug, Clone)]
struct Refused {
    origin: u32,
    step: String,
    reason: String,
    detail: String,
}

/// What a step made of rows: those that passed, those that it refused, and those that came too late.
type Stepped = (Option<Rows>, Vec<Refused>, Vec<Refused>);

/// State of a node.
#[derive(Debug, Clone)]
enum State {
    Stateless,
    Seen(Seen),
    /// Partial results since the last cut; no state, they leave with the cut.
    Groups(Box<Groups>),
    /// Last numbers of a replayable edge.
    Numbers(Numbers),
    Files(FileRows),
}

/// What leaves after the cut that covers its record, and is computed again after a restart.
#[derive(Debug, Clone)]
pub struct Replayable {
    /// The record it came from.
    pub position: Offset,
    /// What is sent.
    pub what: Leaving,
}

/// What is sent without being staged.
#[derive(Debug, Clone)]
pub enum Leaving {
    /// To a keyed task.
    Message(Message),
    /// To a stream.
    Record {
        /// Index of the sink among the program's streams.
        sink: usize,
        /// Which of the rows that one record has become in this sink, from 0.
        nth: u32,
        /// The row.
        row: StreamRow,
    },
}

impl Leaving {
    /// Size in memory, about.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Message(message) => message.body.len() + 100,
            Self::Record { row, .. } => row.json.len() + 100,
        }
    }
}

/// The steps of one lineage and their state.
pub struct SourceChain {
    program: Arc<Program>,
    source: usize,
    lineage: Lineage,
    range: HashRange,
    rules: Rules,
    job: u64,
    decoder: Decoder,
    states: Vec<State>,
    /// What the state of each step depends on.
    prints: BTreeMap<String, u64>,
    /// Watermark, ms.
    pub watermark: i64,
    /// Watermark at the end of the last batch; only a wrong variant looks at it.
    batch_watermark: i64,
    /// Highest event time, ms.
    pub newest: i64,
    /// Records taken.
    pub taken: u64,
    /// Where records went.
    pub ledger: Ledger,
    /// A wrong variant judges lateness by this instead of by the lineage's own watermark.
    pub merged_watermark: Option<i64>,
}

impl SourceChain {
    /// The steps of `source` for a lineage whose keys lie in `range`, with empty state.
    pub fn new(program: &Arc<Program>, source: usize, lineage: &Lineage, range: HashRange, job: u64, rules: Rules) -> Self {
        let nodes = &program.sources[source].nodes;
        let states = nodes.iter().map(|n| match &n.op {
            Op::Deduplicate(_) => State::Seen(Seen::default()),
            Op::Partial(edge) => match &program.keyed.edges[*edge].kind {
                EdgeKind::Partial(spec) => State::Groups(Box::new(Groups::new(spec))),
                EdgeKind::Rows(_) => State::Stateless,
            },
            Op::Exchange(_) => State::Numbers(Numbers::default()),
            Op::Files(_) | Op::RawFiles(_) => State::Files(FileRows::default()),
            _ => State::Stateless,
        });
        Self {
            program: Arc::clone(program),
            source,
            lineage: lineage.clone(),
            range,
            rules,
            job,
            decoder: Decoder::new(&program.sources[source].decode),
            states: states.collect(),
            prints: leat_compile::state::fingerprints(program),
            watermark: i64::MIN,
            batch_watermark: i64::MIN,
            newest: i64::MIN,
            taken: 0,
            ledger: Ledger::default(),
            merged_watermark: None,
        }
    }

    fn spec(&self) -> &SourceProgram {
        &self.program.sources[self.source]
    }

    /// Takes records; answers what leaves without being staged.
    pub fn process(&mut self, batch: &SourceBatch) -> Result<Vec<Replayable>, Damaged> {
        let program = Arc::clone(&self.program);
        let spec = &program.sources[self.source];
        let widened = (spec.drop_strays && !batch.strays.is_empty()).then(|| batch.with_whole_aggregates_astray());
        let batch = widened.as_ref().unwrap_or(batch);
        self.taken += batch.len() as u64;
        let (rows, refused) = self.decode(batch);
        let mut passed: Vec<Option<Rows>> = vec![None; spec.nodes.len()];
        let mut sides: BTreeMap<(usize, bool), Vec<Refused>> = BTreeMap::new();
        let counts = self.ledger.of(&spec.name);
        counts.taken += batch.len() as u64;
        counts.passed += rows.len() as u64;
        for r in &refused {
            counts.reject(&r.reason, 1);
        }
        let mut replayable = Vec::new();
        for (i, node) in spec.nodes.iter().enumerate() {
            let refusals = |port: &Port| match (port.from, port.side) {
                (From::Source, Side::Rejected) => Some(&refused),
                (From::Node(n), Side::Rejected) => sides.get(&(n, false)),
                (From::Node(n), Side::Late) => sides.get(&(n, true)),
                _ => None,
            };
            if node.inputs.iter().all(|p| p.side != Side::Passed) {
                let mut all: Vec<&Refused> = node.inputs.iter().filter_map(refusals).flatten().collect();
                all.sort_by_key(|r| r.origin);
                self.dead_letters(i, batch, &all);
                continue;
            }
            if let Op::RawFiles(_) = node.op {
                self.raw(i, batch);
                continue;
            }
            let inputs: Vec<&Rows> = node
                .inputs
                .iter()
                .filter_map(|p| match p.from {
                    From::Source => Some(&rows),
                    From::Node(n) => passed[n].as_ref(),
                    From::Edge(_) => None,
                })
                .collect();
            let Some(input) = Rows::union(&inputs) else { continue };
            let (output, rejected, late) = self.step(i, &input, batch, &mut replayable)?;
            sides.insert((i, false), rejected);
            sides.insert((i, true), late);
            passed[i] = output;
        }
        self.batch_watermark = self.watermark;
        Ok(replayable)
    }

    /// Decodes, checks partition key and event time, and moves the watermark record by record.
    fn decode(&mut self, batch: &SourceBatch) -> (Rows, Vec<Refused>) {
        let decoded = self.decoder.decode(batch);
        let name = self.spec().name.clone();
        let refuse = |origin: u32, reason: &str, detail: String| Refused { origin, step: name.clone(), reason: reason.to_owned(), detail };
        let mut refused: Vec<Refused> = decoded.rejects.into_iter().map(|r| refuse(r.record as u32, r.reason, r.detail)).collect();
        let mut keep = vec![true; decoded.origins.len()];
        if !batch.strays.is_empty() {
            refused.retain(|r| !batch.is_stray(r.origin as usize));
            keep = decoded.origins.iter().map(|origin| !batch.is_stray(*origin as usize)).collect();
            if self.spec().drop_strays {
                self.ledger.of(&name).filtered += batch.strays.len() as u64;
            } else {
                let detail = "its producer put it into an aggregate for a shard that does not take its hash key";
                refused.extend(batch.strays.iter().map(|origin| refuse(*origin, "wrong-shard", detail.to_owned())));
            }
        }
        if let Some(column) = self.spec().partitioned_by {
            let values = decoded.rows.column(column);
            for (row, origin) in decoded.origins.iter().enumerate() {
                if !keep[row] {
                    continue;
                }
                if let Some(detail) = self.wrong_shard(batch.key(*origin as usize), values, row) {
                    keep[row] = false;
                    refused.push(refuse(*origin, "wrong-shard", detail));
                }
            }
        }
        let mut times = vec![0; decoded.origins.len()];
        let mut watermarks = vec![i64::MIN; decoded.origins.len()];
        if let Some(spec) = self.spec().event_time {
            let column = decoded.rows.column(spec.column);
            let fixed = self.merged_watermark.or((!self.rules.hold(Rule::RecWm)).then_some(self.batch_watermark));
            for (row, origin) in decoded.origins.iter().enumerate() {
                if !keep[row] {
                    continue;
                }
                let arrival = batch.arrivals[*origin as usize];
                match millis(column, row) {
                    None => {
                        keep[row] = false;
                        refused.push(refuse(*origin, "no-event-time", String::new()));
                    }
                    Some(time) if time.saturating_sub(arrival) > spec.max_ahead.millis() => {
                        keep[row] = false;
                        let ahead = time.saturating_sub(arrival) / 1000;
                        refused.push(refuse(*origin, "ahead-of-arrival", format!("the event's time is {ahead} s after its arrival")));
                    }
                    Some(time) => {
                        times[row] = time;
                        watermarks[row] = fixed.unwrap_or(self.watermark);
                        self.newest = self.newest.max(time);
                        self.watermark = self.watermark.max(time.saturating_sub(spec.max_out_of_orderness.millis()));
                    }
                }
            }
        }
        let rows = Rows { batch: decoded.rows, origins: decoded.origins, times, watermarks };
        (rows.keep(&keep), refused)
    }

    /// Why a record does not belong to this shard.
    fn wrong_shard(&self, key: Option<&[u8]>, values: &Arc<dyn Array>, row: usize) -> Option<String> {
        let key = key?;
        if values.is_null(row) {
            return Some("the partition key's column is NULL".to_owned());
        }
        let same = match values.data_type() {
            DataType::Utf8 => values.as_string::<i32>().value(row).as_bytes() == key,
            DataType::Int64 => values.as_primitive::<Int64Type>().value(row).to_string().as_bytes() == key,
            _ => false,
        };
        if !same {
            return Some("the record's partition key is not the column's value".to_owned());
        }
        if self.range != HashRange::ALL && !self.range.contains(partition_hash(key)) {
            return Some("the partition key lies outside of the shard's range".to_owned());
        }
        None
    }

    fn step(&mut self, i: usize, input: &Rows, batch: &SourceBatch, replayable: &mut Vec<Replayable>) -> Result<Stepped, Damaged> {
        let program = Arc::clone(&self.program);
        let node = &program.sources[self.source].nodes[i];
        let refuse = |row: usize, reason: &str, detail: String| Refused {
            origin: input.origins[row],
            step: node.name.clone(),
            reason: reason.to_owned(),
            detail,
        };
        let mut rejected = Vec::new();
        let mut late = Vec::new();
        let mut deduplicated = 0;
        let mut absorbed = 0;
        let mut filtered = 0;
        let output = match &node.op {
            Op::Validate(rules) => {
                let mut keep = vec![true; input.len()];
                for (name, rule) in rules {
                    let (holds, failures) = evaluate::condition(rule, &input.batch);
                    let mut failures = failures.into_iter().map(|f| (f.row, f.detail)).collect::<BTreeMap<_, _>>();
                    for row in 0..input.len() {
                        if keep[row] && !holds.value(row) {
                            keep[row] = false;
                            rejected.push(refuse(row, &format!("rule:{name}"), failures.remove(&row).unwrap_or_default()));
                        }
                    }
                }
                Some(input.keep(&keep))
            }
            Op::Filter(condition) => {
                let (holds, failures) = evaluate::condition(condition, &input.batch);
                rejected.extend(failures.into_iter().map(|f| refuse(f.row, "expression", f.detail)));
                let mask: Vec<bool> = holds.values().iter().collect();
                let output = input.keep(&mask);
                filtered = (input.len() - output.len() - rejected.len()) as u64;
                Some(output)
            }
            Op::Project(exprs) => {
                let mut keep = vec![true; input.len()];
                let mut columns = Vec::new();
                for expr in exprs {
                    let (array, failures) = evaluate::evaluate(expr, &input.batch);
                    columns.push(array);
                    for failure in failures {
                        if std::mem::replace(&mut keep[failure.row], false) {
                            rejected.push(refuse(failure.row, "expression", failure.detail));
                        }
                    }
                }
                let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(input.len()));
                match RecordBatch::try_new_with_options(Arc::clone(&node.schema), columns, &options) {
                    Ok(batch) => Some(Rows { batch, ..input.clone() }.keep(&keep)),
                    Err(error) => {
                        rejected = (0..input.len()).map(|row| refuse(row, "expression", error.to_string())).collect();
                        None
                    }
                }
            }
            Op::Deduplicate(spec) => {
                let rules = self.rules;
                let State::Seen(seen) = &mut self.states[i] else { return Ok((None, rejected, late)) };
                let (cells, mut key) = (Cells::of(&input.batch), KeyWriter::default());
                let mut keep = vec![false; input.len()];
                for row in 0..input.len() {
                    // The place of an id is the upper half of its partition key's hash, so that a split can divide ids.
                    let place = batch.key(input.origins[row] as usize).map_or(0, |k| (partition_hash(k) >> 64) as u64);
                    let id = (place, key::hash(cells.key(row, spec.key.iter().chain(&spec.by), &mut key)));
                    seen.advance(input.watermarks[row], spec.within.millis());
                    match seen.judge(id, input.times[row], input.watermarks[row], spec.within.millis(), rules)? {
                        Verdict::New => keep[row] = true,
                        Verdict::Repeat => deduplicated += 1,
                        Verdict::Late => late.push(refuse(row, "late", "behind the horizon of deduplication".to_owned())),
                    }
                }
                Some(input.keep(&keep))
            }
            Op::Partial(edge) => {
                let EdgeKind::Partial(spec) = &program.keyed.edges[*edge].kind else { return Ok((None, rejected, late)) };
                let State::Groups(groups) = &mut self.states[i] else { return Ok((None, rejected, late)) };
                let mut keep = vec![true; input.len()];
                for row in 0..input.len() {
                    if window::late(input.times[row], input.watermarks[row], spec) {
                        keep[row] = false;
                        late.push(refuse(row, "late", "the window was closed".to_owned()));
                    }
                }
                let on_time = input.keep(&keep);
                let failures = groups.add(&on_time.batch, &on_time.times, spec, program.document.key_groups);
                absorbed = (on_time.len() - failures.len()) as u64;
                rejected.extend(failures.into_iter().map(|f| Refused {
                    origin: on_time.origins[f.row],
                    step: node.name.clone(),
                    reason: "expression".to_owned(),
                    detail: f.detail,
                }));
                None
            }
            Op::Exchange(edge) => {
                let EdgeKind::Rows(spec) = &program.keyed.edges[*edge].kind else { return Ok((None, rejected, late)) };
                let mut keep = vec![true; input.len()];
                for row in 0..input.len() {
                    let horizon = spec.horizon(&program.keyed.joins);
                    if horizon.is_some_and(|horizon| deduplicate::late(input.times[row], input.watermarks[row], horizon))
                        && self.rules.hold(Rule::Horizon)
                    {
                        keep[row] = false;
                        let what = if let Then::Join(..) = spec.then { "what the join waits for" } else { "the horizon of deduplication" };
                        late.push(refuse(row, "late", format!("behind {what}")));
                    }
                }
                let on_time = input.keep(&keep);
                let large = self.exchange(i, *edge, &spec.key, &on_time, batch, replayable);
                absorbed = (on_time.len() - large.len()) as u64;
                rejected.extend(large.into_iter().map(|row| Refused {
                    origin: on_time.origins[row],
                    step: node.name.clone(),
                    reason: "too-large".to_owned(),
                    detail: "a row that a keyed step reads has at most 1 MiB".to_owned(),
                }));
                None
            }
            Op::Files(file) => {
                let spec = &program.files[*file];
                if let State::Files(files) = &mut self.states[i]
                    && files.push(&input.batch, &input.times, spec.partition).is_ok()
                {
                    absorbed = input.len() as u64;
                }
                None
            }
            Op::Stream(sink) => {
                let (rows, failures) = stream::rows(&program.streams[*sink], &input.batch);
                rejected.extend(failures.into_iter().map(|f| refuse(f.row, "expression", f.detail)));
                absorbed = rows.len() as u64;
                let (mut before, mut nth) = (None, 0);
                for (index, row) in rows {
                    let origin = input.origins[index];
                    nth = if before == Some(origin) { nth + 1 } else { 0 };
                    before = Some(origin);
                    let what = Leaving::Record { sink: *sink, nth, row };
                    replayable.push(Replayable { position: batch.positions[origin as usize], what });
                }
                None
            }
            Op::RawFiles(_) | Op::Table(_) => None,
        };
        let counts = self.ledger.of(&node.name);
        counts.taken += input.len() as u64;
        counts.passed += output.as_ref().map_or(0, |o| o.len() as u64);
        counts.deduplicated += deduplicated;
        counts.absorbed += absorbed;
        counts.filtered += filtered;
        counts.late += late.len() as u64;
        for r in &rejected {
            counts.reject(&r.reason, 1);
        }
        Ok((output, rejected, late))
    }

    /// One message per row, numbered per key group; answers the rows that are too large for one.
    fn exchange(
        &mut self,
        i: usize,
        edge: usize,
        key_columns: &[usize],
        rows: &Rows,
        batch: &SourceBatch,
        out: &mut Vec<Replayable>,
    ) -> Vec<usize> {
        let mut large = Vec::new();
        let groups = self.program.document.key_groups;
        let State::Numbers(numbers) = &mut self.states[i] else { return large };
        let (cells, mut key) = (Cells::of(&rows.batch), KeyWriter::default());
        // The bodies of all rows are parts of one piece of memory.
        let (mut bodies, mut ends) = (Writer::default(), Vec::with_capacity(rows.len()));
        for row in 0..rows.len() {
            let start = bodies.bytes().len();
            bodies.signed(rows.times[row]);
            bodies.signed(rows.watermarks[row]);
            cells.write(row, &mut bodies);
            if bodies.bytes().len() - start > LONGEST_BODY {
                bodies.truncate(start);
                large.push(row);
                continue;
            }
            ends.push((row, start, bodies.bytes().len()));
        }
        let bodies = Bytes::from(bodies.finish());
        let edge: Arc<str> = self.program.keyed.edges[edge].name.as_str().into();
        out.extend(ends.into_iter().map(|(row, start, end)| {
            let group = KeyGroup::of(cells.key(row, key_columns, &mut key), groups);
            let message = Message {
                edge: Arc::clone(&edge),
                lineage: self.lineage.clone(),
                group,
                number: numbers.next(group),
                job: self.job,
                body: bodies.slice(start..end),
            };
            Replayable { position: batch.positions[rows.origins[row] as usize], what: Leaving::Message(message) }
        }));
        large
    }

    /// The partial results since the last cut, as messages with the numbers that follow `assigned`.
    pub fn take_partials(&mut self, assigned: &mut BTreeMap<String, Numbers>) -> Vec<Message> {
        let program = Arc::clone(&self.program);
        let mut messages = Vec::new();
        for (node, state) in program.sources[self.source].nodes.iter().zip(&mut self.states) {
            let (Op::Partial(edge), State::Groups(groups)) = (&node.op, state) else { continue };
            // Several messages when one would be too large for a record of the repartition stream.
            let EdgeKind::Partial(spec) = &program.keyed.edges[*edge].kind else { continue };
            let mut by_group: BTreeMap<KeyGroup, Vec<Writer>> = BTreeMap::new();
            groups.take(PARTIALS_BYTES, spec, |group, partial| {
                let bodies = by_group.entry(group).or_default();
                if bodies.last().is_none_or(|b| b.bytes().len() >= PARTIALS_BYTES) {
                    bodies.push(Writer::default());
                }
                if let Some(body) = bodies.last_mut() {
                    body.raw(partial);
                }
            });
            let edge: Arc<str> = program.keyed.edges[*edge].name.as_str().into();
            let numbers = assigned.entry(edge.to_string()).or_default();
            for (group, body) in by_group.into_iter().flat_map(|(g, bodies)| bodies.into_iter().map(move |b| (g, b))) {
                let numbered = if self.rules.hold(Rule::KgNum) { group } else { KeyGroup(0) };
                let number = numbers.next(numbered);
                messages.push(Message {
                    edge: Arc::clone(&edge),
                    lineage: self.lineage.clone(),
                    group,
                    number,
                    job: self.job,
                    body: body.finish().into(),
                });
            }
        }
        messages
    }

    /// The wrong variant in which staged and replayable messages share one sequence (without rule `oneseq`).
    pub fn take_partials_in_one_sequence(&mut self) -> Vec<Message> {
        let mut messages = self.take_partials(&mut BTreeMap::new());
        let shared = self.states.iter_mut().find_map(|s| if let State::Numbers(n) = s { Some(n) } else { None });
        if let Some(shared) = shared {
            messages.iter_mut().for_each(|m| m.number = shared.next(m.group));
        }
        messages
    }

    /// Whether partial results wait for a cut.
    pub fn has_partials(&self) -> bool {
        self.states.iter().any(|s| matches!(s, State::Groups(g) if !g.is_empty()))
    }

    /// Last numbers of the replayable edges.
    pub fn replayable_numbers(&self) -> impl Iterator<Item = (&str, &Numbers)> {
        self.spec().nodes.iter().zip(&self.states).filter_map(|(node, state)| match (&node.op, state) {
            (Op::Exchange(edge), State::Numbers(numbers)) => Some((self.program.keyed.edges[*edge].name.as_str(), numbers)),
            _ => None,
        })
    }

    /// Replayable edges go on at least from these numbers.
    pub fn continue_numbers(&mut self, assigned: &BTreeMap<String, Numbers>) {
        let program = Arc::clone(&self.program);
        for (node, state) in program.sources[self.source].nodes.iter().zip(&mut self.states) {
            if let (Op::Exchange(edge), State::Numbers(numbers)) = (&node.op, state)
                && let Some(known) = assigned.get(&program.keyed.edges[*edge].name)
            {
                known
                    .iter()
                    .filter(|(group, last)| numbers.last(*group) < *last)
                    .collect::<Vec<_>>()
                    .into_iter()
                    .for_each(|(g, last)| numbers.set(g, last));
            }
        }
    }

    /// The file sinks: index of the file, and the rows on their way.
    pub fn files(&mut self) -> impl Iterator<Item = (usize, &mut FileRows)> {
        self.program.sources[self.source].nodes.iter().zip(&mut self.states).filter_map(|(node, state)| match (&node.op, state) {
            (Op::Files(file) | Op::RawFiles(file), State::Files(rows)) => Some((*file, rows)),
            _ => None,
        })
    }
}

/// Whether `millis` reads columns of this type.
pub fn is_time(of: &DataType) -> bool {
    matches!(of, DataType::Int64 | DataType::Date32 | DataType::Timestamp(TimeUnit::Microsecond, _))
}

/// Event time in milliseconds.
pub fn millis(column: &Arc<dyn Array>, row: usize) -> Option<i64> {
    if column.is_null(row) {
        return None;
    }
    Some(match column.data_type() {
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row),
        DataType::Date32 => i64::from(column.as_primitive::<Date32Type>().value(row)) * 86_400_000,
        _ => column.as_primitive::<TimestampMicrosecondType>().value(row).div_euclid(1000),
    })
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
