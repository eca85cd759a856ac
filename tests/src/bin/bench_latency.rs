//! Measures how long an event takes through a whole worker over local stores, at a fixed rate: from the moment at which it is put
//! into the stream to the moment at which a sink's stream is given it, behind the cut that covers it. One way goes straight, one
//! through the repartition stream and an exact deduplication. Prints one table.
//! `cargo run -p leat-tests --bin bench_latency -- [--rate EVENTS A SECOND] [--seconds N]`

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use leat_runtime::connectors::local::shard::Record;
use leat_runtime::connectors::local::streams::LocalStream;
use leat_runtime::engine::ports::{Call, Ports, Streams};
use leat_runtime::engine::task::Settings;
use leat_runtime::engine::worker::Worker;
use leat_runtime::output::StreamRecord;
use leat_tests::laptop;
use serde_json::Value;

/// Time between two appends to the stream: what a producer collects.
const BATCH: Duration = Duration::from_millis(5);
/// Events of the first seconds do not count.
const WARM: Duration = Duration::from_secs(2);
/// Least times between two cuts, ms.
const CUTS: [i64; 4] = [20, 100, 250, 500];

const MANIFEST: &str = r#"
apiVersion: leat.dev/v1alpha1
kind: StreamingPipeline
metadata: {name: latency, namespace: bench}
spec:
  storage: {location: "s3://bench/"}
  streams:
    - {name: events, kinesis: {streamName: events, shards: {initial: 2}}}
    - {name: straight, kinesis: {streamName: straight, shards: {initial: 1}}}
    - {name: keyed, kinesis: {streamName: keyed, shards: {initial: 1}}}
  sources:
    - {name: events, stream: events, columns: {id: BIGINT, user: TEXT, sent: BIGINT, ts: TIMESTAMP}, eventTime: {field: ts, maxOutOfOrderness: 1s}}
  steps:
    - {name: some, from: [events], filter: "id >= 0"}
    - {name: unique, from: [events], deduplicate: {by: [id], keyedWith: [user], within: 1h}}
  sinks:
    - {name: straight, from: [some], stream: {name: straight, partitionBy: user}}
    - {name: keyed, from: [unique], stream: {name: keyed, partitionBy: user}}
"#;

/// Takes the time of what comes.
struct Arrivals {
    began: Instant,
    /// By stream: microseconds that events took.
    taken: Mutex<BTreeMap<String, Vec<u64>>>,
}

impl Streams for Arrivals {
    fn put<'a>(&'a self, stream: &'a str, records: &'a [StreamRecord]) -> Call<'a, Vec<usize>> {
        let now = self.began.elapsed();
        let sent = |record: &StreamRecord| {
            let event: Value = serde_json::from_slice(&record.data).expect("an event");
            Duration::from_micros(event["sent"].as_u64().expect("a time"))
        };
        let taken = records.iter().map(sent).filter(|sent| *sent > WARM).map(|sent| (now - sent).as_micros() as u64);
        self.taken.lock().expect("a list").entry(stream.to_owned()).or_default().extend(taken);
        Box::pin(async { Ok(Vec::new()) })
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str, default: u64| {
        let value = arguments.iter().position(|a| a == name).and_then(|i| arguments.get(i + 1));
        value.map_or(default, |v| v.parse().expect("a number"))
    };
    let (rate, seconds) = (number("--rate", 10_000), number("--seconds", 10));
    println!("{rate} events a second for {seconds} s; milliseconds from the stream to a sink");
    println!("{:>12} {:<10} {:>8} {:>8} {:>8} {:>8} {:>10}", "cut interval", "way", "p50", "p99", "p99.9", "most", "events");
    for cut_interval in CUTS {
        let folder = tempfile::tempdir().expect("a folder");
        for (stream, mut taken) in run(folder.path(), cut_interval, rate, seconds) {
            taken.sort_unstable();
            let at = |share: f64| taken[((taken.len() - 1) as f64 * share) as usize] as f64 / 1e3;
            let numbers = [at(0.5), at(0.99), at(0.999), at(1.0)].map(|ms| format!("{ms:>8.1}")).join(" ");
            println!("{cut_interval:>9} ms {stream:<10} {numbers} {:>10}", taken.len());
        }
    }
}

/// Runs a worker until everything that was sent has arrived on both ways.
fn run(folder: &Path, cut_interval: i64, rate: u64, seconds: u64) -> BTreeMap<String, Vec<u64>> {
    let documents = leat::manifest::documents("latency.yaml", MANIFEST).expect("YAML");
    let program = leat::manifest::pipeline(&documents, leat::manifest::References::default()).expect("a pipeline").program;
    let stream = Arc::new(LocalStream::open(&folder.join("stream"), 2, 1).expect("a stream"));
    let arrivals = Arc::new(Arrivals { began: Instant::now(), taken: Mutex::default() });
    let ports = Ports { streams: Arc::clone(&arrivals) as _, ..laptop::ports(folder, &program, &stream) };
    let wanted = rate * seconds.saturating_sub(WARM.as_secs());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let producer = tokio::spawn(produce(stream, arrivals.began, rate, seconds));
        let settings = Settings { cut_interval, snapshot_interval: 2_000, poll_interval: 5, ..Settings::default() };
        let mut worker = Worker::new(ports, settings, "one".to_owned(), Arc::new(program), 1, 2).expect("a worker");
        worker.register().await.expect("registered");
        loop {
            worker.round().await.expect("a round");
            let counts: Vec<u64> = arrivals.taken.lock().expect("a list").values().map(|taken| taken.len() as u64).collect();
            // All but those that were sent at the border of the first seconds.
            if producer.is_finished() && counts.len() == 2 && counts.iter().all(|n| *n + rate / 100 >= wanted) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        producer.await.expect("all is sent");
        worker.leave(5_000).await.expect("it leaves");
    });
    std::mem::take(&mut *arrivals.taken.lock().expect("a list"))
}

/// Puts events into the stream, so many a second.
async fn produce(stream: Arc<LocalStream>, began: Instant, rate: u64, seconds: u64) {
    let mut sent = 0;
    while sent < rate * seconds {
        let due = (began.elapsed().as_micros() as u64 * rate / 1_000_000).min(rate * seconds);
        let batch: Vec<(u64, Record)> = (sent..due).map(|n| (n, event(n, began.elapsed()))).collect();
        stream.append(batch, None).expect("appended");
        sent = due;
        tokio::time::sleep(BATCH).await;
    }
}

/// The `n`th event.
fn event(n: u64, sent: Duration) -> Record {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time").as_millis() as i64;
    let user = format!("user-{}", n % 10_000);
    let data = format!("{{\"id\":{n},\"user\":\"{user}\",\"sent\":{},\"ts\":\"{}\"}}", sent.as_micros(), leat::format_millis(now));
    Record { key: user.into_bytes(), data: data.into_bytes(), arrival: now }
}
