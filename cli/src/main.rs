//! `leat`: validate a pipeline, and run it on the laptop.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use leat::dead_letters::{Cloud, Filter, Laptop, Place};
use leat::dev::{self, Options};
use leat::feed::Feed;
use leat::manifest::{self, Document, Located, Pipeline};
use leat::stand_ins::StandIns;
use leat_compile::References;
use leat_crds::values::Size;
use leat_runtime::operators::memory::Memory;

/// Streaming pipelines on Kubernetes and AWS, and on your laptop.
#[derive(Parser)]
#[command(name = "leat", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check a manifest and say everything that is wrong with it.
    Validate(Files),
    /// Say what the operator would change in the cluster and in AWS; changes nothing.
    Plan(Plan),
    /// Run a pipeline here: no cloud, no cluster.
    Dev(Dev),
    /// Compare what a pipeline has written with its ledger: nothing missing, nothing twice. Changes nothing.
    Audit(Audit),
    /// Look at the records that a pipeline has refused, and send them again.
    #[command(subcommand)]
    DeadLetters(DeadLetters),
}

#[derive(Args)]
struct Audit {
    #[command(flatten)]
    files: Files,
    /// What `leat dev` has left, in the folder of its state; else what is in AWS, with the credentials of the environment.
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,
    /// Read each position in the Raw archive too, and find those that are there twice; and count the items of tables.
    #[arg(long)]
    deep: bool,
    /// How the outcome is printed.
    #[arg(long, value_enum, default_value = "text")]
    output: OutputFormat,
}

#[derive(Subcommand)]
enum DeadLetters {
    /// How many there are, by step and reason.
    List {
        #[command(flatten)]
        which: Which,
        /// How the list is printed.
        #[arg(long, value_enum, default_value = "text")]
        output: OutputFormat,
    },
    /// The letters themselves, as JSON Lines.
    Show {
        #[command(flatten)]
        which: Which,
        /// At most so many.
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// Send their records to the streams that they came from, as new records. What was sent before is not sent again. A call
    /// that was cut short may send a part twice: `deduplicate` removes repeats.
    Replay {
        #[command(flatten)]
        which: Which,
        /// Also what was sent before.
        #[arg(long)]
        again: bool,
    },
}

#[derive(Args)]
struct Which {
    #[command(flatten)]
    files: Files,
    /// Those of `leat dev`, in the folder of its state; else those in AWS, with the credentials of the environment.
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,
    /// Of this source or step only.
    #[arg(long)]
    step: Option<String>,
    /// With this reason only.
    #[arg(long)]
    reason: Option<String>,
}

#[derive(Args)]
struct Files {
    /// Manifest; may be given several times, and hold several documents.
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
}

#[derive(Args)]
struct Plan {
    #[command(flatten)]
    files: Files,
    /// Id of the operator's installation, as its chart says.
    #[arg(long, env = "LEAT_INSTALLATION", default_value = "leat")]
    installation: String,
}

#[derive(Args)]
struct Dev {
    #[command(flatten)]
    files: Files,
    /// Feed a file into a stream: NDJSON, or CSV with a header; plain, .gz or .zst.
    #[arg(long, value_name = "STREAM=FILE")]
    input: Vec<String>,
    /// Feed so many generated clickstream events into a stream.
    #[arg(long, value_name = "STREAM=COUNT")]
    generate: Vec<String>,
    /// Rows of a table that exists elsewhere: NDJSON, or CSV with a header.
    #[arg(long, value_name = "TABLE=FILE")]
    table: Vec<String>,
    /// A file or folder in place of an object or prefix that a source reads.
    #[arg(long, value_name = "S3-URI=FILE")]
    object: Vec<String>,
    /// A value in place of a Secret's.
    #[arg(long, value_name = "NAME/KEY=VALUE")]
    secret: Vec<String>,
    /// Stop when everything that was fed in is delivered; closes all windows.
    #[arg(long)]
    until_done: bool,
    /// Forget what earlier runs left.
    #[arg(long)]
    fresh: bool,
    /// Where the state is kept between runs.
    #[arg(long, value_name = "FOLDER", default_value = ".leat")]
    state: PathBuf,
    /// Memory for the state and the buffers of all steps, for example 2Gi; what is beyond it goes to the disk. Default: a quarter
    /// of what there is.
    #[arg(long, value_name = "SIZE", value_parser = Size::parse)]
    memory: Option<Size>,
    /// Address to which events can be posted (not with --until-done).
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8088")]
    listen: String,
    /// How the report is printed.
    #[arg(long, value_enum, default_value = "text")]
    output: OutputFormat,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum OutputFormat {
    Text,
    Json,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Validate(files) => validate(&files),
        Command::Plan(plan) => run_plan(&plan),
        Command::Dev(dev) => run_dev(&dev),
        Command::DeadLetters(command) => run_dead_letters(&command),
        Command::Audit(audit) => run_audit(&audit),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes, each said once.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            text = if text.is_empty() { cause } else { format!("{text}: {cause}") };
        }
    }
    text
}

