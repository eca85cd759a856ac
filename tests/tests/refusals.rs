//! Sinks in AWS that refuse: the same verdict of all of them. What is forbidden, missing or malformed has no effect and says what was
//! tried and what to do; what passes by itself is tried again; what was taken is not sent again.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Request, Response};
use http_body_util::BodyExt;
use leat_aws::{Retries, SdkConfig, Target};
use leat_runtime::connectors::aws::dynamodb::SinkTables;
use leat_runtime::connectors::aws::kinesis::{KinesisStreams, Stream};
use leat_runtime::connectors::aws::s3::{S3Files, Store as S3Store};
use leat_runtime::engine::ports::{Files, Guard, PortError, Streams, Tables};
use leat_runtime::output::{Attribute, Item, StreamRecord};
use serde_json::{Value, json};

/// What the services answer.
#[derive(Clone, Copy)]
enum Mood {
    /// This status and code, to every call.
    Refuses(u16, &'static str),
    /// So many calls are taken, then it is throttled until the mood is another one.
    Takes(usize),
}

/// All services at one address.
struct Services {
    mood: Mutex<Mood>,
    /// Calls that were taken: their bodies.
    taken: Mutex<Vec<Value>>,
}

async fn answer(State(services): State<Arc<Services>>, request: Request<Body>) -> Response<Body> {
    let is_json = request.headers().contains_key("x-amz-target");
    let body = request.into_body().collect().await.expect("a body").to_bytes();
    let mut mood = services.mood.lock().expect("a lock");
    let (status, code) = match &mut *mood {
        Mood::Refuses(status, code) => (*status, *code),
        Mood::Takes(0) => (400, "ProvisionedThroughputExceededException"),
        Mood::Takes(left) => {
            *left -= 1;
            let request: Value = serde_json::from_slice(&body).expect("JSON");
            let entries = request["Records"].as_array().map_or(0, Vec::len);
            services.taken.lock().expect("a lock").push(request);
            let records: Vec<Value> = (0..entries).map(|n| json!({"SequenceNumber": n.to_string(), "ShardId": "shardId-0"})).collect();
            return Response::new(Body::from(json!({"FailedRecordCount": 0, "Records": records}).to_string()));
        }
    };
    let said = match is_json {
        true => json!({"__type": code, "message": "answered by the test"}).to_string(),
        false => format!("<Error><Code>{code}</Code><Message>answered by the test</Message></Error>"),
    };
    let kind = if is_json { "application/x-amz-json-1.0" } else { "application/xml" };
    Response::builder().status(status).header("content-type", kind).body(Body::from(said)).expect("an answer")
}

/// The sinks of a pipeline, and the services behind them.
struct Sinks {
    services: Arc<Services>,
    streams: KinesisStreams,
    tables: SinkTables,
    files: S3Files,
}

impl Sinks {
    async fn new() -> Self {
        let services = Arc::new(Services { mood: Mutex::new(Mood::Takes(0)), taken: Mutex::default() });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let app = axum::Router::new().fallback(answer).layer(axum::extract::DefaultBodyLimit::max(64 << 20));
        let app = app.with_state(Arc::clone(&services));
        tokio::spawn(async move { axum::serve(listener, app).await });
        let target = Target { region: Some("us-east-1".to_owned()), ..Target::default() };
        let credentials = SharedCredentialsProvider::new(Credentials::new("test", "test", None, None, "test"));
        let config: SdkConfig = leat_aws::connect(&target, Retries::Caller).await;
        let config = config.into_builder().credentials_provider(credentials).endpoint_url(endpoint).build();
        let s3 = aws_sdk_s3::Client::from_conf(aws_sdk_s3::config::Builder::from(&config).force_path_style(true).build());
        Self {
            services,
            streams: KinesisStreams::new(BTreeMap::from([("s".to_owned(), Stream::of(&config, "out"))])),
            tables: SinkTables::of(HashMap::from([("t".to_owned(), (config.clone(), "sums".to_owned()))])),
            files: S3Files::new(S3Store::new(s3, None)),
        }
    }

    fn mood(&self, mood: Mood) {
        *self.services.mood.lock().expect("a lock") = mood;
    }

