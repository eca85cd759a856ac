//! Windowed aggregates: partial results in source tasks, merged in keyed tasks. All partial results merge exactly in any
//! order, so the result does not depend on how events were cut into batches.

mod journal;
mod open;
mod sessions;
mod table;
#[cfg(test)]
mod tests;

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use leat_compile::program::{Aggregate, Function, Shape, WindowSpec};
use leat_runtime_core::key::{self, KeyGroup, KeyWriter};
use leat_runtime_core::value::Value;
use leat_runtime_core::wire::{Damaged, Reader, Writer};

pub use self::open::Windows;
pub use self::sessions::Sessions;
pub use self::table::GroupTable;
use super::cells::Cells;
use super::evaluate::{self, Failure};

/// Most bytes of a row's texts that make a group or a result of it; two of them fit into one message.
const LONGEST_TEXTS: usize = 256 << 10;

/// A result under way.
#[derive(Debug, Clone, PartialEq)]
pub enum Accumulator {
    /// Number of rows or values.
    Count(u64),
    /// Sum and number of values, exact.
    Sum(i128, u64),
    /// Smallest or largest value so far.
    Extreme(Value),
}

impl Accumulator {
    /// What changes nothing when it is merged.
    fn neutral(&self) -> Self {
        match self {
            Accumulator::Count(_) => Accumulator::Count(0),
            Accumulator::Sum(..) => Accumulator::Sum(0, 0),
            Accumulator::Extreme(_) => Accumulator::Extreme(Value::Null),
        }
    }

    fn write(&self, out: &mut Writer) {
        match self {
            Accumulator::Count(n) => {
                out.byte(0);
                out.number(*n);
            }
            Accumulator::Sum(sum, n) => {
                out.byte(1);
                out.wide(*sum as u128);
                out.number(*n);
            }
            Accumulator::Extreme(value) => {
                out.byte(2);
                value.write(out);
            }
        }
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        Ok(match from.byte()? {
            0 => Accumulator::Count(from.number()?),
            1 => Accumulator::Sum(from.wide()? as i128, from.number()?),
            2 => Accumulator::Extreme(Value::read(from)?),
            _ => return Err(Damaged("an accumulator has an unknown type")),
        })
    }

    /// The aggregate's result.
    pub fn result(&self, aggregate: &Aggregate) -> Value {
        use arrow::datatypes::DataType::{Decimal128, Float64};
        match (self, aggregate.function, &aggregate.output) {
            (Accumulator::Count(n), ..) => Value::Integer(i64::try_from(*n).unwrap_or(i64::MAX)),
            (Accumulator::Sum(_, 0), ..) => Value::Null,
            (Accumulator::Sum(sum, n), Function::Avg, Float64) => Value::Double(*sum as f64 / *n as f64),
            (Accumulator::Sum(sum, n), Function::Avg, Decimal128(_, scale)) => {
                // Rounded half away from zero, at the scale of the result.
                let from = if let Decimal128(_, s) = aggregate.input { s } else { 0 };
                let scaled = sum.saturating_mul(10i128.pow(u32::from((scale - from).unsigned_abs())));
                let n = i128::from(*n);
                let away = if (scaled % n).unsigned_abs() * 2 >= n.unsigned_abs() { scaled.signum() } else { 0 };
                Value::Decimal((scaled / n).saturating_add(away))
            }
            (Accumulator::Sum(sum, _), ..) => Value::Decimal(*sum),
            (Accumulator::Extreme(value), ..) => value.clone(),
        }
    }
}

fn take_extreme(best: &mut Value, other: &Value, function: Function) {
    if *other == Value::Null {
        return;
    }
    let order = other.order(best);
    if *best == Value::Null || (function == Function::Min && order.is_lt()) || (function == Function::Max && order.is_gt()) {
        best.clone_from(other);
    }
}

