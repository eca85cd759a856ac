//! `leat dev` on a disk that is full: it says so, waits, goes on when there is room, and nothing is lost or there twice. The disk is
//! a small file system of its own, which only the process sees (and whoever looks through `/proc`).

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use leat_tests::process::{Program, until};
use leat_tests::{duckdb, leat};

const EVENTS: usize = 120_000;
/// Megabytes of the disk: what a run leaves takes half of it.
const DISK: u64 = 64;
const PATIENCE: Duration = Duration::from_secs(60);

const MANIFEST: &str = "apiVersion: leat.dev/v1alpha1
kind: StreamingPipeline
metadata: {name: full, namespace: test}
spec:
  storage: {location: \"s3://example-leat/full/\"}
  streams:
    - {name: s, kinesis: {streamName: s, shards: {initial: 2}}}
    - {name: plain, kinesis: {streamName: plain}}
    - {name: topic, management: ObserveOnly, kafka: {topic: topic, cluster: {bootstrapServers: [\"b-1.example.org:9092\"]}}}
  tables:
    - {name: items, dynamodb: {tableName: items, partitionKey: {name: id, type: S}}}
  sources:
    - {name: events, stream: s, columns: {id: TEXT, part: BIGINT, ts: TIMESTAMP}, eventTime: {field: ts, maxOutOfOrderness: 1h}}
  steps:
    - {name: once, from: [events], deduplicate: {by: [id], within: 1h}}
    - {name: few, from: [events], filter: \"part = 0\"}
  sinks:
    - {name: files, from: [once], s3: {location: \"s3://example-lake/files/\", format: Parquet, roll: {interval: 1s}}}
    - {name: records, from: [once], stream: {name: plain}}
    - {name: lines, from: [events], stream: {name: topic}}
    - {name: items, from: [few], dynamodb: {table: items}}
";

/// Ids that do not compress.
fn id(n: usize) -> String {
    format!("{:016x}{n:08x}", (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// The ids in a file of lines.
fn ids(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let id = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?["id"].as_str().map(str::to_owned);
    text.lines().filter_map(id).collect()
}

#[tokio::test]
async fn a_full_disk_is_waited_for() {
    // Different writes are those that do not fit.
    for free in [4, 9, 15] {
        a_disk_with_room_for(free).await;
    }
}

/// Megabytes that are free at first; the rest comes when it has said that the disk is full.
async fn a_disk_with_room_for(free: u64) {
    let folder = tempfile::tempdir().expect("a folder");
    let (manifest, events, disk) = (folder.path().join("full.yaml"), folder.path().join("events.jsonl"), folder.path().join("disk"));
    std::fs::write(&manifest, MANIFEST).expect("a manifest");
    std::fs::create_dir(&disk).expect("a folder");
    let lines = (0..EVENTS).fold(String::new(), |mut lines, n| {
        writeln!(lines, "{{\"id\":\"{}\",\"part\":{},\"ts\":\"{}\"}}", id(n), n % 100, leat::format_millis(1_793_491_200_000 + n as i64))
            .expect("text");
        lines
    });
    std::fs::write(&events, lines).expect("events");

    let mount = format!("mount -t tmpfs -o size={DISK}m none \"$0\"; head -c {}M /dev/zero > \"$0/filler\"; exec \"$@\"", DISK - free);
    let program = leat();
    let mut command = Command::new("unshare");
    command.current_dir(program.get_current_dir().unwrap_or(Path::new(".")));
    command.args(["--user", "--map-root-user", "--mount", "sh", "-ec", &mount]).arg(&disk).arg(program.get_program());
    command.args(["dev", "-f"]).arg(&manifest).arg("--state").arg(disk.join("state"));
    command.args(["--listen", "127.0.0.1:0"]).arg("--input").arg(format!("s={}", events.display()));
    let mut program = Program::start("leat", folder.path(), &mut command);
    until("word that the disk is full", PATIENCE, async || {
        assert!(program.runs(), "{}", program.output());
        if program.output().contains("  waits: the disk is full: ") { Ok(()) } else { Err(program.output()) }
    })
    .await;
    std::fs::remove_file(program.sees(&disk).join("filler")).expect("room");
    until("word that it goes on", PATIENCE, async || if program.output().contains("  goes on") { Ok(()) } else { Err(program.output()) })
        .await;
    assert!(program.output().contains("No space left on device"), "{}", program.output());

    // All of it comes, once: lines of the topic and records of the stream, items, and rows of files.
    let state = program.sees(&disk).join("state/test/full");
    let all: BTreeSet<String> = (0..EVENTS).map(id).collect();
    for file in ["written/topic.jsonl", "written/plain.jsonl"] {
        let found = until("all lines", PATIENCE, async || {
            let found = ids(&state.join(file));
            if found.len() >= EVENTS { Ok(found) } else { Err(format!("{} of {file}: {}", found.len(), program.output())) }
        })
        .await;
        assert!(found.len() == EVENTS && found.into_iter().collect::<BTreeSet<_>>() == all, "{file}");
    }
    let lake = state.join("s3/example-lake/files");
    let query = "import duckdb, json, sys\n\
        print(json.dumps(duckdb.sql(f\"SELECT count(*), count(DISTINCT id) FROM read_parquet('{sys.argv[1]}/**/*.parquet')\").fetchone()))";
    until("all rows of files", PATIENCE, async || {
        let found = duckdb(query, &[&lake.display().to_string()])?;
        if found == serde_json::json!([EVENTS, EVENTS]) { Ok(()) } else { Err(found.to_string()) }
    })
    .await;
    program.signal("INT");
    assert!(program.ended(PATIENCE).await, "{}", program.output());
}
