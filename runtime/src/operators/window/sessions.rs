//! Sessions of a keyed task: rows of a key that follow each other closely, open until none can come that belongs to them.
//!
//! Every row that is still to come lies at most the allowed lateness behind the watermark, since it would be late at its source
//! otherwise (`window::late`). A session is closed when all of those lie more than a gap behind its last row. So a session does
//! not depend on the order in which rows and watermarks come.

use std::collections::BTreeSet;

use leat_compile::program::WindowSpec;
use leat_runtime_core::key::KeyGroup;
use leat_runtime_core::watermark::Watermark;
use leat_runtime_core::wire::{Damaged, Reader, Writer};

use super::journal::{Journal, part};
use super::table::{Begun, GroupTable, skip};
use super::{Closed, Partial, read_key_group};
use crate::operators::saved::{Run, Saving};

/// Sessions that have left take memory until there are so many more of them than of others.
const GONE: usize = 1024;
/// First and last time of a session that has left.
const LEFT: (i64, i64) = (i64::MAX, i64::MIN);

/// Open sessions.
#[derive(Debug, Clone, Default)]
pub struct Sessions {
    /// Those of a key are more than a gap apart. Those that have left are not found any more.
    table: GroupTable,
    /// Time of the last row of each that is open, and where it is: those that close first come first.
    ends: BTreeSet<(i64, u32)>,
    journal: Journal,
    /// A snapshot that is being loaded, and how many objects are missing.
    loading: Option<(Box<Sessions>, usize)>,
    /// Cells of the key that is looked at.
    key: Writer,
}

impl Sessions {
    /// None, for such windows.
    pub fn new(spec: &WindowSpec) -> Self {
        Self { table: GroupTable::new(spec), ..Self::default() }
    }

    /// Number of open sessions.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Memory, bytes, about.
    pub fn memory(&self) -> usize {
        // An ordered set has a third of air.
        self.table.memory() + self.ends.len() * size_of::<(i64, u32)>() * 3 / 2 + self.journal.memory()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Takes a partial result: it begins a session, prolongs one, or makes several one.
    pub fn take(&mut self, from: &mut Reader<'_>, spec: &WindowSpec, group: KeyGroup) -> Result<Partial, Damaged> {
        let bytes = from.rest();
        let begun = Begun::read(from, spec, &mut self.key)?;
        let rows = self.add(begun, from, spec, group)?;
        self.journal.note(group, &bytes[..bytes.len() - from.rest().len()]);
        Ok(Partial { start: begun.start, rows })
    }

    fn add(&mut self, begun: Begun, from: &mut Reader<'_>, spec: &WindowSpec, group: KeyGroup) -> Result<u64, Damaged> {
        let gap = spec.shape.length();
        let (table, ends) = (&mut self.table, &mut self.ends);
        let near = |(first, last): (i64, i64)| first <= begun.last.saturating_add(gap) && begun.start.saturating_sub(gap) <= last;
        let met: Vec<usize> = table.of(begun.hash, self.key.bytes()).filter(|row| near(table.span(*row))).collect();
        let (mut first, mut last) = (begun.start, begun.last);
        let row = match met.split_first() {
            None => table.push(begun.hash, self.key.bytes(), group),
            Some((row, others)) => {
                for other in others {
                    table.unite(*row, *other, spec);
                    table.unlink(*other);
                }
                *row
            }
        };
        for other in &met {
            let (start, end) = table.span(*other);
            ends.remove(&(end, *other as u32));
            (first, last) = (first.min(start), last.max(end));
            table.set_span(*other, LEFT);
        }
        table.set_span(row, (first, last));
        ends.insert((last, row as u32));
        table.read(row, from, spec)
    }

    /// The sessions that `watermark` closes, in the order of their ends; they are gone.
    pub fn close(&mut self, watermark: Watermark, spec: &WindowSpec) -> Vec<Closed> {
        let mut closed = GroupTable::new(spec);
        while let Some((last, row)) = self.ends.first().copied() {
            if !watermark.closes(last.saturating_add(spec.shape.length()).saturating_add(1), spec.allowed_lateness.millis()) {
                break;
            }
            closed.copy(&self.table, row as usize, spec);
            self.table.unlink(row as usize);
            self.table.set_span(row as usize, LEFT);
            self.ends.pop_first();
        }
        if self.table.groups() > 2 * self.ends.len() + GONE {
            let mut left = Self { table: GroupTable::new(spec), ..Self::default() };
            for (last, row) in &self.ends {
                let row = left.table.copy(&self.table, *row as usize, spec);
                left.ends.insert((*last, row as u32));
            }
            (self.table, self.ends) = (left.table, left.ends);
        }
        if closed.groups() == 0 { Vec::new() } else { vec![Closed { start: 0, table: closed }] }
    }

    /// Writes what a snapshot says of the sessions.
    pub fn write(&mut self, out: &mut Writer, saving: &mut Saving<'_>, spec: &WindowSpec) {
        let table = &self.table;
        // Of those that have left there may be many.
        let whole = table.written() / table.groups().max(1) * self.ends.len();
        self.journal.write(out, saving, whole, |wanted, out| {
            let rows = (0..table.groups()).filter(|row| wanted(part(table.hash(*row))) && table.span(*row) != LEFT);
            rows.for_each(|row| table.write(row, 0, out, spec));
        });
    }

    /// The objects of a snapshot are written.
    pub fn stored(&mut self, objects: &[String]) {
        self.journal.stored(objects);
    }

    /// Reads what [`Self::write`] wrote at a watermark and takes in the sessions whose key group is `mine`; answers the objects
    /// that are to be loaded. `own`: this task wrote it.
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
        let mut loading = Box::new(Self::new(spec));
        loading.take_in(Reader::new(rest), spec, mine, &|_| true)?;
        self.loading = Some((loading, runs.len()));
        self.settle(at, spec);
        Ok(runs)
    }

    /// Takes in an object.
    pub fn load(&mut self, run: &Run, bytes: &[u8], spec: &WindowSpec, mine: &dyn Fn(KeyGroup) -> bool) -> Result<(), Damaged> {
        let Some((loading, missing)) = &mut self.loading else { return Ok(()) };
        self.journal.load(run, bytes, |groups, counts| loading.take_in(groups, spec, mine, counts))?;
        *missing = missing.saturating_sub(1);
        self.settle(Watermark(run.horizon), spec);
        Ok(())
    }

    /// All of a snapshot is loaded: what its watermark had closed has left, though parts of it may still be stored.
    fn settle(&mut self, at: Watermark, spec: &WindowSpec) {
        let Some((mut loaded, _)) = self.loading.take_if(|(_, missing)| *missing == 0) else { return };
        drop(loaded.close(at, spec));
        for (last, row) in &loaded.ends {
            let row = self.table.copy(&loaded.table, *row as usize, spec);
            self.ends.insert((*last, row as u32));
        }
    }

    fn take_in(
        &mut self,
        mut from: Reader<'_>,
        spec: &WindowSpec,
        mine: &dyn Fn(KeyGroup) -> bool,
        counts: &dyn Fn(usize) -> bool,
    ) -> Result<(), Damaged> {
        while !from.is_empty() {
            let group = read_key_group(&mut from)?;
            let begun = Begun::read(&mut from, spec, &mut self.key)?;
            if mine(group) && counts(part(begun.hash)) {
                self.add(begun, &mut from, spec, group)?;
            } else {
                skip(&mut from, spec)?;
            }
        }
        Ok(())
    }
}
