//! Kinesis: the streams that a pipeline reads and writes, and its repartition stream.
//!
//! Limits kept (Kinesis Data Streams quotas): five reads a second per shard, 10,000 records a read; 500 records and 5 MiB
//! a write, 1 MiB a record.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::primitives::{Blob, DateTime};
use aws_sdk_kinesis::types::{PutRecordsRequestEntry, Record, ShardIteratorType};
use bytes::Bytes;
use leat_aws::{Call as Tried, Failure, SdkConfig};
use leat_runtime_core::begin::Known;
use leat_runtime_core::key::HashRange;
use leat_runtime_core::position::{Lineage, Offset};

use super::fan_out::Consumer;
use super::kcl;
use crate::batch::SourceBatch;
use crate::codecs::kpl;
use crate::codecs::time::format_millis;
use crate::engine::ports::{Call, Log, Place, PortError, Read, Shard, Source, Streams};
use crate::output::StreamRecord;

/// Least time between two reads of a shard.
const READ_INTERVAL: Duration = Duration::from_millis(200);
/// Records a read.
const READ_RECORDS: i32 = 10_000;
/// Records a write.
const WRITE_RECORDS: usize = 500;
/// Bytes a write, keys included: below the limit of 5 MiB.
const WRITE_BYTES: usize = 4 << 20;
/// Bytes a record, key included.
const RECORD_BYTES: usize = (1 << 20) - 256;
/// How long the incarnation of a stream is believed without looking; before an iterator is made it is always looked at.
const BELIEVED: Duration = Duration::from_secs(10);

/// Where a shard is read.
struct Held {
    from: Place,
    iterator: Option<String>,
    not_before: Instant,
}

/// A shard as Kinesis lists it.
struct Listed {
    id: String,
    parents: Vec<String>,
    range: HashRange,
    closed: bool,
}

/// What was read of a shard.
#[derive(Default)]
pub(super) struct Answer {
    pub records: Vec<Record>,
    /// More was there, although there may be none among these.
    pub more: bool,
    /// It was waited for more before this was said.
    pub awaited: bool,
    /// The shard ended with these.
    pub ended: bool,
    /// At the end: the shards that go on, where they are known.
    pub children: Vec<String>,
}

impl Answer {
    /// No records, although it was waited for some.
    pub fn nothing(more: bool) -> Self {
        Self { more, awaited: true, ..Self::default() }
    }
}

/// What is believed of a stream for a while.
#[derive(Clone)]
struct Summary {
    /// Its creation time, ms.
    incarnation: String,
    arn: String,
}

