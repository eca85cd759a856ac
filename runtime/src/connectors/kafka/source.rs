//! Topics as a source. Each lineage has a connection of its own to the leader of its partition, where the broker holds a
//! question for records until there are some; leases are ours, so no consumer group is joined. Offsets are committed to a
//! group all the same, behind the cuts, so that tools that show lag work.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use kafka_protocol::messages::offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics};
use kafka_protocol::messages::{
    BrokerId, FetchRequest, FindCoordinatorRequest, GroupId, ListOffsetsRequest, MetadataRequest, OffsetCommitRequest, OffsetFetchRequest,
    TopicName,
};
use kafka_protocol::protocol::StrBytes;
use leat_runtime_core::begin::Known;
use leat_runtime_core::key::HashRange;
use leat_runtime_core::position::{Lineage, Offset};
use uuid::Uuid;

use super::connection::{Connection, Security, refused};
use super::records::{self, Records};
use crate::codecs::time::format_millis;
use crate::engine::ports::{Call, Place, PortError, Read, Shard, Source};

/// How long a broker holds a question for records until there are some.
const WAIT: Duration = Duration::from_millis(250);
/// Bytes of an answer, unless its first batch alone is larger.
const FETCH_BYTES: i32 = 4 << 20;
/// How long it is believed what brokers said of a topic.
const BELIEVED: Duration = Duration::from_secs(10);
/// What is left to do where records are gone.
const START_OVER: &str = "Start over with other state: delete the pipeline and its lease table, and apply it again";
/// Only what was committed by transactions is read.
const READ_COMMITTED: i8 = 1;
/// What stands for the oldest offset in a question for offsets, and for the one behind the newest.
const OLDEST: i64 = -2;
const NEWEST: i64 = -1;

/// What brokers say of a topic.
#[derive(Debug, Clone)]
struct About {
    id: Uuid,
    /// Leaders by partition, and the epoch of each.
    leaders: BTreeMap<i32, (i32, i32)>,
    /// `host:port` of each broker.
    brokers: HashMap<i32, String>,
    at: Instant,
}

/// A lineage that is being read.
struct Held {
    connection: Connection,
    epoch: i32,
    /// The place that was read from last, and the offset that is next; between them may be what is no record.
    from: Place,
    next: i64,
    /// Epoch of the leader that wrote what was read last: a broker whose log has forked since says so (KIP-320).
    written: i32,
}

/// A topic.
pub struct Topic {
    bootstrap: Vec<String>,
    security: Security,
    name: String,
    /// The group to which offsets are committed; `None`: to none.
    group: Option<String>,
    about: Mutex<Option<About>>,
    held: Mutex<HashMap<i32, Held>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A topic's id as Kafka's tools print it.
fn printed(id: Uuid) -> String {
    URL_SAFE_NO_PAD.encode(id.as_bytes())
}

fn parsed(incarnation: &str) -> Result<Uuid, PortError> {
    let bytes = URL_SAFE_NO_PAD.decode(incarnation).ok().and_then(|bytes| Uuid::from_slice(&bytes).ok());
    bytes.ok_or_else(|| PortError::Fatal(format!("`{incarnation}` is no id of a topic")))
}

impl Topic {
    /// The topic of this name, in the cluster of these brokers (`host:port`).
    pub fn new(bootstrap: Vec<String>, security: Security, name: &str, group: Option<String>) -> Self {
        Self { bootstrap, security, name: name.to_owned(), group, about: Mutex::default(), held: Mutex::default() }
    }

    fn name(&self) -> TopicName {
        TopicName(StrBytes::from_string(self.name.clone()))
    }

    fn what(&self, operation: &str) -> String {
        format!("Kafka {operation} {}", self.name)
    }

    /// A connection to any broker: one that is known, or one of those that the manifest names.
    async fn any(&self) -> Result<Connection, PortError> {
        let known: Vec<String> = lock(&self.about).iter().flat_map(|about| about.brokers.values().cloned()).collect();
        let mut why = PortError::Fatal(format!("{}: no broker is named", self.name));
        for address in known.iter().chain(&self.bootstrap) {
            match Connection::open(address, &self.security).await {
                Err(PortError::Unclear(one)) => why = PortError::Unclear(one),
                other => return other,
            }
        }
        Err(why)
    }

