//! The clickstream pipeline under test: generated events as they are sent, the rows of its tasks, and what DuckDB makes of
//! the same events to compare with.

use std::collections::BTreeMap;
use std::path::Path;

use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::PutRecordsRequestEntry;
use base64::Engine;
use leat::generate::{self, Fate};
use leat::sample::Keys;
use leat_runtime::connectors::aws::dynamodb::LeaseTable;
use leat_runtime::engine::ports::Rows;
use leat_runtime::engine::task::decode;
use leat_runtime_core::key::partition_hash;
use leat_runtime_core::path;
use leat_runtime_core::row::{KeyedRow, SourceRow};
use serde_json::json;

use crate::clouds::Clouds;
use crate::{duckdb, repository};

/// Seed of the generated events.
pub const SEED: u64 = 11;
/// How many are sent.
pub const EVENTS: u64 = 100_000;
/// Records with a wrong partition key.
pub const WRONG_KEYS: usize = 100;
/// The stream.
pub const STREAM: &str = "clickstream-events";
/// The table of results.
pub const TABLE: &str = "clickstream-counters";

/// A record as it is sent.
pub struct Sent {
    /// Its bytes.
    pub data: Vec<u8>,
    /// Its partition key.
    pub key: String,
    /// The key is one that does not belong to the record.
    pub wrong: bool,
}

/// Owner of each task's row.
pub async fn owners(leases: &LeaseTable) -> BTreeMap<String, String> {
    let mut owners = BTreeMap::new();
    for prefix in [path::SOURCES, path::KEYED] {
        for (key, row) in leases.list(prefix).await.expect("rows") {
            owners.insert(key, row.fence.owner);
        }
    }
    owners
}

/// The rows of source tasks.
pub async fn source_rows(leases: &LeaseTable) -> Vec<SourceRow> {
    leases.list(path::SOURCES).await.expect("rows").iter().map(|(_, r)| decode(&r.body).expect("a row")).collect()
}

/// The rows of keyed tasks: key, owner, row.
pub async fn keyed_rows(leases: &LeaseTable) -> Vec<(String, String, KeyedRow)> {
    let rows = leases.list(path::KEYED).await.expect("rows");
    rows.into_iter().map(|(key, r)| (key, r.fence.owner, decode(&r.body).expect("a row"))).collect()
}

/// Sends records in their order.
pub async fn send(kinesis: &aws_sdk_kinesis::Client, records: &[Sent]) {
    for batch in records.chunks(400) {
        let entries = batch
            .iter()
            .map(|r| PutRecordsRequestEntry::builder().data(Blob::new(r.data.clone())).partition_key(&r.key).build().expect("an entry"));
        let answer = kinesis.put_records().stream_name(STREAM).set_records(Some(entries.collect())).send().await.expect("PutRecords");
        assert_eq!(answer.failed_record_count().unwrap_or_default(), 0);
    }
}

/// Open shards: id, first and last hash.
pub async fn open_shards(kinesis: &aws_sdk_kinesis::Client) -> Vec<(String, u128, u128)> {
    let listed = kinesis.list_shards().stream_name(STREAM).send().await.expect("ListShards");
    let open = listed.shards().iter().filter(|s| s.sequence_number_range().is_some_and(|r| r.ending_sequence_number().is_none()));
    open.map(|s| {
        let range = s.hash_key_range().expect("a range");
        let hash = |t: &str| t.parse::<u128>().expect("a hash");
        (s.shard_id().to_owned(), hash(range.starting_hash_key()), hash(range.ending_hash_key()))
    })
    .collect()
}

/// The generated events with their partition keys; some keys are wrong.
pub fn events(first: i64) -> Vec<Sent> {
    let text = std::fs::read_to_string(repository().join("manifests/pipelines/clickstream.yaml")).expect("the manifest");
    let documents = leat::manifest::documents("clickstream.yaml", &text).expect("YAML");
    let pipeline = leat::manifest::pipeline(&documents, leat::manifest::References::default()).expect("a pipeline");
    let mut keys = Keys::new(&pipeline.program, "events");
    let mut wrong = 0;
    (0..EVENTS)
        .map(|number| {
            let mut data = Vec::new();
            generate::write_at(SEED, number, first, &mut data);
            let key = keys.of(&data.clone().into(), &[data.len()]).remove(0);
            let mut sent = Sent { data, key: String::from_utf8(key).expect("text"), wrong: false };
            let due = number as usize > wrong * (EVENTS as usize / WRONG_KEYS) + 300;
            if due && wrong < WRONG_KEYS && generate::event(SEED, number).fate == Fate::Good {
                (sent.key, sent.wrong) = (format!("wrong-{number}"), true);
                wrong += 1;
            }
            sent
        })
        .collect()
}

