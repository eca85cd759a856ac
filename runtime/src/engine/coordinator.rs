//! Executes what `coordinate` decides.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::future;
use leat_compile::program::{Input, Program, SourceProgram, Start};
use leat_runtime_core::begin::{self, Begin, Known, Listed};
use leat_runtime_core::coordinate::{self, Change, Desired, KnownShard, View};
use leat_runtime_core::path;
use leat_runtime_core::position::{NotAnOffset, Offset};
use leat_runtime_core::row::{Expect, Fence, PipelineRow};
use leat_runtime_core::rules::Rules;

use super::looks::Looks;
use super::ports::{Objects, Place, PortError, Ports, Rows, Shard, StoredRow};
use super::task::{self, TaskError};

/// What a program wants of the pipeline's rows.
pub fn desired(program: &Program, hash: &str, revision: u64, now: i64) -> Desired {
    let partitions = if program.keyed.edges.is_empty() { 0 } else { program.document.repartition_partitions };
    let sources = program.sources.iter().map(|s| s.name.clone()).collect();
    Desired { hash: hash.to_owned(), revision, partitions, sources, begins: BTreeMap::new(), now }
}

/// Where sources are begun, as objects say it. Each is read once.
#[derive(Debug, Default)]
pub struct Begins {
    /// Makes the names of objects this worker's own.
    session: String,
    /// Objects that this worker has made, by source.
    made: BTreeMap<String, String>,
    /// What objects say.
    known: BTreeMap<String, Arc<Begin>>,
    /// Shards of each source as they were listed last.
    listed: BTreeMap<String, Vec<Shard>>,
    /// Sources that have never been listed.
    pub silent: BTreeSet<String>,
}

impl Begins {
    /// Of a worker.
    pub fn new(session: &str) -> Self {
        Self { session: session.to_owned(), ..Self::default() }
    }

    /// Lists the shards of all sources. One that does not answer holds nobody up who does not need it: what was listed before
    /// is taken for it.
    async fn list(&mut self, ports: &Ports, program: &Program) -> Result<(), TaskError> {
        let answers = program.sources.iter().map(|source| async move { (&source.name, ports.source.shards(&source.name).await) });
        for (source, answer) in future::join_all(answers).await {
            match answer {
                Ok(found) => drop(self.listed.insert(source.clone(), found)),
                Err(PortError::Unclear(why)) => ports.unclear.note(&why),
                Err(why) => return Err(why.into()),
            }
        }
        self.silent = program.sources.iter().map(|s| s.name.clone()).filter(|s| !self.listed.contains_key(s)).collect();
        Ok(())
    }

    fn shards(&self) -> Vec<Shard> {
        self.listed.values().flatten().cloned().collect()
    }

    /// The object for a source that is new to the pipeline, if its manifest says where it is begun.
    async fn make(&mut self, ports: &Ports, source: &SourceProgram, shards: &[Shard]) -> Result<Option<String>, TaskError> {
        if let Some(object) = self.made.get(&source.name) {
            return Ok(Some(object.clone()));
        }
        let mut known = BTreeMap::new();
        match &source.start {
            Start::Latest if ports.source.asks_time_once(&source.name) => {
                known.extend(ports.source.at_time(&source.name, None).await?);
            }
            Start::Since(time) if ports.source.asks_time_once(&source.name) => {
                known.extend(ports.source.at_time(&source.name, Some(*time)).await?);
            }
            Start::Earliest | Start::Latest | Start::Since(_) => return Ok(None),
            Start::Leases(application) | Start::Group(application) => {
                known.extend(ports.source.standing(&source.name, application).await?);
            }
            Start::Positions(positions) => {
                for (shard, text) in positions {
                    if !shards.iter().any(|s| s.lineage.partition() == shard) {
                        return Err(no_begin(source, &format!("the stream has no shard {shard}")));
                    }
                    let at: Offset = text.parse().map_err(|why: NotAnOffset| no_begin(source, &format!("{shard}: {why}")))?;
                    // Without a number within it, all of an aggregated record is meant.
                    known.insert(shard.clone(), Known::Behind(if text.contains('.') { at } else { at.inside(u32::MAX) }));
                }
            }
        }
        let parents = |shard: &Shard| shard.parents.iter().map(|p| p.partition().to_owned()).collect();
        let listed = |s: &Shard| (s.lineage.partition().to_owned(), Listed { parents: parents(s), closed: s.closed });
        let begin = begin::decide(&shards.iter().map(listed).collect(), &known).map_err(|why| no_begin(source, &why))?;
        // What the source does not know is found out before anything depends on it.
        for shard in shards {
            if let Some(at) = begin.behind.get(shard.lineage.partition()) {
                match ports.source.probe(&shard.lineage, Place::Inside(*at)).await {
                    Err(PortError::Fatal(why)) => return Err(no_begin(source, &why)),
                    probed => probed?,
                }
            }
        }
        self.write(ports, &source.name, begin).await.map(Some)
    }

