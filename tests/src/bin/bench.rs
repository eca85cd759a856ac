//! Measures whole runs of `leat dev`: events a second, CPU seconds, peak memory. Prints one table.
//!
//! `cargo run -p leat-tests --bin bench [--events N]`; it needs `cargo build` first.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

/// Runs of each row; the median is shown.
const RUNS: usize = 5;

/// Decode, filter, and a window of one minute per campaign: the smallest whole pipeline.
const WINDOW: &str = r#"apiVersion: leat.dev/v1alpha1
kind: StreamingPipeline
metadata: {name: window, namespace: bench}
spec:
  sources:
    - name: clicks
      files: {path: events.ndjson}
      columns: {event_id: TEXT, campaign_id: TEXT, ts: TIMESTAMP, type: TEXT, spend: "DECIMAL(18,4)"}
      eventTime: {field: ts, maxOutOfOrderness: 10s}
  steps:
    - {name: paid, from: [clicks], filter: "campaign_id IS NOT NULL"}
    - {name: per_minute, from: [paid], window: {tumbling: 1m}, groupBy: [campaign_id], aggregate: {clicks: "count(*)", spend: "sum(spend)"}}
  sinks:
    - {name: out, from: [per_minute], s3: {location: "s3://bench/out/", format: Parquet}}
"#;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let events: u64 = arguments
        .iter()
        .position(|a| a == "--events")
        .and_then(|i| arguments.get(i + 1))
        .map_or(1_000_000, |n| n.parse().expect("a number"));
    let folder = tempfile::tempdir().expect("a folder");
    let bytes = write_events(&folder.path().join("events.ndjson"), events);
    std::fs::write(folder.path().join("window.yaml"), WINDOW).expect("a manifest");
    fill(&folder.path().join("filled"), events);
    println!("{events} events of {} bytes on average in the file; medians of {RUNS} runs", bytes / events);
    println!("{:<34} {:>9} {:>9} {:>12} {:>14} {:>10}", "", "wall s", "CPU s", "events/s", "events/CPU s", "memory");
    let rows = [
        ("window", "file, filter, 1-minute window"),
        ("filled", "the clickstream manifest"),
        ("generated", "  with generating and feeding"),
    ];
    for (kind, title) in rows {
        let mut rows: Vec<Value> = (0..RUNS).map(|_| run(kind, folder.path(), &events.to_string())).collect();
        let mut median = |field: &str| {
            rows.sort_by(|a, b| a[field].as_f64().partial_cmp(&b[field].as_f64()).expect("numbers"));
            rows[RUNS / 2][field].as_f64().expect("a number")
        };
        let (wall, cpu, memory) = (median("wall"), median("cpu"), median("memory"));
        println!(
            "{title:<34} {wall:>9.2} {cpu:>9.2} {:>12.0} {:>14.0} {:>7.0} MB",
            events as f64 / wall,
            events as f64 / cpu,
            memory / 1e6
        );
    }
}

/// Runs a pipeline once from nothing; answers seconds, CPU seconds and bytes.
fn run(kind: &str, folder: &Path, events: &str) -> Value {
    let leat: PathBuf = std::env::current_exe().expect("myself").parent().expect("a folder").join("leat");
    let state = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(leat);
    command.args(["dev", "--until-done", "--output", "json", "--state"]).arg(state.path());
    match kind {
        "window" => drop(command.arg("-f").arg(folder.join("window.yaml"))),
        _ => drop(command.arg("-f").arg(clickstream())),
    }
    match kind {
        "generated" => drop(command.args(["--generate", &format!("events={events}")])),
        "filled" => copy(&folder.join("filled"), state.path()),
        _ => {}
    }
    let started = Instant::now();
    let output = command.stdin(Stdio::null()).output().expect("leat starts: run `cargo build --release` first");
    let wall = started.elapsed().as_secs_f64();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
    assert_eq!(report["taken"].to_string(), events, "a run that did not do the work measures nothing");
    json!({"wall": wall, "cpu": report["cpuSeconds"], "memory": report["peakMemory"]})
}

fn clickstream() -> PathBuf {
    leat_tests::repository().join("manifests/pipelines/clickstream.yaml")
}

/// Generated events in the stream of the clickstream manifest, as `leat dev` feeds them.
fn fill(state: &Path, events: u64) {
    let text = std::fs::read_to_string(clickstream()).expect("the manifest");
    let documents = leat::manifest::documents("clickstream.yaml", &text).unwrap_or_else(|p| panic!("{p:?}"));
    let pipeline = leat::manifest::pipeline(&documents, leat_compile::References::default()).unwrap_or_else(|p| panic!("{p:?}"));
    let document = &pipeline.program.document;
    let kinesis = document.spec.streams[0].kinesis.as_ref().expect("a Kinesis stream");
    let folder = state.join(&document.namespace).join(&document.name).join("streams").join(&kinesis.stream_name);
    let shards = kinesis.shards.as_ref().map_or(4, |s| s.initial);
    let stream = leat_runtime::connectors::local::streams::LocalStream::open(&folder, shards, leat::feed::now()).expect("a stream");
    leat::feed::run(&leat::feed::Feed::Generate(events), &pipeline.program, "events", &stream, &leat::feed::Fed::default()).expect("fed");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("a copy");
        }
    }
}

/// Events of about 554 bytes, the size that the reference numbers were taken with; answers how many bytes.
fn write_events(path: &Path, events: u64) -> u64 {
    let mut out = Vec::with_capacity(events as usize * 560);
    for number in 0..events {
        let event = leat::generate::event(leat::feed::SEED, number);
        let campaign = event.campaign.map_or("null".to_owned(), |c| format!("\"cmp-{c:04}\""));
        let line = format!(
            "{{\"event_id\":\"{number:032x}\",\"cookie_id\":\"c-{:08x}\",\"ts\":\"{}\",\"type\":\"{}\",\"campaign_id\":{campaign},\"spend\":{}.{:04},\
             \"url\":\"https://shop.example.com/category/product-{}?ref=mail&pos=7\",\"ip\":\"203.0.113.{}\",\
             \"user_agent\":\"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36\",\
             \"device\":{{\"screen\":\"1920x1080\",\"language\":\"en-US\",\"touch\":false}},\"note\":\"",
            event.cookie,
            leat::format_millis(event.time),
            event.kind,
            event.spend / 10_000,
            event.spend % 10_000,
            event.cookie % 1000,
            event.cookie % 254
        );
        out.extend_from_slice(line.as_bytes());
        out.resize(out.len() + 551usize.saturating_sub(line.len()), b'x');
        out.extend_from_slice(b"\"}\n");
    }
    std::fs::write(path, &out).expect("the events");
    out.len() as u64
}
