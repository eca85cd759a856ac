//! The task of a lineage: reads, computes, cuts, and sends what its cuts cover.

mod cut;
mod recover;
mod send;
mod snapshot;
mod wait;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::LocalBoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use leat_compile::program::Program;
use leat_runtime_core::key::HashRange;
use leat_runtime_core::ledger::Ledger;
use leat_runtime_core::mark::Mark;
use leat_runtime_core::message::{self, Message};
use leat_runtime_core::numbers::Numbers;
use leat_runtime_core::path;
use leat_runtime_core::position::{Lineage, Offset};
use leat_runtime_core::row::{Fence, OpenFile, SourceRow, Staged, Status};
use leat_runtime_core::rules::{Rule, Rules};
use leat_runtime_core::watermark::Watermark;

#[cfg(feature = "ablation")]
use self::send::computed_again;
use self::send::{Queue, append};
use self::wait::{Tip, lowest_of_others};
use super::file::{self, FileWriter};
use super::looks::{Look, Looks};
use super::outlet::{Outlet, Outlets, outlets};
use super::ports::{Place, PortError, Ports, Read};
use super::task::{self, Base, Control, Exit, Settings, TaskError, Tries};
use crate::operators::files::FilesMark;
use crate::operators::memory::Share;
use crate::operators::source::{Replayable, SourceChain};

/// So many bytes may wait to be sent before reading waits too.
const QUEUE_BYTES: usize = 32 << 20;
/// The same in rows.
const QUEUE_ROWS: usize = 100_000;

/// What a source task works on.
#[derive(Clone)]
pub struct SourceJob {
    /// The compiled pipeline.
    pub program: Arc<Program>,
    /// Number of its job.
    pub job: u64,
    /// Partitions of the repartition stream.
    pub partitions: u16,
    /// Index of the source.
    pub source: usize,
    /// The lineage.
    pub lineage: Lineage,
    /// The keys that the lineage takes.
    pub range: HashRange,
    /// Makes the names of files and objects the pipeline's own.
    pub unique: String,
    /// Where a lineage that was never read is begun: time of arrival, ms; `None`: with its oldest record.
    pub since: Option<i64>,
}

/// Staged messages that were not acknowledged yet.
struct Pending {
    staged: Staged,
    /// `None`: not read back yet.
    left: Option<Vec<Message>>,
    busy: bool,
    tries: Tries,
}

/// Something that was under way came to an end.
enum Event {
    Read(Result<Read, PortError>),
    Cut(Result<Box<cut::Done>, TaskError>),
    Loaded(String, Result<Vec<Message>, TaskError>),
    Sent(String, Result<Vec<Message>, PortError>),
    SentReplayable(Outlets, Result<Vec<Replayable>, PortError>),
    Completed(String, Result<(), TaskError>),
    Snapshot(Result<Base, PortError>),
    Looked(Result<Arc<Look>, TaskError>),
    Shown(bool),
    Removed,
    Tick,
}

/// A source task.
pub struct SourceTask<C> {
    ports: Ports,
    control: Rc<C>,
    settings: Settings,
    job: SourceJob,
    key: String,
    fence: Fence,
    row: SourceRow,
    chain: SourceChain,
    position: Option<Offset>,
    assigned: BTreeMap<String, Numbers>,
    pending: Vec<Pending>,
    replayable: Queue,
    /// `None` while they are in use.
    outlets: Option<Outlets>,
    complete: BTreeMap<String, (OpenFile, bool)>,
    acknowledged: BTreeSet<String>,
    inherited: Vec<OpenFile>,
    writers: BTreeMap<(usize, String), FileWriter>,
    raises: Vec<(Option<Offset>, Watermark)>,
    /// A snapshot that is written and waits for a cut that makes it the base.
    snapshot: Option<Base>,
    /// How far the rows for files were when the last snapshot was taken.
    filed: Vec<FilesMark>,
    /// Objects of this task that the base names.
    named: BTreeSet<String>,
    /// Objects of ids that this owner has made.
    runs: usize,
    /// `None`: more is there, or that is not known.
    tip: Option<Tip>,
    /// What recovery has read and not used.
    ahead: Option<Read>,
    /// Whether the source has waited for records before it said that there are none.
    awaited: bool,
    /// Pause before the next read, after ones without a clear answer, ms.
    back_off: u64,
    last_cut: i64,
    last_snapshot: i64,
    reading: bool,
    cutting: bool,
    snapshotting: bool,
    /// Position of the first record whose output is on its way.
    sending_replayable: Option<Offset>,
    /// A cut that others have not been shown.
    cut_unseen: bool,
    showing: bool,
    last_shown: i64,
    looks: Arc<Looks>,
    /// Number of the last look.
    looked: u64,
    looking: bool,
    ended: bool,
    children: Vec<Lineage>,
    changed: bool,
    garbage: Vec<String>,
    share: Share,
    progress: Arc<Mutex<Progress>>,
}