    /// What brokers say of the topic now, or said not long ago.
    async fn about(&self, believed: Duration) -> Result<About, PortError> {
        if let Some(about) = lock(&self.about).as_ref().filter(|about| about.at.elapsed() < believed) {
            return Ok(about.clone());
        }
        let request = MetadataRequest::default()
            .with_topics(Some(vec![MetadataRequestTopic::default().with_name(Some(self.name()))]))
            .with_allow_auto_topic_creation(false);
        let answer = self.any().await?.call(&request, 10, 12, Duration::ZERO).await?;
        let topic = answer.topics.first().ok_or_else(|| PortError::Unclear(format!("{}: no answer", self.what("Metadata"))))?;
        if let Some(why) = refused(&self.what("Metadata"), topic.error_code) {
            return Err(why);
        }
        let leaders = topic.partitions.iter().map(|p| (p.partition_index, (p.leader_id.0, p.leader_epoch)));
        let brokers = answer.brokers.iter().map(|b| (b.node_id.0, format!("{}:{}", b.host, b.port)));
        let about = About { id: topic.topic_id, leaders: leaders.collect(), brokers: brokers.collect(), at: Instant::now() };
        *lock(&self.about) = Some(about.clone());
        Ok(about)
    }

    /// Makes sure that the topic is still the one that a lineage is of.
    fn same(&self, about: &About, lineage: &Lineage) -> Result<(), PortError> {
        if printed(about.id) == lineage.incarnation() {
            return Ok(());
        }
        let why = "it was deleted and made again; its records are not those that were read before";
        Err(PortError::Fatal(format!("the topic {}: {why}", self.name)))
    }

    /// A connection to the leader of a partition, and the leader's epoch.
    async fn leader(&self, lineage: &Lineage, partition: i32) -> Result<(Connection, i32), PortError> {
        let about = self.about(Duration::ZERO).await?;
        self.same(&about, lineage)?;
        let missing = || PortError::Unclear(format!("the topic {} has no partition {partition} that is led", self.name));
        let (leader, epoch) = about.leaders.get(&partition).copied().ok_or_else(missing)?;
        let address = about.brokers.get(&leader).ok_or_else(missing)?;
        Ok((Connection::open(address, &self.security).await?, epoch))
    }

    /// An offset by its time: that of the first record of this time or later, or [`OLDEST`] or [`NEWEST`].
    async fn offset(&self, connection: &mut Connection, partition: i32, epoch: i32, time: i64) -> Result<Option<i64>, PortError> {
        let wanted = ListOffsetsPartition::default().with_partition_index(partition).with_current_leader_epoch(epoch).with_timestamp(time);
        let topic = ListOffsetsTopic::default().with_name(self.name()).with_partitions(vec![wanted]);
        let request =
            ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_isolation_level(READ_COMMITTED).with_topics(vec![topic]);
        let answer = connection.call(&request, 4, 7, Duration::ZERO).await?;
        let found = answer.topics.first().and_then(|t| t.partitions.first());
        let found = found.ok_or_else(|| PortError::Unclear(format!("{}: no answer", self.what("ListOffsets"))))?;
        match refused(&self.what("ListOffsets"), found.error_code) {
            Some(why) => Err(why),
            None => Ok((found.offset >= 0).then_some(found.offset)),
        }
    }

    /// The offset that a place means.
    async fn resolve(&self, connection: &mut Connection, partition: i32, epoch: i32, from: Place) -> Result<i64, PortError> {
        let number = |at: Offset| {
            let number = at.number().and_then(|n| i64::try_from(n).ok());
            number.ok_or_else(|| PortError::Fatal(format!("{}: {at} is no offset of Kafka", self.name)))
        };
        match from {
            Place::After(last) | Place::Inside(last) => Ok(number(last)?.saturating_add(1)),
            Place::Oldest => Ok(self.offset(connection, partition, epoch, OLDEST).await?.unwrap_or_default()),
            Place::Since(time) => match self.offset(connection, partition, epoch, time).await? {
                Some(found) => Ok(found),
                None => Ok(self.offset(connection, partition, epoch, NEWEST).await?.unwrap_or_default()),
            },
        }
    }

