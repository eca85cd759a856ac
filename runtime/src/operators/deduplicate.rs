//! Exact deduplication: the ids seen, each with the event time at which it was first seen.
//!
//! An id is two 64-bit hashes. The first says where the id belongs (the upper half of the partition key's MD5, or the
//! key's hash, whose upper part is the key group), so that a split or a job change can hand each task its ids; the
//! second tells the events of one key apart. Two different events of one key are taken for one with a probability of
//! n² / 2⁶⁵ for n events of that key within the horizon.

use hashbrown::HashMap;
use leat_runtime_core::rules::{Rule, Rules};
use leat_runtime_core::wire::{Damaged, Reader, Writer};

/// An id: where it belongs, and which of the events there.
pub type Id = (u64, u64);

/// What to do with an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The first of its id.
    New,
    /// A repeat.
    Repeat,
    /// So late that its id may have been forgotten.
    Late,
}

/// The ids seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    first: HashMap<Id, i64>,
}

impl Seen {
    /// Judges an event at `time` (ms), against its lineage's watermark before it. The verdict does not depend on when
    /// ids are really forgotten.
    pub fn judge(&mut self, id: Id, time: i64, watermark: i64, within: i64, rules: Rules) -> Verdict {
        if late(time, watermark, within) && rules.hold(Rule::Horizon) {
            return Verdict::Late;
        }
        match self.first.get(&id) {
            Some(first) if first.saturating_add(within) >= watermark && (time - first).abs() <= within => Verdict::Repeat,
            _ => {
                self.first.insert(id, time);
                Verdict::New
            }
        }
    }

    /// Forgets what no event that is not late can repeat.
    pub fn expire(&mut self, watermark: i64, within: i64) {
        self.first.retain(|_, first| first.saturating_add(within) >= watermark);
    }

    /// Number of ids.
    pub fn len(&self) -> usize {
        self.first.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    /// Writes all ids.
    pub fn write(&self, out: &mut Writer) {
        out.number(self.first.len() as u64);
        for ((place, event), time) in &self.first {
            out.wide(u128::from(*place) << 64 | u128::from(*event));
            out.signed(*time);
        }
    }

    /// Reads ids and keeps those for whose place `mine` is true, beside what is here already.
    pub fn read(&mut self, from: &mut Reader<'_>, mine: &dyn Fn(u64) -> bool) -> Result<(), Damaged> {
        for _ in 0..from.number()? {
            let id = from.wide()?;
            let id = ((id >> 64) as u64, id as u64);
            let time = from.signed()?;
            if mine(id.0) {
                self.first.insert(id, time);
            }
        }
        Ok(())
    }
}

/// Whether an event is behind the horizon of what is remembered.
pub fn late(time: i64, watermark: i64, within: i64) -> bool {
    time.saturating_add(within) < watermark
}
