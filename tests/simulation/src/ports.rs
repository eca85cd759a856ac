//! The ports of the engine, over the simulated world.

use std::any::Any;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::LocalBoxFuture;
use leat_runtime::batch::SourceBatch;
use leat_runtime::engine::ports::{
    Begun, Call, Clock, Completed, Files, Guard, Log, Objects, Place, PortError, Ports, Read, Rows, Shard, Source, StoredRow, Streams,
    Tables, Topics, Transactions,
};
use leat_runtime::engine::task::Control;
use leat_runtime::output::{Attribute, Item, StreamRecord, TopicRecord};
use leat_runtime_core::begin::Known;
use leat_runtime_core::position::{Lineage, Offset};
use leat_runtime_core::row::{Expect, Fence, Part, PipelineRow, Status};
use leat_runtime_core::watermark::Watermark;

use crate::world::{Upload, World};

/// The world as one process sees it.
#[derive(Clone)]
pub struct Sim {
    world: Arc<Mutex<World>>,
    process: u64,
    /// The pipeline's row as this process last saw it: old, as a worker's knowledge is.
    known: Arc<Mutex<Option<Arc<PipelineRow>>>>,
}

impl Sim {
    /// The world as `process` sees it.
    pub fn new(world: &Arc<Mutex<World>>, process: u64) -> Arc<Self> {
        Arc::new(Self { world: Arc::clone(world), process, known: Arc::default() })
    }

    /// All ports of the process.
    pub fn ports(self: &Arc<Self>) -> Ports {
        Ports {
            rows: Arc::clone(self) as _,
            objects: Arc::clone(self) as _,
            files: Arc::clone(self) as _,
            log: Arc::clone(self) as _,
            source: Arc::clone(self) as _,
            tables: Arc::clone(self) as _,
            streams: Arc::clone(self) as _,
            topics: Arc::clone(self) as _,
            clock: Arc::clone(self) as _,
            unclear: Arc::default(),
            memory: Arc::clone(&self.world.lock().unwrap_or_else(PoisonError::into_inner).memory),
        }
    }

    fn call<T: Send + 'static>(&self, mut apply: impl FnMut(&mut World) -> Result<T, PortError> + Send + 'static) -> Call<'static, T> {
        let apply = Box::new(move |world: &mut World| apply(world).map(|v| Box::new(v) as Box<dyn Any + Send>));
        Box::pin(SimCall { sim: self.clone(), apply: Some(apply), due: None, id: None, answer: PhantomData })
    }
}

type Apply = Box<dyn FnMut(&mut World) -> Result<Box<dyn Any + Send>, PortError> + Send>;

struct SimCall<T> {
    sim: Sim,
    apply: Option<Apply>,
    due: Option<i64>,
    id: Option<u64>,
    answer: PhantomData<fn() -> T>,
}

impl<T: 'static> Future for SimCall<T> {
    type Output = Result<T, PortError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let shared = Arc::clone(&self.sim.world);
        let mut world = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(id) = self.id else {
            let (process, apply, due) = (self.sim.process, self.apply.take(), self.due);
            self.id = Some(world.register(process, apply, due, context.waker().clone()));
            return Poll::Pending;
        };
        let answer = world.calls.get_mut(&id).and_then(|c| c.answer.take());
        match answer {
            None => Poll::Pending,
            Some(answer) => {
                world.calls.remove(&id);
                Poll::Ready(answer.and_then(|v| v.downcast::<T>().map(|v| *v).map_err(|_| PortError::Fatal("another type".to_owned()))))
            }
        }
    }
}

impl<T> Drop for SimCall<T> {
    fn drop(&mut self) {
        // A call that nobody waits for any more may still arrive: killing a process decides about that.
        if let Some(id) = self.id
            && let Ok(mut world) = self.sim.world.try_lock()
            && world.calls.get(&id).is_some_and(|c| c.due.is_some())
        {
            world.calls.remove(&id);
        }
    }
}

