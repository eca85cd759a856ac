//! `leat dev` with what users bring and what goes wrong: CSV, several kinds of sinks, bad records, changed manifests.

use std::path::Path;

use leat_tests::{duckdb, leat};
use serde_json::{Value, json};

/// A pipeline over one stream, with these steps and sinks.
fn manifest(source: &str, steps: &Value, sinks: &Value) -> String {
    json!({
        "apiVersion": "leat.dev/v1alpha1", "kind": "StreamingPipeline", "metadata": {"name": "small", "namespace": "tests"},
        "spec": {
            "streams": [{"name": "events", "kinesis": {"streamName": "events", "shards": {"initial": 2}}}],
            "tables": [{"name": "t", "dynamodb": {"tableName": "tab", "partitionKey": {"name": "k", "type": "S"}, "sortKey": {"name": "at", "type": "S"}}}],
            "sources": [{"name": source, "stream": "events", "columns": {"id": "BIGINT", "k": "TEXT", "n": "BIGINT", "ts": "BIGINT"}, "eventTime": {"field": "ts"}}],
            "steps": steps, "sinks": sinks
        }
    })
    .to_string()
}

fn files(name: &str, from: &str) -> Value {
    json!({"name": name, "from": [from], "s3": {"location": format!("s3://out/{name}/"), "format": "JsonLines"}})
}

/// Runs until everything is delivered; answers the report.
fn run(folder: &Path, manifest: &str, events: &[Vec<u8>]) -> Value {
    std::fs::write(folder.join("events.ndjson"), events.join(&b'\n')).expect("events");
    let input = format!("events={}", folder.join("events.ndjson").display());
    dev(folder, manifest, &["--input", &input]).expect("it runs")
}

/// Runs with these flags; answers the report, or what was said.
fn dev(folder: &Path, manifest: &str, flags: &[&str]) -> Result<Value, String> {
    std::fs::write(folder.join("pipeline.yaml"), manifest).expect("a manifest");
    let output = leat()
        .args(["dev", "--until-done", "--output", "json", "-f"])
        .arg(folder.join("pipeline.yaml"))
        .arg("--state")
        .arg(folder.join("state"))
        .args(flags)
        .output()
        .expect("leat starts");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(serde_json::from_slice(&output.stdout).expect("a report"))
}

/// The rows of a sink of JSON Lines.
fn rows(folder: &Path, location: &str) -> Vec<Value> {
    let mut rows = Vec::new();
    let mut open = vec![folder.join("state/tests/small/s3").join(location)];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(&path).expect("a folder").flatten().map(|e| e.path()));
        } else if let Ok(text) = std::fs::read_to_string(&path) {
            rows.extend(text.lines().map(|l| serde_json::from_str::<Value>(l).expect("JSON")));
        }
    }
    rows
}

fn count(report: &Value, step: &str, what: &str) -> u64 {
    let entry = report["ledger"].as_array().expect("a ledger").iter().find(|e| e[0] == step);
    entry.unwrap_or_else(|| panic!("{step} is not in the ledger: {}", report["ledger"]))[1][what].as_u64().unwrap_or_default()
}

fn event(id: u64, ts: u64) -> Vec<u8> {
    json!({"id": id, "k": format!("key-{}", id % 7), "n": id % 5, "ts": ts}).to_string().into_bytes()
}

#[test]
fn bad_records_are_dead_letters_with_their_bytes_and_cost_nobody_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let large = format!(r#"{{"id": 100, "k": "{}", "n": 1, "ts": 1000}}"#, "x".repeat(10 << 20)).into_bytes();
    let bad: Vec<Vec<u8>> = vec![
        b"{\"id\": 1".to_vec(),
        b"not json".to_vec(),
        b"{\"id\": 2, \"k\": \"\xff\"}".to_vec(),
        br#"{"id": 3, "id": 3, "ts": 1000}"#.to_vec(),
        br#"{"id": 99999999999999999999, "ts": 1000}"#.to_vec(),
        br#"{"id": 4, "ts": 253402300800000}"#.to_vec(),
        br#"{"id": 5, "ts": 9223372036854775807}"#.to_vec(),
        br#"{"id": 6}"#.to_vec(),
        b"{\"id\": 7, \"k\": \"\x01\", \"ts\": 1000}".to_vec(),
    ];
    let mut events: Vec<Vec<u8>> = (0..50).map(|i| event(i, 1000 + i)).collect();
    events.push(large);
    events.extend(bad.clone());
    let report = run(folder.path(), &manifest("in", &json!([]), &json!([files("all", "in")])), &events);
    assert_eq!((report["taken"].as_u64(), count(&report, "in", "passed")), (Some(60), 51));
    let dead = rows(folder.path(), "dead-letters");
    let mut found: Vec<Vec<u8>> = dead
        .iter()
        .map(|d| match (d["record"].as_str(), d["record_base64"].as_str()) {
            (Some(text), None) => text.as_bytes().to_vec(),
            (None, Some(text)) => {
                assert_eq!(text, "eyJpZCI6IDIsICJrIjogIv8ifQ==", "only the one that is not UTF-8");
                bad[2].clone()
            }
            other => panic!("{other:?}"),
        })
        .collect();
    let mut expected = bad;
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    assert!(
        rows(folder.path(), "out/all").iter().any(|r| r["k"].as_str().is_some_and(|k| k.len() == 10 << 20)),
        "a large event is an event"
    );
}

