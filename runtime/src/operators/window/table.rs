//! Groups with their results under way, column by column: a group takes tens of bytes, and one that is there already is found
//! and added to without making anything.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{Decimal128Type, Int64Type};
use hashbrown::HashTable;
use leat_compile::program::{Aggregate, Function, Shape, WindowSpec};
use leat_runtime_core::key::{self, KeyGroup, KeyWriter};
use leat_runtime_core::value::{Cell, Value};
use leat_runtime_core::wire::{Damaged, Reader, Writer};

use super::{Accumulator, take_extreme};
use crate::operators::cells::scale_of;
use crate::operators::evaluate;

/// The group of a row that is in none.
pub const NOWHERE: usize = usize::MAX;

/// Results under way of one aggregate, by group.
#[derive(Debug, Clone)]
enum Results {
    Counts(Vec<u64>),
    Sums(Vec<i128>, Vec<u64>),
    Extremes(Vec<Value>),
}

impl Results {
    fn new(function: Function) -> Self {
        match function {
            Function::Count => Results::Counts(Vec::new()),
            Function::Sum | Function::Avg => Results::Sums(Vec::new(), Vec::new()),
            Function::Min | Function::Max => Results::Extremes(Vec::new()),
        }
    }

    /// Of a group that nothing was added to.
    fn push(&mut self) {
        match self {
            Results::Counts(counts) => counts.push(0),
            Results::Sums(sums, counts) => {
                sums.push(0);
                counts.push(0);
            }
            Results::Extremes(values) => values.push(Value::Null),
        }
    }

    /// Adds a partial result; answers how many bytes of text there are more.
    fn add(&mut self, row: usize, other: &Accumulator, function: Function) -> isize {
        match (self, other) {
            (Results::Counts(counts), Accumulator::Count(n)) => counts[row] = counts[row].saturating_add(*n),
            (Results::Sums(sums, counts), Accumulator::Sum(sum, n)) => {
                sums[row] = sums[row].saturating_add(*sum);
                counts[row] = counts[row].saturating_add(*n);
            }
            (Results::Extremes(values), Accumulator::Extreme(value)) => {
                let before = text(&values[row]);
                take_extreme(&mut values[row], value, function);
                return text(&values[row]) as isize - before as isize;
            }
            _ => {}
        }
        0
    }

    fn get(&self, row: usize) -> Accumulator {
        match self {
            Results::Counts(counts) => Accumulator::Count(counts[row]),
            Results::Sums(sums, counts) => Accumulator::Sum(sums[row], counts[row]),
            Results::Extremes(values) => Accumulator::Extreme(values[row].clone()),
        }
    }

    /// Memory, bytes, but for texts.
    fn memory(&self) -> usize {
        match self {
            Results::Counts(counts) => counts.capacity() * size_of::<u64>(),
            Results::Sums(sums, counts) => sums.capacity() * size_of::<i128>() + counts.capacity() * size_of::<u64>(),
            Results::Extremes(values) => values.capacity() * size_of::<Value>(),
        }
    }

    /// Bytes of a group as it is written, about.
    fn width(&self) -> usize {
        match self {
            Results::Counts(_) => 3,
            Results::Sums(..) => 19,
            Results::Extremes(_) => 8,
        }
    }
}

fn text(value: &Value) -> usize {
    if let Value::Text(text) = value { text.len() } else { 0 }
}

/// What a partial result says before its results.
#[derive(Debug, Clone, Copy)]
pub struct Begun {
    /// Start of the window, or the first event's time of a session, ms.
    pub start: i64,
    /// Of a session, the last event's time, ms.
    pub last: i64,
    /// Hash of its key.
    pub hash: u64,
}

impl Begun {
    /// Reads it, and into `key` the cells of its key, such that equal keys have equal bytes.
    pub fn read(from: &mut Reader<'_>, spec: &WindowSpec, key: &mut Writer) -> Result<Self, Damaged> {
        let start = from.signed()?;
        let last = if let Shape::Session(_) = spec.shape { start.saturating_add(from.signed()?) } else { start };
        key.truncate(0);
        for _ in &spec.group_by {
            match Cell::read(from)? {
                Cell::Double(0.0) => Cell::Double(0.0).write(key),
                Cell::Double(v) if v.is_nan() => Cell::Double(f64::NAN).write(key),
                cell => cell.write(key),
            }
        }
        Ok(Self { start, last, hash: key::hash(key.bytes()) })
    }
}

/// Reads over the results of a partial result; answers the rows that went in.
pub fn skip(from: &mut Reader<'_>, spec: &WindowSpec) -> Result<u64, Damaged> {
    for _ in &spec.aggregates {
        Accumulator::read(from)?;
    }
    from.number()
}

