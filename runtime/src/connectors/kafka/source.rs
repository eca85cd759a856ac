//! Topics as a source. Each lineage has a connection of its own to the leader of its partition, where the broker holds a
//! question for records until there are some; leases are ours, so no consumer group is joined. Offsets are committed to a
//! group all the same, behind the cuts, so that tools that show lag work.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use kafka_protocol::messages::offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics};
use kafka_protocol::messages::{BrokerId, FetchRequest, GroupId, ListOffsetsRequest, OffsetCommitRequest, OffsetFetchRequest};
use kafka_protocol::protocol::StrBytes;
use leat_runtime_core::begin::Known;
use leat_runtime_core::key::HashRange;
use leat_runtime_core::position::{Lineage, Offset};
use uuid::Uuid;

use super::brokers::{About, Brokers, Coordinator, lock};
use super::connection::{Connection, Security, refused};
use super::records::{self, Records};
use crate::codecs::time::format_millis;
use crate::connectors::clock::SystemClock;
use crate::engine::ports::{Call, Clock, Place, PortError, Read, Shard, Source};

/// How long a broker holds a question for records until there are some.
const WAIT: Duration = Duration::from_millis(500);
/// Bytes of an answer, unless its first batch alone is larger.
const FETCH_BYTES: i32 = 4 << 20;
/// How long it is believed what brokers said of a topic.
const BELIEVED: Duration = Duration::from_secs(10);
/// What is left to do where records are gone.
const START_OVER: &str = "Start over with other state: delete the pipeline and its lease table, and apply it again";
/// Only what was committed by transactions is read.
const READ_COMMITTED: i8 = 1;
/// Where the log itself begins and ends is asked for so.
const READ_ALL: i8 = 0;
/// How long one read passes over what is no record.
const SCAN: Duration = Duration::from_secs(1);
/// A connection that nobody has used for so long is closed.
const UNUSED: Duration = Duration::from_secs(60);
/// The longest that a broker's wish for fewer questions is followed at once.
const THROTTLE: Duration = Duration::from_secs(5);
/// How long the partitions of a topic are waited for: rounds of a worker wait for them.
const LIST: Duration = Duration::from_secs(2);
/// What stands for the oldest offset in a question for offsets, and for the one behind the newest.
const OLDEST: i64 = -2;
const NEWEST: i64 = -1;

/// A lineage that is being read.
struct Held {
    connection: Connection,
    /// Epoch of the leader that is asked.
    epoch: i32,
    used: Instant,
}

/// How far a lineage was read, also when its connection is lost.
#[derive(Debug, Clone, Copy)]
struct Stand {
    next: i64,
    /// Epoch of the leader that wrote what was read last: a broker whose log has forked says so (KIP-320).
    written: i32,
}

