//! What the state of a worker's tasks takes: a budget of memory that all of them share, and files on the local disk for what is
//! beyond it (`docs/adr/0018`).
//!
//! What lies on the disk is a copy for the life of the process: state outlives it in snapshots. So the files have no names, and
//! go away with whoever had them open.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use leat_runtime_core::wire::{Damaged, Reader, Writer};

/// Bytes of one file, about: it is kept as long as anything in it is needed.
const FILE_BYTES: u64 = 64 << 20;
/// What is written to see whether there is room.
static PROBE: [u8; 64 << 10] = [0; 64 << 10];
/// Pieces of a task's state that are less than this share of what makes it move stay in memory.
const SMALL: usize = 64;

/// The memory of a worker's tasks.
#[derive(Debug)]
pub struct Memory {
    /// Bytes.
    limit: usize,
    used: AtomicUsize,
    shares: AtomicUsize,
    waited: AtomicU64,
    disk: Option<Arc<Disk>>,
}

impl Default for Memory {
    /// Without bounds.
    fn default() -> Self {
        Self::new(usize::MAX, None)
    }
}

impl Memory {
    /// At most about `limit` bytes, with what is beyond on `disk`.
    pub fn new(limit: usize, disk: Option<Disk>) -> Self {
        Self { limit, used: AtomicUsize::new(0), shares: AtomicUsize::new(0), waited: AtomicU64::new(0), disk: disk.map(Arc::new) }
    }

    /// Memory that the process may use, bytes: its control group's, or else the machine's; `None`: unknown.
    pub fn of_process() -> Option<usize> {
        let limit = |file: &str| std::fs::read_to_string(file).ok()?.trim().parse::<usize>().ok();
        let machine = || {
            let text = std::fs::read_to_string("/proc/meminfo").ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
            Some(line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()? << 10)
        };
        let group = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"].into_iter().find_map(limit);
        // A group without a limit has a very large one in version 1.
        [group, machine()].into_iter().flatten().min()
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes that there are to use.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes beyond the budget.
    pub fn excess(&self) -> usize {
        self.used().saturating_sub(self.limit)
    }

    /// A task begins to wait for it.
    pub fn wait(&self) {
        self.waited.fetch_add(1, Ordering::Relaxed);
    }

    /// How often tasks have begun to wait.
    pub fn waited(&self) -> u64 {
        self.waited.load(Ordering::Relaxed)
    }

    /// The disk.
    pub fn disk(&self) -> Option<&Arc<Disk>> {
        self.disk.as_ref()
    }
}

/// State that can be moved to the disk.
pub trait Spills {
    /// Memory, bytes, about.
    fn memory(&self) -> usize;

    /// Moves to the disk what can be moved, in pieces of `least` bytes or more.
    fn spill(&mut self, disk: &Arc<Disk>, least: usize);
}

/// What one task takes of a worker's memory, until it ends.
#[derive(Debug)]
pub struct Share {
    memory: Arc<Memory>,
    bytes: usize,
    pressed: bool,
    /// Bytes that were left when it was last moved to the disk.
    spilled_to: usize,
}

impl Share {
    /// A share of nothing yet.
    pub fn new(memory: &Arc<Memory>) -> Self {
        memory.shares.fetch_add(1, Ordering::Relaxed);
        Self { memory: Arc::clone(memory), bytes: 0, pressed: false, spilled_to: 0 }
    }

