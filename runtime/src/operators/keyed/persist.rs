//! The state of a keyed task as bytes.

use std::collections::BTreeMap;

use leat_compile::program::{EdgeKind, RowsSpec};
use leat_runtime_core::key::KeyGroup;
use leat_runtime_core::ledger::Ledger;
use leat_runtime_core::numbers::Cursor;
use leat_runtime_core::position::Lineage;
use leat_runtime_core::watermark::Watermark;
use leat_runtime_core::wire::{Damaged, Reader, Writer};

use super::{KeyedChain, State};

/// Version of the encoding.
const VERSION: u8 = 1;

impl KeyedChain {
    /// The state as it is now; rows that wait for a cut are no part of it.
    pub fn snapshot(&mut self) -> Vec<u8> {
        let mut out = Writer::default();
        out.byte(VERSION);
        out.signed(self.watermark.0);
        out.blob(&serde_json::to_vec(&self.ledger).unwrap_or_default());
        out.number(self.cursors.len() as u64);
        for ((lineage, edge), groups) in &self.cursors {
            out.blob(lineage.as_str().as_bytes());
            out.blob(edge.as_bytes());
            out.number(groups.len() as u64);
            for (group, cursor) in groups {
                out.number(u64::from(group.0));
                out.blob(&serde_json::to_vec(cursor).unwrap_or_default());
            }
        }
        for (edge, state) in self.program.keyed.edges.iter().zip(&mut self.states) {
            let mut one = Writer::default();
            match (state, &edge.kind) {
                (State::Windows(windows), _) => {
                    one.byte(1);
                    windows.write(&mut one);
                }
                (State::Seen(seen), EdgeKind::Rows(RowsSpec { deduplicate: Some(spec), .. })) => {
                    seen.expire(self.watermark.0, spec.within.millis());
                    one.byte(2);
                    seen.write(&mut one);
                }
                (State::Seen(_) | State::Stateless, _) => continue,
            }
            out.blob(edge.name.as_bytes());
            out.blob(one.bytes());
        }
        out.sealed()
    }

    /// Takes over from a snapshot the key groups of this partition, beside what is here already. The ledger is taken
    /// over when `ledger` says so: only by the task of the same partition.
    pub fn restore(&mut self, bytes: &[u8], ledger: bool) -> Result<(), Damaged> {
        let mut from = Reader::sealed(bytes)?;
        if from.byte()? != VERSION {
            return Err(Damaged("a snapshot has an unknown version"));
        }
        from.signed()?; // the watermark then; the row knows the one that holds
        let counts = serde_json::from_slice::<Ledger>(from.blob()?).map_err(|_| Damaged("a ledger cannot be read"))?;
        if ledger {
            self.ledger = counts;
        }
        for _ in 0..from.number()? {
            let text = from.text()?.to_owned();
            let mut parts = text.splitn(3, '/');
            let mut part = || parts.next().ok_or(Damaged("a lineage is cut off"));
            let lineage = Lineage::new(part()?, part()?, part()?);
            let edge = from.text()?.to_owned();
            let mut groups = BTreeMap::new();
            for _ in 0..from.number()? {
                let group = KeyGroup(u16::try_from(from.number()?).map_err(|_| Damaged("a key group is out of range"))?);
                let cursor: Cursor = serde_json::from_slice(from.blob()?).map_err(|_| Damaged("a cursor cannot be read"))?;
                if self.mine(group) {
                    groups.insert(group, cursor);
                }
            }
            self.cursors.entry((lineage, edge)).or_default().extend(groups);
        }
        while !from.is_empty() {
            let name = from.text()?;
            let mut one = Reader::new(from.blob()?);
            let program = std::sync::Arc::clone(&self.program);
            let Some(i) = program.keyed.edges.iter().position(|e| e.name == name) else { continue };
            let (groups, partition, partitions) = (program.document.key_groups, self.partition, self.partitions);
            let mine = |group: KeyGroup| group.partition(groups, partitions) == partition;
            match (one.byte()?, &mut self.states[i], &program.keyed.edges[i].kind) {
                (1, State::Windows(windows), EdgeKind::Partial(spec)) => windows.read(&mut one, spec, &mine)?,
                (2, State::Seen(seen), _) => seen.read(&mut one, &|place| mine(KeyGroup::of_hash(place, groups)))?,
                // The step has another verb now: its state is dropped, as the plan said.
                _ => {}
            }
        }
        Ok(())
    }

    /// After a restart: the watermark of the row is applied without emitting, since its rows were staged; what is still
    /// open may have been emitted or not, so it is emitted again.
    pub fn resume(&mut self, watermark: Watermark) {
        self.watermark = watermark;
        for (edge, state) in self.program.keyed.edges.iter().zip(&mut self.states) {
            if let (State::Windows(windows), EdgeKind::Partial(spec)) = (state, &edge.kind) {
                drop(windows.close(self.watermark, spec));
                windows.mark_all();
            }
        }
        self.outputs.clear();
    }
}
