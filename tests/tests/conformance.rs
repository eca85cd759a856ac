//! One suite for each port of the engine, passed by the connectors of the laptop and by those of AWS.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::PutRecordsRequestEntry;
use bytes::Bytes;
use leat_aws::{Retries, Target};
use leat_crds::spec::KeyType;
use leat_operator_core::plan::Action;
use leat_operator_core::resource::{Kind, Resource, Stream as StreamWish, Table, Wish};
use leat_runtime::connectors::aws::dynamodb::{LeaseTable, SinkTables};
use leat_runtime::connectors::aws::kinesis::{KinesisLog, KinesisSource, KinesisStreams, Stream};
use leat_runtime::connectors::aws::s3::{S3Files, S3Objects, Store as S3Store};
use leat_runtime::connectors::local::folder::{LocalFiles, LocalObjects};
use leat_runtime::connectors::local::shard::Record;
use leat_runtime::connectors::local::store::Store;
use leat_runtime::connectors::local::streams::{LocalLog, LocalSource, LocalStream};
use leat_runtime::connectors::local::written::LocalStreams;
use leat_runtime::connectors::redis::{RedisTables, Values};
use leat_runtime::engine::ports::{
    Call, Completed, Files, Guard, Log, Objects, Place, PortError, Rows, Source, StoredRow, Streams, Tables,
};
use leat_runtime::output::{Attribute, Item, StreamRecord};
use leat_runtime_core::begin::{self, Known, Listed};
use leat_runtime_core::key::partition_hash;
use leat_runtime_core::path;
use leat_runtime_core::position::Offset;
use leat_runtime_core::row::{Expect, Fence, Part};
use leat_tests::clouds::{Clouds, Kinesis, Proxy};
use leat_tests::process::{tool, until};
use leat_tests::redis::Redis;
use leat_tests::repository;
use leat_tests::sources::{Feed, read_shard, source};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

fn row(generation: u64, cut: u64, body: &str) -> StoredRow {
    StoredRow { fence: Fence { generation, cut, job: 1, owner: "a".to_owned(), drained: false }, body: Bytes::from(body.to_owned()) }
}

async fn rows(rows: &dyn Rows) {
    let task = "source/s/1/shard-0";
    assert_eq!(rows.get(task).await, Ok(None));
    // A task's row needs the pipeline's, with that job and not draining.
    assert_eq!(rows.put(task, row(0, 0, "{}"), Expect::Absent { job: 1 }).await, Ok(false));
    assert_eq!(rows.put(path::PIPELINE, row(0, 1, "{}"), Expect::Absent { job: 0 }).await, Ok(true));
    assert_eq!(rows.put(path::PIPELINE, row(0, 1, "{}"), Expect::Absent { job: 0 }).await, Ok(false));
    assert_eq!(rows.put(task, row(0, 0, "{}"), Expect::Absent { job: 2 }).await, Ok(false));
    assert_eq!(rows.put(task, row(0, 0, "{}"), Expect::Absent { job: 1 }).await, Ok(true));
    assert_eq!(rows.put(task, row(0, 0, "{}"), Expect::Absent { job: 1 }).await, Ok(false));
    // Each part of the fence counts, the owner does not.
    let found = rows.get(task).await.expect("an answer").expect("a row").fence;
    for wrong in [
        Fence { generation: 1, ..found.clone() },
        Fence { cut: 1, ..found.clone() },
        Fence { job: 2, ..found.clone() },
        Fence { drained: true, ..found.clone() },
    ] {
        assert_eq!(rows.put(task, row(1, 0, "{}"), Expect::Fence(wrong)).await, Ok(false));
    }
    let other = Fence { owner: "b".to_owned(), ..found.clone() };
    assert_eq!(rows.put(task, row(1, 0, "{\"n\":1}"), Expect::Fence(other)).await, Ok(true));
    assert_eq!(rows.get(task).await, Ok(Some(row(1, 0, "{\"n\":1}"))));
    // Of many that want to write the next cut, one does.
    let before = row(1, 0, "").fence;
    let tries = (0..20).map(|n| rows.put(task, row(1, 1, &format!("{{\"n\":{n}}}")), Expect::Fence(before.clone())));
    let won = futures::future::join_all(tries).await.into_iter().filter(|w| *w == Ok(true)).count();
    assert_eq!(won, 1);
    // A long body, and lists by prefix in the order of keys.
    let long = format!("{{\"n\":\"{}\"}}", "0123456789abcdef".repeat(12_000));
    assert_eq!(rows.put("source/s/1/shard-2", row(0, 0, &long), Expect::Absent { job: 1 }).await, Ok(true));
    assert_eq!(rows.put("source/s/1/shard-1", row(0, 0, "{}"), Expect::Absent { job: 1 }).await, Ok(true));
    assert_eq!(rows.put("keyed/00000", row(0, 0, "{}"), Expect::Absent { job: 1 }).await, Ok(true));
    let listed = rows.list(path::SOURCES).await.expect("a list");
    assert_eq!(
        listed.iter().map(|(k, _)| k.as_str()).collect::<Vec<_>>(),
        ["source/s/1/shard-0", "source/s/1/shard-1", "source/s/1/shard-2"]
    );
    assert_eq!(listed[2].1.body, long);
    // A row goes only as it was seen.
    let session = "session/a-1";
    assert_eq!(rows.put(session, row(0, 1, "{}"), Expect::Absent { job: 0 }).await, Ok(true));
    assert_eq!(rows.delete(session, row(0, 2, "").fence).await, Ok(false));
    assert_eq!(rows.delete(session, row(0, 1, "").fence).await, Ok(true));
    assert_eq!(rows.delete(session, row(0, 1, "").fence).await, Ok(false));
    assert_eq!(rows.get(session).await, Ok(None));
    // A draining pipeline takes no new rows.
    let draining = StoredRow { fence: Fence { drained: true, ..row(0, 2, "{}").fence }, ..row(0, 2, "{}") };
    assert_eq!(rows.put(path::PIPELINE, draining, Expect::Fence(row(0, 1, "").fence)).await, Ok(true));
    assert_eq!(rows.put("keyed/00001", row(0, 0, "{}"), Expect::Absent { job: 1 }).await, Ok(false));
}

