//! Open windows and sessions against what a list of events says, whatever happens on the way.

use std::collections::{BTreeMap, BTreeSet};

use arrow::datatypes::DataType;
use bytes::Bytes;
use leat_compile::program::{Aggregate, Function, Shape, WindowSpec};
use leat_crds::values::Duration;
use leat_runtime_core::key::KeyGroup;
use leat_runtime_core::value::{Cell, Value};
use leat_runtime_core::watermark::Watermark;
use leat_runtime_core::wire::{Damaged, Reader, Writer};
use proptest::prelude::*;

use super::*;
use crate::operators::saved::{Run, Saved, Saving};

fn spec(shape: Shape, lateness: i64) -> WindowSpec {
    let aggregate = |(function, data_type)| Aggregate {
        name: "a".to_owned(),
        function,
        argument: None,
        filter: None,
        input: DataType::Int64,
        output: data_type,
    };
    let aggregates = [(Function::Count, DataType::Int64), (Function::Sum, DataType::Decimal128(38, 0)), (Function::Max, DataType::Utf8)];
    WindowSpec {
        shape,
        allowed_lateness: Duration::from_millis(lateness),
        on_update: None,
        group_by: vec![0],
        group_types: vec![DataType::Int64],
        aggregates: aggregates.map(aggregate).to_vec(),
    }
}

/// A partial result of one row.
fn write(start: i64, key: &Value, accumulators: &[Accumulator], spec: &WindowSpec, out: &mut Writer) {
    out.signed(start);
    if let Shape::Session(_) = spec.shape {
        out.signed(0);
    }
    key.write(out);
    accumulators.iter().for_each(|accumulator| accumulator.write(out));
    out.number(1);
}

/// Windows or sessions.
enum Open {
    Windows(Windows),
    Sessions(Sessions),
}

impl Open {
    fn new(spec: &WindowSpec) -> Self {
        if let Shape::Session(_) = spec.shape { Open::Sessions(Sessions::new(spec)) } else { Open::Windows(Windows::default()) }
    }

    fn take(&mut self, event: Event, spec: &WindowSpec) {
        let (time, key, n) = event;
        let start = spec.shape.pane().map_or(time, |pane| start_of(time, pane));
        let accumulators =
            vec![Accumulator::Count(1), Accumulator::Sum(i128::from(n), 1), Accumulator::Extreme(Value::Text(format!("{n:04}")))];
        let (group, mut out) = (group_of(event), Writer::default());
        write(start, &Value::Integer(i64::from(key)), &accumulators, spec, &mut out);
        let mut from = Reader::new(out.bytes());
        let taken = match self {
            Open::Windows(windows) => windows.take(&mut from, spec, group),
            Open::Sessions(sessions) => sessions.take(&mut from, spec, group),
        };
        assert_eq!((taken.expect("a partial result").rows, from.is_empty()), (1, true));
    }

    fn close(&mut self, watermark: Watermark, spec: &WindowSpec) -> Vec<Closed> {
        match self {
            Open::Windows(windows) => windows.close(watermark, spec),
            Open::Sessions(sessions) => sessions.close(watermark, spec),
        }
    }

    /// As after a restart: what the row's watermark closes has left before.
    fn resume(&mut self, watermark: Watermark, spec: &WindowSpec) {
        match self {
            Open::Windows(windows) => windows.forget(watermark, spec),
            Open::Sessions(sessions) => drop(sessions.close(watermark, spec)),
        }
    }

    fn write(&mut self, out: &mut Writer, saving: &mut Saving<'_>, spec: &WindowSpec) {
        match self {
            Open::Windows(windows) => windows.write(out, saving, spec),
            Open::Sessions(sessions) => sessions.write(out, saving, spec),
        }
    }

    fn stored(&mut self, objects: &[String]) {
        match self {
            Open::Windows(windows) => windows.stored(objects),
            Open::Sessions(sessions) => sessions.stored(objects),
        }
    }