/// What others may see of a running task.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// Records taken and not necessarily cut.
    pub taken: u64,
    /// The lineage's watermark, ms.
    pub watermark: i64,
    /// Nothing newer was there at the last read.
    pub at_tip: bool,
    /// Nothing is left to do: everything taken is cut, nothing is held back, and all output is acknowledged.
    pub settled: bool,
    /// Where records went, as of the last cut.
    pub ledger: Ledger,
    /// Reading waits for lineages that are behind in event time, since memory is full.
    pub waits: bool,
    /// What cuts and snapshots cost it.
    pub held: task::Held,
}

impl<C: Control> SourceTask<C> {
    /// Takes the lineage's row and recovers its state.
    pub async fn start(
        ports: Ports,
        control: Rc<C>,
        settings: Settings,
        job: SourceJob,
        session: &str,
        looks: Arc<Looks>,
        progress: Arc<Mutex<Progress>>,
    ) -> Result<Self, TaskError> {
        let key = path::source_row(&job.lineage);
        let (fence, row): (Fence, SourceRow) = task::take(&ports, &key, job.job, session, settings.rules).await?;
        let chain = SourceChain::new(&job.program, job.source, &job.lineage, job.range, job.job, settings.rules);
        let (now, share) = (ports.clock.now(), Share::new(&ports.memory));
        let doubt = row.position.map_or(Mark::Nothing, Mark::Record);
        let outlets = outlets(&job.program, &job.program.sources[job.source].nodes, &job.unique, &key, doubt, settings.rules);
        let mut task = Self {
            ports,
            control,
            settings,
            job,
            key,
            fence,
            chain,
            progress,
            position: row.position,
            assigned: BTreeMap::new(),
            pending: row.unsent.iter().map(|s| Pending { staged: s.clone(), left: None, busy: false, tries: Tries::default() }).collect(),
            replayable: Queue::default(),
            outlets: Some(outlets),
            complete: row.complete.iter().map(|f| (f.destination.clone(), (f.clone(), false))).collect(),
            acknowledged: BTreeSet::new(),
            inherited: row.files.clone(),
            writers: BTreeMap::new(),
            raises: row.raises.clone(),
            snapshot: None,
            filed: Vec::new(),
            named: BTreeSet::new(),
            runs: 0,
            tip: None,
            ahead: None,
            awaited: false,
            back_off: 0,
            last_cut: now,
            last_snapshot: now,
            reading: false,
            cutting: false,
            snapshotting: false,
            sending_replayable: None,
            cut_unseen: false,
            last_shown: 0,
            showing: false,
            looks,
            looked: 0,
            looking: false,
            ended: row.status != Status::Live,
            children: row.children.clone(),
            changed: false,
            garbage: Vec::new(),
            share,
            row,
        };
        task.recover().await?;
        Ok(task)
    }

    /// Where reading goes on behind `last`.
    fn place(&self, last: Option<Offset>) -> Place {
        match (last, self.row.begins, self.job.since) {
            (Some(last), ..) => Place::After(last),
            (None, Some(begins), _) => Place::Inside(begins),
            (None, None, Some(since)) if !self.row.continues => Place::Since(since),
            _ => Place::Oldest,
        }
    }

    fn rules(&self) -> Rules {
        self.settings.rules
    }

    /// Works until the lineage is retired, the job drains, or somebody else takes the row.
    pub async fn run(mut self) -> Result<Exit, TaskError> {
        let mut busy: FuturesUnordered<LocalBoxFuture<'static, Event>> = FuturesUnordered::new();
        busy.push(self.tick());
        loop {
            if let Some(exit) = self.decide(&mut busy)? {
                return Ok(exit);
            }
            match busy.next().await {
                None => return Err(TaskError::Defect("the task has nothing to wait for".to_owned())),
                Some(Event::Tick) => {
                    self.weigh();
                    busy.push(self.tick());
                }
                Some(event) => match self.apply(event) {
                    Err(TaskError::Fenced) => return Ok(Exit::Fenced),
                    other => other?,
                },
            }
        }
    }

