//! The rows of a table as they were at each time: of each key the newest, and those that older rows of the other side still
//! ask for.
//!
//! Rows lie in segments in the order in which they came; a full one is written as an object once. What is replaced dies in its
//! segment, a segment of which little lives is moved to the newest one, so objects and memory follow what lives
//! (`docs/adr/0017`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashTable;
use leat_runtime_core::key;
use leat_runtime_core::wire::{Damaged, Reader, Writer};

use super::deduplicate::Heir;
use super::saved::{Run, Saving};

/// Version of the encoding of runs.
const VERSION: u8 = 1;
/// Rows in the snapshot itself: at most this share of all bytes, or [`Saving::least`] times [`ROW`] bytes.
const SHARE: usize = 256;
/// Bytes of a row, about.
const ROW: usize = 16;

/// Segment, and index in it.
type At = (u32, u32);

/// Which of two rows of a key is newer: by event time, then by lineage and the number there, in which later records of a shard
/// are higher.
type Age<'a> = (i64, &'a str, u64);

#[derive(Debug, Clone)]
struct Entry {
    hash: u64,
    time: i64,
    /// Index of the lineage.
    lineage: u32,
    number: u64,
    /// Where its bytes end.
    end: usize,
    alive: bool,
    /// Another row of this hash.
    next: Option<At>,
}

#[derive(Debug, Clone, Default)]
struct Segment {
    entries: Vec<Entry>,
    /// Of each its key, counted, and what it holds.
    bytes: Vec<u8>,
    alive: usize,
    /// The object in which it stands; one that is being written is not there yet.
    object: Option<String>,
    written: bool,
}

impl Segment {
    fn get(&self, at: usize) -> (&[u8], &[u8]) {
        let start = if at == 0 { 0 } else { self.entries[at - 1].end };
        let mut bytes = Reader::new(&self.bytes[start..self.entries[at].end]);
        // What `push` wrote.
        let key = bytes.blob().unwrap_or_default();
        (key, bytes.rest())
    }
}

/// Versions of a table's rows.
#[derive(Debug, Clone)]
pub struct Versions {
    segments: BTreeMap<u32, Segment>,
    /// The first row of each hash.
    index: HashTable<(u64, At)>,
    lineages: Vec<Arc<str>>,
    /// Nobody asks any more for what was before this time.
    done: i64,
    /// Rows that replace others when `done` has come to them, by time.
    unsettled: BTreeSet<(i64, At)>,
}

impl Default for Versions {
    fn default() -> Self {
        Self { segments: BTreeMap::new(), index: HashTable::new(), lineages: Vec::new(), done: i64::MIN, unsettled: BTreeSet::new() }
    }
}

impl Versions {
    fn entry(&self, at: At) -> Option<&Entry> {
        self.segments.get(&at.0)?.entries.get(at.1 as usize)
    }