    /// Weighs the state of the task, with `more` bytes beside it. Beyond the budget, it is moved to the disk where it has grown
    /// enough since it was last: a quarter of what an equal share would be. So the largest tasks always do, and none writes
    /// small pieces again and again.
    pub fn weigh(&mut self, state: &mut impl Spills, more: usize) {
        self.set(state.memory() + more);
        let least = self.memory.limit / (4 * self.memory.shares.load(Ordering::Relaxed).max(1));
        if self.memory.excess() > 0
            && self.bytes >= self.spilled_to + least
            && let Some(disk) = self.memory.disk.clone().filter(|disk| disk.has_room())
        {
            let before = self.bytes;
            state.spill(&disk, least / SMALL);
            self.set(state.memory() + more);
            // Where there was no room, it is tried again.
            self.spilled_to = if disk.is_full() { before.min(self.spilled_to) } else { self.bytes };
        }
        self.spilled_to = self.spilled_to.min(self.bytes);
        // Tasks that have not grown enough to move have at most a quarter of it together. Not to and fro at the border.
        let (limit, room) = (self.memory.limit, self.memory.disk.as_ref().is_some_and(|disk| !disk.is_full()));
        let enough = match (self.pressed, room) {
            (false, true) => limit.saturating_add(limit / 4),
            (true, true) | (false, false) => limit,
            (true, false) => limit / 10 * 9,
        };
        self.pressed = self.memory.used() > enough;
    }

    /// Whether all tasks together were beyond the budget when this one was last weighed.
    pub fn pressed(&self) -> bool {
        self.pressed
    }