/// A topic.
pub struct Topic {
    brokers: Brokers,
    /// The group to which offsets are committed; `None`: to none.
    group: Option<String>,
    fetch_bytes: i32,
    held: Mutex<HashMap<Lineage, Held>>,
    stands: Mutex<HashMap<Lineage, Stand>>,
    /// To the broker that keeps the group's offsets.
    committer: tokio::sync::Mutex<Option<Connection>>,
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
        Self {
            brokers: Brokers::new(bootstrap, security, name),
            group,
            fetch_bytes: FETCH_BYTES,
            held: Mutex::default(),
            stands: Mutex::default(),
            committer: tokio::sync::Mutex::default(),
        }
    }

    /// The same with answers of so many bytes, unless their first batch alone is larger.
    pub fn with_fetch_bytes(self, fetch_bytes: i32) -> Self {
        Self { fetch_bytes, ..self }
    }

    /// Makes sure that the topic is still the one that a lineage is of.
    fn same(&self, about: &About, lineage: &Lineage) -> Result<(), PortError> {
        if printed(about.id) == lineage.incarnation() {
            return Ok(());
        }
        let why = "it was deleted and made again; its records are not those that were read before";
        Err(PortError::Fatal(format!("the topic {}: {why}", self.brokers.name)))
    }

    /// A connection to the leader of a partition, and the leader's epoch.
    async fn leader(&self, lineage: &Lineage, partition: i32, believed: Duration) -> Result<(Connection, i32), PortError> {
        let about = self.brokers.about(believed).await?;
        self.same(&about, lineage)?;
        let missing = || PortError::Unclear(format!("the topic {} has no partition {partition} that is led", self.brokers.name));
        let (leader, epoch) = about.leaders.get(&partition).copied().ok_or_else(missing)?;
        let address = about.brokers.get(&leader).ok_or_else(missing)?;
        Ok((Connection::open(address, &self.brokers.security).await?, epoch))
    }

    /// An offset by its time: that of the first record of this time or later, or [`OLDEST`] or [`NEWEST`].
    async fn offset(
        &self,
        connection: &mut Connection,
        partition: i32,
        epoch: i32,
        time: i64,
        isolation: i8,
    ) -> Result<Option<i64>, PortError> {
        let wanted = ListOffsetsPartition::default().with_partition_index(partition).with_current_leader_epoch(epoch).with_timestamp(time);
        let topic = ListOffsetsTopic::default().with_name(self.brokers.name()).with_partitions(vec![wanted]);
        let request = ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_isolation_level(isolation).with_topics(vec![topic]);
        let answer = connection.call(&request, 4, 7, Duration::ZERO).await?;
        let found = answer.topics.first().and_then(|t| t.partitions.first());
        let found = found.ok_or_else(|| PortError::Unclear(format!("{}: no answer", self.brokers.what("ListOffsets"))))?;
        match refused(&self.brokers.what("ListOffsets"), found.error_code) {
            Some(why) => Err(why),
            None => Ok((found.offset >= 0).then_some(found.offset)),
        }
    }

    /// The offset that a place means.
    async fn resolve(&self, connection: &mut Connection, partition: i32, epoch: i32, from: Place) -> Result<i64, PortError> {
        match from {
            Place::After(last) | Place::Inside(last) => {
                let number = last.number().and_then(|n| i64::try_from(n).ok());
                let number = number.ok_or_else(|| PortError::Fatal(format!("{}: {last} is no offset of Kafka", self.brokers.name)))?;
                Ok(number.saturating_add(1))
            }
            Place::Oldest => Ok(self.offset(connection, partition, epoch, OLDEST, READ_COMMITTED).await?.unwrap_or_default()),
            Place::Since(_) => Err(PortError::Fatal(format!("{}: a time is asked for once, when the source is begun", self.brokers.name))),
        }
    }

    /// Asks for records from a place on; what is no record is passed over, for [`SCAN`] at most.
    async fn read(&self, lineage: &Lineage, from: Place) -> Result<Read, PortError> {
        let partition = partition(lineage)?;
        // Taken out while it is used: a call that failed or was given up leaves nothing behind that could be used wrongly.
        let held = lock(&self.held).remove(lineage);
        let mut held = match held {
            Some(held) => held,
            None => {
                let (connection, epoch) = self.leader(lineage, partition, Duration::ZERO).await?;
                Held { connection, epoch, used: Instant::now() }
            }
        };
        let next = self.resolve(&mut held.connection, partition, held.epoch, from).await?;
        let stood = lock(&self.stands).get(lineage).copied().filter(|stood| stood.next == next);
        let mut stand = stood.unwrap_or(Stand { next, written: -1 });
        let began = Instant::now();
        let read = loop {
            let Some(found) = self.ask(lineage, partition, &mut held, stand, from).await? else {
                if began.elapsed() >= SCAN {
                    let scanned = u64::try_from(stand.next - 1).ok().map(Offset::new);
                    break Read { scanned, more: true, ..Read::default() };
                }
                continue;
            };
            if found.diverging_epoch.epoch >= 0 {
                return Err(self.cut_back(partition, found.diverging_epoch.end_offset));
            }
            if found.preferred_read_replica.0 >= 0 {
                let why = "brokers send readers to replicas (replica.selector.class), which does not work yet";
                return Err(PortError::Fatal(format!("{}: {why}", self.brokers.what("Fetch"))));
            }
            let bytes = found.records.unwrap_or_default();
            let (empty, aborted) = (bytes.is_empty(), found.aborted_transactions.unwrap_or_default());
            let Records { batch, next, written } = records::read(bytes, stand.next, &aborted)
                .map_err(|why| PortError::Fatal(format!("{}, partition {partition}: {why}", self.brokers.what("Fetch"))))?;
            if !empty && next == stand.next {
                let why = format!("no batch of an answer at {next} is whole");
                return Err(PortError::Fatal(format!("{}, partition {partition}: {why}", self.brokers.what("Fetch"))));
            }
            stand = Stand { next, written: written.unwrap_or(stand.written) };
            if empty || !batch.is_empty() || began.elapsed() >= SCAN {
                // Behind the last committed record there may be more, in a transaction that is open.
                let more = stand.next < found.high_watermark;
                let scanned = u64::try_from(stand.next - 1).ok().map(Offset::new);
                break Read { batch, scanned, more, awaited: began.elapsed() >= WAIT / 2, ..Read::default() };
            }
        };
        held.used = Instant::now();
        let mut all = lock(&self.held);
        // Leases move: what is not read here any more is closed.
        all.retain(|_, other| other.used.elapsed() < UNUSED);
        all.insert(lineage.clone(), held);
        lock(&self.stands).insert(lineage.clone(), stand);
        Ok(read)
    }

    /// One question for records; `None`: it is to be asked again, the broker wants fewer of them.
    async fn ask(
        &self,
        lineage: &Lineage,
        partition: i32,
        held: &mut Held,
        stand: Stand,
        from: Place,
    ) -> Result<Option<PartitionData>, PortError> {
        let wanted = FetchPartition::default()
            .with_partition(partition)
            .with_current_leader_epoch(held.epoch)
            .with_fetch_offset(stand.next)
            .with_last_fetched_epoch(stand.written)
            .with_log_start_offset(-1)
            .with_partition_max_bytes(self.fetch_bytes);
        let topic = FetchTopic::default().with_topic_id(parsed(lineage.incarnation())?).with_partitions(vec![wanted]);
        let request = FetchRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_max_wait_ms(WAIT.as_millis() as i32)
            .with_min_bytes(1)
            .with_max_bytes(self.fetch_bytes)
            .with_isolation_level(READ_COMMITTED)
            .with_session_epoch(-1)
            .with_topics(vec![topic]);
        // 13: topics by their ids.
        let answer = held.connection.call(&request, 13, 16, WAIT).await?;
        if answer.throttle_time_ms > 0 {
            tokio::time::sleep(Duration::from_millis(answer.throttle_time_ms as u64).min(THROTTLE)).await;
        }
        let found = answer.responses.into_iter().next().and_then(|t| t.partitions.into_iter().next());
        let code = if answer.error_code == 0 { found.as_ref().map_or(0, |f| f.error_code) } else { answer.error_code };
        if code != 0 {
            return Err(self.fetch_failed(code, lineage, held, stand, from).await);
        }
        if found.is_none() && answer.throttle_time_ms == 0 {
            return Err(PortError::Unclear(format!("{}: no answer", self.brokers.what("Fetch"))));
        }
        Ok(found)
    }

    /// What an error of a question for records means, and what follows.
    async fn fetch_failed(&self, code: i16, lineage: &Lineage, held: &mut Held, stand: Stand, from: Place) -> PortError {
        let at = format!("{}, partition {}", self.brokers.what("Fetch"), lineage.partition());
        match ResponseError::try_from_code(code) {
            // The topic's id is not known any more, or not yet by this broker.
            Some(ResponseError::UnknownTopicId | ResponseError::InconsistentTopicId) => match self.brokers.about(Duration::ZERO).await {
                Ok(about) => match self.same(&about, lineage) {
                    Ok(()) => PortError::Unclear(format!("{at}: the broker does not know the topic's id yet")),
                    Err(why) => why,
                },
                Err(why) => why,
            },
            Some(ResponseError::OffsetOutOfRange) => {
                let partition = partition(lineage).unwrap_or_default();
                let (connection, epoch) = (&mut held.connection, held.epoch);
                let ends = async {
                    let oldest = self.offset(connection, partition, epoch, OLDEST, READ_ALL).await?.unwrap_or_default();
                    Ok((oldest, self.offset(connection, partition, epoch, NEWEST, READ_ALL).await?.unwrap_or_default()))
                };
                match ends.await {
                    Err(why) => why,
                    // Nothing was taken yet that what is gone was missing from.
                    Ok((oldest, _)) if oldest > stand.next && from == Place::Oldest => {
                        PortError::Unclear(format!("{at}: its oldest records have just been removed"))
                    }
                    Ok((oldest, _)) if oldest > stand.next => PortError::Fatal(format!(
                        "{at}: the records {} to {} are gone; they were kept for less long than nobody read them. {START_OVER}",
                        stand.next,
                        oldest - 1
                    )),
                    Ok((_, newest)) if stand.next > newest => self.cut_back(partition, newest),
                    // The broker does not know the epoch that was written in, or the log has just moved.
                    Ok(_) => {
                        lock(&self.stands).remove(lineage);
                        PortError::Unclear(format!("{at}: the broker does not take the offset {} just now", stand.next))
                    }
                }
            }
            _ => refused(&at, code).unwrap_or(PortError::Unclear(at)),
        }
    }

    /// What was read is not what the topic has any more.
    fn cut_back(&self, partition: i32, at: i64) -> PortError {
        let why =
            format!("the topic was cut back to {at}, as by an unclean election of a leader, and what was read of it is not what it has");
        PortError::Fatal(format!("{}, partition {partition}: {why}. {START_OVER}", self.brokers.what("Fetch")))
    }

    /// The offsets that a group has committed: of each partition the one that it reads next.
    async fn committed(&self, group: &str) -> Result<BTreeMap<i32, i64>, PortError> {
        let what = format!("Kafka OffsetFetch {group} {}", self.brokers.name);
        let partitions = self.brokers.about(BELIEVED).await?.leaders.into_keys().collect();
        let topic = OffsetFetchRequestTopics::default().with_name(self.brokers.name()).with_partition_indexes(partitions);
        let wanted = OffsetFetchRequestGroup::default()
            .with_group_id(GroupId(StrBytes::from_string(group.to_owned())))
            .with_member_epoch(-1)
            .with_topics(Some(vec![topic]));
        let request = OffsetFetchRequest::default().with_groups(vec![wanted]).with_require_stable(true);
        let answer = self.brokers.coordinator(Coordinator::Group, group).await?.call(&request, 8, 9, Duration::ZERO).await?;
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
            return Err(PortError::Fatal(format!("the group {group} has committed no offset of the topic {}", self.brokers.name)));
        }
        Ok(committed)
    }

    /// Commits what is behind a cut to the pipeline's group.
    async fn commit(&self, lineage: &Lineage, position: Offset) -> Result<(), PortError> {
        let (Some(group), Some(number)) = (&self.group, position.number()) else { return Ok(()) };
        let (partition, next) = (partition(lineage)?, i64::try_from(number).unwrap_or(i64::MAX).saturating_add(1));
        let what = format!("Kafka OffsetCommit {group} {}", self.brokers.name);
        let wanted = OffsetCommitRequestPartition::default().with_partition_index(partition).with_committed_offset(next);
        let topic = OffsetCommitRequestTopic::default().with_name(self.brokers.name()).with_partitions(vec![wanted]);
        let request = OffsetCommitRequest::default()
            .with_group_id(GroupId(StrBytes::from_string(group.clone())))
            .with_generation_id_or_member_epoch(-1)
            .with_topics(vec![topic]);
        let mut kept = self.committer.lock().await;
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => self.brokers.coordinator(Coordinator::Group, group).await?,
        };
        let answer = connection.call(&request, 8, 9, Duration::ZERO).await?;
        let code = answer.topics.first().and_then(|t| t.partitions.first()).map_or(0, |p| p.error_code);
        if let Some(why) = refused(&what, code) {
            return Err(why);
        }
        *kept = Some(connection);
        Ok(())
    }
}