    /// Reads from a place on until there are records, or none are there now.
    async fn read(&self, lineage: &Lineage, from: Place) -> Result<Read, PortError> {
        let partition = partition(lineage)?;
        let id = parsed(lineage.incarnation())?;
        // Taken out while it is used: a call that failed or was given up leaves nothing behind that could be used wrongly.
        let held = lock(&self.held).remove(&partition).filter(|held| held.from == from);
        let mut held = match held {
            Some(held) => held,
            None => {
                if let Place::Since(time) = from
                    && time > now()
                {
                    let why = format!("it is begun at {}, which has not come yet", format_millis(time));
                    return Err(PortError::Unclear(format!("{}: {why}", self.name)));
                }
                let (mut connection, epoch) = self.leader(lineage, partition).await?;
                let next = self.resolve(&mut connection, partition, epoch, from).await?;
                Held { connection, epoch, from, next, written: -1 }
            }
        };
        loop {
            let wanted = FetchPartition::default()
                .with_partition(partition)
                .with_current_leader_epoch(held.epoch)
                .with_fetch_offset(held.next)
                .with_last_fetched_epoch(held.written)
                .with_log_start_offset(-1)
                .with_partition_max_bytes(FETCH_BYTES);
            let topic = FetchTopic::default().with_topic_id(id).with_partitions(vec![wanted]);
            let request = FetchRequest::default()
                .with_replica_id(BrokerId(-1))
                .with_max_wait_ms(WAIT.as_millis() as i32)
                .with_min_bytes(1)
                .with_max_bytes(FETCH_BYTES)
                .with_isolation_level(READ_COMMITTED)
                .with_session_epoch(-1)
                .with_topics(vec![topic]);
            // 13: topics by their ids.
            let answer = held.connection.call(&request, 13, 16, WAIT).await?;
            let found = answer.responses.into_iter().next().and_then(|t| t.partitions.into_iter().next());
            let code = if answer.error_code == 0 { found.as_ref().map_or(0, |f| f.error_code) } else { answer.error_code };
            if code != 0 {
                return Err(self.fetch_failed(code, lineage, &mut held).await);
            }
            let Some(found) = found else { return Err(PortError::Unclear(format!("{}: no answer", self.what("Fetch")))) };
            if found.diverging_epoch.epoch >= 0 {
                return Err(self.cut_back(partition, found.diverging_epoch.end_offset));
            }
            let bytes = found.records.unwrap_or_default();
            let empty = bytes.is_empty();
            let aborted = found.aborted_transactions.unwrap_or_default();
            let Records { batch, next, written } = records::read(bytes, held.next, &aborted)
                .map_err(|why| PortError::Fatal(format!("{}, partition {partition}: {why}", self.what("Fetch"))))?;
            if !empty && next == held.next {
                let why = format!("no batch of an answer at {next} is whole");
                return Err(PortError::Fatal(format!("{}, partition {partition}: {why}", self.what("Fetch"))));
            }
            held.next = next;
            held.written = written.unwrap_or(held.written);
            if let Some(last) = batch.positions.last() {
                held.from = Place::After(*last);
            }
            if empty || !batch.is_empty() {
                lock(&self.held).insert(partition, held);
                return Ok(Read { batch, ..Read::default() });
            }
        }
    }