async fn objects(objects: &dyn Objects) {
    let name = "staged/source/s/1/shard-0/000000000001-1-0";
    assert!(matches!(objects.get(name).await, Err(PortError::Fatal(_))));
    assert_eq!(objects.put(name, Bytes::from_static(b"one")).await, Ok(()));
    assert_eq!(objects.put(name, Bytes::from_static(b"two")).await, Ok(()));
    assert_eq!(objects.get(name).await, Ok(Bytes::from_static(b"one")), "written once");
    assert_eq!(objects.delete(name).await, Ok(()));
    assert_eq!(objects.delete(name).await, Ok(()));
    assert!(matches!(objects.get(name).await, Err(PortError::Fatal(_))));
}

async fn files(files: &dyn Files, read: impl AsyncFn(&str) -> Option<Vec<u8>>) {
    let small = "s3://lake/out/small.jsonl";
    assert_eq!(files.put(small, Bytes::from_static(b"one\n")).await, Ok(()));
    assert_eq!(files.put(small, Bytes::from_static(b"two\n")).await, Ok(()));
    assert_eq!(read(small).await.as_deref(), Some(b"one\n".as_slice()), "written once");
    let large = "s3://lake/out/large.jsonl";
    let size = files.smallest_part().max(100);
    let bytes = |fill: u8, size: usize| Bytes::from(vec![fill; size]);
    let upload = files.create(large).await.expect("an upload");
    let mut parts = Vec::new();
    for (number, fill, size) in [(1, b'a', size), (2, b'b', size), (5_001, b'z', 10)] {
        // Written twice: the second replaces the first.
        files.part(large, &upload, number, bytes(b'?', size)).await.expect("a part");
        let tag = files.part(large, &upload, number, bytes(fill, size)).await.expect("an answer").expect("a part");
        parts.push(Part { number, tag, size: size as u64 });
    }
    assert_eq!(read(large).await, None, "nothing shows before it is completed");
    let mut wrong = parts.clone();
    wrong[1].number = 3;
    assert_eq!(files.complete(large, &upload, &wrong).await, Ok(Completed::WrongPart));
    assert_eq!(read(large).await, None);
    assert_eq!(files.complete(large, &upload, &parts).await, Ok(Completed::Done));
    assert_eq!(files.complete(large, &upload, &parts).await, Ok(Completed::Done), "done again, it changes nothing");
    // Another owner comes too late with a part, and is told so whatever word the store has for it.
    assert_eq!(files.part(large, &upload, 5_002, bytes(b'y', 10)).await, Ok(None));
    let never = files.part("s3://lake/out/never.jsonl", &upload, 1, bytes(b'y', 10)).await;
    assert!(never.is_err(), "an upload that is gone without a file is no success: {never:?}");
    let whole = read(large).await.expect("the file");
    let expected: Vec<u8> = [bytes(b'a', size), bytes(b'b', size), bytes(b'z', 10)].concat();
    assert!(whole == expected, "{} bytes", whole.len());
}

/// A store that refuses a part, and whose bucket must not be looked at: what to allow is said beside what failed.
#[tokio::test]
async fn a_look_that_is_refused_is_named_with_the_failure() {
    let app = axum::Router::new().fallback(async |request: axum::extract::Request| {
        let (status, code) = if request.method() == "HEAD" { (403, "") } else { (404, "<Error><Code>NoSuchUpload</Code></Error>") };
        axum::http::Response::builder().status(status).body(code.to_owned()).expect("an answer")
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    let config = aws_sdk_s3::config::Builder::new()
        .behavior_version_latest()
        .http_client(leat_aws::connect(&Target::default(), Retries::Caller).await.http_client().expect("a client"))
        .region(aws_sdk_s3::config::Region::new("us-east-1"))
        .credentials_provider(aws_credential_types::Credentials::new("test", "test", None, None, "test"))
        .endpoint_url(endpoint)
        .force_path_style(true)
        .build();
    let files = S3Files::new(S3Store::new(aws_sdk_s3::Client::from_conf(config), None));
    let part = files.part("s3://lake/out/large.jsonl", "upload", 1, Bytes::from_static(b"x")).await;
    let said = |why: &str| {
        ["S3 UploadPart s3://lake/out/large.jsonl: NoSuchUpload", "allow s3:GetObject and s3:ListBucket"].iter().all(|s| why.contains(s))
    };
    assert!(matches!(&part, Err(PortError::Fatal(why)) if said(why)), "{part:?}");
    server.abort();
}

async fn log(log: &dyn Log) {
    let records: Vec<Bytes> = (0..1_200).map(|n| Bytes::from(format!("record {n:05} {}", "x".repeat(600)))).collect();
    assert_eq!(log.append(1, records.clone()).await, Ok(Vec::new()));
    assert_eq!(log.append(0, vec![Bytes::from_static(b"another")]).await, Ok(Vec::new()));
    let read_all = async |mut after: Option<Offset>, count: usize| {
        let mut all = Vec::new();
        while all.len() < count {
            let read = log.read(1, after).await.expect("records");
            after = read.last().map(|(o, _)| *o).or(after);
            all.extend(read);
        }
        all
    };
    let all = read_all(None, records.len()).await;
    assert!(all.iter().map(|(_, r)| r).eq(&records), "one partition is read in the order it was written");
    assert!(all.windows(2).all(|w| w[0].0 < w[1].0));
    let again = read_all(Some(all[700].0), records.len() - 701).await;
    assert!(again[..] == all[701..], "reading after an offset gives the same records");
    assert_eq!(log.read(1, Some(all[1_199].0)).await, Ok(Vec::new()));
}

async fn tables(tables: &dyn Tables, read: impl AsyncFn() -> BTreeMap<String, String>) {
    let item = |key: &str, value: &str, version: i64| Item {
        key: vec![("id".to_owned(), Attribute::S(key.to_owned()))],
        attributes: BTreeMap::from([("value".to_owned(), Attribute::S(value.to_owned()))]),
        version,
    };
    let put = async |key: &str, value: &str, version: i64, born: i64, cut: u64| {
        assert_eq!(tables.put("t", &[item(key, value, version)], Guard { born, cut }).await, Ok(Vec::new()));
    };
    put("a", "first", 10, 1, 5).await;
    put("a", "repeated", 10, 1, 5).await;
    put("a", "an older cut", 10, 1, 4).await;
    put("a", "an older version", 9, 1, 9).await;
    assert_eq!(read().await, BTreeMap::from([("a".to_owned(), "first".to_owned())]));
    put("a", "a newer cut", 10, 1, 6).await;
    put("b", "b", -5, 1, 1).await;
    put("a", "a newer version", 11, 1, 2).await;
    assert_eq!(read().await["a"], "a newer version");
    put("a", "a pipeline that starts over", 3, 2, 1).await;
    put("a", "the one before", 99, 1, 99).await;
    let all = read().await;
    assert_eq!((all["a"].as_str(), all["b"].as_str()), ("a pipeline that starts over", "b"));
}

/// Writes through the port more than one call takes; answers what was written.
async fn streams(streams: &dyn Streams) -> Vec<(String, Vec<u8>)> {
    let record = |n: usize| StreamRecord {
        key: format!("key-{n}"),
        data: Bytes::from(format!("{{\"n\":{n},\"pad\":\"{}\"}}", "x".repeat(if n == 600 { 900_000 } else { n % 700 }))),
    };
    let records: Vec<StreamRecord> = (0..1_200).map(record).collect();
    assert_eq!(streams.put("w", &records).await, Ok(Vec::new()));
    assert_eq!(streams.put("w", &[]).await, Ok(Vec::new()));
    assert!(streams.put("w", &[record(1_200)]).await.is_ok_and(|failed| failed.is_empty()));
    (0..=1_200).map(record).map(|r| (r.key, r.data.to_vec())).collect()
}

#[tokio::test]
async fn the_laptop_conforms() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let store = Store::open(&at("store.redb")).expect("a store");
    rows(&store).await;
    objects(&LocalObjects::new(&at("objects"))).await;
    let local = LocalFiles::new(&at("s3"), &at("uploads"), "test");
    files(&local, async |url: &str| std::fs::read(local.path(url)).ok()).await;
    log(&LocalLog::open(&at("log"), 2).expect("a log")).await;
    tables(&store, async || {
        let items = store.items("t").expect("items");
        let text = |attribute: &Attribute| match attribute {
            Attribute::S(text) => text.clone(),
            other => panic!("{other:?}"),
        };
        items.iter().map(|i| (text(&i.item.key[0].1), text(&i.item.attributes["value"]))).collect()
    })
    .await;
    let written = LocalStreams::new(&at("written"));
    let expected = streams(&written).await;
    let lines = std::fs::read(written.path("w")).expect("a file");
    assert!(lines.split(|b| *b == b'\n').eq(expected.iter().map(|(_, data)| data.as_slice()).chain([b"".as_slice()])));
    let stream = Arc::new(LocalStream::open(&at("stream"), 2, 1_767_571_200_000).expect("a stream"));
    let port = LocalSource { streams: BTreeMap::from([("s".to_owned(), Arc::clone(&stream))]), files: BTreeMap::new() };
    let send = |records: Vec<(String, Vec<u8>)>| -> futures::future::LocalBoxFuture<'_, ()> {
        let records = records.into_iter().map(|(k, data)| (0, Record { arrival: 1_767_571_200_000, key: k.into_bytes(), data })).collect();
        stream.append(records, None).expect("appended");
        Box::pin(async {})
    };
    let split = || -> futures::future::LocalBoxFuture<'_, ()> {
        stream.split().expect("a split");
        Box::pin(async {})
    };
    source(&port, Feed { send: &send, split: &split, merge: None }).await;
}

