//! Windows of a keyed task, open until the watermark closes them.

use std::collections::BTreeMap;

use hashbrown::HashMap;
use leat_compile::program::{Shape, WindowSpec};
use leat_runtime_core::key::KeyGroup;
use leat_runtime_core::watermark::Watermark;
use leat_runtime_core::wire::{Damaged, Reader, Writer};

use super::journal::{Journal, PARTS, part};
use super::table::{Begun, GroupTable, skip};
use super::{Closed, Partial, read_key_group, start_of};
use crate::operators::saved::{Run, Saving};

/// A window of more groups has a table for each part of them, so that none that grows holds the task up for long.
const DIVIDED: usize = 32 << 10;

/// A window, or a pane that several windows share.
#[derive(Debug, Clone)]
struct Window {
    /// One, or one for each part.
    tables: Vec<GroupTable>,
}

impl Window {
    fn groups(&self) -> usize {
        self.tables.iter().map(GroupTable::groups).sum()
    }

    /// The table of a key, and the group in it, made where there is none; and whether it was.
    fn find(&mut self, hash: u64, key: &[u8], group: KeyGroup, spec: &WindowSpec) -> (&mut GroupTable, usize, bool) {
        if self.tables.len() == 1 && self.tables[0].groups() >= DIVIDED {
            let mut parts = vec![GroupTable::new(spec); PARTS];
            let whole = &self.tables[0];
            for row in 0..whole.groups() {
                parts[part(whole.hash(row))].copy(whole, row, spec);
            }
            self.tables = parts;
        }
        let table = if self.tables.len() == 1 { 0 } else { part(hash) };
        let table = &mut self.tables[table];
        let found = table.of(hash, key).next();
        let row = found.unwrap_or_else(|| table.push(hash, key, group));
        (table, row, found.is_none())
    }

    /// All groups.
    fn rows(&self) -> impl Iterator<Item = (&GroupTable, usize)> {
        self.tables.iter().flat_map(|table| (0..table.groups()).map(move |row| (table, row)))
    }

    /// The groups of some parts.
    fn of_parts(&self, wanted: &dyn Fn(usize) -> bool) -> impl Iterator<Item = (&GroupTable, usize)> {
        let divided = self.tables.len() > 1;
        let tables = self.tables.iter().enumerate().filter(move |(index, _)| !divided || wanted(*index)).map(|(_, table)| table);
        let rows = tables.flat_map(|table| (0..table.groups()).map(move |row| (table, row)));
        rows.filter(move |(table, row)| divided || wanted(part(table.hash(*row))))
    }
}

/// Open windows.
#[derive(Debug, Clone, Default)]
pub struct Windows {
    /// By start: windows, or the panes that several windows share.
    open: BTreeMap<i64, Window>,
    /// Number of all groups, and of those that changed since they were last emitted.
    groups: usize,
    dirty: usize,
    /// Of windows that slide: those that end up to here have left; `None`: nobody knows yet.
    left: Option<i64>,
    /// Of panes that another task had: by start and cells of the key, the end of the last window that has left there.
    left_elsewhere: BTreeMap<i64, HashMap<Vec<u8>, i64>>,
    journal: Journal,
    /// Cells of the key that is looked at.
    key: Writer,
}

impl Windows {
    /// Number of groups of open windows.
    pub fn len(&self) -> usize {
        self.groups
    }

