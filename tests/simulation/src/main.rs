//! Runs seeds: `leat-simulation [--seeds N] [--start N] [--without RULE] [--aim AIM] [--kind sums|joins]
//! [--threads N] [--stop-after N]`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use leat_runtime_core::rules::{Rule, Rules};
use leat_simulation::pipeline::{Kind, Programs};
use leat_simulation::run::{Aim, run};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| arguments.iter().position(|a| a == name).and_then(|i| arguments.get(i + 1));
    let number = |name: &str, default: u64| value(name).and_then(|v| v.parse().ok()).unwrap_or(default);
    let (start, seeds) = (number("--start", 0), number("--seeds", 1000));
    let rules = match value("--without") {
        None => Rules::all(),
        Some(name) => match Rule::ALL.iter().find(|r| format!("{r:?}").eq_ignore_ascii_case(name)) {
            Some(rule) => Rules::without(*rule),
            None => {
                eprintln!("there is no rule {name}; rules are {:?}", Rule::ALL);
                return ExitCode::FAILURE;
            }
        },
    };
    let aim = value("--aim").and_then(|name| Aim::ALL.into_iter().find(|a| format!("{a:?}").eq_ignore_ascii_case(name)));
    // A quarter of them over sessions and joins, as CI runs them.
    let kind = |seed: u64| match value("--kind").map(String::as_str) {
        Some("joins") => Kind::Joins,
        Some("sums") => Kind::Sums,
        _ if seed % 4 == 3 => Kind::Joins,
        _ => Kind::Sums,
    };
    let programs = Programs::default();
    let started = Instant::now();
    let (next, stop_after) = (AtomicU64::new(start), number("--stop-after", 5));
    let (failed, counts) = (AtomicU64::new(0), Mutex::new(BTreeMap::<&str, u64>::new()));
    std::thread::scope(|scope| {
        for _ in 0..number("--threads", 1) {
            scope.spawn(|| {
                while failed.load(Ordering::Relaxed) < stop_after {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= start + seeds {
                        break;
                    }
                    let outcome = run(seed, kind(seed), aim.unwrap_or(Aim::ALL[(seed % 7) as usize]), rules, &programs);
                    let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
                    outcome.counts.iter().for_each(|(what, n)| *counts.entry(what).or_default() += n);
                    if seeds == 1 {
                        outcome.violations.iter().for_each(|v| println!("  {v}"));
                        println!("  {:?}", outcome.counts);
                    }
                    if let Some(first) = outcome.violations.first() {
                        failed.fetch_add(1, Ordering::Relaxed);
                        println!("seed {seed} ({} steps): {first}", outcome.steps);
                    }
                }
            });
        }
    });
    let (failed, counts) = (failed.into_inner(), counts.into_inner().unwrap_or_else(PoisonError::into_inner));
    let seconds = started.elapsed().as_secs_f64();
    println!("{failed} failed, {seconds:.1} s; {counts:?}");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