impl Clock for Sim {
    fn now(&self) -> i64 {
        self.world.lock().unwrap_or_else(PoisonError::into_inner).now
    }

    fn sleep(&self, millis: u64) -> LocalBoxFuture<'_, ()> {
        let due = self.now() + millis as i64;
        let call: SimCall<()> = SimCall { sim: self.clone(), apply: None, due: Some(due), id: None, answer: PhantomData };
        Box::pin(async move { drop(call.await) })
    }
}

impl Rows for Sim {
    fn get<'a>(&'a self, key: &'a str) -> Call<'a, Option<StoredRow>> {
        let key = key.to_owned();
        self.call(move |w| Ok(w.rows.get(&key).cloned()))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> Call<'a, Vec<(String, StoredRow)>> {
        let prefix = prefix.to_owned();
        self.call(move |w| Ok(w.rows.iter().filter(|(k, _)| k.starts_with(&prefix)).map(|(k, r)| (k.clone(), r.clone())).collect()))
    }

    fn put<'a>(&'a self, key: &'a str, row: StoredRow, expect: Expect) -> Call<'a, bool> {
        let key = key.to_owned();
        self.call(move |w| Ok(w.put_row(&key, row.clone(), &expect)))
    }

    fn delete<'a>(&'a self, key: &'a str, expect: Fence) -> Call<'a, bool> {
        let key = key.to_owned();
        self.call(move |w| {
            let found = w.rows.get(&key).is_some_and(|row| row.fence == expect);
            if found {
                w.rows.remove(&key);
            }
            Ok(found)
        })
    }
}

impl Objects for Sim {
    fn put<'a>(&'a self, name: &'a str, bytes: Bytes) -> Call<'a, ()> {
        let name = name.to_owned();
        self.call(move |w| {
            w.put_object(&name, bytes.clone());
            Ok(())
        })
    }

    fn get<'a>(&'a self, name: &'a str) -> Call<'a, Bytes> {
        let name = name.to_owned();
        self.call(move |w| w.objects.get(&name).cloned().ok_or_else(|| PortError::Fatal(format!("the object {name} is gone"))))
    }

    fn delete<'a>(&'a self, name: &'a str) -> Call<'a, ()> {
        let name = name.to_owned();
        self.call(move |w| {
            w.objects.remove(&name);
            Ok(())
        })
    }
}

impl Files for Sim {
    /// Every fourth process holds small output back until there is enough for a part.
    fn smallest_part(&self) -> usize {
        if self.process % 4 == 3 { 300 } else { 0 }
    }

    fn create<'a>(&'a self, _destination: &'a str) -> Call<'a, String> {
        self.call(move |w| {
            let id = format!("upload-{}", w.uploads.len() + w.files.len() * 1000 + w.random.below(1_000_000) * 1_000_000);
            w.uploads.insert(id.clone(), Upload::default());
            Ok(id)
        })
    }

    fn part<'a>(&'a self, destination: &'a str, upload: &'a str, number: u32, bytes: Bytes) -> Call<'a, Option<String>> {
        let (destination, upload) = (destination.to_owned(), upload.to_owned());
        self.call(move |w| {
            let tag = format!("{:x}", leat_runtime_core::key::hash(&bytes));
            match w.uploads.get_mut(&upload) {
                None if w.files.contains_key(&destination) => Ok(None),
                None => Err(PortError::Fatal(format!("{upload} is gone"))),
                Some(found) => {
                    found.parts.insert(number, (tag.clone(), bytes.clone()));
                    Ok(Some(tag))
                }
            }
        })
    }

    fn put<'a>(&'a self, destination: &'a str, bytes: Bytes) -> Call<'a, ()> {
        let destination = destination.to_owned();
        self.call(move |w| {
            w.files.entry(destination.clone()).or_insert_with(|| vec![bytes.clone()]);
            Ok(())
        })
    }

    fn complete<'a>(&'a self, destination: &'a str, upload: &'a str, parts: &'a [Part]) -> Call<'a, Completed> {
        let (destination, upload, parts) = (destination.to_owned(), upload.to_owned(), parts.to_vec());
        self.call(move |w| {
            if w.files.contains_key(&destination) {
                return Ok(Completed::Done);
            }
            let Some(found) = w.uploads.get(&upload) else { return Ok(Completed::WrongPart) };
            let mut bytes = Vec::new();
            for part in &parts {
                match found.parts.get(&part.number) {
                    Some((tag, data)) if *tag == part.tag => bytes.push(data.clone()),
                    _ => return Ok(Completed::WrongPart),
                }
            }
            w.uploads.remove(&upload);
            w.files.insert(destination.clone(), bytes);
            Ok(Completed::Done)
        })
    }
}

