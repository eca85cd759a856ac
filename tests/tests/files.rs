//! Files of S3 as a source: each record once, whatever is cut off, killed or added meanwhile; and files that are not what they
//! were when the source began.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use flate2::write::GzEncoder;
use leat_runtime::codecs::framing::{Contents, Framing};
use leat_runtime::connectors::aws::files::{Prefix, S3Source};
use leat_runtime::engine::ports::{Place, PortError, Source};
use leat_runtime_core::begin::Begin;
use leat_runtime_core::position::Lineage;
use leat_tests::clouds::{Clouds, Kinesis};
use leat_tests::process::until;
use leat_tests::rough::Road;
use leat_tests::workers::{rows, show, start, table};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(120);
const START: u64 = 1_793_491_200_000;
const FILES: u64 = 30;
/// Records of a file; one has more, of several reads.
const RECORDS: u64 = 400;
const LONG: u64 = 30_000;

const MANIFEST: &str = r#"
apiVersion: leat.dev/v1alpha1
kind: StreamingPipeline
metadata: {name: files, namespace: analytics}
spec:
  storage: {location: "s3://example-leat/"}
  sources:
    - {name: events, files: {path: "s3://example-in/day", parallelism: 3}, columns: {id: BIGINT, campaign: TEXT, ts: BIGINT, spend: BIGINT}, eventTime: {field: ts, maxOutOfOrderness: 1s}}
  steps:
    - {name: sums, from: [events], window: {tumbling: 1m}, groupBy: [campaign], aggregate: {rows: "count(*)", total: "sum(spend)"}}
  sinks:
    - {name: curated, from: [events], s3: {location: "s3://example-lake/curated/", format: JsonLines, roll: {interval: 2s}}}
    - {name: sums, from: [sums], s3: {location: "s3://example-lake/sums/", format: JsonLines, roll: {interval: 1s}}}
  deadLetter: {s3: {location: "s3://example-lake/dead/"}}
"#;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("memory")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).expect("memory")
}

/// The ids of a file.
fn ids(file: u64) -> std::ops::Range<u64> {
    let first = file * RECORDS + if file > 7 { LONG } else { 0 };
    first..first + RECORDS + if file == 7 { LONG } else { 0 }
}

fn event(id: u64) -> Value {
    json!({"id": id, "campaign": format!("c-{}", id % 7), "ts": START + id * 20, "spend": id % 13})
}

/// Name and bytes of a file: plain or compressed, of several parts, with blank lines, with and without an end of the last line.
fn file(file: u64) -> (String, Vec<u8>) {
    let lines: Vec<String> = ids(file).map(|id| format!("{}{}", event(id), if id % 50 == 0 { "\r\n\n" } else { "\n" })).collect();
    let (half, rest) = lines.split_at(lines.len() / 2);
    let (half, rest) = (half.concat().into_bytes(), rest.concat().trim_end().as_bytes().to_vec());
    let name = format!("day/{:02}/{file:04}.jsonl", file / 10);
    match file % 4 {
        0 => (name, [half, rest].concat()),
        1 => (name + ".gz", [gzip(&half), gzip(&rest)].concat()),
        2 => (name + ".zst", [zstd(&half), zstd(&rest)].concat()),
        _ => (name + ".zst", zstd(&[half, rest, b"\n\n".to_vec()].concat())),
    }
}

async fn put(s3: &aws_sdk_s3::Client, key: &str, bytes: Vec<u8>) {
    s3.put_object().bucket("example-in").key(key).body(ByteStream::from(bytes)).send().await.expect("written");
}