/// Writes to standard output, which may be full or gone.
fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Who reads has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => written.context("cannot write to standard output"),
    }
}

fn load(files: &Files) -> Result<Result<Pipeline, Vec<Located>>> {
    Ok(read(&files.files)?.and_then(|documents| manifest::pipeline(&documents, References::default())))
}

fn read(files: &[PathBuf]) -> Result<Result<Vec<Document>, Vec<Located>>> {
    let mut documents = Vec::new();
    let mut problems = Vec::new();
    for file in files {
        let name = file.display().to_string();
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
        match manifest::documents(&name, &text) {
            Ok(found) => documents.extend(found),
            Err(found) => problems.extend(found),
        }
    }
    Ok(if problems.is_empty() { Ok(documents) } else { Err(problems) })
}

fn complain(problems: &[Located]) -> ExitCode {
    for problem in problems {
        eprintln!("{problem}");
    }
    let many = if problems.len() == 1 { "problem" } else { "problems" };
    eprintln!("{} {many}", problems.len());
    ExitCode::FAILURE
}

fn validate(files: &Files) -> Result<ExitCode> {
    Ok(match load(files)? {
        Ok(pipeline) => {
            let document = &pipeline.program.document;
            say(&format!("{}/{} is valid\n", document.namespace, document.name))?;
            ExitCode::SUCCESS
        }
        Err(problems) => complain(&problems),
    })
}