    /// Memory, bytes, about.
    pub fn memory(&self) -> usize {
        self.tables().map(GroupTable::memory).sum::<usize>() + self.journal.memory()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Number of groups that changed since they were emitted.
    pub fn dirty(&self) -> usize {
        self.dirty
    }

    pub(super) fn tables(&self) -> impl Iterator<Item = &GroupTable> {
        self.open.values().flat_map(|window| &window.tables)
    }

    /// Takes a partial result.
    pub fn take(&mut self, from: &mut Reader<'_>, spec: &WindowSpec, group: KeyGroup) -> Result<Partial, Damaged> {
        let bytes = from.rest();
        let begun = Begun::read(from, spec, &mut self.key)?;
        let rows = self.add(begun, from, spec, group)?;
        self.journal.note(group, &bytes[..bytes.len() - from.rest().len()]);
        Ok(Partial { start: begun.start, rows })
    }

    fn add(&mut self, begun: Begun, from: &mut Reader<'_>, spec: &WindowSpec, group: KeyGroup) -> Result<u64, Damaged> {
        let window = self.open.entry(begun.start).or_insert_with(|| Window { tables: vec![GroupTable::new(spec)] });
        let (table, row, new) = window.find(begun.hash, self.key.bytes(), group, spec);
        self.groups += usize::from(new);
        self.dirty += usize::from(!table.set_dirty(row, true));
        table.read(row, from, spec)
    }

    fn remove(&mut self, start: i64) -> Option<Window> {
        self.left_elsewhere.remove(&start);
        let window = self.open.remove(&start)?;
        self.groups -= window.groups();
        self.dirty -= window.rows().filter(|(table, row)| table.is_dirty(*row)).count();
        Some(window)
    }

    /// Removes the windows that begin before `bound`; answers them.
    fn remove_before(&mut self, bound: i64) -> Vec<(i64, Window)> {
        let starts: Vec<i64> = self.open.range(..bound).map(|(start, _)| *start).collect();
        starts.into_iter().filter_map(|start| Some((start, self.remove(start)?))).collect()
    }

    /// The windows that `watermark` closes, in the order of their starts; they are gone.
    pub fn close(&mut self, watermark: Watermark, spec: &WindowSpec) -> Vec<Closed> {
        if let Shape::Sliding { size, slide } = spec.shape {
            return self.slide(watermark.0.saturating_sub(spec.allowed_lateness.millis()), size.millis(), slide.millis(), spec);
        }
        let closes = |start: &i64| watermark.closes(start.saturating_add(spec.shape.length()), spec.allowed_lateness.millis());
        let starts: Vec<i64> = self.open.keys().copied().take_while(closes).collect();
        let closed = starts.into_iter().filter_map(|start| Some((start, self.remove(start)?)));
        closed.flat_map(|(start, window)| window.tables.into_iter().map(move |table| Closed { start, table })).collect()
    }

    /// Windows that `watermark` closes have left before: they are gone.
    pub fn forget(&mut self, watermark: Watermark, spec: &WindowSpec) {
        let Shape::Sliding { size, slide } = spec.shape else { return drop(self.close(watermark, spec)) };
        let left = left_at(watermark, slide.millis(), spec);
        self.left = self.left.max(Some(left));
        self.remove_before(left.saturating_sub(size.millis()).saturating_add(1));
    }

    /// The watermark that closes the next window that slides; `None`: none is open.
    pub fn next(&self, spec: &WindowSpec) -> Option<Watermark> {
        let Shape::Sliding { slide, .. } = spec.shape else { return None };
        let first = *self.open.first_key_value()?.0;
        let end = self.left.unwrap_or(i64::MIN).max(first).saturating_add(slide.millis());
        Some(Watermark(end.saturating_add(spec.allowed_lateness.millis())))
    }

    /// The windows that slide and end up to `until`, in the order of their ends. A pane is there until the last of its windows
    /// has left.
    fn slide(&mut self, until: i64, size: i64, slide: i64, spec: &WindowSpec) -> Vec<Closed> {
        let mut closed = Vec::new();
        let mut end = self.left.unwrap_or(i64::MIN);
        while let Some(first) = self.open.first_key_value().map(|(start, _)| *start) {
            // The next one, or, where nothing lies between, the first that has rows.
            end = end.saturating_add(slide).max(first.saturating_add(slide));
            if end > until {
                break;
            }
            let start = end.saturating_sub(size);
            let mut window = GroupTable::new(spec);
            for (at, pane) in self.open.range(start..end) {
                let left = self.left_elsewhere.get(at);
                for (table, row) in pane.rows() {
                    if left.and_then(|left| left.get(table.key(row))).is_some_and(|left| *left >= end) {
                        continue;
                    }
                    let found = window.of(table.hash(row), table.key(row)).next();
                    match found {
                        Some(group) => window.add(group, table, row, spec),
                        None => _ = window.copy(table, row, spec),
                    }
                }
            }
            closed.push(Closed { start, table: window });
            self.remove_before(end.saturating_sub(size).saturating_add(1));
        }
        // Aligned as ends are.
        self.left = self.left.max(Some(start_of(until, slide)));
        closed
    }

    /// The groups that changed since they were last emitted.
    pub fn changed(&mut self, spec: &WindowSpec) -> Vec<Closed> {
        let mut changed = Vec::new();
        for (start, window) in &mut self.open {
            for table in &mut window.tables {
                let mut copies = GroupTable::new(spec);
                for row in 0..table.groups() {
                    if table.set_dirty(row, false) {
                        copies.copy(table, row, spec);
                    }
                }
                changed.push(Closed { start: *start, table: copies });
            }
        }
        self.dirty = 0;
        changed
    }

    /// Marks all groups as changed: after a restart nobody knows what was emitted.
    pub fn mark_all(&mut self) {
        self.open.values_mut().flat_map(|window| &mut window.tables).for_each(GroupTable::mark_all);
        self.dirty = self.groups;
    }

    /// Writes what a snapshot says of the windows.
    pub fn write(&mut self, out: &mut Writer, saving: &mut Saving<'_>, spec: &WindowSpec) {
        let whole = self.tables().map(GroupTable::written).sum();
        let open = &self.open;
        self.journal.write(out, saving, whole, |wanted, out| {
            for (start, window) in open {
                window.of_parts(wanted).for_each(|(table, row)| table.write(row, *start, out, spec));
            }
        });
        if let Shape::Sliding { .. } = spec.shape {
            // What this task has let go stands for all of them.
            let left = self.left.unwrap_or(i64::MIN);
            self.left_elsewhere.values_mut().for_each(|panes| panes.retain(|_, at| *at > left));
            self.left_elsewhere.retain(|_, panes| !panes.is_empty());
            out.signed(left);
            out.number(self.left_elsewhere.values().map(|panes| panes.len() as u64).sum());
            for (start, key, at) in self.left_elsewhere.iter().flat_map(|(start, panes)| panes.iter().map(move |(k, at)| (start, k, at))) {
                out.signed(*start);
                out.blob(key);
                out.signed(*at);
            }
        }
    }

    /// The objects of a snapshot are written.
    pub fn stored(&mut self, objects: &[String]) {
        self.journal.stored(objects);
    }

    /// Reads what [`Self::write`] wrote at a watermark and takes in the groups whose key group is `mine`; answers the objects that
    /// are to be loaded. `own`: this task wrote it.
    pub fn read(
        &mut self,
        step: usize,
        from: &mut Reader<'_>,
        spec: &WindowSpec,
        own: bool,
        at: Watermark,
        mine: &dyn Fn(KeyGroup) -> bool,
    ) -> Result<Vec<Run>, Damaged> {
        let (runs, rest) = self.journal.read(step, from, own && self.is_empty(), at.0)?;
        self.take_in(Reader::new(rest), spec, at, own, mine, &|_| true)?;
        if let Shape::Sliding { .. } = spec.shape {
            from.signed()?;
            for _ in 0..from.number()? {
                let (start, key, left) = (from.signed()?, from.blob()?, from.signed()?);
                self.leave(start, key, left);
            }
        }
        Ok(runs)
    }

    /// Takes in an object.
    pub fn load(&mut self, run: &Run, bytes: &[u8], spec: &WindowSpec, mine: &dyn Fn(KeyGroup) -> bool) -> Result<(), Damaged> {
        let mut journal = std::mem::take(&mut self.journal);
        let taken = journal.load(run, bytes, |groups, counts| self.take_in(groups, spec, Watermark(run.horizon), run.own, mine, counts));
        self.journal = journal;
        taken
    }

    /// Takes in the groups that another task, or this one before, had at a watermark.
    fn take_in(
        &mut self,
        mut from: Reader<'_>,
        spec: &WindowSpec,
        at: Watermark,
        own: bool,
        mine: &dyn Fn(KeyGroup) -> bool,
        counts: &dyn Fn(usize) -> bool,
    ) -> Result<(), Damaged> {
        let length = spec.shape.length();
        while !from.is_empty() {
            let group = read_key_group(&mut from)?;
            let begun = Begun::read(&mut from, spec, &mut self.key)?;
            // Windows that were closed had left.
            let gone = at.closes(begun.start.saturating_add(length), spec.allowed_lateness.millis());
            if gone || !mine(group) || !counts(part(begun.hash)) {
                skip(&mut from, spec)?;
                continue;
            }
            self.add(begun, &mut from, spec, group)?;
            // What this task has let go it knows by its watermark.
            if let (Shape::Sliding { slide, .. }, false) = (spec.shape, own) {
                let key = std::mem::take(&mut self.key);
                self.leave(begun.start, key.bytes(), left_at(at, slide.millis(), spec));
                self.key = key;
            }
        }
        Ok(())
    }

    /// Windows of a pane that end up to `left` have left, in whatever task it was.
    fn leave(&mut self, start: i64, key: &[u8], left: i64) {
        // No window of the pane has.
        if left > start {
            let at = self.left_elsewhere.entry(start).or_default().entry_ref(key).or_insert(left);
            *at = left.max(*at);
        }
    }
}

/// Windows that slide and end up to here have left at a watermark.
fn left_at(watermark: Watermark, slide: i64, spec: &WindowSpec) -> i64 {
    start_of(watermark.0.saturating_sub(spec.allowed_lateness.millis()), slide)
}