    /// What an error of a question for records means, and what follows.
    async fn fetch_failed(&self, code: i16, lineage: &Lineage, held: &mut Held) -> PortError {
        let at = format!("{}, partition {}", self.what("Fetch"), lineage.partition());
        match ResponseError::try_from_code(code) {
            // The topic's id is not known any more, or not yet by this broker.
            Some(ResponseError::UnknownTopicId | ResponseError::InconsistentTopicId) => match self.about(Duration::ZERO).await {
                Ok(about) => match self.same(&about, lineage) {
                    Ok(()) => PortError::Unclear(format!("{at}: the broker does not know the topic's id yet")),
                    Err(why) => why,
                },
                Err(why) => why,
            },
            Some(ResponseError::OffsetOutOfRange) => {
                let partition = partition(lineage).unwrap_or_default();
                let oldest = self.offset(&mut held.connection, partition, held.epoch, OLDEST).await;
                match oldest {
                    Ok(Some(oldest)) if oldest > held.next && held.from == Place::Oldest => {
                        PortError::Unclear(format!("{at}: its oldest records have just been removed"))
                    }
                    Ok(Some(oldest)) if oldest > held.next => PortError::Fatal(format!(
                        "{at}: the records {} to {} are gone; they were kept for less long than nobody read them. {START_OVER}",
                        held.next,
                        oldest - 1
                    )),
                    Ok(_) => self.cut_back(partition, held.next),
                    Err(why) => why,
                }
            }
            _ => refused(&at, code).unwrap_or(PortError::Unclear(at)),
        }
    }

    /// What was read is not what the topic has any more.
    fn cut_back(&self, partition: i32, at: i64) -> PortError {
        let why =
            format!("the topic was cut back to {at}, as by an unclean election of a leader, and what was read of it is not what it has");
        PortError::Fatal(format!("{}, partition {partition}: {why}. {START_OVER}", self.what("Fetch")))
    }

    /// A connection to the broker that keeps a group's offsets.
    async fn coordinator(&self, group: &str) -> Result<Connection, PortError> {
        let what = format!("Kafka FindCoordinator {group}");
        let request = FindCoordinatorRequest::default().with_coordinator_keys(vec![StrBytes::from_string(group.to_owned())]);
        let answer = self.any().await?.call(&request, 4, 5, Duration::ZERO).await?;
        let found = answer.coordinators.first().ok_or_else(|| PortError::Unclear(format!("{what}: no answer")))?;
        match refused(&what, found.error_code) {
            Some(why) => Err(why),
            None => Connection::open(&format!("{}:{}", found.host, found.port), &self.security).await,
        }
    }

    /// The offsets that a group has committed: of each partition the one that it reads next.
    async fn committed(&self, group: &str) -> Result<BTreeMap<i32, i64>, PortError> {
        let what = format!("Kafka OffsetFetch {group} {}", self.name);
        let partitions = self.about(BELIEVED).await?.leaders.into_keys().collect();
        let topic = OffsetFetchRequestTopics::default().with_name(self.name()).with_partition_indexes(partitions);
        let wanted = OffsetFetchRequestGroup::default()
            .with_group_id(GroupId(StrBytes::from_string(group.to_owned())))
            .with_member_epoch(-1)
            .with_topics(Some(vec![topic]));
        let request = OffsetFetchRequest::default().with_groups(vec![wanted]).with_require_stable(true);
        let answer = self.coordinator(group).await?.call(&request, 8, 9, Duration::ZERO).await?;
        let found = answer.groups.first().ok_or_else(|| PortError::Unclear(format!("{what}: no answer")))?;
        if let Some(why) = refused(&what, found.error_code) {
            return Err(why);
        }
        let mut committed = BTreeMap::new();
        for partition in found.topics.iter().flat_map(|t| &t.partitions) {
            if let Some(why) = refused(&what, partition.error_code) {
                return Err(why);
            }
            if partition.committed_offset >= 0 {
                committed.insert(partition.partition_index, partition.committed_offset);
            }
        }
        if committed.is_empty() {
            return Err(PortError::Fatal(format!("the group {group} has committed no offset of the topic {}", self.name)));
        }
        Ok(committed)
    }

