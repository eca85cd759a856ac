//! Topics as sinks. A transaction has a task's rows and its mark: an offset that a group of the writer's own commits in it, whose
//! metadata says how far the task's output is there (KIP-98, KIP-447). A writer that begins ends what one of its name has
//! left open, and keeps it out from then on.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use futures::future;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::txn_offset_commit_request::{TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, EndTxnRequest, GroupId, InitProducerIdRequest, OffsetFetchRequest, ProduceRequest,
    ProducerId, TransactionalId, TxnOffsetCommitRequest,
};
use kafka_protocol::protocol::{Request, StrBytes};
use kafka_protocol::records::{Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType};

use super::brokers::{Brokers, Coordinator};
use super::connection::{Connection, refused};
use crate::connectors::clock::SystemClock;
use crate::engine::ports::{Begun, Call, Clock, PortError, Topics, Transactions};
use crate::output::TopicRecord;

/// A transaction that is open for longer is ended by its broker.
const TIMEOUT: Duration = Duration::from_secs(180);
/// How long a transaction of before may take to end.
const ENDING: Duration = Duration::from_secs(10);
/// How often it is asked whether it has.
const ASKED: Duration = Duration::from_millis(10);
/// How long a broker may wait for the copies of what it takes.
const COPIED: Duration = Duration::from_secs(30);
/// How long it is believed what brokers said of a topic.
const BELIEVED: Duration = Duration::from_secs(10);
/// Brokers close a connection that is not used for ten minutes.
const UNUSED: Duration = Duration::from_secs(60);
/// What a record is longer than its key and its value, at most about.
const RECORD: usize = 32;
/// The partition of the topic that marks are offsets of.
const MARKED: i32 = 0;
/// The offset of marks. Who sets it to 0 with a tool, which writes no metadata, says that nothing was sent.
const OFFSET: i64 = 1;
/// What a mark without metadata says.
const NOTHING: &str = "nothing";

/// Declared streams that are topics.
pub struct KafkaTopics {
    topics: BTreeMap<String, Arc<Brokers>>,
}

impl KafkaTopics {
    /// By the names that the manifest gives them.
    pub fn new(topics: BTreeMap<String, Brokers>) -> Self {
        Self { topics: topics.into_iter().map(|(name, brokers)| (name, Arc::new(brokers))).collect() }
    }
}

impl Topics for KafkaTopics {
    fn begin<'a>(&'a self, stream: &'a str, writer: &'a str) -> Call<'a, Begun> {
        Box::pin(async move {
            let brokers =
                self.topics.get(stream).ok_or_else(|| PortError::Fatal(format!("there is no topic for the stream `{stream}`")))?;
            let (producer, mark) = Producer::begin(Arc::clone(brokers), writer).await?;
            Ok(Begun { mark, writer: Box::new(producer) })
        })
    }
}

/// A writer that keeps out those of its name that began before it.
struct Producer {
    brokers: Arc<Brokers>,
    /// Its name, as a producer of transactions and as a group.
    name: StrBytes,
    id: ProducerId,
    epoch: i16,
    /// To the broker that keeps its transactions, and to the one that keeps its group's offsets.
    transactions: Connection,
    offsets: Connection,
    /// To the leaders of partitions, by the ids of the brokers.
    leaders: HashMap<i32, Connection>,
    used: Instant,
    /// Numbers of the next records, by partition.
    sequences: BTreeMap<i32, i32>,
    /// Where the next records without a key go.
    turn: usize,
}

