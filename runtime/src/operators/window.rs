//! Windowed aggregates: partial results in source tasks, merged in keyed tasks. All partial results merge exactly in any
//! order, so the result does not depend on how events were cut into batches.

use std::collections::BTreeMap;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{Decimal128Type, Int64Type};
use hashbrown::HashMap;
use leat_compile::program::{Aggregate, Function, Shape, WindowSpec};
use leat_runtime_core::key::{KeyGroup, KeyWriter};
use leat_runtime_core::value::Value;
use leat_runtime_core::wire::{Damaged, Reader, Writer};

use super::cells::{Cells, scale_of};
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

    /// Adds another partial result of the same aggregate.
    fn merge(&mut self, other: &Accumulator, function: Function) {
        match (self, other) {
            (Accumulator::Count(a), Accumulator::Count(b)) => *a = a.saturating_add(*b),
            (Accumulator::Sum(a, n), Accumulator::Sum(b, m)) => {
                *a = a.saturating_add(*b);
                *n = n.saturating_add(*m);
            }
            (Accumulator::Extreme(a), Accumulator::Extreme(b)) => take_extreme(a, b, function),
            _ => {}
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

    /// Reads a group of this window.
    pub fn read(from: &mut Reader<'_>, spec: &WindowSpec, group: KeyGroup) -> Result<Self, Damaged> {
        let start = from.signed()?;
        let last = if let Shape::Session(_) = spec.shape { start.saturating_add(from.signed()?) } else { start };
        let key = spec.group_by.iter().map(|_| Value::read(from)).collect::<Result<_, _>>()?;
        let accumulators = spec.aggregates.iter().map(|_| Accumulator::read(from)).collect::<Result<_, _>>()?;
        Ok(Self { start, last, key, group, accumulators, rows: from.number()? })
    }

    /// Adds another partial result of the same group.
    pub fn merge(&mut self, other: &Group, spec: &WindowSpec) {
        self.start = self.start.min(other.start);
        self.last = self.last.max(other.last);
        self.rows = self.rows.saturating_add(other.rows);
        for ((mine, theirs), aggregate) in self.accumulators.iter_mut().zip(&other.accumulators).zip(&spec.aggregates) {
            mine.merge(theirs, aggregate.function);
        }
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

    /// The canonical bytes of its key.
    pub fn key_bytes(&self, spec: &WindowSpec) -> Vec<u8> {
        let mut key = KeyWriter::default();
        self.key.iter().zip(&spec.group_types).for_each(|(value, data_type)| value.write_key(scale_of(data_type), &mut key));
        key.bytes().to_vec()
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

/// Windows of a keyed task, open until the watermark closes them.
#[derive(Debug, Clone, Default)]
pub struct Windows {
    /// By start and key: windows, or the panes that several windows share.
    open: BTreeMap<(i64, Vec<u8>), Open>,
    /// Of windows that slide: those that end up to here have left; `None`: nobody knows yet.
    left: Option<i64>,
}

#[derive(Debug, Clone)]
struct Open {
    group: Group,
    /// It changed since it was last emitted.
    dirty: bool,
    /// Of a pane: its windows that end up to here have left, in whatever task it was.
    left: i64,
}

impl Windows {
    /// Number of open windows.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Memory, bytes, about.
    pub fn memory(&self) -> usize {
        average(self.open.values().map(|o| &o.group)) * self.len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Number of windows that changed since they were emitted.
    pub fn dirty(&self) -> usize {
        self.open.values().filter(|o| o.dirty).count()
    }

    /// Merges a partial result.
    pub fn merge(&mut self, group: Group, spec: &WindowSpec) {
        match self.open.entry((group.start, group.key_bytes(spec))) {
            std::collections::btree_map::Entry::Vacant(v) => drop(v.insert(Open { group, dirty: true, left: i64::MIN })),
            std::collections::btree_map::Entry::Occupied(mut o) => {
                let open = o.get_mut();
                open.dirty = true;
                open.group.merge(&group, spec);
            }
        }
    }

    /// The windows that `watermark` closes, in the order of their starts; they are gone.
    pub fn close(&mut self, watermark: leat_runtime_core::watermark::Watermark, spec: &WindowSpec) -> Vec<Group> {
        if let Shape::Sliding { size, slide } = spec.shape {
            return self.slide(watermark.0.saturating_sub(spec.allowed_lateness.millis()), size.millis(), slide.millis(), spec);
        }
        let mut closed = Vec::new();
        while let Some(first) = self.open.first_entry() {
            let end = first.key().0.saturating_add(spec.shape.length());
            if !watermark.closes(end, spec.allowed_lateness.millis()) {
                break;
            }
            closed.push(first.remove().group);
        }
        closed
    }

    /// Windows that `watermark` closes have left before: they are gone.
    pub fn forget(&mut self, watermark: leat_runtime_core::watermark::Watermark, spec: &WindowSpec) {
        let Shape::Sliding { size, slide } = spec.shape else { return drop(self.close(watermark, spec)) };
        let left = start_of(watermark.0.saturating_sub(spec.allowed_lateness.millis()), slide.millis());
        self.left = self.left.max(Some(left));
        while let Some(pane) = self.open.first_entry().filter(|pane| pane.key().0.saturating_add(size.millis()) <= left) {
            pane.remove();
        }
    }

    /// The watermark that closes the next window that slides; `None`: none is open.
    pub fn next(&self, spec: &WindowSpec) -> Option<leat_runtime_core::watermark::Watermark> {
        let Shape::Sliding { slide, .. } = spec.shape else { return None };
        let first = self.open.first_key_value()?.0.0;
        let end = self.left.unwrap_or(i64::MIN).max(first).saturating_add(slide.millis());
        Some(leat_runtime_core::watermark::Watermark(end.saturating_add(spec.allowed_lateness.millis())))
    }

    /// The windows that slide and end up to `until`, in the order of their ends. A pane is there until the last of its windows
    /// has left.
    fn slide(&mut self, until: i64, size: i64, slide: i64, spec: &WindowSpec) -> Vec<Group> {
        let mut closed = Vec::new();
        let mut end = self.left.unwrap_or(i64::MIN);
        while let Some(first) = self.open.first_key_value().map(|((start, _), _)| *start) {
            // The next one, or, where nothing lies between, the first that has rows.
            end = end.saturating_add(slide).max(first.saturating_add(slide));
            if end > until {
                break;
            }
            let start = end.saturating_sub(size);
            let mut window: BTreeMap<&[u8], Group> = BTreeMap::new();
            for ((_, key), pane) in self.open.range((start, Vec::new())..(end, Vec::new())).filter(|(_, pane)| pane.left < end) {
                match window.get_mut(&**key) {
                    Some(group) => group.merge(&pane.group, spec),
                    None => drop(window.insert(key, pane.group.clone())),
                }
            }
            closed.extend(window.into_values().map(|group| Group { start, last: start, ..group }));
            while let Some(pane) = self.open.first_entry().filter(|pane| pane.key().0.saturating_add(size) <= end) {
                pane.remove();
            }
        }
        // Aligned as ends are.
        self.left = self.left.max(Some(start_of(until, slide)));
        closed
    }

    /// The windows that changed since they were last emitted.
    pub fn changed(&mut self) -> Vec<Group> {
        self.open.values_mut().filter_map(|o| std::mem::take(&mut o.dirty).then(|| o.group.clone())).collect()
    }

    /// Marks all windows as changed: after a restart nobody knows what was emitted.
    pub fn mark_all(&mut self) {
        self.open.values_mut().for_each(|o| o.dirty = true);
    }

    /// Writes all windows.
    pub fn write(&self, out: &mut Writer, spec: &WindowSpec) {
        write_groups(self.open.values().map(|o| &o.group), self.open.len(), out, spec);
        if let Shape::Sliding { .. } = spec.shape {
            self.open.values().for_each(|pane| out.signed(pane.left.max(self.left.unwrap_or(i64::MIN))));
        }
    }

    /// Reads windows and merges those whose key group is `mine`.
    pub fn read(&mut self, from: &mut Reader<'_>, spec: &WindowSpec, mine: &dyn Fn(KeyGroup) -> bool) -> Result<(), Damaged> {
        if !matches!(spec.shape, Shape::Sliding { .. }) {
            return read_groups(from, spec, mine, |group| self.merge(group, spec));
        }
        let mut panes = Vec::new();
        read_groups(from, spec, &|_| true, |group| panes.push(group))?;
        for pane in panes {
            let left = from.signed()?;
            if mine(pane.group) {
                let at = (pane.start, pane.key_bytes(spec));
                self.merge(pane, spec);
                self.open.entry(at).and_modify(|open| open.left = open.left.max(left));
            }
        }
        Ok(())
    }
}

/// Memory that one of many groups takes where it is kept, by the first of them.
pub fn average<'a>(groups: impl Iterator<Item = &'a Group>) -> usize {
    let (count, bytes) = groups.take(WEIGHED).fold((0_usize, 0_usize), |(count, bytes), group| (count + 1, bytes + group.memory()));
    // Its key stands in an index too, in which there is some air.
    bytes.checked_div(count).map_or(0, |bytes| bytes * 3 / 2 + 64)
}

/// Writes groups, each with its key group.
pub fn write_groups<'a>(groups: impl Iterator<Item = &'a Group>, count: usize, out: &mut Writer, spec: &WindowSpec) {
    out.number(count as u64);
    for group in groups {
        out.number(u64::from(group.group.0));
        group.write(out, spec.shape);
    }
}

/// Reads what [`write_groups`] wrote and hands over the groups whose key group is `mine`.
pub fn read_groups(
    from: &mut Reader<'_>,
    spec: &WindowSpec,
    mine: &dyn Fn(KeyGroup) -> bool,
    mut take: impl FnMut(Group),
) -> Result<(), Damaged> {
    for _ in 0..from.number()? {
        let group = KeyGroup(u16::try_from(from.number()?).map_err(|_| Damaged("a key group is out of range"))?);
        let read = Group::read(from, spec, group)?;
        if mine(group) {
            take(read);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::DataType;
    use leat_crds::values::Duration;
    use leat_runtime_core::watermark::Watermark;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever the order of rows and watermarks, and whatever is written and read again on the way: windows that slide
        /// hold the rows of their time, and each leaves once.
        #[test]
        fn sliding_windows_hold_the_rows_of_their_time(
            events in proptest::collection::vec((0..30_i64, 0..3_u8, prop_oneof![6 => Just(0_u8), 1 => 1..3_u8]), 1..150),
            (slide, panes) in (1..9_i64, 1..6_i64),
            lateness in 0..12_i64,
            start in -40..40_i64,
        ) {
            let size = slide * panes;
            let spec = WindowSpec {
                shape: Shape::Sliding { size: Duration::from_millis(size), slide: Duration::from_millis(slide) },
                allowed_lateness: Duration::from_millis(lateness),
                on_update: None,
                group_by: vec![0],
                group_types: vec![DataType::Int64],
                aggregates: Vec::new(),
            };
            let (mut windows, mut watermark, mut found) = (Windows::default(), Watermark::MIN, Vec::new());
            let mut wanted: BTreeMap<(i64, i64), u64> = BTreeMap::new();
            for (n, (behind, key, what)) in events.iter().enumerate() {
                let time = start + n as i64 - behind;
                if !late(time, watermark.0, &spec) {
                    let pane = start_of(time, slide);
                    let key = Value::Integer(i64::from(*key));
                    windows.merge(Group { start: pane, last: pane, key: vec![key], group: KeyGroup(0), accumulators: Vec::new(), rows: 1 }, &spec);
                    for end in (1..=panes).map(|nth| pane + nth * slide) {
                        *wanted.entry((end - size, i64::from(events[n].1))).or_default() += 1;
                    }
                }
                if *what == 2 {
                    let mut out = Writer::default();
                    windows.write(&mut out, &spec);
                    windows = Windows::default();
                    windows.read(&mut Reader::new(out.bytes()), &spec, &|_| true).expect("windows");
                    // As after a restart: what the row's watermark closes has left before.
                    windows.forget(watermark, &spec);
                }
                if *what > 0 || n % 3 == 0 {
                    watermark = watermark.max(Watermark(start + n as i64 - 20));
                    found.extend(windows.close(watermark, &spec));
                }
            }
            found.extend(windows.close(Watermark::MAX, &spec));
            prop_assert!(windows.is_empty());
            let ends: Vec<i64> = found.iter().map(|g| g.start).collect();
            prop_assert!(ends.is_sorted(), "{:?}", ends);
            let count = found.len();
            let found: BTreeMap<(i64, i64), u64> = found.iter().map(|g| ((g.start, if let Value::Integer(k) = g.key[0] { k } else { -1 }), g.rows)).collect();
            prop_assert_eq!(found.len(), count, "a window left twice");
            prop_assert_eq!(found, wanted);
        }
    }

    #[test]
    fn parts_of_a_group_are_the_whole_when_they_are_merged() {
        let functions = [Function::Min, Function::Max, Function::Sum, Function::Count];
        let aggregate = |function| Aggregate {
            name: "a".to_owned(),
            function,
            argument: None,
            filter: None,
            input: DataType::Utf8,
            output: DataType::Utf8,
        };
        let spec = WindowSpec {
            shape: Shape::Tumbling(Duration::from_millis(10)),
            allowed_lateness: Duration::from_millis(0),
            on_update: None,
            group_by: vec![0],
            group_types: vec![DataType::Utf8],
            aggregates: functions.map(aggregate).to_vec(),
        };
        let text = |c: &str| Accumulator::Extreme(Value::Text(c.repeat(100)));
        let accumulators = vec![text("a"), text("b"), Accumulator::Sum(7, 3), Accumulator::Count(3)];
        let whole = Group { start: 0, last: 0, key: vec![Value::Text("k".to_owned())], group: KeyGroup(1), accumulators, rows: 3 };
        assert_eq!(whole.clone().divide(300), std::slice::from_ref(&whole));
        let parts = whole.clone().divide(200);
        assert_eq!(parts.len(), 4);
        let mut windows = Windows::default();
        parts.into_iter().rev().for_each(|part| windows.merge(part, &spec));
        assert_eq!(windows.close(leat_runtime_core::watermark::Watermark::MAX, &spec), [whole]);
    }
}
