//! Worker processes on a rough road: calls to Kinesis, DynamoDB and S3 are lost, doubled, delayed and cut off, connections to a
//! broker of Kafka end, while workers are killed and held, AWS and the broker are gone for a while, a shard is split, and the
//! job changes. Each event is in the files and in a topic once, and the sums are exact.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::PutRecordsRequestEntry;
use leat_tests::clouds::{Clouds, Kinesis};
use leat_tests::gate::Gate;
use leat_tests::kafka::{self, Doors};
use leat_tests::leat;
use leat_tests::process::{free_port, until};
use leat_tests::redis::Redis;
use leat_tests::rough::{Fate, Road};
use leat_tests::wires::Wires;
use leat_tests::workers::{rows, show, start, table};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(120);
const ADDRESS: &str = "127.0.0.1";
/// Events, of which one in ten is sent twice.
const EVENTS: u64 = 6_000;
const START: u64 = 1_793_491_200_000;

const MANIFEST: &str = r#"
apiVersion: leat.dev/v1alpha1
kind: StreamingPipeline
metadata: {name: rough, namespace: analytics}
spec:
  storage: {location: "s3://example-leat/"}
  streams:
    - {name: s, kinesis: {streamName: rough-events, shards: {initial: 3}}}
    - {name: read, management: ObserveOnly, kafka: {cluster: {bootstrapServers: ["BROKER"]}, topic: read}}
    - {name: copied, management: ObserveOnly, kafka: {cluster: {bootstrapServers: ["BROKER"]}, topic: copied}}
  tables: [{name: sums, dynamodb: {tableName: rough-sums, partitionKey: {name: campaign, type: S}, sortKey: {name: start, type: S}}}]
  sources:
    - {name: events, stream: s, fanOut: {consumer: leat}, columns: {id: BIGINT, user: TEXT, campaign: TEXT, ts: BIGINT, spend: BIGINT}, partitionedBy: [user], eventTime: {field: ts, maxOutOfOrderness: 1s}}
    - {name: others, stream: read, format: Json, columns: {id: TEXT}}
  steps:
    - {name: unique, from: [events], deduplicate: {by: [id], keyedWith: [user], within: 1d}}
    - {name: sums, from: [unique], window: {tumbling: 1m}, groupBy: [campaign], aggregate: {rows: "count(*)", total: "sum(spend)"}}
    - {name: visits, from: [unique], sessionize: {by: [campaign], gap: 2s, aggregate: {rows: "count(*)"}}}
  sinks:
    - {name: curated, from: [unique], s3: {location: "s3://example-lake/curated/", format: JsonLines, roll: {interval: 2s}}}
    - {name: visits, from: [visits], s3: {location: "s3://example-lake/visits/", format: JsonLines, roll: {interval: 1s}}}
    - {name: sums, from: [sums], dynamodb: {table: sums, columns: {start: "to_char(window_start, '%Y-%m-%dT%H:%M')"}}}
    - {name: live, from: [sums], redis: {url: "redis://REDIS", key: "sum:{campaign}", type: Hash, field: "{window_start}", value: total}}
    - {name: copy, from: [unique], stream: {name: copied, partitionBy: user}}
    - {name: others, from: [others], s3: {location: "s3://example-lake/others/", format: JsonLines, roll: {interval: 1s}}}
  deadLetter: {s3: {location: "s3://example-lake/dead/"}}
"#;

/// A sink that the next job has.
const LARGE: &str = r#"    - {name: large, from: [large], s3: {location: "s3://example-lake/large/", format: JsonLines, roll: {interval: 1s}}}
"#;
const STEP: &str = r#"    - {name: large, from: [unique], filter: "spend >= 10"}
"#;

