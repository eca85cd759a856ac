//! Exact deduplication: the ids seen, each with the event time at which it was seen.
//!
//! An id is two 64-bit hashes. The first says where the id belongs (the upper half of the partition key's MD5, or the
//! key's hash, whose upper part is the key group), so that a split or a job change can hand each task its ids; the
//! second tells the events of one key apart. Of the first, 32 bits are kept. Two different events are taken for one with a
//! probability of about n² / 2⁶⁵ for n events of one key within the horizon, and n² / 2⁹⁷ for n of all keys.
//!
//! Persisted, ids are of two kinds: those of late stand in the snapshot itself; the others in runs, objects of their own
//! that are written once and named by every snapshot until all that is in them has expired. So a snapshot costs what
//! came since the last ones, not what is remembered (`docs/adr/0014`).

use std::sync::Arc;

use bytes::Bytes;
use leat_runtime_core::rules::{Rule, Rules};
use leat_runtime_core::wire::{Damaged, Reader, Writer};

use super::cold::Cold;
use super::ids::{Entry, LATEST, PARTS, Table};
use super::memory::{Disk, Spill};
use super::saved::{Run, Saving};

/// An id: where it belongs, and which of the events there.
pub type Id = (u64, u64);

/// For ids that were another task's: whether any of the places from the first to the last belongs here. Only the upper half
/// of a place is known, so a border within it gives an id to both sides, where it does no harm.
pub type Heir<'a> = &'a dyn Fn(u64, u64) -> bool;

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

/// Version of the encoding of runs.
const VERSION: u8 = 1;
/// An epoch is 2³¹ ms long, about 25 days: within it a time needs 31 bits.
const EPOCH_BITS: u32 = 31;
/// Segments of a table that each snapshot sweeps: all of them within 32 snapshots.
const SWEPT: usize = 8;
/// No more runs than about this many, as long as they are not larger than [`LARGEST`] times the least.
const RUNS: usize = 256;
/// Largest run, in least ones.
const LARGEST: usize = 16;
/// Room is made for so many ids at most before they are there: a head is not trusted with memory.
const EXPECTED: usize = 1 << 20;

/// Ids that were stored as an object.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stored {
    object: String,
    ids: usize,
    /// The latest time among them.
    newest: u32,
    /// This task wrote it: others are those of whom it took over from, of which only a part may belong here.
    own: bool,
}

/// The ids of one epoch.
#[derive(Debug, Clone, Default)]
struct Epoch {
    number: i64,
    table: Table,
    /// By part: those that were moved to the disk.
    cold: [Vec<Cold>; PARTS],
    /// In the order in which they were seen: those that are in no run.
    fresh: Vec<Entry>,
    /// Runs that exist.
    runs: Vec<Stored>,
    /// Runs of the first of `fresh` that are being written.
    pending: Vec<Stored>,
}

impl Epoch {
    fn add(&mut self, entry: Entry, floor: u32) {
        self.table.insert(entry, floor);
        self.fresh.push(entry);
    }