/// What an error of a transaction means: whoever is kept out, or does not know where it stands, begins again.
fn stopped(what: &str, code: i16) -> Option<PortError> {
    use ResponseError::{
        ConcurrentTransactions, DuplicateSequenceNumber, InvalidProducerEpoch, InvalidProducerIdMapping, InvalidTxnState,
        OutOfOrderSequenceNumber, ProducerFenced, TransactionAbortable, TransactionCoordinatorFenced, UnknownProducerId,
    };
    match ResponseError::try_from_code(code) {
        Some(
            error @ (ConcurrentTransactions
            | DuplicateSequenceNumber
            | InvalidProducerEpoch
            | InvalidProducerIdMapping
            | InvalidTxnState
            | OutOfOrderSequenceNumber
            | ProducerFenced
            | TransactionAbortable
            | TransactionCoordinatorFenced
            | UnknownProducerId),
        ) => Some(PortError::Unclear(format!("{what}: {error:?}"))),
        Some(error @ ResponseError::MessageTooLarge) => {
            let why = "a row is larger than a record of the topic may be: raise `max.message.bytes` of the topic";
            Some(PortError::Fatal(format!("{what}: {error:?}: {why}")))
        }
        Some(error @ ResponseError::InvalidRecord) => {
            let why = "a compacted topic takes no record without a key: name a column in `partitionBy`";
            Some(PortError::Fatal(format!("{what}: {error:?}: {why}")))
        }
        _ => refused(what, code),
    }
}

/// Makes a call until no transaction of before is in its way.
async fn undisturbed<R: Request>(
    connection: &mut Connection,
    request: &R,
    versions: (i16, i16),
    what: &str,
    code: impl Fn(&R::Response) -> i16,
) -> Result<R::Response, PortError> {
    let began = Instant::now();
    loop {
        let answer = connection.call(request, versions.0, versions.1, Duration::ZERO).await?;
        let code = code(&answer);
        if code != ResponseError::ConcurrentTransactions.code() || began.elapsed() >= ENDING {
            return stopped(what, code).map_or(Ok(answer), Err);
        }
        tokio::time::sleep(ASKED).await;
    }
}