/// Makes what a suite needs as the operator does.
async fn make(clouds: &Clouds, kind: Kind, name: &str, wish: Wish) {
    let resource = Resource {
        kind,
        name: name.to_owned(),
        purpose: None,
        wish,
        tags: BTreeMap::from([("leat.dev/owner".to_owned(), "test".to_owned())]),
        deletion: leat_crds::spec::DeletionPolicy::Delete,
        adoption: leat_crds::spec::AdoptionPolicy::Fail,
        management: leat_crds::spec::Management::Full,
    };
    let services =
        leat_operator::clouds::Services { kinesis: clouds.kinesis().await, dynamodb: clouds.dynamodb().await, glue: clouds.glue().await };
    leat_operator::providers::apply(&services, &resource, None, &Action::Create).await.expect("created");
    until(name, PATIENCE, async || match leat_operator::providers::observe(&services, &resource).await.map_err(|e| e.to_string())? {
        leat_operator_core::plan::Observed::Present(found) if found.busy.is_none() && found.differences.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

/// A stream that is begun at a time gives exactly what arrived then or later.
async fn since(client: &aws_sdk_kinesis::Client, written: &KinesisSource, proxy: &Proxy) {
    let shard = written.shards("w").await.expect("shards").remove(0).lineage;
    let all = async |from: Place| {
        let (mut found, mut from) = (Vec::new(), from);
        loop {
            let read = written.read(&shard, from).await.expect("records");
            match read.batch.positions.last() {
                Some(last) => from = Place::After(*last),
                None if read.more => {}
                None => return found,
            }
            found.extend(read.batch.positions.iter().copied().zip(read.batch.arrivals));
        }
    };
    let stream = KinesisStreams::new(BTreeMap::from([("w".to_owned(), Stream::new(client.clone(), "w"))]));
    let whole = until("records of two seconds", PATIENCE, async || {
        let marks: Vec<StreamRecord> = (0..8).map(|n| StreamRecord { key: format!("mark-{n}"), data: Bytes::from_static(b"{}") }).collect();
        stream.put("w", &marks).await.map_err(|e| e.to_string())?;
        let found = all(Place::Oldest).await;
        let (first, last) = (found[0].1, found[found.len() - 1].1);
        if last - first > 2_000 { Ok(found) } else { Err(format!("{first} to {last}")) }
    })
    .await;
    let time = whole[0].1 + 1_500;
    let expected: Vec<_> = whole.iter().copied().filter(|(_, arrival)| *arrival >= time).collect();
    assert!(!expected.is_empty() && expected.len() < whole.len());
    assert_eq!(all(Place::Since(time)).await, expected);
    assert_eq!(all(Place::Since(whole[0].1 - 60_000)).await.len(), whole.len(), "older than the stream");
    // Kinesis takes no time that is ahead of its clock: such a beginning is waited for.
    proxy.refuse(Some(("GetShardIterator", "InvalidArgumentException")));
    let ahead = written.read(&shard, Place::Since(4_000_000_000_000)).await;
    proxy.refuse(None);
    assert!(matches!(&ahead, Err(PortError::Unclear(why)) if why.contains("2096-10-02") && why.contains("has not come yet")), "{ahead:?}");
    // One that is throttled says so; behind an iterator that has expired, reading goes on with another one.
    let half = whole[whole.len() / 2];
    let before = written.read(&shard, Place::After(half.0)).await.expect("records").batch;
    let last = *before.positions.last().expect("records");
    let marks: Vec<StreamRecord> = (0..8).map(|n| StreamRecord { key: format!("mark-{n}"), data: Bytes::from_static(b"{}") }).collect();
    stream.put("w", &marks).await.expect("put");
    proxy.refuse(Some(("GetRecords", "ProvisionedThroughputExceededException")));
    let throttled = written.read(&shard, Place::After(last)).await;
    assert!(matches!(&throttled, Err(PortError::Unclear(why)) if why.contains("GetRecords") && why.contains("throttled")), "{throttled:?}");
    proxy.refuse(Some(("GetRecords", "ExpiredIteratorException")));
    let refused = proxy.refusals();
    let cleared = async {
        until("a refusal", PATIENCE, async || if proxy.refusals() > refused { Ok(()) } else { Err("none yet".to_owned()) }).await;
        proxy.refuse(None);
    };
    let (read, ()) = futures::join!(read_shard(written, &shard, Some(last), 1), cleared);
    assert!(read[0].0 > last && read[0].1.starts_with(b"mark-"), "{read:?}");
}

async fn kinesis_conforms(clouds: &Clouds) {
    for (name, shards) in [("s", 2), ("repartition", 2), ("w", 2)] {
        let wish = StreamWish { shards: Some(shards), fixed: false, retention_hours: Some(24), kms_key: None };
        make(clouds, Kind::KinesisStream, name, Wish::Stream(wish)).await;
    }
    let client = clouds.kinesis().await;
    log(&KinesisLog::new(Stream::new(client.clone(), "repartition"), 2)).await;
    let expected = streams(&KinesisStreams::new(BTreeMap::from([("w".to_owned(), Stream::new(client.clone(), "w"))]))).await;
    let written = KinesisSource::new(BTreeMap::from([("w".to_owned(), Stream::new(client.clone(), "w"))]));
    for shard in written.shards("w").await.expect("shards") {
        let mut here: Vec<_> = expected
            .iter()
            .filter(|(k, _)| (shard.range.first..=shard.range.last).contains(&partition_hash(k.as_bytes())))
            .cloned()
            .collect();
        let mut found: Vec<_> = read_shard(&written, &shard.lineage, None, here.len()).await;
        assert!(found.windows(2).all(|w| w[0].0 < w[1].0));
        here.sort();
        found.sort_by(|a, b| (&a.1, &a.2).cmp(&(&b.1, &b.2)));
        assert!(found.iter().map(|(_, k, d)| (k.as_slice(), d.as_slice())).eq(here.iter().map(|(k, d)| (k.as_bytes(), d.as_slice()))));
    }
    since(&client, &written, &clouds.proxy).await;
    source_conforms(&client, "s", Stream::new(client.clone(), "s")).await;
}

/// The suite of sources over a stream of two shards; `read`: how it is read.
async fn source_conforms(client: &aws_sdk_kinesis::Client, name: &str, read: Stream) {
    let port = KinesisSource::new(BTreeMap::from([("s".to_owned(), read)]));
    let send = |records: Vec<(String, Vec<u8>)>| -> futures::future::LocalBoxFuture<'_, ()> {
        let client = client.clone();
        Box::pin(async move {
            let entry = |(key, data): (String, Vec<u8>)| {
                PutRecordsRequestEntry::builder().data(Blob::new(data)).partition_key(key).build().expect("an entry")
            };
            let entries: Vec<_> = records.into_iter().map(entry).collect();
            let answer = client.put_records().stream_name(name).set_records(Some(entries)).send().await.expect("PutRecords");
            assert_eq!(answer.failed_record_count().unwrap_or_default(), 0);
        })
    };
    let split = || -> futures::future::LocalBoxFuture<'_, ()> {
        let client = client.clone();
        Box::pin(async move {
            let listed = client.list_shards().stream_name(name).send().await.expect("ListShards");
            let half = (u128::MAX / 4).to_string();
            client
                .split_shard()
                .stream_name(name)
                .shard_to_split(listed.shards()[0].shard_id())
                .new_starting_hash_key(half)
                .send()
                .await
                .expect("SplitShard");
        })
    };
    // The children of the split above.
    let merge = || -> futures::future::LocalBoxFuture<'_, ()> {
        let client = client.clone();
        Box::pin(async move {
            let listed = client.list_shards().stream_name(name).send().await.expect("ListShards");
            let children: Vec<&str> = listed.shards().iter().filter(|s| s.parent_shard_id().is_some()).map(|s| s.shard_id()).collect();
            let [one, other] = children[..] else { panic!("{children:?}") };
            client.merge_shards().stream_name(name).shard_to_merge(one).adjacent_shard_to_merge(other).send().await.expect("MergeShards");
        })
    };
    source(&port, Feed { send: &send, split: &split, merge: Some(&merge) }).await;
}

