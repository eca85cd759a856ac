//! The task of a partition of the repartition stream: windows and ids by key, closed by the merged watermark.

mod output;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arrow::array::RecordBatch;
use bytes::Bytes;
use futures::future::LocalBoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use leat_compile::program::{EdgeKind, FilesSpec, Program};
use leat_runtime_core::ledger::Ledger;
use leat_runtime_core::mark::Mark;
use leat_runtime_core::merge::{Merge, Seen};
use leat_runtime_core::message;
use leat_runtime_core::path;
use leat_runtime_core::position::{Lineage, Offset};
use leat_runtime_core::row::{Fence, KeyedRow, OpenFile, Snapshot, Staged, Status};
use leat_runtime_core::rules::{Rule, Rules};
use leat_runtime_core::watermark::Watermark;

use self::output::{Done, write};
use super::looks::{Look, Looks};
use super::outlet::{Outlet, Outlets, outlets};
use super::ports::{PortError, Ports};
use super::task::{self, Base, Control, Exit, Settings, TaskError};
use crate::operators::files::write_batches;
use crate::operators::keyed::{KeyedChain, Output};
use crate::operators::memory::Share;
use crate::operators::stream;

/// The state is weighed when so many bytes of records have come to it.
const WEIGHED: usize = 1 << 20;

/// What a keyed task works on.
#[derive(Clone)]
pub struct KeyedJob {
    /// The compiled pipeline.
    pub program: Arc<Program>,
    /// Number of its job.
    pub job: u64,
    /// The partition.
    pub partition: u16,
    /// Partitions of the repartition stream.
    pub partitions: u16,
    /// Makes the names of files and objects the pipeline's own.
    pub unique: String,
    /// When the pipeline came into being, ms.
    pub born: i64,
}

enum Event {
    Read(Result<Vec<(Offset, Bytes)>, PortError>),
    Looked(Result<Arc<Look>, TaskError>),
    Cut(Result<Box<Done>, TaskError>),
    Sent(String, Result<(), TaskError>),
    SentTopic(usize, Outlet, Vec<String>, Result<(), TaskError>),
    Completed(OpenFile, Result<(), TaskError>),
    Removed,
    Tick,
}

/// A keyed task.
pub struct KeyedTask<C> {
    ports: Ports,
    control: Rc<C>,
    settings: Settings,
    job: KeyedJob,
    key: String,
    fence: Fence,
    row: KeyedRow,
    chain: KeyedChain,
    looks: Arc<Looks>,
    /// The next look of this task is one that begins behind this one.
    looked: u64,
    merge: Merge,
    position: Option<Offset>,
    /// Records that were read and not taken yet, since much waits for a cut.
    unread: VecDeque<(Offset, Bytes)>,
    roots_version: u64,
    /// The pipeline was draining at the last look, so no lineage that had no row then gets one under this job.
    looked_draining: bool,
    sent: BTreeSet<String>,
    acknowledged: BTreeSet<String>,
    busy_sends: BTreeSet<String>,
    /// Those that are not busy.
    outlets: Outlets,
    last_cut: i64,
    last_snapshot: i64,
    last_update: i64,
    since_roll: BTreeMap<String, i64>,
    /// Bytes staged for a file since the last one, by this owner.
    since_roll_bytes: BTreeMap<String, u64>,
    reading: bool,
    looking: bool,
    cutting: bool,
    changed: bool,
    /// The snapshot that the cut under way makes the base.
    snapshot: Option<Base>,
    /// Objects of this task that the base names.
    named: BTreeSet<String>,
    garbage: Vec<String>,
    behind: bool,
    /// The watermark that may be applied.
    goal: Watermark,
    share: Share,
    progress: Arc<Mutex<Progress>>,
}

/// What others may see of a running task.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// The watermark applied, ms.
    pub watermark: i64,
    /// Open windows.
    pub open: u64,
    /// Where rows went.
    pub ledger: Ledger,
    /// Nothing is left to do: everything read, cut and acknowledged.
    pub settled: bool,
    /// When settled, per lineage the cut up to which everything sent here was consumed; 0: not all of it. `None`: the
    /// lineages are not known.
    pub consumed: Option<BTreeMap<Lineage, u64>>,
    /// What cuts and snapshots cost it.
    pub held: task::Held,
}