    fn restore(&mut self, base: &Base, own: bool, objects: &BTreeMap<String, Bytes>, spec: &WindowSpec, mine: &dyn Fn(KeyGroup) -> bool) {
        let mut from = Reader::new(&base.head);
        let runs: Result<Vec<Run>, Damaged> = match self {
            Open::Windows(windows) => windows.read(0, &mut from, spec, own, base.at, mine),
            Open::Sessions(sessions) => sessions.read(0, &mut from, spec, own, base.at, mine),
        };
        // They come as they like.
        for run in runs.expect("a head").iter().rev() {
            let loaded = match self {
                Open::Windows(windows) => windows.load(run, &objects[&run.object], spec, mine),
                Open::Sessions(sessions) => sessions.load(run, &objects[&run.object], spec, mine),
            };
            loaded.expect("an object");
        }
        assert!(from.is_empty());
    }

    fn is_empty(&self) -> bool {
        match self {
            Open::Windows(windows) => windows.is_empty() && windows.len() == 0,
            Open::Sessions(sessions) => sessions.is_empty(),
        }
    }
}

/// Time, key and number.
type Event = (i64, u8, i64);
/// Start, last time of a session, and key.
type Place = (i64, i64, i64);
/// Count, sum, and largest text.
type Result3 = (u64, i128, String);

fn group_of((_, key, _): Event) -> KeyGroup {
    KeyGroup(u16::from(key % 4))
}

/// A snapshot that is stored.
#[derive(Clone)]
struct Base {
    head: Vec<u8>,
    at: Watermark,
}

struct Task {
    open: Open,
    watermark: Watermark,
    /// Key groups from here to there.
    groups: std::ops::Range<u16>,
    /// What it began with, or its own last snapshot.
    bases: Vec<Base>,
    own: bool,
    /// Events since then.
    since: usize,
    named: BTreeSet<String>,
    /// A snapshot that is being written, and number of events then.
    pending: Option<(Base, Saved, usize)>,
}

struct World {
    spec: WindowSpec,
    least: usize,
    objects: BTreeMap<String, Bytes>,
    made: usize,
    events: Vec<Event>,
    tasks: Vec<Task>,
    found: Vec<(Place, Result3)>,
}

impl World {
    fn begin(&mut self, groups: std::ops::Range<u16>, bases: Vec<Base>, watermark: Watermark) {
        let open = Open::new(&self.spec);
        let since = self.events.len();
        let mut task = Task { open, watermark, groups, bases, own: false, since, named: BTreeSet::new(), pending: None };
        Self::recover(&mut task, &self.objects, &self.events, &self.spec);
        self.tasks.push(task);
    }

    fn recover(task: &mut Task, objects: &BTreeMap<String, Bytes>, events: &[Event], spec: &WindowSpec) {
        (task.open, task.pending) = (Open::new(spec), None);
        let groups = task.groups.clone();
        let mine = |group: KeyGroup| groups.contains(&group.0);
        task.bases.iter().for_each(|base| task.open.restore(base, task.own, objects, spec, &mine));
        events[task.since..].iter().filter(|e| mine(group_of(**e))).for_each(|event| task.open.take(*event, spec));
        task.open.resume(task.watermark, spec);
    }

    /// Begins a snapshot; it overtakes one that is being written.
    fn begin_snapshot(&mut self, index: usize) {
        let (task, made) = (&mut self.tasks[index], &mut self.made);
        let mut name = || {
            *made += 1;
            format!("object-{made}")
        };
        let (mut saving, mut head) = (Saving::new(self.least, &mut name), Writer::default());
        task.open.write(&mut head, &mut saving, &self.spec);
        let saved = saving.finish(head.finish());
        task.pending = Some((Base { head: saved.head.to_vec(), at: task.watermark }, saved, self.events.len()));
    }

