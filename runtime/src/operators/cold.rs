//! Ids on the local disk: in the order of their events, in blocks, with a filter in memory that keeps almost all searches for
//! ids that are not there from the disk. Runs of like size are merged, as in a log-structured merge tree (O'Neil et al. 1996),
//! so of n runs there are about 8 log₈ n left to ask.
//!
//! The filter is a Bloom filter (1970) whose bits of one id lie in one cache line (Putze, Sanders and Singler 2007): ten bits and
//! six probes an id, so about one search in eighty reads a block in vain.

use std::mem::size_of;
use std::sync::Arc;

use leat_runtime_core::wire::Damaged;

use super::ids::Entry;
use super::memory::{Disk, Piece, Spill};

/// Ids of a block.
const BLOCK: usize = 256;
/// Runs of one level that become one of the next.
const MERGED: usize = 8;
/// Bytes of an id.
const ID: usize = size_of::<u128>();
/// Bits of a filter for each id.
const BITS: usize = 10;
/// Bits of a cache line.
const LINE: usize = 512;
/// Bits that an id sets.
const PROBES: usize = 6;

/// One cache line for about fifty ids.
#[derive(Debug, Clone)]
struct Filter(Vec<[u64; LINE / 64]>);

impl Filter {
    fn new(ids: usize) -> Self {
        Self(vec![[0; LINE / 64]; (ids * BITS).div_ceil(LINE).max(1)])
    }

    /// Its line, and its bits there. Events are hashes whose upper bits ids of one run may share, so they are mixed again.
    fn place(&self, event: u64) -> (usize, impl Iterator<Item = usize> + use<>) {
        let mixed = event.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let line = ((mixed >> 32) * self.0.len() as u64) >> 32;
        let bits = (event ^ mixed.rotate_left(23)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        (line as usize, (0..PROBES).map(move |i| (bits >> (10 + 9 * i)) as usize % LINE))
    }

    fn add(&mut self, event: u64) {
        let (line, bits) = self.place(event);
        bits.for_each(|bit| self.0[line][bit / 64] |= 1 << (bit % 64));
    }

    fn may_have(&self, event: u64) -> bool {
        let (line, mut bits) = self.place(event);
        bits.all(|bit| self.0[line][bit / 64] & 1 << (bit % 64) != 0)
    }
}

/// Ids that do not change any more.
#[derive(Debug, Clone)]
pub struct Cold {
    piece: Piece,
    ids: usize,
    /// The first event of each block.
    firsts: Vec<u64>,
    filter: Filter,
    /// The latest time among them.
    newest: u32,
    /// It was merged of runs of the level below; what comes from memory has level 0.
    level: u8,
}

impl Cold {
    /// Writes ids, which come in the order of their events; `None`: there is no room.
    pub fn write(entries: &[Entry], disk: &Arc<Disk>, spill: &mut Spill) -> Option<Self> {
        let mut bytes = Vec::with_capacity(entries.len() * ID);
        let mut filter = Filter::new(entries.len());
        for entry in entries {
            bytes.extend(entry.pack().to_le_bytes());
            filter.add(entry.event);
        }
        let firsts = entries.chunks(BLOCK).filter_map(|block| block.first()).map(|first| first.event).collect();
        let newest = entries.iter().map(|e| e.at).max().unwrap_or_default();
        Some(Self { piece: spill.write(disk, &bytes)?, ids: entries.len(), firsts, filter, newest, level: 0 })
    }

    /// Makes one of [`MERGED`] runs of the same level again and again, so that searches ask few; without what is older than
    /// `floor`. Where it cannot, runs stay as they are.
    pub fn merge(runs: &mut Vec<Cold>, floor: u32, disk: &Arc<Disk>, spill: &mut Spill) {
        while let Some(level) = (0..u8::MAX).find(|level| runs.iter().filter(|run| run.level == *level).count() >= MERGED) {
            let alike = || runs.iter().filter(|run| run.level == level);
            if alike().map(|run| run.ids * ID).sum::<usize>() as u64 > disk.room() {
                return;
            }
            let alike = alike();
            let Ok(entries) = alike.map(Cold::entries).collect::<Result<Vec<_>, _>>() else { return };
            let mut entries: Vec<Entry> = entries.into_iter().flatten().filter(|entry| entry.at >= floor).collect();
            entries.sort_by_key(|entry| entry.event);
            let Some(merged) = Cold::write(&entries, disk, spill) else { return };
            runs.retain(|run| run.level != level);
            runs.push(Cold { level: level + 1, ..merged });
        }
    }

