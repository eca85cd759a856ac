//! The rows of a table as they were at each time: of each key the newest, and those that older rows of the other side still
//! ask for.
//!
//! Rows lie in segments in the order in which they came; a full one is written as an object once. What is replaced dies in its
//! segment, a segment of which little lives is moved to the newest one, so objects and memory follow what lives
//! (`docs/adr/0017`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use leat_runtime_core::key;
use leat_runtime_core::wire::{Damaged, Reader, Writer};

use super::deduplicate::Heir;
use super::memory::{Disk, Packed, Spill};
use super::saved::{Run, Saving};

/// Version of the encoding of runs.
const VERSION: u8 = 1;
/// Rows in the snapshot itself: at most this share of all bytes, or [`Saving::least`] times [`ROW`] bytes.
const SHARE: usize = 256;
/// Bytes of a row, about.
const ROW: usize = 16;
/// So few rows may be dead without a word.
const FEW: usize = 64;

/// Segment, and index in it.
type At = (u32, u32);

/// Which rows belong together, and which of them is newer: hash of the key, event time, lineage, and the number there, in which
/// later records of a shard are higher.
type Age = (u64, i64, Arc<str>, u64);

#[derive(Debug, Clone)]
struct Entry {
    age: Age,
    alive: bool,
}

#[derive(Debug, Clone, Default)]
struct Segment {
    entries: Vec<Entry>,
    /// Of each its key, and what it holds.
    rows: Packed,
    alive: usize,
    /// The object in which it stands; one that is being written is not there yet.
    object: Option<String>,
    written: bool,
}

impl Segment {
    /// Whether more of it is dead than alive.
    fn mostly_dead(&self) -> bool {
        self.alive * 2 < self.entries.len()
    }
}

/// Versions of a table's rows.
#[derive(Debug, Clone)]
pub struct Versions {
    segments: BTreeMap<u32, Segment>,
    /// Number of the next segment.
    next: u32,
    /// All rows that live, those of a key one after the other.
    rows: BTreeMap<Age, At>,
    lineages: BTreeSet<Arc<str>>,
    /// No lineage: it stands before all of them.
    none: Arc<str>,
    /// Nobody asks any more for what was before this time.
    done: i64,
    /// Rows that replace others when `done` has come to them, by time.
    unsettled: BTreeSet<(i64, Age)>,
    spill: Spill,
}

impl Default for Versions {
    fn default() -> Self {
        let (segments, rows, lineages, unsettled, spill) = Default::default();
        Self { segments, next: 0, rows, lineages, none: "".into(), done: i64::MIN, unsettled, spill }
    }
}

