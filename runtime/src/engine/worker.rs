//! A worker: takes leases, runs tasks on one thread per core, and has the coordinator look after the pipeline's rows.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::Bytes;
use futures::future::LocalBoxFuture;
use leat_compile::program::Program;
use leat_crds::job::JobDocument;
use leat_runtime_core::coordinate::Desired;
use leat_runtime_core::key::HashRange;
use leat_runtime_core::lease::{self, Lease};
use leat_runtime_core::path;
use leat_runtime_core::position::Lineage;
use leat_runtime_core::row::{Expect, Fence, PipelineRow, SourceRow, Status};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::LocalSet;

use super::coordinator::{self, Begins};
use super::keyed::{KeyedJob, KeyedTask};
use super::looks::{Look, Looks};
use super::ports::{PortError, Ports, Shard, StoredRow, Unclear};
use super::source::{SourceJob, SourceTask};
use super::task::{self, Control, Exit, Settings, TaskError};
use crate::operators::memory::Memory;

/// A worker that has not shown a heartbeat for so long is dead, ms.
const SESSION_TIMEOUT: i64 = 5_000;

/// What is not listed for so long is gone, ms.
const GONE_AFTER: i64 = 60_000;

/// The row of a session that is over is kept for so long, ms, for whoever looks what happened.
const SESSION_KEPT: i64 = 3_600_000;

/// Why a worker stopped.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// A task met something that will not go away by itself.
    #[error("{task} stopped: {source}")]
    Task {
        /// Row of the task.
        task: String,
        /// Why.
        source: TaskError,
    },
    /// The worker itself.
    #[error(transparent)]
    Worker(#[from] TaskError),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
    /// What a lineage read is not there any more.
    #[error(
        "{lineage} is gone: its stream or file was deleted, or made again; what was not read is lost. Start over with other state, or bring it back"
    )]
    Gone {
        /// The lineage.
        lineage: Lineage,
    },
    /// The job before can not be drained, since its document cannot be read.
    #[error("the job that runs now ({hash}) cannot be drained: {why}")]
    OldJob {
        /// Its hash.
        hash: String,
        /// Why.
        why: String,
    },
}

/// The heartbeat of a worker.
#[derive(Debug, Default, Serialize, Deserialize)]
struct SessionRow {
    /// It has ended: its leases are free at once.
    #[serde(default)]
    left: bool,
}

/// What is known of the pipeline, shared by all threads.
#[derive(Default)]
pub struct Shared {
    pipeline: RwLock<Arc<PipelineRow>>,
    sources: Mutex<BTreeMap<String, Arc<Mutex<super::source::Progress>>>>,
    keyed: Mutex<BTreeMap<String, Arc<Mutex<super::keyed::Progress>>>>,
    fenced: AtomicU64,
    looks: Arc<Looks>,
    /// Calls of all tasks that had no clear answer.
    pub unclear: Arc<Unclear>,
    /// Memory of its tasks.
    pub memory: Arc<Memory>,
}