async fn make(clouds: &Clouds) {
    let (kinesis, s3) = (clouds.kinesis().await, clouds.s3().await);
    for (stream, shards) in [("rough-events", 3), ("leat.analytics.rough.repartition", 2)] {
        kinesis.create_stream().stream_name(stream).shard_count(shards).send().await.expect("a stream");
    }
    table(clouds, "leat.analytics.rough.leases", ["leaseKind", "leaseKey"]).await;
    table(clouds, "rough-sums", ["campaign", "start"]).await;
    for bucket in ["example-leat", "example-lake"] {
        s3.create_bucket().bucket(bucket).send().await.expect("a bucket");
    }
    until("the streams", PATIENCE, async || {
        for stream in ["rough-events", "leat.analytics.rough.repartition"] {
            let found = kinesis.describe_stream_summary().stream_name(stream).send().await.map_err(|e| e.to_string())?;
            let status = found.stream_description_summary().map(|s| s.stream_status().as_str().to_owned());
            if status.as_deref() != Some("ACTIVE") {
                return Err(format!("{stream} is {status:?}"));
            }
        }
        Ok(())
    })
    .await;
    let summary = kinesis.describe_stream_summary().stream_name("rough-events").send().await.expect("a summary");
    let arn = summary.stream_description_summary().expect("a summary").stream_arn();
    kinesis.register_stream_consumer().stream_arn(arn).consumer_name("leat").send().await.expect("a consumer");
}

fn event(id: u64) -> (String, Value) {
    let user = format!("user-{}", id % 97);
    let campaign = format!("c-{}", id % 7);
    let event = json!({"id": id, "user": user, "campaign": campaign, "ts": START + id * 50, "spend": id % 13});
    (user, event)
}

async fn put(clouds: &Clouds, events: Vec<(String, Value)>) {
    let kinesis = clouds.kinesis().await;
    for some in events.chunks(400) {
        let entry = |(key, event): &(String, Value)| {
            PutRecordsRequestEntry::builder().partition_key(key).data(Blob::new(event.to_string())).build().expect("an entry")
        };
        let answer = kinesis.put_records().stream_name("rough-events").set_records(Some(some.iter().map(entry).collect())).send().await;
        assert_eq!(answer.expect("records").failed_record_count(), Some(0));
    }
}

/// Splits a shard in the middle.
async fn split(clouds: &Clouds) {
    let kinesis = clouds.kinesis().await;
    let listed = kinesis.list_shards().stream_name("rough-events").send().await.expect("shards");
    let shard = &listed.shards()[1];
    let range = shard.hash_key_range().expect("a range");
    let [first, last] = [range.starting_hash_key(), range.ending_hash_key()].map(|key| key.parse::<u128>().expect("a number"));
    let middle = (first + (last - first) / 2).to_string();
    let split = kinesis.split_shard().stream_name("rough-events").shard_to_split(shard.shard_id()).new_starting_hash_key(middle);
    split.send().await.expect("SplitShard");
    until("the split", PATIENCE, async || {
        let listed = kinesis.list_shards().stream_name("rough-events").send().await.map_err(|e| e.to_string())?;
        if listed.shards().len() == 5 { Ok(()) } else { Err(format!("{} shards", listed.shards().len())) }
    })
    .await;
}

/// Sums by campaign and minute, of the table.
async fn sums(clouds: &Clouds) -> Result<BTreeMap<(String, String), (u64, u64)>, String> {
    let items = clouds.dynamodb().await.scan().table_name("rough-sums").send().await.map_err(|e| format!("{e:?}"))?;
    let text = |item: &std::collections::HashMap<String, AttributeValue>, name: &str| match item.get(name) {
        Some(AttributeValue::S(text) | AttributeValue::N(text)) => text.clone(),
        other => panic!("{name} is {other:?}"),
    };
    let number = |item: &_, name: &str| text(item, name).parse().expect("a number");
    Ok(items.items().iter().map(|i| ((text(i, "campaign"), text(i, "start")), (number(i, "rows"), number(i, "total")))).collect())
}

