//! Measures state without IO: exact deduplication over 24 hours, one thread. Ids a second, bytes an id, how long a snapshot
//! holds its task up, how large it is, and how long it takes to load all of it again. Prints
//! one table, and one where only a part of the ids fits into memory.
//! `cargo run --release -p leat-tests --bin bench_state -- [MILLIONS OF IDS ...]`

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use leat_runtime::engine::task::Settings;
use leat_runtime::operators::deduplicate::{Seen, Verdict};
use leat_runtime::operators::memory::{Disk, Memory, Share, Spills};
use leat_runtime::operators::saved::Saving;
use leat_runtime_core::rules::Rules;
use leat_runtime_core::wire::{Reader, Writer};

const DAY: i64 = 86_400_000;
/// Snapshots while ids come in.
const SNAPSHOTS: usize = 100;
/// Events after which the state is weighed.
const WEIGHED: usize = 10_000;
/// One of so many events is a repeat.
const REPEATS: usize = 20;

/// Hashes of event numbers (SplitMix64): what ids are after hashing.
fn hash(n: u64) -> u64 {
    let mut z = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn main() {
    let sizes: Vec<usize> = std::env::args().skip(1).map(|a| a.parse().expect("millions of ids")).collect();
    println!(
        "{:>10} {:>12} {:>10} {:>14} {:>14} {:>14} {:>12} {:>12}",
        "ids", "ids/s", "bytes/id", "pause, median", "pause, most", "snapshot", "objects", "loaded in"
    );
    let sizes = if sizes.is_empty() { vec![1, 10, 64] } else { sizes };
    sizes.iter().for_each(|millions| run(millions * 1_000_000));
    println!("\n{:>10} {:>12} {:>12} {:>12} {:>12}", "ids", "budget", "ids/s", "memory", "disk");
    for millions in sizes {
        [4, 16].into_iter().for_each(|part| beyond(millions * 1_000_000, millions * 20_000_000 / part));
    }
}

/// The same where only a part of the ids fits into memory.
fn beyond(ids: usize, limit: usize) {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = Disk::new(folder.path().to_owned(), u64::MAX).expect("a disk");
    let memory = Arc::new(Memory::new(limit, Some(disk)));
    let (mut seen, mut share) = (Ids(Seen::default()), Share::new(&memory));
    let time = |n: usize| (n as i128 * i128::from(DAY) / ids as i128) as i64;
    let (mut repeats, mut most, began) = (0, 0, Instant::now());
    for n in 0..ids {
        let id = hash(n as u64);
        seen.0.advance(time(n), DAY);
        let verdict = seen.0.judge((hash(id), id), time(n), time(n), DAY, Rules::all()).expect("a verdict");
        assert_eq!(verdict, Verdict::New, "{n}");
        if n % REPEATS == 0 {
            let id = hash(n as u64 / 2);
            let verdict = seen.0.judge((hash(id), id), time(n / 2), time(n), DAY, Rules::all()).expect("a verdict");
            repeats += usize::from(verdict == Verdict::Repeat);
        }
        if n % WEIGHED == 0 {
            share.weigh(&mut seen, 0);
            most = most.max(memory.used());
        }
        if n % (ids / SNAPSHOTS) == 0 {
            // Where what is new stands in a snapshot, it need not be kept beside the table.
            let mut name = || String::from("ids");
            let mut saving = Saving::new(Settings::default().run_ids, &mut name);
            seen.0.write(&mut Writer::default(), &mut saving, time(n), DAY);
            let saved = saving.finish(Vec::new());
            seen.0.stored(&saved.named);
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    assert_eq!((seen.0.len(), repeats), (ids, ids.div_ceil(REPEATS)));
    let disk = memory.disk().map_or(0, |disk| disk.used());
    let mb = |bytes: usize| format!("{:.0} MB", bytes as f64 / 1e6);
    println!("{ids:>10} {:>12} {:>12.0} {:>12} {:>12}", mb(limit), (ids + repeats) as f64 / seconds, mb(most), mb(disk as usize));
}

/// Ids as a task's state.
struct Ids(Seen);

impl Spills for Ids {
    fn memory(&self) -> usize {
        self.0.memory()
    }

    fn spill(&mut self, disk: &Arc<Disk>, least: usize) {
        self.0.spill(disk, least);
    }
}

fn run(ids: usize) {
    let mut seen = Seen::default();
    let mut objects: BTreeMap<String, Bytes> = BTreeMap::new();
    let (mut head, mut pauses, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
    let (mut made, mut repeats, mut judging) = (0, 0, Duration::ZERO);
    // A day of events that come in order; the next would be the first to be forgotten.
    let time = |n: usize| (n as i128 * i128::from(DAY) / ids as i128) as i64;
    for part in 0..SNAPSHOTS {
        let began = Instant::now();
        for n in part * ids / SNAPSHOTS..(part + 1) * ids / SNAPSHOTS {
            let id = hash(n as u64);
            seen.advance(time(n), DAY);
            let verdict = seen.judge((hash(id), id), time(n), time(n), DAY, Rules::all()).expect("a verdict");
            assert_eq!(verdict, Verdict::New, "{n}");
            if n % REPEATS == 0 {
                let id = hash(n as u64 / 2);
                repeats +=
                    usize::from(seen.judge((hash(id), id), time(n / 2), time(n), DAY, Rules::all()).expect("a verdict") == Verdict::Repeat);
            }
        }
        judging += began.elapsed();
        let began = Instant::now();
        let mut name = || {
            made += 1;
            format!("ids/{made}")
        };
        let mut saving = Saving::new(Settings::default().run_ids, &mut name);
        let mut out = Writer::default();
        seen.write(&mut out, &mut saving, time(part * ids / SNAPSHOTS), DAY);
        let saved = saving.finish(out.finish());
        pauses.push(began.elapsed());
        sizes.push(saved.size());
        seen.stored(&saved.named);
        objects.extend(saved.new);
        head = saved.head.to_vec();
    }
    assert_eq!((seen.len(), repeats), (ids, ids.div_ceil(REPEATS)));
    pauses.sort();
    sizes.sort_unstable();
    let began = Instant::now();
    let mut again = Seen::default();
    for run in again.read(0, &mut Reader::new(&head), None).expect("a head") {
        again.load(&run, &objects[&run.object], &|_, _| true).expect("a run");
    }
    let loaded = began.elapsed();
    assert_eq!(again.len(), ids);
    println!(
        "{:>10} {:>12.0} {:>10.1} {:>11.1} ms {:>11.1} ms {:>11.2} MB {:>12} {:>10.2} s",
        ids,
        (ids + repeats) as f64 / judging.as_secs_f64(),
        seen.memory() as f64 / ids as f64,
        pauses[SNAPSHOTS / 2].as_secs_f64() * 1e3,
        pauses[SNAPSHOTS - 1].as_secs_f64() * 1e3,
        sizes[SNAPSHOTS / 2] as f64 / 1e6,
        objects.len(),
        loaded.as_secs_f64(),
    );
}