    /// The object that says which files a source has that is new to the pipeline.
    async fn list_files(&mut self, ports: &Ports, source: &str) -> Result<String, TaskError> {
        if let Some(object) = self.made.get(source) {
            return Ok(object.clone());
        }
        let begin = Begin { files: Some(ports.source.list(source).await?), ..Begin::default() };
        self.write(ports, source, begin).await
    }

    async fn write(&mut self, ports: &Ports, source: &str, begin: Begin) -> Result<String, TaskError> {
        let object = path::begin(source, &self.session);
        let bytes = task::encode(&begin);
        ports.insist(|| ports.objects.put(&object, bytes.clone())).await?;
        self.known.insert(object.clone(), Arc::new(begin));
        self.made.insert(source.to_owned(), object.clone());
        Ok(object)
    }

    async fn read(&mut self, ports: &Ports, object: &str) -> Result<Arc<Begin>, TaskError> {
        if let Some(begin) = self.known.get(object) {
            return Ok(Arc::clone(begin));
        }
        let begin: Arc<Begin> = Arc::new(task::decode(&ports.insist(|| ports.objects.get(object)).await?)?);
        self.known.insert(object.to_owned(), Arc::clone(&begin));
        Ok(begin)
    }
}

/// Why a source cannot be begun as its manifest says.
fn no_begin(source: &SourceProgram, why: &str) -> TaskError {
    let from = match &source.start {
        Start::Leases(table) => format!("the lease table {table}"),
        Start::Group(group) => format!("the group {group}"),
        Start::Latest | Start::Since(_) => "`start`".to_owned(),
        _ => "`positions`".to_owned(),
    };
    PortError::Fatal(format!("the source `{}` cannot be begun where {from} says: {why}", source.name)).into()
}

/// Looks at everything and makes the changes that are possible now; answers how many were made, and the shards.
pub async fn pass(
    ports: &Ports,
    program: &Program,
    desired: &Desired,
    begins: &mut Begins,
    looks: &Looks,
    rules: Rules,
) -> Result<(usize, Vec<Shard>), TaskError> {
    let pipeline = read_pipeline(ports).await?;
    let mut desired = desired.clone();
    let mut shards = Vec::new();
    // Also those of sources that only another job knows: this worker may be the one that makes their rows.
    let mut begin = BTreeMap::new();
    for (source, object) in pipeline.iter().flat_map(|(_, row)| &row.begins) {
        begin.insert(source.clone(), begins.read(ports, object).await?);
    }
    for source in program.sources.iter().filter(|source| matches!(source.input, Input::Stream(_))) {
        if begin.get(&source.name).is_some_and(|begin| begin.files.is_some()) {
            let why = format!("the source `{}` was files before; what reads a stream needs another name", source.name);
            return Err(PortError::Fatal(why).into());
        }
    }
    // Files are listed once: lineages are made of what was there then.
    for source in program.sources.iter().filter(|source| ports.source.is_listed(&source.name)) {
        let known = pipeline.as_ref().is_some_and(|(_, row)| row.knows(&source.name));
        if !known && pipeline.as_ref().is_none_or(|(_, row)| desired.revision > row.revision) {
            let object = match begins.list_files(ports, &source.name).await {
                // Nothing is decided without it, and nobody else waits for it.
                Err(TaskError::Port(PortError::Unclear(why))) => {
                    ports.unclear.note(&why);
                    continue;
                }
                made => made?,
            };
            begin.insert(source.name.clone(), begins.read(ports, &object).await?);
            desired.begins.insert(source.name.clone(), object);
        }
        if known && begin.get(&source.name).is_none_or(|begin| begin.files.is_none()) {
            let why = format!("the source `{}` was a stream before; what reads files needs another name", source.name);
            return Err(PortError::Fatal(why).into());
        }
    }
    // Also of sources that only the job before knows, which this worker may drain.
    for (source, begin) in begin.iter().filter(|(source, begin)| begin.files.is_some() && ports.source.is_listed(source)) {
        ports.source.know(source, begin);
    }
    begins.list(ports, program).await?;
    for source in &program.sources {
        let Some(mut found) = begins.listed.get(&source.name).cloned() else { continue };
        let decided = pipeline.as_ref().is_some_and(|(_, row)| row.knows(&source.name) || desired.revision <= row.revision);
        let made = if decided || ports.source.is_listed(&source.name) { Ok(None) } else { begins.make(ports, source, &found).await };
        let made = match made {
            // Not now: the next round tries it again.
            Err(TaskError::Port(PortError::Unclear(why))) => {
                ports.unclear.note(&why);
                return Ok((0, begins.shards()));
            }
            made => made?,
        };
        if let Some(object) = made {
            begin.insert(source.name.clone(), begins.read(ports, &object).await?);
            desired.begins.insert(source.name.clone(), object);
        }
        if let Some(this) = begin.get(&source.name) {
            found.retain(|shard| !this.ended.contains(shard.lineage.partition()));
        }
        shards.extend(found);
    }
    // What has never been listed is not known: nothing is decided without it.
    if !begins.silent.is_empty() {
        return Ok((0, shards));
    }
    // The pipeline's row is that of before the shards were listed, the others' of after.
    let look = looks.behind(looks.begun(), 0, ports, rules).await?;
    let (sources, keyed) = (look.sources.clone(), look.keyed.clone());
    let known = shards.iter().map(|s| {
        let parents = s.parents.iter().filter(|p| sources.contains_key(*p) || shards.iter().any(|o| o.lineage == **p)).cloned().collect();
        KnownShard { lineage: s.lineage.clone(), parents, range: s.range }
    });
    let view = View { pipeline, shards: known.collect(), sources, keyed, begins: begin };
    let mut made = 0;
    for change in coordinate::decide(&view, &desired, rules) {
        made += usize::from(execute(ports, &view, change).await?);
    }
    Ok((made, shards))
}