/// An audit of all that the workers have left finds nothing; then an item goes, and a file, and it finds that.
async fn audited(clouds: &Clouds, folder: &Path, manifest: &str) {
    let file = folder.join("pipeline.yaml");
    std::fs::write(&file, manifest).expect("a file");
    let audit = || {
        let mut command = leat();
        clouds.environment(&mut command);
        let output = command.args(["audit", "--deep", "--output", "json", "-f"]).arg(&file).output().expect("leat starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{said}"));
        let found: Vec<String> =
            report["findings"].as_array().expect("findings").iter().map(|f| format!("{} {}", f["kind"], f["message"])).collect();
        (found, report)
    };
    let (found, report) = audit();
    assert!(found.is_empty(), "{found:?}");
    let account =
        |sink: &str| report["accounts"].as_array().expect("accounts").iter().find(|a| a["sink"] == sink).cloned().expect("a sink");
    let table = account("sums");
    assert!(table["rows"].as_u64() > Some(7) && table["rows"] == table["ledger"], "{table}");
    assert_eq!(account("curated")["rows"], EVENTS + 97);

    let dynamodb = clouds.dynamodb().await;
    let items = dynamodb.scan().table_name("rough-sums").send().await.expect("items");
    let item = &items.items()[0];
    let gone =
        dynamodb.delete_item().table_name("rough-sums").key("campaign", item["campaign"].clone()).key("start", item["start"].clone());
    gone.send().await.expect("deleted");
    let (found, _) = audit();
    assert!(found.len() == 1 && found[0].starts_with("\"gap\" \"sums: there are "), "{found:?}");
    let s3 = clouds.s3().await;
    let files = s3.list_objects_v2().bucket("example-lake").prefix("curated/").send().await.expect("files");
    let key = files.contents()[0].key().expect("a key");
    s3.delete_object().bucket("example-lake").key(key).send().await.expect("deleted");
    let (found, _) = audit();
    assert!(found.len() == 2 && found.iter().any(|f| f.starts_with("\"gap\" \"curated: of source/")), "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_rough_road_nothing_is_lost_and_nothing_repeated() {
    let folder = tempfile::tempdir().expect("a folder");
    let clouds = Clouds::start(folder.path(), Kinesis::Ferrokinesis, "127.0.0.1").await;
    make(&clouds).await;
    let redis = Redis::start(folder.path(), false).await;
    let gate = Gate::open("127.0.0.1", redis.port).await;
    // A broker, and a road to it on which connections end.
    let (port, controller, doors) = (free_port(), free_port(), Doors::free());
    kafka::certificates(folder.path(), ADDRESS);
    let configured = kafka::configure(folder.path(), ADDRESS, port, controller, Some(&doors));
    let mut broker = kafka::run(folder.path(), ADDRESS, port, &configured).await;
    let wires = Wires::to(ADDRESS, doors.road.0, doors.road.1, 5, 200_000).await;
    std::fs::write(folder.path().join("client.properties"), format!("bootstrap.servers={ADDRESS}:{port}")).expect("a file");
    let clients = kafka::clients(folder.path());
    let ask = |commands: &str| kafka::ask(&clients, folder.path(), commands);
    ask("topic copied 3 + topic read 2 + send read 0 500 zstd");
    let manifest = MANIFEST.replace("REDIS", &gate.address.to_string()).replace("BROKER", &format!("{ADDRESS}:{}", doors.road.0));
    show(folder.path(), &manifest, "1");
    let (mut roads, mut all) = (BTreeMap::new(), Vec::new());
    for (seed, (service, behind)) in clouds.endpoints.iter().enumerate() {
        let (address, road) = Road::to(behind, seed as u64 + 1, 80).await;
        roads.insert(*service, address);
        all.push(road);
    }

    let mut one = start(&clouds, &roads, folder.path(), "one-1");
    let two = start(&clouds, &roads, folder.path(), "two-1");
    let third = EVENTS / 3;
    let some = |from: u64, to: u64| (from..to).flat_map(|id| std::iter::repeat_n(event(id), if id % 10 == 0 { 2 } else { 1 }));
    put(&clouds, some(0, third).collect()).await;
    until("the first files", PATIENCE, async || {
        let found = rows(&clouds, "curated/").await?.len();
        if found > 200 { Ok(()) } else { Err(format!("{found} rows\n{}\n{}", one.output(), two.output())) }
    })
    .await;
    // One is killed in the middle and comes back as another; the other is held until its leases are taken, and goes on as if
    // nothing had been.
    one.kill();
    put(&clouds, some(third, 2 * third).collect()).await;
    two.signal("STOP");
    let three = start(&clouds, &roads, folder.path(), "one-2");
    until("rows by the new one", PATIENCE, async || {
        let found = rows(&clouds, "curated/").await?.iter().filter(|r| r["id"].as_u64() >= Some(third)).count();
        if found > 500 { Ok(()) } else { Err(format!("{found} rows\n{}", three.output())) }
    })
    .await;
    two.signal("CONT");
    // Subscriptions end, as they do after five minutes. S3 is gone for some seconds, with all sinks
    // that are files; then all of AWS.
    clouds.proxy.pushes.end();
    let heard = || three.output().matches("no clear answer").count();
    let before = heard();
    clouds.service_reachable("AWS_ENDPOINT_URL_S3", false);
    put(&clouds, some(2 * third, 2 * third + 600).collect()).await;
    until("the worker to miss S3", PATIENCE, async || if heard() > before { Ok(()) } else { Err(three.output()) }).await;
    clouds.service_reachable("AWS_ENDPOINT_URL_S3", true);
    // What is written meanwhile waits in its producer.
    clouds.reachable(false);
    gate.set(false);
    broker.kill();
    let before = heard();
    until("the worker to notice", PATIENCE, async || if heard() > before { Ok(()) } else { Err(three.output()) }).await;
    clouds.reachable(true);
    gate.set(true);
    broker = kafka::run(folder.path(), ADDRESS, port, &configured).await;
    ask("send read 1 500 gzip");
    split(&clouds).await;
    // The next job begins, with a sink more, while there is much to read: its workers take over where those of the one before have
    // come to.
    put(&clouds, some(2 * third + 600, EVENTS - 400).collect()).await;
    let next = folder.path().join("next");
    let manifest = manifest.replace("  deadLetter:", &format!("{LARGE}  deadLetter:")).replace("  sinks:", &format!("{STEP}  sinks:"));
    show(&next, &manifest, "2");
    let four = start(&clouds, &roads, &next, "four-1");
    until("the next job", PATIENCE, async || {
        let row = clouds.dynamodb().await.get_item().table_name("leat.analytics.rough.leases");
        let row = row.key("leaseKind", AttributeValue::S("pipeline".to_owned())).key("leaseKey", AttributeValue::S("pipeline".to_owned()));
        let row = row.send().await.map_err(|e| format!("{e:?}"))?;
        let job = row.item().and_then(|item| item.get("job").cloned());
        if job == Some(AttributeValue::N("2".to_owned())) { Ok(()) } else { Err(format!("{job:?}\n{}\n{}", three.output(), four.output())) }
    })
    .await;
    put(&clouds, some(EVENTS - 400, EVENTS).collect()).await;
    // Some events of each shard that close all windows.
    let last = START + EVENTS * 50 + 600_000;
    let closing = (0..97).map(|user| {
        (format!("user-{user}"), json!({"id": EVENTS + user, "user": format!("user-{user}"), "campaign": "end", "ts": last, "spend": 0}))
    });
    put(&clouds, closing.collect()).await;

    let mut expected: BTreeMap<(String, String), (u64, u64)> = BTreeMap::new();
    for id in 0..EVENTS {
        let minute = leat::format_millis((START + id * 50) as i64)[..16].to_owned();
        let sum = expected.entry((format!("c-{}", id % 7), minute)).or_default();
        *sum = (sum.0 + 1, sum.1 + id % 13);
    }
    until("all sums", PATIENCE, async || {
        let found = sums(&clouds).await?;
        if found.len() == expected.len() {
            Ok(())
        } else {
            Err(format!("{} of {} sums\n{}\n{}", found.len(), expected.len(), three.output(), four.output()))
        }
    })
    .await;
    assert_eq!(sums(&clouds).await.as_ref(), Ok(&expected));
    until("all values of Redis", PATIENCE, async || {
        let mut found = BTreeMap::new();
        for campaign in (0..7).map(|n| format!("c-{n}")) {
            let all: Vec<String> = redis.ask(&["HGETALL", &format!("sum:{campaign}")]).lines().map(str::to_owned).collect();
            found.extend(
                all.chunks(2).map(|pair| ((campaign.clone(), pair[0][..16].to_owned()), pair[1].parse::<u64>().expect("a number"))),
            );
        }
        let totals: BTreeMap<_, u64> = expected.iter().map(|(key, (_, total))| (key.clone(), *total)).collect();
        if found == totals { Ok(()) } else { Err(format!("{} of {} values", found.len(), totals.len())) }
    })
    .await;
    until("all files", PATIENCE, async || {
        let found = rows(&clouds, "curated/").await?.len() as u64;
        if found >= EVENTS + 97 { Ok(()) } else { Err(format!("{found} rows\n{}\n{}", three.output(), four.output())) }
    })
    .await;
    let ids = async |prefix: &str| {
        let rows = rows(&clouds, prefix).await.expect("rows");
        let mut ids: Vec<u64> = rows.iter().filter_map(|r| r["id"].as_u64()).collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(ids("curated/").await, (0..EVENTS + 97).collect::<Vec<_>>());
    // Kafka's own consumer finds each event in the topic once, and what it reads from the other one is in files.
    let id = |line: &Value| serde_json::from_str::<Value>(&kafka::value(line)).expect("JSON")["id"].clone();
    let copied = until("the topic", PATIENCE, async || {
        let copied = ask("read copied");
        if copied.len() as u64 >= EVENTS + 97 { Ok(copied) } else { Err(format!("{} of them\n{}", copied.len(), four.output())) }
    });
    let mut copied: Vec<u64> = copied.await.iter().filter_map(|line| id(line).as_u64()).collect();
    copied.sort_unstable();
    assert_eq!(copied, (0..EVENTS + 97).collect::<Vec<_>>());
    let texts = |ids: Vec<Value>| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut sent = texts(ask("read read").iter().map(id).collect());
    sent.sort();
    let mut others = until("the other topic", PATIENCE, async || {
        let found = rows(&clouds, "others/").await?;
        if found.len() >= sent.len() {
            Ok(texts(found.iter().map(|r| r["id"].clone()).collect()))
        } else {
            Err(format!("{} rows", found.len()))
        }
    })
    .await;
    others.sort();
    assert_eq!((sent.len(), others), (1_000, sent.clone()));
    // What the next job alone writes has no gap behind where it began, and nothing twice.
    let is_large = |id: &u64| id % 13 >= 10;
    until("all large ones", PATIENCE, async || {
        let found = ids("large/").await;
        if (EVENTS - 400..EVENTS).filter(is_large).all(|id| found.contains(&id)) { Ok(()) } else { Err(format!("{} rows", found.len())) }
    })
    .await;
    let large = ids("large/").await;
    assert!(large.windows(2).all(|pair| pair[0] < pair[1]) && large.iter().all(is_large), "{large:?}");
    // Every campaign's events follow each other by less than the gap: one session each.
    let visits = until("all sessions", PATIENCE, async || {
        let found = rows(&clouds, "visits/").await?;
        if found.len() >= 7 { Ok(found) } else { Err(format!("{} sessions", found.len())) }
    });
    let mut visits: Vec<(String, u64)> = visits
        .await
        .iter()
        .map(|v| (v["campaign"].as_str().unwrap_or_default().to_owned(), v["rows"].as_u64().unwrap_or_default()))
        .collect();
    visits.sort();
    let wanted: Vec<(String, u64)> = (0..7).map(|c| (format!("c-{c}"), (0..EVENTS).filter(|id| id % 7 == c).count() as u64)).collect();
    assert_eq!(visits, wanted);
    // Workers that leave close what is open, on a smooth road, and nothing comes twice by that.
    all.iter().for_each(|road| road.smooth());
    for mut worker in [two, three, four] {
        worker.signal("TERM");
        assert!(worker.ended(PATIENCE).await, "{}", worker.output());
    }
    assert_eq!(ids("curated/").await, (0..EVENTS + 97).collect::<Vec<_>>());
    assert_eq!(ids("large/").await, large);
    assert!(clouds.proxy.pushes.begun() > 6, "subscriptions of three shards, begun again and again");
    audited(&clouds, folder.path(), &manifest).await;
    drop(broker);
    let cut = wires.cut.load(Ordering::Relaxed);
    assert!(cut > 3, "{cut} connections to the broker ended on the way");
    // The road was rough, in every way.
    let mut met: BTreeMap<Fate, u64> = BTreeMap::new();
    for road in &all {
        road.met.lock().expect("a map").iter().for_each(|(fate, n)| *met.entry(*fate).or_default() += n);
    }
    for fate in [Fate::Late, Fate::Lost, Fate::Unheard, Fate::Cut, Fate::Twice, Fate::Refused] {
        assert!(met.get(&fate) > Some(&3), "{met:?}");
    }
    assert!(met.get(&Fate::Half) > Some(&0), "{met:?}");
}