/// Groups of a source task by window and key, since the last cut.
#[derive(Debug, Clone)]
pub struct Groups {
    table: GroupTable,
    /// Rows that went into each.
    rows: Vec<u64>,
    /// Places of the key's columns among those of the key.
    columns: Vec<usize>,
    canonical: KeyWriter,
    /// Cells of the key that is looked at.
    key: Writer,
}

impl Groups {
    /// None, for such windows.
    pub fn new(spec: &WindowSpec) -> Self {
        let columns = (0..spec.group_by.len()).collect();
        Self { table: GroupTable::new(spec), rows: Vec::new(), columns, canonical: KeyWriter::default(), key: Writer::default() }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.table.groups() == 0
    }

    /// All groups as partial results, in no order; nothing is left. One whose texts are longer than `longest` together leaves in a
    /// part for each of its results: merged they are the whole.
    pub fn take(&mut self, longest: usize, spec: &WindowSpec, mut each: impl FnMut(KeyGroup, &[u8])) {
        let (table, rows) = (std::mem::replace(&mut self.table, GroupTable::new(spec)), std::mem::take(&mut self.rows));
        let mut out = Writer::default();
        for row in 0..table.groups() {
            let parts = if table.texts_of(row) > longest { spec.aggregates.len() } else { 0 };
            for part in 0..parts.max(1) {
                out.truncate(0);
                let count = if part == 0 { rows[row] } else { 0 };
                table.write_partial(row, table.span(row), (parts > 0).then_some(part), count, &mut out, spec);
                each(table.key_group(row), out.bytes());
            }
        }
    }

    /// Memory, bytes, about.
    pub fn memory(&self) -> usize {
        self.table.memory() + self.rows.capacity() * size_of::<u64>()
    }

    /// Adds rows to their windows. `times` has each row's event time in ms. Rows for which an argument or filter fails
    /// are reported and not added.
    pub fn add(&mut self, rows: &RecordBatch, times: &[i64], spec: &WindowSpec, key_groups: u16) -> Vec<Failure> {
        let evaluated: Vec<(Option<ArrayRef>, Option<ArrayRef>, Vec<Failure>)> = spec
            .aggregates
            .iter()
            .map(|a| {
                let (argument, mut failures) = a.argument.as_ref().map_or((None, Vec::new()), |e| {
                    let (array, failures) = evaluate::evaluate(e, rows);
                    (Some(array), failures)
                });
                let filter = a.filter.as_ref().map(|e| {
                    let (array, more) = evaluate::evaluate(e, rows);
                    failures.extend(more);
                    array
                });
                (argument, filter, failures)
            })
            .collect();
        let mut failures: Vec<Failure> = evaluated.iter().flat_map(|(_, _, f)| f.clone()).collect();
        let keys: Vec<&ArrayRef> = spec.group_by.iter().map(|i| rows.column(*i)).collect();
        let extremes = spec.aggregates.iter().zip(&evaluated).filter(|(a, _)| matches!(a.function, Function::Min | Function::Max));
        failures.extend(too_long(keys.iter().copied().chain(extremes.filter_map(|(_, (argument, ..))| argument.as_ref())), times.len()));
        failures.sort_by_key(|f| f.row);
        failures.dedup_by_key(|f| f.row);
        let cells = Cells::among(keys.iter().copied());
        let mut failed = failures.iter().map(|f| f.row).peekable();
        let mut at: Vec<usize> = Vec::with_capacity(times.len());
        for (row, time) in times.iter().enumerate() {
            if failed.next_if_eq(&row).is_some() {
                at.push(table::NOWHERE);
                continue;
            }
            let group = self.find(*time, &cells, row, spec, key_groups);
            self.rows[group] += 1;
            at.push(group);
        }
        for (i, (aggregate, (argument, filter, _))) in spec.aggregates.iter().zip(&evaluated).enumerate() {
            self.table.accumulate(i, aggregate, argument.as_ref(), filter.as_ref(), &at);
        }
        failures
    }