#[test]
fn what_is_too_large_for_a_keyed_step_is_a_dead_letter() {
    let folder = tempfile::tempdir().expect("a folder");
    let sized =
        |id: u64, bytes: usize| format!(r#"{{"id": {id}, "k": "{}", "n": {}, "ts": 1000}}"#, "x".repeat(bytes), id % 5).into_bytes();
    let mut events: Vec<Vec<u8>> = (0..50).map(|i| event(i, 1000 + i)).collect();
    // Too large for any keyed step; for a group; and for one message, but not for a group of its own.
    events.extend([sized(100, 2 << 20), sized(101, 300 << 10), sized(102, 200 << 10), sized(103, 100)]);
    let steps = json!([
        {"name": "once", "from": ["in"], "deduplicate": {"by": ["id"], "keyedWith": ["id"], "within": "1h"}},
        {"name": "texts", "from": ["in"], "window": {"tumbling": "1m"}, "groupBy": ["n"],
         "aggregate": {"first": "min(k)", "last": "max(k)", "again": "max(concat(k, ''))", "rows": "count(*)"}},
    ]);
    // The dead letters' file of the keys is as long as they are.
    let all = run(folder.path(), &manifest("in", &steps, &json!([files("once", "once"), files("texts", "texts")])), &events);
    assert_eq!((count(&all, "once", "in"), count(&all, "once (keyed)", "passed")), (54, 53));
    assert_eq!((count(&all, "texts", "absorbed"), count(&all, "texts (windows)", "absorbed")), (51, 51));
    let mut why: Vec<(String, String)> = rows(folder.path(), "dead-letters")
        .iter()
        .map(|d| (d["step"].as_str().unwrap_or_default().to_owned(), d["reason"].as_str().unwrap_or_default().to_owned()))
        .collect();
    why.sort();
    let text = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(why, [text("once", "too-large"), text("texts", "expression"), text("texts", "expression"), text("texts", "expression")]);
    let texts = rows(folder.path(), "out/texts");
    assert_eq!(texts.iter().filter_map(|r| r["rows"].as_u64()).sum::<u64>(), 51);
    assert_eq!(rows(folder.path(), "out/once").len(), 53);
}

#[test]
fn a_rule_behind_a_keyed_step_rejects_what_breaks_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let events: Vec<Vec<u8>> = (0..200).map(|i| event(i, 1000 + i)).collect();
    let steps = json!([
        {"name": "sums", "from": ["in"], "window": {"tumbling": "1m"}, "groupBy": ["k"], "aggregate": {"total": "sum(id)", "rows": "count(*)"}},
        {"name": "large", "from": ["sums"], "validate": {"rules": {"many": "total > 2800", "few": "rows < 1000", "ratio": "1 / (rows - 28) >= 0"}}},
    ]);
    let report = run(folder.path(), &manifest("in", &steps, &json!([files("large", "large")])), &events);
    let sum = |k: u64| (0..200).filter(|i| i % 7 == k).sum::<u64>();
    let rows_of = |k: u64| (0..200).filter(|i| i % 7 == k).count();
    let fine: Vec<u64> = (0..7).filter(|k| sum(*k) > 2800 && rows_of(*k) != 28).map(sum).collect();
    let broken = (0..7).filter(|k| sum(*k) <= 2800).count();
    assert!(!fine.is_empty() && broken > 0 && fine.len() + broken < 7, "{fine:?} {broken}");
    let mut totals: Vec<u64> =
        rows(folder.path(), "out/large").iter().map(|r| r["total"].to_string().trim_matches('"').parse().expect("a number")).collect();
    totals.sort_unstable();
    assert_eq!(totals, fine);
    let reasons: Vec<Value> = rows(folder.path(), "dead-letters").into_iter().map(|d| d["reason"].clone()).collect();
    assert_eq!(reasons.iter().filter(|r| *r == "rule:many").count(), broken, "{reasons:?}");
    assert_eq!(reasons.iter().filter(|r| *r == "rule:ratio").count(), 7 - broken - fine.len(), "{reasons:?}");
    assert_eq!((count(&report, "large", "in"), count(&report, "large", "passed")), (7, fine.len() as u64));
}