async fn make(clouds: &Clouds) {
    let (kinesis, s3) = (clouds.kinesis().await, clouds.s3().await);
    kinesis.create_stream().stream_name("leat.analytics.files.repartition").shard_count(2).send().await.expect("a stream");
    table(clouds, "leat.analytics.files.leases", ["leaseKind", "leaseKey"]).await;
    for bucket in ["example-leat", "example-lake", "example-in"] {
        s3.create_bucket().bucket(bucket).send().await.expect("a bucket");
    }
    until("the stream", PATIENCE, async || {
        let found = kinesis.describe_stream_summary().stream_name("leat.analytics.files.repartition").send().await;
        let found = found.map_err(|e| e.to_string())?;
        let status = found.stream_description_summary().map(|s| s.stream_status().as_str().to_owned());
        if status.as_deref() == Some("ACTIVE") { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_record_of_each_file_is_taken_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let clouds = Clouds::start(folder.path(), Kinesis::Ferrokinesis, "127.0.0.1").await;
    make(&clouds).await;
    let s3 = clouds.s3().await;
    for n in 0..FILES {
        let (name, bytes) = file(n);
        put(&s3, &name, bytes).await;
    }
    // A folder as tools make it, and neighbours that are no part of it.
    put(&s3, "day/empty/", Vec::new()).await;
    put(&s3, "days/0000.jsonl", event(9_999_999).to_string().into_bytes()).await;

    show(folder.path(), MANIFEST, "1");
    let (mut roads, mut all) = (BTreeMap::new(), Vec::new());
    for (seed, (service, behind)) in clouds.endpoints.iter().enumerate() {
        let (address, road) = Road::to(behind, seed as u64 + 1, 80).await;
        roads.insert(*service, address);
        all.push(road);
    }
    let one = start(&clouds, &roads, folder.path(), "one-1");
    until("the first files", PATIENCE, async || {
        let found = rows(&clouds, "curated/").await?.len();
        if found > 100 { Ok(()) } else { Err(format!("{found} rows\n{}", one.output())) }
    })
    .await;
    // What comes later is not read: the source is what was there.
    put(&s3, "day/00/0000-later.jsonl", event(8_888_888).to_string().into_bytes()).await;
    let mut one = one;
    one.kill();
    let mut two = start(&clouds, &roads, folder.path(), "one-2");

    let last = ids(FILES - 1).end;
    let mut expected: BTreeMap<(String, String), (u64, String)> = BTreeMap::new();
    for id in 0..last {
        let minute = leat::format_millis((START + id * 20) as i64)[..16].to_owned();
        let sum = expected.entry((format!("c-{}", id % 7), minute)).or_default();
        let total: u64 = sum.1.parse().unwrap_or_default();
        *sum = (sum.0 + 1, (total + id % 13).to_string());
    }
    // All windows close, since all files have an end.
    let sums = until("all sums", PATIENCE, async || {
        let found = rows(&clouds, "sums/").await?;
        if found.len() >= expected.len() { Ok(found) } else { Err(format!("{} of {}\n{}", found.len(), expected.len(), two.output())) }
    })
    .await;
    let text = |row: &Value, name: &str| row[name].as_str().map_or_else(|| row[name].to_string(), str::to_owned);
    assert_eq!(sums.len(), expected.len());
    let sums: BTreeMap<(String, String), (u64, String)> = sums
        .iter()
        .map(|r| {
            ((text(r, "campaign"), text(r, "window_start")[..16].to_owned()), (r["rows"].as_u64().unwrap_or_default(), text(r, "total")))
        })
        .collect();
    assert_eq!(sums, expected);
    until("all files", PATIENCE, async || {
        let found = rows(&clouds, "curated/").await?.len() as u64;
        if found >= last { Ok(()) } else { Err(format!("{found} rows\n{}", two.output())) }
    })
    .await;
    all.iter().for_each(|road| road.smooth());
    two.signal("TERM");
    assert!(two.ended(PATIENCE).await, "{}", two.output());
    let mut found: Vec<u64> = rows(&clouds, "curated/").await.expect("rows").iter().filter_map(|r| r["id"].as_u64()).collect();
    found.sort_unstable();
    assert_eq!(found, (0..last).collect::<Vec<_>>());
}

/// The next job reads other files while one of the first ones is read in part: what was taken is delivered once, the rest is
/// left, and nobody waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_the_next_job_does_not_read_are_left_in_the_middle() {
    let folder = tempfile::tempdir().expect("a folder");
    let clouds = Clouds::start(folder.path(), Kinesis::Ferrokinesis, "127.0.0.1").await;
    make(&clouds).await;
    let s3 = clouds.s3().await;
    for n in 0..8 {
        let (name, bytes) = file(n);
        put(&s3, &name, bytes).await;
    }
    let other = |id: u64| json!({"id": 1_000_000 + id, "campaign": "other", "ts": START + 864_000_000 + id * 100, "spend": 1});
    let lines = |ids: std::ops::Range<u64>| ids.map(|id| format!("{}\n", other(id))).collect::<String>().into_bytes();
    put(&s3, "other/a.jsonl", lines(0..900)).await;
    put(&s3, "other/b.jsonl.zst", zstd(&lines(900..1_800))).await;
    show(folder.path(), MANIFEST, "1");
    // The long one comes to its middle and no further.
    let (address, road) = Road::to(&clouds.endpoints["AWS_ENDPOINT_URL_S3"], 1, 0).await;
    road.halve(&file(7).0);
    let mut one = start(&clouds, &BTreeMap::from([("AWS_ENDPOINT_URL_S3", address)]), folder.path(), "one-1");
    let long = |found: &[Value]| found.iter().filter(|r| r["id"].as_u64().is_some_and(|id| ids(7).contains(&id))).count() as u64;
    until("rows of the long file", PATIENCE, async || {
        let found = long(&rows(&clouds, "curated/").await?);
        if found > 0 { Ok(()) } else { Err(one.output()) }
    })
    .await;
    one.kill();
    let next = folder.path().join("next");
    show(
        &next,
        &MANIFEST
            .replace("{name: events, files: {path: \"s3://example-in/day\"", "{name: others, files: {path: \"s3://example-in/other\"")
            .replace("[events]", "[others]"),
        "2",
    );
    let mut two = start(&clouds, &BTreeMap::new(), &next, "two-1");
    let found = until("all rows of the other files", PATIENCE, async || {
        let mut found: Vec<u64> = rows(&clouds, "curated/").await?.iter().filter_map(|r| r["id"].as_u64()).collect();
        found.sort_unstable();
        let others = found.iter().filter(|id| **id >= 1_000_000).count();
        if others >= 1_800 { Ok(found) } else { Err(format!("{others} rows\n{}", two.output())) }
    })
    .await;
    assert!(found.windows(2).all(|pair| pair[0] < pair[1]), "nothing comes twice");
    let of_long = found.iter().filter(|id| ids(7).contains(*id)).count() as u64;
    assert!(0 < of_long && of_long < LONG, "{of_long} of {LONG}");
    // The end of these files closes their windows: three minutes.
    let sums = until("their sums", PATIENCE, async || {
        let found = rows(&clouds, "sums/").await?;
        let others: Vec<u64> = found.iter().filter(|r| r["campaign"] == "other").filter_map(|r| r["rows"].as_u64()).collect();
        if others.len() >= 3 { Ok(others) } else { Err(format!("{found:?}\n{}", two.output())) }
    });
    assert_eq!(sums.await, [600, 600, 600]);
    two.signal("TERM");
    assert!(two.ended(PATIENCE).await, "{}", two.output());
    let mut after: Vec<u64> = rows(&clouds, "curated/").await.expect("rows").iter().filter_map(|r| r["id"].as_u64()).collect();
    after.sort_unstable();
    assert_eq!(after, found, "what was left is left");
}

/// A source that has listed what is below a prefix, or knows what another has.
async fn source(s3: &aws_sdk_s3::Client, location: &str, contents: Contents, known: Option<&Arc<Begin>>) -> (S3Source, Arc<Begin>) {
    let source = S3Source::new(BTreeMap::from([("s".to_owned(), Prefix::new(s3.clone(), location, contents, 2))]));
    let begin = match known {
        Some(begin) => Arc::clone(begin),
        None => Arc::new(Begin { files: Some(source.list("s").await.expect("files")), ..Begin::default() }),
    };
    source.know("s", &begin);
    (source, begin)
}

async fn lineages(source: &S3Source) -> Vec<Lineage> {
    source.shards("s").await.expect("lanes").into_iter().map(|shard| shard.lineage).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_go_on_anywhere_and_are_those_that_were_listed() {
    let folder = tempfile::tempdir().expect("a folder");
    let clouds = Clouds::start(folder.path(), Kinesis::Ferrokinesis, "127.0.0.1").await;
    let s3 = clouds.s3().await;
    s3.create_bucket().bucket("example-in").send().await.expect("a bucket");
    let csv = Contents::Text(Framing::Csv { header: true, delimiter: b',' });
    let lines_of = Contents::Text(Framing::Lines);
    put(&s3, "csv/a.csv", b"id,note\r\n1,\"two\nlines\"\r\n2,x\n\n3,\"\"\"q\"\"\"\n".to_vec()).await;
    put(&s3, "csv/b.csv.gz", gzip(b"\xef\xbb\xbfnote,id\ny,4\nz,5")).await;
    put(&s3, "csv/c.csv.zst", zstd(b"id,note\n")).await;
    put(&s3, "csv/d.csv", b"id,note\n6,last\n".to_vec()).await;
    let (first, begin) = source(&s3, "s3://example-in/csv/", csv, None).await;
    let lanes = lineages(&first).await;
    assert_eq!(lanes.len(), 2);
    let mut all = BTreeSet::new();
    for lane in &lanes {
        // With what is open, and by a reader that knows nothing but the place: both read the same.
        let (mut from, mut read) = (Place::Oldest, Vec::new());
        loop {
            let answer = first.read(lane, from).await.expect("records");
            let fresh = source(&s3, "s3://example-in/csv/", csv, Some(&begin)).await.0.read(lane, from).await.expect("records");
            assert_eq!((&fresh.batch.data, &fresh.batch.positions, fresh.end), (&answer.batch.data, &answer.batch.positions, answer.end));
            for i in 0..answer.batch.len() {
                let header = String::from_utf8_lossy(&answer.batch.header).into_owned();
                read.push((answer.batch.positions[i], header, String::from_utf8_lossy(answer.batch.record(i)).into_owned()));
                assert!(answer.batch.arrivals[i] > 1_700_000_000_000);
                // Behind each record are the rest.
                let place = Place::After(answer.batch.positions[i]);
                let rest = source(&s3, "s3://example-in/csv/", csv, Some(&begin)).await.0.read(lane, place).await.expect("records");
                if i + 1 < answer.batch.len() {
                    assert_eq!(rest.batch.record(0), answer.batch.record(i + 1));
                }
            }
            if answer.end {
                assert!(answer.batch.is_empty() && answer.children.is_empty());
                break;
            }
            from = Place::After(*answer.batch.positions.last().expect("a record"));
        }
        assert!(read.windows(2).all(|w| w[0].0 < w[1].0));
        all.extend(read.into_iter().map(|(_, header, record)| (header, record)));
    }
    let expected = [
        ("id,note", "1,\"two\nlines\""),
        ("id,note", "2,x"),
        ("id,note", "3,\"\"\"q\"\"\""),
        ("note,id", "y,4"),
        ("note,id", "z,5"),
        ("id,note", "6,last"),
    ];
    assert_eq!(all, expected.map(|(header, record)| (header.to_owned(), record.to_owned())).into());

    let fatal = async |key: &str, contents, ends_with: &str| {
        let (source, _) = source(&s3, &format!("s3://example-in/{key}"), contents, None).await;
        let lane = lineages(&source).await.remove(0);
        let (mut from, mut records) = (Place::Oldest, 0);
        loop {
            match source.read(&lane, from).await {
                Ok(read) => {
                    assert!(!read.end, "{key} has no whole end");
                    records += read.batch.len();
                    from = Place::After(*read.batch.positions.last().expect("a record"));
                }
                Err(PortError::Fatal(why)) => {
                    assert!(why.contains(ends_with), "{why}");
                    assert!(matches!(source.read(&lane, from).await, Err(PortError::Fatal(again)) if again == why), "it stays so");
                    return records;
                }
                Err(unclear) => panic!("{unclear}"),
            }
        }
    };
    // Cut off in the middle: what is whole comes before the end.
    let lines: Vec<u8> = (0..5_000).flat_map(|i| format!("{{\"id\":{i}}}\n").into_bytes()).collect();
    for (key, whole) in [("cut/a.jsonl.gz", gzip(&lines)), ("cut/b.jsonl.zst", zstd(&lines))] {
        put(&s3, key, whole[..whole.len() - 5].to_vec()).await;
        let records = fatal(key, lines_of, "cannot be decompressed").await;
        assert!(records <= 5_000, "{records}");
    }
    put(&s3, "none/a.jsonl.gz", lines.clone()).await;
    assert_eq!(fatal("none/a.jsonl.gz", lines_of, "cannot be decompressed").await, 0);

    assert_eq!(fatal("none/a.jsonl.gz", Contents::Archive, "is no archive of records").await, 0);

    // Another object, or none, where one was listed.
    for (key, what) in [("swap/a.jsonl", "it is another one"), ("gone/a.jsonl", "it was removed")] {
        put(&s3, key, lines.clone()).await;
        let (source, _) = source(&s3, &format!("s3://example-in/{key}"), lines_of, None).await;
        let lane = lineages(&source).await.remove(0);
        if key.starts_with("swap") {
            put(&s3, key, [&lines[..], b"{}\n"].concat()).await;
        } else {
            s3.delete_object().bucket("example-in").key(key).send().await.expect("removed");
        }
        let refused = source.read(&lane, Place::Oldest).await;
        assert!(matches!(&refused, Err(PortError::Fatal(why)) if why.contains(what)), "{refused:?}");
    }
    // Nothing there, a source that does not know its files yet, and one that is another one now.
    let nothing = S3Source::new(BTreeMap::from([("s".to_owned(), Prefix::new(s3.clone(), "s3://example-in/nothing/", csv, 2))]));
    assert!(matches!(nothing.list("s").await, Err(PortError::Fatal(why)) if why.contains("there is no file")));
    assert!(matches!(nothing.shards("s").await, Err(PortError::Unclear(_))));
    nothing.know("s", &begin);
    assert!(matches!(nothing.shards("s").await, Err(PortError::Fatal(why)) if why.contains("needs another name")));
    let (other, _) = source(&s3, "s3://example-in/csv/", lines_of, Some(&begin)).await;
    assert!(matches!(other.shards("s").await, Err(PortError::Fatal(why)) if why.contains("in another format")));
}

/// Records of an archive as DuckDB reads them: key, time of arrival, bytes.
const RECORDS_OF: &str = "
import sys, json, duckdb
rows = duckdb.sql(f\"select partition_key, epoch_ms(arrival), data from read_parquet('{sys.argv[1]}')\").fetchall()
print(json.dumps(sorted([k.decode(), a, d.decode()] for k, a, d in rows)))
";
/// Writes an archive again, with small row groups.
const AGAIN: &str = "
import sys, json, duckdb
duckdb.sql(f\"copy (select * from read_parquet('{sys.argv[1]}')) to '{sys.argv[2]}' (format parquet, row_group_size 2048)\")
print(json.dumps(duckdb.sql(f\"select count(distinct row_group_id) from parquet_metadata('{sys.argv[2]}')\").fetchone()[0]))
";

fn manifest(folder: &Path, spec: &Value) {
    let metadata = json!({"name": "archive", "namespace": "analytics"});
    let manifest = json!({"apiVersion": "leat.dev/v1alpha1", "kind": "StreamingPipeline", "metadata": metadata, "spec": spec});
    std::fs::write(folder.join("pipeline.yaml"), manifest.to_string()).expect("a file");
}

fn dev(folder: &Path, state: &str, flags: &[&str]) {
    let mut command = leat_tests::leat();
    command.args(["dev", "--until-done", "-f"]).arg(folder.join("pipeline.yaml")).arg("--state").arg(folder.join(state));
    let output = command.args(flags).output().expect("leat starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_is_read_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let records: Vec<String> = (0..9_000).map(|id| event(id).to_string()).collect();
    std::fs::write(folder.join("in.jsonl"), records.join("\n")).expect("a file");
    let columns = json!({"id": "BIGINT", "campaign": "TEXT", "ts": "BIGINT", "spend": "BIGINT"});
    let raw = "s3://example-lake/raw/";
    manifest(
        folder,
        &json!({
            "streams": [{"name": "s", "kinesis": {"streamName": "s", "shards": {"initial": 2}}}],
            "sources": [{"name": "events", "stream": "s", "columns": columns, "partitionedBy": ["campaign"]}],
            "sinks": [{"name": "raw", "from": ["events"], "s3": {"location": raw, "format": "Raw", "partitionBy": ["hour"]}}],
        }),
    );
    let input = folder.join("in.jsonl").display().to_string();
    dev(folder, "first", &["--input", &format!("s={input}")]);
    let archive = folder.join("first/analytics/archive/s3/example-lake/raw");
    let all = archive.join("**/*.parquet").display().to_string();
    let said = leat_tests::duckdb(RECORDS_OF, &[&all]).expect("DuckDB reads it");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let expected: Vec<(String, i64, String)> =
        said.as_array().expect("rows").iter().map(|r| (text(&r[0]), r[1].as_i64().expect("a time"), text(&r[2]))).collect();
    assert_eq!(expected.len(), records.len());

    // On the laptop, as the input of another pipeline.
    let files = json!({"path": raw, "format": "Raw"});
    manifest(
        folder,
        &json!({
            "sources": [{"name": "again", "files": files, "format": "Json", "columns": columns}],
            "sinks": [{"name": "out", "from": ["again"], "s3": {"location": "out/", "format": "JsonLines"}}],
        }),
    );
    dev(folder, "second", &["--object", &format!("{raw}={}", archive.display())]);
    let out = folder.join("second/analytics/archive/s3/out/*.jsonl").display().to_string();
    let ids = "import sys, json, duckdb\nprint(json.dumps(sorted(r[0] for r in duckdb.sql(f\"select id from read_json('{sys.argv[1]}')\").fetchall())))";
    assert_eq!(leat_tests::duckdb(ids, &[&out]), Ok(json!((0..9_000).collect::<Vec<_>>())));

    // From S3, as it is and as another tool has written it again.
    let clouds = Clouds::start(folder, Kinesis::Ferrokinesis, "127.0.0.1").await;
    let s3 = clouds.s3().await;
    s3.create_bucket().bucket("example-in").send().await.expect("a bucket");
    let again = folder.join("again.parquet").display().to_string();
    let groups = leat_tests::duckdb(AGAIN, &[&all, &again]).expect("DuckDB writes it");
    assert!(groups.as_u64() > Some(3), "{groups} row groups");
    put(&s3, "again/all.parquet", std::fs::read(&again).expect("a file")).await;
    let mut found = Vec::new();
    let mut folders = vec![archive];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("a file").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path);
            }
        }
    }
    for (n, path) in found.iter().enumerate() {
        put(&s3, &format!("raw/{n}.parquet"), std::fs::read(path).expect("a file")).await;
    }
    for location in ["s3://example-in/raw/", "s3://example-in/again/"] {
        let (first, begin) = source(&s3, location, Contents::Archive, None).await;
        let mut read = Vec::new();
        for lane in lineages(&first).await {
            let (mut from, mut of_lane) = (Place::Oldest, Vec::new());
            loop {
                let answer = first.read(&lane, from).await.expect("records");
                let Some(last) = answer.batch.positions.last() else {
                    assert!(answer.end);
                    break;
                };
                from = Place::After(*last);
                for i in 0..answer.batch.len() {
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    let key = text(answer.batch.key(i).expect("a key"));
                    of_lane.push((answer.batch.positions[i], (key, answer.batch.arrivals[i], text(answer.batch.record(i)))));
                }
            }
            // A reader that knows nothing goes on behind any record: at the ends of row groups, and in them.
            for at in [0, 1, 2_046, 2_047, 2_048, of_lane.len() - 2] {
                let Some((position, _)) = of_lane.get(at) else { continue };
                let fresh = source(&s3, location, Contents::Archive, Some(&begin)).await.0;
                let rest = fresh.read(&lane, Place::After(*position)).await.expect("records").batch;
                assert_eq!((rest.positions[0], rest.record(0)), (of_lane[at + 1].0, of_lane[at + 1].1.2.as_bytes()), "behind {at}");
            }
            read.extend(of_lane.into_iter().map(|(_, record)| record));
        }
        read.sort();
        assert_eq!(read.len(), expected.len(), "{location}");
        assert!(read == expected, "{location}");
    }
}
