//! A worker as a process: the job from its folder, ports over AWS, health and metrics by HTTP, logs as JSON, and an
//! orderly end on SIGTERM.

mod kafka;
pub mod log;
pub mod metrics;
mod web;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use leat_aws::{Retries, SdkConfig, Target};
use leat_compile::program::{Input, Program};
use leat_crds::names;
use leat_crds::values::Size;
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};

use crate::codecs::framing::Contents;
use crate::connectors::aws::dynamodb::{LeaseTable, SinkTables};
use crate::connectors::aws::files::{Prefix, S3Source};
use crate::connectors::aws::kinesis::{KinesisLog, KinesisSource, KinesisStreams, Stream};
use crate::connectors::aws::s3::{S3Files, S3Objects, Store};
use crate::connectors::clock::SystemClock;
use crate::connectors::redis::{RedisTables, Values};
use crate::connectors::sources::Sources;
use crate::connectors::tables::TablesByName;
use crate::engine::coordinator;
use crate::engine::ports::{PortError, Ports, Source, Tables};
use crate::engine::task::{Settings, TaskError};
use crate::engine::worker::{Shared, Worker, WorkerError};
use crate::operators::memory::{Disk, Memory};

/// Time between two rounds of a worker.
const ROUND: Duration = Duration::from_millis(500);
/// How long SIGTERM waits until what was taken is behind a cut, ms; Kubernetes kills after 60 s.
const PATIENCE: i64 = 20_000;
/// How long a folder may show another job than the one that the pod was made for.
const STALE: Duration = Duration::from_secs(90);
/// Connections to Kinesis over which subscriptions of a source are spread.
const LINES: usize = 16;
/// Least time between two lines about calls without a clear answer.
const SAID: Duration = Duration::from_secs(10);

/// Why a worker cannot run.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// A file of the job's folder.
    #[error("cannot read {}: {source}; the operator writes it into the pipeline's ConfigMap", path.display())]
    Job {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The job's document.
    #[error("{0}")]
    Document(String),
    /// The engine.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// Listening, signals, threads.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

/// How a worker runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder with `job.json` and `revision`.
    pub job: PathBuf,
    /// Address of health and metrics.
    pub listen: String,
    /// Its name in the lease table; never used twice.
    pub session: String,
    /// Name that only this process has now: its earlier sessions are over.
    pub succeeds: Option<String>,
    /// Hash of the job that its pod was made for.
    pub made_for: Option<String>,
    /// Threads of tasks.
    pub threads: usize,
    /// Settings of tasks.
    pub settings: Settings,
    /// Memory of all tasks together, bytes.
    pub memory: usize,
    /// Folder for state that does not fit into it.
    pub spill: PathBuf,
    /// Most of that folder that it may use, bytes.
    pub spill_size: u64,
}

fn read(folder: &Path, name: &str) -> Result<String, ServiceError> {
    let path = folder.join(name);
    std::fs::read_to_string(&path).map_err(|source| ServiceError::Job { path, source })
}

/// The program and its revision, as the operator wrote them.
pub fn load(folder: &Path) -> Result<(Program, u64), ServiceError> {
    let document = leat_crds::job::read(read(folder, "job.json")?.as_bytes()).map_err(ServiceError::Document)?;
    let revision = read(folder, "revision")?;
    let revision = revision.trim().parse().map_err(|_| ServiceError::Document(format!("`{revision}` is not a revision")))?;
    let program = leat_compile::compile_document(document)
        .map_err(|problems| ServiceError::Document(problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))?;
    Ok((program, revision))
}

/// Configurations, one for each account and region.
#[derive(Default)]
struct Clouds(HashMap<Target, SdkConfig>);

impl Clouds {
    async fn of(&mut self, target: Target) -> SdkConfig {
        if let Some(found) = self.0.get(&target) {
            return found.clone();
        }
        let config = leat_aws::connect(&target, Retries::Caller).await;
        self.0.insert(target, config.clone());
        config
    }
}