/// One event for each open shard, beyond the end of every window, its lateness and the out-of-orderness.
pub fn closing(shards: &[(String, u128, u128)], time: i64) -> Vec<Sent> {
    let event = |(n, (_, first, last)): (usize, &(String, u128, u128))| {
        let cookie =
            (0..).map(|k| format!("close-{k}")).find(|c| (*first..=*last).contains(&partition_hash(c.as_bytes()))).expect("a cookie");
        let ts = leat::format_millis(time);
        let data =
            json!({"event_id": format!("closing-{n}"), "cookie_id": cookie, "ts": ts, "type": "view", "campaign_id": null, "spend": 0});
        Sent { data: data.to_string().into_bytes(), key: cookie, wrong: false }
    };
    shards.iter().enumerate().map(event).collect()
}

/// What DuckDB makes of the records that were sent, and of the files that were written.
const QUERY: &str = r#"
import duckdb, json, sys
sent, lake = sys.argv[1], sys.argv[2] + "/clickstream"
db = duckdb.connect()
db.execute("SET TimeZone='UTC'; SET enable_progress_bar=false")
one = lambda q: db.execute(q).fetchone()
db.execute(f"CREATE TABLE sent AS SELECT n, key, wrong, from_base64(data) AS data FROM read_json('{sent}', format='newline_delimited', columns={{n:'BIGINT',key:'VARCHAR',wrong:'BOOLEAN',data:'VARCHAR'}})")
raw = f"read_parquet('{lake}/raw/**/*.parquet', hive_partitioning=false)"
curated = f"read_parquet('{lake}/curated/**/*.parquet', hive_partitioning=false)"
dead = f"read_json('{lake}/dead-letters/**/*.jsonl', format='newline_delimited', hive_partitioning=false)"
db.execute("""CREATE TABLE events AS SELECT * FROM (
  SELECT n, json_extract_string(j, '$.event_id') AS event_id, json_extract_string(j, '$.campaign_id') AS campaign, json_extract_string(j, '$.type') AS type,
         json_extract_string(j, '$.spend')::DECIMAL(18,4) AS spend, json_extract_string(j, '$.ts')::TIMESTAMP AS ts, json_type(j, '$.cookie_id') AS cookie_type
  FROM (SELECT n, decode(data) AS j FROM sent WHERE NOT wrong AND try(json_valid(decode(data))))
) WHERE cookie_type = 'VARCHAR' AND year(ts) < 10000""")
db.execute("""CREATE TABLE firsts AS SELECT * FROM (SELECT *, row_number() OVER (PARTITION BY event_id ORDER BY n) AS nth FROM events
  WHERE spend >= 0 AND type IN ('view','click','purchase')) WHERE nth = 1""")
facts = lambda t: one(f"SELECT count(*), count(DISTINCT event_id), sum(hash(event_id))::VARCHAR, sum(spend)::VARCHAR, min(ts)::VARCHAR, max(ts)::VARCHAR FROM {t}")
bytes_of = lambda t, k: one(f"SELECT count(*), sum(hash(data))::VARCHAR, sum(hash({k}, data))::VARCHAR FROM {t}")
print(json.dumps({
  "sent": bytes_of("sent", "key"), "raw": bytes_of(raw, "partition_key"), "positions": one(f"SELECT count(DISTINCT (lineage, position)) FROM {raw}")[0],
  "curated": facts(curated), "firsts": facts("firsts"),
  "dead": dict(db.execute(f"SELECT step || ': ' || reason, count(*) FROM {dead} GROUP BY 1").fetchall()),
  "counters": db.execute("""SELECT campaign, strftime(date_trunc('minute', ts), '%Y-%m-%dT%H:%M'), count(*) FILTER (WHERE type = 'click'), sum(spend)::VARCHAR
     FROM firsts WHERE campaign IS NOT NULL GROUP BY 1, 2 ORDER BY 1, 2""").fetchall(),
}))
"#;