/// A stream.
pub struct Stream {
    pub(super) client: Client,
    pub(super) name: String,
    summary: Mutex<Option<(Summary, Instant)>>,
    consumer: Option<Consumer>,
    held: Mutex<HashMap<String, Held>>,
    /// The hash key ranges of shards; one never changes.
    ranges: Mutex<HashMap<String, HashRange>>,
    /// Shards of a stream whose shards do not change.
    fixed: Mutex<Option<Vec<(HashRange, String)>>>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stream {
    /// The stream of this name.
    pub fn new(client: Client, name: &str) -> Self {
        Self {
            client,
            name: name.to_owned(),
            summary: Mutex::default(),
            consumer: None,
            held: Mutex::default(),
            ranges: Mutex::default(),
            fixed: Mutex::default(),
        }
    }

    /// The stream of this name in an account.
    pub fn of(config: &SdkConfig, name: &str) -> Self {
        Self::new(Client::new(config), name)
    }

    /// Read by a registered consumer, to whom its records are pushed; over these clients, which are used for nothing else
    /// ([`leat_aws::apart`]).
    pub fn pushed_to(self, consumer: &str, lines: Vec<Client>) -> Self {
        Self { consumer: Some(Consumer::new(consumer, lines)), ..self }
    }

    pub(super) fn tried(&self, operation: &'static str) -> Tried {
        Tried::new(operation, &self.name)
    }

    async fn incarnation(&self, believed: Duration) -> Result<String, PortError> {
        Ok(self.summary(believed).await?.incarnation)
    }

    pub(super) async fn arn(&self) -> Result<String, PortError> {
        Ok(self.summary(Duration::ZERO).await?.arn)
    }

    async fn summary(&self, believed: Duration) -> Result<Summary, PortError> {
        if let Some((summary, at)) = &*lock(&self.summary)
            && at.elapsed() < believed
        {
            return Ok(summary.clone());
        }
        let answer = self.client.describe_stream_summary().stream_name(&self.name).send().await;
        let answer = answer.map_err(|e| Failure::of(self.tried("Kinesis DescribeStreamSummary"), &e))?;
        let answer = answer.stream_description_summary();
        let created = answer.and_then(|s| s.stream_creation_timestamp().to_millis().ok());
        let arn = answer.map(|s| s.stream_arn().to_owned()).unwrap_or_default();
        let summary = Summary { incarnation: created.unwrap_or_default().to_string(), arn };
        *lock(&self.summary) = Some((summary.clone(), Instant::now()));
        Ok(summary)
    }

    /// That it was not deleted and made again, where an offset belongs to an `incarnation` of it.
    pub(super) async fn is_still(&self, incarnation: Option<&str>) -> Result<(), PortError> {
        if let Some(incarnation) = incarnation
            && self.incarnation(Duration::ZERO).await? != incarnation
        {
            let why = "it was deleted and made again; its records are not those that were read before";
            return Err(PortError::Fatal(format!("the stream {}: {why}", self.name)));
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Listed>, PortError> {
        let mut shards = Vec::new();
        let mut next: Option<String> = None;
        loop {
            // A token stands for the stream too.
            let request = self.client.list_shards();
            let request = match next {
                Some(token) => request.next_token(token),
                None => request.stream_name(&self.name),
            };
            let answer = request.send().await.map_err(|e| Failure::of(self.tried("Kinesis ListShards"), &e))?;
            for shard in answer.shards() {
                let hash = |text: Option<&str>| text.and_then(|t| t.parse::<u128>().ok());
                let range = shard.hash_key_range();
                let (Some(first), Some(last)) = (hash(range.map(|r| r.starting_hash_key())), hash(range.map(|r| r.ending_hash_key())))
                else {
                    return Err(PortError::Fatal(format!("{}: the shard {} has no hash key range", self.name, shard.shard_id())));
                };
                shards.push(Listed {
                    id: shard.shard_id().to_owned(),
                    parents: [shard.parent_shard_id(), shard.adjacent_parent_shard_id()].into_iter().flatten().map(str::to_owned).collect(),
                    range: HashRange { first, last },
                    closed: shard.sequence_number_range().is_some_and(|s| s.ending_sequence_number().is_some()),
                });
            }
            next = answer.next_token().map(str::to_owned);
            if next.is_none() {
                lock(&self.ranges).extend(shards.iter().map(|s: &Listed| (s.id.clone(), s.range)));
                return Ok(shards);
            }
        }
    }

    /// Records of a shard from a place on, behind [`Place::Inside`] with the one that it names; waits so that the shard's limit
    /// is kept. `incarnation`: what the offset belongs to.
    async fn read(&self, shard: &str, from: Place, incarnation: Option<&str>) -> Result<Answer, PortError> {
        // A position lies in or behind a whole record, also where that holds several.
        let from = match from {
            Place::After(last) => Place::After(last.inside(0)),
            Place::Inside(last) => Place::Inside(last.inside(0)),
            other => other,
        };
        if let Some(consumer) = &self.consumer {
            return consumer.read(self, shard, from, incarnation).await;
        }
        loop {
            let held = lock(&self.held).remove(shard).filter(|h| h.from == from);
            let (iterator, not_before) = match held {
                Some(held) => (held.iterator, held.not_before),
                None => (None, Instant::now()),
            };
            tokio::time::sleep_until(not_before.into()).await;
            let iterator = match iterator {
                Some(iterator) => iterator,
                None => match self.iterator(shard, from, incarnation).await {
                    Ok(iterator) => iterator,
                    Err(error) => {
                        let not_before = Instant::now() + Duration::from_secs(1);
                        lock(&self.held).insert(shard.to_owned(), Held { from, iterator: None, not_before });
                        return Err(error);
                    }
                },
            };
            let not_before = Instant::now() + READ_INTERVAL;
            match self.client.get_records().shard_iterator(&iterator).limit(READ_RECORDS).send().await {
                Ok(answer) => {
                    let last = answer.records().last().map(|r| offset(r.sequence_number())).transpose()?;
                    let next = answer.next_shard_iterator().map(str::to_owned);
                    let more = next.is_some() && last.is_none() && answer.millis_behind_latest().unwrap_or_default() > 0;
                    if next.is_some() {
                        lock(&self.held)
                            .insert(shard.to_owned(), Held { from: last.map_or(from, Place::After), iterator: next, not_before });
                    }
                    let ended = answer.next_shard_iterator.is_none();
                    let children = answer.child_shards().iter().map(|c| c.shard_id().to_owned()).collect();
                    // Where more is there it need not be waited for again: the next read waits for the limit.
                    return Ok(Answer { records: answer.records, more, awaited: more, ended, children });
                }
                Err(error) => {
                    let failure = Failure::of(self.tried("Kinesis GetRecords"), &error);
                    let expired = failure.code() == Some("ExpiredIteratorException");
                    let iterator = (!expired).then_some(iterator);
                    lock(&self.held).insert(shard.to_owned(), Held { from, iterator, not_before });
                    if !expired {
                        return Err(failure.into());
                    }
                }
            }
        }
    }

    /// The keys of a shard.
    async fn range(&self, shard: &str) -> Result<HashRange, PortError> {
        if let Some(found) = lock(&self.ranges).get(shard) {
            return Ok(*found);
        }
        let listed = self.list().await?;
        let found = listed.iter().find(|s| s.id == shard).map(|s| s.range);
        found.ok_or_else(|| PortError::Unclear(format!("{} does not list the shard {shard}", self.name)))
    }

    async fn iterator(&self, shard: &str, from: Place, incarnation: Option<&str>) -> Result<String, PortError> {
        self.is_still(incarnation).await?;
        let request = self.client.get_shard_iterator().stream_name(&self.name).shard_id(shard);
        let request = match from {
            Place::Oldest => request.shard_iterator_type(ShardIteratorType::TrimHorizon),
            Place::Since(time) => request.shard_iterator_type(ShardIteratorType::AtTimestamp).timestamp(DateTime::from_millis(time)),
            Place::After(after) => {
                request.shard_iterator_type(ShardIteratorType::AfterSequenceNumber).starting_sequence_number(after.inside(0).to_string())
            }
            Place::Inside(at) => {
                request.shard_iterator_type(ShardIteratorType::AtSequenceNumber).starting_sequence_number(at.inside(0).to_string())
            }
        };
        let answer = request.send().await;
        let answer = answer.map_err(|e| not_begun(&self.name, from, Failure::of(self.tried("Kinesis GetShardIterator"), &e)))?;
        answer.shard_iterator.ok_or_else(|| PortError::Unclear(format!("{}: no iterator for {shard}", self.name)))
    }

    /// The shard that takes a hash, in a stream that is never resharded.
    async fn fixed_shard(&self, hash: u128) -> Result<String, PortError> {
        let find = |shards: &[(HashRange, String)]| {
            shards.iter().find(|(range, _)| (range.first..=range.last).contains(&hash)).map(|(_, id)| id.clone())
        };
        if let Some(found) = lock(&self.fixed).as_deref().and_then(find) {
            return Ok(found);
        }
        let listed = self.list().await?;
        if let Some(resharded) = listed.iter().find(|s| s.closed || !s.parents.is_empty()) {
            let why = format!("its shards were changed ({}); Leat alone decides how many it has", resharded.id);
            return Err(PortError::Fatal(format!("the repartition stream {}: {why}", self.name)));
        }
        let shards: Vec<(HashRange, String)> = listed.into_iter().map(|s| (s.range, s.id)).collect();
        let found = find(&shards).ok_or_else(|| PortError::Unclear(format!("{} lists no shard for {hash}", self.name)));
        *lock(&self.fixed) = Some(shards);
        found
    }
}

/// Why a shard of a stream cannot be read from a place on. Kinesis takes no time that is ahead of its own clock.
pub(super) fn not_begun(stream: &str, from: Place, failure: Failure) -> PortError {
    match from {
        Place::Since(time) if failure.code() == Some("InvalidArgumentException") => {
            let at = format_millis(time);
            PortError::Unclear(format!("{stream}: it is begun at {at}, which has not come yet: {failure}"))
        }
        _ => failure.into(),
    }
}

pub(super) fn offset(sequence_number: &str) -> Result<Offset, PortError> {
    sequence_number.parse().map_err(|e| PortError::Fatal(format!("a sequence number of Kinesis: {e}")))
}

/// The sources of a pipeline that are Kinesis streams.
pub struct KinesisSource {
    streams: BTreeMap<String, Stream>,
    tables: BTreeMap<String, aws_sdk_dynamodb::Client>,
}

impl KinesisSource {
    /// The stream of each source.
    pub fn new(streams: BTreeMap<String, Stream>) -> Self {
        Self { streams, tables: BTreeMap::new() }
    }

    /// With the DynamoDB of each source that is begun where an application stands.
    pub fn with_tables(self, tables: BTreeMap<String, aws_sdk_dynamodb::Client>) -> Self {
        Self { tables, ..self }
    }

    fn stream(&self, source: &str) -> Result<&Stream, PortError> {
        self.streams.get(source).ok_or_else(|| PortError::Fatal(format!("there is no stream for the source `{source}`")))
    }
}

impl Source for KinesisSource {
    fn shards<'a>(&'a self, source: &'a str) -> Call<'a, Vec<Shard>> {
        Box::pin(async move {
            let stream = self.stream(source)?;
            let incarnation = stream.incarnation(BELIEVED).await?;
            let lineage = |id: &String| Lineage::new(source, &incarnation, id);
            let listed = stream.list().await?;
            Ok(listed
                .iter()
                .map(|s| Shard {
                    lineage: lineage(&s.id),
                    parents: s.parents.iter().map(lineage).collect(),
                    range: s.range,
                    closed: s.closed,
                })
                .collect())
        })
    }

    fn standing<'a>(&'a self, source: &'a str, table: &'a str) -> Call<'a, Vec<(String, Known)>> {
        Box::pin(async move {
            let stream = self.stream(source)?;
            let Some(client) = self.tables.get(source) else {
                return Err(PortError::Fatal(format!("there is no DynamoDB for the source `{source}`")));
            };
            let created = stream.incarnation(BELIEVED).await?.parse().unwrap_or_default();
            kcl::leases(client, table, &stream.name, created).await
        })
    }

    fn probe<'a>(&'a self, lineage: &'a Lineage, from: Place) -> Call<'a, ()> {
        Box::pin(async move {
            self.stream(lineage.source())?.iterator(lineage.partition(), from, Some(lineage.incarnation())).await?;
            Ok(())
        })
    }

    fn read<'a>(&'a self, lineage: &'a Lineage, from: Place) -> Call<'a, Read> {
        Box::pin(async move {
            let stream = self.stream(lineage.source())?;
            let answer = stream.read(lineage.partition(), from, Some(lineage.incarnation())).await?;
            let mut batch = SourceBatch::default();
            let (mut data, mut keys) = (Vec::new(), Vec::new());
            for record in &answer.records {
                let position = offset(record.sequence_number())?;
                let arrival = record.approximate_arrival_timestamp().and_then(|t| t.to_millis().ok()).unwrap_or_default();
                let taken = |position: Offset| matches!(from, Place::Inside(last) if position <= last);
                let mut push = |bytes: &[u8], key: &str, position: Offset| {
                    data.extend_from_slice(bytes);
                    keys.extend_from_slice(key.as_bytes());
                    batch.ends.push(data.len());
                    batch.key_ends.push(keys.len());
                    batch.positions.push(position);
                    batch.arrivals.push(arrival);
                    batch.arrivals.len() as u32 - 1
                };
                match kpl::take_apart(record.data().as_ref()) {
                    None if taken(position) => {}
                    None => drop(push(record.data().as_ref(), record.partition_key().unwrap_or_default(), position)),
                    Some(parts) => {
                        let range = stream.range(lineage.partition()).await?;
                        for (sub, part) in parts.iter().enumerate() {
                            let position = position.inside(sub as u32);
                            if taken(position) {
                                continue;
                            }
                            let index = push(&part.data, &part.key, position);
                            if !range.contains(part.hash) {
                                batch.strays.push(index);
                            }
                        }
                    }
                }
            }
            (batch.data, batch.keys) = (data.into(), keys.into());
            let end = answer.ended;
            let mut children: Vec<Lineage> = answer.children.iter().map(|id| lineage.sibling(id)).collect();
            if end && children.is_empty() {
                let listed = stream.list().await?;
                let of_it = listed.iter().filter(|s| s.parents.iter().any(|p| p == lineage.partition()));
                children = of_it.map(|s| lineage.sibling(&s.id)).collect();
            }
            // The record that the place lies in may have no others than were taken; it was looked at all the same.
            let scanned = match from {
                Place::Inside(last) if !answer.records.is_empty() => Some(last),
                _ => None,
            };
            let more = answer.more || (scanned.is_some() && batch.is_empty());
            Ok(Read { batch, end, children, more, awaited: answer.awaited, scanned })
        })
    }
}

/// The repartition stream: partition `n` is the shard with the `n`th part of the hash key space.
pub struct KinesisLog {
    stream: Stream,
    middles: Vec<u128>,
}

impl KinesisLog {
    /// The repartition stream of `partitions` partitions.
    pub fn new(stream: Stream, partitions: u16) -> Self {
        let ranges = HashRange::split_evenly(u32::from(partitions));
        Self { stream, middles: ranges.iter().map(|r| r.first + (r.last - r.first) / 2).collect() }
    }

