//! The stages of the test command.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result};

use crate::prepare::Environment;

/// A stage: a name, and cargo commands.
pub struct Stage {
    /// Name.
    pub name: &'static str,
    commands: &'static [&'static [&'static str]],
    /// It needs a node: root on Linux.
    pub node: bool,
}

/// Tests whose names begin so need images or a node; they have a stage of their own.
const ON_A_NODE: [&str; 2] = ["images_of_this_build", "on_a_real_node"];

/// All stages, quick ones first.
pub const ALL: &[Stage] = &[
    Stage { name: "format", commands: &[&["fmt", "--all", "--check"]], node: false },
    Stage { name: "lint", commands: &[&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]], node: false },
    // The binary that users run is built first, without the test features, and the tests start it.
    Stage {
        name: "tests",
        commands: &[
            &["build", "--quiet"],
            &[
                "test",
                "--quiet",
                "--workspace",
                "--exclude",
                "leat-simulation",
                "--no-fail-fast",
                "--",
                "--skip",
                ON_A_NODE[0],
                "--skip",
                ON_A_NODE[1],
            ],
        ],
        node: false,
    },
    Stage {
        name: "node",
        commands: &[
            &["xtask", "image", "--profile", "dev"],
            &["test", "--quiet", "--workspace", "--exclude", "leat-simulation", "--no-fail-fast", "--test", "image", "--test", "node"],
        ],
        node: true,
    },
    Stage {
        name: "fuzz",
        commands: &[&["run", "--quiet", "--package", "leat-tests", "--bin", "fuzz", "--", "--seconds", "60"]],
        node: false,
    },
    Stage { name: "simulation", commands: &[&["test", "--quiet", "--package", "leat-simulation", "--no-fail-fast"]], node: false },
];

/// How tests ended.
#[derive(Default)]
pub struct Counts {
    /// Passed.
    pub passed: u64,
    /// Failed; a command that fails without a failed test counts as one.
    pub failed: u64,
    /// Left out by request.
    pub left_out: u64,
}

impl Counts {
    /// Adds another stage's.
    pub fn add(&mut self, other: &Counts) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.left_out += other.left_out;
    }
}

/// Runs a stage, its output passed on, and counts what the test runner says.
pub fn run(stage: &Stage, environment: &Environment) -> Result<Counts> {
    let mut counts = Counts::default();
    for arguments in stage.commands {
        let mut command = crate::cargo();
        command.args(*arguments).stdout(Stdio::piped()).stderr(Stdio::inherit());
        command.envs(environment.variables.iter().map(|(name, value)| (name, value)));
        let mut child = command.spawn().context("cannot start cargo")?;
        let mut found = Counts::default();
        if let Some(output) = child.stdout.take() {
            for line in BufReader::new(output).lines() {
                let line = line?;
                println!("{line}");
                if let Some(result) = line.strip_prefix("test result: ") {
                    found.passed += number_before(result, " passed");
                    found.failed += number_before(result, " failed");
                    // An ignored test is one that nobody named: it fails the run.
                    found.failed += number_before(result, " ignored");
                }
            }
        }
        if !child.wait()?.success() && found.failed == 0 {
            found.failed = 1;
        }
        let broken = found.failed > 0;
        counts.add(&found);
        if broken && arguments[0] != "test" {
            break;
        }
    }
    if counts.passed + counts.failed == 0 {
        counts.passed = 1;
    }
    Ok(counts)
}

fn number_before(text: &str, word: &str) -> u64 {
    let before = text.split(word).next().unwrap_or_default();
    before.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or_default()
}