#[test]
fn state_that_a_change_loses_is_dropped_as_it_was_said_and_no_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let (visits, sums) = (files("visits", "visits"), files("sums", "sums"));
    let steps = |gap: &str, by: &str| {
        json!([
            {"name": "visits", "from": ["in"], "sessionize": {"by": [by], "gap": gap}},
            {"name": "sums", "from": ["in"], "window": {"tumbling": "1d"}, "groupBy": ["n"], "aggregate": {"rows": "count(*)"}},
        ])
    };
    let of = |gap: &str, by: &str| manifest("in", &steps(gap, by), &json!([visits, sums]));
    std::fs::write(folder.path().join("pipeline.yaml"), of("30m", "k")).expect("a manifest");
    std::fs::write(folder.path().join("events.ndjson"), (0..50).map(|i| event(i, 1000 + i)).collect::<Vec<_>>().join(&b'\n'))
        .expect("events");
    let input = format!("events={}", folder.path().join("events.ndjson").display());
    let mut command = leat();
    command
        .args(["dev", "-f"])
        .arg(folder.path().join("pipeline.yaml"))
        .arg("--state")
        .arg(folder.path().join("state"))
        .args(["--input", &input]);
    let mut child = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().expect("leat starts");
    // Until a keyed task has written down what is open.
    let snapshots = folder.path().join("state/tests/small/objects/snapshots");
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let kept = || {
        let mut open = vec![snapshots.clone()];
        while let Some(path) = open.pop() {
            open.extend(std::fs::read_dir(&path).into_iter().flatten().flatten().map(|e| e.path()));
            if path.is_file() && path.display().to_string().contains("keyed") {
                return true;
            }
        }
        false
    };
    while !kept() {
        assert!(std::time::Instant::now() < patience, "no snapshot of a keyed task");
        std::thread::yield_now();
    }
    child.kill().expect("kill");
    child.wait().expect("a dead child");
    // Another gap and other columns: what was open is dropped, and sums of the day go on.
    for (gap, by) in [("1m", "k"), ("1m", "n")] {
        let said = dev(folder.path(), &of(gap, by), &[]).unwrap_or_else(|said| panic!("{said}"));
        assert_eq!(said["done"], true);
    }
    let total: u64 = rows(folder.path(), "out/sums").iter().filter_map(|r| r["rows"].as_u64()).sum();
    assert_eq!(total, 50, "the day's sums have all rows");
    assert!(rows(folder.path(), "out/visits").is_empty(), "sessions of another gap are gone");
}

#[test]
fn an_expression_that_fails_costs_its_row_only_also_in_a_keyed_step() {
    let folder = tempfile::tempdir().expect("a folder");
    let events: Vec<Vec<u8>> = (0..200).map(|i| event(i, 1000 + i)).collect();
    let steps = json!([
        {"name": "ratio", "from": ["in"], "derive": {"q": "100 / n"}},
        {"name": "sizes", "from": ["in"], "window": {"tumbling": "1s"}, "groupBy": ["n"], "aggregate": {"c": "count(*)", "longest": "max(length(k))"}},
        {"name": "inverse", "from": ["sizes"], "derive": {"i": "1000 / n"}}
    ]);
    let report = run(folder.path(), &manifest("in", &steps, &json!([files("ratio", "ratio"), files("inverse", "inverse")])), &events);
    assert_eq!((count(&report, "ratio", "passed"), report["deadLetters"]["ratio: expression"].as_u64()), (160, Some(40)));
    assert_eq!((count(&report, "inverse", "passed"), report["deadLetters"]["inverse: expression"].as_u64()), (4, Some(1)));
    assert!(rows(folder.path(), "out/inverse").iter().all(|r| r["c"] == 40 && r["longest"] == 5));
    assert_eq!(rows(folder.path(), "dead-letters").len(), 41);
}

