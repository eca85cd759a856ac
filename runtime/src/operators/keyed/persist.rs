//! The state of a keyed task where it lies: in memory, on the local disk, and as bytes that outlive it.

use std::collections::BTreeMap;
use std::sync::Arc;

use leat_compile::program::{EdgeKind, RowsSpec, Then};
use leat_runtime_core::key::KeyGroup;
use leat_runtime_core::ledger::Ledger;
use leat_runtime_core::numbers::Cursor;
use leat_runtime_core::position::Lineage;
use leat_runtime_core::watermark::Watermark;
use leat_runtime_core::wire::{Damaged, Reader, Writer};

use super::{KeyedChain, State};
use crate::operators::deduplicate::Heir;
use crate::operators::memory::{Disk, Spills};
use crate::operators::saved::{Run, Saved, Saving};

/// Bytes of rows that are worth a piece on the disk: what tells where it is takes about a tenth.
const PIECE: usize = 512;
/// Version of the encoding.
const VERSION: u8 = 5;

impl KeyedChain {
    /// The state as it is now; rows that wait for a cut are no part of it. `ids`: so many ids go into an object of their
    /// own, whose name `name` makes.
    pub fn snapshot(&mut self, ids: usize, name: &mut dyn FnMut() -> String) -> Result<Saved, Damaged> {
        let mut saving = Saving::new(ids, name);
        let mut out = Writer::default();
        out.byte(VERSION);
        out.signed(self.watermark.0);
        out.blob(&serde_json::to_vec(&self.ledger).unwrap_or_default());
        out.number(self.cursors.values().map(|edges| edges.len() as u64).sum());
        for (lineage, edge, groups) in self.cursors.iter().flat_map(|(l, edges)| edges.iter().map(move |(e, groups)| (l, e, groups))) {
            out.blob(lineage.as_str().as_bytes());
            out.blob(edge.as_bytes());
            out.number(groups.len() as u64);
            for (group, cursor) in groups {
                out.number(u64::from(group.0));
                cursor.write(&mut out);
            }
        }
        for (edge, state) in self.program.keyed.edges.iter().zip(&mut self.states) {
            let mut one = Writer::default();
            match (state, &edge.kind) {
                (State::Windows(windows), EdgeKind::Partial(spec)) => {
                    one.byte(1);
                    windows.write(&mut one, &mut saving, spec);
                }
                (State::Sessions(sessions), EdgeKind::Partial(spec)) => {
                    one.byte(3);
                    sessions.write(&mut one, &mut saving, spec);
                }
                (State::Rows(rows), _) => {
                    one.byte(4);
                    rows.write(&mut one, &mut saving)?;
                }
                (State::Versions(versions), _) => {
                    one.byte(5);
                    versions.write(&mut one, &mut saving)?;
                }
                (State::Seen(seen), EdgeKind::Rows(RowsSpec { then: Then::Deduplicate(spec), .. })) => {
                    one.byte(2);
                    seen.write(&mut one, &mut saving, self.watermark.0, spec.within.millis());
                }
                (State::Seen(_) | State::Stateless | State::Windows(_) | State::Sessions(_), _) => continue,
            }
            out.blob(edge.name.as_bytes());
            out.number(fingerprint(&self.prints, &edge.name));
            out.blob(one.bytes());
        }
        Ok(saving.finish(out.sealed()))
    }

    /// The objects of a snapshot are written.
    pub fn stored(&mut self, objects: &[String]) {
        for state in &mut self.states {
            match state {
                State::Seen(seen) => seen.stored(objects),
                State::Rows(rows) => rows.stored(objects),
                State::Versions(versions) => versions.stored(objects),
                State::Windows(windows) => windows.stored(objects),
                State::Sessions(sessions) => sessions.stored(objects),
                State::Stateless => {}
            }
        }
    }

