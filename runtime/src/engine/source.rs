//! The task of a lineage: reads, computes, cuts, and sends what its cuts cover.

mod cut;
mod recover;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::future::LocalBoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use leat_compile::program::Program;
use leat_runtime_core::key::HashRange;
use leat_runtime_core::ledger::Ledger;
use leat_runtime_core::message::{self, Message};
use leat_runtime_core::numbers::Numbers;
use leat_runtime_core::path;
use leat_runtime_core::position::{Lineage, Offset};
use leat_runtime_core::row::{Fence, OpenFile, Snapshot, SourceRow, Staged, Status};
use leat_runtime_core::rules::{Rule, Rules};
use leat_runtime_core::watermark::Watermark;

use super::file::{self, FileWriter};
use super::ports::{PortError, Ports, Read};
use super::task::{self, Control, Exit, Settings, TaskError};
use crate::operators::source::{Leaving, Replayable, SourceChain};

/// Messages in one record of the repartition stream, and records in one append, at most.
const BUNDLE: usize = 500;
/// So many bytes may wait to be sent before reading waits too.
const QUEUE_BYTES: usize = 32 << 20;
/// Bytes of one record of the repartition stream, about: Kinesis takes 1 MiB.
const BUNDLE_BYTES: usize = 700 << 10;
/// What a message is longer than its body, at most about.
const MESSAGE_BYTES: usize = 256;

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
    /// Makes the names of files the pipeline's own.
    pub unique: String,
}

/// Staged messages that were not acknowledged yet.
struct Pending {
    staged: Staged,
    /// `None`: not read back yet.
    left: Option<Vec<Message>>,
    busy: bool,
}

/// What waits to be sent without being staged.
#[derive(Default)]
struct Queue {
    waiting: VecDeque<Replayable>,
    bytes: usize,
}

impl Queue {
    fn extend(&mut self, more: Vec<Replayable>) {
        self.bytes += more.iter().map(|r| r.what.bytes()).sum::<usize>();
        self.waiting.extend(more);
    }

    /// The first ones that a cut covers.
    fn take(&mut self, covered: impl Fn(&Replayable) -> bool) -> Vec<Replayable> {
        let free = self.waiting.iter().take(8 * BUNDLE).take_while(|r| covered(r)).count();
        let taken: Vec<Replayable> = self.waiting.drain(..free).collect();
        self.bytes -= taken.iter().map(|r| r.what.bytes()).sum::<usize>();
        taken
    }

    /// What was not accepted goes first the next time.
    fn again(&mut self, failed: Vec<Replayable>) {
        self.bytes += failed.iter().map(|r| r.what.bytes()).sum::<usize>();
        failed.into_iter().rev().for_each(|r| self.waiting.push_front(r));
    }
}

/// Something that was under way came to an end.
enum Event {
    Read(Result<Read, PortError>),
    Cut(Result<Box<cut::Done>, TaskError>),
    Loaded(String, Result<Vec<Message>, TaskError>),
    Sent(String, Result<Vec<Message>, PortError>),
    SentReplayable(Result<Vec<Replayable>, PortError>),
    Completed(String, Result<(), TaskError>),
    Snapshot(Result<Snapshot, PortError>),
    Lowest(Result<Option<Watermark>, TaskError>),
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
    complete: BTreeMap<String, (OpenFile, bool)>,
    acknowledged: BTreeSet<String>,
    inherited: Vec<OpenFile>,
    writers: BTreeMap<(usize, String), FileWriter>,
    raises: Vec<(Option<Offset>, Watermark)>,
    snapshot: Option<Snapshot>,
    at_tip_since: Option<i64>,
    last_cut: i64,
    last_snapshot: i64,
    reading: bool,
    cutting: bool,
    snapshotting: bool,
    sending_replayable: bool,
    looking: bool,
    ended: bool,
    children: Vec<Lineage>,
    changed: bool,
    garbage: Vec<String>,
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
    /// Where records went, as of the last cut.
    pub ledger: Ledger,
}

