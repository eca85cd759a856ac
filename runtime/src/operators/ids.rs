//! A table of ids, each with the time at which it was seen, in 16 bytes an entry and about 20 a live id.
//!
//! Ids are hashes, so they lie evenly: the upper bits of an id say where in the table it belongs, and what does not find its
//! place free moves on by a few. Entries stand in the order of their ids (ordered linear probing, Amble and Knuth 1974), so a
//! search ends at the first id that is larger, also when what it looks for is not there, which is the common case. The table
//! is made of segments that grow by themselves and by an eighth, so that no growth doubles memory or goes through all of it.

use std::hash::{BuildHasher, RandomState};
use std::mem::size_of;

/// An id with its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Which of the events of its place: a hash.
    pub event: u64,
    /// Where the id belongs: the upper half of a hash.
    pub place: u32,
    /// When it was seen: milliseconds, at most [`LATEST`].
    pub at: u32,
}

/// The latest time that an entry can have.
pub const LATEST: u32 = u32::MAX >> 1;

const EMPTY: Entry = Entry { event: 0, place: 0, at: u32::MAX };

/// Parts that are taken out by themselves: ids of one have the same first four bits.
pub const PARTS: usize = 16;
/// Segments of a table.
const SEGMENTS: usize = 256;
/// A segment is made anew when so many of a hundred places are taken.
const FULL: usize = 85;
/// It is made larger when so many still are when what may be forgotten is gone.
const TIGHT: usize = 80;
/// So many of a hundred places are taken in one that was made larger or smaller.
const ROOMY: usize = 75;
/// One with less than so many of a hundred taken is made smaller.
const SPARSE: usize = 67;
/// Slots for what is moved on at the end of a segment.
const SPARE: usize = 8;

impl Entry {
    /// As it is stored.
    pub fn pack(self) -> u128 {
        u128::from(self.event) | u128::from(self.place) << 64 | u128::from(self.at) << 96
    }

    /// From what was stored; `None`: the time is none.
    pub fn unpack(bits: u128) -> Option<Self> {
        let entry = Self { event: bits as u64, place: (bits >> 64) as u32, at: (bits >> 96) as u32 };
        (entry.at <= LATEST).then_some(entry)
    }

    fn is_empty(&self) -> bool {
        self.at == EMPTY.at
    }

    fn lives(&self, floor: u32) -> bool {
        !self.is_empty() && self.at >= floor
    }
}

/// The ids whose first eight bits are the same. Slots beyond `homes` take what was moved on at the end.
#[derive(Debug, Clone, Default)]
struct Segment {
    slots: Vec<Entry>,
    homes: usize,
    live: usize,
}

impl Segment {
    /// Where an id belongs: in the same order as ids.
    fn home(&self, event: u64) -> usize {
        ((((event >> 24) as u32 as u64) * self.homes as u64) >> 32) as usize
    }

    fn insert(&mut self, entry: Entry, floor: u32) {
        if self.live >= self.homes * FULL / 100 {
            self.renew(floor);
        }
        let mut at = self.home(entry.event);
        while self.slots.get(at).is_some_and(|e| !e.is_empty() && e.event <= entry.event) {
            at += 1;
        }
        let free = self.slots[at..].iter().position(Entry::is_empty).map(|n| at + n).unwrap_or_else(|| {
            if self.slots.len() == self.slots.capacity() {
                self.slots.reserve_exact(SPARE);
            }
            self.slots.push(EMPTY);
            self.slots.len() - 1
        });
        self.slots.copy_within(at..free, at + 1);
        self.slots[at] = entry;
        self.live += 1;
    }

    /// Makes it anew without what is older than `floor`, as large as it has to be.
    fn renew(&mut self, floor: u32) {
        self.live = self.slots.iter().filter(|e| e.lives(floor)).count();
        let right = self.live < self.homes * TIGHT / 100 && self.live >= self.homes * SPARSE / 100;
        self.renew_as(if right { self.homes } else { self.live * 100 / ROOMY + 4 }, floor);
    }

    fn renew_as(&mut self, homes: usize, floor: u32) {
        self.homes = homes;
        let mut slots = Vec::new();
        slots.reserve_exact(self.homes + SPARE);
        for entry in self.slots.iter().filter(|e| e.lives(floor)) {
            let home = self.home(entry.event);
            if slots.len() < home {
                slots.resize(home, EMPTY);
            }
            slots.push(*entry);
        }
        slots.resize(slots.len().max(self.homes), EMPTY);
        self.slots = slots;
    }
}

/// Ids with their times; one id may be there with several.
#[derive(Debug, Clone)]
pub struct Table {
    segments: Vec<Segment>,
    /// Mixes ids, so that nobody who chooses them chooses where they stand.
    secret: u64,
    /// The segment that is swept next.
    next: usize,
}

impl Default for Table {
    fn default() -> Self {
        Self { segments: vec![Segment::default(); SEGMENTS], secret: RandomState::new().hash_one(0), next: 0 }
    }
}

impl Table {
    /// Whether an id is there with a time for which `holds` is true.
    pub fn any(&self, event: u64, place: u32, mut holds: impl FnMut(u32) -> bool) -> bool {
        let event = self.mix(event);
        let segment = &self.segments[(event >> 56) as usize];
        let from = segment.slots.get(segment.home(event)..).unwrap_or_default();
        let mut until = from.iter().take_while(|e| !e.is_empty() && e.event <= event);
        until.any(|e| e.event == event && e.place == place && holds(e.at))
    }

