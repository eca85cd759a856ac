//! Enhanced fan-out: Kinesis pushes the records of a shard to a registered consumer, which has 2 MB a second of each shard to
//! itself and shares the five reads a second with nobody.
//!
//! A subscription lasts for five minutes at most and begins at a position; nothing is acknowledged, so one that ends is
//! followed by one behind the last record that was handed on. One consumer can have one subscription to a shard: a second one
//! is refused within five seconds of the first, and ends it later
//! (<https://docs.aws.amazon.com/kinesis/latest/APIReference/API_SubscribeToShard.html>). So a worker whose lease was taken
//! may end that of the new owner; both read on, and cuts of the old one are refused as ever.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::operation::subscribe_to_shard::SubscribeToShardOutput;
use aws_sdk_kinesis::primitives::DateTime;
use aws_sdk_kinesis::types::error::SubscribeToShardEventStreamError as StreamError;
use aws_sdk_kinesis::types::{ConsumerStatus, ShardIteratorType, StartingPosition, SubscribeToShardEventStream as Pushed};
use leat_aws::Failure;
use leat_runtime_core::position::Offset;

use super::kinesis::{Answer, Stream, lock, not_begun, offset};
use crate::engine::ports::{Place, PortError};

/// Longest that a read waits for the next event. Kinesis sends one every few seconds, also without records.
const WAIT: Duration = Duration::from_secs(1);
/// A subscription that was not read for so long is dropped: what it was sent takes room on a connection that others use.
const UNREAD: Duration = Duration::from_secs(10);
/// After this without an event nothing is known of what is there.
const SILENT: Duration = Duration::from_secs(10);
/// After this without an event the subscription is begun again, as the Kinesis Client Library does.
const DEAD: Duration = Duration::from_secs(35);
/// Least time between two calls for one shard: one a second is allowed.
const AGAIN: Duration = Duration::from_secs(1);
/// Longest that a call may take until its first event.
const SUBSCRIBE: Duration = Duration::from_secs(10);

/// A subscription to a shard.
struct Subscription {
    /// Behind what was handed on.
    from: Place,
    /// `None`: it is over, and the next one is not to be begun before its time.
    events: Option<SubscribeToShardOutput>,
    since: Instant,
    /// When it was read last.
    read: Instant,
    /// When the last event came.
    heard: Instant,
    /// Whether more was there when the last event was sent.
    behind: bool,
    /// How far the shard was looked through with the last event, records or not.
    through: Option<Offset>,
}

impl Subscription {
    /// Whether there may be more than was sent.
    fn unknown(&self) -> bool {
        self.behind || self.heard.elapsed() > SILENT
    }
}

/// A consumer of a stream.
pub struct Consumer {
    name: String,
    /// Clients with connections of their own, which subscriptions take in turn.
    lines: Vec<Client>,
    turn: AtomicUsize,
    arn: Mutex<Option<String>>,
    subscriptions: Mutex<HashMap<String, Subscription>>,
}

impl Consumer {
    /// The consumer of this name; `lines`: see [`Stream::pushed_to`].
    pub fn new(name: &str, lines: Vec<Client>) -> Self {
        Self { name: name.to_owned(), lines, turn: AtomicUsize::default(), arn: Mutex::default(), subscriptions: Mutex::default() }
    }

    /// Its ARN, which names one registration of it.
    async fn arn(&self, stream: &Stream) -> Result<String, PortError> {
        if let Some(arn) = &*lock(&self.arn) {
            return Ok(arn.clone());
        }
        let of = stream.arn().await?;
        let answer = stream.client.describe_stream_consumer().stream_arn(&of).consumer_name(&self.name).send().await;
        let answer = answer.map_err(|e| {
            let failure = Failure::of(stream.tried("Kinesis DescribeStreamConsumer"), &e);
            if failure.code() != Some("ResourceNotFoundException") {
                return PortError::from(failure);
            }
            let register = format!("aws kinesis register-stream-consumer --stream-arn {of} --consumer-name {}", self.name);
            PortError::Fatal(format!("the stream {} has no consumer {}; register it: {register}", stream.name, self.name))
        })?;
        let found = answer.consumer_description().filter(|c| *c.consumer_status() == ConsumerStatus::Active);
        let Some(found) = found.map(|c| c.consumer_arn().to_owned()) else {
            return Err(PortError::Unclear(format!("the consumer {} of {} is not active yet", self.name, stream.name)));
        };
        *lock(&self.arn) = Some(found.clone());
        Ok(found)
    }