/// The pipeline's row, if there is one.
pub async fn read_pipeline(ports: &Ports) -> Result<Option<(Fence, Arc<PipelineRow>)>, TaskError> {
    let row = ports.insist(|| ports.rows.get(path::PIPELINE)).await?;
    Ok(match row {
        Some(row) => Some((row.fence, Arc::new(task::decode(&row.body)?))),
        None => None,
    })
}

/// The program of the job that runs, which may have to be drained; `None`: none runs, or its document cannot be read, which
/// whoever drains it says by itself.
pub async fn job_that_runs(rows: &dyn Rows, objects: &dyn Objects) -> Result<Option<Program>, PortError> {
    let Some(row) = rows.get(path::PIPELINE).await? else { return Ok(None) };
    let Ok(pipeline) = task::decode::<PipelineRow>(&row.body) else { return Ok(None) };
    let document = match objects.get(&path::job(&pipeline.job_hash)).await {
        Err(PortError::Unclear(why)) => return Err(PortError::Unclear(why)),
        Err(PortError::Fatal(_)) => return Ok(None),
        Ok(bytes) => leat_crds::job::read(&bytes).ok(),
    };
    Ok(document.and_then(|document| leat_compile::compile_document(document).ok()))
}

/// Makes one change; an unclear answer is none: the next pass sees what became of it.
async fn execute(ports: &Ports, view: &View, change: Change) -> Result<bool, TaskError> {
    let job = view.pipeline.as_ref().map_or(1, |(_, p)| p.job);
    let (key, row, expect) = match change {
        Change::Pipeline(before, pipeline) => {
            let cut = before.as_ref().map_or(1, |f| f.cut + 1);
            let fence = Fence { job: pipeline.job, cut, drained: pipeline.draining_for.is_some(), ..Fence::default() };
            let expect = before.map_or(Expect::Absent { job: 0 }, Expect::Fence);
            (path::PIPELINE.to_owned(), StoredRow { fence, body: task::encode(&pipeline) }, expect)
        }
        Change::Source(lineage, job, row) => {
            let fence = Fence { job, ..Fence::default() };
            (path::source_row(&lineage), StoredRow { fence, body: task::encode(&*row) }, Expect::Absent { job })
        }
        Change::Keyed(partition, fence, row) => {
            let expect = Expect::Absent { job: if fence.job == job { job } else { 0 } };
            (path::keyed_row(partition), StoredRow { fence, body: task::encode(&*row) }, expect)
        }
        Change::Flip(key, before, after) => {
            let Some(found) = ports.insist(|| ports.rows.get(&key)).await? else { return Ok(false) };
            (key, StoredRow { fence: after, body: found.body }, Expect::Fence(before))
        }
        Change::Replace(partition, before, after, row) => {
            (path::keyed_row(partition), StoredRow { fence: after, body: task::encode(&*row) }, Expect::Fence(before))
        }
    };
    match ports.rows.put(&key, row, expect).await {
        Err(PortError::Unclear(why)) => {
            ports.unclear.note(&why);
            Ok(false)
        }
        clear => Ok(clear?),
    }
}
