//! Windowed aggregates: partial results in source tasks, merged in keyed tasks. All partial results merge exactly in any
//! order, so the result does not depend on how events were cut into batches.

mod journal;
mod open;
mod sessions;
mod table;
#[cfg(test)]
mod tests;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{Decimal128Type, Int64Type};
use hashbrown::HashMap;
use leat_compile::program::{Aggregate, Function, Shape, WindowSpec};
use leat_runtime_core::key::{KeyGroup, KeyWriter};
use leat_runtime_core::value::Value;
use leat_runtime_core::wire::{Damaged, Reader, Writer};

pub use self::open::Windows;
pub use self::sessions::Sessions;
pub use self::table::GroupTable;
use super::cells::Cells;
use super::evaluate::{self, Failure};

/// Most bytes of a row's texts that make a group or a result of it; two of them fit into one message.
const LONGEST_TEXTS: usize = 256 << 10;

/// Groups of many that are weighed.
const WEIGHED: usize = 64;

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
    fn new(function: Function) -> Self {
        match function {
            Function::Count => Accumulator::Count(0),
            Function::Sum | Function::Avg => Accumulator::Sum(0, 0),
            Function::Min | Function::Max => Accumulator::Extreme(Value::Null),
        }
    }

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

/// One window of one group.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Start of the window, or the first event's time of a session: milliseconds since the epoch.
    pub start: i64,
    /// Of a session, the last event's time.
    pub last: i64,
    /// Values of the group's columns.
    pub key: Vec<Value>,
    /// Key group of the key.
    pub group: KeyGroup,
    /// Results under way, in the order of the aggregates.
    pub accumulators: Vec<Accumulator>,
    /// Rows that went in.
    pub rows: u64,
}

impl Group {
    /// Writes the group; its key group is not written, it follows from where the bytes are kept.
    pub fn write(&self, out: &mut Writer, shape: Shape) {
        out.signed(self.start);
        if let Shape::Session(_) = shape {
            out.signed(self.last.saturating_sub(self.start));
        }
        self.key.iter().for_each(|v| v.write(out));
        self.accumulators.iter().for_each(|a| a.write(out));
        out.number(self.rows);
    }

    /// Itself, or, when its texts are longer than this together, a part for each of its results: merged they are the whole.
    pub fn divide(self, longest: usize) -> Vec<Group> {
        let text = |value: &Value| if let Value::Text(text) = value { text.len() } else { 0 };
        let of = |accumulator: &Accumulator| if let Accumulator::Extreme(value) = accumulator { text(value) } else { 0 };
        if self.key.iter().map(text).sum::<usize>() + self.accumulators.iter().map(of).sum::<usize>() <= longest {
            return vec![self];
        }
        let part = |i: usize| {
            let neutral = |(j, whole): (usize, &Accumulator)| if i == j { whole.clone() } else { whole.neutral() };
            let accumulators = self.accumulators.iter().enumerate().map(neutral).collect();
            Group { accumulators, rows: if i == 0 { self.rows } else { 0 }, ..self.clone() }
        };
        (0..self.accumulators.len().max(1)).map(part).collect()
    }

    /// Memory, bytes, about.
    pub fn memory(&self) -> usize {
        let values = self.accumulators.iter().filter_map(|a| if let Accumulator::Extreme(value) = a { Some(value) } else { None });
        let texts = self.key.iter().chain(values).map(|value| if let Value::Text(text) = value { text.len() } else { 0 });
        size_of::<Self>() + size_of_val(&*self.accumulators) + size_of_val(&*self.key) + texts.sum::<usize>()
    }
}

/// Groups by window and key.
#[derive(Debug, Clone, Default)]
pub struct Groups {
    index: HashMap<Box<[u8]>, usize>,
    groups: Vec<Group>,
    /// Places of the key's columns among those of the key.
    columns: Vec<usize>,
    scratch: KeyWriter,
    bytes: Vec<u8>,
}

impl Groups {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// All groups, in no order; nothing is left.
    pub fn take(&mut self) -> Vec<Group> {
        self.index.clear();
        std::mem::take(&mut self.groups)
    }

    /// All groups.
    pub fn iter(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter()
    }

