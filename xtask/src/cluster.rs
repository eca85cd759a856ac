//! `cargo xtask cluster`: a Kubernetes of one node on this machine, in a network namespace of its own, with real programs
//! (etcd, kube-apiserver, controller manager, scheduler, kubelet, containerd, runc) and no container engine around it.
//! Beside it, in the same namespace, emulators of AWS and an Apache Kafka that pods reach.

mod node;
mod place;

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use node::Programs;
use place::Place;
use serde_json::Value;

use crate::prepare::{self, Node};

/// How it is called.
pub const USAGE: &str = "cargo xtask cluster COMMAND
  up [NAME] [--bare] [--attached]   a cluster with emulators of AWS and Kafka, NAME is `dev` unless said; --bare: without
                                    them; --attached: it goes when standard input closes
  down [NAME]                       takes it away, with everything in it
  status                            clusters that run, and their programs
  shell [NAME] [-- COMMAND...]      a shell within its network, with kubectl, helm and the emulators' endpoints
  load IMAGE.tar... [--into NAME]   puts images on the node
  restart PROGRAM [--in NAME]       kills one of its programs and starts it again";

/// Runs a command.
pub fn run(arguments: &[String]) -> Result<ExitCode> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let Some((command, rest)) = words.split_first() else { bail!("{USAGE}") };
    if ["up", "down", "status", "shell", "load", "restart"].contains(command) {
        allowed()?;
    }
    let (named, rest) = option(rest, if *command == "load" { "--into" } else { "--in" })?;
    match (*command, rest.as_slice()) {
        ("up", flags) => {
            let mut names = flags.iter().filter(|f| !f.starts_with("--"));
            let known = |f: &&str| !f.starts_with("--") || ["--bare", "--attached"].contains(f);
            let name = names.next().unwrap_or(&"dev");
            if names.next().is_some() || !flags.iter().all(known) {
                bail!("{USAGE}");
            }
            up(name, flags.contains(&"--bare"), flags.contains(&"--attached"))?;
        }
        ("down", names) if names.len() <= 1 => down(names.first().copied())?,
        ("status", []) => status()?,
        ("shell", rest) => return shell(rest),
        ("load", files) if !files.is_empty() => {
            let mut place = place::find(named)?;
            let tools = prepare::node()?;
            let programs = Programs { place: &mut place, tools: &tools, attached: false };
            files.iter().try_for_each(|f| programs.load(&PathBuf::from(f)))?;
        }
        ("restart", [program]) => {
            let mut place = place::find(named)?;
            let tools = prepare::node()?;
            Programs { place: &mut place, tools: &tools, attached: false }.restart(program)?;
        }
        _ => bail!("{USAGE}"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes an option with a value out of the words.
fn option<'a>(words: &[&'a str], name: &str) -> Result<(Option<&'a str>, Vec<&'a str>)> {
    let mut rest = words.to_vec();
    // What comes after `--` is somebody else's.
    let end = rest.iter().position(|w| *w == "--").unwrap_or(rest.len());
    let Some(at) = rest[..end].iter().position(|w| *w == name) else { return Ok((None, rest)) };
    if at + 1 >= end {
        bail!("{name} needs a value\n{USAGE}");
    }
    rest.remove(at);
    Ok((Some(rest.remove(at)), rest))
}

/// A node needs namespaces, mounts and control groups: root on Linux.
fn allowed() -> Result<()> {
    if !cfg!(target_os = "linux") {
        bail!("a node needs Linux: here, use a cluster that you have, and `leat dev` without one");
    }
    if !prepare::root() {
        bail!("a node needs root, for its network namespace, mounts and control groups; `sudo -E cargo xtask cluster …`");
    }
    Ok(())
}

fn up(name: &str, bare: bool, attached: bool) -> Result<()> {
    let tools = prepare::node()?;
    let emulators = if bare { None } else { Some(prepare::emulators()?) };
    let started = Instant::now();
    let mut place = Place::take(name)?;
    let outcome = start(&mut place, &tools, emulators.as_ref(), attached);
    if let Err(error) = outcome {
        let logs = tails(&place);
        let _lock = place::lock()?;
        place.clear()?;
        return Err(error.context(format!("the cluster did not come up, and is cleared\n{logs}")));
    }
    println!("cluster {name} is up after {:.1} s", started.elapsed().as_secs_f64());
    println!("  kubeconfig {}", place.folder().join("admin.kubeconfig").display());
    println!("  host as pods see it {}, node {}, pods {}", place.host(), place.node(), place.pods());
    for (service, endpoint) in endpoints(&place) {
        println!("  {service}={endpoint}");
    }
    if attached {
        println!("attached");
        std::io::stdin().read_to_end(&mut Vec::new())?;
        let _lock = place::lock()?;
        return place.clear();
    }
    println!("`cargo xtask cluster shell {name}` opens a shell in it, `cargo xtask cluster down {name}` takes it away");
    Ok(())
}