/// Groups by key.
#[derive(Debug, Clone, Default)]
pub struct GroupTable {
    index: HashTable<u32>,
    hashes: Vec<u64>,
    /// The cells of each key, one group after the other.
    keys: Vec<u8>,
    /// Where those of each end.
    ends: Vec<usize>,
    key_groups: Vec<KeyGroup>,
    /// By aggregate.
    results: Vec<Results>,
    /// Of sessions their first and last times, ms.
    spans: Vec<(i64, i64)>,
    /// It changed since it was last emitted.
    dirty: Vec<bool>,
    /// Bytes of texts among the results.
    texts: usize,
}

impl GroupTable {
    /// No groups, for such windows.
    pub fn new(spec: &WindowSpec) -> Self {
        Self { results: spec.aggregates.iter().map(|a| Results::new(a.function)).collect(), ..Self::default() }
    }

    /// Number of groups.
    pub fn groups(&self) -> usize {
        self.hashes.len()
    }

    /// Memory, bytes, about.
    pub fn memory(&self) -> usize {
        let each = size_of::<u64>() + size_of::<usize>() + size_of::<KeyGroup>() + size_of::<bool>();
        let results: usize = self.results.iter().map(Results::memory).sum();
        let spans = self.spans.capacity() * size_of::<(i64, i64)>();
        size_of::<Self>()
            + self.index.allocation_size()
            + self.hashes.capacity() * each
            + self.keys.capacity()
            + results
            + spans
            + self.texts
    }

    /// Bytes of all groups as they are written, about.
    pub fn written(&self) -> usize {
        let each = 9 + self.results.iter().map(Results::width).sum::<usize>();
        self.keys.len() + self.groups() * each + self.texts
    }

    /// Cells of a group's key.
    pub fn key(&self, row: usize) -> &[u8] {
        let start = row.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.keys[start..self.ends[row]]
    }

    /// Hash of a group's key.
    pub fn hash(&self, row: usize) -> u64 {
        self.hashes[row]
    }