    /// Takes over from a snapshot the key groups of this partition, beside what is here already; answers the objects that
    /// belong to it and are to be loaded. `own`: it is one of this partition, whose ledger goes on too.
    pub fn restore(&mut self, bytes: &[u8], own: bool) -> Result<Vec<Run>, Damaged> {
        let mut from = Reader::sealed(bytes)?;
        if from.byte()? != VERSION {
            return Err(Damaged("a snapshot has an unknown version"));
        }
        // The row knows the one that holds.
        let at = Watermark(from.signed()?);
        let counts = serde_json::from_slice::<Ledger>(from.blob()?).map_err(|_| Damaged("a ledger cannot be read"))?;
        if own {
            self.ledger = counts;
        }
        let mut runs = Vec::new();
        for _ in 0..from.number()? {
            let text = from.text()?.to_owned();
            let mut parts = text.splitn(3, '/');
            let mut part = || parts.next().ok_or(Damaged("a lineage is cut off"));
            let lineage = Lineage::new(part()?, part()?, part()?);
            let edge = from.text()?.to_owned();
            let mut groups = BTreeMap::new();
            for _ in 0..from.number()? {
                let group = KeyGroup(u16::try_from(from.number()?).map_err(|_| Damaged("a key group is out of range"))?);
                let cursor = Cursor::read(&mut from)?;
                if self.mine(group) {
                    groups.insert(group, cursor);
                }
            }
            self.cursors.entry(lineage).or_default().entry(edge).or_default().extend(groups);
        }
        while !from.is_empty() {
            let (name, print) = (from.text()?, from.number()?);
            let mut one = Reader::new(from.blob()?);
            let program = Arc::clone(&self.program);
            let Some(i) = program.keyed.edges.iter().position(|e| e.name == name) else { continue };
            // The step was changed so that its state means something else: it is dropped, as the plan said.
            if print != fingerprint(&self.prints, name) {
                continue;
            }
            let (groups, partition, partitions) = (program.document.key_groups, self.partition, self.partitions);
            let mine = |group: KeyGroup| group.partition(groups, partitions) == partition;
            let heir = heir(groups, partitions, partition);
            let heir: Option<Heir<'_>> = if own { None } else { Some(&heir) };
            match (one.byte()?, &mut self.states[i], &program.keyed.edges[i].kind) {
                (1, State::Windows(windows), EdgeKind::Partial(spec)) => runs.extend(windows.read(i, &mut one, spec, own, at, &mine)?),
                (3, State::Sessions(sessions), EdgeKind::Partial(spec)) => runs.extend(sessions.read(i, &mut one, spec, own, at, &mine)?),
                (2, State::Seen(seen), _) => runs.extend(seen.read(i, &mut one, heir)?),
                (4, State::Rows(rows), _) => runs.extend(rows.read(i, &mut one, heir)?),
                (5, State::Versions(versions), _) => runs.extend(versions.read(i, &mut one, heir)?),
                // The step has another verb now: its state is dropped, as the plan said.
                _ => {}
            }
        }
        Ok(runs)
    }

    /// Takes in an object that a snapshot named.
    pub fn load(&mut self, run: &Run, bytes: &[u8]) -> Result<(), Damaged> {
        let (groups, partition, partitions) = (self.program.document.key_groups, self.partition, self.partitions);
        let heir = heir(groups, partitions, partition);
        let mine = |group: KeyGroup| group.partition(groups, partitions) == partition;
        match (&mut self.states[run.step], &self.program.keyed.edges[run.step].kind) {
            (State::Windows(windows), EdgeKind::Partial(spec)) => windows.load(run, bytes, spec, &mine),
            (State::Sessions(sessions), EdgeKind::Partial(spec)) => sessions.load(run, bytes, spec, &mine),
            (State::Seen(seen), _) => seen.load(run, bytes, &heir),
            (State::Rows(rows), _) => rows.load(run, bytes, &heir),
            (State::Versions(versions), _) => versions.load(run, bytes, &heir),
            (State::Stateless | State::Windows(_) | State::Sessions(_), _) => Ok(()),
        }
    }

    /// After a restart: the watermark of the row is applied without emitting, since its rows were staged; what is still
    /// open may have been emitted or not, so it is emitted again.
    pub fn resume(&mut self, watermark: Watermark) -> Result<(), Damaged> {
        self.watermark = watermark;
        for (edge, state) in self.program.keyed.edges.iter().zip(&mut self.states) {
            match (state, &edge.kind) {
                (State::Windows(windows), EdgeKind::Partial(spec)) => {
                    windows.forget(self.watermark, spec);
                    windows.mark_all();
                }
                (State::Sessions(sessions), EdgeKind::Partial(spec)) => drop(sessions.close(self.watermark, spec)),
                _ => {}
            }
        }
        self.advance_joins(false)?;
        self.drop_outputs();
        Ok(())
    }
}

impl Spills for KeyedChain {
    fn memory(&self) -> usize {
        let one = |state: &State| match state {
            State::Stateless => 0,
            State::Windows(windows) => windows.memory(),
            State::Sessions(sessions) => sessions.memory(),
            State::Seen(seen) => seen.memory(),
            State::Rows(rows) => rows.memory(),
            State::Versions(versions) => versions.memory(),
        };
        self.states.iter().map(one).sum::<usize>() + self.waiting_bytes
    }

    fn spill(&mut self, disk: &Arc<Disk>, least: usize) {
        for state in &mut self.states {
            match state {
                State::Seen(seen) => seen.spill(disk, least),
                State::Rows(rows) => rows.spill(disk, least.min(PIECE)),
                State::Versions(versions) => versions.spill(disk, least.min(PIECE)),
                // A window is whole in memory when it closes.
                State::Stateless | State::Windows(_) | State::Sessions(_) => {}
            }
        }
    }
}

/// What the state of an edge depends on; both edges of a join are of one step.
fn fingerprint(prints: &BTreeMap<String, u64>, edge: &str) -> u64 {
    prints.get(edge.strip_suffix(".with").unwrap_or(edge)).copied().unwrap_or_default()
}

/// Whether ids at any of these places, hashes of keys, may come to a partition.
fn heir(groups: u16, partitions: u16, partition: u16) -> impl Fn(u64, u64) -> bool {
    let of = move |hash| KeyGroup::of_hash(hash, groups).partition(groups, partitions);
    move |first, last| (of(first)..=of(last)).contains(&partition)
}