    fn hash(&self, partition: u16) -> Result<u128, PortError> {
        let missing = || PortError::Fatal(format!("the repartition stream has no partition {partition}"));
        self.middles.get(usize::from(partition)).copied().ok_or_else(missing)
    }
}

/// Writes records in as many calls as the limits want; answers the indexes of those that Kinesis refused.
async fn put_records(stream: &Stream, mut entries: Vec<PutRecordsRequestEntry>) -> Result<Vec<usize>, PortError> {
    let size = |e: &PutRecordsRequestEntry| e.data().as_ref().len() + e.partition_key().map_or(0, str::len);
    if let Some(large) = entries.iter().map(size).find(|size| *size > RECORD_BYTES) {
        let why = format!("a record has {large} bytes; a record of Kinesis has at most {RECORD_BYTES}");
        return Err(PortError::Fatal(format!("{}: {why}", stream.name)));
    }
    let (mut failed, all) = (Vec::new(), entries.len());
    let mut start = 0;
    while !entries.is_empty() {
        let mut bytes = 0;
        let fit = entries.iter().take(WRITE_RECORDS).take_while(|e| {
            bytes += size(e);
            bytes <= WRITE_BYTES
        });
        let count = fit.count();
        let rest = entries.split_off(count);
        let request = stream.client.put_records().stream_name(&stream.name).set_records(Some(entries));
        let answer = match request.send().await.map_err(|e| PortError::from(Failure::of(stream.tried("Kinesis PutRecords"), &e))) {
            // What the calls before took is not sent again.
            Err(PortError::Unclear(_)) if start > failed.len() => {
                failed.extend(start..all);
                return Ok(failed);
            }
            answer => answer?,
        };
        failed.extend(answer.records().iter().enumerate().filter(|(_, r)| r.error_code().is_some()).map(|(i, _)| start + i));
        start += count;
        entries = rest;
    }
    Ok(failed)
}

/// Streams that sinks write.
pub struct KinesisStreams {
    streams: BTreeMap<String, Stream>,
}

impl KinesisStreams {
    /// The stream of each declared name.
    pub fn new(streams: BTreeMap<String, Stream>) -> Self {
        Self { streams }
    }
}

impl Streams for KinesisStreams {
    fn put<'a>(&'a self, stream: &'a str, records: &'a [StreamRecord]) -> Call<'a, Vec<usize>> {
        Box::pin(async move {
            let found = self.streams.get(stream).ok_or_else(|| PortError::Fatal(format!("there is no stream `{stream}`")))?;
            let entries = records.iter().map(|r| {
                let entry = PutRecordsRequestEntry::builder().data(Blob::new(r.data.to_vec())).partition_key(&r.key);
                entry.build().map_err(|e| PortError::Fatal(e.to_string()))
            });
            put_records(found, entries.collect::<Result<_, _>>()?).await
        })
    }
}