impl Shared {
    /// The pipeline's row as it was last seen.
    fn pipeline(&self) -> Arc<PipelineRow> {
        Arc::clone(&self.pipeline.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The progress of each running source task.
    pub fn sources(&self) -> BTreeMap<String, super::source::Progress> {
        let tasks = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.iter().map(|(k, p)| (k.clone(), p.lock().unwrap_or_else(PoisonError::into_inner).clone())).collect()
    }

    /// Tasks that found their row taken by another worker, most often when a cut of theirs was refused.
    pub fn fenced(&self) -> u64 {
        self.fenced.load(Ordering::Relaxed)
    }

    /// The progress of each running keyed task.
    pub fn keyed(&self) -> BTreeMap<String, super::keyed::Progress> {
        let tasks = self.keyed.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.iter().map(|(k, p)| (k.clone(), p.lock().unwrap_or_else(PoisonError::into_inner).clone())).collect()
    }
}

struct SharedControl(Arc<Shared>);

impl Control for SharedControl {
    fn pipeline(&self) -> Arc<PipelineRow> {
        self.0.pipeline()
    }
}

type Start = (String, Box<dyn FnOnce() -> LocalBoxFuture<'static, ()> + Send>);
type Ended = (String, Result<Exit, TaskError>);

/// A worker of one pipeline.
pub struct Worker {
    ports: Ports,
    settings: Settings,
    session: String,
    document: JobDocument,
    desired: Desired,
    begins: Begins,
    /// Shards as this worker listed them last.
    shards: Vec<Shard>,
    /// What rounds see of the rows. Those of tasks are made by threads that compute.
    looks: Looks,
    /// When the look began by which tasks were started last, ms.
    looked: i64,
    /// There was more to take than is taken at once: the next look is made anew.
    more: bool,
    /// Lineages whose shards are not listed, and since when.
    missing: BTreeMap<String, i64>,
    /// Tasks that have ended since, and when.
    over: BTreeMap<String, i64>,
    rounds: u64,
    /// This worker is one of those that look after the pipeline's rows each round.
    first: bool,
    programs: BTreeMap<String, Arc<Program>>,
    threads: Vec<mpsc::UnboundedSender<Start>>,
    joins: Vec<std::thread::JoinHandle<()>>,
    load: Vec<BTreeSet<String>>,
    ended: (mpsc::UnboundedSender<Ended>, mpsc::UnboundedReceiver<Ended>),
    /// Heartbeats of other workers, and when they last changed.
    seen: BTreeMap<String, (u64, i64)>,
    beat: u64,
    last_beat: i64,
    /// What is known of the pipeline.
    pub shared: Arc<Shared>,
}

impl Worker {
    /// A worker with `threads` threads for tasks, for the job of this revision. IO is done by the runtime that this is
    /// called in, so a thread that computes holds up nobody's connection.
    pub fn new(
        ports: Ports,
        settings: Settings,
        session: String,
        program: Arc<Program>,
        revision: u64,
        threads: usize,
    ) -> Result<Self, WorkerError> {
        let hash = leat_compile::job_hash(&program.document);
        let desired = coordinator::desired(&program, &hash, revision, ports.clock.now());
        let (mut senders, mut joins) = (Vec::new(), Vec::new());
        let ended: (mpsc::UnboundedSender<Ended>, mpsc::UnboundedReceiver<Ended>) = mpsc::unbounded_channel();
        for i in 0..threads.max(1) {
            let (sender, mut starts) = mpsc::unbounded_channel::<Start>();
            senders.push(sender);
            let ended = ended.0.clone();
            let runtime = tokio::runtime::Handle::current();
            let thread = std::thread::Builder::new().name(format!("tasks-{i}")).spawn(move || {
                let local = LocalSet::new();
                runtime.block_on(local.run_until(async move {
                    while let Some((task, start)) = starts.recv().await {
                        let (running, ended) = (tokio::task::spawn_local(start()), ended.clone());
                        tokio::task::spawn_local(async move {
                            if let Err(panic) = running.await {
                                drop(ended.send((task, Err(TaskError::Defect(panic.to_string())))));
                            }
                        });
                    }
                }));
            })?;
            joins.push(thread);
        }
        let shared = Arc::new(Shared { unclear: Arc::clone(&ports.unclear), memory: Arc::clone(&ports.memory), ..Shared::default() });
        Ok(Self {
            ports,
            settings,
            begins: Begins::new(&session),
            shards: Vec::new(),
            looks: Looks::default(),
            looked: i64::MIN,
            more: false,
            missing: BTreeMap::new(),
            over: BTreeMap::new(),
            rounds: 0,
            first: true,
            session,
            document: program.document.clone(),
            desired,
            programs: BTreeMap::from([(hash, program)]),
            load: vec![BTreeSet::new(); senders.len()],
            threads: senders,
            joins,
            ended,
            seen: BTreeMap::new(),
            beat: 0,
            last_beat: i64::MIN,
            shared,
        })
    }

    /// Ends in order: waits until what its tasks have taken by now is behind a cut, for `patience` ms at most, and says
    /// that the session is over, so that others need not wait for its heartbeat to age.
    pub async fn leave(mut self, patience: i64) -> Result<(), WorkerError> {
        let until = self.ports.clock.now().saturating_add(patience);
        let taken: BTreeMap<String, u64> = self.shared.sources().into_iter().map(|(task, p)| (task, p.taken)).collect();
        while self.ports.clock.now() < until {
            self.reap()?;
            let mut behind = false;
            for (task, taken) in &taken {
                let row = self.ports.insist(|| self.ports.rows.get(task)).await.map_err(TaskError::from)?;
                let cut = row.map(|r| task::decode::<SourceRow>(&r.body)).transpose().map_err(TaskError::from)?;
                behind |= cut.is_some_and(|r| r.taken < *taken) && self.load.iter().any(|l| l.contains(task));
            }
            if !behind {
                break;
            }
            // Nobody is to take what is about to be cut.
            self.beat().await?;
            self.ports.clock.sleep(20).await;
        }
        while !self.beat_once(&SessionRow { left: true }).await? {
            self.ports.clock.sleep(20).await;
        }
        self.stop();
        Ok(())
    }

    /// Drops all tasks and ends their threads; what was not cut is taken again by whoever goes on.
    pub fn stop(mut self) {
        self.threads.clear();
        for thread in self.joins.drain(..) {
            // A thread that panicked has nothing more to say.
            drop(thread.join());
        }
    }

    /// Writes the job's document, so that a later job can drain this one.
    pub async fn register(&self) -> Result<(), WorkerError> {
        let body = Bytes::from(serde_json::to_vec(&self.document).unwrap_or_default());
        let name = path::job(&self.desired.hash);
        self.ports.insist(|| self.ports.objects.put(&name, body.clone())).await.map_err(TaskError::from)?;
        Ok(())
    }

    /// Says that earlier sessions of this worker's name are over: a container that is started again in its pod need not wait
    /// until the silence of the one before has been noticed. It shows itself first: else others, who see one worker less,
    /// would take all that is free.
    pub async fn succeed(&mut self, name: &str) -> Result<(), WorkerError> {
        self.beat().await?;
        let of_name = |session: &str| {
            let began = session.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
            began.is_some_and(|began| began.bytes().all(|b| b.is_ascii_digit())) && session != self.session
        };
        for (key, row) in self.ports.insist(|| self.ports.rows.list(path::SESSIONS)).await.map_err(TaskError::from)? {
            let left = task::decode::<SessionRow>(&row.body).is_ok_and(|s| s.left);
            if of_name(&key[path::SESSIONS.len()..]) && !left {
                let fence = Fence { cut: row.fence.cut + 1, ..row.fence.clone() };
                let over = StoredRow { fence, body: task::encode(&SessionRow { left: true }) };
                // Where this fails, its silence says it later.
                drop(self.ports.rows.put(&key, over, Expect::Fence(row.fence)).await);
            }
        }
        Ok(())
    }

    /// One round: heartbeat, coordinator, leases, and what tasks say. Call it again after a short while.
    pub async fn round(&mut self) -> Result<(), WorkerError> {
        // Nothing in a round waits for a task, and the heartbeat for nothing in it.
        self.beat().await?;
        let running = self.shared.pipeline();
        let wanted = running.revision < self.desired.revision && running.job_hash != self.desired.hash;
        if self.first || wanted || self.rounds.is_multiple_of(self.settings.pass_every) {
            self.pass().await?;
        }
        self.rounds += 1;
        let Some((_, pipeline)) = coordinator::read_pipeline(&self.ports).await? else { return Ok(()) };
        *self.shared.pipeline.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&pipeline);
        self.reap()?;
        let alive = self.heartbeat().await?;
        // Two, since the first one may be about to end.
        self.first = alive.iter().take(2).any(|session| *session == self.session);
        self.start_tasks(&pipeline, &alive).await
    }

    /// Looks after the pipeline's rows. All workers may, and every now and then do; that one or two of them do it each round
    /// spares the others, and AWS, the calls.
    async fn pass(&mut self) -> Result<(), WorkerError> {
        let program = Arc::clone(&self.programs[&self.desired.hash]);
        // New rows make new tasks possible at once.
        for _ in 0..8 {
            let (begins, looks) = (&mut self.begins, &self.looks);
            let (made, shards) = coordinator::pass(&self.ports, &program, &self.desired, begins, looks, self.settings.rules).await?;
            self.shards = shards;
            let listed = |task: &String| self.shards.iter().any(|s| path::source_row(&s.lineage) == *task);
            self.missing.retain(|task, _| !listed(task));
            if made == 0 {
                break;
            }
            self.beat().await?;
        }
        Ok(())
    }

    /// Forgets tasks that ended; one that ended in error ends the worker.
    fn reap(&mut self) -> Result<(), WorkerError> {
        while let Ok((task, outcome)) = self.ended.1.try_recv() {
            for load in &mut self.load {
                load.remove(&task);
            }
            self.over.insert(task.clone(), self.ports.clock.now());
            self.shared.sources.lock().unwrap_or_else(PoisonError::into_inner).remove(&task);
            self.shared.keyed.lock().unwrap_or_else(PoisonError::into_inner).remove(&task);
            match outcome {
                Ok(Exit::Fenced) => drop(self.shared.fenced.fetch_add(1, Ordering::Relaxed)),
                Ok(Exit::Retired | Exit::Drained) => {}
                Err(source) => return Err(WorkerError::Task { task, source }),
            }
        }
        Ok(())
    }

    /// Shows that this worker lives; answers which do.
    async fn heartbeat(&mut self) -> Result<Vec<String>, WorkerError> {
        self.beat().await?;
        let now = self.ports.clock.now();
        let mut alive = vec![self.session.clone()];
        for (key, row) in self.ports.insist(|| self.ports.rows.list(path::SESSIONS)).await.map_err(TaskError::from)? {
            let session = key[path::SESSIONS.len()..].to_owned();
            if session == self.session {
                continue;
            }
            let seen = self.seen.entry(session.clone()).or_insert((row.fence.cut, now));
            if seen.0 != row.fence.cut {
                *seen = (row.fence.cut, now);
            }
            let silent = now.saturating_sub(seen.1);
            let left = task::decode::<SessionRow>(&row.body).is_ok_and(|s| s.left);
            if !left && silent < SESSION_TIMEOUT {
                alive.push(session);
            } else if silent >= SESSION_KEPT {
                // One that was only paused shows itself again, as a new row.
                match self.ports.rows.delete(&key, row.fence).await {
                    Err(PortError::Unclear(why)) => self.ports.unclear.note(&why),
                    done => {
                        done.map_err(TaskError::from)?;
                        self.seen.remove(&session);
                    }
                }
            }
        }
        alive.sort();
        Ok(alive)
    }

    /// Shows that this worker lives, when it is time.
    async fn beat(&mut self) -> Result<(), WorkerError> {
        let now = self.ports.clock.now();
        if now.saturating_sub(self.last_beat) >= SESSION_TIMEOUT / 5 {
            self.beat_once(&SessionRow::default()).await?;
            self.last_beat = now;
        }
        Ok(())
    }

    /// Writes the session's row once; answers whether it is known to be written.
    async fn beat_once(&mut self, body: &SessionRow) -> Result<bool, WorkerError> {
        let key = path::session_row(&self.session);
        let before = (self.beat > 0).then(|| Fence { cut: self.beat, ..Fence::default() });
        let row = StoredRow { fence: Fence { cut: self.beat + 1, ..Fence::default() }, body: task::encode(body) };
        let expect = before.map_or(Expect::Absent { job: 0 }, Expect::Fence);
        let written = match self.ports.rows.put(&key, row, expect).await {
            Err(PortError::Unclear(why)) => {
                self.ports.unclear.note(&why);
                false
            }
            other => other.map_err(TaskError::from)?,
        };
        if written {
            self.beat += 1;
        } else {
            // One before may have come into effect unseen: what is there is looked at before the next.
            self.beat = self.ports.insist(|| self.ports.rows.get(&key)).await.map_err(TaskError::from)?.map_or(0, |r| r.fence.cut);
        }
        Ok(written)
    }

    /// A look by which no task was started yet: one of the tasks', or of this worker's rounds, whichever is newer; `None`: it is
    /// not time for another one.
    async fn look(&mut self) -> Result<Option<Arc<Look>>, WorkerError> {
        let newest = [self.shared.looks.newest(), self.looks.newest()].into_iter().max_by_key(|look| look.began).unwrap_or_default();
        let age = self.ports.clock.now().saturating_sub(newest.began);
        let due = age < 0 || age >= self.looks.pause(self.settings.poll_interval);
        let look = if newest.began > self.looked && !std::mem::take(&mut self.more) {
            newest
        } else if due || self.looked == i64::MIN {
            self.looks.behind(self.looks.begun(), 0, &self.ports, self.settings.rules).await?
        } else {
            return Ok(None);
        };
        self.looked = look.began;
        self.over.retain(|_, ended| *ended >= look.began);
        Ok(Some(look))
    }

    async fn start_tasks(&mut self, pipeline: &PipelineRow, alive: &[String]) -> Result<(), WorkerError> {
        let Some(look) = self.look().await? else { return Ok(()) };
        let of_job = |fence: &Fence| fence.job == pipeline.job && !fence.drained;
        // Those of a source that was left out are nobody's: they would stand in the way of a balance.
        let read = |lineage: &Lineage| pipeline.sources.iter().any(|source| source == lineage.source());
        let sources = look.sources.iter().filter(|(lineage, (_, row))| read(lineage) && row.status != Status::Retired);
        let sources = sources.map(|(lineage, (fence, _))| (path::source_row(lineage), fence));
        let keyed = look.keyed.iter().filter(|(partition, _)| **partition < pipeline.partitions);
        let keyed = keyed.map(|(partition, (fence, _))| (path::keyed_row(*partition), fence));
        let leases: Vec<Lease> = sources
            .chain(keyed)
            .filter(|(_, fence)| of_job(fence))
            .map(|(task, fence)| Lease { task, owner: fence.owner.clone() })
            .collect();
        let running: BTreeSet<&String> = self.load.iter().flatten().collect();
        // A task that ended although its row is ours is ours to begin again: to everybody else it is held.
        let lost = leases.iter().filter(|l| l.owner == self.session && !running.contains(&l.task)).map(|l| l.task.clone());
        // What was seen before a task ended may still call its row ours.
        let take = lost.chain(lease::to_take(&self.session, alive, &leases)).filter(|task| !self.over.contains_key(task));
        let take: Vec<String> = take.collect();
        if take.is_empty() {
            return Ok(());
        }
        let program = self.program_of(pipeline).await?;
        // What is new since this worker listed the shards itself: the next round knows it, and who lives then.
        let silent = |task: &String| self.begins.silent.contains(path::lineage_of(task).source());
        let unlisted = |task: &String| {
            let wanted = task.starts_with(path::SOURCES) && self.desired.sources.iter().any(|s| s == path::lineage_of(task).source());
            wanted && !silent(task) && !self.shards.iter().any(|s| path::source_row(&s.lineage) == *task)
        };
        let now = self.ports.clock.now();
        let new: Vec<String> = take.iter().filter(|task| unlisted(task) && !self.missing.contains_key(*task)).cloned().collect();
        if !new.is_empty() {
            self.missing.extend(new.into_iter().map(|task| (task, now)));
            self.looked = i64::MIN;
            return self.pass().await;
        }
        // There may be more to take than is taken at once.
        if take.len() >= lease::FREE_AT_ONCE {
            (self.looked, self.more) = (i64::MIN, true);
        }
        for key in take {
            if self.load.iter().any(|l| l.contains(&key)) {
                continue;
            }
            self.start(&key, pipeline, &program)?;
        }
        Ok(())
    }

    /// The program of the active job: this worker's own, or the one before, which is only drained.
    async fn program_of(&mut self, pipeline: &PipelineRow) -> Result<Arc<Program>, WorkerError> {
        let hash = &pipeline.job_hash;
        if let Some(program) = self.programs.get(hash) {
            return Ok(Arc::clone(program));
        }
        let fail = |why: String| WorkerError::OldJob { hash: hash.clone(), why };
        let name = path::job(hash);
        let bytes = self.ports.insist(|| self.ports.objects.get(&name)).await.map_err(|e| fail(e.to_string()))?;
        let document = leat_crds::job::read(&bytes).map_err(fail)?;
        let program =
            leat_compile::compile_document(document).map_err(|p| fail(p.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))?;
        let program = Arc::new(program);
        self.programs.insert(hash.clone(), Arc::clone(&program));
        Ok(program)
    }

    fn start(&mut self, key: &str, pipeline: &PipelineRow, program: &Arc<Program>) -> Result<(), WorkerError> {
        let Some(thread) = (0..self.threads.len()).min_by_key(|i| self.load[*i].len()) else { return Ok(()) };
        let (ports, settings, session) = (self.ports.clone(), self.settings, self.session.clone());
        let (shared, ended, task) = (Arc::clone(&self.shared), self.ended.0.clone(), key.to_owned());
        let start: Box<dyn FnOnce() -> LocalBoxFuture<'static, ()> + Send> = if key.starts_with(path::SOURCES) {
            let lineage = path::lineage_of(key);
            let Some(source) = program.sources.iter().position(|s| s.name == lineage.source()) else { return Ok(()) };
            // A job that is only drained may have sources that the new one does not list any more.
            let range = match self.shards.iter().find(|s| s.lineage == lineage) {
                Some(shard) => shard.range,
                None if !self.desired.sources.iter().any(|s| s == lineage.source()) => HashRange::ALL,
                None if self.begins.silent.contains(lineage.source()) => return Ok(()),
                // Lists are sometimes behind: it is gone when it stays away.
                None => {
                    let now = self.ports.clock.now();
                    if now - *self.missing.entry(key.to_owned()).or_insert(now) < GONE_AFTER {
                        return Ok(());
                    }
                    return Err(WorkerError::Gone { lineage });
                }
            };
            self.missing.remove(key);
            let (of, began) = (&program.sources[source], pipeline.began(&program.sources[source].name));
            // Where a time means a record only once, that is written down, and what is new since is read whole.
            let since = of.start.since(began).filter(|_| !self.ports.source.asks_time_once(&of.name));
            let job = SourceJob {
                program: Arc::clone(program),
                job: pipeline.job,
                partitions: pipeline.partitions,
                source,
                lineage,
                range,
                unique: unique(program, pipeline),
                since,
            };
            let (progress, looks) = (Arc::default(), Arc::clone(&shared.looks));
            shared.sources.lock().unwrap_or_else(PoisonError::into_inner).insert(task.clone(), Arc::clone(&progress));
            Box::new(move || {
                Box::pin(async move {
                    let control = Rc::new(SharedControl(shared));
                    let outcome = match SourceTask::start(ports.clone(), control, settings, job, &session, looks, progress).await {
                        Ok(running) => running.run().await,
                        Err(error) => Err(error),
                    };
                    let outcome = task::outcome(&ports, &task, &session, outcome).await;
                    drop(ended.send((task, outcome)));
                })
            })
        } else {
            let partition = key[path::KEYED.len()..].parse().unwrap_or_default();
            let job = KeyedJob {
                program: Arc::clone(program),
                job: pipeline.job,
                partition,
                partitions: pipeline.partitions,
                unique: unique(program, pipeline),
                born: pipeline.born,
            };
            let (progress, looks) = (Arc::default(), Arc::clone(&shared.looks));
            shared.keyed.lock().unwrap_or_else(PoisonError::into_inner).insert(task.clone(), Arc::clone(&progress));
            Box::new(move || {
                Box::pin(async move {
                    let control = Rc::new(SharedControl(shared));
                    let outcome = match KeyedTask::start(ports.clone(), control, settings, job, &session, looks, progress).await {
                        Ok(running) => running.run().await,
                        Err(error) => Err(error),
                    };
                    let outcome = task::outcome(&ports, &task, &session, outcome).await;
                    drop(ended.send((task, outcome)));
                })
            })
        };
        self.load[thread].insert(key.to_owned());
        drop(self.threads[thread].send((key.to_owned(), start)));
        Ok(())
    }
}

fn unique(program: &Program, pipeline: &PipelineRow) -> String {
    path::unique(&program.document.namespace, &program.document.name, pipeline.born)
}