/// A decimal in units of 0.0001.
pub fn units(text: &str) -> i64 {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    format!("{whole}{fraction:0<4}").parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// A row of results: campaign, minute, clicks, spend in units of 0.0001.
pub type Counter = (String, String, i64, i64);

/// The rows of the table.
pub async fn counters(clouds: &Clouds) -> Vec<Counter> {
    let mut found = Vec::new();
    let mut pages = clouds.dynamodb().await.scan().table_name(TABLE).consistent_read(true).into_paginator().items().send();
    while let Some(item) = pages.next().await {
        let item = item.expect("an item");
        let s = |name: &str| item[name].as_s().expect(name).clone();
        let n = |name: &str| item[name].as_n().expect(name).clone();
        assert!(n("expires_at").parse::<i64>().is_ok());
        found.push((s("campaign_id"), s("minute"), n("clicks").parse().expect("a count"), units(&n("spend"))));
    }
    found.sort();
    found
}

/// Copies a bucket into a folder.
pub async fn download(clouds: &Clouds, bucket: &str, to: &Path) {
    let s3 = clouds.s3().await;
    let mut pages = s3.list_objects_v2().bucket(bucket).into_paginator().send();
    while let Some(page) = pages.next().await {
        for object in page.expect("a page").contents() {
            let key = object.key().expect("a key");
            let body = s3.get_object().bucket(bucket).key(key).send().await.expect("an object").body.collect().await.expect("bytes");
            let file = to.join(key);
            std::fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
            std::fs::write(file, body.into_bytes()).expect("a file");
        }
    }
}

/// Compares everything that was delivered with what DuckDB makes of the records that were sent.
pub async fn compare(clouds: &Clouds, folder: &Path, records: &[Sent]) {
    let mut lines = String::new();
    for (n, r) in records.iter().enumerate() {
        let data = base64::engine::general_purpose::STANDARD.encode(&r.data);
        lines.push_str(&json!({"n": n, "key": r.key, "wrong": r.wrong, "data": data}).to_string());
        lines.push('\n');
    }
    let sent = folder.join("sent.jsonl");
    std::fs::write(&sent, lines).expect("a file");
    let lake = folder.join("lake");
    download(clouds, "example-lake", &lake).await;
    let found = duckdb(QUERY, &[&sent.display().to_string(), &lake.display().to_string()]).expect("DuckDB answers");
    assert_eq!(found["raw"], found["sent"], "every record is in the archive once, with its partition key");
    assert_eq!(found["positions"], found["sent"][0]);
    assert_eq!(found["curated"], found["firsts"], "each valid event is in the curated files once");
    assert_eq!(found["curated"][0], found["curated"][1]);
    assert_eq!(found["dead"]["clicks: wrong-shard"], WRONG_KEYS, "{}", found["dead"]);
    let fates = |fate: Fate| (0..EVENTS).filter(|n| generate::event(SEED, *n).fate == fate).count();
    assert_eq!(found["dead"]["clicks: malformed"], fates(Fate::Malformed));
    assert_eq!(found["dead"]["clicks: schema"], fates(Fate::Schema));
    assert_eq!(found["dead"]["valid: rule:known_type"], fates(Fate::UnknownType));
    assert_eq!(found["dead"]["valid: rule:spend_not_negative"], fates(Fate::NegativeSpend));
    assert_eq!(found["dead"].as_object().map(|d| d.len()), Some(5), "{}", found["dead"]);
    let expected: Vec<Counter> = found["counters"]
        .as_array()
        .expect("rows")
        .iter()
        .map(|r| {
            let text = |i: usize| r[i].as_str().expect("text").to_owned();
            (text(0), text(1), r[2].as_i64().expect("a count"), units(&text(3)))
        })
        .collect();
    let got = counters(clouds).await;
    assert!(expected.len() > 1_000, "{}", expected.len());
    assert!(got == expected, "{} of {}: {:?}", got.len(), expected.len(), got.iter().zip(&expected).find(|(a, b)| a != b));
}
