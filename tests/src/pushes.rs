//! Subscriptions to shards, made of the emulator's GetRecords: kinesis-local sends no first message and never ends a shard,
//! ferrokinesis begins where it likes, and neither knows that a consumer has one subscription to a shard
//! (<https://docs.aws.amazon.com/kinesis/latest/APIReference/API_SubscribeToShard.html>).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_smithy_eventstream::frame::write_message_to;
use aws_smithy_types::event_stream::{Header, HeaderValue, Message};
use axum::body::{Body, Bytes};
use axum::http::Response;
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::clouds::json_answer;

/// A second subscription within this time is refused; Kinesis has five seconds.
const APART: Duration = Duration::from_millis(1_500);
/// Between two looks at a shard.
const PAUSE: Duration = Duration::from_millis(200);

struct Subscription {
    since: Instant,
    /// Another one has come.
    over: Arc<Notify>,
    /// The server ends it.
    end: Arc<Notify>,
}

/// The subscriptions that there are, by consumer and shard.
#[derive(Default)]
pub struct Pushes {
    of: Mutex<BTreeMap<String, Subscription>>,
    begun: Mutex<u64>,
}

impl Pushes {
    /// Ends all subscriptions, as Kinesis does when they are five minutes old; each may be begun again at once.
    pub fn end(&self) {
        for subscription in std::mem::take(&mut *self.of.lock().expect("a lock")).into_values() {
            subscription.end.notify_one();
        }
    }

    /// How many were begun.
    pub fn begun(&self) -> u64 {
        *self.begun.lock().expect("a lock")
    }

    /// Begins one. `call` asks the emulator.
    pub async fn begin<F>(&self, request: &Value, call: impl Fn(&'static str, Value) -> F + Send + Sync + 'static) -> Response<Body>
    where
        F: Future<Output = (u16, Value)> + Send,
    {
        let key = key(request);
        if self.of.lock().expect("a lock").get(&key).is_some_and(|s| s.since.elapsed() < APART) {
            let why = "another subscription was begun a moment ago";
            return json_answer(400, &json!({"__type": "ResourceInUseException", "message": why}));
        }
        let at = &request["StartingPosition"];
        let arn = request["ConsumerARN"].as_str().unwrap_or_default();
        let stream = arn.split('/').nth(1).unwrap_or_default();
        let mut ask = json!({"StreamName": stream, "ShardId": request["ShardId"], "ShardIteratorType": at["Type"]});
        for (from, to) in [("SequenceNumber", "StartingSequenceNumber"), ("Timestamp", "Timestamp")] {
            if !at[from].is_null() {
                ask[to] = at[from].clone();
            }
        }
        let (status, answer) = call("GetShardIterator", ask).await;
        let Some(iterator) = answer["ShardIterator"].as_str().map(str::to_owned).filter(|_| status == 200) else {
            return json_answer(status, &answer);
        };
        let (over, end) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let subscription = Subscription { since: Instant::now(), over: Arc::clone(&over), end: Arc::clone(&end) };
        if let Some(before) = self.of.lock().expect("a lock").insert(key, subscription) {
            before.over.notify_one();
        }
        *self.begun.lock().expect("a lock") += 1;
        let first = frame("event", ":event-type", "initial-response", &json!({}));
        let (call, begun) = (Arc::new(call), at["SequenceNumber"].as_str().unwrap_or("0").to_owned());
        let shard = json!({"StreamName": stream, "ShardId": request["ShardId"]});
        let rest = futures::stream::unfold(Some((iterator, begun)), move |state| {
            let (over, end, call, shard) = (Arc::clone(&over), Arc::clone(&end), Arc::clone(&call), shard.clone());
            async move {
                let (iterator, behind) = state?;
                tokio::select! {
                    (event, next) = event(&*call, &shard, iterator, behind) => Some((event, next)),
                    () = end.notified() => None,
                    () = over.notified() => {
                        let why = json!({"message": "another subscription was begun"});
                        Some((frame("exception", ":exception-type", "ResourceInUseException", &why), None))
                    }
                }
            }
        });
        let body = Body::from_stream(futures::stream::iter([first]).chain(rest).map(Ok::<_, std::convert::Infallible>));
        Response::builder().header("content-type", "application/vnd.amazon.eventstream").body(body).expect("an answer")
    }
}

/// The next event: records, or word that there were none for a second; and where it goes on, which it does not behind the end
/// of a shard.
async fn event<F: Future<Output = (u16, Value)>>(
    call: &impl Fn(&'static str, Value) -> F,
    shard: &Value,
    mut iterator: String,
    mut behind: String,
) -> (Bytes, Option<(String, String)>) {
    for last in [false, false, false, false, true] {
        let (_, answer) = call("GetRecords", json!({"ShardIterator": iterator, "Limit": 1000})).await;
        let records = answer["Records"].as_array().cloned().unwrap_or_default();
        if let Some(number) = records.last().and_then(|r| r["SequenceNumber"].as_str()) {
            number.clone_into(&mut behind);
        }
        let next = answer["NextShardIterator"].as_str().map(str::to_owned);
        let mut event = json!({"Records": records, "MillisBehindLatest": answer["MillisBehindLatest"], "ChildShards": []});
        match next {
            None => {
                event["ChildShards"] = children(call, shard).await;
                return (frame("event", ":event-type", "SubscribeToShardEvent", &event), None);
            }
            Some(next) if last || !records.is_empty() => {
                event["ContinuationSequenceNumber"] = Value::from(behind.as_str());
                return (frame("event", ":event-type", "SubscribeToShardEvent", &event), Some((next, behind)));
            }
            Some(next) => iterator = next,
        }
        tokio::time::sleep(PAUSE).await;
    }
    unreachable!("the last try is answered whatever it brings")
}

/// The shards that go on behind one that has ended, which ferrokinesis does not name.
async fn children<F: Future<Output = (u16, Value)>>(call: &impl Fn(&'static str, Value) -> F, shard: &Value) -> Value {
    let (_, answer) = call("ListShards", json!({"StreamName": shard["StreamName"]})).await;
    let parents = |of: &Value| -> Vec<Value> {
        ["ParentShardId", "AdjacentParentShardId"].iter().map(|name| of[name].clone()).filter(|id| !id.is_null()).collect()
    };
    let listed = answer["Shards"].as_array().cloned().unwrap_or_default();
    let children = listed.iter().filter(|of| parents(of).contains(&shard["ShardId"]));
    children.map(|of| json!({"ShardId": of["ShardId"], "ParentShards": parents(of), "HashKeyRange": of["HashKeyRange"]})).collect()
}

fn key(request: &Value) -> String {
    format!("{} {}", request["ConsumerARN"], request["ShardId"])
}

/// A message of an event stream.
fn frame(kind: &str, about: &str, name: &str, payload: &Value) -> Bytes {
    let text = |text: &str| HeaderValue::String(text.to_owned().into());
    let message = Message::new(payload.to_string())
        .add_header(Header::new(":message-type", text(kind)))
        .add_header(Header::new(about.to_owned(), text(name)))
        .add_header(Header::new(":content-type", text("application/json")));
    let mut bytes = Vec::new();
    write_message_to(&message, &mut bytes).expect("a message");
    bytes.into()
}