impl Versions {
    /// Key and content of a row.
    fn get<'a>(&'a self, at: At, scratch: &'a mut Vec<u8>) -> Result<(&'a [u8], &'a [u8]), Damaged> {
        self.segments.get(&at.0).ok_or(Damaged("a segment is missing"))?.rows.get(at.1 as usize, scratch)
    }

    /// Hands over the row of a key that was the newest at a time, ms.
    pub fn newest<R>(&self, key: &[u8], time: i64, take: impl FnOnce(Option<&[u8]>) -> R) -> Result<R, Damaged> {
        let (hash, mut scratch) = (key::hash(key), Vec::new());
        let Some(after) = time.checked_add(1) else { return Ok(take(None)) };
        let known = self.rows.range((hash, i64::MIN, Arc::clone(&self.none), 0)..(hash, after, Arc::clone(&self.none), 0));
        for at in known.rev().map(|(_, at)| *at) {
            // Another key may have the same hash.
            let (found, row) = self.get(at, &mut scratch)?;
            if found == key {
                return Ok(take(Some(row)));
            }
        }
        Ok(take(None))
    }

    /// Rows before this time are not asked for any more.
    pub fn done(&self) -> i64 {
        self.done
    }

    /// Memory, bytes, about.
    pub fn memory(&self) -> usize {
        let one = |s: &Segment| s.rows.memory() + s.entries.capacity() * size_of::<Entry>();
        self.segments.values().map(one).sum::<usize>() + self.rows.len() * size_of::<(Age, At)>() * 4 / 3
    }

    /// Moves rows to the disk; what tells where they are stays in memory.
    pub fn spill(&mut self, disk: &Arc<Disk>, least: usize) {
        self.segments.values_mut().for_each(|segment| segment.rows.spill(disk, least, &mut self.spill));
    }

    /// Adds a row: the `number`th of a lineage.
    pub fn push(&mut self, time: i64, lineage: &str, number: u64, key: &[u8], row: &[u8]) {
        let age = (key::hash(key), time, self.lineage(lineage), number);
        self.append(age, key, row);
    }

    /// Adds it to the newest segment.
    fn append(&mut self, age: Age, key: &[u8], row: &[u8]) {
        let open = match self.segments.last_key_value() {
            Some((id, segment)) if segment.object.is_none() => *id,
            _ => self.next,
        };
        self.add(open, age, key, row);
    }

    fn lineage(&mut self, name: &str) -> Arc<str> {
        match self.lineages.get(name) {
            Some(known) => Arc::clone(known),
            None => {
                let name: Arc<str> = name.into();
                self.lineages.insert(Arc::clone(&name));
                name
            }
        }
    }

    fn add(&mut self, segment: u32, age: Age, key: &[u8], row: &[u8]) {
        self.next = self.next.max(segment + 1);
        let into = self.segments.entry(segment).or_default();
        let at = (segment, into.entries.len() as u32);
        into.rows.push(key, row);
        into.entries.push(Entry { age: age.clone(), alive: true });
        into.alive += 1;
        // It replaces the one before it, and the one behind it replaces it.
        if self.rows.range(..&age).next_back().is_some_and(|(before, _)| before.0 == age.0) {
            self.unsettled.insert((age.1, age.clone()));
        }
        let behind = self.rows.range((std::ops::Bound::Excluded(&age), std::ops::Bound::Unbounded)).next();
        if let Some((behind, _)) = behind.filter(|(behind, _)| behind.0 == age.0) {
            self.unsettled.insert((behind.1, behind.clone()));
        }
        self.rows.insert(age, at);
    }

    /// Nobody asks any more for what was before `bound`: of the rows up to it, only the newest of each key is kept.
    pub fn finish(&mut self, bound: i64) -> Result<(), Damaged> {
        if bound <= self.done {
            return Ok(());
        }
        self.done = bound;
        let mut scratch = Vec::new();
        while self.unsettled.first().is_some_and(|(time, _)| *time <= bound) {
            let Some((_, age)) = self.unsettled.pop_first() else { break };
            let Some(at) = self.rows.get(&age).copied() else { continue };
            let key = self.get(at, &mut scratch)?.0.to_vec();
            let mut older = Vec::new();
            for (age, other) in self.rows.range((age.0, i64::MIN, Arc::clone(&self.none), 0)..age) {
                if self.get(*other, &mut scratch)?.0 == key {
                    older.push(age.clone());
                }
            }
            older.iter().try_for_each(|age| self.kill(age))?;
        }
        Ok(())
    }

    /// Takes a row out.
    fn kill(&mut self, age: &Age) -> Result<(), Damaged> {
        self.unsettled.remove(&(age.1, age.clone()));
        let Some(at) = self.rows.remove(age) else { return Ok(()) };
        let Some(segment) = self.segments.get_mut(&at.0) else { return Ok(()) };
        segment.entries[at.1 as usize].alive = false;
        segment.alive -= 1;
        let open = segment.object.is_none();
        if segment.alive == 0 && (!open || segment.entries.len() > FEW) {
            self.segments.remove(&at.0);
        } else if open && segment.entries.len() > FEW && segment.mostly_dead() {
            self.renew(at.0)?;
        }
        Ok(())
    }

    /// Moves what lives of a segment to the newest one.
    fn renew(&mut self, id: u32) -> Result<(), Damaged> {
        let Some(old) = self.segments.remove(&id) else { return Ok(()) };
        self.next = self.next.max(id + 1);
        let mut scratch = Vec::new();
        for (at, entry) in old.entries.iter().enumerate().filter(|(_, e)| e.alive) {
            let (key, row) = old.rows.get(at, &mut scratch)?;
            self.rows.remove(&entry.age);
            self.append(entry.age.clone(), key, row);
        }
        Ok(())
    }

    /// One segment that is mostly dead.
    fn clean(&mut self) -> Result<(), Damaged> {
        let worst = self.segments.iter().filter(|(_, s)| s.written && s.mostly_dead()).min_by_key(|(_, s)| s.alive);
        worst.map(|(id, _)| *id).map_or(Ok(()), |id| self.renew(id))
    }

    /// Writes what a snapshot says of the rows: the objects, a new one among them, and the rows that are in none.
    pub fn write(&mut self, out: &mut Writer, saving: &mut Saving<'_>) -> Result<(), Damaged> {
        self.clean()?;
        let all: usize = self.segments.values().filter(|s| !s.mostly_dead()).map(|s| s.rows.size()).sum();
        let large = (all / SHARE).max(saving.least * ROW);
        // One that another snapshot was to write is written with this one.
        let mut rest: Vec<u32> = Vec::new();
        for (id, segment) in self.segments.iter_mut().filter(|(_, s)| !s.written) {
            segment.object = None;
            rest.push(*id);
        }
        let mut inline = Vec::new();
        for id in rest {
            let Some(bytes) = self.segments.get(&id).map(encode).transpose()? else { continue };
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
        Ok(())
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
                self.next = self.next.max(id.saturating_add(1));
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
                    let age = (hash, time, self.lineage(name), number);
                    self.add(segment, age, key, row);
                }
                None => self.push(time, name, number, key, row),
            }
        }
        Ok(())
    }
}