impl Producer {
    /// Ends what one of its name has left open, and answers the mark of the last transaction.
    async fn begin(brokers: Arc<Brokers>, name: &str) -> Result<(Self, Option<String>), PortError> {
        let what = brokers.what("InitProducerId");
        brokers.about(BELIEVED).await?;
        let mut transactions = brokers.coordinator(Coordinator::Transaction, name).await?;
        let name = StrBytes::from_string(name.to_owned());
        let request = InitProducerIdRequest::default()
            .with_transactional_id(Some(TransactionalId(name.clone())))
            .with_transaction_timeout_ms(TIMEOUT.as_millis() as i32)
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1);
        let begun = undisturbed(&mut transactions, &request, (2, 4), &what, |answer| answer.error_code).await?;
        let offsets = brokers.coordinator(Coordinator::Group, &name).await?;
        let mut producer = Self {
            brokers,
            name,
            id: begun.producer_id,
            epoch: begun.producer_epoch,
            transactions,
            offsets,
            leaders: HashMap::new(),
            used: Instant::now(),
            sequences: BTreeMap::new(),
            turn: 0,
        };
        let mark = producer.mark().await?;
        Ok((producer, mark))
    }

    fn group(&self) -> GroupId {
        GroupId(self.name.clone())
    }

    /// The mark of the last transaction.
    async fn mark(&mut self) -> Result<Option<String>, PortError> {
        let what = format!("Kafka OffsetFetch {} {}", self.name.as_str(), self.brokers.name);
        let topic = OffsetFetchRequestTopics::default().with_name(self.brokers.name()).with_partition_indexes(vec![MARKED]);
        let group = OffsetFetchRequestGroup::default().with_group_id(self.group()).with_member_epoch(-1).with_topics(Some(vec![topic]));
        let request = OffsetFetchRequest::default().with_groups(vec![group]).with_require_stable(true);
        let answer = self.offsets.call(&request, 8, 9, Duration::ZERO).await?;
        let group = answer.groups.first().ok_or_else(|| PortError::Unclear(format!("{what}: no answer")))?;
        let found = group.topics.first().and_then(|t| t.partitions.first());
        for code in [group.error_code, found.map_or(0, |found| found.error_code)] {
            if let Some(why) = refused(&what, code) {
                return Err(why);
            }
        }
        let found = found.filter(|found| found.committed_offset >= 0);
        Ok(found.map(|found| found.metadata.as_deref().filter(|mark| !mark.is_empty()).unwrap_or(NOTHING).to_owned()))
    }

    /// Connections that were not used for long are made anew.
    async fn refresh(&mut self) -> Result<(), PortError> {
        if self.used.elapsed() >= UNUSED {
            self.transactions = self.brokers.coordinator(Coordinator::Transaction, &self.name).await?;
            self.offsets = self.brokers.coordinator(Coordinator::Group, &self.name).await?;
            self.leaders.clear();
        }
        self.used = Instant::now();
        Ok(())
    }

    async fn transaction(&mut self, records: &[TopicRecord], mark: &str) -> Result<(), PortError> {
        self.refresh().await?;
        if !records.is_empty() {
            self.append(records).await?;
        }
        let request = AddOffsetsToTxnRequest::default()
            .with_transactional_id(TransactionalId(self.name.clone()))
            .with_producer_id(self.id)
            .with_producer_epoch(self.epoch)
            .with_group_id(self.group());
        undisturbed(&mut self.transactions, &request, (0, 3), &self.brokers.what("AddOffsetsToTxn"), |answer| answer.error_code).await?;
        let partition = TxnOffsetCommitRequestPartition::default()
            .with_partition_index(MARKED)
            .with_committed_offset(OFFSET)
            .with_committed_metadata(Some(StrBytes::from_string(mark.to_owned())));
        let topic = TxnOffsetCommitRequestTopic::default().with_name(self.brokers.name()).with_partitions(vec![partition]);
        let request = TxnOffsetCommitRequest::default()
            .with_transactional_id(TransactionalId(self.name.clone()))
            .with_group_id(self.group())
            .with_producer_id(self.id)
            .with_producer_epoch(self.epoch)
            .with_generation_id(-1)
            .with_topics(vec![topic]);
        let answer = self.offsets.call(&request, 0, 3, Duration::ZERO).await?;
        let code = answer.topics.iter().flat_map(|t| &t.partitions).map(|p| p.error_code).find(|code| *code != 0);
        if let Some(why) = stopped(&self.brokers.what("TxnOffsetCommit"), code.unwrap_or_default()) {
            return Err(why);
        }
        self.end(true).await
    }

    async fn end(&mut self, committed: bool) -> Result<(), PortError> {
        let request = EndTxnRequest::default()
            .with_transactional_id(TransactionalId(self.name.clone()))
            .with_producer_id(self.id)
            .with_producer_epoch(self.epoch)
            .with_committed(committed);
        let what = self.brokers.what("EndTxn");
        undisturbed(&mut self.transactions, &request, (0, 3), &what, |answer| answer.error_code).await.map(drop)
    }

    /// Appends records to their partitions.
    async fn append(&mut self, records: &[TopicRecord]) -> Result<(), PortError> {
        let about = self.brokers.about(BELIEVED).await?;
        let partitions = about.leaders.len();
        if partitions == 0 {
            return Err(PortError::Unclear(format!("the topic {} has no partitions yet", self.brokers.name)));
        }
        let mut by_partition: BTreeMap<i32, Vec<&TopicRecord>> = BTreeMap::new();
        // Each writer begins elsewhere, and each one that follows another of its name.
        self.turn += 1;
        let led =
            |partition: i32| about.leaders.get(&partition).map(|(leader, _)| *leader).filter(|leader| about.brokers.contains_key(leader));
        let all_led: Vec<i32> = about.leaders.keys().copied().filter(|partition| led(*partition).is_some()).collect();
        let first = partition(self.name.as_bytes(), partitions) + self.turn + usize::from(self.epoch.unsigned_abs());
        let any = all_led.get(first % all_led.len().max(1)).copied().unwrap_or_default();
        for record in records {
            let partition = record.key.as_ref().map_or(any, |key| partition(key, partitions) as i32);
            by_partition.entry(partition).or_default().push(record);
        }
        // Before the transaction has them: one with a partition that nobody leads cannot be ended either.
        if let Some(partition) = by_partition.keys().find(|partition| led(**partition).is_none()) {
            return Err(PortError::Unclear(format!("the topic {} has no partition {partition} that is led", self.brokers.name)));
        }
        let topic =
            AddPartitionsToTxnTopic::default().with_name(self.brokers.name()).with_partitions(by_partition.keys().copied().collect());
        let request = AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(TransactionalId(self.name.clone()))
            .with_v3_and_below_producer_id(self.id)
            .with_v3_and_below_producer_epoch(self.epoch)
            .with_v3_and_below_topics(vec![topic]);
        // Of several partitions one is refused for what it lacks, and the others because of it.
        undisturbed(&mut self.transactions, &request, (0, 3), &self.brokers.what("AddPartitionsToTxn"), |answer| {
            let mut codes =
                answer.results_by_topic_v3_and_below.iter().flat_map(|t| &t.results_by_partition).map(|p| p.partition_error_code);
            let attempted = ResponseError::OperationNotAttempted.code();
            let mut found = codes.clone().filter(|code| ![0, attempted].contains(code));
            found.next().or_else(|| codes.find(|code| *code != 0)).unwrap_or_default()
        })
        .await?;
        let now = SystemClock.now();
        let mut by_leader: BTreeMap<i32, Vec<(i32, Vec<Batch>)>> = BTreeMap::new();
        for (partition, records) in by_partition {
            let batches = self.batches(partition, &records, now)?;
            by_leader.entry(led(partition).unwrap_or_default()).or_default().push((partition, batches));
        }
        let mut held = std::mem::take(&mut self.leaders);
        let sends = by_leader.into_iter().map(|(leader, batches)| {
            let connection = held.remove(&leader);
            self.produce(leader, connection, &about.brokers[&leader], batches)
        });
        let used = future::try_join_all(sends).await?;
        self.leaders = held;
        self.leaders.extend(used);
        Ok(())
    }

    /// The records of a partition, as batches.
    fn batches(&mut self, partition: i32, records: &[&TopicRecord], now: i64) -> Result<Vec<Batch>, PortError> {
        let most = self.brokers.batch_bytes.load(Ordering::Relaxed);
        let next = self.sequences.entry(partition).or_default();
        let (mut batches, mut batch, mut bytes) = (Vec::new(), Vec::new(), 0);
        for (i, record) in records.iter().enumerate() {
            let size = record.key.as_ref().map_or(0, Bytes::len) + record.value.len() + RECORD;
            if bytes + size > most && !batch.is_empty() {
                batches.push(encode(&batch)?);
                (batch, bytes) = (Vec::new(), 0);
            }
            bytes += size;
            batch.push(Record {
                transactional: true,
                control: false,
                delete_horizon: false,
                partition_leader_epoch: -1,
                producer_id: self.id.0,
                producer_epoch: self.epoch,
                timestamp_type: TimestampType::Creation,
                offset: batch.len() as i64,
                sequence: *next,
                timestamp: now,
                key: record.key.clone(),
                value: Some(record.value.clone()),
                headers: Default::default(),
            });
            // Sequences begin again at 0 behind the largest.
            *next = next.checked_add(1).unwrap_or_default();
            if *next == 0 && i + 1 < records.len() {
                batches.push(encode(&batch)?);
                (batch, bytes) = (Vec::new(), 0);
            }
        }
        batches.push(encode(&batch)?);
        Ok(batches)
    }

    /// Sends batches to a leader: a request has one batch of a partition.
    async fn produce(
        &self,
        leader: i32,
        connection: Option<Connection>,
        address: &str,
        batches: Vec<(i32, Vec<Batch>)>,
    ) -> Result<(i32, Connection), PortError> {
        let mut connection = match connection {
            Some(connection) => connection,
            None => Connection::open(address, &self.brokers.security).await?,
        };
        let what = self.brokers.what("Produce");
        for round in 0..batches.iter().map(|(_, batches)| batches.len()).max().unwrap_or_default() {
            let data = batches.iter().filter_map(|(partition, batches)| {
                Some(PartitionProduceData::default().with_index(*partition).with_records(Some(batches.get(round)?.0.clone())))
            });
            let topic = TopicProduceData::default().with_name(self.brokers.name()).with_partition_data(data.collect());
            let request = ProduceRequest::default()
                .with_transactional_id(Some(TransactionalId(self.name.clone())))
                .with_acks(-1)
                .with_timeout_ms(COPIED.as_millis() as i32)
                .with_topic_data(vec![topic]);
            let answer = connection.call(&request, 8, 11, COPIED).await?;
            for partition in answer.responses.iter().flat_map(|t| &t.partition_responses) {
                if partition.error_code == ResponseError::MessageTooLarge.code() {
                    let sent = batches.iter().filter(|(sent, _)| *sent == partition.index).filter_map(|(_, batches)| batches.get(round));
                    let most = self.brokers.batch_bytes.load(Ordering::Relaxed);
                    if most > 1 && sent.map(|batch| batch.1).max() > Some(1) {
                        self.brokers.batch_bytes.store(most / 2, Ordering::Relaxed);
                        return Err(PortError::Unclear(format!(
                            "{what}: batches of {most} bytes are too large there: smaller ones follow"
                        )));
                    }
                }
                if let Some(why) = stopped(&format!("{what}, partition {}", partition.index), partition.error_code) {
                    return Err(why);
                }
            }
        }
        Ok((leader, connection))
    }
}