    /// Index of the group of a row, made when it is new. Of a session there may be several that the keyed task makes one.
    fn find(&mut self, time: i64, cells: &Cells<'_>, row: usize, spec: &WindowSpec, key_groups: u16) -> usize {
        let start = spec.shape.pane().map_or(time, |pane| start_of(time, pane));
        self.key.truncate(0);
        cells.write(row, &mut self.key);
        let gap = if let Shape::Session(gap) = spec.shape { gap.millis() } else { 0 };
        // Windows of a key are told apart by the hash, sessions are not.
        let window = if let Shape::Session(_) = spec.shape { 0 } else { start as u64 };
        let hash = key::hash(self.key.bytes()) ^ window.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let near = |(first, last): (i64, i64)| (first.saturating_sub(gap)..=last.saturating_add(gap)).contains(&start);
        let found = self.table.of(hash, self.key.bytes()).find(|group| near(self.table.span(*group)));
        let group = found.unwrap_or_else(|| {
            let key_group = KeyGroup::of(cells.key(row, &self.columns, &mut self.canonical), key_groups);
            self.rows.push(0);
            self.table.push(hash, self.key.bytes(), key_group)
        });
        let (first, last) = if found.is_some() { self.table.span(group) } else { (start, start) };
        self.table.set_span(group, (first.min(start), last.max(start)));
        group
    }
}

/// The rows whose texts are too long together for a group: it travels and is kept as a whole.
fn too_long<'a>(columns: impl Iterator<Item = &'a ArrayRef>, rows: usize) -> Vec<Failure> {
    let texts: Vec<_> = columns.filter_map(|column| column.as_string_opt::<i32>()).collect();
    if texts.iter().map(|text| text.values().len()).sum::<usize>() <= LONGEST_TEXTS {
        return Vec::new();
    }
    let length = |row: usize| texts.iter().map(|text| text.value_length(row) as usize).sum::<usize>();
    let long = (0..rows).filter(|row| length(*row) > LONGEST_TEXTS);
    long.map(|row| Failure::of(row, format!("the texts of a group have at most {LONGEST_TEXTS} bytes together"))).collect()
}

/// Start of the window of this length in which a time lies, ms.
fn start_of(time: i64, length: i64) -> i64 {
    time.div_euclid(length).saturating_mul(length)
}

/// Whether an event comes too late for its window, by its lineage's watermark before it. Of a session it is too late when it
/// lies further behind than allowed, whatever session it might belong to: so the verdict hangs on its lineage alone.
pub fn late(time: i64, watermark: i64, spec: &WindowSpec) -> bool {
    let lateness = spec.allowed_lateness.millis();
    match spec.shape.pane() {
        // Of several windows the first, so that a row is in all of its windows or in none.
        Some(pane) => start_of(time, pane).saturating_add(pane).saturating_add(lateness) <= watermark,
        None => time.saturating_add(lateness) < watermark,
    }
}

/// What is known of a partial result that was taken.
#[derive(Debug, Clone, Copy)]
pub struct Partial {
    /// Start of the window, or the first event's time of a session, ms.
    pub start: i64,
    /// Rows that went in.
    pub rows: u64,
}

/// Groups on their way out: of a window, or sessions.
#[derive(Debug, Clone)]
pub struct Closed {
    /// Start of the window, ms.
    pub start: i64,
    /// The groups.
    pub table: GroupTable,
}

/// Reads over a partial result; answers its bytes.
#[cfg(feature = "ablation")]
pub fn pass<'a>(from: &mut Reader<'a>, spec: &WindowSpec) -> Result<&'a [u8], Damaged> {
    let bytes = from.rest();
    table::Begun::read(from, spec, &mut Writer::default())?;
    table::skip(from, spec)?;
    Ok(&bytes[..bytes.len() - from.rest().len()])
}

fn read_key_group(from: &mut Reader<'_>) -> Result<KeyGroup, Damaged> {
    Ok(KeyGroup(u16::try_from(from.number()?).map_err(|_| Damaged("a key group is out of range"))?))
}
