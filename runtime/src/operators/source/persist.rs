//! The state of a source task as bytes: snapshots, and what children take over.

use leat_runtime_core::key::HashRange;
use leat_runtime_core::key::KeyGroup;
use leat_runtime_core::ledger::Ledger;
use leat_runtime_core::wire::{Damaged, Reader, Writer};

use super::{SourceChain, State};
use crate::operators::deduplicate::Seen;
use crate::operators::files::FileRows;

/// Version of the encoding.
const VERSION: u8 = 1;

impl SourceChain {
    /// The state as it is now. Partial results are no part of it: a snapshot is taken when a cut has taken them.
    pub fn snapshot(&mut self) -> Vec<u8> {
        let mut out = Writer::default();
        out.byte(VERSION);
        out.signed(self.watermark);
        out.signed(self.newest);
        out.number(self.taken);
        // The ledger is small, and its shape grows: JSON.
        out.blob(&serde_json::to_vec(&self.ledger).unwrap_or_default());
        let watermark = self.watermark;
        let program = std::sync::Arc::clone(&self.program);
        for (node, state) in program.sources[self.source].nodes.iter().zip(&mut self.states) {
            if let (State::Seen(seen), leat_compile::program::Op::Deduplicate(spec)) = (&mut *state, &node.op) {
                seen.expire(watermark, spec.within.millis());
            }
            let mut one = Writer::default();
            match state {
                State::Stateless | State::Groups(_) => continue,
                State::Seen(seen) => {
                    one.byte(1);
                    seen.write(&mut one);
                }
                State::Numbers(numbers) => {
                    one.byte(2);
                    for (group, last) in numbers.iter() {
                        one.number(u64::from(group.0));
                        one.number(last);
                    }
                }
                State::Files(rows) => {
                    one.byte(3);
                    #[expect(clippy::expect_used, reason = "writing batches of one schema to memory does not fail")]
                    rows.write(&mut one).expect("rows are written to memory");
                }
            }
            out.blob(node.name.as_bytes());
            out.blob(one.bytes());
        }
        out.sealed()
    }

    /// Takes over a snapshot of this lineage. Steps that the snapshot does not know start empty.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), Damaged> {
        let mut from = self.head(bytes)?;
        while !from.is_empty() {
            let name = from.text()?;
            let mut one = Reader::new(from.blob()?);
            let Some(i) = self.spec().nodes.iter().position(|n| n.name == name) else { continue };
            match (one.byte()?, &mut self.states[i]) {
                (1, State::Seen(seen)) => {
                    *seen = Seen::default();
                    seen.read(&mut one, &|_| true)?;
                }
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
        Ok(())
    }

    /// Takes over from a parent's end what belongs to `range`. Numbers, files and ledger stay with the parent.
    pub fn inherit(&mut self, bytes: &[u8], range: HashRange) -> Result<(), Damaged> {
        let (watermark, newest, taken, ledger) = (self.watermark, self.newest, self.taken, self.ledger.clone());
        let mut from = self.head(bytes)?;
        self.newest = self.newest.max(newest);
        (self.watermark, self.taken, self.ledger) = (watermark, taken, ledger);
        let (first, last) = ((range.first >> 64) as u64, (range.last >> 64) as u64);
        while !from.is_empty() {
            let name = from.text()?;
            let mut one = Reader::new(from.blob()?);
            let Some(i) = self.spec().nodes.iter().position(|n| n.name == name) else { continue };
            if let (1, State::Seen(seen)) = (one.byte()?, &mut self.states[i]) {
                seen.read(&mut one, &|place| (first..=last).contains(&place))?;
            }
        }
        Ok(())
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