    fn set(&mut self, bytes: usize) {
        self.memory.used.fetch_add(bytes, Ordering::Relaxed);
        self.memory.used.fetch_sub(std::mem::replace(&mut self.bytes, bytes), Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.bytes, Ordering::Relaxed);
        self.memory.shares.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A folder for what does not fit into memory.
#[derive(Debug)]
pub struct Disk {
    folder: PathBuf,
    /// Bytes.
    limit: u64,
    used: AtomicU64,
    written: AtomicU64,
    /// The last write failed.
    full: AtomicBool,
}

impl Disk {
    /// At most `limit` bytes in a folder; fails where nothing can be written.
    pub fn new(folder: PathBuf, limit: u64) -> io::Result<Self> {
        std::fs::create_dir_all(&folder)?;
        tempfile::tempfile_in(&folder)?;
        Ok(Self { folder, limit, used: AtomicU64::new(0), written: AtomicU64::new(0), full: AtomicBool::new(false) })
    }

    /// Bytes in use, those included that are needed no more and share a file with others.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes that are left of its limit.
    pub fn room(&self) -> u64 {
        self.limit.saturating_sub(self.used())
    }

    /// Whether so many bytes more are within its limit; what does not fit need not be made. If not, it counts as full.
    pub fn fits(&self, bytes: usize) -> bool {
        let fits = bytes as u64 <= self.room();
        self.full.fetch_or(!fits, Ordering::Relaxed);
        fits
    }

    /// Bytes that were ever written.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Whether there seems to be room: where the last write failed, a small one is tried first.
    fn has_room(&self) -> bool {
        let small = || {
            let room = self.used() + (PROBE.len() as u64) < self.limit;
            room && tempfile::tempfile_in(&self.folder).is_ok_and(|file| file.write_all_at(&PROBE, 0).is_ok())
        };
        !self.is_full() || small()
    }

    /// Whether there was no room for the last write.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }
}

/// A file without a name.
#[derive(Debug)]
struct Unnamed {
    file: File,
    disk: Arc<Disk>,
    bytes: AtomicU64,
}

impl Drop for Unnamed {
    fn drop(&mut self) {
        self.disk.used.fetch_sub(*self.bytes.get_mut(), Ordering::Relaxed);
    }
}

/// Where a piece of state lies on the disk.
#[derive(Debug, Clone)]
pub struct Piece {
    file: Arc<Unnamed>,
    at: u64,
}

impl Piece {
    /// Reads `into.len()` bytes from a place within the piece.
    pub fn read(&self, from: usize, into: &mut [u8]) -> Result<(), Damaged> {
        let read = self.file.file.read_exact_at(into, self.at + from as u64);
        read.map_err(|_| Damaged("state on the local disk cannot be read back"))
    }
}

/// Writes pieces, those that belong together into the same files.
#[derive(Debug, Clone, Default)]
pub struct Spill {
    file: Option<Arc<Unnamed>>,
}

impl Spill {
    /// Writes a piece; `None`: there is no room.
    pub fn write(&mut self, disk: &Arc<Disk>, bytes: &[u8]) -> Option<Piece> {
        let piece = self.try_write(disk, bytes);
        disk.full.store(piece.is_none(), Ordering::Relaxed);
        piece
    }

    fn try_write(&mut self, disk: &Arc<Disk>, bytes: &[u8]) -> Option<Piece> {
        let length = bytes.len() as u64;
        if disk.used.fetch_add(length, Ordering::Relaxed) + length > disk.limit {
            disk.used.fetch_sub(length, Ordering::Relaxed);
            return None;
        }
        if self.file.as_ref().is_none_or(|file| file.bytes.load(Ordering::Relaxed) >= FILE_BYTES) {
            let made = tempfile::tempfile_in(&disk.folder).ok();
            self.file = made.map(|file| Arc::new(Unnamed { file, disk: Arc::clone(disk), bytes: AtomicU64::new(0) }));
        }
        let written = self.file.as_ref().and_then(|file| {
            let at = file.bytes.load(Ordering::Relaxed);
            file.file.write_all_at(bytes, at).ok()?;
            file.bytes.store(at + length, Ordering::Relaxed);
            disk.written.fetch_add(length, Ordering::Relaxed);
            Some(Piece { file: Arc::clone(file), at })
        });
        if written.is_none() {
            disk.used.fetch_sub(length, Ordering::Relaxed);
        }
        written
    }
}

/// Bytes that only grow, in memory or, from their beginning on, on the disk.
#[derive(Debug, Clone, Default)]
pub struct Growing {
    /// Each with the place among all bytes that it begins at.
    pieces: Vec<(usize, Piece)>,
    /// So many are on the disk.
    spilled: usize,
    rest: Vec<u8>,
}

impl Growing {
    /// Number of bytes.
    pub fn size(&self) -> usize {
        self.spilled + self.rest.len()
    }

    /// Memory, bytes.
    pub fn memory(&self) -> usize {
        self.rest.capacity()
    }

    /// Those that are in memory, to add to.
    pub fn rest(&mut self) -> &mut Vec<u8> {
        &mut self.rest
    }

    /// Some of them; what was written at once lies together.
    pub fn get<'a>(&'a self, range: std::ops::Range<usize>, scratch: &'a mut Vec<u8>) -> Result<&'a [u8], Damaged> {
        const GONE: Damaged = Damaged("state lies beyond its end");
        if range.start >= self.spilled {
            return self.rest.get(range.start - self.spilled..range.end - self.spilled).ok_or(GONE);
        }
        let at = self.pieces.partition_point(|(begins, _)| *begins <= range.start);
        let (begins, piece) = at.checked_sub(1).and_then(|at| self.pieces.get(at)).ok_or(GONE)?;
        scratch.resize(range.len(), 0);
        piece.read(range.start - begins, scratch)?;
        Ok(scratch)
    }

    /// Moves all of them to the disk, if there is room.
    pub fn spill(&mut self, disk: &Arc<Disk>, spill: &mut Spill) {
        if let Some(piece) = spill.write(disk, &self.rest) {
            self.pieces.push((self.spilled, piece));
            self.spilled += self.rest.len();
            self.rest = Vec::new();
        }
    }
}

/// Rows with their keys, one after another.
#[derive(Debug, Clone, Default)]
pub struct Packed {
    /// Of each its key, counted, and what it holds.
    bytes: Growing,
    /// Where each ends.
    ends: Vec<usize>,
}

impl Packed {
    /// Size of all rows, bytes.
    pub fn size(&self) -> usize {
        self.bytes.size()
    }

    /// Memory, bytes.
    pub fn memory(&self) -> usize {
        self.bytes.memory() + self.ends.capacity() * size_of::<usize>()
    }

    /// Adds a row.
    pub fn push(&mut self, key: &[u8], row: &[u8]) {
        let rest = self.bytes.rest();
        let mut out = Writer::from(std::mem::take(rest));
        out.blob(key);
        out.raw(row);
        *rest = out.finish();
        self.ends.push(self.bytes.size());
    }

    /// Key and content of a row.
    pub fn get<'a>(&'a self, at: usize, scratch: &'a mut Vec<u8>) -> Result<(&'a [u8], &'a [u8]), Damaged> {
        let end = *self.ends.get(at).ok_or(Damaged("there is no such row"))?;
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        let mut row = Reader::new(self.bytes.get(start..end, scratch)?);
        Ok((row.blob()?, row.rest()))
    }

    /// Moves the rows in memory to the disk, if they are more than `least` bytes.
    pub fn spill(&mut self, disk: &Arc<Disk>, least: usize, spill: &mut Spill) {
        if self.bytes.rest().len() > least {
            self.bytes.spill(disk, spill);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever moves to the disk, and when: bytes are those that were added.
        #[test]
        fn bytes_are_what_was_added(parts in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 1..50), 0..4_u8), 1..60)) {
            let folder = tempfile::tempdir().expect("a folder");
            let disk = Arc::new(Disk::new(folder.path().to_owned(), 1_000).expect("a disk"));
            let (mut bytes, mut spill, mut all, mut places) = (Growing::default(), Spill::default(), Vec::<u8>::new(), Vec::new());
            for (part, what) in parts {
                places.push(all.len()..all.len() + part.len());
                all.extend(&part);
                bytes.rest().extend(&part);
                if what == 0 {
                    let room = disk.used() + bytes.rest().len() as u64 <= 1_000;
                    bytes.spill(&disk, &mut spill);
                    prop_assert_eq!((bytes.memory() == 0, disk.is_full()), (room, !room));
                }
            }
            prop_assert_eq!(bytes.size(), all.len());
            let mut scratch = Vec::new();
            for place in places {
                let found = bytes.get(place.clone(), &mut scratch).expect("bytes");
                prop_assert_eq!(found, &all[place]);
            }
            drop((bytes, spill));
            prop_assert_eq!(disk.used(), 0);
            prop_assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
        }
    }

