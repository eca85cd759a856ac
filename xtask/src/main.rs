//! `cargo xtask`: the project's own tasks.

mod cluster;
mod image;
mod prepare;
mod stage;

use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Result, bail};

const TEST: &str = "cargo xtask test [--without STAGE]...
  format, lint and all tests; sets up what is missing in the user's cache folder
  stages: format, lint, tests, node, fuzz, simulation";
const IMAGE: &str = "cargo xtask image [--profile PROFILE] [--output FOLDER] [--root NAME FOLDER]
  writes the images of operator and worker as OCI archives; the profile is `release` unless said
  --root: writes the files of one image into a folder instead";
const BENCH: &str = "cargo xtask bench
  measures pods on a node of this machine, with the images of the release";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.first().map(String::as_str) {
        Some("test") => test(&arguments[1..]),
        Some("image") => image(&arguments[1..]),
        Some("bench") if arguments.len() == 1 => bench(),
        Some("cluster") => cluster::run(&arguments[1..]),
        _ => {
            eprintln!("{TEST}\n{IMAGE}\n{BENCH}\n{}", cluster::USAGE);
            return ExitCode::FAILURE;
        }
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Cargo, as if a user had called it: what it told this program of itself would make it build some crates again.
fn cargo() -> Command {
    let mut command = Command::new("cargo");
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"].iter().any(|own| text.starts_with(own)) {
            command.env_remove(&name);
        }
    }
    command.env_remove("CARGO").env_remove("CARGO_PRIMARY_PACKAGE");
    command
}

/// Runs all stages, each whether or not the one before failed, and closes with what passed, failed and was left out.
fn test(arguments: &[String]) -> Result<ExitCode> {
    let mut without = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match (argument.as_str(), rest.next()) {
            ("--without", Some(stage)) if stage::ALL.iter().any(|s| s.name == stage) => without.push(stage.clone()),
            _ => bail!("{TEST}"),
        }
    }
    let environment = prepare::prepare()?;
    let mut total = stage::Counts::default();
    let mut times = Vec::new();
    for one in stage::ALL {
        if without.iter().any(|w| w == one.name) {
            println!("== {}: left out", one.name);
            total.left_out += 1;
            continue;
        }
        if one.node && !environment.node {
            println!("== {}: left out, since a node needs root on Linux", one.name);
            total.left_out += 1;
            continue;
        }
        println!("== {}", one.name);
        let started = Instant::now();
        let counts = stage::run(one, &environment)?;
        times.push(format!("{} {:.1} min", one.name, started.elapsed().as_secs_f64() / 60.0));
        total.add(&counts);
    }
    println!("\n{}", times.join(", "));
    if !environment.data {
        println!("left out: tests over external data sets (LEAT_TEST_DATA is not set)");
    }
    println!("{} passed, {} failed, {} skipped", total.passed, total.failed, total.left_out);
    Ok(if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn image(arguments: &[String]) -> Result<ExitCode> {
    let mut options = image::Options { profile: "release".to_owned(), output: None, root: None };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match (argument.as_str(), rest.next()) {
            ("--profile", Some(profile)) => options.profile.clone_from(profile),
            ("--output", Some(folder)) => options.output = Some(folder.into()),
            ("--root", Some(name)) => match rest.next() {
                Some(folder) => options.root = Some((name.clone(), folder.into())),
                None => bail!("{IMAGE}"),
            },
            _ => bail!("{IMAGE}"),
        }
    }
    for image in image::write(&options)? {
        let (pulled, unpacked) = image.sizes;
        println!("{} {}", image.reference, image.file.display());
        println!("  {}, {:.1} MB to pull, {:.1} MB unpacked", image.digest, pulled as f64 / 1e6, unpacked as f64 / 1e6);
    }
    Ok(ExitCode::SUCCESS)
}

fn bench() -> Result<ExitCode> {
    let environment = prepare::prepare()?;
    let options = image::Options { profile: "release".to_owned(), output: None, root: None };
    for image in image::write(&options)? {
        let (pulled, unpacked) = image.sizes;
        println!(
            "{:<52} {:>10.1} MB to pull, {:.1} MB unpacked",
            format!("image {}", image.reference),
            pulled as f64 / 1e6,
            unpacked as f64 / 1e6
        );
    }
    let mut command = cargo();
    command.args(["run", "--quiet", "--package", "leat-tests", "--bin", "bench_node"]);
    command.envs(environment.variables).env("LEAT_TEST_IMAGES", image::folder("release")?);
    Ok(if command.status()?.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