#[test]
fn a_changed_manifest_keeps_the_numbers_of_its_edges_and_the_state_of_steps_that_stay() {
    let folder = tempfile::tempdir().expect("a folder");
    let sinks = json!([files("seen", "agg")]);
    let events: Vec<Vec<u8>> = (0..500).map(|i| event(i, 1000 + i)).collect();
    let window = json!([{"name": "agg", "from": ["in"], "window": {"tumbling": "1m"}, "groupBy": ["k"], "aggregate": {"c": "count(*)"}}]);
    let first = run(folder.path(), &manifest("in", &window, &sinks), &events);
    assert_eq!(first["done"], true);
    // The same name, another verb: the step starts empty, and nothing of what follows is taken for a repeat.
    let unique = json!([{"name": "agg", "from": ["in"], "deduplicate": {"by": ["id"], "within": "1d"}}]);
    let more: Vec<Vec<u8>> = (0..1000).map(|i| event(i, 100_000 + i)).collect();
    let second = run(folder.path(), &manifest("in", &unique, &sinks), &more);
    assert_eq!(second["done"], true);
    let after = count(&second, "agg (keyed)", "passed");
    assert_eq!(after, second["taken"].as_u64().expect("a count"), "{second}");
}

#[test]
fn a_renamed_source_reads_its_stream_anew_and_the_old_one_holds_nobody_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let events: Vec<Vec<u8>> = (0..100).map(|i| event(i, 1000 + i)).collect();
    let steps = |source: &str| json!([{"name": "agg", "from": [source], "window": {"tumbling": "1s"}, "groupBy": ["k"], "aggregate": {"c": "count(*)"}}]);
    let sinks = json!([files("seen", "agg")]);
    assert_eq!(run(folder.path(), &manifest("one", &steps("one"), &sinks), &events)["done"], true);
    let report = run(folder.path(), &manifest("two", &steps("two"), &sinks), &events);
    assert_eq!((report["done"].as_bool(), count(&report, "two", "in")), (Some(true), 100));
}

/// Writes a CSV file with everything that needs quotes, and answers with what DuckDB reads from it.
const ORDERS: &str = r#"
import csv, duckdb, json, sys
with open(sys.argv[1], "w", newline="", encoding="utf-8") as out:
    rows = csv.writer(out)
    rows.writerow(["name", "id", "unused", "price", "placed"])
    for i in range(500):
        name = ["plain", "with, comma", 'with "quotes"', "two\nlines", "ümlaut 🦀", ""][i % 6]
        rows.writerow([name, i, "x" * (i % 50), f"{i * 7919 % 100000 / 100:.2f}", f"2026-11-21 10:{i % 60:02}:00"])
query = f"SELECT id, name, (price * 100)::BIGINT, strftime(placed, '%Y-%m-%dT%H:%M:%S') FROM read_csv('{sys.argv[1]}') ORDER BY id"
print(json.dumps(duckdb.sql(query).fetchall()))
"#;

#[test]
fn csv_reads_as_duckdb_reads_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("orders.csv");
    let expected = duckdb(ORDERS, &[&file.display().to_string()]).expect("DuckDB");
    let columns = json!({"id": "BIGINT", "name": "TEXT", "price": "DECIMAL(18,2)", "placed": "TIMESTAMP"});
    let manifest = json!({
        "apiVersion": "leat.dev/v1alpha1", "kind": "StreamingPipeline", "metadata": {"name": "small", "namespace": "tests"},
        "spec": {
            "streams": [{"name": "orders", "kinesis": {"streamName": "orders", "shards": {"initial": 2}}}],
            "sources": [
                {"name": "from_file", "files": {"path": "orders.csv", "format": "Csv"}, "columns": columns},
                {"name": "from_stream", "stream": "orders", "format": "Csv", "csv": {"header": ["price", "name", "id", "placed"], "delimiter": ";"}, "columns": columns}
            ],
            "sinks": [files("file", "from_file"), files("stream", "from_stream")]
        }
    });
    let input = format!("orders={}", file.display());
    let report = dev(folder.path(), &manifest.to_string(), &["--input", &input]).expect("it runs");
    assert_eq!((count(&report, "from_file", "passed"), count(&report, "from_stream", "passed")), (500, 500), "{report}");
    for sink in ["out/file", "out/stream"] {
        let mut found = rows(folder.path(), sink);
        found.sort_by_key(|r| r["id"].as_u64());
        let cents = |row: &Value| row["price"].as_f64().map(|p| (p * 100.0).round() as i64);
        let found = found.iter().map(|r| json!([r["id"], r["name"], cents(r), r["placed"]]));
        let expected = expected.as_array().expect("rows");
        assert_eq!(found.len(), expected.len(), "{sink}");
        for (found, expected) in found.zip(expected) {
            assert_eq!(&found, expected, "{sink}");
        }
    }
}