    fn tick(&self) -> LocalBoxFuture<'static, Event> {
        let (clock, pause) = (Arc::clone(&self.ports.clock), self.settings.poll_interval);
        Box::pin(async move {
            clock.sleep(pause).await;
            Event::Tick
        })
    }

    fn draining(&self) -> bool {
        task::draining(&*self.control, self.job.job)
    }

    fn outstanding(&self) -> bool {
        !self.replayable.waiting.is_empty()
            || self.sending_replayable.is_some()
            || self.pending.iter().any(|p| !self.acknowledged.contains(&p.staged.object))
            || self.complete.keys().any(|d| !self.acknowledged.contains(d))
    }

    /// Starts whatever can be under way now, and says what others may see; answers when the task is done.
    fn decide(&mut self, busy: &mut FuturesUnordered<LocalBoxFuture<'static, Event>>) -> Result<Option<Exit>, TaskError> {
        let exit = self.begin(busy)?;
        let settled = exit.is_some()
            || (!self.changed
                && !self.cutting
                && !self.outstanding()
                && self.acknowledged.is_empty()
                && !self.chain.has_partials()
                && self.nothing_buffered()
                && self.row.position == self.position);
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).settled = settled;
        Ok(exit)
    }

    fn begin(&mut self, busy: &mut FuturesUnordered<LocalBoxFuture<'static, Event>>) -> Result<Option<Exit>, TaskError> {
        if self.row.status == Status::Retired {
            return Ok(Some(Exit::Retired));
        }
        if self.fence.drained {
            return Ok(Some(Exit::Drained));
        }
        self.send(busy);
        self.clean(busy);
        self.show(busy);
        let (draining, waits) = (self.draining(), self.waits());
        let now = self.ports.clock.now();
        if self.ended {
            // Two cuts: the first ends the lineage, the second retires it when everything is acknowledged.
            if !self.cutting && self.row.status == Status::Live {
                let status = if self.rules().hold(Rule::Retire) { Status::Ended } else { Status::Retired };
                busy.push(self.cut(status, false)?);
            } else if !self.cutting && !self.outstanding() {
                busy.push(self.cut(Status::Retired, false)?);
            }
            return Ok(None);
        }
        if draining && !self.reading {
            if !self.cutting {
                let settled = !self.changed
                    && !self.chain.has_partials()
                    && !self.outstanding()
                    && self.row.files.is_empty()
                    && self.nothing_buffered();
                if settled {
                    busy.push(self.cut(Status::Live, true)?);
                } else if self.changed || now - self.last_cut >= self.settings.cut_interval {
                    busy.push(self.cut(Status::Live, false)?);
                }
            }
            return Ok(None);
        }
        if !self.reading
            && !draining
            && self.replayable.waiting.len() < QUEUE_ROWS
            && self.replayable.bytes < QUEUE_BYTES
            && self.pending.len() < 64
            && self.buffered() < 4 * self.part_bytes()
            && !waits
        {
            self.reading = true;
            let (source, lineage, from) = (Arc::clone(&self.ports.source), self.job.lineage.clone(), self.place(self.position));
            let at_tip = if self.tip.is_some() && !self.awaited { self.settings.poll_interval } else { 0 };
            let (clock, pause, ahead) = (Arc::clone(&self.ports.clock), at_tip.max(self.back_off), self.ahead.take());
            busy.push(Box::pin(async move {
                if let Some(read) = ahead {
                    return Event::Read(Ok(read));
                }
                if pause > 0 {
                    clock.sleep(pause).await;
                }
                Event::Read(source.read(&lineage, from).await)
            }));
        }
        if !self.cutting {
            let sealed = self.seal();
            if sealed != Watermark::MIN && sealed.0 > self.chain.watermark {
                self.raise(sealed);
                busy.push(self.cut(Status::Live, false)?);
            } else if (now - self.last_cut >= self.settings.cut_interval || sealed != Watermark::MIN || self.crowded())
                && (self.changed
                    || self.files_due(now)
                    || !self.acknowledged.is_empty()
                    || (sealed != Watermark::MIN && !self.nothing_buffered()))
            {
                busy.push(self.cut(Status::Live, false)?);
            } else if self.idle(now) != self.row.idle {
                // Others stop or begin to wait for this lineage with the cut that says so.
                busy.push(self.cut(Status::Live, false)?);
            } else if (self.idle(now) || self.asks(now)) && !self.looking {
                self.looking = true;
                let (ports, looks, behind, settings) = (self.ports.clone(), Arc::clone(&self.looks), self.looked, self.settings);
                let pause = looks.pause(settings.poll_interval);
                busy.push(Box::pin(async move { Event::Looked(looks.behind(behind, pause, &ports, settings.rules).await) }));
            }
        }
        Ok(None)
    }

    /// Whether much waits for a cut: reading would stop before the next one is due.
    fn crowded(&self) -> bool {
        let waiting = &self.replayable.waiting;
        let rows = waiting.len() - waiting.partition_point(|r| Some(r.position) <= self.row.position);
        rows >= QUEUE_ROWS / 4 || (self.replayable.bytes >= QUEUE_BYTES / 2 && rows > waiting.len() / 2)
    }

    /// Bytes of rows that wait for a part.
    fn buffered(&mut self) -> usize {
        self.chain.files().map(|(_, rows)| rows.buffers().map(|(_, b)| b.bytes).sum::<usize>()).max().unwrap_or_default()
    }

    fn nothing_buffered(&mut self) -> bool {
        self.chain.files().all(|(_, rows)| rows.buffers().next().is_none()) && self.writers.is_empty()
    }

    /// Removes objects that no cut names any more.
    fn clean(&mut self, busy: &mut FuturesUnordered<LocalBoxFuture<'static, Event>>) {
        if !self.garbage.is_empty() {
            let (objects, garbage) = (Arc::clone(&self.ports.objects), std::mem::take(&mut self.garbage));
            busy.push(Box::pin(async move {
                task::remove(&*objects, &garbage).await;
                Event::Removed
            }));
        }
    }

    /// Sends what cuts cover.
    fn send(&mut self, busy: &mut FuturesUnordered<LocalBoxFuture<'static, Event>>) {
        let groups = self.job.program.document.key_groups;
        for pending in self.pending.iter_mut().filter(|p| !p.busy) {
            pending.busy = true;
            let (ports, object) = (self.ports.clone(), pending.staged.object.clone());
            let (partitions, pause) = (self.job.partitions, pending.tries.with(pending.left.as_ref().map_or(0, Vec::len)));
            match pending.left.take() {
                None => busy.push(Box::pin(async move {
                    let loaded = ports.insist(|| ports.objects.get(&object)).await;
                    let messages = loaded.map_err(TaskError::from).and_then(|bytes| Ok(message::decode(&bytes)?));
                    Event::Loaded(object, messages)
                })),
                Some(messages) => {
                    busy.push(Box::pin(async move { Event::Sent(object, append(&ports, messages, groups, partitions, pause).await) }))
                }
            }
        }
        self.send_replayable(busy);
        for (file, started) in
            self.complete.values_mut().filter(|(f, started)| !started && self.row.complete.iter().any(|c| c.destination == f.destination))
        {
            *started = true;
            let (ports, file, generation) = (self.ports.clone(), file.clone(), self.fence.generation);
            busy.push(Box::pin(async move { Event::Completed(file.destination.clone(), file::complete(&ports, &file, generation).await) }));
        }
        let due = self.ports.clock.now() - self.last_snapshot >= self.settings.snapshot_interval;
        if due
            && !self.ended
            && !self.snapshotting
            && self.snapshot.is_none()
            && self.row.snapshot.as_ref().and_then(|s| s.position) != self.position
        {
            busy.push(self.take_snapshot());
        }
    }

    fn apply(&mut self, event: Event) -> Result<(), TaskError> {
        match event {
            Event::Tick | Event::Removed => {}
            Event::Read(read) => self.take_records(read)?,
            Event::Cut(done) => {
                self.committed(*done?);
                self.cut_unseen = self.ports.source.shows_cuts(self.job.lineage.source());
            }
            Event::Shown(shown) => {
                self.showing = false;
                self.cut_unseen |= !shown;
            }
            Event::Loaded(object, messages) => {
                let messages = messages?;
                #[cfg(feature = "ablation")]
                let messages = if self.rules().hold(Rule::SameBytes) { messages } else { computed_again(&self.job.program, messages) };
                self.pend(&object, messages);
            }
            Event::Sent(object, left) => match left? {
                left if left.is_empty() => drop(self.acknowledged.insert(object)),
                left => self.pend(&object, left),
            },
            Event::SentReplayable(mut outlets, left) => {
                // The next cut tells whether it is still this task that has them.
                self.changed |= outlets.values_mut().any(Outlet::has_failed);
                (self.sending_replayable, self.outlets) = (None, Some(outlets));
                self.replayable.again(left?);
            }
            Event::Completed(destination, done) => {
                done?;
                self.acknowledged.insert(destination);
            }
            Event::Snapshot(snapshot) => {
                self.snapshotting = false;
                self.last_snapshot = self.ports.clock.now();
                let base = snapshot?;
                self.chain.stored(&base.named);
                // The end of the lineage has a snapshot of its own, which may have overtaken this one.
                if self.row.end_snapshot.is_none() && self.snapshot.is_none() {
                    if !self.rules().hold(Rule::Named) {
                        self.garbage.extend(task::replaced(&mut self.named, base.named.clone()));
                    }
                    self.snapshot = Some(base);
                    self.changed = true;
                }
            }
            Event::Looked(look) => {
                self.looking = false;
                let look = look?;
                self.looked = look.number;
                let now = self.ports.clock.now();
                if let Some(lowest) = lowest_of_others(&look, &self.job.lineage)
                    && self.idle(now)
                    && !self.cutting
                    && lowest.0 > self.chain.watermark
                {
                    self.raise(lowest);
                }
            }
        }
        Ok(())
    }

    fn pend(&mut self, object: &str, messages: Vec<Message>) {
        for pending in self.pending.iter_mut().filter(|p| p.staged.object == object) {
            pending.tries.left(messages.len());
            pending.left = Some(messages.clone());
            pending.busy = false;
        }
    }

    fn take_records(&mut self, read: Result<Read, PortError>) -> Result<(), TaskError> {
        self.reading = false;
        let read = match read {
            Err(PortError::Unclear(why)) => {
                self.ports.unclear.note(&why);
                self.back_off = (self.back_off * 2).clamp(10, 2_000);
                self.tip = self.tip.map(Tip::unsure);
                self.progress.lock().unwrap_or_else(PoisonError::into_inner).at_tip = false;
                return Ok(());
            }
            other => other?,
        };
        self.back_off = 0;
        self.awaited = read.awaited;
        if let Some(last) = read.batch.positions.last() {
            #[cfg(feature = "ablation")]
            self.judge_by_others();
            self.replayable.extend(self.chain.process(&read.batch)?);
            self.weigh();
            self.position = Some(*last);
            self.changed = true;
            self.tip = None;
        } else if read.more {
            self.tip = None;
            // What is there cannot be read yet: no reason to ask at once.
            if read.scanned <= self.position && !read.awaited {
                self.back_off = self.settings.poll_interval;
            }
        } else {
            self.tip = Some(Tip::seen(self.tip, self.ports.clock.now()));
        }
        // What is no record lies behind this lineage too, or it would be asked for again when it is gone.
        if let Some(scanned) = read.scanned.filter(|scanned| Some(*scanned) > self.position) {
            self.position = Some(scanned);
            self.changed = true;
        }
        if read.end {
            self.ended = true;
            self.children = read.children;
        }
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.taken = self.chain.taken;
        progress.watermark = self.chain.watermark;
        progress.at_tip = self.tip.is_some();
        Ok(())
    }

    /// The wrong variant that judges lateness by the watermark of all.
    #[cfg(feature = "ablation")]
    fn judge_by_others(&mut self) {
        if !self.rules().hold(Rule::OwnWatermark) {
            self.chain.merged_watermark = Some(self.control.merged());
        }
    }

    /// The watermark that closes bounded input, once this lineage has come to its end.
    fn seal(&self) -> Watermark {
        let pipeline = self.control.pipeline();
        let Some(seal) = &pipeline.seal else { return Watermark::MIN };
        let at_end = seal.ends.get(&self.job.lineage).is_some_and(|end| self.position >= *end);
        seal.watermark.filter(|_| at_end).unwrap_or(Watermark::MIN)
    }
}