impl<C: Control> KeyedTask<C> {
    /// Takes the partition's row and recovers its state.
    pub async fn start(
        ports: Ports,
        control: Rc<C>,
        settings: Settings,
        job: KeyedJob,
        session: &str,
        looks: Arc<Looks>,
        progress: Arc<Mutex<Progress>>,
    ) -> Result<Self, TaskError> {
        let key = path::keyed_row(job.partition);
        let (fence, row): (Fence, KeyedRow) = task::take(&ports, &key, job.job, session, settings.rules).await?;
        let chain = KeyedChain::new(&job.program, job.partition, job.partitions, settings.rules);
        let (now, share) = (ports.clock.now(), Share::new(&ports.memory));
        let doubt = Mark::Cut { job: job.job, cut: fence.cut, rows: u64::MAX };
        let outlets = outlets(&job.program, &job.program.keyed.nodes, &job.unique, &key, doubt, settings.rules);
        let mut task = Self {
            ports,
            control,
            settings,
            job,
            key,
            fence,
            chain,
            progress,
            // One that began before the row was taken may know less than the owner before did.
            looked: if settings.rules.hold(Rule::Fresh) { looks.begun() } else { 0 },
            looks,
            merge: Merge::default(),
            position: None,
            unread: VecDeque::new(),
            roots_version: row.roots_version,
            looked_draining: false,
            sent: BTreeSet::new(),
            acknowledged: BTreeSet::new(),
            busy_sends: BTreeSet::new(),
            outlets,
            last_cut: now,
            last_snapshot: now,
            last_update: now,
            since_roll: BTreeMap::new(),
            since_roll_bytes: BTreeMap::new(),
            reading: false,
            looking: false,
            cutting: false,
            changed: false,
            snapshot: None,
            named: BTreeSet::new(),
            garbage: Vec::new(),
            behind: false,
            goal: Watermark::MIN,
            share,
            row,
        };
        task.recover().await?;
        Ok(task)
    }

    /// Brings the state to the row's cut. Rows that come out on the way were staged before, so they are dropped.
    async fn recover(&mut self) -> Result<(), TaskError> {
        let own: Vec<Snapshot> = self.row.snapshot.iter().cloned().collect();
        for (snapshot, mine) in self.row.inherits.iter().map(|s| (s, false)).chain(own.iter().map(|s| (s, true))) {
            for object in &snapshot.objects {
                let bytes = self.ports.insist(|| self.ports.objects.get(object)).await?;
                let runs = self.chain.restore(&bytes, mine)?;
                let (chain, share) = (&mut self.chain, &mut self.share);
                task::load(&self.ports, &runs, |run, bytes| {
                    chain.load(run, bytes)?;
                    share.weigh(chain, 0);
                    Ok(())
                })
                .await?;
                self.named.extend(runs.into_iter().filter(|run| run.own).map(|run| run.object));
            }
        }
        let mut at = self.row.snapshot.as_ref().and_then(|s| s.position);
        while at < self.row.position {
            let records = self.ports.insist(|| self.ports.log.read(self.job.partition, at)).await?;
            if records.first().is_some_and(|(o, _)| Some(*o) > self.row.position) {
                return Err(TaskError::Trimmed { what: format!("the repartition stream, partition {}", self.job.partition), from: at });
            }
            if records.is_empty() {
                self.ports.clock.sleep(10).await;
            }
            for (offset, record) in records.into_iter().filter(|(o, _)| Some(*o) <= self.row.position) {
                self.chain.take(message::decode(&record)?)?;
                self.chain.drop_outputs();
                at = Some(offset);
            }
            self.share.weigh(&mut self.chain, 0);
        }
        self.position = self.row.position;
        self.chain.resume(self.row.watermark)?;
        self.chain.ledger.clone_from(&self.row.ledger);
        for (index, outlet) in &mut self.outlets {
            let sink = &self.job.program.streams[*index].name;
            let doubtful = self.row.unsent.iter().any(|staged| staged.to == *sink);
            outlet.establish(&self.ports, doubtful, &|| task::draining(&*self.control, self.job.job)).await?;
        }
        Ok(())
    }

    fn rules(&self) -> Rules {
        self.settings.rules
    }