#[test]
fn what_a_sink_writes_into_a_stream_another_pipeline_reads() {
    let folder = tempfile::tempdir().expect("a folder");
    let manifest = |name: &str, stream: &str, sinks: &Value| {
        let columns = json!({"leat_id": "TEXT", "id": "BIGINT", "k": "TEXT", "n": "BIGINT", "ts": "BIGINT"});
        let declared: Vec<Value> = std::collections::BTreeSet::from([stream, "forwarded"])
            .into_iter()
            .map(|name| json!({"name": name, "kinesis": {"streamName": name, "shards": {"initial": 2}}}))
            .collect();
        json!({
            "apiVersion": "leat.dev/v1alpha1", "kind": "StreamingPipeline", "metadata": {"name": name, "namespace": "tests"},
            "spec": {
                "streams": declared,
                "sources": [{"name": "in", "stream": stream, "columns": columns, "eventTime": {"field": "ts"}, "partitionedBy": if stream == "forwarded" { json!(["k"]) } else { json!([]) }}],
                "steps": [
                    {"name": "unique", "from": ["in"], "deduplicate": {"by": ["leat_id"], "keyedWith": ["k"], "within": "1h"}},
                    {"name": "plain", "from": ["in"], "select": {"id": "id", "k": "nullif(k, 'key-3')", "ts": "ts"}}
                ],
                "sinks": sinks
            }
        })
        .to_string()
    };
    let events: Vec<Vec<u8>> = (0..300).map(|i| event(i, 1000 + i)).collect();
    let forward = json!([{"name": "forward", "from": ["plain"], "stream": {"name": "forwarded", "partitionBy": "k"}}]);
    let first = run(folder.path(), &manifest("small", "events", &forward), &events);
    assert_eq!(count(&first, "forward (sink)", "absorbed"), 257);
    assert_eq!(first["deadLetters"]["forward (sink): expression"], 43, "without a partition key there is no record: {first}");
    let written = folder.path().join("state/tests/small/written/forwarded.jsonl");
    assert_eq!(first["outputs"][1]["path"], written.display().to_string(), "{first}");
    // Records come twice, as a stream that is written at least once may have them.
    let text = std::fs::read_to_string(&written).expect("records");
    std::fs::write(&written, [text.as_str(), text.as_str()].concat()).expect("written");
    let input = format!("forwarded={}", written.display());
    let second =
        dev(folder.path(), &manifest("other", "forwarded", &json!([files("all", "unique")])), &["--input", &input]).expect("it runs");
    assert_eq!((count(&second, "unique", "passed"), count(&second, "unique", "deduplicated")), (257, 257), "{second}");
}

#[test]
fn of_the_events_of_one_item_a_table_keeps_the_newest() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut events: Vec<Vec<u8>> = (0..350).map(|i| event(i, 1_000_000 - 1000 * i)).collect();
    events.push(br#"{"id": 1000, "n": 1, "ts": 1000}"#.to_vec());
    let sinks =
        json!([{"name": "newest", "from": ["in"], "dynamodb": {"table": "t", "columns": {"at": "concat('n', cast(n as varchar))"}}}]);
    let report = run(folder.path(), &manifest("in", &json!([]), &sinks), &events);
    let table = &report["tables"][0];
    // The oldest ids are the newest events; 7 keys with 5 values of n.
    assert_eq!(table["items"], 35, "{report}");
    let place = |name: &str| table["columns"].as_array().expect("columns").iter().position(|c| c == name).expect(name);
    for row in table["rows"].as_array().expect("rows") {
        assert!(row[place("id")].as_str().and_then(|id| id.parse::<u64>().ok()).is_some_and(|id| id < 35), "{row}");
    }
    assert_eq!(report["deadLetters"]["newest (sink): expression"], 1, "a key is not NULL: {report}");
}