    /// The groups of a key: of a window there is at most one.
    pub fn of<'a>(&'a self, hash: u64, key: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
        self.index.iter_hash(hash).map(|row| *row as usize).filter(move |row| self.hashes[*row] == hash && self.key(*row) == key)
    }

    /// A group that nothing was added to yet.
    pub fn push(&mut self, hash: u64, key: &[u8], key_group: KeyGroup) -> usize {
        // Four thousand million groups would be a hundred gigabytes of memory.
        let row = self.groups();
        self.index.insert_unique(hash, row as u32, |i| self.hashes[*i as usize]);
        self.hashes.push(hash);
        self.keys.extend(key);
        self.ends.push(self.keys.len());
        self.key_groups.push(key_group);
        self.results.iter_mut().for_each(Results::push);
        self.dirty.push(false);
        row
    }

    /// The group is not found any more. Its memory is that of the table.
    pub fn unlink(&mut self, row: usize) {
        if let Ok(found) = self.index.find_entry(self.hashes[row], |i| *i as usize == row) {
            found.remove();
        }
    }

    /// Reads results and adds them to a group; answers the rows that went in.
    pub fn read(&mut self, row: usize, from: &mut Reader<'_>, spec: &WindowSpec) -> Result<u64, Damaged> {
        for (results, aggregate) in self.results.iter_mut().zip(&spec.aggregates) {
            let more = results.add(row, &Accumulator::read(from)?, aggregate.function);
            self.texts = self.texts.saturating_add_signed(more);
        }
        from.number()
    }

    /// Adds the rows of a batch to one result of their groups; `at` says which those are, for each row.
    pub fn accumulate(
        &mut self,
        index: usize,
        aggregate: &Aggregate,
        argument: Option<&ArrayRef>,
        filter: Option<&ArrayRef>,
        at: &[usize],
    ) {
        let filter = filter.and_then(|f| f.as_boolean_opt());
        let takes = |row: usize| filter.is_none_or(|f| f.is_valid(row) && f.value(row)) && argument.is_none_or(|a| a.is_valid(row));
        let rows = at.iter().copied().enumerate().filter(|(row, group)| *group != NOWHERE && takes(*row));
        match (&mut self.results[index], argument) {
            (Results::Counts(counts), _) => rows.for_each(|(_, group)| counts[group] += 1),
            (Results::Sums(sums, counts), Some(argument)) => {
                let decimals = argument.as_primitive_opt::<Decimal128Type>();
                let integers = argument.as_primitive_opt::<Int64Type>();
                for (row, group) in rows {
                    let value = decimals.map(|d| d.value(row)).or_else(|| integers.map(|v| i128::from(v.value(row))));
                    if let Some(value) = value {
                        sums[group] = sums[group].saturating_add(value);
                        counts[group] += 1;
                    }
                }
            }
            (Results::Extremes(values), Some(argument)) => {
                for (row, group) in rows {
                    let before = text(&values[group]);
                    take_extreme(&mut values[group], &evaluate::value(argument, row), aggregate.function);
                    self.texts = (self.texts + text(&values[group])).saturating_sub(before);
                }
            }
            (_, None) => {}
        }
    }

    /// Adds the results of a group of another table.
    pub fn add(&mut self, row: usize, other: &GroupTable, at: usize, spec: &WindowSpec) {
        for ((mine, theirs), aggregate) in self.results.iter_mut().zip(&other.results).zip(&spec.aggregates) {
            let more = mine.add(row, &theirs.get(at), aggregate.function);
            self.texts = self.texts.saturating_add_signed(more);
        }
    }

    /// Adds the results of another group of this table.
    pub fn unite(&mut self, row: usize, other: usize, spec: &WindowSpec) {
        for (results, aggregate) in self.results.iter_mut().zip(&spec.aggregates) {
            let more = results.add(row, &results.get(other), aggregate.function);
            self.texts = self.texts.saturating_add_signed(more);
        }
    }

    /// Takes in a group of another table, of which it has none.
    pub fn copy(&mut self, other: &GroupTable, at: usize, spec: &WindowSpec) -> usize {
        let row = self.push(other.hashes[at], other.key(at), other.key_groups[at]);
        self.add(row, other, at, spec);
        self.dirty[row] = other.dirty[at];
        self.spans.extend(other.spans.get(at));
        row
    }

    /// First and last time of a session, ms.
    pub fn span(&self, row: usize) -> (i64, i64) {
        self.spans.get(row).copied().unwrap_or_default()
    }

    /// Says first and last time of a session, ms.
    pub fn set_span(&mut self, row: usize, span: (i64, i64)) {
        self.spans.resize(self.groups(), (0, 0));
        self.spans[row] = span;
    }

    /// Whether the group changed since it was last emitted.
    pub fn is_dirty(&self, row: usize) -> bool {
        self.dirty[row]
    }

    /// Says whether the group changed since it was last emitted; answers what was said before.
    pub fn set_dirty(&mut self, row: usize, dirty: bool) -> bool {
        std::mem::replace(&mut self.dirty[row], dirty)
    }

    /// Marks all groups as changed.
    pub fn mark_all(&mut self) {
        self.dirty.fill(true);
    }

    /// Writes a group with its key group, as a partial result of a window that starts then, or of a session. Its rows were counted
    /// when they came.
    pub fn write(&self, row: usize, start: i64, out: &mut Writer, spec: &WindowSpec) {
        out.number(u64::from(self.key_groups[row].0));
        let span = if let Shape::Session(_) = spec.shape { self.span(row) } else { (start, start) };
        self.write_partial(row, span, None, 0, out, spec);
    }

    /// Writes a group as a partial result of so many rows, which [`Begun::read`] and [`Self::read`] read. `only`: with that result
    /// alone. Its key group is not written, it follows from where the bytes are kept.
    pub fn write_partial(&self, row: usize, span: (i64, i64), only: Option<usize>, rows: u64, out: &mut Writer, spec: &WindowSpec) {
        out.signed(span.0);
        if let Shape::Session(_) = spec.shape {
            out.signed(span.1.saturating_sub(span.0));
        }
        out.raw(self.key(row));
        for (index, results) in self.results.iter().enumerate() {
            let whole = results.get(row);
            if only.is_none_or(|only| only == index) { whole.write(out) } else { whole.neutral().write(out) }
        }
        out.number(rows);
    }

    /// Bytes of the texts of a group's key and results, about.
    pub fn texts_of(&self, row: usize) -> usize {
        let text_at = |results: &Results| if let Results::Extremes(values) = results { text(&values[row]) } else { 0 };
        self.key(row).len() + self.results.iter().map(text_at).sum::<usize>()
    }

    /// Key group of a group.
    pub fn key_group(&self, row: usize) -> KeyGroup {
        self.key_groups[row]
    }

    /// The canonical bytes of a group's key.
    pub fn canonical(&self, row: usize, spec: &WindowSpec, out: &mut KeyWriter) -> Result<(), Damaged> {
        out.clear();
        let mut key = Reader::new(self.key(row));
        for data_type in &spec.group_types {
            Cell::read(&mut key)?.write_key(scale_of(data_type), out);
        }
        Ok(())
    }

    /// A group's result.
    pub fn result(&self, row: usize, index: usize, aggregate: &Aggregate) -> Value {
        self.results[index].get(row).result(aggregate)
    }
}
