//! `leat dead-letters`: what was refused is shown, and sent again once what was wrong is mended, on a laptop and in AWS.

use std::path::Path;
use std::process::Command;

use aws_sdk_kinesis::types::ShardIteratorType;
use leat_tests::clouds::{Clouds, Kinesis};
use leat_tests::leat;
use leat_tests::process::until;
use serde_json::{Value, json};

fn manifest(columns: &Value) -> String {
    json!({
        "apiVersion": "leat.dev/v1alpha1", "kind": "StreamingPipeline", "metadata": {"name": "letters", "namespace": "tests"},
        "spec": {
            "streams": [{"name": "events", "kinesis": {"streamName": "events", "shards": {"initial": 2}}}],
            "sources": [{"name": "orders", "stream": "events", "columns": columns}],
            "sinks": [{"name": "out", "from": ["orders"], "s3": {"location": "s3://lake/out/", "format": "JsonLines"}}],
            "deadLetter": {"s3": {"location": "s3://lake/dead/"}}
        }
    })
    .to_string()
}

fn said(command: &mut Command) -> Result<String, String> {
    let output = command.output().expect("leat starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// `leat dead-letters` with a manifest in this folder.
fn letters(folder: &Path, what: &str) -> Command {
    let mut command = leat();
    let mut words = what.split(' ');
    command.arg("dead-letters").args(words.next()).arg("-f").arg(folder.join("pipeline.yaml")).args(words);
    command
}

#[test]
fn on_a_laptop_letters_are_shown_and_sent_again_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let state = folder.join("state");
    let write = |columns: Value| std::fs::write(folder.join("pipeline.yaml"), manifest(&columns)).expect("a manifest");
    let dev = |flags: &[&str]| {
        let mut command = leat();
        command.args(["dev", "--until-done", "--output", "json", "-f"]).arg(folder.join("pipeline.yaml")).arg("--state").arg(&state);
        serde_json::from_str::<Value>(&said(command.args(flags)).expect("it runs")).expect("a report")
    };
    let of_state = |what: &str| said(letters(folder, what).arg("--state").arg(&state));
    write(json!({"id": "TEXT", "total": "BIGINT"}));
    assert!(of_state("list").expect_err("nothing is there").contains("has left nothing in"));

    let lines: Vec<String> = (0..200)
        .map(|i| match i % 10 {
            0 => format!("{{\"id\":\"a{i}\",\"total\":{i}.5}}"),
            1 => format!("no JSON {i}"),
            _ => format!("{{\"id\":\"a{i}\",\"total\":{i}}}"),
        })
        .collect();
    std::fs::write(folder.join("events.ndjson"), lines.join("\n")).expect("events");
    let passed = |report: &Value| report["ledger"][0][1]["passed"].clone();
    assert_eq!(passed(&dev(&["--input", &format!("events={}", folder.join("events.ndjson").display())])), 160);

    let list = || serde_json::from_str::<Vec<Value>>(&of_state("list --output json").expect("a list")).expect("JSON");
    let groups = list();
    let of = |reason: &str| groups.iter().find(|g| g["reason"] == reason).cloned().unwrap_or_default();
    let reasons: Vec<&Value> = groups.iter().map(|g| &g["reason"]).collect();
    assert_eq!(groups.len(), 2, "{reasons:?}");
    let (wrong, reason) =
        (groups.iter().find(|g| g["example"].as_str().is_some_and(|e| e.contains("total"))).expect("the column is named"), "reason");
    let reason = wrong[reason].as_str().expect("a reason").to_owned();
    assert_eq!((&of(&reason)["letters"], &of(&reason)["replayed"], &of(&reason)["step"]), (&json!(20), &json!(0), &json!("orders")));
    let text = of_state("list").expect("a table");
    assert!(text.contains("refused by") && text.contains(&reason), "{text}");
    let shown = of_state(&format!("show --reason {reason} --limit 3")).expect("letters");
    assert_eq!(shown.lines().count(), 3);
    assert!(shown.lines().all(|l| serde_json::from_str::<Value>(l).expect("JSON")["record"].as_str().is_some_and(|r| r.contains(".5}"))));
    let unknown = of_state("list --step order").expect_err("there is no such step");
    assert!(unknown.contains("no dead letter is meant") && unknown.contains("--step \"orders\" --reason malformed"), "{unknown}");

    // What was wrong is mended: totals may have fractions.
    write(json!({"id": "TEXT", "total": "DECIMAL(18,2)"}));
    let sent = of_state(&format!("replay --reason {reason}")).expect("they are sent");
    assert!(sent.contains("20 records were sent again"), "{sent}");
    assert_eq!(passed(&dev(&[])), 180);
    let twice = of_state(&format!("replay --reason {reason}")).expect("nothing is sent");
    assert!(twice.contains("0 records were sent again") && twice.contains("20 records were sent before"), "{twice}");
    assert_eq!(list().iter().find(|g| g["reason"] == reason.as_str()).map(|g| &g["replayed"]), Some(&json!(20)));
    assert_eq!(passed(&dev(&[])), 180);
    assert!(of_state(&format!("replay --again --reason {reason}")).expect("again").contains("20 records were sent again"));
    assert_eq!(passed(&dev(&[])), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_aws_records_go_back_to_their_stream_under_their_keys() {
    let folder = tempfile::tempdir().expect("a folder");
    let clouds = Clouds::start(folder.path(), Kinesis::Ferrokinesis, "127.0.0.1").await;
    std::fs::write(folder.path().join("pipeline.yaml"), manifest(&json!({"id": "TEXT"}))).expect("a manifest");
    let (s3, kinesis) = (clouds.s3().await, clouds.kinesis().await);
    s3.create_bucket().bucket("lake").send().await.expect("a bucket");
    kinesis.create_stream().stream_name("events").shard_count(1).send().await.expect("a stream");
    until("the stream", std::time::Duration::from_secs(30), async || {
        let summary = kinesis.describe_stream_summary().stream_name("events").send().await.map_err(|e| format!("{e:?}"))?;
        let status = summary.stream_description_summary().map(|s| s.stream_status().as_str().to_owned());
        if status.as_deref() == Some("ACTIVE") { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
    // More letters than a call takes, a text and one that is none, over two files; a result of a keyed step has no record.
    let letter = |i: usize| {
        let mut letter = json!({"step": "orders", "reason": "not-json", "lineage": "orders/1/shardId-000000000000", "position": i.to_string(),
            "partition_key": format!("key-{i}"), "arrival": "2026-11-22T00:00:00Z"});
        match i {
            7 => letter["record_base64"] = json!("/wA="),
            // Another step has refused the record before it too: it is sent once.
            11 => {
                letter["step"] = json!("valid");
                letter["position"] = json!("10");
                letter["record"] = json!("record 10");
            }
            9 => letter["lineage"] = json!("keyed/00001"),
            8 => drop(letter.as_object_mut().map(|l| l.insert("detail".to_owned(), json!("no record")))),
            _ => letter["record"] = json!(format!("record {i}")),
        }
        format!("{letter}\n")
    };
    for (file, range) in [
        ("hour=2026-11-22T00/tests-letters-1a2b-source-orders-a.jsonl", 0..700),
        ("hour=2026-11-22T01/tests-letters-1a2b-source-orders-b.jsonl", 700..720),
    ] {
        let body: String = range.map(letter).collect();
        s3.put_object().bucket("lake").key(format!("dead/{file}")).body(body.into_bytes().into()).send().await.expect("an object");
    }
    // Another pipeline shares the location.
    for other in ["tests-another-1a2b-source-orders-a.jsonl", "tests-letters-ab12-1a2b-source-orders-a.jsonl"] {
        let body = letter(1).into_bytes().into();
        s3.put_object().bucket("lake").key(format!("dead/{other}")).body(body).send().await.expect("an object");
    }
    let run = |what: &str| {
        let mut command = letters(folder.path(), what);
        let command = clouds.environment(&mut command);
        tokio::task::block_in_place(|| said(command))
    };
    assert!(run("list").expect("a list").contains("719"));
    let done = run("replay").expect("sent");
    assert!(done.contains("717 records were sent again") && done.contains("1 record was not sent: there is no record in it"), "{done}");
    assert!(run("replay").expect("nothing").contains("720 records were sent before"));

    let iterator = kinesis
        .get_shard_iterator()
        .stream_name("events")
        .shard_id("shardId-000000000000")
        .shard_iterator_type(ShardIteratorType::TrimHorizon);
    let mut iterator = iterator.send().await.expect("an iterator").shard_iterator;
    let mut records = Vec::new();
    while records.len() < 717 {
        let answer = kinesis.get_records().set_shard_iterator(iterator).send().await.expect("records");
        records.extend(answer.records.into_iter().map(|r| (r.partition_key.unwrap_or_default(), r.data.into_inner())));
        iterator = answer.next_shard_iterator;
    }
    let expected: Vec<(String, Vec<u8>)> = (0..720)
        .filter(|i| ![8, 9, 11].contains(i))
        .map(|i| (format!("key-{i}"), if i == 7 { vec![0xff, 0] } else { format!("record {i}").into_bytes() }))
        .collect();
    assert_eq!(records, expected);
}