#[test]
fn what_is_elsewhere_is_listed_with_the_flag_that_supplies_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let manifest = json!({
        "apiVersion": "leat.dev/v1alpha1", "kind": "StreamingPipeline", "metadata": {"name": "small", "namespace": "tests"},
        "spec": {
            "tables": [{"name": "t", "management": "ObserveOnly", "dynamodb": {"tableName": "tab", "partitionKey": {"name": "k", "type": "S"}}}],
            "sources": [
                {"name": "old", "files": {"path": "s3://lake/old/"}, "columns": {"id": "BIGINT", "k": "TEXT", "ts": "BIGINT"}, "eventTime": {"field": "ts"}},
                {"name": "new", "files": {"path": "s3://lake/new/"}, "columns": {"id": "BIGINT", "k": "TEXT", "ts": "BIGINT"}, "eventTime": {"field": "ts"}}
            ],
            "sinks": [{"name": "newest", "from": ["old", "new"], "dynamodb": {"table": "t"}}]
        }
    })
    .to_string();
    let said = dev(folder.path(), &manifest, &["--table", "tt=rows.csv", "--secret", "a/b=hidden"]).expect_err("much is missing");
    for part in [
        "s3://lake/old/ is not on this machine: add --object s3://lake/old/=FILE",
        "s3://lake/new/ is not on this machine: add --object s3://lake/new/=FILE",
        "--table tt: the manifest declares no such table; did you mean `t`?",
        "--secret a/b: nothing in the manifest refers to it",
    ] {
        assert!(said.contains(part), "nobody says {part:?}: {said}");
    }
    assert!(!said.contains("hidden"));
    for name in ["old", "new"] {
        std::fs::create_dir(folder.path().join(name)).expect("a folder");
        let events: Vec<Vec<u8>> = (0..3).map(|i| event(i, if name == "new" { 2_000 } else { 1_000 } + i)).collect();
        std::fs::write(folder.path().join(name).join("1.ndjson"), events.join(&b'\n')).expect("events");
    }
    std::fs::write(folder.path().join("rows.csv"), "k,id\nkey-1,100\nkey-9,900\n").expect("rows");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (old, new, table) =
        (format!("s3://lake/old/={}", at("old")), format!("s3://lake/new/={}", at("new")), format!("t={}", at("rows.csv")));
    let report = dev(folder.path(), &manifest, &["--object", &old, "--object", &new, "--table", &table]).expect("it runs");
    let rows: Vec<&Value> = report["tables"][0]["rows"].as_array().expect("rows").iter().collect();
    let id_of = |key: &str| rows.iter().find(|r| r[0] == key).map(|r| r[1].as_str().unwrap_or_default().to_owned());
    assert_eq!((id_of("key-1").as_deref(), id_of("key-9").as_deref()), (Some("1"), Some("900")), "{report}");
    let newest =
        report["tables"][0]["rows"].as_array().expect("rows").iter().filter(|r| r[0] != "key-9").all(|r| r[2].as_str() > Some("1999"));
    assert!(newest, "{report}");
}

#[test]
fn results_of_windows_go_into_folders_by_their_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let events: Vec<Vec<u8>> = (0..72).map(|i| event(i, 3_600_000 * i)).collect();
    let steps = json!([
        {"name": "hours", "from": ["in"], "window": {"tumbling": "2h"}, "groupBy": ["k"], "aggregate": {"c": "count(*)"}},
        {"name": "again", "from": ["in"], "deduplicate": {"by": ["id"], "within": "7d"}}
    ]);
    let in_days = |name: &str, from: &str| json!({"name": name, "from": [from], "s3": {"location": format!("s3://out/{name}/"), "format": "JsonLines", "partitionBy": ["day"]}});
    let report = run(folder.path(), &manifest("in", &steps, &json!([in_days("hours", "hours"), in_days("ids", "again")])), &events);
    assert_eq!(report["done"], true);
    let mut total = 0;
    for (day, name) in ["day=1970-01-01", "day=1970-01-02", "day=1970-01-03"].into_iter().enumerate() {
        let hours = rows(folder.path(), &format!("out/hours/{name}"));
        assert!(hours.iter().all(|r| r["window_start"].as_str().is_some_and(|s| s.starts_with(&name[4..]))), "{name}: {hours:?}");
        total += hours.iter().filter_map(|r| r["c"].as_u64()).sum::<u64>();
        let ids: Vec<u64> = rows(folder.path(), &format!("out/ids/{name}")).iter().filter_map(|r| r["id"].as_u64()).collect();
        assert!(ids.len() == 24 && ids.iter().all(|id| id / 24 == day as u64), "{name}: {ids:?}");
    }
    assert_eq!(total, 72);
}

