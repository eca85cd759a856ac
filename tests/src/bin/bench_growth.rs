//! Measures how a run grows: the same pipeline over ever more events, and over ever more keys that are open at once. Each run is a
//! whole `leat dev` over one compressed file. Prints one table.
//!
//! `cargo run -p leat-tests --bin bench_growth [--millions N,N]`; it needs `cargo build` first, and 30 bytes of disk an event.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::Value;

/// Sums of a minute by campaign: few keys, whatever comes.
const EVENTS: &str =
    "{name: sums, from: [clicks], window: {tumbling: 1m}, groupBy: [campaign], aggregate: {clicks: \"count(*)\", spend: \"sum(spend)\"}}";
/// Sums of a year by event: every event opens a key of its own.
const KEYS: &str =
    "{name: sums, from: [clicks], window: {tumbling: 365d}, groupBy: [id], aggregate: {clicks: \"count(*)\", spend: \"sum(spend)\"}}";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let millions = arguments.iter().position(|a| a == "--millions").and_then(|i| arguments.get(i + 1)).map_or("1,10", String::as_str);
    let folder = tempfile::tempdir().expect("a folder");
    println!("{:<30} {:>9} {:>9} {:>14} {:>10} {:>12}", "", "wall s", "CPU s", "events/CPU s", "memory", "bytes a key");
    for count in millions.split(',').map(|n| n.parse::<u64>().expect("a number")) {
        let events = count * 1_000_000;
        write_events(&folder.path().join("events.jsonl.zst"), events);
        for (title, step, keys) in [("events, few keys", EVENTS, false), ("keys open at once", KEYS, true)] {
            // Ten million keys take gigabytes.
            if keys && count > 10 {
                continue;
            }
            let (wall, report) = run(folder.path(), step, events);
            let number = |name: &str| report[name].as_f64().expect("a number");
            let (cpu, memory) = (number("cpuSeconds"), number("peakMemory"));
            let bytes = if keys { format!("{:.0}", memory / events as f64) } else { "·".to_owned() };
            let title = format!("{count} million {title}");
            println!("{title:<30} {wall:>9.2} {cpu:>9.2} {:>14.0} {:>7.0} MB {bytes:>12}", events as f64 / cpu, memory / 1e6);
        }
    }
}

/// Runs a pipeline once from nothing; answers seconds, and what it says of itself.
fn run(folder: &Path, step: &str, events: u64) -> (f64, Value) {
    let leat: PathBuf = std::env::current_exe().expect("myself").parent().expect("a folder").join("leat");
    let manifest = folder.join("growth.yaml");
    let text = format!(
        "apiVersion: leat.dev/v1alpha1\nkind: StreamingPipeline\nmetadata: {{name: growth, namespace: bench}}\nspec:\n  sources:\n  \
         - {{name: clicks, files: {{path: events.jsonl.zst}}, columns: {{id: BIGINT, campaign: TEXT, ts: BIGINT, spend: BIGINT}}, \
         eventTime: {{field: ts, maxOutOfOrderness: 10s}}}}\n  steps:\n  - {step}\n  sinks:\n  \
         - {{name: out, from: [sums], s3: {{location: \"s3://bench/out/\", format: Parquet}}}}\n"
    );
    std::fs::write(&manifest, text).expect("a manifest");
    let state = tempfile::tempdir_in(folder).expect("a folder");
    let mut command = Command::new(leat);
    command.args(["dev", "--until-done", "--output", "json", "--memory", "8Gi", "--state"]).arg(state.path()).arg("-f").arg(manifest);
    let started = Instant::now();
    let output = command.stdin(Stdio::null()).output().expect("leat starts: run `cargo build` first");
    let wall = started.elapsed().as_secs_f64();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
    assert_eq!(report["taken"].as_u64(), Some(events), "a run that did not do the work measures nothing");
    (wall, report)
}

/// Events of 60 to 70 bytes, 10,000 of each second, of a thousand campaigns.
fn write_events(path: &Path, events: u64) {
    let file = std::fs::File::create(path).expect("a file");
    let mut out = zstd::Encoder::new(file, 1).expect("an encoder");
    for id in 0..events {
        let (campaign, time, spend) = (id * 7_919 % 1_000, 1_793_491_200_000 + id / 10, id * 31 % 997);
        writeln!(out, "{{\"id\":{id},\"campaign\":\"c-{campaign}\",\"ts\":{time},\"spend\":{spend}}}").expect("written");
    }
    out.finish().expect("written");
}
