//! What leaves a keyed task: staged objects and files with the cut; items, records of streams and of topics after it.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{ArrayRef, RecordBatch};
use arrow::error::ArrowError;
use bytes::Bytes;
use futures::future::LocalBoxFuture;
use futures::stream::FuturesUnordered;
use leat_compile::program::{FilesSpec, Op};
use leat_runtime_core::mark::Mark;
use leat_runtime_core::path;
use leat_runtime_core::row::{Fence, KeyedRow, Staged};
use leat_runtime_core::rules::Rules;
use leat_runtime_core::wire::Damaged;

use super::{Event, KeyedTask};
use crate::engine::file::{self, FileWriter};
use crate::engine::outlet::{Marked, Outlet};
use crate::engine::ports::{Guard, PortError, Ports};
use crate::engine::task::{self, Control, TaskError, Tries};
use crate::operators::files::{by_folder, read_batches};
use crate::operators::source::{is_time, millis};
use crate::operators::stream;
use crate::output::Item;

/// Rows and bytes of a transaction, about.
const TRANSACTION: (usize, usize) = (32_000, 16 << 20);
/// Cuts whose rows are sent before any of them is acknowledged.
const CUTS: usize = 32;

/// A cut that was made.
pub(super) struct Done {
    pub fence: Fence,
    pub row: KeyedRow,
}

/// Files to make of staged rows, one for each folder.
pub(super) struct Roll {
    pub spec: FilesSpec,
    /// Their name in the folder.
    pub name: String,
    /// Makes the names of objects the pipeline's own.
    pub pipeline: String,
    pub now: i64,
    /// The staged objects.
    pub covers: Vec<String>,
}

impl<C: Control> KeyedTask<C> {
    /// Sends what cuts cover; every pending send is compared with what the sink already has.
    pub(super) fn send(&mut self, busy: &mut FuturesUnordered<LocalBoxFuture<'static, Event>>) {
        for staged in &self.row.unsent {
            let program = &self.job.program;
            let table = program.tables.iter().find(|t| t.name == staged.to).map(|t| t.table.clone());
            let stream = program.streams.iter().find(|s| s.name == staged.to && !s.topic).map(|s| s.stream.clone());
            let sends = table.is_some() || stream.is_some();
            if !sends || self.sent.contains(&staged.object) || !self.busy_sends.insert(staged.object.clone()) {
                continue;
            }
            let (ports, staged, born) = (self.ports.clone(), staged.clone(), self.job.born);
            let id = format!("{}/{}/{}/{}/{}", self.job.unique, staged.to, self.key, self.job.job, staged.cut);
            busy.push(Box::pin(async move {
                let sent = match (table, stream) {
                    (Some(table), _) => send_items(&ports, &table, &staged, born).await,
                    (None, stream) => send_records(&ports, &stream.unwrap_or_default(), &staged, &id).await,
                };
                Event::Sent(staged.object, sent)
            }));
        }
        self.send_to_topics(busy);
        for file in &self.row.complete {
            if self.busy_sends.insert(file.destination.clone()) {
                let (ports, file, generation) = (self.ports.clone(), file.clone(), self.fence.generation);
                busy.push(Box::pin(async move {
                    let done = file::complete(&ports, &file, generation).await;
                    Event::Completed(file, done)
                }));
            }
        }
    }

    /// Starts a transaction in each topic that none is under way in.
    fn send_to_topics(&mut self, busy: &mut FuturesUnordered<LocalBoxFuture<'static, Event>>) {
        for (index, sink) in self.job.program.streams.iter().enumerate().filter(|(_, sink)| sink.topic) {
            let Some(mut outlet) = self.outlets.remove(&index) else { continue };
            let waiting = self.row.unsent.iter().filter(|s| s.to == sink.name && !self.sent.contains(&s.object));
            let first: Vec<Staged> = waiting.take(CUTS).cloned().collect();
            if outlet.waits(&self.ports) || (first.is_empty() && !outlet.is_old(&self.ports)) {
                self.outlets.insert(index, outlet);
                continue;
            }
            let (ports, job) = (self.ports.clone(), self.job.job);
            busy.push(Box::pin(async move {
                let done = match first.is_empty() {
                    true => outlet.keep(&ports).await.map_err(TaskError::from),
                    false => send_marked(&ports, &mut outlet, job, &first).await,
                };
                Event::SentTopic(index, outlet, first.into_iter().map(|staged| staged.object).collect(), done)
            }));
        }
    }

    /// Files to make of staged rows whose time has come.
    pub(super) fn rolls(&mut self, now: i64, number: u64, row: &KeyedRow, last: bool) -> Vec<Roll> {
        let mut rolls = Vec::new();
        let closing = self.closing();
        let nodes = self.job.program.keyed.nodes.iter().filter_map(|n| if let Op::Files(i) = n.op { Some(i) } else { None });
        for (nth, index) in nodes.collect::<BTreeSet<_>>().into_iter().enumerate() {
            let spec = &self.job.program.files[index];
            let waiting: Vec<&Staged> =
                self.row.unsent.iter().filter(|s| s.to == spec.name && !self.covered(&s.object) && row.unsent.contains(s)).collect();
            if waiting.is_empty() {
                continue;
            }
            let since = *self.since_roll.entry(spec.name.clone()).or_insert(now);
            if !(last || closing || self.full(spec) || now - since >= spec.roll_interval.millis()) {
                continue;
            }
            self.since_roll.remove(&spec.name);
            self.since_roll_bytes.remove(&spec.name);
            let name = path::file(&self.job.unique, &self.key, number, self.fence.generation, nth, file::extension(spec.format));
            let pipeline = self.job.unique.clone();
            rolls.push(Roll { spec: spec.clone(), name, pipeline, now, covers: waiting.iter().map(|s| s.object.clone()).collect() });
        }
        rolls
    }
}