    /// Works until the job drains or somebody else takes the row.
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
            if let Some(broken) = self.chain.broken.take() {
                return Err(TaskError::Defect(broken));
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

    fn weigh(&mut self) {
        let unread = self.unread.iter().map(|(_, record)| record.len()).sum();
        self.share.weigh(&mut self.chain, unread);
    }

    fn draining(&self) -> bool {
        task::draining(&*self.control, self.job.job)
    }

    fn outstanding(&self) -> bool {
        self.row.unsent.iter().any(|s| !self.acknowledged.contains(&s.object))
            || self.row.complete.iter().any(|f| !self.acknowledged.contains(&f.destination))
    }

    fn decide(&mut self, busy: &mut FuturesUnordered<LocalBoxFuture<'static, Event>>) -> Result<Option<Exit>, TaskError> {
        if self.fence.drained {
            return Ok(Some(Exit::Drained));
        }
        let now = self.ports.clock.now();
        let draining = self.draining();
        self.send(busy);
        self.clean(busy);
        self.take_unread()?;
        self.approach()?;
        if !self.reading && self.unread.is_empty() {
            self.reading = true;
            let (log, partition, after) = (Arc::clone(&self.ports.log), self.job.partition, self.position);
            let (clock, pause) = (Arc::clone(&self.ports.clock), if self.behind { 0 } else { self.settings.poll_interval });
            busy.push(Box::pin(async move {
                if pause > 0 {
                    clock.sleep(pause).await;
                }
                Event::Read(log.read(partition, after).await)
            }));
        }
        if !self.looking {
            self.looking = true;
            let (ports, looks, behind, settings) = (self.ports.clone(), Arc::clone(&self.looks), self.looked, self.settings);
            let pause = looks.pause(settings.poll_interval);
            busy.push(Box::pin(async move { Event::Looked(looks.behind(behind, pause, &ports, settings.rules).await) }));
        }
        let update_every = self
            .job
            .program
            .keyed
            .edges
            .iter()
            .filter_map(|e| if let EdgeKind::Partial(s) = &e.kind { s.on_update } else { None })
            .map(|d| d.millis())
            .min();
        if update_every.is_some_and(|every| now - self.last_update >= every || draining) {
            self.last_update = now;
            self.chain.emit_updates()?;
        }
        // Lineages that are ahead begin or cease to wait with the cut that says so.
        self.changed |= self.chain.has_outputs() || (!self.cutting && self.share.pressed() != self.row.pressed);
        let due = now - self.last_cut >= self.settings.cut_interval || self.closing() || self.chain.crowded(self.settings.crowded_rows);
        if now - self.last_snapshot >= self.settings.snapshot_interval
            && self.row.snapshot.as_ref().and_then(|s| s.position) != self.position
        {
            // Rows that wait for a cut are no part of it, so it is taken right when a cut takes them.
            if !self.cutting && !draining {
                busy.push(self.cut(now, false, true)?);
                return Ok(None);
            }
        }
        if !self.cutting {
            if draining && self.consumed() && !self.changed && !self.outstanding() && self.rows_for_files() == 0 {
                busy.push(self.cut(now, true, false)?);
            } else if due && (self.changed || !self.acknowledged.is_empty() || self.roll_due(now) || draining) {
                busy.push(self.cut(now, false, false)?);
            }
        }
        let (rows_for_files, outstanding) = (self.rows_for_files(), self.outstanding());
        let settled = self.chain.watermark >= self.goal
            && !self.changed
            && self.unread.is_empty()
            && !self.cutting
            && !outstanding
            && self.acknowledged.is_empty()
            && rows_for_files == 0;
        let view = self.merge.view();
        let seen = |(lineage, seen): (&Lineage, &Seen)| (lineage.clone(), if self.merge.consumed(lineage) { seen.cut } else { 0 });
        let consumed = (settled && !view.is_empty()).then(|| view.iter().map(seen).collect());
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.watermark = self.chain.watermark.0;
        progress.open = self.chain.open().0;
        progress.settled = settled;
        progress.consumed = consumed;
        Ok(None)
    }

    /// Whether everything that drained lineages have assigned was consumed: key groups can move only then.
    fn consumed(&self) -> bool {
        self.looked_draining && self.merge.view().iter().all(|(lineage, seen)| seen.drained && self.merge.consumed(lineage))
    }

    fn roll_due(&self, now: i64) -> bool {
        let unsent = &self.row.unsent;
        self.job.program.files.iter().any(|f| {
            unsent.iter().any(|s| s.to == f.name && !self.covered(&s.object))
                && (self.full(f) || self.since_roll.get(&f.name).is_none_or(|since| now - since >= f.roll_interval.millis()))
        })
    }

    /// Whether all input is consumed and every window closed: nothing more comes that a cut could wait for.
    fn closing(&self) -> bool {
        let sealed = self.control.pipeline().seal.as_ref().and_then(|s| s.watermark).is_some_and(|w| self.chain.watermark >= w);
        sealed || self.chain.watermark == Watermark::MAX
    }

    /// Whether enough rows wait for a file.
    fn full(&self, file: &FilesSpec) -> bool {
        self.since_roll_bytes.get(&file.name).is_some_and(|bytes| *bytes >= file.roll_size.bytes())
    }

    /// Whether a file that is being completed contains a staged object.
    fn covered(&self, object: &str) -> bool {
        self.row.complete.iter().any(|f| f.covers.iter().any(|c| c == object))
    }

    fn rows_for_files(&self) -> u64 {
        let files: BTreeSet<&str> = self.job.program.files.iter().map(|f| f.name.as_str()).collect();
        self.row.unsent.iter().filter(|s| files.contains(s.to.as_str()) && !self.acknowledged.contains(&s.object)).map(|s| s.rows).sum()
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

    fn apply(&mut self, event: Event) -> Result<(), TaskError> {
        match event {
            Event::Tick | Event::Removed => {}
            Event::Read(records) => {
                self.reading = false;
                let records = match records {
                    Err(PortError::Unclear(why)) => {
                        self.ports.unclear.note(&why);
                        return Ok(());
                    }
                    other => other?,
                };
                self.behind = !records.is_empty();
                self.unread.extend(records);
                self.take_unread()?;
                self.advance()?;
            }
            Event::Looked(look) => {
                self.looking = false;
                self.seen(&*look?)?;
            }
            Event::Cut(done) => {
                let done = *done?;
                self.cutting = false;
                self.last_cut = self.ports.clock.now();
                self.acknowledged
                    .retain(|a| done.row.unsent.iter().any(|s| s.object == *a) || done.row.complete.iter().any(|f| f.destination == *a));
                self.fence = done.fence;
                let before = std::mem::replace(&mut self.row, done.row);
                self.progress.lock().unwrap_or_else(PoisonError::into_inner).ledger.clone_from(&self.row.ledger);
                self.garbage.extend(task::unneeded(&before.objects(), &self.row.objects()));
                if let Some(base) = self.snapshot.take() {
                    self.chain.stored(&base.named);
                    self.garbage.extend(task::replaced(&mut self.named, base.named));
                }
            }
            Event::Sent(object, done) => {
                done?;
                self.sent.insert(object.clone());
                self.acknowledged.insert(object);
            }
            Event::SentTopic(index, outlet, objects, done) => {
                self.outlets.insert(index, outlet);
                match done {
                    // The next cut tells whether it is still this task that has them.
                    Err(TaskError::Port(PortError::Unclear(_))) => self.changed = true,
                    done => {
                        done?;
                        self.sent.extend(objects.iter().cloned());
                        self.acknowledged.extend(objects);
                    }
                }
            }
            Event::Completed(file, done) => {
                done?;
                self.acknowledged.insert(file.destination);
                // Rows of one staged object may lie in several folders: it is sent when all their files are there.
                let open = self.row.complete.iter().filter(|f| !self.acknowledged.contains(&f.destination));
                let needed: BTreeSet<&String> = open.flat_map(|f| &f.covers).collect();
                let sent: Vec<String> = file.covers.into_iter().filter(|c| !needed.contains(c)).collect();
                self.acknowledged.extend(sent);
            }
        }
        Ok(())
    }

    /// Takes what was read, record by record, until much waits for a cut.
    fn take_unread(&mut self) -> Result<(), TaskError> {
        let mut taken = 0;
        while let Some((offset, record)) = self.unread.pop_front_if(|_| !self.chain.crowded(self.settings.crowded_rows)) {
            self.chain.take(message::decode(&record)?)?;
            self.position = Some(offset);
            self.changed = true;
            taken += record.len();
            // As often as it may have grown by much.
            if taken >= WEIGHED {
                taken = 0;
                self.weigh();
            }
        }
        Ok(())
    }

    fn seen(&mut self, look: &Look) -> Result<(), TaskError> {
        self.looked = look.number;
        let Some((_, pipeline)) = &look.pipeline else { return Ok(()) };
        self.looked_draining = pipeline.draining_for.is_some();
        let join = self.rules().hold(Rule::Join);
        // A newcomer: hold the watermark until its row says where it starts.
        let hold = !pipeline.joining.is_empty() && join;
        self.merge.see(if hold { Arc::default() } else { Arc::clone(&look.view) });
        if pipeline.roots_version > self.roots_version {
            self.roots_version = pipeline.roots_version;
            self.changed = true;
        }
        self.advance()?;
        if !self.rules().hold(Rule::Retain) {
            let retired = look.sources.iter().filter(|(_, (_, row))| row.status == Status::Retired);
            retired.for_each(|(lineage, _)| self.chain.forget(lineage));
        }
        Ok(())
    }

    fn advance(&mut self) -> Result<(), TaskError> {
        let chain = &self.chain;
        let to = self.merge.advance(&chain.cursors, &|group| chain.mine(group));
        // Nothing is known while a newcomer is awaited: what was not applied yet then waits for it too (rule `join`).
        self.goal = to.unwrap_or(self.chain.watermark);
        self.approach()
    }

    /// Applies the watermark, step by step, until much waits for a cut.
    fn approach(&mut self) -> Result<(), TaskError> {
        while self.chain.watermark < self.goal && !self.chain.crowded(self.settings.crowded_rows) {
            let next = self.chain.next(self.goal);
            self.chain.advance(if next > self.chain.watermark { next } else { self.goal })?;
            self.changed = true;
        }
        Ok(())
    }

    fn object(&self, kind: path::Kind, cut: u64, index: usize) -> String {
        let generation = self.rules().hold(Rule::Names).then_some(self.fence.generation);
        path::object(kind, &self.job.unique, &self.key, cut, generation, index)
    }

    /// Starts a cut of everything taken so far.
    fn cut(&mut self, now: i64, drained: bool, with_snapshot: bool) -> Result<LocalBoxFuture<'static, Event>, TaskError> {
        let began = Instant::now();
        self.cutting = true;
        self.changed = false;
        let number = self.fence.cut + 1;
        let mut row = self.row.clone();
        row.position = self.position;
        row.watermark = self.chain.watermark;
        row.roots_version = self.roots_version;
        row.ledger = self.chain.ledger.clone();
        (row.open, row.dirty) = self.chain.open();
        row.pressed = self.share.pressed();
        row.unsent.retain(|s| !self.acknowledged.contains(&s.object));
        row.complete.retain(|f| !self.acknowledged.contains(&f.destination));
        if !self.rules().hold(Rule::Unsent) {
            row.unsent.clear();
        }
        let mut objects: Vec<(String, Bytes)> = Vec::new();
        for (nth, (node, output)) in self.chain.take_outputs().into_iter().enumerate() {
            let node = &self.job.program.keyed.nodes[node];
            let (rows, bytes) = match &output {
                Output::Items(items) => (items.len(), serde_json::to_vec(items).map_err(|e| TaskError::Encode(e.to_string()))?),
                Output::Records(records) => (records.len(), stream::encode(records)),
                Output::Rows(batches) => {
                    (batches.iter().map(RecordBatch::num_rows).sum(), write_batches(batches).map_err(|e| TaskError::Encode(e.to_string()))?)
                }
            };
            if let Output::Rows(_) = output {
                *self.since_roll_bytes.entry(node.name.clone()).or_default() += bytes.len() as u64;
            }
            let object = self.object(path::Kind::Staged, number, nth);
            row.unsent.push(Staged { to: node.name.clone(), object: object.clone(), cut: number, rows: rows as u64 });
            objects.push((object, bytes.into()));
        }
        if with_snapshot || (drained && self.rules().hold(Rule::DSnap)) {
            let head = self.object(path::Kind::Snapshot, number, 0);
            let generation = self.rules().hold(Rule::Names).then_some(self.fence.generation);
            let (pipeline, key, mut runs) = (&self.job.unique, &self.key, 0);
            let saved = self.chain.snapshot(self.settings.run_ids, &mut || {
                runs += 1;
                path::object(path::Kind::Ids, pipeline, key, number, generation, runs)
            })?;
            let base = Base::new(&head, self.position, &saved);
            row.snapshot = Some(base.snapshot.clone());
            row.inherits.clear();
            self.snapshot = Some(base);
            self.last_snapshot = now;
            objects.extend(task::objects_of(&head, saved));
        }
        let rolls = self.rolls(now, number, &row, drained || self.draining());
        let after = Fence { cut: number, drained, ..self.fence.clone() };
        let (ports, key, before, rules) = (self.ports.clone(), self.key.clone(), self.fence.clone(), self.rules());
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).held.note(began);
        Ok(Box::pin(async move { Event::Cut(write(&ports, &key, &before, after, row, objects, rolls, rules).await.map(Box::new)) }))
    }
}
