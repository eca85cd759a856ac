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
use leat_runtime_core::value::Cell;
use leat_runtime_core::watermark::Watermark;
use leat_runtime_core::wire::{Damaged, Reader};

use super::{BATCH, KeyedChain, State};
use crate::operators::cells::{self, Builders, scale_of};
use crate::operators::rows::{Rows, Wanted};
use crate::operators::versions::Versions;

/// State of one side of a join.
pub(super) fn state(join: &JoinSpec, side: JoinSide) -> State {
    match (join.meets, side) {
        (Meets::Interval { after, .. }, JoinSide::Left) => State::Rows(Rows::new(after.saturating_add(join.allowed_lateness))),
        (Meets::Interval { before, after }, JoinSide::Right) if join.outer => {
            State::Rows(Rows::new(before.saturating_add(after).saturating_add(join.allowed_lateness)))
        }
        (Meets::Interval { before, .. }, JoinSide::Right) => State::Rows(Rows::new(before.saturating_add(join.allowed_lateness))),
        (Meets::Newest, JoinSide::Left) => State::Rows(Rows::new(join.allowed_lateness)),
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

/// Pairs on their way out.
struct Pairs<'a> {
    join: &'a JoinSpec,
    /// Number of columns of left rows.
    width: usize,
    /// The column in which each one of a right row leaves; `None`: it does not.
    places: Vec<Option<usize>>,
    rows: Builders,
}

impl<'a> Pairs<'a> {
    fn new(program: &Program, join: &'a JoinSpec, left: &RowsSpec, right: &RowsSpec) -> Self {
        let schema = &program.keyed.edges[join.edges[0]].schema;
        let width = left.schema.fields().len();
        let place = |column| join.taken.iter().position(|taken| *taken == column).map(|at| width + at);
        let places = (0..right.schema.fields().len()).map(place).collect();
        Self { join, width, places, rows: Builders::new(schema, schema.fields().len()) }
    }

    /// A left row, and the columns of a right one that leave with it.
    fn push(&mut self, left: &[u8], right: Option<&[u8]>) -> Result<(), Damaged> {
        let mut left = Reader::new(left);
        for column in 0..self.width {
            self.rows.cell(column, Cell::read(&mut left)?);
        }
        let mut right = right.map(Reader::new);
        for place in &self.places {
            let cell = right.as_mut().map_or(Ok(Cell::Null), Cell::read)?;
            if let Some(column) = place {
                self.rows.cell(*column, cell);
            }
        }
        self.rows.row();
        Ok(())
    }
}

impl KeyedChain {
    /// Takes rows of one side.
    pub(super) fn join(&mut self, program: &Program, index: usize, side: JoinSide, messages: &[Message]) -> Result<(), Damaged> {
        let join = &program.keyed.joins[index];
        let [left, right] = join.edges.map(|edge| rows_of(program, edge));
        let (Some(left), Some(right)) = (left, right) else { return Ok(()) };
        let mine = if side == JoinSide::Left { left } else { right };
        let (width, mut key, mut cells) = (mine.schema.fields().len(), KeyWriter::default(), Vec::new());
        let scales: Vec<i8> = mine.key.iter().map(|column| scale_of(mine.schema.field(*column).data_type())).collect();
        let mut out = Pairs::new(program, join, left, right);
        for message in messages {
            let mut body = Reader::new(&message.body);
            let (time, _) = (body.signed()?, body.signed()?);
            let row = body.rest();
            cells::split(row, width, &mut cells)?;
            key.clear();
            mine.key.iter().zip(&scales).for_each(|(column, scale)| cells[*column].write_key(*scale, &mut key));
            // NULL is equal to nothing: such a left row meets none, and a right one is met by none.
            let unknown = mine.key.iter().any(|column| cells[*column] == Cell::Null);
            let Ok([lefts, rights]) = self.states.get_disjoint_mut(join.edges) else { return Ok(()) };
            let key = key.bytes();
            let expected = match (&mut *lefts, &mut *rights, join.meets, side) {
                (State::Rows(lefts), State::Rows(rights), Meets::Interval { before, after }, JoinSide::Left) => {
                    if !unknown {
                        rights.of(key, time.saturating_sub(before), time.saturating_add(after), |_, other| {
                            out.push(row, Some(other)).map(|()| Wanted::More)
                        })?;
                    }
                    // One that meets nothing is kept only where it leaves all the same.
                    if !unknown || join.outer {
                        lefts.push(time, key, row);
                    }
                    lefts.done()
                }
                (State::Rows(lefts), State::Rows(rights), Meets::Interval { before, after }, JoinSide::Right) => {
                    if !unknown {
                        lefts.of(key, time.saturating_sub(after), time.saturating_add(before), |_, other| {
                            out.push(other, Some(row)).map(|()| Wanted::More)
                        })?;
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
            if out.rows.rows() >= BATCH {
                let full = std::mem::replace(&mut out, Pairs::new(program, join, left, right));
                self.pairs(program, full);
            }
        }
        let counts = self.ledger.of(&format!("{} (join)", join.name));
        counts.taken += messages.len() as u64;
        counts.absorbed += messages.len() as u64;
        self.pairs(program, out);
        Ok(())
    }

    /// Applies the watermark to all joins. `emits`: left rows that wait for it leave; else they have left before.
    pub(super) fn advance_joins(&mut self, emits: bool) -> Result<(), Damaged> {
        let program = Arc::clone(&self.program);
        for join in &program.keyed.joins {
            let [left, right] = join.edges.map(|edge| rows_of(&program, edge));
            let (Some(left), Some(right)) = (left, right) else { continue };
            let (lefts_done, rights_done) = bounds(join, self.watermark, self.rules);
            let Ok([State::Rows(lefts), rights]) = self.states.get_disjoint_mut(join.edges) else { continue };
            let mut out = Pairs::new(&program, join, left, right);
            if !emits || (!join.outer && join.meets != Meets::Newest) {
                lefts.forget(lefts_done);
            }
            lefts.finish(lefts_done, |time, key, row| match (&*rights, join.meets) {
                (State::Rows(rights), Meets::Interval { before, after }) => {
                    let mut met = false;
                    rights.of(key, time.saturating_sub(before), time.saturating_add(after), |_, _| {
                        met = true;
                        Ok(Wanted::Enough)
                    })?;
                    // Those that met one have left with it.
                    if met { Ok(()) } else { out.push(row, None) }
                }
                (State::Versions(versions), Meets::Newest) => {
                    versions.newest(key, time, |found| if join.outer || found.is_some() { out.push(row, found) } else { Ok(()) })?
                }
                _ => Ok(()),
            })?;
            match rights {
                State::Rows(rights) => rights.forget(rights_done),
                State::Versions(versions) => versions.finish(rights_done)?,
                _ => {}
            }
            self.pairs(&program, out);
        }
        Ok(())
    }

    fn pairs(&mut self, program: &Program, pairs: Pairs<'_>) {
        let (edge, count) = (&program.keyed.edges[pairs.join.edges[0]], pairs.rows.rows());
        if count == 0 {
            return;
        }
        #[expect(clippy::expect_used, reason = "the columns were made from the schema's types, one value per row")]
        let batch = RecordBatch::try_new(Arc::clone(&edge.schema), pairs.rows.finish()).expect("rows fit the edge");
        self.ledger.of(&format!("{} (join)", pairs.join.name)).emitted += count as u64;
        self.flow(From::Edge(pairs.join.edges[0]), batch);
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