impl Roll {
    /// The files, with their rows in.
    async fn files(&self, ports: &Ports) -> Result<Vec<FileWriter>, TaskError> {
        let failed = |e: ArrowError| TaskError::Encode(e.to_string());
        let mut folders: BTreeMap<String, Vec<RecordBatch>> = BTreeMap::new();
        for object in &self.covers {
            for rows in read_batches(&ports.insist(|| ports.objects.get(object)).await?)? {
                let column = self.spec.time_column.map(|i| time_column(&rows, i)).transpose()?;
                let partition = self.spec.partition.filter(|_| column.is_some());
                let time = |row| column.and_then(|c| millis(c, row)).unwrap_or_default();
                for (folder, rows) in by_folder(&rows, time, partition).map_err(failed)? {
                    folders.entry(folder).or_default().push(rows);
                }
            }
        }
        let mut files = Vec::new();
        for (folder, batches) in folders {
            let mut writer = FileWriter::new(&self.spec, &folder, &self.name, self.now, ports.files.smallest_part())?;
            writer.file.covers.clone_from(&self.covers);
            writer.encode(&batches)?;
            files.push(writer);
        }
        Ok(files)
    }
}

/// The column of event times; staged rows that have none there are those of another job.
fn time_column(rows: &RecordBatch, index: usize) -> Result<&ArrayRef, Damaged> {
    let column = rows.columns().get(index).filter(|c| is_time(c.data_type()));
    column.ok_or(Damaged("staged rows have no event time where their sink looks for it"))
}

/// Sends staged rows to a topic, in transactions.
async fn send_marked(ports: &Ports, outlet: &mut Outlet, job: u64, staged: &[Staged]) -> Result<(), TaskError> {
    let (mut together, mut bytes): (Vec<Marked>, usize) = (Vec::new(), 0);
    for one in staged {
        let object = ports.insist(|| ports.objects.get(&one.object)).await?;
        for (i, row) in stream::decode(&object)?.into_iter().enumerate() {
            let mark = Mark::Cut { job, cut: one.cut, rows: i as u64 + 1 };
            bytes += row.json.len();
            together.push((mark, row.topic_record()));
            if together.len() >= TRANSACTION.0 || bytes >= TRANSACTION.1 {
                outlet.send(ports, &together).await?;
                (together, bytes) = (Vec::new(), 0);
            }
        }
    }
    Ok(outlet.send(ports, &together).await?)
}

/// Writes staged items.
async fn send_items(ports: &Ports, table: &str, staged: &Staged, born: i64) -> Result<(), TaskError> {
    let bytes = ports.insist(|| ports.objects.get(&staged.object)).await?;
    let items: Vec<Item> = task::decode(&bytes)?;
    let guard = Guard { born, cut: staged.cut };
    until_accepted(ports, items, async |left| ports.insist(|| ports.tables.put(table, left, guard)).await).await
}

/// Sends staged rows until the stream has accepted all of them; `id` and its number identify a row.
async fn send_records(ports: &Ports, stream: &str, staged: &Staged, id: &str) -> Result<(), TaskError> {
    let bytes = ports.insist(|| ports.objects.get(&staged.object)).await?;
    let records = stream::decode(&bytes)?.iter().enumerate().map(|(i, row)| row.record(&format!("{id}/{i}"))).collect();
    until_accepted(ports, records, async |left| ports.insist(|| ports.streams.put(stream, left)).await).await
}

/// Puts all of them, and again those that `put` says were not accepted.
async fn until_accepted<T: Clone>(
    ports: &Ports,
    mut left: Vec<T>,
    put: impl AsyncFn(&[T]) -> Result<Vec<usize>, PortError>,
) -> Result<(), TaskError> {
    let mut tries = Tries::default();
    while !left.is_empty() {
        let pause = tries.with(left.len());
        let failed = put(&left).await?;
        left = failed.into_iter().filter_map(|i| left.get(i).cloned()).collect();
        tries.left(left.len());
        if !left.is_empty() {
            ports.clock.sleep(pause).await;
        }
    }
    Ok(())
}

/// Writes down what a cut names, then the cut.
#[expect(clippy::too_many_arguments, reason = "it is the tail of one function, moved out so that it owns what it writes")]
pub(super) async fn write(
    ports: &Ports,
    key: &str,
    before: &Fence,
    after: Fence,
    mut row: KeyedRow,
    objects: Vec<(String, Bytes)>,
    rolls: Vec<Roll>,
    rules: Rules,
) -> Result<Done, TaskError> {
    for (object, bytes) in &objects {
        ports.insist(|| ports.objects.put(object, bytes.clone())).await?;
    }
    let mut nth = 0;
    for roll in rolls {
        for mut writer in roll.files(ports).await? {
            let part = writer.part();
            file::upload(ports, &mut writer.file, part).await?;
            if let Some(tail) = writer.tail()? {
                let object = path::object(path::Kind::Tail, &roll.pipeline, key, after.cut, Some(after.generation), nth);
                let tail = Bytes::from(tail);
                ports.insist(|| ports.objects.put(&object, tail.clone())).await?;
                writer.file.tail = Some(object);
                nth += 1;
            }
            row.complete.push(writer.file);
        }
    }
    let fence = task::write_cut(ports, key, before, after, task::encode(&row), rules).await?;
    Ok(Done { fence, row })
}