/// A table with these keys.
fn table(partition: &str, sort: Option<&str>) -> Wish {
    let key = |name: &str| (name.to_owned(), KeyType::S);
    Wish::Table(Table {
        partition_key: key(partition),
        sort_key: sort.map(key),
        time_to_live: None,
        point_in_time_recovery: None,
        deletion_protection: None,
    })
}

#[tokio::test]
async fn aws_conforms() {
    let folder = tempfile::tempdir().expect("a folder");
    let clouds = Clouds::start(folder.path(), Kinesis::Ferrokinesis, "127.0.0.1").await;
    kinesis_conforms(&clouds).await;
    make(&clouds, Kind::DynamoDbTable, "leases", table("leaseKind", Some("leaseKey"))).await;
    make(&clouds, Kind::DynamoDbTable, "sink", table("id", None)).await;
    let dynamodb = clouds.dynamodb().await;
    rows(&LeaseTable::new(dynamodb.clone(), "leases")).await;
    let sink = SinkTables::new(HashMap::from([("t".to_owned(), (dynamodb.clone(), "sink".to_owned()))]));
    tables(&sink, async || {
        let found = dynamodb.scan().table_name("sink").consistent_read(true).send().await.expect("items");
        found.items().iter().map(|i| (i["id"].as_s().expect("id").clone(), i["value"].as_s().expect("value").clone())).collect()
    })
    .await;
    let s3 = clouds.s3().await;
    for bucket in ["lake", "storage"] {
        s3.create_bucket().bucket(bucket).send().await.expect("a bucket");
    }
    objects(&S3Objects::new(S3Store::new(s3.clone(), None), "s3://storage/here")).await;
    files(&S3Files::new(S3Store::new(s3.clone(), None)), async |url: &str| {
        let key = url.strip_prefix("s3://lake/").expect("a key");
        let answer = s3.get_object().bucket("lake").key(key).send().await.ok()?;
        Some(answer.body.collect().await.expect("bytes").to_vec())
    })
    .await;

    // A table that refuses: the answer names what was tried and whether it can pass by itself.
    clouds.proxy.refuse(Some(("PutItem", "ProvisionedThroughputExceededException")));
    let leases = LeaseTable::new(dynamodb.clone(), "leases");
    let throttled = leases.put("session/a", row(0, 1, "{}"), Expect::Absent { job: 0 }).await;
    assert!(
        matches!(&throttled, Err(PortError::Unclear(why)) if why.contains("DynamoDB PutItem") && why.contains("throttled")),
        "{throttled:?}"
    );
    clouds.proxy.refuse(Some(("PutItem", "InternalServerError")));
    assert!(matches!(leases.put("session/a", row(0, 1, "{}"), Expect::Absent { job: 0 }).await, Err(PortError::Unclear(_))));
    clouds.proxy.refuse(Some(("PutItem", "AccessDeniedException")));
    let denied = leases.put("session/a", row(0, 1, "{}"), Expect::Absent { job: 0 }).await;
    assert!(matches!(&denied, Err(PortError::Fatal(why)) if why.contains("allow this action in the policy of the role")), "{denied:?}");
}

