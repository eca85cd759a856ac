//! Runs seeds: `leat-simulation [--seeds N] [--start N] [--without RULE] [--aim AIM] [--kind sums|joins]`.

use std::collections::BTreeMap;
use std::process::ExitCode;
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
    let kind = if value("--kind").is_some_and(|kind| kind == "joins") { Kind::Joins } else { Kind::Sums };
    let programs = Programs::default();
    let started = Instant::now();
    let mut failed = 0;
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in start..start + seeds {
        let outcome = run(seed, kind, aim.unwrap_or(Aim::ALL[(seed % 7) as usize]), rules, &programs);
        outcome.counts.iter().for_each(|(what, n)| *counts.entry(what).or_default() += n);
        if seeds == 1 {
            outcome.violations.iter().for_each(|v| println!("  {v}"));
            println!("  {:?}", outcome.counts);
        }
        if let Some(first) = outcome.violations.first() {
            failed += 1;
            println!("seed {seed} ({} steps): {first}", outcome.steps);
            if failed == number("--stop-after", 5) {
                break;
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{failed} failed, {seconds:.1} s; {counts:?}");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