impl Log for Sim {
    fn append<'a>(&'a self, partition: u16, records: Vec<Bytes>) -> Call<'a, Vec<usize>> {
        self.call(move |w| {
            let mut failed = Vec::new();
            for (i, record) in records.iter().enumerate() {
                let fails = 3.0 * w.faults;
                if w.random.chance(fails) { failed.push(i) } else { w.log[usize::from(partition)].push(record.clone()) }
            }
            Ok(failed)
        })
    }

    fn read<'a>(&'a self, partition: u16, after: Option<Offset>) -> Call<'a, Vec<(Offset, Bytes)>> {
        let after = after.and_then(Offset::number).unwrap_or_default() as usize;
        self.call(move |w| {
            let take = 1 + w.random.below(8);
            let log = &w.log[usize::from(partition)];
            Ok(log.iter().enumerate().skip(after).take(take).map(|(i, r)| (Offset::new(i as u64 + 1), r.clone())).collect())
        })
    }
}

impl Source for Sim {
    fn shards<'a>(&'a self, _source: &'a str) -> Call<'a, Vec<Shard>> {
        self.call(move |w| {
            let lineage = |i: &usize| w.shards[*i].lineage.clone();
            Ok(w.shards
                .iter()
                .map(|s| Shard {
                    lineage: s.lineage.clone(),
                    parents: s.parents.iter().map(lineage).collect(),
                    range: s.range,
                    closed: s.closed,
                })
                .collect())
        })
    }

    fn standing<'a>(&'a self, _source: &'a str, _application: &'a str) -> Call<'a, Vec<(String, Known)>> {
        Box::pin(async { Err(PortError::Fatal("there are no applications of others".to_owned())) })
    }

    fn probe<'a>(&'a self, _lineage: &'a Lineage, _from: Place) -> Call<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn read<'a>(&'a self, lineage: &'a Lineage, from: Place) -> Call<'a, Read> {
        let lineage = lineage.clone();
        let after = if let Place::After(last) = from { last.number().unwrap_or_default() as usize } else { 0 };
        self.call(move |w| {
            let take = 1 + w.random.below(5);
            let Some(shard) = w.shards.iter().find(|s| s.lineage == lineage) else {
                return Err(PortError::Fatal("no such shard".to_owned()));
            };
            let mut batch = SourceBatch::default();
            let (mut data, mut keys) = (Vec::new(), Vec::new());
            for (i, record) in shard.records.iter().enumerate().skip(after).take(take) {
                data.extend(record.json());
                keys.extend(record.user.as_bytes());
                batch.ends.push(data.len());
                batch.key_ends.push(keys.len());
                batch.positions.push(Offset::new(i as u64 + 1));
                batch.arrivals.push(record.time);
            }
            (batch.data, batch.keys) = (data.into(), keys.into());
            let end = shard.closed && after + batch.len() == shard.records.len();
            let children = shard.children.iter().map(|c| w.shards[*c].lineage.clone()).collect();
            Ok(Read { batch, end, children, ..Read::default() })
        })
    }
}