impl Transactions for Producer {
    fn commit<'a>(&'a mut self, records: &'a [TopicRecord], mark: &'a str) -> Call<'a, ()> {
        Box::pin(async move {
            let done = self.transaction(records, mark).await;
            // Readers wait for a transaction that is open. One without a clear answer is ended by whoever begins next.
            if let Err(PortError::Fatal(_)) = &done {
                drop(self.end(false).await);
            }
            done
        })
    }
}

/// A batch, compressed, and the number of its records.
type Batch = (Bytes, usize);

fn encode(records: &[Record]) -> Result<Batch, PortError> {
    let compress = |records: &mut BytesMut, out: &mut BytesMut, _: Compression| {
        out.put_slice(&zstd::bulk::compress(records, 1)?);
        Ok(())
    };
    let options = RecordEncodeOptions { version: 2, compression: Compression::Zstd };
    let mut out = BytesMut::new();
    let done = RecordBatchEncoder::encode_with_custom_compression(&mut out, records, &options, Some(compress));
    done.map_err(|why| PortError::Fatal(format!("a batch for Kafka cannot be written: {why}")))?;
    Ok((out.freeze(), records.len()))
}

/// The partition of a key among `partitions`, as Kafka's own producer chooses it: 32-bit MurmurHash2 with Kafka's seed, without
/// its sign.
fn partition(key: &[u8], partitions: usize) -> usize {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ key.len() as u32;
    let (words, rest) = key.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !rest.is_empty() {
        rest.iter().enumerate().for_each(|(i, byte)| hash ^= u32::from(*byte) << (8 * i));
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^= hash >> 15;
    (hash & 0x7fff_ffff) as usize % partitions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_that_is_disturbed_begins_again_and_one_that_may_not_write_stops() {
        use ResponseError::{
            ConcurrentTransactions, InvalidProducerEpoch, InvalidProducerIdMapping, InvalidRecord, MessageTooLarge, NotCoordinator,
            NotEnoughReplicas, NotLeaderOrFollower, ProducerFenced, TopicAuthorizationFailed, TransactionalIdAuthorizationFailed,
            UnstableOffsetCommit,
        };
        let again = [
            ConcurrentTransactions,
            InvalidProducerEpoch,
            InvalidProducerIdMapping,
            NotCoordinator,
            NotEnoughReplicas,
            NotLeaderOrFollower,
            ProducerFenced,
            UnstableOffsetCommit,
        ];
        for error in again {
            assert!(matches!(stopped("", error.code()), Some(PortError::Unclear(_))), "{error:?}");
        }
        for error in [InvalidRecord, MessageTooLarge, TopicAuthorizationFailed, TransactionalIdAuthorizationFailed] {
            assert!(matches!(stopped("", error.code()), Some(PortError::Fatal(_))), "{error:?}");
        }
        assert_eq!(stopped("", 0), None);
    }
}