    fn age(&self, entry: &Entry) -> Age<'_> {
        (entry.time, &self.lineages[entry.lineage as usize], entry.number)
    }

    /// The rows of a key.
    fn of<'a>(&'a self, hash: u64, key: &'a [u8]) -> impl Iterator<Item = (At, &'a Entry, &'a [u8])> {
        let first = self.index.find(hash, |(h, _)| *h == hash).map(|(_, at)| *at);
        std::iter::successors(first, |at| self.entry(*at)?.next).filter_map(move |at| {
            let segment = self.segments.get(&at.0)?;
            let (found, row) = segment.get(at.1 as usize);
            (found == key).then_some((at, segment.entries.get(at.1 as usize)?, row))
        })
    }

    /// The row of a key that was the newest at a time, ms.
    pub fn newest(&self, key: &[u8], time: i64) -> Option<&[u8]> {
        let known = self.of(key::hash(key), key).filter(|(_, entry, _)| entry.time <= time);
        // The iterator borrows the key, the row does not.
        let at = known.max_by(|(_, a, _), (_, b, _)| self.age(a).cmp(&self.age(b))).map(|(at, ..)| at)?;
        Some(self.segments.get(&at.0)?.get(at.1 as usize).1)
    }

    /// Rows before this time are not asked for any more.
    pub fn done(&self) -> i64 {
        self.done
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.segments.values().map(|s| s.alive).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Memory, bytes.
    pub fn bytes(&self) -> usize {
        let one = |s: &Segment| s.bytes.capacity() + s.entries.capacity() * size_of::<Entry>();
        self.segments.values().map(one).sum::<usize>() + self.index.allocation_size()
    }

    /// Adds a row: the `number`th of a lineage.
    pub fn push(&mut self, time: i64, lineage: &str, number: u64, key: &[u8], row: &[u8]) {
        let lineage = self.lineage(lineage);
        let open = match self.segments.last_key_value() {
            Some((id, segment)) if segment.object.is_none() => *id,
            last => last.map_or(0, |(id, _)| id + 1),
        };
        self.add(open, time, lineage, number, key, row);
    }

    fn lineage(&mut self, name: &str) -> u32 {
        let known = self.lineages.iter().position(|l| **l == *name).unwrap_or_else(|| {
            self.lineages.push(name.into());
            self.lineages.len() - 1
        });
        known as u32
    }

    fn add(&mut self, segment: u32, time: i64, lineage: u32, number: u64, key: &[u8], row: &[u8]) {
        let hash = key::hash(key);
        let into = self.segments.entry(segment).or_default();
        let at = (segment, into.entries.len() as u32);
        let mut counted = Writer::default();
        counted.blob(key);
        into.bytes.extend(counted.bytes());
        into.bytes.extend(row);
        let next = match self.index.find_mut(hash, |(h, _)| *h == hash) {
            Some((_, first)) => Some(std::mem::replace(first, at)),
            None => {
                self.index.insert_unique(hash, (hash, at), |(h, _)| *h);
                None
            }
        };
        into.entries.push(Entry { hash, time, lineage, number, end: into.bytes.len(), alive: true, next });
        into.alive += 1;
        let all: Vec<(i64, At)> = self.of(hash, key).map(|(at, entry, _)| (entry.time, at)).collect();
        if all.len() > 1 {
            self.unsettled.extend(all);
        }
    }

    /// Nobody asks any more for what was before `bound`: of the rows up to it, only the newest of each key is kept.
    pub fn finish(&mut self, bound: i64) {
        if bound <= self.done {
            return;
        }
        self.done = bound;
        while let Some((time, at)) = self.unsettled.first().copied().filter(|(time, _)| *time <= bound) {
            self.unsettled.remove(&(time, at));
            let Some(segment) = self.segments.get(&at.0).filter(|s| s.entries[at.1 as usize].alive) else { continue };
            let (hash, key) = (segment.entries[at.1 as usize].hash, segment.get(at.1 as usize).0.to_vec());
            let age = |entry: &Entry| (entry.time, Arc::clone(&self.lineages[entry.lineage as usize]), entry.number);
            let mine = age(&segment.entries[at.1 as usize]);
            let older: Vec<At> = self.of(hash, &key).filter(|(_, entry, _)| age(entry) < mine).map(|(at, ..)| at).collect();
            older.into_iter().for_each(|at| self.kill(hash, at));
        }
    }

    /// Takes a row out.
    fn kill(&mut self, hash: u64, at: At) {
        let Some((time, next)) = self.entry(at).map(|e| (e.time, e.next)) else { return };
        self.unsettled.remove(&(time, at));
        let Some(first) = self.index.find(hash, |(h, _)| *h == hash).map(|(_, first)| *first) else { return };
        let mut chain = std::iter::successors(Some(first), |at| self.entry(*at)?.next);
        let before = chain.find(|b| self.entry(*b).is_some_and(|e| e.next == Some(at)));
        match before.and_then(|b| self.segments.get_mut(&b.0)?.entries.get_mut(b.1 as usize)) {
            Some(before) => before.next = next,
            None => {
                if let Ok(mut found) = self.index.find_entry(hash, |(h, _)| *h == hash) {
                    match next {
                        Some(next) => found.get_mut().1 = next,
                        None => drop(found.remove()),
                    }
                }
            }
        }
        let Some(segment) = self.segments.get_mut(&at.0) else { return };
        segment.entries[at.1 as usize].alive = false;
        segment.alive -= 1;
        if segment.alive == 0 && segment.object.is_some() {
            self.segments.remove(&at.0);
        }
    }

    /// Moves what lives of segments that are mostly dead to the newest one.
    fn clean(&mut self) {
        let mostly_dead = |s: &Segment| s.written && s.alive * 2 < s.entries.len();
        let Some(worst) = self.segments.iter().filter(|(_, s)| mostly_dead(s)).min_by_key(|(_, s)| s.alive).map(|(id, _)| *id) else {
            return;
        };
        let Some(segment) = self.segments.get(&worst).cloned() else { return };
        for (at, entry) in segment.entries.iter().enumerate().filter(|(_, e)| e.alive) {
            let at = (worst, at as u32);
            let (key, row) = segment.get(at.1 as usize);
            self.kill(entry.hash, at);
            self.push(entry.time, &Arc::clone(&self.lineages[entry.lineage as usize]), entry.number, key, row);
        }
    }

    /// Writes what a snapshot says of the rows: the objects, a new one among them, and the rows that are in none.
    pub fn write(&mut self, out: &mut Writer, saving: &mut Saving<'_>) {
        self.clean();
        let all: usize = self.segments.values().map(|s| s.bytes.len()).sum();
        let large = (all / SHARE).max(saving.least * ROW);
        // One that another snapshot was to write is written with this one.
        let mut rest: Vec<u32> = Vec::new();
        for (id, segment) in self.segments.iter_mut().filter(|(_, s)| !s.written) {
            segment.object = None;
            rest.push(*id);
        }
        let mut inline = Vec::new();
        for id in rest {
            let Some(bytes) = self.segments.get(&id).map(|segment| self.encode(segment)) else { continue };
            if bytes.len() < large {
                inline.push(bytes);
                continue;
            }
            let mut run = Writer::default();
            run.byte(VERSION);
            run.number(u64::from(id));
            run.raw(&bytes);
            let object = saving.add(Bytes::from(run.sealed()));
            self.segments.entry(id).and_modify(|segment| segment.object = Some(object));
        }
        saving.named.extend(self.segments.values().filter(|s| s.written).filter_map(|s| s.object.clone()));
        out.signed(self.done);
        let stored: Vec<(&u32, &String)> = self.segments.iter().filter_map(|(id, s)| Some((id, s.object.as_ref()?))).collect();
        out.number(stored.len() as u64);
        for (id, object) in stored {
            out.number(u64::from(*id));
            out.blob(object.as_bytes());
        }
        out.number(inline.len() as u64);
        inline.iter().for_each(|bytes| out.raw(bytes));
    }

    /// The rows of a segment that live, with the names of their lineages.
    fn encode(&self, segment: &Segment) -> Vec<u8> {
        let mut out = Writer::default();
        out.number(self.lineages.len() as u64);
        self.lineages.iter().for_each(|l| out.blob(l.as_bytes()));
        out.number(segment.alive as u64);
        for (at, entry) in segment.entries.iter().enumerate().filter(|(_, e)| e.alive) {
            let (key, row) = segment.get(at);
            out.signed(entry.time);
            out.number(u64::from(entry.lineage));
            out.number(entry.number);
            out.blob(key);
            out.blob(row);
        }
        out.finish()
    }

    /// The new objects of a snapshot are written.
    pub fn stored(&mut self, objects: &[String]) {
        for segment in self.segments.values_mut() {
            segment.written |= segment.object.as_ref().is_some_and(|object| objects.contains(object));
        }
        self.segments.retain(|_, s| !(s.written && s.alive == 0));
    }

    /// Reads what [`Self::write`] wrote; answers the objects, which are to be loaded. `heir`: another task wrote it, and those
    /// of its rows belong here for which it holds.
    pub fn read(&mut self, step: usize, from: &mut Reader<'_>, heir: Option<Heir<'_>>) -> Result<Vec<Run>, Damaged> {
        let mut runs = Vec::new();
        let horizon = from.signed()?;
        if heir.is_none() {
            self.done = self.done.max(horizon);
        }
        for _ in 0..from.number()? {
            let id = u32::try_from(from.number()?).map_err(|_| Damaged("a segment is out of range"))?;
            let object = from.text()?.to_owned();
            if heir.is_none() {
                self.segments.insert(id, Segment { object: Some(object.clone()), written: true, ..Segment::default() });
            }
            runs.push(Run { step, object, own: heir.is_none(), horizon });
        }
        for _ in 0..from.number()? {
            self.take(from, None, heir)?;
        }
        Ok(runs)
    }

    /// Takes in an object.
    pub fn load(&mut self, run: &Run, bytes: &[u8], heir: Heir<'_>) -> Result<(), Damaged> {
        let mut from = Reader::sealed(bytes)?;
        if from.byte()? != VERSION {
            return Err(Damaged("a run of rows has an unknown version"));
        }
        let id = u32::try_from(from.number()?).map_err(|_| Damaged("a segment is out of range"))?;
        let known = run.own && self.segments.get(&id).is_some_and(|s| s.object.as_ref() == Some(&run.object));
        self.take(&mut from, known.then_some(id), (!run.own).then_some(heir))
    }

    fn take(&mut self, from: &mut Reader<'_>, segment: Option<u32>, heir: Option<Heir<'_>>) -> Result<(), Damaged> {
        let mut names = Vec::new();
        for _ in 0..from.number()? {
            names.push(from.text()?);
        }
        for _ in 0..from.number()? {
            let (time, lineage, number) = (from.signed()?, from.number()? as usize, from.number()?);
            let (key, row) = (from.blob()?, from.blob()?);
            let name = names.get(lineage).copied().ok_or(Damaged("a row's lineage is unknown"))?;
            let hash = key::hash(key);
            if !heir.is_none_or(|mine| mine(hash, hash)) {
                continue;
            }
            match segment {
                Some(segment) => {
                    let lineage = self.lineage(name);
                    self.add(segment, time, lineage, number, key, row);
                }
                None => self.push(time, name, number, key, row),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is written, read again, handed on and forgotten on the way: the newest row of a key is the one of a list, and
        /// no more is kept than can be asked for.
        #[test]
        fn the_newest_row_is_that_of_a_list(
            events in proptest::collection::vec((0..12_i64, 0..5_u8, 0..2_u8, prop_oneof![4 => Just(0_u8), 1 => 1..4_u8]), 1..250),
            least in 1..12_usize,
        ) {
            let (mut versions, mut list) = (Versions::default(), Vec::<(u8, (i64, String, u64))>::new());
            let mut objects: BTreeMap<String, Bytes> = BTreeMap::new();
            for (n, (behind, key, lineage, what)) in events.iter().enumerate() {
                let (time, lineage) = (n as i64 + 12 - behind, format!("shard-{lineage}"));
                versions.push(time, &lineage, n as u64, &[*key], &n.to_le_bytes());
                list.push((*key, (time, lineage, n as u64)));
                versions.finish(n as i64);
                for at in n as i64..n as i64 + 14 {
                    let newest = list.iter().filter(|(k, (t, ..))| k == key && *t <= at).map(|(_, age)| age).max();
                    let wanted = newest.map(|(_, _, n)| (*n as usize).to_le_bytes().to_vec());
                    prop_assert_eq!(versions.newest(&[*key], at).map(<[u8]>::to_vec), wanted, "key {} at {}", key, at);
                }
                let later = list.iter().filter(|(_, (t, ..))| *t > n as i64).count();
                prop_assert!(versions.len() <= later + 5, "{} rows of {}", versions.len(), later);
                if *what == 0 {
                    continue;
                }
                let mut made = 0;
                let mut name = || {
                    made += 1;
                    format!("run-{n}-{made}")
                };
                let mut saving = Saving::new(least, &mut name);
                let mut head = Writer::default();
                versions.write(&mut head, &mut saving);
                let saved = saving.finish(head.finish());
                objects.extend(saved.new.iter().cloned());
                if *what < 3 {
                    versions.stored(&saved.named);
                }
                objects.retain(|name, _| saved.named.contains(name));
                if *what > 1 {
                    let heirs: [Option<Heir<'_>>; 2] = [Some(&|first, _| first % 2 == 0), Some(&|first, _| first % 2 == 1)];
                    versions = Versions::default();
                    for heir in if *what == 2 { &[None][..] } else { &heirs[..] } {
                        for run in versions.read(0, &mut Reader::new(&saved.head), *heir).expect("a head") {
                            versions.load(&run, &objects[&run.object], heir.unwrap_or(&|_, _| true)).expect("a run");
                        }
                    }
                    versions.finish(n as i64);
                }
            }
            let entries: usize = versions.segments.values().map(|s| s.entries.len()).sum();
            let reached: usize = (0..5_u8).map(|key| versions.of(key::hash(&[key]), &[key]).count()).sum();
            prop_assert_eq!(reached, versions.len(), "what lives is found, of {} entries", entries);
        }
    }
}
