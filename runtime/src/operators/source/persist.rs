//! The state of a source task where it lies: in memory, on the local disk, and as bytes: snapshots, and what children take over.

use std::sync::Arc;

use leat_compile::program::Op;
use leat_runtime_core::key::{HashRange, KeyGroup};
use leat_runtime_core::ledger::Ledger;
use leat_runtime_core::wire::{Damaged, Reader, Writer};

use super::{SourceChain, State};
use crate::operators::files::FileRows;
use crate::operators::memory::{Disk, Spills};
use crate::operators::saved::{Run, Saved, Saving};

/// Version of the encoding. 2: ids stand in runs. 3: each step's state says what it depends on.
const VERSION: u8 = 3;

impl Spills for SourceChain {
    fn memory(&self) -> usize {
        let one = |state: &State| match state {
            State::Stateless | State::Numbers(_) => 0,
            State::Seen(seen) => seen.memory(),
            State::Groups(groups) => groups.memory(),
            State::Files(rows) => rows.buffers().map(|(_, buffer)| buffer.bytes).sum(),
        };
        self.states.iter().map(one).sum()
    }

    fn spill(&mut self, disk: &Arc<Disk>, least: usize) {
        for state in &mut self.states {
            if let State::Seen(seen) = state {
                seen.spill(disk, least);
            }
        }
    }
}

impl SourceChain {
    /// The state as it is now. Partial results are no part of it: a snapshot is taken when a cut has taken them. `ids`: so
    /// many ids go into an object of their own, whose name `name` makes.
    pub fn snapshot(&mut self, ids: usize, name: &mut dyn FnMut() -> String) -> Saved {
        let mut saving = Saving::new(ids, name);
        let mut out = Writer::default();
        out.byte(VERSION);
        out.signed(self.watermark);
        out.signed(self.newest);
        out.number(self.taken);
        // The ledger is small, and its shape grows: JSON.
        out.blob(&serde_json::to_vec(&self.ledger).unwrap_or_default());
        let watermark = self.watermark;
        let program = Arc::clone(&self.program);
        for (node, state) in program.sources[self.source].nodes.iter().zip(&mut self.states) {
            let mut one = Writer::default();
            match (state, &node.op) {
                (State::Seen(seen), Op::Deduplicate(spec)) => {
                    one.byte(1);
                    seen.write(&mut one, &mut saving, watermark, spec.within.millis());
                }
                (State::Stateless | State::Groups(_) | State::Seen(_), _) => continue,
                (State::Numbers(numbers), _) => {
                    one.byte(2);
                    for (group, last) in numbers.iter() {
                        one.number(u64::from(group.0));
                        one.number(last);
                    }
                }
                (State::Files(rows), _) => {
                    one.byte(3);
                    #[expect(clippy::expect_used, reason = "writing batches of one schema to memory does not fail")]
                    rows.write(&mut one).expect("rows are written to memory");
                }
            }
            out.blob(node.name.as_bytes());
            out.number(self.prints.get(&node.name).copied().unwrap_or_default());
            out.blob(one.bytes());
        }
        saving.finish(out.sealed())
    }

    /// The objects of a snapshot are written.
    pub fn stored(&mut self, objects: &[String]) {
        for state in &mut self.states {
            if let State::Seen(seen) = state {
                seen.stored(objects);
            }
        }
    }

    /// Takes over a snapshot of this lineage; answers the objects that belong to it and are to be loaded. Steps that the
    /// snapshot does not know start empty.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<Vec<Run>, Damaged> {
        let mut from = self.head(bytes)?;
        let mut runs = Vec::new();
        while !from.is_empty() {
            let (name, print) = (from.text()?, from.number()?);
            let mut one = Reader::new(from.blob()?);
            let Some(i) = self.spec().nodes.iter().position(|n| n.name == name) else { continue };
            // Ids that were made of other columns are dropped, as the plan said; numbers go on in any case.
            if print != self.prints.get(name).copied().unwrap_or_default() && matches!(self.states[i], State::Seen(_)) {
                continue;
            }
            match (one.byte()?, &mut self.states[i]) {
                (1, State::Seen(seen)) => runs.extend(seen.read(i, &mut one, None)?),
                (2, State::Numbers(numbers)) => {
                    while !one.is_empty() {
                        let group = u16::try_from(one.number()?).map_err(|_| Damaged("a key group is out of range"))?;
                        numbers.set(KeyGroup(group), one.number()?);
                    }
                }
                (3, State::Files(rows)) => *rows = FileRows::read(&mut one)?,
                // The step has another verb now: its state is dropped, as the plan said.
                _ => {}
            }
        }
        Ok(runs)
    }

    /// Takes over from a parent's end what belongs to `range`; answers the objects that are to be loaded for it. Numbers,
    /// files and ledger stay with the parent.
    pub fn inherit(&mut self, bytes: &[u8], range: HashRange) -> Result<Vec<Run>, Damaged> {
        let (watermark, newest, taken, ledger) = (self.watermark, self.newest, self.taken, self.ledger.clone());
        let mut from = self.head(bytes)?;
        self.newest = self.newest.max(newest);
        (self.watermark, self.taken, self.ledger) = (watermark, taken, ledger);
        let mut runs = Vec::new();
        while !from.is_empty() {
            let (name, print) = (from.text()?, from.number()?);
            let mut one = Reader::new(from.blob()?);
            let Some(i) = self.spec().nodes.iter().position(|n| n.name == name) else { continue };
            // Ids that were made of other columns are dropped, as the plan said; numbers go on in any case.
            if print != self.prints.get(name).copied().unwrap_or_default() && matches!(self.states[i], State::Seen(_)) {
                continue;
            }
            if let (1, State::Seen(seen)) = (one.byte()?, &mut self.states[i]) {
                runs.extend(seen.read(i, &mut one, Some(&heir(range)))?);
            }
        }
        Ok(runs)
    }

    /// Takes in an object that a snapshot named.
    pub fn load(&mut self, run: &Run, bytes: &[u8]) -> Result<(), Damaged> {
        let heir = heir(self.range);
        let State::Seen(seen) = &mut self.states[run.step] else { return Ok(()) };
        seen.load(run, bytes, &heir)
    }

    fn head<'a>(&mut self, bytes: &'a [u8]) -> Result<Reader<'a>, Damaged> {
        let mut from = Reader::sealed(bytes)?;
        if from.byte()? != VERSION {
            return Err(Damaged("a snapshot has an unknown version"));
        }
        self.watermark = from.signed()?;
        self.batch_watermark = self.watermark;
        self.newest = from.signed()?;
        self.taken = from.number()?;
        self.ledger = serde_json::from_slice::<Ledger>(from.blob()?).map_err(|_| Damaged("a ledger cannot be read"))?;
        Ok(from)
    }
}

/// Whether ids at any of these places, upper halves of hashes, may come to a range.
fn heir(range: HashRange) -> impl Fn(u64, u64) -> bool {
    let (from, to) = ((range.first >> 64) as u64, (range.last >> 64) as u64);
    move |first, last| first <= to && last >= from
}