/// The ports of a pipeline over AWS; `tried` is called with each try to reach it.
async fn ports(program: &Program, tried: &(dyn Fn() + Sync)) -> Result<Ports, ServiceError> {
    let document = &program.document;
    let spec = &document.spec;
    let mut clouds = Clouds::default();
    let home = clouds.of(Target::of(spec.aws.as_ref(), None)).await;
    let storage = spec.storage.as_ref().ok_or_else(|| ServiceError::Document("spec.storage is missing: name a prefix in S3".to_owned()))?;
    let leases = names::lease_table(&document.namespace, &document.name);
    let repartition = names::repartition_stream(&document.namespace, &document.name);
    let s3 = aws_sdk_s3::config::Builder::from(&home).force_path_style(leat_aws::path_style());
    let s3 = aws_sdk_s3::Client::from_conf(s3.build());
    let prefix = names::objects(&storage.location, &document.namespace, &document.name);
    let rows = LeaseTable::new(aws_sdk_dynamodb::Client::new(&home), &leases);
    let objects = S3Objects::new(Store::new(s3.clone(), storage.kms_key_id.clone()), &prefix);
    // The job that runs may have to be drained: with streams and tables that this one does not have any more.
    let before = job_before(&rows, &objects, tried).await.map_err(|e| ServiceError::Worker(TaskError::from(e).into()))?;
    let (mut streams, mut lease_tables, mut topics, mut prefixes) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for program in std::iter::once(program).chain(&before) {
        let spec = &program.document.spec;
        for source in &program.sources {
            let name = match &source.input {
                Input::Stream(name) => name,
                Input::Files { path, lanes, .. } => {
                    let made = || Prefix::new(s3.clone(), path, Contents::of(source), *lanes);
                    prefixes.entry(source.name.clone()).or_insert_with(made);
                    continue;
                }
            };
            let Some(stream) = spec.streams.iter().find(|s| s.name == *name) else { continue };
            if let Some(kinesis) = &stream.kinesis {
                let config = clouds.of(Target::of(spec.aws.as_ref(), stream.aws.as_ref())).await;
                let fan_out = spec.sources.iter().find(|s| s.name == source.name).and_then(|s| s.fan_out.as_ref());
                let made = || {
                    let polled = Stream::new(aws_sdk_kinesis::Client::new(&config), &kinesis.stream_name);
                    match fan_out {
                        Some(fan_out) => {
                            let line = || aws_sdk_kinesis::Client::new(&leat_aws::apart(&config));
                            polled.pushed_to(&fan_out.consumer, std::iter::repeat_with(line).take(LINES).collect())
                        }
                        None => polled,
                    }
                };
                streams.entry(source.name.clone()).or_insert_with(made);
                lease_tables.insert(source.name.clone(), aws_sdk_dynamodb::Client::new(&config));
            }
            if let Some(kafka) = &stream.kafka {
                let config = clouds.of(Target::of(spec.aws.as_ref(), stream.aws.as_ref())).await;
                topics.entry(source.name.clone()).or_insert_with(|| (kafka.clone(), config));
            }
        }
    }
    let (mut written, mut written_topics) = (BTreeMap::new(), BTreeMap::new());
    for program in std::iter::once(program).chain(&before) {
        let spec = &program.document.spec;
        for sink in &program.streams {
            let Some(stream) = spec.streams.iter().find(|s| s.name == sink.stream) else { continue };
            if let Some(kinesis) = &stream.kinesis {
                let config = clouds.of(Target::of(spec.aws.as_ref(), stream.aws.as_ref())).await;
                let made = || Stream::new(aws_sdk_kinesis::Client::new(&config), &kinesis.stream_name);
                written.entry(sink.stream.clone()).or_insert_with(made);
            }
            if let Some(kafka) = &stream.kafka {
                let config = clouds.of(Target::of(spec.aws.as_ref(), stream.aws.as_ref())).await;
                written_topics.entry(sink.stream.clone()).or_insert_with(|| (kafka.clone(), config));
            }
        }
    }
    let mut tables = HashMap::new();
    for spec in std::iter::once(spec).chain(before.as_ref().map(|p| &p.document.spec)) {
        for table in &spec.tables {
            let Some(dynamodb) = &table.dynamodb else { continue };
            let config = clouds.of(Target::of(spec.aws.as_ref(), table.aws.as_ref())).await;
            let made = || (aws_sdk_dynamodb::Client::new(&config), dynamodb.table_name.clone());
            tables.entry(table.name.clone()).or_insert_with(made);
        }
    }
    let table_names: Vec<String> = tables.keys().cloned().collect();
    let tables: Arc<dyn Tables> = Arc::new(SinkTables::new(tables));
    let mut values = HashMap::new();
    for spec in std::iter::once(spec).chain(before.as_ref().map(|p| &p.document.spec)) {
        for (sink, redis) in spec.sinks.iter().filter_map(|s| Some((s, s.redis.as_ref()?))) {
            values.entry(names::redis_table(&sink.name)).or_insert_with(|| Values {
                url: redis.url.clone(),
                secret: redis.secret.as_deref().map(|secret| PathBuf::from(names::secret_folder(secret))),
                time_to_live: redis.time_to_live.map(|life| Duration::from_millis(life.millis().unsigned_abs())),
            });
        }
    }
    let mut by_name: BTreeMap<String, Arc<dyn Tables>> = table_names.into_iter().map(|name| (name, Arc::clone(&tables))).collect();
    let names_of_values: Vec<String> = values.keys().cloned().collect();
    let values: Arc<dyn Tables> = Arc::new(RedisTables::new(values));
    by_name.extend(names_of_values.into_iter().map(|name| (name, Arc::clone(&values))));
    let mut sources: BTreeMap<String, Arc<dyn Source>> = BTreeMap::new();
    let names: Vec<String> = streams.keys().cloned().collect();
    let kinesis: Arc<dyn Source> = Arc::new(KinesisSource::new(streams).with_tables(lease_tables));
    sources.extend(names.into_iter().map(|name| (name, Arc::clone(&kinesis))));
    let names: Vec<String> = prefixes.keys().cloned().collect();
    let files: Arc<dyn Source> = Arc::new(S3Source::new(prefixes));
    sources.extend(names.into_iter().map(|name| (name, Arc::clone(&files))));
    if !topics.is_empty() {
        let (names, group): (Vec<String>, _) = (topics.keys().cloned().collect(), names::group(&document.namespace, &document.name));
        let kafka = kafka::source(topics, &group)?;
        sources.extend(names.into_iter().map(|name| (name, Arc::clone(&kafka))));
    }
    Ok(Ports {
        rows: Arc::new(rows),
        objects: Arc::new(objects),
        files: Arc::new(S3Files::new(Store::new(s3, None))),
        log: Arc::new(KinesisLog::new(Stream::new(aws_sdk_kinesis::Client::new(&home), &repartition), document.repartition_partitions)),
        source: Arc::new(Sources::new(sources)),
        tables: Arc::new(TablesByName::new(by_name)),
        streams: Arc::new(KinesisStreams::new(written)),
        topics: kafka::sinks(written_topics)?,
        clock: Arc::new(SystemClock),
        unclear: Arc::default(),
        memory: Arc::default(),
    })
}

