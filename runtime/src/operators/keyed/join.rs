//! Joins: rows of two edges that have the same key meet, whichever comes first.
//!
//! Rows that are still to come lie at most the allowed lateness behind the watermark, since they would be late at their source
//! otherwise. So what can meet none of them is known, and what leaves does not depend on the order in which rows and watermarks
//! come.

use std::sync::Arc;

use arrow::array::RecordBatch;
use leat_compile::program::{EdgeKind, From, JoinSide, JoinSpec, Meets, Program, RowsSpec};
use leat_runtime_core::key::KeyWriter;
use leat_runtime_core::message::Message;
use leat_runtime_core::rules::{Rule, Rules};
use leat_runtime_core::value::Value;
use leat_runtime_core::watermark::Watermark;
use leat_runtime_core::wire::{Damaged, Reader};

use super::{KeyedChain, State};
use crate::operators::evaluate;
use crate::operators::rows::Rows;
use crate::operators::versions::Versions;

/// Rows that leave together at most.
const BATCH: usize = 8192;
/// Left rows of a temporal join wait about as long as rows are out of order, ms.
const SHORT: i64 = 8_000;

/// State of one side of a join.
pub(super) fn state(join: &JoinSpec, side: JoinSide) -> State {
    match (join.meets, side) {
        (Meets::Interval { before, after }, _) => State::Rows(Rows::new(before.saturating_add(after))),
        (Meets::Newest, JoinSide::Left) => State::Rows(Rows::new(SHORT)),
        (Meets::Newest, JoinSide::Right) => State::Versions(Versions::default()),
    }
}

/// The times before which left and right rows are needed no more.
fn bounds(join: &JoinSpec, watermark: Watermark, rules: Rules) -> (i64, i64) {
    // Rows before this one are late.
    let late = watermark.0.saturating_sub(if rules.hold(Rule::Waits) { join.allowed_lateness } else { 0 });
    match join.meets {
        Meets::Newest => (late, late),
        Meets::Interval { before, after } => {
            let floor = |time: i64| time.div_euclid(join.grain()).saturating_mul(join.grain());
            let left = floor(late.saturating_sub(after));
            // A left row that met none is told from one that did by the right rows, so they stay until it has left.
            let right = if join.outer { left.saturating_sub(before) } else { floor(late.saturating_sub(before)) };
            (left, right)
        }
    }
}

fn rows_of(program: &Program, edge: usize) -> Option<&RowsSpec> {
    if let EdgeKind::Rows(rows) = &program.keyed.edges[edge].kind { Some(rows) } else { None }
}

fn decode(row: &[u8], rows: &RowsSpec) -> Result<Vec<Value>, Damaged> {
    let mut from = Reader::new(row);
    rows.schema.fields().iter().map(|_| Value::read(&mut from)).collect()
}

/// A left row, and the columns of a right one that leave with it.
fn pair(left: &[Value], right: Option<&[Value]>, join: &JoinSpec) -> Vec<Value> {
    let taken = join.taken.iter().map(|i| right.and_then(|r| r.get(*i)).cloned().unwrap_or(Value::Null));
    left.iter().cloned().chain(taken).collect()
}