impl Tables for Sim {
    fn put<'a>(&'a self, table: &'a str, items: &'a [Item], guard: Guard) -> Call<'a, Vec<usize>> {
        let (table, items, cut) = (table.to_owned(), items.to_vec(), guard.cut);
        self.call(move |w| {
            let mut failed = Vec::new();
            for (i, item) in items.iter().enumerate() {
                let fails = 3.0 * w.faults;
                if w.random.chance(fails) {
                    failed.push(i);
                    continue;
                }
                let key: Vec<String> = item.key.iter().map(|(_, v)| text(v)).collect();
                let slot = (table.clone(), key.join("|"));
                let newer = w.items.get(&slot).is_none_or(|(old, at)| (old.version, *at) < (item.version, cut));
                if table == "finals"
                    && let Some((old, _)) = w.items.get(&slot)
                    && old.attributes != item.attributes
                {
                    w.violations.push(format!("the final row {} changes", slot.1));
                }
                if newer {
                    w.items.insert(slot, (item.clone(), cut));
                }
            }
            Ok(failed)
        })
    }
}

impl Streams for Sim {
    fn put<'a>(&'a self, stream: &'a str, records: &'a [StreamRecord]) -> Call<'a, Vec<usize>> {
        let (stream, records) = (stream.to_owned(), records.to_vec());
        self.call(move |w| {
            let mut failed = Vec::new();
            for (i, record) in records.iter().enumerate() {
                let fails = 3.0 * w.faults;
                if w.random.chance(fails) {
                    failed.push(i);
                } else {
                    w.streams.entry(stream.clone()).or_default().push(record.clone());
                }
            }
            Ok(failed)
        })
    }
}

impl Topics for Sim {
    fn begin<'a>(&'a self, stream: &'a str, writer: &'a str) -> Call<'a, Begun> {
        let (sim, names) = (self.clone(), (stream.to_owned(), writer.to_owned()));
        Box::pin(async move {
            let of = names.clone();
            let begin = sim.call(move |w| {
                let writer = w.writers.entry(of.clone()).or_default();
                (writer.begun, writer.done) = (writer.begun + 1, 0);
                Ok((writer.mark.clone(), writer.begun))
            });
            let (mark, number) = begin.await?;
            Ok(Begun { mark, writer: Box::new(SimWriter { sim, names, number, next: 0 }) })
        })
    }
}

/// A writer of a topic: the stream, its name, which of that name it is, and the number of its next transaction.
struct SimWriter {
    sim: Sim,
    names: (String, String),
    number: u64,
    next: u64,
}

impl Transactions for SimWriter {
    fn commit<'a>(&'a mut self, records: &'a [TopicRecord], mark: &'a str) -> Call<'a, ()> {
        let (names, number, nth) = (self.names.clone(), self.number, self.next);
        let (records, mark) = (records.to_vec(), mark.to_owned());
        self.next += 1;
        self.sim.call(move |w| {
            let writer = w.writers.entry(names.clone()).or_default();
            if writer.begun != number {
                return Err(PortError::Unclear("another writer has begun".to_owned()));
            }
            // A request that arrives twice is answered twice and has its effect once.
            if writer.done == nth {
                writer.done += 1;
                writer.mark = Some(mark.clone());
                w.topics.entry(names.0.clone()).or_default().extend(records.iter().cloned());
            }
            Ok(())
        })
    }
}

/// An attribute as text.
pub fn text(attribute: &Attribute) -> String {
    match attribute {
        Attribute::S(v) | Attribute::N(v) => v.clone(),
        Attribute::Bool(v) => v.to_string(),
        Attribute::Null => "null".to_owned(),
    }
}

impl Control for Sim {
    fn pipeline(&self) -> Arc<PipelineRow> {
        let mut world = self.world.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some(known) if world.random.chance(0.9) => known.clone(),
            _ => known.insert(world.pipeline()).clone(),
        }
    }

    fn merged(&self) -> i64 {
        let world = self.world.lock().unwrap_or_else(PoisonError::into_inner);
        let live = world.sources().into_values().filter(|(_, r)| r.status == Status::Live).map(|(_, r)| r.watermark);
        live.min().unwrap_or(Watermark::MIN).0
    }
}