/// kinesis-local names child shards in its answers and knows capacity on demand.
/// Records that the real Kinesis Producer Library put together are read one by one, where it says it put them.
async fn producer_library(clouds: &Clouds) {
    const COUNT: usize = 2_000;
    let wish = StreamWish { shards: Some(2), fixed: false, retention_hours: Some(24), kms_key: None };
    make(clouds, Kind::KinesisStream, "kpl", Wish::Stream(wish)).await;
    let mut producer = Command::new("java");
    producer.arg("-cp").arg(tool("LEAT_TEST_KPL").join("*")).arg(repository().join("tests/kpl/Produce.java"));
    let output = producer.args([&clouds.kinesis_tls.to_string(), "kpl", &COUNT.to_string()]).output().expect("Java starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let said: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!(said.len(), COUNT, "{text}{}", String::from_utf8_lossy(&output.stderr));
    let field = |line: &Value, name: &str| line[name].as_str().expect("a text").to_owned();

    let client = clouds.kinesis().await;
    let source = KinesisSource::new(BTreeMap::from([("s".to_owned(), Stream::new(client.clone(), "kpl"))]));
    let shards = source.shards("s").await.expect("shards");
    let (mut seen, mut aggregated) = (BTreeSet::new(), 0);
    for shard in &shards {
        let mut expected: Vec<&Value> = said.iter().filter(|line| line["shard"] == shard.lineage.partition()).collect();
        expected.sort_by_key(|line| field(line, "number").parse::<Offset>().expect("a number"));
        let all = read_shard(&source, &shard.lineage, None, expected.len()).await;
        assert_eq!(all.len(), expected.len());
        assert!(all.windows(2).all(|w| w[0].0 < w[1].0), "the records of an aggregate are ordered too");
        for ((at, key, body), line) in all.iter().zip(&expected) {
            assert_eq!(at.inside(0).to_string(), field(line, "number"));
            seen.insert((String::from_utf8_lossy(key).into_owned(), String::from_utf8_lossy(body).into_owned()));
        }
        aggregated += all.iter().filter(|(at, ..)| at.sub > 0).count();
        // The one after an aggregate is found, whichever way its place is remembered.
        let last = all.last().expect("records").0;
        let fresh = KinesisSource::new(BTreeMap::from([("s".to_owned(), Stream::new(client.clone(), "kpl"))]));
        for again in [&source, &fresh] {
            assert!(again.read(&shard.lineage, Place::After(last)).await.expect("an answer").batch.is_empty());
        }
    }
    assert!(seen == said.iter().map(|line| (field(line, "key"), field(line, "body"))).collect(), "each record with its key");
    assert!(aggregated > COUNT / 2, "{aggregated} of {COUNT} records came in aggregates");

    // An aggregate that comes to the other shard, as after a split: its records are there, and known as strays.
    let iterator = client.get_shard_iterator().stream_name("kpl").shard_id(shards[0].lineage.partition());
    let iterator = iterator.shard_iterator_type(aws_sdk_kinesis::types::ShardIteratorType::TrimHorizon).send().await;
    let iterator = iterator.expect("an answer").shard_iterator.expect("an iterator");
    let records = client.get_records().shard_iterator(iterator).send().await.expect("records").records;
    let aggregate = records.into_iter().find(|r| r.data.as_ref().starts_with(&[0xf3, 0x89, 0x9a, 0xc2])).expect("an aggregate");
    let inside = said.iter().filter(|line| line["number"] == aggregate.sequence_number.as_str()).count();
    let other = &shards[1];
    let put = client.put_record().stream_name("kpl").partition_key("any").explicit_hash_key(other.range.first.to_string());
    let put = put.data(aggregate.data).send().await.expect("PutRecord");
    assert_eq!(put.shard_id(), other.lineage.partition());
    let mut after = None;
    let read = until("the strays", PATIENCE, async || {
        let read = source.read(&other.lineage, Place::behind(after)).await.map_err(|e| e.to_string())?;
        after = read.batch.positions.last().copied().or(after);
        if read.batch.strays.is_empty() { Err("none yet".to_owned()) } else { Ok(read.batch) }
    })
    .await;
    let number = |i: u32| read.positions[i as usize].inside(0).to_string();
    assert!(read.strays.len() == inside && read.strays.iter().all(|i| number(*i) == put.sequence_number()), "{:?}", read.strays);
}

/// The real Kinesis Client Library reads the aggregated records, stops within an aggregate of each shard, and Leat goes on with
/// the very next record.
async fn client_library(clouds: &Clouds) {
    const TAKEN: usize = 333;
    // The library would make it too, and look again after ten seconds.
    make(clouds, Kind::DynamoDbTable, "application", table("leaseKey", None)).await;
    let mut consumer = Command::new("java");
    consumer.arg("-cp").arg(tool("LEAT_TEST_KCL").join("*")).arg(repository().join("tests/kcl/Consume.java"));
    let endpoints = ["AWS_ENDPOINT_URL_KINESIS", "AWS_ENDPOINT_URL_DYNAMODB"].map(|name| clouds.endpoints[name].as_str());
    consumer.args(endpoints).args(["kpl", "application", &TAKEN.to_string()]);
    // The proxies go on meanwhile.
    let output = tokio::task::spawn_blocking(move || consumer.output()).await.expect("it ran").expect("Java starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let said: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!(said.len(), 2 * TAKEN, "{text}{}", String::from_utf8_lossy(&output.stderr));
    let offset = |line: &Value| {
        let sub = line["sub"].as_u64().and_then(|n| u32::try_from(n).ok()).expect("a number");
        line["number"].as_str().expect("a text").parse::<Offset>().expect("a number").inside(sub)
    };

    let stream = Stream::new(clouds.kinesis().await, "kpl");
    let tables = BTreeMap::from([("s".to_owned(), clouds.dynamodb().await)]);
    let source = KinesisSource::new(BTreeMap::from([("s".to_owned(), stream)])).with_tables(tables);
    let known: BTreeMap<String, Known> = source.standing("s", "application").await.expect("leases").into_iter().collect();
    let shards = source.shards("s").await.expect("shards");
    let listed = shards.iter().map(|s| (s.lineage.partition().to_owned(), Listed::default())).collect();
    let begin = begin::decide(&listed, &known).expect("a decision");
    assert!(begin.ended.is_empty() && begin.behind.len() == 2, "{begin:?}");
    for shard in shards {
        let behind = begin.behind[shard.lineage.partition()];
        let theirs: Vec<Offset> = said.iter().filter(|l| l["shard"] == shard.lineage.partition()).map(offset).collect();
        assert_eq!(theirs.last(), Some(&behind), "the checkpoint is the last record that it took");
        let all = read_shard(&source, &shard.lineage, None, TAKEN + 200).await;
        assert!(theirs.iter().eq(all[..TAKEN].iter().map(|(at, ..)| at)), "records within an aggregate are numbered as the library does");
        assert!(all[TAKEN].0.inside(0) == behind.inside(0), "it stopped within an aggregate: {behind}");
        // From a fresh connection, and from one that has an iterator.
        let fresh = KinesisSource::new(BTreeMap::from([("s".to_owned(), Stream::new(clouds.kinesis().await, "kpl"))]));
        for reader in [&fresh, &source] {
            let read = reader.read(&shard.lineage, Place::Inside(behind)).await.expect("records").batch;
            assert!(read.positions.starts_with(&[all[TAKEN].0, all[TAKEN + 1].0]), "{behind}: {:?}", &read.positions[..3]);
        }
        // Behind the last record: it is looked at, has nothing more, and what comes then is no gap.
        let last = all.last().expect("records").0;
        let read = source.read(&shard.lineage, Place::Inside(last)).await.expect("an answer");
        assert!(read.batch.is_empty() && read.scanned == Some(last) && read.more, "{read:?}");
    }
    // A number that the shard cannot have is known before anything depends on it.
    let shard = &source.shards("s").await.expect("shards")[0];
    let other = begin.behind.values().find(|at| **at != begin.behind[shard.lineage.partition()]).expect("that of the other shard");
    assert_eq!(source.probe(&shard.lineage, Place::Inside(begin.behind[shard.lineage.partition()])).await, Ok(()));
    let strange = source.probe(&shard.lineage, Place::Inside(*other)).await;
    assert!(matches!(&strange, Err(PortError::Fatal(why)) if why.contains("GetShardIterator")), "{strange:?}");
    let nothing = source.standing("s", "nothing").await;
    assert!(matches!(&nothing, Err(PortError::Fatal(why)) if why.contains("DynamoDB Scan nothing")), "{nothing:?}");
}

/// Items as fields of one hash.
struct Fields(RedisTables);

impl Tables for Fields {
    fn put<'a>(&'a self, table: &'a str, items: &'a [Item], guard: Guard) -> Call<'a, Vec<usize>> {
        Box::pin(async move {
            let hash = (String::from("leat_key"), Attribute::S("all".to_owned()));
            let of_hash = |item: &Item| Item { key: [vec![hash.clone()], item.key.clone()].concat(), ..item.clone() };
            let items: Vec<Item> = items.iter().map(of_hash).collect();
            self.0.put(table, &items, guard).await
        })
    }
}