impl Log for KinesisLog {
    fn append<'a>(&'a self, partition: u16, records: Vec<Bytes>) -> Call<'a, Vec<usize>> {
        Box::pin(async move {
            let hash = self.hash(partition)?.to_string();
            let entries = records.iter().map(|r| {
                let entry = PutRecordsRequestEntry::builder().data(Blob::new(r.to_vec())).partition_key(partition.to_string());
                entry.explicit_hash_key(&hash).build().map_err(|e| PortError::Fatal(e.to_string()))
            });
            put_records(&self.stream, entries.collect::<Result<_, _>>()?).await
        })
    }

    fn read<'a>(&'a self, partition: u16, after: Option<Offset>) -> Call<'a, Vec<(Offset, Bytes)>> {
        Box::pin(async move {
            let shard = self.stream.fixed_shard(self.hash(partition)?).await?;
            let answer = loop {
                let answer = self.stream.read(&shard, Place::behind(after), None).await?;
                if !answer.more || !answer.records.is_empty() {
                    break answer;
                }
            };
            if answer.ended {
                let why = "a shard of it was closed; Leat alone decides how many it has";
                return Err(PortError::Fatal(format!("the repartition stream {}: {why}", self.stream.name)));
            }
            answer.records.into_iter().map(|r| Ok((offset(&r.sequence_number)?, Bytes::from(r.data.into_inner())))).collect()
        })
    }
}