    /// Begins a subscription; behind `through`, where all from the place to there has come already.
    async fn subscribe(
        &self,
        stream: &Stream,
        shard: &str,
        from: Place,
        through: Option<Offset>,
    ) -> Result<SubscribeToShardOutput, PortError> {
        let arn = self.arn(stream).await?;
        let position = match from {
            Place::Oldest => StartingPosition::builder().r#type(ShardIteratorType::TrimHorizon),
            Place::Since(time) => StartingPosition::builder().r#type(ShardIteratorType::AtTimestamp).timestamp(DateTime::from_millis(time)),
            Place::After(after) => {
                StartingPosition::builder().r#type(ShardIteratorType::AfterSequenceNumber).sequence_number(after.inside(0).to_string())
            }
            Place::Inside(at) => {
                StartingPosition::builder().r#type(ShardIteratorType::AtSequenceNumber).sequence_number(at.inside(0).to_string())
            }
        };
        let position = through.map_or(position, |through| {
            StartingPosition::builder().r#type(ShardIteratorType::AfterSequenceNumber).sequence_number(through.to_string())
        });
        let position = position.build().map_err(|e| PortError::Fatal(e.to_string()))?;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let client = self.lines.get(turn % self.lines.len().max(1)).unwrap_or(&stream.client);
        let call = client.subscribe_to_shard().consumer_arn(&arn).shard_id(shard).starting_position(position).send();
        let Ok(answer) = tokio::time::timeout(SUBSCRIBE, call).await else {
            return Err(PortError::Unclear(format!("{}: time-out", stream.tried("Kinesis SubscribeToShard"))));
        };
        match answer {
            Ok(begun) => Ok(begun),
            Err(error) => {
                let failure = Failure::of(stream.tried("Kinesis SubscribeToShard"), &error);
                // The consumer was registered again, or is gone; or it is the shard that is gone.
                if failure.code() == Some("ResourceNotFoundException") {
                    lock(&self.arn).take();
                    if self.arn(stream).await? != arn {
                        return Err(PortError::Unclear(failure.to_string()));
                    }
                }
                Err(not_begun(&stream.name, from, failure))
            }
        }
    }

    /// The next records of a shard behind a place.
    pub(super) async fn read(&self, stream: &Stream, shard: &str, from: Place, incarnation: Option<&str>) -> Result<Answer, PortError> {
        let held = {
            let mut subscriptions = lock(&self.subscriptions);
            // What one that was not read for long has kept is old, and no word of what is there now.
            subscriptions.retain(|_, s| s.read.elapsed() < UNREAD);
            subscriptions.remove(shard)
        };
        let mut subscription = match held {
            Some(held) if held.from == from && held.events.is_some() => held,
            before => {
                // The one before ends here, if there is one.
                if let Some(before) = &before {
                    tokio::time::sleep_until((before.since + AGAIN).into()).await;
                }
                // What was known of the shard is known still, when one follows that ended here.
                let known = before.filter(|before| before.from == from);
                self.begin(stream, shard, from, incarnation, known).await?
            }
        };
        let answer = self.next(stream, &mut subscription).await;
        subscription.read = Instant::now();
        if !answer.as_ref().is_ok_and(|answer| answer.ended) {
            lock(&self.subscriptions).insert(shard.to_owned(), subscription);
        }
        answer
    }