    /// All ids.
    fn entries(&self) -> Result<Vec<Entry>, Damaged> {
        let mut bytes = vec![0; self.ids * ID];
        self.piece.read(0, &mut bytes)?;
        bytes.as_chunks::<ID>().0.iter().map(entry).collect()
    }

    /// Whether an id is there with a time for which `holds` is true.
    pub fn any(&self, event: u64, place: u32, mut holds: impl FnMut(u32) -> bool) -> Result<bool, Damaged> {
        if !self.filter.may_have(event) {
            return Ok(false);
        }
        let mut bytes = [0; BLOCK * ID];
        // The block before the first one that begins with it may end with it.
        let first = self.firsts.partition_point(|first| *first < event).saturating_sub(1);
        for block in (first..self.firsts.len()).take_while(|block| self.firsts[*block] <= event) {
            let ids = (self.ids - block * BLOCK).min(BLOCK);
            let bytes = &mut bytes[..ids * ID];
            self.piece.read(block * BLOCK * ID, bytes)?;
            for bits in bytes.as_chunks::<ID>().0 {
                let entry = entry(bits)?;
                if entry.event == event && entry.place == place && holds(entry.at) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Number of ids.
    pub fn ids(&self) -> usize {
        self.ids
    }

    /// The latest time among them.
    pub fn newest(&self) -> u32 {
        self.newest
    }

    /// Memory, bytes.
    pub fn memory(&self) -> usize {
        self.firsts.capacity() * size_of::<u64>() + self.filter.0.capacity() * LINE / 8
    }
}

fn entry(bits: &[u8; ID]) -> Result<Entry, Damaged> {
    Entry::unpack(u128::from_le_bytes(*bits)).ok_or(Damaged("an id on the local disk has no time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_by_their_event_and_place_and_seldom_looked_for_in_vain() {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = Arc::new(Disk::new(folder.path().to_owned(), u64::MAX).expect("a disk"));
        // Each event with two places, and one that fills more than a block.
        let event = |n: u64| if (4_000..4_600).contains(&n) { 4_000 << 40 } else { n << 40 | n };
        let entries: Vec<Entry> = (0..10_000).map(|n| Entry { event: event(n / 2), place: n as u32 % 2, at: n as u32 }).collect();
        let mut sorted = entries.clone();
        sorted.sort_by_key(|e| e.event);
        let cold = Cold::write(&sorted, &disk, &mut Spill::default()).expect("room");
        assert_eq!((cold.ids(), cold.newest(), disk.used()), (10_000, 9_999, 160_000));
        for entry in &entries {
            assert!(cold.any(entry.event, entry.place, |at| at == entry.at).expect("a disk"), "{entry:?}");
            assert!(!cold.any(entry.event, entry.place, |at| at == entry.at + 20_000).expect("a disk"));
            assert!(!cold.any(entry.event, 2, |_| true).expect("a disk"));
        }
        let vain = (10_000..110_000_u64).filter(|n| cold.filter.may_have(n << 40 | n)).count();
        assert!(vain < 2_500, "{vain} of 100,000");
        assert!(cold.memory() < 10_000 * 14 / 10, "{} bytes", cold.memory());
    }

    #[test]
    fn many_runs_become_few_and_know_what_they_knew() {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = Arc::new(Disk::new(folder.path().to_owned(), u64::MAX).expect("a disk"));
        let (mut runs, mut spill) = (Vec::new(), Spill::default());
        let event = |n: u32| u64::from(n).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        for run in 0..100 {
            let mut entries: Vec<Entry> = (run * 50..(run + 1) * 50).map(|n| Entry { event: event(n), place: n, at: n }).collect();
            entries.sort_by_key(|e| e.event);
            runs.push(Cold::write(&entries, &disk, &mut spill).expect("room"));
            // What is older than half of all may go.
            Cold::merge(&mut runs, (run * 50) / 2, &disk, &mut spill);
            assert!(runs.len() <= 3 * (MERGED - 1), "{} runs", runs.len());
        }
        let any = |n: u32| runs.iter().any(|run| run.any(event(n), n, |at| at == n).expect("a disk"));
        assert!((2_500..5_000).all(any) && !(5_000..10_000).any(any));
        assert!(runs.iter().map(Cold::ids).sum::<usize>() < 5_000, "nothing was forgotten");
        // Where there is no room, all stay as they are.
        let full = Arc::new(Disk::new(folder.path().to_owned(), 0).expect("a disk"));
        let mut alike: Vec<Cold> = runs.iter().cycle().take(20).map(|run| Cold { level: 0, ..run.clone() }).collect();
        Cold::merge(&mut alike, 0, &full, &mut Spill::default());
        assert_eq!(alike.len(), 20);
    }
}