/// The memory of tasks.
fn memory(options: &Options) -> Memory {
    let disk = Disk::new(options.spill.clone(), options.spill_size);
    let (bytes, folder) = (Size::from_bytes(options.memory as u64).to_string(), options.spill.display().to_string());
    match disk {
        Ok(disk) => {
            log::info("memory of tasks", &[("bytes", &bytes), ("beyond", &folder)]);
            Memory::new(options.memory, Some(disk))
        }
        Err(why) => {
            let why = why.to_string();
            log::warn(
                "state cannot be moved to the disk: sources wait when it fills memory",
                &[("bytes", &bytes), ("folder", &folder), ("why", &why)],
            );
            Memory::new(options.memory, None)
        }
    }
}

/// The program of the job that runs, if one does; asked again while there is no clear answer.
async fn job_before(rows: &LeaseTable, objects: &S3Objects, tried: &(dyn Fn() + Sync)) -> Result<Option<Program>, PortError> {
    let mut said = String::new();
    loop {
        match coordinator::job_that_runs(rows, objects).await {
            Err(PortError::Unclear(why)) => {
                if why != said {
                    log::error("waits for AWS", &[("why", &why)]);
                    said = why;
                }
            }
            answer => return answer,
        }
        tried();
        tokio::time::sleep(ROUND).await;
    }
}