#[test]
fn a_changed_schema_is_the_next_version_in_the_registry() {
    let folder = tempfile::tempdir().expect("a folder");
    let manifest = |properties: Value| {
        json!({
            "apiVersion": "leat.dev/v1alpha1", "kind": "StreamingPipeline", "metadata": {"name": "small", "namespace": "tests"},
            "spec": {
                "streams": [{"name": "events", "kinesis": {"streamName": "events", "shards": {"initial": 1}}}],
                "schemas": [{"name": "event", "registry": "shop", "format": "JSON", "definition": json!({"type": "object", "properties": properties}).to_string()}],
                "sources": [{"name": "in", "stream": "events", "schema": "event"}],
                "sinks": [files("all", "in")]
            }
        })
        .to_string()
    };
    let first = json!({"id": {"type": "integer"}});
    let second = json!({"id": {"type": "integer"}, "k": {"type": "string"}});
    for properties in [&first, &first, &second] {
        dev(folder.path(), &manifest(properties.clone()), &[]).expect("it runs");
    }
    let versions = folder.path().join("state/tests/small/registry/shop/event");
    let mut names: Vec<String> =
        std::fs::read_dir(&versions).expect("versions").flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    assert_eq!(names, ["v1.json", "v2.json"]);
    let newest: Value = serde_json::from_slice(&std::fs::read(versions.join("v2.json")).expect("a version")).expect("JSON");
    assert_eq!(newest["properties"], second);
}

#[test]
fn done_means_that_nothing_is_held_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let manifest = json!({
        "apiVersion": "leat.dev/v1alpha1", "kind": "StreamingPipeline", "metadata": {"name": "small", "namespace": "tests"},
        "spec": {
            "streams": [
                {"name": "events", "kinesis": {"streamName": "events", "shards": {"initial": 1}}},
                {"name": "out", "kinesis": {"streamName": "out", "shards": {"initial": 1}}}
            ],
            "tables": [{"name": "t", "dynamodb": {"tableName": "tab", "partitionKey": {"name": "id", "type": "N"}}}],
            "sources": [{"name": "in", "stream": "events", "columns": {"id": "BIGINT", "ts": "BIGINT"}, "eventTime": {"field": "ts"}}],
            "steps": [{"name": "unique", "from": ["in"], "deduplicate": {"by": ["id"], "within": "30d"}}],
            "sinks": [
                {"name": "forward", "from": ["in"], "stream": {"name": "out"}}, files("all", "in"), files("distinct", "unique"),
                {"name": "newest", "from": ["in"], "dynamodb": {"table": "t"}}
            ]
        }
    })
    .to_string();
    let record = |id: u64, ts: u64| json!({"id": id, "ts": ts}).to_string().into_bytes();
    let check = |report: &Value, wanted: u64| {
        assert_eq!(report["done"], true);
        let text = std::fs::read_to_string(folder.path().join("state/tests/small/written/out.jsonl")).expect("records");
        let ids: std::collections::BTreeSet<&str> = text.lines().collect();
        assert_eq!(ids.len() as u64, wanted, "each row has one id, and all are there");
        assert_eq!((rows(folder.path(), "out/all").len() as u64, rows(folder.path(), "out/distinct").len() as u64), (wanted, wanted));
        assert_eq!(report["tables"][0]["items"], wanted);
    };
    // More than a sink takes at once.
    let events: Vec<Vec<u8>> = (0..60_000).map(|id| record(id, 2_000_000)).collect();
    check(&run(folder.path(), &manifest, &events), 60_000);
    // What comes later and is older raises no watermark, and is not held back for that.
    let older: Vec<Vec<u8>> = (60_000..65_000).map(|id| record(id, 1_000_000)).collect();
    check(&run(folder.path(), &manifest, &older), 65_000);
}

#[test]
fn fresh_takes_nothing_away_before_everything_is_checked() {
    let folder = tempfile::tempdir().expect("a folder");
    let manifest = manifest("in", &json!([]), &json!([files("all", "in")]));
    run(folder.path(), &manifest, &[event(1, 1000)]);
    let said = dev(folder.path(), &manifest, &["--fresh", "--input", "evnts=x"]).expect_err("there is no such stream");
    assert!(said.contains("did you mean `events`?"), "{said}");
    let said = dev(folder.path(), &manifest, &["--fresh", "--input", "events=missing.ndjson"]).expect_err("there is no such file");
    assert!(said.contains("cannot read missing.ndjson"), "{said}");
    assert_eq!(rows(folder.path(), "out/all").len(), 1, "the state is still there");
    for (member, name) in [("name", "../../victim"), ("namespace", "a/b")] {
        let mut wrong: Value = serde_json::from_str(&manifest).expect("JSON");
        wrong["metadata"][member] = json!(name);
        let said = dev(folder.path(), &wrong.to_string(), &["--fresh"]).expect_err("this is no name");
        assert!(said.contains(&format!("metadata.{member}: this is no {member} of Kubernetes")), "{said}");
    }
}

