//! Rows that a join keeps, in buckets by event time: what is needed no more goes away bucket by bucket.
//!
//! Persisted, a bucket's rows stand in runs, objects of their own that are written once and named by every snapshot until the
//! bucket goes; what came since the last run stands in the snapshot itself. So a snapshot costs what came since the last ones,
//! not what is kept (`docs/adr/0014`, `docs/adr/0017`).

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashTable;
use leat_runtime_core::key;
use leat_runtime_core::wire::{Damaged, Reader, Writer};

use super::deduplicate::Heir;
use super::memory::{Disk, Packed, Spill};
use super::saved::{Run, Saving};

/// Version of the encoding of runs.
const VERSION: u8 = 1;
/// Nothing stands before this entry.
const NONE: u32 = u32::MAX;
/// Rows of one bucket that stand in the snapshot itself: at most this share of its bytes, or [`Saving::least`] times
/// [`ROW`] bytes.
const SHARE: usize = 32;
/// Bytes of a row, about.
const ROW: usize = 16;
/// Buckets are not shorter than this, ms, but where all is.
const SHORT: i64 = 1_000;

/// A row.
#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Hash of its key.
    hash: u64,
    /// Event time, ms.
    time: i64,
    /// The entry of the same hash before it.
    before: u32,
}

/// Whether more rows are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The next one.
    More,
    /// None.
    Enough,
}

/// Rows that were stored as an object.
#[derive(Debug, Clone)]
struct Stored {
    object: String,
    rows: usize,
}

/// The rows of one stretch of time.
#[derive(Debug, Clone, Default)]
struct Bucket {
    /// In the order in which they came.
    entries: Vec<Entry>,
    /// Of each its key, and what it holds.
    rows: Packed,
    /// The last entry of each hash.
    index: HashTable<u32>,
    /// In the order in which they came: those that are in no run.
    fresh: Vec<u32>,
    runs: Vec<Stored>,
    /// A run of the first of `fresh` that is being written.
    pending: Option<Stored>,
}

impl Bucket {
    /// `fresh`: it stands in no run.
    fn push(&mut self, time: i64, hash: u64, key: &[u8], row: &[u8], fresh: bool) {
        let at = self.entries.len() as u32;
        self.rows.push(key, row);
        let mut before = NONE;
        let entries = &self.entries;
        match self.index.find_mut(hash, |i| entries[*i as usize].hash == hash) {
            Some(last) => before = std::mem::replace(last, at),
            None => drop(self.index.insert_unique(hash, at, |i| entries[*i as usize].hash)),
        }
        self.entries.push(Entry { hash, time, before });
        if fresh {
            self.fresh.push(at);
        }
    }
}

/// Rows of one side of a join.
#[derive(Debug, Clone)]
pub struct Rows {
    /// Length of a bucket, ms.
    width: i64,
    /// Rows before this time are needed no more; those that are still there go with their bucket.
    done: i64,
    /// Rows at `done` or behind it.
    waiting: usize,
    buckets: BTreeMap<i64, Bucket>,
    spill: Spill,
}

impl Rows {
    /// No rows; each is needed for so long, ms, and for as long as others may come that are older.
    pub fn new(span: i64) -> Self {
        let least = if span == 0 || span >= SHORT { SHORT } else { 1 };
        let width = (span / 8).max(least);
        Self { width, done: i64::MIN, waiting: 0, buckets: BTreeMap::new(), spill: Spill::default() }
    }

    /// Rows before this time are not taken any more.
    pub fn done(&self) -> i64 {
        self.done
    }

    /// Number of rows that are needed.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Memory, bytes.
    pub fn memory(&self) -> usize {
        let lists = |b: &Bucket| size_of::<Bucket>() + b.entries.capacity() * size_of::<Entry>() + b.fresh.capacity() * size_of::<u32>();
        self.buckets.values().map(|b| b.rows.memory() + lists(b) + b.index.allocation_size()).sum()
    }

    /// Moves rows to the disk; what tells where they are stays in memory.
    pub fn spill(&mut self, disk: &Arc<Disk>, least: usize) {
        self.buckets.values_mut().for_each(|bucket| bucket.rows.spill(disk, least, &mut self.spill));
    }

    /// Adds a row.
    pub fn push(&mut self, time: i64, key: &[u8], row: &[u8]) {
        self.add(time, key, row, true);
    }

    fn add(&mut self, time: i64, key: &[u8], row: &[u8], fresh: bool) {
        self.waiting += 1;
        self.buckets.entry(time.div_euclid(self.width)).or_default().push(time, key::hash(key), key, row, fresh);
    }