/// Says now and then that calls are made again, and that memory is full: a pipeline that stands still must not be silent, and a
/// worker that waits for AWS is not stuck.
async fn say(shared: Arc<Shared>, health: Arc<web::Health>) {
    let mut said = 0;
    loop {
        let waiting: Vec<String> = shared.sources().into_iter().filter(|(_, p)| p.waits).map(|(task, _)| task).collect();
        if let Some(first) = waiting.first() {
            let disk = shared.memory.disk().map_or("none", |disk| if disk.is_full() { "full" } else { "not full" });
            log::warn(
                "memory is full: shards that are ahead of others in event time are not read until those have come near",
                &[
                    ("shards", &waiting.len().to_string()),
                    ("first", first),
                    ("bytes", &shared.memory.used().to_string()),
                    ("limit", &shared.memory.limit().to_string()),
                    ("disk", disk),
                ],
            );
        }
        let (count, last) = shared.unclear.seen();
        if count > said {
            log::warn(
                "calls had no clear answer or were throttled; they are made again",
                &[("calls", &(count - said).to_string()), ("last", &last)],
            );
            health.tried();
            said = count;
        }
        tokio::time::sleep(SAID).await;
    }
}

/// The job, once the folder has the one that the pod was made for: a node may show an older one for a while. One that does
/// not come is not waited for: this worker then drains or runs what is there.
async fn arrived(options: &Options) -> Result<(Program, u64), ServiceError> {
    let until = tokio::time::Instant::now() + STALE;
    loop {
        let (program, revision) = load(&options.job)?;
        let found = leat_compile::job_hash(&program.document);
        if options.made_for.as_ref().is_none_or(|wanted| *wanted == found) {
            return Ok((program, revision));
        }
        if tokio::time::Instant::now() >= until {
            log::warn("runs the job that is here; the one that this worker was made for does not come", &[("found", &found)]);
            return Ok((program, revision));
        }
        tokio::time::sleep(ROUND).await;
    }
}

/// Runs until SIGTERM or Ctrl-C.
pub async fn run(options: Options) -> Result<(), ServiceError> {
    let io = |what: &str| {
        let what = what.to_owned();
        move |source| ServiceError::Io { what, source }
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(io("cannot wait for signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io("cannot wait for signals"))?;
    // Health is served first: while AWS is away, a worker that begins waits for it and is not stuck.
    let health = Arc::new(web::Health::default());
    let at = web::serve(&options.listen, Arc::clone(&health)).await.map_err(io(&format!("cannot listen on {}", options.listen)))?;
    let (program, revision) = tokio::select! {
        job = arrived(&options) => job?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let program = Arc::new(program);
    let tried = || health.tried();
    let ports = tokio::select! {
        ports = ports(&program, &tried) => Ports { memory: Arc::new(memory(&options)), ..ports? },
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let mut worker = Worker::new(ports, options.settings, options.session.clone(), Arc::clone(&program), revision, options.threads)?;
    health.watch(Arc::clone(&worker.shared));
    let saying = tokio::spawn(say(Arc::clone(&worker.shared), Arc::clone(&health)));
    let document = &program.document;
    log::info(
        "worker starts",
        &[
            ("pipeline", &format!("{}/{}", document.namespace, document.name)),
            ("session", &options.session),
            ("revision", &revision.to_string()),
            ("job", &leat_compile::job_hash(document)),
            ("listen", &at.to_string()),
        ],
    );
    let why = loop {
        let round = async {
            if !health.registered() {
                worker.register().await?;
                if let Some(name) = &options.succeeds {
                    worker.succeed(name).await?;
                }
                health.set_registered();
            }
            worker.round().await
        };
        tokio::select! {
            done = round => done?,
            _ = terminate.recv() => break "SIGTERM",
            _ = interrupt.recv() => break "SIGINT",
        }
        health.went_round();
        tokio::select! {
            () = tokio::time::sleep(ROUND) => {}
            _ = terminate.recv() => break "SIGTERM",
            _ = interrupt.recv() => break "SIGINT",
        }
    };
    log::info("worker drains", &[("why", why)]);
    health.leave();
    // What it cannot say any more, others find out by its silence.
    match tokio::time::timeout(Duration::from_millis(PATIENCE as u64 + 5_000), worker.leave(PATIENCE)).await {
        Ok(left) => left?,
        Err(_) => log::error("the lease table does not answer; the worker ends all the same", &[]),
    }
    saying.abort();
    log::info("worker ends", &[]);
    Ok(())
}