    /// It is written, and goes on from there after a crash.
    fn end_snapshot(&mut self, index: usize) {
        let task = &mut self.tasks[index];
        let Some((base, saved, events)) = task.pending.take() else { return };
        self.objects.extend(saved.new);
        task.open.stored(&saved.named);
        let gone = std::mem::replace(&mut task.named, saved.named.into_iter().collect());
        self.objects.retain(|object, _| task.named.contains(object) || !gone.contains(object));
        (task.bases, task.own, task.since) = (vec![base], true, events);
    }

    fn advance(&mut self, index: usize, watermark: Watermark) {
        let task = &mut self.tasks[index];
        task.watermark = task.watermark.max(watermark);
        for closed in task.open.close(task.watermark, &self.spec) {
            for row in 0..closed.table.groups() {
                let Ok(Cell::Integer(key)) = Cell::read(&mut Reader::new(closed.table.key(row))) else { panic!("a key") };
                let (start, last) =
                    if let Shape::Session(_) = self.spec.shape { closed.table.span(row) } else { (closed.start, closed.start) };
                let result = |index: usize| closed.table.result(row, index, &self.spec.aggregates[index]);
                let (Value::Integer(count), Value::Decimal(sum), Value::Text(text)) = (result(0), result(1), result(2)) else {
                    panic!("results")
                };
                self.found.push(((start, last, key), (count as u64, sum, text)));
            }
        }
    }

    /// What a batch over all events says.
    fn wanted(&self) -> BTreeMap<Place, Result3> {
        let mut events = self.events.clone();
        events.sort();
        let mut wanted: BTreeMap<Place, Result3> = BTreeMap::new();
        let mut add = |place: Place, n: i64| {
            let result = wanted.entry(place).or_default();
            (result.0, result.1, result.2) = (result.0 + 1, result.1 + i128::from(n), result.2.clone().max(format!("{n:04}")));
        };
        for (time, key, n) in &events {
            let key = i64::from(*key);
            match self.spec.shape {
                Shape::Tumbling(size) => add((start_of(*time, size.millis()), start_of(*time, size.millis()), key), *n),
                Shape::Sliding { size, slide } => {
                    let last = start_of(*time, slide.millis());
                    let starts = (0..size.millis() / slide.millis()).map(|nth| last - nth * slide.millis());
                    starts.for_each(|start| add((start, start, key), *n));
                }
                Shape::Session(gap) => {
                    // Those of the key that follow each other, before this one and behind it.
                    let times: Vec<i64> = events.iter().filter(|e| i64::from(e.1) == key).map(|e| e.0).collect();
                    let chain = |mut times: Box<dyn Iterator<Item = i64>>| {
                        let mut end = *time;
                        times.by_ref().for_each(|other| {
                            if (other - end).abs() <= gap.millis() {
                                end = other
                            }
                        });
                        end
                    };
                    let behind: Vec<i64> = times.iter().copied().filter(|t| t >= time).collect();
                    let before: Vec<i64> = times.iter().rev().copied().filter(|t| t <= time).collect();
                    add((chain(Box::new(before.into_iter())), chain(Box::new(behind.into_iter())), key), *n);
                }
            }
        }
        wanted
    }
}

fn shape() -> impl Strategy<Value = Shape> {
    let of = Duration::from_millis;
    prop_oneof![
        (1..40_i64).prop_map(move |size| Shape::Tumbling(of(size))),
        (1..9_i64, 1..6_i64).prop_map(move |(slide, panes)| Shape::Sliding { size: of(slide * panes), slide: of(slide) }),
        (0..12_i64).prop_map(move |gap| Shape::Session(of(gap))),
    ]
}