    /// Hands over the rows of a key from one time to another, both included, until `each` wants no more.
    pub fn of(&self, key: &[u8], from: i64, to: i64, mut each: impl FnMut(i64, &[u8]) -> Result<Wanted, Damaged>) -> Result<(), Damaged> {
        let (hash, mut scratch) = (key::hash(key), Vec::new());
        let first = from.div_euclid(self.width);
        for bucket in self.buckets.range(first..=to.div_euclid(self.width).max(first)).map(|(_, bucket)| bucket) {
            let last = bucket.index.find(hash, |i| bucket.entries[*i as usize].hash == hash).copied();
            let same = std::iter::successors(last, |at| Some(bucket.entries[*at as usize].before).filter(|before| *before != NONE));
            for (at, time) in same.map(|at| (at as usize, bucket.entries[at as usize].time)).filter(|(_, t)| (from..=to).contains(t)) {
                let (found, row) = bucket.rows.get(at, &mut scratch)?;
                if found == key && each(time, row)? == Wanted::Enough {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Rows before `bound` are needed no more: each is handed over once, with its time and key.
    pub fn finish(&mut self, bound: i64, mut each: impl FnMut(i64, &[u8], &[u8]) -> Result<(), Damaged>) -> Result<(), Damaged> {
        let mut scratch = Vec::new();
        if bound > self.done {
            for bucket in self.buckets.range(..=(bound - 1).div_euclid(self.width)).map(|(_, bucket)| bucket) {
                for (at, entry) in bucket.entries.iter().enumerate().filter(|(_, e)| (self.done..bound).contains(&e.time)) {
                    let (key, row) = bucket.rows.get(at, &mut scratch)?;
                    each(entry.time, key, row)?;
                }
            }
        }
        self.forget(bound);
        Ok(())
    }

    /// Rows before `bound` are needed no more.
    pub fn forget(&mut self, bound: i64) {
        if bound <= self.done {
            return;
        }
        let ended = self.buckets.range(..=(bound - 1).div_euclid(self.width)).flat_map(|(_, bucket)| &bucket.entries);
        self.waiting -= ended.filter(|e| (self.done..bound).contains(&e.time)).count();
        self.done = bound;
        let width = self.width;
        while self.buckets.first_key_value().is_some_and(|(number, _)| number.saturating_add(1).saturating_mul(width) <= bound) {
            self.buckets.pop_first();
        }
    }

    /// Writes what a snapshot says of the rows: the names of the runs, new ones among them, and the rows that are in none.
    pub fn write(&mut self, out: &mut Writer, saving: &mut Saving<'_>) -> Result<(), Damaged> {
        out.signed(self.done);
        out.signed(self.width);
        out.number(self.buckets.len() as u64);
        for (number, bucket) in &mut self.buckets {
            out.signed(*number);
            let mut rest = Writer::default();
            entries(&mut rest, bucket)?;
            bucket.pending = None;
            if rest.bytes().len() >= (bucket.rows.size() / SHARE).max(saving.least * ROW) {
                let mut run = Writer::default();
                run.byte(VERSION);
                run.signed(*number);
                run.raw(rest.bytes());
                bucket.pending = Some(Stored { object: saving.add(Bytes::from(run.sealed())), rows: bucket.fresh.len() });
                rest = Writer::default();
                rest.number(0);
            }
            saving.named.extend(bucket.runs.iter().map(|run| run.object.clone()));
            out.number((bucket.runs.len() + usize::from(bucket.pending.is_some())) as u64);
            for run in bucket.runs.iter().chain(&bucket.pending) {
                out.blob(run.object.as_bytes());
                out.number(run.rows as u64);
            }
            out.raw(rest.bytes());
        }
        Ok(())
    }

    /// The new runs of a snapshot are written.
    pub fn stored(&mut self, objects: &[String]) {
        for bucket in self.buckets.values_mut() {
            // Others are those of a snapshot that another one overtook.
            if let Some(run) = bucket.pending.take_if(|run| objects.contains(&run.object)) {
                bucket.fresh.drain(..run.rows);
                bucket.runs.push(run);
            }
        }
    }

    /// Reads what [`Self::write`] wrote; answers the runs, which are to be loaded. `heir`: another task wrote it, and those of
    /// its rows belong here for which it holds.
    pub fn read(&mut self, step: usize, from: &mut Reader<'_>, heir: Option<Heir<'_>>) -> Result<Vec<Run>, Damaged> {
        let mut runs = Vec::new();
        let horizon = from.signed()?;
        let same = from.signed()? == self.width && heir.is_none();
        if heir.is_none() {
            self.done = self.done.max(horizon);
        }
        for _ in 0..from.number()? {
            let number = from.signed()?;
            for _ in 0..from.number()? {
                let (object, count) = (from.text()?.to_owned(), from.number()? as usize);
                // Rows that are divided anew are written anew, with the next snapshot.
                if same {
                    self.buckets.entry(number).or_default().runs.push(Stored { object: object.clone(), rows: count });
                }
                runs.push(Run { step, object, own: heir.is_none(), horizon });
            }
            self.take(from, horizon, heir, true)?;
        }
        Ok(runs)
    }

    /// Takes in a run.
    pub fn load(&mut self, run: &Run, bytes: &[u8], heir: Heir<'_>) -> Result<(), Damaged> {
        let mut from = Reader::sealed(bytes)?;
        if from.byte()? != VERSION {
            return Err(Damaged("a run of rows has an unknown version"));
        }
        let bucket = self.buckets.get(&from.signed()?);
        let known = bucket.is_some_and(|bucket| bucket.runs.iter().any(|known| known.object == run.object));
        self.take(&mut from, run.horizon, (!run.own).then_some(heir), !known)
    }

    fn take(&mut self, from: &mut Reader<'_>, horizon: i64, heir: Option<Heir<'_>>, fresh: bool) -> Result<(), Damaged> {
        for _ in 0..from.number()? {
            let (time, key, row) = (from.signed()?, from.blob()?, from.blob()?);
            let hash = key::hash(key);
            if time >= horizon && heir.is_none_or(|mine| mine(hash, hash)) {
                self.add(time, key, row, fresh);
            }
        }
        Ok(())
    }
}

/// The rows of a bucket that are in no run.
fn entries(out: &mut Writer, bucket: &Bucket) -> Result<(), Damaged> {
    out.number(bucket.fresh.len() as u64);
    let mut scratch = Vec::new();
    for at in bucket.fresh.iter().map(|at| *at as usize) {
        let (key, row) = bucket.rows.get(at, &mut scratch)?;
        out.signed(bucket.entries[at].time);
        out.blob(key);
        out.blob(row);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is written, read again, handed on and finished on the way: a key meets the rows that a list has, and each
        /// row is finished once.
        #[test]
        fn rows_are_those_of_a_list(
            events in proptest::collection::vec((0..40_i64, 0..4_u8, prop_oneof![4 => Just(0_u8), 1 => 1..5_u8]), 1..200),
            span in 0..60_i64,
            least in 1..20_usize,
        ) {
            let folder = tempfile::tempdir().expect("a folder");
            let disk = Arc::new(Disk::new(folder.path().to_owned(), u64::MAX).expect("a disk"));
            let (mut rows, mut list, mut finished) = (Rows::new(span), Vec::<(i64, u8, usize)>::new(), Vec::new());
            let mut objects: BTreeMap<String, Bytes> = BTreeMap::new();
            for (n, (behind, key, what)) in events.iter().enumerate() {
                let time = n as i64 * 2 + 40 - behind;
                rows.push(time, &[*key], &n.to_le_bytes());
                list.push((time, *key, n));
                let mut met: BTreeMap<Vec<u8>, i64> = BTreeMap::new();
                rows.of(&[*key], time - span, time + 3, |t, row| {
                    met.insert(row.to_vec(), t);
                    Ok(Wanted::More)
                }).expect("rows");
                let near = list.iter().filter(|(t, k, _)| k == key && (time - span..=time + 3).contains(t) && *t >= rows.done());
                let wanted: BTreeMap<Vec<u8>, i64> = near.map(|(t, _, n)| (n.to_le_bytes().to_vec(), *t)).collect();
                // Rows that are done with may still be there.
                prop_assert!(wanted.iter().all(|(row, t)| met.get(row) == Some(t)), "{:?} of {:?}", met, wanted);
                prop_assert!(met.iter().all(|(row, t)| *t < rows.done() || wanted.contains_key(row)), "{:?} of {:?}", met, wanted);
                // No row to come lies before this time.
                let finish = |time, key: &[u8], row: &[u8]| {
                    finished.push((time, key[0], row.to_vec()));
                    Ok(())
                };
                rows.finish(n as i64 * 2 - span, finish).expect("rows");
                if *what == 4 {
                    rows.spill(&disk, 20);
                }
                if *what == 0 || *what == 4 {
                    continue;
                }
                let mut made = 0;
                let mut name = || {
                    made += 1;
                    format!("run-{n}-{made}")
                };
                let mut saving = Saving::new(least, &mut name);
                let mut head = Writer::default();
                rows.write(&mut head, &mut saving).expect("rows");
                let saved = saving.finish(head.finish());
                objects.extend(saved.new.iter().cloned());
                rows.stored(&saved.named);
                objects.retain(|name, _| saved.named.contains(name));
                if *what > 1 {
                    // A crash, or two heirs of which each takes its keys, with buckets of another length.
                    let heirs: [Option<Heir<'_>>; 2] = [Some(&|first, _| first % 2 == 0), Some(&|first, _| first % 2 == 1)];
                    let (to, heirs) = if *what == 2 { (span, &[None][..]) } else { (span + 9, &heirs[..]) };
                    rows = Rows::new(to);
                    for heir in heirs {
                        for run in rows.read(0, &mut Reader::new(&saved.head), *heir).expect("a head") {
                            rows.load(&run, &objects[&run.object], heir.unwrap_or(&|_, _| true)).expect("a run");
                        }
                    }
                    rows.forget(n as i64 * 2 - span);
                }
            }
            let finish = |time, key: &[u8], row: &[u8]| {
                finished.push((time, key[0], row.to_vec()));
                Ok(())
            };
            rows.finish(i64::MAX, finish).expect("rows");
            prop_assert_eq!((rows.waiting(), rows.buckets.len()), (0, 0));
            let mut wanted: Vec<(i64, u8, Vec<u8>)> = list.iter().map(|(t, k, n)| (*t, *k, n.to_le_bytes().to_vec())).collect();
            wanted.sort();
            finished.sort();
            prop_assert_eq!(finished, wanted);
        }
    }
}