#[test]
fn a_file_that_does_not_fit_the_source_is_refused_before_it_is_fed() {
    let folder = tempfile::tempdir().expect("a folder");
    let columns = json!({"id": "BIGINT", "name": "TEXT"});
    let manifest = json!({
        "apiVersion": "leat.dev/v1alpha1", "kind": "StreamingPipeline", "metadata": {"name": "small", "namespace": "tests"},
        "spec": {
            "streams": [{"name": "s", "kinesis": {"streamName": "s", "shards": {"initial": 1}}}],
            "sources": [{"name": "in", "stream": "s", "format": "Csv", "csv": {"header": ["id", "name"], "delimiter": ";"}, "columns": columns}],
            "sinks": [files("all", "in")]
        }
    })
    .to_string();
    let input = format!("s={}", folder.path().join("in.csv").display());
    let feed = |text: &str| {
        std::fs::write(folder.path().join("in.csv"), text).expect("a file");
        dev(folder.path(), &manifest, &["--fresh", "--input", &input])
    };
    let said = feed("id,nmae\n1,a\n").expect_err("a name is wrong");
    assert!(said.contains("it does not name `name`, which the source reads; did you mean `nmae`?"), "{said}");
    // The source's own delimiter, a quote within a field, and lines that have other fields than the first.
    let report = feed("id;name\n1;5\" disk\n2;b;c\n3\n4;\"d\"\n").expect("it runs");
    assert_eq!((count(&report, "in", "passed"), report["deadLetters"]["in: malformed"].as_u64()), (2, Some(2)), "{report}");
    let report = feed("name,id\na,1\n1;2\nb,2\n").expect("it runs");
    assert_eq!((count(&report, "in", "passed"), report["deadLetters"]["in: malformed"].as_u64()), (2, Some(1)), "{report}");
    // Another file at the same place is another input.
    std::fs::write(folder.path().join("in.csv"), "id;name\n7;x\n8;y\n").expect("a file");
    let report = dev(folder.path(), &manifest, &["--input", &input]).expect("it runs");
    assert_eq!(report["taken"], 2, "{report}");
}

#[test]
fn an_attribute_may_be_called_as_the_time_that_travels_with_events() {
    let folder = tempfile::tempdir().expect("a folder");
    let sinks = json!([{"name": "newest", "from": ["in"], "dynamodb": {"table": "t", "columns": {"at": "k", "leat_event_time": "id"}}}]);
    let events: Vec<Vec<u8>> = (0..70).map(|i| event(i, 1_000_000 - 1000 * i)).collect();
    let report = run(folder.path(), &manifest("in", &json!([]), &sinks), &events);
    let table = &report["tables"][0];
    let place = |name: &str| table["columns"].as_array().expect("columns").iter().position(|c| c == name).expect(name);
    assert_eq!(table["items"], 7, "{report}");
    for row in table["rows"].as_array().expect("rows") {
        assert!(row[place("leat_event_time")].as_str().and_then(|id| id.parse::<u64>().ok()).is_some_and(|id| id < 7), "{row}");
    }
}

#[test]
fn a_job_with_fewer_partitions_comes_to_its_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let steps = json!([{"name": "sums", "from": ["in"], "window": {"tumbling": "1s"}, "groupBy": ["k"], "aggregate": {"c": "count(*)"}}]);
    let of = |shards: u32| {
        let mut all: Value = serde_json::from_str(&manifest("in", &steps, &json!([files("sums", "sums")]))).expect("JSON");
        all["spec"]["streams"][0]["kinesis"]["shards"]["initial"] = json!(shards);
        all.to_string()
    };
    // One partition for each eight shards.
    let events = |from: u64| (from..from + 100).map(|i| event(i, 1000 * i)).collect::<Vec<_>>();
    assert_eq!(run(folder.path(), &of(40), &events(0))["done"], true);
    assert_eq!(run(folder.path(), &of(8), &events(1000))["done"], true);
    let counted: u64 = rows(folder.path(), "out/sums").iter().filter_map(|r| r["c"].as_u64()).sum();
    assert_eq!(counted, 200);
}