proptest! {
    /// Whatever the order of events, watermarks and snapshots, and whatever is lost, handed on and read again on the way: each
    /// window and session leaves once, with all that belongs to it.
    #[test]
    fn windows_and_sessions_are_those_of_a_batch(
        events in proptest::collection::vec((0..30_i64, 0..24_u8, prop_oneof![6 => Just(0_u8), 6 => 1..8_u8]), 1..200),
        shape in shape(),
        lateness in 0..12_i64,
        least in 1..12_usize,
        from in -40..40_i64,
    ) {
        let spec = spec(shape, lateness);
        let mut world =
            World { spec, least, objects: BTreeMap::new(), made: 0, events: Vec::new(), tasks: Vec::new(), found: Vec::new() };
        world.begin(0..4, Vec::new(), Watermark::MIN);
        let mut watermark = Watermark::MIN;
        for (n, (behind, key, what)) in events.iter().enumerate() {
            let event = (from + n as i64 - behind, *key, n as i64);
            if !late(event.0, watermark.0, &world.spec) {
                world.events.push(event);
                let spec = &world.spec;
                world.tasks.iter_mut().filter(|t| t.groups.contains(&group_of(event).0)).for_each(|t| t.open.take(event, spec));
            }
            watermark = watermark.max(Watermark(from + n as i64 - 20));
            let index = n % world.tasks.len();
            match what {
                // Tasks do not hear of it at the same time.
                0 => world.advance(index, watermark),
                1 | 2 => {
                    world.begin_snapshot(index);
                    world.end_snapshot(index);
                }
                3 => world.begin_snapshot(index),
                4 => world.end_snapshot(index),
                5 => {
                    let World { tasks, objects, events, spec, .. } = &mut world;
                    tasks.iter_mut().for_each(|task| World::recover(task, objects, events, spec));
                }
                6 => {}
                // A change of the job: one becomes two, and two one, whose watermark is the lower one.
                _ => {
                    let count = world.tasks.len();
                    (0..count).for_each(|index| world.begin_snapshot(index));
                    (0..count).for_each(|index| world.end_snapshot(index));
                    let bases: Vec<Base> = world.tasks.iter().flat_map(|task| task.bases.clone()).collect();
                    let lowest = world.tasks.iter().map(|task| task.watermark).min().unwrap_or(Watermark::MIN);
                    let ranges: &[_] = if world.tasks.len() == 1 { &[(0, 2), (2, 4)] } else { &[(0, 4)] };
                    world.tasks.clear();
                    ranges.iter().for_each(|(first, end)| world.begin(*first..*end, bases.clone(), lowest));
                }
            }
        }
        (0..world.tasks.len()).for_each(|index| world.advance(index, Watermark::MAX));
        prop_assert!(world.tasks.iter().all(|task| task.open.is_empty()));
        let count = world.found.len();
        let found: BTreeMap<Place, Result3> = world.found.iter().cloned().collect();
        prop_assert_eq!(found.len(), count, "a window left twice");
        prop_assert_eq!(found, world.wanted());
    }
}

/// Partial results of so many keys, each with a sum.
fn add(windows: &mut Windows, keys: std::ops::Range<i64>, spec: &WindowSpec) -> usize {
    let mut out = Writer::default();
    for key in keys {
        out.truncate(0);
        let accumulators = [Accumulator::Count(1), Accumulator::Sum(7, 1), Accumulator::Extreme(Value::Null)];
        write(0, &Value::Integer(key), &accumulators, spec, &mut out);
        windows.take(&mut Reader::new(out.bytes()), spec, KeyGroup(0)).expect("a partial result");
    }
    out.bytes().len()
}