impl<C: Control> SourceTask<C> {
    /// Takes the lineage's row and recovers its state.
    pub async fn start(
        ports: Ports,
        control: Rc<C>,
        settings: Settings,
        job: SourceJob,
        session: &str,
        progress: Arc<Mutex<Progress>>,
    ) -> Result<Self, TaskError> {
        let key = path::source_row(&job.lineage);
        let (fence, row): (Fence, SourceRow) = task::take(&ports, &key, job.job, session, settings.rules).await?;
        let chain = SourceChain::new(&job.program, job.source, &job.lineage, job.range, job.job, settings.rules);
        let now = ports.clock.now();
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
            pending: row.unsent.iter().map(|s| Pending { staged: s.clone(), left: None, busy: false }).collect(),
            replayable: Queue::default(),
            complete: row.complete.iter().map(|f| (f.destination.clone(), (f.clone(), false))).collect(),
            acknowledged: BTreeSet::new(),
            inherited: row.files.clone(),
            writers: BTreeMap::new(),
            raises: row.raises.clone(),
            snapshot: None,
            at_tip_since: None,
            last_cut: now,
            last_snapshot: now,
            reading: false,
            cutting: false,
            snapshotting: false,
            sending_replayable: false,
            looking: false,
            ended: row.status != Status::Live,
            children: row.children.clone(),
            changed: false,
            garbage: Vec::new(),
            row,
        };
        task.recover().await?;
        Ok(task)
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
                Some(Event::Tick) => busy.push(self.tick()),
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
        let pipeline = self.control.pipeline();
        pipeline.draining_for.is_some() && pipeline.job == self.job.job
    }

    fn outstanding(&self) -> bool {
        !self.replayable.waiting.is_empty()
            || self.sending_replayable
            || self.pending.iter().any(|p| !self.acknowledged.contains(&p.staged.object))
            || self.complete.keys().any(|d| !self.acknowledged.contains(d))
    }

    /// Starts whatever can be under way now; answers when the task is done.
    fn decide(&mut self, busy: &mut FuturesUnordered<LocalBoxFuture<'static, Event>>) -> Result<Option<Exit>, TaskError> {
        if self.row.status == Status::Retired {
            return Ok(Some(Exit::Retired));
        }
        if self.fence.drained {
            return Ok(Some(Exit::Drained));
        }
        self.send(busy);
        self.clean(busy);
        let draining = self.draining();
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
            && self.replayable.waiting.len() < 50 * BUNDLE
            && self.replayable.bytes < QUEUE_BYTES
            && self.pending.len() < 64
            && self.buffered() < 4 * self.settings.part_bytes
        {
            self.reading = true;
            let (source, lineage, after) = (Arc::clone(&self.ports.source), self.job.lineage.clone(), self.position);
            let (clock, pause) = (Arc::clone(&self.ports.clock), if self.at_tip_since.is_some() { self.settings.poll_interval } else { 0 });
            busy.push(Box::pin(async move {
                if pause > 0 {
                    clock.sleep(pause).await;
                }
                Event::Read(source.read(&lineage, after).await)
            }));
        }
        if !self.cutting {
            let sealed = self.seal();
            if sealed != Watermark::MIN && sealed.0 > self.chain.watermark {
                self.raise(sealed);
                busy.push(self.cut(Status::Live, false)?);
            } else if now - self.last_cut >= self.settings.cut_interval
                && (self.changed || self.files_due(now) || !self.acknowledged.is_empty())
            {
                busy.push(self.cut(Status::Live, false)?);
            } else if self.idle(now) != self.row.idle {
                // Others stop or begin to wait for this lineage with the cut that says so.
                busy.push(self.cut(Status::Live, false)?);
            } else if self.idle(now) && !self.looking {
                self.looking = true;
                let (ports, key) = (self.ports.clone(), self.key.clone());
                busy.push(Box::pin(async move { Event::Lowest(lowest_of_others(&ports, &key).await) }));
            }
        }
        Ok(None)
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
            let partitions = self.job.partitions;
            match pending.left.take() {
                None => busy.push(Box::pin(async move {
                    let loaded = ports.insist(|| ports.objects.get(&object)).await;
                    let messages = loaded.map_err(TaskError::from).and_then(|bytes| Ok(message::decode(&bytes)?));
                    Event::Loaded(object, messages)
                })),
                Some(messages) => {
                    busy.push(Box::pin(async move { Event::Sent(object, append(&ports, messages, groups, partitions).await) }))
                }
            }
        }
        if !self.sending_replayable {
            let (position, rules) = (self.row.position, self.rules());
            let records = self.replayable.take(|r| Some(r.position) <= position || !rules.hold(Rule::AfterCut));
            if !records.is_empty() {
                self.sending_replayable = true;
                let (ports, job) = (self.ports.clone(), self.job.clone());
                busy.push(Box::pin(async move { Event::SentReplayable(leave(&ports, &job, records).await) }));
            }
        }
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

    /// A snapshot of the state as it is. Partial results are no part of it: it becomes the base only with a later cut,
    /// which stages them.
    fn take_snapshot(&mut self) -> LocalBoxFuture<'static, Event> {
        self.snapshotting = true;
        let name = self.object(path::Kind::Snapshot, self.fence.cut, self.chain.taken as usize);
        let bytes = Bytes::from(self.chain.snapshot());
        let (ports, position) = (self.ports.clone(), self.position);
        Box::pin(async move {
            let size = bytes.len() as u64;
            let put = ports.insist(|| ports.objects.put(&name, bytes.clone())).await;
            Event::Snapshot(put.map(|()| Snapshot { objects: vec![name.clone()], position, size }))
        })
    }

    fn object(&self, kind: path::Kind, cut: u64, index: usize) -> String {
        let generation = self.rules().hold(Rule::Names).then_some(self.fence.generation);
        path::object(kind, &self.key, cut, generation, index)
    }

    fn apply(&mut self, event: Event) -> Result<(), TaskError> {
        match event {
            Event::Tick | Event::Removed => {}
            Event::Read(read) => self.take_records(read)?,
            Event::Cut(done) => self.committed(*done?),
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
            Event::SentReplayable(left) => {
                self.sending_replayable = false;
                self.replayable.again(left?);
            }
            Event::Completed(destination, done) => {
                done?;
                self.acknowledged.insert(destination);
            }
            Event::Snapshot(snapshot) => {
                self.snapshotting = false;
                self.last_snapshot = self.ports.clock.now();
                self.snapshot = Some(snapshot?);
                self.changed = true;
            }
            Event::Lowest(lowest) => {
                self.looking = false;
                let now = self.ports.clock.now();
                if let Some(lowest) = lowest?
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
            pending.left = Some(messages.clone());
            pending.busy = false;
        }
    }

    fn take_records(&mut self, read: Result<Read, PortError>) -> Result<(), TaskError> {
        self.reading = false;
        let read = match read {
            Err(PortError::Unclear(_)) => return Ok(()),
            other => other?,
        };
        if let Some(last) = read.batch.positions.last() {
            #[cfg(feature = "ablation")]
            self.judge_by_others();
            self.replayable.extend(self.chain.process(&read.batch));
            self.position = Some(*last);
            self.changed = true;
            self.at_tip_since = None;
        } else {
            let now = self.ports.clock.now();
            self.at_tip_since.get_or_insert(now);
        }
        if read.end {
            self.ended = true;
            self.children = read.children;
        }
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.taken = self.chain.taken;
        progress.watermark = self.chain.watermark;
        progress.at_tip = self.at_tip_since.is_some();
        Ok(())
    }

    /// The wrong variant that judges lateness by the watermark of all.
    #[cfg(feature = "ablation")]
    fn judge_by_others(&mut self) {
        if !self.rules().hold(Rule::OwnWatermark) {
            self.chain.merged_watermark = Some(self.control.merged());
        }
    }

    /// Raises the lineage's own watermark, to be made durable before any later record.
    fn raise(&mut self, to: Watermark) {
        self.changed = true;
        if self.rules().hold(Rule::Idle) {
            self.chain.watermark = to.0;
        }
        self.raises.push((self.position, to));
    }

    /// The watermark that closes bounded input, once this lineage has come to its end.
    fn seal(&self) -> Watermark {
        let Some(seal) = self.control.pipeline().seal else { return Watermark::MIN };
        let at_end = seal.ends.get(&self.job.lineage).is_some_and(|end| self.position >= *end);
        seal.watermark.filter(|_| at_end).unwrap_or(Watermark::MIN)
    }

    fn idle(&self, now: i64) -> bool {
        let spec = &self.job.program.sources[self.job.source];
        let timeout = spec.event_time.and_then(|t| t.idle_timeout);
        let bounded = self.control.pipeline().seal.is_some();
        let silent = self.at_tip_since.zip(timeout).is_some_and(|(since, timeout)| now - since >= timeout.millis());
        silent && !bounded && !self.ended && self.row.position == self.position
    }
}

