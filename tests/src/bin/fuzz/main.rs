//! Throws damaged input at everything that reads bytes of others: none may panic, hang, or take what is not there.
//!
//! `cargo run -p leat-tests --bin fuzz -- [--seconds N] [--target NAME] [--seed N]`: each target for so many seconds, two at a
//! time. Inputs are made from valid ones by changing bits, bytes, numbers and pieces; one that ends in a way that was not seen
//! before (another message, another verdict) is kept and changed further. What is sealed is sealed again after the change, so
//! that it comes behind the seal. A finding is printed with its input as hexadecimal.

mod targets;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use targets::{TARGETS, Target};

/// Longest input.
const LONGEST: usize = 64 << 10;
/// Inputs that a target keeps.
const KEPT: usize = 2_000;
/// An input that takes longer than this is a finding.
const SLOWEST: Duration = Duration::from_secs(5);

thread_local! {
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
    /// A target reads an input.
    static RUNS: Cell<bool> = const { Cell::new(false) };
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| arguments.iter().position(|a| a == name).and_then(|i| arguments.get(i + 1));
    let number = |name: &str, default: u64| value(name).map_or(default, |n| n.parse().expect("a number"));
    let (seconds, seed, only) = (number("--seconds", 60), number("--seed", 1), value("--target"));
    let usual = std::panic::take_hook();
    // Of targets it is a finding; elsewhere it is a defect of this program.
    std::panic::set_hook(Box::new(move |info| {
        if RUNS.get() {
            PANIC.with_borrow_mut(|text| *text = info.to_string());
        } else {
            usual(info);
        }
    }));
    let targets: Vec<&Target> = TARGETS.iter().filter(|t| only.is_none_or(|name| t.name == name)).collect();
    let (next, findings) = (AtomicUsize::new(0), Mutex::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (said, found) = fuzz(target, Duration::from_secs(seconds), seed);
                    println!("{said}");
                    *findings.lock().expect("a number") += found;
                }
            });
        }
    });
    let findings = findings.into_inner().expect("a number");
    assert!(!targets.is_empty(), "there is no such target; there are {:?}", TARGETS.map(|t| t.name));
    if findings == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a target; answers a line of what came of it, and the number of findings.
fn fuzz(target: &Target, time: Duration, seed: u64) -> (String, usize) {
    let mut random = Random(seed);
    let mut run = (target.make)();
    let mut corpus = (target.corpus)();
    let mut ways = BTreeSet::new();
    let mut findings: Vec<String> = Vec::new();
    let (mut inputs, ends) = (0_u64, Instant::now() + time);
    while Instant::now() < ends && findings.len() < 5 {
        // Each of the corpus as it is, then changed ones.
        let input = match corpus.get(inputs as usize) {
            Some(whole) if ways.len() <= inputs as usize && inputs < corpus.len() as u64 => whole.clone(),
            _ => {
                let changed = change(&corpus, &mut random);
                if random.below(10) == 0 { changed } else { (target.seal)(changed) }
            }
        };
        inputs += 1;
        let started = Instant::now();
        RUNS.set(true);
        let outcome = catch_unwind(AssertUnwindSafe(|| run(&input)));
        RUNS.set(false);
        let slow = started.elapsed() > SLOWEST;
        let wrong = match outcome {
            Err(_) => Some(PANIC.with_borrow(String::clone)),
            Ok(Err(why)) => Some(why),
            Ok(Ok(_)) if slow => Some(format!("it took {:?}", started.elapsed())),
            Ok(Ok(way)) => {
                let mut hasher = DefaultHasher::new();
                way.hash(&mut hasher);
                if ways.insert(hasher.finish()) && corpus.len() < KEPT {
                    corpus.push(input);
                }
                continue;
            }
        };
        // After a panic its state may be anything.
        run = (target.make)();
        let hex = input.iter().fold(String::new(), |mut out, byte| {
            let _ = write!(out, "{byte:02x}");
            out
        });
        findings.push(format!("  {}\n    {hex}", wrong.unwrap_or_default()));
    }
    let said = format!("{:<10} {inputs:>10} inputs, {:>4} ways to end, {} findings", target.name, ways.len(), findings.len());
    (std::iter::once(said).chain(findings.iter().cloned()).collect::<Vec<_>>().join("\n"), findings.len())
}

/// An input of the corpus, changed.
fn change(corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let one = |random: &mut Random| &corpus[random.below(corpus.len())];
    let mut input = one(random).clone();
    for _ in 0..=random.below(4) {
        let (length, at) = (input.len().max(1), random.below(input.len().max(1)));
        let piece = |random: &mut Random, of: &[u8]| {
            let from = random.below(of.len() + 1);
            of[from..(from + random.below(64)).min(of.len())].to_vec()
        };
        match random.below(9) {
            0 if !input.is_empty() => input[at] ^= 1 << random.below(8),
            1 if !input.is_empty() => input[at] = random.below(256) as u8,
            // Bytes that mean something: ends of ranges, of texts, continued numbers.
            2 if !input.is_empty() => input[at] = random.pick(b"\x00\x01\x7f\x80\xff\"\\{}[],:-0e9\n'%"),
            3 => {
                let other = one(random).clone();
                drop(input.splice(at.min(input.len())..at.min(input.len()), piece(random, &other)));
            }
            4 => drop(input.drain(at.min(input.len())..(at + random.below(32)).min(input.len()))),
            5 => input.truncate(at),
            6 => {
                let piece = piece(random, &input);
                (0..random.below(40)).for_each(|_| input.extend(&piece));
            }
            // A large number, as base-128, little and big endian.
            7 => {
                let large =
                    [&[0xff; 9][..], &[0xff, 0xff, 0xff, 0xff, 0x0f], &[0x7f, 0xff, 0xff, 0xff], &[0xff, 0xff, 0xff, 0x7f], &[0x80; 8]];
                let large = large[random.below(large.len())];
                let to = (at + large.len()).min(length).max(at.min(input.len()));
                drop(input.splice(at.min(input.len())..to.min(input.len()), large.iter().copied()));
            }
            _ => {
                let other = one(random);
                let from = random.below(other.len() + 1);
                input.truncate(at);
                input.extend(&other[from..]);
            }
        }
    }
    input.truncate(LONGEST);
    input
}

/// Numbers that look random (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((u128::from(z ^ (z >> 31)) * n as u128) >> 64) as usize
    }

    fn pick(&mut self, of: &[u8]) -> u8 {
        of[self.below(of.len())]
    }
}
