//! `leat dev`: a pipeline on the laptop. The manifest, the plan, the engine and the delivery protocol are those of the
//! cluster; streams, tables and buckets are folders.

mod http;
mod outcome;
mod progress;

pub use outcome::items;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use leat_compile::program::{Input, Program, Start};
use leat_crds::spec::Stream;
use leat_crds::values::Size;
use leat_operator_core::plan::{Found, Observed};
use leat_operator_core::resource::{self, Owner, Resource, Wish};
use leat_operator_core::{desired, plan};
use leat_runtime::codecs::framing::Contents;
use leat_runtime::connectors::clock::SystemClock;
use leat_runtime::connectors::local::files::FileSource;
use leat_runtime::connectors::local::folder::{LocalFiles, LocalObjects};
use leat_runtime::connectors::local::store::Store;
use leat_runtime::connectors::local::streams::{LocalLog, LocalSource, LocalStream};
use leat_runtime::connectors::local::written::LocalStreams;
use leat_runtime::engine::coordinator;
use leat_runtime::engine::keyed;
use leat_runtime::engine::ports::{Guard, Objects, Ports, Rows, StoredRow, Tables, Unclear};
use leat_runtime::engine::task::{self, Settings};
use leat_runtime::engine::worker::{Shared, Worker};
use leat_runtime::operators::memory::{Disk, Memory};
use leat_runtime_core::path;
use leat_runtime_core::position::{Lineage, Offset};
use leat_runtime_core::row::{Expect, Fence, KeyedRow, PipelineRow, Seal, SourceRow, Status};
use leat_runtime_core::watermark::Watermark;

use self::progress::Progress;
use crate::feed::{self, Fed, Feed};
use crate::report::Report;
use crate::stand_ins::StandIns;

/// How `leat dev` runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder of the state.
    pub state: PathBuf,
    /// Folder that relative paths of the manifest start from.
    pub base: PathBuf,
    /// Forget what was there.
    pub fresh: bool,
    /// Stop when everything that is fed in is delivered.
    pub until_done: bool,
    /// Stream → what is fed into it.
    pub feeds: Vec<(String, Feed)>,
    /// What stands in for what exists elsewhere.
    pub stand_ins: StandIns,
    /// Where events can be posted; `None`: nowhere.
    pub listen: Option<String>,
    /// Threads of tasks.
    pub threads: usize,
    /// Memory of tasks, bytes; what is beyond it lies in the folder of the state.
    pub memory: usize,
    /// Say what happens on standard error.
    pub talk: bool,
}

/// How long Ctrl-C waits until what was taken is behind a cut, ms.
const PATIENCE: i64 = 5_000;

/// Everything that a run needs, opened.
struct World {
    program: Arc<Program>,
    store: Arc<Store>,
    files: Arc<LocalFiles>,
    written: Arc<LocalStreams>,
    streams: BTreeMap<String, Arc<LocalStream>>,
    ports: Ports,
}

/// Runs a pipeline until it is done, or until `stop` is set.
pub fn run(program: Program, options: &Options, stop: &Arc<AtomicBool>) -> Result<Report> {
    let world = open(program, options)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let report = runtime.block_on(drive(&world, options, stop));
    runtime.shutdown_timeout(Duration::from_secs(1));
    report
}