fn run_dev(dev: &Dev) -> Result<ExitCode> {
    let pipeline = match load(&dev.files)? {
        Ok(pipeline) => pipeline,
        Err(problems) => return Ok(complain(&problems)),
    };
    let mut feeds = Vec::new();
    for input in &dev.input {
        let (name, file) = pair(input, "--input STREAM=FILE")?;
        feeds.push((name, Feed::File(file.into())));
    }
    for generate in &dev.generate {
        let (name, count) = pair(generate, "--generate STREAM=COUNT")?;
        feeds.push((
            name,
            Feed::Generate(count.replace(['_', ','], "").parse().with_context(|| format!("`{count}` is not a number of events"))?),
        ));
    }
    let mut stand_ins = StandIns::default();
    for table in &dev.table {
        let (name, file) = pair(table, "--table TABLE=FILE")?;
        if stand_ins.tables.insert(name.clone(), file.into()).is_some() {
            bail!("--table {name} is there twice");
        }
    }
    for object in &dev.object {
        let (uri, file) = pair(object, "--object S3-URI=FILE")?;
        if stand_ins.objects.insert(uri.clone(), file.into()).is_some() {
            bail!("--object {uri} is there twice");
        }
    }
    for secret in &dev.secret {
        // The value is a secret: a message never shows it.
        match secret.split_once('=') {
            Some((name, value)) if name.split_once('/').is_some_and(|(n, k)| !n.is_empty() && !k.is_empty()) => {
                stand_ins.secrets.insert(name.to_owned(), value.to_owned());
            }
            _ => bail!("--secret should be NAME/KEY=VALUE"),
        }
    }
    let options = Options {
        state: dev.state.clone(),
        base: dev::base_of(&dev.files.files[0]),
        fresh: dev.fresh,
        until_done: dev.until_done,
        feeds,
        stand_ins,
        listen: (!dev.until_done).then(|| dev.listen.clone()),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        memory: dev.memory.map_or_else(|| Memory::of_process().map_or(1 << 30, |all| all / 4), |memory| memory.bytes() as usize),
        talk: dev.output == OutputFormat::Text,
    };
    let stop = Arc::new(AtomicBool::new(false));
    stop_on_signal(Arc::clone(&stop))?;
    let report = dev::run(pipeline.program, &options, &stop)?;
    match dev.output {
        OutputFormat::Text => say(&format!("\n{}", report.text())),
        OutputFormat::Json => say(&format!("{}\n", serde_json::to_string_pretty(&report)?)),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the plan. Exit code 0: nothing is to be done; 2: there are changes; 1: it could not be made.
fn run_plan(plan: &Plan) -> Result<ExitCode> {
    let documents = match read(&plan.files.files)? {
        Ok(documents) => documents,
        Err(problems) => return Ok(complain(&problems)),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    match runtime.block_on(leat::plan::plan(&documents, &plan.installation))? {
        Ok(planned) => {
            say(&planned.text())?;
            Ok(if planned.unknown > 0 {
                ExitCode::FAILURE
            } else if planned.changes.is_empty() {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(2)
            })
        }
        Err(problems) => Ok(complain(&problems)),
    }
}

fn run_dead_letters(command: &DeadLetters) -> Result<ExitCode> {
    let (DeadLetters::List { which, .. } | DeadLetters::Show { which, .. } | DeadLetters::Replay { which, .. }) = command;
    let pipeline = match load(&which.files)? {
        Ok(pipeline) => pipeline,
        Err(problems) => return Ok(complain(&problems)),
    };
    let program = &pipeline.program;
    let filter = Filter { step: which.step.clone(), reason: which.reason.clone() };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let place: Box<dyn Place> = match &which.state {
            Some(state) => Box::new(Laptop::open(program, state, matches!(command, DeadLetters::Replay { .. }))?),
            None => Box::new(Cloud::open(program).await),
        };
        let letters = leat::dead_letters::DeadLetters::new(program, &*place)?;
        match command {
            DeadLetters::List { output, .. } => {
                let groups = letters.list(&filter).await?;
                match output {
                    OutputFormat::Json => say(&format!("{}\n", serde_json::to_string_pretty(&groups)?))?,
                    OutputFormat::Text => say(&leat::dead_letters::text(&groups))?,
                }
            }
            DeadLetters::Show { limit, .. } => {
                letters.show(&filter, *limit, &mut |line| say(&format!("{line}\n"))).await?;
            }
            DeadLetters::Replay { again, .. } => {
                let done = letters.replay(&filter, *again).await?;
                say(&done.text())?;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// 2: something is missing or there twice.
fn run_audit(options: &Audit) -> Result<ExitCode> {
    let pipeline = match load(&options.files)? {
        Ok(pipeline) => pipeline,
        Err(problems) => return Ok(complain(&problems)),
    };
    let program = &pipeline.program;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let audit = runtime.block_on(async {
        let place: Box<dyn Place> = match &options.state {
            Some(state) => Box::new(Laptop::open(program, state, true)?),
            None => Box::new(Cloud::open(program).await),
        };
        leat::audit::audit(program, &*place, options.deep).await
    })?;
    match options.output {
        OutputFormat::Json => say(&format!("{}\n", serde_json::to_string_pretty(&audit)?))?,
        OutputFormat::Text => say(&audit.text())?,
    }
    Ok(if audit.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

fn pair(text: &str, shape: &str) -> Result<(String, String)> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !value.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => bail!("`{text}` should be {shape}"),
    }
}

/// The first Ctrl-C or SIGTERM asks for an orderly stop, the second ends the process.
fn stop_on_signal(stop: Arc<AtomicBool>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) else { return };
            loop {
                tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
                if stop.swap(true, Ordering::Relaxed) {
                    std::process::exit(130);
                }
                eprintln!("  stopping: what was taken is being committed; once more ends it at once");
            }
        });
    })?;
    Ok(())
}