/// Strings and fields of hashes, their life, and what happens when Redis is gone, full, closed, or has something else there.
#[tokio::test]
async fn redis_conforms() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut redis = Redis::start(folder.path(), true).await;
    let secret = |name: &str, files: &[(&str, &str)]| {
        let folder = folder.path().join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        files.iter().for_each(|(name, text)| std::fs::write(folder.join(name), text).expect("a file"));
        Some(folder)
    };
    let url = |database: u8| format!("redis://127.0.0.1:{}/{database}", redis.port);
    let values = |database: u8| Values { url: url(database), secret: secret("right", &[("password", "pass-word\n")]), time_to_live: None };
    let of = |values: Values| RedisTables::new(HashMap::from([("t".to_owned(), values)]));
    let lines = |said: String| said.lines().map(str::to_owned).collect::<Vec<_>>();
    tables(&of(values(1)), async || {
        let keys = lines(redis.ask(&["-n", "1", "KEYS", "?"]));
        keys.into_iter().map(|key| (key.clone(), redis.ask(&["-n", "1", "GET", &key]))).collect()
    })
    .await;
    tables(&Fields(of(values(2))), async || {
        let all = lines(redis.ask(&["-n", "2", "HGETALL", "all"]));
        all.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
    })
    .await;

    let item = |key: &str, total: &str| Item {
        key: vec![("leat_key".to_owned(), Attribute::S(key.to_owned()))],
        attributes: BTreeMap::from([("value".to_owned(), Attribute::S(total.to_owned()))]),
        version: 1,
    };
    let lives = of(Values { time_to_live: Some(Duration::from_secs(60)), ..values(3) });
    let guard = |cut| Guard { born: 1, cut };
    lives.put("t", &[item("k", "7 and \"more\"")], guard(7)).await.expect("written");
    assert_eq!(redis.ask(&["-n", "3", "GET", "k"]), "7 and \"more\"");
    let left = |key: &str| redis.ask(&["-n", "3", "PTTL", key]).parse::<i64>().expect("a number");
    assert!((1..=60_000).contains(&left("k")), "{}", left("k"));
    assert!(left("leat:guard:{k}") > 86_400_000, "the guard outlives what it guards");
    redis.ask(&["-n", "3", "DEL", "k"]);
    lives.put("t", &[item("k", "1")], guard(6)).await.expect("an answer");
    assert_eq!(redis.ask(&["-n", "3", "EXISTS", "k"]), "0", "what is older does not come back");
    // Of writes in any order the newest stays.
    let many = of(values(4));
    let only =
        |total: usize| Item { attributes: BTreeMap::from([("total".to_owned(), Attribute::N(total.to_string()))]), ..item("k", "0") };
    let writes = (0..200_usize).map(|n| (n * 7919) % 200).map(|cut| {
        let (many, items) = (&many, [only(cut)]);
        async move { many.put("t", &items, guard(cut as u64)).await }
    });
    assert!(futures::future::join_all(writes).await.iter().all(Result::is_ok));
    assert_eq!(redis.ask(&["-n", "4", "GET", "k"]), "199");
    // What is there of somebody else's kind is left alone, and named.
    redis.ask(&["-n", "4", "LPUSH", "list", "theirs"]);
    let theirs = many.put("t", &[item("list", "1")], guard(300)).await;
    assert!(matches!(&theirs, Err(PortError::Fatal(why)) if why.contains("key `list`") && why.contains("of another type")), "{theirs:?}");
    assert_eq!(redis.ask(&["-n", "4", "LRANGE", "list", "0", "-1"]), "theirs");
    // Also when there is a guard; and a guard that is none is named.
    many.put("t", &[item("later", "1")], guard(1)).await.expect("written");
    redis.ask(&["-n", "4", "DEL", "later"]);
    redis.ask(&["-n", "4", "RPUSH", "later", "theirs"]);
    assert!(matches!(many.put("t", &[item("later", "2")], guard(2)).await, Err(PortError::Fatal(_))));
    assert_eq!(redis.ask(&["-n", "4", "LRANGE", "later", "0", "-1"]), "theirs");
    redis.ask(&["-n", "4", "SET", "leat:guard:{odd}", "9e99 0 0"]);
    let odd = many.put("t", &[item("odd", "1")], guard(1)).await;
    assert!(matches!(&odd, Err(PortError::Fatal(why)) if why.contains("delete `leat:guard:{odd}`")), "{odd:?}");
    // Keys with and without braces have guards of their own.
    for key in ["x", "{x}"] {
        many.put("t", &[item(key, key)], guard(1)).await.expect("written");
        assert_eq!(redis.ask(&["-n", "4", "GET", key]), key);
    }
    // Whoever may not do all of it is told so, and what was half done is done when it may.
    redis.ask(&["ACL", "SETUSER", "half", "on", ">pass-word", "~*", "+@all", "-pexpire"]);
    let half = secret("half", &[("password", "pass-word"), ("username", "half")]);
    let fields = |secret| Fields(of(Values { secret, time_to_live: Some(Duration::from_secs(60)), ..values(6) }));
    let not_allowed = fields(half).put("t", &[item("f", "1")], guard(1)).await;
    assert!(matches!(&not_allowed, Err(PortError::Fatal(why)) if why.contains("key `all`")), "{not_allowed:?}");
    assert_eq!(fields(secret("right", &[])).put("t", &[item("f", "1")], guard(1)).await, Ok(Vec::new()));
    assert!(redis.ask(&["-n", "6", "PTTL", "all"]).parse::<i64>().expect("a number") > 0, "it lives as long as it should");
    // Full, and with room again.
    redis.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    let full = many.put("t", &[only(300)], guard(300)).await;
    assert!(matches!(&full, Err(PortError::Unclear(why)) if why.contains("OOM")), "{full:?}");
    redis.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(many.put("t", &[only(300)], guard(300)).await, Ok(Vec::new()));
    for (folder, files, said) in
        [("wrong", &[("password", "wrong")][..], "does not let this worker in"), ("nothing", &[][..], "has no `password`")]
    {
        let refused = of(Values { secret: secret(folder, files), ..values(4) }).put("t", &[only(1)], guard(1)).await;
        assert!(matches!(&refused, Err(PortError::Fatal(why)) if why.contains(said)), "{refused:?}");
    }
    let nobody = of(Values { secret: None, ..values(4) }).put("t", &[only(1)], guard(1)).await;
    assert!(matches!(&nobody, Err(PortError::Fatal(why)) if why.contains("does not let this worker in")), "{nobody:?}");
    let absent = of(values(99)).put("t", &[only(1)], guard(1)).await;
    assert!(matches!(&absent, Err(PortError::Fatal(why)) if why.contains("out of range")), "{absent:?}");
    // Encrypted, by an authority that is known, and by one that is not.
    let ca = std::fs::read_to_string(folder.path().join("ca.crt")).expect("a certificate");
    let known = secret("known", &[("password", "pass-word"), ("username", "default"), ("ca.crt", &ca)]);
    let encrypted = |secret| of(Values { url: format!("rediss://127.0.0.1:{}/5", redis.tls), secret, ..values(5) });
    assert_eq!(encrypted(known).put("t", &[only(7)], guard(1)).await, Ok(Vec::new()));
    assert_eq!(redis.ask(&["-n", "5", "GET", "k"]), "7");
    let stranger = encrypted(secret("right", &[])).put("t", &[only(8)], guard(2)).await;
    assert!(matches!(&stranger, Err(PortError::Unclear(why)) if why.to_lowercase().contains("certificate")), "{stranger:?}");
    // Gone, and back with all that was acknowledged.
    redis.kill();
    let gone = many.put("t", &[only(301)], guard(301)).await;
    assert!(matches!(&gone, Err(PortError::Unclear(why)) if why.starts_with("Redis redis://127.0.0.1:")), "{gone:?}");
    redis.restart().await;
    assert_eq!(redis.ask(&["-n", "4", "GET", "k"]), "300");
    until("a write", PATIENCE, async || many.put("t", &[only(301)], guard(301)).await.map_err(|e| e.to_string())).await;
    assert_eq!(redis.ask(&["-n", "4", "GET", "k"]), "301");
}