    /// Commits what is behind a cut to the pipeline's group.
    async fn commit(&self, lineage: &Lineage, position: Offset) -> Result<(), PortError> {
        let (Some(group), Some(number)) = (&self.group, position.number()) else { return Ok(()) };
        let (partition, next) = (partition(lineage)?, i64::try_from(number).unwrap_or(i64::MAX).saturating_add(1));
        let what = format!("Kafka OffsetCommit {group} {}", self.name);
        let wanted = OffsetCommitRequestPartition::default().with_partition_index(partition).with_committed_offset(next);
        let topic = OffsetCommitRequestTopic::default().with_name(self.name()).with_partitions(vec![wanted]);
        let request = OffsetCommitRequest::default()
            .with_group_id(GroupId(StrBytes::from_string(group.clone())))
            .with_generation_id_or_member_epoch(-1)
            .with_topics(vec![topic]);
        let answer = self.coordinator(group).await?.call(&request, 8, 9, Duration::ZERO).await?;
        let code = answer.topics.first().and_then(|t| t.partitions.first()).map_or(0, |p| p.error_code);
        refused(&what, code).map_or(Ok(()), Err)
    }
}

/// The number of a lineage's partition.
fn partition(lineage: &Lineage) -> Result<i32, PortError> {
    lineage.partition().parse().map_err(|_| PortError::Fatal(format!("`{}` is no partition of a topic", lineage.partition())))
}

fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// The sources of a pipeline that are topics.
pub struct KafkaSource {
    topics: BTreeMap<String, Topic>,
}

impl KafkaSource {
    /// The topic of each source.
    pub fn new(topics: BTreeMap<String, Topic>) -> Self {
        Self { topics }
    }

    fn topic(&self, source: &str) -> Result<&Topic, PortError> {
        self.topics.get(source).ok_or_else(|| PortError::Fatal(format!("there is no topic for the source `{source}`")))
    }
}

impl Source for KafkaSource {
    fn shards<'a>(&'a self, source: &'a str) -> Call<'a, Vec<Shard>> {
        Box::pin(async move {
            let about = self.topic(source)?.about(BELIEVED).await?;
            let incarnation = printed(about.id);
            let shard = |partition: &i32| Shard {
                lineage: Lineage::new(source, &incarnation, &partition.to_string()),
                parents: Vec::new(),
                range: HashRange::ALL,
                closed: false,
            };
            Ok(about.leaders.keys().map(shard).collect())
        })
    }

    fn standing<'a>(&'a self, source: &'a str, application: &'a str) -> Call<'a, Vec<(String, Known)>> {
        Box::pin(async move {
            let committed = self.topic(source)?.committed(application).await?;
            let known = |next: i64| u64::try_from(next - 1).map_or(Known::Nothing, |last| Known::Behind(Offset::new(last)));
            Ok(committed.into_iter().map(|(partition, next)| (partition.to_string(), known(next))).collect())
        })
    }

    fn probe<'a>(&'a self, lineage: &'a Lineage, from: Place) -> Call<'a, ()> {
        Box::pin(async move {
            let (topic, partition) = (self.topic(lineage.source())?, partition(lineage)?);
            let (mut connection, epoch) = topic.leader(lineage, partition).await?;
            let next = topic.resolve(&mut connection, partition, epoch, from).await?;
            let oldest = topic.offset(&mut connection, partition, epoch, OLDEST).await?.unwrap_or_default();
            let newest = topic.offset(&mut connection, partition, epoch, NEWEST).await?.unwrap_or_default();
            if (oldest..=newest).contains(&next) {
                return Ok(());
            }
            let why = format!("it has the records {oldest} to {}, and would be begun with {next}", newest - 1);
            Err(PortError::Fatal(format!("the partition {partition} of the topic {}: {why}", topic.name)))
        })
    }

    fn read<'a>(&'a self, lineage: &'a Lineage, from: Place) -> Call<'a, Read> {
        Box::pin(async move { self.topic(lineage.source())?.read(lineage, from).await })
    }

    fn shows_cuts(&self, source: &str) -> bool {
        self.topics.get(source).is_some_and(|topic| topic.group.is_some())
    }

    fn show_cut<'a>(&'a self, lineage: &'a Lineage, position: Offset) -> Call<'a, ()> {
        Box::pin(async move { self.topic(lineage.source())?.commit(lineage, position).await })
    }
}
