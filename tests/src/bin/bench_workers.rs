//! Measures how work grows with workers: one stream that is filled before, read by one worker or by two, each with threads of its own,
//! over the same local stores. Each event goes through the repartition stream twice: as a row of an exact deduplication, and in
//! partial sums by another key. Prints one table.
//!
//! `cargo run -p leat-tests --bin bench_workers -- [--events N]`

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use leat_runtime::connectors::local::shard::Record;
use leat_runtime::connectors::local::streams::LocalStream;
use leat_runtime::engine::task::{Held, Settings};
use leat_runtime::engine::worker::Worker;
use leat_tests::laptop;

/// Workers, and threads of each.
const FLEETS: [(usize, usize); 4] = [(1, 1), (2, 1), (1, 2), (2, 2)];

const MANIFEST: &str = r#"
apiVersion: leat.dev/v1alpha1
kind: StreamingPipeline
metadata: {name: workers, namespace: bench}
spec:
  storage: {location: "s3://bench/"}
  streams:
    - {name: events, kinesis: {streamName: events, shards: {initial: 4}}}
  sources:
    - {name: events, stream: events, columns: {id: BIGINT, user: TEXT, campaign: TEXT, spend: BIGINT, ts: TIMESTAMP}, eventTime: {field: ts, maxOutOfOrderness: 10s}}
  steps:
    - {name: unique, from: [events], deduplicate: {by: [id], keyedWith: [user], within: 1h}}
    - {name: sums, from: [events], window: {tumbling: 1m}, groupBy: [campaign], aggregate: {clicks: "count(*)", spend: "sum(spend)"}}
  sinks:
    - {name: unique, from: [unique], s3: {location: "s3://bench/unique/", format: Parquet}}
    - {name: sums, from: [sums], s3: {location: "s3://bench/sums/", format: Parquet}}
"#;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let events: u64 = arguments
        .iter()
        .position(|a| a == "--events")
        .and_then(|i| arguments.get(i + 1))
        .map_or(1_000_000, |n| n.parse().expect("a number"));
    println!("{events} events in four shards, through a deduplication and windows of a minute");
    let columns = ["events/s", "CPU s", "cuts", "held, mean", "longest"];
    println!("{:<24} {}", "", columns.map(|c| format!("{c:>12}")).join(" "));
    for (workers, threads) in FLEETS {
        let folder = tempfile::tempdir().expect("a folder");
        let (wall, cpu, held) = run(folder.path(), workers, threads, events);
        let mean = held.total.as_secs_f64() * 1e3 / held.times.max(1) as f64;
        let numbers = [
            format!("{:.0}", events as f64 / wall),
            format!("{cpu:.2}"),
            held.times.to_string(),
            format!("{mean:.2} ms"),
            format!("{:.1} ms", held.longest.as_secs_f64() * 1e3),
        ];
        println!("{:<24} {}", format!("{workers} with {threads} threads"), numbers.map(|n| format!("{n:>12}")).join(" "));
    }
}

/// Seconds and CPU seconds from the first round until every event is behind a cut of the deduplication, and what cuts cost.
fn run(folder: &Path, workers: usize, threads: usize, events: u64) -> (f64, f64, Held) {
    let documents = leat::manifest::documents("workers.yaml", MANIFEST).expect("YAML");
    let program = Arc::new(leat::manifest::pipeline(&documents, leat::manifest::References::default()).expect("a pipeline").program);
    let stream = Arc::new(LocalStream::open(&folder.join("stream"), 4, 1).expect("a stream"));
    for first in (0..events).step_by(20_000) {
        stream.append((first..events.min(first + 20_000)).map(|n| (n, event(n))).collect(), None).expect("appended");
    }
    let ports = laptop::ports(folder, &program, &stream);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let worker = |n: usize| {
            Worker::new(ports.clone(), Settings::default(), format!("worker-{n}"), Arc::clone(&program), 1, threads).expect("a worker")
        };
        let mut fleet: Vec<Worker> = (0..workers).map(worker).collect();
        for worker in &mut fleet {
            worker.register().await.expect("registered");
        }
        let (began, before) = (Instant::now(), cpu());
        let (wall, cpu) = loop {
            for worker in &mut fleet {
                worker.round().await.expect("a round");
            }
            let keyed = fleet.iter().flat_map(|worker| worker.shared.keyed().into_values());
            let judged: u64 = keyed.map(|k| k.ledger.0.get("unique (keyed)").map_or(0, |counts| counts.taken)).sum();
            if judged == events {
                break (began.elapsed().as_secs_f64(), cpu() - before);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let mut held = Held::default();
        for worker in &fleet {
            worker.shared.sources().values().for_each(|p| held.add(&p.held));
            worker.shared.keyed().values().for_each(|p| held.add(&p.held));
        }
        for worker in fleet {
            worker.leave(30_000).await.expect("it leaves");
        }
        (wall, cpu, held)
    })
}

/// CPU seconds of this process so far.
fn cpu() -> f64 {
    leat::report::usage().0.expect("what the system says of this process")
}

/// The `n`th event: one in twenty is a repeat of one before it.
fn event(n: u64) -> Record {
    let id = if n % 20 == 19 { n - 10 } else { n };
    let (user, campaign) = (format!("user-{}", id % 50_000), id * 7_919 % 1_000);
    let time = leat::format_millis(1_793_491_200_000 + n as i64 / 10);
    let data = format!("{{\"id\":{id},\"user\":\"{user}\",\"campaign\":\"c-{campaign}\",\"spend\":{},\"ts\":\"{time}\"}}", id * 31 % 997);
    Record { key: user.into_bytes(), data: data.into_bytes(), arrival: 1_793_491_200_000 }
}