impl KeyedChain {
    /// Takes rows of one side.
    pub(super) fn join(&mut self, program: &Program, index: usize, side: JoinSide, messages: &[Message]) -> Result<(), Damaged> {
        let join = &program.keyed.joins[index];
        let [left, right] = join.edges.map(|edge| rows_of(program, edge));
        let (Some(left), Some(right)) = (left, right) else { return Ok(()) };
        let mine = if side == JoinSide::Left { left } else { right };
        let mut key = KeyWriter::default();
        let mut out = Vec::new();
        for message in messages {
            let mut body = Reader::new(&message.body);
            let (time, _) = (body.signed()?, body.signed()?);
            let row = body.rest();
            let values = decode(row, mine)?;
            key.clear();
            for column in &mine.key {
                let scale = if let arrow::datatypes::DataType::Decimal128(_, s) = mine.schema.field(*column).data_type() { *s } else { 0 };
                values[*column].write_key(scale, &mut key);
            }
            // NULL is equal to nothing: such a left row meets none, and a right one is met by none.
            let unknown = mine.key.iter().any(|column| values[*column] == Value::Null);
            let Ok([lefts, rights]) = self.states.get_disjoint_mut(join.edges) else { return Ok(()) };
            let key = key.bytes();
            let expected = match (&mut *lefts, &mut *rights, join.meets, side) {
                (State::Rows(lefts), State::Rows(rights), Meets::Interval { before, after }, JoinSide::Left) => {
                    if !unknown {
                        for (_, other) in rights.of(key, time.saturating_sub(before), time.saturating_add(after)) {
                            out.push(pair(&values, Some(&decode(other, right)?), join));
                        }
                    }
                    lefts.push(time, key, row);
                    lefts.done()
                }
                (State::Rows(lefts), State::Rows(rights), Meets::Interval { before, after }, JoinSide::Right) => {
                    if !unknown {
                        for (_, other) in lefts.of(key, time.saturating_sub(after), time.saturating_add(before)) {
                            out.push(pair(&decode(other, left)?, Some(&values), join));
                        }
                        rights.push(time, key, row);
                    }
                    rights.done()
                }
                (State::Rows(lefts), _, Meets::Newest, JoinSide::Left) => {
                    lefts.push(time, key, row);
                    lefts.done()
                }
                (_, State::Versions(versions), Meets::Newest, JoinSide::Right) => {
                    if !unknown {
                        versions.push(time, message.lineage.as_str(), message.number, key, row);
                    }
                    versions.done()
                }
                _ => continue,
            };
            if time < expected {
                self.broken = Some(format!(
                    "{}: a row of {} for {time} came at watermark {}, when rows before {expected} were done",
                    message.edge, message.lineage, self.watermark
                ));
            }
            if out.len() >= BATCH {
                self.pairs(program, join, &std::mem::take(&mut out));
            }
        }
        let counts = self.ledger.of(&format!("{} (join)", join.name));
        counts.taken += messages.len() as u64;
        counts.absorbed += messages.len() as u64;
        self.pairs(program, join, &out);
        Ok(())
    }

    /// Applies the watermark to all joins. `emits`: left rows that wait for it leave; else they have left before.
    pub(super) fn advance_joins(&mut self, emits: bool) {
        let program = Arc::clone(&self.program);
        for join in &program.keyed.joins {
            let [left, right] = join.edges.map(|edge| rows_of(&program, edge));
            let (Some(left), Some(right)) = (left, right) else { continue };
            let (lefts_done, rights_done) = bounds(join, self.watermark, self.rules);
            let Ok([State::Rows(lefts), rights]) = self.states.get_disjoint_mut(join.edges) else { continue };
            let mut out = Vec::new();
            lefts.finish(lefts_done, |time, key, row| {
                if !emits {
                    return;
                }
                let found = match (&*rights, join.meets) {
                    // Those that met one have left with it.
                    (State::Rows(rights), Meets::Interval { before, after }) => {
                        let meets = rights.of(key, time.saturating_sub(before), time.saturating_add(after)).next().is_some();
                        if meets { return } else { None }
                    }
                    (State::Versions(versions), Meets::Newest) => versions.newest(key, time),
                    _ => None,
                };
                let found = found.map(|row| decode(row, right));
                // Both were decoded when they came.
                if let (Ok(row), true) = (decode(row, left), join.outer || found.is_some()) {
                    out.push(pair(&row, found.and_then(Result::ok).as_deref(), join));
                }
            });
            match rights {
                State::Rows(rights) => rights.finish(rights_done, |_, _, _| {}),
                State::Versions(versions) => versions.finish(rights_done),
                _ => {}
            }
            for some in out.chunks(BATCH) {
                self.pairs(&program, join, some);
            }
        }
    }

    fn pairs(&mut self, program: &Program, join: &JoinSpec, rows: &[Vec<Value>]) {
        if rows.is_empty() {
            return;
        }
        let edge = &program.keyed.edges[join.edges[0]];
        let columns = edge.schema.fields().iter().enumerate().map(|(c, f)| evaluate::column(rows.iter().map(|r| &r[c]), f.data_type()));
        #[expect(clippy::expect_used, reason = "the columns were made from the schema's types, one value per row")]
        let batch = RecordBatch::try_new(Arc::clone(&edge.schema), columns.collect()).expect("rows fit the edge");
        self.ledger.of(&format!("{} (join)", join.name)).emitted += rows.len() as u64;
        self.flow(From::Edge(join.edges[0]), batch);
    }

    /// Left rows that wait for a watermark to leave.
    pub(super) fn waiting(&self) -> u64 {
        let waits = |join: &&JoinSpec| join.outer || join.meets == Meets::Newest;
        let rows = self.program.keyed.joins.iter().filter(waits).map(|join| match &self.states[join.edges[0]] {
            State::Rows(rows) => rows.waiting() as u64,
            _ => 0,
        });
        rows.sum()
    }
}