    /// What each sink says, with the call that it names.
    async fn said(&self) -> Vec<(&'static str, PortError)> {
        let url = "s3://lake/a/b.jsonl";
        let part = Bytes::from_static(b"{}");
        vec![
            ("Kinesis PutRecords out", self.streams.put("s", &records(3)).await.expect_err("it refuses")),
            ("DynamoDB PutItem sums", self.tables.put("t", &items(0..3), GUARD).await.expect_err("it refuses")),
            ("S3 CreateMultipartUpload s3://lake/a/b.jsonl", self.files.create(url).await.expect_err("it refuses")),
            ("S3 PutObject s3://lake/a/b.jsonl", self.files.put(url, part).await.expect_err("it refuses")),
        ]
    }
}

const GUARD: Guard = Guard { born: 1, cut: 7 };

fn records(count: usize) -> Vec<StreamRecord> {
    (0..count).map(|n| StreamRecord { key: format!("k-{n}"), data: Bytes::from(format!("{{\"n\":{n}}}")) }).collect()
}

fn items(numbers: std::ops::Range<usize>) -> Vec<Item> {
    let item = |n| Item { key: vec![("id".to_owned(), Attribute::S(format!("k-{n}")))], attributes: BTreeMap::new(), version: 1 };
    numbers.map(item).collect()
}

#[tokio::test]
async fn all_sinks_judge_a_refusal_alike() {
    let sinks = Sinks::new().await;
    for (status, code, advice) in [
        (403, "AccessDeniedException", "allow this action in the policy of the role"),
        (403, "AccessDenied", "allow this action in the policy of the role"),
        (400, "UnrecognizedClientException", "valid credentials"),
        (400, "KMSAccessDeniedException", "check the key"),
        (400, "ValidationException", "answered by the test"),
        (400, "ResourceNotFoundException", "answered by the test"),
        (404, "NoSuchBucket", "create the bucket"),
    ] {
        sinks.mood(Mood::Refuses(status, code));
        for (call, said) in sinks.said().await {
            assert!(
                matches!(&said, PortError::Fatal(why) if why.contains(call) && why.contains(code) && why.contains(advice)),
                "{call}, {code}: {said:?}"
            );
        }
    }
    for (status, code) in [
        (400, "ProvisionedThroughputExceededException"),
        (400, "ThrottlingException"),
        (503, "SlowDown"),
        (429, "TooManyRequests"),
        (500, "InternalError"),
        (503, "ServiceUnavailable"),
    ] {
        sinks.mood(Mood::Refuses(status, code));
        for (call, said) in sinks.said().await {
            assert!(matches!(&said, PortError::Unclear(why) if why.contains(call)), "{call}, {code}: {said:?}");
        }
    }
}

#[tokio::test]
async fn what_a_sink_took_is_not_sent_again() {
    let sinks = Sinks::new().await;
    let taken = |name: &str| {
        let all = std::mem::take(&mut *sinks.services.taken.lock().expect("a lock"));
        let keys = all.iter().flat_map(|request| match request["Records"].as_array() {
            Some(records) => records.iter().map(|r| r["PartitionKey"].clone()).collect(),
            None => vec![request["Item"]["id"]["S"].clone()],
        });
        let mut keys: Vec<String> = keys.map(|key| key.as_str().expect("a key").to_owned()).collect();
        keys.sort_by_key(|key| (key.len(), key.clone()));
        assert!(keys.windows(2).all(|pair| pair[0] != pair[1]), "{name}: {keys:?}");
        keys.len()
    };
    // A table that takes forty items between two pauses.
    let (mut left, mut rounds) = (items(0..300), 0);
    while !left.is_empty() {
        rounds += 1;
        sinks.mood(Mood::Takes(40));
        let failed = sinks.tables.put("t", &left, GUARD).await.expect("some were taken");
        left = failed.into_iter().map(|index| left[index].clone()).collect();
    }
    assert_eq!((taken("DynamoDB"), rounds), (300, 8));
    // A stream that takes the first call of three, of 500 records each.
    sinks.mood(Mood::Takes(1));
    let all = records(1_200);
    let failed = sinks.streams.put("s", &all).await.expect("some were taken");
    assert_eq!(failed, (500..1_200).collect::<Vec<_>>());
    sinks.mood(Mood::Takes(9));
    let rest: Vec<StreamRecord> = failed.into_iter().map(|index| all[index].clone()).collect();
    assert_eq!(sinks.streams.put("s", &rest).await, Ok(Vec::new()));
    assert_eq!(taken("Kinesis"), 1_200);
    // What is too large is refused before anything is sent.
    let large = [records(1), vec![StreamRecord { key: "k".to_owned(), data: vec![b'x'; 2 << 20].into() }]].concat();
    let refused = sinks.streams.put("s", &large).await;
    assert!(matches!(&refused, Err(PortError::Fatal(why)) if why.contains("a record of Kinesis has at most")), "{refused:?}");
    assert_eq!(taken("Kinesis"), 0);
}