    /// Makes room for so many ids at once, where there are none yet.
    pub fn expect(&mut self, ids: usize) {
        for segment in self.segments.iter_mut().filter(|s| s.live == 0) {
            segment.renew_as(ids / SEGMENTS * 100 / ROOMY + 4, 0);
        }
    }

    /// Adds an id. What is older than `floor` may be forgotten on the way.
    pub fn insert(&mut self, entry: Entry, floor: u32) {
        let entry = Entry { event: self.mix(entry.event), ..entry };
        self.segments[(entry.event >> 56) as usize].insert(entry, floor);
    }

    /// Another number for each id.
    fn mix(&self, event: u64) -> u64 {
        (event ^ self.secret).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }

    /// Forgets what is older than `floor` in the next `segments` segments.
    pub fn sweep(&mut self, segments: usize, floor: u32) {
        for _ in 0..segments.min(SEGMENTS) {
            let segment = &mut self.segments[self.next];
            if segment.slots.iter().any(|e| e.at < floor) {
                segment.renew(floor);
            }
            self.next = (self.next + 1) % SEGMENTS;
        }
    }

    /// As ids stand in the table.
    pub fn mixed(&self, event: u64) -> u64 {
        self.mix(event)
    }

    /// Takes out the ids of one of [`PARTS`] parts that are not older than `floor`, as they stand, in the order of their events,
    /// if `put` has put them elsewhere.
    pub fn take_part(&mut self, part: usize, floor: u32, put: impl FnOnce(&[Entry]) -> bool) {
        let segments = &mut self.segments[part * SEGMENTS / PARTS..(part + 1) * SEGMENTS / PARTS];
        let entries: Vec<Entry> = segments.iter().flat_map(|s| &s.slots).filter(|e| e.lives(floor)).copied().collect();
        if put(&entries) {
            segments.fill(Segment::default());
        }
    }

    /// Number of ids, those included that are not forgotten yet.
    pub fn len(&self) -> usize {
        self.segments.iter().map(|s| s.live).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Memory, bytes.
    pub fn bytes(&self) -> usize {
        let slots: usize = self.segments.iter().map(|s| s.slots.capacity()).sum();
        slots * size_of::<Entry>() + SEGMENTS * size_of::<Segment>()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Ids that crowd: few segments, few places, many that are equal in part.
    fn id() -> impl Strategy<Value = (u64, u32)> {
        // The inverse of the factor that mixes.
        const BACK: u64 = 0xF1DE_83E1_9937_733D;
        let near = (0..3_u64, 0..40_u64, 0..2_u64).prop_map(|(segment, home, low)| (segment << 56 | home << 40 | low).wrapping_mul(BACK));
        (prop_oneof![near, any::<u64>()], 0..2_u32)
    }

    proptest! {
        #[test]
        fn a_table_knows_what_a_set_knows(
            steps in proptest::collection::vec((id(), 0..100_u32, prop::bool::weighted(0.02)), 1..600)
        ) {
            let (mut table, mut all, mut floor) = (Table { secret: 0, ..Table::default() }, BTreeSet::new(), 0);
            for ((event, place), at, sweep) in steps {
                if sweep {
                    floor = floor.max(at / 2);
                    table.sweep(SEGMENTS, floor);
                }
                table.insert(Entry { event, place, at }, floor);
                all.insert((event, place, at));
            }
            for (event, place, at) in &all {
                let mut found = Vec::new();
                table.any(*event, *place, |a| { found.push(a); false });
                // What is below the floor may be forgotten, and nothing else.
                let wanted: BTreeSet<u32> = all.iter().filter(|(e, p, a)| e == event && p == place && *a >= floor).map(|(.., a)| *a).collect();
                let kept: BTreeSet<u32> = found.iter().copied().filter(|a| *a >= floor).collect();
                prop_assert_eq!(&kept, &wanted);
                prop_assert_eq!(table.any(*event, *place, |a| a == *at), found.contains(at));
                prop_assert!(!table.any(*event, *place + 2, |_| true));
            }
        }
    }

    #[test]
    fn an_id_takes_less_than_twenty_four_bytes_at_any_size_and_age() {
        const AGE: usize = 300_000;
        let mut table = Table::default();
        let mut random = 1_u64;
        let mut worst = 0.0_f64;
        for n in 1..=4 * AGE {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let floor = n.saturating_sub(AGE) as u32;
            table.insert(Entry { event: random ^ random.rotate_left(31), place: n as u32, at: n as u32 }, floor);
            if n % 5_000 == 0 {
                // As often as snapshots do, a part is swept.
                table.sweep(8, floor);
                if n >= 100_000 {
                    worst = worst.max(table.bytes() as f64 / n.min(AGE) as f64);
                }
            }
        }
        assert!(worst < 24.0, "{worst} bytes");
        // Forgotten, they take no room.
        table.sweep(SEGMENTS, LATEST);
        assert!(table.is_empty() && table.bytes() < 64 << 10, "{} bytes", table.bytes());
    }
}
