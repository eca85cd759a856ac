//! `leat dev` with what goes wrong: bad records, failing expressions, changed manifests.

use std::path::Path;

use leat_tests::leat;
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
    std::fs::write(folder.join("pipeline.yaml"), manifest).expect("a manifest");
    std::fs::write(folder.join("events.ndjson"), events.join(&b'\n')).expect("events");
    let input = format!("events={}", folder.join("events.ndjson").display());
    let output = leat()
        .args(["dev", "--until-done", "--output", "json", "--input", &input, "-f"])
        .arg(folder.join("pipeline.yaml"))
        .arg("--state")
        .arg(folder.join("state"))
        .output()
        .expect("leat starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("a report")
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