/// Enhanced fan-out: the suite of sources, and subscriptions that end, are taken away, or were never there.
async fn pushed(clouds: &Clouds) {
    let client = clouds.kinesis().await;
    for name in ["pushed", "again"] {
        let wish = StreamWish { shards: Some(2), fixed: false, retention_hours: Some(24), kms_key: None };
        make(clouds, Kind::KinesisStream, name, Wish::Stream(wish)).await;
    }
    let reader = |stream: &str| Stream::new(client.clone(), stream).pushed_to("reader", vec![client.clone(), client.clone()]);
    // A consumer is registered first: what to do is said.
    let source = |stream: &str| KinesisSource::new(BTreeMap::from([("s".to_owned(), reader(stream))]));
    let one = source("again");
    let shard = one.shards("s").await.expect("shards").remove(0);
    let without = one.read(&shard.lineage, Place::Oldest).await.expect_err("there is no consumer");
    assert!(matches!(&without, PortError::Fatal(why) if why.contains("has no consumer reader; register it: aws kinesis")), "{without}");
    for name in ["pushed", "again"] {
        let summary = client.describe_stream_summary().stream_name(name).send().await.expect("a summary");
        let arn = summary.stream_description_summary().expect("a summary").stream_arn();
        client.register_stream_consumer().stream_arn(arn).consumer_name("reader").send().await.expect("a consumer");
    }
    until("the consumers", PATIENCE, async || {
        let read = source("pushed").read(&shard.lineage, Place::Oldest).await;
        if matches!(&read, Err(PortError::Unclear(why)) if why.contains("is not active yet")) { Err(format!("{read:?}")) } else { Ok(()) }
    })
    .await;
    source_conforms(&client, "pushed", reader("pushed")).await;

    let range = shard.range;
    let key =
        (0..).map(|n| format!("key-{n}")).find(|k| (range.first..=range.last).contains(&partition_hash(k.as_bytes()))).expect("a key");
    let streams = KinesisStreams::new(BTreeMap::from([("w".to_owned(), Stream::new(client.clone(), "again"))]));
    let put = async |from: usize| {
        let records: Vec<StreamRecord> =
            (from..from + 10).map(|n| StreamRecord { key: key.clone(), data: Bytes::from(n.to_string()) }).collect();
        assert_eq!(streams.put("w", &records).await, Ok(Vec::new()));
    };
    // Until there are so many; what is unclear is asked again, as a task does.
    let mut found: Vec<(Offset, Vec<u8>)> = Vec::new();
    let take = async |source: &KinesisSource, found: &mut Vec<(Offset, Vec<u8>)>, count: usize| {
        let mut unclear = Vec::new();

        until("the records", PATIENCE, async || {
            match source.read(&shard.lineage, Place::behind(found.last().map(|(at, _)| *at))).await {
                Ok(read) => found.extend((0..read.batch.len()).map(|i| (read.batch.positions[i], read.batch.record(i).to_vec()))),
                Err(PortError::Unclear(why)) => unclear.push(why),
                Err(why) => panic!("{why}"),
            }
            if found.len() >= count { Ok(()) } else { Err(format!("{} records {unclear:?}", found.len())) }
        })
        .await;
        unclear
    };
    put(0).await;
    assert_eq!(take(&one, &mut found, 10).await, Vec::<String>::new());
    // One that ends is followed by the next one, and nothing is seen twice.
    let begun = clouds.proxy.pushes.begun();
    clouds.proxy.pushes.end();
    put(10).await;
    assert_eq!(take(&one, &mut found, 20).await, Vec::<String>::new());
    assert_eq!(clouds.proxy.pushes.begun(), begun + 1);
    // Another worker takes the shard: at once it is refused, then the one before is ended, and has to say so.
    let other = source("again");
    let mut theirs = found.clone();
    put(20).await;
    let refused = take(&other, &mut theirs, 30).await;
    assert!(refused.iter().any(|why| why.contains("SubscribeToShard") && why.contains("ResourceInUseException")), "{refused:?}");
    put(30).await;
    let ended = take(&one, &mut found, 40).await;
    assert!(ended.iter().any(|why| why.contains("another subscription was begun")), "{ended:?}");
    let numbers: Vec<String> = found.iter().map(|(_, data)| String::from_utf8_lossy(data).into_owned()).collect();
    assert_eq!(numbers, (0..40).map(|n| n.to_string()).collect::<Vec<_>>());
    assert!(found.starts_with(&theirs));
    // From the middle, and from a time.
    let middle = found[14].0;
    clouds.proxy.pushes.end();
    let fresh = source("again");
    let inside = fresh.read(&shard.lineage, Place::Inside(middle)).await.expect("records").batch;
    assert_eq!(inside.positions.first(), Some(&found[15].0));
    clouds.proxy.pushes.end();
    let last = found[39].0;
    let read = source("again").read(&shard.lineage, Place::Inside(last)).await.expect("an answer");
    assert!(read.batch.is_empty() && read.scanned == Some(last) && read.more, "{read:?}");
    clouds.proxy.pushes.end();
    let since = source("again").read(&shard.lineage, Place::Since(inside.arrivals[0])).await.expect("records").batch;
    assert!(since.positions.contains(&found[15].0) && since.arrivals.iter().all(|at| *at >= inside.arrivals[0]));
}