/// What was read where an offset is next.
fn behind(next: i64) -> Known {
    u64::try_from(next - 1).map_or(Known::Nothing, |last| Known::Behind(Offset::new(last)))
}

/// The number of a lineage's partition.
fn partition(lineage: &Lineage) -> Result<i32, PortError> {
    lineage.partition().parse().map_err(|_| PortError::Fatal(format!("`{}` is no partition of a topic", lineage.partition())))
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
            let topic = self.topic(source)?;
            let about = tokio::time::timeout(LIST, topic.brokers.about(BELIEVED)).await;
            let about = about
                .unwrap_or_else(|_| Err(PortError::Unclear(format!("{}: no answer within {LIST:?}", topic.brokers.what("Metadata")))))?;
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
            Ok(committed.into_iter().map(|(partition, next)| (partition.to_string(), behind(next))).collect())
        })
    }

    fn asks_time_once(&self, _source: &str) -> bool {
        true
    }

    fn at_time<'a>(&'a self, source: &'a str, time: Option<i64>) -> Call<'a, Vec<(String, Known)>> {
        Box::pin(async move {
            let topic = self.topic(source)?;
            if let Some(time) = time.filter(|time| *time > SystemClock.now()) {
                return Err(PortError::Fatal(format!("{}: {} lies ahead", topic.brokers.name, format_millis(time))));
            }
            let mut known = Vec::new();
            for shard in self.shards(source).await? {
                let partition = partition(&shard.lineage)?;
                let (mut connection, epoch) = topic.leader(&shard.lineage, partition, BELIEVED).await?;
                let found = match time {
                    Some(time) => topic.offset(&mut connection, partition, epoch, time, READ_ALL).await?,
                    None => None,
                };
                let next = match found {
                    Some(next) => next,
                    None => topic.offset(&mut connection, partition, epoch, NEWEST, READ_ALL).await?.unwrap_or_default(),
                };
                known.push((partition.to_string(), behind(next)));
            }
            Ok(known)
        })
    }

    fn probe<'a>(&'a self, lineage: &'a Lineage, from: Place) -> Call<'a, ()> {
        Box::pin(async move {
            let (topic, partition) = (self.topic(lineage.source())?, partition(lineage)?);
            let (mut connection, epoch) = topic.leader(lineage, partition, BELIEVED).await?;
            let next = topic.resolve(&mut connection, partition, epoch, from).await?;
            let oldest = topic.offset(&mut connection, partition, epoch, OLDEST, READ_ALL).await?.unwrap_or_default();
            let newest = topic.offset(&mut connection, partition, epoch, NEWEST, READ_ALL).await?.unwrap_or_default();
            if (oldest..=newest).contains(&next) {
                return Ok(());
            }
            let why = format!("it has the records {oldest} to {}, and would be begun with {next}", newest - 1);
            Err(PortError::Fatal(format!("the partition {partition} of the topic {}: {why}", topic.brokers.name)))
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