/// The rows of a segment that live, with the names of their lineages.
fn encode(segment: &Segment) -> Result<Vec<u8>, Damaged> {
    let (mut out, mut scratch) = (Writer::default(), Vec::new());
    let alive = || segment.entries.iter().enumerate().filter(|(_, e)| e.alive);
    let lineages: BTreeSet<&str> = alive().map(|(_, e)| &*e.age.2).collect();
    let lineages: BTreeMap<&str, u64> = lineages.into_iter().zip(0..).collect();
    out.number(lineages.len() as u64);
    lineages.keys().for_each(|name| out.blob(name.as_bytes()));
    out.number(segment.alive as u64);
    for (at, entry) in alive() {
        let (key, row) = segment.rows.get(at, &mut scratch)?;
        out.signed(entry.age.1);
        out.number(lineages.get(&*entry.age.2).copied().unwrap_or_default());
        out.number(entry.age.3);
        out.blob(key);
        out.blob(row);
    }
    Ok(out.finish())
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
            events in proptest::collection::vec((0..12_i64, 0..5_u8, 0..2_u8, prop_oneof![4 => Just(0_u8), 1 => 1..5_u8]), 1..250),
            least in 1..12_usize,
        ) {
            let folder = tempfile::tempdir().expect("a folder");
            let disk = Arc::new(Disk::new(folder.path().to_owned(), u64::MAX).expect("a disk"));
            let (mut versions, mut list) = (Versions::default(), Vec::<(u8, (i64, String, u64))>::new());
            let mut objects: BTreeMap<String, Bytes> = BTreeMap::new();
            for (n, (behind, key, lineage, what)) in events.iter().enumerate() {
                let (time, lineage) = (n as i64 + 12 - behind, format!("shard-{lineage}"));
                versions.push(time, &lineage, n as u64, &[*key], &n.to_le_bytes());
                list.push((*key, (time, lineage, n as u64)));
                versions.finish(n as i64).expect("rows");
                for at in n as i64..n as i64 + 14 {
                    let newest = list.iter().filter(|(k, (t, ..))| k == key && *t <= at).map(|(_, age)| age).max();
                    let wanted = newest.map(|(_, _, n)| (*n as usize).to_le_bytes().to_vec());
                    let found = versions.newest(&[*key], at, |row| row.map(<[u8]>::to_vec)).expect("rows");
                    prop_assert_eq!(found, wanted, "key {} at {}", key, at);
                }
                let later = list.iter().filter(|(_, (t, ..))| *t > n as i64).count();
                prop_assert!(versions.rows.len() <= later + 5, "{} rows of {}", versions.rows.len(), later);
                if *what == 4 {
                    versions.spill(&disk, 20);
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
                versions.write(&mut head, &mut saving).expect("rows");
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
                    versions.finish(n as i64).expect("rows");
                }
            }
            let entries: usize = versions.segments.values().map(|s| s.entries.len()).sum();
            let alive: usize = versions.segments.values().map(|s| s.alive).sum();
            prop_assert_eq!(alive, versions.rows.len());
            // What is being written stays as it is until it is there.
            prop_assert!(entries <= 2 * alive + 4 * FEW, "{} entries, {} alive", entries, alive);
        }
    }
}