    #[test]
    fn shares_add_up_and_end_with_their_tasks() {
        let memory = Arc::new(Memory::new(100, None));
        let (mut one, mut other) = (Share::new(&memory), Share::new(&memory));
        one.set(70);
        other.set(50);
        assert_eq!((memory.used(), memory.excess()), (120, 20));
        one.set(10);
        assert_eq!((memory.used(), memory.excess()), (60, 0));
        drop(other);
        assert_eq!(memory.used(), 10);
    }

    /// State of which all can be moved.
    struct Heap(usize, u32);

    impl Spills for Heap {
        fn memory(&self) -> usize {
            self.0
        }

        fn spill(&mut self, _: &Arc<Disk>, _: usize) {
            (self.0, self.1) = (self.0 / 10, self.1 + 1);
        }
    }

    #[test]
    fn what_is_large_moves_and_what_is_small_does_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let memory = Arc::new(Memory::new(1_000, Some(Disk::new(folder.path().to_owned(), u64::MAX).expect("a disk"))));
        let (mut a, mut b) = (Share::new(&memory), Share::new(&memory));
        let (mut small, mut large) = (Heap(100, 0), Heap(950, 0));
        a.weigh(&mut small, 0);
        b.weigh(&mut large, 0);
        assert_eq!((large.1, memory.used(), b.pressed()), (1, 195, false));
        // Nothing is left that could be moved: all are told.
        b.weigh(&mut large, 2_000);
        a.weigh(&mut small, 0);
        assert_eq!((small.1, a.pressed(), b.pressed()), (0, true, true));
        let moved = large.1;
        b.weigh(&mut large, 2_000);
        assert_eq!(large.1, moved);
        b.weigh(&mut large, 750);
        a.weigh(&mut small, 0);
        assert_eq!((a.pressed(), b.pressed()), (false, false));
    }
}