fn open(mut program: Program, options: &Options) -> Result<World> {
    // Positions in a stream of AWS mean nothing here.
    for source in program.sources.iter_mut().filter(|s| matches!(s.start, Start::Leases(_) | Start::Group(_) | Start::Positions(_))) {
        source.start = Start::Earliest;
    }
    let document = &program.document;
    let folder = prepared(&program, options)?;
    let now = feed::now();
    let store = Arc::new(Store::open(&folder.join("store.redb"))?);
    let objects: Arc<dyn Objects> = Arc::new(LocalObjects::new(&folder.join("objects")));
    let waits = tokio::runtime::Builder::new_current_thread().build()?;
    // A job that ran before may have to be drained, with streams and sources that this one does not have.
    let before = waits.block_on(coordinator::job_that_runs(store.as_ref(), objects.as_ref()))?;
    same_streams(&program, before.as_ref())?;
    provision(&program, &store, &folder.join("registry"), options)?;
    for (table, dynamodb) in document.spec.tables.iter().filter_map(|t| Some((t, t.dynamodb.as_ref()?))) {
        let items = options.stand_ins.items(&table.name, dynamodb)?;
        waits.block_on(Tables::put(store.as_ref(), &table.name, &items, Guard { born: i64::MIN, cut: 0 }))?;
    }
    let streams = local_streams(&program, before.as_ref(), &folder.join("streams"), now)?;
    let mut by_source = BTreeMap::new();
    let mut file_sources = BTreeMap::new();
    for lost in before.iter().flat_map(|before| leat_compile::state::lost(before, &program)) {
        if options.talk {
            eprintln!("  lost with this change: {lost}");
        }
    }
    let known: Vec<String> = program.sources.iter().map(|s| s.name.clone()).collect();
    let gone = before.iter().flat_map(|p| &p.sources).filter(|s| !known.contains(&s.name));
    for source in program.sources.iter().chain(gone) {
        match &source.input {
            Input::Stream(name) => drop(streams.get(name).map(|s| by_source.insert(source.name.clone(), Arc::clone(s)))),
            Input::Files { path, .. } => {
                let path = options.stand_ins.path(&options.base, path);
                let files = FileSource::new(&path, Contents::of(source), now)
                    .with_context(|| format!("source `{}`: cannot read {}", source.name, path.display()))?;
                file_sources.insert(source.name.clone(), Arc::new(files));
            }
        }
    }
    let session = format!("{}-{now}", std::process::id());
    let files = Arc::new(LocalFiles::new(&folder.join("s3"), &folder.join("uploads"), &session));
    let written = Arc::new(LocalStreams::new(&folder.join("written")));
    let ports = Ports {
        rows: Arc::clone(&store) as Arc<dyn Rows>,
        objects,
        files: Arc::clone(&files) as _,
        log: Arc::new(LocalLog::open(&folder.join("repartition"), document.repartition_partitions)?),
        source: Arc::new(LocalSource { streams: by_source, files: file_sources }),
        tables: Arc::clone(&store) as _,
        streams: Arc::clone(&written) as _,
        topics: Arc::clone(&written) as _,
        clock: Arc::new(SystemClock),
        unclear: Arc::default(),
        memory: Arc::new(Memory::new(options.memory, Some(Disk::new(folder.join("spill"), u64::MAX)?))),
    };
    Ok(World { program: Arc::new(program), store, files, written, streams, ports })
}