fn start(place: &mut Place, tools: &Node, emulators: Option<&prepare::Emulators>, attached: bool) -> Result<()> {
    Programs { place, tools, attached }.start()?;
    let Some(emulators) = emulators else { return place.complete() };
    let file = place.folder().join("endpoints.json");
    let mut command = vec!["env".to_owned()];
    command.extend(emulators.variables.iter().map(|(name, value)| format!("{name}={value}")));
    command.push(emulators.program.display().to_string());
    command.extend(["--address", &place.node(), "--kafka", "--folder", &place.folder().display().to_string()].map(str::to_owned));
    node::background(place, "emulators", &command)?;
    place::wait("the emulators", Duration::from_secs(60), || file.exists().then_some(()))?;
    values(place)?;
    place.complete()
}

/// Values for the chart: where the emulators are, credentials that no cloud knows, and the images that are on the node.
fn values(place: &Place) -> Result<()> {
    let mut variables: Vec<(String, String)> = endpoints(place).into_iter().filter(|(name, _)| name.starts_with("AWS_")).collect();
    for (name, value) in [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_REGION", "us-east-1")] {
        variables.push((name.to_owned(), value.to_owned()));
    }
    let lines: String = variables.iter().map(|(name, value)| format!("    {name}: \"{value}\"\n")).collect();
    let text = format!("operator:\n  imagePullPolicy: Never\n  env:\n{lines}worker:\n  imagePullPolicy: Never\n  env:\n{lines}");
    std::fs::write(place.folder().join("values.yaml"), text).context("cannot write values.yaml")
}

/// What the emulators answer on: names of environment variables, and `KAFKA_BOOTSTRAP_SERVERS`.
fn endpoints(place: &Place) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(place.folder().join("endpoints.json")).unwrap_or_default();
    let found: Value = serde_json::from_str(&text).unwrap_or_default();
    let all = found.as_object().into_iter().flatten();
    all.map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
}

/// The ends of the programs' logs.
fn tails(place: &Place) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(place.folder()).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|e| e == "log") {
            let log = std::fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().rev().take(5).collect();
            text.push_str(&format!("-- {}\n", entry.file_name().display()));
            lines.iter().rev().for_each(|line| text.push_str(&format!("{}\n", line.chars().take(300).collect::<String>())));
        }
    }
    text
}

fn down(name: Option<&str>) -> Result<()> {
    let _lock = place::lock()?;
    let places = place::all()?;
    let place = match name {
        // Also one that crashed.
        Some(name) => places.into_iter().find(|p| p.name == name).with_context(|| format!("there is no cluster {name}"))?,
        None => place::find(None)?,
    };
    if place.begins() {
        bail!("the cluster {} is being made; end that first", place.name);
    }
    place.clear()?;
    println!("cluster {} is gone", place.name);
    Ok(())
}

fn status() -> Result<()> {
    let places = place::all()?;
    if places.is_empty() {
        println!("no cluster");
    }
    for place in places {
        if !place.runs() {
            println!("{}  crashed; the next `up`, or `down {}`, clears what it left", place.name, place.name);
            continue;
        }
        println!("{}  node {}, kubeconfig {}", place.name, place.node(), place.folder().join("admin.kubeconfig").display());
        for entry in std::fs::read_dir(place.folder())?.flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|e| e != "pid") {
                continue;
            }
            let process = std::fs::read_to_string(&path)?.trim().to_owned();
            let runs = place::run(place.inside().args(["kill", "-0", &process])).is_ok();
            let name = path.file_stem().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
            println!("  {name:<24} {}", if runs { "runs" } else { "ended" });
        }
        for (service, endpoint) in endpoints(&place) {
            println!("  {service:<24} {endpoint}");
        }
    }
    Ok(())
}

/// A shell, or a command, within the cluster: its end is that of this program.
fn shell(words: &[&str]) -> Result<ExitCode> {
    let (names, command) = match words.iter().position(|w| *w == "--") {
        Some(at) => (&words[..at], &words[at + 1..]),
        None => (words, &[][..]),
    };
    if names.len() > 1 {
        bail!("{USAGE}");
    }
    let place = place::find(names.first().copied())?;
    let tools = prepare::node()?;
    let mut inside = place.inside();
    // The mounts are others, so the folder has to be entered again.
    inside.args(["sh", "-c", "cd \"$0\" && exec \"$@\""]).arg(std::env::current_dir()?);
    let user = std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".to_owned());
    if command.is_empty() {
        inside.arg(user)
    } else {
        inside.args(command)
    };
    inside.env("KUBECONFIG", place.folder().join("admin.kubeconfig"));
    inside.env("LEAT_CLUSTER", &place.name).env("LEAT_CLUSTER_VALUES", place.folder().join("values.yaml"));
    inside.envs(endpoints(&place));
    for (name, value) in [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_REGION", "us-east-1")] {
        inside.env(name, value);
    }
    let mut path = vec![tools.server.clone(), tools.programs.clone(), tools.helm.clone()];
    path.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    inside.env("PATH", std::env::join_paths(path)?);
    Err(anyhow::Error::new(inside.exec()).context("cannot start nsenter"))
}