    /// A new subscription; one that cannot be had is not asked for again at once.
    async fn begin(
        &self,
        stream: &Stream,
        shard: &str,
        from: Place,
        incarnation: Option<&str>,
        known: Option<Subscription>,
    ) -> Result<Subscription, PortError> {
        let now = Instant::now();
        let mut subscription = match known {
            Some(known) => Subscription { events: None, since: now, ..known },
            None => Subscription { from, events: None, since: now, read: now, heard: now, behind: true, through: None },
        };
        let begun = match stream.is_still(incarnation).await {
            Ok(()) => self.subscribe(stream, shard, from, subscription.through).await,
            Err(error) => Err(error),
        };
        match begun {
            Ok(events) => {
                subscription.events = Some(events);
                Ok(subscription)
            }
            Err(error) => {
                subscription.read = Instant::now();
                subscription.behind = true;
                // It may be the number that cannot be begun behind.
                let numbered = subscription.through.take().is_some();
                lock(&self.subscriptions).insert(shard.to_owned(), subscription);
                Err(match error {
                    PortError::Fatal(why) if numbered => PortError::Unclear(why),
                    error => error,
                })
            }
        }
    }

    /// What is pushed next.
    async fn next(&self, stream: &Stream, subscription: &mut Subscription) -> Result<Answer, PortError> {
        let Some(events) = &mut subscription.events else { return Ok(Answer::nothing(true)) };
        let event = match tokio::time::timeout(WAIT, events.event_stream.recv()).await {
            // A connection that died unnoticed is as silent as a shard; what is not known is not the tip.
            Err(_) if subscription.heard.max(subscription.since).elapsed() > DEAD => {
                subscription.events = None;
                let what = stream.tried("Kinesis SubscribeToShard");
                return Err(PortError::Unclear(format!("{what}: nothing was sent for {} s", DEAD.as_secs())));
            }
            Err(_) => return Ok(Answer::nothing(subscription.unknown())),
            Ok(Ok(Some(Pushed::SubscribeToShardEvent(event)))) => event,
            // Something that is not known yet.
            Ok(Ok(Some(_))) => return Ok(Answer::nothing(true)),
            // As it does after five minutes: whether this is the tip is no other question than before.
            Ok(Ok(None)) => {
                subscription.events = None;
                return Ok(Answer::nothing(subscription.unknown()));
            }
            Ok(Err(error)) => {
                subscription.events = None;
                subscription.behind = true;
                let error = error.into_service_error();
                if matches!(error, StreamError::ResourceNotFoundException(_)) {
                    *lock(&self.arn) = None;
                }
                let why = format!("{}: {error}", stream.tried("Kinesis SubscribeToShard"));
                return Err(if ends_by_itself(&error) { PortError::Unclear(why) } else { PortError::Fatal(why) });
            }
        };
        subscription.heard = Instant::now();
        let children: Vec<String> = event.child_shards().iter().map(|c| c.shard_id().to_owned()).collect();
        let ended = !children.is_empty();
        subscription.behind = event.millis_behind_latest > 0;
        let last = event.records.last().map(|r| offset(r.sequence_number())).transpose()?;
        if let Some(last) = last {
            subscription.from = Place::After(last);
        }
        let least = match subscription.from {
            Place::After(last) | Place::Inside(last) => last,
            Place::Oldest | Place::Since(_) => Offset::new(0),
        };
        subscription.through = offset(&event.continuation_sequence_number).ok().filter(|through| *through > least);
        Ok(Answer { records: event.records, more: subscription.behind, awaited: true, ended, children })
    }
}

/// Whether another subscription may do better, without anybody's doing.
fn ends_by_itself(error: &StreamError) -> bool {
    use StreamError as E;
    !matches!(
        error,
        E::KmsAccessDeniedException(_) | E::KmsDisabledException(_) | E::KmsInvalidStateException(_) | E::KmsNotFoundException(_)
    )
}