/// Looks at everything that can be wrong before anything is changed; answers the folder of the state, which exists then.
fn prepared(program: &Program, options: &Options) -> Result<PathBuf> {
    let document = &program.document;
    let folder = options.state.join(&document.namespace).join(&document.name);
    let known: Vec<&str> = document.spec.sources.iter().filter_map(|s| s.stream.as_deref()).collect();
    for (name, feed) in &options.feeds {
        if !known.contains(&name.as_str()) {
            bail!("no source reads a stream `{name}` that could be fed; {}", leat_crds::problem::suggest(name, known));
        }
        feed.id()?;
    }
    options.stand_ins.check(program)?;
    if options.fresh && folder.exists() {
        // Who has the state open has its lock; only then it may go.
        drop(Store::open(&folder.join("store.redb"))?);
        std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}

/// Shards of a stream of which the manifest does not say how many it has.
const SHARDS: u32 = 4;

/// A stream of the manifest is the same one as before.
fn same_streams(program: &Program, before: Option<&Program>) -> Result<()> {
    let name = |s: &Stream| stand_in(s).map(|(name, _)| name).unwrap_or_default();
    for was in before.iter().flat_map(|p| &p.document.spec.streams) {
        let now = program.document.spec.streams.iter().find(|is| is.name == was.name);
        if let Some(is) = now.filter(|is| name(is) != name(was)) {
            let why = "positions belong to a stream: declare the other one under another name, or start over with --fresh";
            bail!("the stream `{}` was {} and is {} now; {why}", was.name, name(was), name(is));
        }
    }
    Ok(())
}

/// Folder and number of shards of what stands in for a stream.
fn stand_in(stream: &Stream) -> Option<(String, u32)> {
    match (&stream.kinesis, &stream.kafka) {
        (Some(kinesis), _) => Some((kinesis.stream_name.clone(), kinesis.shards.as_ref().map_or(SHARDS, |s| s.initial))),
        (None, Some(kafka)) => Some((format!("topic {}", kafka.topic), SHARDS)),
        (None, None) => None,
    }
}

/// The streams that sources read, those of the job before among them.
pub(crate) fn local_streams(
    program: &Program,
    before: Option<&Program>,
    folder: &Path,
    now: i64,
) -> Result<BTreeMap<String, Arc<LocalStream>>> {
    let mut streams = BTreeMap::new();
    for spec in std::iter::once(program).chain(before).map(|p| &p.document.spec) {
        let is_read = |stream: &&Stream| spec.sources.iter().any(|s| s.stream.as_ref() == Some(&stream.name));
        for stream in spec.streams.iter().filter(is_read) {
            let Some((name, shards)) = stand_in(stream).filter(|_| !streams.contains_key(&stream.name)) else { continue };
            streams.insert(stream.name.clone(), Arc::new(LocalStream::open(&folder.join(name), shards, now)?));
        }
    }
    Ok(streams)
}

/// Plans as the operator does, says what is planned, makes it, and notes what was made.
fn provision(program: &Program, store: &Arc<Store>, registry: &Path, options: &Options) -> Result<()> {
    let document = &program.document;
    let owner = Owner { installation: "dev".to_owned(), namespace: document.namespace.clone(), name: document.name.clone() };
    let wanted = desired::desired(program, &owner);
    let noted: BTreeMap<String, resource::Settings> =
        store.note("resources")?.and_then(|n| serde_json::from_slice(&n).ok()).unwrap_or_default();
    let key = |r: &Resource| format!("{} {}", r.kind.name(), r.name);
    let made: BTreeMap<String, resource::Settings> = wanted.iter().map(|r| (key(r), r.settings())).collect();
    for resource in &wanted {
        if let Wish::Schema(schema) = &resource.wish {
            register(&registry.join(&schema.registry).join(&schema.schema), &schema.definition)?;
        }
    }
    let looked_at = wanted.into_iter().map(|resource| {
        let observed = match noted.get(&key(&resource)) {
            None => Observed::Absent,
            Some(settings) => Observed::Present(Found {
                owner: Some(owner.to_string()),
                differences: plan::differences(&resource.settings(), settings),
                ..Found::default()
            }),
        };
        (resource, observed)
    });
    let context = plan::Context { owner: owner.to_string(), ..plan::Context::default() };
    let rows = plan::plan(looked_at.collect(), &context);
    if options.talk {
        rows.iter().flat_map(|row| &row.changes).filter(|c| c.made()).for_each(|change| eprintln!("  {change}"));
    }
    let changes = || rows.iter().flat_map(|row| &row.changes);
    if let Some(key) = changes().find(|c| matches!(&c.action, plan::Action::Blocked(why) if why.starts_with("key "))) {
        bail!("{key}; --fresh starts over");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(store.put_note("resources", serde_json::to_vec(&made)?))?;
    Ok(())
}

/// Writes a definition as the next version of a schema, unless it is the newest one.
fn register(folder: &Path, definition: &str) -> Result<()> {
    let unusable = || format!("cannot use {}", folder.display());
    std::fs::create_dir_all(folder).with_context(unusable)?;
    let version = |name: &std::ffi::OsStr| name.to_str()?.strip_prefix('v')?.strip_suffix(".json")?.parse::<u32>().ok();
    let newest = std::fs::read_dir(folder).with_context(unusable)?.flatten().filter_map(|e| version(&e.file_name())).max();
    let path = |version: u32| folder.join(format!("v{version}.json"));
    if let Some(newest) = newest
        && resource::digest(&std::fs::read_to_string(path(newest)).with_context(unusable)?) == resource::digest(definition)
    {
        return Ok(());
    }
    let (written, target) = (folder.join("next"), path(newest.unwrap_or_default() + 1));
    std::fs::write(&written, definition).and_then(|()| std::fs::rename(&written, &target)).with_context(unusable)
}

async fn drive(world: &World, options: &Options, stop: &Arc<AtomicBool>) -> Result<Report> {
    let started = Instant::now();
    if options.talk {
        tokio::spawn(say(Arc::clone(&world.ports.unclear)));
    }
    let session = format!("dev-{}-{}", std::process::id(), feed::now());
    // One process at a time holds the state, so what it wants is newer than what ran before.
    let hash = leat_compile::job_hash(&world.program.document);
    let revision = match coordinator::read_pipeline(&world.ports).await? {
        Some((_, running)) if running.job_hash == hash && running.draining_for.is_none() => running.revision,
        Some((_, running)) if running.draining_for.as_ref() == Some(&hash) => running.revision,
        Some((_, running)) => running.revision + 1,
        None => 1,
    };
    let mut worker = Worker::new(world.ports.clone(), Settings::default(), session, Arc::clone(&world.program), revision, options.threads)?;
    worker.register().await?;
    worker.round().await?;
    let before = taken(world).await?;
    unseal(world, options.until_done).await?;
    let mut feeds: Vec<Running> = Vec::new();
    for (name, feed) in &options.feeds {
        let Some(stream) = world.streams.get(name) else { continue };
        let unclear = Arc::clone(&world.ports.unclear);
        let (fed, thread) = feed::spawn(feed.clone(), Arc::clone(&world.program), name.clone(), Arc::clone(stream), unclear)?;
        feeds.push((fed, Some(thread)));
    }
    if let Some(address) = &options.listen {
        let at = http::serve(address, Arc::clone(&world.program), world.streams.clone()).await?;
        if options.talk {
            for name in world.streams.keys() {
                eprintln!("  post events to http://{at}/streams/{name}");
            }
        }
    }
    let outcome = rounds(world, options, stop, &mut worker, &mut feeds, before).await;
    feeds.iter().for_each(|(fed, _)| fed.stop.store(true, Ordering::Relaxed));
    for (_, thread) in &mut feeds {
        if let Some(thread) = thread.take() {
            thread.join().map_err(|_| anyhow::anyhow!("a feed stopped unexpectedly"))??;
        }
    }
    let Ok(done) = outcome else {
        worker.stop();
        return Err(outcome.err().unwrap_or_else(|| anyhow::anyhow!("the run stopped")));
    };
    // What is not behind a cut is taken again by the next run.
    if let Ok(left) = tokio::time::timeout(Duration::from_millis(PATIENCE as u64 + 1_000), worker.leave(PATIENCE)).await {
        left?;
    }
    let report = outcome::report(world, done, before, started.elapsed().as_secs_f64());
    match tokio::time::timeout(Duration::from_millis(PATIENCE as u64), report).await {
        Ok(report) => report,
        Err(_) => bail!("it was stopped, and what it did cannot be read: {}", world.ports.unclear.seen().1),
    }
}

/// Works until everything is delivered, or `stop` is set; answers whether it is.
async fn rounds(
    world: &World,
    options: &Options,
    stop: &Arc<AtomicBool>,
    worker: &mut Worker,
    feeds: &mut [Running],
    before: u64,
) -> Result<bool> {
    let mut progress = Progress::new(&world.program, before);
    let (mut done, mut waited) = (false, false);
    while !stop.load(Ordering::Relaxed) && !done {
        tokio::select! {
            round = worker.round() => round?,
            () = stopped(stop) => break,
        }
        for (_, thread) in feeds.iter_mut() {
            if let Some(ended) = thread.take_if(|t| t.is_finished()) {
                ended.join().map_err(|_| anyhow::anyhow!("a feed stopped unexpectedly"))??;
            }
        }
        let fed = feeds.iter().all(|(_, thread)| thread.is_none());
        if options.until_done && fed {
            done = tokio::select! {
                done = seal(world, &worker.shared) => done?,
                () = stopped(stop) => break,
            };
        }
        if options.talk && world.ports.memory.waited() > 0 && !std::mem::replace(&mut waited, true) {
            let limit = Size::from_bytes(options.memory as u64);
            eprintln!("  memory is full ({limit}): shards that are ahead of others in event time wait for them; see --memory");
        }
        if options.talk {
            progress.show(&worker.shared, feeds.iter().map(|(fed, _)| fed.records.load(Ordering::Relaxed)).sum());
        }
        if !done {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(done)
}

async fn stopped(stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Says when calls are made again for a while, and when that is over: a run that stands still must not be silent.
async fn say(unclear: Arc<Unclear>) {
    let (mut seen, mut again, mut quiet, mut said) = (0, 0, 0, false);
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (count, why) = unclear.seen();
        (again, quiet) = if count > seen { (again + 1, 0) } else { (0, quiet + 1) };
        seen = count;
        if again >= 2 && !std::mem::replace(&mut said, true) {
            eprintln!("  waits: {why}");
        // Whoever waits tries every two seconds.
        } else if quiet >= 4 && std::mem::take(&mut said) {
            eprintln!("  goes on");
        }
    }
}

/// Records taken by all lineages.
async fn taken(world: &World) -> Result<u64> {
    Ok(sources(world).await?.values().map(|r| r.taken).sum())
}

async fn sources(world: &World) -> Result<BTreeMap<Lineage, SourceRow>> {
    let mut rows = BTreeMap::new();
    for (key, row) in world.ports.insist(|| world.ports.rows.list(path::SOURCES)).await? {
        rows.insert(path::lineage_of(&key), task::decode(&row.body)?);
    }
    Ok(rows)
}

/// Rows of keyed tasks, by partition; a job with fewer partitions leaves those of the others.
async fn keyed(world: &World) -> Result<BTreeMap<u16, KeyedRow>> {
    let rows = world.ports.insist(|| world.ports.rows.list(path::KEYED)).await?;
    let row =
        |(key, row): (String, StoredRow)| -> Result<(u16, KeyedRow)> { Ok((key[path::KEYED.len()..].parse()?, task::decode(&row.body)?)) };
    rows.into_iter().map(row).collect()
}

/// New input may come: windows are closed by time again.
async fn unseal(world: &World, bounded: bool) -> Result<()> {
    let ends = ends(world);
    change_pipeline(world, &|pipeline| {
        let more = pipeline.seal.as_ref().is_some_and(|seal| ends.iter().any(|(l, end)| seal.ends.get(l).copied().flatten() < *end));
        if pipeline.seal.is_some() && (more || !bounded) { Some(None) } else { None }
    })
    .await
}

/// The last record of each lineage that a stream feeds.
fn ends(world: &World) -> BTreeMap<Lineage, Option<Offset>> {
    let mut ends = BTreeMap::new();
    for source in &world.program.sources {
        let Input::Stream(name) = &source.input else { continue };
        let Some(stream) = world.streams.get(name) else { continue };
        for (shard, last) in stream.ends() {
            ends.insert(Lineage::new(&source.name, &stream.incarnation(), &shard), (last > 0).then(|| Offset::new(last)));
        }
    }
    ends
}

/// Changes the seal in the pipeline's row, unless `decide` wants none.
async fn change_pipeline(world: &World, decide: &dyn Fn(&PipelineRow) -> Option<Option<Seal>>) -> Result<()> {
    while let Some((fence, pipeline)) = coordinator::read_pipeline(&world.ports).await? {
        let Some(seal) = decide(&pipeline) else { return Ok(()) };
        let mut next = PipelineRow::clone(&pipeline);
        next.seal = seal;
        let row = StoredRow { fence: Fence { cut: fence.cut + 1, ..fence.clone() }, body: task::encode(&next) };
        if world.ports.insist(|| world.ports.rows.put(path::PIPELINE, row.clone(), Expect::Fence(fence.clone()))).await? {
            return Ok(());
        }
    }
    Ok(())
}

/// Ends bounded input: the ends are noted, then, when all lineages have come to them, the watermark that closes every
/// window. Answers whether everything is delivered.
async fn seal(world: &World, shared: &Shared) -> Result<bool> {
    let Some((_, pipeline)) = coordinator::read_pipeline(&world.ports).await? else { return Ok(false) };
    if pipeline.draining_for.is_some() || pipeline.job_hash != leat_compile::job_hash(&world.program.document) {
        return Ok(false);
    }
    let ends = ends(world);
    let Some(seal) = pipeline.seal.clone().filter(|s| s.ends == ends) else {
        change_pipeline(world, &|_| Some(Some(Seal { ends: ends.clone(), watermark: None }))).await?;
        return Ok(false);
    };
    let mut rows = sources(world).await?;
    // Nobody runs lineages of sources that an earlier job had.
    rows.retain(|lineage, _| world.program.sources.iter().any(|s| s.name == lineage.source()));
    // Files end by themselves.
    for source in world.program.sources.iter().filter(|s| matches!(s.input, Input::Files { .. })) {
        let shards = world.ports.source.shards(&source.name).await?;
        if !shards.iter().all(|s| rows.get(&s.lineage).is_some_and(|r| r.status == Status::Retired)) {
            return Ok(false);
        }
    }
    let arrived = |(lineage, end): (&Lineage, &Option<Offset>)| rows.get(lineage).is_some_and(|r| r.position >= *end);
    if !seal.ends.iter().all(arrived) {
        return Ok(false);
    }
    let Some(watermark) = seal.watermark else {
        let newest = rows.values().map(|r| r.newest).max().unwrap_or(i64::MIN);
        let program = &world.program.keyed;
        let longest = program.edges.iter().map(|e| e.kind.waits(&program.joins));
        let applied = keyed(world).await?.values().map(|k| k.watermark).max().unwrap_or(Watermark::MIN);
        let close = Watermark(newest.saturating_add(longest.max().unwrap_or_default()).saturating_add(1).max(i64::MIN + 1)).max(applied);
        change_pipeline(world, &|p| p.seal.clone().map(|s| Some(Seal { watermark: Some(close), ..s }))).await?;
        return Ok(false);
    };
    let settled = rows.values().all(|r| {
        r.unsent.is_empty() && r.complete.is_empty() && r.files.is_empty() && (r.watermark >= watermark || r.status == Status::Retired)
    });
    let in_use = keyed(world).await?.into_iter().filter(|(partition, _)| *partition < pipeline.partitions);
    let in_use: Vec<KeyedRow> = in_use.map(|(_, row)| row).collect();
    let closed = in_use.iter().all(|k| k.watermark >= watermark && k.unsent.is_empty() && k.complete.is_empty() && k.dirty == 0);
    Ok(settled && closed && nothing_under_way(world, shared, in_use.len()).await?)
}

/// What no row tells: that no task holds anything back, and that keyed tasks have consumed all that was sent to them.
async fn nothing_under_way(world: &World, shared: &Shared, partitions: usize) -> Result<bool> {
    let mut cuts = BTreeMap::new();
    let mut live = 0;
    for (key, row) in world.ports.insist(|| world.ports.rows.list(path::SOURCES)).await? {
        let (source, lineage) = (task::decode::<SourceRow>(&row.body)?, path::lineage_of(&key));
        // Nobody runs lineages of sources that an earlier job had.
        if world.program.sources.iter().any(|s| s.name == lineage.source()) {
            live += usize::from(source.status != Status::Retired);
            cuts.insert(lineage, row.fence.cut);
        }
    }
    let (sources, keyed) = (shared.sources(), shared.keyed());
    let consumed = |k: &keyed::Progress| {
        k.settled && k.consumed.as_ref().is_some_and(|c| cuts.iter().all(|(lineage, cut)| c.get(lineage).is_none_or(|seen| seen >= cut)))
    };
    Ok(sources.len() >= live && sources.values().all(|s| s.settled) && keyed.len() >= partitions && keyed.values().all(consumed))
}

/// A feed and its thread, until that has ended.
type Running = (Arc<Fed>, Option<std::thread::JoinHandle<Result<()>>>);

/// The folder of a path, for relative paths of a manifest.
pub fn base_of(file: &Path) -> PathBuf {
    file.parent().map(Path::to_owned).unwrap_or_default()
}