#[tokio::test]
async fn another_kinesis_conforms() {
    let folder = tempfile::tempdir().expect("a folder");
    let clouds = Clouds::start(folder.path(), Kinesis::KinesisLocal, "127.0.0.1").await;
    kinesis_conforms(&clouds).await;
    producer_library(&clouds).await;
    client_library(&clouds).await;
    pushed(&clouds).await;
    let wish = StreamWish { shards: None, fixed: false, retention_hours: Some(48), kms_key: None };
    let resource_kind = Kind::KinesisStream;
    let services =
        leat_operator::clouds::Services { kinesis: clouds.kinesis().await, dynamodb: clouds.dynamodb().await, glue: clouds.glue().await };
    let resource = Resource {
        kind: resource_kind,
        name: "by-use".to_owned(),
        purpose: None,
        wish: Wish::Stream(wish),
        tags: BTreeMap::from([("team".to_owned(), "growth".to_owned())]),
        deletion: leat_crds::spec::DeletionPolicy::Delete,
        adoption: leat_crds::spec::AdoptionPolicy::Fail,
        management: leat_crds::spec::Management::Full,
    };
    // Creation, then one change after another, until nothing differs.
    until("the stream as it should be", PATIENCE, async || {
        use leat_operator_core::plan::Observed;
        let observed = leat_operator::providers::observe(&services, &resource).await.map_err(|e| e.to_string())?;
        let action = match &observed {
            Observed::Absent => Action::Create,
            Observed::Present(found) if found.busy.is_none() && found.differences.is_empty() => return Ok(()),
            Observed::Present(found) if found.busy.is_none() => Action::Update(found.differences.clone()),
            other => return Err(format!("{other:?}")),
        };
        leat_operator::providers::apply(&services, &resource, None, &action).await.map_err(|e| e.to_string())?;
        Err(format!("{action:?}"))
    })
    .await;
    let summary = clouds.kinesis().await.describe_stream_summary().stream_name("by-use").send().await.expect("the stream");
    let summary = summary.stream_description_summary().expect("a summary");
    assert_eq!(summary.retention_period_hours(), 48);
    assert_eq!(summary.stream_mode_details().map(|m| m.stream_mode().as_str()), Some("ON_DEMAND"));
}