    /// Whether an id is there with a time for which `holds` is true.
    fn any(&self, event: u64, place: u32, mut holds: impl FnMut(u32) -> bool) -> Result<bool, Damaged> {
        if self.table.any(event, place, &mut holds) {
            return Ok(true);
        }
        let event = self.table.mixed(event);
        for cold in &self.cold[(event >> (u64::BITS - PARTS.ilog2())) as usize] {
            if cold.any(event, place, &mut holds)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn cold(&self) -> impl Iterator<Item = &Cold> {
        self.cold.iter().flatten()
    }
}

/// The ids seen.
#[derive(Debug, Clone)]
pub struct Seen {
    /// In order; most often one.
    epochs: Vec<Epoch>,
    /// What is older may be forgotten, ms.
    horizon: i64,
    spill: Spill,
}

impl Default for Seen {
    fn default() -> Self {
        Self { epochs: Vec::new(), horizon: i64::MIN, spill: Spill::default() }
    }
}

impl Seen {
    /// No event to come is judged against a lower watermark than this: what is of no use to it may be forgotten.
    pub fn advance(&mut self, watermark: i64, within: i64) {
        self.horizon = self.horizon.max(watermark.saturating_sub(within));
    }

    /// Judges an event at `time` (ms), against its lineage's watermark before it. The verdict does not depend on when
    /// ids are really forgotten.
    pub fn judge(&mut self, id: Id, time: i64, watermark: i64, within: i64, rules: Rules) -> Result<Verdict, Damaged> {
        if late(time, watermark, within) && rules.hold(Rule::Horizon) {
            return Ok(Verdict::Late);
        }
        let (event, place) = (id.1, (id.0 >> 32) as u32);
        let (number, at) = split(time);
        let near = epoch_of(time.saturating_sub(within))..=epoch_of(time.saturating_add(within));
        for epoch in self.epochs.iter().filter(|e| near.contains(&e.number)) {
            let known = epoch.any(event, place, |at| {
                let first = join(epoch.number, at);
                first.saturating_add(within) >= watermark && time.saturating_sub(first).saturating_abs() <= within
            })?;
            if known {
                return Ok(Verdict::Repeat);
            }
        }
        let floor = floor(number, self.horizon);
        self.epoch(number).add(Entry { event, place, at }, floor);
        Ok(Verdict::New)
    }

    fn epoch(&mut self, number: i64) -> &mut Epoch {
        let at = self.epochs.partition_point(|e| e.number < number);
        if self.epochs.get(at).is_none_or(|e| e.number != number) {
            self.epochs.insert(at, Epoch { number, ..Epoch::default() });
        }
        &mut self.epochs[at]
    }

    /// Forgets some of what no event that is not late can repeat.
    fn expire(&mut self) {
        let horizon = self.horizon;
        self.epochs.retain(|e| join(e.number, LATEST) >= horizon);
        for epoch in &mut self.epochs {
            let floor = floor(epoch.number, horizon);
            epoch.table.sweep(SWEPT, floor);
            epoch.runs.retain(|run| run.newest >= floor);
            epoch.cold.iter_mut().for_each(|part| part.retain(|cold| cold.newest() >= floor));
        }
    }

    /// Number of ids, those included that are not forgotten yet.
    pub fn len(&self) -> usize {
        self.epochs.iter().map(|e| e.table.len() + e.cold().map(Cold::ids).sum::<usize>()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Memory, bytes.
    pub fn memory(&self) -> usize {
        let one = |e: &Epoch| e.table.bytes() + e.fresh.capacity() * size_of::<Entry>() + e.cold().map(Cold::memory).sum::<usize>();
        self.epochs.iter().map(one).sum()
    }

    /// Moves ids to the disk, part by part.
    pub fn spill(&mut self, disk: &Arc<Disk>, least: usize) {
        let (horizon, spill) = (self.horizon, &mut self.spill);
        for epoch in self.epochs.iter_mut().filter(|epoch| epoch.table.len() * size_of::<Entry>() > least) {
            let floor = floor(epoch.number, horizon);
            for (part, cold) in epoch.cold.iter_mut().enumerate() {
                if !disk.fits(epoch.table.len() / PARTS * size_of::<Entry>()) {
                    return;
                }
                epoch.table.take_part(part, floor, |entries| {
                    let written = if entries.is_empty() { None } else { Cold::write(entries, disk, spill) };
                    let gone = entries.is_empty() || written.is_some();
                    cold.extend(written);
                    gone
                });
                Cold::merge(cold, floor, disk, spill);
            }
        }
    }

    /// Writes what a snapshot says of the ids: the names of the runs, new ones among them, and those that are in none.
    pub fn write(&mut self, out: &mut Writer, saving: &mut Saving<'_>, watermark: i64, within: i64) {
        self.advance(watermark, within);
        self.expire();
        let least = saving.least.max(1);
        let most = (self.len() / RUNS).clamp(least, least * LARGEST);
        out.signed(self.horizon);
        out.number(self.epochs.len() as u64);
        for epoch in &mut self.epochs {
            out.signed(epoch.number);
            let whole = epoch.fresh.chunks_exact(most);
            let rest = whole.remainder();
            epoch.pending = whole
                .map(|ids| {
                    let mut run = Writer::default();
                    run.byte(VERSION);
                    run.signed(epoch.number);
                    entries(&mut run, ids);
                    let newest = ids.iter().map(|e| e.at).max().unwrap_or_default();
                    Stored { object: saving.add(Bytes::from(run.sealed())), ids: ids.len(), newest, own: true }
                })
                .collect();
            saving.named.extend(epoch.runs.iter().filter(|run| run.own).map(|run| run.object.clone()));
            out.number((epoch.runs.len() + epoch.pending.len()) as u64);
            for run in epoch.runs.iter().chain(&epoch.pending) {
                out.blob(run.object.as_bytes());
                out.number(run.ids as u64);
                out.number(u64::from(run.newest));
                out.byte(u8::from(run.own));
            }
            entries(out, rest);
        }
    }

    /// The new runs of a snapshot are written.
    pub fn stored(&mut self, objects: &[String]) {
        for epoch in &mut self.epochs {
            // Others are those of a snapshot that another one overtook.
            if epoch.pending.iter().all(|run| objects.contains(&run.object)) {
                let ids: usize = epoch.pending.iter().map(|run| run.ids).sum();
                epoch.fresh.drain(..ids);
                epoch.fresh.shrink_to(2 * epoch.fresh.len());
                epoch.runs.append(&mut epoch.pending);
            }
        }
    }

    /// Reads what [`Self::write`] wrote; answers the runs, which are to be loaded. `heir`: another task wrote it, and those of
    /// its ids belong here for which it holds.
    pub fn read(&mut self, step: usize, from: &mut Reader<'_>, heir: Option<Heir<'_>>) -> Result<Vec<Run>, Damaged> {
        let mut runs = Vec::new();
        let horizon = from.signed()?;
        if heir.is_none() {
            self.horizon = self.horizon.max(horizon);
        }
        for _ in 0..from.number()? {
            let number = from.signed()?;
            let epoch = self.epoch(number);
            let mut ids: usize = 0;
            for _ in 0..from.number()? {
                let (object, count, newest) = (from.text()?.to_owned(), from.number()? as usize, from.number()? as u32);
                let own = from.byte()? == 1 && heir.is_none();
                if epoch.runs.iter().any(|run| run.object == object) {
                    // Two of whom it takes over from took over from the same one.
                    continue;
                }
                runs.push(Run { step, object: object.clone(), own, horizon });
                epoch.runs.push(Stored { object, ids: count, newest, own });
                ids = ids.saturating_add(if own { count } else { 0 });
            }
            if ids > 0 {
                epoch.table.expect(ids.min(EXPECTED));
            }
            take(from, number, horizon, heir, |entry| epoch.add(entry, 0))?;
        }
        Ok(runs)
    }

    /// Takes in a run; of one that another task wrote, what belongs here.
    pub fn load(&mut self, run: &Run, bytes: &[u8], heir: Heir<'_>) -> Result<(), Damaged> {
        let mut from = Reader::sealed(bytes)?;
        if from.byte()? != VERSION {
            return Err(Damaged("a run of ids has an unknown version"));
        }
        let number = from.signed()?;
        let epoch = self.epoch(number);
        take(&mut from, number, run.horizon, (!run.own).then_some(heir), |entry| epoch.table.insert(entry, 0))
    }
}

/// Reads ids of an epoch and hands over those that are not behind the horizon and belong to the heir.
fn take(from: &mut Reader<'_>, number: i64, horizon: i64, heir: Option<Heir<'_>>, mut add: impl FnMut(Entry)) -> Result<(), Damaged> {
    let floor = floor(number, horizon);
    for _ in 0..from.number()? {
        let entry = Entry::unpack(from.wide()?).ok_or(Damaged("an id has no time"))?;
        let first = u64::from(entry.place) << 32;
        if entry.at >= floor && heir.is_none_or(|mine| mine(first, first | u64::from(u32::MAX))) {
            add(entry);
        }
    }
    Ok(())
}

fn entries(out: &mut Writer, entries: &[Entry]) {
    out.number(entries.len() as u64);
    entries.iter().for_each(|e| out.wide(e.pack()));
}

/// The epoch of a time.
fn epoch_of(time: i64) -> i64 {
    time >> EPOCH_BITS
}

/// The epoch of a time, and the time within it.
fn split(time: i64) -> (i64, u32) {
    (epoch_of(time), (time & i64::from(LATEST)) as u32)
}

fn join(epoch: i64, at: u32) -> i64 {
    epoch << EPOCH_BITS | i64::from(at)
}

/// The earliest time within an epoch that is not behind the horizon.
fn floor(epoch: i64, horizon: i64) -> u32 {
    let (number, at) = split(horizon);
    match number.cmp(&epoch) {
        std::cmp::Ordering::Less => 0,
        std::cmp::Ordering::Equal => at,
        std::cmp::Ordering::Greater => LATEST,
    }
}

/// Whether an event is behind the horizon of what is remembered.
pub fn late(time: i64, watermark: i64, within: i64) -> bool {
    time.saturating_add(within) < watermark
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WITHIN: i64 = 50;

    /// Two lineages take turns, one of them behind the other; their ids stand in one table. Whatever is forgotten, written
    /// and read again on the way, each verdict is the one of a list that remembers everything.
    fn verdicts_are_those_of_a_list(events: &[(bool, i64, u64, u8)], start: i64) -> Result<(), TestCaseError> {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = Arc::new(Disk::new(folder.path().to_owned(), 2_000).expect("a disk"));
        let (mut seen, mut all, mut watermarks) = (Seen::default(), Vec::<(u64, i64)>::new(), [i64::MIN; 2]);
        let mut objects: Vec<(String, Bytes)> = Vec::new();
        for (n, (ahead, step, id, what)) in events.iter().enumerate() {
            // The one ahead is further than everything that may be remembered for itself.
            let time = start + n as i64 * 2 + if *ahead { 3 * WITHIN } else { 0 } - step;
            let watermark = watermarks[usize::from(*ahead)];
            let wanted = if late(time, watermark, WITHIN) {
                Verdict::Late
            } else if all.iter().any(|(i, t)| i == id && t.saturating_add(WITHIN) >= watermark && (time - t).abs() <= WITHIN) {
                Verdict::Repeat
            } else {
                all.push((*id, time));
                Verdict::New
            };
            // Ids of one segment, which is made anew again and again.
            let found = seen.judge((*id << 32, *id << 40), time, watermark, WITHIN, Rules::all()).expect("a disk");
            prop_assert_eq!(found, wanted, "{:?} of id {} at {} with watermark {}", found, id, time, watermark);
            let mine = &mut watermarks[usize::from(*ahead)];
            *mine = (*mine).max(time - 5);
            seen.advance(watermarks[0].min(watermarks[1]), WITHIN);
            if *what == 1 {
                seen.spill(&disk, 20);
            }
            if *what == 2 {
                let mut made = 0;
                let mut name = || {
                    made += 1;
                    format!("run-{n}-{made}")
                };
                let mut saving = Saving::new(3, &mut name);
                let mut head = Writer::default();
                seen.write(&mut head, &mut saving, watermarks[0].min(watermarks[1]), WITHIN);
                let saved = saving.finish(head.finish());
                seen.stored(&saved.named);
                objects.extend(saved.new);
                // A crash: another task goes on with what is stored.
                if n % 2 == 0 {
                    seen = Seen::default();
                    for run in seen.read(0, &mut Reader::new(&saved.head), None).expect("a head") {
                        let (_, bytes) = objects.iter().find(|(name, _)| *name == run.object).expect("an object");
                        seen.load(&run, bytes, &|_, _| true).expect("a run");
                    }
                }
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn what_is_forgotten_is_missed_by_no_event(
            events in proptest::collection::vec((any::<bool>(), 0..60_i64, 0..6_u64, prop_oneof![8 => Just(0_u8), 1 => 1..3_u8]), 1..300),
            start in prop_oneof![Just(0_i64), Just((1_i64 << EPOCH_BITS) - 300), Just(-100_i64), Just(1_790_000_000_000)],
        ) {
            verdicts_are_those_of_a_list(&events, start)?;
        }
    }
}