#[test]
fn a_snapshot_costs_what_came_and_what_is_stored_stays_near_what_there_is() {
    let spec = spec(Shape::Tumbling(Duration::from_millis(10)), 0);
    let (mut windows, mut objects) = (Windows::default(), BTreeMap::<String, Bytes>::new());
    let each = add(&mut windows, 0..200_000, &spec);
    let (mut made, mut most) = (0, 0);
    for round in 0..300 {
        let came = if round == 0 { 200_000 * each } else { 5_000 * each };
        let mut name = || {
            made += 1;
            format!("object-{made}")
        };
        let (mut saving, mut head) = (Saving::new(1 << 10, &mut name), Writer::default());
        windows.write(&mut head, &mut saving, &spec);
        let saved = saving.finish(head.finish());
        assert!((saved.size() as usize) < 3 * came + (64 << 10), "round {round}: {} bytes for {came}", saved.size());
        objects.extend(saved.new.iter().cloned());
        windows.stored(&saved.named);
        objects.retain(|object, _| saved.named.contains(object));
        most = most.max(objects.values().map(Bytes::len).sum());
        let first = round * 5_000 % 200_000;
        add(&mut windows, first..first + 5_000, &spec);
    }
    let whole: usize = windows.tables().map(GroupTable::written).sum();
    assert!(most < 5 * whole / 2, "{most} bytes are stored of {whole}");
    assert!(windows.memory() < 200_000 * 170, "{} bytes", windows.memory());
}

#[test]
fn keys_are_one_whatever_their_zero_and_their_nan() {
    let spec = WindowSpec { group_types: vec![DataType::Float64], ..spec(Shape::Tumbling(Duration::from_millis(10)), 0) };
    let mut windows = Windows::default();
    for key in [0.0, -0.0, f64::NAN, -f64::NAN, 1.0] {
        let accumulators = [Accumulator::Count(1), Accumulator::Sum(1, 1), Accumulator::Extreme(Value::Null)];
        let mut out = Writer::default();
        write(0, &Value::Double(key), &accumulators, &spec, &mut out);
        windows.take(&mut Reader::new(out.bytes()), &spec, KeyGroup(0)).expect("a partial result");
    }
    assert_eq!(windows.len(), 3);
}

#[test]
fn parts_of_a_group_are_the_whole_when_they_are_merged() {
    let functions = [Function::Min, Function::Max, Function::Sum, Function::Count];
    let mut spec = spec(Shape::Tumbling(Duration::from_millis(10)), 0);
    let like = spec.aggregates[0].clone();
    spec.aggregates = functions.map(|function| Aggregate { function, ..like.clone() }).to_vec();
    spec.group_types = vec![DataType::Utf8];
    let text = |c: &str| Accumulator::Extreme(Value::Text(c.repeat(100)));
    let accumulators = [text("a"), text("b"), Accumulator::Sum(7, 3), Accumulator::Count(3)];
    let mut whole = Writer::default();
    write(0, &Value::Text("k".to_owned()), &accumulators, &spec, &mut whole);
    // As a source task has it, with three rows.
    let partials = |longest: usize| {
        let (mut groups, mut from) = (Groups::new(&spec), Reader::new(whole.bytes()));
        let begun = table::Begun::read(&mut from, &spec, &mut groups.key).expect("a partial result");
        let row = groups.table.push(begun.hash, groups.key.bytes(), KeyGroup(1));
        groups.table.read(row, &mut from, &spec).expect("results");
        groups.table.set_span(row, (0, 0));
        groups.rows.push(3);
        let mut partials = Vec::new();
        groups.take(longest, &spec, |group, bytes| partials.push((group, bytes.to_vec())));
        assert!(groups.is_empty());
        partials
    };
    for (longest, count) in [(300, 1), (200, 4)] {
        let partials = partials(longest);
        assert_eq!(partials.len(), count);
        let (mut windows, mut rows) = (Windows::default(), 0);
        for (group, bytes) in partials.into_iter().rev() {
            rows += windows.take(&mut Reader::new(&bytes), &spec, group).expect("a partial result").rows;
        }
        let closed = windows.close(Watermark::MAX, &spec);
        assert_eq!((closed.len(), closed[0].table.groups(), closed[0].table.key_group(0), rows), (1, 1, KeyGroup(1), 3));
        for (index, accumulator) in accumulators.iter().enumerate() {
            let aggregate = &spec.aggregates[index];
            assert_eq!(closed[0].table.result(0, index, aggregate), accumulator.result(aggregate));
        }
    }
}
