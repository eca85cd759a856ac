//! The brokers of a cluster, and what they say of one topic.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicUsize;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{FindCoordinatorRequest, MetadataRequest, TopicName};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use super::connection::{Connection, Security, refused};
use crate::engine::ports::PortError;

/// Bytes of a batch: brokers take 1 MiB, unless told otherwise (`max.message.bytes`).
const BATCH: usize = 512 << 10;
/// How long one broker is waited for before another is tried too.
const NEXT_BROKER: Duration = Duration::from_millis(300);

/// What brokers say of a topic.
#[derive(Debug, Clone)]
pub struct About {
    pub id: Uuid,
    /// Leaders by partition, and the epoch of each.
    pub leaders: BTreeMap<i32, (i32, i32)>,
    /// `host:port` of each broker.
    pub brokers: HashMap<i32, String>,
    at: Instant,
}

/// Who keeps what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coordinator {
    /// The offsets of a group.
    Group = 0,
    /// The transactions of a producer.
    Transaction = 1,
}

/// Brokers, seen by who wants one topic of them.
pub struct Brokers {
    bootstrap: Vec<String>,
    /// How they are spoken to.
    pub security: Security,
    /// Name of the topic.
    pub name: String,
    /// Batches of records that are written have at most so many bytes before they are compressed, unless one record alone has
    /// more. Less where the topic takes less.
    pub batch_bytes: AtomicUsize,
    about: Mutex<Option<About>>,
}

pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Brokers {
    /// Those of a cluster that has the topic `name`; of these (`host:port`) one at least answers.
    pub fn new(bootstrap: Vec<String>, security: Security, name: &str) -> Self {
        Self { bootstrap, security, name: name.to_owned(), batch_bytes: AtomicUsize::new(BATCH), about: Mutex::default() }
    }

    /// The topic's name, as messages have it.
    pub fn name(&self) -> TopicName {
        TopicName(StrBytes::from_string(self.name.clone()))
    }

    /// What an error of an operation begins with.
    pub fn what(&self, operation: &str) -> String {
        format!("Kafka {operation} {}", self.name)
    }

    /// A connection to any broker: one that is known, or one of those that the manifest names.
    async fn any(&self) -> Result<Connection, PortError> {
        let known: Vec<String> = lock(&self.about).iter().flat_map(|about| about.brokers.values().cloned()).collect();
        // One that does not answer must not hide those that do: another is tried soon, and the first that answers is taken.
        let open = |(i, address): (usize, &String)| {
            let address = address.clone();
            Box::pin(async move {
                tokio::time::sleep(NEXT_BROKER * i as u32).await;
                match Connection::open(&address, &self.security).await {
                    Err(PortError::Unclear(why)) => Err(PortError::Unclear(why)),
                    clear => Ok(clear),
                }
            })
        };
        let tried: Vec<_> = known.iter().chain(&self.bootstrap).enumerate().map(open).collect();
        if tried.is_empty() {
            return Err(PortError::Fatal(format!("{}: no broker is named", self.name)));
        }
        future::select_ok(tried).await?.0
    }

    /// What brokers say of the topic now, or said not long ago.
    pub async fn about(&self, believed: Duration) -> Result<About, PortError> {
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
        if topic.topic_id.is_nil() {
            let why = "it has no id: raise inter.broker.protocol.version of the cluster to 2.8 or more";
            return Err(PortError::Fatal(format!("the topic {}: {why}", self.name)));
        }
        let about = About { id: topic.topic_id, leaders: leaders.collect(), brokers: brokers.collect(), at: Instant::now() };
        *lock(&self.about) = Some(about.clone());
        Ok(about)
    }

    /// A connection to the broker that keeps something of this name.
    pub async fn coordinator(&self, kind: Coordinator, name: &str) -> Result<Connection, PortError> {
        let what = format!("Kafka FindCoordinator {name}");
        let request =
            FindCoordinatorRequest::default().with_key_type(kind as i8).with_coordinator_keys(vec![StrBytes::from_string(name.to_owned())]);
        let answer = self.any().await?.call(&request, 4, 5, Duration::ZERO).await?;
        let found = answer.coordinators.first().ok_or_else(|| PortError::Unclear(format!("{what}: no answer")))?;
        match refused(&what, found.error_code) {
            Some(why) => Err(why),
            None => Connection::open(&format!("{}:{}", found.host, found.port), &self.security).await,
        }
    }
}