/// What an idle lineage may raise its watermark to: the lowest of the others that are live and not idle; when all are
/// idle the highest, since then nobody is waited for.
async fn lowest_of_others(ports: &Ports, mine: &str) -> Result<Option<Watermark>, TaskError> {
    let rows = ports.insist(|| ports.rows.list(path::SOURCES)).await?;
    let mut others = Vec::new();
    for (_, row) in rows.iter().filter(|(key, _)| key != mine) {
        let row: SourceRow = task::decode(&row.body)?;
        if row.status == Status::Live {
            others.push((row.idle, row.watermark));
        }
    }
    let busy = others.iter().filter(|(idle, _)| !idle).map(|(_, w)| *w).min();
    Ok(busy.or_else(|| others.iter().map(|(_, w)| *w).max()))
}

/// Messages in their order, together in records of a bounded number and size.
fn bundles(messages: &[Message]) -> Vec<&[Message]> {
    let mut bundles = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (i, message) in messages.iter().enumerate() {
        let size = message.body.len() + MESSAGE_BYTES;
        if i > start && (i - start == BUNDLE || bytes + size > BUNDLE_BYTES) {
            bundles.push(&messages[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes += size;
    }
    if start < messages.len() {
        bundles.push(&messages[start..]);
    }
    bundles
}

/// Appends messages, those of one partition together; answers those that failed or whose fate is unclear.
async fn append(ports: &Ports, messages: Vec<Message>, groups: u16, partitions: u16) -> Result<Vec<Message>, PortError> {
    let mut by_partition: BTreeMap<u16, Vec<Message>> = BTreeMap::new();
    for message in messages {
        by_partition.entry(message.group.partition(groups, partitions)).or_default().push(message);
    }
    let mut left = Vec::new();
    for (partition, messages) in by_partition {
        let bundles = bundles(&messages);
        let records = bundles.iter().map(|b| Bytes::from(message::encode(b))).collect();
        match ports.log.append(partition, records).await {
            Ok(failed) => failed.into_iter().filter_map(|i| bundles.get(i)).for_each(|b| left.extend_from_slice(b)),
            Err(PortError::Unclear(_)) => left.extend(messages),
            Err(fatal) => return Err(fatal),
        }
    }
    if !left.is_empty() {
        ports.clock.sleep(10).await;
    }
    Ok(left)
}

/// Sends what was not staged; answers, in its order, what failed or whose fate is unclear.
async fn leave(ports: &Ports, job: &SourceJob, leaving: Vec<Replayable>) -> Result<Vec<Replayable>, PortError> {
    let messages = leaving.iter().filter_map(|r| if let Leaving::Message(m) = &r.what { Some(m.clone()) } else { None });
    let left = append(ports, messages.collect(), job.program.document.key_groups, job.partitions).await?;
    let mut failed: BTreeSet<usize> = BTreeSet::new();
    if !left.is_empty() {
        let left: BTreeSet<(&str, u16, u64)> = left.iter().map(|m| (m.edge.as_str(), m.group.0, m.number)).collect();
        let is_left = |r: &Replayable| matches!(&r.what, Leaving::Message(m) if left.contains(&(m.edge.as_str(), m.group.0, m.number)));
        failed.extend(leaving.iter().enumerate().filter(|(_, r)| is_left(r)).map(|(i, _)| i));
    }
    for (index, spec) in job.program.streams.iter().enumerate() {
        let (mut places, mut records) = (Vec::new(), Vec::new());
        for (i, replayable) in leaving.iter().enumerate() {
            if let Leaving::Record { sink, nth, row } = &replayable.what
                && *sink == index
            {
                places.push(i);
                records.push(row.record(&format!("{}/{}/{}/{}/{nth}", job.unique, spec.name, job.lineage, replayable.position)));
            }
        }
        if records.is_empty() {
            continue;
        }
        match ports.streams.put(&spec.stream, &records).await {
            Ok(refused) => failed.extend(refused.into_iter().filter_map(|i| places.get(i))),
            Err(PortError::Unclear(_)) => failed.extend(places),
            Err(fatal) => return Err(fatal),
        }
    }
    if !failed.is_empty() {
        ports.clock.sleep(10).await;
    }
    Ok(leaving.into_iter().enumerate().filter(|(i, _)| failed.contains(i)).map(|(_, r)| r).collect())
}

/// The wrong variant that throws staged bytes away and makes the messages again, with other borders.
#[cfg(feature = "ablation")]
fn computed_again(program: &Program, messages: Vec<Message>) -> Vec<Message> {
    use crate::operators::window::Group;
    use leat_compile::program::EdgeKind;
    use leat_runtime_core::wire::{Reader, Writer};
    let mut out = Vec::new();
    for message in messages {
        let edge = program.keyed.edges.iter().find(|e| e.name == message.edge);
        let Some(EdgeKind::Partial(spec)) = edge.map(|e| &e.kind) else { continue };
        let mut body = Reader::new(&message.body);
        let mut number = message.number;
        while let (false, Ok(group)) = (body.is_empty(), Group::read(&mut body.clone(), spec, message.group)) {
            drop(Group::read(&mut body, spec, message.group));
            let mut one = Writer::default();
            group.write(&mut one);
            out.push(Message { number, body: one.finish(), ..message.clone() });
            number += 1;
        }
    }
    out
}