    /// Memory, bytes, about.
    pub fn memory(&self) -> usize {
        average(self.groups.iter()) * self.groups.len()
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
        self.columns = (0..keys.len()).collect();
        let mut failed = failures.iter().map(|f| f.row).peekable();
        let mut at: Vec<usize> = Vec::with_capacity(times.len());
        for (row, time) in times.iter().enumerate() {
            if failed.next_if_eq(&row).is_some() {
                at.push(usize::MAX);
                continue;
            }
            let group = self.find(*time, &keys, &cells, row, spec, key_groups);
            self.groups[group].rows += 1;
            at.push(group);
        }
        for (i, (aggregate, (argument, filter, _))) in spec.aggregates.iter().zip(&evaluated).enumerate() {
            self.accumulate(i, aggregate, argument.as_ref(), filter.as_ref(), &at);
        }
        failures
    }

    /// Index of the group of a row, made when it is new. Of a session there may be several that the keyed task makes one.
    fn find(&mut self, time: i64, keys: &[&ArrayRef], cells: &Cells<'_>, row: usize, spec: &WindowSpec, key_groups: u16) -> usize {
        self.bytes.clear();
        let start = match spec.shape.pane() {
            Some(pane) => {
                let start = start_of(time, pane);
                self.bytes.extend(start.to_le_bytes());
                start
            }
            None => time,
        };
        self.bytes.extend(cells.key(row, &self.columns, &mut self.scratch));
        if let Some(found) = self.index.get(&self.bytes[..]).copied() {
            let Shape::Session(gap) = spec.shape else { return found };
            let group = &mut self.groups[found];
            if (group.start.saturating_sub(gap.millis())..=group.last.saturating_add(gap.millis())).contains(&time) {
                (group.start, group.last) = (group.start.min(time), group.last.max(time));
                return found;
            }
        }
        let group = Group {
            start,
            last: start,
            key: keys.iter().map(|a| evaluate::value(a, row)).collect(),
            group: KeyGroup::of(self.scratch.bytes(), key_groups),
            accumulators: spec.aggregates.iter().map(|a| Accumulator::new(a.function)).collect(),
            rows: 0,
        };
        self.index.insert(self.bytes.as_slice().into(), self.groups.len());
        self.groups.push(group);
        self.groups.len() - 1
    }

    fn accumulate(&mut self, i: usize, aggregate: &Aggregate, argument: Option<&ArrayRef>, filter: Option<&ArrayRef>, at: &[usize]) {
        let filter = filter.and_then(|f| f.as_boolean_opt());
        let takes = |row: usize| filter.is_none_or(|f| f.is_valid(row) && f.value(row));
        let rows = at.iter().enumerate().filter(|(_, group)| **group != usize::MAX);
        match (aggregate.function, argument) {
            (Function::Count, argument) => {
                rows.filter(|(row, _)| takes(*row) && argument.is_none_or(|a| a.is_valid(*row))).for_each(|(_, group)| {
                    if let Accumulator::Count(n) = &mut self.groups[*group].accumulators[i] {
                        *n += 1;
                    }
                })
            }
            (Function::Sum | Function::Avg, Some(argument)) => {
                let decimals = argument.as_primitive_opt::<Decimal128Type>();
                let integers = argument.as_primitive_opt::<Int64Type>();
                for (row, group) in rows.filter(|(row, _)| takes(*row) && argument.is_valid(*row)) {
                    let value = decimals.map(|d| d.value(row)).or_else(|| integers.map(|v| i128::from(v.value(row))));
                    if let (Accumulator::Sum(sum, n), Some(value)) = (&mut self.groups[*group].accumulators[i], value) {
                        *sum = sum.saturating_add(value);
                        *n += 1;
                    }
                }
            }
            (function, Some(argument)) => {
                for (row, group) in rows.filter(|(row, _)| takes(*row) && argument.is_valid(*row)) {
                    if let Accumulator::Extreme(best) = &mut self.groups[*group].accumulators[i] {
                        take_extreme(best, &evaluate::value(argument, row), function);
                    }
                }
            }
            (_, None) => {}
        }
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

/// Memory that one of many groups takes where it is kept, by the first of them.
pub fn average<'a>(groups: impl Iterator<Item = &'a Group>) -> usize {
    let (count, bytes) = groups.take(WEIGHED).fold((0_usize, 0_usize), |(count, bytes), group| (count + 1, bytes + group.memory()));
    // Its key stands in an index too, in which there is some air.
    bytes.checked_div(count).map_or(0, |bytes| bytes * 3 / 2 + 64)
}
